//! Timeouts without a timer per message: one coarse wheel and one thread for the whole process.
//!
//! The wheel is the hierarchical one of Varghese and Lauck ("Hashed and Hierarchical Timing
//! Wheels", 1987, scheme 7): six levels of 64 slots, a tick of one millisecond at the lowest.
//! Setting and cancelling are O(1) and, once the table has grown, allocate nothing. A timeout fires
//! up to a tick late and never early. The thread starts with the first timeout.

use std::cell::Cell;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use dotcompute_mailbox::sync::{AtomicUsize, Ordering, lock};

use crate::lifecycle::wake_all;

const LEVELS: usize = 6;
const SLOTS: usize = 64;
/// The farthest tick that the wheel tells apart: about two years away. A farther one waits there.
const FARTHEST: u64 = (1 << (6 * LEVELS)) - 1;
const NONE: u32 = u32::MAX;

#[derive(Debug)]
struct Entry {
    /// The tick at which it fires; meaningless while the place is free.
    tick: u64,
    generation: u32,
    /// In a slot: which, so that it can be unlinked. `None`: fired or free.
    slot: Option<u16>,
    waker: Option<Waker>,
    previous: u32,
    next: u32,
}

/// Names a set timeout.
#[derive(Clone, Copy, Debug)]
struct Key {
    index: u32,
    generation: u32,
}

/// The data structure, without clock or thread.
#[derive(Debug)]
struct Wheel {
    now: u64,
    entries: Vec<Entry>,
    free: u32,
    heads: [u32; LEVELS * SLOTS],
    /// A bit per occupied slot, by level.
    occupied: [u64; LEVELS],
}

impl Wheel {
    fn new() -> Self {
        Self {
            now: 0,
            entries: Vec::new(),
            free: NONE,
            heads: [NONE; LEVELS * SLOTS],
            occupied: [0; LEVELS],
        }
    }

    fn set(&mut self, tick: u64, waker: Waker) -> Key {
        let index = if self.free == NONE {
            self.entries.push(Entry {
                tick: 0,
                generation: 0,
                slot: None,
                waker: None,
                previous: NONE,
                next: NONE,
            });
            u32::try_from(self.entries.len() - 1).expect("fewer than 2^32 timeouts")
        } else {
            let index = self.free;
            self.free = self.entries[index as usize].next;
            index
        };
        let entry = &mut self.entries[index as usize];
        entry.tick = tick.max(self.now + 1);
        entry.waker = Some(waker);
        let key = Key { index, generation: entry.generation };
        self.link(index);
        key
    }

    /// Whether the timeout is still to come. Where the waker changed, the old one is put into
    /// `stale`, to be dropped outside the lock.
    fn pending(&mut self, key: Key, waker: &Waker, stale: &mut Option<Waker>) -> bool {
        let entry = &mut self.entries[key.index as usize];
        if entry.generation != key.generation || entry.slot.is_none() {
            return false;
        }
        if !entry.waker.as_ref().is_some_and(|known| known.will_wake(waker)) {
            *stale = entry.waker.replace(waker.clone());
        }
        true
    }

    /// Takes the timeout back; the waker is to be dropped outside the lock.
    fn cancel(&mut self, key: Key) -> Option<Waker> {
        if self.entries[key.index as usize].generation != key.generation {
            return None;
        }
        self.unlink(key.index);
        self.release(key.index)
    }

    /// Moves to `tick`; the wakers of what has fired are added to `fired`.
    fn advance(&mut self, tick: u64, fired: &mut Vec<Waker>) {
        while let Some(next) = self.next_tick().filter(|next| *next <= tick) {
            self.now = next;
            // From the top: what comes down a level lands in a slot that is looked at after it.
            for level in (0..LEVELS).rev() {
                let slot = slot_at(level, next);
                if next & ((1 << (6 * level)) - 1) != 0 {
                    continue;
                }
                let mut index = self.heads[slot];
                while index != NONE {
                    let following = self.entries[index as usize].next;
                    self.unlink(index);
                    if self.entries[index as usize].tick <= next {
                        fired.extend(self.release(index));
                    } else {
                        self.link(index);
                    }
                    index = following;
                }
            }
        }
        self.now = self.now.max(tick);
    }

