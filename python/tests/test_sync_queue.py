"""`SyncQueue`, `SPSCQueue`, `FastSPSCQueue`: contract 9.10, 9.12, promises B9 and B11 to B19."""

import gc
import inspect
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from pydotcompute.exceptions import QueueFullError, QueueTimeoutError
from pydotcompute.ring_kernels import _cython
from pydotcompute.ring_kernels._cython import fast_spsc
from pydotcompute.ring_kernels._cython.fast_spsc import FastSPSCQueue
from pydotcompute.ring_kernels.sync_queue import SPSCQueue, SyncQueue

BOUND_S = 10.0
QUEUES: list[Callable[[int], Any]] = [SyncQueue, SPSCQueue, FastSPSCQueue]


def put(queue: Any, item: Any, timeout: float | None) -> bool:
    """A waiting put, the same for all: False if it could not be."""
    if isinstance(queue, FastSPSCQueue):
        return queue.put_wait(item, timeout)
    try:
        return bool(queue.put(item, timeout))
    except (QueueFullError, RuntimeError):
        return False


NOTHING = object()


def get(queue: Any, timeout: float | None) -> Any:
    """A waiting get, the same for all: `NOTHING` if there was none."""
    if isinstance(queue, FastSPSCQueue):
        return queue.get_wait(timeout, NOTHING)
    if isinstance(queue, SPSCQueue):
        return queue.get(timeout, NOTHING)
    try:
        return queue.get(timeout)
    except (QueueTimeoutError, RuntimeError):
        return NOTHING


def run_bounded(*functions: Callable[[], Any]) -> list[Any]:
    """Run each on a thread; fail rather than hang."""
    pool = ThreadPoolExecutor(len(functions))
    futures = [pool.submit(function) for function in functions]
    try:
        return [future.result(BOUND_S) for future in futures]
    finally:
        pool.shutdown(wait=False)


def wait_until_blocked() -> None:
    """Let threads that are about to wait get there. Correctness never depends on it."""
    time.sleep(0.02)


def test_signatures() -> None:
    def shown(function: Any) -> str:
        return str(inspect.signature(function))

    assert shown(SyncQueue) == "(maxsize=4096)"
    assert shown(SyncQueue.put) == "(self, /, item, timeout=None)"
    assert shown(SyncQueue.get) == "(self, /, timeout=None)"
    assert shown(SPSCQueue) == "(capacity=4096)"
    assert shown(FastSPSCQueue.put_wait) == "(self, /, item, timeout_sec=1.0)"
    for queue in (SyncQueue, SPSCQueue, FastSPSCQueue):
        assert queue[int] is not None
        assert not hasattr(queue(1), "__dict__")


def test_the_native_queue_is_always_there() -> None:
    assert _cython.is_cython_available() is True
    assert _cython.CYTHON_AVAILABLE is True
    assert _cython.FastSPSCQueue is fast_spsc.FastSPSCQueue is FastSPSCQueue


def test_sync_queue() -> None:
    queue: SyncQueue[int] = SyncQueue(2)
    assert (queue.maxsize, queue.qsize, queue.empty, queue.full) == (2, 0, True, False)
    assert queue.put(1) is True
    assert queue.put_nowait(2) is True
    assert queue.put_nowait(3) is False
    for timeout in (0, 0.01):
        with pytest.raises(QueueFullError) as full:
            queue.put(3, timeout)
        assert (full.value.kernel_id, full.value.queue_size) == ("sync_queue", 2)
    assert repr(queue) == "SyncQueue(size=2/2)"
    assert [queue.get(), queue.get_nowait(), queue.get_nowait()] == [1, 2, None]
    with pytest.raises(QueueTimeoutError) as timed_out:
        queue.get(timeout=0.01)
    assert (timed_out.value.operation, timed_out.value.timeout) == ("get", 0.01)
    assert queue.get_stats() == {
        "current_size": 0,
        "max_size": 2,
        "total_enqueued": 2,
        "total_dequeued": 2,
    }
    queue.put(5)
    queue.shutdown()
    assert queue.put_nowait(6) is False
    with pytest.raises(RuntimeError):
        queue.put(6)
    assert queue.get() == 5
    with pytest.raises(RuntimeError):
        queue.get()
    assert len(queue) == 0


