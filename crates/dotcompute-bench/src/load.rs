//! What both sides of a row are given: the messages, the threads, the verification.

use std::sync::{Barrier, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use crate::harness::{Slice, Stopwatch, Wrong, expect};
use crate::os;

/// The capacity of every queue and mailbox in the table.
pub(crate) const CAPACITY: usize = 1024;
/// Longer than anything here takes.
pub(crate) const LONG: Duration = Duration::from_secs(60);
/// Messages published at once in the rows about chunks.
pub(crate) const CHUNK: u64 = 64;
/// Threads that send at once in the rows about many senders.
pub(crate) const SENDERS: u64 = 4;
/// Stations of the ring that one message goes round.
pub(crate) const STATIONS: u64 = 1000;
/// Messages passed on before the clock starts: some rounds, so that every station has run and what the
/// start has left in the caches is gone.
pub(crate) const WARM_HOPS: u64 = 4 * STATIONS;
/// Stages of a pipeline, its last receiver not counted.
pub(crate) const STAGES: usize = 3;
/// Idle kernels, actors or tasks in the rows about memory.
pub(crate) const IDLE: u64 = 100_000;
/// Links of the graph, keys and names of the detectors there.
pub(crate) const LINKS: u64 = 5_000_000;
pub(crate) const KEYS: u64 = 10_000_000;
pub(crate) const NAMES: u64 = 1_000_000;

/// A 64-byte record, every word its sequence number.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Record([u64; 8]);

impl Record {
    #[inline(always)]
    pub(crate) fn new(sequence: u64) -> Self {
        Self([sequence; 8])
    }

    /// The same after some work, as if the record had to be parsed first: the producer is then
    /// slower than the consumer, which keeps the queue near empty.
    #[inline(always)]
    pub(crate) fn worked_out(sequence: u64) -> Self {
        let worked =
            (0..32).fold(sequence, |x: u64, _| (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb));
        let mut record = Self::new(sequence);
        record.0[1] = worked;
        record
    }

    /// Whether this is the whole record of that number.
    #[inline(always)]
    pub(crate) fn is(&self, sequence: u64) -> bool {
        // Every word but the one that may have been worked out, without a branch for each.
        let [first, _, rest @ ..] = self.0;
        rest.iter().fold(first ^ sequence, |wrong, word| wrong | (word ^ sequence)) == 0
    }
}

/// The 56 bytes of a record that share a line with eight bytes of the ring's, every word its
/// sequence number.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Payload([u64; 7]);

/// What travels in the rows about rings: every word its sequence number.
pub(crate) trait Numbered: Copy + Send {
    fn numbered(sequence: u64) -> Self;
    fn is(&self, sequence: u64) -> bool;
}

impl Numbered for Record {
    #[inline(always)]
    fn numbered(sequence: u64) -> Self {
        Self::new(sequence)
    }

    #[inline(always)]
    fn is(&self, sequence: u64) -> bool {
        self.is(sequence)
    }
}

impl Numbered for Payload {
    #[inline(always)]
    fn numbered(sequence: u64) -> Self {
        Self([sequence; 7])
    }

    #[inline(always)]
    fn is(&self, sequence: u64) -> bool {
        self.0.iter().fold(0, |wrong, word| wrong | (word ^ sequence)) == 0
    }
}

/// Checks that numbers arrive in order and without a gap.
#[derive(Debug, Default)]
pub(crate) struct InOrder {
    next: u64,
    broken: bool,
}

impl InOrder {
    #[inline(always)]
    pub(crate) fn record(&mut self, record: &impl Numbered) {
        self.broken |= !record.is(self.next);
        self.next += 1;
    }

    #[inline(always)]
    pub(crate) fn number(&mut self, number: u64) {
        self.broken |= number != self.next;
        self.next += 1;
    }

    pub(crate) fn count(&self) -> u64 {
        self.next
    }

    pub(crate) fn verify(&self, count: u64) -> Result<(), Wrong> {
        expect("messages received", self.next, count)?;
        expect("messages out of order", self.broken, false)
    }
}

/// The sum of `0..count`, which every side that adds its numbers up must come to.
pub(crate) fn sum_below(count: u64) -> u64 {
    count * count.saturating_sub(1) / 2
}

/// Runs a producer on the first core and a consumer on the second, let go at the same moment.
/// The slice lasts from the producer's start to the consumer's last observation.
pub(crate) fn two_threads(
    producer: impl FnOnce() -> Result<(), Wrong> + Send,
    consumer: impl FnOnce() -> Result<(), Wrong> + Send,
) -> Result<Slice, Wrong> {
    let cores = os::cores();
    let barrier = Barrier::new(2);
    thread::scope(|scope| {
        let producing = scope.spawn(|| {
            os::pin(cores.first);
            barrier.wait();
            let (before, started) = (os::preemptions(), Instant::now());
            producer().map(|()| (started, os::preemptions() - before))
        });
        let consuming = scope.spawn(|| {
            os::pin(cores.second);
            barrier.wait();
            let before = os::preemptions();
            consumer().map(|()| (Instant::now(), os::preemptions() - before))
        });
        let (ended, consumers) = os::joined(consuming.join())?;
        let (started, producers) = os::joined(producing.join())?;
        Ok(Slice { preemptions: consumers + producers, ..Slice::took(ended - started) })
    })
}

/// Runs a caller, which sends everything and takes it back, on the first core and a worker, which
/// passes it on, on the second.
pub(crate) fn pipeline(
    caller: impl FnOnce() -> Result<(), Wrong> + Send,
    worker: impl FnOnce() -> Result<(), Wrong> + Send,
) -> Result<Slice, Wrong> {
    round_trip(
        Placement::TwoCores,
        || {
            let watch = Stopwatch::start();
            caller()?;
            Ok(watch.stop())
        },
        worker,
    )
}

/// Where the two ends of a round trip run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Placement {
    TwoCores,
    OneCore,
}

