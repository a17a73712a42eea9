//! A large graph without favourites: the links between the same two ranges of nodes side by side.
//!
//! Where the contributions of all nodes are more than the second-level cache holds and no few of them
//! are asked for again and again, a turn over rows waits for memory at each link. So the links are
//! dealt into tiles: a block of targets, whose sums the cache holds, by a segment of sources, whose
//! contributions it holds too. Both ends of a link then fit one number, and the build is a single
//! pass of dealing, without a sort: within a tile the order does not matter. It is that of the input
//! all the same, so that the sums do not depend on the number of threads.

use rayon::prelude::*;

use super::array::Array;
use super::graph::{Part, shares};
use super::iterate::{Score, Share, Sums};

/// A node's place in its block, in bits: 64 KiB of sums in `f32`.
const TARGET_BITS: u32 = 14;
/// A node's place in its segment, in the other bits of a link: 1 MiB of contributions in `f32`.
const SOURCE_BITS: u32 = 32 - TARGET_BITS;
const BLOCK: usize = 1 << TARGET_BITS;
const SEGMENT: usize = 1 << SOURCE_BITS;

/// From how many nodes on rows wait for memory.
const LEAST_NODES: u32 = 1 << 19;
/// From how many links a node on a turn, which goes through all nodes in their order, is worth that.
const LEAST_LINKS_PER_NODE: usize = 2;
/// The most tiles that are dealt to at once, 16 million nodes: beyond, a turn is none the faster.
const MOST_TILES: usize = 1 << 16;
/// How many edges are looked at to see whether there are favourites.
const SAMPLE: usize = 1 << 14;

/// The links, tile after tile: those of the first block, by segment, then those of the second.
#[derive(Debug)]
pub(super) struct Tiles {
    /// Of each link where in its block the target and where in its segment the source is.
    pub(super) links: Array<u32>,
    /// Where each tile begins, and where the last one ends.
    pub(super) starts: Vec<usize>,
    segments: usize,
}

impl Tiles {
    /// Whether this is the better way to keep a graph. Costs no more than a look.
    pub(super) fn suit(nodes: u32, pieces: &[&[[u32; 2]]]) -> bool {
        let edges = pieces.iter().map(|piece| piece.len()).sum();
        Self::are_worth(nodes, edges) && (0..2).all(|end| !has_favourites(pieces, edges, end))
    }

    /// Whether that is so of an even graph of this size.
    fn are_worth(nodes: u32, links: usize) -> bool {
        nodes >= LEAST_NODES
            && links >= nodes as usize * LEAST_LINKS_PER_NODE
            && Grid::new(nodes).tiles() <= MOST_TILES
    }

    /// How many links leave each node. A segment's counts lie in the cache, which those of all nodes
    /// would not.
    pub(super) fn out_degrees(&self, nodes: u32) -> Array<u32> {
        let mut out_degrees = Array::<u32>::zeroed(nodes as usize);
        out_degrees.par_chunks_mut(SEGMENT).enumerate().for_each(|(segment, degrees)| {
            for bounds in self.starts.windows(2).skip(segment).step_by(self.segments) {
                for link in &self.links[bounds[0]..bounds[1]] {
                    degrees[*link as usize % SEGMENT] += 1;
                }
            }
        });
        out_degrees
    }

    /// One turn: new ranks, and in `next` what they contribute.
    pub(super) fn turn<T: Score>(
        &self,
        ranks: &mut [T],
        next: &mut [T],
        inverse: &[T],
        contributed: &[T],
        damping: T,
        share: &Share<'_, T>,
    ) -> Sums {
        // What one thread does at a time: it goes through all contributions once for so many rows, and
        // their sums have to stay in the cache beside a segment.
        let pieces = 2 * rayon::current_num_threads();
        let rows = ranks.len().div_ceil(pieces).next_multiple_of(BLOCK).min(SEGMENT);
        let (segments, _) = contributed.as_chunks::<SEGMENT>();
        let work = ranks.par_chunks_mut(rows).zip(next.par_chunks_mut(rows));
        work.zip(inverse.par_chunks(rows))
            .enumerate()
            .map(|(piece, ((ranks, next), inverse))| {
                let first = piece * rows;
                next.fill(T::zeroed());
                let (blocks, _) = next.as_chunks_mut::<BLOCK>();
                let blocks = &mut blocks[..ranks.len().div_ceil(BLOCK)];
                for (segment, contributed) in segments.iter().enumerate() {
                    for (block, sums) in blocks.iter_mut().enumerate() {
                        let tile = (first / BLOCK + block) * self.segments + segment;
                        let links = &self.links[self.starts[tile]..self.starts[tile + 1]];
                        for link in links {
                            sums[(link >> SOURCE_BITS) as usize] +=
                                contributed[*link as usize % SEGMENT];
                        }
                    }
                }
                let rows = ranks.iter_mut().zip(next).zip(inverse).enumerate();
                match share {
                    Share::Even(even) => settle(rows, |sum, _| *even + damping * sum),
                    Share::Seeded(given, weights) => {
                        let weights = &weights[first..];
                        settle(rows, |sum, row| *given * weights[row] + damping * sum)
                    }
                }
            })
            .sum()
    }
}

