//! What a kernel has done and how long it took.
//!
//! Counts come from the books of the mailbox and are exact. Times are taken for the first message
//! and then for every 64th; the percentiles and the busy share are therefore estimates from that
//! sample.
//!
//! The cost on the message path: a message whose times are taken costs three readings of the clock and
//! two entries in histograms more than another, some 0.2 µs; one in 64 of that, by default, is lost in
//! the noise. `dotcompute bench --only telemetry` measures both, in the same run against a kernel
//! that times its first message only. Publishing costs the path nothing: it copies snapshots.

use std::sync::Mutex;
use std::time::Duration;

use dotcompute_mailbox::sync::{AtomicU32, AtomicU64, Ordering, lock};
use dotcompute_mailbox::{Books, clock};
use hdrhistogram::Histogram;

use crate::error::{Fault, KernelId};
use crate::lifecycle::KernelState;

/// The longest time that the histograms tell apart.
const LONGEST_NS: u64 = 3_600_000_000_000;

/// Percentiles of a time, in nanoseconds, with two significant digits.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Latency {
    /// How many times were taken.
    pub samples: u64,
    /// The shortest sample, in nanoseconds.
    pub min_ns: u64,
    /// The mean of the samples, in nanoseconds.
    pub mean_ns: f64,
    /// Half of the samples took at most this long, in nanoseconds.
    pub p50_ns: u64,
    /// 99 % of the samples took at most this long, in nanoseconds.
    pub p99_ns: u64,
    /// 99.9 % of the samples took at most this long, in nanoseconds.
    pub p999_ns: u64,
    /// The longest sample, in nanoseconds.
    pub max_ns: u64,
}

impl Latency {
    fn of(histogram: &Histogram<u64>) -> Self {
        Self {
            samples: histogram.len(),
            min_ns: histogram.min(),
            mean_ns: histogram.mean(),
            p50_ns: histogram.value_at_quantile(0.5),
            p99_ns: histogram.value_at_quantile(0.99),
            p999_ns: histogram.value_at_quantile(0.999),
            max_ns: histogram.max(),
        }
    }
}

/// What a kernel has done so far; a snapshot.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct KernelTelemetry {
    /// The kernel.
    pub kernel: KernelId,
    /// The name of the executor that it runs on.
    pub executor: &'static str,
    /// Its state.
    pub state: KernelState,
    /// The books of its mailbox: what became of every message that it accepted. Exact.
    pub books: Books,
    /// How many records it has processed: messages, but of a batch each record.
    pub records: u64,
    /// The books of its output mailbox. Replies to asks do not pass through it. Exact.
    pub replies: Books,
    /// Asks that were answered. Exact.
    pub asks_answered: u64,
    /// The deepest that its mailbox has been, in messages.
    pub high_water: usize,
    /// How often it failed.
    pub faults: u64,
    /// How often it was started again.
    pub restarts: u64,
    /// How often its watchdog found it stalled.
    pub stalls: u64,
    /// Whether the watchdog finds it stalled now.
    pub stalled: bool,
    /// The last fault, also where a restart mended it.
    pub last_fault: Option<Fault>,
    /// How long messages queued.
    pub queue_time: Latency,
    /// How long the kernel had a message in hand.
    pub handler_time: Latency,
    /// Which share of its time since activation it had a message in hand, 0 to 1: an estimate.
    pub busy_share: f64,
    /// How long ago it was first activated, until it ended.
    pub uptime: Duration,
}

/// The counters of one kernel. Its histograms come with a sample too many to be kept as it is, so that
/// a kernel that has little to do is small.
#[derive(Debug, Default)]
pub(crate) struct Telemetry {
    times: Mutex<Times>,
    pub(crate) asks_answered: AtomicU64,
    /// What batches held besides one record each; below zero where they were empty.
    more_records: AtomicU64,
    pub(crate) faults: AtomicU64,
    pub(crate) restarts: AtomicU64,
    pub(crate) stalls: AtomicU64,
    /// 1 while the watchdog finds it stalled.
    pub(crate) stalled: AtomicU32,
    /// What the watchdog saw last: how many messages were settled, and since when it has been as
    /// many with one in hand (`clock::now_ns`; 0: none in hand).
    settled_seen: AtomicU64,
    settled_since_ns: AtomicU64,
    /// `clock::now_ns` at the first activation; 0 before.
    started_ns: AtomicU64,
    ended_ns: AtomicU64,
}

/// How many samples are kept as they are.
const FEW: usize = 8;

/// The samples of one kernel.
#[derive(Debug)]
enum Times {
    /// Queue and handler time of each.
    Few(Vec<(u64, u64)>),
    /// Some KiB, as many as the longest time takes.
    Many(Box<Histograms>),
}

