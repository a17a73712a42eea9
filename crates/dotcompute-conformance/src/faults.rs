//! A fault reaches whoever waits, now and later, with its cause; and nothing is lost in silence.

use std::error::Error;
use std::panic::panic_any;
use std::sync::mpsc::{Receiver, channel as std_channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use dotcompute::mailbox::sync::lock;
use dotcompute::mailbox::wait::block_on;
use dotcompute::{
    AskError, BoxError, Context, DeadLetterReason, Envelope, Fault, FaultKind, Handler,
    HandlerContext, KernelRef, KernelState, ReceiveError, Restart, RestartPolicy, SendError,
    Terminate, Termination,
};

#[cfg(target_os = "linux")]
use crate::roles::Roles;
use crate::signals::{Portable, Slate, Tell, channel};
use crate::stage::{
    Auditor, Form, Gate, Number, Outcome, Stage, Token, Waiter, balanced, echo, eventually, launch,
    launch_closure, launch_with, poll_once, quiet, serve,
};
use crate::termination::TIME_TO_CANCEL;

#[cfg(target_os = "linux")]
pub(crate) fn roles(roles: Roles) -> Roles {
    roles
        .serving(fails_when_let)
        .serving(fails_at_four)
        .serving(says_no)
        .body(takes_and_fails)
        .body_with(runs_thrice)
        .handler(emits)
        .serving(always_fails)
        .serving(fails_once_more)
        .serving(no_state)
        .body(owns)
        .body_with(owns_and_waits)
        .body_with(stops)
}

/// The ways for a kernel to fail at a message.
#[derive(Clone, Copy, Debug)]
enum Way {
    Error,
    Code,
    Panic,
    PanicOfAnotherType,
}

impl Way {
    const ALL: [Self; 4] = [Self::Error, Self::Code, Self::Panic, Self::PanicOfAnotherType];

    fn fail(self) -> BoxError {
        match self {
            Self::Error => "out of paper".into(),
            Self::Code => Box::new(Fault::code(-7)),
            Self::Panic => panic!("out of {}", "paper"),
            Self::PanicOfAnotherType => panic_any(7),
        }
    }

    fn kind(self) -> FaultKind {
        match self {
            Self::Error => FaultKind::Error,
            Self::Code => FaultKind::Code(-7),
            Self::Panic | Self::PanicOfAnotherType => FaultKind::Panic,
        }
    }

    fn says(self) -> &'static str {
        match self {
            Self::Error | Self::Panic => "out of paper",
            Self::Code => "handler returned fault code -7",
            Self::PanicOfAnotherType => "panic with a payload that is not text",
        }
    }
}

fn fails_when_let(
    (tell, gate, way): (Tell<u64>, Gate, Way),
) -> impl FnMut(u64) -> Outcome + Send + 'static {
    move |number| {
        tell.send(number)?;
        gate.pass_blocking();
        Err(way.fail())
    }
}

/// By its place in [`Way::ALL`].
impl Portable for Way {
    fn put(&self, out: &mut Vec<u8>) {
        (*self as u8).put(out);
    }

    fn take(from: &mut &[u8]) -> Option<Self> {
        Self::ALL.get(usize::from(u8::take(from)?)).copied()
    }
}

