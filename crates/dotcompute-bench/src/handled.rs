//! What the rows about compiled handlers handle: a 64-byte record, and the handler.

use std::ffi::c_void;

use dotcompute::abi::HandlerContext;
use dotcompute::{CompiledHandler, Message, Record};

use crate::harness::{Wrong, expect};

/// Records of a batch in the rows about batches.
pub(crate) const BATCH: u64 = 1000;

/// A 64-byte record.
#[derive(Debug, Clone, Copy, PartialEq, Message)]
#[message(record, no_wire)]
#[repr(C)]
pub(crate) struct Order {
    pub(crate) id: u64,
    answers: u64,
    priority: u32,
    kind: u32,
    a: f64,
    b: f64,
    c: f64,
    d: f64,
    e: f64,
}

impl Order {
    pub(crate) fn new(id: u64) -> Self {
        Self { id, answers: 0, priority: 1, kind: 0, a: id as f64, b: 2.0, c: 3.0, d: 0.0, e: 0.0 }
    }

    /// What the handler makes of the order of this number.
    pub(crate) fn answer_to(id: u64) -> Self {
        Self { answers: id, kind: 1, a: id as f64 + 6.0, ..Self::new(id) }
    }
}

/// How many orders were handled.
#[derive(Debug, Clone, Copy, Default, PartialEq, Message)]
#[message(record, no_wire)]
#[repr(C)]
pub(crate) struct Handled {
    pub(crate) count: u64,
}

/// The handler, as a compiler of another language would leave it.
///
/// # Safety
///
/// As the ABI says, for an `Order`, a `Handled` and an `Order`.
pub(crate) unsafe extern "C" fn handle(
    message: *const c_void,
    state: *mut c_void,
    reply: *mut c_void,
    _context: *mut HandlerContext,
) -> i32 {
    // SAFETY: the caller passes an order.
    let order = unsafe { &*message.cast::<Order>() };
    // SAFETY: the caller passes the state.
    let state = unsafe { &mut *state.cast::<Handled>() };
    // SAFETY: the caller passes room for an order.
    let reply = unsafe { &mut *reply.cast::<Order>() };
    state.count += 1;
    reply.id = order.id;
    reply.answers = order.id;
    reply.priority = order.priority;
    reply.kind = order.kind + 1;
    reply.a = order.a + order.b * order.c;
    reply.b = order.b;
    reply.c = order.c;
    1
}

/// The same with some work that keeps the core busy.
///
/// # Safety
///
/// As for [`handle`].
pub(crate) unsafe extern "C" fn handle_slowly(
    message: *const c_void,
    state: *mut c_void,
    reply: *mut c_void,
    context: *mut HandlerContext,
) -> i32 {
    // SAFETY: the caller passes an order.
    let order = unsafe { &*message.cast::<Order>() };
    let worked =
        (0..64).fold(order.id, |x: u64, _| (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb));
    // SAFETY: the caller's arguments.
    let result = unsafe { handle(message, state, reply, context) };
    // SAFETY: the caller passes room for an order.
    let reply = unsafe { &mut *reply.cast::<Order>() };
    reply.d = f64::from(std::hint::black_box(worked) as u32 & 1) * 0.0;
    result
}

/// A handler for a kernel.
pub(crate) fn handler(function: dotcompute::abi::Handler) -> CompiledHandler {
    // SAFETY: the two functions above take these layouts.
    unsafe { CompiledHandler::from_raw(function, Order::LAYOUT) }
        .output(Order::LAYOUT)
        .state(&Handled::default())
}

/// Refuses answers that are not those to the orders from `first` on: looks at the first, the last
/// and the number.
pub(crate) fn verify(answers: &[Order], first: u64, count: u64) -> Result<(), Wrong> {
    expect("answers", answers.len() as u64, count)?;
    let ends = (answers.first().copied(), answers.last().copied());
    let wanted = (Order::answer_to(first), Order::answer_to(first + count - 1));
    expect("first and last answer", ends, (Some(wanted.0), Some(wanted.1)))
}
