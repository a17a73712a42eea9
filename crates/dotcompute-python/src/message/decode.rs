//! Bytes to messages. The bytes may come from anyone.

use dotcompute::wire::{DecodeError, Decoder, Kind, Limits};
use dotcompute_mailbox::sync::Arc;
use pyo3::exceptions::{PyException, PyOverflowError, PyTypeError, PyValueError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{
    PyByteArray, PyBytes, PyComplex, PyDict, PyFloat, PyFrozenSet, PyList, PySet, PyString,
    PyTuple, PyType,
};

use super::base::{self, MessageCore};
use super::hint::Hint;
use super::id::Id;
use super::layout::{Access, Layout, layout_of};
use super::{keys, slots, types};

type Result<T, E = DecodeError> = std::result::Result<T, E>;

/// The message of this class that has these bytes. With `any_map`, a map with none of the fields of
/// the class is one of its messages too.
#[pyfunction]
#[pyo3(signature = (class, data, any_map = false, /))]
pub(super) fn decode_message<'py>(
    class: &Bound<'py, PyType>,
    data: &Bound<'py, PyAny>,
    any_map: bool,
) -> PyResult<Bound<'py, PyAny>> {
    let read = || {
        let data = contiguous(data)?;
        Reader::read(class.py(), data.as_bytes(), |reader, decoder| {
            reader.class(decoder, class, any_map)
        })
    };
    read().map_err(|error| deserialization_error(class, error))
}

/// The message that has these bytes, of the class that they name; a `fallback` if they name none
/// that is known.
#[pyfunction]
pub(super) fn decode_any_message<'py>(
    data: &Bound<'py, PyAny>,
    fallback: &Bound<'py, PyType>,
) -> PyResult<Bound<'py, PyAny>> {
    match decode_as_named_last(data) {
        Some(Ok(message)) => return Ok(message),
        Some(Err(error)) if !error.is_instance_of::<PyException>(data.py()) => return Err(error),
        // What is wrong is found again by the way that handles all.
        _ => {}
    }
    let find = || {
        let data = contiguous(data)?;
        let names = peek(data.as_bytes()).map_err(value_error)?;
        find_class(data.py(), data.as_bytes(), &names)
    };
    match find().map_err(|error| deserialization_error(fallback, error))? {
        Some(class) => decode_message(&class, data, true),
        None => {
            let read = || {
                let data = contiguous(data)?;
                Reader::read(data.py(), data.as_bytes(), |reader, decoder| {
                    reader.checks_type = false;
                    reader.class(decoder, fallback, true)
                })
            };
            read().map_err(|error| deserialization_error(fallback, error))
        }
    }
}

/// The message, if its bytes end with the name of its class, as most do. Saves reading them twice.
fn decode_as_named_last<'py>(data: &Bound<'py, PyAny>) -> Option<PyResult<Bound<'py, PyAny>>> {
    let data = data.cast_exact::<PyBytes>().ok()?;
    let bytes = data.as_bytes();
    // The name is a string of less than 32 bytes after the key.
    let tail = &bytes[bytes.len().saturating_sub(TYPE_KEY.len() + 32)..];
    let key = tail.windows(TYPE_KEY.len()).rposition(|window| window == TYPE_KEY)?;
    let (&marker, name) = tail[key + TYPE_KEY.len()..].split_first()?;
    if usize::from(marker) != 0xa0 + name.len() {
        return None;
    }
    let name = std::str::from_utf8(name).ok()?;
    let class = sole(data.py()).ok()?.get_item(name).ok()??.cast_into::<PyType>().ok()?;
    Some(Reader::read(data.py(), bytes, |reader, decoder| {
        reader.must_be_named = true;
        reader.class(decoder, &class, true)
    }))
}

/// The key of the type name as it is written.
const TYPE_KEY: &[u8] = b"\xa8__type__";

/// Bytes that nobody changes.
fn contiguous<'py>(data: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyBytes>> {
    if let Ok(bytes) = data.cast::<PyBytes>() {
        return Ok(bytes.clone());
    }
    // `bytes(5)` would be five zeros.
    let view = data.py().import("builtins")?.getattr("memoryview")?.call1((data,))?;
    Ok(view.call_method0(intern!(data.py(), "tobytes"))?.cast_into()?)
}

fn value_error(error: DecodeError) -> PyErr {
    PyValueError::new_err(error.to_string())
}

