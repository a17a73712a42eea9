//! What passes between two kernels where this process does not see it: for executors whose kernels send
//! to each other where they run.
//!
//! To everyone else it is as if replies had gone from mailbox to mailbox. The proxy of the sender counts
//! them as [sent on](Context::count_sent_on), that of the receiver counts them as
//! [accepted and processed](Context::count_adopted). An ask stays registered with the kernel that the
//! host handed it to, as a [`Passage`], until some proxy has a reply for it; whatever ends an ask on
//! its way ends it there.

use std::fmt;
use std::future::Future;
use std::sync::Arc;

use dotcompute_mailbox::{Backpressure, Band, Lent, Outcome};

use crate::context::Context;
use crate::dead_letter::{DeadLetter, DeadLetterReason};
use crate::id::MessageId;
use crate::kernel::{Accept, Address, AnyCell, Cell, KernelRef, Way};
use crate::lent::LentMessage;
use crate::message::{AskToken, Envelope, Message};
use crate::pipeline::{Key, key};

/// Which kernel it is: of two that live, equal keys are one kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct KernelKey(Key);

/// The kernel that another one is connected to, or sends to.
pub struct NextStage<R>(Arc<dyn Accept<R>>);

impl<R: Message> NextStage<R> {
    /// Which kernel it is.
    pub fn key(&self) -> KernelKey {
        KernelKey(key(&*self.0))
    }

    /// Whether it takes messages: it was activated, and is not to end.
    pub fn is_open(&self) -> bool {
        self.0.is_open()
    }

    /// Whether those who send to it wait for room.
    pub fn waits_for_room(&self) -> bool {
        self.0.mailbox().backpressure() == Backpressure::Block
    }

    /// Whether nothing is in its mailbox, and it has nothing in hand that was.
    pub fn is_quiet(&self) -> bool {
        let books = self.0.mailbox().books();
        books.queued == 0 && books.in_hand == 0
    }

    /// A message that was on its way there when the kernel ended: one of its dead letters.
    pub fn bury(&self, message: Envelope<R>) {
        let letter = DeadLetter::of(self.0.id(), message, DeadLetterReason::Undelivered, true);
        self.0.dead_letter(letter);
    }
}

impl<R> fmt::Debug for NextStage<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NextStage")
    }
}

/// An ask on its way through kernels, the last of which is to answer it.
pub struct Passage {
    cell: Arc<dyn AnyCell>,
    token: AskToken,
}

impl Passage {
    /// Whether somebody waits for its answer still.
    pub fn is_awaited(&self) -> bool {
        self.cell.passes_through(self.token).is_some_and(|origin| origin.waits())
    }
}

impl fmt::Debug for Passage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Passage").field("kernel", &self.cell.id()).finish_non_exhaustive()
    }
}

/// For proxies of kernels that send to others.
impl<M: Message> Address<M> {
    /// The kernel, as those see it whose messages go there.
    pub fn stage(&self) -> NextStage<M> {
        NextStage(Arc::clone(&self.to))
    }
}

/// For executors of proxies.
impl<M: Message, R: Message> KernelRef<M, R> {
    /// Which kernel it is.
    pub fn key(&self) -> KernelKey {
        KernelKey(key(&*self.cell))
    }
}

/// For proxies: see the module.
impl<M: Message, R: Message> Context<M, R> {
    /// The kernel that this one is connected to; none if that is a pool.
    pub fn next_stage(&self) -> Option<NextStage<R>> {
        match &self.cell.link()?.way {
            Way::Kernel(kernel) => Some(NextStage(Arc::clone(kernel))),
            Way::Pool(_) => None,
        }
    }

    /// A word that is another one after each change of [`next_stage`](Self::next_stage).
    pub fn link_word(&self) -> u32 {
        self.cell.link_word()
    }

    /// Waits until [`link_word`](Self::link_word) is not `seen`; a future of its own.
    pub fn link_changes(&self, seen: u32) -> impl Future<Output = ()> + Send + use<M, R> {
        let cell = Arc::clone(&self.cell);
        async move {
            let changed = || (cell.link_word() != seen).then_some(());
            cell.until(|_| changed()).await;
        }
    }

    /// The ask of the `index`th oldest of the messages that are lent, if another kernel than this one
    /// is to answer it.
    pub fn passage(&self, index: usize) -> Option<Passage> {
        let token = self.lent_at(index)?.ask?;
        let cell: Arc<dyn AnyCell> = self.cell.clone();
        let origin = cell.passes_through(token)?;
        (origin.end != cell.place()).then_some(Passage { cell, token })
    }

    /// [`try_send`](Self::try_send) of a reply that answers an ask as this kernel is the last one on
    /// its way, or goes on with it to the next. If the ask has ended, it is a dead letter.
    ///
    /// # Errors
    ///
    /// As for `try_send`.
    pub fn try_send_through(
        &mut self,
        passage: Passage,
        mut reply: Envelope<R>,
    ) -> Result<(), Envelope<R>> {
        let id = MessageId::next();
        let Some(token) = self.take_over(passage, id) else {
            self.bury_late(reply);
            return Ok(());
        };
        reply.correlation_id = Some(id);
        self.try_send_with(Some((id, Some(token))), reply)
    }

    /// A reply that comes after the one that its ask went on with: a dead letter.
    pub fn bury_late(&self, reply: Envelope<R>) {
        self.cell.dead_reply(reply, DeadLetterReason::LateReply);
    }

    fn take_over(&self, passage: Passage, id: MessageId) -> Option<AskToken> {
        let origin = passage.cell.take_back_passing(passage.token)?;
        <Cell<M, R> as Accept<M>>::relay(&self.cell, id, origin)
    }

    /// So many replies went straight to the next kernel. Those that came back, since it did not take
    /// them, count as less than none: modulo 2^64.
    pub fn count_sent_on(&mut self, replies: u64) {
        self.add_sent_on(replies);
    }

    /// So many messages came to this kernel past its mailbox, and were processed.
    pub fn count_adopted(&mut self, messages: usize) {
        self.inbox.adopt(messages);
        self.inbox.settle_lent(messages, Outcome::Processed);
    }

    /// A message that came to this kernel past its mailbox, and at which it is about to fail: in hand,
    /// as if it had been lent and delivered. No more can be lent to the same proxy.
    pub fn adopt(&mut self, mut message: Envelope<M>, passage: Option<Passage>) {
        self.inbox.adopt(1);
        message.ask = passage.and_then(|passage| self.take_over(passage, message.id));
        let band = Band::from_priority(message.priority);
        let lent = Lent { value: message, band, times: None };
        self.lent.push(LentMessage::delivered(lent));
    }
}
