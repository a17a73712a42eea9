//! The mailbox against a plain model, by random operations under all policies. After every step the
//! books, the contents (by what comes out), who was woken and how many messages live must agree.

use super::super::*;
use crate::bands::PASSED_OVER_MAX;
use crate::sync::{AtomicBool, Ordering};
use proptest::prelude::*;
use std::pin::Pin;
use std::task::{Wake, Waker};

/// A message: its number, and a share in the count of those alive.
#[derive(Debug)]
struct Tracked(u64, #[expect(dead_code, reason = "counted by the other shares")] Arc<()>);

#[derive(Default)]
struct Flag(AtomicBool);

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Flag {
    fn is_raised(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

fn poll<F: Future + Unpin>(future: &mut F, flag: &Arc<Flag>) -> Poll<F::Output> {
    flag.0.store(false, Ordering::Relaxed);
    let waker = Waker::from(Arc::clone(flag));
    Pin::new(future).poll(&mut Context::from_waker(&waker))
}

#[derive(Clone, Debug)]
enum Op {
    TrySend(Band),
    TrySendMany(Band, usize),
    SendBatch(Band, usize),
    StartSend(Band),
    PollSend(usize),
    CancelSend(usize),
    TryReceive,
    ReceiveBatch(usize),
    StartReceive,
    PollReceive(usize),
    CancelReceive(usize),
    ToggleInbox,
    Next,
    PollNext,
    NextMany(usize),
    Take,
    Settle(Outcome),
    PutBack,
    Pause,
    Resume,
    Close(Close),
    TakeAll,
}

fn band() -> impl Strategy<Value = Band> {
    prop::sample::select(&Band::ALL)
}

fn op() -> impl Strategy<Value = Op> {
    let outcome = [Outcome::Processed, Outcome::Expired, Outcome::DeadLettered];
    prop_oneof![
        12 => band().prop_map(Op::TrySend),
        4 => (band(), 1..100_usize).prop_map(|(band, count)| Op::TrySendMany(band, count)),
        2 => (band(), 0..10_usize).prop_map(|(band, count)| Op::SendBatch(band, count)),
        6 => band().prop_map(Op::StartSend),
        3 => any::<usize>().prop_map(Op::PollSend),
        2 => any::<usize>().prop_map(Op::CancelSend),
        3 => Just(Op::TryReceive),
        2 => (0..10_usize).prop_map(Op::ReceiveBatch),
        3 => Just(Op::StartReceive),
        3 => any::<usize>().prop_map(Op::PollReceive),
        2 => any::<usize>().prop_map(Op::CancelReceive),
        2 => Just(Op::ToggleInbox),
        14 => Just(Op::Next),
        6 => Just(Op::PollNext),
        4 => (1..300_usize).prop_map(Op::NextMany),
        3 => Just(Op::Take),
        3 => prop::sample::select(outcome.to_vec()).prop_map(Op::Settle),
        3 => Just(Op::PutBack),
        1 => Just(Op::Pause),
        3 => Just(Op::Resume),
        1 => prop_oneof![9 => Just(Op::Resume), 1 => Just(Op::Close(Close::Drain)),
            1 => Just(Op::Close(Close::Now)), 1 => Just(Op::TakeAll)],
    ]
}

fn policy() -> impl Strategy<Value = Backpressure> {
    use Backpressure::{Block, DropNewest, DropOldest, Reject};
    prop::sample::select(vec![Block, Reject, DropOldest, DropNewest])
}

/// What the mailbox is meant to be.
struct Model {
    capacity: usize,
    policy: Backpressure,
    bands: [VecDeque<u64>; 4],
    passed_over: [u64; 4],
    /// Whether there is an order inside the bands too.
    is_ranked: bool,
    /// Of each band: deliveries of its highest rank in a row while others waited, and which of the
    /// others last had its turn.
    ranks_passed_over: [(u64, usize); 4],
    blocked: Vec<(Band, u64)>,
    hand: Option<(u64, Band, bool)>,
    paused: bool,
    closed: Option<Close>,
    books: Books,
    high_water: usize,
}

impl Model {
    fn len(&self) -> usize {
        self.bands.iter().map(VecDeque::len).sum()
    }

    fn offer(&mut self, band: Band, value: u64) -> Result<Admission<u64>, TrySendError<u64>> {
        if self.closed.is_some() {
            return Err(TrySendError::Closed(value));
        }
        if self.len() < self.capacity {
            self.admit(band, value);
            return Ok(Admission::Accepted);
        }
        match self.policy {
            Backpressure::Block | Backpressure::Reject => Err(TrySendError::Full(value)),
            Backpressure::DropNewest => {
                self.books.accepted += 1;
                self.books.dropped_newest += 1;
                Ok(Admission::DroppedNewest(value))
            }
            Backpressure::DropOldest => {
                let last = self.bands.iter_mut().rev().find(|band| !band.is_empty()).unwrap();
                let rank = rank_of(*last.back().unwrap());
                let at = last.iter().position(|&value| !self.is_ranked || rank_of(value) == rank);
                let oldest = last.remove(at.unwrap()).unwrap();
                self.books.dropped_oldest += 1;
                self.admit(band, value);
                Ok(Admission::Evicted(oldest))
            }
        }
    }

    fn admit(&mut self, band: Band, value: u64) {
        self.books.accepted += 1;
        let is_ranked = self.is_ranked;
        self.queue(band, |queue| {
            let goes_before = |&other: &u64| is_ranked && rank_of(other) < rank_of(value);
            let at = queue.iter().position(goes_before).unwrap_or(queue.len());
            queue.insert(at, value);
        });
    }

    fn queue(&mut self, band: Band, push: impl FnOnce(&mut VecDeque<u64>)) {
        let queue = &mut self.bands[band as usize];
        if queue.is_empty() {
            self.passed_over[band as usize] = 0;
        }
        push(queue);
        self.high_water = self.high_water.max(self.len());
    }

    fn admit_blocked(&mut self) {
        while self.len() < self.capacity && !self.blocked.is_empty() {
            let first = (0..self.blocked.len()).min_by_key(|&at| (self.blocked[at].0, at)).unwrap();
            let (band, value) = self.blocked.remove(first);
            self.admit(band, value);
        }
    }

    fn deliver(&mut self) -> Result<(u64, Band), TryReceiveError> {
        if self.closed == Some(Close::Now) {
            return Err(TryReceiveError::Closed);
        }
        let mut waiting = Band::ALL.into_iter().filter(|&b| !self.bands[b as usize].is_empty());
        let Some(first) = waiting.next() else {
            return Err(match self.closed {
                None => TryReceiveError::Empty,
                Some(_) => TryReceiveError::Closed,
            });
        };
        if self.paused {
            return Err(TryReceiveError::Empty);
        }
        let due = waiting.find(|&band| self.passed_over[band as usize] >= PASSED_OVER_MAX);
        let band = due.unwrap_or(first);
        for other in Band::ALL {
            if !self.bands[other as usize].is_empty() {
                self.passed_over[other as usize] += 1;
            }
        }
        self.passed_over[band as usize] = 0;
        let at = if self.is_ranked { self.place_in(band) } else { 0 };
        let value = self.bands[band as usize].remove(at).unwrap();
        self.admit_blocked();
        Ok((value, band))
    }

    /// Where in a band the next message lies.
    fn place_in(&mut self, band: Band) -> usize {
        let queue = &self.bands[band as usize];
        let mut ranks: Vec<u8> = queue.iter().map(|&value| rank_of(value)).collect();
        ranks.dedup();
        let (passed_over, turn) = &mut self.ranks_passed_over[band as usize];
        if ranks.len() == 1 {
            *passed_over = 0;
            return 0;
        }
        if *passed_over < PASSED_OVER_MAX {
            *passed_over += 1;
            return 0;
        }
        *passed_over = 0;
        *turn = *turn % (ranks.len() - 1) + 1;
        queue.iter().position(|&value| rank_of(value) == ranks[*turn]).unwrap()
    }

    fn receive(&mut self) -> Result<u64, TryReceiveError> {
        let (value, _) = self.deliver()?;
        self.books.processed += 1;
        Ok(value)
    }

    fn next(&mut self) -> Result<(), TryReceiveError> {
        self.settle(Outcome::Processed);
        let (value, band) = self.deliver()?;
        self.hand = Some((value, band, true));
        Ok(())
    }

    fn settle(&mut self, outcome: Outcome) -> Option<u64> {
        let (value, _, is_there) = self.hand.take()?;
        *match outcome {
            Outcome::Processed => &mut self.books.processed,
            Outcome::Expired => &mut self.books.expired,
            Outcome::DeadLettered => &mut self.books.dead_lettered,
        } += 1;
        is_there.then_some(value)
    }

    fn put_back(&mut self) -> bool {
        let Some((value, band, true)) = self.hand else { return false };
        self.hand = None;
        self.books.redelivered += 1;
        let is_ranked = self.is_ranked;
        self.queue(band, |queue| {
            let goes_before = |&other: &u64| !is_ranked || rank_of(other) <= rank_of(value);
            let at = queue.iter().position(goes_before).unwrap_or(queue.len());
            queue.insert(at, value);
        });
        true
    }

    fn books(&self) -> Books {
        let (in_hand, queued) = (u64::from(self.hand.is_some()), self.len() as u64);
        Books { in_hand, queued, ..self.books }
    }

    /// Messages that should be alive: queued, blocked, and in hand if not taken.
    fn alive(&self) -> usize {
        let in_hand = self.hand.is_some_and(|(_, _, is_there)| is_there);
        self.len() + self.blocked.len() + usize::from(in_hand)
    }
}

/// The rank of a message inside its band.
fn rank_of(value: u64) -> u8 {
    (value % 5) as u8
}

struct PendingSend<'a> {
    band: Band,
    value: u64,
    future: Send<'a, Tracked>,
    flag: Arc<Flag>,
    /// Closed before it was admitted.
    is_refused: bool,
}

struct Harness<'a> {
    mailbox: &'a Arc<Mailbox<Tracked>>,
    model: Model,
    inbox: Option<Inbox<Tracked>>,
    inbox_flag: Arc<Flag>,
    /// The inbox has been told to wait and not received since.
    inbox_waits: bool,
    sends: Vec<PendingSend<'a>>,
    receives: Vec<(Receive<'a, Tracked>, Arc<Flag>)>,
    sent: u64,
    life: Arc<()>,
}

impl<'a> Harness<'a> {
    fn message(&mut self) -> (u64, Tracked) {
        self.sent += 1;
        (self.sent, Tracked(self.sent, Arc::clone(&self.life)))
    }

    fn try_send(&mut self, band: Band) {
        let (value, message) = self.message();
        let expected = self.model.offer(band, value);
        self.model.books.rejected += u64::from(matches!(expected, Err(TrySendError::Full(_))));
        let outcome = self.mailbox.try_send(band, message);
        let outcome = outcome.map(number).map_err(|error| match error {
            TrySendError::Full(message) => TrySendError::Full(message.0),
            TrySendError::Closed(message) => TrySendError::Closed(message.0),
        });
        assert_eq!(outcome, expected);
    }

    fn send_batch(&mut self, band: Band, count: usize) {
        let mut messages: VecDeque<_> = (0..count).map(|_| self.message().1).collect();
        let mut values: VecDeque<_> = messages.iter().map(|message| message.0).collect();
        let outcome = self.mailbox.try_send_batch(band, &mut messages);
        if self.model.closed.is_some() && count > 0 {
            assert_eq!(outcome, Err(Closed));
        } else {
            let mut accepted = 0;
            for _ in 0..count {
                match self.model.offer(band, values.pop_front().unwrap()) {
                    Ok(admission) => {
                        accepted += 1;
                        match admission {
                            Admission::Accepted => {}
                            Admission::Evicted(value) | Admission::DroppedNewest(value) => {
                                values.push_back(value);
                            }
                        }
                    }
                    Err(error) => {
                        values.push_front(error.into_inner());
                        if self.model.policy == Backpressure::Reject {
                            self.model.books.rejected += values.len() as u64;
                        }
                        break;
                    }
                }
            }
            assert_eq!(outcome, Ok(accepted));
        }
        assert!(messages.iter().map(|message| message.0).eq(values));
    }

    fn start_send(&mut self, band: Band) {
        let (value, message) = self.message();
        let mut future = self.mailbox.send(band, message);
        let flag = Arc::default();
        let outcome = poll(&mut future, &flag);
        let is_blocking = self.model.policy == Backpressure::Block;
        match (self.model.offer(band, value), outcome) {
            (Ok(expected), Poll::Ready(Ok(admission))) => assert_eq!(number(admission), expected),
            (Err(TrySendError::Full(_)), Poll::Pending) if is_blocking => {
                self.model.blocked.push((band, value));
                self.sends.push(PendingSend { band, value, future, flag, is_refused: false });
            }
            (Err(TrySendError::Full(_)), Poll::Ready(Err(SendError::Full(message)))) => {
                assert!(!is_blocking);
                assert_eq!(message.0, value);
                self.model.books.rejected += 1;
            }
            (Err(TrySendError::Closed(_)), Poll::Ready(Err(SendError::Closed(message)))) => {
                assert_eq!(message.0, value);
            }
            (expected, outcome) => panic!("{outcome:?} instead of {expected:?}"),
        }
    }

    fn is_blocked(&self, send: &PendingSend<'_>) -> bool {
        self.model.blocked.contains(&(send.band, send.value))
    }

    fn poll_send(&mut self, at: usize) {
        if self.sends.is_empty() {
            return;
        }
        let mut send = self.sends.remove(at % self.sends.len());
        match poll(&mut send.future, &send.flag) {
            Poll::Pending => {
                assert!(self.is_blocked(&send));
                self.sends.push(send);
            }
            Poll::Ready(Ok(admission)) => {
                assert!(!self.is_blocked(&send) && !send.is_refused);
                assert!(matches!(admission, Admission::Accepted));
            }
            Poll::Ready(Err(error)) => {
                assert!(send.is_refused);
                assert!(
                    matches!(error, SendError::Closed(Tracked(value, _)) if value == send.value)
                );
            }
        }
    }

    fn cancel_send(&mut self, at: usize) {
        if self.sends.is_empty() {
            return;
        }
        let send = self.sends.remove(at % self.sends.len());
        self.model.blocked.retain(|&blocked| blocked != (send.band, send.value));
    }

    fn start_receive(&mut self) {
        let receive = (self.mailbox.receive(), Arc::default());
        self.receives.push(receive);
        self.poll_receive(self.receives.len() - 1);
    }

    fn poll_receive(&mut self, at: usize) {
        if self.receives.is_empty() {
            return;
        }
        let mut receive = self.receives.remove(at % self.receives.len());
        match (poll(&mut receive.0, &receive.1), self.model.receive()) {
            (Poll::Pending, Err(TryReceiveError::Empty)) => self.receives.push(receive),
            (Poll::Ready(Ok(message)), Ok(value)) => assert_eq!(message.0, value),
            (Poll::Ready(Err(Closed)), Err(TryReceiveError::Closed)) => {}
            (outcome, expected) => panic!("{outcome:?} instead of {expected:?}"),
        }
    }

    fn cancel_receive(&mut self, at: usize) {
        if !self.receives.is_empty() {
            drop(self.receives.remove(at % self.receives.len()));
        }
    }

    fn receive_batch(&mut self, max: usize) {
        let mut out = Vec::new();
        let outcome = self.mailbox.try_receive_batch(max, &mut out);
        let values: Vec<_> = out.iter().map(|message| message.0).collect();
        drop(out);
        let count = values.len();
        assert!(count <= max);
        for value in values {
            assert_eq!(self.model.receive(), Ok(value));
        }
        // A batch may end before `max`: it reserves memory for what was there when it began.
        match outcome {
            Ok(taken) => assert_eq!(taken, count),
            Err(error) => assert_eq!(Err(error), self.model.receive()),
        }
    }

    fn next(&mut self) {
        let Some(inbox) = &mut self.inbox else { return };
        assert_eq!(inbox.try_next(), self.model.next());
    }

    fn poll_next(&mut self) {
        let Some(inbox) = &mut self.inbox else { return };
        let flag = Arc::clone(&self.inbox_flag);
        flag.0.store(false, Ordering::Relaxed);
        let waker = Waker::from(flag);
        let outcome = inbox.poll_next(&mut Context::from_waker(&waker));
        self.inbox_waits = outcome.is_pending();
        match (outcome, self.model.next()) {
            (Poll::Pending, Err(TryReceiveError::Empty)) => {}
            (Poll::Ready(Ok(())), Ok(())) => {}
            (Poll::Ready(Err(Closed)), Err(TryReceiveError::Closed)) => {}
            (outcome, expected) => panic!("{outcome:?} instead of {expected:?}"),
        }
    }

    fn toggle_inbox(&mut self) {
        match self.inbox.take() {
            Some(inbox) => {
                assert!(self.mailbox.inbox().is_none());
                drop(inbox);
                self.inbox_waits = false;
            }
            None => self.inbox = self.mailbox.inbox(),
        }
    }

    fn close(&mut self, mode: Close) {
        self.mailbox.close(mode);
        self.model.closed = self.model.closed.max(Some(mode));
        for (band, value) in self.model.blocked.drain(..) {
            let send = self.sends.iter_mut().find(|send| (send.band, send.value) == (band, value));
            send.unwrap().is_refused = true;
        }
    }

    fn take_all(&mut self) {
        let mut taken = Vec::new();
        self.mailbox.take_all(|message| taken.push(message.0));
        for value in taken {
            let expected = self.model.bands.iter_mut().find_map(VecDeque::pop_front);
            assert_eq!(expected, Some(value));
            self.model.books.dead_lettered += 1;
            self.model.admit_blocked();
        }
    }

    fn step(&mut self, op: &Op) {
        match *op {
            Op::TrySend(band) => self.try_send(band),
            Op::TrySendMany(band, count) => (0..count).for_each(|_| self.try_send(band)),
            Op::SendBatch(band, count) => self.send_batch(band, count),
            Op::StartSend(band) => self.start_send(band),
            Op::PollSend(at) => self.poll_send(at),
            Op::CancelSend(at) => self.cancel_send(at),
            Op::TryReceive => {
                let outcome = self.mailbox.try_receive().map(|message| message.0);
                assert_eq!(outcome, self.model.receive());
            }
            Op::ReceiveBatch(max) => self.receive_batch(max),
            Op::StartReceive => self.start_receive(),
            Op::PollReceive(at) => self.poll_receive(at),
            Op::CancelReceive(at) => self.cancel_receive(at),
            Op::ToggleInbox => self.toggle_inbox(),
            Op::Next => self.next(),
            Op::PollNext => self.poll_next(),
            Op::NextMany(count) => (0..count).for_each(|_| self.next()),
            Op::Take => {
                if let Some(inbox) = &mut self.inbox {
                    let expected = self.model.hand.as_mut().filter(|hand| hand.2);
                    let expected = expected.map(|hand| {
                        hand.2 = false;
                        hand.0
                    });
                    assert_eq!(inbox.take().map(|message| message.0), expected);
                }
            }
            Op::Settle(outcome) => {
                if let Some(inbox) = &mut self.inbox {
                    let value = inbox.settle(outcome).map(|message| message.0);
                    assert_eq!(value, self.model.settle(outcome));
                }
            }
            Op::PutBack => {
                if let Some(inbox) = &mut self.inbox {
                    assert_eq!(inbox.put_back(), self.model.put_back());
                }
            }
            Op::Pause => {
                self.mailbox.pause();
                self.model.paused = true;
            }
            Op::Resume => {
                self.mailbox.resume();
                self.model.paused = false;
            }
            Op::Close(mode) => self.close(mode),
            Op::TakeAll => self.take_all(),
        }
        self.check();
    }

    fn check(&self) {
        let books = self.mailbox.books();
        assert_eq!(books, self.model.books());
        assert!(books.balance());
        assert_eq!(self.mailbox.len(), self.model.len());
        assert_eq!(self.mailbox.high_water(), self.model.high_water);
        if let Some(inbox) = &self.inbox {
            let expected = self.model.hand.filter(|hand| hand.2).map(|hand| hand.0);
            assert_eq!(inbox.current().map(|message| message.0), expected);
        }
        let refused = self.sends.iter().filter(|send| send.is_refused).count();
        // Two shares are the test's own.
        assert_eq!(Arc::strong_count(&self.life) - 2, self.model.alive() + refused);

        for send in &self.sends {
            assert!(self.is_blocked(send) || send.flag.is_raised(), "a sender should be woken");
        }
        let mut waiters: Vec<_> = self.receives.iter().map(|(_, flag)| flag.is_raised()).collect();
        waiters.extend(self.inbox_waits.then(|| self.inbox_flag.is_raised()));
        let woken = waiters.iter().filter(|&&is_woken| is_woken).count();
        let needed = match (self.model.closed, self.model.len()) {
            (Some(Close::Now), _) | (Some(_), 0) => waiters.len(),
            _ if self.model.paused => 0,
            (_, len) => len.min(waiters.len()),
        };
        assert!(woken >= needed, "{woken} of {} woken, not {needed}", waiters.len());
    }
}

fn number(admission: Admission<Tracked>) -> Admission<u64> {
    match admission {
        Admission::Accepted => Admission::Accepted,
        Admission::Evicted(message) => Admission::Evicted(message.0),
        Admission::DroppedNewest(message) => Admission::DroppedNewest(message.0),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 4 } else { 500 }))]

    #[test]
    fn the_mailbox_does_what_the_model_does(
        policy in policy(),
        capacity in prop_oneof![1..8_usize, 1..600_usize],
        starts_with_inbox in any::<bool>(),
        is_ranked in any::<bool>(),
        ops in prop::collection::vec(op(), 1..200),
    ) {
        let life = Arc::new(());
        let mailbox = match is_ranked {
            false => Mailbox::new(capacity, policy),
            true => Mailbox::ranked(capacity, policy, 1, |message: &Tracked| rank_of(message.0)),
        };
        let mut harness = Harness {
            mailbox: &mailbox,
            model: Model {
                capacity,
                policy,
                bands: Default::default(),
                passed_over: [0; 4],
                is_ranked,
                ranks_passed_over: [(0, 0); 4],
                blocked: Vec::new(),
                hand: None,
                paused: false,
                closed: None,
                books: Books::default(),
                high_water: 0,
            },
            inbox: None,
            inbox_flag: Arc::default(),
            inbox_waits: false,
            sends: Vec::new(),
            receives: Vec::new(),
            sent: 0,
            life: Arc::clone(&life),
        };
        if starts_with_inbox {
            harness.toggle_inbox();
        }
        for op in &ops {
            harness.step(op);
        }
        drop(harness);
        drop(mailbox);
        prop_assert_eq!(Arc::strong_count(&life), 1, "every message should be dropped once");
    }
}
