//! Ring kernels in child processes: the executor `"process"` (Linux).
//!
//! A kernel in a process of its own crashes alone, is killed when it hangs, and shares no memory
//! but what it is given. To whoever sends to it, it is a kernel like any other: mailbox, bands,
//! policies, asks, books and supervision are the parent's, and the same code as for every executor.
//!
//! The protocol between the two is below; how to use it, [`Kernels`] and [`Processes`] say.
//!
//! # Who is there
//!
//! In the parent each kernel has a driver thread, on which its *proxy* is the body of the kernel, and
//! a thread that watches the child. Whoever waits for an answer (`ask_blocking`) takes the driver's
//! place meanwhile, as a *guest*, if the driver sleeps: it hands its message over and finds the answer
//! itself, so that no thread has to be woken, or to spin, in between. In the child the *host* runs a handler on the main thread, or
//! hands messages to a body on a thread of its own. Where system and load put the two processes on one
//! core, so that neither may spin, the host's thread [goes to another](dotcompute_mailbox::doorbell::Doorbell::wait_apart)
//! once its waits have been short for a while. The child is spawned, never forked: the same
//! program, which comes to [`Kernels::child_main`] and goes no further.
//!
//! Parent and child share, for one life of the child,
//!
//! - a *segment*: a memory file with a ring of [lapped slots](dotcompute_abi::slot) each way, a few
//!   words, a line per writer, the ids of the messages that are under way, and an *arena* each way for
//!   arrays of 32 KiB and more;
//! - the *parent's bell*: another memory file, the same for all children of a kernel. Link and host
//!   each wait for several things at once (rings, words, wakers, the child's death), so each has
//!   one [`Doorbell`](dotcompute_mailbox::doorbell::Doorbell) that all of these ring; the rings
//!   themselves only poll;
//! - a *socket*, the child's standard input at first. The parent's first and only datagram carries
//!   the setup and the descriptors of the files. Back come log events and the child's last words.
//!
//! All descriptors are handed over, none inherited by accident; memory files have no name, so
//! nothing can be left behind in `/dev/shm`.
//!
//! # The way of a message
//!
//! Positions count the messages handed to one child, from 1; the token of a slot is its position
//! modulo 2^32. Bands and askers stay in the parent: the proxy takes an envelope out of the
//! mailbox into a table, in which it is *in hand*, and writes a copy into the ring. Its id lies beside the
//! ring, where the child fetches it if its kernel asks; a reply of a handler gets its id in the parent.
//!
//! 0. Nothing is handed over, and no body begins, before the kernel is active: then the proxy begins, and
//!    says so.
//! 1. The child says what it is ready for (`demand`). With a [window](Process::window) of 1, the
//!    default, that is one message, and only while its kernel waits for one. So a message is either
//!    queued in the mailbox, where policies, bands and a deactivation see it, or in hand: never in
//!    between, and at most one is in hand, as with every executor.
//! 2. The proxy writes the message and rings. A ring is a window: nothing is taken back out of it.
//! 3. The host notes the position (`received`) *before* its kernel sees the message.
//! 4. Replies go into the other ring under the token of the message they answer. Then, in this
//!    order: the first slot of what is published, which publishes all, `processed` with the new `demand`
//!    (one word), and the bell. The last reply of a handler says that it settles its message: then the two
//!    words say nothing new, and are not written, nor are the *news* that count what there is to look for
//!    outside the ring. The bell
//!    waits where there are no replies and there is more to do: until half of the window is done, the
//!    ring is empty, or 200 us have passed; to wake a thread costs more than to handle a message.
//! 5. The proxy reads `processed`, then the replies, routes these, and settles the messages. While a
//!    reply waits for room in the output mailbox its message stays in hand.
//!
//! So a round trip that nobody sleeps in takes two lines from core to core, where the message is a
//! record of up to 56 bytes: its slot there, and the slot of the answer back.
//!
//! # Arrays
//!
//! Who sends an array copies it into a block of its arena and says in the message where that is; who
//! receives it reads it there, by a [`Lease`], and gives the block back by a word when it is dropped. Both
//! what a child borrowed and what it lent end with the segment, which each lease keeps: so its death
//! leaves nothing to be collected, and takes nothing from under a reader. Nobody waits for a block: where
//! there is no room, the array goes through the ring. What is parsed is copied first; records and
//! numpy's arrays are used where they lie.
//!
//! # When the child dies
//!
//! At whatever instant: each word has one writer and is stored in one piece, a frame is published by
//! one store after its slots were written, and a message of several frames is used when the last
//! one is there. So what the parent finds is something the child did publish, never half of it. The
//! end of the process shows in its pidfd; the watcher reaps it and wakes the driver, also if the child
//! died while about to do so. Then the proxy reads what is left in the ring, and knows of each message:
//!
//! | | the message | becomes |
//! |---|---|---|
//! | acknowledged | `processed` covers it, *or a reply under its token is in the ring* | processed |
//! | received | `received` covers it | delivered again, or a dead letter, as [`Restart`] says |
//! | neither | still in the ring, or on its way | queued again, as if never taken |
//!
//! A reply is its message's acknowledgement: both are the one store of a slot's header. So a message
//! whose reply was read is never delivered again. (A reply of a body that names no message is taken for
//! one to the oldest that is in hand.) Everything else is at least once: what was
//! received and not acknowledged comes again first, in its old order, with a delivery count that
//! says so, and is a dead letter after [`DELIVERIES_MAX`] deliveries. A handler publishes what up to
//! 32 messages led to at once, but after a fault one by one.
//!
//! A kernel that fails without dying says why on the socket, as its last words, and is settled in
//! the same way. State starts anew with each process; but the record that is the state of a
//! [compiled handler](Kernels::compiled) lies in a memory file of its own. There a version of it is
//! committed before the message that led to it is acknowledged, and the next child begins with the
//! one that belongs to the last message acknowledged: so each message is in the state once, or not
//! acknowledged. The parent reads the newest version at any time.
//!
//! # When the parent dies
//!
//! The socket ends, which the child waits for on a thread of its own, and kills itself. (Not
//! `PR_SET_PDEATHSIG`, which also fires when the thread that spawned the child ends.) A stopped
//! child (SIGSTOP) looks like one that works long: the watchdog of its kernel reports it, and a
//! terminate kills it.
//!
//! # Edges
//!
//! | name | release | acquire | makes visible |
//! |---|---|---|---|
//! | `segment.made` | `Segment::create`, magic | `Segment::attach` | words and rings |
//! | `arena.returned` | `Lease::drop` | `Arena::take_back` | that the block was read |
//! | `process.command` | `Segment::set_command` | `Segment::command` | what was handed over before |
//! | `process.progress` | `Segment::set_progress`, `set_received` | `Segment::progress` | the replies made before |
//! | `process.news` | `Segment::tell` | `Segment::news` | what was published |
//! | `process.state` | `SharedState::commit`, the newest's number | `newest` | that version |
//! | `process.state_slot` | `SharedState::commit`, fence and number | `read_newest` | its words, or that they were overwritten |
//! | `process.woken` | `WakeKernel`, `Desk::watch` | `Desk::poll`, `has_news` | what the waker did |
//! | `process.guest_woken` | `WakeGuest` | `Guest::drive` | what the waker did |
//! | `process.ended` | `Host::end` | `end_with_parent` | that the kernel has ended |
//! | `process.host_woken` | `Woken::wake` | `Host::run_kernel` | what the waker did |
//!
//! Those of rings and doorbells are in `dotcompute-mailbox`.
//!
//! [`Restart`]: dotcompute_core::Restart
//! [`DELIVERIES_MAX`]: dotcompute_core::DELIVERIES_MAX

