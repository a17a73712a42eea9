//! What a turn over a graph cannot do without: to gather one number a link from a table of all nodes,
//! and to stream the links and the numbers of each node through the core.

use std::hint::black_box;
use std::sync::LazyLock;
use std::time::Instant;

use dotcompute_workloads::pagerank::generate;
use rayon::prelude::*;

use crate::harness::{Slice, Wrong, expect};
use crate::ours::pagerank::{KRONECKER, SPARSE, Sample, TWO, UNIFORM, repeat};

/// Bytes a node that a turn reads and writes in order: rank (both), contribution, and divisor.
const BYTES_PER_NODE: usize = 16;

/// Random places in a table of as many nodes as the graph has, as many as it has links.
struct Floor {
    places: Vec<u32>,
    table: Vec<f32>,
    stream: Vec<f32>,
}

impl Floor {
    fn new(sample: &Sample) -> Self {
        let links = sample.graph.links();
        let places = generate::uniform(sample.nodes, links.div_ceil(2), 7).into_flattened();
        let table = vec![1.0; sample.nodes as usize];
        let stream = vec![1.0; sample.nodes as usize * BYTES_PER_NODE / size_of::<f32>()];
        Self { places, table, stream }
    }

    /// On two threads, a half each.
    fn run(&self, operations: u64) -> Result<Slice, Wrong> {
        let links = self.places.len();
        repeat(operations, links as u64, || {
            let start = Instant::now();
            let gathered: f32 = TWO.install(|| {
                let gather = |part: &[u32]| {
                    let mut sums = [0.0_f32; 8];
                    for eight in part.chunks_exact(8) {
                        for (sum, place) in sums.iter_mut().zip(eight) {
                            *sum += self.table[*place as usize];
                        }
                    }
                    sums.iter().sum::<f32>()
                };
                self.places.par_chunks(links.div_ceil(2)).map(gather).sum()
            });
            let streamed: f32 = TWO.install(|| {
                let stream = |part: &[f32]| {
                    let mut sums = [0.0_f32; 64];
                    for line in part.chunks_exact(64) {
                        for (sum, value) in sums.iter_mut().zip(line) {
                            *sum += value;
                        }
                    }
                    sums.iter().sum::<f32>()
                };
                self.stream.par_chunks(self.stream.len().div_ceil(2)).map(stream).sum()
            });
            let elapsed = start.elapsed();
            expect(
                "something was read",
                black_box(gathered) > 0.0 && black_box(streamed) > 0.0,
                true,
            )?;
            Ok(elapsed)
        })
    }
}

static OF_SPARSE: LazyLock<Floor> = LazyLock::new(|| Floor::new(&SPARSE));
static OF_KRONECKER: LazyLock<Floor> = LazyLock::new(|| Floor::new(&KRONECKER));
static OF_UNIFORM: LazyLock<Floor> = LazyLock::new(|| Floor::new(&UNIFORM));

/// Of a graph of one's own.
pub(crate) fn of(sample: &Sample) -> impl Fn(u64) -> Result<Slice, Wrong> + use<> {
    let floor = Floor::new(sample);
    move |operations| floor.run(operations)
}

pub(crate) fn sparse(operations: u64) -> Result<Slice, Wrong> {
    OF_SPARSE.run(operations)
}

pub(crate) fn kronecker(operations: u64) -> Result<Slice, Wrong> {
    OF_KRONECKER.run(operations)
}

pub(crate) fn uniform(operations: u64) -> Result<Slice, Wrong> {
    OF_UNIFORM.run(operations)
}
