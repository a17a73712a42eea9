//! The executor "cuda", whole, on stand-ins for NVIDIA's libraries: handlers of CUDA C++ are compiled,
//! linked and run, on host threads, by the device's own sources. What it shows is that the executor
//! keeps its promises; of a GPU it shows nothing.

#![cfg(target_os = "linux")]
#![expect(clippy::unwrap_used, reason = "a test")]

mod standin;

use std::path::Path;
use std::process::Command;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use dotcompute_abi::codes;
use dotcompute_core::{
    AskError, Backpressure, Books, Envelope, FaultKind, KernelRef, KernelState, LaunchError,
    Message, Record, RecordBatch, Restart, RestartPolicy, Runtime, Terminate, Termination,
};
use dotcompute_cuda::resident::Residency;
use dotcompute_cuda::toolkit::{FOLDERS_VARIABLE, Toolkit};
use dotcompute_cuda::{
    Cuda, CudaError, CudaHandler, CudaKernel, CudaKernels, CudaLaunch, CudaOptions, Version,
};
use standin::StandIn;
use standin::stage::{LONG, Mended, Number, ask, patient, until};

#[derive(Clone, Copy, Debug, PartialEq, Message)]
#[message(record, crate = "dotcompute_core")]
#[repr(C)]
struct Sum {
    total: i64,
    count: i64,
}

/// Adds up. Replies with the sum; does other things at some numbers.
const ADD: &str = r#"
#include "dotcompute.cuh"
struct number { long long value; };
struct sum { long long total, count; };

extern "C" __device__ int32_t
add(const number *message, sum *state, sum *reply, rk_ctx *ctx) {
    const long long value = message->value;
    if (value == -1)
        return rk_fault(ctx, -7, "minus one", 9);
    if (value == -2)
        return 2;
    if (value == -3) // until it is killed
        for (;;)
            if (int32_t fault = rk_tick(ctx))
                return fault;
    if (value == -4)
        return DC_HANDLER_DONE;
    if (value == -5)
        __trap();
    if (value < -1000) { // for so many nanoseconds, without a tick
        const uint64_t end = rk_clock(ctx) - value;
        while (rk_clock(ctx) < end) {
        }
        return DC_HANDLER_DONE;
    }
    state->total += value;
    state->count += 1;
    *reply = *state;
    return DC_HANDLER_REPLY;
}
"#;

/// Replies with each number up to the one that it is told, of which the last is returned.
const COUNT: &str = r#"
#include "dotcompute.cuh"
struct number { long long value; };

extern "C" __device__ int32_t
count(const number *message, void *, number *reply, rk_ctx *ctx) {
    for (long long value = 1; value < message->value; ++value) {
        const number next = {value};
        if (int32_t fault = rk_emit(ctx, &next))
            return fault;
    }
    reply->value = message->value;
    return DC_HANDLER_REPLY;
}
"#;

/// Replies with one more.
const NEXT: &str = r#"
#include "dotcompute.cuh"
struct number { long long value; };

extern "C" __device__ int32_t
next(const number *message, void *, number *reply, rk_ctx *) {
    reply->value = message->value + 1;
    return DC_HANDLER_REPLY;
}
"#;

fn add() -> CudaKernel {
    CudaKernel::new(CudaHandler::from_source("add", ADD), Number::LAYOUT)
        .output(Sum::LAYOUT)
        .state(&Sum { total: 0, count: 0 })
}

fn kernels() -> CudaKernels {
    CudaKernels::new()
        .kernel("add", add())
        .kernel(
            "count",
            CudaKernel::new(CudaHandler::from_source("count", COUNT), Number::LAYOUT)
                .output(Number::LAYOUT)
                .max_emit(3),
        )
        .kernel(
            "next",
            CudaKernel::new(CudaHandler::from_source("next", NEXT), Number::LAYOUT)
                .output(Number::LAYOUT),
        )
}

/// A device of one's own, with a runtime.
struct Stage {
    runtime: Runtime,
    cuda: Cuda,
}

impl Stage {
    fn new() -> Self {
        Self::with(standin::options())
    }

    fn with(options: CudaOptions) -> Self {
        let cuda = kernels().open(options).unwrap();
        Self { runtime: Runtime::builder().executor(cuda.executor()).build(), cuda }
    }

    fn launch<
        M: dotcompute_core::compiled::RecordMessage,
        R: dotcompute_core::compiled::RecordReply,
    >(
        &self,
        name: &str,
        entry: &str,
        restart: impl Into<Restart>,
    ) -> KernelRef<M, R> {
        let builder = self.runtime.kernel(name).executor("cuda").restart(restart);
        let kernel = self.cuda.launch(builder, CudaLaunch::new(entry)).unwrap();
        kernel.activate().unwrap();
        kernel
    }

    fn adder(&self, name: &str) -> KernelRef<Number, Sum> {
        self.launch(name, "add", RestartPolicy::Never)
    }
}

