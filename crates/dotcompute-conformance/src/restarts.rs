//! What a restart keeps, what it makes anew, and when there is none.

use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use dotcompute::mailbox::wait::block_on;
use dotcompute::{
    AskError, BoxError, Context, DELIVERIES_MAX, DeadLetterReason, Envelope, KernelRef,
    KernelState, MessageId, Restart, RestartPolicy, StateError, Terminate, Termination,
};

#[cfg(target_os = "linux")]
use crate::roles::Roles;
use crate::signals::{Tell, channel};
use crate::stage::{
    Auditor, Form, Gate, Number, Outcome, Stage, Waiter, balanced, eventually, launch, launch_with,
    quiet, serve,
};

#[cfg(target_os = "linux")]
pub(crate) fn roles(roles: Roles) -> Roles {
    roles
        .body_with(ends_after_one)
        .serving(counts_up_to_a_hundred)
        .serving(fails_at_one_when_let)
        .body_with(remembers)
        .body_with(always_failing)
        .body(returns)
        .body_with(fails_again)
        .handler(third)
}

/// A restart policy that comes back at once and as often as it takes.
fn patient() -> Restart {
    Restart {
        policy: RestartPolicy::OnFault,
        max_restarts: u32::MAX,
        backoff: Duration::ZERO,
        ..Restart::default()
    }
}

async fn ends_after_one(mut context: Context<Number, Number>, fails: bool) -> Result<(), BoxError> {
    context.receive().await?;
    if fails { Err("fails".into()) } else { Ok(()) }
}

pub fn a_kernel_is_restarted_as_its_policy_says(stage: &Stage) {
    for (policy, at_fault, at_return) in [
        (RestartPolicy::Never, false, false),
        (RestartPolicy::OnFault, true, false),
        (RestartPolicy::Always, true, true),
    ] {
        for fails in [false, true] {
            let restart = Restart { policy, ..patient() };
            let builder = stage.kernel(&format!("{policy:?} {fails}")).restart(restart);
            let kernel = launch_with(builder, ends_after_one, fails);
            let again = if fails { at_fault } else { at_return };
            for number in 0..3 {
                kernel.send_blocking(Number(number), None).unwrap();
                if !again {
                    break;
                }
                eventually(|| kernel.telemetry().restarts == number + 1);
            }
            if again {
                eventually(|| kernel.state() == KernelState::Active);
            } else {
                assert_eq!(block_on(kernel.ended()).is_err(), fails);
                let ended = if fails { KernelState::Failed } else { KernelState::Terminated };
                assert_eq!(kernel.state(), ended);
                assert_eq!(kernel.telemetry().restarts, 0);
            }
            quiet(&kernel);
        }
    }
}

fn counts_up_to_a_hundred(
    (tell, gate): (Tell<u64>, Gate),
) -> impl FnMut(u64) -> Outcome + Send + 'static {
    let mut seen = 0;
    move |number| {
        tell.send(number)?;
        if number == 100 {
            gate.pass_blocking();
            return Err("a hundred".into());
        }
        seen += 1;
        Ok(Some(seen))
    }
}

