//! Hundreds of kernels on both executors, and everything that can happen to them, at once and in
//! any order; afterwards nothing is lost, nobody waits, and nothing is left running.
//!
//! What the drivers decide follows from a seed, which is printed; how their threads interleave does
//! not. `CHAOS_SEED` sets it, `CHAOS_SECONDS` how long they go on.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, its helpers too")]
#![allow(clippy::print_stdout, reason = "the seed and the tally of a test")]

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use dotcompute::mailbox::sync::lock;
use dotcompute::mailbox::wait::block_on;
use dotcompute::{
    AskError, Backpressure, BoxError, Context, Envelope, Handler, HandlerContext, KernelRef,
    MessageId, Restart, RestartPolicy, Runtime, SendError, Terminate,
};
use dotcompute_conformance::stage::{Token, balanced, eventually, poll_once, quiet, within};

const KERNELS: usize = 240;
const DRIVERS: u64 = 6;
const SECONDS: u64 = 6;

type Kernel = KernelRef<Token, Token>;

/// SplitMix64 (Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators", 2014).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u64) as usize]
    }

    fn millis(&mut self, limit: u64) -> Duration {
        Duration::from_millis(self.below(limit))
    }
}

/// What all share.
struct World {
    runtime: Runtime,
    tasks: tokio::runtime::Handle,
    /// The present kernel of each name.
    kernels: Vec<Mutex<Kernel>>,
    /// How many tokens, messages and replies alike, exist.
    alive: Arc<Mutex<i64>>,
    tally: Arc<Mutex<Tally>>,
    seed: u64,
}

/// What became of the sends, as the senders know it, and of the messages, as the books say.
#[derive(Debug, Default)]
struct Tally {
    /// Sends that were accepted.
    accepted: u64,
    /// Sends that were cancelled, and perhaps accepted.
    cancelled: u64,
    /// Of all kernels that have ended, by their books.
    booked: u64,
    dead_lettered: u64,
    forwarded: u64,
    connected: u64,
    ended: u64,
}

impl Tally {
    fn sent(&mut self, outcome: Result<(), SendError<Token>>) {
        match outcome {
            Ok(()) => self.accepted += 1,
            Err(error) => error.into_inner().armed = false,
        }
    }

    fn asked(&mut self, outcome: Result<Envelope<Token>, AskError<Token>>) {
        match outcome {
            Err(AskError::NotSent(error)) => error.into_inner().armed = false,
            _ => self.accepted += 1,
        }
    }
}

/// What a kernel does with a message follows from its number.
const REPLY_TWICE: u64 = 1;
const NO_REPLY: u64 = 2;
const TAKE: u64 = 3;
const TAKE_AND_FAIL: u64 = 4;
const FAIL: u64 = 5;
const PANIC: u64 = 6;
const RETURN: u64 = 7;
const GIVE_WAY: u64 = 8;
const HANG: u64 = 9;
const BLOCK: u64 = 10;
const FORWARD: u64 = 11;
const REPLY_NAMELESS: u64 = 12;
const REPLY_LATER: u64 = 13;
const DROP_PANICS: u64 = 14;
const CHOICES: u64 = 40;

fn block_briefly() {
    std::thread::park_timeout(Duration::from_micros(200));
}

struct Inside {
    alive: Arc<Mutex<i64>>,
    tally: Arc<Mutex<Tally>>,
}

async fn body(mut context: Context<Token, Token>, inside: Arc<Inside>) -> Result<(), BoxError> {
    let reply = |number| Token::new(number, &inside.alive);
    let mut later: Option<MessageId> = None;
    loop {
        let number = context.receive().await?.number;
        match number % CHOICES {
            REPLY_TWICE => {
                context.reply(reply(number)).await?;
                context.reply(reply(number)).await?;
            }
            NO_REPLY => {}
            TAKE => {
                let token = context.take();
                context.reply(reply(number)).await?;
                drop(token);
            }
            TAKE_AND_FAIL => {
                let _token = context.take();
                return Err("chaos: took it".into());
            }
            FAIL => return Err("chaos: failed".into()),
            PANIC => panic!("chaos: panicked"),
            RETURN => return Ok(()),
            GIVE_WAY => {
                for _ in 0..number % 7 {
                    tokio::task::yield_now().await;
                }
                context.reply(reply(number)).await?;
            }
            HANG => std::future::pending().await,
            BLOCK => block_briefly(),
            FORWARD => {
                let next = format!("chaos {}", number as usize % KERNELS);
                if let Ok(next) = context.address_of::<Token>(&next) {
                    let token = Token::new(number + 1, &inside.alive);
                    lock(&inside.tally).sent(next.try_send(token));
                }
            }
            REPLY_NAMELESS => context.send(reply(number)).await?,
            REPLY_LATER => later = context.envelope().map(|envelope| envelope.id),
            _ => {
                context.reply(reply(number)).await?;
                if let Some(id) = later.take() {
                    let late = Envelope::new(reply(number)).with_correlation(id);
                    context.send(late).await?;
                }
            }
        }
    }
}

