"""Tier 2: ring kernels whose function runs on an OS thread of its own.

The names of the contract over the core's mailboxes: whoever waits has released the GIL, an error of
the kernel's function reaches everybody who waits for the kernel, and `stop` tells the truth. All
methods may be called from any thread.
"""

from __future__ import annotations

import atexit
import contextlib
import inspect
import itertools
import logging
import os
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from pydotcompute import _native
from pydotcompute.exceptions import (
    KernelFailedError,
    KernelStateError,
    TypeValidationError,
)
from pydotcompute.ring_kernels.sync_queue import SPSCQueue, SyncQueue

__all__ = [
    "ThreadedKernelConfig",
    "ThreadedKernelContext",
    "ThreadedKernelPool",
    "ThreadedKernelState",
    "ThreadedRingKernel",
]

T_in = TypeVar("T_in")
T_out = TypeVar("T_out")

_log = logging.getLogger("pydotcompute")


class _Nothing:
    """No message: what a queue gives when None may be one."""


_NOTHING: Any = _Nothing()


class ThreadedKernelState(Enum):
    """The states of a kernel on a thread."""

    CREATED = auto()
    RUNNING = auto()
    STOPPING = auto()
    STOPPED = auto()


@dataclass
class ThreadedKernelConfig:
    """The settings of a `ThreadedRingKernel`.

    Parameters
    ----------
    kernel_id
        Its name.
    input_queue_size, output_queue_size
        The most messages that wait in each direction, at least 1.
    use_spsc
        Which kind of queue the context shows: `SPSCQueue`, else `SyncQueue`. Both are as fast, and
        take any number of producers.
    thread_name
        The name of the thread; None means ``threaded_kernel_<id>``.
    daemon
        Whether the thread is a daemon.
    """

    kernel_id: str
    input_queue_size: int = 4096
    output_queue_size: int = 4096
    use_spsc: bool = True
    thread_name: str | None = None
    daemon: bool = True

    def __post_init__(self) -> None:
        """Check the sizes."""
        _check_sizes(self.input_queue_size, self.output_queue_size)


def _check_sizes(input_queue_size: int, output_queue_size: int) -> None:
    if input_queue_size < 1:
        raise ValueError(f"input_queue_size must be >= 1, not {input_queue_size}")
    if output_queue_size < 1:
        raise ValueError(f"output_queue_size must be >= 1, not {output_queue_size}")


class _ShutdownEvent(_native.Flag, threading.Event):
    """An event of which the native half of a context sees whether it is set."""

    def set(self) -> None:
        self._raise(True)
        threading.Event.set(self)

    def clear(self) -> None:
        self._raise(False)
        threading.Event.clear(self)


@_native._own_methods
@dataclass
class ThreadedKernelContext(_native.ThreadContext, Generic[T_in, T_out]):
    """What the function of a `ThreadedRingKernel` gets.

    `receive`, `send` and `should_terminate` are the native half's.

    Parameters
    ----------
    kernel_id
        The kernel's name.
    input_queue, output_queue
        Where messages come from, and replies go.
    """

    # What has a `field` here lies in the native half.
    kernel_id: str
    input_queue: SPSCQueue[T_in] | SyncQueue[T_in] = field()
    output_queue: SPSCQueue[T_out] | SyncQueue[T_out] = field()
    _shutdown_event: threading.Event = field()
    _output_type: type | None = field(default_factory=lambda: None)

    if TYPE_CHECKING:
        # The native half's.
        def receive(self, timeout: float | None = None) -> T_in | None: ...
        def send(self, message: T_out, timeout: float | None = None) -> bool: ...

    def _check_output(self, message: object) -> None:
        _check_type(message, self._output_type, f"output of kernel '{self.kernel_id}'")

    def wait_shutdown(self, timeout: float | None = None) -> bool:
        """Wait, at most `timeout` seconds, until the kernel is told to stop; whether it was."""
        return self._shutdown_event.wait(timeout)


class _Config(Protocol):
    """What both kinds of configuration have."""

    kernel_id: str
    input_queue_size: int
    output_queue_size: int
    thread_name: str | None
    daemon: bool


