//! `dotcompute bench` from outside.
//!
//! The only test of this file: a program that was just written cannot be run while another thread
//! happens to fork, for the child briefly holds the file open for writing.

#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "a helper that fails is a failed test")]

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

#[test]
fn bench_hands_over_to_its_neighbour_or_says_how_to_build_it() {
    use std::os::unix::fs::PermissionsExt as _;

    // A copy, so that what lies beside it is known.
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("bench");
    let _ = fs::remove_dir_all(&folder); // may be left from an earlier run
    fs::create_dir_all(folder.join("path")).unwrap();
    let program = folder.join("dotcompute");
    fs::copy(env!("CARGO_BIN_EXE_dotcompute"), &program).unwrap();
    let run = || -> Output {
        let mut command = Command::new(&program);
        command.args(["bench", "--only", "ring", "--json", "x y.json", "--help"]);
        command.env("PATH", folder.join("path")).output().unwrap()
    };

    let absent = run();
    assert_eq!(absent.status.code(), Some(3));
    assert!(text(&absent.stderr).contains("cargo build --release -p dotcompute-bench"));

    for (place, status) in [("path/dotcompute-bench", 7), ("dotcompute-bench", 8)] {
        let script = format!("#!/bin/sh\nprintf '[%s]' \"$@\"\nexit {status}\n");
        fs::write(folder.join(place), script).unwrap();
        fs::set_permissions(folder.join(place), fs::Permissions::from_mode(0o755)).unwrap();
        let output = run();
        assert_eq!(text(&output.stdout), "[--only][ring][--json][x y.json][--help]");
        assert_eq!(output.status.code(), Some(status), "the neighbour comes first");
    }
}
