//! The process executor keeps every promise that a kernel in another process can keep: its kernels
//! have the names of the suite's roles, and run in this program, started again.

#![cfg(target_os = "linux")]

use std::process::Command;
use std::sync::LazyLock;

use dotcompute::Runtime;
use dotcompute::process::{EXECUTOR, Processes, executor};
use dotcompute_conformance::{Fixture, Place, Roles, conformance_suite};

static PROCESSES: LazyLock<Processes> = LazyLock::new(|| {
    let children = || {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["--exact", "child_main", "--nocapture"]);
        Ok(command)
    };
    Roles::of_the_suite(children).child_main()
});

/// No test: where children of this program come to.
#[test]
fn child_main() {
    let _ = &*PROCESSES;
}

mod handlers {
    use dotcompute::Runtime;
    use dotcompute::process::{EXECUTOR, executor};
    use dotcompute_conformance::Place;
    use dotcompute_conformance::handlers::HandlerFixture;

    dotcompute_conformance::handler_suite!(HandlerFixture {
        executor: EXECUTOR,
        builder: || Runtime::builder().executor(executor()),
        in_hand_max: 1,
        launch: |builder| Place::Processes(&super::PROCESSES).launch_drill(builder),
    });
}

conformance_suite!(by_name: Fixture {
    executor: EXECUTOR,
    builder: || Runtime::builder().executor(executor()),
    place: Place::Processes(&PROCESSES),
});
