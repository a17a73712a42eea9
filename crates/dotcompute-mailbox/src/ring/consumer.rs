//! The end that pops.

use super::bell::Bell;
use super::format::{Format, Plain, RawFormat};
use super::memory::Owner;
use super::parts::{AHEAD_BYTES, Parts, Words};
use super::{Polls, PopError, Rings, Waiting};
use crate::prefetch;
use crate::sync::Ordering;
use std::fmt;
use std::iter::FusedIterator;
use std::marker::PhantomData;
use std::time::Instant;

/// How much of a chunk is asked for at once: far less than a core's nearest cache.
const CHUNK_BYTES_MAX: usize = 4096;

/// The end of a ring that pops. There is one; it may move to another thread.
///
/// Dropping it closes the ring: the producer gets its messages back from then on, and what was not
/// popped is dropped with the ring.
pub struct Consumer<T, F: Format<T> = Plain, W: Waiting = Polls> {
    parts: Parts<F::Slot>,
    /// Next position to read. The shared head lags behind it only while a `ReadChunk` lives, or once
    /// one was leaked.
    head: u64,
    /// Everything before this position was published when we last looked.
    tail: u64,
    bell: Bell,
    owner: Owner<T, F>,
    waiting: PhantomData<fn() -> W>,
}

// SAFETY: the fields are ours alone except the ring itself, of which this is the only consumer;
// sending it moves that role, and the `T`s still in the ring, to another thread.
unsafe impl<T: Send, F: Format<T>, W: Waiting> Send for Consumer<T, F, W> {}

impl<T, F: Format<T>, W: Waiting> Consumer<T, F, W> {
    /// The consumer of the ring `parts`; the caller makes one only.
    pub(super) fn new(parts: Parts<F::Slot>, owner: Owner<T, F>) -> Self {
        let words = parts.words();
        // Relaxed: the consumer's own word.
        let head = words.head.position.load(Ordering::Relaxed);
        // Relaxed: zero, unless a consumer was here before.
        words.consumer.closed.store(0, Ordering::Relaxed);
        let bell = Bell::new(&words.consumer);
        Self { parts, head, tail: head, bell, owner, waiting: PhantomData }
    }

    /// Pops the oldest message, if there is one.
    ///
    /// # Errors
    ///
    /// `Empty` if there is none yet, `Closed` if there never will be.
    #[inline]
    pub fn try_pop(&mut self) -> Result<T, PopError> {
        let readable = self.readable_or_why_not(1)?;
        // Never a slot that is not published: the producer would lose the line.
        let ahead = Parts::<F::Slot>::slots_in(AHEAD_BYTES);
        if readable > ahead {
            prefetch::for_reading(self.parts.place(self.head.wrapping_add(ahead)).as_ptr());
        }
        // SAFETY: at least one message is readable, and the head moves past it below: see `read`.
        let value = unsafe { self.read(self.head) };
        self.publish(self.head.wrapping_add(1));
        Ok(value)
    }