#[derive(Debug)]
struct Histograms {
    queue: Histogram<u64>,
    handler: Histogram<u64>,
    handler_sum_ns: u64,
}

impl Default for Times {
    fn default() -> Self {
        Self::Few(Vec::new())
    }
}

impl Times {
    fn record(&mut self, queue_ns: u64, handler_ns: u64) {
        match self {
            Self::Few(samples) if samples.len() < FEW => samples.push((queue_ns, handler_ns)),
            Self::Few(samples) => {
                let mut histograms = Histograms::of(samples);
                histograms.record(queue_ns, handler_ns);
                *self = Self::Many(Box::new(histograms));
            }
            Self::Many(histograms) => histograms.record(queue_ns, handler_ns),
        }
    }

    /// Calls `look` with the histograms, if there is a sample.
    fn look<T>(&self, look: impl FnOnce(&Histograms) -> T) -> Option<T> {
        match self {
            Self::Few(samples) if samples.is_empty() => None,
            Self::Few(samples) => Some(look(&Histograms::of(samples))),
            Self::Many(histograms) => Some(look(histograms)),
        }
    }
}

impl Histograms {
    fn of(samples: &[(u64, u64)]) -> Self {
        // They grow with the longest time.
        let empty = || {
            let mut histogram = Histogram::new(2).expect("two digits are not too many");
            histogram.auto(true);
            histogram
        };
        let mut histograms = Self { queue: empty(), handler: empty(), handler_sum_ns: 0 };
        samples.iter().for_each(|&(queue_ns, handler_ns)| histograms.record(queue_ns, handler_ns));
        histograms
    }

    fn record(&mut self, queue_ns: u64, handler_ns: u64) {
        for (histogram, time_ns) in [(&mut self.queue, queue_ns), (&mut self.handler, handler_ns)] {
            let recorded = histogram.record(time_ns.clamp(1, LONGEST_NS));
            debug_assert!(recorded.is_ok(), "a histogram should grow as far as it must");
        }
        self.handler_sum_ns += handler_ns;
    }
}

// Relaxed throughout: these are statistics, nothing is published through them.
impl Telemetry {
    pub(crate) fn count_records(&self, records: usize) {
        if records != 1 {
            let more = (records as u64).wrapping_sub(1);
            self.more_records.fetch_add(more, Ordering::Relaxed);
        }
    }

    /// Of so many messages processed.
    pub(crate) fn records(&self, processed: u64) -> u64 {
        processed.saturating_add_signed(self.more_records.load(Ordering::Relaxed) as i64)
    }

    pub(crate) fn start(&self) {
        let _ = self.started_ns.compare_exchange(
            0,
            clock::now_ns(),
            Ordering::Relaxed,
            Ordering::Relaxed,
        );
    }

    /// The kernel has ended. What an abandoned body does later changes nothing.
    pub(crate) fn end(&self) {
        let _ = self.ended_ns.compare_exchange(
            0,
            clock::now_ns(),
            Ordering::Relaxed,
            Ordering::Relaxed,
        );
    }

    /// The watchdog's look at the kernel's books: whether a stall begins here. For one thread, the
    /// watchdog's, which alone writes these words.
    pub(crate) fn watch(&self, books: &Books, watchdog: Duration) -> bool {
        let settled = books.processed + books.expired + books.dead_lettered + books.redelivered;
        let now_ns = clock::now_ns();
        let as_before = self.settled_seen.swap(settled, Ordering::Relaxed) == settled;
        let since_ns = match self.settled_since_ns.load(Ordering::Relaxed) {
            _ if books.in_hand == 0 => 0,
            since_ns if since_ns != 0 && as_before => since_ns,
            _ => now_ns,
        };
        self.settled_since_ns.store(since_ns, Ordering::Relaxed);
        let in_hand_for = Duration::from_nanos(now_ns.saturating_sub(since_ns));
        let stalled = since_ns != 0 && in_hand_for >= watchdog;
        let begins = self.stalled.swap(u32::from(stalled), Ordering::Relaxed) == 0 && stalled;
        if begins {
            Self::count(&self.stalls);
        }
        begins
    }

