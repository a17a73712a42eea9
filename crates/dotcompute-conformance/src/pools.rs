//! Kernels of one kind behind one name.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use dotcompute::{
    AskError, BoxError, ConnectError, Context, DeadLetterReason, KernelRef, KernelState,
    LaunchError, LookupError, Message, Pool, ReceiveError, Restart, RestartPolicy, SendError,
    Terminate, Termination,
};

#[cfg(target_os = "linux")]
use crate::roles::Roles;
use crate::signals::{Tell, channel};
use crate::stage::{Gate, Number, Stage, echo, eventually, launch, launch_with, quiet};

#[cfg(target_os = "linux")]
pub(crate) fn roles(roles: Roles) -> Roles {
    roles
        .body_with(echoes_but_zero_when_let)
        .body(superstitious)
        .body(fails_first_at_sevens)
        .body_with(tells_and_adds)
        .body(passes_on)
        .body(works)
        .body(tells_the_place)
        .body_with(echoes_when_let)
        .body(takes_orders)
}

type Numbers = Pool<Number, Number>;

/// A pool on the executor under test whose workers reply with the number of theirs.
fn pool(stage: &Stage, workers: usize) -> Numbers {
    let pool = stage.kernel("pool").pool(workers).launch(echo).unwrap();
    pool.activate().unwrap();
    pool
}

fn receive(pool: &Numbers, count: usize) -> Vec<u64> {
    let mut all: Vec<_> =
        (0..count).map(|_| pool.receive_blocking(None).unwrap().message.0).collect();
    all.sort_unstable();
    all
}

fn accepted(pool: &Numbers) -> Vec<u64> {
    pool.workers().iter().map(|worker| worker.books().accepted).collect()
}

pub fn a_pool_takes_turns_and_its_replies_come_out_in_one_place(stage: &Stage) {
    let pool = pool(stage, 3);
    for number in 0..30 {
        pool.send_blocking(Number(number), None).unwrap();
        assert_eq!(receive(&pool, 1), [number], "one at a time, so no mailbox is full");
    }
    assert_eq!(accepted(&pool), [10, 10, 10]);
    pool.workers().iter().for_each(quiet);
    let (books, replies) = (pool.books(), pool.reply_books());
    assert!(books.balance() && replies.balance());
    assert_eq!((books.accepted, books.processed), (30, 30));
    assert_eq!((replies.accepted, replies.processed), (30, 30));
    let names: Vec<_> = pool.workers().iter().map(|worker| worker.id().to_string()).collect();
    assert_eq!(names, ["pool/0", "pool/1", "pool/2"]);
    assert_eq!(stage.runtime.pool::<Number, Number>("pool").unwrap().id(), pool.id());
}

async fn echoes_but_zero_when_let(
    mut context: Context<Number, Number>,
    gate: Gate,
) -> Result<(), BoxError> {
    while let Ok(&number) = context.receive().await {
        if number.0 == 0 {
            gate.pass().await;
        }
        context.reply(number).await?;
    }
    Ok(())
}

pub fn a_worker_without_room_is_passed_over_while_another_has_room(stage: &Stage) {
    let gate = Gate::default();
    let pool = stage.kernel("pool").capacity(1).pool(2).launch_with(echoes_but_zero_when_let, gate);
    let pool = pool.unwrap();
    pool.activate().unwrap();
    // One in hand and one queued with the first worker; all others go to the second.
    let [first, second] = pool.workers() else { unreachable!("two workers") };
    first.send_blocking(Number(0), None).unwrap();
    eventually(|| first.books().in_hand == 1);
    first.send_blocking(Number(1), None).unwrap();
    for number in 2..10 {
        pool.send_blocking(Number(number), None).unwrap();
        assert_eq!(receive(&pool, 1), [number]);
    }
    assert_eq!((first.books().accepted, second.books().accepted), (2, 8));
    gate.remove();
    assert_eq!(receive(&pool, 2), [0, 1]);
}

