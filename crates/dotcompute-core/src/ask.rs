//! The asks that wait for a reply of one kernel, and the rules by which a reply finds its ask.
//!
//! A plain data structure: the kernel guards it with one lock and calls wakers, and drops replies,
//! after it has released it. Places are kept and used again, so an ask allocates nothing once as
//! many were outstanding before.

use std::collections::{HashMap, VecDeque};
use std::num::NonZeroU32;
use std::task::{Poll, Waker};

use crate::error::{Fault, KernelId};
use crate::id::MessageId;
use crate::message::{AskToken, Envelope};
use crate::pipeline::Key;
use crate::relay::Origin;

/// How many asks that have ended are remembered, so that a late reply to one of them is known as
/// such and does not land among the replies that nobody asked for.
const REMEMBERED: usize = 1024;

const NONE: u32 = u32::MAX;

/// Why an ask will get no reply.
#[derive(Clone, Debug)]
pub(crate) enum AskFailure {
    Dropped,
    Stopped,
    Failed(Fault),
    /// The kernel was disconnected from the next one.
    Disconnected,
    /// The last kernel replies with this type, which is not the one that is waited for.
    WrongType(&'static str),
    /// It went wrong in this kernel, on the way.
    In(Box<(KernelId, AskFailure)>),
}

impl AskFailure {
    /// The same as seen from another kernel: it says where it happened.
    pub(crate) fn in_kernel(self, kernel: &KernelId) -> Self {
        match self {
            Self::In(_) => self,
            here => Self::In(Box::new((kernel.clone(), here))),
        }
    }
}

/// Whom to tell of the end of an ask, once the lock is released.
#[derive(Debug)]
#[must_use = "somebody waits"]
pub(crate) enum Tell {
    Nobody,
    Wake(Waker),
    /// The ask waits elsewhere.
    Fail(Origin, AskFailure),
}

/// Who waits for the answer to an ask.
#[derive(Debug)]
enum Asker {
    Task(Option<Waker>),
    /// It waits elsewhere; this kernel is a stage on the way there.
    Origin(Origin),
}

#[derive(Debug)]
enum State<R> {
    /// Not in use; the next free place.
    Free(u32),
    Waiting(Asker),
    /// The kernel has made the reply that carries on the ask, and this is still on its way out.
    Passing(Origin),
    Ended(Result<Envelope<R>, AskFailure>),
}

/// What a kernel learns of the ask of a message that it is about to receive.
#[derive(Debug)]
pub(crate) enum Received {
    /// It waits for an answer.
    Waiting,
    /// It waits for an answer if it does so there.
    At(Origin),
    /// It has ended: the message is to be skipped.
    Ended,
}

#[derive(Debug)]
struct Entry<R> {
    generation: NonZeroU32,
    id: MessageId,
    state: State<R>,
    /// Whether it is in the list of asks that the kernel has received and not answered.
    received: bool,
    older: u32,
    newer: u32,
}

/// Where a reply belongs.
#[derive(Debug)]
pub(crate) enum Routed<R> {
    /// It answered an ask: wake the asker.
    Answered(Option<Waker>),
    /// It carries on an ask that waits elsewhere, which its token names until it is
    /// [handed over](Asks::hand_over), to the kernel that is to answer it.
    Passing(Envelope<R>, Key),
    /// It belongs to an ask that has ended: a dead letter.
    Late(Envelope<R>),
    /// Nobody asked for it: it goes to the output mailbox.
    Output(Envelope<R>),
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Asks<R> {
    entries: Vec<Entry<R>>,
    free: u32,
    by_id: HashMap<MessageId, u32, foldhash::fast::FixedState>,
    /// The received and unanswered asks, a list through the entries.
    oldest: u32,
    newest: u32,
    ended: VecDeque<MessageId>,
    /// Set once the kernel has ended: later asks fail at once.
    closed: Option<AskFailure>,
}

impl<R> Asks<R> {
    pub(crate) fn new() -> Self {
        Self {
            entries: Vec::new(),
            free: NONE,
            by_id: HashMap::default(),
            oldest: NONE,
            newest: NONE,
            ended: VecDeque::new(),
            closed: None,
        }
    }

