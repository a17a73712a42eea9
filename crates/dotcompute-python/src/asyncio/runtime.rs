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
use super::pool::NativePool;
use super::scope::scope;
use crate::fastcall::{Method, fastcall, optional};
use crate::quick::{Error, Quick};

/// See the module.
#[pyclass(frozen, subclass, weakref, module = "pydotcompute._native", name = "Runtime")]
pub(super) struct NativeRuntime {
    core: Mutex<Runtime>,
    /// The kernels by their ids: a dict of `Actor`s.
    kernels: Py<PyDict>,
    /// The pools by their ids.
    pools: Py<PyDict>,
    pub(super) held: Arc<Held>,
}

impl NativeRuntime {
    pub(super) fn core(&self) -> Runtime {
        lock(&self.core).clone()
    }

    /// The kernel of this id.
    #[inline]
    pub(super) fn find<'py>(&self, id: &Bound<'py, PyAny>) -> Quick<Bound<'py, Actor>> {
        match self.kernels.bind(id.py()).get_item(id)? {
            Some(actor) => Ok(actor.cast_into::<Actor>().map_err(PyErr::from)?),
            None => Err(self.not_found(id)),
        }
    }

    #[cold]
    fn not_found(&self, id: &Bound<'_, PyAny>) -> Error {
        let py = id.py();
        let text = |id: &Bound<'_, PyAny>| match id.str() {
            Ok(id) => Ok(id.to_string_lossy().into_owned()),
            Err(error) => Err(error),
        };
        let known = self.kernels.bind(py).keys();
        let known = known.iter().map(|id| text(&id).unwrap_or_default()).collect();
        match text(id) {
            Ok(id) => errors::not_found(py, &id, known).into(),
            Err(error) => error.into(),
        }
    }

    /// The pool of this id, if there is one.
    #[inline]
    fn pool<'py>(&self, id: &Bound<'py, PyAny>) -> PyResult<Option<Bound<'py, NativePool>>> {
        let pools = self.pools.bind(id.py());
        if pools.is_empty() {
            return Ok(None);
        }
        Ok(pools.get_item(id)?.map(Bound::cast_into::<NativePool>).transpose()?)
    }

    /// The kernel of this id, or the workers of the pool.
    fn stage<'py>(&self, id: &Bound<'py, PyAny>) -> PyResult<Vec<Bound<'py, Actor>>> {
        match self.pool(id)? {
            None => Ok(vec![self.find(id)?]),
            Some(pool) => {
                Ok(pool.get().actors().iter().map(|one| one.bind(id.py()).clone()).collect())
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
            pools: PyDict::new(py).unbind(),
            held: Arc::default(),
        }
    }

    fn __traverse__(&self, visit: pyo3::PyVisit<'_>) -> Result<(), pyo3::PyTraverseError> {
        visit.call(&self.kernels)?;
        visit.call(&self.pools)?;
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

    /// The pools by their ids.
    #[getter]
    fn _pools(&self, py: Python<'_>) -> Py<PyDict> {
        self.pools.clone_ref(py)
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
        Ok(awaitable::new(slf.py(), || Operation::Future(future))?)
    }

    /// [`_shutdown`](Self::_shutdown) that waits on the calling thread, without the interpreter.
    fn _shutdown_blocking(&self, py: Python<'_>, timeout: f64) -> PyResult<()> {
        let core = self.core();
        let within = duration(Some(timeout))?.unwrap_or_default();
        py.detach(|| core.shutdown_blocking(within));
        Ok(())
    }

    /// Connects two kernels; the replies of the one go to the other.
    fn _connect(
        &self,
        from_id: &Bound<'_, PyAny>,
        to_id: &Bound<'_, PyAny>,
        allow_cycle: bool,
    ) -> PyResult<()> {
        let py = from_id.py();
        let (from, to) = (self.stage(from_id)?, self.stage(to_id)?);
        for kernel in from.iter().chain(&to) {
            kernel.get().kernel(py, "connect")?;
        }
        let key = self.pool(to_id)?.and_then(|pool| pool.get().key());
        let (from_id, to_id): (String, String) = (from_id.extract()?, to_id.extract()?);
        let core = self.core();
        let connected = scope(py, || match allow_cycle {
            false => core.connect(&from_id, &to_id),
            true => core.connect_allowing_cycle(&from_id, &to_id),
        });
        connected.map_err(|error| errors::connect(py, &error))?;
        let shared: Vec<_> = to.iter().map(|kernel| Arc::clone(&kernel.get().shared)).collect();
        for kernel in from {
            kernel.get().shared.set_next(&shared, to[0].get().input_type(py), key.clone());
        }
        Ok(())
    }

    /// Disconnects a kernel from the next one; whether it was connected.
    fn _disconnect(&self, kernel_id: &Bound<'_, PyAny>) -> PyResult<bool> {
        let py = kernel_id.py();
        let mut connected = false;
        for actor in self.stage(kernel_id)? {
            let kernel = actor.get().kernel(py, "disconnect")?;
            connected |= scope(py, || kernel.disconnect());
        }
        Ok(connected)
    }

    /// The name of the kernel that a kernel is connected to.
    fn _connected_to(&self, kernel_id: &Bound<'_, PyAny>) -> PyResult<Option<String>> {
        let stage = self.stage(kernel_id)?;
        let kernels = stage.iter().map(|one| one.get().kernel(kernel_id.py(), "look at"));
        let kernels = kernels.collect::<Quick<Vec<_>>>()?;
        let next = kernels.iter().find_map(|kernel| kernel.connected_to());
        Ok(next.map(|next| next.to_string()))
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

/// The methods that are called for each message.
pub(super) const METHODS: [Method; 3] = [
    Method {
        name: c"send",
        doc:
            c"send($self, kernel_id, message, *, timeout=None)\n--\n\nSends a message to a kernel.",
        function: send,
    },
    Method {
        name: c"receive",
        doc: c"receive($self, kernel_id, *, timeout=None)\n--\n\nReceives a reply from a kernel.",
        function: receive,
    },
    Method {
        name: c"send_and_receive",
        doc: c"send_and_receive($self, kernel_id, message, *, timeout=None)\n--\n\n\
               Sends a message to a kernel and receives the reply to it.",
        function: send_and_receive,
    },
];

fastcall! {
    fn send(runtime: NativeRuntime, "Runtime.send", kernel_id, message;; timeout) |py| {
        let timeout = optional(timeout, "timeout")?;
        let message = message.to_owned().unbind();
        match runtime.get().pool(&kernel_id)? {
            Some(pool) => NativePool::send(&pool, message, timeout).map_err(Error::from),
            None => awaitable::new(py, || Operation::Send {
                target: Target::Named(runtime.clone().unbind(), kernel_id.to_owned().unbind()),
                message,
                timeout,
                waiting: None,
            }),
        }
    }

    fn receive(runtime: NativeRuntime, "Runtime.receive", kernel_id;; timeout) |py| {
        let timeout = optional(timeout, "timeout")?;
        match runtime.get().pool(&kernel_id)? {
            Some(pool) => NativePool::receive(&pool, timeout).map_err(Error::from),
            None => awaitable::new(py, || {
                let target = Target::Named(runtime.clone().unbind(), kernel_id.to_owned().unbind());
                Receive::operation(target, timeout)
            }),
        }
    }

    fn send_and_receive(
        runtime: NativeRuntime, "Runtime.send_and_receive", kernel_id, message;; timeout
    ) |py| {
        let message = message.to_owned().unbind();
        let timeout = optional(timeout, "timeout")?;
        match runtime.get().pool(&kernel_id)? {
            Some(pool) => NativePool::send_and_receive(&pool, message, timeout).map_err(Error::from),
            None => {
                let target = Target::Named(runtime.clone().unbind(), kernel_id.to_owned().unbind());
                awaitable::new(py, || Operation::Ask { target, message, timeout, waiting: None })
            }
        }
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