/// What belongs to a customer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Order {
    customer: u64,
    place: u64,
}

impl Message for Order {
    const TYPE_NAME: &'static str = "Order";
}

crate::portable!(Order { customer, place });

pub fn a_key_goes_to_one_worker_and_its_messages_keep_their_order(stage: &Stage) {
    const CUSTOMERS: u64 = 40;
    const EACH: u64 = 50;
    let pool = workers(stage, 4, 4).by_key(|order: &Order| order.customer);
    pool.activate().unwrap();
    let worked = std::thread::scope(|scope| {
        // Each customer's orders come from one thread.
        for half in 0..2 {
            let pool = &pool;
            scope.spawn(move || {
                for place in 0..EACH {
                    for customer in (half..CUSTOMERS).step_by(2) {
                        pool.send_blocking(Order { customer, place }, None).unwrap();
                    }
                }
            });
        }
        let next = || pool.receive_blocking(None).unwrap().message;
        (0..CUSTOMERS * EACH).map(|_| next()).collect::<Vec<_>>()
    });
    in_order(&worked, CUSTOMERS, EACH);
    let spread: BTreeSet<_> = worked.iter().map(|worked| worked.worker).collect();
    assert_eq!(spread.len(), 4, "the keys are spread over the workers");
}

pub fn a_pool_is_asked_as_one_kernel(stage: &Stage) {
    let pool = pool(stage, 3);
    std::thread::scope(|scope| {
        for asker in 0..4 {
            let pool = &pool;
            scope.spawn(move || {
                for number in asker * 50..(asker + 1) * 50 {
                    let reply = pool.ask_blocking(Number(number), None).unwrap();
                    assert_eq!(reply.message.0, number);
                }
            });
        }
    });
    assert!(accepted(&pool).iter().all(|&accepted| accepted > 0));
    assert_eq!(pool.reply_books().accepted, 0);
    assert!(matches!(pool.try_receive(), Err(ReceiveError::Empty { .. })));
}

/// Fails at the number 13.
async fn superstitious(mut context: Context<Number, Number>) -> Result<(), BoxError> {
    while let Ok(&number) = context.receive().await {
        if number.0 == 13 {
            return Err("not this one".into());
        }
        context.reply(number).await?;
    }
    Ok(())
}

pub fn a_worker_that_failed_is_passed_over_and_the_pool_goes_on(stage: &Stage) {
    let pool = stage.kernel("pool").pool(3).launch(superstitious).unwrap();
    pool.activate().unwrap();
    let error = pool.ask_blocking(Number(13), None).unwrap_err();
    assert!(matches!(&error, AskError::Failed { .. }), "{error}");
    eventually(|| pool.workers().iter().any(|w| w.state() == KernelState::Failed));
    for number in 20..50 {
        pool.send_blocking(Number(number), None).unwrap();
    }
    assert_eq!(receive(&pool, 30), (20..50).collect::<Vec<_>>());
    // When the last one has failed, whoever waits is told.
    for _ in 0..2 {
        pool.send_blocking(Number(13), None).unwrap();
        eventually(|| pool.books().in_hand + pool.books().queued == 0);
    }
    let error = pool.receive_blocking(None).unwrap_err();
    assert!(matches!(&error, ReceiveError::Failed { .. }), "{error}");
    let error = pool.send_blocking(Number(1), None).unwrap_err();
    assert!(matches!(&error, SendError::Failed { .. }), "{error}");
}

