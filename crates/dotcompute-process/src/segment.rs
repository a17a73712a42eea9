//! What parent and child share for one life of the child: words, and a ring and an arena each way.

use std::ptr::NonNull;
use std::sync::Arc;

use dotcompute_abi::ABI_VERSION;
use dotcompute_core::MessageId;
use dotcompute_mailbox::doorbell::Doorbell;
use dotcompute_mailbox::ring::{Lapped, Polls, RawError, RawMemory, RawRing};
use dotcompute_mailbox::sync::{AtomicU32, AtomicU64, Ordering};
use rustix::io;

use crate::arena;
use crate::memory::Memory;

/// The kernel is not activated yet: a body does not begin.
pub(crate) const HOLD: u32 = 0;
/// Go on.
pub(crate) const RUN: u32 = 1;
/// End once everything that was handed over is processed.
pub(crate) const DRAIN: u32 = 2;
/// End after the message in hand.
pub(crate) const STOP: u32 = 3;

/// Whether the kernel is to end.
pub(crate) const fn is_end(command: u32) -> bool {
    matches!(command, DRAIN | STOP)
}

/// `dotcproc` in ASCII: the first word of a segment, written last.
const MAGIC: u64 = u64::from_le_bytes(*b"dotcproc");

/// The words come first; the rings follow from here, then the ids, and the arenas behind them.
const RINGS_AT: usize = 1024;

/// The words of a segment, a line per writer.
#[derive(Debug)]
#[repr(C, align(128))]
struct Words {
    identity: Identity,
    parent: ParentWords,
    child: ChildWords,
    notes: ChildNotes,
    /// The child sleeps on it.
    child_bell: Doorbell,
}

/// Written once, by the parent, before the child sees the segment.
#[derive(Debug)]
#[repr(C, align(128))]
struct Identity {
    magic: AtomicU64,
    version: AtomicU32,
    /// The slots of each ring.
    slots: AtomicU32,
    /// The granules of each arena.
    granules: AtomicU32,
}

/// Written by the parent only.
#[derive(Debug)]
#[repr(C, align(128))]
struct ParentWords {
    command: AtomicU32,
}

/// Written by the child only. Positions count the messages handed to this child, from 1.
#[derive(Debug)]
#[repr(C, align(128))]
struct ChildWords {
    /// Two in one, so that no death and no stop parts them: the last message that it has
    /// acknowledged, with all before it; and, in the low bits, how many beyond it is ready for.
    progress: AtomicU64,
    /// Counts what the child published, in the rings and in these words.
    news: AtomicU64,
    /// Not 0: the child waits until the ring of its replies is empty.
    wants_room: AtomicU32,
}

/// Written by the child only, and read when it has ended.
#[derive(Debug)]
#[repr(C, align(128))]
struct ChildNotes {
    /// The last message that its kernel may have seen.
    received: AtomicU64,
}

/// The low bits of `progress`. The other 47 last for as long as a child lives.
const AHEAD_BITS: u32 = 17;
const AHEAD_MASK: u64 = (1 << AHEAD_BITS) - 1;

const _: () = assert!(size_of::<Words>() <= RINGS_AT);

/// How far a child has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Progress {
    pub(crate) processed: u64,
    pub(crate) demand: u64,
}

/// Messages to the child, and replies from it.
pub(crate) type Ring = RawRing<Lapped, Polls>;

/// A mapped segment.
#[derive(Debug)]
pub(crate) struct Segment {
    memory: Memory,
    /// The slots of each ring.
    slots: usize,
    granules: usize,
}

/// A direction of the segment, by number: of a ring, and of the arena with what goes beside it.
pub(crate) const TO_CHILD: usize = 0;
pub(crate) const FROM_CHILD: usize = 1;

