//! Kernels connected to kernels.

use std::time::Duration;

use dotcompute::{
    AskError, Backpressure, BoxError, ConnectError, Context, DeadLetterReason, Envelope, Handler,
    HandlerContext, KernelRef, KernelState, Message, MessageId, Pipeline, ReceiveError, Restart,
    RestartPolicy, SendError, Terminate, Termination,
};

#[cfg(target_os = "linux")]
use crate::roles::Roles;
use crate::signals::{Slate, Tell, channel};
use crate::stage::{
    Auditor, Form, Gate, Gated, Number, Outcome, Stage, Waiter, balanced, echo, eventually, launch,
    launch_with, poll_once, quiet, serve,
};

#[cfg(target_os = "linux")]
pub(crate) fn roles(roles: Roles) -> Roles {
    roles
        .serving(adding)
        .serving(doubling)
        .body(spells)
        .handler(thrice)
        .body_with(tells_of_ids)
        .body_with(tells_what_comes)
        .body_with(fails_when_let)
        .serving(says_no)
        .serving(fails_at_sevens)
        .body(returns_at_the_last)
        .serving(counting_down)
        .body(reads_texts)
}

type Kernel = KernelRef<Number, Number>;

/// A kernel on the executor under test that adds `number`.
fn adds(stage: &Stage, name: &str, number: u64) -> Kernel {
    serve(stage.kernel(name), Form::Handler, adding, number)
}

fn adding(number: u64) -> impl FnMut(u64) -> Outcome + Send + 'static {
    move |n| Ok(Some(n + number))
}

fn doubling((): ()) -> impl FnMut(u64) -> Outcome + Send + 'static {
    |n| Ok(Some(n * 2))
}

fn receive(kernel: &Kernel, count: usize) -> Vec<u64> {
    (0..count).map(|_| kernel.receive_blocking(None).unwrap().message.0).collect()
}

fn ask(pipeline: &Pipeline<Number, Number>, number: u64) -> Waiter<Result<u64, String>> {
    let pipeline = pipeline.clone();
    Waiter::start(async move {
        let reply = pipeline.ask(Number(number)).await;
        reply.map(|reply| reply.message.0).map_err(|error| error.to_string())
    })
}

fn reasons(stage: &Stage) -> Vec<(String, String)> {
    let letters = stage.runtime.take_dead_letters(|_| true);
    letters.iter().map(|l| (l.kernel.to_string(), l.reason.to_string())).collect()
}

pub fn replies_go_straight_to_the_next_kernel_in_order_and_the_books_say_so(stage: &Stage) {
    let many = stage.many(5000);
    for (round, others) in ["async", "thread", stage.executor()].into_iter().enumerate() {
        let builder = |name: &str| stage.kernel_on(others, &format!("{name}{round}")).capacity(3);
        let first = serve(builder("first"), Form::Body, adding, 1);
        let under_test = stage.kernel(&format!("second{round}")).capacity(3);
        let second = serve(under_test, Form::Handler, doubling, ());
        let third = serve(builder("third"), Form::Body, adding, 5);
        let pipeline = first.connect(&second).unwrap().then(&third).unwrap();
        assert_eq!(first.connected_to().as_ref(), Some(second.id()));
        let kernels = [first, second, third];
        let auditor = Auditor::watch(kernels.to_vec());
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for number in 0..many {
                    pipeline.send_blocking(Number(number), None).unwrap();
                }
            });
            for number in 0..many {
                let reply = kernels[2].receive_blocking(None).unwrap();
                assert_eq!(reply.message.0, (number + 1) * 2 + 5);
            }
        });
        kernels.iter().for_each(quiet);
        auditor.end();
        for (kernel, connected) in kernels.iter().zip([true, true, false]) {
            let (books, replies) = (kernel.books(), kernel.reply_books());
            assert_eq!((books.accepted, books.processed), (many, many));
            let [read, forwarded] = if connected { [0, many] } else { [many, 0] };
            assert_eq!(replies.accepted, many);
            assert_eq!((replies.processed, replies.forwarded), (read, forwarded));
        }
    }
}

