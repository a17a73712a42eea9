//! Asks that pass through connected kernels: where they wait, whatever the type of their reply.
//!
//! An ask of a pipeline waits in a [`Home`]. At each kernel on its way it is registered as any ask
//! is, so that the rules of replies hold there; but instead of a task to wake, that entry has the
//! [`Origin`]. The reply of a kernel that is connected carries the origin on to the next kernel; the
//! last one answers it. Whatever else ends the ask in a kernel fails it at its origin.

use std::any::{Any, type_name};
use std::fmt;
use std::sync::Arc;

use dotcompute_mailbox::sync::Lock;

use crate::ask::{AskFailure, Asks, Tell};
use crate::dead_letter::DeadLetterReason;
use crate::error::KernelId;
use crate::lifecycle::wake_all;
use crate::message::{AskToken, Envelope, Message};
use crate::pipeline::Key;

/// Asks that wait for replies of type `R` from wherever they come.
pub(crate) struct Home<R>(pub(crate) Lock<Asks<R>>);

impl<R> Home<R> {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self(Lock::new(Asks::new())))
    }
}

/// A [`Home`] of whatever type of reply.
trait AnyHome: Send + Sync {
    fn waits(&self, token: AskToken) -> bool;
    /// Answers the ask with what is in `reply`, an `Option` of an envelope, or fails it if that is
    /// of another type than it waits for. What then is left in `reply` was not taken.
    fn answer(
        &self,
        token: AskToken,
        reply: &mut dyn Any,
        found: &'static str,
    ) -> Option<DeadLetterReason>;
    fn fail(&self, token: AskToken, failure: AskFailure);
}

impl<R: Message> AnyHome for Home<R> {
    fn waits(&self, token: AskToken) -> bool {
        self.0.lock().waits(token)
    }

    fn answer(
        &self,
        token: AskToken,
        reply: &mut dyn Any,
        found: &'static str,
    ) -> Option<DeadLetterReason> {
        let Some(reply) = reply.downcast_mut::<Option<Envelope<R>>>() else {
            self.fail(token, AskFailure::WrongType(found));
            return Some(DeadLetterReason::WrongType);
        };
        let answered = self.0.lock().answer_here(token, reply.take()?);
        match answered {
            Ok(tell) => {
                tell_all([tell], None);
                None
            }
            Err(back) => {
                *reply = Some(back);
                Some(DeadLetterReason::LateReply)
            }
        }
    }

    fn fail(&self, token: AskToken, failure: AskFailure) {
        let tell = self.0.lock().fail(token, failure);
        tell_all([tell], None);
    }
}

/// An ask that waits in a [`Home`], and which kernel is to answer it.
#[derive(Clone)]
pub(crate) struct Origin {
    home: Arc<dyn AnyHome>,
    token: AskToken,
    /// The last kernel of the pipeline as it was when the ask was made.
    pub(crate) end: Key,
}

impl Origin {
    pub(crate) fn new<R: Message>(home: &Arc<Home<R>>, token: AskToken, end: Key) -> Self {
        Self { home: Arc::clone(home) as _, token, end }
    }

    /// Fails it.
    pub(crate) fn fail(&self, failure: AskFailure) {
        self.home.fail(self.token, failure);
    }

    /// Whether it still waits.
    pub(crate) fn waits(&self) -> bool {
        self.home.waits(self.token)
    }

    /// Answers it. A reply that cannot answer it comes back, with the reason.
    pub(crate) fn answer<R: Message>(
        self,
        mut reply: Envelope<R>,
    ) -> Result<(), (Envelope<R>, DeadLetterReason)> {
        reply.ask = None;
        let mut reply = Some(reply);
        match self.home.answer(self.token, &mut reply, type_name::<R>()).zip(reply) {
            Some((reason, reply)) => Err((reply, reason)),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Origin").field(&self.token).finish()
    }
}

/// Tells those whose asks have ended in `kernel`. To be called without a lock.
pub(crate) fn tell_all(told: impl IntoIterator<Item = Tell>, kernel: Option<&KernelId>) {
    for tell in told {
        match tell {
            Tell::Nobody => {}
            Tell::Wake(waker) => wake_all([waker]),
            Tell::Fail(origin, failure) => {
                let failure = match kernel {
                    Some(kernel) => failure.in_kernel(kernel),
                    None => failure,
                };
                origin.fail(failure);
            }
        }
    }
}
