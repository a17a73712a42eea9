//! The detector as a compiled handler: the same as the plain one, on every executor that takes it, over
//! batches and single records, and across a snapshot.

#![allow(clippy::unwrap_used, reason = "a helper that fails is a failed test")]

use std::time::Duration;

use dotcompute::compiled::StateReader;
use dotcompute::{KernelRef, RecordBatch, Runtime, Terminate};
use dotcompute_workloads::anomaly::handler::{Alarm, Counts, Event, Keyed, KeyedError};
use dotcompute_workloads::anomaly::{Detector, Model, Settings, Verdict};

const KEYS: u32 = 50;
const LONG: Duration = Duration::from_secs(60);

fn models() -> [Settings; 3] {
    let settings = Settings::new(0.05, 3.0, 8).unwrap();
    [
        settings,
        settings.with_model(Model::Robust { window: 9 }).unwrap(),
        settings.with_model(Model::Seasonal { slots: 4, slot: 25.0 }).unwrap(),
    ]
}

/// A log with outliers, late events, and what cannot be used.
fn log(count: u32) -> Vec<Event> {
    let mut random = 7_u64;
    let mut next = move |bound: u64| {
        random =
            random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) % bound
    };
    let event = |sequence| {
        let wild = if next(50) == 0 { 100.0 } else { 1.0 };
        let late = if next(40) == 0 { 500.0 } else { 0.0 };
        Event {
            // One key in 51 is none.
            key: next(u64::from(KEYS) + 1) as u32,
            sequence,
            time: if next(200) == 0 { f64::NAN } else { f64::from(sequence) - late },
            value: if next(100) == 0 { f64::INFINITY } else { wild * (next(1000) as f64 - 500.0) },
        }
    };
    (0..count).map(event).collect()
}

/// What a plain detector makes of the log.
fn plain(settings: Settings, log: &[Event]) -> (Vec<Alarm>, Counts) {
    let mut detector = Detector::new(settings);
    let (mut alarms, mut counts) = (Vec::new(), Counts::default());
    for event in log {
        let Event { key, sequence, time, value } = *event;
        let known = (key < KEYS).then(|| detector.observe(key, time, value));
        match known {
            Some(Verdict::Usual) => counts.taken += 1,
            Some(Verdict::Unusual(anomaly)) => {
                let (expected, deviation, z) = (anomaly.expected, anomaly.deviation, anomaly.z);
                alarms.push(Alarm { key, sequence, time, value, expected, deviation, z });
                counts.taken += 1;
                counts.unusual += 1;
            }
            Some(Verdict::Late) => counts.late += 1,
            Some(Verdict::Malformed) | None => counts.malformed += 1,
        }
    }
    (alarms, counts)
}

type Kernel = KernelRef<RecordBatch, RecordBatch>;

fn launch(runtime: &Runtime, executor: &str, name: &str, keyed: &Keyed) -> (Kernel, StateReader) {
    let handler = keyed.handler();
    let state = handler.state_reader();
    let kernel = runtime.kernel(name).executor(executor).launch_compiled(handler).unwrap();
    kernel.activate().unwrap();
    (kernel, state)
}

fn ask(kernel: &Kernel, events: &[Event], batch: usize) -> Vec<Alarm> {
    let mut alarms = Vec::new();
    for piece in events.chunks(batch) {
        let reply = kernel.ask_blocking(RecordBatch::from_vec(piece.to_vec()), Some(LONG)).unwrap();
        alarms.extend_from_slice(reply.message.as_slice::<Alarm>().unwrap());
    }
    alarms
}

/// Bit for bit: a time can be no number.
fn same(found: &[Alarm], expected: &[Alarm]) -> bool {
    bytemuck::cast_slice::<Alarm, u8>(found) == bytemuck::cast_slice::<Alarm, u8>(expected)
}

