//! One ring kernel: what its senders, its body, its supervisor and its runtime share, and the
//! handle by which users reach it.

use std::any::{Any, type_name};
use std::collections::VecDeque;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, Weak};
use std::task::{Context as TaskContext, Poll, Waker};
use std::time::{Duration, Instant};

use dotcompute_mailbox::sync::{AtomicU32, Ordering, lock};
use dotcompute_mailbox::{
    self as mailbox, Admission, Backpressure, Band, Books, Close, Mailbox, wait,
};

use crate::ask::{AskFailure, Asks, Routed};
use crate::dead_letter::{self, DeadLetter, DeadLetterReason};
use crate::error::{AskError, Fault, KernelId, ReceiveError, SendError, StateError};
use crate::id::MessageId;
use crate::lifecycle::{KernelState, Lifecycle, WrongState, wake_all};
use crate::message::{AskToken, Envelope, Message, Taken};
use crate::options::Options;
use crate::runtime::Shared;
use crate::telemetry::{KernelTelemetry, Telemetry};
use crate::terminate::{self, Terminate, Termination};
use crate::timer;

/// Control bits, read by the runner at each poll and by senders at each send.
const OPEN: u32 = 1;
const KILLED: u32 = 2;

/// What everyone who deals with one kernel shares.
pub(crate) struct Cell<M, R> {
    pub(crate) id: KernelId,
    pub(crate) options: Options,
    pub(crate) executor: &'static str,
    pub(crate) mailbox: Arc<Mailbox<Envelope<M>>>,
    pub(crate) replies: Arc<Mailbox<Envelope<R>>>,
    asks: Mutex<Asks<R>>,
    lifecycle: Mutex<Lifecycle>,
    control: AtomicU32,
    /// The task that runs the body, to be woken by a kill.
    runner: Mutex<Option<Waker>>,
    /// What is known of the message in hand where a body took it and then ended.
    taken: Mutex<Option<Taken>>,
    pub(crate) telemetry: Telemetry,
    pub(crate) runtime: Weak<Shared>,
}

impl<M: Message, R: Message> Cell<M, R> {
    pub(crate) fn new(
        id: KernelId,
        options: Options,
        executor: &'static str,
        runtime: &Arc<Shared>,
    ) -> Arc<Self> {
        Arc::new(Self {
            mailbox: Mailbox::stamping(
                options.capacity,
                options.backpressure,
                options.sample_every,
            ),
            replies: Mailbox::new(options.reply_capacity, options.reply_backpressure),
            id,
            options,
            executor,
            asks: Mutex::new(Asks::new()),
            lifecycle: Mutex::new(Lifecycle::new()),
            control: AtomicU32::new(0),
            runner: Mutex::new(None),
            taken: Mutex::new(None),
            telemetry: Telemetry::default(),
            runtime: Arc::downgrade(runtime),
        })
    }

    // --- lifecycle ---------------------------------------------------------------------------

    /// Changes the lifecycle under its lock and wakes whoever waits for a change.
    pub(crate) fn change<T>(&self, f: impl FnOnce(&mut Lifecycle) -> T) -> T {
        let (result, wakers) = {
            let mut lifecycle = lock(&self.lifecycle);
            let result = f(&mut lifecycle);
            (result, lifecycle.changed())
        };
        wake_all(wakers);
        result
    }

    /// Looks at the lifecycle; changes nothing.
    pub(crate) fn look<T>(&self, f: impl FnOnce(&Lifecycle) -> T) -> T {
        f(&lock(&self.lifecycle))
    }

    /// Waits until `ready` finds in the lifecycle what it looks for. Cancel-safe.
    pub(crate) async fn until<T>(&self, mut ready: impl FnMut(&Lifecycle) -> Option<T>) -> T {
        let mut waiter = Waiter::new(&self.lifecycle);
        std::future::poll_fn(|cx| waiter.poll(cx, &mut ready)).await
    }

    pub(crate) fn state(&self) -> KernelState {
        self.look(|lifecycle| lifecycle.state)
    }

