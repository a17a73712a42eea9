//! Host memory for Python: aligned, zero-filled, and pooled by size classes; of the system, or pinned
//! for a CUDA device.
//!
//! A `HostBuffer` lends its bytes through the buffer protocol and the NumPy array interface; whoever
//! views them keeps the `HostBuffer` alive, so that a block goes back to its pool only when nobody
//! can see it any more. No Python code runs, and nothing is allocated or filled, under a pool's lock.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::collections::BTreeMap;
use std::ffi::c_int;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dotcompute_cuda::compute::{Context, PinnedBuffer};
use pyo3::exceptions::{PyBufferError, PyMemoryError};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};

/// Two lines of 64 bytes: what one prefetch fetches, and more than any vector load or DLPack
/// consumer asks for.
const ALIGNMENT_BYTES: usize = 128;
/// The smallest size class.
const CLASS_MIN_BYTES: usize = 256;
/// From this size on the system hands out pages that are zero already, unless it is asked for an
/// alignment; and zeroing a block again takes long enough to give the GIL away for it.
const LARGE_MIN_BYTES: usize = 1 << 16;

/// One piece of memory, of the system or pinned; zero-filled when it is new.
struct Allocation {
    memory: NonNull<u8>,
    source: Source,
    /// Where the first aligned byte is.
    padding_bytes: usize,
}

/// Where an allocation comes from.
enum Source {
    System(Layout),
    Pinned {
        /// Freed when it is dropped.
        _buffer: PinnedBuffer,
    },
}

// SAFETY: an `Allocation` owns its memory, which is tied to no thread.
unsafe impl Send for Allocation {}
// SAFETY: `&Allocation` only tells the address; who writes the bytes is the business of Python code,
// which has the same duty with any buffer that two of its threads share.
unsafe impl Sync for Allocation {}

impl Allocation {
    fn new(bytes: usize, pinned: Option<&Context>) -> Option<Arc<Self>> {
        if let Some(context) = pinned {
            // Begins at a page.
            let buffer = PinnedBuffer::new(context, bytes).ok()?;
            let memory = buffer.place();
            let source = Source::Pinned { _buffer: buffer };
            return Some(Arc::new(Self { memory, source, padding_bytes: 0 }));
        }
        let layout = if bytes < LARGE_MIN_BYTES {
            Layout::from_size_align(bytes.max(1), ALIGNMENT_BYTES)
        } else {
            Layout::from_size_align(bytes.checked_add(ALIGNMENT_BYTES)?, align_of::<usize>())
        };
        let layout = layout.ok()?;
        // SAFETY: the layout's size is at least 1.
        let memory = NonNull::new(unsafe { alloc_zeroed(layout) })?;
        let padding_bytes = memory.addr().get().wrapping_neg() % ALIGNMENT_BYTES;
        assert!(
            padding_bytes + bytes <= layout.size(),
            "the padding should be less than what was added for it"
        );
        Some(Arc::new(Self { memory, source: Source::System(layout), padding_bytes }))
    }
}

impl Drop for Allocation {
    fn drop(&mut self) {
        if let Source::System(layout) = self.source {
            // SAFETY: it came from `alloc_zeroed` with this very layout, and is freed only here.
            unsafe { dealloc(self.memory.as_ptr(), layout) }
        }
    }
}

/// A part of an allocation that belongs to one buffer, or lies in a pool.
struct Block {
    allocation: Arc<Allocation>,
    offset_bytes: usize,
    bytes: usize,
}

impl Block {
    fn new(bytes: usize, pinned: Option<&Context>) -> Option<Self> {
        Some(Self { allocation: Allocation::new(bytes, pinned)?, offset_bytes: 0, bytes })
    }

    fn start(&self) -> *mut u8 {
        let offset_bytes = self.allocation.padding_bytes + self.offset_bytes;
        // SAFETY: a block lies inside its allocation behind the padding (asserted when that was
        // made, and kept by `Shelves::find`), so the offset stays within the same object.
        unsafe { self.allocation.memory.as_ptr().add(offset_bytes) }
    }

