//! The books of one mailbox: where every message that was ever accepted is now.

/// A consistent snapshot of a mailbox's counters, in messages; taken by
/// [`Mailbox::books`](crate::Mailbox::books).
///
/// Every accepted message is in exactly one place: see [`Books::balance`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Books {
    /// Messages for which a send said yes, also those that a drop policy then dropped.
    pub accepted: u64,
    /// Handed out and done with; by a plain receive, handed out.
    pub processed: u64,
    /// Dropped from the queue to make room for a newer one.
    pub dropped_oldest: u64,
    /// Dropped on arrival because the mailbox was full.
    pub dropped_newest: u64,
    /// Handed out to the inbox and settled as expired.
    pub expired: u64,
    /// Handed out to the inbox and settled as dead letters, or taken after the close.
    pub dead_lettered: u64,
    /// Passed on to the mailbox of another kernel, which has accepted them: the replies of a kernel
    /// that is connected to that one.
    pub forwarded: u64,
    /// With the kernel: handed out to the inbox and not yet settled. 0 or 1; up to the window of an
    /// executor that hands several on at a time ([`Inbox::poll_lend`](crate::Inbox::poll_lend)).
    pub in_hand: u64,
    /// Waiting in the mailbox.
    pub queued: u64,
    /// Sends that came back because the mailbox was full. Not part of the sum.
    pub rejected: u64,
    /// How often a message in hand went back to be delivered again. Not part of the sum.
    pub redelivered: u64,
}

impl Books {
    /// Whether every accepted message is accounted for exactly once. Always true for a snapshot.
    pub fn balance(&self) -> bool {
        let Self { accepted, processed, dropped_oldest, dropped_newest, .. } = *self;
        let Self { expired, dead_lettered, forwarded, in_hand, queued, .. } = *self;
        let dropped = dropped_oldest + dropped_newest;
        let gone = processed + dropped + expired + dead_lettered + forwarded;
        accepted == gone + in_hand + queued
    }
}
