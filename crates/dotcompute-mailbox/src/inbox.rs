//! The kernel's end of a mailbox: one message in hand at a time, most of them without the lock.

use crate::bands::{Band, PREFETCH_AHEAD, SlotPtr};
use crate::clock::now_ns;
use crate::error::{Closed, TryReceiveError};
use crate::mailbox::{Locked, Mailbox};
use crate::receivers::Place;
use crate::wait_list::Wakes;
use std::fmt;
use std::sync::Arc;
use std::task::{Context, Poll};

/// How a message in hand ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// It was handled.
    Processed,
    /// Nobody waits for it any more: it was skipped.
    Expired,
    /// It could not be handled.
    DeadLettered,
}

/// When a message came out of the mailbox, and how long it was in there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Times {
    /// How long it was queued, in nanoseconds.
    pub queued_ns: u64,
    /// When it was handed out, as [`clock::now_ns`](crate::clock::now_ns) tells the time.
    pub delivered_ns: u64,
}

impl Times {
    /// Those of a message that was admitted at `stamp`, if not 0, and is delivered now.
    #[inline]
    pub(crate) fn since(stamp: u64) -> Option<Self> {
        if stamp == 0 { None } else { Some(Self::taken(stamp)) }
    }

    #[cold]
    fn taken(stamp: u64) -> Self {
        let delivered_ns = now_ns();
        Self { queued_ns: delivered_ns.saturating_sub(stamp), delivered_ns }
    }
}

/// The unique receiving end of a [`Mailbox`] for a kernel, made by [`Mailbox::inbox`].
///
/// One message at a time is *in hand*: it counts as neither queued nor processed until it is
/// settled, which the next receive does, or [`settle`](Self::settle), or
/// [`put_back`](Self::put_back). It stays where it was queued, and is read there.
///
/// The inbox takes the mailbox's lock once for up to 256 messages. That cannot be observed: order,
/// capacity, eviction, pause and the books are as if it took the lock for each. Plain receives may
/// be used beside it.
///
/// Dropping the inbox leaves a message in hand where it is: the mailbox's next inbox has it in hand
/// again.
// On one line, not only as large as one: what was written across two lines is slow to be read again
// at once, and each message does so.
#[repr(align(64))]
pub struct Inbox<T> {
    pub(crate) mailbox: Arc<Mailbox<T>>,
    pub(crate) end: End<T>,
}

/// The inbox apart from its mailbox, so that this can be locked while the rest changes.
///
/// It is small on purpose: with the mailbox's address, one cache line.
#[repr(C)] // In the order of use.
pub(crate) struct End<T> {
    /// The slot of the message in hand.
    hand: Option<SlotPtr<T>>,
    /// The first slot that may be taken without the lock, if there is one.
    ahead: Option<SlotPtr<T>>,
    /// How many may be, in all.
    left: u32,
    /// The band of the message in hand.
    hand_band: Band,
    /// The band of those ahead.
    ahead_band: Band,
    /// Where it waits, while it does.
    pub(crate) place: Option<Place>,
    /// While there is a window: what this inbox last wrote to the cursor.
    seen: u64,
    /// Of the message in hand, if they were taken: otherwise the latter is 0.
    queued_ns: u64,
    delivered_ns: u64,
}

#[cfg(not(loom))]
const _: () = assert!(size_of::<Inbox<()>>() == 64);

// SAFETY: the end hands `T` by value and by `&mut` to whoever has it. Its slots are kept alive by
// the mailbox, and the rules of access (`bands.rs`) speak of the inbox, not of a thread.
unsafe impl<T: Send> Send for End<T> {}
// SAFETY: `&End` gives access to the message in hand by `&T` only, and to plain values.
unsafe impl<T: Sync> Sync for End<T> {}

impl<T> Inbox<T> {
    pub(crate) fn open(mailbox: &Arc<Mailbox<T>>) -> Option<Self> {
        let mut locked = mailbox.lock();
        if std::mem::replace(&mut locked.has_inbox, true) {
            return None;
        }
        let end =
            End { hand: locked.bands.slot_in_hand(), hand_band: locked.left_in_hand, ..End::new() };
        drop(locked);
        Some(Self { mailbox: Arc::clone(mailbox), end })
    }

    /// Settles the message in hand as processed (its value is dropped) and receives the next one.
    ///
    /// Pending while the mailbox is empty or paused; then nothing is in hand, and `context`'s task
    /// is woken when there may be more.
    ///
    /// # Errors
    ///
    /// [`Closed`] once the mailbox is closed and hands out nothing more; nothing is in hand then.
    ///
    /// # Panics
    ///
    /// If dropping the settled value panics. The message is still in hand then, without its value.
    ///
    /// # Cancel safety
    ///
    /// A message is received exactly when this returns ready; waiting can be given up at any time.
    #[inline]
    pub fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Closed>> {
        match self.advance() {
            true => Poll::Ready(Ok(())),
            false => self.poll_locked(context),
        }
    }

