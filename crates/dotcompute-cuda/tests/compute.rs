//! Memory, streams and launches by the host's code as it ships, on the driver that stands in for
//! NVIDIA's (`twin/driver.cpp`, `twin/compute.cpp`): memory is the host's, kernels are host functions.
//! What fails on a device is made to fail here.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a helper that fails is a failed test")]

use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use dotcompute_cuda::compute::{ComputeError, Context, Launch, Module, PinnedBuffer, Stream};
use dotcompute_cuda::driver::Driver;

/// What `standin_count` counts.
const PIECES: i32 = 0;
const PINNED: i32 = 1;
const MODULES: i32 = 2;
const STREAMS: i32 = 3;

struct StandIn {
    driver: &'static Driver,
    fail_allocations: extern "C" fn(i32),
    refuse_launch: extern "C" fn(i32),
    go: extern "C" fn(i32),
    count: extern "C" fn(i32) -> i64,
    lose: extern "C" fn(i32),
    /// One test at a time: the stand-in is one device, and what one test counts is its own.
    turn: Mutex<()>,
}

fn stand_in() -> (&'static StandIn, Context, MutexGuard<'static, ()>) {
    static STAND_IN: OnceLock<StandIn> = OnceLock::new();
    let stand_in = STAND_IN.get_or_init(build);
    // A test that failed in its turn has failed already.
    let turn = stand_in.turn.lock().unwrap_or_else(PoisonError::into_inner);
    let context = Context::of(stand_in.driver, 0).unwrap();
    // What an earlier test launched may be about to end; its module is freed with the next call. So may
    // be what has to come before its memory is freed.
    let deadline = Instant::now() + Duration::from_secs(30);
    while context.frees_put_off() > 0 || (stand_in.count)(PIECES) > 0 {
        drop(context.hold_frees());
        assert!(Instant::now() < deadline, "an earlier test left a kernel that does not end");
        std::thread::yield_now();
    }
    (stand_in, context, turn)
}

fn build() -> StandIn {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    let path = Path::new(env!("CARGO_TARGET_TMPDIR"))
        .join(format!("libcuda-compute-{}.so.1", std::process::id()));
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".into());
    let built = Command::new(compiler)
        .args(["-std=c++20", "-O1", "-g", "-fPIC", "-shared", "-fno-strict-aliasing", "-pthread"])
        .args(["-Wall", "-Wextra", "-Werror", "-I"])
        .arg(manifest.join("../dotcompute-abi/generated"))
        .arg(manifest.join("tests/twin/driver.cpp"))
        .arg("-o")
        .arg(&path)
        .output()
        .unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    // SAFETY: built above, with the functions' true types.
    let driver = unsafe { Driver::open(&path) }.unwrap();
    // SAFETY: as above.
    let library = unsafe { libloading::Library::new(&path) }.unwrap();
    // SAFETY: the type that `compute.cpp` gives it.
    let fail_allocations = *unsafe { library.get(b"standin_fail_allocations") }.unwrap();
    // SAFETY: as above.
    let refuse_launch = *unsafe { library.get(b"standin_refuse_launch") }.unwrap();
    // SAFETY: as above.
    let go = *unsafe { library.get(b"standin_go") }.unwrap();
    // SAFETY: as above.
    let count = *unsafe { library.get(b"standin_count") }.unwrap();
    // SAFETY: the type that `driver.cpp` gives it.
    let lose = *unsafe { library.get(b"standin_lose") }.unwrap();
    std::fs::remove_file(path).unwrap();
    // Loaded for good, by the driver.
    drop(library);
    StandIn {
        driver: Box::leak(Box::new(driver)),
        fail_allocations,
        refuse_launch,
        go,
        count,
        lose,
        turn: Mutex::new(()),
    }
}

/// An image that the stand-in takes for one, and that is as long as it says.
fn image() -> Vec<u8> {
    let mut image = vec![0; 128];
    image[..5].copy_from_slice(b"\x7fELF\x02");
    image
}

