//! Grids on multiprocessors that are set aside for them, on the stand-ins: where the driver has green
//! contexts, where it has none or too little, and where it refuses. Of a GPU it shows nothing; what one shows
//! is the stage "apart" of `gpu-check`.

#![cfg(target_os = "linux")]
#![expect(clippy::unwrap_used, reason = "a test")]

mod standin;

use std::ffi::CStr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use dotcompute_core::{KernelRef, Record};
use dotcompute_cuda::compute::{Context, Launch, Module, Stream};
use dotcompute_cuda::driver::Driver;
use dotcompute_cuda::resident::Residency;
use dotcompute_cuda::{
    CudaError, CudaHandler, CudaKernel, CudaKernels, CudaLaunch, CudaOptions, NotApart, Placement,
};
use standin::StandIn;
use standin::stage::{Number, Stage, ask, drain, until};

/// Counts what it is told; and says on which multiprocessor it is, if that is -1.
const COUNT: &str = r#"
#include "dotcompute.cuh"
struct number { long long value; };

extern "C" __device__ int32_t
count(const number *message, number *state, number *reply, rk_ctx *) {
    if (message->value == -1) {
        reply->value = standin_multiprocessor();
        return DC_HANDLER_REPLY;
    }
    state->value += message->value;
    *reply = *state;
    return DC_HANDLER_REPLY;
}
"#;

/// The stand-in's driver, opened anew: what is set aside is so for a driver.
fn driver(path: &Path) -> &'static Driver {
    // SAFETY: the stand-in, or what was made of it.
    Box::leak(Box::new(unsafe { Driver::open(path) }.unwrap()))
}

fn library() -> PathBuf {
    standin::folder().join("libcuda.so.1")
}

/// A device whose grids are to have so many multiprocessors, of which it has four. Grids have three seats.
fn stage_of(driver: &'static Driver, ring_multiprocessors: Option<u32>) -> Stage {
    let options = standin::options();
    stage_with(driver, Residency { ring_multiprocessors, ..options.residency })
}

fn stage_with(driver: &'static Driver, residency: Residency) -> Stage {
    let kernel = CudaKernel::new(CudaHandler::from_source("count", COUNT), Number::LAYOUT);
    let kernel = kernel.output(Number::LAYOUT).state(&Number { value: 0 });
    let kernels = CudaKernels::new().kernel("count", kernel);
    let driver = Some(driver);
    Stage::of(kernels, CudaOptions { driver, residency, seats: 3, ..standin::options() })
}

/// A kernel that answers.
fn kernel(stage: &Stage, number: usize) -> KernelRef<Number, Number> {
    let kernel = stage.launch(&format!("kernel {number}"), "count");
    assert_eq!(ask(&kernel, 42).value, 42);
    kernel
}

fn kernels(stage: &Stage, count: usize) -> Vec<KernelRef<Number, Number>> {
    (0..count).map(|number| kernel(stage, number)).collect()
}

/// On which multiprocessor a kernel is.
fn place(kernel: &KernelRef<Number, Number>) -> i64 {
    ask(kernel, -1).value
}

/// Why the only grid of a device is on any multiprocessor.
fn anywhere(stage: &Stage) -> NotApart {
    match stage.cuda.placements().as_slice() {
        [Placement::Anywhere(why)] => why.clone(),
        other => panic!("{other:?}"),
    }
}

/// Why there are no others than those that grids have.
fn no_others(stage: &Stage) -> NotApart {
    match stage.cuda.ring_free_sms() {
        Err(CudaError::NotApart(why)) => why,
        other => panic!("{other:?}"),
    }
}

/// On which multiprocessors the blocks of a launch are.
fn places(context: &Context, stream: &Stream) -> Vec<u32> {
    let mut image = vec![0; 128];
    image[..5].copy_from_slice(b"\x7fELF\x02");
    // SAFETY: the stand-in looks at nothing but the first bytes.
    let module = unsafe { Module::load(context, &image) }.unwrap();
    let out = context.pool().unwrap().allocate(4 * 8, stream).unwrap();
    let shape = Launch { grid: [8, 1, 1], block: [1, 1, 1], shared_bytes: 0 };
    let function = module.function("floor_where").unwrap();
    // SAFETY: a kernel with its argument: a word for each block.
    unsafe { function.launch(stream, &shape, &[&out.address().to_ne_bytes()]) }.unwrap();
    let mut bytes = [0; 4 * 8];
    stream.read(&out, 0, &mut bytes).unwrap();
    let words = bytes.chunks(4).map(|word| u32::from_ne_bytes(word.try_into().unwrap()));
    let mut found: Vec<u32> = words.collect();
    found.sort_unstable();
    found.dedup();
    found
}

