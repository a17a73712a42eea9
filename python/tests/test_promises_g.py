"""The promises of section G, the project.

Not shown here, because there is nothing in the package that could break them: G1 and G2 (claims of
a README about latencies; `dotcompute bench` measures both sides alike), G3 (the PageRank example;
the Rust examples test theirs) and G10 (benchmarks that need CuPy; there are none).
"""

import ast
import asyncio
import importlib
import json
import os
import pathlib
import pkgutil
import subprocess
import sys
import time

import pytest

import pydotcompute
from pydotcompute import RingKernelMessage, RingKernelRuntime, message
from pydotcompute.exceptions import KernelFailedError
from pydotcompute.ring_kernels import FastMessageQueue, MessageQueue

LIMIT = 10.0
TESTS = pathlib.Path(__file__).parent


@message
class Number:
    value: float = 0.0


async def test_g4_an_import_error_in_an_actor_is_told_at_once():
    async def on_the_gpu(ctx):
        import no_such_gpu_library  # noqa: F401

    async with RingKernelRuntime() as runtime:
        await runtime.launch("gpu", on_the_gpu)
        began = time.monotonic()
        await runtime.activate("gpu")
        with pytest.raises(KernelFailedError) as caught:
            await runtime.receive("gpu", timeout=60)
        assert time.monotonic() - began < LIMIT
        assert isinstance(caught.value.__cause__, ImportError)


def modules():
    for found in pkgutil.walk_packages(pydotcompute.__path__, "pydotcompute."):
        if not found.name.rpartition(".")[2].startswith("_") and ".bench" not in found.name:
            yield found.name


@pytest.mark.parametrize("name", ["pydotcompute", *modules()])
def test_g5_what_is_offered_exists(name):
    module = importlib.import_module(name)
    for offered in getattr(module, "__all__", ()):
        assert getattr(module, offered, None) is not None, offered
    assert module.__doc__


def test_g5_the_documented_imports_exist():
    from pydotcompute.backends import get_backend  # noqa: F401
    from pydotcompute.backends.base import Backend, BackendArray  # noqa: F401
    from pydotcompute.core.accelerator import metal_available  # noqa: F401
    from pydotcompute.ring_kernels import ThreadedKernelPool, get_loop_info  # noqa: F401
    from pydotcompute.ring_kernels.fast_queue import QueueStats, get_priority_band  # noqa: F401
    from pydotcompute.ring_kernels.lifecycle import managed_kernel  # noqa: F401
    from pydotcompute.ring_kernels.queue import PriorityItem  # noqa: F401

    assert pydotcompute.__version__ == "0.2.0"


def test_g6_the_native_queue_is_always_there():
    from pydotcompute.ring_kernels import CythonRingKernel, is_cython_kernel_available
    from pydotcompute.ring_kernels._cython import CYTHON_AVAILABLE, FastSPSCQueue

    assert is_cython_kernel_available() is True
    assert CYTHON_AVAILABLE is True
    assert FastSPSCQueue(4).put(1) is True
    assert CythonRingKernel("k", lambda ctx: None).using_cython is True


IMPORT = """
import sys, json, signal, threading, logging, warnings, asyncio, os
def state():
    return {
        "threads": threading.active_count(),
        "signals": [str(signal.getsignal(one)) for one in sorted(signal.valid_signals())
                    if one not in (signal.SIGKILL, signal.SIGSTOP)],
        "handlers": [len(logging.getLogger(name).handlers) for name in ("", "pydotcompute")],
        "filters": len(warnings.filters),
        "hooks": [str(sys.excepthook), str(sys.unraisablehook), str(threading.excepthook)],
        "recursion": sys.getrecursionlimit(),
        "interval": sys.getswitchinterval(),
        "tasks": len(os.listdir("/proc/self/task")) if os.path.isdir("/proc/self/task") else 0,
        "environment": dict(os.environ),
        "policy": type(asyncio.get_event_loop_policy()).__module__,
    }
import numpy
before = state()
import pydotcompute
after = state()
import pydotcompute.core, pydotcompute.compilation, pydotcompute.decorators
optional = ("numba", "cupy", "mlx", "msgpack", "pynvml", "uvloop")
loaded = [name for name in optional if name in sys.modules]
print(json.dumps([{k: (before[k], after[k]) for k in before if before[k] != after[k]}, loaded]))
"""


