//! The graph as the iterations want it: for each node the nodes that link to it, nodes of equal
//! in-degree side by side. A large graph without favourites is kept otherwise: `tiles.rs`.
//!
//! Rows (a node's incoming links) lie in the order of falling in-degree: first those of the nodes that
//! link on, then those of the others, which are called dangling. Within one in-degree the number of
//! turns of the inner loop is a constant, so the mispredicted branch at the end of each row, which is
//! what limits graphs of low degree, is gone. The nodes that many link to, whose contributions
//! everyone gathers, lie side by side; what dangles is never gathered, and lies apart.
//!
//! The build is a counting sort in two passes, edges first dealt into buckets of nodes small enough
//! for the cache and then sorted inside each, and a third that puts the rows into their order. All
//! are parallel, and the graph does not depend on the number of threads.

use std::ops::Range;

use rayon::prelude::*;

use super::array::Array;
use super::tiles::{Grid, Tiles};

/// Rows of more links than this are summed by a loop over their length.
const SHORT: usize = 16;
/// Rows of more links than this are ordered by comparing them, shorter ones by counting.
const COUNTED: usize = 4095;
/// About how many links one piece of parallel work has: far above the cost of handing it out.
const LINKS_PER_BLOCK: usize = 1 << 16;
/// The same for work on nodes.
const NODES_PER_PIECE: usize = 1 << 14;
/// Buckets of the first pass: their write positions have to stay in the first-level cache.
const MAX_BUCKETS: usize = 256;

/// A directed graph, ready to be ranked: nodes `0..nodes`, each link once for each time it was given.
///
/// Self loops are links like others. Takes 4 bytes a link and 8 a node.
#[derive(Debug)]
pub struct Graph {
    /// Of each row's node: how many links leave it.
    pub(super) out_degrees: Array<u32>,
    pub(super) layout: Layout,
}

/// How the links lie.
#[derive(Debug)]
pub(super) enum Layout {
    /// A node's links side by side.
    Rows(Rows),
    /// The links between the same two ranges of nodes side by side. Row i is node i.
    Tiles(Tiles),
}

/// The links, row after row.
#[derive(Debug)]
pub(super) struct Rows {
    /// Where each row's links come from, as rows, row after row.
    pub(super) sources: Array<u32>,
    /// Where each long row begins in `sources`; after the last of those that lie side by side, where
    /// that one ends.
    pub(super) long_starts: Vec<usize>,
    /// The rows, cut into pieces of like work.
    pub(super) blocks: Vec<Block>,
    /// Which node a row is.
    pub(super) node_of: Array<u32>,
    /// How many rows are of nodes that link on; they come first.
    pub(super) linking: usize,
}

/// Consecutive rows that are worked on as one.
#[derive(Clone, Debug)]
pub(super) struct Block {
    pub(super) rows: Range<usize>,
    /// The links of these rows in `sources`.
    pub(super) links: Range<usize>,
    pub(super) length: Length,
}

/// How many links each row of a block has.
#[derive(Clone, Copy, Debug)]
pub(super) enum Length {
    /// The same.
    Even(usize),
    /// Differs; the first row begins at `long_starts[..]` here.
    Uneven(usize),
}

/// Why edges are no graph.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GraphError {
    /// An end of an edge is no node.
    #[error("edge {edge} names node {node}, and the nodes are 0 to {nodes} (exclusive)")]
    UnknownNode {
        /// Which edge, counted from 0.
        edge: usize,
        /// What it names.
        node: u32,
        /// How many nodes there are.
        nodes: u32,
    },
    /// More edges than are counted.
    #[error("{0} edges: at most {max} are possible", max = u32::MAX)]
    TooManyEdges(usize),
}

impl Graph {
    /// Builds the graph of `pairs`, each `[source, target]`, on the current rayon pool.
    ///
    /// An owned `pairs` is freed as soon as it has been read: the peak is 16 bytes an edge with it
    /// and 12 beside a borrowed one, and 20 bytes a node and 4 more for each thread.
    ///
    /// # Errors
    ///
    /// An end that is not below `nodes`, or more than `u32::MAX` edges.
    ///
    /// # Examples
    ///
    /// ```
    /// use dotcompute_workloads::pagerank::Graph;
    ///
    /// let graph = Graph::build(3, vec![[0, 1], [1, 2], [2, 1]])?;
    /// assert_eq!((graph.nodes(), graph.links()), (3, 3));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn build<P>(nodes: u32, pairs: P) -> Result<Self, GraphError>
    where
        P: AsRef<[[u32; 2]]>,
    {
        Self::build_pieces(nodes, vec![pairs])
    }

