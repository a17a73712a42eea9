//! The way of a message into a kernel, the same for every kind of handle: lifecycle check, admission,
//! and what the policy dropped.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context as TaskContext, Poll};
use std::time::{Duration, Instant};

use dotcompute_mailbox::{self as mailbox, Admission, Backpressure, Band, Mailbox};

use super::{Cell, KernelRef};
use crate::ask::AskFailure;
use crate::dead_letter::{self, DeadLetter};
use crate::error::{Fault, KernelId, SendError};
use crate::id::MessageId;
use crate::lifecycle::KernelState;
use crate::message::{AskToken, Envelope, Message};
use crate::pipeline::Key;
use crate::relay::{Origin, tell_all};
use crate::timer;

impl<M: Message, R: Message> KernelRef<M, R> {
    /// Sends a message; waits while the mailbox is full, if its policy is to block.
    ///
    /// # Errors
    ///
    /// The message comes back in every error: see [`SendError`].
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped before it is ready, the message was either accepted or is dropped
    /// with the future; it never takes room without being delivered.
    pub fn send(
        &self,
        message: impl Into<Envelope<M>>,
    ) -> impl Future<Output = Result<(), SendError<M>>> {
        send(&*self.cell, message)
    }

    /// [`send`](Self::send) that gives up after `timeout`.
    ///
    /// # Errors
    ///
    /// See [`SendError`].
    pub async fn send_timeout(
        &self,
        message: impl Into<Envelope<M>>,
        timeout: Duration,
    ) -> Result<(), SendError<M>> {
        send_until(&*self.cell, message, timer::after(timeout)).await
    }

    /// Sends a message without waiting.
    ///
    /// # Errors
    ///
    /// See [`SendError`]; `Full` if a policy that blocks or rejects finds the mailbox full.
    #[inline]
    pub fn try_send(&self, message: impl Into<Envelope<M>>) -> Result<(), SendError<M>> {
        self.cell.try_send(message.into())
    }

    /// [`send`](Self::send) as far as it takes no waiting; unlike [`try_send`](Self::try_send), for
    /// those who wait if it comes back: it is not counted as rejected then.
    ///
    /// # Errors
    ///
    /// As for `send`.
    #[inline]
    pub fn offer(
        &self,
        message: impl Into<Envelope<M>>,
    ) -> Result<Option<Envelope<M>>, SendError<M>> {
        self.cell.offer(message.into())
    }

    /// [`send`](Self::send) that waits on the calling thread, for ever without a `timeout`.
    ///
    /// # Errors
    ///
    /// See [`SendError`].
    #[inline]
    pub fn send_blocking(
        &self,
        message: impl Into<Envelope<M>>,
        timeout: Option<Duration>,
    ) -> Result<(), SendError<M>> {
        send_blocking(&*self.cell, message.into(), timeout.and_then(timer::after))
    }

    /// Sends what there is room for of `messages`, from the front, without waiting and under one
    /// lock; how many were accepted. What found no room is left in `messages`. Under the policies
    /// that drop there is room for all: those that a policy then drops are counted, as always.
    ///
    /// ```
    /// use std::collections::VecDeque;
    /// use dotcompute_core::{Backpressure, Context, Envelope, Message, Runtime};
    ///
    /// struct Number(u64);
    /// impl Message for Number {
    ///     const TYPE_NAME: &'static str = "Number";
    /// }
    ///
    /// let runtime = Runtime::builder().build();
    /// let kernel = runtime.kernel("k").capacity(4).launch(
    ///     |mut context: Context<Number, Number>| async move {
    ///         context.stopping().await;
    ///         Ok(())
    ///     },
    /// )?;
    /// kernel.activate()?;
    /// let mut numbers: VecDeque<Envelope<Number>> = (0..6).map(|n| Number(n).into()).collect();
    /// assert_eq!(kernel.try_send_batch(&mut numbers)?, 4);
    /// assert_eq!(numbers[0].message.0, 4);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// If the kernel takes no messages: the first one comes back in the [`SendError`], the others
    /// are left in `messages`.
    pub fn try_send_batch(
        &self,
        messages: &mut VecDeque<Envelope<M>>,
    ) -> Result<usize, SendError<M>> {
        try_send_batch(&*self.cell, messages)
    }

    /// Sends all of `messages`, from the front, as many at a time as there is room for; waits while
    /// the mailbox is full, if its policy is to block. When it is done `messages` is empty.
    ///
    /// # Errors
    ///
    /// See [`SendError`]: it holds the first message that was not accepted; those that follow it
    /// are left in `messages`.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped before it is ready, what was not accepted is in `messages`.
    pub async fn send_batch(
        &self,
        messages: &mut VecDeque<Envelope<M>>,
    ) -> Result<(), SendError<M>> {
        send_batch(&*self.cell, messages).await
    }