struct Handles(Arc<Inside>);

impl Handler for Handles {
    type In = Token;
    type Out = Token;

    fn handle(
        &mut self,
        message: &Token,
        context: &mut HandlerContext<Token>,
    ) -> Result<Option<Token>, BoxError> {
        let reply = || Token::new(message.number, &self.0.alive);
        match message.number % CHOICES {
            REPLY_TWICE => context.emit(reply()),
            NO_REPLY => return Ok(None),
            FAIL => return Err("chaos: failed".into()),
            PANIC => panic!("chaos: panicked"),
            BLOCK => block_briefly(),
            _ => {}
        }
        Ok(Some(reply()))
    }
}

fn launch(
    runtime: &Runtime,
    index: usize,
    inside: &Arc<Inside>,
    random: &mut Random,
) -> Option<Kernel> {
    let policies = [
        Backpressure::Block,
        Backpressure::Reject,
        Backpressure::DropOldest,
        Backpressure::DropNewest,
    ];
    let restart = Restart {
        policy: random.pick(&[RestartPolicy::Never, RestartPolicy::OnFault, RestartPolicy::Always]),
        max_restarts: random.pick(&[1, 5, 1000]),
        backoff: random.millis(4),
        redeliver: random.below(2) == 0,
        ..Restart::default()
    };
    let builder = runtime
        .kernel(format!("chaos {index}"))
        .executor(if index.is_multiple_of(2) { "async" } else { "thread" })
        .capacity(random.pick(&[1, 2, 5, 64]))
        .backpressure(random.pick(&policies))
        .reply_capacity(random.pick(&[1, 3, 64]))
        .reply_backpressure(random.pick(&policies))
        .watchdog(random.pick(&[None, Some(Duration::from_millis(5))]))
        .restart(restart);
    let inside = Arc::clone(inside);
    let fails = random.below(20) == 0;
    let kernel = if random.below(3) == 0 {
        builder.launch_handler(move || {
            assert!(!fails, "chaos: no handler");
            Handles(Arc::clone(&inside))
        })
    } else {
        builder.launch(move |context| body(context, Arc::clone(&inside)))
    };
    // Another driver was quicker, or the runtime is shutting down.
    let kernel = kernel.ok()?;
    // Ended already, perhaps.
    let _ = kernel.activate();
    Some(kernel)
}

