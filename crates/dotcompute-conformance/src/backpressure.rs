//! What a full mailbox does with one more message, and a full output mailbox with one more reply.

use std::sync::mpsc::Receiver;

use dotcompute::mailbox::wait::block_on;
use dotcompute::{
    AskError, Backpressure, BoxError, Context, DeadLetterReason, Envelope, KernelRef, SendError,
    Terminate, Termination,
};

use crate::roles::Part;
#[cfg(target_os = "linux")]
use crate::roles::Roles;
use crate::signals::{Tell, channel};
use crate::stage::{Gated, Number, Stage, Waiter, balanced, eventually, launch_with, quiet};

#[cfg(target_os = "linux")]
pub(crate) fn roles(roles: Roles) -> Roles {
    roles.body_with(tells_of_replies).body_with(tells_before_it_replies)
}

fn at(priority: u8, number: u64) -> Envelope<Number> {
    Envelope::new(Number(number)).with_priority(priority)
}

pub fn block_makes_senders_wait_until_there_is_room(stage: &Stage) {
    let gated = Gated::busy(stage.kernel("blocks").capacity(2));
    for number in [1, 2] {
        gated.kernel.try_send(Number(number)).unwrap();
    }
    let kernel = gated.kernel.clone();
    let sender = Waiter::start(async move { kernel.send(Number(3)).await });
    let books = gated.kernel.books();
    assert_eq!((books.accepted, books.queued), (3, 2), "a sender that waits is not accepted yet");
    gated.gate.open(1);
    gated.arrives(1);
    sender.join().unwrap();
    assert_eq!(gated.kernel.books().accepted, 4);
    assert_eq!(gated.release(2), [2, 3]);
    quiet(&gated.kernel);
}

pub fn reject_gives_the_message_back_and_counts_it(stage: &Stage) {
    let builder = stage.kernel("rejects").capacity(2).backpressure(Backpressure::Reject);
    let gated = Gated::busy(builder);
    for number in [1, 2] {
        block_on(gated.kernel.send(Number(number))).unwrap();
    }
    let outcomes = [
        block_on(gated.kernel.send(Number(3))),
        gated.kernel.send_blocking(Number(3), None),
        gated.kernel.try_send(Number(3)),
        block_on(gated.kernel.address().send(Number(3))),
    ];
    for outcome in outcomes {
        let Err(SendError::Full { envelope, capacity, .. }) = outcome else {
            panic!("{outcome:?}")
        };
        assert_eq!((envelope.message, capacity), (Number(3), 2));
    }
    let refused = gated.kernel.ask_blocking(Number(3), None);
    assert!(matches!(refused, Err(AskError::NotSent(SendError::Full { .. }))), "{refused:?}");
    assert_eq!(gated.release(2), [1, 2]);
    quiet(&gated.kernel);
    let books = gated.kernel.books();
    assert_eq!((books.accepted, books.processed, books.rejected), (3, 3, 5));
}

pub fn drop_oldest_drops_the_oldest_of_the_lowest_occupied_band_and_counts_it(stage: &Stage) {
    let builder = stage.kernel("drops").capacity(4).backpressure(Backpressure::DropOldest);
    let gated = Gated::busy(builder);
    for (priority, number) in [(170, 1), (10, 2), (100, 3), (10, 4)] {
        gated.kernel.try_send(at(priority, number)).unwrap();
    }
    // In turn 2, 4 (the low ones), 3 (the normal one), 1 (the oldest of the high ones) go, and
    // then 8, which is less urgent than all that is left.
    for (priority, number) in [(170, 5), (170, 6), (170, 7), (170, 8), (10, 9), (10, 10)] {
        gated.kernel.try_send(at(priority, number)).unwrap();
    }
    let books = gated.kernel.books();
    assert_eq!((books.accepted, books.queued, books.dropped_oldest), (11, 4, 6));
    assert_eq!(gated.release(4), [6, 7, 8, 10]);
    quiet(&gated.kernel);
    assert_eq!(gated.kernel.books().dropped_newest, 0);
}

pub fn drop_newest_drops_the_new_message_and_counts_it(stage: &Stage) {
    let builder = stage.kernel("drops").capacity(2).backpressure(Backpressure::DropNewest);
    let gated = Gated::busy(builder);
    for number in 1..=5 {
        gated.kernel.send_blocking(at(230, number), None).unwrap();
    }
    let books = gated.kernel.books();
    assert_eq!((books.accepted, books.queued, books.dropped_newest), (6, 2, 3));
    assert_eq!(gated.release(2), [1, 2]);
    quiet(&gated.kernel);
    assert_eq!(gated.kernel.books().dropped_oldest, 0);
}

pub fn an_ask_whose_message_is_dropped_fails_at_once(stage: &Stage) {
    let builder = stage.kernel("newest").capacity(1).backpressure(Backpressure::DropNewest);
    let gated = Gated::busy(builder);
    gated.kernel.try_send(Number(1)).unwrap();
    let dropped = gated.kernel.ask_blocking(Number(2), None);
    assert!(matches!(dropped, Err(AskError::Dropped { .. })), "{dropped:?}");

    let builder = stage.kernel("oldest").capacity(1).backpressure(Backpressure::DropOldest);
    let gated = Gated::busy(builder);
    for evict in [send_one, ask_one, send_by_address] {
        let asker = gated.kernel.clone();
        let asked = Waiter::start(async move { asker.ask(at(10, 1)).await });
        let evictor = evict(&gated.kernel);
        let dropped = asked.join();
        assert!(matches!(dropped, Err(AskError::Dropped { .. })), "{dropped:?}");
        drop(evictor);
    }
    gated.gate.remove();
    quiet(&gated.kernel);
}