    /// [`send_batch`](Self::send_batch) that waits on the calling thread, for ever without a
    /// `timeout` for all of them together.
    ///
    /// # Errors
    ///
    /// As for `send_batch`.
    pub fn send_batch_blocking(
        &self,
        messages: &mut VecDeque<Envelope<M>>,
        timeout: Option<Duration>,
    ) -> Result<(), SendError<M>> {
        send_batch_blocking(&*self.cell, messages, timeout.and_then(timer::after))
    }
}

impl<M: Message, R: Message> Cell<M, R> {
    /// The send came back: why, as far as the kernel's state tells.
    fn refusal(&self, envelope: Envelope<M>) -> SendError<M> {
        let kernel = self.id.clone();
        let (state, fault) = self.look(|l| (l.state, l.fault.clone()));
        match (state, fault) {
            (KernelState::Failed, Some(fault)) => SendError::Failed { envelope, kernel, fault },
            (KernelState::Created | KernelState::Launched, _) => {
                SendError::NotActive { envelope, kernel, state }
            }
            _ => SendError::Stopped { envelope, kernel },
        }
    }
}

/// The way of a message into a kernel, the same for every kind of handle: lifecycle check,
/// admission, and what the policy dropped.
pub(crate) trait Accept<M: Message>: Send + Sync {
    fn is_open(&self) -> bool;
    fn mailbox(&self) -> &Mailbox<Envelope<M>>;
    fn id(&self) -> &KernelId;
    fn refusal(&self, envelope: Envelope<M>) -> SendError<M>;
    fn fail_ask(&self, token: AskToken, failure: AskFailure);
    /// Registers an ask that waits elsewhere for the message `id`; `None` if the kernel has ended,
    /// and who asks was told.
    fn relay(&self, id: MessageId, origin: Origin) -> Option<AskToken>;
    /// Takes back an ask that was [registered](Self::relay) for a message that was not accepted;
    /// `None` if it has ended.
    fn take_back(&self, token: AskToken) -> Option<Origin>;
    /// Whether it has failed, and waits to be terminated.
    fn has_failed(&self) -> bool;
    /// The last kernel of the pipeline that begins here.
    fn end(&self) -> Key;
    /// The first kernel, from this one on, that has failed.
    fn failed_stage(&self) -> Option<(KernelId, Fault)>;
    fn dead_letter(&self, letter: DeadLetter);

    /// Sends without waiting.
    #[inline]
    fn try_send(&self, envelope: Envelope<M>) -> Result<(), SendError<M>> {
        if !self.is_open() {
            return Err(self.refusal(envelope));
        }
        let band = Band::from_priority(envelope.priority);
        match self.mailbox().try_send(band, envelope) {
            Ok(Admission::Accepted) => Ok(()),
            Ok(admission) => {
                admitted(self, admission);
                Ok(())
            }
            Err(mailbox::TrySendError::Full(envelope)) => Err(full(self, envelope)),
            Err(mailbox::TrySendError::Closed(envelope)) => Err(self.refusal(envelope)),
        }
    }

    /// Sends, or waits in line for room if that is the policy.
    #[inline]
    fn begin_send(
        &self,
        envelope: Envelope<M>,
        cx: &TaskContext<'_>,
    ) -> Result<Option<mailbox::Blocked<'_, Envelope<M>>>, SendError<M>> {
        if !self.is_open() {
            return Err(self.refusal(envelope));
        }
        let band = Band::from_priority(envelope.priority);
        match self.mailbox().begin_send(band, envelope, cx) {
            mailbox::Begun::Ended(outcome) => sent(self, outcome).map(|()| None),
            mailbox::Begun::Blocked(blocked) => Ok(Some(blocked)),
        }
    }

    /// Sends as far as that takes no waiting; what a policy that blocks has no room for comes back.
    #[inline]
    fn offer(&self, envelope: Envelope<M>) -> Result<Option<Envelope<M>>, SendError<M>> {
        if self.mailbox().backpressure() != Backpressure::Block {
            return self.try_send(envelope).map(|()| None);
        }
        if !self.is_open() {
            return Err(self.refusal(envelope));
        }
        match self.mailbox().offer(Band::from_priority(envelope.priority), envelope) {
            // A policy that blocks drops nothing.
            Ok(_) => Ok(None),
            Err(mailbox::TrySendError::Full(envelope)) => Ok(Some(envelope)),
            Err(mailbox::TrySendError::Closed(envelope)) => Err(self.refusal(envelope)),
        }
    }
}

