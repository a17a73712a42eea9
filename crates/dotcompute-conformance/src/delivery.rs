//! From a sender to the kernel, and from the kernel to whoever receives.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use dotcompute::mailbox::wait::block_on;
use dotcompute::{
    Backpressure, BoxError, CAPACITY_MAX, Context, Envelope, Handler, HandlerContext, KernelRef,
    Message, ReceiveError, SendError, Terminate,
};

#[cfg(target_os = "linux")]
use crate::roles::Roles;
use crate::signals::{Tell, channel};
use crate::stage::{
    Auditor, Form, Gate, Gated, Number, Outcome, Stage, Waiter, balanced, echo, launch,
    launch_closure, launch_with, poll_once, quiet, serve,
};

#[cfg(target_os = "linux")]
pub(crate) fn roles(roles: Roles) -> Roles {
    roles
        .serving(tells)
        .body_with(tells_urgent)
        .body_with(never_waits)
        .body(blocks)
        .body_with(takes)
}

/// One priority of each band, the most urgent first.
const SYSTEM: u8 = 230;
const HIGH: u8 = 170;
const NORMAL: u8 = 100;
const LOW: u8 = 10;

fn at(priority: u8, number: u64) -> Envelope<Number> {
    Envelope::new(Number(number)).with_priority(priority)
}

fn tells(tell: Tell<u64>) -> impl FnMut(u64) -> Outcome + Send + 'static {
    move |number| {
        tell.send(number)?;
        Ok(None)
    }
}

/// Several threads send numbered messages through a small mailbox, by all three ways of sending.
pub fn messages_of_one_sender_arrive_in_order_without_loss_or_duplication(stage: &Stage) {
    const SENDERS: u64 = 4;
    const EACH: u64 = 600;
    for form in Form::BOTH {
        let (tell, seen) = channel();
        let kernel = serve(stage.kernel(&format!("{form:?}")).capacity(8), form, tells, tell);
        let auditor = Auditor::watch(vec![kernel.clone()]);
        std::thread::scope(|scope| {
            for sender in 0..SENDERS {
                let kernel = &kernel;
                scope.spawn(move || {
                    for number in (0..EACH).map(|number| sender << 32 | number) {
                        match number % 3 {
                            0 => kernel.send_blocking(Number(number), None).unwrap(),
                            1 => block_on(kernel.send(Number(number))).unwrap(),
                            _ => match kernel.try_send(Number(number)) {
                                Ok(()) => {}
                                Err(full @ SendError::Full { .. }) => {
                                    let back = full.into_envelope();
                                    kernel.send_blocking(back, None).unwrap();
                                }
                                Err(error) => panic!("{error}"),
                            },
                        }
                    }
                });
            }
        });
        let mut next: HashMap<u64, u64> = HashMap::new();
        for number in seen.iter().take((SENDERS * EACH) as usize) {
            let next = next.entry(number >> 32).or_default();
            assert_eq!(number & 0xFFFF_FFFF, *next, "the next of its sender");
            *next += 1;
        }
        quiet(&kernel);
        auditor.end();
        assert_eq!(seen.try_recv().ok(), None, "nothing comes twice");
        let books = kernel.books();
        assert_eq!((books.accepted, books.processed), (SENDERS * EACH, SENDERS * EACH));
    }
}

pub fn a_mailbox_holds_exactly_its_capacity(stage: &Stage) {
    for capacity in [1, 2, 3, 64, 100] {
        let gated = Gated::busy(stage.kernel(&format!("holds {capacity}")).capacity(capacity));
        for number in 1..=capacity as u64 {
            gated.kernel.try_send(Number(number)).unwrap();
        }
        match gated.kernel.try_send(Number(99)) {
            Err(SendError::Full { envelope, capacity: told, .. }) => {
                assert_eq!((envelope.message, told), (Number(99), capacity));
            }
            other => panic!("one more than {capacity} was not refused as full: {other:?}"),
        }
        // The next one delivered makes room for exactly one.
        gated.gate.open(1);
        gated.arrives(1);
        gated.kernel.try_send(Number(capacity as u64 + 1)).unwrap();
        assert!(gated.kernel.try_send(Number(99)).is_err());
        let delivered = gated.release(capacity);
        assert_eq!(delivered, (2..=capacity as u64 + 1).collect::<Vec<_>>());
        quiet(&gated.kernel);
        assert_eq!(gated.kernel.telemetry().high_water, capacity);
    }
}

