//! What the native part keeps for one event loop: the list of what is ready to go on.
//!
//! Everything that is woken goes on the list, and one callback of the loop (`call_soon`, or from
//! another thread `call_soon_threadsafe`) works it off. An await that finds nothing first *helps*:
//! it runs what is ready then and there, which saves the way through the loop.
//!
//! An await for a kernel that runs beside the interpreter (a compiled handler on a thread, in a process
//! or on a GPU) has the loop *look out*: for 50 us at most its callback comes again and again, so that
//! the loop does not go to sleep, from which it would have to be woken, with the interpreter's lock and
//! a system call on the kernel's side and tens of microseconds where a core has to wake up for it.
//! Everything else on the loop has its turns in between. How long is learnt from whether news came.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::mem::ManuallyDrop;
use std::pin::{Pin, pin};
use std::ptr::{null, null_mut};
use std::sync::{Arc, Mutex, Weak};
use std::task::{Context, Wake, Waker};
use std::thread::ThreadId;
use std::time::{Duration, Instant};

use crate::once::intern;
use dotcompute::mailbox::sync::{AtomicBool, AtomicU32, Ordering, lock};
use dotcompute::mailbox::wait::{Spin, cpu_mark, may_spin, same_cpu};
use dotcompute::{BoxError, KernelTask};
use pyo3::exceptions::PyRuntimeError;
use pyo3::types::{PyDict, PyWeakrefMethods, PyWeakrefReference};
use pyo3::{Borrowed, ffi, prelude::*};

use super::executor::without_signals;
use super::guarded;
use super::held::Held;
use super::python::names;
use super::scope::{attached, detached, schedule_later, scope};
use super::waiter::{self, Slot};
use crate::attached::Attached;
use crate::quick::Quick;

/// How many awaits may be completed at once, and how many wakes worked off, before the loop has its
/// turn. What is completed after a wake counts as that wake.
const BUDGET: u32 = 256;
/// How many wakes awaits may help with in one turn of the loop.
const HELPS: u32 = 128;
/// How long wakes are worked off and helped with in one turn of the loop. The clock is read every
/// [`CLOCK_EVERY`] wakes.
const TURN: Duration = Duration::from_millis(1);
const CLOCK_EVERY: u32 = 16;
/// How deep helps may be nested.
const DEPTH: u32 = 2;
/// How many waiters are kept for later use.
const SPARES: usize = 64;
/// When the timer fires that tells, by going away, that the loop was closed: never, in effect.
const NEVER_S: f64 = 1e8;

/// What is ready to go on.
pub(super) enum Ready {
    /// A Task that waits on a waiter.
    Slot(Arc<Slot>),
    /// A kernel's life.
    Job(Arc<Job>),
}

/// See the module.
pub(crate) struct Hub {
    address: usize,
    event_loop: Py<PyWeakrefReference>,
    thread: Mutex<ThreadId>,
    state: Mutex<State>,
    /// The list, of threads that are attached to the interpreter.
    ready: Attached<VecDeque<Ready>>,
    /// What other threads have added to it.
    added: Mutex<Vec<Ready>>,
    /// A hint, to spare the lock: whether they have.
    has_added: AtomicBool,
    /// A drain is on its way: on the loop, or about to be put there.
    scheduled: AtomicBool,
    spares: Attached<Vec<Py<PyAny>>>,
    depth: AtomicU32,
    helped: AtomicU32,
    /// When this turn of the loop began: at its first look at the clock.
    began: Attached<Option<Instant>>,
    lookout: Attached<Lookout>,
    /// Where the thread ran that has added last, as [`cpu_mark`]. A hint.
    added_from: AtomicU32,
    closed: AtomicBool,
    /// Who waits for what is no object of Python's.
    pub(super) held: Arc<Held>,
}

/// See the module.
#[derive(Default)]
struct Lookout {
    spin: Spin,
    /// The loop looks out until then.
    until: Option<Instant>,
}

struct State {
    jobs: HashMap<usize, Arc<Job>>,
    /// An exit that a help ran into: the next drain raises it.
    exit: Option<PyErr>,
    /// What the loop calls: the method of a [`Drain`].
    drain: Option<Py<PyAny>>,
}

static HUBS: Mutex<Vec<Arc<Hub>>> = Mutex::new(Vec::new());

