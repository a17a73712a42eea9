//! Kernels whose context lives in a process of its own, on the stand-ins: what a lost context, a handler
//! that never comes back and SIGKILL cost, and what they do not. Of a GPU it shows nothing.

#![cfg(target_os = "linux")]
#![expect(clippy::unwrap_used, reason = "a test")]

mod standin;

use std::collections::BTreeSet;
use std::process::Command;
use std::sync::RwLockWriteGuard;
use std::thread;
use std::time::Duration;

use dotcompute_abi::codes;
use dotcompute_core::{
    AskError, FaultKind, KernelRef, KernelState, Record, RecordBatch, Restart, RestartPolicy,
    Runtime, Terminate, Termination,
};
use dotcompute_cuda::compute::Context;
use dotcompute_cuda::resident::{Isolation, Residency};
use dotcompute_cuda::{
    Cuda, CudaHandler, CudaKernel, CudaKernels, CudaLaunch, CudaOptions, isolated,
};
use dotcompute_process::{Kernels, Processes};
use standin::StandIn;
use standin::stage::{self, LONG, Number, patient, until};

/// Replies with the sum. -1: fails; -5: traps; less than -1000: does not come back for so many ns.
const ADD: &str = r#"
#include "dotcompute.cuh"
struct number { long long value; };

extern "C" __device__ int32_t
add(const number *message, number *state, number *reply, rk_ctx *ctx) {
    const long long value = message->value;
    if (value == -1)
        return rk_fault(ctx, -7, "minus one", 9);
    if (value == -5)
        __trap();
    if (value < -1000) {
        const uint64_t end = rk_clock(ctx) - value;
        while (rk_clock(ctx) < end) {
        }
        return DC_HANDLER_DONE;
    }
    state->value += value;
    reply->value = state->value;
    return DC_HANDLER_REPLY;
}
"#;

fn kernels() -> CudaKernels {
    let add = CudaKernel::new(CudaHandler::from_source("add", ADD), Number::LAYOUT)
        .output(Number::LAYOUT)
        .state(&Number { value: 0 });
    CudaKernels::new().kernel("add", add)
}

fn ask(kernel: &KernelRef<Number, Number>, value: i64) -> i64 {
    stage::ask(kernel, value).value
}

fn program() -> std::io::Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["--exact", "child_main", "--nocapture"]);
    Ok(command)
}

fn processes() -> Processes {
    isolated(Kernels::new()).command(program).child_main()
}

/// No test: where children of this program come to.
#[test]
fn child_main() {
    let _ = processes();
}

struct Stage {
    runtime: Runtime,
    cuda: Cuda,
    /// One test has children at a time.
    _alone: RwLockWriteGuard<'static, ()>,
}

impl Stage {
    fn new() -> Self {
        Self::with(processes(), standin::options().residency)
    }

    fn with(processes: Processes, residency: Residency) -> Self {
        let alone = StandIn::get().alone();
        let isolation = Isolation::Process(processes);
        let options = CudaOptions { isolation, residency, ..standin::options() };
        let cuda = kernels().open(options).unwrap();
        let runtime = Runtime::builder().executor(cuda.executor()).build();
        Self { runtime, cuda, _alone: alone }
    }

    fn adder(&self, name: &str, restart: impl Into<Restart>) -> KernelRef<Number, Number> {
        let builder = self.runtime.kernel(name).executor("cuda").restart(restart);
        let kernel = self.cuda.launch(builder, CudaLaunch::new("add")).unwrap();
        kernel.activate().unwrap();
        kernel
    }
}

/// The children of this process that were not reaped.
fn children() -> BTreeSet<i32> {
    let own = std::process::id().to_string();
    let mut found = BTreeSet::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        // It may be gone by now.
        let stat = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        let after_name = stat.rsplit(')').next().unwrap_or_default();
        if after_name.split_whitespace().nth(1) == Some(&own) {
            found.insert(pid);
        }
    }
    found
}

fn kill(pid: i32) {
    // SAFETY: it has no preconditions; a child that was not reaped keeps its number.
    assert_eq!(unsafe { libc::kill(pid, libc::SIGKILL) }, 0);
}

/// The context of this process is none of a child's.
fn is_well() {
    let context = Context::of(StandIn::get().driver, 0).unwrap();
    let stream = context.stream().unwrap();
    let buffer = context.pool().unwrap().allocate(64, &stream).unwrap();
    stream.fill(&buffer, 7).unwrap();
    let mut bytes = [0; 64];
    stream.read(&buffer, 0, &mut bytes).unwrap();
    assert_eq!(bytes, [7; 64]);
}

