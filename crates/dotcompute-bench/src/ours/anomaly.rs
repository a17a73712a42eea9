//! Unusual readings of 10,000 keys: a compiled handler that keeps the state of all of them.

use std::collections::{HashMap, VecDeque};
use std::hint::spin_loop;
use std::sync::{Arc, LazyLock};
use std::time::Instant;

use dotcompute::compiled::{CompiledHandler, StateReader};
use dotcompute::process::Process;
use dotcompute::{BoxError, Envelope, KernelRef, Record, RecordBatch, Runtime, Terminate};
use dotcompute_mailbox::ring::ring;
use dotcompute_workloads::anomaly::handler::{Alarm, Event, Keyed};
use dotcompute_workloads::anomaly::named::{Name, Named, NamedEvent, name};
use dotcompute_workloads::anomaly::pipeline::{Block, End, Pipeline};
use dotcompute_workloads::anomaly::{Batch, Detector, Format, Parser, Settings, Verdict};

use foldhash::fast::RandomState;

use crate::harness::{Slice, Stopwatch, Wrong, expect};
use crate::load::{CAPACITY, CHUNK, LONG, two_threads};
use crate::memory::Census;
use crate::os::{beside, pinned};
use crate::ours::process::processes;
use crate::page::{Curve, Series};
use crate::peers::tokio::current_thread;

pub(crate) const KEYS: u32 = 10_000;
/// Events of a batch.
pub(crate) const BATCH: usize = 1000;
/// Different events that are sent in turn.
const EVENTS: u32 = 1 << 20;
const BATCHES: usize = EVENTS as usize / BATCH;

/// A reading in about a hundred is wild.
pub(crate) static LOG: LazyLock<Vec<Event>> = LazyLock::new(|| {
    let mut random = 42_u64;
    let mut next = move || {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (random >> 40) as u32
    };
    let event = |sequence| {
        let wild = if next() % 100 == 0 { 20.0 } else { 1.0 };
        let spread: f64 = (0..4).map(|_| f64::from(next() % 1000) / 1000.0 - 0.5).sum();
        Event { key: next() % KEYS, sequence, time: 0.0, value: wild * spread }
    };
    (0..BATCHES as u32 * BATCH as u32).map(event).collect()
});

pub(crate) fn settings() -> Settings {
    Settings::default()
}

/// How many alarms a plain detector raises over so many of the events, in turn.
pub(crate) fn alarms(operations: u64) -> u64 {
    static WHOLE: LazyLock<Vec<u64>> = LazyLock::new(|| {
        let mut detector = Detector::new(settings());
        let mut total = 0;
        // After each batch of three rounds.
        let mut after = vec![0];
        for _ in 0..3 {
            for batch in LOG.chunks(BATCH) {
                for event in batch {
                    let verdict = detector.observe(event.key, event.time, event.value);
                    total += u64::from(matches!(verdict, Verdict::Unusual(_)));
                }
                after.push(total);
            }
        }
        after
    });
    let batches = operations as usize / BATCH;
    WHOLE.get(batches).copied().unwrap_or(u64::MAX)
}

/// Batches on their way at once.
const AHEAD: usize = 4;

fn batch<E: Record>(events: &Arc<Vec<E>>, number: usize) -> RecordBatch {
    let start = (number % BATCHES) * BATCH;
    let first = events[start..start + BATCH].as_ptr().cast();
    let keep = Box::new(Arc::clone(events));
    // SAFETY: so many events lie there, kept, and nobody writes to them.
    unsafe { RecordBatch::from_foreign(E::LAYOUT, first, BATCH, keep) }
}

/// Keys that no cache holds, so many that none has an alarm yet; a debug build checks the rows, and takes
/// fewer.
const MANY: u32 = if cfg!(debug_assertions) { 1_000_000 } else { 10_000_000 };

