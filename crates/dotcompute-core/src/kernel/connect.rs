//! Connecting kernels: the replies of one go straight into the mailbox of the next.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dotcompute_mailbox::sync::lock;
use dotcompute_mailbox::{Backpressure, Diverted, Mailbox, wait};

use super::ask::ask_through;
use super::forward::{CarryOver, Link, Way};
use super::{Address, AnyCell, Cell, KernelRef};
use crate::error::{AskError, ConnectError, KernelId};
use crate::message::{Envelope, Message};
use crate::pipeline::{AnyNext, Stage};
use crate::relay::Home;
use crate::terminate::{self, Terminate, Termination};
use crate::timer;

/// What a kernel can be connected to: a kernel or a [`Pool`](crate::Pool) that takes `M`.
#[diagnostic::on_unimplemented(
    message = "`{Self}` does not take `{M}`, which the kernel replies with",
    label = "neither a kernel nor a pool that takes `{M}`"
)]
pub trait Next<M: Message>: sealed::Next<M> {
    /// What it replies with.
    type Reply: Message;
}

pub(crate) mod sealed {
    use super::{Message, Stage, Way};

    /// Of this crate only.
    pub trait Next<M: Message> {
        #[doc(hidden)]
        #[allow(private_interfaces, reason = "nobody else has it or calls it")]
        fn next(&self) -> (Way<M>, Stage);
    }
}

impl<M: Message, R: Message> Next<M> for KernelRef<M, R> {
    type Reply = R;
}

impl<M: Message, R: Message> sealed::Next<M> for KernelRef<M, R> {
    #[allow(private_interfaces, reason = "as above")]
    fn next(&self) -> (Way<M>, Stage) {
        let cell: Arc<dyn AnyCell> = self.cell.clone();
        (Way::Kernel(self.cell.clone()), cell.next().stage)
    }
}

impl<M: Message, R: Message> KernelRef<M, R> {
    /// Connects this kernel to `next`, a kernel or a pool that takes what it replies with: from now
    /// on its replies go straight into the mailbox of `next`, across executors, at the cost of a
    /// send.
    ///
    /// - Replies that wait to be read go first, in their order, even if `next` has no room for them
    ///   all. `next` need not be active yet.
    /// - The policy of `next` decides what happens to a reply that finds its mailbox full. If it is
    ///   to block, this kernel waits with the reply, and so, in the end, do its senders.
    /// - To receive from this kernel is an error, also for those who are waiting now. To ask it is to
    ///   ask the last kernel of the pipeline as it is then, which has to reply with the type that is
    ///   asked for: [`Pipeline::ask`] has the right one. That kernel answers or the ask fails, also
    ///   where the pipeline changes meanwhile; asks that this kernel has accepted before it answers
    ///   itself. Each stage skips the message of an ask that has ended.
    /// - A message that is passed on is a message of its own: it has the id and the priority of the
    ///   reply, and its correlation id names the message that it answers. What an asker gets
    ///   correlates with what was asked.
    /// - If `next` fails, the asks in it and on the way to it fail. Otherwise this kernel waits with
    ///   its reply, through the back-off of a restart and, if `next` has failed for good, until it is
    ///   terminated or this kernel is disconnected.
    /// - If `next` ends or is to end, also if it is to drain first, this kernel is disconnected from
    ///   it: its replies stay with it, to be received, or for the next kernel that it is connected to.
    ///   Asks that are not past this kernel fail. To drain a pipeline, terminate
    ///   [its kernels in order](Pipeline::terminate).
    /// - A connection ends with either kernel; a restart does not end it.
    /// - Of a [pool](crate::Pool) each reply goes to one worker, by turn or by its key, as messages
    ///   do that are sent there; what is said of `next` holds of that worker. A connection to a pool
    ///   ends with its last worker. A reply whose key belongs to a worker that has ended, while others
    ///   go on, is a dead letter, and its ask fails.
    ///
    /// The types have to agree:
    ///
    /// ```compile_fail,E0277
    /// # use dotcompute_core::{KernelRef, Message};
    /// struct Reading(f64);
    /// impl Message for Reading {
    ///     const TYPE_NAME: &'static str = "Reading";
    /// }
    /// struct Alert(u8);
    /// impl Message for Alert {
    ///     const TYPE_NAME: &'static str = "Alert";
    /// }
    ///
    /// fn wrong(reads: &KernelRef<Reading, Reading>, alerts: &KernelRef<Alert, Alert>) {
    ///     let _ = reads.connect(alerts);
    /// }
    /// ```
    ///
    /// # Errors
    ///
    /// See [`ConnectError`]. A cycle is an error if all its kernels wait for room: they could come to
    /// wait for each other for ever.
    pub fn connect<N: Next<R>>(&self, next: &N) -> Result<Pipeline<M, N::Reply>, ConnectError> {
        self.connect_to_stage(next, false)
    }

