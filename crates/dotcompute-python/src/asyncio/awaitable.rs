//! The one type of all awaitables: made by hand for its `am_send`, and a whole coroutine to asyncio
//! (`__await__`, `send`, `throw`, `close`).
//!
//! It does nothing before it is first driven, belongs to the loop that drives it, and can be driven
//! once.

use std::any::Any;
use std::ffi::{CStr, c_int, c_void};
use std::ptr::{null, null_mut};
use std::sync::Mutex;
use std::task::{Context, Poll, Waker};

use pyo3::exceptions::{PyRuntimeError, PyStopIteration, PyTypeError, PyValueError};
use pyo3::sync::PyOnceLock;
use pyo3::types::PyType;
use pyo3::{ffi, prelude::*};

use super::held::Hold;
use super::hub::{self, Hub};
use super::object::{self, Memory, Native, guard, slot};
use super::operation::Operation;
use super::waiter;

/// See the module.
pub(super) struct Awaitable {
    stage: Stage,
    waiter: Option<Wait>,
}

/// What it was yielded for, and what keeps that alive meanwhile.
struct Wait {
    waiter: Py<PyAny>,
    _hold: Hold,
}

enum Stage {
    /// Nothing was done yet.
    Fresh(Operation),
    /// Waits for a wake.
    Waiting(Operation),
    /// Lets the loop have its turn first.
    Yielded(Operation),
    /// Lets the loop have its turn before it raises, if there is still nothing then.
    Failing(Operation, PyErr),
    /// Being driven now.
    Running,
    Done,
}

enum Step {
    Return(Py<PyAny>),
    Yield(Py<PyAny>),
}

/// The awaitable of `operation`.
#[inline]
pub(super) fn new(py: Python<'_>, operation: Operation) -> PyResult<Py<PyAny>> {
    object::new(py, Awaitable { stage: Stage::Fresh(operation), waiter: None })
}

/// The value of an awaitable, for a moment in which no Python code runs.
#[inline]
fn with<R>(this: *mut ffi::PyObject, f: impl FnOnce(&mut Awaitable) -> R) -> R {
    // SAFETY: only called from slots and methods, with objects of the type and the interpreter
    // attached; `f` runs no Python code, so no other reference to the value is made meanwhile.
    f(unsafe { object::value::<Awaitable>(this) })
}

/// Drives it to its next suspension or to its end.
#[inline]
fn step(py: Python<'_>, this: *mut ffi::PyObject) -> PyResult<Step> {
    let (stage, waiter) = with(this, |awaitable| {
        (std::mem::replace(&mut awaitable.stage, Stage::Running), awaitable.waiter.take())
    });
    let (stage, waiter, outcome) = advance(py, stage, waiter);
    with(this, |awaitable| {
        awaitable.stage = stage;
        awaitable.waiter = waiter;
    });
    outcome
}

type Advanced = (Stage, Option<Wait>, PyResult<Step>);

#[inline]
fn advance(py: Python<'_>, stage: Stage, waiter: Option<Wait>) -> Advanced {
    let mut noop = Context::from_waker(Waker::noop());
    let mut waiter = waiter;
    let mut operation = match stage {
        Stage::Fresh(operation) => {
            if !hub::has_budget() {
                return give_way(py, operation);
            }
            operation
        }
        Stage::Yielded(operation) => {
            waiter = None;
            operation
        }
        Stage::Waiting(mut operation) => {
            // The waiter's waker is the one that is registered already.
            let waiter = match waiter {
                Some(waiter) => waiter,
                None => return suspend(py, operation),
            };
            let waker = waiter::waker(py, &waiter.waiter);
            return match operation.poll(py, &mut Context::from_waker(&waker), true) {
                Poll::Ready(outcome) => finish(operation, None, outcome),
                Poll::Pending => {
                    waiter::yielded(py, &waiter.waiter);
                    let yielded = waiter.waiter.clone_ref(py);
                    (Stage::Waiting(operation), Some(waiter), Ok(Step::Yield(yielded)))
                }
            };
        }
        Stage::Failing(mut operation, error) => {
            return match operation.poll(py, &mut noop, false) {
                Poll::Ready(Ok(value)) => finish(operation, waiter, Ok(value)),
                _ => finish(operation, waiter, Err(error)),
            };
        }
        Stage::Running => {
            let error = PyValueError::new_err("this awaitable is being awaited already");
            return (Stage::Running, waiter, Err(error));
        }
        Stage::Done => {
            let error = PyRuntimeError::new_err("cannot reuse already awaited operation");
            return (Stage::Done, waiter, Err(error));
        }
    };
    match operation.poll(py, &mut noop, false) {
        Poll::Ready(Err(error)) if operation.suspends_before_it_raises() => {
            (Stage::Failing(operation, error), waiter, Ok(Step::Yield(py.None())))
        }
        Poll::Ready(outcome) => finish(operation, waiter, outcome),
        Poll::Pending => suspend(py, operation),
    }
}

