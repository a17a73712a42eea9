//! The native half of `RingKernelRuntime`.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use dotcompute::mailbox::sync::lock;
use dotcompute::{DeadLetter, Runtime};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList, PyTuple};

use super::actor::{Actor, core_runtime, name_of};
use super::awaitable;
use super::errors;
use super::held::Held;
use super::message::{PyMessage, Seen};
use super::operation::{Operation, Receive, Target, duration};
use super::scope::scope;

/// See the module.
#[pyclass(frozen, subclass, weakref, module = "pydotcompute._native", name = "Runtime")]
pub(super) struct NativeRuntime {
    core: Mutex<Runtime>,
    /// The kernels by their ids: a dict of `Actor`s.
    kernels: Py<PyDict>,
    pub(super) held: Arc<Held>,
}

impl NativeRuntime {
    pub(super) fn core(&self) -> Runtime {
        lock(&self.core).clone()
    }

    /// The kernel of this id.
    #[inline]
    pub(super) fn find<'py>(&self, id: &Bound<'py, PyAny>) -> PyResult<Bound<'py, Actor>> {
        let py = id.py();
        match self.kernels.bind(py).get_item(id)? {
            Some(actor) => Ok(actor.cast_into::<Actor>()?),
            None => {
                let known: Vec<String> = self
                    .kernels
                    .bind(py)
                    .keys()
                    .iter()
                    .map(|id| id.str().map(|id| id.to_string()).unwrap_or_default())
                    .collect();
                Err(errors::not_found(py, &id.str()?.to_string_lossy(), known))
            }
        }
    }
}

#[pymethods]
impl NativeRuntime {
    #[new]
    #[pyo3(signature = (*_args, **_kwargs))]
    fn new(
        py: Python<'_>,
        _args: &Bound<'_, PyTuple>,
        _kwargs: Option<&Bound<'_, PyDict>>,
    ) -> Self {
        Self {
            core: Mutex::new(core_runtime()),
            kernels: PyDict::new(py).unbind(),
            held: Arc::default(),
        }
    }

    fn __traverse__(&self, visit: pyo3::PyVisit<'_>) -> Result<(), pyo3::PyTraverseError> {
        visit.call(&self.kernels)?;
        self.held.traverse(&visit)?;
        // A message may lead back to whoever sent it. The faults in the letters are the kernels' to
        // show, which have the same ones.
        let mut outcome = Ok(());
        self.core().dead_letters(|letter| {
            if let (Ok(()), Some(message)) = (&outcome, letter.message::<PyMessage>()) {
                outcome = message.traverse(&visit);
            }
        });
        outcome
    }

    fn __clear__(&self, py: Python<'_>) {
        self.held.clear(py);
        let core = self.core();
        scope(py, || drop(core.take_dead_letters(|_| true)));
    }

    /// The kernels by their ids.
    #[getter]
    fn _kernels(&self, py: Python<'_>) -> Py<PyDict> {
        self.kernels.clone_ref(py)
    }

    /// Begins anew, after a shutdown.
    fn _renew(&self, py: Python<'_>) {
        let old = std::mem::replace(&mut *lock(&self.core), core_runtime());
        scope(py, || drop(old));
    }

    /// Ends all kernels, in time: a dict of how each ended.
    fn _shutdown(slf: &Bound<'_, Self>, timeout: f64) -> PyResult<Py<PyAny>> {
        let core = slf.get().core();
        let within = duration(Some(timeout));
        let future = Box::pin(async move {
            let within = within?.unwrap_or(Duration::from_secs(1 << 32));
            let outcomes = core.shutdown(within).await;
            Python::attach(|py| {
                let values = PyDict::new(py);
                for (kernel, outcome) in outcomes {
                    values.set_item(kernel.as_str(), name_of(outcome))?;
                }
                Ok(values.into_any().unbind())
            })
        });
        awaitable::new(slf.py(), Operation::Future(future))
    }

    /// [`_shutdown`](Self::_shutdown) that waits on the calling thread, without the interpreter.
    fn _shutdown_blocking(&self, py: Python<'_>, timeout: f64) -> PyResult<()> {
        let core = self.core();
        let within = duration(Some(timeout))?.unwrap_or_default();
        py.detach(|| core.shutdown_blocking(within));
        Ok(())
    }

    /// Sends a message to a kernel.
    #[pyo3(signature = (kernel_id, message, *, timeout=None))]
    fn send(
        slf: &Bound<'_, Self>,
        kernel_id: Py<PyAny>,
        message: Py<PyAny>,
        timeout: Option<f64>,
    ) -> PyResult<Py<PyAny>> {
        let target = Target::Named(slf.clone().unbind(), kernel_id);
        awaitable::new(slf.py(), Operation::Send { target, message, timeout, waiting: None })
    }

