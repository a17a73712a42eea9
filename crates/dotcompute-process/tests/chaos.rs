//! A child is killed at random instants, again and again, while numbered messages flow. Afterwards
//! each message was processed or is a dead letter; one that came more than once says so; and the books
//! balance.
//!
//! What the children handled they write down themselves, in a memory file that outlives them: for
//! each number how often it was handled, how often unmarked, and whether its reply was made. Short
//! by default; `CHAOS_KILLS` and `CHAOS_MESSAGES` say how long.

#![cfg(target_os = "linux")]
#![expect(clippy::unwrap_used, reason = "a test")]

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::process::Command;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use dotcompute_core::{
    AskError, Books, BoxError, Envelope, Handler, HandlerContext, KernelRef, Message, Restart,
    RestartPolicy, Runtime, Terminate,
};
use dotcompute_process::{Coder, Kernels, Process, Processes};
use rustix::process::{Pid, Signal, kill_process};

#[derive(Clone, Copy, Debug, PartialEq, Message)]
#[message(record, crate = "dotcompute_core")]
#[repr(C)]
struct Numbered {
    number: u64,
    /// Of a reply: the process that made it.
    process: u64,
}

/// Counts in a file, at two bytes per number: how often it was handled, and how often of these as
/// the first delivery.
struct Counts(File);

impl Counts {
    fn add(&self, number: u64, first: bool) {
        let mut counts = [0; 2];
        self.0.read_exact_at(&mut counts, number * 2).unwrap();
        counts[0] += 1;
        counts[1] += u8::from(first);
        self.0.write_all_at(&counts, number * 2).unwrap();
    }
}

impl Handler for Counts {
    type In = Numbered;
    type Out = Numbered;

    fn handle(
        &mut self,
        message: &Numbered,
        context: &mut HandlerContext<Numbered>,
    ) -> Result<Option<Numbered>, BoxError> {
        self.add(message.number, context.delivery_count() == 1);
        // Up to some 20 us, so that many a kill meets it at work.
        (0..message.number % 16 * 64).for_each(|_| std::hint::spin_loop());
        Ok(Some(Numbered { number: message.number, process: std::process::id().into() }))
    }
}

fn processes() -> Processes {
    Kernels::new()
        .handler("counts", Coder::record(), Coder::record(), |path| {
            let path = std::str::from_utf8(path)?;
            Ok(Counts(OpenOptions::new().read(true).write(true).open(path)?))
        })
        .command(|| {
            let mut command = Command::new(std::env::current_exe()?);
            command.args(["--exact", "child_main", "--nocapture"]);
            Ok(command)
        })
        .child_main()
}

/// No test: where children of this program come to.
#[test]
fn child_main() {
    let _ = processes();
}

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |value| value.parse().unwrap())
}

/// Small pseudo-random numbers: an LCG with the constants of Knuth's MMIX.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

#[test]
fn a_child_killed_at_random_instants_loses_nothing_and_repeats_nothing_unmarked() {
    for window in [1, 64] {
        let kills = setting("CHAOS_KILLS", 60) / 2;
        let messages = setting("CHAOS_MESSAGES", 20_000) / 2;
        chaos(window, kills, messages);
    }
}

