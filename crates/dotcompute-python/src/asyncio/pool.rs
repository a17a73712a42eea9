//! The native half of `KernelPool`: the core's pool, whose workers are `RingKernel`s.

use std::ptr::null_mut;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use dotcompute::compiled::KeyError;
use dotcompute::mailbox::sync::lock;
use dotcompute::{Envelope, KernelBuilder, LaunchError, Pool, Terminate};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};

use super::actor::{Actor, Kernel, Settings, name_of, watched};
use super::awaitable;
use super::errors;
use super::executor::{ActorRun, Spec};
use super::guarded;
use super::message::PyMessage;
use super::operation::{Operation, duration};
use super::runtime::NativeRuntime;
use super::scope::scope;
use crate::records::CompiledHandler;

type Core = Pool<PyMessage, PyMessage>;

/// By what messages are told apart.
pub(super) enum Key {
    /// A field of records, an attribute of objects.
    Named(String),
    /// A function of the object.
    Call(Py<PyAny>),
}

impl Key {
    fn new(key: &Bound<'_, PyAny>) -> PyResult<Self> {
        match key.extract::<String>() {
            Ok(name) => Ok(Self::Named(name)),
            Err(_) if key.is_callable() => Ok(Self::Call(key.clone().unbind())),
            Err(_) => Err(PyTypeError::new_err("key should be a name or a function of a message")),
        }
    }

    /// Equal numbers where the keys are equal; an error if a message has no key, or records have
    /// several.
    fn of(&self, message: &PyMessage) -> PyResult<u64> {
        match (message.batch(), self) {
            (Some(batch), Self::Named(name)) => batch.key(name).map_err(|error| match error {
                KeyError::Several { .. } => PyValueError::new_err(error.to_string()),
                _ => PyTypeError::new_err(error.to_string()),
            }),
            (Some(batch), Self::Call(_)) => Err(PyTypeError::new_err(format!(
                "messages are records '{}': give the name of a field as the key",
                batch.layout().name
            ))),
            (None, _) => Python::attach(|py| self.of_object(message.object(py).bind(py))),
        }
    }

    /// The same of an object that is on its way.
    pub(super) fn of_object(&self, object: &Bound<'_, PyAny>) -> PyResult<u64> {
        let key = match self {
            Self::Call(function) => {
                // SAFETY: the interpreter is attached, and these are alive.
                let key = unsafe { guarded::call(function.as_ptr(), object.as_ptr(), null_mut()) };
                // SAFETY: a new reference, or null with an error set.
                unsafe { Bound::from_owned_ptr_or_err(object.py(), key) }?
            }
            Self::Named(name) => match object.getattr(name.as_str()) {
                Ok(key) => key,
                // An array of records.
                Err(error) => match object.get_item(name).and_then(|field| field.get_item(0)) {
                    Ok(key) => key,
                    Err(_) => return Err(error),
                },
            },
        };
        // As an integer of a record: `hash` has other numbers for large ones.
        if let Ok(number) = key.extract::<i64>() {
            return Ok(number.cast_unsigned());
        }
        match key.extract::<u64>() {
            Ok(number) => Ok(number),
            Err(_) => Ok(key.hash()?.cast_unsigned() as u64),
        }
    }
}

/// See the module.
#[pyclass(frozen, subclass, module = "pydotcompute._native", name = "Pool")]
pub(super) struct NativePool {
    id: String,
    workers: Vec<Py<Actor>>,
    core: OnceLock<Core>,
    key: OnceLock<Arc<Key>>,
}

/// What a worker runs.
enum Body {
    Function(Arc<Spec>),
    Compiled(Option<dotcompute::CompiledHandler>),
}

impl Body {
    fn launch(&mut self, builder: KernelBuilder<'_>) -> Result<Kernel, LaunchError> {
        match self {
            Self::Function(spec) => {
                let body = Arc::clone(spec);
                builder.launch(move |context| ActorRun::new(Arc::clone(&body), context))
            }
            Self::Compiled(handler) => match handler.take() {
                Some(handler) => builder.launch_compiled::<PyMessage, PyMessage>(handler),
                None => unreachable!("each worker is launched once"),
            },
        }
    }
}

impl NativePool {
    pub(super) fn actors(&self) -> &[Py<Actor>] {
        &self.workers
    }

    pub(super) fn key(&self) -> Option<Arc<Key>> {
        self.key.get().cloned()
    }

    fn core(&self, py: Python<'_>, operation: &str) -> PyResult<&Core> {
        self.core.get().ok_or_else(|| errors::wrong_state(py, &self.id, "CREATED", operation))
    }

    fn first(&self) -> &Actor {
        self.workers[0].get()
    }