    /// Zeroes the first `bytes` of a block that was used before.
    fn clear(&mut self, py: Python<'_>, bytes: usize) {
        assert!(bytes <= self.bytes, "a block should hold what was asked of it");
        let block = &*self;
        // SAFETY: `bytes` lie within the block (asserted), and `&mut self` on a block that no buffer
        // owns yet means that nobody else reads or writes them.
        let fill = || unsafe { block.start().write_bytes(0, bytes) };
        if bytes >= LARGE_MIN_BYTES {
            py.detach(fill);
        } else {
            fill();
        }
    }
}

/// Rounds up to a size class: eight steps to each doubling, so that less than 13 % is waste beyond
/// the smallest class. None when it exceeds the address space.
fn class_bytes(bytes: usize) -> Option<usize> {
    if bytes <= CLASS_MIN_BYTES {
        return Some(CLASS_MIN_BYTES);
    }
    let step = (bytes.checked_next_power_of_two()? / 16).max(ALIGNMENT_BYTES);
    bytes.checked_next_multiple_of(step).filter(|bytes| isize::try_from(*bytes).is_ok())
}

impl Refusal {
    /// The exception that says so. To be called without a lock: it runs Python code.
    fn into_error(self, py: Python<'_>, requested_bytes: usize) -> PyErr {
        match self {
            Self::System => {
                PyMemoryError::new_err(format!("cannot allocate {requested_bytes} bytes"))
            }
            Self::Limit { limit_bytes, used_bytes } => py
                .import("pydotcompute.exceptions")
                .and_then(|exceptions| exceptions.getattr("MemoryLimitError"))
                .and_then(|class| class.call1((requested_bytes, limit_bytes, used_bytes)))
                .map_or_else(|error| error, PyErr::from_value),
        }
    }
}

/// What a pool knows. All sizes are of whole blocks, except `requested_bytes`.
#[derive(Default)]
struct Books {
    used_bytes: usize,
    used_blocks: usize,
    requested_bytes: usize,
    cached_bytes: usize,
    cached_blocks: usize,
    reserved_bytes: usize,
    peak_used_bytes: usize,
    peak_total_bytes: usize,
    allocations: u64,
    reuses: u64,
    refusals: u64,
}

impl Books {
    fn total_bytes(&self) -> usize {
        self.used_bytes + self.cached_bytes + self.reserved_bytes
    }

    fn take(&mut self, block_bytes: usize, requested_bytes: usize) {
        self.used_bytes += block_bytes;
        self.used_blocks += 1;
        self.requested_bytes += requested_bytes;
        self.allocations += 1;
        self.peak_used_bytes = self.peak_used_bytes.max(self.used_bytes);
        self.peak_total_bytes = self.peak_total_bytes.max(self.total_bytes());
    }

    fn give_back(&mut self, block_bytes: usize, requested_bytes: usize) {
        self.used_bytes -= block_bytes;
        self.used_blocks -= 1;
        self.requested_bytes -= requested_bytes;
    }
}

#[derive(Default)]
struct Shelves {
    books: Books,
    /// Blocks that wait for reuse, by their size.
    cached: BTreeMap<usize, Vec<Block>>,
    /// What is left of a reservation; new blocks are cut off its front.
    reserve: Option<Block>,
    limit_bytes: Option<usize>,
}

/// Why a pool has no memory to give.
enum Refusal {
    Limit { limit_bytes: usize, used_bytes: usize },
    System,
}

impl Shelves {
    /// A block that is there already, from the shelf or from the reservation. True: it was used.
    fn find(&mut self, class: usize) -> Option<(Block, bool)> {
        if let Some(block) = self.cached.get_mut(&class).and_then(Vec::pop) {
            self.books.cached_bytes -= class;
            self.books.cached_blocks -= 1;
            self.books.reuses += 1;
            return Some((block, true));
        }
        let reserve = self.reserve.as_mut().filter(|rest| rest.bytes >= class)?;
        let block = Block {
            allocation: Arc::clone(&reserve.allocation),
            offset_bytes: reserve.offset_bytes,
            bytes: class,
        };
        reserve.offset_bytes += class;
        reserve.bytes -= class;
        self.books.reserved_bytes -= class;
        Some((block, false))
    }

    /// Takes out cached blocks, large ones first, until at most `keep_bytes` are cached.
    fn evict(&mut self, keep_bytes: usize) -> Vec<Block> {
        let mut evicted = Vec::new();
        while self.books.cached_bytes > keep_bytes {
            let Some(mut shelf) = self.cached.last_entry() else {
                break;
            };
            if let Some(block) = shelf.get_mut().pop() {
                self.books.cached_bytes -= block.bytes;
                self.books.cached_blocks -= 1;
                evicted.push(block);
            }
            if shelf.get().is_empty() {
                shelf.remove();
            }
        }
        evicted
    }

