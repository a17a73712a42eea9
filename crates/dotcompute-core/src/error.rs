//! What can go wrong, one small enum per operation; a message that was not taken comes back in it.

use std::error::Error;
use std::fmt;
use std::sync::Arc;

use crate::lifecycle::KernelState;
use crate::message::Envelope;

/// Any error, owned; what a kernel's body or handler may return.
pub type BoxError = Box<dyn Error + Send + Sync + 'static>;

/// The name of a ring kernel, unique in its runtime. Cloning is one reference count.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KernelId(Arc<str>);

impl KernelId {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&str> for KernelId {
    fn from(name: &str) -> Self {
        Self(name.into())
    }
}

impl From<String> for KernelId {
    fn from(name: String) -> Self {
        Self(name.into())
    }
}

impl std::borrow::Borrow<str> for KernelId {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for KernelId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for KernelId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &*self.0)
    }
}

/// What made a kernel fail. Cloning is one reference count: everyone who waits gets the same cause.
#[derive(Clone)]
pub struct Fault(Arc<FaultInner>);

struct FaultInner {
    kind: FaultKind,
    message: String,
    source: Option<BoxError>,
}

/// How a fault came about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FaultKind {
    /// The body or the handler returned an error.
    Error,
    /// The body or the handler panicked.
    Panic,
    /// A compiled handler returned this negative code.
    Code(i32),
    /// The executor gave the kernel up (its threads or its event loop went away).
    Executor,
}

impl Fault {
    /// A fault described by `message`.
    pub fn new(message: impl Into<String>) -> Self {
        Self::build(FaultKind::Error, message.into(), None)
    }

    /// The fault that a compiled handler reports by the negative number `code`.
    pub fn code(code: i32) -> Self {
        Self::build(FaultKind::Code(code), format!("handler returned fault code {code}"), None)
    }

    /// As [`code`](Self::code), with what the handler says about it.
    pub fn code_with(code: i32, message: impl Into<String>) -> Self {
        Self::build(FaultKind::Code(code), message.into(), None)
    }

    /// The same fault, which came about at `place`.
    #[must_use]
    pub(crate) fn within(self, place: impl fmt::Display) -> Self {
        let message = format!("{} (at {place})", self.0.message);
        let kind = self.0.kind;
        // The old one stays below, and with it the error that it was caused by.
        Self::build(kind, message, Some(Box::new(self)))
    }

    /// A fault caused by `error`; a boxed `Fault` stays the fault it is.
    pub fn from_error(error: BoxError) -> Self {
        match error.downcast::<Fault>() {
            Ok(fault) => *fault,
            Err(error) => Self::build(FaultKind::Error, error.to_string(), Some(error)),
        }
    }

    /// A fault from the payload of a panic.
    pub fn from_panic(payload: Box<dyn std::any::Any + Send>) -> Self {
        let message = if let Some(text) = payload.downcast_ref::<&str>() {
            (*text).to_owned()
        } else if let Some(text) = payload.downcast_ref::<String>() {
            text.clone()
        } else {
            // Its destructor is the user's code, and may panic too.
            crate::dead_letter::discard(payload);
            "panic with a payload that is not text".to_owned()
        };
        Self::build(FaultKind::Panic, message, None)
    }

    /// A fault of this kind that was reported elsewhere, in words.
    pub fn reported(kind: FaultKind, message: impl Into<String>) -> Self {
        Self::build(kind, message.into(), None)
    }

    pub(crate) fn executor(message: impl Into<String>) -> Self {
        Self::build(FaultKind::Executor, message.into(), None)
    }

    fn build(kind: FaultKind, message: String, source: Option<BoxError>) -> Self {
        Self(Arc::new(FaultInner { kind, message, source }))
    }

    /// How it came about.
    pub fn kind(&self) -> FaultKind {
        self.0.kind
    }

    /// What happened, in one line.
    pub fn message(&self) -> &str {
        &self.0.message
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.kind {
            FaultKind::Panic => write!(f, "panicked: {}", self.0.message),
            _ => f.write_str(&self.0.message),
        }
    }
}

impl fmt::Debug for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fault({:?}: {})", self.0.kind, self.0.message)
    }
}

