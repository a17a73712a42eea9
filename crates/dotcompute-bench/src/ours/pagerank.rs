//! Ranking the nodes of random graphs.

use std::fmt::Write as _;
use std::ops::ControlFlow;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use dotcompute_workloads::pagerank::read::{Edges, Format, Reader};
use dotcompute_workloads::pagerank::{Graph, Query, generate};
use rayon::ThreadPool;

use crate::harness::{Slice, Wrong, expect};
use crate::memory::Census;
use crate::os::preemptions_of_process;
use crate::page::{Curve, Series};

/// A debug build checks the rows and measures nothing: on small graphs, that takes no time.
const SMALLER: u32 = if cfg!(debug_assertions) { 1 << 8 } else { 1 };

/// A random graph, as edges and ready to be ranked.
pub(crate) struct Sample {
    pub(crate) nodes: u32,
    pub(crate) edges: Vec<[u32; 2]>,
    pub(crate) graph: Graph,
}

impl Sample {
    fn new(nodes: u32, edges: Vec<[u32; 2]>) -> Self {
        // A generator's ends are below its number of nodes.
        let graph = TWO.install(|| Graph::build(nodes, &edges)).expect("the edges are a graph");
        Self { nodes, edges, graph }
    }
}

/// A million nodes, five links each, drawn evenly.
pub(crate) static SPARSE: LazyLock<Sample> = LazyLock::new(|| {
    let nodes = 1_000_000 / SMALLER;
    Sample::new(nodes, generate::uniform(nodes, 5 * nodes as usize, 42))
});

/// Kronecker, scale 20, 32 links a node.
pub(crate) static KRONECKER: LazyLock<Sample> = LazyLock::new(|| {
    let scale = (1_u32 << 20).div_ceil(SMALLER).trailing_zeros();
    Sample::new(1 << scale, generate::kronecker(scale, 16, 42))
});

/// Uniform, scale 20, 32 links a node.
pub(crate) static UNIFORM: LazyLock<Sample> = LazyLock::new(|| {
    let nodes = (1 << 20) / SMALLER;
    Sample::new(nodes, generate::uniform(nodes, 32 * nodes as usize, 42))
});

pub(crate) static ONE: LazyLock<ThreadPool> = LazyLock::new(|| pool(1));
pub(crate) static TWO: LazyLock<ThreadPool> = LazyLock::new(|| pool(2));

fn pool(threads: usize) -> ThreadPool {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads should start")
}

/// What `operations` took, of which `work` does so many at a time.
pub(crate) fn repeat(
    operations: u64,
    at_a_time: u64,
    mut work: impl FnMut() -> Result<Duration, Wrong>,
) -> Result<Slice, Wrong> {
    let times = (operations / at_a_time).max(1);
    let before = preemptions_of_process();
    let mut elapsed = Duration::ZERO;
    for _ in 0..times {
        elapsed += work()?;
    }
    let preemptions = preemptions_of_process() - before;
    // A slice is of so many operations, and whole turns are rarely as many.
    let elapsed = elapsed.mul_f64(operations as f64 / (times * at_a_time) as f64);
    Ok(Slice { elapsed, preemptions, ..Slice::default() })
}

/// So many links, in turns over the whole graph.
fn turns(sample: &Sample, pool: &ThreadPool, operations: u64) -> Result<Slice, Wrong> {
    let links = sample.graph.links() as u64;
    let turns = u32::try_from((operations / links).max(1)).map_err(Wrong::new)?;
    repeat(operations, links * u64::from(turns), || {
        // The first turn warms up and is not counted.
        let query = Query { tolerance: 0.0, max_iterations: turns + 1, ..Query::default() };
        let (mut first, mut last) = (None, Instant::now());
        let ranks = pool
            .install(|| {
                sample.graph.rank::<f32>(&query, &mut |_| {
                    last = Instant::now();
                    first.get_or_insert(last);
                    ControlFlow::Continue(())
                })
            })
            .map_err(Wrong::new)?;
        let sum: f64 = ranks.scores.iter().map(|score| f64::from(*score)).sum();
        expect("the ranks sum to 1", (sum - 1.0).abs() < 1e-3, true)?;
        expect("turns", ranks.iterations, turns + 1)?;
        Ok(last - first.unwrap_or(last))
    })
}

pub(crate) fn sparse(operations: u64) -> Result<Slice, Wrong> {
    turns(&SPARSE, &TWO, operations)
}

pub(crate) fn kronecker(operations: u64) -> Result<Slice, Wrong> {
    turns(&KRONECKER, &TWO, operations)
}

pub(crate) fn uniform(operations: u64) -> Result<Slice, Wrong> {
    turns(&UNIFORM, &TWO, operations)
}

pub(crate) fn kronecker_alone(operations: u64) -> Result<Slice, Wrong> {
    turns(&KRONECKER, &ONE, operations)
}

pub(crate) fn uniform_alone(operations: u64) -> Result<Slice, Wrong> {
    turns(&UNIFORM, &ONE, operations)
}

