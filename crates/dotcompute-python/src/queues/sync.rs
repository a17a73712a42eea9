//! The queues for threads: `SyncQueue`, `SPSCQueue` and `FastSPSCQueue`.
//!
//! All take any number of producers and consumers. A thread that waits has released the GIL. What
//! they share is their base class; they differ in what they say when something cannot be.

use std::sync::Arc;
use std::time::Duration;

use dotcompute_mailbox::{Close, Mailbox, ReceiveError, SendError, TryReceiveError, TrySendError};
use pyo3::exceptions::PyRuntimeError;
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::fastcall::{Method, fastcall, truth};
use crate::quick::Quick;

use super::timeout::Timeout;
use super::{
    Item, PLAIN, blocking, capacity, class_name, clear, mailbox, maxsize, rounded,
    stayed_full_error, timeout_error, traverse,
};

/// What the queues between threads have in common.
#[pyclass(frozen, subclass, generic, weakref, module = "pydotcompute._native")]
pub(super) struct ThreadQueue {
    mailbox: Arc<Mailbox<Item>>,
    /// The most that it holds, as it is told; 0: no limit.
    limit: usize,
}

impl ThreadQueue {
    fn new(limit: usize) -> PyClassInitializer<Self> {
        PyClassInitializer::from(Self { mailbox: mailbox(limit), limit })
    }

    /// Puts within `timeout`; false if that could not be.
    fn put(&self, py: Python<'_>, item: Item, timeout: Option<Timeout>) -> PyResult<bool> {
        Ok(blocking::put(py, &self.mailbox, item, timeout.unwrap_or_default())?.is_ok())
    }

    /// The next object within `timeout`, or `default`.
    fn get(
        &self,
        py: Python<'_>,
        timeout: Option<Timeout>,
        default: Option<Item>,
    ) -> PyResult<Option<Item>> {
        let timeout = timeout.unwrap_or_default();
        Ok(blocking::get(py, &self.mailbox, timeout, Duration::ZERO)?.ok().or(default))
    }

    /// [`put`](Self::put) for a [`fastcall!`], which waits in another way.
    #[inline]
    pub(super) fn offer(
        &self,
        py: Python<'_>,
        item: Bound<'_, PyAny>,
        timeout: Timeout,
    ) -> Quick<bool> {
        match self.mailbox.try_send(PLAIN, item.unbind()) {
            Ok(_) => Ok(true),
            Err(TrySendError::Closed(item)) => {
                drop(item.into_bound(py));
                Ok(false)
            }
            Err(TrySendError::Full(item)) if timeout.is_zero() => {
                drop(item.into_bound(py));
                Ok(false)
            }
            Err(TrySendError::Full(item)) => self.put_later(item, timeout),
        }
    }

    #[cold]
    fn put_later(&self, item: Item, timeout: Timeout) -> Quick<bool> {
        Ok(Python::attach(|py| self.put(py, item, Some(timeout)))?)
    }

    /// [`get`](Self::get) for a [`fastcall!`].
    #[inline]
    pub(super) fn take(&self, _py: Python<'_>, timeout: Timeout) -> Quick<Option<Item>> {
        match self.mailbox.try_receive() {
            Ok(item) => Ok(Some(item)),
            Err(TryReceiveError::Closed) => Ok(None),
            Err(TryReceiveError::Empty) if timeout.is_zero() => Ok(None),
            Err(TryReceiveError::Empty) => self.get_later(timeout),
        }
    }

    #[cold]
    fn get_later(&self, timeout: Timeout) -> Quick<Option<Item>> {
        Ok(Python::attach(|py| self.get(py, Some(timeout), None))?)
    }

    fn put_now(&self, item: Item) -> bool {
        match self.mailbox.try_send(PLAIN, item) {
            Ok(_) => true,
            Err(TrySendError::Full(_) | TrySendError::Closed(_)) => false,
        }
    }

