//! Compiled handlers whose kernels run elsewhere, in a process of their own say: what stays where the
//! kernel was launched, and the calls where it runs.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::body::{OpenRoute, at_record};
use super::call::Outbox;
use super::state::StateCell;
use super::{Call, CompiledHandler, RecordBatch, RecordMessage, RecordReply, Shape};
use crate::context::Context;
use crate::error::{BoxError, KernelId, LaunchError};
use crate::handler::Made;
use crate::message::Message;
use crate::runtime::Runtime;

/// Reads a state that lies elsewhere.
pub trait StateSource: Send + Sync + 'static {
    /// A copy of the state as it is between two messages; `None` if there was none within that time.
    fn read(&self, within: Duration) -> Option<Vec<u8>>;
}

/// What of a compiled handler stays where its kernel was launched.
pub struct NearSide {
    shape: Shape,
    state: Arc<StateCell>,
    routes: Vec<Box<dyn super::body::Route>>,
    is_fed: bool,
}

impl NearSide {
    /// Of this handler, whose code runs elsewhere.
    pub fn of(handler: CompiledHandler) -> Self {
        let CompiledHandler { shape, state, routes, feed, .. } = handler;
        Self { shape, state, routes, is_fed: feed.is_some() }
    }

    /// Whether messages of type `M` and replies of type `R` are what it takes and makes.
    ///
    /// # Errors
    ///
    /// `Layout`, if they are not; `InvalidOption`, if the handler has a feed, which does not lead to
    /// where its code runs.
    pub fn check<M: RecordMessage, R: RecordReply>(
        &self,
        kernel: &KernelId,
    ) -> Result<(), LaunchError> {
        if self.is_fed {
            return Err(LaunchError::InvalidOption {
                kernel: kernel.clone(),
                option: "feed",
                value: "a ring of this process".into(),
                expected: "an executor whose kernels run in this process",
            });
        }
        self.shape.check::<M, R>(kernel)
    }

    /// What the state is at first; none where the handler keeps no state.
    pub fn initial_state(&self) -> Option<Vec<u8>> {
        self.state.layout().map(|_| self.state.initial())
    }

    /// From now on readers of the state read it there. The first source counts.
    pub fn read_state_from(&self, source: Arc<dyn StateSource>) {
        self.state.read_from(source);
    }

    /// The way to the target of this number, for one run of the kernel.
    pub fn way_to(&self, target: usize) -> Option<WayTo> {
        self.routes.get(target).map(|route| WayTo(Some(route.open())))
    }
}

impl fmt::Debug for NearSide {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NearSide").field("shape", &self.shape).finish_non_exhaustive()
    }
}

/// The way to a target of a handler.
pub struct WayTo(Option<Box<dyn OpenRoute>>);

impl WayTo {
    /// Sends records there, which the handler sent with one message: one record or a batch. Waits
    /// for room; the way comes back with the outcome.
    ///
    /// # Errors
    ///
    /// There is no such kernel, it takes something else, or it has ended.
    pub async fn send(
        mut self,
        runtime: Option<Runtime>,
        records: Vec<u8>,
        single: bool,
    ) -> (Self, Result<(), BoxError>) {
        let sent = match &mut self.0 {
            Some(route) => route.send(runtime, &records, single).await,
            None => Ok(()),
        };
        (self, sent)
    }
}

impl fmt::Debug for WayTo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WayTo").finish_non_exhaustive()
    }
}

/// A compiled handler called message by message, where its kernel runs; keeps the state.
pub struct CompiledCalls {
    handler: CompiledHandler,
    kernel: KernelId,
    state: Vec<u64>,
    outbox: Box<Outbox>,
    scratch: Vec<u64>,
    /// Whether the message that was handled last was one record and no batch.
    single: bool,
}

