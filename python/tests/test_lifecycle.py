"""One kernel: its states, configuration and context, by the contract."""

import asyncio
import functools
import gc
import queue
import threading
import weakref

import pytest

from pydotcompute.exceptions import (
    InvalidConfigurationError,
    KernelFailedError,
    KernelStateError,
    KernelStoppedError,
    QueueFullError,
    QueueTimeoutError,
    TypeValidationError,
)
from pydotcompute.ring_kernels.lifecycle import (
    KernelContext,
    KernelState,
    Restart,
    RingKernel,
    RingKernelConfig,
    managed_kernel,
)


async def polite(ctx):
    """The actor of the contract's tests."""
    while not ctx.should_terminate:
        if not ctx.is_active:
            await ctx.wait_active()
            continue
        try:
            await ctx.send(await ctx.receive(timeout=0.1))
        except Exception:
            continue


async def echo(ctx):
    while True:
        await ctx.send(await ctx.receive())


def test_the_states():
    names = ["CREATED", "LAUNCHED", "ACTIVE", "DEACTIVATED", "TERMINATING", "TERMINATED"]
    assert [state.name for state in KernelState] == names


def test_config_defaults_and_checks():
    config = RingKernelConfig("k")
    assert (config.grid_size, config.block_size) == (1, 256)
    assert (config.input_queue_size, config.output_queue_size) == (4096, 4096)
    assert (config.backpressure_strategy, config.use_fast_queue) == ("block", True)
    for name in ("grid_size", "block_size", "input_queue_size", "output_queue_size"):
        with pytest.raises(ValueError, match=name):
            RingKernelConfig("k", **{name: 0})
        with pytest.raises(TypeError, match=name):
            RingKernelConfig("k", **{name: 1.5})
    with pytest.raises(InvalidConfigurationError, match="backpressure_strategy"):
        RingKernelConfig("k", backpressure_strategy="hope")
    with pytest.raises(InvalidConfigurationError, match="input_queue_size"):
        RingKernelConfig("k", input_queue_size=1 << 30)


async def test_every_step_and_its_wrong_states():
    kernel = RingKernel("k", polite)
    assert kernel.kernel_id == "k"
    assert kernel.state is KernelState.CREATED
    assert repr(kernel) == "RingKernel(id='k', state=CREATED)"
    for step in (kernel.activate, kernel.deactivate, kernel.reactivate):
        with pytest.raises(KernelStateError) as caught:
            await step()
        assert caught.value.current_state == "CREATED"
        assert caught.value.operation == step.__name__
    with pytest.raises(KernelStateError) as caught:
        await kernel.send(1)
    assert caught.value.operation == "send message"
    with pytest.raises(KernelStateError) as caught:
        await kernel.receive()
    assert caught.value.operation == "receive message"
    await kernel.launch()
    assert kernel.state is KernelState.LAUNCHED
    with pytest.raises(KernelStateError):
        await kernel.launch()
    with pytest.raises(KernelStateError):
        await kernel.send(1)
    await kernel.activate()
    assert kernel.state is KernelState.ACTIVE
    await kernel.send(1)
    assert await kernel.receive(timeout=5) == 1
    with pytest.raises(QueueTimeoutError):
        await kernel.receive(timeout=0.01)
    await kernel.deactivate()
    assert kernel.state is KernelState.DEACTIVATED
    assert not kernel._context.is_active
    await kernel.send(2)
    with pytest.raises(QueueTimeoutError):
        await kernel.receive(timeout=0.05)
    await kernel.reactivate()
    assert kernel._context.is_active
    assert await kernel.receive(timeout=5) == 2
    await kernel.terminate(timeout=5)
    assert kernel.state is KernelState.TERMINATED
    assert kernel._context.should_terminate
    assert not kernel._context.is_active
    await kernel.terminate()
    for call in (kernel.send(1), kernel.receive()):
        with pytest.raises(KernelStateError):
            await call


