//! The queues for threads: `SyncQueue`, `SPSCQueue` and `FastSPSCQueue`.
//!
//! All take any number of producers and consumers. A thread that waits has released the GIL.

use std::sync::Arc;
use std::time::Duration;

use dotcompute_mailbox::{Close, Mailbox, ReceiveError, SendError, TrySendError};
use pyo3::exceptions::PyRuntimeError;
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::timeout::Timeout;
use super::{
    Item, PLAIN, blocking, capacity, class_name, clear, mailbox, maxsize, rounded,
    stayed_full_error, timeout_error, traverse,
};

fn put_nowait(mailbox: &Mailbox<Item>, item: Item) -> bool {
    match mailbox.try_send(PLAIN, item) {
        Ok(_) => true,
        Err(TrySendError::Full(_) | TrySendError::Closed(_)) => false,
    }
}

/// Puts within `timeout`; false if that could not be.
fn put(
    py: Python<'_>,
    mailbox: &Mailbox<Item>,
    item: Item,
    timeout: Option<Timeout>,
) -> PyResult<bool> {
    Ok(blocking::put(py, mailbox, item, timeout.unwrap_or_default())?.is_ok())
}

/// The next object within `timeout`, or `default`.
fn take(
    py: Python<'_>,
    mailbox: &Mailbox<Item>,
    timeout: Timeout,
    default: Item,
    spin_wait_ns: u64,
) -> PyResult<Item> {
    let spin = Duration::from_nanos(spin_wait_ns);
    Ok(blocking::get(py, mailbox, timeout, spin)?.unwrap_or(default))
}

/// The next object within `timeout`, or `default`.
fn get(
    py: Python<'_>,
    mailbox: &Mailbox<Item>,
    timeout: Option<Timeout>,
    default: Option<Item>,
) -> PyResult<Option<Item>> {
    Ok(blocking::get(py, mailbox, timeout.unwrap_or_default(), Duration::ZERO)?.ok().or(default))
}

/// A queue between threads that raises when something cannot be.
#[pyclass(
    frozen,
    subclass,
    generic,
    weakref,
    module = "pydotcompute.ring_kernels.sync_queue",
    name = "SyncQueue"
)]
pub(super) struct SyncQueue {
    mailbox: Arc<Mailbox<Item>>,
    maxsize: usize,
}

/// The name under which errors speak of a `SyncQueue`.
const SYNC_NAME: &str = "sync_queue";

fn shut_down() -> PyErr {
    PyRuntimeError::new_err("the queue is shut down")
}

#[pymethods]
impl SyncQueue {
    #[new]
    #[pyo3(signature = (maxsize=4096))]
    fn new(maxsize: isize) -> PyResult<Self> {
        let maxsize = self::maxsize(maxsize)?;
        Ok(Self { mailbox: mailbox(maxsize), maxsize })
    }

    #[getter]
    fn maxsize(&self) -> usize {
        self.maxsize
    }

    #[getter]
    fn qsize(&self) -> usize {
        self.mailbox.len()
    }

    #[getter]
    fn empty(&self) -> bool {
        self.mailbox.is_empty()
    }

    #[getter]
    fn full(&self) -> bool {
        self.mailbox.is_full()
    }

    #[getter]
    fn closed(&self) -> bool {
        self.mailbox.is_closed()
    }

    #[pyo3(signature = (item, timeout=None))]
    fn put(&self, py: Python<'_>, item: Item, timeout: Option<Timeout>) -> PyResult<bool> {
        let timeout = timeout.unwrap_or_default();
        match blocking::put(py, &self.mailbox, item, timeout)? {
            Ok(()) => Ok(true),
            Err(SendError::Closed(_)) => Err(shut_down()),
            Err(SendError::Full(_) | SendError::Timeout(_)) => {
                Err(stayed_full_error(py, SYNC_NAME, self.maxsize, timeout))
            }
        }
    }

    #[pyo3(signature = (timeout=None))]
    fn get(&self, py: Python<'_>, timeout: Option<Timeout>) -> PyResult<Item> {
        let timeout = timeout.unwrap_or_default();
        blocking::get(py, &self.mailbox, timeout, Duration::ZERO)?.map_err(|error| match error {
            ReceiveError::Closed => shut_down(),
            ReceiveError::Timeout => timeout_error(py, SYNC_NAME, timeout.seconds(), "get"),
        })
    }

