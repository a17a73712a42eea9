//! DLPack: arrays passed by address, with an owner that keeps them.

use std::ffi::{CStr, c_void};
use std::ptr::{self, NonNull};
use std::slice;

use pyo3::exceptions::{PyBufferError, PyValueError};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyCapsule, PyTuple};

const LEGACY: &CStr = c"dltensor";
const LEGACY_USED: &CStr = c"used_dltensor";
const VERSIONED: &CStr = c"dltensor_versioned";
const VERSIONED_USED: &CStr = c"used_dltensor_versioned";

/// `DLTensor`.
#[repr(C)]
struct Tensor {
    data: *mut c_void,
    device_type: i32,
    device: i32,
    dimensions: i32,
    code: u8,
    bits: u8,
    lanes: u16,
    shape: *mut i64,
    strides: *mut i64,
    offset_bytes: u64,
}

/// `DLManagedTensor`.
#[repr(C)]
struct Legacy {
    tensor: Tensor,
    manager: *mut c_void,
    delete: Option<unsafe extern "C" fn(*mut Self)>,
}

/// `DLManagedTensorVersioned`, of version 1.
#[repr(C)]
struct Versioned {
    major: u32,
    minor: u32,
    manager: *mut c_void,
    delete: Option<unsafe extern "C" fn(*mut Self)>,
    flags: u64,
    tensor: Tensor,
}

/// What a tensor of ours keeps: its owner, and its shape and strides.
struct Keeper {
    _owner: Py<PyAny>,
    shape: Box<[i64]>,
    strides: Box<[i64]>,
}

/// Makes a capsule of memory that `owner` keeps: its address, shape and strides (in elements), its
/// type (code and bits of DLPack), and its device (type and number of DLPack).
#[pyfunction]
#[pyo3(signature = (owner, address, shape, strides, dtype, device, versioned))]
#[allow(clippy::too_many_arguments, reason = "the fields of a DLTensor")]
pub(crate) fn export_dlpack<'py>(
    owner: Bound<'py, PyAny>,
    address: usize,
    shape: Vec<i64>,
    strides: Vec<i64>,
    dtype: (u8, u8),
    device: (i32, i32),
    versioned: bool,
) -> PyResult<Bound<'py, PyAny>> {
    if shape.len() != strides.len() {
        return Err(PyValueError::new_err("shape and strides must be equally long"));
    }
    let dimensions =
        i32::try_from(shape.len()).map_err(|_| PyValueError::new_err("too many dimensions"))?;
    let py = owner.py();
    let mut keeper = Box::new(Keeper {
        _owner: owner.unbind(),
        shape: shape.into_boxed_slice(),
        strides: strides.into_boxed_slice(),
    });
    let tensor = Tensor {
        data: ptr::with_exposed_provenance_mut(address),
        device_type: device.0,
        device: device.1,
        dimensions,
        code: dtype.0,
        bits: dtype.1,
        lanes: 1,
        shape: keeper.shape.as_mut_ptr(),
        strides: keeper.strides.as_mut_ptr(),
        offset_bytes: 0,
    };
    let manager = Box::into_raw(keeper).cast::<c_void>();
    let (place, name, destroy): (*mut c_void, _, ffi::PyCapsule_Destructor) = if versioned {
        let delete = Some(delete_versioned as unsafe extern "C" fn(*mut Versioned));
        let tensor = Versioned { major: 1, minor: 0, manager, delete, flags: 0, tensor };
        (Box::into_raw(Box::new(tensor)).cast(), VERSIONED, destroy_versioned)
    } else {
        let delete = Some(delete_legacy as unsafe extern "C" fn(*mut Legacy));
        let tensor = Legacy { tensor, manager, delete };
        (Box::into_raw(Box::new(tensor)).cast(), LEGACY, destroy_legacy)
    };
    // SAFETY: not null; the name is static, and the destructor takes capsules of this name.
    let capsule = unsafe { ffi::PyCapsule_New(place, name.as_ptr(), Some(destroy)) };
    // SAFETY: a new reference, or null with an error set. Where it fails the tensor leaks, which
    // only happens without memory for a capsule.
    unsafe { Bound::from_owned_ptr_or_err(py, capsule) }
}

/// # Safety
///
/// - `manager` is what `export_dlpack` made, and nobody uses it afterwards.
unsafe fn forget(manager: *mut c_void) {
    // SAFETY: as the caller promises.
    let keeper = unsafe { Box::from_raw(manager.cast::<Keeper>()) };
    // Whoever deletes may have no lock of the interpreter's. After the interpreter's end there is
    // nobody to tell.
    if Python::try_attach(|_| ()).is_some() {
        Python::attach(|_| drop(keeper));
    } else {
        Box::leak(keeper);
    }
}

unsafe extern "C" fn delete_legacy(tensor: *mut Legacy) {
    // SAFETY: the consumer deletes a tensor of `export_dlpack`'s, once.
    let tensor = unsafe { Box::from_raw(tensor) };
    // SAFETY: as above.
    unsafe { forget(tensor.manager) };
}

unsafe extern "C" fn delete_versioned(tensor: *mut Versioned) {
    // SAFETY: the consumer deletes a tensor of `export_dlpack`'s, once.
    let tensor = unsafe { Box::from_raw(tensor) };
    // SAFETY: as above.
    unsafe { forget(tensor.manager) };
}

