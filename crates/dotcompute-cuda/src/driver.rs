//! The driver: `libcuda`, which comes with NVIDIA's kernel module and not with the toolkit.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::path::Path;
use std::ptr;
use std::ptr::NonNull;
use std::sync::OnceLock;

use crate::grid::Extent;
use crate::library::{Absent, CallError, Library, Opened, Version, functions, text_at};

/// The oldest driver: the first that loads the cubins of the 12.x toolkits.
pub(crate) const DRIVER: Library = Library {
    name: "the NVIDIA driver",
    file: "libcuda.so.1",
    oldest: Some(Version::new(12, 0)),
    advice: "install the NVIDIA driver, version 580 or newer (525 will do with a toolkit of 12.x); \
             in a container, run it with --gpus all",
};

functions! {
    Functions;
    init = "cuInit"(c_uint) -> c_int;
    version = "cuDriverGetVersion"(*mut c_int) -> c_int;
    error_name = "cuGetErrorName"(c_int, *mut *const c_char) -> c_int;
    error_string = "cuGetErrorString"(c_int, *mut *const c_char) -> c_int;
    device_count = "cuDeviceGetCount"(*mut c_int) -> c_int;
    device = "cuDeviceGet"(*mut c_int, c_int) -> c_int;
    device_name = "cuDeviceGetName"(*mut c_char, c_int, c_int) -> c_int;
    device_attribute = "cuDeviceGetAttribute"(*mut c_int, c_int, c_int) -> c_int;
    device_memory = "cuDeviceTotalMem_v2"(*mut usize, c_int) -> c_int;
    context = "cuDevicePrimaryCtxRetain"(*mut *mut c_void, c_int) -> c_int;
    set_current = "cuCtxSetCurrent"(*mut c_void) -> c_int;
    host_alloc = "cuMemHostAlloc"(*mut *mut c_void, usize, c_uint) -> c_int;
    host_address = "cuMemHostGetDevicePointer_v2"(*mut u64, *mut c_void, c_uint) -> c_int;
    host_register = "cuMemHostRegister_v2"(*mut c_void, usize, c_uint) -> c_int;
    alloc = "cuMemAlloc_v2"(*mut u64, usize) -> c_int;
    stream = "cuStreamCreate"(*mut *mut c_void, c_uint) -> c_int;
    synchronize = "cuStreamSynchronize"(*mut c_void) -> c_int;
    query = "cuStreamQuery"(*mut c_void) -> c_int;
    copy_in = "cuMemcpyHtoDAsync_v2"(u64, *const c_void, usize, *mut c_void) -> c_int;
    copy_out = "cuMemcpyDtoHAsync_v2"(*mut c_void, u64, usize, *mut c_void) -> c_int;
    set_zero = "cuMemsetD8Async"(u64, u8, usize, *mut c_void) -> c_int;
    load = "cuModuleLoadData"(*mut *mut c_void, *const c_void) -> c_int;
    function = "cuModuleGetFunction"(*mut *mut c_void, *mut c_void, *const c_char) -> c_int;
    set_attribute = "cuFuncSetAttribute"(*mut c_void, c_int, c_int) -> c_int;
    occupancy = "cuOccupancyMaxActiveBlocksPerMultiprocessor"(
        *mut c_int,
        *mut c_void,
        c_int,
        usize,
    ) -> c_int;
    launch = "cuLaunchCooperativeKernel"(
        *mut c_void,
        c_uint,
        c_uint,
        c_uint,
        c_uint,
        c_uint,
        c_uint,
        c_uint,
        *mut c_void,
        *mut *mut c_void,
    ) -> c_int;
}

/// The driver, initialised.
#[derive(Debug)]
pub struct Driver {
    functions: Functions,
    version: Version,
    pub(crate) opened: Opened,
}

/// What a device is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Its place among the devices that this process may use, from 0.
    pub ordinal: u32,
    /// Its name in trade.
    pub name: String,
    /// Its architecture: 9.0 is `sm_90`.
    pub compute_capability: Version,
    /// Its multiprocessors.
    pub multiprocessors: u32,
    /// Its memory, in bytes.
    pub memory_bytes: u64,
    /// The shared memory that a block may ask for, in bytes.
    pub block_shared_bytes: u32,
    /// Whether it can run grids that are wholly resident at once.
    pub cooperative_launch: bool,
    /// Whether the system ends kernels that run for seconds, because a display hangs on the device.
    pub kernel_timeout: bool,
}