thread_local! {
    static LAST: RefCell<Weak<Hub>> = const { RefCell::new(Weak::new()) };
    static LEFT: Cell<u32> = const { Cell::new(BUDGET) };
    /// The hub whose list this thread is working off, and its loop: null if none.
    static CURRENT: Cell<(*const Hub, *mut ffi::PyObject)> =
        const { Cell::new((null(), null_mut())) };
}

/// Whether awaits may still be completed in this turn of this thread's loop.
#[inline]
fn has_budget() -> bool {
    LEFT.get() > 0
}

/// Calls `f`, which completes an await or does not, if there is budget for it.
#[inline(always)]
pub(super) fn with_budget<T>(f: impl FnOnce() -> Option<T>) -> Option<T> {
    LEFT.with(|left| {
        if left.get() == 0 {
            return None;
        }
        let completed = f()?;
        left.set(left.get().saturating_sub(1));
        Some(completed)
    })
}

/// How long an await may wait on its thread for as much of the budget as one that does not wait.
const WAIT_PER_AWAIT: Duration = Duration::from_micros(4);

/// An await has waited on this thread for so long, and kept the loop from its turn: that counts as
/// several. So awaits keep it for [`TURN`] or so, or the longest single wait beyond it.
#[inline]
pub(super) fn charge(waited: Duration) {
    let awaits = waited.as_nanos() / WAIT_PER_AWAIT.as_nanos();
    let awaits = u32::try_from(awaits).unwrap_or(u32::MAX);
    LEFT.set(LEFT.get().saturating_sub(awaits));
}

/// A new turn of the loop has begun.
#[inline]
pub(super) fn refill() {
    if LEFT.get() == 0 {
        LEFT.set(BUDGET);
    }
}

impl Hub {
    /// The hub of the loop that runs on this thread, and the loop.
    pub(super) fn running(py: Python<'_>) -> PyResult<(Arc<Self>, Bound<'_, PyAny>)> {
        Self::with_running(py, |hub, event_loop| (Arc::clone(hub), event_loop.clone()))
    }

    /// Calls `f` with the hub of the loop that runs on this thread, and the loop.
    #[inline]
    pub(super) fn with_running<'py, R>(
        py: Python<'py>,
        f: impl FnOnce(&Arc<Self>, &Bound<'py, PyAny>) -> R,
    ) -> PyResult<R> {
        let (hub, event_loop) = CURRENT.get();
        if !hub.is_null() {
            // SAFETY: `Current`, further up the stack of this thread, owns the hub's `Arc` for longer than
            // this call, and this one is not dropped.
            let hub = ManuallyDrop::new(unsafe { Arc::from_raw(hub) });
            // SAFETY: `Current` owns a reference to the loop.
            let event_loop = unsafe { Borrowed::from_ptr(py, event_loop) };
            return Ok(f(&hub, &event_loop));
        }
        let event_loop = names(py)?.running_loop.bind(py).call0()?;
        if event_loop.is_none() {
            return Err(PyRuntimeError::new_err("no running event loop"));
        }
        let address = event_loop.as_ptr() as usize;
        let last = LAST.with_borrow(Weak::upgrade);
        if let Some(hub) = last
            && hub.address == address
            && !hub.is_closed()
        {
            return Ok(f(&hub, &event_loop));
        }
        let hub = Self::of(&event_loop)?;
        LAST.set(Arc::downgrade(&hub));
        Ok(f(&hub, &event_loop))
    }

    /// The hub of `event_loop`, which runs on this thread.
    fn of(event_loop: &Bound<'_, PyAny>) -> PyResult<Arc<Self>> {
        let py = event_loop.py();
        let address = event_loop.as_ptr() as usize;
        let known =
            |hubs: &Vec<Arc<Self>>| hubs.iter().find(|hub| hub.address == address).map(Arc::clone);
        if let Some(hub) = known(&lock(&HUBS)) {
            return Ok(hub);
        }
        start_timer();
        let hub = Arc::new(Self {
            address,
            event_loop: PyWeakrefReference::new(event_loop)?.unbind(),
            thread: Mutex::new(std::thread::current().id()),
            state: Mutex::new(State { jobs: HashMap::new(), exit: None, drain: None }),
            spares: Attached::default(),
            ready: Attached::default(),
            added: Mutex::default(),
            has_added: AtomicBool::new(false),
            scheduled: AtomicBool::new(false),
            depth: AtomicU32::new(0),
            helped: AtomicU32::new(0),
            began: Attached::default(),
            lookout: Attached::default(),
            added_from: AtomicU32::new(0),
            closed: AtomicBool::new(false),
            held: Arc::default(),
        });
        let drain = Bound::new(py, Drain { hub: Arc::downgrade(&hub) })?;
        let drain = drain.getattr(intern!(py, "work_off"))?.unbind();
        lock(&hub.state).drain = Some(drain);
        // A loop drops its timers when it is closed, and when it is collected.
        let sentinel = Py::new(py, Sentinel { hub: Arc::downgrade(&hub) })?;
        event_loop.call_method1(intern!(py, "call_later"), (NEVER_S, sentinel))?;
        lock(&HUBS).push(Arc::clone(&hub));
        Ok(hub)
    }

