//! How many messages a second: one kernel and 128 of them, fed by the host and by each other.

use std::hint::black_box;
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use dotcompute_abi::control::{COMMAND_RUN, COMMAND_STOP};
use dotcompute_core::{KernelRef, RecordBatch, Terminate};
use dotcompute_cuda::compute::{Module, PinnedBuffer};
use dotcompute_cuda::grid::{EdgePlan, Port};
use dotcompute_cuda::resident::Residency;
use dotcompute_cuda::{Cuda, CudaLaunch};
use dotcompute_mailbox::Band;

use crate::device::Gpu;
use crate::handlers::{Ball, Number, Sum};
use crate::messages::{LONG, received, record, until};
use crate::report::Goal;
use crate::{Check, Failure, floors, handlers};

/// From how many threads the host feeds many kernels.
const THREADS: usize = 8;

/// The records of a batch.
const BATCH: usize = 4096;

/// With a lease, as users run it.
const LEASE: Option<Duration> = Some(Duration::from_millis(250));

pub(crate) fn run(check: &mut Check) -> Result<(), Failure> {
    let gpu = Gpu::open(check)?;
    // Before anything stays: to load a module may wait for it.
    let module = handlers::floors(check, &gpu)?;
    enqueue(check, &gpu)?;
    one_way(check, &gpu, &module)?;
    between_kernels(check, &gpu, &module)?;
    fed_by_the_host(check, &gpu, &module, false)?;
    fed_by_the_host(check, &gpu, &module, true)?;
    single_messages(check, &gpu)
}

/// What a send costs the sender while there is room.
fn enqueue(check: &mut Check, gpu: &Gpu) -> Result<(), Failure> {
    const BURST: u32 = 64;
    let bursts = check.count(20_000);
    let pinned = PinnedBuffer::new(&gpu.context, 64 * BURST as usize)?;
    let start = Instant::now();
    for burst in 0..bursts {
        for slot in 0..BURST as usize {
            // SAFETY: inside the buffer, which is aligned to pages.
            let place = unsafe { pinned.place().add(64 * slot) }.cast::<[u64; 8]>();
            // SAFETY: as above; nobody else uses the buffer.
            unsafe { place.write(black_box([burst; 8])) };
        }
    }
    let ns =
        |start: Instant| start.elapsed().as_secs_f64() * 1e9 / f64::from(BURST) / bursts as f64;
    let written = ns(start);

    let (resident, image) = handlers::grid(check, gpu, 1, Residency::default())?;
    let mut port = resident.seat(0, handlers::plan(&image, "sink", 0)?)?;
    port.command(COMMAND_RUN);
    let message = record(0, &Number { value: 1 })?;
    let mut took = Duration::ZERO;
    for burst in 1..=bursts {
        let start = Instant::now();
        for _ in 0..BURST {
            port.send(Band::Normal, message).map_err(|_| "a burst is below the window")?;
        }
        took += start.elapsed();
        let sent = burst * u64::from(BURST);
        until(|| (port.done()[Band::Normal as usize] == sent).then_some(()))?;
    }
    let by_port = took.as_secs_f64() * 1e9 / f64::from(BURST) / bursts as f64;
    let what = format!("host enqueue, a burst of {BURST} below the window, by a port");
    let floor = Some(("64 bytes written to pinned memory", written));
    check.results.beside(&what, by_port, "ns", Some(Goal::AtMost(60.0)), floor)?;
    port.command(COMMAND_STOP);
    resident.end(LONG)?;
    drop(port);

    let stage = handlers::executor(check, gpu, 1, LEASE)?;
    let builder = stage.0.kernel("sink").executor("cuda").capacity(2 * BURST as usize);
    let kernel: KernelRef<Number, Sum> = stage.1.launch(builder, CudaLaunch::new("sink"))?;
    kernel.activate()?;
    let mut took = Duration::ZERO;
    for burst in 1..=bursts {
        let start = Instant::now();
        for _ in 0..BURST {
            kernel.try_send(Number { value: 1 }).map_err(|error| error.to_string())?;
        }
        took += start.elapsed();
        let sent = burst * u64::from(BURST);
        until(|| (kernel.books().processed == sent).then_some(()))?;
    }
    let by_kernel = took.as_secs_f64() * 1e9 / f64::from(BURST) / bursts as f64;
    let what = format!("host enqueue, a burst of {BURST} below the window, by a kernel");
    let floor = Some(("by a port", by_port));
    check.results.beside(&what, by_kernel, "ns", Some(Goal::AtMost(60.0)), floor)?;
    kernel.terminate_blocking(Terminate::now());
    Ok(())
}