    /// Makes room below the limit for `bytes` more. The blocks are to be dropped after the lock.
    fn make_room(&mut self, bytes: usize) -> Result<Vec<Block>, Refusal> {
        let Some(limit_bytes) = self.limit_bytes else {
            return Ok(Vec::new());
        };
        let used_bytes = self.books.used_bytes;
        let room_bytes = limit_bytes
            .checked_sub(used_bytes)
            .and_then(|room_bytes| room_bytes.checked_sub(bytes));
        match room_bytes {
            Some(room_bytes) => Ok(self.keep(room_bytes)),
            None => {
                self.books.refusals += 1;
                Err(Refusal::Limit { limit_bytes, used_bytes })
            }
        }
    }

    /// Takes out what nobody uses until at most `keep_bytes` of it are left: cached blocks first,
    /// then the reservation. The blocks are to be dropped after the lock.
    fn keep(&mut self, keep_bytes: usize) -> Vec<Block> {
        let mut evicted = self.evict(keep_bytes.saturating_sub(self.books.reserved_bytes));
        if self.books.reserved_bytes > keep_bytes {
            evicted.extend(self.reserve.take());
            self.books.reserved_bytes = 0;
        }
        evicted
    }
}

#[derive(Default)]
struct Pool {
    shelves: Mutex<Shelves>,
    /// The device that its memory is pinned for.
    pinned: Option<Context>,
}

impl Pool {
    /// The lock. Nothing that runs under it can panic half-way, so a poisoned one is still whole.
    fn lock(&self) -> MutexGuard<'_, Shelves> {
        self.shelves.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A block of at least `bytes`; unless `zeroed`, with what its last user left in it.
    fn allocate(&self, py: Python<'_>, bytes: usize, zeroed: bool) -> Result<Block, Refusal> {
        let Some(class) = class_bytes(bytes) else {
            return Err(Refusal::System);
        };
        let evicted = {
            let mut shelves = self.lock();
            if let Some((mut block, used)) = shelves.find(class) {
                shelves.books.take(class, bytes);
                drop(shelves);
                if used && zeroed {
                    block.clear(py, bytes);
                }
                return Ok(block);
            }
            let evicted = shelves.make_room(class)?;
            shelves.books.take(class, bytes);
            evicted
        };
        drop(evicted);
        let pinned = self.pinned.as_ref();
        Block::new(class, pinned)
            .or_else(|| {
                // The system has no more: what lies in the cache may be what is missing.
                let evicted = self.lock().evict(0);
                drop(evicted);
                Block::new(class, pinned)
            })
            .ok_or_else(|| {
                let mut shelves = self.lock();
                shelves.books.give_back(class, bytes);
                shelves.books.allocations -= 1;
                shelves.books.refusals += 1;
                Refusal::System
            })
    }

    /// Takes a block back for reuse; one that the limit leaves no room for goes to the system.
    fn give_back(&self, block: Block, requested_bytes: usize) {
        let mut shelves = self.lock();
        shelves.books.give_back(block.bytes, requested_bytes);
        let total_bytes = shelves.books.total_bytes() + block.bytes;
        if shelves.limit_bytes.is_some_and(|limit_bytes| total_bytes > limit_bytes) {
            drop(shelves);
            drop(block);
            return;
        }
        shelves.books.cached_bytes += block.bytes;
        shelves.books.cached_blocks += 1;
        shelves.cached.entry(block.bytes).or_default().push(block);
    }
}

/// Bytes of aligned host memory, zero-filled at first.
#[pyclass(frozen, weakref, module = "pydotcompute._native")]
pub(crate) struct HostBuffer {
    /// None only while it is dropped.
    block: Option<Block>,
    /// What was asked for; the block may be larger.
    nbytes: usize,
    pool: Option<Arc<Pool>>,
}

impl HostBuffer {
    fn start(&self) -> *mut u8 {
        self.block.as_ref().map_or(NonNull::dangling().as_ptr(), Block::start)
    }
}

