//! Arrays and scalars of numpy in messages.

use crate::once::Once;
use crate::once::intern;
use dotcompute::wire::Encoder;
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyFloat, PyInt, PyMemoryView, PyString, PyTuple, PyType};

use super::Writer;
use crate::message::hint::Hint;
use crate::message::{Beside, keys, types};
use crate::records::start_of;

impl Writer<'_> {
    /// A numpy scalar: as the Python number that it is, or as an array of no dimension.
    pub(super) fn scalar(
        &mut self,
        encoder: &mut Encoder<'_>,
        value: &Bound<'_, PyAny>,
        classes: &types::Classes,
    ) -> PyResult<()> {
        let py = value.py();
        let is_date = value.is_instance(classes.datetime64.bind(py))?
            || value.is_instance(classes.timedelta64.bind(py))?;
        if !is_date {
            let item = value.call_method0(intern!(py, "item"))?;
            // Of the types that Python has no counterpart of it is the scalar again, or a tuple.
            if !item.is_instance(classes.scalar.bind(py))? && !item.is_instance_of::<PyTuple>() {
                return self.value(encoder, &item, &Hint::Any);
            }
        }
        self.numbers(encoder, value, true)
    }

    /// An array with its data.
    pub(super) fn numbers(
        &mut self,
        encoder: &mut Encoder<'_>,
        array: &Bound<'_, PyAny>,
        is_scalar: bool,
    ) -> PyResult<()> {
        let numbers = Numbers::of(array)?;
        let mut nowhere = None;
        let beside = if is_scalar { &mut nowhere } else { &mut self.beside };
        let data = numbers.data(array, beside)?;
        let is_inline = self.inline_only && !is_scalar;
        let length = 3 + usize::from(is_scalar) + usize::from(is_inline);
        self.map(encoder, length, |_, encoder| {
            if is_inline {
                encoder.str(keys::ARRAY_FALLBACK);
                encoder.bool(true);
                encoder.str(keys::ARRAY_FALLBACK_BYTES);
                data.write(encoder);
                numbers.shape(encoder);
                numbers.dtype(encoder)?;
            } else {
                encoder.str(keys::ARRAY);
                data.write(encoder);
                numbers.dtype(encoder)?;
                numbers.shape(encoder);
            }
            if is_scalar {
                encoder.str(keys::SCALAR);
                encoder.bool(true);
            }
            Ok(())
        })
    }

    /// An array field of an `ArrayMessage`: where it lies in this process, and its data for all
    /// others.
    pub(super) fn reference(
        &mut self,
        encoder: &mut Encoder<'_>,
        message: &Bound<'_, PyAny>,
        field: &str,
        array: &Bound<'_, PyAny>,
        references: &mut Vec<(String, String)>,
    ) -> PyResult<()> {
        let py = message.py();
        let (id, device): (String, String) = py
            .import(intern!(py, "pydotcompute.ring_kernels.array_message"))?
            .call_method1(intern!(py, "_register"), (message, field, array))?
            .extract()?;
        let numbers = Numbers::of(array)?;
        let data = numbers.data(array, &mut self.beside)?;
        self.map(encoder, 5, |_, encoder| {
            encoder.str(keys::ARRAY_REFERENCE);
            encoder.str(&id);
            numbers.shape(encoder);
            numbers.dtype(encoder)?;
            encoder.str(keys::ARRAY_DEVICE);
            encoder.str(&device);
            encoder.str(keys::ARRAY_FALLBACK_BYTES);
            data.write(encoder);
            Ok(())
        })?;
        references.push((field.to_owned(), id));
        Ok(())
    }
}

/// What describes an array.
struct Numbers<'py> {
    dtype: Bound<'py, PyString>,
    shape: Bound<'py, PyTuple>,
}

static DTYPES: Once<Py<PyDict>> = Once::new();

impl<'py> Numbers<'py> {
    fn of(array: &Bound<'py, PyAny>) -> PyResult<Self> {
        let py = array.py();
        let classes = types::classes(py)?;
        if array.is_instance(classes.masked_array.bind(py))? {
            return Err(PyTypeError::new_err("a masked array has no form in a message"));
        }
        let dtype = array.getattr(intern!(py, "dtype"))?;
        let shape = array.getattr(intern!(py, "shape"))?.cast_into::<PyTuple>()?;
        let names = DTYPES.get_or_init(py, || PyDict::new(py).unbind()).bind(py);
        let name = match names.get_item(&dtype)? {
            Some(name) => name,
            None => {
                let name = dtype_name(&dtype, classes)?;
                // Bounded, since there is a type for each length of strings.
                if names.len() >= 256 {
                    names.clear();
                }
                names.set_item(&dtype, &name)?;
                name
            }
        };
        Ok(Self { dtype: name.cast_into()?, shape })
    }

