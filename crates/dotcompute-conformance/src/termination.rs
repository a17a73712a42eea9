//! The end on request: what becomes of messages and waiters, and that the deadline holds.

use std::sync::mpsc::{Receiver, channel as std_channel};
use std::time::{Duration, Instant};

use dotcompute::mailbox::wait::block_on;
use dotcompute::{
    AskError, BoxError, Context, DeadLetterReason, KernelRef, KernelState, LaunchError,
    ReceiveError, Restart, RestartPolicy, SendError, Terminate, Termination,
};

#[cfg(target_os = "linux")]
use crate::roles::Roles;
use crate::signals::{Tell, channel};
use crate::stage::{
    Form, Gate, Gated, Number, Outcome, Stage, Waiter, balanced, echo, eventually, launch,
    launch_closure, launch_with, quiet, serve,
};

#[cfg(target_os = "linux")]
pub(crate) fn roles(roles: Roles) -> Roles {
    roles
        .serving(repeats)
        .body_with(replies_when_let)
        .body(replies_and_returns)
        .body_with(waits_for_ever)
        .body_with(replies_and_waits)
        .serving(blocking)
        .serving(fails_at_two)
        .body_with(looks_whether_to_stop)
}

/// How much later than its deadline a terminate may return on a machine that is busy with other
/// tests.
const LATE: Duration = Duration::from_secs(10);

/// The shortest time that leaves as long for cancelling as any does. A loaded machine needs it.
pub(crate) const TIME_TO_CANCEL: Duration = Duration::from_secs(5);

fn within(limit: Duration) -> Terminate {
    Terminate::now().within(limit)
}

/// The numbers of the dead letters of one kind, oldest first.
fn letters(stage: &Stage, wanted: fn(&DeadLetterReason) -> bool) -> Vec<u64> {
    let letters = stage.runtime.take_dead_letters(|letter| wanted(&letter.reason));
    letters.iter().map(|letter| letter.message::<Number>().unwrap().0).collect()
}

fn repeats((): ()) -> impl FnMut(u64) -> Outcome + Send + 'static {
    |number| Ok(Some(number))
}

pub fn an_idle_kernel_ends_at_once(stage: &Stage) {
    for form in Form::BOTH {
        let kernel = serve(stage.kernel(&format!("{form:?}")), form, repeats, ());
        kernel.ask_blocking(Number(1), None).unwrap();
        let start = Instant::now();
        let how = Terminate::drain().within(Duration::from_secs(50));
        assert_eq!(kernel.terminate_blocking(how), Termination::Clean);
        assert!(start.elapsed() < LATE, "a kernel that waits for a message is woken");
        assert_eq!(kernel.state(), KernelState::Terminated);
    }
    // Also one that was never activated.
    let kernel = stage.kernel("asleep").launch(echo).unwrap();
    assert_eq!(kernel.terminate_blocking(Terminate::drain()), Termination::Clean);
    assert_eq!(stage.runtime.kernel_ids(), []);
}

async fn replies_when_let(
    mut context: Context<Number, Number>,
    (tell, gate): (Tell<u64>, Gate),
) -> Result<(), BoxError> {
    while let Ok(&number) = context.receive().await {
        let _ = tell.send(number.0);
        gate.pass().await;
        context.reply(number).await?;
    }
    Ok(())
}

