//! Any Python object as a message of the core.

use dotcompute::{Envelope, Message, MessageId};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::PyString;

use super::scope::discard;
use crate::message::{attribute, correlation_of, id_of, priority_of};

/// A Python object on its way. Nothing is copied: the receiver gets the object that was sent.
pub(crate) struct PyMessage(Option<Py<PyAny>>);

impl PyMessage {
    pub(crate) fn new(object: Py<PyAny>) -> Self {
        Self(Some(object))
    }

    /// The object.
    #[inline]
    pub(crate) fn object(&self, py: Python<'_>) -> Py<PyAny> {
        self.0.as_ref().map_or_else(|| py.None(), |object| object.clone_ref(py))
    }

    /// The object, without touching its reference count.
    #[inline]
    pub(crate) fn into_object(mut self, py: Python<'_>) -> Py<PyAny> {
        self.0.take().unwrap_or_else(|| py.None())
    }
}

impl Message for PyMessage {
    const TYPE_NAME: &'static str = "object";

    /// A guess: to ask the object would run its code.
    fn payload_bytes(&self) -> usize {
        256
    }
}

impl Drop for PyMessage {
    #[inline]
    fn drop(&mut self) {
        if let Some(object) = self.0.take() {
            discard(object);
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
#[inline]
pub(super) fn plain_envelope(message: &Bound<'_, PyAny>) -> PyResult<Envelope<PyMessage>> {
    let priority = priority_of(message)?;
    Ok(Envelope::new(PyMessage::new(message.clone().unbind())).with_priority(priority))
}

/// An envelope with all that the message says of itself.
pub(super) fn full_envelope(message: &Bound<'_, PyAny>) -> PyResult<Envelope<PyMessage>> {
    let mut envelope = plain_envelope(message)?;
    if let Some(id) = message_id_of(message)? {
        envelope.id = id;
    }
    envelope.correlation_id = correlation_id_of(message)?;
    Ok(envelope)
}
