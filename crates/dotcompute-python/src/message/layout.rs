//! What is known about a class of messages: its fields, where they lie, what they default to.

use std::collections::HashMap;
use std::sync::OnceLock;

use crate::once::intern;
use dotcompute::DEFAULT_PRIORITY;
use dotcompute::wire::encode_value;
use dotcompute_mailbox::sync::{Arc, AtomicBool, Ordering};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::pyclass::{PyTraverseError, PyVisit};
use pyo3::types::{PyDict, PyInt, PyString, PyType};

use super::constructor::message_base;
use super::hint::Hint;
use super::keys;
use super::slots::Slot;
use crate::attached::Attached;

/// Of a dataclass: a message, or one that a message has in a field.
pub(super) struct Layout {
    /// The bare name of the class, which is its name on the wire.
    pub(super) name: String,
    /// That this is the name of the class, as it is written into a message.
    pub(super) naming: Vec<u8>,
    pub(super) entries: Vec<Entry>,
    /// The fields that a new object does not have yet, as bits.
    pub(super) unset: u128,
    /// The fields that the constructor takes by position, in their order.
    pub(super) positional: Vec<usize>,
    /// A message, not just a dataclass.
    pub(super) is_message: bool,
    /// An `ArrayMessage`.
    pub(super) is_array_message: bool,
    /// Derives from `MessageBase`, and id, priority and correlation id are the native ones.
    pub(super) plain_header: bool,
    /// Its constructor is `MessageBase.__init__`.
    pub(super) native_init: bool,
    /// A message can be made from its fields, without its constructor.
    pub(super) is_direct: bool,
    pub(super) has_post_init: bool,
    /// Whose fields `super().__init__` fills if this class has a constructor of its own.
    pub(super) parent: Option<Arc<Layout>>,
    /// Its name in full, which is written too if another class has the same bare name.
    pub(super) qualified_name: String,
    is_qualified: AtomicBool,
    hints: OnceLock<Vec<Hint>>,
}

pub(super) struct Entry {
    pub(super) name: Py<PyString>,
    pub(super) text: String,
    /// Its name as it is written.
    pub(super) key: Vec<u8>,
    pub(super) access: Access,
    pub(super) default: Default,
    /// The constructor takes it.
    pub(super) init: bool,
    /// It goes on the wire.
    pub(super) wire: bool,
}

/// Where a field lies.
pub(super) enum Access {
    Id,
    Priority,
    Correlation,
    Slot(Slot),
    Attribute,
}

/// What a field is if nobody says.
pub(super) enum Default {
    /// It must be said.
    Required,
    /// What a new `MessageBase` has: a new id, the usual priority, no correlation id.
    New,
    Value(Py<PyAny>),
    Factory(Py<PyAny>),
}

/// By the address of the class. A class owns its layout through the handle in its attribute
/// `__message_layout__`; the handle takes the layout out of here when the class goes.
static LAYOUTS: Attached<Option<HashMap<usize, Arc<Layout>, foldhash::fast::FixedState>>> =
    Attached::new(None);

/// Owns the layout of one class.
#[pyclass(frozen, module = "pydotcompute._native")]
pub(crate) struct LayoutHandle {
    class: usize,
    layout: Arc<Layout>,
}

#[pymethods]
impl LayoutHandle {
    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        for entry in &self.layout.entries {
            if let Access::Slot(slot) = &entry.access {
                visit.call(slot.descriptor())?;
            }
            if let Default::Value(object) | Default::Factory(object) = &entry.default {
                visit.call(object)?;
            }
        }
        let hints = self.layout.hints.get().into_iter().flatten();
        hints.into_iter().try_for_each(|hint| hint.traverse(&visit))
    }
}

impl Drop for LayoutHandle {
    fn drop(&mut self) {
        // Dropped last, since that may run Python code.
        let _removed = Python::attach(|py| {
            LAYOUTS.with(py, |layouts| {
                let layouts = layouts.as_mut()?;
                let is_own = layouts
                    .get(&self.class)
                    .is_some_and(|layout| Arc::ptr_eq(layout, &self.layout));
                if is_own { layouts.remove(&self.class) } else { None }
            })
        });
    }
}

/// The layout of a dataclass.
///
/// # Errors
///
/// It is none.
#[inline]
pub(super) fn layout_of(class: &Bound<'_, PyType>) -> PyResult<Arc<Layout>> {
    let address = class.as_ptr() as usize;
    let known = LAYOUTS.with(class.py(), |layouts| layouts.as_ref()?.get(&address).cloned());
    known.map_or_else(|| build(class), Ok)
}

