"""`MessageQueue`: contract 9.3, promises B3 to B6."""

import asyncio
import inspect
import random
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pydotcompute.exceptions import QueueFullError, QueueTimeoutError, SendTimeoutError
from pydotcompute.ring_kernels import FastMessageQueue, SyncQueue
from pydotcompute.ring_kernels.lifecycle import RingKernelConfig, managed_kernel
from pydotcompute.ring_kernels.queue import BackpressureStrategy, MessageQueue, PriorityItem

BOUND_S = 10.0


@dataclass
class Prioritised:
    priority: int = 128
    name: Any = ""


def test_constructible_without_a_loop() -> None:
    queue: MessageQueue[Prioritised] = MessageQueue()
    assert (queue.maxsize, queue.qsize, queue.empty, queue.full) == (4096, 0, True, False)
    assert queue._backpressure is BackpressureStrategy.BLOCK
    assert queue._use_priority is True
    assert repr(queue) == "MessageQueue(size=0/4096, priority=True, backpressure=BLOCK)"
    assert MessageQueue[int] is not None
    assert [member.name for member in BackpressureStrategy] == ["BLOCK", "REJECT", "DROP_OLDEST"]
    parameters = inspect.signature(MessageQueue).parameters
    assert {name: parameter.default for name, parameter in parameters.items()} == {
        "maxsize": 4096,
        "backpressure": BackpressureStrategy.BLOCK,
        "use_priority": True,
        "kernel_id": "",
    }


def test_priority_items_are_ordered() -> None:
    assert PriorityItem(1, 2, "x") < PriorityItem(1, 3, "a") < PriorityItem(2, 0, "a")
    assert PriorityItem(1, 2, "x") == PriorityItem(1, 2, "y")


async def test_all_priorities_fifo_among_equals() -> None:
    queue: MessageQueue[Prioritised] = MessageQueue()
    rng = random.Random(7)
    messages = [Prioritised(rng.randrange(256), i) for i in range(2000)]
    for message in messages:
        await queue.put(message)
    got = [await queue.get() for _ in messages]
    assert got == sorted(messages, key=lambda message: (-message.priority, message.name))


async def test_fifo_mode() -> None:
    queue: MessageQueue[Prioritised] = MessageQueue(use_priority=False)
    messages = [Prioritised(p) for p in (0, 255, 100)]
    for message in messages:
        await queue.put(message)
    assert [await queue.get() for _ in messages] == messages


@pytest.mark.parametrize("use_priority", [True, False])
async def test_b3_block_blocks_at_maxsize(use_priority: bool) -> None:
    queue: MessageQueue[int] = MessageQueue(2, use_priority=use_priority, kernel_id="k")
    assert await queue.put(1)
    assert queue.put_nowait(2)
    assert not queue.put_nowait(3)
    with pytest.raises(QueueTimeoutError) as timed_out:
        await queue.put(4, timeout=0.01)
    assert (timed_out.value.operation, timed_out.value.kernel_id) == ("send", "k")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(queue.put(5), 0.01)
    waiting = asyncio.ensure_future(queue.put(6))
    await asyncio.sleep(0)
    assert queue.qsize == 2
    assert await queue.get() == 1
    assert await asyncio.wait_for(waiting, BOUND_S) is True
    assert [queue.get_nowait(), queue.get_nowait(), queue.get_nowait()] == [2, 6, None]


async def test_b4_drop_oldest_drops_the_oldest_of_the_lowest_priority() -> None:
    queue: MessageQueue[Prioritised] = MessageQueue(
        3, backpressure=BackpressureStrategy.DROP_OLDEST
    )
    for priority, name in [(255, "top"), (10, "old"), (10, "new")]:
        await queue.put(Prioritised(priority, name))
    assert await queue.put(Prioritised(100, "late"))
    assert queue.put_nowait(Prioritised(0, "least"))
    assert queue.qsize == 3
    assert queue.get_stats()["total_dropped"] == 2
    assert [(await queue.get()).name for _ in range(3)] == ["top", "late", "least"]


async def test_reject() -> None:
    queue: MessageQueue[int] = MessageQueue(1, kernel_id="k")
    queue._backpressure = BackpressureStrategy.REJECT
    assert queue._backpressure is BackpressureStrategy.REJECT
    assert await queue.put(1)
    with pytest.raises(QueueFullError) as full:
        await queue.put(2)
    assert (full.value.kernel_id, full.value.queue_size) == ("k", 1)
    assert queue.put_nowait(3) is False
    assert repr(queue) == "MessageQueue(size=1/1, priority=True, backpressure=REJECT)"