pub fn a_restart_keeps_mailbox_replies_and_waiters_and_fails_only_the_ask_in_hand(stage: &Stage) {
    for form in Form::BOTH {
        let (tell, arrived) = channel();
        let gate = Gate::default();
        let builder = stage.kernel(&format!("{form:?}")).restart(patient()).capacity(3);
        // Replies with how many messages this state has seen.
        let kernel = serve(builder, form, counts_up_to_a_hundred, (tell, gate));
        let auditor = Auditor::watch(vec![kernel.clone()]);
        let ask = |number| {
            let kernel = kernel.clone();
            Waiter::start(async move { kernel.ask(Number(number)).await.map(|r| r.message.0) })
        };
        // Two replies stay in the output.
        kernel.try_send(Number(1)).unwrap();
        kernel.try_send(Number(2)).unwrap();
        assert_eq!((arrived.recv(), arrived.recv()), (Ok(1), Ok(2)));
        let in_hand = ask(100);
        assert_eq!(arrived.recv(), Ok(100));
        kernel.try_send(Number(3)).unwrap();
        let queued = ask(4);
        kernel.try_send(Number(5)).unwrap();
        let blocked = ask(6);
        gate.remove();
        let failed = in_hand.join();
        let Err(AskError::Failed { fault, .. }) = failed else { panic!("{failed:?}") };
        assert_eq!(fault.message(), "a hundred");
        assert_eq!((queued.join().unwrap(), blocked.join().unwrap()), (2, 4), "the state is new");
        let replies: Vec<u64> =
            (0..4).map(|_| kernel.receive_blocking(None).unwrap().message.0).collect();
        assert_eq!(replies, [1, 2, 1, 3], "replies of both lives, in order");
        assert_eq!(arrived.iter().take(4).collect::<Vec<_>>(), [3, 4, 5, 6]);
        // One who waits through the restart gets what comes after it.
        let receiver = kernel.clone();
        let receiver = Waiter::start(async move { receiver.receive().await });
        kernel.try_send(Number(100)).unwrap();
        kernel.try_send(Number(7)).unwrap();
        assert_eq!(receiver.join().unwrap().message, Number(1));
        quiet(&kernel);
        auditor.end();
        let telemetry = kernel.telemetry();
        assert_eq!((telemetry.faults, telemetry.restarts), (2, 2));
        assert_eq!(telemetry.state, KernelState::Active);
        assert_eq!(telemetry.books.dead_lettered, 2);
    }
}

async fn remembers(
    mut context: Context<Number, Number>,
    (tell, first): (Tell<u64>, MessageId),
) -> Result<(), BoxError> {
    loop {
        let number = context.receive().await?.0;
        tell.send(number)?;
        match number {
            2 => return Err("two".into()),
            3 => context.send(Number(30)).await?,
            4 => {
                let named = Envelope::new(Number(10)).with_correlation(first);
                context.send(named).await?;
            }
            _ => {}
        }
    }
}

/// An ask that an earlier run had received stays open, to a reply that names it.
pub fn an_ask_received_before_the_fault_can_be_answered_after_the_restart(stage: &Stage) {
    let (tell, arrived) = channel();
    // What outlives the state of a run lies outside.
    let question = Envelope::new(Number(1));
    let first = question.id;
    let kernel =
        launch_with(stage.kernel("remembers").restart(patient()), remembers, (tell, first));
    let asker = kernel.clone();
    let asked = Waiter::start(async move { asker.ask(question).await });
    assert_eq!(arrived.recv(), Ok(1));
    for number in 2..=4 {
        kernel.try_send(Number(number)).unwrap();
    }
    // This run has received no ask: a reply without a name is for the output.
    assert_eq!(kernel.receive_blocking(None).unwrap().message, Number(30));
    assert_eq!(asked.join().unwrap().message, Number(10));
    quiet(&kernel);
}

fn fails_at_one_when_let(
    (tell, gate): (Tell<u64>, Gate),
) -> impl FnMut(u64) -> Outcome + Send + 'static {
    move |number| {
        tell.send(number)?;
        gate.pass_blocking();
        if number == 1 { Err("one".into()) } else { Ok(None) }
    }
}

pub fn a_kernel_that_fails_while_deactivated_comes_back_paused(stage: &Stage) {
    let (tell, arrived) = channel();
    let gate = Gate::default();
    let kernel = serve(
        stage.kernel("paused").restart(patient()),
        Form::Body,
        fails_at_one_when_let,
        (tell, gate),
    );
    kernel.try_send(Number(1)).unwrap();
    assert_eq!(arrived.recv(), Ok(1));
    kernel.try_send(Number(2)).unwrap();
    kernel.deactivate().unwrap();
    gate.remove();
    eventually(|| kernel.telemetry().restarts == 1 && kernel.state() == KernelState::Deactivated);
    assert_eq!(kernel.books().queued, 1);
    kernel.reactivate().unwrap();
    assert_eq!(arrived.recv(), Ok(2));
    quiet(&kernel);
}

async fn always_failing(
    mut context: Context<Number, Number>,
    tell: Tell<()>,
) -> Result<(), BoxError> {
    tell.send(())?;
    let number = context.receive().await?.0;
    Err(format!("fault {number}").into())
}

/// Fails at every message, and tells of it.
fn always_fails(
    stage: &Stage,
    name: &str,
    restart: Restart,
) -> (KernelRef<Number, Number>, Receiver<()>) {
    let (tell, starts) = channel();
    let kernel = launch_with(stage.kernel(name).restart(restart), always_failing, tell);
    (kernel, starts)
}