/// Runs a caller, whose slice counts, on the first core and an answerer on the second or the same.
pub(crate) fn round_trip(
    placement: Placement,
    caller: impl FnOnce() -> Result<Slice, Wrong> + Send,
    answerer: impl FnOnce() -> Result<(), Wrong> + Send,
) -> Result<Slice, Wrong> {
    let cores = os::cores();
    let other = if placement == Placement::OneCore { cores.first } else { cores.second };
    thread::scope(|scope| {
        let answering = scope.spawn(move || {
            os::pin(other);
            let before = os::preemptions();
            answerer().map(|()| os::preemptions() - before)
        });
        let calling = scope.spawn(move || {
            os::pin(cores.first);
            caller()
        });
        let slice = os::joined(calling.join())?;
        let answerers = os::joined(answering.join())?;
        let preemptions = match placement {
            Placement::TwoCores => slice.preemptions + answerers,
            // The two take the core from each other, which is what is measured.
            Placement::OneCore => 0,
        };
        Ok(Slice { preemptions, ..slice })
    })
}

/// What an actor or kernel that received everything reports: when, how many, and their sum.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Received {
    pub(crate) at: Instant,
    pub(crate) sum: u64,
}

/// The state of an actor that adds up the numbers sent to it and reports after the last.
#[derive(Debug)]
pub(crate) struct Adder {
    in_order: InOrder,
    sum: u64,
    last: u64,
    report: mpsc::Sender<Result<Received, Wrong>>,
}

impl Adder {
    /// An adder for the numbers `0..count`, and where its report comes out.
    pub(crate) fn new(count: u64) -> (Self, mpsc::Receiver<Result<Received, Wrong>>) {
        let (report, reported) = mpsc::channel();
        (Self { in_order: InOrder::default(), sum: 0, last: count, report }, reported)
    }

    /// Takes one number; true if it was the last.
    #[inline(always)]
    pub(crate) fn add(&mut self, number: u64) -> bool {
        self.in_order.number(number);
        self.sum += number;
        let done = self.in_order.count() == self.last;
        if done {
            self.report();
        }
        done
    }

    #[cold]
    fn report(&self) {
        let received = Received { at: Instant::now(), sum: self.sum };
        // The bench only stops listening once it has failed for another reason.
        let _ = self.report.send(self.in_order.verify(self.last).map(|()| received));
    }
}

/// Times what one sender sends until the adder's report.
#[derive(Debug)]
pub(crate) struct Sending {
    preemptions: u64,
    started: Instant,
}

impl Sending {
    pub(crate) fn start() -> Self {
        Self { preemptions: os::preemptions_of_process(), started: Instant::now() }
    }

    /// The slice until the report, once its sum is verified.
    pub(crate) fn until_reported(
        self,
        reported: &mpsc::Receiver<Result<Received, Wrong>>,
        count: u64,
    ) -> Result<Slice, Wrong> {
        let received = reported
            .recv_timeout(Duration::from_secs(60))
            .map_err(|_| Wrong::new("the receiver did not get every message"))??;
        expect("sum", received.sum, sum_below(count))?;
        Ok(self.until(received.at))
    }

    /// The slice until the time that the receiver tells of once it has verified all.
    pub(crate) fn until_told(
        self,
        told: &mpsc::Receiver<Result<Instant, Wrong>>,
    ) -> Result<Slice, Wrong> {
        let at = told
            .recv_timeout(Duration::from_secs(60))
            .map_err(|_| Wrong::new("the receiver did not get every message"))??;
        Ok(self.until(at))
    }

    fn until(self, at: Instant) -> Slice {
        let preemptions = os::preemptions_of_process() - self.preemptions;
        Slice { preemptions, ..Slice::took(at - self.started) }
    }
}

/// A number with its sender, for the rows where several threads send.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Signed {
    pub(crate) sender: u32,
    pub(crate) number: u32,
}

/// Checks the order of each sender's numbers.
#[derive(Debug, Default)]
pub(crate) struct InOrderEach {
    senders: [InOrder; SENDERS as usize],
    count: u64,
}

impl InOrderEach {
    /// Takes one message; returns how many there were.
    #[inline(always)]
    pub(crate) fn signed(&mut self, message: Signed) -> u64 {
        self.senders[message.sender as usize].number(u64::from(message.number));
        self.count += 1;
        self.count
    }

    pub(crate) fn verify(&self, each: u64) -> Result<(), Wrong> {
        self.senders.iter().try_for_each(|sender| sender.verify(each))
    }
}

/// Runs `SENDERS` threads that each send `each` messages, let go at the same moment as `receive`,
/// which returns when it saw the last. Threads are not pinned.
pub(crate) fn many_senders(
    each: u64,
    send: impl Fn(Signed) -> Result<(), Wrong> + Sync,
    receive: impl FnOnce() -> Result<Instant, Wrong>,
) -> Result<Slice, Wrong> {
    let barrier = Barrier::new(SENDERS as usize + 1);
    thread::scope(|scope| {
        let senders: Vec<_> = (0..SENDERS as u32)
            .map(|sender| {
                let (barrier, send) = (&barrier, &send);
                scope.spawn(move || {
                    barrier.wait();
                    let started = Instant::now();
                    (0..each as u32).try_for_each(|number| send(Signed { sender, number }))?;
                    Ok(started)
                })
            })
            .collect();
        barrier.wait();
        let ended = receive()?;
        let mut started = ended;
        for sender in senders {
            started = started.min(os::joined(sender.join())?);
        }
        Ok(Slice::took(ended - started))
    })
}
