//! The native half of `RingKernel`.

use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use dotcompute::mailbox::sync::{AtomicBool, Ordering, lock};
use dotcompute::{
    Backpressure, Books, Envelope, FaultKind, KernelBuilder, KernelId, KernelRef, Restart,
    RestartPolicy, Runtime, SendError, Terminate, Termination,
};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::awaitable;
use super::context::{Shared, check_type};
use super::errors;
use super::executor::{ActorRun, AsyncioExecutor, Spec, ThreadExecutor, without_signals};
use super::held::Held;
use super::message::{PyMessage, full_envelope, plain_envelope};
use super::operation::{self, Operation, Receive, Target, duration};
use super::runtime::NativeRuntime;
use super::scope::scope;
use crate::fastcall::{Method, fastcall, optional};
use crate::message::priority_of;
use crate::quick::Quick;
use crate::records::{CompiledHandler, Records};

/// A kernel of Python objects.
pub(super) type Kernel = KernelRef<PyMessage, PyMessage>;

/// A core runtime with the executors of Python.
pub(super) fn core_runtime() -> Runtime {
    let builder = Runtime::builder()
        .name("pydotcompute")
        .executor(Arc::new(AsyncioExecutor))
        .executor(Arc::new(ThreadExecutor))
        .executor(dotcompute_cuda::executor())
        .on_stall(report_stall);
    #[cfg(target_os = "linux")]
    let builder = builder.executor(dotcompute::process::executor());
    builder.build()
}

/// Python's log, too, tells of a kernel that stalls.
fn report_stall(kernel: &KernelId, watchdog: Duration) {
    let told = Python::try_attach(|py| -> PyResult<()> {
        let log = py.import("logging")?.call_method1("getLogger", ("pydotcompute",))?;
        let text = "kernel %r stalled: it has had the same message in hand for more than %s s";
        log.call_method1("warning", (text, kernel.as_str(), watchdog.as_secs_f64()))?;
        Ok(())
    });
    if let Some(Err(error)) = told {
        Python::attach(|py| error.write_unraisable(py, None));
    }
}

/// Launches a kernel. The thread that looks for stalls starts with the first that has a watchdog.
pub(super) fn watched<R>(watchdog: Option<Duration>, launch: impl FnOnce() -> R) -> R {
    match watchdog {
        Some(_) => without_signals(launch),
        None => launch(),
    }
}

/// See the module.
#[pyclass(frozen, subclass, module = "pydotcompute._native")]
pub(super) struct Actor {
    id: String,
    kernel: OnceLock<Kernel>,
    pub(super) shared: Arc<Shared>,
    input_type: Mutex<Option<Py<PyAny>>>,
    /// Fast to look at: whether there is an input type.
    typed: AtomicBool,
    /// What a compiled handler takes and makes.
    records: OnceLock<Arc<Records>>,
    capacity: OnceLock<usize>,
    /// Terminated without ever having been launched.
    ended_unlaunched: AtomicBool,
    pub(super) held: Arc<Held>,
}

impl Actor {
    /// The core's kernel.
    #[inline]
    pub(super) fn kernel(&self, py: Python<'_>, operation: &str) -> Quick<&Kernel> {
        match self.kernel.get() {
            Some(kernel) => Ok(kernel),
            None => Err(errors::wrong_state(py, &self.id, self.state(), operation).into()),
        }
    }

    /// The envelope of a message to the kernel; `asking`: for a reply of its own.
    #[inline]
    pub(super) fn envelope(
        &self,
        message: &Bound<'_, PyAny>,
        asking: bool,
    ) -> Quick<Envelope<PyMessage>> {
        if let Some(records) = self.records.get() {
            return Ok(records.envelope(message)?);
        }
        self.check_input(message)?;
        match asking || self.shared.is_asked() {
            true => Ok(full_envelope(message)?),
            false => Ok(plain_envelope(message, priority_of(message)?)),
        }
    }

