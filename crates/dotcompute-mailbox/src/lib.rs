//! Rings, priority mailboxes and waiting: the only crate of dotcompute with atomics.
//!
//! - [`Mailbox`]: many senders, four priority bands, exact capacity, a backpressure policy, books.
//!   [`Inbox`] is the end of the one kernel that it belongs to.
//! - [`ring`]: between one producer and one consumer, over the heap or memory that others map.
//! - [`feed`]: a ring into a task, whose ends sleep as tasks do.
//! - [`wait`]: how a thread waits, [`block_on`](wait::block_on) above all.
//!
//! ```
//! use dotcompute_mailbox::{Backpressure, Band, Mailbox};
//!
//! let mailbox = Mailbox::new(16, Backpressure::Block);
//! std::thread::scope(|scope| {
//!     scope.spawn(|| {
//!         for number in 0..100 {
//!             let _accepted = mailbox.send_blocking(Band::Normal, number, None).unwrap();
//!         }
//!     });
//!     for number in 0..100 {
//!         assert_eq!(mailbox.receive_blocking(None), Ok(number));
//!     }
//! });
//! assert_eq!(mailbox.books().processed, 100);
//! ```

pub mod clock;
pub mod doorbell;
pub mod feed;
pub mod ring;
pub mod sync;
pub mod wait;

mod bands;
mod books;
mod cursor;
mod error;
mod inbox;
mod lend;
mod levels;
#[cfg(any(test, not(loom)))]
mod lock;
mod mailbox;
mod prefetch;
mod receive;
mod receivers;
mod send;
mod sys;
mod wait_list;

pub use bands::{Band, PASSED_OVER_MAX};
pub use books::Books;
pub use error::{Closed, ReceiveError, SendError, TryReceiveError, TrySendError};
pub use inbox::{Inbox, Outcome, Times};
pub use lend::Lent;
pub use mailbox::{Admission, Backpressure, Close, Diverted, Mailbox, STAMP_EVERY};
pub use receive::{Receive, ReceiveBatch, ReceiveOwned};
pub use send::{Begun, Blocked, Send};
