//! The states of a ring kernel and the lawful steps between them.
//!
//! One machine for every executor:
//!
//! ```text
//! CREATED ─► LAUNCHED ─► ACTIVE ⇄ DEACTIVATED
//!               ▲           │
//!               └─ restart ─┤            any state that has not ended
//!                           │                        │ terminate
//!                 FAILED ◄──┴─► TERMINATED ◄─ TERMINATING
//! ```

use std::collections::BTreeMap;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::task::Waker;

use crate::dead_letter;
use crate::error::Fault;

/// Wakes everyone. A waker is foreign code: should one panic, the others are woken all the same,
/// and whoever calls this goes on.
pub(crate) fn wake_all(wakers: impl IntoIterator<Item = Waker>) {
    for waker in wakers {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| waker.wake())) {
            dead_letter::discard(panic);
        }
    }
}

/// Where a ring kernel stands in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KernelState {
    /// Described, but without resources yet.
    Created,
    /// Has its resources (mailboxes, a place on its executor) and processes nothing yet; also the
    /// state during the back-off before a restart.
    Launched,
    /// Processes messages.
    Active,
    /// Paused: accepts messages, keeps its state, and hands nothing to the kernel.
    Deactivated,
    /// Asked to end; perhaps draining its mailbox.
    Terminating,
    /// Ended as asked, or by returning.
    Terminated,
    /// Ended by a fault that no restart mended; the cause is kept.
    Failed,
}

impl KernelState {
    /// Whether the kernel has ended and will not run again.
    pub const fn has_ended(self) -> bool {
        matches!(self, Self::Terminated | Self::Failed)
    }
}

impl fmt::Display for KernelState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Created => "CREATED",
            Self::Launched => "LAUNCHED",
            Self::Active => "ACTIVE",
            Self::Deactivated => "DEACTIVATED",
            Self::Terminating => "TERMINATING",
            Self::Terminated => "TERMINATED",
            Self::Failed => "FAILED",
        })
    }
}

/// The part of a kernel that its lifecycle lock guards.
#[derive(Debug)]
pub(crate) struct Lifecycle {
    pub(crate) state: KernelState,
    /// Whether it was ever activated: from then on it accepts messages until it ends.
    pub(crate) opened: bool,
    /// Deactivated while it is in the back-off of a restart: what to return to.
    pub(crate) paused: bool,
    /// Asked to end; `true` in it: drain first.
    pub(crate) stop: Option<bool>,
    /// Why it failed, or why it last restarted.
    pub(crate) fault: Option<Fault>,
    /// The runner has let go of the body and of all resources.
    pub(crate) ended: bool,
    /// It has begun to end: what it shares with others it has left.
    pub(crate) finished: bool,
    /// Ended before its body could be stopped: its executor still holds it.
    pub(crate) abandoned: bool,
    /// The body was dropped at the deadline.
    pub(crate) cancelled: bool,
    /// Nobody will ask for it again: its name is free once it has ended.
    pub(crate) remove_when_ended: bool,
    /// Who waits for a change, by a number that each has for as long as it waits.
    waiters: BTreeMap<u64, Waker>,
    next_waiter: u64,
}

/// A step that the lifecycle does not allow in the present state.
pub(crate) struct WrongState(pub(crate) KernelState);

impl Lifecycle {
    pub(crate) fn new() -> Self {
        Self {
            state: KernelState::Created,
            opened: false,
            paused: false,
            stop: None,
            fault: None,
            ended: false,
            finished: false,
            abandoned: false,
            cancelled: false,
            remove_when_ended: false,
            waiters: BTreeMap::new(),
            next_waiter: 0,
        }
    }

    /// Registers `waker` for the next change, under the number in `waiter`, which it is given if it
    /// has none. The waker that this replaces comes back, to be dropped outside the lock.
    #[must_use]
    pub(crate) fn wait(&mut self, waiter: &mut Option<u64>, waker: &Waker) -> Option<Waker> {
        let next = &mut self.next_waiter;
        let number = *waiter.get_or_insert_with(|| {
            *next += 1;
            *next
        });
        match self.waiters.get(&number) {
            Some(known) if known.will_wake(waker) => None,
            _ => self.waiters.insert(number, waker.clone()),
        }
    }

