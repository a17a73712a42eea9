//! The awaitable of the asyncio queues.
//!
//! It does nothing until it is driven, belongs to the loop that drives it, and if it need not wait
//! it ends without touching that loop. Cancelled, it has taken nothing (a get) or not put anything
//! that was not put before (a put).

use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use pyo3::exceptions::{PyBaseException, PyRuntimeError, PyStopIteration, PyTypeError};
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyTuple, PyType};

use super::fast::FastMessageQueue;
use super::line::{Line, Put, Waiting};
use super::message_queue::MessageQueue;
use super::ring::RingBuffer;
use super::slot::{Alarm, Slot};
use super::timeout::Timeout;
use super::{Item, cached};

/// The queue in which an awaitable waits.
pub(super) enum Queue {
    Fast(Py<FastMessageQueue>),
    Message(Py<MessageQueue>),
    Ring(Py<RingBuffer>),
}

impl Queue {
    fn line(&self) -> Arc<dyn Line> {
        match self {
            Self::Fast(queue) => queue.get().line(),
            Self::Message(queue) => queue.get().line(),
            Self::Ring(queue) => queue.get().line(),
        }
    }

    /// What the queue stores for `message`, and with which priority.
    fn stored(&self, py: Python<'_>, message: Item) -> PyResult<(u8, Item)> {
        match self {
            Self::Fast(queue) => queue.get().stored(message.bind(py)),
            Self::Message(queue) => queue.get().stored(message.bind(py)),
            Self::Ring(_) => Ok((super::DEFAULT_PRIORITY, message)),
        }
    }

    /// What a get of `item` returns.
    fn restored(&self, py: Python<'_>, item: Item) -> PyResult<Item> {
        match self {
            Self::Fast(queue) => queue.get().restored(py, item),
            Self::Message(_) | Self::Ring(_) => Ok(item),
        }
    }

    /// What a put ends with that found no room.
    fn no_room(&self, py: Python<'_>, timeout: Timeout) -> PyResult<Item> {
        match self {
            Self::Fast(queue) => Err(queue.get().full_error(py)),
            Self::Message(queue) => Err(queue.get().no_room(py, timeout)),
            Self::Ring(_) => py.into_false(),
        }
    }

    /// What a get ends with that found nothing.
    fn nothing(&self, py: Python<'_>, timeout: Timeout) -> PyResult<Item> {
        match self {
            Self::Fast(queue) => Err(queue.get().timeout_error(py, timeout)),
            Self::Message(queue) => Err(queue.get().timeout_error(py, timeout)),
            Self::Ring(_) => Ok(py.None()),
        }
    }

    fn visit(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        match self {
            Self::Fast(queue) => visit.call(queue),
            Self::Message(queue) => visit.call(queue),
            Self::Ring(queue) => visit.call(queue),
        }
    }
}

trait Booleans {
    fn into_true(self) -> PyResult<Item>;
    fn into_false(self) -> PyResult<Item>;
}

impl Booleans for Python<'_> {
    fn into_true(self) -> PyResult<Item> {
        Ok(true.into_pyobject(self)?.to_owned().into_any().unbind())
    }

    fn into_false(self) -> PyResult<Item> {
        Ok(false.into_pyobject(self)?.to_owned().into_any().unbind())
    }
}

/// What an awaitable waits for.
enum Pending {
    Put(Waiting<Put>),
    Get(Waiting<Option<Item>>),
}

enum Stage {
    Put(Item),
    Get,
    /// Not in line: it let others run once, for its timeout is zero.
    LastPut(u8, Item),
    LastGet,
    Waiting {
        pending: Pending,
        slot: Arc<Slot>,
        waker: Waker,
        timer: Option<Py<PyAny>>,
    },
    Done,
}

/// One `put` or `get` in progress.
#[pyclass(module = "pydotcompute._native")]
pub(super) struct QueueWait {
    queue: Option<Queue>,
    timeout: Timeout,
    stage: Stage,
}

enum Step<'py> {
    Yield(Bound<'py, PyAny>),
    Return(Item),
}

impl QueueWait {
    pub(super) fn put(queue: Queue, message: Item, timeout: Option<Timeout>) -> Self {
        let timeout = timeout.unwrap_or_default();
        Self { queue: Some(queue), timeout, stage: Stage::Put(message) }
    }

