//! The native base class of messages.

use crate::once::intern;
use dotcompute::DEFAULT_PRIORITY;
use dotcompute_mailbox::sync::Arc;
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::pyclass::{PyTraverseError, PyVisit};
use pyo3::types::{PyBytes, PyDict, PyString, PyTuple, PyType};

use super::id::Id;
use super::layout::{Access, Default, Layout, layout_of};
use super::slots::each;
use super::{decode, encode, types};
use crate::attached::Attached;

/// What every message has: an id, a priority, and the id of the message that it answers.
///
/// The constructor is in [`constructor`](super::constructor).
#[pyclass(frozen, subclass, module = "pydotcompute._native")]
pub(crate) struct MessageCore {
    pub(super) layout: Arc<Layout>,
    header: Attached<Header>,
}

/// What of a message is not among its fields.
pub(super) struct Header {
    pub(super) id: Id,
    pub(super) correlation: Option<Id>,
    pub(super) priority: u8,
}

#[pymethods]
impl MessageCore {
    #[new]
    #[classmethod]
    fn new(class: &Bound<'_, PyType>) -> PyResult<Self> {
        Ok(Self {
            layout: layout_of(class)?,
            header: Attached::new(Header {
                id: Id::next(),
                correlation: None,
                priority: DEFAULT_PRIORITY,
            }),
        })
    }

    /// The id of this message, a `uuid.UUID`. The object is made when it is first asked for.
    #[getter]
    fn message_id<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        let object = id_object(slf, |header| Some(&mut header.id))?;
        Ok(object.unwrap_or_else(|| slf.py().None().into_bound(slf.py())))
    }

    #[setter]
    fn set_message_id(slf: &Bound<'_, Self>, value: &Bound<'_, PyAny>) {
        slf.get().set_id(slf.py(), Id::from_object(value));
    }

    /// 0 (lowest) to 255.
    #[getter]
    fn priority(&self, py: Python<'_>) -> u8 {
        self.header(py, |header| header.priority)
    }

    #[setter]
    fn set_priority(slf: &Bound<'_, Self>, value: &Bound<'_, PyAny>) -> PyResult<()> {
        let priority = parse_priority(value)?;
        slf.get().header(slf.py(), |header| header.priority = priority);
        Ok(())
    }

    /// The id of the message that this one answers, or None.
    #[getter]
    fn correlation_id<'py>(slf: &Bound<'py, Self>) -> PyResult<Option<Bound<'py, PyAny>>> {
        id_object(slf, |header| header.correlation.as_mut())
    }

    #[setter]
    fn set_correlation_id(slf: &Bound<'_, Self>, value: Option<&Bound<'_, PyAny>>) {
        slf.get().set_correlation(slf.py(), value.map(Id::from_object));
    }

    /// The bytes of this message.
    fn serialize<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyBytes>> {
        encode::encode_message(slf.as_any())
    }

    /// The message of this class that has these bytes.
    #[classmethod]
    fn deserialize<'py>(
        class: &Bound<'py, PyType>,
        data: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyAny>> {
        decode::decode_message(class, data, false)
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        // SAFETY: the collector is calling, so the interpreter is attached.
        let py = unsafe { Python::assume_attached() };
        self.header(py, |header| {
            visit.call(header.id.held())?;
            visit.call(header.correlation.as_ref().and_then(Id::held))
        })
    }

    fn __clear__(&self, py: Python<'_>) {
        self.set_id(py, Id::from_bits(0));
        self.set_correlation(py, None);
    }
}

/// The object of one of the ids. It is made while nothing is borrowed, since another thread may run
/// meanwhile.
fn id_object<'py>(
    message: &Bound<'py, MessageCore>,
    id: impl Fn(&mut Header) -> Option<&mut Id>,
) -> PyResult<Option<Bound<'py, PyAny>>> {
    let (py, core) = (message.py(), message.get());
    let bits = core.header(py, |header| {
        id(header).map(|id| match id.held() {
            Some(object) => Err(object.bind(py).clone()),
            None => Ok(id.known_bits().unwrap_or_default()),
        })
    });
    let bits = match bits {
        None => return Ok(None),
        Some(Err(object)) => return Ok(Some(object)),
        Some(Ok(bits)) => bits,
    };
    let made = types::make_uuid(py, bits)?;
    Ok(core.header(py, |header| id(header).map(|id| id.keep(bits, &made))))
}

