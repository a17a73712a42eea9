"""The promises of section A, actors and lifecycle, each kept through the public API.

A24 is shown for queues in test_fast_queue.py.
"""

import asyncio
import contextlib
import functools
import gc
import logging
import subprocess
import sys
import threading
import time
import weakref

import pytest

from pydotcompute import RingKernelRuntime, message, ring_kernel
from pydotcompute.exceptions import (
    InvalidConfigurationError,
    KernelFailedError,
    KernelStateError,
    QueueFullError,
    QueueTimeoutError,
    TypeValidationError,
)
from pydotcompute.ring_kernels.lifecycle import KernelState, Restart, RingKernelConfig
from pydotcompute.ring_kernels.runtime import register_ring_kernel

#: What no test here may wait for longer, in seconds; all of them are over in a fraction.
LIMIT = 10.0


@message
class Number:
    value: float = 0.0


async def echo(ctx):
    """An actor as PyDotCompute's tests have it."""
    while not ctx.should_terminate:
        if not ctx.is_active:
            await ctx.wait_active()
            continue
        try:
            await ctx.send(await ctx.receive(timeout=0.1))
        except Exception:
            continue


async def started(runtime, name, actor, **kwargs):
    kernel = await runtime.launch(name, actor, **kwargs)
    await runtime.activate(name)
    return kernel


def within(awaitable, limit=LIMIT):
    return asyncio.wait_for(awaitable, limit)


async def ended(kernel):
    """Wait until a kernel has ended by itself."""
    with contextlib.suppress(KernelStateError):
        await within(kernel.receive())


async def test_a1_an_actors_exception_reaches_every_waiter():
    begun = asyncio.Event()

    async def broken(ctx):
        begun.set()
        await ctx.receive()
        raise ZeroDivisionError("the actor's own")

    async with RingKernelRuntime() as runtime:
        kernel = await started(runtime, "broken", broken)
        waiting = [asyncio.create_task(runtime.receive("broken")) for _ in range(3)]
        asking = [
            asyncio.create_task(runtime.send_and_receive("broken", Number(i))) for i in range(3)
        ]
        results = await within(asyncio.gather(*waiting, *asking, return_exceptions=True))
        for error in results:
            assert isinstance(error, KernelFailedError)
            assert isinstance(error, KernelStateError)
            assert isinstance(error.__cause__, ZeroDivisionError)
        assert runtime.get_kernel_state("broken") is KernelState.TERMINATED
        assert isinstance(kernel.error, ZeroDivisionError)
        with pytest.raises(KernelFailedError):
            await runtime.send("broken", Number(9))


async def test_a2_the_readmes_processor_does_not_die_silently():
    async def processor(ctx):
        while not ctx.should_terminate:
            got = await ctx.receive(timeout=0.02)
            await ctx.send(got)

    async with RingKernelRuntime() as runtime:
        await started(runtime, "processor", processor)
        with pytest.raises(KernelFailedError) as caught:
            await within(runtime.receive("processor"))
        assert isinstance(caught.value.__cause__, QueueTimeoutError)

        restart = Restart("on_fault", max_restarts=1000, backoff=0.001)
        kernel = await started(runtime, "lives", processor, restart=restart)
        end = time.monotonic() + LIMIT
        while kernel.restarts < 2 and time.monotonic() < end:
            await asyncio.sleep(0.01)
        assert kernel.restarts >= 2
        asked = Number(3.0)
        assert (await within(runtime.send_and_receive("lives", asked))).value == 3.0


async def test_a3_terminate_wakes_a_blocked_receive():
    ends = []

    async def waits(ctx):
        try:
            await ctx.receive()
        finally:
            ends.append(True)

    began = time.monotonic()
    async with RingKernelRuntime() as runtime:
        for name in ("one", "two", "three"):
            await started(runtime, name, waits)
        await asyncio.sleep(0)
    assert time.monotonic() - began < 1.0
    assert ends == [True] * 3


