"""What must not happen to actors and their lifecycle: section A of the promises."""

import asyncio
import logging
import os
import subprocess
import sys
import threading
import time

import pytest

from pydotcompute import RingKernelRuntime, ring_kernel
from pydotcompute.exceptions import (
    InvalidConfigurationError,
    KernelError,
    KernelFailedError,
    KernelStateError,
    KernelStoppedError,
    QueueFullError,
    QueueTimeoutError,
    TypeValidationError,
)
from pydotcompute.ring_kernels.lifecycle import KernelState, RingKernelConfig
from pydotcompute.ring_kernels.runtime import register_ring_kernel

LIMIT_S = 20


@pytest.fixture
async def runtime():
    async with asyncio.timeout(LIMIT_S), RingKernelRuntime() as runtime:
        yield runtime


async def echo(ctx):
    while True:
        await ctx.send(await ctx.receive())


async def start(runtime, name, function, **options):
    kernel = await runtime.launch(name, function, **options)
    await runtime.activate(name)
    return kernel


async def test_a1_actor_exception_reaches_every_waiter(runtime):
    async def fails(ctx):
        await ctx.receive()
        raise ZeroDivisionError("boom")

    kernel = await start(runtime, "k", fails)
    waiting = [asyncio.create_task(runtime.receive("k")) for _ in range(2)]
    waiting.append(asyncio.create_task(runtime.send_and_receive("k", 1)))
    for waiter in waiting:
        with pytest.raises(KernelFailedError) as caught:
            await waiter
        assert isinstance(caught.value, KernelError)
        assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert kernel.state is KernelState.TERMINATED
    assert str(kernel.error) == "boom"
    assert runtime.kernel_ids == ["k"]
    with pytest.raises(KernelStateError):
        await runtime.send("k", 2)


async def test_a2_an_actor_that_lets_its_timeout_out_fails_loudly(runtime):
    async def processor(ctx):
        while not ctx.should_terminate:
            await ctx.send(await ctx.receive(timeout=0.01))

    kernel = await start(runtime, "k", processor)
    with pytest.raises(KernelFailedError) as caught:
        await runtime.receive("k")
    assert isinstance(caught.value.__cause__, QueueTimeoutError)
    assert isinstance(kernel.error, QueueTimeoutError)


async def test_a3_terminate_wakes_an_actor_that_waits():
    async with RingKernelRuntime() as runtime:
        await start(runtime, "k", echo)
        assert await runtime.send_and_receive("k", 1) == 1
        began = time.monotonic()
    assert time.monotonic() - began < 1


async def test_a4_shutdown_has_one_deadline_for_all():
    async def deaf(ctx):
        await asyncio.sleep(60)

    async with RingKernelRuntime() as runtime:
        for name in range(8):
            await start(runtime, f"k{name}", deaf)
        await asyncio.sleep(0.01)
        began = time.monotonic()
        await runtime.shutdown(timeout=0.3)
    assert time.monotonic() - began < 1


async def test_a5_terminate_keeps_its_timeout(runtime):
    async def immortal(ctx):
        while True:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                continue

    kernel = await start(runtime, "k", immortal)
    await asyncio.sleep(0.01)
    task = kernel._task
    began = time.monotonic()
    await runtime.terminate("k", timeout=0.2)
    assert time.monotonic() - began < 1
    assert kernel.state is KernelState.TERMINATED
    # Only so that the loop can end: nothing stops such a task.
    task.get_coro().close()
    task._log_destroy_pending = False


async def test_a6_deactivate_pauses_processing(runtime):
    handled = []

    async def actor(ctx):
        while True:
            handled.append(await ctx.receive())

    await start(runtime, "k", actor)
    await asyncio.sleep(0.01)
    await runtime.deactivate("k")
    await runtime.send("k", 1)
    await asyncio.sleep(0.02)
    assert handled == []
    await runtime.reactivate("k")
    await asyncio.sleep(0.02)
    assert handled == [1]


async def test_a7_a_caller_that_waits_is_told_of_the_end(runtime):
    await start(runtime, "k", echo)
    waiter = asyncio.create_task(runtime.receive("k"))
    await asyncio.sleep(0.01)
    await runtime.terminate("k")
    with pytest.raises(KernelStoppedError):
        await waiter


