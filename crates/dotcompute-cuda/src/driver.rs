//! The driver: `libcuda`, which comes with NVIDIA's kernel module and not with the toolkit.

use std::ffi::{c_char, c_int, c_uint};
use std::path::Path;
use std::ptr;
use std::sync::OnceLock;

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
}

/// The driver, initialised.
#[derive(Debug)]
pub struct Driver {
    functions: Functions,
    version: Version,
    opened: Opened,
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

    fn device(&self, ordinal: c_int) -> Result<Device, CallError> {
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
            cooperative_launch: attribute(ATTRIBUTE_COOPERATIVE_LAUNCH)? != 0,
            kernel_timeout: attribute(ATTRIBUTE_KERNEL_TIMEOUT)? != 0,
        })
    }

    fn attribute(&self, attribute: c_int, device: c_int) -> Result<u32, CallError> {
        let mut value = 0;
        // SAFETY: `value` outlives the call; a number that is no attribute is an error.
        let code = unsafe { (self.functions.device_attribute)(&mut value, attribute, device) };
        self.check("cuDeviceGetAttribute", code)?;
        Ok(value.unsigned_abs())
    }

    /// Makes an error of what `call` returned, unless it is success.
    fn check(&self, call: &'static str, code: c_int) -> Result<(), CallError> {
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

/// CUDA writes 13.0 as 13000.
fn version_of(number: c_int) -> Version {
    let number = number.unsigned_abs();
    Version::new(number / 1000, number % 1000 / 10)
}