type Evictor = Option<Waiter<bool>>;

fn send_one(kernel: &KernelRef<Number, Number>) -> Evictor {
    kernel.try_send(at(10, 2)).unwrap();
    None
}

fn ask_one(kernel: &KernelRef<Number, Number>) -> Evictor {
    let asker = kernel.clone();
    Some(Waiter::start(async move { asker.ask(at(10, 2)).await.is_ok() }))
}

fn send_by_address(kernel: &KernelRef<Number, Number>) -> Evictor {
    block_on(kernel.address().send(at(10, 2))).unwrap();
    None
}

async fn tells_of_replies(
    mut context: Context<Number, Number>,
    tell: Tell<u64>,
) -> Result<(), BoxError> {
    while let Ok(&number) = context.receive().await {
        context.reply(number).await?;
        // The test may have stopped to listen.
        let _ = tell.send(number.0);
    }
    Ok(())
}

/// A kernel that tells of each reply that it has made.
fn replies(part: Part<'_>) -> (KernelRef<Number, Number>, Receiver<u64>) {
    let (tell, made) = channel();
    let kernel = launch_with(part, tells_of_replies, tell);
    (kernel, made)
}

pub fn a_kernel_waits_for_room_for_its_reply_if_that_is_the_policy(stage: &Stage) {
    let (kernel, made) = replies(stage.kernel("waits").reply_capacity(2));
    for number in 1..=4 {
        kernel.try_send(Number(number)).unwrap();
    }
    assert_eq!(made.iter().take(2).collect::<Vec<_>>(), [1, 2]);
    eventually(|| kernel.books().processed == 2 && kernel.books().in_hand == 1);
    assert_eq!(kernel.reply_books().queued, 2);
    for number in 1..=4 {
        assert_eq!(kernel.receive_blocking(None).unwrap().message, Number(number));
    }
    quiet(&kernel);
    let books = kernel.reply_books();
    assert_eq!((books.accepted, books.processed, books.rejected), (4, 4, 0));
}

async fn tells_before_it_replies(
    mut context: Context<Number, Number>,
    tell: Tell<u64>,
) -> Result<(), BoxError> {
    while let Ok(&number) = context.receive().await {
        tell.send(number.0)?;
        context.reply(number).await?;
    }
    Ok(())
}

pub fn a_kernel_that_waits_for_room_for_its_reply_can_be_terminated(stage: &Stage) {
    let (tell, arrived) = channel();
    let part = stage.kernel("stuck").reply_capacity(1);
    let kernel = launch_with(part, tells_before_it_replies, tell);
    for number in 1..=2 {
        kernel.try_send(Number(number)).unwrap();
    }
    assert_eq!((arrived.recv(), arrived.recv()), (Ok(1), Ok(2)));
    eventually(|| kernel.books().processed == 1 && kernel.books().in_hand == 1);
    assert_eq!(kernel.terminate_blocking(Terminate::now()), Termination::Clean);
    balanced(&kernel);
    let mut reasons = Vec::new();
    stage.runtime.dead_letters(|letter| {
        reasons
            .push((letter.message::<Number>().map(|number| number.0), letter.reason.to_string()));
    });
    reasons.sort();
    let expected = [(1, DeadLetterReason::Unread), (2, DeadLetterReason::NoRoom)]
        .map(|(number, reason)| (Some(number), reason.to_string()));
    assert_eq!(reasons, expected);
}

pub fn replies_for_a_full_output_are_dropped_or_dead_letters_as_the_policy_says(stage: &Stage) {
    for (policy, kept) in [
        (Backpressure::DropOldest, [3, 4]),
        (Backpressure::DropNewest, [1, 2]),
        (Backpressure::Reject, [1, 2]),
    ] {
        let builder = stage.kernel(&format!("{policy:?}"));
        let (kernel, made) = replies(builder.reply_capacity(2).reply_backpressure(policy));
        for number in 1..=4 {
            kernel.try_send(Number(number)).unwrap();
        }
        assert_eq!(made.iter().take(4).collect::<Vec<_>>(), [1, 2, 3, 4], "{policy:?}");
        quiet(&kernel);
        let books = kernel.reply_books();
        let counts = (books.dropped_oldest, books.dropped_newest, books.rejected);
        let expected = match policy {
            Backpressure::DropOldest => (2, 0, 0),
            Backpressure::DropNewest => (0, 2, 0),
            _ => (0, 0, 2),
        };
        assert_eq!(counts, expected, "{policy:?}");
        for number in kept {
            assert_eq!(kernel.receive_blocking(None).unwrap().message, Number(number));
        }
    }
    let letters = stage.runtime.take_dead_letters(|letter| !letter.to_kernel);
    let numbers: Vec<_> = letters.iter().map(|l| l.message::<Number>().copied()).collect();
    assert_eq!(numbers, [Some(Number(3)), Some(Number(4))], "those that were rejected");
    assert!(letters.iter().all(|letter| matches!(letter.reason, DeadLetterReason::NoRoom)));
}