pub fn a_full_pipeline_holds_its_senders_back(stage: &Stage) {
    let [first, second] =
        ["first", "second"].map(|name| launch(stage.kernel(name).capacity(1), echo));
    let last = Gated::busy(stage.kernel("last").capacity(1));
    let pipeline = first.connect(&second).unwrap().then(&last.kernel).unwrap();
    // One message queued and one in hand in each of the two; one queued in the last.
    for number in 1..=5 {
        pipeline.send_blocking(Number(number), None).unwrap();
    }
    eventually(|| first.books().queued == 1 && second.books().queued == 1);
    let full = pipeline.send_blocking(Number(6), Some(Duration::from_millis(5)));
    assert!(matches!(full, Err(SendError::Timeout { .. })), "{full:?}");
    let sender = pipeline.clone();
    let sixth = Waiter::start(async move { sender.send(Number(6)).await.is_ok() });
    assert_eq!(last.release(6), [1, 2, 3, 4, 5, 6]);
    assert!(sixth.join());
    quiet(&first);
    assert_eq!(first.telemetry().high_water, 1);
}

pub fn a_kernel_may_be_filled_by_a_connection_before_it_is_active(stage: &Stage) {
    let first = launch(stage.kernel("first"), echo);
    let next = stage.kernel("next").capacity(2).launch(echo).unwrap();
    first.connect(&next).unwrap();
    for number in 0..4 {
        first.try_send(Number(number)).unwrap();
    }
    eventually(|| next.books().queued == 2 && first.books().queued == 1);
    assert!(matches!(next.try_send(Number(9)), Err(SendError::NotActive { .. })));
    next.activate().unwrap();
    assert_eq!(receive(&next, 4), [0, 1, 2, 3]);
}

pub fn a_deactivated_stage_holds_those_before_it_back(stage: &Stage) {
    let first = launch(stage.kernel("first"), echo);
    let next = launch(stage.kernel("next").capacity(2), echo);
    let pipeline = first.connect(&next).unwrap();
    next.deactivate().unwrap();
    for number in 0..4 {
        first.try_send(Number(number)).unwrap();
    }
    let asked = ask(&pipeline, 4);
    eventually(|| next.books().queued == 2 && first.books().in_hand == 1);
    next.reactivate().unwrap();
    assert_eq!(asked.join(), Ok(4));
    assert_eq!(receive(&next, 4), [0, 1, 2, 3]);
}

pub fn receiving_from_a_connected_kernel_is_an_error_also_for_who_waits(stage: &Stage) {
    let [first, next] = ["first", "next"].map(|name| launch(stage.kernel(name), echo));
    let receiver = first.clone();
    let waiting = Waiter::start(async move { receiver.receive().await });
    first.connect(&next).unwrap();
    let mut batch = Vec::new();
    for outcome in [
        waiting.join(),
        first.try_receive(),
        first.receive_blocking(None),
        first.receive_blocking(Some(Duration::ZERO)),
        first.try_receive_batch(4, &mut batch).map(|_| unreachable!()),
    ] {
        let error = outcome.unwrap_err();
        assert!(matches!(&error, ReceiveError::Connected { .. }), "{error}");
        assert!(error.to_string().contains("'first'"), "{error}");
    }
    assert!(first.disconnect());
    first.try_send(Number(1)).unwrap();
    assert_eq!(receive(&first, 1), [1]);
}

pub fn an_ask_of_a_pipeline_is_answered_by_its_last_kernel(stage: &Stage) {
    const ASKERS: u64 = 6;
    const EACH: u64 = 100;
    let first = adds(stage, "first", 1);
    let middle = stage.kernel_on("thread", "middle").capacity(2);
    let middle = serve(middle, Form::Body, doubling, ());
    let last = adds(stage, "last", 5);
    let pipeline = first.connect(&middle).unwrap().then(&last).unwrap();
    std::thread::scope(|scope| {
        for asker in 0..ASKERS {
            let (pipeline, first) = (&pipeline, &first);
            scope.spawn(move || {
                for number in asker * EACH..(asker + 1) * EACH {
                    let question = Envelope::new(Number(number));
                    let id = question.id;
                    // By the pipeline, and by the kernel.
                    let reply = match number % 2 {
                        0 => pipeline.ask_blocking(question, None).unwrap(),
                        _ => first.ask_blocking(question, None).unwrap(),
                    };
                    assert_eq!(reply.message.0, (number + 1) * 2 + 5);
                    assert_eq!(reply.correlation_id, Some(id));
                    if number % 5 == 0 {
                        pipeline.send_blocking(Number(number), None).unwrap();
                    }
                }
            });
        }
    });
    let mut sent = receive(&last, (ASKERS * EACH / 5) as usize);
    sent.sort_unstable();
    let expected: Vec<_> = (0..ASKERS * EACH).step_by(5).map(|n| (n + 1) * 2 + 5).collect();
    assert_eq!(sent, expected, "no receive takes the reply to an ask, nor the other way round");
    [&first, &middle, &last].into_iter().for_each(quiet);
    assert_eq!(last.telemetry().asks_answered, ASKERS * EACH);
}

