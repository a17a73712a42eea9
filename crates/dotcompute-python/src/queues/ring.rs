//! `RingBuffer`: a plain bounded queue, for asyncio.

use std::sync::Arc;

use dotcompute_mailbox::Mailbox;
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::prelude::*;

use super::line::Try;
use super::waiting::{self, Queue};
use super::{DEFAULT_PRIORITY, Item, class_name, clear, mailbox, rounded, traverse};
use crate::asyncio::Held;
use crate::fastcall::{Method, fastcall, optional};

/// A plain bounded queue for asyncio.
#[pyclass(
    frozen,
    subclass,
    generic,
    weakref,
    module = "pydotcompute.ring_kernels.fast_queue",
    name = "RingBuffer"
)]
pub(super) struct RingBuffer {
    pub(super) held: Arc<Held>,
    pub(super) mailbox: Arc<Mailbox<Item>>,
}

#[pymethods]
impl RingBuffer {
    #[new]
    #[pyo3(signature = (capacity=4096))]
    fn new(capacity: isize) -> PyResult<Self> {
        Ok(Self { held: Arc::default(), mailbox: mailbox(rounded(capacity)?) })
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

    fn put_nowait(&self, item: Item) -> bool {
        self.mailbox.try_put(DEFAULT_PRIORITY, item).is_ok()
    }

    fn get_nowait(&self) -> Option<Item> {
        self.mailbox.try_get()
    }

    fn clear(&self) -> usize {
        clear(&self.mailbox)
    }

    fn __len__(&self) -> usize {
        self.mailbox.len()
    }

    fn __repr__(this: &Bound<'_, Self>) -> PyResult<String> {
        let name = class_name(&this.get_type())?;
        Ok(format!("{name}(size={}/{})", this.get().size(), this.get().capacity()))
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        self.held.traverse(&visit)?;
        traverse(&self.mailbox, visit)
    }

    fn __clear__(&self, py: Python<'_>) {
        self.held.clear(py);
        clear(&self.mailbox);
    }
}

/// The methods that are called for each message.
pub(super) const METHODS: [Method; 2] = [
    Method { name: c"put", doc: c"put($self, item, *, timeout=None)\n--\n\n", function: put },
    Method { name: c"get", doc: c"get($self, *, timeout=None)\n--\n\n", function: get },
];

fastcall! {
    fn put(queue: RingBuffer, "RingBuffer.put", item;; timeout) |py| {
        let timeout = optional(timeout, "timeout")?;
        let put = || (Queue::Ring(queue.clone().unbind()), item.to_owned().unbind());
        waiting::put(py, put, timeout)
    }

    fn get(queue: RingBuffer, "RingBuffer.get";; timeout) |py| {
        let timeout = optional(timeout, "timeout")?;
        waiting::get(py, || Queue::Ring(queue.clone().unbind()), timeout)
    }
}
