//! asyncio: actors as stock Tasks, on awaitables and a ready list of our own.
//!
//! The life of a kernel - states, supervision, asks, dead letters, telemetry - is the core's; what
//! is here drives it on an event loop ([`hub`]), starts an actor's function as its body
//! ([`executor`]), and turns what it awaits into what the core does ([`awaitable`],
//! [`operation`]).

mod actor;
mod attached;
mod awaitable;
mod context;
mod cuda;
mod errors;
mod executor;
mod held;
mod hub;
mod message;
mod object;
mod operation;
mod pool;
#[cfg(target_os = "linux")]
mod process;
mod python;
mod runtime;
mod scope;
mod waiter;

use pyo3::prelude::*;

pub(crate) use errors::PyFault;
#[cfg(feature = "conformance")]
pub(crate) use executor::AsyncioExecutor;
pub(crate) use held::Held;
pub(crate) use message::PyMessage;
pub(crate) use scope::{discard, scope};

use crate::queues::QueueOperation;

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<actor::Actor>()?;
    module.add_class::<context::ActorContext>()?;
    module.add_class::<context::ContextHandle>()?;
    module.add_class::<runtime::NativeRuntime>()?;
    module.add_class::<pool::NativePool>()?;
    module.add("Awaitable", object::type_of::<awaitable::Awaitable>(module.py())?)?;
    module.add_function(wrap_pyfunction!(hub::_close_all, module)?)?;
    module.add_function(wrap_pyfunction!(executor::_join_threads, module)?)?;
    module.add_function(wrap_pyfunction!(hub::_after_fork, module)?)?;
    cuda::register(module)?;
    #[cfg(target_os = "linux")]
    process::register(module)?;
    Ok(())
}

/// The awaitable of a queue's `put` or `get`.
#[inline]
pub(crate) fn queue_awaitable(py: Python<'_>, operation: QueueOperation) -> PyResult<Py<PyAny>> {
    awaitable::new(py, operation::Operation::Queue(operation))
}
