//! A kernel without its message types, as its runtime has it.

use std::any::{Any, type_name};
use std::sync::{Arc, Weak};

use dotcompute_mailbox::Books;

use super::forward::Way;
use super::life::Waiter;
use super::send::Accept;
use super::{Cell, KernelRef};
use crate::ask::AskFailure;
use crate::dead_letter::DeadLetter;
use crate::error::{ConnectError, Fault, KernelId};
use crate::lifecycle::KernelState;
use crate::message::{AskToken, Message};
use crate::options::Options;
use crate::pipeline::{AnyNext, Key, Stage, key};
use crate::relay::{Origin, tell_all};
use crate::runtime::Shared;
use crate::telemetry::{KernelTelemetry, Telemetry};

/// Brings the replies of before a connection where they go now: to be called once all kernels of the
/// stage are connected.
pub(crate) type Carry = Box<dyn FnOnce()>;

/// What a runtime needs of a kernel without knowing its message types.
pub(crate) trait AnyCell: Send + Sync {
    fn id(&self) -> &KernelId;
    fn state(&self) -> KernelState;
    fn options(&self) -> &Options;
    fn types(&self) -> String;
    fn as_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync>;
    fn snapshot(&self) -> KernelTelemetry;
    fn telemetry(&self) -> &Telemetry;
    fn books(&self) -> Books;
    fn request_stop(&self, drain: bool);
    fn kill(&self);
    fn abandon(&self);
    fn bury_replies(&self);
    /// Begins to wait for its end: see [`Waiter::poll_ended`].
    fn wait_for_end(&self) -> Waiter<'_>;
    /// Sends a dead letter again; gives it back with the reason if that cannot be.
    fn replay(&self, letter: DeadLetter) -> Result<(), DeadLetter>;
    /// An `Address<M>`.
    fn address(self: Arc<Self>) -> Box<dyn Any>;
    fn fault(&self) -> Option<Fault>;
    fn runtime(&self) -> &Weak<Shared>;
    /// Its place in a pipeline: who answers an ask that ends with it. A worker stands for its pool.
    fn place(&self) -> Key;
    /// Whether it was not asked to end, and has not ended.
    fn is_living(&self) -> bool;
    /// What others are connected to.
    fn next(self: Arc<Self>) -> AnyNext;
    /// Connects it to what takes its replies: see [`KernelRef::connect`].
    fn connect(
        self: Arc<Self>,
        to: &AnyNext,
        allow_cycle: bool,
    ) -> Result<Option<Carry>, ConnectError>;
    /// Whether others that have not ended reply into the same output.
    fn shares_output(&self) -> bool;
    /// Its replies go to its output mailbox from now on.
    fn unlink(&self);
    /// Fails the asks that wait elsewhere and are not past this kernel.
    fn fail_those_passing_through(&self, failure: &AskFailure);
    /// Where this ask waits, if it does so elsewhere and is not past this kernel.
    fn passes_through(&self, token: AskToken) -> Option<Origin>;
    /// The same; the ask is past this kernel then.
    fn take_back_passing(&self, token: AskToken) -> Option<Origin>;
    /// Takes it out of its runtime, now or when it has ended.
    fn remove(&self);
    fn remove_when_ended(&self);
}

impl<M: Message, R: Message> AnyCell for Cell<M, R> {
    fn id(&self) -> &KernelId {
        &self.id
    }

    fn state(&self) -> KernelState {
        self.state()
    }

    fn options(&self) -> &Options {
        &self.options
    }

    fn types(&self) -> String {
        types::<M, R>()
    }

    fn as_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }

    fn snapshot(&self) -> KernelTelemetry {
        self.snapshot()
    }

    fn telemetry(&self) -> &Telemetry {
        &self.telemetry
    }

    fn books(&self) -> Books {
        self.mailbox.books()
    }

    fn request_stop(&self, drain: bool) {
        self.request_stop(drain);
    }

    fn kill(&self) {
        self.kill();
    }

    fn abandon(&self) {
        self.finish(None, true);
    }

    fn bury_replies(&self) {
        self.bury_replies();
    }

    fn wait_for_end(&self) -> Waiter<'_> {
        Waiter::new(&self.lifecycle)
    }

    fn replay(&self, letter: DeadLetter) -> Result<(), DeadLetter> {
        let (reason, delivery_count) = (letter.reason.clone(), letter.delivery_count);
        let envelope = letter.into_envelope::<M>()?;
        Accept::try_send(self, envelope).map_err(|error| {
            let mut letter = DeadLetter::of(&self.id, error.into_envelope(), reason, true);
            letter.delivery_count = delivery_count;
            letter
        })
    }

    fn address(self: Arc<Self>) -> Box<dyn Any> {
        Box::new(KernelRef { cell: self }.address())
    }

    fn fault(&self) -> Option<Fault> {
        self.look(|lifecycle| lifecycle.fault.clone())
    }

    fn runtime(&self) -> &Weak<Shared> {
        &self.runtime
    }

    fn place(&self) -> Key {
        self.place()
    }

    fn is_living(&self) -> bool {
        self.look(|lifecycle| lifecycle.stop.is_none() && !lifecycle.state.has_ended())
    }

    fn next(self: Arc<Self>) -> AnyNext {
        let (way, types) = (Way::<M>::Kernel(self.clone()), self.types());
        let stage = Stage { id: self.id.clone(), place: key(&*self), cells: vec![self] };
        AnyNext { stage, way: Box::new(way), types }
    }

    fn connect(
        self: Arc<Self>,
        to: &AnyNext,
        allow_cycle: bool,
    ) -> Result<Option<Carry>, ConnectError> {
        let Some(way) = to.way.downcast_ref::<Way<R>>() else {
            return Err(ConnectError::WrongType {
                from: self.id.clone(),
                replies: self.types(),
                to: to.stage.id.clone(),
                takes: to.types.clone(),
            });
        };
        let carry = self.connect_to(way.clone(), &to.stage, allow_cycle)?;
        Ok(carry.map(|carry| -> Carry { Box::new(|| carry.run()) }))
    }

    fn shares_output(&self) -> bool {
        self.output.as_ref().is_some_and(|output| output.workers() > 1)
    }

    fn unlink(&self) {
        self.unlink();
    }

    fn fail_those_passing_through(&self, failure: &AskFailure) {
        let told = self.asks.lock().fail_those_passing_through(failure);
        tell_all(told, None);
    }

    fn passes_through(&self, token: AskToken) -> Option<Origin> {
        self.asks.lock().passes_through(token)
    }

    fn take_back_passing(&self, token: AskToken) -> Option<Origin> {
        self.asks.lock().take_back(token)
    }

    fn remove(&self) {
        if let Some(runtime) = self.runtime.upgrade() {
            runtime.pipelines.leave(self, &AskFailure::Stopped);
            runtime.remove(self);
        }
    }

    fn remove_when_ended(&self) {
        let ended = self.change(|lifecycle| {
            lifecycle.remove_when_ended = true;
            lifecycle.ended
        });
        if ended {
            self.remove();
        }
    }
}

pub(crate) fn types<M: Message, R: Message>() -> String {
    let (message, reply) = (type_name::<M>(), type_name::<R>());
    format!("messages of {message} and replies with {reply}")
}
