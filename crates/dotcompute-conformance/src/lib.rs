//! What every executor of dotcompute must do, as generic tests.
//!
//! Each promise is a function, named after it, over a [`Stage`]: a fresh runtime and the executor
//! under test. [`conformance_suite!`] makes a `#[test]` of each, so that an executor passes the
//! suite with a few lines. No test sleeps where an event will do, and none can hang: a watchdog
//! fails it by name.
//!
//! One promise is kept by the compiler, for all executors at once: a kernel is not sent what it
//! does not take.
//!
//! ```compile_fail,E0277
//! use dotcompute::{KernelRef, Message};
//!
//! struct Reading(f64);
//! impl Message for Reading {
//!     const TYPE_NAME: &'static str = "Reading";
//! }
//! struct Alert(u8);
//! impl Message for Alert {
//!     const TYPE_NAME: &'static str = "Alert";
//! }
//!
//! fn wrong(kernel: &KernelRef<Reading, Alert>) {
//!     let _ = kernel.try_send(Alert(1));
//! }
//! ```

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, its helpers too")]
#![allow(clippy::missing_panics_doc, reason = "that is how a promise fails")]

#[allow(missing_docs, reason = "the name of a promise is its documentation")]
pub mod asks;
#[allow(missing_docs, reason = "the name of a promise is its documentation")]
pub mod backpressure;
#[allow(missing_docs, reason = "the name of a promise is its documentation")]
pub mod dead_letters;
#[allow(missing_docs, reason = "the name of a promise is its documentation")]
pub mod delivery;
#[allow(missing_docs, reason = "the name of a promise is its documentation")]
pub mod faults;
#[allow(missing_docs, reason = "the name of a promise is its documentation")]
pub mod lifecycle;
#[allow(missing_docs, reason = "the name of a promise is its documentation")]
pub mod pipelines;
#[allow(missing_docs, reason = "the name of a promise is its documentation")]
pub mod pools;
#[allow(missing_docs, reason = "the name of a promise is its documentation")]
pub mod restarts;
#[allow(missing_docs, reason = "the name of a promise is its documentation")]
pub mod telemetry;
#[allow(missing_docs, reason = "the name of a promise is its documentation")]
pub mod termination;

pub mod stage;
mod suite;

pub use stage::{Fixture, Stage, WATCHDOG, run, within};
pub use suite::{PROMISES, Promise};
