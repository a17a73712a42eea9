//! What comes out: alerts on standard output; progress, faults and the summary on standard error.

use std::io::{self, Write};

use dotcompute_workloads::anomaly::Tally;
use dotcompute_workloads::anomaly::pipeline::{Findings, Pipeline};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::advice;
use super::stop::Stopper;
use crate::failure::{FAILED, Failure};

/// What the whole input came to.
#[derive(Debug, Default)]
pub(super) struct Totals {
    pub(super) tally: Tally,
    pub(super) alerts: u64,
    /// Readings that were not used: see `Scanned`.
    pub(super) late: u64,
    pub(super) untimed: u64,
    pub(super) keys: usize,
    pub(super) bytes: u64,
    /// Bytes of an unfinished line that were read and not used.
    pub(super) unused_bytes: usize,
    pub(super) failure: Option<Failure>,
    /// Standard output was closed by its reader.
    pub(super) closed: bool,
    described: u64,
}

/// The two standard streams.
#[derive(Debug)]
pub(super) struct Output<'a> {
    input_name: &'a str,
    bar: ProgressBar,
    buffer: Vec<u8>,
}

impl<'a> Output<'a> {
    /// The bar shows only if standard error is a terminal.
    pub(super) fn new(input_name: &'a str, length_bytes: Option<u64>, quiet: bool) -> Self {
        let target =
            if quiet { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
        let bar = ProgressBar::with_draw_target(length_bytes, target);
        let template = match length_bytes {
            Some(_) => "{bar:30} {percent:>3} % of {total_bytes}, {bytes_per_sec}, {msg}",
            None => "{spinner} {bytes}, {bytes_per_sec}, {msg}",
        };
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        Self { input_name, bar, buffer: Vec::new() }
    }

    /// Takes what the kernels find until the input has ended. Stops the reader, and passes over
    /// what it has already read, if the input is bad or nobody reads the alerts.
    pub(super) fn take_all(&mut self, pipeline: &Pipeline, stopper: &Stopper) -> Totals {
        let mut totals = Totals::default();
        loop {
            let findings = match pipeline.receive_blocking() {
                Ok(findings) => findings,
                Err(error) => {
                    totals.stop(stopper, Some(Failure::new(FAILED, error, "")));
                    return totals;
                }
            };
            if !totals.closed && totals.failure.is_none() {
                self.write_alerts(&findings, stopper, &mut totals);
            }
            for malformed in &findings.malformed {
                self.tell(&format!("dotcompute: {}, {malformed}\n", self.input_name));
            }
            totals.add(&findings);
            self.bar.inc(findings.bytes as u64);
            if !self.bar.is_hidden() {
                let Totals { tally, alerts, .. } = &totals;
                self.bar.set_message(format!("{} readings, {alerts} alerts", tally.readings));
            }
            if let Some(error) = &findings.error {
                let message = format!("{}: {error}", self.input_name);
                totals.stop(stopper, Some(Failure::new(FAILED, message, advice(error))));
            }
            if let Some(finished) = findings.finished {
                totals.unused_bytes = finished.unused_bytes;
                return totals;
            }
        }
    }

    /// Writes the alerts of one block, at once: a reader of the other end sees them without delay.
    fn write_alerts(&mut self, findings: &Findings, stopper: &Stopper, totals: &mut Totals) {
        if findings.alerts.is_empty() {
            return;
        }
        self.buffer.clear();
        let written = findings
            .alerts
            .iter()
            .try_for_each(|alert| {
                serde_json::to_writer(&mut self.buffer, alert)?;
                self.buffer.write_all(b"\n")
            })
            .and_then(|()| {
                self.bar.suspend(|| {
                    let mut out = io::stdout().lock();
                    out.write_all(&self.buffer)?;
                    out.flush()
                })
            });
        match written {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                totals.closed = true;
                totals.stop(stopper, None);
            }
            Err(error) => totals.stop(
                stopper,
                Some(Failure::new(
                    FAILED,
                    format!("cannot write the alerts to standard output: {error}"),
                    "",
                )),
            ),
        }
    }

    /// Removes the bar and tells of the faults that were only counted.
    pub(super) fn finish(&self, totals: &Totals) {
        self.bar.finish_and_clear();
        let more = totals.tally.malformed - totals.described;
        if more > 0 && totals.described > 0 {
            self.tell(&format!("dotcompute: {}, {more} more malformed lines\n", self.input_name));
        }
    }

    /// Writes to standard error.
    pub(super) fn tell(&self, text: &str) {
        // When standard error is closed, there is no place left to say so.
        let _ = self.bar.suspend(|| io::stderr().write_all(text.as_bytes()));
    }
}

impl Totals {
    fn add(&mut self, findings: &Findings) {
        self.tally.add(&findings.tally);
        self.alerts += findings.alerts.len() as u64;
        self.late += findings.late;
        self.untimed += findings.untimed;
        self.keys = findings.keys;
        self.bytes += findings.bytes as u64;
        self.described += findings.malformed.len() as u64;
    }

    /// Stops the reader, once; the first failure counts.
    fn stop(&mut self, stopper: &Stopper, failure: Option<Failure>) {
        if self.failure.is_none() {
            self.failure = failure;
        }
        stopper.stop();
    }
}