    /// Whether the loop is closed.
    #[inline]
    pub(super) fn is_closed(&self) -> bool {
        // SYNC(hub.closed) acquire: pairs with the release in `close`.
        self.closed.load(Ordering::Acquire)
    }

    /// The loop, unless it is gone.
    pub(super) fn event_loop<'py>(&self, py: Python<'py>) -> Option<Bound<'py, PyAny>> {
        self.event_loop.bind(py).upgrade()
    }

    /// Adds to the list; from any thread.
    #[inline]
    pub(super) fn push(self: &Arc<Self>, ready: Ready) {
        let Some(py) = attached() else { return self.add(ready) };
        if self.is_closed() {
            return drop(ready);
        }
        self.ready.with(py, |list| list.push_back(ready));
        self.ask_for_drain();
    }

    /// [`push`](Self::push) for threads that are not attached to the interpreter.
    #[cold]
    fn add(self: &Arc<Self>, ready: Ready) {
        {
            let mut added = lock(&self.added);
            if self.is_closed() {
                drop(added);
                return drop(ready);
            }
            added.push(ready);
            // Relaxed: a hint.
            self.added_from.store(cpu_mark(), Ordering::Relaxed);
            // Relaxed: whoever misses it does not miss the drain, which is asked for below.
            self.has_added.store(true, Ordering::Relaxed);
        }
        self.ask_for_drain();
    }

    /// Sees to it that a drain comes, which finds what was added before.
    #[inline]
    fn ask_for_drain(self: &Arc<Self>) {
        // Relaxed, for who is attached, as drains are: then it is exact. Who is not may miss that a drain
        // has begun, so it does not rely on this look.
        if attached().is_some() && self.scheduled.load(Ordering::Relaxed) {
            return;
        }
        // SYNC(hub.scheduled) acqrel: pairs with the swap in `drain`. If a drain is on its way, it finds
        // what was added.
        if !self.scheduled.swap(true, Ordering::AcqRel)
            && let Some(hub) = schedule_later(Arc::clone(self))
        {
            // Without an interpreter there is no loop either.
            let _ = Python::try_attach(|py| hub.schedule(py));
        }
    }

    /// Has the loop stay awake for news of kernels, for a while, if that has been worth it lately. To be
    /// called before the kernel learns whom to wake: else it may have to put the drain on the loop, and
    /// wait for the interpreter's lock, while the loop goes to sleep.
    pub(super) fn look_out(self: &Arc<Self>, py: Python<'_>) {
        let begins = self.lookout.with(py, |lookout| {
            if lookout.until.is_none() {
                lookout.until = lookout.spin.begin().map(|limit| Instant::now() + limit);
                return lookout.until.is_some();
            }
            false
        });
        // SYNC(hub.scheduled) acqrel: as in `ask_for_drain`.
        if begins && !self.scheduled.swap(true, Ordering::AcqRel) {
            self.schedule(py);
        }
    }

    /// What the loop looked out for has come, if it did.
    pub(super) fn found(&self, py: Python<'_>) {
        self.lookout.with(py, |lookout| {
            if lookout.until.take().is_some() {
                lookout.spin.ended(true);
            }
        });
    }

    /// Whether the loop is to look out for longer.
    fn looks_out(&self, py: Python<'_>) -> bool {
        self.lookout.with(py, |lookout| {
            let Some(until) = lookout.until else { return false };
            let is_over = Instant::now() >= until;
            if is_over {
                lookout.spin.ended(false);
            }
            if is_over || !may_spin() {
                lookout.until = None;
            }
            lookout.until.is_some()
        })
    }

    /// Takes over what threads have added that are not attached.
    #[cold]
    fn take_added(&self, py: Python<'_>) {
        let added = {
            let mut added = lock(&self.added);
            // Relaxed: written under the lock.
            self.has_added.store(false, Ordering::Relaxed);
            std::mem::take(&mut *added)
        };
        self.found(py);
        self.ready.with(py, |list| list.extend(added));
    }

    /// Puts the drain on the loop.
    pub(super) fn schedule(self: &Arc<Self>, py: Python<'_>) {
        let drain = lock(&self.state).drain.as_ref().map(|drain| drain.bind(py).clone());
        let (Some(drain), Some(event_loop)) = (drain, self.event_loop(py)) else { return };
        // What runs from now on belongs to the turn that ends with the drain, or to the drain.
        self.began.with(py, |began| *began = None);
        let here = *lock(&self.thread) == std::thread::current().id();
        let method =
            if here { intern!(py, "call_soon") } else { intern!(py, "call_soon_threadsafe") };
        // SAFETY: the interpreter is attached, and these are alive.
        let called = unsafe {
            guarded::call_method(event_loop.as_ptr(), method.as_ptr(), drain.as_ptr(), null_mut())
        };
        // SAFETY: a new reference, or null with an error set.
        if let Err(error) = unsafe { Bound::from_owned_ptr_or_err(py, called) } {
            let closed = event_loop.call_method0(intern!(py, "is_closed"));
            if closed.and_then(|closed| closed.is_truthy()).unwrap_or(true) {
                self.close(py);
            } else {
                error.write_unraisable(py, Some(&event_loop));
                // SYNC(hub.scheduled) release: pairs with the swaps in `ask_for_drain`.
                self.scheduled.store(false, Ordering::Release);
            }
        }
    }

    /// Works the list off, at most as much as the budget allows. The error is an exit, which the
    /// loop is to raise.
    fn drain(self: &Arc<Self>, py: Python<'_>) -> PyResult<()> {
        *lock(&self.thread) = std::thread::current().id();
        LEFT.set(BUDGET);
        // Relaxed: only the thread that runs the loop uses it.
        self.helped.store(0, Ordering::Relaxed);
        let exit = lock(&self.state).exit.take();
        if exit.is_none() && !self.has_ready(py) && self.looks_out(py) {
            // A drain is on its way all the time: who adds something now need not see to one.
            self.schedule(py);
            // Relaxed: a hint.
            if same_cpu(self.added_from.load(Ordering::Relaxed)) {
                // The kernel was on this core, and may be waiting for it.
                std::thread::yield_now();
            }
            return Ok(());
        }
        // SYNC(hub.scheduled) acqrel: pairs with the swaps in `ask_for_drain`. What was added before one
        // that found a drain on its way is found by this one.
        self.scheduled.swap(false, Ordering::AcqRel);
        let mut outcome = exit.map_or(Ok(()), Err);
        let Some(event_loop) = self.event_loop(py) else { return outcome };
        let current = Current::enter(self, &event_loop);
        let depth = Depth::enter(self);
        let mut left = BUDGET;
        // Whoever has used the budget up has given way to the loop, not to this list.
        while outcome.is_ok() && left > 0 && has_budget() {
            let Some(ready) = self.next(py) else { break };
            left -= 1;
            outcome = self.run(py, ready);
            if left.is_multiple_of(CLOCK_EVERY) && self.is_over(py) {
                break;
            }
        }
        drop(depth);
        drop(current);
        // SYNC(hub.scheduled) acqrel: as in `ask_for_drain`.
        if (self.has_ready(py) || self.looks_out(py))
            && !self.scheduled.swap(true, Ordering::AcqRel)
        {
            self.schedule(py);
        }
        outcome
    }

    #[inline]
    fn has_ready(&self, py: Python<'_>) -> bool {
        // Relaxed: as in `add`.
        self.has_added.load(Ordering::Relaxed) || self.ready.with(py, |list| !list.is_empty())
    }

    #[inline]
    fn next(&self, py: Python<'_>) -> Option<Ready> {
        // Relaxed: as in `add`.
        if self.has_added.load(Ordering::Relaxed) {
            self.take_added(py);
        }
        self.ready.with(py, VecDeque::pop_front)
    }

    #[inline]
    fn run(self: &Arc<Self>, py: Python<'_>, ready: Ready) -> PyResult<()> {
        match ready {
            Ready::Slot(slot) => slot.run(py),
            Ready::Job(job) => {
                job.run(py);
                // Its actor may have come to its end at once, as eager tasks do.
                lock(&self.state).exit.take().map_or(Ok(()), Err)
            }
        }
    }

    /// Runs what is ready, from inside an await of a Task of this loop; whether it ran anything.
    pub(super) fn help(self: &Arc<Self>, py: Python<'_>, event_loop: &Bound<'_, PyAny>) -> bool {
        // Relaxed: only the thread that runs the loop uses them.
        if self.depth.load(Ordering::Relaxed) >= DEPTH
            || self.helped.load(Ordering::Relaxed) >= HELPS
            || !self.has_ready(py)
        {
            return false;
        }
        // What runs now must not see an exception that this Task is handling, and the stable
        // interface cannot hide it: so such a Task waits its turn.
        // SAFETY: the interpreter is attached; a new reference, or null.
        let handled = unsafe { ffi::PyErr_GetHandledException() };
        if !handled.is_null() {
            // SAFETY: the new reference from above.
            unsafe { ffi::Py_DECREF(handled) };
            return false;
        }
        let Ok(names) = names(py) else { return false };
        let Ok(Some(task)) = names.leave(event_loop) else { return false };
        let current = Current::enter(self, event_loop);
        let depth = Depth::enter(self);
        while self.helped.load(Ordering::Relaxed) < HELPS && has_budget() {
            let Some(ready) = self.next(py) else { break };
            let helped = self.helped.fetch_add(1, Ordering::Relaxed) + 1;
            if let Err(exit) = self.run(py, ready) {
                self.raise_later(py, exit);
                break;
            }
            if helped.is_multiple_of(CLOCK_EVERY) && self.is_over(py) {
                // Relaxed: as above. No more help in this turn.
                self.helped.store(HELPS, Ordering::Relaxed);
            }
        }
        drop(depth);
        drop(current);
        if let Err(error) = names.enter(event_loop, &task) {
            error.write_unraisable(py, Some(&task));
        }
        true
    }

    /// Whether this turn has taken its time.
    fn is_over(&self, py: Python<'_>) -> bool {
        let now = Instant::now();
        self.began.with(py, |began| now.duration_since(*began.get_or_insert(now)) > TURN)
    }

    /// Has the loop raise an exit (SystemExit, KeyboardInterrupt) as soon as can be.
    pub(super) fn raise_later(self: &Arc<Self>, py: Python<'_>, exit: PyErr) {
        lock(&self.state).exit = Some(exit);
        // SYNC(hub.scheduled) acqrel: as in `ask_for_drain`.
        if !self.scheduled.swap(true, Ordering::AcqRel) {
            self.schedule(py);
        }
    }

    /// A waiter, to be yielded by an await on this loop.
    pub(super) fn waiter(
        self: &Arc<Self>,
        py: Python<'_>,
        event_loop: &Bound<'_, PyAny>,
    ) -> Quick<Py<PyAny>> {
        let spare = self.spares.with(py, Vec::pop);
        match spare {
            Some(spare) => Ok(spare),
            None => waiter::new(py, self, event_loop.clone().unbind()),
        }
    }

    /// Takes back a waiter that nobody refers to any more.
    pub(super) fn keep_spare(&self, waiter: Bound<'_, PyAny>) {
        let over = self.spares.with(waiter.py(), |spares| {
            if spares.len() < SPARES && !self.is_closed() {
                spares.push(waiter.unbind());
                return None;
            }
            Some(waiter)
        });
        drop(over);
    }

    /// The callback's turn comes with the loop's own list.
    pub(super) fn call_soon(
        &self,
        py: Python<'_>,
        callback: &Bound<'_, PyAny>,
        argument: &Bound<'_, PyAny>,
        context: &Bound<'_, PyAny>,
    ) {
        let Some(event_loop) = self.event_loop(py) else { return };
        let keywords = PyDict::new(py);
        let called = keywords.set_item(intern!(py, "context"), context).and_then(|()| {
            event_loop.call_method(intern!(py, "call_soon"), (callback, argument), Some(&keywords))
        });
        if let Err(error) = called {
            error.write_unraisable(py, Some(callback));
        }
    }

    /// Tells the loop's exception handler.
    pub(super) fn report(&self, py: Python<'_>, error: &PyErr) {
        let told = self.event_loop(py).map(|event_loop| {
            let details = PyDict::new(py);
            details.set_item("message", "Exception in a callback of pydotcompute")?;
            details.set_item("exception", error.value(py))?;
            event_loop.call_method1("call_exception_handler", (details,))
        });
        if !matches!(told, Some(Ok(_))) {
            error.clone_ref(py).write_unraisable(py, None);
        }
    }

    /// Begins to drive a kernel.
    pub(super) fn start(self: &Arc<Self>, task: KernelTask) -> Result<(), BoxError> {
        let job = Arc::new(Job {
            hub: Arc::clone(self),
            queued: AtomicBool::new(false),
            state: Mutex::new(JobState { task: Some(task), polling: false, again: false }),
        });
        {
            let mut state = lock(&self.state);
            if self.is_closed() {
                return Err("the event loop is closed".into());
            }
            state.jobs.insert(Arc::as_ptr(&job) as usize, Arc::clone(&job));
        }
        job.wake();
        Ok(())
    }

    /// The loop will run no more: its kernels fail, and everyone who waits for them is told.
    pub(super) fn close(self: &Arc<Self>, py: Python<'_>) {
        let (jobs, added, drain) = {
            let mut state = lock(&self.state);
            let mut added = lock(&self.added);
            // SYNC(hub.closed) release: pairs with the acquire in `is_closed`. Under the locks, so
            // that nothing is added after it.
            self.closed.store(true, Ordering::Release);
            let jobs = std::mem::take(&mut state.jobs);
            (jobs, std::mem::take(&mut *added), state.drain.take())
        };
        let ready = self.ready.with(py, std::mem::take);
        lock(&HUBS).retain(|hub| !Arc::ptr_eq(hub, self));
        let spares = self.spares.with(py, std::mem::take);
        scope(py, || {
            for job in jobs.into_values() {
                job.abandon();
            }
        });
        self.held.clear(py);
        drop((ready, added, drain, spares));
    }
}

