//! What a suspended await yields: a thing like a future, which a stock asyncio Task waits on.
//!
//! Woken, it is not put on the event loop but on the ready list of its [`Hub`], which one callback
//! of the loop works off.

use std::any::Any;
use std::cell::UnsafeCell;
use std::ffi::{CStr, c_int, c_void};
use std::marker::PhantomData;
use std::mem::ManuallyDrop;
use std::ops::Deref;
use std::ptr::{NonNull, null_mut};
use std::sync::Arc;
use std::task::{Wake, Waker};

use crate::once::Once;
use crate::once::intern;
use dotcompute::mailbox::sync::{AtomicBool, Ordering};
use pyo3::exceptions::{PyRuntimeError, PyTypeError};
use pyo3::types::{PyBool, PyInt, PyType};
use pyo3::{ffi, prelude::*};

use super::guarded;
use super::hub::{Hub, Ready};
use super::object::{self, Native, guard, guard_light, slot};
use super::python;
use crate::attached::Attached;
use crate::quick::Quick;

/// The part of a waiter that the core wakes, from any thread.
pub(super) struct Slot {
    hub: Arc<Hub>,
    queued: AtomicBool,
    /// The waiter, as long as it lives.
    waiter: Attached<Option<Address>>,
}

struct Address(NonNull<ffi::PyObject>);

// SAFETY: only an address; it is followed with the interpreter attached, while it is registered.
unsafe impl Send for Address {}

impl Slot {
    /// The waiter, if it is still there.
    fn waiter<'py>(&self, py: Python<'py>) -> Option<Bound<'py, PyAny>> {
        let address = self.waiter.with(py, |waiter| waiter.as_ref().map(|waiter| waiter.0))?;
        // SAFETY: registered, so not yet deallocated: that takes it out first, and both happen with
        // the interpreter attached, which it is all the time from the look to here.
        Some(unsafe { Bound::from_borrowed_ptr(py, address.as_ptr()) })
    }

    /// Runs what waits, if something does. An error is an exit (see [`Hub::drain`]).
    pub(super) fn run(self: &Arc<Self>, py: Python<'_>) -> PyResult<()> {
        // SYNC(slot.queued) acqrel: pairs with itself in `wake`. What the waker did before is seen
        // by what runs now; a wake after this queues the slot again.
        self.queued.swap(false, Ordering::AcqRel);
        let Some(waiter) = self.waiter(py) else { return Ok(()) };
        let outcome = run(py, waiter.as_unbound(), &self.hub);
        // SAFETY: an object that we own a reference to.
        let references = unsafe { ffi::Py_REFCNT(waiter.as_ptr()) };
        if references == 1 {
            self.hub.keep_spare(waiter);
        }
        outcome
    }
}

impl Wake for Slot {
    fn wake(self: Arc<Self>) {
        // SYNC(slot.queued) acqrel: pairs with itself in `run`.
        if !self.queued.swap(true, Ordering::AcqRel) {
            let hub = Arc::clone(&self.hub);
            hub.push(Ready::Slot(self));
        }
    }

    fn wake_by_ref(self: &Arc<Self>) {
        // SYNC(slot.queued) acqrel: pairs with itself in `run`.
        if !self.queued.swap(true, Ordering::AcqRel) {
            self.hub.push(Ready::Slot(Arc::clone(self)));
        }
    }
}

/// See the module.
pub(super) struct Waiter {
    slot: Arc<Slot>,
    waker: Waker,
    event_loop: Py<PyAny>,
    blocking: bool,
    callback: Option<(Py<PyAny>, Py<PyAny>)>,
    cancelled: bool,
    message: Option<Py<PyAny>>,
}

/// A waiter of `hub`, whose loop is `event_loop`.
pub(super) fn new(py: Python<'_>, hub: &Arc<Hub>, event_loop: Py<PyAny>) -> Quick<Py<PyAny>> {
    let slot = Arc::new(Slot {
        hub: Arc::clone(hub),
        queued: AtomicBool::new(false),
        waiter: Attached::default(),
    });
    let waiter = object::new(py, || Waiter {
        waker: Waker::from(Arc::clone(&slot)),
        slot: Arc::clone(&slot),
        event_loop,
        blocking: false,
        callback: None,
        cancelled: false,
        message: None,
    })?;
    let address = NonNull::new(waiter.as_ptr()).map(Address);
    slot.waiter.with(py, |waiter| *waiter = address);
    Ok(waiter)
}

