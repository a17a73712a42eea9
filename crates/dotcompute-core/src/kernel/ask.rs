//! Asking a kernel: sending a message and waiting for its own reply.

use std::future::Future;
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll, Waker};
use std::time::{Duration, Instant};

use dotcompute_mailbox::{self as mailbox, wait};

use super::send::{Accept, send_blocking, send_until, sent};
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
        match self.cell.link() {
            Some(link) => ask_through(&*self.cell, &link.home, message.into(), None).await,
            None => self.asking(message).await,
        }
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
        let deadline = timer::after(timeout);
        if let Some(link) = self.cell.link() {
            return ask_through(&*self.cell, &link.home, message.into(), deadline).await;
        }
        let mut asking = self.asking(message);
        match timer::timeout_at(deadline, &mut asking).await {
            Some(outcome) => outcome,
            None => Err(asking.give_up()),
        }
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
        let mut waiting = Waiting::new(&self.cell);
        waiting.register(&mut envelope, None);
        let mut unsent = Some(envelope);
        if let Some(helper) = self.cell.helper.get() {
            let mut outcome = None;
            // In the place before the message is sent, which else would wake who drives the kernel.
            helper.in_place(&mut |place| {
                let offered = unsent.take().map(|envelope| self.cell.offer(envelope));
                match offered.transpose() {
                    Err(error) => outcome = Some(Err(waiting.not_sent(error))),
                    Ok(left) => unsent = left.flatten(),
                }
                if unsent.is_some() || outcome.is_some() {
                    return;
                }
                place.drive(deadline, &mut |cx| {
                    if let Poll::Ready(ready) = Pin::new(&mut waiting).poll(cx) {
                        outcome = Some(ready);
                    }
                    outcome.is_some()
                });
            });
            if let Some(outcome) = outcome {
                return outcome;
            }
        }
        if let Some(envelope) = unsent {
            send_blocking(&*self.cell, envelope, deadline).map_err(|e| waiting.not_sent(e))?;
        }
        match wait::block_on_until(&mut waiting, deadline) {
            Ok(outcome) => outcome,
            Err(_) => Err(AskError::Timeout { kernel: self.id().clone() }),
        }
    }

    fn asking<I: Into<Envelope<M>>>(&self, message: I) -> Asking<'_, M, R, I> {
        Asking { waiting: Waiting::new(&self.cell), stage: Stage::Holding(message) }
    }
}

impl<M: Message, R: Message> Cell<M, R> {
    /// The kernel received the message of this ask. `false`: the ask has ended.
    pub(crate) fn ask_received(&self, token: AskToken) -> bool {
        let received = self.asks.lock().received(token);
        match received {
            Received::Waiting => true,
            Received::Ended => false,
            Received::At(origin) => {
                let waits = origin.waits();
                if !waits {
                    self.asks.lock().expire(token);
                }
                waits
            }
        }
    }

    /// Whether somebody waits for its reply still.
    pub(crate) fn ask_waits(&self, token: AskToken) -> bool {
        self.asks.lock().waits(token)
    }

    pub(crate) fn fail_ask(&self, token: AskToken, failure: AskFailure) {
        let tell = self.asks.lock().fail(token, failure);
        tell_all([tell], Some(&self.id));
    }

    pub(crate) fn forget_received_asks(&self) {
        self.asks.lock().forget_received();
    }
}

/// An ask in progress; dropping it ends the ask.
struct Asking<'a, M: Message, R: Message, I> {
    waiting: Waiting<'a, M, R>,
    stage: Stage<'a, M, I>,
}

enum Stage<'a, M, I> {
    /// Not polled yet.
    Holding(I),
    /// The message waits for room.
    Blocked(mailbox::Blocked<'a, Envelope<M>>),
    Sent,
}

/// Nothing in it is ever pinned.
impl<M: Message, R: Message, I> Unpin for Asking<'_, M, R, I> {}

impl<M: Message, R: Message, I> Asking<'_, M, R, I> {
    /// Ends an ask that has not ended: its time is over.
    fn give_up(mut self) -> AskError<M> {
        if let Stage::Blocked(blocked) = std::mem::replace(&mut self.stage, Stage::Sent)
            && let Err(error) = sent(self.waiting.cell, blocked.give_up())
        {
            return self.waiting.not_sent(error);
        }
        AskError::Timeout { kernel: self.waiting.cell.id.clone() }
    }
}

