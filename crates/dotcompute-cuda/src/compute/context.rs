//! A device's primary context: made current for one call, and told what may not be freed yet.

use std::ffi::{c_int, c_void};
use std::fmt;
use std::process;
use std::ptr;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use super::calls::{Calls, ParameterInfo};
use super::pool::{Books, Pool, RawPool};
use super::stream::{Event, Stream};
use super::{ComputeError, Launch};
use crate::driver::{Device, Driver};

/// The primary context of one device. Clones are the same context, as is every other one that
/// [`Context::of`] makes for the device. It is never released. Thread-safe.
#[derive(Clone)]
pub struct Context(Arc<Inner>);

struct Inner {
    driver: &'static Driver,
    calls: Calls,
    parameters: Option<ParameterInfo>,
    device: Device,
    limits: Limits,
    /// Made by the first call that needs it: it takes memory of the device.
    raw: OnceLock<Raw>,
    /// The process that made it: a fork of it has no context.
    process: u32,
    held: Mutex<Held>,
    pool: OnceLock<RawPool>,
    books: Mutex<Books>,
}

/// The driver's context.
#[derive(Clone, Copy)]
struct Raw(*mut c_void);

// SAFETY: a name that the driver takes from any thread.
unsafe impl Send for Raw {}
// SAFETY: as above.
unsafe impl Sync for Raw {}

/// What is not freed yet.
#[derive(Default)]
struct Held {
    holders: usize,
    later: Vec<Later>,
}

/// What is freed by a call that would wait for a resident grid.
#[derive(Debug)]
pub(super) enum Later {
    Pinned(*mut c_void),
    /// Once the launches of it are over.
    Module(*mut c_void, Vec<Event>),
    Trim(usize),
}

// SAFETY: what it has are names that the driver takes from any thread.
unsafe impl Send for Later {}

/// What a launch on a device may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Threads of a block.
    pub block_threads: u32,
    /// Threads of a block in each dimension.
    pub block: [u32; 3],
    /// Blocks of a grid in each dimension.
    pub grid: [u32; 3],
    /// Threads of a warp.
    pub warp_threads: u32,
    /// Shared memory of a block that a kernel gets without asking, in bytes.
    pub shared_bytes: u32,
    /// Shared memory of a block that a kernel may ask for, in bytes.
    pub shared_most_bytes: u32,
    /// Whether memory can be taken in the order of a stream.
    pub pools: bool,
}

/// How much memory a device has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryInfo {
    /// What nobody uses, in bytes.
    pub free_bytes: u64,
    /// All of it, in bytes.
    pub total_bytes: u64,
}

impl Context {
    /// The context of a device of this machine's driver.
    ///
    /// # Errors
    ///
    /// There is no driver, or no such device.
    pub fn get(ordinal: u32) -> Result<Self, ComputeError> {
        Self::of(Driver::get().map_err(Clone::clone)?, ordinal)
    }

    /// The context of a device of this driver. The driver makes it when the first call needs it,
    /// which takes a part of a second, and memory of the device.
    ///
    /// # Errors
    ///
    /// There is no such device, or the driver lacks a function.
    pub fn of(driver: &'static Driver, ordinal: u32) -> Result<Self, ComputeError> {
        static CONTEXTS: Mutex<Vec<Context>> = Mutex::new(Vec::new());
        let mut contexts = CONTEXTS.lock().unwrap_or_else(PoisonError::into_inner);
        let is_it = |context: &&Self| {
            context.0.device.ordinal == ordinal && ptr::eq(context.0.driver, driver)
        };
        if let Some(known) = contexts.iter().find(is_it) {
            return Ok(known.clone());
        }
        let context = Self::make(driver, ordinal)?;
        contexts.push(context.clone());
        Ok(context)
    }

    fn make(driver: &'static Driver, ordinal: u32) -> Result<Self, ComputeError> {
        let number = ordinal.cast_signed();
        let device = driver.device(number)?;
        // SAFETY: a driver, as whoever opened it promised.
        let (calls, parameters) = unsafe { Calls::of(&driver.opened) }?;
        let attribute = |which: c_int| driver.attribute(which, number);
        // CUdevice_attribute
        let limits = Limits {
            block_threads: attribute(1)?,
            block: [attribute(2)?, attribute(3)?, attribute(4)?],
            grid: [attribute(5)?, attribute(6)?, attribute(7)?],
            shared_bytes: attribute(8)?,
            warp_threads: attribute(10)?,
            shared_most_bytes: attribute(97)?,
            pools: attribute(115)? != 0,
        };
        Ok(Self(Arc::new(Inner {
            driver,
            calls,
            parameters,
            device,
            limits,
            raw: OnceLock::new(),
            process: process::id(),
            held: Mutex::default(),
            pool: OnceLock::new(),
            books: Mutex::default(),
        })))
    }

    /// The device.
    pub fn device(&self) -> &Device {
        &self.0.device
    }

    /// What a launch may have.
    pub fn limits(&self) -> Limits {
        self.0.limits
    }

