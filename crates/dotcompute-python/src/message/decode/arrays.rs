//! Arrays and scalars of numpy out of messages.

use std::ffi::{c_int, c_void};
use std::ptr;

use crate::once::intern;
use dotcompute::wire::{Decoder, Kind};
use numpy::npyffi::{NpyTypes, PyArrayObject, get_type_object, npy_intp};
use numpy::{PY_ARRAY_API, PyArrayDescr, PyArrayDescrMethods};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyMemoryView, PyTuple};

use super::{Reader, Result};
use crate::message::{keys, types};

impl<'py, 'de> Reader<'py, 'de> {
    /// An array: its data, or where it lies in this process.
    pub(super) fn numbers(
        &mut self,
        decoder: &mut Decoder<'de>,
        first: &'de str,
        length: usize,
    ) -> Result<Bound<'py, PyAny>> {
        let py = self.py;
        let (mut data, mut dtype, mut shape) = (None, None, None);
        let mut is_scalar = false;
        let mut reference = None;
        let mut key = first;
        for index in 0..length {
            if index > 0 {
                // Mostly these, in this order.
                key = match () {
                    () if decoder.take_exactly(b"\xa5dtype") => keys::ARRAY_DTYPE,
                    () if decoder.take_exactly(b"\xa5shape") => keys::ARRAY_SHAPE,
                    () => decoder.str()?,
                };
            }
            match key {
                keys::ARRAY | keys::ARRAY_FALLBACK_BYTES => {
                    data = Some(match self.beside {
                        [_, ..] if decoder.kind()? == Kind::Integer => {
                            let at = decoder.offset();
                            let number = decoder.integer::<usize>("the number of an array")?;
                            let found = self.beside.get(number);
                            Data::Beside(found.ok_or_else(|| {
                                decoder.invalid(at, "the number of an array beside the message")
                            })?)
                        }
                        _ => Data::Bytes(decoder.bytes()?),
                    });
                }
                keys::ARRAY_REFERENCE => reference = Some(decoder.str()?),
                keys::ARRAY_DTYPE => dtype = Some(decoder.str()?),
                keys::ARRAY_SHAPE => shape = Some(lengths(decoder)?),
                keys::SCALAR => is_scalar = decoder.bool()?,
                _ => decoder.skip()?,
            }
        }
        let (Some(dtype), Some(shape)) = (dtype, shape) else {
            let text = "an array without its dtype or its shape";
            return Err(self.fail(decoder, PyValueError::new_err(text)));
        };
        if let Some(reference) = reference {
            let found = py.import(intern!(py, "pydotcompute.ring_kernels.array_message")).and_then(
                |module| {
                    let arguments = (reference, dtype, PyTuple::new(py, &shape)?);
                    module.call_method1(intern!(py, "_find_array"), arguments)
                },
            );
            let found = self.py(decoder, found)?;
            if !found.is_none() {
                return Ok(found);
            }
        }
        let Some(data) = data else {
            let text = match reference {
                Some(id) => format!(
                    "the array {id} is not in this process (any more), and its data are not in the \
                     message"
                ),
                None => "an array without its data".to_owned(),
            };
            return Err(self.fail(decoder, PyValueError::new_err(text)));
        };
        if let Data::Bytes(bytes) = data {
            decoder.claim_memory::<u8>(256 + bytes.len())?;
        }
        let is_frozen = first == keys::ARRAY_FALLBACK;
        let array = make_array(py, dtype, &shape, data, is_frozen, is_scalar);
        self.py(decoder, array)
    }
}

/// Where the elements of an array are.
#[derive(Clone, Copy)]
enum Data<'de> {
    Bytes(&'de [u8]),
    /// In a buffer of their own.
    Beside(&'de Py<PyAny>),
}

impl Data<'_> {
    /// How many bytes there are.
    fn length(self, py: Python<'_>) -> PyResult<usize> {
        match self {
            Self::Bytes(bytes) => Ok(bytes.len()),
            Self::Beside(buffer) => buffer.bind(py).len(),
        }
    }
}