/// A stage that tests share which break nothing.
fn stage() -> &'static Stage {
    static STAGE: OnceLock<Stage> = OnceLock::new();
    STAGE.get_or_init(Stage::new)
}

fn balanced(books: Books) {
    let Books { accepted, .. } = books;
    assert!(books.balance(), "{accepted} accepted: {books:?}");
}

#[test]
fn what_is_sent_is_processed_in_order_and_the_books_are_exact() {
    let _device = StandIn::get().shared();
    let kernel = stage().adder("order");
    let count = 2000;
    let sender = kernel.clone();
    let sends = thread::spawn(move || {
        (1..=count).for_each(|value| sender.send_blocking(Number { value }, None).unwrap());
    });
    let mut total = 0;
    for value in 1..=count {
        total += value;
        let sum = kernel.receive_blocking(LONG).unwrap().message;
        assert_eq!(sum, Sum { total, count: value });
    }
    sends.join().unwrap();
    let ended = kernel.terminate_blocking(Terminate::drain().within(LONG.unwrap()));
    assert_eq!(ended, Termination::Clean);
    let books = kernel.books();
    balanced(books);
    assert_eq!((books.accepted, books.processed), (count as u64, count as u64));
}

#[test]
fn every_asker_gets_its_own_answer() {
    let _device = StandIn::get().shared();
    let kernel = stage().launch::<Number, Number>("askers", "next", RestartPolicy::Never);
    thread::scope(|scope| {
        for asker in 0..4_i64 {
            let kernel = &kernel;
            scope.spawn(move || {
                for turn in 0..100 {
                    let value = asker * 1000 + turn;
                    let priority = [0, 100, 200, 255][(turn % 4) as usize];
                    let question = Envelope::new(Number { value }).with_priority(priority);
                    let answer = kernel.ask_blocking(question, LONG).unwrap();
                    assert_eq!(answer.message.value, value + 1);
                }
            });
        }
    });
    until("all is settled", || kernel.books().processed == 400);
    balanced(kernel.books());
    kernel.terminate_blocking(Terminate::now());
}

#[test]
fn a_deactivated_kernel_holds_and_goes_on_when_it_is_active_again() {
    let _device = StandIn::get().shared();
    let kernel = stage().adder("pauses");
    assert_eq!(ask(&kernel, 1).total, 1);
    kernel.deactivate().unwrap();
    kernel.send_blocking(Number { value: 2 }, None).unwrap();
    assert!(kernel.receive_blocking(Some(Duration::from_millis(100))).is_err());
    kernel.reactivate().unwrap();
    assert_eq!(kernel.receive_blocking(LONG).unwrap().message.total, 3);
    // One that is to drain while it holds does.
    kernel.deactivate().unwrap();
    kernel.send_blocking(Number { value: 3 }, None).unwrap();
    let ended = kernel.terminate_blocking(Terminate::drain().within(LONG.unwrap()));
    assert_eq!((ended, kernel.books().processed), (Termination::Clean, 3));
}

#[test]
fn a_termination_without_drain_makes_dead_letters_of_what_is_queued() {
    let _device = StandIn::get().shared();
    let kernel = stage().adder("ends");
    kernel.deactivate().unwrap();
    for value in 0..10 {
        kernel.send_blocking(Number { value }, None).unwrap();
    }
    let ended = kernel.terminate_blocking(Terminate::now().within(LONG.unwrap()));
    assert_eq!((ended, kernel.state()), (Termination::Clean, KernelState::Terminated));
    let books = kernel.books();
    balanced(books);
    assert_eq!((books.processed, books.dead_lettered), (0, 10));
}

#[test]
fn a_reported_fault_fails_its_kernel_with_code_and_words_and_no_other() {
    let _device = StandIn::get().shared();
    let stage = stage();
    let (other, kernel) = (stage.adder("fine"), stage.adder("faults"));
    assert_eq!(ask(&kernel, 5).total, 5);
    let error = kernel.ask_blocking(Number { value: -1 }, LONG).unwrap_err();
    let AskError::Failed { fault, .. } = error else { panic!("{error:?}") };
    assert_eq!((fault.kind(), fault.message()), (FaultKind::Code(-7), "minus one"));
    assert_eq!(kernel.state(), KernelState::Failed);
    let books = kernel.books();
    balanced(books);
    assert_eq!((books.processed, books.dead_lettered), (1, 1));
    assert_eq!(ask(&other, 9).total, 9);
    other.terminate_blocking(Terminate::now());
    kernel.terminate_blocking(Terminate::now());
}

