//! Telemetry of the devices: NVML, which comes with the driver.

use std::ffi::{c_char, c_int, c_uint, c_void};
use std::path::Path;
use std::ptr;

use crate::library::{Absent, CallError, Library, Opened, functions, text_at};

pub(crate) const NVML: Library = Library {
    name: "NVML",
    file: "libnvidia-ml.so.1",
    oldest: None,
    advice: "it comes with the NVIDIA driver; in a container, run it with --gpus all and the \
             capability \"utility\"",
};

/// `nvmlUtilization_t`.
#[derive(Default)]
#[repr(C)]
struct Utilization {
    gpu: c_uint,
    memory: c_uint,
}

/// `nvmlMemory_t`.
#[derive(Default)]
#[repr(C)]
struct Memory {
    total: u64,
    free: u64,
    used: u64,
}

/// `NVML_TEMPERATURE_GPU`.
const TEMPERATURE_GPU: c_uint = 0;

/// The longest name and the longest UUID, with their zero bytes.
const TEXT_BYTES: usize = 96;

/// `NVML_ERROR_NOT_SUPPORTED`.
const NOT_SUPPORTED: c_int = 3;

functions! {
    Functions;
    init = "nvmlInit_v2"() -> c_int;
    error_string = "nvmlErrorString"(c_int) -> *const c_char;
    driver_version = "nvmlSystemGetDriverVersion"(*mut c_char, c_uint) -> c_int;
    device_count = "nvmlDeviceGetCount_v2"(*mut c_uint) -> c_int;
    device = "nvmlDeviceGetHandleByIndex_v2"(c_uint, *mut *mut c_void) -> c_int;
    utilization = "nvmlDeviceGetUtilizationRates"(*mut c_void, *mut Utilization) -> c_int;
    memory = "nvmlDeviceGetMemoryInfo"(*mut c_void, *mut Memory) -> c_int;
    name = "nvmlDeviceGetName"(*mut c_void, *mut c_char, c_uint) -> c_int;
    uuid = "nvmlDeviceGetUUID"(*mut c_void, *mut c_char, c_uint) -> c_int;
    power_limit = "nvmlDeviceGetEnforcedPowerLimit"(*mut c_void, *mut c_uint) -> c_int;
    temperature = "nvmlDeviceGetTemperature"(*mut c_void, c_uint, *mut c_uint) -> c_int;
    power = "nvmlDeviceGetPowerUsage"(*mut c_void, *mut c_uint) -> c_int;
}

/// NVML, initialised.
#[derive(Debug)]
pub struct Nvml {
    functions: Functions,
    opened: Opened,
    driver_version: String,
}

/// What NVML says of one device at one moment. What a device does not tell is `None`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reading {
    /// Its name in trade.
    pub name: String,
    /// What tells it from every other device.
    pub uuid: String,
    /// The share of the last sample period in which a kernel ran, in percent. A resident kernel
    /// makes it 100, busy or not.
    pub busy_percent: Option<u32>,
    /// The share of the last sample period in which memory was read or written, in percent.
    pub memory_busy_percent: Option<u32>,
    /// All memory, in bytes.
    pub memory_total_bytes: u64,
    /// Memory that nobody uses, in bytes.
    pub memory_free_bytes: u64,
    /// Memory in use by all processes, in bytes.
    pub memory_used_bytes: u64,
    /// Temperature in degrees Celsius.
    pub temperature_celsius: Option<u32>,
    /// Power in milliwatts.
    pub power_milliwatts: Option<u32>,
    /// The power that it is held to, in milliwatts.
    pub power_limit_milliwatts: Option<u32>,
}

impl Nvml {
    /// The machine's NVML.
    ///
    /// # Errors
    ///
    /// Why there is none.
    pub fn load() -> Result<Self, Absent> {
        // SAFETY: the library that the system's loader knows under NVML's name.
        unsafe { Self::open(Path::new(NVML.file)) }
    }

    /// Loads and initialises the library at `path`.
    ///
    /// # Errors
    ///
    /// Why it cannot be used.
    ///
    /// # Safety
    ///
    /// - The library at `path` is NVML, or stands in for it.
    pub unsafe fn open(path: &Path) -> Result<Self, Absent> {
        // SAFETY: as the caller promises.
        let opened = unsafe { Opened::open(&NVML, path) }?;
        // SAFETY: as the caller promises.
        let functions = unsafe { Functions::load(&opened) }?;
        let mut nvml = Self { functions, opened, driver_version: String::new() };
        // SAFETY: takes nothing.
        let code = unsafe { (functions.init)() };
        nvml.check("nvmlInit", code).map_err(|error| nvml.opened.refused(error))?;
        let mut text = [0_u8; 128];
        // SAFETY: NVML writes at most as many bytes as there are, the last of them zero.
        let code = unsafe { (functions.driver_version)(text.as_mut_ptr().cast(), 128) };
        nvml.check("nvmlSystemGetDriverVersion", code)
            .map_err(|error| nvml.opened.refused(error))?;
        let length = text.iter().position(|byte| *byte == 0).unwrap_or(text.len());
        nvml.driver_version = String::from_utf8_lossy(&text[..length]).into_owned();
        Ok(nvml)
    }

