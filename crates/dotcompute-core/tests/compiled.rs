//! Compiled handlers: functions of the C ABI as the bodies of kernels.

#![allow(clippy::unwrap_used)]

use std::ffi::c_void;
use std::sync::mpsc;
use std::time::Duration;

use dotcompute_core::abi::{HandlerContext, codes};
use dotcompute_core::compiled::{CompiledHandler, KeyError, RecordBatch};
use dotcompute_core::{
    AskError, DeadLetterReason, Envelope, Fault, FaultKind, KernelRef, LaunchError, Message,
    ReceiveError, Record, RestartPolicy, Runtime, Terminate,
};

const LONG: Option<Duration> = Some(Duration::from_secs(30));

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

/// The table behind a context, as the header's `rk_*` use it.
unsafe fn calls(context: *mut HandlerContext) -> &'static dotcompute_core::abi::HandlerCalls {
    // SAFETY: the runtime passes a context.
    let calls = unsafe { (*context).calls };
    // SAFETY: the table lives as long as the program.
    unsafe { &*calls }
}

/// Adds odd numbers up and replies with the sum so far; does not reply to even ones; fails with
/// the value of negative ones.
unsafe extern "C" fn sum_odd(
    message: *const c_void,
    state: *mut c_void,
    reply: *mut c_void,
    _context: *mut HandlerContext,
) -> i32 {
    // SAFETY: the runtime passes a `Number`.
    let value = unsafe { (*message.cast::<Number>()).value };
    // SAFETY: the runtime passes a `Total`.
    let state = unsafe { &mut *state.cast::<Total>() };
    // SAFETY: the runtime passes room for a `Number`.
    let reply = unsafe { &mut *reply.cast::<Number>() };
    assert_eq!(reply.value, 0, "the room for a reply is zeroed");
    state.count += 1;
    if value < 0 {
        return value as i32;
    }
    if value % 2 == 0 {
        // Not a reply: whoever comes next must not see it.
        reply.value = -1;
        return 0;
    }
    state.sum += value;
    reply.value = state.sum;
    1
}

fn summing() -> CompiledHandler {
    // SAFETY: `sum_odd` takes these layouts.
    unsafe { CompiledHandler::from_raw(sum_odd, Number::LAYOUT) }
        .output(Number::LAYOUT)
        .state(&Total::default())
}

fn batch(numbers: impl IntoIterator<Item = i64>) -> RecordBatch {
    RecordBatch::from_vec(numbers.into_iter().map(|value| Number { value }).collect())
}

fn values(batch: &RecordBatch) -> Vec<i64> {
    batch.as_slice::<Number>().unwrap().iter().map(|number| number.value).collect()
}

type Batches = KernelRef<RecordBatch, RecordBatch>;

fn launch(runtime: &Runtime, handler: CompiledHandler) -> Batches {
    let kernel = runtime.kernel("k").executor("thread").launch_compiled(handler).unwrap();
    kernel.activate().unwrap();
    kernel
}

#[test]
fn a_batch_is_one_message_and_gets_one_batch_of_replies() {
    let runtime = Runtime::builder().build();
    let kernel = launch(&runtime, summing());
    let sent = Envelope::new(batch(0..1000)).with_priority(200);
    let id = sent.id;
    kernel.send_blocking(sent, LONG).unwrap();
    let reply = kernel.receive_blocking(LONG).unwrap();
    assert_eq!(reply.correlation_id, Some(id));
    let mut sum = 0;
    let sums: Vec<i64> = (0..1000).filter(|n| n % 2 == 1).map(|n| (sum += n, sum).1).collect();
    assert_eq!(values(&reply.message), sums);
    kernel.terminate_blocking(Terminate::drain());
    let telemetry = kernel.telemetry();
    assert_eq!((telemetry.books.processed, telemetry.records), (1, 1000));
    assert!(telemetry.books.balance());
}