pub fn a_key_whose_worker_failed_is_refused_and_all_others_go_on(stage: &Stage) {
    let pool = stage.kernel("pool").pool(3).launch(superstitious).unwrap();
    let pool = pool.by_key(|&Number(number)| number);
    pool.activate().unwrap();
    assert!(pool.ask_blocking(Number(13), None).is_err());
    let failed = |worker: &&KernelRef<Number, Number>| worker.state() == KernelState::Failed;
    eventually(|| pool.workers().iter().any(|worker| failed(&worker)));
    let mut refused = 0;
    for number in 100..200 {
        match pool.ask_blocking(Number(number), None) {
            Ok(reply) => assert_eq!(reply.message.0, number),
            Err(AskError::NotSent(SendError::Failed { kernel, .. })) => {
                let worker = pool.workers().iter().find(failed).unwrap();
                assert_eq!(kernel, *worker.id());
                refused += 1;
            }
            Err(error) => panic!("{error}"),
        }
    }
    assert!((1..100).contains(&refused), "{refused} of 100 keys");
}

async fn fails_first_at_sevens(mut context: Context<Number, Number>) -> Result<(), BoxError> {
    while let Ok(&number) = context.receive().await {
        let again = context.envelope().is_some_and(|envelope| envelope.delivery_count() > 1);
        if number.0 % 7 == 0 && !again {
            return Err("again".into());
        }
        context.reply(number).await?;
    }
    Ok(())
}

pub fn a_worker_that_restarts_keeps_its_messages_and_their_order(stage: &Stage) {
    let restart = Restart {
        policy: RestartPolicy::OnFault,
        max_restarts: u32::MAX,
        backoff: Duration::from_micros(100),
        backoff_max: Duration::from_millis(1),
        redeliver: true,
        ..Restart::default()
    };
    let pool = stage.kernel("pool").restart(restart).pool(2).launch(fails_first_at_sevens).unwrap();
    let pool = pool.by_key(|&Number(number)| number % 2);
    pool.activate().unwrap();
    for number in 1..100 {
        pool.send_blocking(Number(number), None).unwrap();
    }
    let mut last = [0; 2];
    for _ in 1..100 {
        let Number(number) = pool.receive_blocking(None).unwrap().message;
        let last = &mut last[(number % 2) as usize];
        assert!(number > *last, "{number} after {last}");
        *last = number;
    }
}

pub fn a_pool_ends_as_one_and_frees_its_names(stage: &Stage) {
    let pool = pool(stage, 3);
    for number in 0..100 {
        pool.try_send(Number(number)).unwrap();
    }
    let taken = stage.kernel("pool").launch(echo).unwrap_err();
    assert!(matches!(taken, LaunchError::AlreadyExists { .. }), "{taken}");
    assert_eq!(pool.terminate_blocking(Terminate::drain()), [Termination::Clean; 3]);
    assert_eq!(pool.books().processed, 100);
    assert!(matches!(pool.receive_blocking(None), Err(ReceiveError::Stopped { .. })));
    assert!(matches!(pool.try_send(Number(1)), Err(SendError::Stopped { .. })));
    assert_eq!(stage.runtime.take_dead_letters(|_| true).len(), 100, "nobody had read them");
    let gone = stage.runtime.pool::<Number, Number>("pool").unwrap_err();
    assert!(matches!(gone, LookupError::NotFound { .. }), "{gone}");
    launch(stage.kernel("pool"), echo);
    let none = stage.kernel("none").pool(0).launch(echo).unwrap_err();
    assert!(matches!(none, LaunchError::InvalidOption { .. }), "{none}");
}

async fn tells_and_adds(
    mut context: Context<Number, Number>,
    tell: Tell<u64>,
) -> Result<(), BoxError> {
    while let Ok(&Number(number)) = context.receive().await {
        tell.send(number)?;
        context.reply(Number(number + 1000)).await?;
    }
    Ok(())
}