    fn step(
        &self,
        operation: &'static str,
        f: impl FnOnce(&mut Lifecycle) -> Result<(), WrongState>,
    ) -> Result<(), StateError> {
        self.change(f).map_err(|WrongState(state)| StateError {
            kernel: self.id.clone(),
            state,
            operation,
        })
    }

    fn activate(&self) -> Result<(), StateError> {
        self.step("activate", |lifecycle| {
            lifecycle.activate()?;
            self.telemetry.start();
            // SYNC(kernel.open) release: pairs with the acquire in `is_open`. A sender that sees
            // it finds the kernel activated. Written under the lifecycle lock.
            self.control.fetch_or(OPEN, Ordering::Release);
            Ok(())
        })
    }

    fn deactivate(&self) -> Result<(), StateError> {
        self.step("deactivate", |lifecycle| {
            lifecycle.deactivate()?;
            // Under the lifecycle lock, so that two threads that pause and resume leave state and
            // mailbox agreeing. It wakes nobody.
            self.mailbox.pause();
            Ok(())
        })
    }

    fn reactivate(&self) -> Result<(), StateError> {
        self.step("reactivate", Lifecycle::reactivate)?;
        // Outside the lock, since it wakes the kernel. A deactivate that came in between wins.
        self.mailbox.resume();
        let lifecycle = lock(&self.lifecycle);
        if lifecycle.paused && lifecycle.stop.is_none() {
            self.mailbox.pause();
        }
        Ok(())
    }

    #[inline]
    fn is_open(&self) -> bool {
        // SYNC(kernel.open) acquire: pairs with the release in `activate`.
        self.control.load(Ordering::Acquire) & OPEN != 0
    }

    /// The body is to be dropped at its next poll.
    pub(crate) fn kill(&self) {
        // SYNC(kernel.kill) release: pairs with the acquire in `is_killed`. Nothing else is
        // published; the waker below makes sure that the runner looks.
        self.control.fetch_or(KILLED, Ordering::Release);
        let runner = lock(&self.runner).take();
        wake_all(runner);
    }

    #[inline]
    pub(crate) fn is_killed(&self) -> bool {
        // SYNC(kernel.kill) acquire: pairs with the release in `kill`.
        self.control.load(Ordering::Acquire) & KILLED != 0
    }

    /// Names the task that a kill has to wake.
    pub(crate) fn runner_is(&self, waker: &Waker) {
        let previous = lock(&self.runner).replace(waker.clone());
        drop(previous);
    }

    /// The body ends with a message in hand that it had taken out of its envelope.
    pub(crate) fn set_taken(&self, taken: Taken) {
        *lock(&self.taken) = Some(taken);
    }

    pub(crate) fn taken(&self) -> Option<Taken> {
        lock(&self.taken).take()
    }

    // --- the way of a message in -------------------------------------------------------------

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

    // --- the way of a reply out --------------------------------------------------------------

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

    /// Brings a reply to the ask that it belongs to. What comes back is for the output mailbox.
    pub(crate) fn route(
        &self,
        in_hand: Option<(MessageId, Option<AskToken>)>,
        reply: Envelope<R>,
    ) -> Option<Envelope<R>> {
        // Most replies that nobody asked for answer the message in hand, and need no search.
        if let Some((id, None)) = in_hand
            && reply.correlation_id == Some(id)
        {
            return Some(reply);
        }
        let routed = lock(&self.asks).route(in_hand, reply);
        match routed {
            Routed::Answered(waker) => {
                Telemetry::count(&self.telemetry.asks_answered);
                wake_all(waker);
                None
            }
            Routed::Late(reply) => {
                self.dead_reply(reply, DeadLetterReason::LateReply);
                None
            }
            Routed::Output(reply) => Some(reply),
        }
    }