/// A message that is no [`Number`].
struct Text(String);

crate::portable!(Text { 0 });

impl Message for Text {
    const TYPE_NAME: &'static str = "Text";
}

async fn spells(mut context: Context<Number, Text>) -> Result<(), BoxError> {
    while let Ok(&Number(number)) = context.receive().await {
        context.reply(Text(number.to_string())).await?;
    }
    Ok(())
}

pub fn an_ask_through_a_kernel_gets_the_type_that_it_waits_for_or_an_error(stage: &Stage) {
    let numbers = launch(stage.kernel("numbers"), echo);
    let texts = launch(stage.kernel("texts"), spells);
    let pipeline = numbers.connect(&texts).unwrap();
    assert_eq!(pipeline.ask_blocking(Number(7), None).unwrap().message.0, "7");
    let wrong = numbers.ask_blocking(Number(7), None).unwrap_err();
    assert!(matches!(&wrong, AskError::WrongType { .. }), "{wrong}");
    assert!(wrong.to_string().contains("Text"), "{wrong}");
    quiet(&texts);
    assert_eq!(stage.runtime.take_dead_letters(|_| true).len(), 1);
}

/// Replies to each message three times.
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

pub fn an_asker_gets_the_first_reply_and_later_ones_are_dead_letters(stage: &Stage) {
    let first = stage.kernel("first").launch_handler(thrice).unwrap();
    first.activate().unwrap();
    let last = launch(stage.kernel("last"), echo);
    let pipeline = first.connect(&last).unwrap();
    assert_eq!(pipeline.ask_blocking(Number(10), None).unwrap().message, Number(10));
    quiet(&first);
    let late: Vec<_> = stage.runtime.take_dead_letters(|_| true);
    let numbers: Vec<_> = late.iter().filter_map(|l| l.message::<Number>()).map(|n| n.0).collect();
    assert_eq!(numbers, [11, 12]);
    assert!(late.iter().all(|letter| matches!(letter.reason, DeadLetterReason::LateReply)));
    // Of a message that was only sent all are passed on.
    pipeline.try_send(Number(20)).unwrap();
    assert_eq!(receive(&last, 3), [20, 21, 22]);
}

pub fn a_stage_skips_the_message_of_an_ask_that_has_ended(stage: &Stage) {
    let first = launch(stage.kernel("first"), echo);
    let last = Gated::busy(stage.kernel("last"));
    let pipeline = first.connect(&last.kernel).unwrap();
    let brief = Some(Duration::from_millis(5));
    // Until it has come to the last one in time, however slow the first one is.
    let mut time = Duration::from_millis(5);
    while last.kernel.books().queued == 0 {
        let outcome = pipeline.ask_blocking(Number(1), Some(time));
        assert!(matches!(outcome, Err(AskError::Timeout { .. })), "{outcome:?}");
        quiet(&first);
        time *= 2;
    }
    let mut cancelled = Box::pin(pipeline.ask(Number(2)));
    assert!(poll_once(&mut cancelled).is_pending());
    eventually(|| last.kernel.books().queued == 2);
    drop(cancelled);
    pipeline.try_send(Number(3)).unwrap();
    assert_eq!(last.release(1), [3]);
    quiet(&last.kernel);
    assert_eq!(last.kernel.books().expired, 2);
    // In the first one too.
    let first = Gated::busy(stage.kernel("gated"));
    let pipeline = first.kernel.connect(&last.kernel).unwrap();
    assert!(matches!(pipeline.ask_blocking(Number(1), brief), Err(AskError::Timeout { .. })));
    first.gate.remove();
    quiet(&first.kernel);
    assert_eq!(first.kernel.books().expired, 1);
}

