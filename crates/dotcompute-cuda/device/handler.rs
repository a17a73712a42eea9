//! Handlers in Rust that run on a GPU and on the host: an experiment.
//!
//! A handler is a function from a record, the state, a reply and a [`Context`] to an [`Outcome`]:
//!
//! ```
//! use dotcompute_cuda::handler::{Context, Handled, Outcome};
//!
//! #[derive(Clone, Copy)]
//! #[repr(C)]
//! pub struct Amount {
//!     pub value: i64,
//! }
//!
//! pub fn add(message: &Amount, total: &mut Amount, reply: &mut Amount, _: &mut Context) -> Outcome {
//!     total.value += message.value;
//!     reply.value = total.value;
//!     Ok(Handled::Reply)
//! }
//! ```
//!
//! `CudaHandler::from_rust` compiles the text of a file of such functions for a GPU; as a module of the
//! program, the same file runs on the host, where [`enter`] makes of a function what
//! `CompiledHandler::from_raw` takes. This module is compiled with either.

use core::ffi::c_void;

/// What a handler has made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handled {
    /// No reply.
    Done,
    /// It has written its reply.
    Reply,
}

/// Why a handler failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault(i32);

impl Fault {
    /// A fault with a code from -1 to -65535, which is the handler's own. What is no negative number
    /// becomes the fault that a bad result is.
    pub fn code(code: i32) -> Self {
        Self(if code < 0 { code } else { BAD_RESULT })
    }

    fn check(code: i32) -> Result<(), Self> {
        if code == 0 { Ok(()) } else { Err(Self(code)) }
    }
}

/// What a handler returns.
pub type Outcome = Result<Handled, Fault>;

/// `FAULT_BAD_RESULT` and `FAULT_RECORD_SIZE` of the ABI, which is not there on a GPU.
const BAD_RESULT: i32 = -65_537;
const RECORD_SIZE: i32 = -65_541;

/// What a handler can call while it runs.
#[derive(Debug)]
pub struct Context {
    raw: *mut calls::Raw,
    reply_bytes: usize,
}

impl Context {
    /// Emits one more reply before the one that the handler returns.
    ///
    /// # Errors
    ///
    /// The fault to return: it emits more than its kernel declares, or `record` has another size than
    /// the reply.
    #[inline(always)]
    pub fn emit<R: Copy>(&mut self, record: &R) -> Result<(), Fault> {
        if size_of::<R>() != self.reply_bytes {
            return Err(Fault(RECORD_SIZE));
        }
        // SAFETY: the context of this call; as many bytes as a reply has.
        Fault::check(unsafe { calls::emit(self.raw, (&raw const *record).cast()) })
    }

    /// Sends a record to the target of this number, of those that its kernel declares.
    ///
    /// # Errors
    ///
    /// The fault to return: there is no such target, or it sends too much.
    ///
    /// # Safety
    ///
    /// - Records of the target are no larger than `T`.
    #[inline(always)]
    pub unsafe fn send<T: Copy>(&mut self, target: u32, record: &T) -> Result<(), Fault> {
        // SAFETY: the context of this call, and as the caller promises.
        Fault::check(unsafe { calls::send(self.raw, target, (&raw const *record).cast()) })
    }

    /// Logs a text, at a level of 10 (debug) to 40 (error). A GPU keeps 36 bytes of it.
    #[inline(always)]
    pub fn log(&mut self, level: i32, text: &str) {
        // SAFETY: the context of this call; a text of so many bytes.
        unsafe { calls::log(self.raw, level, text.as_ptr(), text.len() as u64) }
    }

    /// The fault of this code, from -1 to -65535, and text, to be returned: also where it is not, the
    /// message has failed.
    #[inline(always)]
    pub fn fault(&mut self, code: i32, text: &str) -> Fault {
        // SAFETY: as for `log`.
        let code = unsafe { calls::fault(self.raw, code, text.as_ptr(), text.len() as u64) };
        Fault::code(code)
    }

    /// Whether to go on, for long loops: on a GPU each loop asks by itself.
    ///
    /// # Errors
    ///
    /// The fault to return: the kernel is to end.
    #[inline(always)]
    pub fn tick(&mut self) -> Result<(), Fault> {
        // SAFETY: the context of this call.
        Fault::check(unsafe { calls::tick(self.raw) })
    }

    /// A monotonic clock, in nanoseconds.
    #[inline(always)]
    pub fn clock(&mut self) -> u64 {
        // SAFETY: the context of this call.
        unsafe { calls::clock(self.raw) }
    }
}