    /// As [`output`](Self::output), as far as that takes no waiting; else the reply comes back.
    pub(crate) fn try_output(&self, reply: Envelope<R>) -> Option<Envelope<R>> {
        // Looked at first, since a reply that waits for room was not rejected. Only the kernel
        // itself sends here, so there is room still when it does.
        let blocks = self.options.reply_backpressure == Backpressure::Block;
        if blocks && self.replies.is_full() {
            return Some(reply);
        }
        match self.replies.try_send(Band::from_priority(reply.priority), reply) {
            Ok(admission) => dead_letter::discard(admission),
            Err(mailbox::TrySendError::Full(reply)) => {
                self.dead_reply(reply, DeadLetterReason::NoRoom);
            }
            Err(mailbox::TrySendError::Closed(reply)) => {
                self.dead_reply(reply, DeadLetterReason::Unread);
            }
        }
        None
    }

    /// Puts a reply that nobody asked for into the output mailbox, and waits for room there if that
    /// is its policy; `false` if the kernel had to stop instead, and the reply became a dead letter.
    pub(crate) async fn output(&self, reply: Envelope<R>) -> bool {
        let mut send = self.replies.send(Band::from_priority(reply.priority), reply);
        let mut stop = Waiter::new(&self.lifecycle);
        let outcome = std::future::poll_fn(|cx| {
            if let Poll::Ready(outcome) = Pin::new(&mut send).poll(cx) {
                return Poll::Ready(Some(outcome));
            }
            // A drain goes on waiting for a reader; a stop at once does not.
            stop.poll(cx, |lifecycle| (lifecycle.stop == Some(false)).then_some(())).map(|()| None)
        })
        .await;
        match outcome.unwrap_or_else(|| send.give_up()) {
            Ok(_) => true,
            Err(mailbox::SendError::Full(reply)) => {
                self.dead_reply(reply, DeadLetterReason::NoRoom);
                true
            }
            Err(mailbox::SendError::Timeout(reply)) => {
                self.dead_reply(reply, DeadLetterReason::NoRoom);
                false
            }
            Err(mailbox::SendError::Closed(reply)) => {
                self.dead_reply(reply, DeadLetterReason::Unread);
                false
            }
        }
    }

    pub(crate) fn dead_reply(&self, reply: Envelope<R>, reason: DeadLetterReason) {
        self.dead_letter(DeadLetter::of(&self.id, reply, reason, false));
    }

    pub(crate) fn dead_letter(&self, letter: DeadLetter) {
        tracing::debug!(kernel = %self.id, id = %letter.id, reason = %letter.reason, "dead letter");
        match self.runtime.upgrade() {
            Some(runtime) => runtime.dead_letters.push(letter),
            None => dead_letter::discard(letter),
        }
    }

    // --- receiving replies -------------------------------------------------------------------