async def test_a4_the_timeout_of_shutdown_is_for_all_kernels_together():
    release = asyncio.Event()

    async def stubborn(ctx):
        while not release.is_set():
            with contextlib.suppress(BaseException):
                await release.wait()

    runtime = RingKernelRuntime()
    await runtime.start()
    kernels = [await started(runtime, f"stubborn{i}", stubborn) for i in range(6)]
    await asyncio.sleep(0)
    began = time.monotonic()
    await runtime.shutdown(timeout=0.4)
    took = time.monotonic() - began
    release.set()
    assert took < 0.4 + 0.4
    assert runtime.kernel_ids == []
    assert all(kernel.state is KernelState.TERMINATED for kernel in kernels)


async def test_a5_the_timeout_of_terminate_is_kept():
    release = asyncio.Event()

    async def stubborn(ctx):
        while not release.is_set():
            with contextlib.suppress(BaseException):
                await release.wait()

    def blocked(ctx):
        done.wait(LIMIT)

    done = threading.Event()
    async with RingKernelRuntime() as runtime:
        for name, actor in (("task", stubborn), ("thread", blocked)):
            await started(runtime, name, actor)
            await asyncio.sleep(0.01)
            began = time.monotonic()
            await runtime.terminate(name, timeout=0.2)
            assert time.monotonic() - began < 0.7
            assert name not in runtime.kernel_ids
        release.set()
        done.set()


async def test_a6_deactivate_pauses_processing():
    async with RingKernelRuntime() as runtime:
        await started(runtime, "echo", echo)
        assert (await within(runtime.send_and_receive("echo", Number(1.0)))).value == 1.0
        await runtime.deactivate("echo")
        for value in range(5):
            await runtime.send("echo", Number(value))
        with pytest.raises(QueueTimeoutError):
            await runtime.receive("echo", timeout=0.15)
        await runtime.reactivate("echo")
        got = [(await within(runtime.receive("echo"))).value for _ in range(5)]
        assert got == [0, 1, 2, 3, 4]


async def test_a6_an_actor_that_does_not_look_is_paused_too():
    async def plain(ctx):
        while True:
            await ctx.send(await ctx.receive())

    async with RingKernelRuntime() as runtime:
        await started(runtime, "plain", plain)
        await within(runtime.send_and_receive("plain", Number()))
        await runtime.deactivate("plain")
        await runtime.send("plain", Number(2.0))
        with pytest.raises(QueueTimeoutError):
            await runtime.receive("plain", timeout=0.1)
        await runtime.reactivate("plain")
        assert (await within(runtime.receive("plain"))).value == 2.0


async def test_a7_a_blocked_receive_ends_when_the_kernel_is_terminated():
    async with RingKernelRuntime() as runtime:
        await started(runtime, "echo", echo)
        blocked = [asyncio.create_task(runtime.receive("echo")) for _ in range(3)]
        blocked.append(asyncio.create_task(runtime.receive("echo", timeout=60)))
        await asyncio.sleep(0.01)
        await runtime.terminate("echo")
        for error in await within(asyncio.gather(*blocked, return_exceptions=True)):
            assert isinstance(error, KernelStateError)


async def test_a8_terminate_discards_no_message_silently():
    async def one_reply(ctx):
        for _ in range(2):
            await ctx.send(await ctx.receive())
        replied.set()
        await asyncio.Event().wait()

    replied = asyncio.Event()
    async with RingKernelRuntime() as runtime:
        await started(runtime, "actor", one_reply)
        for value in range(6):
            await runtime.send("actor", Number(value))
        await within(replied.wait())
        await runtime.terminate("actor", timeout=0.3)
        letters = runtime.dead_letters("actor")
        inputs = sorted(letter.message.value for letter in letters if letter.to_kernel)
        outputs = sorted(letter.message.value for letter in letters if not letter.to_kernel)
        # The one that was in hand when the kernel was cancelled may be among them.
        assert inputs[-4:] == [2, 3, 4, 5]
        assert inputs[:-4] in ([], [1])
        assert outputs == [0, 1]
        assert all(letter.reason for letter in letters)


