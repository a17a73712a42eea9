//! Compiled handlers in processes of their own, and their state in shared memory.

#![cfg(target_os = "linux")]
#![expect(clippy::unwrap_used, reason = "a test")]

use std::ffi::c_void;
use std::process::Command;
use std::time::{Duration, Instant};

use dotcompute_core::abi::HandlerContext;
use dotcompute_core::compiled::{CompiledHandler, RecordBatch, StateReader};
use dotcompute_core::record::Record;
use dotcompute_core::{
    AskError, Context, FaultKind, KernelRef, LaunchError, Message, Restart, RestartPolicy, Runtime,
    Terminate,
};
use dotcompute_process::{Coder, Kernels, Process, Processes};
use rustix::process::{Pid, Signal, kill_process};

#[derive(Clone, Copy, Debug, PartialEq, Message)]
#[message(record, crate = "dotcompute_core")]
#[repr(C)]
struct Amount {
    value: i64,
    process: i64,
}

impl Amount {
    fn of(value: i64) -> Self {
        Self { value, process: 0 }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Message)]
#[message(record, crate = "dotcompute_core")]
#[repr(C)]
struct Account {
    sum: i64,
    count: i64,
    /// The sum again, written last.
    again: i64,
}

const FAULT: i64 = -1;
const DIE: i64 = -2;
const SILENT: i64 = -3;

/// Adds up, and replies with the sum and its process; fails, dies or is silent at some values; sends
/// values from 1,000,000 on to its target.
unsafe extern "C" fn add(
    message: *const c_void,
    state: *mut c_void,
    reply: *mut c_void,
    context: *mut HandlerContext,
) -> i32 {
    // SAFETY: the runtime passes an `Amount`.
    let message = unsafe { &*message.cast::<Amount>() };
    // SAFETY: the runtime passes an `Account`.
    let state = unsafe { &mut *state.cast::<Account>() };
    // SAFETY: the runtime passes room for an `Amount`.
    let reply = unsafe { &mut *reply.cast::<Amount>() };
    // What fails has written before.
    state.count += 1;
    match message.value {
        FAULT => return -77,
        DIE => std::process::abort(),
        SILENT => return 0,
        _ => {}
    }
    state.sum += message.value;
    state.again = state.sum;
    if message.value >= 1_000_000 {
        // SAFETY: the runtime passes a context.
        let calls = unsafe { (*context).calls };
        // SAFETY: the table lives as long as the program.
        let calls = unsafe { &*calls };
        // SAFETY: the context is this handler's own, and the record is of the target's layout.
        unsafe { (calls.send)(context, 0, std::ptr::from_ref(message).cast()) };
    }
    *reply = Amount { value: state.sum, process: std::process::id().into() };
    1
}

fn handler() -> CompiledHandler {
    // SAFETY: `add` takes an `Amount` and replies with one, over a state that is an `Account`.
    unsafe { CompiledHandler::from_raw(add, Amount::LAYOUT) }
        .output(Amount::LAYOUT)
        .state(&Account { sum: 0, count: 0, again: 0 })
        .target::<Amount>("vault", Amount::LAYOUT)
}