async fn returns(_context: Context<Number, Number>) -> Result<(), BoxError> {
    Ok(())
}

pub fn more_restarts_than_the_intensity_allows_fail_the_kernel(stage: &Stage) {
    let restart = Restart { max_restarts: 2, ..patient() };
    let (kernel, _starts) = always_fails(stage, "intense", restart);
    for number in 1..=5 {
        // The last ones may come too late.
        let _ = kernel.try_send(Number(number));
    }
    let fault = block_on(kernel.ended()).unwrap_err();
    assert_eq!(fault.message(), "fault 3", "the last cause is kept");
    let telemetry = kernel.telemetry();
    assert_eq!((telemetry.faults, telemetry.restarts), (3, 2));
    assert_eq!(telemetry.state, KernelState::Failed);
    balanced(&kernel);

    // To return all the time, where it should go on, is a fault in the end.
    let restart = Restart { policy: RestartPolicy::Always, max_restarts: 2, ..patient() };
    let builder = stage.kernel("returns").restart(restart);
    let kernel = launch(builder, returns);
    let fault = block_on(kernel.ended()).unwrap_err();
    assert!(fault.message().contains("restarted 2 times"), "{fault}");
    assert_eq!(kernel.telemetry().restarts, 2);
    assert_eq!(kernel.state(), KernelState::Failed);
}

pub fn restarts_outside_the_window_do_not_count(stage: &Stage) {
    let restart = Restart {
        max_restarts: 1,
        window: Duration::from_millis(1),
        backoff: Duration::from_millis(5),
        ..patient()
    };
    let (kernel, starts) = always_fails(stage, "calm", restart);
    for number in 0..5 {
        kernel.send_blocking(Number(number), None).unwrap();
    }
    assert_eq!(starts.iter().take(6).count(), 6);
    quiet(&kernel);
    assert_eq!(kernel.telemetry().restarts, 5);
    assert!(!kernel.state().has_ended());
}

pub fn a_restart_waits_for_its_backoff_which_doubles_up_to_its_limit(stage: &Stage) {
    let restart = Restart {
        backoff: Duration::from_millis(20),
        backoff_max: Duration::from_millis(50),
        ..patient()
    };
    let (kernel, starts) = always_fails(stage, "waits", restart);
    starts.recv().unwrap();
    for (number, least) in [20, 40, 50, 50].into_iter().enumerate() {
        let sent = Instant::now();
        kernel.send_blocking(Number(number as u64), None).unwrap();
        starts.recv().unwrap();
        let pause = sent.elapsed();
        assert!(pause >= Duration::from_millis(least), "pause {number} took {pause:?}");
    }
}

fn in_backoff(stage: &Stage, name: &str) -> (KernelRef<Number, Number>, Receiver<()>) {
    let restart = Restart { backoff: Duration::from_secs(3600), ..patient() };
    let restart = Restart { backoff_max: Duration::from_secs(3600), ..restart };
    let (kernel, starts) = always_fails(stage, name, restart);
    kernel.try_send(Number(0)).unwrap();
    eventually(|| kernel.state() == KernelState::Launched);
    starts.recv().unwrap();
    kernel.try_send(Number(1)).unwrap();
    (kernel, starts)
}

pub fn a_kernel_in_its_backoff_accepts_messages_and_can_be_ended(stage: &Stage) {
    let (kernel, _starts) = in_backoff(stage, "now");
    let telemetry = kernel.telemetry();
    assert_eq!(telemetry.last_fault.unwrap().message(), "fault 0");
    assert_eq!(kernel.terminate_blocking(Terminate::now()), Termination::Clean);
    assert_eq!(kernel.books().dead_lettered, 2);

    // A drain gives it its turn, without waiting for the hour.
    let (kernel, starts) = in_backoff(stage, "drain");
    assert_eq!(kernel.terminate_blocking(Terminate::drain()), Termination::Clean);
    assert!(starts.recv().is_ok(), "it ran once more");
    balanced(&kernel);
    assert_eq!(kernel.telemetry().faults, 2);
}

