//! A library of CUDA that is missing, too old, incomplete or unwilling is a reason with an advice,
//! never a panic. The libraries here are made by the C compiler, each with one thing wrong.

#![allow(clippy::unwrap_used, reason = "a helper that fails is a failed test")]

use std::path::{Path, PathBuf};
use std::process::Command;

use dotcompute_cuda::driver::Driver;
use dotcompute_cuda::nvjitlink::NvJitLink;
use dotcompute_cuda::nvml::Nvml;
use dotcompute_cuda::nvrtc::Nvrtc;
use dotcompute_cuda::{Absent, Probe, Version};

/// Builds a shared library of this name from C.
fn library(name: &str, source: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let text = folder.join(format!("{name}.c"));
    let path = folder.join(format!("lib{name}.so"));
    std::fs::write(&text, source).unwrap();
    let built = Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&path).arg(&text).status();
    assert!(built.unwrap().success());
    path
}

/// A driver in C: version and result of `cuInit` as given, with one device.
fn driver(version: u32, init: i32, left_out: &str) -> String {
    let functions = [
        ("cuInit", format!("int cuInit(unsigned flags) {{ return {init}; }}")),
        (
            "cuDriverGetVersion",
            format!("int cuDriverGetVersion(int *v) {{ *v = {version}; return 0; }}"),
        ),
        (
            "cuGetErrorName",
            "int cuGetErrorName(int code, const char **name) {\
             *name = code == 100 ? \"CUDA_ERROR_NO_DEVICE\" : 0; return code != 100; }"
                .into(),
        ),
        (
            "cuGetErrorString",
            "int cuGetErrorString(int code, const char **text) {\
             *text = code == 100 ? \"no CUDA-capable device is detected\" : 0; return code != 100; }"
                .into(),
        ),
        ("cuDeviceGetCount", "int cuDeviceGetCount(int *n) { *n = 1; return 0; }".into()),
        ("cuDeviceGet", "int cuDeviceGet(int *d, int n) { *d = n; return 0; }".into()),
        (
            "cuDeviceGetName",
            "int cuDeviceGetName(char *s, int n, int d) {\
             s[0] = 'T'; s[1] = '1'; s[2] = 0; return 0; }"
                .into(),
        ),
        (
            "cuDeviceGetAttribute",
            "int cuDeviceGetAttribute(int *v, int a, int d) { *v = a; return 0; }".into(),
        ),
        (
            "cuDeviceTotalMem_v2",
            "int cuDeviceTotalMem_v2(unsigned long *n, int d) { *n = 1ul << 34; return 0; }".into(),
        ),
    ];
    // What only a grid needs.
    let unused = [
        "cuDevicePrimaryCtxRetain",
        "cuFuncSetAttribute",
        "cuCtxSetCurrent",
        "cuMemHostAlloc",
        "cuMemHostGetDevicePointer_v2",
        "cuMemHostRegister_v2",
        "cuMemAlloc_v2",
        "cuStreamCreate",
        "cuStreamSynchronize",
        "cuStreamQuery",
        "cuMemcpyHtoDAsync_v2",
        "cuMemcpyDtoHAsync_v2",
        "cuMemsetD8Async",
        "cuModuleLoadData",
        "cuModuleGetFunction",
        "cuOccupancyMaxActiveBlocksPerMultiprocessor",
        "cuLaunchCooperativeKernel",
    ];
    let kept = functions.into_iter().filter(|(name, _)| *name != left_out);
    let unused = unused.map(|name| format!("int {name}(void) {{ return 999; }}\n"));
    kept.map(|(_, text)| text + "\n").chain(unused).collect()
}

fn open(path: &Path) -> Result<Driver, Absent> {
    // SAFETY: built above, with the functions' true types.
    unsafe { Driver::open(path) }
}

#[test]
fn a_driver_that_is_not_there_is_a_reason_and_an_advice() {
    let absent = open(Path::new("/nowhere/libcuda.so.1")).unwrap_err();
    assert!(matches!(absent, Absent::NotFound { .. }), "{absent:?}");
    assert!(absent.to_string().contains("/nowhere/libcuda.so.1"), "{absent}");
    assert!(absent.advice().unwrap().contains("install the NVIDIA driver"));
}

#[test]
fn a_driver_that_is_too_old_says_both_versions() {
    let path = library("driver_old", &driver(11_040, 0, ""));
    let absent = open(&path).unwrap_err();
    let Absent::TooOld { found, oldest, .. } = &absent else { panic!("{absent:?}") };
    assert_eq!((*found, *oldest), (Version::new(11, 4), Version::new(12, 0)));
    assert!(absent.to_string().contains("is 11.4, older than 12.0"), "{absent}");
}

#[test]
fn a_missing_function_is_named() {
    let path = library("driver_incomplete", &driver(13_000, 0, "cuDeviceGetAttribute"));
    let absent = open(&path).unwrap_err();
    let Absent::MissingSymbol { symbol, .. } = &absent else { panic!("{absent:?}") };
    assert_eq!(*symbol, "cuDeviceGetAttribute");
    assert!(absent.advice().is_some());
}

#[test]
fn a_driver_without_a_device_says_so_in_its_own_words() {
    let path = library("driver_deviceless", &driver(13_000, 100, ""));
    let absent = open(&path).unwrap_err();
    let Absent::Refused { error, .. } = &absent else { panic!("{absent:?}") };
    assert_eq!((error.call, error.code), ("cuInit", 100));
    assert_eq!(error.text, "CUDA_ERROR_NO_DEVICE (no CUDA-capable device is detected)");
}

