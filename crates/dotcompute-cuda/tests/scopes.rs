//! Handlers of a warp, of a block and of a team of blocks, on stand-ins for NVIDIA's libraries: each thread of a
//! handler is a thread of the host's. Of a GPU it shows nothing.

#![cfg(target_os = "linux")]
#![expect(clippy::unwrap_used, reason = "a test")]

mod standin;

use std::sync::OnceLock;
use std::time::Duration;

use dotcompute_abi::codes::{FAULT_BAD_RESULT, FAULT_DIVERGED, FAULT_LOST};
use dotcompute_core::{
    AskError, Books, FaultKind, KernelRef, Message, Record, Restart, RestartPolicy, Runtime,
    Terminate, Termination,
};
use dotcompute_cuda::{
    BuildError, Cuda, CudaError, CudaHandler, CudaKernel, CudaKernels, CudaLaunch, CudaOptions,
    Image, Scope, Variant, Version,
};
use standin::StandIn;

#[derive(Clone, Copy, Debug, PartialEq, Message)]
#[message(record, crate = "dotcompute_core")]
#[repr(C)]
struct Range {
    first: i64,
    count: i64,
}

#[derive(Clone, Copy, Debug, PartialEq, Message)]
#[message(record, crate = "dotcompute_core")]
#[repr(C)]
struct Total {
    value: i64,
    threads: i64,
}

/// What the blocks of a team came to, one by one, and all that it has summed.
#[derive(Clone, Copy, Debug, PartialEq, Message)]
#[message(record, crate = "dotcompute_core")]
#[repr(C)]
struct Parts {
    value: i64,
    of: [i64; 8],
}

/// Adds up the numbers of a range by a tree in shared memory, and keeps the sum of all sums.
const SUM: &str = r#"
#include "dotcompute.cuh"
struct range { long long first, count; };
struct total { long long value, threads; };

extern "C" __device__ int32_t
sum(const range *message, total *state, total *reply, rk_ctx *ctx) {
    const uint32_t thread = rk_thread(ctx), threads = rk_threads(ctx);
    long long *partial = static_cast<long long *>(rk_shared(ctx));
    long long mine = 0;
    for (long long at = thread; at < message->count; at += threads)
        mine += message->first + at;
    partial[thread] = mine;
    if (int32_t fault = rk_barrier(ctx))
        return fault;
    for (uint32_t half = threads / 2; half != 0; half /= 2) {
        if (thread < half)
            partial[thread] += partial[thread + half];
        if (int32_t fault = rk_barrier(ctx))
            return fault;
    }
    if (thread != 0)
        return DC_HANDLER_DONE;
    state->value += partial[0];
    reply->value = partial[0];
    reply->threads = threads;
    return DC_HANDLER_REPLY;
}
"#;

/// The same of a team: each block has its share, and puts what it comes to into the state; the last thread of the
/// last block adds these up.
const TEAM_SUM: &str = r#"
#include "dotcompute.cuh"
struct range { long long first, count; };
struct total { long long value, threads; };
struct parts { long long value, of[8]; };

extern "C" __device__ int32_t
team_sum(const range *message, parts *state, total *reply, rk_ctx *ctx) {
    const uint32_t thread = rk_thread(ctx), threads = rk_threads(ctx);
    const uint32_t block = rk_block(ctx), blocks = rk_blocks(ctx);
    long long *partial = static_cast<long long *>(rk_shared(ctx));
    long long mine = 0;
    for (long long at = block * threads + thread; at < message->count; at += blocks * threads)
        mine += message->first + at;
    partial[thread] = mine;
    if (int32_t fault = rk_barrier(ctx))
        return fault;
    if (thread == 0) {
        state->of[block] = 0;
        for (uint32_t other = 0; other < threads; ++other)
            state->of[block] += partial[other];
    }
    if (int32_t fault = rk_team_barrier(ctx))
        return fault;
    if (block != blocks - 1 || thread != threads - 1)
        return DC_HANDLER_DONE;
    for (uint32_t other = 0; other < blocks; ++other)
        reply->value += state->of[other];
    state->value += reply->value;
    reply->threads = blocks * threads;
    return DC_HANDLER_REPLY;
}
"#;

/// Does what the message says, by the thread that it names.
const OBEY: &str = r#"
#include "dotcompute.cuh"
struct range { long long first, count; };
struct total { long long value, threads; };