    /// [`connect`](Self::connect) that allows a cycle of kernels that wait for room. It does not come
    /// to a standstill as long as fewer messages go round than the mailboxes have room for.
    ///
    /// # Errors
    ///
    /// See [`ConnectError`].
    pub fn connect_allowing_cycle<N: Next<R>>(
        &self,
        next: &N,
    ) -> Result<Pipeline<M, N::Reply>, ConnectError> {
        self.connect_to_stage(next, true)
    }

    fn connect_to_stage<N: Next<R>>(
        &self,
        next: &N,
        allow_cycle: bool,
    ) -> Result<Pipeline<M, N::Reply>, ConnectError> {
        let (way, stage) = next.next();
        let cell: Arc<dyn AnyCell> = self.cell.clone();
        alone(&*cell)?;
        if let Some(carry) = self.cell.connect_to(way, &stage, allow_cycle)? {
            carry.run();
        }
        Ok(Pipeline {
            first: self.address(),
            stages: vec![cell.next().stage, stage],
            home: Home::new(),
        })
    }

    /// Disconnects this kernel from the next one: its replies go to its own output again. A reply
    /// that waits for room in the next kernel comes back; asks that are not past this kernel fail.
    /// `false`: it was not connected.
    pub fn disconnect(&self) -> bool {
        let cell: Arc<dyn AnyCell> = self.cell.clone();
        self.cell.runtime.upgrade().is_some_and(|runtime| runtime.pipelines.disconnect(&cell))
    }

    /// The name of the kernel that this one is connected to.
    pub fn connected_to(&self) -> Option<KernelId> {
        self.cell.runtime.upgrade()?.pipelines.next(&*self.cell)
    }
}

impl<M: Message, R: Message> Cell<M, R> {
    pub(super) fn connect_to(
        self: &Arc<Self>,
        way: Way<R>,
        next: &Stage,
        allow_cycle: bool,
    ) -> Result<Option<CarryOver<M, R>>, ConnectError> {
        let runtime = self.runtime.upgrade();
        let theirs = next.cells.first().and_then(|cell| cell.runtime().upgrade());
        let (Some(runtime), Some(theirs)) = (runtime, theirs) else {
            return Err(ConnectError::Stopped { kernel: self.id.clone() });
        };
        if !Arc::ptr_eq(&runtime, &theirs) {
            let (from, to) = (self.id.clone(), next.id.clone());
            return Err(ConnectError::OtherRuntime { from, to });
        }
        let from: Arc<dyn AnyCell> = self.clone();
        let set_link = || self.set_link(way, next);
        let (diverted, link, replies) =
            runtime.pipelines.connect(&from, next, allow_cycle, set_link)?;
        // Out of the locks.
        drop(diverted);
        self.change(|_| ());
        Ok(replies.map(|replies| CarryOver { cell: Arc::clone(self), link, replies }))
    }

    #[allow(clippy::type_complexity, reason = "for the function above")]
    fn set_link(
        &self,
        way: Way<R>,
        next: &Stage,
    ) -> Result<(Diverted, Arc<Link<R>>, Option<Arc<Mailbox<Envelope<R>>>>), ConnectError> {
        let mut link = lock(&self.link);
        if let Some(present) = &*link {
            let (kernel, to) = (self.id.clone(), present.way.id().clone());
            return Err(ConnectError::AlreadyConnected { kernel, to });
        }
        if self.look(|lifecycle| lifecycle.stop.is_some() || lifecycle.state.has_ended()) {
            return Err(ConnectError::Stopped { kernel: self.id.clone() });
        }
        // A reply is refused by the output mailbox from here on, and then finds the link. What is
        // queued for a pool waits aside, since its way is chosen by the user's code: not here, where
        // there are locks.
        let aside = match &way {
            Way::Kernel(_) => None,
            Way::Pool(_) if next.cells.iter().any(|cell| cell.is_living()) => {
                Some(Mailbox::new(1, Backpressure::Block))
            }
            Way::Pool(pool) => {
                return Err(ConnectError::Stopped { kernel: pool.id().clone() });
            }
        };
        let diverted = match (&way, &aside) {
            (_, Some(aside)) => self.replies.divert(aside),
            (Way::Kernel(to), None) => self.replies.divert(to.mailbox()),
            (Way::Pool(_), None) => unreachable!("a pool has its replies put aside"),
        };
        let diverted =
            diverted.map_err(|_closed| ConnectError::Stopped { kernel: next.id.clone() })?;
        let present = Link::new(way, aside.is_some());
        *link = Some(Arc::clone(&present));
        self.note_link(true);
        Ok((diverted, present, aside))
    }
}

