//! Handlers that send to other kernels, on the stand-ins: by an edge where both sit on one grid, by the
//! host elsewhere, in order on both ways, and never into nowhere.

#![cfg(target_os = "linux")]
#![expect(clippy::unwrap_used, reason = "a test")]

mod standin;

use std::sync::OnceLock;
use std::sync::mpsc::{TryRecvError, channel};
use std::thread;
use std::time::Instant;

use dotcompute_core::{
    Backpressure, Context, DeadLetterReason, KernelRef, KernelState, LaunchError, Message, Record,
    Terminate, Termination,
};
use dotcompute_cuda::{CudaError, CudaHandler, CudaKernel, CudaKernels, CudaLaunch, CudaOptions};
use standin::StandIn;
use standin::stage::{
    LONG, NOTHING, Number, RISING, Seen, Stage, drain, patient, receive, send, until,
};

#[derive(Clone, Copy, Debug, PartialEq, Message)]
#[message(record, crate = "dotcompute_core")]
#[repr(C)]
struct Large {
    values: [i64; 48],
}

/// Sends ten more to its first target, and replies with that.
const SEND: &str = r#"
#include "dotcompute.cuh"
struct number { long long value; };

extern "C" __device__ int32_t
forward(const number *message, void *, number *reply, rk_ctx *ctx) {
    reply->value = message->value + 10;
    if (int32_t fault = rk_send(ctx, 0, reply))
        return fault;
    return DC_HANDLER_REPLY;
}
"#;

/// Sends what it is told to its target, and takes its time, so that its window is never empty.
const PASS: &str = r#"
#include "dotcompute.cuh"
struct number { long long value; };

extern "C" __device__ int32_t
pass(const number *message, void *, number *, rk_ctx *ctx) {
    const uint64_t end = rk_clock(ctx) + 200000;
    while (rk_clock(ctx) < end) {
    }
    return rk_send(ctx, 0, message);
}
"#;

/// Replies with what it is told, and takes its time; fails where that is no more than what it was told before that
/// was even, or odd, as this is.
const APART: &str = r#"
#include "dotcompute.cuh"
struct number { long long value; };
struct seen { long long last, count; };

extern "C" __device__ int32_t
apart(const number *message, seen *state, number *reply, rk_ctx *ctx) {
    const uint64_t end = rk_clock(ctx) + 20000;
    while (rk_clock(ctx) < end) {
    }
    long long &last = message->value & 1 ? state->count : state->last;
    if (message->value <= last)
        return rk_fault(ctx, -7, "out of order", 12);
    last = message->value;
    *reply = *message;
    return DC_HANDLER_REPLY;
}
"#;

/// Sends what it is told: even values to its first target, odd ones to its second; and fails, having
/// sent, at what is below zero.
const DEAL: &str = r#"
#include "dotcompute.cuh"
struct number { long long value; };

extern "C" __device__ int32_t
deal(const number *message, void *, number *, rk_ctx *ctx) {
    if (int32_t fault = rk_send(ctx, message->value & 1, message))
        return fault;
    return message->value < 0 ? -5 : DC_HANDLER_DONE;
}
"#;

/// Fails at what is divisible by 7.
const PICKY: &str = r#"
#include "dotcompute.cuh"
struct number { long long value; };

extern "C" __device__ int32_t
picky(const number *message, void *, number *reply, rk_ctx *) {
    *reply = *message;
    return message->value % 7 == 0 ? -9 : DC_HANDLER_REPLY;
}
"#;

/// Logs, emits and sends as often as the value says: hundreds, tens and ones.
const MANY: &str = r#"
#include "dotcompute.cuh"
struct number { long long value; };

extern "C" __device__ int32_t
many(const number *message, void *, number *reply, rk_ctx *ctx) {
    *reply = *message;
    for (int line = 0; line < message->value / 100; ++line)
        rk_log(ctx, 10, "a line", 6);
    for (int emit = 0; emit < message->value / 10 % 10; ++emit)
        if (int32_t fault = rk_emit(ctx, reply))
            return fault;
    for (int send = 0; send < message->value % 10; ++send)
        if (int32_t fault = rk_send(ctx, 0, reply))
            return fault;
    return DC_HANDLER_REPLY;
}
"#;