    /// Registers an ask under the id of its message, before the message is sent, and perhaps whom to
    /// wake when it ends.
    pub(crate) fn register(&mut self, id: MessageId, waker: Option<&Waker>) -> AskToken {
        let state = match &self.closed {
            Some(failure) => State::Ended(Err(failure.clone())),
            None => State::Waiting(Asker::Task(waker.cloned())),
        };
        self.enter(id, state)
    }

    /// Registers an ask that waits elsewhere, under the id of its message here. If that cannot be,
    /// whom to tell.
    pub(crate) fn relay(&mut self, id: MessageId, origin: Origin) -> Result<AskToken, Tell> {
        match &self.closed {
            Some(failure) => Err(Tell::Fail(origin, failure.clone())),
            None => Ok(self.enter(id, State::Waiting(Asker::Origin(origin)))),
        }
    }

    /// Takes back a reply that could not be handed over.
    pub(crate) fn pass(&mut self, id: MessageId, origin: Origin) -> Result<AskToken, Tell> {
        match &self.closed {
            Some(failure) => Err(Tell::Fail(origin, failure.clone())),
            None => Ok(self.enter(id, State::Passing(origin))),
        }
    }

    fn enter(&mut self, id: MessageId, state: State<R>) -> AskToken {
        let waiting = matches!(state, State::Waiting(_));
        let index = if self.free == NONE {
            let index = u32::try_from(self.entries.len()).expect("fewer than 2^32 asks");
            self.entries.push(Entry {
                generation: NonZeroU32::MIN,
                id,
                state,
                received: false,
                older: NONE,
                newer: NONE,
            });
            index
        } else {
            let index = self.free;
            let entry = &mut self.entries[index as usize];
            let State::Free(next) = entry.state else { unreachable!("the free list is free") };
            self.free = next;
            entry.id = id;
            entry.state = state;
            index
        };
        if waiting {
            self.by_id.insert(id, index);
        }
        AskToken { index, generation: self.entries[index as usize].generation }
    }

    /// The reply, once there is one; the place is then free again. Where the waker changed, the
    /// old one is put into `stale`, to be dropped outside the lock.
    pub(crate) fn poll(
        &mut self,
        token: AskToken,
        waker: &Waker,
        stale: &mut Option<Waker>,
    ) -> Poll<Result<Envelope<R>, AskFailure>> {
        let entry = &mut self.entries[token.index as usize];
        debug_assert_eq!(entry.generation, token.generation, "an ask is polled by its owner");
        match &mut entry.state {
            State::Waiting(Asker::Task(known)) => {
                if !known.as_ref().is_some_and(|known| known.will_wake(waker)) {
                    *stale = known.replace(waker.clone());
                }
                Poll::Pending
            }
            State::Ended(_) => {
                let State::Ended(result) = self.release(token.index) else {
                    unreachable!("the ask has ended")
                };
                Poll::Ready(result)
            }
            State::Waiting(Asker::Origin(_)) | State::Passing(_) | State::Free(_) => {
                unreachable!("an ask is polled by its owner")
            }
        }
    }

    /// Ends the ask without a reply: it timed out or its asker went away. What is returned is a
    /// reply that came and that nobody will read.
    pub(crate) fn cancel(&mut self, token: AskToken) -> Option<Envelope<R>> {
        if matches!(self.entries[token.index as usize].state, State::Waiting(_)) {
            self.forget(token.index);
        }
        match self.release(token.index) {
            State::Ended(Ok(reply)) => Some(reply),
            _ => None,
        }
    }

