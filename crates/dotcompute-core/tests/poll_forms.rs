//! What executors of other languages build on: the forms that poll or return at once.

use std::future::Future;
use std::pin::pin;
use std::task::{Context as TaskContext, Poll, Waker};
use std::time::Duration;

use dotcompute_core::{BoxError, Context, Envelope, KernelState, Message, Runtime, Terminate};

struct Number(u64);

impl Message for Number {
    const TYPE_NAME: &'static str = "Number";
}

type Body = std::pin::Pin<Box<dyn Future<Output = Result<(), BoxError>> + Send>>;

fn runtime() -> Runtime {
    Runtime::builder().workers(1).build()
}

/// Replies through `try_send`, and through `output` with what comes back.
fn echo(mut context: Context<Number, Number>) -> Body {
    Box::pin(async move {
        loop {
            std::future::poll_fn(|cx| context.poll_receive(cx)).await?;
            let number = context.envelope().map_or(0, |envelope| envelope.message.0);
            if let Err(reply) = context.try_send(Number(number)) {
                context.output(reply).await?;
            }
        }
    })
}

#[test]
fn a_body_of_poll_forms_replies_to_sends_and_asks_also_through_a_full_output() {
    let runtime = runtime();
    let kernel = runtime.kernel("echo").reply_capacity(1).launch(echo).unwrap();
    kernel.activate().unwrap();
    for number in 0..4 {
        kernel.send_blocking(Number(number), None).unwrap();
    }
    for number in 0..4 {
        let reply = kernel.receive_blocking(Some(Duration::from_secs(10))).unwrap();
        assert_eq!(reply.message.0, number);
    }
    let question = Envelope::new(Number(7));
    let reply = kernel.ask_blocking(question, Some(Duration::from_secs(10))).unwrap();
    assert_eq!(reply.message.0, 7);
    kernel.terminate_blocking(Terminate::now());
}

#[test]
fn stop_returns_at_once_and_frees_the_name() {
    let runtime = runtime();
    let kernel = runtime.kernel("echo").launch(echo).unwrap();
    kernel.activate().unwrap();
    assert!(!kernel.is_stopping());
    kernel.stop(false);
    assert!(kernel.is_stopping());
    dotcompute_mailbox::wait::block_on(kernel.ended()).unwrap();
    assert_eq!(kernel.state(), KernelState::Terminated);
    assert!(runtime.kernel_ids().is_empty());
}

#[test]
fn active_is_ready_while_the_kernel_runs_and_once_it_is_to_end() {
    let runtime = runtime();
    let kernel = runtime.kernel("echo").launch(echo).unwrap();
    let mut cx = TaskContext::from_waker(Waker::noop());
    assert!(pin!(kernel.active()).poll(&mut cx).is_pending());
    kernel.activate().unwrap();
    assert_eq!(pin!(kernel.active()).poll(&mut cx), Poll::Ready(()));
    kernel.deactivate().unwrap();
    assert!(pin!(kernel.active()).poll(&mut cx).is_pending());
    kernel.stop(false);
    assert_eq!(pin!(kernel.active()).poll(&mut cx), Poll::Ready(()));
}

#[test]
fn a_drain_right_after_the_activation_still_processes_what_is_queued() {
    for executor in ["async", "thread"] {
        let runtime = runtime();
        let kernel = runtime.kernel("echo").executor(executor).launch(echo).unwrap();
        kernel.activate().unwrap();
        for number in 0..10 {
            kernel.send_blocking(Number(number), None).unwrap();
        }
        kernel.terminate_blocking(Terminate::drain());
        assert_eq!(kernel.books().processed, 10, "{executor}");
    }
}

#[test]
fn receives_that_own_their_kernel_wait_in_line_and_pass_on_what_they_do_not_take() {
    let runtime = runtime();
    let kernel = runtime.kernel("echo").launch(echo).unwrap();
    let mut cx = TaskContext::from_waker(Waker::noop());
    assert!(matches!(pin!(kernel.receiving()).poll(&mut cx), Poll::Ready(Err(_))));
    kernel.activate().unwrap();
    let mut first = Box::pin(kernel.receiving());
    assert!(first.as_mut().poll(&mut cx).is_pending());
    let second = kernel.receiving();
    let waiting = std::thread::spawn(move || dotcompute_mailbox::wait::block_on(second));
    kernel.send_blocking(Number(1), None).unwrap();
    // Told of the reply or not: gone, it must not keep it.
    drop(first);
    assert_eq!(waiting.join().unwrap().unwrap().message.0, 1);
    let third = kernel.receiving();
    assert!(kernel.receive_now().unwrap().is_none());
    kernel.terminate_blocking(Terminate::now());
    assert!(kernel.receive_now().is_err());
    assert!(dotcompute_mailbox::wait::block_on(third).is_err());
}

#[test]
fn an_offer_to_a_full_mailbox_comes_back_uncounted() {
    let runtime = runtime();
    let kernel = runtime.kernel("echo").capacity(1).launch(echo).unwrap();
    assert!(kernel.offer(Number(0)).is_err(), "it is not active");
    kernel.activate().unwrap();
    kernel.deactivate().unwrap();
    assert!(kernel.offer(Number(1)).unwrap().is_none());
    assert_eq!(kernel.offer(Number(2)).unwrap().unwrap().message.0, 2);
    assert_eq!(kernel.books().rejected, 0);
    kernel.terminate_blocking(Terminate::now());
}
