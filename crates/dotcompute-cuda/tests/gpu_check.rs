//! A rehearsal of `gpu-check` on the stand-ins, so that the first hour with a GPU is not spent on it.

#![cfg(target_os = "linux")]
#![expect(clippy::unwrap_used, reason = "a test")]

mod standin;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn folder(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("gpu-check-{name}"));
    let _ = std::fs::remove_dir_all(&folder); // what an earlier run may have left
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

fn check(folder: &Path) -> Command {
    let mut command = standin::command(env!("CARGO_BIN_EXE_gpu-check"));
    command.current_dir(folder).arg("--quick");
    command
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&[&*output.stdout, &*output.stderr].concat()).into_owned()
}

#[test]
fn every_stage_comes_to_its_end_and_says_that_it_is_a_rehearsal() {
    let folder = folder("rehearsal");
    let output = check(&folder).output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    let rows = std::fs::read_to_string(folder.join("gpu-check.jsonl")).unwrap();
    let rows: Vec<serde_json::Value> =
        rows.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    for row in &rows {
        assert_eq!(row["stand_in"], true, "{row}");
        assert_ne!(row["holds"], false, "{row}");
    }
    let stages = [
        "null",
        "floors",
        "hazards",
        "torn",
        "round-trip",
        "throughput",
        "lease",
        "idle",
        "apart",
        "executor",
        "recovery",
        "package",
        "sanitizer",
        "workloads",
        "soak",
    ];
    for stage in stages {
        assert!(rows.iter().any(|row| row["stage"] == stage), "nothing of {stage}");
    }
    let apart = |what: &str| {
        let mut rows = rows.iter().filter(|row| row["stage"] == "apart");
        rows.find(|row| row["what"].as_str().unwrap().contains(what)).unwrap()
    };
    assert_eq!(apart("fills all that are left")["holds"], true);
    assert_eq!(apart("fills all multiprocessors")["holds"], true);
    assert_eq!(apart("by number")["found"], "0 of 2; in an ordinary stream 2 of 4");
    assert!(apart("beside them")["value"].is_number());
    let waits = |call: &str| {
        let mut rows = rows.iter().filter(|row| row["stage"] == "hazards");
        let row = rows.find(|row| row["what"].as_str().unwrap().starts_with(call)).unwrap();
        row["found"] == "**waits**"
    };
    assert!(waits("cuMemAlloc,") && waits("cuMemHostAlloc,") && !waits("cuStreamCreate,"));
    let table = std::fs::read_to_string(folder.join("gpu-check.md")).unwrap();
    assert_eq!(table.matches("no figure here is a GPU's").count(), stages.len(), "{table}");
}

#[test]
fn what_goes_wrong_in_a_stage_is_a_row_and_no_other_stages_matter() {
    let folder = folder("wrong");
    let output = check(&folder)
        .args(["--stage", "round-trip", "--stage", "null"])
        .env("STANDIN_FAIL", "cuLaunchCooperativeKernel=720")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    let table = std::fs::read_to_string(folder.join("gpu-check.md")).unwrap();
    assert!(table.contains("cuLaunchCooperativeKernel returned 720"), "{table}");
    assert!(table.contains("an empty kernel runs | yes"), "{table}");
    assert_eq!(table.matches("Not yet run.").count(), 13, "{table}");
}

#[test]
fn wrong_usage_says_what_is_right() {
    let folder = folder("usage");
    let output = check(&folder).args(["--stage", "none"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output).contains("no stage 'none'; there are: null, floors"));
    let output = check(&folder).arg("--help").output().unwrap();
    assert!(output.status.success() && text(&output).contains("soak"), "{}", text(&output));
}

/// What the repository says that a GPU shows is what was measured: nothing yet.
#[test]
fn the_table_in_the_documents_is_the_one_that_the_program_writes() {
    let folder = folder("table");
    let documents = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs");
    let results = documents.join("gpu-check.jsonl");
    let output =
        check(&folder).arg("--table-only").arg("--results").arg(&results).output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    let written = std::fs::read_to_string(folder.join("gpu-check.md")).unwrap();
    let kept = std::fs::read_to_string(documents.join("gpu-check.md")).unwrap();
    assert!(written == kept, "docs/gpu-check.md is not what --table-only writes:\n{written}");
}
