//! One message on its way through a handler, and what the handler can call meanwhile.

use std::ffi::c_void;
use std::fmt;
use std::marker::PhantomData;
use std::ptr;
use std::sync::Arc;

use dotcompute_abi::{HandlerCalls, HandlerContext, codes};
use dotcompute_mailbox::clock;

use super::batch::{Buffer, Pool};
use super::{BoxError, Shape};
use crate::error::Fault;
use crate::record::RecordLayout;

/// How many lines of log one message can write.
const LOG_LINES_MAX: usize = 1024;

/// What a handler makes of one message, until it goes out.
#[repr(C)]
pub(super) struct Outbox {
    /// First, since the handler's calls find the rest through it.
    context: HandlerContext,
    shape: Shape,
    pool: Arc<Pool>,
    replies: Buffer,
    reply_count: usize,
    /// Where a handler that also emits writes the reply that it returns.
    draft: Vec<u64>,
    /// Emitted for which record, and how many.
    emitted: (u64, u32),
    targets: Vec<Sent>,
    log: Vec<(i32, String)>,
    log_left_out: u64,
    fault_text: String,
    /// Whether the kernel is to end at once.
    must_stop: Box<dyn Fn() -> bool + Send>,
}

/// What was sent to one target.
struct Sent {
    layout: &'static RecordLayout,
    records: Vec<u8>,
}

/// The addresses in it are its own, and those of functions.
// SAFETY: nothing of it is tied to a thread.
#[allow(unsafe_code)]
unsafe impl Send for Outbox {}

static CALLS: HandlerCalls = HandlerCalls {
    emit: rk_emit,
    send: rk_send,
    log: rk_log,
    fault: rk_fault,
    tick: rk_tick,
    clock: rk_clock,
    reply: rk_reply,
};

impl Outbox {
    pub(super) fn new(
        shape: Shape,
        targets: impl Iterator<Item = &'static RecordLayout>,
        must_stop: Box<dyn Fn() -> bool + Send>,
    ) -> Box<Self> {
        let pool = Arc::new(Pool::default());
        let replies = pool.take();
        Box::new(Self {
            context: HandlerContext { calls: &raw const CALLS, record: 0, fault: 0 },
            shape,
            pool,
            replies,
            reply_count: 0,
            draft: vec![0; shape.reply_bytes().div_ceil(8).max(1)],
            emitted: (0, 0),
            targets: targets.map(|layout| Sent { layout, records: Vec::new() }).collect(),
            log: Vec::new(),
            log_left_out: 0,
            fault_text: String::new(),
            must_stop,
        })
    }

    /// Makes it empty and ready for a message of `count` records.
    pub(super) fn begin(&mut self, count: usize) {
        self.context.record = 0;
        self.context.fault = codes::FAULT_NONE;
        self.fault_text.clear();
        self.emitted = (0, 0);
        self.reply_count = 0;
        self.targets.iter_mut().for_each(|sent| sent.records.clear());
        if self.shape.max_emit == 0 {
            let words = (count * self.shape.reply_bytes()).div_ceil(8).max(1);
            let have = self.replies.words();
            if have.len() < words {
                // Zeroes anew instead of moving what is there; large ones come zeroed from the
                // system.
                *have = vec![0; words];
            }
        }
    }

    pub(super) fn reply_count(&self) -> usize {
        self.reply_count
    }

    /// The bytes of all replies.
    pub(super) fn replies(&mut self) -> &[u8] {
        let bytes = self.reply_count * self.shape.reply_bytes();
        &bytemuck::cast_slice(self.replies.words())[..bytes]
    }

    /// The memory of all replies; the next message gets other memory.
    ///
    /// Few replies of many records are copied: whoever keeps them would keep room for one per record,
    /// and the next message would have to fetch as much from the system.
    pub(super) fn take_replies(&mut self) -> Buffer {
        let bytes = self.reply_count * self.shape.reply_bytes();
        let have = self.replies.words();
        if bytes <= size_of_val(&have[..]) / 4 {
            return Buffer::copied(&bytemuck::cast_slice(have)[..bytes]);
        }
        std::mem::replace(&mut self.replies, self.pool.take())
    }

    /// What was sent to the target of this number.
    pub(super) fn sent(&mut self, target: usize) -> &mut Vec<u8> {
        &mut self.targets[target].records
    }