#[test]
fn every_way_to_go_wrong_has_its_code() {
    let _device = StandIn::get().shared();
    let stage = stage();
    let bad = stage.adder("bad result");
    let error = bad.ask_blocking(Number { value: -2 }, LONG).unwrap_err();
    let AskError::Failed { fault, .. } = error else { panic!("{error:?}") };
    assert_eq!(fault.kind(), FaultKind::Code(codes::FAULT_BAD_RESULT));
    let emits = stage.launch::<Number, Number>("emits", "count", RestartPolicy::Never);
    let error = emits.ask_blocking(Number { value: 5 }, LONG).unwrap_err();
    let AskError::Failed { fault, .. } = error else { panic!("{error:?}") };
    assert_eq!(fault.kind(), FaultKind::Code(codes::FAULT_EMIT_LIMIT));
    bad.terminate_blocking(Terminate::now());
    emits.terminate_blocking(Terminate::now());
}

#[test]
fn what_a_handler_emits_comes_before_its_reply_and_the_first_answers_the_ask() {
    let _device = StandIn::get().shared();
    let kernel = stage().launch::<Number, Number>("counts", "count", RestartPolicy::Never);
    for _ in 0..20 {
        kernel.send_blocking(Number { value: 4 }, None).unwrap();
        for value in 1..=4 {
            assert_eq!(kernel.receive_blocking(LONG).unwrap().message.value, value);
        }
        let answer = kernel.ask_blocking(Number { value: 1 }, LONG).unwrap();
        assert_eq!(answer.message.value, 1);
    }
    until("all is settled", || kernel.books().processed == 40);
    kernel.terminate_blocking(Terminate::now());
}

#[test]
fn a_restart_begins_with_a_new_state_and_keeps_the_mailbox() {
    let _device = StandIn::get().shared();
    let kernel = stage().launch::<Number, Sum>("restarts", "add", patient());
    assert_eq!(ask(&kernel, 7).total, 7);
    // In one window with the fault: what was not begun comes after the restart.
    kernel.deactivate().unwrap();
    for value in [1, -1, 2, 3] {
        kernel.send_blocking(Number { value }, None).unwrap();
    }
    kernel.reactivate().unwrap();
    let totals: Vec<i64> =
        (0..3).map(|_| kernel.receive_blocking(LONG).unwrap().message.total).collect();
    assert_eq!(totals, [8, 2, 5]);
    until("all is settled", || kernel.books().processed == 4);
    let books = kernel.books();
    balanced(books);
    assert_eq!(books.dead_lettered, 1);
    assert_eq!(kernel.telemetry().restarts, 1);
    kernel.terminate_blocking(Terminate::now());
}

#[test]
fn a_message_that_always_fails_is_delivered_three_times_if_at_all() {
    let _device = StandIn::get().shared();
    let restart = Restart { redeliver: true, ..patient() };
    let kernel = stage().launch::<Number, Sum>("redelivers", "add", restart);
    kernel.send_blocking(Number { value: -1 }, None).unwrap();
    kernel.send_blocking(Number { value: 4 }, None).unwrap();
    assert_eq!(kernel.receive_blocking(LONG).unwrap().message.total, 4);
    until("all is settled", || kernel.books().processed == 1);
    assert_eq!((kernel.telemetry().restarts, kernel.books().dead_lettered), (3, 1));
    kernel.terminate_blocking(Terminate::now());
}

#[test]
fn a_batch_is_answered_by_a_batch_and_fails_at_its_record() {
    let _device = StandIn::get().shared();
    let stage = stage();
    let kernel = stage.launch::<RecordBatch, RecordBatch>("batches", "add", RestartPolicy::Never);
    let batch = |values: &[i64]| {
        RecordBatch::from_vec(values.iter().map(|&value| Number { value }).collect())
    };
    // More than a window.
    let values: Vec<i64> = (1..=300).collect();
    let answer = kernel.ask_blocking(batch(&values), LONG).unwrap().message;
    let sums = answer.as_slice::<Sum>().unwrap();
    assert_eq!((sums.len(), sums[299]), (300, Sum { total: 45150, count: 300 }));
    let empty = kernel.ask_blocking(batch(&[]), LONG).unwrap().message;
    assert!(empty.is_empty());
    let silent = kernel.ask_blocking(batch(&[-4, -4]), LONG).unwrap().message;
    assert!(silent.is_empty());
    until("all is settled", || kernel.books().processed == 3);
    assert_eq!(kernel.telemetry().records, 302);
    // Empty ones behind one that takes several windows: all are taken at once after the pause.
    kernel.deactivate().unwrap();
    kernel.send_blocking(batch(&values), LONG).unwrap();
    for _ in 0..3 {
        kernel.send_blocking(batch(&[]), LONG).unwrap();
    }
    kernel.reactivate().unwrap();
    until("the empty ones are settled, too", || kernel.books().processed == 7);
    let error = kernel.ask_blocking(batch(&[1, 2, -1, 3]), LONG).unwrap_err();
    let AskError::Failed { fault, .. } = error else { panic!("{error:?}") };
    assert_eq!(fault.message(), "minus one (at record 2 of 4)");
    kernel.terminate_blocking(Terminate::now());
}

