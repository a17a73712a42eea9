//! The core's errors as the package's exceptions.

use std::fmt;
use std::sync::Mutex;

use crate::once::Once;
use dotcompute::mailbox::sync::lock;
use dotcompute::{
    AskError, ConnectError, Fault, KernelState, LaunchError, LookupError, ReceiveError, SendError,
    StateError,
};
use pyo3::exceptions::PyBaseException;
use pyo3::prelude::*;
use pyo3::types::PyTuple;
use pyo3::{PyTraverseError, PyVisit};

use super::guarded;
use super::message::PyMessage;

/// An exception of an actor, as the source of a fault.
pub(crate) struct PyFault {
    text: String,
    /// Its traceback leads to the actor's frame, and that to the kernel: part of a cycle.
    error: Mutex<Option<Py<PyBaseException>>>,
}

impl PyFault {
    pub(crate) fn new(py: Python<'_>, error: PyErr) -> Self {
        let name = error.get_type(py).qualname().map(|name| name.to_string()).unwrap_or_default();
        let text = match error.value(py).str() {
            Ok(text) if text.len().is_ok_and(|length| length > 0) => {
                format!("{name}: {}", text.to_string_lossy())
            }
            _ => name,
        };
        Self { text, error: Mutex::new(Some(error.into_value(py))) }
    }
}

impl fmt::Display for PyFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for PyFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PyFault({})", self.text)
    }
}

impl std::error::Error for PyFault {}

/// The exception that a fault came from, through the faults that say where it came about.
fn origin(fault: &Fault) -> Option<&PyFault> {
    let mut source = std::error::Error::source(fault);
    while let Some(error) = source {
        if let Some(fault) = error.downcast_ref::<PyFault>() {
            return Some(fault);
        }
        source = error.source();
    }
    None
}

/// The same fault, without its exception but with what that has as notes: where it came about.
#[cfg(target_os = "linux")]
pub(super) fn with_notes(fault: &Fault) -> Fault {
    let notes = origin(fault).and_then(|origin| {
        Python::try_attach(|py| -> PyResult<Vec<String>> {
            let error = lock(&origin.error).as_ref().map(|error| error.clone_ref(py));
            let Some(error) = error else { return Ok(Vec::new()) };
            match error.bind(py).as_any().getattr_opt("__notes__")? {
                None => Ok(Vec::new()),
                Some(notes) => notes.extract(),
            }
        })
    });
    let notes = match notes {
        Some(Ok(notes)) => notes,
        None | Some(Err(_)) => Vec::new(),
    };
    let lines = std::iter::once(fault.message().to_owned()).chain(notes);
    Fault::reported(fault.kind(), lines.collect::<Vec<_>>().join("\n"))
}

/// Shows the exception that a fault came from to the collector.
pub(super) fn traverse(fault: &Fault, visit: &PyVisit<'_>) -> Result<(), PyTraverseError> {
    match origin(fault) {
        Some(fault) => lock(&fault.error).as_ref().map_or(Ok(()), |error| visit.call(error)),
        None => Ok(()),
    }
}

/// Gives up the exception that a fault came from: only its text is left. Dead letters and records
/// may keep the fault for long, and the exception would keep all that its frames hold.
pub(super) fn clear(fault: &Fault) {
    if let Some(fault) = origin(fault) {
        let error = lock(&fault.error).take();
        drop(error);
    }
}

/// The exception that a fault came from; for a fault of another kind, one that tells of it.
pub(super) fn cause_of<'py>(py: Python<'py>, fault: &Fault) -> PyResult<Bound<'py, PyAny>> {
    if let Some(fault) = origin(fault)
        && let Some(error) = &*lock(&fault.error)
    {
        return Ok(error.bind(py).clone().into_any());
    }
    made(py, "KernelError", (fault.to_string(),))
}

/// A class of `pydotcompute.exceptions`.
pub(super) fn class<'py>(py: Python<'py>, name: &str) -> PyResult<Bound<'py, PyAny>> {
    static MODULE: Once<Py<PyAny>> = Once::new();
    let module = MODULE.get_or_try_init(py, || {
        py.import("pydotcompute.exceptions").map(|module| module.into_any().unbind())
    })?;
    module.bind(py).getattr(name)
}

