//! The synchronisation primitives that this workspace is built from: the standard library's, or
//! loom's under `cfg(loom)`, so that the model checker runs the very code that ships.
//!
//! This is the one place that names `std::sync::atomic`; every other crate takes its shared words
//! from here.

#[cfg(not(loom))]
mod imp {
    pub use std::hint::spin_loop;
    #[cfg(all(target_os = "linux", not(dotcompute_portable)))]
    pub(crate) use std::sync::atomic::compiler_fence;
    pub use std::sync::atomic::{
        AtomicBool, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence,
    };
    pub use std::sync::{Arc, Condvar, Mutex, MutexGuard};
    pub(crate) use std::thread_local;

    /// A cell whose contents several threads reach under a protocol of their own.
    ///
    /// The same shape as loom's, which checks at run time that the protocol holds.
    #[derive(Debug)]
    #[repr(transparent)]
    pub struct UnsafeCell<T>(core::cell::UnsafeCell<T>);

    impl<T> UnsafeCell<T> {
        /// A cell that holds `value`.
        pub const fn new(value: T) -> Self {
            Self(core::cell::UnsafeCell::new(value))
        }

        /// Calls `f` with a pointer for reading. The caller's protocol must exclude writers.
        #[inline(always)]
        pub fn with<R>(&self, f: impl FnOnce(*const T) -> R) -> R {
            f(self.0.get())
        }

        /// Calls `f` with a pointer for writing. The caller's protocol must exclude everyone else.
        #[inline(always)]
        pub fn with_mut<R>(&self, f: impl FnOnce(*mut T) -> R) -> R {
            f(self.0.get())
        }
    }
}

#[cfg(loom)]
mod imp {
    pub use loom::cell::UnsafeCell;
    pub use loom::hint::spin_loop;
    pub use loom::sync::atomic::{
        AtomicBool, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence,
    };
    pub use loom::sync::{Arc, Condvar, Mutex, MutexGuard};
    /// `std::thread_local!` with its constant initialiser, which loom's does not take.
    macro_rules! const_thread_local {
        ($(#[$attribute:meta])* static $name:ident: $type:ty = const $value:block;) => {
            loom::thread_local! { $(#[$attribute])* static $name: $type = $value; }
        };
    }
    pub(crate) use const_thread_local as thread_local;
}

#[cfg(not(loom))]
pub use crate::lock::{Guard, Lock};
pub use imp::*;

/// The standard library's atomics, also under loom: for process-wide statics that only count or
/// hint. The model checker does not see them, so nothing may be ordered by them.
pub mod unmodelled {
    pub use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize};
}

/// Locks `mutex`, also if a thread panicked while it held it.
///
/// No user code runs under a lock of this workspace, so a panic there is a broken invariant that
/// has already been reported; the data are as consistent as they were before.
#[inline]
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    match mutex.lock() {
        Ok(guard) => guard,
        Err(poisoned) => poisoned.into_inner(),
    }
}
