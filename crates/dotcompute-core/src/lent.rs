//! Messages handed on to where a kernel runs, if that is elsewhere: for executors whose kernels are
//! processes or run on a device.
//!
//! Such an executor launches a kernel with a *proxy* for a body
//! ([`KernelBuilder::launch_proxy`](crate::KernelBuilder::launch_proxy)): a future that takes messages
//! out of the mailbox, hands them on, and brings back replies and what became of each. Every message
//! that it took is in hand until the proxy settles it. What it has not settled when it ends (it is
//! dropped, say, since the kernel was terminated) is settled by the kernel's restart policy if the
//! far side had received it, and else goes back to where it was queued.

use std::collections::VecDeque;
use std::fmt;
use std::future::Future;
use std::ops::Range;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll};

use dotcompute_mailbox::{Band, Books, Inbox, Lent, Outcome, clock};

use crate::context::Context;
use crate::dead_letter::{self, DeadLetter, DeadLetterReason};
use crate::error::{Fault, Stopped};
use crate::executor::{Helper, Place};
use crate::kernel::{Cell, KernelRef};
use crate::message::{AskToken, Envelope, Message};
use crate::options::DELIVERIES_MAX;

/// One message that is elsewhere, kept here until it is settled.
pub(crate) struct LentMessage<M> {
    lent: Lent<Envelope<M>>,
    /// Whether the far side has received it.
    delivered: bool,
    /// Settled before an older one was, behind which it stays.
    settled: bool,
}

/// All of them, in the order in which they were taken out.
pub(crate) struct LentMessages<M> {
    queue: VecDeque<LentMessage<M>>,
}

impl<M> LentMessage<M> {
    /// One that was just taken out.
    fn fresh(lent: Lent<Envelope<M>>) -> Self {
        Self { lent, delivered: false, settled: false }
    }

    /// One that the far side has received.
    pub(crate) fn delivered(lent: Lent<Envelope<M>>) -> Self {
        Self { lent, delivered: true, settled: false }
    }

    /// One that was adopted, to be handled where the kernel is, and was not.
    pub(crate) fn adopted(message: M, delivered: bool) -> Self
    where
        M: Message,
    {
        let value = Envelope::new(message);
        let band = Band::from_priority(value.priority);
        Self { lent: Lent { value, band, times: None }, delivered, settled: false }
    }
}

impl<M> LentMessages<M> {
    pub(crate) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    pub(crate) fn push(&mut self, message: LentMessage<M>) {
        self.queue.push_back(message);
    }
}

impl<M> Default for LentMessages<M> {
    fn default() -> Self {
        Self { queue: VecDeque::new() }
    }
}

impl<M> fmt::Debug for LentMessage<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LentMessage").field("delivered", &self.delivered).finish_non_exhaustive()
    }
}

/// For proxies. Use these or [`receive`](Self::receive) and its kin, not both.
impl<M: Message, R: Message> Context<M, R> {
    /// Takes up to `max` messages that are still wanted out of the mailbox, behind those that are
    /// lent already; how many, at least one. The last waker given is the one that is woken.
    ///
    /// # Errors
    ///
    /// [`Stopped`] once the kernel is to end and nothing more is handed to it.
    pub fn poll_lend(
        &mut self,
        max: usize,
        cx: &mut TaskContext<'_>,
    ) -> Poll<Result<usize, Stopped>> {
        let before = self.lent.queue.len();
        loop {
            match self.inbox.poll_lend(max, &mut self.lent.queue, LentMessage::fresh, cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Err(_closed)) => return Poll::Ready(Err(self.stopped())),
                Poll::Ready(Ok(())) => {}
            }
            let mut index = before;
            while let Some(LentMessage { lent, .. }) = self.lent.queue.get(index) {
                index += 1;
                if lent.value.ask.is_none_or(|token| self.cell.ask_received(token)) {
                    continue;
                }
                // Nobody waits for it any more.
                index -= 1;
                let expired = self.lent.queue.remove(index);
                self.inbox.settle_lent(1, Outcome::Expired);
                dead_letter::discard(expired.map(|expired| expired.lent.value));
            }
            if self.lent.queue.len() > before {
                return Poll::Ready(Ok(self.lent.queue.len() - before));
            }
        }
    }

    /// The messages that were lent, oldest first, from the oldest that is not settled.
    pub fn lent(&self) -> impl ExactSizeIterator<Item = &Envelope<M>> + DoubleEndedIterator {
        self.lent.queue.iter().map(|message| &message.lent.value)
    }

    /// The `index`th oldest of them.
    pub fn lent_at(&self, index: usize) -> Option<&Envelope<M>> {
        self.lent.queue.get(index).map(|message| &message.lent.value)
    }

    /// Whether somebody waited for the answer to the `index`th oldest of them when it was taken out.
    pub fn is_lent_ask(&self, index: usize) -> bool {
        self.lent_at(index).is_some_and(|envelope| envelope.ask.is_some())
    }

    /// Says that the far side has received the oldest `count` of them, so that each was delivered
    /// once, whatever becomes of it.
    pub fn mark_delivered(&mut self, count: usize) {
        self.lent.queue.iter_mut().take(count).for_each(|message| message.delivered = true);
    }

    /// As [`mark_delivered`](Self::mark_delivered), for the `index`th oldest alone.
    pub fn mark_delivered_at(&mut self, index: usize) {
        if let Some(message) = self.lent.queue.get_mut(index) {
            message.delivered = true;
        }
    }

    /// Settles the oldest `count` of them, which were processed.
    pub fn settle_lent(&mut self, count: usize) {
        self.note_settled(0..count.min(self.lent.queue.len()));
        self.drop_settled();
    }

    /// Settles the `index`th oldest of them, which was processed, perhaps before older ones. By how
    /// many places the others have moved up: by more than none once all that are older are settled.
    pub fn settle_lent_at(&mut self, index: usize) -> usize {
        if index < self.lent.queue.len() {
            self.note_settled(index..index + 1);
        }
        self.drop_settled()
    }

    fn note_settled(&mut self, indices: Range<usize>) {
        let mut count = 0;
        for message in self.lent.queue.range_mut(indices) {
            count += usize::from(!std::mem::replace(&mut message.settled, true));
        }
        self.inbox.settle_lent(count, Outcome::Processed);
    }

    fn drop_settled(&mut self) -> usize {
        let mut dropped = 0;
        while self.lent.queue.front().is_some_and(|message| message.settled) {
            let Some(LentMessage { lent, .. }) = self.lent.queue.pop_front() else { break };
            dropped += 1;
            if let Some(times) = lent.times {
                let handler_ns = clock::now_ns().saturating_sub(times.delivered_ns);
                self.cell.telemetry.record(times.queued_ns, handler_ns);
            }
            dead_letter::discard(lent.value);
        }
        dropped
    }

    /// Waits until the kernel is deactivated, if it was not (`paused` is false), or active again; a
    /// future of its own. Of a kernel that is to end it stays pending.
    pub fn pause_changes(&self, paused: bool) -> impl Future<Output = ()> + Send + use<M, R> {
        let cell = Arc::clone(&self.cell);
        async move {
            cell.until(|lifecycle| {
                (lifecycle.stop.is_none() && lifecycle.paused != paused).then_some(())
            })
            .await
        }
    }

    /// [`try_send`](Self::try_send) of a reply that was made with the `index`th oldest of them in
    /// hand, or with none.
    ///
    /// # Errors
    ///
    /// As for `try_send`.
    pub fn try_send_from(
        &mut self,
        index: Option<usize>,
        reply: Envelope<R>,
    ) -> Result<(), Envelope<R>> {
        let in_hand = index
            .and_then(|index| self.lent.queue.get(index))
            .map(|message| (message.lent.value.id, message.lent.value.ask));
        self.try_send_with(in_hand, reply)
    }

    /// Whether the kernel was asked to end: to look whether it is to do so [at once](Self::stop_at_once)
    /// is worth its while.
    pub fn may_stop_at_once(&self) -> bool {
        self.cell.is_stopping()
    }

    /// Waits until the kernel is to end without finishing what is queued; a future of its own.
    pub fn stop_at_once(&self) -> impl Future<Output = ()> + Send + use<M, R> {
        let cell = Arc::clone(&self.cell);
        async move { cell.until(|lifecycle| (lifecycle.stop == Some(false)).then_some(())).await }
    }
}