impl MessageCore {
    /// Calls `f`, which runs no Python code and drops no object, with the header.
    #[inline]
    pub(super) fn header<R>(&self, py: Python<'_>, f: impl FnOnce(&mut Header) -> R) -> R {
        self.header.with(py, f)
    }

    /// The bits of the id, or of the correlation id; `None` where there is none, or it is no UUID.
    pub(super) fn bits(
        &self,
        py: Python<'_>,
        id: fn(&mut Header) -> Option<&mut Id>,
    ) -> Option<u128> {
        let known = self.header(py, |header| match id(header) {
            None => Ok(None),
            Some(id) => match (id.known_bits(), id.held()) {
                (None, Some(object)) => Err(object.clone_ref(py)),
                (bits, _) => Ok(bits),
            },
        });
        let object = match known {
            Ok(bits) => return bits,
            Err(object) => object,
        };
        // To read it may run Python code.
        let bits = types::uuid_bits(object.bind(py))?;
        self.header(py, |header| id(header).map(|id| id.note_bits(&object, bits)));
        Some(bits)
    }

    pub(super) fn set_id(&self, py: Python<'_>, id: Id) {
        let _replaced = self.header(py, |header| std::mem::replace(&mut header.id, id));
    }

    pub(super) fn set_correlation(&self, py: Python<'_>, id: Option<Id>) {
        let _replaced = self.header(py, |header| std::mem::replace(&mut header.correlation, id));
    }