/// The same events of so many keys.
fn spread(keys: u32) -> Vec<Event> {
    let of = |event: &Event| {
        let mixed = u64::from(event.sequence).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32;
        Event { key: ((mixed * u64::from(keys)) >> 32) as u32, ..*event }
    };
    LOG.iter().map(of).collect()
}

static SPREAD: LazyLock<Arc<Vec<Event>>> = LazyLock::new(|| Arc::new(spread(MANY)));

static SHARED: LazyLock<Arc<Vec<Event>>> = LazyLock::new(|| Arc::new(LOG.clone()));

/// The same events of keys that have names.
static NAMED: LazyLock<Arc<Vec<NamedEvent>>> = LazyLock::new(|| {
    let named = |event: &Event| NamedEvent {
        name: name(&format!("hall 7, sensor {}", event.key)).expect("it is short"),
        sequence: event.sequence.into(),
        time: event.time,
        value: event.value,
    };
    Arc::new(LOG.iter().map(named).collect())
});

/// So many operations as whole batches, at most three rounds of the log.
fn whole(operations: u64) -> (usize, f64) {
    let batches = (operations as usize / BATCH).clamp(1, 3 * BATCHES);
    (batches, operations as f64 / (batches * BATCH) as f64)
}

fn scaled(slice: Slice, factor: f64) -> Slice {
    Slice { elapsed: slice.elapsed.mul_f64(factor), ..slice }
}

/// Batches of 1000, through an async kernel and back; sender and kernel on one thread.
pub(crate) fn batches(operations: u64) -> Result<Slice, Wrong> {
    let keyed = Keyed::new(settings(), KEYS).map_err(Wrong::new)?;
    through(keyed.handler(), &SHARED, operations, 0, alarms)
}

/// The same of keys that have names.
pub(crate) fn named_batches(operations: u64) -> Result<Slice, Wrong> {
    let named = Named::new(settings(), KEYS).map_err(Wrong::new)?;
    through(named.handler(), &NAMED, operations, 0, alarms)
}

/// The same of ten million keys; the events have touched the memory of their keys before.
pub(crate) fn many_batches(operations: u64) -> Result<Slice, Wrong> {
    let keyed = Keyed::new(settings(), MANY).map_err(Wrong::new)?;
    let handler = keyed.handler();
    let state = handler.state_reader();
    let slice = through(handler, &SPREAD, operations, BATCHES, |_| 0)?;
    let snapshot = state.bytes(LONG).ok_or(Wrong::new("no state"))?;
    let counts = keyed.counts(&snapshot).ok_or(Wrong::new("no counts"))?;
    let (batches, _) = whole(operations);
    expect("events", counts.taken as usize, (BATCHES + batches) * BATCH)?;
    // Bit by bit what a loop over the events leaves.
    let mut rows = vec![[0.0; 4]; MANY as usize];
    for number in (0..BATCHES).chain(0..batches) {
        let start = (number % BATCHES) * BATCH;
        SPREAD[start..start + BATCH]
            .iter()
            .for_each(|event| bare(&mut rows, event, &mut Vec::new()));
    }
    let at = snapshot.len() - size_of_val(&rows[..]);
    let own = snapshot[at..].as_chunks::<8>().0.iter().map(|bytes| f64::from_ne_bytes(*bytes));
    expect("the same rows", own.eq(rows.into_flattened()), true)?;
    Ok(slice)
}

/// The loop over the same array.
pub(crate) fn loop_over_many(operations: u64) -> Result<Slice, Wrong> {
    let (batches, factor) = whole(operations);
    let log = &*SPREAD;
    let mut rows = vec![[0.0; 4]; MANY as usize];
    let mut out = Vec::with_capacity(BATCH);
    pinned(|| {
        log.iter().for_each(|event| bare(&mut rows, event, &mut out));
        let watch = Stopwatch::start();
        for number in 0..batches {
            let start = (number % BATCHES) * BATCH;
            log[start..start + BATCH].iter().for_each(|event| bare(&mut rows, event, &mut out));
        }
        let slice = watch.stop();
        let taken: f64 = rows.iter().map(|[count, ..]| count).sum();
        expect("events", taken as usize, log.len() + batches * BATCH)?;
        Ok(scaled(slice, factor))
    })
}