    /// The priority of a message of which nothing else has to be known; `None`: see `envelope`.
    #[inline]
    pub(super) fn plain_priority(&self, message: &Bound<'_, PyAny>) -> Quick<Option<u8>> {
        if self.records.get().is_some() || self.shared.is_asked() {
            return Ok(None);
        }
        self.check_input(message)?;
        Ok(Some(priority_of(message)?))
    }

    /// The `RecordType` of the replies, where they are records.
    #[inline]
    pub(super) fn reply_record(&self) -> Option<&Py<PyAny>> {
        self.records.get().and_then(|records| records.output.as_ref())
    }

    /// Whether the kernel runs without the interpreter, beside this thread: its handler is compiled. (Or
    /// interpreted where numba is not installed: then to look out for it does not pay, and ends.)
    #[inline]
    pub(super) fn runs_beside(&self) -> bool {
        self.records.get().is_some()
    }

    #[inline]
    fn check_input(&self, message: &Bound<'_, PyAny>) -> Quick<()> {
        // Relaxed: written once, before the kernel is launched.
        if !self.typed.load(Ordering::Relaxed) {
            return Ok(());
        }
        let py = message.py();
        let expected = lock(&self.input_type).as_ref().map(|kind| kind.bind(py).clone());
        match expected {
            None => Ok(()),
            Some(expected) => {
                Ok(check_type(message, &expected, || format!("message to kernel '{}'", self.id))?)
            }
        }
    }

    pub(super) fn id(&self) -> &str {
        &self.id
    }

    pub(super) fn input_type(&self, py: Python<'_>) -> Option<Py<PyAny>> {
        lock(&self.input_type).as_ref().map(|kind| kind.clone_ref(py))
    }

    pub(super) fn capacity(&self) -> usize {
        self.capacity.get().copied().unwrap_or_default()
    }
}

fn restart_of(restart: Option<&Bound<'_, PyAny>>) -> PyResult<Restart> {
    let Some(restart) = restart.filter(|restart| !restart.is_none()) else {
        return Ok(Restart::default());
    };
    let seconds = |name: &str| -> PyResult<Duration> {
        let seconds = duration(Some(restart.getattr(name)?.extract()?))?;
        seconds.ok_or_else(|| PyValueError::new_err(format!("{name} is out of range")))
    };
    Ok(Restart {
        policy: match restart.getattr("policy")?.extract::<&str>()? {
            "never" => RestartPolicy::Never,
            "on_fault" => RestartPolicy::OnFault,
            "always" => RestartPolicy::Always,
            other => {
                return Err(PyValueError::new_err(format!(
                    "restart policy should be 'never', 'on_fault' or 'always', got '{other}'"
                )));
            }
        },
        max_restarts: restart.getattr("max_restarts")?.extract()?,
        window: seconds("window")?,
        backoff: seconds("backoff")?,
        backoff_max: seconds("backoff_max")?,
        redeliver: restart.getattr("redeliver")?.extract()?,
    })
}

fn backpressure_of(name: &str) -> PyResult<Backpressure> {
    Ok(match name {
        "block" => Backpressure::Block,
        "reject" => Backpressure::Reject,
        "drop_oldest" => Backpressure::DropOldest,
        "drop_newest" => Backpressure::DropNewest,
        other => {
            return Err(PyValueError::new_err(format!("unknown backpressure strategy '{other}'")));
        }
    })
}

/// What can be said about a kernel of any kind at its launch.
pub(super) struct Settings {
    capacity: usize,
    reply_capacity: usize,
    backpressure: Backpressure,
    exact_priority: bool,
    restart: Restart,
    watchdog: Option<Duration>,
}

impl Settings {
    pub(super) fn new(
        capacity: usize,
        reply_capacity: usize,
        backpressure: &str,
        exact_priority: bool,
        restart: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Self> {
        let (backpressure, restart) = (backpressure_of(backpressure)?, restart_of(restart)?);
        Ok(Self { capacity, reply_capacity, backpressure, exact_priority, restart, watchdog: None })
    }

    /// With a watchdog of so many seconds.
    pub(super) fn watched(mut self, seconds: Option<f64>) -> PyResult<Self> {
        self.watchdog = duration(seconds)?;
        Ok(self)
    }

    pub(super) fn watchdog(&self) -> Option<Duration> {
        self.watchdog
    }

    pub(super) fn apply<'a>(&self, builder: KernelBuilder<'a>) -> KernelBuilder<'a> {
        builder
            .capacity(self.capacity)
            .reply_capacity(self.reply_capacity)
            .backpressure(self.backpressure)
            .exact_priority(self.exact_priority)
            .restart(self.restart)
            .watchdog(self.watchdog)
    }
}

