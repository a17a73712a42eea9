//! The priority mailbox: many senders, many receivers or one inbox, exact books.
//!
//! One lock guards everything that must be exact. It is held for tens of nanoseconds: no waker is
//! called, no value dropped and, once the mailbox has grown to its load, nothing allocated under
//! it. What is left to do after the lock is collected in [`Wakes`], declared before the lock is
//! taken and therefore dropped after it is released.
//!
//! # Who writes what
//!
//! | words | written by | read by |
//! |---|---|---|
//! | [`State`] and the slots, but for those below | the holder of the lock | the holder of the lock |
//! | the cursor's count | the inbox | the inbox; the holder of the lock, while a window is lent |
//! | the cursor's stop mark | set by the holder of the lock, cleared by the inbox holding it | the inbox |
//! | the slot in hand | the inbox | the inbox; its link, the holder of the lock |
//! | slots lent to the inbox | nobody | the inbox; their links, the holder of the lock |
//! | a waiting future's entry | the holder of the lock; removed by the future's owner | likewise |
//!
//! # Edges
//!
//! | name | release | acquire | makes visible |
//! |---|---|---|---|
//! | `lock.hold` | `Guard::drop` | `Lock::try_acquire` | all that was done under the lock, so also what is lent |
//! | `cursor.step` | `Cursor::advance` | `Cursor::look`, `Cursor::stop` | that the inbox is done with the slots before the one in hand |

#[cfg(not(loom))]
use crate::bands::HOT_BYTES;
use crate::bands::{Band, Bands, SlotPtr, WINDOW_MAX};
use crate::books::Books;
use crate::clock::now_ns;
use crate::cursor::Cursor;
use crate::error::{Closed, ReceiveError, SendError, TryReceiveError, TrySendError};
use crate::inbox::{Inbox, Outcome};
#[cfg(not(loom))]
use crate::lock::{Guard, Lock};
use crate::receive::{Receive, ReceiveBatch, ReceiveOwned};
use crate::receivers::{Place, Receivers};
use crate::send::{Begun, Blocked, Send};
// The models of the mailbox use the model checker's own mutex: it knows how that waits, and need not
// explore each retry. The lock has a model of its own.
#[cfg(loom)]
use crate::sync::{Mutex as Lock, MutexGuard as Guard};
use crate::wait::block_on_until;
use crate::wait_list::{Key, WaitList, Wakes};
use std::collections::VecDeque;
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

/// What a full mailbox does with one more message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Backpressure {
    /// The sender waits until there is room.
    Block,
    /// The sender gets the message back.
    Reject,
    /// The oldest message of the least urgent occupied band makes room, even for a less urgent one.
    DropOldest,
    /// The new message is dropped.
    DropNewest,
}

/// What became of an accepted message, or of another one for its sake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a dropped message may have somebody who waits for its answer"]
pub enum Admission<T> {
    /// The message is queued.
    Accepted,
    /// The message is queued; this older one was dropped and counted as `dropped_oldest`.
    Evicted(T),
    /// The message itself, this one, was dropped and counted as `dropped_newest`.
    DroppedNewest(T),
}

/// How [`Mailbox::close`] treats messages that are still queued.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Close {
    /// They are still handed out; [`Mailbox::reopen`] can end this, and only this.
    Diverted,
    /// They are still handed out.
    Drain,
    /// They stay where they are, for [`Mailbox::take_all`].
    Now,
}

/// What [`Mailbox::divert`] leaves to be done: dropping it wakes whoever waited at either mailbox.
#[must_use = "drop it once no lock is held"]
pub struct Diverted {
    _wakes: [Wakes; 2],
}

impl fmt::Debug for Diverted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Diverted")
    }
}

/// The first message and every one that follows at this distance, in the order of admission, is
/// stamped with the time; unless [`Mailbox::stamping`] says another distance.
pub const STAMP_EVERY: u64 = 64;

/// How often a blocking send lets other threads run before it waits in line. A full mailbox is
/// often emptied within microseconds; a wait in line costs a wake-up by the receiver.
const YIELDS_BEFORE_WAIT: u32 = if cfg!(loom) { 0 } else { 16 };

/// The inbox reads at most this part of a full mailbox before it takes the lock again: those that
/// wait for room can leave it alone until then, and it finds enough meanwhile.
const WINDOW_PART: usize = 4;
/// However small the mailbox is.
const WINDOW_MIN: usize = 16;