def test_sync_queue_without_limit() -> None:
    queue: SyncQueue[int] = SyncQueue(0)
    assert all(queue.put(i) for i in range(10_000))
    assert (queue.full, queue.maxsize, queue.qsize) == (False, 0, 10_000)
    assert queue.clear() == 10_000


@pytest.mark.parametrize("size", [0, -1])
def test_capacities_are_checked(size: int) -> None:
    with pytest.raises(ValueError, match="capacity"):
        SPSCQueue(size)
    with pytest.raises(ValueError, match="capacity"):
        FastSPSCQueue(size)


@pytest.mark.parametrize("timeout", [0, -1, 0.01])
def test_b9_timeouts(timeout: float) -> None:
    for make in QUEUES:
        queue = make(1)
        assert get(queue, timeout) is NOTHING
        assert put(queue, 1, timeout) is True
        assert put(queue, 2, timeout) is False
        assert get(queue, timeout) == 1
        with pytest.raises(ValueError, match="NaN"):
            get(queue, float("nan")) if make is not SyncQueue else queue.get(float("nan"))


@pytest.mark.parametrize("make", QUEUES)
def test_b11_a_full_queue_loses_nothing(make: Callable[[int], Any]) -> None:
    queue = make(4)
    assert [put(queue, i, 0) for i in range(6)] == [True] * 4 + [False] * 2
    [result] = run_bounded(lambda: put(queue, 9, 0.01))
    assert result is False
    assert [get(queue, 0) for _ in range(5)] == [0, 1, 2, 3, NOTHING]


@pytest.mark.parametrize("make", QUEUES)
@pytest.mark.parametrize("size", [1, 2, 64])
def test_b13_b14_no_wake_up_is_lost(make: Callable[[int], Any], size: int) -> None:
    queue = make(size)
    count = 5000

    def produce() -> None:
        assert all(put(queue, i, None) for i in range(count))

    def consume() -> list[int]:
        return [get(queue, None) for _ in range(count)]

    _, got = run_bounded(produce, consume)
    assert got == list(range(count))
    assert len(queue) == 0
    assert queue.get_nowait() is None


@pytest.mark.parametrize("make", QUEUES)
def test_b14_ping_pong(make: Callable[[int], Any]) -> None:
    there, back = make(1), make(1)

    def pong() -> None:
        for _ in range(1000):
            put(back, get(there, None) + 1, None)

    def ping() -> None:
        for i in range(1000):
            put(there, i, None)
            assert get(back, None) == i + 1

    run_bounded(ping, pong)


def test_b15_queues_hold_their_capacity() -> None:
    for asked, held in [(1, 1), (2, 2), (3, 4), (100, 128)]:
        queue: SPSCQueue[int] = SPSCQueue(asked)
        assert queue.capacity == held
        assert sum(queue.put_nowait(i) for i in range(held + 5)) == held
        assert (queue.full, queue.size) == (True, held)
        assert repr(queue) == f"SPSCQueue(size={held}/{held})"
        assert queue.clear() == held


def test_b16_a_queue_that_is_shut_down_takes_nothing_and_says_so() -> None:
    for make in QUEUES:
        queue = make(4)
        assert queue.closed is False
        put(queue, 1, 0)
        queue.shutdown()
        queue.shutdown()
        assert queue.closed is True
        assert queue.put_nowait(2) is False
        assert put(queue, 2, None) is False
        assert get(queue, None) == 1
        assert get(queue, None) is NOTHING


@pytest.mark.parametrize("make", QUEUES)
def test_shutdown_wakes_everybody(make: Callable[[int], Any]) -> None:
    empty, full = make(1), make(1)
    put(full, 0, None)

    def stop() -> None:
        wait_until_blocked()
        empty.shutdown()
        full.shutdown()

    waiting = [lambda: get(empty, None)] * 3 + [lambda: put(full, 1, None)] * 3
    results = run_bounded(*waiting, stop)
    assert results == [NOTHING] * 3 + [False] * 3 + [None]
    assert get(full, None) == 0