    /// What is needed to send a message.
    fn outgoing(
        &self,
        py: Python<'_>,
        message: &Py<PyAny>,
        timeout: Option<f64>,
        asking: bool,
    ) -> PyResult<(Core, Envelope<PyMessage>, Option<Duration>, usize)> {
        let core = self.core(py, "send message")?.clone();
        let within = duration(timeout)?;
        if asking {
            self.workers.iter().for_each(|worker| worker.get().shared.set_asked());
        }
        let envelope = self.first().envelope(message.bind(py), asking)?;
        if let Some(key) = self.key.get() {
            key.of(&envelope.message)?;
        }
        Ok((core, envelope, within, self.first().capacity()))
    }

    fn each(
        &self,
        py: Python<'_>,
        operation: &str,
        step: impl Fn(&Core) -> Result<(), dotcompute::StateError> + Send,
    ) -> PyResult<()> {
        let core = self.core(py, operation)?;
        scope(py, || step(core)).map_err(|error| errors::state(py, &error))
    }
}

#[pymethods]
impl NativePool {
    #[new]
    fn new(pool_id: String, workers: Vec<Py<Actor>>) -> PyResult<Self> {
        if workers.is_empty() {
            return Err(PyValueError::new_err("a pool has 1 worker or more"));
        }
        Ok(Self { id: pool_id, workers, core: OnceLock::new(), key: OnceLock::new() })
    }

    fn __traverse__(&self, visit: pyo3::PyVisit<'_>) -> Result<(), pyo3::PyTraverseError> {
        self.workers.iter().try_for_each(|worker| visit.call(worker))
    }

    /// Its name.
    #[getter]
    fn pool_id(&self) -> &str {
        &self.id
    }