/// What is passed to the class of an exception.
pub(crate) trait Arguments<'py>:
    IntoPyObject<'py, Target = PyTuple, Output = Bound<'py, PyTuple>, Error: Into<PyErr>>
{
}

impl<'py, T> Arguments<'py> for T where
    T: IntoPyObject<'py, Target = PyTuple, Output = Bound<'py, PyTuple>, Error: Into<PyErr>>
{
}

pub(crate) fn raise<'py>(py: Python<'py>, name: &str, arguments: impl Arguments<'py>) -> PyErr {
    match made(py, name, arguments) {
        Ok(error) => PyErr::from_value(error),
        Err(error) => error,
    }
}

/// An exception of a class of `pydotcompute.exceptions`, which is made by Python code: where the
/// interpreter ends meanwhile the thread is kept in there, before anything of an await is dropped without
/// the interpreter.
fn made<'py>(
    py: Python<'py>,
    name: &str,
    arguments: impl Arguments<'py>,
) -> PyResult<Bound<'py, PyAny>> {
    let class = class(py, name)?;
    let arguments = arguments.into_pyobject(py).map_err(Into::into)?;
    // SAFETY: the interpreter is attached, and these are alive.
    let made = unsafe { guarded::call_with(class.as_ptr(), arguments.as_ptr()) };
    // SAFETY: a new reference, or null with an error set.
    unsafe { Bound::from_owned_ptr_or_err(py, made) }
}

/// The six names that Python knows: a failed kernel has ended.
pub(super) fn state_name(state: KernelState) -> &'static str {
    match state {
        KernelState::Created => "CREATED",
        KernelState::Launched => "LAUNCHED",
        KernelState::Active => "ACTIVE",
        KernelState::Deactivated => "DEACTIVATED",
        KernelState::Terminating => "TERMINATING",
        KernelState::Terminated | KernelState::Failed => "TERMINATED",
    }
}

pub(super) fn wrong_state(py: Python<'_>, kernel: &str, state: &str, operation: &str) -> PyErr {
    raise(py, "KernelStateError", (kernel, state, operation))
}

pub(super) fn stopped(py: Python<'_>, kernel: &str, operation: &str) -> PyErr {
    raise(py, "KernelStoppedError", (kernel, operation))
}

pub(super) fn failed(py: Python<'_>, kernel: &str, fault: &Fault, operation: &str) -> PyErr {
    match cause_of(py, fault) {
        Ok(cause) => raise(py, "KernelFailedError", (kernel, cause, operation)),
        Err(error) => error,
    }
}

pub(super) fn timed_out(py: Python<'_>, kernel: &str, seconds: f64, operation: &str) -> PyErr {
    raise(py, "QueueTimeoutError", (kernel, seconds, operation))
}

pub(super) fn full(py: Python<'_>, kernel: &str, capacity: usize) -> PyErr {
    raise(py, "QueueFullError", (kernel, capacity))
}

pub(super) fn not_found(py: Python<'_>, kernel: &str, known: Vec<String>) -> PyErr {
    raise(py, "KernelNotFoundError", (kernel, known))
}

pub(super) fn type_mismatch(
    expected: &Bound<'_, PyAny>,
    actual: &Bound<'_, PyAny>,
    context: String,
) -> PyErr {
    raise(expected.py(), "TypeValidationError", (expected, actual.get_type(), context))
}

/// A send that found the queue of so many messages full until its time was over.
pub(super) fn stayed_full(py: Python<'_>, kernel: &str, capacity: usize, seconds: f64) -> PyErr {
    raise(py, "SendTimeoutError", (kernel, capacity, seconds))
}

