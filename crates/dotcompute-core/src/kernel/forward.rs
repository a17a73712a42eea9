//! The way of a reply from a kernel that is connected straight into the mailbox of the next one.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll};

use dotcompute_mailbox::sync::lock;
use dotcompute_mailbox::{self as mailbox, Backpressure, Band};

use super::Cell;
use super::life::Waiter;
use super::send::{Accept, Sent, admitted};
use crate::ask::AskFailure;
use crate::dead_letter::{self, DeadLetterReason};
use crate::message::{Envelope, Message};
use crate::pipeline::key;
use crate::relay::{Home, tell_all};
use crate::telemetry::Telemetry;

/// Where the replies of a connected kernel go.
pub(crate) struct Link<R> {
    pub(super) to: Arc<dyn Accept<R>>,
    /// Where those wait who ask the kernel while it is connected.
    pub(super) home: Arc<Home<R>>,
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

    /// The kernel that this one is connected to.
    pub(crate) fn next(&self) -> Option<Arc<dyn Accept<R>>> {
        self.link().map(|link| Arc::clone(&link.to))
    }

    /// The link as it is once whoever changes it now has done so.
    fn settled_link(&self) -> (u32, Option<Arc<Link<R>>>) {
        let link = lock(&self.link);
        (self.link_word(), link.clone())
    }

    /// Forwards a reply as far as that takes no waiting, whether it was sent on, for the caller to
    /// count, or became a dead letter; else it comes back, for [`forward`](Self::forward).
    pub(crate) fn try_forward(
        &self,
        to: &dyn Accept<R>,
        mut reply: Envelope<R>,
    ) -> Result<bool, Envelope<R>> {
        if reply.ask.is_some() {
            let Some(handed_over) = self.hand_over(to, reply) else { return Ok(false) };
            reply = handed_over;
        }
        let band = Band::from_priority(reply.priority);
        match to.mailbox().offer(band, reply) {
            Ok(admission) => {
                admitted(to, admission);
                Ok(true)
            }
            Err(mailbox::TrySendError::Full(reply))
                if to.mailbox().backpressure() == Backpressure::Reject =>
            {
                self.no_room(to, reply);
                Ok(false)
            }
            Err(mailbox::TrySendError::Full(reply) | mailbox::TrySendError::Closed(reply)) => {
                self.take_back(to, reply).map_or(Ok(false), Err)
            }
        }
    }

    /// Brings a reply to the next kernel, and waits for room there if that is its policy. Where the
    /// next kernel has failed, this waits until it is terminated or the two are disconnected; where
    /// there is no next kernel any more the reply goes to the output mailbox. `false` if the kernel
    /// had to stop instead, and the reply became a dead letter.
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
            let to = &*link.to;
            let Some(handed_over) = self.hand_over(to, reply) else { return true };
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
            if closed && !to.has_failed() {
                // It is ending. Whoever ends it cuts the link, unless this is quicker.
                self.unlink_from(&link);
            } else if closed {
                self.until(|lifecycle| {
                    let over = lifecycle.stop == Some(false) || self.link_word() != word;
                    over.then_some(())
                })
                .await;
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

    /// The reply answers an ask that waits elsewhere, if this is the kernel that is to answer it;
    /// otherwise the way to that one is cut, and the ask fails.
    pub(super) fn answer_elsewhere(&self, reply: Envelope<R>) {
        let origin = reply.ask.and_then(|token| self.asks.lock().hand_over(token));
        let Some(origin) = origin else {
            self.dead_reply(reply, DeadLetterReason::LateReply);
            return;
        };
        if origin.end != key(self) {
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
