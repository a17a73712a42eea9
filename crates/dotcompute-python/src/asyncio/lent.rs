//! Device memory that messages name, for Python.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use dotcompute_cuda::Lent;
use pyo3::exceptions::{PyIndexError, PyValueError};
use pyo3::prelude::*;

use super::cuda::{device, refused};
use super::scope::{detached, discard};

/// An object of Python's that any thread can give up.
struct Owner(Option<Py<PyAny>>);

impl Drop for Owner {
    fn drop(&mut self) {
        if let Some(object) = self.0.take() {
            discard(object);
        }
    }
}

/// Where memory of a device is: a field of a record. It keeps that memory if it is lent.
#[pyclass(frozen, module = "pydotcompute._native")]
pub(crate) struct DevicePointer {
    address: u64,
    lent: Option<Lent>,
}

impl DevicePointer {
    /// What is lent there.
    pub(crate) fn lent(&self) -> Option<&Lent> {
        self.lent.as_ref()
    }
}

#[pymethods]
impl DevicePointer {
    /// The memory at this address is kept, if it is lent at the moment.
    #[new]
    #[pyo3(signature = (address = 0))]
    fn new(address: u64) -> Self {
        let lent = (address != 0).then(|| Lent::at(address)).flatten();
        Self { address, lent }
    }

    /// What a handler finds in the field.
    #[getter]
    fn address(&self) -> u64 {
        self.address
    }

    /// How many bytes are lent from there on; 0: none.
    #[getter]
    fn nbytes(&self) -> u64 {
        self.lent.as_ref().map_or(0, |lent| lent.address() + lent.bytes() as u64 - self.address)
    }

    /// Whether it keeps the memory.
    #[getter]
    fn is_lent(&self) -> bool {
        self.lent.is_some()
    }

    /// A place further on, so many bytes, in what is lent.
    fn offset(&self, nbytes: u64) -> PyResult<Self> {
        let left = self.nbytes();
        if nbytes >= left.max(1) {
            let text = format!("{nbytes} bytes from there is beyond the {left} that are lent");
            return Err(PyIndexError::new_err(text));
        }
        Ok(Self { address: self.address + nbytes, lent: self.lent.clone() })
    }

    fn __bool__(&self) -> bool {
        self.address != 0
    }

    fn __eq__(&self, other: &Self) -> bool {
        self.address == other.address
    }

    fn __hash__(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.address.hash(&mut hasher);
        hasher.finish()
    }

    fn __repr__(&self) -> String {
        format!("DevicePointer({:#x}, nbytes={})", self.address, self.nbytes())
    }
}

/// Lets the kernels on the device reach memory by its address, which `owner` keeps. Waits for at most so
/// many seconds, without the interpreter.
#[pyfunction]
fn _lend(
    py: Python<'_>,
    address: u64,
    nbytes: usize,
    owner: Py<PyAny>,
    timeout: f64,
) -> PyResult<DevicePointer> {
    if nbytes == 0 {
        return Err(PyValueError::new_err("an empty array has no memory that could be lent"));
    }
    let within = Duration::try_from_secs_f64(timeout.max(0.0)).unwrap_or(Duration::MAX);
    let within = within.min(Duration::from_secs(1 << 30));
    let owner = Owner(Some(owner));
    let lent = detached(py, || {
        let cuda = device(None)?;
        // SAFETY: an array of a library of this process, which shares the device's primary context with
        // us, and which says that it has so many bytes there; it keeps them while it lives. That it is
        // the device's memory is looked at.
        unsafe { cuda.lend_foreign(address, nbytes, owner, within) }
    });
    let lent = lent.map_err(|error| refused(py, "", &error))?;
    Ok(DevicePointer { address, lent: Some(lent) })
}

pub(super) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<DevicePointer>()?;
    module.add_function(wrap_pyfunction!(_lend, module)?)
}
