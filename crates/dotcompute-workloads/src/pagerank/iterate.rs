//! The power iteration: pull, Jacobi, one pass over the links a turn.
//!
//! One turn computes for each node the damped sum of what its sources contribute (their rank over
//! the number of their links) and the share that everybody gets: what damping takes, and the rank of
//! the nodes without links out, so that the ranks always sum to 1. It ends when the ranks move by
//! less than the tolerance, summed over all nodes (L1). Two successive turns that close are within
//! `tolerance * damping / (1 - damping)` of the fixed point.

use std::iter::Sum;
use std::ops::{Add, AddAssign, ControlFlow, Mul, Sub};

use bytemuck::Pod;
use rayon::prelude::*;

use super::array::Array;
use super::graph::{Block, Graph, Layout, Length, Rows};
use super::tiles;

/// A number that ranks are computed in: `f32` or `f64`.
///
/// `f32` is faster and resolves an L1 change of about 3e-7; `f64` takes twice the memory per node.
pub trait Score:
    Pod
    + Send
    + Sync
    + PartialOrd
    + Add<Output = Self>
    + AddAssign
    + Mul<Output = Self>
    + Sub<Output = Self>
    + Sum
    + sealed::Sealed
{
    /// The smallest tolerance that these numbers can reach.
    const MIN_TOLERANCE: f64;

    /// The nearest number.
    fn from_f64(value: f64) -> Self;

    /// The same number.
    fn to_f64(self) -> f64;
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for f64 {}
}

impl Score for f32 {
    const MIN_TOLERANCE: f64 = 1e-6;

    #[expect(clippy::cast_possible_truncation, reason = "the nearest number is what is wanted")]
    fn from_f64(value: f64) -> Self {
        value as f32
    }

    fn to_f64(self) -> f64 {
        f64::from(self)
    }
}

impl Score for f64 {
    const MIN_TOLERANCE: f64 = 1e-15;

    fn from_f64(value: f64) -> Self {
        value
    }

    fn to_f64(self) -> f64 {
        self
    }
}

/// What is asked of a graph.
#[derive(Clone, Debug, PartialEq)]
pub struct Query {
    /// The share of rank that follows the links, 0 to 1 (exclusive). Usual, and the default: 0.85.
    pub damping: f64,
    /// The L1 change of a turn below which the ranks are final; 0: never, all turns are taken.
    /// Default: 1e-7.
    pub tolerance: f64,
    /// The most turns to take. Default: 1000.
    pub max_iterations: u32,
    /// Nodes, and how much of the share that does not follow links each gets (scaled to sum to 1).
    /// Empty: all the same, which is the ordinary PageRank.
    pub seeds: Vec<(u32, f64)>,
}

impl Default for Query {
    fn default() -> Self {
        Self { damping: 0.85, tolerance: 1e-7, max_iterations: 1000, seeds: Vec::new() }
    }
}

/// Why a query has no answer.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum QueryError {
    /// Not at least 0 and below 1.
    #[error("damping is {0}: it has to be at least 0 and below 1")]
    Damping(f64),
    /// Neither 0 nor above what the scores resolve.
    #[error("tolerance is {0}: it has to be 0 or at least {1}, which is what these scores resolve")]
    Tolerance(f64, f64),
    /// A seed that is no node.
    #[error("seed {node} is no node: they are 0 to {nodes} (exclusive)")]
    UnknownSeed {
        /// What was given.
        node: u32,
        /// How many nodes there are.
        nodes: usize,
    },
    /// A seed's weight is negative or no number, or all are zero.
    #[error("the weights of the seeds have to be finite, not negative, and not all zero")]
    SeedWeights,
    /// Whoever watched the progress said to stop.
    #[error("cancelled after {0} iterations")]
    Cancelled(u32),
}

/// The answer: a rank for each node, summing to 1.
#[derive(Clone, Debug)]
pub struct Ranks<T> {
    /// The rank of node `i` at `i`.
    pub scores: Vec<T>,
    /// Turns taken.
    pub iterations: u32,
    /// The L1 change of the last turn.
    pub change: f64,
    /// Whether that is below the tolerance.
    pub converged: bool,
}

