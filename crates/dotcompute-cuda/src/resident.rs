//! A grid that stays on a device: launched, renewed lease by lease, changed between two leases.
//!
//! One thread, the launcher, makes all of the driver's calls. It keeps two launches in one stream:
//! the grid that runs and the one that follows it, so that from one lease to the next nothing
//! passes through the host. To change anything it asks both to end, which takes no call, and
//! launches anew. It keeps the heartbeat too: a grid whose launcher is gone ends by itself; and when
//! the process exits, a hook asks it to end first.

mod calls;
mod error;
mod exit;
#[cfg(target_os = "linux")]
mod isolated;
mod launcher;

use std::fmt;
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex, OnceLock};
use std::task::Waker;
use std::thread;
use std::time::Duration;

use dotcompute_abi::TaggedRecord;
use dotcompute_mailbox::sync::{AtomicU32, Ordering, lock};
use dotcompute_mailbox::wait;
use tokio::sync::oneshot;

use crate::driver::Driver;
use crate::green::Placement;
use crate::grid::{Counters, Port, PortWords, Report, SeatPlan, Shape, Way};
use crate::image::Image;
use launcher::Launcher;

pub use error::{Loss, ResidentError};
#[cfg(target_os = "linux")]
pub use isolated::{isolated, serve_isolated};

/// Where the context of a grid lives, and so what is lost with it.
#[derive(Clone, Debug, Default)]
pub enum Isolation {
    /// In this process: arrays are shared with its other libraries, and a hardware exception costs it the
    /// device for good.
    #[default]
    Thread,
    /// In a child process for each grid (Linux), by a program's [`isolated`] kernels: a context that is lost,
    /// a handler that never comes back and a SIGKILL cost the grid, whose kernels their restart policies
    /// bring back on another one. Contexts of several processes take turns on a device unless MPS runs:
    /// let a grid have [seats](crate::CudaOptions::seats) for all kernels.
    #[cfg(target_os = "linux")]
    Process(dotcompute_process::Processes),
}

/// How a grid stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Residency {
    /// How long it stays before the next launch takes over. A call that waits for the whole device,
    /// as other libraries make, waits for two leases at most, and for ever without one.
    pub lease: Option<Duration>,
    /// How long it goes on without a sign of the host.
    pub silence: Option<Duration>,
    /// How long it may take for all of its warps to be there.
    pub census: Duration,
    /// How long a handler may keep the grid when it is to leave: then it is killed at its next tick,
    /// and if it does not come to one within a second, the grid is given up with all its kernels.
    pub overdue: Duration,
    /// How many multiprocessors of the device are set aside for grids at least: 0 for as many as the first
    /// grid needs, `None` for none, which is the default until a GPU has shown what it is worth. The driver
    /// rounds up (to 8 on `sm_90`). The first grid that wants some, or the first
    /// [`Cuda::ring_free_sms`](crate::Cuda::ring_free_sms), decides for the process. It takes green contexts
    /// (drivers since 12.4) and the grid's context in this process. A grid keeps off the others' multiprocessors
    /// so; the others keep off these only in streams of that call. Where it cannot be, or other grids have them
    /// all, a grid runs elsewhere, and [`Resident::placement`] says where and why.
    pub ring_multiprocessors: Option<u32>,
}

impl Default for Residency {
    fn default() -> Self {
        Self {
            lease: Some(Duration::from_millis(250)),
            silence: Some(Duration::from_secs(2)),
            census: Duration::from_secs(10),
            overdue: Duration::from_secs(30),
            ring_multiprocessors: None,
        }
    }
}

/// A grid on a device, and its launcher. Dropped, it leaves the device.
#[derive(Debug)]
pub struct Resident {
    shape: Shape,
    requests: Sender<Request>,
    launcher: Mutex<Option<thread::JoinHandle<()>>>,
    fate: Arc<Fate>,
    number: u64,
}

/// What all who use a grid share with its launcher.
#[derive(Debug, Default)]
struct Fate {
    lost: OnceLock<Loss>,
    /// The words of the seats that are taken.
    words: Mutex<Vec<Option<PortWords>>>,
    /// How many handlers the code that is loaded has.
    handlers: AtomicU32,
    /// Where the grid runs.
    placement: Mutex<Placement>,
    /// Whom to wake when the grid is lost, by their seats.
    wakers: Mutex<Vec<Option<Waker>>>,
}

