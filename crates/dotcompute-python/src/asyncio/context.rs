//! A kernel seen from inside an actor: the native half of `KernelContext`.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, Weak};
use std::task::{Context as TaskContext, Poll, Waker};

use dotcompute::mailbox::sync::{AtomicBool, Ordering, lock};
use dotcompute::mailbox::wait;
use dotcompute::{Context, Envelope, KernelState, Stopped};
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;

use super::actor::Kernel;
use super::awaitable;
use super::errors;
use super::held::Held;
use super::message::{
    PyMessage, Seen, correlation_id_of, full_envelope, message_id_of, plain_envelope,
};
use super::operation::{ContextReceive, Operation, Pending, duration};
use super::pool::Key;
use super::python;
use super::scope::{detached, scope};
use crate::attached::Attached;
use crate::fastcall::{Getter, Method, fastcall, getter, optional};
use crate::message::priority_of;
use crate::quick::{Error, Quick};

/// What the outside and the inside of a kernel share.
#[derive(Default)]
pub(super) struct Shared {
    asked: AtomicBool,
    /// Whether there is an output type.
    typed: AtomicBool,
    output_type: Mutex<Option<Py<PyAny>>>,
    /// What the replies go to, where the kernel was connected.
    next: Mutex<Option<Next>>,
}

/// The next kernel, or the workers of a pool. Weak, since they may be connected to this one.
struct Next {
    shared: Vec<Weak<Shared>>,
    /// What it takes, if it says so.
    input_type: Option<Py<PyAny>>,
    /// By what a pool tells its messages apart.
    key: Option<Arc<Key>>,
}

impl Shared {
    /// Whether the kernel was ever asked. Until then no reply has to find its ask, and the ids of
    /// messages are not read.
    #[inline]
    pub(super) fn is_asked(&self) -> bool {
        // SYNC(shared.asked) acquire: pairs with the release in `set_asked`.
        self.asked.load(Ordering::Acquire)
    }

    /// What replies must be instances of.
    pub(super) fn set_output_type(&self, kind: Option<Py<PyAny>>) {
        // Relaxed: before the kernel is launched.
        self.typed.store(kind.is_some(), Ordering::Relaxed);
        *lock(&self.output_type) = kind;
    }

    /// The kernel is asked, and with it those that it is connected to.
    pub(super) fn set_asked(&self) {
        // SYNC(shared.asked) acqrel: pairs with the acquire in `is_asked`, and with itself. The
        // message of the ask is sent after it, so that the kernel that receives it sees it.
        if self.is_asked() || self.asked.swap(true, Ordering::AcqRel) {
            return;
        }
        let next: Vec<_> = match &*lock(&self.next) {
            Some(next) => next.shared.iter().filter_map(Weak::upgrade).collect(),
            None => Vec::new(),
        };
        next.iter().for_each(|next| next.set_asked());
    }

    /// The replies go to another kernel, or to workers, which take what is an `input_type`.
    pub(super) fn set_next(
        &self,
        next: &[Arc<Self>],
        input_type: Option<Py<PyAny>>,
        key: Option<Arc<Key>>,
    ) {
        // Relaxed: the replies that are on their way meanwhile are not looked at.
        self.typed.fetch_or(input_type.is_some() || key.is_some(), Ordering::Relaxed);
        let shared = next.iter().map(Arc::downgrade).collect();
        let previous = lock(&self.next).replace(Next { shared, input_type, key });
        drop(previous);
        if self.is_asked() {
            next.iter().for_each(|next| next.set_asked());
        }
    }

    /// What replies have to have for a pool.
    fn key(&self) -> Option<Arc<Key>> {
        lock(&self.next).as_ref().and_then(|next| next.key.clone())
    }

    /// What replies have to be instances of, and of whom.
    fn types<'py>(&self, py: Python<'py>) -> [Option<Bound<'py, PyAny>>; 2] {
        let own = lock(&self.output_type).as_ref().map(|kind| kind.bind(py).clone());
        let next = lock(&self.next);
        let theirs = next.as_ref().and_then(|next| next.input_type.as_ref());
        [own, theirs.map(|kind| kind.bind(py).clone())]
    }
}

