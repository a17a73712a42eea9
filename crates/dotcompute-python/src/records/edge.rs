//! Where records enter Python and leave it: objects of a record class, and arrays.
//!
//! Each record class has a `RecordType` as its `__record__` (see `handlers/record.py`), which
//! packs objects and makes them. A single record is packed when it is sent, on the sender's thread,
//! so that the kernel needs no interpreter; objects are made of records when they are received.

use std::ptr::null_mut;
use std::sync::Arc;

use crate::once::{Once, intern};
use dotcompute::compiled::{self, RecordMessage, RecordReply};
use dotcompute::record::RecordLayout as Core;
use dotcompute::{BoxError, DEFAULT_PRIORITY, DeadLetter, Envelope, MessageId, RecordBatch};
use dotcompute_cuda::Lent;
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyString, PyTuple, PyType};

use super::array;
use super::layout::RecordLayout;
use super::memory::{Held, Lease, RecordMemory};
use crate::asyncio::{DevicePointer, PyFault, PyMessage, errors, guarded};
use crate::message::{self, RecordCodec, pack_record, unpack_record};

/// The record classes of a kernel, on its outside.
pub(crate) struct Records {
    /// The `RecordType` of what it takes.
    pub(crate) input: Py<PyAny>,
    pub(crate) input_layout: &'static Core,
    /// The `RecordType` of its replies, where it makes any.
    pub(crate) output: Option<Py<PyAny>>,
    pub(crate) reach: Reach,
}

/// Whether a kernel reaches the memory of a device that its messages name.
pub(crate) enum Reach {
    Device,
    /// Where it runs.
    Elsewhere(&'static str),
}

impl Reach {
    fn check(&self, py: Python<'_>) -> PyResult<()> {
        match self {
            Self::Device => Ok(()),
            Self::Elsewhere(place) => Err(errors::raise(
                py,
                "CUDAError",
                (format!(
                    "the message names memory of a device, which this kernel cannot reach, since it \
                     runs {place}: launch it with executor='cuda' and isolation='thread'"
                ),),
            )),
        }
    }
}

impl Records {
    /// The layout of its replies, where it makes any.
    #[cfg(target_os = "linux")]
    pub(crate) fn output_layout(&self, py: Python<'_>) -> PyResult<Option<&'static Core>> {
        self.output.as_ref().map(|record| layout_of(record.bind(py))).transpose()
    }

    /// An envelope with the record or the records that `message` is.
    pub(crate) fn envelope(&self, message: &Bound<'_, PyAny>) -> PyResult<Envelope<PyMessage>> {
        if let Some(batch) = self.plain_batch(message)? {
            // An array of numpy's own class says nothing else.
            return Ok(Envelope::new(PyMessage::records(Arc::new(batch))));
        }
        let batch = to_records(message, self)?;
        let mut envelope = Envelope::new(PyMessage::records(Arc::new(batch)));
        envelope.priority = message::priority_of(message)?;
        if let Some(id) = message::id_of(message)? {
            envelope.id = MessageId::from_u128(id);
        }
        envelope.correlation_id = message::correlation_of(message)?.map(MessageId::from_u128);
        Ok(envelope)
    }

    /// The batch that an array of numpy's own class is, of the very dtype of these records.
    fn plain_batch(&self, message: &Bound<'_, PyAny>) -> PyResult<Option<RecordBatch>> {
        let py = message.py();
        let Ok(codec) = self.input.bind(py).cast::<RecordCodec>() else { return Ok(None) };
        let Some((start, count)) = array::plain_records(message, codec.get().dtype(codec)?) else {
            return Ok(None);
        };
        // SAFETY: an array with so many records of this layout, as its dtype says, contiguous.
        unsafe { lease_batch(self.input_layout, message, start, count, Vec::new()) }.map(Some)
    }
}

/// The batch that an array is; `lent` is the memory that it names.
///
/// # Safety
///
/// `array` is a `numpy.ndarray` or of a class derived from it, and `count` records of this layout lie from
/// `start` on, contiguous, in its memory.
unsafe fn lease_batch(
    layout: &'static Core,
    array: &Bound<'_, PyAny>,
    start: *const u8,
    count: usize,
    lent: Vec<Lent>,
) -> PyResult<RecordBatch> {
    if !start.addr().is_multiple_of(layout.align_bytes) {
        return Err(PyValueError::new_err(format!("a batch of '{}' is aligned", layout.name)));
    }
    // SAFETY: the caller's promise.
    let lease = Py::new(array.py(), unsafe { Lease::new(array) })?;
    // SAFETY: the caller's promise; they are aligned. The lease keeps the array, which is read only
    // meanwhile; that whoever has another view of its memory does not write to it is said where batches
    // are documented.
    Ok(unsafe {
        RecordBatch::from_foreign(layout, start, count, Box::new((Held::new(lease), lent)))
    })
}

/// The records of an object or an array.
fn to_records(message: &Bound<'_, PyAny>, records: &Records) -> PyResult<RecordBatch> {
    let (py, layout) = (message.py(), records.input_layout);
    let record = records.input.bind(py);
    let wrong = || PyTypeError::new_err("a record of another size");
    if let Ok(codec) = record.cast::<RecordCodec>()
        && let Some(packed) =
            pack_record(codec, message, |bytes| RecordBatch::single(layout, bytes))?
    {
        return packed.ok_or_else(wrong);
    }
    // Bytes of one record, or how many an array has; with the memory that they name, if they do.
    let mut packed = call_method(record, intern!(py, "to_records"), message)?;
    let mut lent: Vec<Lent> = Vec::new();
    if let Ok(naming) = packed.cast::<PyTuple>() {
        records.reach.check(py)?;
        let pointers: Vec<Bound<'_, DevicePointer>> = naming.get_item(1)?.extract()?;
        lent.extend(pointers.iter().filter_map(|one| one.get().lent().cloned()));
        packed = naming.get_item(0)?;
    }
    if let Ok(bytes) = packed.cast::<PyBytes>() {
        let single = match lent.is_empty() {
            true => RecordBatch::single(layout, bytes.as_bytes()),
            false => RecordBatch::single_keeping(layout, bytes.as_bytes(), Box::new(lent)),
        };
        return single.ok_or_else(wrong);
    }
    let count: usize = packed.extract()?;
    // SAFETY: `to_records` has looked: it is an array.
    let start = unsafe { array::start_of(message) };
    // SAFETY: `to_records` has looked: so many records of this layout lie there, contiguous.
    unsafe { lease_batch(layout, message, start, count, lent) }
}

/// A message that was received, on its way to Python.
pub(crate) struct Delivered {
    id: MessageId,
    correlation_id: Option<MessageId>,
    priority: u8,
    batch: Arc<RecordBatch>,
}

impl Delivered {
    pub(crate) fn new<M>(envelope: &Envelope<M>, batch: &Arc<RecordBatch>) -> Self {
        let Envelope { id, correlation_id, priority, .. } = *envelope;
        Self { id, correlation_id, priority, batch: Arc::clone(batch) }
    }

