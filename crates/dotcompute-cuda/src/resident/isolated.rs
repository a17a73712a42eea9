//! A grid whose context lives in a process of its own, with all that can go wrong with a context.
//!
//! The child is a ring kernel of the executor "process": its messages are the driver's calls for the grid
//! ([`Call`]), its replies what came of them ([`Said`]). That it is spawned, watched, reaped and killed is
//! that executor's. The host's arena is a memory file that the child registers with the driver, so that
//! messages and replies of the grid's kernels go through it as they would without a child.

use std::cell::RefCell;
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::ptr::NonNull;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dotcompute_abi::device::Grid as Parameters;
use dotcompute_core::{
    AskError, BoxError, Fault, Handler, HandlerContext, KernelRef, Message, Runtime, Terminate,
};
use dotcompute_process::{Coder, Host, Kernels, Memory, Process, Processes};

use super::calls::Here;
use super::{Residency, ResidentError};
use crate::driver::{Driver, call_name};
use crate::green::NotApart;
use crate::grid::{Arena, Extent, Shape};
use crate::image::Image;
use crate::library::CallError;

/// The name under which children run the driver's calls.
const ENTRY: &str = "dotcompute-cuda";

/// How often a child is asked whether its context is lost, where nothing else is asked.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// How long a child that is no longer needed is waited for before it is left to be killed.
const END_WITHIN: Duration = Duration::from_millis(500);

/// A program's kernels with what [`Isolation::Process`](super::Isolation::Process) needs in its children:
/// the child of a grid makes the driver's calls and nothing else.
///
/// ```no_run
/// use dotcompute_cuda::resident::Isolation;
/// use dotcompute_cuda::{CudaKernels, CudaOptions, isolated};
/// use dotcompute_process::Kernels;
///
/// // First thing in `main`.
/// let processes = isolated(Kernels::new()).child_main();
/// let isolation = Isolation::Process(processes);
/// let cuda = CudaKernels::new().open(CudaOptions { isolation, ..CudaOptions::default() })?;
/// # Ok::<(), dotcompute_cuda::CudaError>(())
/// ```
pub fn isolated(kernels: Kernels) -> Kernels {
    kernels.host(ENTRY, Call::coder(), Said::coder(), serve_isolated)
}

/// In a child that was started for a grid, by a program that brings its own way to its kernels
/// ([`dotcompute_process::child_host`]): makes the driver's calls until the parent says that it is over.
///
/// # Errors
///
/// What it failed with.
pub fn serve_isolated(host: &mut Host) -> Result<(), Fault> {
    let memory = host.take_memory().pop();
    host.run_handler(Server { memory }, &Call::coder(), &Said::coder())
}

/// A call that the child is to make.
#[derive(Debug)]
enum Call {
    Begin { driver: PathBuf, ordinal: u32, extent: Extent, device_bytes: usize, cubin: Vec<u8> },
    TakeUp { extent: Extent, cubin: Vec<u8> },
    PutBack,
    Write { offset: usize, bytes: Vec<u8> },
    Read { offset: usize, bytes: usize },
    Launch { zeros: (usize, usize), extent: Extent, parameters: Parameters },
    IsIdle,
}

/// How an extent travels, as two numbers.
fn numbers_of(Extent { blocks, threads, shared_bytes }: Extent) -> [u64; 2] {
    [u64::from(blocks) | u64::from(threads) << 32, u64::from(shared_bytes)]
}

fn extent_of(numbers: &[u64]) -> Result<Extent, BoxError> {
    Ok(Extent {
        blocks: numbers[0] as u32,
        threads: (numbers[0] >> 32) as u32,
        shared_bytes: u32::try_from(numbers[1])?,
    })
}

impl Message for Call {
    const TYPE_NAME: &'static str = "dotcompute.cuda.Call";
}

/// What came of a call.
#[derive(Debug)]
enum Said {
    /// Where the device sees its own arena and the host's.
    Begun {
        device: u64,
        host: u64,
    },
    Done,
    Read(Vec<u8>),
    Idle(bool),
    NoRoom {
        blocks: u32,
        most: u32,
    },
    Driver(CallError),
    /// What the driver said to the code.
    Code(CallError),
    Else(String),
}

impl Message for Said {
    const TYPE_NAME: &'static str = "dotcompute.cuda.Said";
}

/// How both travel: a kind, numbers, and bytes.
struct Frame<'a> {
    kind: u64,
    numbers: [u64; 14],
    bytes: &'a [u8],
}

