//! What kernels on threads do for each message: the native halves of `ThreadedRingKernel`,
//! `CythonRingKernel` and `ThreadedKernelContext`. The rest of them is Python's.

use std::sync::OnceLock;

use crate::once::intern;
use dotcompute_mailbox::sync::{AtomicBool, Ordering};
use pyo3::exceptions::{PyAttributeError, PyRuntimeError};
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple, PyType};

use super::Item;
use super::sync::ThreadQueue;
use super::timeout::Timeout;
use crate::attached::Attached;
use crate::fastcall::{self, Getter, Method, fastcall, getter, optional, truth};
use crate::quick::Quick;

/// Whether something has happened, to be read without a call of Python's: what an event of
/// `threading` has besides.
#[pyclass(frozen, subclass, module = "pydotcompute._native")]
pub(super) struct Flag(AtomicBool);

#[pymethods]
impl Flag {
    #[new]
    fn new() -> Self {
        Self(AtomicBool::new(false))
    }

    fn is_set(&self) -> bool {
        // Relaxed: all use of it is with the interpreter attached, whose lock orders it.
        self.0.load(Ordering::Relaxed)
    }

    fn _raise(&self, raised: bool) {
        // Relaxed: as above.
        self.0.store(raised, Ordering::Relaxed);
    }
}

/// See the module: of the context.
#[pyclass(frozen, subclass, module = "pydotcompute._native")]
pub(super) struct ThreadContext(Attached<Parts>);

/// The attributes of a context, as they were set.
#[derive(Default)]
struct Parts {
    input: Option<Py<PyAny>>,
    output: Option<Py<PyAny>>,
    event: Option<Py<PyAny>>,
    output_type: Option<Py<PyAny>>,
}

impl Parts {
    fn all(&self) -> impl Iterator<Item = &Py<PyAny>> {
        [&self.input, &self.output, &self.event, &self.output_type].into_iter().flatten()
    }
}

impl ThreadContext {
    #[inline]
    fn part<'py>(
        &self,
        py: Python<'py>,
        part: impl Fn(&Parts) -> &Option<Py<PyAny>>,
    ) -> Option<Bound<'py, PyAny>> {
        self.0.with(py, |parts| part(parts).as_ref().map(|part| part.bind(py).clone()))
    }

    fn get<'py>(
        &self,
        py: Python<'py>,
        name: &str,
        part: impl Fn(&Parts) -> &Option<Py<PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        self.part(py, part).ok_or_else(|| PyAttributeError::new_err(name.to_owned()))
    }

    fn set(
        &self,
        py: Python<'_>,
        value: Py<PyAny>,
        part: impl Fn(&mut Parts) -> &mut Option<Py<PyAny>>,
    ) {
        let previous = self.0.with(py, |parts| part(parts).replace(value));
        drop(previous);
    }

    fn is_told_to_stop(&self, py: Python<'_>) -> Quick<bool> {
        let Some(event) = self.part(py, |parts| &parts.event) else { return Ok(false) };
        match event.cast::<Flag>() {
            Ok(flag) => Ok(flag.get().is_set()),
            // Another event than the kernel's own.
            Err(_) => Ok(event.call_method0(intern!(py, "is_set"))?.is_truthy()?),
        }
    }
}

#[pymethods]
impl ThreadContext {
    #[new]
    #[pyo3(signature = (*_args, **_kwargs))]
    fn new(_args: &Bound<'_, PyTuple>, _kwargs: Option<&Bound<'_, PyDict>>) -> Self {
        Self(Attached::default())
    }

    #[getter]
    fn input_queue<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.get(py, "input_queue", |parts| &parts.input)
    }

    #[setter]
    fn set_input_queue(&self, py: Python<'_>, queue: Py<PyAny>) {
        self.set(py, queue, |parts| &mut parts.input);
    }

    #[getter]
    fn output_queue<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.get(py, "output_queue", |parts| &parts.output)
    }

    #[setter]
    fn set_output_queue(&self, py: Python<'_>, queue: Py<PyAny>) {
        self.set(py, queue, |parts| &mut parts.output);
    }

    #[getter]
    fn _shutdown_event<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.get(py, "_shutdown_event", |parts| &parts.event)
    }

    #[setter(_shutdown_event)]
    fn set_shutdown_event(&self, py: Python<'_>, event: Py<PyAny>) {
        self.set(py, event, |parts| &mut parts.event);
    }

    #[getter]
    fn _output_type<'py>(&self, py: Python<'py>) -> Option<Bound<'py, PyAny>> {
        self.part(py, |parts| &parts.output_type)
    }

    #[setter(_output_type)]
    fn set_output_type(&self, py: Python<'_>, kind: Option<Py<PyAny>>) {
        let previous = self.0.with(py, |parts| std::mem::replace(&mut parts.output_type, kind));
        drop(previous);
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        // SAFETY: the collector is calling, so the interpreter is attached.
        let py = unsafe { Python::assume_attached() };
        self.0.with(py, |parts| parts.all().try_for_each(|part| visit.call(part)))
    }

    fn __clear__(&self, py: Python<'_>) {
        let parts = self.0.with(py, std::mem::take);
        drop(parts);
    }
}