fn number(name: &str, source: &str) -> CudaKernel {
    CudaKernel::new(CudaHandler::from_source(name, source), Number::LAYOUT).output(Number::LAYOUT)
}

fn to(kernel: CudaKernel, targets: &[&str]) -> CudaKernel {
    targets.iter().fold(kernel, |kernel, target| kernel.target::<Number>(target, Number::LAYOUT))
}

/// With these kernels beside those that send nowhere.
fn with(kernels: &[(&str, CudaKernel)]) -> Stage {
    let basis = CudaKernels::new()
        .kernel("rising", number("rising", RISING).state(&NOTHING))
        .kernel("picky", number("picky", PICKY));
    let all = kernels.iter().fold(basis, |all, (name, kernel)| all.kernel(name, kernel.clone()));
    Stage::of(all, CudaOptions { seats: 31, ..standin::options() })
}

/// On a thread of the host; replies with what it is sent.
fn launch_on_host(stage: &Stage, name: &str) -> KernelRef<Number, Number> {
    let body = |mut context: Context<Number, Number>| async move {
        while let Ok(number) = context.receive().await {
            let value = number.value;
            context.reply(Number { value }).await?;
        }
        Ok(())
    };
    let kernel = stage.runtime.kernel(name).executor("thread").launch(body).unwrap();
    kernel.activate().unwrap();
    kernel
}

/// The dead letters of a kernel, but for replies that nobody read.
fn dead_letters(stage: &Stage, kernel: &str) -> usize {
    let mut letters = 0;
    stage.runtime.dead_letters(|letter| {
        let is_message = !matches!(letter.reason, DeadLetterReason::Unread);
        letters += usize::from(letter.kernel.as_str() == kernel && is_message);
    });
    letters
}

/// A stage that tests share which break nothing. Each target is named for its test.
fn stage() -> &'static Stage {
    static STAGE: OnceLock<Stage> = OnceLock::new();
    STAGE.get_or_init(|| {
        let forward = number("forward", SEND);
        let pass = CudaKernel::new(CudaHandler::from_source("pass", PASS), Number::LAYOUT);
        let deal = || CudaKernel::new(CudaHandler::from_source("deal", DEAL), Number::LAYOUT);
        with(&[
            ("direct", to(forward.clone(), &["direct to"])),
            ("by host", to(forward.clone(), &["by host to"])),
            ("late", to(forward.clone(), &["late to"])),
            ("busy", to(pass.clone(), &["busy to"])),
            ("crowded", to(pass, &["crowded to"])),
            ("apart", number("apart", APART).state(&NOTHING)),
            ("policy", to(forward.clone(), &["policy to"])),
            ("nowhere", to(forward.clone(), &["nobody"])),
            ("deal", to(deal(), &["deal to 0", "deal to 1"])),
            ("restart", to(forward.clone(), &["restart to"])),
            ("ends", to(forward.clone(), &["ends to"])),
            ("ping", to(deal(), &["pong", "ping end"])),
            ("pong", to(forward.clone(), &["ping"])),
            ("many", to(number("many", MANY).max_emit(2), &["many to"])),
        ])
    })
}

#[test]
fn what_is_sent_goes_from_seat_to_seat_in_order_and_the_books_of_both_are_exact() {
    let _device = StandIn::get().shared();
    let stage = stage();
    let second = stage.launch("direct to", "rising");
    let first = stage.launch("direct", "direct");
    let sender = first.clone();
    let sends = thread::spawn(move || (0..2000).for_each(|value| send(&sender, value)));
    for value in 0..2000 {
        // Its replies are its own.
        assert_eq!(receive(&first), value + 10);
        assert_eq!(receive(&second), value + 10);
    }
    sends.join().unwrap();
    // Both were there before the first message: all went on the device.
    until("the counters", || stage.sent("direct") == 2000);
    drain(&first);
    drain(&second);
    assert_eq!((first.books().accepted, first.books().processed), (2000, 2000));
    assert_eq!((second.books().accepted, second.books().processed), (2000, 2000));
    assert_eq!(first.reply_books().accepted, 2000);
}