/// Starts the thread of the core's timer, which is to leave signals to Python's main thread.
fn start_timer() {
    // Relaxed: to start it twice does no harm.
    if TIMER_STARTED.swap(true, Ordering::Relaxed) {
        return;
    }
    without_signals(|| {
        let soon = Instant::now() + Duration::from_millis(1);
        let mut sleep = pin!(dotcompute::sleep_until(soon));
        let _ = sleep.as_mut().poll(&mut Context::from_waker(Waker::noop()));
    });
}

static TIMER_STARTED: AtomicBool = AtomicBool::new(false);

/// While it lives, this thread works the hub's list off.
struct Current<'a, 'py> {
    outer: (*const Hub, *mut ffi::PyObject),
    _hub: &'a Arc<Hub>,
    _loop: &'a Bound<'py, PyAny>,
}

impl<'a, 'py> Current<'a, 'py> {
    fn enter(hub: &'a Arc<Hub>, event_loop: &'a Bound<'py, PyAny>) -> Self {
        let outer = CURRENT.replace((Arc::as_ptr(hub), event_loop.as_ptr()));
        Self { outer, _hub: hub, _loop: event_loop }
    }
}

impl Drop for Current<'_, '_> {
    fn drop(&mut self) {
        CURRENT.set(self.outer);
    }
}