/// Kernels that are connected, from one that takes `M` to one that replies with `R`. Cloning is
/// cheap.
///
/// It sends as the [`Address`] of its first kernel does. The replies that no ask has claimed are
/// received from its last kernel. It holds nothing together: what is connected may change.
///
/// ```
/// use dotcompute_core::{Context, Message, Runtime, Terminate};
///
/// struct Number(u64);
/// impl Message for Number {
///     const TYPE_NAME: &'static str = "Number";
/// }
/// struct Text(String);
/// impl Message for Text {
///     const TYPE_NAME: &'static str = "Text";
/// }
///
/// let runtime = Runtime::builder().build();
/// let square = runtime.kernel("square").launch(
///     |mut context: Context<Number, Number>| async move {
///         while let Ok(&Number(n)) = context.receive().await {
///             context.reply(Number(n * n)).await?;
///         }
///         Ok(())
///     },
/// )?;
/// let print = runtime.kernel("print").executor("thread").launch(
///     |mut context: Context<Number, Text>| async move {
///         while let Ok(&Number(n)) = context.receive().await {
///             context.reply(Text(format!("it is {n}"))).await?;
///         }
///         Ok(())
///     },
/// )?;
/// let pipeline = square.connect(&print)?;
/// square.activate()?;
/// print.activate()?;
///
/// assert_eq!(pipeline.ask_blocking(Number(5), None)?.message.0, "it is 25");
/// pipeline.send_blocking(Number(6), None)?;
/// assert_eq!(print.receive_blocking(None)?.message.0, "it is 36");
/// pipeline.terminate_blocking(Terminate::drain());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Pipeline<M, R> {
    first: Address<M>,
    stages: Vec<Stage>,
    home: Arc<Home<R>>,
}

impl<M: Message, R: Message> Pipeline<M, R> {
    /// Connects the last kernel to `next` too: see [`KernelRef::connect`]. Of a pool all workers.
    ///
    /// # Errors
    ///
    /// See [`ConnectError`].
    pub fn then<N: Next<R>>(&self, next: &N) -> Result<Pipeline<M, N::Reply>, ConnectError> {
        let (way, stage) = next.next();
        let mut stages = self.stages.clone();
        if let Some(last) = stages.last() {
            let next = AnyNext { stage: stage.clone(), way: Box::new(way), types: String::new() };
            connect_stage(&last.cells, &next, false)?;
        }
        stages.push(stage);
        Ok(Pipeline { first: self.first.clone(), stages, home: Home::new() })
    }

    /// The names of its kernels and pools, in order, as they were connected.
    pub fn stages(&self) -> Vec<KernelId> {
        self.stages.iter().map(|stage| stage.id.clone()).collect()
    }

    /// Sends a message to the first kernel and waits for the reply of the last one. A stage that
    /// makes no reply of a message leaves its ask waiting; of several replies to one message the
    /// first carries the ask on, and the others are dead letters.
    ///
    /// # Errors
    ///
    /// See [`AskError`]: it names the kernel in which it went wrong.
    ///
    /// # Cancel safety
    ///
    /// As for [`KernelRef::ask`]: the stages that the message has not come to skip it.
    pub async fn ask(&self, message: impl Into<Envelope<M>>) -> Result<Envelope<R>, AskError<M>> {
        ask_through(&*self.first.to, &self.home, message.into(), None).await
    }

    /// [`ask`](Self::ask) that gives up after `timeout`, sending included.
    ///
    /// # Errors
    ///
    /// See [`AskError`].
    pub async fn ask_timeout(
        &self,
        message: impl Into<Envelope<M>>,
        timeout: Duration,
    ) -> Result<Envelope<R>, AskError<M>> {
        ask_through(&*self.first.to, &self.home, message.into(), timer::after(timeout)).await
    }

