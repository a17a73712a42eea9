//! Our side of each group, through the public API with its defaults, telemetry included.

pub(crate) mod anomaly;
pub(crate) mod ask;
pub(crate) mod handlers;
pub(crate) mod hop;
pub(crate) mod idle;
pub(crate) mod mailbox;
pub(crate) mod pagerank;
pub(crate) mod pipeline;
pub(crate) mod process;
pub(crate) mod ring;
pub(crate) mod telemetry;
pub(crate) mod throughput;

use dotcompute::{Books, KernelRef, Message};

use crate::harness::{Wrong, expect};

/// The message of the rows about kernels.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Number(pub(crate) u64);

impl Message for Number {
    const TYPE_NAME: &'static str = "Number";
}

/// Refuses a kernel whose books do not show exactly so many messages processed, and none lost.
fn verify_books<R: Message, M: Message>(
    kernel: &KernelRef<M, R>,
    processed: u64,
) -> Result<(), Wrong> {
    let books: Books = kernel.books();
    expect("books balance", books.balance(), true)?;
    expect("accepted", books.accepted, processed)?;
    expect("processed", books.processed, processed)
}