/// Sends all of so many batches; says how many alarms there were by then.
async fn pass<E: Record>(
    kernel: &KernelRef<RecordBatch, RecordBatch>,
    events: &Arc<Vec<E>>,
    batches: usize,
) -> Result<u64, Wrong> {
    let mut found = 0;
    for number in 0..batches + AHEAD {
        if number < batches {
            kernel.send(batch(events, number)).await.map_err(Wrong::new)?;
        }
        // A batch without an alarm has no reply: what is there is taken, the rest at the end.
        while let Ok(reply) = kernel.try_receive() {
            found += reply.message.len() as u64;
        }
        tokio::task::yield_now().await;
    }
    Ok(found)
}

/// So many operations in batches, after so many `before` that are not timed.
fn through<E: Record>(
    handler: CompiledHandler,
    events: &Arc<Vec<E>>,
    operations: u64,
    before: usize,
    alarms: fn(u64) -> u64,
) -> Result<Slice, Wrong> {
    let (batches, factor) = whole(operations);
    pinned(|| {
        current_thread().block_on(async {
            let runtime = Runtime::builder().build();
            let kernel: KernelRef<RecordBatch, RecordBatch> = runtime
                .kernel("detect")
                .capacity(CAPACITY)
                .launch_compiled(handler)
                .map_err(Wrong::new)?;
            kernel.activate().map_err(Wrong::new)?;
            if before > 0 {
                pass(&kernel, events, before).await?;
                let none = RecordBatch::from_vec(Vec::<E>::new());
                kernel.ask(none).await.map_err(Wrong::new)?;
            }
            let watch = Stopwatch::start();
            let mut found = pass(&kernel, events, batches).await?;
            kernel.terminate(Terminate::drain()).await;
            while let Ok(reply) = kernel.try_receive() {
                found += reply.message.len() as u64;
            }
            let slice = watch.stop();
            expect("alarms", found, alarms((batches * BATCH) as u64))?;
            Ok(scaled(slice, factor))
        })
    })
}

/// Batches to a kernel on a thread of its own, each asked about.
pub(crate) fn asked_on_a_thread(operations: u64) -> Result<Slice, Wrong> {
    let keyed = Keyed::new(settings(), KEYS).map_err(Wrong::new)?;
    let runtime = Runtime::builder().build();
    let kernel = runtime
        .kernel("detect")
        .executor("thread")
        .launch_compiled(keyed.handler())
        .map_err(Wrong::new)?;
    kernel.activate().map_err(Wrong::new)?;
    asked(&kernel, operations)
}

/// The same to a kernel in a process of its own.
pub(crate) fn asked_in_a_process(operations: u64) -> Result<Slice, Wrong> {
    let processes = processes();
    let runtime = Runtime::builder().executor(processes.executor()).build();
    let builder = runtime.kernel("detect").executor("process");
    let (kernel, _) =
        processes.launch_compiled(builder, Process::new("detect")).map_err(Wrong::new)?;
    kernel.activate().map_err(Wrong::new)?;
    asked(&kernel, operations)
}

/// The handler of [`asked_in_a_process`], made there.
pub(crate) fn detector() -> Result<CompiledHandler, BoxError> {
    Ok(Keyed::new(settings(), KEYS)?.handler())
}

fn asked(kernel: &KernelRef<RecordBatch, RecordBatch>, operations: u64) -> Result<Slice, Wrong> {
    let (batches, factor) = whole(operations);
    let events = &*SHARED;
    // Before the clock starts a process does.
    let none = RecordBatch::from_vec(Vec::<Event>::new());
    kernel.ask_blocking(none, None).map_err(Wrong::new)?;
    let mut found = 0;
    let watch = Stopwatch::start();
    for number in 0..batches {
        let reply = kernel.ask_blocking(batch(events, number), None).map_err(Wrong::new)?;
        found += reply.message.len() as u64;
    }
    let slice = watch.stop();
    kernel.terminate_blocking(Terminate::drain());
    expect("alarms", found, alarms((batches * BATCH) as u64))?;
    Ok(scaled(slice, factor))
}

