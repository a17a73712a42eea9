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
use std::task::{Context, Poll};

use crate::once::Once;
use crate::once::intern;
use pyo3::exceptions::{PyRuntimeError, PyStopIteration, PyTypeError, PyValueError};
use pyo3::types::{PyTraceback, PyType};
use pyo3::{ffi, prelude::*};

use super::held::Hold;
use super::hub::{self, Hub};
use super::object::{self, Native, guard, guard_light, slot};
use super::operation::Operation;
use super::scope::scope;
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
    /// The first try has not ended it.
    Tried,
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
    /// The first try: what it returns, if it ends with that, as most do. Else [`step`](Self::step) goes
    /// on.
    #[inline(always)]
    fn begin(&self, py: Python<'_>) -> Option<Py<PyAny>> {
        if self.stage.get() != Stage::Fresh {
            return None;
        }
        hub::with_budget(|| {
            self.stage.set(Stage::Running);
            // SAFETY: `Running` by this call: nobody else touches it before it has another stage.
            let inner = unsafe { &mut *self.inner.get() };
            let tried = inner.operation.as_mut().map_or(Ok(None), |it| it.at_once(py));
            match tried {
                Ok(Some(value)) => {
                    if let Some(operation) = inner.operation.take() {
                        operation.release(py);
                    }
                    self.stage.set(Stage::Done);
                    return Some(value);
                }
                Ok(None) => {}
                Err(error) => inner.error = Some(error),
            }
            self.stage.set(Stage::Tried);
            None
        })
    }

    /// Drives it to its next suspension or to its end.
    fn step(&self, py: Python<'_>) -> Quick<Step> {
        let stage = self.stage.replace(Stage::Running);
        if matches!(stage, Stage::Running | Stage::Done) {
            self.stage.set(stage);
            return Err(misused(stage));
        }
        // SAFETY: `Running` by this call: nobody else touches it before it has another stage.
        let inner = unsafe { &mut *self.inner.get() };
        let (stage, outcome) = inner.advance(py, stage);
        self.stage.set(stage);
        outcome
    }

    /// Ends it without driving it. What it waited for is passed on to others.
    fn end(&self, py: Python<'_>) -> PyResult<()> {
        if self.stage.get() == Stage::Running {
            return Err(PyValueError::new_err("this awaitable is being awaited already"));
        }
        let inner = self.take();
        scope(py, || drop(inner.operation));
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
            Stage::Fresh => self.give_way(py),
            Stage::Tried => match self.error.take() {
                Some(error) => self.fail_later(py, error),
                None => self.suspend(py),
            },
            Stage::Waiting => self.go_on(py),
            Stage::Yielded => {
                self.waiter = None;
                match self.at_once(py) {
                    Ok(None) => self.suspend(py),
                    Ok(Some(value)) => {
                        hub::with_budget(|| Some(()));
                        self.finish(Ok(value))
                    }
                    Err(error) => self.fail_later(py, error),
                }
            }
            Stage::Failing => match (self.at_once(py), self.error.take()) {
                (Ok(Some(value)), _) => self.finish(Ok(value)),
                (_, Some(error)) | (Err(error), None) => self.finish(Err(error)),
                (Ok(None), None) => self.suspend(py),
            },
            Stage::Running | Stage::Done => (stage, Err(misused(stage))),
        }
    }

    fn at_once(&mut self, py: Python<'_>) -> Quick<Option<Py<PyAny>>> {
        match &mut self.operation {
            Some(operation) => operation.at_once(py),
            None => Err(misused(Stage::Done)),
        }
    }

    /// Woken, or asked although it was not.
    fn go_on(&mut self, py: Python<'_>) -> Advanced {
        let (Some(operation), Some(wait)) = (&mut self.operation, &self.waiter) else {
            return self.suspend(py);
        };
        // The waiter's waker is the one that is registered already.
        let waker = waiter::waker(py, &wait.waiter);
        match operation.poll(py, &mut Context::from_waker(&waker)) {
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
                // In a scope, which says that the interpreter is attached.
                scope(py, || waiter::waker(py, &waiter).wake_by_ref());
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
        if operation.may_help()
            && hub.help(py, event_loop)
            && let Some(outcome) = operation.at_once(py).transpose()
        {
            return self.finish(outcome);
        }
        let waiter = match hub.waiter(py, event_loop) {
            Ok(waiter) => waiter,
            Err(error) => return self.finish(Err(error)),
        };
        let looks_out = operation.looks_out(py);
        if looks_out {
            hub.look_out(py);
        }
        let waker = waiter::waker(py, &waiter);
        match operation.poll(py, &mut Context::from_waker(&waker)) {
            Poll::Ready(outcome) => {
                if looks_out {
                    hub.found(py);
                }
                self.finish(outcome)
            }
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
        self.operation = None;
        self.waiter = None;
        (Stage::Done, outcome.map(Step::Return))
    }
}

impl Native for Awaitable {
    const NAME: &'static CStr = c"pydotcompute._native.Awaitable";

    fn cell() -> &'static Once<Py<PyType>> {
        static TYPE: Once<Py<PyType>> = Once::new();
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

    fn kept() -> Option<&'static Attached<Vec<Py<PyAny>>>> {
        static KEPT: Attached<Vec<Py<PyAny>>> = Attached::new(Vec::new());
        Some(&KEPT)
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
    // SAFETY: the interpreter is calling a slot.
    if let Some(value) = unsafe { begun(this) } {
        // SAFETY: as above.
        unsafe { result.write(value.into_ptr()) };
        return ffi::PySendResult::PYGEN_RETURN;
    }
    guard(ffi::PySendResult::PYGEN_ERROR, |py| {
        let (value, outcome) = match stepped(py, this)? {
            Step::Return(value) => (value, ffi::PySendResult::PYGEN_RETURN),
            Step::Yield(value) => (value, ffi::PySendResult::PYGEN_NEXT),
        };
        // SAFETY: as above.
        unsafe { result.write(value.into_ptr()) };
        Ok(outcome)
    })
}

/// The first try, where there was none yet.
///
/// # Safety
///
/// The interpreter is calling a slot or a method of `this`, an awaitable.
#[inline(always)]
unsafe fn begun(this: *mut ffi::PyObject) -> Option<Py<PyAny>> {
    let try_it = |py: Python<'_>| {
        let begun = this!(this).begin(py);
        if begun.is_some() {
            // SAFETY: an awaitable that has just ended.
            unsafe { object::keep::<Awaitable>(py, this) };
        }
        Ok(begun)
    };
    // SAFETY: the caller's promise.
    unsafe { guard_light(None, try_it) }
}