/// See the module: of the kernels.
#[pyclass(frozen, subclass, module = "pydotcompute._native")]
pub(super) struct ThreadKernel {
    ends: OnceLock<Ends>,
    /// Whether a message may be sent without a look at anything else.
    sends: AtomicBool,
    /// The same of a reply that is received.
    receives: AtomicBool,
}

/// The queues to and from the kernel, and what no timeout means at either.
struct Ends {
    input: Py<ThreadQueue>,
    output: Py<ThreadQueue>,
    send_timeout: Timeout,
    receive_timeout: Timeout,
}

impl ThreadKernel {
    fn ends(&self) -> PyResult<&Ends> {
        let unmade = || PyRuntimeError::new_err("the kernel's __init__ was not called");
        self.ends.get().ok_or_else(unmade)
    }
}

#[pymethods]
impl ThreadKernel {
    #[new]
    #[pyo3(signature = (*_args, **_kwargs))]
    fn new(_args: &Bound<'_, PyTuple>, _kwargs: Option<&Bound<'_, PyDict>>) -> Self {
        Self {
            ends: OnceLock::new(),
            sends: AtomicBool::new(false),
            receives: AtomicBool::new(false),
        }
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        // The queues clear themselves.
        let Some(ends) = self.ends.get() else { return Ok(()) };
        visit.call(&ends.input)?;
        visit.call(&ends.output)
    }

    /// Tells the queues, and what no timeout means at either.
    #[pyo3(signature = (input_queue, output_queue, send_timeout, receive_timeout))]
    fn _connect(
        &self,
        input_queue: Py<ThreadQueue>,
        output_queue: Py<ThreadQueue>,
        send_timeout: Option<Timeout>,
        receive_timeout: Option<Timeout>,
    ) {
        let _ = self.ends.set(Ends {
            input: input_queue,
            output: output_queue,
            send_timeout: send_timeout.unwrap_or_default(),
            receive_timeout: receive_timeout.unwrap_or_default(),
        });
    }

    /// Tells whether a `send` need not call `_check_sendable`, and a `receive` `_check_readable`.
    fn _allow(&self, sends: bool, receives: bool) {
        // Relaxed: all use of them is with the interpreter attached, whose lock orders it.
        self.sends.store(sends, Ordering::Relaxed);
        self.receives.store(receives, Ordering::Relaxed);
    }
}

pub(super) const KERNEL_METHODS: [Method; 2] = [
    Method {
        name: c"send",
        doc: c"send($self, message, timeout=None)\n--\n\n\
Send a message to the kernel; wait for room.\n\
\n\
Parameters\n\
----------\n\
message\n\
\x20   Any object, also None.\n\
timeout\n\
\x20   Seconds; what None means is the class's to say.\n\
\n\
Returns\n\
-------\n\
Whether it was sent; False if there was no room in time.\n\
\n\
Raises\n\
------\n\
KernelFailedError\n\
\x20   If the kernel's function raised.\n\
KernelStateError\n\
\x20   If the kernel is not running, or stops meanwhile.\n\
TypeValidationError\n\
\x20   If the message is not of the kernel's `input_type`.",
        function: send,
    },
    Method {
        name: c"receive",
        doc: c"receive($self, timeout=None, default=None)\n--\n\n\
Wait for the next reply.\n\
\n\
Parameters\n\
----------\n\
timeout\n\
\x20   Seconds; what None means is the class's to say.\n\
default\n\
\x20   What to return if none comes in time: where None is a legal reply, something else.\n\
\n\
Raises\n\
------\n\
KernelFailedError\n\
\x20   If the kernel's function raised; replies that it made before come first.\n\
KernelStateError\n\
\x20   If the kernel is not running and no reply is left.",
        function: receive,
    },
];

