//! Memory that two processes map: memory files, which have no name and are gone with their last
//! descriptor.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::{self, NonNull};

use rustix::fs::{MemfdFlags, SealFlags};
use rustix::io;
use rustix::mm::{MapFlags, ProtFlags};

/// A memory file, mapped: memory that can be handed over to a child
/// ([`Process::memory`](crate::Process::memory)), which finds it by
/// [`Host::take_memory`](crate::Host::take_memory). What lies in it, and who may touch it when, is its
/// users' affair.
#[derive(Debug)]
pub struct Memory {
    start: NonNull<u8>,
    bytes: usize,
    file: OwnedFd,
}

// SAFETY: a mapping belongs to no thread; what lies in it is reached by its users' protocols.
unsafe impl Send for Memory {}
// SAFETY: as above; `Memory` itself hands out nothing but its address.
unsafe impl Sync for Memory {}

impl Memory {
    /// A new file of `bytes` zeroed bytes. Nobody can change its size afterwards, so that a peer
    /// cannot pull the memory from under a reader.
    ///
    /// # Errors
    ///
    /// What the system said.
    pub fn create(name: &str, bytes: usize) -> io::Result<Self> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = rustix::fs::memfd_create(name, flags)?;
        rustix::fs::ftruncate(&file, bytes as u64)?;
        let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
        rustix::fs::fcntl_add_seals(&file, seals)?;
        Self::map(file)
    }

    /// The whole of `file`.
    pub(crate) fn map(file: OwnedFd) -> io::Result<Self> {
        let bytes = usize::try_from(rustix::fs::fstat(&file)?.st_size).unwrap_or(0);
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a fresh mapping, placed by the system, over nothing of ours.
        let start = unsafe {
            rustix::mm::mmap(ptr::null_mut(), bytes, access, MapFlags::SHARED, &file, 0)
        }?;
        let start = NonNull::new(start.cast()).ok_or(io::Errno::FAULT)?;
        Ok(Self { start, bytes, file })
    }

    /// The first byte; aligned to a page.
    pub fn start(&self) -> NonNull<u8> {
        self.start
    }

    /// How many bytes it has.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The descriptor, to be handed over.
    pub(crate) fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: mapped by `map`, once, and its users borrow `self` or hold it in an `Arc`.
        // An unmap of a whole mapping does not fail.
        let _ = unsafe { rustix::mm::munmap(self.start.as_ptr().cast(), self.bytes) };
    }
}