pub(super) fn send(
    py: Python<'_>,
    error: SendError<PyMessage>,
    seconds: Option<f64>,
    capacity: usize,
) -> PyErr {
    const OPERATION: &str = "send message";
    match &error {
        SendError::Full { kernel, capacity, .. } => full(py, kernel.as_str(), *capacity),
        SendError::Timeout { kernel, .. } => {
            stayed_full(py, kernel.as_str(), capacity, seconds.unwrap_or_default())
        }
        SendError::NotActive { kernel, state, .. } => {
            wrong_state(py, kernel.as_str(), state_name(*state), OPERATION)
        }
        SendError::Failed { kernel, fault, .. } => failed(py, kernel.as_str(), fault, OPERATION),
        SendError::Stopped { kernel, .. } => stopped(py, kernel.as_str(), OPERATION),
        other => raise(py, "KernelError", (other.to_string(),)),
    }
}

pub(super) fn receive(py: Python<'_>, error: ReceiveError, seconds: Option<f64>) -> PyErr {
    const OPERATION: &str = "receive message";
    match &error {
        ReceiveError::Empty { kernel } | ReceiveError::Timeout { kernel } => {
            timed_out(py, kernel.as_str(), seconds.unwrap_or_default(), "receive")
        }
        ReceiveError::NotActive { kernel, state } => {
            wrong_state(py, kernel.as_str(), state_name(*state), OPERATION)
        }
        ReceiveError::Failed { kernel, fault } => failed(py, kernel.as_str(), fault, OPERATION),
        ReceiveError::Stopped { kernel } => stopped(py, kernel.as_str(), OPERATION),
        ReceiveError::Connected { kernel } => pipeline(py, kernel.as_str(), &error),
        other => raise(py, "KernelError", (other.to_string(),)),
    }
}

pub(super) fn ask(
    py: Python<'_>,
    error: AskError<PyMessage>,
    seconds: Option<f64>,
    capacity: usize,
) -> PyErr {
    match error {
        AskError::NotSent(error) => send(py, error, seconds, capacity),
        AskError::Timeout { kernel } => {
            timed_out(py, kernel.as_str(), seconds.unwrap_or_default(), "receive")
        }
        AskError::Dropped { kernel } => full(py, kernel.as_str(), capacity),
        AskError::Failed { kernel, fault } => {
            failed(py, kernel.as_str(), &fault, "receive message")
        }
        AskError::Stopped { kernel } => stopped(py, kernel.as_str(), "receive message"),
        AskError::Disconnected { ref kernel } => pipeline(py, kernel.as_str(), &error),
        other => raise(py, "KernelError", (other.to_string(),)),
    }
}

fn pipeline(py: Python<'_>, kernel: &str, error: &impl fmt::Display) -> PyErr {
    raise(py, "PipelineError", (kernel, error.to_string()))
}

pub(super) fn connect(py: Python<'_>, error: &ConnectError) -> PyErr {
    match error {
        // Gone from the core, known to Python: it has ended.
        ConnectError::Stopped { kernel }
        | ConnectError::Lookup(LookupError::NotFound { kernel }) => {
            stopped(py, kernel.as_str(), "connect")
        }
        ConnectError::AlreadyConnected { kernel, .. }
        | ConnectError::WrongType { from: kernel, .. }
        | ConnectError::Cycle { kernel, .. } => pipeline(py, kernel.as_str(), error),
        other => raise(py, "KernelError", (other.to_string(),)),
    }
}

pub(super) fn state(py: Python<'_>, error: &StateError) -> PyErr {
    wrong_state(py, error.kernel.as_str(), state_name(error.state), error.operation)
}

pub(super) fn launch(py: Python<'_>, error: &LaunchError) -> PyErr {
    match error {
        LaunchError::AlreadyExists { kernel, .. } => {
            raise(py, "KernelAlreadyExistsError", (kernel.as_str(),))
        }
        LaunchError::InvalidOption { option, value, expected, .. } => raise(
            py,
            "InvalidConfigurationError",
            // The core quotes a name, and knows kernels by theirs.
            match *option {
                "name" => ("kernel_id", value.trim_matches('"'), format!("must be {expected}")),
                option => (option, value.as_str(), format!("must be {expected}")),
            },
        ),
        other => raise(py, "KernelError", (other.to_string(),)),
    }
}
