//! Feeds: records streamed into a compiled kernel past its mailbox, each a message all the same.

#![allow(clippy::unwrap_used)]

use std::ffi::c_void;
use std::sync::mpsc;
use std::time::Duration;

use dotcompute_core::abi::HandlerContext;
use dotcompute_core::compiled::{
    Call, CompiledHandler, Feed, FeedError, HandlerCode, NearSide, PushError, RecordBatch,
};
use dotcompute_core::{
    BoxError, DeadLetterReason, KernelRef, Message, Record, Restart, RestartPolicy, Runtime,
    Terminate,
};

const LONG: Option<Duration> = Some(Duration::from_secs(60));

#[derive(Clone, Copy, Debug, PartialEq, Message)]
#[message(record, no_wire, crate = "dotcompute_core")]
#[repr(C)]
struct Number {
    value: i64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Message)]
#[message(record, no_wire, crate = "dotcompute_core")]
#[repr(C)]
struct Total {
    sum: i64,
    count: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Message)]
#[message(record, no_wire, crate = "dotcompute_core")]
#[repr(C)]
struct Other {
    value: f64,
}

/// Adds numbers up, and replies to odd ones with themselves; fails with the value of negative ones.
unsafe extern "C" fn add(
    message: *const c_void,
    state: *mut c_void,
    reply: *mut c_void,
    _context: *mut HandlerContext,
) -> i32 {
    // SAFETY: the runtime passes a `Number`.
    let value = unsafe { (*message.cast::<Number>()).value };
    if value < 0 {
        return value as i32;
    }
    // SAFETY: the runtime passes a `Total`.
    let state = unsafe { &mut *state.cast::<Total>() };
    state.sum += value;
    state.count += 1;
    if value % 2 == 0 {
        return 0;
    }
    // SAFETY: the runtime passes room for a `Number`.
    unsafe { (*reply.cast::<Number>()).value = value };
    1
}

fn adding() -> CompiledHandler {
    // SAFETY: `add` takes these layouts.
    unsafe { CompiledHandler::from_raw(add, Number::LAYOUT) }
        .output(Number::LAYOUT)
        .state(&Total::default())
}

fn number(value: i64) -> Number {
    Number { value }
}

type Numbers = KernelRef<Number, Number>;

/// A kernel with a feed, not activated.
fn fed(
    runtime: &Runtime,
    executor: &str,
    capacity: usize,
    restart: Restart,
) -> (Numbers, Feed<Number>) {
    let (handler, feed) = adding().feed(capacity).unwrap();
    let builder = runtime.kernel("fed").executor(executor).reply_capacity(1 << 20).restart(restart);
    (builder.launch_compiled(handler).unwrap(), feed)
}

/// On a machine that has much else to do.
fn drain() -> Terminate {
    Terminate::drain().within(Duration::from_secs(60))
}

fn replies(kernel: &Numbers) -> Vec<i64> {
    std::iter::from_fn(|| kernel.try_receive().ok()).map(|reply| reply.message.value).collect()
}

#[test]
fn records_are_handled_in_order_and_each_is_in_the_books() {
    let runtime = Runtime::builder().build();
    // So small that each side waits for the other, and so large that it need not.
    for (capacity, count) in [(1, 1000), (5, 5000), (1 << 16, 50_000)] {
        let (kernel, mut feed) = fed(&runtime, "thread", capacity, Restart::default());
        kernel.activate().unwrap();
        for value in 0..count {
            feed.push_blocking(number(value), LONG).unwrap();
        }
        // Between them, messages that are asked: the feed keeps nobody waiting.
        assert_eq!(kernel.ask_blocking(number(7), LONG).unwrap().message, number(7));
        while feed.waiting() > 0 {
            std::thread::yield_now();
        }
        let found: Vec<i64> =
            (0..count / 2).map(|_| kernel.receive_blocking(LONG).unwrap().message.value).collect();
        assert!(found.into_iter().eq((0..count).filter(|value| value % 2 == 1)));
        kernel.terminate_blocking(drain());
        let books = kernel.books();
        assert!(books.balance(), "{books:?}");
        let all = count as u64 + 1;
        assert_eq!((books.accepted, books.processed), (all, all));
        assert_eq!(feed.try_push(number(1)), Err(PushError::Closed(number(1))));
    }
}