/// A bounded queue with four priority bands, a backpressure policy and books that balance.
///
/// Any number of threads may send and receive. Capacity is exact and counts all bands together.
/// Within a band messages keep their order; between bands the more urgent goes first, but a band
/// is passed over by at most [`PASSED_OVER_MAX`](crate::PASSED_OVER_MAX) deliveries in a row.
/// Senders that wait are admitted by band, then in the order in which they began to wait.
///
/// Memory grows with the most messages ever queued and is kept; an unused mailbox has none.
///
/// ```
/// use dotcompute_mailbox::{Backpressure, Band, Mailbox};
///
/// let mailbox = Mailbox::new(2, Backpressure::Reject);
/// let _ = mailbox.try_send(Band::Normal, "later");
/// let _ = mailbox.try_send(Band::High, "sooner");
/// assert!(mailbox.try_send(Band::System, "no room").is_err());
/// assert_eq!(mailbox.try_receive(), Ok("sooner"));
/// assert_eq!(mailbox.try_receive(), Ok("later"));
/// assert!(mailbox.books().balance());
/// ```
// What a message that finds the mailbox empty and a receiver waiting touches of it are three cache
// lines: these fields in this order up to the queue of the NORMAL band. They begin one: the cursor is
// aligned so.
#[repr(C)]
pub struct Mailbox<T> {
    capacity: usize,
    state: Lock<State<T>>,
    backpressure: Backpressure,
    cursor: Cursor,
}

#[cfg(not(loom))]
const _: () = {
    let lock_words = size_of::<Lock<u64>>() - size_of::<u64>();
    let state = std::mem::offset_of!(Mailbox<()>, state) + lock_words;
    assert!(state + std::mem::offset_of!(State<()>, bands) + HOT_BYTES == 3 * 64);
};

/// What the lock guards. What every send and receive touches comes first.
#[repr(C)]
pub(crate) struct State<T> {
    pub(crate) closed: Option<Close>,
    pub(crate) paused: bool,
    /// Whether an [`Inbox`] lives.
    pub(crate) has_inbox: bool,
    /// Whether the inbox waits for a message, as it found out when it looked last.
    pub(crate) is_awaited: bool,
    /// How many messages are admitted before the next one that is stamped.
    stamp_in: u32,
    pub(crate) accepted: u64,
    high_water: usize,
    /// Who waits for a message, the inbox included.
    ///
    /// While somebody waits unserved and messages can be handed out, at least as many were served
    /// as there are messages; each of these looks again, or passes it on when it is cancelled.
    receivers: Receivers,
    /// Blocked sends with their messages, a line per band.
    pub(crate) senders: WaitList<T, 4>,
    pub(crate) bands: Bands<T>,
    dropped_oldest: u64,
    dropped_newest: u64,
    pub(crate) expired: u64,
    pub(crate) dead_lettered: u64,
    forwarded: u64,
    /// Deliveries to the inbox that did not end as processed.
    pub(crate) unprocessed: u64,
    pub(crate) rejected: u64,
    pub(crate) redelivered: u64,
    /// Messages that an inbox took out and has not settled: see `lend.rs`.
    pub(crate) lent: u64,
    /// Messages that came to the kernel past the mailbox, as if they had been lent.
    pub(crate) adopted: u64,
    /// Who wants to know when a message is awaited anew.
    pub(crate) awaiter: Option<Waker>,
    stamp_every: u32,
    /// The band of the message that the last inbox had in hand when it was dropped, if it had one.
    pub(crate) left_in_hand: Band,
}

impl<T> Mailbox<T> {
    /// An empty mailbox that holds at most `capacity` messages.
    ///
    /// # Panics
    ///
    /// If `capacity` is 0.
    pub fn new(capacity: usize, backpressure: Backpressure) -> Arc<Self> {
        Self::stamping(capacity, backpressure, STAMP_EVERY)
    }

    /// As [`new`](Self::new), with the first message stamped with the time and every one that
    /// follows it at the distance `every`: 1 for each message, which then costs two clock readings.
    ///
    /// # Panics
    ///
    /// If `capacity` or `every` is 0.
    pub fn stamping(capacity: usize, backpressure: Backpressure, every: u64) -> Arc<Self> {
        Self::with(capacity, backpressure, every, None)
    }

    /// As [`stamping`](Self::stamping), with an order inside each band too: a message goes before
    /// those of a lower `rank`. Equal ones keep their order. While others of the band wait, the
    /// highest rank gets at most [`PASSED_OVER_MAX`](crate::PASSED_OVER_MAX) deliveries in a row;
    /// then one of the others does, each in its turn. [`Backpressure::DropOldest`] drops from the
    /// lowest rank.
    ///
    /// `rank` is called under the lock. Each delivery takes the lock, so this is slower.
    ///
    /// # Panics
    ///
    /// If `capacity` or `every` is 0.
    pub fn ranked(
        capacity: usize,
        backpressure: Backpressure,
        every: u64,
        rank: fn(&T) -> u8,
    ) -> Arc<Self> {
        Self::with(capacity, backpressure, every, Some(rank))
    }

    fn with(
        capacity: usize,
        backpressure: Backpressure,
        every: u64,
        rank: Option<fn(&T) -> u8>,
    ) -> Arc<Self> {
        assert!(every > 0, "messages should be stamped at a distance of at least 1");
        assert!(capacity > 0, "a mailbox's capacity should be at least 1");
        let state = State {
            bands: Bands::new(rank),
            senders: WaitList::new(),
            receivers: Receivers::new(),
            closed: None,
            paused: false,
            has_inbox: false,
            is_awaited: false,
            left_in_hand: Band::Normal,
            lent: 0,
            adopted: 0,
            awaiter: None,
            stamp_in: 0,
            accepted: 0,
            dropped_oldest: 0,
            dropped_newest: 0,
            expired: 0,
            dead_lettered: 0,
            forwarded: 0,
            unprocessed: 0,
            rejected: 0,
            redelivered: 0,
            high_water: 0,
            stamp_every: u32::try_from(every).unwrap_or(u32::MAX),
        };
        let (state, cursor) = (Lock::new(state), Cursor::new());
        Arc::new(Self { capacity, backpressure, state, cursor })
    }

