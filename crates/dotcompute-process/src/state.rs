//! The state of a compiled handler, in shared memory: what the last message that was acknowledged left
//! of it outlives the child, and is read meanwhile.
//!
//! The child works on a copy of its own. What it commits is a *version*: the bytes, and the position
//! of the message after which they were so. A version is written before that message is acknowledged,
//! into the oldest of a few slots; so at whatever instant a child dies, the state as of the last
//! message that it had acknowledged is in one of them, and the next child goes on from there. A
//! message is then either in the state and acknowledged, or neither.
//!
//! One writes at a time: the child, or, while there is none, the parent. Any thread of the parent reads
//! the newest version, and finds out by the slot's own number that it was overwritten meanwhile.

use std::sync::Arc;
use std::time::{Duration, Instant};

use dotcompute_core::compiled::StateSource;
use dotcompute_mailbox::sync::{AtomicU64, Ordering, fence, spin_loop};
use rustix::io;

use crate::memory::Memory;

/// How many versions there are room for: those as of the last acknowledged message, of the one before
/// the message in hand and of that one itself, and one to be written.
const SLOTS: usize = 4;
/// The words of a slot before its bytes: its version, 0 while it is written, and its position.
const HEAD: usize = 2;
/// A line for the number of the newest version.
const FIRST: usize = 16;

/// See the module.
#[derive(Debug)]
pub(crate) struct SharedState {
    memory: Memory,
    bytes: usize,
}

impl SharedState {
    /// Of a state that is so at first.
    pub(crate) fn create(initial: &[u8]) -> io::Result<Arc<Self>> {
        let words = FIRST + SLOTS * (HEAD + initial.len().div_ceil(8));
        let memory = Memory::create("dotcompute-state", words * 8)?;
        let state = Self { memory, bytes: initial.len() };
        state.commit(0, &words_of(initial));
        Ok(Arc::new(state))
    }

    /// Of a state of so many bytes, in the memory that the parent handed over.
    pub(crate) fn attach(memory: Memory, bytes: usize) -> io::Result<Self> {
        let words = FIRST + SLOTS * (HEAD + bytes.div_ceil(8));
        match memory.bytes() == words * 8 {
            true => Ok(Self { memory, bytes }),
            false => Err(io::Errno::INVAL),
        }
    }

