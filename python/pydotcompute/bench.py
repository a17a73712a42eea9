"""``python -m pydotcompute.bench``: ours beside PyDotCompute 0.2.0, other libraries, and floors.

One script (`_bench_rows`) runs in turn with this package and with the released one, which lives in
a virtual environment of its own in the cache directory (made when ``--peer`` asks for it). Every
row is checked while it is measured, and states the median of the ratios of neighbouring runs:
absolute times are noise on shared machines. The libraries of the field (``_bench_peers``) are taken
from where they are: this interpreter, or the environment that ``--peers`` makes.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import json
import os
import subprocess
import sys
import venv
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Literal

PEER = "pydotcompute==0.2.0"
_SCRIPT = Path(__file__).with_name("_bench_rows.py")

#: The libraries that rows are held against, by the names of their modules.
LIBRARIES = {
    "graphblas": "python-graphblas[default]>=2025.2",
    "iceoryx2": "iceoryx2>=0.10",
    "igraph": "igraph>=1.0",
    "networkit": "networkit>=11",
    "numba": "numba>=0.68",
    "numpy": "numpy>=2",
    "polars": "polars>=1.30",
    "pykka": "pykka>=4",
    "ray": "ray>=2.50",
    "river": "river>=0.22",
    "rustworkx": "rustworkx>=0.17",
    "scipy": "scipy>=1.16",
    "xoscar": "xoscar>=0.9",
}
_PEERS_SCRIPT = Path(__file__).with_name("_bench_peers.py")
_RUN_TIMEOUT_S = 120.0

Loop = Literal["uvloop", "asyncio", ""]


@dataclass(frozen=True)
class Row:
    """What is measured: a row of `_bench_rows`, and what stands beside it.

    ``against`` is "peer" (the same row with PyDotCompute), the name of another row (a floor), or a
    number (a limit in nanoseconds). ``goal`` is the ratio ours/other to stay at or under; none
    where the figure is only stated. With a ``library`` both rows are of `_bench_peers`, and the
    other one needs it.
    """

    id: str
    row: str
    against: str | float
    goal: float | None
    loop: Loop = ""
    figure: Literal["value", "p99"] = "value"
    library: str = ""

    @property
    def group(self) -> str:
        """The part of the id before the first point."""
        return self.id.partition(".")[0]


def _rows() -> list[Row]:
    rows: list[Row] = []
    loops: tuple[Loop, ...] = ("uvloop", "asyncio")
    for loop in loops:
        rows += [
            Row(f"asyncio.round_trip.{loop}", "round_trip", "peer", 1 / 10, loop),
            Row(f"asyncio.round_trip_p99.{loop}", "round_trip", "peer", 1 / 10, loop, "p99"),
            Row(f"asyncio.round_trip_p99_floor.{loop}", "round_trip", "spin", None, loop, "p99"),
            Row(f"asyncio.round_trip_floor.{loop}", "round_trip", "bare_futures", 0.6, loop),
            Row(f"asyncio.round_trip_made.{loop}", "round_trip_made", "peer", 1 / 8, loop),
            Row(f"asyncio.round_trip_timeout.{loop}", "round_trip_timeout", "peer", 1 / 15, loop),
            Row(f"asyncio.pipelined.{loop}", "pipelined", "peer", 1 / 25, loop),
            Row(f"asyncio.pipelined_made.{loop}", "pipelined_made", "peer", 1 / 15, loop),
            Row(f"asyncio.put_and_get.{loop}", "put_and_get", "peer", 1 / 15, loop),
            Row(f"asyncio.chain.{loop}", "chain", "peer", 1 / 8, loop),
        ]
    rows += [
        Row("life.blocked_actor", "life", 50_000, 1.0, "uvloop"),
        Row("life.thousand", "end_of_thousand", 50_000_000, 1.0, "uvloop"),
        Row("threads.echo_1_core", "threaded_echo_1", "simple_queues_1", 1.1),
        Row("threads.echo_2_cores", "threaded_echo_2", "simple_queues_2", 1.0),
        Row("threads.batch", "threaded_batch", "peer", 1 / 10),
        # With its extension built, which the released wheel lacks, PyDotCompute takes 8 ms.
        Row("threads.native_echo_1_core", "cython_echo_1", 8_000_000, 1 / 500),
        Row("threads.native_echo_2_cores", "cython_echo_2", 8_000_000, 1 / 1000),
        Row("handlers.batches", "handler_batches", "njit_loop", 1.3),
        Row("handlers.singles", "handler_singles", "peer", 1.0),
        Row("handlers.chain", "handler_chain", "peer", 1 / 50),
        Row("process.round_trip", "process_asks", "process_queues", 1 / 20),
        Row("process.ask_blocking", "process_asks_blocking", "process_queues", 1 / 20),
        Row("process.arrays", "process_arrays", "process_array_queues", 1 / 5),
        Row("queue.spsc", "spsc", "call_pair", 1.2),
        Row("message.construct", "construct", "peer", 1 / 8),
        Row("message.encode", "encode", "peer", 1 / 10),
        Row("message.decode", "decode", "peer", 1 / 8),
        Row("message.array_encode", "array_encode", "peer", 1 / 8),
        Row("message.array_decode", "array_decode", "peer", 1 / 8),
    ]
    beside: list[tuple[str, str, str, str, float | None]] = [
        ("pagerank.turn.graphblas", "ours_turn_2", "graphblas", "graphblas_turn", 1 / 1.3),
        ("pagerank.turn.scipy_1_core", "ours_turn_1", "scipy", "scipy_turn", 1 / 2.5),
        ("pagerank.turn.networkit", "ours_turn_2", "networkit", "networkit_turn", 1 / 10),
        ("pagerank.build.scipy", "ours_build", "scipy", "scipy_build", 1 / 8),
        ("pagerank.whole.lists", "ours_settled", "scipy", "lists_whole", 1 / 15),
        ("pagerank.whole.scipy", "ours_settled", "scipy", "scipy_whole", None),
        ("pagerank.whole.igraph", "ours_whole", "igraph", "igraph_whole", None),
        ("pagerank.whole.rustworkx", "ours_whole", "rustworkx", "rustworkx_whole", None),
        ("anomaly.batches.numba", "ours_batches", "numba", "numba_loop", 1 / 0.8),
        ("anomaly.message.numba", "ours_message", "numba", "numba_loop", None),
        ("anomaly.batches.numpy", "ours_batches", "numpy", "numpy_batches", 1 / 20),
        ("anomaly.batches.river", "ours_batches", "river", "river_loop", 1 / 100),
        ("anomaly.message.polars", "ours_message", "polars", "polars_over", None),
        ("actors.echo.pykka", "ours_echo", "pykka", "pykka_echo", None),
        ("actors.echo.xoscar", "ours_echo", "xoscar", "xoscar_echo", None),
        ("actors.echo.ray", "ours_echo", "ray", "ray_echo", None),
        ("actors.echo.pipe", "ours_echo", "multiprocessing", "pipe_echo", None),
        ("process.round_trip.iceoryx2", "ours_process_trip", "iceoryx2", "iceoryx_trip", 1 / 3),
        ("process.ask_blocking.iceoryx2", "ours_process_ask", "iceoryx2", "iceoryx_trip", 1 / 3),
    ]
    rows += [
        Row(name, row, other, goal, library=library) for name, row, library, other, goal in beside
    ]
    return rows


ROWS = _rows()
GROUPS = list(dict.fromkeys(row.group for row in ROWS))


@dataclass(frozen=True)
class Line:
    """One row as it goes into the JSON file; times are nanoseconds per operation."""

    id: str
    group: str
    unit: str
    ours: float | None
    against: str
    other: float | None
    ratio: float | None
    better: str
    goal: float | None
    met: bool | None
    error: str | None


def _cache() -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    return Path(root) / "pydotcompute" / f"bench-{PEER.replace('==', '-')}-python{version}"


def _peer_python(make: bool) -> Path | None:
    """The interpreter of the peer's environment, made if asked; says so if there is none."""
    folder = _cache()
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    complete = folder / "complete"
    if complete.exists():
        return python
    if not make:
        print(f"without {PEER} (--peer installs it): against floors and limits only", flush=True)
        return None
    print(f"installing {PEER} into {folder}", flush=True)
    venv.create(folder, with_pip=True, clear=True)
    install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", PEER]
    if importlib.util.find_spec("uvloop") is not None:
        install.append("uvloop")
    done = subprocess.run(install, check=False)
    if done.returncode != 0:
        print(f"{PEER} could not be installed: against floors and limits only", flush=True)
        return None
    complete.touch()
    return python


