//! The parent's end: a future that is the body of a kernel whose code runs in a child.

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll, ready};

use dotcompute_core::compiled::{NearSide, WayTo};
use dotcompute_core::{BoxError, Context, Envelope, Fault, FaultKind, Message, Stopped};

use crate::child::Session;
use crate::coder::Coder;
use crate::executor::{Desk, Watched};
use crate::frame::{Head, Prefix, Reader, Writer};
use crate::segment::{DRAIN, FROM_CHILD, RUN, STOP, TO_CHILD};
use crate::state::SharedState;

type Boxed<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// What a compiled handler has in the parent.
#[derive(Debug)]
pub(crate) struct Near {
    pub(crate) side: NearSide,
    pub(crate) state: Option<Arc<SharedState>>,
}

/// What waits for room before more replies are read.
enum Blocked {
    /// A reply, in the output mailbox.
    Reply(Boxed<Result<(), Stopped>>),
    /// What a handler sent, at its target.
    Sent(usize, Boxed<(WayTo, Result<(), BoxError>)>),
}

/// Hands messages to one child and brings back its replies, until the kernel or the child ends.
pub(crate) struct Proxy<M: Message, R: Message> {
    context: Context<M, R>,
    session: Session,
    desk: Arc<Desk>,
    messages: Coder<M>,
    replies: Coder<R>,
    writer: Writer,
    reader: Reader,
    /// How many messages were taken out for this child: the position of the last one.
    handed: u64,
    /// Of them, how many have been put into the ring, or begun to be.
    begun: u64,
    /// How many are settled.
    settled: u64,
    /// The last position whose reply was read.
    replied: u64,
    /// The last position whose reply said that it was processed, and has been sent on.
    answered: u64,
    /// The same of the reply that was read last, until it has been sent on.
    answering: u64,
    /// How many messages a child that says so is ready for beyond it.
    window: u64,
    /// What waits for room.
    blocked: Option<Blocked>,
    /// Of a compiled handler: what stays here, and the ways to its targets that were used.
    near: Option<Arc<Near>>,
    ways: HashMap<usize, WayTo>,
    /// Ready once the kernel is to end at once.
    stop: Option<Boxed<()>>,
    /// Whether it knows whom to wake, which is the same task always: that of the desk.
    stop_wakes: bool,
}

impl<M: Message, R: Message> Proxy<M, R> {
    pub(crate) fn new(
        context: Context<M, R>,
        session: Session,
        desk: Arc<Desk>,
        (messages, replies): (Coder<M>, Coder<R>),
        window: usize,
        near: Option<Arc<Near>>,
    ) -> Self {
        desk.watch(Some(Watched {
            segment: Arc::clone(&session.segment),
            replies: session.from_child.glance(),
        }));
        let stop = Box::pin(context.stop_at_once());
        let proxy = Self {
            context,
            writer: Writer::new(&session.segment, TO_CHILD),
            reader: Reader::new(&session.segment, FROM_CHILD),
            session,
            desk,
            messages,
            replies,
            handed: 0,
            begun: 0,
            settled: 0,
            replied: 0,
            answered: 0,
            answering: 0,
            window: window as u64,
            blocked: None,
            near,
            ways: HashMap::new(),
            stop: Some(stop),
            stop_wakes: false,
        };
        // This is the body of the kernel, which is active by now.
        proxy.command(RUN);
        proxy
    }