    /// [`build`](Self::build) of edges that lie in several pieces, one after the other.
    ///
    /// # Errors
    ///
    /// As [`build`](Self::build); an edge is named by its place in all of them.
    pub fn build_pieces<P>(nodes: u32, pieces: Vec<P>) -> Result<Self, GraphError>
    where
        P: AsRef<[[u32; 2]]>,
    {
        let slices: Vec<&[[u32; 2]]> = pieces.iter().map(AsRef::as_ref).collect();
        let edges = slices.iter().map(|piece| piece.len()).sum();
        if u32::try_from(edges).is_err() {
            return Err(GraphError::TooManyEdges(edges));
        }
        if Tiles::suit(nodes, &slices) {
            Self::in_tiles(nodes, pieces)
        } else {
            Self::in_rows(nodes, pieces)
        }
    }

    pub(super) fn in_rows<P>(nodes: u32, pieces: Vec<P>) -> Result<Self, GraphError>
    where
        P: AsRef<[[u32; 2]]>,
    {
        let parts = parts(pieces.iter().map(AsRef::as_ref), nodes);
        let edges = parts.iter().flatten().map(|piece| piece.len()).sum();
        let buckets = Buckets::new(nodes, edges);
        let counts = count_parts(&parts, nodes, |part| buckets.counts(part))?;
        let mut dealt = Array::<[u32; 2]>::zeroed(edges);
        buckets.deal(&parts, &counts, &mut dealt);
        drop(parts);
        drop(pieces);
        let by_node = buckets.sort(&counts, dealt);
        let order = Order::new(&by_node.in_degrees, &out_degrees(counts, nodes));
        Ok(order.arrange(&by_node))
    }

    pub(super) fn in_tiles<P>(nodes: u32, pieces: Vec<P>) -> Result<Self, GraphError>
    where
        P: AsRef<[[u32; 2]]>,
    {
        let parts = parts(pieces.iter().map(AsRef::as_ref), nodes);
        let grid = Grid::new(nodes);
        let counts = count_parts(&parts, nodes, |part| grid.counts(part))?;
        let tiles = grid.deal(&parts, &counts);
        drop(parts);
        drop(pieces);
        let out_degrees = tiles.out_degrees(nodes);
        Ok(Self { out_degrees, layout: Layout::Tiles(tiles) })
    }

    /// How many nodes the graph has.
    #[must_use]
    pub fn nodes(&self) -> usize {
        self.out_degrees.len()
    }

    /// How many links the graph has.
    #[must_use]
    pub fn links(&self) -> usize {
        match &self.layout {
            Layout::Rows(rows) => rows.sources.len(),
            Layout::Tiles(tiles) => tiles.links.len(),
        }
    }

    /// The memory that the graph holds, in bytes.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        self.out_degrees.memory_bytes()
            + match &self.layout {
                Layout::Rows(rows) => {
                    rows.sources.memory_bytes()
                        + rows.node_of.memory_bytes()
                        + rows.long_starts.len() * size_of::<usize>()
                        + rows.blocks.len() * size_of::<Block>()
                }
                Layout::Tiles(tiles) => {
                    tiles.links.memory_bytes() + tiles.starts.len() * size_of::<usize>()
                }
            }
    }
}

/// What one thread counts and deals: slices of the edges, one after the other.
pub(super) type Part<'a> = Vec<&'a [[u32; 2]]>;

/// Cuts the edges into parts. Each has counts of its own for every node: more parts than threads, or than
/// the edges are worth, would cost more than they win.
pub(super) fn parts<'a>(
    pieces: impl Iterator<Item = &'a [[u32; 2]]> + Clone,
    nodes: u32,
) -> Vec<Part<'a>> {
    let edges: usize = pieces.clone().map(<[_]>::len).sum();
    let worth = 1 + edges / (nodes as usize + LINKS_PER_BLOCK);
    let count = rayon::current_num_threads().min(worth);
    let size = edges.div_ceil(count).max(1);
    let mut parts = vec![Vec::new()];
    let mut room = size;
    for mut piece in pieces {
        while !piece.is_empty() {
            if room == 0 {
                parts.push(Vec::new());
                room = size;
            }
            let (own, rest) = piece.split_at(room.min(piece.len()));
            if let Some(part) = parts.last_mut() {
                part.push(own);
            }
            (room, piece) = (room - own.len(), rest);
        }
    }
    parts
}

