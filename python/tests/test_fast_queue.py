"""`FastMessageQueue` and `RingBuffer`: contract 9.4, promises B1, B2, B6 to B10."""

import asyncio
import gc
import inspect
import threading
import weakref
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import pytest

from pydotcompute.exceptions import QueueFullError, QueueTimeoutError
from pydotcompute.ring_kernels.fast_queue import (
    FastMessageQueue,
    PriorityBand,
    QueueStats,
    RingBuffer,
    get_priority_band,
)
from pydotcompute.ring_kernels.queue import MessageQueue

AsyncQueue = Callable[[int], Any]
QUEUES: list[AsyncQueue] = [FastMessageQueue, RingBuffer, MessageQueue]
BOUND_S = 10.0


@dataclass
class Prioritised:
    priority: int
    name: str = ""


async def bounded(awaitable: Awaitable[Any]) -> Any:
    return await asyncio.wait_for(awaitable, BOUND_S)


async def settle() -> None:
    """Let every task that can run do so."""
    for _ in range(5):
        await asyncio.sleep(0)


def test_bands() -> None:
    assert [get_priority_band(p) for p in (255, 224, 223, 160, 159, 64, 63, 0)] == [
        PriorityBand.SYSTEM,
        PriorityBand.SYSTEM,
        PriorityBand.HIGH,
        PriorityBand.HIGH,
        PriorityBand.NORMAL,
        PriorityBand.NORMAL,
        PriorityBand.LOW,
        PriorityBand.LOW,
    ]
    assert [band.value for band in PriorityBand] == [0, 1, 2, 3]


def test_signatures() -> None:
    def shown(function: Any) -> str:
        return str(inspect.signature(function))

    assert shown(FastMessageQueue) == "(maxsize=4096, *, kernel_id='', serialize=False)"
    assert shown(RingBuffer) == "(capacity=4096)"
    assert shown(FastMessageQueue.put) == "(self, /, message, *, timeout=None)"
    assert shown(RingBuffer.get) == "(self, /, *, timeout=None)"
    assert FastMessageQueue[int] is not None
    assert RingBuffer[int] is not None
    assert not hasattr(FastMessageQueue(1), "__dict__")


def test_properties_and_repr() -> None:
    queue: FastMessageQueue[Any] = FastMessageQueue(2)
    assert (queue.maxsize, queue.qsize, queue.empty, queue.full) == (2, 0, True, False)
    assert queue.put_nowait(1)
    assert queue.put_nowait(2)
    assert not queue.put_nowait(3)
    assert (queue.qsize, len(queue), queue.empty, queue.full) == (2, 2, False, True)
    assert repr(queue) == "FastMessageQueue(size=2/2)"
    assert queue.clear() == 2
    assert queue.get_nowait() is None


@pytest.mark.parametrize("maxsize", [-1, -4096])
def test_negative_sizes_are_refused(maxsize: int) -> None:
    with pytest.raises(ValueError, match="maxsize"):
        FastMessageQueue(maxsize)
    with pytest.raises(ValueError, match="capacity"):
        RingBuffer(maxsize)


def test_b5_maxsize_0_is_unlimited() -> None:
    queue: FastMessageQueue[int] = FastMessageQueue(0)
    assert all(queue.put_nowait(i) for i in range(10_000))
    assert (queue.qsize, queue.full) == (10_000, False)


async def test_band_order_and_fifo_in_a_band() -> None:
    queue: FastMessageQueue[Prioritised] = FastMessageQueue(10)
    for priority, name in [(10, "low"), (100, "a"), (120, "b"), (255, "system"), (200, "high")]:
        assert await queue.put(Prioritised(priority, name))
    names = [(await queue.get()).name for _ in range(5)]
    assert names == ["system", "high", "a", "b", "low"]


@pytest.mark.parametrize("priority", ["high", None, 10_000, -5, 2.5])
async def test_odd_priorities_do_not_fail(priority: Any) -> None:
    queue: FastMessageQueue[Prioritised] = FastMessageQueue(10)
    message = Prioritised(priority)
    assert await queue.put(message)
    assert await queue.get() is message


@pytest.mark.parametrize("item", [None, 0, "", (), (1, 2), ValueError("x"), StopIteration(3)])
@pytest.mark.parametrize("make", QUEUES)
async def test_every_object_comes_out_as_itself(make: AsyncQueue, item: Any) -> None:
    queue = make(4)
    assert await queue.put(item) is True
    assert await queue.get() is item
    waiting = asyncio.ensure_future(queue.get())
    await settle()
    assert queue.put_nowait(item)
    assert await bounded(waiting) is item