    /// What `__init__` does.
    pub(super) fn initialise(
        object: &Bound<'_, Self>,
        args: &Bound<'_, PyTuple>,
        kwargs: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<()> {
        let layout = &object.get().layout;
        match &layout.parent {
            // Called by the class's own constructor.
            Some(parent) if !layout.native_init => fill(object, parent, args, kwargs),
            _ => fill(object, layout, args, kwargs),
        }
    }

    /// Sets one field of `object`.
    #[inline]
    pub(super) fn set(
        object: &Bound<'_, PyAny>,
        name: &Py<PyString>,
        access: &Access,
        value: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        match access {
            Access::Slot(slot) => slot.set(object, value),
            Access::Id => {
                object.cast::<Self>()?.get().set_id(object.py(), Id::from_object(value));
                Ok(())
            }
            Access::Priority => {
                let priority = parse_priority(value)?;
                let core = object.cast::<Self>()?.get();
                core.header(object.py(), |header| header.priority = priority);
                Ok(())
            }
            Access::Correlation => {
                let id = (!value.is_none()).then(|| Id::from_object(value));
                object.cast::<Self>()?.get().set_correlation(object.py(), id);
                Ok(())
            }
            Access::Attribute => set_attribute(object, name.bind(object.py()), value),
        }
    }
}

/// As `object.__setattr__` does, past a frozen class's own.
pub(super) fn set_attribute(
    object: &Bound<'_, PyAny>,
    name: &Bound<'_, PyString>,
    value: &Bound<'_, PyAny>,
) -> PyResult<()> {
    let py = object.py();
    py.get_type::<PyAny>().call_method1(intern!(py, "__setattr__"), (object, name, value)).map(drop)
}

/// The native part of a message, if id, priority and correlation id are the ones in it.
#[inline]
pub(super) fn native<'a>(object: &'a Bound<'_, PyAny>) -> Option<&'a MessageCore> {
    let native = object.cast::<MessageCore>().ok()?.get();
    native.layout.plain_header.then_some(native)
}

/// For [`MessageCore::bits`].
pub(super) fn id_in(header: &mut Header) -> Option<&mut Id> {
    Some(&mut header.id)
}

/// For [`MessageCore::bits`].
pub(super) fn correlation_in(header: &mut Header) -> Option<&mut Id> {
    header.correlation.as_mut()
}

pub(super) fn parse_priority(value: &Bound<'_, PyAny>) -> PyResult<u8> {
    let out_of_range = || PyValueError::new_err(format!("Priority must be 0-255, got {value}"));
    match value.extract::<i64>() {
        Ok(priority) => u8::try_from(priority).map_err(|_| out_of_range()),
        Err(error) if error.is_instance_of::<PyTypeError>(value.py()) => Err(error),
        Err(_) => Err(out_of_range()),
    }
}

/// What a dataclass's `__init__` does.
fn fill(
    object: &Bound<'_, MessageCore>,
    layout: &Layout,
    args: &Bound<'_, PyTuple>,
    kwargs: Option<&Bound<'_, PyDict>>,
) -> PyResult<()> {
    if args.len() > layout.positional.len() {
        return Err(PyTypeError::new_err(format!(
            "{}.__init__() takes {} positional arguments but {} were given",
            layout.name,
            layout.positional.len() + 1,
            args.len() + 1,
        )));
    }
    let object = object.as_any();
    let mut given = 0u128;
    for (&index, value) in layout.positional.iter().zip(args.iter_borrowed()) {
        let entry = &layout.entries[index];
        MessageCore::set(object, &entry.name, &entry.access, &value)?;
        given |= 1 << index;
    }
    if let Some(kwargs) = kwargs {
        each(kwargs, |name, value| {
            let found = layout.find(&name)?.filter(|&index| layout.entries[index].init);
            let Some(index) = found else {
                return Err(PyTypeError::new_err(format!(
                    "{}.__init__() got an unexpected keyword argument '{}'",
                    layout.name, &*name,
                )));
            };
            if given & 1 << index != 0 {
                return Err(PyTypeError::new_err(format!(
                    "{}.__init__() got multiple values for argument '{}'",
                    layout.name, &*name,
                )));
            }
            let entry = &layout.entries[index];
            MessageCore::set(object, &entry.name, &entry.access, value)?;
            given |= 1 << index;
            Ok(())
        })?;
    }
    fill_missing(object, layout, given)
}

/// Sets the fields that are not among the `given` to their defaults, and ends as `__init__` does.
pub(super) fn fill_missing(
    object: &Bound<'_, PyAny>,
    layout: &Layout,
    given: u128,
) -> PyResult<()> {
    if layout.unset & !given != 0 {
        set_defaults(object, layout, given)?;
    }
    if layout.has_post_init {
        object.call_method0(intern!(object.py(), "__post_init__"))?;
    }
    Ok(())
}

fn set_defaults(object: &Bound<'_, PyAny>, layout: &Layout, given: u128) -> PyResult<()> {
    let py = object.py();
    let mut missing = Vec::new();
    for (index, entry) in layout.entries.iter().enumerate() {
        if given & 1 << index != 0 {
            continue;
        }
        match &entry.default {
            Default::New => {}
            Default::Value(value) => {
                MessageCore::set(object, &entry.name, &entry.access, value.bind(py))?;
            }
            Default::Factory(factory) => {
                let value = factory.bind(py).call0()?;
                MessageCore::set(object, &entry.name, &entry.access, &value)?;
            }
            // A field that the constructor does not take is for `__post_init__` to set.
            Default::Required if entry.init => missing.push(format!("'{}'", entry.text)),
            Default::Required => {}
        }
    }
    if !missing.is_empty() {
        return Err(PyTypeError::new_err(format!(
            "{}.__init__() missing {} required argument{}: {}",
            layout.name,
            missing.len(),
            if missing.len() == 1 { "" } else { "s" },
            missing.join(", "),
        )));
    }
    Ok(())
}

/// A new message id, a `uuid.UUID` of version 4, without a system call.
#[pyfunction]
pub(super) fn new_message_id(py: Python<'_>) -> PyResult<Bound<'_, PyAny>> {
    types::make_uuid(py, dotcompute::MessageId::next().as_u128())
}

/// Starts the generator of ids anew, in a child process after a fork.
#[pyfunction]
pub(super) fn reseed_message_ids() {
    dotcompute::MessageId::reseed();
}

/// Says whether the bytes of this class's messages carry its name in full.
#[pyfunction]
#[pyo3(signature = (class, is_qualified, /))]
pub(super) fn set_qualified(class: &Bound<'_, PyType>, is_qualified: bool) -> PyResult<()> {
    layout_of(class)?.set_qualified(is_qualified);
    Ok(())
}
