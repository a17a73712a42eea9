//! The async executor keeps every promise, on workers of its own and on a tokio runtime that it is
//! given and that others use too.

// Each runtime has three workers to go on with where two kernels block theirs.
mod own_workers {
    use dotcompute::Runtime;
    use dotcompute_conformance::{Fixture, Place, conformance_suite};

    conformance_suite!(Fixture {
        executor: "async",
        builder: || Runtime::builder().workers(3),
        place: Place::Here
    });
}

mod given_tokio {
    use std::sync::LazyLock;

    use dotcompute::Runtime;
    use dotcompute_conformance::{Fixture, Place, conformance_suite};

    /// One for all tests, of which a few run at a time.
    static TOKIO: LazyLock<tokio::runtime::Runtime> = LazyLock::new(|| {
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(16)
            .build()
            .expect("sixteen workers")
    });

    conformance_suite!(Fixture {
        executor: "async",
        builder: || Runtime::builder().tokio(TOKIO.handle().clone()),
        place: Place::Here,
    });
}

mod single_threaded {
    use dotcompute::{Context, Restart, RestartPolicy, Runtime, Terminate, Termination};
    use dotcompute_conformance::stage::{Number, echo, within};

    /// Kernels and those who wait for them share one thread, so nobody may block it.
    #[test]
    fn kernels_run_on_the_single_thread_of_the_tokio_runtime_they_are_built_in() {
        within("single-threaded", dotcompute_conformance::WATCHDOG, || {
            let tokio = tokio::runtime::Builder::new_current_thread().build().unwrap();
            tokio.block_on(async {
                let runtime = Runtime::builder().build();
                let kernel = runtime.kernel("echo").capacity(1).launch(echo).unwrap();
                kernel.activate().unwrap();
                for number in 0..500 {
                    kernel.send(Number(number)).await.unwrap();
                    assert_eq!(kernel.receive().await.unwrap().message, Number(number));
                    assert_eq!(kernel.ask(Number(number)).await.unwrap().message, Number(number));
                }
                assert_eq!(kernel.terminate(Terminate::drain()).await, Termination::Clean);
                assert_eq!(runtime.shutdown(std::time::Duration::from_secs(5)).await, []);
            });
        });
    }

    #[test]
    fn a_kernel_that_fails_at_once_and_is_always_restarted_lets_the_others_run() {
        within("restarts", dotcompute_conformance::WATCHDOG, || {
            let tokio = tokio::runtime::Builder::new_current_thread().build().unwrap();
            tokio.block_on(async {
                let runtime = Runtime::builder().build();
                let restart = Restart {
                    policy: RestartPolicy::OnFault,
                    max_restarts: u32::MAX,
                    backoff: std::time::Duration::ZERO,
                    ..Restart::default()
                };
                let failing = runtime
                    .kernel("fails")
                    .restart(restart)
                    .launch(|_: Context<Number, Number>| async { Err("at once".into()) })
                    .unwrap();
                failing.activate().unwrap();
                let kernel = runtime.kernel("echo").launch(echo).unwrap();
                kernel.activate().unwrap();
                for number in 0..100 {
                    assert_eq!(kernel.ask(Number(number)).await.unwrap().message, Number(number));
                }
                assert!(failing.telemetry().restarts > 31);
                // It is asleep at no time, and ends when it is told to, also by a drain.
                let how = Terminate::drain().within(std::time::Duration::from_secs(5));
                assert_eq!(failing.terminate(how).await, Termination::Cancelled);
                kernel.terminate(Terminate::now()).await;
            });
        });
    }
}