/// Goes on after that.
fn stepped(py: Python<'_>, this: *mut ffi::PyObject) -> Quick<Step> {
    let step = this!(this).step(py)?;
    if let Step::Return(_) = step {
        // SAFETY: an awaitable that has just ended.
        unsafe { object::keep::<Awaitable>(py, this) };
    }
    Ok(step)
}

/// `send` and `next`: a return becomes a `StopIteration`.
fn driven(this: *mut ffi::PyObject) -> *mut ffi::PyObject {
    // SAFETY: the interpreter is calling a slot or a method.
    let begun = unsafe { begun(this) };
    guard(null_mut(), |py| {
        let step = match begun {
            Some(value) => Step::Return(value),
            None => stepped(py, this)?,
        };
        match step {
            Step::Yield(value) => Ok(value.into_ptr()),
            // As an instance: a tuple or an exception as the value would be taken apart otherwise.
            Step::Return(value) => Err(Error::from(PyStopIteration::new_err((value,)))),
        }
    })
}

unsafe extern "C" fn next(this: *mut ffi::PyObject) -> *mut ffi::PyObject {
    driven(this)
}

unsafe extern "C" fn send(this: *mut ffi::PyObject, _: *mut ffi::PyObject) -> *mut ffi::PyObject {
    driven(this)
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
