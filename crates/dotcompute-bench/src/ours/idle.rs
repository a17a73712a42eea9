//! Async kernels that have started and wait for a message.

use dotcompute::{Context, Runtime};

use crate::harness::Wrong;
use crate::load::CAPACITY;
use crate::memory::Census;
use crate::ours::Number;

/// Kernels on a runtime with its default workers, which have not had a message.
pub(crate) fn kernels(count: u64) -> Result<Census, Wrong> {
    start(count, false)
}

/// The same, but each has had one.
pub(crate) fn used_kernels(count: u64) -> Result<Census, Wrong> {
    start(count, true)
}

fn start(count: u64, used: bool) -> Result<Census, Wrong> {
    let runtime = Runtime::builder().build();
    Census::take(count, |number, arrivals| {
        let kernel = runtime
            .kernel(format!("idle {number}"))
            .capacity(CAPACITY)
            .launch(move |mut context: Context<Number, Number>| {
                let arrivals = arrivals.clone();
                async move {
                    if used {
                        context.receive().await?;
                    }
                    arrivals.arrive();
                    while context.receive().await.is_ok() {}
                    Ok(())
                }
            })
            .map_err(Wrong::new)?;
        kernel.activate().map_err(Wrong::new)?;
        if used {
            kernel.try_send(Number(number)).map_err(Wrong::new)?;
        }
        Ok(kernel)
    })
}