#[test]
fn what_is_sent_to_a_kernel_of_the_host_goes_there() {
    let _device = StandIn::get().shared();
    let stage = stage();
    let second = launch_on_host(stage, "by host to");
    let first = stage.launch("by host", "by host");
    for value in 0..300 {
        send(&first, value);
    }
    for value in 0..300 {
        assert_eq!((receive(&first), receive(&second)), (value + 10, value + 10));
    }
    drain(&first);
    drain(&second);
    assert_eq!(second.books().processed, 300);
}

#[test]
fn a_target_that_comes_later_is_sent_to_on_the_device_and_order_is_kept() {
    let _device = StandIn::get().shared();
    let stage = stage();
    let first = stage.launch("late", "late");
    let second = stage.launch("late to", "rising");
    // By the host until the edge is there.
    let mut value = 0;
    until("they go on the device", || {
        for _ in 0..50 {
            value += 1;
            send(&first, value);
        }
        for sent in value - 49..=value {
            assert_eq!((receive(&first), receive(&second)), (sent + 10, sent + 10));
        }
        stage.sent("late") > 0
    });
    drain(&first);
    drain(&second);
    assert_eq!(second.books().processed, first.books().processed);
}

#[test]
fn a_sender_without_a_lull_moves_to_the_device_and_order_is_kept() {
    let _device = StandIn::get().shared();
    let stage = stage();
    // Nothing goes on the device while the target has something to do; and then the sender is never
    // seen with nothing to do.
    let second = stage.launch("busy to", "rising");
    second.deactivate().unwrap();
    send(&second, 0);
    let first = stage.launch("busy", "busy");
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
    assert_eq!(receive(&second), 0);
    let (mut received, deadline) = (0, Instant::now() + LONG.unwrap());
    while stage.sent("busy") < 1000 {
        assert!(Instant::now() < deadline, "they never go on the device");
        received += 1;
        assert_eq!(receive(&second), received);
    }
    drop(enough);
    let sent = sends.join().unwrap();
    (received + 1..=sent).for_each(|value| assert_eq!(receive(&second), value));
    drain(&first);
    drain(&second);
    assert_eq!(second.books().processed, sent as u64 + 1);
}

/// Others see to it that nothing is ever arranged with it, as long as they do; which holds up nobody.
#[test]
fn a_target_whose_mailbox_is_never_empty_is_sent_to_all_the_same_and_in_order() {
    let _device = StandIn::get().shared();
    let stage = stage();
    let target = stage.runtime.kernel("crowded to").reply_capacity(1 << 20);
    let target: KernelRef<Number, Number> = stage.launch_as("apart", target);
    let (enough, told) = channel::<()>();
    let crowded = target.clone();
    let crowd = thread::spawn(move || {
        let mut value = 0;
        while matches!(told.try_recv(), Err(TryRecvError::Empty)) {
            value += 2;
            send(&crowded, value);
        }
        value
    });
    until("it is full", || target.books().queued > 500);
    let first = stage.launch("crowded", "crowded");
    (0..300).for_each(|number| send(&first, 2 * number + 1));
    let (mut even, mut odd) = (0, -1);
    let mut take = |until_even: i64, until_odd: i64| {
        while even < until_even || odd < until_odd {
            let value = receive(&target);
            let last = if value & 1 == 0 { &mut even } else { &mut odd };
            assert_eq!(value, *last + 2);
            *last = value;
        }
    };
    take(0, 599);
    drop(enough);
    take(crowd.join().unwrap(), 599);
    // Now they let it have a lull.
    let mut value = 599;
    until("they go on the device", || {
        value += 2;
        send(&first, value);
        assert_eq!(receive(&target), value);
        stage.sent("crowded") > 0
    });
    drain(&first);
    drain(&target);
}

