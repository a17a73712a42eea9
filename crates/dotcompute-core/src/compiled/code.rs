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

impl HandlerCode for RawHandler {
    #[allow(unsafe_code)]
    fn run(&self, call: &mut Call<'_>) -> Result<(), BoxError> {
        let bytes = call.shape().input.bytes;
        let reply_bytes = call.shape().reply_bytes();
        let (emits, state, context) = (call.emits(), call.state(), call.context());
        let replies = call.replies();
        let mut written = 0;
        for (index, message) in call.input().chunks_exact(bytes).enumerate() {
            let at = if emits { 0 } else { written * reply_bytes };
            // SAFETY: there is room for a reply per record, and never more replies than records.
            let reply = unsafe { replies.add(at) };
            // SAFETY: the room is this loop's, and any bytes are a record.
            unsafe { ptr::write_bytes(reply, 0, reply_bytes) };
            call.set_record(index);
            // SAFETY: records of the layouts that `from_raw` was promised to be sound for; the
            // reply's room, the state and the context are this call's alone.
            let result = unsafe {
                (self.function)(message.as_ptr().cast(), state.cast(), reply.cast(), context)
            };
            call.check(result)?;
            if result == abi::codes::HANDLER_REPLY {
                written += 1;
                if emits {
                    // SAFETY: so many bytes of a reply were just written there.
                    let reply = unsafe { std::slice::from_raw_parts(reply, reply_bytes) };
                    call.push_reply(reply);
                }
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