    /// Settles the message in hand as processed and receives the next one, if that takes no lock:
    /// what most receives do while messages wait. If false, nothing has changed, but the value in
    /// hand is dropped: [`poll_next`](Self::poll_next) does the rest.
    ///
    /// # Panics
    ///
    /// As [`poll_next`](Self::poll_next).
    #[inline(always)]
    pub fn advance(&mut self) -> bool {
        self.end.advance(&self.mailbox)
    }

    /// Apart, so that the rest can be inlined.
    #[inline(never)]
    fn poll_locked(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Closed>> {
        let Self { mailbox, end } = self;
        let mut wakes = Wakes::default();
        let mut locked = mailbox.lock();
        let outcome = end.receive(&mut locked, &mut wakes);
        locked.set_awaited(outcome == Err(TryReceiveError::Empty), &mut wakes);
        locked.finish_receive(outcome, &mut end.place, context, &mut wakes)
    }

    /// [`poll_next`](Self::poll_next) without waiting. The message in hand is settled in any case.
    ///
    /// # Errors
    ///
    /// [`TryReceiveError::Empty`] if nothing is queued or the mailbox is paused;
    /// [`TryReceiveError::Closed`] if it is closed and hands out nothing more.
    ///
    /// # Panics
    ///
    /// As [`poll_next`](Self::poll_next).
    #[inline]
    pub fn try_next(&mut self) -> Result<(), TryReceiveError> {
        let Self { mailbox, end } = self;
        if end.advance(mailbox) {
            return Ok(());
        }
        let mut wakes = Wakes::default();
        let mut locked = mailbox.lock();
        let outcome = end.receive(&mut locked, &mut wakes);
        locked.set_awaited(outcome == Err(TryReceiveError::Empty), &mut wakes);
        outcome
    }

    /// The message in hand, if there is one and its value was not taken.
    #[inline]
    pub fn current(&self) -> Option<&T> {
        let slot = self.end.hand?;
        // SAFETY: the slot in hand is the inbox's alone, and the borrow of the inbox, which keeps
        // the mailbox alive, lasts as long as the reference.
        unsafe { slot.value() }
    }

    /// As [`current`](Self::current), to change it.
    #[inline]
    pub fn current_mut(&mut self) -> Option<&mut T> {
        let slot = self.end.hand?;
        // SAFETY: as in `current`; the borrow is exclusive.
        unsafe { slot.value_mut() }
    }

    /// Moves the message in hand out. It still counts as in hand until it is settled.
    #[inline]
    pub fn take(&mut self) -> Option<T> {
        self.end.take()
    }

    /// The times of the message in hand; known for the first message and for every 64th
    /// ([`STAMP_EVERY`](crate::STAMP_EVERY), or what
    /// [`Mailbox::stamping`](crate::Mailbox::stamping) said), for its first delivery only, and told
    /// only once.
    #[inline]
    pub fn take_times(&mut self) -> Option<Times> {
        let (queued_ns, delivered_ns) = (self.end.queued_ns, self.end.delivered_ns);
        self.end.delivered_ns = 0;
        (delivered_ns != 0).then_some(Times { queued_ns, delivered_ns })
    }

    /// Whether [`take_times`](Self::take_times) has something to tell.
    #[inline]
    pub fn has_times(&self) -> bool {
        self.end.delivered_ns != 0
    }

    /// How many messages can be received at once without the lock. A hint: the mailbox may take
    /// them back at any time, to hand out something more urgent first.
    pub fn window_remaining(&self) -> usize {
        self.end.left as usize
    }

    /// Whether [`window_remaining`](Self::window_remaining) is not 0.
    pub fn arriving_more(&self) -> bool {
        self.end.ahead.is_some()
    }

    /// Ends the message in hand. Gives its value back, if it was not taken; `None` too if nothing
    /// is in hand, and then nothing changes.
    pub fn settle(&mut self, outcome: Outcome) -> Option<T> {
        let value = self.take();
        let Self { mailbox, end } = self;
        if end.hand.is_some() {
            let mut locked = mailbox.lock();
            locked.count(outcome);
            end.settle_hand(&mut locked);
        }
        value
    }

    /// Puts the message in hand back to the front of its band, to be delivered again; also when the
    /// mailbox is full, which then holds one more than its capacity until the next delivery.
    ///
    /// Returns false, and does nothing, without a message in hand or if its value was taken.
    pub fn put_back(&mut self) -> bool {
        if self.current().is_none() {
            return false;
        }
        let Self { mailbox, end } = self;
        let mut wakes = Wakes::default();
        let mut locked = mailbox.lock();
        end.close_window(&mut locked, true);
        end.hand = None;
        locked.put_back(end.hand_band, &mut wakes);
        true
    }
}

impl<T> End<T> {
    fn new() -> Self {
        Self {
            hand: None,
            ahead: None,
            left: 0,
            hand_band: Band::Normal,
            ahead_band: Band::Normal,
            place: None,
            seen: 0,
            queued_ns: 0,
            delivered_ns: 0,
        }
    }

