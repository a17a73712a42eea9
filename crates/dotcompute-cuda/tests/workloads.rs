//! The kernels of the workloads on the host: their own sources, compiled by the host's compiler, against
//! what the workloads compute on the processor.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a helper that fails is a failed test")]

use std::ops::ControlFlow;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use dotcompute_core::{KernelRef, Record, RecordBatch, Runtime};
use dotcompute_mailbox::sync::Ordering;
use dotcompute_mailbox::sync::unmodelled::AtomicU32;
use dotcompute_workloads::anomaly::handler::{Alarm, Event, Keyed};
use dotcompute_workloads::anomaly::named::{NAME_BYTES, Name, Named, NamedAlarm, NamedEvent, name};
use dotcompute_workloads::anomaly::{Detector, Settings, Verdict};
use dotcompute_workloads::pagerank::{Graph, Query, generate};
use libloading::Library;

type At = unsafe extern "C" fn(u32, u32);
type Ewma = unsafe extern "C" fn(*const Event, u32, *mut u8, u32, *mut Alarm, *mut u32, *mut u32);

/// Compiles a source of the kernels for the host, without fusing what is to be rounded twice.
fn compile(name: &str) -> Library {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("kernels/{name}.cu"));
    // Several tests of this process compile the same source.
    static COMPILED: AtomicU32 = AtomicU32::new(0);
    let number = COMPILED.fetch_add(1, Ordering::Relaxed);
    let unique = format!("lib{name}-{}-{number}.so", std::process::id());
    let library = Path::new(env!("CARGO_TARGET_TMPDIR")).join(unique);
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".into());
    let done = Command::new(&compiler)
        .args(["-std=c++20", "-O1", "-g", "-fPIC", "-Wall", "-Wextra", "-Werror"])
        .args(["-ffp-contract=off", "-shared", "-x", "c++"])
        .arg(source)
        .arg("-o")
        .arg(&library)
        .output()
        .unwrap_or_else(|error| panic!("cannot run {compiler}: {error}"));
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    // SAFETY: compiled above; its initialisers are those of the C++ library.
    let loaded = unsafe { Library::new(&library) }.unwrap();
    std::fs::remove_file(library).unwrap();
    loaded
}

/// A function of the library.
fn symbol<T: Copy>(library: &Library, name: &str) -> T {
    // SAFETY: each caller names the type that the source gives it.
    *unsafe { library.get::<T>(name.as_bytes()) }.unwrap()
}

/// A log with outliers, late events and what cannot be used; some keys are beyond `keys`.
fn log(keys: u32, count: u32) -> Vec<Event> {
    let mut random = 7_u64;
    let mut next = move |bound: u64| {
        random =
            random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) % bound
    };
    let event = |sequence| {
        let wild = if next(50) == 0 { 100.0 } else { 1.0 };
        let late = if next(40) == 0 { 5000.0 } else { 0.0 };
        Event {
            key: next(u64::from(keys) + 2) as u32,
            sequence,
            time: if next(200) == 0 { f64::NAN } else { f64::from(sequence) - late },
            value: if next(100) == 0 { f64::INFINITY } else { wild * (next(1000) as f64 - 500.0) },
        }
    };
    (0..count).map(event).collect()
}

