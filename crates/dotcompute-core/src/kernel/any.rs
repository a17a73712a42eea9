//! A kernel without its message types, as its runtime has it.

use std::any::{Any, type_name};
use std::sync::{Arc, Weak};

use dotcompute_mailbox::Books;

use super::life::Waiter;
use super::send::Accept;
use super::{Address, Cell, KernelRef};
use crate::ask::AskFailure;
use crate::dead_letter::DeadLetter;
use crate::error::{ConnectError, Fault, KernelId};
use crate::lifecycle::KernelState;
use crate::message::Message;
use crate::options::Options;
use crate::relay::tell_all;
use crate::runtime::Shared;
use crate::telemetry::{KernelTelemetry, Telemetry};

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
    /// Connects it to a kernel that takes what it replies with: see [`KernelRef::connect`].
    fn connect(
        self: Arc<Self>,
        to: &Arc<dyn AnyCell>,
        allow_cycle: bool,
    ) -> Result<(), ConnectError>;
    /// Its replies go to its output mailbox from now on.
    fn unlink(&self);
    /// Fails the asks that wait elsewhere and are not past this kernel.
    fn fail_those_passing_through(&self, failure: &AskFailure);
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

    fn connect(
        self: Arc<Self>,
        to: &Arc<dyn AnyCell>,
        allow_cycle: bool,
    ) -> Result<(), ConnectError> {
        let Ok(address) = Arc::clone(to).address().downcast::<Address<R>>() else {
            return Err(ConnectError::WrongType {
                from: self.id.clone(),
                replies: self.types(),
                to: to.id().clone(),
                takes: to.types(),
            });
        };
        self.connect_to(address.to, to, allow_cycle)
    }

    fn unlink(&self) {
        self.unlink();
    }

    fn fail_those_passing_through(&self, failure: &AskFailure) {
        let told = self.asks.lock().fail_those_passing_through(failure);
        tell_all(told, None);
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
