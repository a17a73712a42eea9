//! Keeps alive who waits.
//!
//! asyncio itself knows its Tasks only weakly: one that waits lives because what it waits for leads
//! to it. So whatever can be waited for holds its waiters, and shows them to the collector: a Task
//! that nobody else refers to goes on when its message comes, and one that waits for something that
//! is gone itself is collected with it.

use std::sync::{Arc, Mutex};

use dotcompute::mailbox::sync::lock;
use pyo3::prelude::*;
use pyo3::{PyTraverseError, PyVisit};

/// The waiters of one object.
#[derive(Default)]
pub(crate) struct Held(Mutex<Places>);

#[derive(Default)]
struct Places {
    waiters: Vec<Option<Py<PyAny>>>,
    free: Vec<usize>,
}

impl Held {
    /// Holds `waiter` until the hold is dropped.
    pub(super) fn hold(self: &Arc<Self>, waiter: Py<PyAny>) -> Hold {
        let mut places = lock(&self.0);
        let index = match places.free.pop() {
            Some(index) => {
                places.waiters[index] = Some(waiter);
                index
            }
            None => {
                places.waiters.push(Some(waiter));
                places.waiters.len() - 1
            }
        };
        Hold { held: Arc::clone(self), index }
    }

    /// Shows them to the collector.
    pub(crate) fn traverse(&self, visit: &PyVisit<'_>) -> Result<(), PyTraverseError> {
        // The lock is never held while Python code runs, so it is free here.
        lock(&self.0).waiters.iter().flatten().try_for_each(|waiter| visit.call(waiter))
    }

    /// Holds none of them any more.
    pub(crate) fn clear(&self) {
        let waiters: Vec<_> = lock(&self.0).waiters.iter_mut().filter_map(Option::take).collect();
        drop(waiters);
    }
}

/// The place of one waiter.
pub(super) struct Hold {
    held: Arc<Held>,
    index: usize,
}

impl Drop for Hold {
    fn drop(&mut self) {
        let waiter = {
            let mut places = lock(&self.held.0);
            places.free.push(self.index);
            places.waiters[self.index].take()
        };
        drop(waiter);
    }
}