async fn tells_of_ids(
    mut context: Context<Number, Number>,
    tell: Tell<(MessageId, MessageId)>,
) -> Result<(), BoxError> {
    while let Ok(&number) = context.receive().await {
        let asked = context.envelope().map(|envelope| envelope.id).ok_or("no envelope")?;
        let priority = if number.0 == 2 { 255 } else { 0 };
        let reply = Envelope::new(number).with_priority(priority).with_correlation(asked);
        tell.send((reply.id, asked))?;
        context.send(reply).await?;
    }
    Ok(())
}

/// Of an envelope: its id and its correlation.
type Ids = (Option<MessageId>, Option<MessageId>);

async fn tells_what_comes(
    mut context: Context<Number, Number>,
    (tell, gate): (Tell<(u64, Ids)>, Gate),
) -> Result<(), BoxError> {
    gate.pass().await;
    while let Ok(&number) = context.receive().await {
        let envelope = context.envelope().ok_or("no envelope")?;
        tell.send((number.0, (Some(envelope.id), envelope.correlation_id)))?;
    }
    Ok(())
}

pub fn a_message_that_is_passed_on_has_the_priority_and_the_id_of_the_reply(stage: &Stage) {
    let (tell, ids) = channel();
    let first = launch_with(stage.kernel("first"), tells_of_ids, tell);
    let (tell, seen) = channel();
    let gate = Gate::default();
    let next = launch_with(stage.kernel("next"), tells_what_comes, (tell, gate));
    first.connect(&next).unwrap();
    for number in 1..=2 {
        first.try_send(Envelope::new(Number(number)).with_priority(200)).unwrap();
    }
    let ids: Vec<_> = ids.iter().take(2).map(|(id, asked)| (Some(id), Some(asked))).collect();
    eventually(|| next.books().queued == 2);
    gate.remove();
    assert_eq!(seen.recv(), Ok((2, ids[1])), "the more urgent one first");
    assert_eq!(seen.recv(), Ok((1, ids[0])));
}

pub fn the_next_kernels_policy_decides_and_an_ask_that_it_drops_is_told(stage: &Stage) {
    for policy in [Backpressure::Reject, Backpressure::DropOldest, Backpressure::DropNewest] {
        let first = launch(stage.kernel("first"), echo);
        let next = Gated::busy(stage.kernel("next").capacity(1).backpressure(policy));
        let pipeline = first.connect(&next.kernel).unwrap();
        let oldest = policy == Backpressure::DropOldest;
        let dropped = match oldest {
            true => {
                let asked = ask(&pipeline, 1);
                eventually(|| next.kernel.books().queued == 1);
                pipeline.try_send(Number(2)).unwrap();
                asked
            }
            false => {
                pipeline.try_send(Number(2)).unwrap();
                eventually(|| next.kernel.books().queued == 1);
                ask(&pipeline, 1)
            }
        };
        let error = dropped.join().unwrap_err();
        assert!(error.contains("'next'") && error.contains("overloaded"), "{error}");
        assert_eq!(next.release(1), [2]);
        quiet(&next.kernel);
        quiet(&first);
        let (books, replies) = (next.kernel.books(), first.reply_books());
        let rejected = policy == Backpressure::Reject;
        assert_eq!(books.dropped_oldest + books.dropped_newest, u64::from(!rejected));
        assert_eq!(replies.forwarded, if rejected { 1 } else { 2 });
        let letters = reasons(stage);
        assert_eq!(letters.len(), usize::from(rejected), "{letters:?}");
        pipeline.terminate_blocking(Terminate::now());
    }
}

async fn fails_when_let(
    mut context: Context<Number, Number>,
    (tell, gate): (Tell<()>, Gate),
) -> Result<(), BoxError> {
    context.receive().await?;
    tell.send(())?;
    gate.pass().await;
    Err("the last one failed".into())
}