async def test_a8_undelivered_messages_become_dead_letters(runtime):
    await start(runtime, "k", echo)
    await runtime.send("k", "reply")
    await asyncio.sleep(0.01)
    await runtime.deactivate("k")
    await runtime.send("k", "queued")
    await runtime.terminate("k")
    letters = {letter.message: letter.to_kernel for letter in runtime.dead_letters("k")}
    assert letters == {"queued": True, "reply": False}


async def test_a9_the_backpressure_strategy_is_checked_and_works(runtime):
    with pytest.raises(InvalidConfigurationError):
        RingKernelConfig("k", backpressure_strategy="BLOCK")
    config = RingKernelConfig("k", input_queue_size=1, backpressure_strategy="reject")
    await start(runtime, "k", echo, config=config)
    await runtime.deactivate("k")
    await runtime.send("k", 1)
    with pytest.raises(QueueFullError):
        await runtime.send("k", 2)


async def test_a10_telemetry_is_filled(runtime):
    async def fails(ctx):
        await ctx.receive()
        raise ValueError("counted")

    await start(runtime, "k", echo)
    for number in range(10):
        await runtime.send_and_receive("k", number)
    telemetry = runtime.get_telemetry("k")
    assert telemetry.messages_processed >= 9
    assert telemetry.total_latency_ns > 0
    assert telemetry.max_latency_ns > 0
    assert telemetry.uptime_seconds > 0
    await start(runtime, "f", fails)
    await runtime.send("f", 1)
    await runtime._kernels["f"]._ended()
    assert runtime.get_telemetry("f").error_count == 1
    assert "counted" in runtime.get_telemetry("f").last_error


async def test_a11_concurrent_callers_get_their_own_replies(runtime):
    class Message:
        def __init__(self, message_id, correlation_id=None):
            self.message_id = message_id
            self.correlation_id = correlation_id

    async def backwards(ctx):
        pair = [await ctx.receive(), await ctx.receive()]
        for message in reversed(pair):
            await ctx.send(Message(message.message_id + 100, message.message_id))

    await start(runtime, "k", backwards)
    first, second = await asyncio.gather(
        runtime.send_and_receive("k", Message(1)), runtime.send_and_receive("k", Message(2))
    )
    assert (first.message_id, second.message_id) == (101, 102)


async def test_a12_types_are_checked(runtime):
    await start(runtime, "k", echo, input_type=int)
    with pytest.raises(TypeValidationError):
        await runtime.send("k", "text")
    with pytest.raises(TypeValidationError):
        await runtime.send_and_receive("k", "text")
    assert await runtime.send_and_receive("k", 3) == 3


async def test_a13_the_decorators_configuration_is_kept(runtime):
    @ring_kernel(queue_size=17, input_type=int, auto_register=False)
    async def decorated(ctx):
        await echo(ctx)

    kernel = await start(runtime, "k", decorated)
    assert kernel.config.input_queue_size == 17
    with pytest.raises(TypeValidationError):
        await runtime.send("k", "text")


async def test_a14_a_kernel_that_returns_has_ended(runtime):
    async def once(ctx):
        await ctx.send(await ctx.receive())

    kernel = await start(runtime, "k", once)
    await runtime.send("k", 1)
    await kernel._ended()
    assert kernel.state is KernelState.TERMINATED
    assert kernel.error is None
    # The reply that it made can still be read.
    assert await runtime.receive("k") == 1
    with pytest.raises(KernelStoppedError):
        await runtime.receive("k")


async def test_a15_a_plain_function_does_not_block_the_loop(runtime):
    release = threading.Event()

    def blocks(ctx):
        release.wait(LIMIT_S)
        ctx.send(threading.get_ident())

    await start(runtime, "k", blocks)
    await asyncio.sleep(0.01)
    release.set()
    assert await runtime.receive("k") != threading.get_ident()


async def test_a16_a_runtime_that_was_not_started_ends_its_kernels():
    runtime = RingKernelRuntime()
    kernel = await start(runtime, "k", echo)
    assert runtime.is_active
    await runtime.shutdown()
    assert kernel.state is KernelState.TERMINATED
    assert runtime.kernel_ids == []