    pub(super) fn get(queue: Queue, timeout: Option<Timeout>) -> Self {
        let timeout = timeout.unwrap_or_default();
        Self { queue: Some(queue), timeout, stage: Stage::Get }
    }

    fn step<'py>(&mut self, py: Python<'py>) -> PyResult<Step<'py>> {
        let stage = std::mem::replace(&mut self.stage, Stage::Done);
        let Some(queue) = &self.queue else { return Err(reused()) };
        let (pending, slot) = match stage {
            Stage::Put(message) => {
                let (priority, item) = queue.stored(py, message)?;
                match queue.line().try_put(priority, item) {
                    Ok(outcome) => return self.put_ended(py, outcome),
                    Err(item) if self.timeout.is_zero() => {
                        self.stage = Stage::LastPut(priority, item);
                        return Ok(Step::Yield(py.None().into_bound(py)));
                    }
                    Err(item) => {
                        let slot = Arc::new(Slot::default());
                        let put = queue.line().wait_put(priority, item, Arc::clone(&slot));
                        (Pending::Put(put), slot)
                    }
                }
            }
            Stage::Get => match queue.line().try_get() {
                Some(item) => return queue.restored(py, item).map(Step::Return),
                None if self.timeout.is_zero() => {
                    self.stage = Stage::LastGet;
                    return Ok(Step::Yield(py.None().into_bound(py)));
                }
                None => {
                    let slot = Arc::new(Slot::default());
                    (Pending::Get(queue.line().wait_get(Arc::clone(&slot))), slot)
                }
            },
            Stage::LastPut(priority, item) => {
                let outcome = queue.line().try_put(priority, item).unwrap_or(Put::Full);
                return self.put_ended(py, outcome);
            }
            Stage::LastGet => return self.get_ended(py, queue.line().try_get()),
            Stage::Waiting { pending, slot, waker, timer } => {
                return self.poll(py, pending, slot, waker, timer);
            }
            Stage::Done => return Err(reused()),
        };
        let waker = Waker::from(Arc::clone(&slot));
        self.poll(py, pending, slot, waker, None)
    }

    fn poll<'py>(
        &mut self,
        py: Python<'py>,
        mut pending: Pending,
        slot: Arc<Slot>,
        waker: Waker,
        mut timer: Option<Py<PyAny>>,
    ) -> PyResult<Step<'py>> {
        static RUNNING: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
        let event_loop = cached(py, &RUNNING, "asyncio", "get_running_loop")?.call0()?;
        // Armed before the look, so that no wake-up is missed after it.
        let future = slot.arm(&event_loop)?;
        let mut context = Context::from_waker(&waker);
        let ended = match &mut pending {
            Pending::Put(put) => match put.as_mut().poll(&mut context) {
                Poll::Ready(outcome) => Some(self.put_ended(py, outcome)),
                Poll::Pending => None,
            },
            Pending::Get(get) => match get.as_mut().poll(&mut context) {
                Poll::Ready(item) => Some(self.get_ended(py, item)),
                Poll::Pending => None,
            },
        };
        if ended.is_none() && timer.is_none() {
            timer = self.set_timer(&event_loop, &slot)?;
        }
        let waiting = Stage::Waiting { pending, slot, waker, timer };
        match ended {
            Some(result) => {
                end(py, waiting);
                result
            }
            None => {
                self.stage = waiting;
                future.setattr(pyo3::intern!(py, "_asyncio_future_blocking"), true)?;
                Ok(Step::Yield(future))
            }
        }
    }

    fn set_timer(
        &self,
        event_loop: &Bound<'_, PyAny>,
        slot: &Arc<Slot>,
    ) -> PyResult<Option<Py<PyAny>>> {
        let py = event_loop.py();
        let Some(duration) = self.timeout.duration() else { return Ok(None) };
        let alarm = Bound::new(py, Alarm(Arc::clone(slot)))?;
        let name = pyo3::intern!(py, "call_later");
        let timer = event_loop.call_method1(name, (duration.as_secs_f64(), alarm))?;
        Ok(Some(timer.unbind()))
    }

    fn put_ended<'py>(&self, py: Python<'py>, outcome: Put) -> PyResult<Step<'py>> {
        let Some(queue) = &self.queue else { return Err(reused()) };
        let result = match outcome {
            Put::Done => py.into_true(),
            Put::Full => queue.no_room(py, self.timeout),
        };
        result.map(Step::Return)
    }

    fn get_ended<'py>(&self, py: Python<'py>, item: Option<Item>) -> PyResult<Step<'py>> {
        let Some(queue) = &self.queue else { return Err(reused()) };
        let result = match item {
            Some(item) => queue.restored(py, item),
            None => queue.nothing(py, self.timeout),
        };
        result.map(Step::Return)
    }
}

