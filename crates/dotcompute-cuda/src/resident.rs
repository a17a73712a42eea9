//! A grid that stays on a device: launched, renewed lease by lease, changed between two leases.
//!
//! One thread, the launcher, makes all of the driver's calls. It keeps two launches in one stream:
//! the grid that runs and the one that follows it, so that from one lease to the next nothing
//! passes through the host. To change anything it asks both to end, which takes no call, and
//! launches anew. It keeps the heartbeat too: a grid whose launcher is gone ends by itself.

use std::ffi::CStr;
use std::fmt;
use std::mem;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use dotcompute_abi::control::{STATE_FAILED, STATE_STOPPED};
use dotcompute_abi::device::Grid as Parameters;

use crate::compute::{Context, FreesHeld};
use crate::driver::{Driver, Kernel, Session, Stream};
use crate::grid::{Arena, Grid, PlanError, Port, PortWords, SeatPlan, Shape, Write};
use crate::image::Image;
use crate::library::CallError;

/// The threads of a block: one warp serves in the first, the others are seats. As in `resident.cu`.
const BLOCK_THREADS: u32 = 128;
const BLOCK_WARPS: u32 = BLOCK_THREADS / 32;

/// The kernel of every image, [`Image::KERNEL`].
const KERNEL: &CStr = c"dc_resident";

/// How often the launcher looks after its grid, and lets its heart beat.
const ROUND: Duration = Duration::from_millis(2);

/// How often it looks while somebody waits for it.
const LOOK: Duration = Duration::from_micros(100);

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
}

impl Default for Residency {
    fn default() -> Self {
        Self {
            lease: Some(Duration::from_millis(250)),
            silence: Some(Duration::from_secs(2)),
            census: Duration::from_secs(10),
        }
    }
}

/// A grid on a device, and its launcher.
#[derive(Debug)]
pub struct Resident {
    requests: Sender<Request>,
    launcher: Option<thread::JoinHandle<()>>,
}

enum Request {
    Seat { seat: u32, plan: SeatPlan, answer: Sender<Result<Port, ResidentError>> },
    End { answer: Sender<Result<(), ResidentError>>, within: Duration },
}

impl Resident {
    /// Makes ready, on the device of this ordinal, a grid of `image` with `shape`'s seats, all empty.
    /// It is launched with its first kernel. Its memory is kept as long as the process lives.
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
        if let Some(wrong) = shape.wrong() {
            return Err(ResidentError::Shape(wrong));
        }
        let (requests, received) = mpsc::channel();
        let (began, begins) = mpsc::channel();
        let launcher = thread::Builder::new()
            .name("dotcompute-cuda".to_owned())
            .spawn(move || match Launcher::begin(driver, ordinal, &image, shape, residency) {
                Ok(launcher) => {
                    // Whoever asked is waiting.
                    let _ = began.send(Ok(()));
                    launcher.run(&received);
                }
                Err(error) => {
                    let _ = began.send(Err(error));
                }
            })
            .map_err(|error| ResidentError::Thread(error.to_string()))?;
        begins.recv().map_err(|_| ResidentError::Gone)??;
        Ok(Self { requests, launcher: Some(launcher) })
    }

    /// Puts a kernel into a seat, between two leases, which costs the others a pause. Its first
    /// command is to hold.
    ///
    /// # Errors
    ///
    /// If the plan does not fit, the seat was taken before, not all warps came, or the grid is lost.
    pub fn seat(&self, seat: u32, plan: SeatPlan) -> Result<Port, ResidentError> {
        let (answer, answered) = mpsc::channel();
        let request = Request::Seat { seat, plan, answer };
        self.requests.send(request).map_err(|_| ResidentError::Gone)?;
        answered.recv().map_err(|_| ResidentError::Gone)?
    }

    /// Ends the grid: every seat finishes its message and leaves.
    ///
    /// # Errors
    ///
    /// [`ResidentError::Stuck`] if a seat did not leave within `within`: its handler does not come
    /// back, and the device is not free before it does or the process ends.
    pub fn end(mut self, within: Duration) -> Result<(), ResidentError> {
        let (answer, answered) = mpsc::channel();
        let request = Request::End { answer, within };
        self.requests.send(request).map_err(|_| ResidentError::Gone)?;
        let ended = answered.recv().map_err(|_| ResidentError::Gone)?;
        if let Some(launcher) = self.launcher.take() {
            // It has answered, so it ends; a panic of its own was reported where it happened.
            let _ = launcher.join();
        }
        ended
    }
}

