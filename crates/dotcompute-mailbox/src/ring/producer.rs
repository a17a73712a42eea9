//! The end that pushes.

use super::bell::Bell;
use super::format::{Format, Plain};
use super::memory::Owner;
use super::parts::{AHEAD_BYTES, Parts, Words};
use super::{Polls, PushError, Rings, Waiting};
use crate::prefetch;
use crate::sync::Ordering;
use std::fmt;
use std::marker::PhantomData;
use std::time::Instant;

/// The end of a ring that pushes. There is one; it may move to another thread.
///
/// Dropping it closes the ring: the consumer reads what is left and then finds it closed.
pub struct Producer<T, F: Format<T> = Plain, W: Waiting = Polls> {
    parts: Parts<F::Slot>,
    /// Next position to write, as the shared tail says.
    tail: u64,
    /// The consumer's head when we last looked: it is there or further.
    head: u64,
    bell: Bell,
    _owner: Owner<T, F>,
    waiting: PhantomData<fn() -> W>,
}

// SAFETY: the fields are ours alone except the ring itself, of which this is the only producer;
// sending it moves that role, and the `T`s still in the ring, to another thread.
unsafe impl<T: Send, F: Format<T>, W: Waiting> Send for Producer<T, F, W> {}

impl<T, F: Format<T>, W: Waiting> Producer<T, F, W> {
    /// The producer of the ring `parts`; the caller makes one only.
    pub(super) fn new(parts: Parts<F::Slot>, owner: Owner<T, F>) -> Self {
        let words = parts.words();
        // Relaxed: the producer's own word.
        let tail = words.tail.position.load(Ordering::Relaxed);
        // A producer that died between a slot's last tag and its tail had published that slot.
        let tail = F::published(&parts, tail, parts.capacity);
        // Relaxed: zero, unless a producer was here before.
        words.producer.closed.store(0, Ordering::Relaxed);
        let bell = Bell::new(&words.producer);
        // Full as far as we know: the first push looks.
        let head = tail.wrapping_sub(parts.capacity);
        Self { parts, tail, head, bell, _owner: owner, waiting: PhantomData }
    }

    /// Pushes `value`, if there is room.
    ///
    /// # Errors
    ///
    /// The value comes back if the ring is full or the consumer gone. A push may still succeed in
    /// the moment in which the consumer goes; such a message is dropped with the ring.
    #[inline]
    pub fn try_push(&mut self, value: T) -> Result<(), PushError<T>> {
        if self.is_abandoned() {
            return Err(PushError::Closed(value));
        }
        if self.room(1) == 0 {
            return Err(PushError::Full(value));
        }
        // SAFETY: there is room: see `write`.
        unsafe { self.write(self.tail, value) };
        self.publish(self.tail.wrapping_add(1));
        Ok(())
    }

    /// Pushes values until there are no more or the ring is full, as it was at the call, and
    /// publishes them all at once; how many, which is 0 also if the consumer is gone.
    ///
    /// Takes no value from the iterator that it cannot push.
    ///
    /// # Panics
    ///
    /// If the iterator does; what it gave before has been pushed.
    pub fn push_iter(&mut self, values: impl IntoIterator<Item = T>) -> usize {
        if self.is_abandoned() {
            return 0;
        }
        let mut values = values.into_iter();
        let most = values.size_hint().1.map_or(self.parts.capacity, |most| most as u64);
        // Looking once per call, not once per message, keeps the head's line with the consumer.
        let room = self.room(most.clamp(1, self.parts.capacity));
        let start = self.tail;
        let mut batch = Batch { tail: start, producer: self };
        for _ in 0..room {
            let Some(value) = values.next() else { break };
            // SAFETY: at most `room` from `start` on, and each once: see `write`.
            unsafe { batch.producer.write(batch.tail, value) };
            batch.tail = batch.tail.wrapping_add(1);
        }
        batch.tail.wrapping_sub(start) as usize
    }

    /// Pushes as many of `values` as fit, in order, and publishes them all at once; how many, which
    /// is 0 also if the consumer is gone.
    #[inline]
    pub fn push_slice(&mut self, values: &[T]) -> usize
    where
        T: Copy,
    {
        self.push_iter(values.iter().copied())
    }

    /// Pushes all of `values`, or none if there is no room for all or the consumer is gone; whether it
    /// did. The consumer finds all of them or none, whatever becomes of the producer meanwhile.
    #[inline]
    pub fn push_together(&mut self, values: &[T]) -> bool
    where
        T: Copy,
    {
        let count = values.len() as u64;
        if self.is_abandoned() || count > self.parts.capacity || self.room(count) < count {
            return false;
        }
        // The last first: where slots publish themselves it is the first that the consumer waits for.
        for (offset, value) in values.iter().enumerate().rev() {
            // SAFETY: there is room for that many from the tail on, and each is written once.
            unsafe { self.write(self.tail.wrapping_add(offset as u64), *value) };
        }
        self.publish(self.tail.wrapping_add(count));
        true
    }

    /// How many messages can be pushed now: at least that many will succeed, since only this
    /// producer makes it less, unless the consumer goes.
    pub fn free(&self) -> usize {
        // SYNC(ring.free) acquire: as in `room`; here the value alone matters.
        let head = self.words().head.position.load(Ordering::Acquire);
        room_between(self.tail, head, self.parts.capacity) as usize
    }

    /// How many messages were pushed, modulo 2^64.
    #[inline]
    pub(crate) fn position(&self) -> u64 {
        self.tail
    }

    /// How many messages fit in the ring.
    pub fn capacity(&self) -> usize {
        self.parts.capacity as usize
    }