    pub(crate) fn dead(letter: &DeadLetter, batch: &Arc<RecordBatch>) -> Self {
        let DeadLetter { id, correlation_id, priority, .. } = *letter;
        Self { id, correlation_id, priority, batch: Arc::clone(batch) }
    }

    /// The object or the array that Python gets: by `record`, the `RecordType` that was declared,
    /// or else by the one that its layout belongs to.
    pub(crate) fn object(self, py: Python<'_>, record: Option<&Py<PyAny>>) -> PyResult<Py<PyAny>> {
        let single = self.batch.is_single();
        let layout = self.batch.layout();
        let record = match record {
            Some(record) => record.bind(py).clone(),
            None => {
                let module = py.import(intern!(py, "pydotcompute.handlers.record"))?;
                let layout = Py::new(py, RecordLayout { core: layout })?;
                module.call_method1(intern!(py, "type_of_layout"), (layout,))?
            }
        };
        if single
            && let Ok(codec) = record.cast::<RecordCodec>()
            && let Some(made) = unpack_record(codec, self.batch.bytes())?
        {
            message::set_header(&made, self.id, self.correlation_id, self.priority)?;
            return Ok(made.unbind());
        }
        let memory = Bound::new(py, RecordMemory::new(self.batch))?;
        if single {
            let made = call_method(&record, intern!(py, "unpack"), &memory)?;
            message::set_header(&made, self.id, self.correlation_id, self.priority)?;
            return Ok(made.unbind());
        }
        let codec = record.cast::<RecordCodec>()?;
        let made = array::array_over(&batch_class(py)?, codec.get().dtype(codec)?, memory)?;
        // What the class says of those that have none is not repeated.
        made.setattr(intern!(py, "_message_id"), self.id.as_u128())?;
        if let Some(id) = self.correlation_id {
            made.setattr(intern!(py, "_correlation_id"), id.as_u128())?;
        }
        if self.priority != DEFAULT_PRIORITY {
            made.setattr(intern!(py, "priority"), self.priority)?;
        }
        Ok(made.unbind())
    }
}

impl RecordMessage for PyMessage {
    const LAYOUT: Option<&'static Core> = None;

