//! A doorbell in memory that several processes map: one owner sleeps on it, anyone may ring it. While
//! the owner sleeps a guest may take its place.
//!
//! Where one thread waits for several things at once (two rings, wakers, the death of a process)
//! each of them rings the same bell. The bell carries no news: whoever has some publishes it
//! first, and the owner looks for itself.
//!
//! Who is *in* looks for news: the owner, or a guest; which of them may be in is a matter of a lock
//! that they share. An owner that [goes](Doorbell::go) sleeps until a ring that nobody was in for. A
//! guest that comes meanwhile finds it asleep, and leaves it so if it leaves no news behind. Where it
//! knows that the other process will have no news either, it [leaves](Doorbell::leave_quietly) the
//! line alone that the other process looks at: only those who are [near](Doorbell::ring_near) ring then.
//!
//! Between processes of one machine only: unlike those of rings, its words are read-modify-written
//! by several sides, which no device could do.
//!
//! # Edges
//!
//! | name | release | acquire | makes visible |
//! |---|---|---|---|
//! | `doorbell.news` | fence in `ring`, `ring_near` | fence in `sleep_as`, `go`, `leave`, `leave_quietly` | either the news, or that somebody sleeps |
//! | `doorbell.rung` | `ring_for`, `rings` | `sleep_as`, `go`, `sleep`, `rings` | the news that the bell was rung for |

use crate::sync::{AtomicU32, Ordering, fence};
use crate::sys::{self, Scope};
use crate::wait::{Apart, Idle, Spin, cpu_mark, let_others_run, may_spin, same_cpu};
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
    near: Near,
}

/// What only those look at who share the owner's process, on a line of its own.
#[derive(Debug, Default)]
#[repr(C, align(64))]
struct Near {
    /// `OWNER_SLEEPS` although `Doorbell::asleep` says that it is awake; or `AWAKE`, and that counts.
    asleep: AtomicU32,
}

/// How the owner of a [`Doorbell`] waits: it learns how long spinning is worth its while.
#[derive(Debug, Default)]
pub struct Waiting {
    spin: Spin,
    apart: Apart,
}

impl Waiting {
    /// Whether [`wait_apart`](Doorbell::wait_apart) has moved the thread since this was asked last.
    pub fn has_moved(&mut self) -> bool {
        self.apart.has_moved()
    }
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

    /// [`ring`](Self::ring) for threads of the owner's process.
    #[inline]
    pub fn ring_near(&self) {
        // SYNC(doorbell.news) SeqCst: as in `ring`, for both words.
        fence(Ordering::SeqCst);
        // Relaxed, both: ordered by the fence.
        if self.near.asleep.load(Ordering::Relaxed) != AWAKE
            || self.asleep.load(Ordering::Relaxed) != AWAKE
        {
            self.wake();
        }
    }

