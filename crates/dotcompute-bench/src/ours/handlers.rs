//! Compiled handlers on threads.

use std::collections::VecDeque;
use std::sync::Arc;

use dotcompute::compiled;
use dotcompute::{CompiledHandler, Envelope, KernelRef, Record, RecordBatch, Runtime, Terminate};

use crate::handled::{BATCH, Handled, Order, handle, handle_slowly, handler, verify};
use crate::harness::{Slice, Stopwatch, Wrong, expect};
use crate::load::{self, CAPACITY, CHUNK};
use crate::os::{beside, pinned};

/// Batches on their way at once.
pub(crate) const AHEAD: usize = 4;
/// Different batches that are sent in turn: as many as a peer's array holds.
const ARRAYS: u64 = 16;

type Batches = KernelRef<RecordBatch, RecordBatch>;

/// Arrays of orders, sent again and again without a copy.
pub(crate) fn arrays() -> Vec<Arc<Vec<Order>>> {
    let array = |first| (first..first + BATCH).map(Order::new).collect();
    (0..ARRAYS).map(|array_| Arc::new(array(array_ * BATCH))).collect()
}

fn batch(orders: &Arc<Vec<Order>>) -> RecordBatch {
    let (start, count) = (orders.as_ptr().cast(), orders.len());
    let keep = Box::new(Arc::clone(orders));
    // SAFETY: so many orders lie there, kept, and nobody writes to them.
    unsafe { RecordBatch::from_foreign(Order::LAYOUT, start, count, keep) }
}

fn launch<M: compiled::RecordMessage, R: compiled::RecordReply>(
    runtime: &Runtime,
    name: &str,
    handler: CompiledHandler,
) -> Result<KernelRef<M, R>, Wrong> {
    let kernel = runtime
        .kernel(name)
        .executor("thread")
        .capacity(CAPACITY)
        .launch_compiled(handler)
        .map_err(Wrong::new)?;
    kernel.activate().map_err(Wrong::new)?;
    Ok(kernel)
}

/// Sends each kernel its share of the batches, some ahead of the replies, and verifies these.
fn exchange(kernels: &[Batches], arrays: &[Arc<Vec<Order>>], operations: u64) -> Result<(), Wrong> {
    let (batches, kernels_) = (operations / BATCH, kernels.len() as u64);
    let array_of = |number: u64| &arrays[(number % ARRAYS) as usize];
    let ahead = (AHEAD * kernels.len()) as u64;
    for number in 0..batches + ahead {
        if number < batches {
            let kernel = &kernels[(number % kernels_) as usize];
            kernel.send_blocking(batch(array_of(number)), None).map_err(Wrong::new)?;
        }
        if let Some(number) = number.checked_sub(ahead).filter(|number| *number < batches) {
            let kernel = &kernels[(number % kernels_) as usize];
            let reply = kernel.receive_blocking(None).map_err(Wrong::new)?;
            let answers = reply.message.as_slice::<Order>().ok_or(Wrong::new("other records"))?;
            verify(answers, number % ARRAYS * BATCH, BATCH)?;
        }
    }
    Ok(())
}

fn batches_over(kernels: &[Batches], operations: u64) -> Result<Slice, Wrong> {
    let (operations, arrays) = (operations / BATCH * BATCH, arrays());
    exchange(kernels, &arrays, (ARRAYS * BATCH).min(operations))?;
    let watch = Stopwatch::start();
    exchange(kernels, &arrays, operations)?;
    let slice = watch.stop();
    let mut handled = 0;
    for kernel in kernels {
        kernel.terminate_blocking(Terminate::drain());
        handled += kernel.telemetry().records;
    }
    expect("records", handled, operations + (ARRAYS * BATCH).min(operations))?;
    Ok(slice)
}

/// Batches of 1000, through a kernel on a thread and back.
pub(crate) fn batches(operations: u64) -> Result<Slice, Wrong> {
    let runtime = Runtime::builder().build();
    let kernel = beside(|| launch(&runtime, "handler", handler(handle)))?;
    pinned(|| batches_over(&[kernel], operations))
}

/// The same with some work for each record, over two kernels, which find their cores themselves.
pub(crate) fn two_kernels(operations: u64) -> Result<Slice, Wrong> {
    slow_kernels(2, operations)
}

/// The same over one.
pub(crate) fn one_kernel(operations: u64) -> Result<Slice, Wrong> {
    slow_kernels(1, operations)
}

fn slow_kernels(count: usize, operations: u64) -> Result<Slice, Wrong> {
    let runtime = Runtime::builder().build();
    let kernels = (0..count)
        .map(|number| launch(&runtime, &format!("handler{number}"), handler(handle_slowly)))
        .collect::<Result<Vec<_>, _>>()?;
    batches_over(&kernels, operations)
}

/// Single records, sent and received as many at a time as there are, through a kernel on a thread.
pub(crate) fn singles(operations: u64) -> Result<Slice, Wrong> {
    let runtime = Runtime::builder().build();
    let handler = handler(handle);
    let state = handler.state_reader();
    let kernel: KernelRef<Order, Order> = beside(|| launch(&runtime, "handler", handler))?;
    let slice = pinned(|| {
        let watch = Stopwatch::start();
        let mut outgoing: VecDeque<Envelope<Order>> = VecDeque::new();
        let mut answers = Vec::new();
        let (mut made, mut answered, mut wrong) = (0, 0, false);
        while answered < operations {
            // Half of what fits is on its way while the other half is received.
            while made < operations && made - answered < CAPACITY as u64 {
                let chunk = CHUNK.min(operations - made);
                outgoing.extend((made..made + chunk).map(|id| Envelope::from(Order::new(id))));
                kernel.send_batch_blocking(&mut outgoing, None).map_err(Wrong::new)?;
                made += chunk;
            }
            kernel.receive_batch_blocking(CAPACITY / 2, &mut answers, None).map_err(Wrong::new)?;
            for answer in answers.drain(..) {
                wrong |= answer.message != Order::answer_to(answered);
                answered += 1;
            }
        }
        expect("wrong answers", wrong, false)?;
        Ok(watch.stop())
    })?;
    kernel.terminate_blocking(Terminate::drain());
    let handled = state.read::<Handled>(load::LONG).map(|state| state.count);
    expect("orders handled", handled, Some(operations))?;
    Ok(slice)
}
