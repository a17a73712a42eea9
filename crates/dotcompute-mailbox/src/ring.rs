//! The ring between one producer and one consumer.
//!
//! That there is only one of each is a matter of types: [`ring`] hands out a [`Producer`] and a
//! [`Consumer`], which cannot be cloned and whose methods take `&mut self`.
//!
//! ```
//! let (mut producer, mut consumer) = dotcompute_mailbox::ring::ring(2);
//! producer.try_push("a").unwrap();
//! producer.try_push("b").unwrap();
//! assert!(producer.try_push("c").unwrap_err().is_full());
//! assert_eq!(consumer.try_pop(), Ok("a"));
//! ```
//!
//! A second producer does not exist, nor can two threads share one:
//!
//! ```compile_fail,E0599
//! let (producer, _consumer) = dotcompute_mailbox::ring::ring::<u32>(2);
//! let second = producer.clone();
//! ```
//!
//! ```compile_fail,E0499
//! let (mut producer, _consumer) = dotcompute_mailbox::ring::ring::<u32>(2);
//! std::thread::scope(|scope| {
//!     scope.spawn(|| producer.try_push(1));
//!     scope.spawn(|| producer.try_push(2));
//! });
//! ```
//!
//! ```compile_fail,E0277
//! let (producer, _consumer) = dotcompute_mailbox::ring::ring::<u32>(2);
//! std::thread::scope(|scope| {
//!     scope.spawn(|| producer.free());
//! });
//! ```
//!
//! # Variants
//!
//! One protocol, three choices, all made by types:
//!
//! | | | |
//! |---|---|---|
//! | where it lies | the heap ([`ring`], [`prompt_ring`], [`ring_with_doorbells`]) | memory that others map too ([`RawMemory`]) |
//! | slots | [`Plain`]: published by the tail | [`Prompt`], [`Lapped`], [`Tagged`]: published by their own tags |
//! | waiting | [`Polls`]: ends never sleep | [`Rings`]: ends may sleep, and each publish pays a fence |
//!
//! Publish in chunks where you can: [`Producer::push_iter`] and [`Consumer::read_chunk`] move many
//! messages for one hand-over of the cache line (and one fence).
//!
//! # Who writes what
//!
//! Positions count messages since the ring was made, modulo 2^64; `tail - head <= capacity`.
//!
//! | word or memory | written by | read by |
//! |---|---|---|
//! | `identity` | whoever makes the ring, before there are ends | both, when attaching |
//! | `tail` | producer | consumer, of [`Plain`] slots |
//! | `head` | consumer | producer |
//! | slots in `tail .. head + capacity` | producer | nobody |
//! | slots in `head .. tail` | nobody | consumer |
//! | `producer.{asks, rung, cpu, closed}` | producer | consumer |
//! | `consumer.{asks, rung, cpu, closed}` | consumer | producer |
//!
//! No word has two writers and nothing is read-modify-written, so either end may be a GPU.
//!
//! # Edges
//!
//! | name | release | acquire | makes visible |
//! |---|---|---|---|
//! | `ring.publish` | `Producer::publish`, tail | `Plain::published`, tail | the messages before `tail` |
//! | `ring.prompt` | `Prompt::write`, the tag | `Prompt::published`, the tag | the message |
//! | `ring.lap` | `Lapped::write`, the header | `Lapped::published`, the header | the payload |
//! | `ring.tag` | `Tagged::write`, a chunk's tag | `Tagged::published`, the tag | the chunk's data |
//! | `ring.free` | `Consumer::publish`, head | `Producer::room`, head | that slots before `head` were read |
//! | `ring.closed` | `Drop` of either end, `closed` | the other end, `closed` | all that the end published |
//! | `ring.bell` | fence in `Bell::ring` | fence in `Bell::wait` | either the peer's news or the wish to be woken |
//! | `ring.rung` | `Bell::answer`, `rung` | `bell::sleep`, `rung` | the news that the bell was rung for |
//! | `ring.made` | `RawMemory::create`, magic | `RawMemory::attach`, magic | the rest of the header |

mod bell;
mod consumer;
mod format;
mod memory;
mod parts;
mod producer;