async def test_terminate_from_created_and_launched():
    kernel = RingKernel("k", polite)
    await kernel.terminate()
    assert kernel.state is KernelState.TERMINATED
    with pytest.raises(KernelStateError):
        await kernel.launch()
    kernel = RingKernel("k", polite)
    await kernel.launch()
    await kernel.terminate()
    assert kernel.state is KernelState.TERMINATED


async def test_managed_kernel_always_terminates():
    async with managed_kernel("k", polite) as kernel:
        assert kernel.state is KernelState.ACTIVE
    assert kernel.state is KernelState.TERMINATED
    with pytest.raises(KeyError):
        async with managed_kernel("k", polite) as kernel:
            raise KeyError("x")
    assert kernel.state is KernelState.TERMINATED


async def test_the_context_of_an_actor():
    seen = []

    async def actor(ctx: KernelContext[int, int]) -> None:
        seen.append(ctx)
        await ctx.receive()

    async with managed_kernel("k", actor, config=RingKernelConfig("k", input_queue_size=7)) as k:
        await asyncio.sleep(0.01)
        (ctx,) = seen
        assert isinstance(ctx, KernelContext)
        assert ctx.kernel_id == "k"
        assert ctx.input_queue.maxsize == 7
        assert ctx.input_queue.empty
        assert not ctx._shutdown_event.is_set()
        assert ctx._active_event.is_set()
        assert await ctx._active_event.wait()
        await k.deactivate()
        await k.send(1)
        assert ctx.input_queue.qsize == 1
        assert not ctx._active_event.is_set()
        assert "KernelContext" in repr(ctx)
        await k.reactivate()
    assert ctx._shutdown_event.is_set()
    await ctx.wait_active()
    with pytest.raises(KernelStoppedError):
        await ctx.receive()
    with pytest.raises(KernelStoppedError):
        await ctx.send(1)


async def test_the_queues_of_a_context_are_used_without_waiting():
    """As PyDotCompute's queues are: by an actor that takes and makes several messages at once."""

    async def actor(ctx):
        first = await ctx.receive()
        assert ctx.input_queue.put_nowait("its own")
        assert len(ctx.input_queue) == 4
        batch = [first, *ctx.input_queue.get_batch(2)]
        assert ctx.input_queue.get_nowait() == 3
        assert ctx.input_queue.get_nowait() == "its own"
        assert ctx.input_queue.get_nowait() is None
        assert ctx.output_queue.put_batch([*batch, "one", "too many"]) == 4
        assert ctx.output_queue.put_nowait("full") is False
        assert ctx.output_queue.full
        await ctx.receive()

    config = RingKernelConfig("k", input_queue_size=4, output_queue_size=4)
    async with managed_kernel("k", actor, config=config) as kernel:
        await kernel.deactivate()
        for number in range(4):
            await kernel.send(number)
        await kernel.reactivate()
        assert [await kernel.receive(timeout=5) for _ in range(4)] == [0, 1, 2, "one"]
        queue = kernel._context.output_queue
        assert (queue.get_nowait(), queue.clear()) == (None, 0)


async def test_a_context_can_be_made_of_queues_by_hand():
    inbox, outbox = asyncio.Queue(), asyncio.Queue()
    inbox.get = functools.partial(lambda get, timeout=None: get(), inbox.get)
    context = KernelContext("k", inbox, outbox, asyncio.Event(), asyncio.Event())
    assert not context.should_terminate
    assert not context.is_active
    context._active_event.set()
    await context.wait_active()
    await inbox.put(1)
    await context.send(await context.receive())
    assert outbox.get_nowait() == 1