#[test]
fn whoever_asks_with_a_batch_gets_one_even_if_it_is_empty() {
    let runtime = Runtime::builder().build();
    let kernel = launch(&runtime, summing());
    assert_eq!(values(&kernel.ask_blocking(batch([2, 4]), LONG).unwrap().message), []);
    assert_eq!(values(&kernel.ask_blocking(batch([]), LONG).unwrap().message), []);
    assert_eq!(values(&kernel.ask_blocking(batch([5]), LONG).unwrap().message), [5]);
}

#[test]
fn replies_are_kept_as_they_were_while_others_are_made_however_many_there_are_of_a_batch() {
    let runtime = Runtime::builder().build();
    let kernel = launch(&runtime, summing());
    // Of 1000 records: none, one, a quarter and one on either side, and all have a reply.
    let replies = [0, 1, 249, 250, 251, 1000, 1, 1000];
    let (mut sum, mut expected, mut kept) = (0, Vec::new(), Vec::new());
    for replies in replies {
        let numbers = (0..1000).map(|at| i64::from(at < replies));
        kept.push(kernel.ask_blocking(batch(numbers), LONG).unwrap().message);
        expected.push((sum + 1..=sum + i64::from(replies)).collect::<Vec<_>>());
        sum += i64::from(replies);
    }
    assert_eq!(kept.iter().map(values).collect::<Vec<_>>(), expected);
}

#[test]
fn a_batch_has_a_key_if_its_records_agree() {
    assert_eq!(batch([-7, -7]).key("value"), Ok((-7_i64).cast_unsigned()));
    assert_eq!(batch([]).key("value"), Ok(0));
    let several = batch([7, 7, 8]).key("value").unwrap_err();
    assert_eq!(several, KeyError::Several { field: "value".into(), at: 2 });
    let none = batch([1]).key("price").unwrap_err();
    assert!(none.to_string().contains("'price' of records 'Number'"), "{none}");
}

/// Replies of different keys in one batch: not to the worker of the first one.
#[test]
fn a_batch_of_several_keys_that_is_forwarded_to_a_pool_fails_the_kernel_and_reaches_no_worker() {
    let runtime = Runtime::builder().build();
    let source = launch(&runtime, summing());
    let pool = runtime.kernel("pool").executor("thread").pool(2);
    let pool = pool
        .launch_each(|worker| worker.launch_compiled::<RecordBatch, RecordBatch>(summing()))
        .unwrap()
        .by_key(|batch: &RecordBatch| batch.key("value").unwrap());
    pool.activate().unwrap();
    let pipeline = source.connect(&pool).unwrap();
    // One reply each: they agree.
    assert_eq!(values(&pipeline.ask_blocking(batch([3, 4]), LONG).unwrap().message), [3]);
    let refused = pipeline.ask_blocking(batch([1, 3]), LONG).unwrap_err();
    assert!(matches!(refused, AskError::Dropped { .. } | AskError::Failed { .. }), "{refused}");
    let fault = dotcompute_mailbox::wait::block_on(source.ended()).unwrap_err();
    assert!(fault.message().contains("Several"), "{fault}");
    assert_eq!(pool.books().accepted, 1);
    let letters = runtime.take_dead_letters(|letter| !letter.to_kernel);
    assert!(matches!(letters[0].reason, DeadLetterReason::Unreachable), "{letters:?}");
    assert_eq!(values(letters[0].message().unwrap()), [4, 7]);
}

#[test]
fn single_records_are_messages_of_their_type() {
    let runtime = Runtime::builder().build();
    let kernel = runtime
        .kernel("k")
        .executor("thread")
        .launch_compiled::<Number, Number>(summing())
        .unwrap();
    kernel.activate().unwrap();
    for value in 0..100 {
        kernel.send_blocking(Number { value }, LONG).unwrap();
    }
    let mut sum = 0;
    for value in (1..100).step_by(2) {
        sum += value;
        assert_eq!(kernel.receive_blocking(LONG).unwrap().message.value, sum);
    }
    // A batch of the same in a kernel whose type is known only at run time.
    let erased = RecordBatch::single(Number::LAYOUT, Number { value: 7 }.bytes()).unwrap();
    let batches: Batches = runtime.kernel("b").launch_compiled(summing()).unwrap();
    batches.activate().unwrap();
    let reply = batches.ask_blocking(erased, LONG).unwrap().message;
    assert!(reply.is_single());
    assert_eq!(values(&reply), [7]);
}