impl Actor {
    /// Notes the types of messages and replies, before the launch.
    pub(super) fn prepare(
        &self,
        py: Python<'_>,
        input_type: Option<Py<PyAny>>,
        output_type: Option<Py<PyAny>>,
    ) -> PyResult<()> {
        if self.kernel.get().is_some() {
            return Err(errors::wrong_state(py, &self.id, self.state(), "launch"));
        }
        // Relaxed: before the kernel is launched.
        self.typed.store(input_type.is_some(), Ordering::Relaxed);
        *lock(&self.input_type) = input_type;
        self.shared.set_output_type(output_type);
        Ok(())
    }

    /// Its messages and replies are these records.
    pub(super) fn takes_records(&self, records: Arc<Records>) {
        let _ = self.records.set(records);
    }

    pub(super) fn launched(&self, kernel: Kernel, capacity: usize) {
        let _ = self.capacity.set(capacity);
        let _ = self.kernel.set(kernel);
    }
}

impl Drop for Actor {
    fn drop(&mut self) {
        // Nobody can ask for it any more.
        if let Some(fault) = self.kernel.get().and_then(Kernel::fault) {
            errors::clear(&fault);
        }
    }
}

#[pymethods]
impl Actor {
    #[new]
    #[pyo3(signature = (kernel_id, *_args, **_kwargs))]
    fn new(
        kernel_id: String,
        _args: &Bound<'_, PyAny>,
        _kwargs: Option<&Bound<'_, PyDict>>,
    ) -> Self {
        Self {
            id: kernel_id,
            kernel: OnceLock::new(),
            shared: Arc::default(),
            input_type: Mutex::new(None),
            typed: AtomicBool::new(false),
            records: OnceLock::new(),
            capacity: OnceLock::new(),
            ended_unlaunched: AtomicBool::new(false),
            held: Arc::default(),
        }
    }

    fn __traverse__(&self, visit: pyo3::PyVisit<'_>) -> Result<(), pyo3::PyTraverseError> {
        // The types that it keeps are not visited: they are classes, and outlive it.
        // Nor are the messages to it: while its function runs, that holds it, and once it has ended
        // they are dead letters.
        self.held.traverse(&visit)?;
        let Some(kernel) = self.kernel.get() else { return Ok(()) };
        if let Some(fault) = kernel.fault() {
            errors::traverse(&fault, &visit)?;
        }
        let mut outcome = Ok(());
        kernel.inspect_replies(|reply| {
            if outcome.is_ok() {
                outcome = reply.message.traverse(&visit);
            }
        });
        outcome
    }

    fn __clear__(&self, py: Python<'_>) {
        self.held.clear(py);
        let Some(kernel) = self.kernel.get() else { return };
        if let Some(fault) = kernel.fault() {
            errors::clear(&fault);
        }
        scope(py, || while let Ok(Some(_)) = kernel.receive_now() {});
    }

    /// The kernel's name.
    #[getter]
    fn kernel_id(&self) -> &str {
        &self.id
    }

