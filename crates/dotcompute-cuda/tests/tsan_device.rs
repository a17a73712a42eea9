//! The device's sources and the host's half, under ThreadSanitizer: `make tsan`.
//!
//! What the standard library orders the sanitizer does not see; so, as in the mailbox's tests,
//! threads come from the system and memory is leaked: all that the threads share is the protocol.
//! Without the sanitizer it is a plain test, once over.
//!
//! With it, the program runs itself again with one edge of the protocol after the other broken, and
//! fails unless the sanitizer notices each.

#![allow(clippy::unwrap_used, reason = "a helper that fails is a failed test")]

mod twin;

use std::ffi::c_void;
use std::mem;
use std::process::Command;
use std::ptr;
use std::time::Duration;

use dotcompute_abi::control::{COMMAND_DRAIN, COMMAND_RUN, STATE_STOPPED};
use dotcompute_abi::device::TOKEN_NONE;
use dotcompute_abi::slot::FLAG_HOME;
use dotcompute_cuda::Scope;
use dotcompute_cuda::grid::{EdgePlan, Port, Shape};
use dotcompute_mailbox::Band;
use twin::{ADD, Stage, Twin, number, numbers_of, plan, plan_of_spans, span, spanned, sum};

/// The handler that sends each value on to one of its targets.
const DEAL: u32 = 1;
/// The one whose threads add up what each of them made.
const SHARE: u32 = 4;

const MESSAGES: u32 = 3_000;

/// The edges that order plain memory: `dc_sync`, and handlers of which scope have them. The others order
/// words that are atomic themselves, where a missing edge is no race: those are the model checker's, in
/// `loom_protocol.rs`.
const EDGES: [(u32, &str, Scope); 7] = [
    (1, "ring.tag", Scope::Lane),
    (2, "ring.free", Scope::Lane),
    (3, "device.inbox_tag", Scope::Lane),
    (4, "device.inbox_free", Scope::Lane),
    (9, "seat.meet", BLOCK),
    (10, "team.call", BLOCKS),
    (11, "team.meet", BLOCKS),
];

/// A handler of several threads, which meet.
const BLOCK: Scope = Scope::Block { threads: 4 };
/// One of several blocks, which meet, too.
const TEAM: Scope = Scope::Team { blocks: 2, threads: 2 };
/// The same of single threads, which share nothing but the words of their team: those of a block may wait by what
/// the standard library keeps for all, which would order what a broken edge does not.
const BLOCKS: Scope = Scope::Team { blocks: 4, threads: 1 };

fn main() {
    // A message that never comes ends the program.
    // SAFETY: takes a number and touches nothing of ours.
    unsafe { libc::alarm(120) };
    let sanitized = std::env::var_os("DOTCOMPUTE_TSAN").is_some();
    let sanitizer: &[&str] = if sanitized { &["-fsanitize=thread", "-Wno-tsan"] } else { &[] };
    if let Ok(bug) = std::env::var("DOTCOMPUTE_BUG") {
        let define = format!("-DDC_BUG={bug}");
        let (.., scope) = EDGES.into_iter().find(|(edge, ..)| edge.to_string() == bug).unwrap();
        return with(scope, &[sanitizer, &[&define]].concat());
    }
    for scope in [Scope::Lane, BLOCK, TEAM] {
        with(scope, sanitizer);
    }
    if !sanitized {
        return;
    }
    for (bug, edge, _) in EDGES {
        let run = Command::new(std::env::current_exe().unwrap())
            .env("DOTCOMPUTE_BUG", bug.to_string())
            .env("TSAN_OPTIONS", "halt_on_error=1")
            .output()
            .unwrap();
        let told = String::from_utf8_lossy(&run.stderr);
        let noticed = told.contains("WARNING: ThreadSanitizer: data race");
        assert!(!run.status.success() && noticed, "{edge} is broken and nobody notices: {told}");
        eprintln!("{edge} broken: noticed");
    }
}