/// One kernel that takes what it is sent.
fn one_way(check: &mut Check, gpu: &Gpu, module: &Module) -> Result<(), Failure> {
    let floor = floors::taken_per_s(check, gpu, module, 1, false)?;
    let (resident, image) = handlers::grid(check, gpu, 1, Residency::default())?;
    let mut port = resident.seat(0, handlers::plan(&image, "sink", 0)?)?;
    port.command(COMMAND_RUN);
    let count = check.count(20_000_000);
    let start = Instant::now();
    for value in 0..count {
        let message = record(0, &Number { value: value as i64 })?;
        until(|| port.send(Band::Normal, message).ok())?;
    }
    until(|| (port.done()[Band::Normal as usize] == count).then_some(()))?;
    let by_port = count as f64 / start.elapsed().as_secs_f64();
    let (goal, floor) = (Some(Goal::AtLeast(1e7)), Some((READ, floor)));
    check.results.beside("one kernel, one way, by its port", by_port, "/s", goal, floor)?;
    port.command(COMMAND_STOP);
    resident.end(LONG)?;
    drop(port);

    let stage = handlers::executor(check, gpu, 1, LEASE)?;
    let batches = (count / BATCH as u64).max(1);
    for (entry, what) in
        [("sink", "one kernel, one way, batched"), ("work", "one kernel, batched, a reply each")]
    {
        let kernel = batched(&stage, entry, entry)?;
        let start = Instant::now();
        thread::scope(|scope| {
            scope.spawn(|| while kernel.receive_blocking(Some(LONG)).is_ok() {});
            feed(&[&kernel], batches);
            kernel.terminate_blocking(Terminate::drain().within(LONG));
        });
        let rate = (batches * BATCH as u64) as f64 / start.elapsed().as_secs_f64();
        let books = kernel.books();
        let note = format!("{books:?}");
        check.results.fact("every batch is processed", books.processed == batches, &note)?;
        let goal = if entry == "sink" { Some(Goal::AtLeast(1e7)) } else { None };
        check.results.beside(what, rate, "/s", goal, Some(("by a port, one way", by_port)))?;
    }
    Ok(())
}

const READ: &str = "64 bytes of mapped memory read by as many warps";

fn batched(
    (runtime, cuda): &(dotcompute_core::Runtime, Cuda),
    name: &str,
    entry: &str,
) -> Result<KernelRef<RecordBatch, RecordBatch>, Failure> {
    let builder = runtime.kernel(name).executor("cuda").capacity(64);
    let kernel = cuda.launch(builder, CudaLaunch::new(entry))?;
    kernel.activate()?;
    Ok(kernel)
}

/// Sends so many batches to each of these, by turn. One that failed takes no more; its books tell.
fn feed(kernels: &[&KernelRef<RecordBatch, RecordBatch>], batches: u64) {
    for _ in 0..batches {
        for kernel in kernels {
            let batch = RecordBatch::from_vec(vec![Number { value: 1 }; BATCH]);
            if kernel.send_blocking(batch, None).is_err() {
                return;
            }
        }
    }
}