    /// Up to `max` messages at once. Their slots are freed together, when the chunk is dropped.
    ///
    /// # Errors
    ///
    /// `Empty` if there is not one, `Closed` if there never will be.
    pub fn read_chunk(&mut self, max: usize) -> Result<ReadChunk<'_, T, F, W>, PopError> {
        let max = max as u64;
        let readable = self.readable_or_why_not(max.clamp(1, self.parts.capacity))?;
        let start = self.head;
        self.prefetch(readable.min(max));
        // Until the chunk is dropped all of it counts as taken: if it is leaked instead, messages
        // are lost, but none is taken twice.
        self.head = start.wrapping_add(readable.min(max));
        Ok(ReadChunk { start, next: start, consumer: self })
    }

    /// How many messages can be popped now: at least that many will succeed, since only this
    /// consumer makes it less.
    pub fn len(&self) -> usize {
        let tail = F::published(&self.parts, self.head, self.parts.capacity);
        known_between(self.head, tail, self.parts.capacity) as usize
    }

    /// Whether there is nothing to pop; if false, a pop succeeds.
    pub fn is_empty(&self) -> bool {
        let tail = F::published(&self.parts, self.head, 1);
        known_between(self.head, tail, self.parts.capacity) == 0
    }

    /// The position of the next message: how many were popped since the ring was made, modulo 2^64.
    #[inline]
    pub fn position(&self) -> u64 {
        self.head
    }

    /// How many messages fit in the ring.
    pub fn capacity(&self) -> usize {
        self.parts.capacity as usize
    }

    /// Whether the producer is gone; messages may be left. Once true it stays so, unless the ring
    /// lies in raw memory, where another producer may come.
    #[inline]
    pub fn is_abandoned(&self) -> bool {
        // SYNC(ring.closed) acquire: pairs with the release in the producer's `drop`. Makes visible
        // its last messages.
        self.words().producer.closed.load(Ordering::Acquire) != 0
    }

    #[inline]
    fn words(&self) -> &Words {
        self.parts.words()
    }

    /// How many messages are readable, looked up anew only if fewer than `want` are known to be.
    #[inline]
    fn readable(&mut self, want: u64) -> u64 {
        let known = self.tail.wrapping_sub(self.head);
        if known >= want {
            return known;
        }
        let tail = F::published(&self.parts, self.head, want);
        let readable = known_between(self.head, tail, self.parts.capacity);
        self.tail = self.head.wrapping_add(readable);
        readable
    }

    /// As `readable`, for a caller who can do nothing without a message: tells an empty ring from
    /// one that ended.
    #[inline]
    fn readable_or_why_not(&mut self, want: u64) -> Result<u64, PopError> {
        match self.readable(want) {
            0 if !self.is_abandoned() => Err(PopError::Empty),
            // The producer may have pushed and gone between the two looks: look once more.
            0 => match self.readable(1) {
                0 => Err(PopError::Closed),
                readable => Ok(readable),
            },
            readable => Ok(readable),
        }
    }

    /// Asks for the first lines of the next `count` slots, all of which are published: all at once,
    /// since the caller is to walk through them at a pace of its own.
    #[inline]
    fn prefetch(&self, count: u64) {
        let count = count.min(Parts::<F::Slot>::slots_in(CHUNK_BYTES_MAX));
        for offset in (0..count).step_by(Parts::<F::Slot>::slots_in(64) as usize) {
            prefetch::for_reading(self.parts.place(self.head.wrapping_add(offset)).as_ptr());
        }
    }

    /// Takes the message at `position`; its slot is not free yet.
    ///
    /// # Safety
    ///
    /// - `position` was readable and its slot has not been freed since.
    /// - It is not read again.
    #[inline(always)]
    unsafe fn read(&self, position: u64) -> T {
        // SAFETY: published and not freed, and we are the only consumer; taken once, as the caller
        // promises.
        unsafe { F::read(self.parts.slot(position)) }
    }

    /// Frees the slots of everything before `head`, all of which was read.
    #[inline]
    fn publish(&mut self, head: u64) {
        self.head = head;
        let words = self.parts.words();
        // SYNC(ring.free) release: pairs with the acquire in `Producer::room`. Makes visible that
        // the slots before the head were read.
        words.head.position.store(head, Ordering::Release);
        if W::RINGS {
            self.bell.ring(&words.consumer, &words.producer, self.parts.scope);
        }
    }
}

impl<F: RawFormat, W: Waiting> Consumer<F::Record, F, W> {
    /// Another pair of eyes, for whoever waits until there is something for this consumer.
    pub fn glance(&self) -> Glance<F> {
        Glance { parts: self.parts, _owner: self.owner.clone() }
    }
}

/// Looks into a ring without being an end of it: see [`Consumer::glance`].
pub struct Glance<F: RawFormat> {
    parts: Parts<F::Slot>,
    _owner: Owner<F::Record, F>,
}

// SAFETY: it only reads the words by which messages are published, which are atomics, in memory that any
// thread may use and that `_owner` keeps; the last to go drops plain data.
unsafe impl<F: RawFormat> Send for Glance<F> {}
// SAFETY: as above.
unsafe impl<F: RawFormat> Sync for Glance<F> {}

impl<F: RawFormat> Glance<F> {
    /// Whether the message at `position` is published, where that is the next one of the consumer. Of
    /// another position it may say anything.
    #[inline]
    pub fn is_published(&self, position: u64) -> bool {
        let tail = F::published(&self.parts, position, 1);
        known_between(position, tail, self.parts.capacity) > 0
    }
}

impl<F: RawFormat> fmt::Debug for Glance<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Glance").field("capacity", &self.parts.capacity).finish_non_exhaustive()
    }
}

impl<T, F: Format<T>> Consumer<T, F, Rings> {
    /// Pops the oldest message, waiting for one until `deadline`; no deadline means for as long as
    /// it takes.
    ///
    /// # Errors
    ///
    /// `Empty` if none came, `Closed` if none can come.
    pub fn pop_wait(&mut self, deadline: Option<Instant>) -> Result<T, PopError> {
        match self.try_pop() {
            Err(PopError::Empty) => {
                self.wait(deadline)?;
                self.try_pop()
            }
            done => done,
        }
    }

    /// Waits until there is a message; how many there are.
    ///
    /// # Errors
    ///
    /// `Empty` if none came until `deadline`, `Closed` if none can come.
    pub fn wait(&mut self, deadline: Option<Instant>) -> Result<usize, PopError> {
        let (parts, head) = (self.parts, self.head);
        let words = parts.words();
        self.bell.wait(&words.consumer, &words.producer, parts.scope, deadline, || {
            F::published(&parts, head, 1) != head
                // SYNC(ring.closed) acquire: as in `is_abandoned`.
                || words.producer.closed.load(Ordering::Acquire) != 0
        });
        self.readable_or_why_not(1).map(|readable| readable as usize)
    }
}

