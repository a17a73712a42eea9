//! `MessageBase`, as Python sees it: [`MessageCore`] with a constructor that takes its arguments as
//! the interpreter passes them. What PyO3 would generate copies the keywords into a new dict, twice.

use std::any::Any;
use std::ffi::{c_int, c_uint, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;

use crate::once::Once;
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple, PyType};
use pyo3::{PyTypeInfo, ffi};

use super::base::MessageCore;

static MESSAGE_BASE: Once<Py<PyType>> = Once::new();
/// `tp_new` of [`MessageCore`].
static CORE_NEW: Once<ffi::newfunc> = Once::new();

/// The class `MessageBase`.
pub(super) fn message_base(py: Python<'_>) -> PyResult<&Bound<'_, PyType>> {
    let class = MESSAGE_BASE.get_or_try_init(py, || make(py).map(Bound::unbind))?;
    Ok(class.bind(py))
}

fn make(py: Python<'_>) -> PyResult<Bound<'_, PyType>> {
    let core = MessageCore::type_object(py);
    // SAFETY: `core` is a live type object.
    let core_new = unsafe { ffi::PyType_GetSlot(core.as_type_ptr(), ffi::Py_tp_new) };
    if core_new.is_null() {
        return Err(PyRuntimeError::new_err("the native part of messages cannot be made"));
    }
    // SAFETY: what the slot `tp_new` of any type holds is a `newfunc`, and it is not null.
    let core_new = unsafe { std::mem::transmute::<*mut c_void, ffi::newfunc>(core_new) };
    CORE_NEW.get_or_init(py, || core_new);

    let doc = c"What every message has; not for direct use, see `RingKernelMessage`.";
    let mut slots = [
        ffi::PyType_Slot { slot: ffi::Py_tp_new, pfunc: new as ffi::newfunc as *mut c_void },
        ffi::PyType_Slot { slot: ffi::Py_tp_init, pfunc: init as ffi::initproc as *mut c_void },
        ffi::PyType_Slot { slot: ffi::Py_tp_doc, pfunc: doc.as_ptr() as *mut c_void },
        ffi::PyType_Slot { slot: 0, pfunc: ptr::null_mut() },
    ];
    let mut spec = ffi::PyType_Spec {
        name: c"pydotcompute._native.MessageBase".as_ptr(),
        // Those of its base class.
        basicsize: 0,
        itemsize: 0,
        flags: (ffi::Py_TPFLAGS_DEFAULT | ffi::Py_TPFLAGS_BASETYPE) as c_uint,
        slots: slots.as_mut_ptr(),
    };
    let bases = PyTuple::new(py, [core])?;
    // SAFETY: `spec` and `slots` are complete and outlive the call, which copies them; the name and
    // the text are static; `bases` is a tuple of one class that may be derived from.
    let class = unsafe { ffi::PyType_FromSpecWithBases(&mut spec, bases.as_ptr()) };
    // SAFETY: the call returns a new reference, or null with an exception set.
    let class = unsafe { Bound::from_owned_ptr_or_err(py, class) }?;
    Ok(class.cast_into::<PyType>()?)
}

/// `__new__`: an object whose native part is that of a new message. The arguments are for `__init__`.
unsafe extern "C" fn new(
    class: *mut ffi::PyTypeObject,
    _arguments: *mut ffi::PyObject,
    _keywords: *mut ffi::PyObject,
) -> *mut ffi::PyObject {
    // SAFETY: the interpreter calls this, so the thread is attached to it.
    let py = unsafe { Python::assume_attached() };
    let Some(core_new) = CORE_NEW.get() else { return ptr::null_mut() };
    // SAFETY: `class` derives from `MessageCore`, so this is the function of one of its bases, as
    // `super().__new__(class)` calls.
    unsafe { core_new(class, PyTuple::empty(py).as_ptr(), ptr::null_mut()) }
}

/// `__init__`: sets the fields.
unsafe extern "C" fn init(
    object: *mut ffi::PyObject,
    arguments: *mut ffi::PyObject,
    keywords: *mut ffi::PyObject,
) -> c_int {
    // SAFETY: the interpreter calls this, so the thread is attached to it.
    let py = unsafe { Python::assume_attached() };
    // SAFETY: the interpreter passes a live object, and keeps it for the length of the call.
    let object = unsafe { Bound::ref_from_ptr(py, &object) };
    // SAFETY: as above; it is a tuple.
    let arguments = unsafe { Bound::ref_from_ptr(py, &arguments) };
    // SAFETY: as above; it is a dict, or null if there are no keywords.
    let keywords = unsafe { Bound::from_borrowed_ptr_or_opt(py, keywords) };
    let result = catch_unwind(AssertUnwindSafe(|| {
        let arguments = arguments.cast::<PyTuple>()?;
        let keywords = keywords.as_ref().map(|keywords| keywords.cast::<PyDict>()).transpose()?;
        MessageCore::initialise(object.cast::<MessageCore>()?, arguments, keywords)
    }));
    let error = match result {
        Ok(Ok(())) => return 0,
        Ok(Err(error)) => error,
        Err(panic) => panicked(&*panic),
    };
    error.restore(py);
    -1
}

/// A panic as an error, since it must not cross into Python.
#[cold]
fn panicked(panic: &(dyn Any + Send)) -> PyErr {
    let text = panic.downcast_ref::<&str>().copied().unwrap_or("a panic");
    PyRuntimeError::new_err(format!("the constructor of a message failed: {text}"))
}