#[test]
fn kernels_of_a_device_and_of_the_host_are_connected() {
    let _device = StandIn::get().shared();
    let stage = stage();
    let first = stage.launch::<Number, Number>("first", "next", RestartPolicy::Never);
    let second = stage.launch::<Number, Number>("second", "next", RestartPolicy::Never);
    let third = stage
        .runtime
        .kernel("third")
        .executor("thread")
        .launch(|mut context: dotcompute_core::Context<Number, Number>| async move {
            while let Ok(number) = context.receive().await {
                let value = number.value * 10;
                context.reply(Number { value }).await?;
            }
            Ok(())
        })
        .unwrap();
    third.activate().unwrap();
    first.connect(&second).unwrap();
    second.connect(&third).unwrap();
    for value in 0..200 {
        first.send_blocking(Number { value }, None).unwrap();
    }
    for value in 0..200 {
        let received = third.receive_blocking(LONG).unwrap().message.value;
        assert_eq!(received, (value + 2) * 10);
    }
    for kernel in [&first, &second, &third] {
        let ended = kernel.terminate_blocking(Terminate::drain().within(LONG.unwrap()));
        assert_eq!(ended, Termination::Clean);
        balanced(kernel.books());
    }
}

#[test]
fn a_snapshot_is_taken_between_two_messages_and_begins_another_kernel() {
    let _device = StandIn::get().shared();
    let stage = stage();
    let kernel = stage.adder("original");
    let sender = kernel.clone();
    let sends = thread::spawn(move || {
        (0..500).for_each(|_| assert!(ask(&sender, 1).count > 0));
    });
    let mut last = 0;
    while last < 100 {
        let state: Sum = stage.cuda.state("original", LONG.unwrap()).unwrap();
        assert!(state.total == state.count && state.count >= last, "{state:?} after {last}");
        last = state.count;
    }
    sends.join().unwrap();
    let state: Sum = stage.cuda.state("original", LONG.unwrap()).unwrap();
    assert_eq!(state, Sum { total: 500, count: 500 });
    let builder = stage.runtime.kernel("copy").executor("cuda");
    let launch = CudaLaunch::new("add").state(&state);
    let copy: KernelRef<Number, Sum> = stage.cuda.launch(builder, launch).unwrap();
    assert_eq!(stage.cuda.state::<Sum>("copy", LONG.unwrap()).unwrap(), state);
    copy.activate().unwrap();
    assert_eq!(ask(&copy, 1).total, 501);
    until("the counters", || stage.cuda.counters("copy").unwrap().processed == 1);
    kernel.terminate_blocking(Terminate::now());
    copy.terminate_blocking(Terminate::now());
    let error = stage.cuda.state_bytes("copy", LONG.unwrap()).unwrap_err();
    assert_eq!(error.to_string(), "ring kernel 'copy' is not on the device");
}

#[test]
fn a_full_mailbox_follows_its_policy() {
    let _device = StandIn::get().shared();
    let stage = stage();
    let builder = stage
        .runtime
        .kernel("full")
        .executor("cuda")
        .capacity(4)
        .backpressure(Backpressure::DropOldest);
    let kernel: KernelRef<Number, Sum> =
        stage.cuda.launch(builder, CudaLaunch::new("add")).unwrap();
    kernel.activate().unwrap();
    kernel.deactivate().unwrap();
    for value in 0..10 {
        kernel.send_blocking(Number { value }, None).unwrap();
    }
    kernel.reactivate().unwrap();
    let totals: Vec<i64> =
        (0..4).map(|_| kernel.receive_blocking(LONG).unwrap().message.total).collect();
    assert_eq!(totals, [6, 13, 21, 30]);
    kernel.terminate_blocking(Terminate::drain());
    balanced(kernel.books());
}

#[test]
fn replies_that_nobody_takes_hold_the_kernel_up_and_are_not_lost() {
    let _device = StandIn::get().shared();
    let stage = stage();
    let builder = stage.runtime.kernel("slow reader").executor("cuda").reply_capacity(2);
    let kernel: KernelRef<Number, Sum> =
        stage.cuda.launch(builder, CudaLaunch::new("add")).unwrap();
    kernel.activate().unwrap();
    for _ in 0..500 {
        kernel.send_blocking(Number { value: 1 }, None).unwrap();
    }
    for count in 1..=500 {
        assert_eq!(kernel.receive_blocking(LONG).unwrap().message.count, count);
    }
    // Nor do they keep it from ending.
    for _ in 0..100 {
        kernel.send_blocking(Number { value: 1 }, None).unwrap();
    }
    let ended = kernel.terminate_blocking(Terminate::now().within(LONG.unwrap()));
    assert_eq!(ended, Termination::Clean);
    balanced(kernel.books());
}

