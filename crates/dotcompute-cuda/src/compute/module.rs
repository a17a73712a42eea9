//! Loaded code, its kernels, and their launches.

use std::ffi::{CString, c_char, c_int, c_uint, c_void};
use std::ptr;
use std::sync::{Arc, Mutex, PoisonError};

use super::ComputeError;
use super::calls::LaunchConfig;
use super::context::{Context, Later, told};
use super::stream::{Event, Stream};

// CUjit_option
const ERROR_LOG: c_int = 5;
const ERROR_LOG_BYTES: c_int = 6;

// CUfunction_attribute
const MAX_THREADS: c_int = 0;
const SHARED_BYTES: c_int = 1;
const LOCAL_BYTES: c_int = 3;
const REGISTERS: c_int = 4;
const MAX_DYNAMIC_SHARED_BYTES: c_int = 8;

/// The most parameters that are looked for: a kernel has 32 KB of them at most, since 12.1.
const PARAMETERS_MOST: usize = 4096;

/// Code that was loaded into a context. Clones are the same module; it is unloaded when the last
/// clone and the last of its functions are gone and its launches are over, and not while a resident
/// grid would hold that up.
#[derive(Clone, Debug)]
pub struct Module(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    context: Context,
    raw: *mut c_void,
    /// The streams that it was launched on.
    users: Mutex<Vec<Stream>>,
}

// SAFETY: `raw` is a name that the driver takes from any thread.
unsafe impl Send for Inner {}
// SAFETY: as above.
unsafe impl Sync for Inner {}

impl Drop for Inner {
    fn drop(&mut self) {
        let users = self.users.get_mut().unwrap_or_else(PoisonError::into_inner);
        let behind = |user: Stream| user.record().map_err(|error| told(&error)).ok();
        let after: Vec<Event> = users.drain(..).filter_map(behind).collect();
        self.context.free_later(Later::Module(self.raw, after));
    }
}

impl Module {
    /// Loads a cubin, or PTX that the driver compiles. This may wait for a resident grid.
    ///
    /// # Errors
    ///
    /// It is no image, or not one for this device: with the driver's log.
    ///
    /// # Safety
    ///
    /// - The image is the output of a compiler or a linker for devices: the driver believes it.
    pub unsafe fn load(context: &Context, image: &[u8]) -> Result<Self, ComputeError> {
        context.free_what_is_due();
        let text;
        let image = if image.starts_with(b"\x7fELF") {
            check_elf(image)?;
            image
        } else if image.iter().all(|byte| *byte != 0 && byte.is_ascii()) && !image.is_empty() {
            text = [image, b"\0"].concat();
            &text
        } else {
            return Err(ComputeError::Image("it is neither a cubin nor PTX"));
        };
        let mut raw = ptr::null_mut();
        let mut log = [0_u8; 4096];
        let mut options = [ERROR_LOG, ERROR_LOG_BYTES];
        let mut values =
            [log.as_mut_ptr().cast(), ptr::without_provenance_mut::<c_void>(log.len() - 1)];
        let code = context.code(|calls| {
            let (options, values) = (options.as_mut_ptr(), values.as_mut_ptr());
            // SAFETY: an image, as the caller promises, whole, as was checked; the rest outlives the
            // call, and the log ends in a zero byte.
            unsafe { (calls.module_load)(&mut raw, image.as_ptr().cast(), 2, options, values) }
        })?;
        if code != 0 {
            let mut error = context.error("cuModuleLoadDataEx", code);
            let length = log.iter().position(|byte| *byte == 0).unwrap_or(0);
            let said = String::from_utf8_lossy(&log[..length]);
            if let ComputeError::Driver(error) = &mut error
                && !said.trim().is_empty()
            {
                error.text = format!("{}: {}", error.text, said.trim());
            }
            return Err(error);
        }
        Ok(Self(Arc::new(Inner { context: context.clone(), raw, users: Mutex::default() })))
    }

    /// A kernel of it, by its name in the image.
    ///
    /// # Errors
    ///
    /// It has none of this name.
    pub fn function(&self, name: &str) -> Result<Function, ComputeError> {
        let context = &self.0.context;
        let wanted = CString::new(name)
            .map_err(|_| ComputeError::Image("a name with a zero byte is no kernel's"))?;
        let mut raw = ptr::null_mut();
        context.call("cuModuleGetFunction", |calls| {
            let name: *const c_char = wanted.as_ptr();
            // SAFETY: a live module; the name ends in a zero byte and outlives the call.
            unsafe { (calls.module_function)(&mut raw, self.0.raw, name) }
        })?;
        let mut function =
            Function { module: self.clone(), raw, name: name.to_owned(), parameters: None };
        function.parameters = function.ask_parameters()?;
        Ok(function)
    }
}