impl<T, F: Format<T>, W: Waiting> Drop for Consumer<T, F, W> {
    fn drop(&mut self) {
        let words = self.parts.words();
        // SYNC(ring.closed) release: pairs with the acquire in `Producer::is_abandoned`. Makes
        // visible the last head.
        words.consumer.closed.store(1, Ordering::Release);
        if W::RINGS {
            self.bell.ring(&words.consumer, &words.producer, self.parts.scope);
        }
    }
}

impl<T, F: Format<T>, W: Waiting> fmt::Debug for Consumer<T, F, W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Consumer")
            .field("capacity", &self.parts.capacity)
            .field("len", &self.len())
            .finish_non_exhaustive()
    }
}

/// Messages that a [`Consumer`] is about to take: an iterator over them.
///
/// What was iterated over is taken, and its slots are freed when the chunk is dropped; the rest
/// stays in the ring.
pub struct ReadChunk<'a, T, F: Format<T> = Plain, W: Waiting = Polls> {
    /// Its head is the chunk's end.
    consumer: &'a mut Consumer<T, F, W>,
    start: u64,
    /// Next position to take.
    next: u64,
}

impl<T, F: Format<T>, W: Waiting> ReadChunk<'_, T, F, W> {
    /// Takes the first `count` messages of the rest and drops them: for messages that were used in
    /// place, through [`as_slices`](ReadChunk::as_slices).
    pub fn commit(mut self, count: usize) {
        self.by_ref().take(count).for_each(drop);
    }

    /// Takes the first `count` messages of the rest, as [`commit`](Self::commit) does. Their slots are
    /// freed at once.
    #[cfg(not(loom))]
    #[inline]
    pub(crate) fn free(&mut self, count: usize) {
        self.by_ref().take(count).for_each(drop);
        self.start = self.next;
        let end = self.consumer.head;
        self.consumer.publish(self.next);
        self.consumer.head = end;
    }

    /// Takes the whole rest and drops it.
    pub fn commit_all(self) {
        self.for_each(drop);
    }
}

#[cfg(not(loom))]
impl<T, W: Waiting> ReadChunk<'_, T, Plain, W> {
    /// The messages not yet iterated over, oldest first; the second part is empty unless they wrap
    /// around the end of the ring's memory.
    pub fn as_slices(&self) -> (&[T], &[T]) {
        let parts = &self.consumer.parts;
        let len = self.len() as u64;
        let first = len.min(parts.contiguous(self.next));
        let slice = |position, len: u64| {
            let start = parts.place(position).cast::<T>().as_ptr();
            // SAFETY: these `len` slots lie in one piece of the ring's slots (`contiguous`; a
            // `Cell<T>` is laid out as its `T`), are published, so initialised and left alone by
            // the producer, and not freed while `self` is borrowed.
            unsafe { std::slice::from_raw_parts(start, len as usize) }
        };
        (slice(self.next, first), slice(self.next.wrapping_add(first), len - first))
    }
}

impl<T, F: Format<T>, W: Waiting> Iterator for ReadChunk<'_, T, F, W> {
    type Item = T;

    #[inline]
    fn next(&mut self) -> Option<T> {
        if self.next == self.consumer.head {
            return None;
        }
        // SAFETY: readable when the chunk was made; `next` moves past it below: see `read`.
        let value = unsafe { self.consumer.read(self.next) };
        self.next = self.next.wrapping_add(1);
        Some(value)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let rest = self.consumer.head.wrapping_sub(self.next) as usize;
        (rest, Some(rest))
    }
}

impl<T, F: Format<T>, W: Waiting> ExactSizeIterator for ReadChunk<'_, T, F, W> {}
impl<T, F: Format<T>, W: Waiting> FusedIterator for ReadChunk<'_, T, F, W> {}

impl<T, F: Format<T>, W: Waiting> Drop for ReadChunk<'_, T, F, W> {
    #[inline]
    fn drop(&mut self) {
        self.consumer.head = self.next;
        if self.next != self.start {
            self.consumer.publish(self.next);
        }
    }
}

impl<T, F: Format<T>, W: Waiting> fmt::Debug for ReadChunk<'_, T, F, W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReadChunk").field("len", &self.len()).finish_non_exhaustive()
    }
}

/// How many messages lie between `head` and `tail`. A tail that no producer can have written (in
/// raw memory) makes the ring empty.
#[inline(always)]
fn known_between(head: u64, tail: u64, capacity: u64) -> u64 {
    match tail.wrapping_sub(head) {
        known if known <= capacity => known,
        _ => 0,
    }
}