#[test]
fn kernels_of_another_process_are_kernels_as_any() {
    let stage = Stage::new();
    let before = children();
    let (first, second) =
        (stage.adder("first", RestartPolicy::Never), stage.adder("second", RestartPolicy::Never));
    assert_eq!(children().difference(&before).count(), 1, "both are on one grid");
    assert_eq!((ask(&first, 40), ask(&first, 2), ask(&second, 7)), (40, 42, 7));
    let state: Number = stage.cuda.state("first", LONG.unwrap()).unwrap();
    assert_eq!(state.value, 42);
    // On the device of the other process.
    first.connect(&second).unwrap();
    for _ in 0..20 {
        first.send_blocking(Number { value: 1 }, LONG).unwrap();
    }
    let mut sum = 7;
    for number in 43..63 {
        sum += number;
        assert_eq!(second.receive_blocking(LONG).unwrap().message.value, sum);
    }
    until("the counters", || stage.cuda.counters("first").unwrap().processed == 22);
    let fault = match second.ask_blocking(Number { value: -1 }, LONG) {
        Err(AskError::Failed { fault, .. }) => fault,
        other => panic!("{other:?}"),
    };
    assert_eq!(fault.kind(), FaultKind::Code(-7));
    assert!(fault.message().contains("minus one"), "{fault}");
    assert_eq!(
        first.terminate_blocking(Terminate::drain().within(LONG.unwrap())),
        Termination::Clean
    );
    let Stage { runtime, cuda, _alone } = stage;
    drop((first, second, runtime, cuda));
    until("the child ends with its grid", || children().difference(&before).count() == 0);
}

#[test]
fn a_batch_goes_to_another_process_and_back() {
    let stage = Stage::new();
    let builder = stage.runtime.kernel("batch").executor("cuda");
    let kernel: KernelRef<RecordBatch, RecordBatch> =
        stage.cuda.launch(builder, CudaLaunch::new("add")).unwrap();
    kernel.activate().unwrap();
    let batch = RecordBatch::from_vec(vec![Number { value: 1 }; 1000]);
    let sums = kernel.ask_blocking(batch, LONG).unwrap().message;
    let sums: Vec<i64> = sums.as_slice::<Number>().unwrap().iter().map(|sum| sum.value).collect();
    assert_eq!(sums, (1..=1000).collect::<Vec<_>>());
}

#[test]
fn sigkill_of_the_process_is_a_fault_that_names_it_and_a_restart_has_another_one() {
    let stage = Stage::new();
    let before = children();
    let (stays, comes_back) =
        (stage.adder("stays", RestartPolicy::Never), stage.adder("back", patient()));
    assert_eq!((ask(&stays, 1), ask(&comes_back, 2)), (1, 2));
    let killed = *children().difference(&before).next().unwrap();
    kill(killed);
    until("the fault is known", || stays.state() == KernelState::Failed);
    let fault = stays.fault().unwrap();
    assert_eq!(fault.kind(), FaultKind::Code(codes::FAULT_LOST));
    assert!(fault.message().contains("was killed by signal 9"), "{fault}");
    // With its state anew, in a process of its own again.
    until("it is back", || comes_back.ask_blocking(Number { value: 5 }, LONG).is_ok());
    let next = *children().difference(&before).next().unwrap();
    assert_ne!(next, killed);
    assert!(comes_back.telemetry().faults >= 1);
    assert!(comes_back.books().balance() && stays.books().balance());
    is_well();
}

#[test]
fn a_trap_costs_the_process_of_the_context_and_not_the_device() {
    let stage = Stage::new();
    let (traps, neighbour) = (stage.adder("traps", patient()), stage.adder("neighbour", patient()));
    for turn in 1..=3 {
        assert_eq!((ask(&traps, 1), ask(&neighbour, 2)), (1, 2));
        let fault = match traps.ask_blocking(Number { value: -5 }, LONG) {
            Err(AskError::Failed { fault, .. }) => fault,
            other => panic!("{other:?}"),
        };
        assert_eq!(fault.kind(), FaultKind::Code(codes::FAULT_LOST));
        assert!(fault.message().contains("returned 719"), "{fault}");
        assert!(fault.message().contains("this kernel's handler was at work"), "{fault}");
        // Its neighbour is told too, and comes back too.
        until("the neighbour is back", || neighbour.telemetry().faults >= turn);
    }
    assert_eq!((ask(&traps, 1), ask(&neighbour, 2)), (1, 2));
    is_well();
}

/// It has no tick and is never killed otherwise: with the process goes what it does on the device.
#[test]
fn a_handler_that_never_comes_back_ends_with_its_process() {
    let residency =
        Residency { overdue: Duration::from_millis(200), ..standin::options().residency };
    let stage = Stage::with(processes(), residency);
    let before = children();
    let (stuck, neighbour) =
        (stage.adder("stuck", RestartPolicy::Never), stage.adder("neighbour", patient()));
    assert_eq!(ask(&neighbour, 2), 2);
    let first = *children().difference(&before).next().unwrap();
    stuck.send_blocking(Number { value: -i64::MAX }, LONG).unwrap();
    until("its grid is given up", || stuck.state() == KernelState::Failed);
    assert_eq!(stuck.fault().unwrap().kind(), FaultKind::Code(codes::FAULT_STUCK));
    until("its process is gone", || !children().contains(&first));
    until("the neighbour is back", || neighbour.ask_blocking(Number { value: 3 }, LONG).is_ok());
}