impl<'a> Frame<'a> {
    const NUMBERS_BYTES: usize = 14 * 8;

    fn new(kind: u64, numbers: &[u64], bytes: &'a [u8]) -> Self {
        let mut all = [0; 14];
        all[..numbers.len()].copy_from_slice(numbers);
        Self { kind, numbers: all, bytes }
    }

    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.kind.to_le_bytes());
        self.numbers.iter().for_each(|number| out.extend_from_slice(&number.to_le_bytes()));
        out.extend_from_slice(self.bytes);
    }

    fn read(bytes: &'a [u8]) -> Result<Self, BoxError> {
        let (kind, rest) = bytes.split_first_chunk().ok_or("a frame without a kind")?;
        let (numbers, bytes) =
            rest.split_at_checked(Self::NUMBERS_BYTES).ok_or("a frame without its numbers")?;
        let mut all = [0; 14];
        for (number, bytes) in all.iter_mut().zip(numbers.as_chunks().0) {
            *number = u64::from_le_bytes(*bytes);
        }
        Ok(Self { kind: u64::from_le_bytes(*kind), numbers: all, bytes })
    }
}

impl Call {
    fn coder() -> Coder<Self> {
        Coder::new(
            |envelope, out| {
                envelope.message.write(out);
                Ok(())
            },
            Self::read,
        )
    }

    fn write(&self, out: &mut Vec<u8>) {
        match self {
            Self::Begin { driver, ordinal, extent, device_bytes, cubin } => {
                let path = driver.as_os_str().as_bytes();
                let [size, shared] = numbers_of(*extent);
                let (ordinal, device_bytes) = (u64::from(*ordinal), *device_bytes as u64);
                let numbers = [ordinal, size, shared, device_bytes, path.len() as u64];
                Frame::new(0, &numbers, path).write(out);
                out.extend_from_slice(cubin);
            }
            Self::Write { offset, bytes } => Frame::new(1, &[*offset as u64], bytes).write(out),
            Self::Read { offset, bytes } => {
                Frame::new(2, &[*offset as u64, *bytes as u64], &[]).write(out);
            }
            Self::Launch { zeros, extent, parameters } => {
                let it = parameters;
                let [size, shared] = numbers_of(*extent);
                let numbers = [
                    zeros.0 as u64,
                    zeros.1 as u64,
                    u64::from(it.seat_count) | u64::from(it.epoch) << 32,
                    it.seats,
                    it.news,
                    it.counters,
                    it.grid_news,
                    it.report,
                    it.left,
                    it.census,
                    it.lease_ns,
                    it.silence_ns,
                    size,
                    shared,
                ];
                Frame::new(3, &numbers, &[]).write(out);
            }
            Self::IsIdle => Frame::new(4, &[], &[]).write(out),
            Self::TakeUp { extent, cubin } => {
                Frame::new(5, &numbers_of(*extent), cubin).write(out);
            }
            Self::PutBack => Frame::new(6, &[], &[]).write(out),
        }
    }

    fn read(bytes: &[u8]) -> Result<Self, BoxError> {
        let Frame { kind, numbers: n, bytes } = Frame::read(bytes)?;
        let size = |number: u64| usize::try_from(number);
        Ok(match kind {
            0 => {
                let (path, cubin) =
                    bytes.split_at_checked(size(n[4])?).ok_or("a path that is cut off")?;
                Self::Begin {
                    driver: PathBuf::from(std::ffi::OsStr::from_bytes(path)),
                    ordinal: u32::try_from(n[0])?,
                    extent: extent_of(&n[1..3])?,
                    device_bytes: size(n[3])?,
                    cubin: cubin.to_vec(),
                }
            }
            1 => Self::Write { offset: size(n[0])?, bytes: bytes.to_vec() },
            2 => Self::Read { offset: size(n[0])?, bytes: size(n[1])? },
            3 => Self::Launch {
                zeros: (size(n[0])?, size(n[1])?),
                extent: extent_of(&n[12..14])?,
                parameters: Parameters {
                    seats: n[3],
                    news: n[4],
                    counters: n[5],
                    grid_news: n[6],
                    report: n[7],
                    left: n[8],
                    census: n[9],
                    lease_ns: n[10],
                    silence_ns: n[11],
                    seat_count: n[2] as u32,
                    epoch: (n[2] >> 32) as u32,
                },
            },
            4 => Self::IsIdle,
            5 => Self::TakeUp { extent: extent_of(&n[..2])?, cubin: bytes.to_vec() },
            6 => Self::PutBack,
            other => return Err(format!("no call of kind {other}").into()),
        })
    }
}

