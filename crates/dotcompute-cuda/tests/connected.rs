//! Kernels of one device that are connected, on the stand-ins: their replies go from seat to seat,
//! and to everyone else it is as if they had gone through the mailboxes.

#![cfg(target_os = "linux")]
#![expect(clippy::unwrap_used, reason = "a test")]

mod standin;

use std::sync::OnceLock;
use std::sync::mpsc::{TryRecvError, channel};
use std::thread;
use std::time::{Duration, Instant};

use dotcompute_core::{
    AskError, Backpressure, ConnectError, KernelRef, KernelState, Record, RecordBatch, Restart,
    RestartPolicy, Terminate, Termination,
};
use dotcompute_cuda::{CudaHandler, CudaKernel, CudaKernels, CudaLaunch, CudaOptions};
use standin::StandIn;
use standin::stage::{LONG, NOTHING, Number, RISING, Stage, balanced, drain, receive, send, until};

/// Replies with ten more.
const MORE: &str = r#"
#include "dotcompute.cuh"
struct number { long long value; };

extern "C" __device__ int32_t
more(const number *message, void *, number *reply, rk_ctx *) {
    reply->value = message->value + 10;
    return DC_HANDLER_REPLY;
}
"#;

/// Replies with each number twice.
const TWICE: &str = r#"
#include "dotcompute.cuh"
struct number { long long value; };

extern "C" __device__ int32_t
twice(const number *message, void *, number *reply, rk_ctx *ctx) {
    *reply = *message;
    if (int32_t fault = rk_emit(ctx, reply))
        return fault;
    return DC_HANDLER_REPLY;
}
"#;

/// As `more`, and takes its time, so that its window is never empty.
const SLOW: &str = r#"
#include "dotcompute.cuh"
struct number { long long value; };

extern "C" __device__ int32_t
slow(const number *message, void *, number *reply, rk_ctx *ctx) {
    const uint64_t end = rk_clock(ctx) + 200000;
    while (rk_clock(ctx) < end) {
    }
    reply->value = message->value + 10;
    return DC_HANDLER_REPLY;
}
"#;

fn with(options: CudaOptions) -> Stage {
    let kernel = |name: &str, source: &str| {
        CudaKernel::new(CudaHandler::from_source(name, source), Number::LAYOUT)
            .output(Number::LAYOUT)
    };
    let kernels = CudaKernels::new()
        .kernel("more", kernel("more", MORE))
        .kernel("slow", kernel("slow", SLOW))
        .kernel("rising", kernel("rising", RISING).state(&NOTHING))
        .kernel("twice", kernel("twice", TWICE).max_emit(1));
    Stage::of(kernels, options)
}

/// One that holds until it is activated.
fn launch_idle(stage: &Stage, name: &str, entry: &str) -> KernelRef<Number, Number> {
    let builder = stage.runtime.kernel(name).executor("cuda");
    stage.cuda.launch(builder, CudaLaunch::new(entry)).unwrap()
}

/// A stage that tests share which break nothing, with room for all their kernels on one grid.
fn stage() -> &'static Stage {
    static STAGE: OnceLock<Stage> = OnceLock::new();
    STAGE.get_or_init(|| with(CudaOptions { seats: 31, ..standin::options() }))
}

#[test]
fn replies_go_from_seat_to_seat_and_the_books_of_both_kernels_are_exact() {
    let _device = StandIn::get().shared();
    let stage = stage();
    let first = stage.launch("direct 1", "more");
    let second = stage.launch("direct 2", "rising");
    let pipeline = first.connect(&second).unwrap();
    let sender = first.clone();
    let sends = thread::spawn(move || (0..2000).for_each(|value| send(&sender, value)));
    for value in 0..2000 {
        assert_eq!(receive(&second), value + 10);
    }
    sends.join().unwrap();
    assert_eq!(pipeline.ask_blocking(Number { value: 5000 }, LONG).unwrap().message.value, 5010);
    until("the counters", || stage.sent("direct 1") == 2001);
    drain(&first);
    drain(&second);
    let (books, replies) = (second.books(), first.reply_books());
    assert_eq!((books.accepted, books.processed), (2001, 2001));
    assert_eq!((replies.accepted, replies.forwarded), (2001, 2001));
    assert_eq!(second.telemetry().records, 2001);
}

