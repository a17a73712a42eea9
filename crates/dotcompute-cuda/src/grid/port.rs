//! The host's half of one seat.

use std::fmt;

use dotcompute_abi::TaggedRecord;
use dotcompute_abi::control::STATE_ABSENT;
use dotcompute_abi::slot::{SlotHeader, tagged_slots};
use dotcompute_mailbox::Band;
use dotcompute_mailbox::ring::{Consumer, Polls, Producer, PushError, Tagged};
use dotcompute_mailbox::sync::{AtomicU32, AtomicU64, Ordering};

use super::{Arena, Shape};

/// `SeatNews`, as atomics.
#[repr(C, align(128))]
struct News {
    tails: [AtomicU64; 4],
    command: AtomicU32,
}

/// `SeatReport`, as atomics; `fault` by its bits.
#[repr(C, align(128))]
struct ReportLine {
    busy: AtomicU64,
    processed: AtomicU64,
    faulted: AtomicU64,
    state: AtomicU32,
    fault: AtomicU32,
    waiting_on: AtomicU32,
    fault_token: AtomicU32,
    received: AtomicU64,
    passed: AtomicU64,
    sent: [AtomicU64; 8],
}

/// `SeatCounters`, as atomics.
#[repr(C, align(128))]
struct CountersLine {
    processed: AtomicU64,
    faulted: AtomicU64,
    replied: AtomicU64,
    sent: AtomicU64,
    handler_ticks: AtomicU64,
    logs_lost: AtomicU64,
}

/// Loom's atomics are larger than the words they stand for.
#[cfg(not(loom))]
const _: () = {
    use dotcompute_abi::device as abi;
    use std::mem::offset_of;

    assert!(size_of::<News>() == size_of::<abi::SeatNews>());
    assert!(offset_of!(News, tails) == offset_of!(abi::SeatNews, tails));
    assert!(offset_of!(News, command) == offset_of!(abi::SeatNews, command));
    assert!(size_of::<ReportLine>() == size_of::<abi::SeatReport>());
    assert!(offset_of!(ReportLine, busy) == offset_of!(abi::SeatReport, busy));
    assert!(offset_of!(ReportLine, processed) == offset_of!(abi::SeatReport, processed));
    assert!(offset_of!(ReportLine, faulted) == offset_of!(abi::SeatReport, faulted));
    assert!(offset_of!(ReportLine, state) == offset_of!(abi::SeatReport, state));
    assert!(offset_of!(ReportLine, fault) == offset_of!(abi::SeatReport, fault));
    assert!(offset_of!(ReportLine, waiting_on) == offset_of!(abi::SeatReport, waiting_on));
    let (ours, theirs) =
        (offset_of!(ReportLine, fault_token), offset_of!(abi::SeatReport, fault_token));
    assert!(ours == theirs);
    assert!(offset_of!(ReportLine, received) == offset_of!(abi::SeatReport, received));
    assert!(offset_of!(ReportLine, passed) == offset_of!(abi::SeatReport, passed));
    assert!(offset_of!(ReportLine, sent) == offset_of!(abi::SeatReport, sent));
    assert!(size_of::<CountersLine>() == size_of::<abi::SeatCounters>());
    assert!(offset_of!(CountersLine, processed) == offset_of!(abi::SeatCounters, processed));
    assert!(offset_of!(CountersLine, faulted) == offset_of!(abi::SeatCounters, faulted));
    assert!(offset_of!(CountersLine, replied) == offset_of!(abi::SeatCounters, replied));
    assert!(offset_of!(CountersLine, sent) == offset_of!(abi::SeatCounters, sent));
    let (ours, theirs) =
        (offset_of!(CountersLine, handler_ticks), offset_of!(abi::SeatCounters, handler_ticks));
    assert!(ours == theirs);
    assert!(offset_of!(CountersLine, logs_lost) == offset_of!(abi::SeatCounters, logs_lost));
};

/// What a seat says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Report {
    /// One of `STATE_*`.
    pub state: u32,
    /// Why it failed, if it did: a code of the handler's, or one of `FAULT_*`.
    pub fault: i32,
    /// Messages handled when it took those in hand, plus one; 0 while it has none.
    pub busy: u64,
    /// Messages handled; behind by less than a quarter of a window while it is busy.
    pub processed: u64,
    /// Messages that the handler failed at.
    pub faulted: u64,
    /// What it waits for: 0 nothing, 1 room for replies, 2 room at one of its edges.
    pub waiting_on: u32,
    /// The token of the message that it failed at, if it failed.
    pub fault_token: u32,
    /// Messages that it took from other kernels of the device, that at which it failed included; what
    /// they led to has been published. Behind as `processed` is.
    pub received: u64,
    /// Replies that it sent to another kernel of the device. All those of a message are counted once
    /// [`Port::done`] counts the message.
    pub passed: u64,
    /// Records that it sent over each of its first edges; counted as `passed` is.
    pub sent: [u64; 8],
}

