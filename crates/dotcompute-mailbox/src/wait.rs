//! Waiting: a thread spins about as long as one wake costs, then parks.
//!
//! [`block_on`] and [`block_on_until`] drive a future on the calling thread. Three rules keep the
//! spinning honest:
//!
//! - **Adaptive.** A wait spins as long as the last ones of its kind made worthwhile, at most
//!   50 µs; failures shrink that to nothing, success restores it.
//! - **Budgeted.** The threads that run a kernel (marked by [`running`]) and those that spin are
//!   together at most [`parallelism`]; whoever comes too late parks at once.
//! - **Never against one's own core.** If the thread that ended our last wait did so from the core
//!   we run on, spinning could only keep it from running: we let it run, then park.
//!
//! A thread that is woken by one that then waits for it is often put on the core of that one. There the
//! two take turns, each ends the waits of the other after microseconds, and neither may spin, while
//! another core is idle. So a thread that runs a kernel goes to another core, if it may, where such
//! waits were all short, and spins there.
//!
//! # Who writes what
//!
//! | word | written by | read by |
//! |---|---|---|
//! | `Signal::state` | the owner: EMPTY to PARKED, NOTIFIED to EMPTY; wakers: any to NOTIFIED | both |
//! | `Signal::waker_cpu` | wakers; a hint | the owner |
//! | `budget::BUSY` | every thread, for itself; a count | spinners |
//!
//! # Edges
//!
//! | name | release | acquire | makes visible |
//! |---|---|---|---|
//! | `park.notify` | `Signal::notify`, `state` | `Parker::sleep`, `state` | what the waker did before it woke us |

use crate::sync::unmodelled::{AtomicU32 as Counter, AtomicUsize as CounterUsize};
use crate::sync::{AtomicU32, Ordering, spin_loop, thread_local};
use crate::sys::{self, Scope};
use std::cell::{Cell, RefCell};
use std::fmt;
use std::future::Future;
use std::marker::PhantomData;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread;
use std::time::{Duration, Instant};

/// Runs `future` to its end on this thread, which spins briefly and then sleeps while it waits.
///
/// May be nested: a future may itself call `block_on`.
///
/// ```
/// assert_eq!(dotcompute_mailbox::wait::block_on(async { 6 * 7 }), 42);
/// ```
pub fn block_on<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    match block_on_until(future.as_mut(), None) {
        Ok(output) => output,
        Err(_) => unreachable!("a wait without a deadline does not time out"),
    }
}

/// Runs `future` on this thread until it ends or `deadline` has passed; no deadline means for as
/// long as it takes.
///
/// The future is polled at least once, also after the deadline. A spinning wait may overrun the
/// deadline by 50 µs.
///
/// # Errors
///
/// When the deadline passes first the future comes back, unfinished: drop it to cancel, or go on.
pub fn block_on_until<F: Future + Unpin>(
    mut future: F,
    deadline: Option<Instant>,
) -> Result<F::Output, F> {
    with_parker(|parker| {
        let waker = Waker::from(Arc::clone(&parker.signal));
        let mut context = Context::from_waker(&waker);
        loop {
            if let Poll::Ready(output) = Pin::new(&mut future).poll(&mut context) {
                return Ok(output);
            }
            if !parker.park(deadline) {
                return Err(future);
            }
        }
    })
}

/// Calls `f` with this thread's parker. It is taken out meanwhile, so that a nested call gets a
/// fresh one: sharing it would let the inner wait swallow a wake-up that was meant for the outer.
fn with_parker<R>(f: impl FnOnce(&mut Parker) -> R) -> R {
    thread_local! {
        static CACHED: RefCell<Option<Parker>> = const { RefCell::new(None) };
    }
    // A thread that is ending has no cache any more, and may still wait.
    let mut parker = CACHED.try_with(RefCell::take).ok().flatten().unwrap_or_default();
    let result = f(&mut parker);
    let _ = CACHED.try_with(|cached| cached.replace(Some(parker)));
    result
}

/// Nobody waits and nothing was said.
const EMPTY: u32 = 0;
/// A wake-up waits to be taken.
const NOTIFIED: u32 = 1;
/// The owner sleeps, or is about to.
const PARKED: u32 = u32::MAX;

/// One thread's place to sleep. Its owner parks; wakers, clones of one `Arc`, notify.
#[derive(Default)]
struct Parker {
    signal: Arc<Signal>,
    spin: Spin,
    apart: Apart,
    /// Where the waker ran that ended the last wait, as [`cpu_mark`].
    waker_cpu: u32,
}

