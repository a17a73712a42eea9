//! Python types made by hand: for those that need slots which PyO3 does not offer (`am_send`).

use std::any::Any;
use std::cell::UnsafeCell;
use std::ffi::{CStr, c_int, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::null_mut;

use pyo3::exceptions::PyRuntimeError;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyType;

use super::scope::scope;
use crate::attached::Attached;
use crate::quick::Quick;

/// How many objects' memory is kept, at most, for each type that does.
const KEPT_MAX: usize = 64;

/// The memory of an object that was given up.
pub(super) struct Memory(*mut ffi::PyObject);

// SAFETY: nobody else knows of the memory, and Python's objects belong to no thread.
unsafe impl Send for Memory {}

/// What a hand-made type is made of.
pub(super) trait Native: Sized + 'static {
    /// Its name with its module.
    const NAME: &'static CStr;
    /// Its slots, without those for memory.
    fn slots() -> Vec<ffi::PyType_Slot>;
    /// Where the type is kept.
    fn cell() -> &'static PyOnceLock<Py<PyType>>;
    /// Calls `visit` with each object that it owns; nonzero ends it.
    fn traverse(&self, visit: &mut dyn FnMut(&Py<PyAny>) -> c_int) -> c_int;
    /// Gives up what may be part of a cycle.
    ///
    /// # Safety
    ///
    /// The interpreter is attached, and no reference to the value is in use.
    unsafe fn clear(value: &UnsafeCell<Self>) -> Box<dyn Any>;
    /// Where the memory of objects is kept for the next ones; objects of the type are then dropped
    /// without their memory. `None`: nowhere.
    fn kept() -> Option<&'static Attached<Vec<Memory>>> {
        None
    }
    /// The object goes away.
    fn gone(&mut self, _py: Python<'_>) {}
    /// Whether dropping it does nothing.
    fn is_empty(&self) -> bool {
        false
    }
}

/// A Python object that holds a `T`.
#[repr(C)]
pub(super) struct Object<T> {
    base: ffi::PyObject,
    value: UnsafeCell<T>,
}

/// A slot of a type.
pub(super) fn slot(slot: c_int, function: *mut c_void) -> ffi::PyType_Slot {
    ffi::PyType_Slot { slot, pfunc: function }
}

/// Where the value of `object` lies.
///
/// # Safety
///
/// `object` is an `Object<T>` and stays alive for as long as the reference.
#[inline]
pub(super) unsafe fn cell<'a, T>(object: *mut ffi::PyObject) -> &'a UnsafeCell<T> {
    // SAFETY: the caller's promise: the object is one of ours, and alive.
    unsafe { &(*object.cast::<Object<T>>()).value }
}

/// The value inside `object`.
///
/// # Safety
///
/// `object` is an `Object<T>` and stays alive for as long as the reference; the interpreter is
/// attached; and no other reference to the value is in use meanwhile.
#[inline]
pub(super) unsafe fn value<'a, T>(object: *mut ffi::PyObject) -> &'a mut T {
    // SAFETY: the caller's promise: the object is one of ours.
    let cell = unsafe { cell::<T>(object) };
    // SAFETY: the caller's promise: initialised since its making, alive, and not aliased.
    unsafe { &mut *cell.get() }
}

