//! The conformance suite on the executors of the extension, for pytest to run: asyncio's, and
//! processes that are Python's.
//!
//! On asyncio its kernels are core futures: an event loop drives those too. Its promises block, so
//! each runs on a thread of its own, beside the loops. A process is another interpreter, which comes
//! to the suite's roles in this extension.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
#[cfg(target_os = "linux")]
use std::process::Command;
#[cfg(target_os = "linux")]
use std::sync::OnceLock;
use std::sync::{Arc, Mutex};

use dotcompute::mailbox::sync::lock;
#[cfg(target_os = "linux")]
use dotcompute::process::{EXECUTOR, Processes, executor};
use dotcompute::{BoxError, Executor, KernelId, KernelTask, Runtime, RuntimeBuilder};
#[cfg(target_os = "linux")]
use dotcompute_conformance::Roles;
use dotcompute_conformance::handlers::{HANDLER_PROMISES, HandlerFixture};
use dotcompute_conformance::{Fixture, PROMISES, Place, Promise};
use pyo3::exceptions::{PyAssertionError, PyKeyError};
use pyo3::prelude::*;

use crate::asyncio::AsyncioExecutor;

/// The event loops that kernels start on, in turn: what comes next is first.
static LOOPS: Mutex<Vec<Py<PyAny>>> = Mutex::new(Vec::new());

/// Starts kernels from the threads of event loops, as a program does.
struct OnLoops;

impl Executor for OnLoops {
    fn name(&self) -> &'static str {
        AsyncioExecutor.name()
    }

    fn start(&self, kernel: &KernelId, task: KernelTask) -> Result<(), BoxError> {
        Python::attach(|py| {
            let event_loop = {
                let mut loops = lock(&LOOPS);
                loops.rotate_left(1);
                loops.last().map(|event_loop| event_loop.clone_ref(py))
            };
            let event_loop = event_loop.ok_or("there is no event loop")?;
            let start = Start(Mutex::new(Some((kernel.clone(), task))));
            event_loop.call_method1(py, "call_soon_threadsafe", (start,))?;
            Ok(())
        })
    }
}

/// Called on an event loop's thread.
#[pyclass(frozen, module = "pydotcompute._native")]
struct Start(Mutex<Option<(KernelId, KernelTask)>>);

#[pymethods]
impl Start {
    fn __call__(&self) -> PyResult<()> {
        let Some((kernel, task)) = lock(&self.0).take() else { return Ok(()) };
        let started = AsyncioExecutor.start(&kernel, task);
        started.map_err(|error| PyAssertionError::new_err(error.to_string()))
    }
}

/// The promises: each the name of its module and its own, and why kernels in processes cannot keep
/// it, if so.
#[pyfunction]
fn promises() -> Vec<(&'static str, &'static str, Option<&'static str>)> {
    let why_not = |promise: &Promise| promise.need.map(|need| need.reason());
    PROMISES.iter().map(|promise| (promise.module, promise.name, why_not(promise))).collect()
}

fn find(module: &str, name: &str) -> PyResult<&'static Promise> {
    PROMISES
        .iter()
        .find(|promise| promise.module == module && promise.name == name)
        .ok_or_else(|| PyKeyError::new_err(format!("{module}::{name}")))
}

fn keep(py: Python<'_>, promise: impl FnOnce() + Send) -> PyResult<()> {
    // Nothing is looked at afterwards but the panic.
    let kept = py.detach(|| catch_unwind(AssertUnwindSafe(promise)));
    kept.map_err(|panic| PyAssertionError::new_err(message_of(panic.as_ref())))
}

/// Runs `promise` with kernels that start on `loops`, in turn.
fn on_loops(loops: Vec<Py<PyAny>>, promise: impl FnOnce() -> PyResult<()>) -> PyResult<()> {
    let stale = std::mem::replace(&mut *lock(&LOOPS), loops);
    drop(stale);
    let kept = promise();
    let loops = std::mem::take(&mut *lock(&LOOPS));
    drop(loops);
    kept
}