/// Calls a handler with what one of the C ABI is called with; returns what that is to return.
///
/// ```
/// use std::ffi::c_void;
///
/// use dotcompute_core::abi::HandlerContext;
/// use dotcompute_core::compiled::CompiledHandler;
/// use dotcompute_core::record::RecordLayout;
/// use dotcompute_cuda::handler::{Context, Handled, Outcome, enter};
///
/// fn next(message: &u64, _: &mut (), reply: &mut u64, _: &mut Context) -> Outcome {
///     *reply = message + 1;
///     Ok(Handled::Reply)
/// }
///
/// unsafe extern "C" fn next_in_c(
///     message: *const c_void,
///     state: *mut c_void,
///     reply: *mut c_void,
///     context: *mut HandlerContext,
/// ) -> i32 {
///     // SAFETY: as whoever calls this promises.
///     unsafe { enter(next, message, state, reply, context.cast()) }
/// }
///
/// fn on_the_host(numbers: &'static RecordLayout) -> CompiledHandler {
///     // SAFETY: the layout is that of a `u64`.
///     unsafe { CompiledHandler::from_raw(next_in_c, numbers) }.output(numbers)
/// }
/// ```
///
/// # Safety
///
/// - What a handler of the C ABI may rely on, for a message, a state and a reply of these types; of one
///   that has no size the pointer is not used. `context` is the one that the runtime passes.
#[inline(always)]
pub unsafe fn enter<M, S, R>(
    handler: impl Fn(&M, &mut S, &mut R, &mut Context) -> Outcome,
    message: *const c_void,
    state: *mut c_void,
    reply: *mut c_void,
    context: *mut c_void,
) -> i32 {
    let state = if size_of::<S>() == 0 { core::ptr::dangling_mut() } else { state.cast() };
    let reply = if size_of::<R>() == 0 { core::ptr::dangling_mut() } else { reply.cast() };
    let mut context = Context { raw: context.cast(), reply_bytes: size_of::<R>() };
    // SAFETY: as the caller promises.
    let message = unsafe { &*message.cast::<M>() };
    // SAFETY: as above, or of no size.
    let state: &mut S = unsafe { &mut *state };
    // SAFETY: as above.
    let reply: &mut R = unsafe { &mut *reply };
    match handler(message, state, reply, &mut context) {
        Ok(Handled::Done) => 0,
        Ok(Handled::Reply) => 1,
        Err(Fault(code)) => code,
    }
}

/// The sizes of a handler's message, state and reply, in bytes.
#[cfg(dotcompute_device)]
pub const fn sizes<M, S, R>(_: fn(&M, &mut S, &mut R, &mut Context) -> Outcome) -> [u64; 3] {
    [size_of::<M>() as u64, size_of::<S>() as u64, size_of::<R>() as u64]
}

/// The functions of the ABI, where the runtime defines them.
#[cfg(dotcompute_device)]
mod calls {
    use core::ffi::c_void;

    #[derive(Debug)]
    pub(super) enum Raw {}

    unsafe extern "C" {
        #[link_name = "rk_emit"]
        pub(super) fn emit(context: *mut Raw, record: *const c_void) -> i32;
        #[link_name = "rk_send"]
        pub(super) fn send(context: *mut Raw, target: u32, record: *const c_void) -> i32;
        #[link_name = "rk_log"]
        pub(super) fn log(context: *mut Raw, level: i32, text: *const u8, bytes: u64);
        #[link_name = "rk_fault"]
        pub(super) fn fault(context: *mut Raw, code: i32, text: *const u8, bytes: u64) -> i32;
        #[link_name = "rk_tick"]
        pub(super) fn tick(context: *mut Raw) -> i32;
        #[link_name = "rk_clock"]
        pub(super) fn clock(context: *mut Raw) -> u64;
    }
}

/// The same on the host, by the table that the context leads to.
#[cfg(not(dotcompute_device))]
mod calls {
    use core::ffi::c_void;

    pub(super) use dotcompute_abi::HandlerContext as Raw;
    use dotcompute_abi::handler::HandlerCalls;

    /// # Safety
    ///
    /// - `context` is that of a call which lasts.
    unsafe fn table(context: *mut Raw) -> &'static HandlerCalls {
        // SAFETY: as the caller promises.
        let calls = unsafe { (*context).calls };
        // SAFETY: the runtime's, which lies there for good.
        unsafe { &*calls }
    }

    macro_rules! calls {
        ($( $name:ident($($argument:ident: $type:ty),*) $(-> $result:ty)?; )*) => { $(
            /// # Safety
            ///
            /// - As the function of this name in the table.
            pub(super) unsafe fn $name(context: *mut Raw, $($argument: $type),*) $(-> $result)? {
                // SAFETY: as the caller promises.
                let table = unsafe { table(context) };
                // SAFETY: as above.
                unsafe { (table.$name)(context, $($argument),*) }
            }
        )* };
    }

    calls! {
        emit(record: *const c_void) -> i32;
        send(target: u32, record: *const c_void) -> i32;
        log(level: i32, text: *const u8, bytes: u64);
        fault(code: i32, text: *const u8, bytes: u64) -> i32;
        tick() -> i32;
        clock() -> u64;
    }
}
