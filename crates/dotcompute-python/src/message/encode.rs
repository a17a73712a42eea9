//! Messages to bytes.

mod arrays;
mod values;

use std::cell::Cell;

use crate::once::intern;
use dotcompute::MessageId;
use dotcompute::wire::{Encoder, Limits, MAX_DEPTH};
use dotcompute_mailbox::sync::Arc;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyString};

use self::arrays::is_array;
use super::hint::Hint;
use super::layout::{Access, Layout, layout_of_object};
use super::{Beside, base, explained, keys};

/// Buffers larger than this are not kept for the next message.
const KEPT_BYTES: usize = 1 << 20;

thread_local! {
    static SCRATCH: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// The bytes of a message of any class.
#[pyfunction]
pub(super) fn encode_message<'py>(message: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyBytes>> {
    encode_with(message, None, |bytes| PyBytes::new(message.py(), bytes))
}

/// The same, with arrays `beside` the bytes, which `take` is called with.
pub(super) fn encode_with<T>(
    message: &Bound<'_, PyAny>,
    beside: Option<Beside<'_>>,
    take: impl FnOnce(&[u8]) -> T,
) -> PyResult<T> {
    // Taken, not borrowed: what follows may run Python code that encodes another message.
    let mut out = SCRATCH.take();
    out.clear();
    let result = encode(message, &mut out, beside).map(|()| take(&out));
    if out.capacity() <= KEPT_BYTES {
        SCRATCH.set(out);
    }
    result.map_err(|error| explained("MessageSerializationError", &message.get_type(), error))
}

fn encode(
    message: &Bound<'_, PyAny>,
    out: &mut Vec<u8>,
    beside: Option<Beside<'_>>,
) -> PyResult<()> {
    let layout = layout_of_object(message)?;
    let mut writer = Writer {
        values_left: Limits::default().bytes,
        depth: 0,
        arrays: 0,
        tuples: Vec::new(),
        inline_only: layout.is_array_message,
        beside,
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

struct Writer<'a> {
    /// Each value takes a byte or more, so this bounds the work.
    values_left: usize,
    depth: usize,
    /// How many arrays were written.
    arrays: u64,
    /// Which of them were tuples that no annotation speaks of.
    tuples: Vec<u64>,
    /// Arrays in containers are written as `ArrayMessage` does.
    inline_only: bool,
    /// Takes large arrays.
    beside: Option<Beside<'a>>,
}

impl Writer<'_> {
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
            Some(native) if native.header(object.py(), |h| h.correlation.is_some()) => {
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
            let value = match &entry.access {
                Access::Slot(slot) => slot.get(object)?,
                Access::Attribute => object.getattr(&entry.name)?,
                header => {
                    self.header(encoder, object, header)?;
                    continue;
                }
            };
            if layout.is_array_message && is_array(&value)? {
                self.reference(encoder, object, &entry.text, &value, &mut references)?;
            } else {
                self.value(encoder, &value, hint).map_err(|e| in_field(py, e, &entry.text))?;
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
        let native = object.cast::<base::MessageCore>()?.get();
        let id = match access {
            Access::Priority => {
                encoder.unsigned(native.header(py, |header| header.priority).into());
                return Ok(());
            }
            Access::Correlation => base::correlation_in,
            _ => base::id_in,
        };
        if let Some(bits) = native.bits(py, id) {
            encoder.id(MessageId::from_u128(bits));
            return Ok(());
        }
        let held = |header: &mut base::Header| {
            id(header).and_then(|id| id.held().map(|object| object.clone_ref(py)))
        };
        match native.header(py, held) {
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
}

/// Says in which field it happened.
#[cold]
fn in_field(py: Python<'_>, error: PyErr, field: &str) -> PyErr {
    // Best effort: the error is what matters.
    let _ = error.value(py).call_method1(intern!(py, "add_note"), (format!("in field '{field}'"),));
    error
}
