//! Launch, activation, pauses, names, and the ends that are nobody's request.

use std::sync::mpsc::Receiver;
use std::time::Duration;

use dotcompute::mailbox::wait::block_on;
use dotcompute::{
    AskError, BoxError, CAPACITY_MAX, Context, DeadLetterReason, KernelRef, KernelState,
    LaunchError, LookupError, ReceiveError, SendError, Terminate, Termination,
};

#[cfg(target_os = "linux")]
use crate::roles::Roles;
use crate::signals::{Tell, channel};
use crate::stage::{
    Gate, Gated, Number, Stage, Token, Waiter, balanced, echo, eventually, launch, launch_with,
    quiet,
};

#[cfg(target_os = "linux")]
pub(crate) fn roles(roles: Roles) -> Roles {
    roles
        .body_with(ticking)
        .body_with(tells)
        .body_with(returns_when_let)
        .body(returns_after_one)
        .body(fails)
        .body(waits_for_ever)
}

pub fn a_kernel_takes_no_part_before_it_is_activated(stage: &Stage) {
    let kernel = stage.kernel("later").launch(echo).unwrap();
    assert_eq!(kernel.state(), KernelState::Launched);
    let sends = [
        kernel.try_send(Number(1)),
        kernel.send_blocking(Number(1), None),
        block_on(kernel.send(Number(1))),
        kernel.address().try_send(Number(1)),
    ];
    for sent in sends {
        let Err(SendError::NotActive { envelope, state, .. }) = sent else { panic!("{sent:?}") };
        assert_eq!((envelope.message, state), (Number(1), KernelState::Launched));
    }
    let receives =
        [kernel.try_receive(), kernel.receive_blocking(None), block_on(kernel.receive())];
    for received in receives {
        assert!(matches!(received, Err(ReceiveError::NotActive { .. })), "{received:?}");
    }
    assert_eq!(kernel.books().accepted, 0);
    kernel.activate().unwrap();
    assert_eq!(kernel.state(), KernelState::Active);
    assert_eq!(kernel.ask_blocking(Number(1), None).unwrap().message, Number(1));
}

pub fn a_step_that_the_state_does_not_allow_is_an_error_that_names_both(stage: &Stage) {
    let kernel = stage.kernel("steps").launch(echo).unwrap();
    let refused = |operation: &str| {
        let outcome = match operation {
            "activate" => kernel.activate(),
            "deactivate" => kernel.deactivate(),
            _ => kernel.reactivate(),
        };
        let error = outcome.unwrap_err();
        assert_eq!((error.operation, error.state), (operation, kernel.state()));
        assert!(error.to_string().contains(&kernel.state().to_string()), "{error}");
    };
    refused("deactivate");
    refused("reactivate");
    kernel.activate().unwrap();
    refused("activate");
    refused("reactivate");
    kernel.deactivate().unwrap();
    assert_eq!(kernel.state(), KernelState::Deactivated);
    refused("activate");
    refused("deactivate");
    kernel.reactivate().unwrap();
    kernel.terminate_blocking(Terminate::now());
    assert_eq!(kernel.state(), KernelState::Terminated);
    for operation in ["activate", "deactivate", "reactivate"] {
        refused(operation);
    }
}

async fn ticking(
    mut context: Context<Number, Number>,
    tell: Tell<Option<u64>>,
) -> Result<(), BoxError> {
    loop {
        match context.receive_timeout(Duration::from_millis(10)).await {
            Ok(&Number(number)) => tell.send(Some(number))?,
            Err(ReceiveError::Timeout { .. }) => tell.send(None)?,
            Err(stopped) => return Err(stopped.into()),
        }
    }
}

/// A kernel that tells of each number, and of each timeout of 10 ms.
fn ticks(stage: &Stage) -> (KernelRef<Number, Number>, Receiver<Option<u64>>) {
    let (tell, seen) = channel();
    let builder = stage.kernel("ticks").capacity(4);
    let kernel = launch_with(builder, ticking, tell);
    (kernel, seen)
}

