//! A kernel seen from inside an actor: the native half of `KernelContext`.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, Weak};
use std::task::{Context as TaskContext, Poll, Waker};

use dotcompute::mailbox::sync::{AtomicBool, Ordering, lock};
use dotcompute::mailbox::wait;
use dotcompute::{Context, Envelope, KernelState, ReceiveError};
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
use super::scope::scope;

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
        if self.asked.swap(true, Ordering::AcqRel) {
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
    fn types(&self, py: Python<'_>) -> [Option<Py<PyAny>>; 2] {
        let own = lock(&self.output_type).as_ref().map(|kind| kind.clone_ref(py));
        let next = lock(&self.next);
        let theirs = next.as_ref().and_then(|next| next.input_type.as_ref());
        [own, theirs.map(|kind| kind.clone_ref(py))]
    }
}

/// The core's context, which ends with the kernel's body, and those who wait for its messages.
pub(super) struct ContextCell {
    pub(super) kernel: Kernel,
    pub(super) shared: Arc<Shared>,
    threaded: bool,
    inner: Mutex<Inner>,
}

struct Inner {
    core: Option<Context<PyMessage, PyMessage>>,
    /// The receive that the core wakes; the others wait until it has ended.
    receiver: Option<(u64, Waker)>,
    line: VecDeque<(u64, Waker)>,
    tickets: u64,
}

impl ContextCell {
    pub(super) fn new(
        core: Context<PyMessage, PyMessage>,
        kernel: Kernel,
        shared: Arc<Shared>,
        threaded: bool,
    ) -> Self {
        let inner = Inner { core: Some(core), receiver: None, line: VecDeque::new(), tickets: 0 };
        Self { kernel, shared, threaded, inner: Mutex::new(inner) }
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
    ) -> Poll<Option<Seen>> {
        scope(py, || {
            let mut guard = lock(&self.inner);
            let inner = &mut *guard;
            if let Some((first, _)) = &inner.receiver
                && first != ticket
            {
                if wait {
                    if *ticket == 0 {
                        inner.tickets += 1;
                        *ticket = inner.tickets;
                    }
                    let line = &mut inner.line;
                    match line.iter_mut().find(|(waiting, _)| waiting == ticket) {
                        Some((_, waker)) => waker.clone_from(cx.waker()),
                        None => line.push_back((*ticket, cx.waker().clone())),
                    }
                }
                return Poll::Pending;
            }
            let Some(core) = inner.core.as_mut() else { return Poll::Ready(None) };
            match core.poll_receive(cx) {
                Poll::Pending => {
                    if wait {
                        if *ticket == 0 {
                            inner.tickets += 1;
                            *ticket = inner.tickets;
                        }
                        inner.receiver = Some((*ticket, cx.waker().clone()));
                    }
                    Poll::Pending
                }
                Poll::Ready(received) => {
                    let message = match received {
                        Ok(()) => core.envelope().map(|envelope| PyMessage::seen(envelope, py)),
                        Err(_stopped) => None,
                    };
                    if *ticket != 0 {
                        let next = inner.leave(*ticket);
                        *ticket = 0;
                        drop(guard);
                        if let Some(next) = next {
                            next.wake();
                        }
                    }
                    Poll::Ready(message)
                }
            }
        })
    }

    /// A receive ends without a message.
    pub(super) fn leave(&self, ticket: u64) {
        let next = lock(&self.inner).leave(ticket);
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
    ) -> PyResult<Option<Pending>> {
        self.check_output(message)?;
        let reply = self.envelope(message)?;
        let outcome = scope(py, || {
            let mut inner = lock(&self.inner);
            let Some(core) = inner.core.as_mut() else { return Err(()) };
            let mut reply = reply;
            if reply.correlation_id.is_none() && !self.shared.is_asked() {
                // Spares the core to look for an ask: there is none.
                reply.correlation_id = core.envelope().map(|envelope| envelope.id);
            }
            Ok(match core.try_send(reply) {
                Ok(()) => None,
                Err(reply) => Some(core.output(reply)),
            })
        });
        match outcome {
            Err(()) => Err(errors::stopped(py, self.id(), "send message")),
            Ok(None) => Ok(None),
            Ok(Some(future)) => Ok(Some(Box::pin(async move {
                let sent = future.await;
                Python::attach(|py| match sent {
                    Ok(()) => Ok(py.None()),
                    Err(stopped) => {
                        Err(errors::stopped(py, stopped.kernel.as_str(), "send message"))
                    }
                })
            }))),
        }
    }

    fn check_output(&self, message: &Bound<'_, PyAny>) -> PyResult<()> {
        // Relaxed: written before the kernel was launched.
        if !self.shared.typed.load(Ordering::Relaxed) {
            return Ok(());
        }
        let py = message.py();
        let [own, theirs] = self.shared.types(py);
        if let Some(own) = own {
            check_type(message, own.bind(py), || format!("reply of kernel '{}'", self.id()))?;
        }
        if let Some(theirs) = theirs
            && let Some(next) = self.kernel.connected_to()
        {
            let context = || format!("reply of kernel '{}' to kernel '{next}'", self.id());
            check_type(message, theirs.bind(py), context)?;
        }
        if let Some(key) = self.shared.key()
            && self.kernel.connected_to().is_some()
        {
            // Here, where it is an exception of the kernel's.
            key.of_object(message)?;
        }
        Ok(())
    }