class _ThreadKernel(_native.ThreadKernel):
    """A function on a thread with a queue on either side: what tiers 2 and 3 share.

    `send` and `receive` are the native half's.
    """

    _states: type[Enum]
    _thread_prefix: str
    #: Seconds that a `send` or `receive` without a timeout waits.
    _send_wait: float | None = None
    _receive_wait: float | None = None

    def __init__(
        self,
        kernel_id: str,
        kernel_func: Callable[[Any], Any],
        config: _Config,
        context: Any,
        shutdown_event: threading.Event,
    ) -> None:
        if inspect.iscoroutinefunction(kernel_func):
            raise TypeError("the function of a kernel on a thread must be a plain def, not async")
        self.kernel_id = kernel_id
        self._kernel_func = kernel_func
        self._config = config
        self._context = context
        self._shutdown_event = shutdown_event
        self._input_queue: Any = context.input_queue
        self._output_queue: Any = context.output_queue
        self._connect(self._input_queue, self._output_queue, self._send_wait, self._receive_wait)
        self._created = self._states["CREATED"]
        self._running = self._states["RUNNING"]
        self._stopping = self._states["STOPPING"]
        self._stopped = self._states["STOPPED"]
        self._enter(self._created)
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def _enter(self, state: Enum) -> None:
        self._state = state
        # Who sends or receives asks no further then.
        self._allow(state is self._running and not self._checks_input(), state is not self._created)

    def _checks_input(self) -> bool:
        return False

    @property
    def is_running(self) -> bool:
        """Whether it is started and was not told to stop."""
        return self._state is self._running

    @property
    def error(self) -> BaseException | None:
        """What the kernel's function raised, if it did."""
        return self._error

    def start(self) -> None:
        """Start the thread.

        Raises
        ------
        KernelStateError
            If the kernel was started before: a kernel runs once.
        """
        with self._lock:
            if self._state is not self._created:
                raise KernelStateError(self.kernel_id, self._state.name, "start")
            thread = threading.Thread(
                target=self._run,
                name=self._config.thread_name or f"{self._thread_prefix}_{self.kernel_id}",
                daemon=self._config.daemon,
            )
            self._enter(self._running)
            self._thread = thread
            _remember(self)
            try:
                thread.start()
            except BaseException:
                self._enter(self._created)
                self._thread = None
                _live.discard(self)
                raise

    def stop(self, timeout: float = 5.0) -> None:
        """Tell the kernel to stop, and wait until its thread has ended.

        Returns when the thread has ended (the state is STOPPED) or after `timeout` seconds (it is
        STOPPING, and becomes STOPPED when the thread ends). Replies already made may still be read.
        Does nothing if the kernel was not started or has stopped.
        """
        if self._request_stop():
            self._join(timeout)

    def _request_stop(self) -> bool:
        """Tell the kernel to stop; whether there is a thread to wait for."""
        with self._lock:
            if self._state is self._running:
                self._enter(self._stopping)
            elif self._state is not self._stopping:
                return False
        self._shutdown_event.set()
        self._input_queue.shutdown()
        self._shut_output()
        return True

    def _join(self, timeout: float) -> None:
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(max(timeout, 0.0))

    def _run(self) -> None:
        error: BaseException | None = None
        try:
            self._kernel_func(self._context)
        except BaseException as raised:
            error = raised
            _log.error("kernel '%s' failed", self.kernel_id, exc_info=raised)
        self._ended(error)

    def _ended(self, error: BaseException | None) -> None:
        """Note the end of the function, then wake everybody who waits: they look at the state."""
        with self._lock:
            self._error = error
            self._enter(self._stopped)
        _live.discard(self)
        self._shutdown_event.set()
        self._input_queue.shutdown()
        self._shut_output()

    def _shut_output(self) -> None:
        """Take no more replies, and wake who waits for one."""
        self._output_queue.shutdown()

    def _state_error(self, operation: str) -> KernelStateError:
        state, error = self._state, self._error
        if state is self._stopped and error is not None:
            return KernelFailedError(self.kernel_id, error, operation, state.name)
        return KernelStateError(self.kernel_id, state.name, operation)

    # What the native half calls where it may not, or cannot, send or receive.

    def _check_sendable(self, message: object) -> None:
        if self._state is not self._running:
            raise self._state_error("send message")

    def _not_sent(self) -> bool:
        """Say why a message was not taken: False if it was for want of room."""
        if self._state is not self._running:
            raise self._state_error("send message")
        return False

    def _check_readable(self) -> None:
        if self._state is self._created:
            raise self._state_error("receive message")

    def _nothing_received(self, default: Any) -> Any:
        """Say why there is no reply: `default` if none has come yet."""
        if self._state is self._created or self._output_queue.closed:
            raise self._state_error("receive message")
        return default


# --- kernels that run, for the interpreter's end and for forks --------------------------------

_live: weakref.WeakSet[_ThreadKernel] = weakref.WeakSet()
_EXIT_TIMEOUT_S = 2.0


