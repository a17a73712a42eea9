//! The one type of all awaitables: made by hand for its `am_send`, and a whole coroutine to asyncio
//! (`__await__`, `send`, `throw`, `close`).
//!
//! It does nothing before it is first driven, belongs to the loop that drives it, and can be driven
//! once.

use std::any::Any;
use std::cell::{Cell, UnsafeCell};
use std::ffi::{CStr, c_int, c_void};
use std::ptr::{null, null_mut};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use pyo3::exceptions::{PyRuntimeError, PyStopIteration, PyTypeError, PyValueError};
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyTraceback, PyType};
use pyo3::{ffi, intern, prelude::*};

use super::held::Hold;
use super::hub::{self, Hub};
use super::object::{self, Memory, Native, guard, slot};
use super::operation::Operation;
use super::waiter;
use crate::attached::Attached;
use crate::quick::{Error, Quick};

/// See the module.
pub(super) struct Awaitable {
    stage: Cell<Stage>,
    /// While it is `Running`, of whoever has set that; else of whoever looks at it, for as long as no
    /// Python code runs.
    inner: UnsafeCell<Inner>,
}

struct Inner {
    /// `None` at the end.
    operation: Option<Operation>,
    waiter: Option<Wait>,
    /// What it is about to raise.
    error: Option<Error>,
}

/// What it was yielded for, and what keeps that alive meanwhile.
struct Wait {
    waiter: Py<PyAny>,
    _hold: Hold,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Nothing was done yet.
    Fresh,
    /// Waits for a wake.
    Waiting,
    /// Lets the loop have its turn first.
    Yielded,
    /// Lets the loop have its turn before it raises, if there is still nothing then.
    Failing,
    /// Being driven now.
    Running,
    Done,
}

enum Step {
    Return(Py<PyAny>),
    Yield(Py<PyAny>),
}

/// The awaitable of what `operation` makes.
#[inline(always)]
pub(super) fn new(py: Python<'_>, operation: impl FnOnce() -> Operation) -> Quick<Py<PyAny>> {
    object::new(py, || Awaitable {
        stage: Cell::new(Stage::Fresh),
        inner: UnsafeCell::new(Inner { operation: Some(operation()), waiter: None, error: None }),
    })
}

/// # Safety
///
/// `this` is an awaitable, and stays alive for as long as the reference; the interpreter is attached.
#[inline]
unsafe fn awaitable<'a>(this: *mut ffi::PyObject) -> &'a Awaitable {
    // SAFETY: the caller's promise.
    let cell = unsafe { object::cell::<Awaitable>(this) };
    // SAFETY: never borrowed exclusively before it is deallocated.
    unsafe { &*cell.get() }
}

impl Awaitable {
    /// Drives it to its next suspension or to its end.
    #[inline]
    fn step(&self, py: Python<'_>) -> Quick<Step> {
        let stage = self.stage.replace(Stage::Running);
        if matches!(stage, Stage::Running | Stage::Done) {
            self.stage.set(stage);
            return Err(misused(stage));
        }
        // SAFETY: `Running` by this call: nobody else touches it before it has another stage.
        let inner = unsafe { &mut *self.inner.get() };
        let (stage, outcome) = match stage {
            Stage::Fresh if hub::has_budget() => inner.begin(py),
            stage => inner.advance(py, stage),
        };
        self.stage.set(stage);
        outcome
    }

    /// Ends it without driving it. What it waited for is passed on to others.
    fn end(&self, py: Python<'_>) -> PyResult<()> {
        if self.stage.get() == Stage::Running {
            return Err(PyValueError::new_err("this awaitable is being awaited already"));
        }
        let inner = self.take();
        super::scope::scope(py, || drop(inner.operation));
        drop((inner.waiter, inner.error));
        Ok(())
    }

    /// What it holds, which is not driven; it is `Done` then.
    fn take(&self) -> Inner {
        self.stage.set(Stage::Done);
        let done = Inner { operation: None, waiter: None, error: None };
        // SAFETY: not `Running`, as the callers see to; nothing is dropped meanwhile.
        std::mem::replace(unsafe { &mut *self.inner.get() }, done)
    }
}

type Advanced = (Stage, Quick<Step>);

#[cold]
fn misused(stage: Stage) -> Error {
    Error::from(match stage {
        Stage::Running => PyValueError::new_err("this awaitable is being awaited already"),
        _ => PyRuntimeError::new_err("cannot reuse already awaited operation"),
    })
}

