//! Compiled handlers: code outside of Rust's types that takes records, called through the C ABI.
//!
//! A [`CompiledHandler`] is a function with a [signature](abi::Handler) of the shared ABI, or code
//! that runs whole batches by itself ([`HandlerCode`]), with the layouts of what it takes, keeps
//! and replies with. It runs as the body of a kernel, on any executor, and sees one record at a
//! time; a message is one record or a [`RecordBatch`] of many. The state is a record too: made anew
//! at each (re)start, and readable from outside between two messages ([`StateReader`]).
//!
//! ```
//! use dotcompute_core::compiled::CompiledHandler;
//! use dotcompute_core::{Message, Record, Runtime};
//! use std::ffi::c_void;
//!
//! #[derive(Clone, Copy, Message)]
//! #[message(record, crate = "dotcompute_core")]
//! #[repr(C)]
//! struct Amount {
//!     value: i64,
//! }
//!
//! // In C: int32_t add(const Amount *message, Amount *state, Amount *reply, rk_ctx *ctx)
//! unsafe extern "C" fn add(
//!     message: *const c_void,
//!     state: *mut c_void,
//!     reply: *mut c_void,
//!     _context: *mut dotcompute_core::abi::HandlerContext,
//! ) -> i32 {
//!     // SAFETY: the caller passes records of these types.
//!     let (message, state, reply) = unsafe {
//!         (&*message.cast::<Amount>(), &mut *state.cast::<Amount>(), &mut *reply.cast::<Amount>())
//!     };
//!     state.value += message.value;
//!     reply.value = state.value;
//!     1
//! }
//!
//! // SAFETY: `add` takes an `Amount` and replies with one, over a state that is one.
//! let handler = unsafe { CompiledHandler::from_raw(add, Amount::LAYOUT) }
//!     .output(Amount::LAYOUT)
//!     .state(&Amount { value: 2 });
//! let total = handler.state_reader();
//! let runtime = Runtime::builder().build();
//! let kernel = runtime
//!     .kernel("sum")
//!     .executor("thread")
//!     .launch_compiled::<Amount, Amount>(handler)?;
//! kernel.activate()?;
//! assert_eq!(kernel.ask_blocking(Amount { value: 40 }, None)?.message.value, 42);
//! assert_eq!(total.read::<Amount>(std::time::Duration::from_secs(1)).unwrap().value, 42);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod batch;
mod body;
mod call;
mod code;
mod elsewhere;
mod feed;
mod state;

use std::any::Any;
use std::fmt;
use std::sync::Arc;

use dotcompute_abi as abi;

pub use batch::{KeyError, RecordBatch, RecordMessage, RecordReply, Records};
pub(crate) use body::run;
pub use call::Call;
pub use code::HandlerCode;
use code::RawHandler;
pub use dotcompute_mailbox::ring::PushError;
pub use elsewhere::{CompiledCalls, NearSide, StateSource, WayTo};
pub(crate) use feed::FeedOf;
use feed::FeedPlace;
pub use feed::{Feed, FeedError};
use state::StateCell;
pub use state::StateReader;

use crate::error::{BoxError, KernelId, LaunchError};
use crate::record::{Record, RecordLayout};
use body::Route;

/// A compiled handler with what it takes, keeps and replies with: see the module.
pub struct CompiledHandler {
    pub(crate) code: Box<dyn HandlerCode>,
    pub(crate) shape: Shape,
    pub(crate) state: Arc<StateCell>,
    pub(crate) routes: Vec<Box<dyn Route>>,
    pub(crate) feed: Option<Arc<FeedPlace>>,
}

/// What a handler takes and makes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub(crate) input: &'static RecordLayout,
    /// Without one it makes no replies.
    pub(crate) output: Option<&'static RecordLayout>,
    pub(crate) max_emit: u32,
}

impl CompiledHandler {
    /// The handler `function`, which takes records of the layout `input`: of a C library, of a Rust
    /// `cdylib`, or of this program. Without [`output`](Self::output) it makes no replies, without
    /// [`state`](Self::state) its state pointer leads to nothing that it may use.
    ///
    /// # Safety
    ///
    /// For messages, state and replies of the layouts that are said here and by the other methods,
    /// `function` must be sound to call as [`abi::Handler`] says, from any thread, one call at a
    /// time. It must not unwind: a panic of a Rust function ends the process. Where it lies in a
    /// library, that must stay loaded: see [`keep`](Self::keep).
    #[allow(unsafe_code, reason = "the promise is the caller's")]
    pub unsafe fn from_raw(function: abi::Handler, input: &'static RecordLayout) -> Self {
        Self::from_code(Box::new(RawHandler::new(function)), input)
    }

