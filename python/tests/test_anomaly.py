"""The detectors: the Python source, interpreted and compiled, and the Rust core, bit for bit."""

import asyncio
import math

import numpy as np
import pytest

from pydotcompute import RingKernelRuntime, _optional
from pydotcompute.workloads import anomaly

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


async def run(detector, log, batch, state=None):
    async with RingKernelRuntime() as runtime:
        kernel = await runtime.launch("detect", detector, state=state)
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
