//! What runs on the device, and where its code comes from.

use std::fs;
use std::path::Path;
use std::time::Duration;

use dotcompute_core::{KernelRef, Message, Record, Restart, RestartPolicy, Runtime};
use dotcompute_cuda::compute::{KERNELS, Module};
use dotcompute_cuda::grid::{SeatPlan, Shape};
use dotcompute_cuda::nvrtc::{Output, Source};
use dotcompute_cuda::resident::{Isolation, Residency, Resident};
use dotcompute_cuda::toolkit::Toolkit;
use dotcompute_cuda::{
    Cuda, CudaHandler, CudaKernel, CudaKernels, CudaLaunch, CudaOptions, Image, Scope, Version,
};

use crate::device::Gpu;
use crate::report::is_stand_in;
use crate::{Check, Failure};

#[derive(Clone, Copy, Debug, PartialEq, Message)]
#[message(record, no_wire, crate = "dotcompute_core")]
#[repr(C)]
pub(crate) struct Five {
    pub(crate) words: [u64; 5],
}

impl Five {
    /// Five words of which each says what the others are.
    pub(crate) fn of(number: u64) -> Self {
        Self { words: std::array::from_fn(|place| number.wrapping_mul(2 * place as u64 + 1)) }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Message)]
#[message(record, no_wire, crate = "dotcompute_core")]
#[repr(C)]
pub(crate) struct Span {
    pub(crate) first: u64,
    pub(crate) count: u64,
}

impl Span {
    /// What the handler makes of it.
    pub(crate) fn reduced(self) -> u64 {
        let mixed = |number: u64| {
            let number = number.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            number ^ number >> 33
        };
        (0..self.count).fold(0, |sum, at| sum.wrapping_add(mixed(self.first.wrapping_add(at))))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Message)]
#[message(record, no_wire, crate = "dotcompute_core")]
#[repr(C)]
pub(crate) struct Ball {
    pub(crate) left: i64,
    pub(crate) hops: i64,
}

#[derive(Clone, Copy, Debug, PartialEq, Message)]
#[message(record, crate = "dotcompute_core")]
#[repr(C)]
pub(crate) struct Number {
    pub(crate) value: i64,
}

#[derive(Clone, Copy, Debug, PartialEq, Message)]
#[message(record, crate = "dotcompute_core")]
#[repr(C)]
pub(crate) struct Sum {
    pub(crate) total: i64,
    pub(crate) count: i64,
}

const COMMON: &str = include_str!("handlers.cu");
const FLOORS: &str = include_str!("floors.cu");

/// Answers with the next number's words; fails where words do not fit together.
const ECHO: &str = r#"
extern "C" __device__ int32_t echo(const five *message, void *, five *reply, rk_ctx *ctx) {
    const unsigned long long number = message->words[0];
    for (int place = 0; place < 5; ++place)
        if (message->words[place] != number * (2 * place + 1))
            return rk_fault(ctx, -9, "torn", 4);
    for (int place = 0; place < 5; ++place)
        reply->words[place] = (number + 1) * (2 * place + 1);
    return DC_HANDLER_REPLY;
}
"#;

/// Plays a ball to the next kernel, until it has no turns left.
const HOP: &str = r#"
extern "C" __device__ int32_t hop(const ball *message, void *, ball *reply, rk_ctx *ctx) {
    const ball next = {message->left - 1, message->hops + 1};
    if (next.left > 0)
        return rk_send(ctx, 0, &next);
    *reply = next;
    return DC_HANDLER_REPLY;
}
"#;

/// Takes messages.
const SINK: &str = r#"
extern "C" __device__ int32_t sink(const number *message, sum *state, void *, rk_ctx *) {
    state->total += message->value;
    state->count += 1;
    return DC_HANDLER_DONE;
}
"#;

/// Adds up; -1: fails; -5: traps; less than -1000: does not come back for so many nanoseconds.
const WORK: &str = r#"
extern "C" __device__ int32_t work(const number *message, sum *state, sum *reply, rk_ctx *ctx) {
    const long long value = message->value;
    if (value == -1)
        return rk_fault(ctx, -7, "minus one", 9);
    if (value == -5)
        __trap();
    if (value < -1000) {
        const uint64_t end = rk_clock(ctx) - value;
        while (rk_clock(ctx) < end) {
        }
        return DC_HANDLER_DONE;
    }
    state->total += value;
    state->count += 1;
    *reply = *state;
    return DC_HANDLER_REPLY;
}
"#;