#[cfg(target_os = "linux")]
mod arena;
#[cfg(target_os = "linux")]
mod child;
#[cfg(target_os = "linux")]
mod coder;
#[cfg(target_os = "linux")]
mod executor;
#[cfg(target_os = "linux")]
mod frame;
#[cfg(target_os = "linux")]
mod host;
#[cfg(target_os = "linux")]
mod kernels;
#[cfg(target_os = "linux")]
mod memory;
#[cfg(target_os = "linux")]
mod output;
#[cfg(target_os = "linux")]
mod proxy;
#[cfg(target_os = "linux")]
mod segment;
#[cfg(target_os = "linux")]
mod socket;
#[cfg(target_os = "linux")]
mod state;

#[cfg(target_os = "linux")]
pub use arena::Lease;
#[cfg(target_os = "linux")]
pub use coder::{Coder, Incoming, Outgoing, read_records, write_records};
#[cfg(target_os = "linux")]
pub use host::{Host, Log};
#[cfg(target_os = "linux")]
pub use kernels::{Kernels, Process, Processes, child_host, executor, is_child};
#[cfg(target_os = "linux")]
pub use memory::Memory;
#[cfg(target_os = "linux")]
pub use output::{Output, Sink};

/// The name of the executor.
pub const EXECUTOR: &str = "process";

/// Why kernels cannot run in processes of their own here; `None` if they can.
pub const fn unavailable() -> Option<&'static str> {
    match cfg!(target_os = "linux") {
        true => None,
        false => Some("processes need Linux: memory files, futexes and pidfds"),
    }
}

/// Tells a process that it is a child, and whose: the parent's process id.
#[cfg(target_os = "linux")]
const CHILD_OF: &str = "DOTCOMPUTE_CHILD_OF";