/// What kernels whose handlers have this scope are tried with.
fn with(scope: Scope, flags: &[&str]) {
    let (threads, blocks) = (scope.threads(), scope.blocks());
    let (threads, blocks) =
        (format!("-DDC_SEAT_THREADS={threads}u"), format!("-DDC_SEAT_BLOCKS={blocks}u"));
    match scope {
        Scope::Team { .. } => {
            let flags = [flags, &["-DDC_SCOPE=3", &threads, &blocks]].concat();
            by_several_threads(Twin::compile("tsan-team", &flags), scope);
        }
        Scope::Block { .. } => {
            let flags = [flags, &["-DDC_SCOPE=2", &threads]].concat();
            by_several_threads(Twin::compile("tsan-block", &flags), scope);
        }
        Scope::Lane | Scope::Warp => all(Twin::compile("tsan", flags)),
    }
}

fn all(twin: Twin) {
    fed_by_the_host(twin);
    between_kernels(twin);
    along_a_chain(twin);
    of_several_slots(twin);
}

/// Messages of all bands through one kernel, over several leases; small windows, so that slots are
/// used again soon.
fn fed_by_the_host(twin: Twin) {
    let mut stage = Stage::new(Shape { window: 2, reply_window: 16, ..Shape::default() });
    let mut port = stage.seat(0, &plan(ADD));
    port.command(COMMAND_RUN);
    let (mut sent, mut received, mut total) = (0_u32, 0_u32, 0_i64);
    for lease in 1..=4_u32 {
        let (epoch, parameters) = stage.launch(None, None);
        let warps: Vec<Thread> =
            (0..=1).map(|warp| Thread::start(twin.warp(parameters, warp))).collect();
        while received < MESSAGES * lease / 4 {
            let band = [Band::System, Band::High, Band::Normal, Band::Low][sent as usize % 4];
            if sent < MESSAGES && port.send(band, number(sent, 1)).is_ok() {
                sent += 1;
            }
            match port.receive() {
                Some(reply) => {
                    total += 1;
                    assert_eq!(sum(&reply), (total, 1));
                    received += 1;
                }
                None => relax(),
            }
        }
        if lease == 4 {
            port.command(COMMAND_DRAIN);
        } else {
            stage.grid.quiesce(epoch);
        }
        while !stage.grid.has_ended(epoch) {
            relax();
        }
        // What was handled on the way out.
        while let Some(reply) = port.receive() {
            total += 1;
            assert_eq!(sum(&reply), (total, 1));
            received += 1;
        }
        assert_eq!(port.counters().processed, u64::from(received));
        warps.into_iter().for_each(Thread::join);
    }
    assert_eq!((sent, received), (MESSAGES, MESSAGES));
    assert_eq!(port.report().state, STATE_STOPPED);
    // Leaked, as all that threads of the sanitizer's and the standard library's would share.
    mem::forget(port);
}

/// Two kernels deal messages to one, whose inbox is as small as their shares.
fn between_kernels(twin: Twin) {
    let mut stage = Stage::new(Shape {
        seats: 3,
        window: 4,
        reply_window: 16,
        inbox_capacity: 4,
        edges: 1,
        edges_in: 2,
        ..Shape::default()
    });
    let dealer = |seat: u32| {
        let mut plan = plan(DEAL);
        plan.max_emit = 1;
        plan.edges = vec![EdgePlan { to: 2, number: seat, share: 2, record_bytes: 8 }];
        stage.seat(seat, &plan)
    };
    let mut dealers = [dealer(0), dealer(1)];
    let mut adder = stage.seat(2, &plan(ADD));
    let ports = |of: &[Port]| of.iter().for_each(|port| port.command(COMMAND_RUN));
    ports(&dealers);
    adder.command(COMMAND_RUN);
    let (epoch, parameters) = stage.launch(None, Some(Duration::from_secs(60)));
    let warps: Vec<Thread> =
        (0..=3).map(|warp| Thread::start(twin.warp(parameters, warp))).collect();
    let (mut sent, mut received) = ([0_u32; 2], 0_u32);
    while received < MESSAGES {
        for (dealer, sent) in dealers.iter_mut().zip(&mut sent) {
            if *sent < MESSAGES / 2 && dealer.send(Band::Normal, number(*sent, 1)).is_ok() {
                *sent += 1;
            }
        }
        stage.grid.beat();
        match adder.receive() {
            Some(reply) => {
                received += 1;
                assert_eq!(reply.header.token, TOKEN_NONE);
                assert_eq!(sum(&reply), (i64::from(received), 1));
            }
            None => relax(),
        }
    }
    dealers.iter().chain([&adder]).for_each(|port| port.command(COMMAND_DRAIN));
    while !stage.grid.has_ended(epoch) {
        relax();
    }
    assert_eq!(dealers[0].counters().sent + dealers[1].counters().sent, u64::from(MESSAGES));
    warps.into_iter().for_each(Thread::join);
    mem::forget((dealers, adder));
}

