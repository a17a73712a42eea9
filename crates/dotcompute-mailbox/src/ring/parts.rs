//! The words of a ring and the way to its slots, wherever they lie.

use crate::sync::{AtomicU32, AtomicU64};
use crate::sys::Scope;
use std::ptr::NonNull;

/// What the ring is: [`dotcompute_abi::ring::RingIdentity`].
#[derive(Default)]
#[repr(C, align(128))]
pub(super) struct Identity {
    pub(super) magic: AtomicU64,
    pub(super) version: AtomicU32,
    pub(super) format: AtomicU32,
    pub(super) waiting: AtomicU32,
    pub(super) capacity: AtomicU32,
    pub(super) slots: AtomicU32,
}

/// A position on a line of its own: [`dotcompute_abi::ring::RingCursor`].
#[derive(Default)]
#[repr(C, align(128))]
pub(super) struct Cursor {
    pub(super) position: AtomicU64,
}

/// What one end writes seldom: [`dotcompute_abi::ring::RingEnd`].
#[derive(Default)]
#[repr(C, align(128))]
pub(super) struct End {
    pub(super) asks: AtomicU32,
    pub(super) rung: AtomicU32,
    pub(super) cpu: AtomicU32,
    pub(super) closed: AtomicU32,
}

/// The words of a ring: [`dotcompute_abi::RingHeader`], as atomics.
#[derive(Default)]
#[repr(C)]
pub(super) struct Words {
    pub(super) identity: Identity,
    pub(super) tail: Cursor,
    pub(super) head: Cursor,
    pub(super) producer: End,
    pub(super) consumer: End,
}

impl Words {
    /// The words of an empty ring at position `start`.
    pub(super) fn at(start: u64) -> Self {
        Self {
            tail: Cursor { position: AtomicU64::new(start) },
            head: Cursor { position: AtomicU64::new(start) },
            ..Self::default()
        }
    }
}

/// Loom's atomics are larger than the words they stand for.
#[cfg(not(loom))]
const _: () = {
    use dotcompute_abi::RingHeader;
    use dotcompute_abi::ring::{RingCursor, RingEnd, RingIdentity};
    use std::mem::offset_of;

    assert!(size_of::<Words>() == size_of::<RingHeader>());
    assert!(align_of::<Words>() == align_of::<RingHeader>());
    assert!(offset_of!(Words, identity) == offset_of!(RingHeader, identity));
    assert!(offset_of!(Words, tail) == offset_of!(RingHeader, tail));
    assert!(offset_of!(Words, head) == offset_of!(RingHeader, head));
    assert!(offset_of!(Words, producer) == offset_of!(RingHeader, producer));
    assert!(offset_of!(Words, consumer) == offset_of!(RingHeader, consumer));
    assert!(offset_of!(Identity, magic) == offset_of!(RingIdentity, magic));
    assert!(offset_of!(Identity, version) == offset_of!(RingIdentity, version));
    assert!(offset_of!(Identity, format) == offset_of!(RingIdentity, format));
    assert!(offset_of!(Identity, waiting) == offset_of!(RingIdentity, waiting));
    assert!(offset_of!(Identity, capacity) == offset_of!(RingIdentity, capacity));
    assert!(offset_of!(Identity, slots) == offset_of!(RingIdentity, slots));
    assert!(offset_of!(Cursor, position) == offset_of!(RingCursor, position));
    assert!(offset_of!(End, asks) == offset_of!(RingEnd, asks));
    assert!(offset_of!(End, rung) == offset_of!(RingEnd, rung));
    assert!(offset_of!(End, cpu) == offset_of!(RingEnd, cpu));
    assert!(offset_of!(End, closed) == offset_of!(RingEnd, closed));
};

/// The way to a ring's words and slots.
#[doc(hidden)]
#[derive(Debug)]
pub struct Parts<S> {
    words: NonNull<Words>,
    slots: NonNull<S>,
    pub(super) capacity: u64,
    /// Slots, a power of two, minus one.
    mask: u64,
    /// Whose threads may sleep on the words.
    pub(super) scope: Scope,
}

impl<S> Clone for Parts<S> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<S> Copy for Parts<S> {}

/// How far ahead of the slot that it is at an end asks for slots, which the other's core had last:
/// about as far as it gets while they come.
pub(super) const AHEAD_BYTES: usize = 512;

impl<S> Parts<S> {
    /// How many slots lie in so many bytes; at least one.
    pub(super) const fn slots_in(bytes: usize) -> u64 {
        match size_of::<S>() {
            slot if slot < bytes && slot > 0 => (bytes / slot) as u64,
            _ => 1,
        }
    }

    /// # Safety
    ///
    /// - `words` points to initialised words, `slots` to `slots_for(capacity)` initialised slots,
    ///   and both stay valid for shared use for as long as the result or a copy of it is used.
    pub(super) unsafe fn new(
        words: NonNull<Words>,
        slots: NonNull<S>,
        capacity: usize,
        scope: Scope,
    ) -> Self {
        let mask = slots_for(capacity) as u64 - 1;
        Self { words, slots, capacity: capacity as u64, mask, scope }
    }

    #[inline]
    pub(super) fn words(&self) -> &Words {
        // SAFETY: valid for shared use by the contract of `new`.
        unsafe { self.words.as_ref() }
    }

    /// Where the slot of `position` lies; valid for all slots, not only this one.
    #[inline]
    pub(super) fn place(&self, position: u64) -> NonNull<S> {
        // SAFETY: the mask keeps the index below the number of slots that `new` was promised.
        unsafe { self.slots.add((position & self.mask) as usize) }
    }

    /// The slot of `position`.
    #[inline]
    pub(super) fn slot(&self, position: u64) -> &S {
        // SAFETY: valid for shared use by the contract of `new`.
        unsafe { self.place(position).as_ref() }
    }

    /// The tag of `position`: its lap plus one, so that zeroed memory belongs to no first lap.
    #[inline]
    pub(super) fn tag(&self, position: u64) -> u32 {
        ((position >> self.mask.trailing_ones()) as u32).wrapping_add(1)
    }

    /// How many slots follow that of `position` before the memory ends, itself included.
    #[cfg(not(loom))]
    pub(super) fn contiguous(&self, position: u64) -> u64 {
        self.mask + 1 - (position & self.mask)
    }
}

/// How many slots a ring of `capacity` messages has.
pub(super) const fn slots_for(capacity: usize) -> usize {
    capacity.next_power_of_two()
}