    /// The size of the state.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn memory(&self) -> &Memory {
        &self.memory
    }

    fn words(&self) -> &[AtomicU64] {
        let start = self.memory.start().cast::<AtomicU64>();
        // SAFETY: the mapping is page-aligned and so long, lives as long as `self`, and any bytes are
        // words, which are atomics.
        unsafe { std::slice::from_raw_parts(start.as_ptr(), self.memory.bytes() / 8) }
    }

    /// The newest version, and its slot.
    fn newest(&self) -> (u64, &[AtomicU64]) {
        // SYNC(process.state) acquire: pairs with the release in `commit`. Makes visible the version.
        let version = self.words()[0].load(Ordering::Acquire);
        (version, self.slot(version))
    }

    fn slot(&self, version: u64) -> &[AtomicU64] {
        let words = HEAD + self.bytes.div_ceil(8);
        let start = FIRST + (version as usize % SLOTS) * words;
        &self.words()[start..start + words]
    }

    /// Makes these words the newest version: the state as of the message at `position`. For the one
    /// that writes.
    pub(crate) fn commit(&self, position: u64, state: &[u64]) {
        // Relaxed: the writer's own word.
        let version = self.words()[0].load(Ordering::Relaxed) + 1;
        let [number, at, words @ ..] = self.slot(version) else { return };
        // Relaxed: the fence orders it before the words.
        number.store(0, Ordering::Relaxed);
        // SYNC(process.state_slot) release: pairs with the acquire fence in `read_newest`. Whoever read a
        // word of this version finds that the number is not what it was.
        fence(Ordering::Release);
        // Relaxed, all: the number publishes them.
        at.store(position, Ordering::Relaxed);
        for (word, value) in words.iter().zip(state) {
            word.store(*value, Ordering::Relaxed);
        }
        // SYNC(process.state_slot) release: pairs with the acquire in `read_newest`. Makes visible the
        // words.
        number.store(version, Ordering::Release);
        // SYNC(process.state) release: pairs with the acquire in `newest`. Makes visible the version.
        self.words()[0].store(version, Ordering::Release);
    }

    /// Makes the state as of the message at `position` the newest version, as of none: for the parent,
    /// when the child is gone and that message is the last that it acknowledged.
    pub(crate) fn settle(&self, position: u64) {
        let (newest, _) = self.newest();
        // The newest of them that is so: a position may have been committed twice.
        let slots = (newest.saturating_sub(SLOTS as u64 - 1)..=newest).rev();
        let of = |version| {
            let slot = self.slot(version);
            // Relaxed, both: who wrote them is dead, which the parent learnt from the system.
            let is = slot[0].load(Ordering::Relaxed) == version && version > 0;
            (is && slot[1].load(Ordering::Relaxed) == position).then_some(slot)
        };
        let found = slots.filter_map(of).next();
        // A child that keeps to the protocol left it there; of another one the newest will do.
        let slot = found.unwrap_or_else(|| self.newest().1);
        // Relaxed: as above.
        let state: Vec<u64> = slot[HEAD..].iter().map(|w| w.load(Ordering::Relaxed)).collect();
        self.commit(0, &state);
    }

    /// A copy of the newest version, unless it was overwritten meanwhile.
    fn read_newest(&self) -> Option<Vec<u64>> {
        let (version, slot) = self.newest();
        let [number, _, words @ ..] = slot else { return None };
        // SYNC(process.state_slot) acquire: pairs with the release in `commit`. Makes visible the words.
        if number.load(Ordering::Acquire) != version {
            return None;
        }
        // Relaxed: checked below.
        let state = words.iter().map(|word| word.load(Ordering::Relaxed)).collect();
        // SYNC(process.state_slot) acquire: pairs with the release fence in `commit`. If one of the words
        // was of a later version, the number is not this one any more.
        fence(Ordering::Acquire);
        // Relaxed: ordered by the fence.
        (number.load(Ordering::Relaxed) == version).then_some(state)
    }

    /// The bytes of the newest version, for the child that goes on from there.
    pub(crate) fn latest(&self) -> Vec<u8> {
        self.read(Duration::ZERO).unwrap_or_default()
    }
}

impl StateSource for SharedState {
    fn read(&self, within: Duration) -> Option<Vec<u8>> {
        let deadline = Instant::now().checked_add(within);
        loop {
            if let Some(state) = self.read_newest() {
                let bytes = state.iter().flat_map(|word| word.to_ne_bytes());
                return Some(bytes.take(self.bytes).collect());
            }
            if deadline.is_some_and(|deadline| deadline <= Instant::now()) {
                return None;
            }
            spin_loop();
        }
    }
}

fn words_of(bytes: &[u8]) -> Vec<u64> {
    let word = |part: &[u8]| {
        let mut word = [0; 8];
        word[..part.len()].copy_from_slice(part);
        u64::from_ne_bytes(word)
    };
    bytes.chunks(8).map(word).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_as_of_the_last_acknowledged_message_is_what_is_left() {
        let state = SharedState::create(&[7; 12]).unwrap();
        assert_eq!(state.latest(), [7; 12]);
        for position in 1..=3 {
            state.commit(position, &[position; 2]);
        }
        assert_eq!(state.latest()[0], 3);
        state.settle(2);
        assert_eq!((state.latest()[0], state.latest().len()), (2, 12));
        // As of none now, which is where the next child begins.
        state.settle(0);
        assert_eq!(state.latest()[0], 2);
    }

    #[test]
    fn a_reader_never_sees_parts_of_two_versions() {
        let state = SharedState::create(&[0; 800]).unwrap();
        let writer = Arc::clone(&state);
        let writing = std::thread::spawn(move || {
            for position in 0..20_000 {
                writer.commit(position, &[position; 100]);
            }
        });
        let mut last = 0;
        while !writing.is_finished() {
            let Some(found) = state.read_newest() else { continue };
            assert!(found.iter().all(|word| *word == found[0]), "{found:?}");
            assert!(found[0] >= last);
            last = found[0];
        }
        writing.join().unwrap();
    }
}
