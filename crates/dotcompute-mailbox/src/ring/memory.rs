//! Where rings lie: on the heap, or in memory that others map too.

use super::format::{Format, RawFormat};
use super::parts::{Parts, Words, slots_for};
use super::{Consumer, Producer, Waiting};
use crate::sync::{Arc, Ordering};
use crate::sys::Scope;
use dotcompute_abi::ABI_VERSION;
use dotcompute_abi::ring::{RING_MAGIC, WAITING_POLLS, WAITING_RINGS};
use std::fmt;
use std::marker::PhantomData;
use std::ptr::NonNull;

/// The most messages that a ring may hold.
const CAPACITY_MAX: usize = 1 << 31;

/// Keeps a ring's memory alive; each end holds one. Nothing reads it.
pub(super) enum Owner<T, F: Format<T>> {
    Heap { _ring: Arc<Heap<T, F>> },
    Raw { _memory: Keep },
}

/// Whatever keeps raw memory mapped. The standard library's also under loom, whose own cannot hold
/// an unknown type; the ends only count it.
type Keep = std::sync::Arc<dyn Send + Sync>;

/// A ring on the heap.
pub(super) struct Heap<T, F: Format<T>> {
    words: Words,
    slots: Box<[F::Slot]>,
    capacity: usize,
    values: PhantomData<T>,
}

impl<T, F: Format<T>> Heap<T, F> {
    fn parts(&self) -> Parts<F::Slot> {
        let slots = NonNull::from(&*self.slots).cast();
        // SAFETY: `words` and `slots`, made by `on_heap` for `capacity`, live as long as `self`,
        // which every holder of the parts keeps alive through its `Owner`.
        unsafe { Parts::new(NonNull::from(&self.words), slots, self.capacity, Scope::Process) }
    }
}

impl<T, F: Format<T>> Drop for Heap<T, F> {
    /// Both ends are gone: drops what was pushed and never popped.
    fn drop(&mut self) {
        let parts = self.parts();
        // Relaxed, twice: the last end's drop of the `Arc` comes after all that either end did.
        let mut head = self.words.head.position.load(Ordering::Relaxed);
        let tail = self.words.tail.position.load(Ordering::Relaxed);
        while head != tail {
            // SAFETY: slots in `head .. tail` are published and not taken, and nobody else is left.
            drop(unsafe { F::read(parts.slot(head)) });
            head = head.wrapping_add(1);
        }
    }
}

/// A ring on the heap whose first message has position `start`.
pub(super) fn on_heap<T, F: Format<T>, W: Waiting>(
    capacity: usize,
    start: u64,
) -> (Producer<T, F, W>, Consumer<T, F, W>) {
    assert!(
        (1..=CAPACITY_MAX).contains(&capacity),
        "a ring holds 1 to {CAPACITY_MAX} messages, not {capacity}"
    );
    let slots = slots_for(capacity);
    let tag = tag_before(start, slots);
    let heap = Arc::new(Heap {
        words: Words::at(start),
        slots: (0..slots).map(|_| F::empty(tag)).collect(),
        capacity,
        values: PhantomData,
    });
    let parts = heap.parts();
    let producer = Producer::new(parts, Owner::Heap { _ring: Arc::clone(&heap) });
    (producer, Consumer::new(parts, Owner::Heap { _ring: heap }))
}

/// The tag of slots that were last written in the lap before that of `start`.
fn tag_before(start: u64, slots: usize) -> u32 {
    (start / slots as u64) as u32
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
        size_of::<Words>() + slots_for(capacity) * size_of::<F::Slot>()
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
        let slots = slots_for(capacity);
        for index in 0..slots {
            let place = self.slot::<F>(index);
            // SAFETY: inside the memory and aligned, as just checked; nobody uses it yet.
            unsafe { place.write(F::empty(tag_before(start, slots))) };
        }
        let words = self.start.cast::<Words>();
        // SAFETY: as above.
        unsafe { words.write(Words::at(start)) };
        // SAFETY: initialised on the line before, and shared from here on.
        let identity = unsafe { &words.as_ref().identity };
        // Relaxed, all of these: the magic publishes them.
        identity.version.store(ABI_VERSION, Ordering::Relaxed);
        identity.format.store(F::FORMAT, Ordering::Relaxed);
        identity.waiting.store(waiting_word::<W>(), Ordering::Relaxed);
        identity.capacity.store(capacity as u32, Ordering::Relaxed);
        identity.slots.store(slots as u32, Ordering::Relaxed);
        // SYNC(ring.made) release: pairs with the acquire in `attach`. Makes visible the header and
        // the empty slots.
        identity.magic.store(RING_MAGIC, Ordering::Release);
        Ok(self.into_ring(capacity))
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

    /// Where slot `index` lies, if the ring is large enough to have it.
    fn slot<F: RawFormat>(&self, index: usize) -> NonNull<F::Slot> {
        let offset_bytes = size_of::<Words>() + index * size_of::<F::Slot>();
        assert!(offset_bytes <= self.bytes, "the slots lie inside the memory");
        // SAFETY: inside the memory, as just checked.
        unsafe { self.start.add(offset_bytes) }.cast()
    }

    /// `capacity` was checked, and words and slots are initialised.
    fn into_ring<F: RawFormat, W>(self, capacity: usize) -> RawRing<F, W> {
        let slots = self.slot::<F>(0);
        // SAFETY: both lie in the memory, which `owner` keeps alive, are initialised (any bytes are
        // valid slots of raw formats), and hold `capacity` messages, as `check` found.
        let parts = unsafe { Parts::new(self.start.cast(), slots, capacity, Scope::Machine) };
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
