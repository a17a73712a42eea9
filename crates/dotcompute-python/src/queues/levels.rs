//! A queue with all 256 priorities, for `MessageQueue`.
//!
//! Everything happens with the GIL held, which is released nowhere in here: the lock is never
//! contended, and is there for Rust's sake.

use std::cmp::Reverse;
use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::mem;
use std::ops::Bound::{Excluded, Unbounded};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

use dotcompute_mailbox::PASSED_OVER_MAX;
use dotcompute_mailbox::sync::lock;
use pyo3::gc::{PyTraverseError, PyVisit};

use super::Item;
use super::line::{Put, Try};

/// What a full queue does with one more message.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Policy {
    Block,
    Reject,
    /// The oldest message of the lowest priority makes room, even for a lower one.
    DropOldest,
}

pub(super) struct Levels(Mutex<State>);

/// The order of delivery: the highest priority first, then the order of arrival.
type Place = (Reverse<u8>, u64);

struct State {
    policy: Policy,
    /// 0: no limit.
    maxsize: usize,
    queue: BTreeMap<Place, Message>,
    arrivals: u64,
    /// Receivers in line, each by its ticket.
    receivers: VecDeque<(u64, Waker)>,
    senders: VecDeque<Blocked>,
    tickets: u64,
    dequeued: u64,
    dropped: u64,
    /// Since when (in `dequeued`) newcomers are counted that overtake.
    watched_since: u64,
    overtakes: u64,
}

struct Message {
    item: Item,
    /// What `dequeued` was when it came.
    came: u64,
}

/// A sender in line, with its message.
struct Blocked {
    ticket: u64,
    priority: u8,
    item: Item,
    waker: Waker,
}

/// Counters since the queue was made.
pub(super) struct Totals {
    pub(super) enqueued: u64,
    pub(super) dequeued: u64,
    pub(super) dropped: u64,
}

/// What is to be done without the lock: this is foreign code.
#[derive(Default)]
struct After {
    wake: Vec<Waker>,
    released: Option<Item>,
}

impl Drop for After {
    fn drop(&mut self) {
        self.wake.drain(..).for_each(Waker::wake);
    }
}

impl Levels {
    pub(super) fn new(maxsize: usize, policy: Policy) -> Arc<Self> {
        Arc::new(Self(Mutex::new(State {
            policy,
            maxsize,
            queue: BTreeMap::new(),
            arrivals: 0,
            receivers: VecDeque::new(),
            senders: VecDeque::new(),
            tickets: 0,
            dequeued: 0,
            dropped: 0,
            watched_since: 0,
            overtakes: 0,
        })))
    }

    /// A put that waits for room, if that is the policy.
    pub(super) fn put(self: Arc<Self>, priority: u8, item: Item) -> WaitPut {
        WaitPut { levels: self, stage: Stage::Holding(priority, item) }
    }

    /// A get that waits for a message.
    pub(super) fn get(self: Arc<Self>) -> WaitGet {
        WaitGet { levels: self, ticket: 0 }
    }

    /// Changes what a full queue does from now on. Who waits goes on waiting.
    pub(super) fn set_policy(&self, policy: Policy) {
        lock(&self.0).policy = policy;
    }

    pub(super) fn policy(&self) -> Policy {
        lock(&self.0).policy
    }

    pub(super) fn len(&self) -> usize {
        lock(&self.0).queue.len()
    }

    pub(super) fn is_full(&self) -> bool {
        !lock(&self.0).has_room()
    }

    pub(super) fn totals(&self) -> Totals {
        let state = lock(&self.0);
        Totals { enqueued: state.arrivals, dequeued: state.dequeued, dropped: state.dropped }
    }

    /// Empties the queue, of those too that waited for room; how many messages it held.
    pub(super) fn clear(&self) -> usize {
        let mut after = After::default();
        let mut state = lock(&self.0);
        let removed = mem::take(&mut state.queue);
        state.dropped += removed.len() as u64;
        state.admit_blocked(&mut after);
        drop(state);
        removed.len()
    }

    pub(super) fn traverse(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        let state = lock(&self.0);
        let waiting = state.senders.iter().map(|blocked| &blocked.item);
        for item in state.queue.values().map(|message| &message.item).chain(waiting) {
            visit.call(item)?;
        }
        Ok(())
    }
}

impl State {
    fn has_room(&self) -> bool {
        self.maxsize == 0 || self.queue.len() < self.maxsize
    }

    fn ticket(&mut self) -> u64 {
        self.tickets += 1;
        self.tickets
    }

    fn offer(&mut self, priority: u8, item: Item, after: &mut After) -> Result<Put, Item> {
        if !self.has_room() {
            match self.policy {
                Policy::Block => return Err(item),
                Policy::Reject => {
                    after.released = Some(item);
                    return Ok(Put::Full);
                }
                Policy::DropOldest => {
                    after.released = self.evict();
                    self.dropped += 1;
                }
            }
        }
        self.admit(priority, item, after);
        Ok(Put::Done)
    }

    fn admit(&mut self, priority: u8, item: Item, after: &mut After) {
        if self.queue.is_empty() {
            self.watch();
        }
        let message = Message { item, came: self.dequeued };
        self.queue.insert((Reverse(priority), self.arrivals), message);
        self.arrivals += 1;
        self.notify(after);
    }

