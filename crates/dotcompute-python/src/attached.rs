//! What only threads that are attached to the interpreter use: its lock does for a lock.

use std::cell::RefCell;

use pyo3::Python;

/// A value that is reached with the interpreter attached only. For what is too small and too often
/// used for a lock of its own, and is used by nobody who is not attached.
#[derive(Default)]
pub(crate) struct Attached<T>(RefCell<T>);

// SAFETY: all use of the value goes through `with`, whose token says that this thread is attached:
// one thread at a time is (the module asks for the interpreter's lock where that is optional). Should
// `f` give the interpreter away, the borrow is seen by whoever is attached meanwhile.
unsafe impl<T: Send> Sync for Attached<T> {}

impl<T> Attached<T> {
    pub(crate) const fn new(value: T) -> Self {
        Self(RefCell::new(value))
    }

    /// Calls `f` with the value. `f` runs no Python code, and drops no object: that could lead back
    /// here.
    ///
    /// # Panics
    ///
    /// If it does lead back here.
    #[inline]
    pub(crate) fn with<R>(&self, _py: Python<'_>, f: impl FnOnce(&mut T) -> R) -> R {
        f(&mut self.0.borrow_mut())
    }
}