#[cold]
fn deserialization_error(class: &Bound<'_, PyType>, error: PyErr) -> PyErr {
    let py = class.py();
    if !error.is_instance_of::<PyException>(py) {
        return error;
    }
    let raise = || {
        let outer = py
            .import(intern!(py, "pydotcompute.exceptions"))?
            .getattr(intern!(py, "MessageDeserializationError"))?
            .call1((class, error.value(py)))?;
        let outer = PyErr::from_value(outer);
        outer.set_cause(py, Some(error.clone_ref(py)));
        Ok::<_, PyErr>(outer)
    };
    raise().unwrap_or_else(|other| other)
}

/// What a message's map says about its class.
#[derive(Default)]
struct Names<'de> {
    name: Option<&'de str>,
    qualified: Option<&'de str>,
}

/// Reads the names alone, of the map with which `bytes` begin.
fn peek(bytes: &[u8]) -> Result<Names<'_>> {
    Decoder::new(bytes, &Limits::default())?.map(|decoder, length| {
        let mut names = Names::default();
        for _ in 0..length {
            if decoder.kind()? != Kind::Str {
                decoder.skip()?;
                decoder.skip()?;
                continue;
            }
            let at_string =
                |decoder: &Decoder<'_>| Ok::<_, DecodeError>(decoder.kind()? == Kind::Str);
            match decoder.str()? {
                keys::TYPE if at_string(decoder)? => names.name = Some(decoder.str()?),
                keys::QUALIFIED if at_string(decoder)? => names.qualified = Some(decoder.str()?),
                _ => decoder.skip()?,
            }
        }
        Ok(names)
    })
}

/// The keys of the map with which `bytes` begin, as far as they are strings.
fn peek_keys(bytes: &[u8]) -> Result<Vec<&str>> {
    Decoder::new(bytes, &Limits::default())?.map(|decoder, length| {
        let mut keys = Vec::new();
        for _ in 0..length {
            match decoder.kind()? {
                Kind::Str => keys.push(decoder.str()?),
                _ => decoder.skip()?,
            }
            decoder.skip()?;
        }
        Ok(keys)
    })
}

/// The classes whose names no other class has.
static SOLE: PyOnceLock<Py<PyDict>> = PyOnceLock::new();

fn sole(py: Python<'_>) -> PyResult<&Bound<'_, PyDict>> {
    let sole = SOLE.get_or_try_init(py, || {
        let module = py.import("pydotcompute.ring_kernels.message")?;
        Ok::<_, PyErr>(module.getattr("_sole")?.cast_into::<PyDict>()?.unbind())
    })?;
    Ok(sole.bind(py))
}

/// The registered class that the names stand for.
fn find_class<'py>(
    py: Python<'py>,
    bytes: &[u8],
    names: &Names<'_>,
) -> PyResult<Option<Bound<'py, PyType>>> {
    let Some(name) = names.name else { return Ok(None) };
    if names.qualified.is_none()
        && let Some(class) = sole(py)?.get_item(name)?
    {
        return Ok(Some(class.cast_into()?));
    }
    let module = py.import(intern!(py, "pydotcompute.ring_kernels.message"))?;
    let keys = peek_keys(bytes).map_err(value_error)?;
    let class = module.call_method1(intern!(py, "_find_class"), (name, names.qualified, keys))?;
    if class.is_none() { Ok(None) } else { Ok(Some(class.cast_into()?)) }
}

struct Reader<'py, 'de> {
    py: Python<'py>,
    bytes: &'de [u8],
    /// How many arrays were read.
    arrays: u64,
    /// Which of them are tuples, in ascending order.
    tuples: Vec<u64>,
    /// A type name in the bytes must be that of the class.
    checks_type: bool,
    /// The next message must say its type name.
    must_be_named: bool,
    /// What Python raised; the reader's own error stands in for it meanwhile.
    error: Option<PyErr>,
}

