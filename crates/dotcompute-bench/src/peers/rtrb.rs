//! rtrb: a wait-free ring for one producer and one consumer.

use std::hint::spin_loop;

use rtrb::RingBuffer;

use crate::harness::{Slice, Trips, Wrong};
use crate::load::{CAPACITY, CHUNK, InOrder, Placement, Record, round_trip, two_threads};

/// `push` and `pop`, spinning while full or empty.
pub(crate) fn single(operations: u64) -> Result<Slice, Wrong> {
    let (mut producer, mut consumer) = RingBuffer::new(CAPACITY);
    two_threads(
        move || {
            for number in 0..operations {
                let record = Record::new(number);
                while producer.push(record).is_err() {
                    spin_loop();
                }
            }
            Ok(())
        },
        move || {
            let mut in_order = InOrder::default();
            while in_order.count() < operations {
                match consumer.pop() {
                    Ok(record) => in_order.record(&record),
                    Err(_) => spin_loop(),
                }
            }
            in_order.verify(operations)
        },
    )
}

/// `write_chunk_uninit` and `read_chunk`, 64 records at a time.
pub(crate) fn chunks(operations: u64) -> Result<Slice, Wrong> {
    let (mut producer, mut consumer) = RingBuffer::new(CAPACITY);
    two_threads(
        move || {
            let mut next = 0;
            while next < operations {
                let count = CHUNK.min(operations - next);
                match producer.write_chunk_uninit(count as usize) {
                    Ok(chunk) => {
                        chunk.fill_from_iter((next..next + count).map(Record::new));
                        next += count;
                    }
                    Err(_) => spin_loop(),
                }
            }
            Ok(())
        },
        move || {
            let mut in_order = InOrder::default();
            while in_order.count() < operations {
                let count = CHUNK.min(operations - in_order.count());
                match consumer.read_chunk(count as usize) {
                    Ok(chunk) => {
                        let (left, right) = chunk.as_slices();
                        left.iter().chain(right).for_each(|record| in_order.record(record));
                        chunk.commit_all();
                    }
                    Err(_) => spin_loop(),
                }
            }
            in_order.verify(operations)
        },
    )
}

/// Two rings, spinning at both ends.
pub(crate) fn spinning_round_trip(operations: u64) -> Result<Slice, Wrong> {
    let (mut ask, mut asked) = RingBuffer::new(CAPACITY);
    let (mut reply, mut replied) = RingBuffer::new(CAPACITY);
    round_trip(
        Placement::TwoCores,
        move || {
            let mut trips = Trips::new(operations);
            let mut in_order = InOrder::default();
            for number in trips.by_ref() {
                ask.push(Record::new(number)).map_err(Wrong::new)?;
                in_order.record(&loop {
                    match replied.pop() {
                        Ok(record) => break record,
                        Err(_) => spin_loop(),
                    }
                });
            }
            in_order.verify(Trips::total(operations))?;
            Ok(trips.finish())
        },
        move || {
            for _ in 0..Trips::total(operations) {
                let record = loop {
                    match asked.pop() {
                        Ok(record) => break record,
                        Err(_) => spin_loop(),
                    }
                };
                reply.push(record).map_err(Wrong::new)?;
            }
            Ok(())
        },
    )
}
