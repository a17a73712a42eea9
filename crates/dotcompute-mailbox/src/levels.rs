//! The levels inside a band, in a mailbox that serves more urgent messages first there too.
//!
//! The messages of a band lie in one chain, in the order of their levels; of each level its last
//! slot is known, so that none of the steps is longer for a longer queue. All of it happens under
//! the lock: such a mailbox lends its inbox no window.

use crate::bands::{Chain, PASSED_OVER_MAX, SlotPtr};

/// The levels of one band that have messages.
pub(crate) struct Levels<T> {
    /// The most urgent first.
    runs: Vec<Run<T>>,
    /// Deliveries of the most urgent level in a row, while others wait.
    passed_over: u64,
    /// The level, by its place, that last had a turn for having been passed over.
    turn: usize,
}

/// The messages of one level, which follow each other in the chain.
struct Run<T> {
    level: u8,
    last: SlotPtr<T>,
}

impl<T> Levels<T> {
    pub(crate) const fn new() -> Self {
        Self { runs: Vec::new(), passed_over: 0, turn: 0 }
    }

    /// Puts a slot into the chain: behind the others of its level, or before them.
    pub(crate) fn insert(
        &mut self,
        chain: &mut Chain<T>,
        level: u8,
        slot: SlotPtr<T>,
        at_front: bool,
    ) {
        let at = self.runs.partition_point(|run| run.level > level);
        let before = at.checked_sub(1).map(|at| self.runs[at].last);
        match self.runs.get_mut(at).filter(|run| run.level == level) {
            Some(_) if at_front => chain.insert_after(before, slot),
            Some(run) => {
                chain.insert_after(Some(run.last), slot);
                run.last = slot;
            }
            None => {
                chain.insert_after(before, slot);
                self.runs.insert(at, Run { level, last: slot });
            }
        }
    }

    /// Takes the next slot to be delivered out of the chain: the first of the most urgent level, or,
    /// once that had so many turns in a row, of one of the others, each in its turn.
    pub(crate) fn next(&mut self, chain: &mut Chain<T>) -> Option<SlotPtr<T>> {
        let others = self.runs.len().checked_sub(1)?;
        if others == 0 {
            self.passed_over = 0;
            return self.remove(chain, 0);
        }
        if self.passed_over < PASSED_OVER_MAX {
            self.passed_over += 1;
            return self.remove(chain, 0);
        }
        self.passed_over = 0;
        self.turn = self.turn % others + 1;
        self.remove(chain, self.turn)
    }

    /// Takes the first slot of the most urgent level out of the chain.
    pub(crate) fn first(&mut self, chain: &mut Chain<T>) -> Option<SlotPtr<T>> {
        self.remove(chain, 0)
    }

    /// Takes the first slot of the least urgent level out of the chain.
    pub(crate) fn oldest_of_last(&mut self, chain: &mut Chain<T>) -> Option<SlotPtr<T>> {
        self.remove(chain, self.runs.len().checked_sub(1)?)
    }

    fn remove(&mut self, chain: &mut Chain<T>, at: usize) -> Option<SlotPtr<T>> {
        let last = self.runs.get(at)?.last;
        let before = at.checked_sub(1).map(|at| self.runs[at].last);
        let slot = chain.remove_after(before)?;
        if slot == last {
            self.runs.remove(at);
        }
        Some(slot)
    }
}
