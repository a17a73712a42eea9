//! Floors: two words between two threads, and a plain queue.

use std::collections::VecDeque;
use std::hint::{black_box, spin_loop};
use std::ptr;
use std::sync::Mutex;

use dotcompute_mailbox::sync::{AtomicU32, AtomicU64, Ordering};

use crate::handled::{BATCH, Handled, Order, handle, verify};
use crate::harness::{Slice, Stopwatch, Trips, Wrong, expect};
use crate::load::{CAPACITY, Placement, round_trip, sum_below};
use crate::os::{Line, Within, futex_await, futex_post, pinned};
use crate::ours::handlers::{AHEAD, arrays};

/// Two words on two lines, each written by one thread and spun upon by the other.
pub(crate) fn atomic_round_trip(operations: u64) -> Result<Slice, Wrong> {
    let (there, back) = (Line(AtomicU64::new(0)), Line(AtomicU64::new(0)));
    round_trip(
        Placement::TwoCores,
        || {
            let mut trips = Trips::new(operations);
            for number in trips.by_ref() {
                // SYNC(bench-ping) release:; pairs with the answerer's acquire load of `there`.
                there.0.store(number + 1, Ordering::Release);
                // SYNC(bench-pong) acquire:; pairs with the answerer's release store of `back`.
                while back.0.load(Ordering::Acquire) != number + 1 {
                    spin_loop();
                }
            }
            Ok(trips.finish())
        },
        || {
            for number in 0..Trips::total(operations) {
                // SYNC(bench-ping) acquire:; pairs with the caller's release store of `there`.
                while there.0.load(Ordering::Acquire) != number + 1 {
                    spin_loop();
                }
                // SYNC(bench-pong) release:; pairs with the caller's acquire load of `back`.
                back.0.store(number + 1, Ordering::Release);
            }
            Ok(())
        },
    )
}

pub(crate) fn futex_round_trip_one_core(operations: u64) -> Result<Slice, Wrong> {
    futex_round_trip(operations, Placement::OneCore)
}

pub(crate) fn futex_round_trip_two_cores(operations: u64) -> Result<Slice, Wrong> {
    futex_round_trip(operations, Placement::TwoCores)
}

/// Two words on two lines, each written by one thread and slept upon by the other.
fn futex_round_trip(operations: u64, placement: Placement) -> Result<Slice, Wrong> {
    let (there, back) = (Line(AtomicU32::new(0)), Line(AtomicU32::new(0)));
    round_trip(
        placement,
        || {
            let mut trips = Trips::new(operations);
            for number in trips.by_ref() {
                futex_post(&there.0, number as u32 + 1, Within::Process);
                futex_await(&back.0, number as u32 + 1, Within::Process);
            }
            Ok(trips.finish())
        },
        || {
            for number in 0..Trips::total(operations) {
                futex_await(&there.0, number as u32 + 1, Within::Process);
                futex_post(&back.0, number as u32 + 1, Within::Process);
            }
            Ok(())
        },
    )
}

/// A mutex around a bounded deque: a queue without bands, books or stamps.
pub(crate) fn locked_queue_pair(operations: u64) -> Result<Slice, Wrong> {
    pinned(|| {
        let queue = Mutex::new(VecDeque::with_capacity(CAPACITY));
        let watch = Stopwatch::start();
        let mut sum = 0;
        for number in 0..operations {
            let queue = black_box(&queue);
            let pushed = {
                let mut queue = lock(queue);
                let room = queue.len() < CAPACITY;
                if room {
                    queue.push_back(number);
                }
                room
            };
            expect("pushed", pushed, true)?;
            sum += lock(queue).pop_front().ok_or_else(|| Wrong::new("empty"))?;
        }
        let slice = watch.stop();
        expect("sum", sum, sum_below(operations))?;
        Ok(slice)
    })
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    dotcompute_mailbox::sync::lock(mutex)
}

/// A compiled handler called over the same arrays, on this thread.
pub(crate) fn handled_in_a_loop(operations: u64) -> Result<Slice, Wrong> {
    // Of as many batches as a kernel has on their way the answers are there at once.
    let (arrays, mut answers) = (arrays(), vec![vec![Order::new(0); BATCH as usize]; AHEAD + 1]);
    let mut state = Handled::default();
    // Called through a pointer, as a kernel does.
    let function: dotcompute::abi::Handler = std::hint::black_box(handle);
    let operations = operations / BATCH * BATCH;
    let slice = pinned(|| {
        let watch = Stopwatch::start();
        for (number, array) in (0..operations / BATCH).zip(arrays.iter().cycle()) {
            let (mut written, at_once) = (0, answers.len());
            let answers = &mut answers[number as usize % at_once];
            for order in array.iter() {
                let (message, state) = (ptr::from_ref(order).cast(), (&raw mut state).cast());
                let reply = ptr::from_mut(&mut answers[written]).cast();
                // SAFETY: an order, the state and room for an order; it looks at no context.
                written += unsafe { function(message, state, reply, ptr::null_mut()) } as usize;
            }
            verify(answers, number % arrays.len() as u64 * BATCH, BATCH)?;
        }
        Ok(watch.stop())
    })?;
    expect("orders handled", state.count, operations)?;
    Ok(slice)
}
