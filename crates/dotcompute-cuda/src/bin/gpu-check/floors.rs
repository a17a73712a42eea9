//! What it costs to do less than the runtime does.

use std::ffi::{c_int, c_uint, c_void};
use std::time::{Duration, Instant};

use dotcompute_cuda::compute::{Launch, Module, PinnedBuffer, Stream};
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
    let reads = 1000_u32;
    let function = module.function("floor_reads")?;
    launch(&function, &stream, &[&input, &output, &reads.to_ne_bytes()])?;
    stream.synchronize()?;
    // Relaxed, here and below: a word that says all there is to know.
    let each = f64::from(words.at(1).load(Ordering::Relaxed)) / f64::from(reads);
    check.results.figure("one read over the bus", each / 1000.0, "us", None)?;

    let found = answers(check, &gpu, &module)?;
    for (what, value) in [
        (MAPPED, Some(found.mapped_p50)),
        ("mapped memory, there and back, p99", Some(found.mapped_p99)),
        (LAUNCH, Some(found.launch)),
        (COPIES, Some(found.copies)),
        (GRAPH, found.graph),
    ] {
        match value {
            Some(value) => check.results.figure(what, value, "us", None)?,
            None => check.results.finding(what, "the driver has no graphs")?,
        }
    }
    let pairs = check.pairs();
    for pairs in [1, pairs] {
        let each = hop_us(check, &gpu, &module, pairs)?;
        let what = format!("a hop in the device's memory, {pairs} pairs of warps at once");
        check.results.figure(&what, each, "us", None)?;
    }
    for (warps, answers) in [(1, false), (2 * pairs, false), (2 * pairs, true)] {
        let rate = taken_per_s(check, &gpu, &module, warps, answers)?;
        let back = if answers { " and written back" } else { "" };
        let what = format!("64 bytes of mapped memory read by {warps} warps{back}");
        check.results.figure(&what, rate, "/s", None)?;
    }
    Ok(())
}

pub(crate) const MAPPED: &str = "mapped memory, there and back, p50";
pub(crate) const LAUNCH: &str = "launch on mapped words and synchronise, p50";
pub(crate) const COPIES: &str = "copy, launch, copy, synchronise, p50";
pub(crate) const GRAPH: &str = "graph replay on mapped words and synchronise, p50";

/// What an answer of the device costs by lesser means, in microseconds; p50 where nothing else is said.
pub(crate) struct Answers {
    pub(crate) mapped_p50: f64,
    pub(crate) mapped_p99: f64,
    pub(crate) launch: f64,
    pub(crate) copies: f64,
    /// None where the driver has no graphs.
    pub(crate) graph: Option<f64>,
}

pub(crate) fn answers(check: &Check, gpu: &Gpu, module: &Module) -> Result<Answers, Failure> {
    let (words, stream) = (Words::new(gpu)?, gpu.context.stream()?);
    let (input, output) = (words.address(0).to_ne_bytes(), words.address(1).to_ne_bytes());
    let (to, from) = (words.at(0), words.at(1));
    let turns = check.count(200_000) as u32;
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
    let (mapped_p50, mapped_p99) =
        (percentile_us(&mut times, 50.0), percentile_us(&mut times, 99.0));

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
    let launched = percentile_us(&mut times, 50.0);

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
    let copies = percentile_us(&mut times, 50.0);
    let captured = |stream: &Stream| launch(&function, stream, &[&input, &output]);
    let graph = graph(gpu, &stream, turns, captured)?;
    Ok(Answers { mapped_p50, mapped_p99, launch: launched, copies, graph })
}

/// How long a hop takes between two warps that answer each other in the device's memory, beside others
/// that do, in microseconds.
pub(crate) fn hop_us(
    check: &Check,
    gpu: &Gpu,
    module: &Module,
    pairs: u32,
) -> Result<f64, Failure> {
    let turns = check.count(100_000) as u32;
    let stream = gpu.context.stream()?;
    let lines = gpu.context.pool()?.allocate(256 * pairs as usize, &stream)?;
    stream.fill(&lines, 0)?;
    stream.synchronize()?;
    let shape = Launch { grid: [pairs, 1, 1], block: [64, 1, 1], shared_bytes: 0 };
    let arguments: [&[u8]; 2] = [&lines.address().to_ne_bytes(), &turns.to_ne_bytes()];
    let start = Instant::now();
    // SAFETY: the kernel of `floors.cu` with its arguments; two lines for each pair.
    unsafe { module.function("floor_hops")?.launch(&stream, &shape, &arguments) }?;
    stream.synchronize()?;
    Ok(start.elapsed().as_secs_f64() * 1e6 / (2.0 * f64::from(turns)))
}

/// How many records of 64 bytes so many warps read of mapped memory each second, and write back.
pub(crate) fn taken_per_s(
    check: &Check,
    gpu: &Gpu,
    module: &Module,
    warps: u32,
    answers: bool,
) -> Result<f64, Failure> {
    let rounds = check.count(100_000) as u32;
    let stream = gpu.context.stream()?;
    let bytes = 4096 * warps as usize;
    let (from, to) =
        (PinnedBuffer::new(&gpu.context, bytes)?, PinnedBuffer::new(&gpu.context, bytes)?);
    let shape = Launch { grid: [warps, 1, 1], block: [32, 1, 1], shared_bytes: 0 };
    let arguments: [&[u8]; 4] = [
        &from.device_address().to_ne_bytes(),
        &to.device_address().to_ne_bytes(),
        &rounds.to_ne_bytes(),
        &u32::from(answers).to_ne_bytes(),
    ];
    let start = Instant::now();
    // SAFETY: the kernel of `floors.cu` with its arguments; 4 KiB each way for each warp.
    unsafe { module.function("floor_take")?.launch(&stream, &shape, &arguments) }?;
    stream.synchronize()?;
    Ok(8.0 * f64::from(rounds) * f64::from(warps) / start.elapsed().as_secs_f64())
}

/// A launch that was captured once is replayed: p50, in microseconds.
fn graph(
    gpu: &Gpu,
    stream: &Stream,
    turns: u32,
    captured: impl Fn(&Stream) -> Result<(), Failure>,
) -> Result<Option<f64>, Failure> {
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
        return Ok(None);
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
    Ok(Some(percentile_us(&mut times, 50.0)))
}

const _: () = assert!(size_of::<c_uint>() == 4);
