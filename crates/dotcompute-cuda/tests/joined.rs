//! Handlers that are registered one after the other, on the stand-ins: they are linked into one image,
//! their kernels share grids, and those that run notice nothing of it.

#![cfg(target_os = "linux")]
#![expect(clippy::unwrap_used, reason = "a test")]

mod standin;

use std::thread;

use dotcompute_core::{KernelRef, LaunchError, Message, Record};
use dotcompute_cuda::resident::{Residency, ResidentError};
use dotcompute_cuda::{
    BuildError, CudaError, CudaHandler, CudaKernel, CudaKernels, CudaLaunch, CudaOptions, Scope,
};
use dotcompute_mailbox::sync::{AtomicBool, Ordering};
use standin::StandIn;
use standin::stage::{self, LONG, Mended, Number, Stage, drain, until};

#[derive(Clone, Copy, Debug, PartialEq, Message)]
#[message(record, crate = "dotcompute_core")]
#[repr(C)]
struct Wide {
    values: [i64; 256],
}

/// Replies with so much more, and sends that to its target if it has one.
fn more(function: &str, by: i64, targets: u32) -> CudaKernel {
    let send = match targets {
        0 => "",
        _ => "if (int32_t fault = rk_send(ctx, 0, reply)) return fault;",
    };
    let source = format!(
        r#"
        #include "dotcompute.cuh"
        struct number {{ long long value; }};
        extern "C" __device__ int32_t
        {function}(const number *message, void *, number *reply, rk_ctx *ctx) {{
            reply->value = message->value + {by};
            (void)ctx; {send}
            return DC_HANDLER_REPLY;
        }}
        "#
    );
    CudaKernel::new(CudaHandler::from_source(function, source), Number::LAYOUT)
        .output(Number::LAYOUT)
}

fn with(options: CudaOptions) -> Stage {
    Stage::of(CudaKernels::new(), options)
}

fn register(stage: &Stage, name: &str, kernel: CudaKernel) -> Result<(), CudaError> {
    stage.cuda.register(CudaKernels::new().kernel(name, kernel))
}

fn launch(stage: &Stage, name: &str, entry: &str) -> KernelRef<Number, Number> {
    stage.launch_as(entry, stage.runtime.kernel(name).reply_capacity(4096))
}

fn ask(kernel: &KernelRef<Number, Number>, value: i64) -> i64 {
    stage::ask(kernel, value).value
}

/// Ends what goes on meanwhile, also where the test fails.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn kernels_of_handlers_that_came_one_by_one_send_to_each_other_on_the_device() {
    let _device = StandIn::get().shared();
    let stage = with(CudaOptions { seats: 15, ..standin::options() });
    register(&stage, "last", more("last", 1000, 0)).unwrap();
    let last = launch(&stage, "last", "last");
    // While another one is at work.
    let busy = launch(&stage, "busy", "last");
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut turns = 0;
            while !is_over.load(Ordering::Relaxed) || turns == 0 {
                assert_eq!(ask(&busy, turns), turns + 1000);
                turns += 1;
            }
        });
        let _over = Over(&is_over);
        let mut kernels = Vec::new();
        for number in 0..8 {
            let (name, function) = (format!("kernel {number}"), format!("adds_{number}"));
            let to = match number {
                0 => "last".to_owned(),
                _ => format!("kernel {}", number - 1),
            };
            let kernel = more(&function, 1, 1).target::<Number>(&to, Number::LAYOUT);
            register(&stage, &function, kernel).unwrap();
            kernels.push(launch(&stage, &name, &function));
        }
        // From each to all behind it, and to the last of all.
        for value in 0..50 {
            for (number, kernel) in kernels.iter().enumerate() {
                assert_eq!(ask(kernel, value), value + 1, "kernel {number}");
            }
        }
        let sent = (0..8).map(|number| stage.sent(&format!("kernel {number}")));
        until("all went on the device", || {
            sent.clone().enumerate().all(|(number, sent)| sent == 50 * (8 - number as u64))
        });
        kernels.iter().rev().for_each(drain);
    });
    drain(&busy);
    drain(&last);
}