/// The core's context, which ends with the kernel's body, and those who wait for its messages.
pub(super) struct ContextCell {
    pub(super) kernel: Kernel,
    pub(super) shared: Arc<Shared>,
    threaded: bool,
    inner: Attached<Inner>,
}

type Core = Context<PyMessage, PyMessage>;

struct Inner {
    core: Place,
    /// The receive that the core wakes; the others wait until it has ended.
    receiver: Option<(u64, Waker)>,
    line: VecDeque<(u64, Waker)>,
    tickets: u64,
}

/// Where the core's context is.
enum Place {
    Here(Box<Core>),
    /// With a thread that receives without the interpreter.
    Away,
    /// The body has ended.
    Gone,
}

/// What became of a receive that does not wait.
enum Received {
    Message(Seen),
    /// The kernel is to end.
    Stopped,
    /// Another thread has the context.
    Away,
}

/// What became of a reply.
enum Sent {
    Done,
    Stopped,
    Away,
    Waits(Output),
}

type Output = Pin<Box<dyn Future<Output = Result<(), Stopped>> + Send>>;

#[cold]
fn away() -> Error {
    PyRuntimeError::new_err("another thread is receiving from this kernel's context").into()
}

impl ContextCell {
    pub(super) fn new(
        core: Context<PyMessage, PyMessage>,
        kernel: Kernel,
        shared: Arc<Shared>,
        threaded: bool,
    ) -> Self {
        let core = Place::Here(Box::new(core));
        let inner = Inner { core, receiver: None, line: VecDeque::new(), tickets: 0 };
        Self { kernel, shared, threaded, inner: Attached::new(inner) }
    }

    pub(super) fn id(&self) -> &str {
        self.kernel.id().as_str()
    }

    /// The next message; `None`: the kernel is to end.
    #[inline]
    pub(super) fn poll_receive(
        &self,
        py: Python<'_>,
        ticket: &mut u64,
        cx: &mut TaskContext<'_>,
        wait: bool,
    ) -> Poll<Quick<Option<Py<PyAny>>>> {
        let received = scope(py, || {
            let (received, next) = self.inner.with(py, |inner| inner.receive(py, ticket, cx, wait));
            if let Some(next) = next {
                next.wake();
            }
            received
        });
        Poll::Ready(match received {
            Poll::Ready(Received::Message(Seen::Object(object))) => Ok(Some(object)),
            Poll::Ready(Received::Message(seen)) => Ok(Some(seen.object(py, None)?)),
            Poll::Ready(Received::Stopped) => Ok(None),
            Poll::Ready(Received::Away) => Err(away()),
            Poll::Pending => return Poll::Pending,
        })
    }

    /// A receive ends without a message.
    pub(super) fn leave(&self, ticket: u64) {
        let next = Python::attach(|py| self.inner.with(py, |inner| inner.leave(ticket)));
        if let Some(next) = next {
            next.wake();
        }
    }

    /// Sends a reply; what is to be awaited if that has to wait.
    #[inline]
    pub(super) fn start_send(
        &self,
        py: Python<'_>,
        message: &Bound<'_, PyAny>,
    ) -> Quick<Option<Pending>> {
        self.check_output(message)?;
        let sent = if self.shared.is_asked() {
            let reply = self.asked_envelope(message)?;
            self.try_send(py, |_| reply)
        } else {
            let priority = priority_of(message)?;
            self.try_send(py, |core| {
                let mut reply = plain_envelope(message, priority);
                // Spares the core to look for an ask: there is none.
                reply.correlation_id = core.envelope().map(|envelope| envelope.id);
                reply
            })
        };
        match sent {
            Sent::Done => Ok(None),
            Sent::Stopped => Err(errors::stopped(py, self.id(), "send message").into()),
            Sent::Away => Err(away()),
            Sent::Waits(output) => Ok(Some(Box::pin(async move {
                let sent = output.await;
                Python::attach(|py| match sent {
                    Ok(()) => Ok(py.None()),
                    Err(stopped) => {
                        Err(errors::stopped(py, stopped.kernel.as_str(), "send message"))
                    }
                })
            }))),
        }
    }

