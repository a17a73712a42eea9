//! A `put` or `get` of an asyncio queue in progress, as an operation of an awaitable.
//!
//! It does nothing until it is driven, and if it need not wait it ends without touching the event
//! loop. Cancelled, it has taken nothing (a get) or not put anything that was not put before (a put).

use std::ffi::c_int;
use std::sync::Arc;
use std::task::{Context, Poll};

use pyo3::prelude::*;

use super::fast::FastMessageQueue;
use super::line::{Line, Put, Try, Waiting};
use super::message_queue::MessageQueue;
use super::ring::RingBuffer;
use super::timeout::Timeout;
use super::{DEFAULT_PRIORITY, Item};
use crate::asyncio::{Held, queue_awaitable, scope};
use crate::fastcall::truth;
use crate::quick::Quick;

/// The queue in which an operation waits.
pub(super) enum Queue {
    Fast(Py<FastMessageQueue>),
    Message(Py<MessageQueue>),
    Ring(Py<RingBuffer>),
}

impl Queue {
    #[inline]
    fn line(&self) -> Line {
        match self {
            Self::Fast(queue) => Line::Mailbox(Arc::clone(&queue.get().mailbox)),
            Self::Message(queue) => Line::Levels(Arc::clone(&queue.get().levels)),
            Self::Ring(queue) => Line::Mailbox(Arc::clone(&queue.get().mailbox)),
        }
    }

    #[inline]
    fn try_put(&self, priority: u8, item: Item) -> Result<Put, Item> {
        match self {
            Self::Fast(queue) => queue.get().mailbox.try_put(priority, item),
            Self::Message(queue) => queue.get().levels.try_put(priority, item),
            Self::Ring(queue) => queue.get().mailbox.try_put(priority, item),
        }
    }

    #[inline]
    fn try_get(&self) -> Option<Item> {
        match self {
            Self::Fast(queue) => queue.get().mailbox.try_get(),
            Self::Message(queue) => queue.get().levels.try_get(),
            Self::Ring(queue) => queue.get().mailbox.try_get(),
        }
    }

    /// What the queue stores for `message`, and with which priority.
    #[inline]
    fn stored(&self, py: Python<'_>, message: &Item) -> Quick<(u8, Item)> {
        match self {
            Self::Fast(queue) => queue.get().stored(message.bind(py)),
            Self::Message(queue) => queue.get().stored(message.bind(py)),
            Self::Ring(_) => Ok((DEFAULT_PRIORITY, message.clone_ref(py))),
        }
    }

    /// What a get of `item` returns.
    #[inline]
    fn restored(&self, py: Python<'_>, item: Item) -> Quick<Item> {
        match self {
            Self::Fast(queue) => queue.get().restored(py, item),
            Self::Message(_) | Self::Ring(_) => Ok(item),
        }
    }

    /// What a put ends with.
    #[inline]
    fn put_ended(&self, py: Python<'_>, outcome: Put, timeout: Timeout) -> Quick<Item> {
        let put = match (outcome, self) {
            (Put::Done, _) => true,
            (Put::Full, Self::Ring(_)) => false,
            (Put::Full, Self::Fast(queue)) => {
                return Err(queue.get().full_error(py, timeout).into());
            }
            (Put::Full, Self::Message(queue)) => {
                return Err(queue.get().no_room(py, timeout).into());
            }
        };
        Ok(truth(py, put))
    }

    /// What a get ends with.
    #[inline]
    fn get_ended(&self, py: Python<'_>, item: Option<Item>, timeout: Timeout) -> Quick<Item> {
        match (item, self) {
            (Some(item), _) => self.restored(py, item),
            (None, Self::Ring(_)) => Ok(py.None()),
            (None, Self::Fast(queue)) => Err(queue.get().timeout_error(py, timeout).into()),
            (None, Self::Message(queue)) => Err(queue.get().timeout_error(py, timeout).into()),
        }
    }

    fn held(&self) -> &Arc<Held> {
        match self {
            Self::Fast(queue) => &queue.get().held,
            Self::Message(queue) => &queue.get().held,
            Self::Ring(queue) => &queue.get().held,
        }
    }

    fn as_any(&self) -> &Py<PyAny> {
        match self {
            Self::Fast(queue) => queue.as_any(),
            Self::Message(queue) => queue.as_any(),
            Self::Ring(queue) => queue.as_any(),
        }
    }
}

/// See the module.
pub(crate) struct QueueOperation {
    queue: Queue,
    timeout: Timeout,
    stage: Stage,
}

enum Stage {
    /// The message, as it was given.
    Put(Item),
    Get,
    Putting(Waiting<Put>),
    Getting(Waiting<Option<Item>>),
    Done,
}

