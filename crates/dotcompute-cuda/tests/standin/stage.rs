//! A device of a test's own, with a runtime, and what tests do with the kernels there.

use std::thread;
use std::time::{Duration, Instant};

use dotcompute_core::compiled::{RecordMessage, RecordReply};
use dotcompute_core::{
    KernelBuilder, KernelRef, Message, Restart, RestartPolicy, Runtime, Terminate, Termination,
};
use dotcompute_cuda::{Cuda, CudaKernels, CudaLaunch, CudaOptions};

use super::StandIn;

#[derive(Clone, Copy, Debug, PartialEq, Message)]
#[message(record, crate = "dotcompute_core")]
#[repr(C)]
pub(crate) struct Number {
    pub(crate) value: i64,
}

/// What a kernel of [`RISING`] has seen.
#[derive(Clone, Copy, Debug, PartialEq, Message)]
#[message(record, crate = "dotcompute_core")]
#[repr(C)]
pub(crate) struct Seen {
    pub(crate) last: i64,
    pub(crate) count: i64,
}

/// What it has seen at first.
pub(crate) const NOTHING: Seen = Seen { last: i64::MIN, count: 0 };

/// Replies with what it is told, and fails where that is no more than what it was told before.
pub(crate) const RISING: &str = r#"
#include "dotcompute.cuh"
struct number { long long value; };
struct seen { long long last, count; };

extern "C" __device__ int32_t
rising(const number *message, seen *state, number *reply, rk_ctx *ctx) {
    if (message->value <= state->last)
        return rk_fault(ctx, -7, "out of order", 12);
    state->last = message->value;
    state->count += 1;
    *reply = *message;
    return DC_HANDLER_REPLY;
}
"#;

/// See the module.
pub(crate) struct Stage {
    pub(crate) runtime: Runtime,
    pub(crate) cuda: Cuda,
}

impl Stage {
    pub(crate) fn of(kernels: CudaKernels, options: CudaOptions) -> Self {
        let cuda = kernels.open(options).unwrap();
        Self { runtime: Runtime::builder().executor(cuda.executor()).build(), cuda }
    }

    /// A kernel that is at work.
    pub(crate) fn launch(&self, name: &str, entry: &str) -> KernelRef<Number, Number> {
        self.launch_as(entry, self.runtime.kernel(name))
    }

    /// The same of other types, with what the builder says.
    pub(crate) fn launch_as<M: RecordMessage, R: RecordReply>(
        &self,
        entry: &str,
        builder: KernelBuilder<'_>,
    ) -> KernelRef<M, R> {
        let kernel = self.cuda.launch(builder.executor("cuda"), CudaLaunch::new(entry)).unwrap();
        kernel.activate().unwrap();
        kernel
    }

    /// How many records the kernel has sent to others of the device.
    pub(crate) fn sent(&self, kernel: &str) -> u64 {
        self.cuda.counters(kernel).unwrap().sent
    }
}

/// Longer than anything takes.
pub(crate) const LONG: Option<Duration> = Some(Duration::from_secs(100));

/// Waits for what nobody tells.
pub(crate) fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(100);
    while !done() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        thread::park_timeout(Duration::from_micros(200));
    }
}

pub(crate) fn balanced<M: Message, R: Message>(kernel: &KernelRef<M, R>) {
    let (books, replies) = (kernel.books(), kernel.reply_books());
    assert!(books.balance(), "{}: {books:?}", kernel.id());
    assert!(replies.balance(), "{}: {replies:?}", kernel.id());
}

/// Ends the kernel once it has nothing to do any more, and looks at its books.
pub(crate) fn drain<M: Message, R: Message>(kernel: &KernelRef<M, R>) {
    let ended = kernel.terminate_blocking(Terminate::drain().within(LONG.unwrap()));
    assert_eq!(ended, Termination::Clean, "{}", kernel.id());
    balanced(kernel);
}

pub(crate) fn ask<R: Message>(kernel: &KernelRef<Number, R>, value: i64) -> R {
    kernel.ask_blocking(Number { value }, LONG).unwrap().message
}

pub(crate) fn send<R: Message>(kernel: &KernelRef<Number, R>, value: i64) {
    kernel.send_blocking(Number { value }, LONG).unwrap();
}

pub(crate) fn receive<M: Message>(kernel: &KernelRef<M, Number>) -> i64 {
    kernel.receive_blocking(LONG).unwrap().message.value
}

/// Restarted as often as it fails, without what it failed at.
pub(crate) fn patient() -> Restart {
    Restart {
        policy: RestartPolicy::OnFault,
        max_restarts: u32::MAX,
        backoff: Duration::ZERO,
        redeliver: false,
        ..Restart::default()
    }
}

/// Makes the device well again at the end, also of a test that fails.
pub(crate) struct Mended(pub(crate) &'static StandIn);

impl Drop for Mended {
    fn drop(&mut self) {
        (self.0.lose)(0);
        for call in [c"cuModuleLoadData", c"cuLaunchCooperativeKernel", c"later"] {
            (self.0.fail)(call.as_ptr(), 0);
        }
    }
}
