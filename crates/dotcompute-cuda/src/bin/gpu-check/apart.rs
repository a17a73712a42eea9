//! Kernels on multiprocessors that are set aside for them: whether they are there and nobody else is, and
//! what other work costs beside them.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use dotcompute_core::{KernelRef, Terminate};
use dotcompute_cuda::compute::{DeviceBuffer, Function, Launch, Stream};
use dotcompute_cuda::resident::{Isolation, Residency};
use dotcompute_cuda::{CudaError, CudaLaunch, FreeSms, Placement};

use crate::device::Gpu;
use crate::handlers::Number;
use crate::messages::{LONG, percentile_us};
use crate::report::Goal;
use crate::{Check, Failure, handlers};

/// Products of matrices in one stream.
struct Product {
    function: Function,
    stream: Stream,
    matrices: [DeviceBuffer; 3],
    /// Rows and columns.
    size: u64,
}

impl Product {
    fn new(check: &Check, gpu: &Gpu, stream: &Stream) -> Result<Self, Failure> {
        let size = if check.quick { 32 } else { 4096 };
        let function = handlers::compute(check, gpu)?.function("matrix_multiply_float32")?;
        let pool = gpu.context.pool()?;
        let matrix = || -> Result<DeviceBuffer, Failure> {
            let matrix = pool.allocate(4 * (size * size) as usize, stream)?;
            stream.fill(&matrix, 0)?;
            Ok(matrix)
        };
        let matrices = [matrix()?, matrix()?, matrix()?];
        Ok(Self { function, stream: stream.clone(), matrices, size })
    }

    fn launch(&self) -> Result<(), Failure> {
        let blocks = self.size.div_ceil(16) as u32;
        let shape = Launch { grid: [blocks, blocks, 1], block: [16, 16, 1], shared_bytes: 0 };
        let size = self.size.to_ne_bytes();
        let [a, b, c] = self.matrices.each_ref().map(|matrix| matrix.address().to_ne_bytes());
        let arguments: [&[u8]; 6] = [&a, &b, &c, &size, &size, &size];
        // SAFETY: the kernel of `compute.cu` with its arguments, over matrices of this size.
        Ok(unsafe { self.function.launch(&self.stream, &shape, &arguments) }?)
    }

    /// What one takes, p50, in microseconds.
    fn takes_us(&self, count: u64) -> Result<f64, Failure> {
        let mut times = Vec::new();
        for _ in 0..count {
            let start = Instant::now();
            self.launch()?;
            self.stream.synchronize()?;
            times.push(start.elapsed());
        }
        Ok(percentile_us(&mut times[1..], 50.0))
    }
}

/// Asks the device where work of a stream runs.
struct Census {
    places: Function,
    /// How many blocks are asked where they are.
    blocks: u32,
    fill: Function,
    /// How many blocks of [`THREADS`] fill one multiprocessor.
    each: u32,
}

/// The threads of a block that asks.
const THREADS: u32 = 512;

impl Census {
    fn new(check: &Check, gpu: &Gpu) -> Result<Self, Failure> {
        /// `CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR`.
        const MULTIPROCESSOR_THREADS: i32 = 39;
        let module = handlers::floors(check, gpu)?;
        Ok(Self {
            places: module.function("floor_where")?,
            blocks: 8 * gpu.device.multiprocessors,
            fill: module.function("floor_fill")?,
            each: gpu.context.attribute(MULTIPROCESSOR_THREADS)? / THREADS,
        })
    }

    /// Of so many blocks as fill so many multiprocessors, how many had no room at once.
    fn missing(&self, gpu: &Gpu, stream: &Stream, multiprocessors: u32) -> Result<u32, Failure> {
        let blocks = self.each * multiprocessors;
        let words = gpu.context.pool()?.allocate(8, stream)?;
        stream.fill(&words, 0)?;
        let shape = Launch { grid: [blocks, 1, 1], block: [THREADS, 1, 1], shared_bytes: 0 };
        let arguments: [&[u8]; 2] = [&words.address().to_ne_bytes(), &blocks.to_ne_bytes()];
        // SAFETY: the kernel of `floors.cu` with its arguments: two words that are zero.
        unsafe { self.fill.launch(stream, &shape, &arguments) }?;
        let mut missed = [0; 4];
        stream.read(&words, 4, &mut missed)?;
        Ok(u32::from_ne_bytes(missed))
    }

    /// The numbers of the multiprocessors that work of the stream runs on.
    fn places(&self, gpu: &Gpu, stream: &Stream) -> Result<BTreeSet<u32>, Failure> {
        let mut bytes = vec![0; 4 * self.blocks as usize];
        let out = gpu.context.pool()?.allocate(bytes.len(), stream)?;
        let shape = Launch { grid: [self.blocks, 1, 1], block: [THREADS, 1, 1], shared_bytes: 0 };
        // SAFETY: the kernel of `floors.cu` with its argument: a word for each block.
        unsafe { self.places.launch(stream, &shape, &[&out.address().to_ne_bytes()]) }?;
        stream.read(&out, 0, &mut bytes)?;
        let words = bytes.chunks_exact(4);
        Ok(words.map(|word| u32::from_ne_bytes([word[0], word[1], word[2], word[3]])).collect())
    }
}