    /// What was logged: level and text.
    pub(super) fn take_log(&mut self) -> Vec<(i32, String)> {
        let mut log = std::mem::take(&mut self.log);
        if self.log_left_out > 0 {
            log.push((30, format!("{} more lines of log were left out", self.log_left_out)));
            self.log_left_out = 0;
        }
        log
    }

    pub(super) fn has_log(&self) -> bool {
        !self.log.is_empty()
    }

    fn push(&mut self, record: &[u8]) {
        let (at, bytes) = (self.reply_count * record.len(), record.len());
        let words = self.replies.words();
        if words.len() * 8 < at + bytes {
            words.resize(((at + bytes).div_ceil(8)).next_power_of_two(), 0);
        }
        bytemuck::cast_slice_mut(words)[at..at + bytes].copy_from_slice(record);
        self.reply_count += 1;
    }

    fn emit(&mut self, record: &[u8]) -> i32 {
        if self.emitted.0 != self.context.record {
            self.emitted = (self.context.record, 0);
        }
        if self.emitted.1 >= self.shape.max_emit {
            let max = self.shape.max_emit;
            let text =
                format!("the handler emitted more replies than it declared (max_emit={max})");
            return self.fault(codes::FAULT_EMIT_LIMIT, text);
        }
        self.emitted.1 += 1;
        self.push(record);
        0
    }

    fn fault(&mut self, code: i32, text: String) -> i32 {
        // The first one tells what happened.
        if self.context.fault == codes::FAULT_NONE {
            self.context.fault = if code < 0 { code } else { codes::FAULT_BAD_RESULT };
            self.fault_text = text;
        }
        self.context.fault
    }

    fn log(&mut self, level: i32, text: String) {
        match self.log.len() < LOG_LINES_MAX {
            true => self.log.push((level, text)),
            false => self.log_left_out += 1,
        }
    }

    /// The fault that the handler reported through its context, if it did.
    fn reported(&self) -> Option<Fault> {
        let code = self.context.fault;
        (code != codes::FAULT_NONE).then(|| match self.fault_text.is_empty() {
            true => Fault::code(code),
            false => Fault::code_with(code, format!("{} (fault code {code})", self.fault_text)),
        })
    }
}

impl Shape {
    pub(super) fn reply_bytes(&self) -> usize {
        self.output.map_or(0, |layout| layout.bytes)
    }
}

/// The records of one message on their way through a handler: what [`HandlerCode`] works on.
///
/// Code that was compiled uses the addresses; other code the methods without `unsafe`.
///
/// [`HandlerCode`]: super::HandlerCode
pub struct Call<'a> {
    input: &'a [u8],
    count: usize,
    single: bool,
    state: *mut u8,
    state_bytes: usize,
    /// A pointer and no reference, since the handler's calls use it meanwhile.
    outbox: *mut Outbox,
    shape: Shape,
    _outbox: PhantomData<&'a mut Outbox>,
}

impl<'a> Call<'a> {
    pub(super) fn new(
        input: &'a [u8],
        single: bool,
        state: *mut u8,
        state_bytes: usize,
        outbox: &'a mut Outbox,
    ) -> Self {
        let shape = outbox.shape;
        let count = input.len() / shape.input.bytes;
        outbox.begin(count);
        Self {
            input,
            count,
            single,
            state,
            state_bytes,
            outbox: ptr::from_mut(outbox),
            shape,
            _outbox: PhantomData,
        }
    }

    pub(super) fn shape(&self) -> Shape {
        self.shape
    }

    /// The records, one after the other.
    pub fn input(&self) -> &'a [u8] {
        self.input
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Whether the message is one record, and no batch.
    pub fn is_single(&self) -> bool {
        self.single
    }

    /// Where the state lies. Nobody else touches it while the call lasts.
    pub fn state(&mut self) -> *mut u8 {
        self.state
    }

    /// The size of the state, in bytes.
    pub fn state_bytes(&self) -> usize {
        self.state_bytes
    }

    /// All memory of the message at once, for code in safe Rust: the records, the state, and the
    /// room for replies, whose bytes are left over from earlier ones. Each is aligned at 8 bytes.
    pub fn memory(&mut self) -> (&'a [u8], &mut [u8], &mut [u8]) {
        let (room, replies) = (if self.emits() { 1 } else { self.count }, self.replies());
        let bytes = room * self.shape.reply_bytes();
        // SAFETY: so many bytes of the state are there, and nobody else's while the call lasts.
        #[allow(unsafe_code)]
        let state = unsafe { std::slice::from_raw_parts_mut(self.state, self.state_bytes) };
        // SAFETY: the words of the outbox, as `begin` made room, are apart from the state, and are
        // not touched otherwise while this borrow of the call lasts.
        #[allow(unsafe_code)]
        let replies = unsafe { std::slice::from_raw_parts_mut(replies, bytes) };
        (self.input, state, replies)
    }

