//! Attributes that lie in a fixed place of their object, read and written without a lookup, and
//! objects made without their constructor.

use crate::once::Once;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple, PyType};
use pyo3::{Borrowed, ffi};

/// One name of a class's `__slots__`: its member descriptor.
pub(super) struct Slot(Py<PyAny>, Functions);

#[derive(Clone, Copy)]
struct Functions {
    class: *mut ffi::PyTypeObject,
    get: ffi::descrgetfunc,
    set: ffi::descrsetfunc,
}

// SAFETY: two function pointers and the address of a static type object, which is only compared.
unsafe impl Send for Functions {}
// SAFETY: as above; nothing in it is ever changed.
unsafe impl Sync for Functions {}

static FUNCTIONS: Once<Option<Functions>> = Once::new();

/// The functions behind `types.MemberDescriptorType`.
fn functions(py: Python<'_>) -> Option<Functions> {
    *FUNCTIONS.get_or_init(py, || {
        let class = py.import("types").ok()?.getattr("MemberDescriptorType").ok()?;
        let class = class.cast::<PyType>().ok()?.as_type_ptr();
        // SAFETY: `class` is a type object (cast above), alive for good since `types` is.
        let get = unsafe { ffi::PyType_GetSlot(class, ffi::Py_tp_descr_get) };
        // SAFETY: as above.
        let set = unsafe { ffi::PyType_GetSlot(class, ffi::Py_tp_descr_set) };
        if get.is_null() || set.is_null() {
            return None;
        }
        // SAFETY: what the slot `tp_descr_get` of any type holds is a `descrgetfunc`, and it is not
        // null (checked above).
        let get = unsafe { std::mem::transmute::<*mut std::ffi::c_void, ffi::descrgetfunc>(get) };
        // SAFETY: what the slot `tp_descr_set` of any type holds is a `descrsetfunc`, and it is not
        // null (checked above).
        let set = unsafe { std::mem::transmute::<*mut std::ffi::c_void, ffi::descrsetfunc>(set) };
        Some(Functions { class, get, set })
    })
}

impl Slot {
    /// The slot that this descriptor stands for; none if it is no member descriptor.
    pub(super) fn new(descriptor: &Bound<'_, PyAny>) -> Option<Self> {
        let functions = functions(descriptor.py())?;
        if descriptor.get_type().as_type_ptr() != functions.class {
            return None;
        }
        Some(Self(descriptor.clone().unbind(), functions))
    }

    /// The value in this slot of `object`.
    #[inline]
    pub(super) fn get<'py>(&self, object: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        let py = object.py();
        // SAFETY: `get` belongs to the type of `self.0` (checked in `new`). It checks that `object`
        // is of the class with this slot and raises otherwise. Both are alive; no type is needed.
        let value = unsafe { (self.1.get)(self.0.as_ptr(), object.as_ptr(), std::ptr::null_mut()) };
        // SAFETY: a descriptor's `get` returns a new reference, or null with an exception set.
        unsafe { Bound::from_owned_ptr_or_err(py, value) }
    }

    /// Puts a value into this slot of `object`.
    #[inline]
    pub(super) fn set(&self, object: &Bound<'_, PyAny>, value: &Bound<'_, PyAny>) -> PyResult<()> {
        let py = object.py();
        // SAFETY: `set` belongs to the type of `self.0` (checked in `new`). It checks that `object`
        // is of the class with this slot and raises otherwise. All three are alive, and it takes
        // its own reference to the value.
        let status = unsafe { (self.1.set)(self.0.as_ptr(), object.as_ptr(), value.as_ptr()) };
        if status == 0 { Ok(()) } else { Err(PyErr::fetch(py)) }
    }

    /// The descriptor, for the garbage collector.
    pub(super) fn descriptor(&self) -> &Py<PyAny> {
        &self.0
    }
}

/// A new object of this class, made with its `__new__` alone, without arguments.
#[inline]
pub(super) fn blank<'py>(class: &Bound<'py, PyType>) -> PyResult<Bound<'py, PyAny>> {
    let py = class.py();
    // SAFETY: `class` is a live type object.
    let new = unsafe { ffi::PyType_GetSlot(class.as_type_ptr(), ffi::Py_tp_new) };
    if new.is_null() {
        return class.call0();
    }
    // SAFETY: what the slot `tp_new` of any type holds is a `newfunc`, and it is not null.
    let new = unsafe { std::mem::transmute::<*mut std::ffi::c_void, ffi::newfunc>(new) };
    let arguments = PyTuple::empty(py);
    // SAFETY: `new` is this type's own, so it takes the type; `arguments` is a tuple, and no
    // keywords are allowed to be null.
    let object = unsafe { new(class.as_type_ptr(), arguments.as_ptr(), std::ptr::null_mut()) };
    // SAFETY: a `newfunc` returns a new reference, or null with an exception set.
    unsafe { Bound::from_owned_ptr_or_err(py, object) }
}

/// Calls `f` with each entry of a dict of keywords. What `f` does to the dict may or may not be seen;
/// the name is there until it runs other code.
#[inline]
pub(super) fn each<'py>(
    keywords: &Bound<'py, PyDict>,
    mut f: impl FnMut(Borrowed<'_, 'py, PyAny>, &Bound<'py, PyAny>) -> PyResult<()>,
) -> PyResult<()> {
    let py = keywords.py();
    let (mut place, mut name, mut value) = (0, std::ptr::null_mut(), std::ptr::null_mut());
    loop {
        // SAFETY: a live dict, and places for what is written.
        let more = unsafe {
            ffi::PyDict_Next(keywords.as_ptr(), &raw mut place, &raw mut name, &raw mut value)
        };
        if more == 0 {
            return Ok(());
        }
        // SAFETY: written by the call, and kept by the dict until `f` runs other code.
        let name = unsafe { Borrowed::from_ptr(py, name) };
        // SAFETY: as above; owned from here.
        let value = unsafe { Borrowed::from_ptr(py, value) }.to_owned();
        f(name, &value)?;
    }
}
