//! Rings, priority mailboxes and waiting: the only crate of dotcompute with atomics.

pub mod ring;
pub mod sync;
pub mod wait;

mod bands;
mod books;
mod error;
mod inbox;
mod mailbox;
mod sys;
