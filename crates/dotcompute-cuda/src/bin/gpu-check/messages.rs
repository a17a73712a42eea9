//! Messages: whether they arrive whole, how fast, how many.

use std::thread;
use std::time::{Duration, Instant};

use dotcompute_abi::TaggedRecord;
use dotcompute_abi::control::{COMMAND_RUN, COMMAND_STOP};
use dotcompute_core::{AskError, Envelope, KernelRef, Record, RecordBatch, Terminate};
use dotcompute_cuda::CudaLaunch;
use dotcompute_cuda::grid::{EdgePlan, Port};
use dotcompute_cuda::resident::Residency;
use dotcompute_mailbox::Band;
use dotcompute_mailbox::wait;

use crate::device::Gpu;
use crate::handlers::{Ball, Five, Number, Sum};
use crate::report::Goal;
use crate::{Check, Failure, handlers};

const LONG: Duration = Duration::from_secs(30);

/// The time that so many per cent stay below, in microseconds. Sorts.
pub(crate) fn percentile_us(times: &mut [Duration], percent: f64) -> f64 {
    times.sort_unstable();
    let place = ((times.len() - 1) as f64 * percent / 100.0).round() as usize;
    times[place].as_secs_f64() * 1e6
}

/// Waits without sleeping.
fn until<T>(mut found: impl FnMut() -> Option<T>) -> Result<T, Failure> {
    let deadline = Instant::now() + LONG;
    let mut looks = 0_u32;
    loop {
        if let Some(found) = found() {
            return Ok(found);
        }
        looks = looks.wrapping_add(1);
        if looks.is_multiple_of(1024) && Instant::now() > deadline {
            return Err("the device does not answer".into());
        }
        match wait::parallelism() {
            0..=2 => thread::yield_now(),
            _ => std::hint::spin_loop(),
        }
    }
}

fn record<T: Record>(token: u32, message: &T) -> Result<TaggedRecord, Failure> {
    Ok(TaggedRecord::new(token, message.bytes()).ok_or("it fits into a slot")?)
}

fn received<T: Record>(record: &TaggedRecord) -> Result<T, Failure> {
    let bytes = usize::from(record.header.payload_bytes).min(record.payload.len());
    Ok(T::from_bytes(&record.payload[..bytes]).ok_or("a reply of another size")?)
}

/// Every chunk carries words that say what the others are: both ways, whole windows at a time.
pub(crate) fn torn(check: &mut Check) -> Result<(), Failure> {
    let gpu = Gpu::open(check)?;
    let (resident, image) = handlers::grid(check, &gpu, 1, Residency::default())?;
    let mut port = resident.seat(0, handlers::plan(&image, "echo", 40)?)?;
    port.command(COMMAND_RUN);
    let deadline = Instant::now() + check.time(Duration::from_secs(60));
    let (mut sent, mut seen) = (0_u64, 0_u64);
    while Instant::now() < deadline || seen < sent {
        if Instant::now() < deadline {
            while port.free(Band::Normal) > 0 && sent - seen < 256 {
                let message = record(sent as u32, &Five::of(sent))?;
                port.send(Band::Normal, message).map_err(|_| "there was room")?;
                sent += 1;
            }
        }
        let reply = until(|| port.receive())?;
        if u32::from(reply.header.flags) != 0 {
            break;
        }
        let five: Five = received(&reply)?;
        if five != Five::of(seen + 1) {
            let note = format!("reply {seen} was {five:?}");
            return check.results.fact("replies arrive whole", false, &note);
        }
        seen += 1;
    }
    let report = port.report();
    check.results.figure("records each way", seen as f64, "", None)?;
    let note = format!("fault {} after {seen}", report.fault);
    check.results.fact("messages arrive whole", report.fault == 0, &note)?;
    port.command(COMMAND_STOP);
    Ok(resident.end(LONG)?)
}