async def test_a_plain_function_runs_on_a_thread_and_its_context_waits():
    threads = []

    def actor(ctx):
        threads.append(threading.current_thread())
        assert ctx.is_active
        ctx.wait_active()
        while not ctx.should_terminate:
            try:
                message = ctx.receive(timeout=0.05)
            except QueueTimeoutError:
                continue
            ctx.send(message * 2)

    async with managed_kernel("k", actor) as kernel:
        for number in range(20):
            await kernel.send(number)
            assert await kernel.receive(timeout=10) == number * 2
        assert await kernel.send_and_receive(21, timeout=10) == 42
    assert threads[0] is not threading.main_thread()
    assert kernel.state is KernelState.TERMINATED


async def test_a_plain_function_that_waits_is_woken_by_terminate():
    began, ended = threading.Event(), threading.Event()

    def actor(ctx):
        began.set()
        try:
            ctx.receive()
        except KernelStoppedError:
            ended.set()
            raise

    kernel = RingKernel("k", actor)
    await kernel.launch()
    await kernel.activate()
    await asyncio.to_thread(began.wait, 10)
    await kernel.terminate(timeout=10)
    assert ended.wait(10)
    assert kernel.error is None


async def test_a_context_that_a_thread_receives_from_refuses_other_threads():
    outcomes = queue.SimpleQueue()

    def use(ctx):
        try:
            outcomes.put(ctx.receive())
        except RuntimeError as error:
            outcomes.put(error)
            with pytest.raises(RuntimeError, match="another thread is receiving"):
                ctx.send("too early")
            outcomes.put("refused")

    def actor(ctx):
        other = threading.Thread(target=use, args=(ctx,))
        other.start()
        use(ctx)
        other.join()
        ctx.send("done")

    async with managed_kernel("k", actor) as kernel:
        # Whoever of the two comes second.
        error = await asyncio.to_thread(outcomes.get, True, 60)
        assert isinstance(error, RuntimeError)
        assert "another thread is receiving" in str(error)
        assert await asyncio.to_thread(outcomes.get, True, 60) == "refused"
        await kernel.send("message")
        assert await asyncio.to_thread(outcomes.get, True, 60) == "message"
        assert await kernel.receive(timeout=60) == "done"


async def test_a_plain_function_that_fills_the_output_waits_for_its_reader():
    def actor(ctx):
        for number in range(50):
            ctx.send(number)
        ctx.receive()

    config = RingKernelConfig("k", output_queue_size=2)
    async with managed_kernel("k", actor, config=config) as kernel:
        assert [await kernel.receive(timeout=10) for _ in range(50)] == list(range(50))


async def test_functions_are_found_behind_their_wrappers():
    class Callable:
        async def __call__(self, ctx):
            await echo(ctx)

    async def with_more(factor, ctx):
        while True:
            await ctx.send(factor * await ctx.receive())

    def decorated(ctx):
        return echo(ctx)

    decorated._original_func = echo
    for function in (Callable(), functools.partial(with_more, 1), decorated):
        async with managed_kernel("k", function) as kernel:
            await kernel.send(3)
            assert await kernel.receive(timeout=5) == 3
            assert isinstance(kernel._task, asyncio.Task)


async def test_an_awaitable_of_a_plain_function_is_awaited_on_the_loop():
    async with managed_kernel("k", lambda ctx: echo(ctx)) as kernel:
        for number in range(3):
            assert await kernel.send_and_receive(number, timeout=10) == number


async def test_a_full_output_lets_the_actor_wait():
    sent = []

    async def actor(ctx):
        for number in range(10):
            await ctx.send(number)
            sent.append(number)

    config = RingKernelConfig("k", output_queue_size=2)
    async with managed_kernel("k", actor, config=config) as kernel:
        await asyncio.sleep(0.02)
        assert sent == [0, 1]
        assert [await kernel.receive(timeout=5) for _ in range(10)] == list(range(10))


