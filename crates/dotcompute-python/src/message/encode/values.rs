//! Values of Python as values of the wire format.

use crate::once::intern;
use dotcompute::MessageId;
use dotcompute::wire::Encoder;
use pyo3::exceptions::{PyOverflowError, PyRuntimeError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{
    PyBool, PyByteArray, PyBytes, PyComplex, PyDict, PyFloat, PyFrozenSet, PyInt, PyList,
    PyMemoryView, PySet, PyString, PyTuple,
};

use super::Writer;
use super::arrays::is_array;
use crate::message::hint::Hint;
use crate::message::layout::layout_of;
use crate::message::{keys, types};

impl Writer<'_> {
    #[inline]
    pub(super) fn value(
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
        let (key_hint, value_hint) = hint.entry();
        let entries = |writer: &mut Self, encoder: &mut Encoder<'_>| {
            for item in &items {
                let item = item.cast::<PyTuple>()?;
                writer.value(encoder, &*item.get_borrowed_item(0)?, key_hint)?;
                writer.value(encoder, &*item.get_borrowed_item(1)?, value_hint)?;
            }
            Ok(())
        };
        if is_escaped {
            // As the array of its keys and values in turn.
            return self.tagged(encoder, keys::DICT, |writer, encoder| {
                writer.array(encoder, 2 * items.len(), entries)
            });
        }
        self.map(encoder, items.len(), entries)
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