pub fn the_replies_of_a_pool_go_to_the_kernel_that_it_is_connected_to(stage: &Stage) {
    let pool = pool(stage, 3);
    for number in 0..10 {
        pool.try_send(Number(number)).unwrap();
    }
    eventually(|| pool.reply_books().queued == 10);
    let (tell, seen) = channel();
    let next = launch_with(stage.kernel("next"), tells_and_adds, tell);
    pool.connect(&next).unwrap();
    assert!(matches!(pool.try_receive(), Err(ReceiveError::Connected { .. })));
    for number in 10..40 {
        pool.send_blocking(Number(number), None).unwrap();
    }
    let mut all: Vec<_> = seen.iter().take(40).collect();
    all.sort_unstable();
    assert_eq!(all, (0..40).collect::<Vec<_>>());
    assert_eq!(pool.ask_blocking(Number(7), None).unwrap().message.0, 1007);
    let refused = pool.connect(&next).unwrap_err();
    assert!(matches!(refused, ConnectError::AlreadyConnected { .. }), "{refused}");
    pool.workers().iter().for_each(quiet);
    let replies = pool.reply_books();
    assert_eq!((replies.accepted, replies.forwarded), (41, 41), "that of the ask too");
    assert!(pool.disconnect());
    pool.send_blocking(Number(3), None).unwrap();
    assert_eq!(receive(&pool, 1), [3]);
}

async fn passes_on(mut context: Context<Order, Order>) -> Result<(), BoxError> {
    while let Ok(&order) = context.receive().await {
        context.reply(order).await?;
    }
    Ok(())
}

/// A kernel that passes on what it gets.
fn source(stage: &Stage) -> KernelRef<Order, Order> {
    launch(stage.kernel("source"), passes_on)
}

/// Workers that reply with their number and the order.
fn workers(stage: &Stage, workers: usize, capacity: usize) -> Pool<Order, Worked> {
    stage.kernel("pool").capacity(capacity).pool(workers).launch(works).unwrap()
}

async fn works(mut context: Context<Order, Worked>) -> Result<(), BoxError> {
    let name = context.id().to_string();
    let worker = name.chars().last().and_then(|digit| digit.to_digit(10)).unwrap_or(99);
    while let Ok(&order) = context.receive().await {
        context.reply(Worked { worker, order }).await?;
    }
    Ok(())
}

/// An order, and which worker had it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Worked {
    worker: u32,
    order: Order,
}

impl Message for Worked {
    const TYPE_NAME: &'static str = "Worked";
}

crate::portable!(Worked { worker, order });

/// Each customer's orders came from one worker, in order.
fn in_order(worked: &[Worked], customers: u64, each: u64) {
    let mut seen: HashMap<u64, (u32, u64)> = HashMap::new();
    for Worked { worker, order } in worked {
        let known = seen.entry(order.customer).or_insert((*worker, 0));
        assert_eq!(*known, (*worker, order.place), "of customer {}", order.customer);
        known.1 += 1;
    }
    assert_eq!(seen.len() as u64, customers);
    assert!(seen.values().all(|(_, orders)| *orders == each), "all of them");
}

pub fn a_kernel_connected_to_a_pool_keeps_each_key_with_one_worker_in_order(stage: &Stage) {
    const CUSTOMERS: u64 = 20;
    const EACH: u64 = 30;
    let orders = |places: std::ops::Range<u64>| {
        places.flat_map(|place| (0..CUSTOMERS).map(move |customer| Order { customer, place }))
    };
    let source = source(stage);
    // Some replies wait already, more than there is room for in the pool.
    for order in orders(0..10) {
        source.send_blocking(order, None).unwrap();
    }
    eventually(|| source.reply_books().queued == 10 * CUSTOMERS);
    let pool = workers(stage, 3, 8).by_key(|order: &Order| order.customer);
    let pipeline = source.connect(&pool).unwrap();
    assert_eq!(source.connected_to().unwrap().as_str(), "pool");
    let names: Vec<_> = pipeline.stages().iter().map(ToString::to_string).collect();
    assert_eq!(names, ["source", "pool"]);
    pool.activate().unwrap();
    let worked = std::thread::scope(|scope| {
        scope.spawn(|| {
            for order in orders(10..EACH) {
                pipeline.send_blocking(order, None).unwrap();
            }
        });
        let next = || pool.receive_blocking(None).unwrap().message;
        (0..CUSTOMERS * EACH).map(|_| next()).collect::<Vec<_>>()
    });
    in_order(&worked, CUSTOMERS, EACH);
    quiet(&source);
    pool.workers().iter().for_each(quiet);
    assert_eq!(source.reply_books().forwarded, CUSTOMERS * EACH);
    assert_eq!(pool.books().processed, CUSTOMERS * EACH);
    assert!(pool.workers().iter().all(|worker| worker.books().accepted > 0), "keys are spread");
}