fn processes() -> Processes {
    let batches = || Coder::records(Amount::LAYOUT);
    Kernels::new()
        .compiled(
            "account",
            Coder::<Amount>::record(),
            Coder::<Amount>::record(),
            |_| Ok(handler()),
        )
        .compiled("batches", batches(), batches(), |_| Ok(handler()))
        .compiled("other", Coder::<Account>::record(), Coder::<Amount>::record(), |_| Ok(handler()))
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

const WAIT: Option<Duration> = Some(Duration::from_secs(60));

fn patient() -> Restart {
    Restart {
        policy: RestartPolicy::OnFault,
        max_restarts: u32::MAX,
        backoff: Duration::ZERO,
        redeliver: true,
        ..Restart::default()
    }
}

fn launch(
    runtime: &Runtime,
    processes: &Processes,
    restart: impl Into<Restart>,
    window: usize,
) -> (KernelRef<Amount, Amount>, StateReader) {
    let builder = runtime.kernel("account").executor("process").restart(restart);
    let process = Process::new("account").window(window).slots(128);
    let (kernel, state) = processes.launch_compiled(builder, process).unwrap();
    kernel.activate().unwrap();
    (kernel, state)
}

fn stage() -> (Runtime, Processes) {
    let processes = processes();
    (Runtime::builder().executor(processes.executor()).build(), processes)
}

fn read(state: &StateReader) -> Account {
    state.read(Duration::from_secs(60)).unwrap()
}

#[test]
fn a_compiled_handler_in_a_process_answers_and_its_state_is_read_here() {
    let (runtime, processes) = stage();
    let (account, state) = launch(&runtime, &processes, RestartPolicy::Never, 1);
    assert_eq!(read(&state), Account { sum: 0, count: 0, again: 0 });
    let first = account.ask_blocking(Amount::of(2), WAIT).unwrap().message;
    let second = account.ask_blocking(Amount::of(40), WAIT).unwrap().message;
    assert_eq!((first.value, second.value), (2, 42));
    assert_ne!(first.process, i64::from(std::process::id()));
    // Committed before the reply was published.
    assert_eq!(read(&state), Account { sum: 42, count: 2, again: 42 });
    account.try_send(Amount::of(SILENT)).unwrap();
    account.terminate_blocking(Terminate::drain());
    assert_eq!(read(&state).count, 3, "its last state");
    let books = account.books();
    assert!(books.balance() && books.processed == 3, "{books:?}");
}

#[test]
fn a_batch_is_one_message_and_counts_as_its_records() {
    let (runtime, processes) = stage();
    let builder = runtime.kernel("batches").executor("process");
    let kernel: KernelRef<RecordBatch, RecordBatch> =
        processes.launch(builder, Process::new("batches").slots(64)).unwrap();
    kernel.activate().unwrap();
    for count in [1, 3, 10_000] {
        let amounts: Vec<Amount> = (0..count).map(|_| Amount::of(1)).collect();
        let reply = kernel.ask_blocking(RecordBatch::from_vec(amounts), WAIT).unwrap().message;
        assert!(!reply.is_single());
        assert_eq!(reply.len(), count as usize);
    }
    let silent = RecordBatch::from_vec(vec![Amount::of(SILENT)]);
    let reply = kernel.ask_blocking(silent, WAIT).unwrap().message;
    assert!(reply.is_empty(), "whoever asks with a batch gets one");
    let faulty = RecordBatch::from_vec(vec![Amount::of(1), Amount::of(FAULT)]);
    let Err(AskError::Failed { fault, .. }) = kernel.ask_blocking(faulty, WAIT) else { panic!() };
    assert_eq!(fault.kind(), FaultKind::Code(-77));
    assert!(fault.message().contains("record 1 of 2"), "{fault}");
    assert_eq!(kernel.telemetry().records, 10_005);
}

#[test]
fn after_a_fault_or_a_death_the_state_is_as_of_the_last_acknowledged_message() {
    let (runtime, processes) = stage();
    let (account, state) = launch(&runtime, &processes, patient(), 1);
    assert_eq!(account.ask_blocking(Amount::of(5), WAIT).unwrap().message.value, 5);
    for (value, what) in [(FAULT, "-77"), (DIE, "killed by signal 6")] {
        let Err(AskError::Failed { fault, .. }) = account.ask_blocking(Amount::of(value), WAIT)
        else {
            panic!("{value}")
        };
        assert!(fault.message().contains(what), "{fault}");
        assert_eq!(read(&state), Account { sum: 5, count: 1, again: 5 });
    }
    assert_eq!(account.ask_blocking(Amount::of(7), WAIT).unwrap().message.value, 12);
    assert_eq!(read(&state).count, 2);
}

#[test]
fn each_message_is_in_the_state_once_however_often_the_process_is_killed() {
    for window in [1, 64] {
        let (runtime, processes) = stage();
        let (account, state) = launch(&runtime, &processes, patient(), window);
        let messages = 20_000;
        let sender = account.clone();
        let sending = std::thread::spawn(move || {
            for value in 1..=messages {
                sender.send_blocking(Amount::of(value), WAIT).unwrap();
            }
        });
        let (mut last, mut kills, mut seen, mut answered) = (0, 0, 0, 0);
        while seen < messages {
            let dead = runtime.dead_letter_counts().total as i64;
            seen = answered + dead;
            if seen >= messages {
                break;
            }
            let Ok(reply) = account.receive_blocking(Some(Duration::from_millis(20))) else {
                continue;
            };
            answered += 1;
            let snapshot = read(&state);
            assert_eq!(snapshot.sum, snapshot.again, "of one instant");
            // Also while the last one is dying.
            if kills < 20 && reply.message.process != last && answered % 7 == 0 {
                last = reply.message.process;
                let process = Pid::from_raw(i32::try_from(last).unwrap()).unwrap();
                kills += u32::from(kill_process(process, Signal::KILL).is_ok());
            }
        }
        sending.join().unwrap();
        let begin = Instant::now();
        while account.books().in_hand > 0 {
            assert!(begin.elapsed() < Duration::from_secs(60), "{:?}", account.books());
            std::thread::park_timeout(Duration::from_millis(1));
        }
        let dead: i64 = runtime
            .take_dead_letters(|_| true)
            .iter()
            .map(|letter| letter.message::<Amount>().unwrap().value)
            .sum();
        let account = read(&state);
        assert_eq!(account.sum, messages * (messages + 1) / 2 - dead);
        assert!(kills >= 10, "{kills}");
    }
}

#[test]
fn what_a_handler_sends_to_another_kernel_goes_there() {
    let (runtime, processes) = stage();
    let (account, _) = launch(&runtime, &processes, RestartPolicy::Never, 8);
    let vault = runtime
        .kernel("vault")
        .executor("thread")
        .launch(|mut context: Context<Amount, Amount>| async move {
            while let Ok(amount) = context.receive().await {
                let amount = *amount;
                context.reply(amount).await?;
            }
            Ok(())
        })
        .unwrap();
    vault.activate().unwrap();
    for value in 1_000_000..1_000_100 {
        account.send_blocking(Amount::of(value), WAIT).unwrap();
    }
    for value in 1_000_000..1_000_100 {
        assert_eq!(vault.receive_blocking(WAIT).unwrap().message.value, value);
    }
    vault.terminate_blocking(Terminate::now());
    let Err(AskError::Failed { fault, .. }) = account.ask_blocking(Amount::of(1_000_000), WAIT)
    else {
        panic!("there is nobody to send to")
    };
    assert!(fault.message().contains("vault"), "{fault}");
}

#[test]
fn what_does_not_fit_the_handler_is_refused_at_launch() {
    let (runtime, processes) = stage();
    let builder = || runtime.kernel("k").executor("process");
    let other = processes.launch::<Account, Amount>(builder(), Process::new("other"));
    assert!(matches!(other, Err(LaunchError::Layout { what: "messages", .. })), "{other:?}");
    let none = processes.launch_compiled::<Amount, Amount>(builder(), Process::new("nobody"));
    assert!(format!("{none:?}").contains("nobody"));
}