// CUdevice_attribute
const ATTRIBUTE_MULTIPROCESSORS: c_int = 16;
const ATTRIBUTE_KERNEL_TIMEOUT: c_int = 17;
const ATTRIBUTE_CAPABILITY_MAJOR: c_int = 75;
const ATTRIBUTE_CAPABILITY_MINOR: c_int = 76;
const ATTRIBUTE_COOPERATIVE_LAUNCH: c_int = 95;
const ATTRIBUTE_BLOCK_SHARED_BYTES: c_int = 97;

// CUfunction_attribute
const FUNCTION_DYNAMIC_SHARED_BYTES: c_int = 8;

impl Driver {
    /// The machine's driver, loaded and initialised at the first call.
    ///
    /// # Errors
    ///
    /// Why there is none; asked again, the answer is the same.
    pub fn get() -> Result<&'static Self, &'static Absent> {
        static DRIVER_ONCE: OnceLock<Result<Driver, Absent>> = OnceLock::new();
        DRIVER_ONCE
            .get_or_init(|| {
                // SAFETY: the library that the system's loader knows under the driver's name.
                unsafe { Self::open(Path::new(DRIVER.file)) }
            })
            .as_ref()
    }

    /// Loads and initialises the driver at `path`.
    ///
    /// # Errors
    ///
    /// Why it cannot be used.
    ///
    /// # Safety
    ///
    /// - The library at `path` is a CUDA driver, or stands in for one: its functions have the types
    ///   that NVIDIA documents.
    pub unsafe fn open(path: &Path) -> Result<Self, Absent> {
        // SAFETY: as the caller promises.
        let opened = unsafe { Opened::open(&DRIVER, path) }?;
        // SAFETY: as the caller promises.
        let functions = unsafe { Functions::load(&opened) }?;
        let mut number = 0;
        // SAFETY: `number` outlives the call. The one call that is allowed before `cuInit`.
        let code = unsafe { (functions.version)(&mut number) };
        let driver = Self { functions, version: version_of(number), opened };
        let refused = |error| driver.opened.refused(error);
        driver.check("cuDriverGetVersion", code).map_err(refused)?;
        driver.opened.check(driver.version)?;
        // SAFETY: takes flags, of which there are none.
        let code = unsafe { (functions.init)(0) };
        driver.check("cuInit", code).map_err(refused)?;
        Ok(driver)
    }

    /// The newest version of CUDA that this driver supports.
    pub fn version(&self) -> Version {
        self.version
    }

    /// Where it was loaded from: a path, or the bare name that the system's loader resolved.
    pub fn path(&self) -> &Path {
        &self.opened.path
    }

    /// The devices that this process may use.
    ///
    /// # Errors
    ///
    /// What the driver said.
    pub fn devices(&self) -> Result<Vec<Device>, CallError> {
        let mut count = 0;
        // SAFETY: `count` outlives the call.
        let code = unsafe { (self.functions.device_count)(&mut count) };
        self.check("cuDeviceGetCount", code)?;
        (0..count).map(|ordinal| self.device(ordinal)).collect()
    }

    pub(crate) fn device(&self, ordinal: c_int) -> Result<Device, CallError> {
        let mut device = 0;
        // SAFETY: `device` outlives the call.
        let code = unsafe { (self.functions.device)(&mut device, ordinal) };
        self.check("cuDeviceGet", code)?;
        let mut name = [0_u8; 256];
        // SAFETY: the driver writes at most as many bytes as there are, the last of them zero.
        let code = unsafe { (self.functions.device_name)(name.as_mut_ptr().cast(), 256, device) };
        self.check("cuDeviceGetName", code)?;
        let mut memory_bytes = 0;
        // SAFETY: `memory_bytes` outlives the call.
        let code = unsafe { (self.functions.device_memory)(&mut memory_bytes, device) };
        self.check("cuDeviceTotalMem", code)?;
        let attribute = |attribute| self.attribute(attribute, device);
        let length = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
        Ok(Device {
            ordinal: ordinal.unsigned_abs(),
            name: String::from_utf8_lossy(&name[..length]).into_owned(),
            compute_capability: Version::new(
                attribute(ATTRIBUTE_CAPABILITY_MAJOR)?,
                attribute(ATTRIBUTE_CAPABILITY_MINOR)?,
            ),
            multiprocessors: attribute(ATTRIBUTE_MULTIPROCESSORS)?,
            memory_bytes: memory_bytes as u64,
            block_shared_bytes: attribute(ATTRIBUTE_BLOCK_SHARED_BYTES)?,
            cooperative_launch: attribute(ATTRIBUTE_COOPERATIVE_LAUNCH)? != 0,
            kernel_timeout: attribute(ATTRIBUTE_KERNEL_TIMEOUT)? != 0,
        })
    }

