//! Where rings lie: on the heap, or in memory that others map too.

use super::format::{Format, RawFormat};
use super::parts::{Parts, Words, slots_for};
use super::{Consumer, Producer, Waiting};
use crate::sync::{Arc, Ordering};
use crate::sys::Scope;
use dotcompute_abi::ring::{RING_MAGIC, WAITING_POLLS, WAITING_RINGS};
use dotcompute_abi::{ABI_VERSION, LINE_BYTES};
use std::fmt;
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::ptr::NonNull;

/// The most messages that a ring may hold.
const CAPACITY_MAX: usize = 1 << 31;

/// Keeps a ring's memory alive; each end holds one. Nothing reads it.
pub(super) enum Owner<T, F: Format<T>> {
    Heap { _ring: Arc<Heap<T, F>> },
    Raw { _memory: Keep },
}

impl<T, F: Format<T>> Clone for Owner<T, F> {
    fn clone(&self) -> Self {
        match self {
            Self::Heap { _ring: ring } => Self::Heap { _ring: Arc::clone(ring) },
            Self::Raw { _memory: memory } => Self::Raw { _memory: Keep::clone(memory) },
        }
    }
}

/// Whatever keeps raw memory mapped. The standard library's also under loom, whose own cannot hold
/// an unknown type; the ends only count it.
type Keep = std::sync::Arc<dyn Send + Sync>;

/// A ring on the heap: laid out as in raw memory, but for messages of any type.
pub(super) struct Heap<T, F: Format<T>> {
    /// A leaked `Box`: kept as one it would claim to be the only way to what `parts` points to.
    memory: NonNull<[MaybeUninit<Line>]>,
    parts: Parts<F::Slot>,
    values: PhantomData<T>,
}

/// Memory is taken in these: any type of a line's size and alignment would do.
type Line = dotcompute_abi::ring::RingCursor;

// SAFETY: what `parts` points to belongs to this ring alone, and its ends share it by protocol; the
// values that it holds move between threads.
unsafe impl<T: Send, F: Format<T>> Send for Heap<T, F> {}
// SAFETY: as above; there is no access through a shared `Heap`, only through the ends.
unsafe impl<T: Send, F: Format<T>> Sync for Heap<T, F> {}

impl<T, F: Format<T>> Drop for Heap<T, F> {
    /// Both ends are gone: drops what was pushed and never popped.
    fn drop(&mut self) {
        let words = self.parts.words();
        // Relaxed, twice: the last end's drop of the `Arc` comes after all that either end did.
        let mut head = words.head.position.load(Ordering::Relaxed);
        let tail = words.tail.position.load(Ordering::Relaxed);
        while head != tail {
            // SAFETY: slots in `head .. tail` are published and not taken, and nobody else is left.
            drop(unsafe { F::read(self.parts.slot(head)) });
            head = head.wrapping_add(1);
        }
        // SAFETY: leaked by `on_heap`, and freed here only.
        drop(unsafe { Box::from_raw(self.memory.as_ptr()) });
    }
}

/// A ring on the heap whose first message has position `start`.
pub(super) fn on_heap<T, F: Format<T>, W: Waiting>(
    capacity: usize,
    start: u64,
) -> (Producer<T, F, W>, Consumer<T, F, W>) {
    const { assert!(align_of::<F::Slot>() <= LINE_BYTES, "messages are aligned to 128 at most") };
    assert!(
        (1..=CAPACITY_MAX).contains(&capacity),
        "a ring holds 1 to {CAPACITY_MAX} messages, not {capacity}"
    );
    let lines = bytes_for::<F::Slot>(capacity).div_ceil(LINE_BYTES);
    let memory = NonNull::from(Box::leak(Box::new_uninit_slice(lines)));
    let place = memory.cast();
    // SAFETY: the memory is aligned, long enough, and still ours alone.
    unsafe { init::<T, F>(place, capacity, start) };
    // SAFETY: initialised on the line before; the ends keep it alive through their `Owner`.
    let parts = unsafe { parts_at(place, capacity, Scope::Process) };
    let heap = Arc::new(Heap { memory, parts, values: PhantomData });
    let producer = Producer::new(parts, Owner::Heap { _ring: Arc::clone(&heap) });
    (producer, Consumer::new(parts, Owner::Heap { _ring: heap }))
}