pub fn capacity_counts_all_bands_together(stage: &Stage) {
    let gated = Gated::busy(stage.kernel("bands").capacity(4));
    for (number, priority) in [(4, LOW), (3, NORMAL), (2, HIGH), (1, SYSTEM)] {
        gated.kernel.try_send(at(priority, number)).unwrap();
    }
    for priority in [SYSTEM, HIGH, NORMAL, LOW] {
        assert!(matches!(gated.kernel.try_send(at(priority, 9)), Err(SendError::Full { .. })));
    }
    assert_eq!(gated.release(4), [1, 2, 3, 4]);
    quiet(&gated.kernel);
}

pub fn a_more_urgent_band_goes_first_and_each_band_keeps_its_order(stage: &Stage) {
    let gated = Gated::busy(stage.kernel("urgent"));
    // Inside a band priorities do not matter: the edges of all bands, in turn.
    let edges =
        [(0, 0), (64, 64), (160, 160), (224, 224), (63, 1), (159, 65), (223, 161), (255, 225)];
    for (priority, number) in edges {
        gated.kernel.try_send(at(priority, number)).unwrap();
    }
    assert_eq!(gated.release(8), [224, 225, 160, 161, 64, 65, 0, 1]);
    // A more urgent one overtakes what is queued, also while the kernel is reading it.
    let gated = Gated::busy(stage.kernel("overtakes"));
    for number in 1..=20 {
        gated.kernel.try_send(at(NORMAL, number)).unwrap();
    }
    gated.gate.open(2);
    gated.arrives(1);
    gated.arrives(2);
    gated.kernel.try_send(at(HIGH, 100)).unwrap();
    let expected: Vec<u64> = std::iter::once(100).chain(3..=20).collect();
    assert_eq!(gated.release(19), expected);
    quiet(&gated.kernel);
}

pub fn with_exact_priorities_the_more_urgent_goes_first_inside_a_band_too(stage: &Stage) {
    let gated = Gated::busy(stage.kernel("exact").exact_priority(true));
    for (priority, number) in
        [(100, 1), (130, 2), (70, 3), (255, 4), (0, 5), (130, 6), (129, 7), (254, 8), (1, 9)]
    {
        gated.kernel.try_send(at(priority, number)).unwrap();
    }
    gated.gate.open(2);
    gated.arrives(4);
    gated.arrives(8);
    // It overtakes what is queued, also while the kernel is reading it.
    gated.kernel.try_send(at(255, 10)).unwrap();
    assert_eq!(gated.release(8), [10, 2, 6, 7, 1, 3, 9, 5]);
    quiet(&gated.kernel);
}

#[derive(Message)]
#[message(priority = 230)]
struct Urgent {
    number: u64,
}

crate::portable!(Urgent { number });

async fn tells_urgent(
    mut context: Context<Urgent, Number>,
    tell: Tell<u64>,
) -> Result<(), BoxError> {
    while let Ok(urgent) = context.receive().await {
        tell.send(urgent.number)?;
    }
    Ok(())
}

pub fn a_message_has_the_priority_of_its_type_unless_it_is_sent_with_another(stage: &Stage) {
    let (tell, seen) = channel();
    let kernel = launch_with(stage.kernel("types"), tells_urgent, tell);
    kernel.deactivate().unwrap();
    kernel.try_send(Envelope::new(Urgent { number: 2 }).with_priority(HIGH)).unwrap();
    kernel.try_send(Urgent { number: 1 }).unwrap();
    kernel.reactivate().unwrap();
    assert_eq!(seen.iter().take(2).collect::<Vec<_>>(), [1, 2]);
    quiet(&kernel);
}

