//! The conformance suite on the asyncio executor, for pytest to run.
//!
//! Its kernels are core futures: an event loop drives those too. Its promises block, so each runs
//! on a thread of its own, beside the loops.

use std::any::Any;
use std::panic::catch_unwind;
use std::sync::{Arc, Mutex};

use dotcompute::mailbox::sync::lock;
use dotcompute::{BoxError, Executor, KernelId, KernelTask, Runtime};
use dotcompute_conformance::{Fixture, PROMISES};
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

/// The promises: each the name of its module and its own.
#[pyfunction]
fn promises() -> Vec<(&'static str, &'static str)> {
    PROMISES.iter().map(|promise| (promise.module, promise.name)).collect()
}

/// Tests a promise with kernels on `loops`, which run on other threads than this one.
#[pyfunction]
fn test(py: Python<'_>, module: &str, name: &str, loops: Vec<Py<PyAny>>) -> PyResult<()> {
    let promise = PROMISES
        .iter()
        .find(|promise| promise.module == module && promise.name == name)
        .ok_or_else(|| PyKeyError::new_err(format!("{module}::{name}")))?;
    let stale = std::mem::replace(&mut *lock(&LOOPS), loops);
    drop(stale);
    let fixture = Fixture {
        executor: AsyncioExecutor.name(),
        builder: || Runtime::builder().executor(Arc::new(OnLoops)),
    };
    let kept = py.detach(|| catch_unwind(|| promise.test(fixture)));
    let loops = std::mem::take(&mut *lock(&LOOPS));
    drop(loops);
    kept.map_err(|panic| PyAssertionError::new_err(message_of(panic.as_ref())))
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
    module.setattr("_conformance", own)
}
