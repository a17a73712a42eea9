"""The runtime, by the contract."""

import asyncio
import inspect
import logging
import os
import subprocess
import sys
import textwrap
import threading
import time
import uuid
from dataclasses import dataclass, field

import pytest

from pydotcompute import RingKernelRuntime, ring_kernel
from pydotcompute.exceptions import (
    InvalidConfigurationError,
    KernelAlreadyExistsError,
    KernelNotFoundError,
    KernelStateError,
    QueueTimeoutError,
)
from pydotcompute.ring_kernels import runtime as runtime_module
from pydotcompute.ring_kernels.lifecycle import KernelState, RingKernelConfig
from pydotcompute.ring_kernels.runtime import get_registered_kernel, register_ring_kernel


@dataclass
class Message:
    value: float = 0.0
    message_id: uuid.UUID = field(default_factory=uuid.uuid4)
    priority: int = 128
    correlation_id: uuid.UUID | None = None


async def polite(ctx):
    while not ctx.should_terminate:
        if not ctx.is_active:
            await ctx.wait_active()
            continue
        try:
            await ctx.send(await ctx.receive(timeout=0.1))
        except Exception:
            continue


@pytest.fixture
async def runtime():
    async with RingKernelRuntime() as runtime:
        yield runtime


async def test_before_start_and_after_shutdown():
    runtime = RingKernelRuntime()
    assert not runtime.is_active
    assert runtime.kernel_ids == []
    await runtime.shutdown()
    await runtime.start()
    assert runtime.is_active
    await runtime.launch("k", polite)
    await runtime.shutdown()
    assert not runtime.is_active
    assert runtime.kernel_ids == []
    await runtime.start()
    await runtime.launch("k", polite)
    await runtime.activate("k")
    assert await runtime.send_and_receive("k", 1, timeout=5) == 1
    await runtime.shutdown()


async def test_the_life_of_a_kernel(runtime):
    kernel = await runtime.launch("k", polite)
    assert kernel.state is KernelState.LAUNCHED
    assert runtime.kernel_ids == ["k"]
    with pytest.raises(KernelAlreadyExistsError):
        await runtime.launch("k", polite)
    await runtime.activate("k")
    assert runtime.get_kernel_state("k") is KernelState.ACTIVE
    message = Message(1.0)
    assert await runtime.send("k", message) is None
    assert (await runtime.receive("k", timeout=5)) is message
    await runtime.deactivate("k")
    with pytest.raises(KernelStateError):
        await runtime.deactivate("k")
    await runtime.reactivate("k")
    reply = await runtime.send_and_receive("k", message, timeout=5)
    assert reply.message_id == message.message_id
    await runtime.terminate("k")
    assert runtime.kernel_ids == []
    assert runtime.get_telemetry("k") is None
    await runtime.launch("k", polite)


async def test_unknown_kernels(runtime):
    for call in (
        runtime.activate("x"),
        runtime.deactivate("x"),
        runtime.reactivate("x"),
        runtime.terminate("x"),
        runtime.send("x", 1),
        runtime.receive("x"),
        runtime.send_and_receive("x", 1),
        runtime.launch("x"),
    ):
        with pytest.raises(KernelNotFoundError):
            await call
    with pytest.raises(KernelNotFoundError):
        runtime.get_kernel_state("x")
    await runtime.launch("k", polite)
    with pytest.raises(KernelNotFoundError, match="Available kernels"):
        await runtime.send("x", 1)


async def test_signatures():
    def parameters(method):
        return [
            (one.name, one.kind.name, one.default)
            for one in inspect.signature(method).parameters.values()
            if one.name != "self"
        ]

    none, empty = None, inspect.Parameter.empty
    both, only = "POSITIONAL_OR_KEYWORD", "KEYWORD_ONLY"
    expected = [("kernel_id", both, empty), ("message", both, empty), ("timeout", only, none)]
    assert parameters(RingKernelRuntime.send) == expected
    assert parameters(RingKernelRuntime.send_and_receive) == expected
    assert parameters(RingKernelRuntime.receive) == [expected[0], expected[2]]


async def test_sixty_concurrent_askers_get_their_own_replies(runtime):
    async def slow(ctx):
        async def answer(message):
            await asyncio.sleep(0.001 * (int(message.value) % 5))
            await ctx.send(Message(message.value * 2, correlation_id=message.message_id))

        async with asyncio.TaskGroup() as group:
            while not ctx.should_terminate:
                group.create_task(answer(await ctx.receive()))

    await runtime.launch("slow", slow)
    await runtime.activate("slow")
    messages = [Message(float(number)) for number in range(60)]
    asks = [runtime.send_and_receive("slow", message, timeout=10) for message in messages]
    for message, reply in zip(messages, await asyncio.gather(*asks), strict=True):
        assert reply.value == message.value * 2