pub fn capacity_is_a_limit_and_not_a_reservation(stage: &Stage) {
    let kernel = launch(stage.kernel("roomy").capacity(CAPACITY_MAX), echo);
    let idle = kernel.mailbox_bytes();
    assert!(idle < 4096, "an idle kernel's mailboxes take {idle} bytes");
    let mut grown = Vec::new();
    for _ in 0..8 {
        kernel.deactivate().unwrap();
        for number in 0..500 {
            kernel.try_send(Number(number)).unwrap();
        }
        kernel.reactivate().unwrap();
        for _ in 0..500 {
            kernel.receive_blocking(None).unwrap();
        }
        quiet(&kernel);
        grown.push(kernel.mailbox_bytes());
    }
    assert!(grown[0] > idle);
    // How deep the output gets depends on its reader: at most 500 replies, in at most as many slots
    // again, whatever the number of rounds.
    let limit = 3 * 1024 * (size_of::<Envelope<Number>>() + 32);
    assert!(grown[7] < limit, "it is kept, and used again: {grown:?}");
}

pub fn a_waiting_lower_band_gets_one_after_256_in_a_row_from_higher_ones(stage: &Stage) {
    let gated = Gated::busy(stage.kernel("fair").capacity(1024));
    for number in 0..600 {
        gated.kernel.try_send(at(HIGH, 1000 + number)).unwrap();
    }
    for number in [1, 2] {
        gated.kernel.try_send(at(LOW, number)).unwrap();
    }
    let delivered = gated.release(602);
    let turns: Vec<usize> = (0..602).filter(|&position| delivered[position] < 1000).collect();
    assert_eq!(turns, [256, 513], "the turns of the lower band");
    assert_eq!((delivered[256], delivered[513]), (1, 2));
    quiet(&gated.kernel);
}

pub fn blocked_senders_are_admitted_by_band_and_then_in_order(stage: &Stage) {
    let gated = Gated::busy(stage.kernel("line").capacity(1));
    gated.kernel.try_send(at(NORMAL, 1)).unwrap();
    let line = [(LOW, 6), (NORMAL, 4), (HIGH, 3), (NORMAL, 5), (SYSTEM, 2), (LOW, 7)];
    let senders: Vec<_> = line
        .map(|(priority, number)| {
            let kernel = gated.kernel.clone();
            Waiter::start(async move { kernel.send(at(priority, number)).await })
        })
        .into();
    let newcomer = gated.kernel.try_send(at(SYSTEM, 99));
    assert!(matches!(newcomer, Err(SendError::Full { .. })), "nobody overtakes those who wait");
    assert_eq!(gated.release(7), [1, 2, 3, 4, 5, 6, 7]);
    for sender in senders {
        sender.join().unwrap();
    }
    quiet(&gated.kernel);
    assert_eq!(gated.kernel.books().accepted, 8);
}

pub fn a_cancelled_send_sends_nothing_and_holds_nobody_up(stage: &Stage) {
    let gated = Gated::busy(stage.kernel("cancelled").capacity(1));
    gated.kernel.try_send(Number(1)).unwrap();
    let mut given_up = Box::pin(gated.kernel.send(Number(99)));
    assert!(poll_once(&mut given_up).is_pending());
    let kernel = gated.kernel.clone();
    let behind = Waiter::start(async move { kernel.send(Number(2)).await });
    drop(given_up);
    // A send that was admitted while nobody looked has been sent, also if it is dropped then.
    let mut admitted = Box::pin(gated.kernel.send(Number(3)));
    assert!(poll_once(&mut admitted).is_pending());
    gated.gate.open(2);
    gated.arrives(1);
    gated.arrives(2);
    drop(admitted);
    behind.join().unwrap();
    assert_eq!(gated.release(1), [3]);
    quiet(&gated.kernel);
    assert_eq!(gated.kernel.books().accepted, 4);
}

pub fn a_send_that_times_out_gives_its_message_back(stage: &Stage) {
    let gated = Gated::busy(stage.kernel("times out").capacity(1));
    gated.kernel.try_send(Number(1)).unwrap();
    let brief = Duration::from_millis(5);
    let envelope = at(HIGH, 2);
    let id = envelope.id;
    let outcomes = [
        block_on(gated.kernel.send_timeout(envelope, brief)),
        gated.kernel.send_blocking(at(HIGH, 2).with_id(id), Some(brief)),
        gated.kernel.send_blocking(at(HIGH, 2).with_id(id), Some(Duration::ZERO)),
        gated.kernel.address().send_blocking(at(HIGH, 2).with_id(id), Some(brief)),
    ];
    for outcome in outcomes {
        let Err(SendError::Timeout { envelope, .. }) = outcome else { panic!("{outcome:?}") };
        assert_eq!((envelope.message, envelope.id, envelope.priority), (Number(2), id, HIGH));
    }
    assert_eq!(gated.release(1), [1]);
    quiet(&gated.kernel);
    assert_eq!(gated.kernel.books().accepted, 2);
}

