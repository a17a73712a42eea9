//! The way of a reply from a kernel that is connected straight into the mailbox of the next one.

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll};

use dotcompute_mailbox::sync::{AtomicU32, Ordering, lock};
use dotcompute_mailbox::{self as mailbox, Backpressure, Band, Mailbox};

use super::Cell;
use super::life::Waiter;
use super::send::{Accept, Sent, admitted};
use crate::ask::AskFailure;
use crate::dead_letter::{self, DeadLetterReason};
use crate::error::{KernelId, SendError};
use crate::message::{Envelope, Message};
use crate::relay::{Home, tell_all};
use crate::telemetry::Telemetry;

/// What messages go to: a kernel, or the worker of a pool that each is for.
pub(crate) enum Way<M> {
    Kernel(Arc<dyn Accept<M>>),
    Pool(Arc<dyn Spread<M>>),
}

/// A pool, for those who send to it.
pub(crate) trait Spread<M: Message>: Send + Sync {
    fn id(&self) -> &KernelId;
    /// The worker that the message goes to; a failed one where it is that of its key.
    fn worker_for(&self, message: &M) -> &dyn Accept<M>;
    /// Whether a message can go to any worker that has not ended.
    fn takes_turns(&self) -> bool;
    /// Whether a worker is left that takes messages.
    fn is_living(&self) -> bool;
    /// Whether a worker has failed, and waits to be terminated.
    fn has_failed(&self) -> bool;
}

impl<M: Message> Way<M> {
    pub(super) fn id(&self) -> &KernelId {
        match self {
            Self::Kernel(kernel) => kernel.id(),
            Self::Pool(pool) => pool.id(),
        }
    }
}

impl<M> Clone for Way<M> {
    fn clone(&self) -> Self {
        match self {
            Self::Kernel(kernel) => Self::Kernel(Arc::clone(kernel)),
            Self::Pool(pool) => Self::Pool(Arc::clone(pool)),
        }
    }
}

impl<M> std::fmt::Debug for Way<M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Way")
    }
}

/// Where the replies of a connected kernel go.
pub(crate) struct Link<R> {
    pub(crate) way: Way<R>,
    /// Where those wait who ask the kernel while it is connected.
    pub(super) home: Arc<Home<R>>,
    /// 1 while replies that were made before are on their way to a pool.
    carrying: AtomicU32,
}

impl<R: Message> Link<R> {
    pub(super) fn new(way: Way<R>, carrying: bool) -> Arc<Self> {
        Arc::new(Self { way, home: Home::new(), carrying: AtomicU32::new(carrying.into()) })
    }

    fn is_carrying(&self) -> bool {
        // SYNC(link.carrying) acquire: pairs with the release in `CarryOver`. Whoever finds it over
        // finds the replies of before in the mailboxes of the workers.
        self.carrying.load(Ordering::Acquire) != 0
    }
}

/// Where the replies of a kernel go that are for no ask.
pub(crate) enum Outlet<R> {
    /// To its output mailbox.
    Mailbox,
    /// To the next kernel: straight there, without a look at the link.
    Kernel(Arc<dyn Accept<R>>),
    /// To a worker of the next pool.
    Pool(Arc<Link<R>>),
}

/// Replies that were made before their kernel was connected to a pool, on their way there.
pub(super) struct CarryOver<M: Message, R: Message> {
    pub(super) cell: Arc<Cell<M, R>>,
    pub(super) link: Arc<Link<R>>,
    pub(super) replies: Arc<Mailbox<Envelope<R>>>,
}

impl<M: Message, R: Message> CarryOver<M, R> {
    /// Brings them to the workers, in order, also beyond the capacity of these.
    pub(super) fn run(self) {
        let Way::Pool(pool) = &self.link.way else { return };
        while let Ok(mut reply) = self.replies.try_receive() {
            loop {
                let (to, chosen) = self.cell.choose(&**pool, reply);
                let band = Band::from_priority(chosen.priority);
                let Err(back) = to.mailbox().add(band, chosen) else { break };
                if !(pool.takes_turns() && pool.is_living()) {
                    self.cell.dead_reply(back, DeadLetterReason::Unreachable);
                    break;
                }
                reply = back;
            }
        }
    }
}

impl<M: Message, R: Message> Drop for CarryOver<M, R> {
    fn drop(&mut self) {
        // Nothing is left, unless the choice of a worker has panicked.
        while let Ok(reply) = self.replies.try_receive() {
            self.cell.dead_reply(reply, DeadLetterReason::Unreachable);
        }
        // SYNC(link.carrying) release: pairs with the acquire in `is_carrying`.
        self.link.carrying.store(0, Ordering::Release);
        self.cell.change(|_| ());
    }
}

