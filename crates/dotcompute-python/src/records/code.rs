//! The code of Python's handlers: compiled by numba, or interpreted.

use std::ffi::c_void;
use std::ptr;

use dotcompute::abi::HandlerContext;
use dotcompute::compiled::{Call, HandlerCode};
use dotcompute::mailbox::sync::{AtomicUsize, Ordering};
use dotcompute::{BoxError, KernelId};
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::asyncio::PyFault;

/// A loop over records that numba compiled with its handler, by numba's own calling convention: the
/// result goes where the first argument leads, the exception where the second does, and what is
/// returned says which.
///
/// What the loop returns: how many replies it wrote, or, below zero, what stopped it (see
/// [`result_of`]).
type Loop = unsafe extern "C" fn(
    result: *mut i64,
    exception: *mut *mut c_void,
    input: *const u8,
    count: i64,
    state: *mut u8,
    replies: *mut u8,
    context: *mut HandlerContext,
) -> i32;

/// A handler's result beyond -1 to -2^31, which mean themselves.
const RESULT_BASE: i64 = -(1 << 32);

/// What the handler returned, of what stopped the loop.
fn result_of(stopped: i64) -> i32 {
    let result = if stopped < i64::from(i32::MIN) { RESULT_BASE - stopped } else { stopped };
    i32::try_from(result).unwrap_or(i32::MAX)
}

pub(super) struct NumbaCode {
    function: Loop,
    /// Makes the exception: of its address, the status, which record and of how many.
    exception: Py<PyAny>,
    /// Takes the kernel, a level and a text.
    log: Py<PyAny>,
    /// What keeps the compiled code.
    _library: Py<PyAny>,
}

impl NumbaCode {
    /// # Safety
    ///
    /// At `address` is a [`Loop`], for as long as `library` lives.
    pub(super) unsafe fn new(
        address: usize,
        exception: Py<PyAny>,
        log: Py<PyAny>,
        library: Py<PyAny>,
    ) -> Self {
        let function: *const c_void = ptr::with_exposed_provenance(address);
        // SAFETY: the caller's promise.
        let function = unsafe { std::mem::transmute::<*const c_void, Loop>(function) };
        Self { function, exception, log, _library: library }
    }
}

impl HandlerCode for NumbaCode {
    fn run(&self, call: &mut Call<'_>) -> Result<(), BoxError> {
        let (mut result, mut exception) = (0, ptr::null_mut());
        let (input, count) = (call.input().as_ptr(), call.count() as i64);
        let (state, replies, context) = (call.state(), call.replies(), call.context());
        let (result_at, exception_at) = (&raw mut result, &raw mut exception);
        // SAFETY: `function` is a loop compiled for records of these layouts, and the call gives it
        // what it needs; nothing else of the call is used meanwhile.
        let status = unsafe {
            (self.function)(result_at, exception_at, input, count, state, replies, context)
        };
        if status != 0 {
            return Err(self.raised(exception, status, call));
        }
        if result < 0 {
            return call.check(result_of(result));
        }
        if !call.emits() {
            call.wrote(result as usize);
        }
        Ok(())
    }

    fn log(&self, kernel: &KernelId, level: i32, text: &str) {
        log(&self.log, kernel, level, text);
    }
}

impl NumbaCode {
    #[cold]
    fn raised(&self, exception: *mut c_void, status: i32, call: &mut Call<'_>) -> BoxError {
        let (at, count, single) = (call.record(), call.count(), call.is_single());
        let arguments = (exception.expose_provenance(), status, at, count, single);
        Python::try_attach(|py| {
            let error = match self.exception.bind(py).call1(arguments) {
                Ok(error) => PyErr::from_value(error),
                Err(error) => error,
            };
            Box::new(PyFault::new(py, error)) as BoxError
        })
        .unwrap_or_else(|| "the interpreter is ending".into())
    }
}

fn log(sink: &Py<PyAny>, kernel: &KernelId, level: i32, text: &str) {
    let _ = Python::try_attach(|py| {
        if let Err(error) = sink.bind(py).call1((kernel.as_str(), level, text)) {
            error.write_unraisable(py, None);
        }
    });
}

/// A handler that is interpreted.
pub(super) struct PythonCode {
    /// Runs a [`HandlerCall`].
    run: Py<PyAny>,
    log: Py<PyAny>,
}

impl PythonCode {
    pub(super) fn new(run: Py<PyAny>, log: Py<PyAny>) -> Self {
        Self { run, log }
    }
}

