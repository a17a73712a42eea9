"""Kernels connected to kernels."""

import asyncio
import gc
import threading
import weakref

import pytest

from pydotcompute import RingKernelRuntime, message
from pydotcompute.exceptions import (
    KernelFailedError,
    KernelNotFoundError,
    KernelStoppedError,
    PipelineError,
    QueueTimeoutError,
    TypeValidationError,
)
from pydotcompute.ring_kernels.lifecycle import RingKernelConfig


@message
class Number:
    value: int


@message
class Text:
    text: str


async def double(ctx):
    while True:
        number = await ctx.receive()
        await ctx.send(Number(value=number.value * 2))


def add_one(ctx):
    while True:
        number = ctx.receive()
        ctx.send(Number(value=number.value + 1))


async def start(runtime, name, function, size=None, **kwargs):
    if size is not None:
        kwargs["config"] = RingKernelConfig(name, input_queue_size=size, output_queue_size=size)
    kernel = await runtime.launch(name, function, **kwargs)
    await kernel.activate()
    return kernel


async def eventually(condition):
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.001)


@pytest.mark.parametrize(
    "stages", [(double, double), (double, add_one), (add_one, double), (add_one, add_one)]
)
async def test_replies_go_to_the_next_kernel_in_order_across_executors(stages):
    plain = {double: lambda n: 2 * n, add_one: lambda n: n + 1}
    async with asyncio.timeout(30), RingKernelRuntime() as runtime:
        first = await start(runtime, "first", stages[0], 4)
        last = await start(runtime, "last", stages[1], 4)
        runtime.connect("first", "last")
        assert runtime.connected_to("first") == "last"
        assert runtime.connected_to("last") is None

        async def feed():
            for value in range(300):
                await runtime.send("first", Number(value=value))

        async with asyncio.TaskGroup() as group:
            group.create_task(feed())
            got = [(await runtime.receive("last")).value for _ in range(300)]
        assert got == [plain[stages[1]](plain[stages[0]](value)) for value in range(300)]
        await eventually(lambda: last._books(False)["processed"] == 300)
        # Counted by the thread that forwarded it, which may not have come to that yet.
        await eventually(lambda: first._books(True)["forwarded"] == 300)
        replies = first._books(True)
        assert (replies["accepted"], replies["forwarded"], replies["queued"]) == (300, 300, 0)
        assert last._books(False)["accepted"] == last._books(True)["processed"] == 300


async def test_a_slow_stage_holds_the_source_back():
    gate = threading.Event()

    def slow(ctx):
        while True:
            number = ctx.receive()
            gate.wait(20)
            ctx.send(number)

    async with asyncio.timeout(30), RingKernelRuntime() as runtime:
        await start(runtime, "first", double, 1)
        await start(runtime, "slow", slow, 1)
        runtime.connect("first", "slow")
        # In hand and queued in each, and what the first one has made.
        for value in range(4):
            await runtime.send("first", Number(value=value), timeout=10)
        with pytest.raises(QueueTimeoutError):
            await runtime.send("first", Number(value=9), timeout=0.05)
        gate.set()
        assert [(await runtime.receive("slow")).value for _ in range(4)] == [0, 2, 4, 6]


@pytest.mark.parametrize("last", [double, add_one])
async def test_asks_are_answered_by_the_last_kernel_and_never_mix(last):
    plain = {double: lambda n: 4 * n, add_one: lambda n: 2 * n + 1}[last]
    async with asyncio.timeout(30), RingKernelRuntime() as runtime:
        await start(runtime, "first", double)
        await start(runtime, "last", last)
        runtime.connect("first", "last")

        async def ask(value):
            answer = await runtime.send_and_receive("first", Number(value=value), timeout=20)
            assert answer.value == plain(value)

        await runtime.send("first", Number(value=1000))
        await asyncio.gather(*(ask(value) for value in range(100)))
        assert (await runtime.receive("last")).value == plain(1000)


async def test_a_stage_may_answer_asks_out_of_order():
    async def pairs(ctx):
        while True:
            first = await ctx.receive()
            second = await ctx.receive()
            for one in (second, first):
                answer = Number(value=one.value)
                answer.correlation_id = one.message_id
                await ctx.send(answer)

    async with asyncio.timeout(30), RingKernelRuntime() as runtime:
        await start(runtime, "first", double)
        await start(runtime, "pairs", pairs)
        # Connected before and after the first ask.
        for _ in range(2):
            runtime.connect("first", "pairs")
            answers = await asyncio.gather(
                *(runtime.send_and_receive("first", Number(value=n), timeout=20) for n in (1, 2))
            )
            assert [answer.value for answer in answers] == [2, 4]
            assert runtime.disconnect("first")
            answer = await runtime.send_and_receive("first", Number(value=5), timeout=20)
            assert answer.value == 10


async def test_receive_from_a_connected_kernel_is_an_error_also_for_who_waits():
    async with asyncio.timeout(30), RingKernelRuntime() as runtime:
        await start(runtime, "first", double)
        await start(runtime, "last", double)
        waiting = asyncio.create_task(runtime.receive("first"))
        await asyncio.sleep(0)
        runtime.connect("first", "last")
        with pytest.raises(PipelineError, match="'first' go to the kernel"):
            await waiting
        with pytest.raises(PipelineError):
            await runtime.receive("first", timeout=1)
        assert runtime.disconnect("first")
        assert not runtime.disconnect("first")
        await runtime.send("first", Number(value=4))
        assert (await runtime.receive("first")).value == 8


