//! Rings, priority mailboxes and waiting: the only crate of dotcompute with atomics.

pub mod clock;
pub mod ring;
pub mod sync;
pub mod wait;

mod bands;
mod books;
mod cursor;
mod error;
mod inbox;
#[cfg(any(test, not(loom)))]
mod lock;
mod mailbox;
mod receive;
mod send;
mod sys;
mod wait_list;

pub use bands::{Band, PASSED_OVER_MAX};
pub use books::Books;
pub use error::{Closed, ReceiveError, SendError, TryReceiveError, TrySendError};
pub use inbox::{Inbox, Outcome};
pub use mailbox::{Admission, Backpressure, Close, Mailbox, STAMP_EVERY};
pub use receive::{Receive, ReceiveBatch, ReceiveOwned};
pub use send::Send;
