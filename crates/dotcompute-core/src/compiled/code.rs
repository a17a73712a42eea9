//! The code of a handler.

use std::any::Any;
use std::ptr;

use dotcompute_abi as abi;

use super::Call;
use crate::error::{BoxError, KernelId};

/// Code that runs the records of whole messages: a loop that was compiled together with its
/// handler, an interpreter, or (inside this crate) a loop around a function of the C ABI.
pub trait HandlerCode: Send + Sync + 'static {
    /// Runs all records of a message, in order, and leaves the replies in `call`. It is called by
    /// one thread at a time, and must not wait.
    ///
    /// # Errors
    ///
    /// The fault of the first record that failed; the message then has no replies.
    fn run(&self, call: &mut Call<'_>) -> Result<(), BoxError>;

    /// Takes a line that the handler logged, at a level of 10 (debug) to 40 (error).
    fn log(&self, kernel: &KernelId, level: i32, text: &str) {
        match level {
            40.. => tracing::error!(%kernel, "{text}"),
            30.. => tracing::warn!(%kernel, "{text}"),
            20.. => tracing::info!(%kernel, "{text}"),
            _ => tracing::debug!(%kernel, "{text}"),
        }
    }
}

/// A function of the C ABI, called once per record.
pub(super) struct RawHandler {
    function: abi::Handler,
}

impl RawHandler {
    pub(super) fn new(function: abi::Handler) -> Self {
        Self { function }
    }
}

/// Replies whose room is zeroed at once: few enough to stay in the nearest cache until they are
/// written.
const ZEROED_AT_ONCE: usize = 16;

impl HandlerCode for RawHandler {
    #[allow(unsafe_code)]
    fn run(&self, call: &mut Call<'_>) -> Result<(), BoxError> {
        let (bytes, reply_bytes) = (call.shape().input.bytes, call.shape().reply_bytes());
        let (emits, count, input) = (call.emits(), call.count(), call.input());
        let (replies, state, context) = (call.replies(), call.state(), call.context());
        // For so many replies there is room.
        let room = if emits { 1 } else { count };
        let (mut written, mut zeroed) = (0, 0);
        for (index, message) in input.chunks_exact(bytes).enumerate() {
            if written == zeroed {
                let fresh = ZEROED_AT_ONCE.min(room - written);
                // SAFETY: there is room for `room` replies, of which `written` are done.
                let start = unsafe { replies.add(written * reply_bytes) };
                // SAFETY: room for `fresh` more, which is this loop's; any bytes are a record.
                unsafe { ptr::write_bytes(start, 0, fresh * reply_bytes) };
                zeroed += fresh;
            }
            // SAFETY: as above: at most one reply is written per record.
            let reply = unsafe { replies.add(written * reply_bytes) };
            // SAFETY: the context is this call's, and the handler does not run now.
            unsafe { (*context).record = index as u64 };
            // SAFETY: records of the layouts that `from_raw` was promised to be sound for; the
            // reply's room, the state and the context are this call's alone.
            let result = unsafe {
                (self.function)(message.as_ptr().cast(), state.cast(), reply.cast(), context)
            };
            // SAFETY: the handler has returned.
            let fault = unsafe { (*context).fault };
            if fault != abi::codes::FAULT_NONE {
                return call.check(result);
            }
            match result {
                abi::codes::HANDLER_REPLY if !emits => written += 1,
                abi::codes::HANDLER_REPLY | abi::codes::HANDLER_DONE => {
                    if result == abi::codes::HANDLER_REPLY {
                        // SAFETY: so many bytes of a reply were just written there.
                        let reply = unsafe { std::slice::from_raw_parts(reply, reply_bytes) };
                        call.push_reply(reply);
                    }
                    // The next handler finds nothing of this one's.
                    // SAFETY: this reply's room.
                    unsafe { ptr::write_bytes(reply, 0, reply_bytes) };
                }
                _ => return call.check(result),
            }
        }
        if !emits {
            call.wrote(written);
        }
        Ok(())
    }
}

/// Code, and what must not go away before it.
pub(super) struct Keeping {
    pub(super) code: Box<dyn HandlerCode>,
    pub(super) _library: Box<dyn Any + Send + Sync>,
}

impl HandlerCode for Keeping {
    fn run(&self, call: &mut Call<'_>) -> Result<(), BoxError> {
        self.code.run(call)
    }

    fn log(&self, kernel: &KernelId, level: i32, text: &str) {
        self.code.log(kernel, level, text);
    }
}
