//! The workloads on the device: the detector over batches in its memory, whose state stays there, and
//! PageRank, all of whose iterations are one launch.

use std::path::Path;
use std::thread;

use dotcompute_cuda::Version;
use dotcompute_cuda::compute::{
    BLOCK_HEADER, DeviceBuffer, Function, Launch, Module, Stream, WORKLOADS,
};
use dotcompute_cuda::nvrtc::{Output, Source};
use dotcompute_cuda::toolkit::Toolkit;
use dotcompute_mailbox::sync::{AtomicU32, Ordering};

use crate::device::Gpu;
use crate::report::Goal;
use crate::{Check, Failure, handlers};

/// Threads of a block of both kernels.
const THREADS: u32 = 256;
/// `CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT`.
const MULTIPROCESSORS: i32 = 16;

fn compile(toolkit: &Toolkit, what: usize, architecture: Version) -> Result<Vec<u8>, Failure> {
    let (name, text) = WORKLOADS[what];
    let file = format!("{name}.cu");
    let source = Source { name: &file, text, headers: &[BLOCK_HEADER] };
    let target = format!("-arch=sm_{}{}", architecture.major, architecture.minor);
    Ok(toolkit.nvrtc.compile(&source, &["-std=c++17", &target], Output::Cubin)?.0)
}

/// Compiles the kernels for an architecture.
pub(crate) fn build(
    folder: &Path,
    toolkit: &Toolkit,
    architecture: Version,
) -> Result<(), Failure> {
    for (what, (name, _)) in WORKLOADS.iter().enumerate() {
        let cubin = compile(toolkit, what, architecture)?;
        std::fs::write(folder.join(handlers::name(name, architecture)), cubin)?;
    }
    Ok(())
}

fn load(check: &Check, gpu: &Gpu, what: usize) -> Result<Module, Failure> {
    let architecture = gpu.device.compute_capability;
    let cubin = match handlers::built(check, WORKLOADS[what].0, architecture) {
        Some(cubin) => cubin,
        None => compile(&Toolkit::load()?, what, architecture)?,
    };
    // SAFETY: what NVRTC made of the sources in this crate.
    Ok(unsafe { Module::load(&gpu.context, &cubin) }?)
}

pub(crate) fn run(check: &mut Check) -> Result<(), Failure> {
    let gpu = Gpu::open(check)?;
    detector(check, &gpu)?;
    ranks(check, &gpu)
}

fn launch(blocks: u32) -> Launch {
    Launch { grid: [blocks, 1, 1], block: [THREADS, 1, 1], shared_bytes: 0 }
}

/// A buffer with these words.
fn upload<T: Copy>(gpu: &Gpu, stream: &Stream, values: &[T]) -> Result<DeviceBuffer, Failure> {
    let bytes = size_of_val(values);
    let buffer = gpu.context.pool()?.allocate(bytes.max(16), stream)?;
    // SAFETY: so many bytes are there, on both sides, until the stream has done it.
    unsafe { stream.write_raw(buffer.address(), values.as_ptr().cast(), bytes) }?;
    stream.synchronize()?;
    Ok(buffer)
}

/// What a buffer begins with.
fn download<T: Copy + Default>(
    stream: &Stream,
    buffer: &DeviceBuffer,
    count: usize,
) -> Result<Vec<T>, Failure> {
    let mut values = vec![T::default(); count];
    let bytes = count * size_of::<T>();
    // SAFETY: any bytes are a value of the types that this is called with, plain numbers in structs
    // without padding; the buffer has as many; waited for below.
    unsafe { stream.read_raw(values.as_mut_ptr().cast(), buffer.address(), bytes) }?;
    stream.synchronize()?;
    Ok(values)
}

/// Numbers that look random.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let word = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(bound)) >> 64) as u64
    }
}