/// Why a grid could not be launched, changed or ended.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ResidentError {
    /// What the driver said.
    Driver(CallError),
    /// No grid has this shape.
    Shape(&'static str),
    /// The device cannot hold so many blocks at once.
    NoRoom {
        /// The grid's blocks.
        blocks: u32,
        /// How many fit.
        most: u32,
    },
    /// The plan does not fit.
    Plan(PlanError),
    /// A seat that was taken before.
    Taken(u32),
    /// Not all warps were there in time: something else occupies the device.
    Census,
    /// A seat does not leave: its handler does not come back.
    Stuck,
    /// The launcher's thread could not be started.
    Thread(String),
    /// The launcher is gone, after an error that was reported before.
    Gone,
}

impl fmt::Display for ResidentError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Driver(error) => error.fmt(f),
            Self::Shape(wrong) => f.write_str(wrong),
            Self::NoRoom { blocks, most } => {
                write!(f, "the device holds {most} blocks at once, not {blocks}")
            }
            Self::Plan(error) => error.fmt(f),
            Self::Taken(seat) => write!(f, "seat {seat} was taken before"),
            Self::Census => f.write_str("the grid did not become resident in time"),
            Self::Stuck => f.write_str("a handler does not come back"),
            Self::Thread(error) => write!(f, "the launcher cannot be started: {error}"),
            Self::Gone => f.write_str("the grid is lost"),
        }
    }
}

impl std::error::Error for ResidentError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Driver(error) => Some(error),
            Self::Plan(error) => Some(error),
            _ => None,
        }
    }
}

impl From<CallError> for ResidentError {
    fn from(error: CallError) -> Self {
        Self::Driver(error)
    }
}

/// All that the launcher's thread has.
struct Launcher {
    session: Session,
    grid: Grid,
    kernel: Kernel,
    /// The grid's stream, in which nothing else is ever queued.
    resident: Stream,
    /// For writes while no grid runs.
    copies: Stream,
    /// Where the device's arena begins, as the device sees it.
    device: u64,
    residency: Residency,
    /// The last epoch that was launched; 0 before the first.
    epoch: u32,
    /// The words of the seats that were taken.
    seats: Vec<Option<PortWords>>,
    /// Puts off what of the device's other users would wait for the grid, as long as there is one.
    held: Option<FreesHeld>,
}

impl Launcher {
    fn begin(
        driver: &'static Driver,
        ordinal: u32,
        image: &Image,
        shape: Shape,
        residency: Residency,
    ) -> Result<Self, ResidentError> {
        let ordinal = ordinal.cast_signed();
        let device = driver.device(ordinal)?;
        let session = Session::begin(driver, ordinal)?;
        // All that waits for what is resident is done before anything is.
        let kernel = session.kernel(image.cubin(), KERNEL)?;
        let most = session.occupancy(kernel, BLOCK_THREADS)? * device.multiprocessors;
        let blocks = blocks(shape);
        if blocks > most || !device.cooperative_launch {
            return Err(ResidentError::NoRoom { blocks, most });
        }
        let (resident, copies) = (session.stream()?, session.stream()?);
        let (host, address) = session.host_memory(shape.host_bytes())?;
        let device = session.device_memory(shape.device_bytes())?;
        // SAFETY: just taken, as long as said, zeroed, aligned to pages, and never freed; it is
        // reached through the grid and the device's sources alone, which keep to the protocol.
        let host = unsafe { Arena::from_raw(host, address, shape.host_bytes(), ()) };
        let grid = Grid::new(shape, host, device);
        let seats = vec![None; shape.seats as usize];
        // A driver that lacks what these users need has none.
        let held = Context::of(driver, ordinal.unsigned_abs()).ok();
        let launcher = Self {
            session,
            grid,
            kernel,
            resident,
            copies,
            device,
            residency,
            epoch: 0,
            seats,
            held: held.map(|context| context.hold_frees()),
        };
        launcher.write(&launcher.grid.vacant())?;
        Ok(launcher)
    }

    /// Writes to the device's memory, while no grid runs.
    fn write(&self, writes: &[Write]) -> Result<(), CallError> {
        for (offset, bytes) in writes {
            assert!(offset + bytes.len() <= self.grid.shape().device_bytes());
            // SAFETY: inside the device's arena, as just checked; no grid runs.
            unsafe { self.session.write(self.copies, self.device + *offset as u64, bytes) }?;
        }
        Ok(())
    }

