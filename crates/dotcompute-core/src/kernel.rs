//! One ring kernel: what its senders, its body, its supervisor and its runtime share, and the
//! handle by which users reach it.
//!
//! The submodules hold what can be done with it.

use std::fmt;
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::task::Waker;

use dotcompute_mailbox::sync::{AtomicU32, AtomicU64, Lock, Ordering, lock};
use dotcompute_mailbox::{Backpressure, Books, Mailbox, STAMP_EVERY};

use crate::ask::Asks;
use crate::compiled::FeedOf;
use crate::error::{Fault, KernelId, StateError};
use crate::executor::Helper;
use crate::lent::LentMessages;
use crate::lifecycle::{KernelState, Lifecycle};
use crate::message::{Envelope, Message, Taken};
use crate::options::Options;
use crate::pipeline::{Key, key};
use crate::runtime::Shared;
use crate::telemetry::{KernelTelemetry, Telemetry};

mod address;
mod any;
mod ask;
mod connect;
mod end;
mod forward;
mod life;
mod receive;
mod reply;
mod send;

pub use address::Address;
pub(crate) use any::{AnyCell, types};
pub use connect::{Next, Pipeline};
pub(crate) use connect::{connect_stage, sealed, stop_all};
pub use end::ScopedKernel;
use forward::Link;
pub(crate) use forward::{Outlet, Spread, Way};
pub use receive::Receiving;
pub(crate) use send::Accept;

/// What everyone who deals with one kernel shares.
#[repr(C)] // What every send and every poll reads comes first, in one cache line.
pub(crate) struct Cell<M, R> {
    pub(crate) mailbox: Arc<Mailbox<Envelope<M>>>,
    control: AtomicU32,
    pub(crate) id: KernelId,
    pub(crate) options: Options,
    pub(crate) executor: &'static str,
    pub(crate) replies: Arc<Mailbox<Envelope<R>>>,
    asks: Lock<Asks<R>>,
    /// Where its replies go instead of `replies`, while it is connected.
    link: Mutex<Option<Arc<Link<R>>>>,
    /// Whose `replies` are, if it is a worker of a pool.
    output: Option<Arc<Output<R>>>,
    lifecycle: Mutex<Lifecycle>,
    /// The task that runs the body, to be woken by a kill.
    runner: Mutex<Option<Waker>>,
    /// What is known of the message in hand where a body took it and then ended.
    taken: Mutex<Option<Taken>>,
    /// What a body that ended had handed on and not settled.
    lent: Mutex<LentMessages<M>>,
    /// Replies that went to a kernel that this one was connected to: those that its context sent
    /// without waiting, and the others. Away from what senders read.
    sent_on: AtomicU64,
    forwarded: AtomicU64,
    pub(crate) telemetry: Telemetry,
    pub(crate) runtime: Weak<Shared>,
    /// Lets those who wait for the kernel drive it, where its executor can.
    pub(crate) helper: OnceLock<Arc<dyn Helper>>,
    /// The feed of a compiled handler, where it has one.
    pub(crate) feed: OnceLock<FeedOf<M>>,
}

fn mailbox<M: Message>(
    capacity: usize,
    backpressure: Backpressure,
    sample_every: u64,
    exact_priority: bool,
) -> Arc<Mailbox<Envelope<M>>> {
    match exact_priority {
        false => Mailbox::stamping(capacity, backpressure, sample_every),
        true => Mailbox::ranked(capacity, backpressure, sample_every, |envelope| envelope.priority),
    }
}

fn replies<R: Message>(options: &Options) -> Arc<Mailbox<Envelope<R>>> {
    mailbox(options.reply_capacity, options.reply_backpressure, STAMP_EVERY, options.exact_priority)
}

/// The output that the workers of a pool share.
pub(crate) struct Output<R> {
    pub(crate) replies: Arc<Mailbox<Envelope<R>>>,
    /// Workers that have not ended.
    workers: AtomicU64,
}

