//! The slot formats: how a message gets into a slot and how the consumer knows that it is in.

use super::parts::Parts;
use super::sealed::Sealed;
use crate::sync::{AtomicU32, AtomicU64, Ordering, UnsafeCell};
use dotcompute_abi::ring::{FORMAT_LAPPED, FORMAT_PLAIN, FORMAT_TAGGED};
use dotcompute_abi::slot::{FLAG_LAP, SlotHeader};
use dotcompute_abi::{PlainSlot, TaggedRecord};
use std::mem::MaybeUninit;

/// A slot format for messages of type `T`: [`Plain`], [`Prompt`], [`Lapped`] or [`Tagged`].
pub trait Format<T>: Sealed + Sized {
    /// A slot in the ring.
    #[doc(hidden)]
    type Slot;

    /// An empty slot; `tag` is that of the lap before the first.
    #[doc(hidden)]
    fn empty(tag: u32) -> Self::Slot;

    /// Puts `value` into `slot`.
    ///
    /// # Safety
    ///
    /// - The slot is empty and, until its position is published, the caller's alone.
    #[doc(hidden)]
    unsafe fn write(slot: &Self::Slot, tag: u32, value: T);

    /// Takes the value out of `slot`.
    ///
    /// # Safety
    ///
    /// - The slot is published and not yet freed, so the caller's alone.
    /// - The value is not taken twice.
    #[doc(hidden)]
    unsafe fn read(slot: &Self::Slot) -> T;

    /// The position up to which messages from `from` on are published: all of them, or at least
    /// `want` if there are as many.
    #[doc(hidden)]
    fn published(parts: &Parts<Self::Slot>, from: u64, want: u64) -> u64;
}

/// A format whose rings may lie in memory that others map.
pub trait RawFormat: Format<Self::Record, Slot: Send + Sync> {
    /// What travels: plain bytes with a header.
    type Record: Copy + Send;

    /// The `format` word of such rings.
    #[doc(hidden)]
    const FORMAT: u32;
}

/// Slots that the producer's tail publishes: between threads and processes.
#[derive(Clone, Copy, Debug)]
pub enum Plain {}

/// A place for one `T`.
#[doc(hidden)]
#[derive(Debug)]
#[repr(transparent)]
pub struct Cell<T>(pub(super) UnsafeCell<MaybeUninit<T>>);

// SAFETY: the ring's protocol gives a cell to one end at a time (see `Format`), so sharing it only
// ever moves a `T` from one thread to another.
unsafe impl<T: Send> Sync for Cell<T> {}

impl<T> Format<T> for Plain {
    type Slot = Cell<T>;

    fn empty(_tag: u32) -> Cell<T> {
        Cell(UnsafeCell::new(MaybeUninit::uninit()))
    }

    #[inline(always)]
    unsafe fn write(slot: &Cell<T>, _tag: u32, value: T) {
        slot.0.with_mut(|place| {
            // SAFETY: the caller promises that nobody else touches the slot.
            unsafe { place.write(MaybeUninit::new(value)) }
        });
    }

    #[inline(always)]
    unsafe fn read(slot: &Cell<T>) -> T {
        slot.0.with(|place| {
            // SAFETY: published and not freed: the producer initialised it and leaves it alone.
            let value = unsafe { place.read() };
            // SAFETY: initialised, as above; taken only once, as the caller promises.
            unsafe { value.assume_init() }
        })
    }

    #[inline]
    fn published(parts: &Parts<Cell<T>>, _from: u64, _want: u64) -> u64 {
        // SYNC(ring.publish) acquire: pairs with the release in `Producer::publish`. Makes visible
        // the messages in all slots before the tail.
        parts.words().tail.position.load(Ordering::Acquire)
    }
}

impl RawFormat for Plain {
    type Record = PlainSlot;
    const FORMAT: u32 = FORMAT_PLAIN;
}

/// Slots that carry the lap they were written in beside the message: on the heap.
///
/// A waiting consumer looks at the very line that it is about to read, so message and news arrive
/// by one transfer of one line where [`Plain`] takes two: the least latency for messages that go
/// one at a time, there and back. A message of up to 56 bytes fits into a line with its tag. The
/// price is paid in streams, where the consumer disturbs the producer at each message that it waits
/// for, and cannot see the messages as slices.
#[derive(Clone, Copy, Debug)]
pub enum Prompt {}

