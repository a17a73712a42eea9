//! What bytes say of the class of their message, and the class that is meant.

use crate::once::Once;
use crate::once::intern;
use dotcompute::wire::{DecodeError, Decoder, Kind, Limits};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyType};

use super::{Result, value_error};
use crate::message::keys;

/// What a message's map says about its class.
#[derive(Default)]
pub(super) struct Names<'de> {
    pub(super) name: Option<&'de str>,
    pub(super) qualified: Option<&'de str>,
}

/// Reads the names alone, of the map with which `bytes` begin.
pub(super) fn peek(bytes: &[u8]) -> Result<Names<'_>> {
    Decoder::new(bytes, &Limits::default())?.map(|decoder, length| {
        let mut names = Names::default();
        for _ in 0..length {
            if decoder.kind()? != Kind::Str {
                decoder.skip()?;
                decoder.skip()?;
                continue;
            }
            let at_string =
                |decoder: &Decoder<'_>| Ok::<_, DecodeError>(decoder.kind()? == Kind::Str);
            match decoder.str()? {
                keys::TYPE if at_string(decoder)? => names.name = Some(decoder.str()?),
                keys::QUALIFIED if at_string(decoder)? => names.qualified = Some(decoder.str()?),
                _ => decoder.skip()?,
            }
        }
        Ok(names)
    })
}

/// The keys of the map with which `bytes` begin, as far as they are strings.
fn peek_keys(bytes: &[u8]) -> Result<Vec<&str>> {
    Decoder::new(bytes, &Limits::default())?.map(|decoder, length| {
        let mut keys = Vec::new();
        for _ in 0..length {
            match decoder.kind()? {
                Kind::Str => keys.push(decoder.str()?),
                _ => decoder.skip()?,
            }
            decoder.skip()?;
        }
        Ok(keys)
    })
}

/// The classes whose names no other class has.
static SOLE: Once<Py<PyDict>> = Once::new();

pub(super) fn sole(py: Python<'_>) -> PyResult<&Bound<'_, PyDict>> {
    let sole = SOLE.get_or_try_init(py, || {
        let module = py.import("pydotcompute.ring_kernels.message")?;
        Ok::<_, PyErr>(module.getattr("_sole")?.cast_into::<PyDict>()?.unbind())
    })?;
    Ok(sole.bind(py))
}

/// The registered class that the names stand for.
pub(super) fn find_class<'py>(
    py: Python<'py>,
    bytes: &[u8],
    names: &Names<'_>,
) -> PyResult<Option<Bound<'py, PyType>>> {
    let Some(name) = names.name else { return Ok(None) };
    if names.qualified.is_none()
        && let Some(class) = sole(py)?.get_item(name)?
    {
        return Ok(Some(class.cast_into()?));
    }
    let module = py.import(intern!(py, "pydotcompute.ring_kernels.message"))?;
    let keys = peek_keys(bytes).map_err(value_error)?;
    let class = module.call_method1(intern!(py, "_find_class"), (name, names.qualified, keys))?;
    if class.is_none() { Ok(None) } else { Ok(Some(class.cast_into()?)) }
}