/// The value of a waiter, for a moment in which no Python code runs.
#[inline]
fn with<R>(_py: Python<'_>, waiter: &Py<PyAny>, f: impl FnOnce(&mut Waiter) -> R) -> R {
    // SAFETY: only waiters are passed here; the interpreter is attached, the object is owned, and
    // `f` runs no Python code, so no other reference to the value is made meanwhile.
    f(unsafe { object::value::<Waiter>(waiter.as_ptr()) })
}

/// What wakes it, borrowed from it.
pub(super) struct BorrowedWaker<'a> {
    waker: ManuallyDrop<Waker>,
    _waiter: PhantomData<&'a Py<PyAny>>,
}

impl Deref for BorrowedWaker<'_> {
    type Target = Waker;

    #[inline]
    fn deref(&self) -> &Waker {
        &self.waker
    }
}

/// What wakes it.
#[inline]
pub(super) fn waker<'a>(py: Python<'_>, waiter: &'a Py<PyAny>) -> BorrowedWaker<'a> {
    let waker = with(py, waiter, |waiter| {
        // SAFETY: the waiter keeps its waker as long as it lives, so for `'a`, and never changes it;
        // this one is not dropped.
        ManuallyDrop::new(unsafe { (&raw const waiter.waker).read() })
    });
    BorrowedWaker { waker, _waiter: PhantomData }
}

/// About to be yielded.
#[inline]
pub(super) fn yielded(py: Python<'_>, waiter: &Py<PyAny>) {
    with(py, waiter, |waiter| waiter.blocking = true);
}

/// Runs the callback in its Context.
fn run(py: Python<'_>, waiter: &Py<PyAny>, hub: &Arc<Hub>) -> PyResult<()> {
    let (callback, cancelled) =
        with(py, waiter, |waiter| (waiter.callback.take(), waiter.cancelled));
    let Some((callback, context)) = callback else { return Ok(()) };
    let (callback, context) = (callback.into_bound(py), context.into_bound(py));
    let names = python::names(py)?;
    let result_of = if cancelled { waiter } else { &names.done };
    let name = intern!(py, "run");
    // SAFETY: the interpreter is attached, and we own references to these objects.
    let result = unsafe {
        guarded::call_method(context.as_ptr(), name.as_ptr(), callback.as_ptr(), result_of.as_ptr())
    };
    if !result.is_null() {
        // SAFETY: a new reference that nobody needs.
        unsafe { ffi::Py_DECREF(result) };
        return Ok(());
    }
    let error = PyErr::fetch(py);
    if python::is_exit(py, &error) {
        return Err(error);
    }
    // Without a traceback: it comes from `Context.run` itself, and the callback was not called.
    if error.is_instance_of::<PyRuntimeError>(py) && error.traceback(py).is_none() {
        // The Context is entered already, by the code that this runs in: its turn comes later.
        hub.call_soon(py, &callback, result_of.bind(py), &context);
        return Ok(());
    }
    hub.report(py, &error);
    Ok(())
}

impl Native for Waiter {
    const NAME: &'static CStr = c"pydotcompute._native.Waiter";