impl<R: Message> Output<R> {
    pub(crate) fn new(options: &Options) -> Arc<Self> {
        Arc::new(Self { replies: replies(options), workers: AtomicU64::new(0) })
    }

    fn join(&self) -> Arc<Mailbox<Envelope<R>>> {
        // Relaxed: a count; the pool is not shared before all its workers are in it.
        self.workers.fetch_add(1, Ordering::Relaxed);
        Arc::clone(&self.replies)
    }

    fn workers(&self) -> u64 {
        // Relaxed: a count.
        self.workers.load(Ordering::Relaxed)
    }
}

impl<M: Message, R: Message> Cell<M, R> {
    pub(crate) fn new(
        id: KernelId,
        mut options: Options,
        executor: &'static str,
        runtime: &Arc<Shared>,
    ) -> Arc<Self> {
        let output = options.output.take().and_then(|output| output.downcast::<Output<R>>().ok());
        let replies = match &output {
            Some(output) => output.join(),
            None => replies(&options),
        };
        Arc::new(Self {
            // Made last, so that it lies near the rest of what each message touches.
            mailbox: mailbox(
                options.capacity,
                options.backpressure,
                options.sample_every,
                options.exact_priority,
            ),
            replies,
            output,
            id,
            options,
            executor,
            asks: Lock::new(Asks::new()),
            link: Mutex::new(None),
            lifecycle: Mutex::new(Lifecycle::new()),
            control: AtomicU32::new(0),
            runner: Mutex::new(None),
            taken: Mutex::new(None),
            lent: Mutex::default(),
            sent_on: AtomicU64::new(0),
            forwarded: AtomicU64::new(0),
            telemetry: Telemetry::default(),
            runtime: Arc::downgrade(runtime),
            helper: OnceLock::new(),
            feed: OnceLock::new(),
        })
    }

    /// See [`AnyCell::place`].
    pub(crate) fn place(&self) -> Key {
        self.output.as_ref().map_or(key(self), |output| key(&**output))
    }

    fn reply_books(&self) -> Books {
        let (mut books, forwarded) = (self.replies.books(), self.forwarded());
        books.accepted += forwarded;
        books.forwarded += forwarded;
        books
    }

    /// How many replies went straight to the kernel that this one was connected to.
    pub(crate) fn forwarded(&self) -> u64 {
        // Relaxed: a count.
        self.sent_on() + self.forwarded.load(Ordering::Relaxed)
    }

    pub(crate) fn sent_on(&self) -> u64 {
        // Relaxed: a count.
        self.sent_on.load(Ordering::Relaxed)
    }

    /// For the kernel's context, of which there is one at a time: so it counts by itself and stores
    /// what it counted, which spares each reply an atomic addition.
    pub(crate) fn set_sent_on(&self, count: u64) {
        // Relaxed: a count. A later context has the inbox of this one, and with it what it did.
        self.sent_on.store(count, Ordering::Relaxed);
    }

    /// The kernel has ended, and with it its part of an output that others share.
    fn leave_output(&self) {
        if let Some(output) = &self.output {
            // SYNC(output.workers) release: pairs with the acquire below. Whoever finds nobody left
            // finds all their replies in the output.
            output.workers.fetch_sub(1, Ordering::Release);
        }
    }

    /// Whether no kernel is left whose replies go to the output.
    fn output_has_ended(&self) -> bool {
        // SYNC(output.workers) acquire: pairs with the above.
        self.output.as_ref().is_none_or(|output| output.workers.load(Ordering::Acquire) == 0)
    }

    fn snapshot(&self) -> KernelTelemetry {
        // Relaxed: statistics.
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let books = self.mailbox.books();
        let (queue_time, handler_time, busy_share) = self.telemetry.times(books.processed);
        let (state, last_fault) = self.look(|l| (l.state, l.fault.clone()));
        KernelTelemetry {
            kernel: self.id.clone(),
            executor: self.executor,
            state,
            books,
            replies: self.reply_books(),
            records: self.telemetry.records(books.processed),
            asks_answered: load(&self.telemetry.asks_answered),
            high_water: self.mailbox.high_water(),
            faults: load(&self.telemetry.faults),
            restarts: load(&self.telemetry.restarts),
            stalls: load(&self.telemetry.stalls),
            // The watchdog no longer looks at a kernel that has ended.
            stalled: self.telemetry.stalled.load(Ordering::Relaxed) != 0 && books.in_hand > 0,
            last_fault,
            queue_time,
            handler_time,
            busy_share,
            uptime: self.telemetry.uptime(),
        }
    }
}

