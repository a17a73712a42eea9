//! The executor: a thread for each kernel, which keeps the proxy of its process going, and the guests
//! that take its place.

use std::any::Any;
use std::cell::RefCell;
use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, TryLockError};
use std::task::{Context, Wake, Waker};
use std::thread;
use std::time::Instant;

use dotcompute_core::{BoxError, Executor, Helper, KernelId, KernelTask, Place};
use dotcompute_mailbox::doorbell::{Rings, Waiting};
use dotcompute_mailbox::ring::{Glance, Lapped};
use dotcompute_mailbox::sync::{AtomicBool, AtomicU64, AtomicUsize, Ordering, lock};
use dotcompute_mailbox::wait;

use crate::segment::{ParentBell, Segment};

/// Where one kernel is driven: by its driver, a thread of its own, or, while that sleeps, by a guest, a
/// thread that waits for the kernel. So a round trip takes two threads, one of each process, and not
/// four.
pub(crate) struct Desk {
    pub(crate) signals: Arc<Signals>,
    /// Who drives the kernel has it locked. A guest only ever tries to.
    seat: Mutex<Seat>,
    /// What the driver's thread keeps.
    kept: Mutex<Option<Box<dyn Any + Send>>>,
    /// What is watched of the child that runs now.
    watched: Mutex<Option<Watched>>,
    /// Whether that is not what the seat has. Touched by whoever is in the seat, as is the next one.
    replaced: AtomicBool,
    /// The position of the reply that would be news.
    next_reply: AtomicU64,
    /// Whether the child has nothing more to say before it is handed a message.
    quiet: AtomicBool,
}

/// What there is to watch of a child.
#[derive(Debug)]
pub(crate) struct Watched {
    pub(crate) segment: Arc<Segment>,
    pub(crate) replies: Glance<Lapped>,
}

/// No reply would be news.
const NO_REPLY: u64 = u64::MAX;

/// What there may be to do at a desk.
#[derive(Debug)]
pub(crate) struct Signals {
    /// Rung for all news: by the child, by wakers, and at the child's end.
    pub(crate) bell: ParentBell,
    /// The kernel's waker said that there is something to do.
    woken: AtomicBool,
    /// What the guest waits for may be there.
    guest_woken: AtomicBool,
    /// The thread that is in the seat, by its mark; 0: none is, or it is going.
    inside: AtomicUsize,
}

impl Signals {
    /// Rings, unless the calling thread is the one that would be woken: that looks by itself before it
    /// waits or goes.
    fn ring(&self) {
        // Relaxed: it equals this thread's mark only if this thread wrote it last.
        if self.inside.load(Ordering::Relaxed) != thread_mark() {
            self.bell.bell().ring_near();
        }
    }
}

/// A number that no other living thread has, and not 0.
fn thread_mark() -> usize {
    thread_local! {
        static MARK: u8 = const { 0 };
    }
    // A thread that is ending has none any more, and rings.
    MARK.try_with(|mark| std::ptr::from_ref(mark).addr()).unwrap_or(1)
}

struct Seat {
    /// The kernel's life; none before and after it.
    task: Option<KernelTask>,
    watched: Option<Watched>,
    /// The child's count of news when the task was polled last.
    seen: u64,
    waker: Waker,
    guest_waker: Waker,
    driver_waiting: Waiting,
    guest_waiting: Waiting,
}

thread_local! {
    /// The desk of the kernel that this thread is launching.
    static LAUNCHING: RefCell<Option<Arc<Desk>>> = const { RefCell::new(None) };
}

/// The kernel's waker.
struct WakeKernel(Arc<Signals>);

/// The waker of what a guest waits for.
struct WakeGuest(Arc<Signals>);

impl Wake for WakeKernel {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        // SYNC(process.woken) release: pairs with the acquires in `Desk::poll` and `has_news`. Makes
        // visible what the waker did before.
        self.0.woken.store(true, Ordering::Release);
        self.0.ring();
    }
}

impl Wake for WakeGuest {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        // SYNC(process.guest_woken) release: pairs with the acquires in `Guest::drive`. Makes visible
        // what the waker did before.
        self.0.guest_woken.store(true, Ordering::Release);
        self.0.ring();
    }
}

impl fmt::Debug for Desk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Desk").field("signals", &self.signals).finish_non_exhaustive()
    }
}