impl Segment {
    /// A new segment with two rings of `slots` slots and two arenas of `granules` granules each, and
    /// these rings: to the child, and from it. Memory is taken as it is first used.
    pub(crate) fn create(slots: usize, granules: usize) -> io::Result<(Arc<Self>, Ring, Ring)> {
        let bytes = arenas_at(slots) + 2 * arena::bytes_for(granules);
        let memory = Memory::create("dotcompute-segment", bytes)?;
        let segment = Arc::new(Self { memory, slots, granules });
        let make = |index| segment.ring_memory(index, slots).create(slots);
        let (there, back) = (make(TO_CHILD).map_err(invalid)?, make(FROM_CHILD).map_err(invalid)?);
        let identity = &segment.words().identity;
        // Relaxed, all: the magic publishes them.
        identity.version.store(ABI_VERSION, Ordering::Relaxed);
        identity.slots.store(slots as u32, Ordering::Relaxed);
        identity.granules.store(granules as u32, Ordering::Relaxed);
        // SYNC(segment.made) release: pairs with the acquire in `attach`. Makes visible the words
        // and the rings.
        identity.magic.store(MAGIC, Ordering::Release);
        Ok((segment, there, back))
    }

    /// The segment in the memory that the parent handed over.
    pub(crate) fn attach(memory: Memory) -> io::Result<(Arc<Self>, Ring, Ring)> {
        if memory.bytes() < RINGS_AT {
            return Err(io::Errno::INVAL);
        }
        let mut segment = Self { memory, slots: 0, granules: 0 };
        let identity = &segment.words().identity;
        // SYNC(segment.made) acquire: pairs with the release in `create`. Makes visible the words
        // and the rings.
        let magic = identity.magic.load(Ordering::Acquire);
        // Relaxed, all: written before the magic and never again.
        let version = identity.version.load(Ordering::Relaxed);
        let slots = identity.slots.load(Ordering::Relaxed) as usize;
        let granules = identity.granules.load(Ordering::Relaxed) as usize;
        let bytes = arenas_at(slots) + 2 * arena::bytes_for(granules);
        if magic != MAGIC || version != ABI_VERSION || segment.memory.bytes() != bytes {
            return Err(io::Errno::INVAL);
        }
        (segment.slots, segment.granules) = (slots, granules);
        let segment = Arc::new(segment);
        let find = |index| segment.ring_memory(index, slots).attach();
        let (there, back) = (find(TO_CHILD).map_err(invalid)?, find(FROM_CHILD).map_err(invalid)?);
        Ok((segment, there, back))
    }

    /// For the parent, before it hands over the message at this position: its id.
    pub(crate) fn set_id(&self, position: u64, id: MessageId) {
        let id = id.as_u128();
        let [low, high] = self.id_words(position);
        // Relaxed, both: the message's slot publishes them. The words' last message is one that the child
        // is done with: its kernel has seen one behind it, which came `slots` messages ago.
        low.store(id as u64, Ordering::Relaxed);
        high.store((id >> 64) as u64, Ordering::Relaxed);
    }

    /// For the child, until it takes the next message out: the id of the message at this position.
    pub(crate) fn id(&self, position: u64) -> MessageId {
        // Relaxed, both: see `set_id`.
        let [low, high] =
            self.id_words(position).each_ref().map(|word| word.load(Ordering::Relaxed));
        MessageId::from_u128(u128::from(high) << 64 | u128::from(low))
    }

    fn id_words(&self, position: u64) -> &[AtomicU64; 2] {
        let index = position as usize & (ids(self.slots) - 1);
        // SAFETY: `create` and `attach` made sure that the ids lie inside the memory, behind the rings.
        let place = unsafe { self.memory.start().add(ids_at(self.slots) + index * ID_BYTES) };
        // SAFETY: the place is aligned to 16, lies in a mapping that lives as long as `self`, and any bytes
        // are words, which are atomics.
        unsafe { place.cast().as_ref() }
    }

    /// How many granules each arena has.
    pub(crate) fn granules(&self) -> usize {
        self.granules
    }

    /// Where the granules of the arena of this direction begin.
    pub(crate) fn granules_of(&self, direction: usize) -> NonNull<u8> {
        let at = arenas_at(self.slots) + direction * arena::bytes_for(self.granules);
        // SAFETY: `create` and `attach` made sure that both arenas lie inside the memory.
        unsafe { self.memory.start().add(at + arena::words_bytes(self.granules)) }
    }