impl CompiledCalls {
    /// Calls of `handler`, whose state is as at first. `must_stop` tells it, where it asks, whether
    /// the kernel is to end at once.
    pub fn new(
        handler: CompiledHandler,
        kernel: &str,
        must_stop: impl Fn() -> bool + Send + 'static,
    ) -> Self {
        let layouts = handler.routes.iter().map(|route| route.layout());
        let outbox = Outbox::new(handler.shape, layouts, Box::new(must_stop));
        let mut calls = Self {
            state: Vec::new(),
            kernel: kernel.into(),
            outbox,
            scratch: Vec::new(),
            single: true,
            handler,
        };
        let initial = calls.handler.state.initial();
        calls.state = vec![0; initial.len().div_ceil(8)];
        calls.set_state(&initial);
        calls
    }

    /// The size of the state in bytes; none where the handler keeps none.
    pub fn state_bytes(&self) -> Option<usize> {
        self.handler.state.layout().map(|layout| layout.bytes)
    }

    /// The state, in words; those bytes of the last one that are not the state's are 0.
    pub fn state(&self) -> &[u64] {
        &self.state
    }

    /// Makes the state what these bytes say, as many as there are.
    pub fn set_state(&mut self, bytes: &[u8]) {
        let state: &mut [u8] = bytemuck::cast_slice_mut(&mut self.state);
        let length = bytes.len().min(state.len());
        state[..length].copy_from_slice(&bytes[..length]);
    }

    /// Handles one message, which somebody may have `asked`; appends the replies to it, in order, to
    /// `made`.
    ///
    /// # Errors
    ///
    /// The handler's; there are no replies then, nothing was [sent](Self::sent), and the state is as
    /// the handler left it.
    pub fn call<M: RecordMessage, R: RecordReply>(
        &mut self,
        message: &M,
        asked: bool,
        made: &mut Vec<Made<R>>,
    ) -> Result<(), BoxError> {
        let Self { handler, state, outbox, scratch, .. } = self;
        let records = message.records(handler.shape.input, scratch)?;
        let single = records.single;
        self.single = single;
        let state_bytes = handler.state.layout().map_or(0, |layout| layout.bytes);
        let start = state.as_mut_ptr().cast();
        let mut call = Call::new(records.bytes, single, start, state_bytes, outbox);
        let ran = handler.code.run(&mut call);
        let (at, count) = (call.record(), call.count());
        if outbox.has_log() {
            for (level, text) in outbox.take_log() {
                handler.code.log(&self.kernel, level, &text);
            }
        }
        ran.map_err(|error| at_record(error, at, count, single))?;
        let Some(layout) = handler.shape.output else { return Ok(()) };
        let count = outbox.reply_count();
        // Whoever asks with a batch gets one, also an empty one.
        if !single && (count > 0 || asked) {
            match R::many(RecordBatch::owned(layout, outbox.take_replies(), count)) {
                Ok(batch) => made.push(Made::Reply(batch)),
                Err(batch) => {
                    let each = batch.bytes().chunks_exact(layout.bytes);
                    made.extend(each.map(|record| Made::Reply(R::one(layout, record))));
                }
            }
            return Ok(());
        }
        let records = outbox.replies().chunks_exact(layout.bytes);
        made.extend(records.map(|record| Made::Reply(R::one(layout, record))));
        Ok(())
    }

    /// What the handler sent, with the message that it handled last, to its target of this number:
    /// records one after the other, and whether as one that is no batch. None: there is no such
    /// target.
    pub fn sent(&mut self, target: usize) -> Option<(&[u8], bool)> {
        (target < self.handler.routes.len())
            .then(|| (self.outbox.sent(target).as_slice(), self.single))
    }
}

impl fmt::Debug for CompiledCalls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CompiledCalls").field("handler", &self.handler).finish_non_exhaustive()
    }
}

/// For proxies of compiled handlers.
impl<M: Message, R: Message> Context<M, R> {
    /// Says that a message which is settled held so many records.
    pub fn count_lent_records(&self, records: usize) {
        self.count_records(records);
    }
}