fn chaos(window: usize, kills: u64, messages: u64) {
    let processes = processes();
    let runtime = Runtime::builder().executor(processes.executor()).build();
    let name = format!("dotcompute-chaos-{}-{window}", std::process::id());
    // A memory file, found by its descriptor; nothing is left behind.
    let file = File::from(rustix::fs::memfd_create(name, rustix::fs::MemfdFlags::empty()).unwrap());
    file.set_len(messages * 2).unwrap();
    let path = {
        use std::os::fd::AsRawFd;
        format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd())
    };
    let restart = Restart {
        policy: RestartPolicy::OnFault,
        max_restarts: u32::MAX,
        backoff: Duration::ZERO,
        backoff_max: Duration::ZERO,
        redeliver: true,
        ..Restart::default()
    };
    let builder = runtime
        .kernel("counts")
        .executor("process")
        .restart(restart)
        .capacity(256)
        .reply_capacity(64);
    let process = Process::new("counts").args(path).window(window).slots(128);
    let kernel: KernelRef<Numbered, Numbered> = processes.launch(builder, process).unwrap();
    kernel.activate().unwrap();

    let sender = kernel.clone();
    let sending = std::thread::spawn(move || {
        // Which of those that were asked were answered.
        let mut answered = Vec::new();
        for number in 0..messages {
            let message = Numbered { number, process: 0 };
            // Who asks may drive the kernel itself, when its child is killed.
            match number % 64 {
                0 => match sender.ask_blocking(message, None) {
                    Ok(reply) => answered.push(reply.message.number),
                    Err(AskError::Failed { .. }) => {}
                    Err(error) => panic!("{error}"),
                },
                _ => sender.send_blocking(message, None).unwrap(),
            }
        }
        answered
    });
    // Reads replies, and tells of the process that is at work.
    let (tell, told) = channel();
    let receiver = kernel.clone();
    let receiving = std::thread::spawn(move || {
        let mut replies = vec![0u8; messages as usize];
        let mut last = 0;
        while let Ok(Envelope { message, .. }) = receiver.receive_blocking(None) {
            replies[message.number as usize] += 1;
            if message.process != last {
                last = message.process;
                let _ = tell.send(last);
            }
        }
        replies
    });
    let mut random = Random(window as u64);
    let mut killed = 0;
    while killed < kills {
        let Ok(process) = told.recv_timeout(Duration::from_secs(60)) else { break };
        // Somewhere in its first turns, mostly while it works.
        let until = Instant::now() + Duration::from_micros(random.below(2_000));
        while Instant::now() < until {
            std::hint::spin_loop();
        }
        let process = Pid::from_raw(i32::try_from(process).unwrap()).unwrap();
        // It may have been killed already, for a reply that was still to be read.
        if kill_process(process, Signal::KILL).is_ok() {
            killed += 1;
        }
        if sending.is_finished() && kernel.books().queued == 0 {
            break;
        }
    }
    let answered = sending.join().unwrap();
    let begin = Instant::now();
    let left = |books: Books| books.queued + books.in_hand;
    while left(kernel.books()) + left(kernel.reply_books()) > 0 {
        assert!(begin.elapsed() < Duration::from_secs(120), "stuck: {:?}", kernel.books());
        std::thread::park_timeout(Duration::from_millis(1));
    }
    let books = kernel.books();
    assert!(books.balance(), "{books:?}");
    assert_eq!(books.accepted, messages);
    assert_eq!(books.processed + books.dead_lettered, messages);
    let restarts = kernel.telemetry().restarts;
    kernel.terminate_blocking(Terminate::now());
    let mut replies = receiving.join().unwrap();
    answered.into_iter().for_each(|number| replies[number as usize] += 1);
    let mut counts = vec![0; messages as usize * 2];
    file.read_exact_at(&mut counts, 0).unwrap();
    let letters = runtime.dead_letter_counts().total;
    let (mut repeated, mut unanswered) = (0, 0);
    for (number, (handled, replies)) in counts.chunks(2).zip(&replies).enumerate() {
        let [times, unmarked] = *handled else { unreachable!() };
        assert!(unmarked <= 1, "{number} came {unmarked} times as if for the first time");
        assert!(*replies <= 1, "{number} was answered {replies} times");
        assert!(*replies <= times, "{number} was answered and not handled");
        repeated += u64::from(times > 1);
        unanswered += u64::from(*replies == 0);
    }
    // Whoever was not answered is a dead letter: delivered three times, each time cut off.
    assert_eq!(unanswered, books.dead_lettered);
    assert!(letters >= books.dead_lettered);
    eprintln!(
        "window {window}: {killed} killed, {restarts} restarts, {messages} messages: {} redelivered, \
         {repeated} handled more than once, {} dead letters",
        books.redelivered, books.dead_lettered
    );
    assert!(killed > 0 && restarts > 0, "{killed} killed, {restarts} restarts");
}
