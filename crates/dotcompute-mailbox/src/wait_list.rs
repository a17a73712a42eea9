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

/// Lines of waiters, the first line to be served first. It has memory once somebody has waited:
/// entries are kept and used again, and once the list has grown to the most that ever waited at a
/// time, nothing is allocated.
pub(crate) struct WaitList<P, const LINES: usize>(Option<Box<Lines<P, LINES>>>);

struct Lines<P, const LINES: usize> {
    waiting: usize,
    lines: [Line; LINES],
    entries: Vec<Entry<P>>,
    vacant: Vec<u32>,
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
        Self(None)
    }

    /// How many wait and have not been served.
    #[inline]
    pub(crate) fn waiting(&self) -> usize {
        self.0.as_ref().map_or(0, |lines| lines.waiting)
    }

    pub(crate) fn memory_bytes(&self) -> usize {
        self.0.as_ref().map_or(0, |lines| {
            size_of::<Lines<P, LINES>>()
                + lines.entries.capacity() * size_of::<Entry<P>>()
                + lines.vacant.capacity() * size_of::<u32>()
        })
    }

    fn lines(&mut self) -> &mut Lines<P, LINES> {
        self.0.get_or_insert_with(|| Box::new(Lines::new()))
    }

    fn entry(&mut self, key: Key) -> &mut Entry<P> {
        &mut self.lines().entries[key.0 as usize]
    }

    /// Adds an entry at the end of `line`.
    pub(crate) fn add(&mut self, line: usize, payload: P, waker: Waker) -> Key {
        self.lines().add(line, payload, waker)
    }

    /// Lines a served entry up again, at the end of its line.
    pub(crate) fn rejoin(&mut self, key: Key) {
        if self.is_served(key) {
            self.lines().link(key.0);
        }
    }

    /// Whether the entry has been served.
    pub(crate) fn is_served(&mut self, key: Key) -> bool {
        !self.entry(key).waiting
    }

    /// Has the entry wake `context`'s task from now on. Gives the waker back that this replaces,
    /// for the caller to drop when the lock is released.
    #[must_use]
    pub(crate) fn set_waker(&mut self, key: Key, context: &Context<'_>) -> Option<Waker> {
        renew(&mut self.entry(key).waker, context)
    }

    /// Serves the first entry of the first line that has one: its number and waker.
    pub(crate) fn serve(&mut self) -> Option<(Key, Option<Waker>)> {
        self.0.as_mut()?.serve()
    }

    /// The line and payload of a served entry; the payload only once.
    pub(crate) fn take_payload(&mut self, key: Key) -> (usize, Option<P>) {
        let entry = self.entry(key);
        (usize::from(entry.line), entry.payload.take())
    }

    /// What the entries carry, in no order.
    pub(crate) fn payloads(&self) -> impl Iterator<Item = &P> {
        self.0.iter().flat_map(|lines| &lines.entries).filter_map(|entry| entry.payload.as_ref())
    }

    /// Ends an entry, served or not: what is left of it, for the caller to use or to drop when the
    /// lock is released.
    pub(crate) fn remove(&mut self, key: Key) -> (Option<P>, Option<Waker>) {
        let lines = self.lines();
        if lines.entries[key.0 as usize].waiting {
            lines.unlink(key.0);
        }
        lines.vacant.push(key.0);
        let entry = &mut lines.entries[key.0 as usize];
        (entry.payload.take(), entry.waker.take())
    }
}

/// Puts the waker of `context`'s task into `known`, unless that would wake it already. Gives the
/// waker back that this replaces.
#[inline]
pub(crate) fn renew(known: &mut Option<Waker>, context: &Context<'_>) -> Option<Waker> {
    match known {
        Some(known) if known.will_wake(context.waker()) => None,
        _ => known.replace(context.waker().clone()),
    }
}

impl<P, const LINES: usize> Lines<P, LINES> {
    fn new() -> Self {
        let lines = [Line { first: NIL, last: NIL }; LINES];
        Self { waiting: 0, lines, entries: Vec::new(), vacant: Vec::new() }
    }

    fn add(&mut self, line: usize, payload: P, waker: Waker) -> Key {
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

    fn serve(&mut self) -> Option<(Key, Option<Waker>)> {
        if self.waiting == 0 {
            return None;
        }
        let key = self.lines.iter().map(|line| line.first).find(|&first| first != NIL)?;
        self.unlink(key);
        Some((Key(key), self.entries[key as usize].waker.take()))
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
    others: Option<Box<Others>>,
    /// A waker that is not needed any more. Dropping it is foreign code too.
    stale: Option<Waker>,
}

#[derive(Default)]
struct Others(VecDeque<Waker>);

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
            (Some(waker), Some(_)) => self.others.get_or_insert_default().0.push_back(waker),
        }
    }
}

impl Drop for Wakes {
    /// Should the waker panic, unwinding drops the others, and thereby wakes them.
    #[inline]
    fn drop(&mut self) {
        if let Some(first) = self.first.take() {
            first.wake();
        }
    }
}

impl Drop for Others {
    /// Should a waker panic, unwinding goes on with the rest; should one of these panic too, that
    /// aborts, as any panic during unwinding does.
    fn drop(&mut self) {
        while let Some(waker) = self.0.pop_front() {
            let rest = Others(std::mem::take(&mut self.0));
            waker.wake();
            self.0 = rest.keep();
        }
    }
}

impl Others {
    fn keep(mut self) -> VecDeque<Waker> {
        std::mem::take(&mut self.0)
    }
}
