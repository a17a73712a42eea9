//! tokio: bounded channels between tasks, the floor of every actor library on tokio.

use std::hint::black_box;

use tokio::runtime::{Builder, Runtime};
use tokio::sync::{mpsc, oneshot};

use crate::harness::{Slice, Stopwatch, Trips, Wrong, expect};
use crate::load::{CAPACITY, STATIONS, WARM_HOPS, sum_below};
use crate::memory::Census;
use crate::os::pinned;

/// A runtime whose tasks all run on the calling thread.
pub(crate) fn current_thread() -> Runtime {
    Builder::new_current_thread().build().expect("a runtime without drivers needs no resources")
}

/// A runtime with one worker; the thread that blocks on it is another.
pub(crate) fn one_worker() -> Runtime {
    Builder::new_multi_thread().worker_threads(1).build().expect("one thread can be started")
}

/// `try_send` and `try_recv` on one thread.
pub(crate) fn pair(operations: u64) -> Result<Slice, Wrong> {
    pinned(|| {
        let (sender, mut receiver) = mpsc::channel(CAPACITY);
        let watch = Stopwatch::start();
        let mut sum: u64 = 0;
        for number in 0..operations {
            black_box(&sender).try_send(number).map_err(Wrong::new)?;
            sum += black_box(&mut receiver).try_recv().map_err(Wrong::new)?;
        }
        let slice = watch.stop();
        expect("sum", sum, sum_below(operations))?;
        Ok(slice)
    })
}

/// A task that is sent a number and a oneshot sender, and answers with the next number.
pub(crate) fn ask(operations: u64) -> Result<Slice, Wrong> {
    pinned(|| {
        current_thread().block_on(async {
            let (sender, mut receiver) = mpsc::channel::<(u64, oneshot::Sender<u64>)>(CAPACITY);
            tokio::task::spawn(async move {
                while let Some((number, reply)) = receiver.recv().await {
                    // The asker below waits for every reply.
                    let _ = reply.send(number + 1);
                }
            });
            let mut trips = Trips::new(operations);
            for number in trips.by_ref() {
                let (reply, replied) = oneshot::channel();
                sender.send((number, reply)).await.map_err(Wrong::new)?;
                expect("reply", replied.await.map_err(Wrong::new)?, number + 1)?;
            }
            Ok(trips.finish())
        })
    })
}

/// Tasks in a ring, each with a bounded channel to the next; one number goes round and counts down.
pub(crate) fn hops(operations: u64) -> Result<Slice, Wrong> {
    pinned(|| {
        current_thread().block_on(async {
            let (senders, receivers): (Vec<_>, Vec<_>) =
                (0..STATIONS).map(|_| mpsc::channel::<u64>(CAPACITY)).unzip();
            let (done, mut finished) = mpsc::channel(1);
            for (station, mut receiver) in receivers.into_iter().enumerate() {
                let next = senders[(station + 1) % senders.len()].clone();
                let done = done.clone();
                tokio::task::spawn(async move {
                    while let Some(left) = receiver.recv().await {
                        let sent = match left {
                            0 => done.send(station).await.is_ok(),
                            left => next.send(left - 1).await.is_ok(),
                        };
                        if !sent {
                            return;
                        }
                    }
                });
            }
            for (timed, hops) in [(false, WARM_HOPS), (true, operations)] {
                let watch = Stopwatch::start();
                senders[0].send(hops - 1).await.map_err(Wrong::new)?;
                let last = finished.recv().await;
                let slice = watch.stop();
                expect("last station", last, Some(((hops - 1) % STATIONS) as usize))?;
                if timed {
                    return Ok(slice);
                }
            }
            Err(Wrong::new("no round"))
        })
    })
}

/// Tasks that each wait on a bounded channel, on a runtime with its default workers.
pub(crate) fn idle_tasks(count: u64) -> Result<Census, Wrong> {
    let runtime = Runtime::new().map_err(Wrong::new)?;
    Census::take(count, |_, arrivals| {
        let (sender, mut receiver) = mpsc::channel::<u64>(CAPACITY);
        runtime.spawn(async move {
            arrivals.arrive();
            receiver.recv().await
        });
        Ok(sender)
    })
}
