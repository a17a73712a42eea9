//! Kernels in processes: what is theirs alone. What they share with all executors is in the
//! conformance suite.

#![cfg(target_os = "linux")]
#![expect(clippy::unwrap_used, reason = "a test")]

use std::io::{BufRead, BufReader};
use std::process::Command;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

use dotcompute_core::{
    AskError, BoxError, Context, Envelope, FaultKind, Handler, HandlerContext, KernelRef,
    KernelState, LaunchError, Message, Restart, RestartPolicy, Runtime, Terminate, Termination,
};
use dotcompute_process::{Coder, Kernels, Output, Process, Processes};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open, test_kill_process};

#[derive(Clone, Copy, Debug, PartialEq, Message)]
#[message(record, crate = "dotcompute_core")]
#[repr(C)]
struct Number {
    value: u64,
}

#[derive(Clone, Debug, PartialEq, Message)]
#[message(crate = "dotcompute_core")]
struct Text {
    text: String,
}

/// Adds up; dies of, panics at, and fails at some numbers.
struct Adder(u64);

impl Handler for Adder {
    type In = Number;
    type Out = Number;

    fn handle(
        &mut self,
        &Number { value }: &Number,
        context: &mut HandlerContext<Number>,
    ) -> Result<Option<Number>, BoxError> {
        match value {
            1000 => std::process::abort(),
            1001 => panic!("a thousand and one"),
            1002 => Err("a thousand and two".into()),
            1003 => Ok(Some(Number { value: context.delivery_count().into() })),
            1004 if context.delivery_count() < 3 => std::process::abort(),
            1005 => Ok(None),
            _ => {
                self.0 += value;
                Ok(Some(Number { value: self.0 }))
            }
        }
    }
}

async fn echo(mut context: Context<Text, Text>, _args: Vec<u8>) -> Result<(), BoxError> {
    while let Ok(text) = context.receive().await {
        let text = text.clone();
        context.reply(text).await?;
    }
    Ok(())
}

/// Tells who it is, then writes and logs what it is told.
#[expect(clippy::print_stdout, reason = "that it arrives is the test")]
async fn speaker(mut context: Context<Text, Number>, args: Vec<u8>) -> Result<(), BoxError> {
    while let Ok(Text { text }) = context.receive().await {
        println!("out: {text}");
        eprintln!("err: {text}");
        tracing::warn!(length = text.len(), "log: {text}");
        let value = u64::from(std::process::id()) + 1_000_000_000 * args.len() as u64;
        context.reply(Number { value }).await?;
    }
    Ok(())
}

/// Replies to each message at once, and never lets go of one that is 0; of a 2 it stops the process.
async fn holds(mut context: Context<Number, Number>, _args: Vec<u8>) -> Result<(), BoxError> {
    loop {
        let number = *context.receive().await?;
        if number.value == 2 {
            // To this thread, which so does not run on: a signal to the process may be taken by another
            // one, and the reply be on its way before all have stopped.
            // SAFETY: it has no preconditions.
            let raised = unsafe { libc::raise(libc::SIGSTOP) };
            assert_eq!(raised, 0);
        }
        context.reply(Number { value: std::process::id().into() }).await?;
        if number.value == 0 {
            loop {
                std::thread::park();
            }
        }
    }
}

type Line = (String, String);

/// What all children of this program wrote, and who listens.
static LISTENER: OnceLock<Mutex<std::sync::mpsc::Sender<Line>>> = OnceLock::new();

fn processes() -> Processes {
    Kernels::new()
        .handler("adder", Coder::record(), Coder::record(), |_| Ok(Adder(0)))
        .body("echo", Coder::wire(), Coder::wire(), echo)
        .body("speaker", Coder::wire(), Coder::record(), speaker)
        .body("holds", Coder::record(), Coder::record(), holds)
        .command(|| {
            let mut command = Command::new(std::env::current_exe()?);
            command.args(["--exact", "child_main", "--nocapture"]);
            Ok(command)
        })
        .output(|kernel, output| {
            if let Some(listener) = LISTENER.get() {
                // The test may have ended.
                let _ = listener.lock().unwrap().send((kernel.to_string(), format!("{output:?}")));
            }
        })
        .child_main()
}

/// No test: where children of this program come to.
#[test]
fn child_main() {
    let _ = processes();
}

