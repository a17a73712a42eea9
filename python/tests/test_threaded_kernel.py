"""Tiers 2 and 3: contract 9.11 and 9.12, promises B12 and C1 to C14."""

import asyncio
import gc
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from enum import Enum
from typing import Any

import pytest

from pydotcompute.exceptions import (
    KernelFailedError,
    KernelStateError,
    TypeValidationError,
)
from pydotcompute.ring_kernels.cython_kernel import (
    CythonKernelConfig,
    CythonKernelContext,
    CythonKernelState,
    CythonRingKernel,
    is_cython_kernel_available,
)
from pydotcompute.ring_kernels.sync_queue import SPSCQueue, SyncQueue
from pydotcompute.ring_kernels.threaded_kernel import (
    ThreadedKernelConfig,
    ThreadedKernelContext,
    ThreadedKernelPool,
    ThreadedKernelState,
    ThreadedRingKernel,
)

BOUND_S = 10.0
KERNELS: list[Any] = [ThreadedRingKernel, CythonRingKernel]


def echo(ctx: Any) -> None:
    nothing = object()
    while not ctx.should_terminate:
        if isinstance(ctx, CythonKernelContext):
            message = ctx.receive(default=nothing)
        else:
            message = ctx.input_queue.get(None, nothing)
        if message is not nothing:
            ctx.send(message)


def fail_at(value: Any) -> Callable[[Any], None]:
    def body(ctx: Any) -> None:
        while not ctx.should_terminate:
            message = ctx.receive(timeout=BOUND_S)
            if message == value:
                raise ValueError("boom")
            if message is not None:
                ctx.send(message)

    return body


def on_thread(function: Callable[[], Any]) -> Any:
    """Start `function` on a thread; a future."""
    pool = ThreadPoolExecutor(1)
    future = pool.submit(function)
    pool.shutdown(wait=False)
    return future


def wait_until_blocked() -> None:
    """Let a thread that is about to wait get there. Correctness never depends on it."""
    time.sleep(0.02)


# --- contract --------------------------------------------------------------------------------


def test_states_and_configs() -> None:
    for states in (ThreadedKernelState, CythonKernelState):
        assert issubclass(states, Enum)
        assert [s.name for s in states] == ["CREATED", "RUNNING", "STOPPING", "STOPPED"]
    config = ThreadedKernelConfig("k")
    assert config == ThreadedKernelConfig("k", 4096, 4096, True, None, True)
    cython = CythonKernelConfig("k")
    assert cython == CythonKernelConfig("k", 4096, 4096, 100, None, True)
    for kind in (ThreadedKernelConfig, CythonKernelConfig):
        with pytest.raises(ValueError, match="input_queue_size"):
            kind("k", input_queue_size=0)
        with pytest.raises(ValueError, match="output_queue_size"):
            kind("k", output_queue_size=0)
    names = ["kernel_id", "input_queue", "output_queue", "_shutdown_event"]
    assert [f.name for f in fields(ThreadedKernelContext)][:4] == names
    assert [f.name for f in fields(CythonKernelContext)][:4] == names
    for generic in (
        ThreadedKernelContext,
        ThreadedRingKernel,
        CythonKernelContext,
        CythonRingKernel,
    ):
        assert generic[int, str] is not None  # type: ignore[index]


def test_context_by_hand() -> None:
    event = threading.Event()
    context: ThreadedKernelContext[int, int] = ThreadedKernelContext(
        "k", SPSCQueue(2), SPSCQueue(2), event
    )
    assert context.receive(timeout=0.01) is None
    assert context.send(1) is True
    assert context.send(2, timeout=0) is True
    assert context.send(3, timeout=0) is False
    assert context.wait_shutdown(timeout=0.01) is False
    event.set()
    assert context.wait_shutdown() is True
    assert context.should_terminate is True
    context.output_queue.clear()
    assert context.send(4) is False