@pytest.mark.parametrize("make", QUEUES)
@pytest.mark.parametrize("size", [1, 2, 7])
async def test_b1_producer_and_consumer_never_wait_on_each_other(
    make: AsyncQueue, size: int
) -> None:
    queue = make(size)

    async def produce() -> None:
        for i in range(2000):
            await queue.put(i)

    async def consume() -> list[int]:
        return [await queue.get() for _ in range(2000)]

    _, got = await bounded(asyncio.gather(produce(), consume()))
    assert got == list(range(2000))


@pytest.mark.parametrize("make", QUEUES)
async def test_b1_many_producers_and_consumers(make: AsyncQueue) -> None:
    queue = make(2)

    async def produce(first: int) -> None:
        for i in range(first, first + 200):
            await queue.put(i)

    async def consume() -> list[int]:
        return [await queue.get() for _ in range(200)]

    results = await bounded(
        asyncio.gather(*(produce(i * 200) for i in range(5)), *(consume() for _ in range(5)))
    )
    assert sorted(i for got in results[5:] for i in got) == list(range(1000))


@pytest.mark.parametrize("make", QUEUES)
async def test_b2_nowait_calls_wake_waiters(make: AsyncQueue) -> None:
    queue = make(1)
    getter = asyncio.create_task(queue.get())
    await settle()
    assert queue.put_nowait(1)
    assert await bounded(getter) == 1

    assert queue.put_nowait(2)
    putter = asyncio.create_task(queue.put(3))
    await settle()
    assert not putter.done()
    assert queue.get_nowait() == 2
    assert await bounded(putter) is True

    putter = asyncio.create_task(queue.put(4))
    await settle()
    assert queue.clear() == 1
    assert await bounded(putter) is True
    assert queue.get_nowait() == 4


async def test_b2_batches_wake_waiters() -> None:
    queue: FastMessageQueue[int] = FastMessageQueue(2)
    getters = [asyncio.create_task(queue.get()) for _ in range(2)]  # type: ignore[arg-type]
    await settle()
    assert queue.put_batch([1, 2, 3, 4]) == 2
    assert sorted(await bounded(asyncio.gather(*getters))) == [1, 2]
    assert queue.put_batch([5, 6, 7]) == 2
    putters = [asyncio.create_task(queue.put(i)) for i in (8, 9)]  # type: ignore[arg-type]
    await settle()
    assert queue.get_batch(2) == [5, 6]
    assert await bounded(asyncio.gather(*putters)) == [True, True]
    assert queue.get_batch(0) == []
    assert queue.get_batch(10) == [8, 9]


@pytest.mark.parametrize("make", QUEUES)
async def test_b2_a_foreign_thread_wakes_the_loop(make: AsyncQueue) -> None:
    queue = make(1000)
    got: list[int] = []

    async def consume() -> None:
        got.extend([await queue.get() for _ in range(500)])

    def produce() -> None:
        for i in range(500):
            assert queue.put_nowait(i)

    task = asyncio.create_task(consume())
    await settle()
    thread = threading.Thread(target=produce)
    thread.start()
    await bounded(task)
    thread.join(BOUND_S)
    assert got == list(range(500))


@pytest.mark.parametrize("make", QUEUES)
def test_two_loops_in_two_threads_share_a_queue(make: AsyncQueue) -> None:
    there, back = make(1), make(1)

    async def ping() -> list[int]:
        answers = []
        for i in range(300):
            await there.put(i)
            answers.append(await back.get())
        return answers

    async def pong() -> None:
        for _ in range(300):
            await back.put(await there.get() + 1)

    thread = threading.Thread(target=lambda: asyncio.run(pong()))
    thread.start()
    answers = asyncio.run(asyncio.wait_for(ping(), BOUND_S))
    thread.join(BOUND_S)
    assert answers == [i + 1 for i in range(300)]


async def test_b6_a_lower_band_is_served_while_higher_ones_have_traffic() -> None:
    queue: FastMessageQueue[Prioritised] = FastMessageQueue(10)
    await queue.put(Prioritised(0, "low"))
    for passed in range(1000):
        await queue.put(Prioritised(200))
        if (await queue.get()).name == "low":
            assert passed <= 300
            break
    else:
        pytest.fail("the low band starved")


class Serialisable:
    priority = 128

    def __init__(self, value: int) -> None:
        self.value = value

    def serialize(self) -> bytes:
        return str(self.value).encode()

    @classmethod
    def deserialize(cls, data: bytes) -> "Serialisable":
        return cls(int(data))


