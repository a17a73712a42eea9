//! CUDA devices for Python, launch by launch: `dotcompute_cuda::compute` under the interpreter's
//! lock, which no call that may wait holds.
//!
//! Addresses and streams are those of the device's primary context, the one that CuPy, PyTorch and
//! numba use, so that arrays pass between them by address.

mod code;
mod device;
mod dlpack;
mod memory;
mod monitor;

use dotcompute_cuda::compute::ComputeError;
use dotcompute_cuda::{Absent, CallError};
use pyo3::prelude::*;

/// The exception of `pydotcompute.exceptions` with this name.
fn exception(py: Python<'_>, name: &str, text: String) -> PyErr {
    py.import("pydotcompute.exceptions")
        .and_then(|exceptions| exceptions.getattr(name))
        .and_then(|class| class.call1((text,)))
        .map_or_else(|error| error, PyErr::from_value)
}

/// What went wrong on a device, as an exception.
fn failed(py: Python<'_>, error: &ComputeError) -> PyErr {
    let name = match error {
        ComputeError::OutOfMemory { .. } => "CUDAMemoryError",
        _ => "CUDAError",
    };
    exception(py, name, error.to_string())
}

/// What a compiler or a linker says.
fn refused(py: Python<'_>, error: &CallError) -> PyErr {
    exception(py, "CompilationError", error.to_string())
}

/// Why a library is not there, and what to do.
fn missing(absent: &Absent) -> String {
    match absent.advice() {
        Some(advice) => format!("{absent}; {advice}"),
        None => absent.to_string(),
    }
}

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<device::CudaDevice>()?;
    module.add_class::<device::CudaStream>()?;
    module.add_class::<device::CudaEvent>()?;
    module.add_class::<memory::CudaMemory>()?;
    module.add_class::<code::CudaModule>()?;
    module.add_class::<code::CudaFunction>()?;
    module.add_class::<code::CudaToolkit>()?;
    module.add_class::<monitor::CudaMonitor>()?;
    dlpack::make_classes(module.py());
    module.add("CUDA_KERNELS", dotcompute_cuda::compute::KERNELS)?;
    module.add_function(wrap_pyfunction!(device::cuda_devices, module)?)?;
    module.add_function(wrap_pyfunction!(dlpack::export_dlpack, module)?)?;
    module.add_function(wrap_pyfunction!(dlpack::import_dlpack, module)?)
}
