//! Which reply belongs to which ask.

use std::time::Duration;

use dotcompute::mailbox::wait::block_on;
use dotcompute::{
    AskError, BoxError, Context, DeadLetterReason, Envelope, Handler, HandlerContext, KernelRef,
    ReceiveError, SendError,
};

#[cfg(target_os = "linux")]
use crate::roles::Roles;
use crate::signals::{Tell, channel};
use crate::stage::{
    Auditor, Form, Gate, Gated, Number, Outcome, Stage, Waiter, balanced, echo, eventually, launch,
    launch_closure, launch_with, poll_once, quiet, serve,
};

#[cfg(target_os = "linux")]
pub(crate) fn roles(roles: Roles) -> Roles {
    roles
        .serving(one_more)
        .body_with(collecting)
        .body_with(names_two)
        .body(names_nothing)
        .body_with(replies_when_let)
        .body_with(replies_late)
        .handler(thrice)
}

fn ask(kernel: &KernelRef<Number, Number>, number: u64) -> Waiter<u64> {
    let asker = kernel.clone();
    Waiter::start(async move { asker.ask(Number(number)).await.unwrap().message.0 })
}

/// The numbers of the dead letters that are replies, with their reasons checked.
fn late_replies(stage: &Stage) -> Vec<u64> {
    let letters = stage.runtime.take_dead_letters(|letter| !letter.to_kernel);
    letters
        .iter()
        .map(|letter| {
            assert!(matches!(letter.reason, DeadLetterReason::LateReply), "{letter:?}");
            letter.message::<Number>().unwrap().0
        })
        .collect()
}

fn one_more((): ()) -> impl FnMut(u64) -> Outcome + Send + 'static {
    |number| Ok(Some(number + 1))
}

pub fn concurrent_asks_never_mix(stage: &Stage) {
    const ASKERS: u64 = 6;
    const EACH: u64 = 300;
    for form in Form::BOTH {
        let builder = stage.kernel(&format!("{form:?}")).capacity(4);
        let kernel = serve(builder, form, one_more, ());
        let auditor = Auditor::watch(vec![kernel.clone()]);
        std::thread::scope(|scope| {
            for asker in 0..ASKERS {
                let kernel = &kernel;
                scope.spawn(move || {
                    for number in (0..EACH).map(|number| asker << 32 | number) {
                        let reply = match number % 2 {
                            0 => kernel.ask_blocking(Number(number), None).unwrap(),
                            _ => block_on(kernel.ask(Number(number))).unwrap(),
                        };
                        assert_eq!(reply.message, Number(number + 1));
                    }
                });
            }
        });
        quiet(&kernel);
        auditor.end();
        let telemetry = kernel.telemetry();
        assert_eq!(telemetry.asks_answered, ASKERS * EACH);
        assert_eq!(telemetry.books.processed, ASKERS * EACH);
        assert_eq!(
            telemetry.replies.accepted, 0,
            "an ask's reply does not pass through the output"
        );
    }
}

/// A kernel that collects three messages, and then replies to them in this order: by a correlation
/// that names them, or under their ids.
fn collects(stage: &Stage, order: (u8, u8, u8), named: bool) -> KernelRef<Number, Number> {
    launch_with(stage.kernel("collects"), collecting, (order, named))
}

async fn collecting(
    mut context: Context<Number, Number>,
    (order, named): ((u8, u8, u8), bool),
) -> Result<(), BoxError> {
    let mut seen = Vec::new();
    while let Ok(&number) = context.receive().await {
        seen.push((context.envelope().map(|envelope| envelope.id), number));
        if seen.len() == 3 {
            for position in [order.0, order.1, order.2] {
                let (id, number) = seen[usize::from(position)];
                let id = id.ok_or("no envelope")?;
                let reply = Envelope::new(Number(number.0 * 10));
                let reply = if named { reply.with_correlation(id) } else { reply.with_id(id) };
                context.send(reply).await?;
            }
        }
    }
    Ok(())
}