fn stage() -> (Runtime, Processes) {
    let processes = processes();
    (Runtime::builder().executor(processes.executor()).build(), processes)
}

fn launch<M: Message, R: Message>(
    stage: &(Runtime, Processes),
    name: &str,
    entry: &str,
    restart: impl Into<Restart>,
) -> KernelRef<M, R> {
    let builder = stage.0.kernel(name).executor("process").restart(restart);
    let kernel = stage.1.launch(builder, Process::new(entry)).unwrap();
    kernel.activate().unwrap();
    kernel
}

fn patient() -> Restart {
    Restart {
        policy: RestartPolicy::OnFault,
        max_restarts: u32::MAX,
        backoff: Duration::ZERO,
        redeliver: true,
        ..Restart::default()
    }
}

const WAIT: Option<Duration> = Some(Duration::from_secs(60));

fn ask(kernel: &KernelRef<Number, Number>, value: u64) -> Result<u64, AskError<Number>> {
    kernel.ask_blocking(Number { value }, WAIT).map(|reply| reply.message.value)
}

/// Looks every millisecond for what no event tells of.
fn eventually(mut condition: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !condition() {
        assert!(begin.elapsed() < Duration::from_secs(60), "it never came");
        std::thread::park_timeout(Duration::from_millis(1));
    }
}

fn pid(number: u64) -> Pid {
    Pid::from_raw(i32::try_from(number).unwrap()).unwrap()
}

#[test]
fn a_handler_in_a_process_keeps_its_state_and_answers() {
    let stage = stage();
    let adder = launch(&stage, "adder", "adder", RestartPolicy::Never);
    assert_eq!(ask(&adder, 2).unwrap(), 2);
    assert_eq!(ask(&adder, 40).unwrap(), 42);
    adder.send_blocking(Number { value: 8 }, WAIT).unwrap();
    let sent = adder.receive_blocking(WAIT).unwrap();
    assert_eq!(sent.message.value, 50);
    assert!(sent.correlation_id.is_some());
    assert_eq!(adder.terminate_blocking(Terminate::drain()), Termination::Clean);
    let books = adder.books();
    assert!(books.balance() && books.processed == 3, "{books:?}");
}

#[test]
fn many_messages_stay_in_order_with_any_window() {
    let stage = stage();
    for window in [1, 2, 64, 4096] {
        let builder = stage.0.kernel(format!("window {window}")).executor("process").capacity(64);
        let process = Process::new("adder").window(window).slots(64);
        let adder: KernelRef<Number, Number> = stage.1.launch(builder, process).unwrap();
        adder.activate().unwrap();
        let sender = adder.clone();
        let sending = std::thread::spawn(move || {
            for _ in 0..5000 {
                sender.send_blocking(Number { value: 1 }, WAIT).unwrap();
            }
        });
        for sum in 1..=5000 {
            assert_eq!(adder.receive_blocking(WAIT).unwrap().message.value, sum);
        }
        sending.join().unwrap();
        eventually(|| adder.books().in_hand == 0);
        assert_eq!(adder.books().processed, 5000);
    }
}

#[test]
fn messages_of_any_length_go_through_a_ring_of_any_size_and_an_arena_of_any_size() {
    let stage = stage();
    for arena in [0, 1 << 20, 64 << 20] {
        let builder = stage.0.kernel(format!("echo {arena}")).executor("process");
        let process = Process::new("echo").slots(16).arena(arena);
        let echo: KernelRef<Text, Text> = stage.1.launch(builder, process).unwrap();
        echo.activate().unwrap();
        for length in [0, 10, 1000, 100_000, 3_000_000] {
            let text = Text { text: "x".repeat(length) };
            let asked = Envelope::new(text.clone()).with_priority(200);
            let id = asked.id;
            let reply = echo.ask_blocking(asked, WAIT).unwrap();
            assert!(reply.message == text, "{length} bytes");
            assert_eq!(reply.correlation_id, Some(id));
        }
    }
}

