//! A question to an async kernel and its answer.

use dotcompute::{Context, Runtime, Terminate};

use crate::harness::{Slice, Trips, Wrong, expect};
use crate::load::CAPACITY;
use crate::os::pinned;
use crate::ours::{Number, verify_books};
use crate::peers::tokio::current_thread;

/// `ask` a kernel that answers with the next number; asker and kernel on one thread.
pub(crate) fn ask(operations: u64) -> Result<Slice, Wrong> {
    pinned(|| {
        current_thread().block_on(async {
            let runtime = Runtime::builder().build();
            let kernel = runtime
                .kernel("echo")
                .capacity(CAPACITY)
                .launch(|mut context: Context<Number, Number>| async move {
                    while let Ok(&Number(number)) = context.receive().await {
                        context.reply(Number(number + 1)).await?;
                    }
                    Ok(())
                })
                .map_err(Wrong::new)?;
            kernel.activate().map_err(Wrong::new)?;
            let mut trips = Trips::new(operations);
            for number in trips.by_ref() {
                let reply = kernel.ask(Number(number)).await.map_err(Wrong::new)?;
                expect("reply", reply.message.0, number + 1)?;
            }
            kernel.terminate(Terminate::drain()).await;
            verify_books(&kernel, Trips::total(operations))?;
            Ok(trips.finish())
        })
    })
}
