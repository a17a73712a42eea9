//! What a handler is promised on every executor, on the executor "cuda" over stand-ins for NVIDIA's
//! libraries: the drill is CUDA C++ there. Of a GPU it shows nothing.

#![cfg(target_os = "linux")]
#![expect(clippy::unwrap_used, reason = "a test")]

mod standin;

use std::sync::LazyLock;

use dotcompute_conformance::handlers::{DRILL_CUDA, HandlerFixture, Word};
use dotcompute_core::{Message, Record, Runtime};
use dotcompute_cuda::resident::Isolation;
use dotcompute_cuda::{Cuda, CudaHandler, CudaKernel, CudaKernels, CudaLaunch, CudaOptions, Scope};
use standin::StandIn;

#[derive(Clone, Copy, Debug, PartialEq, Message)]
#[message(record, crate = "dotcompute_core")]
#[repr(C)]
struct Sum {
    sum: i64,
}

fn open(isolation: Isolation) -> Cuda {
    open_with(CudaHandler::from_source("drill", DRILL_CUDA), isolation)
}

fn open_with(code: CudaHandler, isolation: Isolation) -> Cuda {
    let drill =
        CudaKernel::new(code, Word::LAYOUT).output(Word::LAYOUT).state(&Sum { sum: 0 }).max_emit(3);
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

/// The same by several threads, of which the first does it and the others wait at a barrier; where it fails, it
/// does not come there.
const TOGETHER: &str = r#"
extern "C" __device__ int32_t
drill(const word *message, state *kept, word *reply, rk_ctx *ctx) {
    const bool first = rk_thread(ctx) == 0;
    const int32_t result = first ? by_the_first(message, kept, reply, ctx) : DC_HANDLER_DONE;
    if (result < 0)
        return result;
    if (int32_t fault = rk_barrier(ctx))
        return fault;
    return result;
}
"#;

fn open_scope(scope: Scope) -> Cuda {
    let (declared, ours) = ("extern \"C\" __device__ int32_t\ndrill(", "by_the_first(");
    assert!(DRILL_CUDA.contains(declared));
    let one = DRILL_CUDA.replace(declared, &format!("static __device__ int32_t\n{ours}"));
    let code = CudaHandler::from_source("drill", one + TOGETHER);
    open_with(code.scope(scope), Isolation::Thread)
}

mod warp {
    use super::*;

    static WARP: LazyLock<Cuda> = LazyLock::new(|| open_scope(Scope::Warp));

    dotcompute_conformance::handler_suite!(
        HandlerFixture {
            executor: "cuda",
            builder: || Runtime::builder().executor(WARP.executor()),
            in_hand_max: 64,
            launch: |builder| WARP.launch(builder, CudaLaunch::new("drill")),
        },
        StandIn::get().shared()
    );
}

mod block {
    use super::*;

    static BLOCK: LazyLock<Cuda> = LazyLock::new(|| open_scope(Scope::Block { threads: 64 }));

    dotcompute_conformance::handler_suite!(
        HandlerFixture {
            executor: "cuda",
            builder: || Runtime::builder().executor(BLOCK.executor()),
            in_hand_max: 64,
            launch: |builder| BLOCK.launch(builder, CudaLaunch::new("drill")),
        },
        StandIn::get().shared()
    );
}