/// Replies of one kernel go to the next, and some by the host, which hands them on.
fn along_a_chain(twin: Twin) {
    let shape = Shape { window: 4, reply_window: 16, inbox_capacity: 2, ..Shape::default() };
    let mut stage = Stage::new(Shape { seats: 2, edges: 1, edges_in: 1, ..shape });
    let mut first = stage.seat(0, &plan(ADD));
    let mut second = stage.seat(1, &plan(ADD));
    let edge = EdgePlan { to: 1, number: 0, share: 2, record_bytes: 16 };
    stage.link(0, &plan(ADD), edge);
    first.command(COMMAND_RUN);
    second.command(COMMAND_RUN);
    let (epoch, parameters) = stage.launch(None, Some(Duration::from_secs(60)));
    let warps: Vec<Thread> =
        (0..=2).map(|warp| Thread::start(twin.warp(parameters, warp))).collect();
    let (mut sent, mut received, mut by_host) = (0_u32, 0_i64, None);
    while received < i64::from(MESSAGES) {
        if sent < MESSAGES {
            let mut record = number(sent, 1);
            if sent % 8 == 7 {
                record.header.flags = FLAG_HOME as u16;
            }
            sent += u32::from(first.send(Band::Normal, record).is_ok());
        }
        by_host = by_host.or_else(|| first.receive());
        if let Some(record) = by_host {
            let mut next = number(0, 0);
            next.payload = record.payload;
            if second.send(Band::Normal, next).is_ok() {
                by_host = None;
            }
        }
        stage.grid.beat();
        match second.receive() {
            Some(_) => received += 1,
            None => relax(),
        }
    }
    first.command(COMMAND_DRAIN);
    second.command(COMMAND_DRAIN);
    while !stage.grid.has_ended(epoch) {
        relax();
    }
    let (passed, taken) = (first.report().passed, second.report().received);
    assert_eq!((passed, taken), (u64::from(MESSAGES) * 7 / 8, passed));
    warps.into_iter().for_each(Thread::join);
    mem::forget((first, second));
}

/// Records of several slots, from the host to one kernel, from there to another, and back.
fn of_several_slots(twin: Twin) {
    let shape = Shape { window: 8, reply_window: 16, inbox_capacity: 16, ..Shape::default() };
    let mut stage = Stage::new(Shape { seats: 2, edges: 1, edges_in: 1, ..shape });
    let mut first = stage.seat(0, &plan_of_spans());
    let mut second = stage.seat(1, &plan_of_spans());
    let record_bytes = plan_of_spans().message_bytes;
    stage.link(0, &plan_of_spans(), EdgePlan { to: 1, number: 0, share: 3, record_bytes });
    first.command(COMMAND_RUN);
    second.command(COMMAND_RUN);
    let (epoch, parameters) = stage.launch(None, Some(Duration::from_secs(60)));
    let warps: Vec<Thread> =
        (0..=2).map(|warp| Thread::start(twin.warp(parameters, warp))).collect();
    let (mut sent, mut received, mut payload) = (0_u32, 0_u32, Vec::new());
    while received < MESSAGES / 4 {
        if sent < MESSAGES / 4 && first.send_slots(Band::Normal, span(sent, i64::from(sent))) {
            sent += 1;
        }
        stage.grid.beat();
        match second.receive_into(&mut payload) {
            // Both have added 100.
            Some(_) => {
                assert_eq!(numbers_of(&payload), spanned(i64::from(received) + 200));
                received += 1;
            }
            None => relax(),
        }
    }
    first.command(COMMAND_DRAIN);
    second.command(COMMAND_DRAIN);
    while !stage.grid.has_ended(epoch) {
        relax();
    }
    assert_eq!(second.report().received, u64::from(received));
    warps.into_iter().for_each(Thread::join);
    mem::forget((first, second));
}