    /// Does all that can be done now; ready when the child has ended and everything of it was read.
    fn turn(&mut self, cx: &mut TaskContext<'_>) -> Poll<Result<(), BoxError>> {
        if let Some(stop) = &mut self.stop
            && (!std::mem::replace(&mut self.stop_wakes, true) || self.context.may_stop_at_once())
            && stop.as_mut().poll(cx).is_ready()
        {
            self.stop = None;
            self.command(STOP);
        }
        loop {
            // Both before the replies are read: what they stand for is in the ring by then.
            let ending = self.session.ending().cloned();
            let progress = self.session.segment.progress();
            ready!(self.bring_replies(cx))?;
            // No child that keeps to the protocol says more than it was handed.
            self.settle(progress.processed.max(self.answered).min(self.begun));
            if let Some(ending) = ending {
                // A reply acknowledges its message, also where the word did not get so far.
                let received = self.session.segment.received().min(self.begun);
                let fault = ending.fault(self.context.id());
                if fault.is_some() {
                    self.settle(self.replied.min(self.begun));
                }
                if let Some(state) = self.near.as_ref().and_then(|near| near.state.as_ref()) {
                    state.settle(self.settled);
                }
                self.context.mark_delivered(received.saturating_sub(self.settled) as usize);
                return Poll::Ready(match fault {
                    None => Ok(()),
                    Some(fault) => Err(fault.into()),
                });
            }
            self.hand_over()?;
            let demand = match self.answered {
                0 => progress.demand,
                answered => progress.demand.max(answered + self.window),
            };
            let wanted = demand.saturating_sub(self.handed);
            if wanted == 0 || self.handed > self.begun {
                return Poll::Pending;
            }
            match ready!(self.context.poll_lend(wanted as usize, cx)) {
                Ok(count) => self.handed += count as u64,
                Err(Stopped { .. }) => {
                    // Everything that was accepted has been handed over, or is not to be.
                    if self.session.segment.command() == RUN {
                        self.command(DRAIN);
                    }
                    return Poll::Pending;
                }
            }
        }
    }

    /// Settles the messages up to this position, which were processed.
    fn settle(&mut self, position: u64) {
        let count = position.saturating_sub(self.settled) as usize;
        if count == 0 {
            return;
        }
        if let Some(records) = &self.messages.count {
            for envelope in self.context.lent().take(count) {
                self.context.count_lent_records(records(&envelope.message));
            }
        }
        self.context.settle_lent(count);
        self.settled = position;
    }

    /// Takes the replies out of their ring and sends each where it belongs. Pending while one waits
    /// for room there.
    fn bring_replies(&mut self, cx: &mut TaskContext<'_>) -> Poll<Result<(), BoxError>> {
        let brought = self.bring_each(cx);
        // Also while a reply waits here.
        if self.session.segment.wants_room() {
            self.session.segment.child_bell().ring();
        }
        brought
    }