/// A place for one `T` and the lap in which it was written.
#[doc(hidden)]
#[derive(Debug)]
#[repr(C)]
pub struct PromptCell<T> {
    tag: AtomicU32,
    cell: Cell<T>,
}

impl<T> Format<T> for Prompt {
    type Slot = PromptCell<T>;

    fn empty(tag: u32) -> PromptCell<T> {
        PromptCell { tag: AtomicU32::new(tag), cell: <Plain as Format<T>>::empty(tag) }
    }

    #[inline(always)]
    unsafe fn write(slot: &PromptCell<T>, tag: u32, value: T) {
        // SAFETY: the caller promises that nobody else touches the slot.
        unsafe { Plain::write(&slot.cell, tag, value) };
        // SYNC(ring.prompt) release: pairs with the acquire in `published`. Makes visible the
        // message.
        slot.tag.store(tag, Ordering::Release);
    }

    #[inline(always)]
    unsafe fn read(slot: &PromptCell<T>) -> T {
        // SAFETY: as the caller promises.
        unsafe { Plain::read(&slot.cell) }
    }

    #[inline]
    fn published(parts: &Parts<PromptCell<T>>, from: u64, want: u64) -> u64 {
        // SYNC(ring.prompt) acquire: pairs with the release in `write`. Makes visible the message;
        // a slot with an older tag is not written yet.
        first_without(from, want, |at| parts.slot(at).tag.load(Ordering::Acquire) == parts.tag(at))
    }
}

/// Slots that carry the lap they were written in within their header: between processes, for messages
/// that are waited for. As [`Prompt`], but in memory that others map too, and a slot is one line.
///
/// Such a ring has one producer in its life: one that died in
/// [`push_together`](super::Producer::push_together) may have left slots that its heir would publish.
#[derive(Clone, Copy, Debug)]
pub enum Lapped {}

/// [`PlainSlot`], whose header is one word and tells the lap.
#[doc(hidden)]
#[derive(Debug)]
#[repr(C, align(64))]
pub struct LappedSlot {
    header: AtomicU64,
    payload: Cell<[u8; 56]>,
}

/// Where in the word of a header its flags begin.
const FLAGS_AT: u32 = 48;

/// The bit of a header's word that tells the lap of this tag. The slots before and after it in the same
/// place have it otherwise, and no older one is there: a slot is written again once it has been read.
fn lap_bit(tag: u32) -> u64 {
    if tag & 1 == 1 { u64::from(FLAG_LAP) << FLAGS_AT } else { 0 }
}

impl Format<PlainSlot> for Lapped {
    type Slot = LappedSlot;

    fn empty(tag: u32) -> LappedSlot {
        let payload = Cell(UnsafeCell::new(MaybeUninit::new([0; 56])));
        LappedSlot { header: AtomicU64::new(lap_bit(tag)), payload }
    }

    #[inline(always)]
    unsafe fn write(slot: &LappedSlot, tag: u32, value: PlainSlot) {
        let PlainSlot { header: SlotHeader { token, payload_bytes, flags }, payload } = value;
        // SAFETY: the caller promises that nobody else touches the slot.
        unsafe { Plain::write(&slot.payload, tag, payload) };
        let flags = u64::from(flags) & !u64::from(FLAG_LAP);
        let word = u64::from(token) | u64::from(payload_bytes) << 32 | flags << FLAGS_AT;
        // SYNC(ring.lap) release: pairs with the acquire in `published`. Makes visible the payload, and
        // what the writer did before.
        slot.header.store(word | lap_bit(tag), Ordering::Release);
    }

    #[inline(always)]
    unsafe fn read(slot: &LappedSlot) -> PlainSlot {
        // Relaxed: `published` saw it, and it is not written again before the slot is freed.
        let word = slot.header.load(Ordering::Relaxed);
        let flags = (word >> FLAGS_AT) as u16 & !(FLAG_LAP as u16);
        let header = SlotHeader { token: word as u32, payload_bytes: (word >> 32) as u16, flags };
        // SAFETY: as the caller promises.
        let payload = unsafe { Plain::read(&slot.payload) };
        PlainSlot { header, payload }
    }