impl<'py, 'de> Reader<'py, 'de> {
    fn read<T>(
        py: Python<'py>,
        bytes: &'de [u8],
        read: impl FnOnce(&mut Self, &mut Decoder<'de>) -> Result<T>,
    ) -> PyResult<T> {
        let mut reader = Self {
            py,
            bytes,
            arrays: 0,
            tuples: Vec::new(),
            checks_type: true,
            must_be_named: false,
            error: None,
        };
        let mut decoder = Decoder::new(bytes, &Limits::default()).map_err(value_error)?;
        let result = read(&mut reader, &mut decoder).and_then(|value| {
            decoder.finish()?;
            Ok(value)
        });
        result.map_err(|error| reader.error.take().unwrap_or_else(|| value_error(error)))
    }

    /// Takes an error of Python through the decoder.
    #[inline]
    fn py<T>(&mut self, decoder: &Decoder<'_>, result: PyResult<T>) -> Result<T> {
        match result {
            Ok(value) => Ok(value),
            Err(error) => Err(self.fail(decoder, error)),
        }
    }

    #[cold]
    fn fail(&mut self, decoder: &Decoder<'_>, error: PyErr) -> DecodeError {
        self.error.get_or_insert(error);
        decoder.invalid(decoder.offset(), "a value that its type takes")
    }

    /// The next value as an object of this class.
    fn class(
        &mut self,
        decoder: &mut Decoder<'de>,
        class: &Bound<'py, PyType>,
        any_map: bool,
    ) -> Result<Bound<'py, PyAny>> {
        decoder.map(|decoder, length| self.object(decoder, class, length, None, any_map))
    }