def _library_python(make: bool) -> dict[str, str]:
    """For each library the interpreter that has it: the peers' own, or this one."""
    folder = _cache().with_name(
        f"bench-peers-python{sys.version_info.major}.{sys.version_info.minor}"
    )
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if make:
        if not python.exists():
            venv.create(folder, with_pip=True)
        for library, requirement in LIBRARIES.items():
            print(f"installing {requirement} into {folder}", flush=True)
            pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
            # One that has no wheel here leaves the others be.
            if subprocess.run([*pip, requirement], check=False).returncode != 0:
                print(f"{library} could not be installed", flush=True)
    found = {}
    for library in [*LIBRARIES, "multiprocessing"]:
        if importlib.util.find_spec(library) is not None:
            found[library] = sys.executable
    if python.exists():
        probe = "import importlib.util, sys; print(*filter(importlib.util.find_spec, sys.argv[1:]))"
        listed = subprocess.run(
            [str(python), "-c", probe, *LIBRARIES], capture_output=True, text=True, check=False
        )
        found.update(dict.fromkeys(listed.stdout.split(), str(python)))
    return found


class _Failed(Exception):
    """A run that gave no figures."""


def _run(
    python: str | Path, row: str, loop: Loop, count: int, script: Path = _SCRIPT
) -> dict[str, float]:
    # Threads of OpenMP that spin while others need the core would be measured instead.
    environment = {**os.environ, "PYDOTCOMPUTE_NO_UVLOOP": "1", "OMP_WAIT_POLICY": "passive"}
    environment.pop("PYTHONPATH", None)
    try:
        # -P: the script's own folder must not be searched for modules.
        done = subprocess.run(
            [str(python), "-P", str(script), row, loop, str(count)],
            capture_output=True,
            text=True,
            timeout=_RUN_TIMEOUT_S,
            env=environment,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise _Failed(f"{row}: no result within {_RUN_TIMEOUT_S:.0f} s") from None
    if done.returncode != 0:
        said = done.stderr.strip().splitlines()
        raise _Failed(f"{row}: {said[-1] if said else done.returncode}")
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


#: Runs a program for a row's figures: see `_run`.
Runner = Callable[..., dict[str, float]]


def _measure(
    row: Row,
    peer: Path | None,
    *,
    pairs: int,
    count: int,
    other: str = sys.executable,
    run: Runner = _run,
) -> Line:
    against = row.against if isinstance(row.against, str) else "limit"
    script = _SCRIPT
    if row.library:
        against, script = row.library, _PEERS_SCRIPT
        pairs = max(pairs // 2, 1)
    ours: list[float] = []
    others: list[float] = []
    error: str | None = None
    try:
        for _ in range(pairs):
            mine = run(sys.executable, row.row, row.loop, count, script)
            ours.append(mine[row.figure])
            if row.against == "peer":
                if peer is not None:
                    others.append(run(peer, row.row, row.loop, count)[row.figure])
            elif isinstance(row.against, str):
                theirs = run(other, row.against, row.loop, count, script)
                others.append(theirs[row.figure])
            else:
                others.append(row.against)
    except _Failed as failed:
        theirs_failed = len(ours) > len(others) and (row.against == "peer" or row.library)
        side = "peer" if theirs_failed else "ours"
        error = f"{side}: {failed}"
    ratios = [mine / other for mine, other in zip(ours, others, strict=False)]
    ratio = median(ratios) if ratios else None
    return Line(
        id=row.id,
        group=row.group,
        unit="ns",
        ours=median(ours) if ours else None,
        against=PEER if against == "peer" else against,
        other=median(others) if others else None,
        ratio=ratio,
        better="lower",
        goal=row.goal,
        met=None if ratio is None or row.goal is None else ratio <= row.goal,
        error=error,
    )


def _text(line: Line) -> str:
    def number(value: float | None) -> str:
        return "-" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"

    met = {True: "met", False: "missed", None: "-"}[line.met]
    text = (
        f"{line.id:36} {number(line.ours):>12} {line.against:20} {number(line.other):>14} "
        f"{number(line.ratio):>8} {number(line.goal):>8} {met}"
    )
    return text if line.error is None else f"{text}  ({line.error})"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the bench; the exit status is 1 if a run of ours failed, not if a goal is missed."""
    parser = argparse.ArgumentParser(prog="python -m pydotcompute.bench", description=__doc__)
    parser.add_argument("--only", metavar="GROUP,...", help=f"of {', '.join(GROUPS)}, or row ids")
    parser.add_argument(
        "--quick", action="store_true", help="a look: each run short, and once for all its rows"
    )
    parser.add_argument("--json", metavar="FILE", type=Path, help="also write the rows there")
    parser.add_argument("--peer", action="store_true", help=f"install {PEER} if it is not there")
    parser.add_argument(
        "--peers", action="store_true", help=f"install {', '.join(LIBRARIES)} where they can be"
    )
    options = parser.parse_args(arguments)

    wanted = options.only.split(",") if options.only else GROUPS
    known = {*GROUPS, *(row.id for row in ROWS)}
    if unknown := [name for name in wanted if name not in known]:
        parser.error(f"no group or row is called {', '.join(unknown)}: there are {GROUPS}")
    peer = _peer_python(options.peer)
    libraries = _library_python(options.peers)
    has_uvloop = importlib.util.find_spec("uvloop") is not None
    pairs, count = (1, 3000) if options.quick else (7, 20_000)
    # A look takes what several rows need once; a measurement runs both sides of each side by side.
    run: Runner = functools.cache(_run) if options.quick else _run

    def is_wanted(row: Row) -> bool:
        return row.group in wanted or row.id in wanted

    chosen = [row for row in ROWS if is_wanted(row)]
    print(f"{'id':36} {'ours ns':>12} {'against':20} {'other ns':>14} {'ratio':>8} {'goal':>8}")
    lines = []
    for number, row in enumerate(chosen, 1):
        if row.loop == "uvloop" and not has_uvloop:
            print(f"{row.id:36} skipped: uvloop is not installed")
            continue
        if row.library and row.library not in libraries:
            print(f"{row.id:36} skipped: {row.library} is not installed (--peers does)")
            continue
        print(f"[{number:2}/{len(chosen)}] {row.id}", file=sys.stderr, flush=True)
        other = libraries.get(row.library, sys.executable)
        lines.append(_measure(row, peer, pairs=pairs, count=count, other=other, run=run))
        print(_text(lines[-1]), flush=True)
    if options.json is not None:
        options.json.write_text(json.dumps([asdict(line) for line in lines], indent=2) + "\n")
    return int(any(line.error is not None and line.error.startswith("ours") for line in lines))


if __name__ == "__main__":
    sys.exit(main())
