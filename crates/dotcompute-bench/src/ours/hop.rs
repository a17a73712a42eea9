//! Async kernels in a ring, each of which sends on to the next.

use std::sync::{Arc, OnceLock};

use dotcompute::{Address, Context, Runtime};
use tokio::sync::mpsc;

use crate::harness::{Slice, Stopwatch, Wrong, expect};
use crate::load::{CAPACITY, STATIONS, WARM_HOPS};
use crate::os::pinned;
use crate::ours::Number;
use crate::peers::tokio::current_thread;

/// One number goes round and counts down; all kernels on one thread.
pub(crate) fn hops(operations: u64) -> Result<Slice, Wrong> {
    pinned(|| {
        current_thread().block_on(async {
            let runtime = Runtime::builder().build();
            let addresses = Arc::new(OnceLock::<Vec<Address<Number>>>::new());
            let (done, mut finished) = mpsc::channel(1);
            let mut kernels = Vec::with_capacity(STATIONS as usize);
            for station in 0..STATIONS as usize {
                let (addresses, done) = (Arc::clone(&addresses), done.clone());
                let body = move |mut context: Context<Number, Number>| {
                    let next = addresses
                        .get()
                        .map(|addresses| addresses[(station + 1) % addresses.len()].clone());
                    let done = done.clone();
                    async move {
                        let next = next.ok_or("activated too early")?;
                        while let Ok(&Number(left)) = context.receive().await {
                            match left {
                                0 => done.send(station).await?,
                                left => next.send(Number(left - 1)).await?,
                            }
                        }
                        Ok(())
                    }
                };
                let kernel = runtime
                    .kernel(format!("station {station}"))
                    .capacity(CAPACITY)
                    .launch(body)
                    .map_err(Wrong::new)?;
                kernels.push(kernel);
            }
            let ring = kernels.iter().map(|kernel| kernel.address()).collect();
            addresses.set(ring).map_err(|_| Wrong::new("the ring is closed once"))?;
            kernels.iter().try_for_each(|kernel| kernel.activate().map_err(Wrong::new))?;
            for (timed, hops) in [(false, WARM_HOPS), (true, operations)] {
                let watch = Stopwatch::start();
                kernels[0].send(Number(hops - 1)).await.map_err(Wrong::new)?;
                let last = finished.recv().await;
                let slice = watch.stop();
                expect("last station", last, Some(((hops - 1) % STATIONS) as usize))?;
                if timed {
                    let accepted = kernels.iter().map(|kernel| kernel.books().accepted).sum();
                    expect("messages accepted", accepted, WARM_HOPS + operations)?;
                    return Ok(slice);
                }
            }
            Err(Wrong::new("no round"))
        })
    })
}