/// Pairs of kernels that play several balls each: messages that never leave the device.
fn between_kernels(check: &mut Check, gpu: &Gpu, module: &Module) -> Result<(), Failure> {
    let seats = 2 * check.pairs();
    let floor = f64::from(check.pairs()) * 1e6 / floors::hop_us(check, gpu, module, check.pairs())?;
    let residency = Residency { lease: None, ..Residency::default() };
    let (resident, image) = handlers::grid(check, gpu, seats, residency)?;
    let left = check.count(200_000) as i64;
    let balls = 4;
    let mut ports = Vec::new();
    for seat in 0..seats {
        // Its share is all balls of the pair, so that nobody ever waits for room.
        let edge = EdgePlan { to: seat ^ 1, number: 0, share: 2 * balls, record_bytes: 16 };
        let mut plan = handlers::plan(&image, "hop", 16)?;
        plan.max_emit = 1;
        plan.edges.push(edge);
        let mut port = resident.seat(seat, plan)?;
        for ball in 0..balls {
            let sent = port.send(Band::Normal, record(ball, &Ball { left, hops: 0 })?);
            sent.map_err(|_| "no room")?;
        }
        ports.push(port);
    }
    let start = Instant::now();
    ports.iter().for_each(|port| port.command(COMMAND_RUN));
    let mut hops = 0;
    for _ in 0..seats * balls {
        let reply = until(|| ports.iter_mut().find_map(Port::receive))?;
        hops += received::<Ball>(&reply)?.hops;
    }
    let rate = hops as f64 / start.elapsed().as_secs_f64();
    let wanted = i64::from(seats * balls) * left;
    check.results.fact("no hop is lost", hops == wanted, &format!("{hops} of {wanted}"))?;
    let what = format!("{seats} kernels, device to device");
    let floor = Some(("pairs of warps that answer each other, one ball each", floor));
    check.results.beside(&what, rate, "/s", Some(Goal::AtLeast(1e8)), floor)?;
    ports.iter().for_each(|port| port.command(COMMAND_STOP));
    Ok(resident.end(LONG)?)
}

/// Many kernels that the host feeds from 8 threads: by their ports, and by batches of the executor.
fn fed_by_the_host(
    check: &mut Check,
    gpu: &Gpu,
    module: &Module,
    answers: bool,
) -> Result<(), Failure> {
    let count = 2 * check.pairs() as usize;
    let floor = floors::taken_per_s(check, gpu, module, count as u32, answers)?;
    let (function, reply_bytes, goal, replies) = match answers {
        false => ("sink", 0, 1e8, "one way"),
        true => ("work", 16, 4e7, "a reply each"),
    };
    let (resident, image) = handlers::grid(check, gpu, count as u32, Residency::default())?;
    let plan = handlers::plan(&image, function, reply_bytes)?;
    let mut ports = Vec::new();
    for seat in 0..count as u32 {
        ports.push(resident.seat(seat, plan.clone())?);
    }
    ports.iter().for_each(|port| port.command(COMMAND_RUN));
    let each = check.count(2_000_000);
    let message = record(0, &Number { value: 1 })?;
    let (began, shared) = (Barrier::new(THREADS + 1), count.div_ceil(THREADS));
    let took = thread::scope(|scope| {
        let feeders: Vec<_> = ports
            .chunks_mut(shared)
            .map(|ports| {
                let began = &began;
                scope.spawn(move || -> Result<(), String> {
                    began.wait();
                    feed_ports(ports, message, each, answers).map_err(|error| error.to_string())
                })
            })
            .collect();
        // Fewer kernels than threads, in a rehearsal: the rest only wait for the start.
        for _ in feeders.len()..THREADS {
            scope.spawn(|| began.wait());
        }
        began.wait();
        let start = Instant::now();
        let done = feeders.into_iter().map(|feeder| feeder.join());
        let done: Result<Vec<()>, String> =
            done.map(|done| done.unwrap_or_else(|_| Err("a feeder panicked".to_owned()))).collect();
        done.map(|_| start.elapsed())
    })?;
    let by_ports = (each * count as u64) as f64 / took.as_secs_f64();
    let what = format!("{count} kernels from {THREADS} threads by their ports, {replies}");
    check.results.beside(&what, by_ports, "/s", Some(Goal::AtLeast(goal)), Some((READ, floor)))?;
    ports.iter().for_each(|port| port.command(COMMAND_STOP));
    resident.end(LONG)?;
    drop(ports);

    let stage = handlers::executor(check, gpu, count as u32, LEASE)?;
    let kernels: Vec<_> = (0..count)
        .map(|number| batched(&stage, &format!("{function} {number}"), function))
        .collect::<Result<_, _>>()?;
    let batches = (each / BATCH as u64).max(1);
    let start = Instant::now();
    thread::scope(|scope| {
        for kernels in kernels.chunks(shared) {
            let few: Vec<_> = kernels.iter().collect();
            scope.spawn(move || feed(&few, batches));
            if answers {
                // The receiver's observation: each batch of replies is taken.
                scope.spawn(move || {
                    for _ in 0..batches {
                        for kernel in kernels {
                            if kernel.receive_blocking(Some(LONG)).is_err() {
                                return;
                            }
                        }
                    }
                });
            }
        }
    });
    for kernel in &kernels {
        kernel.terminate_blocking(Terminate::drain().within(LONG));
    }
    let took = start.elapsed();
    let processed: u64 = kernels.iter().map(|kernel| kernel.books().processed).sum();
    let wanted = batches * count as u64;
    let note = format!("{processed} of {wanted} batches of {BATCH}");
    check.results.fact("every batch is processed", processed == wanted, &note)?;
    let rate = (processed * BATCH as u64) as f64 / took.as_secs_f64();
    let what = format!("{count} kernels from {THREADS} threads by batch calls, {replies}");
    let floor = Some(("by their ports", by_ports));
    check.results.beside(&what, rate, "/s", Some(Goal::AtLeast(goal)), floor)
}

