//! How long a kernel that never has a lull makes one, for its way to another kernel to change.
//!
//! For some milliseconds at most; and if they were not enough, again after [`RESPITE`] times as long, for twice
//! as long. So it spends a small part of its time on that, and keeps the way that it has for good only where
//! others keep the mailbox of the next kernel from being empty.

use std::time::{Duration, Instant};

/// How long it waits for the other kernel to work off what it has: at first, and at most.
const FIRST: Duration = Duration::from_millis(5);
const MOST: Duration = Duration::from_millis(80);

/// How often as long it goes on then before it waits again.
const RESPITE: u32 = 20;

/// See the module.
pub(super) struct Patience {
    /// How long it waits next.
    next: Duration,
    /// Until when it does now, if it does.
    until: Option<Instant>,
    /// When it may begin again.
    due: Instant,
}

impl Patience {
    /// It may begin at once, and does not wait before.
    pub(super) fn new() -> Self {
        let now = Instant::now();
        Self { next: FIRST, until: Some(now), due: now }
    }

    /// Whether it may begin to wait.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        now >= self.due
    }

    /// It begins to wait, the next time that it is asked for how long.
    pub(super) fn begin(&mut self, now: Instant) {
        self.due = now + RESPITE * self.next;
        self.until = None;
    }

    /// Whether it goes on waiting.
    pub(super) fn lasts(&mut self, now: Instant) -> bool {
        let next = &mut self.next;
        let until = *self.until.get_or_insert_with(|| {
            let until = now + *next;
            *next = MOST.min(2 * *next);
            until
        });
        now < until
    }

    /// What it waited for has come.
    pub(super) fn pays_off(&mut self) {
        self.next = FIRST;
    }
}
