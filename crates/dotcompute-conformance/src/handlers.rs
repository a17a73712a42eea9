//! What a handler can be promised wherever it runs: also on a device, which runs no bodies.
//!
//! These promises have one kernel, the *drill*: a handler over records with a state, which does what
//! it is told, and shares nothing with the test but its messages, its replies and its books. So they
//! can be asked of every executor: [`drill`] is it in Rust, and [`DRILL_CUDA`] the same as CUDA C++.
//! How many messages the kernel has in hand at a time is its executor's affair here.

use std::time::Duration;

use dotcompute::mailbox::wait::block_on;
use dotcompute::{
    AskError, Backpressure, BoxError, DELIVERIES_MAX, DeadLetterReason, Envelope, Fault, FaultKind,
    Handler, HandlerContext, KernelBuilder, KernelRef, KernelState, LaunchError, Message,
    ReceiveError, Restart, RestartPolicy, Runtime, RuntimeBuilder, SendError, Terminate,
    Termination,
};

#[cfg(target_os = "linux")]
use crate::roles::Roles;
use crate::roles::{Part, Place};
use crate::stage::{Waiter, eventually, poll_once, within};

/// What the drill is told and what it replies, one type so that drills can be connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Message)]
#[message(record)]
#[repr(C)]
pub struct Word {
    /// What to do: [`ADD`] and so on; of a reply [`ADD`].
    pub what: u64,
    /// A number that comes back.
    pub number: i64,
    /// Of a reply: the sum of all numbers so far, which is the drill's state.
    pub sum: i64,
}

crate::portable!(Word { what, number, sum });

/// To add the number and reply.
pub const ADD: u64 = 0;
/// To add the number and not to reply.
pub const SILENT: u64 = 1;
/// To reply three times: with the number and the two that follow.
pub const THRICE: u64 = 2;
/// To reply, and then to fail with [`CODE`].
pub const FAIL: u64 = 3;

/// The code of the drill's fault.
pub const CODE: i32 = -7;

/// The drill as CUDA C++: `drill`, over [`Word`], with a state of one `i64`.
pub const DRILL_CUDA: &str = r#"
#include "dotcompute.cuh"
struct word { unsigned long long what; long long number, sum; };
struct state { long long sum; };

extern "C" __device__ int32_t
drill(const word *message, state *kept, word *reply, rk_ctx *ctx) {
    if (message->what < 2)
        kept->sum += message->number;
    reply->what = 0;
    reply->number = message->number;
    reply->sum = kept->sum;
    switch (message->what) {
    case 0:
        return DC_HANDLER_REPLY;
    case 1:
        return DC_HANDLER_DONE;
    case 2:
        for (int more = 0; more < 2; ++more) {
            if (int32_t fault = rk_emit(ctx, reply))
                return fault;
            reply->number += 1;
        }
        return DC_HANDLER_REPLY;
    default:
        if (int32_t fault = rk_emit(ctx, reply))
            return fault;
        return -7;
    }
}
"#;

/// The drill in Rust.
#[derive(Debug, Default)]
pub struct Drill {
    sum: i64,
}

/// A drill at its start.
pub fn drill() -> Drill {
    Drill::default()
}

#[cfg(target_os = "linux")]
pub(crate) fn roles(roles: Roles) -> Roles {
    roles.handler(drill)
}

impl Handler for Drill {
    type In = Word;
    type Out = Word;

    fn handle(
        &mut self,
        message: &Word,
        context: &mut HandlerContext<Word>,
    ) -> Result<Option<Word>, BoxError> {
        if message.what <= SILENT {
            self.sum += message.number;
        }
        let reply = |more| Word { what: ADD, number: message.number + more, sum: self.sum };
        match message.what {
            ADD => {}
            SILENT => return Ok(None),
            THRICE => {
                context.emit(reply(0));
                context.emit(reply(1));
                return Ok(Some(reply(2)));
            }
            _ => {
                context.emit(reply(0));
                return Err(Box::new(Fault::code(CODE)));
            }
        }
        Ok(Some(reply(0)))
    }
}

impl Place {
    /// Launches the drill there, in Rust.
    ///
    /// # Errors
    ///
    /// As [`KernelBuilder::launch_handler`].
    pub fn launch_drill(self, builder: KernelBuilder<'_>) -> Result<Kernel, LaunchError> {
        Part::new(builder, self).launch_handler(drill)
    }
}