/// What becomes of a reply whose way is closed.
enum Closed {
    /// Another worker may take it.
    TryAgain,
    /// The stage has failed, and may be disconnected or replaced.
    Wait,
    /// The stage is ending.
    Unlink,
    /// Others go on, but none takes this one.
    Refused,
}

impl<M: Message, R: Message> Cell<M, R> {
    /// The link, if the kernel is connected.
    #[inline]
    pub(crate) fn link(&self) -> Option<Arc<Link<R>>> {
        match self.is_connected() {
            true => lock(&self.link).clone(),
            false => None,
        }
    }

    pub(crate) fn outlet(&self) -> Outlet<R> {
        match self.link() {
            None => Outlet::Mailbox,
            Some(link) => match &link.way {
                Way::Kernel(kernel) => Outlet::Kernel(Arc::clone(kernel)),
                Way::Pool(_) => Outlet::Pool(link),
            },
        }
    }

    /// The link as it is once whoever changes it now has done so.
    fn settled_link(&self) -> (u32, Option<Arc<Link<R>>>) {
        let link = lock(&self.link);
        (self.link_word(), link.clone())
    }

    /// The worker that the reply is for. That may be the user's code: if it panics, the reply is a
    /// dead letter.
    fn choose<'p>(
        &self,
        pool: &'p dyn Spread<R>,
        mut reply: Envelope<R>,
    ) -> (&'p dyn Accept<R>, Envelope<R>) {
        match catch_unwind(AssertUnwindSafe(|| pool.worker_for(&reply.message))) {
            Ok(to) => (to, reply),
            Err(panic) => {
                if let Some(token) = reply.ask.take() {
                    self.fail_ask(token, AskFailure::Dropped);
                }
                self.dead_reply(reply, DeadLetterReason::Unreachable);
                resume_unwind(panic)
            }
        }
    }

    /// Forwards a reply as far as that takes no waiting; `count` is called if it is sent on, before
    /// the next kernel can have it. It comes back if it has to wait, for [`forward`](Self::forward).
    pub(crate) fn try_forward(
        &self,
        to: &dyn Accept<R>,
        mut reply: Envelope<R>,
        count: impl FnOnce(),
    ) -> Result<(), Envelope<R>> {
        if reply.ask.is_some() {
            let Some(handed_over) = self.hand_over(to, reply) else { return Ok(()) };
            reply = handed_over;
        }
        let band = Band::from_priority(reply.priority);
        match to.mailbox().offer_counted(band, reply, count) {
            Ok(admission) => {
                admitted(to, admission);
                Ok(())
            }
            Err(mailbox::TrySendError::Full(reply))
                if to.mailbox().backpressure() == Backpressure::Reject =>
            {
                self.no_room(to, reply);
                Ok(())
            }
            Err(mailbox::TrySendError::Full(reply) | mailbox::TrySendError::Closed(reply)) => {
                self.take_back(to, reply).map_or(Ok(()), Err)
            }
        }
    }

    /// [`try_forward`](Self::try_forward) to where the link goes.
    pub(crate) fn try_forward_by(
        &self,
        link: &Link<R>,
        reply: Envelope<R>,
        count: impl FnOnce(),
    ) -> Result<(), Envelope<R>> {
        match &link.way {
            Way::Kernel(to) => self.try_forward(&**to, reply, count),
            Way::Pool(_) if link.is_carrying() => Err(reply),
            Way::Pool(pool) => {
                let (to, reply) = self.choose(&**pool, reply);
                self.try_forward(to, reply, count)
            }
        }
    }

    /// Brings a reply to the next kernel, or to the worker of a pool that it is for, and waits for
    /// room there if that is its policy. Where the next kernel has failed, or all workers have, this
    /// waits until it is terminated or the two are disconnected; where there is no next kernel any
    /// more the reply goes to the output mailbox. `false` if the kernel had to stop instead, and the
    /// reply became a dead letter.
    pub(crate) async fn forward(&self, mut reply: Envelope<R>) -> bool {
        loop {
            let (word, link) = self.settled_link();
            let Some(link) = link else {
                if reply.ask.is_some() {
                    self.answer_elsewhere(reply);
                    return true;
                }
                match self.output(reply).await {
                    Ok(goes_on) => return goes_on,
                    Err(back) => reply = back,
                }
                continue;
            };
            if link.is_carrying() {
                self.until(|_| (!link.is_carrying()).then_some(())).await;
            }
            let (to, chosen) = match &link.way {
                Way::Kernel(to) => (&**to, reply),
                Way::Pool(pool) => self.choose(&**pool, reply),
            };
            let Some(handed_over) = self.hand_over(to, chosen) else { return true };
            let band = Band::from_priority(handed_over.priority);
            let send = Some(to.mailbox().send(band, handed_over));
            let mut forwarding = Forwarding { cell: self, to, send };
            let mut change = Waiter::new(&self.lifecycle);
            let sent = std::future::poll_fn(|cx| {
                if let Poll::Ready(sent) = forwarding.poll(cx) {
                    return Poll::Ready(Some(sent));
                }
                // A drain goes on waiting for room; a stop at once does not.
                let changed = change.poll(cx, |lifecycle| {
                    (lifecycle.stop == Some(false) || self.link_word() != word).then_some(())
                });
                changed.map(|()| None)
            })
            .await;
            let (back, closed) = match sent.or_else(|| forwarding.give_up()) {
                // `None` cannot be: either it has ended, or it is given up.
                None | Some(Ok(())) => return true,
                Some(Err(mailbox::SendError::Full(reply))) => {
                    self.no_room(to, reply);
                    return true;
                }
                Some(Err(mailbox::SendError::Timeout(reply))) => (reply, false),
                Some(Err(mailbox::SendError::Closed(reply))) => (reply, true),
            };
            let Some(back) = self.take_back(to, back) else { return true };
            reply = back;
            match closed.then(|| closed_way(&link.way, to)) {
                None | Some(Closed::TryAgain) => {}
                // It is ending. Whoever ends it cuts the link, unless this is quicker.
                Some(Closed::Unlink) => self.unlink_from(&link),
                Some(Closed::Wait) => {
                    self.until(|lifecycle| {
                        let over = lifecycle.stop == Some(false) || self.link_word() != word;
                        over.then_some(())
                    })
                    .await;
                }
                Some(Closed::Refused) => {
                    self.refused(to, reply);
                    return true;
                }
            }
            if self.look(|lifecycle| lifecycle.stop == Some(false)) {
                if let Some(token) = reply.ask.take() {
                    self.fail_ask(token, AskFailure::Stopped);
                }
                self.dead_reply(reply, DeadLetterReason::NoRoom);
                return false;
            }
        }
    }

    /// The worker of its key has ended, and others have not.
    fn refused(&self, to: &dyn Accept<R>, reply: Envelope<R>) {
        let (failure, mut reply) = match to.refusal(reply) {
            SendError::Failed { envelope, fault, .. } => (AskFailure::Failed(fault), envelope),
            other => (AskFailure::Stopped, other.into_envelope()),
        };
        if let Some(token) = reply.ask.take() {
            let tell = self.asks.lock().hand_over(token).map(|origin| (origin, failure));
            if let Some((origin, failure)) = tell {
                origin.fail(failure.in_kernel(to.id()));
            }
        }
        self.dead_reply(reply, DeadLetterReason::Unreachable);
    }

    /// The reply answers an ask that waits elsewhere, if this is the kernel that is to answer it;
    /// otherwise the way to that one is cut, and the ask fails.
    pub(super) fn answer_elsewhere(&self, reply: Envelope<R>) {
        let origin = reply.ask.and_then(|token| self.asks.lock().hand_over(token));
        let Some(origin) = origin else {
            self.dead_reply(reply, DeadLetterReason::LateReply);
            return;
        };
        if origin.end != self.place() {
            origin.fail(AskFailure::Disconnected.in_kernel(&self.id));
            self.dead_reply(reply, DeadLetterReason::LateReply);
            return;
        }
        match origin.answer(reply) {
            Ok(()) => Telemetry::count(&self.telemetry.asks_answered),
            Err((reply, reason)) => self.dead_reply(reply, reason),
        }
    }

    /// Registers the ask that the reply carries on, if there is one, with the next kernel. `None`: it
    /// has ended, and the reply became a dead letter.
    #[inline]
    fn hand_over(&self, to: &dyn Accept<R>, mut reply: Envelope<R>) -> Option<Envelope<R>> {
        let Some(token) = reply.ask else { return Some(reply) };
        let origin = self.asks.lock().hand_over(token);
        reply.ask = origin.and_then(|origin| to.relay(reply.id, origin));
        self.unless_late(reply)
    }

    /// The reply was not accepted there: undoes [`hand_over`](Self::hand_over).
    fn take_back(&self, to: &dyn Accept<R>, mut reply: Envelope<R>) -> Option<Envelope<R>> {
        let Some(token) = reply.ask else { return Some(reply) };
        let passed = to.take_back(token).map(|origin| self.asks.lock().pass(reply.id, origin));
        reply.ask = match passed {
            Some(Ok(token)) => Some(token),
            Some(Err(tell)) => {
                tell_all([tell], Some(&self.id));
                None
            }
            None => None,
        };
        self.unless_late(reply)
    }

    fn unless_late(&self, reply: Envelope<R>) -> Option<Envelope<R>> {
        if reply.ask.is_none() {
            self.dead_reply(reply, DeadLetterReason::LateReply);
            return None;
        }
        Some(reply)
    }

    /// The next kernel rejects what it has no room for.
    fn no_room(&self, to: &dyn Accept<R>, mut reply: Envelope<R>) {
        if let Some(token) = reply.ask.take() {
            to.fail_ask(token, AskFailure::Dropped);
        }
        self.dead_reply(reply, DeadLetterReason::NoRoom);
    }

    /// The replies go to the output mailbox again. Not to be called under a lock.
    pub(super) fn unlink(&self) {
        let link = self.take_link(|_| true);
        if link.is_some() {
            self.change(|_| ());
        }
    }

    fn unlink_from(&self, link: &Arc<Link<R>>) {
        if let Some(runtime) = self.runtime.upgrade() {
            runtime.pipelines.forget(self);
        }
        drop(self.take_link(|present| Arc::ptr_eq(present, link)));
    }

    fn take_link(&self, wanted: impl FnOnce(&Arc<Link<R>>) -> bool) -> Option<Arc<Link<R>>> {
        let mut link = lock(&self.link);
        let taken = link.take_if(|present| wanted(present))?;
        self.note_link(false);
        // Where others share the output, an ended kernel leaves it as it is.
        if self.output.is_none() || !self.has_ended() {
            self.replies.reopen();
        }
        Some(taken)
    }
}

