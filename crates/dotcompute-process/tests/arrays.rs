//! Arrays between processes: copied once, read where they lie, and no memory left behind, however the
//! children end.

#![cfg(target_os = "linux")]
#![expect(clippy::unwrap_used, reason = "a test")]

use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use dotcompute_core::compiled::RecordBatch;
use dotcompute_core::record::Record;
use dotcompute_core::{
    BoxError, Handler, HandlerContext, KernelRef, Message, Restart, RestartPolicy, Runtime,
    Terminate,
};
use dotcompute_process::{Coder, Kernels, Process, Processes};
use rustix::process::{Pid, Signal, kill_process};

#[derive(Clone, Copy, Debug, PartialEq, Message)]
#[message(record, crate = "dotcompute_core")]
#[repr(C)]
struct Word {
    value: u64,
}

/// Sends an array back with something in front: where it read it, its sum, its process, and how often
/// the array has come.
struct Mirror;

const FRONT: usize = 4;

impl Handler for Mirror {
    type In = RecordBatch;
    type Out = RecordBatch;

    fn handle(
        &mut self,
        batch: &RecordBatch,
        context: &mut HandlerContext<RecordBatch>,
    ) -> Result<Option<RecordBatch>, BoxError> {
        let words = batch.as_slice::<Word>().ok_or("other records")?;
        let front = [
            u64::from(is_shared(batch)),
            sum(words),
            std::process::id().into(),
            context.delivery_count().into(),
        ];
        let front = front.map(|value| Word { value });
        Ok(Some(RecordBatch::from_vec([front.as_slice(), words].concat())))
    }
}

fn sum(words: &[Word]) -> u64 {
    words.iter().fold(0, |sum, word| sum.wrapping_add(word.value))
}

/// The segments that this process has mapped.
fn segments() -> Vec<std::ops::Range<usize>> {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let mapped = maps.lines().filter(|line| line.contains("dotcompute-segment"));
    let range = mapped.map(|line| {
        let (start, end) = line.split_once(' ').unwrap().0.split_once('-').unwrap();
        let number = |text| usize::from_str_radix(text, 16).unwrap();
        number(start)..number(end)
    });
    range.collect()
}

fn is_shared(batch: &RecordBatch) -> bool {
    let start = batch.bytes().as_ptr().addr();
    segments().iter().any(|segment| segment.contains(&start))
}