impl Inner {
    /// The first try. Most need no more.
    #[inline(always)]
    fn begin(&mut self, py: Python<'_>) -> Advanced {
        let Some(operation) = &mut self.operation else {
            return (Stage::Done, Err(misused(Stage::Done)));
        };
        match operation.poll(py, &mut Context::from_waker(Waker::noop()), false) {
            Poll::Ready(Ok(value)) => {
                hub::spend();
                if let Some(operation) = self.operation.take() {
                    operation.release(py);
                }
                (Stage::Done, Ok(Step::Return(value)))
            }
            Poll::Ready(Err(error)) => self.fail_later(py, error),
            Poll::Pending => self.suspend(py),
        }
    }

    /// An error at once; before some are raised, the loop has its turn.
    #[cold]
    fn fail_later(&mut self, py: Python<'_>, error: Error) -> Advanced {
        match &self.operation {
            Some(operation) if operation.suspends_before_it_raises() => {
                self.error = Some(error);
                (Stage::Failing, Ok(Step::Yield(py.None())))
            }
            _ => self.finish(Err(error)),
        }
    }

    fn advance(&mut self, py: Python<'_>, stage: Stage) -> Advanced {
        match stage {
            Stage::Fresh => return self.give_way(py),
            Stage::Waiting => return self.go_on(py),
            Stage::Yielded => self.waiter = None,
            Stage::Failing => {
                let Some(operation) = &mut self.operation else {
                    return (Stage::Done, Err(misused(Stage::Done)));
                };
                let polled = operation.poll(py, &mut Context::from_waker(Waker::noop()), false);
                let outcome = match (polled, self.error.take()) {
                    (Poll::Ready(Ok(value)), _) => Ok(value),
                    (Poll::Ready(Err(error)), None) => Err(error),
                    (_, Some(error)) => Err(error),
                    (Poll::Pending, None) => return self.suspend(py),
                };
                return self.finish(outcome);
            }
            Stage::Running | Stage::Done => return (stage, Err(misused(stage))),
        }
        self.begin(py)
    }

    /// Woken, or asked although it was not.
    fn go_on(&mut self, py: Python<'_>) -> Advanced {
        let (Some(operation), Some(wait)) = (&mut self.operation, &self.waiter) else {
            return self.suspend(py);
        };
        // The waiter's waker is the one that is registered already.
        let waker = waiter::waker(py, &wait.waiter);
        match operation.poll(py, &mut Context::from_waker(&waker), true) {
            Poll::Ready(outcome) => self.finish(outcome),
            Poll::Pending => {
                waiter::yielded(py, &wait.waiter);
                (Stage::Waiting, Ok(Step::Yield(wait.waiter.clone_ref(py))))
            }
        }
    }

    /// The budget is used up: goes on in the next turn of the loop.
    #[cold]
    fn give_way(&mut self, py: Python<'_>) -> Advanced {
        let waiting = Hub::running(py)
            .map_err(Error::from)
            .and_then(|(hub, event_loop)| hub.waiter(py, &event_loop).map(|waiter| (hub, waiter)));
        match waiting {
            Ok((hub, waiter)) => {
                waiter::waker(py, &waiter).wake_by_ref();
                waiter::yielded(py, &waiter);
                let yielded = waiter.clone_ref(py);
                let hold = hub.held.hold(py, waiter.clone_ref(py));
                self.waiter = Some(Wait { waiter, _hold: hold });
                (Stage::Yielded, Ok(Step::Yield(yielded)))
            }
            // No loop of asyncio's: nobody to give way to.
            Err(_) => {
                hub::refill();
                (Stage::Yielded, Ok(Step::Yield(py.None())))
            }
        }
    }

    /// Nothing yet: helps others first, then waits.
    fn suspend(&mut self, py: Python<'_>) -> Advanced {
        self.waiter = None;
        let suspended =
            Hub::with_running(py, |hub, event_loop| self.suspend_on(py, hub, event_loop));
        suspended.unwrap_or_else(|error| self.finish(Err(error.into())))
    }

