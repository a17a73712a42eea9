"""PageRank from Python, against a power iteration in NumPy."""

import os
import signal
import threading

import numpy as np
import pytest

from pydotcompute.workloads import Graph, PageRank, pagerank


def plain(edges, nodes, damping=0.85, teleport=None, turns=400):
    teleport = np.full(nodes, 1 / nodes) if teleport is None else teleport
    out = np.bincount(edges[:, 0], minlength=nodes).astype(float)
    ranks = teleport.copy()
    for _ in range(turns):
        share = np.divide(ranks, out, out=np.zeros(nodes), where=out > 0)
        linked = np.bincount(edges[:, 1], share[edges[:, 0]], minlength=nodes)
        ranks = damping * linked + (1 - damping + damping * ranks[out == 0].sum()) * teleport
    return ranks


@pytest.fixture(scope="module")
def edges():
    random = np.random.default_rng(7)
    return random.integers(0, 500, (3000, 2), dtype=np.int32)


@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.uint32, np.int64, np.uint64, ">i8"])
def test_ranks_equal_those_of_the_plain_iteration_for_every_kind_of_number(edges, dtype):
    result = pagerank(edges.astype(dtype), tolerance=1e-12)
    assert isinstance(result, PageRank)
    assert result.converged
    assert result.ranks.dtype == np.float64
    np.testing.assert_allclose(result.ranks, plain(edges, edges.max() + 1), atol=1e-11)
    assert np.array_equal(result.ranks, pagerank(edges, tolerance=1e-12).ranks)


def test_edges_may_be_lists_or_strided_and_are_left_alone(edges):
    expected = plain(edges, 500)
    wide = np.zeros((len(edges), 4), np.int64)
    wide[:, ::2] = edges
    np.testing.assert_allclose(pagerank(wide[:, ::2], nodes=500).ranks, expected, atol=1e-6)
    np.testing.assert_allclose(pagerank(edges.tolist(), nodes=500).ranks, expected, atol=1e-6)
    assert np.array_equal(wide[:, ::2], edges)


def test_a_table_of_pyarrow_is_a_graph(edges):
    pyarrow = pytest.importorskip("pyarrow")
    expected = plain(edges, 500)
    ends = [pyarrow.array(column) for column in edges.T]
    table = pyarrow.table({"weight": np.ones(len(edges)), "Target": ends[1], "source": ends[0]})
    np.testing.assert_allclose(pagerank(table, nodes=500).ranks, expected, atol=1e-6)
    first_two = pyarrow.table({"a": ends[0], "b": ends[1]})
    np.testing.assert_allclose(pagerank(first_two, nodes=500).ranks, expected, atol=1e-6)
    with pytest.raises(TypeError, match="column 'a' is string"):
        pagerank(pyarrow.table({"a": ["x"], "b": ["y"]}))
    with pytest.raises(ValueError, match="1 nulls"):
        pagerank(pyarrow.table({"a": [1, None], "b": [1, 2]}))
    with pytest.raises(ValueError, match="two are expected"):
        pagerank(pyarrow.table({"a": [1]}))


