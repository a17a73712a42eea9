//! What kernels cost that have nothing to do: of the host, of the bus, and of who else uses the device.

use std::thread;
use std::time::{Duration, Instant};

use dotcompute_core::{KernelRef, Terminate};
use dotcompute_cuda::compute::{DeviceBuffer, Function, Launch, Stream};

use crate::device::Gpu;
use crate::handlers::{Number, Sum};
use crate::link::Link;
use crate::messages::{LONG, percentile_us};
use crate::report::Goal;
use crate::{Check, Failure, green, handlers};

/// The time that this process has used of its cores.
fn cpu_time() -> Duration {
    let text = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let ticks: u64 = text
        .rsplit(')')
        .next()
        .map(|rest| rest.split_whitespace().skip(11).take(2).filter_map(|n| n.parse::<u64>().ok()))
        .map_or(0, Iterator::sum);
    // Linux counts hundredths.
    Duration::from_millis(10 * ticks)
}

/// The share of a core that this process uses while it waits.
fn core_percent(time: Duration) -> f64 {
    let (start, before) = (Instant::now(), cpu_time());
    while start.elapsed() < time {
        thread::park_timeout(time.saturating_sub(start.elapsed()));
    }
    (cpu_time() - before).as_secs_f64() / start.elapsed().as_secs_f64() * 100.0
}

/// Products of matrices on the multiprocessors that are left.
struct Product {
    function: Function,
    stream: Stream,
    matrices: [DeviceBuffer; 3],
    /// Rows and columns.
    size: u64,
    multiprocessors: u32,
}

/// How many multiprocessors 128 kernels are given: more than they need, and what can be set aside.
const TAKEN: u32 = 8;

impl Product {
    fn new(check: &Check, gpu: &Gpu) -> Result<Option<Self>, Failure> {
        let Some((multiprocessors, stream)) = green::complement(gpu, TAKEN)? else {
            return Ok(None);
        };
        let size = if check.quick { 32 } else { 4096 };
        let function = handlers::compute(check, gpu)?.function("matrix_multiply_float32")?;
        let pool = gpu.context.pool()?;
        let matrix = || -> Result<DeviceBuffer, Failure> {
            let matrix = pool.allocate(4 * (size * size) as usize, &stream)?;
            stream.fill(&matrix, 0)?;
            Ok(matrix)
        };
        let matrices = [matrix()?, matrix()?, matrix()?];
        Ok(Some(Self { function, stream, matrices, size, multiprocessors }))
    }

    /// What one takes, p50, in microseconds.
    fn takes_us(&self, count: u64) -> Result<f64, Failure> {
        let blocks = self.size.div_ceil(16) as u32;
        let shape = Launch { grid: [blocks, blocks, 1], block: [16, 16, 1], shared_bytes: 0 };
        let size = self.size.to_ne_bytes();
        let [a, b, c] = self.matrices.each_ref().map(|matrix| matrix.address().to_ne_bytes());
        let mut times = Vec::new();
        for _ in 0..count {
            let start = Instant::now();
            // SAFETY: the kernel of `compute.cu` with its arguments, over matrices of this size.
            unsafe {
                self.function.launch(&self.stream, &shape, &[&a, &b, &c, &size, &size, &size])
            }?;
            self.stream.synchronize()?;
            times.push(start.elapsed());
        }
        Ok(percentile_us(&mut times[1..], 50.0))
    }
}

pub(crate) fn run(check: &mut Check) -> Result<(), Failure> {
    let gpu = Gpu::open(check)?;
    // First of all without them, and before anything stays: to load a module may wait for it.
    let time = check.time(Duration::from_secs(10)).max(Duration::from_secs(1));
    let (link, products) = (Link::open(), if check.quick { 3 } else { 40 });
    let waits = core_percent(time);
    let quiet = link.as_ref().ok().map(|link| link.received_percent(time));
    let product = Product::new(check, &gpu)?;
    let alone = product.as_ref().map(|product| product.takes_us(products)).transpose()?;

    let count = 2 * check.pairs();
    let stage = handlers::executor(check, &gpu, count, Some(Duration::from_millis(250)))?;
    let kernels: Vec<KernelRef<Number, Sum>> = (0..count)
        .map(|number| handlers::worker(&stage, &format!("idle {number}"), false))
        .collect::<Result<_, _>>()?;
    for kernel in &kernels {
        kernel.ask_blocking(Number { value: 1 }, Some(LONG))?;
    }
    let what = format!("{count} idle kernels: a core of the host");
    let (goal, floor) = (Some(Goal::AtMost(1.0)), Some(("without kernels", waits)));
    check.results.beside(&what, core_percent(time), "%", goal, floor)?;

    let what = format!("{count} idle kernels: what the device receives, of the link");
    let share = match (link, quiet) {
        (Ok(link), Some(Ok(quiet))) => link.received_percent(time).map(|share| (share, quiet)),
        (Ok(_), Some(Err(why))) | (Err(why), _) => Err(why),
        (Ok(_), None) => Err("it was not asked before".to_owned()),
    };
    match share {
        Ok((share, quiet)) => {
            let (goal, floor) = (Some(Goal::AtMost(1.0)), Some(("without kernels", quiet)));
            check.results.beside(&what, share, "%", goal, floor)?;
        }
        Err(why) => check.results.finding(&what, &format!("left out: {why}"))?,
    }

    let what = format!("{count} idle kernels: a product of matrices on the other multiprocessors");
    match (&product, alone) {
        (Some(product), Some(alone)) => {
            let slower = (product.takes_us(products)? / alone - 1.0) * 100.0;
            let note = format!("{} multiprocessors, {alone:.0} us", product.multiprocessors);
            check.results.finding("a product of matrices without kernels", &note)?;
            let (goal, floor) = (Some(Goal::AtMost(2.0)), Some(("without kernels", 0.0)));
            check.results.beside(&format!("{what}, slower by"), slower, "%", goal, floor)?;
        }
        _ => check.results.finding(&what, "left out: the driver has no green contexts")?,
    }
    // They are still there.
    for kernel in &kernels {
        kernel.ask_blocking(Number { value: 1 }, Some(LONG))?;
        kernel.terminate_blocking(Terminate::now());
    }
    check.results.fact("they answer afterwards", true, "")
}