/// For executors of proxies.
impl<M: Message, R: Message> KernelRef<M, R> {
    /// From now on those who wait for the kernel on a thread of their own drive it with `helper`, where
    /// nobody else does. The first helper counts.
    pub fn help_with(&self, helper: Arc<dyn Helper>) {
        let _ = self.cell.helper.set(helper);
    }

    /// Whether those who wait for it can drive it.
    pub fn is_driven_by_guests(&self) -> bool {
        self.cell.helper.get().is_some()
    }

    /// Calls `f` in the place of the thread that drives the kernel, where its executor
    /// [allows](Helper) that and nobody is in it; whether it did.
    pub fn in_place(&self, f: &mut dyn FnMut(&mut dyn Place)) -> bool {
        self.cell.helper.get().is_some_and(|helper| helper.in_place(f))
    }
}

/// For the far side of a proxy, where the kernel itself runs.
impl<M: Message, R: Message> KernelRef<M, R> {
    /// The books, and whether the kernel waits for a message or found none when it looked last; both
    /// as of one instant. When it begins to wait anew, the task of `cx` is woken; of several, the
    /// one that asked last.
    pub fn books_awaited(&self, cx: &mut TaskContext<'_>) -> (Books, bool) {
        self.cell.mailbox.books_awaited(cx)
    }
}

/// The proxy is gone; what it had not settled is settled as the end of the kernel's run says.
/// `fault`: that it failed with, or that it was terminated; none if it returned. The asks among the
/// messages that became dead letters.
pub(crate) fn settle<M: Message, R: Message>(
    cell: &Cell<M, R>,
    inbox: &mut Inbox<Envelope<M>>,
    fault: Option<&Fault>,
    redeliver: bool,
) -> Vec<AskToken> {
    let mut back = VecDeque::new();
    let mut failed = Vec::new();
    for LentMessage { mut lent, delivered, settled } in cell.take_lent().queue {
        if settled {
            dead_letter::discard(lent.value);
            continue;
        }
        let Some(fault) = fault.filter(|_| delivered) else {
            match delivered {
                true => {
                    inbox.settle_lent(1, Outcome::Processed);
                    dead_letter::discard(lent.value);
                }
                false => back.push_front((lent, false)),
            }
            continue;
        };
        if redeliver && lent.value.delivery_count < DELIVERIES_MAX {
            lent.value.delivery_count += 1;
            back.push_front((lent, true));
            continue;
        }
        inbox.settle_lent(1, Outcome::DeadLettered);
        failed.extend(lent.value.ask);
        let reason = DeadLetterReason::Faulted(fault.clone());
        cell.dead_letter(DeadLetter::of(&cell.id, lent.value, reason, true));
    }
    // The last first, so that they keep their order.
    for (lent, delivered) in back {
        inbox.put_back_lent(lent, delivered);
    }
    failed
}
