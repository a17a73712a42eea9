//! Kernels in processes of their own: the parent's launch, and the child's end.

use std::any::Any;
use std::ffi::c_int;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use dotcompute::mailbox::sync::lock;
use dotcompute::process::{
    Coder, Host, Incoming, Kernels, Lease, Log, Outgoing, Output, Process, child_host,
    read_records, write_records,
};
use dotcompute::record::RecordLayout;
use dotcompute::{BoxError, Envelope, Fault};
use pyo3::exceptions::{PyBufferError, PyRuntimeError};
use pyo3::ffi;
use pyo3::prelude::*;

use super::actor::{Actor, Settings};
use super::errors;
use super::executor::{ThreadOfAKernel, without_signals};
use super::message::PyMessage;
use super::runtime::NativeRuntime;
use super::scope::scope;
use crate::message::{from_wire, to_wire};
use crate::records::{CompiledHandler, Records};

/// The one name under which the functions of all kernels run: the arguments say which.
const ENTRY: &str = "python";

/// Objects as the bytes of the contract, and large arrays beside them.
fn coder() -> Coder<PyMessage> {
    Coder::with_arrays(encode, decode)
}

fn encode(envelope: &Envelope<PyMessage>, out: &mut Outgoing<'_>) -> Result<(), BoxError> {
    Python::try_attach(|py| {
        let object = envelope.message.object(py);
        let mut message = Vec::new();
        to_wire(object.bind(py), &mut |array| out.array(array), |bytes| message.extend(bytes))
            .map_err(|error| text_of(py, &error))?;
        out.bytes.append(&mut message);
        Ok(())
    })
    .unwrap_or_else(|| Err("the interpreter is ending".into()))
}

fn decode(incoming: Incoming<'_>) -> Result<PyMessage, BoxError> {
    Python::try_attach(|py| {
        let arrays = incoming.arrays.into_iter().map(|lease| LeasedArray::of(py, lease));
        arrays
            .collect::<PyResult<Vec<_>>>()
            .and_then(|arrays| from_wire(py, incoming.bytes, &arrays))
            .map(|object| PyMessage::new(object.unbind()))
            .map_err(|error| text_of(py, &error).into())
    })
    .unwrap_or_else(|| Err("the interpreter is ending".into()))
}

/// The memory of an array that another process sent, through the buffer protocol: it is the array's
/// until that is gone.
#[pyclass(frozen, module = "pydotcompute._native")]
struct LeasedArray(Lease);

impl LeasedArray {
    fn of(py: Python<'_>, lease: Lease) -> PyResult<Py<PyAny>> {
        Ok(Py::new(py, Self(lease))?.into_any())
    }
}

#[pymethods]
impl LeasedArray {
    fn __len__(&self) -> usize {
        self.0.len()
    }

    /// # Safety
    ///
    /// Called by the interpreter: `view` is null or points to a `Py_buffer` that may be written.
    unsafe fn __getbuffer__(
        slf: Bound<'_, Self>,
        view: *mut ffi::Py_buffer,
        flags: c_int,
    ) -> PyResult<()> {
        if view.is_null() {
            return Err(PyBufferError::new_err("the view is null"));
        }
        let (start, length) = (slf.get().0.start(), slf.get().0.len().cast_signed());
        // SAFETY: `view` may be written (above). The bytes are never moved and live as long as `slf`, to
        // which the view takes a reference; nobody else reads or writes them.
        let code = unsafe {
            ffi::PyBuffer_FillInfo(view, slf.as_ptr(), start.as_ptr().cast(), length, 0, flags)
        };
        if code == 0 { Ok(()) } else { Err(PyErr::fetch(slf.py())) }
    }
}

/// Messages of records of this layout.
fn record_coder(layout: &'static RecordLayout) -> Coder<PyMessage> {
    Coder::with_arrays(
        move |envelope, out| write_records(layout, &envelope.message, out),
        move |incoming| Ok(PyMessage::records(Arc::new(read_records(layout, incoming)?))),
    )
    .counted(|message: &PyMessage| message.batch().map_or(1, |batch| batch.len()))
}

