//! Messages that nobody processed: kept, bounded, readable, and replayable.

use std::sync::{Arc, Mutex};

use dotcompute::mailbox::sync::lock;
use dotcompute::mailbox::wait::block_on;
use dotcompute::{
    AskError, Backpressure, BoxError, Context, DEAD_LETTERS_MAX, DEAD_LETTERS_MAX_BYTES,
    DELIVERIES_MAX, DeadLetterReason, Envelope, Message, Restart, RestartPolicy, Terminate,
};

#[cfg(target_os = "linux")]
use crate::roles::Roles;
use crate::signals::{Portable, Slate};
use crate::stage::{
    Form, Gated, Number, Outcome, Stage, Token, Waiter, balanced, echo, launch, launch_closure,
    poll_once, quiet, serve,
};

#[cfg(target_os = "linux")]
pub(crate) fn roles(roles: Roles) -> Roles {
    roles.body(waits_for_ever).serving(well_the_second_time).serving(fails).body(takes_tokens)
}

/// Leaves `count` dead letters, numbers 1 to `count`, of a kernel of this name.
fn leave(stage: &Stage, name: &str, count: u64) {
    let kernel = launch(stage.kernel(name), echo);
    kernel.deactivate().unwrap();
    for number in 1..=count {
        kernel.send_blocking(Number(number), None).unwrap();
    }
    kernel.terminate_blocking(Terminate::now());
    assert_eq!(kernel.books().dead_lettered, count);
    balanced(&kernel);
}

/// The numbers that are dead letters now.
fn numbers(stage: &Stage) -> Vec<u64> {
    let mut numbers = Vec::new();
    stage.runtime.dead_letters(|letter| {
        numbers.extend(letter.message::<Number>().map(|number| number.0));
    });
    numbers
}

pub fn dead_letters_can_be_read_after_their_kernel_was_terminated(stage: &Stage) {
    let kernel = launch(stage.kernel("gone"), echo);
    kernel.deactivate().unwrap();
    let sent = Envelope::new(Number(1)).with_priority(10);
    let id = sent.id;
    kernel.try_send(sent).unwrap();
    kernel.try_send(Envelope::new(Number(2)).with_priority(250)).unwrap();
    kernel.terminate_blocking(Terminate::now());
    drop(kernel);
    assert_eq!(numbers(stage), [2, 1], "as they would have been delivered");
    let counts = stage.runtime.dead_letter_counts();
    assert_eq!((counts.kept, counts.total, counts.evicted), (2, 2, 0));
    assert_eq!(counts.bytes, 2 * size_of::<Number>());
    let letters = stage.runtime.take_dead_letters(|letter| letter.priority == 10);
    assert_eq!(letters.len(), 1);
    let letter = letters.into_iter().next().unwrap();
    assert_eq!((letter.id, letter.kernel.as_str(), letter.type_name), (id, "gone", "Number"));
    assert!(matches!(letter.reason, DeadLetterReason::Undelivered));
    let Err(letter) = letter.into_envelope::<Token>() else { panic!("it is no token") };
    let envelope = letter.into_envelope::<Number>().unwrap();
    assert_eq!((envelope.id, envelope.message), (id, Number(1)));
    assert_eq!(numbers(stage), [2], "the others stay");
}

pub fn dead_letters_are_bounded_and_evictions_are_counted(stage: &Stage) {
    const MORE: u64 = 76;
    leave(stage, "first", 1000);
    leave(stage, "second", DEAD_LETTERS_MAX as u64 - 1000 + MORE);
    let counts = stage.runtime.dead_letter_counts();
    assert_eq!((counts.kept, counts.evicted), (DEAD_LETTERS_MAX, MORE));
    assert_eq!(counts.total, DEAD_LETTERS_MAX as u64 + MORE);
    assert_eq!(numbers(stage)[0], MORE + 1, "the oldest go first");
}

/// A message that says it is large.
struct Large;

impl Portable for Large {
    fn put(&self, _out: &mut Vec<u8>) {}

    fn take(_from: &mut &[u8]) -> Option<Self> {
        Some(Self)
    }
}

