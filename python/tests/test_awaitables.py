"""The awaitables of Rust, as asyncio and its tools see them."""

import asyncio
import contextvars
import gc
import inspect
import signal
import sys
import threading
import weakref

import pytest

from pydotcompute import RingKernelRuntime
from pydotcompute.exceptions import (
    KernelFailedError,
    KernelNotFoundError,
    KernelStateError,
    KernelStoppedError,
    QueueTimeoutError,
)
from pydotcompute.ring_kernels import FastMessageQueue
from pydotcompute.ring_kernels.lifecycle import RingKernelConfig

LIMIT_S = 20


async def echo(ctx):
    while True:
        await ctx.send(await ctx.receive())


@pytest.fixture
async def runtime():
    async with asyncio.timeout(LIMIT_S):
        async with RingKernelRuntime() as runtime:
            await runtime.launch("echo", echo)
            await runtime.activate("echo")
            yield runtime


async def test_an_awaitable_is_a_coroutine_to_asyncio(runtime):
    awaitable = runtime.send("echo", 1)
    assert asyncio.iscoroutine(awaitable)
    assert inspect.isawaitable(awaitable)
    assert awaitable.__await__() is awaitable
    assert await asyncio.create_task(awaitable) is None
    async with asyncio.TaskGroup() as group:
        task = group.create_task(runtime.receive("echo"))
    assert task.result() == 1
    assert await asyncio.gather(runtime.send("echo", 2), runtime.receive("echo")) == [None, 2]
    assert await asyncio.wait_for(runtime.send_and_receive("echo", 3), 5) == 3


async def test_an_awaitable_does_nothing_and_raises_nothing_before_it_is_driven(runtime):
    missing = runtime.send("nobody", 1)
    runtime.send("echo", 1)
    asked = runtime.send_and_receive("echo", 1)
    await asyncio.sleep(0.01)
    assert runtime.get_telemetry("echo").messages_processed == 0
    with pytest.raises(KernelNotFoundError) as caught:
        await missing
    assert caught.value.kernel_id == "nobody"
    asked.close()


async def test_an_awaitable_can_be_awaited_once(runtime):
    awaitable = runtime.send("echo", 1)
    await awaitable
    with pytest.raises(RuntimeError, match="cannot reuse"):
        await awaitable
    closed = runtime.receive("echo")
    closed.close()
    closed.close()
    with pytest.raises(RuntimeError, match="cannot reuse"):
        await closed


async def test_an_awaitable_that_is_being_awaited_refuses_a_second_task(runtime):
    awaitable = runtime.receive("echo")
    first = asyncio.create_task(awaitable)
    await asyncio.sleep(0)
    await runtime.send("echo", 5)
    assert await first == 5


async def test_throw_ends_a_wait_and_loses_no_message(runtime):
    awaitable = runtime.receive("echo")
    awaitable.send(None)
    with pytest.raises(KeyError):
        awaitable.throw(KeyError("x"))
    with pytest.raises(ValueError, match="text"):
        runtime.receive("echo").throw(ValueError, "text", None)
    await runtime.send("echo", 1)
    assert await runtime.receive("echo") == 1


@pytest.mark.parametrize("value", [None, (), (1, 2), StopIteration(3), ValueError("x"), 0, ""])
async def test_any_object_comes_back_as_it_was_sent(runtime, value):
    await runtime.send("echo", value)
    assert await runtime.receive("echo") is value
    # Driven through `__next__`, as Python 3.12 does.
    await runtime.send("echo", value)
    await asyncio.sleep(0.01)
    with pytest.raises(StopIteration) as caught:
        next(iter(runtime.receive("echo")))
    assert caught.value.value is value


async def test_cancelling_a_receive_in_the_tick_of_its_message_keeps_the_message(runtime):
    for _ in range(20):
        task = asyncio.create_task(runtime.receive("echo", timeout=5))
        await asyncio.sleep(0)
        await runtime.send("echo", "kept")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await runtime.receive("echo", timeout=5) == "kept"


async def test_a_cancellation_carries_its_message(runtime):
    task = asyncio.create_task(runtime.receive("echo"))
    await asyncio.sleep(0)
    assert task.cancel("why")
    with pytest.raises(asyncio.CancelledError) as caught:
        await task
    assert caught.value.args == ("why",)