async fn tells_the_place(mut context: Context<Worked, Number>) -> Result<(), BoxError> {
    while let Ok(&worked) = context.receive().await {
        context.reply(Number(worked.order.place)).await?;
    }
    Ok(())
}

pub fn an_ask_passes_through_a_pool_to_the_kernel_behind_it(stage: &Stage) {
    let source = source(stage);
    let pool = workers(stage, 3, 8);
    let place = launch(stage.kernel("place"), tells_the_place);
    let through_pool = source.connect(&pool).unwrap();
    pool.activate().unwrap();
    // Of a pool that ends the pipeline any worker answers.
    for place in 0..10 {
        let order = Order { customer: place, place };
        assert_eq!(through_pool.ask_blocking(order, None).unwrap().message.order, order);
    }
    let pipeline = through_pool.then(&place).unwrap();
    std::thread::scope(|scope| {
        for asker in 0..3 {
            let pipeline = &pipeline;
            scope.spawn(move || {
                for place in asker * 50..(asker + 1) * 50 {
                    let order = Order { customer: asker, place };
                    let reply = pipeline.ask_blocking(order, None).unwrap();
                    assert_eq!(reply.message.0, place);
                }
            });
        }
    });
    assert!(pool.workers().iter().all(|worker| worker.books().accepted > 10), "in turn");
    // Each stage works off what it has before the next one ends.
    for place in 0..30 {
        pipeline.send_blocking(Order { customer: 0, place }, None).unwrap();
    }
    let ended = pipeline.terminate_blocking(Terminate::drain());
    assert_eq!(ended, [Termination::Clean; 5]);
    assert_eq!(place.books().processed, 150 + 30);
    assert!([place.books(), pool.books(), source.books()].iter().all(|books| books.balance()));
}

async fn echoes_when_let(mut context: Context<Number, Number>, gate: Gate) -> Result<(), BoxError> {
    while let Ok(&number) = context.receive().await {
        gate.pass().await;
        context.reply(number).await?;
    }
    Ok(())
}

pub fn a_full_pool_pauses_the_kernel_that_is_connected_to_it(stage: &Stage) {
    let source = launch(stage.kernel("source").capacity(1), echo);
    let gate = Gate::default();
    let pool = stage.kernel("pool").capacity(1).pool(2).launch_with(echoes_when_let, gate);
    let pool = pool.unwrap();
    pool.activate().unwrap();
    source.connect(&pool).unwrap();
    // One in hand and one queued with each worker, one in the source's hand, one queued there.
    let send = |number| source.send_blocking(Number(number), None).unwrap();
    (0..2).for_each(send);
    eventually(|| pool.books().in_hand == 2);
    (2..4).for_each(send);
    eventually(|| pool.books().queued == 2);
    (4..6).for_each(send);
    eventually(|| source.books().in_hand == 1 && source.books().queued == 1);
    assert!(matches!(source.try_send(Number(6)), Err(SendError::Full { .. })));
    gate.remove();
    assert_eq!(receive(&pool, 6), [0, 1, 2, 3, 4, 5]);
    // A reply that waited for room is counted when it is there already.
    quiet(&source);
    assert_eq!(source.reply_books().forwarded, 6);
}