#[test]
fn a_handler_that_ticks_is_killed_at_the_deadline_and_its_seat_used_again() {
    let _device = StandIn::get().shared();
    let stage = Stage::with(CudaOptions { seats: 1, ..standin::options() });
    for turn in 0..3 {
        let kernel = stage.adder("loops");
        kernel.send_blocking(Number { value: -3 }, None).unwrap();
        kernel.send_blocking(Number { value: 1 }, None).unwrap();
        until("it is busy", || stage.cuda.counters("loops").is_ok());
        let began = Instant::now();
        let within = Duration::from_secs(1);
        let ended = kernel.terminate_blocking(Terminate::now().within(within));
        assert!(began.elapsed() < within + Duration::from_secs(20), "turn {turn}");
        assert_ne!(ended, Termination::Requested);
        balanced(kernel.books());
        assert_eq!(kernel.books().dead_lettered, 2);
    }
}

#[test]
fn a_kernel_that_does_not_come_back_is_reported_and_waits_for_nobody() {
    let _device = StandIn::get().alone();
    let (told, hears) = channel();
    let cuda = kernels().open(standin::options()).unwrap();
    let runtime = Runtime::builder()
        .executor(cuda.executor())
        .on_stall(move |kernel, _| drop(told.send(kernel.to_string())))
        .build();
    let builder =
        runtime.kernel("stuck").executor("cuda").watchdog(Some(Duration::from_millis(50)));
    let kernel: KernelRef<Number, Sum> = cuda.launch(builder, CudaLaunch::new("add")).unwrap();
    kernel.activate().unwrap();
    let long = Duration::from_secs(3).as_nanos() as i64;
    kernel.send_blocking(Number { value: -long }, None).unwrap();
    assert_eq!(hears.recv_timeout(Duration::from_secs(60)).unwrap(), "stuck");
    let began = Instant::now();
    kernel.terminate_blocking(Terminate::now().within(Duration::from_millis(200)));
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    balanced(kernel.books());
}

/// With the grid go its kernels; who may be to blame is said, and a restart policy finds another
/// grid.
#[test]
fn a_handler_that_keeps_its_grid_for_too_long_costs_the_grid() {
    let _device = StandIn::get().alone();
    let residency =
        Residency { overdue: Duration::from_millis(300), ..standin::options().residency };
    let stage = Stage::with(CudaOptions { residency, ..standin::options() });
    let culprit = stage.adder("culprit");
    let bystander = stage.adder("bystander");
    let restarts = stage.launch::<Number, Sum>("restarts", "add", patient());
    assert_eq!(ask(&restarts, 5).total, 5);
    let long = Duration::from_secs(4).as_nanos() as i64;
    let error = culprit.ask_blocking(Number { value: -long }, LONG).unwrap_err();
    let AskError::Failed { fault, .. } = error else { panic!("{error:?}") };
    assert_eq!(fault.kind(), FaultKind::Code(codes::FAULT_STUCK));
    assert!(fault.message().contains("this kernel's handler was at work"), "{fault}");
    until("the bystander has failed", || bystander.state() == KernelState::Failed);
    let fault = bystander.fault().unwrap();
    assert_eq!(fault.kind(), FaultKind::Code(codes::FAULT_STUCK));
    assert!(fault.message().contains("the handlers of seats [0] were at work"), "{fault}");
    // Its state anew.
    assert_eq!(ask(&restarts, 6).total, 6);
    for kernel in [&culprit, &bystander, &restarts] {
        balanced(kernel.books());
        kernel.terminate_blocking(Terminate::now());
    }
}

#[test]
fn a_trap_loses_the_device_and_every_kernel_is_told() {
    let stand_in = StandIn::get();
    let _device = stand_in.alone();
    let _mended = Mended(stand_in);
    let stage = Stage::new();
    let (culprit, other) = (stage.adder("traps"), stage.adder("other"));
    assert_eq!(ask(&other, 1).total, 1);
    let error = culprit.ask_blocking(Number { value: -5 }, LONG).unwrap_err();
    let AskError::Failed { fault, .. } = error else { panic!("{error:?}") };
    assert_eq!(fault.kind(), FaultKind::Code(codes::FAULT_LOST));
    assert!(fault.message().contains("719: CUDA_ERROR_LAUNCH_FAILED"), "{fault}");
    assert!(fault.message().contains("this kernel's handler was at work"), "{fault}");
    until("the other has failed", || other.state() == KernelState::Failed);
    assert_eq!(other.fault().unwrap().kind(), FaultKind::Code(codes::FAULT_LOST));
    assert!(other.ask_blocking(Number { value: 1 }, LONG).is_err());
    for kernel in [&culprit, &other] {
        balanced(kernel.books());
        kernel.terminate_blocking(Terminate::now());
    }
    // Nothing can be launched on it.
    let builder = stage.runtime.kernel("late").executor("cuda");
    let error = stage.cuda.launch::<Number, Sum>(builder, CudaLaunch::new("add")).unwrap_err();
    assert!(error_chain(&error).contains("CUDA_ERROR_LAUNCH_FAILED"), "{}", error_chain(&error));
}

