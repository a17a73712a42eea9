"""The rows of `pydotcompute.bench` beside libraries of the field: graphs, streams and actors.

``python -P _bench_peers.py ROW LOOP SCALE`` measures one row, checks what it got, and prints the
nanoseconds per operation as JSON. Ours run with the package, each other one with an interpreter
that has its library; the graph and the log are the same in both.
"""

from __future__ import annotations

import asyncio
import ctypes
import importlib.util
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

import numpy as np

clock = time.perf_counter_ns
Figures = dict[str, float]

#: Turns over a graph that are timed together.
TURNS = 20
DAMPING = 0.85
#: Keys and events of the log, events of a batch.
KEYS = 10_000
BATCH = 1000
ALPHA, THRESHOLD, WARM_UP = 0.01, 4.0, 30.0


def library(name: str) -> Any:
    """A library that is there only with the interpreter that was chosen for it."""
    return importlib.import_module(name)


def pin(cores: int) -> None:
    """Stay on so many cores, where the system can tell."""
    if hasattr(os, "sched_setaffinity"):
        allowed = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, allowed[:cores])


# --- PageRank -------------------------------------------------------------------------------------


def graph(scale: int) -> tuple[int, Any]:
    """A million nodes (of a quick look: a tenth) with five links each, no loops, none twice."""
    nodes = 1_000_000 if scale >= 20_000 else 100_000
    random = np.random.default_rng(42)
    ends = random.integers(0, nodes, (5 * nodes, 2), dtype=np.int64)
    ends = ends[ends[:, 0] != ends[:, 1]]
    keys = np.unique(ends[:, 0] * nodes + ends[:, 1])
    random.shuffle(keys)
    return nodes, np.stack([keys // nodes, keys % nodes], axis=1).astype(np.int32)


def check_ranks(
    ranks: Any, nodes: int, edges: Any, turns: int, within: float = 1e-4, leaks: bool = False
) -> None:
    """Compare with the plain iteration, in which what dangles is shared out, or else lost."""
    out = np.bincount(edges[:, 0], minlength=nodes).astype(float)
    plain = np.full(nodes, 1.0 / nodes)
    for _ in range(turns):
        share = np.divide(plain, out, out=np.zeros(nodes), where=out > 0)
        linked = np.bincount(edges[:, 1], share[edges[:, 0]], minlength=nodes)
        shared = 0.0 if leaks else plain[out == 0].sum()
        plain = (1.0 - DAMPING + DAMPING * shared) / nodes + DAMPING * linked
    found = np.asarray(ranks, float)
    distance = float(np.abs(found / found.sum() - plain / plain.sum()).sum())
    assert distance < within, f"the ranks are off by {distance}"


def timed(work: Callable[[], Any], operations: int, rounds: int = 5) -> tuple[Figures, Any]:
    """The median over some rounds, after one to warm up; and what the last one gave."""
    given = work()
    times = []
    for _ in range(rounds):
        begun = clock()
        given = work()
        times.append(clock() - begun)
    return {"value": median(times) / operations}, given


def ours_turn(scale: int, threads: int) -> Figures:
    from pydotcompute.workloads import Graph

    nodes, edges = graph(scale)
    ready = Graph(edges, nodes=nodes, threads=threads)

    def turns(count: int) -> Any:
        return ready.rank(tolerance=0.0, max_iterations=count, dtype=np.float32)

    check_ranks(turns(TURNS).ranks, nodes, edges, TURNS)
    # What a call costs beside its turns is none of a turn.
    few, _ = timed(lambda: turns(1), 1)
    many, _ = timed(lambda: turns(TURNS + 1), 1)
    return {"value": (many["value"] - few["value"]) / (TURNS * len(edges))}


def ours_turn_1(scale: int) -> Figures:
    return ours_turn(scale, 1)


def ours_turn_2(scale: int) -> Figures:
    return ours_turn(scale, 2)


def ours_build(scale: int) -> Figures:
    from pydotcompute.workloads import Graph

    nodes, edges = graph(scale)
    figures, made = timed(lambda: Graph(edges, nodes=nodes), len(edges))
    assert made.links == len(edges)
    return figures


def ours_whole(scale: int) -> Figures:
    """From an array to ranks that have settled."""
    from pydotcompute.workloads import pagerank

    nodes, edges = graph(scale)
    figures, result = timed(lambda: pagerank(edges, nodes=nodes, tolerance=1e-10), len(edges), 3)
    check_ranks(result.ranks, nodes, edges, 150, 1e-6)
    return figures


def ours_settled(scale: int) -> Figures:
    """The same in single precision, to the finest tolerance of that."""
    from pydotcompute.workloads import pagerank

    nodes, edges = graph(scale)
    figures, result = timed(lambda: pagerank(edges, nodes=nodes, tolerance=1e-6), len(edges))
    assert result.converged
    check_ranks(result.ranks, nodes, edges, 150, 1e-5)
    return figures


def scipy_whole(scale: int) -> Figures:
    """From the same array, to the same tolerance, in the same precision."""
    nodes, edges = graph(scale)

    def whole() -> Any:
        matrix = scipy_matrix(nodes, edges)
        dangling = np.bincount(edges[:, 0], minlength=nodes) == 0
        ranks, moved = np.full(nodes, 1.0 / nodes, np.float32), 1.0
        while moved >= 1e-6:
            base = (1.0 - DAMPING + DAMPING * ranks[dangling].sum()) / nodes
            new = np.float32(DAMPING) * (matrix @ ranks) + np.float32(base)
            ranks, moved = new, float(np.abs(new - ranks).sum())
        return ranks

    figures, ranks = timed(whole, len(edges), 2)
    check_ranks(ranks, nodes, edges, 150, 1e-5)
    return figures


def lists_whole(scale: int) -> Figures:
    """What PyDotCompute's own benchmark does on a CPU: pairs into lists, these into SciPy's rows,
    and turns until no rank moves by a millionth, which of a million nodes are four. What dangles
    is lost.
    """
    sparse = library("scipy.sparse")
    nodes, edges = graph(scale)
    pairs = [(source, target) for source, target in edges.tolist()]

    def whole() -> Any:
        out = [0] * nodes
        for source, _ in pairs:
            out[source] += 1
        rows, columns, weights = [], [], []
        for source, target in pairs:
            rows.append(target)
            columns.append(source)
            weights.append(1.0 / out[source])
        matrix = sparse.csr_array((weights, (rows, columns)), shape=(nodes, nodes))
        ranks, moved, turns = np.full(nodes, 1.0 / nodes), 1.0, 0
        while moved >= 1e-6 and turns < 100:
            new = DAMPING * (matrix @ ranks) + (1.0 - DAMPING) / nodes
            ranks, moved, turns = new, float(np.abs(new - ranks).max()), turns + 1
        return ranks, turns

    figures, (ranks, turns) = timed(whole, len(edges), 1)
    check_ranks(ranks, nodes, edges, turns, 1e-9, leaks=True)
    return figures


def scipy_matrix(nodes: int, edges: Any) -> Any:
    sparse = library("scipy.sparse")

    out = np.bincount(edges[:, 0], minlength=nodes)
    weights = (1.0 / out[edges[:, 0]]).astype(np.float32)
    return sparse.csr_array((weights, (edges[:, 1], edges[:, 0])), shape=(nodes, nodes))


def scipy_turn(scale: int) -> Figures:
    nodes, edges = graph(scale)
    matrix = scipy_matrix(nodes, edges)
    dangling = np.bincount(edges[:, 0], minlength=nodes) == 0

    def turns() -> Any:
        ranks = np.full(nodes, 1.0 / nodes, np.float32)
        for _ in range(TURNS):
            base = (1.0 - DAMPING + DAMPING * ranks[dangling].sum()) / nodes
            ranks = np.float32(DAMPING) * (matrix @ ranks) + np.float32(base)
        return ranks

    figures, ranks = timed(turns, TURNS * len(edges))
    check_ranks(ranks, nodes, edges, TURNS, 1e-3)
    return figures


def scipy_build(scale: int) -> Figures:
    """Rows of links by target, and how many leave each node; no weights, since ours has none."""
    sparse = library("scipy.sparse")
    nodes, edges = graph(scale)
    ones = np.ones(len(edges), np.float32)

    def build() -> Any:
        out = np.bincount(edges[:, 0], minlength=nodes)
        return out, sparse.csr_array((ones, (edges[:, 1], edges[:, 0])), shape=(nodes, nodes))

    figures, (out, matrix) = timed(build, len(edges))
    assert matrix.nnz == out.sum() == len(edges)
    return figures


def graphblas_turn(scale: int) -> Figures:
    graphblas = library("graphblas")
    graphblas.init("suitesparse", blocking=True)
    semiring, vector = library("graphblas.semiring"), library("graphblas").Vector
    graphblas.ss.config["nthreads"] = 2
    nodes, edges = graph(scale)
    ones = np.ones(len(edges), np.float32)
    links = graphblas.Matrix.from_coo(edges[:, 1], edges[:, 0], ones, nrows=nodes, ncols=nodes)
    out = np.bincount(edges[:, 0], minlength=nodes)
    inverse = np.divide(1.0, out, out=np.zeros(nodes), where=out > 0).astype(np.float32)
    dangling = out == 0

    def turns() -> Any:
        ranks = np.full(nodes, 1.0 / nodes, np.float32)
        for _ in range(TURNS):
            base = (1.0 - DAMPING + DAMPING * ranks[dangling].sum()) / nodes
            given = vector.from_dense(ranks * inverse)
            linked = semiring.plus_second(links @ given).new()
            # What nothing links to has no entry.
            ranks = np.float32(DAMPING) * linked.to_dense(fill_value=0.0) + np.float32(base)
        return ranks

    figures, ranks = timed(turns, TURNS * len(edges))
    check_ranks(ranks, nodes, edges, TURNS, 1e-3)
    return figures


def networkit_turn(scale: int) -> Figures:
    networkit = library("networkit")
    networkit.setNumberOfThreads(2)
    nodes, edges = graph(scale)
    ones = np.ones(len(edges))
    made = networkit.GraphFromCoo(
        (ones, (edges[:, 0].astype(np.uint64), edges[:, 1].astype(np.uint64))), nodes, directed=True
    )

    def turns(count: int) -> Any:
        rank = networkit.centrality.PageRank(
            made, DAMPING, 1e-30, distributeSinks=networkit.centrality.SinkHandling.DistributeSinks
        )
        rank.maxIterations = count
        rank.run()
        assert rank.numberOfIterations() == count
        return rank.scores()

    check_ranks(turns(TURNS), nodes, edges, TURNS, 0.05)
    few, _ = timed(lambda: turns(1), 1, 3)
    many, _ = timed(lambda: turns(TURNS + 1), 1, 3)
    return {"value": (many["value"] - few["value"]) / (TURNS * len(edges))}


def igraph_whole(scale: int) -> Figures:
    igraph = library("igraph")
    nodes, edges = graph(scale)

    def whole() -> Any:
        return igraph.Graph(n=nodes, edges=edges, directed=True).pagerank(damping=DAMPING)

    figures, ranks = timed(whole, len(edges), 1)
    check_ranks(ranks, nodes, edges, 150, 1e-6)
    return figures


def rustworkx_whole(scale: int) -> Figures:
    rustworkx = library("rustworkx")
    nodes, edges = graph(scale)

    def whole() -> Any:
        made = rustworkx.PyDiGraph()
        made.add_nodes_from(range(nodes))
        made.add_edges_from_no_data([tuple(pair) for pair in edges.tolist()])
        return rustworkx.pagerank(made, alpha=DAMPING, tol=1e-10 / nodes, max_iter=1000)

    figures, ranks = timed(whole, len(edges), 1)
    check_ranks([ranks[node] for node in range(nodes)], nodes, edges, 150, 1e-5)
    return figures


# --- streams --------------------------------------------------------------------------------------


def log(count: int) -> tuple[Any, Any]:
    """Keys and values, one value in a hundred of them wild."""
    random = np.random.default_rng(7)
    keys = random.integers(0, KEYS, count, dtype=np.uint32)
    values = random.normal(0.0, 1.0, count)
    values[random.integers(0, count, count // 100)] *= 20.0
    return keys, values


def unusual(keys: Any, values: Any) -> int:
    """How many values are, by the plain definition."""
    rows: dict[int, tuple[float, float, float]] = {}
    found = 0
    for key, value in zip(keys.tolist(), values.tolist(), strict=True):
        count, mean, spread = rows.get(key, (0.0, 0.0, 0.0))
        count += 1.0
        off = value - mean
        found += off * off > THRESHOLD * THRESHOLD * spread and count > WARM_UP
        weight = max(ALPHA, 1.0 / count)
        rows[key] = (count, mean + weight * off, (1.0 - weight) * (spread + weight * off * off))
    return found


def events_of(scale: int) -> int:
    """A million, of a quick look a tenth."""
    return 1_000_000 if scale >= 20_000 else 100_000


async def ours_batches(scale: int) -> Figures:
    """Batches of 1000 through a kernel on a thread, and the alarms back."""
    total = events_of(scale)
    from pydotcompute import RingKernelRuntime
    from pydotcompute.workloads import anomaly

    # Without numba the source would be interpreted.
    native = importlib.util.find_spec("numba") is None
    keys, values = log(total)
    events = anomaly.events(keys, values, np.zeros(total))
    batches = [events[start : start + BATCH] for start in range(0, total, BATCH)]
    expected = unusual(keys, values)
    times = []
    for _ in range(6):
        async with RingKernelRuntime(use_uvloop=False) as runtime:
            # The first one compiles.
            kernel = await runtime.launch("detect", anomaly.ewma(keys=KEYS, native=native))
            await kernel.activate()
            await asyncio.sleep(0.01)
            begun = clock()
            for batch in batches:
                await runtime.send("detect", batch)
            alarms = 0
            while alarms < expected:
                alarms += len(await runtime.receive("detect", timeout=60))
            # The events after the last alarm.
            while kernel.read_state(60.0).taken < total:
                await asyncio.sleep(0)
            times.append(clock() - begun)
            assert alarms == expected, f"{alarms} instead of {expected}"
            assert kernel.read_state(60.0).unusual == expected
    return {"value": median(times[1:]) / total}


def ours_message(scale: int) -> Figures:
    """The same log as one message."""

    total = events_of(scale)

    async def run() -> Figures:
        from pydotcompute import RingKernelRuntime
        from pydotcompute.workloads import anomaly

        native = importlib.util.find_spec("numba") is None
        keys, values = log(total)
        events = anomaly.events(keys, values, np.zeros(total))
        expected = unusual(keys, values)
        times = []
        for _ in range(6):
            async with RingKernelRuntime(use_uvloop=False) as runtime:
                kernel = await runtime.launch("detect", anomaly.ewma(keys=KEYS, native=native))
                await kernel.activate()
                begun = clock()
                alarms = await runtime.send_and_receive("detect", events, timeout=60)
                times.append(clock() - begun)
                assert len(alarms) == expected
        return {"value": median(times[1:]) / total}

    return asyncio.run(run())


def numba_loop(scale: int) -> Figures:
    """The same work on the same array: late events are looked for, and alarms are made."""
    total = events_of(scale)
    numba = library("numba")
    event = np.dtype([("key", "u4"), ("sequence", "u4"), ("time", "f8"), ("value", "f8")])
    alarm = np.dtype([*event.descr, ("expected", "f8"), ("deviation", "f8"), ("z", "f8")])
    keys, values = log(total)
    events = np.zeros(total, event)
    events["key"], events["value"], events["sequence"] = keys, values, np.arange(total)
    expected = unusual(keys, values)

    def plain(events: Any, rows: Any, counts: Any, alarms: Any) -> int:
        made = 0
        for index in range(len(events)):
            one = events[index]
            if one.key >= len(rows) or not -1e150 <= one.value <= 1e150:
                counts[0] += 1
                continue
            row = rows[one.key]
            if one.time < row[1] and row[0] > 0.0:
                counts[1] += 1
                continue
            counts[2] += 1
            count = row[0] + 1.0
            mean = row[2]
            spread = row[3]
            off = one.value - mean
            squared = off * off
            wild = squared > THRESHOLD * THRESHOLD * spread and count > WARM_UP
            weight = max(ALPHA, 1.0 / count)
            row[0] = count
            row[1] = one.time
            row[2] = mean + weight * off
            row[3] = (1.0 - weight) * (spread + weight * squared)
            if wild:
                out = alarms[made]
                out.key = one.key
                out.sequence = one.sequence
                out.time = one.time
                out.value = one.value
                out.expected = mean
                out.deviation = np.sqrt(spread)
                out.z = min(max(off / out.deviation, -1e6), 1e6) if spread > 0.0 else 1e6
                made += 1
        return made

    loop = numba.njit(plain)
    alarms = np.zeros(BATCH, alarm)

    def whole() -> int:
        rows, counts = np.zeros((KEYS, 4)), np.zeros(3, np.int64)
        found = 0
        for start in range(0, total, BATCH):
            found += loop(events[start : start + BATCH], rows, counts, alarms)
        assert counts[2] == total
        return found

    figures, found = timed(whole, total)
    assert found == expected
    return figures


def numpy_batches(scale: int) -> Figures:
    """Vectorised over a batch; a key's events within one take turns."""
    total = events_of(scale)
    keys, values = log(total)
    expected = unusual(keys, values)

    def whole() -> int:
        counts, means, spreads = np.zeros(KEYS), np.zeros(KEYS), np.zeros(KEYS)
        found = 0
        for start in range(0, total, BATCH):
            order = np.argsort(keys[start : start + BATCH], kind="stable")
            all_keys = keys[start : start + BATCH][order]
            all_values = values[start : start + BATCH][order]
            first = np.flatnonzero(np.r_[True, all_keys[1:] != all_keys[:-1]])
            turn = np.arange(len(all_keys)) - np.repeat(first, np.diff(np.r_[first, len(all_keys)]))
            for number in range(int(turn.max()) + 1):
                now = turn == number
                key, value = all_keys[now], all_values[now]
                count, mean, spread = counts[key] + 1.0, means[key], spreads[key]
                off = value - mean
                squared = off * off
                wild = (squared > THRESHOLD * THRESHOLD * spread) & (count > WARM_UP)
                found += int(wild.sum())
                weight = np.maximum(ALPHA, 1.0 / count)
                counts[key] = count
                means[key] = mean + weight * off
                spreads[key] = (1.0 - weight) * (spread + weight * squared)
        return found

    figures, found = timed(whole, total, 2)
    assert found == expected
    return figures


def river_loop(scale: int) -> Figures:
    """An exponentially weighted mean and variance for each key."""
    stats = library("river.stats")
    count = events_of(scale) // 5
    keys, values = log(count)
    pairs = list(zip(keys.tolist(), values.tolist(), strict=True))

    def whole() -> dict[int, tuple[Any, Any]]:
        kept: dict[int, tuple[Any, Any]] = {}
        wild = 0
        for key, value in pairs:
            mean, spread = kept.setdefault(key, (stats.EWMean(ALPHA), stats.EWVar(ALPHA)))
            off = value - (mean.get() or 0.0)
            wild += off * off > THRESHOLD * THRESHOLD * (spread.get() or 1e300)
            mean.update(value)
            spread.update(value)
        assert wild > 0
        return kept

    figures, kept = timed(whole, count, 1)
    mine = values[keys == 17]
    mean = mine[0]
    for value in mine[1:]:
        mean += ALPHA * (value - mean)
    assert abs(kept[17][0].get() - mean) < 1e-9
    return figures


def polars_over(scale: int) -> Figures:
    """The whole log at once: mean and variance after each value, by key."""
    total = events_of(scale)
    polars = library("polars")
    keys, values = log(total)
    frame = polars.DataFrame({"key": keys, "value": values})

    value = polars.col("value")
    mean = value.ewm_mean(alpha=ALPHA, adjust=False)
    spread = value.ewm_var(alpha=ALPHA, adjust=False, bias=True)

    def whole() -> Any:
        made = frame.with_columns(
            mean.over("key").alias("mean"), spread.over("key").alias("spread")
        )
        off = polars.col("value") - polars.col("mean")
        return made.with_columns((off * off > THRESHOLD * polars.col("spread")).alias("wild"))

    figures, made = timed(whole, total, 3)
    mine = values[keys == 17]
    last = mine[0]
    for each in mine[1:]:
        last += ALPHA * (each - last)
    found = made.filter(polars.col("key") == 17)["mean"][-1]
    assert abs(found - last) < 1e-9
    return figures


# --- actors ---------------------------------------------------------------------------------------

MESSAGE = (1.0, 2.0, 3.0)


def echoes(ask: Callable[[Any], Any], count: int) -> Figures:
    """Round trips, one after the other."""
    times = []
    for _ in range(count):
        begun = clock()
        answer = ask(MESSAGE)
        times.append(clock() - begun)
        assert tuple(answer) == MESSAGE
    times = sorted(times[count // 10 :])
    return {"value": times[len(times) // 2], "p99": times[len(times) * 99 // 100]}


async def echoes_async(ask: Callable[[Any], Any], count: int) -> Figures:
    times = []
    for _ in range(count):
        begun = clock()
        answer = await ask(MESSAGE)
        times.append(clock() - begun)
        assert tuple(answer) == MESSAGE
    times = sorted(times[count // 10 :])
    return {"value": times[len(times) // 2], "p99": times[len(times) * 99 // 100]}


async def ours_echo(scale: int) -> Figures:
    from pydotcompute import RingKernelRuntime, message

    class Three:
        values: Any = MESSAGE

    Three.__annotations__ = {"values": Any}
    three: Any = message(Three)

    async def echo(ctx: Any) -> None:
        while not ctx.should_terminate:
            await ctx.send(await ctx.receive())

    async with RingKernelRuntime(use_uvloop=False) as runtime:
        await runtime.launch("echo", echo)
        await runtime.activate("echo")

        async def ask(values: Any) -> Any:
            await runtime.send("echo", three(values=values))
            return (await runtime.receive("echo")).values

        return await echoes_async(ask, scale)


def pykka_echo(scale: int) -> Figures:
    pykka = library("pykka")

    echo = type("Echo", (pykka.ThreadingActor,), {"on_receive": lambda _, message: message})
    actor: Any = echo.start()  # type: ignore[attr-defined]
    try:
        return echoes(actor.ask, scale // 2)
    finally:
        actor.stop()


async def xoscar_echo(scale: int) -> Figures:
    xoscar = library("xoscar")

    async def echo(_: Any, values: Any) -> Any:
        return values

    kind = type("Echo", (xoscar.Actor,), {"echo": echo})
    pool = await xoscar.create_actor_pool("127.0.0.1:0", n_process=0)
    async with pool:
        actor = await xoscar.create_actor(kind, address=pool.external_address, uid="echo")
        return await echoes_async(actor.echo, scale // 4)


def ray_echo(scale: int) -> Figures:
    ray = library("ray")
    ray.init(num_cpus=2, include_dashboard=False, logging_level=40, log_to_driver=False)

    class Echo:
        def echo(self, values: Any) -> Any:
            return values

    actor = ray.remote(Echo).remote()
    try:
        return echoes(lambda values: ray.get(actor.echo.remote(values)), max(scale // 20, 200))
    finally:
        ray.shutdown()


def _echo_process(end: Any) -> None:
    while (message := end.recv()) is not None:
        end.send(message)


def pipe_echo(scale: int) -> Figures:
    ours, other = multiprocessing.Pipe()
    child = multiprocessing.get_context("fork").Process(target=_echo_process, args=(other,))
    child.start()

    def ask(values: Any) -> Any:
        ours.send(values)
        return ours.recv()

    try:
        return echoes(ask, scale // 2)
    finally:
        ours.send(None)
        child.join(10)


# --- processes ------------------------------------------------------------------------------------


class SharedWord(ctypes.Structure):
    """The record of 64 bytes of `_bench_process`, as iceoryx2 takes it."""

    _fields_ = (("number", ctypes.c_uint64), ("rest", ctypes.c_uint64 * 7))


async def ours_process_trip(scale: int) -> Figures:
    from pydotcompute import _bench_process

    return await _bench_process.asks(scale)


async def ours_process_ask(scale: int) -> Figures:
    from pydotcompute import _bench_process

    return await _bench_process.blocking_asks(scale)


def iceoryx_ends(name: str, there: str, back: str) -> Any:
    """A node, where it publishes, and where it looks."""
    iceoryx2 = library("iceoryx2")
    node = iceoryx2.NodeBuilder.new().create(iceoryx2.ServiceType.Ipc)

    def way(to: str) -> Any:
        service = node.service_builder(iceoryx2.ServiceName.new(f"{name}/{to}"))
        return service.publish_subscribe(SharedWord).open_or_create()

    return node, way(there).publisher_builder().create(), way(back).subscriber_builder().create()


def iceoryx_answers(name: str, ready: Any) -> None:
    """The other process: answers each word with the next number, and ends at 0."""
    _node, answers, asked = iceoryx_ends(name, "back", "there")
    ready.send(True)
    while True:
        while (word := asked.receive()) is None:
            pass
        number = word.payload().contents.number
        if number == 0:
            return
        answers.loan_uninit().write_payload(SharedWord(number=number + 1)).send()


def iceoryx_trip(scale: int) -> Figures:
    """A word of 64 bytes to another process and back; both look all the time."""
    name = f"pydotcompute-bench-{os.getpid()}"
    _node, asked, answers = iceoryx_ends(name, "there", "back")
    context = multiprocessing.get_context("spawn")
    ready, tells = context.Pipe(duplex=False)
    child = context.Process(target=iceoryx_answers, args=(name, tells), daemon=True)
    child.start()
    assert ready.poll(60)
    assert ready.recv()
    times = []
    for number in range(1, scale + 1):
        begun = clock()
        asked.loan_uninit().write_payload(SharedWord(number=number)).send()
        while (answer := answers.receive()) is None:
            pass
        times.append(clock() - begun)
        assert answer.payload().contents.number == number + 1
    asked.loan_uninit().write_payload(SharedWord(number=0)).send()
    child.join(10)
    times = sorted(times[scale // 10 :])
    return {"value": times[len(times) // 2], "p99": times[len(times) * 99 // 100]}


#: Each row's function, and how many cores it runs on.
ROWS: dict[str, tuple[Callable[[int], Any], int]] = {
    "ours_turn_1": (ours_turn_1, 1),
    "ours_turn_2": (ours_turn_2, 2),
    "ours_build": (ours_build, 2),
    "ours_whole": (ours_whole, 2),
    "ours_settled": (ours_settled, 2),
    "scipy_turn": (scipy_turn, 1),
    "scipy_whole": (scipy_whole, 2),
    "lists_whole": (lists_whole, 2),
    "scipy_build": (scipy_build, 2),
    "graphblas_turn": (graphblas_turn, 2),
    "networkit_turn": (networkit_turn, 2),
    "igraph_whole": (igraph_whole, 2),
    "rustworkx_whole": (rustworkx_whole, 2),
    "ours_batches": (ours_batches, 2),
    "ours_message": (ours_message, 2),
    "numba_loop": (numba_loop, 2),
    "numpy_batches": (numpy_batches, 2),
    "river_loop": (river_loop, 2),
    "polars_over": (polars_over, 2),
    "ours_echo": (ours_echo, 2),
    "pykka_echo": (pykka_echo, 2),
    "xoscar_echo": (xoscar_echo, 2),
    "ray_echo": (ray_echo, 2),
    "pipe_echo": (pipe_echo, 2),
    "ours_process_trip": (ours_process_trip, 2),
    "ours_process_ask": (ours_process_ask, 2),
    "iceoryx_trip": (iceoryx_trip, 2),
}


def main(arguments: Iterator[str]) -> None:
    row, _, scale = next(arguments), next(arguments), int(next(arguments))
    measure, cores = ROWS[row]
    pin(cores)
    given = measure(scale)
    figures = asyncio.run(given) if asyncio.iscoroutine(given) else given
    print(json.dumps(figures), flush=True)
    os._exit(0)


if __name__ == "__main__":
    main(iter(sys.argv[1:]))