    /// Launches the kernel in `runtime`.
    #[expect(clippy::too_many_arguments, reason = "called once, from the Python half, by name")]
    #[pyo3(signature = (runtime, start, *, threaded, capacity, reply_capacity, backpressure,
                        exact_priority, restart, watchdog, input_type, output_type, far_side=false))]
    fn _launch(
        &self,
        py: Python<'_>,
        runtime: &NativeRuntime,
        start: Py<PyAny>,
        threaded: bool,
        capacity: usize,
        reply_capacity: usize,
        backpressure: &str,
        exact_priority: bool,
        restart: Option<&Bound<'_, PyAny>>,
        watchdog: Option<f64>,
        input_type: Option<Py<PyAny>>,
        output_type: Option<Py<PyAny>>,
        far_side: bool,
    ) -> PyResult<()> {
        let settings =
            Settings::new(capacity, reply_capacity, backpressure, exact_priority, restart)?
                .watched(watchdog)?;
        self.prepare(py, input_type, output_type)?;
        if far_side {
            // Those who ask are in the parent, which finds their asks by the ids of replies.
            self.shared.set_asked();
        }
        let core = runtime.core();
        let shared = Arc::clone(&self.shared);
        let spec = Arc::new(Spec { start, kernel: Mutex::new(None), shared, threaded });
        let body = Arc::clone(&spec);
        let launch = || {
            let builder = settings.apply(core.kernel(self.id.as_str()));
            let builder = if far_side { builder.keep_replies() } else { builder };
            builder
                .executor(if threaded { "thread" } else { "asyncio" })
                .launch(move |context| ActorRun::new(Arc::clone(&body), context))
        };
        let launched = scope(py, || watched(settings.watchdog, launch));
        let kernel = match launched {
            Ok(kernel) => kernel,
            Err(error) => return Err(errors::launch(py, &error)),
        };
        *lock(&spec.kernel) = Some(kernel.clone());
        self.launched(kernel, capacity);
        Ok(())
    }

    /// Launches the kernel in `runtime` with a compiled handler, on a thread.
    #[expect(clippy::too_many_arguments, reason = "called once, from the Python half, by name")]
    #[pyo3(signature = (runtime, handler, *, capacity, reply_capacity, backpressure, restart,
                        watchdog))]
    fn _launch_compiled(
        &self,
        py: Python<'_>,
        runtime: &NativeRuntime,
        handler: &CompiledHandler,
        capacity: usize,
        reply_capacity: usize,
        backpressure: &str,
        restart: Option<&Bound<'_, PyAny>>,
        watchdog: Option<f64>,
    ) -> PyResult<()> {
        let restart = restart_of(restart)?;
        let backpressure = backpressure_of(backpressure)?;
        if self.kernel.get().is_some() {
            return Err(errors::wrong_state(py, &self.id, self.state(), "launch"));
        }
        let watchdog = duration(watchdog)?;
        let compiled = handler.take()?;
        let core = runtime.core();
        let launch = || {
            core.kernel(self.id.as_str())
                .executor("thread")
                .capacity(capacity)
                .reply_capacity(reply_capacity)
                .backpressure(backpressure)
                .restart(restart)
                .watchdog(watchdog)
                .launch_compiled::<PyMessage, PyMessage>(compiled)
        };
        let launched = scope(py, || watched(watchdog, launch));
        let kernel = launched.map_err(|error| errors::launch(py, &error))?;
        self.takes_records(handler.records());
        let _ = self.capacity.set(capacity);
        let _ = self.kernel.set(kernel);
        Ok(())
    }

    fn _activate(&self, py: Python<'_>) -> PyResult<()> {
        let kernel = self.kernel(py, "activate")?;
        scope(py, || kernel.activate()).map_err(|error| errors::state(py, &error))
    }

    fn _deactivate(&self, py: Python<'_>) -> PyResult<()> {
        let kernel = self.kernel(py, "deactivate")?;
        scope(py, || kernel.deactivate()).map_err(|error| errors::state(py, &error))
    }

    fn _reactivate(&self, py: Python<'_>) -> PyResult<()> {
        let kernel = self.kernel(py, "reactivate")?;
        scope(py, || kernel.reactivate()).map_err(|error| errors::state(py, &error))
    }

    /// Sends a message and waits for the reply to it, on the calling thread, for `timeout` seconds at most.
    #[pyo3(signature = (message, timeout=None))]
    fn ask_blocking(
        &self,
        message: &Bound<'_, PyAny>,
        timeout: Option<f64>,
    ) -> PyResult<Py<PyAny>> {
        operation::ask_blocking(message.py(), self, message, timeout)
    }

    /// Sends a message if that needs no waiting; whether it was taken.
    fn _offer(&self, message: &Bound<'_, PyAny>) -> PyResult<bool> {
        let py = message.py();
        let kernel = self.kernel(py, "send message")?;
        let envelope = self.envelope(message, true)?;
        match scope(py, || kernel.offer(envelope)) {
            Ok(refused) => Ok(refused.is_none()),
            Err(SendError::Full { .. }) => Ok(false),
            Err(error) => Err(errors::send(py, error, None, self.capacity())),
        }
    }

    /// The next reply, or `None` if there is none now.
    fn _receive_now(&self, py: Python<'_>) -> PyResult<Option<Py<PyAny>>> {
        let kernel = self.kernel(py, "receive message")?;
        match scope(py, || kernel.receive_now()) {
            Ok(None) => Ok(None),
            Ok(Some(reply)) => Ok(Some(PyMessage::into_object(reply, py, self.reply_record())?)),
            Err(error) => Err(errors::receive(py, error, None)),
        }
    }

    /// Asks the kernel to end, and does not wait.
    fn _stop(&self, py: Python<'_>, drain: bool) {
        match self.kernel.get() {
            Some(kernel) => scope(py, || kernel.stop(drain)),
            // Relaxed: a lone flag; whoever reads it late reads a state that was true.
            None => self.ended_unlaunched.store(true, Ordering::Relaxed),
        }
    }

    /// Ends the kernel, in time: "clean", "cancelled", "abandoned" or "requested".
    fn _terminate(slf: &Bound<'_, Self>, timeout: f64, drain: bool) -> PyResult<Py<PyAny>> {
        let py = slf.py();
        let within = duration(Some(timeout));
        let kernel = slf.get().kernel.get().cloned();
        let future = Box::pin(async move {
            // No longer than the clock can tell.
            let within = within?.unwrap_or(Duration::from_secs(1 << 32));
            let how = if drain { Terminate::drain() } else { Terminate::now() };
            let outcome = match kernel {
                Some(kernel) => kernel.terminate(how.within(within)).await,
                None => Termination::Clean,
            };
            Python::attach(|py| Ok(name_of(outcome).into_pyobject(py)?.into_any().unbind()))
        });
        Ok(awaitable::new(py, || Operation::Future(future))?)
    }

    /// The name of its state.
    #[getter(_state)]
    fn state(&self) -> &'static str {
        match self.kernel.get() {
            Some(kernel) => errors::state_name(kernel.state()),
            // Relaxed: as in `_stop`.
            None if self.ended_unlaunched.load(Ordering::Relaxed) => "TERMINATED",
            None => "CREATED",
        }
    }

    /// Whether it was asked to end, or has ended.
    #[getter(_stopping)]
    fn stopping(&self) -> bool {
        self.kernel.get().is_some_and(Kernel::is_stopping)
    }

    /// The exception that it failed with, or was last restarted for.
    #[getter]
    fn error<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyAny>>> {
        match self.kernel.get().and_then(Kernel::fault) {
            Some(fault) => errors::cause_of(py, &fault).map(Some),
            None => Ok(None),
        }
    }

    /// How often it was started again.
    #[getter]
    fn restarts(&self) -> u64 {
        self.kernel.get().map_or(0, |kernel| kernel.telemetry().restarts)
    }

    /// Waits until it has ended, for whatever reason.
    fn _ended(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        let kernel = self.kernel.get().cloned();
        let future = Box::pin(async move {
            if let Some(kernel) = kernel {
                // Why it ended is told by its state and its error.
                let _ = kernel.ended().await;
            }
            Ok(Python::attach(|py| py.None()))
        });
        Ok(awaitable::new(py, || Operation::Future(future))?)
    }

    /// What the kernel has done so far, in plain numbers; `None` before its launch.
    fn _telemetry<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyDict>>> {
        let Some(kernel) = self.kernel.get() else { return Ok(None) };
        let telemetry = kernel.telemetry();
        let (books, queue, handler) =
            (telemetry.books, telemetry.queue_time, telemetry.handler_time);
        let mean_ns = queue.mean_ns + handler.mean_ns;
        let values = PyDict::new(py);
        // Of a batch each record is a message that was processed.
        values.set_item("messages_processed", telemetry.records)?;
        let dropped = books.dropped_oldest + books.dropped_newest + books.rejected + books.expired;
        values.set_item("messages_dropped", dropped)?;
        values.set_item("queue_depth", books.queued)?;
        values.set_item("total_latency_ns", (mean_ns * books.processed as f64).round() as u64)?;
        values.set_item("max_latency_ns", queue.max_ns + handler.max_ns)?;
        values.set_item("min_latency_ns", queue.min_ns + handler.min_ns)?;
        values.set_item("error_count", telemetry.faults)?;
        values.set_item("uptime_seconds", telemetry.uptime.as_secs_f64())?;
        let error =
            telemetry.last_fault.filter(|_| telemetry.faults > 0).map(|fault| match fault.kind() {
                FaultKind::Executor => format!("given up: {}", fault.message()),
                _ => fault.message().to_owned(),
            });
        values.set_item("last_error", error)?;
        Ok(Some(values))
    }

    /// What became of all messages: the books of the mailbox ("in"), or of the replies ("out").
    fn _books<'py>(&self, py: Python<'py>, replies: bool) -> PyResult<Bound<'py, PyDict>> {
        let values = PyDict::new(py);
        let Some(kernel) = self.kernel.get() else { return Ok(values) };
        let books = if replies { kernel.reply_books() } else { kernel.books() };
        put_books(&values, books)?;
        Ok(values)
    }
}

