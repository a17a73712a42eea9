//! Who waits for a mailbox, in the order in which they came.
//!
//! Plain data under the mailbox's lock. An entry belongs to the future that added it, which alone
//! removes it. Meanwhile the mailbox may *serve* it: take it out of the line and wake its owner.

use std::collections::VecDeque;
use std::task::{Context, Waker};

/// Names one entry; valid until its owner removes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Key(u32);

/// "No entry" in a link.
const NIL: u32 = u32::MAX;

/// Lines of waiters, the first line to be served first. Entries are kept and used again: once the
/// list has grown to the most that ever waited at a time, nothing is allocated.
pub(crate) struct WaitList<P, const LINES: usize> {
    entries: Vec<Entry<P>>,
    vacant: Vec<u32>,
    lines: [Line; LINES],
    waiting: usize,
}

struct Entry<P> {
    line: u8,
    /// In its line; false once served.
    waiting: bool,
    previous: u32,
    next: u32,
    waker: Option<Waker>,
    payload: Option<P>,
}

#[derive(Clone, Copy)]
struct Line {
    first: u32,
    last: u32,
}

impl<P, const LINES: usize> WaitList<P, LINES> {
    pub(crate) const fn new() -> Self {
        let lines = [Line { first: NIL, last: NIL }; LINES];
        Self { entries: Vec::new(), vacant: Vec::new(), lines, waiting: 0 }
    }

    /// How many wait and have not been served.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting
    }

    pub(crate) fn memory_bytes(&self) -> usize {
        self.entries.capacity() * size_of::<Entry<P>>() + self.vacant.capacity() * size_of::<u32>()
    }

    /// Adds an entry at the end of `line`.
    pub(crate) fn add(&mut self, line: usize, payload: P, waker: Waker) -> Key {
        assert!(line < LINES, "line {line} should be < {LINES}");
        let entry = Entry {
            line: line as u8,
            waiting: false,
            previous: NIL,
            next: NIL,
            waker: Some(waker),
            payload: Some(payload),
        };
        let key = match self.vacant.pop() {
            Some(key) => {
                self.entries[key as usize] = entry;
                key
            }
            None => {
                self.entries.push(entry);
                (self.entries.len() - 1) as u32
            }
        };
        self.link(key);
        Key(key)
    }

    /// Lines a served entry up again, at the end of its line.
    pub(crate) fn rejoin(&mut self, key: Key) {
        if !self.entries[key.0 as usize].waiting {
            self.link(key.0);
        }
    }

    /// Whether the entry has been served.
    pub(crate) fn is_served(&self, key: Key) -> bool {
        !self.entries[key.0 as usize].waiting
    }

    /// Has the entry wake `context`'s task from now on. Gives the waker back that this replaces,
    /// for the caller to drop when the lock is released.
    #[must_use]
    pub(crate) fn set_waker(&mut self, key: Key, context: &Context<'_>) -> Option<Waker> {
        let waker = &mut self.entries[key.0 as usize].waker;
        match waker {
            Some(waker) if waker.will_wake(context.waker()) => None,
            _ => waker.replace(context.waker().clone()),
        }
    }

    /// Serves the first entry of the first line that has one: its number and waker.
    pub(crate) fn serve(&mut self) -> Option<(Key, Option<Waker>)> {
        if self.waiting == 0 {
            return None;
        }
        let key = self.lines.iter().map(|line| line.first).find(|&first| first != NIL)?;
        self.unlink(key);
        Some((Key(key), self.entries[key as usize].waker.take()))
    }

    /// The line and payload of a served entry; the payload only once.
    pub(crate) fn take_payload(&mut self, key: Key) -> (usize, Option<P>) {
        let entry = &mut self.entries[key.0 as usize];
        (usize::from(entry.line), entry.payload.take())
    }

    /// Ends an entry, served or not: what is left of it, for the caller to use or to drop when the
    /// lock is released.
    pub(crate) fn remove(&mut self, key: Key) -> (Option<P>, Option<Waker>) {
        if self.entries[key.0 as usize].waiting {
            self.unlink(key.0);
        }
        self.vacant.push(key.0);
        let entry = &mut self.entries[key.0 as usize];
        (entry.payload.take(), entry.waker.take())
    }

    fn link(&mut self, key: u32) {
        let line = usize::from(self.entries[key as usize].line);
        let last = std::mem::replace(&mut self.lines[line].last, key);
        match last {
            NIL => self.lines[line].first = key,
            last => self.entries[last as usize].next = key,
        }
        let entry = &mut self.entries[key as usize];
        (entry.previous, entry.next, entry.waiting) = (last, NIL, true);
        self.waiting += 1;
    }

    fn unlink(&mut self, key: u32) {
        let entry = &mut self.entries[key as usize];
        let (previous, next, line) = (entry.previous, entry.next, usize::from(entry.line));
        entry.waiting = false;
        match previous {
            NIL => self.lines[line].first = next,
            previous => self.entries[previous as usize].next = next,
        }
        match next {
            NIL => self.lines[line].last = previous,
            next => self.entries[next as usize].previous = previous,
        }
        self.waiting -= 1;
    }
}

/// What one critical section leaves to be done: wakers to wake. Dropping this does it; declared
/// before the lock is taken, it is dropped after the lock is released, so that no foreign code runs
/// under the lock.
#[derive(Default)]
pub(crate) struct Wakes {
    first: Option<Waker>,
    /// Boxed because it is rare: almost always there is one waker at most.
    #[expect(clippy::box_collection, reason = "a word instead of four in what each call makes")]
    others: Option<Box<VecDeque<Waker>>>,
    /// A waker that is not needed any more. Dropping it is foreign code too.
    stale: Option<Waker>,
}

impl Wakes {
    /// Drops `waker` later, without waking it.
    pub(crate) fn discard(&mut self, waker: Option<Waker>) {
        debug_assert!(self.stale.is_none(), "a critical section ends one wait at most");
        self.stale = waker;
    }

    pub(crate) fn push(&mut self, waker: Option<Waker>) {
        match (waker, &self.first) {
            (None, _) => {}
            (waker, None) => self.first = waker,
            (Some(waker), Some(_)) => self.others.get_or_insert_default().push_back(waker),
        }
    }

    /// Wakes them all, even if one of them panics: then unwinding goes on with the others. (If a
    /// second one panics, that aborts, as any panic during unwinding does.)
    #[cold]
    fn wake(first: Waker, others: &mut VecDeque<Waker>) {
        struct Others<'a>(&'a mut VecDeque<Waker>);
        impl Drop for Others<'_> {
            fn drop(&mut self) {
                if let Some(next) = self.0.pop_front() {
                    Wakes::wake(next, self.0);
                }
            }
        }
        let mut next = Some(first);
        while let Some(waker) = next {
            let others = Others(others);
            waker.wake();
            next = others.0.pop_front();
            std::mem::forget(others);
        }
    }
}

impl Drop for Wakes {
    #[inline]
    fn drop(&mut self) {
        if let Some(first) = self.first.take() {
            match &mut self.others {
                None => first.wake(),
                Some(others) => Self::wake(first, others),
            }
        }
    }
}
