//! How a kernel is ended: asked, then cancelled, then given up, and always by its deadline.

use std::cell::Cell;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::kernel::AnyCell;
use crate::timer;

/// How to end a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terminate {
    pub(crate) drain: bool,
    pub(crate) within: Duration,
}

impl Terminate {
    /// Hand nothing more to the kernel; what is queued becomes dead letters. Within 5 s.
    pub const fn now() -> Self {
        Self { drain: false, within: Duration::from_secs(5) }
    }

    /// Let the kernel process what is queued first; refuse new messages. Within 5 s.
    pub const fn drain() -> Self {
        Self { drain: true, within: Duration::from_secs(5) }
    }

    /// The same within this time. When it has passed the body is dropped at its next await; a body
    /// that does not come to one is given up.
    #[must_use]
    pub const fn within(self, deadline: Duration) -> Self {
        Self { within: deadline, ..self }
    }
}

/// How a kernel ended when it was terminated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Termination {
    /// It ended by itself, on request or before.
    Clean,
    /// It was still running at the deadline, and its body was dropped at an await.
    Cancelled,
    /// It was running at the deadline and did not come to an await: its executor still holds the
    /// body. Everyone who waited was told; should the body ever return, its result is discarded.
    Abandoned,
    /// The kernel asked for its own end: it is ending, and cannot wait for itself.
    Requested,
}

/// Waits for the end of kernels that were asked to end, enforces the one deadline for all of them,
/// and takes them out of their runtime. How each ended, in order.
pub(crate) async fn end_all(cells: &[Arc<dyn AnyCell>], within: Duration) -> Vec<Termination> {
    let deadline = Instant::now().checked_add(within);
    // The last fifth of the time is for cancelling, so that the deadline holds; on a machine that
    // has more to do than it can, a kernel may have to wait long for its last turn.
    let grace = (within / 5).min(Duration::from_secs(1));
    let cancel_at = deadline.map(|deadline| deadline - grace);
    let mut outcomes: Vec<Option<Termination>> = cells
        .iter()
        .map(|cell| (running() == Arc::as_ptr(cell).cast()).then_some(Termination::Requested))
        .collect();
    for until in [cancel_at, deadline] {
        // One after the other is as quick as all at once: they end on their own.
        for (cell, outcome) in cells.iter().zip(&mut outcomes).filter(|(_, o)| o.is_none()) {
            let mut end = cell.wait_for_end();
            let ended = std::future::poll_fn(|cx| end.poll_ended(cx));
            *outcome = timer::timeout_at(until, ended).await;
        }
        if until == cancel_at {
            let late = cells.iter().zip(&outcomes).filter(|(_, outcome)| outcome.is_none());
            late.for_each(|(cell, _)| cell.kill());
        }
    }
    let finish = |(cell, outcome): (&Arc<dyn AnyCell>, Option<Termination>)| {
        if outcome == Some(Termination::Requested) {
            cell.remove_when_ended();
            return Termination::Requested;
        }
        let outcome = outcome.unwrap_or_else(|| {
            tracing::warn!(kernel = %cell.id(), "given up: it did not stop by its deadline");
            cell.abandon();
            Termination::Abandoned
        });
        cell.bury_replies();
        cell.remove();
        outcome
    };
    cells.iter().zip(outcomes).map(finish).collect()
}

thread_local! {
    /// The kernel whose body this thread is running, as the address of its cell.
    static RUNNING: Cell<*const ()> = const { Cell::new(std::ptr::null()) };
}

/// The address of the kernel whose body is running on this thread; null if none is.
pub(crate) fn running() -> *const () {
    RUNNING.get()
}

/// Marks this thread as running the body of the kernel at `cell`, until it is dropped.
pub(crate) struct Running(*const ());

impl Running {
    pub(crate) fn enter(cell: *const ()) -> Self {
        Self(RUNNING.replace(cell))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        RUNNING.set(self.0);
    }
}