    /// The words of the arena of this direction, one for each granule: see [`arena`].
    pub(crate) fn returned(&self, direction: usize) -> &[AtomicU64] {
        let at = arenas_at(self.slots) + direction * arena::bytes_for(self.granules);
        // SAFETY: as in `granules_of`.
        let start = unsafe { self.memory.start().add(at) };
        // SAFETY: an arena begins with so many words, on a page of a mapping that lives as long as
        // `self`; any bytes are words, which are atomics.
        unsafe { std::slice::from_raw_parts(start.as_ptr().cast(), self.granules) }
    }

    fn ring_memory(self: &Arc<Self>, index: usize, slots: usize) -> RawMemory {
        let bytes = ring_bytes(slots);
        // SAFETY: both callers made sure that the rings lie inside the memory.
        let start = unsafe { self.memory.start().add(RINGS_AT + index * bytes) };
        // SAFETY: the owner keeps the mapping. The parent makes a ring here once, before the child
        // has the memory, and takes one end of it; the child takes the other.
        unsafe { RawMemory::from_raw(start, bytes, Arc::clone(self)) }
    }

    fn words(&self) -> &Words {
        // SAFETY: the mapping is page-aligned and long enough, lives as long as `self`, and any
        // bytes are valid words, which are atomics.
        unsafe { self.memory.start().cast().as_ref() }
    }

    pub(crate) fn memory(&self) -> &Memory {
        &self.memory
    }

    /// The bell that the child sleeps on.
    pub(crate) fn child_bell(&self) -> &Doorbell {
        &self.words().child_bell
    }

    pub(crate) fn command(&self) -> u32 {
        // SYNC(process.command) acquire: pairs with the release in `set_command`. The command alone
        // matters, and that what was handed over before it is seen.
        self.words().parent.command.load(Ordering::Acquire)
    }

    /// For the parent. Ring the child's bell after it.
    pub(crate) fn set_command(&self, command: u32) {
        // SYNC(process.command) release: pairs with the acquire in `command`. Makes visible the
        // messages that were handed over before.
        self.words().parent.command.store(command, Ordering::Release);
    }

    /// For the child, before its kernel sees the message at `position`.
    pub(crate) fn set_received(&self, position: u64) {
        // SYNC(process.progress) release: pairs with the acquire in `received`. Nothing else is
        // published; that it is stored before the kernel runs matters, whenever the child dies.
        self.words().notes.received.store(position, Ordering::Release);
    }

    /// For the child, after the replies to these messages are in their ring.
    pub(crate) fn set_progress(&self, processed: u64, demand: u64) {
        let words = &self.words().child;
        let ahead = demand.saturating_sub(processed).min(AHEAD_MASK);
        // SYNC(process.progress) release: pairs with the acquires in `progress`. Makes visible, with
        // the acknowledgement, the replies that came before it.
        words.progress.store(processed << AHEAD_BITS | ahead, Ordering::Release);
    }

    /// For the child, last: something was published.
    pub(crate) fn tell(&self) {
        let news = &self.words().child.news;
        // Relaxed read: the child's own word.
        let next = news.load(Ordering::Relaxed).wrapping_add(1);
        // SYNC(process.news) release: pairs with the acquire in `news`. Makes visible what it is
        // news of.
        news.store(next, Ordering::Release);
    }

    /// For the child; `true` before it tells, and waits.
    pub(crate) fn set_wants_room(&self, wants: bool) {
        // Relaxed: the news publish that it is wanted, and to hear late that it is not costs a ring.
        self.words().child.wants_room.store(wants.into(), Ordering::Relaxed);
    }

    /// Whether the child's bell is to be rung when its replies were read: looked at after the news,
    /// each time that there are some.
    pub(crate) fn wants_room(&self) -> bool {
        // Relaxed: the news made it visible, if it had to be.
        self.words().child.wants_room.load(Ordering::Relaxed) != 0
    }

    pub(crate) fn news(&self) -> u64 {
        // SYNC(process.news) acquire: pairs with the release in `tell`.
        self.words().child.news.load(Ordering::Acquire)
    }