#[test]
fn a_kernel_finds_what_the_plain_detector_finds_bit_for_bit() {
    let log = log(20_000);
    for settings in models() {
        let (expected, counts) = plain(settings, &log);
        assert!(counts.unusual > 100 && counts.late > 100 && counts.malformed > 100, "{counts:?}");
        let keyed = Keyed::new(settings, KEYS).unwrap();
        let mut states = Vec::new();
        for (executor, batch) in [("thread", 1000), ("thread", 7), ("async", 1000)] {
            let runtime = Runtime::builder().build();
            let (kernel, state) = launch(&runtime, executor, "detect", &keyed);
            let found = ask(&kernel, &log, batch);
            assert!(same(&found, &expected), "{:?} in batches of {batch}", settings.model());
            kernel.terminate_blocking(Terminate::drain());
            let snapshot = state.bytes(LONG).unwrap();
            assert_eq!(keyed.counts(&snapshot), Some(counts));
            assert_eq!(
                counts.taken + counts.late + counts.malformed,
                log.len() as i64,
                "every event is one of them"
            );
            states.push(snapshot);
        }
        assert!(states.iter().all(|state| *state == states[0]));
    }
}

#[test]
fn single_events_give_single_alarms() {
    let settings = Settings::new(0.1, 4.0, 5).unwrap();
    let runtime = Runtime::builder().build();
    let kernel = runtime
        .kernel("detect")
        .executor("thread")
        .launch_compiled::<Event, Alarm>(Keyed::new(settings, 2).unwrap().handler())
        .unwrap();
    kernel.activate().unwrap();
    for (sequence, value) in (0..).zip([1.0, 2.0, 1.0, 2.0, 1.0, 2.0]) {
        let event = Event { key: 1, sequence, time: 0.0, value };
        kernel.send_blocking(event, None).unwrap();
    }
    let wild = Event { key: 1, sequence: 99, time: 0.0, value: 50.0 };
    let alarm = kernel.ask_blocking(wild, Some(LONG)).unwrap().message;
    assert_eq!((alarm.key, alarm.sequence, alarm.expected), (1, 99, 1.5));
}

#[test]
fn a_snapshot_is_gone_on_from_as_if_nothing_had_been() {
    let log = log(6_000);
    let (before, after) = log.split_at(2_345);
    for settings in models() {
        let (expected, _) = plain(settings, &log);
        let runtime = Runtime::builder().build();
        let fresh = Keyed::new(settings, KEYS).unwrap();
        let (first, state) = launch(&runtime, "thread", "first", &fresh);
        let mut found = ask(&first, before, 500);
        // While it runs.
        let snapshot = state.bytes(LONG).unwrap();
        let restored = Keyed::restored(&snapshot, settings, KEYS).unwrap();
        let (second, _) = launch(&runtime, "thread", "second", &restored);
        found.extend(ask(&second, after, 500));
        assert!(same(&found, &expected), "{:?}", settings.model());
    }
    let snapshot = vec![0; 100];
    assert!(matches!(
        Keyed::restored(&snapshot, Settings::default(), KEYS),
        Err(KeyedError::Size { found: 100, .. })
    ));
}

#[test]
fn ten_million_keys_have_a_state_each() {
    let keys = 10_000_000;
    let keyed = Keyed::new(Settings::default(), keys).unwrap();
    let runtime = Runtime::builder().build();
    let (kernel, state) = launch(&runtime, "thread", "detect", &keyed);
    let event = |number: u32| Event {
        key: number.wrapping_mul(2_654_435_761) % keys,
        sequence: number,
        time: 0.0,
        value: f64::from(number),
    };
    let events: Vec<Event> = (0..100_000).map(event).collect();
    assert_eq!(ask(&kernel, &events, 10_000), []);
    let last = Event { key: keys - 1, sequence: 0, time: 0.0, value: 1.0 };
    let beyond = Event { key: keys, ..last };
    ask(&kernel, &[last, beyond], 2);
    let counts = keyed.counts(&state.bytes(LONG).unwrap()).unwrap();
    assert_eq!((counts.taken, counts.malformed), (100_001, 1));
    assert!(matches!(Keyed::new(Settings::default(), 1 << 26), Err(KeyedError::Layout(_))));
    assert!(matches!(Keyed::new(Settings::default(), 0), Err(KeyedError::Layout(_))));
}