impl HandlerCode for PythonCode {
    fn run(&self, call: &mut Call<'_>) -> Result<(), BoxError> {
        let ran = Python::try_attach(|py| {
            let handle = Py::new(py, HandlerCall::new(call))?;
            let ran = self.run.bind(py).call1((&handle,));
            handle.get().end();
            ran?.extract::<i32>()
        });
        match ran {
            None => Err("the interpreter is ending".into()),
            Some(Ok(result)) => call.check(result),
            Some(Err(error)) => {
                Err(Python::attach(|py| Box::new(PyFault::new(py, error)) as BoxError))
            }
        }
    }

    fn log(&self, kernel: &KernelId, level: i32, text: &str) {
        log(&self.log, kernel, level, text);
    }
}

/// One message on its way through an interpreted handler.
#[pyclass(frozen, module = "pydotcompute._native")]
pub(crate) struct HandlerCall {
    /// The address of the [`Call`]; 0 once it is over.
    call: AtomicUsize,
}

impl HandlerCall {
    fn new(call: &mut Call<'_>) -> Self {
        Self { call: AtomicUsize::new(ptr::from_mut(call).expose_provenance()) }
    }

    fn end(&self) {
        // Relaxed: the interpreter's lock orders all uses.
        self.call.store(0, Ordering::Relaxed);
    }

    fn with<R>(&self, _py: Python<'_>, f: impl FnOnce(&mut Call<'_>) -> R) -> PyResult<R> {
        // Relaxed: as above.
        let call = self.call.load(Ordering::Relaxed);
        if call == 0 {
            return Err(PyRuntimeError::new_err("the handler has returned"));
        }
        let call: *mut Call<'_> = ptr::with_exposed_provenance_mut(call);
        // SAFETY: the call is not over, and its thread waits for Python; whoever holds the
        // interpreter's lock, as this does, is the only one to use it.
        Ok(f(unsafe { &mut *call }))
    }
}

#[pymethods]
impl HandlerCall {
    /// The bytes of all records.
    fn input<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        self.with(py, |call| PyBytes::new(py, call.input()))
    }

    /// The bytes of the state.
    fn state<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        self.with(py, |call| {
            let bytes = call.state_bytes();
            if bytes == 0 {
                return PyBytes::new(py, &[]);
            }
            // SAFETY: so many bytes lie there, and nobody else touches them during the call.
            PyBytes::new(py, unsafe { std::slice::from_raw_parts(call.state(), bytes) })
        })
    }

    /// Writes the state back.
    fn set_state(&self, py: Python<'_>, bytes: &[u8]) -> PyResult<()> {
        self.with(py, |call| {
            let bytes = &bytes[..bytes.len().min(call.state_bytes())];
            // SAFETY: so many bytes may be written there, and `bytes` is an object's of Python.
            unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), call.state(), bytes.len()) };
        })
    }

    /// Says which record is in hand.
    fn set_record(&self, py: Python<'_>, index: usize) -> PyResult<()> {
        self.with(py, |call| call.set_record(index))
    }

    /// Whether the message is one record and no batch.
    fn is_single(&self, py: Python<'_>) -> PyResult<bool> {
        self.with(py, |call| call.is_single())
    }

    /// Adds a reply that the handler returned.
    fn push_reply(&self, py: Python<'_>, record: &[u8]) -> PyResult<()> {
        self.with(py, |call| call.push_reply(record))
    }

    /// Emits a reply: 0, or a fault code.
    fn emit(&self, py: Python<'_>, record: &[u8]) -> PyResult<i32> {
        self.with(py, |call| call.emit(record))
    }

    /// Sends a record to a target: 0, or a fault code.
    fn send(&self, py: Python<'_>, target: usize, record: &[u8]) -> PyResult<i32> {
        self.with(py, |call| call.send(target, record))
    }

    /// Logs a text.
    fn log(&self, py: Python<'_>, level: i32, text: &str) -> PyResult<()> {
        self.with(py, |call| call.log(level, text))
    }

    /// Fails the message: the fault code.
    fn fault(&self, py: Python<'_>, code: i32, text: &str) -> PyResult<i32> {
        self.with(py, |call| call.fault(code, text))
    }

    /// Whether to go on: 0, or a fault code.
    fn tick(&self, py: Python<'_>) -> PyResult<i32> {
        self.with(py, |call| call.tick())
    }

    /// Whether the handler can go on with this result.
    fn is_fine(&self, py: Python<'_>, result: i32) -> PyResult<bool> {
        self.with(py, |call| call.check(result).is_ok())
    }
}