impl Error for Fault {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.0.source.as_deref().map(|source| source as &(dyn Error + 'static))
    }
}

/// A kernel has ended, or is ending, and takes no part in messages any more.
///
/// Inside a kernel this is the normal end: returned from a body it counts as a clean end, not as a
/// fault.
#[derive(Clone, Debug, thiserror::Error)]
#[error("ring kernel '{kernel}' is stopped")]
pub struct Stopped {
    /// The kernel that has stopped.
    pub kernel: KernelId,
}

/// Why a message was not accepted. The message comes back in every variant.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum SendError<M> {
    /// The mailbox is full: its policy is `reject`, or the call does not wait.
    #[error("the mailbox of ring kernel '{kernel}' is full ({capacity} messages)")]
    Full {
        /// The message, given back.
        envelope: Envelope<M>,
        /// The kernel.
        kernel: KernelId,
        /// How many messages its mailbox holds.
        capacity: usize,
    },
    /// The mailbox stayed full until the timeout.
    #[error("the mailbox of ring kernel '{kernel}' stayed full until the timeout")]
    Timeout {
        /// The message, given back.
        envelope: Envelope<M>,
        /// The kernel.
        kernel: KernelId,
    },
    /// The kernel has not been activated yet.
    #[error("ring kernel '{kernel}' is {state}: activate it before sending")]
    NotActive {
        /// The message, given back.
        envelope: Envelope<M>,
        /// The kernel.
        kernel: KernelId,
        /// Its state.
        state: KernelState,
    },
    /// The kernel has ended or is ending.
    #[error("ring kernel '{kernel}' is stopped")]
    Stopped {
        /// The message, given back.
        envelope: Envelope<M>,
        /// The kernel.
        kernel: KernelId,
    },
    /// The kernel has failed.
    #[error("ring kernel '{kernel}' failed: {fault}")]
    Failed {
        /// The message, given back.
        envelope: Envelope<M>,
        /// The kernel.
        kernel: KernelId,
        /// Why.
        #[source]
        fault: Fault,
    },
}

impl<M> SendError<M> {
    /// The message that was not accepted.
    pub fn into_inner(self) -> M {
        self.into_envelope().message
    }

    /// The message that was not accepted, with its id, correlation and priority: sending this
    /// envelope again sends the same message again.
    pub fn into_envelope(self) -> Envelope<M> {
        match self {
            Self::Full { envelope, .. }
            | Self::Timeout { envelope, .. }
            | Self::NotActive { envelope, .. }
            | Self::Stopped { envelope, .. }
            | Self::Failed { envelope, .. } => envelope,
        }
    }

    pub(crate) fn envelope_mut(&mut self) -> &mut Envelope<M> {
        match self {
            Self::Full { envelope, .. }
            | Self::Timeout { envelope, .. }
            | Self::NotActive { envelope, .. }
            | Self::Stopped { envelope, .. }
            | Self::Failed { envelope, .. } => envelope,
        }
    }
}

/// Shows the error and not the message, which need not be `Debug`.
impl<M> fmt::Debug for SendError<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SendError({self})")
    }
}

/// Why no message was received.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReceiveError {
    /// Nothing is there now.
    #[error("nothing to receive from ring kernel '{kernel}'")]
    Empty {
        /// The kernel.
        kernel: KernelId,
    },
    /// Nothing came until the timeout.
    #[error("nothing came from ring kernel '{kernel}' within the timeout")]
    Timeout {
        /// The kernel.
        kernel: KernelId,
    },
    /// The kernel has not been activated yet.
    #[error("ring kernel '{kernel}' is {state}: activate it before receiving")]
    NotActive {
        /// The kernel.
        kernel: KernelId,
        /// Its state.
        state: KernelState,
    },
    /// The kernel has ended, and every reply was read.
    #[error("ring kernel '{kernel}' is stopped")]
    Stopped {
        /// The kernel.
        kernel: KernelId,
    },
    /// The kernel has failed, and every reply that it made before was read.
    #[error("ring kernel '{kernel}' failed: {fault}")]
    Failed {
        /// The kernel.
        kernel: KernelId,
        /// Why.
        #[source]
        fault: Fault,
    },
    /// The kernel is connected: its replies go to the next kernel.
    #[error(
        "the replies of ring kernel '{kernel}' go to the kernel that it is connected to: receive \
         from the last one"
    )]
    Connected {
        /// The kernel.
        kernel: KernelId,
    },
}

/// Why an ask got no reply.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum AskError<M> {
    /// The message was not accepted; it comes back inside.
    #[error(transparent)]
    NotSent(#[from] SendError<M>),
    /// No reply came until the timeout. The kernel skips the message if it has not received it yet.
    #[error("ring kernel '{kernel}' did not answer within the timeout")]
    Timeout {
        /// The kernel.
        kernel: KernelId,
    },
    /// The mailbox's policy dropped the message before the kernel received it.
    #[error("ring kernel '{kernel}' is overloaded: its mailbox dropped the message")]
    Dropped {
        /// The kernel.
        kernel: KernelId,
    },
    /// The kernel ended before it answered.
    #[error("ring kernel '{kernel}' stopped before it answered")]
    Stopped {
        /// The kernel.
        kernel: KernelId,
    },
    /// The kernel, or one that it is connected to, failed before it answered.
    #[error("ring kernel '{kernel}' failed before it answered: {fault}")]
    Failed {
        /// The kernel.
        kernel: KernelId,
        /// Why.
        #[source]
        fault: Fault,
    },
    /// The kernel was disconnected from the next one before the ask was past it.
    #[error("ring kernel '{kernel}' was disconnected before the answer came")]
    Disconnected {
        /// The kernel.
        kernel: KernelId,
    },
    /// The kernel is connected, and the last kernel of the pipeline replies with another type.
    #[error(
        "ring kernel '{kernel}' is connected, and its asks are answered with {found}: ask the \
         pipeline that `connect` returned"
    )]
    WrongType {
        /// The kernel.
        kernel: KernelId,
        /// What the last kernel replies with.
        found: &'static str,
    },
}