pub(crate) fn round_trip(check: &mut Check) -> Result<(), Failure> {
    let gpu = Gpu::open(check)?;
    let turns = check.count(200_000);
    let (resident, image) = handlers::grid(check, &gpu, 2, Residency::default())?;
    let mut port = resident.seat(0, handlers::plan(&image, "echo", 40)?)?;
    port.command(COMMAND_RUN);
    let mut times = Vec::new();
    for turn in 0..turns {
        let start = Instant::now();
        port.send(Band::Normal, record(turn as u32, &Five::of(turn))?).map_err(|_| "no room")?;
        until(|| port.receive())?;
        times.push(start.elapsed());
    }
    let (p50, p99) = (percentile_us(&mut times, 50.0), percentile_us(&mut times, 99.0));
    check.results.figure("a port, there and back, p50", p50, "us", Some(Goal::AtMost(3.0)))?;
    check.results.figure("a port, there and back, p99", p99, "us", Some(Goal::AtMost(6.0)))?;
    port.command(COMMAND_STOP);
    resident.end(LONG)?;
    drop(port);

    let stage = handlers::executor(check, &gpu, 3, Some(Duration::from_millis(250)))?;
    let kernel = handlers::worker(&stage, "worker", false)?;
    let mut times = Vec::new();
    for _ in 0..turns {
        let start = Instant::now();
        kernel.ask_blocking(Number { value: 1 }, Some(LONG))?;
        times.push(start.elapsed());
    }
    let (p50, p99) = (percentile_us(&mut times, 50.0), percentile_us(&mut times, 99.0));
    check.results.figure("an ask of the executor, p50", p50, "us", None)?;
    check.results.figure("an ask of the executor, p99", p99, "us", None)?;
    kernel.terminate_blocking(Terminate::now());
    hops(check, &gpu)
}

/// A ball between two kernels of the device.
fn hops(check: &mut Check, gpu: &Gpu) -> Result<(), Failure> {
    let residency = Residency { lease: None, ..Residency::default() };
    let (resident, image) = handlers::grid(check, gpu, 2, residency)?;
    let mut ports = Vec::new();
    for seat in 0..2 {
        let edge = EdgePlan { to: 1 - seat, number: 0, share: 8, record_bytes: 16 };
        let mut plan = handlers::plan(&image, "hop", 16)?;
        plan.max_emit = 1;
        plan.edges.push(edge);
        ports.push(resident.seat(seat, plan)?);
    }
    ports.iter().for_each(|port| port.command(COMMAND_RUN));
    let left = check.count(100_000) as i64;
    let start = Instant::now();
    ports[0].send(Band::Normal, record(0, &Ball { left, hops: 0 })?).map_err(|_| "no room")?;
    let reply = until(|| ports.iter_mut().find_map(Port::receive))?;
    let each = start.elapsed().as_secs_f64() * 1e6 / left as f64;
    let ball: Ball = received(&reply)?;
    check.results.fact("no hop is lost", ball.hops == left, &format!("{ball:?} of {left}"))?;
    check.results.figure("a hop between two kernels", each, "us", Some(Goal::AtMost(1.5)))?;
    ports.iter().for_each(|port| port.command(COMMAND_STOP));
    Ok(resident.end(LONG)?)
}