@pytest.mark.parametrize("kind", KERNELS)
def test_life(kind: Any) -> None:
    kernel = kind("k", echo)
    assert kernel.kernel_id == "k"
    assert kernel.state.name == "CREATED"
    assert kernel.is_running is False
    assert kernel.config.kernel_id == "k"
    kernel.stop()
    assert kernel.state.name == "CREATED"
    kernel.start()
    assert kernel.state.name == "RUNNING"
    assert kernel.is_running is True
    prefix = "threaded" if kind is ThreadedRingKernel else "cython"
    thread = next(t for t in threading.enumerate() if t.name == f"{prefix}_kernel_k")
    assert thread.daemon is True
    with pytest.raises(KernelStateError, match="start"):
        kernel.start()
    assert kernel.send("x") is True
    assert kernel.receive(timeout=BOUND_S) == "x"
    assert kernel.send_nowait("y") is True
    assert kernel.receive(timeout=BOUND_S) == "y"
    assert kernel.receive_nowait() is None
    assert kernel.receive(timeout=0.01) is None
    kernel.stop()
    assert kernel.state.name == "STOPPED"
    assert kernel.error is None
    assert not thread.is_alive()
    kernel.stop()
    with pytest.raises(KernelStateError, match="send message"):
        kernel.send("z")
    with pytest.raises(KernelStateError, match="receive message"):
        kernel.receive()
    with pytest.raises(KernelStateError, match="start"):
        kernel.start()


def test_reprs() -> None:
    kernel = ThreadedRingKernel("k", echo)
    assert repr(kernel) == "ThreadedRingKernel(id='k', state=CREATED, spsc=True)"
    assert repr(CythonRingKernel("k", echo)) == (
        "CythonRingKernel(id='k', state=CREATED, cython=True)"
    )
    assert CythonRingKernel("k", echo).using_cython is True
    assert is_cython_kernel_available() is True


def test_thread_name_and_daemon() -> None:
    config = ThreadedKernelConfig("k", thread_name="mine", daemon=False)
    with ThreadedRingKernel("k", echo, config=config):
        assert not next(t for t in threading.enumerate() if t.name == "mine").daemon


@pytest.mark.parametrize("kind", KERNELS)
def test_the_state_is_stopped_when_the_function_returns(kind: Any) -> None:
    kernel = kind("k", lambda ctx: ctx.send("last"))
    kernel.start()
    assert kernel.receive(timeout=BOUND_S) == "last"
    with pytest.raises(KernelStateError) as ended:
        kernel.receive(timeout=BOUND_S)
    assert not isinstance(ended.value, KernelFailedError)
    assert ended.value.current_state == "STOPPED"
    assert kernel.state.name == "STOPPED"


@pytest.mark.parametrize("kind", KERNELS)
def test_async_functions_are_refused(kind: Any) -> None:
    async def body(ctx: Any) -> None:
        await asyncio.sleep(0)

    with pytest.raises(TypeError, match="async"):
        kind("k", body)


# --- promises --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KERNELS)
def test_b12_a_fast_producer_loses_nothing(kind: Any) -> None:
    config_kind = ThreadedKernelConfig if kind is ThreadedRingKernel else CythonKernelConfig
    config = config_kind("k", input_queue_size=4, output_queue_size=4)
    with kind("k", echo, config=config) as kernel:

        def produce() -> None:
            for i in range(2000):
                assert kernel.send(i, timeout=BOUND_S)

        sent = on_thread(produce)
        assert [kernel.receive(timeout=BOUND_S) for _ in range(2000)] == list(range(2000))
        sent.result(BOUND_S)


def test_c1_replies_go_to_the_output_queue() -> None:
    def body(ctx: Any) -> None:
        assert ctx.send("a") is True
        assert ctx.send_nowait("b") is True
        assert ctx.input_queue.empty

    with CythonRingKernel("k", body) as kernel:
        assert [kernel.receive(timeout=BOUND_S), kernel.receive(timeout=BOUND_S)] == ["a", "b"]


def test_c2_round_trips_do_not_hold_the_gil() -> None:
    with CythonRingKernel("k", echo) as kernel:
        start = time.perf_counter()
        for i in range(200):
            kernel.send(i)
            assert kernel.receive(timeout=BOUND_S) == i
        # It was 8 ms each.
        assert time.perf_counter() - start < 200 * 0.004


def test_c3_non_blocking_calls_do_not_block() -> None:
    config = CythonKernelConfig("k", input_queue_size=2)
    release = threading.Event()
    with CythonRingKernel("k", lambda ctx: release.wait(BOUND_S), config=config) as kernel:
        assert [kernel.send_nowait(i) for i in range(3)] == [True, True, False]
        assert kernel.send(3) is False
        assert kernel.receive_nowait() is None
        release.set()


