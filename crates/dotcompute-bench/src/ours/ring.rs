//! The typed ring between two threads.

use std::hint::spin_loop;
use std::sync::Barrier;
use std::thread;

use dotcompute_mailbox::ring::{
    Consumer, Format, Producer, Waiting, prompt_ring, ring, ring_with_doorbells,
};
use dotcompute_mailbox::wait;

use crate::harness::{Slice, Trips, Wrong};
use crate::load::{
    CAPACITY, CHUNK, InOrder, Numbered, Payload, Placement, Record, pipeline, round_trip,
    two_threads,
};

/// `try_push` and `try_pop`, spinning while full or empty.
pub(crate) fn single(operations: u64) -> Result<Slice, Wrong> {
    one_by_one(operations, Record::new)
}

/// The same with some work for each record, so that the ring stays near empty.
pub(crate) fn single_worked_out(operations: u64) -> Result<Slice, Wrong> {
    one_by_one(operations, Record::worked_out)
}

/// `push_iter` and `read_chunk`, 64 records at a time.
pub(crate) fn chunks(operations: u64) -> Result<Slice, Wrong> {
    chunk_by_chunk(operations, Record::new)
}

/// The same with some work for each record, so that the ring stays near empty.
pub(crate) fn chunks_worked_out(operations: u64) -> Result<Slice, Wrong> {
    chunk_by_chunk(operations, Record::worked_out)
}

fn one_by_one(operations: u64, record: impl Fn(u64) -> Record + Send) -> Result<Slice, Wrong> {
    let (mut producer, mut consumer) = ring(CAPACITY);
    two_threads(
        move || {
            for number in 0..operations {
                let record = record(number);
                while producer.try_push(record).is_err() {
                    spin_loop();
                }
            }
            Ok(())
        },
        move || {
            let mut in_order = InOrder::default();
            while in_order.count() < operations {
                match consumer.try_pop() {
                    Ok(record) => in_order.record(&record),
                    Err(_) => spin_loop(),
                }
            }
            in_order.verify(operations)
        },
    )
}