@pytest.mark.parametrize("strategy", BackpressureStrategy)
async def test_b5_maxsize_0_is_never_full(strategy: BackpressureStrategy) -> None:
    queue: MessageQueue[int] = MessageQueue(maxsize=0, backpressure=strategy)
    assert all(queue.put_nowait(i) for i in range(100))
    assert await queue.put(100)
    assert (queue.qsize, queue.full) == (101, False)


async def test_b6_an_old_message_is_served_under_steady_traffic() -> None:
    queue: MessageQueue[Prioritised] = MessageQueue(10)
    await queue.put(Prioritised(0, "low"))
    for passed in range(1000):
        await queue.put(Prioritised(200))
        if (await queue.get()).name == "low":
            assert passed <= 300
            break
    else:
        pytest.fail("the lowest priority starved")


async def test_blocked_senders_are_admitted_by_priority() -> None:
    queue: MessageQueue[Prioritised] = MessageQueue(1)
    await queue.put(Prioritised(1, "first"))
    tasks = [
        asyncio.ensure_future(queue.put(Prioritised(priority, priority)))
        for priority in (5, 200, 100)
    ]
    await asyncio.sleep(0)
    names = [(await asyncio.wait_for(queue.get(), BOUND_S)).name for _ in range(4)]
    assert names == ["first", 200, 100, 5]
    await asyncio.gather(*tasks)


async def test_statistics_balance() -> None:
    queue: MessageQueue[int] = MessageQueue(5, backpressure=BackpressureStrategy.DROP_OLDEST)
    for i in range(8):
        queue.put_nowait(i)
    queue.get_nowait()
    await queue.get()
    stats = queue.get_stats()
    assert stats == {
        "current_size": 3,
        "max_size": 5,
        "total_enqueued": 8,
        "total_dequeued": 2,
        "total_dropped": 3,
    }
    assert queue.clear() == 3
    assert len(queue) == 0


async def test_concurrent_producers() -> None:
    queue: MessageQueue[int] = MessageQueue()

    async def produce() -> None:
        for i in range(10):
            await queue.put(i)

    await asyncio.gather(*(produce() for _ in range(3)))
    assert queue.qsize == 30


@given(
    maxsize=st.integers(0, 5),
    strategy=st.sampled_from(BackpressureStrategy),
    use_priority=st.booleans(),
    steps=st.lists(st.one_of(st.integers(0, 255), st.none(), st.just("clear")), max_size=200),
)
def test_against_a_model(
    maxsize: int, strategy: BackpressureStrategy, use_priority: bool, steps: list[Any]
) -> None:
    queue: MessageQueue[Prioritised] = MessageQueue(
        maxsize, backpressure=strategy, use_priority=use_priority
    )
    model: list[Prioritised] = []

    def rank(message: Prioritised) -> int:
        return -message.priority if use_priority else 0

    for step in steps:
        if step == "clear":
            assert queue.clear() == len(model)
            model.clear()
        elif step is None:
            expected = min(model, key=rank, default=None)
            assert queue.get_nowait() is expected
            if expected is not None:
                model.remove(expected)
        else:
            message = Prioritised(step, object())
            is_full = 0 < maxsize <= len(model)
            accepted = queue.put_nowait(message)
            assert accepted is (not is_full or strategy is BackpressureStrategy.DROP_OLDEST)
            if is_full and accepted:
                lowest = max(map(rank, model))
                model.remove(next(m for m in model if rank(m) == lowest))
            if accepted:
                model.append(message)
        assert len(queue) == len(model)
        assert queue.full is (0 < maxsize <= len(model))
    totals = queue.get_stats()
    assert totals["total_enqueued"] == (
        totals["total_dequeued"] + totals["total_dropped"] + totals["current_size"]
    )


async def test_b9_a_send_that_times_out_says_the_same_everywhere():
    """That the queue is full, and that the time is over: a program may expect either."""

    async def waits(ctx):
        await ctx.receive()

    fast, fifo = FastMessageQueue(1), MessageQueue(1, use_priority=False)
    sync = SyncQueue(1)
    async with managed_kernel("k", waits, config=RingKernelConfig("k", input_queue_size=1)) as k:
        await k.deactivate()
        for timeout in (0, 0.01):
            for send in (fast.put, fifo.put, k.send):
                if timeout == 0:
                    await send(1)
                with pytest.raises(SendTimeoutError) as caught:
                    await send(2, timeout=timeout)
                assert isinstance(caught.value, QueueFullError)
                assert isinstance(caught.value, QueueTimeoutError)
                told = caught.value
                assert (told.queue_size, told.timeout, told.operation) == (1, timeout, "send")
            with pytest.raises(SendTimeoutError):
                await k.send_and_receive(3, timeout=timeout)
            if timeout == 0:
                sync.put(1)
            with pytest.raises(SendTimeoutError):
                sync.put(2, timeout=timeout)