    /// The next tick at which something fires or comes down a level.
    fn next_tick(&self) -> Option<u64> {
        (0..LEVELS)
            .filter(|level| self.occupied[*level] != 0)
            .map(|level| {
                let position = self.now >> (6 * level);
                // The next occupied slot after the present one, going round.
                let ahead = self.occupied[level]
                    .rotate_right(((position + 1) % SLOTS as u64) as u32)
                    .trailing_zeros();
                (position + 1 + u64::from(ahead)) << (6 * level)
            })
            .min()
    }

    fn link(&mut self, index: u32) {
        let tick = self.entries[index as usize].tick;
        let apart = tick ^ self.now;
        let level = (63 - (apart.min(FARTHEST) | 1).leading_zeros() as usize) / 6;
        // Beyond the wheel: halfway round, and looked at again there.
        let tick = if apart > FARTHEST { tick.min(self.now + (FARTHEST >> 1)) } else { tick };
        let slot = slot_at(level, tick);
        let head = self.heads[slot];
        let entry = &mut self.entries[index as usize];
        entry.slot = Some(slot as u16);
        entry.previous = NONE;
        entry.next = head;
        if head != NONE {
            self.entries[head as usize].previous = index;
        }
        self.heads[slot] = index;
        self.occupied[level] |= 1 << (slot % SLOTS);
    }

    fn unlink(&mut self, index: u32) {
        let entry = &mut self.entries[index as usize];
        let Some(slot) = entry.slot.take() else { return };
        let slot = usize::from(slot);
        let (previous, next) = (entry.previous, entry.next);
        if next != NONE {
            self.entries[next as usize].previous = previous;
        }
        if previous != NONE {
            self.entries[previous as usize].next = next;
        } else {
            self.heads[slot] = next;
            if next == NONE {
                self.occupied[slot / SLOTS] &= !(1 << (slot % SLOTS));
            }
        }
    }

    fn release(&mut self, index: u32) -> Option<Waker> {
        let entry = &mut self.entries[index as usize];
        entry.generation = entry.generation.wrapping_add(1);
        entry.next = self.free;
        self.free = index;
        entry.waker.take()
    }
}

fn slot_at(level: usize, tick: u64) -> usize {
    level * SLOTS + ((tick >> (6 * level)) % SLOTS as u64) as usize
}

/// The wheel with its clock and its thread.
#[derive(Debug)]
struct Timer {
    start: Instant,
    state: Mutex<Shared>,
    earlier: Condvar,
    /// Held by its thread while it wakes, and by whoever is about to fork.
    waking: Mutex<()>,
    thread: OnceLock<()>,
    /// The one that takes its place in a child process.
    next: OnceLock<Box<Timer>>,
}

static FIRST: OnceLock<Timer> = OnceLock::new();

/// Which timer of the chain is in use.
static FORKS: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static IS_TIMER: Cell<bool> = const { Cell::new(false) };
}

/// No timeout fires while this lives: see [`hold_timeouts`].
#[derive(Debug)]
#[must_use = "timeouts fire again when this is dropped"]
pub struct TimeoutsHeld {
    _waking: Option<MutexGuard<'static, ()>>,
}

/// For a process that is about to `fork`: waits until no waker runs on the timer's thread, and lets none
/// run there until what is returned is dropped, which the calling thread does in both processes. A waker
/// is foreign code and may be anywhere, also under a lock, which in the child nobody would ever release.
///
/// Must not be called with a lock held that a waker takes. On the timer's own thread it does nothing.
pub fn hold_timeouts() -> TimeoutsHeld {
    let timer = Timer::in_use().filter(|_| !IS_TIMER.get());
    TimeoutsHeld { _waking: timer.map(|timer| lock(&timer.waking)) }
}