#[test]
fn what_a_child_writes_and_logs_reaches_its_parent() {
    let (tell, told): (_, Receiver<Line>) = channel();
    assert!(LISTENER.set(Mutex::new(tell)).is_ok(), "one test listens");
    tracing::subscriber::set_global_default(Deaf).unwrap();
    let stage = stage();
    let builder = stage.0.kernel("speaks").executor("process");
    let process = Process::new("speaker").args(*b"four");
    let speaker: KernelRef<Text, Number> = stage.1.launch(builder, process).unwrap();
    speaker.activate().unwrap();
    let reply = speaker.ask_blocking(Text { text: "hear".into() }, WAIT).unwrap().message.value;
    assert_eq!(reply / 1_000_000_000, 4, "its arguments");
    assert_ne!(reply % 1_000_000_000, u64::from(std::process::id()), "another process");
    speaker.terminate_blocking(Terminate::now());
    let mut wanted = vec!["Stdout(\"out: hear\")", "Stderr(\"err: hear\")", "log: hear length=4"];
    while !wanted.is_empty() {
        let (kernel, line) = told.recv_timeout(WAIT.unwrap()).unwrap();
        if kernel == "speaks" {
            wanted.retain(|wanted| !line.contains(wanted));
        }
    }
}

/// Makes the parent want logs, and drops its own.
struct Deaf;

impl tracing::Subscriber for Deaf {
    fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
        true
    }
    fn max_level_hint(&self) -> Option<tracing::level_filters::LevelFilter> {
        Some(tracing::level_filters::LevelFilter::WARN)
    }
    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }
    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
    fn event(&self, _: &tracing::Event<'_>) {}
    fn enter(&self, _: &tracing::span::Id) {}
    fn exit(&self, _: &tracing::span::Id) {}
}

#[test]
fn faults_of_a_child_are_faults_of_its_kernel() {
    let stage = stage();
    for (value, kind, message) in [
        (1000, FaultKind::Executor, "was killed by signal 6"),
        (1001, FaultKind::Panic, "a thousand and one"),
        (1002, FaultKind::Error, "a thousand and two"),
    ] {
        let adder = launch(&stage, &format!("fails at {value}"), "adder", RestartPolicy::Never);
        let Err(AskError::Failed { fault, .. }) = ask(&adder, value) else { panic!("{value}") };
        assert_eq!(fault.kind(), kind);
        assert!(fault.message().contains(message), "{fault}");
        assert!(dotcompute_mailbox::wait::block_on(adder.ended()).is_err());
        assert_eq!(adder.state(), KernelState::Failed);
        let books = adder.books();
        assert!(books.balance() && books.dead_lettered == 1, "{books:?}");
    }
    assert_eq!(stage.0.take_dead_letters(|_| true).len(), 3);
}

#[test]
fn a_restart_has_a_new_process_with_a_new_state() {
    let stage = stage();
    let adder = launch(&stage, "again", "adder", patient());
    assert_eq!(ask(&adder, 5).unwrap(), 5);
    assert!(ask(&adder, 1000).is_err(), "dead after three deliveries");
    assert_eq!(ask(&adder, 7).unwrap(), 7);
    let telemetry = adder.telemetry();
    assert_eq!((telemetry.restarts, telemetry.faults), (3, 3));
    assert_eq!((telemetry.books.redelivered, telemetry.books.dead_lettered), (2, 1));
}

#[test]
fn what_was_received_comes_again_first_and_marked_and_what_was_not_comes_unmarked() {
    let stage = stage();
    let builder = stage.0.kernel("marked").executor("process").restart(patient());
    let adder: KernelRef<Number, Number> =
        stage.1.launch(builder, Process::new("adder").window(8)).unwrap();
    adder.activate().unwrap();
    adder.deactivate().unwrap();
    // It dies of the first twice, has it a third time, and then the others.
    for value in [1004, 1003, 1, 1003] {
        adder.try_send(Number { value }).unwrap();
    }
    adder.reactivate().unwrap();
    let replies: Vec<u64> =
        (0..4).map(|_| adder.receive_blocking(WAIT).unwrap().message.value).collect();
    assert_eq!(replies, [1004, 1, 1005, 1]);
    assert_eq!(adder.books().redelivered, 2);
}

