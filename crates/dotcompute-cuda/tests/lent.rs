//! Messages that name memory of the device, and messages behind a stream's work, on the stand-ins. Of a GPU
//! it shows nothing.

#![cfg(target_os = "linux")]
#![expect(clippy::unwrap_used, reason = "a test")]

mod standin;

use std::process::Command;
use std::sync::RwLockWriteGuard;
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use dotcompute_core::{
    AskError, KernelRef, KernelState, Message, Record, Restart, RestartPolicy, Runtime, Terminate,
};
use dotcompute_cuda::compute::{Context, DeviceBuffer, Launch, Module, Pool, Stream};
use dotcompute_cuda::resident::{Isolation, Residency};
use dotcompute_cuda::{
    Cuda, CudaError, CudaHandler, CudaKernel, CudaKernels, CudaLaunch, CudaOptions, Holding, Lent,
    StreamSendError, isolated,
};
use dotcompute_mailbox::wait::block_on;
use dotcompute_process::Kernels;
use standin::StandIn;
use standin::stage::{LONG, Mended, until};

/// Some numbers on the device.
#[derive(Clone, Copy, Debug, PartialEq, Message)]
#[message(record, crate = "dotcompute_core")]
#[repr(C)]
struct Numbers {
    address: u64,
    count: i64,
}

#[derive(Clone, Copy, Debug, PartialEq, Message)]
#[message(record, crate = "dotcompute_core")]
#[repr(C)]
struct Sum {
    value: i64,
}

/// Adds up. A count of -1: fails. -2: does not come back for seconds, and writes then.
const ADD: &str = r#"
#include "dotcompute.cuh"
struct numbers { unsigned long long address; long long count; };
struct sum { long long value; };

extern "C" __device__ int32_t
add(const numbers *message, void *, sum *reply, rk_ctx *ctx) {
    rk_acquire(ctx);
    unsigned char *bytes = reinterpret_cast<unsigned char *>(message->address);
    if (message->count == -1)
        return rk_fault(ctx, -7, "minus one", 9);
    if (message->count == -2) {
        const uint64_t end = rk_clock(ctx) + 3000000000ull;
        while (rk_clock(ctx) < end) {
        }
        bytes[0] = 1;
        return DC_HANDLER_DONE;
    }
    reply->value = 0;
    for (long long place = 0; place < message->count; ++place)
        reply->value += bytes[place];
    return DC_HANDLER_REPLY;
}
"#;

fn kernels() -> CudaKernels {
    let add =
        CudaKernel::new(CudaHandler::from_source("add", ADD), Numbers::LAYOUT).output(Sum::LAYOUT);
    CudaKernels::new().kernel("add", add)
}

type Adder = KernelRef<Holding<Numbers>, Sum>;

struct Stage {
    runtime: Runtime,
    cuda: Cuda,
    pool: Pool,
    stream: Stream,
    /// The pool counts for all tests.
    _alone: RwLockWriteGuard<'static, ()>,
}

impl Stage {
    fn new() -> Self {
        Self::with(standin::options())
    }

    fn with(options: CudaOptions) -> Self {
        let alone = StandIn::get().alone();
        let cuda = kernels().open(options).unwrap();
        let runtime = Runtime::builder().executor(cuda.executor()).build();
        let context = Context::of(StandIn::get().driver, 0).unwrap();
        let (pool, stream) = (context.pool().unwrap(), context.stream().unwrap());
        Self { runtime, cuda, pool, stream, _alone: alone }
    }

    fn adder(&self, name: &str, restart: impl Into<Restart>) -> Adder {
        let builder = self.runtime.kernel(name).executor("cuda").restart(restart);
        let kernel = self.cuda.launch(builder, CudaLaunch::new("add")).unwrap();
        kernel.activate().unwrap();
        kernel
    }

    fn buffer(&self, bytes: &[u8]) -> DeviceBuffer {
        let buffer = self.pool.allocate(bytes.len(), &self.stream).unwrap();
        self.stream.write(&buffer, 0, bytes).unwrap();
        buffer
    }