/// A loop over the events of names, whose rows are in a map.
pub(crate) fn loop_over_names(operations: u64) -> Result<Slice, Wrong> {
    let (batches, factor) = whole(operations);
    let log = &*NAMED;
    let mut rows: HashMap<Name, [[f64; 4]; 1], RandomState> = HashMap::default();
    let mut out: Vec<Alarm> = Vec::with_capacity(BATCH);
    let mut found = 0;
    pinned(|| {
        let watch = Stopwatch::start();
        for number in 0..batches {
            let start = (number % BATCHES) * BATCH;
            out.clear();
            for event in &log[start..start + BATCH] {
                let NamedEvent { name, time, value, .. } = *event;
                let event = Event { key: 0, sequence: 0, time, value };
                bare(rows.entry(name).or_default(), &event, &mut out);
            }
            found += std::hint::black_box(&out).len() as u64;
        }
        let slice = watch.stop();
        expect("alarms", found, alarms((batches * BATCH) as u64))?;
        Ok(scaled(slice, factor))
    })
}

/// The same loop without a kernel: a row of numbers for each key, alarms into an array.
pub(crate) fn loop_over_array(operations: u64) -> Result<Slice, Wrong> {
    let (batches, factor) = whole(operations);
    let log = &*LOG;
    let mut rows = vec![[0.0_f64; 4]; KEYS as usize];
    let mut out: Vec<Alarm> = Vec::with_capacity(BATCH);
    let mut found = 0;
    pinned(|| {
        let watch = Stopwatch::start();
        for number in 0..batches {
            let start = (number % BATCHES) * BATCH;
            out.clear();
            for event in &log[start..start + BATCH] {
                bare(&mut rows, event, &mut out);
            }
            found += std::hint::black_box(&out).len() as u64;
        }
        let slice = watch.stop();
        expect("alarms", found, alarms((batches * BATCH) as u64))?;
        Ok(scaled(slice, factor))
    })
}

/// What a loop written for this one purpose does with an event.
#[inline(always)]
fn bare(rows: &mut [[f64; 4]], event: &Event, out: &mut Vec<Alarm>) {
    let [count, last, mean, variance] = &mut rows[event.key as usize];
    if event.time < *last || !event.value.is_finite() {
        return;
    }
    let (before, spread) = (*mean, *variance);
    let difference = event.value - before;
    let squared = difference * difference;
    *count += 1.0;
    *last = event.time;
    let weight = (1.0 / *count).max(0.01);
    *mean = before + weight * difference;
    *variance = (1.0 - weight) * (spread + weight * squared);
    if squared > 16.0 * spread && *count > 30.0 {
        let (Event { key, sequence, time, value }, deviation) = (*event, spread.sqrt());
        let z = difference / deviation;
        out.push(Alarm { key, sequence, time, value, expected: before, deviation, z });
    }
}

/// A kernel on a thread of its own, bound to the second core, with what `more` makes of its handler.
fn detecting<T: Send>(
    keyed: &Keyed,
    more: impl FnOnce(CompiledHandler) -> Result<(CompiledHandler, T), Wrong> + Send,
) -> Result<(Runtime, KernelRef<Event, Alarm>, StateReader, T), Wrong> {
    LazyLock::force(&LOG);
    beside(|| {
        let (handler, more) = more(keyed.handler())?;
        let state = handler.state_reader();
        let runtime = Runtime::builder().build();
        let kernel = runtime
            .kernel("detect")
            .executor("thread")
            .capacity(4 * CAPACITY)
            .reply_capacity(1 << 17)
            .launch_compiled(handler)
            .map_err(Wrong::new)?;
        kernel.activate().map_err(Wrong::new)?;
        Ok((runtime, kernel, state, more))
    })
}

