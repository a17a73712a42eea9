"""One handler source: interpreted, compiled on a thread and compiled in a process it makes the same
replies and the same state."""

import asyncio
import os
import sys
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from parity_handler import Quote, Trade, book

from pydotcompute import RingKernelRuntime, _optional
from pydotcompute.handlers import record_dtype

pytest.importorskip("numba")

pytestmark = pytest.mark.filterwarnings("ignore:ring kernel .* is interpreted:RuntimeWarning")


async def replies_of(
    log: Any, batch: int, executor: Literal["process"] | None = None
) -> tuple[bytes, bytes]:
    """All replies and the state at the end, as bytes."""
    async with RingKernelRuntime() as runtime:
        kernel = await runtime.launch("book", book, executor=executor)
        await kernel.activate()
        replies = b""
        for start in range(0, len(log), batch):
            made = await runtime.send_and_receive("book", log[start : start + batch], timeout=300)
            replies += made.tobytes()
        assert kernel._compiled is not None
        return replies, kernel._compiled.state_bytes(30.0)


def both(log: Any, batch: int) -> None:
    compiled = asyncio.run(replies_of(log, batch))
    found = _optional.numba
    try:
        _optional.numba = lambda: _optional.Found(None, "it is not wanted")  # type: ignore[assignment]
        interpreted = asyncio.run(replies_of(log, batch))
    finally:
        _optional.numba = found
    if compiled[0] != interpreted[0]:
        ours, theirs = (
            np.frombuffer(one[0], record_dtype(Quote)) for one in (compiled, interpreted)
        )
        assert ours.tolist() == theirs.tolist()
    assert compiled == interpreted
    assert len(log) < 100 or len(compiled[0]) > len(log)


def logs(seed: int, count: int) -> Any:
    """A log in which every field takes small, large and extreme values."""
    random = np.random.default_rng(seed)
    log = np.zeros(count, record_dtype(Trade))
    log["account"] = random.integers(0, 1 << 16, count)
    log["side"] = random.integers(-128, 128, count)
    log["flags"] = random.integers(0, 256, count)
    log["quantity"] = random.choice([0, 1, 77, 65_535, (1 << 32) - 1], count)
    log["price"] = random.choice([0.1, 1.5, -3.25, 1e-30, 0.0], count)
    log["value"] = random.normal(0, 1e6, count)
    log["sequence"] = random.integers(0, 1 << 63, count, dtype=np.uint64)
    return log


trades = st.tuples(
    st.integers(0, 65_535),
    st.integers(-128, 127),
    st.integers(0, 255),
    st.integers(0, (1 << 32) - 1),
    st.floats(width=32, allow_nan=False, allow_infinity=False),
    st.floats(allow_nan=False, allow_infinity=False, min_value=-1e300, max_value=1e300),
    st.integers(0, (1 << 64) - 1),
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(log=st.lists(trades, min_size=1, max_size=20), batch=st.integers(1, 7))
def test_any_log_gives_the_same_replies_and_state(log: list[Any], batch: int) -> None:
    both(np.array(log, record_dtype(Trade)), batch)


#: A million where `make check-deep` asks for them.
MESSAGES = int(os.environ.get("PARITY_MESSAGES", "20000"))


def test_a_long_log_gives_the_same_replies_and_state() -> None:
    both(logs(1, MESSAGES), 1000)


@pytest.mark.skipif(sys.platform != "linux", reason="processes need Linux")
def test_a_long_log_gives_the_same_replies_and_state_in_a_process() -> None:
    log = logs(1, MESSAGES)
    here = asyncio.run(replies_of(log, 1000))
    there = asyncio.run(replies_of(log, 1000, "process"))
    assert len(here[0]) > len(log)
    assert here == there