#[cold]
fn build(class: &Bound<'_, PyType>) -> PyResult<Arc<Layout>> {
    let py = class.py();
    let layout = Arc::new(Layout::new(class)?);
    let address = class.as_ptr() as usize;
    let handle = LayoutHandle { class: address, layout: layout.clone() };
    class.setattr(intern!(py, "__message_layout__"), Bound::new(py, handle)?)?;
    let _replaced =
        LAYOUTS.with(py, |layouts| layouts.get_or_insert_default().insert(address, layout.clone()));
    Ok(layout)
}

impl Layout {
    fn new(class: &Bound<'_, PyType>) -> PyResult<Self> {
        let py = class.py();
        let dataclasses = py.import(intern!(py, "dataclasses"))?;
        let missing = dataclasses.getattr(intern!(py, "MISSING"))?;
        let base = message_base(py)?.clone();
        let is_native = class.is_subclass(&base)?;
        let is_array_message = class.hasattr(intern!(py, "__array_message__"))?;

        let mut entries = Vec::new();
        let mut positional = Vec::new();
        let mut last_positional = Vec::new();
        for field in dataclasses.call_method1(intern!(py, "fields"), (class,))?.try_iter()? {
            let field = field?;
            let name: Bound<'_, PyString> = field.getattr(intern!(py, "name"))?.cast_into()?;
            let name = intern_name(&name)?;
            let text = name.to_str()?.to_owned();
            let access = Access::of(class, is_native.then_some(&base), &name)?;
            let init = field.getattr(intern!(py, "init"))?.is_truthy()?;
            if init {
                if !field.getattr(intern!(py, "kw_only"))?.is_truthy()? {
                    positional.push(entries.len());
                } else if access.is_header() {
                    last_positional.push(entries.len());
                }
            }
            entries.push(Entry {
                default: Default::of(&field, &missing, &access)?,
                wire: !(is_array_message && text.starts_with('_')),
                init,
                access,
                key: encode_value(&text).map_err(|e| PyValueError::new_err(e.to_string()))?,
                text,
                name: name.unbind(),
            });
        }
        positional.append(&mut last_positional);

        let init = intern!(py, "__init__");
        let native = base.getattr(init)?;
        let native_init =
            is_native && class.getattr(init)?.is(&native) && entries.len() <= u128::BITS as usize;
        let is_direct =
            entries.len() <= u128::BITS as usize && !has_init_variables(class, &dataclasses)?;
        let parent = if is_native && !native_init { parent(class, &base, &native)? } else { None };
        let module: String = class.getattr(intern!(py, "__module__"))?.extract()?;
        let mut plain_header = is_native;
        for name in [keys::ID, keys::PRIORITY, keys::CORRELATION_ID] {
            plain_header = plain_header && class.getattr(name)?.is(&base.getattr(name)?);
        }
        let unset = |(index, entry): (usize, &Entry)| match entry.default {
            Default::New => 0,
            _ => 1u128.checked_shl(index as u32).unwrap_or(0),
        };
        let name = class.name()?.to_str()?.to_owned();
        let written = |text: &str| {
            encode_value(&text.to_owned()).map_err(|error| PyValueError::new_err(error.to_string()))
        };
        Ok(Self {
            naming: [written(keys::TYPE)?, written(&name)?].concat(),
            name,
            unset: entries.iter().enumerate().map(unset).fold(0, |all, bit| all | bit),
            entries,
            positional,
            is_message: is_native || class.hasattr(intern!(py, "__message__"))?,
            is_array_message,
            plain_header,
            native_init,
            is_direct,
            has_post_init: class.hasattr(intern!(py, "__post_init__"))?,
            parent,
            qualified_name: format!("{module}:{}", class.qualname()?),
            is_qualified: AtomicBool::new(false),
            hints: OnceLock::new(),
        })
    }

    /// What the annotations of its fields say about their values. Worked out when the first message
    /// is written or read, since an annotation may name a class that is defined later.
    pub(super) fn hints(&self, class: &Bound<'_, PyType>) -> PyResult<&[Hint]> {
        let py = class.py();
        if let Some(hints) = self.hints.get() {
            return Ok(hints);
        }
        let module = py.import(intern!(py, "pydotcompute.ring_kernels.message"))?;
        let specs: Bound<'_, PyDict> =
            module.call_method1(intern!(py, "_field_hints"), (class,))?.cast_into()?;
        let hint = |entry: &Entry| match specs.get_item(&entry.name)? {
            Some(spec) => Hint::from_spec(&spec),
            None => Ok(Hint::Any),
        };
        let hints = self.entries.iter().map(hint).collect::<PyResult<Vec<_>>>()?;
        Ok(self.hints.get_or_init(|| hints))
    }

    /// The index of the field with this name.
    #[inline]
    pub(super) fn find(&self, name: &Bound<'_, PyAny>) -> PyResult<Option<usize>> {
        // Names in programs are interned, so mostly it is the very object.
        let same = |entry: &Entry| entry.name.as_ptr() == name.as_ptr();
        match self.entries.iter().position(same) {
            Some(index) => Ok(Some(index)),
            None => self.find_text(name.cast::<PyString>()?),
        }
    }