impl<M: Message, R: Message> Accept<M> for Cell<M, R> {
    #[inline]
    fn is_open(&self) -> bool {
        self.is_open()
    }

    #[inline]
    fn mailbox(&self) -> &Mailbox<Envelope<M>> {
        &self.mailbox
    }

    fn id(&self) -> &KernelId {
        &self.id
    }

    fn refusal(&self, envelope: Envelope<M>) -> SendError<M> {
        self.refusal(envelope)
    }

    fn fail_ask(&self, token: AskToken, failure: AskFailure) {
        self.fail_ask(token, failure);
    }

    fn relay(&self, id: MessageId, origin: Origin) -> Option<AskToken> {
        let registered = self.asks.lock().relay(id, origin);
        registered.map_err(|tell| tell_all([tell], Some(&self.id))).ok()
    }

    fn take_back(&self, token: AskToken) -> Option<Origin> {
        self.asks.lock().take_back(token)
    }

    fn has_failed(&self) -> bool {
        self.look(|lifecycle| lifecycle.state == KernelState::Failed)
    }

    fn end(&self) -> Key {
        self.runtime.upgrade().map_or(self.place(), |runtime| runtime.pipelines.end(self))
    }

    fn failed_stage(&self) -> Option<(KernelId, Fault)> {
        self.runtime.upgrade()?.pipelines.failed_stage(self)
    }

    fn dead_letter(&self, letter: DeadLetter) {
        self.dead_letter(letter);
    }
}

pub(super) fn try_send_batch<M: Message>(
    to: &(impl Accept<M> + ?Sized),
    messages: &mut VecDeque<Envelope<M>>,
) -> Result<usize, SendError<M>> {
    let band_of = |envelope: &Envelope<M>| Band::from_priority(envelope.priority);
    let accepted = match to.is_open() {
        true => to.mailbox().try_send_batch_by(band_of, messages).ok(),
        false => None,
    };
    let Some(accepted) = accepted else {
        return messages.pop_front().map_or(Ok(0), |first| Err(to.refusal(first)));
    };
    if !matches!(to.mailbox().backpressure(), Backpressure::Block | Backpressure::Reject) {
        // All were accepted: what is left was dropped for it.
        for dropped in messages.drain(..) {
            admitted(to, Admission::Evicted(dropped));
        }
    }
    Ok(accepted)
}

/// Sends as much of a batch as there is room for; the next message, which has to wait for room.
fn next_of_batch<M: Message>(
    to: &(impl Accept<M> + ?Sized),
    messages: &mut VecDeque<Envelope<M>>,
) -> Result<Option<Envelope<M>>, SendError<M>> {
    try_send_batch(to, messages)?;
    match (messages.pop_front(), to.mailbox().backpressure()) {
        (Some(next), Backpressure::Reject) => Err(full(to, next)),
        (next, _) => Ok(next),
    }
}

pub(super) async fn send_batch<M: Message>(
    to: &(impl Accept<M> + ?Sized),
    messages: &mut VecDeque<Envelope<M>>,
) -> Result<(), SendError<M>> {
    loop {
        let Some(next) = next_of_batch(to, messages)? else { return Ok(()) };
        let send = to.mailbox().send(Band::from_priority(next.priority), next);
        let mut waiting = InBatch { messages, send: Some(send) };
        let outcome = std::future::poll_fn(|cx| waiting.poll(cx)).await;
        sent(to, outcome)?;
    }
}

pub(super) fn send_batch_blocking<M: Message>(
    to: &(impl Accept<M> + ?Sized),
    messages: &mut VecDeque<Envelope<M>>,
    deadline: Option<Instant>,
) -> Result<(), SendError<M>> {
    while let Some(next) = next_of_batch(to, messages)? {
        send_blocking(to, next, deadline)?;
    }
    Ok(())
}

/// What a mailbox says to a send.
pub(super) type Sent<M> = Result<Admission<Envelope<M>>, mailbox::SendError<Envelope<M>>>;

/// A message of a batch that waits for room, and goes back to the others when that is given up.
struct InBatch<'a, M> {
    messages: &'a mut VecDeque<Envelope<M>>,
    send: Option<mailbox::Send<'a, Envelope<M>>>,
}

impl<M> InBatch<'_, M> {
    fn poll(&mut self, cx: &mut TaskContext<'_>) -> Poll<Sent<M>> {
        let send = self.send.as_mut().expect("a send is not polled after it has ended");
        let outcome = std::task::ready!(Pin::new(send).poll(cx));
        self.send = None;
        Poll::Ready(outcome)
    }
}

