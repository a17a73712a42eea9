//! A doorbell in memory that several processes map: one owner sleeps on it, anyone may ring it. While
//! the owner sleeps a guest may take its place.
//!
//! Where one thread waits for several things at once (two rings, wakers, the death of a process)
//! each of them rings the same bell. The bell carries no news: whoever has some publishes it
//! first, and the owner looks for itself.
//!
//! Who is *in* looks for news: the owner, or a guest; which of them may be in is a matter of a lock
//! that they share. An owner that [goes](Doorbell::go) sleeps until a ring that nobody was in for. A
//! guest that comes meanwhile finds it asleep, and leaves it so if it leaves no news behind.
//!
//! Between processes of one machine only: unlike those of rings, its words are read-modify-written
//! by several sides, which no device could do.
//!
//! # Edges
//!
//! | name | release | acquire | makes visible |
//! |---|---|---|---|
//! | `doorbell.news` | fence in `ring` | fence in `wait_as`, `go` | either the news, or that somebody sleeps |
//! | `doorbell.rung` | `ring_for`, `rings` | `wait_as`, `go`, `sleep`, `rings` | the news that the bell was rung for |

use crate::sync::{AtomicU32, Ordering, fence};
use crate::sys::{self, Scope};
use crate::wait::{Idle, Spin, cpu_mark, same_cpu};
use std::time::Instant;

/// Whoever is in is awake, and looks for news.
const AWAKE: u32 = 0;
/// Nobody is in; the owner sleeps or is about to.
const OWNER_SLEEPS: u32 = 1;
/// A guest is in and sleeps or is about to.
const GUEST_SLEEPS: u32 = 2;

/// See the module. Zeroed memory is a doorbell that nobody has rung.
#[derive(Debug, Default)]
#[repr(C, align(64))]
pub struct Doorbell {
    /// How often it was rung while the owner slept. The owner sleeps on it.
    rings: AtomicU32,
    /// Who sleeps.
    asleep: AtomicU32,
    /// As `rings`, for the guest.
    guest_rings: AtomicU32,
    /// The CPU from which it was last rung, plus one. A hint.
    cpu: AtomicU32,
}

/// How the owner of a [`Doorbell`] waits: it learns how long spinning is worth its while.
#[derive(Debug, Default)]
pub struct Waiting {
    spin: Spin,
}

impl Doorbell {
    /// Wakes whoever sleeps. Call after publishing the news.
    #[inline]
    pub fn ring(&self) {
        // SYNC(doorbell.news) SeqCst: the store-load race. We stored the news and now load
        // `asleep`; a sleeper stores `asleep` and then looks for news. Of the two fences one comes
        // first: if ours, the sleeper's look finds the news; if the sleeper's, we see that it sleeps.
        fence(Ordering::SeqCst);
        // Relaxed: ordered by the fence.
        if self.asleep.load(Ordering::Relaxed) != AWAKE {
            self.wake();
        }
    }

    #[cold]
    fn wake(&self) {
        // Relaxed: only so that one of several ringers makes the system call.
        match self.asleep.swap(AWAKE, Ordering::Relaxed) {
            AWAKE => {}
            OWNER_SLEEPS => self.ring_for(&self.rings),
            _ => self.ring_for(&self.guest_rings),
        }
    }

    /// Wakes owner and guest although they may have been rung for before: for whoever learnt that
    /// another ringer died, perhaps between taking the task to wake upon itself and doing so.
    pub fn ring_always(&self) {
        self.ring_for(&self.rings);
        self.ring_for(&self.guest_rings);
    }

    fn ring_for(&self, rings: &AtomicU32) {
        // Relaxed: a hint.
        self.cpu.store(cpu_mark(), Ordering::Relaxed);
        // SYNC(doorbell.rung) release: pairs with the acquires in `wait_as`, `go` and `sleep`. Makes
        // visible the news.
        rings.fetch_add(1, Ordering::Release);
        sys::futex_wake(rings, Scope::Machine);
    }

    /// For the owner alone: waits until `ready`, which looks for news, says so; false if `deadline`
    /// passed first. Spins about as long as the last waits made worthwhile, then sleeps.
    pub fn wait(
        &self,
        waiting: &mut Waiting,
        deadline: Option<Instant>,
        ready: impl FnMut() -> bool,
    ) -> bool {
        self.wait_as(OWNER_SLEEPS, &self.rings, waiting, deadline, ready)
    }

    /// [`wait`](Self::wait) for the guest that is in.
    pub fn wait_as_guest(
        &self,
        waiting: &mut Waiting,
        deadline: Option<Instant>,
        ready: impl FnMut() -> bool,
    ) -> bool {
        self.wait_as(GUEST_SLEEPS, &self.guest_rings, waiting, deadline, ready)
    }

    fn wait_as(
        &self,
        sleeper: u32,
        rings: &AtomicU32,
        waiting: &mut Waiting,
        deadline: Option<Instant>,
        mut ready: impl FnMut() -> bool,
    ) -> bool {
        if self.spin(waiting, &mut ready) {
            return true;
        }
        loop {
            // SYNC(doorbell.rung) acquire: pairs with the release in `ring_for`. Makes visible the news
            // that the bell was rung for.
            let seen = rings.load(Ordering::Acquire);
            // Relaxed: ordered by the fence.
            self.asleep.store(sleeper, Ordering::Relaxed);
            // SYNC(doorbell.news) SeqCst: see `ring`. After it, either `ready` finds the news or the
            // ringer sees that we sleep.
            fence(Ordering::SeqCst);
            let is_ready = ready();
            if is_ready || deadline.is_some_and(|deadline| deadline <= Instant::now()) {
                // Relaxed: a ringer that still sees the sleeper rings in vain.
                self.asleep.store(AWAKE, Ordering::Relaxed);
                return is_ready;
            }
            let _idle = Idle::begin();
            sys::futex_wait(rings, seen, deadline, Scope::Machine);
        }
    }