/// The tensor of a capsule that nobody consumed: a consumer renames it.
fn unconsumed(capsule: *mut ffi::PyObject, name: &CStr) -> Option<NonNull<c_void>> {
    // SAFETY: the interpreter gives its destructor a capsule; the name ends in a zero byte.
    if unsafe { ffi::PyCapsule_IsValid(capsule, name.as_ptr()) } == 0 {
        return None;
    }
    // SAFETY: valid under this name, as just seen.
    NonNull::new(unsafe { ffi::PyCapsule_GetPointer(capsule, name.as_ptr()) })
}

unsafe extern "C" fn destroy_legacy(capsule: *mut ffi::PyObject) {
    if let Some(tensor) = unconsumed(capsule, LEGACY) {
        // SAFETY: made by `export_dlpack`, and nobody else's.
        unsafe { delete_legacy(tensor.as_ptr().cast()) };
    }
}

unsafe extern "C" fn destroy_versioned(capsule: *mut ffi::PyObject) {
    if let Some(tensor) = unconsumed(capsule, VERSIONED) {
        // SAFETY: made by `export_dlpack`, and nobody else's.
        unsafe { delete_versioned(tensor.as_ptr().cast()) };
    }
}

/// Makes the class that the module does not show: see [`once`](crate::once).
pub(super) fn make_classes(py: Python<'_>) {
    py.get_type::<Imported>();
}

/// Keeps another library's tensor.
#[pyclass(frozen, module = "pydotcompute._native")]
struct Imported {
    place: usize,
    versioned: bool,
}

impl Drop for Imported {
    fn drop(&mut self) {
        let place = ptr::with_exposed_provenance_mut::<c_void>(self.place);
        if self.versioned {
            let place = place.cast::<Versioned>();
            // SAFETY: taken over from its capsule, and not deleted before.
            if let Some(delete) = unsafe { (*place).delete } {
                // SAFETY: the producer's own function.
                unsafe { delete(place) };
            }
        } else {
            let place = place.cast::<Legacy>();
            // SAFETY: taken over from its capsule, and not deleted before.
            if let Some(delete) = unsafe { (*place).delete } {
                // SAFETY: the producer's own function.
                unsafe { delete(place) };
            }
        }
    }
}

/// Address, shape, strides in elements, type (code, bits, lanes), device (type, number), and what
/// keeps it.
type Fields<'py> = (
    u64,
    Bound<'py, PyTuple>,
    Option<Bound<'py, PyTuple>>,
    (u8, u8, u16),
    (i32, i32),
    Bound<'py, PyAny>,
);

/// Takes over the tensor of a capsule.
#[pyfunction]
pub(crate) fn import_dlpack<'py>(capsule: &Bound<'py, PyCapsule>) -> PyResult<Fields<'py>> {
    let py = capsule.py();
    let (name, used, versioned) = if unconsumed(capsule.as_ptr(), VERSIONED).is_some() {
        (VERSIONED, VERSIONED_USED, true)
    } else {
        (LEGACY, LEGACY_USED, false)
    };
    let Some(found) = unconsumed(capsule.as_ptr(), name) else {
        return Err(PyBufferError::new_err("no DLPack capsule, or one that was consumed already"));
    };
    let tensor: *const Tensor = if versioned {
        let whole = found.as_ptr().cast::<Versioned>();
        // SAFETY: what a capsule of this name leads to; the version stands first in all versions.
        let major = unsafe { (*whole).major };
        if major != 1 {
            let text = format!("DLPack {major} is not known, only 1");
            return Err(PyBufferError::new_err(text));
        }
        // SAFETY: as above; version 1 has this layout.
        unsafe { &raw const (*whole).tensor }
    } else {
        // SAFETY: what a capsule of this name leads to.
        unsafe { &raw const (*found.as_ptr().cast::<Legacy>()).tensor }
    };
    // SAFETY: as above; it lives until it is deleted.
    let tensor = unsafe { &*tensor };
    let count = usize::try_from(tensor.dimensions)
        .map_err(|_| PyBufferError::new_err("a negative number of dimensions"))?;
    let list = |place: *const i64| -> PyResult<Bound<'py, PyTuple>> {
        // SAFETY: as many numbers as there are dimensions, by the specification; not null, since
        // there are some.
        PyTuple::new(py, unsafe { slice::from_raw_parts(place, count) })
    };
    let shape = if count == 0 { PyTuple::empty(py) } else { list(tensor.shape)? };
    let strides =
        if tensor.strides.is_null() || count == 0 { None } else { Some(list(tensor.strides)?) };
    let address = tensor.data.expose_provenance() as u64 + tensor.offset_bytes;
    let dtype = (tensor.code, tensor.bits, tensor.lanes);
    let device = (tensor.device_type, tensor.device);
    let place = found.as_ptr().expose_provenance();
    let keeper = Bound::new(py, Imported { place, versioned })?.into_any();
    // From here on the tensor is ours.
    // SAFETY: a capsule; the name is static.
    let renamed = unsafe { ffi::PyCapsule_SetName(capsule.as_ptr(), used.as_ptr()) };
    if renamed != 0 {
        std::mem::forget(keeper);
        return Err(PyErr::fetch(py));
    }
    Ok((address, shape, strides, dtype, device, keeper))
}
