//! The committed headers are the ones that this crate's definitions give, and C agrees with them.

use dotcompute_abi::generate::{write_c, write_wgsl};
use std::path::PathBuf;
use std::process::Command;
use std::{env, fs};

fn generated(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("generated").join(name)
}

#[test]
fn the_committed_headers_are_current() {
    let (mut c, mut wgsl) = (String::new(), String::new());
    write_c(&mut c).unwrap();
    write_wgsl(&mut wgsl).unwrap();
    for (name, fresh) in [("dotcompute_abi.h", c), ("dotcompute_abi.wgsl", wgsl)] {
        let committed = fs::read_to_string(generated(name)).unwrap();
        assert!(
            committed == fresh,
            "{name} is stale: run `cargo run -p dotcompute-abi --example generate`"
        );
    }
}

/// The header asserts every size and offset itself, so compiling it is the test.
fn compiles_as(language: &str, arguments: &[&str]) {
    let compiler = env::var("CC").unwrap_or_else(|_| "cc".into());
    let output = Command::new(&compiler)
        .args(["-x", language, "-Wall", "-Wextra", "-Werror", "-fsyntax-only"])
        .args(arguments)
        .arg(generated("dotcompute_abi.h"))
        .output()
        .unwrap_or_else(|error| panic!("cannot run the C compiler {compiler}: {error}"));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn c_agrees_with_every_size_and_offset() {
    compiles_as("c", &["-std=c11", "-pedantic"]);
}

#[test]
fn cpp_agrees_with_every_size_and_offset() {
    compiles_as("c++", &["-std=c++17", "-pedantic"]);
}

/// The branch for NVRTC, which has no standard headers: with what NVRTC has built in defined here.
#[test]
fn the_branch_without_standard_headers_agrees_too() {
    let built_in = "-D__INTADDR__(address)=((unsigned long long)(address))";
    compiles_as("c", &["-std=c11", "-nostdinc", "-D__CUDACC_RTC__", built_in]);
}