impl<M, R> fmt::Debug for Cell<M, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = lock(&self.lifecycle).state;
        f.debug_struct("Kernel").field("id", &self.id).field("state", &state).finish()
    }
}

/// A handle to a ring kernel that takes `M` and replies with `R`. Cloning is one reference count.
///
/// The handle does not keep the kernel running: the kernel runs until it returns, fails or is
/// terminated, or its runtime goes away. All methods may be called from any thread, also from
/// inside kernels; the `_blocking` ones wait on the calling thread and must not be called in an
/// async task.
pub struct KernelRef<M, R> {
    pub(crate) cell: Arc<Cell<M, R>>,
}

impl<M, R> Clone for KernelRef<M, R> {
    fn clone(&self) -> Self {
        Self { cell: Arc::clone(&self.cell) }
    }
}

impl<M, R> fmt::Debug for KernelRef<M, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.cell.fmt(f)
    }
}

impl<M: Message, R: Message> KernelRef<M, R> {
    /// Its name.
    pub fn id(&self) -> &KernelId {
        &self.cell.id
    }

    /// Its state now.
    pub fn state(&self) -> KernelState {
        self.cell.state()
    }

    /// Why it failed, or what its last restart was for.
    pub fn fault(&self) -> Option<Fault> {
        self.cell.look(|lifecycle| lifecycle.fault.clone())
    }

    /// Starts processing messages: LAUNCHED to ACTIVE.
    ///
    /// # Errors
    ///
    /// In any other state.
    pub fn activate(&self) -> Result<(), StateError> {
        self.cell.activate()
    }

    /// Pauses: ACTIVE to DEACTIVATED. Returns at once; from then on nothing is handed to the
    /// kernel. It keeps its state and its mailbox, goes on with what it has in hand, and accepts
    /// messages; timeouts go on running.
    ///
    /// # Errors
    ///
    /// In any other state.
    pub fn deactivate(&self) -> Result<(), StateError> {
        self.cell.deactivate()
    }

    /// Goes on: DEACTIVATED to ACTIVE.
    ///
    /// # Errors
    ///
    /// In any other state.
    pub fn reactivate(&self) -> Result<(), StateError> {
        self.cell.reactivate()
    }

    /// Whether the kernel was asked to end, or has ended.
    #[inline]
    pub fn is_stopping(&self) -> bool {
        self.cell.is_stopping()
    }

    /// Waits until the kernel processes messages, or is to end, or has ended.
    ///
    /// # Cancel safety
    ///
    /// Waiting changes nothing.
    pub async fn active(&self) {
        self.cell
            .until(|lifecycle| {
                (lifecycle.is_stopping() || lifecycle.state == KernelState::Active).then_some(())
            })
            .await;
    }

    /// What became of every message that the kernel accepted. Exact, and always balanced.
    pub fn books(&self) -> Books {
        self.cell.mailbox.books()
    }

    /// What became of every reply that no ask has claimed: the books of the output mailbox, and what
    /// went to the next kernel while this one was connected. Exact, and always balanced.
    pub fn reply_books(&self) -> Books {
        self.cell.reply_books()
    }

    /// What the kernel has done so far.
    pub fn telemetry(&self) -> KernelTelemetry {
        self.cell.snapshot()
    }

    /// The memory of the kernel's two mailboxes, in bytes; it grows with their use up to their
    /// capacity.
    pub fn mailbox_bytes(&self) -> usize {
        self.cell.mailbox.memory_bytes() + self.cell.replies.memory_bytes()
    }
}
