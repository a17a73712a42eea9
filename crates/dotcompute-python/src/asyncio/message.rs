//! Any Python object as a message of the core.

use dotcompute::{Envelope, Message, MessageId};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyInt};
use pyo3::{PyTraverseError, PyVisit};

use super::scope::discard;

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

    /// Shows the object to the collector.
    pub(crate) fn traverse(&self, visit: &PyVisit<'_>) -> Result<(), PyTraverseError> {
        self.0.as_ref().map_or(Ok(()), |object| visit.call(object))
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

/// The `priority` of a message: 128 where it has none that makes sense.
#[inline]
pub(super) fn priority_of(message: &Bound<'_, PyAny>) -> u8 {
    let py = message.py();
    // What has no attributes is not asked for one: the error alone would cost more than the send.
    if message.is_exact_instance_of::<PyInt>() || message.is_exact_instance_of::<PyBool>() {
        return dotcompute::DEFAULT_PRIORITY;
    }
    match message.getattr(intern!(py, "priority")) {
        Ok(priority) => match priority.extract::<i64>() {
            Ok(priority) => priority.clamp(0, 255) as u8,
            Err(_) => dotcompute::DEFAULT_PRIORITY,
        },
        Err(_) => dotcompute::DEFAULT_PRIORITY,
    }
}

/// The id in the attribute `name` of a message: a UUID, or else anything hashable.
fn id_in(message: &Bound<'_, PyAny>, name: &Bound<'_, pyo3::types::PyString>) -> Option<MessageId> {
    let value = message.getattr(name).ok()?;
    if value.is_none() {
        return None;
    }
    if let Ok(bits) = value.getattr(intern!(message.py(), "int"))
        && let Ok(bits) = bits.extract::<u128>()
    {
        return Some(MessageId::from_u128(bits));
    }
    if let Ok(text) = value.extract::<&str>()
        && let Ok(id) = text.parse()
    {
        return Some(id);
    }
    let hash = value.hash().ok()?;
    Some(MessageId::from_u128(hash as u128))
}

pub(super) fn message_id_of(message: &Bound<'_, PyAny>) -> Option<MessageId> {
    id_in(message, intern!(message.py(), "message_id"))
}

pub(super) fn correlation_id_of(message: &Bound<'_, PyAny>) -> Option<MessageId> {
    id_in(message, intern!(message.py(), "correlation_id"))
}

/// An envelope for a message that nobody asks for: only its priority matters on the way.
///
/// Its ids are read only where replies have to find their asks: see
/// [`Asked`](super::kernel::Asked).
#[inline]
pub(super) fn plain_envelope(message: &Bound<'_, PyAny>) -> Envelope<PyMessage> {
    let priority = priority_of(message);
    Envelope::new(PyMessage::new(message.clone().unbind())).with_priority(priority)
}

/// An envelope with all that the message says of itself.
pub(super) fn full_envelope(message: &Bound<'_, PyAny>) -> Envelope<PyMessage> {
    let mut envelope = plain_envelope(message);
    if let Some(id) = message_id_of(message) {
        envelope.id = id;
    }
    envelope.correlation_id = correlation_id_of(message);
    envelope
}