pub fn a_connected_kernel_passes_over_failed_workers_and_waits_for_a_failed_pool(stage: &Stage) {
    let source = launch(stage.kernel("source"), echo);
    let pool = stage.kernel("pool").pool(2).launch(superstitious).unwrap();
    pool.activate().unwrap();
    let pipeline = source.connect(&pool).unwrap();
    let error = pipeline.ask_blocking(Number(13), None).unwrap_err();
    assert!(matches!(&error, AskError::Failed { kernel, .. } if kernel.as_str() != "source"));
    eventually(|| pool.workers().iter().any(|w| w.state() == KernelState::Failed));
    for number in 20..40 {
        assert_eq!(pipeline.ask_blocking(Number(number), None).unwrap().message.0, number);
    }
    assert!(pipeline.ask_blocking(Number(13), None).is_err());
    eventually(|| pool.workers().iter().all(|w| w.state() == KernelState::Failed));
    // Nobody is left: an ask is refused, a reply waits, and comes out here when the pool has ended.
    let error = pipeline.ask_blocking(Number(1), None).unwrap_err();
    assert!(matches!(error, AskError::NotSent(SendError::Failed { .. })), "{error}");
    source.send_blocking(Number(2), None).unwrap();
    eventually(|| source.books().in_hand == 1);
    assert!(matches!(source.try_receive(), Err(ReceiveError::Connected { .. })));
    pool.terminate_blocking(Terminate::now());
    eventually(|| source.connected_to().is_none());
    assert_eq!(source.receive_blocking(None).unwrap().message.0, 2);
    assert!(stage.runtime.take_dead_letters(|letter| !letter.to_kernel).is_empty());
}

pub fn a_reply_whose_worker_failed_is_a_dead_letter_and_all_others_go_on(stage: &Stage) {
    let source = launch(stage.kernel("source"), echo);
    let pool = stage.kernel("pool").pool(3).launch(superstitious).unwrap();
    let pool = pool.by_key(|&Number(number)| number);
    pool.activate().unwrap();
    let pipeline = source.connect(&pool).unwrap();
    assert!(pipeline.ask_blocking(Number(13), None).is_err());
    let failed = |worker: &&KernelRef<Number, Number>| worker.state() == KernelState::Failed;
    eventually(|| pool.workers().iter().any(|worker| failed(&worker)));
    let mut refused = 0;
    for number in 100..200 {
        match pipeline.ask_blocking(Number(number), None) {
            Ok(reply) => assert_eq!(reply.message.0, number),
            Err(AskError::Failed { kernel, .. }) => {
                assert_eq!(kernel, *pool.workers().iter().find(failed).unwrap().id());
                refused += 1;
            }
            Err(error) => panic!("{error}"),
        }
    }
    assert!((1..100).contains(&refused), "{refused} of 100 keys");
    let dead = || stage.runtime.take_dead_letters(|letter| !letter.to_kernel);
    assert_eq!(dead().len(), refused);
    for number in 100..200 {
        source.send_blocking(Number(number), None).unwrap();
    }
    assert_eq!(receive(&pool, 100 - refused).len(), 100 - refused);
    quiet(&source);
    let dead = dead();
    assert!(dead.iter().all(|letter| matches!(letter.reason, DeadLetterReason::Unreachable)));
    assert_eq!(dead.len(), refused);
    assert_eq!(source.state(), KernelState::Active);
}

pub fn a_key_that_panics_fails_the_kernel_that_replies_and_its_ask(stage: &Stage) {
    let source = launch(stage.kernel("source"), echo);
    let pool = stage.kernel("pool").pool(2).launch(echo).unwrap();
    let pool = pool.by_key(|&Number(number)| {
        assert_ne!(number, 13, "no key");
        number
    });
    pool.activate().unwrap();
    let pipeline = source.connect(&pool).unwrap();
    assert_eq!(pipeline.ask_blocking(Number(1), None).unwrap().message.0, 1);
    let error = pipeline.ask_blocking(Number(13), None).unwrap_err();
    assert!(matches!(error, AskError::Dropped { .. } | AskError::Failed { .. }), "{error}");
    eventually(|| source.state() == KernelState::Failed);
    assert!(source.fault().unwrap().to_string().contains("no key"));
    assert_eq!(pool.ask_blocking(Number(2), None).unwrap().message.0, 2);
}

