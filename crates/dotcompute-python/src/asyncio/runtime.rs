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
use super::message::PyMessage;
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
        self.held.traverse(&visit)
    }

    fn __clear__(&self, py: Python<'_>) {
        self.held.clear(py);
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
            list.append((
                letter.kernel,
                letter.message,
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
    message: Option<Py<PyAny>>,
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
            message: letter.message::<PyMessage>().map(|message| message.object(py)),
            reason: letter.reason.to_string(),
            delivery_count: letter.delivery_count,
            to_kernel: letter.to_kernel,
            at: since.as_secs_f64(),
        }
    }
}