/// How many bytes a ring of `capacity` messages takes: its words, then its slots.
const fn bytes_for<S>(capacity: usize) -> usize {
    size_of::<Words>() + slots_for(capacity) * size_of::<S>()
}

/// Writes an empty ring to `start_of_memory`.
///
/// # Safety
///
/// - The memory is aligned to 128, holds `bytes_for::<F::Slot>(capacity)` bytes, and is the
///   caller's alone.
unsafe fn init<T, F: Format<T>>(start_of_memory: NonNull<u8>, capacity: usize, start: u64) {
    // SAFETY: the words come first.
    unsafe { start_of_memory.cast::<Words>().write(Words::at(start)) };
    // SAFETY: the slots follow the words.
    let first = unsafe { slots_at::<F::Slot>(start_of_memory) };
    let slots = slots_for(capacity);
    for index in 0..slots {
        // SAFETY: inside the memory.
        let slot = unsafe { first.add(index) };
        // The first position from `start` on that lies in this slot.
        let ahead = (index as u64).wrapping_sub(start) & (slots as u64 - 1);
        let empty = F::empty(tag_before(start.wrapping_add(ahead), slots));
        // SAFETY: inside the memory, and aligned: the words' size is a multiple of 128.
        unsafe { slot.write(empty) };
    }
}

/// Where the slots begin.
///
/// # Safety
///
/// - The memory is at least as long as the words.
unsafe fn slots_at<S>(start_of_memory: NonNull<u8>) -> NonNull<S> {
    // SAFETY: inside the memory or at its end.
    unsafe { start_of_memory.add(size_of::<Words>()) }.cast()
}

/// The way to the ring at `start_of_memory`.
///
/// # Safety
///
/// - `init` made a ring of `capacity` there, which stays valid for shared use for as long as the
///   result or a copy of it is used.
unsafe fn parts_at<S>(start_of_memory: NonNull<u8>, capacity: usize, scope: Scope) -> Parts<S> {
    // SAFETY: a ring is at least as long as its words.
    let slots = unsafe { slots_at(start_of_memory) };
    // SAFETY: `init` put them there.
    unsafe { Parts::new(start_of_memory.cast(), slots, capacity, scope) }
}

/// The tag of a slot that was last written in the lap before that of `position`.
fn tag_before(position: u64, slots: usize) -> u32 {
    (position / slots as u64) as u32
}

/// Memory that others may map too: a mapped file, or pages that a device reads.
///
/// A ring there carries fixed slots of 64 bytes, laid out by [`dotcompute_abi`]. One side makes
/// it with [`create`](Self::create), the other finds it with [`attach`](Self::attach).
///
/// ```
/// use dotcompute_abi::PlainSlot;
/// use dotcompute_mailbox::ring::{Plain, Polls, RawMemory};
/// use std::ptr::NonNull;
///
/// let bytes = RawMemory::bytes_for::<Plain>(8);
/// let pages = vec![[0_u8; 128]; bytes / 128 + 2].leak().as_flattened_mut();
/// let lead = pages.as_ptr().align_offset(128);
/// let memory = NonNull::new(pages[lead..].as_mut_ptr()).unwrap();
/// // SAFETY: leaked, aligned, long enough, and nobody else's.
/// let memory = unsafe { RawMemory::from_raw(memory, bytes, ()) };
/// let (mut producer, mut consumer) = memory.create::<Plain, Polls>(8).unwrap().split();
/// producer.try_push(PlainSlot::new(1, b"hello").unwrap()).unwrap();
/// assert_eq!(&consumer.try_pop().unwrap().payload[..5], b"hello");
/// ```
pub struct RawMemory {
    start: NonNull<u8>,
    bytes: usize,
    owner: Keep,
}

// SAFETY: `start` is a place that `from_raw` allows any thread to use; `owner` is Send and Sync.
unsafe impl Send for RawMemory {}

