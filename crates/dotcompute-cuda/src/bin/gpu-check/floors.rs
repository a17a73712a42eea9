//! What it costs to do less than the runtime does.

use std::ffi::{c_int, c_uint, c_void};
use std::time::{Duration, Instant};

use dotcompute_cuda::compute::{Launch, PinnedBuffer, Stream};
use dotcompute_mailbox::sync::{AtomicU32, Ordering};

use crate::device::{Gpu, Raw, succeeds};
use crate::messages::percentile_us;
use crate::{Check, Failure, handlers};

fn once() -> Launch {
    Launch { grid: [1, 1, 1], block: [1, 1, 1], shared_bytes: 0 }
}

/// Two words of the host's, a line each, that the device reaches.
struct Words(PinnedBuffer);

impl Words {
    fn new(gpu: &Gpu) -> Result<Self, Failure> {
        Ok(Self(PinnedBuffer::new(&gpu.context, 4096)?))
    }

    fn at(&self, line: usize) -> &AtomicU32 {
        assert!(line < 8);
        // SAFETY: inside the buffer, aligned, initialised; both sides reach it as an atomic.
        let place = unsafe { self.0.place().add(128 * line) };
        // SAFETY: as above.
        unsafe { place.cast().as_ref() }
    }

    fn address(&self, line: u64) -> u64 {
        self.0.device_address() + 128 * line
    }
}

fn launch(
    function: &dotcompute_cuda::compute::Function,
    stream: &Stream,
    arguments: &[&[u8]],
) -> Result<(), Failure> {
    // SAFETY: kernels of `floors.cu` with their arguments, over words that live until the stream is
    // synchronised.
    Ok(unsafe { function.launch(stream, &once(), arguments) }?)
}

pub(crate) fn null(check: &mut Check) -> Result<(), Failure> {
    let gpu = Gpu::open(check)?;
    let module = handlers::floors(check, &gpu)?;
    let (function, stream) = (module.function("floor_null")?, gpu.context.stream()?);
    launch(&function, &stream, &[])?;
    stream.synchronize()?;
    let start = Instant::now();
    let count = check.count(10_000);
    for _ in 0..count {
        launch(&function, &stream, &[])?;
    }
    stream.synchronize()?;
    let each = start.elapsed().as_secs_f64() * 1e6 / count as f64;
    check.results.fact("an empty kernel runs", true, "")?;
    check.results.figure("launches in a row, each", each, "us", None)
}

pub(crate) fn floors(check: &mut Check) -> Result<(), Failure> {
    let gpu = Gpu::open(check)?;
    let module = handlers::floors(check, &gpu)?;
    let (words, stream) = (Words::new(&gpu)?, gpu.context.stream()?);
    let (input, output) = (words.address(0).to_ne_bytes(), words.address(1).to_ne_bytes());
    let (to, from) = (words.at(0), words.at(1));

    let reads = 1000_u32;
    let function = module.function("floor_reads")?;
    launch(&function, &stream, &[&input, &output, &reads.to_ne_bytes()])?;
    stream.synchronize()?;
    // Relaxed, here and below: a word that says all there is to know.
    let each = f64::from(from.load(Ordering::Relaxed)) / f64::from(reads);
    check.results.figure("one read over the bus", each / 1000.0, "us", None)?;

    let turns = check.count(200_000) as u32;
    from.store(0, Ordering::Relaxed);
    to.store(0, Ordering::Relaxed);
    let function = module.function("floor_ping")?;
    launch(&function, &stream, &[&input, &output, &turns.to_ne_bytes()])?;
    let mut times = Vec::with_capacity(turns as usize);
    for turn in 1..=turns {
        let start = Instant::now();
        to.store(turn, Ordering::Relaxed);
        let deadline = start + Duration::from_secs(20);
        while from.load(Ordering::Relaxed) != turn {
            if Instant::now() > deadline {
                return Err("the device does not answer in mapped memory".into());
            }
            std::hint::spin_loop();
        }
        times.push(start.elapsed());
    }
    stream.synchronize()?;
    let (p50, p99) = (percentile_us(&mut times, 50.0), percentile_us(&mut times, 99.0));
    check.results.figure("mapped memory, there and back, p50", p50, "us", None)?;
    check.results.figure("mapped memory, there and back, p99", p99, "us", None)?;

    let function = module.function("floor_answer")?;
    let arguments: [&[u8]; 2] = [&input, &output];
    let turns = check.count(20_000) as u32;
    let mut times = Vec::new();
    for turn in 0..turns {
        let start = Instant::now();
        to.store(turn, Ordering::Relaxed);
        launch(&function, &stream, &arguments)?;
        stream.synchronize()?;
        assert_eq!(from.load(Ordering::Relaxed), turn + 1);
        times.push(start.elapsed());
    }
    check.results.figure(
        "launch on mapped words and synchronise, p50",
        percentile_us(&mut times, 50.0),
        "us",
        None,
    )?;

    let pool = gpu.context.pool()?;
    let (there, back) = (pool.allocate(4, &stream)?, pool.allocate(4, &stream)?);
    let arguments = [there.address().to_ne_bytes(), back.address().to_ne_bytes()];
    let mut times = Vec::new();
    for turn in 0..turns {
        let start = Instant::now();
        let value = turn.to_ne_bytes();
        // SAFETY: the buffer has four bytes; the value lives until the read below has waited.
        unsafe { stream.write_raw(there.address(), value.as_ptr(), 4) }?;
        launch(&function, &stream, &[&arguments[0], &arguments[1]])?;
        let mut answer = [0; 4];
        stream.read(&back, 0, &mut answer)?;
        assert_eq!(u32::from_ne_bytes(answer), turn + 1);
        times.push(start.elapsed());
    }
    let p50 = percentile_us(&mut times, 50.0);
    check.results.figure("copy, launch, copy, synchronise, p50", p50, "us", None)?;
    graph(check, &gpu, &stream, turns, |stream| launch(&function, stream, &[&input, &output]))
}