/// Books, for Python.
pub(super) fn put_books(values: &Bound<'_, PyDict>, books: Books) -> PyResult<()> {
    for (name, value) in [
        ("accepted", books.accepted),
        ("processed", books.processed),
        ("dropped_oldest", books.dropped_oldest),
        ("dropped_newest", books.dropped_newest),
        ("expired", books.expired),
        ("dead_lettered", books.dead_lettered),
        ("forwarded", books.forwarded),
        ("in_hand", books.in_hand),
        ("queued", books.queued),
        ("rejected", books.rejected),
        ("redelivered", books.redelivered),
    ] {
        values.set_item(name, value)?;
    }
    Ok(())
}

/// The methods that are called for each message.
pub(super) const METHODS: [Method; 3] = [
    Method {
        name: c"send",
        doc: c"send($self, message, timeout=None)\n--\n\nSends a message to the kernel.",
        function: send,
    },
    Method {
        name: c"receive",
        doc: c"receive($self, timeout=None)\n--\n\nReceives a reply from the kernel.",
        function: receive,
    },
    Method {
        name: c"send_and_receive",
        doc: c"send_and_receive($self, message, timeout=None)\n--\n\n\
               Sends a message and receives the reply to it.",
        function: send_and_receive,
    },
];

fastcall! {
    fn send(actor: Actor, "Actor.send", message; timeout;) |py| {
        let (target, message) = (Target::Actor(actor.clone().unbind()), message.to_owned().unbind());
        let timeout = optional(timeout, "timeout")?;
        awaitable::new(py, || Operation::Send { target, message, timeout, waiting: None })
    }

    fn receive(actor: Actor, "Actor.receive"; timeout;) |py| {
        let target = Target::Actor(actor.clone().unbind());
        let timeout = optional(timeout, "timeout")?;
        awaitable::new(py, || Receive::operation(target, timeout))
    }

    fn send_and_receive(actor: Actor, "Actor.send_and_receive", message; timeout;) |py| {
        let (target, message) = (Target::Actor(actor.clone().unbind()), message.to_owned().unbind());
        let timeout = optional(timeout, "timeout")?;
        awaitable::new(py, || Operation::Ask { target, message, timeout, waiting: None })
    }
}

/// Of `Termination`, for Python.
pub(super) fn name_of(outcome: Termination) -> &'static str {
    match outcome {
        Termination::Clean => "clean",
        Termination::Cancelled => "cancelled",
        Termination::Abandoned => "abandoned",
        Termination::Requested => "requested",
    }
}
