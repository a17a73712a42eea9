//! The ranking as a ring kernel: the graph stays, queries and changes come as messages.

use std::collections::HashMap;
use std::ops::ControlFlow;

use dotcompute::{BoxError, Handler, HandlerContext, Message};

use super::{Graph, GraphError, Query, QueryError, Ranks, Score};

/// What the kernel is asked.
#[derive(Clone, Debug)]
pub enum Request {
    /// Rank the nodes.
    Rank(Query),
    /// Add these edges, `[source, target]`.
    Add(Vec<[u32; 2]>),
    /// Take these edges away, one for each time that it is named. What is not there is not missed.
    Remove(Vec<[u32; 2]>),
}

/// What it answers; one answer a request.
#[derive(Clone, Debug)]
pub enum Answer<T> {
    /// To [`Request::Rank`].
    Ranked(Ranks<T>),
    /// To a change: how many links the graph now has.
    Changed {
        /// Links after the change.
        links: usize,
    },
    /// The request makes no sense; nothing has changed.
    Refused(Refusal),
}

/// Why a request was refused.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// A query that cannot be answered.
    #[error(transparent)]
    Query(#[from] QueryError),
    /// Edges that are no graph.
    #[error(transparent)]
    Graph(#[from] GraphError),
}

impl Message for Request {
    const TYPE_NAME: &'static str = "PageRankRequest";

    fn payload_bytes(&self) -> usize {
        let heap = match self {
            Self::Rank(query) => query.seeds.capacity() * size_of::<(u32, f64)>(),
            Self::Add(edges) | Self::Remove(edges) => edges.capacity() * size_of::<[u32; 2]>(),
        };
        size_of_val(self) + heap
    }
}

impl<T: Score> Message for Answer<T> {
    const TYPE_NAME: &'static str = "PageRankAnswer";

    fn payload_bytes(&self) -> usize {
        let heap = match self {
            Self::Ranked(ranks) => ranks.scores.capacity() * size_of::<T>(),
            Self::Changed { .. } | Self::Refused(_) => 0,
        };
        size_of_val(self) + heap
    }
}

/// A graph that stays in a kernel. A change is noted at once and costs its size; the graph is built
/// anew, once, when the next query comes, on the global rayon pool. Keeps 12 bytes an edge.
///
/// ```
/// use dotcompute::Runtime;
/// use dotcompute_workloads::pagerank::{Answer, Query, Request, Resident};
///
/// let runtime = Runtime::builder().build();
/// let kernel = runtime
///     .kernel("pagerank")
///     .executor("thread")
///     .launch_handler(|| Resident::<f64>::new(3, vec![[0, 1], [1, 2], [2, 0]]))?;
/// kernel.activate()?;
/// kernel.ask_blocking(Request::Add(vec![[0, 2]]), None)?;
/// let answer = kernel.ask_blocking(Request::Rank(Query::default()), None)?;
/// let Answer::Ranked(ranks) = answer.message else { panic!("it ranks") };
/// assert!(ranks.scores[2] > ranks.scores[1]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Resident<T> {
    nodes: u32,
    edges: Vec<[u32; 2]>,
    /// Of `edges`; none since they last changed.
    graph: Option<Graph>,
    score: std::marker::PhantomData<fn() -> T>,
}

impl<T: Score> Resident<T> {
    /// The graph of these edges. That they name nodes is looked at with the first query.
    #[must_use]
    pub fn new(nodes: u32, edges: Vec<[u32; 2]>) -> Self {
        Self { nodes, edges, graph: None, score: std::marker::PhantomData }
    }

    fn answer(&mut self, request: &Request) -> Result<Answer<T>, Refusal> {
        match request {
            Request::Rank(query) => {
                let graph = match self.graph.take() {
                    Some(graph) => graph,
                    None => Graph::build(self.nodes, &self.edges)?,
                };
                let ranks = graph.rank(query, &mut |_| ControlFlow::Continue(()));
                self.graph = Some(graph);
                return Ok(Answer::Ranked(ranks?));
            }
            Request::Add(added) => {
                let no_node =
                    |pair: &[u32; 2]| pair.iter().find(|end| **end >= self.nodes).copied();
                if let Some((edge, node)) =
                    added.iter().enumerate().find_map(|(edge, pair)| Some((edge, no_node(pair)?)))
                {
                    return Err(GraphError::UnknownNode { edge, node, nodes: self.nodes }.into());
                }
                self.edges.extend_from_slice(added);
            }
            Request::Remove(removed) => {
                let mut left: HashMap<[u32; 2], usize> = HashMap::new();
                removed.iter().for_each(|pair| *left.entry(*pair).or_default() += 1);
                self.edges.retain(|pair| match left.get_mut(pair) {
                    Some(count) if *count > 0 => {
                        *count -= 1;
                        false
                    }
                    _ => true,
                });
            }
        }
        self.graph = None;
        Ok(Answer::Changed { links: self.edges.len() })
    }
}

impl<T: Score> Handler for Resident<T> {
    type In = Request;
    type Out = Answer<T>;

    fn handle(
        &mut self,
        request: &Request,
        _: &mut HandlerContext<Answer<T>>,
    ) -> Result<Option<Answer<T>>, BoxError> {
        Ok(Some(self.answer(request).unwrap_or_else(Answer::Refused)))
    }
}