async def test_an_exception_in_a_stage_reaches_the_askers_and_pauses_those_before_it():
    async def fails(ctx):
        await ctx.receive()
        raise ValueError("not this one")

    async with asyncio.timeout(30), RingKernelRuntime() as runtime:
        await start(runtime, "first", double)
        await start(runtime, "fails", fails)
        runtime.connect("first", "fails")
        with pytest.raises(KernelFailedError) as caught:
            await runtime.send_and_receive("first", Number(value=1), timeout=20)
        assert caught.value.kernel_id == "fails"
        assert isinstance(caught.value.__cause__, ValueError)
        with pytest.raises(KernelFailedError):
            await runtime.send_and_receive("first", Number(value=2), timeout=20)
        # What was only sent waits for what is done about it.
        await runtime.send("first", Number(value=3))
        with pytest.raises(PipelineError):
            await runtime.receive("first")
        await runtime.terminate("fails")
        assert (await runtime.receive("first", timeout=20)).value == 6


async def test_a_stage_that_is_terminated_is_replaced_without_loss():
    async with asyncio.timeout(30), RingKernelRuntime() as runtime:
        await start(runtime, "first", double)
        await start(runtime, "old", double)
        runtime.connect("first", "old")
        assert (await runtime.send_and_receive("first", Number(value=1), timeout=20)).value == 4
        await runtime.terminate("old")
        assert runtime.connected_to("first") is None
        for value in range(3):
            await runtime.send("first", Number(value=value))
        await eventually(lambda: runtime._kernels["first"]._books(True)["queued"] == 3)
        await start(runtime, "new", add_one)
        runtime.connect("first", "new")
        assert [(await runtime.receive("new")).value for _ in range(3)] == [1, 3, 5]


async def test_types_have_to_agree_where_they_are_declared():
    async def reads(ctx):
        while True:
            number = await ctx.receive()
            await ctx.send(number if number.value else Text(text="nothing"))

    async with asyncio.timeout(30), RingKernelRuntime() as runtime:
        await start(runtime, "numbers", double, input_type=Number, output_type=Number)
        texts = await start(runtime, "texts", double, input_type=Text)
        with pytest.raises(TypeValidationError, match="'numbers' to kernel 'texts'"):
            runtime.connect("numbers", "texts")
        assert runtime.connected_to("numbers") is None
        # Where the one does not say what it replies with, each reply is looked at.
        untyped = await start(runtime, "untyped", reads)
        runtime.connect("untyped", "numbers")
        await runtime.send("untyped", Number(value=3))
        assert (await runtime.receive("numbers")).value == 6
        await runtime.send("untyped", Number(value=0))
        await asyncio.wait_for(untyped._ended(), 20)
        assert isinstance(untyped.error, TypeValidationError)
        assert "'untyped' to kernel 'numbers'" in str(untyped.error)
        assert texts._books(False)["accepted"] == 0


async def test_what_cannot_be_connected_is_refused():
    async with asyncio.timeout(30), RingKernelRuntime() as runtime:
        for name in ("a", "b", "c"):
            await start(runtime, name, double)
        with pytest.raises(KernelNotFoundError):
            runtime.connect("a", "nobody")
        runtime.connect("a", "b")
        with pytest.raises(PipelineError, match="disconnect it first") as caught:
            runtime.connect("a", "c")
        assert caught.value.kernel_id == "a"
        with pytest.raises(PipelineError, match="'b' -> 'a' -> 'b'"):
            runtime.connect("b", "a")
        runtime.connect("b", "a", allow_cycle=True)
        assert runtime.disconnect("b")
        await runtime._kernels["c"].terminate()
        with pytest.raises(KernelStoppedError):
            runtime.connect("b", "c")


async def test_an_actor_that_waits_for_room_in_the_next_kernel_can_be_ended():
    async def never(ctx):
        await asyncio.Event().wait()

    async with asyncio.timeout(30), RingKernelRuntime() as runtime:
        await start(runtime, "first", double)
        await start(runtime, "never", never, 1)
        runtime.connect("first", "never")
        for value in range(3):
            await runtime.send("first", Number(value=value))
        asked = asyncio.create_task(runtime.send_and_receive("first", Number(value=9)))
        first = runtime._kernels["first"]
        await eventually(lambda: first._books(False)["queued"] == 2)
        await runtime.terminate("first")
        with pytest.raises(KernelStoppedError):
            await asked
        letters = sorted(letter.message.value for letter in runtime.dead_letters("first"))
        assert letters == [2, 2, 9]


async def test_connected_kernels_can_be_collected():
    async with RingKernelRuntime() as runtime:
        first = await start(runtime, "first", double)
        await start(runtime, "last", double)
        runtime.connect("first", "last")
        runtime.connect("last", "first", allow_cycle=True)
        gone = weakref.ref(first)
    del first, runtime
    for _ in range(5):
        gc.collect()
        await asyncio.sleep(0)
    assert gone() is None