impl RawMemory {
    /// Memory for one ring: `bytes` bytes from `start`, kept alive by `owner` (`()` if it is never
    /// freed).
    ///
    /// # Safety
    ///
    /// - The bytes are valid for reads and writes, by any thread, until `owner` is dropped.
    /// - They hold no ring yet (then the caller uses `create` and others wait for it) or one that
    ///   `create` made (then the caller uses `attach`), and everyone with access keeps to the
    ///   ring's protocol.
    /// - Over all processes and devices, at any time at most one producer and at most one consumer
    ///   of that ring exist.
    pub unsafe fn from_raw(
        start: NonNull<u8>,
        bytes: usize,
        owner: impl Send + Sync + 'static,
    ) -> Self {
        Self { start, bytes, owner: std::sync::Arc::new(owner) }
    }

    /// How many bytes a ring of `capacity` messages takes.
    pub const fn bytes_for<F: RawFormat>(capacity: usize) -> usize {
        bytes_for::<F::Slot>(capacity)
    }

    /// Makes an empty ring here.
    ///
    /// # Errors
    ///
    /// If the memory is too small or misaligned, or `capacity` is 0 or above 2^31.
    pub fn create<F: RawFormat, W: Waiting>(
        self,
        capacity: usize,
    ) -> Result<RawRing<F, W>, RawError> {
        self.create_at(capacity, 0)
    }

    /// Makes an empty ring whose first message has position `start`.
    pub(super) fn create_at<F: RawFormat, W: Waiting>(
        self,
        capacity: usize,
        start: u64,
    ) -> Result<RawRing<F, W>, RawError> {
        self.check::<F>(capacity)?;
        // SAFETY: aligned and long enough, as just checked; nobody else uses it yet, as `from_raw`
        // was promised.
        unsafe { init::<F::Record, F>(self.start, capacity, start) };
        let ring = self.into_ring(capacity);
        let identity = &ring.parts.words().identity;
        // Relaxed, all of these: the magic publishes them.
        identity.version.store(ABI_VERSION, Ordering::Relaxed);
        identity.format.store(F::FORMAT, Ordering::Relaxed);
        identity.waiting.store(waiting_word::<W>(), Ordering::Relaxed);
        identity.capacity.store(capacity as u32, Ordering::Relaxed);
        identity.slots.store(slots_for(capacity) as u32, Ordering::Relaxed);
        // SYNC(ring.made) release: pairs with the acquire in `attach`. Makes visible the header and
        // the empty slots.
        identity.magic.store(RING_MAGIC, Ordering::Release);
        Ok(ring)
    }

    /// Finds the ring that the other side made here.
    ///
    /// # Errors
    ///
    /// If there is no ring (yet), or one of another version, format, kind of waiting or size.
    pub fn attach<F: RawFormat, W: Waiting>(self) -> Result<RawRing<F, W>, RawError> {
        self.check::<F>(1)?;
        // SAFETY: long enough and aligned, as just checked; any bytes are valid words.
        let words = unsafe { self.start.cast::<Words>().as_ref() };
        let identity = &words.identity;
        // SYNC(ring.made) acquire: pairs with the release in `create_at`. Makes visible the header
        // and the empty slots.
        if identity.magic.load(Ordering::Acquire) != RING_MAGIC {
            return Err(RawError::NotARing);
        }
        // Relaxed, all of these: written before the magic and never again.
        let capacity = identity.capacity.load(Ordering::Relaxed) as usize;
        for (what, found, expected) in [
            ("version", identity.version.load(Ordering::Relaxed), ABI_VERSION),
            ("format", identity.format.load(Ordering::Relaxed), F::FORMAT),
            ("waiting", identity.waiting.load(Ordering::Relaxed), waiting_word::<W>()),
            ("slots", identity.slots.load(Ordering::Relaxed), slots_for(capacity) as u32),
        ] {
            if found != expected {
                return Err(RawError::Mismatch { what, found, expected });
            }
        }
        self.check::<F>(capacity)?;
        Ok(self.into_ring(capacity))
    }