fn error_chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        text = format!("{text}: {error}");
        next = error.source();
    }
    text
}

#[test]
fn a_launch_that_cannot_be_says_why() {
    let _device = StandIn::get().shared();
    let stage = stage();
    let builder = || stage.runtime.kernel("wrong").executor("cuda");
    let error = stage.cuda.launch::<Number, Sum>(builder(), CudaLaunch::new("sub")).unwrap_err();
    let said = error_chain(&error);
    assert!(said.contains("no kernel 'sub' is registered for CUDA"), "{said}");
    assert!(said.contains("add, count, next"), "{said}");
    let error = stage.cuda.launch::<Sum, Sum>(builder(), CudaLaunch::new("add")).unwrap_err();
    assert!(matches!(error, LaunchError::Layout { what: "messages", .. }), "{error}");
    let error = stage.cuda.launch::<Number, Number>(builder(), CudaLaunch::new("add")).unwrap_err();
    assert!(matches!(error, LaunchError::Layout { what: "replies", .. }), "{error}");
    let short = CudaLaunch::new("add").state(&Number { value: 1 });
    let error = stage.cuda.launch::<Number, Sum>(builder(), short).unwrap_err();
    assert!(error_chain(&error).contains("a state of 8 bytes for 'add', whose state has 16"));
    let other = Runtime::builder().executor(stage.cuda.executor()).build();
    let error = other
        .kernel("closure")
        .executor("cuda")
        .launch(|_context: dotcompute_core::Context<Number, Number>| async { Ok(()) })
        .unwrap_err();
    assert!(error_chain(&error).contains("no closures"), "{}", error_chain(&error));
}

#[derive(Clone, Copy, Message)]
#[message(record, crate = "dotcompute_core")]
#[repr(C)]
struct Large {
    values: [i64; 48],
}

#[test]
fn a_kernel_that_cannot_be_says_why() {
    let _device = StandIn::get().shared();
    let open = |kernel: CudaKernel| {
        CudaKernels::new().kernel("k", kernel).open(standin::options()).unwrap_err()
    };
    let code = || CudaHandler::from_source("next", NEXT);
    let error = open(CudaKernel::new(code(), Large::LAYOUT));
    assert_eq!(error.to_string(), "the message 'Large' of 'k' has 384 bytes; at most 376 will do");
    let error = open(CudaKernel::new(code(), Number::LAYOUT).output(Large::LAYOUT));
    assert_eq!(error.to_string(), "the reply 'Large' of 'k' has 384 bytes; at most 376 will do");
    let error = open(CudaKernel::new(code(), Number::LAYOUT).max_emit(8));
    assert!(error.to_string().contains("declares 8 emitted records"), "{error}");
    let bad = CudaHandler::from_source("next", NEXT.replace("+ 1;", "+ oops;"));
    let error = open(CudaKernel::new(bad, Number::LAYOUT)).to_string();
    assert!(error.contains("the handler 'next' does not compile"), "{error}");
    assert!(error.contains("next.cu:7") && error.contains("oops"), "{error}");
    let calls = CudaHandler::from_source(
        "next",
        NEXT.replace("struct number", "extern \"C\" int nobody();\nstruct number")
            .replace("+ 1;", "+ nobody();"),
    );
    let error = open(CudaKernel::new(calls, Number::LAYOUT)).to_string();
    assert!(error.contains("do not link") && error.contains("nobody"), "{error}");
    let options = CudaOptions { ordinal: 3, ..standin::options() };
    let error = kernels().open(options).unwrap_err();
    assert!(matches!(error, CudaError::NoDevice { ordinal: 3, count: 1 }), "{error}");
}

#[test]
fn more_kernels_than_a_grid_has_seats_take_another_grid() {
    let _device = StandIn::get().shared();
    let stage = Stage::with(CudaOptions { seats: 2, ..standin::options() });
    let kernels: Vec<_> = (0..5).map(|number| stage.adder(&format!("k{number}"))).collect();
    for (value, kernel) in kernels.iter().enumerate() {
        assert_eq!(ask(kernel, value as i64).total, value as i64);
    }
    // A seat that is given back is taken again.
    kernels[0].terminate_blocking(Terminate::now());
    assert_eq!(ask(&stage.adder("again"), 3).total, 3);
    for kernel in &kernels[1..] {
        kernel.terminate_blocking(Terminate::now());
    }
}

