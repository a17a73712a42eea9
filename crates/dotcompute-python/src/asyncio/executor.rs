//! The executors of Python: actors as asyncio Tasks, and on threads.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context as TaskContext, Poll, Waker};
use std::time::{Duration, Instant};

use crate::once::intern;
use dotcompute::mailbox::sync::{AtomicU64, Ordering, lock};
use dotcompute::mailbox::wait;
use dotcompute::{BoxError, Context, Executor, KernelId, KernelTask};
use pyo3::prelude::*;

use super::actor::Kernel;
use super::context::{ContextCell, ContextHandle, Shared};
use super::errors::{self, PyFault};
use super::guarded;
use super::hub::Hub;
use super::message::PyMessage;
use super::operation::duration;
use super::python::is_exit;

/// Kernels on the event loop that runs on the launching thread, or on a given one.
pub(crate) struct AsyncioExecutor;

impl Executor for AsyncioExecutor {
    fn name(&self) -> &'static str {
        "asyncio"
    }

    fn start(&self, _kernel: &KernelId, task: KernelTask) -> Result<(), BoxError> {
        let hub = Python::attach(|py| Hub::running(py).map(|(hub, _)| hub))?;
        hub.start(task)
    }
}

/// A thread for each kernel, as in the core; but signals are left to Python's main thread.
pub(crate) struct ThreadExecutor;

impl Executor for ThreadExecutor {
    fn name(&self) -> &'static str {
        "thread"
    }

    fn start(&self, kernel: &KernelId, task: KernelTask) -> Result<(), BoxError> {
        let name = format!("rk-{kernel}").replace('\0', "?");
        let here = ThreadOfAKernel::enter();
        let body = move || {
            let _here = here;
            let _running = wait::running();
            wait::block_on(task);
        };
        without_signals(|| std::thread::Builder::new().name(name).spawn(body))?;
        Ok(())
    }
}

/// How many threads of kernels may run Python code.
static THREADS: AtomicU64 = AtomicU64::new(0);

/// A thread of a kernel, as long as it may run Python code.
pub(super) struct ThreadOfAKernel(());

impl ThreadOfAKernel {
    pub(super) fn enter() -> Self {
        // Relaxed: a count; nothing is published by it.
        THREADS.fetch_add(1, Ordering::Relaxed);
        Self(())
    }
}

impl Drop for ThreadOfAKernel {
    fn drop(&mut self) {
        // SYNC(threads.gone) release: pairs with the acquire in `_join_threads`, which finds the
        // thread out of the interpreter.
        THREADS.fetch_sub(1, Ordering::Release);
    }
}

/// The child of a fork has none of these threads.
pub(super) fn forget_threads() {
    // Relaxed: the calling thread is the only one.
    THREADS.store(0, Ordering::Relaxed);
}

/// Makes the class that the module does not show: see [`once`](crate::once).
pub(super) fn make_classes(py: Python<'_>) {
    py.get_type::<Done>();
}

/// Waits until no kernel has a thread, at most so many seconds: for the end of the process. A thread
/// that comes back into an interpreter that is ending, to tell an event loop of its kernel's end,
/// say, is torn down by it in the middle of Rust code, and that is a crash.
#[pyfunction]
pub(super) fn _join_threads(py: Python<'_>, timeout: f64) -> PyResult<()> {
    let within = duration(Some(timeout))?.unwrap_or_default();
    let begin = Instant::now();
    // SYNC(threads.gone) acquire: pairs with the release where a thread ends.
    py.detach(|| {
        while THREADS.load(Ordering::Acquire) > 0 && begin.elapsed() < within {
            std::thread::park_timeout(Duration::from_millis(1));
        }
    });
    Ok(())
}

/// Calls `f` with all signals blocked, as threads that it starts then have them.
pub(super) fn without_signals<R>(f: impl FnOnce() -> R) -> R {
    #[cfg(unix)]
    {
        struct Restore(libc::sigset_t);
        impl Drop for Restore {
            fn drop(&mut self) {
                let previous = &raw const self.0;
                // SAFETY: the mask that this thread had before.
                unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, previous, std::ptr::null_mut()) };
            }
        }
        let mut all = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: room for a signal set.
        unsafe { libc::sigfillset(all.as_mut_ptr()) };
        let mut previous = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: a set that was filled, and room for another.
        unsafe {
            libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), previous.as_mut_ptr());
        }
        // SAFETY: written by the call above, which fails only for an unknown `how`.
        let _restore = Restore(unsafe { previous.assume_init() });
        f()
    }
    #[cfg(not(unix))]
    f()
}

/// The outcome of an actor's function, which a Task reports.
#[derive(Default)]
struct Report {
    outcome: Mutex<Option<Result<(), BoxError>>>,
    waker: Mutex<Option<Waker>>,
}

/// The callback that a Task calls when it is done.
#[pyclass(frozen, module = "pydotcompute._native")]
struct Done {
    report: Arc<Report>,
    kernel: Kernel,
}

#[pymethods]
impl Done {
    fn __call__(&self, task: &Bound<'_, PyAny>) -> PyResult<()> {
        let py = task.py();
        let error = if task.call_method0(intern!(py, "cancelled"))?.is_truthy()? {
            let class = super::python::names(py)?.cancelled_error.bind(py);
            Some(PyErr::from_value(class.call0()?))
        } else {
            let exception = task.call_method0(intern!(py, "exception"))?;
            (!exception.is_none()).then(|| PyErr::from_value(exception))
        };
        let outcome = error.map_or(Ok(()), |error| fault_of(py, &self.kernel, error));
        *lock(&self.report.outcome) = Some(outcome);
        let waker = lock(&self.report.waker).take();
        if let Some(waker) = waker {
            waker.wake();
        }
        Ok(())
    }
}