#[test]
fn an_ask_of_a_pipeline_on_the_device_is_answered_by_its_last_stage() {
    let _device = StandIn::get().shared();
    let stage = stage();
    let kernels = ["asked 1", "asked 2", "asked 3"].map(|name| stage.launch(name, "more"));
    let [first, second, third] = &kernels;
    let host = stage
        .runtime
        .kernel("asked 4")
        .executor("thread")
        .launch(|mut context: dotcompute_core::Context<Number, Number>| async move {
            while let Ok(number) = context.receive().await {
                let value = number.value * 2;
                context.reply(Number { value }).await?;
            }
            Ok(())
        })
        .unwrap();
    host.activate().unwrap();
    let pipeline = first.connect(second).unwrap().then(third).unwrap();
    let through = |pipeline: &dotcompute_core::Pipeline<Number, Number>, last: fn(i64) -> i64| {
        thread::scope(|scope| {
            for asker in 0..4 {
                scope.spawn(move || {
                    for turn in 0..50 {
                        let value = asker * 1000 + turn;
                        let answer = pipeline.ask_blocking(Number { value }, LONG).unwrap();
                        assert_eq!(answer.message.value, last(value));
                    }
                });
            }
        });
    };
    until("the edges", || {
        let answer = pipeline.ask_blocking(Number { value: 0 }, LONG).unwrap();
        assert_eq!(answer.message.value, 30);
        stage.sent("asked 1") > 0 && stage.sent("asked 2") > 0
    });
    through(&pipeline, |value| value + 30);
    // One who asks any stage asks the last one; and goes on to the host, if that is the last.
    assert_eq!(second.ask_blocking(Number { value: 1 }, LONG).unwrap().message.value, 21);
    let longer = pipeline.then(&host).unwrap();
    through(&longer, |value| (value + 30) * 2);
    kernels.iter().for_each(drain);
    host.terminate_blocking(Terminate::drain());
}

#[test]
fn a_message_at_which_the_next_kernel_fails_is_its_dead_letter_and_its_ask_fails() {
    let _device = StandIn::get().shared();
    let stage = stage();
    let first = stage.launch("feeds", "more");
    let patient = Restart {
        policy: RestartPolicy::OnFault,
        max_restarts: u32::MAX,
        backoff: Duration::ZERO,
        redeliver: false,
        ..Restart::default()
    };
    let builder = stage.runtime.kernel("fails").restart(patient);
    let second: KernelRef<Number, Number> = stage.launch_as("rising", builder);
    let pipeline = first.connect(&second).unwrap();
    // At each turn: one that it fails at, then two that it takes when it is back.
    for turn in 1..=5_i64 {
        send(&first, 100);
        assert_eq!(receive(&second), 110);
        send(&first, 50);
        send(&first, 200);
        assert_eq!(receive(&second), 210);
        send(&first, 300);
        assert_eq!(receive(&second), 310);
        let error = pipeline.ask_blocking(Number { value: 1 }, LONG).unwrap_err();
        let AskError::Failed { fault, .. } = error else { panic!("{error:?}") };
        assert_eq!(fault.message(), "out of order");
        until("all is settled", || second.books().dead_lettered == 2 * turn as u64);
    }
    until("all is settled", || second.books().processed == 15);
    let mut values = Vec::new();
    stage.runtime.take_dead_letters(|letter| {
        let is_ours = &letter.kernel == second.id();
        if is_ours && let Some(number) = letter.message::<Number>() {
            values.push(number.value);
        }
        is_ours
    });
    assert_eq!(values, [60, 11].repeat(5));
    until("the last restart", || second.telemetry().restarts == 10);
    drain(&first);
    drain(&second);
    assert_eq!(first.reply_books().forwarded, 25);
}