pub fn terminate_tells_everyone_who_waits_and_keeps_what_is_left_as_dead_letters(stage: &Stage) {
    for drain in [false, true] {
        let gate = Gate::default();
        let (tell, arrived) = channel();
        let builder = stage.kernel("ends").capacity(2);
        let kernel = launch_with(builder, replies_when_let, (tell, gate));
        let ask = |number| {
            let kernel = kernel.clone();
            Waiter::start(async move { kernel.ask(Number(number)).await.map(|r| r.message.0) })
        };
        let in_hand = ask(1);
        arrived.recv().unwrap();
        let queued = ask(2);
        kernel.try_send(Number(3)).unwrap();
        let sender = kernel.clone();
        let blocked = Waiter::start(async move { sender.send(Number(4)).await });
        let blocking = kernel.clone();
        let blocked_thread = std::thread::spawn(move || blocking.send_blocking(Number(5), None));
        let receivers = [(), ()].map(|()| {
            let receiver = kernel.clone();
            Waiter::start(async move { receiver.receive().await.map(|r| r.message.0) })
        });
        let how = if drain { Terminate::drain() } else { Terminate::now() };
        let terminator = kernel.clone();
        let end = Waiter::start(async move { terminator.terminate(how).await });
        assert_eq!(kernel.state(), KernelState::Terminating);
        // Senders get their messages back before the kernel has ended.
        for (sent, number) in [(blocked.join(), 4), (blocked_thread.join().unwrap(), 5)] {
            let Err(SendError::Stopped { envelope, .. }) = sent else { panic!("{sent:?}") };
            assert_eq!(envelope.message, Number(number));
        }
        let late = kernel.try_send(Number(9));
        assert!(matches!(late, Err(SendError::Stopped { .. })), "{late:?}");
        gate.remove();
        assert_eq!(end.join(), Termination::Clean);
        assert_eq!(in_hand.join().unwrap(), 1, "the message in hand is finished");
        let received: Vec<_> = receivers.map(Waiter::join).into();
        let told = received.iter().filter(|r| matches!(r, Err(ReceiveError::Stopped { .. })));
        let (told, queued) = (told.count(), queued.join());
        let books = kernel.books();
        let undelivered = letters(stage, |r| matches!(r, DeadLetterReason::Undelivered));
        if drain {
            assert_eq!(queued.unwrap(), 2);
            assert_eq!((books.processed, books.dead_lettered), (3, 0));
            assert_eq!(undelivered, []);
            // One of them got the reply to 3, unless the end was quicker.
            let unread = letters(stage, |r| matches!(r, DeadLetterReason::Unread)).len();
            assert_eq!(told - unread, 1);
        } else {
            assert!(matches!(queued, Err(AskError::Stopped { .. })), "{queued:?}");
            assert_eq!((books.processed, books.dead_lettered), (1, 2));
            assert_eq!(undelivered, [2, 3]);
            assert_eq!(told, 2);
        }
        balanced(&kernel);
        let later = kernel.receive_blocking(None);
        assert!(matches!(later, Err(ReceiveError::Stopped { .. })), "{later:?}");
        let later = kernel.ask_blocking(Number(9), None);
        assert!(matches!(later, Err(AskError::NotSent(SendError::Stopped { .. }))), "{later:?}");
    }
}

async fn replies_and_returns(mut context: Context<Number, Number>) -> Result<(), BoxError> {
    for number in [5, 6] {
        context.reply(Number(number)).await?;
    }
    Ok(())
}

async fn waits_for_ever(
    mut context: Context<Number, Number>,
    tell: Tell<()>,
) -> Result<(), BoxError> {
    context.receive().await?;
    tell.send(())?;
    std::future::pending().await
}

pub fn replies_that_nobody_read_are_dead_letters(stage: &Stage) {
    let kernel = launch(stage.kernel("unread"), echo);
    for number in 1..=4 {
        kernel.try_send(Number(number)).unwrap();
    }
    quiet(&kernel);
    assert_eq!(kernel.receive_blocking(None).unwrap().message, Number(1));
    assert_eq!(kernel.terminate_blocking(Terminate::drain()), Termination::Clean);
    assert_eq!(letters(stage, |r| matches!(r, DeadLetterReason::Unread)), [2, 3, 4]);
    let books = kernel.reply_books();
    assert_eq!((books.accepted, books.processed, books.dead_lettered), (4, 1, 3));
    balanced(&kernel);
    // Those of a kernel that returned stay readable until it is terminated.
    let kernel = launch(stage.kernel("returned"), replies_and_returns);
    block_on(kernel.ended()).unwrap();
    assert_eq!(kernel.receive_blocking(None).unwrap().message, Number(5));
    kernel.terminate_blocking(Terminate::now());
    assert_eq!(letters(stage, |r| matches!(r, DeadLetterReason::Unread)), [6]);
}

/// A body that waits for something else, and never looks whether it is to stop.
fn deaf(stage: &Stage, name: &str) -> (KernelRef<Number, Number>, Receiver<()>) {
    let (tell, arrived) = channel();
    let kernel = launch_with(stage.kernel(name), waits_for_ever, tell);
    (kernel, arrived)
}

