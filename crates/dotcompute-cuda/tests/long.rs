//! Records that take several slots, through the executor on the stand-ins: asked, in batches, between
//! kernels, and where a kernel fails at one.

#![cfg(target_os = "linux")]
#![expect(clippy::unwrap_used, reason = "a test")]

mod standin;

use std::sync::OnceLock;
use std::thread;

use dotcompute_core::compiled;
use dotcompute_core::{KernelRef, KernelState, Message, Record, RecordBatch};
use dotcompute_cuda::{CudaError, CudaHandler, CudaKernel, CudaKernels, CudaOptions};
use standin::StandIn;
use standin::stage::{LONG, Stage, drain, until};

/// The longest record that there is: eight slots.
const COUNT: usize = 47;

#[derive(Clone, Copy, Debug, PartialEq, Message)]
#[message(record, crate = "dotcompute_core")]
#[repr(C)]
struct Long {
    values: [i64; COUNT],
}

#[derive(Clone, Copy, Debug, PartialEq, Message)]
#[message(record, crate = "dotcompute_core")]
#[repr(C)]
struct Longer {
    values: [i64; COUNT + 1],
}

#[derive(Clone, Copy, Debug, PartialEq, Message)]
#[message(record, crate = "dotcompute_core")]
#[repr(C)]
struct Short {
    value: i64,
}

/// Values from this one on.
fn long(first: i64) -> Long {
    Long { values: std::array::from_fn(|at| first + at as i64) }
}

/// Adds ten to each, sends that on if it is to, and fails at what is torn or not above zero.
fn shift(function: &str, sends: bool) -> CudaKernel {
    let send = if sends { "if (int32_t fault = rk_send(ctx, 0, reply)) return fault;" } else { "" };
    let source = format!(
        r#"
        #include "dotcompute.cuh"
        struct record {{ long long values[{COUNT}]; }};
        extern "C" __device__ int32_t
        {function}(const record *message, void *, record *reply, rk_ctx *ctx) {{
            for (int at = 0; at < {COUNT}; ++at) {{
                if (message->values[at] != message->values[0] + at)
                    return rk_fault(ctx, -33, "a torn record", 13);
                reply->values[at] = message->values[at] + 10;
            }}
            if (message->values[0] == 666)
                return rk_fault(ctx, -66, "not that one", 12);
            {send}
            return DC_HANDLER_REPLY;
        }}
        "#
    );
    CudaKernel::new(CudaHandler::from_source(function, source), Long::LAYOUT).output(Long::LAYOUT)
}

/// Short ones to long ones, and the other way round.
const STRETCH: &str = r#"
#include "dotcompute.cuh"
struct record { long long values[47]; };
extern "C" __device__ int32_t
stretch(const long long *message, void *, record *reply, rk_ctx *) {
    for (int at = 0; at < 47; ++at)
        reply->values[at] = *message + at;
    return DC_HANDLER_REPLY;
}
"#;
const SHRINK: &str = r#"
#include "dotcompute.cuh"
struct record { long long values[47]; };
extern "C" __device__ int32_t
shrink(const record *message, void *, long long *reply, rk_ctx *ctx) {
    for (int at = 0; at < 3; ++at) {
        *reply = message->values[46] + at;
        if (at < 2)
            if (int32_t fault = rk_emit(ctx, reply))
                return fault;
    }
    return DC_HANDLER_REPLY;
}
"#;

fn stage() -> &'static Stage {
    static STAGE: OnceLock<Stage> = OnceLock::new();
    STAGE.get_or_init(|| {
        let stretch = CudaHandler::from_source("stretch", STRETCH);
        let shrink = CudaHandler::from_source("shrink", SHRINK);
        let kernels = CudaKernels::new()
            .kernel("shift", shift("shift", false))
            .kernel("send", shift("send", true).target::<Long>("sent to", Long::LAYOUT))
            .kernel("stretch", CudaKernel::new(stretch, Short::LAYOUT).output(Long::LAYOUT))
            .kernel(
                "shrink",
                CudaKernel::new(shrink, Long::LAYOUT).output(Short::LAYOUT).max_emit(2),
            );
        Stage::of(kernels, CudaOptions { seats: 31, ..standin::options() })
    })
}

