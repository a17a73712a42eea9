//! Ring kernels: messages, lifecycle, executors, supervision, telemetry.

pub mod record;
pub mod wire;

mod id;
mod message;

pub use dotcompute_macros::Message;
pub use id::{MessageId, ParseMessageIdError};
pub use message::{DEFAULT_PRIORITY, Envelope, Message};
pub use record::Record;
pub use wire::WireMessage;

/// What the code of the derive macro names besides the public items.
#[doc(hidden)]
pub mod __private {
    pub use bytemuck;
}