fn module(context: &Context) -> Module {
    // SAFETY: the stand-in looks at nothing but the first bytes.
    unsafe { Module::load(context, &image()) }.unwrap()
}

const ONE: Launch = Launch { grid: [1; 3], block: [1; 3], shared_bytes: 0 };

/// Keeps a stream busy until `go(1)`.
fn block(stand_in: &StandIn, stream: &Stream) {
    (stand_in.go)(0);
    let wait = module(stream.context()).function("wait").unwrap();
    // SAFETY: it takes no arguments.
    unsafe { wait.launch(stream, &ONE, &[]) }.unwrap();
}

fn bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_ne_bytes()).collect()
}

#[test]
fn what_is_written_is_read_again() {
    let (_, context, _turn) = stand_in();
    let stream = context.stream().unwrap();
    let buffer = context.pool().unwrap().allocate(1000, &stream).unwrap();
    let data: Vec<u8> = (0..1000_u32).map(|n| n as u8).collect();
    stream.write(&buffer, 0, &data).unwrap();
    let mut back = vec![0; 500];
    stream.read(&buffer, 500, &mut back).unwrap();
    assert_eq!(back, data[500..]);
    let other = context.pool().unwrap().allocate(1000, &stream).unwrap();
    stream.fill(&other, 7).unwrap();
    stream.copy(&other, 10, &buffer, 0, 3).unwrap();
    let mut back = vec![0; 14];
    stream.read(&other, 0, &mut back).unwrap();
    assert_eq!(back, [7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 0, 1, 2, 7]);
    // Nothing of nothing is fine, and one byte too many is not.
    stream.write(&buffer, 1000, &[]).unwrap();
    let error = stream.write(&buffer, 999, &[1, 2]).unwrap_err();
    assert!(matches!(error, ComputeError::Bounds { .. }), "{error}");
    let error = stream.read(&buffer, usize::MAX, &mut back).unwrap_err();
    assert!(error.to_string().contains("do not lie in a buffer of 1000"), "{error}");
}

#[test]
fn a_kernel_gets_its_arguments_and_is_checked_against_its_parameters() {
    let (stand_in, context, _turn) = stand_in();
    let stream = context.stream().unwrap();
    let pool = context.pool().unwrap();
    let buffer = pool.allocate(12, &stream).unwrap();
    stream.write(&buffer, 0, &bytes(&[1.0, 2.0, 3.0])).unwrap();
    let scale = module(&context).function("scale").unwrap();
    assert_eq!(scale.parameters(), Some(&[8, 4, 4][..]));
    let address = buffer.address().to_ne_bytes();
    let (factor, count) = (2.5_f32.to_ne_bytes(), 3_i32.to_ne_bytes());
    // SAFETY: its arguments, in memory that lives.
    unsafe { scale.launch(&stream, &ONE, &[&address, &factor, &count]) }.unwrap();
    let mut back = [0; 12];
    stream.read(&buffer, 0, &mut back).unwrap();
    assert_eq!(back[..], bytes(&[2.5, 5.0, 7.5]));

    // SAFETY: nothing is launched.
    let launch = |launch: &Launch, arguments: &[&[u8]]| unsafe {
        scale.launch(&stream, launch, arguments).unwrap_err().to_string()
    };
    let told = launch(&ONE, &[&address, &factor]);
    assert!(told.contains("kernel scale: it takes 3 arguments, not 2"), "{told}");
    let told = launch(&ONE, &[&address, &1.0_f64.to_ne_bytes(), &count]);
    assert!(told.contains("argument 1 has 8 bytes, and its parameter 4"), "{told}");
    let told = launch(&Launch { block: [2048, 1, 1], ..ONE }, &[]);
    assert!(told.contains("2048 threads, of 1024 at most"), "{told}");
    let told = launch(&Launch { grid: [1, 0, 1], ..ONE }, &[]);
    assert!(told.contains("must be 1 or more"), "{told}");
    let told = launch(&Launch { grid: [1, 70_000, 1], ..ONE }, &[]);
    assert!(told.contains("exceeds the device's"), "{told}");
    let told = launch(&Launch { shared_bytes: 300_000, ..ONE }, &[]);
    assert!(told.contains("of 232448 at most"), "{told}");
    (stand_in.refuse_launch)(701);
    let told = launch(&ONE, &[&address, &factor, &count]);
    assert!(told.contains("701: CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES"), "{told}");
    assert!(told.contains("fewer threads"), "{told}");
}