pub fn deactivate_hands_nothing_out_while_sends_and_timeouts_go_on(stage: &Stage) {
    let (kernel, seen) = ticks(stage);
    kernel.try_send(Number(1)).unwrap();
    while seen.recv().unwrap() != Some(1) {}
    kernel.deactivate().unwrap();
    for number in 2..=5 {
        kernel.try_send(Number(number)).unwrap();
    }
    let full = kernel.try_send(Number(6));
    assert!(matches!(full, Err(SendError::Full { .. })), "{full:?}");
    let brief = Duration::from_millis(5);
    let timed_out = kernel.send_blocking(Number(6), Some(brief));
    assert!(matches!(timed_out, Err(SendError::Timeout { .. })), "{timed_out:?}");
    // The body's own timeouts run, and bring nothing else.
    let ticks: Vec<_> = seen.iter().take(5).collect();
    assert_eq!(ticks, [None; 5]);
    assert_eq!(kernel.books().queued, 4);
    let sender = kernel.clone();
    let blocked = Waiter::start(async move { sender.send(Number(6)).await });
    kernel.reactivate().unwrap();
    let numbers: Vec<u64> = seen.iter().flatten().take(5).collect();
    assert_eq!(numbers, [2, 3, 4, 5, 6]);
    blocked.join().unwrap();
    quiet(&kernel);
}

pub fn an_ask_of_a_deactivated_kernel_times_out_and_its_replies_can_be_read(stage: &Stage) {
    let kernel = launch(stage.kernel("paused"), echo);
    for number in 1..=3 {
        kernel.try_send(Number(number)).unwrap();
    }
    quiet(&kernel);
    kernel.deactivate().unwrap();
    for number in 1..=3 {
        assert_eq!(kernel.receive_blocking(None).unwrap().message, Number(number));
    }
    let asked = kernel.ask_blocking(Number(4), Some(Duration::from_millis(10)));
    assert!(matches!(asked, Err(AskError::Timeout { .. })), "{asked:?}");
    let asker = kernel.clone();
    let waits = Waiter::start(async move { asker.ask(Number(5)).await });
    kernel.reactivate().unwrap();
    assert_eq!(waits.join().unwrap().message, Number(5));
    quiet(&kernel);
    assert_eq!(kernel.books().expired, 1);
}

async fn tells(mut context: Context<Number, Number>, tell: Tell<u64>) -> Result<(), BoxError> {
    while let Ok(&Number(number)) = context.receive().await {
        tell.send(number)?;
    }
    Ok(())
}

/// From the instant at which `deactivate` returns, at whatever the kernel is.
pub fn deactivate_takes_effect_before_it_returns(stage: &Stage) {
    let (tell, seen) = channel();
    let kernel = launch_with(stage.kernel("busy"), tells, tell);
    let mut next = 0;
    for _ in 0..50 {
        for _ in 0..40 {
            kernel.send_blocking(Number(next), None).unwrap();
            next += 1;
        }
        kernel.deactivate().unwrap();
        // What was in hand may still end; nothing else moves.
        let handed_out = |books: dotcompute::Books| books.processed + books.in_hand;
        let before = handed_out(kernel.books());
        eventually(|| kernel.books().in_hand == 0);
        assert_eq!(handed_out(kernel.books()), before);
        kernel.reactivate().unwrap();
    }
    assert!(seen.iter().take(next as usize).eq(0..next), "in order through all the pauses");
    quiet(&kernel);
}

pub fn a_deactivated_kernel_can_be_terminated_and_drained(stage: &Stage) {
    for (how, processed) in [(Terminate::now(), 1), (Terminate::drain(), 4)] {
        let gated = Gated::busy(stage.kernel("paused"));
        gated.kernel.deactivate().unwrap();
        for number in 1..=3 {
            gated.kernel.try_send(Number(number)).unwrap();
        }
        gated.gate.remove();
        assert_eq!(gated.kernel.terminate_blocking(how), Termination::Clean);
        let books = gated.kernel.books();
        assert_eq!((books.processed, books.dead_lettered), (processed, 4 - processed));
        balanced(&gated.kernel);
    }
}

async fn returns_when_let(
    mut context: Context<Number, Number>,
    gate: Gate,
) -> Result<(), BoxError> {
    let number = *context.receive().await?;
    context.reply(number).await?;
    context.receive().await?;
    gate.pass().await;
    Ok(())
}

