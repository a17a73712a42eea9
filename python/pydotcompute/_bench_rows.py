"""What `pydotcompute.bench` measures: a script that runs with ours and with PyDotCompute 0.2 alike.

``python -P _bench_rows.py ROW LOOP SCALE`` measures one row, checks what it got, and prints the
nanoseconds per operation as JSON. It uses the common contract and the standard library only.
"""

from __future__ import annotations

import asyncio
import gc
import importlib
import json
import os
import queue
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from statistics import median
from typing import Any

sys.path.append(os.path.dirname(os.path.abspath(__file__)))
handlers = importlib.import_module("_bench_handlers")
sys.path.pop()

clock = time.perf_counter_ns
Figures = dict[str, float]
Measure = Callable[[int], Any]

KERNEL = "kernel"


def quantiles(times: list[int]) -> Figures:
    """The median and the 99th percentile of single operations."""
    times.sort()
    return {"value": times[len(times) // 2], "p99": times[len(times) * 99 // 100]}


def repeated(operation: Callable[[], Any], count: int, blocks: int = 15) -> Figures:
    """The median over blocks of the mean time of an operation."""
    means = []
    for _ in range(blocks):
        rounds = range(max(count // blocks, 1))
        started = clock()
        for _ in rounds:
            operation()
        means.append((clock() - started) / len(rounds))
    return {"value": median(means)}


def pin(cores: int) -> None:
    """Stay on so many cores, where the system can tell."""
    if hasattr(os, "sched_setaffinity"):
        allowed = sorted(os.sched_getaffinity(0))
        if len(allowed) < cores:
            raise SystemExit(f"needs {cores} cores")
        os.sched_setaffinity(0, allowed[:cores])


# --- asyncio --------------------------------------------------------------------------------------


def message_types() -> tuple[type[Any], type[Any]]:
    from pydotcompute import message

    class Request:
        value: float = 0.0

    class Response:
        result: float = 0.0

    Request.__annotations__ = {"value": float}
    Response.__annotations__ = {"result": float}
    return message(Request), message(Response)


async def echo(ctx: Any) -> None:
    while not ctx.should_terminate:
        await ctx.send(await ctx.receive())


async def echo_polling(ctx: Any) -> None:
    while not ctx.should_terminate:
        await ctx.send(await ctx.receive(timeout=1.0))


async def started(actor: Callable[[Any], Awaitable[None]], size: int = 4096) -> Any:
    from pydotcompute import RingKernelRuntime
    from pydotcompute.ring_kernels.lifecycle import RingKernelConfig

    runtime = RingKernelRuntime(use_uvloop=False)
    await runtime.start()
    config = RingKernelConfig(KERNEL, input_queue_size=size, output_queue_size=size)
    await runtime.launch(KERNEL, actor, config=config)
    await runtime.activate(KERNEL)
    await asyncio.sleep(0)
    return runtime


async def round_trip(count: int) -> Figures:
    runtime = await started(echo)
    request = message_types()[0](value=1.0)
    times = []
    for _ in range(count):
        begun = clock()
        await runtime.send(KERNEL, request)
        answer = await runtime.receive(KERNEL)
        times.append(clock() - begun)
        assert answer.value == 1.0
    return quantiles(times[count // 10 :])


async def round_trip_made(count: int) -> Figures:
    request_type, response_type = message_types()

    async def actor(ctx: Any) -> None:
        while not ctx.should_terminate:
            request = await ctx.receive()
            await ctx.send(response_type(result=request.value * 2))

    runtime = await started(actor)
    times = []
    for _ in range(count):
        begun = clock()
        await runtime.send(KERNEL, request_type(value=2.0))
        answer = await runtime.receive(KERNEL)
        times.append(clock() - begun)
        assert answer.result == 4.0
    return quantiles(times[count // 10 :])


async def round_trip_timeout(count: int) -> Figures:
    runtime = await started(echo_polling)
    request = message_types()[0](value=1.0)
    times = []
    for _ in range(count):
        begun = clock()
        await runtime.send(KERNEL, request)
        answer = await runtime.receive(KERNEL, timeout=1.0)
        times.append(clock() - begun)
        assert answer.value == 1.0
    return quantiles(times[count // 10 :])


async def bare_futures(count: int) -> Figures:
    """The floor: two tasks that wake each other with futures."""
    loop = asyncio.get_running_loop()
    ping: list[asyncio.Future[int]] = [loop.create_future()]
    pong: list[asyncio.Future[int]] = [loop.create_future()]

    async def other() -> None:
        while await ping[0]:
            ping[0] = loop.create_future()
            pong[0].set_result(1)

    task = asyncio.create_task(other())
    await asyncio.sleep(0)
    times = []
    for _ in range(count):
        begun = clock()
        pong[0] = loop.create_future()
        ping[0].set_result(1)
        await pong[0]
        times.append(clock() - begun)
    ping[0].set_result(0)
    await task
    return quantiles(times[count // 10 :])


async def spin(count: int) -> Figures:
    """The floor of a 99th percentile: a microsecond in which nothing is done but by the machine."""
    times = []
    for _ in range(count):
        begun = clock()
        while (taken := clock() - begun) < 1000:
            pass
        times.append(taken)
    return quantiles(times[count // 10 :])


async def pipelined(count: int) -> Figures:
    runtime = await started(echo)
    request = message_types()[0](value=1.0)
    times = []
    for _ in range(max(count // 1000, 5)):
        begun = clock()
        for _ in range(1000):
            await runtime.send(KERNEL, request)
        for _ in range(1000):
            answer = await runtime.receive(KERNEL)
        times.append((clock() - begun) / 1000)
        assert answer.value == 1.0
    return {"value": median(times)}


async def pipelined_made(count: int) -> Figures:
    request_type, response_type = message_types()

    async def actor(ctx: Any) -> None:
        while not ctx.should_terminate:
            request = await ctx.receive()
            await ctx.send(response_type(result=request.value * 2))

    runtime = await started(actor)
    times = []
    for _ in range(max(count // 1000, 5)):
        begun = clock()
        for value in range(1000):
            await runtime.send(KERNEL, request_type(value=float(value)))
        for _ in range(1000):
            answer = await runtime.receive(KERNEL)
        times.append((clock() - begun) / 1000)
        assert answer.result == 2 * 999
    return {"value": median(times)}


async def put_and_get(count: int) -> Figures:
    from pydotcompute.ring_kernels import FastMessageQueue

    waiting = FastMessageQueue[Any](4096)
    request = message_types()[0](value=1.0)
    times = []
    for _ in range(15):
        begun = clock()
        for _ in range(count // 15):
            await waiting.put(request)
            got = await waiting.get()
        times.append((clock() - begun) / (count // 15))
        assert got is request
    return {"value": median(times)}


async def chain(count: int) -> Figures:
    """One message through 1000 tasks with a queue between each two."""
    from pydotcompute.ring_kernels import FastMessageQueue

    hops = 1000
    queues = [FastMessageQueue[Any](16) for _ in range(hops + 1)]

    async def pass_on(source: Any, target: Any) -> None:
        while True:
            await target.put(await source.get())

    tasks = [asyncio.create_task(pass_on(queues[i], queues[i + 1])) for i in range(hops)]
    request = message_types()[0](value=1.0)
    times = []
    for _ in range(max(count // hops, 5)):
        begun = clock()
        await queues[0].put(request)
        got = await queues[-1].get()
        times.append((clock() - begun) / hops)
        assert got is request
    for task in tasks:
        task.cancel()
    return {"value": median(times)}


async def blocked(ctx: Any) -> None:
    while not ctx.should_terminate:
        await ctx.receive()


async def life(count: int) -> Figures:
    """Launch, activate and terminate an actor that waits for a message."""
    from pydotcompute import RingKernelRuntime

    runtime = RingKernelRuntime(use_uvloop=False)
    await runtime.start()
    times = []
    for _ in range(max(count // 100, 1)):
        begun = clock()
        await runtime.launch(KERNEL, blocked)
        await runtime.activate(KERNEL)
        await runtime.terminate(KERNEL)
        times.append(clock() - begun)
    assert runtime.kernel_ids == []
    return {"value": median(times)}


async def end_of_thousand(_count: int) -> Figures:
    from pydotcompute import RingKernelRuntime

    runtime = RingKernelRuntime(use_uvloop=False)
    await runtime.start()
    for number in range(1000):
        await runtime.launch(str(number), blocked)
        await runtime.activate(str(number))
    await asyncio.sleep(0)
    begun = clock()
    await runtime.shutdown()
    taken = clock() - begun
    assert runtime.kernel_ids == []
    return {"value": taken}


# --- threads --------------------------------------------------------------------------------------


def thread_echo(ctx: Any) -> None:
    while not ctx.should_terminate:
        message = ctx.receive(timeout=1.0)
        if message is not None:
            ctx.send(message)


def native_echo(ctx: Any) -> None:
    while not ctx.should_terminate:
        message = ctx.receive(timeout=1.0)
        if message is not None:
            # Without waiting: a waiting send of PyDotCompute's goes to the wrong queue.
            ctx.send_nowait(message)


def tier_two() -> Any:
    from pydotcompute.ring_kernels import ThreadedRingKernel

    return ThreadedRingKernel[Any, Any](KERNEL, thread_echo)


def tier_three() -> Any:
    from pydotcompute.ring_kernels import CythonRingKernel

    return CythonRingKernel[Any, Any](KERNEL, native_echo)


def echoed(make: Callable[[], Any], count: int) -> Figures:
    with make() as kernel:
        times = []
        for number in range(1, count + 1):
            begun = clock()
            assert kernel.send(number, timeout=5.0)
            answer = kernel.receive(timeout=5.0)
            times.append(clock() - begun)
            assert answer == number
    return quantiles(times[count // 10 :])


def threaded_echo(count: int) -> Figures:
    return echoed(tier_two, max(count // 10, 100))


def cython_echo(count: int) -> Figures:
    return echoed(tier_three, max(count // 200, 20))


def threaded_batch(count: int) -> Figures:
    with tier_two() as kernel:
        times = []
        for _ in range(max(count // 4000, 5)):
            begun = clock()
            for number in range(1, 1001):
                kernel.send(number)
            got = [kernel.receive(timeout=5.0) for _ in range(1000)]
            times.append((clock() - begun) / 1000)
            assert got == list(range(1, 1001))
    return {"value": median(times)}


def simple_queues(count: int) -> Figures:
    """The floor: two threads with a `queue.SimpleQueue` each way."""
    there: queue.SimpleQueue[Any] = queue.SimpleQueue()
    back: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def run() -> None:
        while (item := there.get()) is not None:
            back.put(item)

    thread = threading.Thread(target=run)
    thread.start()
    times = []
    for number in range(1, max(count // 10, 100) + 1):
        begun = clock()
        there.put(number)
        answer = back.get()
        times.append(clock() - begun)
        assert answer == number
    there.put(None)
    thread.join()
    return quantiles(times[len(times) // 10 :])


def spsc(count: int) -> Figures:
    from pydotcompute.ring_kernels._cython import FastSPSCQueue

    if FastSPSCQueue is None:
        raise SystemExit("the Cython extension is not built")
    line: Any = FastSPSCQueue(4096)
    put, get = line.put, line.get
    item = object()

    def pair() -> None:
        put(item)
        get()

    assert line.put(item)
    assert line.get() is item
    return repeated(pair, count)


def call_pair(count: int) -> Figures:
    """The floor: two calls of built-in methods, with an argument and without."""
    items: list[object] = []
    put, get = items.append, items.pop
    item = object()

    def pair() -> None:
        put(item)
        get()

    return repeated(pair, count)


# --- messages -------------------------------------------------------------------------------------


def three_fields() -> type[Any]:
    from pydotcompute import message

    class Point:
        x: float = 0.0
        y: float = 0.0
        z: float = 0.0

    Point.__annotations__ = {"x": float, "y": float, "z": float}
    return message(Point)


def construct(count: int) -> Figures:
    point = three_fields()
    made = point(x=1.0, y=2.0, z=3.0)
    assert (made.x, made.y, made.z) == (1.0, 2.0, 3.0)
    return repeated(lambda: point(x=1.0, y=2.0, z=3.0), count)


def encode(count: int) -> Figures:
    point = three_fields()
    made = point(x=1.0, y=2.0, z=3.0)
    assert point.deserialize(made.serialize()).z == 3.0
    return repeated(made.serialize, count)


def decode(count: int) -> Figures:
    point = three_fields()
    data = point(x=1.0, y=2.0, z=3.0).serialize()
    assert point.deserialize(data).z == 3.0
    return repeated(lambda: point.deserialize(data), count)


def array_type() -> type[Any]:
    from pydotcompute import message

    class Values:
        values: Any = None

    Values.__annotations__ = {"values": Any}
    return message(Values)


def array_encode(count: int) -> Figures:
    import numpy as np

    made = array_type()(values=np.arange(1000.0))
    assert len(made.serialize()) > 8000
    return repeated(made.serialize, count // 4)


def array_decode(count: int) -> Figures:
    import numpy as np

    values = array_type()
    data = values(values=np.arange(1000.0)).serialize()
    assert values.deserialize(data).values[999] == 999.0
    return repeated(lambda: values.deserialize(data), count // 4)


async def process_asks(count: int) -> Figures:
    from pydotcompute import _bench_process

    return await _bench_process.asks(count)


async def process_asks_blocking(count: int) -> Figures:
    from pydotcompute import _bench_process

    return await _bench_process.blocking_asks(count)


def process_queues(count: int) -> Figures:
    from pydotcompute import _bench_process

    return _bench_process.queues(max(count // 10, 100))


async def process_arrays(count: int) -> Figures:
    from pydotcompute import _bench_process

    return await _bench_process.arrays(max(count // 10, 100))


def process_array_queues(count: int) -> Figures:
    from pydotcompute import _bench_process

    return _bench_process.array_queues(max(count // 50, 100))


#: Each row's function, and how many cores it runs on.
ROWS: dict[str, tuple[Measure, int]] = {
    "round_trip": (round_trip, 1),
    "round_trip_made": (round_trip_made, 1),
    "round_trip_timeout": (round_trip_timeout, 1),
    "bare_futures": (bare_futures, 1),
    "spin": (spin, 1),
    "pipelined": (pipelined, 1),
    "pipelined_made": (pipelined_made, 1),
    "put_and_get": (put_and_get, 1),
    "chain": (chain, 1),
    "life": (life, 1),
    "end_of_thousand": (end_of_thousand, 1),
    "threaded_echo_1": (threaded_echo, 1),
    "threaded_echo_2": (threaded_echo, 2),
    "threaded_batch": (threaded_batch, 2),
    "cython_echo_1": (cython_echo, 1),
    "cython_echo_2": (cython_echo, 2),
    "simple_queues_1": (simple_queues, 1),
    "simple_queues_2": (simple_queues, 2),
    "spsc": (spsc, 1),
    "call_pair": (call_pair, 1),
    "handler_batches": (handlers.handler_batches, 2),
    "handler_chain": (handlers.handler_chain_or_threads, 2),
    "handler_singles": (handlers.handler_singles, 2),
    "njit_loop": (handlers.njit_loop, 2),
    "process_asks": (process_asks, 2),
    "process_asks_blocking": (process_asks_blocking, 2),
    "process_queues": (process_queues, 2),
    "process_arrays": (process_arrays, 2),
    "process_array_queues": (process_array_queues, 2),
    "construct": (construct, 1),
    "encode": (encode, 1),
    "decode": (decode, 1),
    "array_encode": (array_encode, 1),
    "array_decode": (array_decode, 1),
}


def new_loop(name: str) -> asyncio.AbstractEventLoop:
    if name == "uvloop":
        import uvloop

        loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
        return loop
    return asyncio.SelectorEventLoop()


def main(arguments: Iterator[str]) -> None:
    row, loop, count = next(arguments), next(arguments), int(next(arguments))
    measure, cores = ROWS[row]
    pin(cores)
    gc.freeze()
    if asyncio.iscoroutinefunction(measure):
        with asyncio.Runner(loop_factory=lambda: new_loop(loop)) as runner:
            figures = runner.run(measure(count))
            print(json.dumps(figures), flush=True)
            # Kernels that do not end when they are told to must not hold up the rest.
            os._exit(0)
    print(json.dumps(measure(count)), flush=True)
    os._exit(0)


if __name__ == "__main__":
    main(iter(sys.argv[1:]))