#[test]
fn a_target_that_does_not_wait_for_room_is_sent_to_by_the_host() {
    let _device = StandIn::get().shared();
    let stage = stage();
    let builder = stage.runtime.kernel("policy to").executor("cuda").capacity(4);
    let builder = builder.backpressure(Backpressure::DropOldest);
    let second: KernelRef<Number, Number> =
        stage.cuda.launch(builder, CudaLaunch::new("picky")).unwrap();
    second.activate().unwrap();
    second.deactivate().unwrap();
    let first = stage.launch("policy", "policy");
    for value in 0..50 {
        send(&first, value);
        assert_eq!(receive(&first), value + 10);
    }
    until("all are there", || second.books().accepted == 50);
    let ended = second.terminate_blocking(Terminate::now().within(LONG.unwrap()));
    assert_eq!(ended, Termination::Clean);
    let books = second.books();
    assert!(books.balance() && books.dropped_oldest == 46, "{books:?}");
    assert_eq!(stage.sent("policy"), 0);
    drain(&first);
}

#[test]
fn a_target_that_there_is_not_fails_the_kernel_with_what_it_had_in_hand() {
    let _device = StandIn::get().shared();
    let stage = stage();
    let first = stage.launch("nowhere", "nowhere");
    send(&first, 1);
    let error = first.receive_blocking(LONG).unwrap_err();
    assert!(error.to_string().contains("no ring kernel named 'nobody'"), "{error}");
    until("it is a dead letter", || dead_letters(stage, "nowhere") == 1);
    let books = first.books();
    assert!(books.balance() && books.dead_lettered == 1, "{books:?}");
}

#[test]
fn what_a_handler_sent_before_it_failed_is_not_sent() {
    let _device = StandIn::get().shared();
    let stage = stage();
    let even = stage.launch("deal to 0", "rising");
    let odd = launch_on_host(stage, "deal to 1");
    let first = stage.launch("deals", "deal");
    for value in 0..100 {
        send(&first, value);
    }
    for value in 0..50 {
        assert_eq!((receive(&even), receive(&odd)), (2 * value, 2 * value + 1));
    }
    send(&first, -2);
    until("it fails", || first.state() == KernelState::Failed);
    drain(&even);
    drain(&odd);
    assert_eq!((even.books().processed, odd.books().processed), (50, 50));
    assert!(first.books().balance());
}

#[test]
fn a_target_that_starts_anew_loses_nothing_but_what_it_failed_at() {
    let _device = StandIn::get().shared();
    let stage = stage();
    let builder = stage.runtime.kernel("restart to").executor("cuda").restart(patient());
    let second: KernelRef<Number, Number> =
        stage.cuda.launch(builder, CudaLaunch::new("picky")).unwrap();
    second.activate().unwrap();
    let first = stage.launch("restart", "restart");
    let sender = first.clone();
    let sends = thread::spawn(move || {
        for value in 0..100 {
            send(&sender, value);
            assert_eq!(receive(&sender), value + 10);
        }
    });
    for value in (10..110).filter(|value| value % 7 != 0) {
        assert_eq!(receive(&second), value);
    }
    sends.join().unwrap();
    let failed_at = (10..110).filter(|value| value % 7 == 0).count();
    until("the restarts", || second.telemetry().restarts == failed_at as u64);
    drain(&first);
    drain(&second);
    let books = second.books();
    assert_eq!((books.processed, books.dead_lettered), (100 - failed_at as u64, failed_at as u64));
}

#[test]
fn what_a_target_had_not_taken_when_it_ended_is_a_dead_letter_of_its() {
    let _device = StandIn::get().shared();
    let stage = stage();
    let second = stage.launch("ends to", "rising");
    let first = stage.launch("ends", "ends");
    send(&first, 0);
    until("the edge", || stage.sent("ends") == 1);
    assert_eq!((receive(&first), receive(&second)), (10, 10));
    second.deactivate().unwrap();
    for value in 1..=20 {
        send(&first, value);
        assert_eq!(receive(&first), value + 10);
    }
    until("they are sent", || stage.sent("ends") == 21);
    let ended = second.terminate_blocking(Terminate::now().within(LONG.unwrap()));
    assert_eq!(ended, Termination::Clean);
    // Some may have been taken before it held.
    let processed = second.books().processed as usize;
    until("the others are dead letters", || dead_letters(stage, "ends to") + processed == 21);
    assert_eq!(first.state(), KernelState::Active);
    // What is sent there now fails the sender, as on any executor.
    send(&first, 21);
    until("it fails", || first.state() == KernelState::Failed);
    assert!(first.books().balance());
}