type Kernel = KernelRef<Word, Word>;

/// An executor under test, which runs the drill.
#[derive(Clone, Copy, Debug)]
pub struct HandlerFixture {
    /// The name by which kernels choose it.
    pub executor: &'static str,
    /// Settings for a runtime that offers it.
    pub builder: fn() -> RuntimeBuilder,
    /// How many messages a kernel has in hand at most: more than 1 where they are on their way to a
    /// device.
    pub in_hand_max: usize,
    /// Launches the drill on it.
    pub launch: fn(KernelBuilder<'_>) -> Result<Kernel, LaunchError>,
}

/// What a test of handlers is given.
#[derive(Debug)]
pub struct HandlerStage {
    runtime: Runtime,
    fixture: HandlerFixture,
}

impl HandlerStage {
    fn kernel(&self, name: &str) -> KernelBuilder<'_> {
        self.runtime.kernel(name).executor(self.fixture.executor)
    }

    /// An active drill.
    fn launch(&self, builder: KernelBuilder<'_>) -> Kernel {
        let kernel = (self.fixture.launch)(builder).unwrap();
        kernel.activate().unwrap();
        kernel
    }
}

/// A promise about handlers.
#[derive(Clone, Copy, Debug)]
pub struct HandlerPromise {
    /// What is promised.
    pub name: &'static str,
    keep: fn(&HandlerStage),
}

impl HandlerPromise {
    /// Tests it on a fresh runtime, under a watchdog.
    ///
    /// # Panics
    ///
    /// If it is not kept.
    pub fn test(&self, fixture: HandlerFixture) {
        let keep = self.keep;
        within(self.name, crate::WATCHDOG, move || {
            let runtime = (fixture.builder)().name("handlers").build();
            let stage = HandlerStage { runtime, fixture };
            keep(&stage);
            for kernel in stage.runtime.telemetry() {
                assert!(kernel.books.balance(), "{}: {:?}", kernel.kernel, kernel.books);
                assert!(kernel.replies.balance(), "{}: {:?}", kernel.kernel, kernel.replies);
            }
            for (kernel, how) in stage.runtime.shutdown_blocking(Duration::from_secs(30)) {
                assert_ne!(how, Termination::Abandoned, "'{kernel}' did not end");
            }
        });
    }
}

/// Makes a `#[test]` of every promise about handlers, for the executor of a [`HandlerFixture`].
/// A second argument is an expression that each test holds while it runs.
#[macro_export]
macro_rules! handler_suite {
    ($fixture:expr $(, $guard:expr)?) => {
        $crate::handler_suite! { @list tests [$fixture] [$($guard)?] }
    };
    (@list $form:ident [$($fixture:expr)?] [$($guard:expr)?]) => {
        $crate::handler_suite! { @$form [$($fixture)?] [$($guard)?]
            what_is_sent_is_handled_in_order_and_the_books_say_so
            concurrent_asks_never_mix
            a_message_without_a_reply_leaves_its_ask_waiting
            the_first_reply_answers_the_ask_and_later_ones_are_late
            a_fault_code_reaches_everyone_who_waits
            what_it_replied_to_the_message_it_failed_at_is_discarded
            a_restart_keeps_the_mailbox_and_fails_only_the_ask_that_failed
            a_message_is_delivered_again_at_most_three_times
            the_policy_decides_what_a_full_mailbox_does
            a_more_urgent_message_goes_first
            a_deactivated_kernel_handles_nothing
            an_end_leaves_dead_letters_and_a_drain_none
            a_kernel_waits_for_room_for_its_replies
            connected_kernels_pass_on_and_the_last_one_answers
            a_pool_takes_turns_and_its_replies_come_out_in_one_place
        }
    };
    (@tests [$fixture:expr] $guard:tt $($promise:ident)*) => {
        $(
            #[test]
            fn $promise() {
                $crate::handler_suite! { @hold $guard }
                $crate::handlers::promise(stringify!($promise)).test($fixture);
            }
        )*
    };
    (@hold []) => {};
    (@hold [$guard:expr]) => { let _held = $guard; };
    (@table [] [] $($promise:ident)*) => {
        &[$(HandlerPromise { name: stringify!($promise), keep: $promise },)*]
    };
}

