//! Compilers, loaded code, and launches.

use std::path::PathBuf;

use dotcompute_cuda::Version;
use dotcompute_cuda::compute::{Function, Launch, Module};
use dotcompute_cuda::nvjitlink::{Part, PartKind};
use dotcompute_cuda::nvrtc::{Output, Source};
use dotcompute_cuda::toolkit::Toolkit;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};

use super::device::CudaStream;
use super::{exception, failed, missing, refused};

/// NVIDIA's compiler, and the linker if there is one, found when it is made.
#[pyclass(frozen, module = "pydotcompute._native")]
pub(crate) struct CudaToolkit {
    toolkit: Toolkit,
}

#[pymethods]
impl CudaToolkit {
    /// Looks into these environments of Python too.
    #[new]
    fn new(py: Python<'_>, environments: Vec<PathBuf>) -> PyResult<Self> {
        let toolkit = py.detach(|| Toolkit::load_beside(&environments));
        toolkit
            .map(|toolkit| Self { toolkit })
            .map_err(|absent| exception(py, "CUDAError", missing(&absent)))
    }

    /// The versions of the compiler and of the linker, if there is one.
    #[getter]
    fn versions(&self) -> ((u32, u32), Option<(u32, u32)>) {
        let pair = |version: Version| (version.major, version.minor);
        let linker = self.toolkit.linker().ok().map(|linker| pair(linker.version()));
        (pair(self.toolkit.nvrtc.version()), linker)
    }

    /// Compiles CUDA C++ to a cubin; returns it and the warnings.
    #[pyo3(signature = (source, name, options))]
    fn compile<'py>(
        &self,
        py: Python<'py>,
        source: &str,
        name: &str,
        options: Vec<String>,
    ) -> PyResult<(Bound<'py, PyBytes>, String)> {
        let compiled = py.detach(|| {
            let source = Source { name, text: source, headers: &[] };
            let options: Vec<&str> = options.iter().map(String::as_str).collect();
            self.toolkit.nvrtc.compile(&source, &options, Output::Cubin)
        });
        let (cubin, log) = compiled.map_err(|error| refused(py, &error))?;
        Ok((PyBytes::new(py, &cubin), log))
    }

    /// Links PTX, or intermediate code, to a cubin.
    fn link<'py>(
        &self,
        py: Python<'py>,
        parts: Vec<(String, String, Vec<u8>)>,
        options: Vec<String>,
    ) -> PyResult<Bound<'py, PyBytes>> {
        let kind = |kind: &str| match kind {
            "ptx" => Ok(PartKind::Ptx),
            "ltoir" => Ok(PartKind::LtoIr),
            other => Err(PyValueError::new_err(format!("a part is ptx or ltoir, not {other}"))),
        };
        let kinds: Vec<PartKind> =
            parts.iter().map(|(named, ..)| kind(named)).collect::<PyResult<_>>()?;
        let linker =
            self.toolkit.linker().map_err(|absent| exception(py, "CUDAError", missing(absent)))?;
        let linked = py.detach(|| {
            let parts: Vec<Part<'_>> = parts
                .iter()
                .zip(&kinds)
                .map(|((_, name, bytes), kind)| Part { name, kind: *kind, bytes })
                .collect();
            let options: Vec<&str> = options.iter().map(String::as_str).collect();
            linker.link(&parts, &options)
        });
        linked.map(|cubin| PyBytes::new(py, &cubin)).map_err(|error| refused(py, &error))
    }
}

/// Code that was loaded.
#[pyclass(frozen, module = "pydotcompute._native")]
pub(crate) struct CudaModule {
    module: Module,
}

impl CudaModule {
    pub(super) fn new(module: Module) -> Self {
        Self { module }
    }
}

#[pymethods]
impl CudaModule {
    /// A kernel of it, by its name in the image.
    fn function(&self, py: Python<'_>, name: &str) -> PyResult<CudaFunction> {
        let function = py.detach(|| self.module.function(name));
        function.map(|function| CudaFunction { function }).map_err(|error| failed(py, &error))
    }
}

/// A kernel.
#[pyclass(frozen, module = "pydotcompute._native")]
pub(crate) struct CudaFunction {
    function: Function,
}

#[pymethods]
impl CudaFunction {
    #[getter]
    fn name(&self) -> &str {
        self.function.name()
    }

    /// The sizes of its parameters in bytes; None with drivers that do not tell.
    #[getter]
    fn parameters(&self) -> Option<Vec<usize>> {
        self.function.parameters().map(<[usize]>::to_vec)
    }

    /// What it takes of a multiprocessor.
    fn needs<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let needs = py.detach(|| self.function.needs()).map_err(|error| failed(py, &error))?;
        let told = PyDict::new(py);
        told.set_item("block_threads", needs.block_threads)?;
        told.set_item("registers", needs.registers)?;
        told.set_item("shared_bytes", needs.shared_bytes)?;
        told.set_item("local_bytes", needs.local_bytes)?;
        Ok(told)
    }

    /// The threads of a block that keep a multiprocessor busiest.
    #[pyo3(signature = (shared_bytes = 0))]
    fn best_block_threads(&self, py: Python<'_>, shared_bytes: u32) -> PyResult<u32> {
        let best = py.detach(|| self.function.best_block_threads(shared_bytes));
        best.map_err(|error| failed(py, &error))
    }

    /// Launches it in the order of the stream. The arguments are the bytes of each, of the kernel's
    /// types; what they lead to must stay until it has ended.
    fn launch(
        &self,
        py: Python<'_>,
        grid: [u32; 3],
        block: [u32; 3],
        shared_bytes: u32,
        stream: &CudaStream,
        arguments: Vec<Vec<u8>>,
    ) -> PyResult<()> {
        let launched = py.detach(|| {
            let arguments: Vec<&[u8]> = arguments.iter().map(Vec::as_slice).collect();
            let launch = Launch { grid, block, shared_bytes };
            // SAFETY: that the arguments are the kernel's is the duty of the caller, as this method
            // says; their number and sizes are checked where the driver tells them.
            unsafe { self.function.launch(&stream.stream, &launch, &arguments) }
        });
        launched.map_err(|error| failed(py, &error))
    }

    fn __repr__(&self) -> String {
        format!("CudaFunction({:?})", self.function.name())
    }
}