    /// Receives a reply from a kernel.
    #[pyo3(signature = (kernel_id, *, timeout=None))]
    fn receive(
        slf: &Bound<'_, Self>,
        kernel_id: Py<PyAny>,
        timeout: Option<f64>,
    ) -> PyResult<Py<PyAny>> {
        let target = Target::Named(slf.clone().unbind(), kernel_id);
        awaitable::new(slf.py(), Receive::operation(target, timeout))
    }

    /// Sends a message to a kernel and receives the reply to it.
    #[pyo3(signature = (kernel_id, message, *, timeout=None))]
    fn send_and_receive(
        slf: &Bound<'_, Self>,
        kernel_id: Py<PyAny>,
        message: Py<PyAny>,
        timeout: Option<f64>,
    ) -> PyResult<Py<PyAny>> {
        let target = Target::Named(slf.clone().unbind(), kernel_id);
        awaitable::new(slf.py(), Operation::Ask { target, message, timeout, waiting: None })
    }

    /// Connects two kernels; the replies of the one go to the other.
    fn _connect(
        &self,
        from_id: &Bound<'_, PyAny>,
        to_id: &Bound<'_, PyAny>,
        allow_cycle: bool,
    ) -> PyResult<()> {
        let py = from_id.py();
        let (from, to) = (self.find(from_id)?, self.find(to_id)?);
        let (from, to) = (from.get(), to.get());
        from.kernel(py, "connect")?;
        to.kernel(py, "connect")?;
        let core = self.core();
        let connected = scope(py, || match allow_cycle {
            false => core.connect(from.id(), to.id()),
            true => core.connect_allowing_cycle(from.id(), to.id()),
        });
        connected.map_err(|error| errors::connect(py, &error))?;
        from.shared.set_next(&to.shared, to.input_type(py));
        Ok(())
    }

    /// Disconnects a kernel from the next one; whether it was connected.
    fn _disconnect(&self, kernel_id: &Bound<'_, PyAny>) -> PyResult<bool> {
        let py = kernel_id.py();
        let actor = self.find(kernel_id)?;
        let kernel = actor.get().kernel(py, "disconnect")?;
        Ok(scope(py, || kernel.disconnect()))
    }

    /// The name of the kernel that a kernel is connected to.
    fn _connected_to(&self, kernel_id: &Bound<'_, PyAny>) -> PyResult<Option<String>> {
        let actor = self.find(kernel_id)?;
        let kernel = actor.get().kernel(kernel_id.py(), "look at")?;
        Ok(kernel.connected_to().map(|next| next.to_string()))
    }

    /// The dead letters, oldest first, each as a tuple; `take`: they are dead letters no more.
    #[pyo3(signature = (kernel_id, take))]
    fn _dead_letters<'py>(
        &self,
        py: Python<'py>,
        kernel_id: Option<&str>,
        take: bool,
    ) -> PyResult<Bound<'py, PyList>> {
        let core = self.core();
        let wanted = |letter: &DeadLetter| kernel_id.is_none_or(|id| letter.kernel.as_str() == id);
        let mut letters = Vec::new();
        if take {
            letters.extend(core.take_dead_letters(wanted).iter().map(|l| Letter::of(py, l)));
        } else {
            core.dead_letters(|letter| {
                if wanted(letter) {
                    letters.push(Letter::of(py, letter));
                }
            });
        }
        let list = PyList::empty(py);
        for letter in letters {
            let message = letter.message.map(|message| message.object(py, None)).transpose()?;
            list.append((
                letter.kernel,
                message,
                letter.reason,
                letter.delivery_count,
                letter.to_kernel,
                letter.at,
            ))?;
        }
        Ok(list)
    }

    /// Sends dead letters again; how many were sent.
    #[pyo3(signature = (kernel_id))]
    fn _replay(&self, py: Python<'_>, kernel_id: Option<&str>) -> usize {
        let core = self.core();
        scope(py, || core.replay(|letter| kernel_id.is_none_or(|id| letter.kernel.as_str() == id)))
    }
}

/// What is said of a dead letter. Made under the core's lock: it runs no Python code.
struct Letter {
    kernel: String,
    message: Option<Seen>,
    reason: String,
    delivery_count: u8,
    to_kernel: bool,
    at: f64,
}

impl Letter {
    fn of(py: Python<'_>, letter: &DeadLetter) -> Self {
        let since = letter.at.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        Self {
            kernel: letter.kernel.as_str().to_owned(),
            message: letter.message::<PyMessage>().map(|message| Seen::dead(message, letter, py)),
            reason: letter.reason.to_string(),
            delivery_count: letter.delivery_count,
            to_kernel: letter.to_kernel,
            at: since.as_secs_f64(),
        }
    }
}