/// One turn, for whoever watches.
#[derive(Clone, Copy, Debug)]
pub struct Turn {
    /// Turns taken so far, this one included.
    pub iterations: u32,
    /// The L1 change of this turn.
    pub change: f64,
}

/// What the rows of a block add up to.
#[derive(Clone, Copy, Default)]
pub(super) struct Sums {
    pub(super) change: f64,
    pub(super) dangling: f64,
}

impl Sum for Sums {
    fn sum<I: Iterator<Item = Self>>(sums: I) -> Self {
        sums.fold(Self::default(), |a, b| Self {
            change: a.change + b.change,
            dangling: a.dangling + b.dangling,
        })
    }
}

/// What one turn gives each node beside what it is linked.
pub(super) enum Share<'a, T> {
    /// To all the same.
    Even(T),
    /// This much, shared out by these weights.
    Seeded(T, &'a [T]),
}

/// The rows of one block, with what a turn reads and writes of them alone.
struct Work<'a, T> {
    block: &'a Block,
    ranks: &'a mut [T],
    /// What the nodes will contribute in the next turn; nothing for those that dangle.
    next: &'a mut [T],
    /// One over the number of links out; nothing for those that dangle.
    inverse: &'a [T],
}

impl Graph {
    /// Ranks the nodes, on the current rayon pool. `watch` is called after each turn and can end it.
    ///
    /// Takes four numbers a node beside the graph, and the answer. The result for the same graph and query is the
    /// same for any number of threads up to the order of a few sums (about the last bit of `change`).
    ///
    /// # Errors
    ///
    /// A query that makes no sense, or the word of `watch`.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::ops::ControlFlow;
    /// use dotcompute_workloads::pagerank::{Graph, Query};
    ///
    /// let graph = Graph::build(3, vec![[0, 2], [1, 2], [2, 0]])?;
    /// let ranks = graph.rank::<f64>(&Query::default(), &mut |_| ControlFlow::Continue(()))?;
    /// assert!(ranks.scores[2] > ranks.scores[0] && ranks.scores[0] > ranks.scores[1]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn rank<T: Score>(
        &self,
        query: &Query,
        watch: &mut dyn FnMut(Turn) -> ControlFlow<()>,
    ) -> Result<Ranks<T>, QueryError> {
        let nodes = self.nodes();
        let teleport = query.check::<T>(self)?;
        if nodes == 0 {
            return Ok(Ranks { scores: Vec::new(), iterations: 0, change: 0.0, converged: true });
        }
        let even = T::from_f64(1.0 / nodes as f64);
        let mut ranks = Array::<T>::zeroed(nodes);
        match &teleport {
            None => ranks.par_iter_mut().with_min_len(1 << 12).for_each(|rank| *rank = even),
            Some(weights) => ranks.copy_from_slice(weights),
        }
        // Of how many rows each turn keeps a contribution, and how many numbers lie there.
        let (linking, table) = match &self.layout {
            Layout::Rows(rows) => (rows.linking, rows.linking),
            Layout::Tiles(_) => (nodes, tiles::table(nodes)),
        };
        let mut inverse = Array::<T>::zeroed(linking);
        let mut contributed = Array::<T>::zeroed(table);
        let mut next = Array::<T>::zeroed(table);
        inverse
            .par_iter_mut()
            .zip(contributed.par_iter_mut())
            .zip(self.out_degrees.par_iter().zip(ranks.par_iter()))
            .with_min_len(1 << 12)
            .for_each(|((inverse, contributed), (degree, rank))| {
                if *degree > 0 {
                    *inverse = T::from_f64(1.0 / f64::from(*degree));
                    *contributed = *rank * *inverse;
                }
            });
        // Summed in pieces, so that the sum does not depend on the number of threads.
        let pieces = self.out_degrees.par_chunks(1 << 14).zip(ranks.par_chunks(1 << 14));
        let dangles = |(degrees, ranks): (&[u32], &[T])| -> f64 {
            let ends = degrees.iter().zip(ranks).filter(|(degree, _)| **degree == 0);
            ends.map(|(_, rank)| rank.to_f64()).sum()
        };
        let mut dangling: f64 = pieces.map(dangles).collect::<Vec<f64>>().into_iter().sum();

        let damping = T::from_f64(query.damping);
        let (mut iterations, mut change) = (0, f64::INFINITY);
        while iterations < query.max_iterations && change >= query.tolerance {
            let given = (1.0 - query.damping) + query.damping * dangling;
            let share = match &teleport {
                None => Share::Even(T::from_f64(given / nodes as f64)),
                Some(weights) => Share::Seeded(T::from_f64(given), weights),
            };
            let sums: Sums = match &self.layout {
                Layout::Rows(rows) => rows
                    .work(&mut ranks, &mut next, &inverse)
                    .into_par_iter()
                    .map(|work| rows.turn(work, &contributed, damping, &share))
                    .sum(),
                Layout::Tiles(tiles) => {
                    tiles.turn(&mut ranks, &mut next, &inverse, &contributed, damping, &share)
                }
            };
            std::mem::swap(&mut contributed, &mut next);
            (change, dangling) = (sums.change, sums.dangling);
            iterations += 1;
            if watch(Turn { iterations, change }).is_break() {
                return Err(QueryError::Cancelled(iterations));
            }
        }
        let scores = match &self.layout {
            Layout::Rows(rows) => {
                let mut scores = vec![T::zeroed(); nodes];
                for (node, rank) in rows.node_of.iter().zip(ranks.iter()) {
                    scores[*node as usize] = *rank;
                }
                scores
            }
            // By all threads, since the pages of the answer are new.
            Layout::Tiles(_) => ranks.par_iter().with_min_len(1 << 14).copied().collect(),
        };
        Ok(Ranks { scores, iterations, change, converged: change < query.tolerance })
    }
}

