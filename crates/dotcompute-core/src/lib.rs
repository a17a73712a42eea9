//! Ring kernels: messages, lifecycle, executors, supervision, telemetry.

mod id;
mod message;

pub use id::{MessageId, ParseMessageIdError};
pub use message::{DEFAULT_PRIORITY, Envelope, Message};