#[derive(Clone, Copy)]
#[repr(C)]
struct Reading {
    key: u32,
    sequence: u32,
    time: f64,
    value: f64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[repr(C)]
struct Alarm {
    key: u32,
    sequence: u32,
    time: f64,
    value: f64,
    expected: f64,
    deviation: f64,
    z: f64,
}

const ALPHA: f64 = 0.01;
const THRESHOLD: f64 = 4.0;
const WARM_UP: f64 = 30.0;

/// What the detector does, on the host: alarms, and the rows of all keys.
fn detect(log: &[Reading], keys: u32) -> (Vec<Alarm>, Vec<f64>) {
    let mut rows = vec![0.0; 4 * keys as usize];
    let mut alarms = Vec::new();
    for reading in log {
        let [count, last, mean, variance] = &mut rows.as_chunks_mut::<4>().0[reading.key as usize];
        let (before, spread) = (*mean, *variance);
        let difference = reading.value - before;
        let squared = difference * difference;
        *count += 1.0;
        *last = reading.time;
        let weight = ALPHA.max(1.0 / *count);
        *mean = before + weight * difference;
        *variance = (1.0 - weight) * (spread + weight * squared);
        if squared > THRESHOLD * THRESHOLD * spread && *count > WARM_UP {
            let Reading { key, sequence, time, value } = *reading;
            let deviation = spread.sqrt();
            let z = (difference / deviation).clamp(-1e6, 1e6);
            alarms.push(Alarm { key, sequence, time, value, expected: before, deviation, z });
        }
    }
    (alarms, rows)
}

fn detector(check: &mut Check, gpu: &Gpu) -> Result<(), Failure> {
    let module = load(check, gpu, 0)?;
    let (function, stream) = (module.function("anomaly_ewma")?, gpu.context.stream()?);
    let keys = 10_000_u32;
    let count = check.count(16 << 20) as u32;
    let mut random = Random(42);
    let reading = |sequence| {
        let wild = if random.below(100) == 0 { 20.0 } else { 1.0 };
        let value = wild * (random.below(4000) as f64 / 1000.0 - 2.0);
        Reading { key: random.below(u64::from(keys)) as u32, sequence, time: 0.0, value }
    };
    let log: Vec<Reading> = (0..count).map(reading).collect();
    let (expected, rows) = detect(&log, keys);
    let mut state = vec![ALPHA, THRESHOLD, WARM_UP, 0.0, 0.0, 0.0, 0.0, 0.0];
    state.resize(8 + rows.len(), 0.0);

    let events = upload(gpu, &stream, &log)?;
    let state = upload(gpu, &stream, &state)?;
    let alarms = gpu.context.pool()?.allocate(log.len() * size_of::<Alarm>(), &stream)?;
    let order = gpu.context.pool()?.allocate(log.len() * 4, &stream)?;
    let made = upload(gpu, &stream, &[0_u32; 4])?;
    let blocks = gpu.context.attribute(MULTIPROCESSORS)?.max(1);
    let addresses = [&events, &state, &alarms, &order, &made].map(|b| b.address().to_ne_bytes());
    let [events, state_at, alarms_at, order_at, made_at] = &addresses;
    let (count, keys) = (count.to_ne_bytes(), keys.to_ne_bytes());
    let arguments: [&[u8]; 7] = [events, &count, state_at, &keys, alarms_at, order_at, made_at];
    let run = || -> Result<f32, Failure> {
        stream.fill(&made, 0)?;
        let start = stream.record()?;
        // SAFETY: a kernel of `anomaly.cu` with its arguments, each as large as it says.
        unsafe { function.launch(&stream, &launch(blocks), &arguments) }?;
        let end = stream.record()?;
        end.synchronize()?;
        Ok(end.since_ms(&start)?)
    };
    run()?;
    let found = download::<u32>(&stream, &made, 1)?[0] as usize;
    let order = download::<u32>(&stream, &order, found)?;
    let mut found: Vec<(u32, Alarm)> =
        order.into_iter().zip(download(&stream, &alarms, found)?).collect();
    found.sort_unstable_by_key(|(event, _)| *event);
    let is_same = found.iter().map(|(_, alarm)| alarm).eq(&expected);
    let note = format!("{} alarms of {} events", expected.len(), log.len());
    check.results.fact(
        "the detector finds what it finds on the host, bit for bit",
        is_same,
        &note,
    )?;
    let device_rows = download::<f64>(&stream, &state, 8 + rows.len())?;
    check.results.fact("its state is the host's, bit for bit", device_rows[8..] == rows[..], "")?;
    let mut least = f32::INFINITY;
    for _ in 0..10 {
        least = least.min(run()?);
    }
    let rate = log.len() as f64 / f64::from(least) / 1e6;
    check.results.figure(
        "events from device memory, 10,000 keys, state resident",
        rate,
        "G/s",
        Some(Goal::AtLeast(1.0)),
    )
}

/// A Kronecker graph as rows of incoming links, nodes in the order of falling degree.
struct Sample {
    starts: Vec<u32>,
    sources: Vec<u32>,
    inverse: Vec<f32>,
}

impl Sample {
    /// With so many edges a node, each in both directions (A 0.57, B 0.19, C 0.19: Graph 500's).
    fn kronecker(scale: u32, edges_a_node: u64) -> Self {
        let nodes = 1_usize << scale;
        let edges = edges_a_node << scale;
        let each = |work: &(dyn Fn(u32, u32) + Sync)| {
            let threads = thread::available_parallelism().map_or(1, usize::from) as u64;
            thread::scope(|scope| {
                for part in 0..threads {
                    scope.spawn(move || {
                        let own = edges * part / threads..edges * (part + 1) / threads;
                        let mut random = Random(part << 48);
                        for _ in own {
                            let (mut source, mut target) = (0, 0);
                            for _ in 0..scale {
                                let quarter = random.next() >> 32;
                                let (right, down) = match (quarter * 100) >> 32 {
                                    0..57 => (0, 0),
                                    57..76 => (1, 0),
                                    76..95 => (0, 1),
                                    _ => (1, 1),
                                };
                                (source, target) = (source << 1 | down, target << 1 | right);
                            }
                            work(source, target);
                        }
                    });
                }
            });
        };
        // Relaxed: counts that are read when all threads have ended.
        let degrees: Vec<AtomicU32> = (0..nodes).map(|_| AtomicU32::new(0)).collect();
        each(&|source, target| {
            degrees[source as usize].fetch_add(1, Ordering::Relaxed);
            degrees[target as usize].fetch_add(1, Ordering::Relaxed);
        });
        let degrees: Vec<u32> = degrees.into_iter().map(AtomicU32::into_inner).collect();
        let mut order: Vec<u32> = (0..nodes as u32).collect();
        order.sort_unstable_by_key(|node| std::cmp::Reverse(degrees[*node as usize]));
        let mut row_of = vec![0_u32; nodes];
        let (mut starts, mut next) = (Vec::with_capacity(nodes + 1), 0_u32);
        for (row, node) in (0..).zip(&order) {
            row_of[*node as usize] = row;
            starts.push(next);
            next += degrees[*node as usize];
        }
        starts.push(next);
        // Relaxed: each place is taken once; both are read when all threads have ended.
        let places: Vec<AtomicU32> = starts[..nodes].iter().map(|s| AtomicU32::new(*s)).collect();
        let sources: Vec<AtomicU32> = (0..next).map(|_| AtomicU32::new(0)).collect();
        let put = |from: u32, to: u32| {
            let place = places[row_of[to as usize] as usize].fetch_add(1, Ordering::Relaxed);
            sources[place as usize].store(row_of[from as usize], Ordering::Relaxed);
        };
        each(&|source, target| {
            put(source, target);
            put(target, source);
        });
        let sources = sources.into_iter().map(AtomicU32::into_inner).collect();
        let one_over = |node: &u32| match degrees[*node as usize] {
            0 => 0.0,
            degree => 1.0 / degree as f32,
        };
        Self { starts, sources, inverse: order.iter().map(one_over).collect() }
    }

