//! The table: every row, its two sides and its goal.

use crate::harness::{Other, Row, Size, Unit};
use crate::load::IDLE;
use crate::{memory, ours, peers};

/// The groups in the order of the table, each with what it is about.
pub(crate) const GROUPS: [(&str, &str); 6] = [
    ("ring", "the typed ring between two threads, 64-byte records"),
    ("mailbox", "the mailbox with bands and books, on one thread"),
    ("ask", "a question and its answer, asker and kernel on one thread"),
    ("throughput", "messages to one kernel on a thread of its own"),
    ("hop", "one message round a ring of 1000 kernels on one thread"),
    ("memory", "idle kernels of capacity 1024, in a child process"),
];

/// Every row of the table.
pub(crate) const ROWS: &[Row] = &[
    Row {
        id: "ring.throughput.single",
        what: "push and pop one by one; threads pinned to two cores",
        unit: Unit::MillionPerSecond,
        against: "rtrb push/pop",
        goal: Some(0.95),
        cores: 2,
        size: Size::Timed,
        ours: ours::ring::single,
        other: Other::Side(peers::rtrb::single),
    },
    Row {
        id: "ring.throughput.chunks",
        what: "chunks of 64; threads pinned to two cores",
        unit: Unit::MillionPerSecond,
        against: "rtrb write_chunk_uninit/read_chunk",
        goal: Some(0.95),
        cores: 2,
        size: Size::Timed,
        ours: ours::ring::chunks,
        other: Other::Side(peers::rtrb::chunks),
    },
    Row {
        id: "ring.chunks_over_single.busy",
        what: "our chunks of 64 over our single push and pop; threads pinned to two cores",
        unit: Unit::MillionPerSecond,
        against: "our own push/pop",
        goal: Some(2.5),
        cores: 2,
        size: Size::Timed,
        ours: ours::ring::chunks,
        other: Other::Side(ours::ring::single),
    },
    Row {
        id: "ring.chunks_over_single.near_empty",
        what: "the same with some work for each record, which keeps the ring near empty",
        unit: Unit::MillionPerSecond,
        against: "our own push/pop",
        goal: Some(2.5),
        cores: 2,
        size: Size::Timed,
        ours: ours::ring::chunks_worked_out,
        other: Other::Side(ours::ring::single_worked_out),
    },
    Row {
        id: "ring.round_trip.spin",
        what: "two rings, both ends spin; threads pinned to two cores",
        unit: Unit::Nanoseconds,
        against: "two atomic words on two lines",
        goal: Some(1.1),
        cores: 2,
        size: Size::Timed,
        ours: ours::ring::spinning_round_trip,
        other: Other::Side(peers::raw::atomic_round_trip),
    },
    Row {
        id: "ring.round_trip.spin_rtrb",
        what: "two rings, both ends spin; threads pinned to two cores",
        unit: Unit::Nanoseconds,
        against: "rtrb push/pop",
        goal: None,
        cores: 2,
        size: Size::Timed,
        ours: ours::ring::spinning_round_trip,
        other: Other::Side(peers::rtrb::spinning_round_trip),
    },
    Row {
        id: "ring.round_trip.parked",
        what: "two rings, both ends sleep; threads pinned to one core",
        unit: Unit::Nanoseconds,
        against: "two futex words",
        goal: Some(1.3),
        cores: 1,
        size: Size::Timed,
        ours: ours::ring::waiting_round_trip_one_core,
        other: Other::Side(peers::raw::futex_round_trip_one_core),
    },
    Row {
        id: "ring.round_trip.parked_far",
        what: "two rings, both ends sleep; threads pinned to two cores",
        unit: Unit::Nanoseconds,
        against: "two futex words",
        goal: Some(1.3),
        cores: 2,
        size: Size::Timed,
        ours: ours::ring::parked_round_trip_two_cores,
        other: Other::Side(peers::raw::futex_round_trip_two_cores),
    },
    Row {
        id: "ring.round_trip.adaptive",
        what: "two rings, both ends wait as they see fit; threads pinned to two cores",
        unit: Unit::Nanoseconds,
        against: "two futex words",
        goal: None,
        cores: 2,
        size: Size::Timed,
        ours: ours::ring::waiting_round_trip_two_cores,
        other: Other::Side(peers::raw::futex_round_trip_two_cores),
    },
    Row {
        id: "mailbox.pair.crossbeam",
        what: "try_send and try_receive of u64; one pinned thread",
        unit: Unit::Nanoseconds,
        against: "crossbeam-channel bounded",
        goal: Some(1.5),
        cores: 1,
        size: Size::Timed,
        ours: ours::mailbox::pair,
        other: Other::Side(peers::crossbeam::pair),
    },
    Row {
        id: "mailbox.pair.tokio",
        what: "try_send and try_receive of u64; one pinned thread",
        unit: Unit::Nanoseconds,
        against: "tokio mpsc bounded",
        goal: Some(1.0),
        cores: 1,
        size: Size::Timed,
        ours: ours::mailbox::pair,
        other: Other::Side(peers::tokio::pair),
    },
    Row {
        id: "mailbox.books",
        what: "try_send and try_receive of u64: what bands, books and stamps cost; one pinned thread",
        unit: Unit::Nanoseconds,
        against: "Mutex<VecDeque> without them",
        goal: None,
        cores: 1,
        size: Size::Timed,
        ours: ours::mailbox::pair,
        other: Other::Side(peers::raw::locked_queue_pair),
    },
    Row {
        id: "mailbox.window",
        what: "64 sent, then 64 taken through the kernel's window; one pinned thread",
        unit: Unit::Nanoseconds,
        against: "crossbeam-channel bounded",
        goal: None,
        cores: 1,
        size: Size::Timed,
        ours: ours::mailbox::window,
        other: Other::Side(peers::crossbeam::window),
    },
    Row {
        id: "ask.tokio",
        what: "ask an async kernel; one pinned thread, tokio current_thread",
        unit: Unit::Nanoseconds,
        against: "tokio mpsc + oneshot",
        goal: Some(1.5),
        cores: 1,
        size: Size::Timed,
        ours: ours::ask::ask,
        other: Other::Side(peers::tokio::ask),
    },
    Row {
        id: "ask.ractor",
        what: "ask an async kernel; one pinned thread, tokio current_thread",
        unit: Unit::Nanoseconds,
        against: "ractor call (unbounded)",
        goal: Some(1.0),
        cores: 1,
        size: Size::Timed,
        ours: ours::ask::ask,
        other: Other::Side(peers::ractor::call),
    },
    Row {
        id: "ask.kameo",
        what: "ask an async kernel; one pinned thread, tokio current_thread",
        unit: Unit::Nanoseconds,
        against: "kameo ask",
        goal: Some(1.0),
        cores: 1,
        size: Size::Timed,
        ours: ours::ask::ask,
        other: Other::Side(peers::kameo::ask),
    },
    Row {
        id: "ask.actix",
        what: "ask an async kernel; one pinned thread, tokio current_thread",
        unit: Unit::Nanoseconds,
        against: "actix send",
        goal: Some(1.0),
        cores: 1,
        size: Size::Timed,
        ours: ours::ask::ask,
        other: Other::Side(peers::actix::send),
    },
    Row {
        id: "throughput.kameo",
        what: "send from one thread to a thread kernel; actor on one tokio worker",
        unit: Unit::MillionPerSecond,
        against: "kameo tell, two threads",
        goal: Some(3.0),
        cores: 2,
        size: Size::Timed,
        ours: ours::throughput::send,
        other: Other::Side(peers::kameo::tell_two_threads),
    },
    Row {
        id: "throughput.kameo_local",
        what: "send from one thread to a thread kernel; sender and actor on tokio current_thread",
        unit: Unit::MillionPerSecond,
        against: "kameo tell, one thread",
        goal: Some(3.0),
        cores: 2,
        size: Size::Timed,
        ours: ours::throughput::send,
        other: Other::Side(peers::kameo::tell_one_thread),
    },
    Row {
        id: "throughput.ractor",
        what: "send from one thread to a thread kernel; actor on one tokio worker",
        unit: Unit::MillionPerSecond,
        against: "ractor cast (unbounded), two threads",
        goal: Some(3.0),
        cores: 2,
        size: Size::Timed,
        ours: ours::throughput::send,
        other: Other::Side(peers::ractor::cast_two_threads),
    },
    Row {
        id: "throughput.ractor_local",
        what: "send from one thread to a thread kernel; sender and actor on tokio current_thread",
        unit: Unit::MillionPerSecond,
        against: "ractor cast (unbounded), one thread",
        goal: Some(3.0),
        cores: 2,
        size: Size::Timed,
        ours: ours::throughput::send,
        other: Other::Side(peers::ractor::cast_one_thread),
    },
    Row {
        id: "throughput.senders",
        what: "4 threads send_blocking to a thread kernel",
        unit: Unit::MillionPerSecond,
        against: "crossbeam-channel bounded, 4 threads to 1",
        goal: Some(1.0),
        cores: 2,
        size: Size::Timed,
        ours: ours::throughput::senders,
        other: Other::Side(peers::crossbeam::senders),
    },
    Row {
        id: "hop.tokio",
        what: "one message, per hop, async kernels; one pinned thread, tokio current_thread",
        unit: Unit::Nanoseconds,
        against: "tokio tasks and mpsc",
        goal: Some(1.5),
        cores: 1,
        size: Size::Timed,
        ours: ours::hop::hops,
        other: Other::Side(peers::tokio::hops),
    },
    Row {
        id: "memory.idle.tokio",
        what: "resident memory of one idle async kernel, over 100,000",
        unit: Unit::Bytes,
        against: "tokio task with mpsc bounded",
        goal: None,
        cores: 1,
        size: Size::Fixed(IDLE),
        ours: memory::kernels_gained,
        other: Other::Side(memory::tasks_gained),
    },
    Row {
        id: "memory.idle.kameo",
        what: "resident memory of one idle async kernel, over 100,000",
        unit: Unit::Bytes,
        against: "kameo actor",
        goal: None,
        cores: 1,
        size: Size::Fixed(IDLE),
        ours: memory::kernels_gained,
        other: Other::Side(memory::actors_gained),
    },
    Row {
        id: "memory.start_100k",
        what: "start of 100,000 idle async kernels, until all wait",
        unit: Unit::Seconds,
        against: "the limit of 5 s",
        goal: Some(1.0),
        cores: 1,
        size: Size::Fixed(IDLE),
        ours: memory::kernels_start,
        other: Other::Limit(5.0),
    },
    Row {
        id: "memory.resident_100k",
        what: "resident memory of a process with 100,000 idle async kernels",
        unit: Unit::Megabytes,
        against: "the limit of 2 GB",
        goal: Some(1.0),
        cores: 1,
        size: Size::Fixed(IDLE),
        ours: memory::kernels_resident,
        other: Other::Limit(2000.0),
    },
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::harness::{Effort, measure};
    use std::collections::HashSet;

    #[test]
    fn ids_are_unique_and_every_group_is_listed() {
        let ids: HashSet<&str> = ROWS.iter().map(|row| row.id).collect();
        assert_eq!(ids.len(), ROWS.len());
        for row in ROWS {
            assert!(GROUPS.iter().any(|(group, _)| *group == row.group()), "{}", row.id);
        }
    }

    /// The rows verify what they measure, so running each for a moment is a test of both sides.
    #[test]
    fn every_row_gives_the_right_result() {
        let effort =
            Effort { pairs: 1, slice: std::time::Duration::from_micros(100), ..Effort::QUICK };
        // The child processes of the rows about memory are this program, which a test is not.
        for row in ROWS.iter().filter(|row| row.group() != "memory") {
            if let Err(wrong) = measure(row, effort) {
                panic!("{}: {wrong}", row.id);
            }
        }
    }
}
