"""The rows of `pydotcompute.bench` about compiled handlers; run by `_bench_rows`.

A record has 64 bytes. Where PyDotCompute 0.2 runs a row, a Python handler does the same on a
`ThreadedRingKernel`.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import Callable
from statistics import median
from typing import Any

clock = time.perf_counter_ns
Figures = dict[str, float]

BATCH = 1000
#: Batches on their way at once.
AHEAD = 4
STAGES = 3


def handler_and_class() -> tuple[Callable[..., int], type[Any]]:
    """The handler, and the class of its messages and replies."""
    import numpy as np

    from pydotcompute import message

    class Order:
        id: int = 0
        answers: int = 0
        priority_: int = 0
        a: float = 0.0
        b: float = 0.0
        c: float = 0.0
        d: float = 0.0
        e: float = 0.0

    Order.__annotations__ = {
        "id": np.int64,
        "answers": np.int64,
        "priority_": int,
        **dict.fromkeys("abcde", float),
    }

    def handler(msg: Any, state: Any, out: Any) -> int:
        out.id = msg.id
        out.answers = msg.id
        out.priority_ = msg.priority_ + 1
        out.a = msg.a + msg.b * msg.c
        out.b = msg.b
        out.c = msg.c
        return 1

    return handler, message(layout="record")(Order)


def filled(cls: type[Any], count: int) -> Any:
    """So many orders, with their numbers."""
    import numpy as np

    from pydotcompute.handlers import record_dtype

    orders = np.zeros(count, record_dtype(cls))
    orders["id"] = np.arange(count)
    orders["a"], orders["b"], orders["c"] = orders["id"], 2.0, 3.0
    return orders


async def launched(stages: int) -> tuple[Any, type[Any], list[str]]:
    """A runtime with a chain of kernels, the class of their messages, and their names."""
    from pydotcompute import RingKernelRuntime, ring_kernel

    handler, cls = handler_and_class()
    runtime = RingKernelRuntime(use_uvloop=False)
    await runtime.start()
    names = [f"handler{stage}" for stage in range(stages)]
    for name in names:
        decorate = ring_kernel(
            kernel_id=name, state=None, input_type=cls, output_type=cls, auto_register=False
        )
        await runtime.launch(name, decorate(handler))
        await runtime.activate(name)
    for first, second in itertools.pairwise(names):
        runtime.connect(first, second)
    return runtime, cls, names


async def exchange(runtime: Any, names: list[str], arrays: list[Any], stages: int) -> float:
    """Nanoseconds per record of batches that are sent some ahead of their replies."""
    first, last = names[0], names[-1]
    begun = clock()
    for number in range(len(arrays) + AHEAD):
        if number < len(arrays):
            await runtime.send(first, arrays[number])
        if number >= AHEAD:
            reply = await runtime.receive(last)
            sent = arrays[number - AHEAD]
            assert reply["answers"][-1] == sent["id"][-1]
            assert reply["priority_"][0] == stages
    return (clock() - begun) / (len(arrays) * BATCH)


async def handler_batches(count: int) -> Figures:
    """Batches of 1000 through one kernel."""
    return await batches(count, 1)


async def handler_chain(count: int) -> Figures:
    """Batches of 1000 through three connected kernels."""
    return await batches(count, STAGES)


async def batches(count: int, stages: int) -> Figures:
    runtime, cls, names = await launched(stages)
    orders = filled(cls, 16 * BATCH)
    arrays = [orders[start : start + BATCH] for start in range(0, len(orders), BATCH)]
    rounds = max(count // 1000, 3)
    times = [await exchange(runtime, names, arrays * 4, stages) for _ in range(rounds)]
    return {"value": median(times[1:])}


def njit_loop(count: int) -> Figures:
    """The floor: a loop over the same arrays, compiled by numba, on this thread."""
    import numba
    import numpy as np

    handler, cls = handler_and_class()
    compiled = numba.njit(handler)
    orders = filled(cls, 16 * BATCH)
    replies = np.zeros(BATCH, orders.dtype)

    @numba.njit
    def loop(orders: Any, replies: Any) -> int:
        written = 0
        for index in range(len(orders)):
            if compiled(orders[index], None, replies[written]) == 1:
                written += 1
        return written

    times = []
    for _ in range(max(count // 1000, 3)):
        begun = clock()
        for _ in range(4):
            for start in range(0, len(orders), BATCH):
                array = orders[start : start + BATCH]
                loop(array, replies)
                assert replies["answers"][-1] == array["id"][-1]
        times.append((clock() - begun) / (4 * len(orders)))
    return {"value": median(times[1:])}


class PlainOrder:
    """An order of a program without records."""

    __slots__ = ("a", "answers", "b", "c", "id", "priority_")

    def __init__(self, id: int, priority_: int, a: float, b: float, c: float) -> None:
        self.id, self.answers, self.priority_ = id, id, priority_
        self.a, self.b, self.c = a, b, c


def threaded(stages: int, count: int) -> Figures:
    """The same with PyDotCompute 0.2: kernels on threads, and threads that pass replies on."""
    from pydotcompute.ring_kernels import ThreadedRingKernel

    def body(ctx: Any) -> None:
        while not ctx.should_terminate:
            msg = ctx.receive(timeout=0.5)
            if msg is not None:
                ctx.send(PlainOrder(msg.id, msg.priority_ + 1, msg.a + msg.b * msg.c, msg.b, msg.c))

    kernels = [ThreadedRingKernel(f"handler{stage}", body) for stage in range(stages)]
    for kernel in kernels:
        kernel.start()

    def forward(source: Any, to: Any) -> None:
        for _ in range(messages):
            to.send(source.receive(timeout=30.0))

    messages = max(count // 20, 500)
    forwarders = [
        threading.Thread(target=forward, args=pair) for pair in itertools.pairwise(kernels)
    ]
    begun = clock()
    for thread in forwarders:
        thread.start()
    sent = received = 0
    while received < messages:
        while sent < messages and sent - received < 256:
            kernels[0].send(PlainOrder(sent, 0, float(sent), 2.0, 3.0))
            sent += 1
        reply = kernels[-1].receive(timeout=30.0)
        assert (reply.answers, reply.priority_) == (received, stages)
        received += 1
    return {"value": (clock() - begun) / messages}


def has_handlers() -> bool:
    """Whether the package at hand has compiled handlers."""
    import importlib.util

    return importlib.util.find_spec("pydotcompute.handlers") is not None


def handler_chain_or_threads(count: int) -> Figures:
    """The chain, on what the package has."""
    return asyncio.run(handler_chain(count)) if has_handlers() else threaded(STAGES, count)


def handler_singles(count: int) -> Figures:
    """Single records, made and read in Python, some ahead of their replies."""
    return asyncio.run(singles(count)) if has_handlers() else threaded(1, count)


async def singles(count: int) -> Figures:
    runtime, cls, _ = await launched(1)
    times = []
    for _ in range(5):
        begun = clock()
        sent = received = 0
        while received < count:
            while sent < count and sent - received < 256:
                await runtime.send("handler0", cls(id=sent, a=float(sent), b=2.0, c=3.0))
                sent += 1
            reply = await runtime.receive("handler0")
            assert (reply.answers, reply.priority_) == (received, 1)
            received += 1
        times.append((clock() - begun) / count)
    return {"value": median(times[1:])}
