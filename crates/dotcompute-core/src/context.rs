//! A kernel seen from inside: what its body receives from and replies through.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context as TaskContext, Poll};
use std::time::{Duration, Instant};

use dotcompute_mailbox::{Inbox, Outcome, Times, clock, wait};

use crate::dead_letter::DeadLetterReason;
use crate::error::{KernelId, LookupError, ReceiveError, Stopped};
use crate::id::MessageId;
use crate::kernel::{Address, Cell, Outlet};
use crate::lent::{LentMessage, LentMessages};
use crate::message::{AskToken, Envelope, Message, Taken};
use crate::runtime::{Runtime, Shared};
use crate::timer;

/// How many messages a kernel receives in one go before it lets others of its executor run.
const BUDGET: u32 = 128;

/// The inside of a ring kernel that takes `M` and replies with `R`.
///
/// One message at a time is *in hand*: from the receive that delivered it to the next receive, or
/// until the body ends. If the body fails meanwhile, that message becomes a dead letter or is
/// delivered again, as the kernel's [`Restart`](crate::Restart) says.
#[repr(C, align(64))] // In the order of use: what every receive touches are two cache lines.
pub struct Context<M: Message, R: Message> {
    pub(crate) inbox: Inbox<Envelope<M>>,
    pub(crate) cell: Arc<Cell<M, R>>,
    /// Where replies go, as it was when the word was read.
    outlet: Outlet<R>,
    link_word: u32,
    budget: u32,
    /// Replies that went straight to the next kernel: see [`Cell::set_sent_on`].
    sent_on: u64,
    /// The message in hand, if the body took it out of its envelope.
    taken: Option<Taken>,
    /// Messages that were handed on to where the kernel runs: see `lent.rs`.
    pub(crate) lent: LentMessages<M>,
}

/// How a reply began.
enum Begun<R> {
    /// It took no waiting.
    Ended(Result<(), Stopped>),
    /// It waits for room; and whether it answers the message in hand.
    Waits(Envelope<R>, bool),
}

/// Nothing in it is ever pinned, whatever the messages are.
impl<M: Message, R: Message> Unpin for Context<M, R> {}

impl<M: Message, R: Message> Context<M, R> {
    /// `None` while an earlier context of the kernel is alive.
    pub(crate) fn new(cell: &Arc<Cell<M, R>>) -> Option<Self> {
        Some(Self {
            inbox: cell.mailbox.inbox()?,
            budget: BUDGET,
            taken: None,
            cell: Arc::clone(cell),
            outlet: Outlet::Mailbox,
            link_word: 0,
            sent_on: cell.sent_on(),
            lent: LentMessages::default(),
        })
    }

    /// The name of this kernel.
    pub fn id(&self) -> &KernelId {
        &self.cell.id
    }

    /// Whether the kernel is to end: time to stop what takes long.
    pub fn is_stopping(&self) -> bool {
        self.cell.look(|lifecycle| lifecycle.stop.is_some())
    }

    /// Waits until the kernel is to end; for bodies that also wait for other things. Cancel-safe.
    pub async fn stopping(&self) {
        self.cell.until(|lifecycle| lifecycle.stop.map(drop)).await;
    }

    /// Receives the next message, which is then in hand; the one before is settled as processed.
    /// Waits while the mailbox is empty or the kernel is deactivated.
    ///
    /// # Errors
    ///
    /// [`Stopped`] once the kernel is to end and nothing more is handed to it. To return it, or to
    /// leave the loop, is the normal end of a body.
    ///
    /// # Cancel safety
    ///
    /// A message is delivered exactly when the future is ready; nothing is lost before.
    #[inline]
    pub async fn receive(&mut self) -> Result<&M, Stopped> {
        self.next().await?;
        Ok(self.message())
    }

    /// [`receive`](Self::receive) without a look at the message.
    #[inline]
    pub(crate) async fn next(&mut self) -> Result<(), Stopped> {
        match self.advance() {
            true => Ok(()),
            false => std::future::poll_fn(|cx| self.poll_receive(cx)).await,
        }
    }