def test_b17_a_full_fast_queue_says_false() -> None:
    queue: FastSPSCQueue[int] = FastSPSCQueue(2)
    assert [queue.put(i) for i in range(4)] == [True, True, False, False]
    assert queue.put_wait(9, 0.01) is False
    assert (queue.size, queue.full, len(queue)) == (2, True, 2)
    assert [queue.get() for _ in range(3)] == [0, 1, None]
    assert queue.get_wait(0.01) is None
    assert repr(queue) == "FastSPSCQueue(size=0/2)"


@pytest.mark.parametrize("make", QUEUES)
def test_b18_cycles_through_a_queue_are_collected(make: Callable[[int], Any]) -> None:
    class Node:
        queue: Any

    node, queue = Node(), make(4)
    node.queue = queue
    put(queue, node, 0)
    assert gc.is_tracked(queue)
    gone = weakref.ref(node)
    del node, queue
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("make", QUEUES)
def test_b18_what_is_in_a_living_queue_survives_the_collector(make: Callable[[int], Any]) -> None:
    queue = make(4)
    item = [1]
    put(queue, item, 0)
    del item
    gc.collect()
    assert get(queue, 0) == [1]


def test_b19_none_is_an_item_and_capacity_is_exact() -> None:
    queue: FastSPSCQueue[Any] = FastSPSCQueue(3)
    assert queue.capacity == 3
    assert queue.put(None) is True
    assert queue.size == 1
    assert queue.get() is None
    assert queue.size == 0
    for item in (None, 0, "", [], False):
        assert queue.put_nowait(item)
        assert queue.get_nowait(NOTHING) is item
    assert queue.get_nowait(NOTHING) is NOTHING
    names = {name for name in dir(SPSCQueue) if not name.startswith("_")}
    assert names <= {name for name in dir(FastSPSCQueue) if not name.startswith("_")}


@pytest.mark.parametrize("make", QUEUES)
def test_c11_any_number_of_producers_and_consumers(make: Callable[[int], Any]) -> None:
    queue = make(8)
    each = 500

    def produce(first: int) -> None:
        for i in range(first, first + each):
            assert put(queue, i, None)

    def consume() -> list[int]:
        return [get(queue, None) for _ in range(each)]

    producers = [lambda first=i * each: produce(first) for i in range(4)]
    results = run_bounded(*producers, *[consume] * 4)
    assert sorted(i for got in results[4:] for i in got) == list(range(4 * each))


def test_objects_are_released_outside_the_lock() -> None:
    queue: FastSPSCQueue[Any] = FastSPSCQueue(4)

    class Nosy:
        def __del__(self) -> None:
            sizes.append(queue.size)
            queue.put(1)

    sizes: list[int] = []
    queue.put(Nosy())
    queue.put(Nosy())
    queue.clear()
    assert sizes == [1, 1]


def test_a_wait_releases_the_gil() -> None:
    queue: SPSCQueue[int] = SPSCQueue(4)

    def work() -> int:
        wait_until_blocked()
        queue.put(sum(range(100_000)))
        return 0

    got, _ = run_bounded(queue.get, work)
    assert got == sum(range(100_000))


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
@pytest.mark.parametrize(
    "wait", ["q.get()", "q.get(60)", "f.get_wait(None)", "s.get()", "full.put(1)", "s.get(60)"]
)
def test_ctrl_c_ends_a_wait_of_the_main_thread(wait: str) -> None:
    code = f"""
        import sys
        from pydotcompute.ring_kernels.sync_queue import SPSCQueue, SyncQueue
        from pydotcompute.ring_kernels._cython import FastSPSCQueue
        q, s, f, full = SPSCQueue(), SyncQueue(), FastSPSCQueue(), SPSCQueue(1)
        full.put(0)
        print("ready", flush=True)
        try:
            {wait}
        except KeyboardInterrupt:
            sys.exit(7)
    """
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    try:
        assert child.stdout.readline() == "ready\n"
        wait_until_blocked()
        child.send_signal(signal.SIGINT)
        assert child.wait(BOUND_S) == 7
    finally:
        child.kill()
        child.wait()
        child.stdout.close()


def test_threads_started_before_the_wait_see_its_message() -> None:
    queue: SyncQueue[int] = SyncQueue(1)
    results: list[int] = []
    threads = [threading.Thread(target=lambda: results.append(queue.get())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for i in range(8):
        queue.put(i, BOUND_S)
    for thread in threads:
        thread.join(BOUND_S)
    assert sorted(results) == list(range(8))
