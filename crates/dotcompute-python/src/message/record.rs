//! Records that are messages of plain numbers: their bytes, and the objects that are made of them,
//! without any Python code in between.
//!
//! Everything else (arrays, records in records, values that only almost fit) is left to the Python half,
//! `handlers/record.py`, which also says what is wrong with a value.

use crate::once::Once;
use crate::once::intern;
use dotcompute_mailbox::sync::Arc;
use pyo3::prelude::*;
use pyo3::pyclass::{PyTraverseError, PyVisit};
use pyo3::types::{PyBool, PyBytes, PyDict, PyFloat, PyInt, PyTuple, PyType};

use super::base::fill_missing;
use super::constructor::message_base;
use super::layout::{Access, Layout, layout_of};
use super::slots::{Slot, blank};

/// Records of more bytes are left to the Python half.
const BYTES_MAX: usize = 256;

/// The native half of `RecordType`.
#[pyclass(frozen, subclass, module = "pydotcompute._native")]
pub(crate) struct RecordCodec {
    /// Worked out when it is first used, since the class is not complete before; none if its records are
    /// not of the plain kind.
    plain: Once<Option<Plain>>,
    /// The dtype of its arrays.
    dtype: Once<Py<PyAny>>,
}

impl RecordCodec {
    /// The dtype of its arrays.
    pub(crate) fn dtype<'a, 'py>(
        &'a self,
        record: &Bound<'py, Self>,
    ) -> PyResult<&'a Bound<'py, PyAny>> {
        let py = record.py();
        let find = || PyResult::Ok(record.getattr(intern!(py, "dtype"))?.unbind());
        Ok(self.dtype.get_or_try_init(py, find)?.bind(py))
    }
}

struct Plain {
    class: Py<PyType>,
    layout: Arc<Layout>,
    bytes: usize,
    numbers: Vec<Number>,
    /// Its fields among those of the message, as bits.
    given: u128,
}

/// A field.
struct Number {
    /// Its place among the fields of the message.
    index: usize,
    offset: usize,
    code: Code,
    /// What its number is made into: None where that is what Python itself has.
    class: Option<Py<PyAny>>,
}

#[derive(Clone, Copy)]
enum Code {
    Bool,
    U8,
    U16,
    U32,
    U64,
    I8,
    I16,
    I32,
    I64,
    F32,
    F64,
}

#[pymethods]
impl RecordCodec {
    #[new]
    #[pyo3(signature = (*_args, **_kwargs))]
    fn new(_args: &Bound<'_, PyTuple>, _kwargs: Option<&Bound<'_, PyDict>>) -> Self {
        Self { plain: Once::new(), dtype: Once::new() }
    }

    /// The bytes of an object of the class; None if that is for the Python half to do.
    fn _pack<'py>(
        slf: &Bound<'py, Self>,
        instance: &Bound<'py, PyAny>,
    ) -> PyResult<Option<Bound<'py, PyBytes>>> {
        pack(slf, instance, |bytes| PyBytes::new(slf.py(), bytes))
    }

    /// The object that has these bytes; None if that is for the Python half to do.
    fn _unpack<'py>(slf: &Bound<'py, Self>, bytes: &[u8]) -> PyResult<Option<Bound<'py, PyAny>>> {
        unpack(slf, bytes)
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        if let Some(dtype) = self.dtype.get() {
            visit.call(dtype)?;
        }
        let Some(Some(plain)) = self.plain.get() else { return Ok(()) };
        visit.call(&plain.class)?;
        plain.numbers.iter().try_for_each(|number| visit.call(&number.class))
    }
}

/// Calls `take` with the bytes of a message of the record's class. None if that is for the Python half to
/// do: it is of another class, or a value needs a conversion, or cannot be.
#[inline]
pub(crate) fn pack<R>(
    record: &Bound<'_, RecordCodec>,
    message: &Bound<'_, PyAny>,
    take: impl FnOnce(&[u8]) -> R,
) -> PyResult<Option<R>> {
    let Some(plain) = plain_of(record)? else { return Ok(None) };
    if message.get_type().as_ptr() != plain.class.as_ptr() {
        return Ok(None);
    }
    let mut bytes = [0; BYTES_MAX];
    for number in &plain.numbers {
        // A field that is not set is for the Python half to tell of.
        let Ok(value) = plain.slot(number).get(message) else { return Ok(None) };
        let place = &mut bytes[number.offset..];
        if number.code.write(&value, place).is_none() {
            return Ok(None);
        }
    }
    Ok(Some(take(&bytes[..plain.bytes])))
}