pub(super) const CONTEXT_METHODS: [Method; 2] = [
    Method {
        name: c"receive",
        doc: c"receive($self, timeout=None)\n--\n\n\
Wait for the next message.\n\
\n\
Parameters\n\
----------\n\
timeout\n\
\x20   Seconds; None waits until a message comes or the kernel is told to stop.\n\
\n\
Returns\n\
-------\n\
The message, or None if none came in time or the kernel is told to stop and none is left.",
        function: context_receive,
    },
    Method {
        name: c"send",
        doc: c"send($self, message, timeout=None)\n--\n\n\
Reply; wait for room.\n\
\n\
Parameters\n\
----------\n\
message\n\
\x20   The reply; any object, also None.\n\
timeout\n\
\x20   Seconds; None waits until there is room or the kernel is told to stop.\n\
\n\
Returns\n\
-------\n\
Whether the reply is on its way: False if there was no room in time, or the kernel was told\n\
to stop.\n\
\n\
Raises\n\
------\n\
TypeValidationError\n\
\x20   If the reply is not of the kernel's `output_type`.",
        function: context_send,
    },
];

pub(super) const CONTEXT_GETTERS: [Getter; 1] = [Getter {
    name: c"should_terminate",
    doc: c"Whether the kernel was told to stop.",
    function: should_terminate,
}];

/// Puts the methods that are called for each message on a class of Python's half.
pub(crate) fn own_methods(class: &Bound<'_, PyType>) -> PyResult<()> {
    if class.is_subclass_of::<ThreadKernel>()? {
        fastcall::add(class, &KERNEL_METHODS)?;
    }
    if class.is_subclass_of::<ThreadContext>()? {
        fastcall::add(class, &CONTEXT_METHODS)?;
    }
    Ok(())
}

/// One of the queues of a context.
fn queue<'a, 'py>(queue: &'a Option<Bound<'py, PyAny>>) -> Quick<&'a Bound<'py, ThreadQueue>> {
    match queue {
        Some(queue) => Ok(queue.cast::<ThreadQueue>().map_err(PyErr::from)?),
        None => Err(PyRuntimeError::new_err("the context's __init__ was not called").into()),
    }
}

fastcall! {
    fn send(kernel: ThreadKernel, "send", message; timeout;) |py| {
        let this = kernel.get();
        // Relaxed: as in `_allow`.
        if !this.sends.load(Ordering::Relaxed) {
            drop(kernel.call_method1(intern!(py, "_check_sendable"), (&message,))?);
        }
        let ends = this.ends()?;
        let timeout = optional(timeout, "timeout")?.unwrap_or(ends.send_timeout);
        match ends.input.get().offer(py, message.to_owned(), timeout)? {
            true => Ok(truth(py, true)),
            false => Ok(kernel.call_method0(intern!(py, "_not_sent"))?.unbind()),
        }
    }

    fn receive(kernel: ThreadKernel, "receive"; timeout, default;) |py| {
        let this = kernel.get();
        // Relaxed: as in `_allow`.
        if !this.receives.load(Ordering::Relaxed) {
            drop(kernel.call_method0(intern!(py, "_check_readable"))?);
        }
        let ends = this.ends()?;
        let timeout = optional(timeout, "timeout")?.unwrap_or(ends.receive_timeout);
        if let Some(reply) = ends.output.get().take(py, timeout)? {
            return Ok(reply.into_ptr());
        }
        let default = default.map_or_else(|| py.None().into_bound(py), |it| it.to_owned());
        Ok(kernel.call_method1(intern!(py, "_nothing_received"), (default,))?.unbind())
    }

    fn context_receive(context: ThreadContext, "receive"; timeout;) |py| {
        let timeout: Option<Timeout> = optional(timeout, "timeout")?;
        let input = context.get().part(py, |parts| &parts.input);
        let taken: Option<Item> = queue(&input)?.get().take(py, timeout.unwrap_or_default())?;
        Ok(taken.unwrap_or_else(|| py.None()))
    }

    fn context_send(context: ThreadContext, "send", message; timeout;) |py| {
        let this = context.get();
        // Nothing of Python's runs in there.
        if this.0.with(py, |parts| parts.output_type.is_some()) {
            drop(context.call_method1(intern!(py, "_check_output"), (&message,))?);
        }
        let timeout: Option<Timeout> = optional(timeout, "timeout")?;
        if this.is_told_to_stop(py)? {
            return Ok(truth(py, false).into_ptr());
        }
        let output = this.part(py, |parts| &parts.output);
        let timeout = timeout.unwrap_or_default();
        let sent = queue(&output)?.get().offer(py, message.to_owned(), timeout)?;
        Ok(truth(py, sent))
    }
}

getter! {
    fn should_terminate(context: ThreadContext) |py| { context.get().is_told_to_stop(py) }
}