async def test_asyncio_timeout_ends_a_receive(runtime):
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await runtime.receive("echo")
    with pytest.raises(QueueTimeoutError) as caught:
        await runtime.receive("echo", timeout=0.01)
    assert (caught.value.kernel_id, caught.value.timeout) == ("echo", 0.01)
    with pytest.raises(ValueError, match="nan"):
        await runtime.receive("echo", timeout=float("nan"))
    await runtime.send("echo", 1, timeout=float("inf"))
    assert await runtime.receive("echo", timeout=float("inf")) == 1


async def test_a_receive_with_timeout_0_lets_others_run_before_it_raises(runtime):
    ticks = 0

    async def ticker():
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(ticker())
    for _ in range(50):
        with pytest.raises(QueueTimeoutError):
            await runtime.receive("echo", timeout=0)
    assert ticks >= 49
    task.cancel()


async def test_an_actor_that_ignores_its_end_cannot_starve_the_loop(runtime):
    async def stubborn(ctx):
        while True:
            try:
                await ctx.receive()
            except Exception:
                continue

    await runtime.launch("stubborn", stubborn)
    await runtime.activate("stubborn")
    await asyncio.sleep(0)
    await asyncio.wait_for(runtime.terminate("stubborn", timeout=0.2), 5)
    assert "stubborn" not in runtime.kernel_ids


async def test_a_ticker_goes_on_beside_a_flat_out_ping_pong(runtime):
    ticks = 0

    async def ticker():
        nonlocal ticks
        while True:
            await asyncio.sleep(0)
            ticks += 1

    task = asyncio.create_task(ticker())
    for number in range(5000):
        await runtime.send("echo", number)
        assert await runtime.receive("echo") == number
    task.cancel()
    # Two sends a round, at most 256 in a turn of the loop; the first and the last may not count.
    assert ticks >= 5000 * 2 // 256 - 2


async def test_completed_sends_yield_to_the_loop(runtime):
    order = []
    config = RingKernelConfig("sink", input_queue_size=10_000)
    await runtime.launch("sink", echo, config=config)
    await runtime.activate("sink")
    asyncio.get_running_loop().call_soon(order.append, "tick")
    # A turn is at most 256 awaits; the first one may be under way.
    for _ in range(550):
        await runtime.send("sink", 1)
    assert order == ["tick"]


async def test_current_task_and_contextvars_are_the_actors_own():
    name = contextvars.ContextVar("name", default="main")
    seen = []

    async def actor(ctx):
        seen.append(name.get())
        name.set("actor")
        while True:
            message = await ctx.receive()
            assert asyncio.current_task() is not outer
            assert name.get() == "actor"
            if message == "sleep":
                await asyncio.sleep(0.001)
            if message == "timeout":
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.001):
                        await asyncio.sleep(5)
            if message == "group":
                async with asyncio.TaskGroup() as group:
                    group.create_task(asyncio.sleep(0))
            await ctx.send(message)

    outer = asyncio.current_task()
    async with asyncio.timeout(LIMIT_S), RingKernelRuntime() as runtime:
        await runtime.launch("k", actor)
        name.set("launcher")
        await runtime.activate("k")
        name.set("later")
        for message in ("plain", "sleep", "timeout", "group", "plain"):
            await runtime.send("k", message)
            assert await runtime.receive("k") == message
            assert asyncio.current_task() is outer
            assert name.get() == "later"
    assert seen == ["launcher"]


async def test_an_await_in_an_except_block_keeps_its_exception_to_itself(runtime):
    contexts = []

    async def raiser(ctx):
        while True:
            await ctx.receive()
            contexts.append(sys.exc_info())
            try:
                raise KeyError("inner")
            except KeyError as error:
                contexts.append(error.__context__)
                await ctx.send(1)

    await runtime.launch("raiser", raiser)
    await runtime.activate("raiser")
    handled = []
    outer = ValueError("outer")
    try:
        raise outer
    except ValueError:
        for _ in range(3):
            await runtime.send("raiser", 0)
            await runtime.receive("raiser")
            handled.append(sys.exc_info()[1])
    assert handled == [outer] * 3
    assert contexts == [(None, None, None), None] * 3
    for _ in range(3):
        await runtime.send("raiser", 0)
        await runtime.receive("raiser")
        assert sys.exc_info() == (None, None, None)