#[test]
fn work_is_in_the_order_of_its_stream_and_events_order_streams() {
    let (stand_in, context, _turn) = stand_in();
    let (first, second) = (context.stream().unwrap(), context.stream().unwrap());
    let buffer = context.pool().unwrap().allocate(4, &first).unwrap();
    block(stand_in, &first);
    stream_fill(&first, &buffer, 1);
    let event = first.record().unwrap();
    assert!(!event.is_done().unwrap());
    assert!(!first.is_idle().unwrap());
    // The other stream is free, until it waits.
    second.synchronize().unwrap();
    second.wait(&event).unwrap();
    stream_fill(&second, &buffer, 2);
    assert!(!second.is_idle().unwrap());
    (stand_in.go)(1);
    let mut back = [0; 4];
    second.read(&buffer, 0, &mut back).unwrap();
    assert_eq!(back, [2; 4]);
    assert!(event.is_done().unwrap());
    let later = second.record().unwrap();
    later.synchronize().unwrap();
    assert!(later.since_ms(&event).unwrap() >= 0.0);
    // The streams that every context has.
    Stream::legacy(&context).synchronize().unwrap();
    assert!(Stream::per_thread(&context).is_idle().unwrap());
    first.follow(&Stream::legacy(&context)).unwrap();
}

fn stream_fill(stream: &Stream, buffer: &dotcompute_cuda::compute::DeviceBuffer, value: u8) {
    stream.fill(buffer, value).unwrap();
}

/// A buffer may be dropped while streams still use it: it is freed behind them.
#[test]
fn memory_is_freed_behind_every_use() {
    let (stand_in, context, _turn) = stand_in();
    let (home, other) = (context.stream().unwrap(), context.stream().unwrap());
    let pool = context.pool().unwrap();
    let before = (stand_in.count)(PIECES);
    let (from, to) = (pool.allocate(64, &home).unwrap(), pool.allocate(64, &other).unwrap());
    stream_fill(&home, &from, 5);
    other.follow(&home).unwrap();
    block(stand_in, &other);
    other.copy(&to, 0, &from, 0, 64).unwrap();
    drop(from);
    // Not yet: the copy has not had its turn.
    assert_eq!((stand_in.count)(PIECES), before + 2);
    (stand_in.go)(1);
    let mut back = [0; 64];
    other.read(&to, 0, &mut back).unwrap();
    assert_eq!(back, [5; 64]);
    home.synchronize().unwrap();
    assert_eq!((stand_in.count)(PIECES), before + 1);
    drop(to);
    other.synchronize().unwrap();
    assert_eq!((stand_in.count)(PIECES), before);
}

#[test]
fn streams_end_with_their_last_handle() {
    let (stand_in, context, _turn) = stand_in();
    let before = (stand_in.count)(STREAMS);
    let stream = context.stream().unwrap();
    let buffer = context.pool().unwrap().allocate(4, &stream).unwrap();
    drop(stream.clone());
    drop(stream);
    assert_eq!((stand_in.count)(STREAMS), before + 1, "the buffer has it");
    drop(buffer);
    assert_eq!((stand_in.count)(STREAMS), before);
}

