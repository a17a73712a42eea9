//! CUDA for dotcompute.
//!
//! NVIDIA's libraries are found and loaded when the program runs: this crate builds, and its
//! programs run, on machines without any of them. Whatever is absent is an [`Absent`] that says
//! why and what to do, never a panic. [`Probe`] asks for all of them at once.
//!
//! What is here: the [`driver`], the compiler [`nvrtc`], the linker [`nvjitlink`] and the telemetry
//! of [`nvml`], each as far as something here uses it; the device's side of the protocol between
//! mailboxes and a resident grid, under `device/`; and how handlers are linked with it into an
//! [`Image`]. There is no executor yet.

mod cache;
pub mod driver;
pub mod grid;
mod image;
#[cfg(not(loom))]
mod kernels;
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
#[cfg(not(loom))]
mod set;
mod source;
pub mod toolkit;

pub use cache::Cache;
pub use image::{BuildError, CudaHandler, Image, Variant};
#[cfg(not(loom))]
pub use kernels::{
    Cuda, CudaError, CudaKernel, CudaKernels, CudaLaunch, CudaLayouts, CudaOptions, executor,
};
pub use library::{Absent, CallError, Version};
pub use probe::{Found, LibraryReport, Probe};

/// The name of the executor.
pub const EXECUTOR: &str = "cuda";