    fn get_now(&self) -> Option<Item> {
        self.mailbox.try_receive().ok()
    }

    fn len(&self) -> usize {
        self.mailbox.len()
    }
}

#[pymethods]
impl ThreadQueue {
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

    /// `put` that returns False instead of raising.
    fn _offer(&self, py: Python<'_>, item: Item, timeout: Option<Timeout>) -> PyResult<bool> {
        self.put(py, item, timeout)
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
        let spin = Duration::from_nanos(spin_wait_ns);
        let taken = blocking::get(py, &self.mailbox, timeout.unwrap_or_default(), spin)?;
        Ok(taken.unwrap_or(default))
    }

    fn put_nowait(&self, item: Item) -> bool {
        self.put_now(item)
    }

    #[pyo3(signature = (default=None))]
    fn get_nowait(&self, default: Option<Item>) -> Option<Item> {
        self.get_now().or(default)
    }

    fn clear(&self) -> usize {
        clear(&self.mailbox)
    }

    fn shutdown(&self) {
        self.mailbox.close(Close::Drain);
    }

    fn __len__(&self) -> usize {
        self.len()
    }

    fn __repr__(this: &Bound<'_, Self>) -> PyResult<String> {
        let (name, queue) = (class_name(&this.get_type())?, this.get());
        Ok(format!("{name}(size={}/{})", queue.len(), queue.limit))
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        traverse(&self.mailbox, visit)
    }

    fn __clear__(&self) {
        clear(&self.mailbox);
    }
}

/// A queue between threads that raises when something cannot be.
#[pyclass(
    frozen,
    subclass,
    extends = ThreadQueue,
    module = "pydotcompute.ring_kernels.sync_queue",
    name = "SyncQueue"
)]
pub(super) struct SyncQueue;

/// The name under which errors speak of a `SyncQueue`.
const SYNC_NAME: &str = "sync_queue";

fn shut_down() -> PyErr {
    PyRuntimeError::new_err("the queue is shut down")
}

#[pymethods]
impl SyncQueue {
    #[new]
    #[pyo3(signature = (maxsize=4096))]
    fn new(maxsize: isize) -> PyResult<PyClassInitializer<Self>> {
        Ok(ThreadQueue::new(self::maxsize(maxsize)?).add_subclass(Self))
    }

    #[getter]
    fn maxsize(this: &Bound<'_, Self>) -> usize {
        this.as_super().get().limit
    }

    #[getter]
    fn qsize(this: &Bound<'_, Self>) -> usize {
        this.as_super().get().len()
    }

    #[pyo3(signature = (item, timeout=None))]
    fn put(this: &Bound<'_, Self>, item: Item, timeout: Option<Timeout>) -> PyResult<bool> {
        let (py, queue) = (this.py(), this.as_super().get());
        let timeout = timeout.unwrap_or_default();
        match blocking::put(py, &queue.mailbox, item, timeout)? {
            Ok(()) => Ok(true),
            Err(SendError::Closed(_)) => Err(shut_down()),
            Err(SendError::Full(_) | SendError::Timeout(_)) => {
                Err(stayed_full_error(py, SYNC_NAME, queue.limit, timeout))
            }
        }
    }

    #[pyo3(signature = (timeout=None))]
    fn get(this: &Bound<'_, Self>, timeout: Option<Timeout>) -> PyResult<Item> {
        let (py, queue) = (this.py(), this.as_super().get());
        let timeout = timeout.unwrap_or_default();
        let got = blocking::get(py, &queue.mailbox, timeout, Duration::ZERO)?;
        got.map_err(|error| match error {
            ReceiveError::Closed => shut_down(),
            ReceiveError::Timeout => timeout_error(py, SYNC_NAME, timeout.seconds(), "get"),
        })
    }