    /// Tells the next receiver in line to look.
    fn notify(&mut self, after: &mut After) {
        after.wake.extend(self.receivers.pop_front().map(|(_, waker)| waker));
    }

    fn evict(&mut self) -> Option<Item> {
        let &(lowest, _) = self.queue.last_key_value()?.0;
        let (&oldest, _) = self.queue.range((lowest, 0)..).next()?;
        self.queue.remove(&oldest).map(|message| message.item)
    }

    fn deliver(&mut self, after: &mut After) -> Option<Item> {
        let place = if self.overtakes < PASSED_OVER_MAX {
            *self.queue.first_key_value()?.0
        } else {
            self.watch();
            self.oldest()?
        };
        let Message { item, came } = self.queue.remove(&place)?;
        self.overtakes += u64::from(came > self.watched_since);
        self.dequeued += 1;
        self.admit_blocked(after);
        Some(item)
    }

    /// Counts anew. Messages that came in one burst are served strictly by priority; but of those
    /// that come later, only so many in a row before the oldest message gets its turn.
    fn watch(&mut self) {
        self.watched_since = self.dequeued;
        self.overtakes = 0;
    }

    fn oldest(&self) -> Option<Place> {
        let mut oldest = *self.queue.first_key_value()?.0;
        let mut level = oldest.0;
        while let Some((&first, _)) =
            self.queue.range((Excluded((level, u64::MAX)), Unbounded)).next()
        {
            level = first.0;
            if first.1 < oldest.1 {
                oldest = first;
            }
        }
        Some(oldest)
    }

    /// Admits senders in line while there is room: the highest priority first, then in order.
    fn admit_blocked(&mut self, after: &mut After) {
        while self.has_room() {
            let next = (0..self.senders.len())
                .min_by_key(|&index| (Reverse(self.senders[index].priority), index));
            let Some(next) = next.and_then(|index| self.senders.remove(index)) else { break };
            self.admit(next.priority, next.item, after);
            after.wake.push(next.waker);
        }
    }
}

impl Try for Levels {
    fn try_put(&self, priority: u8, item: Item) -> Result<Put, Item> {
        let mut after = After::default();
        lock(&self.0).offer(priority, item, &mut after)
    }

    fn try_get(&self) -> Option<Item> {
        let mut after = After::default();
        lock(&self.0).deliver(&mut after)
    }
}

/// A put in line. Dropped before it was admitted, it takes its message with it.
pub(super) struct WaitPut {
    levels: Arc<Levels>,
    stage: Stage,
}

enum Stage {
    Holding(u8, Item),
    Waiting(u64),
    Done,
}

impl Future for WaitPut {
    type Output = Put;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Put> {
        let mut after = After::default();
        let levels = Arc::clone(&self.levels);
        let mut state = lock(&levels.0);
        match mem::replace(&mut self.stage, Stage::Done) {
            Stage::Holding(priority, item) => match state.offer(priority, item, &mut after) {
                Ok(outcome) => Poll::Ready(outcome),
                Err(item) => {
                    let (ticket, waker) = (state.ticket(), context.waker().clone());
                    state.senders.push_back(Blocked { ticket, priority, item, waker });
                    self.stage = Stage::Waiting(ticket);
                    Poll::Pending
                }
            },
            Stage::Waiting(ticket) => {
                match state.senders.iter_mut().find(|blocked| blocked.ticket == ticket) {
                    // The wait keeps one waker for life.
                    Some(_) => {
                        self.stage = Stage::Waiting(ticket);
                        Poll::Pending
                    }
                    None => Poll::Ready(Put::Done),
                }
            }
            Stage::Done => Poll::Pending,
        }
    }
}

impl Drop for WaitPut {
    fn drop(&mut self) {
        let Stage::Waiting(ticket) = self.stage else { return };
        let mut state = lock(&self.levels.0);
        let index = state.senders.iter().position(|blocked| blocked.ticket == ticket);
        let blocked = index.and_then(|index| state.senders.remove(index));
        drop(state);
        drop(blocked);
    }
}

/// A get in line, under its ticket (0: not in line).
pub(super) struct WaitGet {
    levels: Arc<Levels>,
    ticket: u64,
}

impl Future for WaitGet {
    type Output = Item;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Item> {
        let mut after = After::default();
        let levels = Arc::clone(&self.levels);
        let mut state = lock(&levels.0);
        let ticket = mem::take(&mut self.ticket);
        let index = state.receivers.iter().position(|&(other, _)| other == ticket);
        match state.deliver(&mut after) {
            Some(item) => {
                let stale = index.and_then(|index| state.receivers.remove(index));
                drop(state);
                drop(stale);
                Poll::Ready(item)
            }
            None => {
                self.ticket = ticket;
                if index.is_none() {
                    self.ticket = state.ticket();
                    let entry = (self.ticket, context.waker().clone());
                    state.receivers.push_back(entry);
                }
                Poll::Pending
            }
        }
    }
}

impl Drop for WaitGet {
    /// One that was told of a message and leaves without it tells the next.
    fn drop(&mut self) {
        if self.ticket == 0 {
            return;
        }
        let mut after = After::default();
        let mut state = lock(&self.levels.0);
        match state.receivers.iter().position(|&(ticket, _)| ticket == self.ticket) {
            Some(index) => {
                let entry = state.receivers.remove(index);
                drop(state);
                drop(entry);
            }
            None if !state.queue.is_empty() => state.notify(&mut after),
            None => {}
        }
    }
}