/// Counts how deep runs are nested.
struct Depth<'a>(&'a Hub);

impl<'a> Depth<'a> {
    fn enter(hub: &'a Hub) -> Self {
        // Relaxed: only the thread that runs the loop uses it.
        hub.depth.fetch_add(1, Ordering::Relaxed);
        Self(hub)
    }
}

impl Drop for Depth<'_> {
    fn drop(&mut self) {
        // Relaxed: as in `enter`.
        self.0.depth.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A kernel's life, driven by a hub.
pub(super) struct Job {
    hub: Arc<Hub>,
    queued: AtomicBool,
    state: Mutex<JobState>,
}

struct JobState {
    task: Option<KernelTask>,
    polling: bool,
    /// Its turn came while it was polled, further down the stack.
    again: bool,
}

impl Job {
    fn run(self: &Arc<Self>, py: Python<'_>) {
        // SYNC(job.queued) acqrel: pairs with itself in `wake`. What the waker did before is seen
        // by the poll; a wake after this queues the job again.
        self.queued.swap(false, Ordering::AcqRel);
        let task = {
            let mut state = lock(&self.state);
            if state.polling {
                state.again = true;
                return;
            }
            state.polling = state.task.is_some();
            state.task.take()
        };
        let Some(mut task) = task else { return };
        let waker = Waker::from(Arc::clone(self));
        // A kernel's life may be any future, also one that blocks its thread: not all of Python.
        let polled = detached(py, || Pin::new(&mut task).poll(&mut Context::from_waker(&waker)));
        let closed = self.hub.is_closed();
        let (again, over) = {
            let mut state = lock(&self.state);
            state.polling = false;
            let over = if polled.is_pending() && !closed {
                state.task = Some(task);
                None
            } else {
                Some(task)
            };
            (std::mem::take(&mut state.again), over)
        };
        match over {
            Some(task) => {
                let known = lock(&self.hub.state).jobs.remove(&(Arc::as_ptr(self) as usize));
                scope(py, || drop(task));
                drop(known);
            }
            None if again => self.wake_by_ref(),
            None => {}
        }
    }

    /// Drops the kernel's life unfinished.
    fn abandon(&self) {
        let task = lock(&self.state).task.take();
        drop(task);
    }
}

impl Wake for Job {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        // SYNC(job.queued) acqrel: pairs with itself in `run`.
        if !self.queued.swap(true, Ordering::AcqRel) {
            self.hub.push(Ready::Job(Arc::clone(self)));
        }
    }
}

