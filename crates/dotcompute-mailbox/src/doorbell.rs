//! A doorbell in memory that several processes map: one owner sleeps on it, anyone may ring it.
//!
//! Where one thread waits for several things at once (two rings, wakers, the death of a process)
//! each of them rings the same bell. The bell carries no news: whoever has some publishes it
//! first, and the owner looks for itself.
//!
//! Between processes of one machine only: unlike those of rings, its words are read-modify-written
//! by several sides, which no device could do.
//!
//! # Edges
//!
//! | name | release | acquire | makes visible |
//! |---|---|---|---|
//! | `doorbell.news` | fence in `ring` | fence in `wait` | either the news, or that the owner sleeps |
//! | `doorbell.rung` | `ring`, `rings` | `wait`, `rings` | the news that the bell was rung for |

use crate::sync::{AtomicU32, Ordering, fence};
use crate::sys::{self, Scope};
use crate::wait::{Idle, Spin, cpu_mark, same_cpu};
use std::time::Instant;

/// See the module. Zeroed memory is a doorbell that nobody has rung.
#[derive(Debug, Default)]
#[repr(C, align(64))]
pub struct Doorbell {
    /// How often it was rung while the owner slept. The owner sleeps on it.
    rings: AtomicU32,
    /// 1 while the owner sleeps or is about to.
    asleep: AtomicU32,
    /// The CPU from which it was last rung, plus one. A hint.
    cpu: AtomicU32,
}

/// How the owner of a [`Doorbell`] waits: it learns how long spinning is worth its while.
#[derive(Debug, Default)]
pub struct Waiting {
    spin: Spin,
}

impl Doorbell {
    /// Wakes the owner, if it sleeps. Call after publishing the news.
    #[inline]
    pub fn ring(&self) {
        // SYNC(doorbell.news) SeqCst: the store-load race. We stored the news and now load
        // `asleep`; the owner stores `asleep` and then looks for news. Of the two fences one comes
        // first: if ours, the owner's look finds the news; if the owner's, we see that it sleeps.
        fence(Ordering::SeqCst);
        // Relaxed: ordered by the fence.
        if self.asleep.load(Ordering::Relaxed) != 0 {
            self.wake();
        }
    }

    #[cold]
    fn wake(&self) {
        // Relaxed: only so that one of several ringers makes the system call.
        if self.asleep.swap(0, Ordering::Relaxed) != 0 {
            self.ring_always();
        }
    }

    /// Wakes the owner although it may have been rung before: for whoever learnt that another
    /// ringer died, perhaps between taking the task to wake the owner upon itself and doing so.
    pub fn ring_always(&self) {
        // Relaxed: a hint.
        self.cpu.store(cpu_mark(), Ordering::Relaxed);
        // SYNC(doorbell.rung) release: pairs with the acquire in `wait`. Makes visible the news.
        self.rings.fetch_add(1, Ordering::Release);
        sys::futex_wake(&self.rings, Scope::Machine);
    }

    /// For the owner alone: waits until `ready`, which looks for news, says so; false if `deadline`
    /// passed first. Spins about as long as the last waits made worthwhile, then sleeps.
    pub fn wait(
        &self,
        waiting: &mut Waiting,
        deadline: Option<Instant>,
        mut ready: impl FnMut() -> bool,
    ) -> bool {
        // Relaxed: a hint. On the core from which we were last woken, only sleeping lets the
        // other side run.
        if !same_cpu(self.cpu.load(Ordering::Relaxed)) && waiting.spin.until(&mut ready) {
            return true;
        }
        loop {
            // SYNC(doorbell.rung) acquire: pairs with the release in `wake`. Makes visible the news
            // that the bell was rung for.
            let rings = self.rings.load(Ordering::Acquire);
            // Relaxed: ordered by the fence.
            self.asleep.store(1, Ordering::Relaxed);
            // SYNC(doorbell.news) SeqCst: see `ring`. After it, either `ready` finds the news or the
            // ringer sees that we sleep.
            fence(Ordering::SeqCst);
            let is_ready = ready();
            if is_ready || deadline.is_some_and(|deadline| deadline <= Instant::now()) {
                // Relaxed: a ringer that still sees 1 rings in vain.
                self.asleep.store(0, Ordering::Relaxed);
                return is_ready;
            }
            let _idle = Idle::begin();
            sys::futex_wait(&self.rings, rings, deadline, Scope::Machine);
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::sync::AtomicU64;
    use std::sync::Arc;
    use std::time::Duration;

    #[test]
    fn no_ring_is_lost() {
        let shared = Arc::new((Doorbell::default(), Doorbell::default(), AtomicU64::new(0)));
        const TURNS: u64 = 20_000;
        let peer = Arc::clone(&shared);
        let turn = |number: u64, shared: &(Doorbell, Doorbell, AtomicU64)| {
            // Relaxed: the number is the only news.
            shared.2.load(Ordering::Relaxed) == number
        };
        let thread = std::thread::spawn(move || {
            let mut waiting = Waiting::default();
            for number in (1..TURNS).step_by(2) {
                assert!(peer.1.wait(&mut waiting, None, || turn(number, &peer)));
                peer.2.store(number + 1, Ordering::Relaxed);
                peer.0.ring();
            }
        });
        let mut waiting = Waiting::default();
        for number in (0..TURNS).step_by(2) {
            assert!(shared.0.wait(&mut waiting, None, || turn(number, &shared)));
            shared.2.store(number + 1, Ordering::Relaxed);
            shared.1.ring();
        }
        thread.join().unwrap();
    }

    #[test]
    fn a_wait_ends_at_its_deadline() {
        let (bell, start) = (Doorbell::default(), Instant::now());
        let pause = Duration::from_millis(5);
        assert!(!bell.wait(&mut Waiting::default(), Some(start + pause), || false));
        assert!(start.elapsed() >= pause);
    }
}
