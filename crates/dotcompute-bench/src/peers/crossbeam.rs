//! crossbeam-channel: a bounded channel for many senders and receivers.

use std::hint::black_box;
use std::sync::mpsc;
use std::thread;
use std::time::Instant;

use crossbeam_channel::bounded;

use crate::harness::{Slice, Stopwatch, Wrong, expect};
use crate::load::{
    CAPACITY, CHUNK, InOrder, InOrderEach, Record, SENDERS, STAGES, Sending, many_senders,
    sum_below,
};
use crate::os::pinned;

/// `try_send` and `try_recv` on one thread.
pub(crate) fn pair(operations: u64) -> Result<Slice, Wrong> {
    pinned(|| {
        let (sender, receiver) = bounded(CAPACITY);
        let watch = Stopwatch::start();
        let mut sum: u64 = 0;
        for number in 0..operations {
            black_box(&sender).try_send(number).map_err(Wrong::new)?;
            sum += black_box(&receiver).try_recv().map_err(Wrong::new)?;
        }
        let slice = watch.stop();
        expect("sum", sum, sum_below(operations))?;
        Ok(slice)
    })
}

/// Threads that `send`, one that `recv`s.
pub(crate) fn senders(operations: u64) -> Result<Slice, Wrong> {
    let (sender, receiver) = bounded(CAPACITY);
    let each = operations / SENDERS;
    many_senders(
        each,
        |message| sender.send(message).map_err(Wrong::new),
        || {
            let mut in_order = InOrderEach::default();
            while in_order.signed(receiver.recv().map_err(Wrong::new)?) < each * SENDERS {}
            let ended = Instant::now();
            in_order.verify(each)?;
            Ok(ended)
        },
    )
}

/// The same with all threads on one core.
pub(crate) fn senders_one_core(operations: u64) -> Result<Slice, Wrong> {
    pinned(|| senders(operations))
}

/// 64 times `try_send`, then 64 times `try_recv`, on one thread.
pub(crate) fn window(operations: u64) -> Result<Slice, Wrong> {
    pinned(|| {
        let (sender, receiver) = bounded(CAPACITY);
        let watch = Stopwatch::start();
        let mut in_order = InOrder::default();
        while in_order.count() < operations {
            let sent = in_order.count();
            for number in sent..operations.min(sent + CHUNK) {
                black_box(&sender).try_send(number).map_err(Wrong::new)?;
            }
            while let Ok(number) = black_box(&receiver).try_recv() {
                in_order.number(number);
            }
        }
        let slice = watch.stop();
        in_order.verify(operations)?;
        Ok(slice)
    })
}

/// Three threads that pass chunks on, and a fourth that checks what comes out.
pub(crate) fn pipeline(operations: u64) -> Result<Slice, Wrong> {
    let (first, mut arrived) = bounded::<Vec<Record>>(CAPACITY);
    let (report, reported) = mpsc::channel();
    thread::scope(|scope| {
        for _ in 0..STAGES {
            let (passed_on, next) = bounded(CAPACITY);
            let here = std::mem::replace(&mut arrived, next);
            scope.spawn(move || {
                let mut in_order = InOrder::default();
                for records in here {
                    records.iter().for_each(|record| in_order.record(record));
                    if passed_on.send(records).is_err() {
                        break;
                    }
                }
                black_box(in_order);
            });
        }
        scope.spawn(move || {
            let mut in_order = InOrder::default();
            while in_order.count() < operations {
                let Ok(records) = arrived.recv() else { break };
                records.iter().for_each(|record| in_order.record(record));
            }
            // The bench only stops listening once it has failed for another reason.
            let _ = report.send(in_order.verify(operations).map(|()| Instant::now()));
        });
        let sending = Sending::start();
        let mut next = 0;
        while next < operations {
            let count = CHUNK.min(operations - next);
            first.send((next..next + count).map(Record::new).collect()).map_err(Wrong::new)?;
            next += count;
        }
        drop(first);
        sending.until_told(&reported)
    })
}
