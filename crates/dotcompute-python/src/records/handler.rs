//! A compiled handler, put together by Python.

use std::ptr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use dotcompute::CompiledHandler as Core;
use dotcompute::abi;
use dotcompute::compiled::{HandlerCode, StateReader};
use dotcompute::mailbox::sync::lock;
use pyo3::exceptions::{PyRuntimeError, PyTimeoutError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use super::code::{NumbaCode, PythonCode};
use super::edge::{Reach, Records, layout_of};
use super::layout::RecordLayout;
use crate::asyncio::PyMessage;

/// What a kernel is launched from. Launched once.
#[pyclass(frozen, module = "pydotcompute._native")]
pub(crate) struct CompiledHandler {
    core: Mutex<Option<Core>>,
    records: Arc<Records>,
    state: StateReader,
}

impl CompiledHandler {
    pub(crate) fn take(&self) -> PyResult<Core> {
        let core = lock(&self.core).take();
        core.ok_or_else(|| PyRuntimeError::new_err("a compiled handler is launched once"))
    }

    pub(crate) fn records(&self) -> Arc<Records> {
        Arc::clone(&self.records)
    }
}

#[pymethods]
impl CompiledHandler {
    /// `code`: ("numba", address, exception, log, library), ("c", address, library),
    /// ("python", run, log), or ("anomaly" or "named_anomaly", model, slots of its row).
    #[new]
    #[expect(clippy::too_many_arguments, reason = "called once, from the Python half, by name")]
    #[pyo3(signature = (code, input, output, state, initial, max_emit, targets))]
    fn new(
        py: Python<'_>,
        code: &Bound<'_, PyAny>,
        input: Py<PyAny>,
        output: Option<Py<PyAny>>,
        state: Option<&RecordLayout>,
        initial: &[u8],
        max_emit: u32,
        targets: Vec<(String, Bound<'_, RecordLayout>)>,
    ) -> PyResult<Self> {
        let input_layout = layout_of(input.bind(py))?;
        let kind: String = code.get_item(0)?.extract()?;
        let mut core = match kind.as_str() {
            "numba" => {
                let (_, address, exception, log, library): (String, usize, _, _, _) =
                    code.extract()?;
                // SAFETY: numba compiled a loop of this signature there, and `library` keeps it.
                let code = unsafe { NumbaCode::new(address, exception, log, library) };
                Core::from_code(Box::new(code), input_layout)
            }
            "c" => {
                let (_, address, library): (String, usize, Py<PyAny>) = code.extract()?;
                if address == 0 {
                    return Err(PyValueError::new_err("the address of the handler is 0"));
                }
                let function = ptr::with_exposed_provenance::<()>(address);
                // SAFETY: whoever gives an address promises that a handler of the ABI is there;
                // `extern_handler` of the package says so.
                let function = unsafe { std::mem::transmute::<*const (), abi::Handler>(function) };
                // SAFETY: as above, for these layouts.
                unsafe { Core::from_raw(function, input_layout) }.keep(library)
            }
            "python" => {
                let (_, run, log): (String, Py<PyAny>, Py<PyAny>) = code.extract()?;
                let code: Box<dyn HandlerCode> = Box::new(PythonCode::new(run, log));
                Core::from_code(code, input_layout)
            }
            "anomaly" | "named_anomaly" => {
                let (_, model, size): (String, String, u32) = code.extract()?;
                let is_named = kind == "named_anomaly";
                let code = crate::workloads::anomaly_code(&model, size, is_named)?;
                Core::from_code(code, input_layout)
            }
            other => return Err(PyTypeError::new_err(format!("no code of the kind '{other}'"))),
        };
        if let Some(output) = &output {
            core = core.output(layout_of(output.bind(py))?);
        }
        if let Some(state) = state {
            if initial.len() != state.core.bytes {
                return Err(PyValueError::new_err("the initial state has another size"));
            }
            core = core.state_bytes(state.core, initial);
        }
        core = core.max_emit(max_emit);
        for (kernel, layout) in &targets {
            core = core.target::<PyMessage>(kernel, layout.get().core);
        }
        let state = core.state_reader();
        let records = Arc::new(Records {
            input,
            input_layout,
            output,
            reach: Reach::Elsewhere("on the host"),
        });
        Ok(Self { core: Mutex::new(Some(core)), records, state })
    }

    /// A copy of the state's bytes, as they are between two messages.
    fn state_bytes<'py>(&self, py: Python<'py>, timeout: f64) -> PyResult<Bound<'py, PyBytes>> {
        let within = Duration::try_from_secs_f64(timeout.max(0.0)).unwrap_or(Duration::MAX);
        let state = self.state.clone();
        match py.detach(move || state.bytes(within)) {
            Some(bytes) => Ok(PyBytes::new(py, &bytes)),
            None => Err(PyTimeoutError::new_err(format!(
                "the kernel has worked on one message for longer than {timeout} s"
            ))),
        }
    }
}
