//! A lock for critical sections of tens of nanoseconds.
//!
//! The standard mutex releases with an atomic exchange, so that it learns of sleepers; here that
//! would be a third of a send. This lock releases with a plain store, and looks for sleepers after
//! it, unordered: it may miss one that is just going to sleep. A sleeper therefore sleeps for
//! [`NAP`] at most before it looks again. Whoever goes to sleep has spun for far longer than any
//! critical section takes, so the holder has lost its core, and a fraction of a millisecond more is
//! small beside the time until it gets it back.

use crate::sync::{AtomicU32, Ordering, UnsafeCell, spin_loop};
use crate::sys::{self, Scope};
use std::ops::{Deref, DerefMut};
use std::time::{Duration, Instant};

const FREE: u32 = 0;
const HELD: u32 = 1;

/// Looks at a held lock before going to sleep: some microseconds.
const LOOKS: u32 = 128;

/// The longest sleep between two looks.
const NAP: Duration = Duration::from_micros(250);

pub(crate) struct Lock<T> {
    word: AtomicU32,
    /// Threads that sleep, or are about to.
    sleepers: AtomicU32,
    value: UnsafeCell<T>,
}

// SAFETY: the value is reached by one thread at a time, through the guard.
unsafe impl<T: Send> Sync for Lock<T> {}

impl<T> Lock<T> {
    pub(crate) fn new(value: T) -> Self {
        let (word, sleepers) = (AtomicU32::new(FREE), AtomicU32::new(0));
        Self { word, sleepers, value: UnsafeCell::new(value) }
    }

    #[inline]
    pub(crate) fn lock(&self) -> Guard<'_, T> {
        if !self.try_acquire() {
            self.acquire_slowly();
        }
        Guard { lock: self }
    }

    #[inline]
    fn try_acquire(&self) -> bool {
        // SYNC(lock.hold) acquire: pairs with the release in `Guard::drop`. Makes visible what the
        // last holder did.
        self.word.swap(HELD, Ordering::Acquire) == FREE
    }

    #[cold]
    fn acquire_slowly(&self) {
        for _ in 0..LOOKS {
            spin_loop();
            // Relaxed: only a reason to try.
            if self.word.load(Ordering::Relaxed) == FREE && self.try_acquire() {
                return;
            }
        }
        // Relaxed: a hint for the holder, which may miss it (see the module).
        self.sleepers.fetch_add(1, Ordering::Relaxed);
        while !self.try_acquire() {
            let deadline = Instant::now() + NAP;
            sys::futex_wait(&self.word, HELD, Some(deadline), Scope::Process);
        }
        // Relaxed: as above.
        self.sleepers.fetch_sub(1, Ordering::Relaxed);
    }
}

pub(crate) struct Guard<'a, T> {
    lock: &'a Lock<T>,
}

impl<T> Deref for Guard<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: the guard holds the lock, and is borrowed.
        self.lock.value.with(|value| unsafe { &*value })
    }
}

impl<T> DerefMut for Guard<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: the guard holds the lock, and is borrowed exclusively.
        self.lock.value.with_mut(|value| unsafe { &mut *value })
    }
}

impl<T> Drop for Guard<'_, T> {
    #[inline]
    fn drop(&mut self) {
        // SYNC(lock.hold) release: pairs with the acquire in `try_acquire`. Makes visible what was
        // done under the lock.
        self.lock.word.store(FREE, Ordering::Release);
        // Relaxed: a hint (see the module).
        if self.lock.sleepers.load(Ordering::Relaxed) != 0 {
            sys::futex_wake(&self.lock.word, Scope::Process);
        }
    }
}
