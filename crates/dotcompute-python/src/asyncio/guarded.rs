//! Calls of Python code on threads that the interpreter may end in the middle of them.
//!
//! Before Python 3.14, a thread that wants the interpreter back while this comes to its end is ended by
//! `pthread_exit`, which unwinds its stack: a daemon thread that runs an event loop, or one of ours that
//! wakes a loop. Where that comes to Rust code that does not expect it, the process is aborted. So such calls
//! are made by an ABI that may unwind, and the unwinding ends here: the thread stays where it is for good,
//! which is what it does with newer Python. PyO3 does the same where it takes the interpreter itself.

use std::hint::black_box;
use std::mem::{forget, transmute};
use std::ptr::null_mut;

use pyo3::ffi::{self, PyObject};

type OfMethod = unsafe extern "C-unwind" fn(*mut PyObject, *mut PyObject, ...) -> *mut PyObject;
type OfTuple = unsafe extern "C-unwind" fn(*mut PyObject, *mut PyObject) -> *mut PyObject;
type OfFunction = unsafe extern "C-unwind" fn(*mut PyObject, ...) -> *mut PyObject;

/// Keeps a thread that unwinds, but not for a panic.
struct Keep;

impl Drop for Keep {
    fn drop(&mut self) {
        while !std::thread::panicking() {
            std::thread::park();
        }
    }
}

/// Calls `f`, which may call Python code by other ways; where it unwinds up to here, the thread is kept.
#[inline]
pub(super) fn guarded<R>(f: impl FnOnce() -> R) -> R {
    let keep = Keep;
    let result = f();
    forget(keep);
    result
}

/// `object.name(first, second)`; with one argument only if the second is null.
///
/// # Safety
///
/// The thread is attached to the interpreter; the objects are alive. What is returned is a new reference, or
/// null with an error set.
#[inline]
pub(crate) unsafe fn call_method(
    object: *mut PyObject,
    name: *mut PyObject,
    first: *mut PyObject,
    second: *mut PyObject,
) -> *mut PyObject {
    // Through a pointer of which the compiler knows nothing, for PyO3 has declared that it never unwinds.
    let of_method: *const () = black_box(ffi::PyObject_CallMethodObjArgs as *const ());
    // SAFETY: the same function, by the ABI that it has anyhow.
    let of_method = unsafe { transmute::<*const (), OfMethod>(of_method) };
    // SAFETY: as promised; the arguments end with a null.
    guarded(|| unsafe { of_method(object, name, first, second, null_mut::<PyObject>()) })
}

/// `function(*arguments)`, of a tuple.
///
/// # Safety
///
/// As for [`call_method`].
pub(super) unsafe fn call_with(function: *mut PyObject, arguments: *mut PyObject) -> *mut PyObject {
    // As above.
    let of_tuple: *const () = black_box(ffi::PyObject_CallObject as *const ());
    // SAFETY: as above.
    let of_tuple = unsafe { transmute::<*const (), OfTuple>(of_tuple) };
    // SAFETY: as promised.
    guarded(|| unsafe { of_tuple(function, arguments) })
}

/// `function(first, second)`; with one argument only if the second is null.
///
/// # Safety
///
/// As for [`call_method`].
pub(super) unsafe fn call(
    function: *mut PyObject,
    first: *mut PyObject,
    second: *mut PyObject,
) -> *mut PyObject {
    // As above.
    let of_function: *const () = black_box(ffi::PyObject_CallFunctionObjArgs as *const ());
    // SAFETY: as above.
    let of_function = unsafe { transmute::<*const (), OfFunction>(of_function) };
    // SAFETY: as promised; the arguments end with a null.
    guarded(|| unsafe { of_function(function, first, second, null_mut::<PyObject>()) })
}
