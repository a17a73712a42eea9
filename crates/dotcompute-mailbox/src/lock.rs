//! A lock for critical sections of tens of nanoseconds.
//!
//! The standard mutex releases with an atomic exchange, so that it learns of sleepers; here that
//! would be a third of a send. This lock releases with a plain store, and looks for sleepers after
//! it, unordered: it may miss one that is just going to sleep. A sleeper therefore sleeps for
//! [`NAP`] at most before it looks again. Whoever goes to sleep has spun for far longer than any
//! critical section takes, so the holder has lost its core, and a fraction of a millisecond more is
//! small beside the time until it gets it back.

use crate::sync::{AtomicBool, AtomicU32, Ordering, UnsafeCell, spin_loop};
use crate::sys::{self, Scope};
use std::fmt;
use std::ops::{Deref, DerefMut};
#[cfg(not(loom))]
use std::time::{Duration, Instant};

const FREE: u32 = 0;
const HELD: u32 = 1;

/// Spins before the first looks at a held lock. They are long on purpose. Who holds the lock will
/// often want it again at once, and while it alone does, what the lock guards stays in its core's
/// cache: two threads that take turns for every message are several times slower than two that take
/// turns for every dozen.
const PAUSES: [u32; 5] = [16, 32, 32, 32, 32];
/// Looks after those, with [`PAUSE`] before each. They are many: a thread that takes the lock again
/// and again leaves it free for moments only, and some looks in a row may well miss them all.
const LOOKS: usize = 24;
const PAUSE: u32 = 16;
/// Then the holder has probably lost its core, perhaps to us: how often it is let run before a nap.
const YIELDS: usize = 16;
/// Looks after each of these.
const LOOKS_PER_YIELD: usize = 8;

/// The longest sleep between two looks.
#[cfg(not(loom))]
const NAP: Duration = Duration::from_micros(250);

/// A lock for critical sections of tens of nanoseconds, for where the standard mutex would be most of
/// what a message costs. Whoever waits for it spins, yields and naps; so nothing that waits, and no
/// code of a user, may run under it. A panic of its holder releases it.
///
/// ```
/// use dotcompute_mailbox::sync::Lock;
///
/// let counter = Lock::new(0);
/// *counter.lock() += 1;
/// assert_eq!(*counter.lock(), 1);
/// ```
#[repr(C)]
pub struct Lock<T> {
    word: AtomicU32,
    /// Whether threads sleep, or are about to, that nobody has woken yet.
    has_sleepers: AtomicBool,
    value: UnsafeCell<T>,
}

// SAFETY: the value is reached by one thread at a time, through the guard.
unsafe impl<T: Send> Sync for Lock<T> {}

impl<T> Lock<T> {
    /// A free lock around `value`.
    pub fn new(value: T) -> Self {
        let (word, has_sleepers) = (AtomicU32::new(FREE), AtomicBool::new(false));
        Self { word, has_sleepers, value: UnsafeCell::new(value) }
    }

    /// Waits for the lock and takes it until the guard is dropped.
    #[inline]
    pub fn lock(&self) -> Guard<'_, T> {
        if !self.try_acquire() {
            self.acquire_slowly();
        }
        Guard { lock: self }
    }

    #[inline]
    fn try_acquire(&self) -> bool {
        // SYNC(lock.hold) acquire: pairs with the release in `Guard::drop`. Makes visible what the
        // last holder did. Failure is Relaxed: nothing was acquired.
        let taken = self.word.compare_exchange(FREE, HELD, Ordering::Acquire, Ordering::Relaxed);
        taken.is_ok()
    }

    #[cold]
    fn acquire_slowly(&self) {
        // A model checker explores every look: there only naps are left.
        if !cfg!(loom) && self.acquire_awake() {
            return;
        }
        while !self.try_acquire() {
            // Relaxed: a hint for the holder, which may miss it (see the module).
            self.has_sleepers.store(true, Ordering::Relaxed);
            nap(&self.word);
        }
    }

    /// Tries for longer than any critical section takes.
    fn acquire_awake(&self) -> bool {
        PAUSES.into_iter().chain([PAUSE; LOOKS]).any(|pauses| self.look_after(pauses))
            || (0..YIELDS).any(|_| {
                std::thread::yield_now();
                [PAUSE; LOOKS_PER_YIELD].into_iter().any(|pauses| self.look_after(pauses))
            })
    }

    fn look_after(&self, pauses: u32) -> bool {
        for _ in 0..pauses {
            spin_loop();
        }
        // Relaxed: only a reason to try.
        self.word.load(Ordering::Relaxed) == FREE && self.try_acquire()
    }

    #[cold]
    fn wake_sleepers(&self) {
        // Relaxed: a hint. Cleared at once, for it takes long until who was woken runs, and until
        // then every release would make this system call.
        self.has_sleepers.store(false, Ordering::Relaxed);
        sys::futex_wake(&self.word, Scope::Process);
    }
}

/// Sleeps while `word` says held, at most for [`NAP`].
#[cfg(not(loom))]
fn nap(word: &AtomicU32) {
    sys::futex_wait(word, HELD, Some(Instant::now() + NAP), Scope::Process);
}

/// The model checker knows no time: there a nap ends whenever another thread has run.
#[cfg(loom)]
fn nap(_word: &AtomicU32) {
    loom::thread::yield_now();
}

impl<T> fmt::Debug for Lock<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lock").finish_non_exhaustive()
    }
}

/// Holds a [`Lock`] until it is dropped.
#[must_use = "the lock is released when the guard is dropped"]
pub struct Guard<'a, T> {
    lock: &'a Lock<T>,
}

impl<T> fmt::Debug for Guard<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guard").finish_non_exhaustive()
    }
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
        if self.lock.has_sleepers.load(Ordering::Relaxed) {
            self.lock.wake_sleepers();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sync::Arc;

    /// Two threads add up: no addition is lost, and none sees half of another.
    fn add_up(threads: u64, rounds: u64, spawn: fn(Box<dyn FnOnce() + Send>) -> Join) {
        let shared = Arc::new(Lock::new((0, 0)));
        let joins: Vec<Join> = (0..threads)
            .map(|_| {
                let shared = Arc::clone(&shared);
                spawn(Box::new(move || {
                    for _ in 0..rounds {
                        let mut pair = shared.lock();
                        assert_eq!(pair.0, pair.1);
                        pair.0 += 1;
                        pair.1 += 1;
                    }
                }))
            })
            .collect();
        joins.into_iter().for_each(|join| join());
        assert_eq!(*shared.lock(), (threads * rounds, threads * rounds));
    }

    type Join = Box<dyn FnOnce()>;

    #[cfg(not(loom))]
    #[test]
    fn holders_exclude_each_other() {
        add_up(8, if cfg!(miri) { 10 } else { 10_000 }, |run| {
            let thread = std::thread::spawn(run);
            Box::new(|| thread.join().unwrap())
        });
    }

    #[cfg(loom)]
    #[test]
    fn loom_holders_exclude_each_other() {
        loom::model(|| {
            add_up(2, 1, |run| {
                let thread = loom::thread::spawn(run);
                Box::new(|| thread.join().unwrap())
            });
        });
    }
}