    /// `put` that returns False instead of raising.
    fn _offer(&self, py: Python<'_>, item: Item, timeout: Option<Timeout>) -> PyResult<bool> {
        put(py, &self.mailbox, item, timeout)
    }

    /// `get` that returns `default` instead of raising, and spins at least so long before it sleeps.
    #[pyo3(signature = (timeout, default, spin_wait_ns=0))]
    fn _take(
        &self,
        py: Python<'_>,
        timeout: Option<Timeout>,
        default: Item,
        spin_wait_ns: u64,
    ) -> PyResult<Item> {
        take(py, &self.mailbox, timeout.unwrap_or_default(), default, spin_wait_ns)
    }

    fn put_nowait(&self, item: Item) -> bool {
        put_nowait(&self.mailbox, item)
    }

    fn get_nowait(&self) -> Option<Item> {
        self.mailbox.try_receive().ok()
    }

    fn clear(&self) -> usize {
        clear(&self.mailbox)
    }

    fn shutdown(&self) {
        self.mailbox.close(Close::Drain);
    }

    fn get_stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let books = self.mailbox.books();
        let stats = PyDict::new(py);
        stats.set_item("current_size", books.queued)?;
        stats.set_item("max_size", self.maxsize)?;
        stats.set_item("total_enqueued", books.accepted)?;
        stats.set_item("total_dequeued", books.processed)?;
        Ok(stats)
    }

    fn __len__(&self) -> usize {
        self.mailbox.len()
    }

    fn __repr__(this: &Bound<'_, Self>) -> PyResult<String> {
        let name = class_name(&this.get_type())?;
        Ok(format!("{name}(size={}/{})", this.get().qsize(), this.get().maxsize))
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        traverse(&self.mailbox, visit)
    }

    fn __clear__(&self) {
        clear(&self.mailbox);
    }
}

/// A queue between threads that returns a value when something cannot be.
#[pyclass(
    frozen,
    subclass,
    generic,
    weakref,
    module = "pydotcompute.ring_kernels.sync_queue",
    name = "SPSCQueue"
)]
pub(super) struct SpscQueue {
    mailbox: Arc<Mailbox<Item>>,
}

#[pymethods]
impl SpscQueue {
    #[new]
    #[pyo3(signature = (capacity=4096))]
    fn new(capacity: isize) -> PyResult<Self> {
        Ok(Self { mailbox: mailbox(rounded(capacity)?) })
    }

    #[getter]
    fn capacity(&self) -> usize {
        self.mailbox.capacity()
    }

    #[getter]
    fn size(&self) -> usize {
        self.mailbox.len()
    }

    #[getter]
    fn empty(&self) -> bool {
        self.mailbox.is_empty()
    }

    #[getter]
    fn full(&self) -> bool {
        self.mailbox.is_full()
    }

    #[getter]
    fn closed(&self) -> bool {
        self.mailbox.is_closed()
    }

    #[pyo3(signature = (item, timeout=None))]
    fn put(&self, py: Python<'_>, item: Item, timeout: Option<Timeout>) -> PyResult<bool> {
        put(py, &self.mailbox, item, timeout)
    }

    #[pyo3(signature = (timeout=None, default=None))]
    fn get(
        &self,
        py: Python<'_>,
        timeout: Option<Timeout>,
        default: Option<Item>,
    ) -> PyResult<Option<Item>> {
        get(py, &self.mailbox, timeout, default)
    }

    /// `put` that returns False instead of raising.
    fn _offer(&self, py: Python<'_>, item: Item, timeout: Option<Timeout>) -> PyResult<bool> {
        put(py, &self.mailbox, item, timeout)
    }

    /// `get` that returns `default` instead of raising, and spins at least so long before it sleeps.
    #[pyo3(signature = (timeout, default, spin_wait_ns=0))]
    fn _take(
        &self,
        py: Python<'_>,
        timeout: Option<Timeout>,
        default: Item,
        spin_wait_ns: u64,
    ) -> PyResult<Item> {
        take(py, &self.mailbox, timeout.unwrap_or_default(), default, spin_wait_ns)
    }

    fn put_nowait(&self, item: Item) -> bool {
        put_nowait(&self.mailbox, item)
    }

