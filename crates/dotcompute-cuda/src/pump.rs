//! The pump: the thread that carries messages and replies between mailboxes and seats.
//!
//! It drives the proxies of the kernels (`proxy.rs`) and makes no call of the driver's, so that
//! nothing that waits for the device ever holds up a message. A resident kernel cannot interrupt the
//! host: where something is on the device, the pump looks. It spins while somebody waits for an
//! answer, and otherwise sleeps for 20 us to 1 ms, the longer the less there was; with nothing on
//! the device it sleeps until it is woken.
//!
//! # Edges
//!
//! | name | release | acquire | makes visible |
//! |---|---|---|---|
//! | `pump.woken` | `Desk::wake_by_ref` | `Desk::is_due` | what the waker did |
//! | `pump.news` | `Pump::tell` | `Pump::run` | tasks that were added, desks that were woken |

use std::cell::RefCell;
use std::pin::Pin;
use std::sync::{Arc, Mutex, Weak};
use std::task::{Context, Poll, Wake, Waker};
use std::thread;
use std::time::{Duration, Instant};

use dotcompute_core::{BoxError, Executor, KernelId, KernelTask};
use dotcompute_mailbox::doorbell::{Doorbell, Waiting};
use dotcompute_mailbox::sync::{AtomicBool, Ordering, lock};
use dotcompute_mailbox::wait;

use crate::direct::{Directory, Seat};
use crate::resident::Seated;

/// How long the pump sleeps at first, and at last, while something is on the device.
const NAP_MIN: Duration = Duration::from_micros(20);
const NAP_MAX: Duration = Duration::from_millis(1);

/// For how long in a row it spins for asks that are not answered.
const SPIN_MAX: Duration = Duration::from_millis(10);

/// What a pump has to do for a kernel about which there is no news.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Need {
    /// Nothing: it has nothing on the device.
    Rest,
    /// Look now and then.
    Look,
    /// Somebody waits for an answer.
    Spin,
}

/// A seat, and what its proxy has seen of it.
#[derive(Debug)]
pub(crate) struct Station {
    pub(crate) seated: Seated,
    pub(crate) done: [u64; 4],
    pub(crate) state: u32,
    /// Messages taken from other kernels of the device.
    pub(crate) received: u64,
    /// No reply can be taken in before the proxy is woken.
    pub(crate) blocked: bool,
    /// Nothing can be done before the proxy is woken.
    pub(crate) asleep: bool,
    pub(crate) need: Need,
}

impl Station {
    pub(crate) fn new(seated: Seated) -> Self {
        Self {
            seated,
            done: [0; 4],
            state: 0,
            received: 0,
            blocked: false,
            asleep: false,
            need: Need::Rest,
        }
    }

    fn has_news(&mut self) -> bool {
        let is_lost = self.seated.resident().loss().is_some();
        let Self { seated, done, state, received, blocked, asleep, .. } = self;
        if *asleep {
            return false;
        }
        let port = seated.port();
        let report = port.report();
        is_lost
            || !*blocked && port.has_reply()
            || port.done() != *done
            || report.state != *state
            || report.received != *received
    }
}

/// What pump, proxy and waker of one kernel share.
#[derive(Debug)]
pub(crate) struct Desk {
    pump: Arc<Pump>,
    woken: AtomicBool,
    /// Not there while the proxy uses it.
    pub(crate) station: Mutex<Option<Station>>,
    /// The seat that the kernel has.
    seat: Mutex<Option<Seat>>,
    /// Those whose kernels are connected to this one, or send to it.
    before: Mutex<Vec<Weak<Desk>>>,
    state_bytes: usize,
    has_targets: bool,
}

thread_local! {
    /// The desk of the kernel that this thread is launching.
    static LAUNCHING: RefCell<Option<Arc<Desk>>> = const { RefCell::new(None) };
}

impl Desk {
    /// For a kernel whose state has so many bytes, and which sends to others or not.
    pub(crate) fn new(pump: &Arc<Pump>, state_bytes: usize, has_targets: bool) -> Arc<Self> {
        Arc::new(Self {
            pump: Arc::clone(pump),
            woken: AtomicBool::new(true),
            station: Mutex::default(),
            seat: Mutex::default(),
            before: Mutex::default(),
            state_bytes,
            has_targets,
        })
    }

    /// Calls `launch`, whose kernel is driven at this desk.
    pub(crate) fn launching<T>(self: &Arc<Self>, launch: impl FnOnce() -> T) -> T {
        LAUNCHING.set(Some(Arc::clone(self)));
        let launched = launch();
        LAUNCHING.take();
        launched
    }

    /// The seat that its kernel has.
    pub(crate) fn seat(&self) -> Option<Seat> {
        lock(&self.seat).clone()
    }

    /// Its kernel has another seat, or none; those before it are told.
    pub(crate) fn set_seat(&self, seat: Option<Seat>) {
        let replaced = std::mem::replace(&mut *lock(&self.seat), seat);
        drop(replaced);
        self.wake_before();
    }

    /// Wakes those that are connected to its kernel or send to it.
    pub(crate) fn wake_before(&self) {
        let before: Vec<_> = lock(&self.before).iter().filter_map(Weak::upgrade).collect();
        before.iter().for_each(Wake::wake_by_ref);
    }

    /// From now on this one is told when the seat of `next` changes.
    pub(crate) fn comes_before(self: &Arc<Self>, next: &Self) {
        let mut before = lock(&next.before);
        before.retain(|desk| desk.strong_count() > 0);
        if !before.iter().any(|known| std::ptr::eq(known.as_ptr(), &**self)) {
            before.push(Arc::downgrade(self));
        }
    }