    #[cold]
    fn find_text(&self, name: &Bound<'_, PyString>) -> PyResult<Option<usize>> {
        let Ok(name) = name.to_str() else { return Ok(None) };
        Ok(self.entries.iter().position(|entry| entry.text == name))
    }

    /// Whether its bare name is not enough, since another class has it too.
    pub(super) fn is_qualified(&self) -> bool {
        // Relaxed: a lone flag; set and read with the GIL held.
        self.is_qualified.load(Ordering::Relaxed)
    }

    pub(super) fn set_qualified(&self, is_qualified: bool) {
        // Relaxed: as above.
        self.is_qualified.store(is_qualified, Ordering::Relaxed);
    }
}

/// The layout of the nearest base class that has the native constructor.
fn parent(
    class: &Bound<'_, PyType>,
    base: &Bound<'_, PyType>,
    native: &Bound<'_, PyAny>,
) -> PyResult<Option<Arc<Layout>>> {
    for other in class.mro().iter().skip(1) {
        let Ok(other) = other.cast_into::<PyType>() else { continue };
        if other.is(base) {
            break;
        }
        if other.is_subclass(base)? && other.getattr(intern!(class.py(), "__init__"))?.is(native) {
            return layout_of(&other).map(Some);
        }
    }
    Ok(None)
}

/// Whether the constructor takes arguments that are no fields, which no bytes have.
fn has_init_variables(
    class: &Bound<'_, PyType>,
    dataclasses: &Bound<'_, PyModule>,
) -> PyResult<bool> {
    let py = class.py();
    let variable = dataclasses.getattr(intern!(py, "_FIELD_INITVAR"))?;
    let all = class.getattr(intern!(py, "__dataclass_fields__"))?;
    for field in all.cast_into::<PyDict>()?.values() {
        if field.getattr(intern!(py, "_field_type"))?.is(&variable) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The one object that all names of this text in the program are.
fn intern_name<'py>(name: &Bound<'py, PyString>) -> PyResult<Bound<'py, PyString>> {
    Ok(PyString::intern(name.py(), name.to_str()?))
}

impl Access {
    fn of(
        class: &Bound<'_, PyType>,
        base: Option<&Bound<'_, PyType>>,
        name: &Bound<'_, PyString>,
    ) -> PyResult<Self> {
        let Some(attribute) = class.getattr_opt(name)? else { return Ok(Access::Attribute) };
        if let Some(base) = base
            && base.getattr_opt(name)?.is_some_and(|native| native.is(&attribute))
        {
            match name.to_str()? {
                keys::ID => return Ok(Access::Id),
                keys::PRIORITY => return Ok(Access::Priority),
                keys::CORRELATION_ID => return Ok(Access::Correlation),
                _ => {}
            }
        }
        Ok(Slot::new(&attribute).map_or(Access::Attribute, Access::Slot))
    }

    pub(super) fn is_header(&self) -> bool {
        matches!(self, Access::Id | Access::Priority | Access::Correlation)
    }
}

impl Default {
    fn of(field: &Bound<'_, PyAny>, missing: &Bound<'_, PyAny>, access: &Access) -> PyResult<Self> {
        let py = field.py();
        let value = field.getattr(intern!(py, "default"))?;
        if !value.is(missing) {
            let is_new = match access {
                Access::Priority => {
                    value.is_exact_instance_of::<PyInt>() && value.eq(DEFAULT_PRIORITY)?
                }
                Access::Correlation => value.is_none(),
                _ => false,
            };
            if is_new {
                return Ok(Default::New);
            }
            return Ok(Default::Value(value.unbind()));
        }
        let factory = field.getattr(intern!(py, "default_factory"))?;
        if factory.is(missing) {
            return Ok(Default::Required);
        }
        if matches!(access, Access::Id) {
            // Its own id is as good as one from here, and there already.
            let uuid4 = py.import(intern!(py, "uuid"))?.getattr(intern!(py, "uuid4"))?;
            let own = py
                .import(intern!(py, "pydotcompute._native"))?
                .getattr(intern!(py, "new_message_id"))?;
            if factory.is(&uuid4) || factory.is(&own) {
                return Ok(Default::New);
            }
        }
        Ok(Default::Factory(factory.unbind()))
    }
}

/// The layout of an object's class.
pub(super) fn layout_of_object(object: &Bound<'_, PyAny>) -> PyResult<Arc<Layout>> {
    layout_of(&object.get_type()).map_err(|error| {
        if error.is_instance_of::<PyTypeError>(object.py()) {
            let text = format!("{} is no dataclass", object.get_type());
            PyTypeError::new_err(text)
        } else {
            error
        }
    })
}