    fn no_reply(&self) -> ReceiveError {
        let kernel = self.id.clone();
        let (state, fault) = self.look(|l| (l.state, l.fault.clone()));
        match (state, fault) {
            (KernelState::Failed, Some(fault)) => ReceiveError::Failed { kernel, fault },
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

    // --- the end -----------------------------------------------------------------------------

    /// The kernel is over: closes both mailboxes, tells everyone who waits, and keeps what nobody
    /// processed as dead letters. Runs once per cause; a later call finds less to do.
    ///
    /// `fault`: it failed. `abandoned`: its executor still holds the body.
    pub(crate) fn finish(&self, fault: Option<Fault>, abandoned: bool) {
        let terminated = self.change(|lifecycle| {
            if !lifecycle.ended {
                lifecycle.abandoned = abandoned;
                match &fault {
                    Some(_) if lifecycle.stop.is_none() => lifecycle.state = KernelState::Failed,
                    _ => lifecycle.state = KernelState::Terminated,
                }
                if fault.is_some() {
                    lifecycle.fault = fault.clone();
                }
            }
            lifecycle.stop.is_some()
        });
        self.telemetry.end();
        self.mailbox.close(Close::Now);
        self.mailbox.take_all(|envelope| {
            let reason = DeadLetterReason::Undelivered;
            self.dead_letter(DeadLetter::of(&self.id, envelope, reason, true));
        });
        let failure = match &fault {
            Some(fault) => AskFailure::Failed(fault.clone()),
            None => AskFailure::Stopped,
        };
        let wakers = lock(&self.asks).close(failure);
        wake_all(wakers);
        if terminated {
            self.bury_replies();
        } else {
            // Replies already made can still be read.
            self.replies.close(Close::Drain);
        }
        if self.look(|lifecycle| lifecycle.remove_when_ended) {
            self.remove();
        }
        let runner = lock(&self.runner).take();
        drop(runner);
        // Last: whoever waits for the end finds everything done.
        let remove = self.change(|lifecycle| {
            lifecycle.ended = true;
            lifecycle.remove_when_ended
        });
        // It may have been asked for since.
        if remove {
            self.remove();
        }
    }

    /// After a terminate nobody will read replies.
    pub(crate) fn bury_replies(&self) {
        self.replies.close(Close::Now);
        self.replies.take_all(|reply| self.dead_reply(reply, DeadLetterReason::Unread));
    }

    /// Asks the kernel to end. Returns at once; `false`: it was asked before.
    pub(crate) fn request_stop(&self, drain: bool) -> bool {
        let first = self.change(|lifecycle| {
            if lifecycle.ended || lifecycle.stop == Some(false) {
                return false;
            }
            // A stop at once overrides a drain that goes on.
            let first = lifecycle.stop.is_none() || !drain;
            lifecycle.stop = Some(drain && lifecycle.stop != Some(false));
            if !lifecycle.state.has_ended() {
                lifecycle.state = KernelState::Terminating;
            }
            first
        });
        if first {
            self.mailbox.close(if drain { Close::Drain } else { Close::Now });
            if drain {
                self.mailbox.resume();
            }
        }
        first
    }

    fn snapshot(&self) -> KernelTelemetry {
        // Relaxed: statistics.
        let load = |counter: &dotcompute_mailbox::sync::AtomicU64| counter.load(Ordering::Relaxed);
        let books = self.mailbox.books();
        let (queue_time, handler_time, busy_share) = self.telemetry.times(books.processed);
        let (state, last_fault) = self.look(|l| (l.state, l.fault.clone()));
        KernelTelemetry {
            kernel: self.id.clone(),
            executor: self.executor,
            state,
            books,
            replies: self.replies.books(),
            asks_answered: load(&self.telemetry.asks_answered),
            high_water: self.mailbox.high_water(),
            faults: load(&self.telemetry.faults),
            restarts: load(&self.telemetry.restarts),
            stalls: load(&self.telemetry.stalls),
            // The watchdog no longer looks at a kernel that has ended.
            stalled: self.telemetry.stalled.load(Ordering::Relaxed) != 0 && books.in_hand > 0,
            last_fault,
            queue_time,
            handler_time,
            busy_share,
            uptime: self.telemetry.uptime(),
        }
    }
}

impl<M, R> fmt::Debug for Cell<M, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = lock(&self.lifecycle).state;
        f.debug_struct("Kernel").field("id", &self.id).field("state", &state).finish()
    }
}

/// Somebody who waits for a change of a lifecycle; forgotten there when it is dropped.
pub(crate) struct Waiter<'a> {
    lifecycle: &'a Mutex<Lifecycle>,
    number: Option<u64>,
}

impl<'a> Waiter<'a> {
    fn new(lifecycle: &'a Mutex<Lifecycle>) -> Self {
        Self { lifecycle, number: None }
    }

    /// Looks for what `ready` finds; if that is nothing yet, it is woken at the next change.
    fn poll<T>(
        &mut self,
        cx: &mut TaskContext<'_>,
        ready: impl FnOnce(&Lifecycle) -> Option<T>,
    ) -> Poll<T> {
        let mut lifecycle = lock(self.lifecycle);
        if let Some(value) = ready(&lifecycle) {
            return Poll::Ready(value);
        }
        let stale = lifecycle.wait(&mut self.number, cx.waker());
        drop(lifecycle);
        drop(stale);
        Poll::Pending
    }

    /// Whether the kernel has ended, and how.
    pub(crate) fn poll_ended(&mut self, cx: &mut TaskContext<'_>) -> Poll<Termination> {
        self.poll(cx, |lifecycle| {
            lifecycle.ended.then_some(match (lifecycle.abandoned, lifecycle.cancelled) {
                (true, _) => Termination::Abandoned,
                (false, true) => Termination::Cancelled,
                (false, false) => Termination::Clean,
            })
        })
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        if let Some(number) = self.number {
            let stale = lock(self.lifecycle).leave(number);
            drop(stale);
        }
    }
}

