//! Messages to one kernel on a thread of its own.

use std::sync::mpsc;
use std::time::{Duration, Instant};

use dotcompute::{BoxError, Handler, HandlerContext, KernelRef, Message, Runtime, Terminate};

use crate::harness::{Slice, Wrong};
use crate::load::{Adder, CAPACITY, InOrderEach, SENDERS, Sending, Signed, many_senders};
use crate::os::pinned;
use crate::ours::{Number, verify_books};

struct Sum(Adder);

impl Handler for Sum {
    type In = Number;
    type Out = Number;

    fn handle(
        &mut self,
        &Number(number): &Number,
        _: &mut HandlerContext<Number>,
    ) -> Result<Option<Number>, BoxError> {
        self.0.add(number);
        Ok(None)
    }
}

/// `send_blocking` from one thread.
pub(crate) fn send(operations: u64) -> Result<Slice, Wrong> {
    let (adder, reported) = Adder::new(operations);
    let runtime = Runtime::builder().build();
    let kernel = thread_kernel(&runtime, Sum(adder))?;
    let sending = Sending::start();
    for number in 0..operations {
        kernel.send_blocking(Number(number), None).map_err(Wrong::new)?;
    }
    let slice = sending.until_reported(&reported, operations)?;
    kernel.terminate_blocking(Terminate::drain());
    verify_books(&kernel, operations)?;
    Ok(slice)
}

struct SumEach {
    in_order: InOrderEach,
    each: u64,
    report: mpsc::Sender<Result<Instant, Wrong>>,
}

impl Message for Signed {
    const TYPE_NAME: &'static str = "Signed";
}

impl Handler for SumEach {
    type In = Signed;
    type Out = Number;

    fn handle(
        &mut self,
        &message: &Signed,
        _: &mut HandlerContext<Number>,
    ) -> Result<Option<Number>, BoxError> {
        if self.in_order.signed(message) == self.each * SENDERS {
            let ended = Instant::now();
            // The bench only stops listening once it has failed for another reason.
            let _ = self.report.send(self.in_order.verify(self.each).map(|()| ended));
        }
        Ok(None)
    }
}

/// `send_blocking` from four threads.
pub(crate) fn senders(operations: u64) -> Result<Slice, Wrong> {
    let each = operations / SENDERS;
    let (report, reported) = mpsc::channel();
    let runtime = Runtime::builder().build();
    let kernel =
        thread_kernel(&runtime, SumEach { in_order: InOrderEach::default(), each, report })?;
    let slice = many_senders(
        each,
        |message| kernel.send_blocking(message, None).map_err(Wrong::new),
        || {
            reported
                .recv_timeout(Duration::from_secs(60))
                .map_err(|_| Wrong::new("the kernel did not get every message"))?
        },
    )?;
    kernel.terminate_blocking(Terminate::drain());
    verify_books(&kernel, each * SENDERS)?;
    Ok(slice)
}

/// The same with all threads on one core.
pub(crate) fn senders_one_core(operations: u64) -> Result<Slice, Wrong> {
    pinned(|| senders(operations))
}

fn thread_kernel<H: Handler>(
    runtime: &Runtime,
    handler: H,
) -> Result<KernelRef<H::In, H::Out>, Wrong> {
    let mut handler = Some(handler);
    let kernel = runtime
        .kernel("sum")
        .executor("thread")
        .capacity(CAPACITY)
        .launch_handler(move || handler.take().expect("a kernel that never fails starts once"))
        .map_err(Wrong::new)?;
    kernel.activate().map_err(Wrong::new)?;
    Ok(kernel)
}