    /// An attribute of the device, by its number in `CUdevice_attribute`.
    ///
    /// # Errors
    ///
    /// There is no such attribute.
    pub fn attribute(&self, attribute: i32) -> Result<u32, ComputeError> {
        Ok(self.0.driver.attribute(attribute, self.0.device.ordinal.cast_signed())?)
    }

    /// How much memory the device has, and how much of it nobody uses.
    ///
    /// # Errors
    ///
    /// What the driver said.
    pub fn memory_info(&self) -> Result<MemoryInfo, ComputeError> {
        let (mut free, mut total) = (0, 0);
        self.call("cuMemGetInfo", |calls| {
            // SAFETY: both outlive the call.
            unsafe { (calls.memory_info)(&mut free, &mut total) }
        })?;
        Ok(MemoryInfo { free_bytes: free as u64, total_bytes: total as u64 })
    }

    /// Which device's memory is at this address; none if it is none of a device's, or no memory. Asks
    /// without waiting.
    ///
    /// # Errors
    ///
    /// What the driver said.
    pub fn device_at(&self, address: u64) -> Result<Option<u32>, ComputeError> {
        // CU_POINTER_ATTRIBUTE_MEMORY_TYPE, and CU_MEMORYTYPE_DEVICE.
        let (mut kind, mut ordinal) = (0_u32, 0_u32);
        // SAFETY: such an attribute is an unsigned number, which outlives the call.
        let code = self.code(|calls| unsafe {
            (calls.pointer_get)(ptr::from_mut(&mut kind).cast(), 2, address)
        })?;
        match (code, kind) {
            (0, 2) => {}
            // CUDA_ERROR_INVALID_VALUE: the driver does not know the address.
            (0 | 1, _) => return Ok(None),
            (code, _) => return Err(self.error("cuPointerGetAttribute", code)),
        }
        // CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL
        self.call("cuPointerGetAttribute", |calls| {
            // SAFETY: as above.
            unsafe { (calls.pointer_get)(ptr::from_mut(&mut ordinal).cast(), 9, address) }
        })?;
        Ok(Some(ordinal))
    }

    /// The device's pool.
    ///
    /// # Errors
    ///
    /// The device has none, or what the driver said.
    pub fn pool(&self) -> Result<Pool, ComputeError> {
        if !self.0.limits.pools {
            return Err(ComputeError::Unsupported("memory pools"));
        }
        let raw = match self.0.pool.get() {
            Some(raw) => *raw,
            None => {
                let made = RawPool::make(self)?;
                // Another thread may have been quicker; its pool is the one, and this stays empty.
                *self.0.pool.get_or_init(|| made)
            }
        };
        Ok(Pool::new(self.clone(), raw))
    }

    /// A stream that waits for no other, nor any for it.
    ///
    /// # Errors
    ///
    /// What the driver said.
    pub fn stream(&self) -> Result<Stream, ComputeError> {
        Stream::new(self)
    }

    /// Puts off all that would wait for a resident grid when it frees, until what comes back is
    /// dropped, and by the last who has one.
    pub fn hold_frees(&self) -> FreesHeld {
        self.held().holders += 1;
        FreesHeld { context: self.clone() }
    }

    /// How many frees are put off.
    pub fn frees_put_off(&self) -> usize {
        self.held().later.len()
    }

    /// Launches, copies and the rest are refused where the process is a fork.
    pub(super) fn check_process(&self) -> Result<(), ComputeError> {
        if process::id() == self.0.process { Ok(()) } else { Err(ComputeError::Forked) }
    }

    /// Makes a call with the context current.
    pub(super) fn call(
        &self,
        name: &'static str,
        call: impl FnOnce(&Calls) -> c_int,
    ) -> Result<(), ComputeError> {
        match self.code(call)? {
            0 => Ok(()),
            code => Err(self
                .0
                .driver
                .check(name, code)
                .err()
                .map_or_else(|| ComputeError::Unsupported("this call"), ComputeError::from)),
        }
    }

    /// Makes a call with the context current, and returns its code.
    pub(super) fn code(&self, call: impl FnOnce(&Calls) -> c_int) -> Result<c_int, ComputeError> {
        self.check_process()?;
        let _entered = self.enter()?;
        Ok(call(&self.0.calls))
    }

    /// Does something with the context current.
    #[cfg(not(loom))]
    pub(crate) fn with_current<T>(&self, work: impl FnOnce() -> T) -> Result<T, ComputeError> {
        self.check_process()?;
        let _entered = self.enter()?;
        Ok(work())
    }

    /// Makes an error of a code that is none of success.
    pub(super) fn error(&self, name: &'static str, code: c_int) -> ComputeError {
        match self.0.driver.check(name, code) {
            Err(error) => error.into(),
            Ok(()) => ComputeError::Unsupported("this call"),
        }
    }

