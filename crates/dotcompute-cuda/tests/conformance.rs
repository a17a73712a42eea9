//! What a handler is promised on every executor, on the executor "cuda" over stand-ins for NVIDIA's
//! libraries: the drill is CUDA C++ there. Of a GPU it shows nothing.

#![cfg(target_os = "linux")]
#![expect(clippy::unwrap_used, reason = "a test")]

mod standin;

use std::sync::LazyLock;

use dotcompute_conformance::handlers::{DRILL_CUDA, HandlerFixture, Word};
use dotcompute_core::{Message, Record, Runtime};
use dotcompute_cuda::{Cuda, CudaHandler, CudaKernel, CudaKernels, CudaLaunch};
use standin::StandIn;

#[derive(Clone, Copy, Debug, PartialEq, Message)]
#[message(record, crate = "dotcompute_core")]
#[repr(C)]
struct Sum {
    sum: i64,
}

static CUDA: LazyLock<Cuda> = LazyLock::new(|| {
    let drill = CudaKernel::new(CudaHandler::from_source("drill", DRILL_CUDA), Word::LAYOUT)
        .output(Word::LAYOUT)
        .state(&Sum { sum: 0 })
        .max_emit(3);
    CudaKernels::new().kernel("drill", drill).open(standin::options()).unwrap()
});

dotcompute_conformance::handler_suite!(
    HandlerFixture {
        executor: "cuda",
        builder: || Runtime::builder().executor(CUDA.executor()),
        in_hand_max: 64,
        launch: |builder| CUDA.launch(builder, CudaLaunch::new("drill")),
    },
    StandIn::get().shared()
);
