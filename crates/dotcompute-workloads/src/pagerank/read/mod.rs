//! Edges from files: lists of numbers, Matrix Market, CSV with names, NumPy, tables.
//!
//! Input is read in blocks that are cut at line ends and parsed in parallel while nothing but the
//! edges is kept, so that memory does not depend on the length of the text. A line that cannot be
//! read ends the reading with its number, since a graph that silently lacks edges ranks wrong;
//! [`Reader::skip_malformed`] counts such lines instead.

mod ids;
mod named;
mod npy;
mod numbers;
#[cfg(feature = "tables")]
mod table;

use std::io::{self, Read};
use std::ops::ControlFlow;
use std::sync::Arc;

use ids::Ids;

/// How many malformed lines are kept in full; further ones are only counted.
const MALFORMED_KEPT: usize = 10;

/// The text form of a graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Format {
    /// A line an edge: two whole numbers below 2^64 with blanks between, as in the SNAP collection.
    /// What follows them is ignored (weights, times), as are empty lines and lines that begin with
    /// `#` or `%`.
    EdgeList,
    /// Matrix Market coordinates: an entry in row i, column j is an edge from i to j, in both
    /// directions if the matrix is symmetric. Nodes count from 0 here, one less than in the file;
    /// values are ignored.
    MatrixMarket,
    /// Comma-separated names. Where the first line names columns (`source` and `target`, `from` and
    /// `to`, `src` and `dst`, in any case) these are used, else the first two.
    Csv,
    /// NumPy's file of an array of whole numbers, of shape (edges, 2). A malformed row is told as a
    /// line is, by its number from 1.
    Npy,
}

/// Reads edges. Options first, then [`read`](Self::read).
#[derive(Clone, Debug)]
pub struct Reader {
    format: Format,
    nodes: Option<u32>,
    skip_malformed: bool,
    columns: Option<[String; 2]>,
}

/// A graph as a list of edges, or as one in pieces: see [`Reader::read_pieces`].
#[derive(Clone, Debug)]
pub struct Edges<P = Vec<[u32; 2]>> {
    /// `[source, target]`, both below `nodes.count()`, in the order of the input.
    pub pairs: P,
    /// What the nodes are called.
    pub nodes: Nodes,
    /// How many lines were skipped as malformed.
    pub malformed: usize,
    /// The first of them.
    pub malformed_lines: Vec<Malformed>,
}

/// What the nodes `0..count` are called in the input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Nodes {
    /// By their own number: there are this many.
    Range(u32),
    /// By the ids that occur, ascending.
    Ids(Arc<[u64]>),
    /// By the names that occur, in the order of their first appearance.
    Names(Arc<[Box<str>]>),
}

/// A line that is no edge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Malformed {
    /// Its number, from 1.
    pub line: u64,
    /// What is wrong with it.
    pub reason: Reason,
}

/// What is wrong with a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Reason {
    /// Not two whole numbers.
    #[error("two whole numbers are expected")]
    NoNumbers,
    /// A number that no node can have.
    #[error("a node's number is below 2^64")]
    TooLarge,
    /// A number below 0.
    #[error("a node's number is not negative")]
    Negative,
    /// Node 0, where they count from 1.
    #[error("nodes count from 1 in this format")]
    Zero,
    /// Above the number of nodes.
    #[error("a node beyond the number of nodes")]
    Beyond,
    /// Fewer fields than the columns that are read.
    #[error("a field is missing")]
    NoField,
    /// Not UTF-8.
    #[error("a name is not UTF-8")]
    NotUtf8,
    /// A null where a node is expected.
    #[error("a null, and an edge has two ends")]
    Null,
}

/// How far the reading is.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    /// Bytes read.
    pub bytes: u64,
    /// Edges found.
    pub edges: usize,
}

/// Why there are no edges.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// The input failed.
    #[error("cannot read: {0}")]
    Io(#[from] io::Error),
    /// A line is no edge.
    #[error("line {}: {}", .0.line, .0.reason)]
    Malformed(Malformed),
    /// A file of Matrix Market or NumPy whose header cannot be used.
    #[error("the header: {0}")]
    Header(&'static str),
    /// A file of Matrix Market or NumPy that ends early or late.
    #[error("the header promises {promised} entries, and there are {found}")]
    Entries {
        /// In the header.
        promised: u64,
        /// In the file.
        found: u64,
    },
    /// A column that the first line does not name.
    #[error("no column is called {0:?}")]
    NoColumn(String),
    /// A table that cannot be read.
    #[cfg(feature = "tables")]
    #[error(transparent)]
    Table(#[from] crate::tables::TableError),
    /// A column of a table that holds no nodes, or other ones than the other column.
    #[cfg(feature = "tables")]
    #[error(
        "column {name:?} is {kind}: whole numbers or text are expected, in both columns the same"
    )]
    ColumnType {
        /// The column.
        name: String,
        /// What it is.
        kind: String,
    },
    /// More nodes than can be numbered.
    #[error("more than {max} nodes", max = u32::MAX)]
    TooManyNodes,
    /// Whoever watched said to stop.
    #[error("cancelled")]
    Cancelled,
}

impl Nodes {
    /// How many there are.
    #[must_use]
    pub fn count(&self) -> u32 {
        // The readers refuse more.
        match self {
            Self::Range(count) => *count,
            Self::Ids(ids) => ids.len() as u32,
            Self::Names(names) => names.len() as u32,
        }
    }