async def test_tasks_that_share_a_context_fall_back_to_the_loop(runtime):
    # Both run in one Context, which cannot be entered twice.
    context = contextvars.copy_context()
    loop = asyncio.get_running_loop()

    async def ask(number):
        for _ in range(20):
            assert await runtime.send_and_receive("echo", number) == number

    await asyncio.gather(*(loop.create_task(ask(number), context=context) for number in range(4)))


async def test_concurrent_receives_of_one_actor_each_get_a_message(runtime):
    async def pool(ctx):
        async def worker():
            while True:
                await ctx.send((await ctx.receive(), asyncio.current_task().get_name()))

        async with asyncio.TaskGroup() as group:
            for number in range(3):
                group.create_task(worker(), name=f"w{number}")

    await runtime.launch("pool", pool)
    await runtime.activate("pool")
    await asyncio.sleep(0.01)
    for number in range(30):
        await runtime.send("pool", number)
    replies = [await runtime.receive("pool", timeout=5) for _ in range(30)]
    assert sorted(number for number, _ in replies) == list(range(30))
    await runtime.terminate("pool", timeout=5)


async def test_sends_and_receives_from_foreign_threads(runtime):
    loop = asyncio.get_running_loop()
    results = []

    def by_the_loop():
        asyncio.run_coroutine_threadsafe(runtime.send("echo", "threadsafe"), loop).result(LIMIT_S)

    def by_a_loop_of_its_own():
        async def main():
            for number in range(50):
                results.append(await runtime.send_and_receive("echo", number, timeout=LIMIT_S))

        asyncio.run(main())

    await asyncio.to_thread(by_the_loop)
    assert await runtime.receive("echo", timeout=LIMIT_S) == "threadsafe"
    await asyncio.gather(*(asyncio.to_thread(by_a_loop_of_its_own) for _ in range(3)))
    assert sorted(results) == sorted(list(range(50)) * 3)


def test_several_loops_in_several_threads():
    errors = []

    def program():
        async def main():
            async with asyncio.timeout(LIMIT_S), RingKernelRuntime() as runtime:
                await runtime.launch("k", echo)
                await runtime.activate("k")
                for number in range(200):
                    await runtime.send("k", number)
                    assert await runtime.receive("k") == number

        try:
            for _ in range(2):
                asyncio.run(main())
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=program) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT_S)
    assert errors == []


def test_debug_mode():
    async def main():
        async with asyncio.timeout(LIMIT_S), RingKernelRuntime() as runtime:
            await runtime.launch("k", echo)
            await runtime.activate("k")
            for number in range(20):
                assert await runtime.send_and_receive("k", number) == number
                await asyncio.to_thread(lambda: None)

    asyncio.run(main(), debug=True)


def test_a_closed_loop_fails_its_kernels_and_their_waiters():
    loop = asyncio.new_event_loop()
    runtime = RingKernelRuntime()

    async def begin():
        await runtime.launch("k", echo)
        await runtime.activate("k")
        await runtime.send("k", 1)
        return await runtime.receive("k")

    assert loop.run_until_complete(begin()) == 1
    task = runtime._kernels["k"]._task

    async def wait():
        waiter = asyncio.create_task(runtime.receive("k"))
        asker = asyncio.create_task(runtime.send_and_receive("k", 1))
        await asyncio.sleep(0.01)
        loop.close()
        for waiting in (waiter, asker):
            with pytest.raises(KernelFailedError):
                await asyncio.wait_for(waiting, LIMIT_S)
        with pytest.raises(KernelStateError):
            await runtime.send("k", 1)

    asyncio.run(wait())
    task._log_destroy_pending = False