impl Drop for HostBuffer {
    fn drop(&mut self) {
        if let (Some(block), Some(pool)) = (self.block.take(), self.pool.take()) {
            pool.give_back(block, self.nbytes);
        }
    }
}

#[pymethods]
impl HostBuffer {
    #[new]
    fn new(py: Python<'_>, nbytes: usize) -> PyResult<Self> {
        let block = Block::new(nbytes, None).ok_or(Refusal::System);
        let block = block.map_err(|refusal| refusal.into_error(py, nbytes))?;
        Ok(Self { block: Some(block), nbytes, pool: None })
    }

    /// How many bytes it holds.
    #[getter]
    fn nbytes(&self) -> usize {
        self.nbytes
    }

    /// Where they lie: a multiple of 128.
    #[getter]
    fn address(&self) -> usize {
        self.start().addr()
    }

    fn __len__(&self) -> usize {
        self.nbytes
    }

    fn __repr__(&self) -> String {
        let pooled = if self.pool.is_some() { "True" } else { "False" };
        format!("HostBuffer(nbytes={}, pooled={pooled})", self.nbytes)
    }

    /// Version 3 of the NumPy array interface: one dimension of bytes.
    #[getter]
    fn __array_interface__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let interface = PyDict::new(py);
        interface.set_item("version", 3)?;
        interface.set_item("typestr", "|u1")?;
        interface.set_item("shape", (self.nbytes,))?;
        interface.set_item("data", (self.start().addr(), false))?;
        interface.set_item("strides", py.None())?;
        Ok(interface)
    }

    /// # Safety
    ///
    /// Called by the interpreter: `view` is null or points to a `Py_buffer` that may be written.
    unsafe fn __getbuffer__(
        slf: Bound<'_, Self>,
        view: *mut ffi::Py_buffer,
        flags: c_int,
    ) -> PyResult<()> {
        if view.is_null() {
            return Err(PyBufferError::new_err("the view is null"));
        }
        let buffer = slf.get();
        // SAFETY: `view` may be written (above). The bytes are `nbytes` long, are never moved, and
        // live as long as `slf`, to which the view takes a reference.
        let code = unsafe {
            ffi::PyBuffer_FillInfo(
                view,
                slf.as_ptr(),
                buffer.start().cast(),
                // A block never exceeds isize::MAX bytes: `Layout` sees to it.
                buffer.nbytes.cast_signed(),
                0,
                flags,
            )
        };
        if code == 0 { Ok(()) } else { Err(PyErr::fetch(slf.py())) }
    }
}

/// A pool of host memory: blocks that nobody uses are kept by size class and given out again.
#[pyclass(frozen, module = "pydotcompute._native")]
pub(crate) struct HostPool {
    pool: Arc<Pool>,
}

impl HostPool {
    /// A pool of memory that is pinned for a device.
    pub(crate) fn pinned(context: Context) -> Self {
        Self { pool: Arc::new(Pool { pinned: Some(context), ..Pool::default() }) }
    }
}

#[pymethods]
impl HostPool {
    #[new]
    fn new() -> Self {
        Self { pool: Arc::default() }
    }

    /// A buffer of `nbytes`, zero-filled or of unknown content.
    #[pyo3(signature = (nbytes, *, zeroed = true))]
    fn allocate(&self, py: Python<'_>, nbytes: usize, zeroed: bool) -> PyResult<HostBuffer> {
        match self.pool.allocate(py, nbytes, zeroed) {
            Ok(block) => {
                Ok(HostBuffer { block: Some(block), nbytes, pool: Some(Arc::clone(&self.pool)) })
            }
            Err(refusal) => Err(refusal.into_error(py, nbytes)),
        }
    }

    /// Takes `nbytes` from the system at once; later blocks are cut from them.
    fn reserve(&self, py: Python<'_>, nbytes: usize) -> PyResult<()> {
        let block = Block::new(nbytes, self.pool.pinned.as_ref()).ok_or(Refusal::System);
        let block = block.map_err(|refusal| refusal.into_error(py, nbytes))?;
        let mut shelves = self.pool.lock();
        let held_bytes = shelves.books.used_bytes + shelves.books.cached_bytes;
        let total_bytes = held_bytes.saturating_add(nbytes);
        if let Some(limit_bytes) = shelves.limit_bytes.filter(|limit| total_bytes > *limit) {
            drop(shelves);
            let refusal = Refusal::Limit { limit_bytes, used_bytes: held_bytes };
            return Err(refusal.into_error(py, nbytes));
        }
        let old = shelves.reserve.replace(block);
        shelves.books.reserved_bytes = nbytes;
        shelves.books.peak_total_bytes = shelves.books.peak_total_bytes.max(total_bytes);
        drop(shelves);
        drop(old);
        Ok(())
    }