/// What a runtime needs of a kernel without knowing its message types.
pub(crate) trait AnyCell: Send + Sync {
    fn id(&self) -> &KernelId;
    fn state(&self) -> KernelState;
    fn options(&self) -> &Options;
    fn types(&self) -> String;
    fn as_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync>;
    fn snapshot(&self) -> KernelTelemetry;
    fn telemetry(&self) -> &Telemetry;
    fn books(&self) -> Books;
    fn request_stop(&self, drain: bool);
    fn kill(&self);
    fn abandon(&self);
    fn bury_replies(&self);
    /// Begins to wait for its end: see [`Waiter::poll_ended`].
    fn wait_for_end(&self) -> Waiter<'_>;
    /// Sends a dead letter again; gives it back with the reason if that cannot be.
    fn replay(&self, letter: DeadLetter) -> Result<(), DeadLetter>;
    /// An `Address<M>`.
    fn address(self: Arc<Self>) -> Box<dyn Any>;
    /// Takes it out of its runtime, now or when it has ended.
    fn remove(&self);
    fn remove_when_ended(&self);
}

impl<M: Message, R: Message> AnyCell for Cell<M, R> {
    fn id(&self) -> &KernelId {
        &self.id
    }

    fn state(&self) -> KernelState {
        self.state()
    }

    fn options(&self) -> &Options {
        &self.options
    }

    fn types(&self) -> String {
        types::<M, R>()
    }

    fn as_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }

    fn snapshot(&self) -> KernelTelemetry {
        self.snapshot()
    }

    fn telemetry(&self) -> &Telemetry {
        &self.telemetry
    }

    fn books(&self) -> Books {
        self.mailbox.books()
    }

    fn request_stop(&self, drain: bool) {
        self.request_stop(drain);
    }

    fn kill(&self) {
        self.kill();
    }

    fn abandon(&self) {
        self.finish(None, true);
    }

    fn bury_replies(&self) {
        self.bury_replies();
    }

    fn wait_for_end(&self) -> Waiter<'_> {
        Waiter::new(&self.lifecycle)
    }

    fn replay(&self, letter: DeadLetter) -> Result<(), DeadLetter> {
        let (reason, delivery_count) = (letter.reason.clone(), letter.delivery_count);
        let envelope = letter.into_envelope::<M>()?;
        try_send(self, envelope).map_err(|error| {
            let mut letter = DeadLetter::of(&self.id, error.into_envelope(), reason, true);
            letter.delivery_count = delivery_count;
            letter
        })
    }

    fn address(self: Arc<Self>) -> Box<dyn Any> {
        Box::new(KernelRef { cell: self }.address())
    }

    fn remove(&self) {
        if let Some(runtime) = self.runtime.upgrade() {
            runtime.remove(self);
        }
    }

    fn remove_when_ended(&self) {
        let ended = self.change(|lifecycle| {
            lifecycle.remove_when_ended = true;
            lifecycle.ended
        });
        if ended {
            self.remove();
        }
    }
}

pub(crate) fn types<M: Message, R: Message>() -> String {
    let (message, reply) = (type_name::<M>(), type_name::<R>());
    format!("messages of {message} and replies with {reply}")
}

/// A handle to a ring kernel that takes `M` and replies with `R`. Cloning is one reference count.
///
/// The handle does not keep the kernel running: the kernel runs until it returns, fails or is
/// terminated, or its runtime goes away. All methods may be called from any thread, also from
/// inside kernels; the `_blocking` ones wait on the calling thread and must not be called in an
/// async task.
pub struct KernelRef<M, R> {
    pub(crate) cell: Arc<Cell<M, R>>,
}

impl<M, R> Clone for KernelRef<M, R> {
    fn clone(&self) -> Self {
        Self { cell: Arc::clone(&self.cell) }
    }
}

impl<M, R> fmt::Debug for KernelRef<M, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.cell.fmt(f)
    }
}

