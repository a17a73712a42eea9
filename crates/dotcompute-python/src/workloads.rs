//! Real work on the core, for `pydotcompute.workloads`.

use std::ops::ControlFlow;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use dotcompute::compiled::HandlerCode;
use dotcompute_mailbox::sync::{AtomicBool, Ordering};
use dotcompute_workloads::anomaly::{self, Model};
use dotcompute_workloads::pagerank::{Graph, GraphError, Query, QueryError, Ranks, Score};
use pyo3::buffer::{Element, PyBuffer};
use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;

/// How long Ctrl-C may go unnoticed.
const SIGNALS_EVERY: Duration = Duration::from_millis(50);

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<PageRankGraph>()
}

/// The code of a detector over a state that `pydotcompute.workloads.anomaly` lays out: `size` is the
/// window of "robust" and the slots of "seasonal".
pub(crate) fn anomaly_code(
    model: &str,
    size: u32,
    is_named: bool,
) -> PyResult<Box<dyn HandlerCode>> {
    let model = match model {
        "ewma" => Model::Ewma,
        "robust" => Model::Robust { window: size },
        // How long a slot is stands in the state.
        "seasonal" => Model::Seasonal { slots: size, slot: 1.0 },
        other => return Err(PyValueError::new_err(format!("no model is called '{other}'"))),
    };
    Ok(if is_named { anomaly::named::code(model) } else { anomaly::handler::code(model) })
}

/// A graph that is ready to be ranked. Never changes: any thread may use it.
#[pyclass(module = "pydotcompute._native", frozen)]
struct PageRankGraph {
    graph: Graph,
    pool: rayon::ThreadPool,
}

/// Pairs as numpy lays them out.
struct Flat(Vec<u32>);

impl AsRef<[[u32; 2]]> for Flat {
    fn as_ref(&self) -> &[[u32; 2]] {
        self.0.as_chunks().0
    }
}

#[pymethods]
impl PageRankGraph {
    /// The edges are C-contiguous `uint32` of shape (m, 2); they are copied. No `threads` (0): one
    /// a core.
    #[new]
    fn new(py: Python<'_>, nodes: u32, edges: PyBuffer<u32>, threads: usize) -> PyResult<Self> {
        let pairs = Flat(edges.to_vec(py)?);
        drop(edges);
        py.detach(|| {
            let pool = rayon::ThreadPoolBuilder::new()
                .num_threads(threads)
                .thread_name(|index| format!("pagerank-{index}"))
                .build()
                .map_err(|error| {
                    PyRuntimeError::new_err(format!("cannot start threads: {error}"))
                })?;
            let graph = pool.install(|| Graph::build(nodes, pairs));
            let refused = |error: GraphError| PyValueError::new_err(error.to_string());
            Ok(Self { graph: graph.map_err(refused)?, pool })
        })
    }

    #[getter]
    fn nodes(&self) -> usize {
        self.graph.nodes()
    }

    #[getter]
    fn links(&self) -> usize {
        self.graph.links()
    }

    #[getter]
    fn nbytes(&self) -> usize {
        self.graph.memory_bytes()
    }

    /// Ranks into `scores`, which is `float32`.
    fn rank_f32(
        &self,
        py: Python<'_>,
        scores: PyBuffer<f32>,
        query: (f64, f64, u32, Vec<(u32, f64)>),
    ) -> PyResult<(u32, f64, bool)> {
        self.rank(py, &scores, query)
    }

    /// Ranks into `scores`, which is `float64`.
    fn rank_f64(
        &self,
        py: Python<'_>,
        scores: PyBuffer<f64>,
        query: (f64, f64, u32, Vec<(u32, f64)>),
    ) -> PyResult<(u32, f64, bool)> {
        self.rank(py, &scores, query)
    }
}

impl PageRankGraph {
    fn rank<T: Score + Element>(
        &self,
        py: Python<'_>,
        scores: &PyBuffer<T>,
        (damping, tolerance, max_iterations, seeds): (f64, f64, u32, Vec<(u32, f64)>),
    ) -> PyResult<(u32, f64, bool)> {
        let query = Query { damping, tolerance, max_iterations, seeds };
        // Only the thread that was called can see Ctrl-C: another one works, and it watches.
        let stopped = AtomicBool::new(false);
        let watch = |_| match stopped.load(Ordering::Relaxed) {
            // Relaxed: it brings nothing but itself.
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        };
        let (ranks, interrupt) = py.detach(|| {
            thread::scope(|scope| {
                let (done, waiting) = mpsc::channel();
                let (graph, pool, query, watch) = (&self.graph, &self.pool, &query, &watch);
                scope.spawn(move || {
                    let ranks = pool.install(|| graph.rank::<T>(query, &mut |turn| watch(turn)));
                    // The receiver waits until it has this.
                    let _ = done.send(ranks);
                });
                let mut interrupt = None;
                loop {
                    match waiting.recv_timeout(SIGNALS_EVERY) {
                        Ok(ranks) => return (Some(ranks), interrupt),
                        Err(RecvTimeoutError::Disconnected) => return (None, interrupt),
                        Err(RecvTimeoutError::Timeout) => {}
                    }
                    if let Err(error) = Python::attach(|py| py.check_signals()) {
                        interrupt = Some(error);
                        stopped.store(true, Ordering::Relaxed);
                    }
                }
            })
        });
        if let Some(error) = interrupt {
            return Err(error);
        }
        let ranks: Result<Ranks<T>, QueryError> =
            ranks.ok_or_else(|| PyRuntimeError::new_err("the ranking ended without a result"))?;
        let ranks = ranks.map_err(|error| PyValueError::new_err(error.to_string()))?;
        scores.copy_from_slice(py, &ranks.scores)?;
        Ok((ranks.iterations, ranks.change, ranks.converged))
    }
}