#[test]
fn the_detector_finds_on_a_grid_what_it_finds_on_the_processor_bit_for_bit() {
    let library = compile("anomaly");
    let at: At = symbol(&library, "dc_twin_at");
    let ewma: Ewma = symbol(&library, "anomaly_ewma");
    let settings = Settings::new(0.05, 3.0, 8).unwrap();
    // Fewer keys than blocks, more keys of a block than threads, and a grid of one block.
    for (keys, blocks) in [(3, 8), (5000, 7), (1000, 1)] {
        let log = log(keys, 40_000);
        let mut detector = Detector::new(settings);
        let mut expected = Vec::new();
        let (mut late, mut malformed) = (0, 0);
        for event in &log {
            let Event { key, sequence, time, value } = *event;
            let known = (key < keys).then(|| detector.observe(key, time, value));
            match known {
                Some(Verdict::Usual) => {}
                Some(Verdict::Unusual(found)) => expected.push(Alarm {
                    key,
                    sequence,
                    time,
                    value,
                    expected: found.expected,
                    deviation: found.deviation,
                    z: found.z,
                }),
                Some(Verdict::Late) => late += 1,
                Some(Verdict::Malformed) | None => malformed += 1,
            }
        }
        assert!(expected.len() > 100 && late > 100 && malformed > 100, "{late} {malformed}");

        let keyed = Keyed::new(settings, keys).unwrap();
        let reader = keyed.handler().state_reader();
        let mut state = reader.bytes(std::time::Duration::ZERO).unwrap();
        let mut words = vec![0_u64; state.len().div_ceil(8)];
        bytemuck::cast_slice_mut(&mut words)[..state.len()].copy_from_slice(&state);
        let mut found = Vec::new();
        // Batches that end in the middle of a tile, and one of a single event.
        let pieces = log.chunks(17_001).map(|piece| piece.split_at(1));
        for batch in pieces.flat_map(|(one, rest)| [one, rest]) {
            let mut alarms = vec![bytemuck::Zeroable::zeroed(); batch.len()];
            let (mut order, mut made) = (vec![0_u32; batch.len()], 0_u32);
            for block in 0..blocks {
                // SAFETY: it sets a variable of this thread's.
                unsafe { at(block, blocks) };
                // SAFETY: the arguments that the source names, each as large as it says.
                unsafe {
                    ewma(
                        batch.as_ptr(),
                        batch.len() as u32,
                        words.as_mut_ptr().cast(),
                        keys,
                        alarms.as_mut_ptr(),
                        order.as_mut_ptr(),
                        &raw mut made,
                    );
                }
            }
            let mut of_batch: Vec<(u32, Alarm)> =
                order.into_iter().zip(alarms).take(made as usize).collect();
            of_batch.sort_by_key(|(event, _)| *event);
            found.extend(of_batch.into_iter().map(|(_, alarm)| alarm));
        }
        let bytes =
            |alarms: &[Alarm]| alarms.iter().flat_map(|a| a.bytes().to_vec()).collect::<Vec<u8>>();
        assert!(bytes(&found) == bytes(&expected), "{keys} keys on {blocks} blocks");
        let bytes = state.len();
        state.copy_from_slice(&bytemuck::cast_slice(&words)[..bytes]);
        let counts = keyed.counts(&state).unwrap();
        assert_eq!((counts.late, counts.malformed), (late, malformed));
        assert_eq!(counts.unusual, expected.len() as i64);
        assert_eq!(counts.taken + late + malformed, log.len() as i64);
        // The state is one that the processor goes on from.
        let restored = Keyed::restored(&state, settings, keys).unwrap();
        assert_eq!(restored.handler().state_reader().bytes(std::time::Duration::ZERO), Some(state));
    }
}

/// What `anomaly_find` makes of an event.
type Placed = Event;
type Find = unsafe extern "C" fn(*const NamedEvent, u32, *const Name, u32, *mut Placed, *mut u32);
type Insert = unsafe extern "C" fn(
    *const NamedEvent,
    u32,
    *mut Name,
    u32,
    *mut u8,
    *mut Placed,
    *const u32,
    *mut u32,
);

/// The state of a detector of names in memory of a device, and the kernels that work on it.
struct NamedDevice<'a> {
    names: &'a Library,
    ewma: &'a Library,
    words: Vec<u64>,
    places: u32,
}