/// Runs `send` for all events of so many batches, waits until the kernel is done with them, and looks
/// whether it has had them all.
fn singly(
    operations: u64,
    keyed: &Keyed,
    (runtime, kernel, state): (Runtime, &KernelRef<Event, Alarm>, StateReader),
    mut send: impl FnMut(&[Event]) -> Result<(), Wrong> + Send,
) -> Result<Slice, Wrong> {
    let (batches, factor) = whole(operations);
    let operations = (batches * BATCH) as u64;
    let expected = alarms(operations);
    let mut slice = pinned(|| {
        let watch = Stopwatch::start();
        for number in 0..batches {
            let start = (number % BATCHES) * BATCH;
            send(&LOG[start..start + BATCH])?;
        }
        Ok(watch.stop())
    })?;
    let end = Instant::now();
    kernel.terminate_blocking(Terminate::drain());
    slice.elapsed += end.elapsed();
    drop(runtime);
    crate::ours::verify_books(kernel, operations)?;
    let snapshot = state.bytes(LONG).ok_or(Wrong::new("no state"))?;
    let counts = keyed.counts(&snapshot).ok_or(Wrong::new("no counts"))?;
    expect("events", counts.taken as u64, operations)?;
    expect("alarms", counts.unusual as u64, expected)?;
    Ok(scaled(slice, factor))
}

/// One event a message, pushed into the kernel's feed.
pub(crate) fn fed_singles(operations: u64) -> Result<Slice, Wrong> {
    let keyed = Keyed::new(settings(), KEYS).map_err(Wrong::new)?;
    let (runtime, kernel, state, mut feed) =
        detecting(&keyed, |handler| handler.feed::<Event>(4 * CAPACITY).map_err(Wrong::new))?;
    singly(operations, &keyed, (runtime, &kernel, state), |events| {
        for event in events {
            feed.push_blocking(*event, None).map_err(Wrong::new)?;
        }
        Ok(())
    })
}

/// One event a message, sent some at a time.
pub(crate) fn sent_singles(operations: u64) -> Result<Slice, Wrong> {
    let keyed = Keyed::new(settings(), KEYS).map_err(Wrong::new)?;
    let (runtime, kernel, state, ()) = detecting(&keyed, |handler| Ok((handler, ())))?;
    let mut outgoing: VecDeque<Envelope<Event>> = VecDeque::new();
    singly(operations, &keyed, (runtime, &kernel, state), |events| {
        for chunk in events.chunks(CHUNK as usize) {
            outgoing.extend(chunk.iter().map(|event| Envelope::from(*event)));
            kernel.send_batch_blocking(&mut outgoing, None).map_err(Wrong::new)?;
        }
        Ok(())
    })
}

/// One event a slot of the typed ring, to a detector on the other core; both ends spin.
pub(crate) fn ring_singles(operations: u64) -> Result<Slice, Wrong> {
    let (batches, factor) = whole(operations);
    let operations = (batches * BATCH) as u64;
    LazyLock::force(&LOG);
    let expected = alarms(operations);
    let (mut producer, mut consumer) = ring(CAPACITY);
    let slice = two_threads(
        move || {
            for number in 0..batches {
                let start = (number % BATCHES) * BATCH;
                for event in &LOG[start..start + BATCH] {
                    while producer.try_push(*event).is_err() {
                        spin_loop();
                    }
                }
            }
            Ok(())
        },
        move || {
            let mut detector = Detector::new(settings());
            let (mut taken, mut found) = (0, 0);
            while taken < operations {
                match consumer.try_pop() {
                    Ok(Event { key, time, value, .. }) => {
                        let verdict = detector.observe(key, time, value);
                        found += u64::from(matches!(verdict, Verdict::Unusual(_)));
                        taken += 1;
                    }
                    Err(_) => spin_loop(),
                }
            }
            expect("alarms", found, expected)
        },
    )?;
    Ok(scaled(slice, factor))
}