/// Refuses a cubin that says it is longer than it is.
fn check_elf(image: &[u8]) -> Result<(), ComputeError> {
    let number = |at: usize, bytes: usize| -> Option<u64> {
        let field = image.get(at..at + bytes)?;
        Some(field.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte)))
    };
    // Sections: where, how large each, how many. Segments: the same.
    let table = |at: usize, size: usize, count: usize| {
        let all = number(size, 2)?.checked_mul(number(count, 2)?)?;
        number(at, 8)?.checked_add(all)
    };
    let is_whole = |end: Option<u64>| end.is_some_and(|end| end <= image.len() as u64);
    if image.get(4) == Some(&2) && is_whole(table(40, 58, 60)) && is_whole(table(32, 54, 56)) {
        Ok(())
    } else {
        Err(ComputeError::Image("the cubin is cut off"))
    }
}

/// How a kernel is launched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Launch {
    /// Blocks in each dimension.
    pub grid: [u32; 3],
    /// Threads of a block in each dimension.
    pub block: [u32; 3],
    /// Shared memory for each block beyond what the kernel declares, in bytes.
    pub shared_bytes: u32,
}

/// What a kernel takes of a multiprocessor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FunctionNeeds {
    /// The most threads that a block of it can have.
    pub block_threads: u32,
    /// Registers of a thread.
    pub registers: u32,
    /// Shared memory that it declares, in bytes.
    pub shared_bytes: u32,
    /// Local memory of a thread, in bytes.
    pub local_bytes: u32,
}

/// A kernel. Thread-safe.
#[derive(Clone, Debug)]
pub struct Function {
    module: Module,
    raw: *mut c_void,
    name: String,
    parameters: Option<Vec<usize>>,
}

// SAFETY: `raw` is a name that the driver takes from any thread.
unsafe impl Send for Function {}
// SAFETY: as above.
unsafe impl Sync for Function {}

impl Function {
    /// Its name in the image.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The sizes of its parameters in bytes; none with drivers before 12.4, which do not tell.
    pub fn parameters(&self) -> Option<&[usize]> {
        self.parameters.as_deref()
    }

    fn context(&self) -> &Context {
        &self.module.0.context
    }

    fn ask_parameters(&self) -> Result<Option<Vec<usize>>, ComputeError> {
        let Some(ask) = self.context().parameters() else {
            return Ok(None);
        };
        let mut sizes = Vec::new();
        for index in 0..PARAMETERS_MOST {
            let (mut offset, mut size) = (0, 0);
            let code = self.context().code(|_| {
                // SAFETY: a live kernel; both outlive the call.
                unsafe { ask(self.raw, index, &mut offset, &mut size) }
            })?;
            match code {
                0 => sizes.push(size),
                // CUDA_ERROR_INVALID_VALUE: there are no more.
                1 => break,
                code => return Err(self.context().error("cuFuncGetParamInfo", code)),
            }
        }
        Ok(Some(sizes))
    }

    /// What it takes of a multiprocessor.
    ///
    /// # Errors
    ///
    /// What the driver said.
    pub fn needs(&self) -> Result<FunctionNeeds, ComputeError> {
        Ok(FunctionNeeds {
            block_threads: self.attribute(MAX_THREADS)?,
            registers: self.attribute(REGISTERS)?,
            shared_bytes: self.attribute(SHARED_BYTES)?,
            local_bytes: self.attribute(LOCAL_BYTES)?,
        })
    }

    fn attribute(&self, attribute: c_int) -> Result<u32, ComputeError> {
        let mut value = 0;
        self.context().call("cuFuncGetAttribute", |calls| {
            // SAFETY: a live kernel; `value` outlives the call.
            unsafe { (calls.function_get)(&mut value, attribute, self.raw) }
        })?;
        Ok(value.unsigned_abs())
    }

    /// How many blocks of so many threads fit on one multiprocessor at once.
    ///
    /// # Errors
    ///
    /// What the driver said.
    pub fn blocks_per_multiprocessor(
        &self,
        block_threads: u32,
        shared_bytes: u32,
    ) -> Result<u32, ComputeError> {
        let mut blocks = 0;
        let threads = block_threads.cast_signed();
        self.context().call("cuOccupancyMaxActiveBlocksPerMultiprocessor", |calls| {
            // SAFETY: a live kernel; `blocks` outlives the call.
            unsafe { (calls.occupancy)(&mut blocks, self.raw, threads, shared_bytes as usize) }
        })?;
        Ok(blocks.unsigned_abs())
    }