fn chunk_by_chunk(operations: u64, record: impl Fn(u64) -> Record + Send) -> Result<Slice, Wrong> {
    let (mut producer, mut consumer) = ring(CAPACITY);
    two_threads(
        move || {
            let mut next = 0;
            while next < operations {
                let end = operations.min(next + CHUNK);
                while next < end {
                    match producer.push_iter((next..end).map(&record)) {
                        0 => spin_loop(),
                        pushed => next += pushed as u64,
                    }
                }
            }
            Ok(())
        },
        move || {
            let mut in_order = InOrder::default();
            while in_order.count() < operations {
                match consumer.read_chunk(CHUNK as usize) {
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
    passed_one_by_one(operations, ring::<Record>)
}

/// The same over prompt slots.
pub(crate) fn pipeline_prompt(operations: u64) -> Result<Slice, Wrong> {
    passed_one_by_one(operations, prompt_ring::<Payload>)
}

fn passed_one_by_one<T: Numbered, F: Format<T>>(
    operations: u64,
    ring: impl Fn(usize) -> (Producer<T, F>, Consumer<T, F>),
) -> Result<Slice, Wrong> {
    let (mut there, mut arrived) = ring(CAPACITY);
    let (mut passed_on, mut back) = ring(CAPACITY);
    pipeline(
        move || {
            let mut sent = 0;
            let mut in_order = InOrder::default();
            while in_order.count() < operations {
                if sent < operations && there.try_push(T::numbered(sent)).is_ok() {
                    sent += 1;
                }
                if let Ok(record) = back.try_pop() {
                    in_order.record(&record);
                }
            }
            in_order.verify(operations)
        },
        move || {
            for _ in 0..operations {
                let record = spinning_pop(&mut arrived);
                while passed_on.try_push(record).is_err() {
                    spin_loop();
                }
            }
            Ok(())
        },
    )
}

/// Through a worker and back, 64 records at a time.
pub(crate) fn pipeline_chunks(operations: u64) -> Result<Slice, Wrong> {
    let (mut there, mut arrived) = ring(CAPACITY);
    let (mut passed_on, mut back) = ring(CAPACITY);
    pipeline(
        move || {
            let mut sent = 0;
            let mut in_order = InOrder::default();
            while in_order.count() < operations {
                let end = operations.min(sent + CHUNK);
                sent += there.push_iter((sent..end).map(Record::new)) as u64;
                if let Ok(chunk) = back.read_chunk(CHUNK as usize) {
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
                let Ok(mut chunk) = arrived.read_chunk(CHUNK as usize) else {
                    spin_loop();
                    continue;
                };
                while chunk.len() > 0 {
                    done += passed_on.push_iter(&mut chunk) as u64;
                }
            }
            Ok(())
        },
    )
}

/// Two rings of prompt slots, spinning at both ends.
pub(crate) fn prompt_round_trip(operations: u64) -> Result<Slice, Wrong> {
    spinning_round_trip(operations, prompt_ring::<Payload>)
}

/// Two rings of plain slots, spinning at both ends.
pub(crate) fn plain_round_trip(operations: u64) -> Result<Slice, Wrong> {
    spinning_round_trip(operations, ring::<Record>)
}

fn spinning_round_trip<T: Numbered, F: Format<T>>(
    operations: u64,
    ring: impl Fn(usize) -> (Producer<T, F>, Consumer<T, F>),
) -> Result<Slice, Wrong> {
    ring_round_trip(
        operations,
        Placement::TwoCores,
        ring,
        |end, record| end.try_push(record).map_err(|_| Wrong::new("the ring is full")),
        |end| Ok(spinning_pop(end)),
    )
}

#[inline(always)]
fn spinning_pop<T, F: Format<T>>(end: &mut Consumer<T, F>) -> T {
    loop {
        match end.try_pop() {
            Ok(record) => return record,
            Err(_) => spin_loop(),
        }
    }
}

/// Two rings with waiting ends on one core, where they sleep at once.
pub(crate) fn waiting_round_trip_one_core(operations: u64) -> Result<Slice, Wrong> {
    waiting_round_trip(operations, Placement::OneCore)
}

/// Two rings with waiting ends, which spin and sleep as they see fit.
pub(crate) fn waiting_round_trip_two_cores(operations: u64) -> Result<Slice, Wrong> {
    waiting_round_trip(operations, Placement::TwoCores)
}

/// Two rings with waiting ends in a process that has no core to spare for a spinner.
pub(crate) fn parked_round_trip_two_cores(operations: u64) -> Result<Slice, Wrong> {
    crowded(|| waiting_round_trip(operations, Placement::TwoCores))
}

/// Runs `side` while as many threads as there are cores count as running a kernel, so that every
/// wait of the others sleeps at once.
fn crowded<T>(side: impl FnOnce() -> T) -> T {
    let kernels = wait::parallelism();
    let (ready, done) = (Barrier::new(kernels + 1), Barrier::new(kernels + 1));
    thread::scope(|scope| {
        for _ in 0..kernels {
            scope.spawn(|| {
                let _running = wait::running();
                ready.wait();
                done.wait();
            });
        }
        ready.wait();
        let result = side();
        done.wait();
        result
    })
}

fn waiting_round_trip(operations: u64, placement: Placement) -> Result<Slice, Wrong> {
    ring_round_trip(
        operations,
        placement,
        ring_with_doorbells::<Record>,
        |end, record| end.push_wait(record, None).map_err(|_| Wrong::new("the consumer has gone")),
        |end| end.pop_wait(None).map_err(|_| Wrong::new("the producer has gone")),
    )
}

fn ring_round_trip<T: Numbered, F: Format<T>, W: Waiting>(
    operations: u64,
    placement: Placement,
    ring: impl Fn(usize) -> (Producer<T, F, W>, Consumer<T, F, W>),
    push: impl Fn(&mut Producer<T, F, W>, T) -> Result<(), Wrong> + Sync,
    pop: impl Fn(&mut Consumer<T, F, W>) -> Result<T, Wrong> + Sync,
) -> Result<Slice, Wrong> {
    let (mut ask, mut asked) = ring(CAPACITY);
    let (mut reply, mut replied) = ring(CAPACITY);
    let (push, pop) = (&push, &pop);
    round_trip(
        placement,
        move || {
            let mut trips = Trips::new(operations);
            let mut in_order = InOrder::default();
            for number in trips.by_ref() {
                push(&mut ask, T::numbered(number))?;
                in_order.record(&pop(&mut replied)?);
            }
            in_order.verify(Trips::total(operations))?;
            Ok(trips.finish())
        },
        move || {
            for _ in 0..Trips::total(operations) {
                let record = pop(&mut asked)?;
                push(&mut reply, record)?;
            }
            Ok(())
        },
    )
}