    pub(crate) fn attribute(&self, attribute: c_int, device: c_int) -> Result<u32, CallError> {
        let mut value = 0;
        // SAFETY: `value` outlives the call; a number that is no attribute is an error.
        let code = unsafe { (self.functions.device_attribute)(&mut value, attribute, device) };
        self.check("cuDeviceGetAttribute", code)?;
        Ok(value.unsigned_abs())
    }

    /// The primary context of a device, retained for good: all libraries of the process use it.
    pub(crate) fn primary_context(&self, ordinal: c_int) -> Result<*mut c_void, CallError> {
        let (mut device, mut context) = (0, ptr::null_mut());
        // SAFETY: `device` outlives the call.
        let code = unsafe { (self.functions.device)(&mut device, ordinal) };
        self.check("cuDeviceGet", code)?;
        // SAFETY: `context` outlives the call.
        let code = unsafe { (self.functions.context)(&mut context, device) };
        self.check("cuDevicePrimaryCtxRetain", code)?;
        Ok(context)
    }

    /// Makes an error of what `call` returned, unless it is success.
    pub(crate) fn check(&self, call: &'static str, code: c_int) -> Result<(), CallError> {
        if code == 0 {
            return Ok(());
        }
        let (mut name, mut text) = (ptr::null(), ptr::null());
        // SAFETY: `name` outlives the call, which leaves it null for an unknown code.
        unsafe { (self.functions.error_name)(code, &mut name) };
        // SAFETY: as above.
        unsafe { (self.functions.error_string)(code, &mut text) };
        // SAFETY: null, or a text that lies in the library for good.
        let name = unsafe { text_at(name) };
        // SAFETY: as above.
        let text = unsafe { text_at(text) };
        Err(CallError { call, code, text: format!("{name} ({text})") })
    }
}

/// `CU_MEMHOSTALLOC_PORTABLE | CU_MEMHOSTALLOC_DEVICEMAP`; not write-combined, which the host would
/// read at the pace of the bus, and whose partial flushes would tear chunks.
const HOST_ALLOC_MAPPED: c_uint = 1 | 2;

/// `CU_MEMHOSTREGISTER_PORTABLE | CU_MEMHOSTREGISTER_DEVICEMAP`.
#[cfg(target_os = "linux")]
const HOST_REGISTER_MAPPED: c_uint = 1 | 2;

/// `CU_STREAM_NON_BLOCKING`: what it does waits for no other stream, nor makes one wait.
const STREAM_NON_BLOCKING: c_uint = 1;

/// `CUDA_ERROR_NOT_READY`.
const NOT_READY: c_int = 600;

/// The calls of one thread that uses the device's primary context, which is the one that every other
/// library of the process uses too. It, and what is taken through it, lives as long as the process:
/// to free it would wait for whatever is resident.
#[derive(Debug)]
pub(crate) struct Session {
    driver: &'static Driver,
}

/// A queue of work on the device.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stream(*mut c_void);

impl Stream {
    /// A stream of a green context.
    pub(crate) fn of_green(handle: *mut c_void) -> Self {
        Self(handle)
    }
}

/// A kernel of a loaded image.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kernel(*mut c_void);

impl Session {
    /// Makes the device's primary context the one of the calling thread, on which the session stays.
    pub(crate) fn begin(driver: &'static Driver, ordinal: c_int) -> Result<Self, CallError> {
        let mut context = ptr::null_mut();
        // SAFETY: `context` outlives the call.
        let code = unsafe { (driver.functions.context)(&mut context, ordinal) };
        driver.check("cuDevicePrimaryCtxRetain", code)?;
        // SAFETY: a context that was just retained, and never is released.
        let code = unsafe { (driver.functions.set_current)(context) };
        driver.check("cuCtxSetCurrent", code)?;
        Ok(Self { driver })
    }

    /// Zeroed memory of the host's that the device reaches: where, for either.
    pub(crate) fn host_memory(&self, bytes: usize) -> Result<(NonNull<u8>, u64), CallError> {
        let functions = self.driver.functions;
        let mut place = ptr::null_mut();
        // SAFETY: `place` outlives the call.
        let code = unsafe { (functions.host_alloc)(&mut place, bytes, HOST_ALLOC_MAPPED) };
        self.driver.check("cuMemHostAlloc", code)?;
        let mut address = 0;
        // SAFETY: memory that was just taken as mapped.
        let code = unsafe { (functions.host_address)(&mut address, place, 0) };
        self.driver.check("cuMemHostGetDevicePointer", code)?;
        let Some(place) = NonNull::new(place.cast::<u8>()) else {
            let text = "no memory came back".to_owned();
            return Err(CallError { call: "cuMemHostAlloc", code: 0, text });
        };
        // SAFETY: `bytes` bytes that were just taken.
        unsafe { place.write_bytes(0, bytes) };
        Ok((place, address))
    }

