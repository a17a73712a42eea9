//! The compiler: NVRTC, which makes device code of CUDA C++ and needs no device.

use std::ffi::{CString, c_char, c_int, c_void};
use std::path::Path;
use std::ptr;

use crate::library::{Absent, CallError, Library, Opened, Version, functions, text_at};

pub(crate) const NVRTC: Library = Library {
    name: "NVRTC",
    file: "libnvrtc.so",
    // The oldest that was tried: it knows fence.acquire (PTX 8.6).
    oldest: Some(Version::new(12, 9)),
    advice: "pip install nvidia-cuda-nvrtc, or install the CUDA toolkit, 12.9 or newer, and set \
             CUDA_HOME if it is not in /usr/local/cuda",
};

functions! {
    Functions;
    version = "nvrtcVersion"(*mut c_int, *mut c_int) -> c_int;
    error_string = "nvrtcGetErrorString"(c_int) -> *const c_char;
    create = "nvrtcCreateProgram"(
        *mut *mut c_void,
        *const c_char,
        *const c_char,
        c_int,
        *const *const c_char,
        *const *const c_char,
    ) -> c_int;
    destroy = "nvrtcDestroyProgram"(*mut *mut c_void) -> c_int;
    compile = "nvrtcCompileProgram"(*mut c_void, c_int, *const *const c_char) -> c_int;
    log_size = "nvrtcGetProgramLogSize"(*mut c_void, *mut usize) -> c_int;
    log = "nvrtcGetProgramLog"(*mut c_void, *mut c_char) -> c_int;
    cubin_size = "nvrtcGetCUBINSize"(*mut c_void, *mut usize) -> c_int;
    cubin = "nvrtcGetCUBIN"(*mut c_void, *mut c_char) -> c_int;
    lto_ir_size = "nvrtcGetLTOIRSize"(*mut c_void, *mut usize) -> c_int;
    lto_ir = "nvrtcGetLTOIR"(*mut c_void, *mut c_char) -> c_int;
}

/// NVRTC. Any number of threads may compile with it at once.
#[derive(Debug)]
pub struct Nvrtc {
    functions: Functions,
    version: Version,
    opened: Opened,
    /// Keeps open what NVRTC looks for under a bare name.
    _builtins: Option<Opened>,
}

/// A translation unit of CUDA C++.
#[derive(Clone, Copy, Debug)]
pub struct Source<'a> {
    /// How errors name it.
    pub name: &'a str,
    /// Its text.
    pub text: &'a str,
    /// What it may include: names and texts.
    pub headers: &'a [(&'a str, &'a str)],
}

/// What a compilation makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// Code for one architecture, ready to load.
    Cubin,
    /// Intermediate code that [`NvJitLink`](crate::nvjitlink::NvJitLink) links and optimises as a
    /// whole.
    LtoIr,
}

impl Nvrtc {
    /// Loads the library at `path`; and first, from beside it, the library of built-ins, which some
    /// packages of NVRTC do not find by themselves.
    ///
    /// # Errors
    ///
    /// Why it cannot be used.
    ///
    /// # Safety
    ///
    /// - The library at `path` is NVRTC, or stands in for it.
    pub unsafe fn open(path: &Path) -> Result<Self, Absent> {
        // SAFETY: as the caller promises.
        let opened = unsafe { Opened::open(&NVRTC, path) }?;
        // SAFETY: as the caller promises.
        let functions = unsafe { Functions::load(&opened) }?;
        let (mut major, mut minor) = (0, 0);
        // SAFETY: both outlive the call.
        let code = unsafe { (functions.version)(&mut major, &mut minor) };
        let version = Version::new(major.unsigned_abs(), minor.unsigned_abs());
        let mut nvrtc = Self { functions, version, opened, _builtins: None };
        nvrtc.check("nvrtcVersion", code).map_err(|error| nvrtc.opened.refused(error))?;
        nvrtc.opened.check(version)?;
        let builtins = path.with_file_name(format!("libnvrtc-builtins.so.{version}"));
        if builtins.is_file() {
            // SAFETY: what NVRTC would load itself, from where it lies itself.
            nvrtc._builtins = Some(unsafe { Opened::open(&NVRTC, &builtins) }?);
        }
        Ok(nvrtc)
    }

    /// Its version.
    pub fn version(&self) -> Version {
        self.version
    }

    /// Where it was loaded from.
    pub fn path(&self) -> &Path {
        &self.opened.path
    }