pub fn a_kernel_deactivated_in_its_backoff_comes_back_paused(stage: &Stage) {
    // Long enough for this thread to look, on any machine.
    let restart = Restart { backoff: Duration::from_millis(500), ..patient() };
    let (kernel, starts) = always_fails(stage, "paused", restart);
    starts.recv().unwrap();
    kernel.try_send(Number(0)).unwrap();
    eventually(|| kernel.state() == KernelState::Launched);
    kernel.deactivate().unwrap();
    kernel.try_send(Number(1)).unwrap();
    starts.recv().unwrap();
    assert_eq!(kernel.state(), KernelState::Deactivated);
    assert_eq!(kernel.books().queued, 1);
    assert!(matches!(kernel.deactivate(), Err(StateError { .. })));
    kernel.reactivate().unwrap();
    eventually(|| kernel.telemetry().faults == 2);
    balanced(&kernel);
}

async fn fails_again(
    mut context: Context<Number, Number>,
    tell: Tell<(u64, u8)>,
) -> Result<(), BoxError> {
    loop {
        let number = context.receive().await?.0;
        let delivery = context.envelope().map_or(0, |envelope| envelope.delivery_count());
        tell.send((number, delivery))?;
        match (number, delivery) {
            (1, _) | (2, 1) => return Err("again".into()),
            _ => context.reply(Number(number * 10)).await?,
        }
    }
}

pub fn a_message_is_redelivered_first_and_at_most_three_times(stage: &Stage) {
    let (tell, deliveries) = channel();
    let builder = stage.kernel("again").restart(Restart { redeliver: true, ..patient() });
    let kernel = launch_with(builder, fails_again, tell);
    let auditor = Auditor::watch(vec![kernel.clone()]);
    kernel.deactivate().unwrap();
    kernel.try_send(Number(1)).unwrap();
    let asker = kernel.clone();
    let asked = Waiter::start(async move { asker.ask(Number(2)).await });
    kernel.try_send(Number(3)).unwrap();
    kernel.reactivate().unwrap();
    let expected = [(1, 1), (1, 2), (1, DELIVERIES_MAX), (2, 1), (2, 2), (3, 1)];
    assert_eq!(deliveries.iter().take(6).collect::<Vec<_>>(), expected);
    assert_eq!(asked.join().unwrap().message, Number(20), "its ask is still open");
    quiet(&kernel);
    auditor.end();
    let books = kernel.books();
    assert_eq!((books.accepted, books.processed, books.dead_lettered), (3, 2, 1));
    assert_eq!(books.redelivered, 3);
    let letters = stage.runtime.take_dead_letters(|_| true);
    assert_eq!(letters.len(), 1);
    assert_eq!(letters[0].delivery_count, DELIVERIES_MAX);
    assert!(matches!(letters[0].reason, DeadLetterReason::Faulted(_)));
}

pub fn a_handler_knows_which_delivery_it_is_at(stage: &Stage) {
    let builder = stage.kernel("third").restart(Restart { redeliver: true, ..patient() });
    let kernel = builder.launch_handler(third).unwrap();
    kernel.activate().unwrap();
    assert_eq!(kernel.ask_blocking(Number(1), None).unwrap().message, Number(3));
    quiet(&kernel);
    assert_eq!(kernel.telemetry().faults, 2);
}

fn third() -> Third {
    Third
}

/// Panics at every delivery before the last one.
struct Third;

impl dotcompute::Handler for Third {
    type In = Number;
    type Out = Number;
    fn handle(
        &mut self,
        _message: &Number,
        context: &mut dotcompute::HandlerContext<Number>,
    ) -> Result<Option<Number>, dotcompute::BoxError> {
        match context.delivery_count() {
            DELIVERIES_MAX => Ok(Some(Number(u64::from(DELIVERIES_MAX)))),
            early => panic!("delivery {early}"),
        }
    }
}

pub fn a_message_that_no_restart_follows_is_a_dead_letter_and_not_put_back(stage: &Stage) {
    let restart = Restart { redeliver: true, max_restarts: 1, ..patient() };
    let (kernel, _starts) = always_fails(stage, "twice", restart);
    let asked = kernel.ask_blocking(Number(1), None);
    assert!(matches!(asked, Err(AskError::Failed { .. })), "{asked:?}");
    assert!(block_on(kernel.ended()).is_err());
    let letters = stage.runtime.take_dead_letters(|_| true);
    assert_eq!(letters.len(), 1);
    assert_eq!(letters[0].delivery_count, 2);
    balanced(&kernel);
}
