//! Streams, and events in them.

use std::ffi::{c_int, c_uint, c_void};
use std::ptr;
use std::sync::Arc;

#[cfg(not(loom))]
use tokio::sync::oneshot;

use super::ComputeError;
use super::context::{Context, told};
use super::memory::DeviceBuffer;

/// `CU_STREAM_NON_BLOCKING`.
const NON_BLOCKING: c_uint = 1;

/// `CUDA_ERROR_NOT_READY`.
const NOT_READY: c_int = 600;

/// `CU_STREAM_LEGACY` and `CU_STREAM_PER_THREAD`.
const LEGACY: usize = 1;
const PER_THREAD: usize = 2;

/// A queue of work on a device. Clones are the same stream; the last one destroys it, which waits
/// for nothing: what it was given is done first. Thread-safe; work given by several threads is done
/// in some order.
#[derive(Clone, Debug)]
pub struct Stream(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    context: Context,
    raw: *mut c_void,
    owned: bool,
}

// SAFETY: `raw` is a name that the driver takes from any thread.
unsafe impl Send for Inner {}
// SAFETY: as above.
unsafe impl Sync for Inner {}

impl Drop for Inner {
    fn drop(&mut self) {
        if self.owned {
            let raw = self.raw;
            let destroyed = self.context.call("cuStreamDestroy", |calls| {
                // SAFETY: a live stream, destroyed once.
                unsafe { (calls.stream_destroy)(raw) }
            });
            if let Err(error) = destroyed {
                told(&error);
            }
        }
    }
}

impl Stream {
    pub(super) fn new(context: &Context) -> Result<Self, ComputeError> {
        let mut raw = ptr::null_mut();
        context.call("cuStreamCreate", |calls| {
            // SAFETY: `raw` outlives the call.
            unsafe { (calls.stream_create)(&mut raw, NON_BLOCKING) }
        })?;
        Ok(Self(Arc::new(Inner { context: context.clone(), raw, owned: true })))
    }

    /// The context's legacy stream, which waits for all streams that are not made as non-blocking,
    /// and they for it. It is the default of CuPy, PyTorch and numba.
    pub fn legacy(context: &Context) -> Self {
        Self::lent(context, LEGACY)
    }

    /// The calling thread's own default stream.
    pub fn per_thread(context: &Context) -> Self {
        Self::lent(context, PER_THREAD)
    }

    /// Another library's stream, by its handle.
    ///
    /// # Safety
    ///
    /// - It is a stream of this context, and lives as long as what comes back, and as what that is
    ///   given to: buffers that were used on it.
    pub unsafe fn foreign(context: &Context, handle: usize) -> Self {
        Self::lent(context, handle)
    }

    fn lent(context: &Context, handle: usize) -> Self {
        let raw = ptr::with_exposed_provenance_mut(handle);
        Self(Arc::new(Inner { context: context.clone(), raw, owned: false }))
    }

    /// Its context.
    pub fn context(&self) -> &Context {
        &self.0.context
    }

    /// What the driver, and other libraries, know it by.
    pub fn handle(&self) -> usize {
        self.0.raw.expose_provenance()
    }

    pub(super) fn raw(&self) -> *mut c_void {
        self.0.raw
    }

    pub(super) fn is(&self, other: &Self) -> bool {
        self.0.raw == other.0.raw && self.0.context == other.0.context
    }

    /// Waits until all is done that it was given so far.
    ///
    /// # Errors
    ///
    /// What went wrong in it, or on the device.
    pub fn synchronize(&self) -> Result<(), ComputeError> {
        self.0.context.call("cuStreamSynchronize", |calls| {
            // SAFETY: a live stream.
            unsafe { (calls.stream_synchronize)(self.raw()) }
        })
    }

    /// Whether all is done that it was given.
    ///
    /// # Errors
    ///
    /// As for [`Stream::synchronize`].
    pub fn is_idle(&self) -> Result<bool, ComputeError> {
        // SAFETY: a live stream.
        let code = self.0.context.code(|calls| unsafe { (calls.stream_query)(self.raw()) })?;
        ready(&self.0.context, "cuStreamQuery", code)
    }