/// Mixes each number of a span and adds them up: by all of its threads, and a tree in shared memory.
const REDUCE: &str = r#"
extern "C" __device__ int32_t
reduce(const span *message, void *, unsigned long long *reply, rk_ctx *ctx) {
    const uint32_t thread = rk_thread(ctx), threads = rk_threads(ctx);
    unsigned long long mine = 0;
    for (unsigned long long at = thread; at < message->count; at += threads) {
        unsigned long long number = message->first + at;
        number = number * 6364136223846793005ull + 1442695040888963407ull;
        mine += number ^ number >> 33;
    }
    if (threads == 1) {
        *reply = mine;
        return DC_HANDLER_REPLY;
    }
    unsigned long long *partial = static_cast<unsigned long long *>(rk_shared(ctx));
    partial[thread] = mine;
    if (int32_t fault = rk_barrier(ctx))
        return fault;
    for (uint32_t half = threads / 2; half != 0; half /= 2) {
        if (thread < half)
            partial[thread] += partial[thread + half];
        if (int32_t fault = rk_barrier(ctx))
            return fault;
    }
    if (thread == 0)
        *reply = partial[0];
    return DC_HANDLER_REPLY;
}
"#;

/// The block that a span is reduced by, and its shared memory.
pub(crate) const BLOCK_THREADS: u32 = 256;
const BLOCK_BYTES: u32 = 8 * BLOCK_THREADS;

/// Answers with the number of the multiprocessor that it runs on. Its inline assembly is the device's; a
/// stand-in, which compiles for the host, has a function for it.
const WHERE: &str = r#"
extern "C" __device__ int32_t where(const number *, void *, number *reply, rk_ctx *) {
#ifdef DC_DEVICE_TWIN
    reply->value = standin_multiprocessor();
#else
    unsigned multiprocessor;
    asm volatile("mov.u32 %0, %%smid;" : "=r"(multiprocessor));
    reply->value = multiprocessor;
#endif
    return DC_HANDLER_REPLY;
}
"#;

fn code(function: &str, source: &str) -> CudaHandler {
    CudaHandler::from_source(function, format!("{COMMON}{source}"))
}

/// All of them, in the order of their numbers in an image.
pub(crate) fn kernels() -> CudaKernels {
    CudaKernels::new()
        .kernel("echo", CudaKernel::new(code("echo", ECHO), Five::LAYOUT).output(Five::LAYOUT))
        .kernel("hop", CudaKernel::new(code("hop", HOP), Ball::LAYOUT).output(Ball::LAYOUT))
        .kernel(
            "sink",
            CudaKernel::new(code("sink", SINK), Number::LAYOUT).state(&Sum { total: 0, count: 0 }),
        )
        .kernel(
            "work",
            CudaKernel::new(code("work", WORK), Number::LAYOUT)
                .output(Sum::LAYOUT)
                .state(&Sum { total: 0, count: 0 }),
        )
        .kernel(
            "reduce",
            CudaKernel::new(code("reduce", REDUCE), Span::LAYOUT).output(Number::LAYOUT),
        )
        .kernel(
            "where",
            CudaKernel::new(code("where", WHERE), Number::LAYOUT).output(Number::LAYOUT),
        )
}

const FUNCTIONS: [&str; 6] = ["echo", "hop", "sink", "work", "reduce", "where"];

/// Those of a block, in an image of their own.
fn block_kernels() -> CudaKernels {
    let code = code("reduce", REDUCE).scope(BLOCK).shared_bytes(BLOCK_BYTES);
    CudaKernels::new().kernel("reduce", CudaKernel::new(code, Span::LAYOUT).output(Number::LAYOUT))
}

const BLOCK: Scope = Scope::Block { threads: BLOCK_THREADS };

pub(crate) fn name(what: &str, Version { major, minor }: Version) -> String {
    format!("{what}_sm_{major}{minor}.cubin")
}

/// Compiles everything for every architecture.
pub(crate) fn build(folder: &Path) -> Result<(), Failure> {
    fs::create_dir_all(folder)?;
    let toolkit = Toolkit::load()?;
    for architecture in [Version::new(8, 0), Version::new(9, 0), Version::new(10, 0)] {
        let options = CudaOptions { cache: None, ..CudaOptions::default() };
        let image = kernels().build(architecture, &options)?;
        fs::write(folder.join(name("handlers", architecture)), image.cubin())?;
        let image = block_kernels().build(architecture, &options)?;
        fs::write(folder.join(name("block", architecture)), image.cubin())?;
        for (what, text) in [("floors", FLOORS), ("compute", KERNELS)] {
            let cubin = compile(&toolkit, what, text, architecture)?;
            fs::write(folder.join(name(what, architecture)), cubin)?;
        }
        crate::workloads::build(folder, &toolkit, architecture)?;
    }
    Ok(())
}

fn compile(
    toolkit: &Toolkit,
    what: &str,
    text: &str,
    Version { major, minor }: Version,
) -> Result<Vec<u8>, Failure> {
    let source = Source { name: &format!("{what}.cu"), text, headers: &[] };
    let target = format!("-arch=sm_{major}{minor}");
    let compiled = toolkit.nvrtc.compile(&source, &["-std=c++17", &target], Output::Cubin)?;
    Ok(compiled.0)
}