/// All promises about handlers, for harnesses other than [`handler_suite!`](crate::handler_suite).
pub const HANDLER_PROMISES: &[HandlerPromise] = handler_suite! { @list table [] [] };

/// The promise of this name.
///
/// # Panics
///
/// If there is none.
pub fn promise(name: &str) -> &'static HandlerPromise {
    let found = HANDLER_PROMISES.iter().find(|promise| promise.name == name);
    found.unwrap_or_else(|| panic!("no promise {name}"))
}

/// How long a reply may take on a loaded machine: the watchdog bounds it.
const EVER: Option<Duration> = None;

fn word(what: u64, number: i64) -> Word {
    Word { what, number, sum: 0 }
}

fn add(number: i64) -> Word {
    word(ADD, number)
}

fn numbers(kernel: &Kernel, count: usize) -> Vec<i64> {
    (0..count).map(|_| kernel.receive_blocking(EVER).unwrap().message.number).collect()
}

/// Waits until everything that was accepted is settled.
fn quiet(kernel: &Kernel) {
    eventually(|| {
        let books = kernel.books();
        assert!(books.balance(), "{books:?}");
        books.queued == 0 && books.in_hand == 0
    });
}

fn again(redeliver: bool) -> Restart {
    Restart {
        policy: RestartPolicy::OnFault,
        max_restarts: u32::MAX,
        backoff: Duration::ZERO,
        redeliver,
        ..Restart::default()
    }
}

fn what_is_sent_is_handled_in_order_and_the_books_say_so(stage: &HandlerStage) {
    const COUNT: i64 = 500;
    let kernel = stage.launch(stage.kernel("adds").capacity(8));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for number in 1..=COUNT {
                kernel.send_blocking(add(number), EVER).unwrap();
            }
        });
        for number in 1..=COUNT {
            let reply = kernel.receive_blocking(EVER).unwrap();
            assert_eq!(
                (reply.message.number, reply.message.sum),
                (number, number * (number + 1) / 2)
            );
            assert!(reply.correlation_id.is_some());
        }
    });
    quiet(&kernel);
    let telemetry = kernel.telemetry();
    assert_eq!(telemetry.executor, stage.fixture.executor);
    let (books, replies) = (telemetry.books, telemetry.replies);
    let count = COUNT.cast_unsigned();
    assert_eq!((books.accepted, books.processed), (count, count));
    assert_eq!((replies.accepted, replies.processed), (count, count));
    assert!(telemetry.high_water >= 1 && telemetry.high_water <= 8);
}

fn concurrent_asks_never_mix(stage: &HandlerStage) {
    const ASKERS: i64 = 4;
    const EACH: i64 = 100;
    let kernel = stage.launch(stage.kernel("asked").capacity(4));
    std::thread::scope(|scope| {
        for asker in 0..ASKERS {
            let kernel = &kernel;
            scope.spawn(move || {
                for number in asker * EACH..(asker + 1) * EACH {
                    let reply = kernel.ask_blocking(add(number), EVER).unwrap();
                    assert_eq!(reply.message.number, number);
                }
            });
        }
    });
    let all = ASKERS * EACH;
    assert_eq!(kernel.ask_blocking(add(0), EVER).unwrap().message.sum, all * (all - 1) / 2);
    quiet(&kernel);
    assert_eq!(kernel.telemetry().asks_answered, all.cast_unsigned() + 1);
    assert_eq!(kernel.reply_books().accepted, 0, "no reply to an ask goes to the output");
}

fn a_message_without_a_reply_leaves_its_ask_waiting(stage: &HandlerStage) {
    let kernel = stage.launch(stage.kernel("silent"));
    kernel.try_send(word(SILENT, 5)).unwrap();
    let mut asked = Box::pin(kernel.ask(word(SILENT, 2)));
    assert!(poll_once(&mut asked).is_pending());
    assert_eq!(kernel.ask_blocking(add(1), EVER).unwrap().message.sum, 8);
    assert!(poll_once(&mut asked).is_pending());
    drop(asked);
    quiet(&kernel);
    assert_eq!((kernel.telemetry().asks_answered, kernel.reply_books().accepted), (1, 0));
    assert_eq!(kernel.books().processed, 3);
}