    fn lend(&self, bytes: &[u8]) -> Lent {
        self.cuda.lend(self.buffer(bytes), LONG.unwrap()).unwrap()
    }

    fn in_use(&self) -> u64 {
        self.pool.statistics().unwrap().used_bytes
    }
}

fn naming(lent: &Lent, count: i64) -> Holding<Numbers> {
    Holding::new(Numbers { address: lent.address(), count }, [lent.clone()])
}

#[test]
fn memory_that_a_message_names_is_kept_until_it_has_been_processed() {
    let stage = Stage::new();
    let kernel = stage.adder("add", RestartPolicy::Never);
    let before = stage.in_use();
    let lent = stage.lend(&[1, 2, 3, 4]);
    assert_eq!(lent.bytes(), 4);
    let sum = kernel.ask_blocking(naming(&lent, 4), LONG).unwrap().message;
    assert_eq!(sum.value, 10);
    // Nobody but the messages has it any more.
    kernel.deactivate().unwrap();
    for _ in 0..3 {
        kernel.send_blocking(naming(&lent, 3), None).unwrap();
    }
    drop(lent);
    assert!(stage.in_use() > before);
    kernel.reactivate().unwrap();
    for _ in 0..3 {
        assert_eq!(kernel.receive_blocking(LONG).unwrap().message.value, 6);
    }
    until("it is free again", || stage.in_use() <= before);
}

#[test]
fn a_message_that_is_delivered_again_or_is_a_dead_letter_still_has_its_memory() {
    let stage = Stage::new();
    let before = stage.in_use();
    let kernel = stage.adder("fails", RestartPolicy::Never);
    let lent = stage.lend(&[5, 6]);
    let failed = kernel.ask_blocking(naming(&lent, -1), LONG);
    assert!(matches!(failed, Err(AskError::Failed { .. })), "{failed:?}");
    drop((failed, lent));
    assert!(stage.in_use() > before, "the dead letter has it");
    let letters = stage.runtime.take_dead_letters(|_| true);
    let named = letters.iter().filter_map(|letter| letter.message::<Holding<Numbers>>());
    assert_eq!(named.map(|message| message.held().len()).collect::<Vec<_>>(), [1]);
    drop(letters);
    until("it is free again", || stage.in_use() <= before);
}

/// What it writes when it does come back is nobody else's memory.
#[test]
fn memory_of_a_handler_that_does_not_come_back_is_never_freed() {
    let options = standin::options();
    let residency = Residency { overdue: Duration::from_millis(100), ..options.residency };
    let stage = Stage::with(CudaOptions { residency, ..options });
    let before = stage.in_use();
    let kernel = stage.adder("stuck", RestartPolicy::Never);
    let lent = stage.lend(&[0]);
    kernel.send_blocking(naming(&lent, -2), None).unwrap();
    drop(lent);
    until("its grid is given up", || kernel.state() == KernelState::Failed);
    kernel.terminate_blocking(Terminate::now());
    drop(stage.runtime.take_dead_letters(|_| true));
    assert!(stage.in_use() > before);
}

