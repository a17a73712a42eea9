//! Kernels that stay on a GPU: their code, linked for the device, and their launch.

use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use dotcompute::LaunchError;
use dotcompute::mailbox::sync::lock;
use dotcompute_cuda::resident::{Isolation, Residency};
use dotcompute_cuda::{
    Cuda, CudaError, CudaHandler, CudaKernel as Described, CudaKernels, CudaLaunch, CudaOptions,
    NotApart, Scope,
};
#[cfg(target_os = "linux")]
use dotcompute_cuda::{isolated, serve_isolated};
use pyo3::exceptions::{PyTimeoutError, PyTypeError};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use super::actor::{Actor, Settings};
use super::errors;
use super::executor::without_signals;
use super::message::PyMessage;
use super::runtime::NativeRuntime;
use super::scope::scope;
use crate::records::{Reach, RecordLayout, Records, layout_of};

/// What starts children of this program, and takes what they write: see `_launch_process`.
type Children = (Vec<String>, Py<PyAny>);

/// The first device, opened by the first kernel on it and kept to the end of the process: with its
/// contexts in this process, or in children.
pub(super) fn device(children: Option<Children>) -> Result<Cuda, CudaError> {
    opened(children, None)
}

static DEVICES: Mutex<[Option<Cuda>; 2]> = Mutex::new([None, None]);

/// The same; so many multiprocessors are set aside for grids, if this is what opens it.
fn opened(
    children: Option<Children>,
    ring_multiprocessors: Option<u32>,
) -> Result<Cuda, CudaError> {
    let mut devices = lock(&DEVICES);
    let device = &mut devices[usize::from(children.is_some())];
    match device {
        Some(cuda) => Ok(cuda.clone()),
        None => {
            let isolation = isolation(children);
            let residency = Residency { ring_multiprocessors, ..Residency::default() };
            let options = CudaOptions { isolation, residency, ..CudaOptions::default() };
            let cuda = without_signals(|| CudaKernels::new().open(options))?;
            Ok(device.insert(cuda).clone())
        }
    }
}

#[cfg(target_os = "linux")]
fn isolation(children: Option<Children>) -> Isolation {
    children.map_or(Isolation::Thread, |(command, sink)| {
        let kernels = isolated(dotcompute::process::Kernels::new());
        let kernels = super::process::started_by(kernels, command, sink);
        Isolation::Process(kernels.first_step("pydotcompute._native._serve_cuda").child_main())
    })
}

/// There are no children elsewhere: the Python half says so.
#[cfg(not(target_os = "linux"))]
fn isolation(_children: Option<Children>) -> Isolation {
    Isolation::Thread
}

/// The main program of a child that has the context of a grid: makes the driver's calls until its parent
/// says that it is over.
#[cfg(target_os = "linux")]
#[pyfunction]
fn _serve_cuda(py: Python<'_>) -> PyResult<()> {
    py.detach(|| {
        let mut host = dotcompute::process::child_host()?;
        let outcome = serve_isolated(&mut host);
        host.end(outcome);
        Ok(())
    })
}

pub(super) fn refused(py: Python<'_>, kernel: &str, error: &CudaError) -> PyErr {
    let text = error.to_string();
    match error {
        CudaError::Absent(_) | CudaError::NoDevice { .. } | CudaError::NotCooperative { .. } => {
            errors::raise(py, "BackendNotAvailableError", ("CUDA", text))
        }
        CudaError::Build(_) => {
            let cause = pyo3::exceptions::PyRuntimeError::new_err(text);
            errors::raise(py, "KernelCompilationError", (kernel, cause))
        }
        CudaError::TooLarge { .. }
        | CudaError::Emits { .. }
        | CudaError::Targets { .. }
        | CudaError::Target { .. } => {
            errors::raise(py, "InvalidConfigurationError", ("executor", "cuda", text))
        }
        CudaError::Timeout(_) => PyTimeoutError::new_err(text),
        _ => errors::raise(py, "CUDAError", (text,)),
    }
}