/// The awaitable of a put.
#[inline(always)]
pub(super) fn put(
    py: Python<'_>,
    operation: impl FnOnce() -> (Queue, Item),
    timeout: Option<Timeout>,
) -> Quick<Item> {
    let timeout = timeout.unwrap_or_default();
    queue_awaitable(py, || {
        let (queue, message) = operation();
        QueueOperation { queue, timeout, stage: Stage::Put(message) }
    })
}

/// The awaitable of a get.
#[inline(always)]
pub(super) fn get(
    py: Python<'_>,
    queue: impl FnOnce() -> Queue,
    timeout: Option<Timeout>,
) -> Quick<Item> {
    let timeout = timeout.unwrap_or_default();
    queue_awaitable(py, || QueueOperation { queue: queue(), timeout, stage: Stage::Get })
}

impl QueueOperation {
    /// What it ends with, if that takes no waiting.
    #[inline(always)]
    pub(crate) fn at_once(&mut self, py: Python<'_>) -> Quick<Option<Item>> {
        match &mut self.stage {
            Stage::Put(message) => {
                let (priority, item) = self.queue.stored(py, message)?;
                match self.queue.try_put(priority, item) {
                    Ok(outcome) => self.put_ended(py, outcome).map(Some),
                    Err(_) if self.timeout.is_zero() => self.put_ended(py, Put::Full).map(Some),
                    Err(_) => Ok(None),
                }
            }
            Stage::Get => match self.queue.try_get() {
                None if !self.timeout.is_zero() => Ok(None),
                item => self.get_ended(py, item).map(Some),
            },
            Stage::Putting(_) | Stage::Getting(_) | Stage::Done => Ok(None),
        }
    }

    /// Goes on as far as it can; the waker is woken when there is more.
    #[inline]
    pub(crate) fn poll(&mut self, py: Python<'_>, cx: &mut Context<'_>) -> Poll<Quick<Item>> {
        match &mut self.stage {
            Stage::Put(message) => {
                let (priority, item) = match self.queue.stored(py, message) {
                    Ok(stored) => stored,
                    Err(error) => return Poll::Ready(Err(error)),
                };
                match self.queue.try_put(priority, item) {
                    Ok(outcome) => return Poll::Ready(self.put_ended(py, outcome)),
                    Err(item) => {
                        let put = self.queue.line().wait_put(priority, item, self.timeout);
                        self.stage = Stage::Putting(put);
                    }
                }
            }
            Stage::Get => match self.queue.try_get() {
                None => self.stage = Stage::Getting(self.queue.line().wait_get(self.timeout)),
                item => return Poll::Ready(self.get_ended(py, item)),
            },
            Stage::Putting(_) | Stage::Getting(_) | Stage::Done => {}
        }
        match &mut self.stage {
            Stage::Putting(put) => {
                scope(py, || put.as_mut().poll(cx)).map(|outcome| self.put_ended(py, outcome))
            }
            Stage::Getting(get) => {
                scope(py, || get.as_mut().poll(cx)).map(|item| self.get_ended(py, item))
            }
            Stage::Put(_) | Stage::Get | Stage::Done => Poll::Pending,
        }
    }

    /// The operation is over, unless it failed before it waited: then it may be tried once more.
    #[inline]
    fn put_ended(&mut self, py: Python<'_>, outcome: Put) -> Quick<Item> {
        let ended = self.queue.put_ended(py, outcome, self.timeout)?;
        if let Stage::Put(message) = std::mem::replace(&mut self.stage, Stage::Done) {
            drop(message.into_bound(py));
        }
        Ok(ended)
    }

    #[inline]
    fn get_ended(&mut self, py: Python<'_>, item: Option<Item>) -> Quick<Item> {
        if item.is_some() {
            self.stage = Stage::Done;
        }
        self.queue.get_ended(py, item, self.timeout)
    }

    /// Drops it where the interpreter is attached.
    #[inline]
    pub(crate) fn release(self, py: Python<'_>) {
        match self.queue {
            Queue::Fast(queue) => drop(queue.into_bound(py)),
            Queue::Message(queue) => drop(queue.into_bound(py)),
            Queue::Ring(queue) => drop(queue.into_bound(py)),
        }
        match self.stage {
            Stage::Get | Stage::Done => {}
            stage => drop(stage),
        }
    }

    /// What holds those who wait for this.
    pub(crate) fn held(&self) -> &Arc<Held> {
        self.queue.held()
    }

    pub(crate) fn traverse(&self, visit: &mut dyn FnMut(&Py<PyAny>) -> c_int) -> c_int {
        let outcome = visit(self.queue.as_any());
        match &self.stage {
            Stage::Put(message) if outcome == 0 => visit(message),
            // The message of a put in line is the queue's to show.
            _ => outcome,
        }
    }
}