async def test_b7_serialize_gives_messages_back_not_bytes() -> None:
    queue: FastMessageQueue[Serialisable] = FastMessageQueue(4, serialize=True)
    message = Serialisable(7)
    await queue.put(message)
    got = await queue.get()
    assert isinstance(got, Serialisable)
    assert got is not message
    assert got.value == 7
    assert queue.put_nowait(Serialisable(8))
    nowait = queue.get_nowait()
    assert nowait is not None
    assert nowait.value == 8
    assert queue.put_batch([Serialisable(i) for i in range(3)]) == 3
    assert [m.value for m in queue.get_batch(9)] == [0, 1, 2]


@pytest.mark.parametrize("make", QUEUES)
async def test_b8_a_cancelled_getter_passes_its_wake_up_on(make: AsyncQueue) -> None:
    queue = make(4)
    first = asyncio.create_task(queue.get())
    second = asyncio.create_task(queue.get())
    await settle()
    queue.put_nowait("x")
    first.cancel()
    assert await bounded(second) == "x"
    with pytest.raises(asyncio.CancelledError):
        await first


@pytest.mark.parametrize("make", QUEUES)
async def test_b8_a_cancelled_putter_holds_nobody_up(make: AsyncQueue) -> None:
    queue = make(1)
    queue.put_nowait(0)
    first = asyncio.create_task(queue.put(1))
    second = asyncio.create_task(queue.put(2))
    await settle()
    first.cancel()
    await settle()
    assert queue.get_nowait() == 0
    assert await bounded(second) is True
    assert queue.get_nowait() == 2


@pytest.mark.parametrize("make", QUEUES)
async def test_a24_cancel_counts_in_the_tick_in_which_the_message_comes(make: AsyncQueue) -> None:
    queue = make(4)
    task = asyncio.create_task(queue.get(timeout=5))
    await settle()
    queue.put_nowait("x")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert queue.get_nowait() == "x"


@pytest.mark.parametrize("timeout", [0, -1, 0.01])
async def test_b9_timeouts_of_a_message_queue(timeout: float) -> None:
    queue: FastMessageQueue[int] = FastMessageQueue(1, kernel_id="k")
    with pytest.raises(QueueTimeoutError) as timed_out:
        await bounded(queue.get(timeout=timeout))
    assert (timed_out.value.kernel_id, timed_out.value.operation) == ("k", "receive")
    assert timed_out.value.timeout == timeout
    await queue.put(1)
    with pytest.raises(QueueFullError) as full:
        await bounded(queue.put(2, timeout=timeout))
    assert (full.value.kernel_id, full.value.queue_size) == ("k", 1)
    assert queue.qsize == 1
    assert await queue.get(timeout=timeout) == 1


@pytest.mark.parametrize("timeout", [0, -1, 0.01])
async def test_b9_timeouts_of_a_ring_buffer(timeout: float) -> None:
    queue: RingBuffer[int] = RingBuffer(1)
    assert await bounded(queue.get(timeout=timeout)) is None
    assert await queue.put(1, timeout=timeout) is True
    assert await bounded(queue.put(2, timeout=timeout)) is False
    assert await queue.get(timeout=timeout) == 1


async def test_b9_odd_timeouts() -> None:
    queue: FastMessageQueue[int] = FastMessageQueue(1)
    with pytest.raises(ValueError, match="NaN"):
        queue.get(timeout=float("nan"))
    with pytest.raises(TypeError):
        queue.get(timeout="soon")  # type: ignore[arg-type]
    forever = asyncio.ensure_future(queue.get(timeout=float("inf")))
    await settle()
    queue.put_nowait(1)
    assert await bounded(forever) == 1


async def test_a_timeout_of_zero_lets_others_run() -> None:
    queue: FastMessageQueue[int] = FastMessageQueue(1)
    ran = False

    async def other() -> None:
        nonlocal ran
        ran = True

    task = asyncio.create_task(other())
    with pytest.raises(QueueTimeoutError):
        await queue.get(timeout=0)
    assert ran
    await task


async def test_b10_statistics_are_kept() -> None:
    queue: FastMessageQueue[Prioritised] = FastMessageQueue(4)
    for priority in (255, 200, 100, 0):
        await queue.put(Prioritised(priority))
    assert not queue.put_nowait(Prioritised(1))
    assert queue.get_stats() == {
        "current_size": 4,
        "max_size": 4,
        "peak_size": 4,
        "total_enqueued": 4,
        "total_dequeued": 0,
        "total_dropped": 0,
        "band_counts": {"system": 1, "high": 1, "normal": 1, "low": 1},
    }
    await queue.get()
    assert queue.clear() == 3
    stats = queue.get_stats()
    assert (stats["total_dequeued"], stats["total_dropped"], stats["peak_size"]) == (1, 3, 4)
    assert stats["band_counts"] == {"system": 0, "high": 0, "normal": 0, "low": 0}
    del stats["max_size"]
    assert QueueStats(**stats).total_enqueued == 4
    assert QueueStats() == QueueStats(0, 0, 0, 0, 0, None)