#[test]
fn what_the_next_kernel_had_not_taken_when_it_ended_is_received_from_the_first() {
    let _device = StandIn::get().shared();
    let stage = stage();
    let first = stage.launch("keeps", "more");
    for turn in 0..5 {
        let second = launch_idle(stage, &format!("leaves {turn}"), "rising");
        first.connect(&second).unwrap();
        for value in 1..=20 {
            send(&first, value);
        }
        until("they are passed on", || first.reply_books().forwarded == 20);
        let ended = second.terminate_blocking(Terminate::now().within(LONG.unwrap()));
        assert_eq!(ended, Termination::Clean);
        let back: Vec<i64> = (1..=20).map(|_| receive(&first)).collect();
        assert_eq!(back, (11..=30).collect::<Vec<_>>());
        assert_eq!((second.books().accepted, first.reply_books().forwarded), (0, 0));
        // What comes then goes the same way.
        send(&first, 5);
        assert_eq!(receive(&first), 15);
        assert_eq!(first.books().accepted, 21 * (turn + 1));
    }
    drain(&first);
}

#[test]
fn what_comes_back_to_a_kernel_that_is_killed_meanwhile_is_a_dead_letter_and_nobody_waits_for_it() {
    let _device = StandIn::get().shared();
    let stage = with(CudaOptions { seats: 31, ..standin::options() });
    for turn in 0..40 {
        let name = format!("is killed {turn}");
        let second = launch_idle(&stage, &format!("goes on {turn}"), "more");
        let first = stage.launch(&name, "more");
        first.connect(&second).unwrap();
        for value in 0..20 {
            send(&first, value);
        }
        until("they are passed on", || first.reply_books().forwarded == 20);
        assert!(first.disconnect());
        // Killed at whatever they have come to: the edge is there, is being removed, or is gone.
        first.terminate_blocking(Terminate::now().within(Duration::from_micros(20 * turn)));
        second.activate().unwrap();
        let letters = || {
            let mut letters = 0;
            stage.runtime.dead_letters(|letter| {
                letters += u64::from(letter.kernel.as_str() == name);
            });
            letters
        };
        until("each is here or there", || second.books().processed + letters() == 20);
        drain(&second);
        assert_eq!(second.books().processed + letters(), 20);
    }
}

#[test]
fn of_an_inbox_of_two_a_kernel_that_is_disconnected_gets_back_its_own() {
    let _device = StandIn::get().shared();
    let stage = stage();
    let second = launch_idle(stage, "of both", "more");
    let [first, other] = ["goes", "stays"].map(|name| {
        let kernel = stage.launch(name, "more");
        kernel.connect(&second).unwrap();
        kernel
    });
    for value in 0..40 {
        send(if value % 2 == 0 { &first } else { &other }, value);
    }
    until("they are passed on", || {
        first.reply_books().forwarded == 20 && other.reply_books().forwarded == 20
    });
    assert!(first.disconnect());
    for value in (0..40).step_by(2) {
        assert_eq!(receive(&first), value + 10);
    }
    second.activate().unwrap();
    // Also what comes after goes into the places that are free now.
    for value in (41..241).step_by(2) {
        send(&other, value);
    }
    for value in (1..241).step_by(2) {
        assert_eq!(receive(&second), value + 20);
    }
    [&first, &other, &second].into_iter().for_each(drain);
    assert_eq!((second.books().processed, first.reply_books().forwarded), (120, 0));
}