/// Sends so many messages to each of these ports, as there is room, and takes all replies.
fn feed_ports(
    ports: &mut [Port],
    message: dotcompute_abi::TaggedRecord,
    each: u64,
    answers: bool,
) -> Result<(), Failure> {
    let mut left: Vec<(u64, u64)> = vec![(each, if answers { each } else { 0 }); ports.len()];
    let mut quiet = Instant::now();
    loop {
        let (mut moved, mut over) = (false, true);
        for (port, (unsent, unanswered)) in ports.iter_mut().zip(&mut left) {
            let room = port.free(Band::Normal).min(usize::try_from(*unsent).unwrap_or(usize::MAX));
            for _ in 0..room {
                port.send(Band::Normal, message).map_err(|_| "there was room")?;
            }
            *unsent -= room as u64;
            moved |= room > 0;
            while *unanswered > 0 && port.receive().is_some() {
                *unanswered -= 1;
                moved = true;
            }
            over &= *unsent == 0 && *unanswered == 0 && port.done()[Band::Normal as usize] == each;
        }
        if over {
            return Ok(());
        }
        if moved {
            quiet = Instant::now();
            continue;
        }
        if quiet.elapsed() > LONG {
            return Err("the device takes nothing any more".into());
        }
        match dotcompute_mailbox::wait::parallelism() {
            0..=2 => thread::yield_now(),
            _ => std::hint::spin_loop(),
        }
    }
}

/// One message for each call, and a reply for each.
fn single_messages(check: &mut Check, gpu: &Gpu) -> Result<(), Failure> {
    let stage = handlers::executor(check, gpu, 31, LEASE)?;
    let kernels: Vec<KernelRef<Number, Sum>> = (0..16)
        .map(|number| handlers::worker(&stage, &format!("many {number}"), false))
        .collect::<Result<_, _>>()?;
    let each = check.count(1_000_000);
    let start = Instant::now();
    thread::scope(|scope| {
        for kernel in &kernels {
            scope.spawn(move || {
                for _ in 0..each {
                    if kernel.send_blocking(Number { value: 1 }, None).is_err() {
                        return;
                    }
                    while kernel.try_receive().is_ok() {}
                }
            });
            scope.spawn(move || while kernel.receive_blocking(Some(LONG)).is_ok() {});
        }
        for kernel in &kernels {
            while kernel.books().accepted < each && !kernel.state().has_ended() {
                thread::park_timeout(Duration::from_millis(1));
            }
            kernel.terminate_blocking(Terminate::drain().within(LONG));
        }
    });
    let processed: u64 = kernels.iter().map(|kernel| kernel.books().processed).sum();
    let rate = processed as f64 / start.elapsed().as_secs_f64();
    check.results.fact("none is lost", processed == 16 * each, &format!("{processed}"))?;
    check.results.figure("16 kernels, single messages with a reply each", rate, "/s", None)
}
