//! NVML's readings.

use dotcompute_cuda::nvml::Nvml;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::{exception, missing};

/// NVIDIA's management library.
#[pyclass(frozen, module = "pydotcompute._native")]
pub(crate) struct CudaMonitor {
    nvml: Nvml,
}

#[pymethods]
impl CudaMonitor {
    #[new]
    fn new(py: Python<'_>) -> PyResult<Self> {
        let nvml = py.detach(Nvml::load);
        nvml.map(|nvml| Self { nvml })
            .map_err(|absent| exception(py, "CUDAError", missing(&absent)))
    }

    /// How many devices the machine has.
    fn device_count(&self, py: Python<'_>) -> PyResult<u32> {
        let count = py.detach(|| self.nvml.device_count());
        count.map_err(|error| exception(py, "CUDAError", error.to_string()))
    }

    /// What it says of one device; None for what the device does not tell.
    fn reading<'py>(&self, py: Python<'py>, index: u32) -> PyResult<Bound<'py, PyDict>> {
        let reading = py.detach(|| self.nvml.reading(index));
        let reading = reading.map_err(|error| exception(py, "CUDAError", error.to_string()))?;
        let told = PyDict::new(py);
        told.set_item("name", reading.name)?;
        told.set_item("uuid", reading.uuid)?;
        told.set_item("memory_total_bytes", reading.memory_total_bytes)?;
        told.set_item("memory_used_bytes", reading.memory_used_bytes)?;
        told.set_item("memory_free_bytes", reading.memory_free_bytes)?;
        told.set_item("busy_percent", reading.busy_percent)?;
        told.set_item("memory_busy_percent", reading.memory_busy_percent)?;
        told.set_item("temperature_celsius", reading.temperature_celsius)?;
        told.set_item("power_milliwatts", reading.power_milliwatts)?;
        told.set_item("power_limit_milliwatts", reading.power_limit_milliwatts)?;
        Ok(told)
    }
}
