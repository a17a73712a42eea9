//! The one harness: runs two sides of a row in alternating slices and compares them pair by pair.
//!
//! A goal is a ratio within one run on one machine. Slices of both sides alternate (ours, other,
//! ours, other, ...), each pair gives one ratio, and the row's ratio is the median of these, so
//! that what slows the whole machine for a while slows both sides of a pair. A slice in which
//! another program took a core from a thread at work is taken again, a few times at most.

use std::fmt;
use std::time::{Duration, Instant};

use crate::os;

/// A result that is not what the messages sent add up to.
#[derive(Debug)]
pub(crate) struct Wrong(String);

impl Wrong {
    pub(crate) fn new(what: impl fmt::Display) -> Self {
        Self(what.to_string())
    }
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Refuses a result that differs from what it must be.
pub(crate) fn expect<T: PartialEq + fmt::Debug>(
    what: &str,
    found: T,
    wanted: T,
) -> Result<(), Wrong> {
    if found == wanted {
        Ok(())
    } else {
        Err(Wrong::new(format_args!("{what}: {found:?} instead of {wanted:?}")))
    }
}

/// What one slice of one side took.
#[derive(Debug, Default)]
pub(crate) struct Slice {
    /// The time of all operations of the slice, from the sender's first call to the receiver's
    /// last observation.
    pub(crate) elapsed: Duration,
    /// Operations timed one by one, in nanoseconds, where the row is a latency.
    pub(crate) latencies_ns: Vec<u32>,
    /// Resident memory gained, where the row is about memory.
    pub(crate) bytes: u64,
    /// How often other programs took the core from the threads at work; not known where these are
    /// more than the cores.
    pub(crate) preemptions: u64,
}

impl Slice {
    pub(crate) fn took(elapsed: Duration) -> Self {
        Self { elapsed, ..Self::default() }
    }
}

/// One side of a row: carries out as many operations as it is told, verifies the result.
pub(crate) type Side = fn(operations: u64) -> Result<Slice, Wrong>;

/// What ours is held against.
#[derive(Clone, Copy)]
pub(crate) enum Other {
    /// A peer or floor, run in alternation.
    Side(Side),
    /// A fixed limit in the row's unit.
    Limit(f64),
}

/// What a row's figures are.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unit {
    /// Nanoseconds for one operation.
    Nanoseconds,
    /// Millions of messages a second.
    MillionPerSecond,
    /// Seconds for all operations.
    Seconds,
    /// Bytes of resident memory for one operation.
    Bytes,
    /// Megabytes (10^6) of resident memory for all operations.
    Megabytes,
}

impl Unit {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Unit::Nanoseconds => "ns",
            Unit::MillionPerSecond => "M/s",
            Unit::Seconds => "s",
            Unit::Bytes => "B",
            Unit::Megabytes => "MB",
        }
    }

    pub(crate) fn better(self) -> Better {
        match self {
            Unit::MillionPerSecond => Better::Higher,
            _ => Better::Lower,
        }
    }

    fn figure(self, slice: &Slice, operations: u64) -> f64 {
        let seconds = slice.elapsed.as_secs_f64();
        let operations = operations as f64;
        match self {
            Unit::Nanoseconds => seconds * 1e9 / operations,
            Unit::MillionPerSecond => operations / seconds / 1e6,
            Unit::Seconds => seconds,
            Unit::Bytes => slice.bytes as f64 / operations,
            Unit::Megabytes => slice.bytes as f64 / 1e6,
        }
    }
}

/// Which way a figure is to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Better {
    Lower,
    Higher,
}

/// How many operations make a slice.
#[derive(Clone, Copy)]
pub(crate) enum Size {
    /// As many as fill the slice's time; found while warming up.
    Timed,
    /// The same for eight times as long, in a third of the pairs: for more threads than cores, whose
    /// turns on a core last milliseconds, so that each slice has many of them.
    Scheduled,
    /// Always so many, in a few pairs only.
    Fixed(u64),
}