impl Message for Large {
    const TYPE_NAME: &'static str = "Large";

    fn payload_bytes(&self) -> usize {
        DEAD_LETTERS_MAX_BYTES / 4
    }
}

async fn waits_for_ever(_context: Context<Large, Number>) -> Result<(), BoxError> {
    std::future::pending().await
}

pub fn dead_letters_are_bounded_in_bytes(stage: &Stage) {
    let kernel = launch(stage.kernel("large"), waits_for_ever);
    kernel.deactivate().unwrap();
    for _ in 0..6 {
        kernel.try_send(Large).unwrap();
    }
    let how = Terminate::now().within(std::time::Duration::from_millis(100));
    kernel.terminate_blocking(how);
    let counts = stage.runtime.dead_letter_counts();
    assert_eq!((counts.kept, counts.evicted, counts.total), (4, 2, 6));
    assert!(counts.bytes <= DEAD_LETTERS_MAX_BYTES);
}

fn well_the_second_time(starts: Slate) -> impl FnMut(u64) -> Outcome + Send + 'static {
    let well = starts.count().is_ok_and(|start| start > 1);
    move |number| match well {
        true => Ok(Some(number)),
        false => Err("not yet".into()),
    }
}

pub fn a_replay_counts_as_accepted_anew(stage: &Stage) {
    for form in Form::BOTH {
        let starts = Slate::default();
        // It fails at its first message, and works from then on.
        let builder = stage.kernel("mends").restart(RestartPolicy::OnFault);
        let kernel = serve(builder, form, well_the_second_time, starts);
        let sent = Envelope::new(Number(1)).with_priority(200);
        let id = sent.id;
        let asked = kernel.ask_blocking(sent, None);
        assert!(matches!(asked, Err(AskError::Failed { .. })), "{asked:?}");
        quiet(&kernel);
        assert_eq!(stage.runtime.replay(|_| true), 1);
        // Whoever asked was told of the fault: the reply is nobody's.
        let reply = kernel.receive_blocking(None).unwrap();
        assert_eq!((reply.message, reply.correlation_id), (Number(1), Some(id)));
        quiet(&kernel);
        let books = kernel.books();
        assert_eq!((books.accepted, books.dead_lettered, books.processed), (2, 1, 1));
        assert_eq!(stage.runtime.dead_letter_counts().kept, 0);
        assert_eq!(
            stage.runtime.dead_letter_counts().total,
            if form == Form::Body { 1 } else { 2 }
        );
        kernel.terminate_blocking(Terminate::now());
    }
}

pub fn dead_letters_are_replayed_in_order_to_the_next_kernel_of_the_name(stage: &Stage) {
    leave(stage, "heir", 5);
    let heir = Gated::busy(stage.kernel("heir"));
    assert_eq!(stage.runtime.replay(|letter| letter.message() != Some(&Number(3))), 4);
    assert_eq!(heir.release(4), [1, 2, 4, 5]);
    quiet(&heir.kernel);
    assert_eq!(heir.kernel.books().accepted, 5);
    assert_eq!(numbers(stage), [3]);
}

fn fails((): ()) -> impl FnMut(u64) -> Outcome + Send + 'static {
    |_| Err("fails".into())
}

/// Whoever asked has been told: the letter of an ask is a plain message, wherever it is sent.
pub fn a_dead_letter_that_is_sent_on_answers_nobodys_ask(stage: &Stage) {
    let again = Restart { redeliver: true, ..RestartPolicy::OnFault.into() };
    let builder = stage.kernel("fails").restart(again);
    let fails = serve(builder, Form::Handler, fails, ());
    assert!(fails.ask_blocking(Number(1), None).is_err());
    let letter = stage.runtime.take_dead_letters(|_| true).remove(0);

    let other = launch(stage.kernel("echo"), echo);
    other.deactivate().unwrap();
    let asker = other.clone();
    let asked = Waiter::start(async move { asker.ask(Number(2)).await });
    assert_eq!(letter.delivery_count, DELIVERIES_MAX);
    let envelope = letter.into_envelope::<Number>().unwrap();
    assert_eq!(envelope.delivery_count(), 1, "it begins anew");
    other.try_send(envelope.with_priority(250)).unwrap();
    other.reactivate().unwrap();
    assert_eq!(asked.join().unwrap().message, Number(2));
    assert_eq!(other.receive_blocking(None).unwrap().message, Number(1));
    quiet(&other);
    assert_eq!(other.books().expired, 0);
}

