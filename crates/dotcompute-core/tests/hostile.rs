//! User code that panics where nobody expects it: whoever waits is told all the same.

#![allow(clippy::unwrap_used, reason = "a helper that fails is a failed test")]

use std::future::Future;
use std::panic::panic_any;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context as TaskContext, Wake, Waker};
use std::time::Duration;
use std::{error, fmt};

use dotcompute_core::{
    AskError, Context, FaultKind, KernelRef, KernelState, Message, Runtime, Terminate, Termination,
};
use dotcompute_mailbox::wait::block_on;

#[derive(Debug)]
struct Number;

impl Message for Number {
    const TYPE_NAME: &'static str = "Number";
}

type Kernel = KernelRef<Number, Number>;

/// Launches a kernel that calls `fail` with its first message in hand, on a thread.
fn failing(
    runtime: &Runtime,
    fail: fn() -> Box<dyn error::Error + Send + Sync>,
) -> Result<Kernel, Box<dyn error::Error>> {
    let kernel = runtime.kernel("fails").executor("thread").launch(
        move |mut context: Context<Number, Number>| async move {
            context.receive().await?;
            Err(fail())
        },
    )?;
    kernel.activate()?;
    Ok(kernel)
}

/// The fault reaches the ask in hand and whoever waits for the end.
fn fails_with(kernel: &Kernel, kind: FaultKind, text: &str) {
    let asked = kernel.ask_blocking(Number, None);
    let Err(AskError::Failed { fault, .. }) = asked else { panic!("{asked:?}") };
    assert_eq!((fault.kind(), fault.message()), (kind, text));
    assert_eq!(block_on(kernel.ended()).expect_err("it should fail").message(), text);
    assert_eq!(kernel.state(), KernelState::Failed);
    assert!(kernel.books().balance());
}

#[test]
fn a_panic_with_a_payload_whose_destructor_panics_is_a_fault() {
    struct Bomb;
    impl Drop for Bomb {
        fn drop(&mut self) {
            panic_any(Box::new(7));
        }
    }
    let runtime = Runtime::builder().build();
    let kernel = failing(&runtime, || panic_any(Bomb)).unwrap();
    fails_with(&kernel, FaultKind::Panic, "panic with a payload that is not text");
}

#[test]
fn an_error_whose_text_panics_is_a_fault() {
    #[derive(Debug)]
    struct Mute;
    impl fmt::Display for Mute {
        fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
            panic!("no text");
        }
    }
    impl error::Error for Mute {}
    let runtime = Runtime::builder().build();
    let kernel = failing(&runtime, || Box::new(Mute)).unwrap();
    fails_with(&kernel, FaultKind::Panic, "no text");
}

#[test]
fn a_message_that_panics_when_asked_for_its_size_is_a_dead_letter() {
    struct Unweighed;
    impl Message for Unweighed {
        const TYPE_NAME: &'static str = "Unweighed";
        fn payload_bytes(&self) -> usize {
            panic!("no size");
        }
    }
    let runtime = Runtime::builder().build();
    let kernel = runtime
        .kernel("k")
        .executor("thread")
        .launch(|mut context: Context<Unweighed, Number>| async move {
            context.stopping().await;
            while context.receive().await.is_ok() {}
            Ok(())
        })
        .unwrap();
    kernel.activate().unwrap();
    for _ in 0..3 {
        kernel.try_send(Unweighed).unwrap();
    }
    assert_eq!(kernel.terminate_blocking(Terminate::now()), Termination::Clean);
    assert_eq!((kernel.books().dead_lettered, runtime.dead_letter_counts().kept), (3, 3));
}

#[test]
fn a_wait_for_a_kernel_that_is_given_up_leaves_nothing_behind() {
    struct Quiet;
    impl Wake for Quiet {
        fn wake(self: Arc<Self>) {}
    }
    let runtime = Runtime::builder().build();
    let kernel = failing(&runtime, || "never".into()).unwrap();
    let counted = Arc::new(Quiet);
    let waker = Waker::from(Arc::clone(&counted));
    let before = Arc::strong_count(&counted);
    for _ in 0..3 {
        let cx = &mut TaskContext::from_waker(&waker);
        let mut waits = [Box::pin(kernel.ended()), Box::pin(kernel.ended())];
        assert!(waits.iter_mut().all(|wait| wait.as_mut().poll(cx).is_pending()));
        assert_eq!(Arc::strong_count(&counted), before + 2, "each waits for itself");
    }
    assert_eq!(Arc::strong_count(&counted), before);
}

#[test]
fn a_waker_that_panics_keeps_nobody_else_from_being_told() {
    struct Panics;
    impl Wake for Panics {
        fn wake(self: Arc<Self>) {
            panic!("a waker that panics");
        }
    }
    let runtime = Runtime::builder().build();
    let kernel = runtime
        .kernel("k")
        .executor("thread")
        .launch(|mut context: Context<Number, Number>| async move {
            while context.receive().await.is_ok() {}
            Ok(())
        })
        .unwrap();
    kernel.activate().unwrap();
    let waker = Waker::from(Arc::new(Panics));
    let cx = &mut TaskContext::from_waker(&waker);
    let mut ended = pin!(kernel.ended());
    let mut asked = pin!(kernel.ask(Number));
    assert!(ended.as_mut().poll(cx).is_pending());
    assert!(asked.as_mut().poll(cx).is_pending());
    let how = Terminate::now().within(Duration::from_secs(30));
    assert_eq!(kernel.terminate_blocking(how), Termination::Clean);
    assert!(matches!(block_on(asked), Err(AskError::Stopped { .. })));
    assert!(block_on(ended).is_ok());
}
