"""PageRank: to which nodes of a graph do the links lead?

``pagerank(edges)`` ranks once; a `Graph` is built once and ranked as often as one likes, with other
seeds or another damping. The work is done by the Rust core, on all cores, without the GIL.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from pydotcompute._native import PageRankGraph

__all__ = ["Graph", "PageRank", "pagerank"]

# The finest tolerance that float32 can reach.
_SINGLE_TOLERANCE = 1e-6


class _SparseMatrix(Protocol):
    """A matrix of SciPy."""

    shape: tuple[int, ...]

    def tocoo(self) -> Any: ...


class _Table(Protocol):
    """A table of pyarrow."""

    column_names: list[str]

    def column(self, i: Any) -> Any: ...


Edges = npt.ArrayLike | _SparseMatrix | _Table

#: Names of columns that hold an edge's ends.
_COLUMNS = (("source", "target"), ("from", "to"), ("src", "dst"))
Seeds = Mapping[int, float] | Iterable[int]


class PageRank(NamedTuple):
    """The ranks of a graph, and how they were found.

    Attributes
    ----------
    ranks
        Shape (nodes,), ``float32`` or ``float64``; they sum to 1.
    iterations
        Turns taken.
    change
        By how much the last turn moved the ranks, summed over all nodes.
    converged
        Whether that is below the tolerance.
    """

    ranks: npt.NDArray[Any]
    iterations: int
    change: float
    converged: bool


class Graph:
    """A directed graph, ready to be ranked.

    Parameters
    ----------
    edges
        Shape (m, 2), whole numbers: source and target of each edge. Or a square SciPy sparse
        matrix: an entry in row i, column j is an edge from i to j. Or a table of pyarrow: its
        columns ``source`` and ``target``, ``from`` and ``to``, ``src`` and ``dst``, or else the
        first two. Self loops and repeated edges count as they are given; values of entries and
        other columns are not used.
    nodes
        The nodes are 0 to ``nodes - 1``. By default one more than the largest number that occurs,
        or the side of the matrix.
    threads
        Threads to work on; by default one a core.

    Raises
    ------
    TypeError
        If the edges are not whole numbers.
    ValueError
        If they are not pairs, are negative, or name a node beyond the last.

    Notes
    -----
    Holds about 4 bytes an edge and 8 a node. Any number of threads may use one graph. An array of
    ``int32`` or ``uint32`` is read where it lies, without the GIL: no other thread may write to it
    while the graph is built.

    Examples
    --------
    >>> from pydotcompute.workloads import Graph
    >>> graph = Graph([[0, 1], [1, 2], [2, 0], [3, 0]])
    >>> graph.nodes, graph.links
    (4, 4)
    >>> result = graph.rank(tolerance=1e-10)
    >>> int(result.ranks.argmax()), round(float(result.ranks.sum()), 9)
    (0, 1.0)
    """

    def __init__(
        self, edges: Edges, *, nodes: int | None = None, threads: int | None = None
    ) -> None:
        pairs, found = _pairs(edges)
        if nodes is None:
            nodes = found
        elif not 0 <= nodes < 2**32:
            raise ValueError(f"nodes is {nodes}: it has to be at least 0 and below 2**32")
        if threads is not None and threads < 1:
            raise ValueError(f"threads is {threads}: it has to be at least 1")
        self._graph = PageRankGraph(nodes, pairs, threads or 0)

    @property
    def nodes(self) -> int:
        """How many nodes there are."""
        return self._graph.nodes

    @property
    def links(self) -> int:
        """How many links there are."""
        return self._graph.links

    @property
    def nbytes(self) -> int:
        """The memory that the graph holds, in bytes."""
        return self._graph.nbytes

    def rank(
        self,
        *,
        damping: float = 0.85,
        tolerance: float = 1e-7,
        max_iterations: int = 1000,
        seeds: Seeds | None = None,
        dtype: npt.DTypeLike | None = None,
    ) -> PageRank:
        """Rank the nodes.

        Parameters
        ----------
        damping
            The share of rank that follows the links, at least 0 and below 1.
        tolerance
            The ranks are final when a turn moves them by less, summed over all nodes; 0: never,
            all turns are taken.
        max_iterations
            Turns to take at most.
        seeds
            Nodes that get the share of rank that does not follow the links, alike or by weight. By
            default all nodes get it alike.
        dtype
            ``float32`` or ``float64``; by default the first if the tolerance is 1e-6 or more.

        Raises
        ------
        TypeError
            For another dtype.
        ValueError
            If an argument makes no sense; the message says which.
        KeyboardInterrupt
            If Ctrl-C comes on the main thread.
        """
        single = tolerance >= _SINGLE_TOLERANCE
        chosen = np.dtype((np.float32 if single else np.float64) if dtype is None else dtype)
        if chosen not in (np.float32, np.float64):
            raise TypeError(f"dtype is {chosen}: it has to be float32 or float64")
        if not 0 <= max_iterations < 2**32:
            raise ValueError(f"max_iterations is {max_iterations}: it has to be 0 to 2**32 - 1")
        weights = _weights(seeds, self.nodes)
        ranks = np.empty(self.nodes, chosen)
        run = self._graph.rank_f32 if chosen == np.float32 else self._graph.rank_f64
        return PageRank(ranks, *run(ranks, (damping, tolerance, max_iterations, weights)))


def pagerank(
    edges: Edges,
    *,
    nodes: int | None = None,
    damping: float = 0.85,
    tolerance: float = 1e-7,
    max_iterations: int = 1000,
    seeds: Seeds | None = None,
    dtype: npt.DTypeLike | None = None,
    threads: int | None = None,
) -> PageRank:
    """Rank the nodes of a graph once. See `Graph` and `Graph.rank` for the arguments and errors.

    Examples
    --------
    >>> from pydotcompute.workloads import pagerank
    >>> result = pagerank([[1, 0], [2, 0], [0, 2]], tolerance=1e-9)
    >>> result.converged, [int(node) for node in result.ranks.argsort()[::-1]]
    (True, [0, 2, 1])
    """
    graph = Graph(edges, nodes=nodes, threads=threads)
    return graph.rank(
        damping=damping,
        tolerance=tolerance,
        max_iterations=max_iterations,
        seeds=seeds,
        dtype=dtype,
    )


def _pairs(edges: Any) -> tuple[npt.NDArray[Any], int | None]:
    """The edges as the core takes them, and how many nodes there are where that is said beside."""
    if hasattr(edges, "tocoo"):
        matrix = edges.tocoo()
        if len(matrix.shape) != 2 or matrix.shape[0] != matrix.shape[1]:
            raise ValueError(f"the matrix is {matrix.shape}: that of a graph is square")
        return _whole(np.stack([matrix.row, matrix.col], axis=1)), int(matrix.shape[0])
    given = _columns(edges) if hasattr(edges, "column_names") else np.asarray(edges)
    if given.size == 0:
        return np.empty((0, 2), np.uint32), None
    if given.ndim != 2 or given.shape[1] != 2:
        raise ValueError(f"the edges have the shape {given.shape}: (m, 2) is expected")
    if given.dtype.kind not in "iu":
        raise TypeError(f"the edges are {given.dtype}: whole numbers are expected")
    return _whole(given), None


def _columns(table: Any) -> npt.NDArray[Any]:
    """The ends of the edges of a table."""
    names = {name.lower(): name for name in table.column_names}
    for pair in _COLUMNS:
        if all(end in names for end in pair):
            ends = [names[end] for end in pair]
            break
    else:
        ends = list(table.column_names[:2])
    if len(ends) != 2:
        raise ValueError(f"the table has the columns {table.column_names}: two are expected")
    columns = []
    for name in ends:
        column = table.column(name)
        if column.null_count:
            raise ValueError(f"column {name!r} has {column.null_count} nulls: an edge has two ends")
        columns.append(np.asarray(column))
        if columns[-1].dtype.kind not in "iu":
            raise TypeError(
                f"column {name!r} is {column.type}: whole numbers are expected (number names with "
                "anomaly.KeyTable)"
            )
    return np.stack(columns, axis=1)


def _whole(given: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The same numbers in a type that the core reads, where they lie if they can be."""
    for dtype in (np.int32, np.uint32, np.int64):
        if np.can_cast(given.dtype, dtype):
            return np.require(given, dtype, ["C", "A"])
    if (high := int(given.max(initial=0))) >= 2**32 - 1:
        raise ValueError(f"an edge names node {high}: they are 0 to 2**32 - 2")
    return np.require(given, np.uint32, ["C", "A"])


def _weights(seeds: Seeds | None, nodes: int) -> list[tuple[int, float]]:
    if seeds is None:
        return []
    items = seeds.items() if isinstance(seeds, Mapping) else ((node, 1.0) for node in seeds)
    weights = [(int(node), float(weight)) for node, weight in items]
    if not weights:
        raise ValueError("seeds is empty: leave it out to treat all nodes alike")
    for node, _ in weights:
        if not 0 <= node < nodes:
            raise ValueError(f"seed {node} is no node: they are 0 to {nodes} (exclusive)")
    return weights
