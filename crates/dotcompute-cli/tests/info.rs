//! `dotcompute info` from outside.

#![allow(clippy::unwrap_used, reason = "a helper that fails is a failed test")]

use std::process::{Command, Stdio};

fn dotcompute(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dotcompute"));
    command.args(arguments);
    command
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

#[test]
fn info_says_what_is_there_and_why_the_rest_is_not() {
    let output = dotcompute(&["info"]).output().unwrap();
    assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), ""));
    let told = text(&output.stdout);
    for part in ["dotcompute 0", "cpu ", "memory ", "clock ", "async     yes", "thread    yes"] {
        assert!(told.contains(part), "{part}: {told}");
    }
    assert!(told.contains("wgpu      no   this build"), "{told}");
}

#[test]
fn info_as_json_has_a_reason_for_each_executor() {
    let output = dotcompute(&["info", "--json"]).output().unwrap();
    let info: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let executors = info["executors"].as_array().unwrap();
    let available = |name: &str| {
        let executor = executors.iter().find(|executor| executor["name"] == name).unwrap();
        assert!(!executor["reason"].as_str().unwrap().is_empty());
        executor["available"].as_bool().unwrap()
    };
    assert!(available("async") && available("thread"));
    assert_eq!(available("process"), cfg!(target_os = "linux"));
    assert!(!available("wgpu"));
    // Where it is not available, one of these is why.
    let nothing = info["cuda"]["devices"].as_array().unwrap().is_empty();
    assert!(!(available("cuda") && nothing), "{info}");
    assert_eq!(info["cuda"]["set_aside"].is_null(), nothing, "{info}");
    let libraries = info["cuda"]["libraries"].as_array().unwrap();
    assert_eq!(libraries.len(), 4);
    for library in libraries {
        assert_ne!(library["version"].is_string(), library["absent"].is_string(), "{library}");
    }
    assert!(info["cpu"]["cores_usable"].as_u64().unwrap() >= 1);
    assert!(info["clock"]["read_ns"].as_f64().unwrap() > 0.0);
}

/// Nothing of CUDA in an empty folder, and no driver where the loader looks in no other.
#[test]
fn info_says_what_to_install_for_each_library_of_cuda_that_is_absent() {
    let empty = env!("CARGO_TARGET_TMPDIR");
    let output =
        dotcompute(&["info", "--json"]).env("DOTCOMPUTE_CUDA_LIBRARIES", empty).output().unwrap();
    let info: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    for library in info["cuda"]["libraries"].as_array().unwrap() {
        if ["nvrtc", "nvjitlink"].contains(&library["name"].as_str().unwrap()) {
            assert!(library["absent"].as_str().unwrap().contains("was not found"), "{library}");
            assert!(library["advice"].as_str().unwrap().contains("pip install"), "{library}");
        }
    }
}

#[test]
fn a_closed_standard_output_is_no_failure() {
    let mut child =
        dotcompute(&["info"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), ""));
}

#[test]
fn no_command_shows_help_and_is_wrong_usage() {
    let output = dotcompute(&[]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("Exit status"));
    assert_eq!(dotcompute(&["--version"]).output().unwrap().status.code(), Some(0));
}