pub fn a_body_that_returns_ends_its_kernel_and_tells_everyone_who_waits(stage: &Stage) {
    let gate = Gate::default();
    let builder = stage.kernel("returns").capacity(3);
    let kernel = launch_with(builder, returns_when_let, gate);
    kernel.try_send(Number(1)).unwrap();
    kernel.try_send(Number(2)).unwrap();
    eventually(|| kernel.books().in_hand == 1 && kernel.books().processed == 1);
    kernel.try_send(Number(3)).unwrap();
    let asker = kernel.clone();
    let asked = Waiter::start(async move { asker.ask(Number(4)).await.map(|_| ()) });
    kernel.try_send(Number(5)).unwrap();
    let sender = kernel.clone();
    let blocked = Waiter::start(async move { sender.send(Number(6)).await });
    let waiter = kernel.clone();
    let end = Waiter::start(async move { waiter.ended().await });
    gate.remove();
    end.join().unwrap();
    assert_eq!(kernel.state(), KernelState::Terminated);
    let asked = asked.join();
    assert!(matches!(asked, Err(AskError::Stopped { .. })), "{asked:?}");
    let blocked = blocked.join();
    assert!(matches!(blocked, Err(SendError::Stopped { .. })), "{blocked:?}");
    // What it replied before is read first; then everyone hears of the end.
    assert_eq!(kernel.receive_blocking(None).unwrap().message, Number(1));
    let received = kernel.receive_blocking(None);
    assert!(matches!(received, Err(ReceiveError::Stopped { .. })), "{received:?}");
    let sent = kernel.try_send(Number(7));
    assert!(matches!(sent, Err(SendError::Stopped { .. })), "{sent:?}");
    // What it had in hand was processed; what was queued is dead.
    let books = kernel.books();
    assert_eq!((books.processed, books.dead_lettered), (2, 3));
    balanced(&kernel);
    let letters = stage.runtime.take_dead_letters(|_| true);
    let numbers: Vec<_> = letters.iter().map(|l| l.message::<Number>().unwrap().0).collect();
    assert_eq!(numbers, [3, 4, 5]);
    assert!(letters.iter().all(|l| matches!(l.reason, DeadLetterReason::Undelivered)));
    assert!(kernel.fault().is_none());
}

async fn returns_after_one(mut context: Context<Number, Number>) -> Result<(), BoxError> {
    context.receive().await?;
    Ok(())
}

pub fn a_receiver_is_told_when_the_body_returns(stage: &Stage) {
    let kernel = launch(stage.kernel("returns"), returns_after_one);
    let receiver = kernel.clone();
    let receiver = Waiter::start(async move { receiver.receive().await });
    let blocking = kernel.clone();
    let blocking = std::thread::spawn(move || blocking.receive_blocking(None));
    kernel.try_send(Number(1)).unwrap();
    for received in [receiver.join(), blocking.join().unwrap()] {
        assert!(matches!(received, Err(ReceiveError::Stopped { .. })), "{received:?}");
    }
}

pub fn a_launch_with_a_bad_option_is_refused_and_says_which(stage: &Stage) {
    let long = "x".repeat(256);
    let cases = [
        (stage.kernel("k").capacity(0), "capacity"),
        (stage.kernel("k").capacity(CAPACITY_MAX + 1), "capacity"),
        (stage.kernel("k").reply_capacity(0), "reply_capacity"),
        (stage.kernel(""), "name"),
        (stage.kernel(&long), "name"),
        (stage.kernel("k").watchdog(Some(Duration::ZERO)), "watchdog"),
    ];
    for (builder, expected) in cases {
        let refused = builder.launch(echo);
        let Err(LaunchError::InvalidOption { option, .. }) = refused else { panic!("{refused:?}") };
        assert_eq!(option, expected);
    }
    assert_eq!(stage.runtime.kernel_ids(), []);
    drop(stage.kernel("largest").capacity(CAPACITY_MAX).launch(echo).unwrap());
}

pub fn an_unknown_executor_is_refused_and_the_known_ones_are_named(stage: &Stage) {
    let refused = stage.kernel("k").executor("abacus").launch(echo).unwrap_err();
    let text = refused.to_string();
    assert!(text.contains("abacus") && text.contains(stage.executor()), "{text}");
    assert!(matches!(refused, LaunchError::UnknownExecutor { .. }), "{refused:?}");
    assert_eq!(stage.runtime.kernel_ids(), []);
}

async fn fails(_context: Context<Number, Number>) -> Result<(), BoxError> {
    Err("fails".into())
}

pub fn a_name_in_use_is_refused_until_its_kernel_was_terminated(stage: &Stage) {
    let refused = |state: KernelState| {
        let refused = stage.kernel("name").launch(echo);
        let Err(LaunchError::AlreadyExists { state: told, .. }) = refused else {
            panic!("{refused:?}")
        };
        assert_eq!(told, state);
    };
    let kernel = stage.kernel("name").launch(echo).unwrap();
    refused(KernelState::Launched);
    kernel.activate().unwrap();
    refused(KernelState::Active);
    kernel.terminate_blocking(Terminate::now());
    // One that failed can be looked at until it is terminated.
    let kernel = launch(stage.kernel("name"), fails);
    assert!(block_on(kernel.ended()).is_err());
    refused(KernelState::Failed);
    kernel.terminate_blocking(Terminate::now());
    assert_eq!(kernel.state(), KernelState::Failed, "why it ended is not forgotten");
    // A late terminate of the first does not touch the second of the name.
    let second = launch(stage.kernel("name"), echo);
    kernel.terminate_blocking(Terminate::now());
    assert_eq!(second.ask_blocking(Number(1), None).unwrap().message, Number(1));
    assert_eq!(stage.runtime.kernel_ids().len(), 1);
}