/// One random thing to one random kernel.
fn act(world: &World, inside: &Arc<Inside>, random: &mut Random) {
    let index = random.below(KERNELS as u64) as usize;
    let kernel = lock(&world.kernels[index]).clone();
    let number = random.next() >> 8;
    let priority = random.next() as u8;
    // Not armed where the driver itself may drop it.
    let message = |may_panic: bool| {
        let mut token = Token::new(number, &world.alive);
        token.armed = may_panic && number % CHOICES == DROP_PANICS;
        Envelope::new(token).with_priority(priority)
    };
    let tally = |f: &dyn Fn(&mut Tally)| f(&mut lock(&world.tally));
    match random.below(100) {
        0..15 => {
            let outcome = kernel.try_send(message(true));
            lock(&world.tally).sent(outcome);
        }
        15..22 => {
            let outcome = kernel.send_blocking(message(true), Some(random.millis(3)));
            lock(&world.tally).sent(outcome);
        }
        22..28 => {
            let limit = random.millis(3);
            let outcome = block_on(kernel.send_timeout(message(true), limit));
            lock(&world.tally).sent(outcome);
        }
        28..34 => {
            let mut send = Box::pin(kernel.send(message(false)));
            let ended = (0..random.below(3)).find_map(|_| match poll_once(&mut send) {
                std::task::Poll::Ready(outcome) => Some(outcome),
                std::task::Poll::Pending => None,
            });
            match ended {
                Some(outcome) => lock(&world.tally).sent(outcome),
                None => tally(&|tally| tally.cancelled += 1),
            }
        }
        34..44 => {
            let outcome = kernel.ask_blocking(message(true), Some(random.millis(5)));
            lock(&world.tally).asked(outcome);
        }
        44..50 => {
            let mut ask = Box::pin(kernel.ask(message(false)));
            let ended = (0..random.below(4)).find_map(|_| match poll_once(&mut ask) {
                std::task::Poll::Ready(outcome) => Some(outcome),
                std::task::Poll::Pending => None,
            });
            match ended {
                Some(outcome) => lock(&world.tally).asked(outcome),
                None => tally(&|tally| tally.cancelled += 1),
            }
        }
        // Those who wait without a limit: all of them return, at the latest with their kernel.
        50..56 => {
            let (tally, message) = (Arc::clone(&world.tally), message(true));
            world.tasks.spawn(async move {
                let outcome = kernel.ask(message).await;
                lock(&tally).asked(outcome);
            });
        }
        56..60 => {
            let (tally, message) = (Arc::clone(&world.tally), message(true));
            world.tasks.spawn(async move {
                let outcome = kernel.send(message).await;
                lock(&tally).sent(outcome);
            });
        }
        60..64 => {
            world.tasks.spawn(async move { kernel.receive().await.map(drop) });
        }
        64..72 => drop(kernel.receive_blocking(Some(random.millis(2)))),
        72..76 => {
            let mut receive = Box::pin(kernel.receive());
            (0..random.below(3)).all(|_| poll_once(&mut receive).is_pending());
        }
        76..80 => {
            let mut batch = Vec::new();
            let _ = kernel.receive_batch_blocking(10, &mut batch, Some(random.millis(2)));
        }
        80..84 => drop(kernel.deactivate()),
        84..90 => drop(kernel.reactivate()),
        90..92 => {
            let limit = random.below(20);
            let mut left = limit;
            let sent = world.runtime.replay(|letter| {
                left = left.saturating_sub(1);
                left > 0 && letter.priority % 2 == 0
            });
            tally(&|tally| tally.accepted += sent as u64);
        }
        92..95 => {
            for _ in 0..random.below(150) {
                let outcome = kernel.try_send(message(false));
                lock(&world.tally).sent(outcome);
            }
        }
        // Connect it, or disconnect it; what it is connected to may end or fail at any time.
        95..97 if random.below(3) == 0 => drop(kernel.disconnect()),
        95..97 => {
            let next = lock(&world.kernels[random.below(KERNELS as u64) as usize]).clone();
            let connected = match random.below(8) {
                0 => kernel.connect_allowing_cycle(&next),
                _ => kernel.connect(&next),
            };
            if let Ok(pipeline) = connected {
                tally(&|tally| tally.connected += 1);
                let outcome = pipeline.ask_blocking(message(true), Some(random.millis(5)));
                lock(&world.tally).asked(outcome);
            }
        }
        // End it and start its successor.
        _ => {
            let how = random.pick(&[Terminate::now(), Terminate::drain()]);
            kernel.terminate_blocking(how.within(random.millis(30)));
            if let Some(next) = launch(&world.runtime, index, inside, random) {
                let previous = std::mem::replace(&mut *lock(&world.kernels[index]), next);
                retire(&previous, &world.tally);
            }
        }
    }
}

/// The kernel has been terminated: its books are closed, once its body has let go.
fn retire(kernel: &Kernel, tally: &Mutex<Tally>) {
    quiet(kernel);
    assert!(kernel.state().has_ended(), "{kernel:?}");
    let (books, replies) = (kernel.books(), kernel.reply_books());
    assert_eq!((replies.queued, replies.in_hand), (0, 0), "{kernel:?}");
    let mut tally = lock(tally);
    tally.booked += books.accepted;
    tally.forwarded += replies.forwarded;
    tally.dead_lettered += books.dead_lettered + replies.dead_lettered;
    tally.ended += 1;
}

