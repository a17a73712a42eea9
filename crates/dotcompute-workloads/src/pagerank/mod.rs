//! PageRank: to which nodes of a graph do the links lead?
//!
//! The way of an edge: text ([`read`]) or an array of pairs → [`Graph`], its links by target in an
//! order that suits the processor → [`Graph::rank`], a power iteration whose ranks sum to 1.
//! [`Resident`] keeps the graph in a ring kernel and answers queries.
//!
//! Self loops and repeated edges are links like others; [`without_repeats`] and
//! [`without_self_loops`] take them out. An edge's value or weight is not used.
//!
//! ```
//! use std::ops::ControlFlow;
//! use dotcompute_workloads::pagerank::{Graph, Query};
//!
//! // Everybody links to node 0, and node 0 to node 1.
//! let graph = Graph::build(4, vec![[1, 0], [2, 0], [3, 0], [0, 1]])?;
//! let ranks = graph.rank::<f64>(&Query::default(), &mut |_| ControlFlow::Continue(()))?;
//! assert!(ranks.converged);
//! assert!((ranks.scores.iter().sum::<f64>() - 1.0).abs() < 1e-12);
//! assert!(ranks.scores[0] > ranks.scores[1] && ranks.scores[1] > ranks.scores[2]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! After S. Brin and L. Page, "The anatomy of a large-scale hypertextual Web search engine" (1998);
//! the rank of nodes without links out is given to all (or to the seeds), as A. Langville and
//! C. Meyer describe in "Google's PageRank and Beyond" (2006), 4.3.

mod array;
pub mod generate;
mod graph;
mod iterate;
pub mod read;
mod resident;
mod tiles;

use rayon::prelude::*;

pub use graph::{Graph, GraphError};
pub use iterate::{Query, QueryError, Ranks, Score, Turn};
pub use resident::{Answer, Refusal, Request, Resident};

/// Keeps one of each edge, in the order of their ends. Takes the time of a parallel sort.
pub fn without_repeats(edges: &mut Vec<[u32; 2]>) {
    edges.par_sort_unstable();
    edges.dedup();
}

/// Takes out the edges from a node to itself.
pub fn without_self_loops(edges: &mut Vec<[u32; 2]>) {
    edges.retain(|[source, target]| source != target);
}

/// The `count` nodes of highest score, highest first, equals by their number.
#[must_use]
pub fn top<T: Score>(scores: &[T], count: usize) -> Vec<(u32, T)> {
    let mut nodes: Vec<u32> = (0..scores.len() as u32).collect();
    let order = |a: &u32, b: &u32| {
        let (left, right) = (scores[*a as usize].to_f64(), scores[*b as usize].to_f64());
        right.total_cmp(&left).then(a.cmp(b))
    };
    if count < nodes.len() {
        nodes.select_nth_unstable_by(count, order);
        nodes.truncate(count);
    }
    nodes.sort_unstable_by(order);
    nodes.into_iter().map(|node| (node, scores[node as usize])).collect()
}