/// For a child process after `fork`, in which the calling thread is the only one: from here on
/// timeouts fire again, on a thread of the child's own. Those set before are the parent's, and are
/// looked at only when they are polled. In any other process those would fire late, or never.
pub fn restart_timeouts_after_fork() {
    // Relaxed: the calling thread is the only one that must see it, and does.
    FORKS.fetch_add(1, Ordering::Relaxed);
}

#[derive(Debug)]
struct Shared {
    wheel: Wheel,
    /// The tick for which the thread sleeps; it is woken only for an earlier one.
    sleeps_until: u64,
}

impl Timer {
    fn new() -> Self {
        Self {
            start: Instant::now(),
            state: Mutex::new(Shared { wheel: Wheel::new(), sleeps_until: 0 }),
            earlier: Condvar::new(),
            waking: Mutex::new(()),
            thread: OnceLock::new(),
            next: OnceLock::new(),
        }
    }

    /// The one that is in use, if it is there.
    fn in_use() -> Option<&'static Timer> {
        // Relaxed, here and below: as in `restart_timeouts_after_fork`.
        let place = FORKS.load(Ordering::Relaxed);
        (0..place).try_fold(FIRST.get()?, |timer, _| timer.next.get().map(|next| &**next))
    }

    fn get() -> &'static Timer {
        let mut timer = FIRST.get_or_init(Timer::new);
        for _ in 0..FORKS.load(Ordering::Relaxed) {
            timer = timer.next.get_or_init(|| Box::new(Timer::new()));
        }
        timer.thread.get_or_init(|| {
            // Without its thread no timeout would ever fire, and a caller would hang: that the
            // system has no room for one small thread is the rare case where a panic (caught, like
            // any, at the kernel's border) is the honest answer.
            std::thread::Builder::new()
                .name("dotcompute-timer".into())
                .stack_size(64 * 1024)
                .spawn(|| timer.run())
                .expect("the timer thread should start");
        });
        timer
    }

    fn tick(&self, at: Instant) -> u64 {
        // Round up: a timeout never fires early.
        let elapsed = at.saturating_duration_since(self.start);
        u64::try_from(elapsed.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX / 2)
    }

    fn run(&'static self) {
        IS_TIMER.set(true);
        let mut fired = Vec::new();
        let mut shared = lock(&self.state);
        loop {
            let now = self.start.elapsed();
            shared.wheel.advance(now.as_millis() as u64, &mut fired);
            if !fired.is_empty() {
                drop(shared);
                let waking = lock(&self.waking);
                wake_all(fired.drain(..));
                drop(waking);
                shared = lock(&self.state);
                continue;
            }
            let next = shared.wheel.next_tick();
            shared.sleeps_until = next.unwrap_or(u64::MAX);
            shared = match next {
                Some(tick) => {
                    let pause = Duration::from_millis(tick).saturating_sub(now);
                    match self.earlier.wait_timeout(shared, pause) {
                        Ok((shared, _)) => shared,
                        Err(poisoned) => poisoned.into_inner().0,
                    }
                }
                None => match self.earlier.wait(shared) {
                    Ok(shared) => shared,
                    Err(poisoned) => poisoned.into_inner(),
                },
            };
        }
    }

    fn set(&self, deadline: Instant, waker: Waker) -> Key {
        let tick = self.tick(deadline);
        let mut shared = lock(&self.state);
        let key = shared.wheel.set(tick, waker);
        if tick < shared.sleeps_until {
            shared.sleeps_until = tick;
            drop(shared);
            self.earlier.notify_one();
        }
        key
    }
}