extern "C" __device__ int32_t
obey(const range *message, total *state, total *reply, rk_ctx *ctx) {
    const uint32_t threads = rk_blocks(ctx) * rk_threads(ctx);
    const uint32_t thread = rk_block(ctx) * rk_threads(ctx) + rk_thread(ctx);
    const bool named = thread == uint32_t(message->count);
    if (thread == 0) {
        state->value += 1;
        reply->value = state->value;
        reply->threads = threads;
    }
    switch (message->first) {
    case 1: // one fails, and the others are at a barrier
        if (named)
            return rk_fault(ctx, -37, "thread 37 alone", 15);
        return rk_team_barrier(ctx);
    case 2: // one returns as if there were no barrier
        if (named)
            return DC_HANDLER_DONE;
        rk_barrier(ctx);
        rk_team_barrier(ctx);
        rk_barrier(ctx);
        return DC_HANDLER_DONE;
    case 3: // one emits
        return named ? rk_emit(ctx, reply) : DC_HANDLER_DONE;
    case 4: // one logs
        if (named)
            rk_log(ctx, 20, "said", 4);
        return DC_HANDLER_DONE;
    case 5: // one returns a number that is none
        return named ? 17 : DC_HANDLER_DONE;
    case 6: // all wait until they are killed
        for (;;) {
            if (int32_t fault = rk_tick(ctx))
                return fault;
            if (int32_t fault = rk_barrier(ctx))
                return fault;
            if (int32_t fault = rk_team_barrier(ctx))
                return fault;
        }
    case 7: // one replies for all
        return named ? DC_HANDLER_REPLY : DC_HANDLER_DONE;
    case 8: // one traps
        if (named)
            __trap();
        return rk_team_barrier(ctx);
    case 9: // the code without a text, from one
        return named ? -38 : DC_HANDLER_DONE;
    case 10: // one is at a barrier of its block, and the others at one of the team
        return named ? rk_barrier(ctx) : rk_team_barrier(ctx);
    case 11: // one block goes on, and the others wait for it
        return rk_block(ctx) == uint32_t(message->count) ? DC_HANDLER_DONE : rk_team_barrier(ctx);
    default:
        return DC_HANDLER_DONE;
    }
}
"#;

/// Of one lane: there is nobody to wait for.
const ALONE: &str = r#"
#include "dotcompute.cuh"
struct range { long long first, count; };
struct total { long long value, threads; };

extern "C" __device__ int32_t
alone(const range *message, void *, total *reply, rk_ctx *ctx) {
    if (rk_thread(ctx) != 0 || rk_barrier(ctx) != 0 || rk_shared(ctx) != nullptr)
        return -1;
    if (rk_block(ctx) != 0 || rk_blocks(ctx) != 1 || rk_team_barrier(ctx) != 0)
        return -2;
    reply->value = message->first;
    reply->threads = rk_threads(ctx);
    return DC_HANDLER_REPLY;
}
"#;

const BLOCK: Scope = Scope::Block { threads: 64 };
const TEAM: Scope = Scope::Team { blocks: 3, threads: 32 };

fn sum(scope: Scope) -> CudaKernel {
    let code = CudaHandler::from_source("sum", SUM).scope(scope).shared_bytes(8 * scope.threads());
    CudaKernel::new(code, Range::LAYOUT)
        .output(Total::LAYOUT)
        .state(&Total { value: 0, threads: 0 })
}

fn team_sum(scope: Scope) -> CudaKernel {
    let code = CudaHandler::from_source("team_sum", TEAM_SUM);
    let code = code.scope(scope).shared_bytes(8 * scope.threads());
    CudaKernel::new(code, Range::LAYOUT)
        .output(Total::LAYOUT)
        .state(&Parts { value: 0, of: [0; 8] })
}

fn obey(scope: Scope) -> CudaKernel {
    CudaKernel::new(CudaHandler::from_source("obey", OBEY).scope(scope), Range::LAYOUT)
        .output(Total::LAYOUT)
        .max_emit(1)
        .state(&Total { value: 0, threads: 0 })
}

fn kernels() -> CudaKernels {
    CudaKernels::new()
        .kernel("warp sum", sum(Scope::Warp))
        .kernel("block sum", sum(BLOCK))
        .kernel("team sum", team_sum(TEAM))
        .kernel("warp", obey(Scope::Warp))
        .kernel("block", obey(BLOCK))
        .kernel("team", obey(TEAM))
        .kernel(
            "lane",
            CudaKernel::new(CudaHandler::from_source("alone", ALONE), Range::LAYOUT)
                .output(Total::LAYOUT),
        )
}