fn runtime_on_loops() -> RuntimeBuilder {
    Runtime::builder().executor(Arc::new(OnLoops))
}

/// Tests a promise with kernels on `loops`, which run on other threads than this one.
#[pyfunction]
fn test(py: Python<'_>, module: &str, name: &str, loops: Vec<Py<PyAny>>) -> PyResult<()> {
    let promise = find(module, name)?;
    let executor = AsyncioExecutor.name();
    let fixture = Fixture { executor, builder: runtime_on_loops, place: Place::Here };
    on_loops(loops, || keep(py, || promise.test(fixture)))
}

/// The promises about handlers, by their names.
#[pyfunction]
fn handler_promises() -> Vec<&'static str> {
    HANDLER_PROMISES.iter().map(|promise| promise.name).collect()
}

/// Tests a promise about handlers with kernels on `loops`.
#[pyfunction]
fn test_handler(py: Python<'_>, name: &str, loops: Vec<Py<PyAny>>) -> PyResult<()> {
    let promise = HANDLER_PROMISES.iter().find(|promise| promise.name == name);
    let promise = promise.ok_or_else(|| PyKeyError::new_err(name.to_owned()))?;
    let fixture = HandlerFixture {
        executor: AsyncioExecutor.name(),
        builder: runtime_on_loops,
        in_hand_max: 1,
        launch: |builder| Place::Here.launch_drill(builder),
    };
    on_loops(loops, || keep(py, || promise.test(fixture)))
}

/// Tests a promise with kernels in processes that `command`, a program and its arguments, starts, and
/// that come to [`run_child`].
#[cfg(target_os = "linux")]
#[pyfunction]
fn test_in_processes(
    py: Python<'_>,
    module: &str,
    name: &str,
    command: Vec<String>,
) -> PyResult<()> {
    static PROCESSES: OnceLock<Processes> = OnceLock::new();
    let processes = PROCESSES.get_or_init(|| suite(command).child_main());
    let fixture = Fixture {
        executor: EXECUTOR,
        builder: || Runtime::builder().executor(executor()),
        place: Place::Processes(processes),
    };
    let promise = find(module, name)?;
    keep(py, || promise.test(fixture))
}

/// What a child comes to, first thing: it runs its kernel and exits.
#[cfg(target_os = "linux")]
#[pyfunction]
fn run_child(py: Python<'_>) -> PyResult<()> {
    py.detach(|| drop(suite(Vec::new()).child_main()));
    Err(PyAssertionError::new_err("this process was not started to run a ring kernel"))
}

#[cfg(target_os = "linux")]
fn suite(command: Vec<String>) -> dotcompute::process::Kernels {
    Roles::of_the_suite(move || {
        let [program, args @ ..] = &command[..] else {
            return Err(std::io::ErrorKind::NotFound.into());
        };
        let mut child = Command::new(program);
        child.args(args);
        Ok(child)
    })
}

fn message_of(panic: &(dyn Any + Send)) -> String {
    match panic.downcast_ref::<String>() {
        Some(message) => message.clone(),
        None => (*panic.downcast_ref::<&str>().unwrap_or(&"the promise panicked")).to_owned(),
    }
}

/// A module inside the extension, which does not list it.
pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    let own = PyModule::new(module.py(), "_conformance")?;
    own.add_function(wrap_pyfunction!(promises, &own)?)?;
    own.add_function(wrap_pyfunction!(test, &own)?)?;
    own.add_function(wrap_pyfunction!(handler_promises, &own)?)?;
    own.add_function(wrap_pyfunction!(test_handler, &own)?)?;
    #[cfg(target_os = "linux")]
    {
        own.add_function(wrap_pyfunction!(test_in_processes, &own)?)?;
        own.add_function(wrap_pyfunction!(run_child, &own)?)?;
    }
    module.setattr("_conformance", own)
}