impl<M: Message, R: Message> KernelRef<M, R> {
    /// Its name.
    pub fn id(&self) -> &KernelId {
        &self.cell.id
    }

    /// Its state now.
    pub fn state(&self) -> KernelState {
        self.cell.state()
    }

    /// Why it failed, or what its last restart was for.
    pub fn fault(&self) -> Option<Fault> {
        self.cell.look(|lifecycle| lifecycle.fault.clone())
    }

    /// Starts processing messages: LAUNCHED to ACTIVE.
    ///
    /// # Errors
    ///
    /// In any other state.
    pub fn activate(&self) -> Result<(), StateError> {
        self.cell.activate()
    }

    /// Pauses: ACTIVE to DEACTIVATED. Returns at once; from then on nothing is handed to the
    /// kernel. It keeps its state and its mailbox, goes on with what it has in hand, and accepts
    /// messages; timeouts go on running.
    ///
    /// # Errors
    ///
    /// In any other state.
    pub fn deactivate(&self) -> Result<(), StateError> {
        self.cell.deactivate()
    }

    /// Goes on: DEACTIVATED to ACTIVE.
    ///
    /// # Errors
    ///
    /// In any other state.
    pub fn reactivate(&self) -> Result<(), StateError> {
        self.cell.reactivate()
    }

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
    pub async fn send(&self, message: impl Into<Envelope<M>>) -> Result<(), SendError<M>> {
        send(&*self.cell, message.into(), None).await
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
        send(&*self.cell, message.into(), timer::after(timeout)).await
    }

    /// Sends a message without waiting.
    ///
    /// # Errors
    ///
    /// See [`SendError`]; `Full` if a policy that blocks or rejects finds the mailbox full.
    #[inline]
    pub fn try_send(&self, message: impl Into<Envelope<M>>) -> Result<(), SendError<M>> {
        try_send(&*self.cell, message.into())
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
        let envelope = message.into();
        if self.cell.options.backpressure != mailbox::Backpressure::Block {
            return try_send(&*self.cell, envelope).map(|()| None);
        }
        if !self.cell.is_open() {
            return Err(self.cell.refusal(envelope));
        }
        match self.cell.mailbox.offer(Band::from_priority(envelope.priority), envelope) {
            // A policy that blocks drops nothing.
            Ok(_) => Ok(None),
            Err(mailbox::TrySendError::Full(envelope)) => Ok(Some(envelope)),
            Err(mailbox::TrySendError::Closed(envelope)) => Err(self.cell.refusal(envelope)),
        }
    }