/// Everyone who waits, on both sides, is told the cause; so is everyone who comes later.
pub fn a_fault_reaches_every_pending_and_later_receive_ask_and_send(stage: &Stage) {
    for form in Form::BOTH {
        for way in Way::ALL {
            let (tell, arrived) = channel();
            let gate = Gate::default();
            let builder = stage.kernel(&format!("{form:?} {way:?}")).capacity(2);
            let kernel = serve(builder, form, fails_when_let, (tell, gate, way));
            let asker = || {
                let kernel = kernel.clone();
                Waiter::start(async move { kernel.ask(Number(1)).await.map(|_| ()) })
            };
            let in_hand = asker();
            arrived.recv().unwrap();
            let queued = asker();
            let blocking = kernel.clone();
            let queued_blocking =
                std::thread::spawn(move || blocking.ask_blocking(Number(2), None).map(|_| ()));
            eventually(|| kernel.books().queued == 2);
            let sender = kernel.clone();
            let sender = Waiter::start(async move { sender.send(Number(9)).await });
            let receiver = kernel.clone();
            let receiver = Waiter::start(async move { receiver.receive().await.map(|_| ()) });
            let batch = kernel.clone();
            let batch = Waiter::start(async move { batch.receive_batch(9, &mut Vec::new()).await });
            gate.remove();

            let check = |fault: &Fault| {
                assert_eq!((fault.kind(), fault.message()), (way.kind(), way.says()));
            };
            for asked in [in_hand.join(), queued.join(), queued_blocking.join().unwrap()] {
                let Err(AskError::Failed { fault, .. }) = asked else { panic!("{asked:?}") };
                check(&fault);
            }
            let sent = sender.join();
            let Err(SendError::Failed { envelope, fault, .. }) = sent else { panic!("{sent:?}") };
            assert_eq!(envelope.message, Number(9));
            check(&fault);
            for received in [receiver.join(), batch.join().map(|_| ())] {
                let Err(ReceiveError::Failed { fault, .. }) = received else {
                    panic!("{received:?}")
                };
                check(&fault);
            }

            check(&block_on(kernel.ended()).unwrap_err());
            check(&kernel.fault().unwrap());
            assert_eq!(kernel.state(), KernelState::Failed);
            assert_eq!(stage.runtime.state(kernel.id().as_str()).unwrap(), KernelState::Failed);
            let sends = [
                kernel.try_send(Number(9)),
                kernel.send_blocking(Number(9), None),
                block_on(kernel.send(Number(9))),
                block_on(kernel.address().send(Number(9))),
            ];
            for sent in sends {
                let Err(error @ SendError::Failed { .. }) = sent else { panic!("{sent:?}") };
                assert!(error.to_string().contains(way.says()), "{error}");
                assert!(error.source().is_some(), "the cause is the error's source");
            }
            let asks = [kernel.ask_blocking(Number(9), None), block_on(kernel.ask(Number(9)))];
            for asked in asks {
                let Err(AskError::NotSent(SendError::Failed { fault, .. })) = asked else {
                    panic!("{asked:?}")
                };
                check(&fault);
            }
            let receives =
                [kernel.try_receive(), kernel.receive_blocking(None), block_on(kernel.receive())];
            for received in receives {
                let Err(ReceiveError::Failed { fault, .. }) = received else {
                    panic!("{received:?}")
                };
                check(&fault);
            }
            balanced(&kernel);
            let books = kernel.books();
            assert_eq!((books.accepted, books.dead_lettered), (3, 3));
            let telemetry = kernel.telemetry();
            assert_eq!((telemetry.faults, telemetry.restarts), (1, 0));
            check(&telemetry.last_fault.unwrap());
        }
    }
}

fn fails_at_four((): ()) -> impl FnMut(u64) -> Outcome + Send + 'static {
    |number| match number {
        4 => Err("four".into()),
        number => Ok(Some(number)),
    }
}

pub fn replies_made_before_a_fault_are_read_first(stage: &Stage) {
    for form in Form::BOTH {
        let kernel = serve(stage.kernel(&format!("{form:?}")), form, fails_at_four, ());
        for number in 1..=5 {
            // The last ones may come too late.
            let _ = kernel.try_send(Number(number));
        }
        assert!(block_on(kernel.ended()).is_err());
        for number in 1..=3 {
            assert_eq!(kernel.receive_blocking(None).unwrap().message, Number(number));
        }
        let over = kernel.receive_blocking(None);
        assert!(matches!(over, Err(ReceiveError::Failed { .. })), "{over:?}");
        quiet(&kernel);
    }
}

fn says_no((): ()) -> impl FnMut(u64) -> Outcome + Send + 'static {
    |_| Err("no".into())
}

pub fn the_message_in_hand_at_a_fault_is_a_dead_letter(stage: &Stage) {
    for form in Form::BOTH {
        let name = format!("{form:?}");
        let kernel = serve(stage.kernel(&name), form, says_no, ());
        let sent = Envelope::new(Number(1)).with_priority(200).with_correlation(MESSAGE);
        let id = sent.id;
        kernel.try_send(sent).unwrap();
        assert!(block_on(kernel.ended()).is_err());
        let letters = stage.runtime.take_dead_letters(|_| true);
        assert_eq!(letters.len(), 1);
        let letter = &letters[0];
        assert_eq!((letter.kernel.as_str(), letter.id, letter.priority), (&*name, id, 200));
        assert_eq!((letter.type_name, letter.delivery_count), ("Number", 1));
        assert_eq!(letter.correlation_id, Some(MESSAGE));
        assert_eq!(letter.message(), Some(&Number(1)));
        assert!(letter.to_kernel && letter.is_replayable());
        match &letter.reason {
            DeadLetterReason::Faulted(fault) => assert_eq!(fault.message(), "no"),
            reason => panic!("{reason:?}"),
        }
    }
}

