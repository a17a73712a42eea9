//! The id of a message: 128 bits, and the UUID object for them once somebody asked for it.

use dotcompute::MessageId;
use pyo3::prelude::*;

/// What `message_id` or `correlation_id` of a message is. Whatever object was put there is given
/// back; mostly nobody asks, and then there is none.
#[derive(Debug)]
pub(super) struct Id {
    /// None if they have not been read from the object yet, or it is no UUID.
    bits: Option<u128>,
    object: Option<Py<PyAny>>,
}

impl Id {
    #[inline]
    pub(super) fn next() -> Self {
        Self::from_bits(MessageId::next().as_u128())
    }

    #[inline]
    pub(super) fn from_bits(bits: u128) -> Self {
        Self { bits: Some(bits), object: None }
    }

    #[inline]
    pub(super) fn from_object(object: &Bound<'_, PyAny>) -> Self {
        Self { bits: None, object: Some(object.clone().unbind()) }
    }

    /// The bits, unless they have not been read from the object yet, or it is no UUID.
    #[inline]
    pub(super) fn known_bits(&self) -> Option<u128> {
        self.bits
    }

    /// These are the bits of `object`, if that is still the one.
    pub(super) fn note_bits(&mut self, object: &Py<PyAny>, bits: u128) {
        if self.object.as_ref().is_some_and(|held| held.is(object)) {
            self.bits = Some(bits);
        }
    }

    /// Keeps the UUID that was made of these bits, unless it has been made or replaced meanwhile;
    /// returns the one that is kept.
    pub(super) fn keep<'py>(&mut self, bits: u128, made: &Bound<'py, PyAny>) -> Bound<'py, PyAny> {
        match &self.object {
            Some(object) => object.bind(made.py()).clone(),
            None if self.bits == Some(bits) => {
                self.object = Some(made.clone().unbind());
                made.clone()
            }
            None => made.clone(),
        }
    }

    /// The object, if there is one.
    pub(super) fn held(&self) -> Option<&Py<PyAny>> {
        self.object.as_ref()
    }
}