struct Stage {
    runtime: Runtime,
    cuda: Cuda,
}

impl Stage {
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
    ) -> KernelRef<M, R> {
        let restart = Restart {
            policy: RestartPolicy::OnFault,
            max_restarts: u32::MAX,
            backoff: Duration::ZERO,
            redeliver: false,
            ..Restart::default()
        };
        let builder = self.runtime.kernel(name).executor("cuda").restart(restart);
        let kernel = self.cuda.launch(builder, CudaLaunch::new(entry)).unwrap();
        kernel.activate().unwrap();
        kernel
    }
}

/// A stage that tests share which break nothing.
fn stage() -> &'static Stage {
    static STAGE: OnceLock<Stage> = OnceLock::new();
    STAGE.get_or_init(|| Stage::with(standin::options()))
}

const LONG: Option<Duration> = Some(Duration::from_secs(100));

type Kernel = KernelRef<Range, Total>;

fn ask(kernel: &Kernel, first: i64, count: i64) -> Result<Total, FaultKind> {
    match kernel.ask_blocking(Range { first, count }, LONG) {
        Ok(reply) => Ok(reply.message),
        Err(AskError::Failed { fault, .. }) => Err(fault.kind()),
        Err(error) => panic!("{error:?}"),
    }
}

fn balanced(books: Books) {
    assert!(books.balance(), "{books:?}");
}

fn summed<S: Record>(name: &str, entry: &str, threads: i64, value_of: fn(&S) -> i64) {
    let kernel: Kernel = stage().launch(name, entry);
    let mut all = 0;
    for (first, count) in [(0, 1), (5, 0), (1, 1000), (-7, 33), (1 << 40, 64), (3, 65), (9, 12345)]
    {
        let value = count * first + count * (count - 1) / 2;
        assert_eq!(ask(&kernel, first, count), Ok(Total { value, threads }), "{first} {count}");
        all += value;
    }
    // Over some leases: the state is kept, and shared memory is there anew.
    for turn in 0..60 {
        assert_eq!(ask(&kernel, turn, 10).unwrap().value, 10 * turn + 45);
        all += 10 * turn + 45;
    }
    let state: S = stage().cuda.state(name, LONG.unwrap()).unwrap();
    assert_eq!(value_of(&state), all);
    let drained = Terminate::drain().within(LONG.unwrap());
    assert_eq!(kernel.terminate_blocking(drained), Termination::Clean);
    balanced(kernel.books());
    assert_eq!(kernel.books().processed, 67);
}

#[test]
fn a_block_sums_by_a_tree_in_shared_memory_and_the_sum_is_exact() {
    let _device = StandIn::get().shared();
    summed("block sum", "block sum", 64, |state: &Total| state.value);
}

#[test]
fn a_warp_sums_by_a_tree_in_shared_memory_and_the_sum_is_exact() {
    let _device = StandIn::get().shared();
    summed("warp sum", "warp sum", 32, |state: &Total| state.value);
}

#[test]
fn a_team_sums_over_its_blocks_and_the_sum_is_exact() {
    let _device = StandIn::get().shared();
    summed("team sum", "team sum", 96, |state: &Parts| state.value);
}

/// What single threads do, those of these numbers, in a kernel of any scope, of which `last` is the last one.
fn obeyed(name: &str, entry: &str, threads: &[i64], last: i64) {
    let kernel: Kernel = stage().launch(name, entry);
    let code = |code| Err(FaultKind::Code(code));
    let well = |count| {
        let Total { value, threads } = ask(&kernel, 7, count).unwrap();
        assert_eq!((value, threads), (1, last + 1), "made anew by the restart");
    };
    // Each failure restarts it. The fault is that of the thread that failed, not what the others found.
    for &thread in threads {
        assert_eq!(ask(&kernel, 1, thread), code(-37), "thread {thread}");
        assert_eq!(ask(&kernel, 2, thread), code(FAULT_DIVERGED), "thread {thread}");
        assert_eq!(ask(&kernel, 5, thread), code(FAULT_BAD_RESULT), "thread {thread}");
        assert_eq!(ask(&kernel, 9, thread), code(-38), "thread {thread}");
        if thread != 0 {
            assert_eq!(ask(&kernel, 3, thread), code(FAULT_DIVERGED), "thread {thread}");
            assert_eq!(ask(&kernel, 4, thread), code(FAULT_DIVERGED), "thread {thread}");
        }
    }
    well(0);
    assert_eq!(ask(&kernel, 1, last), code(-37));
    well(last);
    // The first emits and logs. What it emitted comes to nobody, for the ask has its answer by then.
    kernel.send_blocking(Range { first: 3, count: 0 }, LONG).unwrap();
    assert_eq!(kernel.receive_blocking(LONG).unwrap().message.threads, last + 1);
    kernel.send_blocking(Range { first: 4, count: 0 }, LONG).unwrap();
    assert_eq!(ask(&kernel, 7, 1).unwrap().value, 4);
    kernel.terminate_blocking(Terminate::now());
    balanced(kernel.books());
}

