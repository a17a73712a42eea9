//! The cursor: how far the inbox has come in its window, in one word that it moves without the lock.
//!
//! The word holds a count of deliveries to the inbox, and a stop mark. While there is a window the
//! inbox alone moves the count, by a compare-exchange; whoever holds the mailbox's lock may set the
//! mark, which makes the next compare-exchange fail, and so stops the inbox until it has taken the
//! lock itself. Both act on the one word, so they are ordered: either the inbox's step came first,
//! and the mark's setter sees it, or the step does not happen. That is what makes pauses, priorities
//! and capacity exact although the inbox reads without the lock.
//!
//! While nothing is lent the word says nothing, and nobody reads it.

use crate::sync::{AtomicU64, Ordering};

const STOP: u64 = 1;
const DELIVERY: u64 = 2;

/// On a cache line of its own: senders rarely look at it, and the inbox writes it for each message of
/// a window.
#[repr(align(64))]
pub(crate) struct Cursor(AtomicU64);

impl Cursor {
    pub(crate) fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// For the holder of the lock: how many deliveries the inbox has come to. It may go on meanwhile.
    #[inline]
    pub(crate) fn look(&self) -> u64 {
        // SYNC(cursor.step) acquire: pairs with the release in `advance`. Makes visible that the
        // inbox is done with the slots before the one in hand.
        self.0.load(Ordering::Acquire) / DELIVERY
    }

    /// For the holder of the lock: stops the inbox, and tells how far it came.
    pub(crate) fn stop(&self) -> u64 {
        // SYNC(cursor.step) acquire: as in `look`. Nothing need be released: the inbox, once
        // stopped, takes the lock.
        self.0.fetch_or(STOP, Ordering::Acquire) / DELIVERY
    }

    /// For the inbox, without the lock: moves from `here` to the next delivery; false if stopped.
    #[inline]
    pub(crate) fn advance(&self, here: u64) -> bool {
        let (here, there) = (here * DELIVERY, (here + 1) * DELIVERY);
        // SYNC(cursor.step) release: pairs with the acquires in `look` and `stop`. Makes visible
        // that the inbox is done with the slot that was in hand until now.
        // Failure is Relaxed: the inbox takes the lock before it does anything else. So is the read
        // half of success: what the inbox may touch next it was given under the lock.
        self.0.compare_exchange(here, there, Ordering::Release, Ordering::Relaxed).is_ok()
    }

    /// For the inbox, holding the lock: a window begins, after so many deliveries. No step was made
    /// since the last window ended, and a stop mark is of the past.
    pub(crate) fn set(&self, deliveries: u64) {
        // Relaxed: under the lock, and readers hold it too.
        self.0.store(deliveries * DELIVERY, Ordering::Relaxed);
    }
}