    #[inline(always)]
    fn try_send(&self, py: Python<'_>, reply: impl FnOnce(&Core) -> Envelope<PyMessage>) -> Sent {
        scope(py, || {
            self.inner.with(py, |inner| {
                let core = match &mut inner.core {
                    Place::Here(core) => core,
                    Place::Away => return Sent::Away,
                    Place::Gone => return Sent::Stopped,
                };
                let reply = reply(core);
                match core.try_send(reply) {
                    Ok(()) => Sent::Done,
                    Err(reply) => Sent::Waits(Box::pin(core.output(reply))),
                }
            })
        })
    }

    #[inline]
    fn check_output(&self, message: &Bound<'_, PyAny>) -> Quick<()> {
        // Relaxed: written before the kernel was launched.
        match self.shared.typed.load(Ordering::Relaxed) {
            true => Ok(self.check_types(message)?),
            false => Ok(()),
        }
    }

    fn check_types(&self, message: &Bound<'_, PyAny>) -> PyResult<()> {
        let py = message.py();
        let [own, theirs] = self.shared.types(py);
        if let Some(own) = own {
            check_type(message, &own, || format!("reply of kernel '{}'", self.id()))?;
        }
        if let Some(theirs) = theirs
            && let Some(next) = self.kernel.connected_to()
        {
            let context = || format!("reply of kernel '{}' to kernel '{next}'", self.id());
            check_type(message, &theirs, context)?;
        }
        if let Some(key) = self.shared.key()
            && self.kernel.connected_to().is_some()
        {
            // Here, where it is an exception of the kernel's.
            key.of_object(message)?;
        }
        Ok(())
    }

    /// The envelope of a reply, with its ids: there are asks.
    fn asked_envelope(&self, message: &Bound<'_, PyAny>) -> PyResult<Envelope<PyMessage>> {
        let py = message.py();
        let mut reply = full_envelope(message)?;
        let in_hand = self.inner.with(py, |inner| match &inner.core {
            Place::Here(core) => core
                .envelope()
                .map(|envelope| (envelope.id, envelope.message.object(py).into_bound(py))),
            Place::Away | Place::Gone => None,
        });
        if let Some((id, in_hand)) = in_hand {
            // Sent before the first ask, a message travels under another name than its own.
            let named = message_id_of(&in_hand)?;
            if named.is_some() && named != Some(id) {
                if reply.correlation_id == named {
                    reply.correlation_id = Some(id);
                }
                if Some(reply.id) == named && correlation_id_of(message)?.is_none() {
                    reply.id = id;
                }
            }
        }
        Ok(reply)
    }

    /// The body has ended: the core gets its context back, and those who wait are told.
    pub(super) fn end(&self) {
        let ended = Python::try_attach(|py| {
            self.inner.with(py, |inner| {
                let core = std::mem::replace(&mut inner.core, Place::Gone);
                (core, inner.receiver.take(), std::mem::take(&mut inner.line))
            })
        });
        // Without an interpreter nobody waits any more.
        let Some((core, receiver, line)) = ended else { return };
        drop(core);
        for (_, waker) in receiver.into_iter().chain(line) {
            waker.wake();
        }
    }

