//! rtrb: a wait-free ring for one producer and one consumer.

use std::hint::spin_loop;

use rtrb::{Consumer, RingBuffer};

use crate::handled::{Handled, Order, handle};
use crate::harness::{Slice, Trips, Wrong, expect};
use crate::load::{CAPACITY, CHUNK, InOrder, Placement, Record, pipeline, round_trip, two_threads};

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

/// Through a worker and back, one by one.
pub(crate) fn pipeline_single(operations: u64) -> Result<Slice, Wrong> {
    let (mut there, mut arrived) = RingBuffer::new(CAPACITY);
    let (mut passed_on, mut back) = RingBuffer::new(CAPACITY);
    pipeline(
        move || {
            let mut sent = 0;
            let mut in_order = InOrder::default();
            while in_order.count() < operations {
                if sent < operations && there.push(Record::new(sent)).is_ok() {
                    sent += 1;
                }
                if let Ok(record) = back.pop() {
                    in_order.record(&record);
                }
            }
            in_order.verify(operations)
        },
        move || {
            for _ in 0..operations {
                let record = spinning_pop(&mut arrived);
                while passed_on.push(record).is_err() {
                    spin_loop();
                }
            }
            Ok(())
        },
    )
}

/// Through a worker and back, 64 records at a time.
pub(crate) fn pipeline_chunks(operations: u64) -> Result<Slice, Wrong> {
    let (mut there, mut arrived) = RingBuffer::new(CAPACITY);
    let (mut passed_on, mut back) = RingBuffer::new(CAPACITY);
    pipeline(
        move || {
            let mut sent = 0;
            let mut in_order = InOrder::default();
            while in_order.count() < operations {
                let count = CHUNK.min(operations - sent);
                if let Ok(chunk) = there.write_chunk_uninit(count as usize) {
                    chunk.fill_from_iter((sent..sent + count).map(Record::new));
                    sent += count;
                }
                let count = CHUNK.min(operations - in_order.count());
                if let Ok(chunk) = back.read_chunk(count as usize) {
                    let (left, right) = chunk.as_slices();
                    left.iter().chain(right).for_each(|record| in_order.record(record));
                    chunk.commit_all();
                }
            }
            in_order.verify(operations)
        },
        move || {
            let mut done = 0;
            while done < operations {
                let count = CHUNK.min(operations - done);
                let Ok(chunk) = arrived.read_chunk(count as usize) else {
                    spin_loop();
                    continue;
                };
                loop {
                    if let Ok(room) = passed_on.write_chunk_uninit(count as usize) {
                        room.fill_from_iter(chunk);
                        break;
                    }
                }
                done += count;
            }
            Ok(())
        },
    )
}

fn spinning_pop(end: &mut Consumer<Record>) -> Record {
    loop {
        match end.pop() {
            Ok(record) => return record,
            Err(_) => spin_loop(),
        }
    }
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
                in_order.record(&spinning_pop(&mut replied));
            }
            in_order.verify(Trips::total(operations))?;
            Ok(trips.finish())
        },
        move || {
            for _ in 0..Trips::total(operations) {
                reply.push(spinning_pop(&mut asked)).map_err(Wrong::new)?;
            }
            Ok(())
        },
    )
}

/// Single records through a worker that calls a compiled handler, and back.
pub(crate) fn pipeline_handler(operations: u64) -> Result<Slice, Wrong> {
    let (mut there, mut arrived) = RingBuffer::new(CAPACITY);
    let (mut passed_on, mut back) = RingBuffer::new(CAPACITY);
    pipeline(
        move || {
            let (mut sent, mut answered, mut wrong) = (0, 0, false);
            while answered < operations {
                if sent < operations && there.push(Order::new(sent)).is_ok() {
                    sent += 1;
                }
                if let Ok(answer) = back.pop() {
                    wrong |= answer != Order::answer_to(answered);
                    answered += 1;
                }
            }
            expect("wrong answers", wrong, false)
        },
        move || {
            let mut state = Handled::default();
            let function: dotcompute::abi::Handler = std::hint::black_box(handle);
            for _ in 0..operations {
                let order: Order = loop {
                    match arrived.pop() {
                        Ok(order) => break order,
                        Err(_) => spin_loop(),
                    }
                };
                let mut answer = <Order as dotcompute::Record>::from_bytes(&[0; 64])
                    .ok_or(Wrong::new("an order of another size"))?;
                let (message, reply) = ((&raw const order).cast(), (&raw mut answer).cast());
                let (state, context) = ((&raw mut state).cast(), std::ptr::null_mut());
                // SAFETY: an order, the state and room for an order; it looks at no context.
                unsafe { function(message, state, reply, context) };
                while passed_on.push(answer).is_err() {
                    spin_loop();
                }
            }
            expect("orders handled", state.count, operations)
        },
    )
}