impl Rows {
    /// Cuts the arrays into what each block has to itself.
    fn work<'a, T>(
        &'a self,
        mut ranks: &'a mut [T],
        mut next: &'a mut [T],
        inverse: &'a [T],
    ) -> Vec<Work<'a, T>> {
        let mut works = Vec::with_capacity(self.blocks.len());
        for block in &self.blocks {
            let (own_ranks, other_ranks) = ranks.split_at_mut(block.rows.len());
            // No block has rows of both kinds.
            let links_on = if block.rows.start < self.linking { block.rows.len() } else { 0 };
            let (own_next, other_next) = next.split_at_mut(links_on);
            (ranks, next) = (other_ranks, other_next);
            let inverse = &inverse[block.rows.start.min(self.linking)..][..links_on];
            works.push(Work { block, ranks: own_ranks, next: own_next, inverse });
        }
        works
    }

    fn turn<T: Score>(
        &self,
        work: Work<'_, T>,
        contributed: &[T],
        damping: T,
        share: &Share<'_, T>,
    ) -> Sums {
        let rows = work.block.rows.clone();
        match share {
            Share::Even(even) => self.rows(work, contributed, |sum, _| *even + damping * sum),
            Share::Seeded(given, weights) => {
                let weights = &weights[rows];
                self.rows(work, contributed, |sum, row| *given * weights[row] + damping * sum)
            }
        }
    }

    /// The rows of a block, by their length. `rank(sum, row)` is a node's new rank.
    fn rows<T: Score>(
        &self,
        work: Work<'_, T>,
        contributed: &[T],
        rank: impl Fn(T, usize) -> T,
    ) -> Sums {
        let links = &self.sources[work.block.links.clone()];
        macro_rules! by_length {
            ($($length:literal)*) => {
                match work.block.length {
                    Length::Even(0) => settle(work, |_| T::zeroed(), rank),
                    $(Length::Even($length) => {
                        let (rows, _) = links.as_chunks::<$length>();
                        settle(work, |row| short_row(&rows[row], contributed), rank)
                    })*
                    Length::Even(length) => {
                        let row = |row: usize| &links[row * length..(row + 1) * length];
                        settle(work, |index| long_row(row(index), contributed), rank)
                    }
                    Length::Uneven(first) => {
                        let starts = &self.long_starts[first..=first + work.block.rows.len()];
                        let row = |row: usize| &self.sources[starts[row]..starts[row + 1]];
                        settle(work, |index| long_row(row(index), contributed), rank)
                    }
                }
            };
        }
        by_length!(1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16)
    }
}