impl Said {
    fn coder() -> Coder<Self> {
        Coder::new(
            |envelope, out| {
                envelope.message.write(out);
                Ok(())
            },
            Self::read,
        )
    }

    fn write(&self, out: &mut Vec<u8>) {
        match self {
            Self::Begun { device, host } => Frame::new(0, &[*device, *host], &[]).write(out),
            Self::Done => Frame::new(1, &[], &[]).write(out),
            Self::Read(bytes) => Frame::new(2, &[], bytes).write(out),
            Self::Idle(idle) => Frame::new(3, &[u64::from(*idle)], &[]).write(out),
            Self::NoRoom { blocks, most } => {
                Frame::new(4, &[u64::from(*blocks), u64::from(*most)], &[]).write(out);
            }
            Self::Driver(CallError { call, code, text })
            | Self::Code(CallError { call, code, text }) => {
                let kind = if matches!(self, Self::Driver(_)) { 5 } else { 7 };
                let numbers = [u64::from(code.cast_unsigned()), call.len() as u64];
                Frame::new(kind, &numbers, call.as_bytes()).write(out);
                out.extend_from_slice(text.as_bytes());
            }
            Self::Else(text) => Frame::new(6, &[], text.as_bytes()).write(out),
        }
    }

    fn read(bytes: &[u8]) -> Result<Self, BoxError> {
        let Frame { kind, numbers, bytes } = Frame::read(bytes)?;
        Ok(match kind {
            0 => Self::Begun { device: numbers[0], host: numbers[1] },
            1 => Self::Done,
            2 => Self::Read(bytes.to_vec()),
            3 => Self::Idle(numbers[0] != 0),
            4 => Self::NoRoom {
                blocks: u32::try_from(numbers[0])?,
                most: u32::try_from(numbers[1])?,
            },
            5 | 7 => {
                let call = usize::try_from(numbers[1])?;
                let (call, text) = bytes.split_at_checked(call).ok_or("a name that is cut off")?;
                let call = call_name(std::str::from_utf8(call)?);
                let code = u32::try_from(numbers[0])?.cast_signed();
                let error = CallError { call, code, text: String::from_utf8_lossy(text).into() };
                if kind == 5 { Self::Driver(error) } else { Self::Code(error) }
            }
            6 => Self::Else(String::from_utf8_lossy(bytes).into()),
            other => return Err(format!("no answer of kind {other}").into()),
        })
    }
}

thread_local! {
    /// The calls of the child's grid, which stay on the thread that began them.
    static HERE: RefCell<Option<Here>> = const { RefCell::new(None) };
}

/// The child's end: makes the calls.
struct Server {
    /// The host's arena. Registered with the driver, it is kept as long as the process lives.
    memory: Option<Memory>,
}

impl Server {
    fn begin(
        &mut self,
        driver: &std::path::Path,
        (ordinal, extent): (u32, Extent),
        cubin: &[u8],
        device_bytes: usize,
    ) -> Result<Said, ResidentError> {
        let Some(memory) = self.memory.take() else {
            return Ok(Said::Else("the child has no memory of a grid's".to_owned()));
        };
        // SAFETY: the library that the parent uses as the driver, as whoever opened it there promised.
        let driver = unsafe { Driver::open(driver) };
        let driver: &'static Driver = match driver {
            Ok(driver) => Box::leak(Box::new(driver)),
            Err(absent) => return Ok(Said::Else(absent.to_string())),
        };
        // As long as the driver knows of it.
        let memory: &'static Memory = Box::leak(Box::new(memory));
        let (start, bytes): (NonNull<u8>, usize) = (memory.start(), memory.bytes());
        let of = (driver, ordinal, Err(NotApart::OtherProcess));
        let (here, host) = Here::begin(of, cubin, extent, device_bytes, |session| {
            // SAFETY: mapped for good, as just said.
            unsafe { session.register(start, bytes) }
        })?;
        let device = here.device;
        HERE.set(Some(here));
        Ok(Said::Begun { device, host })
    }

    fn call(&mut self, call: &Call) -> Result<Said, ResidentError> {
        if let Call::Begin { driver, ordinal, extent, device_bytes, cubin } = call {
            return self.begin(driver, (*ordinal, *extent), cubin, *device_bytes);
        }
        HERE.with_borrow_mut(|here| match here {
            Some(here) => Self::call_here(here, call),
            None => Ok(Said::Else("a call before the first".to_owned())),
        })
    }

    fn call_here(here: &mut Here, call: &Call) -> Result<Said, ResidentError> {
        Ok(match call {
            Call::Begin { .. } => Said::Else("a second grid".to_owned()),
            Call::TakeUp { extent, cubin } => {
                here.take_up(cubin, *extent)?;
                Said::Done
            }
            Call::PutBack => {
                here.put_back();
                Said::Done
            }
            Call::Write { offset, bytes } => {
                // SAFETY: the parent's launcher promises it (`Calls::write`).
                unsafe { here.write(*offset, bytes) }?;
                Said::Done
            }
            Call::Read { offset, bytes } => {
                // SAFETY: the parent's launcher promises it (`Calls::read`).
                Said::Read(unsafe { here.read(*offset, *bytes) }?)
            }
            Call::Launch { zeros, extent, parameters } => {
                // SAFETY: the parent's launcher promises it (`Calls::launch`).
                unsafe { here.launch(*zeros, *extent, parameters, false) }?;
                Said::Done
            }
            Call::IsIdle => Said::Idle(here.is_idle()?),
        })
    }
}

