//! How a compiled handler is called, and what it can call: the same in C, C++, CUDA, Rust and numba.
//!
//! A handler is [`Handler`]: `i32 handler(const In *, State *, Out *, rk_ctx *)`. It gets one record
//! and the kernel's state, writes its reply over `Out` (zeroed before each call) and returns 1 if
//! there is a reply, 0 if there is none, or a negative fault code (see [`codes`](crate::codes)). It
//! never blocks, keeps none of its pointers, and passes the context on as it got it.
//!
//! On the host the context leads to a table of functions; the header's `rk_*` functions call them.
//! On a GPU the same names are inlined.

use core::ffi::c_void;
use core::mem::{offset_of, size_of};

/// A compiled handler.
///
/// # Safety
///
/// The pointers lead to one record of the input layout, the state, one record of the output layout
/// (that may be written) and a context, each aligned; nobody else writes to any of them meanwhile.
pub type Handler = unsafe extern "C" fn(
    message: *const c_void,
    state: *mut c_void,
    reply: *mut c_void,
    context: *mut HandlerContext,
) -> i32;

/// What a handler's context is on the host. A handler reads nothing of it; a loop over records,
/// compiled with its handler, keeps `record` and looks at `fault`.
#[repr(C)]
#[derive(Debug)]
pub struct HandlerContext {
    /// The functions that a handler can call.
    pub calls: *const HandlerCalls,
    /// Which record of its batch is in hand, from 0.
    pub record: u64,
    /// The fault that the handler reported through its context; 0: none.
    pub fault: i32,
}

/// The functions behind `rk_*` on the host. All may be called only from the handler that got the
/// context, while it runs.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct HandlerCalls {
    /// Emits one more reply before the one that the handler returns: 0, or a fault code.
    pub emit: unsafe extern "C" fn(*mut HandlerContext, *const c_void) -> i32,
    /// Sends a record to the target of this number, of those declared: 0, or a fault code.
    pub send: unsafe extern "C" fn(*mut HandlerContext, u32, *const c_void) -> i32,
    /// Logs a text of so many bytes of UTF-8, at a level of 10 (debug) to 40 (error).
    pub log: unsafe extern "C" fn(*mut HandlerContext, i32, *const u8, u64),
    /// Fails the message in hand, with a code and a text: the code.
    pub fault: unsafe extern "C" fn(*mut HandlerContext, i32, *const u8, u64) -> i32,
    /// Whether to go on: 0, or the fault code to return. For handlers with long loops.
    pub tick: unsafe extern "C" fn(*mut HandlerContext) -> i32,
    /// A monotonic clock, in nanoseconds.
    pub clock: unsafe extern "C" fn(*mut HandlerContext) -> u64,
    /// Takes the reply that a handler returned, where it also emits; for loops over records.
    pub reply: unsafe extern "C" fn(*mut HandlerContext, *const c_void) -> i32,
}

const WORD_BYTES: usize = size_of::<*const c_void>();
const _: () = assert!(offset_of!(HandlerContext, calls) == 0);
const _: () = assert!(offset_of!(HandlerContext, record) == 8);
const _: () = assert!(offset_of!(HandlerContext, fault) == 16);
const _: () = assert!(offset_of!(HandlerCalls, emit) == 0);
const _: () = assert!(offset_of!(HandlerCalls, send) == WORD_BYTES);
const _: () = assert!(offset_of!(HandlerCalls, log) == 2 * WORD_BYTES);
const _: () = assert!(offset_of!(HandlerCalls, fault) == 3 * WORD_BYTES);
const _: () = assert!(offset_of!(HandlerCalls, tick) == 4 * WORD_BYTES);
const _: () = assert!(offset_of!(HandlerCalls, clock) == 5 * WORD_BYTES);
const _: () = assert!(offset_of!(HandlerCalls, reply) == 6 * WORD_BYTES);

/// The same in C.
pub(crate) const C_TEXT: &str = "\
/* What a handler can call, from inside: see `rk_*` below. */
typedef struct rk_ctx rk_ctx;

/* A compiled handler: DC_HANDLER_REPLY if it wrote a reply, DC_HANDLER_DONE if not, or a negative
   fault code. `reply` is zeroed before each call. It never blocks and keeps none of its pointers. */
typedef int32_t (*rk_handler)(const void *message, void *state, void *reply, rk_ctx *ctx);

#if !defined(__CUDACC__) && !defined(DC_DEVICE_TWIN)
typedef struct rk_calls {
    int32_t (*emit)(rk_ctx *, const void *);
    int32_t (*send)(rk_ctx *, uint32_t, const void *);
    void (*log)(rk_ctx *, int32_t, const char *, uint64_t);
    int32_t (*fault)(rk_ctx *, int32_t, const char *, uint64_t);
    int32_t (*tick)(rk_ctx *);
    uint64_t (*clock)(rk_ctx *);
    int32_t (*reply)(rk_ctx *, const void *);
} rk_calls;
struct rk_ctx {
    const rk_calls *calls;
    uint64_t record;
    int32_t fault;
};
DC_ASSERT(DC_OFFSET(struct rk_ctx, record) == 8, \"rk_ctx.record\");
DC_ASSERT(DC_OFFSET(struct rk_ctx, fault) == 16, \"rk_ctx.fault\");
DC_ASSERT(DC_OFFSET(rk_calls, send) == sizeof(void *), \"rk_calls.send\");
DC_ASSERT(DC_OFFSET(rk_calls, log) == 2 * sizeof(void *), \"rk_calls.log\");
DC_ASSERT(DC_OFFSET(rk_calls, fault) == 3 * sizeof(void *), \"rk_calls.fault\");
DC_ASSERT(DC_OFFSET(rk_calls, tick) == 4 * sizeof(void *), \"rk_calls.tick\");
DC_ASSERT(DC_OFFSET(rk_calls, clock) == 5 * sizeof(void *), \"rk_calls.clock\");
DC_ASSERT(DC_OFFSET(rk_calls, reply) == 6 * sizeof(void *), \"rk_calls.reply\");

/* Emits one more reply before the one that the handler returns: 0, or the fault code to return. */
static inline int32_t rk_emit(rk_ctx *ctx, const void *record) {
    return ctx->calls->emit(ctx, record);
}
/* Sends a record to the target of this number, of those declared: 0, or the fault code to return. */
static inline int32_t rk_send(rk_ctx *ctx, uint32_t target, const void *record) {
    return ctx->calls->send(ctx, target, record);
}
/* Logs a text of so many bytes of UTF-8, at a level of 10 (debug) to 40 (error). */
static inline void rk_log(rk_ctx *ctx, int32_t level, const char *text, uint64_t bytes) {
    ctx->calls->log(ctx, level, text, bytes);
}
/* Fails the message in hand: return what it returns. */
static inline int32_t rk_fault(rk_ctx *ctx, int32_t code, const char *text, uint64_t bytes) {
    return ctx->calls->fault(ctx, code, text, bytes);
}
/* Whether to go on: 0, or the fault code to return. For handlers with long loops. */
static inline int32_t rk_tick(rk_ctx *ctx) { return ctx->calls->tick(ctx); }
/* A monotonic clock, in nanoseconds. */
static inline uint64_t rk_clock(rk_ctx *ctx) { return ctx->calls->clock(ctx); }
#endif
";