def run(**env):
    ran = subprocess.run(
        [sys.executable, "-c", IMPORT],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


def test_g7_the_import_changes_nothing():
    changed, loaded = run(PYDOTCOMPUTE_NO_UVLOOP="1")
    assert changed == {}
    assert loaded == []


def test_g7_the_import_changes_the_policy_alone():
    pytest.importorskip("uvloop")
    changed, loaded = run(PYDOTCOMPUTE_NO_UVLOOP="")
    assert changed.keys() == {"policy"}
    assert loaded == ["uvloop"]


@pytest.mark.parametrize(
    "module",
    [
        "ring_kernels.array_message",
        "ring_kernels.sync_queue",
        "ring_kernels.threaded_kernel",
        "ring_kernels.cython_kernel",
        "ring_kernels.fast_queue",
        "ring_kernels.buffer_registry",
    ],
)
def test_g8_the_fast_paths_have_tests(module):
    """Every public name of these modules is used by a test, other than in an import."""
    wanted = set(importlib.import_module(f"pydotcompute.{module}").__all__)
    used = {
        node.id
        for path in TESTS.glob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Name)
    }
    assert wanted <= used, wanted - used


@pytest.mark.parametrize("make", [FastMessageQueue, MessageQueue])
def test_g9_a_put_and_a_get_do_not_touch_the_loop(make):
    async def main():
        loop = asyncio.get_running_loop()
        calls = []
        for name in ("call_soon", "call_later", "call_at", "create_future", "create_task"):
            kept = getattr(loop, name)
            setattr(loop, name, lambda *a, kept=kept, **k: (calls.append(a), kept(*a, **k))[1])
        queue = make(16)
        for _ in range(50):
            await queue.put(Number(), timeout=1)
            await queue.get(timeout=1)
        return calls

    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
        # What it does once per loop, or once per 256 awaits, is allowed.
        assert len(runner.run(main())) <= 2


def test_g9_a_timeout_makes_no_task_and_no_timer_of_the_loop():
    async def echo(ctx):
        while True:
            await ctx.send(await ctx.receive(timeout=5))

    async def main():
        loop = asyncio.get_running_loop()
        calls, tasks = [], []
        async with RingKernelRuntime() as runtime:
            await runtime.launch("echo", echo)
            await runtime.activate("echo")
            await runtime.send("echo", Number())
            await runtime.receive("echo", timeout=5)  # whatever is made once
            for name in ("call_later", "call_at", "create_task"):
                kept = getattr(loop, name)
                setattr(loop, name, lambda *a, kept=kept, **k: (calls.append(a), kept(*a, **k))[1])
            for _ in range(50):
                await runtime.send("echo", Number())
                await runtime.receive("echo", timeout=5)
                tasks.append(len(asyncio.all_tasks()))
            return list(calls), max(tasks)

    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
        calls, tasks = runner.run(main())
    assert tasks == 2
    assert calls == []


def test_g9_a_timeout_of_a_queue_makes_no_task():
    async def main():
        queue = FastMessageQueue(16)
        most = 0

        async def getter():
            for _ in range(50):
                await queue.get(timeout=5)

        getting = asyncio.create_task(getter())
        for _ in range(50):
            await asyncio.sleep(0)
            most = max(most, len(asyncio.all_tasks()))
            await queue.put(Number())
        await getting
        return most

    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
        assert runner.run(asyncio.wait_for(main(), LIMIT)) <= 3


async def test_g11_the_queue_benchmarks_pattern_ends():
    from dataclasses import dataclass

    @dataclass
    class Sample(RingKernelMessage):
        value: float = 0.0

    there: MessageQueue[Sample] = MessageQueue(maxsize=64)
    back: MessageQueue[Sample] = MessageQueue(maxsize=64)
    count = 500

    async def echo():
        for _ in range(count):
            await back.put(await there.get())

    task = asyncio.create_task(echo())
    for i in range(count):
        sent = Sample(value=float(i))
        await there.put(sent)
        assert (await asyncio.wait_for(back.get(), LIMIT)).message_id == sent.message_id
    await asyncio.wait_for(task, LIMIT)
    assert there.empty
    assert back.empty
    assert back.get_stats()["total_dequeued"] == count