/// The compute capability of the device that kernels are linked for.
#[pyfunction]
fn _cuda_capability(py: Python<'_>) -> PyResult<(u32, u32)> {
    let cuda = py.detach(|| device(None)).map_err(|error| refused(py, "", &error))?;
    let capability = cuda.device().compute_capability;
    Ok((capability.major, capability.minor))
}

/// A stream on the multiprocessors of the device that are not set aside for grids, by its handle, and how many
/// they are. So many are set aside at least, if this is what opens the device.
#[pyfunction]
fn _ring_free_sms(py: Python<'_>, aside: u32) -> PyResult<(usize, u32)> {
    match py.detach(|| opened(None, Some(aside))?.ring_free_sms()) {
        Ok(free) => Ok((free.stream.handle(), free.multiprocessors)),
        Err(CudaError::NotApart(NotApart::NotWanted)) => {
            let text = "kernels on the GPU, or arrays lent to them, were there first, and no multiprocessors \
                        are set aside: call ring_free_sms before";
            Err(errors::raise(py, "CUDAError", (text,)))
        }
        Err(error) => Err(refused(py, "", &error)),
    }
}

/// Where the grids run whose context is this process's.
#[pyfunction]
fn _ring_placements() -> Vec<String> {
    let [here, _] = &*lock(&DEVICES);
    let placements = here.iter().flat_map(Cuda::placements);
    placements.map(|placement| placement.to_string()).collect()
}

/// A handler that was linked with the resident grid of the device, and its initial state. Launched
/// once.
#[pyclass(frozen, module = "pydotcompute._native")]
pub(super) struct CudaKernel {
    cuda: Cuda,
    entry: String,
    initial: Vec<u8>,
    records: Arc<Records>,
    /// The kernel that was launched from it, and whether it has been on the device.
    kernel: OnceLock<String>,
}

#[pymethods]
impl CudaKernel {
    /// `code`: ("source", symbol, text) or ("ltoir", symbol, bytes). `scope`: its name, how many blocks there
    /// are, and how many threads and bytes of shared memory each has. Compiles and links it, without the
    /// interpreter's lock. `children`: what starts the process of its context, and takes what that writes;
    /// none: its context is this process's.
    #[new]
    #[expect(clippy::too_many_arguments, reason = "called once, from the Python half, by name")]
    #[pyo3(signature = (kernel_id, code, input, output, state, initial, max_emit, targets,
                        scope, children=None))]
    fn new(
        py: Python<'_>,
        kernel_id: &str,
        code: &Bound<'_, PyAny>,
        input: Py<PyAny>,
        output: Option<Py<PyAny>>,
        state: Option<&RecordLayout>,
        initial: &[u8],
        max_emit: u32,
        targets: Vec<(String, Bound<'_, RecordLayout>)>,
        scope: (String, u32, u32, u32),
        children: Option<Children>,
    ) -> PyResult<Self> {
        let (kind, symbol): (String, String) =
            (code.get_item(0)?.extract()?, code.get_item(1)?.extract()?);
        let code = match kind.as_str() {
            "source" => CudaHandler::from_source(symbol, code.get_item(2)?.extract::<String>()?),
            "ltoir" => CudaHandler::from_lto_ir(symbol, code.get_item(2)?.extract::<Vec<u8>>()?),
            other => return Err(PyTypeError::new_err(format!("no code of the kind '{other}'"))),
        };
        let (scope, blocks, threads, shared_bytes) = scope;
        let scope = match scope.as_str() {
            "lane" => Scope::Lane,
            "warp" => Scope::Warp,
            "block" => Scope::Block { threads },
            "team" => Scope::Team { blocks, threads },
            other => return Err(PyTypeError::new_err(format!("no scope '{other}'"))),
        };
        let code = code.scope(scope).shared_bytes(shared_bytes);
        let input_layout = layout_of(input.bind(py))?;
        let mut described = Described::new(code.clone(), input_layout).max_emit(max_emit);
        if let Some(output) = &output {
            described = described.output(layout_of(output.bind(py))?);
        }
        if let Some(state) = state {
            // Each launch says what its own is at first.
            described = described.state_bytes(state.core, &vec![0; state.core.bytes]);
        }
        for (kernel, layout) in &targets {
            described = described.target::<PyMessage>(kernel, layout.get().core);
        }
        // Kernels of the same code and records share their grids.
        let entry = format!("{described:?}");
        let reach = match children {
            None => Reach::Device,
            Some(_) => Reach::Elsewhere("in a process of its own"),
        };
        let linked = py.detach(|| {
            let cuda = device(children)?;
            if cuda.layouts(&entry).is_err() {
                cuda.register(CudaKernels::new().kernel(&entry, described))?;
            }
            Ok(cuda)
        });
        let cuda = linked.map_err(|error| refused(py, kernel_id, &error))?;
        let records = Arc::new(Records { input, input_layout, output, reach });
        let initial = initial.to_vec();
        Ok(Self { cuda, entry, initial, records, kernel: OnceLock::new() })
    }

    /// A copy of the state's bytes, as they are between two messages: the initial ones before the
    /// kernel is activated.
    fn state_bytes<'py>(&self, py: Python<'py>, timeout: f64) -> PyResult<Bound<'py, PyBytes>> {
        let within = Duration::try_from_secs_f64(timeout.max(0.0)).unwrap_or(Duration::MAX);
        let Some(kernel) = self.kernel.get() else {
            return Ok(PyBytes::new(py, &self.initial));
        };
        match py.detach(|| self.cuda.state_bytes(kernel, within.min(Duration::from_secs(1 << 30))))
        {
            Ok(bytes) => Ok(PyBytes::new(py, &bytes)),
            Err(error) => Err(refused(py, kernel, &error)),
        }
    }
}