pub fn a_failed_stage_fails_the_asks_in_it_and_on_their_way(stage: &Stage) {
    let first = Gated::idle(stage.kernel("gated"));
    let middle = launch(stage.kernel("middle").capacity(4), echo);
    let (tell, arrived) = channel();
    let gate = Gate::default();
    let last = launch_with(stage.kernel("last"), fails_when_let, (tell, gate));
    first.kernel.connect(&middle).unwrap().then(&last).unwrap();
    let from_middle = middle.clone();
    // In hand and queued in the last one, and queued in the first one.
    let asks = [1, 2].map(|number| {
        let middle = middle.clone();
        Waiter::start(async move { middle.ask(Number(number)).await.unwrap_err().to_string() })
    });
    arrived.recv().unwrap();
    let kernel = first.kernel.clone();
    let behind =
        Waiter::start(
            async move { kernel.ask(Number(3)).await.map(|_| ()).unwrap_err().to_string() },
        );
    eventually(|| last.books().queued == 1 && first.kernel.books().accepted == 1);
    gate.remove();
    for failed in asks.into_iter().chain([behind]) {
        let error = failed.join();
        assert!(error.contains("'last'") && error.contains("the last one failed"), "{error}");
    }
    // Whoever asks from now on is told at once.
    let error = from_middle.ask_blocking(Number(4), None).unwrap_err();
    assert!(matches!(&error, AskError::NotSent(SendError::Failed { .. })), "{error}");
    assert!(error.to_string().contains("'last'"), "{error}");
    first.gate.remove();
    quiet(&first.kernel);
}

fn says_no((): ()) -> impl FnMut(u64) -> Outcome + Send + 'static {
    |_| Err("no".into())
}

pub fn a_failed_stage_pauses_its_senders_until_it_is_terminated(stage: &Stage) {
    let first = adds(stage, "first", 10);
    let next = serve(stage.kernel("next"), Form::Body, says_no, ());
    first.connect(&next).unwrap();
    first.try_send(Number(0)).unwrap();
    eventually(|| next.state() == KernelState::Failed);
    for number in 1..=3 {
        first.try_send(Number(number)).unwrap();
    }
    eventually(|| first.books().queued == 2 && first.books().in_hand == 1);
    assert_eq!(first.connected_to().as_ref(), Some(next.id()));
    assert!(matches!(first.try_receive(), Err(ReceiveError::Connected { .. })));
    next.terminate_blocking(Terminate::now());
    // Its replies are its own again.
    assert_eq!(receive(&first, 3), [11, 12, 13]);
    assert_eq!(first.connected_to(), None);
    quiet(&first);
    // Two went to the failed one at most: one in hand, and perhaps one before it had ended.
    let (books, replies) = (next.books(), first.reply_books());
    assert_eq!((replies.accepted, replies.processed, replies.forwarded), (4, 3, 1));
    assert_eq!((books.accepted, books.dead_lettered), (1, 1));
}

fn fails_at_sevens(failed: Slate) -> impl FnMut(u64) -> Outcome + Send + 'static {
    move |n| match n % 7 == 0 && failed.raise(n)? < n {
        true => Err("again".into()),
        false => Ok(Some(n)),
    }
}

pub fn a_connection_outlives_restarts_of_either_kernel_and_nothing_is_lost(stage: &Stage) {
    const COUNT: u64 = 300;
    let restart = Restart {
        policy: RestartPolicy::OnFault,
        max_restarts: u32::MAX,
        backoff: Duration::from_micros(100),
        backoff_max: Duration::from_millis(1),
        redeliver: true,
        ..Restart::default()
    };
    // Each fails at every seventh message that it has not failed at before.
    let flaky = |name: &str, capacity| {
        let part = stage.kernel(name).capacity(capacity).restart(restart);
        serve(part, Form::Body, fails_at_sevens, Slate::default())
    };
    let [first, next] = [flaky("first", 8), flaky("next", 2)];
    let pipeline = first.connect(&next).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for number in 1..=COUNT {
                pipeline.send_blocking(Number(number), None).unwrap();
            }
        });
        assert_eq!(receive(&next, COUNT as usize), (1..=COUNT).collect::<Vec<_>>());
    });
    assert_eq!(pipeline.ask_blocking(Number(1001), None).unwrap().message, Number(1001));
    assert_eq!(first.telemetry().restarts, COUNT / 7 + 1);
}

