//! What kernels cost that have nothing to do: of the host, and of the bus.

use std::thread;
use std::time::{Duration, Instant};

use dotcompute_core::{KernelRef, Terminate};

use crate::device::Gpu;
use crate::handlers::{Number, Sum};
use crate::link::Link;
use crate::messages::LONG;
use crate::report::Goal;
use crate::{Check, Failure, handlers};

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

pub(crate) fn run(check: &mut Check) -> Result<(), Failure> {
    let gpu = Gpu::open(check)?;
    // First of all without them.
    let time = check.time(Duration::from_secs(10)).max(Duration::from_secs(1));
    let link = Link::open();
    let waits = core_percent(time);
    let quiet = link.as_ref().ok().map(|link| link.received_percent(time));
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

    // They are still there.
    for kernel in &kernels {
        kernel.ask_blocking(Number { value: 1 }, Some(LONG))?;
        kernel.terminate_blocking(Terminate::now());
    }
    check.results.fact("they answer afterwards", true, "")
}
