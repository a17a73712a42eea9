//! Calls into the core, with what they leave for Python to do put off until they are over.
//!
//! While the core runs, a message may be dropped or a task woken, and both can run any Python code:
//! a destructor, an event loop's `call_soon`. That code must find neither a lock of the core held
//! nor one of its objects borrowed. So within a *scope* such work is only noted, and done when the
//! outermost scope of the thread ends.

use std::cell::{Cell, RefCell};
use std::sync::Arc;

use pyo3::prelude::*;

use super::hub::Hub;

struct Scope {
    depth: Cell<u32>,
    /// Whether the innermost scope's code runs with the interpreter attached.
    attached: Cell<bool>,
    /// Whether there is something to do at the end.
    noted: Cell<bool>,
    /// Most often there is one.
    first: Cell<Option<Py<PyAny>>>,
    garbage: RefCell<Vec<Py<PyAny>>>,
    hubs: RefCell<Vec<Arc<Hub>>>,
}

thread_local! {
    static SCOPE: Scope = const {
        Scope {
            depth: Cell::new(0),
            attached: Cell::new(false),
            noted: Cell::new(false),
            first: Cell::new(None),
            garbage: RefCell::new(Vec::new()),
            hubs: RefCell::new(Vec::new()),
        }
    };
}

/// Calls `f`; what it leaves to do is done before this returns, or when the outer scope ends.
#[inline]
pub(crate) fn scope<R>(py: Python<'_>, f: impl FnOnce() -> R) -> R {
    SCOPE.with(|scope| {
        scope.depth.set(scope.depth.get() + 1);
        let attached = scope.attached.replace(true);
        let _leave = Leave { py, scope, attached };
        f()
    })
}

struct Leave<'a, 'py> {
    py: Python<'py>,
    scope: &'a Scope,
    /// As it was before.
    attached: bool,
}

impl Drop for Leave<'_, '_> {
    #[inline]
    fn drop(&mut self) {
        let scope = self.scope;
        scope.attached.set(self.attached);
        if scope.depth.get() > 1 {
            scope.depth.set(scope.depth.get() - 1);
            return;
        }
        scope.depth.set(0);
        if let Some(garbage) = scope.first.take() {
            // As a `Bound`, since that knows that the interpreter is attached.
            drop(garbage.into_bound(self.py));
        }
        if scope.noted.replace(false) {
            flush(self.py, scope);
        }
    }
}

/// A [`scope`] in which `f` runs without the interpreter.
pub(crate) fn detached<R: Send>(py: Python<'_>, f: impl FnOnce() -> R + Send) -> R {
    scope(py, || {
        let _back = SCOPE.with(|scope| {
            scope.attached.set(false);
            Attach
        });
        py.detach(f)
    })
}

/// The scope's code is attached again.
struct Attach;

impl Drop for Attach {
    fn drop(&mut self) {
        SCOPE.with(|scope| scope.attached.set(true));
    }
}

/// The interpreter, if this is known to run with it attached: in a scope.
#[inline]
pub(super) fn attached<'py>() -> Option<Python<'py>> {
    let attached = SCOPE.try_with(|scope| scope.attached.get()).unwrap_or(false);
    // SAFETY: the innermost scope was given the token, and only `detached` gives the interpreter away.
    attached.then(|| unsafe { Python::assume_attached() })
}

#[cold]
#[inline(never)]
fn flush(py: Python<'_>, scope: &Scope) {
    loop {
        // One at a time, and not borrowed meanwhile: each may run code that adds more.
        let hub = scope.hubs.borrow_mut().pop();
        if let Some(hub) = hub {
            hub.schedule(py);
            continue;
        }
        let garbage = scope.garbage.borrow_mut().pop();
        match garbage {
            Some(garbage) => drop(garbage.into_bound(py)),
            None => return,
        }
    }
}

/// Drops `object` now, or at the end of the scope.
#[inline]
pub(crate) fn discard(object: Py<PyAny>) {
    let mut object = Some(object);
    let _ = SCOPE.try_with(|scope| {
        if scope.depth.get() == 0 {
            return;
        }
        if let Some(other) = scope.first.replace(object.take()) {
            scope.noted.set(true);
            scope.garbage.borrow_mut().push(other);
        }
    });
    drop(object);
}

/// Notes that `hub` is to be scheduled at the end of the scope; it comes back if there is none.
#[inline]
pub(super) fn schedule_later(hub: Arc<Hub>) -> Option<Arc<Hub>> {
    let mut hub = Some(hub);
    let _ = SCOPE.try_with(|scope| {
        if scope.depth.get() > 0 {
            scope.noted.set(true);
            scope.hubs.borrow_mut().extend(hub.take());
        }
    });
    hub
}