    pub(crate) fn directory(&self) -> &Directory {
        &self.pump.directory
    }

    /// Whether its kernel sends to others by their names.
    pub(crate) fn has_targets(&self) -> bool {
        self.has_targets
    }

    pub(crate) fn state_bytes(&self) -> usize {
        self.state_bytes
    }

    /// Whether its proxy has something to do.
    fn is_due(&self) -> bool {
        // SYNC(pump.woken) acquire: pairs with the release in `wake_by_ref`. Makes visible what the
        // waker did before.
        let woken = self.woken.swap(false, Ordering::Acquire);
        woken || lock(&self.station).as_mut().is_some_and(Station::has_news)
    }

    fn need(&self) -> Need {
        lock(&self.station).as_ref().map_or(Need::Rest, |station| station.need)
    }
}

impl Wake for Desk {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        // SYNC(pump.woken) release: pairs with the acquire in `is_due`. Makes visible what the waker
        // did before.
        self.woken.store(true, Ordering::Release);
        self.pump.tell();
    }
}

/// A thread and what it drives.
#[derive(Debug, Default)]
pub(crate) struct Pump {
    bell: Doorbell,
    news: AtomicBool,
    fresh: Mutex<Vec<(Arc<Desk>, KernelTask)>>,
    /// Nobody launches kernels any more.
    closed: AtomicBool,
    directory: Directory,
}

impl Pump {
    /// Starts the thread, which ends once the pump is closed and has nothing to drive.
    pub(crate) fn start() -> std::io::Result<Arc<Self>> {
        let pump = Arc::new(Self::default());
        let its = Arc::clone(&pump);
        thread::Builder::new().name("dotcompute-pump".to_owned()).spawn(move || {
            let _running = wait::running();
            its.run();
        })?;
        Ok(pump)
    }

    pub(crate) fn close(&self) {
        // Relaxed: `tell` orders it.
        self.closed.store(true, Ordering::Relaxed);
        self.tell();
    }

    fn add(&self, desk: Arc<Desk>, task: KernelTask) {
        lock(&self.fresh).push((desk, task));
        self.tell();
    }

    fn tell(&self) {
        // SYNC(pump.news) release: pairs with the acquires in `run`.
        self.news.store(true, Ordering::Release);
        self.bell.ring();
    }

    fn run(&self) {
        let mut tasks: Vec<(Arc<Desk>, Waker, KernelTask)> = Vec::new();
        let mut waiting = Waiting::default();
        let (mut idle, mut nap) = (None, NAP_MIN);
        loop {
            // SYNC(pump.news) acquire: pairs with the release in `tell`. Makes visible tasks that
            // were added and desks that were woken.
            if self.news.swap(false, Ordering::Acquire) {
                let fresh = std::mem::take(&mut *lock(&self.fresh));
                tasks.extend(fresh.into_iter().map(|(desk, task)| {
                    let waker = Waker::from(Arc::clone(&desk));
                    (desk, waker, task)
                }));
            }
            let before = tasks.len();
            let mut worked = false;
            tasks.retain_mut(|(desk, waker, task)| {
                if !desk.is_due() {
                    return true;
                }
                worked = true;
                poll(task, waker).is_pending()
            });
            if worked || tasks.len() != before {
                (idle, nap) = (None, NAP_MIN);
                continue;
            }
            let has_news = || {
                // SYNC(pump.news) acquire: as above, where it is taken.
                self.news.load(Ordering::Acquire)
            };
            // Relaxed: ordered by the news.
            if tasks.is_empty() && self.closed.load(Ordering::Relaxed) && !has_news() {
                return;
            }
            let now = Instant::now();
            let since = *idle.get_or_insert(now);
            match tasks.iter().map(|(desk, ..)| desk.need()).max().unwrap_or(Need::Rest) {
                Need::Rest => {
                    self.bell.wait(&mut waiting, None, has_news);
                }
                Need::Spin if now - since < SPIN_MAX => match wait::parallelism() {
                    // Whoever asks, and whoever it waits for, may need this core.
                    0..=2 => thread::yield_now(),
                    _ => std::hint::spin_loop(),
                },
                Need::Spin | Need::Look => {
                    self.bell.wait(&mut waiting, Some(now + nap), has_news);
                    if nap == NAP_MAX {
                        // Whoever asked may have given up, of which there is no news.
                        tasks.retain_mut(|(desk, waker, task)| {
                            desk.need() != Need::Spin || poll(task, waker).is_pending()
                        });
                    }
                    nap = (nap * 2).min(NAP_MAX);
                }
            }
        }
    }
}

fn poll(task: &mut KernelTask, waker: &Waker) -> Poll<()> {
    Pin::new(task).poll(&mut Context::from_waker(waker))
}

/// Kernels on a GPU: `"cuda"`.
#[derive(Debug)]
pub(crate) struct CudaExecutor;

impl Executor for CudaExecutor {
    fn name(&self) -> &'static str {
        crate::EXECUTOR
    }

    fn runs_closures(&self) -> bool {
        false
    }

    fn start(&self, _kernel: &KernelId, task: KernelTask) -> Result<(), BoxError> {
        let Some(desk) = LAUNCHING.with_borrow(Clone::clone) else {
            return Err("a kernel on a GPU is launched by `Cuda::launch`".into());
        };
        let pump = Arc::clone(&desk.pump);
        pump.add(desk, task);
        Ok(())
    }
}
