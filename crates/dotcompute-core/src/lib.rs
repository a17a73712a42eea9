//! Ring kernels: messages, lifecycle, executors, supervision, telemetry.
//!
//! What the crate `dotcompute` re-exports; use that one. A kernel is launched by a [`Runtime`], seen
//! from outside as a [`KernelRef`] and from inside as a [`Context`]:
//!
//! ```
//! use dotcompute_core::{Context, Message, Runtime};
//!
//! #[derive(Message)]
//! #[message(crate = "dotcompute_core")]
//! struct Number {
//!     value: u64,
//! }
//!
//! let runtime = Runtime::builder().build();
//! let doubler = runtime.kernel("doubler").launch(
//!     |mut context: Context<Number, Number>| async move {
//!         while let Ok(number) = context.receive().await {
//!             let value = number.value * 2;
//!             context.reply(Number { value }).await?;
//!         }
//!         Ok(())
//!     },
//! )?;
//! doubler.activate()?;
//! assert_eq!(doubler.ask_blocking(Number { value: 21 }, None)?.message.value, 42);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#![deny(unsafe_code)]

pub mod compiled;
pub mod record;
pub mod wire;

mod ask;
mod context;
mod dead_letter;
mod error;
mod executor;
mod handler;
mod id;
mod kernel;
mod lent;
mod lifecycle;
mod message;
mod options;
mod passing;
mod pipeline;
mod pool;
mod relay;
mod runtime;
mod supervision;
mod telemetry;
mod terminate;
mod timer;

pub use compiled::{CompiledHandler, RecordBatch};
pub use context::Context;
pub use dead_letter::{
    DEAD_LETTERS_MAX, DEAD_LETTERS_MAX_BYTES, DeadLetter, DeadLetterCounts, DeadLetterReason,
};
pub use dotcompute_abi as abi;
pub use dotcompute_macros::Message;
pub use dotcompute_mailbox::{Backpressure, Band, Books};
pub use error::{
    AskError, BoxError, ConnectError, Fault, FaultKind, KernelId, LaunchError, LookupError,
    ReceiveError, SendError, StateError, Stopped,
};
pub use executor::{Executor, Helper, KernelTask, Place};
pub use handler::{FindId, Handler, HandlerCalls, HandlerContext, Made};
pub use id::{MessageId, ParseMessageIdError};
pub use kernel::{Address, KernelRef, Next, Pipeline, Receiving, ScopedKernel};
pub use lifecycle::KernelState;
pub use message::{DEFAULT_PRIORITY, Envelope, Message};
pub use options::{CAPACITY_MAX, DELIVERIES_MAX, Restart, RestartPolicy};
pub use passing::{KernelKey, NextStage, Passage};
pub use pool::{Pool, PoolBuilder};
pub use record::Record;
pub use runtime::{KernelBuilder, Runtime, RuntimeBuilder};
pub use telemetry::{KernelTelemetry, Latency};
pub use terminate::{Terminate, Termination};
pub use timer::{Sleep, TimeoutsHeld, hold_timeouts, restart_timeouts_after_fork, sleep_until};
pub use wire::WireMessage;

/// What the code of the derive macro names besides the public items.
#[doc(hidden)]
pub mod __private {
    pub use bytemuck;
}
