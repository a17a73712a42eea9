//! Reading the replies that no ask has claimed.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll};
use std::time::Duration;

use dotcompute_mailbox as mailbox;

use super::{Cell, KernelRef};
use crate::error::ReceiveError;
use crate::lifecycle::KernelState;
use crate::message::{Envelope, Message};
use crate::timer;

impl<M: Message, R: Message> KernelRef<M, R> {
    /// The next reply that no ask has claimed.
    ///
    /// # Errors
    ///
    /// See [`ReceiveError`]. Replies made before a fault are read first, then comes the error.
    ///
    /// # Cancel safety
    ///
    /// A reply is taken exactly when the future is ready.
    pub async fn receive(&self) -> Result<Envelope<R>, ReceiveError> {
        self.cell.check_open()?;
        self.cell.replies.receive().await.map_err(|_closed| self.cell.no_reply())
    }

    /// [`receive`](Self::receive) as a future of its own, which owns what it needs.
    ///
    /// # Errors
    ///
    /// As for `receive`.
    ///
    /// # Cancel safety
    ///
    /// As for `receive`.
    pub fn receiving(&self) -> Receiving<M, R> {
        Receiving { cell: Arc::clone(&self.cell), receive: self.cell.replies.receive_owned() }
    }

    /// [`receive`](Self::receive) that gives up after `timeout`.
    ///
    /// # Errors
    ///
    /// See [`ReceiveError`].
    pub async fn receive_timeout(&self, timeout: Duration) -> Result<Envelope<R>, ReceiveError> {
        match timer::timeout_at(timer::after(timeout), self.receive()).await {
            Some(outcome) => outcome,
            None => Err(ReceiveError::Timeout { kernel: self.id().clone() }),
        }
    }

    /// The next reply, without waiting.
    ///
    /// # Errors
    ///
    /// See [`ReceiveError`]; `Empty` if there is none now.
    pub fn try_receive(&self) -> Result<Envelope<R>, ReceiveError> {
        self.cell.check_open()?;
        self.cell.replies.try_receive().map_err(|error| match error {
            mailbox::TryReceiveError::Empty => ReceiveError::Empty { kernel: self.id().clone() },
            mailbox::TryReceiveError::Closed => self.cell.no_reply(),
        })
    }

    /// Calls `each` with every reply that waits to be read, for a garbage collector's sake. It runs
    /// under the mailbox's lock, so `each` must not use the kernel.
    pub fn inspect_replies(&self, mut each: impl FnMut(&Envelope<R>)) {
        self.cell.replies.inspect(|_, reply| each(reply));
    }

    /// The next reply, if there is one now: [`try_receive`](Self::try_receive) for those who try
    /// first and then wait.
    ///
    /// # Errors
    ///
    /// As for [`receive`](Self::receive).
    #[inline]
    pub fn receive_now(&self) -> Result<Option<Envelope<R>>, ReceiveError> {
        if !self.cell.is_open() {
            self.cell.check_open()?;
        }
        match self.cell.replies.try_receive() {
            Ok(envelope) => Ok(Some(envelope)),
            Err(mailbox::TryReceiveError::Empty) => Ok(None),
            Err(mailbox::TryReceiveError::Closed) => Err(self.cell.no_reply()),
        }
    }

    /// [`receive`](Self::receive) that waits on the calling thread, for ever without a `timeout`.
    ///
    /// # Errors
    ///
    /// See [`ReceiveError`].
    pub fn receive_blocking(&self, timeout: Option<Duration>) -> Result<Envelope<R>, ReceiveError> {
        self.cell.check_open()?;
        let deadline = timeout.and_then(timer::after);
        self.cell.replies.receive_blocking(deadline).map_err(|error| match error {
            mailbox::ReceiveError::Timeout => ReceiveError::Timeout { kernel: self.id().clone() },
            mailbox::ReceiveError::Closed => self.cell.no_reply(),
        })
    }

    /// Up to `max` replies at once, appended to `into`, without waiting; how many.
    ///
    /// # Errors
    ///
    /// See [`ReceiveError`]; `Empty` if there is not even one.
    pub fn try_receive_batch(
        &self,
        max: usize,
        into: &mut Vec<Envelope<R>>,
    ) -> Result<usize, ReceiveError> {
        self.cell.check_open()?;
        self.cell.replies.try_receive_batch(max, into).map_err(|error| match error {
            mailbox::TryReceiveError::Empty => ReceiveError::Empty { kernel: self.id().clone() },
            mailbox::TryReceiveError::Closed => self.cell.no_reply(),
        })
    }

    /// Up to `max` replies at once, appended to `into`; waits for the first one; how many.
    ///
    /// # Errors
    ///
    /// See [`ReceiveError`].
    ///
    /// # Cancel safety
    ///
    /// Replies are taken exactly when the future is ready; they are in `into` then.
    pub async fn receive_batch(
        &self,
        max: usize,
        into: &mut Vec<Envelope<R>>,
    ) -> Result<usize, ReceiveError> {
        self.cell.check_open()?;
        self.cell.replies.receive_batch(max, into).await.map_err(|_closed| self.cell.no_reply())
    }

    /// [`receive_batch`](Self::receive_batch) that waits on the calling thread.
    ///
    /// # Errors
    ///
    /// See [`ReceiveError`].
    pub fn receive_batch_blocking(
        &self,
        max: usize,
        into: &mut Vec<Envelope<R>>,
        timeout: Option<Duration>,
    ) -> Result<usize, ReceiveError> {
        self.cell.check_open()?;
        let deadline = timeout.and_then(timer::after);
        self.cell.replies.receive_batch_blocking(max, into, deadline).map_err(|error| match error {
            mailbox::ReceiveError::Timeout => ReceiveError::Timeout { kernel: self.id().clone() },
            mailbox::ReceiveError::Closed => self.cell.no_reply(),
        })
    }
}

impl<M: Message, R: Message> Cell<M, R> {
    fn no_reply(&self) -> ReceiveError {
        let kernel = self.id.clone();
        let (state, fault) = self.look(|l| (l.state, l.fault.clone()));
        match (state, fault) {
            (KernelState::Failed, Some(fault)) => ReceiveError::Failed { kernel, fault },
            // The output mailbox of a kernel that goes on is closed while it is connected.
            _ if self.is_connected() || !self.has_ended() => ReceiveError::Connected { kernel },
            _ => ReceiveError::Stopped { kernel },
        }
    }

    fn check_open(&self) -> Result<(), ReceiveError> {
        if self.is_open() {
            return Ok(());
        }
        match self.state() {
            state @ (KernelState::Created | KernelState::Launched) => {
                Err(ReceiveError::NotActive { kernel: self.id.clone(), state })
            }
            // Ended without ever having been active: the closed mailbox says so.
            _ => Ok(()),
        }
    }
}

/// A wait for a reply that no ask has claimed, made by [`KernelRef::receiving`].
#[must_use = "a receive does nothing unless it is polled"]
pub struct Receiving<M, R> {
    cell: Arc<Cell<M, R>>,
    receive: mailbox::ReceiveOwned<Envelope<R>>,
}

impl<M: Message, R: Message> Future for Receiving<M, R> {
    type Output = Result<Envelope<R>, ReceiveError>;

    #[inline]
    fn poll(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<Self::Output> {
        if !self.cell.is_open() {
            self.cell.check_open()?;
        }
        let received = Pin::new(&mut self.receive).poll(cx);
        received.map(|received| received.map_err(|_closed| self.cell.no_reply()))
    }
}

impl<M, R> fmt::Debug for Receiving<M, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Receiving").field(&self.cell.id).finish()
    }
}