pub fn a_batch_is_sent_in_order_and_what_finds_no_room_is_left(stage: &Stage) {
    let batch = |numbers: std::ops::Range<u64>| -> VecDeque<Envelope<Number>> {
        numbers.map(|number| Number(number).into()).collect()
    };
    let left = |batch: &VecDeque<Envelope<Number>>| -> Vec<u64> {
        batch.iter().map(|envelope| envelope.message.0).collect()
    };
    let gated = Gated::busy(stage.kernel("batch").capacity(4));
    let mut messages = batch(1..7);
    messages[5].priority = HIGH;
    assert_eq!(gated.kernel.try_send_batch(&mut messages).unwrap(), 4);
    assert_eq!(left(&messages), [5, 6]);
    let brief = Some(Duration::from_millis(5));
    let refused = gated.kernel.send_batch_blocking(&mut messages, brief).unwrap_err();
    assert!(matches!(refused, SendError::Timeout { .. }), "{refused}");
    assert_eq!((refused.into_inner().0, left(&messages)), (5, vec![6]));
    // A cancelled batch leaves what was not accepted.
    let mut cancelled = batch(7..9);
    assert!(poll_once(&mut Box::pin(gated.kernel.send_batch(&mut cancelled))).is_pending());
    assert_eq!(left(&cancelled), [7, 8]);
    // One that waits goes on as room is made, in order.
    let kernel = gated.kernel.clone();
    let sender = Waiter::start(async move {
        let mut messages = batch(10..40);
        kernel.send_batch(&mut messages).await.unwrap();
        messages.len()
    });
    let expected: Vec<u64> = (1..5).chain(10..40).collect();
    assert_eq!(gated.release(expected.len()), expected);
    assert_eq!(sender.join(), 0);
    gated.kernel.terminate_blocking(Terminate::drain());
    let mut late = batch(0..2);
    let refused = gated.kernel.try_send_batch(&mut late).unwrap_err();
    assert!(matches!(refused, SendError::Stopped { .. }), "{refused}");
    assert_eq!((refused.into_inner().0, left(&late)), (0, vec![1]));
    balanced(&gated.kernel);

    for (policy, left_over, accepted) in [
        (Backpressure::Reject, vec![3, 4], 3),
        (Backpressure::DropNewest, vec![], 5),
        (Backpressure::DropOldest, vec![], 5),
    ] {
        let builder = stage.kernel(&format!("{policy:?}")).capacity(2).backpressure(policy);
        let gated = Gated::busy(builder);
        let mut messages = batch(1..5);
        let sent = gated.kernel.try_send_batch(&mut messages).unwrap() as u64;
        assert_eq!((left(&messages), sent + 1), (left_over, accepted), "{policy:?}");
        let books = gated.kernel.books();
        let dropped = books.dropped_oldest + books.dropped_newest;
        assert_eq!((books.accepted, books.queued, dropped), (accepted, 2, accepted - 3));
        assert_eq!(books.rejected, if policy == Backpressure::Reject { 2 } else { 0 });
        gated.release(2);
        quiet(&gated.kernel);
    }
}

pub fn a_batch_receive_takes_what_is_there(stage: &Stage) {
    let kernel = launch(stage.kernel("batch"), echo);
    for number in 0..10 {
        kernel.try_send(Number(number)).unwrap();
    }
    quiet(&kernel);
    let mut batch = Vec::new();
    assert_eq!(block_on(kernel.receive_batch(4, &mut batch)).unwrap(), 4);
    assert_eq!(kernel.try_receive_batch(1, &mut batch).unwrap(), 1);
    assert_eq!(kernel.receive_batch_blocking(100, &mut batch, None).unwrap(), 5);
    let numbers: Vec<u64> = batch.iter().map(|reply| reply.message.0).collect();
    assert_eq!(numbers, (0..10).collect::<Vec<_>>(), "in order, appended");
    let brief = Some(Duration::from_millis(5));
    let nothing = kernel.receive_batch_blocking(4, &mut batch, brief);
    assert!(matches!(nothing, Err(ReceiveError::Timeout { .. })));
    let nothing = kernel.try_receive_batch(4, &mut batch);
    assert!(matches!(nothing, Err(ReceiveError::Empty { .. })));
    assert_eq!(batch.len(), 10);
    // It waits for the first.
    let waiting = kernel.clone();
    let waiter = Waiter::start(async move {
        let mut batch = Vec::new();
        waiting.receive_batch(4, &mut batch).await.map(|count| (count, batch[0].message))
    });
    kernel.try_send(Number(7)).unwrap();
    assert_eq!(waiter.join().unwrap(), (1, Number(7)));
    balanced(&kernel);
}