/// One line of the table.
pub(crate) struct Row {
    pub(crate) id: &'static str,
    /// What is measured, where, and on how many threads.
    pub(crate) what: &'static str,
    pub(crate) unit: Unit,
    pub(crate) against: &'static str,
    /// The ratio to reach; none where the figure is only stated.
    pub(crate) goal: Option<f64>,
    /// Whether the row needs two cores.
    pub(crate) cores: usize,
    pub(crate) size: Size,
    pub(crate) ours: Side,
    pub(crate) other: Other,
}

impl Row {
    /// The group: the id up to its first dot.
    pub(crate) fn group(&self) -> &'static str {
        self.id.split('.').next().unwrap_or(self.id)
    }
}

/// How long to measure.
#[derive(Clone, Copy)]
pub(crate) struct Effort {
    pub(crate) pairs: usize,
    pub(crate) slice: Duration,
    /// Pairs of the rows whose size is fixed.
    pub(crate) fixed_pairs: usize,
}

impl Effort {
    pub(crate) const FULL: Self =
        Self { pairs: 60, slice: Duration::from_millis(4), fixed_pairs: 3 };
    pub(crate) const QUICK: Self =
        Self { pairs: 9, slice: Duration::from_millis(2), fixed_pairs: 1 };
}

/// One side's figures over all its slices.
#[derive(Debug, Clone)]
pub(crate) struct Figures {
    pub(crate) median: f64,
    /// Median and 99th percentile of single operations, where the row is a latency.
    pub(crate) p50_p99_ns: Option<(f64, f64)>,
    /// Below how many nanoseconds each of [`SHARES`] of the single operations stayed; empty where
    /// the row is none.
    pub(crate) distribution_ns: Vec<f64>,
}

/// The shares of single operations that a distribution tells.
pub(crate) const SHARES: [f64; 12] =
    [0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.995, 0.999, 0.9999];

/// A measured row.
#[derive(Debug)]
pub(crate) struct Measured {
    pub(crate) ours: Figures,
    pub(crate) other: Figures,
    /// Ratios ours/other, one per pair, sorted.
    ratios: Vec<f64>,
    /// Slices that count although another program took a core from them each time.
    pub(crate) disturbed: usize,
}

impl Measured {
    pub(crate) fn pairs(&self) -> usize {
        self.ratios.len()
    }

    /// The ratio below which this share of the pairs lies: 0.0 the least, 0.5 the median.
    pub(crate) fn ratio(&self, share: f64) -> f64 {
        quantile(&self.ratios, share)
    }
}

/// Measures one row.
pub(crate) fn measure(row: &Row, effort: Effort) -> Result<Measured, Wrong> {
    let (pairs, slice) = match row.size {
        Size::Fixed(_) => (effort.fixed_pairs, Duration::ZERO),
        Size::Timed => (effort.pairs, effort.slice),
        Size::Scheduled => (effort.pairs.div_ceil(3), effort.slice * 8),
    };
    let (ours_size, other_size) = match (row.size, row.other) {
        (Size::Fixed(operations), _) => (operations, operations),
        (_, Other::Limit(_)) => (calibrate(row.ours, slice)?, 1),
        (_, Other::Side(side)) => (calibrate(row.ours, slice)?, calibrate(side, slice)?),
    };
    let mut ours = Vec::with_capacity(pairs);
    let mut other = Vec::with_capacity(pairs);
    let mut ours_latencies = Vec::new();
    let mut other_latencies = Vec::new();
    let mut ratios = Vec::with_capacity(pairs);
    let mut taker = Taker { retries_left: 2 * pairs, disturbed: 0 };
    for _ in 0..pairs {
        let slice = taker.take(row.ours, ours_size)?;
        let a = row.unit.figure(&slice, ours_size);
        ours_latencies.extend(slice.latencies_ns);
        let b = match row.other {
            Other::Limit(limit) => limit,
            Other::Side(side) => {
                let slice = taker.take(side, other_size)?;
                let figure = row.unit.figure(&slice, other_size);
                other_latencies.extend(slice.latencies_ns);
                figure
            }
        };
        ours.push(a);
        other.push(b);
        ratios.push(a / b);
    }
    ratios.sort_by(f64::total_cmp);
    Ok(Measured {
        ours: figures(ours, ours_latencies),
        other: figures(other, other_latencies),
        ratios,
        disturbed: taker.disturbed,
    })
}

