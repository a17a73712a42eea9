//! The summary of a run, as text and as JSON.

use std::fmt::Write as _;
use std::time::Duration;

use clap::ValueEnum as _;
use dotcompute_workloads::anomaly::Tally;
use dotcompute_workloads::anomaly::pipeline::{KernelReport, Pipeline};
use serde::Serialize;

use super::Arguments;
use super::output::Totals;

/// What a run came to.
#[derive(Debug, Serialize)]
pub(super) struct Summary {
    input: String,
    executor: String,
    alpha: f64,
    threshold: f64,
    warm_up: u32,
    seconds: f64,
    bytes: u64,
    readings_per_second: f64,
    alerts: u64,
    keys: usize,
    lines: Tally,
    interrupted: bool,
    /// Bytes of an unfinished last line that were read and not used.
    unused_bytes: usize,
    output_closed: bool,
    failed: bool,
    kernels: Vec<KernelReport>,
}

impl Summary {
    pub(super) fn new(
        input: &str,
        arguments: &Arguments,
        elapsed: Duration,
        totals: &Totals,
        interrupted: bool,
        pipeline: &Pipeline,
    ) -> Self {
        let executor = arguments.executor.to_possible_value();
        let seconds = elapsed.as_secs_f64();
        Self {
            input: input.to_owned(),
            executor: executor.map_or_else(String::new, |value| value.get_name().to_owned()),
            alpha: arguments.alpha,
            threshold: arguments.threshold,
            warm_up: arguments.warm_up,
            seconds,
            bytes: totals.bytes,
            readings_per_second: totals.tally.readings as f64 / seconds.max(1e-9),
            alerts: totals.alerts,
            keys: totals.keys,
            lines: totals.tally,
            interrupted,
            unused_bytes: totals.unused_bytes,
            output_closed: totals.closed,
            failed: totals.failure.is_some(),
            kernels: pipeline.reports(),
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
            line(&kernel.name, String::new());
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

/// A number with commas between thousands.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::grouped;

    #[test]
    fn thousands_are_set_apart() {
        for (number, text) in [(0, "0"), (999, "999"), (1000, "1,000"), (12_345_678, "12,345,678")]
        {
            assert_eq!(grouped(number), text);
        }
    }
}
