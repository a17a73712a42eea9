//! The detectors in a process of their own: the same alarms as on a thread, and a state that is gone on from
//! when the process dies.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a helper that fails is a failed test")]

use std::process::Command;
use std::time::Duration;

use dotcompute::compiled::{Call, HandlerCode, StateReader};
use dotcompute::process::{Coder, Kernels, Process, Processes};
use dotcompute::{
    BoxError, CompiledHandler, KernelRef, Record, RecordBatch, Restart, RestartPolicy, Runtime,
    Terminate,
};
use dotcompute_workloads::anomaly::handler::{self, Alarm, Event, Keyed};
use dotcompute_workloads::anomaly::named::{Named, NamedAlarm, NamedEvent, name};
use dotcompute_workloads::anomaly::{Model, Settings};

const KEYS: u32 = 200;
const LONG: Duration = Duration::from_secs(60);

/// The sequence of an event at which a process dies.
const FATAL: u32 = u32::MAX;

fn settings() -> Settings {
    Settings::new(0.05, 3.0, 8).unwrap().with_model(Model::Robust { window: 9 }).unwrap()
}

fn keyed() -> Keyed {
    Keyed::new(settings(), KEYS).unwrap()
}

fn named() -> Named {
    Named::new(settings(), KEYS).unwrap()
}

/// The detector's own code, but for what kills it when it has taken half of a message up.
struct Mortal(Box<dyn HandlerCode>);

impl HandlerCode for Mortal {
    fn run(&self, call: &mut Call<'_>) -> Result<(), BoxError> {
        let events: &[Event] = bytemuck::cast_slice(call.input());
        let is_fatal = events.iter().any(|event| event.sequence == FATAL);
        self.0.run(call)?;
        if is_fatal {
            std::process::abort();
        }
        Ok(())
    }
}

fn mortal() -> CompiledHandler {
    let code = Mortal(handler::code(settings().model()));
    let state = keyed().handler().state_reader().bytes(Duration::ZERO).unwrap();
    CompiledHandler::from_code(Box::new(code), Event::LAYOUT)
        .output(Alarm::LAYOUT)
        .state_bytes(keyed().layout(), &state)
}

fn processes() -> Processes {
    let coders = |of, to| (Coder::records(of), Coder::records(to));
    let (events, alarms) = coders(Event::LAYOUT, Alarm::LAYOUT);
    let (named_events, named_alarms) = coders(NamedEvent::LAYOUT, NamedAlarm::LAYOUT);
    Kernels::new()
        .compiled("keyed", events, alarms, |_| Ok(mortal()))
        .compiled("named", named_events, named_alarms, |_| Ok(named().handler()))
        .command(|| {
            let mut command = Command::new(std::env::current_exe()?);
            command.args(["--exact", "child_main", "--nocapture"]);
            Ok(command)
        })
        .child_main()
}

/// No test: where children of this program come to.
#[test]
fn child_main() {
    let _ = processes();
}

type Kernel = KernelRef<RecordBatch, RecordBatch>;

fn launch(entry: &str) -> (Runtime, Kernel, StateReader) {
    let processes = processes();
    let runtime = Runtime::builder().executor(processes.executor()).build();
    let restart = Restart {
        policy: RestartPolicy::OnFault,
        max_restarts: 10,
        backoff: Duration::ZERO,
        ..Restart::default()
    };
    let builder = runtime.kernel("detect").executor("process").restart(restart);
    let (kernel, state) = processes.launch_compiled(builder, Process::new(entry)).unwrap();
    kernel.activate().unwrap();
    (runtime, kernel, state)
}

fn thread(handler: CompiledHandler) -> (Runtime, Kernel, StateReader) {
    let runtime = Runtime::builder().build();
    let state = handler.state_reader();
    let kernel = runtime.kernel("detect").executor("thread").launch_compiled(handler).unwrap();
    kernel.activate().unwrap();
    (runtime, kernel, state)
}

fn ask<E: Record, A: Record>(kernel: &Kernel, events: &[E]) -> Vec<A> {
    let mut alarms = Vec::new();
    for piece in events.chunks(700) {
        let reply = kernel.ask_blocking(RecordBatch::from_vec(piece.to_vec()), Some(LONG)).unwrap();
        alarms.extend_from_slice(reply.message.as_slice::<A>().unwrap());
    }
    alarms
}

fn log() -> Vec<Event> {
    let mut random = 7_u64;
    let mut next = move |bound: u64| {
        random =
            random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) % bound
    };
    let event = |sequence| Event {
        key: next(u64::from(KEYS)) as u32,
        sequence,
        time: f64::from(sequence) - if next(40) == 0 { 9000.0 } else { 0.0 },
        value: next(1000) as f64 * if next(50) == 0 { 100.0 } else { 1.0 },
    };
    (0..20_000).map(event).collect()
}

fn named_log() -> Vec<NamedEvent> {
    let named = |event: &Event| NamedEvent {
        name: name(&format!("sensor {}", event.key)).unwrap(),
        sequence: event.sequence.into(),
        time: event.time,
        value: event.value,
    };
    log().iter().map(named).collect()
}

#[test]
fn a_process_finds_what_a_thread_finds_bit_for_bit() {
    let (_near, here, here_state) = thread(keyed().handler());
    let (_far, there, there_state) = launch("keyed");
    let (expected, found): (Vec<Alarm>, Vec<Alarm>) = (ask(&here, &log()), ask(&there, &log()));
    assert!(expected.len() > 100);
    assert!(found == expected);
    for kernel in [here, there] {
        kernel.terminate_blocking(Terminate::drain());
    }
    assert!(here_state.bytes(LONG).unwrap() == there_state.bytes(LONG).unwrap());

    let (_near, here, here_state) = thread(named().handler());
    let (_far, there, there_state) = launch("named");
    let expected: Vec<NamedAlarm> = ask(&here, &named_log());
    assert!(expected.len() > 100);
    assert!(ask::<_, NamedAlarm>(&there, &named_log()) == expected);
    assert!(here_state.bytes(LONG).unwrap() == there_state.bytes(LONG).unwrap());
}

#[test]
fn a_process_that_dies_is_followed_by_one_that_goes_on_from_its_last_message() {
    let log = log();
    let (before, after) = log.split_at(9_100);
    let (_near, here, _) = thread(keyed().handler());
    let expected: Vec<Alarm> = ask(&here, &log);
    let (_far, there, state) = launch("keyed");
    let mut found: Vec<Alarm> = ask(&there, before);
    let kept = state.bytes(LONG).unwrap();
    // It takes the whole message up, and dies before anyone hears of it.
    let mut fatal = after[..500].to_vec();
    fatal[250].sequence = FATAL;
    there.ask_blocking(RecordBatch::from_vec(fatal), Some(LONG)).unwrap_err();
    assert!(state.bytes(LONG).unwrap() == kept);
    found.extend(ask::<_, Alarm>(&there, after));
    assert!(found == expected);
}