#[test]
fn one_thread_of_a_block_can_fail_alone_and_nobody_waits_for_it() {
    let _device = StandIn::get().shared();
    obeyed("block", "block", &[0, 5, 31, 63], 63);
}

#[test]
fn one_thread_of_a_warp_can_fail_alone_and_nobody_waits_for_it() {
    let _device = StandIn::get().shared();
    obeyed("warp", "warp", &[0, 5, 31], 31);
}

#[test]
fn one_thread_of_a_team_can_fail_alone_and_nobody_waits_for_it() {
    let _device = StandIn::get().shared();
    // Of the first block, and of the others the first threads and further ones.
    obeyed("team", "team", &[0, 5, 32, 64, 95], 95);
}

#[test]
fn what_comes_to_different_barriers_of_a_team_fails_and_nobody_waits() {
    let _device = StandIn::get().shared();
    let kernel: Kernel = stage().launch("apart", "team");
    for thread in [0, 31, 32, 70] {
        assert_eq!(ask(&kernel, 10, thread), Err(FaultKind::Code(FAULT_DIVERGED)), "{thread}");
    }
    for block in 0..3 {
        assert_eq!(ask(&kernel, 11, block), Err(FaultKind::Code(FAULT_DIVERGED)), "{block}");
    }
    assert_eq!(ask(&kernel, 7, 40).unwrap().threads, 96);
    kernel.terminate_blocking(Terminate::now());
    balanced(kernel.books());
}

#[test]
fn the_text_of_a_fault_is_told_whichever_thread_it_is() {
    let _device = StandIn::get().shared();
    for entry in ["block", "team"] {
        let kernel: Kernel = stage().launch(&format!("told {entry}"), entry);
        let error = kernel.ask_blocking(Range { first: 1, count: 37 }, LONG).unwrap_err();
        let AskError::Failed { fault, .. } = error else { panic!("{error:?}") };
        assert!(fault.to_string().contains("thread 37 alone"), "{fault}");
        let error = kernel.ask_blocking(Range { first: 2, count: 37 }, LONG).unwrap_err();
        let AskError::Failed { fault, .. } = error else { panic!("{error:?}") };
        assert!(fault.to_string().contains("threads did not go together"), "{fault}");
        kernel.terminate_blocking(Terminate::now());
    }
}

#[test]
fn threads_that_wait_for_each_other_for_ever_end_when_they_are_killed() {
    let _device = StandIn::get().shared();
    for entry in ["warp", "block", "team"] {
        let name = format!("waits {entry}");
        let builder = stage().runtime.kernel(name.as_str()).executor("cuda");
        let kernel: Kernel = stage().cuda.launch(builder, CudaLaunch::new(entry)).unwrap();
        kernel.activate().unwrap();
        kernel.send_blocking(Range { first: 6, count: 0 }, LONG).unwrap();
        // It has replied to nothing, and is at it.
        while kernel.books().in_hand == 0 {
            std::thread::yield_now();
        }
        kernel.terminate_blocking(Terminate::now().within(Duration::from_secs(2)));
        assert_eq!(kernel.books().processed, 0);
        balanced(kernel.books());
        // The grid makes a pause for another one, which it cannot before they have ended.
        let next: Kernel = stage().launch(&format!("after {entry}"), entry);
        assert_eq!(ask(&next, 7, 1).unwrap().value, 1);
        next.terminate_blocking(Terminate::now());
    }
}

