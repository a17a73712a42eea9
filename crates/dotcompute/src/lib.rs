//! A GPU-native actor runtime.
//!
//! A **ring kernel** is an actor for compute: a long-lived loop with a bounded mailbox, private
//! state and a two-phase start (launch takes resources, activate processes messages). One
//! programming model; where the loop runs is chosen at launch.
//!
//! ```
//! use dotcompute::{Context, Message, Runtime, Terminate};
//!
//! #[derive(Message)]
//! struct Reading {
//!     celsius: f64,
//! }
//!
//! #[derive(Message)]
//! struct Mean {
//!     celsius: f64,
//! }
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
//! let runtime = Runtime::builder().build();
//! let mean = runtime.kernel("mean").executor("thread").launch(
//!     |mut context: Context<Reading, Mean>| async move {
//!         let (mut sum, mut count) = (0.0, 0.0);
//!         while let Ok(reading) = context.receive().await {
//!             sum += reading.celsius;
//!             count += 1.0;
//!             context.reply(Mean { celsius: sum / count }).await?;
//!         }
//!         Ok(())
//!     },
//! )?;
//! mean.activate()?;
//! mean.ask_blocking(Reading { celsius: 20.0 }, None)?;
//! let answer = mean.ask_blocking(Reading { celsius: 22.0 }, None)?;
//! assert_eq!(answer.message.celsius, 21.0);
//! mean.terminate_blocking(Terminate::now());
//! # Ok(())
//! # }
//! ```
//!
//! - Kernels are launched and found through a [`Runtime`], reached through a [`KernelRef`] (or an
//!   [`Address`], which hides what they reply with), and see themselves through a [`Context`] or as
//!   a [`Handler`].
//! - Messages are plain types with `#[derive(Message)]`; on the way each is in an [`Envelope`].
//!   [`wire`] turns them into bytes that a Python program reads, [`record`] into fixed slots.
//! - A [`Fault`] reaches whoever waits; a [`Restart`] policy may mend it; what nobody processed is a
//!   [`DeadLetter`]. The [`Books`] of every kernel balance.

pub use dotcompute_core::*;

/// The queues below the runtime, for use on their own: priority mailboxes, single-producer rings,
/// and waiting.
pub use dotcompute_mailbox as mailbox;

/// Kernels in processes of their own: the executor `"process"`.
pub use dotcompute_process as process;

/// Kernels that stay on a GPU: the executor `"cuda"`. It has not been run on a GPU yet.
#[cfg(feature = "cuda")]
pub use dotcompute_cuda as cuda;

#[cfg(feature = "prometheus")]
pub mod prometheus;