/// Of kernels of several classes, of which one does not compile or does not link, whichever it is.
#[test]
fn kernels_that_are_registered_at_once_are_registered_all_or_none() {
    let _device = StandIn::get().shared();
    let stage = with(standin::options());
    register(&stage, "before", more("before", 1, 0)).unwrap();
    register(&stage, "kept", more("kept", 1, 0)).unwrap();
    let broken = |body: &str, scope: Scope| {
        let source = format!(
            r#"
            #include "dotcompute.cuh"
            extern "C" int32_t defined_nowhere();
            extern "C" __device__ int32_t
            broken(const void *, void *, void *, rk_ctx *) {{ return {body}; }}
            "#
        );
        let code = CudaHandler::from_source("broken", source).scope(scope);
        CudaKernel::new(code, Number::LAYOUT).output(Number::LAYOUT)
    };
    let warp = |by: i64| {
        let source = format!(
            r#"
            #include "dotcompute.cuh"
            struct number {{ long long value; }};
            extern "C" __device__ int32_t
            wide(const number *message, void *, number *reply, rk_ctx *ctx) {{
                if (rk_thread(ctx) == 0)
                    reply->value = message->value + {by};
                return DC_HANDLER_REPLY;
            }}
            "#
        );
        let code = CudaHandler::from_source("wide", source).scope(Scope::Warp);
        CudaKernel::new(code, Number::LAYOUT).output(Number::LAYOUT)
    };
    for body in ["mistaken", "defined_nowhere()"] {
        for scope in [Scope::Lane, Scope::Warp, Scope::Block { threads: 32 }] {
            let kernels = CudaKernels::new()
                .kernel("kept", more("other", 2, 0))
                .kernel("wide", warp(2))
                .kernel("new", more("new", 2, 0))
                .kernel("broken", broken(body, scope));
            let error = stage.cuda.register(kernels).unwrap_err();
            assert!(matches!(error, CudaError::Build(_)), "{error:?}");
            for name in ["wide", "new", "broken"] {
                let error = stage.cuda.layouts(name).unwrap_err();
                assert!(matches!(error, CudaError::Unknown { .. }), "{name}: {error:?}");
            }
        }
    }
    // What there was is what it was, and what comes later joins it.
    let kept = launch(&stage, "kept", "kept");
    assert_eq!(ask(&kept, 1), 2);
    register(&stage, "sends", more("sends", 5, 1).target::<Number>("kept", Number::LAYOUT))
        .unwrap();
    let sends = launch(&stage, "sends", "sends");
    assert_eq!(ask(&sends, 1), 6);
    until("they share a grid", || {
        assert_eq!(ask(&sends, 1), 6);
        stage.sent("sends") > 0
    });
    drain(&sends);
    drain(&kept);
    register(&stage, "wide", warp(3)).unwrap();
    let wide = launch(&stage, "wide", "wide");
    assert_eq!(ask(&wide, 1), 4);
    drain(&wide);
}

#[test]
fn handlers_whose_names_clash_run_on_grids_of_their_own() {
    let _device = StandIn::get().shared();
    let stage = with(standin::options());
    register(&stage, "one", more("same", 1, 0)).unwrap();
    let one = launch(&stage, "one", "one");
    register(&stage, "two", more("same", 2, 0)).unwrap();
    let two = launch(&stage, "two", "two");
    // And one that clashes in what it defines beside its handler.
    let helper = |function: &str| {
        let source = format!(
            r#"
            #include "dotcompute.cuh"
            struct number {{ long long value; }};
            __device__ long long helper(long long value) {{ return value + 3; }}
            extern "C" __device__ int32_t
            {function}(const number *message, void *, number *reply, rk_ctx *) {{
                reply->value = helper(message->value);
                return DC_HANDLER_REPLY;
            }}
            "#
        );
        CudaKernel::new(CudaHandler::from_source(function, source), Number::LAYOUT)
            .output(Number::LAYOUT)
    };
    register(&stage, "three", helper("three")).unwrap();
    register(&stage, "four", helper("four")).unwrap();
    let (three, four) = (launch(&stage, "three", "three"), launch(&stage, "four", "four"));
    // The first ones go on, and others join them.
    register(&stage, "five", more("five", 5, 0)).unwrap();
    let five = launch(&stage, "five", "five");
    let kernels = [&one, &two, &three, &four, &five];
    assert_eq!(kernels.map(|kernel| ask(kernel, 10)), [11, 12, 13, 13, 15]);
    kernels.into_iter().for_each(drain);
}

#[test]
fn a_source_that_does_not_compile_changes_nothing() {
    let _device = StandIn::get().shared();
    let stage = with(standin::options());
    register(&stage, "one", more("one", 1, 0)).unwrap();
    let one = launch(&stage, "one", "one");
    let wrong = CudaKernel::new(CudaHandler::from_source("wrong", "no C++"), Number::LAYOUT);
    let refused = register(&stage, "wrong", wrong).unwrap_err();
    assert!(matches!(&refused, CudaError::Build(BuildError::Source { function, .. })
        if function == "wrong"));
    register(&stage, "two", more("two", 2, 0)).unwrap();
    let two = launch(&stage, "two", "two");
    assert_eq!((ask(&one, 1), ask(&two, 1)), (2, 3));
    [&one, &two].into_iter().for_each(drain);
}