    /// [`receive`](Self::receive) that gives up after `timeout`. The message before is settled in
    /// any case.
    ///
    /// # Errors
    ///
    /// [`ReceiveError::Timeout`], or [`ReceiveError::Stopped`].
    ///
    /// # Cancel safety
    ///
    /// As for `receive`.
    pub async fn receive_timeout(&mut self, timeout: Duration) -> Result<&M, ReceiveError> {
        let kernel = self.cell.id.clone();
        // Before the clock runs: to let others run is not to wait for a message.
        std::future::poll_fn(|cx| self.poll_turn(cx)).await;
        let next = std::future::poll_fn(|cx| self.poll_receive(cx));
        match timer::timeout_at(timer::after(timeout), next).await {
            Some(Ok(())) => Ok(self.message()),
            Some(Err(Stopped { kernel })) => Err(ReceiveError::Stopped { kernel }),
            None => Err(ReceiveError::Timeout { kernel }),
        }
    }

    /// [`receive`](Self::receive) that waits on the calling thread; for kernels on the thread
    /// executor whose bodies block.
    ///
    /// # Errors
    ///
    /// [`ReceiveError::Timeout`], or [`ReceiveError::Stopped`].
    pub fn receive_blocking(&mut self, timeout: Option<Duration>) -> Result<&M, ReceiveError> {
        let deadline: Option<Instant> = timeout.and_then(timer::after);
        // Whoever blocks a thread lets nobody else run on it.
        self.budget = BUDGET;
        let next = std::future::poll_fn(|cx| self.poll_receive(cx));
        let outcome = wait::block_on_until(next, deadline).ok();
        match outcome {
            Some(Ok(())) => Ok(self.message()),
            Some(Err(Stopped { kernel })) => Err(ReceiveError::Stopped { kernel }),
            None => Err(ReceiveError::Timeout { kernel: self.cell.id.clone() }),
        }
    }

    /// The message in hand with its id, correlation, priority and delivery count; `None` before the
    /// first receive, or if it was taken.
    #[inline]
    pub fn envelope(&self) -> Option<&Envelope<M>> {
        self.inbox.current()
    }

    /// Moves the message in hand out. It still counts as in hand; but if the kernel fails, its dead
    /// letter is without content, and it is not delivered again.
    pub fn take(&mut self) -> Option<M> {
        let (taken, message) = self.inbox.take()?.into_parts();
        self.taken = Some(taken);
        Some(message)
    }

    /// Replies to the message in hand: to its asker, or into the output mailbox if it was only
    /// sent; or, if this kernel is [connected](crate::KernelRef::connect), to the next one. Waits while
    /// the mailbox of these is full, if its policy is to block.
    ///
    /// # Errors
    ///
    /// [`Stopped`] if the kernel has ended, or was told to stop while it waited for room; the reply
    /// is then a dead letter.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped before it is ready, the reply was either delivered or is dropped.
    #[inline]
    pub async fn reply(&mut self, reply: R) -> Result<(), Stopped> {
        match self.begin_reply(reply) {
            Begun::Ended(outcome) => outcome,
            Begun::Waits(reply, answers) => self.wait_for_room(reply, answers).await,
        }
    }

    #[inline]
    fn begin_reply(&mut self, reply: R) -> Begun<R> {
        let mut envelope = Envelope::new(reply);
        envelope.correlation_id = self.in_hand().map(|(id, _)| id);
        self.begin_send(envelope)
    }

    /// Sends a reply that says itself what it belongs to: the ask that its correlation id names;
    /// else the ask with the same message id (an echo); else, if it has no correlation id, the
    /// oldest unanswered ask that this kernel has received; else the output mailbox. A reply to an
    /// ask that has ended is a dead letter; where it is not the ask in hand, the last 1024 asks that
    /// ended are known.
    ///
    /// # Errors
    ///
    /// As for [`reply`](Self::reply).
    ///
    /// # Cancel safety
    ///
    /// As for `reply`.
    #[inline]
    pub async fn send(&mut self, reply: impl Into<Envelope<R>>) -> Result<(), Stopped> {
        match self.begin_send(reply.into()) {
            Begun::Ended(outcome) => outcome,
            Begun::Waits(reply, answers) => self.wait_for_room(reply, answers).await,
        }
    }

    /// Sends as far as that takes no waiting. No future keeps the envelope until then: it would be
    /// copied from one to the next.
    #[inline]
    fn begin_send(&mut self, reply: Envelope<R>) -> Begun<R> {
        let (reply, answers) = self.route(reply);
        match reply.map_or(Ok(true), |reply| self.send_out(reply)) {
            Err(reply) => return Begun::Waits(reply, answers),
            Ok(false) => return Begun::Ended(Err(self.stopped())),
            Ok(true) => {}
        }
        if answers {
            self.answered();
        }
        Begun::Ended(Ok(()))
    }