fn processes() -> Processes {
    let words = || Coder::records(Word::LAYOUT);
    Kernels::new()
        .handler("mirror", words(), words(), |_| Ok(Mirror))
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

/// One test at a time, since they count what the process has mapped.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

const WAIT: Option<Duration> = Some(Duration::from_secs(60));

type Mirrored = KernelRef<RecordBatch, RecordBatch>;

fn launch(process: Process) -> (Runtime, Mirrored) {
    let processes = processes();
    let runtime = Runtime::builder().executor(processes.executor()).build();
    let restart = Restart {
        policy: RestartPolicy::OnFault,
        max_restarts: u32::MAX,
        backoff: Duration::ZERO,
        redeliver: true,
        ..Restart::default()
    };
    let builder = runtime.kernel("mirror").executor("process").capacity(64).restart(restart);
    let kernel = processes.launch(builder.reply_capacity(64), process).unwrap();
    kernel.activate().unwrap();
    (runtime, kernel)
}

fn words(number: u64, count: usize) -> Vec<Word> {
    (0..count as u64).map(|index| Word { value: number << 32 | index }).collect()
}

/// What the mirror says of an array, after a look at whether that is right.
fn verify(reply: &RecordBatch, number: u64, count: usize) -> (bool, u64) {
    let words_ = reply.as_slice::<Word>().unwrap();
    let sent = words(number, count);
    assert!(words_[FRONT..] == sent, "array {number}");
    assert_eq!(words_[1].value, sum(&sent), "array {number}");
    (words_[0].value == 1, words_[2].value)
}

/// Looks every millisecond for what no event tells of.
fn eventually(mut condition: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !condition() {
        assert!(begin.elapsed() < Duration::from_secs(60), "it never came");
        std::thread::park_timeout(Duration::from_millis(1));
    }
}

fn kill(process: u64) -> bool {
    kill_process(Pid::from_raw(i32::try_from(process).unwrap()).unwrap(), Signal::KILL).is_ok()
}

#[test]
fn long_batches_are_read_where_they_lie_on_both_sides() {
    let _alone = alone();
    let (_runtime, mirror) = launch(Process::new("mirror"));
    for (number, count) in [0, 1, 4_000, 4_096, 131_072, 1_000_000].into_iter().enumerate() {
        let sent = RecordBatch::from_vec(words(number as u64, count));
        let reply = mirror.ask_blocking(sent, WAIT).unwrap().message;
        let (there, _) = verify(&reply, number as u64, count);
        assert_eq!(there, count >= 4_096, "{count} words to the child");
        assert_eq!(is_shared(&reply), count + FRONT >= 4_096, "{count} words from it");
    }
}

#[test]
fn arrays_that_are_held_stop_nothing_and_their_memory_comes_back() {
    let _alone = alone();
    let (_runtime, mirror) = launch(Process::new("mirror").arena(1 << 20));
    let ask = |number: u64| {
        let sent = RecordBatch::from_vec(words(number, 20_000));
        mirror.ask_blocking(sent, WAIT).unwrap().message
    };
    let held: Vec<RecordBatch> = (0..12).map(ask).collect();
    for (number, reply) in held.iter().enumerate() {
        let (there, _) = verify(reply, number as u64, 20_000);
        assert!(there, "the child holds none");
        // Of 160 KB and a little each, in blocks of 16 KiB, so many fit into a MiB.
        assert_eq!(is_shared(reply), number < 6, "array {number}");
    }
    drop(held);
    assert!(is_shared(&ask(12)));
}

#[test]
fn an_array_outlives_the_process_that_sent_it_and_leaves_nothing_behind() {
    let _alone = alone();
    let (runtime, mirror) = launch(Process::new("mirror"));
    let ask = |number: u64| {
        let sent = RecordBatch::from_vec(words(number, 100_000));
        mirror.ask_blocking(sent, WAIT).unwrap().message
    };
    let held: Vec<RecordBatch> = (0..3)
        .map(|number| {
            let reply = ask(number);
            let (_, process) = verify(&reply, number, 100_000);
            assert!(is_shared(&reply) && kill(process));
            eventually(|| mirror.telemetry().restarts == number + 1);
            reply
        })
        .collect();
    for (number, reply) in held.iter().enumerate() {
        verify(reply, number as u64, 100_000);
    }
    eventually(|| segments().len() == 4);
    mirror.terminate_blocking(Terminate::now());
    drop(runtime);
    // The kernel is known still, and its child's memory gone.
    eventually(|| segments().len() == 3);
    drop(held);
    assert_eq!(segments(), []);
    drop(mirror);
}

#[test]
fn children_killed_while_arrays_flow_lose_none_and_leave_no_lease() {
    let _alone = alone();
    const ARRAYS: u64 = 600;
    const COUNT: usize = 10_000;
    // So little that the arrays go now by the arena, now by the ring.
    let (_runtime, mirror) = launch(Process::new("mirror").window(8).slots(256).arena(512 << 10));
    let sender = mirror.clone();
    let sending = std::thread::spawn(move || {
        for number in 0..ARRAYS {
            let sent = RecordBatch::from_vec(words(number, COUNT));
            sender.send_blocking(sent, WAIT).unwrap();
        }
    });
    let (mut next, mut killed, mut last, mut shared) = (0, 0, 0, 0);
    let mut held = Vec::new();
    let dead = || mirror.books().dead_lettered;
    while next < ARRAYS {
        let Ok(reply) = mirror.receive_blocking(Some(Duration::from_millis(20))) else {
            if next + dead() == ARRAYS {
                break;
            }
            continue;
        };
        let reply = reply.message;
        let number = reply.as_slice::<Word>().unwrap()[FRONT].value >> 32;
        let (_, process) = verify(&reply, number, COUNT);
        next += 1;
        shared += u64::from(is_shared(&reply));
        if process != last && next % 11 == 0 && kill(process) {
            (last, killed) = (process, killed + 1);
            // Held a while longer than its process lives.
            held.push((number, reply));
        }
        if held.len() > 3 {
            let (number, reply) = held.remove(0);
            verify(&reply, number, COUNT);
        }
    }
    sending.join().unwrap();
    eventually(|| mirror.books().in_hand == 0);
    let books = mirror.books();
    assert!(books.balance(), "{books:?}");
    assert_eq!(books.processed + books.dead_lettered, ARRAYS);
    assert_eq!(next, books.processed);
    assert!(killed >= 5 && shared > 0, "{killed} killed, {shared} by the arena");
    for (number, reply) in held {
        verify(&reply, number, COUNT);
    }
    eventually(|| segments().len() == 1);
    mirror.terminate_blocking(Terminate::now());
    eventually(|| segments().is_empty());
}

#[test]
fn replies_that_wait_for_room_keep_no_child_waiting_for_ever() {
    let _alone = alone();
    let processes = processes();
    let runtime = Runtime::builder().executor(processes.executor()).build();
    let builder = runtime.kernel("mirror").executor("process").capacity(64).reply_capacity(1);
    // Each reply fills more than half of the ring, so that the next one waits until it is empty.
    let process = Process::new("mirror").window(8).slots(16).arena(0);
    let mirror: Mirrored = processes.launch(builder, process).unwrap();
    mirror.activate().unwrap();
    let sender = mirror.clone();
    let sending = std::thread::spawn(move || {
        for number in 0..3_000 {
            sender.send_blocking(RecordBatch::from_vec(words(number, 60)), WAIT).unwrap();
        }
    });
    for number in 0..3_000 {
        verify(&mirror.receive_blocking(WAIT).unwrap().message, number, 60);
    }
    sending.join().unwrap();
}
