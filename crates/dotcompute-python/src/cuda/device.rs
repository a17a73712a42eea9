//! Devices, their streams and events.

use std::sync::OnceLock;

use dotcompute_cuda::Version;
use dotcompute_cuda::compute::{ComputeError, Context, Event, Module, Stream};
use dotcompute_cuda::driver::Driver;
use pyo3::buffer::PyBuffer;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::code::CudaModule;
use super::memory::{self, CudaMemory, Span};
use super::{exception, failed, missing};
use crate::asyncio;
use crate::buffer::HostPool;

/// How many CUDA devices this process may use.
///
/// Raises `CUDAError`, with the reason and what to do, where there is no driver that can be used.
#[pyfunction]
pub(crate) fn cuda_devices(py: Python<'_>) -> PyResult<usize> {
    py.detach(|| {
        let driver = Driver::get().map_err(missing)?;
        driver.devices().map(|devices| devices.len()).map_err(|error| error.to_string())
    })
    .map_err(|reason| exception(py, "CUDAError", reason))
}

/// One CUDA device, with a stream of its own for copies. Its context is made when it is needed.
#[pyclass(frozen, module = "pydotcompute._native")]
pub(crate) struct CudaDevice {
    context: Context,
    /// Made by the first call that needs it.
    stream: OnceLock<Stream>,
}

impl CudaDevice {
    fn copies(&self) -> Result<&Stream, ComputeError> {
        match self.stream.get() {
            Some(stream) => Ok(stream),
            None => {
                let made = self.context.stream()?;
                // Another thread may have been quicker: its stream is the one.
                Ok(self.stream.get_or_init(|| made))
            }
        }
    }
}

#[pymethods]
impl CudaDevice {
    #[new]
    fn new(py: Python<'_>, ordinal: u32) -> PyResult<Self> {
        let context = py.detach(|| Context::get(ordinal));
        context
            .map(|context| Self { context, stream: OnceLock::new() })
            .map_err(|error| failed(py, &error))
    }

    #[getter]
    fn ordinal(&self) -> u32 {
        self.context.device().ordinal
    }

    #[getter]
    fn name(&self) -> &str {
        &self.context.device().name
    }

    /// Major and minor number.
    #[getter]
    fn compute_capability(&self) -> (u32, u32) {
        let Version { major, minor } = self.context.device().compute_capability;
        (major, minor)
    }

    #[getter]
    fn multiprocessors(&self) -> u32 {
        self.context.device().multiprocessors
    }

    #[getter]
    fn memory_bytes(&self) -> u64 {
        self.context.device().memory_bytes
    }

    /// What a launch may have.
    fn limits<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let limits = self.context.limits();
        let told = PyDict::new(py);
        told.set_item("block_threads", limits.block_threads)?;
        told.set_item("block", <(u32, u32, u32)>::from(limits.block))?;
        told.set_item("grid", <(u32, u32, u32)>::from(limits.grid))?;
        told.set_item("warp_threads", limits.warp_threads)?;
        told.set_item("shared_bytes", limits.shared_bytes)?;
        told.set_item("shared_most_bytes", limits.shared_most_bytes)?;
        Ok(told)
    }

    /// Free and total bytes.
    fn memory_info(&self, py: Python<'_>) -> PyResult<(u64, u64)> {
        let info = py.detach(|| self.context.memory_info());
        info.map(|info| (info.free_bytes, info.total_bytes)).map_err(|error| failed(py, &error))
    }

    /// The stream that copies are made on.
    #[getter]
    fn stream(&self, py: Python<'_>) -> PyResult<CudaStream> {
        let stream = py.detach(|| self.copies().cloned());
        stream.map(|stream| CudaStream { stream }).map_err(|error| failed(py, &error))
    }

    /// A stream that waits for no other.
    fn new_stream(&self, py: Python<'_>) -> PyResult<CudaStream> {
        let stream = py.detach(|| self.context.stream());
        stream.map(|stream| CudaStream { stream }).map_err(|error| failed(py, &error))
    }

    /// Another library's stream by its handle; 1 is the legacy stream, 2 the thread's own. The
    /// stream must outlive what comes back and the memory that it is used with.
    fn stream_at(&self, handle: usize) -> CudaStream {
        // SAFETY: that it is a stream, and lives, is the duty of whoever got the handle from another
        // library, as this method says.
        CudaStream { stream: unsafe { Stream::foreign(&self.context, handle) } }
    }

    /// Memory of the pool, of unknown content, in the order of the stream.
    #[pyo3(signature = (nbytes, stream = None))]
    fn allocate(
        &self,
        py: Python<'_>,
        nbytes: usize,
        stream: Option<&CudaStream>,
    ) -> PyResult<CudaMemory> {
        let buffer = py.detach(|| {
            let stream = match stream {
                Some(stream) => &stream.stream,
                None => self.copies()?,
            };
            self.context.pool()?.allocate(nbytes, stream)
        });
        buffer.map(CudaMemory::new).map_err(|error| failed(py, &error))
    }

    /// What the pool holds.
    fn pool_stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let statistics = py.detach(|| self.context.pool()?.statistics());
        let now = statistics.map_err(|error| failed(py, &error))?;
        let told = PyDict::new(py);
        for (name, number) in [
            ("used_bytes", now.used_bytes),
            ("peak_used_bytes", now.used_most_bytes),
            ("total_bytes", now.reserved_bytes),
            ("peak_total_bytes", now.reserved_most_bytes),
            ("used_blocks", now.buffers),
            ("allocations", now.allocations),
            ("refusals", now.refusals),
        ] {
            told.set_item(name, number)?;
        }
        told.set_item("limit_bytes", now.limit_bytes)?;
        Ok(told)
    }

    /// Bounds what of the pool is in use; None lifts the bound.
    #[pyo3(signature = (limit_bytes))]
    fn set_pool_limit(&self, py: Python<'_>, limit_bytes: Option<u64>) -> PyResult<()> {
        let set = py.detach(|| self.context.pool()?.set_limit(limit_bytes));
        set.map_err(|error| failed(py, &error))
    }

    /// Gives back to the device what nobody uses; returns how many bytes went.
    #[pyo3(signature = (keep_bytes = 0))]
    fn trim_pool(&self, py: Python<'_>, keep_bytes: usize) -> PyResult<u64> {
        // What was dropped comes back to the pool when its stream gets there.
        let trimmed = py.detach(|| {
            self.copies()?.synchronize()?;
            self.context.pool()?.trim(keep_bytes)
        });
        trimmed.map_err(|error| failed(py, &error))
    }

    /// A pool of pinned memory of the host's.
    fn pinned_pool(&self) -> HostPool {
        HostPool::pinned(self.context.clone())
    }

    /// Loads a cubin, or PTX, that a compiler for devices made.
    fn load(&self, py: Python<'_>, image: &[u8]) -> PyResult<CudaModule> {
        // SAFETY: that it is what a compiler made is the duty of the caller, as this method says.
        let module = py.detach(|| unsafe { Module::load(&self.context, image) });
        module.map(CudaModule::new).map_err(|error| failed(py, &error))
    }

    fn __repr__(&self) -> String {
        let device = self.context.device();
        format!("CudaDevice({}, {:?})", device.ordinal, device.name)
    }
}