/// Shows the error and not the message, which need not be `Debug`.
impl<M> fmt::Debug for AskError<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AskError({self})")
    }
}

/// A lifecycle step that the kernel's state does not allow.
#[derive(Clone, Debug, thiserror::Error)]
#[error("cannot {operation} ring kernel '{kernel}': it is {state}")]
pub struct StateError {
    /// The kernel.
    pub kernel: KernelId,
    /// Its state.
    pub state: KernelState,
    /// The step that was asked for.
    pub operation: &'static str,
}

/// Why a kernel could not be launched.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LaunchError {
    /// A kernel of this name exists, perhaps one that has ended but was not terminated.
    #[error(
        "a ring kernel named '{kernel}' exists ({state}): terminate it, or choose another name"
    )]
    AlreadyExists {
        /// The name.
        kernel: KernelId,
        /// The state of the kernel that has it.
        state: KernelState,
    },
    /// No executor of this name.
    #[error("ring kernel '{kernel}': no executor '{executor}' here; there are: {available}")]
    UnknownExecutor {
        /// The kernel.
        kernel: KernelId,
        /// The name that was asked for.
        executor: String,
        /// The names that there are.
        available: String,
    },
    /// An option has a value outside its range.
    #[error("ring kernel '{kernel}': {option} = {value} is out of range: {expected}")]
    InvalidOption {
        /// The kernel.
        kernel: KernelId,
        /// The option.
        option: &'static str,
        /// Its value.
        value: String,
        /// What would be accepted.
        expected: &'static str,
    },
    /// The executor could not take the kernel.
    #[error("ring kernel '{kernel}': executor '{executor}' could not start it")]
    Executor {
        /// The kernel.
        kernel: KernelId,
        /// The executor.
        executor: &'static str,
        /// Why.
        #[source]
        source: BoxError,
    },
    /// The type of the messages or replies has not the layout that a compiled handler takes or makes.
    #[error(
        "ring kernel '{kernel}': {what} of '{typed}' do not have the layout of '{handlers}', which its \
         handler has"
    )]
    Layout {
        /// The kernel.
        kernel: KernelId,
        /// Which: "messages" or "replies".
        what: &'static str,
        /// The record type of the kernel.
        typed: String,
        /// The record of the handler.
        handlers: String,
    },
    /// The runtime is shutting down.
    #[error("ring kernel '{kernel}': the runtime is shutting down")]
    ShuttingDown {
        /// The kernel.
        kernel: KernelId,
    },
}

/// Why two kernels could not be connected.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// No kernel of that name.
    #[error(transparent)]
    Lookup(#[from] LookupError),
    /// The one does not take what the other replies with.
    #[error("cannot connect ring kernel '{from}', {replies}, to ring kernel '{to}', {takes}")]
    WrongType {
        /// The kernel to connect.
        from: KernelId,
        /// Its types.
        replies: String,
        /// The kernel to connect it to.
        to: KernelId,
        /// Its types.
        takes: String,
    },
    /// The kernel is connected already, and a kernel has one next kernel.
    #[error("ring kernel '{kernel}' is connected to '{to}': disconnect it first")]
    AlreadyConnected {
        /// The kernel.
        kernel: KernelId,
        /// The kernel that it is connected to.
        to: KernelId,
    },
    /// The kernels would form a cycle in which all could wait for each other for ever.
    #[error(
        "connecting {path} closes a cycle of kernels whose senders wait for room: allow the cycle, \
         or let one of them reject or drop"
    )]
    Cycle {
        /// The kernel to connect.
        kernel: KernelId,
        /// The cycle.
        path: String,
    },
    /// A kernel has ended or is ending.
    #[error("ring kernel '{kernel}' is stopped")]
    Stopped {
        /// The kernel.
        kernel: KernelId,
    },
    /// The kernel is one of several workers of a pool, whose replies come out in one place: the pool
    /// is connected as a whole.
    #[error("ring kernel '{kernel}' is a worker of a pool: connect the pool")]
    OfAPool {
        /// The worker.
        kernel: KernelId,
    },
    /// The kernels belong to different runtimes.
    #[error("ring kernels '{from}' and '{to}' belong to different runtimes")]
    OtherRuntime {
        /// The kernel to connect.
        from: KernelId,
        /// The kernel to connect it to.
        to: KernelId,
    },
}

/// Why a kernel was not found under a name.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LookupError {
    /// No kernel of this name.
    #[error("no ring kernel named '{kernel}'")]
    NotFound {
        /// The name.
        kernel: KernelId,
    },
    /// The kernel works on other types than were asked for.
    #[error("ring kernel '{kernel}' takes {found}, not {expected}")]
    WrongType {
        /// The name.
        kernel: KernelId,
        /// The types that were asked for.
        expected: String,
        /// The types that the kernel has.
        found: String,
    },
}