/// What a launch says that is refused.
fn refused(stage: &Stage, entry: &str) -> String {
    let builder = stage.runtime.kernel("refused").executor("cuda");
    let launched = stage.cuda.launch::<Number, Number>(builder, CudaLaunch::new(entry));
    let error = launched.map(drop).unwrap_err();
    std::error::Error::source(&error).unwrap().to_string()
}

/// Processes in which the driver's calls fail.
fn failing(calls: String) -> Processes {
    let failing = isolated(Kernels::new()).command(move || {
        let mut command = program()?;
        command.env("STANDIN_FAIL", &calls);
        Ok(command)
    });
    failing.child_main()
}

#[test]
fn code_that_is_refused_in_the_process_leaves_its_kernels_at_work() {
    let stage = Stage::with(failing("later=701".to_owned()), standin::options().residency);
    let kernel = stage.adder("add", RestartPolicy::Never);
    assert_eq!(ask(&kernel, 1), 1);
    let more = CudaHandler::from_source("more", ADD.replace("\nadd(", "\nmore("));
    let more = CudaKernel::new(more, Number::LAYOUT).output(Number::LAYOUT);
    let more = more.state(&Number { value: 0 });
    stage.cuda.register(CudaKernels::new().kernel("more", more)).unwrap();
    for sum in [2, 3, 4] {
        let said = refused(&stage, "more");
        assert!(said.contains("cuLaunchCooperativeKernel returned 701"), "{said}");
        assert_eq!(ask(&kernel, 1), sum);
    }
    stage::drain(&kernel);
}

#[test]
fn what_cannot_begin_in_the_process_is_said_by_the_launch() {
    let residency = standin::options().residency;
    // The program has nothing for a grid's child.
    let stage = Stage::with(Kernels::new().command(program).child_main(), residency);
    let said = refused(&stage, "add");
    assert!(said.contains("no kernel 'dotcompute-cuda' is registered for processes"), "{said}");
    drop(stage);
    for (call, code, words) in [
        ("cuMemHostRegister_v2", 2, "cuMemHostRegister returned 2: CUDA_ERROR_OUT_OF_MEMORY"),
        ("cuMemAlloc_v2", 2, "cuMemAlloc returned 2: CUDA_ERROR_OUT_OF_MEMORY"),
        ("cuInit", 100, "cuInit returned 100: CUDA_ERROR_NO_DEVICE"),
        ("cuLaunchCooperativeKernel", 720, "cuLaunchCooperativeKernel returned 720"),
    ] {
        let stage = Stage::with(failing(format!("{call}={code}")), residency);
        let said = refused(&stage, "add");
        assert!(said.contains(words), "{said}");
    }
}

/// The process is killed again and again while messages flow: each of them is accounted for.
#[test]
fn chaos_with_sigkill_leaves_the_books_exact() {
    let stage = Stage::new();
    let before = children();
    let kernels: Vec<_> =
        (0..2).map(|number| stage.adder(&format!("c{number}"), patient())).collect();
    let messages = 400;
    let ended = thread::scope(|scope| {
        let kernels = &kernels;
        let senders: Vec<_> = (0..2_u64)
            .map(|sender| {
                scope.spawn(move || {
                    let mut seed = sender * 77 + 1;
                    for _ in 0..messages {
                        seed = seed
                            .wrapping_mul(6364136223846793005)
                            .wrapping_add(1442695040888963407);
                        let kernel = &kernels[(seed >> 33) as usize % kernels.len()];
                        let message = Number { value: (seed >> 50) as i64 };
                        match (seed >> 20) % 3 {
                            0 => match kernel.ask_blocking(message, LONG) {
                                Ok(_) | Err(AskError::Failed { .. }) => {}
                                Err(error) => panic!("{error:?}"),
                            },
                            _ => kernel.send_blocking(message, None).unwrap(),
                        }
                        while kernel.try_receive().is_ok() {}
                    }
                })
            })
            .collect();
        let mut kills = 0;
        while kills < 5 || senders.iter().any(|sender| !sender.is_finished()) {
            kernels.iter().for_each(|kernel| assert!(kernel.books().balance()));
            kernels.iter().for_each(|kernel| while kernel.try_receive().is_ok() {});
            if kills < 5
                && let Some(child) = children().difference(&before).next()
            {
                kill(*child);
                kills += 1;
                until("it is reaped", || !children().contains(child));
            }
            thread::park_timeout(Duration::from_millis(5));
        }
        senders.into_iter().all(|sender| sender.join().is_ok())
    });
    assert!(ended);
    let mut settled = 0;
    for kernel in &kernels {
        let reader = kernel.clone();
        let drained = thread::spawn(move || while reader.receive_blocking(LONG).is_ok() {});
        let outcome = kernel.terminate_blocking(Terminate::drain().within(LONG.unwrap()));
        drained.join().unwrap();
        assert_ne!(outcome, Termination::Abandoned);
        let books = kernel.books();
        assert!(books.balance(), "{books:?}");
        settled += books.processed + books.dead_lettered;
    }
    assert_eq!(settled, 2 * messages);
    is_well();
}