    #[inline]
    fn suspend_on(
        &mut self,
        py: Python<'_>,
        hub: &Arc<Hub>,
        event_loop: &Bound<'_, PyAny>,
    ) -> Advanced {
        let Some(operation) = &mut self.operation else {
            return (Stage::Done, Err(misused(Stage::Done)));
        };
        if operation.may_help() && hub.help(py, event_loop) {
            let mut noop = Context::from_waker(Waker::noop());
            if let Poll::Ready(outcome) = operation.poll(py, &mut noop, false) {
                return self.finish(outcome);
            }
        }
        let waiter = match hub.waiter(py, event_loop) {
            Ok(waiter) => waiter,
            Err(error) => return self.finish(Err(error)),
        };
        let waker = waiter::waker(py, &waiter);
        match operation.poll(py, &mut Context::from_waker(&waker), true) {
            Poll::Ready(outcome) => self.finish(outcome),
            Poll::Pending => {
                waiter::yielded(py, &waiter);
                let yielded = waiter.clone_ref(py);
                let held = operation.held().unwrap_or(&hub.held);
                let hold = held.hold(py, waiter.clone_ref(py));
                self.waiter = Some(Wait { waiter, _hold: hold });
                (Stage::Waiting, Ok(Step::Yield(yielded)))
            }
        }
    }

    fn finish(&mut self, outcome: Quick<Py<PyAny>>) -> Advanced {
        hub::spend();
        self.operation = None;
        self.waiter = None;
        (Stage::Done, outcome.map(Step::Return))
    }
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
        if self.stage.get() == Stage::Running {
            return 0;
        }
        // SAFETY: not `Running`, and no Python code runs while the collector looks.
        let inner = unsafe { &*self.inner.get() };
        let outcome = inner.waiter.as_ref().map_or(0, |wait| visit(&wait.waiter));
        match &inner.operation {
            Some(operation) if outcome == 0 => operation.traverse(visit),
            _ => outcome,
        }
    }

    fn kept() -> Option<&'static Attached<Vec<Memory>>> {
        static KEPT: Attached<Vec<Memory>> = Attached::new(Vec::new());
        Some(&KEPT)
    }

    fn is_empty(&self) -> bool {
        // At its end it has let go of everything.
        self.stage.get() == Stage::Done
    }

    unsafe fn clear(value: &UnsafeCell<Self>) -> Box<dyn Any> {
        // SAFETY: the caller's promise; never borrowed exclusively before it is deallocated.
        let awaitable = unsafe { &*value.get() };
        match awaitable.stage.get() {
            Stage::Running => Box::new(()),
            _ => Box::new(awaitable.take()),
        }
    }
}

/// The awaitable that a slot or a method was called on.
macro_rules! this {
    ($object:expr) => {
        // SAFETY: the interpreter calls the slots and methods of the type with objects of the type,
        // which live for the length of the call.
        unsafe { awaitable($object) }
    };
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
    // SAFETY: the interpreter's place for the result.
    unsafe { result.write(null_mut()) };
    guard(ffi::PySendResult::PYGEN_ERROR, |py| {
        let (value, outcome) = match this!(this).step(py)? {
            Step::Return(value) => (value, ffi::PySendResult::PYGEN_RETURN),
            Step::Yield(value) => (value, ffi::PySendResult::PYGEN_NEXT),
        };
        // SAFETY: as above.
        unsafe { result.write(value.into_ptr()) };
        Ok(outcome)
    })
}

/// `send` and `next`: a return becomes a `StopIteration`.
fn stepped(this: *mut ffi::PyObject) -> *mut ffi::PyObject {
    guard(null_mut(), |py| match this!(this).step(py)? {
        Step::Yield(value) => Ok(value.into_ptr()),
        // As an instance: a tuple or an exception as the value would be taken apart otherwise.
        Step::Return(value) => Err(Error::from(PyStopIteration::new_err((value,)))),
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
            return Err(PyTypeError::new_err("throw() needs an exception").into());
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
        this!(this).end(py)?;
        let Some(exception) = argument(0) else {
            return Err(PyTypeError::new_err("throw() needs an exception").into());
        };
        let error = match exception.cast::<PyType>() {
            Ok(class) => match argument(1) {
                Some(value) if value.is_instance(class)? => value,
                Some(value) => class.call1((value,))?,
                None => class.call0()?,
            },
            Err(_) => exception,
        };
        if let Some(traceback) = argument(2) {
            let Ok(traceback) = traceback.cast_into::<PyTraceback>() else {
                let text = "throw() third argument must be a traceback object";
                return Err(PyTypeError::new_err(text).into());
            };
            error.call_method1(intern!(py, "with_traceback"), (traceback,))?;
        }
        Err(PyErr::from_value(error).into())
    })
}

unsafe extern "C" fn close(this: *mut ffi::PyObject, _: *mut ffi::PyObject) -> *mut ffi::PyObject {
    guard(null_mut(), |py| {
        this!(this).end(py)?;
        Ok(py.None().into_ptr())
    })
}
