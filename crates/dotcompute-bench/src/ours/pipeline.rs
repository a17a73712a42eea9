//! Kernels connected to kernels.

use std::hint::black_box;
use std::sync::mpsc;

use dotcompute::{BoxError, Context, Message, Runtime, Terminate};
use tokio::sync::mpsc as channel;

use crate::harness::{Slice, Stopwatch, Wrong, expect};
use crate::load::{CAPACITY, CHUNK, InOrder, Record, STAGES, STATIONS, Sending, WARM_HOPS};
use crate::os::pinned;
use crate::ours::Number;
use crate::peers::tokio::current_thread;

/// Records that go through the stages together.
struct Chunk(Vec<Record>);

impl Message for Chunk {
    const TYPE_NAME: &'static str = "Chunk";
}

async fn pass_on(mut context: Context<Chunk, Chunk>) -> Result<(), BoxError> {
    let mut in_order = InOrder::default();
    while context.receive().await.is_ok() {
        let Some(chunk) = context.take() else { break };
        chunk.0.iter().for_each(|record| in_order.record(record));
        context.reply(chunk).await?;
    }
    black_box(in_order);
    Ok(())
}

/// Three kernels on threads, connected, and a fourth that checks what comes out.
pub(crate) fn chunks(operations: u64) -> Result<Slice, Wrong> {
    let runtime = Runtime::builder().build();
    let (report, reported) = mpsc::channel();
    let builder = |name: String| runtime.kernel(name).executor("thread").capacity(CAPACITY);
    let last = builder("last".into()).launch(move |mut context: Context<Chunk, Chunk>| {
        let report = report.clone();
        async move {
            let mut in_order = InOrder::default();
            while let Ok(Chunk(records)) = context.receive().await {
                records.iter().for_each(|record| in_order.record(record));
                if in_order.count() == operations {
                    let ended = std::time::Instant::now();
                    report.send(in_order.verify(operations).map(|()| ended))?;
                }
            }
            Ok(())
        }
    });
    let last = last.map_err(Wrong::new)?;
    let stages = (0..STAGES)
        .map(|stage| builder(format!("stage {stage}")).launch(pass_on))
        .collect::<Result<Vec<_>, _>>()
        .map_err(Wrong::new)?;
    for (index, stage) in stages.iter().enumerate() {
        let next = stages.get(index + 1).unwrap_or(&last);
        stage.connect(next).map_err(Wrong::new)?;
        stage.activate().map_err(Wrong::new)?;
    }
    last.activate().map_err(Wrong::new)?;
    let sending = Sending::start();
    let mut next = 0;
    while next < operations {
        let count = CHUNK.min(operations - next);
        let chunk = Chunk((next..next + count).map(Record::new).collect());
        stages[0].send_blocking(chunk, None).map_err(Wrong::new)?;
        next += count;
    }
    let slice = sending.until_told(&reported)?;
    for stage in &stages {
        stage.terminate_blocking(Terminate::drain());
        let books = stage.reply_books();
        expect("forwarded", books.forwarded, operations.div_ceil(CHUNK))?;
    }
    Ok(slice)
}

/// As [`hops`](crate::ours::hop::hops), but each kernel is connected to the next, and replies.
pub(crate) fn hops(operations: u64) -> Result<Slice, Wrong> {
    pinned(|| {
        current_thread().block_on(async {
            let runtime = Runtime::builder().build();
            let (done, mut finished) = channel::channel(1);
            let mut kernels = Vec::with_capacity(STATIONS as usize);
            for station in 0..STATIONS as usize {
                let done = done.clone();
                let body = move |mut context: Context<Number, Number>| {
                    let done = done.clone();
                    async move {
                        while let Ok(&Number(left)) = context.receive().await {
                            match left {
                                0 => done.send(station).await?,
                                left => context.reply(Number(left - 1)).await?,
                            }
                        }
                        Ok(())
                    }
                };
                let name = format!("station {station}");
                let kernel = runtime.kernel(name).capacity(CAPACITY).launch(body);
                kernels.push(kernel.map_err(Wrong::new)?);
            }
            for (station, kernel) in kernels.iter().enumerate() {
                let next = &kernels[(station + 1) % kernels.len()];
                kernel.connect_allowing_cycle(next).map_err(Wrong::new)?;
                kernel.activate().map_err(Wrong::new)?;
            }
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