#[test]
fn kernels_go_on_when_the_device_is_let_go_of() {
    let _device = StandIn::get().shared();
    let Stage { runtime, cuda } = Stage::new();
    let builder = runtime.kernel("orphan").executor("cuda");
    let kernel: KernelRef<Number, Sum> = cuda.launch(builder, CudaLaunch::new("add")).unwrap();
    drop(cuda);
    kernel.activate().unwrap();
    assert_eq!(ask(&kernel, 3).total, 3);
    assert_eq!(kernel.terminate_blocking(Terminate::drain()), Termination::Clean);
    // A kernel that was never activated, too.
    let stage = Stage::new();
    let builder = stage.runtime.kernel("idle").executor("cuda");
    let idle: KernelRef<Number, Sum> = stage.cuda.launch(builder, CudaLaunch::new("add")).unwrap();
    assert_eq!(idle.terminate_blocking(Terminate::now()), Termination::Clean);
}

/// Kernels that fail at random and are restarted, senders of every kind, leases of two milliseconds:
/// at the end every message is accounted for, and the sums are those of what was processed.
#[test]
fn chaos_leaves_the_books_exact() {
    let _device = StandIn::get().shared();
    let residency =
        Residency { lease: Some(Duration::from_millis(2)), ..standin::options().residency };
    let stage = Stage::with(CudaOptions { residency, ..standin::options() });
    let messages: u64 = std::env::var("CHAOS_MESSAGES").map_or(1500, |text| text.parse().unwrap());
    let kernels: Vec<KernelRef<Number, Sum>> =
        (0..3).map(|number| stage.launch(&format!("c{number}"), "add", patient())).collect();
    let kernels = Arc::new(kernels);
    let senders: Vec<_> = (0..3_u64)
        .map(|sender| {
            let kernels = Arc::clone(&kernels);
            thread::spawn(move || {
                let (mut seed, mut answered, mut failed) = (sender * 77 + 1, 0_u64, 0_u64);
                for _ in 0..messages {
                    seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                    let kernel = &kernels[(seed >> 33) as usize % kernels.len()];
                    let value = if (seed >> 40) % 150 == 0 { -1 } else { (seed >> 50) as i64 };
                    let priority = (seed >> 24) as u8;
                    let message = Envelope::new(Number { value }).with_priority(priority);
                    match (seed >> 20) % 4 {
                        0 => match kernel.ask_blocking(message, LONG) {
                            Ok(_) => answered += 1,
                            Err(AskError::Failed { .. }) => failed += 1,
                            Err(error) => panic!("{error:?}"),
                        },
                        _ => kernel.send_blocking(message, None).unwrap(),
                    }
                    while kernel.try_receive().is_ok() {
                        answered += 1;
                    }
                }
                (answered, failed)
            })
        })
        .collect();
    let (done, ends) = channel();
    thread::spawn(move || {
        let results: Vec<_> = senders.into_iter().map(|sender| sender.join().unwrap()).collect();
        drop(done.send(results));
    });
    let mut results = None;
    while results.is_none() {
        for kernel in kernels.iter() {
            balanced(kernel.books());
            while kernel.try_receive().is_ok() {}
        }
        results = match ends.recv_timeout(Duration::from_millis(1)) {
            Ok(results) => Some(results),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => panic!("a sender failed"),
        };
    }
    let mut totals = (0, 0, 0);
    for kernel in kernels.iter() {
        let reader = kernel.clone();
        let drained = thread::spawn(move || while reader.receive_blocking(LONG).is_ok() {});
        let ended = kernel.terminate_blocking(Terminate::drain().within(LONG.unwrap()));
        drained.join().unwrap();
        assert_ne!(ended, Termination::Abandoned);
        let books = kernel.books();
        balanced(books);
        totals.0 += books.accepted;
        totals.1 += books.processed;
        totals.2 += books.dead_lettered;
    }
    assert_eq!(totals.0, 3 * messages);
    assert_eq!(totals.1 + totals.2, 3 * messages, "{totals:?}");
    assert!(totals.2 > 0, "no fault was hit");
}

/// No test: a program that finds libraries as any program does, for those below.
#[test]
fn child_main() {
    if std::env::var_os("EXECUTOR_CHILD").is_none() {
        return;
    }
    let residency = Residency { lease: None, silence: None, ..Residency::default() };
    let outcome = kernels()
        .open(CudaOptions { residency, ..CudaOptions::default() })
        .map_err(|error| error.to_string())
        .and_then(|cuda| {
            let runtime = Runtime::builder().executor(cuda.executor()).build();
            let builder = runtime.kernel("child").executor("cuda");
            let kernel: KernelRef<Number, Sum> = cuda
                .launch(builder, CudaLaunch::new("add"))
                .map_err(|error| error_chain(&error))?;
            kernel.activate().unwrap();
            let sum = ask(&kernel, 42);
            // It stays on the device: that the process ends is the test.
            std::mem::forget((kernel, runtime, cuda));
            Ok(sum.total)
        });
    println!("outcome: {outcome:?}");
}

/// What such a program comes to.
fn child(change: impl FnOnce(&mut Command) -> &mut Command) -> String {
    let mut command = standin::command(std::env::current_exe().unwrap());
    command.args(["--exact", "child_main", "--nocapture"]).env("EXECUTOR_CHILD", "1");
    change(&mut command);
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    let line = text.lines().find_map(|line| line.split_once("outcome: "));
    line.unwrap_or_else(|| panic!("no outcome in {text}")).1.to_owned()
}