#[test]
fn an_error_that_the_driver_does_not_know_is_no_trap() {
    let path = library("driver_strange", &driver(13_000, 4321, ""));
    let absent = open(&path).unwrap_err();
    assert!(absent.to_string().contains("cuInit returned 4321: no description"), "{absent}");
}

#[test]
fn a_driver_tells_its_version_and_its_devices() {
    let path = library("driver_whole", &driver(13_000, 0, ""));
    let driver = open(&path).unwrap();
    assert_eq!(driver.version(), Version::new(13, 0));
    assert_eq!(driver.path(), path);
    let devices = driver.devices().unwrap();
    let [device] = &devices[..] else { panic!("{devices:?}") };
    assert_eq!(device.name, "T1");
    assert_eq!(device.memory_bytes, 1 << 34);
    // The stand-in answers with the number of the attribute.
    assert_eq!(device.compute_capability, Version::new(75, 76));
    assert_eq!(device.multiprocessors, 16);
}

#[test]
fn a_compiler_that_is_too_old_says_both_versions() {
    let path = library(
        "nvrtc_old",
        "int nvrtcVersion(int *a, int *b) { *a = 11; *b = 8; return 0; }\n\
         const char *nvrtcGetErrorString(int c) { return \"\"; }\n\
         int nvrtcCreateProgram(void) { return 1; } int nvrtcDestroyProgram(void) { return 1; }\n\
         int nvrtcCompileProgram(void) { return 1; }\n\
         int nvrtcGetProgramLogSize(void) { return 1; } int nvrtcGetProgramLog(void) { return 1; }\n\
         int nvrtcGetCUBINSize(void) { return 1; } int nvrtcGetCUBIN(void) { return 1; }\n\
         int nvrtcGetLTOIRSize(void) { return 1; } int nvrtcGetLTOIR(void) { return 1; }\n",
    );
    // SAFETY: built above; of these functions only the version is called.
    let absent = unsafe { Nvrtc::open(&path) }.unwrap_err();
    assert!(matches!(absent, Absent::TooOld { found: Version { major: 11, minor: 8 }, .. }));
    assert!(absent.advice().unwrap().contains("nvidia-cuda-nvrtc"));
}

#[test]
fn a_linker_from_before_versions_is_named_by_the_function_that_it_lacks() {
    let path = library("linker_old", "int nvJitLinkCreate(void) { return 0; }\n");
    // SAFETY: built above; nothing of it is called.
    let absent = unsafe { NvJitLink::open(&path) }.unwrap_err();
    assert!(
        matches!(absent, Absent::MissingSymbol { symbol: "nvJitLinkVersion", .. }),
        "{absent:?}"
    );
}

#[test]
fn what_a_device_does_not_tell_is_left_out_of_its_reading() {
    let path = library(
        "nvml",
        "int nvmlInit_v2(void) { return 0; }\n\
         const char *nvmlErrorString(int c) { return \"words\"; }\n\
         int nvmlSystemGetDriverVersion(char *s, unsigned n) {\
         s[0] = '5'; s[1] = '8'; s[2] = '0'; s[3] = 0; return 0; }\n\
         int nvmlDeviceGetCount_v2(unsigned *n) { *n = 1; return 0; }\n\
         int nvmlDeviceGetHandleByIndex_v2(unsigned i, void **d) { *d = (void *)1; return 0; }\n\
         int nvmlDeviceGetUtilizationRates(void *d, unsigned *u) { u[0] = 7; u[1] = 3; return 0; }\n\
         int nvmlDeviceGetMemoryInfo(void *d, unsigned long *m) {\
         m[0] = 8192; m[1] = 4000; m[2] = 4096; return 0; }\n\
         int nvmlDeviceGetName(void *d, char *s, unsigned n) { s[0] = 'T'; s[1] = 0; return 0; }\n\
         int nvmlDeviceGetUUID(void *d, char *s, unsigned n) { s[0] = 'U'; s[1] = 0; return 0; }\n\
         int nvmlDeviceGetEnforcedPowerLimit(void *d, unsigned *p) { *p = 700; return 0; }\n\
         int nvmlDeviceGetTemperature(void *d, unsigned s, unsigned *t) { *t = 41; return 0; }\n\
         int nvmlDeviceGetPowerUsage(void *d, unsigned *p) { return 3; }\n",
    );
    // SAFETY: built above, with the functions' true types.
    let nvml = unsafe { Nvml::open(&path) }.unwrap();
    assert_eq!(nvml.driver_version(), "580");
    let readings = nvml.readings().unwrap();
    let [reading] = &readings[..] else { panic!("{readings:?}") };
    assert_eq!((reading.name.as_str(), reading.uuid.as_str()), ("T", "U"));
    assert_eq!((reading.busy_percent, reading.memory_busy_percent), (Some(7), Some(3)));
    assert_eq!((reading.memory_total_bytes, reading.memory_free_bytes), (8192, 4000));
    assert_eq!(reading.memory_used_bytes, 4096);
    assert_eq!(reading.power_limit_milliwatts, Some(700));
    assert_eq!(reading.temperature_celsius, Some(41));
    assert_eq!(reading.power_milliwatts, None);
}

#[test]
fn a_probe_reports_on_every_library_on_any_machine() {
    let probe = Probe::new();
    for (name, report) in probe.libraries() {
        match report {
            Ok(found) => assert!(!found.version.is_empty(), "{name}: {found:?}"),
            Err(absent) => assert!(!absent.to_string().is_empty(), "{name}: {absent:?}"),
        }
    }
}