#[test]
fn the_pool_counts_and_keeps_its_limit_and_gives_back() {
    let (stand_in, context, _turn) = stand_in();
    let stream = context.stream().unwrap();
    let pool = context.pool().unwrap();
    pool.trim(0).unwrap();
    let start = pool.statistics().unwrap();
    let buffer = pool.allocate(5 << 20, &stream).unwrap();
    let now = pool.statistics().unwrap();
    assert_eq!(now.used_bytes, start.used_bytes + (5 << 20));
    assert_eq!(now.buffers, start.buffers + 1);
    assert_eq!(now.allocations, start.allocations + 1);
    assert!(now.reserved_bytes >= 5 << 20);
    assert!(now.used_most_bytes >= now.used_bytes);
    drop(buffer);
    stream.synchronize().unwrap();
    // It stays for the next one, until it is trimmed.
    assert_eq!(pool.statistics().unwrap().reserved_bytes, now.reserved_bytes);
    assert!(pool.trim(0).unwrap() >= 4 << 20);
    assert_eq!(pool.statistics().unwrap().used_bytes, start.used_bytes);

    pool.set_limit(Some(start.used_bytes + 1000)).unwrap();
    let kept = pool.allocate(1000, &stream).unwrap();
    let error = pool.allocate(1, &stream).unwrap_err();
    assert!(matches!(error, ComputeError::OutOfMemory { limit_bytes: Some(_), .. }), "{error}");
    assert!(error.to_string().contains("raise the pool's limit"), "{error}");
    drop(kept);
    pool.allocate(1, &stream).unwrap();
    pool.set_limit(None).unwrap();
    assert_eq!(pool.statistics().unwrap().refusals, start.refusals + 1);

    // Once is what the cache had too little of; twice is the end.
    (stand_in.fail_allocations)(1);
    pool.allocate(1, &stream).unwrap();
    (stand_in.fail_allocations)(2);
    let error = pool.allocate(77, &stream).unwrap_err();
    assert!(matches!(error, ComputeError::OutOfMemory { limit_bytes: None, .. }), "{error}");
    assert!(error.to_string().contains("no 77 bytes of device memory"), "{error}");
    assert!(pool.allocate(2 << 30, &stream).is_err());
    assert_eq!(pool.statistics().unwrap().used_bytes, start.used_bytes);
    let info = context.memory_info().unwrap();
    assert_eq!(info.total_bytes, 1 << 30);
    assert!(info.free_bytes <= info.total_bytes);
}

#[test]
fn what_would_wait_for_a_resident_grid_is_freed_when_it_is_over() {
    let (stand_in, context, _turn) = stand_in();
    let count = |what| (stand_in.count)(what);
    let (pinned, modules) = (count(PINNED), count(MODULES));
    let held = context.hold_frees();
    let also = context.hold_frees();
    drop(PinnedBuffer::new(&context, 100).unwrap());
    drop(module(&context));
    assert_eq!((count(PINNED), count(MODULES)), (pinned + 1, modules + 1));
    assert_eq!(context.pool().unwrap().trim(0).unwrap(), 0);
    assert_eq!(context.frees_put_off(), 3);
    drop(held);
    assert_eq!(count(PINNED), pinned + 1, "somebody still holds them");
    drop(also);
    assert_eq!((count(PINNED), count(MODULES)), (pinned, modules));
    assert_eq!(context.frees_put_off(), 0);
}

#[test]
fn a_module_outlives_its_launches() {
    let (stand_in, context, _turn) = stand_in();
    let stream = context.stream().unwrap();
    let before = (stand_in.count)(MODULES);
    block(stand_in, &stream);
    assert_eq!((stand_in.count)(MODULES), before + 1, "it still runs");
    (stand_in.go)(1);
    stream.synchronize().unwrap();
    // The next load looks after it.
    drop(module(&context));
    assert_eq!((stand_in.count)(MODULES), before);
}

#[test]
fn pinned_memory_is_zero_and_reached_from_both_sides() {
    let (stand_in, context, _turn) = stand_in();
    let before = (stand_in.count)(PINNED);
    let mut buffer = PinnedBuffer::new(&context, 33).unwrap();
    assert_eq!(buffer.as_slice(), [0; 33]);
    buffer.as_mut_slice()[32] = 1;
    assert_eq!(buffer.as_slice()[32], 1);
    assert_ne!(buffer.device_address(), 0);
    drop(buffer);
    assert_eq!((stand_in.count)(PINNED), before);
}