    /// Compiles `source` to `output`. The text that comes back beside it has warnings, if any.
    ///
    /// # Errors
    ///
    /// With the compiler's log as its text if `source` is at fault.
    pub fn compile(
        &self,
        source: &Source<'_>,
        options: &[&str],
        output: Output,
    ) -> Result<(Vec<u8>, String), CallError> {
        let functions = self.functions;
        let program = self.program(source)?;
        let options: Vec<CString> =
            options.iter().map(|option| terminated(option)).collect::<Result<_, _>>()?;
        let options: Vec<_> = options.iter().map(|option| option.as_ptr()).collect();
        let count = c_int::try_from(options.len()).map_err(|_| too_long("options"))?;
        // SAFETY: a live program; the options outlive the call.
        let compiled = unsafe { (functions.compile)(program.handle, count, options.as_ptr()) };
        let log =
            self.fetch("nvrtcGetProgramLog", program.handle, functions.log_size, functions.log)?;
        let log = String::from_utf8_lossy(&log).trim_end_matches('\0').to_owned();
        if let Err(error) = self.check("nvrtcCompileProgram", compiled) {
            return Err(match log.trim() {
                "" => error,
                log => CallError { text: log.to_owned(), ..error },
            });
        }
        let code = match output {
            Output::Cubin => {
                self.fetch("nvrtcGetCUBIN", program.handle, functions.cubin_size, functions.cubin)
            }
            Output::LtoIr => {
                self.fetch("nvrtcGetLTOIR", program.handle, functions.lto_ir_size, functions.lto_ir)
            }
        }?;
        Ok((code, log))
    }

    fn program(&self, source: &Source<'_>) -> Result<Program<'_>, CallError> {
        let text = terminated(source.text)?;
        let name = terminated(source.name)?;
        let pairs: Vec<(CString, CString)> = source
            .headers
            .iter()
            .map(|(name, text)| Ok((terminated(name)?, terminated(text)?)))
            .collect::<Result<_, CallError>>()?;
        let names: Vec<_> = pairs.iter().map(|(name, _)| name.as_ptr()).collect();
        let texts: Vec<_> = pairs.iter().map(|(_, text)| text.as_ptr()).collect();
        let count = c_int::try_from(pairs.len()).map_err(|_| too_long("headers"))?;
        let mut handle = ptr::null_mut();
        // SAFETY: all texts end in a zero byte and outlive the call, which copies them.
        let code = unsafe {
            (self.functions.create)(
                &mut handle,
                text.as_ptr(),
                name.as_ptr(),
                count,
                texts.as_ptr(),
                names.as_ptr(),
            )
        };
        self.check("nvrtcCreateProgram", code)?;
        Ok(Program { nvrtc: self, handle })
    }

    /// What a pair of functions, for the size and for the bytes, tells of a program.
    fn fetch(
        &self,
        call: &'static str,
        program: *mut c_void,
        size_of: unsafe extern "C" fn(*mut c_void, *mut usize) -> c_int,
        get: unsafe extern "C" fn(*mut c_void, *mut c_char) -> c_int,
    ) -> Result<Vec<u8>, CallError> {
        let mut size = 0;
        // SAFETY: a live program; `size` outlives the call.
        self.check(call, unsafe { size_of(program, &mut size) })?;
        let mut bytes = vec![0_u8; size];
        // SAFETY: a live program, and as many bytes as it asked for.
        self.check(call, unsafe { get(program, bytes.as_mut_ptr().cast()) })?;
        Ok(bytes)
    }

    fn check(&self, call: &'static str, code: c_int) -> Result<(), CallError> {
        if code == 0 {
            return Ok(());
        }
        // SAFETY: takes any number.
        let text = unsafe { (self.functions.error_string)(code) };
        // SAFETY: a text that lies in the library for good.
        Err(CallError { call, code, text: unsafe { text_at(text) } })
    }
}

/// A program of NVRTC's, destroyed when dropped.
struct Program<'a> {
    nvrtc: &'a Nvrtc,
    handle: *mut c_void,
}

impl Drop for Program<'_> {
    fn drop(&mut self) {
        // SAFETY: a live program, destroyed once. That it should fail changes nothing for anybody.
        unsafe { (self.nvrtc.functions.destroy)(&mut self.handle) };
    }
}

/// `text` as C has it.
pub(crate) fn terminated(text: &str) -> Result<CString, CallError> {
    CString::new(text).map_err(|_| CallError {
        call: "compile",
        code: -1,
        text: "a zero byte stands in a source, a name or an option".to_owned(),
    })
}

fn too_long(what: &str) -> CallError {
    CallError { call: "compile", code: -1, text: format!("there are too many {what}") }
}