    #[inline]
    fn published(parts: &Parts<LappedSlot>, from: u64, want: u64) -> u64 {
        first_without(from, want, |at| {
            // SYNC(ring.lap) acquire: pairs with the release in `write`. Makes visible the payload; a
            // slot of the lap before is not written yet.
            let word = parts.slot(at).header.load(Ordering::Acquire);
            word & lap_bit(1) == lap_bit(parts.tag(at))
        })
    }
}

impl RawFormat for Lapped {
    type Record = PlainSlot;
    const FORMAT: u32 = FORMAT_LAPPED;
}

/// The first of at most `want` positions from `from` on that is not full, or the one after them.
#[inline(always)]
fn first_without(from: u64, want: u64, is_full: impl Fn(u64) -> bool) -> u64 {
    let mut position = from;
    while position.wrapping_sub(from) < want && is_full(position) {
        position = position.wrapping_add(1);
    }
    position
}

/// Slots that carry the lap they were written in, in each of their four chunks: between host and
/// device, where one read then fetches data and tag at once.
#[derive(Clone, Copy, Debug)]
pub enum Tagged {}

/// [`dotcompute_abi::slot::TaggedChunk`], as atomics.
#[derive(Debug, Default)]
#[repr(C)]
struct Chunk {
    data: [AtomicU32; 3],
    tag: AtomicU32,
}

/// [`dotcompute_abi::TaggedSlot`], as atomics.
#[doc(hidden)]
#[derive(Debug)]
#[repr(C, align(64))]
pub struct Chunks([Chunk; 4]);

#[cfg(not(loom))]
const _: () = {
    use dotcompute_abi::TaggedSlot;
    use dotcompute_abi::slot::TaggedChunk;
    use std::mem::offset_of;

    assert!(size_of::<Chunk>() == size_of::<TaggedChunk>());
    assert!(offset_of!(Chunk, data) == offset_of!(TaggedChunk, data));
    assert!(offset_of!(Chunk, tag) == offset_of!(TaggedChunk, tag));
    assert!(size_of::<Chunks>() == size_of::<TaggedSlot>());
    assert!(align_of::<Chunks>() == align_of::<TaggedSlot>());
    assert!(size_of::<Cell<PlainSlot>>() == size_of::<PlainSlot>());
    assert!(size_of::<LappedSlot>() == size_of::<PlainSlot>());
    assert!(offset_of!(LappedSlot, payload) == offset_of!(PlainSlot, payload));
};

impl Format<TaggedRecord> for Tagged {
    type Slot = Chunks;

    fn empty(tag: u32) -> Chunks {
        let chunk = || Chunk { tag: AtomicU32::new(tag), ..Chunk::default() };
        Chunks([chunk(), chunk(), chunk(), chunk()])
    }

    #[inline]
    unsafe fn write(slot: &Chunks, tag: u32, value: TaggedRecord) {
        for (chunk, data) in slot.0.iter().zip(value.to_chunks()) {
            for (word, value) in chunk.data.iter().zip(data) {
                // Relaxed: the tag below publishes it.
                word.store(value, Ordering::Relaxed);
            }
            // SYNC(ring.tag) release: pairs with the acquire in `published`, and with the device's
            // 16-byte read of the chunk. Makes visible the chunk's data. Scope: system.
            chunk.tag.store(tag, Ordering::Release);
        }
    }

    #[inline]
    unsafe fn read(slot: &Chunks) -> TaggedRecord {
        // Relaxed: `published` saw the tags, and the slot is not written again before it is freed.
        TaggedRecord::from_chunks(
            slot.0
                .each_ref()
                .map(|chunk| chunk.data.each_ref().map(|word| word.load(Ordering::Relaxed))),
        )
    }

    #[inline]
    fn published(parts: &Parts<Chunks>, from: u64, want: u64) -> u64 {
        first_without(from, want, |at| {
            let tag = parts.tag(at);
            // SYNC(ring.tag) acquire: pairs with the release in `write`. Makes visible the chunk's
            // data; a chunk with an older tag is not there yet.
            parts.slot(at).0.iter().all(|chunk| chunk.tag.load(Ordering::Acquire) == tag)
        })
    }
}

impl RawFormat for Tagged {
    type Record = TaggedRecord;
    const FORMAT: u32 = FORMAT_TAGGED;
}