/// Launches the kernel of `actor` on the device.
#[expect(clippy::too_many_arguments, reason = "called once, from the Python half, by name")]
#[pyfunction]
#[pyo3(signature = (actor, runtime, kernel, *, capacity, reply_capacity, backpressure,
                    exact_priority, restart, watchdog))]
fn _launch_cuda(
    py: Python<'_>,
    actor: &Bound<'_, Actor>,
    runtime: &NativeRuntime,
    kernel: &CudaKernel,
    capacity: usize,
    reply_capacity: usize,
    backpressure: &str,
    exact_priority: bool,
    restart: Option<&Bound<'_, PyAny>>,
    watchdog: Option<f64>,
) -> PyResult<()> {
    let actor = actor.get();
    let settings = Settings::new(capacity, reply_capacity, backpressure, exact_priority, restart)?
        .watched(watchdog)?;
    actor.prepare(py, None, None)?;
    let core = runtime.core();
    let launched = scope(py, || {
        without_signals(|| {
            let builder = settings.apply(core.kernel(actor.id()).executor("cuda"));
            let mut launch = CudaLaunch::new(&kernel.entry);
            if !kernel.initial.is_empty() {
                launch = launch.state_bytes(&kernel.initial);
            }
            kernel.cuda.launch::<PyMessage, PyMessage>(builder, launch)
        })
    });
    let launched = launched.map_err(|error| match &error {
        LaunchError::Executor { kernel, source, .. } => match source.downcast_ref() {
            Some(cause) => refused(py, kernel.as_str(), cause),
            None => errors::launch(py, &error),
        },
        _ => errors::launch(py, &error),
    })?;
    let _ = kernel.kernel.set(actor.id().to_string());
    actor.takes_records(Arc::clone(&kernel.records));
    actor.launched(launched, capacity);
    Ok(())
}

pub(super) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<CudaKernel>()?;
    module.add_function(wrap_pyfunction!(_cuda_capability, module)?)?;
    module.add_function(wrap_pyfunction!(_ring_free_sms, module)?)?;
    module.add_function(wrap_pyfunction!(_ring_placements, module)?)?;
    #[cfg(target_os = "linux")]
    module.add_function(wrap_pyfunction!(_serve_cuda, module)?)?;
    module.add_function(wrap_pyfunction!(_launch_cuda, module)?)
}