    #[pyo3(signature = (default=None))]
    fn get_nowait(&self, default: Option<Item>) -> Option<Item> {
        self.mailbox.try_receive().ok().or(default)
    }

    fn clear(&self) -> usize {
        clear(&self.mailbox)
    }

    fn shutdown(&self) {
        self.mailbox.close(Close::Drain);
    }

    fn __len__(&self) -> usize {
        self.mailbox.len()
    }

    fn __repr__(this: &Bound<'_, Self>) -> PyResult<String> {
        let name = class_name(&this.get_type())?;
        Ok(format!("{name}(size={}/{})", this.get().size(), this.get().capacity()))
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        traverse(&self.mailbox, visit)
    }

    fn __clear__(&self) {
        clear(&self.mailbox);
    }
}

/// A queue between threads whose plain `put` and `get` do not wait.
#[pyclass(
    frozen,
    subclass,
    generic,
    weakref,
    module = "pydotcompute.ring_kernels._cython.fast_spsc",
    name = "FastSPSCQueue"
)]
pub(super) struct FastSpscQueue {
    mailbox: Arc<Mailbox<Item>>,
}

#[pymethods]
impl FastSpscQueue {
    #[new]
    #[pyo3(signature = (capacity=4096))]
    fn new(capacity: isize) -> PyResult<Self> {
        Ok(Self { mailbox: mailbox(self::capacity(capacity)?) })
    }

    #[getter]
    fn capacity(&self) -> usize {
        self.mailbox.capacity()
    }

    #[getter]
    fn size(&self) -> usize {
        self.mailbox.len()
    }

    #[getter]
    fn empty(&self) -> bool {
        self.mailbox.is_empty()
    }

    #[getter]
    fn full(&self) -> bool {
        self.mailbox.is_full()
    }

    #[getter]
    fn closed(&self) -> bool {
        self.mailbox.is_closed()
    }

    fn put(&self, item: Item) -> bool {
        put_nowait(&self.mailbox, item)
    }

    fn get(&self) -> Option<Item> {
        self.mailbox.try_receive().ok()
    }

    /// `put` that returns False instead of raising.
    fn _offer(&self, py: Python<'_>, item: Item, timeout: Option<Timeout>) -> PyResult<bool> {
        put(py, &self.mailbox, item, timeout)
    }

    /// `get` that returns `default` instead of raising, and spins at least so long before it sleeps.
    #[pyo3(signature = (timeout, default, spin_wait_ns=0))]
    fn _take(
        &self,
        py: Python<'_>,
        timeout: Option<Timeout>,
        default: Item,
        spin_wait_ns: u64,
    ) -> PyResult<Item> {
        take(py, &self.mailbox, timeout.unwrap_or_default(), default, spin_wait_ns)
    }

    fn put_nowait(&self, item: Item) -> bool {
        put_nowait(&self.mailbox, item)
    }

    #[pyo3(signature = (default=None))]
    fn get_nowait(&self, default: Option<Item>) -> Option<Item> {
        self.mailbox.try_receive().ok().or(default)
    }

    #[pyo3(signature = (item, timeout_sec=1.0))]
    fn put_wait(&self, py: Python<'_>, item: Item, timeout_sec: Option<f64>) -> PyResult<bool> {
        put(py, &self.mailbox, item, timeout_sec.map(Timeout::after).transpose()?)
    }

    #[pyo3(signature = (timeout_sec=1.0, default=None))]
    fn get_wait(
        &self,
        py: Python<'_>,
        timeout_sec: Option<f64>,
        default: Option<Item>,
    ) -> PyResult<Option<Item>> {
        get(py, &self.mailbox, timeout_sec.map(Timeout::after).transpose()?, default)
    }

    fn clear(&self) -> usize {
        clear(&self.mailbox)
    }

    fn shutdown(&self) {
        self.mailbox.close(Close::Drain);
    }

    fn __len__(&self) -> usize {
        self.mailbox.len()
    }

    fn __repr__(this: &Bound<'_, Self>) -> PyResult<String> {
        let name = class_name(&this.get_type())?;
        Ok(format!("{name}(size={}/{})", this.get().size(), this.get().capacity()))
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        traverse(&self.mailbox, visit)
    }

    fn __clear__(&self) {
        clear(&self.mailbox);
    }
}