impl Desk {
    pub(crate) fn new(kept: Box<dyn Any + Send>) -> rustix::io::Result<Arc<Self>> {
        let signals = Arc::new(Signals {
            bell: ParentBell::create()?,
            woken: AtomicBool::new(false),
            guest_woken: AtomicBool::new(false),
            inside: AtomicUsize::new(0),
        });
        let seat = Seat {
            task: None,
            watched: None,
            seen: 0,
            waker: Waker::from(Arc::new(WakeKernel(Arc::clone(&signals)))),
            guest_waker: Waker::from(Arc::new(WakeGuest(Arc::clone(&signals)))),
            driver_waiting: Waiting::default(),
            guest_waiting: Waiting::default(),
        };
        Ok(Arc::new(Self {
            signals,
            seat: Mutex::new(seat),
            kept: Mutex::new(Some(kept)),
            watched: Mutex::default(),
            replaced: AtomicBool::new(false),
            next_reply: AtomicU64::new(NO_REPLY),
            quiet: AtomicBool::new(false),
        }))
    }

    /// Calls `launch`, whose kernel is driven at this desk.
    pub(crate) fn launching<T>(self: &Arc<Self>, launch: impl FnOnce() -> T) -> T {
        LAUNCHING.set(Some(Arc::clone(self)));
        let launched = launch();
        LAUNCHING.take();
        launched
    }

    /// From now on news of this child are what is waited for. For the task that is driven here.
    pub(crate) fn watch(&self, watched: Option<Watched>) {
        *lock(&self.watched) = watched;
        self.expect_reply(None, false);
        // Relaxed: for whoever polls the task, which is this thread, or one that gets the seat from it.
        self.replaced.store(true, Ordering::Relaxed);
        // The task must be polled again: who does looked at another child's news.
        // SYNC(process.woken) release: as in `wake_by_ref`.
        self.signals.woken.store(true, Ordering::Release);
    }

    /// From now on the reply at this position is news. `quiet`: the child has nothing more to say, nor
    /// to publish, before it is handed a message. For the task that is driven here.
    pub(crate) fn expect_reply(&self, position: Option<u64>, quiet: bool) {
        // Relaxed, both: as in `watch`.
        self.next_reply.store(position.unwrap_or(NO_REPLY), Ordering::Relaxed);
        self.quiet.store(quiet, Ordering::Relaxed);
    }

    /// Wakes whoever drives because the child came to an end, which may have been while the child was
    /// about to wake it.
    pub(crate) fn wake_at_end(&self) {
        // SYNC(process.woken) release: as in `wake_by_ref`.
        self.signals.woken.store(true, Ordering::Release);
        self.signals.bell.bell().ring_always();
    }

    /// Lets the kernel do what it can; false once it has ended.
    fn poll(&self, seat: &mut Seat) -> bool {
        // Relaxed, both: as in `watch`.
        if self.replaced.load(Ordering::Relaxed) {
            self.replaced.store(false, Ordering::Relaxed);
            seat.watched = lock(&self.watched).take();
        }
        // Before the poll: what comes after this look is news.
        seat.seen = seat.watched.as_ref().map_or(0, |watched| watched.segment.news());
        // SYNC(process.woken) acquire: pairs with the release in `wake_by_ref`. Makes visible what the
        // waker did before.
        if self.signals.woken.load(Ordering::Acquire) {
            self.signals.woken.swap(false, Ordering::Acquire);
        }
        let mut context = Context::from_waker(&seat.waker);
        let Some(task) = &mut seat.task else { return false };
        if Pin::new(task).poll(&mut context).is_ready() {
            seat.task = None;
            // The desk is kept as long as the kernel is known; the memory of its child is not.
            seat.watched = None;
            return false;
        }
        true
    }

    fn has_news(&self, seat: &Seat) -> bool {
        let published = seat.watched.as_ref().is_some_and(|watched| {
            // Relaxed: as in `watch`.
            let next = self.next_reply.load(Ordering::Relaxed);
            (next != NO_REPLY && watched.replies.is_published(next))
                || watched.segment.news() != seat.seen
        });
        // SYNC(process.woken) acquire: as in `poll`, where it is taken.
        published || self.signals.woken.load(Ordering::Acquire)
    }

    /// The calling thread is in the seat.
    fn enter(&self) {
        self.signals.bell.bell().enter();
        // Relaxed: for this thread.
        self.signals.inside.store(thread_mark(), Ordering::Relaxed);
    }

    /// The calling thread is out of the seat; not if there is news, which it then has to look at.
    fn go(&self, is_news: impl FnMut() -> bool) -> Option<Rings> {
        // Relaxed, both: for this thread.
        self.signals.inside.store(0, Ordering::Relaxed);
        let gone = self.signals.bell.bell().go(is_news);
        if gone.is_none() {
            self.signals.inside.store(thread_mark(), Ordering::Relaxed);
        }
        gone
    }

