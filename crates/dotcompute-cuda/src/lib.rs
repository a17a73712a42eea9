//! CUDA for dotcompute.
//!
//! NVIDIA's libraries are found and loaded when the program runs: this crate builds, and its
//! programs run, on machines without any of them. Whatever is absent is an [`Absent`] that says
//! why and what to do, never a panic. [`Probe`] asks for all of them at once.
//!
//! The executor `"cuda"` keeps ring kernels on the device: [`CudaKernels`] are compiled, linked and
//! opened as a [`Cuda`], which launches them. Each has a seat (a warp, or a block) on a grid that stays, lease
//! by lease, and is reached through rings in memory that host and device share; its state lies in the
//! device's memory. Below it: the [`driver`], the compiler [`nvrtc`], the linker [`nvjitlink`] and the
//! telemetry of [`nvml`], each as far as something here uses it; the device's side of the protocol,
//! under `device/`; the host's ([`grid`]); and [`resident`], which keeps a grid on a device. Beside it,
//! [`compute`]: memory, streams and launches as any other program uses them.
//!
//! Kernels that are [connected](dotcompute_core::KernelRef::connect) and sit on one grid, as those do that
//! were linked together, send to each other on the device, without a hop over the host:
//!
//! - So it is while the next kernel's policy is to block, its inbox has an edge to spare
//!   ([`CudaOptions::senders`]), the records agree and no cycle would be closed on the device. Otherwise
//!   replies go by the host, as those of any kernels do; [`Counters::sent`](grid::Counters) tells.
//! - Books, order, faults and asks are as if the replies had gone through mailboxes. But an inbox holds
//!   [`CudaOptions::share`] records of each sender, whatever the capacity of the mailbox; the message of an
//!   ask that has ended is not skipped; and when the two are disconnected, what the next kernel has not
//!   taken comes back to the first.
//! - Batches, and replies to asks of before the connection, go by the host, in their order.
//!
//! So do those go whose handlers send to them by their names ([`CudaKernel::target`], `rk_send`), as
//! handlers do on every executor; a target may as well be a kernel of the host. An edge to one is made,
//! and done away with, while the sender holds and nothing is under way by the other way, so that what is
//! sent keeps its order. What a target has not taken when it ends is a dead letter of its; a kernel that
//! sends to one that is not there, or has ended, fails, once it has stopped.
//!
//! Handlers that are [registered](Cuda::register) one after the other are linked into one image. A grid
//! takes it up between two leases, when the first kernel that needs it gets a seat; what runs goes on.
//!
//! Records of more than 40 bytes, up to 376, take several slots that follow each other, on all ways. Each
//! slot has tags of its own, and a record counts when all of its slots are there. A window has room for as
//! many fewer of them; all messages of a kernel are of one size.
//!
//! A handler is called by one thread, the first lane of its warp, unless it has another [`Scope`]: then all
//! 32 of the warp call it, or those of a block of up to 1024, together for each message, with shared memory
//! ([`CudaHandler::shared_bytes`]) and barriers. A barrier that not all threads come to fails the message and
//! keeps nobody waiting. So it is for the blocks of a [team](Scope::Team). Kernels that need the same (scope,
//! blocks, shared memory) share grids; what the others send each other goes by the host.
//!
//! Grids run on whatever multiprocessors the device gives them, unless some are set aside for them
//! ([`resident::Residency::ring_multiprocessors`], off by default): then other work has a stream on the rest
//! ([`Cuda::ring_free_sms`]), and [`Cuda::placements`] says which grid runs where. A grid that finds none left
//! of those runs on the rest; where the driver cannot or does not, it runs on any, and says why.
//!
//! Arrays stay on the device: a record names them by their addresses, and the message holds them
//! ([`Holding`]) until it has been processed; [`Cuda::send_on_stream`] sends it behind the work that makes
//! them.
//!
//! None of this has run on a GPU yet. The tests run it, device code and all, on host threads behind
//! stand-ins for NVIDIA's libraries.
//!
//! # What goes wrong
//!
//! - A *reported* fault (a negative code, `rk_fault`, a failed check) fails its kernel, which a restart
//!   policy brings back with its state made anew; the others go on.
//! - A *hardware exception* (a trap, a bad address) ends the context: every kernel on it fails with the
//!   code `FAULT_LOST`, and is told whose handlers were at work. The process must be started again.
//!   Kernels whose context lives in a process of its own ([`resident::Isolation`]) are brought back instead,
//!   by their restart policies, as after a SIGKILL of that process.
//! - A handler that does not come back is reported by the watchdog. It is killed at its next tick
//!   (`rk_tick`) when its kernel is terminated, or when it keeps its grid from leaving for too long
//!   ([`resident::Residency::overdue`]); if it has none, its grid is given up: all kernels on it fail
//!   with `FAULT_STUCK`. Until then they go on with their work: a grid is left only when all of its
//!   kernels can leave. `terminate` returns by its deadline in any case.

mod cache;
pub mod compute;
#[cfg(not(loom))]
mod direct;
pub mod driver;
#[cfg(not(loom))]
mod green;
pub mod grid;
#[path = "../device/handler.rs"]
pub mod handler;
mod image;
#[cfg(not(loom))]
mod kernels;
#[cfg(not(loom))]
mod lent;
mod library;
pub mod nvjitlink;
pub mod nvml;
pub mod nvrtc;
mod probe;
#[cfg(not(loom))]
mod proxy;
#[cfg(not(loom))]
mod pump;
#[cfg(not(loom))]
pub mod resident;
mod rust;
#[cfg(not(loom))]
mod set;
mod source;
#[cfg(not(loom))]
mod target;
pub mod toolkit;

pub use cache::Cache;
#[cfg(not(loom))]
pub use green::{NotApart, Placement};
pub use image::{BuildError, CudaHandler, Image, Scope, Variant};
#[cfg(not(loom))]
pub use kernels::{
    Cuda, CudaError, CudaKernel, CudaKernels, CudaLaunch, CudaLayouts, CudaOptions, FreeSms,
    executor,
};
#[cfg(not(loom))]
pub use lent::{Holding, Lent, StreamSendError};
pub use library::{Absent, CallError, Version};
pub use probe::{Found, LibraryReport, Probe};
#[cfg(all(target_os = "linux", not(loom)))]
pub use resident::{isolated, serve_isolated};
pub use rust::RustError;

/// The name of the executor.
pub const EXECUTOR: &str = "cuda";