async fn takes_tokens(_context: Context<Token, Number>) -> Result<(), BoxError> {
    Ok(())
}

pub fn what_cannot_be_replayed_stays_a_dead_letter(stage: &Stage) {
    let everything = |stage: &Stage| stage.runtime.replay(|_| true);
    leave(stage, "name", 3);
    assert_eq!(everything(stage), 0, "no kernel of the name");
    let other = stage.kernel("name").launch(takes_tokens).unwrap();
    assert_eq!(everything(stage), 0, "another type");
    other.terminate_blocking(Terminate::now());
    let asleep = stage.kernel("name").launch(echo).unwrap();
    assert_eq!(everything(stage), 0, "not activated");
    asleep.terminate_blocking(Terminate::now());
    let small = Gated::busy(stage.kernel("name").capacity(2));
    assert_eq!(everything(stage), 2, "as many as there is room for");
    assert_eq!(numbers(stage), [3]);
    assert_eq!(small.release(2), [1, 2]);
    quiet(&small.kernel);
    // A reply does not go to the kernel that made it.
    let kernel = launch(stage.kernel("echo"), echo);
    kernel.try_send(Number(9)).unwrap();
    quiet(&kernel);
    kernel.terminate_blocking(Terminate::now());
    drop(launch(stage.kernel("echo"), echo));
    assert_eq!(stage.runtime.replay(|letter| letter.kernel.as_str() == "echo"), 0);
    assert_eq!(numbers(stage), [3, 9]);
    assert_eq!(stage.runtime.dead_letter_counts().total, 4);
}

pub fn a_replay_obeys_the_policy_of_its_mailbox(stage: &Stage) {
    leave(stage, "drops", 4);
    let builder = stage.kernel("drops").capacity(2).backpressure(Backpressure::DropOldest);
    let gated = Gated::busy(builder);
    assert_eq!(stage.runtime.replay(|_| true), 4);
    assert_eq!(gated.release(2), [3, 4]);
    quiet(&gated.kernel);
    let books = gated.kernel.books();
    assert_eq!((books.accepted, books.dropped_oldest), (5, 2));
}

/// Every message is somewhere, and is dropped once: with its kernel, its letter, or its sender.
pub fn no_message_outlives_the_runtime_or_is_dropped_twice(stage: &Stage) {
    let alive: Arc<Mutex<i64>> = Arc::default();
    let own = stage.another();
    let kernel = launch_closure(own.kernel("tokens").capacity(4), |mut context| async move {
        loop {
            let number = Context::<Token, Number>::receive(&mut context).await?.number;
            match number % 3 {
                0 => drop(context.take()),
                1 => context.reply(Number(number)).await?,
                _ => {}
            }
        }
    });
    for number in 0..50 {
        kernel.send_blocking(Token::new(number, &alive), None).unwrap();
    }
    quiet(&kernel);
    assert_eq!(*lock(&alive), 0, "what was processed is gone");
    kernel.deactivate().unwrap();
    for number in 0..4 {
        kernel.try_send(Token::new(number, &alive)).unwrap();
    }
    let refused = kernel.try_send(Token::new(4, &alive));
    let mut blocked = Box::pin(kernel.send(Token::new(5, &alive)));
    assert!(poll_once(&mut blocked).is_pending());
    assert_eq!(*lock(&alive), 6);
    drop((refused, blocked));
    assert_eq!(*lock(&alive), 4);
    kernel.terminate_blocking(Terminate::now());
    assert_eq!(*lock(&alive), 4, "dead letters");
    assert_eq!(
        own.runtime.take_dead_letters(|letter| letter.message::<Token>().is_some()).len(),
        4
    );
    assert_eq!(*lock(&alive), 0);
    leave(&own, "left", 2);
    block_on(own.runtime.shutdown(std::time::Duration::from_secs(5)));
}
