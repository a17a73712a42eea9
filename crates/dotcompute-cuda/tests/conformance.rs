//! What a handler is promised on every executor, on the executor "cuda" over stand-ins for NVIDIA's
//! libraries: the drill is CUDA C++ there. Of a GPU it shows nothing.

#![cfg(target_os = "linux")]
#![expect(clippy::unwrap_used, reason = "a test")]

mod standin;

use std::sync::LazyLock;

use dotcompute_conformance::handlers::{DRILL_CUDA, HandlerFixture, Word};
use dotcompute_core::{Message, Record, Runtime};
use dotcompute_cuda::resident::Isolation;
use dotcompute_cuda::{Cuda, CudaHandler, CudaKernel, CudaKernels, CudaLaunch, CudaOptions};
use standin::StandIn;

#[derive(Clone, Copy, Debug, PartialEq, Message)]
#[message(record, crate = "dotcompute_core")]
#[repr(C)]
struct Sum {
    sum: i64,
}

fn open(isolation: Isolation) -> Cuda {
    let drill = CudaKernel::new(CudaHandler::from_source("drill", DRILL_CUDA), Word::LAYOUT)
        .output(Word::LAYOUT)
        .state(&Sum { sum: 0 })
        .max_emit(3);
    let options = CudaOptions { isolation, ..standin::options() };
    CudaKernels::new().kernel("drill", drill).open(options).unwrap()
}

static CUDA: LazyLock<Cuda> = LazyLock::new(|| open(Isolation::Thread));

dotcompute_conformance::handler_suite!(
    HandlerFixture {
        executor: "cuda",
        builder: || Runtime::builder().executor(CUDA.executor()),
        in_hand_max: 64,
        launch: |builder| CUDA.launch(builder, CudaLaunch::new("drill")),
    },
    StandIn::get().shared()
);

/// The same, with the context in a process of its own.
mod isolated {
    use std::process::Command;

    use dotcompute_process::{Kernels, Processes};

    use super::*;

    fn processes() -> Processes {
        dotcompute_cuda::isolated(Kernels::new())
            .command(|| {
                let mut command = Command::new(std::env::current_exe()?);
                command.args(["--exact", "isolated::child_main", "--nocapture"]);
                Ok(command)
            })
            .child_main()
    }

    /// No test: where children of this program come to.
    #[test]
    fn child_main() {
        let _ = processes();
    }

    static ISOLATED: LazyLock<Cuda> = LazyLock::new(|| open(Isolation::Process(processes())));

    dotcompute_conformance::handler_suite!(
        HandlerFixture {
            executor: "cuda",
            builder: || Runtime::builder().executor(ISOLATED.executor()),
            in_hand_max: 64,
            launch: |builder| ISOLATED.launch(builder, CudaLaunch::new("drill")),
        },
        StandIn::get().shared()
    );
}