def test_a_file_of_parquet_is_a_graph(edges, tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pyarrow.table({"src": edges[:, 0], "weight": edges[:, 1], "dst": edges[:, 1]})
    parquet.write_table(table, tmp_path / "edges.parquet", row_group_size=1000)
    read = parquet.read_table(tmp_path / "edges.parquet", columns=["src", "dst"])
    np.testing.assert_allclose(pagerank(read, nodes=500).ranks, plain(edges, 500), atol=1e-6)


def test_a_sparse_matrix_is_a_graph(edges):
    class Coordinates:
        shape = (600, 600)
        row, col = edges[:, 0], edges[:, 1]

        def tocoo(self):
            return self

    ranks = pagerank(Coordinates(), tolerance=1e-12).ranks
    np.testing.assert_allclose(ranks, plain(edges, 600), atol=1e-11)
    Coordinates.shape = (600, 500)
    with pytest.raises(ValueError, match="square"):
        pagerank(Coordinates())


def test_seeds_take_the_share_that_does_not_follow_the_links(edges):
    graph = Graph(edges, nodes=500)
    teleport = np.zeros(500)
    teleport[[3, 9]] = 0.25, 0.75
    expected = plain(edges, 500, teleport=teleport)
    weighted = graph.rank(seeds={3: 1, 9: 3}, tolerance=1e-12).ranks
    np.testing.assert_allclose(weighted, expected, atol=1e-11)
    alike = graph.rank(seeds=np.array([3, 9]), tolerance=1e-12).ranks
    assert abs(alike.sum() - 1) < 1e-12
    assert not np.allclose(alike, weighted)


def test_the_tolerance_chooses_the_numbers_unless_they_are_named(edges):
    graph = Graph(edges)
    assert graph.rank(tolerance=1e-6).ranks.dtype == np.float32
    assert graph.rank(tolerance=1e-6, dtype="float64").ranks.dtype == np.float64
    with pytest.raises(ValueError, match="tolerance"):
        graph.rank(tolerance=1e-9, dtype=np.float32)
    with pytest.raises(TypeError, match="float16"):
        graph.rank(dtype=np.float16)


def test_the_limit_of_turns_is_kept_and_told(edges):
    result = pagerank(edges, max_iterations=3)
    assert (result.iterations, result.converged) == (3, False)
    assert result.change > 1e-7


def test_no_edges_and_no_nodes_are_a_graph():
    assert pagerank([]).ranks.shape == (0,)
    assert pagerank([], nodes=4).ranks.tolist() == [0.25] * 4
    graph = Graph(np.empty((0, 2), np.int64), nodes=2)
    assert (graph.nodes, graph.links) == (2, 0)
    assert graph.nbytes > 0


@pytest.mark.parametrize(
    ("edges", "options", "error", "told"),
    [
        ([[0, -1]], {}, ValueError, "node -1"),
        ([[0, 2**32]], {}, ValueError, str(2**32)),
        (np.array([[0, -1]], np.int32), {}, ValueError, "node -1"),
        (np.array([[0, -1]], np.int32), {"nodes": 3}, ValueError, "node -1"),
        (np.array([[-(2**31), 0]], np.int32), {"nodes": 2**32 - 1}, ValueError, f"node {-(2**31)}"),
        (np.array([[0, 2**32 - 1]], np.uint32), {}, ValueError, f"node {2**32 - 1}"),
        (np.array([[2**63, 0]], np.uint64), {}, ValueError, f"node {2**63}"),
        ([[0, 3]], {"nodes": 3}, ValueError, "node 3"),
        ([[0, 1, 2]], {}, ValueError, r"\(1, 3\)"),
        ([0, 1], {}, ValueError, r"\(2,\)"),
        ([[0.5, 1.0]], {}, TypeError, "float64"),
        ([[0, 1]], {"nodes": -1}, ValueError, "nodes is -1"),
        ([[0, 1]], {"threads": 0}, ValueError, "threads is 0"),
        ([[0, 1]], {"damping": 1.0}, ValueError, "damping is 1"),
        ([[0, 1]], {"tolerance": float("nan")}, ValueError, "tolerance is NaN"),
        ([[0, 1]], {"seeds": []}, ValueError, "empty"),
        ([[0, 1]], {"seeds": [2]}, ValueError, "seed 2"),
        ([[0, 1]], {"seeds": {0: -1.0}}, ValueError, "not negative"),
        ([[0, 1]], {"max_iterations": -1}, ValueError, "max_iterations is -1"),
    ],
)
def test_what_makes_no_sense_is_refused_with_the_reason(edges, options, error, told):
    with pytest.raises(error, match=told):
        pagerank(edges, **options)


def test_ctrl_c_ends_a_long_ranking(edges):
    graph = Graph(np.array([[0, 1], [1, 0]]), threads=1)
    timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        graph.rank(tolerance=0, max_iterations=2**32 - 1)
    timer.join()
    assert graph.rank().converged, "the graph is as good as before"
