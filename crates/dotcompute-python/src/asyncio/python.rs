//! What is used of Python's own modules, looked up once.

use std::ptr::null_mut;

use pyo3::exceptions::{PyKeyboardInterrupt, PySystemExit};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;

/// Objects of asyncio and its neighbours.
pub(super) struct Names {
    pub(super) running_loop: Py<PyAny>,
    pub(super) current_task: Py<PyAny>,
    pub(super) enter_task: Py<PyAny>,
    pub(super) leave_task: Py<PyAny>,
    pub(super) cancelled_error: Py<PyAny>,
    pub(super) copy_context: Py<PyAny>,
    pub(super) weakref: Py<PyAny>,
}

#[inline]
pub(super) fn names(py: Python<'_>) -> PyResult<&'static Names> {
    static NAMES: PyOnceLock<Names> = PyOnceLock::new();
    NAMES.get_or_try_init(py, || {
        let events = py.import("asyncio.events")?;
        let tasks = py.import("asyncio.tasks")?;
        Ok(Names {
            running_loop: events.getattr("_get_running_loop")?.unbind(),
            current_task: tasks.getattr("current_task")?.unbind(),
            enter_task: tasks.getattr("_enter_task")?.unbind(),
            leave_task: tasks.getattr("_leave_task")?.unbind(),
            cancelled_error: py.import("asyncio")?.getattr("CancelledError")?.unbind(),
            copy_context: py.import("contextvars")?.getattr("copy_context")?.unbind(),
            weakref: py.import("weakref")?.getattr("ref")?.unbind(),
        })
    })
}

/// Whether the error ends the program and belongs to no task.
pub(super) fn is_exit(py: Python<'_>, error: &PyErr) -> bool {
    error.is_instance_of::<PySystemExit>(py) || error.is_instance_of::<PyKeyboardInterrupt>(py)
}

/// Calls `function` with one or two arguments, without a tuple for them.
#[inline]
pub(super) fn call<'py>(
    py: Python<'py>,
    function: &Py<PyAny>,
    first: &Bound<'py, PyAny>,
    second: Option<&Bound<'py, PyAny>>,
) -> PyResult<Bound<'py, PyAny>> {
    let second = second.map_or(null_mut(), Bound::as_ptr);
    // SAFETY: objects that are alive, ended by a null.
    let result = unsafe {
        ffi::PyObject_CallFunctionObjArgs(
            function.as_ptr(),
            first.as_ptr(),
            second,
            null_mut::<ffi::PyObject>(),
        )
    };
    // SAFETY: a new reference, or null with an error set.
    unsafe { Bound::from_owned_ptr_or_err(py, result) }
}