@pytest.mark.parametrize("setting", ["1", "", None])
def test_a17_the_environment_keeps_uvloop_away(setting):
    pytest.importorskip("uvloop")
    program = """
import asyncio
from pydotcompute import RingKernelRuntime
from pydotcompute.ring_kernels._loop import create_optimized_loop, is_uvloop_installed
from pydotcompute.ring_kernels._loop import install_uvloop
RingKernelRuntime()
install_uvloop()
loop = create_optimized_loop()
print(is_uvloop_installed(), type(loop).__module__.startswith("uvloop"),
      type(asyncio.get_event_loop_policy()).__module__.startswith("uvloop"))
"""
    environment = {key: value for key, value in os.environ.items() if "UVLOOP" not in key}
    if setting is not None:
        environment["PYDOTCOMPUTE_NO_UVLOOP"] = setting
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True
    )
    assert done.stdout.split() == ["False" if setting else "True"] * 3


def test_a18_the_representation_tells_of_the_running_loop():
    async def main():
        runtime = RingKernelRuntime()
        assert "uvloop=False" in repr(runtime)
        assert runtime.get_loop_info()["runtime_uvloop_installed"] is False

    loop = asyncio.SelectorEventLoop()
    loop.run_until_complete(main())
    loop.close()


def test_a19_a_registration_that_replaces_another_is_logged(caplog):
    async def other(ctx):
        pass

    register_ring_kernel("a19", echo)
    with caplog.at_level(logging.WARNING, "pydotcompute"):
        register_ring_kernel("a19", echo)
        assert caplog.records == []
        register_ring_kernel("a19", other)
    assert "a19" in caplog.text


@pytest.mark.parametrize("size", [0, -1, 1 << 40, "10", 1.5, True])
def test_a20_sizes_out_of_range_and_of_a_wrong_type_are_refused(size):
    with pytest.raises((ValueError, TypeError, InvalidConfigurationError)):
        RingKernelConfig("k", input_queue_size=size)


async def test_a21_messages_from_other_threads_wake_the_actor(runtime):
    await start(runtime, "k", echo)
    await asyncio.sleep(0.01)

    def send():
        asyncio.run(send_one())

    async def send_one():
        await runtime.send("k", "from a thread")

    await asyncio.to_thread(send)
    assert await runtime.receive("k", timeout=LIMIT_S) == "from a thread"


async def test_a22_two_terminates_at_once_both_return(runtime):
    await start(runtime, "k", echo)
    await asyncio.sleep(0.01)
    await asyncio.gather(runtime.terminate("k"), runtime.terminate("k"))
    assert runtime.kernel_ids == []


async def test_a23_an_actor_can_terminate_itself(runtime):
    async def suicidal(ctx):
        await ctx.receive()
        await runtime.terminate("k")
        await ctx.receive()

    kernel = await start(runtime, "k", suicidal)
    await runtime.send("k", 1)
    await kernel._ended()
    assert kernel.state is KernelState.TERMINATED
    assert kernel.error is None
    assert runtime.kernel_ids == []
    await start(runtime, "k", echo)


async def test_a24_a_cancelled_receive_is_cancelled_and_loses_nothing(runtime):
    await start(runtime, "k", echo)
    for _ in range(20):
        receiver = asyncio.create_task(runtime.receive("k", timeout=5))
        await asyncio.sleep(0)
        await runtime.send("k", "kept")
        receiver.cancel()
        with pytest.raises(asyncio.CancelledError):
            await receiver
        assert await runtime.receive("k", timeout=5) == "kept"


async def test_b8_a_cancelled_waiter_passes_its_notification_on(runtime):
    await start(runtime, "k", echo)
    for _ in range(20):
        first = asyncio.create_task(runtime.receive("k"))
        second = asyncio.create_task(runtime.receive("k"))
        await asyncio.sleep(0)
        await runtime.send("k", 1)
        first.cancel()
        assert await asyncio.wait_for(second, LIMIT_S) == 1
        await asyncio.gather(first, return_exceptions=True)


def test_d15_a_minimum_of_0_counts():
    from pydotcompute.ring_kernels.telemetry import RingKernelTelemetry

    telemetry = RingKernelTelemetry("k")
    telemetry.record_message(0)
    telemetry.record_message(5)
    assert (telemetry.min_latency_ns, telemetry.max_latency_ns) == (0, 5)