    /// The threads of a block that keep a multiprocessor busiest.
    ///
    /// # Errors
    ///
    /// What the driver said.
    pub fn best_block_threads(&self, shared_bytes: u32) -> Result<u32, ComputeError> {
        let (mut grid, mut block) = (0, 0);
        let shared_bytes = shared_bytes as usize;
        self.context().call("cuOccupancyMaxPotentialBlockSize", |calls| {
            // SAFETY: a live kernel; without a function of the block's size the shared memory is
            // the same for all; both numbers outlive the call.
            unsafe {
                (calls.best_block)(&mut grid, &mut block, self.raw, ptr::null(), shared_bytes, 0)
            }
        })?;
        Ok(block.unsigned_abs())
    }

    /// Launches it, in the order of `stream`, with these arguments: the bytes of each.
    ///
    /// # Errors
    ///
    /// The device or the kernel does not take such a launch, or what the driver said. What goes
    /// wrong while it runs, the next call that waits is told.
    ///
    /// # Safety
    ///
    /// - The arguments are of the kernel's types, and what they lead to is memory that it may use
    ///   so, and stays until it has ended.
    pub unsafe fn launch(
        &self,
        stream: &Stream,
        launch: &Launch,
        arguments: &[&[u8]],
    ) -> Result<(), ComputeError> {
        if let Some(wrong) = self.wrong(stream, launch, arguments) {
            return Err(ComputeError::Launch(format!("kernel {}: {wrong}", self.name)));
        }
        if launch.shared_bytes > self.context().limits().shared_bytes {
            self.context().call("cuFuncSetAttribute", |calls| {
                let bytes = launch.shared_bytes.cast_signed();
                // SAFETY: a live kernel.
                unsafe { (calls.function_set)(self.raw, MAX_DYNAMIC_SHARED_BYTES, bytes) }
            })?;
        }
        // Each argument at a place that is aligned for whatever it is.
        let mut storage = Vec::new();
        let mut starts = Vec::with_capacity(arguments.len());
        for argument in arguments {
            starts.push(storage.len());
            for part in argument.chunks(16) {
                let mut whole = [0; 16];
                whole[..part.len()].copy_from_slice(part);
                storage.push(u128::from_ne_bytes(whole));
            }
            if argument.is_empty() {
                storage.push(0);
            }
        }
        // From one pointer, so that each leads to all of an argument that takes several places.
        let base = storage.as_mut_ptr();
        let place = |start: usize| base.wrapping_add(start).cast::<c_void>();
        let mut places: Vec<*mut c_void> = starts.into_iter().map(place).collect();
        let config = LaunchConfig {
            grid: launch.grid,
            block: launch.block,
            shared_bytes: launch.shared_bytes,
            stream: stream.raw(),
            attributes: ptr::null_mut(),
            attribute_count: 0 as c_uint,
        };
        self.use_on(stream);
        self.context().call("cuLaunchKernelEx", |calls| {
            // SAFETY: a live kernel and a live stream; one place for each argument, as the caller
            // promises, all of which the driver copies before it returns.
            unsafe { (calls.launch)(&config, self.raw, places.as_mut_ptr(), ptr::null_mut()) }
        })
    }

    fn use_on(&self, stream: &Stream) {
        let mut users = self.module.0.users.lock().unwrap_or_else(PoisonError::into_inner);
        if !users.iter().any(|known| known.is(stream)) {
            users.push(stream.clone());
        }
    }

    fn wrong(&self, stream: &Stream, launch: &Launch, arguments: &[&[u8]]) -> Option<String> {
        if stream.context() != self.context() {
            return Some("the stream is another device's".to_owned());
        }
        if let Some(wrong) = self.context().limits().wrong(launch) {
            return Some(wrong);
        }
        let sizes = self.parameters.as_ref()?;
        if sizes.len() != arguments.len() {
            return Some(format!("it takes {} arguments, not {}", sizes.len(), arguments.len()));
        }
        let fits = |(size, argument): (&usize, &&[u8])| *size == argument.len();
        let at = sizes.iter().zip(arguments).position(|pair| !fits(pair))?;
        let (wanted, given) = (sizes[at], arguments[at].len());
        Some(format!("argument {at} has {given} bytes, and its parameter {wanted}"))
    }
}