/// That the kernel itself was stopped is a clean end. A kernel keeps the exception of its latest
/// fault only.
fn fault_of(py: Python<'_>, kernel: &Kernel, error: PyErr) -> Result<(), BoxError> {
    let stopped = errors::class(py, "KernelStoppedError")?;
    if error.is_instance(py, &stopped) {
        let of = error.value(py).getattr(intern!(py, "kernel_id"))?;
        if of.extract::<&str>().is_ok_and(|of| of == kernel.id().as_str()) {
            return Ok(());
        }
    }
    if let Some(fault) = kernel.fault() {
        errors::clear(&fault);
    }
    Err(Box::new(PyFault::new(py, error)))
}

/// What an actor is made from at each (re)start.
pub(super) struct Spec {
    /// Called with a [`ContextHandle`] and a callback for the end; returns the Task, or `None` if
    /// the actor's function has ended.
    pub(super) start: Py<PyAny>,
    pub(super) kernel: Mutex<Option<Kernel>>,
    pub(super) shared: Arc<Shared>,
    pub(super) threaded: bool,
}

/// One run of an actor's function: the body of the core's kernel.
pub(super) struct ActorRun {
    spec: Arc<Spec>,
    context: Option<Context<PyMessage, PyMessage>>,
    cell: Option<Arc<ContextCell>>,
    report: Arc<Report>,
    task: Option<Py<PyAny>>,
}

impl ActorRun {
    pub(super) fn new(spec: Arc<Spec>, context: Context<PyMessage, PyMessage>) -> Self {
        Self { spec, context: Some(context), cell: None, report: Arc::default(), task: None }
    }

    fn start(&mut self, core: Context<PyMessage, PyMessage>) -> Poll<Result<(), BoxError>> {
        let kernel = lock(&self.spec.kernel).clone();
        let Some(kernel) = kernel else {
            return Poll::Ready(Err("the kernel was started before it was launched".into()));
        };
        let shared = Arc::clone(&self.spec.shared);
        let cell = Arc::new(ContextCell::new(core, kernel.clone(), shared, self.spec.threaded));
        self.cell = Some(Arc::clone(&cell));
        let started = Python::try_attach(|py| {
            let handle = Py::new(py, ContextHandle { cell })?;
            let report = Arc::clone(&self.report);
            let done = Py::new(py, Done { report, kernel: kernel.clone() })?;
            // SAFETY: the interpreter is attached, and these are alive.
            let task =
                unsafe { guarded::call(self.spec.start.as_ptr(), handle.as_ptr(), done.as_ptr()) };
            // SAFETY: a new reference, or null with an error set.
            let task = unsafe { Bound::from_owned_ptr_or_err(py, task) }?;
            Ok(match task.is_none() {
                true => None,
                false => Some(task.unbind()),
            })
        });
        match started {
            None => Poll::Ready(Err("the interpreter is ending".into())),
            Some(Ok(None)) => Poll::Ready(Ok(())),
            Some(Ok(task)) => {
                self.task = task;
                Poll::Pending
            }
            Some(Err(error)) => Poll::Ready(Python::attach(|py| {
                // A task that starts eagerly gives an exit to whoever made it; it is the loop's.
                if !self.spec.threaded && is_exit(py, &error) {
                    let exit = error.clone_ref(py);
                    let _ = Hub::with_running(py, |hub, _| hub.raise_later(py, exit));
                }
                fault_of(py, &kernel, error)
            })),
        }
    }
}

impl Future for ActorRun {
    type Output = Result<(), BoxError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        if let Some(context) = this.context.take() {
            // Before it starts, so that an end at once is seen.
            *lock(&this.report.waker) = Some(cx.waker().clone());
            if let Poll::Ready(outcome) = this.start(context) {
                return Poll::Ready(outcome);
            }
        } else {
            *lock(&this.report.waker) = Some(cx.waker().clone());
        }
        let outcome = lock(&this.report.outcome).take();
        match outcome {
            Some(outcome) => {
                this.task = None;
                Poll::Ready(outcome)
            }
            None => Poll::Pending,
        }
    }
}

impl Drop for ActorRun {
    fn drop(&mut self) {
        if let Some(task) = self.task.take() {
            // Killed: at its next step the Task finds itself cancelled.
            let _ = Python::try_attach(|py| cancel(py, &task));
        }
        if let Some(cell) = self.cell.take() {
            cell.end();
        }
    }
}

/// Cancels a Task, or a future of another thread's loop.
fn cancel(py: Python<'_>, task: &Py<PyAny>) {
    let task = task.bind(py);
    let cancelled = (|| {
        if !task.hasattr(intern!(py, "get_loop"))? {
            // A concurrent.futures.Future takes care of its threads.
            return task.call_method0(intern!(py, "cancel")).map(drop);
        }
        let event_loop = task.call_method0(intern!(py, "get_loop"))?;
        if event_loop.call_method0(intern!(py, "is_closed"))?.is_truthy()? {
            return Ok(());
        }
        let running = super::python::names(py)?.running_loop.bind(py).call0()?;
        if running.is(&event_loop) {
            task.call_method0(intern!(py, "cancel")).map(drop)
        } else {
            let cancel = task.getattr(intern!(py, "cancel"))?;
            event_loop.call_method1(intern!(py, "call_soon_threadsafe"), (cancel,)).map(drop)
        }
    })();
    if let Err(error) = cancelled {
        error.write_unraisable(py, Some(task));
    }
}