fn the_first_reply_answers_the_ask_and_later_ones_are_late(stage: &HandlerStage) {
    let kernel = stage.launch(stage.kernel("thrice"));
    assert_eq!(kernel.ask_blocking(word(THRICE, 10), EVER).unwrap().message.number, 10);
    quiet(&kernel);
    let late = stage.runtime.take_dead_letters(|_| true);
    assert!(late.iter().all(|letter| matches!(letter.reason, DeadLetterReason::LateReply)));
    let late: Vec<_> = late.iter().map(|letter| letter.message::<Word>().unwrap().number).collect();
    assert_eq!(late, [11, 12]);
    // To a message that was only sent all of them go out, in order.
    kernel.try_send(word(THRICE, 20)).unwrap();
    assert_eq!(numbers(&kernel, 3), [20, 21, 22]);
}

fn a_fault_code_reaches_everyone_who_waits(stage: &HandlerStage) {
    let kernel = stage.launch(stage.kernel("fails").capacity(2));
    kernel.deactivate().unwrap();
    let ask = |what| {
        let kernel = kernel.clone();
        Waiter::start(async move { kernel.ask(word(what, 1)).await.map(|_| ()) })
    };
    let asks = [ask(FAIL), ask(ADD)];
    let receiver = kernel.clone();
    let receiver = Waiter::start(async move { receiver.receive().await.map(|_| ()) });
    kernel.reactivate().unwrap();
    let check = |fault: &Fault| assert_eq!(fault.kind(), FaultKind::Code(CODE));
    for asked in asks.map(Waiter::join) {
        let Err(AskError::Failed { fault, .. }) = asked else { panic!("{asked:?}") };
        check(&fault);
    }
    let received = receiver.join();
    let Err(ReceiveError::Failed { fault, .. }) = received else { panic!("{received:?}") };
    check(&fault);
    check(&block_on(kernel.ended()).unwrap_err());
    assert_eq!(kernel.state(), KernelState::Failed);
    let sent = kernel.try_send(add(2));
    let Err(SendError::Failed { envelope, fault, .. }) = sent else { panic!("{sent:?}") };
    assert_eq!(envelope.message, add(2));
    check(&fault);
    let books = kernel.books();
    assert_eq!((books.accepted, books.processed, books.dead_lettered), (2, 0, 2), "{books:?}");
    let letters = stage.runtime.take_dead_letters(|letter| {
        letter.message::<Word>().is_some_and(|message| message.what == FAIL)
    });
    assert_eq!(letters.len(), 1);
    let DeadLetterReason::Faulted(fault) = &letters[0].reason else { panic!("{letters:?}") };
    check(fault);
}

fn what_it_replied_to_the_message_it_failed_at_is_discarded(stage: &HandlerStage) {
    let kernel = stage.launch(stage.kernel("discards").restart(again(false)));
    for message in [add(1), word(FAIL, 5), add(2)] {
        kernel.try_send(message).unwrap();
    }
    let replies = [(); 2].map(|()| kernel.receive_blocking(EVER).unwrap().message);
    // The state of the second run is new.
    assert_eq!(replies.map(|reply| (reply.number, reply.sum)), [(1, 1), (2, 2)]);
    quiet(&kernel);
    assert_eq!(kernel.reply_books().accepted, 2);
    let telemetry = kernel.telemetry();
    assert_eq!((telemetry.faults, telemetry.restarts), (1, 1));
    assert_eq!(telemetry.books.dead_lettered, 1);
}

fn a_restart_keeps_the_mailbox_and_fails_only_the_ask_that_failed(stage: &HandlerStage) {
    let kernel = stage.launch(stage.kernel("restarts").restart(again(false)));
    assert_eq!(kernel.ask_blocking(add(3), EVER).unwrap().message.sum, 3);
    kernel.deactivate().unwrap();
    let ask = |what, number| {
        let kernel = kernel.clone();
        Waiter::start(async move { kernel.ask(word(what, number)).await })
    };
    let (fails, first, second) = (ask(FAIL, 0), ask(ADD, 4), ask(ADD, 5));
    kernel.reactivate().unwrap();
    let failed = fails.join();
    assert!(matches!(failed, Err(AskError::Failed { .. })), "{failed:?}");
    assert_eq!(first.join().unwrap().message.sum, 4, "the state is new");
    assert_eq!(second.join().unwrap().message.sum, 9);
    quiet(&kernel);
    let books = kernel.books();
    assert_eq!((books.processed, books.dead_lettered), (3, 1));
}