#[test]
fn the_state_is_read_between_two_messages_and_kept_after_the_end() {
    let runtime = Runtime::builder().build();
    let handler = summing().state(&Total { sum: 1000, count: 0 });
    let reader = handler.state_reader();
    assert_eq!(reader.read::<Total>(Duration::ZERO), Some(Total { sum: 1000, count: 0 }));
    let kernel = launch(&runtime, handler);
    let reading = std::thread::spawn({
        let reader = reader.clone();
        move || {
            let mut seen = 0;
            while seen < 20_000 {
                let total = reader.read::<Total>(LONG.unwrap()).unwrap();
                // Between two messages: each batch has ten numbers, of which 1, 3, 5, 7 and 9 count.
                assert_eq!(total.count % 10, 0);
                assert_eq!(total.sum, 1000 + total.count as i64 / 10 * 25);
                seen = total.count;
            }
        }
    });
    for _ in 0..2_000 {
        kernel.send_blocking(batch(0..10), LONG).unwrap();
        kernel.receive_blocking(LONG).unwrap();
    }
    reading.join().unwrap();
    kernel.terminate_blocking(Terminate::drain());
    assert_eq!(reader.read::<Total>(Duration::ZERO).unwrap().count, 20_000);
}

#[test]
fn a_negative_result_is_a_fault_with_its_code_and_record() {
    let runtime = Runtime::builder().build();
    let kernel = launch(&runtime, summing());
    let error = kernel.ask_blocking(batch([1, 3, -7, 5]), LONG).unwrap_err();
    let AskError::Failed { fault, .. } = error else { panic!("{error}") };
    assert_eq!(fault.kind(), FaultKind::Code(-7));
    assert_eq!(fault.message(), "handler returned fault code -7 (at record 2 of 4)");
    // The whole batch is one dead letter.
    let mut letters = 0;
    runtime.dead_letters(|letter| {
        assert!(matches!(letter.reason, DeadLetterReason::Faulted(_)));
        assert_eq!(letter.message::<RecordBatch>().unwrap().len(), 4);
        letters += 1;
    });
    assert_eq!(letters, 1);
    assert!(matches!(kernel.receive_blocking(LONG), Err(ReceiveError::Failed { .. })));
}

#[test]
fn a_restart_makes_the_state_anew() {
    let runtime = Runtime::builder().build();
    let handler = summing();
    let reader = handler.state_reader();
    let kernel: Batches = runtime
        .kernel("k")
        .executor("thread")
        .restart(RestartPolicy::OnFault)
        .launch_compiled(handler)
        .unwrap();
    kernel.activate().unwrap();
    assert_eq!(values(&kernel.ask_blocking(batch([1, 3]), LONG).unwrap().message), [1, 4]);
    assert!(matches!(kernel.ask_blocking(batch([-1]), LONG), Err(AskError::Failed { .. })));
    assert_eq!(values(&kernel.ask_blocking(batch([5]), LONG).unwrap().message), [5]);
    assert_eq!(reader.read::<Total>(LONG.unwrap()).unwrap(), Total { sum: 5, count: 1 });
    assert_eq!(kernel.telemetry().restarts, 1);
}

