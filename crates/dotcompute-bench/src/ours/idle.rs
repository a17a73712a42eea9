//! Async kernels that have started and wait for their first message.

use dotcompute::{Context, Runtime};

use crate::harness::Wrong;
use crate::load::CAPACITY;
use crate::memory::Census;
use crate::ours::Number;

/// Kernels on a runtime with its default workers.
pub(crate) fn kernels(count: u64) -> Result<Census, Wrong> {
    let runtime = Runtime::builder().build();
    Census::take(count, |number, arrivals| {
        let kernel = runtime
            .kernel(format!("idle {number}"))
            .capacity(CAPACITY)
            .launch(move |mut context: Context<Number, Number>| {
                let arrivals = arrivals.clone();
                async move {
                    arrivals.arrive();
                    while context.receive().await.is_ok() {}
                    Ok(())
                }
            })
            .map_err(Wrong::new)?;
        kernel.activate().map_err(Wrong::new)?;
        Ok(kernel)
    })
}