/// What an event costs by the number of keys, in nanoseconds: ours in batches, and a loop over the same
/// array. `quick`: up to a million keys.
pub(crate) fn sizes(quick: bool) -> Result<Curve, Wrong> {
    let largest: u32 = if quick || cfg!(debug_assertions) { 1_000_000 } else { 10_000_000 };
    let (mut ours, mut floors) = (Vec::new(), Vec::new());
    let mut keys = 100;
    while keys <= largest {
        let events = spread(keys);
        let count = events.len() as f64;
        let keyed = Keyed::new(settings(), keys).map_err(Wrong::new)?;
        let mut rows = vec![[0.0_f64; 4]; keys as usize];
        let runtime = Runtime::builder().build();
        let kernel: KernelRef<RecordBatch, RecordBatch> = runtime
            .kernel("detect")
            .executor("thread")
            .launch_compiled(keyed.handler())
            .map_err(Wrong::new)?;
        kernel.activate().map_err(Wrong::new)?;
        let mut out = Vec::with_capacity(BATCH);
        let (mut least, mut floor) = (f64::INFINITY, f64::INFINITY);
        let pieces = || events.chunks(10 * BATCH).map(<[Event]>::to_vec).collect::<Vec<_>>();
        let mut bytes = pieces();
        // The first round touches the memory.
        for round in 0..4 {
            let start = Instant::now();
            for events in &mut bytes {
                let batch = RecordBatch::from_vec(std::mem::take(events));
                kernel.ask_blocking(batch, None).map_err(Wrong::new)?;
            }
            let elapsed = start.elapsed().as_secs_f64() * 1e9 / count;
            bytes = pieces();
            let start = Instant::now();
            for events in events.chunks(BATCH) {
                out.clear();
                events.iter().for_each(|event| bare(&mut rows, event, &mut out));
                std::hint::black_box(&out);
            }
            let bare = start.elapsed().as_secs_f64() * 1e9 / count;
            if round > 0 {
                (least, floor) = (least.min(elapsed), floor.min(bare));
            }
        }
        kernel.terminate_blocking(Terminate::drain());
        ours.push((f64::from(keys), least));
        floors.push((f64::from(keys), floor));
        keys *= 10;
    }
    Ok(Curve {
        title: "anomaly: what an event costs, by the number of keys".into(),
        x: "keys".into(),
        y: "ns an event".into(),
        series: vec![
            Series { name: "ours, asked by batches of 10,000".into(), points: ours },
            Series { name: "a loop over the same array".into(), points: floors },
        ],
    })
}

/// A kernel that has had an event of each of so many keys.
pub(crate) fn keys_kept(count: u64) -> Result<Census, Wrong> {
    let keys = u32::try_from(count).map_err(Wrong::new)?;
    let event = |key| Event { key, sequence: key, time: 0.0, value: 1.0 };
    let handler = || Ok(Keyed::new(settings(), keys).map_err(Wrong::new)?.handler());
    kept(keys, handler, event)
}

/// The same of names.
pub(crate) fn names_kept(count: u64) -> Result<Census, Wrong> {
    let keys = u32::try_from(count).map_err(Wrong::new)?;
    let handler = || Ok(Named::new(settings(), keys).map_err(Wrong::new)?.handler());
    kept(keys, handler, event_of_name)
}

fn event_of_name(key: u32) -> NamedEvent {
    let name = name(&format!("hall 7, sensor {key}")).expect("it is short");
    NamedEvent { name, sequence: key.into(), time: 0.0, value: 1.0 }
}

fn kept<E: Record>(
    keys: u32,
    handler: impl Fn() -> Result<CompiledHandler, Wrong>,
    event: impl Fn(u32) -> E,
) -> Result<Census, Wrong> {
    let runtime = Runtime::builder().build();
    Census::kept(|| {
        let kernel: KernelRef<RecordBatch, RecordBatch> = runtime
            .kernel("detect")
            .executor("thread")
            .launch_compiled(handler()?)
            .map_err(Wrong::new)?;
        kernel.activate().map_err(Wrong::new)?;
        for first in (0..keys).step_by(BATCH) {
            let events = (first..keys.min(first + BATCH as u32)).map(&event).collect();
            kernel.ask_blocking(RecordBatch::from_vec(events), None).map_err(Wrong::new)?;
        }
        Ok(kernel)
    })
}

