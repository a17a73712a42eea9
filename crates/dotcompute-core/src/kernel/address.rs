//! Handles for sending only.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::KernelRef;
use super::send::{
    Accept, send, send_batch, send_batch_blocking, send_blocking, send_until, try_send_batch,
};
use crate::error::{KernelId, SendError};
use crate::message::{Envelope, Message};
use crate::timer;

/// The sending side of a kernel that takes `M`, whatever it replies with. Cloning is cheap.
pub struct Address<M> {
    pub(crate) to: Arc<dyn Accept<M>>,
}

impl<M: Message, R: Message> KernelRef<M, R> {
    /// A handle for sending only, which hides the type of the replies.
    pub fn address(&self) -> Address<M> {
        Address { to: self.cell.clone() }
    }
}

impl<M: Message> Address<M> {
    /// The name of the kernel.
    pub fn kernel(&self) -> &KernelId {
        self.to.id()
    }

    /// As [`KernelRef::send`].
    ///
    /// # Errors
    ///
    /// See [`SendError`].
    pub fn send(
        &self,
        message: impl Into<Envelope<M>>,
    ) -> impl Future<Output = Result<(), SendError<M>>> {
        send(&*self.to, message)
    }

    /// As [`KernelRef::send_timeout`].
    ///
    /// # Errors
    ///
    /// See [`SendError`].
    pub async fn send_timeout(
        &self,
        message: impl Into<Envelope<M>>,
        timeout: Duration,
    ) -> Result<(), SendError<M>> {
        send_until(&*self.to, message, timer::after(timeout)).await
    }

    /// As [`KernelRef::try_send`].
    ///
    /// # Errors
    ///
    /// See [`SendError`].
    pub fn try_send(&self, message: impl Into<Envelope<M>>) -> Result<(), SendError<M>> {
        self.to.try_send(message.into())
    }

    /// As [`KernelRef::offer`].
    ///
    /// # Errors
    ///
    /// See [`SendError`].
    pub fn offer(
        &self,
        message: impl Into<Envelope<M>>,
    ) -> Result<Option<Envelope<M>>, SendError<M>> {
        self.to.offer(message.into())
    }

    /// As [`KernelRef::send_blocking`].
    ///
    /// # Errors
    ///
    /// See [`SendError`].
    pub fn send_blocking(
        &self,
        message: impl Into<Envelope<M>>,
        timeout: Option<Duration>,
    ) -> Result<(), SendError<M>> {
        send_blocking(&*self.to, message.into(), timeout.and_then(timer::after))
    }

    /// As [`KernelRef::try_send_batch`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn try_send_batch(
        &self,
        messages: &mut VecDeque<Envelope<M>>,
    ) -> Result<usize, SendError<M>> {
        try_send_batch(&*self.to, messages)
    }

    /// As [`KernelRef::send_batch`].
    ///
    /// # Errors
    ///
    /// As there.
    ///
    /// # Cancel safety
    ///
    /// As there.
    pub async fn send_batch(
        &self,
        messages: &mut VecDeque<Envelope<M>>,
    ) -> Result<(), SendError<M>> {
        send_batch(&*self.to, messages).await
    }

    /// As [`KernelRef::send_batch_blocking`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn send_batch_blocking(
        &self,
        messages: &mut VecDeque<Envelope<M>>,
        timeout: Option<Duration>,
    ) -> Result<(), SendError<M>> {
        send_batch_blocking(&*self.to, messages, timeout.and_then(timer::after))
    }
}

impl<M> Clone for Address<M> {
    fn clone(&self) -> Self {
        Self { to: Arc::clone(&self.to) }
    }
}

impl<M: Message> fmt::Debug for Address<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Address").field(self.kernel()).finish()
    }
}