const APART: Placement = Placement::Apart { multiprocessors: 2, free: 2 };

#[test]
fn grids_have_multiprocessors_of_their_own_and_others_a_stream_on_the_rest() {
    let _device = StandIn::get().shared();
    let driver = driver(&library());
    let stage = stage_of(driver, Some(0));
    let kernels = kernels(&stage, 1);
    assert_eq!(stage.cuda.placements(), [APART]);
    assert!(place(&kernels[0]) < 2);
    let free = stage.cuda.ring_free_sms().unwrap();
    assert_eq!(free.multiprocessors, 2);
    // Memory and code of the primary context, and work on it while the kernels stay.
    let context = Context::of(driver, 0).unwrap();
    assert_eq!(places(&context, &free.stream), [2, 3]);
    assert_eq!(places(&context, &context.stream().unwrap()), [0, 1, 2, 3]);
    // Another stream each time, on the same multiprocessors.
    assert_ne!(stage.cuda.ring_free_sms().unwrap().stream.handle(), free.stream.handle());
    kernels.iter().for_each(drain);
}

#[test]
fn a_grid_that_finds_them_taken_runs_on_the_others_and_says_so() {
    let _device = StandIn::get().shared();
    let stage = stage_of(driver(&library()), Some(2));
    // Three grids, of which each needs one of the two.
    let kernels = kernels(&stage, 7);
    let taken = Placement::Left { free: 2, why: NotApart::Taken { wanted: 1, left: 0 } };
    assert_eq!(stage.cuda.placements(), [APART, APART, taken.clone()]);
    assert!(taken.to_string().contains("of which 0 are not taken"), "{taken}");
    assert!(kernels[..6].iter().all(|kernel| place(kernel) < 2));
    assert!(place(&kernels[6]) >= 2);
    kernels.iter().for_each(drain);
}

#[test]
fn what_a_grid_had_is_there_for_another_when_it_is_gone() {
    let _device = StandIn::get().shared();
    let driver = driver(&library());
    for _ in 0..3 {
        let stage = stage_of(driver, Some(2));
        let kernels = kernels(&stage, 6);
        assert_eq!(stage.cuda.placements(), [APART, APART]);
        kernels.iter().for_each(drain);
        // Its grids end with it, before this comes back.
        drop(stage);
    }
}

#[test]
fn without_green_contexts_grids_run_anywhere_and_what_is_missing_is_said() {
    let _device = StandIn::get().shared();
    // A driver in which one of the functions has another name.
    let mut bytes = std::fs::read(library()).unwrap();
    let name = b"\0cuGreenCtxCreate\0";
    let at = bytes.windows(name.len()).position(|window| window == name).unwrap();
    bytes[at + name.len() - 2] = b'_';
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let path = folder.join(format!("libcuda-old-{}.so", std::process::id()));
    std::fs::write(&path, bytes).unwrap();
    let old = driver(&path);
    std::fs::remove_file(&path).unwrap();
    let stage = stage_of(old, Some(0));
    let kernels = kernels(&stage, 1);
    for why in [anywhere(&stage), no_others(&stage)] {
        assert!(matches!(why, NotApart::Absent(_)), "{why:?}");
        assert!(why.to_string().contains("cuGreenCtxCreate"), "{why}");
    }
    assert_eq!(old.set_aside().unwrap_err(), no_others(&stage));
    kernels.iter().for_each(drain);
}

#[test]
fn of_too_few_multiprocessors_none_are_set_aside() {
    let _device = StandIn::get().shared();
    // All of them; and three, of which the driver would make all.
    for wanted in [4, 3] {
        let stage = stage_of(driver(&library()), Some(wanted));
        let kernels = kernels(&stage, 1);
        let too_few = NotApart::TooFew { wanted, most: 4 };
        assert_eq!([anywhere(&stage), no_others(&stage)], [too_few.clone(), too_few]);
        kernels.iter().for_each(drain);
    }
}