    /// Whether the consumer is gone. Once true it stays so, unless the ring lies in raw memory,
    /// where another consumer may come.
    #[inline]
    pub fn is_abandoned(&self) -> bool {
        // SYNC(ring.closed) acquire: pairs with the release in the consumer's `drop`. Makes visible
        // its last head.
        self.words().consumer.closed.load(Ordering::Acquire) != 0
    }

    #[inline]
    fn words(&self) -> &Words {
        self.parts.words()
    }

    /// How many slots are free, looked up anew only if fewer than `want` are known to be.
    #[inline]
    fn room(&mut self, want: u64) -> u64 {
        let known = self.parts.capacity - self.tail.wrapping_sub(self.head);
        if known >= want {
            return known;
        }
        // SYNC(ring.free) acquire: pairs with the release in `Consumer::publish`. Makes visible
        // that the slots before the head were read, so that they can be written again.
        let head = self.words().head.position.load(Ordering::Acquire);
        let room = room_between(self.tail, head, self.parts.capacity);
        self.head = self.tail.wrapping_sub(self.parts.capacity - room);
        room
    }

    /// Writes `value` at `position`, not yet published.
    ///
    /// # Safety
    ///
    /// - `position` is less than `room` ahead of the tail, and was not written since the last
    ///   `publish`.
    #[inline(always)]
    unsafe fn write(&self, position: u64, value: T) {
        // Never a slot that the consumer has yet to read: it would lose the line.
        let ahead = position.wrapping_add(Parts::<F::Slot>::slots_in(AHEAD_BYTES));
        if ahead.wrapping_sub(self.head) < self.parts.capacity {
            prefetch::for_writing(self.parts.place(ahead).as_ptr());
        }
        let (slot, tag) = (self.parts.slot(position), self.parts.tag(position));
        // SAFETY: `position - head < capacity`, so the slot is empty; we are the only producer, and
        // the consumer stops at the published tail.
        unsafe { F::write(slot, tag, value) };
    }

    /// Publishes everything before `tail`, all of which was written.
    #[inline]
    fn publish(&mut self, tail: u64) {
        self.tail = tail;
        let words = self.parts.words();
        // SYNC(ring.publish) release: pairs with the acquire in `Plain::published`. Makes visible
        // the messages in all slots before the tail.
        words.tail.position.store(tail, Ordering::Release);
        if W::RINGS {
            self.bell.ring(&words.producer, &words.consumer, self.parts.scope);
        }
    }
}

impl<T, F: Format<T>> Producer<T, F, Rings> {
    /// Pushes `value`, waiting for room until `deadline`; no deadline means for as long as it takes.
    ///
    /// # Errors
    ///
    /// The value comes back if the ring stayed full or the consumer is gone.
    pub fn push_wait(&mut self, value: T, deadline: Option<Instant>) -> Result<(), PushError<T>> {
        match self.try_push(value) {
            Err(PushError::Full(value)) => match self.wait(1, deadline) {
                Ok(_) => self.try_push(value),
                Err(error) => Err(error.map(|()| value)),
            },
            done => done,
        }
    }

    /// Waits until `slots` messages, at most the capacity, can be pushed; how many can.
    ///
    /// # Errors
    ///
    /// `Full` if there were fewer until `deadline`, `Closed` if the consumer is gone.
    pub fn wait(
        &mut self,
        slots: usize,
        deadline: Option<Instant>,
    ) -> Result<usize, PushError<()>> {
        let (parts, tail) = (self.parts, self.tail);
        let want = (slots as u64).min(parts.capacity);
        let words = parts.words();
        let in_time =
            self.bell.wait(&words.producer, &words.consumer, parts.scope, deadline, || {
                // SYNC(ring.free) acquire: as in `room`, which looks again before anything is written.
                let head = words.head.position.load(Ordering::Acquire);
                room_between(tail, head, parts.capacity) >= want
                // SYNC(ring.closed) acquire: as in `is_abandoned`.
                || words.consumer.closed.load(Ordering::Acquire) != 0
            });
        match self.is_abandoned() {
            true => Err(PushError::Closed(())),
            false if in_time => Ok(self.room(want) as usize),
            false => Err(PushError::Full(())),
        }
    }
}

impl<T, F: Format<T>, W: Waiting> Drop for Producer<T, F, W> {
    fn drop(&mut self) {
        let words = self.parts.words();
        // SYNC(ring.closed) release: pairs with the acquire in `Consumer::is_abandoned`. Makes
        // visible the last tail.
        words.producer.closed.store(1, Ordering::Release);
        if W::RINGS {
            self.bell.ring(&words.producer, &words.consumer, self.parts.scope);
        }
    }
}

impl<T, F: Format<T>, W: Waiting> fmt::Debug for Producer<T, F, W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Producer")
            .field("capacity", &self.parts.capacity)
            .field("free", &self.free())
            .finish_non_exhaustive()
    }
}

/// Publishes what `push_iter` wrote, also if its iterator panics.
struct Batch<'a, T, F: Format<T>, W: Waiting> {
    producer: &'a mut Producer<T, F, W>,
    /// Next position to write.
    tail: u64,
}

impl<T, F: Format<T>, W: Waiting> Drop for Batch<'_, T, F, W> {
    #[inline]
    fn drop(&mut self) {
        if self.tail != self.producer.tail {
            self.producer.publish(self.tail);
        }
    }
}

/// How many slots are free between `tail` and `head`. A head that no consumer can have written (in
/// raw memory) makes the ring full.
#[inline(always)]
fn room_between(tail: u64, head: u64, capacity: u64) -> u64 {
    capacity.saturating_sub(tail.wrapping_sub(head))
}
