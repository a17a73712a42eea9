//! Python's own types, looked up once.

use std::collections::HashMap;

use crate::once::Once;
use crate::once::intern;
use dotcompute_mailbox::sync::{Arc, Mutex, lock};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyType;

use super::slots::{self, Slot};

/// `uuid.UUID`, and where its objects keep their two values.
struct Uuid {
    class: Py<PyType>,
    int: Slot,
    is_safe: Slot,
    unknown: Py<PyAny>,
}

static UUID: Once<Uuid> = Once::new();

fn uuid(py: Python<'_>) -> PyResult<&Uuid> {
    UUID.get_or_try_init(py, || {
        let module = py.import("uuid")?;
        let class = module.getattr("UUID")?.cast_into::<PyType>()?;
        let slot = |name: &str| {
            let descriptor = class.getattr(name)?;
            Slot::new(&descriptor)
                .ok_or_else(|| pyo3::exceptions::PyTypeError::new_err("uuid.UUID has no slots"))
        };
        Ok(Uuid {
            int: slot("int")?,
            is_safe: slot("is_safe")?,
            unknown: module.getattr("SafeUUID")?.getattr("unknown")?.unbind(),
            class: class.unbind(),
        })
    })
}

/// A `uuid.UUID` with these bits. Many times as fast as its constructor, which is written in
/// Python; the result is the same.
pub(super) fn make_uuid(py: Python<'_>, bits: u128) -> PyResult<Bound<'_, PyAny>> {
    let uuid = uuid(py)?;
    let object = slots::blank(uuid.class.bind(py))?;
    uuid.int.set(&object, bits.into_pyobject(py)?.as_any())?;
    uuid.is_safe.set(&object, uuid.unknown.bind(py))?;
    Ok(object)
}

/// The bits of a `uuid.UUID`; none of any other object.
pub(super) fn uuid_bits(object: &Bound<'_, PyAny>) -> Option<u128> {
    let uuid = uuid(object.py()).ok()?;
    if !object.is_instance(uuid.class.bind(object.py())).ok()? {
        return None;
    }
    uuid.int.get(object).ok()?.extract().ok()
}

macro_rules! classes {
    ($($(#[$doc:meta])* $name:ident: $module:literal $class:literal;)*) => {
        /// Classes that are looked up when first needed.
        #[derive(Debug)]
        pub(super) struct Classes { $($(#[$doc])* pub(super) $name: Py<PyType>,)* }

        impl Classes {
            fn new(py: Python<'_>) -> PyResult<Self> {
                Ok(Self { $($name: py.import($module)?.getattr($class)?.cast_into::<PyType>()?.unbind(),)* })
            }
        }
    };
}

classes! {
    array: "numpy" "ndarray";
    masked_array: "numpy.ma" "MaskedArray";
    scalar: "numpy" "generic";
    dtype: "numpy" "dtype";
    datetime64: "numpy" "datetime64";
    timedelta64: "numpy" "timedelta64";
    enumeration: "enum" "Enum";
    datetime: "datetime" "datetime";
    date: "datetime" "date";
    time: "datetime" "time";
    timedelta: "datetime" "timedelta";
    zone: "zoneinfo" "ZoneInfo";
    decimal: "decimal" "Decimal";
}

static CLASSES: Once<Classes> = Once::new();

pub(super) fn classes(py: Python<'_>) -> PyResult<&'static Classes> {
    CLASSES.get_or_try_init(py, || Classes::new(py))
}

/// A type of elements, and the size of one in bytes.
pub(super) struct Dtype {
    pub(super) dtype: Py<PyAny>,
    pub(super) item_bytes: u64,
}

/// The element types that were read, by name.
static DTYPES: Mutex<Option<HashMap<String, Arc<Dtype>, foldhash::fast::FixedState>>> =
    Mutex::new(None);

/// The element type of this name.
///
/// # Errors
///
/// numpy knows none of this name, or its elements are Python objects.
pub(super) fn dtype(py: Python<'_>, name: &str) -> PyResult<Arc<Dtype>> {
    if let Some(dtype) = lock(&DTYPES).as_ref().and_then(|dtypes| dtypes.get(name)) {
        return Ok(dtype.clone());
    }
    // A name is at most a dozen characters, except of a structure, which is not written.
    if name.len() > 64 {
        return Err(PyValueError::new_err("the name of an element type is too long"));
    }
    let dtype = classes(py)?.dtype.bind(py).call1((name,))?;
    if dtype.getattr(intern!(py, "hasobject"))?.is_truthy()? {
        return Err(PyValueError::new_err("an array of Python objects has no form in a message"));
    }
    let item_bytes = dtype.getattr(intern!(py, "itemsize"))?.extract()?;
    if item_bytes == 0 {
        return Err(PyValueError::new_err("an array of elements of no bytes"));
    }
    let dtype = Arc::new(Dtype { dtype: dtype.unbind(), item_bytes });
    let mut dtypes = lock(&DTYPES);
    let dtypes = dtypes.get_or_insert_default();
    // Bounded, since there is a type for each length of strings. What is full stays as it is, so
    // that nothing is dropped under the lock.
    if dtypes.len() < 256 {
        dtypes.entry(name.to_owned()).or_insert_with(|| dtype.clone());
    }
    Ok(dtype)
}