    fn nodes(&self) -> usize {
        self.inverse.len()
    }

    /// So many turns on the host, in double precision.
    fn rank(&self, turns: u32, damping: f64) -> Vec<f64> {
        let nodes = self.nodes();
        let mut ranks = vec![1.0 / nodes as f64; nodes];
        for _ in 0..turns {
            let ends = ranks.iter().zip(&self.inverse).filter(|(_, inverse)| **inverse == 0.0);
            let given = (1.0 - damping) + damping * ends.map(|(rank, _)| rank).sum::<f64>();
            let contributed: Vec<f64> =
                ranks.iter().zip(&self.inverse).map(|(rank, i)| rank * f64::from(*i)).collect();
            for (row, rank) in ranks.iter_mut().enumerate() {
                let links = self.starts[row] as usize..self.starts[row + 1] as usize;
                let sum: f64 =
                    self.sources[links].iter().map(|source| contributed[*source as usize]).sum();
                *rank = given / nodes as f64 + damping * sum;
            }
        }
        ranks
    }
}

/// Rows of more links than this are a warp's.
const SHORT: u32 = 16;
const TURNS: u32 = 20;
const DAMPING: f64 = 0.85;

/// A graph on the device, with all that its kernel needs.
struct OnDevice<'a> {
    function: &'a Function,
    stream: &'a Stream,
    blocks: u32,
    nodes: usize,
    graph: [u8; 32],
    _graph: [DeviceBuffer; 3],
    ranks: DeviceBuffer,
    tables: [DeviceBuffer; 2],
    partials: DeviceBuffer,
    barrier: DeviceBuffer,
    answer: DeviceBuffer,
}

