"""Tier 3: ring kernels on a thread over `FastSPSCQueue`.

The name is the contract's: there is no Cython in it, and the queue is always there.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from pydotcompute import _native
from pydotcompute.ring_kernels._cython import FastSPSCQueue, is_cython_available
from pydotcompute.ring_kernels.threaded_kernel import _check_sizes, _ShutdownEvent, _ThreadKernel

__all__ = [
    "CythonKernelConfig",
    "CythonKernelContext",
    "CythonKernelState",
    "CythonRingKernel",
    "is_cython_kernel_available",
]

T_in = TypeVar("T_in")
T_out = TypeVar("T_out")

_DEFAULT_WAIT_S = 1.0
"""How long a receive waits that was given no timeout."""


def is_cython_kernel_available() -> bool:
    """Tell whether `CythonRingKernel` has its native queue: always."""
    return is_cython_available()


class CythonKernelState(Enum):
    """The states of a kernel on a thread."""

    CREATED = auto()
    RUNNING = auto()
    STOPPING = auto()
    STOPPED = auto()


@dataclass
class CythonKernelConfig:
    """The settings of a `CythonRingKernel`.

    Parameters
    ----------
    kernel_id
        Its name.
    input_queue_size, output_queue_size
        The most messages that wait in each direction, at least 1.
    spin_wait_ns
        How long a wait of the kernel at least spins before it sleeps, in nanoseconds. It spins
        without the GIL.
    thread_name
        The name of the thread; None means ``cython_kernel_<id>``.
    daemon
        Whether the thread is a daemon.
    """

    kernel_id: str
    input_queue_size: int = 4096
    output_queue_size: int = 4096
    spin_wait_ns: int = 100
    thread_name: str | None = None
    daemon: bool = True

    def __post_init__(self) -> None:
        """Check the sizes."""
        _check_sizes(self.input_queue_size, self.output_queue_size)
        if self.spin_wait_ns < 0:
            raise ValueError(f"spin_wait_ns must be >= 0, not {self.spin_wait_ns}")


@dataclass
class CythonKernelContext(Generic[T_in, T_out]):
    """What the function of a `CythonRingKernel` gets.

    Parameters
    ----------
    kernel_id
        The kernel's name.
    input_queue, output_queue
        Where messages come from, and replies go.
    """

    kernel_id: str
    input_queue: FastSPSCQueue[T_in]
    output_queue: FastSPSCQueue[T_out]
    _shutdown_event: threading.Event
    _spin_wait_ns: int = 0

    @property
    def should_terminate(self) -> bool:
        """Whether the kernel was told to stop."""
        return self._shutdown_event.is_set()

    def receive(self, timeout: float | None = None, default: Any = None) -> T_in | Any:
        """Wait for the next message.

        Parameters
        ----------
        timeout
            Seconds; None means 1.
        default
            What to return if none comes in time: where None is a legal message, something else.

        Returns
        -------
        The message, or `default` if none came in time or the kernel is told to stop and none is
        left.
        """
        if timeout is None:
            timeout = _DEFAULT_WAIT_S
        return self.input_queue._take(timeout, default, self._spin_wait_ns)

    def receive_nowait(self, default: Any = None) -> T_in | Any:
        """`receive` without waiting."""
        return self.input_queue.get_nowait(default)

    def send(self, message: T_out, timeout: float | None = None) -> bool:
        """Reply; wait for room.

        Parameters
        ----------
        message
            The reply; any object, also None.
        timeout
            Seconds; None waits until there is room or the kernel is told to stop.

        Returns
        -------
        Whether the reply is on its way: False if there was no room in time, or the kernel was told
        to stop.
        """
        return self.output_queue._offer(message, timeout)

    def send_nowait(self, message: T_out) -> bool:
        """`send` without waiting."""
        return self.output_queue.put_nowait(message)


@_native._own_methods
class CythonRingKernel(_ThreadKernel, Generic[T_in, T_out]):
    """A ring kernel whose function runs on a thread of its own, over `FastSPSCQueue`.

    A context manager, which starts and stops it. Without a timeout `send` does not wait, and
    `receive` waits 1 s, as in the kernel's own `receive`; `receive_nowait` does not wait.

    Parameters
    ----------
    kernel_id
        Its name.
    kernel_func
        A plain function of the `CythonKernelContext`. The kernel ends when it returns or raises.
    config
        The settings; None means the defaults.
    """

    _states = CythonKernelState
    _thread_prefix = "cython_kernel"
    _send_wait = 0.0
    _receive_wait = _DEFAULT_WAIT_S
    _state: CythonKernelState
    _config: CythonKernelConfig

    def __init__(
        self,
        kernel_id: str,
        kernel_func: Callable[[CythonKernelContext[T_in, T_out]], Any],
        *,
        config: CythonKernelConfig | None = None,
    ) -> None:
        config = config or CythonKernelConfig(kernel_id)
        shutdown_event = _ShutdownEvent()
        context: CythonKernelContext[T_in, T_out] = CythonKernelContext(
            kernel_id=kernel_id,
            input_queue=FastSPSCQueue(config.input_queue_size),
            output_queue=FastSPSCQueue(config.output_queue_size),
            _shutdown_event=shutdown_event,
            _spin_wait_ns=config.spin_wait_ns,
        )
        super().__init__(kernel_id, kernel_func, config, context, shutdown_event)

    @property
    def state(self) -> CythonKernelState:
        """Where it is in its life."""
        return self._state

    @property
    def config(self) -> CythonKernelConfig:
        """Its settings."""
        return self._config

    @property
    def using_cython(self) -> bool:
        """Whether it has its native queue: always."""
        return is_cython_available()

    if TYPE_CHECKING:
        # The native half's.
        def send(self, message: T_in, timeout: float | None = None) -> bool: ...
        def receive(self, timeout: float | None = None, default: Any = None) -> T_out | Any: ...

    def send_nowait(self, message: T_in) -> bool:
        """`send` without waiting."""
        return self.send(message)

    def receive_nowait(self, default: Any = None) -> T_out | Any:
        """`receive` without waiting."""
        return self.receive(0, default)

    def __enter__(self) -> CythonRingKernel[T_in, T_out]:
        """Start the kernel."""
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Stop the kernel."""
        self.stop()

    def __repr__(self) -> str:
        """Tell its name and state."""
        return (
            f"{type(self).__name__}(id={self.kernel_id!r}, state={self._state.name}, "
            f"cython={self.using_cython})"
        )
