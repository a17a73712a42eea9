//! Values of the wire format as values of Python.

use crate::once::intern;
use dotcompute::wire::{Decoder, Kind};
use pyo3::exceptions::{PyOverflowError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{
    PyBytes, PyComplex, PyDict, PyFloat, PyFrozenSet, PyInt, PyList, PySet, PyString, PyTuple,
    PyType,
};

use super::names::{find_class, peek};
use super::{Reader, Result};
use crate::message::hint::Hint;
use crate::message::{keys, types};

impl<'py, 'de> Reader<'py, 'de> {
    #[inline]
    pub(super) fn value(
        &mut self,
        decoder: &mut Decoder<'de>,
        hint: &Hint,
    ) -> Result<Bound<'py, PyAny>> {
        let py = self.py;
        let value = match decoder.kind()? {
            Kind::Float => {
                decoder.claim_memory::<u8>(24)?;
                PyFloat::new(py, decoder.f64()?).into_any()
            }
            Kind::Nil => {
                decoder.skip()?;
                return Ok(py.None().into_bound(py));
            }
            Kind::Bool => decoder.bool()?.into_pyobject(py).map_err(never)?.to_owned().into_any(),
            Kind::Integer => {
                decoder.claim_memory::<u8>(32)?;
                let value = decoder.integer::<i128>("an integer")?;
                match i64::try_from(value) {
                    Ok(value) => value.into_pyobject(py).map_err(never)?.into_any(),
                    Err(_) => (value as u64).into_pyobject(py).map_err(never)?.into_any(),
                }
            }
            Kind::Str => {
                let text = decoder.str()?;
                decoder.claim_memory::<u8>(64 + text.len())?;
                PyString::new(py, text).into_any()
            }
            Kind::Bytes => {
                let bytes = decoder.bytes()?;
                decoder.claim_memory::<u8>(64 + bytes.len())?;
                PyBytes::new(py, bytes).into_any()
            }
            Kind::Array => return self.array(decoder, hint),
            Kind::Map => return self.map(decoder, hint),
            _ => {
                let text = "extension types are not part of the format";
                return Err(self.fail(decoder, PyValueError::new_err(text)));
            }
        };
        match hint {
            Hint::Enum(class) | Hint::Call(class) => self.coerce(decoder, class, value),
            _ => Ok(value),
        }
    }

    /// What the annotated class makes of a value; the value itself if it makes nothing of it.
    fn coerce(
        &mut self,
        decoder: &Decoder<'_>,
        class: &Py<PyType>,
        value: Bound<'py, PyAny>,
    ) -> Result<Bound<'py, PyAny>> {
        match class.bind(self.py).call1((&value,)) {
            Ok(made) => Ok(made),
            Err(error)
                if error.is_instance_of::<PyValueError>(self.py)
                    || error.is_instance_of::<PyTypeError>(self.py)
                    || error.is_instance_of::<PyOverflowError>(self.py) =>
            {
                Ok(value)
            }
            Err(error) => Err(self.fail(decoder, error)),
        }
    }

    /// The values of an array.
    fn items(&mut self, decoder: &mut Decoder<'de>, hint: &Hint) -> Result<Vec<Bound<'py, PyAny>>> {
        decoder.array(|decoder, length| {
            // The objects behind are claimed one by one.
            decoder.claim_memory::<[usize; 2]>(length + 4)?;
            let mut items = Vec::with_capacity(length);
            for index in 0..length {
                items.push(self.value(decoder, hint.element(index))?);
            }
            Ok(items)
        })
    }

    fn array(&mut self, decoder: &mut Decoder<'de>, hint: &Hint) -> Result<Bound<'py, PyAny>> {
        let py = self.py;
        let number = self.arrays;
        self.arrays += 1;
        let items = self.items(decoder, hint)?;
        let is_tuple = hint.is_tuple()
            || (!self.tuples.is_empty() && self.tuples.binary_search(&number).is_ok());
        if !is_tuple {
            let list = PyList::new(py, items);
            return self.py(decoder, list).map(Bound::into_any);
        }
        let tuple = PyTuple::new(py, items);
        let tuple = self.py(decoder, tuple)?;
        match hint {
            Hint::NamedTuple(class, _) => {
                let made = class.bind(py).call_method1(intern!(py, "_make"), (tuple,));
                self.py(decoder, made)
            }
            Hint::Enum(class) => self.coerce(decoder, class, tuple.into_any()),
            _ => Ok(tuple.into_any()),
        }
    }

    fn map(&mut self, decoder: &mut Decoder<'de>, hint: &Hint) -> Result<Bound<'py, PyAny>> {
        decoder.map(|decoder, length| {
            let first = match decoder.kind() {
                Ok(Kind::Str) if length > 0 => Some(decoder.str()?),
                _ => None,
            };
            if let Some(first) = first
                && keys::is_reserved(first)
            {
                return self.special(decoder, hint, first, length);
            }
            if let Hint::Class(class) = hint {
                let class = class.bind(self.py).clone();
                return self.object(decoder, &class, length, first, true);
            }
            self.dict(decoder, hint, first, length)
        })
    }

    fn dict(
        &mut self,
        decoder: &mut Decoder<'de>,
        hint: &Hint,
        mut first: Option<&'de str>,
        length: usize,
    ) -> Result<Bound<'py, PyAny>> {
        decoder.claim_memory::<u8>(64 + 104 * length)?;
        let dict = PyDict::new(self.py);
        let (key_hint, value_hint) = hint.entry();
        for _ in 0..length {
            let key = match first.take() {
                Some(text) => {
                    decoder.claim_memory::<u8>(64 + text.len())?;
                    let key = PyString::new(self.py, text).into_any();
                    match key_hint {
                        Hint::Enum(class) | Hint::Call(class) => {
                            self.coerce(decoder, class, key)?
                        }
                        _ => key,
                    }
                }
                None => self.value(decoder, key_hint)?,
            };
            let value = self.value(decoder, value_hint)?;
            let done = dict.set_item(key, value);
            self.py(decoder, done)?;
        }
        Ok(dict.into_any())
    }

    /// A map that stands for something else, since its first key is reserved.
    fn special(
        &mut self,
        decoder: &mut Decoder<'de>,
        hint: &Hint,
        first: &'de str,
        length: usize,
    ) -> Result<Bound<'py, PyAny>> {
        let py = self.py;
        match first {
            keys::ARRAY | keys::ARRAY_FALLBACK | keys::ARRAY_REFERENCE => {
                return self.numbers(decoder, first, length);
            }
            keys::DATETIME if length <= 2 => return self.datetime(decoder, length),
            _ if length == 1 => {}
            _ => {
                let text = format!("a map with `{first}` and other keys");
                return Err(self.fail(decoder, PyValueError::new_err(text)));
            }
        }
        decoder.claim_memory::<u8>(128)?;
        let value = match first {
            keys::UUID_BYTES | keys::UUID_TEXT => types::make_uuid(py, decoder.id()?.as_u128()),
            keys::MESSAGE => return self.message(decoder),
            keys::DICT => return self.pairs(decoder, hint),
            keys::SET | keys::FROZENSET => {
                let each = match hint {
                    Hint::Set(each) if !matches!(**each, Hint::Any) => hint,
                    _ => &Hint::Frozen,
                };
                self.arrays += 1;
                let items = self.items(decoder, each)?;
                decoder.claim_memory::<[usize; 8]>(items.len())?;
                if first == keys::SET {
                    PySet::new(py, items).map(Bound::into_any)
                } else {
                    PyFrozenSet::new(py, items).map(Bound::into_any)
                }
            }
            keys::COMPLEX => {
                let [real, imaginary] = parts(decoder, |decoder| decoder.f64())?;
                Ok(PyComplex::from_doubles(py, real, imaginary).into_any())
            }
            keys::TIMEDELTA => {
                let parts = parts(decoder, |decoder| decoder.integer::<i64>("a part of a time"))?;
                let [days, seconds, microseconds] = parts;
                types::classes(py).and_then(|classes| {
                    classes.timedelta.bind(py).call1((days, seconds, microseconds))
                })
            }
            keys::INTEGER => {
                let text = decoder.str()?;
                decoder.claim_memory::<u8>(text.len())?;
                py.get_type::<PyInt>().call1((text, 16))
            }
            keys::DECIMAL => {
                let text = decoder.str()?;
                types::classes(py).and_then(|classes| classes.decimal.bind(py).call1((text,)))
            }
            keys::DATE => self.from_iso(decoder, |classes| &classes.date)?,
            _ => self.from_iso(decoder, |classes| &classes.time)?,
        };
        self.py(decoder, value)
    }

    #[allow(clippy::wrong_self_convention, reason = "reads a value *from* its ISO 8601 form")]
    fn from_iso(
        &mut self,
        decoder: &mut Decoder<'de>,
        class: impl FnOnce(&types::Classes) -> &Py<PyType>,
    ) -> Result<PyResult<Bound<'py, PyAny>>> {
        let text = decoder.str()?;
        Ok(types::classes(self.py).and_then(|classes| {
            class(classes).bind(self.py).call_method1(intern!(self.py, "fromisoformat"), (text,))
        }))
    }

    fn datetime(&mut self, decoder: &mut Decoder<'de>, length: usize) -> Result<Bound<'py, PyAny>> {
        let py = self.py;
        decoder.claim_memory::<u8>(256)?;
        let value = self.from_iso(decoder, |classes| &classes.datetime)?;
        let value = self.py(decoder, value)?;
        if length < 2 {
            return Ok(value);
        }
        if decoder.str()? != keys::ZONE {
            let text = "a map with `__datetime__` and a key other than `zone`";
            return Err(self.fail(decoder, PyValueError::new_err(text)));
        }
        let key = decoder.str()?;
        let in_zone = || {
            let zone = types::classes(py)?.zone.bind(py).call1((key,))?;
            // The offset says which of two readings of a clock that was set back is meant.
            value.call_method1(intern!(py, "astimezone"), (zone,))
        };
        let value = in_zone();
        self.py(decoder, value)
    }

    /// A message that names its class itself.
    fn message(&mut self, decoder: &mut Decoder<'de>) -> Result<Bound<'py, PyAny>> {
        let bytes = &self.bytes[decoder.offset()..];
        let names = peek(bytes)?;
        let class = find_class(self.py, bytes, &names);
        match self.py(decoder, class)? {
            Some(class) => self.class(decoder, &class, true),
            None => {
                let name = names.name.unwrap_or("none");
                let text = format!("no message class of the name '{name}' is known");
                Err(self.fail(decoder, PyValueError::new_err(text)))
            }
        }
    }

    /// A dict that was written as the array of its keys and values in turn.
    fn pairs(&mut self, decoder: &mut Decoder<'de>, hint: &Hint) -> Result<Bound<'py, PyAny>> {
        self.arrays += 1;
        decoder.array(|decoder, length| {
            if length % 2 != 0 {
                let text = "a dict with a key but no value for it";
                return Err(self.fail(decoder, PyValueError::new_err(text)));
            }
            self.dict(decoder, hint, None, length / 2)
        })
    }
}

/// An array of as many numbers as are asked for.
fn parts<'de, T: Copy + std::default::Default, const N: usize>(
    decoder: &mut Decoder<'de>,
    part: impl Fn(&mut Decoder<'de>) -> Result<T>,
) -> Result<[T; N]> {
    let at = decoder.offset();
    decoder.array(|decoder, length| {
        if length != N {
            return Err(decoder.invalid(at, "an array of as many numbers as the value has parts"));
        }
        let mut parts = [T::default(); N];
        for place in &mut parts {
            *place = part(decoder)?;
        }
        Ok(parts)
    })
}

fn never<T>(never: std::convert::Infallible) -> T {
    match never {}
}