/// The shared half of a [`Parker`].
///
/// `state` moves EMPTY → PARKED and NOTIFIED → EMPTY by the owner, any → NOTIFIED by wakers; so a
/// wake-up before the sleep is kept, and many make one.
#[derive(Default)]
struct Signal {
    state: AtomicU32,
    /// Where the last waker ran, as [`cpu_mark`]. A hint.
    waker_cpu: Counter,
}

impl Parker {
    /// Waits for a notification and takes it; false if `deadline` passed first.
    fn park(&mut self, deadline: Option<Instant>) -> bool {
        if deadline.is_some_and(|deadline| deadline <= Instant::now()) {
            return false;
        }
        // Relaxed: only a reason to go on; `sleep` takes the notification.
        let notified = || self.signal.state.load(Ordering::Relaxed) == NOTIFIED;
        // A wait that is over before it begins tells nothing: we may have woken ourselves.
        if notified() {
            return self.sleep(deadline);
        }
        let mut shares_core = same_cpu(self.waker_cpu);
        // Only a thread that runs a kernel is ours to move, and only where no other kernel is at work on
        // the core that it would come to.
        let may_move = shares_core && is_marked() && budget::has_another_core();
        if may_move && self.apart.is_due() && self.apart.go() {
            shares_core = false;
        }
        if !shares_core && self.spin.until(notified) {
            self.apart.spun();
        }
        let since = (may_move && shares_core).then(Instant::now);
        if !notified() {
            let_others_run(notified);
        }
        let woken = self.sleep(deadline);
        if let Some(since) = since {
            self.apart.waited(since.elapsed());
        }
        if woken {
            // Relaxed: a hint.
            self.waker_cpu = self.signal.waker_cpu.load(Ordering::Relaxed);
        }
        woken
    }

    /// Sleeps until a notification comes, if there is none yet, and takes it; false if `deadline`
    /// passed first.
    fn sleep(&self, deadline: Option<Instant>) -> bool {
        let signal = &self.signal;
        // NOTIFIED becomes EMPTY, EMPTY becomes PARKED.
        // SYNC(park.notify) acquire: pairs with the release in `Signal::notify`. Makes visible what
        // the waker did before it woke us.
        if signal.state.fetch_sub(1, Ordering::Acquire) == NOTIFIED {
            return true;
        }
        let _idle = Idle::begin();
        loop {
            sys::futex_wait(&signal.state, PARKED, deadline, Scope::Process);
            // SYNC(park.notify) acquire: as above. Failure means still PARKED, nothing to see.
            let taken = signal.state.compare_exchange(
                NOTIFIED,
                EMPTY,
                Ordering::Acquire,
                Ordering::Relaxed,
            );
            if taken.is_ok() {
                return true;
            }
            if deadline.is_some_and(|deadline| deadline <= Instant::now()) {
                // SYNC(park.notify) acquire: as above, for a notification that came just now.
                return signal.state.swap(EMPTY, Ordering::Acquire) == NOTIFIED;
            }
        }
    }
}

impl Signal {
    fn notify(&self) {
        // Relaxed: a hint.
        self.waker_cpu.store(cpu_mark(), Ordering::Relaxed);
        // SYNC(park.notify) release: pairs with the acquires in `Parker::sleep`. Makes visible
        // everything before this call, which is why a second notification is a swap too.
        if self.state.swap(NOTIFIED, Ordering::Release) == PARKED {
            sys::futex_wake(&self.state, Scope::Process);
        }
    }
}

impl Wake for Signal {
    fn wake(self: Arc<Self>) {
        self.notify();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.notify();
    }
}

/// This CPU as one word: its number plus one, 0 where the system does not tell.
pub fn cpu_mark() -> u32 {
    sys::current_cpu().map_or(0, |cpu| cpu.wrapping_add(1))
}

/// Whether `mark` names the CPU that this thread runs on.
pub fn same_cpu(mark: u32) -> bool {
    mark != 0 && mark == cpu_mark()
}

/// How often a wait lets other threads run before it sleeps. What it waits for is often about to
/// happen on this very core; and the longer the others run, the more there is to do afterwards,
/// where a sleep would be ended by the first message of many. A model checker would explore each.
const YIELDS_BEFORE_SLEEP: u32 = if cfg!(loom) { 0 } else { 8 };