pub fn a_cancelled_receive_loses_no_reply_and_no_wake_up(stage: &Stage) {
    let kernel = launch(stage.kernel("cancelled"), echo);
    let mut first = Box::pin(kernel.receive());
    assert!(poll_once(&mut first).is_pending());
    let other = kernel.clone();
    let second = Waiter::start(async move { other.receive().await });
    // The reply's notification goes to the first in line, who has gone.
    kernel.try_send(Number(1)).unwrap();
    quiet(&kernel);
    drop(first);
    assert_eq!(second.join().unwrap().message, Number(1));
    // A timed receive that gave up has taken nothing.
    let brief = Duration::from_millis(5);
    let outcomes = [
        block_on(kernel.receive_timeout(brief)),
        kernel.receive_blocking(Some(brief)),
        kernel.receive_blocking(Some(Duration::ZERO)),
    ];
    for outcome in outcomes {
        assert!(matches!(outcome, Err(ReceiveError::Timeout { .. })), "{outcome:?}");
    }
    assert!(matches!(kernel.try_receive(), Err(ReceiveError::Empty { .. })));
    kernel.try_send(Number(2)).unwrap();
    assert_eq!(kernel.receive_blocking(None).unwrap().message, Number(2));
    quiet(&kernel);
    assert_eq!(kernel.reply_books().processed, 2);
}

/// How many messages wait for a kernel that does not.
const COUNT: u64 = 1000;

async fn never_waits(
    mut context: Context<Number, Number>,
    (tell, gate): (Tell<Option<u64>>, Gate),
) -> Result<(), BoxError> {
    gate.pass().await;
    for _ in 0..COUNT {
        let outcome = context.receive_timeout(Duration::ZERO).await;
        tell.send(outcome.map(|number| number.0).ok())?;
    }
    Ok(())
}

pub fn a_timed_receive_does_not_time_out_while_a_message_waits(stage: &Stage) {
    let (tell, seen) = channel();
    let gate = Gate::default();
    let kernel: KernelRef<Number, Number> =
        launch_with(stage.kernel("patient"), never_waits, (tell, gate));
    for number in 0..COUNT {
        kernel.try_send(Number(number)).unwrap();
    }
    gate.open(1);
    for number in 0..COUNT {
        assert_eq!(seen.recv(), Ok(Some(number)), "received, or timed out");
    }
    balanced(&kernel);
}

async fn blocks(mut context: Context<Number, Number>) -> Result<(), BoxError> {
    let brief = Some(Duration::from_millis(1));
    loop {
        match context.receive_blocking(brief) {
            Ok(&number) => context.reply_blocking(number)?,
            Err(ReceiveError::Timeout { .. }) => {}
            Err(_stopped) => return Ok(()),
        }
    }
}

pub fn a_body_may_receive_on_its_thread(stage: &Stage) {
    let kernel = launch(stage.kernel("blocks"), blocks);
    for number in 0..300 {
        kernel.send_blocking(Number(number), None).unwrap();
        let reply = kernel.receive_blocking(None).unwrap();
        assert_eq!(reply.message, Number(number));
    }
    assert_eq!(kernel.ask_blocking(Number(7), None).unwrap().message, Number(7));
    quiet(&kernel);
}