def _stop_all() -> None:
    """Stop what runs, before the interpreter waits for threads or takes itself apart."""
    kernels = list(_live)
    stopping = [kernel for kernel in kernels if kernel._request_stop()]
    deadline = time.monotonic() + _EXIT_TIMEOUT_S
    for kernel in stopping:
        kernel._join(deadline - time.monotonic())


def _forget_all() -> None:
    """In a child process the threads are gone."""
    for kernel in list(_live):
        kernel._lock = threading.Lock()
        kernel._error = RuntimeError("the kernel's thread did not follow into the forked process")
        kernel._enter(kernel._stopped)
    _live.clear()


def _hook() -> Callable[[_ThreadKernel], None]:
    hooked = False

    def remember(kernel: _ThreadKernel) -> None:
        nonlocal hooked
        if not hooked:
            hooked = True
            # Before the interpreter joins threads that are no daemons, which `atexit` is not.
            getattr(threading, "_register_atexit", atexit.register)(_stop_all)
            if hasattr(os, "register_at_fork"):
                os.register_at_fork(after_in_child=_forget_all)
        _live.add(kernel)

    return remember


_remember = _hook()


# --- tier 2 ----------------------------------------------------------------------------------


def _check_type(message: object, expected: type | None, context: str) -> None:
    if expected is not None and not isinstance(message, expected):
        raise TypeValidationError(expected, type(message), context)


