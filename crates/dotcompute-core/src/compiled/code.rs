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
    /// The fault of the first record that failed, which [`Call::set_record`] says. The message then has
    /// no replies; of records that came by a [`Feed`](super::Feed), each a message of its own, those
    /// before it have what [`Call::wrote`] says.
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

/// Records that are handled between two looks at what is not the handler's: whose replies' room is
/// zeroed at once, few enough to stay in the nearest cache until they are written.
const AT_ONCE: usize = 16;

impl HandlerCode for RawHandler {
    fn run(&self, call: &mut Call<'_>) -> Result<(), BoxError> {
        match call.emits() {
            false => self.reply(call),
            true => self.emit(call),
        }
    }
}

impl RawHandler {
    /// Each record has one reply at most, which is written where it stays.
    #[allow(unsafe_code)]
    fn reply(&self, call: &mut Call<'_>) -> Result<(), BoxError> {
        let (bytes, reply_bytes) = (call.shape().input.bytes, call.shape().reply_bytes());
        let (replies, state, context) = (call.replies(), call.state(), call.context());
        let run = Run { function: self.function, bytes, reply_bytes, state, context };
        let (count, input) = (call.count(), call.input());
        // How many replies there are, and for how many there is zeroed room.
        let (mut written, mut zeroed) = (0, 0);
        for (chunk, records) in input.chunks(AT_ONCE * bytes).enumerate() {
            let wanted = count.min(written + AT_ONCE);
            if zeroed < wanted {
                // SAFETY: there is room for `count` replies.
                let start = unsafe { replies.add(zeroed * reply_bytes) };
                // SAFETY: that room is this loop's; any bytes are a record.
                unsafe { ptr::write_bytes(start, 0, (wanted - zeroed) * reply_bytes) };
                zeroed = wanted;
            }
            // SAFETY: as above, and at most one reply has been written per record.
            let room = unsafe { replies.add(written * reply_bytes) };
            // SAFETY: the records are of the layout, and behind `room` is zeroed room for as many
            // replies; all of it is this call's alone.
            let (left, replied, result) = unsafe { run.records(records, room) };
            written += replied;
            if left > 0 {
                call.wrote(written);
                call.set_record(chunk * AT_ONCE + records.len() / bytes - left);
                return call.check(result);
            }
        }
        call.wrote(written);
        Ok(())
    }

    /// There is room for one reply, which joins those that the handler emitted.
    #[allow(unsafe_code)]
    fn emit(&self, call: &mut Call<'_>) -> Result<(), BoxError> {
        let (bytes, reply_bytes) = (call.shape().input.bytes, call.shape().reply_bytes());
        let (function, input) = (self.function, call.input());
        let (reply, state, context) = (call.replies(), call.state(), call.context());
        for (index, message) in input.chunks_exact(bytes).enumerate() {
            // The handler finds nothing of the last record's.
            // SAFETY: the room for a reply, which is this loop's; any bytes are a record.
            unsafe { ptr::write_bytes(reply, 0, reply_bytes) };
            call.set_record(index);
            // SAFETY: as in `reply`.
            let result =
                unsafe { function(message.as_ptr().cast(), state.cast(), reply.cast(), context) };
            call.check(result)?;
            if result == abi::codes::HANDLER_REPLY {
                // SAFETY: so many bytes of a reply were just written there.
                call.push_reply(unsafe { std::slice::from_raw_parts(reply, reply_bytes) });
            }
        }
        Ok(())
    }
}

/// A function, and what it is called with besides records.
#[derive(Clone, Copy)]
struct Run {
    function: abi::Handler,
    bytes: usize,
    reply_bytes: usize,
    state: *mut u8,
    context: *mut abi::HandlerContext,
}

impl Run {
    /// Calls the function for each record; how many are left where it stopped, how many replies it
    /// wrote, and its last result.
    ///
    /// What a batch costs beyond its handler is this loop. It is a function of its own since what it
    /// needs fits into the registers that a call leaves alone.
    ///
    /// # Safety
    ///
    /// `records` are such as the function takes, at `room` there is zeroed room for as many replies,
    /// and it may be called with these, the state and the context.
    #[inline(never)]
    #[allow(unsafe_code)]
    unsafe fn records(self, records: &[u8], room: *mut u8) -> (usize, usize, i32) {
        let Self { function, bytes, reply_bytes, state, context } = self;
        let mut records = records.chunks_exact(bytes);
        let (mut reply, mut written) = (room, 0);
        while let Some(message) = records.next() {
            // SAFETY: the caller's promise.
            let result =
                unsafe { function(message.as_ptr().cast(), state.cast(), reply.cast(), context) };
            // SAFETY: the handler has returned.
            let fault = unsafe { (*context).fault };
            if result == abi::codes::HANDLER_REPLY && fault == abi::codes::FAULT_NONE {
                written += 1;
                // SAFETY: there is room for one reply per record.
                reply = unsafe { reply.add(reply_bytes) };
                continue;
            }
            if result != abi::codes::HANDLER_DONE || fault != abi::codes::FAULT_NONE {
                return (records.len() + 1, written, result);
            }
            // The next record finds nothing of this one's.
            // SAFETY: this reply's room.
            unsafe { ptr::write_bytes(reply, 0, reply_bytes) };
        }
        (0, written, abi::codes::HANDLER_DONE)
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