#[test]
fn an_async_kernel_takes_what_is_fed_and_lets_others_run() {
    let tokio = tokio::runtime::Builder::new_current_thread().build().unwrap();
    tokio.block_on(async {
        let runtime = Runtime::builder().build();
        let (kernel, mut feed) = fed(&runtime, "async", 16, Restart::default());
        kernel.activate().unwrap();
        // On the one thread there is, so each has to wait for the other.
        for value in 0..10_000 {
            feed.push(number(value)).await.unwrap();
        }
        kernel.terminate(drain()).await;
        assert_eq!((kernel.books().processed, kernel.books().balance()), (10_000, true));
    });
}

#[test]
fn what_was_pushed_before_a_drain_is_handled() {
    let runtime = Runtime::builder().build();
    for _ in 0..50 {
        let (handler, mut feed) = adding().feed::<Number>(4096).unwrap();
        let state = handler.state_reader();
        let kernel: Numbers = runtime
            .kernel("fed")
            .executor("thread")
            .reply_capacity(1 << 20)
            .launch_compiled(handler)
            .unwrap();
        kernel.activate().unwrap();
        let (started, start) = mpsc::channel();
        let pusher = std::thread::spawn(move || {
            let mut accepted = 0;
            while feed.push_blocking(number(1), LONG).is_ok() {
                accepted += 1;
                if accepted == 100 {
                    started.send(()).unwrap();
                }
            }
            accepted
        });
        start.recv().unwrap();
        kernel.terminate_blocking(drain());
        let accepted = pusher.join().unwrap();
        let total: Total = state.read(Duration::ZERO).unwrap();
        assert_eq!((total.count, total.sum), (accepted, accepted as i64));
        assert_eq!(kernel.books().processed, accepted);
    }
}

#[test]
fn what_a_kernel_that_ends_at_once_has_not_handled_is_dead_letters() {
    let runtime = Runtime::builder().build();
    let (kernel, mut feed) = fed(&runtime, "thread", 8, Restart::default());
    kernel.activate().unwrap();
    kernel.deactivate().unwrap();
    assert_eq!(feed.push_slice(&[1, 2, 3, 4].map(number)), 4);
    kernel.terminate_blocking(Terminate::now().within(Duration::from_secs(60)));
    assert_eq!(feed.push_slice(&[number(5)]), 0);
    let letters = runtime.take_dead_letters(|_| true);
    let found: Vec<_> =
        letters.iter().map(|letter| letter.message::<Number>().unwrap().value).collect();
    assert_eq!(found, [1, 2, 3, 4]);
    assert!(letters.iter().all(|letter| matches!(letter.reason, DeadLetterReason::Undelivered)));
    let books = kernel.books();
    assert_eq!((books.accepted, books.dead_lettered, books.processed), (4, 4, 0));
    assert!(books.balance());
}

#[test]
fn a_kernel_that_is_deactivated_leaves_its_feed_alone_and_goes_on_when_it_is_active_again() {
    let runtime = Runtime::builder().build();
    let (kernel, mut feed) = fed(&runtime, "thread", 8, Restart::default());
    assert_eq!(feed.push_slice(&[1, 3].map(number)), 2);
    kernel.activate().unwrap();
    assert_eq!(kernel.receive_blocking(LONG).unwrap().message, number(1));
    assert_eq!(kernel.receive_blocking(LONG).unwrap().message, number(3));
    kernel.deactivate().unwrap();
    feed.try_push(number(5)).unwrap();
    assert!(kernel.receive_blocking(Some(Duration::from_millis(20))).is_err());
    assert_eq!(feed.waiting(), 1);
    kernel.reactivate().unwrap();
    assert_eq!(kernel.receive_blocking(LONG).unwrap().message, number(5));
}

