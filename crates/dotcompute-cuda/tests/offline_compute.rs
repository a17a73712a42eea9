//! The kernels that the package brings along, compiled for every architecture that is supported. Run
//! by `make cuda-offline`, which says where the toolkit lies.

#![allow(clippy::unwrap_used, reason = "a helper that fails is a failed test")]

use std::env;
use std::fs;
use std::path::Path;
use std::process::Command;

use dotcompute_cuda::compute::{BLOCK_HEADER, KERNELS, WORKLOADS};
use dotcompute_cuda::nvjitlink::{Part, PartKind};
use dotcompute_cuda::nvrtc::{Output, Source};
use dotcompute_cuda::toolkit::Toolkit;

/// Compiles for an architecture, and lists the sections with code and all of it.
fn compile(source: &Source<'_>, architecture: &str) -> (Vec<String>, String) {
    let toolkit = Toolkit::load().expect("make cuda-offline says where the toolkit lies");
    let option = format!("--gpu-architecture=sm_{architecture}");
    let options = [option.as_str(), "--std=c++17"];
    let (cubin, log) = toolkit.nvrtc.compile(source, &options, Output::Cubin).unwrap();
    assert_eq!(log.trim(), "", "sm_{architecture}: a warning");
    let path = Path::new(env!("CARGO_TARGET_TMPDIR"))
        .join(format!("{}-{architecture}.cubin", source.name));
    fs::write(&path, cubin).unwrap();
    let tool = env::var_os("NVDISASM").expect("make cuda-offline says where nvdisasm lies");
    let output = Command::new(tool).arg("-c").arg(&path).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let section = |line: &str| {
        let rest = line.trim().strip_prefix(".section\t.text.")?;
        rest.split(',').next().map(str::to_owned)
    };
    (text.lines().filter_map(section).collect(), text)
}

#[test]
fn every_kernel_is_there_for_every_architecture() {
    for architecture in ["80", "90", "100"] {
        let source = Source { name: "compute.cu", text: KERNELS, headers: &[] };
        let (mut sections, text) = compile(&source, architecture);
        sections.sort();
        let mut wanted: Vec<String> = ["vector_add", "matrix_multiply"]
            .iter()
            .flat_map(|kernel| {
                ["float32", "float64", "int32", "int64"].map(|kind| format!("{kernel}_{kind}"))
            })
            .collect();
        wanted.sort();
        assert_eq!(sections, wanted, "sm_{architecture}");
        // Nothing on a stack, and nothing is called.
        for operation in [" LDL", " STL", " CALL"] {
            assert!(!text.contains(operation), "sm_{architecture}:{operation}");
        }
        // nvdisasm can succeed and print nothing.
        assert!(text.matches("LDG.E").count() >= 2 * 8, "sm_{architecture}");
        assert!(text.matches("STG.E").count() >= 8, "sm_{architecture}");
    }
}

#[test]
fn the_workloads_are_the_kernels_they_say_and_keep_no_arrays_on_a_stack() {
    let kernels: [&[&str]; 3] =
        [&["anomaly_ewma"], &["pagerank"], &["anomaly_find", "anomaly_insert"]];
    for architecture in ["80", "90", "100"] {
        for ((name, text), kernels) in WORKLOADS.into_iter().zip(kernels) {
            let file = format!("{name}.cu");
            let source = Source { name: &file, text, headers: &[BLOCK_HEADER] };
            let (mut sections, text) = compile(&source, architecture);
            sections.sort();
            assert_eq!(sections, kernels, "sm_{architecture}");
            let count = |operation: &str| text.matches(operation).count();
            // At most what the slow path of a division saves.
            for operation in [" LDL", " STL"] {
                assert!(count(operation) <= 1, "sm_{architecture} {name}:{operation}");
            }
            if name == "anomaly" {
                // What the host rounds twice is not fused: the products that are added to are there.
                assert!(count("DMUL") >= 4 && count("DADD") >= 4, "sm_{architecture}");
            } else if name == "pagerank" {
                // One arrival, a load that looks for the others', and what it makes visible.
                let arrival = count("ATOMG.E.ADD.STRONG.GPU") + count("ATOM.E.ADD.STRONG.GPU");
                assert!(arrival >= 1, "sm_{architecture}: {arrival}");
                assert!(count("LDG.E.STRONG.GPU") >= 1, "sm_{architecture}");
                assert!(count("CCTL.IVALL") >= 1, "sm_{architecture}");
                assert!(count("MEMBAR") >= 1, "sm_{architecture}");
            }
        }
    }
}

/// Also PTX without the zero byte that the linker wants to see.
#[test]
fn ptx_is_linked_for_every_architecture() {
    let toolkit = Toolkit::load().expect("make cuda-offline says where the toolkit lies");
    let ptx = ".version 7.0\n.target sm_70\n.address_size 64\n.visible .entry none() { ret; }\n";
    for architecture in ["80", "90", "100"] {
        for bytes in [ptx.as_bytes(), &[ptx.as_bytes(), b"\0"].concat()] {
            let part = Part { name: "none.ptx", kind: PartKind::Ptx, bytes };
            let option = format!("-arch=sm_{architecture}");
            let cubin = toolkit.linker().unwrap().link(&[part], &[option.as_str()]).unwrap();
            assert!(cubin.starts_with(b"\x7fELF"), "sm_{architecture}");
        }
    }
}
