//! An object that is being read.

use dotcompute_mailbox::sync::Arc;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyType};

use crate::message::base::{self, MessageCore};
use crate::message::id::Id;
use crate::message::layout::{Layout, layout_of};
use crate::message::slots;

/// What the fields of a map go into.
pub(super) enum Target<'py> {
    /// The object itself, whose constructor does not run. `given`: which fields it has, as bits.
    Object { object: Bound<'py, PyAny>, given: u128, header: Header },
    /// Arguments of the constructor, by field.
    Arguments(Vec<(usize, Bound<'py, PyAny>)>),
}

/// What the native part of a message becomes.
#[derive(Default)]
pub(super) struct Header {
    pub(super) id: Option<u128>,
    pub(super) correlation: Option<u128>,
    pub(super) priority: Option<u8>,
}

impl<'py> Target<'py> {
    #[inline]
    pub(super) fn new(class: &Bound<'py, PyType>) -> PyResult<(Arc<Layout>, Self)> {
        let object = |object| Target::Object { object, given: 0, header: Header::default() };
        if class.is_subclass_of::<MessageCore>()? {
            let made = slots::blank(class)?;
            let layout = made.cast::<MessageCore>()?.get().layout.clone();
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
    pub(super) fn finish(
        self,
        layout: &Arc<Layout>,
        class: &Bound<'py, PyType>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let py = class.py();
        let arguments = match self {
            Target::Object { object, given, header } => {
                if let Ok(native) = object.cast::<MessageCore>() {
                    // What a new message has there are no objects.
                    native.get().header(py, |native| {
                        if let Some(id) = header.id {
                            native.id = Id::from_bits(id);
                        }
                        if let Some(id) = header.correlation {
                            native.correlation = Some(Id::from_bits(id));
                        }
                        native.priority = header.priority.unwrap_or(native.priority);
                    });
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