impl Fate {
    fn lose(&self, loss: Loss) {
        let _ = self.lost.set(loss); // the first cause counts
        let wakers = std::mem::take(&mut *lock(&self.wakers));
        wakers.into_iter().flatten().for_each(Waker::wake);
    }
}

enum Request {
    /// The seat of this number, or any that is free.
    Seat {
        seat: Option<u32>,
        plan: SeatPlan,
        /// The code that has its handler, if that which is loaded has not.
        image: Option<Arc<Image>>,
        answer: oneshot::Sender<Result<(u32, Port), ResidentError>>,
    },
    /// Nobody uses this seat any more.
    Vacate(Vacated),
    /// What one seat sends by this way is to go straight into the inbox of another.
    Link {
        from: u32,
        way: Way,
        to: u32,
        record_bytes: u32,
        answer: oneshot::Sender<Result<(), ResidentError>>,
    },
    /// It is to go to the host again.
    Unlink {
        from: u32,
        way: Way,
        answer: oneshot::Sender<Result<Vec<Vec<TaggedRecord>>, ResidentError>>,
    },
    /// A copy of this seat's state.
    State {
        seat: u32,
        answer: oneshot::Sender<Result<Vec<u8>, ResidentError>>,
    },
    /// A new lease begins.
    Begin {
        answer: oneshot::Sender<Result<(), ResidentError>>,
    },
    End {
        answer: Option<Sender<Result<(), ResidentError>>>,
        within: Duration,
    },
}

/// A seat that nobody uses any more, and whom to tell when its kernel has ended.
struct Vacated {
    seat: u32,
    port: Box<Port>,
    then: Option<WhenFree>,
}

type WhenFree = Box<dyn FnOnce(Report) + Send>;

impl Resident {
    /// Makes ready, on the device of this ordinal, a grid of `image` with `shape`'s seats, all empty.
    /// It is launched with its first kernel. Its memory is kept as long as the process lives. Waits
    /// for the driver, which may wait for whatever is resident.
    ///
    /// # Errors
    ///
    /// Why not: what the driver said, or a shape that no grid has or that the device has no room
    /// for.
    pub fn launch(
        driver: &'static Driver,
        ordinal: u32,
        image: Image,
        shape: Shape,
        residency: Residency,
    ) -> Result<Self, ResidentError> {
        Self::launch_in(&Isolation::Thread, driver, ordinal, image, shape, residency)
    }

    /// [`launch`](Self::launch) with its context in this process or in another.
    ///
    /// # Errors
    ///
    /// As for `launch`; [`ResidentError::Process`] if there is no such process.
    pub fn launch_in(
        isolation: &Isolation,
        driver: &'static Driver,
        ordinal: u32,
        image: Image,
        shape: Shape,
        residency: Residency,
    ) -> Result<Self, ResidentError> {
        if let Some(wrong) = shape.wrong() {
            return Err(ResidentError::Shape(wrong));
        }
        let (requests, received) = mpsc::channel();
        let (began, begins) = mpsc::channel();
        let fate = Arc::new(Fate::default());
        let (its_fate, isolation) = (Arc::clone(&fate), isolation.clone());
        let launcher = thread::Builder::new()
            .name("dotcompute-cuda".to_owned())
            .spawn(move || {
                let begun = Launcher::begin(
                    &isolation, driver, ordinal, &image, shape, residency, its_fate,
                );
                match begun {
                    // If nobody waits any more, there is nothing to run.
                    Ok(launcher) if began.send(Ok(())).is_ok() => launcher.run(&received),
                    Ok(_) => {}
                    Err(error) => {
                        let _ = began.send(Err(error)); // as above
                    }
                }
            })
            .map_err(|error| ResidentError::Thread(error.to_string()))?;
        let within = residency.census + residency.overdue;
        begins.recv_timeout(within).map_err(|_| ResidentError::NoAnswer { within })??;
        let number = exit::register(&requests);
        Ok(Self { shape, requests, launcher: Mutex::new(Some(launcher)), fate, number })
    }