fn a_message_is_delivered_again_at_most_three_times(stage: &HandlerStage) {
    let kernel = stage.launch(stage.kernel("again").restart(again(true)));
    let failed = kernel.ask_blocking(word(FAIL, 1), EVER);
    assert!(matches!(failed, Err(AskError::Failed { .. })), "{failed:?}");
    assert_eq!(kernel.ask_blocking(add(2), EVER).unwrap().message.sum, 2);
    quiet(&kernel);
    let telemetry = kernel.telemetry();
    assert_eq!(telemetry.faults, u64::from(DELIVERIES_MAX));
    assert_eq!(telemetry.books.redelivered, u64::from(DELIVERIES_MAX) - 1);
    let letters = stage.runtime.take_dead_letters(|_| true);
    assert_eq!(letters.len(), 1);
    assert_eq!(letters[0].delivery_count, DELIVERIES_MAX);
}

fn the_policy_decides_what_a_full_mailbox_does(stage: &HandlerStage) {
    for (policy, taken, handled) in [
        (Backpressure::Block, [true, true, false, false], [1, 2]),
        (Backpressure::Reject, [true, true, false, false], [1, 2]),
        (Backpressure::DropOldest, [true; 4], [3, 4]),
        (Backpressure::DropNewest, [true; 4], [1, 2]),
    ] {
        let builder = stage.kernel(&format!("{policy:?}")).capacity(2).backpressure(policy);
        let kernel = stage.launch(builder);
        kernel.deactivate().unwrap();
        let sent = [1, 2, 3, 4].map(|number| match kernel.try_send(add(number)) {
            Ok(()) => true,
            Err(SendError::Full { envelope, capacity, .. }) => {
                assert_eq!((envelope.message, capacity), (add(number), 2));
                false
            }
            Err(error) => panic!("{error}"),
        });
        assert_eq!(sent, taken, "{policy:?}");
        kernel.reactivate().unwrap();
        assert_eq!(numbers(&kernel, 2), handled, "{policy:?}");
        quiet(&kernel);
        let books = kernel.books();
        let dropped = if taken[3] { 2 } else { 0 };
        assert_eq!(books.dropped_oldest + books.dropped_newest, dropped, "{policy:?}");
        assert_eq!(books.processed, 2);
        let rejected = matches!(policy, Backpressure::Block | Backpressure::Reject);
        assert_eq!(books.rejected, if rejected { 2 } else { 0 }, "{policy:?}");
    }
}

/// Of what the kernel has not in hand; inside a band the order stays.
fn a_more_urgent_message_goes_first(stage: &HandlerStage) {
    const URGENT: [i64; 3] = [1001, 1002, 1003];
    let in_hand_max = stage.fixture.in_hand_max;
    let kernel = stage.launch(stage.kernel("urgent"));
    kernel.deactivate().unwrap();
    let send = |priority, number| {
        kernel.try_send(Envelope::new(add(number)).with_priority(priority)).unwrap();
    };
    (0..200).for_each(|number| send(number as u8 % 64, number));
    for (priority, number) in [(100, 1003), (230, 1001), (170, 1002)] {
        send(priority, number);
    }
    kernel.reactivate().unwrap();
    let order = numbers(&kernel, 203);
    let calm = order.iter().copied().filter(|number| *number < 1000);
    assert!(calm.eq(0..200), "{order:?}");
    match in_hand_max {
        1 => assert_eq!(order[..3], URGENT),
        _ => {
            assert!(URGENT.iter().all(|urgent| order[..in_hand_max].contains(urgent)), "{order:?}")
        }
    }
}

