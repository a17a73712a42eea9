"""The detectors: the Python source, interpreted and compiled, and the Rust core, bit for bit."""

import asyncio
import math
import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest

from pydotcompute import RingKernelRuntime, _optional
from pydotcompute.exceptions import PyDotComputeError
from pydotcompute.handlers import record_dtype
from pydotcompute.ring_kernels.lifecycle import Restart
from pydotcompute.workloads import anomaly

needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="processes need Linux")
pytestmark = pytest.mark.filterwarnings("ignore:ring kernel .* is interpreted:RuntimeWarning")

KEYS = 50
MODELS = {
    "ewma": (anomaly.ewma, {"alpha": 0.05, "threshold": 3.0, "warm_up": 8}),
    "robust": (anomaly.robust, {"window": 9, "threshold": 3.0, "warm_up": 8}),
    "seasonal": (anomaly.seasonal, {"slots": 4, "slot": 25.0, "threshold": 3.0, "warm_up": 8}),
}


def log_of(count):
    """Outliers, late events, and what cannot be used."""
    random = np.random.default_rng(11)
    log = anomaly.events(
        keys=random.integers(0, KEYS + 1, count),
        values=random.integers(-500, 500, count).astype(float),
        times=np.arange(count, dtype=float),
    )
    log["value"][random.integers(0, count, count // 50)] *= 100.0
    log["value"][random.integers(0, count, count // 100)] = math.inf
    log["time"][random.integers(0, count, count // 40)] -= 500.0
    log["time"][random.integers(0, count, count // 200)] = math.nan
    return log


def children():
    """The processes that this one has started and not waited for."""
    files = Path("/proc/self/task").glob("*/children")
    return {int(child) for file in files for child in file.read_text().split()}


def named_log_of(count, keys=KEYS):
    """The same with names; some events have none, which cannot be said by `named_events`."""
    numbers = log_of(count)
    names = np.array([f"hall {key % 7}, sensor {key}" for key in range(keys)])
    log = anomaly.named_events(names[numbers["key"] % keys], numbers["value"], numbers["time"])
    log["name"][:: count // 20] = 0
    return log


async def run(detector, log, batch, state=None, **options):
    async with RingKernelRuntime() as runtime:
        kernel = await runtime.launch("detect", detector, state=state, **options)
        await kernel.activate()
        alarms = b""
        for start in range(0, len(log), batch):
            made = await runtime.send_and_receive("detect", log[start : start + batch], timeout=300)
            alarms += made.tobytes()
        return alarms, kernel._compiled.state_bytes(60.0), kernel.read_state()


@pytest.mark.parametrize("model", MODELS)
def test_the_python_source_and_the_rust_core_give_the_same_bytes(model):
    make, settings = MODELS[model]
    compiled = bool(_optional.numba())
    log = log_of(20_000 if compiled else 5_000)
    native = asyncio.run(run(make(keys=KEYS, native=True, **settings), log, 1000))
    python = asyncio.run(run(make(keys=KEYS, **settings), log, 1000))
    assert python[0] == native[0]
    assert python[1] == native[1]
    state = python[2]
    assert state.taken + state.late + state.malformed == len(log)
    assert min(state.late, state.malformed) > len(log) // 200
    assert state.unusual * 48 == len(python[0])
    assert state.unusual > len(log) // 200


@pytest.mark.parametrize("model", MODELS)
def test_interpreted_it_gives_the_same_bytes(model, monkeypatch):
    make, settings = MODELS[model]
    log = log_of(600)
    native = asyncio.run(run(make(keys=KEYS, native=True, **settings), log, 100))
    absent = _optional.Found(None, "it is not wanted")
    monkeypatch.setattr(_optional, "numba", lambda: absent)
    interpreted = asyncio.run(run(make(keys=KEYS, **settings), log, 100))
    assert interpreted[:2] == native[:2]


@pytest.mark.parametrize("model", MODELS)
def test_names_have_the_same_bytes_from_the_python_source_and_the_rust_core(model):
    make, settings = MODELS[model]
    log = named_log_of(20_000 if _optional.numba() else 3_000)
    # A table that the names fill to the last.
    native = asyncio.run(run(make(keys=KEYS, named=True, native=True, **settings), log, 1000))
    python = asyncio.run(run(make(keys=KEYS, named=True, **settings), log, 1000))
    assert python[0] == native[0]
    assert python[1] == native[1]
    state = python[2]
    assert state.taken + state.late + state.malformed == len(log)
    assert (state.known, state.keys) == (KEYS, KEYS)
    assert state.unusual * 72 == len(python[0])
    assert state.unusual > len(log) // 200
    assert sorted(filter(None, anomaly.texts(state.names))) == sorted(
        f"hall {key % 7}, sensor {key}" for key in range(KEYS)
    )


@pytest.mark.parametrize("model", MODELS)
def test_names_have_what_numbers_have(model):
    make, settings = MODELS[model]
    named = named_log_of(3_000)
    named = named[named["name"].any(axis=1)]
    table = anomaly.KeyTable()
    numbers = anomaly.events(
        table.numbers(anomaly.texts(named["name"]).tolist()),
        named["value"],
        named["time"],
        named["sequence"],
    )
    by_name = asyncio.run(run(make(keys=KEYS, named=True, native=True, **settings), named, 500))
    by_number = asyncio.run(run(make(keys=KEYS, native=True, **settings), numbers, 500))
    found = np.frombuffer(by_name[0], record_dtype(anomaly.NamedAlarm))
    expected = np.frombuffer(by_number[0], record_dtype(anomaly.Alarm))
    assert anomaly.texts(found["name"]).tolist() == [table.names[key] for key in expected["key"]]
    for field in ("sequence", "time", "value", "expected", "deviation", "z"):
        np.testing.assert_array_equal(found[field], expected[field])


def test_interpreted_names_have_the_same_bytes(monkeypatch):
    make, settings = MODELS["ewma"]
    log = named_log_of(600)
    native = asyncio.run(run(make(keys=KEYS, named=True, native=True, **settings), log, 100))
    absent = _optional.Found(None, "it is not wanted")
    monkeypatch.setattr(_optional, "numba", lambda: absent)
    interpreted = asyncio.run(run(make(keys=KEYS, named=True, **settings), log, 100))
    assert interpreted[:2] == native[:2]


@pytest.mark.parametrize("native", [True, False], ids=["native", "python"])
def test_a_name_too_many_is_a_fault_that_says_so(native):
    detector = anomaly.ewma(keys=3, named=True, native=native)
    log = anomaly.named_events(["a", "b", "c", "d"], [1.0, 1.0, 1.0, 1.0])
    with pytest.raises(PyDotComputeError, match="the table of names is full"):
        asyncio.run(run(detector, log, 10))


@pytest.mark.parametrize("native", [True, False], ids=["native", "python"])
def test_a_snapshot_of_names_is_gone_on_from(native):
    log = named_log_of(2_000)

    def detector():
        return anomaly.ewma(keys=2 * KEYS, named=True, native=native, **MODELS["ewma"][1])

    whole = asyncio.run(run(detector(), log, 100))
    first = asyncio.run(run(detector(), log[:900], 100))
    second = asyncio.run(run(detector(), log[900:], 100, state=vars(first[2])))
    assert first[0] + second[0] == whole[0]
    assert second[1] == whole[1]


@needs_linux
@pytest.mark.parametrize("native", [True, False], ids=["native", "python"])
@pytest.mark.parametrize("named", [False, True], ids=["numbers", "names"])
def test_a_process_gives_the_same_bytes_as_a_thread(named, native):
    make, settings = MODELS["robust"]
    log = named_log_of(2_000) if named else log_of(2_000)

    def detector():
        return make(keys=np.int64(KEYS), named=named, native=native, **settings)

    here = asyncio.run(run(detector(), log, 500))
    there = asyncio.run(run(detector(), log, 500, executor="process"))
    assert there[:2] == here[:2]


@needs_linux
def test_a_process_that_is_killed_leaves_the_state_as_of_its_last_message():
    make, settings = MODELS["ewma"]
    log = log_of(3_000)
    restart = Restart(max_restarts=10, backoff=0)

    async def killed_midway():
        others = children()
        async with RingKernelRuntime() as runtime:
            options = {"executor": "process", "restart": restart}
            detector = make(keys=KEYS, native=True, **settings)
            kernel = await runtime.launch("detect", detector, **options)
            await kernel.activate()
            alarms = b""
            for start in range(0, len(log), 500):
                if start == 1_500:
                    before = kernel._compiled.state_bytes(60.0)
                    (child,) = children() - others
                    os.kill(child, signal.SIGKILL)
                    assert kernel._compiled.state_bytes(60.0) == before
                made = await runtime.send_and_receive(
                    "detect", log[start : start + 500], timeout=300
                )
                alarms += made.tobytes()
            assert children() - others - {child}, "another one has gone on"
            return alarms, kernel._compiled.state_bytes(60.0)

    assert (
        asyncio.run(killed_midway()) == asyncio.run(run(make(keys=KEYS, **settings), log, 500))[:2]
    )


def test_names_are_texts_of_up_to_24_bytes():
    for names in (["oven", "Zürich, Hbf"], [b"oven", b"x" * 24], np.array(["oven"])):
        made = anomaly.named_events(names, np.zeros(len(names)))
        texts = [name if isinstance(name, str) else name.decode() for name in names]
        assert anomaly.texts(made["name"]).tolist() == texts
    for wrong in ("", "x" * 25, "ü" * 13, "a\0b"):
        with pytest.raises(ValueError, match="at 1, is no name of a key"):
            anomaly.named_events(["oven", wrong], [1.0, 2.0])
    assert len(anomaly.named_events([], [])) == 0
    pyarrow = pytest.importorskip("pyarrow")
    made = anomaly.named_events(pyarrow.array(["b", "a", "b"]), [1.0, 2.0, 3.0])
    assert anomaly.texts(made["name"]).tolist() == ["b", "a", "b"]


@pytest.mark.parametrize("native", [True, False], ids=["native", "python"])
def test_a_snapshot_is_gone_on_from_as_if_nothing_had_been(native):
    log = log_of(2_000)
    make, settings = MODELS["ewma"]

    def detector():
        return make(keys=KEYS, native=native, **settings)

    whole = asyncio.run(run(detector(), log, 100))
    first = asyncio.run(run(detector(), log[:900], 100))
    second = asyncio.run(run(detector(), log[900:], 100, state=vars(first[2])))
    assert first[0] + second[0] == whole[0]
    assert second[1] == whole[1]


def test_names_get_numbers_in_the_order_of_their_appearance():
    table = anomaly.KeyTable()
    assert table.numbers(["b", "a", "b"]).tolist() == [0, 1, 0]
    assert table.numbers(np.array(["c", "a"])).tolist() == [2, 1]
    assert (table.names, len(table)) == (["b", "a", "c"], 3)


def test_arrays_of_pyarrow_are_numbered():
    pyarrow = pytest.importorskip("pyarrow")
    table = anomaly.KeyTable()
    table.numbers(["b"])
    names = pyarrow.chunked_array([["a", "b"], ["a", "c"]])
    assert table.numbers(names).tolist() == [1, 0, 1, 2]
    assert table.numbers(names.chunk(1)).tolist() == [1, 2]


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_times_are_seconds_whatever_they_are_counted_in(unit):
    times = np.array(["1970-01-01T00:00:02", "1969-12-31T23:59:59", "NaT"], "datetime64[s]")
    made = anomaly.events([0, 0, 0], [1.0, 2.0, 3.0], times.astype(f"datetime64[{unit}]"))
    np.testing.assert_array_equal(made["time"], [2.0, -1.0, np.nan])


def test_the_columns_of_a_parquet_file_are_events(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    columns = {
        "sensor": pyarrow.array(["oven", "door", "oven"]).dictionary_encode(),
        "time": pyarrow.array([0, 1500, 3000], pyarrow.timestamp("ms", "UTC")),
        "value": pyarrow.array([1.0, 2.0, None]),
    }
    # Several row groups, each with a dictionary of its own.
    parquet.write_table(pyarrow.table(columns), tmp_path / "readings.parquet", row_group_size=2)
    table = parquet.read_table(tmp_path / "readings.parquet")
    keys = anomaly.KeyTable()
    made = anomaly.events(keys.numbers(table["sensor"]), table["value"], table["time"])
    assert keys.names == ["oven", "door"]
    assert made["key"].tolist() == [0, 1, 0]
    assert made["time"].tolist() == [0.0, 1.5, 3.0]
    np.testing.assert_array_equal(made["value"], [1.0, 2.0, np.nan])


@pytest.mark.parametrize(
    ("make", "wrong", "says"),
    [
        (anomaly.ewma, {"alpha": 1.0}, "alpha"),
        (anomaly.ewma, {"threshold": 0.0}, "threshold"),
        (anomaly.ewma, {"warm_up": 1}, "warm_up"),
        (anomaly.ewma, {"keys": 0}, "keys"),
        (anomaly.robust, {"window": 2}, "window"),
        (anomaly.seasonal, {"slots": 1}, "slots"),
        (anomaly.seasonal, {"slot": math.nan}, "slot"),
    ],
)
def test_settings_out_of_range_are_refused(make, wrong, says):
    with pytest.raises(ValueError, match=f"^{says} is"):
        make(**wrong)