    /// Memory of the process's own that the device is to reach from now on: where it finds it.
    ///
    /// # Safety
    ///
    /// - The memory is mapped as long as the process lives.
    #[cfg(target_os = "linux")]
    pub(crate) unsafe fn register(
        &self,
        place: NonNull<u8>,
        bytes: usize,
    ) -> Result<u64, CallError> {
        let functions = self.driver.functions;
        let place = place.as_ptr().cast();
        // SAFETY: as the caller promises; it is pinned, and never given up again.
        let code = unsafe { (functions.host_register)(place, bytes, HOST_REGISTER_MAPPED) };
        self.driver.check("cuMemHostRegister", code)?;
        let mut address = 0;
        // SAFETY: memory that was just registered as mapped.
        let code = unsafe { (functions.host_address)(&mut address, place, 0) };
        self.driver.check("cuMemHostGetDevicePointer", code).map(|()| address)
    }

    /// Memory of the device's.
    pub(crate) fn device_memory(&self, bytes: usize) -> Result<u64, CallError> {
        let mut address = 0;
        // SAFETY: `address` outlives the call.
        let code = unsafe { (self.driver.functions.alloc)(&mut address, bytes) };
        self.driver.check("cuMemAlloc", code)?;
        Ok(address)
    }

    pub(crate) fn stream(&self) -> Result<Stream, CallError> {
        let mut stream = ptr::null_mut();
        // SAFETY: `stream` outlives the call.
        let code = unsafe { (self.driver.functions.stream)(&mut stream, STREAM_NON_BLOCKING) };
        self.driver.check("cuStreamCreate", code)?;
        Ok(Stream(stream))
    }

    /// The kernel `name` of `image`.
    pub(crate) fn kernel(&self, image: &[u8], name: &CStr) -> Result<Kernel, CallError> {
        let (mut module, mut function) = (ptr::null_mut(), ptr::null_mut());
        // SAFETY: a cubin says itself how long it is; the driver copies it.
        let code = unsafe { (self.driver.functions.load)(&mut module, image.as_ptr().cast()) };
        self.driver.check("cuModuleLoadData", code)?;
        // SAFETY: a module that was just loaded, and never is unloaded.
        let code =
            unsafe { (self.driver.functions.function)(&mut function, module, name.as_ptr()) };
        self.driver.check("cuModuleGetFunction", code)?;
        Ok(Kernel(function))
    }

    /// Lets blocks of the kernel have so many bytes of shared memory, besides those that its code has.
    pub(crate) fn allow_shared_bytes(&self, kernel: Kernel, bytes: u32) -> Result<(), CallError> {
        let value = bytes.cast_signed();
        // SAFETY: a live kernel.
        let code = unsafe {
            (self.driver.functions.set_attribute)(kernel.0, FUNCTION_DYNAMIC_SHARED_BYTES, value)
        };
        self.driver.check("cuFuncSetAttribute", code)
    }

    /// How many blocks of the kernel, of so many threads with so much shared memory, fit on one
    /// multiprocessor.
    pub(crate) fn occupancy(
        &self,
        kernel: Kernel,
        threads: u32,
        shared_bytes: u32,
    ) -> Result<u32, CallError> {
        let mut blocks = 0;
        let (threads, shared_bytes) = (threads.cast_signed(), shared_bytes as usize);
        // SAFETY: a live kernel; `blocks` outlives the call.
        let code = unsafe {
            (self.driver.functions.occupancy)(&mut blocks, kernel.0, threads, shared_bytes)
        };
        self.driver.check("cuOccupancyMaxActiveBlocksPerMultiprocessor", code)?;
        Ok(blocks.unsigned_abs())
    }

    /// Copies `bytes` to the device's memory at `address`, and waits for it.
    ///
    /// # Safety
    ///
    /// - The device's memory there is as long, and nobody uses it.
    pub(crate) unsafe fn write(
        &self,
        stream: Stream,
        address: u64,
        bytes: &[u8],
    ) -> Result<(), CallError> {
        let functions = self.driver.functions;
        let from = bytes.as_ptr().cast();
        // SAFETY: as the caller promises; the bytes outlive the wait below.
        let code = unsafe { (functions.copy_in)(address, from, bytes.len(), stream.0) };
        self.driver.check("cuMemcpyHtoDAsync", code)?;
        // SAFETY: a live stream.
        let code = unsafe { (functions.synchronize)(stream.0) };
        self.driver.check("cuStreamSynchronize", code)
    }

