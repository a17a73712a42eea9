"""The bench: its rows exist, run, and are written as JSON."""

import json

import pytest

from pydotcompute import _bench_peers, _bench_rows, bench


def test_every_row_has_its_measurement():
    for row in bench.ROWS:
        known = _bench_peers.ROWS if row.library else _bench_rows.ROWS
        assert row.row in known
        if isinstance(row.against, str) and row.against != "peer":
            assert row.against in known
        assert row.library in {*bench.LIBRARIES, "", "multiprocessing"}
    assert len({row.id for row in bench.ROWS}) == len(bench.ROWS)


def test_runs_without_the_peer(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    peers = []

    def measured(row, peer, **_):
        peers.append(peer)
        return bench.Line(
            id=row.id,
            group=row.group,
            unit="ns",
            ours=1.0,
            against="limit",
            other=2.0,
            ratio=0.5,
            better="lower",
            goal=1.0,
            met=True,
            error=None,
        )

    monkeypatch.setattr(bench, "_measure", measured)
    target = tmp_path / "rows.json"
    assert bench.main(["--only", "life,queue.spsc", "--quick", "--json", str(target)]) == 0
    rows = json.loads(target.read_text())
    assert {row["id"] for row in rows} <= {"life.blocked_actor", "life.thousand", "queue.spsc"}
    assert "queue.spsc" in {row["id"] for row in rows}
    assert set(peers) == {None}
    assert "--peer installs it" in capsys.readouterr().out


def test_a_quick_look_runs_once_what_several_rows_need(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    runs = []

    def run(python, row, loop, count, script=None):
        runs.append((python, row, loop))
        return {"value": 1.0, "p99": 2.0}

    monkeypatch.setattr(bench, "_run", run)
    only = "asyncio.round_trip_p99_floor.asyncio,asyncio.round_trip_floor.asyncio"
    assert bench.main(["--only", only, "--quick"]) == 0
    assert [row for _, row, _ in runs] == ["round_trip", "spin", "bare_futures"]
    assert "[ 2/2] asyncio.round_trip_floor.asyncio" in capsys.readouterr().err
    runs.clear()
    assert bench.main(["--only", only]) == 0
    assert len(runs) == 2 * 2 * 7


def test_an_unknown_group_is_an_error(capsys):
    with pytest.raises(SystemExit):
        bench.main(["--only", "nothing"])
    assert "nothing" in capsys.readouterr().err


@pytest.mark.parametrize("row", ["queue.spsc", "asyncio.put_and_get.asyncio"])
def test_a_row_is_measured_in_a_process_of_its_own(row):
    (wanted,) = (one for one in bench.ROWS if one.id == row)
    line = bench._measure(wanted, None, pairs=1, count=300)
    assert line.error is None
    assert line.ours > 0


@pytest.mark.parametrize(
    "row", ["pagerank.turn.graphblas", "pagerank.whole.lists", "anomaly.batches.numpy"]
)
def test_ours_beside_a_library_is_measured_and_checked(row):
    (wanted,) = (one for one in bench.ROWS if one.id == row)
    figures = bench._run(bench.sys.executable, wanted.row, "", 300, bench._PEERS_SCRIPT)
    assert figures["value"] > 0


def test_a_library_that_is_absent_skips_its_rows(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(bench.importlib.util, "find_spec", lambda name: None)
    assert bench.main(["--only", "pagerank"]) == 0
    assert "skipped: graphblas is not installed" in capsys.readouterr().out
