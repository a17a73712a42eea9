//! A send that may wait for room.

use crate::bands::Band;
use crate::error::SendError;
use crate::mailbox::{Admission, Mailbox};
use crate::wait_list::{Key, Wakes};
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

/// A send in progress, made by [`Mailbox::send`]. It does nothing until it is polled.
#[must_use = "a send does nothing unless it is awaited"]
pub struct Send<'a, T> {
    mailbox: &'a Mailbox<T>,
    band: Band,
    stage: Stage<'a, T>,
}

enum Stage<'a, T> {
    /// Not polled yet.
    Holding(T),
    Blocked(Blocked<'a, T>),
    Done,
}

/// Nothing in it is ever pinned.
impl<T> Unpin for Send<'_, T> {}

impl<'a, T> Send<'a, T> {
    pub(crate) fn new(mailbox: &'a Mailbox<T>, band: Band, value: T) -> Self {
        Self { mailbox, band, stage: Stage::Holding(value) }
    }

    /// Ends the send now: as sent if it was admitted meanwhile, else with its message.
    ///
    /// # Errors
    ///
    /// [`SendError::Timeout`] with the message if it was not admitted, [`SendError::Closed`] if the
    /// mailbox was closed during the wait.
    ///
    /// # Panics
    ///
    /// If the send has already ended.
    pub fn give_up(self) -> Result<Admission<T>, SendError<T>> {
        match self.stage {
            Stage::Holding(value) => Err(SendError::Timeout(value)),
            Stage::Blocked(blocked) => blocked.give_up(),
            Stage::Done => unreachable!("a send that has ended cannot time out"),
        }
    }
}

impl<T> Future for Send<'_, T> {
    type Output = Result<Admission<T>, SendError<T>>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match std::mem::replace(&mut self.stage, Stage::Done) {
            Stage::Holding(value) => match self.mailbox.begin_send(self.band, value, context) {
                Begun::Ended(outcome) => Poll::Ready(outcome),
                Begun::Blocked(blocked) => {
                    self.stage = Stage::Blocked(blocked);
                    Poll::Pending
                }
            },
            Stage::Blocked(mut blocked) => match Pin::new(&mut blocked).poll(context) {
                Poll::Ready(outcome) => Poll::Ready(outcome),
                Poll::Pending => {
                    self.stage = Stage::Blocked(blocked);
                    Poll::Pending
                }
            },
            Stage::Done => panic!("a send was polled after it had ended"),
        }
    }
}

impl<T> fmt::Debug for Send<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Send").field("band", &self.band).finish_non_exhaustive()
    }
}

/// How a send began: see [`Mailbox::begin_send`].
#[must_use = "a send that is blocked has to be awaited"]
#[derive(Debug)]
pub enum Begun<'a, T> {
    /// It took no waiting.
    Ended(Result<Admission<T>, SendError<T>>),
    /// There is no room, and it waits in line.
    Blocked(Blocked<'a, T>),
}

/// A send that waits in line for room; its message lies in the mailbox. Dropped before it ended, it
/// drops its message, unless that was admitted meanwhile, and holds no one up.
#[must_use = "a send that is blocked has to be awaited"]
pub struct Blocked<'a, T> {
    mailbox: &'a Mailbox<T>,
    /// `None` once it has ended.
    key: Option<Key>,
}

impl<'a, T> Blocked<'a, T> {
    pub(crate) fn new(mailbox: &'a Mailbox<T>, key: Key) -> Self {
        Self { mailbox, key: Some(key) }
    }

    /// Ends the send now: as sent if it was admitted meanwhile, else with its message.
    ///
    /// # Errors
    ///
    /// [`SendError::Timeout`] with the message if it was not admitted, [`SendError::Closed`] if the
    /// mailbox was closed during the wait.
    ///
    /// # Panics
    ///
    /// If the send has already ended.
    pub fn give_up(mut self) -> Result<Admission<T>, SendError<T>> {
        let key = self.key.take().expect("a send that has ended cannot time out");
        let mut wakes = Wakes::default();
        let mut locked = self.mailbox.lock();
        let was_served = locked.senders.is_served(key);
        let (value, waker) = locked.senders.remove(key);
        wakes.discard(waker);
        match value {
            None => Ok(Admission::Accepted),
            Some(value) if was_served => Err(SendError::Closed(value)),
            Some(value) => {
                locked.rejected += 1;
                Err(SendError::Timeout(value))
            }
        }
    }
}

impl<T> Future for Blocked<'_, T> {
    type Output = Result<Admission<T>, SendError<T>>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let key = self.key.expect("a send is not polled after it has ended");
        let mut wakes = Wakes::default();
        let mut locked = self.mailbox.lock();
        if !locked.senders.is_served(key) {
            wakes.discard(locked.senders.set_waker(key, context));
            return Poll::Pending;
        }
        let (value, waker) = locked.senders.remove(key);
        drop(locked);
        self.key = None;
        drop(waker);
        Poll::Ready(match value {
            None => Ok(Admission::Accepted),
            Some(value) => Err(SendError::Closed(value)),
        })
    }
}

impl<T> Drop for Blocked<'_, T> {
    fn drop(&mut self) {
        if let Some(key) = self.key {
            let mut wakes = Wakes::default();
            // Declared before the lock, so dropped after it.
            let _message;
            let mut locked = self.mailbox.lock();
            let (value, waker) = locked.senders.remove(key);
            _message = value;
            wakes.discard(waker);
        }
    }
}

impl<T> fmt::Debug for Blocked<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Blocked").finish_non_exhaustive()
    }
}
