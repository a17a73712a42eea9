//! The life of a kernel as its lock guards it: steps, waiters, and the bits that are read without
//! the lock.

use std::sync::Mutex;
use std::task::{Context as TaskContext, Poll, Waker};

use dotcompute_mailbox::sync::{Ordering, lock};

use super::Cell;
use crate::error::StateError;
use crate::lent::LentMessages;
use crate::lifecycle::{KernelState, Lifecycle, WrongState, wake_all};
use crate::message::{Message, Taken};
use crate::terminate::Termination;

/// Control bits, read by the runner at each poll and by senders at each send.
const OPEN: u32 = 1;
const KILLED: u32 = 2;
/// It was asked to end, or has ended.
const STOPPING: u32 = 4;
/// Its replies go to another kernel.
const CONNECTED: u32 = 8;
/// Counts how often the kernel was connected and disconnected.
const LINK: u32 = 16;

impl<M: Message, R: Message> Cell<M, R> {
    /// Changes the lifecycle under its lock and wakes whoever waits for a change.
    pub(crate) fn change<T>(&self, f: impl FnOnce(&mut Lifecycle) -> T) -> T {
        let (result, wakers) = {
            let mut lifecycle = lock(&self.lifecycle);
            let result = f(&mut lifecycle);
            if lifecycle.is_stopping() {
                // SYNC(kernel.stopping) release: pairs with the acquire in `is_stopping`. A kernel that
                // was asked to end stays so.
                self.control.fetch_or(STOPPING, Ordering::Release);
            }
            (result, lifecycle.changed())
        };
        wake_all(wakers);
        result
    }

    /// Looks at the lifecycle; changes nothing.
    pub(crate) fn look<T>(&self, f: impl FnOnce(&Lifecycle) -> T) -> T {
        f(&lock(&self.lifecycle))
    }

    /// Waits until `ready` finds in the lifecycle what it looks for. Cancel-safe.
    pub(crate) async fn until<T>(&self, mut ready: impl FnMut(&Lifecycle) -> Option<T>) -> T {
        let mut waiter = Waiter::new(&self.lifecycle);
        std::future::poll_fn(|cx| waiter.poll(cx, &mut ready)).await
    }

    pub(crate) fn state(&self) -> KernelState {
        self.look(|lifecycle| lifecycle.state)
    }

    fn step(
        &self,
        operation: &'static str,
        f: impl FnOnce(&mut Lifecycle) -> Result<(), WrongState>,
    ) -> Result<(), StateError> {
        self.change(f).map_err(|WrongState(state)| StateError {
            kernel: self.id.clone(),
            state,
            operation,
        })
    }

    pub(super) fn activate(&self) -> Result<(), StateError> {
        self.step("activate", |lifecycle| {
            lifecycle.activate()?;
            self.telemetry.start();
            // SYNC(kernel.open) release: pairs with the acquire in `is_open`. A sender that sees
            // it finds the kernel activated. Written under the lifecycle lock.
            self.control.fetch_or(OPEN, Ordering::Release);
            Ok(())
        })
    }

    pub(super) fn deactivate(&self) -> Result<(), StateError> {
        self.step("deactivate", |lifecycle| {
            lifecycle.deactivate()?;
            // Under the lifecycle lock, so that two threads that pause and resume leave state and
            // mailbox agreeing. It wakes nobody.
            self.mailbox.pause();
            Ok(())
        })
    }

    pub(super) fn reactivate(&self) -> Result<(), StateError> {
        self.step("reactivate", Lifecycle::reactivate)?;
        // Outside the lock, since it wakes the kernel. A deactivate that came in between wins.
        self.mailbox.resume();
        let lifecycle = lock(&self.lifecycle);
        if lifecycle.paused && lifecycle.stop.is_none() {
            self.mailbox.pause();
        }
        drop(lifecycle);
        // What waits in a feed the mailbox knows nothing of.
        if self.feed.get().is_some() {
            let runner = lock(&self.runner).clone();
            wake_all(runner);
        }
        Ok(())
    }

    #[inline]
    pub(super) fn is_open(&self) -> bool {
        // SYNC(kernel.open) acquire: pairs with the release in `activate`.
        self.control.load(Ordering::Acquire) & OPEN != 0
    }

