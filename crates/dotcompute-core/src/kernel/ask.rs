//! Asking a kernel: sending a message and waiting for its own reply.

use std::future::Future;
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll};
use std::time::{Duration, Instant};

use dotcompute_mailbox::sync::lock;
use dotcompute_mailbox::wait;

use super::send::{Accept, send, send_blocking};
use super::{Cell, KernelRef};
use crate::ask::{AskFailure, Received};
use crate::dead_letter::{DeadLetter, DeadLetterReason};
use crate::error::{AskError, KernelId, SendError};
use crate::message::{AskToken, Envelope, Message};
use crate::relay::{Home, Origin, tell_all};
use crate::timer;

impl<M: Message, R: Message> KernelRef<M, R> {
    /// Sends a message and waits for its own reply; concurrent asks never mix. Where the kernel is
    /// [connected](Self::connect), the last kernel replies.
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
        if let Some(link) = self.cell.link() {
            return wait::block_on(ask_through(&*self.cell, &link.home, envelope, deadline));
        }
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
        if let Some(link) = self.cell.link() {
            return ask_through(&*self.cell, &link.home, envelope, deadline).await;
        }
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
        let received = lock(&self.asks).received(token);
        match received {
            Received::Waiting => true,
            Received::Ended => false,
            Received::At(origin) => {
                let waits = origin.waits();
                if !waits {
                    lock(&self.asks).expire(token);
                }
                waits
            }
        }
    }

    /// Whether somebody waits for its reply still.
    pub(crate) fn ask_waits(&self, token: AskToken) -> bool {
        lock(&self.asks).waits(token)
    }

    pub(crate) fn fail_ask(&self, token: AskToken, failure: AskFailure) {
        let tell = lock(&self.asks).fail(token, failure);
        tell_all([tell], Some(&self.id));
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
        Poll::Ready(outcome.map_err(|failure| ask_error(&self.cell.id, failure)))
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

fn ask_error<M>(kernel: &KernelId, failure: AskFailure) -> AskError<M> {
    let kernel = kernel.clone();
    match failure {
        AskFailure::Dropped => AskError::Dropped { kernel },
        AskFailure::Stopped => AskError::Stopped { kernel },
        AskFailure::Failed(fault) => AskError::Failed { kernel, fault },
        AskFailure::Disconnected => AskError::Disconnected { kernel },
        AskFailure::WrongType(found) => AskError::WrongType { kernel, found },
        AskFailure::In(there) => ask_error(&there.0, there.1),
    }
}

/// Asks the kernel `first`, which may be connected, for a reply to `home`.
pub(super) async fn ask_through<M: Message, R: Message>(
    first: &(impl Accept<M> + ?Sized),
    home: &Arc<Home<R>>,
    mut envelope: Envelope<M>,
    deadline: Option<Instant>,
) -> Result<Envelope<R>, AskError<M>> {
    let token = lock(&home.0).register(envelope.id);
    let mut waiting =
        Through { first, home: &**home, token: Some(token), kind: PhantomData::<fn(M)> };
    envelope.ask = first.relay(envelope.id, Origin::new(home, token, first.end()));
    // After it is registered, so that one of the two sees the other: this, or the kernel that fails.
    let refused = match first.failed_stage() {
        Some((kernel, fault)) => Err(SendError::Failed { envelope, kernel, fault }),
        None => send(first, envelope, deadline).await,
    };
    if let Err(mut error) = refused {
        let envelope = error.envelope_mut();
        if let Some(token) = envelope.ask.take() {
            drop(first.take_back(token));
        }
        return Err(AskError::NotSent(error));
    }
    match timer::timeout_at(deadline, &mut waiting).await {
        Some(outcome) => outcome,
        None => Err(AskError::Timeout { kernel: first.id().clone() }),
    }
}

/// An ask of connected kernels that waits for its reply; dropping it ends the ask.
struct Through<'a, A: ?Sized, M: Message, R: Message>
where
    A: Accept<M>,
{
    first: &'a A,
    home: &'a Home<R>,
    token: Option<AskToken>,
    kind: PhantomData<fn(M)>,
}

impl<A: Accept<M> + ?Sized, M: Message, R: Message> Future for Through<'_, A, M, R> {
    type Output = Result<Envelope<R>, AskError<M>>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<Self::Output> {
        let token = self.token.expect("an ask is not polled after its reply");
        let mut stale = None;
        let polled = lock(&self.home.0).poll(token, cx.waker(), &mut stale);
        let Poll::Ready(outcome) = polled else { return Poll::Pending };
        self.token = None;
        Poll::Ready(outcome.map_err(|failure| ask_error(self.first.id(), failure)))
    }
}

impl<A: Accept<M> + ?Sized, M: Message, R: Message> Drop for Through<'_, A, M, R> {
    fn drop(&mut self) {
        let Some(token) = self.token else { return };
        let unread = lock(&self.home.0).cancel(token);
        if let Some(reply) = unread {
            let reason = DeadLetterReason::LateReply;
            self.first.dead_letter(DeadLetter::of(self.first.id(), reply, reason, false));
        }
    }
}