/// Takes slices, again those from which another program took a core, as long as the budget lasts.
#[derive(Debug)]
struct Taker {
    retries_left: usize,
    /// Slices that count although they were disturbed.
    disturbed: usize,
}

impl Taker {
    fn take(&mut self, side: Side, operations: u64) -> Result<Slice, Wrong> {
        loop {
            let slice = side(operations)?;
            if slice.preemptions == 0 {
                return Ok(slice);
            }
            if self.retries_left == 0 {
                self.disturbed += 1;
                return Ok(slice);
            }
            self.retries_left -= 1;
        }
    }
}

/// Tries of a size before it counts as large enough.
const CALIBRATIONS: usize = 3;

/// How many operations fill one slice; warms the side up on the way. The best of a few tries counts:
/// where the machine did something else meanwhile, slices would come out too short, and what a side
/// pays once for each would count for more.
fn calibrate(side: Side, slice: Duration) -> Result<u64, Wrong> {
    let mut operations = 256;
    let mut taker = Taker { retries_left: 10, disturbed: 0 };
    loop {
        let mut elapsed = Duration::MAX;
        for _ in 0..CALIBRATIONS {
            elapsed = elapsed.min(taker.take(side, operations)?.elapsed);
            if elapsed < slice / 4 {
                break;
            }
        }
        let elapsed = elapsed.max(Duration::from_nanos(1));
        if elapsed >= slice / 4 || operations >= 1 << 30 {
            let share = slice.as_secs_f64() / elapsed.as_secs_f64();
            return Ok(((operations as f64 * share) as u64).max(256));
        }
        operations *= 4;
    }
}

fn figures(mut slices: Vec<f64>, mut latencies_ns: Vec<u32>) -> Figures {
    slices.sort_by(f64::total_cmp);
    latencies_ns.sort_unstable();
    let at = |share: f64| {
        let last = latencies_ns.len() - 1;
        f64::from(latencies_ns[(last as f64 * share) as usize])
    };
    Figures {
        median: quantile(&slices, 0.5),
        p50_p99_ns: (!latencies_ns.is_empty()).then(|| (at(0.5), at(0.99))),
        distribution_ns: match latencies_ns.is_empty() {
            true => Vec::new(),
            false => SHARES.map(at).to_vec(),
        },
    }
}

/// The value below which this share of the sorted values lies, interpolated.
fn quantile(sorted: &[f64], share: f64) -> f64 {
    let place = (sorted.len() - 1) as f64 * share;
    let low = sorted[place.floor() as usize];
    let high = sorted[place.ceil() as usize];
    low + (high - low) * place.fract()
}

/// Times a stretch on the calling thread.
#[derive(Debug)]
pub(crate) struct Stopwatch {
    preemptions: u64,
    started: Instant,
}

impl Stopwatch {
    pub(crate) fn start() -> Self {
        Self { preemptions: os::preemptions(), started: Instant::now() }
    }

    /// The time since the start, and how often others took the thread's core meanwhile.
    pub(crate) fn stop(self) -> Slice {
        let elapsed = self.started.elapsed();
        Slice { elapsed, preemptions: os::preemptions() - self.preemptions, ..Slice::default() }
    }
}

/// Counts operations and times them: first all of them together, then a share one by one.
///
/// An iterator over sequence numbers, so that blocking and async sides loop alike; an operation
/// lasts from one `next` to the following one.
#[derive(Debug)]
pub(crate) struct Trips {
    next: u64,
    together: u64,
    total: u64,
    started: Instant,
    elapsed: Duration,
    latencies_ns: Vec<u32>,
    preemptions: u64,
}

