//! What an annotation says about a value that its bytes do not say.
//!
//! A tuple is written as a list is, a member of an enumeration as its value, a numpy scalar as a
//! number: bytes that every reader understands. The annotation of the field turns them back.

use pyo3::prelude::*;
use pyo3::pyclass::{PyTraverseError, PyVisit};
use pyo3::types::{PyAnyMethods, PyTuple, PyType};

pub(super) enum Hint {
    /// Nothing: the value is what its bytes say.
    Any,
    /// Arrays are tuples, at any depth: the values of enumerations, the keys of dicts.
    Frozen,
    List(Box<Hint>),
    /// Of any length.
    TupleOf(Box<Hint>),
    Tuple(Vec<Hint>),
    /// A class derived from tuple, made with its `_make`.
    NamedTuple(Py<PyType>, Vec<Hint>),
    Dict(Box<(Hint, Hint)>),
    Set(Box<Hint>),
    /// A member, made by calling the class with its value.
    Enum(Py<PyType>),
    /// A dataclass or message, written as the map of its fields.
    Class(Py<PyType>),
    /// A class that makes the value from what was read: numpy's scalars, bytearray.
    Call(Py<PyType>),
}

static ANY: Hint = Hint::Any;
static FROZEN: Hint = Hint::Frozen;

impl Hint {
    /// From what `_field_hints` in `message.py` returns: None, or a tuple of a word and what belongs
    /// to it.
    pub(super) fn from_spec(spec: &Bound<'_, PyAny>) -> PyResult<Self> {
        if spec.is_none() {
            return Ok(Hint::Any);
        }
        let spec = spec.cast::<PyTuple>()?;
        let item = |index: usize| spec.get_item(index);
        let boxed = |index: usize| Ok::<_, PyErr>(Box::new(Self::from_spec(&item(index)?)?));
        let class = || Ok::<_, PyErr>(item(1)?.cast_into::<PyType>()?.unbind());
        let list = |index: usize| {
            item(index)?
                .try_iter()?
                .map(|spec| Self::from_spec(&spec?))
                .collect::<PyResult<Vec<_>>>()
        };
        Ok(match item(0)?.extract::<&str>()? {
            "list" => Hint::List(boxed(1)?),
            "tuple_of" => Hint::TupleOf(boxed(1)?),
            "tuple" => Hint::Tuple(list(1)?),
            "named_tuple" => Hint::NamedTuple(class()?, list(2)?),
            "dict" => {
                Hint::Dict(Box::new((Self::from_spec(&item(1)?)?, Self::from_spec(&item(2)?)?)))
            }
            "set" => Hint::Set(boxed(1)?),
            "enum" => Hint::Enum(class()?),
            "class" => Hint::Class(class()?),
            "call" => Hint::Call(class()?),
            _ => Hint::Any,
        })
    }

    /// Of the element at this index of an array.
    pub(super) fn element(&self, index: usize) -> &Hint {
        match self {
            Hint::List(each) | Hint::TupleOf(each) | Hint::Set(each) => each,
            Hint::Tuple(elements) | Hint::NamedTuple(_, elements) => {
                elements.get(index).unwrap_or(&ANY)
            }
            Hint::Frozen | Hint::Enum(_) => &FROZEN,
            _ => &ANY,
        }
    }

    /// Of the keys and the values of a dict.
    pub(super) fn entry(&self) -> (&Hint, &Hint) {
        match self {
            Hint::Dict(both) => match &both.0 {
                // A list cannot be a key.
                Hint::Any => (&FROZEN, &both.1),
                key => (key, &both.1),
            },
            _ => (&FROZEN, &ANY),
        }
    }

    /// Shows the classes in it to the garbage collector.
    pub(super) fn traverse(&self, visit: &PyVisit<'_>) -> Result<(), PyTraverseError> {
        match self {
            Hint::Any | Hint::Frozen => Ok(()),
            Hint::List(each) | Hint::TupleOf(each) | Hint::Set(each) => each.traverse(visit),
            Hint::Tuple(elements) => elements.iter().try_for_each(|each| each.traverse(visit)),
            Hint::NamedTuple(class, elements) => {
                visit.call(class)?;
                elements.iter().try_for_each(|each| each.traverse(visit))
            }
            Hint::Dict(both) => {
                both.0.traverse(visit)?;
                both.1.traverse(visit)
            }
            Hint::Enum(class) | Hint::Class(class) | Hint::Call(class) => visit.call(class),
        }
    }

    /// Whether an array read under it is a tuple.
    pub(super) fn is_tuple(&self) -> bool {
        matches!(
            self,
            Hint::TupleOf(_) | Hint::Tuple(_) | Hint::NamedTuple(..) | Hint::Frozen | Hint::Enum(_)
        )
    }
}
