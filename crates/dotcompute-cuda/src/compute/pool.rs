//! The pool of a device: memory that is taken and freed in the order of a stream.

use std::ffi::{c_int, c_void};
use std::ptr;

use super::ComputeError;
use super::calls::PoolProperties;
use super::context::{Context, Later};
use super::memory::DeviceBuffer;
use super::stream::Stream;

// CUmemPool_attribute
const REUSE_ALLOW_INTERNAL_DEPENDENCIES: c_int = 3;
const RELEASE_THRESHOLD: c_int = 4;
const RESERVED: c_int = 5;
const RESERVED_HIGH: c_int = 6;

/// `CUDA_ERROR_OUT_OF_MEMORY`.
const OUT_OF_MEMORY: c_int = 2;

/// The driver's pool.
#[derive(Clone, Copy, Debug)]
pub(super) struct RawPool(*mut c_void);

// SAFETY: a name that the driver takes from any thread.
unsafe impl Send for RawPool {}
// SAFETY: as above.
unsafe impl Sync for RawPool {}

/// What the pool was asked for.
#[derive(Debug, Default)]
pub(super) struct Books {
    used_bytes: u64,
    used_most_bytes: u64,
    buffers: u64,
    limit_bytes: Option<u64>,
    allocations: u64,
    refusals: u64,
}

impl Books {
    pub(super) fn give_back(&mut self, bytes: usize) {
        self.used_bytes -= bytes as u64;
        self.buffers -= 1;
    }
}

/// What a pool holds, at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolStatistics {
    /// What buffers have.
    pub used_bytes: u64,
    /// The most that buffers had at once.
    pub used_most_bytes: u64,
    /// What the pool took of the device, in use or not.
    pub reserved_bytes: u64,
    /// The most that it ever took.
    pub reserved_most_bytes: u64,
    /// Buffers that live.
    pub buffers: u64,
    /// Buffers that were made.
    pub allocations: u64,
    /// Buffers that were refused.
    pub refusals: u64,
    /// The limit, if there is one.
    pub limit_bytes: Option<u64>,
}

impl RawPool {
    /// A pool that keeps what it has, and never makes one stream wait for another in order to use
    /// memory again: with a resident grid in that other stream it would wait for good.
    pub(super) fn make(context: &Context) -> Result<Self, ComputeError> {
        let properties = PoolProperties {
            allocation: 1,
            handles: 0,
            location: 1,
            device: context.ordinal(),
            security: ptr::null_mut(),
            reserved: [0; 8],
        };
        let mut raw = ptr::null_mut();
        context.call("cuMemPoolCreate", |calls| {
            // SAFETY: both outlive the call.
            unsafe { (calls.pool_create)(&mut raw, &properties) }
        })?;
        let (mut never, mut always): (c_int, u64) = (0, u64::MAX);
        context.call("cuMemPoolSetAttribute", |calls| {
            let value = ptr::from_mut(&mut never).cast();
            // SAFETY: an int, as this attribute is.
            unsafe { (calls.pool_set)(raw, REUSE_ALLOW_INTERNAL_DEPENDENCIES, value) }
        })?;
        context.call("cuMemPoolSetAttribute", |calls| {
            let value = ptr::from_mut(&mut always).cast();
            // SAFETY: a 64-bit number, as this attribute is.
            unsafe { (calls.pool_set)(raw, RELEASE_THRESHOLD, value) }
        })?;
        Ok(Self(raw))
    }
}

/// The pool of a device; one for all of the process that takes memory here. Thread-safe.
#[derive(Clone, Debug)]
pub struct Pool {
    context: Context,
    raw: RawPool,
}

impl Pool {
    pub(super) fn new(context: Context, raw: RawPool) -> Self {
        Self { context, raw }
    }

    /// Takes memory of unknown content, in the order of `stream`: work that is given to it later
    /// may use it, and other streams when they have waited for it.
    ///
    /// # Errors
    ///
    /// [`ComputeError::OutOfMemory`], after what the pool has cached was tried; or what the driver
    /// said.
    pub fn allocate(&self, bytes: usize, stream: &Stream) -> Result<DeviceBuffer, ComputeError> {
        let asked = bytes as u64;
        {
            let mut books = self.context.books();
            let fits = |limit: u64| asked <= limit.saturating_sub(books.used_bytes);
            if books.limit_bytes.is_some_and(|limit| !fits(limit)) {
                books.refusals += 1;
                let limit_bytes = books.limit_bytes;
                drop(books);
                return Err(self.out_of_memory(asked, limit_bytes));
            }
            books.used_bytes += asked;
            books.used_most_bytes = books.used_most_bytes.max(books.used_bytes);
            books.buffers += 1;
        }
        match self.take(bytes, stream) {
            Ok(address) => {
                self.context.books().allocations += 1;
                Ok(DeviceBuffer::new(stream.clone(), address, bytes))
            }
            Err(error) => {
                let mut books = self.context.books();
                books.give_back(bytes);
                books.refusals += 1;
                Err(error)
            }
        }
    }