#[test]
fn what_was_passed_on_before_a_kernel_ends_is_worked_off() {
    let _device = StandIn::get().shared();
    let stage = stage();
    let first = stage.launch("goes first", "more");
    let second = launch_idle(stage, "goes last", "rising");
    let pipeline = first.connect(&second).unwrap();
    for value in 0..20 {
        send(&first, value);
    }
    until("they are passed on", || first.reply_books().forwarded == 20);
    second.activate().unwrap();
    let ended = pipeline.terminate_blocking(Terminate::drain().within(LONG.unwrap()));
    assert_eq!(ended, [Termination::Clean; 2]);
    balanced(&first);
    balanced(&second);
    // What nobody read of its replies is a dead letter.
    assert_eq!((second.books().processed, second.reply_books().accepted), (20, 20));
}

#[test]
fn batches_and_single_messages_keep_their_order() {
    let _device = StandIn::get().shared();
    let stage = stage();
    let batches = |name: &str, entry: &str| -> KernelRef<RecordBatch, RecordBatch> {
        stage.launch_as(entry, stage.runtime.kernel(name))
    };
    let (first, second) = (batches("mixed 1", "more"), batches("mixed 2", "rising"));
    first.connect(&second).unwrap();
    let mut value = 0;
    let mut next = || {
        value += 1;
        Number { value }
    };
    let mut expected = Vec::new();
    for turn in 0..200 {
        if turn % 5 == 4 {
            let batch: Vec<Number> = (0..7).map(|_| next()).collect();
            first.send_blocking(RecordBatch::from_vec(batch), LONG).unwrap();
            expected.push(7);
        } else {
            let single = RecordBatch::single(Number::LAYOUT, next().bytes()).unwrap();
            first.send_blocking(single, LONG).unwrap();
            expected.push(1);
        }
    }
    let mut last = 10;
    for count in expected {
        let reply = second.receive_blocking(LONG).unwrap().message;
        assert_eq!((reply.len(), reply.is_single()), (count, count == 1));
        for number in reply.as_slice::<Number>().unwrap() {
            assert_eq!(number.value, last + 1);
            last = number.value;
        }
    }
    assert_eq!(second.state(), KernelState::Active);
    for kernel in [&first, &second] {
        let ended = kernel.terminate_blocking(Terminate::drain().within(LONG.unwrap()));
        assert_eq!(ended, Termination::Clean);
        assert!(kernel.books().balance());
    }
    assert_eq!(second.books().processed, 200);
}

/// The batch goes by the host, and so does what comes behind it, until nothing is left of that: which never is so,
/// where the first kernel has no lull.
#[test]
fn a_kernel_without_a_lull_goes_past_the_host_again_after_a_batch_and_order_is_kept() {
    let _device = StandIn::get().shared();
    let stage = stage();
    let launch = |name: &str, entry: &str| -> KernelRef<RecordBatch, RecordBatch> {
        stage.launch_as(entry, stage.runtime.kernel(name))
    };
    let (first, second) = (launch("no lull 1", "slow"), launch("no lull 2", "rising"));
    let send = |to: &KernelRef<RecordBatch, RecordBatch>, value: i64| {
        let single = RecordBatch::single(Number::LAYOUT, Number { value }.bytes()).unwrap();
        to.send_blocking(single, LONG).unwrap();
    };
    let receive = || {
        let reply = second.receive_blocking(LONG).unwrap().message;
        reply.as_slice::<Number>().unwrap().iter().map(|number| number.value).collect::<Vec<_>>()
    };
    first.connect(&second).unwrap();
    second.deactivate().unwrap();
    first.send_blocking(RecordBatch::from_vec(vec![Number { value: 0 }; 1]), LONG).unwrap();
    let (enough, told) = channel::<()>();
    let sender = first.clone();
    let sends = thread::spawn(move || {
        let mut value = 0;
        while matches!(told.try_recv(), Err(TryRecvError::Empty)) {
            value += 1;
            send(&sender, value);
        }
        value
    });
    until("both are full", || first.books().queued > 500 && second.books().queued > 500);
    second.reactivate().unwrap();
    assert_eq!(receive(), [10]);
    let (mut received, deadline) = (0, Instant::now() + LONG.unwrap());
    while stage.sent("no lull 1") < 1000 {
        assert!(Instant::now() < deadline, "they never go past the host again");
        received += 1;
        assert_eq!(receive(), [received + 10]);
    }
    drop(enough);
    let sent = sends.join().unwrap();
    (received + 1..=sent).for_each(|value| assert_eq!(receive(), [value + 10]));
    for kernel in [&first, &second] {
        let ended = kernel.terminate_blocking(Terminate::drain().within(LONG.unwrap()));
        assert_eq!(ended, Termination::Clean);
        assert!(kernel.books().balance());
    }
    assert_eq!(second.books().processed, sent as u64 + 1);
}