    /// What node `node` is called; its own number if it is beyond the last.
    #[must_use]
    pub fn name(&self, node: u32) -> String {
        let index = node as usize;
        match self {
            Self::Ids(ids) if index < ids.len() => ids[index].to_string(),
            Self::Names(names) if index < names.len() => names[index].to_string(),
            _ => node.to_string(),
        }
    }

    /// Which node is called so.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<u32> {
        let index = match self {
            Self::Range(count) => {
                let node: u32 = name.parse().ok()?;
                return (node < *count).then_some(node);
            }
            Self::Ids(ids) => ids.binary_search(&name.parse().ok()?).ok()?,
            Self::Names(names) => names.iter().position(|other| **other == *name)?,
        };
        u32::try_from(index).ok()
    }
}

impl Reader {
    /// A reader of this format that ends at the first malformed line.
    #[must_use]
    pub fn new(format: Format) -> Self {
        Self { format, nodes: None, skip_malformed: false, columns: None }
    }

    /// The nodes are `0..nodes`, whether an edge names them or not. Without it, a list's nodes are the
    /// ids that occur in it. Not for CSV; Matrix Market says it itself.
    #[must_use]
    pub fn nodes(mut self, nodes: u32) -> Self {
        self.nodes = Some(nodes);
        self
    }

    /// Counts malformed lines instead of ending at the first.
    #[must_use]
    pub fn skip_malformed(mut self, skip: bool) -> Self {
        self.skip_malformed = skip;
        self
    }

    /// The columns of a CSV that hold source and target; its first line has to name them.
    #[must_use]
    pub fn columns(mut self, source: impl Into<String>, target: impl Into<String>) -> Self {
        self.columns = Some([source.into(), target.into()]);
        self
    }

    /// Reads all edges of `input`, on the current rayon pool. `watch` is called after each block and
    /// can end it.
    ///
    /// # Errors
    ///
    /// See [`ReadError`]; nothing of what was read is kept.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::ops::ControlFlow;
    /// use dotcompute_workloads::pagerank::read::{Format, Reader};
    ///
    /// let text = "# a small graph\n10 20\n20 10\n20 7000000000\n";
    /// let edges = Reader::new(Format::EdgeList)
    ///     .read(text.as_bytes(), &mut |_| ControlFlow::Continue(()))?;
    /// assert_eq!(edges.pairs, [[0, 1], [1, 0], [1, 2]]);
    /// assert_eq!(edges.nodes.name(2), "7000000000");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn read(
        &self,
        input: impl Read,
        watch: &mut dyn FnMut(Progress) -> ControlFlow<()>,
    ) -> Result<Edges, ReadError> {
        match self.format {
            Format::EdgeList => self.edge_list(input, watch),
            Format::MatrixMarket => self.matrix_market(input, watch),
            Format::Csv => self.csv(input, watch),
            Format::Npy => self.npy(input, watch),
        }
    }

    /// [`read`](Self::read), with the edges in pieces where that spares a copy of them all: for
    /// [`Graph::build_pieces`](super::Graph::build_pieces).
    ///
    /// # Errors
    ///
    /// As [`read`](Self::read).
    ///
    /// # Examples
    ///
    /// ```
    /// use std::ops::ControlFlow;
    /// use dotcompute_workloads::pagerank::Graph;
    /// use dotcompute_workloads::pagerank::read::{Format, Reader};
    ///
    /// let edges = Reader::new(Format::EdgeList)
    ///     .read_pieces("0 1\n1 2\n".as_bytes(), &mut |_| ControlFlow::Continue(()))?;
    /// let graph = Graph::build_pieces(edges.nodes.count(), edges.pairs)?;
    /// assert_eq!((graph.nodes(), graph.links()), (3, 2));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn read_pieces(
        &self,
        input: impl Read,
        watch: &mut dyn FnMut(Progress) -> ControlFlow<()>,
    ) -> Result<Edges<Vec<Vec<[u32; 2]>>>, ReadError> {
        if let Format::EdgeList = self.format {
            return self.edge_list_in_pieces(input, watch);
        }
        Ok(self.read(input, watch)?.into_pieces())
    }

    /// Notes a line that is no edge, or makes it the end.
    fn malformed(&self, found: &mut Faults, malformed: Malformed) -> Result<(), ReadError> {
        if !self.skip_malformed {
            return Err(ReadError::Malformed(malformed));
        }
        found.count += 1;
        if found.lines.len() < MALFORMED_KEPT {
            found.lines.push(malformed);
        }
        Ok(())
    }
}

/// The malformed lines so far.
#[derive(Default)]
struct Faults {
    count: usize,
    lines: Vec<Malformed>,
}

impl<P> Edges<P> {
    fn new(pairs: P, nodes: Nodes, faults: Faults) -> Self {
        Self { pairs, nodes, malformed: faults.count, malformed_lines: faults.lines }
    }
}

impl Edges {
    /// The same as one piece.
    #[must_use]
    pub fn into_pieces(self) -> Edges<Vec<Vec<[u32; 2]>>> {
        let Self { pairs, nodes, malformed, malformed_lines } = self;
        Edges { pairs: vec![pairs], nodes, malformed, malformed_lines }
    }
}

fn go_on(flow: ControlFlow<()>) -> Result<(), ReadError> {
    if flow.is_break() { Err(ReadError::Cancelled) } else { Ok(()) }
}