    /// The envelope of a reply. The ids are read where there are asks.
    fn envelope(&self, message: &Bound<'_, PyAny>) -> PyResult<Envelope<PyMessage>> {
        if !self.shared.is_asked() {
            return plain_envelope(message);
        }
        let py = message.py();
        let mut reply = full_envelope(message)?;
        let in_hand = lock(&self.inner).core.as_ref().and_then(|core| {
            core.envelope().map(|envelope| (envelope.id, envelope.message.object(py)))
        });
        if let Some((id, in_hand)) = in_hand {
            // Sent before the first ask, a message travels under another name than its own.
            let named = message_id_of(in_hand.bind(py))?;
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
        let (core, receiver, line) = {
            let mut inner = lock(&self.inner);
            let line = std::mem::take(&mut inner.line);
            (inner.core.take(), inner.receiver.take(), line)
        };
        drop(core);
        for (_, waker) in receiver.into_iter().chain(line) {
            waker.wake();
        }
    }

    /// Receives on the calling thread.
    fn receive_blocking(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<Py<PyAny>> {
        let within = duration(timeout)?;
        let outcome = scope(py, || {
            py.detach(|| {
                let Ok(mut inner) = self.inner.try_lock() else {
                    return Err(None);
                };
                match inner.core.as_mut() {
                    None => Err(Some(ReceiveError::Stopped { kernel: self.kernel.id().clone() })),
                    Some(core) => core.receive_blocking(within).map(drop).map_err(Some),
                }
            })
        });
        match outcome {
            Ok(()) => {
                let message = {
                    let inner = lock(&self.inner);
                    let envelope = inner.core.as_ref().and_then(Context::envelope);
                    envelope.map(|envelope| PyMessage::seen(envelope, py))
                };
                message.map_or_else(|| Ok(py.None()), |message| message.object(py, None))
            }
            Err(Some(error)) => Err(errors::receive(py, error, timeout)),
            Err(None) => Err(PyRuntimeError::new_err(
                "another thread is receiving from this kernel's context",
            )),
        }
    }
}

impl Inner {
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

    /// Whether the kernel was asked to end.
    #[getter]
    fn should_terminate(&self) -> bool {
        self.cell.kernel.is_stopping()
    }

    /// Whether the kernel processes messages.
    #[getter]
    fn is_active(&self) -> bool {
        self.cell.kernel.state() == KernelState::Active
    }

    /// Receives the next message.
    #[pyo3(signature = (timeout=None))]
    fn receive(slf: &Bound<'_, Self>, timeout: Option<f64>) -> PyResult<Py<PyAny>> {
        let py = slf.py();
        let this = slf.get();
        if this.cell.threaded && this.blocks(py)? {
            return this.cell.receive_blocking(py, timeout);
        }
        let context = slf.clone().unbind();
        let receive = ContextReceive { context, timeout, ticket: 0, sleep: None };
        awaitable::new(py, Operation::ContextReceive(receive))
    }

    /// The next message, or `None` if there is none now or the kernel is to end.
    fn _receive_now(&self, py: Python<'_>) -> PyResult<Option<Py<PyAny>>> {
        let mut ticket = 0;
        let mut now = TaskContext::from_waker(Waker::noop());
        match self.cell.poll_receive(py, &mut ticket, &mut now, false) {
            Poll::Ready(message) => message.map(|message| message.object(py, None)).transpose(),
            Poll::Pending => Ok(None),
        }
    }

    /// Sends a reply if there is room for it; whether there was.
    fn _send_now(&self, py: Python<'_>, message: &Bound<'_, PyAny>) -> PyResult<bool> {
        Ok(self.cell.start_send(py, message)?.is_none())
    }

    /// Sends a reply.
    fn send(slf: &Bound<'_, Self>, message: Py<PyAny>) -> PyResult<Py<PyAny>> {
        let py = slf.py();
        let this = slf.get();
        if this.cell.threaded && this.blocks(py)? {
            if let Some(future) = this.cell.start_send(py, message.bind(py))? {
                scope(py, || py.detach(|| wait::block_on(future)))?;
            }
            return Ok(py.None());
        }
        let context = slf.clone().unbind();
        awaitable::new(py, Operation::ContextSend { context, message, waiting: None })
    }

    /// Waits until the kernel is active, or is to end.
    fn wait_active(slf: &Bound<'_, Self>) -> PyResult<Py<PyAny>> {
        let py = slf.py();
        let this = slf.get();
        let kernel = this.cell.kernel.clone();
        if this.cell.threaded && this.blocks(py)? {
            py.detach(|| wait::block_on(kernel.active()));
            return Ok(py.None());
        }
        let future = Box::pin(async move {
            kernel.active().await;
            Ok(Python::attach(|py| py.None()))
        });
        awaitable::new(py, Operation::Future(future))
    }
}