const MESSAGE: dotcompute::MessageId = dotcompute::MessageId::from_u128(7);

async fn takes_and_fails(mut context: Context<Number, Number>) -> Result<(), BoxError> {
    context.receive().await?;
    let taken = context.take();
    Err(format!("took {taken:?}").into())
}

pub fn a_message_taken_by_a_body_that_fails_is_a_dead_letter_without_content(stage: &Stage) {
    let kernel = launch(stage.kernel("takes"), takes_and_fails);
    let asker = kernel.clone();
    let sent = Envelope::new(Number(1));
    let id = sent.id;
    let asked = block_on(asker.ask(sent));
    assert!(matches!(asked, Err(AskError::Failed { .. })), "{asked:?}");
    assert!(block_on(kernel.ended()).is_err());
    let letters = stage.runtime.take_dead_letters(|_| true);
    assert_eq!(letters.len(), 1);
    assert_eq!((letters[0].id, letters[0].message::<Number>()), (id, None));
    assert!(!letters[0].is_replayable());
    balanced(&kernel);
    assert_eq!(kernel.books().dead_lettered, 1);
}

async fn runs_thrice(
    mut context: Context<Number, Number>,
    (tell, started): (Tell<u64>, Slate),
) -> Result<(), BoxError> {
    let run = started.count()?;
    tell.send(run)?;
    match run {
        1 => {
            context.receive().await?;
            context.take();
            Ok(())
        }
        2 => Err("nothing in hand".into()),
        _ => {
            context.stopping().await;
            Ok(())
        }
    }
}

/// A message that the body took before it returned is done with, and no letter of a later run.
pub fn a_fault_with_nothing_in_hand_makes_no_dead_letter(stage: &Stage) {
    let (tell, runs) = channel();
    let started = Slate::default();
    let kernel = launch_with(
        stage.kernel("idle").restart(RestartPolicy::Always),
        runs_thrice,
        (tell, started),
    );
    kernel.try_send(Number(1)).unwrap();
    assert_eq!(runs.iter().take(3).collect::<Vec<_>>(), [1, 2, 3]);
    assert_eq!(stage.runtime.dead_letter_counts().total, 0);
    let books = kernel.books();
    assert_eq!((books.accepted, books.processed, books.dead_lettered), (1, 1, 0));
}

/// A handler that emits, and then fails at an odd number.
struct Emits;

impl Handler for Emits {
    type In = Number;
    type Out = Number;

    fn handle(
        &mut self,
        message: &Number,
        context: &mut HandlerContext<Number>,
    ) -> Result<Option<Number>, BoxError> {
        context.emit(*message);
        match message.0 {
            1 => Err("odd".into()),
            3 => panic!("odd"),
            _ => Ok(None),
        }
    }
}

fn emits() -> Emits {
    Emits
}

pub fn what_a_handler_emitted_for_the_message_it_failed_at_is_discarded(stage: &Stage) {
    let builder = stage.kernel("emits").restart(RestartPolicy::OnFault);
    let kernel = builder.launch_handler(emits).unwrap();
    kernel.activate().unwrap();
    for number in 1..=4 {
        kernel.try_send(Number(number)).unwrap();
    }
    for number in [2, 4] {
        assert_eq!(kernel.receive_blocking(None).unwrap().message, Number(number));
    }
    quiet(&kernel);
    assert_eq!(kernel.reply_books().accepted, 2);
}

/// Never replies.
fn forgets(stage: &Stage, name: &str, take: bool) -> KernelRef<Token, Number> {
    let builder = stage.kernel(name).restart(RestartPolicy::OnFault);
    launch_closure(builder, move |mut context: Context<Token, Number>| async move {
        loop {
            let number = context.receive().await?.number;
            let taken = take.then(|| context.take());
            if number % 2 == 0 {
                context.reply(Number(number)).await?;
            }
            drop(taken);
        }
    })
}

