//! The detector over keys that are names: what the one over numbers finds, name by name and bit for bit,
//! until its table is full, and across a snapshot.

#![allow(clippy::unwrap_used, reason = "a helper that fails is a failed test")]

use std::collections::HashMap;
use std::time::Duration;

use dotcompute::compiled::StateReader;
use dotcompute::{KernelRef, RecordBatch, Runtime, Terminate};
use dotcompute_workloads::anomaly::handler::{Counts, KeyedError};
use dotcompute_workloads::anomaly::named::{Name, Named, NamedAlarm, NamedEvent, name};
use dotcompute_workloads::anomaly::{Detector, Model, Settings, Verdict};

const LONG: Duration = Duration::from_secs(60);

fn models() -> [Settings; 3] {
    let settings = Settings::new(0.05, 3.0, 8).unwrap();
    [
        settings,
        settings.with_model(Model::Robust { window: 9 }).unwrap(),
        settings.with_model(Model::Seasonal { slots: 4, slot: 250.0 }).unwrap(),
    ]
}

fn name_of(key: u64) -> Name {
    name(&format!("hall {}, sensor {key}", key % 7)).unwrap()
}

/// A log with outliers, late events, and what cannot be used, over so many names.
fn log(keys: u64, count: u32) -> Vec<NamedEvent> {
    let mut random = 7_u64;
    let mut next = move |bound: u64| {
        random =
            random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) % bound
    };
    let event = |sequence| {
        let wild = if next(50) == 0 { 100.0 } else { 1.0 };
        let late = if next(40) == 0 { 5000.0 } else { 0.0 };
        NamedEvent {
            // One in two hundred has no name.
            name: if next(200) == 0 { [0; 6] } else { name_of(next(keys)) },
            sequence: u64::from(sequence),
            time: if next(200) == 0 { f64::NAN } else { f64::from(sequence) - late },
            value: if next(100) == 0 { f64::INFINITY } else { wild * (next(1000) as f64 - 500.0) },
        }
    };
    (0..count).map(event).collect()
}

/// What a plain detector makes of the log, whose keys are the names by the order of their appearance.
fn plain(settings: Settings, log: &[NamedEvent]) -> (Vec<NamedAlarm>, Counts, usize) {
    let mut numbers: HashMap<Name, u32> = HashMap::new();
    let mut taken = std::collections::HashSet::new();
    let mut detector = Detector::new(settings);
    let (mut alarms, mut counts) = (Vec::new(), Counts::default());
    for event in log {
        let NamedEvent { name, sequence, time, value } = *event;
        if name == [0; 6] {
            counts.malformed += 1;
            continue;
        }
        let next = numbers.len() as u32;
        let key = *numbers.entry(name).or_insert(next);
        let verdict = detector.observe(key, time, value);
        if matches!(verdict, Verdict::Usual | Verdict::Unusual(_)) {
            taken.insert(key);
            counts.taken += 1;
        }
        match verdict {
            Verdict::Usual => {}
            Verdict::Unusual(anomaly) => {
                let (expected, deviation, z) = (anomaly.expected, anomaly.deviation, anomaly.z);
                alarms.push(NamedAlarm { name, sequence, time, value, expected, deviation, z });
                counts.unusual += 1;
            }
            Verdict::Late => counts.late += 1,
            Verdict::Malformed => counts.malformed += 1,
        }
    }
    (alarms, counts, taken.len())
}

type Kernel = KernelRef<RecordBatch, RecordBatch>;

fn launch(runtime: &Runtime, name: &str, named: &Named) -> (Kernel, StateReader) {
    let handler = named.handler();
    let state = handler.state_reader();
    let kernel = runtime.kernel(name).executor("thread").launch_compiled(handler).unwrap();
    kernel.activate().unwrap();
    (kernel, state)
}

fn ask(kernel: &Kernel, events: &[NamedEvent], batch: usize) -> Vec<NamedAlarm> {
    let mut alarms = Vec::new();
    for piece in events.chunks(batch) {
        let reply = kernel.ask_blocking(RecordBatch::from_vec(piece.to_vec()), Some(LONG)).unwrap();
        alarms.extend_from_slice(reply.message.as_slice::<NamedAlarm>().unwrap());
    }
    alarms
}

/// Bit for bit: a time can be no number.
fn same(found: &[NamedAlarm], expected: &[NamedAlarm]) -> bool {
    bytemuck::cast_slice::<NamedAlarm, u8>(found)
        == bytemuck::cast_slice::<NamedAlarm, u8>(expected)
}