/// The budget is used up: goes on in the next turn of the loop.
#[cold]
fn give_way(py: Python<'_>, operation: Operation) -> Advanced {
    let waiting = Hub::running(py)
        .and_then(|(hub, event_loop)| hub.waiter(py, &event_loop).map(|waiter| (hub, waiter)));
    match waiting {
        Ok((hub, waiter)) => {
            waiter::waker(py, &waiter).wake();
            waiter::yielded(py, &waiter);
            let yielded = waiter.clone_ref(py);
            let hold = hub.held.hold(waiter.clone_ref(py));
            let waiter = Wait { waiter, _hold: hold };
            (Stage::Yielded(operation), Some(waiter), Ok(Step::Yield(yielded)))
        }
        // No loop of asyncio's: nobody to give way to.
        Err(_) => {
            hub::refill();
            (Stage::Yielded(operation), None, Ok(Step::Yield(py.None())))
        }
    }
}

/// Nothing yet: helps others first, then waits.
fn suspend(py: Python<'_>, mut operation: Operation) -> Advanced {
    let (hub, event_loop) = match Hub::running(py) {
        Ok(running) => running,
        Err(error) => return finish(operation, None, Err(error)),
    };
    if operation.may_help() && hub.help(py, &event_loop) {
        let mut noop = Context::from_waker(Waker::noop());
        if let Poll::Ready(outcome) = operation.poll(py, &mut noop, false) {
            return finish(operation, None, outcome);
        }
    }
    let waiter = match hub.waiter(py, &event_loop) {
        Ok(waiter) => waiter,
        Err(error) => return finish(operation, None, Err(error)),
    };
    let waker = waiter::waker(py, &waiter);
    match operation.poll(py, &mut Context::from_waker(&waker), true) {
        Poll::Ready(outcome) => finish(operation, None, outcome),
        Poll::Pending => {
            waiter::yielded(py, &waiter);
            let yielded = waiter.clone_ref(py);
            let hold = operation.held().unwrap_or(&hub.held).hold(waiter.clone_ref(py));
            let waiter = Wait { waiter, _hold: hold };
            (Stage::Waiting(operation), Some(waiter), Ok(Step::Yield(yielded)))
        }
    }
}

#[inline]
fn finish(operation: Operation, waiter: Option<Wait>, outcome: PyResult<Py<PyAny>>) -> Advanced {
    hub::spend();
    drop(operation);
    drop(waiter);
    (Stage::Done, None, outcome.map(Step::Return))
}

/// Ends it without driving it. What it waited for is passed on to others.
fn end(py: Python<'_>, this: *mut ffi::PyObject) -> PyResult<()> {
    let (stage, waiter) = with(this, |awaitable| match awaitable.stage {
        Stage::Running => (Stage::Running, None),
        _ => (std::mem::replace(&mut awaitable.stage, Stage::Done), awaitable.waiter.take()),
    });
    if matches!(stage, Stage::Running) {
        return Err(PyValueError::new_err("this awaitable is being awaited already"));
    }
    super::scope::scope(py, || drop(stage));
    drop(waiter);
    Ok(())
}

impl Native for Awaitable {
    const NAME: &'static CStr = c"pydotcompute._native.Awaitable";