#[test]
fn a_kernel_that_emits_passes_all_of_it_on_and_of_an_ask_the_first() {
    let _device = StandIn::get().shared();
    let stage = stage();
    let first = stage.launch("twice", "twice");
    let second = stage.launch("of two", "more");
    let pipeline = first.connect(&second).unwrap();
    for value in 0..100 {
        send(&first, value);
        assert_eq!((receive(&second), receive(&second)), (value + 10, value + 10));
    }
    for value in 0..20 {
        let answer = pipeline.ask_blocking(Number { value }, LONG).unwrap();
        assert_eq!(answer.message.value, value + 10);
    }
    drain(&first);
    drain(&second);
    assert_eq!(second.books().processed, 220);
    let late = |letter: &dotcompute_core::DeadLetter| &letter.kernel == first.id();
    assert_eq!(stage.runtime.take_dead_letters(late).len(), 20);
}

#[test]
fn what_has_no_edge_goes_by_the_host() {
    let _device = StandIn::get().shared();
    // A policy other than to wait is the mailbox's.
    let stage = stage();
    let first = stage.launch("by host 1", "more");
    let builder = stage.runtime.kernel("by host 2").backpressure(Backpressure::Reject);
    let second: KernelRef<Number, Number> = stage.launch_as("more", builder);
    first.connect(&second).unwrap();
    send(&first, 1);
    assert_eq!(receive(&second), 21);
    // A cycle is refused; where it is allowed, its last edge is not one of the device.
    let third = stage.launch("by host 3", "more");
    let fourth = stage.launch("by host 4", "more");
    third.connect(&fourth).unwrap();
    until("the edge", || {
        send(&third, 0);
        assert_eq!(receive(&fourth), 20);
        stage.sent("by host 3") > 0
    });
    let refused = fourth.connect(&third).unwrap_err();
    assert!(matches!(refused, ConnectError::Cycle { .. }), "{refused:?}");
    fourth.connect_allowing_cycle(&third).unwrap();
    let before = third.books().processed;
    send(&third, 0);
    until("it goes round", || third.books().processed > before + 21);
    assert!(fourth.disconnect());
    assert!(receive(&fourth) > 400);
    assert_eq!((stage.sent("by host 1"), stage.sent("by host 4")), (0, 0));
    [first, second, third, fourth].iter().for_each(drain);
}

#[test]
fn more_senders_than_an_inbox_has_edges_for_share_it_with_the_host() {
    let _device = StandIn::get().shared();
    let stage = with(CudaOptions { senders: 2, share: 4, ..standin::options() });
    let to = stage.launch("to", "more");
    let from = [0, 1, 2, 3].map(|number| stage.launch(&format!("from {number}"), "more"));
    for kernel in &from {
        kernel.connect(&to).unwrap();
    }
    thread::scope(|scope| {
        for kernel in &from {
            scope.spawn(move || (0..200).for_each(|value| send(kernel, value)));
        }
        let sum: i64 = (0..800).map(|_| receive(&to)).sum();
        assert_eq!(sum, 4 * (200 * 199 / 2 + 200 * 20));
    });
    from.iter().for_each(drain);
    drain(&to);
    assert_eq!(to.books().processed, 800);
}