impl Handler for Server {
    type In = Call;
    type Out = Said;

    fn handle(
        &mut self,
        message: &Call,
        _context: &mut HandlerContext<Said>,
    ) -> Result<Option<Said>, BoxError> {
        Ok(Some(match self.call(message) {
            Ok(said) => said,
            Err(ResidentError::Driver(error)) => Said::Driver(error),
            Err(ResidentError::Code(error)) => Said::Code(error),
            Err(ResidentError::NoRoom { blocks, most }) => Said::NoRoom { blocks, most },
            Err(error) => Said::Else(error.to_string()),
        }))
    }
}

/// The parent's end. Dropped, it ends the child, and with it what it has on the device.
pub(super) struct Child {
    kernel: KernelRef<Call, Said>,
    /// How long a call may take.
    within: Duration,
    looked: Instant,
    _runtime: Runtime,
}

impl Child {
    pub(super) fn begin(
        processes: &Processes,
        driver: &'static Driver,
        ordinal: u32,
        image: &Image,
        shape: Shape,
        residency: Residency,
    ) -> Result<(Self, Arena, u64), ResidentError> {
        let failed = |error: &dyn fmt::Display| ResidentError::Process(error.to_string());
        let bytes = shape.host_bytes();
        let memory = Memory::create("dotcompute-grid", bytes).map_err(|error| failed(&error))?;
        let memory = Arc::new(memory);
        let runtime = Runtime::builder().executor(processes.executor()).build();
        let process = Process::new(ENTRY).memory(Arc::clone(&memory));
        let kernel = processes
            .launch::<Call, Said>(runtime.kernel("cuda").executor("process"), process)
            .map_err(|error| match std::error::Error::source(&error) {
                Some(source) => failed(&source),
                None => failed(&error),
            })?;
        kernel.activate().map_err(|error| failed(&error))?;
        let within = residency.census + residency.overdue;
        let child = Self { kernel, within, looked: Instant::now(), _runtime: runtime };
        let begun = child.ask(Call::Begin {
            driver: driver.path().to_owned(),
            ordinal,
            extent: shape.extent(),
            device_bytes: shape.device_bytes(),
            cubin: image.cubin().to_vec(),
        })?;
        let Said::Begun { device, host } = begun else { return Err(unexpected(&begun)) };
        // SAFETY: a mapped file of so many bytes, zeroed, aligned to pages, which the arena keeps; the child
        // has it too, and makes the driver's calls with it alone. Both ends keep to the protocol.
        let arena = unsafe { Arena::from_raw(memory.start(), host, bytes, memory) };
        Ok((child, arena, device))
    }

    fn ask(&self, call: Call) -> Result<Said, ResidentError> {
        let said = match self.kernel.ask_blocking(call, Some(self.within)) {
            Ok(said) => said.message,
            Err(AskError::Failed { fault, .. }) => {
                return Err(ResidentError::Process(fault.to_string()));
            }
            Err(AskError::Timeout { .. }) => {
                return Err(ResidentError::NoAnswer { within: self.within });
            }
            Err(error) => return Err(ResidentError::Process(error.to_string())),
        };
        match said {
            Said::Driver(error) => Err(ResidentError::Driver(error)),
            Said::Code(error) => Err(ResidentError::Code(error)),
            Said::NoRoom { blocks, most } => Err(ResidentError::NoRoom { blocks, most }),
            Said::Else(text) => Err(ResidentError::Process(text)),
            said => Ok(said),
        }
    }