    fn cell() -> &'static PyOnceLock<Py<PyType>> {
        static TYPE: PyOnceLock<Py<PyType>> = PyOnceLock::new();
        &TYPE
    }

    fn slots() -> Vec<ffi::PyType_Slot> {
        let method = |name: &'static CStr, function, flags| ffi::PyMethodDef {
            ml_name: name.as_ptr(),
            ml_meth: function,
            ml_flags: flags,
            ml_doc: null(),
        };
        let plain = |function| ffi::PyMethodDefPointer { PyCFunction: function };
        // The type refers to them for ever; it is made once.
        let methods = Box::leak(Box::new([
            method(c"send", plain(send), ffi::METH_O),
            method(
                c"throw",
                ffi::PyMethodDefPointer { PyCFunctionFast: throw },
                ffi::METH_FASTCALL,
            ),
            method(c"close", plain(close), ffi::METH_NOARGS),
            ffi::PyMethodDef::zeroed(),
        ]));
        vec![
            slot(ffi::Py_tp_methods, methods.as_mut_ptr().cast()),
            slot(ffi::Py_am_await, itself as *mut c_void),
            slot(ffi::Py_am_send, am_send as *mut c_void),
            slot(ffi::Py_tp_iter, itself as *mut c_void),
            slot(ffi::Py_tp_iternext, next as *mut c_void),
        ]
    }

    fn traverse(&self, visit: &mut dyn FnMut(&Py<PyAny>) -> c_int) -> c_int {
        if let Some(waiter) = &self.waiter {
            let outcome = visit(&waiter.waiter);
            if outcome != 0 {
                return outcome;
            }
        }
        match &self.stage {
            Stage::Fresh(operation)
            | Stage::Waiting(operation)
            | Stage::Yielded(operation)
            | Stage::Failing(operation, _) => operation.traverse(visit),
            Stage::Running | Stage::Done => 0,
        }
    }

    fn kept() -> Option<&'static Mutex<Vec<Memory>>> {
        static KEPT: Mutex<Vec<Memory>> = Mutex::new(Vec::new());
        Some(&KEPT)
    }

    fn is_empty(&self) -> bool {
        matches!(self.stage, Stage::Done) && self.waiter.is_none()
    }

    fn clear(&mut self) -> Box<dyn Any> {
        match self.stage {
            Stage::Running => Box::new(()),
            _ => Box::new((std::mem::replace(&mut self.stage, Stage::Done), self.waiter.take())),
        }
    }
}

unsafe extern "C" fn itself(this: *mut ffi::PyObject) -> *mut ffi::PyObject {
    // SAFETY: the argument of this call; a new reference is what is to be returned.
    unsafe { ffi::Py_INCREF(this) };
    this
}

unsafe extern "C" fn am_send(
    this: *mut ffi::PyObject,
    _: *mut ffi::PyObject,
    result: *mut *mut ffi::PyObject,
) -> ffi::PySendResult {
    let step = guard(None, |py| step(py, this).map(Some));
    let (value, outcome) = match step {
        Some(Step::Return(value)) => (value.into_ptr(), ffi::PySendResult::PYGEN_RETURN),
        Some(Step::Yield(value)) => (value.into_ptr(), ffi::PySendResult::PYGEN_NEXT),
        None => (null_mut(), ffi::PySendResult::PYGEN_ERROR),
    };
    // SAFETY: the interpreter's place for the result.
    unsafe { result.write(value) };
    outcome
}

/// `send` and `next`: a return becomes a `StopIteration`.
fn stepped(this: *mut ffi::PyObject) -> *mut ffi::PyObject {
    guard(null_mut(), |py| match step(py, this)? {
        Step::Yield(value) => Ok(value.into_ptr()),
        // As an instance: a tuple or an exception as the value would be taken apart otherwise.
        Step::Return(value) => Err(PyStopIteration::new_err((value,))),
    })
}

unsafe extern "C" fn next(this: *mut ffi::PyObject) -> *mut ffi::PyObject {
    stepped(this)
}

unsafe extern "C" fn send(this: *mut ffi::PyObject, _: *mut ffi::PyObject) -> *mut ffi::PyObject {
    stepped(this)
}

unsafe extern "C" fn throw(
    this: *mut ffi::PyObject,
    arguments: *mut *mut ffi::PyObject,
    count: ffi::Py_ssize_t,
) -> *mut ffi::PyObject {
    guard(null_mut(), |py| {
        if count < 1 {
            return Err(PyTypeError::new_err("throw() needs an exception"));
        }
        let argument = |index: isize| {
            if index >= count {
                return None;
            }
            // SAFETY: below the number of arguments of this call.
            let place = unsafe { arguments.offset(index) };
            // SAFETY: a place of the interpreter's, initialised.
            let argument = unsafe { place.read() };
            // SAFETY: a borrowed argument of this call.
            let argument = unsafe { Bound::from_borrowed_ptr_or_opt(py, argument) }?;
            (!argument.is_none()).then_some(argument)
        };
        end(py, this)?;
        let Some(exception) = argument(0) else {
            return Err(PyTypeError::new_err("throw() needs an exception"));
        };
        if let Ok(class) = exception.cast::<PyType>() {
            let error = match argument(1) {
                Some(value) if value.is_instance(class)? => value,
                Some(value) => class.call1((value,))?,
                None => class.call0()?,
            };
            return Err(PyErr::from_value(error));
        }
        Err(PyErr::from_value(exception))
    })
}

unsafe extern "C" fn close(this: *mut ffi::PyObject, _: *mut ffi::PyObject) -> *mut ffi::PyObject {
    guard(null_mut(), |py| {
        end(py, this)?;
        Ok(py.None().into_ptr())
    })
}