    /// Queues the grid of the next epoch behind what the stream has.
    fn queue(&mut self) -> Result<(), CallError> {
        let Residency { lease, silence, .. } = self.residency;
        let epoch = self.epoch.wrapping_add(1).max(1);
        let (left, zeros) = self.grid.before_launch();
        let address = self.device + left as u64;
        // SAFETY: inside the device's arena, and used by grids alone, which the stream has before
        // and behind this.
        unsafe { self.session.zero(self.resident, address, zeros.len()) }?;
        let parameters: Parameters = self.grid.parameters(epoch, lease, silence);
        let blocks = blocks(self.grid.shape());
        // SAFETY: the image's kernel takes these parameters; they lead to the arenas, which are
        // never freed.
        unsafe {
            self.session.launch(self.kernel, blocks, BLOCK_THREADS, self.resident, &parameters)
        }?;
        self.epoch = epoch;
        Ok(())
    }

    /// Whether a kernel sits on some seat. Without one a grid would end as it begins.
    fn is_needed(&self) -> bool {
        self.seats.iter().flatten().any(|seat| {
            let state = seat.report().state;
            state != STATE_STOPPED && state != STATE_FAILED
        })
    }

    /// Sees to it that a grid runs, and in lease mode that another one waits behind it.
    fn renew(&mut self) -> Result<(), CallError> {
        let wanted = if self.residency.lease.is_some() { 2 } else { 1 };
        while self.is_needed() && self.epoch.wrapping_sub(self.grid.ended()) < wanted {
            self.queue()?;
        }
        Ok(())
    }

    /// Launches, and waits until every warp is there.
    fn start(&mut self) -> Result<(), ResidentError> {
        let first = self.epoch.wrapping_add(1);
        self.renew()?;
        let deadline = Instant::now() + self.residency.census;
        // With a short lease the first may have ended before it was looked at.
        let is_there = |grid: &Grid| grid.is_resident(first) || grid.ended() >= first;
        while self.epoch >= first && !is_there(&self.grid) {
            self.grid.beat();
            if Instant::now() > deadline {
                return Err(ResidentError::Census);
            }
            // An error of the grid's comes to light with the next call.
            self.session.is_idle(self.resident)?;
            thread::park_timeout(LOOK);
        }
        Ok(())
    }

    /// Asks all grids in the stream to end, and waits for it.
    fn stop(&mut self, deadline: Option<Instant>) -> Result<(), ResidentError> {
        self.grid.quiesce(self.epoch);
        while !self.session.is_idle(self.resident)? {
            self.grid.beat();
            if deadline.is_some_and(|deadline| Instant::now() > deadline) {
                return Err(ResidentError::Stuck);
            }
            thread::park_timeout(LOOK);
        }
        Ok(())
    }

    fn run(mut self, requests: &Receiver<Request>) {
        if let Err(error) = self.serve(requests) {
            // Whoever asks from now on is told that the grid is gone.
            tracing::error!(%error, "resident grid lost");
        }
    }

    fn serve(&mut self, requests: &Receiver<Request>) -> Result<(), ResidentError> {
        loop {
            match requests.recv_timeout(ROUND) {
                Ok(Request::Seat { seat, plan, answer }) => {
                    let port = self.take(seat, &plan);
                    let lost = match &port {
                        Err(error @ (ResidentError::Driver(_) | ResidentError::Census)) => {
                            Err(error.clone())
                        }
                        _ => Ok(()),
                    };
                    // Whoever asked is waiting.
                    let _ = answer.send(port);
                    lost?;
                }
                Ok(Request::End { answer, within }) => {
                    let ended = self.stop(Some(Instant::now() + within));
                    if ended.is_err() {
                        // It may be there for good, and then whoever frees would wait for good.
                        mem::forget(self.held.take());
                    }
                    // Whoever asked is waiting.
                    let _ = answer.send(ended);
                    return Ok(());
                }
                Err(RecvTimeoutError::Timeout) => {}
                // Nobody has the grid any more.
                Err(RecvTimeoutError::Disconnected) => return self.stop(None),
            }
            self.grid.beat();
            self.renew()?;
        }
    }

    fn take(&mut self, seat: u32, plan: &SeatPlan) -> Result<Port, ResidentError> {
        if matches!(self.seats.get(seat as usize), Some(Some(_))) {
            return Err(ResidentError::Taken(seat));
        }
        self.stop(None)?;
        // SAFETY: no grid runs, and none is launched before the writes below are done; the seat
        // was never taken before.
        let seated = unsafe { self.grid.seat(seat, plan) };
        let port = match seated {
            Ok((port, writes)) => {
                self.write(&writes)?;
                self.seats[seat as usize] = Some(port.words());
                Ok(port)
            }
            Err(error) => Err(ResidentError::Plan(error)),
        };
        self.start()?;
        port
    }
}

/// One warp serves, and each other one is a seat.
fn blocks(shape: Shape) -> u32 {
    (shape.seats + 1).div_ceil(BLOCK_WARPS)
}