/// Gives each row its new rank, and adds up by how much they moved and what dangles.
#[inline(always)]
fn settle<T: Score>(
    work: Work<'_, T>,
    linked: impl Fn(usize) -> T,
    rank: impl Fn(T, usize) -> T,
) -> Sums {
    let mut sums = Sums::default();
    if work.next.is_empty() {
        for (row, old) in work.ranks.iter_mut().enumerate() {
            let new = rank(linked(row), row);
            sums.change += (new.to_f64() - old.to_f64()).abs();
            sums.dangling += new.to_f64();
            *old = new;
        }
        return sums;
    }
    let rows = work.ranks.iter_mut().zip(work.next).zip(work.inverse);
    for (row, ((old, next), inverse)) in rows.enumerate() {
        let new = rank(linked(row), row);
        sums.change += (new - *old).to_f64().abs();
        *old = new;
        *next = new * *inverse;
    }
    sums
}

/// The sum over a row whose length the compiler knows.
#[inline(always)]
fn short_row<T: Score, const LENGTH: usize>(row: &[u32; LENGTH], contributed: &[T]) -> T {
    let mut sum = T::zeroed();
    for source in row {
        sum += contributed[*source as usize];
    }
    sum
}

/// The sum over a row of any length: eight sums at a time hide the latency of the additions, and
/// what a thousand links add up to is carried in `f64`, so that the rounding of `f32` does not grow
/// with the length of the row.
fn long_row<T: Score>(row: &[u32], contributed: &[T]) -> T {
    let mut total = 0.0;
    for piece in row.chunks(1024) {
        let (eights, rest) = piece.as_chunks::<8>();
        let mut sums = [T::zeroed(); 8];
        for eight in eights {
            for (sum, source) in sums.iter_mut().zip(eight) {
                *sum += contributed[*source as usize];
            }
        }
        for (sum, source) in sums.iter_mut().zip(rest) {
            *sum += contributed[*source as usize];
        }
        total += sums.into_iter().sum::<T>().to_f64();
    }
    T::from_f64(total)
}

impl Query {
    /// Checks the query, and lays out the weights of its seeds by row.
    fn check<T: Score>(&self, graph: &Graph) -> Result<Option<Array<T>>, QueryError> {
        if !(0.0..1.0).contains(&self.damping) {
            return Err(QueryError::Damping(self.damping));
        }
        let resolved = self.tolerance == 0.0 || self.tolerance >= T::MIN_TOLERANCE;
        if !resolved {
            return Err(QueryError::Tolerance(self.tolerance, T::MIN_TOLERANCE));
        }
        if self.seeds.is_empty() {
            return Ok(None);
        }
        let nodes = graph.nodes();
        let weights = || self.seeds.iter().map(|(_, weight)| *weight);
        let total: f64 = weights().sum();
        // What is not a number makes the total none.
        if weights().any(|weight| weight < 0.0) || !total.is_finite() || total <= 0.0 {
            return Err(QueryError::SeedWeights);
        }
        let mut by_node = vec![T::zeroed(); nodes];
        for &(node, weight) in &self.seeds {
            let slot =
                by_node.get_mut(node as usize).ok_or(QueryError::UnknownSeed { node, nodes })?;
            *slot += T::from_f64(weight / total);
        }
        let mut by_row = Array::<T>::zeroed(nodes);
        match &graph.layout {
            Layout::Rows(rows) => {
                for (slot, node) in by_row.iter_mut().zip(rows.node_of.iter()) {
                    *slot = by_node[*node as usize];
                }
            }
            Layout::Tiles(_) => by_row.copy_from_slice(&by_node),
        }
        Ok(Some(by_row))
    }
}
