//! Bytes to messages. The bytes may come from anyone.

mod arrays;
mod names;
mod target;
mod values;

use crate::once::intern;
use dotcompute::wire::{DecodeError, Decoder, Kind, Limits};
use pyo3::exceptions::{PyException, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyType};

use self::arrays::lengths;
use self::names::{Names, find_class, peek, sole};
use self::target::Target;
use super::hint::Hint;
use super::layout::{Access, Layout};
use super::{base, explained, keys, types};

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
    decode_as(class, data, any_map, &[])
}

fn decode_as<'py>(
    class: &Bound<'py, PyType>,
    data: &Bound<'py, PyAny>,
    any_map: bool,
    beside: &[Py<PyAny>],
) -> PyResult<Bound<'py, PyAny>> {
    let read = || {
        let data = contiguous(data)?;
        Reader::read(class.py(), data.as_bytes(), beside, |reader, decoder| {
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
    decode_any(data, fallback, &[])
}

/// The same, with these buffers for the arrays beside the bytes.
pub(super) fn decode_any<'py>(
    data: &Bound<'py, PyAny>,
    fallback: &Bound<'py, PyType>,
    beside: &[Py<PyAny>],
) -> PyResult<Bound<'py, PyAny>> {
    match decode_as_named_last(data, beside) {
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
        Some(class) => decode_as(&class, data, true, beside),
        None => {
            let read = || {
                let data = contiguous(data)?;
                Reader::read(data.py(), data.as_bytes(), beside, |reader, decoder| {
                    reader.checks_type = false;
                    reader.class(decoder, fallback, true)
                })
            };
            read().map_err(|error| deserialization_error(fallback, error))
        }
    }
}

/// The message, if its bytes end with the name of its class, as most do. Saves reading them twice.
fn decode_as_named_last<'py>(
    data: &Bound<'py, PyAny>,
    beside: &[Py<PyAny>],
) -> Option<PyResult<Bound<'py, PyAny>>> {
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
    Some(Reader::read(data.py(), bytes, beside, |reader, decoder| {
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

fn deserialization_error(class: &Bound<'_, PyType>, error: PyErr) -> PyErr {
    explained("MessageDeserializationError", class, error)
}

struct Reader<'py, 'de> {
    py: Python<'py>,
    bytes: &'de [u8],
    /// The arrays beside them.
    beside: &'de [Py<PyAny>],
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
        beside: &'de [Py<PyAny>],
        read: impl FnOnce(&mut Self, &mut Decoder<'de>) -> Result<T>,
    ) -> PyResult<T> {
        let mut reader = Self {
            py,
            bytes,
            beside,
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
        // By the very bytes that a message of this class ends with.
        let mut is_named = false;
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
            if first.is_none() && decoder.take_exactly(&layout.naming) {
                (is_named, names.name) = (true, None);
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
            if is_named && names.name.is_none() {
                names.name = Some(&layout.name);
            }
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
}

/// The numbers of the arrays that are tuples.
fn tuples(decoder: &mut Decoder<'_>) -> Result<Vec<u64>> {
    let mut numbers = lengths(decoder)?;
    numbers.sort_unstable();
    Ok(numbers)
}