/// The message of the record's class that has these bytes. None if that is for the Python half to do.
#[inline]
pub(crate) fn unpack<'py>(
    record: &Bound<'py, RecordCodec>,
    bytes: &[u8],
) -> PyResult<Option<Bound<'py, PyAny>>> {
    let py = record.py();
    let Some(plain) = plain_of(record)? else { return Ok(None) };
    if bytes.len() != plain.bytes {
        return Ok(None);
    }
    let message = blank(plain.class.bind(py))?;
    for number in &plain.numbers {
        let mut value = number.code.read(py, &bytes[number.offset..])?;
        if let Some(class) = &number.class {
            value = class.bind(py).call1((value,))?;
        }
        plain.slot(number).set(&message, &value)?;
    }
    fill_missing(&message, &plain.layout, plain.given)?;
    Ok(Some(message))
}

#[inline]
fn plain_of<'a>(record: &'a Bound<'_, RecordCodec>) -> PyResult<Option<&'a Plain>> {
    let known = record.get().plain.get_or_try_init(record.py(), || Plain::of(record))?;
    Ok(known.as_ref())
}

impl Plain {
    #[cold]
    fn of(record: &Bound<'_, RecordCodec>) -> PyResult<Option<Self>> {
        let py = record.py();
        let class = record.getattr(intern!(py, "cls"))?.cast_into::<PyType>()?;
        if !class.is_subclass(message_base(py)?)? {
            return Ok(None);
        }
        let layout = layout_of(&class)?;
        let bytes: usize =
            record.getattr(intern!(py, "layout"))?.getattr(intern!(py, "nbytes"))?.extract()?;
        // As if by its constructor, which must be ours then.
        let is_plain = layout.native_init && layout.is_direct && layout.plain_header;
        if !is_plain || bytes > BYTES_MAX {
            return Ok(None);
        }
        let (mut numbers, mut given) = (Vec::new(), 0);
        for field in record.getattr(intern!(py, "fields"))?.try_iter()? {
            let Some(number) = Number::of(&field?, &layout)? else { return Ok(None) };
            given |= 1 << number.index;
            numbers.push(number);
        }
        Ok(Some(Self { class: class.unbind(), layout, bytes, numbers, given }))
    }

    #[inline]
    fn slot(&self, number: &Number) -> &Slot {
        match &self.layout.entries[number.index].access {
            Access::Slot(slot) => slot,
            _ => unreachable!("`Number::of` has looked: the field is in a slot"),
        }
    }
}

impl Number {
    fn of(field: &Bound<'_, PyAny>, layout: &Layout) -> PyResult<Option<Self>> {
        let py = field.py();
        let shape = field.getattr(intern!(py, "shape"))?.cast_into::<PyTuple>()?;
        let name: String = field.getattr(intern!(py, "name"))?.extract()?;
        let index = layout.entries.iter().position(|entry| entry.text == name);
        let Some(index) = index.filter(|_| shape.is_empty()) else { return Ok(None) };
        let python = field.getattr(intern!(py, "python"))?;
        let is_bool = python.is(py.get_type::<PyBool>());
        let code: String = field.getattr(intern!(py, "code"))?.extract()?;
        let Some(code) = Code::of(&code, is_bool) else { return Ok(None) };
        if !matches!(layout.entries[index].access, Access::Slot(_)) {
            return Ok(None);
        }
        let own =
            is_bool || python.is(py.get_type::<PyInt>()) || python.is(py.get_type::<PyFloat>());
        // Numbers of numpy's; what names memory, say, is more than its number.
        if !own && !is_of_numpy(&python)? {
            return Ok(None);
        }
        let class = (!own).then(|| python.unbind());
        let offset = field.getattr(intern!(py, "offset"))?.extract()?;
        Ok(Some(Self { index, offset, code, class }))
    }
}