/// The type, made at its first use.
#[inline]
pub(super) fn type_of<T: Native>(py: Python<'_>) -> PyResult<&'static Py<PyType>> {
    T::cell().get_or_try_init(py, || make::<T>(py))
}

fn make<T: Native>(py: Python<'_>) -> PyResult<Py<PyType>> {
    let mut slots = T::slots();
    slots.extend([
        slot(ffi::Py_tp_dealloc, dealloc::<T> as *mut c_void),
        slot(ffi::Py_tp_traverse, traverse::<T> as *mut c_void),
        slot(ffi::Py_tp_clear, clear::<T> as *mut c_void),
        slot(0, null_mut()),
    ]);
    let mut spec = ffi::PyType_Spec {
        name: T::NAME.as_ptr(),
        basicsize: size_of::<Object<T>>() as c_int,
        itemsize: 0,
        flags: (ffi::Py_TPFLAGS_DEFAULT
            | ffi::Py_TPFLAGS_HAVE_GC
            | ffi::Py_TPFLAGS_DISALLOW_INSTANTIATION) as _,
        slots: slots.as_mut_ptr(),
    };
    // SAFETY: the spec and its slots are complete and end with a zero slot; the methods in them are
    // static. The interpreter copies the rest.
    let made = unsafe { ffi::PyType_FromSpec(&raw mut spec) };
    // SAFETY: a new reference, or null with an error set.
    let made = unsafe { Bound::from_owned_ptr_or_err(py, made) }?;
    Ok(made.cast_into::<PyType>()?.unbind())
}

/// A new object that holds what `make` makes, in its place: a value that is moved there costs more than
/// the rest. `make` runs no Python code.
#[inline(always)]
pub(super) fn new<T: Native>(py: Python<'_>, make: impl FnOnce() -> T) -> Quick<Py<PyAny>> {
    let class = type_of::<T>(py)?.as_ptr().cast::<ffi::PyTypeObject>();
    let kept = T::kept().and_then(|kept| kept.with(py, Vec::pop));
    let object = match &kept {
        Some(kept) => {
            // SAFETY: memory of an object of this very type that was given up: untracked, without
            // references, and with nothing in it.
            unsafe { ffi::PyObject_Init(kept.0, class) }
        }
        // SAFETY: a type of ours, which is alive for ever.
        None => unsafe { ffi::PyType_GenericAlloc(class, 0) },
    };
    if object.is_null() {
        return Err(PyErr::fetch(py).into());
    }
    // SAFETY: the object was allocated with room for an `Object<T>`.
    let cell = unsafe { &raw const (*object.cast::<Object<T>>()).value };
    // SAFETY: nobody has read the value yet: the collector does not run before this.
    unsafe { UnsafeCell::raw_get(cell).write(make()) };
    if kept.is_some() {
        // SAFETY: complete, and not tracked yet.
        unsafe { ffi::PyObject_GC_Track(object.cast()) };
    }
    // SAFETY: the only reference, which the allocation gave us.
    Ok(unsafe { Bound::from_owned_ptr(py, object) }.unbind())
}

unsafe extern "C" fn dealloc<T: Native>(object: *mut ffi::PyObject) {
    // SAFETY: a tracked object whose last reference went away.
    unsafe { ffi::PyObject_GC_UnTrack(object.cast()) };
    // SAFETY: nobody has a reference to the object any more.
    let inner = unsafe { value::<T>(object) };
    // SAFETY: the interpreter itself is calling.
    let py = unsafe { Python::assume_attached() };
    if !inner.is_empty() {
        release(py, inner);
    }
    // SAFETY: the object is still allocated; its type is valid.
    let class = unsafe { ffi::Py_TYPE(object) };
    let kept = T::kept().is_some_and(|kept| {
        kept.with(py, |kept| {
            let room = kept.len() < KEPT_MAX;
            if room {
                kept.push(Memory(object));
            }
            room
        })
    });
    if !kept {
        // SAFETY: allocated by `PyType_GenericAlloc` as an object with collector's head.
        unsafe { ffi::PyObject_GC_Del(object.cast()) };
    }
    // SAFETY: an object of a heap type owns a reference to it.
    unsafe { ffi::Py_DECREF(class.cast()) };
}

/// Drops what the object holds. An exception that is on its way is left alone.
fn release<T: Native>(py: Python<'_>, inner: &mut T) {
    // First of all: to attach may run Python code, which must not find the object any more.
    inner.gone(py);
    attached(|py| {
        let error = PyErr::take(py);
        let inner: *mut T = inner;
        let dropped = catch_unwind(AssertUnwindSafe(|| {
            scope(py, || {
                // SAFETY: initialised, dropped once, and not used after.
                unsafe { inner.drop_in_place() };
            });
        }));
        drop(dropped);
        if let Some(error) = error {
            error.restore(py);
        }
    });
}

unsafe extern "C" fn traverse<T: Native>(
    object: *mut ffi::PyObject,
    visit: ffi::visitproc,
    argument: *mut c_void,
) -> c_int {
    // SAFETY: the object is alive.
    let class = unsafe { ffi::Py_TYPE(object) };
    // SAFETY: the collector's own function and argument; the type is owned by the object.
    let outcome = unsafe { visit(class.cast(), argument) };
    if outcome != 0 {
        return outcome;
    }
    // SAFETY: alive, and nothing else runs while the collector traverses; what was being changed
    // by code further up the stack had been taken out.
    let inner = unsafe { cell::<T>(object) };
    // SAFETY: as above: no exclusive reference is in use.
    let inner = unsafe { &*inner.get() };
    inner.traverse(&mut |owned| {
        // SAFETY: the collector's own function and argument, with an object that is owned here.
        unsafe { visit(owned.as_ptr(), argument) }
    })
}

unsafe extern "C" fn clear<T: Native>(object: *mut ffi::PyObject) -> c_int {
    // SAFETY: alive: the collector holds it.
    let value = unsafe { cell::<T>(object) };
    // SAFETY: the interpreter itself is calling, and code that uses the value calls nothing that
    // collects.
    let owned = unsafe { T::clear(value) };
    attached(|py| scope(py, || drop(owned)));
    0
}

/// Calls `f`; an error or a panic is set as Python's error, and `failed` returned.
#[inline]
pub(super) fn guard<R>(failed: R, f: impl FnOnce(Python<'_>) -> Quick<R>) -> R {
    attached(|py| caught(py, failed, f))
}

/// [`guard`] for an `f` that drops no object, but where it fails: PyO3 is not told that the interpreter
/// is attached, so it would put that off.
///
/// # Safety
///
/// The interpreter is attached: it is calling a slot or a method.
#[inline]
pub(crate) unsafe fn guard_light<R>(failed: R, f: impl FnOnce(Python<'_>) -> Quick<R>) -> R {
    // SAFETY: the caller's promise.
    caught(unsafe { Python::assume_attached() }, failed, f)
}

#[inline]
fn caught<R>(py: Python<'_>, failed: R, f: impl FnOnce(Python<'_>) -> Quick<R>) -> R {
    match catch_unwind(AssertUnwindSafe(|| f(py))) {
        Ok(Ok(value)) => value,
        Ok(Err(error)) => {
            attached(|py| PyErr::from(error).restore(py));
            failed
        }
        Err(_) => {
            attached(|py| {
                let text = "a bug in pydotcompute: its native part panicked";
                PyRuntimeError::new_err(text).restore(py);
            });
            failed
        }
    }
}

/// Calls `f` from a slot or a method, where the interpreter is attached, in a way that PyO3 knows of
/// it: a reference that is dropped meanwhile is dropped at once.
#[inline]
fn attached<R>(f: impl FnOnce(Python<'_>) -> R) -> R {
    // SAFETY: the interpreter itself is calling, so it is initialised and not gone.
    unsafe { Python::attach_unchecked(f) }
}
