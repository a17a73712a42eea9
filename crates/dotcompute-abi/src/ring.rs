//! The ring between one producer and one consumer: its words, then its slots.
//!
//! Positions count messages since the ring was made and wrap at 2^64; position `p` lies in slot
//! `p & (slots - 1)`. `head` is the next position to read, `tail` the next to write;
//! `tail - head <= capacity <= slots`.
//!
//! A doorbell is a pair of words with one writer each. Whoever is about to sleep counts its own
//! `asks` up; the peer, once it has something to tell and finds `asks` different from the last one
//! it answered, copies it to its own `rung`, on which the sleeper sleeps.

use crate::describe::Struct;

/// The first word of every ring: `dotcring` in ASCII.
pub const RING_MAGIC: u64 = u64::from_le_bytes(*b"dotcring");

shared_constants! {
    /// The words that say what a ring is.
    FORMATS: u32;
    /// `format` of a ring of plain slots.
    FORMAT_PLAIN = 1;
    /// `format` of a ring of tagged slots.
    FORMAT_TAGGED = 2;
    /// `format` of a ring of lapped slots.
    FORMAT_LAPPED = 3;
    /// `waiting` of a ring whose ends poll.
    WAITING_POLLS = 0;
    /// `waiting` of a ring whose ends may sleep and ring each other.
    WAITING_RINGS = 1;
}

shared_struct! {
    /// What the ring is; written once, before anyone else sees it.
    RingIdentity: 128 bytes, aligned to 128;
    /// `RING_MAGIC`, written last.
    magic: u64, at 0;
    /// `ABI_VERSION`.
    version: u32, at 8;
    /// One of `FORMAT_*`.
    format: u32, at 12;
    /// One of `WAITING_*`.
    waiting: u32, at 16;
    /// Messages that fit, exactly; at least 1.
    capacity: u32, at 20;
    /// Slots that follow the header: `capacity` rounded up to a power of two.
    slots: u32, at 24;
}

shared_struct! {
    /// A position on a line of its own; written by one end.
    RingCursor: 128 bytes, aligned to 128;
    /// The position.
    position: u64, at 0;
}

shared_struct! {
    /// The words of one end that seldom change; written by that end.
    RingEnd: 128 bytes, aligned to 128;
    /// Counts the times this end asked to be woken.
    asks: u32, at 0;
    /// The peer's `asks` that this end answered last. The peer sleeps on it.
    rung: u32, at 4;
    /// The CPU from which this end last rang, plus one; 0 if unknown. A hint.
    cpu: u32, at 8;
    /// 1 once this end is gone.
    closed: u32, at 12;
}

shared_struct! {
    /// The words of a ring; its slots follow at once.
    RingHeader: 640 bytes, aligned to 128;
    /// What the ring is.
    identity: RingIdentity, at 0;
    /// Next position to write; written by the producer.
    tail: RingCursor, at 128;
    /// Next position to read; written by the consumer.
    head: RingCursor, at 256;
    /// Written by the producer.
    producer: RingEnd, at 384;
    /// Written by the consumer.
    consumer: RingEnd, at 512;
}

/// The structs of this module, parts first.
pub const STRUCTS: &[Struct] =
    &[RingIdentity::LAYOUT, RingCursor::LAYOUT, RingEnd::LAYOUT, RingHeader::LAYOUT];