    /// [`send`](Self::send) that waits on the calling thread, for ever without a `timeout`.
    ///
    /// # Errors
    ///
    /// See [`SendError`].
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
        let to = &*self.cell;
        loop {
            let Some(next) = next_of_batch(to, messages)? else { return Ok(()) };
            let send = to.mailbox.send(Band::from_priority(next.priority), next);
            let mut waiting = InBatch { messages, send: Some(send) };
            let outcome = std::future::poll_fn(|cx| waiting.poll(cx)).await;
            sent(to, outcome)?;
        }
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
        let deadline = timeout.and_then(timer::after);
        while let Some(next) = next_of_batch(&*self.cell, messages)? {
            send_blocking(&*self.cell, next, deadline)?;
        }
        Ok(())
    }

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

    /// A handle for sending only, which hides the type of the replies.
    pub fn address(&self) -> Address<M> {
        Address { kernel: self.cell.id.clone(), to: self.cell.clone() }
    }

    /// Ends the kernel, as `how` says, and waits until it has ended or the deadline has passed.
    /// Everyone who waits for the kernel is told. It is safe to call it more than once, from
    /// several places at once, and from inside the kernel (where it does not wait).
    ///
    /// # Cancel safety
    ///
    /// The request stands; only the deadline is then no longer enforced.
    pub async fn terminate(&self, how: Terminate) -> Termination {
        self.stop(how.drain);
        let cells: [Arc<dyn AnyCell>; 1] = [self.cell.clone()];
        terminate::end_all(&cells, how.within).await[0]
    }

    /// [`terminate`](Self::terminate) that waits on the calling thread.
    pub fn terminate_blocking(&self, how: Terminate) -> Termination {
        wait::block_on(self.terminate(how))
    }

    /// Asks the kernel to end, as [`terminate`](Self::terminate) does, and returns at once. Its
    /// name is free once it has ended. For whoever cannot wait for that: the kernel itself, above
    /// all.
    pub fn stop(&self, drain: bool) {
        self.cell.request_stop(drain);
        AnyCell::remove_when_ended(&*self.cell);
    }

    /// Whether the kernel was asked to end, or has ended.
    pub fn is_stopping(&self) -> bool {
        self.cell.look(|lifecycle| lifecycle.stop.is_some() || lifecycle.state.has_ended())
    }

    /// Waits until the kernel processes messages, or is to end, or has ended.
    ///
    /// # Cancel safety
    ///
    /// Waiting changes nothing.
    pub async fn active(&self) {
        self.cell
            .until(|lifecycle| {
                let over = lifecycle.stop.is_some() || lifecycle.state.has_ended();
                (over || lifecycle.state == KernelState::Active).then_some(())
            })
            .await;
    }

    /// A guard that ends the kernel when it is dropped.
    pub fn scoped(self) -> ScopedKernel<M, R> {
        ScopedKernel { kernel: self }
    }

    /// Waits until the kernel has ended, for whatever reason: the fault if it failed.
    ///
    /// # Errors
    ///
    /// The fault, if it failed.
    ///
    /// # Cancel safety
    ///
    /// Waiting changes nothing.
    pub async fn ended(&self) -> Result<(), Fault> {
        self.cell
            .until(|lifecycle| {
                lifecycle.ended.then(|| match (lifecycle.state, &lifecycle.fault) {
                    (KernelState::Failed, Some(fault)) => Err(fault.clone()),
                    _ => Ok(()),
                })
            })
            .await
    }

    /// What became of every message that the kernel accepted. Exact, and always balanced.
    pub fn books(&self) -> Books {
        self.cell.mailbox.books()
    }

    /// The books of the output mailbox.
    pub fn reply_books(&self) -> Books {
        self.cell.replies.books()
    }

    /// What the kernel has done so far.
    pub fn telemetry(&self) -> KernelTelemetry {
        self.cell.snapshot()
    }

    /// The memory of the kernel's two mailboxes, in bytes; it grows with their use up to their
    /// capacity.
    pub fn mailbox_bytes(&self) -> usize {
        self.cell.mailbox.memory_bytes() + self.cell.replies.memory_bytes()
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

/// A kernel that ends with its scope.
///
/// [`close`](Self::close) ends it in order. Dropping the guard instead, as a panic or an early
/// return does, cancels it without waiting: its body is dropped at its next await.
#[derive(Debug)]
pub struct ScopedKernel<M: Message, R: Message> {
    kernel: KernelRef<M, R>,
}

impl<M: Message, R: Message> ScopedKernel<M, R> {
    /// Ends the kernel as [`KernelRef::terminate`] does.
    pub async fn close(self, how: Terminate) -> Termination {
        self.kernel.terminate(how).await
    }
}

impl<M: Message, R: Message> std::ops::Deref for ScopedKernel<M, R> {
    type Target = KernelRef<M, R>;

    fn deref(&self) -> &Self::Target {
        &self.kernel
    }
}

impl<M: Message, R: Message> Drop for ScopedKernel<M, R> {
    fn drop(&mut self) {
        let cell = &self.kernel.cell;
        cell.request_stop(false);
        cell.kill();
        cell.remove_when_ended();
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

/// The sending side of a kernel that takes `M`, whatever it replies with. Cloning is cheap.
pub struct Address<M> {
    kernel: KernelId,
    to: Arc<dyn Accept<M>>,
}

/// The way of a message into a kernel, the same for every kind of handle: lifecycle check,
/// admission, and what the policy dropped.
trait Accept<M: Message>: Send + Sync {
    fn is_open(&self) -> bool;
    fn mailbox(&self) -> &Mailbox<Envelope<M>>;
    fn id(&self) -> &KernelId;
    fn refusal(&self, envelope: Envelope<M>) -> SendError<M>;
    fn fail_ask(&self, token: AskToken, failure: AskFailure);
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
}

#[inline]
fn try_send<M: Message>(
    to: &(impl Accept<M> + ?Sized),
    envelope: Envelope<M>,
) -> Result<(), SendError<M>> {
    if !to.is_open() {
        return Err(to.refusal(envelope));
    }
    let band = Band::from_priority(envelope.priority);
    match to.mailbox().try_send(band, envelope) {
        Ok(Admission::Accepted) => Ok(()),
        Ok(admission) => admitted(to, admission),
        Err(mailbox::TrySendError::Full(envelope)) => Err(full(to, envelope)),
        Err(mailbox::TrySendError::Closed(envelope)) => Err(to.refusal(envelope)),
    }
}

fn try_send_batch<M: Message>(
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
            admitted(to, Admission::Evicted(dropped))?;
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

/// What a mailbox says to a send.
type Sent<M> = Result<Admission<Envelope<M>>, mailbox::SendError<Envelope<M>>>;

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

async fn send<M: Message>(
    to: &(impl Accept<M> + ?Sized),
    envelope: Envelope<M>,
    deadline: Option<Instant>,
) -> Result<(), SendError<M>> {
    if !to.is_open() {
        return Err(to.refusal(envelope));
    }
    let mut send = to.mailbox().send(Band::from_priority(envelope.priority), envelope);
    let outcome = match deadline {
        None => send.await,
        Some(_) => match timer::timeout_at(deadline, &mut send).await {
            Some(outcome) => outcome,
            None => send.give_up(),
        },
    };
    sent(to, outcome)
}

fn send_blocking<M: Message>(
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
fn sent<M: Message>(to: &(impl Accept<M> + ?Sized), outcome: Sent<M>) -> Result<(), SendError<M>> {
    match outcome {
        Ok(Admission::Accepted) => Ok(()),
        Ok(admission) => admitted(to, admission),
        Err(mailbox::SendError::Full(envelope)) => Err(full(to, envelope)),
        Err(mailbox::SendError::Timeout(envelope)) => {
            Err(SendError::Timeout { envelope, kernel: to.id().clone() })
        }
        Err(mailbox::SendError::Closed(envelope)) => Err(to.refusal(envelope)),
    }
}

/// What a policy dropped fails the ask that waits for it.
fn admitted<M: Message>(
    to: &(impl Accept<M> + ?Sized),
    admission: Admission<Envelope<M>>,
) -> Result<(), SendError<M>> {
    if let Admission::Evicted(dropped) | Admission::DroppedNewest(dropped) = admission {
        if let Some(token) = dropped.ask {
            to.fail_ask(token, AskFailure::Dropped);
        }
        dead_letter::discard(dropped);
    }
    Ok(())
}

fn full<M: Message>(to: &(impl Accept<M> + ?Sized), envelope: Envelope<M>) -> SendError<M> {
    SendError::Full { envelope, kernel: to.id().clone(), capacity: to.mailbox().capacity() }
}

impl<M: Message> Address<M> {
    /// The name of the kernel.
    pub fn kernel(&self) -> &KernelId {
        &self.kernel
    }

    /// As [`KernelRef::send`].
    ///
    /// # Errors
    ///
    /// See [`SendError`].
    pub async fn send(&self, message: impl Into<Envelope<M>>) -> Result<(), SendError<M>> {
        send(&*self.to, message.into(), None).await
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
        send(&*self.to, message.into(), timer::after(timeout)).await
    }

    /// As [`KernelRef::try_send`].
    ///
    /// # Errors
    ///
    /// See [`SendError`].
    pub fn try_send(&self, message: impl Into<Envelope<M>>) -> Result<(), SendError<M>> {
        try_send(&*self.to, message.into())
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
}

impl<M> Clone for Address<M> {
    fn clone(&self) -> Self {
        Self { kernel: self.kernel.clone(), to: Arc::clone(&self.to) }
    }
}

impl<M> fmt::Debug for Address<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Address").field(&self.kernel).finish()
    }
}