    /// Whether the handler emits: then [`replies`](Self::replies) has room for one reply, and each
    /// goes on by the context's `reply` or [`push_reply`](Self::push_reply); else it has room for
    /// one per record, and [`wrote`](Self::wrote) says how many there are.
    pub fn emits(&self) -> bool {
        self.shape.max_emit > 0
    }

    /// Where replies are written.
    pub fn replies(&mut self) -> *mut u8 {
        let emits = self.emits();
        let outbox = self.outbox();
        let words = if emits { &mut outbox.draft } else { outbox.replies.words() };
        words.as_mut_ptr().cast()
    }

    /// What the handler gets as its context; valid while this call lasts.
    pub fn context(&mut self) -> *mut HandlerContext {
        // The whole outbox, of which the context is the beginning.
        self.outbox.cast()
    }

    /// Says how many replies were written.
    ///
    /// # Panics
    ///
    /// If there are more than records.
    pub fn wrote(&mut self, replies: usize) {
        assert!(replies <= self.count, "at most one reply is returned per record");
        self.outbox().reply_count = replies;
    }

    /// Says which record is in hand, from 0.
    pub fn set_record(&mut self, index: usize) {
        self.outbox().context.record = index as u64;
    }

    /// Which record is in hand, from 0.
    pub fn record(&mut self) -> usize {
        self.outbox().context.record as usize
    }

    /// Adds a reply that the handler returned, where it [`emits`](Self::emits) or where the code
    /// has no memory of its own for replies.
    ///
    /// # Panics
    ///
    /// If the reply has another size than the output layout says.
    pub fn push_reply(&mut self, record: &[u8]) {
        assert_eq!(record.len(), self.shape.reply_bytes(), "a reply of another size");
        self.outbox().push(record);
    }

    /// Emits a reply: 0, or the code of the fault that there is one too many.
    ///
    /// # Panics
    ///
    /// As for `push_reply`.
    pub fn emit(&mut self, record: &[u8]) -> i32 {
        assert_eq!(record.len(), self.shape.reply_bytes(), "a reply of another size");
        self.outbox().emit(record)
    }

    /// Sends a record to the target of this number: 0, or the code of the fault that there is none
    /// such, or that the record is of another size.
    pub fn send(&mut self, target: usize, record: &[u8]) -> i32 {
        let outbox = self.outbox();
        match outbox.targets.get_mut(target) {
            Some(sent) if sent.layout.bytes == record.len() => {
                sent.records.extend_from_slice(record);
                0
            }
            Some(_) => outbox.fault(codes::FAULT_RECORD_SIZE, "a record of another size".into()),
            None => outbox.fault(codes::FAULT_BAD_RESULT, format!("there is no target {target}")),
        }
    }

    /// Logs a text at a level of 10 (debug) to 40 (error), when the message is done.
    pub fn log(&mut self, level: i32, text: impl Into<String>) {
        self.outbox().log(level, text.into());
    }

    /// Fails the message with a code and a text: the code that counts, which is that of the first
    /// fault.
    pub fn fault(&mut self, code: i32, text: impl Into<String>) -> i32 {
        self.outbox().fault(code, text.into())
    }

    /// Whether to go on: 0, or the code of the fault that the kernel is to end at once.
    pub fn tick(&mut self) -> i32 {
        self.outbox().tick()
    }

    /// The fault that the handler reported, if it did, or that `result` is: what a handler
    /// returned for one record.
    ///
    /// # Errors
    ///
    /// The fault.
    #[inline]
    pub fn check(&mut self, result: i32) -> Result<(), BoxError> {
        if (0..=1).contains(&result) && self.outbox().context.fault == codes::FAULT_NONE {
            return Ok(());
        }
        Err(self.fault_of(result).into())
    }

    #[cold]
    fn fault_of(&mut self, result: i32) -> Fault {
        match (self.outbox().reported(), result) {
            (Some(fault), _) => fault,
            (None, ..0) => Fault::code(result),
            (None, _) => Fault::code_with(
                codes::FAULT_BAD_RESULT,
                format!("the handler returned {result}: 1, 0 or a negative code is expected"),
            ),
        }
    }

