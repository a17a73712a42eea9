//! `pydotcompute._native`: newtypes around dotcompute, and the asyncio executor.

mod asyncio;
mod buffer;
#[cfg(feature = "conformance")]
mod conformance;
mod message;
mod queues;
mod records;
mod workloads;

#[pyo3::pymodule]
mod _native {
    use pyo3::prelude::*;

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        super::asyncio::register(module)?;
        super::buffer::register(module)?;
        #[cfg(feature = "conformance")]
        super::conformance::register(module)?;
        super::message::register(module)?;
        super::queues::register(module)?;
        super::records::register(module)?;
        super::workloads::register(module)
    }
}