    /// Puts a kernel into a seat, between two leases, which costs the others a pause. Its first
    /// command is to hold. Waits for it.
    ///
    /// # Errors
    ///
    /// If the plan does not fit, the seat is taken, not all warps came, or the grid is lost.
    pub fn seat(&self, seat: u32, plan: SeatPlan) -> Result<Port, ResidentError> {
        wait::block_on(self.request_seat(Some(seat), plan, None)).map(|(_, port)| port)
    }

    /// As [`seat`](Self::seat), for a seat that is free: it is given back when what is returned is
    /// dropped. If the code that is loaded does not have the handler, `image` is loaded in its place: it
    /// has the handlers of before, under the same numbers, and more.
    ///
    /// # Errors
    ///
    /// As for `seat`; [`ResidentError::Full`] if none is free.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, the seat stays free.
    pub async fn take(
        self: &Arc<Self>,
        plan: SeatPlan,
        image: &Arc<Image>,
    ) -> Result<Seated, ResidentError> {
        let (seat, port) = self.request_seat(None, plan, Some(Arc::clone(image))).await?;
        Ok(Seated { port: Some(port), seat, resident: Arc::clone(self), when_free: None })
    }

    fn request_seat(
        &self,
        seat: Option<u32>,
        plan: SeatPlan,
        image: Option<Arc<Image>>,
    ) -> impl Future<Output = Result<(u32, Port), ResidentError>> + use<> {
        self.ask(move |answer| Request::Seat { seat, plan, image, answer })
    }

    /// How large it is.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// Where its blocks run, as of its last launch.
    pub fn placement(&self) -> Placement {
        lock(&self.fate.placement).clone()
    }

    /// Whether the code that is loaded has the handler of this number.
    pub(crate) fn has_handler(&self, handler: u32) -> bool {
        // Relaxed: a hint; the launcher, whose number it is, decides.
        handler < self.fate.handlers.load(Ordering::Relaxed)
    }

    /// Lets what the kernel on seat `from` sends by this way, records of so many bytes, go straight
    /// into the inbox of the one on seat `to`, between two leases. The inbox's share of it is what the
    /// shape has for each of its edges.
    ///
    /// # Errors
    ///
    /// [`ResidentError::Plan`] if there is no such kernel, the shape has no room for the edge, or it
    /// would close a cycle; otherwise what the driver said, or that the grid is lost.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, the edge may be there or not.
    pub fn link(
        &self,
        from: u32,
        way: Way,
        to: u32,
        record_bytes: u32,
    ) -> impl Future<Output = Result<(), ResidentError>> + use<> {
        self.ask(move |answer| Request::Link { from, way, to, record_bytes, answer })
    }

    /// Undoes [`link`](Self::link): records go to the host again. What the kernel that they went to
    /// has not taken is given back, in order, each record as its slots. All that `from` sent is in its report by then.
    ///
    /// # Errors
    ///
    /// What the driver said, or that the grid is lost.
    ///
    /// # Cancel safety
    ///
    /// What is given back is lost if the future is dropped.
    pub fn unlink(
        &self,
        from: u32,
        way: Way,
    ) -> impl Future<Output = Result<Vec<Vec<TaggedRecord>>, ResidentError>> + use<> {
        self.ask(move |answer| Request::Unlink { from, way, answer })
    }

    /// A copy of what the state of this seat is between two messages. The grid makes a pause.
    ///
    /// # Errors
    ///
    /// What the driver said, or if the grid is lost.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost if the future is dropped.
    pub fn state(&self, seat: u32) -> impl Future<Output = Result<Vec<u8>, ResidentError>> + use<> {
        self.ask(move |answer| Request::State { seat, answer })
    }

    /// Begins a new lease, after which the grid may reach what was allocated before.
    ///
    /// # Errors
    ///
    /// What the driver said, or that the grid is lost.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost if the future is dropped.
    pub fn begin_new_lease(&self) -> impl Future<Output = Result<(), ResidentError>> + use<> {
        self.ask(|answer| Request::Begin { answer })
    }

