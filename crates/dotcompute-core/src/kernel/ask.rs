//! Asking a kernel: sending a message and waiting for its own reply.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context as TaskContext, Poll};
use std::time::{Duration, Instant};

use dotcompute_mailbox::sync::lock;
use dotcompute_mailbox::wait;

use super::send::{send, send_blocking};
use super::{Cell, KernelRef};
use crate::ask::AskFailure;
use crate::dead_letter::DeadLetterReason;
use crate::error::{AskError, SendError};
use crate::lifecycle::wake_all;
use crate::message::{AskToken, Envelope, Message};
use crate::timer;

impl<M: Message, R: Message> KernelRef<M, R> {
    /// Sends a message and waits for its own reply; concurrent asks never mix.
    ///
    /// # Errors
    ///
    /// See [`AskError`].
    ///
    /// # Cancel safety
    ///
    /// Dropping the future ends the ask: the kernel skips the message if it has not received it
    /// yet, and a reply that still comes is a dead letter.
    pub async fn ask(&self, message: impl Into<Envelope<M>>) -> Result<Envelope<R>, AskError<M>> {
        self.ask_until(message.into(), None).await
    }

    /// [`ask`](Self::ask) that gives up after `timeout`, sending included.
    ///
    /// # Errors
    ///
    /// See [`AskError`].
    pub async fn ask_timeout(
        &self,
        message: impl Into<Envelope<M>>,
        timeout: Duration,
    ) -> Result<Envelope<R>, AskError<M>> {
        self.ask_until(message.into(), timer::after(timeout)).await
    }

    /// [`ask`](Self::ask) that waits on the calling thread, for ever without a `timeout`.
    ///
    /// # Errors
    ///
    /// See [`AskError`].
    pub fn ask_blocking(
        &self,
        message: impl Into<Envelope<M>>,
        timeout: Option<Duration>,
    ) -> Result<Envelope<R>, AskError<M>> {
        let deadline = timeout.and_then(timer::after);
        let mut envelope = message.into();
        let mut waiting = Waiting::register(&self.cell, &mut envelope);
        send_blocking(&*self.cell, envelope, deadline).map_err(|error| waiting.not_sent(error))?;
        match wait::block_on_until(&mut waiting, deadline) {
            Ok(outcome) => outcome,
            Err(_) => Err(AskError::Timeout { kernel: self.id().clone() }),
        }
    }

    async fn ask_until(
        &self,
        mut envelope: Envelope<M>,
        deadline: Option<Instant>,
    ) -> Result<Envelope<R>, AskError<M>> {
        let mut waiting = Waiting::register(&self.cell, &mut envelope);
        send(&*self.cell, envelope, deadline).await.map_err(|error| waiting.not_sent(error))?;
        if deadline.is_none() {
            return waiting.await;
        }
        match timer::timeout_at(deadline, waiting).await {
            Some(outcome) => outcome,
            None => Err(AskError::Timeout { kernel: self.id().clone() }),
        }
    }
}

impl<M: Message, R: Message> Cell<M, R> {
    /// The kernel received the message of this ask. `false`: the ask has ended.
    pub(crate) fn ask_received(&self, token: AskToken) -> bool {
        lock(&self.asks).received(token)
    }

    pub(crate) fn fail_ask(&self, token: AskToken, failure: AskFailure) {
        let waker = lock(&self.asks).fail(token, failure);
        wake_all(waker);
    }

    pub(crate) fn forget_received_asks(&self) {
        lock(&self.asks).forget_received();
    }
}

/// An ask that waits for its reply; dropping it ends the ask.
struct Waiting<'a, M: Message, R: Message> {
    cell: &'a Cell<M, R>,
    token: Option<AskToken>,
}

impl<'a, M: Message, R: Message> Waiting<'a, M, R> {
    fn register(cell: &'a Cell<M, R>, envelope: &mut Envelope<M>) -> Self {
        let token = lock(&cell.asks).register(envelope.id);
        envelope.ask = Some(token);
        Self { cell, token: Some(token) }
    }

    /// The message was not accepted, so there never was an ask. The envelope that comes back can be
    /// sent again, and must not name one.
    fn not_sent(&mut self, mut error: SendError<M>) -> AskError<M> {
        if let Some(token) = self.token.take() {
            lock(&self.cell.asks).withdraw(token);
        }
        error.envelope_mut().ask = None;
        AskError::NotSent(error)
    }
}

impl<M: Message, R: Message> Future for Waiting<'_, M, R> {
    type Output = Result<Envelope<R>, AskError<M>>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<Self::Output> {
        let token = self.token.expect("an ask is not polled after its reply");
        let mut stale = None;
        let polled = lock(&self.cell.asks).poll(token, cx.waker(), &mut stale);
        let Poll::Ready(outcome) = polled else { return Poll::Pending };
        self.token = None;
        let kernel = || self.cell.id.clone();
        Poll::Ready(outcome.map_err(|failure| match failure {
            AskFailure::Dropped => AskError::Dropped { kernel: kernel() },
            AskFailure::Stopped => AskError::Stopped { kernel: kernel() },
            AskFailure::Failed(fault) => AskError::Failed { kernel: kernel(), fault },
        }))
    }
}

impl<M: Message, R: Message> Drop for Waiting<'_, M, R> {
    fn drop(&mut self) {
        if let Some(token) = self.token {
            let unread = lock(&self.cell.asks).cancel(token);
            if let Some(reply) = unread {
                self.cell.dead_reply(reply, DeadLetterReason::LateReply);
            }
        }
    }
}