/// Dropped by the receive that settles the message, or by the body that took it.
pub fn a_panic_in_the_destructor_of_a_message_is_a_fault_that_fails_its_ask(stage: &Stage) {
    for take in [false, true] {
        let alive = Arc::default();
        let kernel = forgets(stage, if take { "takes" } else { "reads" }, take);
        let auditor = Auditor::watch(vec![kernel.clone()]);
        let asked = kernel.ask_blocking(Token::new(1, &alive).armed(), None);
        let Err(AskError::Failed { fault, .. }) = asked else { panic!("{asked:?}") };
        assert_eq!((fault.kind(), fault.message()), (FaultKind::Panic, "token 1 dropped"));
        // The kernel goes on.
        let reply = kernel.ask_blocking(Token::new(2, &alive), None).unwrap();
        assert_eq!(reply.message, Number(2));
        eventually(|| kernel.books().in_hand == 0 || *lock(&alive) == 0);
        let letters = stage.runtime.take_dead_letters(|_| true);
        assert_eq!(letters.len(), 1);
        assert!(letters[0].message::<Token>().is_none(), "its content is gone");
        quiet(&kernel);
        auditor.end();
        let books = kernel.books();
        assert_eq!((books.accepted, books.dead_lettered), (2, 1));
    }
}

/// The kernel's own bookkeeping drops messages too: of those it must survive every panic.
pub fn a_panic_in_a_destructor_keeps_nobody_from_being_told(stage: &Stage) {
    let alive: Arc<Mutex<i64>> = Arc::default();
    let lonely = stage.another();
    let (tell, arrived) = std_channel();
    let kernel =
        launch_closure(lonely.kernel("lonely"), move |mut context: Context<Token, Number>| {
            let tell = tell.clone();
            async move {
                context.receive().await?;
                tell.send(())?;
                // Not reached by a stop: it is cancelled.
                std::future::pending().await
            }
        });
    let ask = |number| {
        let kernel = kernel.clone();
        let token = Token::new(number, &alive).armed();
        Waiter::start(async move { kernel.ask(token).await.map(|_| ()) })
    };
    let in_hand = ask(1);
    arrived.recv().unwrap();
    let queued = [ask(2), ask(3)];
    let receiver = kernel.clone();
    let receiver = Waiter::start(async move { receiver.receive().await.map(|_| ()) });
    // Without a runtime there is no place for dead letters: they are dropped.
    drop(lonely);
    for asked in [in_hand.join()].into_iter().chain(queued.map(Waiter::join)) {
        assert!(
            matches!(asked, Err(AskError::Stopped { .. } | AskError::Failed { .. })),
            "{asked:?}"
        );
    }
    assert!(receiver.join().is_err());
    let _ = block_on(kernel.ended());
    balanced(&kernel);
    assert_eq!(kernel.books().dead_lettered, 3);
    assert_eq!(*lock(&alive), 0);
}

fn always_fails((): ()) -> impl FnMut(u64) -> Outcome + Send + 'static {
    |_| Err("always".into())
}

fn fails_once_more((): ()) -> impl FnMut(u64) -> Outcome + Send + 'static {
    |_| Err("once more".into())
}

/// Whoever is told of a fault finds it: state, cause and dead letter, with nothing to wait for.
pub fn who_is_told_of_a_fault_finds_the_kernel_as_told(stage: &Stage) {
    for form in Form::BOTH {
        for round in 0..20 {
            let builder = stage.kernel(&format!("{form:?} {round}"));
            let kernel = serve(builder, form, always_fails, ());
            let told = block_on(kernel.ask(Number(1)));
            let (state, fault) = (kernel.state(), kernel.fault());
            assert!(matches!(told, Err(AskError::Failed { .. })), "{told:?}");
            assert_eq!(state, KernelState::Failed);
            assert_eq!(fault.expect("its cause").message(), "always");
            assert_eq!(kernel.books().dead_lettered, 1);
        }
        // A restart that is long in coming: it has faulted and waits.
        let long = Duration::from_secs(3600);
        let restart = Restart {
            policy: RestartPolicy::OnFault,
            backoff: long,
            backoff_max: long,
            ..Restart::default()
        };
        let kernel = serve(
            stage.kernel(&format!("{form:?} restarting")).restart(restart),
            form,
            fails_once_more,
            (),
        );
        let told = block_on(kernel.ask(Number(1)));
        let (state, fault) = (kernel.state(), kernel.fault());
        assert!(matches!(told, Err(AskError::Failed { .. })), "{told:?}");
        assert_eq!(state, KernelState::Launched);
        assert_eq!(fault.expect("its cause").message(), "once more");
    }
}

fn no_state((): ()) -> impl FnMut(u64) -> Outcome + Send + 'static {
    if true {
        panic!("no state");
    }
    |_| Ok(None)
}