pub fn a_body_that_ignores_its_end_at_an_await_is_cancelled_at_the_deadline(stage: &Stage) {
    let (kernel, arrived) = deaf(stage, "deaf");
    let asker = kernel.clone();
    let asked = Waiter::start(async move { asker.ask(Number(1)).await.map(|_| ()) });
    arrived.recv().unwrap();
    kernel.try_send(Number(2)).unwrap();
    let start = Instant::now();
    assert_eq!(kernel.terminate_blocking(within(TIME_TO_CANCEL)), Termination::Cancelled);
    assert!(start.elapsed() < TIME_TO_CANCEL + LATE, "it took {:?}", start.elapsed());
    let asked = asked.join();
    assert!(matches!(asked, Err(AskError::Stopped { .. })), "{asked:?}");
    assert_eq!(kernel.state(), KernelState::Terminated);
    block_on(kernel.ended()).unwrap();
    balanced(&kernel);
    let books = kernel.books();
    assert_eq!((books.in_hand, books.dead_lettered), (0, 2));
    assert_eq!(kernel.terminate_blocking(Terminate::now()), Termination::Cancelled);
}

async fn replies_and_waits(
    mut context: Context<Number, Number>,
    tell: Tell<()>,
) -> Result<(), BoxError> {
    let number = *context.receive().await?;
    // Without a correlation: it answers the oldest ask, or goes to the output.
    context.send(number).await?;
    tell.send(())?;
    std::future::pending().await
}

pub fn a_message_whose_reply_was_made_is_processed_though_its_body_is_cancelled(stage: &Stage) {
    for asked in [false, true] {
        let (tell, arrived) = channel();
        let name = if asked { "asked" } else { "sent" };
        let kernel = launch_with(stage.kernel(name), replies_and_waits, tell);
        if asked {
            assert_eq!(block_on(kernel.ask(Number(1))).unwrap().message, Number(1));
        } else {
            kernel.try_send(Number(1)).unwrap();
        }
        arrived.recv().unwrap();
        kernel.try_send(Number(2)).unwrap();
        let how = within(TIME_TO_CANCEL);
        assert_eq!(kernel.terminate_blocking(how), Termination::Cancelled);
        balanced(&kernel);
        let books = kernel.books();
        assert_eq!((books.processed, books.dead_lettered, books.in_hand), (1, 1, 0), "{name}");
    }
}

fn blocking((tell, gate): (Tell<()>, Gate)) -> impl FnMut(u64) -> Outcome + Send + 'static {
    move |number| {
        tell.send(())?;
        gate.pass_blocking();
        Ok(Some(number))
    }
}

/// A body that blocks its thread; it ends when its gate is opened.
fn blocks(stage: &Stage, name: &str, gate: Gate) -> (KernelRef<Number, Number>, Receiver<()>) {
    let (tell, arrived) = channel();
    let kernel = serve(stage.kernel(name), Form::Handler, blocking, (tell, gate));
    (kernel, arrived)
}

pub fn a_body_that_blocks_its_thread_is_abandoned_at_the_deadline_or_killed(stage: &Stage) {
    let end = stage.end_of_the_blocked();
    // To kill takes its time on a loaded machine; to give up needs none.
    let (deadline, in_hand) = match end {
        Termination::Abandoned => (Duration::from_millis(200), 1),
        _ => (TIME_TO_CANCEL, 0_u64),
    };
    let gate = Gate::default();
    let (kernel, arrived) = blocks(stage, "blocks", gate);
    let asker = kernel.clone();
    let asked = Waiter::start(async move { asker.ask(Number(1)).await.map(|_| ()) });
    arrived.recv().unwrap();
    kernel.try_send(Number(2)).unwrap();
    let receiver = kernel.clone();
    let received = Waiter::start(async move { receiver.receive().await.map(|_| ()) });
    let start = Instant::now();
    assert_eq!(kernel.terminate_blocking(within(deadline)), end);
    assert!(start.elapsed() < deadline + LATE, "it took {:?}", start.elapsed());
    let asked = asked.join();
    assert!(matches!(asked, Err(AskError::Stopped { .. })), "{asked:?}");
    let received = received.join();
    assert!(matches!(received, Err(ReceiveError::Stopped { .. })), "{received:?}");
    block_on(kernel.ended()).unwrap();
    balanced(&kernel);
    assert_eq!((kernel.books().in_hand, kernel.books().dead_lettered), (in_hand, 2 - in_hand));
    // Its name is free, although it may still run; what it still does changes nothing.
    let next = launch(stage.kernel("blocks"), echo);
    gate.remove();
    quiet(&kernel);
    assert_eq!(kernel.state(), KernelState::Terminated);
    assert!(kernel.try_receive().is_err(), "its late reply is not delivered");
    let late = letters(stage, |r| matches!(r, DeadLetterReason::LateReply));
    assert_eq!(late, vec![1; in_hand as usize], "of one that was killed there is none");
    assert_eq!(next.ask_blocking(Number(3), None).unwrap().message, Number(3));
    assert_eq!(kernel.terminate_blocking(Terminate::now()), end);
}