    /// Copies `bytes` bytes of the device's memory at `address`, and waits for it.
    ///
    /// # Safety
    ///
    /// - The device's memory there is as long, and nobody writes to it.
    pub(crate) unsafe fn read(
        &self,
        stream: Stream,
        address: u64,
        bytes: usize,
    ) -> Result<Vec<u8>, CallError> {
        let functions = self.driver.functions;
        let mut copied = vec![0_u8; bytes];
        let to = copied.as_mut_ptr().cast();
        // SAFETY: as the caller promises; the copy outlives the wait below.
        let code = unsafe { (functions.copy_out)(to, address, bytes, stream.0) };
        self.driver.check("cuMemcpyDtoHAsync", code)?;
        // SAFETY: a live stream.
        let code = unsafe { (functions.synchronize)(stream.0) };
        self.driver.check("cuStreamSynchronize", code).map(|()| copied)
    }

    /// Zeroes `bytes` bytes at `address` once all is done that the stream has before it.
    ///
    /// # Safety
    ///
    /// - The device's memory there is as long, and nobody else uses it when that is done.
    pub(crate) unsafe fn zero(
        &self,
        stream: Stream,
        address: u64,
        bytes: usize,
    ) -> Result<(), CallError> {
        // SAFETY: as the caller promises.
        let code = unsafe { (self.driver.functions.set_zero)(address, 0, bytes, stream.0) };
        self.driver.check("cuMemsetD8Async", code)
    }

    /// Launches a grid of this extent, all of it resident at once, after what the stream has before it.
    ///
    /// # Safety
    ///
    /// - The kernel takes one parameter of type `P`, and what that leads to stays until it ends.
    pub(crate) unsafe fn launch<P>(
        &self,
        kernel: Kernel,
        Extent { blocks, threads, shared_bytes }: Extent,
        stream: Stream,
        parameter: &P,
    ) -> Result<(), CallError> {
        let mut parameters = [ptr::from_ref(parameter).cast_mut().cast::<c_void>()];
        // SAFETY: as the caller promises; the driver copies the parameter.
        let code = unsafe {
            (self.driver.functions.launch)(
                kernel.0,
                blocks,
                1,
                1,
                threads,
                1,
                1,
                shared_bytes,
                stream.0,
                parameters.as_mut_ptr(),
            )
        };
        self.driver.check("cuLaunchCooperativeKernel", code)
    }

    /// Waits for all that the stream was given.
    pub(crate) fn finish(&self, stream: Stream) -> Result<(), CallError> {
        // SAFETY: a live stream.
        let code = unsafe { (self.driver.functions.synchronize)(stream.0) };
        self.driver.check("cuStreamSynchronize", code)
    }

    /// Whether all is done that the stream was given.
    pub(crate) fn is_idle(&self, stream: Stream) -> Result<bool, CallError> {
        // SAFETY: a live stream.
        match unsafe { (self.driver.functions.query)(stream.0) } {
            NOT_READY => Ok(false),
            code => self.driver.check("cuStreamQuery", code).map(|()| true),
        }
    }
}

/// The calls that are made for grids, by their names.
#[cfg(target_os = "linux")]
const CALLS: &[&str] = &[
    "cuCtxSetCurrent",
    "cuDeviceGet",
    "cuDeviceGetAttribute",
    "cuDeviceGetName",
    "cuDevicePrimaryCtxRetain",
    "cuDeviceTotalMem",
    "cuFuncSetAttribute",
    "cuLaunchCooperativeKernel",
    "cuMemAlloc",
    "cuMemHostGetDevicePointer",
    "cuMemHostRegister",
    "cuMemcpyDtoHAsync",
    "cuMemcpyHtoDAsync",
    "cuMemsetD8Async",
    "cuModuleGetFunction",
    "cuModuleLoadData",
    "cuOccupancyMaxActiveBlocksPerMultiprocessor",
    "cuStreamCreate",
    "cuStreamQuery",
    "cuStreamSynchronize",
];

/// The name of a call, of which another process told.
#[cfg(target_os = "linux")]
pub(crate) fn call_name(name: &str) -> &'static str {
    CALLS.iter().find(|known| **known == name).copied().unwrap_or("a call of the driver's")
}

/// CUDA writes 13.0 as 13000.
fn version_of(number: c_int) -> Version {
    let number = number.unsigned_abs();
    Version::new(number / 1000, number % 1000 / 10)
}
