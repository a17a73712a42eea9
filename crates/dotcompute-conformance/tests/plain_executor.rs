//! An executor that someone else might write, from nothing but the contract of [`Executor`], keeps
//! every promise; and one that breaks the contract leaves nobody waiting.

use std::future::Future;
use std::pin::pin;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::task::{Context as TaskContext, Poll, Wake, Waker};
use std::thread::Thread;
use std::time::Duration;

use dotcompute::mailbox::sync::lock;
use dotcompute::mailbox::wait::block_on;
use dotcompute::{
    AskError, BoxError, Executor, FaultKind, KernelId, KernelState, KernelTask, LaunchError,
    ReceiveError, Runtime, SendError, Terminate, Termination,
};
use dotcompute_conformance::stage::{Gate, Number, Waiter, balanced, echo, within};
use dotcompute_conformance::{Fixture, Place, conformance_suite};

conformance_suite!(Fixture {
    executor: "plain",
    builder: || Runtime::builder().executor(Arc::new(Plain)),
    place: Place::Here,
});

/// A thread for each kernel, which the standard library parks.
struct Plain;

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

impl Executor for Plain {
    fn name(&self) -> &'static str {
        "plain"
    }

    fn start(&self, _kernel: &KernelId, task: KernelTask) -> Result<(), BoxError> {
        std::thread::Builder::new().spawn(move || {
            let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
            let mut task = pin!(task);
            while task.as_mut().poll(&mut TaskContext::from_waker(&waker)).is_pending() {
                std::thread::park();
            }
        })?;
        Ok(())
    }
}

/// Has no room.
struct Refuses;

impl Executor for Refuses {
    fn name(&self) -> &'static str {
        "refuses"
    }

    fn start(&self, _kernel: &KernelId, _task: KernelTask) -> Result<(), BoxError> {
        Err("no room".into())
    }
}

/// Keeps the tasks and drives none; the test polls them and drops them.
struct Keeps(Mutex<Sender<KernelTask>>);

impl Executor for Keeps {
    fn name(&self) -> &'static str {
        "keeps"
    }

    fn start(&self, _kernel: &KernelId, task: KernelTask) -> Result<(), BoxError> {
        lock(&self.0).send(task).map_err(|_| "nobody takes the task".into())
    }
}

fn test(name: &str, test: fn()) {
    within(name, Duration::from_secs(60), test);
}

#[test]
fn a_kernel_that_its_executor_refuses_was_never_there() {
    test("refused", || {
        let runtime = Runtime::builder().executor(Arc::new(Refuses)).build();
        let refused = runtime.kernel("k").executor("refuses").launch(echo).unwrap_err();
        let LaunchError::Executor { executor, source, .. } = refused else { panic!("{refused:?}") };
        assert_eq!((executor, source.to_string().as_str()), ("refuses", "no room"));
        assert_eq!(runtime.kernel_ids(), []);
        runtime.kernel("k").launch(echo).unwrap();
    });
}

#[test]
fn a_kernel_that_its_executor_drops_fails_and_tells_everyone_who_waits() {
    test("dropped", || {
        let (keep, kept) = channel();
        let runtime = Runtime::builder().executor(Arc::new(Keeps(Mutex::new(keep)))).build();
        let gate = Gate::default();
        let kernel = runtime
            .kernel("k")
            .executor("keeps")
            .capacity(1)
            .launch(move |mut context: dotcompute::Context<Number, Number>| async move {
                context.receive().await?;
                gate.pass().await;
                Ok(())
            })
            .unwrap();
        kernel.activate().unwrap();
        let ask = |number| {
            let kernel = kernel.clone();
            Waiter::start(async move { kernel.ask(Number(number)).await })
        };
        let in_hand = ask(1);
        let mut task = kept.recv().unwrap();
        let cx = &mut TaskContext::from_waker(Waker::noop());
        assert_eq!(pin!(&mut task).poll(cx), Poll::Pending);
        assert_eq!(kernel.books().in_hand, 1);
        let queued = ask(2);
        let sender = kernel.clone();
        let blocked = Waiter::start(async move { sender.send(Number(3)).await });
        let receiver = kernel.clone();
        let received = Waiter::start(async move { receiver.receive().await });
        drop(task);
        let fault = block_on(kernel.ended()).unwrap_err();
        assert_eq!(fault.kind(), FaultKind::Executor);
        assert!(fault.message().contains("keeps"), "{fault}");
        assert_eq!(kernel.state(), KernelState::Failed);
        for asked in [in_hand.join(), queued.join()] {
            assert!(matches!(asked, Err(AskError::Failed { .. })), "{asked:?}");
        }
        assert!(matches!(blocked.join(), Err(SendError::Failed { .. })));
        assert!(matches!(received.join(), Err(ReceiveError::Failed { .. })));
        balanced(&kernel);
        assert_eq!((kernel.books().dead_lettered, kernel.books().in_hand), (2, 0));
        assert_eq!(runtime.dead_letter_counts().kept, 2);
        assert_eq!(kernel.terminate_blocking(Terminate::now()), Termination::Clean);
    });
}

#[test]
fn a_kernel_that_its_executor_never_drives_is_given_up_at_the_deadline() {
    test("never driven", || {
        let (keep, kept) = channel();
        let runtime = Runtime::builder().executor(Arc::new(Keeps(Mutex::new(keep)))).build();
        let kernel = runtime.kernel("k").executor("keeps").launch(echo).unwrap();
        kernel.activate().unwrap();
        kernel.try_send(Number(1)).unwrap();
        let how = Terminate::drain().within(Duration::from_millis(50));
        assert_eq!(kernel.terminate_blocking(how), Termination::Abandoned);
        assert_eq!(kernel.books().dead_lettered, 1);
        drop(kept);
        balanced(&kernel);
        assert_eq!(kernel.state(), KernelState::Terminated);
    });
}

#[test]
fn an_executor_takes_the_place_of_a_built_in_one_of_the_same_name() {
    struct Thread;
    impl Executor for Thread {
        fn name(&self) -> &'static str {
            "thread"
        }
        fn start(&self, _kernel: &KernelId, _task: KernelTask) -> Result<(), BoxError> {
            Err("mine".into())
        }
    }
    test("in place", || {
        let runtime = Runtime::builder().executor(Arc::new(Thread)).build();
        let refused = runtime.kernel("k").executor("thread").launch(echo);
        assert!(matches!(refused, Err(LaunchError::Executor { .. })), "{refused:?}");
    });
}