    /// Sends without waiting.
    ///
    /// # Errors
    ///
    /// Gives the message back: [`TrySendError::Full`] under [`Backpressure::Block`] and
    /// [`Backpressure::Reject`] (counted as rejected), [`TrySendError::Closed`] after
    /// [`close`](Self::close).
    #[inline]
    pub fn try_send(&self, band: Band, value: T) -> Result<Admission<T>, TrySendError<T>> {
        let locked = self.lock();
        match locked.takes_more() {
            true => Ok(locked.admit_alone(band, value)),
            false => locked.try_rarely(band, value),
        }
    }

    /// [`try_send`](Self::try_send) for those who wait if it comes back: it does not count as
    /// rejected then.
    ///
    /// # Errors
    ///
    /// As [`try_send`](Self::try_send).
    #[inline]
    pub fn offer(&self, band: Band, value: T) -> Result<Admission<T>, TrySendError<T>> {
        let locked = self.lock();
        match locked.takes_more() {
            true => Ok(locked.admit_alone(band, value)),
            false => locked.offer_rarely(band, value, || ()),
        }
    }

    /// [`offer`](Self::offer) that calls `count` when the message is admitted, before anybody can
    /// have received it: under the lock, so it is to count and do nothing else.
    ///
    /// # Errors
    ///
    /// As [`try_send`](Self::try_send); `count` was not called then.
    #[inline]
    pub fn offer_counted(
        &self,
        band: Band,
        value: T,
        count: impl FnOnce(),
    ) -> Result<Admission<T>, TrySendError<T>> {
        let locked = self.lock();
        match locked.takes_more() {
            true => {
                count();
                Ok(locked.admit_alone(band, value))
            }
            false => locked.offer_rarely(band, value, count),
        }
    }

    /// Accepts a message whatever its capacity and its policy are, as [`divert`](Self::divert) does
    /// many.
    ///
    /// # Errors
    ///
    /// Gives it back if the mailbox is closed.
    pub fn add(&self, band: Band, value: T) -> Result<(), T> {
        let waker = {
            let mut locked = self.lock();
            if locked.closed.is_some() {
                return Err(value);
            }
            locked.admit(band, value)
        };
        if let Some(waker) = waker {
            waker.wake();
        }
        Ok(())
    }

