//! The rows whose children are the program itself. They verify what they measure.

use std::process::Command;

#[test]
fn rows_with_children_give_the_right_result() {
    let output = Command::new(env!("CARGO_BIN_EXE_dotcompute-bench"))
        .args(["--quick", "--only", "process,memory.idle.tokio,memory.link,memory.key,memory.name"])
        .output()
        .expect("the program should start");
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    for row in [
        "process.round_trip ",
        "process.throughput ",
        "process.anomaly ",
        "memory.idle.tokio ",
        "memory.link ",
        "memory.key ",
        "memory.name ",
    ] {
        assert!(said.contains(row), "{row} should be in {said}");
    }
}