#[test]
fn a_record_that_fails_is_a_dead_letter_and_those_before_and_after_it_are_handled() {
    let runtime = Runtime::builder().build();
    let restart =
        Restart { policy: RestartPolicy::OnFault, backoff: Duration::ZERO, ..Restart::default() };
    let (kernel, mut feed) = fed(&runtime, "thread", 64, restart);
    // All in hand at once.
    let values = [1, 3, 5, -4, 7, 8, -6, 9, 11];
    assert_eq!(feed.push_slice(&values.map(number)), values.len());
    kernel.activate().unwrap();
    let found: Vec<i64> =
        (0..6).map(|_| kernel.receive_blocking(LONG).unwrap().message.value).collect();
    assert_eq!(found, [1, 3, 5, 7, 9, 11]);
    kernel.terminate_blocking(drain());
    let letters = runtime.take_dead_letters(|_| true);
    let dead: Vec<_> =
        letters.iter().map(|letter| letter.message::<Number>().unwrap().value).collect();
    assert_eq!(dead, [-4, -6]);
    assert!(letters.iter().all(|letter| matches!(letter.reason, DeadLetterReason::Faulted(_))));
    let books = kernel.books();
    assert_eq!((books.accepted, books.processed, books.dead_lettered), (9, 7, 2));
    assert!(books.balance(), "{books:?}");
    assert_eq!(kernel.telemetry().restarts, 2);
}

#[test]
fn a_record_that_fails_is_delivered_again_where_the_policy_says_so() {
    let runtime = Runtime::builder().build();
    let restart = Restart {
        policy: RestartPolicy::OnFault,
        backoff: Duration::ZERO,
        max_restarts: 2,
        redeliver: true,
        ..Restart::default()
    };
    let (kernel, mut feed) = fed(&runtime, "thread", 64, restart);
    assert_eq!(feed.push_slice(&[1, -4, 3].map(number)), 3);
    kernel.activate().unwrap();
    assert!(dotcompute_mailbox::wait::block_on(kernel.ended()).is_err());
    assert_eq!(replies(&kernel), [1]);
    let letters = runtime.take_dead_letters(|_| true);
    let dead: Vec<_> = letters
        .iter()
        .map(|letter| (letter.message::<Number>().unwrap().value, letter.delivery_count))
        .collect();
    assert_eq!(dead, [(-4, 3), (3, 1)]);
    let books = kernel.books();
    assert_eq!((books.accepted, books.processed, books.dead_lettered), (3, 1, 2));
    assert_eq!((books.redelivered, books.balance()), (2, true));
}

/// Counts its records, and panics at a negative one.
struct Panics;

impl HandlerCode for Panics {
    fn run(&self, call: &mut Call<'_>) -> Result<(), BoxError> {
        for (at, record) in call.input().chunks_exact(8).enumerate() {
            call.set_record(at);
            assert!(Number::from_bytes(record).unwrap().value >= 0, "a negative number");
        }
        Ok(())
    }
}

#[test]
fn a_panic_costs_the_record_that_it_came_with() {
    let runtime = Runtime::builder().build();
    let handler = CompiledHandler::from_code(Box::new(Panics), Number::LAYOUT);
    let (handler, mut feed) = handler.feed::<Number>(16).unwrap();
    let restart =
        Restart { policy: RestartPolicy::OnFault, backoff: Duration::ZERO, ..Restart::default() };
    let kernel: Numbers =
        runtime.kernel("fed").executor("thread").restart(restart).launch_compiled(handler).unwrap();
    assert_eq!(feed.push_slice(&[1, 2, -3, 4].map(number)), 4);
    kernel.activate().unwrap();
    kernel.terminate_blocking(drain());
    let letters = runtime.take_dead_letters(|_| true);
    assert_eq!(letters.len(), 1);
    assert_eq!(letters[0].message::<Number>(), Some(&number(-3)));
    assert_eq!((kernel.books().processed, kernel.books().balance()), (3, true));
}

/// Emits each number below the message's, and sends the message on; fails at those above 3 once it has.
unsafe extern "C" fn count_up(
    message: *const c_void,
    _state: *mut c_void,
    reply: *mut c_void,
    context: *mut HandlerContext,
) -> i32 {
    // SAFETY: the runtime passes a `Number`.
    let value = unsafe { (*message.cast::<Number>()).value };
    // SAFETY: the runtime passes a context.
    let calls = unsafe { (*context).calls };
    // SAFETY: the table lives as long as the program.
    let calls = unsafe { &*calls };
    for below in 0..value {
        // SAFETY: the runtime passes room for a `Number`.
        unsafe { (*reply.cast::<Number>()).value = below };
        // SAFETY: a record of the output layout.
        assert_eq!(unsafe { (calls.emit)(context, reply) }, 0);
    }
    // SAFETY: a record of the target's layout.
    assert_eq!(unsafe { (calls.send)(context, 0, message) }, 0);
    if value > 3 { -9 } else { 0 }
}