async def test_b10_the_error_does_not_call_every_queue_input() -> None:
    queue: FastMessageQueue[int] = FastMessageQueue(1, kernel_id="k")
    queue.put_nowait(1)
    with pytest.raises(QueueFullError) as full:
        await queue.put(2, timeout=0)
    assert "Input queue" not in str(full.value)
    assert "'k'" in str(full.value)


def test_b15_ring_buffer_holds_its_capacity() -> None:
    for asked, held in [(1, 1), (2, 2), (3, 4), (4, 4), (5, 8)]:
        queue: RingBuffer[int] = RingBuffer(asked)
        assert queue.capacity == held
        assert [queue.put_nowait(i) for i in range(held + 1)] == [True] * held + [False]
        assert queue.full
        assert repr(queue) == f"RingBuffer(size={held}/{held})"
        assert [queue.get_nowait() for _ in range(held)] == list(range(held))


@pytest.mark.parametrize("make", QUEUES)
def test_b18_a_cycle_through_a_queue_is_collected(make: AsyncQueue) -> None:
    class Node:
        queue: Any

    node, queue = Node(), make(4)
    node.queue = queue
    queue.put_nowait(node)
    gone = weakref.ref(node)
    del node, queue
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("make", QUEUES)
def test_b18_a_task_that_waits_for_nobody_is_collected(make: AsyncQueue) -> None:
    class Mark:
        pass

    async def main() -> "weakref.ref[Mark]":
        mark = Mark()
        gone = weakref.ref(mark)

        async def wait(queue: Any, mark: Mark, full: bool) -> None:
            if full:
                queue.put_nowait(0)
                await queue.put(mark)
            await queue.get(), mark

        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda loop, context: None)
        tasks = [asyncio.create_task(wait(make(1), mark, full)) for full in (False, True)]
        await settle()
        del mark, tasks
        gc.collect()
        return gone

    gone = asyncio.run(main())
    assert gone() is None


@pytest.mark.parametrize("make", QUEUES)
async def test_an_await_is_a_coroutine_that_does_nothing_before_it_is_driven(
    make: AsyncQueue,
) -> None:
    queue = make(1)
    put = queue.put(1)
    assert asyncio.iscoroutine(put)
    assert queue.empty is True
    put.close()
    with pytest.raises(RuntimeError):
        await put
    async with asyncio.TaskGroup() as group:
        getting = group.create_task(queue.get())
        group.create_task(queue.put("x"))
    assert getting.result() == "x"
    loop = asyncio.get_running_loop()
    future = await loop.run_in_executor(
        None, lambda: asyncio.run_coroutine_threadsafe(queue.put("y"), loop)
    )
    assert await bounded(asyncio.wrap_future(future)) is True


async def test_throw_ends_an_await() -> None:
    queue: FastMessageQueue[int] = FastMessageQueue(1)
    with pytest.raises(KeyError):
        queue.get().throw(KeyError("x"))
    with pytest.raises(KeyError):
        queue.get().throw(KeyError, KeyError("x"))
    with pytest.raises(KeyError):
        queue.get().throw(KeyError)
    with pytest.raises(TypeError):
        queue.get().throw(3)


@pytest.mark.parametrize("make", QUEUES)
async def test_asyncio_timeout_and_wait_for_lose_nothing(make: AsyncQueue) -> None:
    queue = make(4)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await queue.get()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(queue.get(), 0.01)
    queue.put_nowait(1)
    assert await queue.get() == 1


def test_a_waiter_of_a_closed_loop_is_forgotten() -> None:
    queue: FastMessageQueue[int] = FastMessageQueue(4)
    loop = asyncio.new_event_loop()
    task = loop.create_task(queue.get())  # type: ignore[arg-type]
    loop.run_until_complete(settle())
    loop.close()
    assert queue.put_nowait(1)
    assert queue.get_nowait() == 1
    task._log_destroy_pending = False  # type: ignore[attr-defined]


def test_uvloop() -> None:
    uvloop = pytest.importorskip("uvloop")

    async def main() -> None:
        await test_b1_producer_and_consumer_never_wait_on_each_other(FastMessageQueue, 1)
        await test_b2_a_foreign_thread_wakes_the_loop(FastMessageQueue)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())


def test_debug_mode() -> None:
    asyncio.run(test_b2_a_foreign_thread_wakes_the_loop(FastMessageQueue), debug=True)
