//! `FastMessageQueue`: four priority bands, for asyncio.

use std::sync::Arc;

use dotcompute_mailbox::{Band, Mailbox};
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList, PyTuple};

use super::line::Try;
use super::timeout::Timeout;
use super::waiting::{self, Queue};
use super::{
    Item, band_counts, class_name, clear, mailbox, maxsize, stayed_full_error, timeout_error,
    traverse,
};
use crate::asyncio::Held;
use crate::fastcall::{Method, fastcall, optional};
use crate::message::priority_of;
use crate::quick::Quick;

/// A queue for asyncio with four priority bands, each in the order of arrival.
#[pyclass(
    frozen,
    subclass,
    generic,
    weakref,
    module = "pydotcompute.ring_kernels.fast_queue",
    name = "FastMessageQueue"
)]
pub(super) struct FastMessageQueue {
    pub(super) held: Arc<Held>,
    pub(super) mailbox: Arc<Mailbox<Item>>,
    maxsize: usize,
    kernel_id: String,
    serialize: bool,
}

impl FastMessageQueue {
    /// What lies in the mailbox for `message`: itself, or its class and bytes.
    #[inline]
    pub(super) fn stored(&self, message: &Bound<'_, PyAny>) -> Quick<(u8, Item)> {
        let priority = priority_of(message)?;
        let item = if self.serialize {
            let data = message.call_method0("serialize")?;
            (message.get_type(), data).into_pyobject(message.py())?.into_any()
        } else {
            message.clone()
        };
        Ok((priority, item.unbind()))
    }

    #[inline]
    pub(super) fn restored(&self, py: Python<'_>, item: Item) -> Quick<Item> {
        if !self.serialize {
            return Ok(item);
        }
        Ok(deserialized(&item.into_bound(py))?)
    }

    pub(super) fn full_error(&self, py: Python<'_>, timeout: Timeout) -> PyErr {
        stayed_full_error(py, &self.kernel_id, self.maxsize, timeout)
    }

    pub(super) fn timeout_error(&self, py: Python<'_>, timeout: Timeout) -> PyErr {
        timeout_error(py, &self.kernel_id, timeout.seconds(), "receive")
    }

    fn is_full(&self) -> bool {
        self.mailbox.is_full()
    }

    fn put_now(&self, message: &Bound<'_, PyAny>) -> Quick<bool> {
        if self.serialize && self.is_full() {
            return Ok(false);
        }
        let (priority, item) = self.stored(message)?;
        Ok(self.mailbox.try_put(priority, item).is_ok())
    }
}

/// The message of which the queue stores the class and the bytes.
fn deserialized(stored: &Bound<'_, PyAny>) -> PyResult<Item> {
    let (class, data): (Bound<'_, PyAny>, Bound<'_, PyAny>) =
        stored.cast::<PyTuple>()?.extract()?;
    Ok(class.call_method1("deserialize", (data,))?.unbind())
}

#[pymethods]
impl FastMessageQueue {
    #[new]
    #[pyo3(
        signature = (maxsize=4096, *, kernel_id="", serialize=false),
        text_signature = "(maxsize=4096, *, kernel_id='', serialize=False)"
    )]
    fn new(maxsize: isize, kernel_id: &str, serialize: bool) -> PyResult<Self> {
        let maxsize = self::maxsize(maxsize)?;
        Ok(Self {
            held: Arc::default(),
            mailbox: mailbox(maxsize),
            maxsize,
            kernel_id: kernel_id.to_owned(),
            serialize,
        })
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
        self.is_full()
    }

    fn put_nowait(&self, message: &Bound<'_, PyAny>) -> PyResult<bool> {
        Ok(self.put_now(message)?)
    }

    fn get_nowait(&self, py: Python<'_>) -> PyResult<Option<Item>> {
        Ok(self.mailbox.try_get().map(|item| self.restored(py, item)).transpose()?)
    }

    fn put_batch(&self, messages: &Bound<'_, PyAny>) -> PyResult<usize> {
        let mut count = 0;
        for message in messages.try_iter()? {
            if !self.put_nowait(&message?)? {
                break;
            }
            count += 1;
        }
        Ok(count)
    }

    fn get_batch<'py>(&self, py: Python<'py>, max_count: usize) -> PyResult<Bound<'py, PyList>> {
        let messages = PyList::empty(py);
        let mut items = Vec::new();
        if max_count > 0 {
            let _ = self.mailbox.try_receive_batch(max_count, &mut items);
        }
        for item in items {
            messages.append(self.restored(py, item)?)?;
        }
        Ok(messages)
    }

    fn clear(&self) -> usize {
        clear(&self.mailbox)
    }

    fn get_stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let books = self.mailbox.books();
        let bands = PyDict::new(py);
        for (name, count) in BAND_NAMES.into_iter().zip(band_counts(&self.mailbox)) {
            bands.set_item(name, count)?;
        }
        let stats = PyDict::new(py);
        stats.set_item("current_size", books.queued)?;
        stats.set_item("max_size", self.maxsize)?;
        stats.set_item("peak_size", self.mailbox.high_water())?;
        stats.set_item("total_enqueued", books.accepted)?;
        stats.set_item("total_dequeued", books.processed)?;
        // What `clear` removed: the queue itself drops nothing.
        stats.set_item("total_dropped", books.dead_lettered)?;
        stats.set_item("band_counts", bands)?;
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
        self.held.traverse(&visit)?;
        traverse(&self.mailbox, visit)
    }

    fn __clear__(&self, py: Python<'_>) {
        self.held.clear(py);
        clear(&self.mailbox);
    }
}

/// In the order of [`Band::ALL`].
const BAND_NAMES: [&str; Band::ALL.len()] = ["system", "high", "normal", "low"];

/// The methods that are called for each message.
pub(super) const METHODS: [Method; 2] = [
    Method { name: c"put", doc: c"put($self, message, *, timeout=None)\n--\n\n", function: put },
    Method { name: c"get", doc: c"get($self, *, timeout=None)\n--\n\n", function: get },
];

fastcall! {
    fn put(queue: FastMessageQueue, "FastMessageQueue.put", message;; timeout) |py| {
        let timeout = optional(timeout, "timeout")?;
        let put = || (Queue::Fast(queue.clone().unbind()), message.to_owned().unbind());
        waiting::put(py, put, timeout)
    }

    fn get(queue: FastMessageQueue, "FastMessageQueue.get";; timeout) |py| {
        let timeout = optional(timeout, "timeout")?;
        waiting::get(py, || Queue::Fast(queue.clone().unbind()), timeout)
    }
}