impl<'a> OnDevice<'a> {
    fn new(
        gpu: &Gpu,
        function: &'a Function,
        stream: &'a Stream,
        sample: &Sample,
    ) -> Result<Self, Failure> {
        let nodes = sample.nodes();
        let parts = [
            upload(gpu, stream, &sample.starts)?,
            upload(gpu, stream, &sample.sources)?,
            upload(gpu, stream, &sample.inverse)?,
        ];
        let long = sample.starts.windows(2).take_while(|ends| ends[1] - ends[0] > SHORT).count();
        let mut graph = [0; 32];
        for (place, part) in graph.as_chunks_mut::<8>().0.iter_mut().zip(&parts) {
            *place = part.address().to_ne_bytes();
        }
        graph[24..28].copy_from_slice(&(nodes as u32).to_ne_bytes());
        graph[28..].copy_from_slice(&(long as u32).to_ne_bytes());
        // All blocks wait for one another: as many as are resident at once.
        let each = function.blocks_per_multiprocessor(THREADS, 0)?.max(1);
        let blocks = each * gpu.context.attribute(MULTIPROCESSORS)?.max(1);
        let pool = gpu.context.pool()?;
        let table = || pool.allocate(4 * nodes.max(4), stream);
        Ok(Self {
            function,
            stream,
            blocks,
            nodes,
            graph,
            _graph: parts,
            ranks: table()?,
            tables: [table()?, table()?],
            partials: pool.allocate(32 * blocks as usize, stream)?,
            barrier: pool.allocate(16, stream)?,
            answer: pool.allocate(16, stream)?,
        })
    }

    /// Ranks the nodes; how long that took.
    fn run(&self) -> Result<f32, Failure> {
        let stream = self.stream;
        stream.fill(&self.barrier, 0)?;
        let mut query = [0; 24];
        query[..8].copy_from_slice(&DAMPING.to_ne_bytes());
        query[16..20].copy_from_slice(&TURNS.to_ne_bytes());
        let [contributed, next] = &self.tables;
        let addresses =
            [&self.ranks, contributed, next, &self.partials, &self.barrier, &self.answer]
                .map(|buffer| buffer.address().to_ne_bytes());
        let mut arguments: Vec<&[u8]> = vec![&self.graph, &query];
        arguments.extend(addresses.iter().map(<[u8; 8]>::as_slice));
        let start = stream.record()?;
        // SAFETY: the kernel of `pagerank.cu` with its arguments, each as large as it says, and no
        // more blocks than are resident at once on a device that does nothing else.
        unsafe { self.function.launch(stream, &launch(self.blocks), &arguments) }?;
        let end = stream.record()?;
        end.synchronize()?;
        Ok(end.since_ms(&start)?)
    }

    fn ranks(&self) -> Result<Vec<f32>, Failure> {
        download(self.stream, &self.ranks, self.nodes)
    }
}

fn ranks(check: &mut Check, gpu: &Gpu) -> Result<(), Failure> {
    let module = load(check, gpu, 1)?;
    let (function, stream) = (module.function("pagerank")?, gpu.context.stream()?);
    let small = Sample::kronecker(12, 16);
    let on_device = OnDevice::new(gpu, &function, &stream, &small)?;
    on_device.run()?;
    let expected = small.rank(TURNS, DAMPING);
    let distance: f64 = on_device
        .ranks()?
        .iter()
        .zip(&expected)
        .map(|(found, expected)| (f64::from(*found) - expected).abs())
        .sum();
    let note = format!("{distance:.1e} apart in all");
    check.results.fact("ranks are the host's, to the last bits", distance < 1e-5, &note)?;
    drop(on_device);

    let scale = if check.quick { 12 } else { 24 };
    let sample = Sample::kronecker(scale, 16);
    let links = sample.sources.len();
    let on_device = OnDevice::new(gpu, &function, &stream, &sample)?;
    let mut least = f32::INFINITY;
    for _ in 0..3 {
        least = least.min(on_device.run()?);
    }
    let sum: f64 = on_device.ranks()?.iter().map(|rank| f64::from(*rank)).sum();
    let note = format!("{sum:.6}; {} nodes, {links} links", sample.nodes());
    check.results.fact("they sum to 1", (sum - 1.0).abs() < 1e-3, &note)?;
    let rate = links as f64 * f64::from(TURNS) / f64::from(least) / 1e6;
    let what =
        format!("PageRank, links a second, Kronecker scale {scale}, {TURNS} turns in one launch");
    check.results.figure(&what, rate, "G/s", Some(Goal::AtLeast(60.0)))
}
