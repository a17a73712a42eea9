//! Any Python object as a message of the core.

use std::sync::Arc;

use crate::once::intern;
use dotcompute::{DeadLetter, Envelope, Message, MessageId, RecordBatch};
use pyo3::prelude::*;
use pyo3::types::PyString;
use pyo3::{PyTraverseError, PyVisit};

use super::scope::discard;
use crate::message::{attribute, correlation_of, id_of, priority_of};
use crate::quick::Quick;
use crate::records::Delivered;

/// What is on its way: a Python object, of which nothing is copied (the receiver gets the object
/// that was sent), or records.
pub(crate) struct PyMessage(Content);

enum Content {
    Object(Py<PyAny>),
    Records(Arc<RecordBatch>),
    Taken,
}

impl PyMessage {
    pub(crate) fn new(object: Py<PyAny>) -> Self {
        Self(Content::Object(object))
    }

    pub(crate) fn records(batch: Arc<RecordBatch>) -> Self {
        Self(Content::Records(batch))
    }

    /// The records, if it is no object.
    #[inline]
    pub(crate) fn batch(&self) -> Option<&Arc<RecordBatch>> {
        match &self.0 {
            Content::Records(batch) => Some(batch),
            Content::Object(_) | Content::Taken => None,
        }
    }

    /// The object; None where it is records.
    #[inline]
    pub(crate) fn object(&self, py: Python<'_>) -> Py<PyAny> {
        match &self.0 {
            Content::Object(object) => object.clone_ref(py),
            Content::Records(_) | Content::Taken => py.None(),
        }
    }

    /// Shows the object to the collector.
    pub(crate) fn traverse(&self, visit: &PyVisit<'_>) -> Result<(), PyTraverseError> {
        match &self.0 {
            Content::Object(object) => visit.call(object),
            // A batch is in no cycle: an array leads to no kernel.
            Content::Records(_) | Content::Taken => Ok(()),
        }
    }

    /// Of a message that was received: the object, without touching its reference count, or what
    /// is made of the records by `record`, the `RecordType` that was declared for them.
    #[inline]
    pub(crate) fn into_object(
        mut envelope: Envelope<Self>,
        py: Python<'_>,
        record: Option<&Py<PyAny>>,
    ) -> Quick<Py<PyAny>> {
        match std::mem::replace(&mut envelope.message.0, Content::Taken) {
            Content::Object(object) => Ok(object),
            Content::Records(batch) => Ok(Delivered::new(&envelope, &batch).object(py, record)?),
            Content::Taken => Ok(py.None()),
        }
    }

    /// Of a message that others still have: what is made into what Python gets by
    /// [`Seen::object`], where no lock is held.
    #[inline]
    pub(crate) fn seen(envelope: &Envelope<Self>, py: Python<'_>) -> Seen {
        match &envelope.message.0 {
            Content::Object(object) => Seen::Object(object.clone_ref(py)),
            Content::Records(batch) => Seen::Records(Box::new(Delivered::new(envelope, batch))),
            Content::Taken => Seen::Object(py.None()),
        }
    }
}

impl Message for PyMessage {
    const TYPE_NAME: &'static str = "object";

    /// Of an object a guess: to ask it would run its code.
    fn payload_bytes(&self) -> usize {
        self.batch().map_or(256, |batch| batch.payload_bytes())
    }
}

impl Drop for PyMessage {
    #[inline]
    fn drop(&mut self) {
        if let Content::Object(object) = std::mem::replace(&mut self.0, Content::Taken) {
            discard(object);
        }
    }
}

/// A message that was looked at under a lock.
pub(crate) enum Seen {
    Object(Py<PyAny>),
    Records(Box<Delivered>),
}

impl Seen {
    /// The message of a dead letter.
    pub(super) fn dead(message: &PyMessage, letter: &DeadLetter, py: Python<'_>) -> Self {
        match message.batch() {
            None => Self::Object(message.object(py)),
            Some(batch) => Self::Records(Box::new(Delivered::dead(letter, batch))),
        }
    }

    /// What Python gets. For records this runs Python code.
    #[inline]
    pub(crate) fn object(self, py: Python<'_>, record: Option<&Py<PyAny>>) -> PyResult<Py<PyAny>> {
        match self {
            Self::Object(object) => Ok(object),
            Self::Records(delivered) => delivered.object(py, record),
        }
    }
}

/// The id that a message has under `name`: a UUID, which `read` knows, or else a text that is one, or
/// anything hashable.
fn id_in(
    message: &Bound<'_, PyAny>,
    read: fn(&Bound<'_, PyAny>) -> PyResult<Option<u128>>,
    name: &Bound<'_, PyString>,
) -> PyResult<Option<MessageId>> {
    if let Some(bits) = read(message)? {
        return Ok(Some(MessageId::from_u128(bits)));
    }
    let Some(value) = attribute(message, name)? else { return Ok(None) };
    if let Ok(text) = value.extract::<&str>()
        && let Ok(id) = text.parse()
    {
        return Ok(Some(id));
    }
    Ok(value.hash().ok().map(|hash| MessageId::from_u128(hash as u128)))
}

pub(super) fn message_id_of(message: &Bound<'_, PyAny>) -> PyResult<Option<MessageId>> {
    id_in(message, id_of, intern!(message.py(), "message_id"))
}

pub(super) fn correlation_id_of(message: &Bound<'_, PyAny>) -> PyResult<Option<MessageId>> {
    id_in(message, correlation_of, intern!(message.py(), "correlation_id"))
}

/// An envelope for a message that nobody asks for: only its priority matters on the way.
///
/// Its ids are read only where replies have to find their asks: see
/// [`Shared::is_asked`](super::context::Shared::is_asked).
#[inline(always)]
pub(super) fn plain_envelope(message: &Bound<'_, PyAny>, priority: u8) -> Envelope<PyMessage> {
    Envelope::new(PyMessage::new(message.clone().unbind())).with_priority(priority)
}

/// An envelope with all that the message says of itself.
pub(super) fn full_envelope(message: &Bound<'_, PyAny>) -> PyResult<Envelope<PyMessage>> {
    let mut envelope = plain_envelope(message, priority_of(message)?);
    if let Some(id) = message_id_of(message)? {
        envelope.id = id;
    }
    envelope.correlation_id = correlation_id_of(message)?;
    Ok(envelope)
}