/// Whether this is a class of numpy's numbers.
fn is_of_numpy(class: &Bound<'_, PyAny>) -> PyResult<bool> {
    let py = class.py();
    let generic = py.import(intern!(py, "numpy"))?.getattr(intern!(py, "generic"))?;
    class.cast::<PyType>()?.is_subclass(&generic)
}

impl Code {
    fn of(code: &str, is_bool: bool) -> Option<Self> {
        Some(match code {
            "u1" if is_bool => Self::Bool,
            "u1" => Self::U8,
            "u2" => Self::U16,
            "u4" => Self::U32,
            "u8" => Self::U64,
            "i1" => Self::I8,
            "i2" => Self::I16,
            "i4" => Self::I32,
            "i8" => Self::I64,
            "f4" => Self::F32,
            "f8" => Self::F64,
            _ => return None,
        })
    }

    /// Writes a number to where `place` begins; None if it is of a class of its own, or does not fit.
    #[inline]
    fn write(self, value: &Bound<'_, PyAny>, place: &mut [u8]) -> Option<()> {
        macro_rules! integer {
            ($kind:ty, $wide:ty) => {{
                let wide = integer(value)?.extract::<$wide>().ok()?;
                put(place, <$kind>::try_from(wide).ok()?.to_le_bytes())
            }};
        }
        match self {
            Self::Bool => put(place, [u8::from(value.cast_exact::<PyBool>().ok()?.is_true())]),
            Self::U8 => integer!(u8, i64),
            Self::U16 => integer!(u16, i64),
            Self::U32 => integer!(u32, i64),
            Self::U64 => integer!(u64, u64),
            Self::I8 => integer!(i8, i64),
            Self::I16 => integer!(i16, i64),
            Self::I32 => integer!(i32, i64),
            Self::I64 => integer!(i64, i64),
            Self::F32 => {
                let wide = float(value)?;
                let single = wide as f32;
                (single.is_finite() || !wide.is_finite()).then_some(())?;
                put(place, single.to_le_bytes())
            }
            Self::F64 => put(place, float(value)?.to_le_bytes()),
        }
    }

    /// The number that lies where `place` begins.
    #[inline]
    fn read<'py>(self, py: Python<'py>, place: &[u8]) -> PyResult<Bound<'py, PyAny>> {
        macro_rules! number {
            ($kind:ty) => {
                <$kind>::from_le_bytes(get(place)).into_pyobject(py)?.into_any()
            };
        }
        Ok(match self {
            Self::Bool => PyBool::new(py, place[0] != 0).to_owned().into_any(),
            Self::U8 => number!(u8),
            Self::U16 => number!(u16),
            Self::U32 => number!(u32),
            Self::U64 => number!(u64),
            Self::I8 => number!(i8),
            Self::I16 => number!(i16),
            Self::I32 => number!(i32),
            Self::I64 => number!(i64),
            Self::F32 => number!(f32),
            Self::F64 => number!(f64),
        })
    }
}

/// The value, if it is an `int` and of no class derived from it.
#[inline]
fn integer<'a, 'py>(value: &'a Bound<'py, PyAny>) -> Option<&'a Bound<'py, PyAny>> {
    value.is_exact_instance_of::<PyInt>().then_some(value)
}

/// The same of a `float`, or of an `int` that is one.
#[inline]
fn float(value: &Bound<'_, PyAny>) -> Option<f64> {
    let known = value.is_exact_instance_of::<PyFloat>() || value.is_exact_instance_of::<PyInt>();
    known.then(|| value.extract().ok()).flatten()
}

#[inline]
fn put<const N: usize>(place: &mut [u8], bytes: [u8; N]) -> Option<()> {
    *place.first_chunk_mut()? = bytes;
    Some(())
}

#[inline]
fn get<const N: usize>(place: &[u8]) -> [u8; N] {
    match place.first_chunk() {
        Some(bytes) => *bytes,
        None => unreachable!("a record's fields lie inside it"),
    }
}