pub fn a_drain_that_does_not_end_in_time_is_cut_off(stage: &Stage) {
    let gated = Gated::busy(stage.kernel("slow"));
    for number in 1..=3 {
        gated.kernel.try_send(Number(number)).unwrap();
    }
    gated.gate.open(1);
    gated.arrives(1);
    let how = Terminate::drain().within(TIME_TO_CANCEL);
    assert_eq!(gated.kernel.terminate_blocking(how), Termination::Cancelled);
    let books = gated.kernel.books();
    assert_eq!((books.processed, books.dead_lettered), (1, 3));
    balanced(&gated.kernel);
    assert_eq!(letters(stage, |r| matches!(r, DeadLetterReason::Faulted(_))), [1]);
    assert_eq!(letters(stage, |r| matches!(r, DeadLetterReason::Undelivered)), [2, 3]);
}

pub fn a_drain_that_waits_for_a_reader_goes_on_when_there_is_one(stage: &Stage) {
    let kernel = launch(stage.kernel("drains").reply_capacity(1), echo);
    for number in 1..=4 {
        kernel.try_send(Number(number)).unwrap();
    }
    eventually(|| kernel.books().processed == 1 && kernel.books().in_hand == 1);
    let terminator = kernel.clone();
    let end = Waiter::start(async move { terminator.terminate(Terminate::drain()).await });
    for number in 1..=3 {
        assert_eq!(kernel.receive_blocking(None).unwrap().message, Number(number));
    }
    assert_eq!(end.join(), Termination::Clean);
    assert_eq!(kernel.books().processed, 4);
    balanced(&kernel);
}

/// The kernel may not even have begun to run.
pub fn a_drain_right_after_the_activation_processes_what_was_sent(stage: &Stage) {
    for round in 0..50 {
        let kernel = launch(stage.kernel("quick"), echo);
        for number in 0..3 {
            kernel.try_send(Number(number)).unwrap();
        }
        assert_eq!(kernel.terminate_blocking(Terminate::drain()), Termination::Clean);
        let books = kernel.books();
        assert_eq!((books.processed, books.dead_lettered), (3, 0), "round {round}");
    }
}

fn fails_at_two((): ()) -> impl FnMut(u64) -> Outcome + Send + 'static {
    |number| if number == 2 { Err("two".into()) } else { Ok(None) }
}

pub fn a_fault_in_a_drain_restarts_the_kernel_if_that_is_its_policy(stage: &Stage) {
    for (policy, processed) in
        [(RestartPolicy::Never, 1), (RestartPolicy::OnFault, 3), (RestartPolicy::Always, 3)]
    {
        let restart = Restart { backoff: Duration::from_secs(3600), ..policy.into() };
        let kernel =
            serve(stage.kernel("drains").restart(restart), Form::Handler, fails_at_two, ());
        kernel.deactivate().unwrap();
        for number in 1..=4 {
            kernel.try_send(Number(number)).unwrap();
        }
        assert_eq!(kernel.terminate_blocking(Terminate::drain()), Termination::Clean);
        let books = kernel.books();
        assert_eq!((books.processed, books.dead_lettered), (processed, 4 - processed));
        assert_eq!(kernel.state(), KernelState::Terminated, "{policy:?}");
        assert_eq!(kernel.telemetry().faults, 1);
    }
}

