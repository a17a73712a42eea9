//! Records: layouts, batches as arrays, and compiled handlers.
//!
//! [`layout`] lays records out; [`memory`] lends batches to numpy and holds arrays for batches, [`array`]
//! is how arrays are taken apart and made;
//! [`edge`] turns objects into records and back where a message enters or leaves Python; [`code`]
//! calls what numba compiled, or interprets the handler; [`handler`] puts a handler together.

mod array;
mod code;
mod edge;
mod handler;
mod layout;
mod memory;

use pyo3::prelude::*;

pub(crate) use array::start_of;
pub(crate) use edge::{Delivered, Reach, Records, layout_of};
pub(crate) use handler::CompiledHandler;
pub(crate) use layout::RecordLayout;

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<layout::RecordLayout>()?;
    module.add_class::<memory::RecordMemory>()?;
    module.add_class::<memory::Lease>()?;
    module.add_class::<code::HandlerCall>()?;
    module.add_class::<handler::CompiledHandler>()
}