    /// [`ask`](Self::ask) that waits on the calling thread, for ever without a `timeout`.
    ///
    /// # Errors
    ///
    /// See [`AskError`].
    pub fn ask_blocking(
        &self,
        message: impl Into<Envelope<M>>,
        timeout: Option<Duration>,
    ) -> Result<Envelope<R>, AskError<M>> {
        let deadline = timeout.and_then(timer::after);
        wait::block_on(ask_through(&*self.first.to, &self.home, message.into(), deadline))
    }

    /// Ends its kernels as `how` says, within its time for all of them together; how each ended, in
    /// order, the workers of a pool one by one. To drain is to let each kernel work off what it has before the next one is to end, so
    /// that what was sent comes out at the end, to be received meanwhile.
    ///
    /// # Cancel safety
    ///
    /// What was asked to end ends; only the deadline is then no longer enforced.
    pub async fn terminate(&self, how: Terminate) -> Vec<Termination> {
        if !how.drain {
            let cells: Vec<_> =
                self.stages.iter().flat_map(|stage| stage.cells.iter().cloned()).collect();
            stop_all(&cells, how.drain);
            return terminate::end_all(&cells, how.within).await;
        }
        let begin = Instant::now();
        let mut outcomes = Vec::with_capacity(self.stages.len());
        for stage in &self.stages {
            stop_all(&stage.cells, how.drain);
            let left = how.within.saturating_sub(begin.elapsed());
            outcomes.extend(terminate::end_all(&stage.cells, left).await);
        }
        outcomes
    }

    /// [`terminate`](Self::terminate) that waits on the calling thread.
    pub fn terminate_blocking(&self, how: Terminate) -> Vec<Termination> {
        wait::block_on(self.terminate(how))
    }
}

impl<M, R> Deref for Pipeline<M, R> {
    type Target = Address<M>;

    fn deref(&self) -> &Address<M> {
        &self.first
    }
}

impl<M, R> Clone for Pipeline<M, R> {
    fn clone(&self) -> Self {
        let home = Arc::clone(&self.home);
        Self { first: self.first.clone(), stages: self.stages.clone(), home }
    }
}

impl<M, R> fmt::Debug for Pipeline<M, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let stages: Vec<_> = self.stages.iter().map(|stage| &stage.id).collect();
        f.debug_tuple("Pipeline").field(&stages).finish()
    }
}

/// Connects the kernels of a stage, those that have not ended, to the next one; all or none.
pub(crate) fn connect_stage(
    from: &[Arc<dyn AnyCell>],
    to: &AnyNext,
    allow_cycle: bool,
) -> Result<(), ConnectError> {
    let single = from.len() == 1;
    let living: Vec<_> = from.iter().filter(|cell| single || cell.is_living()).collect();
    if living.is_empty() {
        let kernel = from.first().map_or_else(|| to.stage.id.clone(), |cell| cell.id().clone());
        return Err(ConnectError::Stopped { kernel });
    }
    if single {
        alone(&**living[0])?;
    }
    // All are connected before any reply is brought there: what a worker of a pool makes meanwhile
    // waits, as does what others make, until the replies of before, which may be its own, are there.
    let mut carries = Vec::new();
    let mut refused = Ok(());
    let mut connected = 0;
    for cell in &living {
        match Arc::clone(cell).connect(to, allow_cycle) {
            Ok(carry) => carries.extend(carry),
            Err(error) => {
                refused = Err(error);
                break;
            }
        }
        connected += 1;
    }
    carries.into_iter().for_each(|carry| carry());
    if refused.is_err() {
        for cell in &living[..connected] {
            if let Some(runtime) = cell.runtime().upgrade() {
                runtime.pipelines.disconnect(cell);
            }
        }
    }
    refused
}

/// A worker of a pool is not connected without the others: they share what would be closed.
fn alone(cell: &dyn AnyCell) -> Result<(), ConnectError> {
    match cell.shares_output() {
        true => Err(ConnectError::OfAPool { kernel: cell.id().clone() }),
        false => Ok(()),
    }
}

/// Asks the kernels of stages to end. What is connected to them is cut off first, so that a pool
/// ends as one.
pub(crate) fn stop_all(cells: &[Arc<dyn AnyCell>], drain: bool) {
    if let Some(runtime) = cells.first().and_then(|cell| cell.runtime().upgrade()) {
        runtime.pipelines.cut_off_all(cells);
    }
    for cell in cells {
        cell.request_stop(drain);
        cell.remove_when_ended();
    }
}
