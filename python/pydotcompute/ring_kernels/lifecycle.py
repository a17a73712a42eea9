"""One ring kernel: its states, its configuration, and what its function sees of it.

The kernel itself - mailboxes, states, supervision, asks - is the core's; these classes are its
Python face. An ``async def`` function runs as an asyncio task of the loop that launched the kernel;
a plain function runs on a thread of its own, where the calls of its context wait.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import contextvars
import functools
import inspect
import itertools
import logging
import os
import sys
import time
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

from pydotcompute import _native
from pydotcompute.exceptions import InvalidConfigurationError, KernelStateError

if TYPE_CHECKING:
    from concurrent.futures import Future

    from pydotcompute.handlers import Handler

_logger = logging.getLogger("pydotcompute")

In = TypeVar("In")
Out = TypeVar("Out")

#: The largest number of messages that a queue of a kernel holds.
QUEUE_SIZE_MAX = 1 << 24

_STRATEGIES = ("block", "reject", "drop_oldest", "drop_newest")


class KernelState(Enum):
    """Where a ring kernel stands in its life.

    A kernel that failed is TERMINATED, with its exception in `RingKernel.error`; one that waits to
    be restarted is LAUNCHED.
    """

    CREATED = auto()
    LAUNCHED = auto()
    ACTIVE = auto()
    DEACTIVATED = auto()
    TERMINATING = auto()
    TERMINATED = auto()


@dataclass
class RingKernelConfig:
    """How a ring kernel is set up.

    Parameters
    ----------
    kernel_id
        Its name.
    grid_size, block_size
        On a GPU, the blocks of a handler of scope "team", else 1, and the threads of a block, with
        the scope "block" or "team", else 256 (see `pydotcompute.handlers.cuda`).
        They are without effect on an actor.
    input_queue_size, output_queue_size
        How many messages wait for it, and how many replies for their reader, at most: 1 to 2**24.
    backpressure_strategy
        What happens to a message for a full input queue: "block" (its sender waits), "reject"
        (`QueueFullError`), "drop_oldest" or "drop_newest".
    use_fast_queue
        Whether its queues serve four bands of priorities, each in the order of arrival, as
        `FastMessageQueue` does; else all 256 priorities count, as with `MessageQueue`.

    Raises
    ------
    ValueError
        If a size is below 1.
    TypeError
        If a size is not an integer.
    InvalidConfigurationError
        If a queue is too large, or the strategy is none of the four.
    """

    kernel_id: str
    grid_size: int = 1
    block_size: int = 256
    input_queue_size: int = 4096
    output_queue_size: int = 4096
    backpressure_strategy: str = "block"
    use_fast_queue: bool = True

    def __post_init__(self) -> None:
        for name in ("grid_size", "block_size", "input_queue_size", "output_queue_size"):
            value = getattr(self, name)
            if isinstance(value, bool) or not hasattr(value, "__index__"):
                raise TypeError(f"{name} should be an int, got {value!r}")
            if value < 1:
                raise ValueError(f"{name} should be at least 1, got {value}")
        for name in ("input_queue_size", "output_queue_size"):
            if getattr(self, name) > QUEUE_SIZE_MAX:
                raise InvalidConfigurationError(
                    name, getattr(self, name), f"at most {QUEUE_SIZE_MAX}"
                )
        if self.backpressure_strategy not in _STRATEGIES:
            raise InvalidConfigurationError(
                "backpressure_strategy",
                self.backpressure_strategy,
                f"must be one of {', '.join(_STRATEGIES)}",
            )


@dataclass(frozen=True)
class Restart:
    """Whether and how a kernel is started again when its function ends by itself.

    Parameters
    ----------
    policy
        "never", "on_fault" (after an exception) or "always" (also when it returns).
    max_restarts, window
        With more than so many restarts within so many seconds the kernel has failed for good.
    backoff, backoff_max
        Seconds to wait before a restart; the wait doubles with each one within the window.
    redeliver
        Whether the message that was in hand comes first again (at most three times in all) instead
        of becoming a dead letter.
    """

    policy: Literal["never", "on_fault", "always"] = "on_fault"
    max_restarts: int = 3
    window: float = 5.0
    backoff: float = 0.01
    backoff_max: float = 1.0
    redeliver: bool = False


@dataclass
class KernelContext(Generic[In, Out]):
    """A ring kernel seen from inside its function.

    Not thread-safe where it is made of queues by hand; the one that a kernel passes to its function
    may be used from any task of the loop.
    """

    kernel_id: str
    input_queue: Any
    output_queue: Any
    _shutdown_event: Any
    _active_event: Any

    @property
    def should_terminate(self) -> bool:
        """Whether the kernel was asked to end."""
        return bool(self._shutdown_event.is_set())

    @property
    def is_active(self) -> bool:
        """Whether the kernel processes messages: not while it is deactivated."""
        return bool(self._active_event.is_set())

    async def receive(self, timeout: float | None = None) -> In:
        """Receive the next message.

        Parameters
        ----------
        timeout
            How many seconds to wait; None: until there is one.

        Raises
        ------
        QueueTimeoutError
            If there was none in time.
        KernelStoppedError
            Once the kernel is to end. An actor that lets it out ends cleanly.
        """
        message: In = await self.input_queue.get(timeout=timeout)
        return message

    async def send(self, message: Out) -> None:
        """Send a reply; waits while the output queue is full.

        It goes to whoever asked (`send_and_receive`) for the message that it names with its
        ``correlation_id``, or that has its ``message_id``; without a correlation id to the oldest
        ask that was received and not answered; else to the output queue.

        Raises
        ------
        KernelStoppedError
            If the kernel had to end before there was room.
        """
        await self.output_queue.put(message)

    async def wait_active(self) -> None:
        """Wait until the kernel is active, or is to end."""
        await self._active_event.wait()


class _QueueView:
    """One of a kernel's two mailboxes, to look at and to use as the context's queues are."""

    def __init__(self, kernel: RingKernel[Any, Any], context: Any, *, replies: bool) -> None:
        self._kernel = kernel
        self._context = context
        self._replies = replies
        config = kernel.config
        self.maxsize = config.output_queue_size if replies else config.input_queue_size

    @property
    def qsize(self) -> int:
        return self._kernel._books(self._replies).get("queued", 0)

    @property
    def empty(self) -> bool:
        return self.qsize == 0

    @property
    def full(self) -> bool:
        return self.qsize >= self.maxsize

    def __len__(self) -> int:
        return self.qsize

    def get_nowait(self) -> Any:
        return self._kernel._receive_now() if self._replies else self._context._receive_now()

    def put_nowait(self, message: Any) -> bool:
        if self._replies:
            return bool(self._context._send_now(message))
        return self._kernel._offer(message)

    def get_batch(self, max_count: int) -> list[Any]:
        # Counted beforehand, since None may be a message.
        return [self.get_nowait() for _ in range(min(max_count, self.qsize))]

    def put_batch(self, messages: Iterable[Any]) -> int:
        return sum(1 for _ in itertools.takewhile(self.put_nowait, messages))

    def clear(self) -> int:
        return len(self.get_batch(self.qsize))

    def get_stats(self) -> dict[str, int]:
        books = self._kernel._books(self._replies)
        return {"current_size": self.qsize, "max_size": self.maxsize, **books}

    def get(self, *, timeout: float | None = None) -> Any:
        return self._kernel.receive(timeout) if self._replies else self._context.receive(timeout)

    def put(self, message: Any, *, timeout: float | None = None) -> Any:
        if self._replies:
            return self._context.send(message)
        return self._kernel.send(message, timeout)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(size={self.qsize}/{self.maxsize})"


class _StateView:
    """A state of the kernel as the event that the context used to have."""

    def __init__(self, is_set: Callable[[], bool], wait: Callable[[], Awaitable[Any]]) -> None:
        self.is_set = is_set
        self._wait = wait

    async def wait(self) -> bool:
        await self._wait()
        return True


@_native._own_methods
class _ActorContext(_native.ActorContext, KernelContext[Any, Any]):  # type: ignore[override]
    """What a kernel passes to its function: the core's own context under the class's name."""

    _kernel: RingKernel[Any, Any]

    def __init__(self, handle: Any) -> None:
        # The native half has taken what it needs from the handle.
        pass

    @property
    def input_queue(self) -> Any:
        return _QueueView(self._kernel, self, replies=False)

    @property
    def output_queue(self) -> Any:
        return _QueueView(self._kernel, self, replies=True)

    @property
    def _shutdown_event(self) -> Any:
        return _StateView(lambda: self.should_terminate, self._kernel._ended)

    @property
    def _active_event(self) -> Any:
        return _StateView(lambda: self.is_active, self.wait_active)

    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:
        return id(self)

    def __repr__(self) -> str:
        return f"KernelContext(kernel_id={self.kernel_id!r}, is_active={self.is_active})"


def _is_async(function: Callable[..., Any]) -> bool:
    """Whether calling `function` makes a coroutine; looks behind partials and decorators."""
    while True:
        if isinstance(function, functools.partial):
            function = function.func
        elif (original := getattr(function, "_original_func", None)) is not None:
            function = original
        else:
            break
    if inspect.iscoroutinefunction(function):
        return True
    call = inspect.getattr_static(type(function), "__call__", None)
    return inspect.iscoroutinefunction(call)


async def _await(awaitable: Awaitable[Any]) -> Any:
    return await awaitable


def _handler_of(function: Callable[..., Any]) -> Handler | None:
    """The handler that the function is or has. Whoever made one has imported what knows."""
    spec = sys.modules.get("pydotcompute.handlers.spec")
    handler: Handler | None = None if spec is None else spec.handler_of(function)
    return handler


def _current_task() -> asyncio.Task[Any] | None:
    try:
        return asyncio.current_task()
    except RuntimeError:
        return None


def _as_restart(restart: Restart | str | None) -> Restart | None:
    if isinstance(restart, str):
        if restart not in ("never", "on_fault", "always"):
            raise InvalidConfigurationError(
                "restart", restart, "must be 'never', 'on_fault', 'always' or a Restart"
            )
        return Restart(restart)  # type: ignore[arg-type]
    return restart


def _as_type(declared: Any) -> type | None:
    """What `isinstance` can check of a declared message type: nothing of ``list[int]``, say."""
    return declared if type(declared) is type or isinstance(declared, type) else None


@_native._own_methods
class RingKernel(_native.Actor, Generic[In, Out]):
    """One ring kernel, from outside. The methods may be awaited on any event loop.

    Parameters
    ----------
    kernel_id
        Its name.
    kernel_func
        Called with a `KernelContext` when the kernel is activated, and at each restart.
    config
        How it is set up; the defaults of `RingKernelConfig` without one.
    input_type, output_type
        What its messages and its replies must be instances of (`TypeValidationError` otherwise).
    restart
        Whether and how it is started again after a fault: "on_fault", "always", or a `Restart`.
    watchdog
        Seconds, at least 0.001, after which a kernel that still has the same message in hand is
        reported as stalled, by a warning of the logger ``pydotcompute``. None: never.
    state
        What the state of a compiled handler is at first: an object of its class, a dict of what is
        not its default, or a structured array; None: the class's defaults.
    executor
        "process": the function runs in a process of its own, which imports it by its module and
        its name (Linux). Messages go there and back as `serialize` writes them; a process that
        dies is a fault of the kernel, and a restart starts a new one. A compiled handler is made
        in its process, and takes its records as they are; its state lies in memory that both
        share, so that a restart goes on with what the last acknowledged message left of it. What
        a function keeps otherwise begins anew.
        "cuda": a compiled handler runs on the first GPU, inside a grid that stays there, with its
        state in the device's memory (made anew at a restart): see `pydotcompute.handlers.cuda`.
        None: as the function says.
    isolation
        Of a kernel on a GPU. "thread": its context is this process's, as that of other libraries
        here, and a hardware exception costs the process its GPU. "process": a child's (Linux),
        which traps, handlers that never come back and SIGKILL end; a restart starts another one.
    window
        In a process: how many messages it is handed at a time. With more than 1 it need not be
        waited for; but what it was handed is in hand: not counted in the queue, nor overtaken,
        dropped or held back any more.
    start_timeout
        Seconds that a process may take, from its start, to import its function; one that takes
        longer is killed, which is a fault of the kernel.
    """

    def __init__(
        self,
        kernel_id: str,
        kernel_func: Callable[..., Any],
        *,
        config: RingKernelConfig | None = None,
        input_type: type[In] | None = None,
        output_type: type[Out] | None = None,
        restart: Restart | str | None = None,
        watchdog: float | None = None,
        state: Any = None,
        executor: Literal["process", "cuda"] | None = None,
        isolation: Literal["thread", "process"] = "thread",
        window: int = 1,
        start_timeout: float = 60.0,
    ) -> None:
        if isolation not in ("thread", "process"):
            reason = "must be 'thread' or 'process'"
            raise InvalidConfigurationError("isolation", isolation, reason)
        if isolation == "process" and (executor != "cuda" or sys.platform != "linux"):
            reason = "is for executor='cuda', on Linux"
            raise InvalidConfigurationError("isolation", isolation, reason)
        if executor not in (None, "process", "cuda"):
            reason = "must be 'process', 'cuda' or None"
            raise InvalidConfigurationError("executor", executor, reason)
        if isinstance(window, bool) or not isinstance(window, int) or not 1 <= window <= 1 << 16:
            raise InvalidConfigurationError("window", window, "must be 1 to 65536 messages")
        if not start_timeout > 0:
            raise InvalidConfigurationError("start_timeout", start_timeout, "must be above 0")
        self._kernel_func = kernel_func
        self._executor = executor
        self._isolation = isolation
        self._start_timeout = float(start_timeout)
        self._window = window
        #: Whether it is what a kernel of another process really runs.
        self._far_side = False
        self._handler = _handler_of(kernel_func)
        self._initial_state = state
        self._compiled: _native.CompiledHandler | _native.CudaKernel | None = None
        self._config = config if config is not None else RingKernelConfig(kernel_id)
        self._input_type = input_type
        self._output_type = output_type
        self._restart = _as_restart(restart)
        self._watchdog = watchdog
        self._context: KernelContext[In, Out] | None = None
        self._task: asyncio.Task[Any] | Future[Any] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._captured: contextvars.Context | None = None
        self._own_runtime: _native.Runtime | None = None

    @property
    def state(self) -> KernelState:
        """Its state now."""
        return KernelState[self._state]

    @property
    def config(self) -> RingKernelConfig:
        """How it is set up."""
        return self._config

    async def launch(self) -> None:
        """Give the kernel its mailboxes and its place on the running loop: CREATED to LAUNCHED.

        Raises
        ------
        KernelStateError
            In any other state.
        """
        compiled = await self._compile() if self._state == "CREATED" else None
        if self._state != "CREATED":
            raise KernelStateError(self.kernel_id, self._state, "launch")
        self._own_runtime = _native.Runtime()
        _runtimes.add(self._own_runtime)
        self._launch_in(self._own_runtime, compiled)

    async def _compile(self) -> _native.CompiledHandler | _native.CudaKernel | None:
        """Make the code of a compiled handler, on another thread: numba takes its time."""
        if self._executor == "cuda":
            from pydotcompute.handlers import cuda

            return await asyncio.to_thread(
                cuda.link,
                self.kernel_id,
                self._handler,
                self._initial_state,
                self._isolation,
                self._config.grid_size,
                self._config.block_size,
            )
        if self._handler is None:
            return None
        return await asyncio.to_thread(self._handler.compile, self.kernel_id, self._initial_state)

    def _launch_in(
        self,
        runtime: _native.Runtime,
        compiled: _native.CompiledHandler | _native.CudaKernel | None,
    ) -> None:
        config = self._config
        self._compiled = compiled
        if isinstance(compiled, _native.CudaKernel):
            _native._launch_cuda(
                self,
                runtime,
                compiled,
                capacity=config.input_queue_size,
                reply_capacity=config.output_queue_size,
                backpressure=config.backpressure_strategy,
                exact_priority=not config.use_fast_queue,
                restart=self._restart,
                watchdog=self._watchdog,
            )
            return
        if self._executor == "process":
            self._launch_in_process(runtime, compiled)
            return
        if compiled is not None:
            self._launch_compiled(
                runtime,
                compiled,
                capacity=config.input_queue_size,
                reply_capacity=config.output_queue_size,
                backpressure=config.backpressure_strategy,
                restart=self._restart,
                watchdog=self._watchdog,
            )
            return
        self._loop = asyncio.get_running_loop()
        self._launch(
            runtime,
            self._start,
            threaded=not _is_async(self._kernel_func),
            capacity=config.input_queue_size,
            reply_capacity=config.output_queue_size,
            backpressure=config.backpressure_strategy,
            exact_priority=not config.use_fast_queue,
            restart=self._restart,
            watchdog=self._watchdog,
            input_type=_as_type(self._input_type),
            output_type=_as_type(self._output_type),
            far_side=self._far_side,
        )

    def _launch_in_process(
        self, runtime: _native.Runtime, compiled: _native.CompiledHandler | None
    ) -> None:
        from pydotcompute.ring_kernels import _process

        if sys.platform != "linux":
            raise InvalidConfigurationError("executor", "process", "needs Linux")
        config = self._config
        _native._launch_process(
            self,
            runtime,
            _process.command(),
            _process.arguments(self, self._kernel_func),
            _process.sink,
            # For its layouts; the process compiles the handler for itself.
            compiled,
            first_step=_process.first_step(self._kernel_func),
            start_timeout=self._start_timeout,
            window=self._window,
            capacity=config.input_queue_size,
            reply_capacity=config.output_queue_size,
            backpressure=config.backpressure_strategy,
            exact_priority=not config.use_fast_queue,
            restart=self._restart,
            watchdog=self._watchdog,
            input_type=_as_type(self._input_type),
            output_type=_as_type(self._output_type),
        )

    def read_state(self, timeout: float = 1.0) -> Any:
        """Read the state of a compiled handler, also while it runs, as it is between two messages.

        Safe from any thread; waits on the calling one, in general no longer than one message takes.

        Parameters
        ----------
        timeout
            How many seconds to wait for the end of the message in hand.

        Returns
        -------
        object
            An object of the state's class: before the activation the initial state, after a restart
            the new one, after the end the last one. Of a kernel in a process: as of the last
            acknowledged message, at once, whatever the process does.

        Raises
        ------
        KernelStateError
            The kernel is not launched, or its function is no compiled handler with a state.
        TimeoutError
            The kernel has worked on one message for longer than `timeout`.
        """
        kept = self._handler.signature.state if self._handler is not None else None
        if self._compiled is None or kept is None:
            raise KernelStateError(self.kernel_id, self._state, "read the state of")
        return kept.unpack(self._compiled.state_bytes(timeout))

    def _start(self, handle: Any, done: Callable[[Any], None]) -> Any:
        """Begin a run of the function, in the contextvars of whoever activated the kernel; the
        native half calls it, on the loop or on the kernel's thread."""
        context = _ActorContext(handle)
        context._kernel = self
        self._context = context
        captured = (self._captured or contextvars.copy_context()).copy()
        result = captured.run(self._kernel_func, context)
        if not inspect.isawaitable(result):
            if inspect.isgenerator(result) or inspect.isasyncgen(result):
                # Nothing of it has run, and nobody would drive it.
                raise TypeError(f"the function of kernel {self.kernel_id!r} must not yield")
            return None
        coroutine: Coroutine[Any, Any, Any]
        coroutine = result if asyncio.iscoroutine(result) else _await(result)
        loop = self._loop
        assert loop is not None, "a kernel is launched before it starts"
        task: asyncio.Task[Any] | Future[Any]
        if handle.threaded:
            task = captured.run(asyncio.run_coroutine_threadsafe, coroutine, loop)
        else:
            # A task copies the contextvars that it is made in; without the argument `context` it
            # can be made by any task factory.
            task = captured.run(loop.create_task, coroutine)
            with contextlib.suppress(AttributeError):
                task.set_name(f"ring_kernel_{self.kernel_id}")
        self._task = task
        task.add_done_callback(done)
        return task

    def _capture(self) -> None:
        """Keep the contextvars of whoever activates it."""
        self._captured = contextvars.copy_context()

    async def activate(self) -> None:
        """Start processing: LAUNCHED to ACTIVE. The function sees the caller's contextvars.

        Raises
        ------
        KernelStateError
            In any other state.
        """
        self._capture()
        self._activate()

    async def deactivate(self) -> None:
        """Pause: ACTIVE to DEACTIVATED. From now on no message is handed to the function.

        Raises
        ------
        KernelStateError
            In any other state.
        """
        self._deactivate()

    async def reactivate(self) -> None:
        """Go on: DEACTIVATED to ACTIVE.

        Raises
        ------
        KernelStateError
            In any other state.
        """
        self._reactivate()

    async def terminate(self, timeout: float = 5.0, *, drain: bool = False) -> None:
        """End the kernel, in any state, within `timeout` seconds.

        The function is told (`should_terminate`; its waits raise `KernelStoppedError`), cancelled
        shortly before the time is up, and given up when it is. Everyone who waits for the kernel is
        told. Messages that nobody processed become dead letters. Safe to call several times, and
        from inside the kernel, where it does not wait.

        Parameters
        ----------
        timeout
            Seconds in all.
        drain
            Let the kernel process what is queued first; new messages are refused.
        """
        task = self._task
        if self._state == "CREATED" or (task is not None and task is _current_task()):
            self._stop(drain)
            return
        deadline = time.monotonic() + timeout
        outcome = await self._terminate(timeout, drain)
        if outcome == "abandoned":
            _logger.warning("kernel %r did not stop within %s s", self.kernel_id, timeout)
        elif outcome == "cancelled":
            await self._cancelled(deadline)

    async def _cancelled(self, deadline: float) -> None:
        """Leave a task that was cancelled the rest of the time to clean up."""
        task = self._task
        if not isinstance(task, asyncio.Future) or task.done():
            return
        if task.get_loop() is asyncio.get_running_loop():
            left = max(deadline - time.monotonic(), 0.001)
            await asyncio.wait([task], timeout=left)

    def __repr__(self) -> str:
        return f"RingKernel(id={self.kernel_id!r}, state={self._state})"


@contextlib.asynccontextmanager
async def managed_kernel(
    kernel_id: str, kernel_func: Callable[..., Any], **kwargs: Any
) -> AsyncIterator[RingKernel[Any, Any]]:
    """Launch and activate a kernel for the time of a block, and always terminate it.

    Parameters
    ----------
    kernel_id, kernel_func, **kwargs
        As for `RingKernel`.
    """
    kernel: RingKernel[Any, Any] = RingKernel(kernel_id, kernel_func, **kwargs)
    try:
        await kernel.launch()
        await kernel.activate()
        yield kernel
    finally:
        await kernel.terminate()


#: The native runtimes that may have kernels on threads.
_runtimes: weakref.WeakSet[_native.Runtime] = weakref.WeakSet()


def _at_exit() -> None:
    """Kernels end before the interpreter does: a thread of theirs could not run Python any more."""
    _native._close_all()
    for runtime in list(_runtimes):
        runtime._shutdown_blocking(2.0)
    _native._join_threads(2.0)


atexit.register(_at_exit)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_native._before_fork,
        after_in_parent=_native._after_fork_in_parent,
        after_in_child=_native._after_fork,
    )