    fn get_stats<'py>(this: &Bound<'py, Self>) -> PyResult<Bound<'py, PyDict>> {
        let queue = this.as_super().get();
        let (books, stats) = (queue.mailbox.books(), PyDict::new(this.py()));
        stats.set_item("current_size", books.queued)?;
        stats.set_item("max_size", queue.limit)?;
        stats.set_item("total_enqueued", books.accepted)?;
        stats.set_item("total_dequeued", books.processed)?;
        Ok(stats)
    }
}

/// A queue between threads that returns a value when something cannot be.
#[pyclass(
    frozen,
    subclass,
    extends = ThreadQueue,
    module = "pydotcompute.ring_kernels.sync_queue",
    name = "SPSCQueue"
)]
pub(super) struct SpscQueue;

#[pymethods]
impl SpscQueue {
    #[new]
    #[pyo3(signature = (capacity=4096))]
    fn new(capacity: isize) -> PyResult<PyClassInitializer<Self>> {
        Ok(ThreadQueue::new(rounded(capacity)?).add_subclass(Self))
    }

    #[getter]
    fn capacity(this: &Bound<'_, Self>) -> usize {
        this.as_super().get().limit
    }

    #[getter]
    fn size(this: &Bound<'_, Self>) -> usize {
        this.as_super().get().len()
    }

    #[pyo3(signature = (item, timeout=None))]
    fn put(this: &Bound<'_, Self>, item: Item, timeout: Option<Timeout>) -> PyResult<bool> {
        this.as_super().get().put(this.py(), item, timeout)
    }

    #[pyo3(signature = (timeout=None, default=None))]
    fn get(
        this: &Bound<'_, Self>,
        timeout: Option<Timeout>,
        default: Option<Item>,
    ) -> PyResult<Option<Item>> {
        this.as_super().get().get(this.py(), timeout, default)
    }
}

/// A queue between threads whose plain `put` and `get` do not wait.
#[pyclass(
    frozen,
    subclass,
    extends = ThreadQueue,
    module = "pydotcompute.ring_kernels._cython.fast_spsc",
    name = "FastSPSCQueue"
)]
pub(super) struct FastSpscQueue;

#[pymethods]
impl FastSpscQueue {
    #[new]
    #[pyo3(signature = (capacity=4096))]
    fn new(capacity: isize) -> PyResult<PyClassInitializer<Self>> {
        Ok(ThreadQueue::new(self::capacity(capacity)?).add_subclass(Self))
    }

    #[getter]
    fn capacity(this: &Bound<'_, Self>) -> usize {
        this.as_super().get().limit
    }

    #[getter]
    fn size(this: &Bound<'_, Self>) -> usize {
        this.as_super().get().len()
    }

    #[pyo3(signature = (item, timeout_sec=1.0))]
    fn put_wait(this: &Bound<'_, Self>, item: Item, timeout_sec: Option<f64>) -> PyResult<bool> {
        let timeout = timeout_sec.map(Timeout::after).transpose()?;
        this.as_super().get().put(this.py(), item, timeout)
    }

    #[pyo3(signature = (timeout_sec=1.0, default=None))]
    fn get_wait(
        this: &Bound<'_, Self>,
        timeout_sec: Option<f64>,
        default: Option<Item>,
    ) -> PyResult<Option<Item>> {
        let timeout = timeout_sec.map(Timeout::after).transpose()?;
        this.as_super().get().get(this.py(), timeout, default)
    }
}

/// The methods that are called for each message.
pub(super) const FAST_METHODS: [Method; 2] = [
    Method { name: c"put", doc: c"put($self, item)\n--\n\n", function: put },
    Method { name: c"get", doc: c"get($self)\n--\n\n", function: get },
];

fastcall! {
    fn put(queue: FastSpscQueue, "FastSPSCQueue.put", item;;) |py| {
        let put = queue.as_super().get().put_now(item.to_owned().unbind());
        Ok(truth(py, put))
    }

    fn get(queue: FastSpscQueue, "FastSPSCQueue.get";;) |py| {
        Ok(queue.as_super().get().get_now().unwrap_or_else(|| py.None()))
    }
}
