//! Arrays beside the messages: blocks of memory that one side writes and the other reads in place.
//!
//! Each direction of a [`Segment`] has an arena of granules. Its *owner*, the side that sends that way,
//! keeps account of it in memory of its own: which blocks of granules are lent, and by which turn, a
//! number that no two leases share. The other side holds a [`Lease`] for each array that it has been
//! sent; dropped, it writes the turn into the word of the block's first granule, and the owner finds
//! that when it next looks for room. So no word has two writers, nothing waits for a block (where there
//! is no room the array goes through the ring), and what a peer writes into its words can only give its
//! own blocks away early: the owner frees a block that it has lent, once.
//!
//! A segment, and with it its arenas, is for one life of the child, and the memory is there until the
//! last lease is dropped. So when the child dies nothing need be collected: what it had borrowed is
//! gone with the segment, and what it had lent stays whole for whoever still reads it.
//!
//! Where a lease lies its sender says, which a receiver checks. That the sender does not write to what
//! it has lent is a matter of this protocol, and both sides are the same program. One that breaks it
//! changes values, never where is read: bytes that are parsed are copied first.

use std::fmt;
use std::ops::Deref;
use std::ptr::NonNull;
use std::sync::Arc;

use dotcompute_mailbox::sync::Ordering;

use crate::frame::Broken;
use crate::segment::Segment;

/// Blocks are whole granules.
pub(crate) const GRANULE: usize = 16 * 1024;
/// What is shorter goes through the ring.
pub(crate) const ARRAY_MIN: usize = 32 * 1024;
/// An arena begins at one.
pub(crate) const PAGE: usize = 4096;

/// The bytes of the words of so many granules.
pub(crate) const fn words_bytes(granules: usize) -> usize {
    (granules * size_of::<u64>()).next_multiple_of(PAGE)
}

/// The bytes of an arena.
pub(crate) const fn bytes_for(granules: usize) -> usize {
    words_bytes(granules) + granules * GRANULE
}

/// Where an array lies, as it is said in a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Block {
    /// The first of its granules.
    pub(crate) first: u64,
    pub(crate) turn: u64,
    pub(crate) bytes: u64,
}

/// The bytes of a block in a message.
pub(crate) const BLOCK_BYTES: usize = 24;

impl Block {
    pub(crate) fn to_bytes(self) -> [u8; BLOCK_BYTES] {
        let mut bytes = [0; BLOCK_BYTES];
        for (part, word) in bytes.chunks_exact_mut(8).zip([self.first, self.turn, self.bytes]) {
            part.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    /// What these say, which are so many.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Self {
        let word = |index: usize| {
            let part = bytes.get(index * 8..).and_then(<[u8]>::first_chunk);
            part.map_or(0, |part| u64::from_le_bytes(*part))
        };
        Self { first: word(0), turn: word(1), bytes: word(2) }
    }
}

/// The owner's account of an arena.
#[derive(Debug)]
pub(crate) struct Arena {
    segment: Arc<Segment>,
    direction: usize,
    /// What is lent, by place.
    lent: Vec<Lent>,
    turns: u64,
}

#[derive(Debug)]
struct Lent {
    first: usize,
    granules: usize,
    turn: u64,
}

impl Arena {
    /// For the side that sends this way; there is one account of an arena.
    pub(crate) fn new(segment: &Arc<Segment>, direction: usize) -> Self {
        Self { segment: Arc::clone(segment), direction, lent: Vec::new(), turns: 0 }
    }

    /// Copies an array into a block and lends that; none if there is no room.
    pub(crate) fn lend(&mut self, array: &[u8]) -> Option<Block> {
        let granules = array.len().div_ceil(GRANULE);
        self.take_back();
        // The first gap that is large enough, so that the memory in use stays small, and warm.
        let (mut first, mut index) = (0, 0);
        for lent in &self.lent {
            if lent.first - first >= granules {
                break;
            }
            (first, index) = (lent.first + lent.granules, index + 1);
        }
        if first + granules > self.segment.granules() {
            return None;
        }
        self.turns += 1;
        self.lent.insert(index, Lent { first, granules, turn: self.turns });
        let start = self.segment.granules_of(self.direction);
        // SAFETY: the block ends inside the arena, as was just checked.
        let block = unsafe { start.add(first * GRANULE) };
        // A page at a time: where a long array lies otherwise to its cache lines than the block does, the
        // processor's own copy instruction, which long copies are left to, is slower by a tenth.
        for (index, page) in array.chunks(PAGE).enumerate() {
            // SAFETY: so many bytes lie there, in the block.
            let place = unsafe { block.add(index * PAGE) };
            // SAFETY: and as many as this page has. Nobody reads or writes them: they belong to no block
            // that is lent, and what was there before has been returned. `array` lies elsewhere, or in
            // a block that is lent.
            unsafe { place.as_ptr().copy_from_nonoverlapping(page.as_ptr(), page.len()) };
        }
        Some(Block { first: first as u64, turn: self.turns, bytes: array.len() as u64 })
    }

    fn take_back(&mut self) {
        let words = self.segment.returned(self.direction);
        // SYNC(arena.returned) acquire: pairs with the release in `Lease::drop`. What was read of the
        // block was read before it is written again.
        self.lent.retain(|lent| words[lent.first].load(Ordering::Acquire) != lent.turn);
    }