pub fn a_stop_at_once_overrides_a_drain_that_goes_on(stage: &Stage) {
    let gated = Gated::busy(stage.kernel("twice"));
    for number in 1..=3 {
        gated.kernel.try_send(Number(number)).unwrap();
    }
    let drainer = gated.kernel.clone();
    let drain = Waiter::start(async move { drainer.terminate(Terminate::drain()).await });
    let stopper = gated.kernel.clone();
    let stop = Waiter::start(async move { stopper.terminate(Terminate::now()).await });
    gated.gate.remove();
    assert_eq!((drain.join(), stop.join()), (Termination::Clean, Termination::Clean));
    let books = gated.kernel.books();
    assert_eq!((books.processed, books.dead_lettered), (1, 3));
}

pub fn concurrent_terminates_all_return(stage: &Stage) {
    let (deaf, arrived) = deaf(stage, "deaf");
    deaf.try_send(Number(1)).unwrap();
    arrived.recv().unwrap();
    let idle = launch(stage.kernel("idle"), echo);
    for (kernel, expected) in [(idle, Termination::Clean), (deaf, Termination::Cancelled)] {
        let ends: Vec<_> = (0..4)
            .map(|_| {
                let kernel = kernel.clone();
                let how = within(TIME_TO_CANCEL);
                std::thread::spawn(move || kernel.terminate_blocking(how))
            })
            .collect();
        for end in ends {
            assert_eq!(end.join().unwrap(), expected);
        }
        balanced(&kernel);
    }
}

pub fn a_kernel_that_terminates_itself_does_not_wait_for_itself(stage: &Stage) {
    let (tell, told) = std_channel();
    let suicide = move |mut context: Context<Number, Number>| {
        let tell = tell.clone();
        async move {
            context.receive().await?;
            let runtime = context.runtime().ok_or("no runtime")?;
            let own = runtime.get::<Number, Number>(context.id().as_str())?;
            tell.send(own.terminate(Terminate::drain()).await)?;
            tell.send(own.terminate_blocking(Terminate::drain()))?;
            // It ends in its own time, and processes what is queued, as it asked.
            while let Ok(&number) = context.receive().await {
                context.reply(number).await?;
            }
            Ok(())
        }
    };
    let kernel = launch_closure(stage.kernel("itself"), suicide);
    kernel.deactivate().unwrap();
    kernel.try_send(Number(1)).unwrap();
    let asker = kernel.clone();
    let asked = Waiter::start(async move { asker.ask(Number(2)).await });
    kernel.reactivate().unwrap();
    assert_eq!(
        (told.recv(), told.recv()),
        (Ok(Termination::Requested), Ok(Termination::Requested))
    );
    assert_eq!(asked.join().unwrap().message, Number(2));
    block_on(kernel.ended()).unwrap();
    assert_eq!(kernel.state(), KernelState::Terminated);
    eventually(|| stage.runtime.kernel_ids().is_empty());
    quiet(&kernel);
}

pub fn a_kernel_may_end_another_one_and_the_runtime(stage: &Stage) {
    let own = stage.another();
    let other = launch(own.kernel("other"), echo);
    let victim = other.clone();
    let kernel =
        launch_closure(own.kernel("ends all"), move |mut context: Context<Number, Number>| {
            let victim = victim.clone();
            async move {
                context.receive().await?;
                let ended = victim.terminate(Terminate::now()).await;
                let runtime = context.runtime().ok_or("no runtime")?;
                let outcomes = runtime.shutdown(Duration::from_secs(5)).await;
                if ended == Termination::Clean && outcomes[0].1 == Termination::Requested {
                    Ok(())
                } else {
                    Err(format!("{ended:?} {outcomes:?}").into())
                }
            }
        });
    kernel.try_send(Number(1)).unwrap();
    block_on(kernel.ended()).unwrap();
    assert_eq!(other.state(), KernelState::Terminated);
    let late = own.kernel("late").launch(echo);
    assert!(matches!(late, Err(LaunchError::ShuttingDown { .. })), "{late:?}");
}

async fn looks_whether_to_stop(
    context: Context<Number, Number>,
    tell: Tell<bool>,
) -> Result<(), BoxError> {
    tell.send(context.is_stopping())?;
    context.stopping().await;
    tell.send(context.is_stopping())?;
    Ok(())
}