impl NamedDevice<'_> {
    /// Takes a batch up; says its alarms, and how many of its events there was room for.
    fn detect(&mut self, batch: &[NamedEvent], blocks: u32) -> (Vec<NamedAlarm>, usize) {
        let (count, places) = (batch.len() as u32, self.places);
        let state: *mut u8 = self.words.as_mut_ptr().cast();
        // SAFETY: 64 bytes of settings and counts, and 32 a place.
        let fill = unsafe { state.add(64 + 32 * places as usize) };
        // SAFETY: 16 bytes say how full the table is.
        let names: *mut Name = unsafe { fill.add(16) }.cast();
        let mut placed: Vec<Placed> = vec![bytemuck::Zeroable::zeroed(); batch.len()];
        let (mut unknown, mut usable) = (0_u32, 0_u32);
        let find: Find = symbol(self.names, "anomaly_find");
        let insert: Insert = symbol(self.names, "anomaly_insert");
        let at: At = symbol(self.names, "dc_twin_at");
        for block in 0..blocks {
            // SAFETY: it sets a variable of this thread's.
            unsafe { at(block, blocks) };
            let (to, new) = (placed.as_mut_ptr(), &raw mut unknown);
            // SAFETY: the arguments that the source names, each as large as it says.
            unsafe { find(batch.as_ptr(), count, names, places, to, new) };
        }
        // SAFETY: as above.
        unsafe { at(0, 1) };
        let (to, new) = (placed.as_mut_ptr(), &raw const unknown);
        // SAFETY: the arguments that the source names, each as large as it says.
        unsafe { insert(batch.as_ptr(), count, names, places, fill, to, new, &raw mut usable) };

        let ewma: Ewma = symbol(self.ewma, "anomaly_ewma");
        let at: At = symbol(self.ewma, "dc_twin_at");
        let mut alarms: Vec<Alarm> = vec![bytemuck::Zeroable::zeroed(); batch.len()];
        let (mut order, mut made) = (vec![0_u32; batch.len()], 0_u32);
        for block in 0..blocks {
            let (alarms, order) = (alarms.as_mut_ptr(), order.as_mut_ptr());
            // SAFETY: it sets a variable of this thread's.
            unsafe { at(block, blocks) };
            // SAFETY: the arguments that the source names, each as large as it says.
            unsafe { ewma(placed.as_ptr(), usable, state, places, alarms, order, &raw mut made) };
        }
        alarms.truncate(made as usize);
        alarms.sort_by_key(|alarm| alarm.sequence);
        let named = |alarm: Alarm| {
            let NamedEvent { name, sequence, time, value } = batch[alarm.sequence as usize];
            let Alarm { expected, deviation, z, .. } = alarm;
            NamedAlarm { name, sequence, time, value, expected, deviation, z }
        };
        (alarms.into_iter().map(named).collect(), usable as usize)
    }
}

fn named_log(keys: u32, count: u32) -> Vec<NamedEvent> {
    let name_of = |key: u32| match key {
        // What is no key has no name.
        none if none >= keys => [0; 6],
        key => name(&format!("hall {}, sensor {key}", key % 7)).unwrap(),
    };
    let named = |event: Event| NamedEvent {
        name: name_of(event.key),
        sequence: u64::from(event.sequence) << 20,
        time: event.time,
        value: event.value,
    };
    log(keys, count).into_iter().map(named).collect()
}

/// The bytes of the alarms: a time can be no number.
fn bytes_of(alarms: &[NamedAlarm]) -> Vec<u8> {
    alarms.iter().flat_map(|alarm| alarm.bytes().to_vec()).collect()
}

#[test]
fn names_have_on_a_grid_the_alarms_and_the_table_that_they_have_on_the_processor_bit_for_bit() {
    let (names, ewma) = (compile("anomaly_names"), compile("anomaly"));
    let settings = Settings::new(0.05, 3.0, 8).unwrap();
    // A table that is filled to the last, one with room to spare, and one that is too small.
    for (keys, room, blocks) in [(3000, 3000, 7), (50, 400, 3), (3000, 2000, 5)] {
        let log = named_log(keys, 40_000);
        let named = Named::new(settings, room).unwrap();
        let handler = named.handler();
        let reader = handler.state_reader();
        let state = reader.bytes(Duration::ZERO).unwrap();
        let mut words = vec![0_u64; state.len() / 8];
        bytemuck::cast_slice_mut(&mut words).copy_from_slice(&state);
        let places = ((state.len() - 80) / (32 + NAME_BYTES)) as u32;
        let mut device = NamedDevice { names: &names, ewma: &ewma, words, places };

        let runtime = Runtime::builder().build();
        let kernel: KernelRef<RecordBatch, RecordBatch> =
            runtime.kernel("detect").executor("thread").launch_compiled(handler).unwrap();
        kernel.activate().unwrap();
        let mut is_full = false;
        // Batches that end in the middle of a tile, and one of a single event.
        let pieces = log.chunks(9_001).map(|piece| piece.split_at(1));
        for batch in pieces.flat_map(|(one, rest)| [one, rest]) {
            let (found, usable) = device.detect(batch, blocks);
            let asked = RecordBatch::from_vec(batch.to_vec());
            match kernel.ask_blocking(asked, Some(Duration::from_secs(60))) {
                Ok(reply) => {
                    assert_eq!(usable, batch.len());
                    let expected = reply.message.as_slice::<NamedAlarm>().unwrap();
                    assert!(bytes_of(&found) == bytes_of(expected), "{keys} keys, {room} room");
                }
                Err(error) => {
                    let said = format!("{error:#}");
                    assert!(said.contains("the table of names is full"), "{said}");
                    assert!(
                        said.contains(&format!("record {usable} of {}", batch.len())),
                        "{said}"
                    );
                    is_full = true;
                    break;
                }
            }
        }
        assert_eq!(is_full, room < keys);
        let state = reader.bytes(Duration::from_secs(60)).unwrap();
        assert!(
            bytemuck::cast_slice::<u64, u8>(&device.words) == state,
            "{keys} keys, {room} room"
        );
        assert!(named.names(&state).unwrap().len() as u32 == keys.min(room));
    }
}