/// Lets other threads run until `ready` says so, so often; whether it did.
pub(crate) fn let_others_run(mut ready: impl FnMut() -> bool) -> bool {
    (0..YIELDS_BEFORE_SLEEP).any(|_| {
        thread::yield_now();
        ready()
    })
}

/// The longest spin: about two wakes of a thread on another core.
pub(crate) const SPIN_MAX: Duration = Duration::from_micros(50);
/// Below this a spin is not worth its clock readings.
const SPIN_MIN: Duration = Duration::from_micros(1);
/// Looks between two readings of the clock.
const LOOKS: u32 = 16;
/// Looks (a few µs) before a spinner enters itself in the budget, which costs as much as a
/// cache miss or two and would otherwise dominate the shortest waits.
const FREE_LOOKS: u32 = 64;
/// One wait in so many is tried with a full spin although spinning has not paid lately.
const PROBE_EVERY: u32 = 64;

/// How long a wait of one kind is worth staying awake for, learnt from how the last ones ended.
#[derive(Debug)]
pub struct Spin {
    limit: Duration,
    waits: u32,
}

impl Default for Spin {
    fn default() -> Self {
        Self { limit: SPIN_MAX, waits: 0 }
    }
}

impl Spin {
    /// For how long the wait that begins now is worth staying awake, 50 µs at most; `None`: it is not, or
    /// there is no core to spare. Else tell how it [`ended`](Self::ended).
    #[inline]
    pub fn begin(&mut self) -> Option<Duration> {
        // A model checker explores every look: there the budget is always spent.
        if cfg!(loom) || !budget::has_room() {
            return None;
        }
        self.waits = self.waits.wrapping_add(1);
        match self.limit {
            Duration::ZERO => self.waits.is_multiple_of(PROBE_EVERY).then_some(SPIN_MAX),
            limit => Some(limit),
        }
    }

    /// Whether what the wait was for came while this thread was awake.
    #[inline]
    pub fn ended(&mut self, found: bool) {
        self.limit = match found {
            true => SPIN_MAX,
            false if self.limit > SPIN_MIN => self.limit / 2,
            false => Duration::ZERO,
        };
    }

    /// Spins until `ready` says so; false if that was not worth waiting for.
    #[inline]
    pub(crate) fn until(&mut self, mut ready: impl FnMut() -> bool) -> bool {
        let Some(limit) = self.begin() else { return false };
        let found = looks(FREE_LOOKS, &mut ready) || spin_within(limit, &mut ready);
        self.ended(found);
        found
    }
}

/// When a thread that is always woken from its own core looks for another.
#[derive(Debug)]
pub(crate) struct Apart {
    /// So many waits in a row were too short to be worth a sleep.
    short: u32,
    /// How many make it move: more after each move, fewer again as spinning pays.
    enough: u32,
    has_moved: bool,
}

/// That many waits cost about as much as a move.
const SHORT_WAITS: u32 = 16;
/// Where there is no core to spare it is tried so seldom that it costs nothing.
const SHORT_WAITS_MAX: u32 = 4096;

impl Default for Apart {
    fn default() -> Self {
        Self { short: 0, enough: SHORT_WAITS, has_moved: false }
    }
}

impl Apart {
    /// A wait on the waker's core took so long.
    pub(crate) fn waited(&mut self, time: Duration) {
        self.short = if time < SPIN_MAX { self.short + 1 } else { 0 };
    }

    /// A wait on another core was worth spinning.
    pub(crate) fn spun(&mut self) {
        self.short = 0;
        self.enough = (self.enough - 1).max(SHORT_WAITS);
    }

    /// Whether to move now.
    pub(crate) fn is_due(&mut self) -> bool {
        if self.short < self.enough {
            return false;
        }
        self.short = 0;
        self.enough = (self.enough * 2).min(SHORT_WAITS_MAX);
        true
    }

    /// Moves this thread; false if there is no core that it may go to.
    pub(crate) fn go(&mut self) -> bool {
        let moved = sys::leave_cpu();
        self.has_moved |= moved;
        moved
    }

    /// Whether it has moved since this was asked last.
    pub(crate) fn has_moved(&mut self) -> bool {
        std::mem::take(&mut self.has_moved)
    }
}

/// Whether this thread may spin now: there are cores that no running kernel needs.
pub fn may_spin() -> bool {
    budget::has_room()
}

#[inline]
fn looks(count: u32, ready: &mut impl FnMut() -> bool) -> bool {
    (0..count).any(|_| {
        let found = ready();
        if !found {
            spin_loop();
        }
        found
    })
}