pub(crate) fn run(check: &mut Check) -> Result<(), Failure> {
    let gpu = Gpu::open(check)?;
    let (count, products) = (2 * check.pairs(), if check.quick { 3 } else { 40 });
    // Longer than a look takes: between two leases there is room for a moment.
    let residency = Residency {
        lease: Some(Duration::from_secs(5)),
        ring_multiprocessors: Some(0),
        ..Residency::default()
    };
    let stage = handlers::executor_in(check, &gpu, count, residency, Isolation::Thread)?;
    let (runtime, cuda) = &stage;
    // All of this before anything stays: to load a module may wait for it.
    let (census, ordinary) = (Census::new(check, &gpu)?, gpu.context.stream()?);
    census.places(&gpu, &ordinary)?;
    census.missing(&gpu, &ordinary, 1)?;
    // As many as the grid needs are known once it is there: so it is, and has ended again.
    let kernel = |number: u32| -> Result<KernelRef<Number, Number>, Failure> {
        let builder = runtime.kernel(format!("kernel {number}").as_str()).executor("cuda");
        let kernel = cuda.launch(builder, CudaLaunch::new("where"))?;
        kernel.activate()?;
        Ok(kernel)
    };
    kernel(count)?.terminate_blocking(Terminate::now());
    let what = "kernels on multiprocessors of their own";
    let FreeSms { multiprocessors, stream, .. } = match cuda.ring_free_sms() {
        Ok(free) => free,
        Err(CudaError::NotApart(why)) => {
            return check.results.finding(what, &format!("left out: {why}"));
        }
        Err(error) => return Err(error.into()),
    };
    let product = Product::new(check, &gpu, &stream)?;
    let alone = product.takes_us(products)?;

    let kernels: Vec<KernelRef<Number, Number>> =
        (0..count).map(kernel).collect::<Result<_, _>>()?;
    let mut theirs = BTreeSet::new();
    for kernel in &kernels {
        let place = kernel.ask_blocking(Number { value: 0 }, Some(LONG))?.message.value;
        theirs.insert(u32::try_from(place)?);
    }
    let placements = cuda.placements();
    for placement in &placements {
        check.results.finding(&format!("{count} kernels run"), &placement.to_string())?;
    }
    let apart = |placement: &Placement| matches!(placement, Placement::Apart { .. });
    if !placements.iter().all(apart) {
        return check.results.finding(what, "left out: the grid is elsewhere");
    }
    // By room: what fills a multiprocessor finds one taken that a block of the grid is on.
    let missing = census.missing(&gpu, &stream, multiprocessors)?;
    let what = "work that fills all that are left is there at once, beside the kernels";
    check.results.fact(what, missing == 0, &format!("{missing} blocks had no room"))?;
    let missing = census.missing(&gpu, &ordinary, gpu.device.multiprocessors)?;
    let what = "work that fills all multiprocessors is not";
    check.results.fact(what, missing > 0, &format!("{missing} blocks had no room"))?;
    // By number: how many they are. Whether contexts have numbers of their own no document says.
    let (others, any) = (census.places(&gpu, &stream)?, census.places(&gpu, &ordinary)?);
    let set_aside = gpu.device.multiprocessors - multiprocessors;
    let what = "kernels run on no more multiprocessors than are set aside";
    let note = format!("{} of {set_aside}: {theirs:?}", theirs.len());
    check.results.fact(what, theirs.len() <= set_aside as usize, &note)?;
    let what = "work in the stream of ring_free_sms runs on as many as are left";
    let holds = others.len() == multiprocessors as usize;
    check.results.fact(what, holds, &format!("{} of {multiprocessors}", others.len()))?;
    let both = |work: &BTreeSet<u32>| format!("{} of {}", (work & &theirs).len(), work.len());
    let what = "multiprocessors, by number, that the kernels' are too";
    let found = format!("{}; in an ordinary stream {}", both(&others), both(&any));
    check.results.finding(what, &found)?;

    let slower = (product.takes_us(products)? / alone - 1.0) * 100.0;
    let note = format!("{multiprocessors} multiprocessors, {alone:.0} us");
    check.results.finding("a product of matrices without kernels", &note)?;
    let what = format!("{count} idle kernels: a product of matrices beside them, slower by");
    let (goal, floor) = (Some(Goal::AtMost(2.0)), Some(("without kernels", 0.0)));
    check.results.beside(&what, slower, "%", goal, floor)?;

    // The other way round: a kernel that is asked while the others' multiprocessors are full.
    let asked = check.count(5000);
    let round_trip = || -> Result<f64, Failure> {
        let mut times = Vec::new();
        for turn in 0..asked {
            let start = Instant::now();
            let kernel = &kernels[turn as usize % kernels.len()];
            kernel.ask_blocking(Number { value: 0 }, Some(LONG))?;
            times.push(start.elapsed());
        }
        Ok(percentile_us(&mut times, 50.0))
    };
    let quiet = round_trip()?;
    for _ in 0..products {
        product.launch()?;
    }
    let busy = round_trip()?;
    let lasted = !stream.is_idle()?;
    stream.synchronize()?;
    let floor = Some(("without products", quiet));
    check.results.beside("a kernel asked during products, p50", busy, "us", None, floor)?;
    let found = if lasted { "to the last answer" } else { "not to the last answer" };
    check.results.finding("the products lasted", found)?;
    for kernel in &kernels {
        kernel.terminate_blocking(Terminate::now());
    }
    Ok(())
}