    #[inline]
    fn take(&mut self) -> Option<T> {
        let slot = self.hand?;
        // SAFETY: the slot in hand is the inbox's alone, and the inbox keeps the mailbox alive.
        unsafe { slot.take() }
    }

    /// Receives the next message of the window, without the lock; false if that cannot be.
    #[inline(always)]
    fn advance(&mut self, mailbox: &Mailbox<T>) -> bool {
        // First, and without the lock: a destructor that panics leaves its own message in hand.
        // A value without one is left where it is: its slot then is only read here, and its lines
        // need not come back from this core for the next value.
        if std::mem::needs_drop::<T>() {
            drop(self.take());
        }
        let Some(slot) = self.ahead else { return false };
        if !mailbox.cursor().advance(self.seen) {
            return false;
        }
        self.seen += 1;
        let left = self.left as usize;
        self.ahead = match left {
            1 => None,
            // SAFETY: the slot in hand now, with others of the window behind it. The inbox keeps
            // the mailbox alive, and nobody writes the link of the slot in hand.
            _ => Some(unsafe { slot.next() }),
        };
        self.left -= 1;
        if left > PREFETCH_AHEAD {
            slot.prefetch_ahead();
        }
        self.hold(slot, self.ahead_band);
        true
    }

    /// Settles the message in hand, whose value is gone, and receives the next, under the lock.
    #[inline]
    fn receive(
        &mut self,
        locked: &mut Locked<'_, T>,
        wakes: &mut Wakes,
    ) -> Result<(), TryReceiveError> {
        self.settle_hand(locked);
        locked.can_deliver()?;
        let next = locked.bands.hand_out();
        let (slot, band) = next.expect("a mailbox that is not empty has a next message");
        self.hold(slot, band);
        locked.admit_blocked(wakes);
        // While senders wait each delivery has to admit one, so each takes the lock.
        if locked.senders.waiting() == 0
            && let Some((first, band, left)) = locked.open_window()
        {
            self.seen = locked.bands.seen();
            locked.cursor().set(self.seen);
            (self.ahead, self.ahead_band, self.left) = (Some(first), band, left as u32);
        }
        Ok(())
    }

    /// Ends the window and the message in hand; its outcome has been counted.
    #[inline]
    pub(crate) fn settle_hand(&mut self, locked: &mut Locked<'_, T>) {
        if let Some(last) = self.hand.take() {
            locked.observe();
            locked.bands.close_window_after(last);
        }
        (self.ahead, self.left) = (None, 0);
        self.delivered_ns = 0;
    }

    /// Gives what it has not read of its window back.
    #[inline]
    fn close_window(&mut self, locked: &mut Locked<'_, T>, in_hand: bool) {
        locked.observe();
        locked.bands.close_window(in_hand);
        (self.ahead, self.left) = (None, 0);
    }

    #[inline]
    fn hold(&mut self, slot: SlotPtr<T>, band: Band) {
        (self.hand, self.hand_band) = (Some(slot), band);
        // SAFETY: the slot in hand is the inbox's alone, and the inbox keeps the mailbox alive.
        let stamp = unsafe { slot.take_stamp() };
        self.delivered_ns = 0;
        if let Some(times) = Times::since(stamp) {
            (self.queued_ns, self.delivered_ns) = (times.queued_ns, times.delivered_ns);
        }
    }
}

impl<T> Drop for Inbox<T> {
    fn drop(&mut self) {
        let Self { mailbox, end } = self;
        let mut wakes = Wakes::default();
        let mut locked = mailbox.lock();
        end.close_window(&mut locked, end.hand.is_some());
        locked.left_in_hand = end.hand_band;
        locked.has_inbox = false;
        if let Some(place) = end.place.take() {
            locked.cancel_receive(place, &mut wakes);
        }
        locked.notify_all(&mut wakes);
    }
}

impl<T> fmt::Debug for Inbox<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inbox")
            .field("in_hand", &self.end.hand.is_some())
            .field("window_remaining", &self.window_remaining())
            .finish_non_exhaustive()
    }
}
