//! `MessageQueue`: all 256 priorities, for asyncio.

use std::sync::Arc;

use dotcompute_mailbox::sync::{AtomicBool, Ordering};
use pyo3::exceptions::PyValueError;
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::levels::{Levels, Policy};
use super::line::{Put, Try};
use super::timeout::Timeout;
use super::waiting::{self, Queue};
use super::{DEFAULT_PRIORITY, Item, full_error, maxsize, stayed_full_error, timeout_error};
use crate::asyncio::Held;
use crate::fastcall::{Method, fastcall, optional};
use crate::message::priority_of;
use crate::quick::Quick;

/// What `MessageQueue` is made of.
#[pyclass(
    frozen,
    subclass,
    generic,
    weakref,
    module = "pydotcompute._native",
    name = "MessageQueueBase"
)]
pub(super) struct MessageQueue {
    pub(super) held: Arc<Held>,
    pub(super) levels: Arc<Levels>,
    maxsize: usize,
    use_priority: AtomicBool,
    kernel_id: String,
}

impl MessageQueue {
    pub(super) fn stored(&self, message: &Bound<'_, PyAny>) -> Quick<(u8, Item)> {
        let priority = if self.use_priority() { priority_of(message)? } else { DEFAULT_PRIORITY };
        Ok((priority, message.clone().unbind()))
    }

    /// Why a put ended that found no room.
    pub(super) fn no_room(&self, py: Python<'_>, timeout: Timeout) -> PyErr {
        match self.levels.policy() {
            Policy::Reject => full_error(py, &self.kernel_id, self.maxsize),
            _ => stayed_full_error(py, &self.kernel_id, self.maxsize, timeout),
        }
    }

    pub(super) fn timeout_error(&self, py: Python<'_>, timeout: Timeout) -> PyErr {
        timeout_error(py, &self.kernel_id, timeout.seconds(), "receive")
    }
}

fn policy(name: &str) -> PyResult<Policy> {
    match name {
        "BLOCK" => Ok(Policy::Block),
        "REJECT" => Ok(Policy::Reject),
        "DROP_OLDEST" => Ok(Policy::DropOldest),
        _ => Err(PyValueError::new_err(format!("there is no policy {name}"))),
    }
}

#[pymethods]
impl MessageQueue {
    #[new]
    #[pyo3(signature = (maxsize, policy, use_priority, kernel_id))]
    fn new(maxsize: isize, policy: &str, use_priority: bool, kernel_id: String) -> PyResult<Self> {
        let maxsize = self::maxsize(maxsize)?;
        let levels = Levels::new(maxsize, self::policy(policy)?);
        Ok(Self {
            held: Arc::default(),
            levels,
            maxsize,
            use_priority: AtomicBool::new(use_priority),
            kernel_id,
        })
    }

    /// The name of the backpressure strategy.
    #[getter(_policy)]
    fn policy(&self) -> &'static str {
        match self.levels.policy() {
            Policy::Block => "BLOCK",
            Policy::Reject => "REJECT",
            Policy::DropOldest => "DROP_OLDEST",
        }
    }

    #[setter(_policy)]
    fn set_policy(&self, policy: &str) -> PyResult<()> {
        self.levels.set_policy(self::policy(policy)?);
        Ok(())
    }

    #[getter(_use_priority)]
    fn use_priority(&self) -> bool {
        // Relaxed: a setting by itself, used with the GIL held.
        self.use_priority.load(Ordering::Relaxed)
    }

    #[setter(_use_priority)]
    fn set_use_priority(&self, use_priority: bool) {
        // Relaxed: as above.
        self.use_priority.store(use_priority, Ordering::Relaxed);
    }

    #[getter]
    fn maxsize(&self) -> usize {
        self.maxsize
    }

    #[getter]
    fn qsize(&self) -> usize {
        self.levels.len()
    }

    #[getter]
    fn empty(&self) -> bool {
        self.levels.len() == 0
    }

    #[getter]
    fn full(&self) -> bool {
        self.levels.is_full()
    }

    fn put_nowait(&self, message: &Bound<'_, PyAny>) -> PyResult<bool> {
        let (priority, item) = self.stored(message)?;
        Ok(matches!(self.levels.try_put(priority, item), Ok(Put::Done)))
    }

    fn get_nowait(&self) -> Option<Item> {
        self.levels.try_get()
    }

    fn clear(&self) -> usize {
        self.levels.clear()
    }

    fn get_stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let totals = self.levels.totals();
        let stats = PyDict::new(py);
        stats.set_item("current_size", self.levels.len())?;
        stats.set_item("max_size", self.maxsize)?;
        stats.set_item("total_enqueued", totals.enqueued)?;
        stats.set_item("total_dequeued", totals.dequeued)?;
        stats.set_item("total_dropped", totals.dropped)?;
        Ok(stats)
    }

    fn __len__(&self) -> usize {
        self.levels.len()
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        self.held.traverse(&visit)?;
        self.levels.traverse(visit)
    }

    fn __clear__(&self, py: Python<'_>) {
        self.held.clear(py);
        self.levels.clear();
    }
}

/// The methods that are called for each message.
pub(super) const METHODS: [Method; 2] = [
    Method { name: c"put", doc: c"put($self, message, *, timeout=None)\n--\n\n", function: put },
    Method { name: c"get", doc: c"get($self, *, timeout=None)\n--\n\n", function: get },
];

fastcall! {
    fn put(queue: MessageQueue, "MessageQueue.put", message;; timeout) |py| {
        let timeout = optional(timeout, "timeout")?;
        let put = || (Queue::Message(queue.clone().unbind()), message.to_owned().unbind());
        waiting::put(py, put, timeout)
    }

    fn get(queue: MessageQueue, "MessageQueue.get";; timeout) |py| {
        let timeout = optional(timeout, "timeout")?;
        waiting::get(py, || Queue::Message(queue.clone().unbind()), timeout)
    }
}
