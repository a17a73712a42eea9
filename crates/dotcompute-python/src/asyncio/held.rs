//! Keeps alive who waits.
//!
//! asyncio itself knows its Tasks only weakly: one that waits lives because what it waits for leads
//! to it. So whatever can be waited for holds its waiters, and shows them to the collector: a Task
//! that nobody else refers to goes on when its message comes, and one that waits for something that
//! is gone itself is collected with it.

use std::sync::Arc;

use pyo3::prelude::*;
use pyo3::{PyTraverseError, PyVisit};

use crate::attached::Attached;

/// The waiters of one object.
#[derive(Default)]
pub(crate) struct Held(Attached<Places>);

#[derive(Default)]
struct Places {
    waiters: Vec<Option<Py<PyAny>>>,
    free: Vec<usize>,
}

impl Held {
    /// Holds `waiter` until the hold is dropped.
    pub(super) fn hold(self: &Arc<Self>, py: Python<'_>, waiter: Py<PyAny>) -> Hold {
        let index = self.0.with(py, |places| match places.free.pop() {
            Some(index) => {
                places.waiters[index] = Some(waiter);
                index
            }
            None => {
                places.waiters.push(Some(waiter));
                places.waiters.len() - 1
            }
        });
        Hold { held: Arc::clone(self), index }
    }

    /// Shows them to the collector.
    pub(crate) fn traverse(&self, visit: &PyVisit<'_>) -> Result<(), PyTraverseError> {
        // SAFETY: the collector is calling, so the interpreter is attached.
        let py = unsafe { Python::assume_attached() };
        self.0.with(py, |places| {
            places.waiters.iter().flatten().try_for_each(|waiter| visit.call(waiter))
        })
    }

    /// Holds none of them any more.
    pub(crate) fn clear(&self, py: Python<'_>) {
        let waiters: Vec<_> =
            self.0.with(py, |places| places.waiters.iter_mut().filter_map(Option::take).collect());
        drop(waiters);
    }
}

/// The place of one waiter. It is dropped with the interpreter attached.
pub(super) struct Hold {
    held: Arc<Held>,
    index: usize,
}

impl Drop for Hold {
    fn drop(&mut self) {
        // SAFETY: a hold lies in an awaitable, and that is dropped by the interpreter.
        let py = unsafe { Python::assume_attached() };
        let waiter = self.held.0.with(py, |places| {
            places.free.push(self.index);
            places.waiters[self.index].take()
        });
        drop(waiter);
    }
}
