//! Messages to bytes.

use std::cell::Cell;

use dotcompute::MessageId;
use dotcompute::wire::{Encoder, Limits, MAX_DEPTH};
use dotcompute_mailbox::sync::Arc;
use pyo3::exceptions::{PyException, PyOverflowError, PyRuntimeError, PyTypeError, PyValueError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{
    PyBool, PyByteArray, PyBytes, PyComplex, PyDict, PyFloat, PyFrozenSet, PyInt, PyList,
    PyMemoryView, PySet, PyString, PyTuple, PyType,
};

use super::base::{self};
use super::hint::Hint;
use super::layout::{Access, Layout, layout_of, layout_of_object};
use super::{keys, types};

/// Buffers larger than this are not kept for the next message.
const KEPT_BYTES: usize = 1 << 20;

thread_local! {
    static SCRATCH: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// The bytes of a message of any class.
#[pyfunction]
pub(super) fn encode_message<'py>(message: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyBytes>> {
    // Taken, not borrowed: what follows may run Python code that encodes another message.
    let mut out = SCRATCH.take();
    out.clear();
    let result = encode(message, &mut out).map(|()| PyBytes::new(message.py(), &out));
    if out.capacity() <= KEPT_BYTES {
        SCRATCH.set(out);
    }
    result.map_err(|error| serialization_error(message, error))
}

#[cold]
fn serialization_error(message: &Bound<'_, PyAny>, error: PyErr) -> PyErr {
    let py = message.py();
    if !error.is_instance_of::<PyException>(py) {
        return error;
    }
    let raise = || {
        let class = py
            .import(intern!(py, "pydotcompute.exceptions"))?
            .getattr(intern!(py, "MessageSerializationError"))?;
        let outer = PyErr::from_value(class.call1((message.get_type(), error.value(py)))?);
        outer.set_cause(py, Some(error.clone_ref(py)));
        Ok::<_, PyErr>(outer)
    };
    raise().unwrap_or_else(|other| other)
}

fn encode(message: &Bound<'_, PyAny>, out: &mut Vec<u8>) -> PyResult<()> {
    let layout = layout_of_object(message)?;
    let mut writer = Writer {
        values_left: Limits::default().bytes,
        depth: 0,
        arrays: 0,
        tuples: Vec::new(),
        inline_only: layout.is_array_message,
    };
    let mut encoder = Encoder::new(out, Limits::default().bytes);
    writer.object(&mut encoder, message, &layout)?;
    finish(encoder)?;
    if !writer.tuples.is_empty() {
        prepend_tuples(out, &writer.tuples)?;
    }
    Ok(())
}

fn finish(encoder: Encoder<'_>) -> PyResult<()> {
    encoder.finish().map_err(|error| PyValueError::new_err(error.to_string()))
}

/// Adds the entry `TUPLES` before all others.
fn prepend_tuples(out: &mut Vec<u8>, tuples: &[u64]) -> PyResult<()> {
    let (entries, header_bytes) = match *out.as_slice() {
        [0xde, high, low, ..] => (usize::from(u16::from_be_bytes([high, low])), 3),
        [first, ..] => (usize::from(first & 0xf), 1),
        [] => (0, 0),
    };
    let mut with = Vec::with_capacity(out.len() + 64);
    let mut encoder = Encoder::new(&mut with, Limits::default().bytes);
    encoder.map(entries + 1, |encoder| {
        encoder.str(keys::TUPLES);
        encoder.array(tuples.len(), |encoder| tuples.iter().for_each(|&n| encoder.unsigned(n)));
    });
    finish(encoder)?;
    with.extend_from_slice(&out[header_bytes..]);
    *out = with;
    Ok(())
}

struct Writer {
    /// Each value takes a byte or more, so this bounds the work.
    values_left: usize,
    depth: usize,
    /// How many arrays were written.
    arrays: u64,
    /// Which of them were tuples that no annotation speaks of.
    tuples: Vec<u64>,
    /// Arrays in containers are written as `ArrayMessage` does.
    inline_only: bool,
}

impl Writer {
    /// A message or dataclass: the map of its fields.
    fn object(
        &mut self,
        encoder: &mut Encoder<'_>,
        object: &Bound<'_, PyAny>,
        layout: &Arc<Layout>,
    ) -> PyResult<()> {
        self.enter()?;
        let class = object.get_type();
        let hints = layout.hints(&class)?;
        let is_qualified = layout.is_message && layout.is_qualified();
        // A message whose class has no field for it, but that is an answer.
        let answers = match base::native(object) {
            Some(native) if native.correlation.is_some() => {
                !layout.entries.iter().any(|entry| matches!(entry.access, Access::Correlation))
            }
            _ => false,
        };
        let length = layout.entries.iter().filter(|entry| entry.wire).count()
            + usize::from(layout.is_message)
            + usize::from(is_qualified)
            + if layout.is_array_message { 2 } else { 0 }
            + if answers { 3 } else { 0 };
        let mut result = Ok(());
        encoder.map(length, |encoder| {
            result = self.entries(encoder, object, layout, hints, answers, is_qualified);
        });
        self.depth -= 1;
        result
    }

    fn entries(
        &mut self,
        encoder: &mut Encoder<'_>,
        object: &Bound<'_, PyAny>,
        layout: &Layout,
        hints: &[Hint],
        answers: bool,
        is_qualified: bool,
    ) -> PyResult<()> {
        let py = object.py();
        let mut references = Vec::new();
        for (entry, hint) in layout.entries.iter().zip(hints) {
            if !entry.wire {
                continue;
            }
            encoder.str(&entry.text);
            match &entry.access {
                Access::Slot(slot) => {
                    let value = slot.get(object)?;
                    if layout.is_array_message && is_array(&value)? {
                        self.reference(encoder, object, &entry.text, &value, &mut references)?;
                    } else {
                        self.value(encoder, &value, hint)
                            .map_err(|e| in_field(py, e, &entry.text))?;
                    }
                }
                Access::Attribute => {
                    let value = object.getattr(&entry.name)?;
                    if layout.is_array_message && is_array(&value)? {
                        self.reference(encoder, object, &entry.text, &value, &mut references)?;
                    } else {
                        self.value(encoder, &value, hint)
                            .map_err(|e| in_field(py, e, &entry.text))?;
                    }
                }
                header => self.header(encoder, object, header)?,
            }
        }
        if answers {
            encoder.str(keys::ID);
            self.header(encoder, object, &Access::Id)?;
            encoder.str(keys::PRIORITY);
            self.header(encoder, object, &Access::Priority)?;
            encoder.str(keys::CORRELATION_ID);
            self.header(encoder, object, &Access::Correlation)?;
        }
        if layout.is_array_message {
            encoder.str(keys::ARRAY_REFERENCES);
            encoder.map(references.len(), |encoder| {
                for (field, id) in &references {
                    encoder.str(field);
                    encoder.str(id);
                }
            });
        }
        if layout.is_message {
            encoder.str(keys::TYPE);
            encoder.str(&layout.name);
        }
        if layout.is_array_message {
            encoder.str(keys::ARRAY_MESSAGE);
            encoder.bool(true);
        }
        if is_qualified {
            encoder.str(keys::QUALIFIED);
            encoder.str(&layout.qualified_name);
        }
        Ok(())
    }

    /// The id, priority or correlation id of a native message.
    fn header(
        &mut self,
        encoder: &mut Encoder<'_>,
        object: &Bound<'_, PyAny>,
        access: &Access,
    ) -> PyResult<()> {
        let py = object.py();
        let mut native = object.cast::<base::MessageCore>()?.try_borrow_mut()?;
        let id = match access {
            Access::Priority => {
                encoder.unsigned(native.priority.into());
                return Ok(());
            }
            Access::Correlation => native.correlation.as_mut(),
            _ => Some(&mut native.id),
        };
        let Some(id) = id else {
            encoder.nil();
            return Ok(());
        };
        if let Some(bits) = id.bits(py) {
            encoder.id(MessageId::from_u128(bits));
            return Ok(());
        }
        let value = id.held().map(|object| object.clone_ref(py));
        drop(native);
        match value {
            Some(value) => self.value(encoder, value.bind(py), &Hint::Any),
            None => {
                encoder.nil();
                Ok(())
            }
        }
    }

    fn enter(&mut self) -> PyResult<()> {
        // Left where the message fails anyway, so it is taken back on success only.
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(PyValueError::new_err(format!(
                "the message nests deeper than {MAX_DEPTH} levels"
            )));
        }
        Ok(())
    }

    #[inline]
    fn value(
        &mut self,
        encoder: &mut Encoder<'_>,
        value: &Bound<'_, PyAny>,
        hint: &Hint,
    ) -> PyResult<()> {
        if let Ok(value) = value.cast_exact::<PyFloat>() {
            encoder.f64(value.value());
            return Ok(());
        }
        self.not_float(encoder, value, hint)
    }

    fn not_float(
        &mut self,
        encoder: &mut Encoder<'_>,
        value: &Bound<'_, PyAny>,
        hint: &Hint,
    ) -> PyResult<()> {
        self.values_left = self.values_left.checked_sub(1).ok_or_else(|| {
            PyValueError::new_err("the message holds more values than its bytes may be")
        })?;
        if value.is_none() {
            encoder.nil();
        } else if let Ok(value) = value.cast_exact::<PyString>() {
            encoder.str(value.to_str()?);
        } else if let Ok(value) = value.cast_exact::<PyInt>() {
            integer(encoder, value)?;
        } else if let Ok(value) = value.cast_exact::<PyBool>() {
            encoder.bool(value.is_true());
        } else if let Ok(value) = value.cast_exact::<PyBytes>() {
            encoder.bytes(value.as_bytes());
        } else if let Ok(value) = value.cast_exact::<PyList>() {
            self.list(encoder, value, hint)?;
        } else if let Ok(value) = value.cast_exact::<PyTuple>() {
            self.tuple(encoder, value, hint)?;
        } else if let Ok(value) = value.cast_exact::<PyDict>() {
            self.dict(encoder, value, hint)?;
        } else {
            self.other(encoder, value, hint)?;
        }
        Ok(())
    }

    fn list(
        &mut self,
        encoder: &mut Encoder<'_>,
        list: &Bound<'_, PyList>,
        hint: &Hint,
    ) -> PyResult<()> {
        let length = list.len();
        self.array(encoder, length, |writer, encoder| {
            for index in 0..length {
                let item = list.get_item(index).map_err(|_| changed("list"))?;
                writer.value(encoder, &item, hint.element(index))?;
            }
            if list.len() == length { Ok(()) } else { Err(changed("list")) }
        })
    }

    fn tuple(
        &mut self,
        encoder: &mut Encoder<'_>,
        tuple: &Bound<'_, PyTuple>,
        hint: &Hint,
    ) -> PyResult<()> {
        if !hint.is_tuple() {
            self.tuples.push(self.arrays);
        }
        self.array(encoder, tuple.len(), |writer, encoder| {
            for (index, item) in tuple.iter_borrowed().enumerate() {
                writer.value(encoder, &item, hint.element(index))?;
            }
            Ok(())
        })
    }

    fn array(
        &mut self,
        encoder: &mut Encoder<'_>,
        length: usize,
        write: impl FnOnce(&mut Self, &mut Encoder<'_>) -> PyResult<()>,
    ) -> PyResult<()> {
        self.enter()?;
        self.arrays += 1;
        let mut result = Ok(());
        encoder.array(length, |encoder| result = write(self, encoder));
        self.depth -= 1;
        result
    }

    fn map(
        &mut self,
        encoder: &mut Encoder<'_>,
        length: usize,
        write: impl FnOnce(&mut Self, &mut Encoder<'_>) -> PyResult<()>,
    ) -> PyResult<()> {
        self.enter()?;
        let mut result = Ok(());
        encoder.map(length, |encoder| result = write(self, encoder));
        self.depth -= 1;
        result
    }

    /// A map with this one key, which says what the value is.
    fn tagged(
        &mut self,
        encoder: &mut Encoder<'_>,
        key: &str,
        write: impl FnOnce(&mut Self, &mut Encoder<'_>) -> PyResult<()>,
    ) -> PyResult<()> {
        self.map(encoder, 1, |writer, encoder| {
            encoder.str(key);
            write(writer, encoder)
        })
    }

    fn tagged_text(
        &mut self,
        encoder: &mut Encoder<'_>,
        key: &str,
        text: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        let text = text.cast::<PyString>()?.to_str()?;
        self.tagged(encoder, key, |_, encoder| {
            encoder.str(text);
            Ok(())
        })
    }

    fn dict(
        &mut self,
        encoder: &mut Encoder<'_>,
        dict: &Bound<'_, PyDict>,
        hint: &Hint,
    ) -> PyResult<()> {
        // A copy of the entries, since what follows may run Python code that changes the dict.
        let items = dict.items();
        let mut is_escaped = false;
        for item in &items {
            let key = item.cast::<PyTuple>()?.get_borrowed_item(0)?;
            if let Ok(key) = key.cast::<PyString>() {
                is_escaped |= keys::is_reserved(key.to_str()?);
            }
        }
        if is_escaped {
            return self.tagged(encoder, keys::DICT, |writer, encoder| {
                writer.pairs(encoder, &items, hint)
            });
        }
        let (key_hint, value_hint) = hint.entry();
        self.map(encoder, items.len(), |writer, encoder| {
            for item in &items {
                let item = item.cast::<PyTuple>()?;
                writer.value(encoder, &*item.get_borrowed_item(0)?, key_hint)?;
                writer.value(encoder, &*item.get_borrowed_item(1)?, value_hint)?;
            }
            Ok(())
        })
    }

    /// A dict as the array of its keys and values in turn.
    fn pairs(
        &mut self,
        encoder: &mut Encoder<'_>,
        items: &Bound<'_, PyList>,
        hint: &Hint,
    ) -> PyResult<()> {
        let (key_hint, value_hint) = hint.entry();
        self.array(encoder, 2 * items.len(), |writer, encoder| {
            for item in items {
                let item = item.cast::<PyTuple>()?;
                writer.value(encoder, &*item.get_borrowed_item(0)?, key_hint)?;
                writer.value(encoder, &*item.get_borrowed_item(1)?, value_hint)?;
            }
            Ok(())
        })
    }

    /// A value of none of the types that are written as they are.
    fn other(
        &mut self,
        encoder: &mut Encoder<'_>,
        value: &Bound<'_, PyAny>,
        hint: &Hint,
    ) -> PyResult<()> {
        let py = value.py();
        match hint {
            Hint::Enum(class) if value.is_instance(class.bind(py))? => {
                let member = value.getattr(intern!(py, "value"))?;
                return self.value(encoder, &member, hint.element(0));
            }
            Hint::Class(class) if value.get_type().is(class) => {
                return self.object(encoder, value, &layout_of(class.bind(py))?);
            }
            _ => {}
        }
        if let Some(bits) = types::uuid_bits(value) {
            encoder.id(MessageId::from_u128(bits));
            return Ok(());
        }
        let classes = types::classes(py)?;
        if value.is_instance(classes.scalar.bind(py))? {
            return self.scalar(encoder, value, classes);
        }
        if is_array(value)? {
            return self.numbers(encoder, value, false);
        }
        if let Ok(value) = value.cast::<PyInt>() {
            return integer(encoder, value);
        }
        if let Ok(value) = value.cast::<PyFloat>() {
            encoder.f64(value.value());
            return Ok(());
        }
        if let Ok(value) = value.cast::<PyString>() {
            encoder.str(value.to_str()?);
            return Ok(());
        }
        if let Ok(value) = value.cast::<PyBytes>() {
            encoder.bytes(value.as_bytes());
            return Ok(());
        }
        if let Ok(value) = value.cast::<PyByteArray>() {
            encoder.bytes(&value.to_vec());
            return Ok(());
        }
        if value.is_instance_of::<PyMemoryView>() {
            let bytes = value.call_method0(intern!(py, "tobytes"))?.cast_into::<PyBytes>()?;
            encoder.bytes(bytes.as_bytes());
            return Ok(());
        }
        if let Ok(value) = value.cast::<PyList>() {
            return self.list(encoder, value, hint);
        }
        if let Ok(value) = value.cast::<PyTuple>() {
            return self.tuple(encoder, value, hint);
        }
        if let Ok(value) = value.cast::<PyDict>() {
            return self.dict(encoder, value, hint);
        }
        if let Ok(set) = value.cast::<PySet>() {
            return self.set(encoder, keys::SET, PyList::new(py, set)?, hint);
        }
        if let Ok(set) = value.cast::<PyFrozenSet>() {
            return self.set(encoder, keys::FROZENSET, PyList::new(py, set)?, hint);
        }
        if let Ok(value) = value.cast::<PyComplex>() {
            let (real, imaginary) = (value.real(), value.imag());
            return self.tagged(encoder, keys::COMPLEX, |_, encoder| {
                encoder.array(2, |encoder| {
                    encoder.f64(real);
                    encoder.f64(imaginary);
                });
                Ok(())
            });
        }
        self.of_library(encoder, value, classes)
    }

    /// Types of the standard library, and messages.
    fn of_library(
        &mut self,
        encoder: &mut Encoder<'_>,
        value: &Bound<'_, PyAny>,
        classes: &types::Classes,
    ) -> PyResult<()> {
        let py = value.py();
        let iso = || value.call_method0(intern!(py, "isoformat"));
        // A datetime is a date.
        if value.is_instance(classes.datetime.bind(py))? {
            return self.datetime(encoder, value, &iso()?, classes);
        }
        if value.is_instance(classes.date.bind(py))? {
            return self.tagged_text(encoder, keys::DATE, &iso()?);
        }
        if value.is_instance(classes.time.bind(py))? {
            return self.tagged_text(encoder, keys::TIME, &iso()?);
        }
        if value.is_instance(classes.timedelta.bind(py))? {
            let part = |name| value.getattr(name)?.extract::<i64>();
            let parts = [part("days")?, part("seconds")?, part("microseconds")?];
            return self.tagged(encoder, keys::TIMEDELTA, |_, encoder| {
                encoder.array(3, |encoder| parts.iter().for_each(|&part| encoder.signed(part)));
                Ok(())
            });
        }
        if value.is_instance(classes.decimal.bind(py))? {
            return self.tagged_text(encoder, keys::DECIMAL, &value.str()?.into_any());
        }
        if value.is_instance(classes.enumeration.bind(py))? {
            return Err(PyTypeError::new_err(format!(
                "{} is a member of an enumeration that no reader could find: annotate the field \
                 with its class",
                value.repr()?
            )));
        }
        self.message(encoder, value)
    }

    fn datetime(
        &mut self,
        encoder: &mut Encoder<'_>,
        value: &Bound<'_, PyAny>,
        iso: &Bound<'_, PyAny>,
        classes: &types::Classes,
    ) -> PyResult<()> {
        let py = value.py();
        let zone = value.getattr(intern!(py, "tzinfo"))?;
        let key = if zone.is_instance(classes.zone.bind(py))? {
            zone.getattr(intern!(py, "key"))?
        } else {
            py.None().into_bound(py)
        };
        let Ok(key) = key.cast::<PyString>() else {
            return self.tagged_text(encoder, keys::DATETIME, iso);
        };
        self.map(encoder, 2, |_, encoder| {
            encoder.str(keys::DATETIME);
            encoder.str(iso.cast::<PyString>()?.to_str()?);
            encoder.str(keys::ZONE);
            encoder.str(key.to_str()?);
            Ok(())
        })
    }

    /// A message that no annotation speaks of: readers find its class by its name.
    fn message(&mut self, encoder: &mut Encoder<'_>, value: &Bound<'_, PyAny>) -> PyResult<()> {
        let py = value.py();
        let class = value.get_type();
        let is_dataclass = class.hasattr(intern!(py, "__dataclass_fields__"))?;
        let layout = if is_dataclass { Some(layout_of(&class)?) } else { None };
        let Some(layout) = layout.filter(|layout| layout.is_message) else {
            return Err(PyTypeError::new_err(if is_dataclass {
                format!(
                    "no reader could find the class {}: annotate the field with it, or decorate it \
                     with @message",
                    class.qualname()?
                )
            } else {
                format!("{} has no form in a message", class.fully_qualified_name()?)
            }));
        };
        let is_registered = py
            .import(intern!(py, "pydotcompute.ring_kernels.message"))?
            .call_method1(intern!(py, "_is_registered"), (&class,))?
            .is_truthy()?;
        if !is_registered {
            return Err(PyTypeError::new_err(format!(
                "no reader could find the message class {}: decorate it with @message, or annotate \
                 the field with it",
                class.qualname()?
            )));
        }
        self.tagged(encoder, keys::MESSAGE, |writer, encoder| {
            writer.object(encoder, value, &layout)
        })
    }

    fn set(
        &mut self,
        encoder: &mut Encoder<'_>,
        key: &str,
        items: Bound<'_, PyList>,
        hint: &Hint,
    ) -> PyResult<()> {
        let each = match hint {
            Hint::Set(each) if !matches!(**each, Hint::Any) => each,
            // A list cannot be an element.
            _ => &Hint::Frozen,
        };
        self.tagged(encoder, key, |writer, encoder| {
            writer.array(encoder, items.len(), |writer, encoder| {
                items.iter().try_for_each(|item| writer.value(encoder, &item, each))
            })
        })
    }

    /// A numpy scalar: as the Python number that it is, or as an array of no dimension.
    fn scalar(
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
    fn numbers(
        &mut self,
        encoder: &mut Encoder<'_>,
        array: &Bound<'_, PyAny>,
        is_scalar: bool,
    ) -> PyResult<()> {
        let numbers = Numbers::of(array)?;
        let data = numbers.data(array)?;
        let is_inline = self.inline_only && !is_scalar;
        let length = 3 + usize::from(is_scalar) + usize::from(is_inline);
        self.map(encoder, length, |_, encoder| {
            if is_inline {
                encoder.str(keys::ARRAY_FALLBACK);
                encoder.bool(true);
                encoder.str(keys::ARRAY_FALLBACK_BYTES);
                encoder.bytes(data.as_bytes());
                numbers.shape(encoder);
                numbers.dtype(encoder)?;
            } else {
                encoder.str(keys::ARRAY);
                encoder.bytes(data.as_bytes());
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
    fn reference(
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
        let data = numbers.data(array)?;
        self.map(encoder, 5, |_, encoder| {
            encoder.str(keys::ARRAY_REFERENCE);
            encoder.str(&id);
            numbers.shape(encoder);
            numbers.dtype(encoder)?;
            encoder.str(keys::ARRAY_DEVICE);
            encoder.str(&device);
            encoder.str(keys::ARRAY_FALLBACK_BYTES);
            encoder.bytes(data.as_bytes());
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

static DTYPES: PyOnceLock<Py<PyDict>> = PyOnceLock::new();

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

    /// The bytes of its elements in C order.
    fn data(&self, array: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyBytes>> {
        Ok(array.call_method0(intern!(array.py(), "tobytes"))?.cast_into()?)
    }
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
fn is_array(value: &Bound<'_, PyAny>) -> PyResult<bool> {
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

fn integer(encoder: &mut Encoder<'_>, value: &Bound<'_, PyInt>) -> PyResult<()> {
    match value.extract::<i64>() {
        Ok(value) => encoder.signed(value),
        Err(error) if error.is_instance_of::<PyOverflowError>(value.py()) => {
            match value.extract::<u64>() {
                Ok(value) => encoder.unsigned(value),
                Err(_) => {
                    // Base 16, since that is linear in both directions.
                    let text = value.call_method1(intern!(value.py(), "__format__"), ("x",))?;
                    let text = text.cast::<PyString>()?.to_str()?;
                    encoder.map(1, |encoder| {
                        encoder.str(keys::INTEGER);
                        encoder.str(text);
                    });
                }
            }
        }
        Err(error) => return Err(error),
    }
    Ok(())
}

#[cold]
fn changed(what: &str) -> PyErr {
    PyRuntimeError::new_err(format!("a {what} changed while it was written"))
}

/// Says in which field it happened.
#[cold]
fn in_field(py: Python<'_>, error: PyErr, field: &str) -> PyErr {
    // Best effort: the error is what matters.
    let _ = error.value(py).call_method1(intern!(py, "add_note"), (format!("in field '{field}'"),));
    error
}