/// How what a compiled handler takes and makes travels.
fn record_coders(records: &Records) -> PyResult<(Coder<PyMessage>, Coder<PyMessage>)> {
    let input = records.input_layout;
    // One that makes no replies has none to send.
    let output = Python::attach(|py| records.output_layout(py))?.unwrap_or(input);
    Ok((record_coder(input), record_coder(output)))
}

fn text_of(py: Python<'_>, error: &PyErr) -> String {
    let name = error.get_type(py).name().map(|name| name.to_string()).unwrap_or_default();
    format!("{name}: {}", error.value(py))
}

/// These kernels, whose children `command` starts, and what they write goes to `sink`: see
/// [`_launch_process`].
pub(super) fn started_by(kernels: Kernels, command: Vec<String>, sink: Py<PyAny>) -> Kernels {
    kernels
        .command(move || {
            let (program, arguments) = command.split_first().ok_or_else(|| {
                std::io::Error::new(std::io::ErrorKind::InvalidInput, "a command without a program")
            })?;
            let mut made = Command::new(program);
            made.args(arguments);
            Ok(made)
        })
        .output(move |kernel, output| {
            let (kind, level, target, text) = match output {
                Output::Stdout(line) => ("stdout", 0, "", line),
                Output::Stderr(line) => ("stderr", 0, "", line),
                Output::Log { level, target, text } => ("log", level, target, text),
            };
            Python::try_attach(|py| {
                let called = sink.call1(py, (kernel.as_str(), kind, level, target, text));
                if let Err(error) = called {
                    error.write_unraisable(py, None);
                }
            });
        })
        .threads(|| Box::new(ThreadOfAKernel::enter()) as Box<dyn Any + Send>)
}

/// Launches the kernel of `actor` in a process that `command` starts; `sink` is called with the
/// kernel's name and what the process writes and logs: "stdout", "stderr" or "log", the level, the
/// logger's name, and the text. `handler` is what the process will run, if that is a compiled one;
/// here its code is not called.
#[expect(clippy::too_many_arguments, reason = "called once, from the Python half, by name")]
#[pyfunction]
#[pyo3(signature = (actor, runtime, command, args, sink, handler, *, first_step, start_timeout,
                    window, capacity, reply_capacity, backpressure, exact_priority, restart, watchdog,
                    input_type, output_type))]
pub(super) fn _launch_process(
    py: Python<'_>,
    actor: &Bound<'_, Actor>,
    runtime: &NativeRuntime,
    command: Vec<String>,
    args: Vec<u8>,
    sink: Py<PyAny>,
    handler: Option<&CompiledHandler>,
    first_step: String,
    start_timeout: f64,
    window: usize,
    capacity: usize,
    reply_capacity: usize,
    backpressure: &str,
    exact_priority: bool,
    restart: Option<&Bound<'_, PyAny>>,
    watchdog: Option<f64>,
    input_type: Option<Py<PyAny>>,
    output_type: Option<Py<PyAny>>,
) -> PyResult<()> {
    let actor = actor.get();
    let settings = Settings::new(capacity, reply_capacity, backpressure, exact_priority, restart)?
        .watched(watchdog)?;
    actor.prepare(py, input_type, output_type)?;
    let kernels = match handler {
        None => Kernels::new().host::<PyMessage, PyMessage>(ENTRY, coder(), coder(), |_| {
            Err(Fault::new("a child that runs Python finds its function by itself"))
        }),
        Some(handler) => {
            let (messages, replies) = record_coders(&handler.records())?;
            let compiled = Mutex::new(Some(handler.take()?));
            Kernels::new().compiled::<PyMessage, PyMessage>(ENTRY, messages, replies, move |_| {
                lock(&compiled).take().ok_or_else(|| "a kernel is launched once".into())
            })
        }
    };
    let processes = started_by(kernels, command, sink).first_step(first_step).child_main();
    let core = runtime.core();
    // Longer than can be said is for ever.
    let start_within = Duration::try_from_secs_f64(start_timeout).unwrap_or(Duration::MAX);
    let launched = scope(py, || {
        without_signals(|| {
            let builder = settings.apply(core.kernel(actor.id()).executor("process"));
            let process = Process::new(ENTRY).args(args).window(window);
            processes.launch(builder, process.start_within(start_within))
        })
    });
    let launched = launched.map_err(|error| errors::launch(py, &error))?;
    if let Some(handler) = handler {
        actor.takes_records(handler.records());
    }
    actor.launched(launched, capacity);
    Ok(())
}