pub fn replies_that_wait_to_be_read_go_first_when_their_kernel_is_connected(stage: &Stage) {
    let first = launch(stage.kernel("first"), echo);
    let next = Gated::busy(stage.kernel("next").capacity(2));
    for number in 1..=5 {
        first.try_send(Number(number)).unwrap();
    }
    first.try_send(Envelope::new(Number(6))).unwrap();
    eventually(|| first.reply_books().queued == 6);
    first.connect(&next.kernel).unwrap();
    assert_eq!(next.kernel.books().queued, 6, "though it has room for two");
    first.try_send(Number(7)).unwrap();
    eventually(|| first.books().in_hand == 1);
    let rejected = next.kernel.try_send(Number(9));
    assert!(matches!(rejected, Err(SendError::Full { .. })), "{rejected:?}");
    assert_eq!(next.release(7), [1, 2, 3, 4, 5, 6, 7]);
    quiet(&first);
    let replies = first.reply_books();
    assert_eq!((replies.accepted, replies.forwarded, replies.queued), (7, 7, 0));
}

pub fn a_reply_that_waits_for_room_goes_where_its_kernel_is_connected_to(stage: &Stage) {
    let first = launch(stage.kernel("first").reply_capacity(1), echo);
    let next = launch(stage.kernel("next"), echo);
    for number in 1..=4 {
        first.try_send(Number(number)).unwrap();
    }
    eventually(|| first.reply_books().queued == 1 && first.books().queued == 2);
    first.connect(&next).unwrap();
    assert_eq!(receive(&next, 4), [1, 2, 3, 4]);
}

pub fn a_disconnected_kernel_keeps_its_replies_and_its_asks_fail(stage: &Stage) {
    let first = launch(stage.kernel("first"), echo);
    let next = Gated::busy(stage.kernel("next").capacity(1));
    let pipeline = first.connect(&next.kernel).unwrap();
    for number in 1..=3 {
        pipeline.try_send(Number(number)).unwrap();
    }
    // One is with the next kernel, one waits for room there.
    let asked = ask(&pipeline, 4);
    eventually(|| first.books().queued == 2);
    assert!(first.disconnect());
    let error = asked.join().unwrap_err();
    assert!(error.contains("'first' was disconnected"), "{error}");
    assert_eq!(receive(&first, 2), [2, 3]);
    assert!(!first.disconnect());
    assert_eq!(next.release(1), [1]);
    quiet(&first);
    assert_eq!(first.books().expired, 1, "the message of the ask");
    let replies = first.reply_books();
    assert_eq!((replies.accepted, replies.forwarded, replies.processed), (3, 1, 2));
    // It answers its asks itself again, and can be connected again.
    assert_eq!(first.ask_blocking(Number(5), None).unwrap().message, Number(5));
    let other = adds(stage, "other", 10);
    let pipeline = first.connect(&other).unwrap();
    assert_eq!(pipeline.ask_blocking(Number(6), None).unwrap().message, Number(16));
}

async fn returns_at_the_last(mut context: Context<Number, Number>) -> Result<(), BoxError> {
    loop {
        let number = *context.receive().await?;
        context.reply(number).await?;
        if number.0 == u64::MAX {
            return Ok(());
        }
    }
}