async def test_threads_ask_and_wait_without_an_event_loop(runtime):
    await runtime.launch("echo", polite)
    await runtime.activate("echo")
    kernel = runtime._kernels["echo"]

    def ask(caller):
        replies = [kernel.ask_blocking(Message(caller + n), timeout=30).value for n in range(50)]
        return replies == [caller + n for n in range(50)]

    asked = [asyncio.to_thread(ask, caller * 1000.0) for caller in range(4)]
    assert all(await asyncio.gather(*asked))
    await runtime.deactivate("echo")
    with pytest.raises(QueueTimeoutError):
        await asyncio.to_thread(kernel.ask_blocking, Message(), timeout=0.01)
    with pytest.raises(RuntimeError, match="event loop"):
        kernel.ask_blocking(Message())
    with pytest.raises(ValueError, match="nan"):
        await asyncio.to_thread(kernel.ask_blocking, Message(), timeout=float("nan"))


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_ctrl_c_ends_a_blocking_ask_of_the_main_thread():
    code = """
        import asyncio, os, signal, sys, threading
        from pydotcompute import RingKernelRuntime, message

        signal.signal(signal.SIGINT, signal.default_int_handler)
        launched, over = threading.Event(), threading.Event()
        kernels = []

        @message
        class Ask:
            pass

        async def interrupts(ctx):
            await ctx.receive()
            os.kill(os.getpid(), signal.SIGINT)
            await ctx.receive()

        async def serve():
            async with RingKernelRuntime() as runtime:
                kernels.append(await runtime.launch("interrupts", interrupts))
                await runtime.activate("interrupts")
                launched.set()
                await asyncio.to_thread(over.wait)

        thread = threading.Thread(target=lambda: asyncio.run(serve()))
        thread.start()
        launched.wait()
        try:
            kernels[0].ask_blocking(Ask())
        except KeyboardInterrupt:
            status = 7
        over.set()
        thread.join()
        sys.exit(status)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], timeout=60, check=False)
    assert done.returncode == 7


async def test_a_late_reply_becomes_a_dead_letter_and_shifts_nothing(runtime):
    gate = asyncio.Event()

    async def slow(ctx):
        while True:
            message = await ctx.receive()
            if message.value == 0:
                await gate.wait()
            await ctx.send(Message(message.value, correlation_id=message.message_id))

    await runtime.launch("slow", slow)
    await runtime.activate("slow")
    with pytest.raises(QueueTimeoutError):
        await runtime.send_and_receive("slow", Message(0.0), timeout=0.02)
    gate.set()
    for value in (1.0, 2.0):
        assert (await runtime.send_and_receive("slow", Message(value), timeout=5)).value == value
    (letter,) = runtime.dead_letters("slow")
    assert letter.message.value == 0.0
    assert not letter.to_kernel


async def test_echoes_of_messages_sent_before_the_first_ask_answer_nobody_else(runtime):
    async def echo(ctx):
        while True:
            await ctx.send(await ctx.receive())

    await runtime.launch("k", echo)
    await runtime.activate("k")
    await runtime.deactivate("k")
    plain = [Message(1.0), Message(2.0)]
    for message in plain:
        await runtime.send("k", message)
    asked = Message(3.0)
    ask = asyncio.create_task(runtime.send_and_receive("k", asked, timeout=5))
    await asyncio.sleep(0.01)
    await runtime.reactivate("k")
    assert await ask is asked
    assert [await runtime.receive("k", timeout=5) for _ in plain] == plain


async def test_registry_and_decorator(runtime):
    @ring_kernel(kernel_id="registered", queue_size=33)
    async def actor(ctx):
        await polite(ctx)

    kernel = await runtime.launch("registered")
    assert kernel.config.input_queue_size == 33
    assert get_registered_kernel("nobody") is None
    register_ring_kernel("by_hand", polite, int, str, input_queue_size=5)
    known = get_registered_kernel("by_hand")
    assert set(known) == {"func", "input_type", "output_type", "config"}
    assert known["config"] == {"input_queue_size": 5}
    assert runtime_module._kernel_registry["by_hand"] is known
    assert (await runtime.launch("by_hand")).config.input_queue_size == 5


async def test_kernel_scope(runtime):
    async with runtime.kernel_scope("k", polite, config=RingKernelConfig("k")) as kernel:
        assert kernel.state is KernelState.ACTIVE
    assert "k" not in runtime.kernel_ids
    with pytest.raises(ZeroDivisionError):
        async with runtime.kernel_scope("k", polite):
            1 / 0  # noqa: B018
    assert runtime.kernel_ids == []


async def test_telemetry(runtime):
    await runtime.launch("k", polite)
    await runtime.activate("k")
    telemetry = runtime.get_telemetry("k")
    assert telemetry.kernel_id == "k"
    for number in range(100):
        await runtime.send("k", number)
        await runtime.receive("k", timeout=5)
    assert runtime.get_telemetry("k") is telemetry
    assert telemetry.messages_processed >= 99
    assert telemetry.uptime_seconds > 0
    assert telemetry.throughput > 0
    assert 0 < telemetry.min_latency_ns <= telemetry.avg_latency_ns <= telemetry.max_latency_ns
    assert list(runtime.get_all_telemetry()) == ["k"]
    summary = runtime.get_summary()
    assert summary["kernel_count"] == 1
    assert summary["total_messages_processed"] >= 99
    assert {"uptime_seconds", "gpu_utilization", "total_errors"} <= set(summary)
    quiet = RingKernelRuntime(enable_telemetry=False)
    assert quiet.get_telemetry("k") is None
    assert quiet.get_all_telemetry() == {}
    assert quiet.get_summary()["kernel_count"] == 0


async def test_loop_info_and_repr(runtime):
    info = runtime.get_loop_info()
    assert {"loop_class", "runtime_uvloop_installed", "runtime_eager_tasks_installed"} <= set(info)
    uvloop = type(asyncio.get_running_loop()).__module__.startswith("uvloop")
    assert info["runtime_uvloop_installed"] is uvloop
    assert repr(runtime) == (
        f"RingKernelRuntime(active=True, kernels=0, telemetry=True, uvloop={uvloop}, "
        f"eager_tasks={runtime._eager_tasks_installed})"
    )


async def test_dead_letters_and_replay(runtime):
    async def fails(ctx):
        raise ValueError(await ctx.receive())

    await runtime.launch("k", fails)
    await runtime.activate("k")
    for message in ("a", "b", "c"):
        await runtime.send("k", message)
    await runtime._kernels["k"]._ended()
    letters = runtime.dead_letters("k")
    assert [letter.message for letter in letters] == ["a", "b", "c"]
    assert "ValueError: a" in letters[0].reason
    assert runtime.dead_letters("other") == []
    await runtime.terminate("k")
    await runtime.launch("k", polite)
    await runtime.activate("k")
    assert runtime.replay("k") == 3
    assert sorted([await runtime.receive("k", timeout=5) for _ in range(3)]) == ["a", "b", "c"]
    assert runtime.dead_letters() == []
    await runtime.launch("l", fails)
    await runtime.activate("l")
    await runtime.deactivate("l")
    await runtime.send("l", "unread")
    await runtime.terminate("l")
    (letter,) = runtime.dead_letters("l", take=True)
    assert letter.message == "unread"
    assert runtime.dead_letters("l") == []


async def test_a_thousand_kernels_end_quickly(runtime):
    async def blocked(ctx):
        await ctx.receive()

    for number in range(1000):
        await runtime.launch(f"k{number}", blocked)
        await runtime.activate(f"k{number}")
    await asyncio.sleep(0.05)
    began = time.perf_counter()
    await runtime.shutdown()
    assert time.perf_counter() - began < 5


PROGRAM = """
import asyncio
from pydotcompute import RingKernelRuntime

