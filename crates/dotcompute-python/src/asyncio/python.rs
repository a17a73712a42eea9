//! What is used of Python's own modules, looked up once.

use std::ptr::null_mut;

use crate::once::Once;
use pyo3::exceptions::{PyKeyboardInterrupt, PySystemExit};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::PyDict;

/// Objects of asyncio and its neighbours.
pub(super) struct Names {
    pub(super) running_loop: Py<PyAny>,
    current_task: Py<PyAny>,
    enter_task: Py<PyAny>,
    leave_task: Py<PyAny>,
    /// The current tasks by their loops, up to Python 3.13: what the three functions work on.
    current_tasks: Option<Py<PyDict>>,
    pub(super) cancelled_error: Py<PyAny>,
    pub(super) copy_context: Py<PyAny>,
    /// A future that is done, of no loop: what a Task is woken with, since it reads the result of a
    /// true future without a call.
    pub(super) done: Py<PyAny>,
}

#[inline]
pub(super) fn names(py: Python<'_>) -> PyResult<&'static Names> {
    static NAMES: Once<Names> = Once::new();
    NAMES.get_or_try_init(py, || {
        let events = py.import("asyncio.events")?;
        let tasks = py.import("asyncio.tasks")?;
        Ok(Names {
            running_loop: events.getattr("_get_running_loop")?.unbind(),
            current_task: tasks.getattr("current_task")?.unbind(),
            enter_task: tasks.getattr("_enter_task")?.unbind(),
            leave_task: tasks.getattr("_leave_task")?.unbind(),
            current_tasks: current_tasks(py),
            cancelled_error: py.import("asyncio")?.getattr("CancelledError")?.unbind(),
            copy_context: py.import("contextvars")?.getattr("copy_context")?.unbind(),
            done: done_future(py)?,
        })
    })
}

/// Whether the error ends the program and belongs to no task.
pub(super) fn is_exit(py: Python<'_>, error: &PyErr) -> bool {
    error.is_instance_of::<PySystemExit>(py) || error.is_instance_of::<PyKeyboardInterrupt>(py)
}

/// Calls `function` with one or two arguments, without a tuple for them.
#[inline]
fn call<'py>(
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

fn current_tasks(py: Python<'_>) -> Option<Py<PyDict>> {
    if py.version_info() >= (3, 14) {
        return None;
    }
    let native = py.import("_asyncio").ok()?;
    let used = py.import("asyncio.tasks").ok()?.getattr("_enter_task").ok()?;
    if !used.is(&native.getattr("_enter_task").ok()?) {
        return None;
    }
    Some(native.getattr("_current_tasks").ok()?.cast_into::<PyDict>().ok()?.unbind())
}

impl Names {
    /// Takes the current task of a loop out of its place, if there is one.
    #[inline]
    pub(super) fn leave<'py>(
        &self,
        event_loop: &Bound<'py, PyAny>,
    ) -> PyResult<Option<Bound<'py, PyAny>>> {
        let py = event_loop.py();
        if let Some(tasks) = &self.current_tasks {
            let tasks = tasks.bind(py);
            let task = tasks.get_item(event_loop)?;
            if task.is_some() {
                tasks.del_item(event_loop)?;
            }
            return Ok(task);
        }
        let task = call(py, &self.current_task, event_loop, None)?;
        if task.is_none() {
            return Ok(None);
        }
        call(py, &self.leave_task, event_loop, Some(&task))?;
        Ok(Some(task))
    }

    /// Puts it back.
    #[inline]
    pub(super) fn enter<'py>(
        &self,
        event_loop: &Bound<'py, PyAny>,
        task: &Bound<'py, PyAny>,
    ) -> PyResult<()> {
        let py = event_loop.py();
        if let Some(tasks) = &self.current_tasks {
            return tasks.bind(py).set_item(event_loop, task);
        }
        call(py, &self.enter_task, event_loop, Some(task)).map(drop)
    }
}

fn done_future(py: Python<'_>) -> PyResult<Py<PyAny>> {
    let no_loop = PyDict::new(py);
    // A future asks its loop for nothing else as long as it has no callbacks.
    no_loop.set_item("get_debug", py.eval(c"lambda: False", None, None)?)?;
    let no_loop = py.import("types")?.getattr("SimpleNamespace")?.call((), Some(&no_loop))?;
    let future = PyDict::new(py);
    future.set_item("loop", no_loop)?;
    let future = py.import("asyncio")?.getattr("Future")?.call((), Some(&future))?;
    future.call_method1("set_result", (py.None(),))?;
    Ok(future.unbind())
}