    /// The version of the driver as NVIDIA's packages count: "580.95.05", say.
    pub fn driver_version(&self) -> &str {
        &self.driver_version
    }

    /// Where it was loaded from.
    pub fn path(&self) -> &Path {
        &self.opened.path
    }

    /// A reading of every device of the machine, also of those that this process may not use.
    ///
    /// # Errors
    ///
    /// What NVML said.
    pub fn readings(&self) -> Result<Vec<Reading>, CallError> {
        (0..self.device_count()?).map(|ordinal| self.reading(ordinal)).collect()
    }

    /// How many devices the machine has, also those that this process may not use.
    ///
    /// # Errors
    ///
    /// What NVML said.
    pub fn device_count(&self) -> Result<u32, CallError> {
        let mut count = 0;
        // SAFETY: `count` outlives the call.
        let code = unsafe { (self.functions.device_count)(&mut count) };
        self.check("nvmlDeviceGetCount", code)?;
        Ok(count)
    }

    /// A reading of one device.
    ///
    /// # Errors
    ///
    /// There is no such device, or what NVML said.
    pub fn reading(&self, ordinal: u32) -> Result<Reading, CallError> {
        let functions = self.functions;
        let mut device = ptr::null_mut();
        // SAFETY: `device` outlives the call.
        let code = unsafe { (functions.device)(ordinal, &mut device) };
        self.check("nvmlDeviceGetHandleByIndex", code)?;
        let mut memory = Memory::default();
        // SAFETY: NVML's own handle; `memory` outlives the call.
        let code = unsafe { (functions.memory)(device, &mut memory) };
        self.check("nvmlDeviceGetMemoryInfo", code)?;
        let mut utilization = Utilization::default();
        // SAFETY: as above.
        let code = unsafe { (functions.utilization)(device, &mut utilization) };
        let busy_percent = self.told("nvmlDeviceGetUtilizationRates", code)?;
        let mut temperature_celsius = 0;
        // SAFETY: as above.
        let code =
            unsafe { (functions.temperature)(device, TEMPERATURE_GPU, &mut temperature_celsius) };
        let has_temperature = self.told("nvmlDeviceGetTemperature", code)?;
        let mut power_milliwatts = 0;
        // SAFETY: as above.
        let code = unsafe { (functions.power)(device, &mut power_milliwatts) };
        let has_power = self.told("nvmlDeviceGetPowerUsage", code)?;
        let mut limit_milliwatts = 0;
        // SAFETY: as above.
        let code = unsafe { (functions.power_limit)(device, &mut limit_milliwatts) };
        let has_limit = self.told("nvmlDeviceGetEnforcedPowerLimit", code)?;
        Ok(Reading {
            name: self.text("nvmlDeviceGetName", device, functions.name)?,
            uuid: self.text("nvmlDeviceGetUUID", device, functions.uuid)?,
            busy_percent: busy_percent.then_some(utilization.gpu),
            memory_busy_percent: busy_percent.then_some(utilization.memory),
            memory_total_bytes: memory.total,
            memory_free_bytes: memory.free,
            memory_used_bytes: memory.used,
            power_limit_milliwatts: has_limit.then_some(limit_milliwatts),
            temperature_celsius: has_temperature.then_some(temperature_celsius),
            power_milliwatts: has_power.then_some(power_milliwatts),
        })
    }

    fn text(
        &self,
        call: &'static str,
        device: *mut c_void,
        get: unsafe extern "C" fn(*mut c_void, *mut c_char, c_uint) -> c_int,
    ) -> Result<String, CallError> {
        let mut text = [0_u8; TEXT_BYTES];
        // SAFETY: NVML's own handle; it writes at most as many bytes as there are, the last of them
        // zero.
        let code = unsafe { get(device, text.as_mut_ptr().cast(), TEXT_BYTES as c_uint) };
        self.check(call, code)?;
        let length = text.iter().position(|byte| *byte == 0).unwrap_or(text.len());
        Ok(String::from_utf8_lossy(&text[..length]).into_owned())
    }

    /// Whether the device tells this at all.
    fn told(&self, call: &'static str, code: c_int) -> Result<bool, CallError> {
        match code {
            NOT_SUPPORTED => Ok(false),
            code => self.check(call, code).map(|()| true),
        }
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
