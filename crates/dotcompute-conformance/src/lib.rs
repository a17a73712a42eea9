//! What every executor of dotcompute must do, as generic tests.
//!
//! Each promise is a function, named after it, over a [`Stage`]: a fresh runtime and the executor
//! under test. [`conformance_suite!`] makes a `#[test]` of each, so that an executor passes the
//! suite with a few lines. No test sleeps where an event will do, and none can hang: a watchdog
//! fails it by name.
//!
//! # What an executor is asked
//!
//! A promise says what its kernels run by naming a *role*: a function, whose arguments are bytes, and
//! which shares with the test what [`signals`] has. So the same promise is tested where kernels are
//! closures of the test's own process and where they are known by name and run in others; see
//! [`roles`]. Every executor is asked all of them, but for those that the list of promises marks with a
//! [`Need`], which kernels in [other places](Place) do not have, by their nature and for the
//! [reason](Need::reason) that it gives:
//!
//! | need | what a kernel in another process does not have |
//! |---|---|
//! | [`Messages`](Need::Messages) | the messages themselves, with their destructors: it gets copies |
//! | [`Runtime`](Need::Runtime) | handles and names of the kernels of the parent's runtime |
//! | [`Mailbox`](Need::Mailbox) | a look into its mailbox that takes no time |
//! | [`Context`](Need::Context) | a context that could leave its body, and replies that the parent sees made |
//!
//! One promise has two outcomes: a kernel that blocks for ever is killed where it can be, and given up
//! where it cannot ([`Stage::end_of_the_blocked`]).
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

pub mod handlers;
pub mod roles;
pub mod signals;
pub mod stage;
mod suite;

#[cfg(target_os = "linux")]
pub use roles::Roles;
pub use roles::{Need, Place};
pub use signals::Portable;
pub use stage::{Fixture, Stage, WATCHDOG, run, within};
pub use suite::{PROMISES, Promise};