    /// Launches the workers in `runtime`: each with its own function to start, or its own handler.
    #[expect(clippy::too_many_arguments, reason = "called once, from the Python half, by name")]
    #[pyo3(signature = (runtime, starts, handlers, key, *, threaded, capacity, reply_capacity,
                        backpressure, exact_priority, restart, watchdog, input_type, output_type))]
    fn _launch(
        &self,
        py: Python<'_>,
        runtime: &NativeRuntime,
        starts: Vec<Py<PyAny>>,
        handlers: Vec<Py<CompiledHandler>>,
        key: Option<&Bound<'_, PyAny>>,
        threaded: bool,
        capacity: usize,
        reply_capacity: usize,
        backpressure: &str,
        exact_priority: bool,
        restart: Option<&Bound<'_, PyAny>>,
        watchdog: Option<f64>,
        input_type: Option<Py<PyAny>>,
        output_type: Option<Py<PyAny>>,
    ) -> PyResult<()> {
        let key = key.map(Key::new).transpose()?.map(Arc::new);
        let settings =
            Settings::new(capacity, reply_capacity, backpressure, exact_priority, restart)?
                .watched(watchdog)?;
        let mut bodies = Vec::with_capacity(self.workers.len());
        for (place, worker) in self.workers.iter().enumerate() {
            let worker = worker.get();
            let none = |kind: &Option<Py<PyAny>>| kind.as_ref().map(|kind| kind.clone_ref(py));
            bodies.push(match (starts.get(place), handlers.get(place)) {
                (Some(start), _) => {
                    worker.prepare(py, none(&input_type), none(&output_type))?;
                    let (start, shared) = (start.clone_ref(py), Arc::clone(&worker.shared));
                    let kernel = Mutex::new(None);
                    Body::Function(Arc::new(Spec { start, kernel, shared, threaded }))
                }
                (None, Some(handler)) => Body::Compiled(Some(handler.get().take()?)),
                (None, None) => return Err(PyValueError::new_err("a worker has nothing to run")),
            });
        }
        let core = runtime.core();
        let executor = if threaded { "thread" } else { "asyncio" };
        let mut launching = bodies.iter_mut();
        let launch = || {
            let builder = settings.apply(core.kernel(self.id.as_str())).executor(executor);
            builder.pool(self.workers.len()).launch_each(|builder| match launching.next() {
                Some(body) => body.launch(builder),
                None => unreachable!("there is a body for each worker"),
            })
        };
        let launched = scope(py, || watched(settings.watchdog(), launch));
        let pool = launched.map_err(|error| errors::launch(py, &error))?;
        for (place, (kernel, body)) in pool.workers().iter().zip(&bodies).enumerate() {
            if let Body::Function(spec) = body {
                *lock(&spec.kernel) = Some(kernel.clone());
            }
            let worker = self.workers[place].get();
            if let Some(handler) = handlers.get(place) {
                worker.takes_records(handler.get().records());
            }
            worker.launched(kernel.clone(), capacity);
        }
        let pool = match &key {
            None => pool,
            Some(key) => {
                let (id, key) = (self.id.clone(), Arc::clone(key));
                pool.by_key(move |message| match key.of(message) {
                    Ok(key) => key,
                    Err(error) => panic!("the key of pool '{id}': {error}"),
                })
            }
        };
        if let Some(key) = key {
            let _ = self.key.set(key);
        }
        let _ = self.core.set(pool);
        Ok(())
    }

    fn _activate(&self, py: Python<'_>) -> PyResult<()> {
        self.each(py, "activate", Core::activate)
    }

    fn _deactivate(&self, py: Python<'_>) -> PyResult<()> {
        self.each(py, "deactivate", Core::deactivate)
    }

    fn _reactivate(&self, py: Python<'_>) -> PyResult<()> {
        self.each(py, "reactivate", Core::reactivate)
    }

    /// Ends the workers, in time: how each ended.
    fn _terminate(slf: &Bound<'_, Self>, timeout: f64, drain: bool) -> PyResult<Py<PyAny>> {
        let py = slf.py();
        let within = duration(Some(timeout));
        let core = slf.get().core.get().cloned();
        let future = Box::pin(async move {
            let within = within?.unwrap_or(Duration::from_secs(1 << 32));
            let how = if drain { Terminate::drain() } else { Terminate::now() };
            let outcomes = match core {
                Some(core) => core.terminate(how.within(within)).await,
                None => Vec::new(),
            };
            Python::attach(|py| {
                let names = outcomes.into_iter().map(name_of);
                Ok(PyList::new(py, names)?.into_any().unbind())
            })
        });
        Ok(awaitable::new(py, || Operation::Future(future))?)
    }

    /// Sends a message to a worker.
    #[pyo3(signature = (message, timeout=None))]
    pub(super) fn send(
        slf: &Bound<'_, Self>,
        message: Py<PyAny>,
        timeout: Option<f64>,
    ) -> PyResult<Py<PyAny>> {
        let this = slf.clone().unbind();
        let future = Box::pin(async move {
            let (core, envelope, within, capacity) =
                Python::attach(|py| this.get().outgoing(py, &message, timeout, false))?;
            let sent = match within {
                Some(within) => core.send_timeout(envelope, within).await,
                None => core.send(envelope).await,
            };
            Python::attach(|py| match sent {
                Ok(()) => Ok(py.None()),
                Err(error) => Err(errors::send(py, error, timeout, capacity)),
            })
        });
        Ok(awaitable::new(slf.py(), || Operation::Future(future))?)
    }

    /// Receives the next reply of any worker.
    #[pyo3(signature = (timeout=None))]
    pub(super) fn receive(slf: &Bound<'_, Self>, timeout: Option<f64>) -> PyResult<Py<PyAny>> {
        let this = slf.clone().unbind();
        let future = Box::pin(async move {
            let (core, within) = Python::attach(|py| -> PyResult<_> {
                let core = this.get().core(py, "receive message")?.clone();
                Ok((core, duration(timeout)?))
            })?;
            let received = match within {
                Some(within) => core.receive_timeout(within).await,
                None => core.receive().await,
            };
            Python::attach(|py| match received {
                Ok(reply) => {
                    let record = this.get().first().reply_record();
                    Ok(PyMessage::into_object(reply, py, record)?)
                }
                Err(error) => Err(errors::receive(py, error, timeout)),
            })
        });
        Ok(awaitable::new(slf.py(), || Operation::Future(future))?)
    }

    /// Sends a message to a worker and receives the reply to it.
    #[pyo3(signature = (message, timeout=None))]
    pub(super) fn send_and_receive(
        slf: &Bound<'_, Self>,
        message: Py<PyAny>,
        timeout: Option<f64>,
    ) -> PyResult<Py<PyAny>> {
        let this = slf.clone().unbind();
        let future = Box::pin(async move {
            let (core, envelope, within, capacity) =
                Python::attach(|py| this.get().outgoing(py, &message, timeout, true))?;
            let answered = match within {
                Some(within) => core.ask_timeout(envelope, within).await,
                None => core.ask(envelope).await,
            };
            Python::attach(|py| match answered {
                Ok(reply) => {
                    let record = this.get().first().reply_record();
                    Ok(PyMessage::into_object(reply, py, record)?)
                }
                Err(error) => Err(errors::ask(py, error, timeout, capacity)),
            })
        });
        Ok(awaitable::new(slf.py(), || Operation::Future(future))?)
    }

    /// What became of all messages of all workers, or of their replies.
    fn _books<'py>(&self, py: Python<'py>, replies: bool) -> PyResult<Bound<'py, PyDict>> {
        let values = PyDict::new(py);
        let Some(core) = self.core.get() else { return Ok(values) };
        super::actor::put_books(&values, if replies { core.reply_books() } else { core.books() })?;
        Ok(values)
    }
}