    /// Receives on the calling thread.
    fn receive_blocking(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<Py<PyAny>> {
        let within = duration(timeout)?;
        let taken = self.inner.with(py, |inner| match &inner.core {
            Place::Here(_) => std::mem::replace(&mut inner.core, Place::Away),
            Place::Away => Place::Away,
            Place::Gone => Place::Gone,
        });
        let mut core = match taken {
            Place::Here(core) => core,
            Place::Away => return Err(away().into()),
            Place::Gone => return Err(errors::stopped(py, self.id(), "receive message")),
        };
        let received = detached(py, || core.receive_blocking(within).map(drop));
        let message = core.envelope().map(|envelope| PyMessage::seen(envelope, py));
        let mut core = Some(core);
        self.inner.with(py, |inner| {
            // Unless the body has ended meanwhile.
            if let Place::Away = inner.core
                && let Some(core) = core.take()
            {
                inner.core = Place::Here(core);
            }
        });
        scope(py, || drop(core));
        match received {
            Ok(()) => message.map_or_else(|| Ok(py.None()), |message| message.object(py, None)),
            Err(error) => Err(errors::receive(py, error, timeout)),
        }
    }
}

impl Inner {
    /// The next message, and whom to wake then.
    #[inline]
    fn receive(
        &mut self,
        py: Python<'_>,
        ticket: &mut u64,
        cx: &mut TaskContext<'_>,
        wait: bool,
    ) -> (Poll<Received>, Option<Waker>) {
        if let Some((first, _)) = &self.receiver
            && first != ticket
        {
            if wait {
                self.stand_in_line(ticket, cx);
            }
            return (Poll::Pending, None);
        }
        let core = match &mut self.core {
            Place::Here(core) => core,
            Place::Away => return (Poll::Ready(Received::Away), None),
            Place::Gone => return (Poll::Ready(Received::Stopped), None),
        };
        let received = match core.poll_receive(cx) {
            Poll::Pending => {
                if wait {
                    if *ticket == 0 {
                        self.tickets += 1;
                        *ticket = self.tickets;
                    }
                    self.receiver = Some((*ticket, cx.waker().clone()));
                }
                return (Poll::Pending, None);
            }
            Poll::Ready(Ok(())) => match core.envelope() {
                Some(envelope) => Received::Message(PyMessage::seen(envelope, py)),
                None => Received::Stopped,
            },
            Poll::Ready(Err(_stopped)) => Received::Stopped,
        };
        let next = match *ticket {
            0 => None,
            waited => self.leave(waited),
        };
        *ticket = 0;
        (Poll::Ready(received), next)
    }

    fn stand_in_line(&mut self, ticket: &mut u64, cx: &TaskContext<'_>) {
        if *ticket == 0 {
            self.tickets += 1;
            *ticket = self.tickets;
        }
        match self.line.iter_mut().find(|(waiting, _)| waiting == ticket) {
            Some((_, waker)) => waker.clone_from(cx.waker()),
            None => self.line.push_back((*ticket, cx.waker().clone())),
        }
    }

    /// Takes `ticket` out of the line; whom to wake, if it was its turn.
    fn leave(&mut self, ticket: u64) -> Option<Waker> {
        match &self.receiver {
            Some((first, _)) if *first == ticket => {
                self.receiver = None;
                self.line.pop_front().map(|(_, waker)| waker)
            }
            _ => {
                let woken = !self.line.iter().any(|(waiting, _)| *waiting == ticket);
                self.line.retain(|(waiting, _)| *waiting != ticket);
                // Its turn had come: it passes that on.
                match woken && self.receiver.is_none() {
                    true => self.line.pop_front().map(|(_, waker)| waker),
                    false => None,
                }
            }
        }
    }
}

/// Whether `message` is of the type that was declared.
#[inline]
pub(super) fn check_type(
    message: &Bound<'_, PyAny>,
    expected: &Bound<'_, PyAny>,
    context: impl FnOnce() -> String,
) -> PyResult<()> {
    if message.get_type().is(expected) || message.is_instance(expected)? {
        return Ok(());
    }
    Err(errors::type_mismatch(expected, message, context()))
}

/// What a context is made from.
#[pyclass(frozen, module = "pydotcompute._native")]
pub(super) struct ContextHandle {
    pub(super) cell: Arc<ContextCell>,
}

#[pymethods]
impl ContextHandle {
    /// Whether the actor runs on a thread of its own.
    #[getter]
    fn threaded(&self) -> bool {
        self.cell.threaded
    }
}

/// See the module.
#[pyclass(frozen, subclass, module = "pydotcompute._native")]
pub(super) struct ActorContext {
    pub(super) cell: Arc<ContextCell>,
    pub(super) held: Arc<Held>,
}

impl ActorContext {
    /// Whether calls wait on the calling thread: in a plain function's thread, where no loop runs.
    fn blocks(&self, py: Python<'_>) -> PyResult<bool> {
        Ok(self.cell.threaded && python::names(py)?.running_loop.bind(py).call0()?.is_none())
    }
}

#[pymethods]
impl ActorContext {
    #[new]
    fn new(handle: &Bound<'_, ContextHandle>) -> Self {
        Self { cell: Arc::clone(&handle.get().cell), held: Arc::default() }
    }