pub fn a_body_can_see_that_it_is_to_stop(stage: &Stage) {
    let (tell, waits) = channel();
    let kernel = launch_with(stage.kernel("polite"), looks_whether_to_stop, tell);
    assert_eq!(waits.recv(), Ok(false));
    assert_eq!(kernel.terminate_blocking(Terminate::now()), Termination::Clean);
    assert_eq!(waits.recv(), Ok(true));
}

pub fn a_cancelled_terminate_leaves_its_request_standing(stage: &Stage) {
    let gated = Gated::busy(stage.kernel("requested"));
    gated.kernel.try_send(Number(1)).unwrap();
    let mut terminate = Box::pin(gated.kernel.terminate(Terminate::drain()));
    assert!(crate::stage::poll_once(&mut terminate).is_pending());
    drop(terminate);
    gated.gate.remove();
    block_on(gated.kernel.ended()).unwrap();
    assert_eq!(gated.kernel.books().processed, 2);
    assert!(stage.runtime.kernel_ids().is_empty(), "its name is free");
}

pub fn a_shutdown_ends_all_kernels_within_one_deadline_also_stuck_ones(stage: &Stage) {
    let own = stage.another();
    let gate = Gate::default();
    let mut kernels: Vec<KernelRef<Number, Number>> =
        (0..40).map(|index| launch(own.kernel(&format!("idle {index}")), echo)).collect();
    kernels.push(own.kernel("asleep").launch(echo).unwrap());
    let mut expected = vec![Termination::Clean; 41];
    for index in 0..5 {
        let (kernel, arrived) = deaf(&own, &format!("deaf {index}"));
        kernel.try_send(Number(1)).unwrap();
        arrived.recv().unwrap();
        kernels.push(kernel);
        expected.push(Termination::Cancelled);
    }
    for index in 0..2 {
        let (kernel, arrived) = blocks(&own, &format!("blocks {index}"), gate);
        kernel.try_send(Number(1)).unwrap();
        arrived.recv().unwrap();
        kernels.push(kernel);
        expected.push(own.end_of_the_blocked());
    }
    let deadline = TIME_TO_CANCEL;
    let start = Instant::now();
    let outcomes = own.runtime.shutdown_blocking(deadline);
    assert!(start.elapsed() < deadline + LATE, "it took {:?}", start.elapsed());
    assert_eq!(outcomes.len(), kernels.len());
    for (kernel, expected) in kernels.iter().zip(expected) {
        let outcome = outcomes.iter().find(|(id, _)| id == kernel.id()).map(|(_, how)| *how);
        assert_eq!(outcome, Some(expected), "{:?}", kernel.id());
        assert_eq!(kernel.state(), KernelState::Terminated);
        balanced(kernel);
    }
    assert_eq!(own.runtime.kernel_ids(), []);
    let late = own.kernel("late").launch(echo);
    assert!(matches!(late, Err(LaunchError::ShuttingDown { .. })), "{late:?}");
    assert_eq!(own.runtime.shutdown_blocking(deadline), []);
    gate.remove();
    kernels.iter().for_each(quiet);
}

/// A terminate or a shutdown that finds a kernel in the middle of its launch ends it all the same.
pub fn a_launch_and_a_shutdown_at_the_same_time_leave_nothing_behind(stage: &Stage) {
    for _ in 0..20 {
        let own = stage.another();
        std::thread::scope(|scope| {
            let launcher = scope.spawn(|| {
                let mut launched = Vec::new();
                for index in 0.. {
                    match own.kernel(&index.to_string()).launch(echo) {
                        Ok(kernel) => launched.push(kernel),
                        Err(LaunchError::ShuttingDown { .. }) => break,
                        Err(error) => panic!("{error}"),
                    }
                }
                launched
            });
            eventually(|| own.runtime.kernel_ids().len() > 2);
            own.runtime.shutdown_blocking(Duration::from_secs(5));
            for kernel in launcher.join().unwrap() {
                block_on(kernel.ended()).unwrap();
                assert_eq!(kernel.state(), KernelState::Terminated);
            }
        });
        assert_eq!(own.runtime.kernel_ids(), []);
    }
}