#[test]
fn a_message_on_a_stream_is_sent_when_what_was_before_it_is_done() {
    let stage = Stage::new();
    let kernel = stage.adder("add", RestartPolicy::Never);
    let lent = stage.lend(&[0; 100]);
    let path = standin::folder().join("libcuda.so.1");
    // SAFETY: built by `standin`, and loaded already.
    let library = unsafe { libloading::Library::new(path) }.unwrap();
    // SAFETY: the type that `compute.cpp` gives it.
    let go: extern "C" fn(i32) = *unsafe { library.get(b"standin_go") }.unwrap();
    let mut image = vec![0; 128];
    image[..5].copy_from_slice(b"\x7fELF\x02");
    // SAFETY: the stand-in looks at nothing but the first bytes.
    let module = unsafe { Module::load(stage.stream.context(), &image) }.unwrap();
    // Keeps the stream busy until it is told to go on; then the numbers are written.
    go(0);
    let once = Launch { grid: [1; 3], block: [1; 3], shared_bytes: 0 };
    // SAFETY: it takes no arguments.
    unsafe { module.function("wait").unwrap().launch(&stage.stream, &once, &[]) }.unwrap();
    let source = stage.stream.context().stream().unwrap();
    let numbers = stage.pool.allocate(100, &source).unwrap();
    source.fill(&numbers, 7).unwrap();
    stage.stream.follow(&source).unwrap();
    // SAFETY: both have a hundred bytes, and live until the answer is there.
    unsafe { stage.stream.copy_raw(lent.address(), numbers.address(), 100) }.unwrap();
    let (told, sent) = channel();
    thread::scope(|scope| {
        let message = naming(&lent, 100);
        let (stage, kernel) = (&stage, &kernel);
        scope.spawn(move || {
            block_on(stage.cuda.send_on_stream(kernel, message, &stage.stream)).unwrap();
            told.send(()).unwrap();
        });
        // What is sent otherwise does not wait for it.
        assert_eq!(kernel.ask_blocking(naming(&lent, 0), LONG).unwrap().message.value, 0);
        assert!(sent.try_recv().is_err());
        go(1);
        sent.recv_timeout(LONG.unwrap()).unwrap();
    });
    assert_eq!(kernel.receive_blocking(LONG).unwrap().message.value, 700);
}

/// In a process of its own: what the grids of a lost device use is kept for good, and so would be what
/// other tests lend.
#[test]
fn a_message_on_a_stream_that_fails_comes_back() {
    const ALONE: &str = "DOTCOMPUTE_TEST_ALONE";
    if std::env::var_os(ALONE).is_none() {
        let mut child = Command::new(std::env::current_exe().unwrap());
        child.args(["--exact", "a_message_on_a_stream_that_fails_comes_back"]).env(ALONE, "1");
        assert!(child.status().unwrap().success());
        return;
    }
    let stage = Stage::new();
    let kernel = stage.adder("add", RestartPolicy::Never);
    let lent = stage.lend(&[1]);
    let _mended = Mended(StandIn::get());
    let stream = stage.stream.context().stream().unwrap();
    (StandIn::get().lose)(700);
    let message = naming(&lent, 1);
    let error = block_on(stage.cuda.send_on_stream(&kernel, message, &stream)).unwrap_err();
    let StreamSendError::Stream { error, message } = error else { panic!("{error}") };
    assert!(error.to_string().contains("CUDA_ERROR_ILLEGAL_ADDRESS"), "{error}");
    assert_eq!((message.count, message.held().len()), (1, 1));
}

#[test]
fn memory_that_the_kernels_cannot_reach_is_refused() {
    // Its children would never be started: nothing is launched.
    let isolation = Isolation::Process(isolated(Kernels::new()).child_main());
    let stage = Stage::with(CudaOptions { isolation, ..standin::options() });
    let error = stage.cuda.lend(stage.buffer(&[1]), LONG.unwrap()).unwrap_err();
    assert!(matches!(error, CudaError::NotReached(_)), "{error:?}");
    assert!(error.to_string().contains("another process's"), "{error}");
}

#[test]
fn an_address_at_which_no_device_has_memory_is_refused() {
    let stage = Stage::new();
    let lent = stage.lend(&[1, 2, 3]);
    let inside = Lent::at(lent.address() + 2).unwrap();
    assert_eq!((inside.address(), inside.bytes()), (lent.address(), 3));
    assert!(Lent::at(lent.address() + 3).is_none());
    let host = Box::new([0_u8; 16]);
    let address = host.as_ptr().expose_provenance() as u64;
    // SAFETY: nobody uses it: it is refused.
    let error = unsafe { stage.cuda.lend_foreign(address, 16, host, LONG.unwrap()) }.unwrap_err();
    assert!(error.to_string().contains("no device has memory at 0x"), "{error}");
}