/// An array of numpy, with data of its own.
fn make_array<'py>(
    py: Python<'py>,
    dtype: &str,
    shape: &[u64],
    data: Data<'_>,
    is_frozen: bool,
    is_scalar: bool,
) -> PyResult<Bound<'py, PyAny>> {
    let length = data.length(py)?;
    let wrong = || {
        PyValueError::new_err(format!(
            "{length} bytes are no array of {dtype} with shape {shape:?}"
        ))
    };
    // numpy itself takes any number for a character, and fails when the text is looked at.
    let is_text = dtype.contains('U');
    let has_characters = match data {
        Data::Bytes(bytes) => !is_text || are_characters(bytes, dtype.starts_with('>')),
        Data::Beside(_) => !is_text,
    };
    if !has_characters {
        return Err(PyValueError::new_err("an array of text with numbers that are no characters"));
    }
    let dtype = types::dtype(py, dtype)?;
    let elements = shape.iter().try_fold(1u64, |product, &length| product.checked_mul(length));
    let is_empty = shape.contains(&0);
    let needed = elements.and_then(|elements| elements.checked_mul(dtype.item_bytes));
    if shape.len() > 64 || (!is_empty && needed != Some(length as u64)) {
        return Err(wrong());
    }
    if is_empty {
        // numpy makes no array of no bytes.
        if length > 0 {
            return Err(wrong());
        }
        let zeros = py.import(intern!(py, "numpy"))?.getattr(intern!(py, "zeros"))?;
        return zeros.call1((PyTuple::new(py, shape)?, &dtype.dtype));
    }
    let buffer = match (data, is_frozen) {
        (Data::Bytes(bytes), true) => PyBytes::new(py, bytes).into_any(),
        (Data::Bytes(bytes), false) => {
            let array = copied(dtype.dtype.bind(py), shape, bytes)?;
            return if is_scalar { array.get_item(PyTuple::empty(py)) } else { Ok(array) };
        }
        (Data::Beside(buffer), true) => {
            let view = PyMemoryView::from(buffer.bind(py))?;
            view.call_method0(intern!(py, "toreadonly"))?
        }
        (Data::Beside(buffer), false) => buffer.bind(py).clone(),
    };
    let shape = PyTuple::new(py, shape)?;
    let array = types::classes(py)?.array.bind(py).call1((shape, &dtype.dtype, buffer))?;
    if is_scalar { array.get_item(PyTuple::empty(py)) } else { Ok(array) }
}

/// An array of this element type and shape, which has so many `bytes`: a copy of them. By numpy's own
/// functions, since to have it read a buffer of Python's takes as long as all the rest.
fn copied<'py>(
    dtype: &Bound<'py, PyAny>,
    shape: &[u64],
    bytes: &[u8],
) -> PyResult<Bound<'py, PyAny>> {
    let py = dtype.py();
    let dtype = dtype.cast::<PyArrayDescr>()?;
    let mut lengths = Vec::with_capacity(shape.len());
    for &length in shape {
        lengths.push(npy_intp::try_from(length)?);
    }
    // SAFETY: the thread is attached to the interpreter, and numpy's types stay.
    let class = unsafe { get_type_object(py, NpyTypes::PyArray_Type) };
    let (lengths, count) = (lengths.as_mut_ptr(), lengths.len() as c_int);
    let dtype = dtype.clone().into_dtype_ptr();
    let none: *mut c_void = ptr::null_mut();
    // SAFETY: the class of arrays; an element type, a reference to which the call takes; `count` lengths,
    // which it reads; no strides and data, so that it lays out and allocates them.
    let array = unsafe {
        PY_ARRAY_API.PyArray_NewFromDescr(
            py,
            class,
            dtype,
            count,
            lengths,
            none.cast(),
            none,
            0,
            none.cast(),
        )
    };
    // SAFETY: the call returns a new reference, or null with an exception set.
    let array = unsafe { Bound::from_owned_ptr_or_err(py, array) }?;
    let fields = array.as_ptr().cast::<PyArrayObject>();
    // SAFETY: an array, as numpy has just made it.
    let data = unsafe { (*fields).fields.data };
    // SAFETY: nobody else has the array yet, which lies in one piece of its lengths times its element size:
    // of that the caller has seen that it is as long as `bytes`. Its elements are no objects.
    unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), data.cast(), bytes.len()) };
    Ok(array)
}

/// Whether numpy's text of four bytes each consists of code points.
fn are_characters(data: &[u8], big_endian: bool) -> bool {
    data.chunks_exact(4).all(|unit| {
        let mut unit = [unit[0], unit[1], unit[2], unit[3]];
        if big_endian {
            unit.reverse();
        }
        u32::from_le_bytes(unit) <= char::MAX as u32
    })
}

pub(super) fn lengths(decoder: &mut Decoder<'_>) -> Result<Vec<u64>> {
    decoder.array(|decoder, length| {
        decoder.claim_memory::<u64>(length)?;
        let mut lengths = Vec::with_capacity(length);
        for _ in 0..length {
            lengths.push(decoder.integer("a length")?);
        }
        Ok(lengths)
    })
}
