//! What a handler returns, and the fault codes.
//!
//! A handler is `i32 handler(const In *, State *, Out *, Ctx *)`: 1 if it wrote a reply, 0 if not,
//! negative for a fault. Codes from -1 down to [`FAULT_USER_LAST`] are the handler's own; below
//! that they are the runtime's.

shared_constants! {
    /// What a handler returns.
    HANDLER_RESULTS: i32;
    /// The handler is done and made no reply.
    HANDLER_DONE = 0;
    /// The handler is done and wrote a reply.
    HANDLER_REPLY = 1;
}

shared_constants! {
    /// The fault codes of the runtime, and the border between them and the handler's.
    FAULTS: i32;
    /// No fault.
    FAULT_NONE = 0;
    /// The last code that a handler may use for itself.
    FAULT_USER_LAST = -65_535;
    /// The handler panicked or raised an exception.
    FAULT_PANIC = -65_536;
    /// The handler returned a number above 1.
    FAULT_BAD_RESULT = -65_537;
    /// A tick inside the handler found that it was told to stop.
    FAULT_DEADLINE = -65_538;
    /// An index was out of bounds.
    FAULT_BOUNDS = -65_539;
    /// The handler emitted more messages than it declared.
    FAULT_EMIT_LIMIT = -65_540;
    /// A record did not have the size that the handler takes.
    FAULT_RECORD_SIZE = -65_541;
    /// The device or the process under the kernel was lost.
    FAULT_LOST = -65_542;
    /// The kernel did not answer within its watchdog.
    FAULT_STUCK = -65_543;
    /// The threads of one handler did not go together: not all of them came to a barrier, or another than
    /// the first emitted, sent or logged.
    FAULT_DIVERGED = -65_544;
}