    /// An object of this class: the entries of a map, the key of the first of which has been read
    /// if it is given.
    fn object(
        &mut self,
        decoder: &mut Decoder<'de>,
        class: &Bound<'py, PyType>,
        length: usize,
        mut first: Option<&'de str>,
        any_map: bool,
    ) -> Result<Bound<'py, PyAny>> {
        let must_be_named = std::mem::take(&mut self.must_be_named);
        let begun = Target::new(class);
        let (layout, mut target) = self.py(decoder, begun)?;
        let hints = layout.hints(class);
        let hints = self.py(decoder, hints)?;
        decoder.claim_memory::<u8>(128 + 16 * layout.entries.len())?;
        let mut names = Names::default();
        let mut known = false;
        let mut next = 0;
        for index in 0..length {
            // Mostly the fields come in their order.
            if first.is_none()
                && let Some(entry) = layout.entries.get(next)
                && entry.wire
                && decoder.take_exactly(&entry.key)
            {
                known = true;
                self.field(decoder, &mut target, &layout, next, &hints[next])?;
                next += 1;
                continue;
            }
            let key = match first.take() {
                Some(key) => key,
                None if decoder.kind()? == Kind::Str => decoder.str()?,
                None => {
                    self.unknown(decoder)?;
                    self.unknown(decoder)?;
                    continue;
                }
            };
            let found = layout.entries.iter().position(|entry| entry.wire && entry.text == key);
            if let Some(found) = found {
                next = found + 1;
                known = true;
                self.field(decoder, &mut target, &layout, found, &hints[found])?;
                continue;
            }
            match key {
                keys::TYPE if decoder.kind()? == Kind::Str => names.name = Some(decoder.str()?),
                keys::QUALIFIED if decoder.kind()? == Kind::Str => {
                    names.qualified = Some(decoder.str()?);
                }
                keys::TUPLES if index == 0 && self.tuples.is_empty() => {
                    self.tuples = tuples(decoder)?;
                }
                keys::ID if layout.plain_header => {
                    self.header(decoder, &mut target, &Access::Id)?
                }
                keys::PRIORITY if layout.plain_header => {
                    self.header(decoder, &mut target, &Access::Priority)?;
                }
                keys::CORRELATION_ID if layout.plain_header => {
                    self.header(decoder, &mut target, &Access::Correlation)?;
                }
                _ => self.unknown(decoder)?,
            }
        }
        if layout.is_message {
            if must_be_named && names.name.is_none() {
                return Err(
                    decoder.invalid(decoder.offset(), "a message with the name of its type")
                );
            }
            if self.checks_type {
                self.check_names(decoder, class, &layout, &names)?;
            }
            if !known && !any_map && names.name.is_none() && !layout.entries.is_empty() {
                let text = format!("the map has none of the fields of {}", layout.name);
                return Err(self.fail(decoder, PyValueError::new_err(text)));
            }
        }
        let object = target.finish(&layout, class);
        self.py(decoder, object)
    }

    /// The value of a key that the class does not know.
    fn unknown(&mut self, decoder: &mut Decoder<'de>) -> Result<()> {
        if self.tuples.is_empty() {
            return decoder.skip();
        }
        // Its arrays count.
        self.value(decoder, &Hint::Frozen).map(drop)
    }

    fn check_names(
        &mut self,
        decoder: &Decoder<'_>,
        class: &Bound<'py, PyType>,
        layout: &Layout,
        names: &Names<'_>,
    ) -> Result<()> {
        let Some(name) = names.name else { return Ok(()) };
        let is_other = names.qualified.is_some_and(|qualified| qualified != layout.qualified_name);
        if name == layout.name && !is_other {
            return Ok(());
        }
        let py = self.py;
        let is_related =
            py.import(intern!(py, "pydotcompute.ring_kernels.message")).and_then(|module| {
                let arguments = (class, name, names.qualified);
                module.call_method1(intern!(py, "_is_related"), arguments)?.is_truthy()
            });
        if self.py(decoder, is_related)? {
            return Ok(());
        }
        let found = names.qualified.unwrap_or(name);
        let text = format!("these are the bytes of a message of type '{found}'");
        Err(self.fail(decoder, PyValueError::new_err(text)))
    }

    /// The value of one field.
    #[inline]
    fn field(
        &mut self,
        decoder: &mut Decoder<'de>,
        target: &mut Target<'py>,
        layout: &Layout,
        index: usize,
        hint: &Hint,
    ) -> Result<()> {
        let entry = &layout.entries[index];
        if let Target::Object { object, given, .. } = target {
            *given |= 1 << index;
            match &entry.access {
                Access::Slot(slot) => {
                    let value = self.value(decoder, hint)?;
                    let done = slot.set(object, &value);
                    return self.py(decoder, done);
                }
                Access::Attribute => {}
                header => return self.header(decoder, target, header),
            }
        }
        let is_id = layout.is_message && matches!(&*entry.text, keys::ID | keys::CORRELATION_ID);
        let value = if is_id && matches!(decoder.kind()?, Kind::Str | Kind::Bytes) {
            let id = types::make_uuid(self.py, decoder.id()?.as_u128());
            self.py(decoder, id)?
        } else {
            self.value(decoder, hint)?
        };
        let done = match target {
            Target::Object { object, .. } => {
                base::set_attribute(object, entry.name.bind(self.py), &value)
            }
            Target::Arguments(arguments) => {
                arguments.push((index, value));
                Ok(())
            }
        };
        self.py(decoder, done)
    }

    /// The id, priority or correlation id of a native message.
    #[inline]
    fn header(
        &mut self,
        decoder: &mut Decoder<'de>,
        target: &mut Target<'py>,
        access: &Access,
    ) -> Result<()> {
        let Target::Object { header, .. } = target else { return decoder.skip() };
        match access {
            Access::Priority => {
                header.priority = match decoder.kind()? {
                    Kind::Integer => {
                        let priority = decoder.integer::<i128>("a priority")?;
                        let valid = u8::try_from(priority).map_err(|_| {
                            let text = format!("Priority must be 0-255, got {priority}");
                            PyValueError::new_err(text)
                        });
                        Some(self.py(decoder, valid)?)
                    }
                    _ => decoder.integer("a priority of 0 to 255").map(Some)?,
                };
            }
            // Of a message whose writer gave it none.
            _ if decoder.take_nil()? => {}
            Access::Correlation => header.correlation = Some(decoder.id()?.as_u128()),
            _ => header.id = Some(decoder.id()?.as_u128()),
        }
        Ok(())
    }

    #[inline]
    fn value(&mut self, decoder: &mut Decoder<'de>, hint: &Hint) -> Result<Bound<'py, PyAny>> {
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
                py.get_type::<pyo3::types::PyInt>().call1((text, 16))
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

    /// An array: its data, or where it lies in this process.
    fn numbers(
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
                key = decoder.str()?;
            }
            match key {
                keys::ARRAY | keys::ARRAY_FALLBACK_BYTES => data = Some(decoder.bytes()?),
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
        decoder.claim_memory::<u8>(256 + data.len())?;
        let is_frozen = first == keys::ARRAY_FALLBACK;
        let array = make_array(py, dtype, &shape, data, is_frozen, is_scalar);
        self.py(decoder, array)
    }
}

/// An array of numpy, with data of its own.
fn make_array<'py>(
    py: Python<'py>,
    dtype: &str,
    shape: &[u64],
    data: &[u8],
    is_frozen: bool,
    is_scalar: bool,
) -> PyResult<Bound<'py, PyAny>> {
    let wrong = || {
        PyValueError::new_err(format!(
            "{} bytes are no array of {dtype} with shape {shape:?}",
            data.len()
        ))
    };
    // numpy itself takes any number for a character, and fails when the text is looked at.
    let is_text = dtype.contains('U');
    if is_text && !are_characters(data, dtype.starts_with('>')) {
        return Err(PyValueError::new_err("an array of text with numbers that are no characters"));
    }
    let dtype = types::dtype(py, dtype)?;
    let elements = shape.iter().try_fold(1u64, |product, &length| product.checked_mul(length));
    let is_empty = shape.contains(&0);
    let needed = elements.and_then(|elements| elements.checked_mul(dtype.item_bytes));
    if shape.len() > 64 || (!is_empty && needed != Some(data.len() as u64)) {
        return Err(wrong());
    }
    if is_empty {
        // numpy makes no array of no bytes.
        if !data.is_empty() {
            return Err(wrong());
        }
        let zeros = py.import(intern!(py, "numpy"))?.getattr(intern!(py, "zeros"))?;
        return zeros.call1((PyTuple::new(py, shape)?, &dtype.dtype));
    }
    let shape = PyTuple::new(py, shape)?;
    let buffer = if is_frozen {
        PyBytes::new(py, data).into_any()
    } else {
        PyByteArray::new(py, data).into_any()
    };
    let array = types::classes(py)?.array.bind(py).call1((shape, &dtype.dtype, buffer))?;
    if is_scalar { array.get_item(PyTuple::empty(py)) } else { Ok(array) }
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