/// The counters of a seat; exact once its grid has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counters {
    /// Messages handled.
    pub processed: u64,
    /// Messages that the handler failed at.
    pub faulted: u64,
    /// Records published to the host: replies and lines of the log.
    pub replied: u64,
    /// Records sent to other kernels of the device.
    pub sent: u64,
    /// Clock ticks of the multiprocessor spent in the handler.
    pub handler_ticks: u64,
    /// Lines of the log for which there was no room.
    pub logs_lost: u64,
}

/// The host's half of one seat: the only producer of its bands and the only consumer of its
/// replies. It may move between threads.
pub struct Port {
    bands: [Producer<TaggedRecord, Tagged, Polls>; 4],
    replies: Consumer<TaggedRecord, Tagged, Polls>,
    /// Next position to write in each band.
    tails: [u64; 4],
    /// The header of a record of which not all slots were there yet, and how many are missing.
    partial: Option<(SlotHeader, u32)>,
    words: PortWords,
}

/// The words of a seat that need no port: several threads may have them.
#[derive(Clone)]
pub struct PortWords {
    arena: Arena,
    news: usize,
    report: usize,
    counters: usize,
}

impl Port {
    /// The port of a seat whose rings have just been made.
    pub(super) fn new(
        arena: &Arena,
        shape: Shape,
        seat: u32,
        bands: [Producer<TaggedRecord, Tagged, Polls>; 4],
        replies: Consumer<TaggedRecord, Tagged, Polls>,
    ) -> Self {
        let words = PortWords {
            arena: arena.clone(),
            news: shape.news(seat),
            report: shape.report(seat),
            counters: shape.counters(seat),
        };
        // Relaxed, all of these: no grid runs, and a launch comes after.
        for tail in &words.news().tails {
            tail.store(0, Ordering::Relaxed);
        }
        words.news().command.store(0, Ordering::Relaxed);
        let report = words.report_line();
        let words64 =
            [&report.busy, &report.processed, &report.faulted, &report.received, &report.passed];
        for word in words64.into_iter().chain(&report.sent) {
            word.store(0, Ordering::Relaxed);
        }
        let words32 = [&report.state, &report.fault, &report.waiting_on, &report.fault_token];
        for word in words32 {
            word.store(STATE_ABSENT, Ordering::Relaxed);
        }
        Self { bands, replies, tails: [0; 4], partial: None, words }
    }

    /// How many slots this band takes at once.
    pub fn free(&self, band: Band) -> usize {
        self.bands[band as usize].free()
    }

    /// Sends a message to the kernel.
    ///
    /// # Errors
    ///
    /// The record comes back if the band's window is full.
    pub fn send(&mut self, band: Band, record: TaggedRecord) -> Result<(), TaggedRecord> {
        let place = band as usize;
        self.bands[place].try_push(record).map_err(PushError::into_inner)?;
        self.tails[place] = self.tails[place].wrapping_add(1);
        // Relaxed: it says where to look; the slots themselves say what is there.
        self.words.news().tails[place].store(self.tails[place], Ordering::Relaxed);
        Ok(())
    }

    /// Sends a message of several slots, all of them or none; whether there was room.
    pub fn send_slots(
        &mut self,
        band: Band,
        slots: impl ExactSizeIterator<Item = TaggedRecord>,
    ) -> bool {
        if self.free(band) < slots.len() {
            return false;
        }
        for slot in slots {
            let sent = self.send(band, slot);
            debug_assert!(sent.is_ok(), "there is room");
        }
        true
    }

    /// The next record that the kernel published, of any size, once all of it is there: its header. Its
    /// payload is put into `payload`, which is to be the same until then.
    pub fn receive_into(&mut self, payload: &mut Vec<u8>) -> Option<SlotHeader> {
        let (header, mut missing) = match self.partial.take() {
            Some(partial) => partial,
            None => {
                let first = self.replies.try_pop().ok()?;
                payload.clear();
                payload.extend_from_slice(&first.payload);
                (first.header, tagged_slots(u32::from(first.header.payload_bytes)) - 1)
            }
        };
        while missing > 0 {
            let Ok(slot) = self.replies.try_pop() else {
                self.partial = Some((header, missing));
                return None;
            };
            payload.extend_from_slice(&slot.bytes());
            missing -= 1;
        }
        payload.truncate(usize::from(header.payload_bytes));
        Some(header)
    }