/// Rows of so many names in a map that has room for them, as a table of the detector has.
pub(crate) fn names_in_map(count: u64) -> Result<Census, Wrong> {
    let keys = u32::try_from(count).map_err(Wrong::new)?;
    Census::kept(|| {
        let mut rows: HashMap<Name, [[f64; 4]; 1], RandomState> =
            HashMap::with_capacity_and_hasher(keys as usize, RandomState::default());
        for NamedEvent { name, time, value, .. } in (0..keys).map(event_of_name) {
            let event = Event { key: 0, sequence: 0, time, value };
            bare(rows.entry(name).or_default(), &event, &mut Vec::new());
        }
        Ok(rows)
    })
}

static TEXT: LazyLock<String> = LazyLock::new(|| {
    let mut text = String::from("key,time,value\n");
    for event in LOG.iter().take(200_000) {
        text += &format!("sensor-{},{},{:.3}\n", event.key, event.sequence, event.value);
    }
    text
});

/// Bytes of a block, as `dotcompute stream` reads them.
const BLOCK: usize = 64 * 1024;

/// Readings of the text, taken so often that they are about `operations`.
fn texts(operations: u64) -> (usize, f64) {
    let times = (operations as usize / 200_000).max(1);
    (times, operations as f64 / (times * 200_000) as f64)
}

/// Text through a parser and a detector, a kernel and a thread each.
pub(crate) fn csv(operations: u64) -> Result<Slice, Wrong> {
    let (times, factor) = texts(operations);
    LazyLock::force(&TEXT);
    let mut total = Slice::default();
    for _ in 0..times {
        let runtime = Runtime::builder().build();
        let parser = || Parser::new(Format::Csv);
        let pipeline =
            Pipeline::launch(&runtime, "thread", 16, parser, settings()).map_err(Wrong::new)?;
        let before = crate::os::preemptions_of_process();
        let start = Instant::now();
        let (mut readings, mut finished) = (0, false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for block in TEXT.as_bytes().chunks(BLOCK) {
                    let block = Block { bytes: block.to_vec(), ..Block::default() };
                    if pipeline.send_blocking(block).is_err() {
                        return;
                    }
                }
                let end = Block { end: Some(End::Complete), ..Block::default() };
                let _ = pipeline.send_blocking(end);
            });
            while !finished {
                let findings = pipeline.receive_blocking().map_err(Wrong::new)?;
                readings += findings.tally.readings;
                finished = findings.finished.is_some();
            }
            Ok(())
        })?;
        total.elapsed += start.elapsed();
        total.preemptions += crate::os::preemptions_of_process() - before;
        pipeline.end_blocking();
        expect("readings", readings, 200_000)?;
    }
    Ok(scaled(total, factor))
}

/// The text read alone, on one thread.
pub(crate) fn parse(operations: u64) -> Result<Slice, Wrong> {
    let (times, factor) = texts(operations);
    LazyLock::force(&TEXT);
    pinned(|| {
        let watch = Stopwatch::start();
        for _ in 0..times {
            let mut parser = Parser::new(Format::Csv);
            let mut readings = 0;
            for block in TEXT.as_bytes().chunks(BLOCK) {
                let mut batch = Batch::default();
                parser.feed(block, &mut batch).map_err(Wrong::new)?;
                readings += batch.tally.readings;
            }
            let mut batch = Batch::default();
            parser.finish(&mut batch).map_err(Wrong::new)?;
            expect("readings", readings + batch.tally.readings, 200_000)?;
        }
        Ok(scaled(watch.stop(), factor))
    })
}