/// Emits as many replies as the message says, logs each, and sends the message on to target 0.
unsafe extern "C" fn repeat(
    message: *const c_void,
    _state: *mut c_void,
    reply: *mut c_void,
    context: *mut HandlerContext,
) -> i32 {
    // SAFETY: the runtime passes a `Number`.
    let value = unsafe { (*message.cast::<Number>()).value };
    // SAFETY: the runtime passes room for a `Number`.
    let reply_record = unsafe { &mut *reply.cast::<Number>() };
    // SAFETY: its context.
    let calls = unsafe { calls(context) };
    for index in 0..value {
        reply_record.value = index;
        // SAFETY: a record of the output layout.
        let result = unsafe { (calls.emit)(context, reply) };
        if result < 0 {
            return result;
        }
    }
    // SAFETY: a record of the target's layout.
    let sent = unsafe { (calls.send)(context, 0, message) };
    assert_eq!(sent, 0);
    let text = "repeated";
    // SAFETY: a text and its length.
    unsafe { (calls.log)(context, 20, text.as_ptr(), text.len() as u64) };
    if value == 0 {
        let text = "nothing to repeat";
        // SAFETY: a text and its length.
        return unsafe { (calls.fault)(context, -3, text.as_ptr(), text.len() as u64) };
    }
    reply_record.value = -value;
    1
}

fn repeating() -> CompiledHandler {
    // SAFETY: `repeat` takes these layouts.
    unsafe { CompiledHandler::from_raw(repeat, Number::LAYOUT) }
        .output(Number::LAYOUT)
        .max_emit(3)
        .target::<RecordBatch>("target", Number::LAYOUT)
}

#[test]
fn a_handler_emits_replies_in_order_and_sends_to_its_targets() {
    let runtime = Runtime::builder().build();
    let target: Batches = runtime.kernel("target").launch_compiled(summing()).unwrap();
    target.activate().unwrap();
    let kernel = launch(&runtime, repeating());
    let reply = kernel.ask_blocking(batch([2, 1]), LONG).unwrap();
    assert_eq!(values(&reply.message), [0, 1, -2, 0, -1]);
    assert_eq!(values(&target.receive_blocking(LONG).unwrap().message), [1]);
    target.terminate_blocking(Terminate::drain());
    // Where it sends to is not there any more: a fault.
    let error = kernel.ask_blocking(batch([1]), LONG).unwrap_err();
    assert!(error.to_string().contains("target"), "{error}");
}

#[test]
fn a_handler_says_itself_why_it_fails() {
    let runtime = Runtime::builder().build();
    let kernel = launch(&runtime, repeating());
    let error = kernel.ask_blocking(batch([0]), LONG).unwrap_err();
    assert!(error.to_string().ends_with("nothing to repeat (fault code -3) (at record 0 of 1)"));
    runtime.shutdown_blocking(LONG.unwrap());

    let runtime = Runtime::builder().build();
    let kernel = launch(&runtime, repeating());
    let AskError::Failed { fault, .. } = kernel.ask_blocking(batch([4]), LONG).unwrap_err() else {
        panic!()
    };
    assert_eq!(fault.kind(), FaultKind::Code(codes::FAULT_EMIT_LIMIT));
    assert!(fault.message().contains("max_emit=3"), "{fault}");
}

/// Ticks until it is told to stop; says first that it runs.
unsafe extern "C" fn tick(
    message: *const c_void,
    _state: *mut c_void,
    _reply: *mut c_void,
    context: *mut HandlerContext,
) -> i32 {
    // SAFETY: the runtime passes a `Number`, here the address of a sender.
    let address = unsafe { (*message.cast::<Number>()).value };
    // SAFETY: the sender outlives the kernel.
    unsafe { &*(address as *const mpsc::SyncSender<()>) }.send(()).unwrap();
    loop {
        // SAFETY: its context.
        let calls = unsafe { calls(context) };
        // SAFETY: as above.
        let result = unsafe { (calls.tick)(context) };
        if result < 0 {
            return result;
        }
        std::thread::yield_now();
    }
}