    /// The next slot that the kernel published, if there is one: a reply, or, by its flag, a line of its
    /// log, where those take one slot each.
    pub fn receive(&mut self) -> Option<TaggedRecord> {
        self.replies.try_pop().ok()
    }

    /// Whether the kernel has published something that was not received.
    pub fn has_reply(&self) -> bool {
        !self.replies.is_empty()
    }

    /// How many slots of each band the kernel is done with, modulo 2^64: behind by less than a
    /// quarter of a window while it is busy, exact once it holds, has stopped or has failed. What
    /// those led to has been published.
    pub fn done(&self) -> [u64; 4] {
        let in_flight = |band: &Producer<_, _, _>| (band.capacity() - band.free()) as u64;
        let mut done = self.tails;
        done.iter_mut().zip(&self.bands).for_each(|(tail, band)| {
            *tail = tail.wrapping_sub(in_flight(band));
        });
        done
    }

    /// Gives the seat a command: one of `COMMAND_*`. It covers all that was sent before.
    pub fn command(&self, command: u32) {
        self.words.command(command);
    }

    /// What the seat says of itself.
    pub fn report(&self) -> Report {
        self.words.report()
    }

    /// Its counters.
    pub fn counters(&self) -> Counters {
        self.words.counters()
    }

    /// Its words alone, for whoever commands or watches it from elsewhere.
    pub fn words(&self) -> PortWords {
        self.words.clone()
    }
}

impl PortWords {
    fn news(&self) -> &News {
        // SAFETY: inside the arena, which `self` keeps; words that both sides reach as atomics.
        unsafe { self.arena.at(self.news).as_ref() }
    }

    fn report_line(&self) -> &ReportLine {
        // SAFETY: as above.
        unsafe { self.arena.at(self.report).as_ref() }
    }

    /// As [`Port::command`]; it covers what this thread knows to be sent.
    pub fn command(&self, command: u32) {
        // SYNC(device.order) release: pairs with the service warp's acquire in `dc_pass_news_on`.
        // Makes visible what was sent before. Scope: system.
        self.news().command.store(command, Ordering::Release);
    }

    /// As [`Port::report`].
    pub fn report(&self) -> Report {
        let line = self.report_line();
        // SYNC(device.report) acquire: pairs with the release in `dc_tell_state`. Makes visible the
        // fault and all that went before.
        let state = line.state.load(Ordering::Acquire);
        // SYNC(device.received) acquire: pairs with the release in `dc_settle`. Makes visible what
        // the messages led to.
        let received = line.received.load(Ordering::Acquire);
        // Relaxed, the rest: ordered by the state where it matters, `passed` and `sent` by the heads.
        Report {
            state,
            fault: line.fault.load(Ordering::Relaxed).cast_signed(),
            busy: line.busy.load(Ordering::Relaxed),
            processed: line.processed.load(Ordering::Relaxed),
            faulted: line.faulted.load(Ordering::Relaxed),
            waiting_on: line.waiting_on.load(Ordering::Relaxed),
            fault_token: line.fault_token.load(Ordering::Relaxed),
            received,
            passed: line.passed.load(Ordering::Relaxed),
            sent: std::array::from_fn(|edge| line.sent[edge].load(Ordering::Relaxed)),
        }
    }

    /// As [`Port::counters`].
    pub fn counters(&self) -> Counters {
        // SAFETY: inside the arena, which `self` keeps; words that both sides reach as atomics.
        let line: &CountersLine = unsafe { self.arena.at(self.counters).as_ref() };
        // Relaxed, all: each says all there is to know; `Grid::has_ended` orders them.
        Counters {
            processed: line.processed.load(Ordering::Relaxed),
            faulted: line.faulted.load(Ordering::Relaxed),
            replied: line.replied.load(Ordering::Relaxed),
            sent: line.sent.load(Ordering::Relaxed),
            handler_ticks: line.handler_ticks.load(Ordering::Relaxed),
            logs_lost: line.logs_lost.load(Ordering::Relaxed),
        }
    }
}

impl fmt::Debug for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Port").field("report", &self.report()).finish_non_exhaustive()
    }
}

impl fmt::Debug for PortWords {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PortWords").field("report", &self.report()).finish_non_exhaustive()
    }
}
