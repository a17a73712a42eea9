//! The end of a kernel: asked for, waited for, and carried out.

use std::sync::Arc;

use dotcompute_mailbox::sync::lock;
use dotcompute_mailbox::{Close, wait};

use super::{AnyCell, Cell, KernelRef};
use crate::ask::AskFailure;
use crate::dead_letter::{DeadLetter, DeadLetterReason};
use crate::error::Fault;
use crate::lifecycle::KernelState;
use crate::message::Message;
use crate::relay::tell_all;
use crate::terminate::{self, Terminate, Termination};

impl<M: Message, R: Message> KernelRef<M, R> {
    /// Ends the kernel, as `how` says, and waits until it has ended or the deadline has passed.
    /// Everyone who waits for the kernel is told. It is safe to call it more than once, from
    /// several places at once, and from inside the kernel (where it does not wait).
    ///
    /// # Cancel safety
    ///
    /// The request stands; only the deadline is then no longer enforced.
    pub async fn terminate(&self, how: Terminate) -> Termination {
        self.stop(how.drain);
        let cells: [Arc<dyn AnyCell>; 1] = [self.cell.clone()];
        terminate::end_all(&cells, how.within).await[0]
    }

    /// [`terminate`](Self::terminate) that waits on the calling thread.
    pub fn terminate_blocking(&self, how: Terminate) -> Termination {
        wait::block_on(self.terminate(how))
    }

    /// Asks the kernel to end, as [`terminate`](Self::terminate) does, and returns at once. Its
    /// name is free once it has ended. For whoever cannot wait for that: the kernel itself, above
    /// all.
    pub fn stop(&self, drain: bool) {
        self.cell.request_stop(drain);
        AnyCell::remove_when_ended(&*self.cell);
    }

    /// A guard that ends the kernel when it is dropped.
    pub fn scoped(self) -> ScopedKernel<M, R> {
        ScopedKernel { kernel: self }
    }

    /// Waits until the kernel has ended, for whatever reason: the fault if it failed.
    ///
    /// # Errors
    ///
    /// The fault, if it failed.
    ///
    /// # Cancel safety
    ///
    /// Waiting changes nothing.
    pub async fn ended(&self) -> Result<(), Fault> {
        self.cell
            .until(|lifecycle| {
                lifecycle.ended.then(|| match (lifecycle.state, &lifecycle.fault) {
                    (KernelState::Failed, Some(fault)) => Err(fault.clone()),
                    _ => Ok(()),
                })
            })
            .await
    }
}

impl<M: Message, R: Message> Cell<M, R> {
    /// The kernel is over: closes both mailboxes, tells everyone who waits, and keeps what nobody
    /// processed as dead letters. Runs once per cause; a later call finds less to do.
    ///
    /// `fault`: it failed. `abandoned`: its executor still holds the body.
    pub(crate) fn finish(&self, fault: Option<Fault>, abandoned: bool) {
        let (first, terminated) = self.change(|lifecycle| {
            let first = !std::mem::replace(&mut lifecycle.finished, true);
            if !lifecycle.ended {
                lifecycle.abandoned = abandoned;
                match &fault {
                    Some(_) if lifecycle.stop.is_none() => lifecycle.state = KernelState::Failed,
                    _ => lifecycle.state = KernelState::Terminated,
                }
                if fault.is_some() {
                    lifecycle.fault = fault.clone();
                }
            }
            (first, lifecycle.stop.is_some())
        });
        self.telemetry.end();
        self.mailbox.close(Close::Now);
        self.mailbox.take_all(|envelope| {
            let reason = DeadLetterReason::Undelivered;
            self.dead_letter(DeadLetter::of(&self.id, envelope, reason, true));
        });
        self.end_feed();
        let failure = match &fault {
            Some(fault) => AskFailure::Failed(fault.clone()),
            None => AskFailure::Stopped,
        };
        let told = self.asks.lock().close(failure.clone());
        tell_all(told, Some(&self.id));
        if let Some(runtime) = self.runtime.upgrade() {
            match self.state() {
                KernelState::Failed => runtime.pipelines.stage_failed(self, &failure),
                _ => runtime.pipelines.leave(self, &failure),
            }
        }
        self.unlink();
        if first {
            self.leave_output();
        }
        if terminated && !self.options.keep_replies {
            self.bury_replies();
        } else if self.output_has_ended() {
            // Replies already made can still be read.
            self.replies.close(Close::Drain);
        }
        if self.look(|lifecycle| lifecycle.remove_when_ended) {
            self.remove();
        }
        let runner = lock(&self.runner).take();
        drop(runner);
        // Last: whoever waits for the end finds everything done.
        let remove = self.change(|lifecycle| {
            lifecycle.ended = true;
            lifecycle.remove_when_ended
        });
        // It may have been asked for since.
        if remove {
            self.remove();
        }
    }

    /// After a terminate nobody will read replies.
    pub(crate) fn bury_replies(&self) {
        if !self.output_has_ended() {
            return;
        }
        self.replies.close(Close::Now);
        self.replies.take_all(|reply| self.dead_reply(reply, DeadLetterReason::Unread));
    }

    /// Asks the kernel to end. Returns at once; `false`: it was asked before.
    pub(crate) fn request_stop(&self, drain: bool) -> bool {
        let first = self.change(|lifecycle| {
            if lifecycle.ended || lifecycle.stop == Some(false) {
                return false;
            }
            // A stop at once overrides a drain that goes on.
            let first = lifecycle.stop.is_none() || !drain;
            lifecycle.stop = Some(drain && lifecycle.stop != Some(false));
            if !lifecycle.state.has_ended() {
                lifecycle.state = KernelState::Terminating;
            }
            first
        });
        if first {
            self.mailbox.close(if drain { Close::Drain } else { Close::Now });
            if drain {
                self.mailbox.resume();
            }
            if let Some(runtime) = self.runtime.upgrade() {
                runtime.pipelines.cut_off(self, &AskFailure::Stopped);
            }
        }
        first
    }
}

/// A kernel that ends with its scope.
///
/// [`close`](Self::close) ends it in order. Dropping the guard instead, as a panic or an early
/// return does, cancels it without waiting: its body is dropped at its next await.
#[derive(Debug)]
pub struct ScopedKernel<M: Message, R: Message> {
    kernel: KernelRef<M, R>,
}

impl<M: Message, R: Message> ScopedKernel<M, R> {
    /// Ends the kernel as [`KernelRef::terminate`] does.
    pub async fn close(self, how: Terminate) -> Termination {
        self.kernel.terminate(how).await
    }
}

impl<M: Message, R: Message> std::ops::Deref for ScopedKernel<M, R> {
    type Target = KernelRef<M, R>;

    fn deref(&self) -> &Self::Target {
        &self.kernel
    }
}

impl<M: Message, R: Message> Drop for ScopedKernel<M, R> {
    fn drop(&mut self) {
        let cell = &self.kernel.cell;
        cell.request_stop(false);
        cell.kill();
        cell.remove_when_ended();
    }
}