    /// For whoever is in: spins until `ready`, about as long as the last waits made worthwhile; false if
    /// that was not enough.
    pub fn spin(&self, waiting: &mut Waiting, ready: impl FnMut() -> bool) -> bool {
        // Relaxed: a hint. On the core from which we were last woken, only sleeping lets the
        // other side run.
        !same_cpu(self.cpu.load(Ordering::Relaxed)) && waiting.spin.until(ready)
    }

    /// For an owner or a guest that holds the lock by which they take turns: it is in, and must look for
    /// news before it waits or goes.
    pub fn enter(&self) {
        // Relaxed: a ringer that still sees a sleeper wakes the owner in vain; one that sees none has
        // its news found by the look before the next sleep.
        self.asleep.store(AWAKE, Ordering::Relaxed);
    }

    /// For whoever is in: nobody is any more, and the next ring wakes the owner; what the owner then
    /// [sleeps](Self::sleep) on. `None`: there is news, and it is in still.
    pub fn go(&self, mut ready: impl FnMut() -> bool) -> Option<Rings> {
        // SYNC(doorbell.rung) acquire: as in `wait_as`.
        let seen = self.rings.load(Ordering::Acquire);
        // Relaxed: ordered by the fence.
        self.asleep.store(OWNER_SLEEPS, Ordering::Relaxed);
        // SYNC(doorbell.news) SeqCst: as in `wait_as`.
        fence(Ordering::SeqCst);
        if ready() {
            // Relaxed: a ringer that was faster wakes the owner in vain.
            self.asleep.store(AWAKE, Ordering::Relaxed);
            return None;
        }
        Some(Rings(seen))
    }

    /// For the owner after it went: sleeps until it is woken.
    pub fn sleep(&self, seen: Rings) {
        let _idle = Idle::begin();
        // SYNC(doorbell.rung) acquire: as in `wait_as`.
        while self.rings.load(Ordering::Acquire) == seen.0 {
            sys::futex_wait(&self.rings, seen.0, None, Scope::Machine);
        }
    }
}

/// How often an owner had been rung for when it went.
#[derive(Clone, Copy, Debug)]
pub struct Rings(u32);

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
    fn no_ring_is_lost_between_an_owner_and_its_guests() {
        struct Shared {
            bell: Doorbell,
            seat: crate::sync::Mutex<Waiting>,
            asked: AtomicU64,
            answered: AtomicU64,
        }
        let shared = Arc::new(Shared {
            bell: Doorbell::default(),
            seat: crate::sync::Mutex::new(Waiting::default()),
            asked: AtomicU64::new(0),
            answered: AtomicU64::new(0),
        });
        const TURNS: u64 = 20_000;
        // Whoever is in answers.
        let answer = |shared: &Shared| {
            let asked = shared.asked.load(Ordering::Acquire);
            shared.answered.store(asked, Ordering::Release);
        };
        let news = |shared: &Shared| {
            shared.asked.load(Ordering::Acquire) != shared.answered.load(Ordering::Relaxed)
        };
        let theirs = Arc::clone(&shared);
        let owner = std::thread::spawn(move || {
            while theirs.answered.load(Ordering::Acquire) < TURNS {
                let gone = {
                    let mut waiting = crate::sync::lock(&theirs.seat);
                    theirs.bell.enter();
                    answer(&theirs);
                    theirs.bell.spin(&mut waiting, || news(&theirs));
                    theirs
                        .bell
                        .go(|| news(&theirs) || theirs.answered.load(Ordering::Relaxed) >= TURNS)
                };
                if let Some(seen) = gone {
                    theirs.bell.sleep(seen);
                }
            }
        });
        let theirs = Arc::clone(&shared);
        let guest = std::thread::spawn(move || {
            while theirs.answered.load(Ordering::Acquire) < TURNS {
                if let Ok(mut waiting) = theirs.seat.try_lock() {
                    theirs.bell.enter();
                    let deadline = Some(Instant::now() + Duration::from_micros(50));
                    theirs.bell.wait_as_guest(&mut waiting, deadline, || news(&theirs));
                    answer(&theirs);
                    while theirs.bell.go(|| news(&theirs)).is_none() {
                        theirs.bell.enter();
                        answer(&theirs);
                    }
                }
                std::thread::yield_now();
            }
        });
        for number in 1..=TURNS {
            shared.asked.store(number, Ordering::Release);
            shared.bell.ring();
            let begin = Instant::now();
            while shared.answered.load(Ordering::Acquire) < number {
                assert!(begin.elapsed() < Duration::from_secs(60), "number {number} was lost");
                std::thread::yield_now();
            }
        }
        shared.bell.ring_always();
        guest.join().unwrap();
        shared.bell.ring_always();
        owner.join().unwrap();
    }

    #[test]
    fn a_wait_ends_at_its_deadline() {
        let (bell, start) = (Doorbell::default(), Instant::now());
        let pause = Duration::from_millis(5);
        assert!(!bell.wait(&mut Waiting::default(), Some(start + pause), || false));
        assert!(start.elapsed() >= pause);
    }
}