fn closed_way<R: Message>(way: &Way<R>, to: &dyn Accept<R>) -> Closed {
    match way {
        Way::Kernel(_) if to.has_failed() => Closed::Wait,
        Way::Kernel(_) => Closed::Unlink,
        Way::Pool(pool) if pool.is_living() && pool.takes_turns() => Closed::TryAgain,
        Way::Pool(pool) if pool.is_living() => Closed::Refused,
        Way::Pool(pool) if pool.has_failed() => Closed::Wait,
        Way::Pool(_) => Closed::Unlink,
    }
}

/// A reply that waits for room in the next kernel's mailbox.
struct Forwarding<'a, M: Message, R: Message> {
    cell: &'a Cell<M, R>,
    to: &'a dyn Accept<R>,
    send: Option<mailbox::Send<'a, Envelope<R>>>,
}

/// What became of it: accepted and counted, or given back.
type Forwarded<R> = Result<(), mailbox::SendError<Envelope<R>>>;

impl<M: Message, R: Message> Forwarding<'_, M, R> {
    fn poll(&mut self, cx: &mut TaskContext<'_>) -> Poll<Forwarded<R>> {
        let send = self.send.as_mut().expect("a send is not polled after it has ended");
        let sent = std::task::ready!(Pin::new(send).poll(cx));
        self.send = None;
        Poll::Ready(self.count(sent))
    }

    /// Ends the wait; `None` if it has ended before.
    fn give_up(&mut self) -> Option<Forwarded<R>> {
        let sent = self.send.take()?.give_up();
        Some(self.count(sent))
    }

    /// Counts a reply that waited for room, which the next kernel may have by now: whoever looks at
    /// both in between finds it there and not yet counted here.
    fn count(&self, sent: Sent<R>) -> Forwarded<R> {
        let admission = sent?;
        Telemetry::count(&self.cell.forwarded);
        admitted(self.to, admission);
        Ok(())
    }
}

/// The body gave up its reply: it is dropped, as any reply is then, unless it was accepted.
impl<M: Message, R: Message> Drop for Forwarding<'_, M, R> {
    fn drop(&mut self) {
        if let Some(Err(error)) = self.give_up() {
            let reply = error.into_inner();
            if let Some(token) = reply.ask {
                self.to.fail_ask(token, AskFailure::Dropped);
            }
            dead_letter::discard(reply);
        }
    }
}