    #[cold]
    fn wake(&self) {
        // Relaxed, both: only so that one of several ringers makes the system call.
        match self.asleep.swap(AWAKE, Ordering::Relaxed) {
            AWAKE if self.near.asleep.swap(AWAKE, Ordering::Relaxed) == AWAKE => {}
            AWAKE => self.ring_for(&self.rings),
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

    fn set_asleep(&self, who: u32) {
        set(&self.asleep, who);
    }

    fn ring_for(&self, rings: &AtomicU32) {
        // Relaxed: a hint.
        self.cpu.store(cpu_mark(), Ordering::Relaxed);
        // SYNC(doorbell.rung) release: pairs with the acquires in `sleep_as`, `go` and `sleep`. Makes
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

    /// [`wait`](Self::wait) without a deadline for an owner that may be moved to another core.
    ///
    /// See [`wait`](crate::wait).
    pub fn wait_apart(&self, waiting: &mut Waiting, mut ready: impl FnMut() -> bool) {
        let shares_core = self.shares_core() && may_spin();
        if shares_core && (!waiting.apart.is_due() || ready() || !waiting.apart.go()) {
            let since = Instant::now();
            self.sleep_as(OWNER_SLEEPS, &self.rings, None, ready);
            waiting.apart.waited(since.elapsed());
            return;
        }
        if self.spin(waiting, &mut ready) {
            waiting.apart.spun();
        } else {
            self.sleep_as(OWNER_SLEEPS, &self.rings, None, ready);
        }
    }

    /// Whoever rings does so from the calling thread's core from now on. A hint.
    pub fn will_ring_from_here(&self) {
        // Relaxed: a hint.
        self.cpu.store(cpu_mark(), Ordering::Relaxed);
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
        self.spin(waiting, &mut ready) || self.sleep_as(sleeper, rings, deadline, ready)
    }

    fn sleep_as(
        &self,
        sleeper: u32,
        rings: &AtomicU32,
        deadline: Option<Instant>,
        mut ready: impl FnMut() -> bool,
    ) -> bool {
        loop {
            // SYNC(doorbell.rung) acquire: pairs with the release in `ring_for`. Makes visible the news
            // that the bell was rung for.
            let seen = rings.load(Ordering::Acquire);
            self.set_asleep(sleeper);
            // SYNC(doorbell.news) SeqCst: see `ring`. After it, either `ready` finds the news or the
            // ringer sees that we sleep.
            fence(Ordering::SeqCst);
            let is_ready = ready();
            if is_ready || deadline.is_some_and(|deadline| deadline <= Instant::now()) {
                // A ringer that still sees the sleeper rings in vain.
                self.set_asleep(AWAKE);
                return is_ready;
            }
            let _idle = Idle::begin();
            sys::futex_wait(rings, seen, deadline, Scope::Machine);
        }
    }

    /// For whoever is in: spins until `ready`, about as long as the last waits made worthwhile; false if
    /// that was not enough.
    pub fn spin(&self, waiting: &mut Waiting, ready: impl FnMut() -> bool) -> bool {
        // On the core from which we were last woken, only sleeping lets the other side run.
        !self.shares_core() && waiting.spin.until(ready)
    }

    /// [`spin`](Self::spin) for a guest that will not sleep: on the core of the other side it lets that
    /// run, a few times.
    pub fn wait_briefly(&self, waiting: &mut Waiting, mut ready: impl FnMut() -> bool) -> bool {
        match self.shares_core() {
            true => ready() || let_others_run(ready),
            false => waiting.spin.until(ready),
        }
    }

    /// Whether we were last woken from the core that we run on.
    fn shares_core(&self) -> bool {
        // Relaxed: a hint.
        same_cpu(self.cpu.load(Ordering::Relaxed))
    }

    /// For an owner or a guest that holds the lock by which they take turns: it is in, and must look for
    /// news before it waits or goes.
    pub fn enter(&self) {
        // A ringer that still sees a sleeper wakes the owner in vain; one that sees none has
        // its news found by the look before the next sleep.
        set(&self.near.asleep, AWAKE);
        // Relaxed: who is in was the last to write it, but for ringers, who write the same. Not written
        // if it says so by now: the other process would have to fetch it anew.
        if self.asleep.load(Ordering::Relaxed) != AWAKE {
            self.set_asleep(AWAKE);
        }
    }

    /// For whoever is in: nobody is any more, and the next ring wakes the owner; what the owner then
    /// [sleeps](Self::sleep) on. `None`: there is news, and it is in still.
    pub fn go(&self, mut ready: impl FnMut() -> bool) -> Option<Rings> {
        // SYNC(doorbell.rung) acquire: as in `sleep_as`.
        let seen = self.rings.load(Ordering::Acquire);
        self.set_asleep(OWNER_SLEEPS);
        // SYNC(doorbell.news) SeqCst: as in `sleep_as`.
        fence(Ordering::SeqCst);
        if ready() {
            // A ringer that was faster wakes the owner in vain.
            self.set_asleep(AWAKE);
            return None;
        }
        Some(Rings(seen))
    }

    /// For a guest that is in: nobody is any more; what news there is, is the owner's, who is woken.
    pub fn leave(&self, mut is_news: impl FnMut() -> bool) {
        self.set_asleep(OWNER_SLEEPS);
        // SYNC(doorbell.news) SeqCst: as in `sleep_as`.
        fence(Ordering::SeqCst);
        if is_news() {
            self.wake();
        }
    }

    /// [`leave`](Self::leave), where the other process will not ring before somebody was in again, but
    /// for [`ring_always`](Self::ring_always).
    pub fn leave_quietly(&self, mut is_news: impl FnMut() -> bool) {
        set(&self.near.asleep, OWNER_SLEEPS);
        // SYNC(doorbell.news) SeqCst: as in `sleep_as`, against those who are near.
        fence(Ordering::SeqCst);
        if is_news() {
            self.wake();
        }
    }

    /// For the owner after it went: sleeps until it is woken.
    pub fn sleep(&self, seen: Rings) {
        let _idle = Idle::begin();
        // SYNC(doorbell.rung) acquire: as in `sleep_as`.
        while self.rings.load(Ordering::Acquire) == seen.0 {
            sys::futex_wait(&self.rings, seen.0, None, Scope::Machine);
        }
    }
}

/// Says in a word of a bell who sleeps.
fn set(word: &AtomicU32, who: u32) {
    if cfg!(loom) {
        // A store, and no more, is what is needed. But loom lets a swap that comes after it read a
        // value from before it, which another swap has replaced; no machine does.
        word.swap(who, Ordering::Relaxed);
    } else {
        // Relaxed: ordered by the callers' fences, or by what they look at next.
        word.store(who, Ordering::Relaxed);
    }
}

/// How often an owner had been rung for when it went.
#[derive(Clone, Copy, Debug)]
pub struct Rings(u32);

#[cfg(all(test, loom))]
mod loom_tests {
    use super::*;
    use crate::sync::{Arc, Mutex, lock};
    use loom::thread;

    /// A ring that is lost is an owner or a guest that sleeps for ever, which loom reports.
    #[derive(Default)]
    struct Shared {
        bell: Doorbell,
        /// Who is in has it; the number is how much news was looked at.
        seat: Mutex<u32>,
        news: AtomicU32,
    }

    impl Shared {
        fn publish(&self) {
            // Relaxed: the bell orders it against the sleep, and nothing else is published.
            self.news.fetch_add(1, Ordering::Relaxed);
            self.bell.ring();
        }

        fn has_news(&self, seen: u32) -> bool {
            // Relaxed: as in `publish`.
            self.news.load(Ordering::Relaxed) != seen
        }

        fn look(&self, seen: &mut u32) {
            // Relaxed: as in `publish`.
            *seen = self.news.load(Ordering::Relaxed);
        }

        /// The owner: looks and sleeps until it has seen this much news.
        fn own(&self, all: u32) {
            loop {
                let gone = {
                    let mut seen = lock(&self.seat);
                    self.bell.enter();
                    self.look(&mut seen);
                    if *seen == all {
                        return;
                    }
                    self.bell.go(|| self.has_news(*seen))
                };
                if let Some(rings) = gone {
                    self.bell.sleep(rings);
                }
            }
        }
    }

    fn spawn(shared: &Arc<Shared>, run: fn(&Shared)) -> thread::JoinHandle<()> {
        let shared = Arc::clone(shared);
        thread::spawn(move || run(&shared))
    }

    #[test]
    fn no_ring_is_lost_of_two_that_come_at_once() {
        loom::model(|| {
            let shared = Arc::new(Shared::default());
            let ringers = [(); 2].map(|()| spawn(&shared, Shared::publish));
            let all = || shared.news.load(Ordering::Relaxed) == 2;
            assert!(shared.bell.wait(&mut Waiting::default(), None, all));
            ringers.into_iter().for_each(|ringer| ringer.join().unwrap());
        });
    }

    /// One publishes; a guest leaves what comes from then on to the owner; and that all has come.
    fn the_owner_learns(publish: fn(&Shared), leave: fn(&Doorbell, &dyn Fn() -> bool)) {
        loom::model(move || {
            let shared = Arc::new(Shared::default());
            let owner = spawn(&shared, |shared| shared.own(1));
            let ringer = spawn(&shared, publish);
            if let Ok(mut seen) = shared.seat.try_lock() {
                shared.bell.enter();
                shared.look(&mut seen);
                leave(&shared.bell, &|| *seen == 1 || shared.has_news(*seen));
            }
            owner.join().unwrap();
            ringer.join().unwrap();
        });
    }

    #[test]
    fn the_owner_learns_from_nearby_of_what_a_guest_leaves_quietly() {
        let publish_near = |shared: &Shared| {
            // Relaxed: as in `publish`.
            shared.news.fetch_add(1, Ordering::Relaxed);
            shared.bell.ring_near();
        };
        the_owner_learns(publish_near, |bell, news| bell.leave_quietly(news));
    }

    #[test]
    fn the_owner_learns_of_what_a_guest_leaves() {
        the_owner_learns(Shared::publish, |bell, news| bell.leave(news));
    }

    #[test]
    fn a_guest_that_sleeps_is_woken() {
        loom::model(|| {
            let shared = Arc::new(Shared::default());
            // An owner that has gone, and does not come back.
            assert!(shared.bell.go(|| false).is_some());
            let ringer = spawn(&shared, Shared::publish);
            let mut seen = lock(&shared.seat);
            shared.bell.enter();
            shared.look(&mut seen);
            if *seen == 0 {
                let news = || shared.has_news(*seen);
                assert!(shared.bell.wait_as_guest(&mut Waiting::default(), None, news));
            }
            drop(seen);
            ringer.join().unwrap();
        });
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
                    theirs.bell.leave(|| news(&theirs));
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
    fn no_ring_is_lost_of_an_owner_that_may_be_moved() {
        let shared = Arc::new((Doorbell::default(), AtomicU64::new(0)));
        const TURNS: u64 = 20_000;
        let theirs = Arc::clone(&shared);
        let ringer = std::thread::spawn(move || {
            for number in 1..=TURNS {
                // Relaxed: the number is the only news.
                theirs.1.store(number, Ordering::Relaxed);
                theirs.0.ring();
                std::thread::yield_now();
            }
        });
        let (mut waiting, mut seen) = (Waiting::default(), 0);
        while seen < TURNS {
            shared.0.wait_apart(&mut waiting, || shared.1.load(Ordering::Relaxed) > seen);
            seen = shared.1.load(Ordering::Relaxed);
        }
        ringer.join().unwrap();
    }

    #[test]
    fn a_wait_ends_at_its_deadline() {
        let (bell, start) = (Doorbell::default(), Instant::now());
        let pause = Duration::from_millis(5);
        assert!(!bell.wait(&mut Waiting::default(), Some(start + pause), || false));
        assert!(start.elapsed() >= pause);
    }
}