/// The grid of this one has neither lease nor heartbeat: only the exit's hook ends it.
#[test]
fn a_process_ends_although_its_grid_would_stay() {
    assert_eq!(child(|command| command), "Ok(42)");
}

#[test]
fn what_is_absent_or_refuses_is_an_error_that_says_so() {
    if standin::on_device() {
        return; // what is there cannot be made absent
    }
    let nowhere = std::env::temp_dir().join(format!("no-cuda-{}", std::process::id()));
    std::fs::create_dir_all(&nowhere).unwrap();
    std::fs::write(nowhere.join("libcuda.so.1"), "no library").unwrap();
    let said = child(|command| command.env("LD_LIBRARY_PATH", &nowhere));
    assert!(said.contains("no CUDA: the NVIDIA driver was not found"), "{said}");
    assert!(said.contains("install the NVIDIA driver"), "{said}");
    let said = child(|command| command.env("STANDIN_VERSION", "11040"));
    assert!(said.contains("is 11.4, older than 12.0"), "{said}");
    let said = child(|command| command.env("STANDIN_FAIL", "cuInit=100"));
    assert!(said.contains("cuInit returned 100: CUDA_ERROR_NO_DEVICE"), "{said}");
    let said = child(|command| command.env("DOTCOMPUTE_CUDA_LIBRARIES", &nowhere));
    assert!(said.contains("no CUDA: NVRTC was not found"), "{said}");
    for (call, code, what) in [
        ("cuMemAlloc_v2", 2, "cuMemAlloc returned 2: CUDA_ERROR_OUT_OF_MEMORY"),
        ("cuMemHostAlloc", 2, "cuMemHostAlloc returned 2: CUDA_ERROR_OUT_OF_MEMORY"),
        ("cuModuleLoadData", 200, "cuModuleLoadData returned 200"),
        ("cuLaunchCooperativeKernel", 720, "cuLaunchCooperativeKernel returned 720"),
    ] {
        let said = child(|command| command.env("STANDIN_FAIL", format!("{call}={code}")));
        assert!(said.contains("'child'") && said.contains(what), "{said}");
    }
    std::fs::remove_dir_all(nowhere).unwrap();
}

#[test]
fn without_a_linker_a_toolkit_still_has_its_compiler() {
    const CHILD: &str = "DOTCOMPUTE_COMPILER_ALONE";
    if std::env::var_os(CHILD).is_some() {
        let toolkit = Toolkit::load().unwrap();
        assert!(toolkit.nvrtc.version() >= Version::new(12, 0));
        let absent = toolkit.linker().unwrap_err().to_string();
        assert!(absent.contains("nvJitLink"), "{absent}");
        let error = kernels()
            .build(Version::new(9, 0), &CudaOptions { cache: None, ..CudaOptions::default() })
            .unwrap_err();
        assert!(matches!(error, CudaError::Absent(_)), "{error:?}");
        return;
    }
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("compiler-alone");
    std::fs::create_dir_all(&folder).unwrap();
    let compiler = "libnvrtc.so.13";
    std::fs::copy(standin::folder().join(compiler), folder.join(compiler)).unwrap();
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "without_a_linker_a_toolkit_still_has_its_compiler"])
        .env(FOLDERS_VARIABLE, &folder)
        .env(CHILD, "1")
        .output()
        .unwrap();
    assert!(child.status.success(), "{}", String::from_utf8_lossy(&child.stdout));
}

#[test]
fn a_handler_that_does_not_come_back_keeps_no_other_kernel_from_its_work() {
    let _device = StandIn::get().shared();
    let options = standin::options();
    let overdue = Duration::from_secs(600);
    let residency = Residency { overdue, ..options.residency };
    let stage = Stage::with(CudaOptions { residency, ..options });
    let (stuck, works) = (stage.adder("stuck"), stage.adder("works"));
    assert_eq!(ask(&stuck, 1).total, 1);
    stuck.send_blocking(Number { value: -3 }, None).unwrap();
    // Long past the lease, which is over for both.
    let began = Instant::now();
    let mut count = 0;
    while began.elapsed() < Duration::from_millis(500) || count < 10 {
        count += 1;
        assert_eq!(ask(&works, 1).count, count);
    }
    assert_eq!((stuck.state(), stuck.books().in_hand), (KernelState::Active, 1));
    stuck.terminate_blocking(Terminate::now().within(Duration::from_secs(1)));
    // The next change needs all of them to come back.
    let third = stage.adder("comes later");
    assert_eq!(ask(&third, 7).total, 7);
    assert_eq!(ask(&works, 1).count, count + 1);
    third.terminate_blocking(Terminate::now());
    works.terminate_blocking(Terminate::now());
}