pub(crate) fn throughput(check: &mut Check) -> Result<(), Failure> {
    let gpu = Gpu::open(check)?;
    let (resident, image) = handlers::grid(check, &gpu, 2, Residency::default())?;
    let mut port = resident.seat(0, handlers::plan(&image, "sink", 0)?)?;
    port.command(COMMAND_RUN);
    let count = check.count(20_000_000);
    let start = Instant::now();
    for value in 0..count {
        let message = record(0, &Number { value: value as i64 })?;
        until(|| port.send(Band::Normal, message).ok())?;
    }
    until(|| (port.done()[Band::Normal as usize] == count).then_some(()))?;
    let rate = count as f64 / start.elapsed().as_secs_f64();
    check.results.figure("a port, one way", rate, "/s", Some(Goal::AtLeast(1e7)))?;
    port.command(COMMAND_STOP);
    resident.end(LONG)?;
    drop(port);
    between_kernels(check, &gpu)?;

    let stage = handlers::executor(check, &gpu, 31, Some(Duration::from_millis(250)))?;
    let batch = |size: usize| RecordBatch::from_vec(vec![Number { value: 1 }; size]);
    let size = 4096;
    let batches = (check.count(20_000_000) / size as u64).max(1);
    for (entry, what) in [("sink", "the executor, batches, one way"), ("work", "with a reply each")]
    {
        let builder = stage.0.kernel(entry).executor("cuda").capacity(64);
        let kernel: KernelRef<RecordBatch, RecordBatch> =
            stage.1.launch(builder, CudaLaunch::new(entry))?;
        kernel.activate()?;
        let reader = kernel.clone();
        let reads = thread::spawn(move || while reader.receive_blocking(Some(LONG)).is_ok() {});
        let start = Instant::now();
        for _ in 0..batches {
            kernel.send_blocking(batch(size), None).map_err(|error| error.to_string())?;
        }
        kernel.terminate_blocking(Terminate::drain().within(LONG));
        let rate = (batches * size as u64) as f64 / start.elapsed().as_secs_f64();
        reads.join().map_err(|_| "the reader panicked")?;
        let books = kernel.books();
        check.results.fact(
            "the books balance",
            books.processed == batches,
            &format!("{books:?}"),
        )?;
        check.results.figure(what, rate, "/s", None)?;
    }
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

/// Answers go on over changes of lease: what the slowest of them take.
/// Pairs of kernels that play several balls each: messages that never leave the device.
fn between_kernels(check: &mut Check, gpu: &Gpu) -> Result<(), Failure> {
    // A rehearsal has a thread for each.
    let seats: u32 = if check.quick { 8 } else { 128 };
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
    check.results.figure(&what, rate, "/s", Some(Goal::AtLeast(1e8)))?;
    ports.iter().for_each(|port| port.command(COMMAND_STOP));
    Ok(resident.end(LONG)?)
}

pub(crate) fn lease(check: &mut Check) -> Result<(), Failure> {
    let gpu = Gpu::open(check)?;
    for (lease, goal) in [(None, None), (Some(Duration::from_millis(5)), Some(Goal::AtMost(20.0)))]
    {
        let (resident, image) =
            handlers::grid(check, &gpu, 1, Residency { lease, ..Residency::default() })?;
        let mut port = resident.seat(0, handlers::plan(&image, "echo", 40)?)?;
        port.command(COMMAND_RUN);
        let end = Instant::now() + check.time(Duration::from_secs(10));
        let (mut slow, mut turn) = (Vec::new(), 0);
        while Instant::now() < end {
            // The slowest of each lease: the one that was under way when it changed.
            let (part, mut slowest) = (Instant::now(), Duration::ZERO);
            while part.elapsed() < Duration::from_millis(5) {
                let start = Instant::now();
                port.send(Band::Normal, record(turn as u32, &Five::of(turn))?)
                    .map_err(|_| "no room")?;
                until(|| port.receive())?;
                slowest = slowest.max(start.elapsed());
                turn += 1;
            }
            slow.push(slowest);
        }
        let what = match lease {
            None => "the slowest answer in 5 ms, without leases",
            Some(_) => "the slowest answer in 5 ms, with leases of 5 ms",
        };
        for percent in [50.0, 99.0] {
            let value = percentile_us(&mut slow, percent);
            let goal = if percent > 50.0 { goal } else { None };
            check.results.figure(&format!("{what}, p{percent}"), value, "us", goal)?;
        }
        port.command(COMMAND_STOP);
        resident.end(LONG)?;
    }
    Ok(())
}

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

pub(crate) fn idle(check: &mut Check) -> Result<(), Failure> {
    let gpu = Gpu::open(check)?;
    let stage = handlers::executor(check, &gpu, 127, Some(Duration::from_millis(250)))?;
    let count = if check.quick { 4 } else { 128 };
    let kernels: Vec<KernelRef<Number, Sum>> = (0..count)
        .map(|number| handlers::worker(&stage, &format!("idle {number}"), false))
        .collect::<Result<_, _>>()?;
    for kernel in &kernels {
        kernel.ask_blocking(Number { value: 1 }, Some(LONG))?;
    }
    let (start, before) = (Instant::now(), cpu_time());
    let time = check.time(Duration::from_secs(10)).max(Duration::from_secs(1));
    while start.elapsed() < time {
        thread::park_timeout(time.saturating_sub(start.elapsed()));
    }
    let share = (cpu_time() - before).as_secs_f64() / start.elapsed().as_secs_f64() * 100.0;
    let what = format!("{count} idle kernels: a core of the host");
    check.results.figure(&what, share, "%", Some(Goal::AtMost(1.0)))?;
    // They are still there.
    for kernel in &kernels {
        kernel.ask_blocking(Number { value: 1 }, Some(LONG))?;
        kernel.terminate_blocking(Terminate::now());
    }
    check.results.fact("they answer afterwards", true, "")
}

/// Kernels that fail and are restarted, senders of every kind, short leases: then every message is
/// accounted for.
pub(crate) fn soak(check: &mut Check) -> Result<(), Failure> {
    let gpu = Gpu::open(check)?;
    let stage = handlers::executor(check, &gpu, 7, Some(Duration::from_millis(20)))?;
    let kernels: Vec<KernelRef<Number, Sum>> = (0..4)
        .map(|number| handlers::worker(&stage, &format!("soak {number}"), true))
        .collect::<Result<_, _>>()?;
    let end = Instant::now() + check.time(Duration::from_secs(60));
    let sent: u64 = thread::scope(|scope| {
        let kernels = &kernels;
        let senders: Vec<_> =
            (0..4_u64).map(|sender| scope.spawn(move || sends(kernels, sender, end))).collect();
        senders.into_iter().map(|sender| sender.join().unwrap_or(0)).sum()
    });
    let (mut accepted, mut settled, mut faults) = (0, 0, 0);
    for kernel in &kernels {
        thread::scope(|scope| {
            scope.spawn(move || while kernel.receive_blocking(Some(LONG)).is_ok() {});
            kernel.terminate_blocking(Terminate::drain().within(LONG));
        });
        let books = kernel.books();
        check.results.fact("the books balance", books.balance(), &format!("{books:?}"))?;
        accepted += books.accepted;
        settled += books.processed + books.dead_lettered;
        faults += kernel.telemetry().faults;
    }
    let exact = accepted == sent && settled == sent;
    let note = format!("{sent} sent, {accepted} accepted, {settled} settled");
    check.results.fact("every message is accounted for", exact, &note)?;
    check.results.figure("messages", sent as f64, "", None)?;
    check.results.figure("faults, each with a restart", faults as f64, "", None)
}

fn sends(kernels: &[KernelRef<Number, Sum>], sender: u64, end: Instant) -> u64 {
    let (mut seed, mut sent) = (sender * 77 + 1, 0);
    while Instant::now() < end {
        seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        let kernel = &kernels[(seed >> 33) as usize % kernels.len()];
        let value = if (seed >> 40).is_multiple_of(1000) { -1 } else { (seed >> 50) as i64 };
        let message = Envelope::new(Number { value }).with_priority((seed >> 24) as u8);
        let accepted = match (seed >> 20) % 4 {
            0 => match kernel.ask_blocking(message, Some(LONG)) {
                Ok(_) | Err(AskError::Failed { .. } | AskError::Timeout { .. }) => true,
                Err(_) => false,
            },
            _ => kernel.send_blocking(message, None).is_ok(),
        };
        sent += u64::from(accepted);
        while kernel.try_receive().is_ok() {}
    }
    sent
}