impl<M: Message, R: Message, I: Into<Envelope<M>>> Future for Asking<'_, M, R, I> {
    type Output = Result<Envelope<R>, AskError<M>>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<Self::Output> {
        let cell = self.waiting.cell;
        match std::mem::replace(&mut self.stage, Stage::Sent) {
            Stage::Holding(message) => {
                let mut envelope = message.into();
                self.waiting.register(&mut envelope, Some(cx.waker()));
                match cell.begin_send(envelope, cx) {
                    // There is no need to look: its end, also one that has come by now, wakes this
                    // task. The asks are closed after the mailbox, so it was open when it was made.
                    Ok(None) => Poll::Pending,
                    Ok(Some(blocked)) => {
                        self.stage = Stage::Blocked(blocked);
                        Poll::Pending
                    }
                    Err(error) => Poll::Ready(Err(self.waiting.not_sent(error))),
                }
            }
            Stage::Blocked(mut blocked) => match Pin::new(&mut blocked).poll(cx) {
                Poll::Pending => {
                    self.stage = Stage::Blocked(blocked);
                    Poll::Pending
                }
                Poll::Ready(outcome) => match sent(cell, outcome) {
                    Ok(()) => Pin::new(&mut self.waiting).poll(cx),
                    Err(error) => Poll::Ready(Err(self.waiting.not_sent(error))),
                },
            },
            Stage::Sent => Pin::new(&mut self.waiting).poll(cx),
        }
    }
}

/// An ask that waits for its reply; dropping it ends the ask.
struct Waiting<'a, M: Message, R: Message> {
    cell: &'a Cell<M, R>,
    token: Option<AskToken>,
}

impl<'a, M: Message, R: Message> Waiting<'a, M, R> {
    fn new(cell: &'a Cell<M, R>) -> Self {
        Self { cell, token: None }
    }

    fn register(&mut self, envelope: &mut Envelope<M>, waker: Option<&Waker>) {
        self.token = Some(self.cell.asks.lock().register(envelope.id, waker));
        envelope.ask = self.token;
    }

    /// The message was not accepted, so there never was an ask. The envelope that comes back can be
    /// sent again, and must not name one.
    fn not_sent(&mut self, mut error: SendError<M>) -> AskError<M> {
        if let Some(token) = self.token.take() {
            self.cell.asks.lock().withdraw(token);
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
        let polled = self.cell.asks.lock().poll(token, cx.waker(), &mut stale);
        let Poll::Ready(outcome) = polled else { return Poll::Pending };
        self.token = None;
        Poll::Ready(outcome.map_err(|failure| ask_error(&self.cell.id, failure)))
    }
}

impl<M: Message, R: Message> Drop for Waiting<'_, M, R> {
    fn drop(&mut self) {
        if let Some(token) = self.token {
            let unread = self.cell.asks.lock().cancel(token);
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
    let token = home.0.lock().register(envelope.id, None);
    let mut waiting =
        Through { first, home: &**home, token: Some(token), kind: PhantomData::<fn(M)> };
    envelope.ask = first.relay(envelope.id, Origin::new(home, token, first.end()));
    // After it is registered, so that one of the two sees the other: this, or the kernel that fails.
    let refused = match first.failed_stage() {
        Some((kernel, fault)) => Err(SendError::Failed { envelope, kernel, fault }),
        None => send_until(first, envelope, deadline).await,
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
        let polled = self.home.0.lock().poll(token, cx.waker(), &mut stale);
        let Poll::Ready(outcome) = polled else { return Poll::Pending };
        self.token = None;
        Poll::Ready(outcome.map_err(|failure| ask_error(self.first.id(), failure)))
    }
}

impl<A: Accept<M> + ?Sized, M: Message, R: Message> Drop for Through<'_, A, M, R> {
    fn drop(&mut self) {
        let Some(token) = self.token else { return };
        let unread = self.home.0.lock().cancel(token);
        if let Some(reply) = unread {
            let reason = DeadLetterReason::LateReply;
            self.first.dead_letter(DeadLetter::of(self.first.id(), reply, reason, false));
        }
    }
}