pub use consumer::{Consumer, Glance, ReadChunk};
pub use format::{Format, Lapped, Plain, Prompt, RawFormat, Tagged};
pub use memory::{RawEnds, RawError, RawMemory, RawRing};
pub use producer::Producer;

use std::fmt;

/// A ring on the heap whose ends poll: the fastest for streams, if the ends always have something
/// else to do or a reason to spin.
///
/// Exactly `capacity` messages fit; memory is taken for the next power of two.
///
/// # Panics
///
/// If `capacity` is 0 or above 2^31.
pub fn ring<T>(capacity: usize) -> (Producer<T>, Consumer<T>) {
    memory::on_heap(capacity, 0)
}

/// A ring on the heap whose ends poll, for messages that go one at a time and are waited for, as a
/// question and its answer: see [`Prompt`].
///
/// # Panics
///
/// If `capacity` is 0 or above 2^31.
pub fn prompt_ring<T>(capacity: usize) -> (Producer<T, Prompt>, Consumer<T, Prompt>) {
    memory::on_heap(capacity, 0)
}

/// A ring on the heap whose ends may sleep until the other rings: see [`Producer::push_wait`] and
/// [`Consumer::pop_wait`].
///
/// # Panics
///
/// If `capacity` is 0 or above 2^31.
pub fn ring_with_doorbells<T>(
    capacity: usize,
) -> (Producer<T, Plain, Rings>, Consumer<T, Plain, Rings>) {
    memory::on_heap(capacity, 0)
}

/// How the ends of a ring wait: [`Polls`] or [`Rings`].
pub trait Waiting: sealed::Sealed {
    /// Whether an end that publishes must look whether the other sleeps.
    const RINGS: bool;
}

/// The ends only ever poll.
#[derive(Clone, Copy, Debug)]
pub enum Polls {}

/// The ends may sleep, and wake each other by a doorbell.
#[derive(Clone, Copy, Debug)]
pub enum Rings {}

impl Waiting for Polls {
    const RINGS: bool = false;
}

impl Waiting for Rings {
    const RINGS: bool = true;
}

mod sealed {
    /// Keeps the traits of this module to the types of this module: the protocol rests on them.
    pub trait Sealed {}

    impl Sealed for super::Polls {}
    impl Sealed for super::Rings {}
    impl Sealed for super::Plain {}
    impl Sealed for super::Prompt {}
    impl Sealed for super::Lapped {}
    impl Sealed for super::Tagged {}
}

/// Why a message could not be pushed; the message comes back.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum PushError<T> {
    /// No slot was free, for a waiting push until its deadline.
    Full(T),
    /// The consumer is gone.
    Closed(T),
}

impl<T> PushError<T> {
    /// The message.
    pub fn into_inner(self) -> T {
        match self {
            Self::Full(value) | Self::Closed(value) => value,
        }
    }

    /// Whether trying again can help.
    pub fn is_full(&self) -> bool {
        matches!(self, Self::Full(_))
    }

    fn map<U>(self, f: impl FnOnce(T) -> U) -> PushError<U> {
        match self {
            Self::Full(value) => PushError::Full(f(value)),
            Self::Closed(value) => PushError::Closed(f(value)),
        }
    }
}

impl<T> fmt::Debug for PushError<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Full(_) => "Full(..)",
            Self::Closed(_) => "Closed(..)",
        })
    }
}

impl<T> fmt::Display for PushError<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Full(_) => "the ring is full",
            Self::Closed(_) => "the ring's consumer is gone",
        })
    }
}

impl<T> std::error::Error for PushError<T> {}

/// Why there was no message to pop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PopError {
    /// Nothing was there, for a waiting pop until its deadline.
    Empty,
    /// The producer is gone and everything it pushed has been read.
    Closed,
}

impl fmt::Display for PopError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Empty => "the ring is empty",
            Self::Closed => "the ring is empty and its producer is gone",
        })
    }
}

impl std::error::Error for PopError {}

#[cfg(all(test, loom))]
mod loom_tests;
#[cfg(all(test, not(loom)))]
mod tests;