@pytest.mark.parametrize("at_once", [False, True], ids=["waited", "at_once"])
@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt])
def test_an_exit_is_raised_by_the_loop_and_by_no_other_task(kind, at_once):
    seen = []
    runtime = RingKernelRuntime()

    async def actor(ctx):
        await ctx.receive()
        raise kind("out")

    async def main():
        await runtime.launch("k", actor)
        await runtime.activate("k")
        if not at_once:  # Otherwise an eager task (Python 3.12) ends while it is made.
            await asyncio.sleep(0)
        await runtime.send("k", 1)
        try:
            await runtime.receive("k")
        except BaseException as error:
            seen.append(type(error))
            raise

    loop = asyncio.new_event_loop()
    try:
        task = loop.create_task(main())
        with pytest.raises(kind):
            loop.run_until_complete(task)
        # An eager task has failed its kernel by then, which is told to whoever waits for it.
        assert seen == [] or (at_once and seen == [KernelFailedError])
        with pytest.raises(KernelFailedError) as caught:
            loop.run_until_complete(task)
        assert isinstance(caught.value.__cause__, kind)
    finally:
        loop.close()


def test_ctrl_c_ends_a_program_that_waits():
    async def main():
        async with RingKernelRuntime() as runtime:
            await runtime.launch("k", echo)
            await runtime.activate("k")
            asyncio.get_running_loop().call_later(0.05, signal.raise_signal, signal.SIGINT)
            await runtime.receive("k")

    with pytest.raises(KeyboardInterrupt):
        asyncio.run(main())


async def test_a_runtime_in_a_cycle_is_collected():
    runtime = RingKernelRuntime()
    await runtime.launch("k", echo)
    await runtime.activate("k")
    await runtime.send("k", 1)
    assert await runtime.receive("k") == 1
    kernel = runtime._kernels["k"]
    runtime.itself = runtime
    gone = weakref.ref(runtime)
    del runtime
    gc.collect()
    assert gone() is None
    # With its runtime the kernel ends.
    await asyncio.wait_for(kernel._ended(), LIMIT_S)
    assert kernel.state.name == "TERMINATED"


async def test_abandoned_awaitables_are_collected(runtime):
    class Message:
        pass

    message = Message()
    gone = weakref.ref(message)
    message.awaitable = runtime.send("echo", message)
    del message
    gc.collect()
    assert gone() is None

    waiting = runtime.receive("echo")
    waiting.send(None)
    del waiting
    await runtime.send("echo", 1)
    assert await runtime.receive("echo") == 1


async def test_a_destructor_may_use_the_runtime(runtime):
    sent = []

    class Message:
        def __del__(self):
            with pytest.raises(StopIteration):
                runtime.send("echo", "from a destructor").send(None)
            sent.append(1)

    async def sink(ctx):
        while True:
            await ctx.receive()

    await runtime.launch("sink", sink)
    await runtime.activate("sink")
    for _ in range(3):
        await runtime.send("sink", Message())
    await runtime.send("sink", None)
    for _ in range(3):
        assert await runtime.receive("echo", timeout=5) == "from a destructor"
    assert len(sent) == 3


async def test_a_stopped_kernel_ends_waits_on_either_side(runtime):
    told = []

    async def waits(ctx):
        try:
            await ctx.receive()
        except KernelStoppedError as error:
            told.append(error.kernel_id)
            raise

    kernel = await runtime.launch("waits", waits)
    await runtime.activate("waits")
    waiter = asyncio.create_task(runtime.receive("waits"))
    await asyncio.sleep(0.01)
    await runtime.terminate("waits")
    with pytest.raises(KernelStoppedError):
        await waiter
    assert told == ["waits"]
    assert kernel.error is None


async def test_an_awaitable_that_was_awaited_and_kept_is_not_used_again():
    queue = FastMessageQueue(8)
    first = queue.put(1)
    await first
    others = [queue.put(2), queue.get(), queue.get()]
    assert all(other is not first for other in others)
    with pytest.raises(RuntimeError, match="cannot reuse"):
        await first
    assert [await other for other in others] == [True, 1, 2]
    with pytest.raises(RuntimeError, match="cannot reuse"):
        await first


async def test_what_was_awaited_holds_nothing():
    class Message:
        pass

    queue, message = FastMessageQueue(8), Message()
    gone = weakref.ref(message)
    kept = [queue.put(message), queue.get()]
    for awaitable in kept:
        await awaitable
    del message
    assert gone() is None
    gone = weakref.ref(queue)
    del queue
    assert gone() is None


async def test_what_was_never_awaited_is_let_go_of_at_once():
    class Message:
        pass

    message = Message()
    gone = weakref.ref(message)
    FastMessageQueue(8).put(message)
    del message
    assert gone() is None