    fn cell() -> &'static Once<Py<PyType>> {
        static TYPE: Once<Py<PyType>> = Once::new();
        &TYPE
    }

    fn slots() -> Vec<ffi::PyType_Slot> {
        let fast = ffi::METH_FASTCALL | ffi::METH_KEYWORDS;
        let with_keywords = |name: &'static CStr, function: KeywordsFunction| ffi::PyMethodDef {
            ml_name: name.as_ptr(),
            ml_meth: ffi::PyMethodDefPointer { PyCFunctionFastWithKeywords: function },
            ml_flags: fast,
            ml_doc: std::ptr::null(),
        };
        let plain = |name: &'static CStr, function: ffi::PyCFunction, flags| ffi::PyMethodDef {
            ml_name: name.as_ptr(),
            ml_meth: ffi::PyMethodDefPointer { PyCFunction: function },
            ml_flags: flags,
            ml_doc: std::ptr::null(),
        };
        // The type refers to them for ever; it is made once.
        let methods = Box::leak(Box::new([
            plain(c"get_loop", get_loop, ffi::METH_NOARGS),
            with_keywords(c"add_done_callback", add_done_callback),
            plain(c"remove_done_callback", remove_done_callback, ffi::METH_O),
            plain(c"result", result, ffi::METH_NOARGS),
            plain(c"done", done, ffi::METH_NOARGS),
            plain(c"cancelled", cancelled, ffi::METH_NOARGS),
            with_keywords(c"cancel", cancel),
            ffi::PyMethodDef::zeroed(),
        ]));
        let attributes = Box::leak(Box::new([
            ffi::PyGetSetDef {
                name: c"_asyncio_future_blocking".as_ptr(),
                get: Some(get_blocking),
                set: Some(set_blocking),
                doc: std::ptr::null(),
                closure: null_mut(),
            },
            ffi::PyGetSetDef::default(),
        ]));
        vec![
            slot(ffi::Py_tp_methods, methods.as_mut_ptr().cast()),
            slot(ffi::Py_tp_getset, attributes.as_mut_ptr().cast()),
        ]
    }

    fn traverse(&self, visit: &mut dyn FnMut(&Py<PyAny>) -> c_int) -> c_int {
        let owned = [
            Some(&self.event_loop),
            self.callback.as_ref().map(|(callback, _)| callback),
            self.callback.as_ref().map(|(_, context)| context),
            self.message.as_ref(),
        ];
        for object in owned.into_iter().flatten() {
            let outcome = visit(object);
            if outcome != 0 {
                return outcome;
            }
        }
        0
    }

    unsafe fn clear(value: &UnsafeCell<Self>) -> Box<dyn Any> {
        // SAFETY: the caller's promise; nothing is dropped while the reference lives.
        let waiter = unsafe { &mut *value.get() };
        Box::new((waiter.callback.take(), waiter.message.take()))
    }

    fn gone(&mut self, py: Python<'_>) {
        self.slot.waiter.with(py, |waiter| *waiter = None);
    }
}

type KeywordsFunction = unsafe extern "C" fn(
    *mut ffi::PyObject,
    *const *mut ffi::PyObject,
    ffi::Py_ssize_t,
    *mut ffi::PyObject,
) -> *mut ffi::PyObject;

/// The waiter that a method was called on.
macro_rules! this {
    ($object:expr) => {
        // SAFETY: the interpreter calls the methods of the type with objects of the type. The
        // reference is used up before any Python code can run.
        unsafe { object::value::<Waiter>($object) }
    };
}

fn truth(py: Python<'_>, value: bool) -> *mut ffi::PyObject {
    PyBool::new(py, value).to_owned().into_any().into_ptr()
}

unsafe extern "C" fn get_blocking(this: *mut ffi::PyObject, _: *mut c_void) -> *mut ffi::PyObject {
    // SAFETY: the interpreter is calling.
    truth(unsafe { Python::assume_attached() }, this!(this).blocking)
}

unsafe extern "C" fn set_blocking(
    this: *mut ffi::PyObject,
    value: *mut ffi::PyObject,
    _: *mut c_void,
) -> c_int {
    // SAFETY: a constant object of the interpreter.
    let yes = unsafe { ffi::Py_True() };
    this!(this).blocking = value == yes;
    0
}

unsafe extern "C" fn get_loop(
    this: *mut ffi::PyObject,
    _: *mut ffi::PyObject,
) -> *mut ffi::PyObject {
    let event_loop = this!(this).event_loop.as_ptr();
    // SAFETY: the waiter owns it; a new reference is what is to be returned.
    unsafe { ffi::Py_INCREF(event_loop) };
    event_loop
}

unsafe extern "C" fn done(this: *mut ffi::PyObject, _: *mut ffi::PyObject) -> *mut ffi::PyObject {
    // SAFETY: the interpreter is calling.
    truth(unsafe { Python::assume_attached() }, this!(this).callback.is_none())
}

unsafe extern "C" fn cancelled(
    this: *mut ffi::PyObject,
    _: *mut ffi::PyObject,
) -> *mut ffi::PyObject {
    // SAFETY: the interpreter is calling.
    truth(unsafe { Python::assume_attached() }, this!(this).cancelled)
}

