//! The layout of a record, for Python.

use dotcompute::record::{ElementType, RecordLayout as Core};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;

/// How a struct of C lays out named fields: see the core's `RecordLayout::c`.
#[pyclass(frozen, module = "pydotcompute._native")]
pub(crate) struct RecordLayout {
    pub(crate) core: &'static Core,
}

#[pymethods]
impl RecordLayout {
    /// `fields`: for each its name, its type (a numpy code such as "i8", or a layout) and the
    /// lengths of its dimensions. `owner`: the path of the class that it is the layout of.
    #[new]
    #[pyo3(signature = (name, fields, owner = ""))]
    fn new(
        name: &str,
        fields: Vec<(String, Bound<'_, PyAny>, Vec<usize>)>,
        owner: &str,
    ) -> PyResult<Self> {
        let mut elements = Vec::with_capacity(fields.len());
        for (field, kind, dimensions) in &fields {
            let mut element = element_of(kind)?;
            for &length in dimensions.iter().rev() {
                element = element.array_of(length);
            }
            elements.push((field.as_str(), element));
        }
        match Core::c_of(owner, name, &elements) {
            Ok(core) => Ok(Self { core }),
            Err(error) => Err(PyTypeError::new_err(error.to_string())),
        }
    }

    /// Its name.
    #[getter]
    fn name(&self) -> &'static str {
        self.core.name
    }

    /// Its size in bytes.
    #[getter]
    fn nbytes(&self) -> usize {
        self.core.bytes
    }

    /// Its alignment in bytes.
    #[getter]
    fn alignment(&self) -> usize {
        self.core.align_bytes
    }

    /// Where each field begins, in bytes, in their order.
    #[getter]
    fn offsets(&self) -> Vec<usize> {
        self.core.fields.iter().map(|field| field.offset).collect()
    }

    /// The largest record that can be a message, in bytes.
    #[classattr]
    const MESSAGE_BYTES_MAX: usize = dotcompute::record::MAX_BYTES;

    /// The same as a struct of C, C++ and CUDA.
    fn c_struct(&self) -> String {
        self.core.c_struct()
    }

    /// The name of that struct.
    #[getter]
    fn c_name(&self) -> String {
        self.core.c_name()
    }

    /// Whether records of both layouts have the same bytes.
    fn agrees_with(&self, other: &Self) -> bool {
        self.core.agrees_with(other.core)
    }

    fn __eq__(&self, other: &Bound<'_, PyAny>) -> bool {
        other.cast::<Self>().is_ok_and(|other| std::ptr::eq(self.core, other.get().core))
    }

    fn __hash__(&self) -> usize {
        // Equal layouts are one: see `RecordLayout::c`.
        std::ptr::from_ref(self.core).addr()
    }

    fn __repr__(&self) -> String {
        format!("RecordLayout({}, {} bytes)", self.core.name, self.core.bytes)
    }
}

fn element_of(kind: &Bound<'_, PyAny>) -> PyResult<ElementType> {
    if let Ok(layout) = kind.cast::<RecordLayout>() {
        return Ok(ElementType::Record(layout.get().core));
    }
    Ok(match kind.extract::<&str>()? {
        "u1" => ElementType::U8,
        "u2" => ElementType::U16,
        "u4" => ElementType::U32,
        "u8" => ElementType::U64,
        "i1" => ElementType::I8,
        "i2" => ElementType::I16,
        "i4" => ElementType::I32,
        "i8" => ElementType::I64,
        "f4" => ElementType::F32,
        "f8" => ElementType::F64,
        other => return Err(PyValueError::new_err(format!("no number of a record: '{other}'"))),
    })
}