    /// Forgets a waiter that waits no more; its waker is to be dropped outside the lock.
    #[must_use]
    pub(crate) fn leave(&mut self, waiter: u64) -> Option<Waker> {
        self.waiters.remove(&waiter)
    }

    /// The wakers to call, once the lock is released, because something changed.
    pub(crate) fn changed(&mut self) -> impl Iterator<Item = Waker> + use<> {
        std::mem::take(&mut self.waiters).into_values()
    }

    /// CREATED → LAUNCHED.
    pub(crate) fn launched(&mut self) {
        debug_assert_eq!(self.state, KernelState::Created);
        self.state = KernelState::Launched;
    }

    /// Whether the kernel was asked to end, or has ended.
    pub(crate) fn is_stopping(&self) -> bool {
        self.stop.is_some() || self.state.has_ended()
    }

    /// LAUNCHED → ACTIVE, asked for by the user.
    pub(crate) fn activate(&mut self) -> Result<(), WrongState> {
        if self.state != KernelState::Launched || self.opened {
            return Err(WrongState(self.state));
        }
        self.opened = true;
        self.state = KernelState::Active;
        Ok(())
    }

    /// ACTIVE (or waiting for a restart) → paused.
    pub(crate) fn deactivate(&mut self) -> Result<(), WrongState> {
        match self.state {
            KernelState::Active => self.state = KernelState::Deactivated,
            // In a back-off: the kernel comes back paused.
            KernelState::Launched if self.opened && !self.paused => {}
            other => return Err(WrongState(other)),
        }
        self.paused = true;
        Ok(())
    }

    /// DEACTIVATED → ACTIVE.
    pub(crate) fn reactivate(&mut self) -> Result<(), WrongState> {
        match self.state {
            KernelState::Deactivated => self.state = KernelState::Active,
            KernelState::Launched if self.paused => {}
            other => return Err(WrongState(other)),
        }
        self.paused = false;
        Ok(())
    }

    /// The body ended and will be started again after a back-off.
    pub(crate) fn restarting(&mut self, fault: Option<Fault>) {
        if self.stop.is_none() {
            self.state = KernelState::Launched;
        }
        if fault.is_some() {
            self.fault = fault;
        }
    }

    /// The back-off is over.
    pub(crate) fn restarted(&mut self) {
        if self.stop.is_none() {
            self.state = if self.paused { KernelState::Deactivated } else { KernelState::Active };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use KernelState::*;

    fn at(state: KernelState) -> Lifecycle {
        let mut lifecycle = Lifecycle::new();
        lifecycle.state = state;
        lifecycle.opened = !matches!(state, Created | Launched);
        lifecycle.paused = state == Deactivated;
        lifecycle
    }

    #[test]
    fn every_step_is_refused_in_every_state_but_its_own() {
        for state in [Created, Launched, Active, Deactivated, Terminating, Terminated, Failed] {
            assert_eq!(at(state).activate().is_ok(), state == Launched, "activate in {state}");
            assert_eq!(at(state).deactivate().is_ok(), state == Active, "deactivate in {state}");
            assert_eq!(
                at(state).reactivate().is_ok(),
                state == Deactivated,
                "reactivate in {state}"
            );
        }
    }

    #[test]
    fn a_kernel_deactivated_in_its_back_off_comes_back_paused() {
        let mut lifecycle = at(Active);
        lifecycle.restarting(Some(Fault::new("x")));
        assert_eq!(lifecycle.state, Launched);
        assert!(lifecycle.deactivate().is_ok());
        lifecycle.restarted();
        assert_eq!(lifecycle.state, Deactivated);
        assert!(lifecycle.reactivate().is_ok());
        assert_eq!(lifecycle.state, Active);
    }

    #[test]
    fn a_stop_during_the_back_off_wins_over_the_restart() {
        let mut lifecycle = at(Active);
        lifecycle.stop = Some(false);
        lifecycle.state = Terminating;
        lifecycle.restarting(None);
        lifecycle.restarted();
        assert_eq!(lifecycle.state, Terminating);
    }
}