unsafe extern "C" fn result(this: *mut ffi::PyObject, _: *mut ffi::PyObject) -> *mut ffi::PyObject {
    guard(null_mut(), |py| {
        let waiter = this!(this);
        if !std::mem::take(&mut waiter.cancelled) {
            return Ok(py.None().into_ptr());
        }
        let message = waiter.message.take();
        let class = python::names(py)?.cancelled_error.bind(py);
        let error = match message {
            Some(message) => class.call1((message,))?,
            None => class.call0()?,
        };
        Err(PyErr::from_value(error).into())
    })
}

/// The arguments of a fast call with keywords: positional ones, and one keyword if it is `name`.
///
/// # Safety
///
/// `arguments` and `names` are those of a call by the interpreter.
unsafe fn arguments<'py>(
    py: Python<'py>,
    arguments: *const *mut ffi::PyObject,
    count: ffi::Py_ssize_t,
    names: *mut ffi::PyObject,
) -> (Option<Bound<'py, PyAny>>, Option<Bound<'py, PyAny>>) {
    let at = |index: usize| {
        // SAFETY: below the number of arguments, as the callers of `at` see to.
        let place = unsafe { arguments.add(index) };
        // SAFETY: a place of the interpreter's, initialised.
        let argument = unsafe { place.read() };
        // SAFETY: a borrowed argument of the call.
        unsafe { Bound::from_borrowed_ptr(py, argument) }
    };
    let positional = (count > 0).then(|| at(0));
    // SAFETY: null, or a tuple of the keywords' names.
    let has_one = !names.is_null() && unsafe { ffi::PyTuple_Size(names) } == 1;
    let keyword = has_one.then(|| at(count as usize));
    (positional, keyword)
}

unsafe extern "C" fn add_done_callback(
    this: *mut ffi::PyObject,
    args: *const *mut ffi::PyObject,
    count: ffi::Py_ssize_t,
    names: *mut ffi::PyObject,
) -> *mut ffi::PyObject {
    let add = |py: Python<'_>| {
        // SAFETY: the arguments of this call.
        let (callback, context) = unsafe { arguments(py, args, count, names) };
        let Some(callback) = callback else {
            return Err(PyTypeError::new_err("add_done_callback() needs a callback").into());
        };
        let context = match context.filter(|context| !context.is_none()) {
            Some(context) => context,
            None => python::names(py)?.copy_context.bind(py).call0()?,
        };
        let waiter = this!(this);
        if waiter.callback.is_some() {
            return Err(PyRuntimeError::new_err("only one task can wait on this await").into());
        }
        waiter.callback = Some((callback.unbind(), context.unbind()));
        Ok(py.None().into_ptr())
    };
    // SAFETY: the interpreter is calling.
    unsafe { guard_light(null_mut(), add) }
}

unsafe extern "C" fn remove_done_callback(
    this: *mut ffi::PyObject,
    callback: *mut ffi::PyObject,
) -> *mut ffi::PyObject {
    guard(null_mut(), |py| {
        // SAFETY: the borrowed argument of this call.
        let callback = unsafe { Bound::from_borrowed_ptr(py, callback) };
        let known = this!(this).callback.as_ref().map(|(known, _)| known.clone_ref(py));
        let same = match known {
            Some(known) => known.bind(py).eq(&callback)?,
            None => false,
        };
        let removed = if same { this!(this).callback.take() } else { None };
        drop(removed);
        Ok(PyInt::new(py, usize::from(same)).into_any().into_ptr())
    })
}

unsafe extern "C" fn cancel(
    this: *mut ffi::PyObject,
    args: *const *mut ffi::PyObject,
    count: ffi::Py_ssize_t,
    names: *mut ffi::PyObject,
) -> *mut ffi::PyObject {
    guard(null_mut(), |py| {
        // SAFETY: the arguments of this call.
        let (positional, keyword) = unsafe { arguments(py, args, count, names) };
        let message = positional.or(keyword).filter(|message| !message.is_none());
        let waiter = this!(this);
        // SYNC(slot.queued) acquire: pairs with the swap in `wake`. Woken already: as with a future
        // that is done, the Task cancels itself at its next step.
        let woken = waiter.slot.queued.load(Ordering::Acquire);
        if waiter.callback.is_none() || woken {
            return Ok(truth(py, false));
        }
        waiter.cancelled = true;
        let stale = std::mem::replace(&mut waiter.message, message.map(Bound::unbind));
        let slot = Arc::clone(&waiter.slot);
        drop(stale);
        slot.wake();
        Ok(truth(py, true))
    })
}