#[test]
fn two_kernels_that_send_to_each_other_are_no_deadlock() {
    let _device = StandIn::get().shared();
    let stage = stage();
    // `ping` deals even values to `pong`, which sends ten more back; odd ones leave the circle.
    let end = launch_on_host(stage, "ping end");
    let ping = stage.launch("ping", "ping");
    let pong = stage.launch("pong", "pong");
    send(&ping, 0);
    for turn in 1..200 {
        assert_eq!(receive(&pong), 10 * turn);
    }
    send(&ping, 1);
    assert_eq!(receive(&end), 1);
    for kernel in [&ping, &pong] {
        kernel.terminate_blocking(Terminate::now().within(LONG.unwrap()));
        assert!(kernel.books().balance(), "{:?}", kernel.books());
    }
    drain(&end);
}

#[test]
fn seven_records_leave_a_message_and_lines_of_the_log_give_way() {
    let _device = StandIn::get().shared();
    let stage = stage();
    let second = stage.launch("many to", "picky");
    let first = stage.launch("many", "many");
    let expect = |value: i64, replies: usize, sent: usize| {
        send(&first, value);
        assert!((0..replies).all(|_| receive(&first) == value));
        assert!((0..sent).all(|_| receive(&second) == value));
    };
    expect(5, 1, 5);
    expect(25, 3, 5);
    // Two emits, one record for the target and the reply have their places of sixteen: of twenty lines
    // twelve find room.
    expect(2021, 3, 1);
    until("the counters", || stage.cuda.counters("many").unwrap().logs_lost == 8);
    // More emits than it declared, and more records than leave a message.
    for (name, value) in [("too many emits", 30), ("too many sent", 26)] {
        let kernel = stage.launch(name, "many");
        send(&kernel, value);
        let error = kernel.receive_blocking(LONG).unwrap_err();
        assert!(error.to_string().contains("emitted more than it declared"), "{error}");
    }
    drain(&first);
    drain(&second);
    assert_eq!(second.books().processed, 11);
}

#[test]
fn targets_that_cannot_be_are_refused_at_launch() {
    let _device = StandIn::get().shared();
    let seen = Seen { last: 0, count: 0 };
    let wide = CudaKernel::new(CudaHandler::from_source("deal", DEAL), Seen::LAYOUT).state(&seen);
    let stage = with(&[
        ("wide", wide),
        ("to wide", to(number("forward", SEND), &["taken"])),
        ("to wide too", to(number("forward", SEND), &["taken later"])),
    ]);
    let builder = stage.runtime.kernel("taken").executor("cuda");
    let _taken: KernelRef<Seen, Number> =
        stage.cuda.launch(builder, CudaLaunch::new("wide")).unwrap();
    let builder = stage.runtime.kernel("sends").executor("cuda");
    let refused = stage.cuda.launch::<Number, Number>(builder, CudaLaunch::new("to wide"));
    let LaunchError::Executor { source, .. } = refused.unwrap_err() else { panic!("not refused") };
    let text = source.to_string();
    assert!(text.ends_with("'Number' to 'taken', which takes 'Seen'"), "{text}");
    // One that comes later fails the kernel.
    let first = stage.launch("sends too", "to wide too");
    let builder = stage.runtime.kernel("taken later").executor("cuda");
    let _taken: KernelRef<Seen, Number> =
        stage.cuda.launch(builder, CudaLaunch::new("wide")).unwrap();
    until("it fails", || first.state() == KernelState::Failed);
    // What no seat has room for.
    let open = |kernel: CudaKernel| {
        CudaKernels::new().kernel("refused", kernel).open(standin::options()).unwrap_err()
    };
    let large = number("forward", SEND).target::<Large>("large", Large::LAYOUT);
    assert!(matches!(open(large), CudaError::TooLarge { what: "record sent", bytes: 384, .. }));
    let all = to(number("forward", SEND), &["one"]).max_emit(7);
    assert!(matches!(open(all), CudaError::Emits { emits: 7, most: 6, .. }));
    let names: Vec<String> = (0..32).map(|number| format!("target {number}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let crowd = to(number("forward", SEND), &names);
    assert!(matches!(open(crowd), CudaError::Targets { targets: 32, most: 31, .. }));
}