async def test_a9_backpressure_is_honoured():
    async def waits(ctx):
        await ctx.receive()

    async with RingKernelRuntime() as runtime:
        for strategy in ("reject", "drop_oldest", "block"):
            config = RingKernelConfig(strategy, input_queue_size=2, backpressure_strategy=strategy)
            await started(runtime, strategy, echo, config=config)
            await runtime.deactivate(strategy)
            for value in range(2):
                await runtime.send(strategy, Number(value))
        with pytest.raises(QueueFullError):
            await runtime.send("reject", Number(2))
        await runtime.send("drop_oldest", Number(2))
        with pytest.raises((QueueFullError, QueueTimeoutError)):
            await runtime.send("block", Number(2), timeout=0.05)
        for name, expected in (("reject", [0, 1]), ("drop_oldest", [1, 2]), ("block", [0, 1])):
            await runtime.reactivate(name)
            assert [(await within(runtime.receive(name))).value for _ in range(2)] == expected
    with pytest.raises(InvalidConfigurationError):
        RingKernelConfig("x", backpressure_strategy="no such thing")


async def test_a10_telemetry_is_filled():
    async def slow_once(ctx):
        while True:
            got = await ctx.receive()
            if got.value < 0:
                raise ValueError("negative")
            await asyncio.sleep(0.001)
            await ctx.send(got)

    async with RingKernelRuntime() as runtime:
        await started(runtime, "k", slow_once)
        for value in range(5):
            await within(runtime.send_and_receive("k", Number(value)))
        told = runtime.get_telemetry("k")
        assert told.messages_processed == 5
        assert 0 < told.min_latency_ns <= told.avg_latency_ns <= told.max_latency_ns
        assert told.max_latency_ns < LIMIT * 1e9
        assert told.uptime_seconds > 0
        assert told.throughput > 0
        await runtime.deactivate("k")
        await runtime.send("k", Number(1))
        assert runtime.get_telemetry("k").queue_depth == 1
        await runtime.reactivate("k")
        await within(runtime.receive("k"))
        await runtime.send("k", Number(-1))
        with pytest.raises(KernelFailedError):
            await within(runtime.receive("k"))
        told = runtime.get_all_telemetry()["k"]
        assert told.error_count == 1
        assert "negative" in told.last_error
        summary = runtime.get_summary()
        assert summary["total_messages_processed"] >= 6
        assert summary["total_errors"] == 1


async def test_a11_concurrent_callers_get_their_own_replies():
    async def reverses(ctx):
        """Answers each batch of ten the other way round."""
        while True:
            batch = [await ctx.receive() for _ in range(10)]
            for got in reversed(batch):
                await ctx.send(got.reply(value=got.value * 2))

    async with RingKernelRuntime() as runtime:
        await started(runtime, "reverses", reverses)
        asks = [runtime.send_and_receive("reverses", Number(i)) for i in range(50)]
        replies = await within(asyncio.gather(*asks))
        assert [reply.value for reply in replies] == [2 * i for i in range(50)]


async def test_a11_a_late_reply_shifts_no_later_one():
    gate = asyncio.Event()

    async def late(ctx):
        first = await ctx.receive()
        await gate.wait()
        await ctx.send(first)
        while True:
            await ctx.send(await ctx.receive())

    async with RingKernelRuntime() as runtime:
        await started(runtime, "late", late)
        with pytest.raises(QueueTimeoutError):
            await runtime.send_and_receive("late", Number(-1.0), timeout=0.05)
        gate.set()
        for value in range(5):
            reply = await within(runtime.send_and_receive("late", Number(value)))
            assert reply.value == value