pub fn replies_out_of_order_reach_the_asks_that_their_correlation_names(stage: &Stage) {
    let kernel = collects(stage, (2, 0, 1), true);
    let asks = [1, 2, 3].map(|number| ask(&kernel, number));
    assert_eq!(asks.map(Waiter::join), [10, 20, 30]);
    quiet(&kernel);
    assert_eq!(kernel.telemetry().asks_answered, 3);
}

pub fn an_echo_reaches_the_ask_of_the_same_id(stage: &Stage) {
    let kernel = collects(stage, (1, 2, 0), false);
    let asks = [1, 2, 3].map(|number| ask(&kernel, number));
    assert_eq!(asks.map(Waiter::join), [10, 20, 30]);
    quiet(&kernel);
}

async fn names_two(mut context: Context<Number, Number>, tell: Tell<()>) -> Result<(), BoxError> {
    let mut seen = Vec::new();
    while context.receive().await.is_ok() {
        seen.extend(context.envelope().map(|envelope| envelope.id));
        tell.send(())?;
        if let [first, second] = seen[..] {
            let both = Envelope::new(Number(10)).with_id(second).with_correlation(first);
            context.send(both).await?;
            context.send(Envelope::new(Number(20)).with_id(second)).await?;
        }
    }
    Ok(())
}

pub fn the_correlation_of_a_reply_goes_before_its_id(stage: &Stage) {
    // Its id names one ask and its correlation another one.
    let (tell, ids) = channel();
    let kernel = launch_with(stage.kernel("both"), names_two, tell);
    let first = ask(&kernel, 1);
    ids.recv().unwrap();
    let second = ask(&kernel, 2);
    assert_eq!((first.join(), second.join()), (10, 20));
}

async fn names_nothing(mut context: Context<Number, Number>) -> Result<(), BoxError> {
    for _ in 0..3 {
        context.receive().await?;
    }
    for number in [10, 20, 30, 40] {
        context.send(Number(number)).await?;
    }
    context.stopping().await;
    Ok(())
}

pub fn a_reply_that_names_nothing_answers_the_oldest_ask_received(stage: &Stage) {
    // The last one is nobody's by then.
    let kernel = launch(stage.kernel("oldest"), names_nothing);
    let asks = [1, 2, 3].map(|number| ask(&kernel, number));
    assert_eq!(asks.map(Waiter::join), [10, 20, 30]);
    assert_eq!(kernel.receive_blocking(None).unwrap().message, Number(40));
}

pub fn a_reply_to_a_message_that_was_only_sent_never_answers_an_ask(stage: &Stage) {
    let kernel = collects(stage, (1, 0, 2), true);
    let asked = ask(&kernel, 1);
    kernel.try_send(Number(2)).unwrap();
    kernel.try_send(Number(3)).unwrap();
    assert_eq!(kernel.receive_blocking(None).unwrap().message, Number(20));
    assert_eq!(kernel.receive_blocking(None).unwrap().message, Number(30));
    assert_eq!(asked.join(), 10);
    quiet(&kernel);
    assert_eq!(kernel.reply_books().accepted, 2);
}

pub fn receive_never_takes_the_reply_to_an_ask(stage: &Stage) {
    let kernel = launch(stage.kernel("both"), echo);
    let receiver = kernel.clone();
    let received = Waiter::start(async move { receiver.receive().await.unwrap() });
    for number in 0..200 {
        assert_eq!(kernel.ask_blocking(Number(number), None).unwrap().message, Number(number));
    }
    let mut sent = Envelope::new(Number(1000));
    sent.priority = 200;
    let id = sent.id;
    kernel.try_send(sent).unwrap();
    let reply = received.join();
    assert_eq!((reply.message, reply.correlation_id), (Number(1000), Some(id)));
    quiet(&kernel);
    assert_eq!(kernel.reply_books().accepted, 1);
}

