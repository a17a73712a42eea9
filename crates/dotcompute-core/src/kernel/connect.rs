//! Connecting kernels: the replies of one go straight into the mailbox of the next.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dotcompute_mailbox::sync::lock;
use dotcompute_mailbox::{Diverted, wait};

use super::ask::ask_through;
use super::forward::Link;
use super::send::Accept;
use super::{Address, AnyCell, Cell, KernelRef};
use crate::error::{AskError, ConnectError, KernelId};
use crate::message::{Envelope, Message};
use crate::relay::Home;
use crate::terminate::{self, Terminate, Termination};
use crate::timer;

impl<M: Message, R: Message> KernelRef<M, R> {
    /// Connects this kernel to `next`, which takes what it replies with: from now on its replies go
    /// straight into the mailbox of `next`, across executors, at the cost of a send.
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
    ///
    /// The types have to agree:
    ///
    /// ```compile_fail,E0308
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
    pub fn connect<S: Message>(
        &self,
        next: &KernelRef<R, S>,
    ) -> Result<Pipeline<M, S>, ConnectError> {
        self.connect_to_kernel(next, false)
    }

    /// [`connect`](Self::connect) that allows a cycle of kernels that wait for room. It does not come
    /// to a standstill as long as fewer messages go round than the mailboxes have room for.
    ///
    /// # Errors
    ///
    /// See [`ConnectError`].
    pub fn connect_allowing_cycle<S: Message>(
        &self,
        next: &KernelRef<R, S>,
    ) -> Result<Pipeline<M, S>, ConnectError> {
        self.connect_to_kernel(next, true)
    }

    fn connect_to_kernel<S: Message>(
        &self,
        next: &KernelRef<R, S>,
        allow_cycle: bool,
    ) -> Result<Pipeline<M, S>, ConnectError> {
        let to: Arc<dyn AnyCell> = next.cell.clone();
        self.cell.connect_to(next.cell.clone(), &to, allow_cycle)?;
        Ok(Pipeline {
            first: self.address(),
            stages: vec![self.cell.clone(), to],
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
        to: Arc<dyn Accept<R>>,
        next: &Arc<dyn AnyCell>,
        allow_cycle: bool,
    ) -> Result<(), ConnectError> {
        let runtime = self.runtime.upgrade();
        let theirs = next.runtime().upgrade();
        let (Some(runtime), Some(theirs)) = (runtime, theirs) else {
            return Err(ConnectError::Stopped { kernel: self.id.clone() });
        };
        if !Arc::ptr_eq(&runtime, &theirs) {
            let (from, to) = (self.id.clone(), next.id().clone());
            return Err(ConnectError::OtherRuntime { from, to });
        }
        let from: Arc<dyn AnyCell> = self.clone();
        let diverted = runtime.pipelines.connect(&from, next, allow_cycle, || self.set_link(to))?;
        // Out of the locks.
        drop(diverted);
        Ok(())
    }

    fn set_link(&self, to: Arc<dyn Accept<R>>) -> Result<Diverted, ConnectError> {
        let mut link = lock(&self.link);
        if let Some(present) = &*link {
            let (kernel, to) = (self.id.clone(), present.to.id().clone());
            return Err(ConnectError::AlreadyConnected { kernel, to });
        }
        if self.look(|lifecycle| lifecycle.stop.is_some() || lifecycle.state.has_ended()) {
            return Err(ConnectError::Stopped { kernel: self.id.clone() });
        }
        // A reply is refused by the output mailbox from here on, and then finds the link.
        let diverted = self.replies.divert(to.mailbox());
        let diverted =
            diverted.map_err(|_closed| ConnectError::Stopped { kernel: to.id().clone() })?;
        *link = Some(Arc::new(Link { to, home: Home::new() }));
        self.note_link(true);
        Ok(diverted)
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
    stages: Vec<Arc<dyn AnyCell>>,
    home: Arc<Home<R>>,
}

impl<M: Message, R: Message> Pipeline<M, R> {
    /// Connects the last kernel to `next` too: see [`KernelRef::connect`].
    ///
    /// # Errors
    ///
    /// See [`ConnectError`].
    pub fn then<S: Message>(&self, next: &KernelRef<R, S>) -> Result<Pipeline<M, S>, ConnectError> {
        let to: Arc<dyn AnyCell> = next.cell.clone();
        let mut stages = self.stages.clone();
        if let Some(last) = stages.last() {
            Arc::clone(last).connect(&to, false)?;
        }
        stages.push(to);
        Ok(Pipeline { first: self.first.clone(), stages, home: Home::new() })
    }

    /// The names of its kernels, in order, as they were connected.
    pub fn stages(&self) -> Vec<KernelId> {
        self.stages.iter().map(|stage| stage.id().clone()).collect()
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
    /// order. To drain is to let each kernel work off what it has before the next one is to end, so
    /// that what was sent comes out at the end, to be received meanwhile.
    ///
    /// # Cancel safety
    ///
    /// What was asked to end ends; only the deadline is then no longer enforced.
    pub async fn terminate(&self, how: Terminate) -> Vec<Termination> {
        let stop = |stage: &Arc<dyn AnyCell>| {
            stage.request_stop(how.drain);
            stage.remove_when_ended();
        };
        if !how.drain {
            self.stages.iter().for_each(stop);
            return terminate::end_all(&self.stages, how.within).await;
        }
        let begin = Instant::now();
        let mut outcomes = Vec::with_capacity(self.stages.len());
        for stage in &self.stages {
            stop(stage);
            let left = how.within.saturating_sub(begin.elapsed());
            outcomes.extend(terminate::end_all(std::slice::from_ref(stage), left).await);
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
        let stages: Vec<_> = self.stages.iter().map(|stage| stage.id()).collect();
        f.debug_tuple("Pipeline").field(&stages).finish()
    }
}
