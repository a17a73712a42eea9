//! Messages: whether they arrive whole, how fast, how many.

use std::thread;
use std::time::{Duration, Instant};

use dotcompute_abi::TaggedRecord;
use dotcompute_abi::control::{COMMAND_RUN, COMMAND_STOP};
use dotcompute_core::{AskError, Envelope, KernelRef, Record, Terminate};
use dotcompute_cuda::Image;
use dotcompute_cuda::grid::{EdgePlan, Port};
use dotcompute_cuda::resident::{Residency, Resident};
use dotcompute_mailbox::Band;
use dotcompute_mailbox::wait;

use crate::device::Gpu;
use crate::handlers::{Ball, Five, Number, Span, Sum};
use crate::report::Goal;
use crate::{Check, Failure, floors, handlers};

pub(crate) const LONG: Duration = Duration::from_secs(30);

/// The time that so many per cent stay below, in microseconds. Sorts.
pub(crate) fn percentile_us(times: &mut [Duration], percent: f64) -> f64 {
    times.sort_unstable();
    let place = ((times.len() - 1) as f64 * percent / 100.0).round() as usize;
    times[place].as_secs_f64() * 1e6
}

/// Waits without sleeping.
pub(crate) fn until<T>(mut found: impl FnMut() -> Option<T>) -> Result<T, Failure> {
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

pub(crate) fn record<T: Record>(token: u32, message: &T) -> Result<TaggedRecord, Failure> {
    Ok(TaggedRecord::new(token, message.bytes()).ok_or("it fits into a slot")?)
}

pub(crate) fn received<T: Record>(record: &TaggedRecord) -> Result<T, Failure> {
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
    // Before anything stays: to load a module may wait for it.
    let module = handlers::floors(check, &gpu)?;
    let floor = floors::answers(check, &gpu, &module)?;
    let hop_floor = floors::hop_us(check, &gpu, &module, 1)?;
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
    let mapped = Some((floors::MAPPED, floor.mapped_p50));
    let goal = Some(Goal::AtMost(3.0));
    check.results.beside("a port, there and back, p50", p50, "us", goal, mapped)?;
    let slow = Some(("mapped memory, there and back, p99", floor.mapped_p99));
    let goal = Some(Goal::AtMost(6.0));
    check.results.beside("a port, there and back, p99", p99, "us", goal, slow)?;
    for (what, takes, times) in [
        (floors::LAUNCH, Some(floor.launch), 2.0),
        (floors::GRAPH, floor.graph, 2.0),
        (floors::COPIES, Some(floor.copies), 5.0),
    ] {
        let name = format!("how many times less than: {what}");
        match takes {
            Some(takes) => {
                check.results.figure(what, takes, "us", None)?;
                let goal = Some(Goal::AtLeast(times));
                check.results.figure(&name, takes / p50, "x", goal)?;
            }
            None => check.results.finding(&name, "left out: the driver has no graphs")?,
        }
    }
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
    for (percent, port) in [(50.0, p50), (99.0, p99)] {
        let what = format!("an ask of the executor, p{percent}");
        let value = percentile_us(&mut times, percent);
        check.results.beside(&what, value, "us", None, Some(("a port", port)))?;
    }
    kernel.terminate_blocking(Terminate::now());
    hops(check, &gpu, hop_floor)?;
    reductions(check, &gpu)
}

/// A message whose handler has work for many threads: by one lane, and by a block.
fn reductions(check: &mut Check, gpu: &Gpu) -> Result<(), Failure> {
    let span = Span { first: 7, count: check.count(65_536) };
    let (turns, reduced) = (check.count(5_000), span.reduced());
    let took = |check: &mut Check,
                (resident, image): (Resident, Image),
                what: &str|
     -> Result<f64, Failure> {
        let mut port = resident.seat(0, handlers::plan(&image, "reduce", 8)?)?;
        port.command(COMMAND_RUN);
        let (mut times, mut exact) = (Vec::new(), true);
        for turn in 0..turns {
            let start = Instant::now();
            port.send(Band::Normal, record(turn as u32, &span)?).map_err(|_| "no room")?;
            let reply: Number = received(&until(|| port.receive())?)?;
            times.push(start.elapsed());
            exact &= reply.value == reduced.cast_signed();
        }
        port.command(COMMAND_STOP);
        resident.end(LONG)?;
        check.results.fact(&format!("{} numbers summed {what}, exactly", span.count), exact, "")?;
        Ok(percentile_us(&mut times, 50.0))
    };
    let grid = handlers::grid(check, gpu, 1, Residency::default())?;
    let lane = took(check, grid, "by one lane")?;
    let by_block = format!("by a block of {}", handlers::BLOCK_THREADS);
    let grid = handlers::block_grid(check, gpu, Residency::default())?;
    let block = took(check, grid, &by_block)?;
    let what = format!("{} numbers summed {by_block}, there and back, p50", span.count);
    check.results.beside(&what, block, "us", None, Some(("by one lane", lane)))
}

/// A ball between two kernels of the device.
fn hops(check: &mut Check, gpu: &Gpu, floor: f64) -> Result<(), Failure> {
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
    let (goal, floor) =
        (Some(Goal::AtMost(1.5)), Some(("two warps that answer each other", floor)));
    check.results.beside("a hop between two kernels", each, "us", goal, floor)?;
    ports.iter().for_each(|port| port.command(COMMAND_STOP));
    Ok(resident.end(LONG)?)
}

/// Answers go on over changes of lease: what the slowest of them take.
pub(crate) fn lease(check: &mut Check) -> Result<(), Failure> {
    let gpu = Gpu::open(check)?;
    let mut floors = [None; 2];
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
        for (percent, without) in [50.0, 99.0].into_iter().zip(&mut floors) {
            let value = percentile_us(&mut slow, percent);
            let goal = if percent > 50.0 { goal } else { None };
            let what = format!("{what}, p{percent}");
            check.results.beside(&what, value, "us", goal, without.map(|it| ("without", it)))?;
            *without = Some(value);
        }
        port.command(COMMAND_STOP);
        resident.end(LONG)?;
    }
    Ok(())
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