/// What a child has of its parent. One for each process, made first thing.
#[pyclass(frozen, module = "pydotcompute._native")]
pub(super) struct ProcessHost {
    host: Mutex<Option<Host>>,
    log: Log,
    kernel: String,
    args: Vec<u8>,
    window: usize,
    /// What a compiled handler failed with.
    fault: Mutex<Option<Fault>>,
}

#[pymethods]
impl ProcessHost {
    #[new]
    fn new() -> PyResult<Self> {
        let host = child_host()?;
        Ok(Self {
            log: host.log()?,
            kernel: host.kernel().to_owned(),
            args: host.args().to_vec(),
            window: host.window(),
            host: Mutex::new(Some(host)),
            fault: Mutex::new(None),
        })
    }

    /// The name of the kernel.
    #[getter]
    fn kernel_id(&self) -> &str {
        &self.kernel
    }

    /// The arguments of the launch.
    #[getter]
    fn args(&self) -> &[u8] {
        &self.args
    }

    /// How many messages the kernel may be handed at a time.
    #[getter]
    fn window(&self) -> usize {
        self.window
    }

    /// Logs to the parent. `level`: 1 (error) to 5 (trace).
    fn log(&self, py: Python<'_>, level: u8, target: &str, text: &str) {
        py.detach(|| self.log.send(level, target, text));
    }

    /// Waits until the kernel is activated in the parent: the function begins then.
    fn wait_for_activation(&self, py: Python<'_>) -> PyResult<()> {
        let mut host = self.take()?;
        py.detach(|| {
            host.wait_for_activation();
            *lock(&self.host) = Some(host);
        });
        Ok(())
    }

    /// Carries messages and replies between the parent and a kernel of this process, on the calling
    /// thread, until the kernel ends; how, the parent is told by [`end`](Self::end).
    fn run(&self, py: Python<'_>, actor: &Bound<'_, Actor>) -> PyResult<Option<String>> {
        let kernel = actor.get().kernel(py, "run")?.clone();
        let mut host = self.take()?;
        let outcome = py.detach(|| {
            let outcome = host.run_kernel(&kernel, &coder(), &coder());
            *lock(&self.host) = Some(host);
            outcome
        });
        Ok(outcome.err().map(|fault| fault.to_string()))
    }

    /// Runs a compiled handler over the messages, on the calling thread, until the parent says that
    /// it is over; how that ended, the parent is told by [`end`](Self::end).
    fn run_compiled(&self, py: Python<'_>, handler: &CompiledHandler) -> PyResult<()> {
        let (messages, replies) = record_coders(&handler.records())?;
        let compiled = handler.take()?;
        let mut host = self.take()?;
        py.detach(|| {
            let outcome = host.run_compiled(compiled, &messages, &replies);
            *lock(&self.host) = Some(host);
            *lock(&self.fault) = outcome.err().map(|fault| errors::with_notes(&fault));
        });
        Ok(())
    }

    /// Tells the parent that the kernel has ended: with what fault, or none. The process is to exit
    /// then, within seconds.
    #[pyo3(signature = (fault))]
    fn end(&self, fault: Option<&str>) -> PyResult<()> {
        let fault = lock(&self.fault).take().or_else(|| fault.map(Fault::new));
        self.take()?.end(fault.map_or(Ok(()), Err));
        Ok(())
    }
}

impl ProcessHost {
    fn take(&self) -> PyResult<Host> {
        let host = lock(&self.host).take();
        host.ok_or_else(|| PyRuntimeError::new_err("the host of this process is in use or ended"))
    }
}

/// Where the classes lie, for the module's own use.
pub(super) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<ProcessHost>()?;
    // Made now, and not shown: see `once`.
    module.py().get_type::<LeasedArray>();
    module.add_function(wrap_pyfunction!(_launch_process, module)?)
}