#[test]
fn where_none_are_wanted_none_are_set_aside() {
    let _device = StandIn::get().shared();
    assert_eq!(Residency::default().ring_multiprocessors, None);
    let stage = stage_of(driver(&library()), None);
    let kernels = kernels(&stage, 1);
    assert_eq!([anywhere(&stage), no_others(&stage)], [NotApart::NotWanted, NotApart::NotWanted]);
    kernels.iter().for_each(drain);
}

/// What the driver does not refuse any more when this goes.
struct Refused(&'static StandIn, &'static CStr);

impl Refused {
    fn now(standin: &'static StandIn, call: &'static CStr) -> Self {
        (standin.fail)(call.as_ptr(), 1);
        Self(standin, call)
    }
}

impl Drop for Refused {
    fn drop(&mut self) {
        (self.0.fail)(self.1.as_ptr(), 0);
    }
}

#[test]
fn a_grid_that_the_driver_does_not_launch_there_is_launched_anywhere() {
    let standin = StandIn::get();
    let _device = standin.alone();
    // The launch is refused; or the context itself.
    for (call, named) in
        [(c"green", "cuLaunchCooperativeKernel"), (c"cuGreenCtxCreate", "cuGreenCtxCreate")]
    {
        let _refused = Refused::now(standin, call);
        let stage = stage_of(driver(&library()), Some(0));
        let kernels = kernels(&stage, 2);
        let why = anywhere(&stage);
        assert!(matches!(&why, NotApart::Refused(error) if error.call == named), "{why:?}");
        kernels.iter().for_each(drain);
    }
}

#[test]
fn a_grid_that_the_driver_does_not_launch_there_again_goes_on_anywhere_with_its_state() {
    let standin = StandIn::get();
    let _device = standin.alone();
    // Launched anew for each kernel that comes, and for nothing else.
    let residency = Residency { lease: None, ..standin::options().residency };
    let residency = Residency { ring_multiprocessors: Some(0), ..residency };
    let stage = stage_with(driver(&library()), residency);
    let first = kernel(&stage, 0);
    assert_eq!(stage.cuda.placements(), [APART]);
    let refused = Refused::now(standin, c"green");
    let second = kernel(&stage, 1);
    assert!(matches!(anywhere(&stage), NotApart::Refused(_)));
    assert_eq!(ask(&first, 1).value, 43);
    // It has left for good.
    drop(refused);
    let third = kernel(&stage, 2);
    assert!(matches!(anywhere(&stage), NotApart::Refused(_)));
    [first, second, third].iter().for_each(drain);
}

#[test]
fn a_launch_that_is_refused_behind_a_grid_that_runs_there_is_an_error() {
    let standin = StandIn::get();
    let _device = standin.alone();
    let residency = Residency {
        lease: Some(Duration::from_millis(500)),
        ring_multiprocessors: Some(0),
        ..standin::options().residency
    };
    let stage = stage_with(driver(&library()), residency);
    let refused = Refused::now(standin, c"behind");
    // Twice, so that at least two grids are lost: each has one of the two multiprocessors.
    for name in ["first", "second"] {
        let builder = stage.runtime.kernel(name).executor("cuda");
        let launched =
            stage.cuda.launch::<Number, Number>(builder, CudaLaunch::new("count")).unwrap_err();
        let mut text = launched.to_string();
        let mut cause: Option<&dyn std::error::Error> = std::error::Error::source(&launched);
        while let Some(error) = cause {
            text += &error.to_string();
            cause = error.source();
        }
        assert!(text.contains("cuLaunchCooperativeKernel"), "{text}");
        // Whoever asked is told a little before all are.
        until("the grids are lost", || stage.cuda.placements().is_empty());
    }
    // Another grid is made for the next one, which is not given what those had that are lost: they may be
    // there still.
    drop(refused);
    let kernel = kernel(&stage, 0);
    let taken = NotApart::Taken { wanted: 1, left: 0 };
    assert_eq!(stage.cuda.placements(), [Placement::Left { free: 2, why: taken }]);
    drain(&kernel);
}