/// The loop's callback.
#[pyclass(frozen, module = "pydotcompute._native")]
struct Drain {
    hub: Weak<Hub>,
}

#[pymethods]
impl Drain {
    /// A method, since that is called faster than an object.
    fn work_off(&self, py: Python<'_>) -> PyResult<()> {
        self.hub.upgrade().map_or(Ok(()), |hub| hub.drain(py))
    }
}

/// Goes away with the loop's timers.
#[pyclass(frozen, module = "pydotcompute._native")]
struct Sentinel {
    hub: Weak<Hub>,
}

#[pymethods]
impl Sentinel {
    fn __call__(&self) {}
}

impl Drop for Sentinel {
    fn drop(&mut self) {
        if let Some(hub) = self.hub.upgrade() {
            let _ = Python::try_attach(|py| hub.close(py));
        }
    }
}

/// Makes the classes that the module does not show: see [`once`](crate::once).
pub(super) fn make_classes(py: Python<'_>) {
    py.get_type::<Drain>();
    py.get_type::<Sentinel>();
}

/// Drops all kernels of all loops: the interpreter is about to end.
#[pyfunction]
pub(super) fn _close_all(py: Python<'_>) {
    loop {
        let hub = lock(&HUBS).first().map(Arc::clone);
        match hub {
            Some(hub) => hub.close(py),
            None => return,
        }
    }
}

thread_local! {
    /// Held while this thread forks.
    static HELD: Cell<Option<dotcompute::TimeoutsHeld>> = const { Cell::new(None) };
}

/// The timer's thread is not to be at work while this one forks: dropping what belongs to Python it may
/// hold a lock of PyO3's, and in the child that would be locked for ever.
#[pyfunction]
pub(super) fn _before_fork(py: Python<'_>) {
    // What it is at may need the interpreter.
    py.detach(|| HELD.set(Some(dotcompute::hold_timeouts())));
}

/// After a fork, in the parent.
#[pyfunction]
pub(super) fn _after_fork_in_parent() {
    HELD.take();
}

/// The child of a fork has none of its parent's loops and threads.
#[pyfunction]
pub(super) fn _after_fork() {
    HELD.take();
    dotcompute::MessageId::reseed();
    dotcompute::restart_timeouts_after_fork();
    // Relaxed: this thread is the only one.
    TIMER_STARTED.store(false, Ordering::Relaxed);
    // Not dropped: their locks may be held by threads that are not here.
    if let Ok(mut hubs) = HUBS.try_lock() {
        std::mem::forget(std::mem::take(&mut *hubs));
    }
    LAST.set(Weak::new());
    super::executor::forget_threads();
}
