//! Messages: the native base class of every `@message` class, and their bytes.
//!
//! A class that `@message` made keeps its fields in slots, and its id, priority and correlation id
//! in the native part of the object ([`base`], [`constructor`]). What is known about a class - its fields, where
//! they lie, what they default to - is worked out once ([`layout`]). The bytes ([`encode`],
//! [`decode`]) are those of `dotcompute::wire`, with Python's types added ([`hint`] says when an
//! annotation settles what a value is read back as). Of records the bytes are those of a struct of C
//! ([`record`]).
//!
//! For the rest of the crate: [`priority_of`], [`id_of`] and [`correlation_of`] read any object.

mod base;
mod constructor;
mod decode;
mod encode;
mod hint;
mod id;
mod keys;
mod layout;
mod record;
mod slots;
mod types;

use crate::once::Once;
use crate::once::intern;
use dotcompute::{DEFAULT_PRIORITY, MessageId};
use pyo3::exceptions::{PyException, PyTypeError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyFloat, PyInt, PyList, PyString, PyTuple, PyType};

use crate::quick::Quick;

pub(crate) use record::{RecordCodec, pack as pack_record, unpack as unpack_record};

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("MessageBase", constructor::message_base(module.py())?)?;
    module.add_class::<layout::LayoutHandle>()?;
    module.add_class::<RecordCodec>()?;
    module.add_function(wrap_pyfunction!(message_header, module)?)?;
    module.add_function(wrap_pyfunction!(base::new_message_id, module)?)?;
    module.add_function(wrap_pyfunction!(base::reseed_message_ids, module)?)?;
    module.add_function(wrap_pyfunction!(base::set_qualified, module)?)?;
    module.add_function(wrap_pyfunction!(encode::encode_message, module)?)?;
    module.add_function(wrap_pyfunction!(decode::decode_message, module)?)?;
    module.add_function(wrap_pyfunction!(decode::decode_any_message, module)?)
}

/// Takes the bytes of a large array that are to go beside the message's: its number there, or none if
/// they are to go with the others.
pub(crate) type Beside<'a> = &'a mut dyn FnMut(&[u8]) -> Option<usize>;

/// Calls `take` with the bytes of any object: of a message its own, of anything else those of a message
/// around it. Its arrays go `beside` them, where that takes them.
pub(crate) fn to_wire(
    object: &Bound<'_, PyAny>,
    beside: Beside<'_>,
    take: impl FnOnce(&[u8]),
) -> PyResult<()> {
    let py = object.py();
    // Apart, since it borrows the message.
    let is_message = base::native(object).is_some();
    match is_message {
        true => encode::encode_with(object, Some(beside), take),
        false => encode::encode_with(&plain(py)?.bind(py).call1((object,))?, Some(beside), take),
    }
}

/// The object that has these bytes, which [`to_wire`] made here or in another process, and these
/// buffers with the arrays beside them.
pub(crate) fn from_wire<'py>(
    py: Python<'py>,
    bytes: &[u8],
    beside: &[Py<PyAny>],
) -> PyResult<Bound<'py, PyAny>> {
    let plain = plain(py)?.bind(py);
    let object = decode::decode_any(PyBytes::new(py, bytes).as_any(), plain, beside)?;
    match object.get_type().is(plain) {
        // Raises where it is some other message, of a class that is not known here.
        true => object.call_method0(intern!(py, "inside")),
        false => Ok(object),
    }
}

