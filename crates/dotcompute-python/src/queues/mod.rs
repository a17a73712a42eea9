//! The queues of the package: Python objects in the core's mailboxes.
//!
//! A queue owns the objects in it and shows them to the garbage collector. Nothing of Python runs
//! under a mailbox's lock: objects come out of it before they are released, and whoever waits is
//! woken after it.
//!
//! Two ways to wait: [`blocking`] on a thread, with the GIL released, and [`waiting`] in asyncio,
//! which touches the event loop only if it has to.

mod blocking;
mod fast;
mod levels;
mod line;
mod message_queue;
mod ring;
mod sync;
mod thread_kernel;
mod timeout;
mod waiting;

use std::sync::Arc;

use dotcompute_mailbox::{Backpressure, Band, Mailbox};
use pyo3::exceptions::PyValueError;
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::prelude::*;
use pyo3::types::PyType;

pub(crate) use blocking::is_main_thread;
pub(crate) use thread_kernel::own_methods;
pub(crate) use waiting::QueueOperation;

use crate::fastcall;

/// What a queue holds.
pub(crate) type Item = Py<PyAny>;

/// Messages between two that are stamped with the time: no queue asks for its stamps.
const STAMP_NEVER: u64 = u32::MAX as u64;

/// A mailbox that blocks when it is full; a capacity of 0 means no limit.
fn mailbox(capacity: usize) -> Arc<Mailbox<Item>> {
    let capacity = if capacity == 0 { usize::MAX } else { capacity };
    Mailbox::stamping(capacity, Backpressure::Block, STAMP_NEVER)
}

/// A limit as the user gave it, for a queue of which 0 means no limit.
fn maxsize(value: isize) -> PyResult<usize> {
    usize::try_from(value)
        .map_err(|_| PyValueError::new_err(format!("maxsize must be >= 0, not {value}")))
}

/// A capacity as the user gave it.
fn capacity(value: isize) -> PyResult<usize> {
    match usize::try_from(value) {
        Ok(value) if value > 0 => Ok(value),
        _ => Err(PyValueError::new_err(format!("capacity must be >= 1, not {value}"))),
    }
}

/// [`capacity`], rounded up to a power of two.
fn rounded(value: isize) -> PyResult<usize> {
    let value = capacity(value)?;
    value.checked_next_power_of_two().ok_or_else(|| PyValueError::new_err("capacity is too large"))
}

/// Shows the garbage collector what `mailbox` owns.
fn traverse(mailbox: &Mailbox<Item>, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
    let mut outcome = Ok(());
    mailbox.inspect(|_, item| {
        if outcome.is_ok() {
            outcome = visit.call(item);
        }
    });
    outcome
}

/// Empties `mailbox`; how many objects it held. They are released one by one, without its lock.
fn clear(mailbox: &Mailbox<Item>) -> usize {
    let mut count = 0;
    mailbox.take_all(|item| {
        count += 1;
        drop(item);
    });
    count
}

/// How many messages each band holds now.
fn band_counts(mailbox: &Mailbox<Item>) -> [usize; 4] {
    let mut counts = [0; 4];
    mailbox.inspect(|band, _| {
        if let Some(band) = band {
            counts[band as usize] += 1;
        }
    });
    counts
}

const DEFAULT_PRIORITY: u8 = 128;
/// Where a queue without priorities keeps everything.
const PLAIN: Band = Band::Normal;

/// An exception of the package, by name.
fn package_error<'py>(
    py: Python<'py>,
    name: &str,
    arguments: impl pyo3::call::PyCallArgs<'py>,
) -> PyErr {
    match py.import("pydotcompute.exceptions").and_then(|m| m.getattr(name)?.call1(arguments)) {
        Ok(error) => PyErr::from_value(error),
        Err(error) => error,
    }
}

fn full_error(py: Python<'_>, name: &str, size: usize) -> PyErr {
    package_error(py, "QueueFullError", (name, size, "Queue"))
}

/// A put that found no room in time.
fn stayed_full_error(py: Python<'_>, name: &str, size: usize, timeout: timeout::Timeout) -> PyErr {
    package_error(py, "SendTimeoutError", (name, size, timeout.seconds(), "Queue"))
}

fn timeout_error(py: Python<'_>, name: &str, seconds: Option<f64>, operation: &str) -> PyErr {
    package_error(py, "QueueTimeoutError", (name, seconds, operation))
}

/// The name of an object's class, for its repr.
fn class_name(class: &Bound<'_, PyType>) -> PyResult<String> {
    Ok(class.name()?.to_string())
}

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<sync::ThreadQueue>()?;
    module.add_class::<sync::SyncQueue>()?;
    module.add_class::<sync::SpscQueue>()?;
    module.add_class::<sync::FastSpscQueue>()?;
    module.add_class::<fast::FastMessageQueue>()?;
    module.add_class::<ring::RingBuffer>()?;
    module.add_class::<message_queue::MessageQueue>()?;
    module.add_class::<thread_kernel::Flag>()?;
    module.add_class::<thread_kernel::ThreadContext>()?;
    module.add_class::<thread_kernel::ThreadKernel>()?;
    let py = module.py();
    let context = py.get_type::<thread_kernel::ThreadContext>();
    fastcall::add(&context, &thread_kernel::CONTEXT_METHODS)?;
    fastcall::add_getters(&context, &thread_kernel::CONTEXT_GETTERS)?;
    fastcall::add(&py.get_type::<thread_kernel::ThreadKernel>(), &thread_kernel::KERNEL_METHODS)?;
    fastcall::add(&py.get_type::<sync::FastSpscQueue>(), &sync::FAST_METHODS)?;
    fastcall::add(&py.get_type::<fast::FastMessageQueue>(), &fast::METHODS)?;
    fastcall::add(&py.get_type::<ring::RingBuffer>(), &ring::METHODS)?;
    fastcall::add(&py.get_type::<message_queue::MessageQueue>(), &message_queue::METHODS)
}