fn reused() -> PyErr {
    PyRuntimeError::new_err("this await has ended already")
}

/// Leaves the line, and the loop.
fn end(py: Python<'_>, stage: Stage) {
    let Stage::Waiting { pending, slot, timer, .. } = stage else { return };
    slot.disarm();
    drop(pending);
    if let Some(timer) = timer
        && let Err(error) = timer.call_method0(py, pyo3::intern!(py, "cancel"))
    {
        error.write_unraisable(py, None);
    }
}

#[pymethods]
impl QueueWait {
    fn __await__(this: Bound<'_, Self>) -> Bound<'_, Self> {
        this
    }

    fn __iter__(this: Bound<'_, Self>) -> Bound<'_, Self> {
        this
    }

    fn __next__<'py>(&mut self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        match self.step(py)? {
            Step::Yield(future) => Ok(future),
            Step::Return(value) => Err(stop_iteration(value.into_bound(py))),
        }
    }

    /// Drives the await, as a coroutine's `send`. The value is ignored.
    fn send<'py>(&mut self, value: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        self.__next__(value.py())
    }

    /// Ends the await with an exception, as a coroutine's `throw`.
    #[pyo3(signature = (typ, val=None, tb=None, /))]
    fn throw<'py>(
        &mut self,
        typ: Bound<'py, PyAny>,
        val: Option<Bound<'py, PyAny>>,
        tb: Option<Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let py = typ.py();
        end(py, std::mem::replace(&mut self.stage, Stage::Done));
        let error = match typ.cast::<PyType>() {
            Ok(class) => match val {
                Some(value) if value.is_instance_of::<PyBaseException>() => value,
                Some(value) if value.is_instance_of::<PyTuple>() => {
                    class.call1(value.cast_into::<PyTuple>()?)?
                }
                Some(value) => class.call1((value,))?,
                None => class.call0()?,
            },
            Err(_) => typ,
        };
        if !error.is_instance_of::<PyBaseException>() {
            return Err(PyTypeError::new_err("exceptions must derive from BaseException"));
        }
        if let Some(tb) = tb {
            error.setattr("__traceback__", tb)?;
        }
        Err(PyErr::from_value(error))
    }

    /// Ends the await without a result.
    fn close(&mut self, py: Python<'_>) {
        end(py, std::mem::replace(&mut self.stage, Stage::Done));
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        if let Some(queue) = &self.queue {
            queue.visit(visit)?;
        }
        match &self.stage {
            Stage::Put(item) | Stage::LastPut(_, item) => visit.call(item),
            // The message of a put in line is the queue's to show.
            Stage::Waiting { slot, timer, .. } => {
                slot.traverse(visit)?;
                timer.as_ref().map_or(Ok(()), |timer| visit.call(timer))
            }
            Stage::Get | Stage::LastGet | Stage::Done => Ok(()),
        }
    }

    fn __clear__(&mut self, py: Python<'_>) {
        end(py, std::mem::replace(&mut self.stage, Stage::Done));
        self.queue = None;
    }
}

impl Drop for QueueWait {
    /// An await that is dropped in the middle, as by a loop that ends, leaves no future behind.
    fn drop(&mut self) {
        if let Stage::Waiting { slot, .. } = &self.stage {
            slot.disarm();
        }
    }
}

/// Ends an iterator with a value. One that is a tuple or an exception would be taken for the
/// exception's arguments or for the exception itself.
fn stop_iteration(value: Bound<'_, PyAny>) -> PyErr {
    if value.is_instance_of::<PyTuple>() || value.is_instance_of::<PyBaseException>() {
        PyStopIteration::new_err((value.unbind(),))
    } else {
        PyStopIteration::new_err(value.unbind())
    }
}