def test_c6_options_have_their_effect() -> None:
    errors: list[Exception] = []

    def body(ctx: Any) -> None:
        try:
            ctx.send(1)
        except TypeValidationError as error:
            errors.append(error)
        ctx.send("x")
        ctx.wait_shutdown()

    with ThreadedRingKernel("k", body, input_type=int, output_type=str) as kernel:
        assert kernel.receive(timeout=BOUND_S) == "x"
        assert len(errors) == 1
        with pytest.raises(TypeValidationError, match="input of kernel 'k'"):
            kernel.send("one")
        with pytest.raises(TypeValidationError):
            kernel.send_nowait(1.5)
        assert kernel.send(1)
    with pytest.raises(ValueError, match="spin_wait_ns"):
        CythonKernelConfig("k", spin_wait_ns=-1)
    spins: list[float] = []

    def receive(ctx: Any) -> None:
        start = time.thread_time()
        ctx.receive(timeout=0.001)
        spins.append(time.thread_time() - start)

    with CythonRingKernel("k", receive, config=CythonKernelConfig("k", spin_wait_ns=20_000_000)):
        pass
    assert len(spins) == 1


@pytest.mark.parametrize("kind", KERNELS)
def test_c7_a_crash_reaches_a_blocked_receive(kind: Any) -> None:
    with kind("k", fail_at("bad")) as kernel:
        kernel.send("good")
        kernel.send("bad")
        assert kernel.receive(timeout=BOUND_S) == "good"
        waiting = [on_thread(lambda: kernel.receive(timeout=BOUND_S)) for _ in range(2)]
        for future in waiting:
            with pytest.raises(KernelFailedError) as failed:
                future.result(BOUND_S)
            assert isinstance(failed.value.__cause__, ValueError)
            assert isinstance(failed.value, KernelStateError)
        assert isinstance(kernel.error, ValueError)
        assert kernel.state.name == "STOPPED"
        with pytest.raises(KernelFailedError):
            kernel.send("more")


def test_c7_a_crash_reaches_a_blocked_send() -> None:
    config = ThreadedKernelConfig("k", input_queue_size=1)
    crash = threading.Event()

    def body(ctx: Any) -> None:
        crash.wait(BOUND_S)
        raise ValueError("boom")

    with ThreadedRingKernel("k", body, config=config) as kernel:
        kernel.send(1)
        waiting = on_thread(lambda: kernel.send(2))
        wait_until_blocked()
        crash.set()
        with pytest.raises(KernelFailedError):
            waiting.result(BOUND_S)


@pytest.mark.parametrize("use_spsc", [True, False])
def test_c8_an_idle_kernel_lives_on(use_spsc: bool) -> None:
    def body(ctx: Any) -> None:
        while not ctx.should_terminate:
            message = ctx.receive(timeout=0.01)
            if message is not None:
                ctx.send(message)

    config = ThreadedKernelConfig("k", use_spsc=use_spsc)
    with ThreadedRingKernel("k", body, config=config) as kernel:
        assert isinstance(kernel._context.input_queue, SPSCQueue if use_spsc else SyncQueue)
        assert kernel.receive(timeout=0.05) is None
        kernel.send("x")
        assert kernel.receive(timeout=BOUND_S) == "x"
    assert kernel.error is None


@pytest.mark.parametrize("kind", KERNELS)
def test_c9_falsy_messages_and_none_pass(kind: Any) -> None:
    nothing = object()
    with kind("k", echo) as kernel:
        for message in (0, "", [], False, None):
            assert kernel.send(message) is True
            assert kernel.receive(BOUND_S, nothing) is message or message == []
        assert kernel.receive(0.01, nothing) is nothing


def test_c10_receive_any_waits_for_all() -> None:
    def body(ctx: Any) -> None:
        while not ctx.should_terminate:
            message = ctx.receive()
            if message is not None:
                ctx.send((ctx.kernel_id, message))

    with ThreadedKernelPool("p", body, 3, input_queue_size=8) as pool:
        assert len(pool) == 3
        seen = set()
        for i in range(6):
            # Only one worker has something to do, and it is each one's turn.
            waiting = on_thread(lambda: pool.receive_any(timeout=BOUND_S))
            wait_until_blocked()
            assert pool.send(i)
            worker, message = waiting.result(BOUND_S)
            assert message == i
            seen.add(worker)
        assert seen == {"p_0", "p_1", "p_2"}
        assert pool.receive_any(timeout=0.01) is None
    with pytest.raises(KernelStateError):
        pool.receive_any()
    with pytest.raises(KernelStateError):
        pool.send(1)