#[test]
fn a_message_whose_reply_was_read_is_never_delivered_again() {
    let stage = stage();
    let holds = launch(&stage, "holds", "holds", patient());
    for turn in 1..=5 {
        // It replies, and has the message in hand still when it is killed.
        let child = ask(&holds, 0).unwrap();
        kill_process(pid(child), Signal::KILL).unwrap();
        eventually(|| holds.telemetry().restarts == turn);
    }
    assert_ne!(ask(&holds, 1).unwrap(), 0);
    eventually(|| holds.books().in_hand == 0);
    let books = holds.books();
    assert_eq!((books.processed, books.redelivered, books.dead_lettered), (6, 0, 0));
}

#[test]
fn a_killed_child_is_noticed_within_milliseconds() {
    let stage = stage();
    let holds: KernelRef<Number, Number> = launch(&stage, "killed", "holds", RestartPolicy::Never);
    let child = ask(&holds, 1).unwrap();
    let begin = Instant::now();
    kill_process(pid(child), Signal::KILL).unwrap();
    let fault = dotcompute_mailbox::wait::block_on(holds.ended()).unwrap_err();
    // Milliseconds when the machine is quiet; the bound is for one that is not.
    assert!(begin.elapsed() < Duration::from_secs(10));
    assert_eq!(fault.kind(), FaultKind::Executor);
    assert!(fault.message().contains("killed by signal 9"), "{fault}");
}

#[test]
fn a_child_that_does_not_end_is_killed_at_the_deadline() {
    let stage = stage();
    let holds = launch(&stage, "stuck", "holds", RestartPolicy::Never);
    let child = ask(&holds, 0).unwrap();
    // Of these, half a second is for the cancelled body to be dropped, on a busy machine too.
    let how = Terminate::drain().within(Duration::from_secs(5));
    assert_eq!(holds.terminate_blocking(how), Termination::Cancelled);
    eventually(|| test_kill_process(pid(child)).is_err());
}

/// Tells a process that it is the parent which the next test kills.
const DOOMED: &str = "DOTCOMPUTE_TEST_DOOMED";

/// No test by itself: launches a kernel, says which process runs it, and waits to be killed.
#[test]
fn doomed_parent() {
    if std::env::var_os(DOOMED).is_none() {
        return;
    }
    let stage = stage();
    let holds = launch(&stage, "orphan", "holds", RestartPolicy::Never);
    println!("\nchild {}", ask(&holds, 0).unwrap());
    loop {
        std::thread::park();
    }
}

#[test]
fn a_child_ends_with_its_parent_however_that_ends() {
    let mut parent = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "doomed_parent", "--nocapture"])
        .env(DOOMED, "1")
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(parent.stdout.take().unwrap()).lines();
    let child = lines.find_map(|line| line.unwrap().strip_prefix("child ").map(str::to_owned));
    let child = pidfd_open(pid(child.unwrap().parse().unwrap()), PidfdFlags::empty()).unwrap();
    parent.kill().unwrap();
    parent.wait().unwrap();
    let timeout = rustix::event::Timespec { tv_sec: 60, tv_nsec: 0 };
    let ready = poll(&mut [PollFd::new(&child, PollFlags::IN)], Some(&timeout)).unwrap();
    assert_eq!(ready, 1, "the child should have ended");
}

#[test]
fn a_stopped_child_is_reported_by_the_watchdog() {
    let stage = stage();
    let builder =
        stage.0.kernel("stopped").executor("process").watchdog(Some(Duration::from_millis(20)));
    let holds: KernelRef<Number, Number> = stage.1.launch(builder, Process::new("holds")).unwrap();
    holds.activate().unwrap();
    let child = pid(ask(&holds, 1).unwrap());
    // It stops itself, with the message in hand.
    holds.try_send(Number { value: 2 }).unwrap();
    eventually(|| holds.telemetry().stalled);
    kill_process(child, Signal::CONT).unwrap();
    holds.receive_blocking(WAIT).unwrap();
    eventually(|| !holds.telemetry().stalled);
}