#[test]
fn code_that_the_driver_refuses_fails_the_launch_that_wanted_it_and_nothing_else() {
    let stand_in = StandIn::get();
    let _device = stand_in.alone();
    let stage = with(standin::options());
    register(&stage, "one", more("one", 1, 0)).unwrap();
    let one = launch(&stage, "one", "one");
    let loads: (fn(&StandIn), _) = (
        |it| (it.fail)(c"cuModuleLoadData".as_ptr(), 200),
        ("cuModuleLoadData", 200, "CUDA_ERROR_INVALID_IMAGE"),
    );
    let launches: (fn(&StandIn), _) = (
        |it| (it.fail)(c"later".as_ptr(), 701),
        ("cuLaunchCooperativeKernel", 701, "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES"),
    );
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut turns = 0;
            while !is_over.load(Ordering::Relaxed) || turns == 0 {
                assert_eq!(ask(&one, turns), turns + 1);
                turns += 1;
            }
        });
        let _over = Over(&is_over);
        for (turn, (refuse, (call, code, name))) in (1..).zip([loads, launches]) {
            let mended = Mended(stand_in);
            let entry = format!("more_{turn}");
            register(&stage, &entry, more(&entry, 10 * turn, 0)).unwrap();
            refuse(stand_in);
            // As often as it is tried.
            for _ in 0..10 {
                let builder = stage.runtime.kernel("refused").executor("cuda");
                let refused = stage.cuda.launch::<Number, Number>(builder, CudaLaunch::new(&entry));
                let LaunchError::Executor { source, .. } = refused.unwrap_err() else {
                    panic!("not refused by the device")
                };
                let Some(CudaError::Resident(ResidentError::Code(error))) = source.downcast_ref()
                else {
                    panic!("{source:?}")
                };
                assert_eq!((error.call, error.code), (call, code));
                assert!(source.to_string().contains(name), "{source}");
            }
            // The code of before has all seats but one.
            let others: Vec<_> =
                (0..6).map(|number| launch(&stage, &format!("other {number}"), "one")).collect();
            others.iter().for_each(|other| assert_eq!(ask(other, 5), 6));
            others.iter().for_each(drain);
            drop(mended);
            let more = launch(&stage, &entry, &entry);
            assert_eq!(ask(&more, 5), 5 + 10 * turn);
            drain(&more);
        }
    });
    drain(&one);
}

#[test]
fn a_grid_that_the_driver_does_not_launch_is_an_error_with_its_cause() {
    let stand_in = StandIn::get();
    let _device = stand_in.alone();
    let stage = with(standin::options());
    register(&stage, "one", more("one", 1, 0)).unwrap();
    let mended = Mended(stand_in);
    (stand_in.fail)(c"cuLaunchCooperativeKernel".as_ptr(), 701);
    let builder = stage.runtime.kernel("refused").executor("cuda");
    let refused = stage.cuda.launch::<Number, Number>(builder, CudaLaunch::new("one"));
    let text = std::error::Error::source(&refused.unwrap_err()).unwrap().to_string();
    assert!(text.contains("CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES"), "{text}");
    drop(mended);
    let one = launch(&stage, "one", "one");
    assert_eq!(ask(&one, 1), 2);
    drain(&one);
}

#[test]
fn a_state_that_is_larger_than_those_of_before_has_a_grid_with_room() {
    let _device = StandIn::get().shared();
    let stage = with(standin::options());
    register(&stage, "one", more("one", 1, 0)).unwrap();
    let one = launch(&stage, "one", "one");
    let source = r#"
        #include "dotcompute.cuh"
        struct number { long long value; };
        struct wide { long long values[256]; };
        extern "C" __device__ int32_t
        keeps(const number *message, wide *state, number *reply, rk_ctx *) {
            reply->value = state->values[message->value & 255]++;
            return DC_HANDLER_REPLY;
        }
    "#;
    let values = std::array::from_fn(|place| place as i64);
    let keeps = CudaKernel::new(CudaHandler::from_source("keeps", source), Number::LAYOUT)
        .output(Number::LAYOUT)
        .state(&Wide { values });
    register(&stage, "keeps", keeps).unwrap();
    let keeps = launch(&stage, "keeps", "keeps");
    assert_eq!([3, 255, 255].map(|value| ask(&keeps, value)), [3, 255, 256]);
    let state: Wide = stage.cuda.state("keeps", LONG.unwrap()).unwrap();
    assert_eq!((state.values[3], state.values[255]), (4, 257));
    assert_eq!(ask(&one, 1), 2);
    [&one, &keeps].into_iter().for_each(drain);
}

#[test]
fn more_handlers_than_an_image_has_begin_another_one() {
    let _device = StandIn::get().shared();
    let stage = with(standin::options());
    let all = (0..64).fold(CudaKernels::new(), |all, number| {
        let name = format!("of_many_{number}");
        all.kernel(&name, more(&name, number, 0))
    });
    stage.cuda.register(all).unwrap();
    register(&stage, "beyond", more("beyond", 100, 0)).unwrap();
    let kernels = [launch(&stage, "63", "of_many_63"), launch(&stage, "beyond", "beyond")];
    assert_eq!([ask(&kernels[0], 1), ask(&kernels[1], 1)], [64, 101]);
    kernels.iter().for_each(drain);
}

#[test]
fn beside_a_grid_that_stays_for_good_nothing_is_loaded_into_it() {
    let _device = StandIn::get().alone();
    let residency = Residency { lease: None, ..standin::options().residency };
    let stage = with(CudaOptions { residency, ..standin::options() });
    register(&stage, "one", more("one", 1, 0)).unwrap();
    let one = launch(&stage, "one", "one");
    assert_eq!(ask(&one, 1), 2);
    // With nothing on the device the next one has a grid of its own.
    drain(&one);
    register(&stage, "two", more("two", 2, 0)).unwrap();
    let two = launch(&stage, "two", "two");
    assert_eq!(ask(&two, 1), 3);
    drain(&two);
}