#[test]
fn a_handler_of_one_lane_finds_itself_alone() {
    let _device = StandIn::get().shared();
    let kernel: Kernel = stage().launch("alone", "lane");
    assert_eq!(ask(&kernel, 42, 0), Ok(Total { value: 42, threads: 1 }));
    kernel.terminate_blocking(Terminate::now());
}

#[test]
fn a_block_may_be_as_large_as_1024_threads_with_shared_memory_that_a_block_has_to_ask_for() {
    let _device = StandIn::get().shared();
    let scope = Scope::Block { threads: 1024 };
    let code = CudaHandler::from_source("sum", SUM).scope(scope).shared_bytes(100_000);
    let large = CudaKernel::new(code, Range::LAYOUT)
        .output(Total::LAYOUT)
        .state(&Total { value: 0, threads: 0 });
    let options = CudaOptions { seats: 2, ..standin::options() };
    let cuda = CudaKernels::new().kernel("large", large).open(options).unwrap();
    let runtime = Runtime::builder().executor(cuda.executor()).build();
    let builder = runtime.kernel("large").executor("cuda");
    let kernel: Kernel = cuda.launch(builder, CudaLaunch::new("large")).unwrap();
    kernel.activate().unwrap();
    let value = 10_000 * 9_999 / 2;
    assert_eq!(ask(&kernel, 0, 10_000), Ok(Total { value, threads: 1024 }));
    kernel.terminate_blocking(Terminate::now());
}

#[test]
fn what_a_device_has_no_room_for_is_refused_with_both_numbers() {
    let _device = StandIn::get().shared();
    let refused = |kernel: CudaKernel, seats| {
        let options = CudaOptions { seats, ..standin::options() };
        let cuda = CudaKernels::new().kernel("k", kernel).open(options).unwrap();
        let runtime = Runtime::builder().executor(cuda.executor()).build();
        let builder = runtime.kernel("k").executor("cuda");
        let error = cuda.launch::<Range, Total>(builder, CudaLaunch::new("k")).unwrap_err();
        std::error::Error::source(&error).unwrap().to_string()
    };
    let large = |bytes| {
        let code = CudaHandler::from_source("sum", SUM).scope(BLOCK).shared_bytes(bytes);
        CudaKernel::new(code, Range::LAYOUT)
            .output(Total::LAYOUT)
            .state(&Total { value: 0, threads: 0 })
    };
    let said = refused(large(300_000), 1);
    assert!(said.contains("wants 300000 bytes of shared memory"), "{said}");
    assert!(said.contains("it can have 224256"), "{said}");
    // One block of these on each of four multiprocessors, of which one serves.
    let said = refused(large(200_000), 7);
    assert!(said.contains("the device holds 4 blocks at once, not 8"), "{said}");
    // Of 64 threads 32 blocks fit on each; a team's and one that serves, however many seats there are to be.
    let said = refused(sum(Scope::Team { blocks: 128, threads: 64 }), 7);
    assert!(said.contains("the device holds 128 blocks at once, not 129"), "{said}");
}

/// As many teams as blocks are meant to be on a grid, and one where it is larger than that.
#[test]
fn seats_of_teams_are_counted_in_blocks() {
    let _device = StandIn::get().shared();
    let scope = Scope::Team { blocks: 2, threads: 32 };
    let options = CudaOptions { seats: 4, ..standin::options() };
    let cuda = CudaKernels::new().kernel("k", obey(scope)).open(options).unwrap();
    let runtime = Runtime::builder().executor(cuda.executor()).build();
    let kernels: Vec<Kernel> = ["first", "second", "third"]
        .map(|name| cuda.launch(runtime.kernel(name).executor("cuda"), CudaLaunch::new("k")))
        .into_iter()
        .map(Result::unwrap)
        .collect();
    for kernel in &kernels {
        kernel.activate().unwrap();
    }
    for kernel in &kernels {
        for turn in 1..20 {
            assert_eq!(ask(kernel, 7, turn).unwrap().value, turn);
        }
        kernel.terminate_blocking(Terminate::now());
        balanced(kernel.books());
    }
}