    /// Brings a reply that is for no ask out of the kernel; `false`: the kernel has ended, and it
    /// became a dead letter. It comes back if it has to wait.
    #[inline]
    fn send_out(&mut self, reply: Envelope<R>) -> Result<bool, Envelope<R>> {
        self.look_at_link();
        let Self { cell, outlet, sent_on, .. } = self;
        let count = || {
            *sent_on = sent_on.wrapping_add(1);
            cell.set_sent_on(*sent_on);
        };
        match outlet {
            Outlet::Mailbox => return cell.try_output(reply),
            Outlet::Kernel(kernel) => cell.try_forward(&**kernel, reply, count)?,
            Outlet::Pool(link) => cell.try_forward_by(link, reply, count)?,
        }
        Ok(true)
    }

    pub(crate) fn add_sent_on(&mut self, replies: u64) {
        self.sent_on = self.sent_on.wrapping_add(replies);
        self.cell.set_sent_on(self.sent_on);
    }

    /// Boxed: it is large, it is rare, and the futures of all who reply would have to hold it.
    fn wait_for_room(
        &mut self,
        reply: Envelope<R>,
        answers: bool,
    ) -> Pin<Box<dyn Future<Output = Result<(), Stopped>> + Send + '_>> {
        Box::pin(async move {
            if !self.cell.forward(reply).await {
                return Err(self.stopped());
            }
            if answers {
                self.answered();
            }
            Ok(())
        })
    }

    /// Brings a reply to its ask; what comes back is for others. And whether it answers the message
    /// in hand.
    #[inline]
    fn route(&mut self, reply: Envelope<R>) -> (Option<Envelope<R>>, bool) {
        let in_hand = self.in_hand();
        let (id, correlation_id) = (reply.id, reply.correlation_id);
        let left = self.cell.route(in_hand, reply);
        let answers = in_hand.is_some_and(|(in_hand, ask)| match (correlation_id, ask) {
            (Some(named), _) => named == in_hand,
            (None, _) if id == in_hand => true,
            (None, None) => left.is_some(),
            (None, Some(token)) => left.is_none() && !self.cell.ask_waits(token),
        });
        (left, answers)
    }

    /// The kernel has replied to the message in hand.
    #[inline]
    fn answered(&mut self) {
        match (self.inbox.current_mut(), &mut self.taken) {
            (Some(envelope), _) => envelope.answered = true,
            (None, Some(taken)) => taken.answered = true,
            (None, None) => {}
        }
    }

    /// [`reply`](Self::reply) that waits on the calling thread.
    ///
    /// # Errors
    ///
    /// As for `reply`.
    pub fn reply_blocking(&mut self, reply: R) -> Result<(), Stopped> {
        wait::block_on(self.reply(reply))
    }

    /// [`send`](Self::send) as far as it takes no waiting, for executors that wait in a way of
    /// their own.
    ///
    /// # Errors
    ///
    /// The reply comes back if the output mailbox is full and its policy is to block: give it to
    /// [`output`](Self::output).
    #[inline]
    pub fn try_send(&mut self, reply: impl Into<Envelope<R>>) -> Result<(), Envelope<R>> {
        let reply = reply.into();
        // As `route` finds too; but the reply need not be moved for it.
        if let Some((id, None)) = self.in_hand()
            && reply.correlation_id == Some(id)
        {
            self.send_out(reply)?;
            self.answered();
            return Ok(());
        }
        let (reply, answers) = self.route(reply);
        if let Some(reply) = reply {
            // Where the kernel has ended, nobody is left to be told of it.
            self.send_out(reply)?;
        }
        if answers {
            self.answered();
        }
        Ok(())
    }

    /// A reply to another message than the one in hand.
    #[inline]
    pub(crate) fn try_send_with(
        &mut self,
        in_hand: Option<(MessageId, Option<AskToken>)>,
        reply: Envelope<R>,
    ) -> Result<(), Envelope<R>> {
        match self.cell.route(in_hand, reply) {
            None => Ok(()),
            Some(reply) => self.send_out(reply).map(drop),
        }
    }

    /// Waits for room in the output mailbox for a reply that [`try_send`](Self::try_send) gave
    /// back. The future owns what it needs, so that the context can be used meanwhile.
    ///
    /// # Errors
    ///
    /// As for [`reply`](Self::reply).
    ///
    /// # Cancel safety
    ///
    /// As for `reply`.
    pub fn output(
        &self,
        reply: Envelope<R>,
    ) -> impl Future<Output = Result<(), Stopped>> + Send + use<M, R> {
        let cell = Arc::clone(&self.cell);
        async move {
            match cell.forward(reply).await {
                true => Ok(()),
                false => Err(Stopped { kernel: cell.id.clone() }),
            }
        }
    }

    /// The runtime that this kernel lives in; `None` once it is gone.
    pub fn runtime(&self) -> Option<Runtime> {
        self.cell.runtime.upgrade().map(Runtime::from_shared)
    }

    pub(crate) fn weak_runtime(&self) -> Weak<Shared> {
        Weak::clone(&self.cell.runtime)
    }

    /// The address of another kernel that takes `N`, by its name.
    ///
    /// # Errors
    ///
    /// If there is no such kernel, or it takes another type.
    pub fn address_of<N: Message>(&self, kernel: &str) -> Result<Address<N>, LookupError> {
        match self.runtime() {
            Some(runtime) => runtime.address(kernel),
            None => Err(LookupError::NotFound { kernel: kernel.into() }),
        }
    }

    #[inline]
    fn look_at_link(&mut self) {
        let word = self.cell.link_word();
        if word != self.link_word {
            self.outlet = self.cell.outlet();
            self.link_word = word;
        }
    }

    /// Tells whether the kernel is to end at once, from inside a call that does not return to it.
    pub(crate) fn must_stop(&self) -> impl Fn() -> bool + Send + use<M, R> {
        let cell = Arc::clone(&self.cell);
        move || cell.is_killed() || cell.look(|lifecycle| lifecycle.stop == Some(false))
    }

    /// The message in hand held so many records.
    pub(crate) fn count_records(&self, records: usize) {
        self.cell.telemetry.count_records(records);
    }

    /// A reply that was made and finds no way out any more: a dead letter.
    pub fn bury(&self, reply: Envelope<R>) {
        self.cell.dead_reply(reply, DeadLetterReason::NoRoom);
    }

    /// [`bury`](Self::bury) for replies that come to light when the body is gone.
    pub fn buries(&self) -> impl Fn(Envelope<R>) + Send + use<M, R> {
        let cell = Arc::clone(&self.cell);
        move |reply| cell.dead_reply(reply, DeadLetterReason::NoRoom)
    }

    pub(crate) fn stopped(&self) -> Stopped {
        Stopped { kernel: self.cell.id.clone() }
    }

    fn message(&self) -> &M {
        match self.inbox.current() {
            Some(envelope) => &envelope.message,
            None => unreachable!("a message was just delivered"),
        }
    }

    /// The id of the message in hand, and its ask.
    #[inline]
    pub(crate) fn in_hand(&self) -> Option<(MessageId, Option<AskToken>)> {
        match (self.inbox.current(), &self.taken) {
            (Some(envelope), _) => Some((envelope.id, envelope.ask)),
            (None, Some(taken)) => Some((taken.id, taken.ask)),
            (None, None) => None,
        }
    }

    /// Receives the next message if there is nothing else to do: no lock to take, no time to note, no
    /// destructor to run, nobody's turn, nobody who asked. So it is most of the time while messages
    /// wait. If false, [`poll_receive`](Self::poll_receive) does the rest.
    #[inline(always)]
    pub(crate) fn advance(&mut self) -> bool {
        if std::mem::needs_drop::<M>()
            || self.budget == 0
            || self.inbox.has_times()
            || !self.inbox.advance()
        {
            return false;
        }
        self.taken = None;
        self.budget -= 1;
        self.inbox.current().is_none_or(|envelope| envelope.ask.is_none()) || self.is_wanted()
    }

    /// Whether the message that was just delivered is still wanted; if not, it is settled.
    fn is_wanted(&mut self) -> bool {
        let asked = self.inbox.current().and_then(|envelope| envelope.ask);
        let is_wanted = asked.is_none_or(|token| self.cell.ask_received(token));
        if !is_wanted {
            // Nobody waits for it any more.
            drop(self.inbox.settle(Outcome::Expired));
        }
        is_wanted
    }

    /// [`receive`](Self::receive) in poll form, for executors that wait in a way of their own:
    /// settles what is in hand and delivers the next message that is still wanted, which
    /// [`envelope`](Self::envelope) then shows. The last waker given is the one that is woken.
    ///
    /// # Errors
    ///
    /// As for `receive`.
    #[inline]
    pub fn poll_receive(&mut self, cx: &mut TaskContext<'_>) -> Poll<Result<(), Stopped>> {
        std::task::ready!(self.poll_turn(cx));
        self.settle_sample();
        self.note_in_hand();
        loop {
            let next = self.inbox.poll_next(cx);
            self.taken = None;
            match next {
                Poll::Pending => {
                    self.budget = BUDGET;
                    return Poll::Pending;
                }
                Poll::Ready(Err(_closed)) => return Poll::Ready(Err(self.stopped())),
                Poll::Ready(Ok(())) => {}
            }
            self.budget = self.budget.saturating_sub(1);
            if self.is_wanted() {
                return Poll::Ready(Ok(()));
            }
        }
    }

    /// [`poll_receive`](Self::poll_receive) of a kernel that has another source of messages beside its
    /// mailbox, which goes second: `false` if there is something in that, as `other` says, whose task
    /// is woken when there is. Of messages from there take note by [`take_fed`](Self::take_fed).
    pub(crate) fn poll_either(
        &mut self,
        cx: &mut TaskContext<'_>,
        other: impl FnOnce(&mut TaskContext<'_>) -> bool,
    ) -> Poll<Result<bool, Stopped>> {
        std::task::ready!(self.poll_turn(cx));
        let budget = self.budget;
        if let Poll::Ready(received) = self.poll_receive(cx) {
            return Poll::Ready(received.map(|()| true));
        }
        if self.inbox.is_paused() || !other(cx) {
            return Poll::Pending;
        }
        // The mailbox had nothing, so it is not its turn that is over.
        self.budget = budget;
        Poll::Ready(Ok(false))
    }

    /// Has so many messages in hand that came past the mailbox, until [`settle_fed`](Self::settle_fed).
    /// `false`: it is not to have them now.
    pub(crate) fn take_fed(&mut self, messages: usize) -> bool {
        self.budget = self.budget.saturating_sub(messages as u32);
        self.inbox.try_adopt(messages)
    }

    /// So many of the messages that came past the mailbox were processed.
    pub(crate) fn settle_fed(&mut self, messages: usize) {
        self.inbox.settle_lent(messages, Outcome::Processed);
    }

    /// What came past the mailbox and was not processed: settled by the kernel's restart policy if it was
    /// `delivered`, and else queued.
    pub(crate) fn give_back(&mut self, message: M, delivered: bool) {
        self.lent.push(LentMessage::adopted(message, delivered));
    }

    /// Brings a reply to no message out of the kernel.
    ///
    /// # Errors
    ///
    /// It comes back if it has to wait: give it to [`output`](Self::output).
    pub(crate) fn try_send_unasked(&mut self, reply: Envelope<R>) -> Result<(), Envelope<R>> {
        self.send_out(reply).map(drop)
    }

    /// Lets others of the executor run, once in a while. The message in hand is done with, also
    /// while they have their turn.
    #[inline]
    fn poll_turn(&mut self, cx: &mut TaskContext<'_>) -> Poll<()> {
        match self.budget {
            0 => self.end_turn(cx),
            _ => Poll::Ready(()),
        }
    }

    #[cold]
    fn end_turn(&mut self, cx: &mut TaskContext<'_>) -> Poll<()> {
        self.budget = BUDGET;
        self.settle_sample();
        self.note_in_hand();
        drop(self.inbox.take());
        self.inbox.settle(Outcome::Processed);
        self.taken = None;
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Keeps what is known of the message in hand beyond its destructor, which is the user's code:
    /// if that panics, the message is still in hand, and so is its ask.
    #[inline]
    fn note_in_hand(&mut self) {
        if std::mem::needs_drop::<M>()
            && let Some(envelope) = self.inbox.current()
        {
            self.taken = Some(envelope.taken());
        }
    }

    #[inline]
    fn settle_sample(&mut self) {
        if let Some(times) = self.inbox.take_times() {
            self.record(times);
        }
    }

    #[cold]
    fn record(&self, times: Times) {
        let handler_ns = clock::now_ns().saturating_sub(times.delivered_ns);
        self.cell.telemetry.record(times.queued_ns, handler_ns);
    }
}

impl<M: Message, R: Message> Drop for Context<M, R> {
    fn drop(&mut self) {
        self.settle_sample();
        if let Some(taken) = self.taken {
            self.cell.set_taken(taken);
        }
        if !self.lent.is_empty() {
            self.cell.set_lent(std::mem::take(&mut self.lent));
        }
    }
}

impl<M: Message, R: Message> fmt::Debug for Context<M, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Context").field(&self.cell.id).finish()
    }
}