/// A ring of kernels that know each other by name only, and pass a number on, counting it down.
pub fn kernels_send_to_each_other_by_address(stage: &Stage) {
    const KERNELS: usize = 8;
    const HOPS: u64 = 200;
    let ring: Vec<KernelRef<Number, Number>> = (0..KERNELS)
        .map(|index| {
            let next = format!("ring {}", (index + 1) % KERNELS);
            launch_closure(stage.kernel(&format!("ring {index}")), move |mut context| {
                let next = next.clone();
                async move {
                    while let Ok(&Number(left)) = context.receive().await {
                        match left {
                            0 => context.reply(Number(HOPS)).await?,
                            _ => {
                                let next = context.address_of::<Number>(&next)?;
                                next.send(Number(left - 1)).await?;
                            }
                        }
                    }
                    Ok(())
                }
            })
        })
        .collect();
    ring[0].try_send(Number(HOPS)).unwrap();
    let last = &ring[HOPS as usize % KERNELS];
    assert_eq!(last.receive_blocking(None).unwrap().message, Number(HOPS));
    ring.iter().for_each(quiet);
    let processed: u64 = ring.iter().map(|kernel| kernel.books().processed).sum();
    assert_eq!(processed, HOPS + 1);
}

/// A handler sends on to a kernel that it knows by name.
pub fn a_handler_sends_to_other_kernels_by_name(stage: &Stage) {
    struct SendsOn(String);

    impl Handler for SendsOn {
        type In = Number;
        type Out = Number;

        fn handle(
            &mut self,
            &Number(number): &Number,
            context: &mut HandlerContext<Number>,
        ) -> Result<Option<Number>, BoxError> {
            context.address_of::<Number>(&self.0)?.try_send(Number(number + 1))?;
            Ok(None)
        }
    }

    let next = launch(stage.kernel("next"), echo);
    let launch = |name: &str, next: &'static str| {
        let part = stage.kernel(name);
        let kernel = part.launch_handler(move || SendsOn(next.into())).unwrap();
        kernel.activate().unwrap();
        kernel
    };
    let sends_on = launch("sends on", "next");
    sends_on.try_send(Number(1)).unwrap();
    assert_eq!(next.receive_blocking(None).unwrap().message, Number(2));
    quiet(&sends_on);
    let lost = launch("lost", "nobody");
    lost.try_send(Number(1)).unwrap();
    let fault = block_on(lost.ended()).unwrap_err();
    assert!(fault.message().contains("nobody"), "{fault}");
}

/// An address takes batches as the kernel's own handle does.
pub fn an_address_takes_batches(stage: &Stage) {
    let gated = Gated::busy(stage.kernel("batches").capacity(2));
    let address = gated.kernel.address();
    let mut messages: VecDeque<Envelope<Number>> = (1..=5).map(|n| Number(n).into()).collect();
    assert_eq!(address.try_send_batch(&mut messages).unwrap(), 2);
    let brief = Some(Duration::from_millis(5));
    let refused = address.send_batch_blocking(&mut messages, brief).unwrap_err();
    assert!(matches!(refused, SendError::Timeout { .. }), "{refused}");
    assert_eq!((refused.into_inner().0, messages.len()), (3, 2));
    let sender = Waiter::start(async move {
        address.send_batch(&mut messages).await.unwrap();
        messages.len()
    });
    assert_eq!(gated.release(4), [1, 2, 4, 5]);
    assert_eq!(sender.join(), 0);
    quiet(&gated.kernel);
}

async fn takes(
    mut context: Context<Number, Number>,
    (tell, gate): (Tell<(Option<u64>, bool)>, Gate),
) -> Result<(), BoxError> {
    while context.receive().await.is_ok() {
        let number = context.take().map(|number| number.0);
        tell.send((number, context.take().is_none()))?;
        gate.pass().await;
        context.reply(Number(number.unwrap_or(0))).await?;
    }
    Ok(())
}

pub fn a_message_taken_out_of_its_envelope_is_in_hand_until_the_next_receive(stage: &Stage) {
    let (tell, taken) = channel();
    let gate = Gate::default();
    let kernel: KernelRef<Number, Number> = launch_with(stage.kernel("takes"), takes, (tell, gate));
    let asker = kernel.clone();
    let ask = Waiter::start(async move { asker.ask(Number(5)).await });
    assert_eq!(taken.recv(), Ok((Some(5), true)));
    assert_eq!(kernel.books().in_hand, 1);
    gate.remove();
    assert_eq!(ask.join().unwrap().message, Number(5), "the reply still finds its ask");
    quiet(&kernel);
}