pub fn a_stage_that_ends_is_disconnected_and_can_be_replaced_without_loss(stage: &Stage) {
    let first = launch(stage.kernel("first"), echo);
    let mut all = Vec::new();
    let mut sent = 0..;
    let ends = [Some(Terminate::drain()), Some(Terminate::drain()), None];
    for (round, end) in ends.into_iter().enumerate() {
        let next = launch(stage.kernel(&format!("next {round}")).capacity(4), returns_at_the_last);
        first.connect(&next).unwrap();
        for number in sent.by_ref().take(20) {
            first.send_blocking(Number(number), None).unwrap();
        }
        match end {
            // It may be at any of them.
            Some(how) => {
                let reader = next.clone();
                let read = std::thread::spawn(move || {
                    let mut read = Vec::new();
                    while let Ok(reply) = reader.receive_blocking(None) {
                        read.push(reply.message.0);
                    }
                    read
                });
                assert_eq!(next.terminate_blocking(how), Termination::Clean);
                all.extend(read.join().unwrap());
                // What it had replied and nobody had read by then.
                let unread = stage.runtime.take_dead_letters(|_| true);
                all.extend(unread.iter().filter_map(|l| l.message::<Number>()).map(|n| n.0));
            }
            // It returns by itself.
            None => {
                first.send_blocking(Number(u64::MAX), None).unwrap();
                while let Ok(reply) = next.receive_blocking(None) {
                    all.push(reply.message.0);
                }
                assert_eq!(all.pop(), Some(u64::MAX));
            }
        }
        eventually(|| first.connected_to().is_none());
    }
    quiet(&first);
    let rest = sent.next().unwrap_or_default() as usize - all.len();
    all.extend(receive(&first, rest));
    assert_eq!(all, (0..60).collect::<Vec<_>>());
}

pub fn draining_a_pipeline_lets_all_come_out_at_the_end(stage: &Stage) {
    let kernels = ["first", "second", "third"]
        .map(|name| serve(stage.kernel(name), Form::Handler, adding, 0));
    let [first, second, third] = &kernels;
    let pipeline = first.connect(second).unwrap().then(third).unwrap();
    assert_eq!(pipeline.stages().len(), 3);
    let asked = ask(&pipeline, 1000);
    for number in 0..200 {
        pipeline.try_send(Number(number)).unwrap();
    }
    let reader = third.clone();
    let read = Waiter::start(async move {
        let mut read = Vec::new();
        while let Ok(reply) = reader.receive().await {
            read.push(reply.message.0);
        }
        read
    });
    let outcomes = pipeline.terminate_blocking(Terminate::drain());
    assert_eq!(outcomes, [Termination::Clean; 3]);
    let mut all = read.join();
    // What nobody had read when the last one had ended.
    let unread = stage.runtime.take_dead_letters(|_| true);
    all.extend(unread.iter().filter_map(|l| l.message::<Number>()).map(|n| n.0));
    assert_eq!(all, (0..200).collect::<Vec<_>>());
    assert_eq!(asked.join(), Ok(1000));
    for kernel in &kernels {
        assert_eq!(kernel.books().processed, 201);
        balanced(kernel);
    }
}

pub fn a_stop_reaches_who_waits_for_room_in_the_next_kernel_and_every_asker(stage: &Stage) {
    let first = launch(stage.kernel("first"), echo);
    let next = Gated::busy(stage.kernel("next").capacity(1));
    let pipeline = first.connect(&next.kernel).unwrap();
    pipeline.try_send(Number(1)).unwrap();
    eventually(|| next.kernel.books().queued == 1);
    let asks = [2, 3].map(|number| {
        let asked = ask(&pipeline, number);
        eventually(|| first.books().accepted == number);
        asked
    });
    eventually(|| first.books().in_hand == 1 && first.books().queued == 1);
    assert_eq!(first.terminate_blocking(Terminate::now()), Termination::Clean);
    for asked in asks {
        let error = asked.join().unwrap_err();
        assert!(error.contains("'first' stopped"), "{error}");
    }
    assert_eq!(reasons(stage).len(), 2, "the reply without room, and the message");
    balanced(&first);
    assert_eq!(next.release(1), [1], "what was passed on is the next one's");
}

async fn gives_up(mut context: Context<Number, Number>) -> Result<(), BoxError> {
    while let Ok(&number) = context.receive().await {
        let mut reply = Box::pin(context.reply(number));
        let _ = poll_once(&mut reply);
    }
    Ok(())
}

/// Gives up each reply that does not get away at once.
pub fn a_reply_that_its_body_gives_up_is_counted_exactly(stage: &Stage) {
    let first = launch(stage.kernel("first"), gives_up);
    let next = Gated::busy(stage.kernel("next").capacity(1));
    let pipeline = first.connect(&next.kernel).unwrap();
    for number in 1..=3 {
        pipeline.try_send(Number(number)).unwrap();
    }
    let error = ask(&pipeline, 4).join().unwrap_err();
    assert!(error.contains("'next'"), "{error}");
    quiet(&first);
    assert_eq!(next.release(1), [1]);
    quiet(&next.kernel);
    assert_eq!(first.reply_books().forwarded, next.kernel.books().accepted - 1);
}

