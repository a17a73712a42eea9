//! Python types made by hand: for those that need slots which PyO3 does not offer (`am_send`).

use std::any::Any;
use std::cell::UnsafeCell;
use std::ffi::{CStr, c_int, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::null_mut;

use crate::once::Once;
use pyo3::exceptions::PyRuntimeError;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::PyType;

use super::guarded::guarded;
use super::scope::scope;
use crate::attached::Attached;
use crate::quick::Quick;

/// How many objects are kept, at most, for each type that does.
const KEPT_MAX: usize = 64;

/// What a hand-made type is made of.
pub(super) trait Native: Sized + 'static {
    /// Its name with its module.
    const NAME: &'static CStr;
    /// Its slots, without those for memory.
    fn slots() -> Vec<ffi::PyType_Slot>;
    /// Where the type is kept.
    fn cell() -> &'static Once<Py<PyType>>;
    /// Calls `visit` with each object that it owns; nonzero ends it.
    fn traverse(&self, visit: &mut dyn FnMut(&Py<PyAny>) -> c_int) -> c_int;
    /// Gives up what may be part of a cycle.
    ///
    /// # Safety
    ///
    /// The interpreter is attached, and no reference to the value is in use.
    unsafe fn clear(value: &UnsafeCell<Self>) -> Box<dyn Any>;
    /// Where objects at their end are kept, to be used again. `None`: nowhere.
    fn kept() -> Option<&'static Attached<Vec<Py<PyAny>>>> {
        None
    }
    /// The object goes away.
    fn gone(&mut self, _py: Python<'_>) {}
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

/// An object that holds what `make` makes, in its place: a value that is moved there costs more than the
/// rest. `make` runs no Python code.
#[inline(always)]
pub(super) fn new<T: Native>(py: Python<'_>, make: impl FnOnce() -> T) -> Quick<Py<PyAny>> {
    if let Some(kept) = T::kept().and_then(|kept| kept.with(py, Vec::pop)) {
        // SAFETY: an object that we own a reference to.
        let references = unsafe { ffi::Py_REFCNT(kept.as_ptr()) };
        if references == 1 {
            // SAFETY: an object of this type, as `keep` was promised.
            let cell = unsafe { cell::<T>(kept.as_ptr()) };
            // SAFETY: nobody else refers to the object, and dropping what it holds would do nothing.
            unsafe { cell.get().write(make()) };
            return Ok(kept);
        }
        drop(kept.into_bound(py));
    }
    let object = allocate::<T>(py)?;
    // SAFETY: the object was allocated with room for an `Object<T>`.
    let cell = unsafe { &raw const (*object.as_ptr().cast::<Object<T>>()).value };
    // SAFETY: nobody has read the value yet: the collector does not run before this.
    unsafe { UnsafeCell::raw_get(cell).write(make()) };
    Ok(object)
}

#[cold]
#[inline(never)]
fn allocate<T: Native>(py: Python<'_>) -> Quick<Py<PyAny>> {
    let class = type_of::<T>(py)?.as_ptr().cast::<ffi::PyTypeObject>();
    // SAFETY: a type of ours, which is alive for ever.
    let object = unsafe { ffi::PyType_GenericAlloc(class, 0) };
    // SAFETY: a new reference, or null with an error set.
    Ok(unsafe { Bound::from_owned_ptr_or_err(py, object) }?.unbind())
}

/// Keeps an object for [`new`], which uses it again if nobody else refers to it by then: that spares to
/// make one and to tell the collector of it.
///
/// # Safety
///
/// It is an object of `T`, alive, which holds nothing any more and is not kept yet.
#[inline(always)]
pub(super) unsafe fn keep<T: Native>(py: Python<'_>, object: *mut ffi::PyObject) {
    let Some(kept) = T::kept() else { return };
    kept.with(py, |kept| {
        if kept.len() < KEPT_MAX {
            // SAFETY: the caller's promise.
            kept.push(unsafe { Bound::from_borrowed_ptr(py, object) }.unbind());
        }
    });
}

unsafe extern "C" fn dealloc<T: Native>(object: *mut ffi::PyObject) {
    // SAFETY: a tracked object whose last reference went away.
    unsafe { ffi::PyObject_GC_UnTrack(object.cast()) };
    // SAFETY: nobody has a reference to the object any more.
    let inner = unsafe { value::<T>(object) };
    // SAFETY: the interpreter itself is calling.
    let py = unsafe { Python::assume_attached() };
    release(py, inner);
    // SAFETY: the object is still allocated; its type is valid.
    let class = unsafe { ffi::Py_TYPE(object) };
    // SAFETY: allocated by `PyType_GenericAlloc` as an object with collector's head.
    unsafe { ffi::PyObject_GC_Del(object.cast()) };
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

/// [`guard`] for an `f` that drops each object as a `Bound`, but where it fails or leaves more to be
/// done by `guard`: PyO3 is not told that the interpreter is attached, so it would put off the drop of a
/// `Py` until it is.
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
    match catch_unwind(AssertUnwindSafe(|| guarded(|| f(py)))) {
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
