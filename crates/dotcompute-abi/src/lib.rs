//! The bytes that host, child process and device agree on.
//!
//! Everything that two programs, or a program and a GPU, read from the same memory is defined here
//! once: message slots ([`slot`]), the ring between them ([`ring`]), the control block of a
//! resident kernel ([`control`]), the calls of compiled handlers ([`handler`]) and the codes both
//! sides speak ([`codes`]). The C, CUDA and WGSL headers under `generated/` are written from the
//! same definitions:
//!
//! ```text
//! cargo run -p dotcompute-abi --example generate
//! ```
//!
//! Rules of the shared memory: only naturally aligned loads and stores, every word has one writer,
//! and words of different writers lie on different lines of [`LINE_BYTES`]. This crate holds
//! layouts and no atomics; `dotcompute-mailbox` reads and writes the words.

#![no_std]
#![forbid(unsafe_code)]

#[macro_use]
pub mod describe;
pub mod codes;
pub mod control;
pub mod device;
pub mod generate;
pub mod handler;
pub mod ring;
pub mod slot;

pub use control::ControlBlock;
pub use handler::{Handler, HandlerCalls, HandlerContext};
pub use ring::RingHeader;
pub use slot::{PlainSlot, SlotHeader, TaggedRecord, TaggedSlot};

/// Version of everything in this crate: both sides must have the same.
pub const ABI_VERSION: u32 = 1;

/// The distance that keeps two writers apart: two cache lines, since processors fetch pairs.
pub const LINE_BYTES: usize = 128;

const _: () = assert!(cfg!(target_endian = "little"), "the shared layouts are little-endian");

/// The header for C, C++ and CUDA, as it lies in `generated/`.
pub const C_HEADER: &str = include_str!("../generated/dotcompute_abi.h");