impl Trips {
    /// At most so many operations of a slice are timed one by one.
    const SINGLE_MAX: u64 = 10_000;

    /// `operations` timed together, and up to a quarter as many again one by one. Make it on the
    /// thread that is timed, when all is ready.
    pub(crate) fn new(operations: u64) -> Self {
        let total = Self::total(operations);
        Self {
            next: 0,
            together: operations,
            total,
            started: Instant::now(),
            elapsed: Duration::ZERO,
            latencies_ns: Vec::with_capacity((total - operations) as usize),
            preemptions: os::preemptions(),
        }
    }

    /// How many operations there are in all, for the side that answers.
    pub(crate) fn total(operations: u64) -> u64 {
        operations + (operations / 4).clamp(1, Self::SINGLE_MAX)
    }

    pub(crate) fn finish(self) -> Slice {
        Slice {
            elapsed: self.elapsed,
            latencies_ns: self.latencies_ns,
            preemptions: os::preemptions() - self.preemptions,
            ..Slice::default()
        }
    }

    #[cold]
    fn single(&mut self) {
        let now = Instant::now();
        let passed = now - self.started;
        if self.next == self.together {
            self.elapsed = passed;
        } else {
            self.latencies_ns.push(u32::try_from(passed.as_nanos()).unwrap_or(u32::MAX));
        }
        self.started = Instant::now();
    }
}

impl Iterator for Trips {
    type Item = u64;

    #[inline]
    fn next(&mut self) -> Option<u64> {
        if self.next == 0 {
            self.started = Instant::now();
        } else if self.next >= self.together {
            self.single();
        }
        if self.next == self.total {
            return None;
        }
        self.next += 1;
        Some(self.next - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trips_count_every_operation_once() {
        let mut trips = Trips::new(1000);
        let numbers: Vec<u64> = trips.by_ref().collect();
        assert_eq!(numbers, (0..1250).collect::<Vec<_>>());
        assert_eq!(Trips::total(1000), 1250);
        let slice = trips.finish();
        assert_eq!(slice.latencies_ns.len(), 250);
        assert!(slice.elapsed > Duration::ZERO);
    }

    #[test]
    fn the_ratio_is_the_median_over_the_pairs() {
        let measured = Measured {
            ours: figures(vec![1.0], Vec::new()),
            other: figures(vec![1.0], Vec::new()),
            ratios: vec![0.5, 1.0, 9.0],
            disturbed: 0,
        };
        assert_eq!(measured.ratio(0.5), 1.0);
        assert_eq!(measured.ratio(0.0), 0.5);
        assert_eq!(measured.ratio(1.0), 9.0);
        assert_eq!(measured.ratio(0.25), 0.75);
    }

    #[test]
    fn a_wrong_result_stops_the_row() {
        let row = Row {
            id: "test.wrong",
            what: "",
            unit: Unit::Nanoseconds,
            against: "",
            goal: None,
            cores: 1,
            size: Size::Timed,
            ours: |_| Err(Wrong::new("lost one")),
            other: Other::Limit(1.0),
        };
        assert_eq!(row.group(), "test");
        let wrong = measure(&row, Effort::QUICK).unwrap_err();
        assert_eq!(wrong.to_string(), "lost one");
    }

    #[test]
    fn figures_follow_their_unit() {
        let slice = Slice { elapsed: Duration::from_secs(2), bytes: 4_000_000, ..Slice::default() };
        assert_eq!(Unit::Nanoseconds.figure(&slice, 1_000), 2e6);
        assert_eq!(Unit::MillionPerSecond.figure(&slice, 4_000_000), 2.0);
        assert_eq!(Unit::Seconds.figure(&slice, 7), 2.0);
        assert_eq!(Unit::Bytes.figure(&slice, 1_000), 4_000.0);
        assert_eq!(Unit::Megabytes.figure(&slice, 1_000), 4.0);
    }
}