/// The class of messages around what is no message.
fn plain(py: Python<'_>) -> PyResult<&'static Py<PyType>> {
    static PLAIN: Once<Py<PyType>> = Once::new();
    PLAIN.get_or_try_init(py, || {
        let class = py.import("pydotcompute.ring_kernels._plain")?.getattr("Plain")?;
        Ok(class.cast_into::<PyType>()?.unbind())
    })
}

/// What the runtime reads of a message: the bits of its id and of the id that it answers, and its
/// priority.
#[pyfunction]
fn message_header(message: &Bound<'_, PyAny>) -> PyResult<(Option<u128>, Option<u128>, u8)> {
    Ok((id_of(message)?, correlation_of(message)?, priority_of(message)?))
}

/// The priority of a message: of ours without running any Python code, of any other object its
/// attribute `priority`. 128 if there is none that is an integer; what lies outside 0 to 255 counts
/// as the nearest of the two.
///
/// Clears any error that reading the attribute raises, except those that are no `Exception`
/// (KeyboardInterrupt, SystemExit).
#[inline]
pub(crate) fn priority_of(message: &Bound<'_, PyAny>) -> Quick<u8> {
    if let Some(native) = base::native(message) {
        return Ok(native.header(message.py(), |header| header.priority));
    }
    let Some(value) = attribute(message, intern!(message.py(), "priority"))? else {
        return Ok(DEFAULT_PRIORITY);
    };
    Ok(value.extract::<i64>().map_or(DEFAULT_PRIORITY, |value| value.clamp(0, 255) as u8))
}

/// The id of a message as the 128 bits of its UUID, most significant first: of ours without making
/// the UUID object, of any other object its attribute `message_id`. None if there is none that is a
/// UUID. Errors as in [`priority_of`].
pub(crate) fn id_of(message: &Bound<'_, PyAny>) -> PyResult<Option<u128>> {
    if let Some(native) = base::native(message) {
        return Ok(native.bits(message.py(), base::id_in));
    }
    let id = attribute(message, intern!(message.py(), "message_id"))?;
    Ok(id.and_then(|id| types::uuid_bits(&id)))
}

/// The id of the message that this one answers, as [`id_of`]. None if it answers none.
pub(crate) fn correlation_of(message: &Bound<'_, PyAny>) -> PyResult<Option<u128>> {
    if let Some(native) = base::native(message) {
        return Ok(native.bits(message.py(), base::correlation_in));
    }
    let id = attribute(message, intern!(message.py(), "correlation_id"))?;
    Ok(id.and_then(|id| types::uuid_bits(&id)))
}

/// Makes a message one that was received: with this id, priority and correlation.
pub(crate) fn set_header(
    message: &Bound<'_, PyAny>,
    id: MessageId,
    correlation_id: Option<MessageId>,
    priority: u8,
) -> PyResult<()> {
    if let Some(native) = base::native(message) {
        let py = message.py();
        native.set_id(py, id::Id::from_bits(id.as_u128()));
        let correlation_id = correlation_id.map(|id| id::Id::from_bits(id.as_u128()));
        native.set_correlation(py, correlation_id);
        native.header(py, |header| header.priority = priority);
        return Ok(());
    }
    Err(PyTypeError::new_err("a record that is a message has a native base"))
}

/// What went wrong as a `Message...Error` about a class; what is no `Exception` as it is.
#[cold]
fn explained(name: &str, class: &Bound<'_, PyType>, error: PyErr) -> PyErr {
    let py = class.py();
    if !error.is_instance_of::<PyException>(py) {
        return error;
    }
    let explain = || {
        let outer = py.import("pydotcompute.exceptions")?.getattr(name)?;
        let outer = PyErr::from_value(outer.call1((class, error.value(py)))?);
        outer.set_cause(py, Some(error.clone_ref(py)));
        Ok::<_, PyErr>(outer)
    };
    explain().unwrap_or_else(|other| other)
}

/// An attribute, if the object has it and it is not None. Errors as in [`priority_of`].
pub(crate) fn attribute<'py>(
    object: &Bound<'py, PyAny>,
    name: &Bound<'py, PyString>,
) -> PyResult<Option<Bound<'py, PyAny>>> {
    // To ask these in vain would cost more than all else that is done with a message.
    if object.is_exact_instance_of::<PyInt>()
        || object.is_exact_instance_of::<PyFloat>()
        || object.is_exact_instance_of::<PyString>()
        || object.is_exact_instance_of::<PyBytes>()
        || object.is_exact_instance_of::<PyTuple>()
        || object.is_exact_instance_of::<PyList>()
        || object.is_exact_instance_of::<PyDict>()
        || object.is_none()
    {
        return Ok(None);
    }
    match object.getattr(name) {
        Ok(value) => Ok(Some(value).filter(|value| !value.is_none())),
        Err(error) if error.is_instance_of::<PyException>(object.py()) => {
            // It refers to the object, so it must be gone at once, also where PyO3 was not told that the
            // interpreter is attached.
            Python::attach(|_| drop(error));
            Ok(None)
        }
        Err(error) => Err(error),
    }
}