@_native._own_methods
class ThreadedRingKernel(_ThreadKernel, Generic[T_in, T_out]):
    """A ring kernel whose function runs on a thread of its own.

    A context manager, which starts and stops it. `send` and `receive` wait without end where they
    are given no timeout.

    Parameters
    ----------
    kernel_id
        Its name.
    kernel_func
        A plain function of the `ThreadedKernelContext`. The kernel ends when it returns or raises.
    config
        The settings; None means the defaults.
    input_type, output_type
        If given, messages or replies of another type are refused with `TypeValidationError`.
    """

    _states = ThreadedKernelState
    _thread_prefix = "threaded_kernel"
    _state: ThreadedKernelState
    _config: ThreadedKernelConfig

    def __init__(
        self,
        kernel_id: str,
        kernel_func: Callable[[ThreadedKernelContext[T_in, T_out]], Any],
        *,
        config: ThreadedKernelConfig | None = None,
        input_type: type | None = None,
        output_type: type | None = None,
    ) -> None:
        config = config or ThreadedKernelConfig(kernel_id)
        shutdown_event = _ShutdownEvent()
        context: ThreadedKernelContext[T_in, T_out] = ThreadedKernelContext(
            kernel_id=kernel_id,
            input_queue=_make_queue(config, config.input_queue_size),
            output_queue=self._make_output(config),
            _shutdown_event=shutdown_event,
            _output_type=output_type,
        )
        self._input_type = input_type
        super().__init__(kernel_id, kernel_func, config, context, shutdown_event)

    def _make_output(self, config: ThreadedKernelConfig) -> Any:
        return _make_queue(config, config.output_queue_size)

    @property
    def state(self) -> ThreadedKernelState:
        """Where it is in its life."""
        return self._state

    @property
    def config(self) -> ThreadedKernelConfig:
        """Its settings."""
        return self._config

    def _checks_input(self) -> bool:
        return self._input_type is not None

    def _check_sendable(self, message: object) -> None:
        super()._check_sendable(message)
        _check_type(message, self._input_type, f"input of kernel '{self.kernel_id}'")

    if TYPE_CHECKING:
        # The native half's.
        def send(self, message: T_in, timeout: float | None = None) -> bool: ...
        def receive(self, timeout: float | None = None, default: Any = None) -> T_out | Any: ...

    def send_nowait(self, message: T_in) -> bool:
        """`send` without waiting."""
        return self.send(message, 0)

    def receive_nowait(self, default: Any = None) -> T_out | Any:
        """`receive` without waiting."""
        return self.receive(0, default)

    def __enter__(self) -> ThreadedRingKernel[T_in, T_out]:
        """Start the kernel."""
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Stop the kernel."""
        self.stop()

    def __repr__(self) -> str:
        """Tell its name, state and kind of queue."""
        return (
            f"{type(self).__name__}(id={self.kernel_id!r}, state={self._state.name}, "
            f"spsc={self._config.use_spsc})"
        )


def _make_queue(config: ThreadedKernelConfig, size: int) -> Any:
    return SPSCQueue(size) if config.use_spsc else SyncQueue(size)


# --- pool ------------------------------------------------------------------------------------


class _Failure:
    """Lies among the replies where a worker failed."""

    def __init__(self, error: KernelStateError) -> None:
        self.error = error


class _Worker(ThreadedRingKernel[Any, Any]):
    """A kernel that shares its output queue with the others of its pool."""

    def __init__(self, pool: ThreadedKernelPool, kernel_id: str, **settings: Any) -> None:
        self._pool = weakref.proxy(pool)
        self._shared: Any = pool._output_queue
        super().__init__(kernel_id, pool._kernel_func, **settings)

    def _make_output(self, config: ThreadedKernelConfig) -> Any:
        return self._shared

    def _shut_output(self) -> None:
        if self._state is self._stopped and self._error is not None:
            # Waits for room behind the replies that were made before, unless the pool is stopped.
            failure = _Failure(self._state_error("receive message"))
            self._shared._offer(failure, None)
        with contextlib.suppress(ReferenceError):
            self._pool._worker_ends()


class ThreadedKernelPool:
    """Several kernels on threads with the same function, fed in turn.

    A context manager, which starts and stops all.

    Parameters
    ----------
    kernel_id_prefix
        The workers are called ``<prefix>_<i>``.
    kernel_func
        The function of each.
    num_workers
        How many, at least 1.
    **config_kwargs
        Fields of `ThreadedKernelConfig` but for its id; the sizes are per worker.
    """

    def __init__(
        self,
        kernel_id_prefix: str,
        kernel_func: Callable[[ThreadedKernelContext[Any, Any]], Any],
        num_workers: int = 4,
        **config_kwargs: Any,
    ) -> None:
        if num_workers < 1:
            raise ValueError(f"num_workers must be >= 1, not {num_workers}")
        configs = [
            ThreadedKernelConfig(f"{kernel_id_prefix}_{index}", **config_kwargs)
            for index in range(num_workers)
        ]
        self._kernel_func = kernel_func
        size = configs[0].output_queue_size * num_workers
        self._output_queue: Any = _make_queue(configs[0], size)
        self._workers = [_Worker(self, config.kernel_id, config=config) for config in configs]
        self._turns = itertools.count()

    def _worker_ends(self) -> None:
        """Take no more replies once nobody is left to make them."""
        ends = (ThreadedKernelState.STOPPING, ThreadedKernelState.STOPPED)
        if all(worker.state in ends for worker in self._workers):
            self._output_queue.shutdown()

    def start_all(self) -> None:
        """Start all workers.

        Raises
        ------
        KernelStateError
            If they were started before.
        """
        for worker in self._workers:
            worker.start()

    def stop_all(self, timeout: float = 5.0) -> None:
        """Stop all workers at once, and wait at most `timeout` seconds until all have ended."""
        stopping = [worker for worker in self._workers if worker._request_stop()]
        if self._workers[0].state is not ThreadedKernelState.CREATED:
            self._output_queue.shutdown()
        deadline = time.monotonic() + timeout
        for worker in stopping:
            worker._join(deadline - time.monotonic())

    def send(self, message: Any, timeout: float | None = None) -> bool:
        """Send a message to the next running worker in turn.

        Returns
        -------
        Whether it was sent; False if that worker had no room in time.

        Raises
        ------
        KernelStateError
            If no worker is running (`KernelFailedError` if the one whose turn it is failed).
        """
        count = len(self._workers)
        first = next(self._turns) % count
        for step in range(count):
            worker = self._workers[(first + step) % count]
            if worker.is_running:
                try:
                    return worker.send(message, timeout)
                except KernelStateError:
                    # It ended just now, without the message.
                    continue
        raise self._workers[first]._state_error("send message")

    def receive_any(self, timeout: float | None = None, default: Any = None) -> Any:
        """Wait for the next reply of any worker.

        Parameters
        ----------
        timeout
            Seconds; None waits until there is one.
        default
            What to return if none comes in time.

        Raises
        ------
        KernelFailedError
            Where a worker failed: once, behind the replies that were made before.
        KernelStateError
            If no worker is running and no reply is left.
        """
        first = self._workers[0]
        if first.state is ThreadedKernelState.CREATED:
            raise first._state_error("receive message")
        reply = self._output_queue._take(timeout, _NOTHING)
        if isinstance(reply, _Failure):
            raise reply.error
        return first._nothing_received(default) if reply is _NOTHING else reply

    def __enter__(self) -> ThreadedKernelPool:
        """Start all workers."""
        self.start_all()
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Stop all workers."""
        self.stop_all()

    def __len__(self) -> int:
        """Count the workers."""
        return len(self._workers)