#[test]
fn what_a_record_that_fails_has_emitted_and_sent_is_not_there() {
    let runtime = Runtime::builder().build();
    let target: Numbers =
        runtime.kernel("target").executor("thread").launch_compiled(adding()).unwrap();
    target.activate().unwrap();
    // SAFETY: `count_up` takes these layouts.
    let handler = unsafe { CompiledHandler::from_raw(count_up, Number::LAYOUT) }
        .output(Number::LAYOUT)
        .max_emit(4)
        .target::<Number>("target", Number::LAYOUT);
    let (handler, mut feed) = handler.feed::<Number>(16).unwrap();
    let restart =
        Restart { policy: RestartPolicy::OnFault, backoff: Duration::ZERO, ..Restart::default() };
    let kernel: Numbers =
        runtime.kernel("fed").executor("thread").restart(restart).launch_compiled(handler).unwrap();
    assert_eq!(feed.push_slice(&[1, 3, 4, 2].map(number)), 4);
    kernel.activate().unwrap();
    let found: Vec<i64> =
        (0..6).map(|_| kernel.receive_blocking(LONG).unwrap().message.value).collect();
    assert_eq!(found, [0, 0, 1, 2, 0, 1]);
    kernel.terminate_blocking(drain());
    target.terminate_blocking(drain());
    assert_eq!(replies(&kernel), []);
    assert_eq!(target.books().processed, 3);
    assert_eq!(kernel.books().dead_lettered, 1);
}

#[test]
fn a_feed_does_not_lead_to_a_handler_that_runs_elsewhere() {
    let (handler, _feed) = adding().feed::<Number>(16).unwrap();
    let refused = NearSide::of(handler).check::<Number, Number>(&"far".into()).unwrap_err();
    assert!(refused.to_string().contains("an executor whose kernels run in this process"));
    assert!(NearSide::of(adding()).check::<Number, Number>(&"far".into()).is_ok());
}

#[test]
fn replies_of_a_kernel_of_batches_come_in_batches() {
    let runtime = Runtime::builder().build();
    let (handler, mut feed) = adding().feed::<Number>(64).unwrap();
    let kernel: KernelRef<RecordBatch, RecordBatch> =
        runtime.kernel("fed").executor("thread").launch_compiled(handler).unwrap();
    assert_eq!(feed.push_slice(&[1, 2, 3, 4, 5].map(number)), 5);
    kernel.activate().unwrap();
    let reply = kernel.receive_blocking(LONG).unwrap();
    assert_eq!(reply.correlation_id, None);
    assert_eq!(reply.message.as_slice::<Number>().unwrap(), [1, 3, 5].map(number));
}

#[test]
fn a_feed_is_of_the_records_that_the_handler_takes_and_there_is_one() {
    let refused = adding().feed::<Other>(8).unwrap_err();
    assert_eq!(refused, FeedError::Layout { fed: "Other", taken: "Number" });
    assert_eq!(adding().feed::<Number>(0).unwrap_err(), FeedError::Capacity(0));
    let (handler, mut feed) = adding().feed::<Number>(8).unwrap();
    assert_eq!(handler.feed::<Number>(8).unwrap_err(), FeedError::Taken);
    // The handler is gone, and with it who would have taken them.
    assert_eq!(feed.try_push(number(1)), Err(PushError::Closed(number(1))));
}

#[test]
fn a_feed_whose_runtime_goes_away_says_so() {
    let runtime = Runtime::builder().build();
    let (kernel, mut feed) = fed(&runtime, "thread", 4, Restart::default());
    kernel.activate().unwrap();
    feed.try_push(number(1)).unwrap();
    runtime.shutdown_blocking(Duration::from_secs(60));
    assert_eq!(feed.push_blocking(number(2), LONG), Err(PushError::Closed(number(2))));
    assert!(kernel.books().balance());
}
