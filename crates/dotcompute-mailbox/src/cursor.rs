//! The cursor: how far the inbox has come, in one word that it moves without the lock.
//!
//! The word holds a count of deliveries to the inbox, whether the last of them is still in hand,
//! and a stop mark. The inbox alone moves the count, by a compare-exchange; whoever holds the
//! mailbox's lock may set the mark, which makes the next compare-exchange fail, and so stops the
//! inbox until it has taken the lock itself. Both act on the one word, so they are ordered: either
//! the inbox's step came first, and the mark's setter sees it, or the step does not happen. That is
//! what makes pauses, priorities and capacity exact although the inbox reads without the lock.

use crate::sync::{AtomicU64, Ordering};

const STOP: u64 = 1;
const IN_HAND: u64 = 2;
const DELIVERY: u64 = 4;

/// On a cache line of its own (two, for the prefetcher): senders rarely look at it, and the inbox
/// writes it for each message.
#[repr(align(128))]
pub(crate) struct Cursor(AtomicU64);

/// A value of the cursor, without the stop mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Progress(u64);

impl Progress {
    /// Deliveries to the inbox so far, the one in hand included.
    #[inline]
    pub(crate) fn deliveries(self) -> u64 {
        self.0 / DELIVERY
    }

    /// Whether the message delivered last has not been settled.
    #[inline]
    pub(crate) fn is_in_hand(self) -> bool {
        self.0 & IN_HAND != 0
    }

    /// One message more, in hand; the one before is settled.
    #[inline]
    pub(crate) fn delivered(self) -> Self {
        Self(((self.0 & !IN_HAND) + DELIVERY) | IN_HAND)
    }

    /// The message in hand is settled.
    pub(crate) fn settled(self) -> Self {
        Self(self.0 & !IN_HAND)
    }
}

impl Cursor {
    pub(crate) fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// For the holder of the lock: how far the inbox has come. It may go on meanwhile.
    #[inline]
    pub(crate) fn look(&self) -> Progress {
        // SYNC(cursor.step) acquire: pairs with the release in `advance`. Makes visible that the
        // inbox is done with the slots before the one in hand.
        Progress(self.0.load(Ordering::Acquire) & !STOP)
    }

    /// For the holder of the lock: stops the inbox, and tells how far it came.
    pub(crate) fn stop(&self) -> Progress {
        // SYNC(cursor.step) acquire: as in `look`. Nothing need be released: the inbox, once
        // stopped, takes the lock.
        Progress(self.0.fetch_or(STOP, Ordering::Acquire) & !STOP)
    }

    /// For the inbox, without the lock: moves from `here` to the next delivery, unless stopped.
    #[inline]
    pub(crate) fn advance(&self, here: Progress) -> Option<Progress> {
        let there = here.delivered();
        // SYNC(cursor.step) release: pairs with the acquires in `look` and `stop`. Makes visible
        // that the inbox is done with the slot that was in hand until now.
        // Failure is Relaxed: the inbox takes the lock before it does anything else. So is the read
        // half of success: what the inbox may touch next it was given under the lock.
        let step = self.0.compare_exchange(here.0, there.0, Ordering::Release, Ordering::Relaxed);
        step.is_ok().then_some(there)
    }

    /// For the inbox, holding the lock: is at `progress`, and no longer stopped.
    pub(crate) fn set(&self, progress: Progress) {
        // Relaxed: under the lock, and readers hold it too.
        self.0.store(progress.0, Ordering::Relaxed);
    }
}