async def test_a12_declared_types_are_checked():
    async def wrong(ctx):
        await ctx.receive()
        await ctx.send("no number")

    async with RingKernelRuntime() as runtime:
        await started(runtime, "wrong", wrong, input_type=Number, output_type=Number)
        with pytest.raises(TypeValidationError):
            await runtime.send("wrong", "no number")
        await runtime.send("wrong", Number())
        with pytest.raises(KernelFailedError) as caught:
            await within(runtime.receive("wrong"))
        assert isinstance(caught.value.__cause__, TypeValidationError)


async def test_a13_the_decorators_configuration_is_used_by_launch():
    @ring_kernel(
        kernel_id="decorated",
        input_type=Number,
        queue_size=3,
        backpressure="reject",
        auto_register=False,
    )
    async def decorated(ctx):
        await echo(ctx)

    async with RingKernelRuntime() as runtime:
        kernel = await runtime.launch("mine", decorated)
        assert kernel.config.kernel_id == "mine"
        assert kernel.config.input_queue_size == kernel.config.output_queue_size == 3
        assert kernel.config.backpressure_strategy == "reject"
        await runtime.activate("mine")
        await runtime.deactivate("mine")
        for _ in range(3):
            await runtime.send("mine", Number())
        with pytest.raises(QueueFullError):
            await runtime.send("mine", Number())
        with pytest.raises(TypeValidationError):
            await runtime.send("mine", 1)


async def test_a14_a_kernel_that_returns_is_not_active():
    async def returns(ctx):
        await ctx.send(Number(7.0))

    async with RingKernelRuntime() as runtime:
        kernel = await started(runtime, "returns", returns)
        assert (await within(runtime.receive("returns"))).value == 7.0
        await ended(kernel)
        assert kernel.state is KernelState.TERMINATED
        assert kernel.error is None
        with pytest.raises(KernelStateError):
            await runtime.send("returns", Number())


async def test_a15_a_plain_function_does_not_block_the_loop():
    ticks = threading.Event()
    threads = []

    def plain(ctx):
        threads.append(threading.current_thread())
        # Can only be set by the loop, which therefore is not blocked.
        ctx.send(Number(float(ticks.wait(LIMIT))))
        while not ctx.should_terminate:
            ctx.send(ctx.receive())

    async with RingKernelRuntime() as runtime:
        await started(runtime, "plain", plain)
        await asyncio.sleep(0)
        ticks.set()
        assert (await within(runtime.receive("plain"))).value == 1.0
        assert threads[0] is not threading.main_thread()
        assert (await within(runtime.send_and_receive("plain", Number(2.0)))).value == 2.0

        class Callable:
            def __call__(self, ctx):
                plain(ctx)

        for name, function in (("partial", functools.partial(plain)), ("object", Callable())):
            await started(runtime, name, function)
            assert (await within(runtime.receive(name))).value == 1.0
            assert threads[-1] is not threading.main_thread()


async def test_a16_a_runtime_that_was_not_started_leaks_no_kernel():
    runtime = RingKernelRuntime()
    kernel = await started(runtime, "echo", echo)
    assert (await within(runtime.send_and_receive("echo", Number(4.0)))).value == 4.0
    await runtime.shutdown()
    assert kernel.state is KernelState.TERMINATED
    assert runtime.kernel_ids == []
    assert not [task for task in asyncio.all_tasks() if "ring_kernel" in task.get_name()]


def python(code, **env):
    import os

    ran = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYDOTCOMPUTE_NO_UVLOOP": "", **env},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.strip()


LOOP = """
import asyncio
from pydotcompute import RingKernelRuntime
from pydotcompute.ring_kernels import is_uvloop_installed, install_uvloop, create_optimized_loop
async def main():
    async with RingKernelRuntime() as rt:
        print(type(asyncio.get_running_loop()).__module__.split('.')[0], is_uvloop_installed(),
              install_uvloop(), 'uvloop=True' in repr(rt))
asyncio.run(main())
loop = create_optimized_loop()
print(type(loop).__module__.split('.')[0])
loop.close()
"""