pub fn a_panic_in_the_factory_is_a_fault(stage: &Stage) {
    for form in Form::BOTH {
        let kernel = serve(stage.kernel(&format!("{form:?}")), form, no_state, ());
        let fault = block_on(kernel.ended()).unwrap_err();
        assert_eq!((fault.kind(), fault.message()), (FaultKind::Panic, "no state"));
        assert_eq!(kernel.state(), KernelState::Failed);
        balanced(&kernel);
    }
}

/// Panics when the body that owns it is dropped.
struct Mine;

impl Drop for Mine {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            panic!("mine");
        }
    }
}

async fn owns(mut context: Context<Number, Number>) -> Result<(), BoxError> {
    let _mine = Mine;
    context.receive().await?;
    Ok(())
}

async fn owns_and_waits(_context: Context<Number, Number>, tell: Tell<()>) -> Result<(), BoxError> {
    let _mine = Mine;
    tell.send(())?;
    std::future::pending().await
}

pub fn a_panic_in_a_destructor_of_the_body_is_a_fault(stage: &Stage) {
    let kernel = launch(stage.kernel("owner"), owns);
    kernel.try_send(Number(1)).unwrap();
    let fault = block_on(kernel.ended()).unwrap_err();
    assert_eq!((fault.kind(), fault.message()), (FaultKind::Panic, "mine"));

    // And where the kernel is cancelled it ends all the same.
    let (tell, arrived) = channel();
    let kernel = launch_with(stage.kernel("stuck"), owns_and_waits, tell);
    arrived.recv().unwrap();
    let how = Terminate::now().within(TIME_TO_CANCEL);
    assert_eq!(kernel.terminate_blocking(how), Termination::Cancelled, "{:?}", kernel.fault());
    assert_eq!(kernel.state(), KernelState::Terminated);
}

async fn stops(
    mut context: Context<Number, Number>,
    (tell, way): (Tell<()>, u32),
) -> Result<(), BoxError> {
    tell.send(())?;
    match way {
        0 => context.receive().await?,
        1 => context.receive_timeout(Duration::from_secs(50)).await?,
        _ => context.receive_blocking(None)?,
    };
    Ok(())
}

/// The kernel's end comes to a body as an error; to return it is no fault, however it comes.
pub fn the_error_that_a_stop_gives_is_no_fault(stage: &Stage) {
    fn stopping(stage: &Stage, name: &str, way: u32) -> (KernelRef<Number, Number>, Receiver<()>) {
        let (tell, started) = channel();
        let kernel = launch_with(stage.kernel(name), stops, (tell, way));
        (kernel, started)
    }
    for (name, way) in [("receives", 0), ("with a timeout", 1), ("on its thread", 2)] {
        let (kernel, started) = stopping(stage, name, way);
        started.recv().unwrap();
        assert_eq!(kernel.terminate_blocking(Terminate::now()), Termination::Clean, "{name}");
        assert_eq!(kernel.telemetry().faults, 0, "{name}");
        assert!(kernel.fault().is_none(), "{name}");
    }
}

/// That another kernel has stopped is a fault like any other.
pub fn the_error_that_the_stop_of_another_kernel_gives_is_a_fault(stage: &Stage) {
    let other = launch(stage.kernel("other"), echo);
    other.terminate_blocking(Terminate::now());
    let kernel = launch_closure(stage.kernel("depends"), move |_: Context<Number, Number>| {
        let other = other.clone();
        async move {
            other.send(Number(1)).await?;
            Ok(())
        }
    });
    let fault = block_on(kernel.ended()).unwrap_err();
    assert!(fault.message().contains("'other' is stopped"), "{fault}");
}

pub fn a_context_that_escapes_from_its_body_is_reported(stage: &Stage) {
    let (escape, escaped) = std_channel();
    let builder = stage.kernel("escapes").restart(RestartPolicy::Always);
    let kernel = launch_closure(builder, move |mut context: Context<Number, Number>| {
        let escape = escape.clone();
        async move {
            context.receive().await?;
            escape.send(context)?;
            Ok(())
        }
    });
    let asker = kernel.clone();
    let mut asked = Box::pin(asker.ask(Number(1)));
    assert!(poll_once(&mut asked).is_pending());
    let context = escaped.recv().unwrap();
    let fault = block_on(kernel.ended()).unwrap_err();
    assert!(fault.message().contains("context is still alive"), "{fault}");
    assert!(matches!(block_on(asked), Err(AskError::Failed { .. })));
    balanced(&kernel);
    drop(context);
    balanced(&kernel);
}
