//! The memory of batches: lent to numpy, or an array's that is held.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ffi::c_int;
use std::sync::Arc;

use dotcompute::RecordBatch;
use numpy::npyffi::flags::NPY_ARRAY_WRITEABLE;
use pyo3::exceptions::PyBufferError;
use pyo3::ffi;
use pyo3::prelude::*;

use super::array;
use crate::asyncio::discard;
use crate::attached::Attached;

/// The bytes of a batch, read only, through the buffer protocol.
#[pyclass(frozen, module = "pydotcompute._native")]
pub(crate) struct RecordMemory {
    batch: Arc<RecordBatch>,
}

impl RecordMemory {
    pub(super) fn new(batch: Arc<RecordBatch>) -> Self {
        Self { batch }
    }

    pub(super) fn batch(&self) -> &RecordBatch {
        &self.batch
    }
}

#[pymethods]
impl RecordMemory {
    fn __len__(&self) -> usize {
        self.batch.bytes().len()
    }

    /// # Safety
    ///
    /// Called by the interpreter: `view` is null or points to a `Py_buffer` that may be written.
    unsafe fn __getbuffer__(
        slf: Bound<'_, Self>,
        view: *mut ffi::Py_buffer,
        flags: c_int,
    ) -> PyResult<()> {
        if view.is_null() {
            return Err(PyBufferError::new_err("the view is null"));
        }
        let bytes = slf.get().batch.bytes();
        // SAFETY: `view` may be written (above). The bytes are never moved and live as long as
        // `slf`, to which the view takes a reference; the view is read only.
        let code = unsafe {
            ffi::PyBuffer_FillInfo(
                view,
                slf.as_ptr(),
                bytes.as_ptr().cast_mut().cast(),
                bytes.len().cast_signed(),
                1,
                flags,
            )
        };
        if code == 0 { Ok(()) } else { Err(PyErr::fetch(slf.py())) }
    }
}

/// An array that batches are in: it cannot be written to while any of their leases lives.
#[pyclass(frozen, module = "pydotcompute._native")]
pub(crate) struct Lease {
    array: Py<PyAny>,
    /// Whether it could be written to before the first of the leases.
    restore: bool,
}

/// How many leases each array has that could be written to before, by its address.
static LEASES: Attached<BTreeMap<usize, usize>> = Attached::new(BTreeMap::new());

impl Lease {
    /// Makes `array` read only for as long as the lease lives.
    ///
    /// # Safety
    ///
    /// `array` is a `numpy.ndarray` or of a class derived from it.
    pub(super) unsafe fn new(array: &Bound<'_, PyAny>) -> Self {
        // SAFETY: the caller's promise.
        let before = unsafe { array::change_flags(array, NPY_ARRAY_WRITEABLE, false) };
        let restore = LEASES.with(array.py(), |leases| match leases.entry(array.as_ptr().addr()) {
            Entry::Occupied(mut count) => {
                *count.get_mut() += 1;
                true
            }
            Entry::Vacant(none) => {
                if before != 0 {
                    none.insert(1);
                }
                before != 0
            }
        });
        Self { array: array.clone().unbind(), restore }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if !self.restore {
            return;
        }
        // An object's destructor runs with the interpreter's lock; this only says so.
        Python::attach(|py| {
            let is_last = LEASES.with(py, |leases| {
                let Entry::Occupied(mut count) = leases.entry(self.array.as_ptr().addr()) else {
                    return true;
                };
                *count.get_mut() -= 1;
                if *count.get() > 0 {
                    return false;
                }
                count.remove();
                true
            });
            if is_last {
                // SAFETY: an array, which could be written to before.
                unsafe { array::change_flags(self.array.bind(py), NPY_ARRAY_WRITEABLE, true) };
            }
        });
    }
}

/// A lease that any thread can give up: it ends when the interpreter is next entered.
pub(super) struct Held(Option<Py<Lease>>);

impl Held {
    pub(super) fn new(lease: Py<Lease>) -> Self {
        Self(Some(lease))
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(lease) = self.0.take() {
            discard(lease.into_any());
        }
    }
}