pub fn a_kernel_found_by_name_has_the_types_asked_for_or_the_error_names_both(stage: &Stage) {
    let kernel = launch(stage.kernel("echo"), echo);
    let found = stage.runtime.get::<Number, Number>("echo").unwrap();
    found.try_send(Number(1)).unwrap();
    assert_eq!(kernel.receive_blocking(None).unwrap().message, Number(1));
    let address = stage.runtime.address::<Number>("echo").unwrap();
    address.try_send(Number(2)).unwrap();
    assert_eq!(found.receive_blocking(None).unwrap().message, Number(2));
    assert_eq!(address.kernel(), kernel.id());

    let errors = [
        stage.runtime.get::<Token, Number>("echo").unwrap_err(),
        stage.runtime.get::<Number, Token>("echo").unwrap_err(),
        stage.runtime.address::<Token>("echo").unwrap_err(),
    ];
    for error in errors {
        let text = error.to_string();
        assert!(text.contains("Token") && text.contains("Number"), "{text}");
        assert!(matches!(error, LookupError::WrongType { .. }), "{error:?}");
    }
    let errors = [
        stage.runtime.get::<Number, Number>("nobody").unwrap_err(),
        stage.runtime.address::<Number>("nobody").unwrap_err(),
        stage.runtime.state("nobody").unwrap_err(),
    ];
    for error in errors {
        assert!(matches!(error, LookupError::NotFound { .. }), "{error:?}");
        assert!(error.to_string().contains("nobody"), "{error}");
    }
    quiet(&kernel);
}

pub fn a_kernel_runs_on_without_its_handles(stage: &Stage) {
    drop(launch(stage.kernel("alone"), echo));
    let kernel = stage.runtime.get::<Number, Number>("alone").unwrap();
    assert_eq!(kernel.ask_blocking(Number(1), None).unwrap().message, Number(1));
}

async fn waits_for_ever(_context: Context<Number, Number>) -> Result<(), BoxError> {
    std::future::pending().await
}

pub fn a_scoped_kernel_ends_with_its_scope(stage: &Stage) {
    // In order.
    let scoped = launch(stage.kernel("closed"), echo).scoped();
    assert_eq!(scoped.ask_blocking(Number(1), None).unwrap().message, Number(1));
    let kernel = (*scoped).clone();
    assert_eq!(block_on(scoped.close(Terminate::drain())), Termination::Clean);
    assert_eq!(kernel.state(), KernelState::Terminated);
    // By an early return or a panic: whatever it is at is dropped, at the next await.
    let mut ended = Vec::new();
    for panics in [false, true] {
        let kernel = launch(stage.kernel(&format!("dropped {panics}")), waits_for_ever);
        ended.push(kernel.clone());
        let scope = std::thread::spawn(move || {
            let _scoped: dotcompute::ScopedKernel<Number, Number> = kernel.scoped();
            if panics {
                panic!("out of the scope");
            }
        });
        assert_eq!(scope.join().is_err(), panics);
    }
    for kernel in ended {
        block_on(kernel.ended()).unwrap();
        assert_eq!(kernel.state(), KernelState::Terminated);
    }
    eventually(|| stage.runtime.kernel_ids().is_empty());
}

pub fn a_runtime_that_is_dropped_ends_its_kernels_and_tells_everyone_who_waits(stage: &Stage) {
    let lonely = stage.another();
    let gated = Gated::busy(lonely.kernel("orphan").capacity(1));
    let idle = launch(lonely.kernel("idle"), echo);
    let asleep = lonely.kernel("asleep").launch(echo).unwrap();
    let asker = gated.kernel.clone();
    let asked = Waiter::start(async move { asker.ask(Number(1)).await.map(|_| ()) });
    let sender = gated.kernel.clone();
    let blocked = Waiter::start(async move { sender.send(Number(2)).await });
    let receiver = idle.clone();
    let received = Waiter::start(async move { receiver.receive().await.map(|_| ()) });
    drop(lonely);
    assert!(asked.join().is_err());
    let Err(refused) = blocked.join() else { panic!("sent to nobody") };
    assert_eq!(refused.into_inner(), Number(2));
    assert!(received.join().is_err());
    for kernel in [&gated.kernel, &idle, &asleep] {
        let _ = block_on(kernel.ended());
        assert!(kernel.state().has_ended());
        balanced(kernel);
    }
}
