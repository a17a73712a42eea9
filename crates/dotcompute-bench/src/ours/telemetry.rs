//! What it costs to take the times of messages.

use dotcompute::{BoxError, Handler, HandlerContext, Runtime, Terminate};

use crate::harness::{Slice, Stopwatch, Wrong};
use crate::load::CAPACITY;
use crate::os::pinned;
use crate::ours::{Number, verify_books};
use crate::peers::tokio::current_thread;

struct Ignore;

impl Handler for Ignore {
    type In = Number;
    type Out = Number;

    fn handle(
        &mut self,
        _: &Number,
        _: &mut HandlerContext<Number>,
    ) -> Result<Option<Number>, BoxError> {
        Ok(None)
    }
}

/// Messages through an async kernel with its defaults; sender and kernel on one thread.
pub(crate) fn by_default(operations: u64) -> Result<Slice, Wrong> {
    through(operations, None)
}

/// The same with the times of each message taken.
pub(crate) fn each(operations: u64) -> Result<Slice, Wrong> {
    through(operations, Some(1))
}

/// The same with the times of the first message taken and of no other.
pub(crate) fn first_only(operations: u64) -> Result<Slice, Wrong> {
    through(operations, Some(u64::MAX))
}

fn through(operations: u64, sample_every: Option<u64>) -> Result<Slice, Wrong> {
    pinned(|| {
        current_thread().block_on(async {
            let runtime = Runtime::builder().build();
            let mut kernel = runtime.kernel("ignore").capacity(CAPACITY);
            if let Some(distance) = sample_every {
                kernel = kernel.sample_every(distance);
            }
            let kernel = kernel.launch_handler(|| Ignore).map_err(Wrong::new)?;
            kernel.activate().map_err(Wrong::new)?;
            let watch = Stopwatch::start();
            for number in 0..operations {
                kernel.send(Number(number)).await.map_err(Wrong::new)?;
            }
            // A drain ends when the last message has been handled.
            kernel.terminate(Terminate::drain()).await;
            let slice = watch.stop();
            verify_books(&kernel, operations)?;
            Ok(slice)
        })
    })
}
