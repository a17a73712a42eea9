//! The linker: nvJitLink, which makes one cubin of several parts and needs no device.

use std::ffi::{c_char, c_int, c_uint, c_void};
use std::path::Path;
use std::ptr;

use crate::library::{Absent, CallError, Library, Opened, Version, functions};
use crate::nvrtc::terminated;

pub(crate) const NVJITLINK: Library = Library {
    name: "nvJitLink",
    file: "libnvJitLink.so",
    oldest: Some(Version::new(12, 9)),
    advice: "pip install nvidia-nvjitlink, or install the CUDA toolkit, 12.9 or newer, and set \
             CUDA_HOME if it is not in /usr/local/cuda",
};

functions! {
    Functions;
    version = "nvJitLinkVersion"(*mut c_uint, *mut c_uint) -> c_int;
    create = "nvJitLinkCreate"(*mut *mut c_void, c_uint, *const *const c_char) -> c_int;
    destroy = "nvJitLinkDestroy"(*mut *mut c_void) -> c_int;
    add = "nvJitLinkAddData"(*mut c_void, c_int, *const c_void, usize, *const c_char) -> c_int;
    complete = "nvJitLinkComplete"(*mut c_void) -> c_int;
    cubin_size = "nvJitLinkGetLinkedCubinSize"(*mut c_void, *mut usize) -> c_int;
    cubin = "nvJitLinkGetLinkedCubin"(*mut c_void, *mut c_void) -> c_int;
    log_size = "nvJitLinkGetErrorLogSize"(*mut c_void, *mut usize) -> c_int;
    log = "nvJitLinkGetErrorLog"(*mut c_void, *mut c_char) -> c_int;
}

/// nvJitLink. Any number of threads may link with it at once.
#[derive(Debug)]
pub struct NvJitLink {
    functions: Functions,
    version: Version,
    opened: Opened,
}

/// A part of what is linked.
#[derive(Clone, Copy, Debug)]
pub struct Part<'a> {
    /// How errors name it.
    pub name: &'a str,
    /// What it is.
    pub kind: PartKind,
    /// Its bytes.
    pub bytes: &'a [u8],
}

/// What a part is: `nvJitLinkInputType`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PartKind {
    /// Relocatable code for one architecture.
    Cubin = 1,
    /// PTX, as text.
    Ptx = 2,
    /// Intermediate code, which is optimised together with that of the other parts.
    LtoIr = 3,
}

impl NvJitLink {
    /// Loads the library at `path`.
    ///
    /// # Errors
    ///
    /// Why it cannot be used.
    ///
    /// # Safety
    ///
    /// - The library at `path` is nvJitLink, or stands in for it.
    pub unsafe fn open(path: &Path) -> Result<Self, Absent> {
        // SAFETY: as the caller promises.
        let opened = unsafe { Opened::open(&NVJITLINK, path) }?;
        // SAFETY: as the caller promises.
        let functions = unsafe { Functions::load(&opened) }?;
        let (mut major, mut minor) = (0, 0);
        // SAFETY: both outlive the call.
        let code = unsafe { (functions.version)(&mut major, &mut minor) };
        check("nvJitLinkVersion", code).map_err(|error| opened.refused(error))?;
        let version = Version::new(major, minor);
        opened.check(version)?;
        Ok(Self { functions, version, opened })
    }

    /// Its version. It links what compilers up to this version made.
    pub fn version(&self) -> Version {
        self.version
    }

    /// Where it was loaded from.
    pub fn path(&self) -> &Path {
        &self.opened.path
    }

    /// Links `parts` to one cubin.
    ///
    /// # Errors
    ///
    /// With the linker's log as its text, if it left one: a function that is nowhere defined, a
    /// part of a newer version.
    pub fn link(&self, parts: &[Part<'_>], options: &[&str]) -> Result<Vec<u8>, CallError> {
        let functions = self.functions;
        let options: Vec<_> =
            options.iter().map(|option| terminated(option)).collect::<Result<_, _>>()?;
        let options: Vec<_> = options.iter().map(|option| option.as_ptr()).collect();
        let mut link = Link { linker: self, handle: ptr::null_mut() };
        let count = options.len() as c_uint;
        // SAFETY: the options end in a zero byte and outlive the call.
        let code = unsafe { (functions.create)(&mut link.handle, count, options.as_ptr()) };
        link.check("nvJitLinkCreate", code)?;
        for part in parts {
            let name = terminated(part.name)?;
            // PTX it knows by the zero byte at its end.
            let ended;
            let bytes = if part.kind == PartKind::Ptx && !part.bytes.ends_with(&[0]) {
                ended = [part.bytes, &[0]].concat();
                &ended
            } else {
                part.bytes
            };
            let (bytes, size) = (bytes.as_ptr().cast(), bytes.len());
            // SAFETY: a live link; bytes and name outlive the call, which copies them.
            let code = unsafe {
                (functions.add)(link.handle, part.kind as c_int, bytes, size, name.as_ptr())
            };
            link.check("nvJitLinkAddData", code)?;
        }
        // SAFETY: a live link.
        let code = unsafe { (functions.complete)(link.handle) };
        link.check("nvJitLinkComplete", code)?;
        let mut size = 0;
        // SAFETY: a completed link; `size` outlives the call.
        let code = unsafe { (functions.cubin_size)(link.handle, &mut size) };
        link.check("nvJitLinkGetLinkedCubinSize", code)?;
        let mut cubin = vec![0_u8; size];
        // SAFETY: a completed link, and as many bytes as it asked for.
        let code = unsafe { (functions.cubin)(link.handle, cubin.as_mut_ptr().cast()) };
        link.check("nvJitLinkGetLinkedCubin", code)?;
        Ok(cubin)
    }
}

/// One linking, destroyed when dropped.
struct Link<'a> {
    linker: &'a NvJitLink,
    handle: *mut c_void,
}

impl Link<'_> {
    /// As [`check`], with the log of this linking.
    fn check(&self, call: &'static str, code: c_int) -> Result<(), CallError> {
        let error = match check(call, code) {
            Err(error) if !self.handle.is_null() => error,
            result => return result,
        };
        let mut size = 0;
        // SAFETY: a live link; `size` outlives the call.
        let code = unsafe { (self.linker.functions.log_size)(self.handle, &mut size) };
        let mut log = vec![0_u8; size];
        if code == 0 && size > 0 {
            // SAFETY: a live link, and as many bytes as it asked for. Without a log the code says
            // what there is to say.
            unsafe { (self.linker.functions.log)(self.handle, log.as_mut_ptr().cast()) };
        }
        let log = String::from_utf8_lossy(&log);
        match log.trim_end_matches('\0').trim() {
            "" => Err(error),
            log => Err(CallError { text: log.to_owned(), ..error }),
        }
    }
}

impl Drop for Link<'_> {
    fn drop(&mut self) {
        if !self.handle.is_null() {
            // SAFETY: a live link, destroyed once.
            unsafe { (self.linker.functions.destroy)(&mut self.handle) };
        }
    }
}

/// nvJitLink describes no codes; these are `nvJitLinkResult`'s names.
fn check(call: &'static str, code: c_int) -> Result<(), CallError> {
    let text = match code {
        0 => return Ok(()),
        1 => "an option is unknown",
        2 => "an option is missing",
        3 => "a part of PTX cannot be compiled",
        4 => "the optimiser refuses a part",
        5 => "internal error",
        6 => "the thread pool fails",
        7 => "a part is unrecognised",
        8 => "the code cannot be finalised",
        _ => "unknown error",
    };
    Err(CallError { call, code, text: text.to_owned() })
}