async def actor(ctx):
    await ctx.receive()

def plain(ctx):
    while True:
        ctx.receive()

async def main():
    runtime = RingKernelRuntime()
    for name, function in (("a", actor), ("p", plain)):
        await runtime.launch(name, function)
        await runtime.activate(name)
    await asyncio.sleep(0.05)
    print("ready", flush=True)
    return runtime

{how}
"""


@pytest.mark.parametrize(
    "how",
    [
        "kept = asyncio.run(main())",
        "asyncio.run(main())",
        "loop = asyncio.new_event_loop();kept = loop.run_until_complete(main())",
    ],
)
def test_the_interpreter_ends_with_live_kernels(how):
    began = time.monotonic()
    program = PROGRAM.format(how=how)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=25, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "ready\n"
    assert "Fatal" not in done.stderr
    assert "panicked" not in done.stderr
    assert time.monotonic() - began < 20


def test_the_interpreter_ends_while_timeouts_fire():
    program = """
import asyncio
from pydotcompute import RingKernelRuntime

async def silent(ctx):
    while True:
        await ctx.receive()

async def main():
    runtime = RingKernelRuntime()
    await runtime.launch("k", silent)
    await runtime.activate("k")
    for place in range(400):
        asyncio.ensure_future(runtime.receive("k", timeout=0.001 + place * 0.0005))
    await asyncio.sleep(0.01)
    return runtime

loop = asyncio.SelectorEventLoop()
kept = loop.run_until_complete(main())
"""
    command = [sys.executable, "-W", "ignore", "-c", program]
    # One in seven of them was aborted by a wake-up that came while the interpreter ended.
    ends = [subprocess.Popen(command, stderr=subprocess.DEVNULL) for _ in range(12)]
    assert [end.wait(60) for end in ends] == [0] * len(ends)


def test_the_interpreter_ends_while_daemon_threads_run_kernels():
    program = """