#[repr(C)]
#[derive(Clone, Copy)]
struct DeviceGraph {
    starts: *const u32,
    sources: *const u32,
    inverse: *const f32,
    nodes: u32,
    long_rows: u32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct DeviceQuery {
    damping: f64,
    tolerance: f64,
    max_iterations: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Default, Debug)]
struct DeviceAnswer {
    change: f64,
    iterations: u32,
}

type Rank = unsafe extern "C" fn(
    DeviceGraph,
    DeviceQuery,
    *mut f32,
    *mut f32,
    *mut f32,
    *mut f64,
    *mut u32,
    *mut DeviceAnswer,
);

#[test]
fn a_graph_is_ranked_on_a_grid_as_on_the_processor() {
    let library = compile("pagerank");
    let rank: Rank = symbol(&library, "pagerank");
    for (nodes, edges) in [
        (1 << 10, generate::kronecker(10, 8, 3)),
        (5000, generate::uniform(5000, 20_000, 4)),
        (1, vec![[0, 0]]),
    ] {
        let mut rows: Vec<Vec<u32>> = vec![Vec::new(); nodes as usize];
        let mut degrees = vec![0_u32; nodes as usize];
        for [source, target] in &edges {
            rows[*target as usize].push(*source);
            degrees[*source as usize] += 1;
        }
        let mut starts = vec![0_u32];
        rows.iter().for_each(|row| starts.push(starts[starts.len() - 1] + row.len() as u32));
        let sources: Vec<u32> = rows.into_iter().flatten().collect();
        let inverse: Vec<f32> =
            degrees.iter().map(|d| if *d == 0 { 0.0 } else { 1.0 / *d as f32 }).collect();
        let graph = Graph::build(nodes, &edges).unwrap();
        for (tolerance, max_iterations) in [(1e-6, 100), (0.0, 7), (0.0, 0)] {
            let query = Query { tolerance, max_iterations, ..Query::default() };
            let expected = graph.rank::<f64>(&query, &mut |_| ControlFlow::Continue(())).unwrap();
            let mut ranks = vec![0_f32; nodes as usize];
            let (mut contributed, mut next) = (ranks.clone(), ranks.clone());
            let (mut partials, mut barrier) = ([0_f64; 4], 0_u32);
            let mut answer = DeviceAnswer::default();
            let on_device = DeviceGraph {
                starts: starts.as_ptr(),
                sources: sources.as_ptr(),
                inverse: inverse.as_ptr(),
                nodes,
                long_rows: 0,
            };
            let asked = DeviceQuery { damping: query.damping, tolerance, max_iterations };
            // SAFETY: the arguments that the source names, each as large as it says, for a grid of
            // one block.
            unsafe {
                rank(
                    on_device,
                    asked,
                    ranks.as_mut_ptr(),
                    contributed.as_mut_ptr(),
                    next.as_mut_ptr(),
                    partials.as_mut_ptr(),
                    &raw mut barrier,
                    &raw mut answer,
                );
            }
            assert!(answer.iterations.abs_diff(expected.iterations) <= 1, "{answer:?}");
            let distance: f64 = ranks
                .iter()
                .zip(&expected.scores)
                .map(|(found, expected)| (f64::from(*found) - expected).abs())
                .sum();
            assert!(distance < 2e-6, "{distance} after {answer:?}");
            let sum: f64 = ranks.iter().map(|rank| f64::from(*rank)).sum();
            assert!((sum - 1.0).abs() < 1e-5, "{sum}");
        }
    }
}