    /// Gives memory that nobody uses back to the system, until at most `keep_bytes` are cached.
    /// Returns how many bytes went.
    #[pyo3(signature = (keep_bytes = 0))]
    fn trim(&self, keep_bytes: usize) -> usize {
        let mut shelves = self.pool.lock();
        let before = shelves.books.total_bytes();
        let evicted = shelves.keep(keep_bytes);
        let after = shelves.books.total_bytes();
        drop(shelves);
        drop(evicted);
        before - after
    }

    /// Bounds what is in use, cached and reserved together; None lifts the bound.
    #[pyo3(signature = (limit_bytes))]
    fn set_limit(&self, limit_bytes: Option<usize>) {
        let mut shelves = self.pool.lock();
        shelves.limit_bytes = limit_bytes;
        let keep_bytes = limit_bytes
            .map_or(usize::MAX, |limit_bytes| limit_bytes.saturating_sub(shelves.books.used_bytes));
        let evicted = shelves.keep(keep_bytes);
        drop(shelves);
        drop(evicted);
    }

    /// Starts the peaks anew from what is held now.
    fn reset_peak(&self) {
        let mut shelves = self.pool.lock();
        shelves.books.peak_used_bytes = shelves.books.used_bytes;
        shelves.books.peak_total_bytes = shelves.books.total_bytes();
    }

    /// The books, taken at one instant.
    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let (numbers, limit_bytes) = {
            let shelves = self.pool.lock();
            let books = &shelves.books;
            let numbers = [
                ("used_bytes", books.used_bytes as u64),
                ("used_blocks", books.used_blocks as u64),
                ("requested_bytes", books.requested_bytes as u64),
                ("cached_bytes", books.cached_bytes as u64),
                ("cached_blocks", books.cached_blocks as u64),
                ("reserved_bytes", books.reserved_bytes as u64),
                ("total_bytes", books.total_bytes() as u64),
                ("peak_used_bytes", books.peak_used_bytes as u64),
                ("peak_total_bytes", books.peak_total_bytes as u64),
                ("allocations", books.allocations),
                ("reuses", books.reuses),
                ("refusals", books.refusals),
            ];
            (numbers, shelves.limit_bytes)
        };
        let stats = PyDict::new(py);
        for (name, number) in numbers {
            stats.set_item(name, number)?;
        }
        stats.set_item("limit_bytes", limit_bytes)?;
        Ok(stats)
    }
}

/// Base of `UnifiedBuffer`: lends the buffer of the subclass's `host` array.
///
/// A class written in Python cannot offer the buffer protocol before Python 3.12.
#[pyclass(frozen, subclass, module = "pydotcompute._native")]
pub(crate) struct HostView;

#[pymethods]
impl HostView {
    /// Takes whatever the subclass takes, and leaves it to the subclass's `__init__`.
    #[new]
    #[pyo3(signature = (*_args, **_kwargs))]
    fn new(_args: &Bound<'_, PyTuple>, _kwargs: Option<&Bound<'_, PyDict>>) -> Self {
        Self
    }

    /// # Safety
    ///
    /// Called by the interpreter: `view` is null or points to a `Py_buffer` that may be written.
    unsafe fn __getbuffer__(
        slf: Bound<'_, Self>,
        view: *mut ffi::Py_buffer,
        flags: c_int,
    ) -> PyResult<()> {
        let host = slf.getattr("host")?;
        // SAFETY: `host` is an object, `view` is what the interpreter gave; the exporter that this
        // calls checks the rest. The view then belongs to `host`, which is asked to release it.
        let code = unsafe { ffi::PyObject_GetBuffer(host.as_ptr(), view, flags) };
        if code == 0 { Ok(()) } else { Err(PyErr::fetch(slf.py())) }
    }
}

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<HostBuffer>()?;
    module.add_class::<HostPool>()?;
    module.add_class::<HostView>()
}