    fn take(&self, bytes: usize, stream: &Stream) -> Result<u64, ComputeError> {
        let mut address = 0;
        let mut code = self.ask(&mut address, bytes, stream)?;
        if code == OUT_OF_MEMORY && !self.context.is_held() {
            // What was freed comes back when the stream gets there; what is cached may be too small.
            stream.synchronize()?;
            self.trim_now(0)?;
            code = self.ask(&mut address, bytes, stream)?;
        }
        match code {
            0 => Ok(address),
            OUT_OF_MEMORY => Err(self.out_of_memory(bytes as u64, None)),
            code => Err(self.context.error("cuMemAllocFromPoolAsync", code)),
        }
    }

    fn ask(&self, address: &mut u64, bytes: usize, stream: &Stream) -> Result<c_int, ComputeError> {
        self.context.code(|calls| {
            // SAFETY: `address` outlives the call; a live pool and a live stream.
            unsafe { (calls.alloc)(address, bytes.max(1), self.raw.0, stream.raw()) }
        })
    }

    fn out_of_memory(&self, requested_bytes: u64, limit_bytes: Option<u64>) -> ComputeError {
        let used_bytes = self.context.books().used_bytes;
        let info = self.context.memory_info();
        let (free_bytes, total_bytes) =
            info.map_or((0, 0), |info| (info.free_bytes, info.total_bytes));
        ComputeError::OutOfMemory {
            requested_bytes,
            used_bytes: used_bytes.saturating_sub(if limit_bytes.is_some() {
                0
            } else {
                requested_bytes
            }),
            limit_bytes,
            free_bytes,
            total_bytes,
        }
    }

    /// Bounds what buffers have together; none lifts the bound. What the pool has cached beyond it
    /// goes back to the device.
    ///
    /// # Errors
    ///
    /// What the driver said.
    pub fn set_limit(&self, limit_bytes: Option<u64>) -> Result<(), ComputeError> {
        self.context.books().limit_bytes = limit_bytes;
        if let Some(limit) = limit_bytes {
            self.trim(usize::try_from(limit).unwrap_or(usize::MAX))?;
        }
        Ok(())
    }

    /// Gives back to the device what no buffer has, down to `keep_bytes` in all. Returns how much
    /// went. While frees are held ([`Context::hold_frees`]) it is put off, and nothing goes yet.
    ///
    /// # Errors
    ///
    /// What the driver said.
    pub fn trim(&self, keep_bytes: usize) -> Result<u64, ComputeError> {
        if self.context.is_held() {
            self.context.free_later(Later::Trim(keep_bytes));
            return Ok(0);
        }
        self.trim_now(keep_bytes)
    }

    pub(super) fn trim_now(&self, keep_bytes: usize) -> Result<u64, ComputeError> {
        let before = self.number(RESERVED)?;
        self.context.call("cuMemPoolTrimTo", |calls| {
            // SAFETY: a live pool.
            unsafe { (calls.pool_trim)(self.raw.0, keep_bytes) }
        })?;
        Ok(before.saturating_sub(self.number(RESERVED)?))
    }

    /// What it holds.
    ///
    /// # Errors
    ///
    /// What the driver said.
    pub fn statistics(&self) -> Result<PoolStatistics, ComputeError> {
        let (reserved_bytes, reserved_most_bytes) =
            (self.number(RESERVED)?, self.number(RESERVED_HIGH)?);
        let books = self.context.books();
        Ok(PoolStatistics {
            used_bytes: books.used_bytes,
            used_most_bytes: books.used_most_bytes,
            reserved_bytes,
            reserved_most_bytes,
            buffers: books.buffers,
            allocations: books.allocations,
            refusals: books.refusals,
            limit_bytes: books.limit_bytes,
        })
    }

    fn number(&self, attribute: c_int) -> Result<u64, ComputeError> {
        let mut value = 0_u64;
        self.context.call("cuMemPoolGetAttribute", |calls| {
            let place = ptr::from_mut(&mut value).cast();
            // SAFETY: a 64-bit number, as these attributes are.
            unsafe { (calls.pool_get)(self.raw.0, attribute, place) }
        })?;
        Ok(value)
    }
}