    fn dtype(&self, encoder: &mut Encoder<'_>) -> PyResult<()> {
        encoder.str(keys::ARRAY_DTYPE);
        encoder.str(self.dtype.to_str()?);
        Ok(())
    }

    fn shape(&self, encoder: &mut Encoder<'_>) {
        encoder.str(keys::ARRAY_SHAPE);
        encoder.array(self.shape.len(), |encoder| {
            for length in self.shape.iter_borrowed() {
                encoder.unsigned(length.extract().unwrap_or_default());
            }
        });
    }

    /// The bytes of its elements in C order, unless they went `beside` the message.
    fn data(
        &self,
        array: &Bound<'py, PyAny>,
        beside: &mut Option<Beside<'_>>,
    ) -> PyResult<Data<'py>> {
        let py = array.py();
        let whole = || Ok(array.call_method0(intern!(py, "tobytes"))?.cast_into::<PyBytes>()?);
        // Text is parsed by its reader.
        let Some(beside) = beside.as_mut().filter(|_| !is_text(&self.dtype)) else {
            return whole().map(Data::Bytes);
        };
        if array.is_exact_instance(types::classes(py)?.array.bind(py))
            && array
                .getattr(intern!(py, "flags"))?
                .getattr(intern!(py, "c_contiguous"))?
                .is_truthy()?
        {
            let bytes = array.getattr(intern!(py, "nbytes"))?.extract()?;
            // SAFETY: it is an array.
            let start = unsafe { start_of(array) };
            // SAFETY: the elements of an array that is contiguous are so many bytes from there, and this
            // thread has the interpreter's lock, so that no Python code frees or writes them.
            let elements = unsafe { std::slice::from_raw_parts(start, bytes) };
            return match beside(elements) {
                Some(number) => Ok(Data::Beside(number)),
                None => whole().map(Data::Bytes),
            };
        }
        let bytes = whole()?;
        Ok(match beside(bytes.as_bytes()) {
            Some(number) => Data::Beside(number),
            None => Data::Bytes(bytes),
        })
    }
}

/// Where the elements of an array are.
enum Data<'py> {
    Bytes(Bound<'py, PyBytes>),
    /// Beside the message, under this number.
    Beside(usize),
}

impl Data<'_> {
    fn write(&self, encoder: &mut Encoder<'_>) {
        match self {
            Self::Bytes(bytes) => encoder.bytes(bytes.as_bytes()),
            Self::Beside(number) => encoder.unsigned(*number as u64),
        }
    }
}

fn is_text(dtype: &Bound<'_, PyString>) -> bool {
    // A name that is no text is no name of text.
    dtype.to_str().is_ok_and(|name| name.contains('U'))
}

/// The name of an element type, from which numpy makes the type again.
#[cold]
fn dtype_name<'py>(
    dtype: &Bound<'py, PyAny>,
    classes: &types::Classes,
) -> PyResult<Bound<'py, PyAny>> {
    let py = dtype.py();
    let name = dtype.str()?;
    let has_objects = dtype
        .getattr_opt(intern!(py, "hasobject"))?
        .is_some_and(|value| value.is_truthy().unwrap_or(true));
    // Of elements of no bytes the data would not say how many there are.
    let is_void =
        dtype.getattr_opt(intern!(py, "itemsize"))?.is_some_and(|size| size.eq(0).unwrap_or(false));
    let again = classes.dtype.bind(py).call1((&name,));
    if has_objects || is_void || !again.is_ok_and(|again| again.eq(dtype).unwrap_or(false)) {
        return Err(PyTypeError::new_err(format!("an array of {name} has no form in a message")));
    }
    Ok(name.into_any())
}

/// An array of numpy, or one that looks like it.
pub(super) fn is_array(value: &Bound<'_, PyAny>) -> PyResult<bool> {
    let py = value.py();
    // The usual types of fields, for which the three look-ups below would be a waste.
    if value.is_exact_instance_of::<PyFloat>()
        || value.is_exact_instance_of::<PyInt>()
        || value.is_exact_instance_of::<PyString>()
        || value.is_none()
    {
        return Ok(false);
    }
    let classes = types::classes(py)?;
    if value.is_exact_instance(classes.array.bind(py)) {
        return Ok(true);
    }
    Ok(!value.is_instance(classes.scalar.bind(py))?
        && !value.is_instance_of::<PyMemoryView>()
        && !value.is_instance_of::<PyType>()
        && value.hasattr(intern!(py, "tobytes"))?
        && value.hasattr(intern!(py, "dtype"))?
        && value.hasattr(intern!(py, "shape"))?)
}
