//! A send that may wait for room.

use crate::bands::Band;
use crate::error::{SendError, TrySendError};
use crate::mailbox::{Admission, Backpressure, Mailbox};
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
    stage: Stage<T>,
}

enum Stage<T> {
    /// Not polled yet.
    Holding(T),
    /// In line; the message lies there.
    Waiting(Key),
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
    pub fn give_up(mut self) -> Result<Admission<T>, SendError<T>> {
        match std::mem::replace(&mut self.stage, Stage::Done) {
            Stage::Holding(value) => Err(SendError::Timeout(value)),
            Stage::Waiting(key) => {
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
            Stage::Done => unreachable!("a send that has ended cannot time out"),
        }
    }

    fn start(
        &mut self,
        value: T,
        context: &Context<'_>,
    ) -> Poll<Result<Admission<T>, SendError<T>>> {
        let mut wakes = Wakes::default();
        let mut locked = self.mailbox.lock();
        let outcome = match locked.offer(self.band, value, &mut wakes) {
            Ok(admission) => Ok(admission),
            Err(TrySendError::Closed(value)) => Err(SendError::Closed(value)),
            Err(TrySendError::Full(value))
                if self.mailbox.backpressure() == Backpressure::Block =>
            {
                match locked.block(self.band, value, context, &mut wakes) {
                    None => Ok(Admission::Accepted),
                    Some(key) => {
                        self.stage = Stage::Waiting(key);
                        return Poll::Pending;
                    }
                }
            }
            Err(TrySendError::Full(value)) => {
                locked.rejected += 1;
                Err(SendError::Full(value))
            }
        };
        Poll::Ready(outcome)
    }
}

impl<T> Future for Send<'_, T> {
    type Output = Result<Admission<T>, SendError<T>>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match std::mem::replace(&mut self.stage, Stage::Done) {
            Stage::Holding(value) => self.start(value, context),
            Stage::Waiting(key) => {
                let mut wakes = Wakes::default();
                let mut locked = self.mailbox.lock();
                if !locked.senders.is_served(key) {
                    wakes.discard(locked.senders.set_waker(key, context));
                    drop(locked);
                    self.stage = Stage::Waiting(key);
                    return Poll::Pending;
                }
                let (value, waker) = locked.senders.remove(key);
                wakes.discard(waker);
                Poll::Ready(match value {
                    None => Ok(Admission::Accepted),
                    Some(value) => Err(SendError::Closed(value)),
                })
            }
            Stage::Done => panic!("a send was polled after it had ended"),
        }
    }
}

impl<T> Drop for Send<'_, T> {
    fn drop(&mut self) {
        if let Stage::Waiting(key) = self.stage {
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

impl<T> fmt::Debug for Send<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Send").field("band", &self.band).finish_non_exhaustive()
    }
}