    fn __traverse__(&self, visit: pyo3::PyVisit<'_>) -> Result<(), pyo3::PyTraverseError> {
        self.held.traverse(&visit)
    }

    fn __clear__(&self, py: Python<'_>) {
        self.held.clear(py);
    }

    /// The kernel's name.
    #[getter]
    fn kernel_id(&self) -> &str {
        self.cell.id()
    }

    /// Whether the kernel processes messages.
    #[getter]
    fn is_active(&self) -> bool {
        self.cell.kernel.state() == KernelState::Active
    }

    /// The next message, or `None` if there is none now or the kernel is to end.
    fn _receive_now(&self, py: Python<'_>) -> PyResult<Option<Py<PyAny>>> {
        let mut ticket = 0;
        let mut now = TaskContext::from_waker(Waker::noop());
        match self.cell.poll_receive(py, &mut ticket, &mut now, false) {
            Poll::Ready(message) => Ok(message?),
            Poll::Pending => Ok(None),
        }
    }

    /// Sends a reply if there is room for it; whether there was.
    fn _send_now(&self, py: Python<'_>, message: &Bound<'_, PyAny>) -> PyResult<bool> {
        Ok(self.cell.start_send(py, message)?.is_none())
    }

    /// Waits until the kernel is active, or is to end.
    fn wait_active(slf: &Bound<'_, Self>) -> PyResult<Py<PyAny>> {
        let py = slf.py();
        let this = slf.get();
        let kernel = this.cell.kernel.clone();
        if this.cell.threaded && this.blocks(py)? {
            detached(py, || wait::block_on(kernel.active()));
            return Ok(py.None());
        }
        let future = Box::pin(async move {
            kernel.active().await;
            Ok(Python::attach(|py| py.None()))
        });
        Ok(awaitable::new(py, || Operation::Future(future))?)
    }
}

/// The methods that are called for each message.
pub(super) const METHODS: [Method; 2] = [
    Method {
        name: c"receive",
        doc: c"receive($self, timeout=None)\n--\n\nReceives the next message.",
        function: receive,
    },
    Method { name: c"send", doc: c"send($self, message)\n--\n\nSends a reply.", function: send },
];

pub(super) const GETTERS: [Getter; 1] = [Getter {
    name: c"should_terminate",
    doc: c"Whether the kernel was asked to end.",
    function: should_terminate,
}];

getter! {
    fn should_terminate(context: ActorContext) |_py| { Ok(context.get().cell.kernel.is_stopping()) }
}

fastcall! {
    fn receive(context: ActorContext, "ActorContext.receive"; timeout;) |py| {
        let timeout = optional(timeout, "timeout")?;
        let this = context.get();
        if this.cell.threaded && this.blocks(py)? {
            return Ok(this.cell.receive_blocking(py, timeout)?.into_ptr());
        }
        awaitable::new(py, || {
            let context = Some(context.clone().unbind());
            Operation::ContextReceive(ContextReceive { context, timeout, ticket: 0, sleep: None })
        })
    }

    fn send(context: ActorContext, "ActorContext.send", message;;) |py| {
        let this = context.get();
        if this.cell.threaded && this.blocks(py)? {
            if let Some(future) = this.cell.start_send(py, &message)? {
                detached(py, || wait::block_on(future))?;
            }
            return Ok(py.None().into_ptr());
        }
        awaitable::new(py, || Operation::ContextSend {
            context: context.clone().unbind(),
            message: message.to_owned().unbind(),
            waiting: None,
        })
    }
}