/// A future that is ready once its deadline has passed (up to a millisecond later, never before),
/// on the one coarse timer that all timeouts of the process share. Made by [`sleep_until`].
///
/// Dropping it takes the timeout back.
#[derive(Debug)]
pub struct Sleep {
    deadline: Instant,
    set: Option<(&'static Timer, Key)>,
}

/// Waits until `deadline`. To set and to take back such a timeout allocates nothing.
///
/// ```
/// use std::time::{Duration, Instant};
///
/// let deadline = Instant::now() + Duration::from_millis(2);
/// dotcompute_mailbox::wait::block_on(dotcompute_core::sleep_until(deadline));
/// assert!(Instant::now() >= deadline);
/// ```
pub fn sleep_until(deadline: Instant) -> Sleep {
    Sleep { deadline, set: None }
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let timer = Timer::get();
        if let Some((of, key)) = self.set
            && std::ptr::eq(of, timer)
        {
            let mut stale = None;
            let pending = lock(&timer.state).wheel.pending(key, cx.waker(), &mut stale);
            return if pending { Poll::Pending } else { Poll::Ready(()) };
        }
        if self.deadline <= Instant::now() {
            return Poll::Ready(());
        }
        self.set = Some((timer, timer.set(self.deadline, cx.waker().clone())));
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        // The timer of a parent process may be locked for ever: its threads are not here.
        if let Some((timer, key)) = self.set
            && std::ptr::eq(timer, Timer::get())
        {
            let waker = lock(&timer.state).wheel.cancel(key);
            drop(waker);
        }
    }
}

/// Drives `future` until `deadline`; `None` if it was not ready by then.
///
/// The future is looked at first, so one that is ready is never lost to a deadline in the past.
pub(crate) async fn timeout_at<F: Future>(
    deadline: Option<Instant>,
    future: F,
) -> Option<F::Output> {
    let mut future = std::pin::pin!(future);
    let mut sleep = deadline.map(sleep_until);
    std::future::poll_fn(move |cx| {
        if let Poll::Ready(output) = future.as_mut().poll(cx) {
            return Poll::Ready(Some(output));
        }
        match &mut sleep {
            Some(sleep) => Pin::new(sleep).poll(cx).map(|()| None),
            None => Poll::Pending,
        }
    })
    .await
}

/// The instant `timeout` from now; `None` where that is beyond the clock.
pub(crate) fn after(timeout: Duration) -> Option<Instant> {
    Instant::now().checked_add(timeout)
}

#[cfg(test)]
mod tests {
    use super::*;
    use dotcompute_mailbox::sync::{AtomicBool, AtomicU64, Ordering};
    use proptest::prelude::*;
    use std::pin::pin;
    use std::sync::{Arc, mpsc};
    use std::task::Wake;

    /// Counts how often it was woken.
    #[derive(Default)]
    struct Count(AtomicU64);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            // Relaxed: the tests are single-threaded.
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Says that it runs, and ends when it is told to.
    struct Slow {
        runs: mpsc::SyncSender<()>,
        may_end: Mutex<mpsc::Receiver<()>>,
        has_ended: Arc<AtomicBool>,
    }

    impl Wake for Slow {
        fn wake(self: Arc<Self>) {
            self.runs.send(()).unwrap();
            lock(&self.may_end).recv().unwrap();
            // Relaxed: ordered by the lock under test.
            self.has_ended.store(true, Ordering::Relaxed);
        }
    }