/// Gives each row its new rank, and adds up by how much they moved and what dangles.
#[inline(always)]
fn settle<'a, T: Score>(
    rows: impl Iterator<Item = (usize, ((&'a mut T, &'a mut T), &'a T))>,
    rank: impl Fn(T, usize) -> T,
) -> Sums {
    let mut sums = Sums::default();
    for (row, ((old, next), inverse)) in rows {
        let new = rank(*next, row);
        sums.change += (new - *old).to_f64().abs();
        if *inverse == T::zeroed() {
            sums.dangling += new.to_f64();
        }
        *old = new;
        *next = new * *inverse;
    }
    sums
}

/// How many contributions there are beside a graph of so many nodes: whole segments.
pub(super) fn table(nodes: usize) -> usize {
    nodes.next_multiple_of(SEGMENT)
}

/// Whether nodes occur more often at this end of a sample of the edges than if any of a quarter of a
/// million was as likely as any other.
fn has_favourites(pieces: &[&[[u32; 2]]], edges: usize, end: usize) -> bool {
    let step = edges / SAMPLE + 1;
    let mut sample: Vec<u32> = Vec::with_capacity(SAMPLE);
    let mut turn = 0_u64;
    for stretch in pieces.iter().flat_map(|piece| piece.chunks(step)) {
        // One of each stretch, by the golden ratio: evenly, and in time with nothing that returns in the
        // edges. A stretch that a piece cuts short counts by what it has.
        turn = turn.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let at = ((u128::from(turn) * step as u128) >> 64) as usize;
        sample.extend(stretch.get(at).map(|pair| pair[end]));
    }
    let taken = sample.len();
    sample.sort_unstable();
    sample.dedup();
    taken - sample.len() > SAMPLE / 32
}

/// Blocks of targets by segments of sources.
pub(super) struct Grid {
    nodes: u32,
    blocks: usize,
    segments: usize,
}

impl Grid {
    pub(super) fn new(nodes: u32) -> Self {
        let (blocks, segments) =
            ((nodes as usize).div_ceil(BLOCK), (nodes as usize).div_ceil(SEGMENT));
        Self { nodes, blocks, segments }
    }

    /// How many tiles there are.
    pub(super) fn tiles(&self) -> usize {
        self.blocks * self.segments
    }

    /// In which one a link lies.
    pub(super) fn tile(&self, [source, target]: [u32; 2]) -> usize {
        (target >> TARGET_BITS) as usize * self.segments + (source >> SOURCE_BITS) as usize
    }

    /// How many edges of a part go to each tile; nothing if an end is no node.
    pub(super) fn counts(&self, part: &Part<'_>) -> Option<Vec<usize>> {
        let mut counts = vec![0; self.tiles()];
        for pair in part.iter().copied().flatten() {
            if pair[0].max(pair[1]) >= self.nodes {
                return None;
            }
            counts[self.tile(*pair)] += 1;
        }
        Some(counts)
    }

    /// Puts the edges into their tiles, in their order.
    pub(super) fn deal(&self, parts: &[Part<'_>], counts: &[Vec<usize>]) -> Tiles {
        let mut starts = vec![0];
        for tile in 0..self.tiles() {
            let links: usize = counts.iter().map(|part| part[tile]).sum();
            starts.push(starts[tile] + links);
        }
        let mut links = Array::<u32>::zeroed(starts[self.tiles()]);
        let mut places = shares(&mut links, counts);
        parts.par_iter().zip(places.par_iter_mut()).for_each(|(part, places)| {
            for &[source, target] in part.iter().copied().flatten() {
                // The counts made room for exactly these.
                if let Some(place) = places[self.tile([source, target])].next() {
                    *place = target << SOURCE_BITS | (source & (SEGMENT as u32 - 1));
                }
            }
        });
        Tiles { links, starts, segments: self.segments }
    }
}

#[cfg(test)]
mod tests {
    use std::ops::ControlFlow;

    use super::super::{Graph, Query, generate};
    use super::*;

    fn distance(left: &[f64], right: &[f64]) -> f64 {
        left.iter().zip(right).map(|(a, b)| (a - b).abs()).sum()
    }

    #[test]
    fn a_graph_in_tiles_ranks_as_one_in_rows_for_any_number_of_threads() {
        // A segment and a little, of which some nodes dangle and the last are not linked at all.
        let nodes = SEGMENT as u32 + 100;
        let mut edges = generate::uniform(nodes / 8, 50_000, 5);
        edges.iter_mut().flatten().for_each(|end| *end *= 7);
        // And some from the second segment.
        edges.extend((0..90).map(|node| [nodes - 100 + node, node * 1000]));
        let seeds = vec![(0, 1.0), (nodes - 1, 2.0)];
        // What one turn does is what a hundred do.
        let query = Query { tolerance: 0.0, max_iterations: 2, ..Query::default() };
        for query in [query.clone(), Query { seeds, ..query }] {
            let ranks = |graph: &Graph| {
                graph.rank::<f64>(&query, &mut |_| ControlFlow::Continue(())).expect("a query")
            };
            let rows = ranks(&Graph::in_rows(nodes, vec![&edges]).expect("a graph"));
            for threads in [1, 3] {
                let pool =
                    rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads");
                let tiles = pool.install(|| {
                    let graph = Graph::in_tiles(nodes, vec![&edges]).expect("a graph");
                    assert_eq!((graph.nodes(), graph.links()), (nodes as usize, edges.len()));
                    ranks(&graph)
                });
                let distance = distance(&tiles.scores, &rows.scores);
                assert!(distance < 1e-10, "the order of the sums alone does not make {distance}");
                assert!((tiles.scores.iter().sum::<f64>() - 1.0).abs() < 1e-10);
            }
        }
    }

    #[test]
    fn large_graphs_lie_in_tiles_unless_they_have_favourites() {
        let nodes = LEAST_NODES;
        let even = generate::uniform(nodes, nodes as usize * LEAST_LINKS_PER_NODE, 3);
        assert!(Tiles::suit(nodes, &[&even]));
        assert!(!Tiles::suit(nodes - 1, &[&even]), "rows of few nodes lie in the cache");
        assert!(!Tiles::suit(nodes, &[&even[1..]]), "nodes of few links are not worth it");
        assert!(!Tiles::suit(nodes, &[&generate::kronecker(19, 2, 3)]));
        // One node to which one link in so many leads, or from which it comes, in however many pieces.
        for (end, every) in [(0, 5), (1, 10), (0, 13), (1, 16)] {
            let mut edges = even.clone();
            edges.iter_mut().step_by(every).for_each(|pair| pair[end] = 77);
            assert!(!Tiles::suit(nodes, &[&edges]), "{every}");
            let pieces: Vec<&[[u32; 2]]> = edges.chunks(every).collect();
            assert!(!Tiles::suit(nodes, &pieces), "{every}, in pieces");
        }
        let pieces: Vec<&[[u32; 2]]> = even.chunks(7).collect();
        assert!(Tiles::suit(nodes, &pieces));
    }

    #[test]
    fn tiles_are_worth_it_up_to_as_many_as_can_be_dealt_to() {
        let nodes = 1 << 24;
        let links = nodes as usize * LEAST_LINKS_PER_NODE;
        assert_eq!(Grid::new(nodes).tiles(), MOST_TILES);
        assert!(Tiles::are_worth(nodes, links));
        assert!(!Tiles::are_worth(nodes, links - 1));
        assert!(!Tiles::are_worth(nodes + 1, 2 * links));
    }

    #[test]
    fn an_end_that_is_no_node_is_named_by_its_edge() {
        let error = Graph::in_tiles(3, vec![[[0, 1], [1, 2]], [[3, 0], [9, 9]]]).map(|_| ());
        let expected = super::super::GraphError::UnknownNode { edge: 2, node: 3, nodes: 3 };
        assert_eq!(error, Err(expected));
    }
}