    /// How far the child has come. Read before its replies, so that those which belong to it are
    /// there.
    pub(crate) fn progress(&self) -> Progress {
        let words = &self.words().child;
        // SYNC(process.progress) acquire: pairs with the releases in `set_progress`. Makes visible
        // the replies made before.
        let word = words.progress.load(Ordering::Acquire);
        let processed = word >> AHEAD_BITS;
        let demand = processed + (word & AHEAD_MASK);
        Progress { processed, demand }
    }

    /// The last message that its kernel may have seen.
    pub(crate) fn received(&self) -> u64 {
        // SYNC(process.progress) acquire: pairs with the release in `set_received`.
        self.words().notes.received.load(Ordering::Acquire)
    }
}

/// The bytes of an id.
const ID_BYTES: usize = size_of::<MessageId>();

/// For so many messages there are ids: twice as many as can lie in the ring, so that those which the child
/// has at hand are not written over. A power of two.
fn ids(slots: usize) -> usize {
    2 * slots.next_power_of_two()
}

/// Where the ids begin behind rings of so many slots.
fn ids_at(slots: usize) -> usize {
    RINGS_AT + 2 * ring_bytes(slots)
}

/// Where the arenas begin: at a page.
fn arenas_at(slots: usize) -> usize {
    (ids_at(slots) + ids(slots) * ID_BYTES).next_multiple_of(arena::PAGE)
}

fn ring_bytes(slots: usize) -> usize {
    RawMemory::bytes_for::<Lapped>(slots).next_multiple_of(dotcompute_abi::LINE_BYTES)
}

fn invalid(_: RawError) -> io::Errno {
    io::Errno::INVAL
}

/// The bell that the parent sleeps on; one for all children that a kernel has in turn.
#[derive(Debug)]
pub(crate) struct ParentBell {
    memory: Memory,
}

impl ParentBell {
    pub(crate) fn create() -> io::Result<Self> {
        Ok(Self { memory: Memory::create("dotcompute-bell", size_of::<Doorbell>())? })
    }

    pub(crate) fn attach(memory: Memory) -> io::Result<Self> {
        match memory.bytes() >= size_of::<Doorbell>() {
            true => Ok(Self { memory }),
            false => Err(io::Errno::INVAL),
        }
    }

    pub(crate) fn bell(&self) -> &Doorbell {
        // SAFETY: the mapping is page-aligned and long enough, lives as long as `self`, and any
        // bytes are a doorbell, which is made of atomics.
        unsafe { self.memory.start().cast().as_ref() }
    }

    pub(crate) fn memory(&self) -> &Memory {
        &self.memory
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_sides_see_the_same_segment() {
        let (ours, there, back) = Segment::create(8, 4).unwrap();
        let file = ours.memory().file().try_clone_to_owned().unwrap();
        let (theirs, there2, back2) = Segment::attach(Memory::map(file).unwrap()).unwrap();
        let (mut to_child, mut in_child) = (there.producer(), there2.consumer());
        let (mut from_child, mut to_parent) = (back.consumer(), back2.producer());
        let slot = |token| dotcompute_abi::PlainSlot::new(token, b"x").unwrap();
        to_child.try_push(slot(7)).unwrap();
        assert_eq!(in_child.try_pop().unwrap().header.token, 7);
        to_parent.try_push(slot(8)).unwrap();
        assert_eq!(from_child.try_pop().unwrap().header.token, 8);
        theirs.set_received(3);
        theirs.set_progress(2, 5);
        theirs.tell();
        assert_eq!(ours.progress(), Progress { processed: 2, demand: 5 });
        assert_eq!(ours.received(), 3);
        assert_eq!(ours.news(), 1);
        ours.set_command(STOP);
        assert_eq!(theirs.command(), STOP);
        for position in 1..100 {
            ours.set_id(position, MessageId::from_u128(u128::MAX - u128::from(position)));
            for known in position.saturating_sub(8).max(1)..=position {
                assert_eq!(theirs.id(known).as_u128(), u128::MAX - u128::from(known));
            }
        }
    }

    #[test]
    fn memory_that_is_no_segment_is_refused() {
        for bytes in [1, 4096, arenas_at(8) + 2 * arena::bytes_for(4)] {
            assert!(Segment::attach(Memory::create("none", bytes).unwrap()).is_err(), "{bytes}");
        }
    }
}