def test_c10_a_pool_needs_workers() -> None:
    with pytest.raises(ValueError, match="num_workers"):
        ThreadedKernelPool("p", echo, 0)
    pool = ThreadedKernelPool("p", echo, 1)
    with pytest.raises(KernelStateError):
        pool.send(1)
    with pytest.raises(KernelStateError):
        pool.receive_any(timeout=0.01)
    pool.stop_all()
    pool.start_all()
    assert pool.send(1)
    assert pool.receive_any(timeout=BOUND_S) == 1
    pool.stop_all(timeout=BOUND_S)


def test_c7_a_worker_that_fails_is_reported_once() -> None:
    with ThreadedKernelPool("p", fail_at("bad"), 2) as pool:
        pool.send("bad")
        with pytest.raises(KernelFailedError) as failed:
            pool.receive_any(timeout=BOUND_S)
        assert failed.value.kernel_id == "p_0"
        for i in range(4):
            assert pool.send(i)
        assert sorted(pool.receive_any(timeout=BOUND_S) for _ in range(4)) == [0, 1, 2, 3]
        pool.send("bad")
        with pytest.raises(KernelFailedError):
            pool.receive_any(timeout=BOUND_S)
        with pytest.raises(KernelFailedError):
            pool.receive_any(timeout=BOUND_S)
        with pytest.raises(KernelFailedError):
            pool.send(1)


@pytest.mark.parametrize("kind", KERNELS)
def test_c11_several_producers(kind: Any) -> None:
    with kind("k", echo) as kernel:

        def produce(first: int) -> None:
            for i in range(first, first + 300):
                assert kernel.send(i, timeout=BOUND_S)

        sent = [on_thread(lambda first=i * 300: produce(first)) for i in range(3)]
        got = [kernel.receive(timeout=BOUND_S) for _ in range(900)]
        for future in sent:
            future.result(BOUND_S)
        assert sorted(got) == list(range(900))


@pytest.mark.parametrize("kind", KERNELS)
def test_c12_stop_tells_the_truth(kind: Any) -> None:
    release = threading.Event()
    kernel = kind("k", lambda ctx: release.wait(BOUND_S))
    kernel.start()
    start = time.monotonic()
    kernel.stop(timeout=0.05)
    assert time.monotonic() - start < 2
    assert kernel.state.name == "STOPPING"
    assert kernel.is_running is False
    release.set()
    kernel.stop(timeout=BOUND_S)
    assert kernel.state.name == "STOPPED"


@pytest.mark.parametrize("kind", KERNELS)
def test_stop_wakes_a_kernel_that_waits(kind: Any) -> None:
    kernel = kind("k", echo)
    kernel.start()
    wait_until_blocked()
    kernel.stop(timeout=BOUND_S)
    assert kernel.state.name == "STOPPED"


def test_stop_from_inside() -> None:
    def body(ctx: Any) -> None:
        ctx.receive(timeout=BOUND_S)
        kernel.stop()

    kernel = ThreadedRingKernel("k", body)
    kernel.start()
    kernel.send(1)
    with pytest.raises(KernelStateError):
        kernel.receive(timeout=BOUND_S)
    assert kernel.error is None


def test_replies_made_before_a_stop_can_be_read() -> None:
    made = threading.Event()

    def body(ctx: Any) -> None:
        ctx.send(1)
        ctx.send(2)
        made.set()

    kernel = ThreadedRingKernel("k", body)
    kernel.start()
    assert made.wait(BOUND_S)
    kernel.stop()
    assert [kernel.receive(), kernel.receive_nowait()] == [1, 2]
    with pytest.raises(KernelStateError):
        kernel.receive_nowait()


def test_c13_a_plain_receive_waits_for_the_reply() -> None:
    with CythonRingKernel("k", echo) as kernel:
        assert kernel.send("x")
        assert kernel.receive() == "x"


@pytest.mark.parametrize("kind", KERNELS)
def test_c14_every_call_looks_at_the_state(kind: Any) -> None:
    kernel = kind("k", echo)
    for call in (
        lambda: kernel.send(1),
        lambda: kernel.send_nowait(1),
        lambda: kernel.receive(timeout=BOUND_S),
        lambda: kernel.receive_nowait(),
    ):
        with pytest.raises(KernelStateError) as wrong:
            call()
        assert wrong.value.current_state == "CREATED"