async fn takes_orders(_context: Context<Order, Order>) -> Result<(), BoxError> {
    Ok(())
}

/// Replies that wait already, and those that the workers make meanwhile, all in order.
pub fn a_pool_connected_to_a_pool_keeps_each_key_in_order(stage: &Stage) {
    const CUSTOMERS: u64 = 12;
    const EACH: u64 = 40;
    let first = stage.kernel("first").capacity(4).pool(3).launch(passes_on).unwrap();
    let first = first.by_key(|order: &Order| order.customer);
    first.activate().unwrap();
    let send = |places: std::ops::Range<u64>| {
        for place in places {
            for customer in 0..CUSTOMERS {
                first.send_blocking(Order { customer, place }, None).unwrap();
            }
        }
    };
    send(0..10);
    eventually(|| first.reply_books().queued == 10 * CUSTOMERS);
    let pool = workers(stage, 3, 8).by_key(|order: &Order| order.customer);
    pool.activate().unwrap();
    let worked = std::thread::scope(|scope| {
        scope.spawn(|| send(10..EACH));
        first.connect(&pool).unwrap();
        let next = || pool.receive_blocking(None).unwrap().message;
        (0..CUSTOMERS * EACH).map(|_| next()).collect::<Vec<_>>()
    });
    in_order(&worked, CUSTOMERS, EACH);
    first.workers().iter().for_each(quiet);
    let replies = first.reply_books();
    assert_eq!((replies.accepted, replies.forwarded), (CUSTOMERS * EACH, CUSTOMERS * EACH));
}

/// The others reply into the same output, which would be closed under their hands.
pub fn a_worker_is_not_connected_without_the_others(stage: &Stage) {
    let pool = pool(stage, 2);
    let next = launch(stage.kernel("next"), echo);
    for refused in [
        pool.workers()[0].connect(&next).map(drop).unwrap_err(),
        stage.runtime.connect("pool/1", "next").unwrap_err(),
    ] {
        assert!(matches!(refused, ConnectError::OfAPool { .. }), "{refused}");
    }
    for number in 0..4 {
        pool.send_blocking(Number(number), None).unwrap();
    }
    assert_eq!(receive(&pool, 4), [0, 1, 2, 3]);
}

pub fn a_cycle_through_a_pool_is_refused_unless_it_is_allowed(stage: &Stage) {
    let source = launch(stage.kernel("source"), echo);
    let pool = pool(stage, 2);
    source.connect(&pool).unwrap();
    let refused = pool.connect(&source).unwrap_err();
    let ConnectError::Cycle { path, .. } = &refused else { panic!("{refused}") };
    assert!(path.contains("'source'") && path.contains("'pool/"), "{path}");
    assert!(pool.workers().iter().all(|worker| worker.connected_to().is_none()), "all or none");
    let itself = pool.connect(&pool).unwrap_err();
    assert!(matches!(itself, ConnectError::Cycle { .. }), "{itself}");
    stage.runtime.connect_allowing_cycle("pool", "source").unwrap();
    assert!(stage.runtime.disconnect("pool").unwrap());
    // By their names, where the compiler does not look.
    let orders = stage.kernel("orders").launch(takes_orders).unwrap();
    let wrong = stage.runtime.connect("orders", "pool").unwrap_err();
    assert!(matches!(wrong, ConnectError::WrongType { .. }), "{wrong}");
    orders.terminate_blocking(Terminate::now());
}