    #[inline]
    pub(crate) fn is_stopping(&self) -> bool {
        // SYNC(kernel.stopping) acquire: pairs with the release in `change`.
        self.control.load(Ordering::Acquire) & STOPPING != 0
    }

    /// Whether the kernel is connected, and how often that has changed: while this is the same, so
    /// is the link.
    #[inline]
    pub(crate) fn link_word(&self) -> u32 {
        // SYNC(kernel.link) acquire: pairs with the release in `note_link`. What else is known of
        // the link lies under its lock.
        self.control.load(Ordering::Acquire) & !(OPEN | KILLED | STOPPING)
    }

    #[inline]
    pub(crate) fn is_connected(&self) -> bool {
        self.link_word() & CONNECTED != 0
    }

    /// The kernel is connected now, or disconnected, which it was not before. The link is locked.
    pub(super) fn note_link(&self, connected: bool) {
        let step = if connected { LINK + CONNECTED } else { LINK.wrapping_sub(CONNECTED) };
        // SYNC(kernel.link) release: pairs with the acquire in `link_word`.
        self.control.fetch_add(step, Ordering::Release);
    }

    pub(super) fn has_ended(&self) -> bool {
        self.look(|lifecycle| lifecycle.state.has_ended())
    }

    /// The body is to be dropped at its next poll.
    pub(crate) fn kill(&self) {
        // SYNC(kernel.kill) release: pairs with the acquire in `is_killed`. Nothing else is
        // published; the waker below makes sure that the runner looks.
        self.control.fetch_or(KILLED, Ordering::Release);
        let runner = lock(&self.runner).take();
        wake_all(runner);
    }

    #[inline]
    pub(crate) fn is_killed(&self) -> bool {
        // SYNC(kernel.kill) acquire: pairs with the release in `kill`.
        self.control.load(Ordering::Acquire) & KILLED != 0
    }

    /// Names the task that a kill has to wake.
    pub(crate) fn runner_is(&self, waker: &Waker) {
        let previous = lock(&self.runner).replace(waker.clone());
        drop(previous);
    }

    /// The body ends with a message in hand that it had taken out of its envelope.
    pub(crate) fn set_taken(&self, taken: Taken) {
        *lock(&self.taken) = Some(taken);
    }

    pub(crate) fn taken(&self) -> Option<Taken> {
        lock(&self.taken).take()
    }

    /// The body ends with messages that it had handed on.
    pub(crate) fn set_lent(&self, lent: LentMessages<M>) {
        *lock(&self.lent) = lent;
    }

    pub(crate) fn take_lent(&self) -> LentMessages<M> {
        std::mem::take(&mut lock(&self.lent))
    }
}

/// Somebody who waits for a change of a lifecycle; forgotten there when it is dropped.
pub(crate) struct Waiter<'a> {
    lifecycle: &'a Mutex<Lifecycle>,
    number: Option<u64>,
}

impl<'a> Waiter<'a> {
    pub(super) fn new(lifecycle: &'a Mutex<Lifecycle>) -> Self {
        Self { lifecycle, number: None }
    }

    /// Looks for what `ready` finds; if that is nothing yet, it is woken at the next change.
    pub(super) fn poll<T>(
        &mut self,
        cx: &mut TaskContext<'_>,
        ready: impl FnOnce(&Lifecycle) -> Option<T>,
    ) -> Poll<T> {
        let mut lifecycle = lock(self.lifecycle);
        if let Some(value) = ready(&lifecycle) {
            return Poll::Ready(value);
        }
        let stale = lifecycle.wait(&mut self.number, cx.waker());
        drop(lifecycle);
        drop(stale);
        Poll::Pending
    }

    /// Whether the kernel has ended, and how.
    pub(crate) fn poll_ended(&mut self, cx: &mut TaskContext<'_>) -> Poll<Termination> {
        self.poll(cx, |lifecycle| {
            lifecycle.ended.then_some(match (lifecycle.abandoned, lifecycle.cancelled) {
                (true, _) => Termination::Abandoned,
                (false, true) => Termination::Cancelled,
                (false, false) => Termination::Clean,
            })
        })
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        if let Some(number) = self.number {
            let stale = lock(self.lifecycle).leave(number);
            drop(stale);
        }
    }
}