    /// Takes back an ask whose message was not accepted, as if it had never been.
    pub(crate) fn withdraw(&mut self, token: AskToken) {
        if matches!(self.entries[token.index as usize].state, State::Waiting(_)) {
            self.unindex(token.index);
        }
        self.release(token.index);
    }

    /// Takes back an ask that waits elsewhere, as if it had never been here; `None` if it has ended
    /// here.
    pub(crate) fn take_back(&mut self, token: AskToken) -> Option<Origin> {
        self.passes_through(token)?;
        self.unindex(token.index);
        match self.release(token.index) {
            State::Waiting(Asker::Origin(origin)) => Some(origin),
            _ => None,
        }
    }

    /// Where the ask waits, if it does so elsewhere and no reply has carried it on yet.
    pub(crate) fn passes_through(&mut self, token: AskToken) -> Option<Origin> {
        match &self.waiting(token)?.state {
            State::Waiting(Asker::Origin(origin)) => Some(origin.clone()),
            _ => None,
        }
    }

    /// A reply that carries on an ask is on its way elsewhere: the ask that waits there. `None` if it
    /// has ended here.
    pub(crate) fn hand_over(&mut self, token: AskToken) -> Option<Origin> {
        let entry = self.entries.get(token.index as usize)?;
        if entry.generation != token.generation || !matches!(entry.state, State::Passing(_)) {
            return None;
        }
        match self.release(token.index) {
            State::Passing(origin) => Some(origin),
            _ => None,
        }
    }

    /// Whether the ask still waits.
    pub(crate) fn waits(&mut self, token: AskToken) -> bool {
        self.waiting(token).is_some()
    }

    /// Answers the ask, under the id of what was asked; the reply comes back if the ask has ended.
    pub(crate) fn answer_here(
        &mut self,
        token: AskToken,
        mut reply: Envelope<R>,
    ) -> Result<Tell, Envelope<R>> {
        let Some(entry) = self.waiting(token) else { return Err(reply) };
        reply.correlation_id = Some(entry.id);
        Ok(self.end(token.index, Ok(reply)))
    }

    /// The kernel has received the message of this ask.
    pub(crate) fn received(&mut self, token: AskToken) -> Received {
        let newest = self.newest;
        let Some(entry) = self.waiting(token) else { return Received::Ended };
        let received = match &entry.state {
            State::Waiting(Asker::Origin(origin)) => Received::At(origin.clone()),
            _ => Received::Waiting,
        };
        if !entry.received {
            entry.received = true;
            entry.older = newest;
            entry.newer = NONE;
            match newest {
                NONE => self.oldest = token.index,
                newest => self.entries[newest as usize].newer = token.index,
            }
            self.newest = token.index;
        }
        received
    }

    /// Forgets an ask that has ended where it waited.
    pub(crate) fn expire(&mut self, token: AskToken) {
        if self.waiting(token).is_some() {
            self.forget(token.index);
            self.release(token.index);
        }
    }

    /// Finds where `reply` belongs; `in_hand` is the ask of the message that the kernel is at.
    pub(crate) fn route(
        &mut self,
        in_hand: Option<(MessageId, Option<AskToken>)>,
        reply: Envelope<R>,
    ) -> Routed<R> {
        // 1. The ask that the correlation id names; the message in hand first, since it is the
        //    usual one and needs no search.
        if let Some(named) = reply.correlation_id {
            match in_hand {
                Some((id, Some(token))) if id == named => return self.answer(token, reply),
                Some((id, None)) if id == named => return Routed::Output(reply),
                _ => {}
            }
            if let Some(&index) = self.by_id.get(&named) {
                return self.answer_at(index, reply);
            }
            if self.ended.contains(&named) {
                return Routed::Late(reply);
            }
        }
        // 2. An echo: the ask with the same message id.
        if let Some((id, token)) = in_hand
            && id == reply.id
        {
            return match token {
                Some(token) => self.answer(token, reply),
                None => Routed::Output(reply),
            };
        }
        if let Some(&index) = self.by_id.get(&reply.id) {
            return self.answer_at(index, reply);
        }
        if self.ended.contains(&reply.id) {
            return Routed::Late(reply);
        }
        // 3. With neither: the oldest ask that this kernel has received and not answered.
        if reply.correlation_id.is_none() && self.oldest != NONE {
            return self.answer_at(self.oldest, reply);
        }
        Routed::Output(reply)
    }