async def test_backpressure_strategies_on_a_paused_kernel():
    async def filled(strategy):
        config = RingKernelConfig("k", input_queue_size=2, backpressure_strategy=strategy)
        kernel = RingKernel("k", echo, config=config)
        await kernel.launch()
        await kernel.activate()
        await kernel.deactivate()
        await kernel.send(1)
        await kernel.send(2)
        return kernel

    async def rest(kernel):
        await kernel.reactivate()
        replies = []
        while True:
            try:
                replies.append(await kernel.receive(timeout=0.2))
            except QueueTimeoutError:
                await kernel.terminate()
                return replies

    kernel = await filled("reject")
    with pytest.raises(QueueFullError) as caught:
        await kernel.send(3)
    assert (caught.value.kernel_id, caught.value.queue_size) == ("k", 2)
    assert await rest(kernel) == [1, 2]
    kernel = await filled("drop_oldest")
    await kernel.send(3)
    assert await rest(kernel) == [2, 3]
    kernel = await filled("drop_newest")
    await kernel.send(3)
    assert await rest(kernel) == [1, 2]
    kernel = await filled("block")
    with pytest.raises(QueueTimeoutError) as caught:
        await kernel.send(3, timeout=0.02)
    assert caught.value.operation == "send"
    with pytest.raises(QueueTimeoutError):
        await kernel.send(3, timeout=0)
    blocked = asyncio.create_task(kernel.send(3))
    await asyncio.sleep(0.01)
    assert not blocked.done()
    assert await rest(kernel) == [1, 2, 3]
    assert await blocked is None


async def test_priorities_choose_the_band():
    class Message:
        def __init__(self, priority):
            self.priority = priority

    async with managed_kernel("k", echo) as kernel:
        await asyncio.sleep(0.01)
        await kernel.deactivate()
        for priority in (10, 100, 200, 250):
            await kernel.send(Message(priority))
        await kernel.reactivate()
        replies = [(await kernel.receive(timeout=5)).priority for _ in range(4)]
    assert replies == [250, 200, 100, 10]


async def test_declared_types_are_checked():
    async def wrong(ctx):
        await ctx.receive()
        await ctx.send("text")

    async with managed_kernel("k", wrong, input_type=int, output_type=int) as kernel:
        with pytest.raises(TypeValidationError):
            await kernel.send("text")
        await kernel.send(True)
        with pytest.raises(KernelFailedError) as caught:
            await kernel.receive(timeout=5)
        assert isinstance(caught.value.__cause__, TypeValidationError)
    async with managed_kernel("k", echo, input_type=list[int]) as kernel:
        await kernel.send([1])
        assert await kernel.receive(timeout=5) == [1]


async def test_a_restart_goes_on_with_the_mailbox():
    runs = []

    async def fragile(ctx):
        runs.append(1)
        while True:
            message = await ctx.receive()
            if message == "break":
                raise ValueError("broken")
            await ctx.send(message)

    restart = Restart(backoff=0.001)
    async with managed_kernel("k", fragile, restart=restart) as kernel:
        for message in (1, "break", 2, "break", 3):
            await kernel.send(message)
        assert [await kernel.receive(timeout=5) for _ in range(3)] == [1, 2, 3]
        assert kernel.restarts == 2
        assert isinstance(kernel.error, ValueError)
        assert kernel.state is KernelState.ACTIVE
    assert len(runs) == 3


async def test_a_redelivered_message_comes_first_again():
    seen = []

    async def fragile(ctx):
        while True:
            seen.append(await ctx.receive())
            if len(seen) == 1:
                raise ValueError("once")
            await ctx.send(seen[-1])

    restart = Restart(backoff=0.001, redeliver=True)
    async with managed_kernel("k", fragile, restart=restart) as kernel:
        await kernel.send("a")
        await kernel.send("b")
        assert [await kernel.receive(timeout=5) for _ in range(2)] == ["a", "b"]
    assert seen == ["a", "a", "b"]