/// What a link costs in a turn, in nanoseconds, over random graphs of five links a node: ours, and
/// the floor that `floor` gives for the same graph. `quick`: up to a million links.
pub(crate) fn sizes<Floor: Fn(u64) -> Result<Slice, Wrong>>(
    quick: bool,
    floor: fn(&Sample) -> Floor,
) -> Result<Curve, Wrong> {
    let largest = if quick { 1_000_000 } else { 100_000_000 } / SMALLER;
    let mut ours = Vec::new();
    let mut floors = Vec::new();
    let mut links = 10_000;
    while links <= largest {
        let nodes = links / 5;
        let sample = Sample::new(nodes, generate::uniform(nodes, links as usize, 42));
        // Enough turns for a clock, and the best of a few: what disturbs only ever adds.
        let operations = u64::from(links).max(2_000_000);
        let cost = |run: &dyn Fn() -> Result<Slice, Wrong>| -> Result<f64, Wrong> {
            let mut least = f64::INFINITY;
            for _ in 0..5 {
                least = least.min(run()?.elapsed.as_secs_f64() * 1e9 / operations as f64);
            }
            Ok(least)
        };
        let floor = floor(&sample);
        ours.push((f64::from(links), cost(&|| turns(&sample, &TWO, operations))?));
        floors.push((f64::from(links), cost(&|| floor(operations))?));
        links = if links.to_string().starts_with('1') { links * 3 } else { links / 3 * 10 };
    }
    Ok(Curve {
        title: "pagerank: what a link costs in a turn, by the size of the graph".into(),
        x: "links, five a node, f32, two threads".into(),
        y: "ns a link".into(),
        series: vec![
            Series { name: "ours".into(), points: ours },
            Series { name: "gather and stream".into(), points: floors },
        ],
    })
}

/// From edges in memory to a graph that is ready to be ranked.
pub(crate) fn build(operations: u64) -> Result<Slice, Wrong> {
    let sample = &*SPARSE;
    repeat(operations, sample.edges.len() as u64, || {
        let start = Instant::now();
        let graph =
            TWO.install(|| Graph::build(sample.nodes, &sample.edges)).map_err(Wrong::new)?;
        let elapsed = start.elapsed();
        expect("links", graph.links(), sample.edges.len())?;
        Ok(elapsed)
    })
}

/// The peak from so many edges, five a node, to ranks: the edges are among it, and the ranks.
pub(crate) fn peak(links: u64) -> Result<Census, Wrong> {
    let nodes = u32::try_from(links / 5).map_err(Wrong::new)?;
    let rank = |nodes: u32, links: usize| {
        let edges = generate::uniform(nodes, links, 42);
        let graph = Graph::build(nodes, edges).map_err(Wrong::new)?;
        let query = Query { tolerance: 1e-6, ..Query::default() };
        graph.rank::<f32>(&query, &mut |_| ControlFlow::Continue(())).map_err(Wrong::new)
    };
    // The threads are there before it counts.
    TWO.install(|| rank(1000, 5000))?;
    Census::peak(|| {
        let ranks = TWO.install(|| rank(nodes, links as usize))?;
        expect("settled", ranks.converged, true)
    })
}

static TEXT: LazyLock<String> = LazyLock::new(|| {
    let mut text = String::new();
    for [source, target] in &SPARSE.edges {
        // Writing into a String does not fail.
        let _ = writeln!(text, "{source}\t{target}");
    }
    text
});

fn reader() -> Reader {
    Reader::new(Format::EdgeList).nodes(SPARSE.nodes)
}

fn read() -> Result<Edges, Wrong> {
    reader().read(TEXT.as_bytes(), &mut |_| ControlFlow::Continue(())).map_err(Wrong::new)
}

/// Text in memory to edges.
pub(crate) fn parse(operations: u64) -> Result<Slice, Wrong> {
    LazyLock::force(&TEXT);
    repeat(operations, SPARSE.edges.len() as u64, || {
        let start = Instant::now();
        let edges = TWO.install(read)?;
        let elapsed = start.elapsed();
        expect("edges", edges.pairs.len(), SPARSE.edges.len())?;
        Ok(elapsed)
    })
}

/// Text in memory to settled ranks.
pub(crate) fn text_to_ranks(operations: u64) -> Result<Slice, Wrong> {
    LazyLock::force(&TEXT);
    repeat(operations, SPARSE.edges.len() as u64, || {
        let start = Instant::now();
        let ranks = TWO.install(|| {
            let edges = reader()
                .read_pieces(TEXT.as_bytes(), &mut |_| ControlFlow::Continue(()))
                .map_err(Wrong::new)?;
            let graph = Graph::build_pieces(SPARSE.nodes, edges.pairs).map_err(Wrong::new)?;
            let query = Query { tolerance: 1e-6, ..Query::default() };
            graph.rank::<f32>(&query, &mut |_| ControlFlow::Continue(())).map_err(Wrong::new)
        })?;
        let elapsed = start.elapsed();
        expect("settled", ranks.converged, true)?;
        Ok(elapsed)
    })
}