    #[test]
    fn who_holds_timeouts_waits_until_no_waker_runs() {
        let (runs, running) = mpsc::sync_channel(1);
        let (end, may_end) = mpsc::channel();
        let has_ended = Arc::new(AtomicBool::new(false));
        let (its, may_end) = (Arc::clone(&has_ended), Mutex::new(may_end));
        let waker = Waker::from(Arc::new(Slow { runs, may_end, has_ended: its }));
        let mut sleep = pin!(sleep_until(Instant::now()));
        // In the past it is ready; so a moment later.
        sleep.deadline += Duration::from_millis(5);
        assert!(sleep.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
        running.recv().unwrap();
        let (ask, asked) = mpsc::channel();
        let holder = std::thread::spawn(move || {
            ask.send(()).unwrap();
            let held = hold_timeouts();
            // Relaxed: as above.
            let ended = has_ended.load(Ordering::Relaxed);
            drop(held);
            ended
        });
        asked.recv().unwrap();
        end.send(()).unwrap();
        assert!(holder.join().unwrap());
        // And then timeouts fire again.
        let soon = Instant::now() + Duration::from_millis(1);
        dotcompute_mailbox::wait::block_on(sleep_until(soon));
    }

    proptest! {
        /// Every timeout fires exactly once, at the first advance that reaches its tick, unless it
        /// was cancelled before.
        #[test]
        fn the_wheel_fires_each_timeout_once_and_on_time(
            steps in prop::collection::vec((0u64..3, 0u64..100_000_000, any::<u8>()), 1..200)
        ) {
            let mut wheel = Wheel::new();
            let mut now = 0;
            let mut set: Vec<(u64, Key, Arc<Count>)> = Vec::new();
            for (step, distance, pick) in steps {
                match step {
                    0 => {
                        let count = Arc::new(Count::default());
                        // Small and large distances alike.
                        let tick = now + 1 + (distance >> (pick % 27));
                        set.push((tick, wheel.set(tick, count.clone().into()), count));
                    }
                    1 if !set.is_empty() => {
                        let (_, key, count) = set.swap_remove(usize::from(pick) % set.len());
                        wheel.cancel(key);
                        prop_assert_eq!(count.0.load(Ordering::Relaxed), 0);
                    }
                    _ => {
                        now += distance >> (pick % 27);
                        let mut fired = Vec::new();
                        wheel.advance(now, &mut fired);
                        fired.into_iter().for_each(Waker::wake);
                        for (tick, key, count) in &set {
                            let due = *tick <= now;
                            prop_assert_eq!(count.0.load(Ordering::Relaxed), u64::from(due), "tick {} at {}", tick, now);
                            prop_assert_eq!(wheel.pending(*key, Waker::noop(), &mut None), !due);
                            if !due {
                                wheel.pending(*key, &Waker::from(count.clone()), &mut None);
                            }
                        }
                        set.retain(|(tick, ..)| *tick > now);
                    }
                }
            }
        }
    }

    #[test]
    fn a_sleep_ends_after_its_deadline_and_not_before() {
        for delay_ms in [0, 1, 7, 70] {
            let deadline = Instant::now() + Duration::from_millis(delay_ms);
            dotcompute_mailbox::wait::block_on(sleep_until(deadline));
            assert!(Instant::now() >= deadline);
        }
    }

    #[test]
    fn an_earlier_timeout_is_not_held_up_by_a_later_one() {
        let far = Instant::now() + Duration::from_secs(3600);
        let outcome = dotcompute_mailbox::wait::block_on(timeout_at(
            Some(Instant::now() + Duration::from_millis(5)),
            sleep_until(far),
        ));
        assert_eq!(outcome, None);
    }

    #[test]
    fn a_waker_that_panics_does_not_stop_the_clock() {
        struct Panics;
        impl Wake for Panics {
            fn wake(self: Arc<Self>) {
                panic!("a waker that panics");
            }
        }
        let waker = Waker::from(Arc::new(Panics));
        let soon = Instant::now() + Duration::from_millis(1);
        let mut sleep = sleep_until(soon);
        assert!(Pin::new(&mut sleep).poll(&mut Context::from_waker(&waker)).is_pending());
        dotcompute_mailbox::wait::block_on(sleep_until(soon + Duration::from_millis(2)));
    }

    #[test]
    fn a_ready_future_wins_over_a_past_deadline() {
        let past = Some(Instant::now());
        let outcome = dotcompute_mailbox::wait::block_on(timeout_at(past, async { 7 }));
        assert_eq!(outcome, Some(7));
    }
}