def test_a17_no_uvloop_is_honoured_everywhere():
    lines = python(LOOP, PYDOTCOMPUTE_NO_UVLOOP="1").split()
    assert lines == ["asyncio", "False", "False", "False", "asyncio"]


def test_a17_uvloop_is_installed_and_said_so():
    pytest.importorskip("uvloop")
    assert python(LOOP).split() == ["uvloop", "True", "True", "True", "uvloop"]


def test_a18_the_running_loop_is_what_is_told():
    pytest.importorskip("uvloop")

    async def main():
        async with RingKernelRuntime() as runtime:
            info = runtime.get_loop_info()
            return repr(runtime), info["loop_class"], info["runtime_uvloop_installed"]

    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
        text, _, installed = runner.run(main())
    assert "uvloop=False" in text
    assert installed is False

    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        text, _, installed = runner.run(main())
    assert "uvloop=True" in text
    assert installed is True


def test_a19_registering_an_id_again_is_told(caplog):
    async def first(ctx):
        pass

    async def second(ctx):
        pass

    with caplog.at_level(logging.WARNING, logger="pydotcompute"):
        register_ring_kernel("test_a19", first)
        register_ring_kernel("test_a19", first)
        assert not caplog.records
        register_ring_kernel("test_a19", second)
    assert any("test_a19" in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize("size", [0, -1, 1 << 40, "10", 1.5, True])
def test_a20_queue_sizes_out_of_range_and_of_a_wrong_type_are_refused(size):
    for name in ("input_queue_size", "output_queue_size"):
        with pytest.raises((ValueError, TypeError)):
            RingKernelConfig("k", **{name: size})


async def test_a21_a_message_from_another_thread_wakes_the_actor():
    async with RingKernelRuntime() as runtime:
        kernel = await started(runtime, "echo", echo)

        async def blocked(ctx):
            while True:
                await ctx.send(await ctx.receive())

        await started(runtime, "blocked", blocked)
        await asyncio.sleep(0.01)

        def from_outside():
            asyncio.run(runtime.send("blocked", Number(5.0)))
            asyncio.run(kernel.send(Number(6.0)))

        thread = threading.Thread(target=from_outside)
        thread.start()
        assert (await within(runtime.receive("blocked"))).value == 5.0
        assert (await within(runtime.receive("echo"))).value == 6.0
        await asyncio.to_thread(thread.join, LIMIT)
        assert not thread.is_alive()


async def test_a22_concurrent_terminates_all_succeed():
    async with RingKernelRuntime() as runtime:
        kernel = await started(runtime, "echo", echo)
        await asyncio.sleep(0)
        await within(
            asyncio.gather(
                *(runtime.terminate("echo") for _ in range(4)),
                *(kernel.terminate() for _ in range(4)),
            )
        )
        assert kernel.state is KernelState.TERMINATED
        assert runtime.kernel_ids == []


@pytest.mark.parametrize("by", ["runtime", "kernel", "shutdown"])
async def test_a23_an_actor_can_end_itself(by):
    errors = []
    async with RingKernelRuntime() as runtime:

        async def ends(ctx):
            await ctx.receive()
            try:
                if by == "runtime":
                    await runtime.terminate("ends")
                elif by == "kernel":
                    await kernel.terminate()
                else:
                    await runtime.shutdown()
            except BaseException as error:
                errors.append(error)
                raise

        kernel = await started(runtime, "ends", ends)
        waiting = asyncio.create_task(kernel.receive())
        await runtime.send("ends", Number())
        with pytest.raises(KernelStateError):
            await within(waiting)
        assert not errors
        assert kernel.error is None
        assert kernel.state is KernelState.TERMINATED
        # Its name is free once the runtime was asked to end it.
        assert runtime.kernel_ids == (["ends"] if by == "kernel" else [])


async def test_a24_a_cancelled_receive_is_cancelled_and_loses_nothing():
    async with RingKernelRuntime() as runtime:
        await started(runtime, "echo", echo)
        for _ in range(20):
            receiver = asyncio.create_task(runtime.receive("echo", timeout=LIMIT))
            await asyncio.sleep(0)
            await runtime.send("echo", "kept")
            receiver.cancel()
            with pytest.raises(asyncio.CancelledError):
                await receiver
            assert await runtime.receive("echo", timeout=LIMIT) == "kept"


@pytest.mark.parametrize("what", ["receive", "ask", "send", "fast", "priority", "ring", "thread"])
async def test_a_waiting_task_that_nobody_refers_to_goes_on(what):
    """As with asyncio's own queues, what is waited for keeps the Task that waits."""
    import gc

    from pydotcompute.ring_kernels import FastMessageQueue, MessageQueue, RingBuffer

    gate = asyncio.Event()
    got = asyncio.Event()
    queue = {"fast": FastMessageQueue, "priority": MessageQueue}.get(what, RingBuffer)(4)

    async def gated(ctx):
        while True:
            message = await ctx.receive()
            await gate.wait()
            await ctx.send(message)

    async with RingKernelRuntime() as runtime:
        config = RingKernelConfig("k", input_queue_size=1)
        await started(runtime, "k", gated, config=config)

        async def waits():
            if what == "receive":
                await runtime.receive("k")
            elif what == "ask":
                await runtime.send_and_receive("k", Number())
            elif what == "send":
                for _ in range(4):
                    await runtime.send("k", Number())
            elif what == "thread":
                await runtime.receive("k", timeout=LIMIT)
            else:
                await queue.get()
            got.set()

        asyncio.ensure_future(waits())  # noqa: RUF006
        for _ in range(5):
            await asyncio.sleep(0)
        gc.collect()
        await queue.put(Number())
        if what == "thread":
            await asyncio.to_thread(lambda: asyncio.run(runtime.send("k", Number())))
        elif what == "receive":
            await runtime.send("k", Number())
        gate.set()
        await within(got.wait())


@pytest.mark.parametrize("restart", [None, "on_fault"])
def test_a_failed_actor_leaks_nothing_of_its_frame(restart):
    class Big:
        pass

    refs = []

    async def fails(ctx):
        big = Big()
        refs.append(weakref.ref(big))
        await ctx.receive()
        raise ValueError(big)

    async def main():
        async with RingKernelRuntime() as runtime:
            kernel = await started(runtime, "fails", fails, restart=restart)
            for _ in range(2):
                with contextlib.suppress(KernelStateError, QueueTimeoutError):
                    await runtime.send("fails", 1)
                    await runtime.receive("fails", timeout=0.1)
            if restart is None:
                assert isinstance(kernel.error, ValueError)

    asyncio.run(main())
    gc.collect()
    assert refs
    assert all(ref() is None for ref in refs)


class Leads:
    """A message that leads to its runtime."""


@pytest.mark.parametrize("where", ["queued", "in hand", "replied"])
def test_a_message_that_leads_to_its_runtime_is_collected_with_it(where):
    async def holds(ctx):
        await ctx.receive()
        await asyncio.Event().wait()

    async def main():
        runtime = RingKernelRuntime()
        await started(runtime, "k", {"replied": echo}.get(where, holds))
        if where == "queued":
            await runtime.deactivate("k")
        leads = Leads()
        leads.runtime = runtime
        await runtime.send("k", leads)
        taken = "in_hand" if where == "in hand" else "queued"
        while runtime._kernels["k"]._books(where == "replied")[taken] == 0:
            await asyncio.sleep(0)
        # Whoever shuts it down has dead letters, whoever forgets to a kernel that has failed.
        return weakref.ref(leads), weakref.ref(runtime)

    refs = asyncio.run(main())
    gc.collect()
    assert [ref() for ref in refs] == [None, None]