#[test]
fn whoever_asks_is_told_although_it_may_drive_the_kernel_itself() {
    let stage = stage();
    let adder = launch(&stage, "shared", "adder", RestartPolicy::Never);
    let asking = |count: u64| {
        let adder: KernelRef<Number, Number> = adder.clone();
        std::thread::spawn(move || (0..count).map(|_| ask(&adder, 1).unwrap()).collect::<Vec<_>>())
    };
    let threads: Vec<_> = (0..4).map(|_| asking(500)).collect();
    let mut sums: Vec<u64> = threads.into_iter().flat_map(|t| t.join().unwrap()).collect();
    sums.sort_unstable();
    assert_eq!(sums, (1..=2000).collect::<Vec<_>>());

    let holds = launch(&stage, "holds on", "holds", RestartPolicy::Never);
    assert_ne!(ask(&holds, 0).unwrap(), 0);
    // It handles no message any more.
    let late = holds.ask_blocking(Number { value: 1 }, Some(Duration::from_millis(30)));
    assert!(matches!(late, Err(AskError::Timeout { .. })), "{late:?}");
    let asker = holds.clone();
    let asked = std::thread::spawn(move || asker.ask_blocking(Number { value: 1 }, None));
    eventually(|| holds.books().accepted == 3);
    holds.terminate_blocking(Terminate::now().within(Duration::from_millis(100)));
    let told = asked.join().unwrap();
    assert!(matches!(told, Err(AskError::Stopped { .. })), "{told:?}");
}

#[test]
fn what_cannot_be_launched_says_why() {
    let stage = stage();
    let builder = || stage.0.kernel("k").executor("process");
    let reason = |outcome: Result<KernelRef<Number, Number>, LaunchError>| {
        let Err(LaunchError::Executor { source, .. }) = outcome else { panic!("{outcome:?}") };
        source.to_string()
    };
    let closure = builder().launch(|_: Context<Number, Number>| async { Ok(()) });
    assert!(reason(closure).contains("no closures"));
    let unknown = stage.1.launch(builder(), Process::new("nobody"));
    assert!(reason(unknown).contains("'nobody'"));
    let types = stage.1.launch(builder(), Process::new("echo"));
    assert!(reason(types).contains("Text"));
    let elsewhere = stage.1.launch(stage.0.kernel("k").executor("thread"), Process::new("adder"));
    assert!(reason(elsewhere).contains("closures"));
    let broken = Kernels::new()
        .handler("adder", Coder::record(), Coder::record(), |_| Ok(Adder(0)))
        .command(|| Ok(Command::new("/nonexistent/program")))
        .child_main();
    let absent: Result<KernelRef<Number, Number>, _> =
        broken.launch(builder(), Process::new("adder"));
    assert!(reason(absent).contains("No such file"));
    assert_eq!(stage.0.kernel_ids(), []);
}

#[test]
fn a_program_that_never_comes_to_child_main_is_killed_and_said_so() {
    let (runtime, _) = stage();
    let (tell, told) = channel();
    let tell = Mutex::new(tell);
    let wrong = Kernels::new()
        .handler("adder", Coder::record(), Coder::record(), |_| Ok(Adder(0)))
        .command(|| {
            let mut command = Command::new("sh");
            command.args(["-c", "echo $$; exec sleep 600"]);
            Ok(command)
        })
        .output(move |_, output| {
            if let Output::Stdout(line) = output {
                let _ = tell.lock().unwrap().send(line.parse::<u64>().unwrap());
            }
        })
        .child_main();
    let process = Process::new("adder").start_within(Duration::from_millis(100));
    let adder: KernelRef<Number, Number> =
        wrong.launch(runtime.kernel("k").executor("process"), process).unwrap();
    adder.activate().unwrap();
    let Err(AskError::Failed { fault, .. }) = ask(&adder, 1) else { panic!("nobody answers") };
    assert!(fault.message().contains("Kernels::child_main"), "{fault}");
    // It may have been killed before it could say who it is.
    if let Ok(child) = told.recv_timeout(Duration::from_secs(1)) {
        eventually(|| test_kill_process(pid(child)).is_err());
    }
}

#[test]
fn a_program_that_is_no_child_fails_the_kernel_with_a_reason() {
    let (runtime, _) = stage();
    let wrong = Kernels::new()
        .handler("adder", Coder::record(), Coder::record(), |_| Ok(Adder(0)))
        .command(|| Ok(Command::new("true")))
        .child_main();
    let adder: KernelRef<Number, Number> =
        wrong.launch(runtime.kernel("k").executor("process"), Process::new("adder")).unwrap();
    adder.activate().unwrap();
    let fault = dotcompute_mailbox::wait::block_on(adder.ended()).unwrap_err();
    assert!(fault.message().contains("ended without a word"), "{fault}");
}