    fn check<F: RawFormat>(&self, capacity: usize) -> Result<(), RawError> {
        if !(1..=CAPACITY_MAX).contains(&capacity) {
            return Err(RawError::Capacity(capacity));
        }
        let needed_bytes = Self::bytes_for::<F>(capacity);
        if self.bytes < needed_bytes {
            return Err(RawError::TooSmall { bytes: self.bytes, needed_bytes });
        }
        if !self.start.cast::<Words>().is_aligned() {
            return Err(RawError::Misaligned);
        }
        Ok(())
    }

    /// `capacity` was checked and the ring initialised, here or by the other side.
    fn into_ring<F: RawFormat, W>(self, capacity: usize) -> RawRing<F, W> {
        // SAFETY: the ring is there, as both callers made sure, and `owner` keeps it.
        let parts = unsafe { parts_at(self.start, capacity, Scope::Machine) };
        RawRing { parts, owner: self.owner, waiting: PhantomData }
    }
}

impl fmt::Debug for RawMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RawMemory")
            .field("start", &self.start)
            .field("bytes", &self.bytes)
            .finish_non_exhaustive()
    }
}

fn waiting_word<W: Waiting>() -> u32 {
    if W::RINGS { WAITING_RINGS } else { WAITING_POLLS }
}

/// Both ends of a ring in [`RawMemory`].
pub type RawEnds<F, W> =
    (Producer<<F as RawFormat>::Record, F, W>, Consumer<<F as RawFormat>::Record, F, W>);

/// A ring in [`RawMemory`], not yet used: take the end that is yours.
pub struct RawRing<F: RawFormat, W> {
    parts: Parts<F::Slot>,
    owner: Keep,
    waiting: PhantomData<fn() -> W>,
}

// SAFETY: as for `RawMemory`; the slots hold plain bytes.
unsafe impl<F: RawFormat, W> Send for RawRing<F, W> {}

impl<F: RawFormat, W: Waiting> RawRing<F, W> {
    /// The end that pushes; the other end is, or will be, taken elsewhere.
    ///
    /// It goes on where the last producer of this ring ended.
    pub fn producer(self) -> Producer<F::Record, F, W> {
        Producer::new(self.parts, Owner::Raw { _memory: self.owner })
    }

    /// The end that pops; the other end is, or will be, taken elsewhere.
    ///
    /// It goes on where the last consumer of this ring ended.
    pub fn consumer(self) -> Consumer<F::Record, F, W> {
        Consumer::new(self.parts, Owner::Raw { _memory: self.owner })
    }

    /// Both ends. The memory's owner is dropped with the last of them.
    pub fn split(self) -> RawEnds<F, W> {
        let memory = Keep::clone(&self.owner);
        let producer = Producer::new(self.parts, Owner::Raw { _memory: memory });
        (producer, self.consumer())
    }
}

impl<F: RawFormat, W> fmt::Debug for RawRing<F, W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RawRing").field("capacity", &self.parts.capacity).finish_non_exhaustive()
    }
}

/// Why memory holds no usable ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RawError {
    /// The memory does not start on a multiple of 128 bytes.
    Misaligned,
    /// The memory is smaller than the ring.
    TooSmall {
        /// The memory's size.
        bytes: usize,
        /// The ring's.
        needed_bytes: usize,
    },
    /// No ring has such a capacity.
    Capacity(usize),
    /// No ring was made here, at least not yet.
    NotARing,
    /// The ring is of another kind.
    Mismatch {
        /// The word of the header that differs.
        what: &'static str,
        /// What it says.
        found: u32,
        /// What it should say.
        expected: u32,
    },
}

impl fmt::Display for RawError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Misaligned => f.write_str("the ring's memory is not aligned to 128 bytes"),
            Self::TooSmall { bytes, needed_bytes } => {
                write!(f, "the ring takes {needed_bytes} bytes and its memory has {bytes}")
            }
            Self::Capacity(capacity) => {
                write!(f, "a ring holds 1 to {CAPACITY_MAX} messages, not {capacity}")
            }
            Self::NotARing => f.write_str("there is no ring in this memory"),
            Self::Mismatch { what, found, expected } => {
                write!(f, "the ring's {what} is {found} instead of {expected}")
            }
        }
    }
}

impl std::error::Error for RawError {}