fn lengths(decoder: &mut Decoder<'_>) -> Result<Vec<u64>> {
    decoder.array(|decoder, length| {
        decoder.claim_memory::<u64>(length)?;
        (0..length).map(|_| decoder.integer("a length")).collect()
    })
}

/// The numbers of the arrays that are tuples.
fn tuples(decoder: &mut Decoder<'_>) -> Result<Vec<u64>> {
    let mut numbers = lengths(decoder)?;
    numbers.sort_unstable();
    Ok(numbers)
}

fn never<T>(never: std::convert::Infallible) -> T {
    match never {}
}

/// What the fields of a map go into.
enum Target<'py> {
    /// The object itself, whose constructor does not run. `given`: which fields it has, as bits.
    Object { object: Bound<'py, PyAny>, given: u128, header: Header },
    /// Arguments of the constructor, by field.
    Arguments(Vec<(usize, Bound<'py, PyAny>)>),
}

/// What the native part of a message becomes.
#[derive(Default)]
struct Header {
    id: Option<u128>,
    correlation: Option<u128>,
    priority: Option<u8>,
}

impl<'py> Target<'py> {
    #[inline]
    fn new(class: &Bound<'py, PyType>) -> PyResult<(Arc<Layout>, Self)> {
        let object = |object| Target::Object { object, given: 0, header: Header::default() };
        if class.is_subclass_of::<MessageCore>()? {
            let made = slots::blank(class)?;
            let layout = made.cast::<MessageCore>()?.try_borrow()?.layout.clone();
            if layout.is_direct {
                return Ok((layout, object(made)));
            }
        }
        let layout = layout_of(class)?;
        let target = if layout.is_direct {
            object(slots::blank(class)?)
        } else {
            Target::Arguments(Vec::new())
        };
        Ok((layout, target))
    }

    #[inline]
    fn finish(
        self,
        layout: &Arc<Layout>,
        class: &Bound<'py, PyType>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let py = class.py();
        let arguments = match self {
            Target::Object { object, given, header } => {
                if let Ok(native) = object.cast::<MessageCore>() {
                    let mut native = native.try_borrow_mut()?;
                    if let Some(id) = header.id {
                        native.id = Id::from_bits(id);
                    }
                    if let Some(id) = header.correlation {
                        native.correlation = Some(Id::from_bits(id));
                    }
                    native.priority = header.priority.unwrap_or(native.priority);
                }
                base::fill_missing(&object, layout, given)?;
                return Ok(object);
            }
            Target::Arguments(arguments) => arguments,
        };
        let keywords = PyDict::new(py);
        for (index, value) in &arguments {
            let entry = &layout.entries[*index];
            if entry.init {
                keywords.set_item(&entry.name, value)?;
            }
        }
        let object = class.call((), Some(&keywords))?;
        for (index, value) in &arguments {
            let entry = &layout.entries[*index];
            if !entry.init {
                base::set_attribute(&object, entry.name.bind(py), value)?;
            }
        }
        Ok(object)
    }
}