async fn replies_when_let(
    mut context: Context<Number, Number>,
    (tell, gate): (Tell<()>, Gate),
) -> Result<(), BoxError> {
    while let Ok(&number) = context.receive().await {
        tell.send(())?;
        gate.pass().await;
        context.reply(number).await?;
    }
    Ok(())
}

pub fn a_late_reply_is_a_dead_letter(stage: &Stage) {
    // Timed out, and cancelled, while the message is in hand.
    for cancel in [false, true] {
        let (tell, arrived) = channel();
        let gate = Gate::default();
        let builder = stage.kernel(if cancel { "cancelled" } else { "timed out" });
        let kernel = launch_with(builder, replies_when_let, (tell, gate));
        if cancel {
            let mut asked = Box::pin(kernel.ask(Number(1)));
            assert!(poll_once(&mut asked).is_pending());
            arrived.recv().unwrap();
            drop(asked);
        } else {
            // Until it is in hand, however late the kernel is.
            let mut time = Duration::from_millis(20);
            while kernel.books().in_hand == 0 {
                let outcome = kernel.ask_blocking(Number(1), Some(time));
                assert!(matches!(outcome, Err(AskError::Timeout { .. })), "{outcome:?}");
                eventually(|| kernel.books().queued == 0);
                time *= 2;
            }
            arrived.recv().unwrap();
        }
        gate.remove();
        // The next ask gets its own reply, not the late one.
        assert_eq!(kernel.ask_blocking(Number(2), None).unwrap().message, Number(2));
        quiet(&kernel);
        assert_eq!(late_replies(stage), [1]);
        assert!(matches!(kernel.try_receive(), Err(ReceiveError::Empty { .. })));
        assert_eq!(kernel.telemetry().asks_answered, 1);
    }
}

async fn replies_late(
    mut context: Context<Number, Number>,
    tell: Tell<()>,
) -> Result<(), BoxError> {
    context.receive().await?;
    let id = context.envelope().map(|envelope| envelope.id).ok_or("no envelope")?;
    tell.send(())?;
    context.receive().await?;
    context.send(Envelope::new(Number(10)).with_correlation(id)).await?;
    context.send(Envelope::new(Number(20)).with_id(id)).await?;
    context.send(Number(30)).await?;
    context.stopping().await;
    Ok(())
}

/// Also long after its message was in hand: by its name, and as an echo.
pub fn a_reply_that_names_an_ask_that_has_ended_is_a_dead_letter(stage: &Stage) {
    let (tell, arrived) = channel();
    let kernel = launch_with(stage.kernel("late"), replies_late, tell);
    let mut asked = Box::pin(kernel.ask(Number(1)));
    assert!(poll_once(&mut asked).is_pending());
    arrived.recv().unwrap();
    drop(asked);
    kernel.try_send(Number(2)).unwrap();
    // What names nothing is for the output: the ask that has ended is not the oldest one.
    assert_eq!(kernel.receive_blocking(None).unwrap().message, Number(30));
    assert_eq!(late_replies(stage), [10, 20]);
    balanced(&kernel);
}

/// Replies to each message with its number and the two that follow.
struct Thrice;

impl Handler for Thrice {
    type In = Number;
    type Out = Number;

    fn handle(
        &mut self,
        message: &Number,
        context: &mut HandlerContext<Number>,
    ) -> Result<Option<Number>, BoxError> {
        context.emit(Number(message.0));
        context.emit(Number(message.0 + 1));
        Ok(Some(Number(message.0 + 2)))
    }
}

fn thrice() -> Thrice {
    Thrice
}

pub fn the_first_reply_answers_the_ask_and_later_ones_are_late(stage: &Stage) {
    let kernel = stage.kernel("thrice").launch_handler(thrice).unwrap();
    kernel.activate().unwrap();
    assert_eq!(kernel.ask_blocking(Number(10), None).unwrap().message, Number(10));
    quiet(&kernel);
    assert_eq!(late_replies(stage), [11, 12]);
    // To a message that was only sent all of them go out, in order.
    kernel.try_send(Number(20)).unwrap();
    for number in [20, 21, 22] {
        assert_eq!(kernel.receive_blocking(None).unwrap().message, Number(number));
    }
    balanced(&kernel);
}