fn counting_down((): ()) -> impl FnMut(u64) -> Outcome + Send + 'static {
    |n| Ok((n > 0).then(|| n - 1))
}

pub fn a_cycle_of_kernels_that_wait_is_refused_unless_it_is_allowed(stage: &Stage) {
    let [a, b] = ["a", "b"].map(|name| serve(stage.kernel(name), Form::Handler, counting_down, ()));
    let refused = a.connect(&a).unwrap_err();
    assert!(matches!(refused, ConnectError::Cycle { .. }), "{refused}");
    a.connect(&b).unwrap();
    let refused = b.connect(&a).unwrap_err();
    assert!(refused.to_string().contains("'b' -> 'a' -> 'b'"), "{refused}");
    let refused = stage.runtime.connect("b", "a").unwrap_err();
    assert!(matches!(refused, ConnectError::Cycle { .. }), "{refused}");
    stage.runtime.connect_allowing_cycle("b", "a").unwrap();
    a.try_send(Number(100)).unwrap();
    eventually(|| a.books().processed + b.books().processed == 101);
    assert!(b.disconnect());
    // One that rejects does not wait, so the others do not wait for ever.
    let rejects = stage.kernel("rejects").backpressure(Backpressure::Reject).launch(echo).unwrap();
    b.connect(&rejects).unwrap();
    rejects.connect(&a).unwrap();
    rejects.terminate_blocking(Terminate::now());
    assert_eq!(b.connected_to(), None);
}

async fn reads_texts(mut context: Context<Text, Text>) -> Result<(), BoxError> {
    while context.receive().await.is_ok() {}
    Ok(())
}

pub fn kernels_are_connected_by_name_if_their_types_agree(stage: &Stage) {
    let [first, next] = ["first", "next"].map(|name| launch(stage.kernel(name), echo));
    stage.runtime.connect("first", "next").unwrap();
    first.try_send(Number(3)).unwrap();
    assert_eq!(receive(&next, 1), [3]);
    launch(stage.kernel("texts"), reads_texts);
    let wrong = stage.runtime.connect("next", "texts").unwrap_err();
    assert!(matches!(wrong, ConnectError::WrongType { .. }), "{wrong}");
    let text = wrong.to_string();
    assert!(text.contains("replies with") && text.contains("Number"), "{text}");
    assert!(text.contains("'texts', messages of") && text.contains("Text"), "{text}");
    let unknown = stage.runtime.connect("next", "nobody").unwrap_err();
    assert!(unknown.to_string().contains("'nobody'"), "{unknown}");
    assert_eq!(stage.runtime.disconnect("first").ok(), Some(true));
    assert_eq!(stage.runtime.disconnect("first").ok(), Some(false));
    assert!(stage.runtime.disconnect("nobody").is_err());
}

pub fn what_cannot_be_connected_is_refused_and_changes_nothing(stage: &Stage) {
    let [first, next] = ["first", "next"].map(|name| launch(stage.kernel(name), echo));
    let gone = launch(stage.kernel("gone"), echo);
    gone.terminate_blocking(Terminate::now());
    first.try_send(Number(1)).unwrap();
    eventually(|| first.reply_books().queued == 1);
    for refused in [first.connect(&gone).unwrap_err(), gone.connect(&first).unwrap_err()] {
        assert!(matches!(&refused, ConnectError::Stopped { .. }), "{refused}");
        assert!(refused.to_string().contains("'gone'"), "{refused}");
    }
    let other = stage.another();
    let elsewhere = launch(other.kernel("elsewhere"), echo);
    let refused = first.connect(&elsewhere).unwrap_err();
    assert!(matches!(refused, ConnectError::OtherRuntime { .. }), "{refused}");
    other.runtime.shutdown_blocking(Duration::from_secs(5));
    assert_eq!(receive(&first, 1), [1]);
    first.connect(&next).unwrap();
    let third = launch(stage.kernel("third"), echo);
    let refused = first.connect(&third).unwrap_err();
    assert!(matches!(&refused, ConnectError::AlreadyConnected { to, .. } if to == next.id()));
}