    fn ask<T, F: FnOnce(oneshot::Sender<Result<T, ResidentError>>) -> Request>(
        &self,
        request: F,
    ) -> impl Future<Output = Result<T, ResidentError>> + use<T, F> {
        let (answer, answered) = oneshot::channel();
        let sent = self.requests.send(request(answer));
        let fate = Arc::clone(&self.fate);
        async move {
            let gone = || fate.lost.get().map_or(ResidentError::Gone, |loss| loss.error.clone());
            sent.map_err(|_| gone())?;
            answered.await.map_err(|_| gone())?
        }
    }

    /// The counters of a seat that is taken.
    pub fn counters(&self, seat: u32) -> Option<Counters> {
        lock(&self.fate.words).get(seat as usize)?.as_ref().map(PortWords::counters)
    }

    /// Why the grid is lost, if it is.
    pub fn loss(&self) -> Option<&Loss> {
        self.fate.lost.get()
    }

    /// Ends the grid: every seat finishes its message and leaves.
    ///
    /// # Errors
    ///
    /// [`ResidentError::Stuck`] if a seat did not leave within `within`: its handler does not come
    /// back, and the device is not free before it does or the process ends.
    pub fn end(self, within: Duration) -> Result<(), ResidentError> {
        let (answer, answered) = mpsc::channel();
        let request = Request::End { answer: Some(answer), within };
        self.requests.send(request).map_err(|_| ResidentError::Gone)?;
        let ended = answered.recv().map_err(|_| ResidentError::Gone)?;
        if let Some(launcher) = lock(&self.launcher).take() {
            // It has answered, so it ends; a panic of its own was reported where it happened.
            let _ = launcher.join();
        }
        ended
    }
}

impl Drop for Resident {
    fn drop(&mut self) {
        exit::forget(self.number);
        // If the launcher is gone, so is the grid.
        let _ = self.requests.send(Request::End { answer: None, within: LEAVE_WITHIN });
    }
}

/// How long a grid that nobody uses may take to leave.
const LEAVE_WITHIN: Duration = Duration::from_secs(2);

/// A kernel's seat, and the way to it. Dropped, the kernel is killed and the seat given back, once
/// its handler has come back.
pub struct Seated {
    /// Until it is dropped.
    port: Option<Port>,
    seat: u32,
    resident: Arc<Resident>,
    when_free: Option<WhenFree>,
}

impl Seated {
    /// Calls `f` with the last report of the kernel when the seat is free again; not if the grid is
    /// lost before.
    pub(crate) fn when_free(&mut self, f: impl FnOnce(Report) + Send + 'static) {
        self.when_free = Some(Box::new(f));
    }

    /// Its number.
    pub fn number(&self) -> u32 {
        self.seat
    }

    /// The grid that it is a seat of.
    pub fn resident(&self) -> &Arc<Resident> {
        &self.resident
    }

    /// The host's half of it.
    pub fn port(&mut self) -> &mut Port {
        match &mut self.port {
            Some(port) => port,
            None => unreachable!("it is there until this is dropped"),
        }
    }

    /// Wakes this task if the grid is lost; of several the last.
    pub fn watch(&self, waker: &Waker) {
        let seat = self.seat as usize;
        let replaced = {
            let mut wakers = lock(&self.resident.fate.wakers);
            if wakers.len() <= seat {
                wakers.resize(seat + 1, None);
            }
            match &wakers[seat] {
                Some(known) if known.will_wake(waker) => None,
                _ => wakers[seat].replace(waker.clone()),
            }
        };
        drop(replaced);
        // Lost meanwhile: its wakers were taken.
        if self.resident.loss().is_some() {
            waker.wake_by_ref();
        }
    }
}

impl Drop for Seated {
    fn drop(&mut self) {
        if let Some(port) = self.port.take() {
            port.command(dotcompute_abi::control::COMMAND_KILL);
            let (seat, port, then) = (self.seat, Box::new(port), self.when_free.take());
            let request = Request::Vacate(Vacated { seat, port, then });
            // A grid that is lost has no seats.
            let _ = self.resident.requests.send(request);
        }
    }
}

impl fmt::Debug for Seated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Seated").field("seat", &self.seat).finish_non_exhaustive()
    }
}