#[test]
fn a_handler_that_ticks_ends_when_its_kernel_is_told_to_stop() {
    let runtime = Runtime::builder().build();
    // SAFETY: `tick` takes this layout.
    let handler = unsafe { CompiledHandler::from_raw(tick, Number::LAYOUT) };
    let reader = handler.state_reader();
    let kernel = launch(&runtime, handler);
    let (runs, running) = mpsc::sync_channel::<()>(1);
    kernel.send_blocking(batch([(&raw const runs) as i64]), LONG).unwrap();
    running.recv().unwrap();
    // It works, and nobody waits for ever to read its state.
    assert_eq!(reader.bytes(Duration::ZERO), None);
    kernel.terminate_blocking(Terminate::now().within(LONG.unwrap()));
    let letters = runtime.take_dead_letters(|_| true);
    let DeadLetterReason::Faulted(fault) = &letters[0].reason else { panic!() };
    assert_eq!(fault.kind(), FaultKind::Code(codes::FAULT_DEADLINE));
}

#[test]
fn records_of_another_layout_are_refused() {
    let runtime = Runtime::builder().build();
    let refused = runtime.kernel("k").launch_compiled::<Total, Number>(summing()).unwrap_err();
    assert!(matches!(refused, LaunchError::Layout { what: "messages", .. }));
    let refused = runtime.kernel("k").launch_compiled::<Number, Total>(summing()).unwrap_err();
    assert!(matches!(refused, LaunchError::Layout { what: "replies", .. }));
    // A batch says only at run time what it holds.
    let kernel = launch(&runtime, summing());
    let other = RecordBatch::from_vec(vec![Total::default()]);
    let AskError::Failed { fault, .. } = kernel.ask_blocking(other, LONG).unwrap_err() else {
        panic!()
    };
    assert_eq!(fault.message(), "records of 'Total' where those of 'Number' are taken");
}

#[test]
fn a_result_above_one_is_a_fault() {
    unsafe extern "C" fn two(
        _: *const c_void,
        _: *mut c_void,
        _: *mut c_void,
        _: *mut HandlerContext,
    ) -> i32 {
        2
    }
    let runtime = Runtime::builder().build();
    // SAFETY: it looks at nothing.
    let handler = unsafe { CompiledHandler::from_raw(two, Number::LAYOUT) };
    let kernel: KernelRef<Number, Number> =
        runtime.kernel("k").executor("thread").launch_compiled(handler).unwrap();
    kernel.activate().unwrap();
    kernel.send_blocking(Number { value: 1 }, LONG).unwrap();
    let error = kernel.receive_blocking(LONG).unwrap_err();
    let ReceiveError::Failed { fault, .. } = error else { panic!() };
    assert_eq!(fault.kind(), FaultKind::Code(codes::FAULT_BAD_RESULT));
}

#[test]
fn memory_of_a_batch_is_released_before_its_reply_is_there() {
    struct Released(mpsc::Sender<()>, Vec<Number>);
    impl Drop for Released {
        fn drop(&mut self) {
            let _ = self.0.send(());
        }
    }
    let runtime = Runtime::builder().build();
    let kernel = launch(&runtime, summing());
    let (sender, released) = mpsc::channel();
    let owner = Released(sender, vec![Number { value: 3 }; 4]);
    let (start, count) = (owner.1.as_ptr().cast(), owner.1.len());
    // SAFETY: the records lie in the `Vec` that is kept, and nobody writes to it.
    let batch = unsafe { RecordBatch::from_foreign(Number::LAYOUT, start, count, Box::new(owner)) };
    assert_eq!(values(&kernel.ask_blocking(batch, LONG).unwrap().message), [3, 6, 9, 12]);
    released.try_recv().expect("the batch is dropped before the reply is sent");
}

/// The fault is the same whatever made it.
#[test]
fn a_fault_code_has_a_text_of_its_own() {
    let fault = Fault::code_with(-5, "too hot");
    assert_eq!((fault.kind(), fault.message()), (FaultKind::Code(-5), "too hot"));
}
