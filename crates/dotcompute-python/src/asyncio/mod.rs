//! asyncio: actors as stock Tasks, on awaitables and a ready list of our own.
//!
//! The life of a kernel - states, supervision, asks, dead letters, telemetry - is the core's; what
//! is here drives it on an event loop ([`hub`]), starts an actor's function as its body
//! ([`executor`]), and turns what it awaits into what the core does ([`awaitable`],
//! [`operation`]).

mod actor;
mod awaitable;
mod context;
mod cuda;
pub(crate) mod errors;
mod executor;
pub(crate) mod guarded;
mod held;
mod hub;
mod lent;
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
use pyo3::types::PyType;

pub(crate) use errors::PyFault;
#[cfg(feature = "conformance")]
pub(crate) use executor::AsyncioExecutor;
pub(crate) use held::Held;
pub(crate) use lent::DevicePointer;
pub(crate) use message::PyMessage;
pub(crate) use object::guard_light;
pub(crate) use scope::{discard, scope};

use crate::fastcall;
use crate::queues::{self, QueueOperation};
use crate::quick::Quick;

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    let py = module.py();
    module.add_class::<actor::Actor>()?;
    fastcall::add(&py.get_type::<actor::Actor>(), &actor::METHODS)?;
    module.add_class::<context::ActorContext>()?;
    fastcall::add(&py.get_type::<context::ActorContext>(), &context::METHODS)?;
    fastcall::add_getters(&py.get_type::<context::ActorContext>(), &context::GETTERS)?;
    module.add_class::<context::ContextHandle>()?;
    module.add_class::<runtime::NativeRuntime>()?;
    fastcall::add(&py.get_type::<runtime::NativeRuntime>(), &runtime::METHODS)?;
    module.add_class::<pool::NativePool>()?;
    module.add("Awaitable", object::type_of::<awaitable::Awaitable>(module.py())?)?;
    module.add_function(wrap_pyfunction!(_own_methods, module)?)?;
    module.add_function(wrap_pyfunction!(hub::_close_all, module)?)?;
    module.add_function(wrap_pyfunction!(executor::_join_threads, module)?)?;
    module.add_function(wrap_pyfunction!(hub::_before_fork, module)?)?;
    module.add_function(wrap_pyfunction!(hub::_after_fork_in_parent, module)?)?;
    module.add_function(wrap_pyfunction!(hub::_after_fork, module)?)?;
    cuda::register(module)?;
    lent::register(module)?;
    hub::make_classes(module.py());
    executor::make_classes(module.py());
    #[cfg(target_os = "linux")]
    process::register(module)?;
    Ok(())
}

/// The awaitable of a queue's `put` or `get`.
#[inline]
pub(crate) fn queue_awaitable(
    py: Python<'_>,
    operation: impl FnOnce() -> QueueOperation,
) -> Quick<Py<PyAny>> {
    awaitable::new(py, || operation::Operation::Queue(operation()))
}

/// The awaitable of a future.
pub(crate) fn future(
    py: Python<'_>,
    future: impl Future<Output = PyResult<Py<PyAny>>> + Send + 'static,
) -> PyResult<Py<PyAny>> {
    Ok(awaitable::new(py, || operation::Operation::Future(Box::pin(future)))?)
}

/// Gives a class of Python's half the methods that are called for each message as its own: the
/// interpreter calls a method without a detour only where the object is of the very class that has it.
/// A decorator.
#[pyfunction]
#[pyo3(signature = (class_, /))]
fn _own_methods<'py>(class_: Bound<'py, PyType>) -> PyResult<Bound<'py, PyType>> {
    let class = &class_;
    if class.is_subclass_of::<runtime::NativeRuntime>()? {
        fastcall::add(class, &runtime::METHODS)?;
    }
    if class.is_subclass_of::<actor::Actor>()? {
        fastcall::add(class, &actor::METHODS)?;
    }
    if class.is_subclass_of::<context::ActorContext>()? {
        fastcall::add(class, &context::METHODS)?;
    }
    queues::own_methods(class)?;
    Ok(class_)
}