    /// Drives the kernel to its end, on the calling thread.
    fn drive(&self) {
        let bell = self.signals.bell.bell();
        loop {
            let gone = {
                let mut seat = lock(&self.seat);
                self.enter();
                loop {
                    if !self.poll(&mut seat) {
                        return;
                    }
                    let mut waiting = std::mem::take(&mut seat.driver_waiting);
                    let found = bell.spin(&mut waiting, || self.has_news(&seat));
                    seat.driver_waiting = waiting;
                    if !found && let Some(gone) = self.go(|| self.has_news(&seat)) {
                        break gone;
                    }
                }
            };
            bell.sleep(gone);
        }
    }
}

/// A thread that has taken the driver's seat.
struct Guest<'a> {
    desk: &'a Desk,
    seat: MutexGuard<'a, Seat>,
}

impl Helper for Desk {
    fn in_place(&self, f: &mut dyn FnMut(&mut dyn Place)) -> bool {
        let seat = match self.seat.try_lock() {
            Ok(seat) => seat,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return false,
        };
        if seat.task.is_none() {
            return false;
        }
        self.enter();
        f(&mut Guest { desk: self, seat });
        true
    }
}

/// How a guest waits for news.
enum Wait {
    Until(Option<Instant>),
    Briefly,
}

impl Place for Guest<'_> {
    fn drive(
        &mut self,
        deadline: Option<Instant>,
        done: &mut dyn FnMut(&mut Context<'_>) -> bool,
    ) -> bool {
        self.drive_with(&Wait::Until(deadline), done)
    }

    fn drive_briefly(&mut self, done: &mut dyn FnMut(&mut Context<'_>) -> bool) -> bool {
        self.drive_with(&Wait::Briefly, done)
    }
}

impl Guest<'_> {
    fn drive_with(&mut self, wait: &Wait, done: &mut dyn FnMut(&mut Context<'_>) -> bool) -> bool {
        let Self { desk, seat } = self;
        let Signals { bell, guest_woken, .. } = &*desk.signals;
        let waker = seat.guest_waker.clone();
        let mut context = Context::from_waker(&waker);
        loop {
            // SYNC(process.guest_woken) acquire: pairs with the release in `wake_by_ref`. Makes visible
            // what the waker did before.
            if guest_woken.load(Ordering::Acquire) {
                guest_woken.swap(false, Ordering::Acquire);
            }
            let runs = desk.poll(seat);
            if done(&mut context) {
                return true;
            }
            if !runs {
                return false;
            }
            let mut waiting = std::mem::take(&mut seat.guest_waiting);
            // SYNC(process.guest_woken) acquire: as above, where it is taken.
            let ready = || guest_woken.load(Ordering::Acquire) || desk.has_news(seat);
            let found = match wait {
                Wait::Until(deadline) => bell.bell().wait_as_guest(&mut waiting, *deadline, ready),
                Wait::Briefly => bell.bell().wait_briefly(&mut waiting, ready),
            };
            seat.guest_waiting = waiting;
            if !found {
                return false;
            }
        }
    }
}

impl Drop for Guest<'_> {
    fn drop(&mut self) {
        let signals = &self.desk.signals;
        // Relaxed: for this thread.
        signals.inside.store(0, Ordering::Relaxed);
        // What is left is the driver's, so that a guest is not kept.
        let is_news = || self.seat.task.is_none() || self.desk.has_news(&self.seat);
        // Relaxed: as in `Desk::watch`.
        match self.desk.quiet.load(Ordering::Relaxed) {
            true => signals.bell.bell().leave_quietly(is_news),
            false => signals.bell.bell().leave(is_news),
        }
    }
}

/// Kernels in processes of their own: `"process"`.
#[derive(Debug)]
pub(crate) struct ProcessExecutor;

impl Executor for ProcessExecutor {
    fn name(&self) -> &'static str {
        crate::EXECUTOR
    }

    fn runs_closures(&self) -> bool {
        false
    }

    fn start(&self, kernel: &KernelId, task: KernelTask) -> Result<(), BoxError> {
        let Some(desk) = LAUNCHING.with_borrow(Clone::clone) else {
            return Err("a kernel in a process is launched by `Processes::launch`".into());
        };
        lock(&desk.seat).task = Some(task);
        let name = format!("rk-{kernel}").replace('\0', "?");
        let driver = Arc::clone(&desk);
        let started = thread::Builder::new().name(name).spawn(move || {
            let kept = lock(&driver.kept).take();
            {
                let _running = wait::running();
                driver.drive();
            }
            drop(driver);
            drop(kept);
        });
        if let Err(error) = started {
            let task = lock(&desk.seat).task.take();
            drop(task);
            return Err(error.into());
        }
        Ok(())
    }
}