    fn bring_each(&mut self, cx: &mut TaskContext<'_>) -> Poll<Result<(), BoxError>> {
        loop {
            match &mut self.blocked {
                None => {}
                // Of a kernel that had to stop meanwhile the reply is a dead letter.
                Some(Blocked::Reply(reply)) => drop(ready!(reply.as_mut().poll(cx))),
                Some(Blocked::Sent(target, sent)) => {
                    let (way, outcome) = ready!(sent.as_mut().poll(cx));
                    self.ways.insert(*target, way);
                    if let Err(error) = outcome {
                        self.blocked = None;
                        return Poll::Ready(Err(error));
                    }
                }
            }
            self.blocked = None;
            self.answered = self.answering;
            match self.reader.next(&mut self.session.from_child) {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => return Poll::Ready(Err(self.lost(&error.to_string()))),
            }
            match self.sent_to_target() {
                Ok(false) => {}
                Ok(true) => continue,
                Err(error) => return Poll::Ready(Err(error)),
            }
            match self.replies.read(&mut self.reader) {
                Ok((reply, prefix)) => self.send(reply, prefix)?,
                Err(error) => return Poll::Ready(Err(self.lost(&error.to_string()))),
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Begins to send what was read on to a target; false if it is a reply.
    fn sent_to_target(&mut self) -> Result<bool, BoxError> {
        let Some(target) = usize::from(self.reader.target()).checked_sub(1) else {
            return Ok(false);
        };
        let way = self.ways.remove(&target);
        let way = way.or_else(|| self.near.as_ref().and_then(|near| near.side.way_to(target)));
        let way = way.ok_or_else(|| self.lost(&format!("it has no target {target}")))?;
        let (records, single) = match self.reader.message() {
            Ok((prefix, records, _)) => {
                (records.to_vec(), prefix.is_some_and(|prefix| prefix.single))
            }
            Err(error) => return Err(self.lost(&error.to_string())),
        };
        let sent = way.send(self.context.runtime(), records, single);
        self.blocked = Some(Blocked::Sent(target, Box::pin(sent)));
        Ok(true)
    }

    fn send(&mut self, reply: R, prefix: Option<Prefix>) -> Result<(), BoxError> {
        let index = match self.reader.token() {
            0 => None,
            // Tokens are positions modulo 2^32; those of replies are of the last few.
            token => Some(token.wrapping_sub(self.settled as u32 + 1) as usize),
        };
        let index = index.filter(|index| *index < self.context.lent().len());
        if let Some(index) = index {
            let position = self.settled + index as u64 + 1;
            self.replied = self.replied.max(position);
            if self.reader.settles() {
                self.answering = self.answering.max(position);
            }
        }
        let reply = match prefix {
            Some(Prefix { id, correlation_id, priority, .. }) => {
                Envelope::with_parts(id, correlation_id, priority, reply)
            }
            None => match index.and_then(|index| self.context.lent_at(index)) {
                Some(message) => Envelope::new(reply).with_correlation(message.id),
                None => return Err(self.lost("it answered a message that it does not have")),
            },
        };
        if let Err(reply) = self.context.try_send_from(index, reply) {
            self.blocked = Some(Blocked::Reply(Box::pin(self.context.output(reply))));
        }
        Ok(())
    }

    /// Puts messages that were taken out into the ring, as it has room.
    fn hand_over(&mut self) -> Result<(), BoxError> {
        loop {
            let staged = self.writer.stage(&self.session.to_child);
            if self.writer.has_lent() {
                // The child reads this array while the next one is copied.
                self.publish();
            }
            if !staged || self.begun == self.handed {
                break;
            }
            let index = (self.begun - self.settled) as usize;
            self.begun += 1;
            let Some(envelope) = self.context.lent_at(index) else { break };
            let encode = &self.messages.encode;
            let head = Head {
                token: self.begun as u32,
                prefix: Prefix::needed(envelope),
                asked: envelope.is_asked(),
                settles: false,
            };
            self.session.segment.set_id(self.begun, envelope.id);
            let begun = self.writer.begin(head, |out| encode(envelope, out));
            if let Err(error) = begun {
                // It cannot be delivered, now or later.
                self.context.mark_delivered(index + 1);
                return Err(error);
            }
        }
        self.publish();
        Ok(())
    }

    fn publish(&mut self) {
        if self.writer.publish(&mut self.session.to_child) {
            self.session.segment.child_bell().ring();
        }
    }

    fn command(&self, command: u32) {
        self.session.segment.set_command(command);
        self.session.segment.child_bell().ring();
    }

    /// The child did what no child does.
    fn lost(&self, what: &str) -> BoxError {
        let message = format!("the process of ring kernel '{}': {what}", self.context.id());
        Fault::reported(FaultKind::Executor, message).into()
    }
}

impl<M: Message, R: Message> Future for Proxy<M, R> {
    type Output = Result<(), BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        let turned = this.turn(cx);
        // While a reply waits those behind it are no news.
        let next = this.blocked.is_none().then(|| this.session.from_child.position());
        // A handler that has answered all that it was handed says no more. A body may.
        let quiet = next.is_some() && this.answered == this.handed && this.answered > 0;
        this.desk.expect_reply(next, quiet);
        turned
    }
}

impl<M: Message, R: Message> Drop for Proxy<M, R> {
    fn drop(&mut self) {
        // Dropped while its child runs: a reply acknowledges its message all the same, and whatever
        // else the child had received may have had its effects.
        self.settle(self.replied.min(self.begun));
        let received = self.session.segment.received();
        let received = received.min(self.begun).saturating_sub(self.settled);
        self.context.mark_delivered(received as usize);
        self.desk.watch(None);
    }
}