    /// Sends, waiting for room under [`Backpressure::Block`]. The message enters the mailbox, or
    /// the line of blocked senders, when the future is first polled.
    ///
    /// # Errors
    ///
    /// Gives the message back: [`SendError::Full`] under [`Backpressure::Reject`],
    /// [`SendError::Closed`] if the mailbox is or was meanwhile closed.
    ///
    /// # Cancel safety
    ///
    /// A send dropped before it finished has either sent its message (it was admitted, and the
    /// future was not polled again), or drops it; it holds no one up.
    pub fn send(&self, band: Band, value: T) -> Send<'_, T> {
        Send::new(self, band, value)
    }

    /// The first poll of a [`send`](Self::send), for futures that do not want to hold the message
    /// until then: sends, or waits in line for room, under one lock. `context`'s task is woken when
    /// a send that waits has ended.
    #[inline]
    pub fn begin_send(&self, band: Band, value: T, context: &Context<'_>) -> Begun<'_, T> {
        let mut wakes = Wakes::default();
        let mut locked = self.lock();
        Begun::Ended(match locked.offer(band, value, &mut wakes) {
            Ok(admission) => Ok(admission),
            Err(TrySendError::Closed(value)) => Err(SendError::Closed(value)),
            Err(TrySendError::Full(value)) if self.backpressure == Backpressure::Block => {
                match locked.block(band, value, context, &mut wakes) {
                    None => Ok(Admission::Accepted),
                    Some(key) => return Begun::Blocked(Blocked::new(self, key)),
                }
            }
            Err(TrySendError::Full(value)) => {
                locked.rejected += 1;
                Err(SendError::Full(value))
            }
        })
    }

    /// [`send`](Self::send) on the calling thread, which sleeps while it waits, at most until
    /// `deadline`.
    ///
    /// # Errors
    ///
    /// Those of [`send`](Self::send), and [`SendError::Timeout`] when the deadline passes first.
    #[inline]
    pub fn send_blocking(
        &self,
        band: Band,
        value: T,
        deadline: Option<Instant>,
    ) -> Result<Admission<T>, SendError<T>> {
        let locked = self.lock();
        if locked.takes_more() {
            return Ok(locked.admit_alone(band, value));
        }
        drop(locked);
        self.wait_for_room(band, value, deadline)
    }

    #[cold]
    fn wait_for_room(
        &self,
        band: Band,
        mut value: T,
        deadline: Option<Instant>,
    ) -> Result<Admission<T>, SendError<T>> {
        if self.backpressure == Backpressure::Block {
            // Whoever looks how far the inbox has come takes from it the line that it writes for each
            // message. One sender that looks after each send more than halves what goes through.
            let looks = self.capacity < WINDOW_PART * WINDOW_MIN;
            for _ in 0..YIELDS_BEFORE_WAIT {
                if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                    break;
                }
                std::thread::yield_now();
                let locked = self.lock();
                if locked.takes_more() {
                    return Ok(locked.admit_alone(band, value));
                }
                if !looks && locked.closed.is_none() {
                    continue;
                }
                match locked.offer_rarely(band, value, || ()) {
                    Ok(admission) => return Ok(admission),
                    Err(TrySendError::Closed(value)) => return Err(SendError::Closed(value)),
                    Err(TrySendError::Full(back)) => value = back,
                }
            }
        }
        match block_on_until(self.send(band, value), deadline) {
            Ok(outcome) => outcome,
            Err(send) => send.give_up(),
        }
    }

    /// Sends as many of `values` as it can, from the front, without waiting and under one lock.
    /// Returns how many were accepted. What is not in the mailbox then is left in `values`: under
    /// [`Backpressure::Block`] and [`Backpressure::Reject`] those that did not fit, under the drop
    /// policies (which accept all) those that were dropped for it.
    ///
    /// Under [`Backpressure::Reject`] those that did not fit count as rejected.
    ///
    /// # Errors
    ///
    /// [`Closed`] if the mailbox is closed; `values` is as it was.
    pub fn try_send_batch(&self, band: Band, values: &mut VecDeque<T>) -> Result<usize, Closed> {
        self.try_send_batch_by(|_| band, values)
    }

    /// [`try_send_batch`](Self::try_send_batch) of values that go to different bands. `band_of`
    /// runs under the lock: it must be quick and must not use this mailbox.
    ///
    /// # Errors
    ///
    /// As [`try_send_batch`](Self::try_send_batch).
    pub fn try_send_batch_by(
        &self,
        mut band_of: impl FnMut(&T) -> Band,
        values: &mut VecDeque<T>,
    ) -> Result<usize, Closed> {
        let mut wakes = Wakes::default();
        let mut locked = self.lock();
        let mut accepted = 0;
        for _ in 0..values.len() {
            let Some(band) = values.front().map(&mut band_of) else { break };
            let Some(value) = values.pop_front() else { break };
            match locked.offer(band, value, &mut wakes) {
                Ok(Admission::Accepted) => accepted += 1,
                Ok(Admission::Evicted(dropped) | Admission::DroppedNewest(dropped)) => {
                    accepted += 1;
                    values.push_back(dropped);
                }
                Err(TrySendError::Full(value)) => {
                    values.push_front(value);
                    if self.backpressure == Backpressure::Reject {
                        locked.rejected += values.len() as u64;
                    }
                    break;
                }
                Err(TrySendError::Closed(value)) => {
                    values.push_front(value);
                    return Err(Closed);
                }
            }
        }
        Ok(accepted)
    }

    /// Receives without waiting. The message counts as processed at once.
    ///
    /// # Errors
    ///
    /// [`TryReceiveError::Empty`] if nothing is queued or the mailbox is paused;
    /// [`TryReceiveError::Closed`] if it is closed and hands out nothing more.
    #[inline]
    pub fn try_receive(&self) -> Result<T, TryReceiveError> {
        let mut wakes = Wakes::default();
        self.lock().deliver(&mut wakes)
    }

    /// Receives, waiting for a message. It counts as processed at once.
    ///
    /// # Errors
    ///
    /// [`Closed`] once the mailbox is closed and hands out nothing more.
    ///
    /// # Cancel safety
    ///
    /// A receive that is dropped before it finished has taken nothing; if it had been told of a
    /// message, it passes that on.
    pub fn receive(&self) -> Receive<'_, T> {
        Receive::new(self)
    }

    /// [`receive`](Self::receive) that owns its share of the mailbox.
    ///
    /// # Errors
    ///
    /// As [`receive`](Self::receive).
    ///
    /// # Cancel safety
    ///
    /// As [`receive`](Self::receive).
    pub fn receive_owned(self: &Arc<Self>) -> ReceiveOwned<T> {
        ReceiveOwned::new(self)
    }

    /// [`receive`](Self::receive) on the calling thread, which sleeps while it waits, at most until
    /// `deadline`.
    ///
    /// # Errors
    ///
    /// [`ReceiveError::Closed`] as in [`receive`](Self::receive), [`ReceiveError::Timeout`] when
    /// the deadline passes first.
    pub fn receive_blocking(&self, deadline: Option<Instant>) -> Result<T, ReceiveError> {
        match block_on_until(self.receive(), deadline) {
            Ok(outcome) => outcome.map_err(|Closed| ReceiveError::Closed),
            Err(_cancelled) => Err(ReceiveError::Timeout),
        }
    }

    /// Moves up to `max` messages to the end of `out`, without waiting; tells how many.
    ///
    /// # Errors
    ///
    /// As [`try_receive`](Self::try_receive), if there is not even one.
    pub fn try_receive_batch(
        &self,
        max: usize,
        out: &mut Vec<T>,
    ) -> Result<usize, TryReceiveError> {
        let room = self.reserve_batch(max, out);
        let mut wakes = Wakes::default();
        self.lock().deliver_batch(room, out, &mut wakes)
    }

    /// Waits for a message, then moves up to `max` that are there to the end of `out`; tells how
    /// many.
    ///
    /// # Errors
    ///
    /// [`Closed`] once the mailbox is closed and hands out nothing more.
    ///
    /// # Cancel safety
    ///
    /// As [`receive`](Self::receive): what has been taken is in `out`.
    pub fn receive_batch<'a>(&'a self, max: usize, out: &'a mut Vec<T>) -> ReceiveBatch<'a, T> {
        ReceiveBatch::new(self, max, out)
    }

    /// [`receive_batch`](Self::receive_batch) on the calling thread, which sleeps while it waits,
    /// at most until `deadline`.
    ///
    /// # Errors
    ///
    /// As [`receive_blocking`](Self::receive_blocking).
    pub fn receive_batch_blocking(
        &self,
        max: usize,
        out: &mut Vec<T>,
        deadline: Option<Instant>,
    ) -> Result<usize, ReceiveError> {
        match block_on_until(self.receive_batch(max, out), deadline) {
            Ok(outcome) => outcome.map_err(|Closed| ReceiveError::Closed),
            Err(_cancelled) => Err(ReceiveError::Timeout),
        }
    }

    /// Makes room in `out`, so that nothing is allocated under the lock; how many fit.
    pub(crate) fn reserve_batch(&self, max: usize, out: &mut Vec<T>) -> usize {
        out.reserve(max.min(self.len().max(1)));
        max.min(out.capacity() - out.len())
    }

    /// Closes the mailbox: from now on nothing is accepted, and senders that wait get their message
    /// back. Receivers get what is queued ([`Close::Drain`]) or nothing more ([`Close::Now`]), then
    /// an error. Closing for good follows on draining, never the other way round.
    pub fn close(&self, mode: Close) {
        let mut wakes = Wakes::default();
        self.lock().shut(mode, &mut wakes);
    }

    /// Closes this mailbox ([`Close::Diverted`]) and moves what is queued in it to the end of `to`:
    /// each message to its band there, also beyond the capacity of `to` and whatever its policy is.
    /// Each counts as forwarded here and as accepted there. One step to everyone else: what was sent
    /// here before is moved, what is sent after is refused. Whoever has to be told of it is told when
    /// the result is dropped.
    ///
    /// It holds the locks of both, this one's first: nobody may divert the other way meanwhile.
    ///
    /// # Errors
    ///
    /// [`Closed`] if `to` is closed. Nothing has changed then.
    pub fn divert(&self, to: &Self) -> Result<Diverted, Closed> {
        let (mut wakes, mut there) = (Wakes::default(), Wakes::default());
        let mut from = self.lock();
        let mut to = to.lock();
        if to.closed.is_some() {
            return Err(Closed);
        }
        from.recall();
        while let Some((band, value)) = from.bands.remove_first() {
            from.forwarded += 1;
            there.push(to.admit(band, value));
        }
        from.shut(Close::Diverted, &mut wakes);
        Ok(Diverted { _wakes: [wakes, there] })
    }

    /// Accepts messages again, if the mailbox was closed by [`divert`](Self::divert) only.
    pub fn reopen(&self) {
        let mut locked = self.lock();
        if locked.closed == Some(Close::Diverted) {
            locked.closed = None;
        }
    }

    /// Empties the mailbox: calls `each` with every queued message, the most urgent band first and
    /// each band in order, and counts it as dead-lettered. A pause does not matter. Meant for a
    /// closed mailbox; in an open one it takes what was queued when it began, and senders that wait
    /// are admitted. The message that an inbox has in hand is not queued.
    ///
    /// `each` runs without the lock; if it panics, the messages not yet given to it stay queued.
    pub fn take_all(&self, mut each: impl FnMut(T)) {
        for _ in 0..self.len() {
            let Some(value) = self.take_one() else { break };
            each(value);
        }
    }

    fn take_one(&self) -> Option<T> {
        let mut wakes = Wakes::default();
        let mut locked = self.lock();
        locked.recall();
        let (_, value) = locked.bands.remove_first()?;
        locked.dead_lettered += 1;
        locked.admit_blocked(&mut wakes);
        if locked.bands.len() == 0 {
            locked.notify_all(&mut wakes);
        }
        Some(value)
    }

    /// Calls `each` with every message that the mailbox owns but for the one in hand: those queued,
    /// each with its band, then those of senders that wait, with `None`. For a garbage collector's
    /// visit and for statistics.
    ///
    /// `each` runs under the lock: it must be quick and must not use this mailbox.
    pub fn inspect(&self, mut each: impl FnMut(Option<Band>, &T)) {
        let mut locked = self.lock();
        locked.recall();
        locked.bands.inspect(|band, value| each(Some(band), value));
        locked.senders.payloads().for_each(|value| each(None, value));
    }

    /// Stops handing out messages. When this returns, no message is handed out until
    /// [`resume`](Self::resume); one in hand stays there. Sends go on as before.
    pub fn pause(&self) {
        let mut locked = self.lock();
        locked.recall();
        locked.paused = true;
    }

    /// Ends a [`pause`](Self::pause).
    pub fn resume(&self) {
        let mut wakes = Wakes::default();
        let mut locked = self.lock();
        locked.paused = false;
        locked.notify_all(&mut wakes);
    }

    /// Whether the mailbox is paused. May have changed when this returns.
    pub fn is_paused(&self) -> bool {
        self.lock().paused
    }

    /// A consistent snapshot of the counters.
    pub fn books(&self) -> Books {
        self.lock().books()
    }

    /// The most messages that may be queued. The one in hand does not count.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// What the mailbox does when it is full.
    pub fn backpressure(&self) -> Backpressure {
        self.backpressure
    }

    /// Messages queued now. May have changed when this returns.
    pub fn len(&self) -> usize {
        let mut locked = self.lock();
        locked.observe();
        locked.bands.len()
    }

    /// Whether no message is queued. May have changed when this returns.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether there is no room. May have changed when this returns.
    pub fn is_full(&self) -> bool {
        self.len() >= self.capacity
    }

    /// Whether the mailbox is closed. If so, it stays so, unless it was only diverted.
    pub fn is_closed(&self) -> bool {
        self.lock().closed.is_some()
    }

    /// The most messages that were ever queued at a time.
    pub fn high_water(&self) -> usize {
        self.lock().high_water
    }

    /// Memory that the mailbox holds now, in bytes, without what its messages point to.
    pub fn memory_bytes(&self) -> usize {
        let locked = self.lock();
        size_of::<Self>()
            + locked.bands.memory_bytes()
            + locked.senders.memory_bytes()
            + locked.receivers.memory_bytes()
    }

    /// The kernel's end of this mailbox; `None` while another one lives.
    ///
    /// A message that the last inbox had in hand when it was dropped is in hand again.
    pub fn inbox(self: &Arc<Self>) -> Option<Inbox<T>> {
        Inbox::open(self)
    }

    #[inline]
    pub(crate) fn lock(&self) -> Locked<'_, T> {
        #[cfg(not(loom))]
        let state = self.state.lock();
        #[cfg(loom)]
        let state = crate::sync::lock(&self.state);
        Locked { mailbox: self, state }
    }

    #[inline]
    pub(crate) fn cursor(&self) -> &Cursor {
        &self.cursor
    }
}