#[test]
fn a_combination_that_makes_no_sense_says_what_to_do() {
    let open = |code: CudaHandler| {
        let kernel = CudaKernel::new(code, Range::LAYOUT).output(Total::LAYOUT);
        CudaKernels::new().kernel("k", kernel).open(standin::options()).unwrap_err()
    };
    let code = || CudaHandler::from_source("sum", SUM);
    for threads in [0, 33, 48, 1025, 1056] {
        let error = open(code().scope(Scope::Block { threads }));
        let said = error.to_string();
        assert!(said.contains(&format!("blocks of {threads} threads: name a multiple of 32")));
        assert!(matches!(error, CudaError::Build(BuildError::Threads { .. })), "{error:?}");
        let error = open(code().scope(Scope::Team { blocks: 2, threads }));
        assert!(matches!(error, CudaError::Build(BuildError::Threads { .. })), "{error:?}");
    }
    for blocks in [0, (1 << 16) + 1] {
        let error = open(code().scope(Scope::Team { blocks, threads: 32 }));
        assert!(matches!(error, CudaError::Build(BuildError::Blocks { .. })), "{error:?}");
        assert!(error.to_string().contains(&format!("a team of {blocks} blocks: name 1 to 65536")));
    }
    let said = open(code().shared_bytes(8)).to_string();
    assert!(said.contains("give it the scope of a warp, a block or a team"), "{said}");
    let mixed = Image::build(
        &[code().scope(Scope::Warp), CudaHandler::from_source("alone", ALONE)],
        Version::new(9, 0),
        Variant::Tagged,
        &standin::toolkit(),
        None,
    );
    let said = mixed.unwrap_err().to_string();
    assert!(said.contains("'alone' has the scope lane and the others of its image warp"), "{said}");
    // An image of another scope than the kernel's.
    let image = CudaKernels::new()
        .kernel("k", CudaKernel::new(code().scope(Scope::Warp), Range::LAYOUT))
        .build(Version::new(9, 0), &standin::options())
        .unwrap();
    let options = CudaOptions { image: Some(image), ..standin::options() };
    let kernel = CudaKernel::new(code().scope(BLOCK), Range::LAYOUT);
    let error = CudaKernels::new().kernel("k", kernel).open(options).unwrap_err();
    let said = error.to_string();
    assert!(said.contains("'sum' has the scope block of 64 and the others of its image warp"));
}

/// The threads of the block in which one traps are let go of, and so is everything else on the device. In a
/// process of its own, since all that shares the device is lost.
#[test]
fn a_trap_of_one_thread_loses_the_context_and_hangs_nobody() {
    const CHILD: &str = "SCOPES_CHILD";
    let Ok(entry) = std::env::var(CHILD) else {
        for entry in ["block", "team"] {
            let child = std::process::Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "a_trap_of_one_thread_loses_the_context_and_hangs_nobody"])
                .env(CHILD, entry)
                .output()
                .unwrap();
            assert!(child.status.success(), "{entry}: {}", String::from_utf8_lossy(&child.stdout));
        }
        return;
    };
    let kernel: Kernel = {
        let builder = stage().runtime.kernel("traps").executor("cuda");
        stage().cuda.launch(builder, CudaLaunch::new(&entry)).unwrap()
    };
    kernel.activate().unwrap();
    assert!(ask(&kernel, 7, 0).is_ok());
    assert_eq!(ask(&kernel, 8, 37), Err(FaultKind::Code(FAULT_LOST)));
    kernel.terminate_blocking(Terminate::now());
    balanced(kernel.books());
}

/// A block's replies go on to a kernel of one lane, by the host: their grids are not the same.
#[test]
fn kernels_of_different_scopes_are_connected_by_the_host() {
    let _device = StandIn::get().shared();
    let from: Kernel = stage().launch("from", "block sum");
    let to: KernelRef<Total, Total> = {
        // Takes totals as ranges.
        let kernel = CudaKernel::new(CudaHandler::from_source("alone", ALONE), Total::LAYOUT)
            .output(Total::LAYOUT);
        stage().cuda.register(CudaKernels::new().kernel("totals", kernel)).unwrap();
        stage().launch("to", "totals")
    };
    from.connect(&to).unwrap();
    for turn in 0..100 {
        from.send_blocking(Range { first: turn, count: 2 }, LONG).unwrap();
        let total = to.receive_blocking(LONG).unwrap().message;
        assert_eq!(total, Total { value: 2 * turn + 1, threads: 1 });
    }
    assert_eq!(stage().cuda.counters("from").unwrap().sent, 0);
    from.terminate_blocking(Terminate::now());
    to.terminate_blocking(Terminate::now());
}