impl<M> Drop for InBatch<'_, M> {
    fn drop(&mut self) {
        if let Some(send) = self.send.take()
            && let Err(error) = send.give_up()
        {
            self.messages.push_front(error.into_inner());
        }
    }
}

/// A send in progress. Most often it takes no waiting, and then the envelope never lies in here.
pub(super) struct Sending<'a, M, I, A: ?Sized> {
    to: &'a A,
    stage: Stage<'a, M, I>,
}

enum Stage<'a, M, I> {
    /// Not polled yet.
    Holding(I),
    Blocked(mailbox::Blocked<'a, Envelope<M>>),
    Ended,
}

/// Nothing in it is ever pinned.
impl<M, I, A: ?Sized> Unpin for Sending<'_, M, I, A> {}

impl<M: Message, I, A: Accept<M> + ?Sized> Sending<'_, M, I, A> {
    /// Ends a send that has not ended: as sent if it was accepted meanwhile.
    fn give_up(self) -> Result<(), SendError<M>> {
        match self.stage {
            Stage::Blocked(blocked) => sent(self.to, blocked.give_up()),
            Stage::Holding(_) | Stage::Ended => unreachable!("it was polled and is pending"),
        }
    }
}

impl<M: Message, I: Into<Envelope<M>>, A: Accept<M> + ?Sized> Future for Sending<'_, M, I, A> {
    type Output = Result<(), SendError<M>>;

    #[inline]
    fn poll(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<Self::Output> {
        let to = self.to;
        match std::mem::replace(&mut self.stage, Stage::Ended) {
            Stage::Holding(message) => match to.begin_send(message.into(), cx) {
                Ok(None) => Poll::Ready(Ok(())),
                Ok(Some(blocked)) => {
                    self.stage = Stage::Blocked(blocked);
                    Poll::Pending
                }
                Err(error) => Poll::Ready(Err(error)),
            },
            Stage::Blocked(mut blocked) => match Pin::new(&mut blocked).poll(cx) {
                Poll::Ready(outcome) => Poll::Ready(sent(to, outcome)),
                Poll::Pending => {
                    self.stage = Stage::Blocked(blocked);
                    Poll::Pending
                }
            },
            Stage::Ended => panic!("a send was polled after it had ended"),
        }
    }
}

#[inline]
pub(super) fn send<'a, M: Message, I: Into<Envelope<M>>, A: Accept<M> + ?Sized>(
    to: &'a A,
    message: I,
) -> Sending<'a, M, I, A> {
    Sending { to, stage: Stage::Holding(message) }
}

pub(super) async fn send_until<M: Message>(
    to: &(impl Accept<M> + ?Sized),
    message: impl Into<Envelope<M>>,
    deadline: Option<Instant>,
) -> Result<(), SendError<M>> {
    let mut send = send(to, message);
    match timer::timeout_at(deadline, &mut send).await {
        Some(outcome) => outcome,
        None => send.give_up(),
    }
}

#[inline]
pub(super) fn send_blocking<M: Message>(
    to: &(impl Accept<M> + ?Sized),
    envelope: Envelope<M>,
    deadline: Option<Instant>,
) -> Result<(), SendError<M>> {
    if !to.is_open() {
        return Err(to.refusal(envelope));
    }
    let band = Band::from_priority(envelope.priority);
    sent(to, to.mailbox().send_blocking(band, envelope, deadline))
}

#[inline]
pub(super) fn sent<M: Message>(
    to: &(impl Accept<M> + ?Sized),
    outcome: Sent<M>,
) -> Result<(), SendError<M>> {
    match outcome {
        Ok(Admission::Accepted) => Ok(()),
        Ok(admission) => {
            admitted(to, admission);
            Ok(())
        }
        Err(mailbox::SendError::Full(envelope)) => Err(full(to, envelope)),
        Err(mailbox::SendError::Timeout(envelope)) => {
            Err(SendError::Timeout { envelope, kernel: to.id().clone() })
        }
        Err(mailbox::SendError::Closed(envelope)) => Err(to.refusal(envelope)),
    }
}

/// What a policy dropped fails the ask that waits for it.
pub(super) fn admitted<M: Message>(
    to: &(impl Accept<M> + ?Sized),
    admission: Admission<Envelope<M>>,
) {
    if let Admission::Evicted(dropped) | Admission::DroppedNewest(dropped) = admission {
        if let Some(token) = dropped.ask {
            to.fail_ask(token, AskFailure::Dropped);
        }
        dead_letter::discard(dropped);
    }
}

fn full<M: Message>(to: &(impl Accept<M> + ?Sized), envelope: Envelope<M>) -> SendError<M> {
    SendError::Full { envelope, kernel: to.id().clone(), capacity: to.mailbox().capacity() }
}
