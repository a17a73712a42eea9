//! `pydotcompute._native`: newtypes around dotcompute, and the asyncio executor.

mod asyncio;
mod attached;
mod buffer;
#[cfg(feature = "conformance")]
mod conformance;
mod cuda;
mod fastcall;
mod message;
mod once;
mod queues;
mod quick;
mod records;
mod workloads;

// Types made by hand rely on the interpreter's lock, which a free-threaded one is to keep for them.
#[pyo3::pymodule(gil_used = true)]
mod _native {
    use pyo3::prelude::*;

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        super::asyncio::register(module)?;
        super::buffer::register(module)?;
        #[cfg(feature = "conformance")]
        super::conformance::register(module)?;
        super::cuda::register(module)?;
        super::message::register(module)?;
        super::queues::register(module)?;
        super::records::register(module)?;
        super::workloads::register(module)
    }
}