    fn records<'a>(
        &'a self,
        wanted: &'static Core,
        scratch: &'a mut Vec<u64>,
    ) -> Result<compiled::Records<'a>, BoxError> {
        if let Some(batch) = self.batch() {
            return batch.records(wanted, scratch);
        }
        // An object that another kernel sent.
        Python::try_attach(|py| {
            let object = self.object(py);
            let object = object.bind(py);
            let (packed, single) = pack(object, wanted).map_err(|error| PyFault::new(py, error))?;
            let bytes = packed.as_bytes();
            scratch.clear();
            scratch.resize(bytes.len().div_ceil(8), 0);
            // SAFETY: so many bytes are there, words have no padding, and `bytes` is elsewhere.
            unsafe {
                std::ptr::copy_nonoverlapping(
                    bytes.as_ptr(),
                    scratch.as_mut_ptr().cast(),
                    bytes.len(),
                );
            }
            // SAFETY: written just now.
            let bytes =
                unsafe { std::slice::from_raw_parts(scratch.as_ptr().cast::<u8>(), bytes.len()) };
            Ok(compiled::Records { bytes, single })
        })
        .unwrap_or_else(|| Err("the interpreter is ending".into()))
    }

    fn from_record(layout: &'static Core, bytes: &[u8]) -> Self {
        Self::one(layout, bytes)
    }
}

/// The bytes of an object that is a record of this layout, or of an array of them; whether it is a
/// single one.
fn pack<'py>(
    object: &Bound<'py, PyAny>,
    wanted: &'static Core,
) -> PyResult<(Bound<'py, PyBytes>, bool)> {
    let py = object.py();
    let layout = Py::new(py, RecordLayout { core: wanted })?;
    let module = py.import(intern!(py, "pydotcompute.handlers.record"))?;
    module.call_method1(intern!(py, "pack_as"), (object, layout))?.extract()
}

impl RecordReply for PyMessage {
    const LAYOUT: Option<&'static Core> = None;

    fn one(layout: &'static Core, bytes: &[u8]) -> Self {
        Self::records(Arc::new(RecordBatch::one(layout, bytes)))
    }

    fn many(batch: RecordBatch) -> Result<Self, RecordBatch> {
        Ok(Self::records(Arc::new(batch)))
    }
}

/// `object.name(argument)`, for Python's half, where the thread may end with the interpreter: see [`guarded`].
fn call_method<'py>(
    object: &Bound<'py, PyAny>,
    name: &Bound<'py, PyString>,
    argument: &Bound<'py, PyAny>,
) -> PyResult<Bound<'py, PyAny>> {
    // SAFETY: the interpreter is attached, and these are alive.
    let made = unsafe {
        guarded::call_method(object.as_ptr(), name.as_ptr(), argument.as_ptr(), null_mut())
    };
    // SAFETY: a new reference, or null with an error set.
    unsafe { Bound::from_owned_ptr_or_err(object.py(), made) }
}

/// `RecordBatch`, the class of batches that are received.
fn batch_class<'py>(py: Python<'py>) -> PyResult<Bound<'py, PyType>> {
    static CLASS: Once<Py<PyType>> = Once::new();
    let class = CLASS.get_or_try_init(py, || {
        let module = py.import(intern!(py, "pydotcompute.handlers.record"))?;
        let class = module.getattr(intern!(py, "RecordBatch"))?.cast_into::<PyType>()?;
        PyResult::Ok(class.unbind())
    })?;
    Ok(class.bind(py).clone())
}

/// The layout of a `RecordType`.
pub(crate) fn layout_of(record: &Bound<'_, PyAny>) -> PyResult<&'static Core> {
    let layout = record.getattr(intern!(record.py(), "layout"))?;
    Ok(layout.cast_into::<RecordLayout>()?.get().core)
}