    fn done(&self, call: Call) -> Result<(), ResidentError> {
        match self.ask(call)? {
            Said::Done => Ok(()),
            said => Err(unexpected(&said)),
        }
    }

    pub(super) fn take_up(&self, image: &Image, extent: Extent) -> Result<(), ResidentError> {
        self.done(Call::TakeUp { extent, cubin: image.cubin().to_vec() })
    }

    pub(super) fn put_back(&self) -> Result<(), ResidentError> {
        self.done(Call::PutBack)
    }

    pub(super) fn write(&self, offset: usize, bytes: &[u8]) -> Result<(), ResidentError> {
        self.done(Call::Write { offset, bytes: bytes.to_vec() })
    }

    pub(super) fn read(&self, offset: usize, bytes: usize) -> Result<Vec<u8>, ResidentError> {
        match self.ask(Call::Read { offset, bytes })? {
            Said::Read(read) if read.len() == bytes => Ok(read),
            said => Err(unexpected(&said)),
        }
    }

    pub(super) fn launch(
        &self,
        zeros: (usize, usize),
        extent: Extent,
        parameters: &Parameters,
    ) -> Result<(), ResidentError> {
        self.done(Call::Launch { zeros, extent, parameters: *parameters })
    }

    pub(super) fn is_idle(&self) -> Result<bool, ResidentError> {
        match self.ask(Call::IsIdle)? {
            Said::Idle(idle) => Ok(idle),
            said => Err(unexpected(&said)),
        }
    }

    /// Asks now and then, and at once where the child is gone.
    pub(super) fn look(&mut self) -> Result<(), ResidentError> {
        if self.kernel.state().has_ended() || self.looked.elapsed() >= LOOK_EVERY {
            self.looked = Instant::now();
            self.is_idle()?;
        }
        Ok(())
    }
}

fn unexpected(said: &Said) -> ResidentError {
    ResidentError::Process(format!("the child answered something else: {said:?}"))
}

impl Drop for Child {
    fn drop(&mut self) {
        // One that does not come to it is killed.
        self.kernel.terminate_blocking(Terminate::now().within(END_WITHIN));
    }
}

impl fmt::Debug for Child {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Child").field("state", &self.kernel.state()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_and_answers_travel_whole_and_what_is_cut_off_is_none() {
        let parameters = Parameters {
            seats: 1,
            news: 2,
            counters: 3,
            grid_news: 4,
            report: 5,
            left: 6,
            census: 7,
            lease_ns: 8,
            silence_ns: 9,
            seat_count: 10,
            epoch: u32::MAX,
        };
        let extent = Extent { blocks: 33, threads: 128, shared_bytes: u32::MAX };
        let calls = [
            Call::Begin {
                driver: "/a/libcuda.so.1".into(),
                ordinal: 1,
                extent,
                device_bytes: 3,
                cubin: vec![0, 255],
            },
            Call::TakeUp { extent, cubin: vec![7; 9] },
            Call::PutBack,
            Call::Write { offset: 77, bytes: vec![1; 300] },
            Call::Read { offset: 77, bytes: 5 },
            Call::Launch { zeros: (1, 128), extent, parameters },
            Call::IsIdle,
        ];
        for call in calls {
            let mut bytes = Vec::new();
            call.write(&mut bytes);
            assert_eq!(format!("{:?}", Call::read(&bytes).unwrap()), format!("{call:?}"));
            for cut in 0..bytes.len().min(8 + Frame::NUMBERS_BYTES) {
                assert!(Call::read(&bytes[..cut]).is_err(), "{call:?} at {cut}");
            }
        }
        let error = CallError { call: "cuMemAlloc", code: -2, text: "no memory".into() };
        let said = [
            Said::Begun { device: u64::MAX, host: 1 },
            Said::Done,
            Said::Read(vec![3]),
            Said::Idle(true),
            Said::NoRoom { blocks: 7, most: 6 },
            Said::Driver(error.clone()),
            Said::Code(error),
            Said::Else("ä".into()),
        ];
        for said in said {
            let mut bytes = Vec::new();
            said.write(&mut bytes);
            assert_eq!(format!("{:?}", Said::read(&bytes).unwrap()), format!("{said:?}"));
        }
        assert!(Call::read(&[9; 200]).is_err() && Said::read(&[9; 200]).is_err());
    }
}
