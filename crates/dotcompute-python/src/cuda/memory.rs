//! Memory of a device's, and copies between it and arrays of the host's.

use std::ptr;

use dotcompute_cuda::compute::{ComputeError, DeviceBuffer, Stream};
use pyo3::buffer::PyBuffer;
use pyo3::exceptions::{PyBufferError, PyValueError};
use pyo3::prelude::*;

use super::device::CudaStream;
use super::failed;

/// Memory of a device's pool; freed, in the order of its streams, when nobody refers to it.
#[pyclass(frozen, weakref, module = "pydotcompute._native")]
pub(crate) struct CudaMemory {
    /// None only while it is dropped.
    buffer: Option<DeviceBuffer>,
}

impl CudaMemory {
    pub(super) fn new(buffer: DeviceBuffer) -> Self {
        Self { buffer: Some(buffer) }
    }

    fn buffer(&self) -> PyResult<&DeviceBuffer> {
        self.buffer.as_ref().ok_or_else(|| PyValueError::new_err("the memory is gone"))
    }
}

impl Drop for CudaMemory {
    fn drop(&mut self) {
        // The driver may take a while.
        if let Some(buffer) = self.buffer.take() {
            Python::attach(|py| py.detach(|| drop(buffer)));
        }
    }
}

/// Where bytes of the host's lie, for a closure that runs without the interpreter's lock.
#[derive(Clone, Copy)]
pub(super) struct Span {
    place: usize,
    bytes: usize,
}

impl Span {
    pub(super) fn of(array: &PyBuffer<u8>, writable: bool) -> PyResult<Self> {
        if !array.is_c_contiguous() {
            return Err(PyBufferError::new_err("the bytes are not contiguous"));
        }
        if writable && array.readonly() {
            return Err(PyBufferError::new_err("the bytes are read only"));
        }
        Ok(Self { place: array.buf_ptr().expose_provenance(), bytes: array.len_bytes() })
    }
}

#[pymethods]
impl CudaMemory {
    /// Where it lies, for kernels and for other libraries of the process.
    #[getter]
    fn address(&self) -> PyResult<u64> {
        Ok(self.buffer()?.address())
    }

    #[getter]
    fn nbytes(&self) -> PyResult<usize> {
        Ok(self.buffer()?.bytes())
    }

    /// The stream that it was taken on.
    #[getter]
    fn stream(&self) -> PyResult<CudaStream> {
        Ok(CudaStream { stream: self.buffer()?.stream().clone() })
    }

    /// Says that the stream uses it: it is freed behind what the stream has been given when it goes.
    fn used_on(&self, stream: &CudaStream) -> PyResult<()> {
        self.buffer()?.used_on(&stream.stream);
        Ok(())
    }

    /// Copies bytes of the host's to it, and waits for that.
    fn write(&self, py: Python<'_>, array: PyBuffer<u8>, stream: &CudaStream) -> PyResult<()> {
        let buffer = self.buffer()?;
        let span = Span::of(&array, false)?;
        fits(buffer, span.bytes)?;
        buffer.used_on(&stream.stream);
        let address = buffer.address();
        py.detach(|| write(&stream.stream, address, span)).map_err(|error| failed(py, &error))
    }

    /// Copies it to bytes of the host's, and waits for that.
    fn read(&self, py: Python<'_>, array: PyBuffer<u8>, stream: &CudaStream) -> PyResult<()> {
        let buffer = self.buffer()?;
        let span = Span::of(&array, true)?;
        fits(buffer, span.bytes)?;
        buffer.used_on(&stream.stream);
        let address = buffer.address();
        py.detach(|| read(&stream.stream, span, address)).map_err(|error| failed(py, &error))
    }

    /// Copies another library's memory of this device to it, in the order of the stream, and waits
    /// for that. It must be as long, and contiguous.
    fn copy_from(
        &self,
        py: Python<'_>,
        address: u64,
        nbytes: usize,
        stream: &CudaStream,
    ) -> PyResult<()> {
        let buffer = self.buffer()?;
        fits(buffer, nbytes)?;
        buffer.used_on(&stream.stream);
        let to = buffer.address();
        let copied = py.detach(|| {
            // SAFETY: inside the buffer, as just checked; that the other is there is the duty of
            // the caller, as this method says; waited for.
            unsafe { stream.stream.copy_raw(to, address, nbytes) }?;
            stream.stream.synchronize()
        });
        copied.map_err(|error| failed(py, &error))
    }

    /// Sets all its bytes, in the order of the stream.
    fn fill(&self, py: Python<'_>, value: u8, stream: &CudaStream) -> PyResult<()> {
        let buffer = self.buffer()?;
        py.detach(|| stream.stream.fill(buffer, value)).map_err(|error| failed(py, &error))
    }

    fn __repr__(&self) -> String {
        let told = self.buffer.as_ref().map_or((0, 0), |found| (found.address(), found.bytes()));
        format!("CudaMemory(address={:#x}, nbytes={})", told.0, told.1)
    }
}

fn fits(buffer: &DeviceBuffer, bytes: usize) -> PyResult<()> {
    if bytes <= buffer.bytes() {
        return Ok(());
    }
    let text = format!("{bytes} bytes do not fit into {} bytes", buffer.bytes());
    Err(PyValueError::new_err(text))
}

/// Copies to memory of the device's, and waits for that.
pub(super) fn write(stream: &Stream, address: u64, from: Span) -> Result<(), ComputeError> {
    let place = ptr::with_exposed_provenance(from.place);
    // SAFETY: a buffer of Python's, which is held, and memory of the device's that the caller has
    // checked, or whose owner vouches for it; waited for.
    unsafe { stream.write_raw(address, place, from.bytes) }?;
    stream.synchronize()
}

/// Copies from memory of the device's, and waits for that.
pub(super) fn read(stream: &Stream, to: Span, address: u64) -> Result<(), ComputeError> {
    let place = ptr::with_exposed_provenance_mut(to.place);
    // SAFETY: as above.
    unsafe { stream.read_raw(place, address, to.bytes) }?;
    stream.synchronize()
}