/// What was built for the device's architecture: for the largest that is not larger, of its kind. A
/// stand-in runs nothing of that, and has its own compiler.
pub(crate) fn built(check: &Check, what: &str, gpu: &Gpu) -> Option<Vec<u8>> {
    if is_stand_in(&gpu.device.name) {
        return None;
    }
    let device = gpu.device.compute_capability;
    let minors = (0..=device.minor).rev();
    minors
        .map(|minor| check.folder.join("images").join(name(what, Version { minor, ..device })))
        .find_map(|path| fs::read(path).ok())
}

/// The floors' kernels.
pub(crate) fn floors(check: &Check, gpu: &Gpu) -> Result<Module, Failure> {
    module(check, gpu, "floors", FLOORS)
}

/// The kernels that the crate brings along.
pub(crate) fn compute(check: &Check, gpu: &Gpu) -> Result<Module, Failure> {
    module(check, gpu, "compute", KERNELS)
}

fn module(check: &Check, gpu: &Gpu, what: &str, text: &str) -> Result<Module, Failure> {
    let architecture = gpu.device.compute_capability;
    let cubin = match built(check, what, gpu) {
        Some(cubin) => cubin,
        None => compile(&Toolkit::load()?, what, text, architecture)?,
    };
    // SAFETY: what NVRTC made of this source.
    Ok(unsafe { Module::load(&gpu.context, &cubin) }?)
}

/// The resident grid with the handlers.
pub(crate) fn image(check: &Check, gpu: &Gpu) -> Result<Image, Failure> {
    let architecture = gpu.device.compute_capability;
    match built(check, "handlers", gpu) {
        Some(cubin) => {
            let names = FUNCTIONS.map(str::to_owned).into();
            // SAFETY: what `build` made of these handlers, in this order.
            Ok(unsafe { Image::from_cubin(cubin, names, Scope::Lane) })
        }
        None => Ok(kernels().build(architecture, &CudaOptions::default())?),
    }
}

/// A grid of blocks, each with a kernel that reduces spans.
pub(crate) fn block_grid(
    check: &Check,
    gpu: &Gpu,
    residency: Residency,
) -> Result<(Resident, Image), Failure> {
    let architecture = gpu.device.compute_capability;
    let image = match built(check, "block", gpu) {
        // SAFETY: what `build` made of this handler.
        Some(cubin) => unsafe { Image::from_cubin(cubin, vec!["reduce".to_owned()], BLOCK) },
        None => block_kernels().build(architecture, &CudaOptions::default())?,
    };
    let shape = Shape { scope: BLOCK, shared_bytes: BLOCK_BYTES, ..Shape::default() };
    Ok((Resident::launch(gpu.driver, 0, image.clone(), shape, residency)?, image))
}

/// A grid without an executor.
pub(crate) fn grid(
    check: &Check,
    gpu: &Gpu,
    seats: u32,
    residency: Residency,
) -> Result<(Resident, Image), Failure> {
    let image = image(check, gpu)?;
    let shape = Shape {
        seats,
        edges: 1,
        edges_in: 1,
        inbox_capacity: 16,
        window: 256,
        reply_window: 512,
        ..Shape::default()
    };
    Ok((Resident::launch(gpu.driver, 0, image.clone(), shape, residency)?, image))
}

pub(crate) fn plan(image: &Image, function: &str, reply_bytes: u32) -> Result<SeatPlan, Failure> {
    let handler = image.handler(function).ok_or("the image has the handlers")?;
    Ok(SeatPlan { handler, state: Vec::new(), reply_bytes, ..SeatPlan::default() })
}

/// The executor, and a runtime.
pub(crate) fn executor(
    check: &Check,
    gpu: &Gpu,
    seats: u32,
    lease: Option<Duration>,
) -> Result<(Runtime, Cuda), Failure> {
    let residency = Residency { lease, ..Residency::default() };
    executor_in(check, gpu, seats, residency, Isolation::Thread)
}

/// The same with its contexts in this process or in their own.
pub(crate) fn executor_in(
    check: &Check,
    gpu: &Gpu,
    seats: u32,
    residency: Residency,
    isolation: Isolation,
) -> Result<(Runtime, Cuda), Failure> {
    let options = CudaOptions {
        seats,
        residency,
        isolation,
        window: 256,
        image: Some(image(check, gpu)?),
        ..CudaOptions::default()
    };
    let cuda = kernels().open(options)?;
    Ok((Runtime::builder().executor(cuda.executor()).build(), cuda))
}

pub(crate) fn worker(
    (runtime, cuda): &(Runtime, Cuda),
    name: &str,
    restarts: bool,
) -> Result<KernelRef<Number, Sum>, Failure> {
    let restart = Restart {
        policy: if restarts { RestartPolicy::OnFault } else { RestartPolicy::Never },
        max_restarts: u32::MAX,
        backoff: Duration::ZERO,
        redeliver: false,
        ..Restart::default()
    };
    let builder = runtime.kernel(name).executor("cuda").restart(restart);
    let kernel = cuda.launch(builder, CudaLaunch::new("work"))?;
    kernel.activate()?;
    Ok(kernel)
}