async def test_too_many_restarts_fail_the_kernel():
    async def hopeless(ctx):
        raise ValueError("always")

    kernel = RingKernel("k", hopeless, restart=Restart(max_restarts=2, backoff=0.001))
    await kernel.launch()
    await kernel.activate()
    await kernel._ended()
    assert kernel.state is KernelState.TERMINATED
    assert kernel.restarts == 2
    assert isinstance(kernel.error, ValueError)
    await kernel.terminate()
    with pytest.raises(InvalidConfigurationError):
        RingKernel("k", hopeless, restart="sometimes")


async def test_a_drain_processes_what_is_queued():
    handled = []

    async def slow(ctx):
        while True:
            handled.append(await ctx.receive())
            await asyncio.sleep(0.001)

    kernel = RingKernel("k", slow)
    await kernel.launch()
    await kernel.activate()
    for number in range(5):
        await kernel.send(number)
    await kernel.terminate(timeout=5, drain=True)
    assert handled == list(range(5))


async def test_an_actor_cleans_up_when_it_is_cancelled():
    cleaned = asyncio.Event()

    async def deaf(ctx):
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0)
            cleaned.set()

    kernel = RingKernel("k", deaf)
    await kernel.launch()
    await kernel.activate()
    await asyncio.sleep(0.01)
    # On a busy machine the fifth of the time that is left for it may not be enough.
    await kernel.terminate(timeout=1.0)
    await asyncio.wait_for(cleaned.wait(), 60)
    assert kernel.state is KernelState.TERMINATED


async def test_a_cancelled_task_of_an_actor_fails_its_kernel():
    kernel = RingKernel("k", echo)
    await kernel.launch()
    await kernel.activate()
    await asyncio.sleep(0.01)
    kernel._task.cancel()
    with pytest.raises(KernelFailedError) as caught:
        await kernel.receive()
    assert isinstance(caught.value.__cause__, asyncio.CancelledError)
    await kernel.terminate()


async def test_a_kernel_that_failed_is_collected():
    async def fails(ctx):
        await ctx.receive()
        raise ValueError("kept with its frames")

    kernel = RingKernel("k", fails)
    await kernel.launch()
    await kernel.activate()
    await kernel.send(1)
    await kernel._ended()
    assert kernel.error.__traceback__ is not None
    await kernel.terminate()
    gone = weakref.ref(kernel)
    del kernel
    await asyncio.sleep(0)
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize(("use_fast_queue", "order"), [(True, "adbcef"), (False, "abcdef")])
async def test_use_fast_queue_chooses_between_bands_and_all_priorities(use_fast_queue, order):
    """Four bands, each in the order of arrival, as FastMessageQueue; or as MessageQueue."""
    priorities = {"d": 100, "b": 130, "c": 129, "a": 255, "e": 64, "f": 0}
    served = []

    async def actor(ctx):
        while len(served) < 6:
            served.append(await ctx.receive())
        for name in reversed(order):
            await ctx.send(Named(name, priorities[name]))
        done.set()
        await ctx.receive()

    done = asyncio.Event()
    config = RingKernelConfig("k", use_fast_queue=use_fast_queue)
    async with managed_kernel("k", actor, config=config) as kernel:
        await kernel.deactivate()
        for name, priority in priorities.items():
            await kernel.send(Named(name, priority))
        await kernel.reactivate()
        await asyncio.wait_for(done.wait(), 10)
        assert "".join(message.name for message in served) == order
        replies = [(await kernel.receive(timeout=5)).name for _ in range(6)]
        assert "".join(replies) == ("aecbdf" if use_fast_queue else order)


class Named:
    def __init__(self, name, priority):
        self.name = name
        self.priority = priority


async def test_a_function_that_yields_is_an_error_and_not_a_kernel_that_ends():
    def generator(ctx):
        yield ctx.receive()

    async def async_generator(ctx):
        yield await ctx.receive()

    for function in (generator, async_generator):
        async with managed_kernel("k", function) as kernel:
            with pytest.raises(KernelFailedError, match="must not yield"):
                await kernel.receive(timeout=10)