    /// Ready once all is done that the stream was given before this call.
    ///
    /// # Errors
    ///
    /// What went wrong before it.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost if the future is dropped.
    #[cfg(not(loom))]
    pub fn done(&self) -> impl Future<Output = Result<(), ComputeError>> + use<> {
        /// # Safety
        ///
        /// - `told` is a box of a sender that was given up for this call.
        unsafe extern "C" fn tell(_stream: *mut c_void, code: c_int, told: *mut c_void) {
            // SAFETY: given up by `done` for this call, which is the only one.
            let told = unsafe { Box::from_raw(told.cast::<oneshot::Sender<c_int>>()) };
            let _ = told.send(code); // nobody may wait any more
        }
        let (told, hears) = oneshot::channel::<c_int>();
        let told = Box::into_raw(Box::new(told));
        let context = self.context().clone();
        let given = context.call("cuStreamAddCallback", |calls| {
            // SAFETY: a live stream; the callback takes back what it is given, calls nothing of the
            // driver's, and is called once at most.
            unsafe { (calls.stream_callback)(self.raw(), tell, told.cast(), 0) }
        });
        // Where that fails the box stays: an error may be that of work before, and the call be made.
        async move {
            given?;
            match hears.await {
                Ok(0) => Ok(()),
                Ok(code) => Err(context.error("cuStreamAddCallback", code)),
                Err(_) => Err(ComputeError::Unsupported("a callback that is never called")),
            }
        }
    }

    /// An event behind all that it was given so far.
    ///
    /// # Errors
    ///
    /// What the driver said.
    pub fn record(&self) -> Result<Event, ComputeError> {
        let event = Event::new(&self.0.context)?;
        self.0.context.call("cuEventRecord", |calls| {
            // SAFETY: a live event and a live stream of one context.
            unsafe { (calls.event_record)(event.raw, self.raw()) }
        })?;
        Ok(event)
    }

    /// Lets what it is given from now on wait for the event; the caller does not wait.
    ///
    /// # Errors
    ///
    /// What the driver said.
    pub fn wait(&self, event: &Event) -> Result<(), ComputeError> {
        self.0.context.call("cuStreamWaitEvent", |calls| {
            // SAFETY: a live event and a live stream; the driver keeps what it needs of the event.
            unsafe { (calls.stream_wait)(self.raw(), event.raw, 0) }
        })
    }

    /// Lets what it is given from now on wait for all that `other` was given so far.
    ///
    /// # Errors
    ///
    /// What the driver said.
    pub fn follow(&self, other: &Self) -> Result<(), ComputeError> {
        if self.is(other) {
            return Ok(());
        }
        self.wait(&other.record()?)
    }

    /// Copies `from` to the buffer at `offset_bytes`, and waits for it.
    ///
    /// # Errors
    ///
    /// It does not fit, or what the driver said.
    pub fn write(
        &self,
        to: &DeviceBuffer,
        offset_bytes: usize,
        from: &[u8],
    ) -> Result<(), ComputeError> {
        let address = to.address_of(offset_bytes, from.len())?;
        to.used_on(self);
        // SAFETY: inside both, and waited for while both are borrowed.
        unsafe { self.write_raw(address, from.as_ptr(), from.len()) }?;
        self.synchronize()
    }

    /// Copies the buffer from `offset_bytes` on to `to`, and waits for it.
    ///
    /// # Errors
    ///
    /// It does not reach so far, or what the driver said.
    pub fn read(
        &self,
        from: &DeviceBuffer,
        offset_bytes: usize,
        to: &mut [u8],
    ) -> Result<(), ComputeError> {
        let address = from.address_of(offset_bytes, to.len())?;
        from.used_on(self);
        // SAFETY: inside both, and waited for while both are borrowed.
        unsafe { self.read_raw(to.as_mut_ptr(), address, to.len()) }?;
        self.synchronize()
    }

    /// Copies from one buffer to another of the same device, in the order of this stream.
    ///
    /// # Errors
    ///
    /// It does not fit, or what the driver said.
    pub fn copy(
        &self,
        to: &DeviceBuffer,
        to_offset_bytes: usize,
        from: &DeviceBuffer,
        from_offset_bytes: usize,
        bytes: usize,
    ) -> Result<(), ComputeError> {
        let target = to.address_of(to_offset_bytes, bytes)?;
        let source = from.address_of(from_offset_bytes, bytes)?;
        to.used_on(self);
        from.used_on(self);
        // SAFETY: inside both, which are freed behind this copy.
        unsafe { self.copy_raw(target, source, bytes) }
    }

    /// Sets all bytes of the buffer, in the order of this stream.
    ///
    /// # Errors
    ///
    /// What the driver said.
    pub fn fill(&self, buffer: &DeviceBuffer, value: u8) -> Result<(), ComputeError> {
        buffer.used_on(self);
        let (address, bytes) = (buffer.address(), buffer.bytes());
        if bytes == 0 {
            return Ok(());
        }
        self.0.context.call("cuMemsetD8Async", |calls| {
            // SAFETY: inside the buffer, which is freed behind this.
            unsafe { (calls.fill)(address, value, bytes, self.raw()) }
        })
    }