#[test]
fn what_is_no_image_is_refused_with_a_reason() {
    let (_, context, _turn) = stand_in();
    let load = |image: &[u8]| {
        // SAFETY: the stand-in looks at nothing but a few bytes.
        unsafe { Module::load(&context, image) }.map(|_| ()).unwrap_err().to_string()
    };
    assert!(load(b"").contains("neither a cubin nor PTX"));
    assert!(load(b"\x00\x01").contains("neither a cubin nor PTX"));
    assert!(load(b"\x7fELF\x02\x00\x00").contains("cut off"));
    let mut long = image();
    long[40] = 200;
    assert!(load(&long).contains("cut off"));
    // With what the driver's compiler says.
    let told = load(b".version 9.4\n.target sm_90\n");
    assert!(told.contains("CUDA_ERROR_UNSUPPORTED_PTX_VERSION"), "{told}");
    assert!(told.contains("current version is '9.0'"), "{told}");
    assert!(told.contains("a toolkit no newer than the driver"), "{told}");
    let told = module(&context).function("nobody").unwrap_err().to_string();
    assert!(told.contains("500: CUDA_ERROR_NOT_FOUND") && told.contains("extern \"C\""), "{told}");
}

#[test]
fn a_device_is_one_context_and_knows_its_limits() {
    let (stand_in, context, _turn) = stand_in();
    assert_eq!(Context::of(stand_in.driver, 0).unwrap(), context);
    let error = Context::of(stand_in.driver, 1).unwrap_err().to_string();
    assert!(error.contains("101") && error.contains("counted from 0"), "{error}");
    let limits = context.limits();
    assert_eq!((limits.block_threads, limits.warp_threads), (1024, 32));
    assert_eq!(limits.block, [1024, 1024, 64]);
    assert_eq!(context.attribute(16).unwrap(), context.device().multiprocessors);
    let wait = module(&context).function("wait").unwrap();
    assert_eq!(wait.needs().unwrap().registers, 32);
    assert_eq!(wait.blocks_per_multiprocessor(256, 0).unwrap(), 8);
    assert_eq!(wait.best_block_threads(0).unwrap(), 512);
}

/// Every call after it fails, and says what to do; nothing hangs.
#[test]
fn a_kernel_that_strays_loses_the_context_for_everybody() {
    let (stand_in, context, _turn) = stand_in();
    let stream = context.stream().unwrap();
    let buffer = context.pool().unwrap().allocate(4, &stream).unwrap();
    let stray = module(&context).function("stray").unwrap();
    // SAFETY: it takes no arguments.
    unsafe { stray.launch(&stream, &ONE, &[]) }.unwrap();
    let error = stream.synchronize().unwrap_err();
    assert!(matches!(error, ComputeError::Lost(_)), "{error}");
    assert!(error.to_string().contains("700: CUDA_ERROR_ILLEGAL_ADDRESS"), "{error}");
    assert!(error.to_string().contains("start a new process"), "{error}");
    assert!(matches!(stream.read(&buffer, 0, &mut [0; 4]), Err(ComputeError::Lost(_))));
    assert!(matches!(context.stream(), Err(ComputeError::Lost(_))));
    assert!(matches!(context.memory_info(), Err(ComputeError::Lost(_))));
    assert!(matches!(PinnedBuffer::new(&context, 1), Err(ComputeError::Lost(_))));
    (stand_in.lose)(0);
}

#[test]
fn threads_share_a_context() {
    let (_, context, _turn) = stand_in();
    std::thread::scope(|scope| {
        for value in 0..4 {
            let context = &context;
            scope.spawn(move || {
                let stream = context.stream().unwrap();
                let pool = context.pool().unwrap();
                for _ in 0..20 {
                    let buffer = pool.allocate(256, &stream).unwrap();
                    stream.fill(&buffer, value).unwrap();
                    let mut back = [0; 256];
                    stream.read(&buffer, 0, &mut back).unwrap();
                    assert_eq!(back, [value; 256]);
                }
            });
        }
    });
}