/// Counts each part. `count` gives nothing where an end of an edge is no node.
pub(super) fn count_parts<C: Send>(
    parts: &[Part<'_>],
    nodes: u32,
    count: impl Fn(&Part<'_>) -> Option<C> + Send + Sync,
) -> Result<Vec<C>, GraphError> {
    parts.par_iter().map(count).collect::<Option<_>>().ok_or_else(|| {
        let is_none = |pair: &&[u32; 2]| pair.iter().any(|end| *end >= nodes);
        let mut edges = parts.iter().flatten().copied().flatten().enumerate();
        let found = edges.find(|(_, pair)| is_none(pair));
        let (edge, node) = found.map_or((0, nodes), |(edge, pair)| {
            (edge, if pair[0] >= nodes { pair[0] } else { pair[1] })
        });
        GraphError::UnknownNode { edge, node, nodes }
    })
}

/// What one part counted of its edges.
struct Counts {
    /// How many leave each node.
    out_degrees: Array<u32>,
    /// How many go to each bucket.
    buckets: Vec<usize>,
}

/// Adds up what the parts counted.
fn out_degrees(counts: Vec<Counts>, nodes: u32) -> Array<u32> {
    let mut counts = counts.into_iter().map(|part| part.out_degrees);
    let mut total = counts.next().unwrap_or_else(|| Array::zeroed(nodes as usize));
    for part in counts {
        total
            .par_iter_mut()
            .zip(&part[..])
            .with_min_len(NODES_PER_PIECE)
            .for_each(|(a, b)| *a += *b);
    }
    total
}

/// Ranges of nodes, as many to each as fit a power of two.
struct Buckets {
    nodes: usize,
    count: usize,
    shift: u32,
}

/// The links by target, as nodes.
struct ByNode {
    sources: Array<u32>,
    in_degrees: Vec<u32>,
}

impl Buckets {
    fn new(nodes: u32, links: usize) -> Self {
        let wanted = (links / (LINKS_PER_BLOCK / 2)).clamp(1, MAX_BUCKETS) as u32;
        let shift = nodes.div_ceil(wanted).max(1).next_power_of_two().trailing_zeros();
        let count = nodes.div_ceil(1 << shift) as usize;
        Self { nodes: nodes as usize, count, shift }
    }

    fn of(&self, node: u32) -> usize {
        (node >> self.shift) as usize
    }

    /// Counts the edges of a part; nothing if an end is no node.
    fn counts(&self, part: &Part<'_>) -> Option<Counts> {
        let mut out_degrees = Array::<u32>::zeroed(self.nodes);
        let mut buckets = vec![0; self.count];
        let degrees = &mut out_degrees[..];
        for &[source, target] in part.iter().copied().flatten() {
            *degrees.get_mut(source as usize)? += 1;
            if target as usize >= self.nodes {
                return None;
            }
            buckets[self.of(target)] += 1;
        }
        Some(Counts { out_degrees, buckets })
    }

    /// Puts the edges into their buckets, in their order.
    fn deal(&self, parts: &[Part<'_>], counts: &[Counts], dealt: &mut [[u32; 2]]) {
        let sizes: Vec<&[usize]> = counts.iter().map(|part| part.buckets.as_slice()).collect();
        let mut places = shares(dealt, &sizes);
        parts.par_iter().zip(places.par_iter_mut()).for_each(|(part, places)| {
            for pair in part.iter().copied().flatten() {
                // The counts made room for exactly these.
                if let Some(place) = places[self.of(pair[1])].next() {
                    *place = *pair;
                }
            }
        });
    }

    /// Sorts the edges of each bucket by target, in their order.
    fn sort(&self, counts: &[Counts], dealt: Array<[u32; 2]>) -> ByNode {
        let mut sources = Array::<u32>::zeroed(dealt.len());
        let mut in_degrees = vec![0_u32; self.nodes];
        let mut work = Vec::with_capacity(self.count);
        let (mut dealt_rest, mut sources_rest) = (&dealt[..], &mut sources[..]);
        for (bucket, degrees) in in_degrees.chunks_mut(1 << self.shift).enumerate() {
            let links = counts.iter().map(|part| part.buckets[bucket]).sum();
            let (own_dealt, other_dealt) = dealt_rest.split_at(links);
            let (own_sources, other_sources) = sources_rest.split_at_mut(links);
            (dealt_rest, sources_rest) = (other_dealt, other_sources);
            work.push((own_dealt, own_sources, degrees));
        }
        let mask = (1_u32 << self.shift) - 1;
        work.into_par_iter().for_each(|(dealt, sources, degrees)| {
            for [_, target] in dealt {
                degrees[(target & mask) as usize] += 1;
            }
            let mut next: Vec<u32> = starts(degrees);
            for [source, target] in dealt {
                let at = &mut next[(target & mask) as usize];
                sources[*at as usize] = *source;
                *at += 1;
            }
        });
        ByNode { sources, in_degrees }
    }
}

/// Where each run begins, if they lie one after the other.
fn starts(lengths: &[u32]) -> Vec<u32> {
    let mut next = 0;
    let start = |length: &u32| {
        let start = next;
        next += length;
        start
    };
    lengths.iter().map(start).collect()
}

/// Which node is which row.
struct Order<'a> {
    in_degrees: &'a [u32],
    node_of: Array<u32>,
    row_of: Array<u32>,
    out_degrees: Array<u32>,
    linking: usize,
}

impl<'a> Order<'a> {
    fn new(in_degrees: &'a [u32], out_degrees: &[u32]) -> Self {
        let nodes = in_degrees.len();
        let longest = in_degrees.par_iter().copied().max().unwrap_or(0) as usize;
        let counted = longest.min(COUNTED);
        // Falling in-degree, those over `COUNTED` together; and all that once more for what dangles.
        let classes = counted + 2;
        let class = |node: usize| {
            let rank = (counted + 1).saturating_sub(in_degrees[node] as usize);
            rank + if out_degrees[node] == 0 { classes } else { 0 }
        };
        let piece = nodes.div_ceil(rayon::current_num_threads()).max(NODES_PER_PIECE);
        let pieces: Vec<Range<usize>> =
            (0..nodes).step_by(piece).map(|start| start..nodes.min(start + piece)).collect();
        let counts: Vec<Vec<usize>> = pieces
            .par_iter()
            .map(|piece| {
                let mut count = vec![0; 2 * classes];
                piece.clone().for_each(|node| count[class(node)] += 1);
                count
            })
            .collect();
        let mut node_of = Array::<u32>::zeroed(nodes);
        shares(&mut node_of, &counts).par_iter_mut().zip(&pieces).for_each(|(rows, piece)| {
            for node in piece.clone() {
                // The counts made room for exactly these.
                if let Some(row) = rows[class(node)].next() {
                    *row = node as u32;
                }
            }
        });
        let size = |class: usize| counts.iter().map(|count| count[class]).sum::<usize>();
        let linking = (0..classes).map(size).sum();
        // Stable, so that the order of equals does not depend on the number of threads.
        let falling = |node: &u32| std::cmp::Reverse(in_degrees[*node as usize]);
        node_of[..size(0)].par_sort_by_key(falling);
        node_of[linking..linking + size(classes)].par_sort_by_key(falling);

        let mut by_row = Array::<u32>::zeroed(nodes);
        by_row
            .par_iter_mut()
            .zip(&node_of[..])
            .with_min_len(NODES_PER_PIECE)
            .for_each(|(out, node)| *out = out_degrees[*node as usize]);
        // Where each piece's nodes of each class are, by counting on from where they begin.
        let mut row_of = Array::<u32>::zeroed(nodes);
        let mut first_rows = vec![vec![0_u32; 2 * classes]; pieces.len()];
        let mut row = 0;
        for class in 0..2 * classes {
            for (first, count) in first_rows.iter_mut().zip(&counts) {
                first[class] = row;
                row += count[class] as u32;
            }
        }
        row_of.par_chunks_mut(piece).zip(&mut first_rows).zip(&pieces).for_each(
            |((rows, next), piece)| {
                for (row, node) in rows.iter_mut().zip(piece.clone()) {
                    let next = &mut next[class(node)];
                    *row = *next;
                    *next += 1;
                }
            },
        );
        for sorted in [0..size(0), linking..linking + size(classes)] {
            for row in sorted {
                row_of[node_of[row] as usize] = row as u32;
            }
        }
        Self { in_degrees, node_of, row_of, out_degrees: by_row, linking }
    }

    /// Puts the rows into their order, and cuts them into blocks.
    fn arrange(self, by_node: &ByNode) -> Graph {
        let (blocks, long_starts) = self.blocks();
        let mut sources = Array::<u32>::zeroed(by_node.sources.len());
        let mut work = Vec::with_capacity(blocks.len());
        let mut rest = &mut sources[..];
        for block in &blocks {
            let (own, other) = rest.split_at_mut(block.links.len());
            rest = other;
            work.push((block.rows.clone(), own));
        }
        let starts = starts(self.in_degrees);
        work.into_par_iter().for_each(|(rows, arranged)| {
            let mut rest = &mut arranged[..];
            for node in &self.node_of[rows] {
                let node = *node as usize;
                let links = starts[node] as usize..(starts[node] + self.in_degrees[node]) as usize;
                let (own, other) = rest.split_at_mut(links.len());
                rest = other;
                own.copy_from_slice(&by_node.sources[links]);
            }
            // A loop of its own, of look-ups that do not wait for one another.
            for source in arranged {
                *source = self.row_of[*source as usize];
            }
        });
        let Self { node_of, out_degrees, linking, .. } = self;
        let rows = Rows { sources, long_starts, blocks, node_of, linking };
        Graph { out_degrees, layout: Layout::Rows(rows) }
    }

    /// Cuts the rows into pieces of about equal work. A short row's length is its block's; the starts
    /// of the long ones come beside.
    fn blocks(&self) -> (Vec<Block>, Vec<usize>) {
        let length = |row: usize| self.in_degrees[self.node_of[row] as usize] as usize;
        let (mut blocks, mut long_starts) = (Vec::new(), Vec::new());
        let mut link = 0;
        for region in [0..self.linking, self.linking..self.node_of.len()] {
            let mut row = region.start;
            let mut was_long = false;
            while row < region.end {
                let start = row;
                let first_link = link;
                let first = length(row);
                let block_length = if first > SHORT {
                    let index = long_starts.len();
                    while row < region.end
                        && link - first_link < LINKS_PER_BLOCK
                        && length(row) > SHORT
                    {
                        long_starts.push(link);
                        link += length(row);
                        row += 1;
                    }
                    Length::Uneven(index)
                } else {
                    if was_long {
                        long_starts.push(link);
                    }
                    // Rows fall in length: the run of this one ends where a shorter one begins.
                    let most = region.end.min(start + LINKS_PER_BLOCK / (first + 1));
                    row = start + partition(start..most, |row| length(row) == first);
                    link += (row - start) * first;
                    Length::Even(first)
                };
                was_long = first > SHORT;
                blocks.push(Block {
                    rows: start..row,
                    links: first_link..link,
                    length: block_length,
                });
            }
            if was_long {
                long_starts.push(link);
            }
        }
        (blocks, long_starts)
    }
}

/// How many of the range hold, if those come first.
fn partition(range: Range<usize>, holds: impl Fn(usize) -> bool) -> usize {
    let (mut low, mut high) = (range.start, range.end);
    while low < high {
        let middle = low + (high - low) / 2;
        if holds(middle) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    low - range.start
}

/// Cuts `whole` by class and then by part: to each part, the place of its share of each class.
pub(super) fn shares<'a, T, C>(
    whole: &'a mut [T],
    counts: &[C],
) -> Vec<Vec<std::slice::IterMut<'a, T>>>
where
    C: AsRef<[usize]>,
{
    let classes = counts.first().map_or(0, |count| count.as_ref().len());
    let mut shares: Vec<Vec<_>> = counts.iter().map(|_| Vec::with_capacity(classes)).collect();
    let mut rest = whole;
    for class in 0..classes {
        for (count, share) in counts.iter().zip(&mut shares) {
            let (own, other) = rest.split_at_mut(count.as_ref()[class]);
            rest = other;
            share.push(own.iter_mut());
        }
    }
    shares
}