    /// Fails one ask.
    pub(crate) fn fail(&mut self, token: AskToken, failure: AskFailure) -> Tell {
        if self.waiting(token).is_some() {
            return self.end(token.index, Err(failure));
        }
        self.hand_over(token).map_or(Tell::Nobody, |origin| Tell::Fail(origin, failure))
    }

    /// Fails every ask, now and from now on.
    pub(crate) fn close(&mut self, failure: AskFailure) -> Vec<Tell> {
        let mut told = self.fail_those_passing_through(&failure);
        for index in 0..self.entries.len() {
            if matches!(self.entries[index].state, State::Waiting(_)) {
                told.push(self.end(index as u32, Err(failure.clone())));
            }
        }
        self.closed = Some(failure);
        told
    }

    /// Fails every ask that waits elsewhere and is not past this kernel.
    pub(crate) fn fail_those_passing_through(&mut self, failure: &AskFailure) -> Vec<Tell> {
        let mut told = Vec::new();
        for index in 0..self.entries.len() {
            let index = index as u32;
            match &self.entries[index as usize].state {
                State::Waiting(Asker::Origin(_)) => self.forget(index),
                State::Passing(_) => {}
                _ => continue,
            }
            match self.release(index) {
                State::Waiting(Asker::Origin(origin)) | State::Passing(origin) => {
                    told.push(Tell::Fail(origin, failure.clone()));
                }
                _ => unreachable!("an ask that waits elsewhere"),
            }
        }
        told
    }

    /// The kernel starts anew: what it had received it no longer knows of, so a reply without a
    /// name must not answer those asks. They stay open to a reply that names them.
    pub(crate) fn forget_received(&mut self) {
        while self.oldest != NONE {
            self.unlink(self.oldest);
        }
    }

    /// How many asks wait.
    #[cfg(test)]
    fn outstanding(&self) -> usize {
        self.by_id.len()
    }

    fn waiting(&mut self, token: AskToken) -> Option<&mut Entry<R>> {
        self.entries.get_mut(token.index as usize).filter(|entry| {
            entry.generation == token.generation && matches!(entry.state, State::Waiting(_))
        })
    }

    fn answer(&mut self, token: AskToken, reply: Envelope<R>) -> Routed<R> {
        match self.waiting(token) {
            Some(_) => self.answer_at(token.index, reply),
            None => Routed::Late(reply),
        }
    }

    fn answer_at(&mut self, index: u32, mut reply: Envelope<R>) -> Routed<R> {
        let entry = &mut self.entries[index as usize];
        if let State::Waiting(Asker::Origin(origin)) = &entry.state {
            reply.ask = Some(AskToken { index, generation: entry.generation });
            let end = origin.end;
            entry.state = State::Passing(origin.clone());
            self.forget(index);
            return Routed::Passing(reply, end);
        }
        match self.end(index, Ok(reply)) {
            Tell::Wake(waker) => Routed::Answered(Some(waker)),
            _ => Routed::Answered(None),
        }
    }

    /// Waiting → ended.
    fn end(&mut self, index: u32, result: Result<Envelope<R>, AskFailure>) -> Tell {
        self.forget(index);
        let entry = &mut self.entries[index as usize];
        match std::mem::replace(&mut entry.state, State::Ended(result)) {
            State::Waiting(Asker::Task(waker)) => waker.map_or(Tell::Nobody, Tell::Wake),
            State::Waiting(Asker::Origin(origin)) => match self.release(index) {
                State::Ended(Err(failure)) => Tell::Fail(origin, failure),
                _ => unreachable!("a reply to an ask that waits elsewhere is passed on"),
            },
            _ => unreachable!("only a waiting ask ends"),
        }
    }

