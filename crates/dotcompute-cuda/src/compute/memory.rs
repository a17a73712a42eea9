//! Memory of the device's, and pinned memory of the host's.

use std::ffi::{c_uint, c_void};
use std::ptr::{self, NonNull};
use std::slice;
use std::sync::{Mutex, PoisonError};

use super::ComputeError;
use super::context::{Context, Later, told};
use super::stream::Stream;

/// `CU_MEMHOSTALLOC_PORTABLE | CU_MEMHOSTALLOC_DEVICEMAP`; never write-combined, which the host
/// would read at the pace of the bus.
const PORTABLE_MAPPED: c_uint = 1 | 2;

/// Memory of a device's pool. It is freed in the order of its streams: behind all that the one that it
/// was taken on, and those that it was used on, were given before it is dropped. Thread-safe: what its bytes are
/// when two streams use them at once is up to whoever let them.
#[derive(Debug)]
pub struct DeviceBuffer {
    stream: Stream,
    address: u64,
    bytes: usize,
    /// Other streams that it was used on.
    users: Mutex<Vec<Stream>>,
}

impl DeviceBuffer {
    pub(super) fn new(stream: Stream, address: u64, bytes: usize) -> Self {
        Self { stream, address, bytes, users: Mutex::default() }
    }

    /// Where it lies, for kernels and for other libraries of the process.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// How many bytes it has.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The stream that it was taken on.
    pub fn stream(&self) -> &Stream {
        &self.stream
    }

    /// Says that `stream` was given something that uses it: it is freed behind that. The functions
    /// of [`Stream`] that take buffers say so themselves.
    pub fn used_on(&self, stream: &Stream) {
        if stream.is(&self.stream) {
            return;
        }
        let mut users = self.users.lock().unwrap_or_else(PoisonError::into_inner);
        if !users.iter().any(|known| known.is(stream)) {
            users.push(stream.clone());
        }
    }

    /// The address of a byte, if as many as said follow it.
    pub(super) fn address_of(&self, offset: usize, bytes: usize) -> Result<u64, ComputeError> {
        match offset.checked_add(bytes) {
            Some(end) if end <= self.bytes => Ok(self.address + offset as u64),
            _ => {
                Err(ComputeError::Bounds { offset_bytes: offset, bytes, buffer_bytes: self.bytes })
            }
        }
    }
}

impl Drop for DeviceBuffer {
    fn drop(&mut self) {
        let users = self.users.get_mut().unwrap_or_else(PoisonError::into_inner);
        // On a stream that used it, if there is one: so the one that it was taken on, which may have
        // other work, does not wait for that.
        let last = users.pop().unwrap_or_else(|| self.stream.clone());
        users.push(self.stream.clone());
        for user in users.drain(..) {
            if let Err(error) = last.follow(&user) {
                told(&error);
            }
        }
        let context = self.stream.context();
        let freed = context.call("cuMemFreeAsync", |calls| {
            // SAFETY: taken from the pool once and freed once, behind all uses that were told of.
            unsafe { (calls.free)(self.address, last.raw()) }
        });
        context.books().give_back(self.bytes);
        if let Err(error) = freed {
            told(&error);
        }
    }
}

/// Memory of the host's that does not move, so that copies need no detour, and that the device
/// reaches itself. Freed by a call that a resident grid would hold up, and so not before that is
/// over.
#[derive(Debug)]
pub struct PinnedBuffer {
    context: Context,
    place: NonNull<u8>,
    address: u64,
    bytes: usize,
}

// SAFETY: it owns its memory, which is tied to no thread.
unsafe impl Send for PinnedBuffer {}
// SAFETY: a shared reference only reads.
unsafe impl Sync for PinnedBuffer {}

impl PinnedBuffer {
    /// Takes zeroed memory. This may wait for a resident grid, and takes long: take it early, and
    /// keep it.
    ///
    /// # Errors
    ///
    /// There is not so much, or what the driver said.
    pub fn new(context: &Context, bytes: usize) -> Result<Self, ComputeError> {
        let (mut place, mut address) = (ptr::null_mut::<c_void>(), 0);
        context.call("cuMemHostAlloc", |calls| {
            // SAFETY: `place` outlives the call.
            unsafe { (calls.host_alloc)(&mut place, bytes.max(1), PORTABLE_MAPPED) }
        })?;
        let Some(memory) = NonNull::new(place.cast::<u8>()) else {
            return Err(ComputeError::Unsupported("pinned memory"));
        };
        // From here on it is freed, whatever happens.
        let mut buffer = Self { context: context.clone(), place: memory, address, bytes };
        context.call("cuMemHostGetDevicePointer", |calls| {
            // SAFETY: memory that was just taken as mapped.
            unsafe { (calls.host_address)(&mut address, place, 0) }
        })?;
        buffer.address = address;
        // SAFETY: `bytes` bytes that were just taken.
        unsafe { memory.write_bytes(0, bytes) };
        Ok(buffer)
    }

    /// Where the host finds it.
    pub fn place(&self) -> NonNull<u8> {
        self.place
    }

    /// Where the device finds it.
    pub fn device_address(&self) -> u64 {
        self.address
    }

    /// How many bytes it has.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Its bytes.
    pub fn as_slice(&self) -> &[u8] {
        // SAFETY: as many bytes, initialised; that no copy writes them meanwhile is the duty of
        // whoever started one by a function that is unsafe.
        unsafe { slice::from_raw_parts(self.place.as_ptr(), self.bytes) }
    }

    /// Its bytes, to be written.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: as above.
        unsafe { slice::from_raw_parts_mut(self.place.as_ptr(), self.bytes) }
    }
}

impl Drop for PinnedBuffer {
    fn drop(&mut self) {
        self.context.free_later(Later::Pinned(self.place.as_ptr().cast()));
    }
}
