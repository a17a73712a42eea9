"""The rows about processes: a record of 64 bytes to another process and back, and an array.

A module of the package and not a script, since the child processes import it.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import time
from typing import Any

import numpy as np

from pydotcompute import RingKernelRuntime, message, ring_kernel
from pydotcompute.handlers import record

clock = time.perf_counter_ns
Figures = dict[str, float]


@message(layout="record")
class Word:
    """A record of 64 bytes."""

    number: int
    a: int
    b: int
    c: int
    d: int
    e: int
    f: int
    g: int


@record
class Seen:
    """How many words there were."""

    count: int


@ring_kernel(kernel_id="next", state=Seen, auto_register=False)
def step(msg: Word, state: Seen, out: Word) -> int:
    state.count += 1
    out.number = msg.number + 1
    return 1


@message
class Values:
    """A megabyte."""

    values: np.ndarray


@message
class Last:
    """What the other process read of it."""

    value: float


@ring_kernel(kernel_id="last", auto_register=False)
async def last(ctx: Any) -> None:
    while not ctx.should_terminate:
        values = await ctx.receive()
        await ctx.send(Last(value=float(values.values[-1])))


def quantiles(times: list[int]) -> Figures:
    """The median and the 99th percentile, without the first tenth."""
    kept = sorted(times[len(times) // 10 :])
    return {"value": kept[len(kept) // 2], "p99": kept[len(kept) * 99 // 100]}


async def asks(count: int) -> Figures:
    """`send_and_receive` of a compiled handler in a process of its own."""
    async with RingKernelRuntime(use_uvloop=False) as runtime:
        await runtime.launch("next", step, executor="process")
        await runtime.activate("next")
        word = Word(number=1, a=0, b=0, c=0, d=0, e=0, f=0, g=0)
        times = []
        for _ in range(count):
            begun = clock()
            answer = await runtime.send_and_receive("next", word)
            times.append(clock() - begun)
            assert answer.number == 2
    return quantiles(times)


async def blocking_asks(count: int) -> Figures:
    """`ask_blocking` of the same, on a thread that runs no event loop."""
    async with RingKernelRuntime(use_uvloop=False) as runtime:
        kernel = await runtime.launch("next", step, executor="process")
        await kernel.activate()
        word = Word(number=1, a=0, b=0, c=0, d=0, e=0, f=0, g=0)

        def ask_often() -> list[int]:
            times = []
            for _ in range(count):
                begun = clock()
                answer = kernel.ask_blocking(word)
                times.append(clock() - begun)
                assert answer.number == 2
            return times

        return quantiles(await asyncio.to_thread(ask_often))


def echo(asked: Any, answers: Any) -> None:
    """The other process of `queues`."""
    while (word := asked.get()) is not None:
        answers.put(word)


def queues(count: int) -> Figures:
    """The same number of bytes through two queues of multiprocessing."""
    context = multiprocessing.get_context("spawn")
    asked, answers = context.Queue(), context.Queue()
    child = context.Process(target=echo, args=(asked, answers), daemon=True)
    child.start()
    word = bytes(64)
    times = []
    for _ in range(count):
        begun = clock()
        asked.put(word)
        answer = answers.get()
        times.append(clock() - begun)
        assert answer == word
    asked.put(None)
    child.join(10)
    return quantiles(times)


async def arrays(count: int) -> Figures:
    """`send_and_receive` of a function in a process of its own: a megabyte there, a number back."""
    async with RingKernelRuntime(use_uvloop=False) as runtime:
        await runtime.launch("last", last, executor="process")
        await runtime.activate("last")
        values = np.arange(1 << 17, dtype=np.float64)
        times = []
        for _ in range(count):
            begun = clock()
            answer = await runtime.send_and_receive("last", Values(values=values))
            times.append(clock() - begun)
            assert answer.value == values[-1]
    return quantiles(times)


def answer_last(asked: Any, answers: Any) -> None:
    """The other process of `array_queues`."""
    while (values := asked.get()) is not None:
        answers.put(float(values[-1]))


def array_queues(count: int) -> Figures:
    """The same array through a queue of multiprocessing."""
    context = multiprocessing.get_context("spawn")
    asked, answers = context.Queue(), context.Queue()
    child = context.Process(target=answer_last, args=(asked, answers), daemon=True)
    child.start()
    values = np.arange(1 << 17, dtype=np.float64)
    times = []
    for _ in range(count):
        begun = clock()
        asked.put(values)
        answer = answers.get()
        times.append(clock() - begun)
        assert answer == values[-1]
    asked.put(None)
    child.join(10)
    return quantiles(times)