@pytest.mark.parametrize("daemon", [True, False])
@pytest.mark.parametrize("body", ["ctx.receive()", "time.sleep(60)"])
def test_the_interpreter_ends_with_live_kernels(daemon: bool, body: str) -> None:
    if not daemon and "sleep" in body:
        pytest.skip("a thread that is no daemon and never looks keeps the interpreter, as it says")
    code = f"""
        import time
        from pydotcompute.ring_kernels.threaded_kernel import *
        def body(ctx):
            while not ctx.should_terminate:
                {body}
        kernel = ThreadedRingKernel("k", body, config=ThreadedKernelConfig("k", daemon={daemon}))
        kernel.start()
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], timeout=BOUND_S, capture_output=True
    )
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="fork")
def test_a_forked_process_does_not_wait_for_threads_that_are_not_there() -> None:
    code = """
        import os
        from pydotcompute.exceptions import KernelStateError
        from pydotcompute.ring_kernels.threaded_kernel import *
        def body(ctx):
            while not ctx.should_terminate:
                ctx.receive()
        with ThreadedRingKernel("k", body) as kernel:
            child = os.fork()
            if child == 0:
                try:
                    kernel.send(1)
                except KernelStateError:
                    os._exit(5)
                os._exit(6)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 5
    """
    # Python 3.12 and newer warn of any fork beside a thread.
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", textwrap.dedent(code)]
    done = subprocess.run(command, timeout=BOUND_S, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_context_follows_its_attributes() -> None:
    """They lie in the native half, and stay what the contract says: fields of a dataclass."""
    event = threading.Event()
    queues = [SPSCQueue[int](2) for _ in range(3)]
    context: ThreadedKernelContext[int, int] = ThreadedKernelContext(
        "k", queues[0], queues[1], _shutdown_event=event
    )
    assert context == ThreadedKernelContext("k", queues[0], queues[1], event)
    assert context != ThreadedKernelContext("k", queues[0], queues[2], event)
    assert f"input_queue={queues[0]!r}" in repr(context)
    with pytest.raises(TypeError, match="output_queue"):
        ThreadedKernelContext("k", queues[0])  # type: ignore[call-arg]
    context.output_queue = queues[2]
    assert context.send(7) is True
    assert (len(queues[1]), queues[2].get_nowait()) == (0, 7)
    context.input_queue = queues[2]
    assert queues[2].put(8)
    assert context.receive(timeout=0) == 8
    context._shutdown_event = threading.Event()
    event.set()
    assert context.should_terminate is False
    context._shutdown_event.set()
    assert context.should_terminate is True


def test_the_event_of_a_kernel_is_an_event() -> None:
    kernel: ThreadedRingKernel[int, int] = ThreadedRingKernel("k", echo)
    event, context = kernel._shutdown_event, kernel._context
    assert isinstance(event, threading.Event)
    event.set()
    assert (event.is_set(), event.wait(0), context.should_terminate) == (True, True, True)
    event.clear()
    assert (event.is_set(), event.wait(0), context.should_terminate) == (False, False, False)


@pytest.mark.parametrize("kind", KERNELS)
def test_arguments_by_name_and_place(kind: Any) -> None:
    with kind("k", echo) as kernel:
        assert kernel.send(timeout=5.0, message=1) is True
        assert kernel.receive(5.0, "none") == 1
        assert kernel.send(2, 5) is True
        assert kernel.receive(default="none", timeout=5) == 2
        assert kernel.receive(0, default="none") == "none"
        for wrong, text in (
            (lambda: kernel.send(), r"missing 1 required positional argument: 'message'"),
            (lambda: kernel.send(1, message=2), "multiple values for argument 'message'"),
            (lambda: kernel.send(1, wait=2), "unexpected keyword argument 'wait'"),
            (lambda: kernel.receive(1, 2, 3), "takes 2 positional arguments but 3 were given"),
            (lambda: kernel.receive(timeout="1"), "argument 'timeout'"),
        ):
            with pytest.raises(TypeError, match=text):
                wrong()
        with pytest.raises(ValueError, match="NaN"):
            kernel.receive(timeout=float("nan"))
        # A name that is not the interpreter's own copy of it.
        assert kernel.send(3, **{"".join(["time", "out"]): 5}) is True
        assert kernel.receive(**{"".join(["time", "out"]): 5.0}) == 3


@pytest.mark.parametrize("kind", KERNELS)
def test_a_kernel_and_what_it_holds_are_collected(kind: Any) -> None:
    """Also where the messages lead back to it."""
    kernel = kind("k", echo)
    kernel._input_queue.put_nowait(kernel)
    kernel._output_queue.put_nowait([kernel._context])
    gone = weakref.ref(kernel)
    del kernel
    gc.collect()
    assert gone() is None
