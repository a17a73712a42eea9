//! What crosses the bus, as NVML counts it.

use std::ffi::{c_int, c_uint, c_void};
use std::time::{Duration, Instant};

type OfDevice = unsafe extern "C" fn(*mut c_void, *mut c_uint) -> c_int;
type Throughput = unsafe extern "C" fn(*mut c_void, c_uint, *mut c_uint) -> c_int;

/// `NVML_PCIE_UTIL_RX_BYTES`: what the device receives, and so what its reads bring.
const RECEIVED: c_uint = 1;

/// Bytes a second for each lane, by the generation of the link, from the first.
const LANE_BYTES_PER_S: [f64; 6] = [0.25e9, 0.5e9, 0.985e9, 1.969e9, 3.938e9, 7.563e9];

/// The first device's link to the host.
pub(crate) struct Link {
    device: *mut c_void,
    throughput: Throughput,
    /// What it carries each way, in bytes a second.
    pub(crate) capacity: f64,
    _library: libloading::Library,
}

fn succeeds(call: &str, code: c_int) -> Result<(), String> {
    if code == 0 { Ok(()) } else { Err(format!("{call} returned {code}")) }
}

impl Link {
    /// The link, or why nothing is known of it.
    pub(crate) fn open() -> Result<Self, String> {
        type Init = unsafe extern "C" fn() -> c_int;
        type ByIndex = unsafe extern "C" fn(c_uint, *mut *mut c_void) -> c_int;
        // SAFETY: NVML, by the name that NVIDIA gives it.
        let library = unsafe { libloading::Library::new("libnvidia-ml.so.1") }
            .map_err(|error| format!("no NVML: {error}"))?;
        let lacks = |error: libloading::Error| format!("NVML lacks a function: {error}");
        // SAFETY: the types that NVIDIA documents, here and below.
        let init: Init = *unsafe { library.get(b"nvmlInit_v2") }.map_err(lacks)?;
        // SAFETY: as above.
        let by_index: ByIndex =
            *unsafe { library.get(b"nvmlDeviceGetHandleByIndex_v2") }.map_err(lacks)?;
        // SAFETY: as above.
        let generation: OfDevice =
            *unsafe { library.get(b"nvmlDeviceGetCurrPcieLinkGeneration") }.map_err(lacks)?;
        // SAFETY: as above.
        let width: OfDevice =
            *unsafe { library.get(b"nvmlDeviceGetCurrPcieLinkWidth") }.map_err(lacks)?;
        // SAFETY: as above.
        let throughput: Throughput =
            *unsafe { library.get(b"nvmlDeviceGetPcieThroughput") }.map_err(lacks)?;
        // SAFETY: takes nothing.
        succeeds("nvmlInit", unsafe { init() })?;
        let (mut device, mut numbers) = (std::ptr::null_mut(), [0; 2]);
        // SAFETY: `device` outlives the call.
        succeeds("nvmlDeviceGetHandleByIndex", unsafe { by_index(0, &mut device) })?;
        // SAFETY: a device of NVML's; the number outlives the call.
        let code = unsafe { generation(device, &mut numbers[0]) };
        succeeds("nvmlDeviceGetCurrPcieLinkGeneration", code)?;
        // SAFETY: as above.
        succeeds("nvmlDeviceGetCurrPcieLinkWidth", unsafe { width(device, &mut numbers[1]) })?;
        let lane = (numbers[0] as usize).checked_sub(1).and_then(|it| LANE_BYTES_PER_S.get(it));
        let lane = lane.ok_or(format!("no known generation of PCIe: {}", numbers[0]))?;
        let capacity = lane * f64::from(numbers[1]);
        Ok(Self { device, throughput, capacity, _library: library })
    }

    /// What the device receives for so long, as a share of what the link carries, in percent.
    pub(crate) fn received_percent(&self, time: Duration) -> Result<f64, String> {
        let (start, mut readings) = (Instant::now(), Vec::new());
        // Each takes the 20 ms over which NVML counts.
        while start.elapsed() < time {
            let mut kib_per_s = 0;
            // SAFETY: a device of NVML's; the number outlives the call.
            let code = unsafe { (self.throughput)(self.device, RECEIVED, &mut kib_per_s) };
            succeeds("nvmlDeviceGetPcieThroughput", code)?;
            readings.push(f64::from(kib_per_s) * 1024.0);
        }
        let mean = readings.iter().sum::<f64>() / readings.len().max(1) as f64;
        Ok(mean / self.capacity * 100.0)
    }
}