#[test]
fn names_have_what_numbers_have_bit_for_bit() {
    // Few names and many events each; ten thousand names, in a table that they fill to the last.
    for (settings, keys, count) in models()
        .into_iter()
        .map(|settings| (settings, 50, 20_000))
        .chain([(models()[0], 10_000, 300_000)])
    {
        let log = log(keys, count);
        let (expected, counts, names) = plain(settings, &log);
        assert!(counts.unusual > 100 && counts.late > 100 && counts.malformed > 100, "{counts:?}");
        assert_eq!(names as u64, keys);
        let named = Named::new(settings, keys as u32).unwrap();
        let runtime = Runtime::builder().build();
        let mut states = Vec::new();
        for batch in [1000, 7] {
            let (kernel, state) = launch(&runtime, "detect", &named);
            assert!(same(&ask(&kernel, &log, batch), &expected), "{:?}", settings.model());
            kernel.terminate_blocking(Terminate::drain());
            states.push(state.bytes(LONG).unwrap());
        }
        assert_eq!(named.counts(&states[0]), Some(counts));
        assert_eq!(counts.taken + counts.late + counts.malformed, log.len() as i64);
        assert!(states[0] == states[1]);
        let mut found = named.names(&states[0]).unwrap();
        let mut all: Vec<Name> = (0..keys).map(name_of).collect();
        found.sort_unstable();
        all.sort_unstable();
        assert!(found == all);
    }
}

#[test]
fn a_name_too_many_is_a_fault_that_says_so_and_costs_no_other_event() {
    let settings = Settings::new(0.1, 4.0, 5).unwrap();
    let named = Named::new(settings, 3).unwrap();
    let runtime = Runtime::builder().build();
    let (kernel, state) = launch(&runtime, "detect", &named);
    let event =
        |of: &str, value| NamedEvent { name: name(of).unwrap(), sequence: 0, time: 0.0, value };
    let fine = ["a", "b", "c", "a"].map(|of| event(of, 1.0));
    // What is malformed needs no room.
    ask(&kernel, &[&fine[..], &[event("d", f64::NAN)]].concat(), 10);
    let batch = [event("b", 2.0), event("doors of hall 7", 1.0), event("c", 2.0)];
    let refused = kernel.ask_blocking(RecordBatch::from_vec(batch.to_vec()), Some(LONG));
    let said = format!("{:#}", refused.unwrap_err());
    for part in ["the table of names is full", "room for 3", "'doors of hall 7'", "record 1 of 3"] {
        assert!(said.contains(part), "{part}: {said}");
    }
    let snapshot = state.bytes(LONG).unwrap();
    let counts = named.counts(&snapshot).unwrap();
    assert_eq!((counts.taken, counts.malformed), (5, 1), "those before it are taken up");
    assert_eq!(named.names(&snapshot).unwrap().len(), 3);
}

#[test]
fn a_snapshot_is_gone_on_from_as_if_nothing_had_been() {
    let log = log(500, 20_000);
    let (before, after) = log.split_at(7_345);
    for settings in models() {
        let (expected, ..) = plain(settings, &log);
        let runtime = Runtime::builder().build();
        let fresh = Named::new(settings, 600).unwrap();
        let (first, state) = launch(&runtime, "first", &fresh);
        let mut found = ask(&first, before, 500);
        // While it runs.
        let snapshot = state.bytes(LONG).unwrap();
        let restored = Named::restored(&snapshot, settings, 600).unwrap();
        let (second, _) = launch(&runtime, "second", &restored);
        found.extend(ask(&second, after, 500));
        assert!(same(&found, &expected), "{:?}", settings.model());
        let refused = Named::restored(&snapshot[8..], settings, 600).unwrap_err();
        assert!(matches!(refused, KeyedError::Size { .. }), "{refused}");
    }
}

#[test]
fn a_state_that_no_detector_wrote_is_a_fault_and_no_endless_search() {
    let settings = Settings::new(0.1, 4.0, 5).unwrap();
    let named = Named::new(settings, 10).unwrap();
    let wild = vec![0x5A; named.layout().bytes];
    let restored = Named::restored(&wild, settings, 10).unwrap();
    let runtime = Runtime::builder().build();
    let (kernel, _) = launch(&runtime, "detect", &restored);
    let event = NamedEvent { name: name("a").unwrap(), sequence: 0, time: 0.0, value: 1.0 };
    let refused = kernel.ask_blocking(RecordBatch::from_vec(vec![event]), Some(LONG)).unwrap_err();
    assert!(format!("{refused:#}").contains("the table of names is full"), "{refused:#}");
}

/// Ten million names where the program is compiled for speed, half a million elsewhere.
#[test]
fn ten_million_names_have_a_state_each() {
    let keys: u32 = if cfg!(debug_assertions) { 500_000 } else { 10_000_000 };
    let named = Named::new(Settings::default(), 10_000_000).unwrap();
    let runtime = Runtime::builder().build();
    let (kernel, state) = launch(&runtime, "detect", &named);
    let event = |number: u32| NamedEvent {
        name: name_of(u64::from(number)),
        sequence: u64::from(number),
        time: 0.0,
        value: f64::from(number),
    };
    for turn in 0..2 {
        for start in (0..keys).step_by(50_000) {
            let events: Vec<NamedEvent> = (start..(start + 50_000).min(keys)).map(event).collect();
            assert_eq!(ask(&kernel, &events, 50_000), [], "turn {turn}");
        }
    }
    let snapshot = state.bytes(LONG).unwrap();
    assert_eq!(named.counts(&snapshot).unwrap().taken, 2 * i64::from(keys));
    assert_eq!(named.names(&snapshot).unwrap().len(), keys as usize);
    assert!(matches!(Named::new(Settings::default(), 1 << 24), Err(KeyedError::Layout(_))));
    assert!(matches!(Named::new(Settings::default(), 0), Err(KeyedError::Layout(_))));
}
