//! CUDA for dotcompute.
//!
//! NVIDIA's libraries are found and loaded when the program runs: this crate builds, and its
//! programs run, on machines without any of them. Whatever is absent is an [`Absent`] that says
//! why and what to do, never a panic. [`Probe`] asks for all of them at once.
//!
//! What is here: the [`driver`], the compiler [`nvrtc`], the linker [`nvjitlink`] and the telemetry
//! of [`nvml`], each as far as something here uses it; the device's side of the protocol between
//! mailboxes and a resident grid, under `device/`; and how handlers are linked with it into an
//! [`Image`]. There is no executor yet. Beside it, [`compute`]: memory, streams and launches as any
//! other program uses them.

mod cache;
pub mod compute;
pub mod driver;
pub mod grid;
mod image;
mod library;
pub mod nvjitlink;
pub mod nvml;
pub mod nvrtc;
mod probe;
pub mod resident;
mod source;
pub mod toolkit;

pub use cache::Cache;
pub use image::{BuildError, CudaHandler, Image, Variant};
pub use library::{Absent, CallError, Version};
pub use probe::{Found, LibraryReport, Probe};