fn a_deactivated_kernel_handles_nothing(stage: &HandlerStage) {
    let kernel = stage.launch(stage.kernel("paused"));
    assert_eq!(kernel.ask_blocking(add(1), EVER).unwrap().message.sum, 1);
    quiet(&kernel);
    kernel.deactivate().unwrap();
    for number in 2..=4 {
        kernel.try_send(add(number)).unwrap();
    }
    let asked = kernel.ask_blocking(add(100), Some(Duration::from_millis(20)));
    assert!(matches!(asked, Err(AskError::Timeout { .. })), "{asked:?}");
    assert_eq!(kernel.books().processed, 1);
    assert!(matches!(kernel.try_receive(), Err(ReceiveError::Empty { .. })));
    kernel.reactivate().unwrap();
    assert_eq!(numbers(&kernel, 3), [2, 3, 4]);
    quiet(&kernel);
    assert_eq!(kernel.books().expired, 1, "the message of an ask that ended is skipped");
    assert_eq!(kernel.ask_blocking(add(0), EVER).unwrap().message.sum, 10);
}

fn an_end_leaves_dead_letters_and_a_drain_none(stage: &HandlerStage) {
    for (how, processed) in [(Terminate::now(), 0), (Terminate::drain(), 3)] {
        let kernel = stage.launch(stage.kernel("ends"));
        kernel.deactivate().unwrap();
        for number in 1..=3 {
            kernel.try_send(add(number)).unwrap();
        }
        let ended = kernel.terminate_blocking(how.within(Duration::from_secs(30)));
        assert_eq!((ended, kernel.state()), (Termination::Clean, KernelState::Terminated));
        let books = kernel.books();
        assert!(books.balance(), "{books:?}");
        assert_eq!((books.processed, books.dead_lettered), (processed, 3 - processed));
        let sent = kernel.try_send(add(4));
        assert!(matches!(sent, Err(SendError::Stopped { .. })), "{sent:?}");
        // The messages, or their replies that nobody read.
        assert_eq!(stage.runtime.take_dead_letters(|_| true).len(), 3);
    }
}

fn a_kernel_waits_for_room_for_its_replies(stage: &HandlerStage) {
    let kernel = stage.launch(stage.kernel("waits").reply_capacity(2));
    for number in 1..=5 {
        kernel.try_send(add(number)).unwrap();
    }
    eventually(|| kernel.reply_books().queued == 2 && kernel.books().in_hand > 0);
    assert_eq!(numbers(&kernel, 5), [1, 2, 3, 4, 5]);
    quiet(&kernel);
    let replies = kernel.reply_books();
    assert_eq!((replies.accepted, replies.processed, replies.rejected), (5, 5, 0));
}

fn connected_kernels_pass_on_and_the_last_one_answers(stage: &HandlerStage) {
    let [first, last] = ["first", "last"].map(|name| stage.launch(stage.kernel(name).capacity(4)));
    let pipeline = first.connect(&last).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for number in 1..=200 {
                pipeline.send_blocking(add(number), EVER).unwrap();
            }
        });
        for number in 1..=200 {
            let reply = last.receive_blocking(EVER).unwrap().message;
            assert_eq!((reply.number, reply.sum), (number, number * (number + 1) / 2));
        }
    });
    let answer = pipeline.ask_blocking(add(0), EVER).unwrap().message;
    assert_eq!((answer.number, answer.sum), (0, 20_100));
    assert!(matches!(first.try_receive(), Err(ReceiveError::Connected { .. })));
    quiet(&first);
    quiet(&last);
    assert_eq!(first.reply_books().forwarded, 201);
    // What fails at the end is told at the beginning.
    let failed = pipeline.ask_blocking(word(FAIL, 1), EVER);
    assert!(matches!(&failed, Err(AskError::Failed { .. })), "{failed:?}");
}

fn a_pool_takes_turns_and_its_replies_come_out_in_one_place(stage: &HandlerStage) {
    let pool = stage.kernel("pool").pool(2).launch_each(stage.fixture.launch).unwrap();
    pool.activate().unwrap();
    let mut last = Vec::new();
    for _ in 0..10 {
        pool.send_blocking(add(1), EVER).unwrap();
        last.push(pool.receive_blocking(EVER).unwrap().message.sum);
    }
    last.sort_unstable();
    assert_eq!(last, [1, 1, 2, 2, 3, 3, 4, 4, 5, 5], "two states");
    assert_eq!(pool.ask_blocking(add(1), EVER).unwrap().message.sum, 6);
    assert_eq!(pool.terminate_blocking(Terminate::drain()), [Termination::Clean; 2]);
}
