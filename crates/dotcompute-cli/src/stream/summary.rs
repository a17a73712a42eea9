//! The summary of a run, as text and as JSON.

use std::fmt::{self, Write as _};
use std::time::Duration;

use dotcompute::{Books, KernelTelemetry, Latency};
use dotcompute_workloads::anomaly::{Settings, Tally};
use serde::Serialize;

use super::Arguments;
use super::output::Totals;

/// What a run came to.
#[derive(Debug, Serialize)]
pub(super) struct Summary {
    input: String,
    executor: &'static str,
    #[serde(flatten)]
    settings: Settings,
    seconds: f64,
    bytes: u64,
    readings_per_second: f64,
    alerts: u64,
    keys: usize,
    lines: Tally,
    /// Readings that came after one of a later time of their key.
    late: u64,
    /// Readings without the time that the detector needs.
    untimed: u64,
    interrupted: bool,
    /// Bytes of an unfinished last line that were read and not used.
    unused_bytes: usize,
    output_closed: bool,
    failed: bool,
    kernels: Vec<Kernel>,
}

/// One kernel of the run: the books of its mailbox in messages, and its times.
#[derive(Debug, Serialize)]
struct Kernel {
    name: String,
    accepted: u64,
    processed: u64,
    dropped: u64,
    expired: u64,
    dead_lettered: u64,
    in_hand: u64,
    queued: u64,
    queue: Times,
    handler: Times,
}

/// Percentiles of a sample (the first message and every 64th), in nanoseconds.
#[derive(Debug, Serialize)]
struct Times {
    samples: u64,
    p50_ns: u64,
    p99_ns: u64,
    p999_ns: u64,
}

impl From<&KernelTelemetry> for Kernel {
    fn from(telemetry: &KernelTelemetry) -> Self {
        let Books { accepted, processed, expired, dead_lettered, in_hand, queued, .. } =
            telemetry.books;
        Self {
            name: telemetry.kernel.to_string(),
            accepted,
            processed,
            dropped: telemetry.books.dropped_oldest + telemetry.books.dropped_newest,
            expired,
            dead_lettered,
            in_hand,
            queued,
            queue: Times::from(&telemetry.queue_time),
            handler: Times::from(&telemetry.handler_time),
        }
    }
}

impl From<&Latency> for Times {
    fn from(latency: &Latency) -> Self {
        let Latency { samples, p50_ns, p99_ns, p999_ns, .. } = *latency;
        Self { samples, p50_ns, p99_ns, p999_ns }
    }
}

impl Summary {
    pub(super) fn new(
        input: &str,
        arguments: &Arguments,
        settings: Settings,
        elapsed: Duration,
        totals: &Totals,
        interrupted: bool,
        kernels: &[KernelTelemetry],
    ) -> Self {
        let seconds = elapsed.as_secs_f64();
        Self {
            input: input.to_owned(),
            executor: arguments.executor.name(),
            settings,
            seconds,
            bytes: totals.bytes,
            readings_per_second: totals.tally.readings as f64 / seconds.max(1e-9),
            alerts: totals.alerts,
            keys: totals.keys,
            lines: totals.tally,
            late: totals.late,
            untimed: totals.untimed,
            interrupted,
            unused_bytes: totals.unused_bytes,
            output_closed: totals.closed,
            failed: totals.failure.is_some(),
            kernels: kernels.iter().map(Kernel::from).collect(),
        }
    }

    pub(super) fn text(&self) -> String {
        let Tally { lines, readings, missing, malformed, blank, header, continued } = self.lines;
        let mut text = String::new();
        let mut line = |name: &str, value: String| {
            let _ = writeln!(text, "{name:<10}{value}"); // into a String: cannot fail
        };
        line(
            "alerts",
            format!(
                "{} in {} readings of {} keys",
                grouped(self.alerts),
                grouped(readings),
                grouped(self.keys as u64)
            ),
        );
        line(
            "speed",
            format!(
                "{} readings/s, {:.0} MB/s ({:.3} s, {} executor)",
                grouped(self.readings_per_second as u64),
                self.bytes as f64 / self.seconds.max(1e-9) / 1e6,
                self.seconds,
                self.executor
            ),
        );
        line(
            "lines",
            format!(
                "{} = {} readings + {} missing + {} malformed + {} blank + {} header + {} continued",
                grouped(lines),
                grouped(readings),
                grouped(missing),
                grouped(malformed),
                grouped(blank),
                grouped(header),
                grouped(continued)
            ),
        );
        for kernel in &self.kernels {
            let Kernel { accepted, processed, dropped, expired, .. } = kernel;
            let Kernel { dead_lettered, in_hand, queued, .. } = kernel;
            line(
                &kernel.name,
                format!(
                    "queued {}; handled {} (of {} sampled)",
                    kernel.queue, kernel.handler, kernel.handler.samples
                ),
            );
            line(
                "",
                format!(
                    "{accepted} messages = {processed} processed + {dropped} dropped + \
                     {expired} expired + {dead_lettered} dead letters + {in_hand} in hand + \
                     {queued} queued"
                ),
            );
        }
        if self.late > 0 {
            let late = grouped(self.late);
            line(
                "note",
                format!("{late} late readings (an earlier one of their key has a later time)"),
            );
        }
        if self.untimed > 0 {
            let untimed = grouped(self.untimed);
            line("note", format!("{untimed} readings without the time that this detector needs"));
        }
        if self.interrupted {
            line("note", "interrupted: the rest of the input was not read".into());
        }
        if self.unused_bytes > 0 {
            line("note", format!("an unfinished line of {} bytes was not used", self.unused_bytes));
        }
        if self.output_closed {
            line("note", "standard output was closed by its reader: stopped there".into());
        }
        text
    }
}

impl fmt::Display for Times {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { p50_ns, p99_ns, p999_ns, .. } = *self;
        let [p50, p99, p999] = [p50_ns, p99_ns, p999_ns].map(duration);
        write!(f, "p50 {p50}, p99 {p99}, p99.9 {p999}")
    }
}

/// A time with three digits and its unit.
fn duration(ns: u64) -> String {
    let ns = ns as f64;
    let (value, unit) = match ns {
        _ if ns < 1e3 => return format!("{ns} ns"),
        _ if ns < 1e6 => (ns / 1e3, "µs"),
        _ if ns < 1e9 => (ns / 1e6, "ms"),
        _ => (ns / 1e9, "s"),
    };
    let decimals = if value < 10.0 { 2 } else { usize::from(value < 100.0) };
    format!("{value:.decimals$} {unit}")
}

/// A number with commas between thousands.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::{duration, grouped};

    #[test]
    fn times_have_three_digits_and_a_unit() {
        for (ns, text) in [(0, "0 ns"), (999, "999 ns"), (1234, "1.23 µs"), (45_600, "45.6 µs")] {
            assert_eq!(duration(ns), text);
        }
        assert_eq!(duration(789_000_000), "789 ms");
        assert_eq!(duration(61_000_000_000), "61.0 s");
    }

    #[test]
    fn thousands_are_set_apart() {
        for (number, text) in [(0, "0"), (999, "999"), (1000, "1,000"), (12_345_678, "12,345,678")]
        {
            assert_eq!(grouped(number), text);
        }
    }
}
