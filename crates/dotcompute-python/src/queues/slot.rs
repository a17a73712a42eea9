//! Wakes one wait of asyncio, from whatever thread.

use std::sync::{Arc, Mutex};
use std::task::Wake;

use dotcompute_mailbox::sync::{AtomicBool, Ordering, lock};
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;

use super::cached;

/// Joins a wait and those who end it. The wait owns the loop and the future in it (the garbage
/// collector is told so) and empties the slot when it ends.
#[derive(Default)]
pub(super) struct Slot {
    armed: Mutex<Option<Armed>>,
    expired: AtomicBool,
}

struct Armed {
    event_loop: Py<PyAny>,
    future: Py<PyAny>,
}

impl Slot {
    /// From now on a wake-up resolves a new future of `event_loop`, which is returned.
    pub(super) fn arm<'py>(&self, event_loop: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        let py = event_loop.py();
        let future = event_loop.call_method0(pyo3::intern!(py, "create_future"))?;
        let armed =
            Armed { event_loop: event_loop.clone().unbind(), future: future.clone().unbind() };
        let previous = lock(&self.armed).replace(armed);
        drop(previous);
        Ok(future)
    }

    /// No wake-up is for this wait any more.
    pub(super) fn disarm(&self) {
        let armed = lock(&self.armed).take();
        drop(armed);
    }

    pub(super) fn is_expired(&self) -> bool {
        // Relaxed: written and read with the GIL held.
        self.expired.load(Ordering::Relaxed)
    }

    /// The wait's time is over.
    fn expire(self: &Arc<Self>, py: Python<'_>) {
        // Relaxed: as above.
        self.expired.store(true, Ordering::Relaxed);
        self.resolve(py);
    }

    pub(super) fn traverse(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        // Nobody calls Python while holding this lock.
        let armed = lock(&self.armed);
        match &*armed {
            Some(Armed { event_loop, future }) => {
                visit.call(event_loop)?;
                visit.call(future)
            }
            None => Ok(()),
        }
    }

    fn resolve(&self, py: Python<'_>) {
        let armed = lock(&self.armed)
            .as_ref()
            .map(|armed| (armed.event_loop.clone_ref(py), armed.future.clone_ref(py)));
        let Some((event_loop, future)) = armed else { return };
        // A wake-up may come out of a deallocation, while an exception is on its way.
        let pending = PyErr::take(py);
        if let Err(error) = resolve_in(event_loop.bind(py), future.bind(py)) {
            // The loop is closed, and so nobody waits in it.
            if !error.is_instance_of::<pyo3::exceptions::PyRuntimeError>(py) {
                error.write_unraisable(py, Some(future.bind(py)));
            }
        }
        if let Some(pending) = pending {
            pending.restore(py);
        }
    }
}

impl Wake for Slot {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        // At the interpreter's end there is nobody to wake.
        let _ = Python::try_attach(|py| self.resolve(py));
    }
}

/// Resolves `future` here if this thread runs its loop, else by way of the loop.
fn resolve_in(event_loop: &Bound<'_, PyAny>, future: &Bound<'_, PyAny>) -> PyResult<()> {
    static RUNNING: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let py = event_loop.py();
    if cached(py, &RUNNING, "asyncio", "_get_running_loop")?.call0()?.is(event_loop) {
        return set_result(future);
    }
    static SET_RESULT: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let set_result = SET_RESULT.get_or_try_init(py, || {
        pyo3::wrap_pyfunction!(set_result, py).map(|function| function.into_any().unbind())
    })?;
    let name = pyo3::intern!(py, "call_soon_threadsafe");
    event_loop.call_method1(name, (set_result, future)).map(drop)
}

/// Resolves a future unless it is resolved or cancelled.
#[pyfunction]
fn set_result(future: &Bound<'_, PyAny>) -> PyResult<()> {
    let py = future.py();
    if !future.call_method0(pyo3::intern!(py, "done"))?.is_truthy()? {
        future.call_method1(pyo3::intern!(py, "set_result"), (py.None(),))?;
    }
    Ok(())
}

/// What a loop's timer calls.
#[pyclass(frozen)]
pub(super) struct Alarm(pub(super) Arc<Slot>);

#[pymethods]
impl Alarm {
    fn __call__(&self, py: Python<'_>) {
        self.0.expire(py);
    }
}