    /// Takes a waiting ask out of the indexes and remembers that it was one.
    fn forget(&mut self, index: u32) {
        self.unindex(index);
        if self.ended.len() == REMEMBERED {
            self.ended.pop_front();
        }
        self.ended.push_back(self.entries[index as usize].id);
    }

    fn unindex(&mut self, index: u32) {
        let id = self.entries[index as usize].id;
        // Two asks may share an id (a message asked twice): only the later one is in the index.
        if self.by_id.get(&id) == Some(&index) {
            self.by_id.remove(&id);
        }
        self.unlink(index);
    }

    fn unlink(&mut self, index: u32) {
        let entry = &mut self.entries[index as usize];
        if !entry.received {
            return;
        }
        entry.received = false;
        let (older, newer) = (entry.older, entry.newer);
        match older {
            NONE => self.oldest = newer,
            older => self.entries[older as usize].newer = newer,
        }
        match newer {
            NONE => self.newest = older,
            newer => self.entries[newer as usize].older = older,
        }
    }

    fn release(&mut self, index: u32) -> State<R> {
        let entry = &mut self.entries[index as usize];
        entry.generation = entry.generation.checked_add(1).unwrap_or(NonZeroU32::MIN);
        let state = std::mem::replace(&mut entry.state, State::Free(self.free));
        self.free = index;
        state
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asks() -> Asks<u32> {
        Asks::new()
    }

    fn id(n: u128) -> MessageId {
        MessageId::from_u128(n)
    }

    fn reply(own: u128, correlation: Option<u128>, value: u32) -> Envelope<u32> {
        Envelope::with_parts(id(own), correlation.map(id), 128, value)
    }

    fn receive(asks: &mut Asks<u32>, tokens: &[AskToken]) {
        for &token in tokens {
            assert!(matches!(asks.received(token), Received::Waiting));
        }
    }

    fn result(asks: &mut Asks<u32>, token: AskToken) -> Option<u32> {
        match asks.poll(token, Waker::noop(), &mut None) {
            Poll::Ready(Ok(reply)) => Some(reply.message),
            Poll::Ready(Err(_)) | Poll::Pending => None,
        }
    }

    #[test]
    fn a_reply_goes_to_the_ask_that_its_correlation_names_in_any_order() {
        let mut asks = asks();
        let (a, b) = (asks.register(id(1), None), asks.register(id(2), None));
        receive(&mut asks, &[a, b]);
        assert!(matches!(asks.route(None, reply(10, Some(2), 22)), Routed::Answered(_)));
        assert!(matches!(asks.route(None, reply(11, Some(1), 11)), Routed::Answered(_)));
        assert_eq!((result(&mut asks, a), result(&mut asks, b)), (Some(11), Some(22)));
        assert_eq!(asks.outstanding(), 0);
    }

    #[test]
    fn an_echo_goes_to_the_ask_of_the_same_id() {
        let mut asks = asks();
        let (a, b) = (asks.register(id(1), None), asks.register(id(2), None));
        receive(&mut asks, &[a, b]);
        assert!(matches!(asks.route(None, reply(2, None, 22)), Routed::Answered(_)));
        assert_eq!(result(&mut asks, b), Some(22));
        assert_eq!(result(&mut asks, a), None);
    }

    #[test]
    fn a_reply_without_a_name_goes_to_the_oldest_ask_received_and_then_to_the_output() {
        let mut asks = asks();
        let (a, b, c) =
            (asks.register(id(1), None), asks.register(id(2), None), asks.register(id(3), None));
        receive(&mut asks, &[b, a]);
        for (n, token) in [(22, b), (11, a)] {
            assert!(matches!(asks.route(None, reply(99, None, n)), Routed::Answered(_)));
            assert_eq!(result(&mut asks, token), Some(n));
        }
        assert!(matches!(asks.route(None, reply(99, None, 0)), Routed::Output(_)));
        assert_eq!(result(&mut asks, c), None, "not received yet");
    }

    #[test]
    fn a_reply_to_a_message_that_was_only_sent_never_takes_another_ask() {
        let mut asks = asks();
        let a = asks.register(id(1), None);
        receive(&mut asks, &[a]);
        let hand = Some((id(7), None));
        assert!(matches!(asks.route(hand, reply(20, Some(7), 0)), Routed::Output(_)));
        assert!(matches!(asks.route(hand, reply(7, None, 0)), Routed::Output(_)));
        assert!(matches!(asks.route(hand, reply(21, Some(500), 0)), Routed::Output(_)));
        assert_eq!(result(&mut asks, a), None);
    }

    #[test]
    fn a_reply_to_an_ended_ask_is_late_by_hand_by_name_and_by_echo() {
        let mut asks = asks();
        let a = asks.register(id(1), None);
        receive(&mut asks, &[a]);
        assert!(asks.cancel(a).is_none());
        let hand = Some((id(1), Some(a)));
        assert!(matches!(asks.route(hand, reply(20, Some(1), 0)), Routed::Late(_)));
        assert!(matches!(asks.route(None, reply(21, Some(1), 0)), Routed::Late(_)));
        assert!(matches!(asks.route(None, reply(1, None, 0)), Routed::Late(_)));
        assert!(matches!(asks.received(a), Received::Ended), "a cancelled ask is skipped");
        // Its place is taken by another ask, which the old token does not reach.
        let b = asks.register(id(2), None);
        assert_eq!(b.index, a.index);
        assert!(matches!(asks.route(hand, reply(20, Some(1), 0)), Routed::Late(_)));
        assert_eq!(result(&mut asks, b), None);
    }

    #[test]
    fn a_second_reply_to_an_answered_ask_is_late() {
        let mut asks = asks();
        let a = asks.register(id(1), None);
        let hand = Some((id(1), Some(a)));
        assert!(matches!(asks.route(hand, reply(20, Some(1), 1)), Routed::Answered(_)));
        assert!(matches!(asks.route(hand, reply(21, Some(1), 2)), Routed::Late(_)));
        assert_eq!(result(&mut asks, a), Some(1));
    }

    #[test]
    fn a_reply_that_came_before_the_cancel_is_handed_back() {
        let mut asks = asks();
        let a = asks.register(id(1), None);
        assert!(matches!(asks.route(None, reply(20, Some(1), 5)), Routed::Answered(_)));
        assert_eq!(asks.cancel(a).map(|reply| reply.message), Some(5));
    }

    #[test]
    fn close_fails_every_ask_now_and_later() {
        let mut asks = asks();
        let a = asks.register(id(1), None);
        assert!(matches!(asks.close(AskFailure::Stopped)[..], [Tell::Nobody]));
        let b = asks.register(id(2), None);
        for token in [a, b] {
            assert!(matches!(
                asks.poll(token, Waker::noop(), &mut None),
                Poll::Ready(Err(AskFailure::Stopped))
            ));
        }
    }

    #[test]
    fn after_a_restart_only_a_named_reply_reaches_an_old_ask() {
        let mut asks = asks();
        let a = asks.register(id(1), None);
        receive(&mut asks, &[a]);
        asks.forget_received();
        assert!(matches!(asks.route(None, reply(20, None, 0)), Routed::Output(_)));
        assert!(matches!(asks.route(None, reply(20, Some(1), 9)), Routed::Answered(_)));
        assert_eq!(result(&mut asks, a), Some(9));
    }

    #[test]
    fn places_are_used_again() {
        let mut asks = asks();
        for n in 0..100 {
            let token = asks.register(id(n), None);
            assert!(asks.cancel(token).is_none());
        }
        assert_eq!(asks.entries.len(), 1);
    }
}