    fn enter(&self) -> Result<Entered<'_>, ComputeError> {
        let Inner { driver, calls, raw, .. } = &*self.0;
        let context = match raw.get() {
            Some(raw) => *raw,
            None => {
                // Two threads may both retain it, which is the same context, and never released.
                let made = Raw(driver.primary_context(self.ordinal())?);
                *raw.get_or_init(|| made)
            }
        };
        let mut current = ptr::null_mut();
        // SAFETY: `current` outlives the call.
        let code = unsafe { (calls.context_current)(&mut current) };
        driver.check("cuCtxGetCurrent", code)?;
        if current == context.0 {
            return Ok(Entered { calls, pushed: false });
        }
        // SAFETY: a context that is never released.
        let code = unsafe { (calls.context_push)(context.0) };
        driver.check("cuCtxPushCurrent", code)?;
        Ok(Entered { calls, pushed: true })
    }

    pub(super) fn parameters(&self) -> Option<ParameterInfo> {
        self.0.parameters
    }

    pub(super) fn books(&self) -> MutexGuard<'_, Books> {
        self.0.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn ordinal(&self) -> c_int {
        self.0.device.ordinal.cast_signed()
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.0.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Frees something by a call that may wait for a resident grid: now, or when nobody holds that
    /// up any more.
    pub(super) fn free_later(&self, what: Later) {
        self.held().later.push(what);
        self.free_what_is_due();
    }

    /// Frees what was put off and may be freed now.
    pub(super) fn free_what_is_due(&self) {
        let mut held = self.held();
        if held.holders > 0 {
            return;
        }
        let due = std::mem::take(&mut held.later);
        // The calls may take long: not under the lock.
        drop(held);
        let wait: Vec<Later> = due.into_iter().filter_map(|later| self.free_now(later)).collect();
        self.held().later.extend(wait);
    }

    /// Gives back what cannot be freed yet.
    fn free_now(&self, later: Later) -> Option<Later> {
        let freed = match later {
            Later::Pinned(place) => self.call("cuMemFreeHost", |calls| {
                // SAFETY: taken by `cuMemHostAlloc`, and freed once, by whoever owned it.
                unsafe { (calls.host_free)(place) }
            }),
            Later::Module(module, after) => {
                if !after.iter().all(|event| event.is_done().unwrap_or(true)) {
                    return Some(Later::Module(module, after));
                }
                self.call("cuModuleUnload", |calls| {
                    // SAFETY: loaded once and unloaded once; its launches are over.
                    unsafe { (calls.module_unload)(module) }
                })
            }
            Later::Trim(keep_bytes) => {
                self.pool().and_then(|pool| pool.trim_now(keep_bytes)).map(|_| ())
            }
        };
        if let Err(error) = freed {
            told(&error);
        }
        None
    }

    pub(super) fn is_held(&self) -> bool {
        self.held().holders > 0
    }
}

/// What became of a free that nobody waits for.
pub(super) fn told(error: &ComputeError) {
    match error {
        // At the end of a process the driver goes first, and frees all there is; a forked child
        // leaves what is its parent's.
        ComputeError::Driver(error) if matches!(error.code, 3 | 4) => {}
        ComputeError::Forked => {}
        error => tracing::warn!(%error, "CUDA memory or code not freed"),
    }
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context").field("device", &self.0.device.ordinal).finish_non_exhaustive()
    }
}

impl PartialEq for Context {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Context {}

/// The time in which a context is current.
struct Entered<'a> {
    calls: &'a Calls,
    pushed: bool,
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        if self.pushed {
            let mut popped = ptr::null_mut();
            // SAFETY: what this thread pushed is on top: calls are not nested by others.
            unsafe { (self.calls.context_pop)(&mut popped) };
        }
    }
}

/// Puts off frees as long as it lives: see [`Context::hold_frees`].
#[derive(Debug)]
pub struct FreesHeld {
    context: Context,
}

impl Drop for FreesHeld {
    fn drop(&mut self) {
        self.context.held().holders -= 1;
        self.context.free_what_is_due();
    }
}

impl Limits {
    /// Why a launch is refused before the driver is asked, if it is.
    pub(super) fn wrong(&self, launch: &Launch) -> Option<String> {
        let Launch { grid, block, shared_bytes } = *launch;
        let threads: u64 = block.iter().map(|n| u64::from(*n)).product();
        if grid.contains(&0) || block.contains(&0) {
            return Some(format!("grid {grid:?} and block {block:?} must be 1 or more everywhere"));
        }
        if threads > u64::from(self.block_threads) {
            let most = self.block_threads;
            return Some(format!("block {block:?} has {threads} threads, of {most} at most"));
        }
        for (what, size, most) in [("block", block, self.block), ("grid", grid, self.grid)] {
            if size.iter().zip(most).any(|(size, most)| *size > most) {
                return Some(format!("{what} {size:?} exceeds the device's {most:?}"));
            }
        }
        (shared_bytes > self.shared_most_bytes.max(self.shared_bytes)).then(|| {
            let most = self.shared_most_bytes.max(self.shared_bytes);
            format!("{shared_bytes} bytes of shared memory, of {most} at most")
        })
    }
}