/// A launch that was captured once is replayed.
fn graph(
    check: &mut Check,
    gpu: &Gpu,
    stream: &Stream,
    turns: u32,
    captured: impl Fn(&Stream) -> Result<(), Failure>,
) -> Result<(), Failure> {
    type Begin = unsafe extern "C" fn(*mut c_void, c_int) -> c_int;
    type End = unsafe extern "C" fn(*mut c_void, *mut *mut c_void) -> c_int;
    type Instantiate = unsafe extern "C" fn(*mut *mut c_void, *mut c_void, u64) -> c_int;
    type Replay = unsafe extern "C" fn(*mut c_void, *mut c_void) -> c_int;
    let raw = Raw::open(gpu.driver)?;
    // SAFETY: the types that NVIDIA documents, here and below.
    let begin: Option<Begin> = unsafe { raw.get("cuStreamBeginCapture_v2") };
    // SAFETY: as above.
    let end: Option<End> = unsafe { raw.get("cuStreamEndCapture") };
    // SAFETY: as above.
    let instantiate: Option<Instantiate> = unsafe { raw.get("cuGraphInstantiateWithFlags") };
    // SAFETY: as above.
    let replay: Option<Replay> = unsafe { raw.get("cuGraphLaunch") };
    let (Some(begin), Some(end), Some(instantiate), Some(replay)) =
        (begin, end, instantiate, replay)
    else {
        return check.results.finding("graph replay", "the driver has no graphs");
    };
    raw.set_context()?;
    let handle = std::ptr::without_provenance_mut::<c_void>(stream.handle());
    let (mut graph, mut ready) = (std::ptr::null_mut(), std::ptr::null_mut());
    // SAFETY: a live stream; 2 is a capture that other threads need not care for.
    succeeds("cuStreamBeginCapture", unsafe { begin(handle, 2) })?;
    captured(stream)?;
    // SAFETY: a live stream that is being captured; `graph` outlives the call.
    succeeds("cuStreamEndCapture", unsafe { end(handle, &mut graph) })?;
    // SAFETY: a graph that was just made; `ready` outlives the call.
    succeeds("cuGraphInstantiate", unsafe { instantiate(&mut ready, graph, 0) })?;
    let mut times = Vec::new();
    for _ in 0..turns {
        let start = Instant::now();
        // SAFETY: a graph that is ready, and a live stream.
        succeeds("cuGraphLaunch", unsafe { replay(ready, handle) })?;
        stream.synchronize()?;
        times.push(start.elapsed());
    }
    let p50 = percentile_us(&mut times, 50.0);
    check.results.figure("graph replay on mapped words and synchronise, p50", p50, "us", None)
}

const _: () = assert!(size_of::<c_uint>() == 4);