impl<T> fmt::Debug for Mailbox<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mailbox")
            .field("capacity", &self.capacity)
            .field("backpressure", &self.backpressure)
            .field("len", &self.len())
            .finish_non_exhaustive()
    }
}

/// The mailbox, locked.
pub(crate) struct Locked<'a, T> {
    mailbox: &'a Mailbox<T>,
    state: Guard<'a, State<T>>,
}

impl<T> Deref for Locked<'_, T> {
    type Target = State<T>;

    #[inline]
    fn deref(&self) -> &State<T> {
        &self.state
    }
}

impl<T> DerefMut for Locked<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut State<T> {
        &mut self.state
    }
}

impl<T> Locked<'_, T> {
    /// Learns how far the inbox has come. It may go on meanwhile.
    #[inline]
    pub(crate) fn observe(&mut self) {
        if self.bands.is_lent() {
            let seen = self.mailbox.cursor.look();
            self.bands.observe(seen);
        }
    }

    /// Lends the inbox, which was just handed a message, those that come next.
    #[inline]
    pub(crate) fn open_window(&mut self) -> Option<(SlotPtr<T>, Band, usize)> {
        let part = self.mailbox.capacity / WINDOW_PART;
        self.bands.open_window(part.clamp(WINDOW_MIN, WINDOW_MAX))
    }

    /// Takes back what the inbox has not read of its window: from now on everything queued is in
    /// the bands, and nothing is delivered but under the lock.
    #[inline]
    pub(crate) fn recall(&mut self) {
        if self.bands.is_lent() {
            let seen = self.mailbox.cursor.stop();
            self.bands.observe(seen);
            self.bands.close_window(true);
        }
    }

    /// Whether a message would be admitted at once, as far as that is known without a look at the
    /// inbox: what most sends find.
    #[inline(always)]
    fn takes_more(&self) -> bool {
        self.closed.is_none() && self.bands.len() < self.mailbox.capacity
    }

    /// Admits a message, for which there is room, and nothing else in this critical section.
    #[inline(always)]
    fn admit_alone(mut self, band: Band, value: T) -> Admission<T> {
        let waker = self.admit(band, value);
        drop(self);
        if let Some(waker) = waker {
            waker.wake();
        }
        Admission::Accepted
    }

    #[cold]
    fn offer_rarely(
        mut self,
        band: Band,
        value: T,
        count: impl FnOnce(),
    ) -> Result<Admission<T>, TrySendError<T>> {
        let mut wakes = Wakes::default();
        let outcome = self.offer(band, value, &mut wakes);
        if outcome.is_ok() {
            count();
        }
        // Before the wakes, which were declared after it.
        drop(self);
        outcome
    }

    #[cold]
    fn try_rarely(mut self, band: Band, value: T) -> Result<Admission<T>, TrySendError<T>> {
        let mut wakes = Wakes::default();
        let outcome = self.offer(band, value, &mut wakes);
        if matches!(outcome, Err(TrySendError::Full(_))) {
            self.rejected += 1;
        }
        drop(self);
        outcome
    }

    /// A snapshot of the counters.
    pub(crate) fn books(&mut self) -> Books {
        self.observe();
        let state = &**self;
        let in_hand = u64::from(state.bands.is_in_hand()) + state.lent;
        Books {
            accepted: state.accepted,
            processed: state.bands.deliveries() + state.adopted - state.unprocessed - in_hand,
            dropped_oldest: state.dropped_oldest,
            dropped_newest: state.dropped_newest,
            expired: state.expired,
            dead_lettered: state.dead_lettered,
            forwarded: state.forwarded,
            in_hand,
            queued: state.bands.len() as u64,
            rejected: state.rejected,
            redelivered: state.redelivered,
        }
    }

    #[inline]
    fn has_room(&mut self) -> bool {
        let capacity = self.mailbox.capacity;
        if self.bands.len() >= capacity {
            self.observe();
        }
        self.bands.len() < capacity
    }

    /// Sends, as far as that takes no waiting.
    pub(crate) fn offer(
        &mut self,
        band: Band,
        value: T,
        wakes: &mut Wakes,
    ) -> Result<Admission<T>, TrySendError<T>> {
        if self.closed.is_some() {
            return Err(TrySendError::Closed(value));
        }
        if self.has_room() {
            wakes.push(self.admit(band, value));
            return Ok(Admission::Accepted);
        }
        match self.mailbox.backpressure {
            Backpressure::Block | Backpressure::Reject => Err(TrySendError::Full(value)),
            Backpressure::DropNewest => {
                self.accepted += 1;
                self.dropped_newest += 1;
                Ok(Admission::DroppedNewest(value))
            }
            Backpressure::DropOldest => {
                self.recall();
                let evicted = match self.has_room() {
                    true => None,
                    false => self.bands.evict(),
                };
                self.dropped_oldest += u64::from(evicted.is_some());
                wakes.push(self.admit(band, value));
                Ok(evicted.map_or(Admission::Accepted, Admission::Evicted))
            }
        }
    }

    /// Queues a message for which there is room: the waker of the receiver that is to be told.
    #[inline(always)]
    #[must_use = "somebody waits to be told"]
    fn admit(&mut self, band: Band, value: T) -> Option<Waker> {
        if self.bands.is_beside_window(band) {
            self.look_before_push(band);
        }
        let stamp = match self.stamp_in.checked_sub(1) {
            Some(left) => {
                self.stamp_in = left;
                0
            }
            None => self.stamp(),
        };
        self.accepted += 1;
        self.bands.push(band, value, stamp);
        if self.bands.len() > self.high_water {
            self.note_high_water();
        }
        self.next_to_tell()
    }

    /// The inbox reads another band than the one that gets a message.
    #[cold]
    fn look_before_push(&mut self, band: Band) {
        if self.bands.precedes_window(band) {
            self.recall();
        } else if self.bands.push_needs_progress(band) {
            self.observe();
        }
    }

    /// The time, for the message admitted now.
    #[cold]
    fn stamp(&mut self) -> u64 {
        self.stamp_in = self.stamp_every - 1;
        now_ns()
    }

    /// Admits blocked senders, in their order, while there is room.
    ///
    /// Whoever makes room calls this before it releases the lock; so while somebody waits there is
    /// no room, and no newcomer can overtake.
    #[inline]
    pub(crate) fn admit_blocked(&mut self, wakes: &mut Wakes) {
        if self.senders.waiting() > 0 {
            self.admit_those_blocked(wakes);
        }
    }

    fn admit_those_blocked(&mut self, wakes: &mut Wakes) {
        while self.has_room() {
            let Some((key, waker)) = self.senders.serve() else { break };
            if let (line, Some(value)) = self.senders.take_payload(key) {
                wakes.push(self.admit(Band::ALL[line], value));
            }
            wakes.push(waker);
        }
    }

    /// Waits in line with `value`, unless there is room after all. The policy is to block.
    pub(crate) fn block(
        &mut self,
        band: Band,
        value: T,
        context: &Context<'_>,
        wakes: &mut Wakes,
    ) -> Option<Key> {
        // From here on each delivery comes by the lock, and admits somebody who waits.
        self.recall();
        if self.has_room() {
            wakes.push(self.admit(band, value));
            return None;
        }
        let waker = context.waker().clone();
        Some(self.senders.add(band as usize, value, waker))
    }

    fn shut(&mut self, mode: Close, wakes: &mut Wakes) {
        self.recall();
        self.closed = self.closed.max(Some(mode));
        while let Some((_, waker)) = self.senders.serve() {
            wakes.push(waker);
        }
        self.notify_all(wakes);
    }

    /// Counts the message in hand out, which is about to be settled.
    pub(crate) fn count(&mut self, outcome: Outcome) {
        match outcome {
            // Every delivery counts as processed unless noted otherwise.
            Outcome::Processed => return,
            Outcome::Expired => self.expired += 1,
            Outcome::DeadLettered => self.dead_lettered += 1,
        }
        self.unprocessed += 1;
    }

    /// Queues the message in hand again. The window is closed but for it.
    pub(crate) fn put_back(&mut self, band: Band, wakes: &mut Wakes) {
        self.bands.put_back(band);
        self.unprocessed += 1;
        self.redelivered += 1;
        self.note_high_water();
        self.notify_one(wakes);
    }

    pub(crate) fn cursor(&self) -> &Cursor {
        &self.mailbox.cursor
    }

    #[cold]
    pub(crate) fn note_high_water(&mut self) {
        if self.bands.len() > self.high_water {
            self.observe();
            self.high_water = self.high_water.max(self.bands.len());
        }
    }

    /// Whether a message can be handed out. The window must be closed.
    #[inline]
    pub(crate) fn can_deliver(&self) -> Result<(), TryReceiveError> {
        match (self.closed, self.bands.len()) {
            (Some(Close::Now), _) | (Some(_), 0) => Err(TryReceiveError::Closed),
            (None, 0) => Err(TryReceiveError::Empty),
            _ if self.paused => Err(TryReceiveError::Empty),
            _ => Ok(()),
        }
    }

    /// Hands out the next message, which counts as processed.
    #[inline]
    pub(crate) fn deliver(&mut self, wakes: &mut Wakes) -> Result<T, TryReceiveError> {
        self.recall();
        self.can_deliver()?;
        let value = self.bands.deliver().expect("a mailbox that is not empty has a next message");
        self.admit_blocked(wakes);
        Ok(value)
    }

    /// Hands out up to `max` messages, at least one. `out` must have room for them.
    pub(crate) fn deliver_batch(
        &mut self,
        max: usize,
        out: &mut Vec<T>,
        wakes: &mut Wakes,
    ) -> Result<usize, TryReceiveError> {
        let before = out.len();
        while out.len() - before < max {
            match self.deliver(wakes) {
                Ok(value) => out.push(value),
                Err(error) if out.len() == before => return Err(error),
                Err(_) => break,
            }
        }
        Ok(out.len() - before)
    }

    /// Tells the next receiver in line to look, if there is something to see.
    pub(crate) fn notify_one(&mut self, wakes: &mut Wakes) {
        wakes.push(self.next_to_tell());
    }

    /// The waker of the next receiver in line, which counts as told, if there is something to see.
    #[inline]
    fn next_to_tell(&mut self) -> Option<Waker> {
        let is_told =
            self.receivers.waiting() > 0 && self.can_deliver() != Err(TryReceiveError::Empty);
        if is_told { self.receivers.serve() } else { None }
    }

    /// Tells as many receivers to look as will find something. A closed mailbox has something for
    /// all: a message or the news; so nobody waits at one unless it is paused.
    pub(crate) fn notify_all(&mut self, wakes: &mut Wakes) {
        let waiting = self.receivers.waiting();
        let count = if self.closed.is_some() { waiting } else { waiting.min(self.bands.len()) };
        for _ in 0..count {
            self.notify_one(wakes);
        }
    }

    /// Ends a receiver's look at the mailbox: if it found nothing it waits, at `place`, else it
    /// leaves.
    #[inline]
    pub(crate) fn finish_receive<R>(
        &mut self,
        outcome: Result<R, TryReceiveError>,
        place: &mut Option<Place>,
        context: &Context<'_>,
        wakes: &mut Wakes,
    ) -> Poll<Result<R, Closed>> {
        let outcome = match outcome {
            Ok(found) => Ok(found),
            Err(TryReceiveError::Closed) => Err(Closed),
            Err(TryReceiveError::Empty) => {
                wakes.discard(self.receivers.wait(place, context));
                return Poll::Pending;
            }
        };
        if let Some(place) = place.take() {
            wakes.discard(self.receivers.leave(place).1);
        }
        Poll::Ready(outcome)
    }

    /// Ends a wait that will not look again: if it was told of a message, the next one is.
    pub(crate) fn cancel_receive(&mut self, place: Place, wakes: &mut Wakes) {
        let (was_served, waker) = self.receivers.leave(place);
        wakes.discard(waker);
        if was_served {
            self.notify_one(wakes);
        }
    }
}

#[cfg(test)]
mod tests;