/// The threads of this process whose names begin so.
fn threads(prefixes: &[&str]) -> Vec<String> {
    let Ok(tasks) = std::fs::read_dir("/proc/self/task") else { return Vec::new() };
    let names = tasks.flatten().filter_map(|task| {
        // A thread may end meanwhile.
        std::fs::read_to_string(task.path().join("comm")).ok()
    });
    names.filter(|name| prefixes.iter().any(|prefix| name.starts_with(prefix))).collect()
}

fn number_from(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable}={text} should be a number")))
}

fn chaos(seed: u64, seconds: u64) {
    let tasks = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(3)
        .thread_name("chaos-tokio")
        .build()
        .unwrap();
    let runtime = Runtime::builder().tokio(tasks.handle().clone()).build();
    let (alive, tally) = (Arc::default(), Arc::default());
    let inside = Arc::new(Inside { alive: Arc::clone(&alive), tally: Arc::clone(&tally) });
    let mut random = Random(seed);
    let kernels = (0..KERNELS)
        .map(|index| launch(&runtime, index, &inside, &mut random).unwrap().into())
        .collect();
    let handle = tasks.handle().clone();
    let world = World { runtime, tasks: handle, kernels, alive, tally, seed };

    let end = Instant::now() + Duration::from_secs(seconds);
    std::thread::scope(|scope| {
        for driver in 1..=DRIVERS {
            let (world, inside) = (&world, &inside);
            scope.spawn(move || {
                let mut random = Random(world.seed ^ driver << 56);
                while Instant::now() < end {
                    act(world, inside, &mut random);
                }
            });
        }
        scope.spawn(|| {
            while Instant::now() < end {
                for kernel in &world.kernels {
                    let kernel = lock(kernel).clone();
                    balanced(&kernel);
                }
                std::thread::park_timeout(Duration::from_millis(1));
            }
        });
    });

    let World { runtime, tasks: handle, kernels, alive, tally, .. } = world;
    runtime.shutdown_blocking(Duration::from_secs(2));
    assert_eq!(runtime.kernel_ids(), []);
    for kernel in kernels {
        retire(&lock(&kernel), &tally);
    }
    // Every waiter returns, and every kernel's task ends.
    eventually(|| handle.metrics().num_alive_tasks() == 0);
    eventually(|| threads(&["rk-"]).is_empty());

    let tally = lock(&tally);
    println!("{tally:?} {:?}", runtime.dead_letter_counts());
    let sure = tally.accepted..=tally.accepted + tally.cancelled;
    let sent = tally.booked - tally.forwarded;
    assert!(sure.contains(&sent), "accepted by the books and by the senders: {tally:?}");
    // Late replies and those without room are dead letters, and in no books.
    assert!(runtime.dead_letter_counts().total >= tally.dead_lettered);
    assert!(tally.ended >= KERNELS as u64);
    // Of all messages and replies only the dead letters are left.
    let mut letters = 0;
    runtime.dead_letters(|letter| letters += i64::from(letter.message::<Token>().is_some()));
    assert_eq!(*lock(&alive), letters);
    drop(runtime);
    assert_eq!(*lock(&alive), 0);
    drop(tasks);
    eventually(|| {
        threads(&["rk-", "chaos-tokio", "dotcompute-asyn", "dotcompute-watc"]).is_empty()
    });
}

#[test]
fn after_chaos_the_books_balance_and_nothing_is_left() {
    let seed = number_from("CHAOS_SEED").unwrap_or_else(|| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        now.as_nanos() as u64
    });
    let seconds = number_from("CHAOS_SECONDS").unwrap_or(SECONDS);
    println!("CHAOS_SEED={seed} CHAOS_SECONDS={seconds}");
    // Thousands of panics are expected, and not worth a line each.
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let text = panic.payload_as_str().unwrap_or_default();
        if !text.starts_with("chaos") && !text.starts_with("token ") {
            report(panic);
        }
    }));
    let limit = Duration::from_secs(seconds + 60);
    within(&format!("chaos with seed {seed}"), limit, move || chaos(seed, seconds));
}