import asyncio
import threading
from pydotcompute import RingKernelRuntime
from pydotcompute.exceptions import QueueTimeoutError

async def echo(ctx):
    while True:
        try:
            await ctx.send(await ctx.receive(timeout=0.001))
        except QueueTimeoutError:
            pass

async def main(runs):
    async with RingKernelRuntime() as runtime:
        await runtime.launch("k", echo)
        await runtime.activate("k")
        for number in range(1_000_000_000):
            await runtime.send("k", number)
            await runtime.receive("k", timeout=5)
            if number == 20:
                runs.set()

for runs in [threading.Event() for _ in range(3)]:
    threading.Thread(target=lambda runs=runs: asyncio.run(main(runs)), daemon=True).start()
    assert runs.wait(60)
"""
    command = [sys.executable, "-W", "ignore", "-c", program]
    # One in ten of them was aborted: their threads were ended in the middle of Rust code.
    ends = [subprocess.Popen(command, stderr=subprocess.DEVNULL) for _ in range(12)]
    assert [end.wait(120) for end in ends] == [0] * len(ends)


def test_timeouts_fire_in_a_child_of_fork():
    program = """
import asyncio
import os
from pydotcompute import RingKernelRuntime
from pydotcompute.exceptions import QueueTimeoutError

async def silent(ctx):
    while True:
        await ctx.receive()

async def main():
    async with RingKernelRuntime() as runtime:
        await runtime.launch("k", silent)
        await runtime.activate("k")
        try:
            await asyncio.wait_for(runtime.receive("k", timeout=0.01), 20)
        except QueueTimeoutError:
            return True

def ends(depth):
    assert asyncio.run(main())
    if depth > 0:
        if (child := os.fork()) == 0:
            ends(depth - 1)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0

ends(2)
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", program],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("threaded", [False, True], ids=["task", "thread"])
async def test_a_kernel_that_stalls_past_its_watchdog_is_reported(threaded):
    loop = asyncio.get_running_loop()
    reported = asyncio.Event()
    told = []

    class Tell(logging.Handler):
        def emit(self, record):
            if "stalled" in record.getMessage():
                told.append(record.getMessage())
                loop.call_soon_threadsafe(reported.set)

    go_on = threading.Event()

    async def task(ctx):
        while True:
            await ctx.receive()
            await loop.run_in_executor(None, go_on.wait)

    def thread(ctx):
        while True:
            ctx.receive()
            go_on.wait()

    tell = Tell()
    logging.getLogger("pydotcompute").addHandler(tell)
    try:
        async with RingKernelRuntime() as runtime:
            await runtime.launch("k", thread if threaded else task, watchdog=0.01)
            await runtime.activate("k")
            await runtime.send("k", 1)
            await asyncio.wait_for(reported.wait(), 30)
            go_on.set()
    finally:
        go_on.set()
        logging.getLogger("pydotcompute").removeHandler(tell)
    assert "kernel 'k' stalled" in told[0]


async def test_a_watchdog_that_is_too_short_is_refused():
    async with RingKernelRuntime() as runtime:
        with pytest.raises(InvalidConfigurationError, match="watchdog"):
            await runtime.launch("k", lambda ctx: None, watchdog=0.0)
        assert runtime.kernel_ids == []


def test_a_child_of_fork_can_have_a_runtime_of_its_own():
    program = """
import asyncio
import os
from pydotcompute import RingKernelRuntime

async def echo(ctx):
    while True:
        await ctx.send(await ctx.receive())

async def main():
    async with RingKernelRuntime() as runtime:
        await runtime.launch("k", echo)
        await runtime.activate("k")
        return await runtime.send_and_receive("k", 7)

assert asyncio.run(main()) == 7
if (child := os.fork()) == 0:
    assert asyncio.run(main()) == 7
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=25, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("without_uvloop", ["", "1"])
def test_a_program_may_end_while_the_thread_of_a_kernel_tells_of_its_end(without_uvloop):
    program = """
import asyncio
from pydotcompute import RingKernelRuntime

def echo(ctx):
    while True:
        ctx.send(ctx.receive())

async def main():
    async with RingKernelRuntime() as runtime:
        for name in ("a", "b", "c"):
            await runtime.launch(name, echo)
            await runtime.activate(name)
            await runtime.send_and_receive(name, 7, timeout=10)

asyncio.run(main())
"""
    for _ in range(6):
        done = subprocess.run(
            [sys.executable, "-c", program],
            capture_output=True,
            text=True,
            timeout=25,
            check=False,
            env={**os.environ, "PYDOTCOMPUTE_NO_UVLOOP": without_uvloop},
        )
        assert done.returncode == 0, done.stderr