fn launch<M: compiled::RecordMessage, R: compiled::RecordReply>(
    name: &str,
    entry: &str,
) -> KernelRef<M, R> {
    stage().launch_as(entry, stage().runtime.kernel(name))
}

#[test]
fn long_records_go_there_and_back_more_of_them_than_a_window_holds() {
    let _device = StandIn::get().shared();
    let kernel: KernelRef<Long, Long> = launch("there", "shift");
    assert_eq!(kernel.ask_blocking(long(5), LONG).unwrap().message, long(15));
    let sender = kernel.clone();
    let sends = thread::spawn(move || {
        (1..=500).for_each(|value| sender.send_blocking(long(value), LONG).unwrap());
    });
    for value in 1..=500 {
        assert_eq!(kernel.receive_blocking(LONG).unwrap().message, long(value + 10));
    }
    sends.join().unwrap();
    drain(&kernel);
    assert_eq!(kernel.books().processed, 501);
}

#[test]
fn batches_of_long_records_are_answered_with_one() {
    let _device = StandIn::get().shared();
    let kernel: KernelRef<RecordBatch, RecordBatch> = launch("batches", "shift");
    for count in [1, 7, 8, 100] {
        let batch = RecordBatch::from_vec((1..=count).map(long).collect::<Vec<Long>>());
        let answer = kernel.ask_blocking(batch, LONG).unwrap().message;
        let expected: Vec<Long> = (1..=count).map(|value| long(value + 10)).collect();
        assert_eq!(answer.as_slice::<Long>().unwrap(), expected);
    }
    drain(&kernel);
}

#[test]
fn records_of_different_sizes_go_from_kernel_to_kernel() {
    let _device = StandIn::get().shared();
    let stage = stage();
    let first: KernelRef<Short, Long> = launch("stretch", "stretch");
    let second: KernelRef<Long, Long> = launch("between", "shift");
    let third: KernelRef<Long, Short> = launch("shrink", "shrink");
    first.connect(&second).unwrap();
    second.connect(&third).unwrap();
    for value in 1..=200 {
        first.send_blocking(Short { value }, LONG).unwrap();
        for emitted in 0..3 {
            let reply = third.receive_blocking(LONG).unwrap().message;
            assert_eq!(reply.value, value + 56 + emitted);
        }
    }
    until("they go on the device", || stage.cuda.counters("between").unwrap().sent > 0);
    drain(&first);
    drain(&second);
    drain(&third);
    assert_eq!((second.books().processed, third.books().processed), (200, 200));
}

#[test]
fn a_kernel_sends_long_records_and_fails_with_the_one_in_hand_whole() {
    let _device = StandIn::get().shared();
    let stage = stage();
    let second: KernelRef<Long, Long> = launch("sent to", "shift");
    let first: KernelRef<Long, Long> = launch("sends", "send");
    for value in 1..=200 {
        first.send_blocking(long(value), LONG).unwrap();
    }
    for value in 1..=200 {
        assert_eq!(first.receive_blocking(LONG).unwrap().message, long(value + 10));
        assert_eq!(second.receive_blocking(LONG).unwrap().message, long(value + 20));
    }
    until("all went on the device", || stage.cuda.counters("sends").unwrap().sent == 200);
    first.send_blocking(long(656), LONG).unwrap();
    until("it fails", || second.state() == KernelState::Failed);
    let mut letters = stage.runtime.take_dead_letters(|letter| letter.kernel == *second.id());
    let letter = letters.pop().unwrap().into_envelope::<Long>().unwrap();
    assert_eq!((letter.message, letters.len()), (long(666), 0));
    drain(&first);
    assert!(second.books().balance());
    assert_eq!((second.books().processed, second.books().dead_lettered), (200, 1));
}

#[test]
fn what_is_longer_than_eight_slots_is_refused() {
    let _device = StandIn::get().shared();
    let longer = CudaKernel::new(CudaHandler::from_source("longer", STRETCH), Longer::LAYOUT);
    let refused = CudaKernels::new().kernel("longer", longer).open(standin::options());
    let refused = refused.unwrap_err();
    assert!(
        matches!(refused, CudaError::TooLarge { what: "message", bytes: 384, most: 376, .. }),
        "{refused}"
    );
}