/// A handler of several threads, over two leases: each writes its share of the sum into shared memory, and
/// the first adds them up; of a team, those of its block, and the last one the blocks.
fn by_several_threads(twin: Twin, scope: Scope) {
    const MESSAGES: u32 = 300;
    let state_bytes = 256;
    let shape = Shape { window: 4, reply_window: 16, state_bytes, scope, ..Shape::default() };
    let mut stage = Stage::new(shape);
    let mut port = stage.seat(0, &plan(SHARE));
    port.command(COMMAND_RUN);
    let (mut sent, mut received) = (0_u32, 0_u32);
    for lease in 1..=2_u32 {
        let (epoch, parameters) = stage.launch(None, Some(Duration::from_secs(60)));
        let warps: Vec<Thread> =
            (0..=scope.blocks()).map(|warp| Thread::start(twin.warp(parameters, warp))).collect();
        while received < MESSAGES * lease / 2 {
            let value = i64::from(sent);
            if sent < MESSAGES && port.send(Band::Normal, number(sent, value)).is_ok() {
                sent += 1;
            }
            stage.grid.beat();
            match port.receive() {
                Some(reply) => {
                    received += 1;
                    let value = i64::from(received) - 1;
                    // Each adds its number to a quarter of what four times the value is.
                    assert_eq!(sum(&reply), (i64::from(received), 4 * value + 1 + 2 + 3));
                }
                None => relax(),
            }
        }
        match lease {
            1 => stage.grid.quiesce(epoch),
            _ => port.command(COMMAND_DRAIN),
        }
        while !stage.grid.has_ended(epoch) {
            relax();
        }
        while let Some(reply) = port.receive() {
            received += 1;
            assert_eq!(sum(&reply).0, i64::from(received));
        }
        warps.into_iter().for_each(Thread::join);
    }
    assert_eq!((sent, received), (MESSAGES, MESSAGES));
    mem::forget(port);
}

/// A thread of the system's, since those of the standard library share reference counts.
struct Thread(libc::pthread_t);

impl Thread {
    fn start<F: FnOnce() + Send>(f: F) -> Self {
        extern "C" fn enter<F: FnOnce()>(f: *mut c_void) -> *mut c_void {
            // SAFETY: `start` leaked exactly this box for exactly this thread.
            let f = unsafe { Box::from_raw(f.cast::<F>()) };
            f();
            ptr::null_mut()
        }
        let mut thread = 0;
        let f = Box::into_raw(Box::new(f)).cast();
        // SAFETY: `enter::<F>` takes what `f` is; every thread is joined before its test ends.
        let error = unsafe { libc::pthread_create(&mut thread, ptr::null(), enter::<F>, f) };
        assert_eq!(error, 0);
        Self(thread)
    }

    fn join(self) {
        // SAFETY: a joinable thread, joined once.
        assert_eq!(unsafe { libc::pthread_join(self.0, ptr::null_mut()) }, 0);
    }
}

/// Lets the other threads run, also on one core.
fn relax() {
    // SAFETY: takes nothing and touches nothing.
    unsafe { libc::sched_yield() };
}