    /// Copies from the host in the order of this stream. Pinned memory is read when the copy's turn
    /// comes.
    ///
    /// # Errors
    ///
    /// What the driver said.
    ///
    /// # Safety
    ///
    /// - So many bytes of device memory are at `to`, and at `from` of the host's, and stay, and
    ///   nobody writes those, until the stream has done it.
    pub unsafe fn write_raw(
        &self,
        to: u64,
        from: *const u8,
        bytes: usize,
    ) -> Result<(), ComputeError> {
        if bytes == 0 {
            return Ok(());
        }
        self.0.context.call("cuMemcpyHtoDAsync", |calls| {
            // SAFETY: as the caller promises.
            unsafe { (calls.copy_in)(to, from.cast(), bytes, self.raw()) }
        })
    }

    /// Copies to the host in the order of this stream.
    ///
    /// # Errors
    ///
    /// What the driver said.
    ///
    /// # Safety
    ///
    /// - So many bytes of device memory are at `from`, and at `to` of the host's, and stay, and
    ///   nobody uses those, until the stream has done it.
    pub unsafe fn read_raw(
        &self,
        to: *mut u8,
        from: u64,
        bytes: usize,
    ) -> Result<(), ComputeError> {
        if bytes == 0 {
            return Ok(());
        }
        self.0.context.call("cuMemcpyDtoHAsync", |calls| {
            // SAFETY: as the caller promises.
            unsafe { (calls.copy_out)(to.cast(), from, bytes, self.raw()) }
        })
    }

    /// Copies on the device in the order of this stream.
    ///
    /// # Errors
    ///
    /// What the driver said.
    ///
    /// # Safety
    ///
    /// - So many bytes of device memory are at both, and stay until the stream has done it.
    pub unsafe fn copy_raw(&self, to: u64, from: u64, bytes: usize) -> Result<(), ComputeError> {
        if bytes == 0 {
            return Ok(());
        }
        self.0.context.call("cuMemcpyDtoDAsync", |calls| {
            // SAFETY: as the caller promises.
            unsafe { (calls.copy)(to, from, bytes, self.raw()) }
        })
    }
}

/// A point in a stream. Thread-safe.
#[derive(Debug)]
pub struct Event {
    context: Context,
    raw: *mut c_void,
}

// SAFETY: `raw` is a name that the driver takes from any thread.
unsafe impl Send for Event {}
// SAFETY: as above.
unsafe impl Sync for Event {}

impl Event {
    fn new(context: &Context) -> Result<Self, ComputeError> {
        let mut raw = ptr::null_mut();
        context.call("cuEventCreate", |calls| {
            // SAFETY: `raw` outlives the call.
            unsafe { (calls.event_create)(&mut raw, 0) }
        })?;
        Ok(Self { context: context.clone(), raw })
    }

    /// Whether the stream is past it.
    ///
    /// # Errors
    ///
    /// What went wrong before it.
    pub fn is_done(&self) -> Result<bool, ComputeError> {
        // SAFETY: a live event.
        let code = self.context.code(|calls| unsafe { (calls.event_query)(self.raw) })?;
        ready(&self.context, "cuEventQuery", code)
    }

    /// Waits until the stream is past it.
    ///
    /// # Errors
    ///
    /// What went wrong before it.
    pub fn synchronize(&self) -> Result<(), ComputeError> {
        self.context.call("cuEventSynchronize", |calls| {
            // SAFETY: a live event.
            unsafe { (calls.event_synchronize)(self.raw) }
        })
    }

    /// The time from `earlier` to this one, in milliseconds, to about half a microsecond.
    ///
    /// # Errors
    ///
    /// One of them was not passed yet.
    pub fn since_ms(&self, earlier: &Self) -> Result<f32, ComputeError> {
        let mut elapsed_ms = 0.0;
        self.context.call("cuEventElapsedTime", |calls| {
            // SAFETY: live events; the time outlives the call.
            unsafe { (calls.event_elapsed)(&mut elapsed_ms, earlier.raw, self.raw) }
        })?;
        Ok(elapsed_ms)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        let raw = self.raw;
        let destroyed = self.context.call("cuEventDestroy", |calls| {
            // SAFETY: a live event, destroyed once; the driver keeps what waits for it.
            unsafe { (calls.event_destroy)(raw) }
        });
        if let Err(error) = destroyed {
            told(&error);
        }
    }
}

fn ready(context: &Context, call: &'static str, code: c_int) -> Result<bool, ComputeError> {
    match code {
        0 => Ok(true),
        NOT_READY => Ok(false),
        code => Err(context.error(call, code)),
    }
}