/// A queue of work on a device.
#[pyclass(frozen, module = "pydotcompute._native")]
pub(crate) struct CudaStream {
    pub(super) stream: Stream,
}

#[pymethods]
impl CudaStream {
    /// What other libraries know it by.
    #[getter]
    fn handle(&self) -> usize {
        self.stream.handle()
    }

    /// The same, under CuPy's name.
    #[getter]
    fn ptr(&self) -> usize {
        self.stream.handle()
    }

    /// The protocol of CUDA Python.
    fn __cuda_stream__(&self) -> (u32, usize) {
        (0, self.stream.handle())
    }

    /// Waits until all is done that it was given.
    fn synchronize(&self, py: Python<'_>) -> PyResult<()> {
        py.detach(|| self.stream.synchronize()).map_err(|error| failed(py, &error))
    }

    /// Ready once all is done that it was given before this call; for `await`.
    fn done(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        let done = py.detach(|| self.stream.done());
        asyncio::future(py, async move {
            let done = done.await;
            Python::attach(|py| match done {
                Ok(()) => Ok(py.None()),
                Err(error) => Err(failed(py, &error)),
            })
        })
    }

    /// Whether all is done that it was given.
    fn is_idle(&self, py: Python<'_>) -> PyResult<bool> {
        py.detach(|| self.stream.is_idle()).map_err(|error| failed(py, &error))
    }

    /// An event behind all that it was given so far.
    fn record(&self, py: Python<'_>) -> PyResult<CudaEvent> {
        let event = py.detach(|| self.stream.record());
        event.map(|event| CudaEvent { event }).map_err(|error| failed(py, &error))
    }

    /// Lets what it is given from now on wait for the event.
    fn wait(&self, py: Python<'_>, event: &CudaEvent) -> PyResult<()> {
        py.detach(|| self.stream.wait(&event.event)).map_err(|error| failed(py, &error))
    }

    /// Lets what it is given from now on wait for all that another stream was given so far.
    fn follow(&self, py: Python<'_>, other: &Self) -> PyResult<()> {
        py.detach(|| self.stream.follow(&other.stream)).map_err(|error| failed(py, &error))
    }

    /// Copies memory of a device's, by its address, to bytes of the host's, and waits for that. The
    /// memory must be there, and as long.
    fn read_at(&self, py: Python<'_>, address: u64, array: PyBuffer<u8>) -> PyResult<()> {
        let span = Span::of(&array, true)?;
        let read = py.detach(|| memory::read(&self.stream, span, address));
        read.map_err(|error| failed(py, &error))
    }

    /// Copies bytes of the host's to memory of a device's, by its address, and waits for that. The
    /// memory must be there, and as long.
    fn write_at(&self, py: Python<'_>, address: u64, array: PyBuffer<u8>) -> PyResult<()> {
        let span = Span::of(&array, false)?;
        let written = py.detach(|| memory::write(&self.stream, address, span));
        written.map_err(|error| failed(py, &error))
    }

    fn __eq__(&self, other: &Self) -> bool {
        self.stream.handle() == other.stream.handle()
            && self.stream.context() == other.stream.context()
    }

    fn __hash__(&self) -> usize {
        self.stream.handle()
    }

    fn __repr__(&self) -> String {
        format!("CudaStream({:#x})", self.stream.handle())
    }
}

/// A point in a stream.
#[pyclass(frozen, module = "pydotcompute._native")]
pub(crate) struct CudaEvent {
    event: Event,
}

#[pymethods]
impl CudaEvent {
    /// Whether its stream is past it.
    fn is_done(&self, py: Python<'_>) -> PyResult<bool> {
        py.detach(|| self.event.is_done()).map_err(|error| failed(py, &error))
    }

    /// Waits until its stream is past it.
    fn synchronize(&self, py: Python<'_>) -> PyResult<()> {
        py.detach(|| self.event.synchronize()).map_err(|error| failed(py, &error))
    }

    /// The time from an earlier event to this one, in milliseconds.
    fn since_ms(&self, py: Python<'_>, earlier: &Self) -> PyResult<f32> {
        py.detach(|| self.event.since_ms(&earlier.event)).map_err(|error| failed(py, &error))
    }
}