    pub(crate) fn count(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// One sampled message: how long it queued, and how long it was in hand.
    #[cold]
    pub(crate) fn record(&self, queue_ns: u64, handler_ns: u64) {
        lock(&self.times).record(queue_ns, handler_ns);
    }

    /// Queue time, handler time and the busy share.
    pub(crate) fn times(&self, processed: u64) -> (Latency, Latency, f64) {
        let uptime_ns = self.uptime().as_nanos() as f64;
        let look = |times: &Histograms| {
            let mean_ns = times.handler_sum_ns as f64 / times.handler.len().max(1) as f64;
            let share = if uptime_ns > 0.0 { mean_ns * processed as f64 / uptime_ns } else { 0.0 };
            (Latency::of(&times.queue), Latency::of(&times.handler), share.clamp(0.0, 1.0))
        };
        lock(&self.times).look(look).unwrap_or_default()
    }

    pub(crate) fn uptime(&self) -> Duration {
        let started = self.started_ns.load(Ordering::Relaxed);
        if started == 0 {
            return Duration::ZERO;
        }
        let end = match self.ended_ns.load(Ordering::Relaxed) {
            0 => clock::now_ns(),
            ended => ended,
        };
        Duration::from_nanos(end.saturating_sub(started))
    }
}

/// Publishes a snapshot through the `metrics` facade, under `dotcompute_kernel_*` with the label
/// `kernel`.
pub(crate) fn publish(snapshot: &KernelTelemetry) {
    let kernel = snapshot.kernel.to_string();
    let counters = [
        ("dotcompute_kernel_accepted_total", snapshot.books.accepted),
        ("dotcompute_kernel_processed_total", snapshot.books.processed),
        ("dotcompute_kernel_expired_total", snapshot.books.expired),
        ("dotcompute_kernel_dead_lettered_total", snapshot.books.dead_lettered),
        ("dotcompute_kernel_rejected_total", snapshot.books.rejected),
        ("dotcompute_kernel_faults_total", snapshot.faults),
        ("dotcompute_kernel_restarts_total", snapshot.restarts),
        ("dotcompute_kernel_stalls_total", snapshot.stalls),
        ("dotcompute_kernel_asks_answered_total", snapshot.asks_answered),
    ];
    for (name, value) in counters {
        metrics::counter!(name, "kernel" => kernel.clone()).absolute(value);
    }
    let drops =
        [("oldest", snapshot.books.dropped_oldest), ("newest", snapshot.books.dropped_newest)];
    for (reason, value) in drops {
        metrics::counter!(
            "dotcompute_kernel_dropped_total", "kernel" => kernel.clone(), "reason" => reason
        )
        .absolute(value);
    }
    let gauges = [
        ("dotcompute_kernel_queue_depth_messages", snapshot.books.queued as f64),
        ("dotcompute_kernel_queue_high_water_messages", snapshot.high_water as f64),
        ("dotcompute_kernel_busy_share", snapshot.busy_share),
        ("dotcompute_kernel_uptime_seconds", snapshot.uptime.as_secs_f64()),
    ];
    for (name, value) in gauges {
        metrics::gauge!(name, "kernel" => kernel.clone()).set(value);
    }
    let times = [("queue", &snapshot.queue_time), ("handler", &snapshot.handler_time)];
    for (phase, latency) in times {
        let quantiles =
            [("0.5", latency.p50_ns), ("0.99", latency.p99_ns), ("0.999", latency.p999_ns)];
        for (quantile, value) in quantiles {
            metrics::gauge!(
                "dotcompute_kernel_time_seconds",
                "kernel" => kernel.clone(), "phase" => phase, "quantile" => quantile
            )
            .set(value as f64 * 1e-9);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the samples tell does not depend on how they are kept.
    #[test]
    fn a_few_samples_tell_as_much_as_many() {
        for count in 1..=FEW as u64 + 2 {
            let telemetry = Telemetry::default();
            assert_eq!(telemetry.times(0).0, Latency::default());
            for sample in 1..=count {
                telemetry.record(sample * 1_000_000, LONGEST_NS * sample);
            }
            let (queue, handler, _) = telemetry.times(count);
            assert_eq!((queue.samples, handler.samples), (count, count));
            // Two significant digits.
            let near = |found: u64, wanted: u64| found.abs_diff(wanted) <= wanted / 100;
            assert!(near(queue.min_ns, 1_000_000), "{queue:?}");
            assert!(near(queue.max_ns, count * 1_000_000), "{queue:?}");
            assert!(near(queue.p50_ns, count.div_ceil(2) * 1_000_000), "{queue:?}");
            assert!(near(handler.min_ns, LONGEST_NS), "{handler:?}");
            assert!(near(handler.max_ns, LONGEST_NS), "the longest time that is told apart");
        }
    }

    #[test]
    fn a_kernel_that_did_little_has_no_histograms() {
        let telemetry = Telemetry::default();
        (0..FEW).for_each(|_| telemetry.record(1, 1));
        assert!(matches!(&*lock(&telemetry.times), Times::Few(_)));
        telemetry.record(1, 1);
        assert!(matches!(&*lock(&telemetry.times), Times::Many(_)));
    }
}
