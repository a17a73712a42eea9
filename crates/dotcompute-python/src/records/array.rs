//! Batches as arrays of numpy, and arrays as batches, by numpy's C interface: its Python functions take
//! longer than a handler does for a thousand records.
//!
//! The fields of an array are read and its flags written where the macros of that interface do, so that
//! every compiled extension relies on where they lie.

use std::ffi::c_void;
use std::ptr::null_mut;

use dotcompute::RecordBatch;
use numpy::npyffi::flags::{NPY_ARRAY_ALIGNED, NPY_ARRAY_C_CONTIGUOUS, NPY_ARRAY_CARRAY_RO};
use numpy::npyffi::{NpyTypes, PyArrayObject, PyArrayObject_fields, get_type_object, npy_intp};
use numpy::{PY_ARRAY_API, PyArrayDescr, PyArrayDescrMethods};
use pyo3::exceptions::PyValueError;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::PyType;

use super::memory::RecordMemory;

/// The fields of an array.
///
/// # Safety
///
/// `array` is a `numpy.ndarray` or of a class derived from it. What they point to is read, and the
/// flags are written, with the interpreter attached only.
unsafe fn fields(array: &Bound<'_, PyAny>) -> *mut PyArrayObject_fields {
    let array = array.as_ptr().cast::<PyArrayObject>();
    // SAFETY: an array, which is larger than the head of an object.
    unsafe { &raw mut (*array).fields }
}

/// Where the elements of a numpy array begin.
///
/// # Safety
///
/// `array` is a `numpy.ndarray` or of a class derived from it.
pub(crate) unsafe fn start_of(array: &Bound<'_, PyAny>) -> *const u8 {
    // SAFETY: the caller's promise.
    let fields = unsafe { fields(array) };
    // SAFETY: those of an array that lives.
    unsafe { (*fields).data.cast() }
}

/// Sets or clears flags of an array; which of them were set before.
///
/// # Safety
///
/// `array` is a `numpy.ndarray` or of a class derived from it, and may have these flags.
pub(super) unsafe fn change_flags(array: &Bound<'_, PyAny>, flags: i32, set: bool) -> i32 {
    // SAFETY: the caller's promise.
    let fields = unsafe { fields(array) };
    // SAFETY: those of an array that lives; the interpreter is attached, as the `Bound` says.
    let all = unsafe { &mut (*fields).flags };
    let before = *all & flags;
    *all = if set { *all | flags } else { *all & !flags };
    before
}

/// Where the records of an array lie, and how many they are, where nothing else has to be known of it:
/// it is of numpy's own class, of this very dtype, in one dimension, contiguous and aligned.
pub(super) fn plain_records(
    array: &Bound<'_, PyAny>,
    dtype: &Bound<'_, PyAny>,
) -> Option<(*const u8, usize)> {
    const FLAGS: i32 = NPY_ARRAY_C_CONTIGUOUS | NPY_ARRAY_ALIGNED;
    // SAFETY: the thread is attached to the interpreter, and numpy's types stay.
    let class = unsafe { get_type_object(array.py(), NpyTypes::PyArray_Type) };
    if array.get_type_ptr() != class {
        return None;
    }
    // SAFETY: an array (above).
    let fields = unsafe { fields(array) };
    // SAFETY: those of an array that lives, which are read before any other code can run.
    let fields = unsafe { &*fields };
    if fields.descr.cast() != dtype.as_ptr() || fields.nd != 1 || fields.flags & FLAGS != FLAGS {
        return None;
    }
    // SAFETY: an array of one dimension has one length.
    let count = unsafe { fields.dimensions.read() };
    Some((fields.data.cast(), usize::try_from(count).ok()?))
}

/// An array of `class`, a class derived from `numpy.ndarray`, over the memory of a batch.
pub(super) fn array_over<'py>(
    class: &Bound<'py, PyType>,
    dtype: &Bound<'py, PyAny>,
    memory: Bound<'py, RecordMemory>,
) -> PyResult<Bound<'py, PyAny>> {
    let py = class.py();
    let batch: &RecordBatch = memory.get().batch();
    let (start, layout) = (batch.bytes().as_ptr(), batch.layout());
    let dtype = dtype.cast::<PyArrayDescr>()?;
    if dtype.itemsize() != layout.bytes || !start.addr().is_multiple_of(layout.align_bytes) {
        return Err(PyValueError::new_err(format!("the memory of a batch of '{}'", layout.name)));
    }
    let mut count = npy_intp::try_from(batch.len())?;
    let none: *mut c_void = null_mut();
    // SAFETY: a class of arrays; an element type, a reference to which the call takes; one length, which
    // it reads; no strides, so that it lays them out one after the other; memory of so many elements of
    // that type, aligned, which is only read, and which the base that is set below keeps.
    let array = unsafe {
        PY_ARRAY_API.PyArray_NewFromDescr(
            py,
            class.as_type_ptr(),
            dtype.clone().into_dtype_ptr(),
            1,
            &raw mut count,
            none.cast(),
            start.cast_mut().cast(),
            NPY_ARRAY_CARRAY_RO,
            none.cast(),
        )
    };
    // SAFETY: the call returns a new reference, or null with an exception set.
    let array = unsafe { Bound::from_owned_ptr_or_err(py, array) }?;
    let base: *mut ffi::PyObject = memory.into_ptr();
    // SAFETY: an array that has no base yet, and a reference, which the call takes.
    let set = unsafe { PY_ARRAY_API.PyArray_SetBaseObject(py, array.as_ptr().cast(), base) };
    if set != 0 {
        return Err(PyErr::fetch(py));
    }
    Ok(array)
}