pub fn an_ask_that_ended_before_its_turn_is_skipped_and_counted_expired(stage: &Stage) {
    let gated = Gated::busy(stage.kernel("skips"));
    let brief = Duration::from_millis(5);
    let outcomes = [
        block_on(gated.kernel.ask_timeout(Number(1), brief)),
        gated.kernel.ask_blocking(Number(2), Some(brief)),
        gated.kernel.ask_blocking(Number(3), Some(Duration::ZERO)),
    ];
    for outcome in outcomes {
        assert!(matches!(outcome, Err(AskError::Timeout { .. })), "{outcome:?}");
    }
    let mut cancelled = Box::pin(gated.kernel.ask(Number(4)));
    assert!(poll_once(&mut cancelled).is_pending());
    drop(cancelled);
    gated.kernel.try_send(Number(5)).unwrap();
    assert_eq!(gated.release(1), [5], "the asks that ended are not delivered");
    quiet(&gated.kernel);
    let books = gated.kernel.books();
    assert_eq!((books.accepted, books.processed, books.expired), (6, 2, 4));
}

pub fn an_ask_cancelled_while_it_waits_for_room_sends_nothing(stage: &Stage) {
    let gated = Gated::busy(stage.kernel("full").capacity(1));
    gated.kernel.try_send(Number(1)).unwrap();
    let mut cancelled = Box::pin(gated.kernel.ask(Number(2)));
    assert!(poll_once(&mut cancelled).is_pending());
    drop(cancelled);
    let brief = Duration::from_millis(5);
    for outcome in [
        block_on(gated.kernel.ask_timeout(Number(3), brief)),
        gated.kernel.ask_blocking(Number(3), Some(brief)),
    ] {
        let Err(AskError::NotSent(SendError::Timeout { envelope, .. })) = outcome else {
            panic!("{outcome:?}")
        };
        assert_eq!(envelope.message, Number(3));
    }
    gated.gate.remove();
    quiet(&gated.kernel);
    assert_eq!(gated.kernel.books().accepted, 2);
}

pub fn an_ask_that_was_not_sent_gives_back_a_message_that_can_be_sent(stage: &Stage) {
    let kernel = stage.kernel("later").launch(echo).unwrap();
    let Err(AskError::NotSent(refused)) = kernel.ask_blocking(Number(1), None) else {
        panic!("asked before its activation")
    };
    assert!(matches!(refused, SendError::NotActive { .. }), "{refused:?}");
    kernel.activate().unwrap();
    let envelope = refused.into_envelope();
    let id = envelope.id;
    // As a message that nobody waits for: its reply goes to the output.
    kernel.try_send(envelope).unwrap();
    assert_eq!(kernel.receive_blocking(None).unwrap().correlation_id, Some(id));
    // Asked again under the same id it is answered as any other.
    for _ in 0..3 {
        let again = Envelope::new(Number(2)).with_id(id);
        assert_eq!(kernel.ask_blocking(again, None).unwrap().message, Number(2));
    }
    quiet(&kernel);
}

pub fn kernels_ask_each_other(stage: &Stage) {
    let inner = launch(stage.kernel("inner"), echo);
    let outer =
        launch_closure(stage.kernel("outer"), move |mut context: Context<Number, Number>| {
            let inner = inner.clone();
            async move {
                while let Ok(&Number(number)) = context.receive().await {
                    let reply = inner.ask(Number(number + 1)).await?;
                    context.reply(reply.message).await?;
                }
                Ok(())
            }
        });
    for number in 0..100 {
        let reply = outer.ask_blocking(Number(number), None).unwrap();
        assert_eq!(reply.message, Number(number + 1));
    }
    quiet(&outer);
}