    /// A handler whose `code` runs whole messages, of records of the layout `input`, by itself.
    pub fn from_code(code: Box<dyn HandlerCode>, input: &'static RecordLayout) -> Self {
        Self {
            code,
            shape: Shape { input, output: None, max_emit: 0 },
            state: Arc::new(StateCell::new(None, &[])),
            routes: Vec::new(),
            feed: None,
        }
    }

    /// It replies with records of this layout.
    #[must_use]
    pub fn output(mut self, layout: &'static RecordLayout) -> Self {
        self.shape.output = Some(layout);
        self
    }

    /// Its state is a record that begins, at each (re)start, as `initial`.
    #[must_use]
    pub fn state<S: Record>(self, initial: &S) -> Self {
        self.state_bytes(S::LAYOUT, initial.bytes())
    }

    /// Its state is a record of this layout that begins, at each (re)start, as `initial`.
    ///
    /// # Panics
    ///
    /// If `initial` has another size than the layout.
    #[must_use]
    pub fn state_bytes(mut self, layout: &'static RecordLayout, initial: &[u8]) -> Self {
        assert_eq!(initial.len(), layout.bytes, "the state '{}' has another size", layout.name);
        self.state = Arc::new(StateCell::new(Some(layout), initial));
        self
    }

    /// Besides the reply that it returns it emits at most so many for one record: 0 by default.
    #[must_use]
    pub fn max_emit(mut self, replies: u32) -> Self {
        self.shape.max_emit = replies;
        self
    }

    /// It can send records of this layout, as messages of type `S`, to the kernel of this name in
    /// its runtime: its next target, counted from 0. What it sends goes out when it is done with
    /// the message in hand, and waits for room there.
    #[must_use]
    pub fn target<S: RecordReply>(mut self, kernel: &str, layout: &'static RecordLayout) -> Self {
        self.routes.push(body::route::<S>(KernelId::from(kernel), layout));
        self
    }

    /// The same with a [`Feed`]: a way for one thread to stream records of type `T` into its kernel,
    /// of which `capacity` can wait, at a few nanoseconds each. The kernel has to run in this process.
    ///
    /// # Errors
    ///
    /// See [`FeedError`].
    pub fn feed<T: Record>(mut self, capacity: usize) -> Result<(Self, Feed<T>), FeedError> {
        if self.feed.is_some() {
            return Err(FeedError::Taken);
        }
        let (place, feed) = feed::feed(capacity, self.shape.input)?;
        self.feed = Some(place);
        Ok((self, feed))
    }

    /// Keeps `library` until the kernel is gone: what the function lies in.
    #[must_use]
    pub fn keep(mut self, library: impl Any + Send + Sync) -> Self {
        self.code = Box::new(code::Keeping { code: self.code, _library: Box::new(library) });
        self
    }

    /// Reads its state while it runs.
    pub fn state_reader(&self) -> StateReader {
        StateReader::new(&self.state)
    }

    /// Whether messages of type `M` and replies of type `R` are what it takes and makes.
    pub(crate) fn check<M: RecordMessage, R: RecordReply>(
        &self,
        kernel: &KernelId,
    ) -> Result<(), LaunchError> {
        self.shape.check::<M, R>(kernel)
    }
}

impl Shape {
    /// Whether messages of type `M` and replies of type `R` are what is taken and made.
    fn check<M: RecordMessage, R: RecordReply>(
        &self,
        kernel: &KernelId,
    ) -> Result<(), LaunchError> {
        let refused = |what, typed: &RecordLayout, handlers: &RecordLayout| LaunchError::Layout {
            kernel: kernel.clone(),
            what,
            typed: typed.name.into(),
            handlers: handlers.name.into(),
        };
        if let Some(layout) = M::LAYOUT
            && !layout.agrees_with(self.input)
        {
            return Err(refused("messages", layout, self.input));
        }
        if let (Some(layout), Some(output)) = (R::LAYOUT, self.output)
            && !layout.agrees_with(output)
        {
            return Err(refused("replies", layout, output));
        }
        Ok(())
    }
}

impl fmt::Debug for CompiledHandler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CompiledHandler")
            .field("input", &self.shape.input.name)
            .field("output", &self.shape.output.map(|layout| layout.name))
            .field("state", &self.state.layout().map(|layout| layout.name))
            .field("max_emit", &self.shape.max_emit)
            .finish_non_exhaustive()
    }
}

/// A message that does not hold records of the layout that is wanted.
pub(crate) fn wrong_layout(wanted: &RecordLayout, found: &RecordLayout) -> BoxError {
    format!("records of '{}' where those of '{}' are taken", found.name, wanted.name).into()
}