fn spin_within(limit: Duration, ready: &mut impl FnMut() -> bool) -> bool {
    let Some(_seat) = budget::Seat::take() else { return false };
    let start = Instant::now();
    loop {
        if looks(LOOKS, ready) {
            return true;
        }
        if budget::is_overdrawn() || start.elapsed() >= limit {
            return false;
        }
    }
}

/// How many threads can run at once: what the system grants this process, read once, when first
/// asked. Ask before pinning threads, since the reading honours the caller's affinity.
pub fn parallelism() -> usize {
    /// 0 until read.
    static PARALLELISM: CounterUsize = CounterUsize::new(0);
    // Relaxed: a number by itself; two first callers both read it.
    match PARALLELISM.load(Ordering::Relaxed) {
        0 => {
            let parallelism = thread::available_parallelism().map_or(1, usize::from);
            // Relaxed: as above.
            PARALLELISM.store(parallelism, Ordering::Relaxed);
            parallelism
        }
        parallelism => parallelism,
    }
}

thread_local! {
    /// How many [`RunningGuard`]s this thread holds.
    static MARKS: Cell<u32> = const { Cell::new(0) };
}

/// Marks this thread as running a kernel until the guard is dropped: one spinner fewer fits in
/// the process. While the thread sleeps in a wait of this crate it does not count.
pub fn running() -> RunningGuard {
    MARKS.with(|marks| {
        if marks.replace(marks.get() + 1) == 0 {
            budget::enter();
        }
    });
    RunningGuard { this_thread: PhantomData }
}

/// Keeps the mark set by [`running`].
#[must_use = "the mark ends when the guard is dropped"]
pub struct RunningGuard {
    /// The mark is the thread's: the guard cannot move to another.
    this_thread: PhantomData<*const ()>,
}

impl Drop for RunningGuard {
    fn drop(&mut self) {
        MARKS.with(|marks| {
            if marks.replace(marks.get() - 1) == 1 {
                budget::leave();
            }
        });
    }
}

impl fmt::Debug for RunningGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RunningGuard").finish_non_exhaustive()
    }
}

fn is_marked() -> bool {
    MARKS.with(Cell::get) > 0
}

/// While it lives this thread sleeps and, if marked as running, leaves its place to others.
pub(crate) struct Idle {
    marked: bool,
}

impl Idle {
    pub(crate) fn begin() -> Self {
        let marked = is_marked();
        if marked {
            budget::leave();
        }
        Self { marked }
    }
}

impl Drop for Idle {
    fn drop(&mut self) {
        if self.marked {
            budget::enter();
        }
    }
}

/// The process-wide budget: one count of the threads that want a core, be it to run a kernel or to
/// spin. A running thread that begins to spin is counted already.
///
/// All Relaxed: the count orders nothing, and a spin too many for a moment harms nobody.
mod budget {
    use super::{Counter, Ordering, is_marked, parallelism};

    static BUSY: Counter = Counter::new(0);

    fn busy() -> usize {
        BUSY.load(Ordering::Relaxed) as usize
    }

    pub(super) fn enter() {
        BUSY.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn leave() {
        BUSY.fetch_sub(1, Ordering::Relaxed);
    }

    /// Whether one more may spin, this thread if it runs a kernel. Never on a single core.
    pub(super) fn has_room() -> bool {
        let newcomer = usize::from(!is_marked());
        parallelism() > 1 && busy() + newcomer <= parallelism()
    }

    /// Whether a running thread and its waker, which need not be one, leave a core that no other running
    /// thread needs.
    pub(super) fn has_another_core() -> bool {
        busy() < parallelism()
    }

    /// Whether more threads want a core than there are: spinners should stop.
    pub(super) fn is_overdrawn() -> bool {
        busy() > parallelism()
    }

    /// A spinner's entry in the budget; nothing for a thread that is counted as running.
    pub(super) struct Seat {
        entered: bool,
    }

    impl Seat {
        /// `None` if the budget is spent.
        pub(super) fn take() -> Option<Self> {
            let seat = Self { entered: !is_marked() };
            if seat.entered {
                enter();
            }
            (!is_overdrawn()).then_some(seat)
        }
    }

    impl Drop for Seat {
        fn drop(&mut self) {
            if self.entered {
                leave();
            }
        }
    }
}

#[cfg(all(test, loom))]
mod loom_tests;
#[cfg(all(test, not(loom)))]
mod tests;