    /// How many blocks are lent.
    #[cfg(test)]
    pub(crate) fn lent(&mut self) -> usize {
        self.take_back();
        self.lent.len()
    }
}

/// An array that the other process sent, where it lies in shared memory. The memory is its holder's
/// until this is dropped, also when the process that sent it is gone.
///
/// Aligned to 4096 bytes; at most as many are there at a time as
/// [`Process::arena`](crate::Process::arena) has room for, and further arrays are copied instead.
pub struct Lease {
    segment: Arc<Segment>,
    direction: usize,
    first: usize,
    turn: u64,
    bytes: usize,
}

impl Lease {
    /// Of what the other side lent; once for each block.
    pub(crate) fn new(
        segment: &Arc<Segment>,
        direction: usize,
        block: Block,
    ) -> Result<Self, Broken> {
        let wrong = Broken("an array lies outside the arena");
        let first = usize::try_from(block.first).map_err(|_| wrong)?;
        let bytes = usize::try_from(block.bytes).map_err(|_| wrong)?;
        let left = segment.granules().checked_sub(first).ok_or(wrong)?;
        if bytes == 0 || bytes > left * GRANULE {
            return Err(wrong);
        }
        Ok(Self { segment: Arc::clone(segment), direction, first, turn: block.turn, bytes })
    }

    /// The first byte, for whoever holds the only reference to the lease and wants to write: the
    /// memory is shared, but nobody else uses it.
    pub fn start(&self) -> NonNull<u8> {
        let start = self.segment.granules_of(self.direction);
        // SAFETY: `new` made sure that the block lies inside the arena.
        unsafe { start.add(self.first * GRANULE) }
    }
}

impl Deref for Lease {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: so many bytes lie there, as `new` made sure, in a mapping that lives as long as
        // `self`. The sender does not write to a block that is lent: see the module.
        unsafe { std::slice::from_raw_parts(self.start().as_ptr(), self.bytes) }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let word = &self.segment.returned(self.direction)[self.first];
        // SYNC(arena.returned) release: pairs with the acquire in `Arena::take_back`. What was read of
        // the block was read before.
        word.store(self.turn, Ordering::Release);
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Lease({} bytes)", self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::segment::{FROM_CHILD, TO_CHILD};

    fn segment(granules: usize) -> Arc<Segment> {
        Segment::create(4, granules).unwrap().0
    }

    #[test]
    fn a_block_is_lent_again_once_it_was_returned_and_not_before() {
        let segment = segment(8);
        let mut arena = Arena::new(&segment, FROM_CHILD);
        let lease = |block| Lease::new(&segment, FROM_CHILD, block).unwrap();
        let three = vec![3; 3 * GRANULE];
        let [a, b] = std::array::from_fn(|_| lease(arena.lend(&three).unwrap()));
        assert!(arena.lend(&three).is_none(), "two granules are left");
        let c = lease(arena.lend(&[7; GRANULE + 1]).unwrap());
        assert!(arena.lend(&[0]).is_none());
        assert!(*a == *three && *b == *three && *c == [7; GRANULE + 1]);
        drop(b);
        let d = lease(arena.lend(&[9; 10]).unwrap());
        assert!(*a == *three && *c == [7; GRANULE + 1] && *d == [9; 10]);
        assert!(arena.lend(&three).is_none(), "two granules are left in the gap");
        drop((a, c, d));
        assert_eq!(arena.lent(), 0);
        assert!(arena.lend(&vec![1; 8 * GRANULE]).is_some());
        assert!(arena.lend(&vec![1; 8 * GRANULE]).is_none());
    }

    #[test]
    fn a_lease_outlives_whoever_sent_it() {
        let (ours, ..) = Segment::create(4, 4).unwrap();
        let file = ours.memory().file().try_clone_to_owned().unwrap();
        let (theirs, ..) = Segment::attach(crate::memory::Memory::map(file).unwrap()).unwrap();
        let block = Arena::new(&theirs, FROM_CHILD).lend(&[5; 40_000]).unwrap();
        drop(theirs);
        let lease = Lease::new(&ours, FROM_CHILD, block).unwrap();
        drop(ours);
        assert_eq!(*lease, [5; 40_000]);
    }

    #[test]
    fn a_block_outside_the_arena_is_refused() {
        let segment = segment(4);
        for (first, bytes) in [
            (4, 1),
            (0, 0),
            (0, 4 * GRANULE as u64 + 1),
            (3, GRANULE as u64 + 1),
            (u64::MAX, 1),
            (1, u64::MAX),
        ] {
            let block = Block { first, turn: 1, bytes };
            assert!(Lease::new(&segment, TO_CHILD, block).is_err(), "{block:?}");
            assert_eq!(Block::from_bytes(&block.to_bytes()), block);
        }
        assert!(Lease::new(&segment, TO_CHILD, Block { first: 3, turn: 1, bytes: 9 }).is_ok());
    }

    #[test]
    fn a_peer_that_returns_what_it_never_had_frees_nothing_twice() {
        let segment = segment(4);
        let mut arena = Arena::new(&segment, TO_CHILD);
        let blocks: Vec<Block> = (0..4).map(|_| arena.lend(&[1; GRANULE]).unwrap()).collect();
        for word in segment.returned(TO_CHILD) {
            word.store(77, Ordering::Relaxed);
        }
        assert_eq!(arena.lent(), 4, "none is returned by another turn");
        // The same one three times.
        for _ in 0..3 {
            drop(Lease::new(&segment, TO_CHILD, blocks[1]).unwrap());
        }
        assert_eq!(arena.lent(), 3);
        let again = arena.lend(&[2; GRANULE]).unwrap();
        assert_eq!((again.first, arena.lent()), (1, 4));
        drop(Lease::new(&segment, TO_CHILD, blocks[1]).unwrap());
        assert_eq!(arena.lent(), 4);
    }
}
