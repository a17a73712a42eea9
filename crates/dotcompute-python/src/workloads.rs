//! Real work on the core, for `pydotcompute.workloads`.

use std::borrow::Cow;
use std::ops::ControlFlow;
use std::slice;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use dotcompute::compiled::HandlerCode;
use dotcompute_mailbox::sync::{AtomicBool, Ordering};
use dotcompute_workloads::anomaly::{self, Model};
use dotcompute_workloads::pagerank::{Graph, GraphError, Query, QueryError, Ranks, Score};
use pyo3::buffer::{Element, PyBuffer};
use pyo3::exceptions::{PyBufferError, PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use rayon::prelude::*;

/// How long Ctrl-C may go unnoticed.
const SIGNALS_EVERY: Duration = Duration::from_millis(50);
/// Edges that are looked through as one.
const PIECE: usize = 1 << 16;

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

/// The ends of edges, two by two, as NumPy lays them out.
enum Ends {
    Unsigned(PyBuffer<u32>),
    Signed(PyBuffer<i32>),
    Wide(PyBuffer<i64>),
}

impl Ends {
    fn of(edges: &Bound<'_, PyAny>) -> PyResult<Self> {
        let ends = PyBuffer::get(edges).map(Self::Signed);
        let ends = ends.or_else(|_| PyBuffer::get(edges).map(Self::Wide));
        ends.or_else(|_| PyBuffer::get(edges).map(Self::Unsigned))
    }

    /// The edges, read where they lie if they are of 32 bits; else copied, on the current rayon pool.
    /// A negative end is beyond every node.
    fn pairs(&self) -> PyResult<Cow<'_, [[u32; 2]]>> {
        match self {
            Self::Unsigned(ends) => lent(ends).map(Cow::Borrowed),
            Self::Signed(ends) => {
                let pairs: &[[i32; 2]] = lent(ends)?;
                Ok(Cow::Borrowed(bytemuck::cast_slice(pairs)))
            }
            Self::Wide(ends) => narrow(lent(ends)?).map(Cow::Owned),
        }
    }

    /// From here on a number names no node, however many there are.
    fn limit(&self) -> u32 {
        if let Self::Signed(_) = self { 1 << 31 } else { u32::MAX }
    }

    /// Refuses an end that is beyond the limit, as it was given.
    fn refuse(&self, end: u32) -> PyErr {
        if let Self::Signed(_) = self {
            beyond(end.cast_signed().into())
        } else {
            beyond(end.into())
        }
    }
}

fn beyond(end: i64) -> PyErr {
    PyValueError::new_err(format!("an edge names node {end}: they are 0 to 2**32 - 2"))
}

/// The pairs that a buffer holds, as long as it is borrowed.
fn lent<T: Element>(ends: &PyBuffer<T>) -> PyResult<&[[T; 2]]> {
    if !ends.is_c_contiguous() {
        return Err(PyBufferError::new_err("the edges are not contiguous"));
    }
    if ends.item_count() == 0 {
        return Ok(&[]);
    }
    // SAFETY: PyO3 checked that the buffer holds values of T, aligned, and they are contiguous; the
    // buffer keeps them where they are until it is dropped. That nobody writes to them meanwhile is
    // the duty of the caller, as `Graph` of Python says.
    let ends = unsafe { slice::from_raw_parts(ends.buf_ptr().cast::<T>(), ends.item_count()) };
    Ok(ends.as_chunks().0)
}

/// The same in 32 bits.
fn narrow(wide: &[[i64; 2]]) -> PyResult<Vec<[u32; 2]>> {
    let mut pairs = vec![[0, 0]; wide.len()];
    let pieces = pairs.par_chunks_mut(PIECE).zip(wide.par_chunks(PIECE));
    let fits = pieces.map(|(pairs, wide)| {
        let mut bits = 0;
        for (end, wide) in pairs.as_flattened_mut().iter_mut().zip(wide.as_flattened()) {
            bits |= *wide;
            *end = *wide as u32; // what that cuts off is seen in `bits`
        }
        u32::try_from(bits).is_ok()
    });
    if fits.reduce(|| true, |one, other| one && other) {
        return Ok(pairs);
    }
    let no_node = |end: &&i64| u32::try_from(**end).is_err();
    Err(beyond(wide.as_flattened().iter().find(no_node).copied().unwrap_or(-1)))
}

#[pymethods]
impl PageRankGraph {
    /// The edges are C-contiguous `int32`, `uint32` or `int64` of shape (m, 2), and nobody writes to them
    /// meanwhile. No `nodes`: one more than the largest end. No `threads` (0): one a core.
    #[new]
    fn new(
        py: Python<'_>,
        nodes: Option<u32>,
        edges: &Bound<'_, PyAny>,
        threads: usize,
    ) -> PyResult<Self> {
        let ends = Ends::of(edges)?;
        py.detach(|| {
            let pool = rayon::ThreadPoolBuilder::new()
                .num_threads(threads)
                .thread_name(|index| format!("pagerank-{index}"))
                .build()
                .map_err(|error| {
                    PyRuntimeError::new_err(format!("cannot start threads: {error}"))
                })?;
            let graph = pool.install(|| {
                let pairs = ends.pairs()?;
                let nodes = match nodes {
                    // Then an end beyond the limit is beyond the nodes too.
                    Some(nodes) if nodes <= ends.limit() => nodes,
                    _ => {
                        let pieces = pairs.par_chunks(PIECE);
                        let largest = pieces.filter_map(|piece| piece.as_flattened().iter().max());
                        match largest.max() {
                            Some(end) if *end >= ends.limit() => return Err(ends.refuse(*end)),
                            largest => nodes.unwrap_or(largest.map_or(0, |end| end + 1)),
                        }
                    }
                };
                Graph::build(nodes, pairs).map_err(|error| match error {
                    GraphError::UnknownNode { node, .. } if node >= ends.limit() => {
                        ends.refuse(node)
                    }
                    error => PyValueError::new_err(error.to_string()),
                })
            })?;
            Ok(Self { graph, pool })
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