    fn outbox(&mut self) -> &mut Outbox {
        // SAFETY: this call has the only access to it, but for the handler while it runs, and the
        // handler does not run now.
        #[allow(unsafe_code)]
        unsafe {
            &mut *self.outbox
        }
    }
}

impl fmt::Debug for Call<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Call")
            .field("input", &self.shape.input.name)
            .field("count", &self.count)
            .finish_non_exhaustive()
    }
}

impl Outbox {
    fn tick(&mut self) -> i32 {
        if !(self.must_stop)() {
            return self.context.fault;
        }
        self.fault(codes::FAULT_DEADLINE, "the kernel was told to stop".into())
    }
}

/// The outbox that a handler's context is the beginning of.
///
/// # Safety
///
/// `context` is what [`Call::context`] gave, the call lasts, and no other reference to its outbox
/// is in use.
#[allow(unsafe_code)]
unsafe fn outbox_of<'a>(context: *mut HandlerContext) -> &'a mut Outbox {
    // SAFETY: the outbox begins with its context, and the caller promises the rest.
    unsafe { &mut *context.cast::<Outbox>() }
}

/// What a handler passes: `bytes` bytes.
///
/// # Safety
///
/// So many bytes lie there, or there are none.
#[allow(unsafe_code)]
unsafe fn bytes_at<'a>(start: *const u8, bytes: usize) -> &'a [u8] {
    if bytes == 0 {
        return &[];
    }
    // SAFETY: the caller's promise.
    unsafe { std::slice::from_raw_parts(start, bytes) }
}

// What a handler calls. Each is sound as the ABI says: from the handler, with its own context.

#[allow(unsafe_code)]
unsafe extern "C" fn rk_emit(context: *mut HandlerContext, record: *const c_void) -> i32 {
    // SAFETY: the handler passes its own context.
    let outbox = unsafe { outbox_of(context) };
    // SAFETY: the handler passes a record of its output layout.
    let record = unsafe { bytes_at(record.cast(), outbox.shape.reply_bytes()) };
    outbox.emit(record)
}

#[allow(unsafe_code)]
unsafe extern "C" fn rk_reply(context: *mut HandlerContext, record: *const c_void) -> i32 {
    // SAFETY: the handler passes its own context.
    let outbox = unsafe { outbox_of(context) };
    // SAFETY: the loop around the handler passes a record of the output layout.
    let record = unsafe { bytes_at(record.cast(), outbox.shape.reply_bytes()) };
    outbox.push(record);
    0
}

#[allow(unsafe_code)]
unsafe extern "C" fn rk_send(
    context: *mut HandlerContext,
    target: u32,
    record: *const c_void,
) -> i32 {
    // SAFETY: the handler passes its own context.
    let outbox = unsafe { outbox_of(context) };
    let Some(sent) = outbox.targets.get_mut(target as usize) else {
        return outbox.fault(codes::FAULT_BAD_RESULT, format!("there is no target {target}"));
    };
    // SAFETY: the handler passes a record of that target's layout.
    let record = unsafe { bytes_at(record.cast(), sent.layout.bytes) };
    sent.records.extend_from_slice(record);
    0
}

#[allow(unsafe_code)]
unsafe extern "C" fn rk_log(context: *mut HandlerContext, level: i32, text: *const u8, bytes: u64) {
    // SAFETY: the handler passes its own context.
    let outbox = unsafe { outbox_of(context) };
    // SAFETY: the handler passes a text and its length.
    let text = unsafe { bytes_at(text, bytes as usize) };
    outbox.log(level, String::from_utf8_lossy(text).into_owned());
}

#[allow(unsafe_code)]
unsafe extern "C" fn rk_fault(
    context: *mut HandlerContext,
    code: i32,
    text: *const u8,
    bytes: u64,
) -> i32 {
    // SAFETY: the handler passes its own context.
    let outbox = unsafe { outbox_of(context) };
    // SAFETY: the handler passes a text and its length.
    let text = unsafe { bytes_at(text, bytes as usize) };
    outbox.fault(code, String::from_utf8_lossy(text).into_owned())
}

#[allow(unsafe_code)]
unsafe extern "C" fn rk_tick(context: *mut HandlerContext) -> i32 {
    // SAFETY: the handler passes its own context.
    unsafe { outbox_of(context) }.tick()
}

#[allow(unsafe_code)]
unsafe extern "C" fn rk_clock(_context: *mut HandlerContext) -> u64 {
    clock::now_ns()
}
