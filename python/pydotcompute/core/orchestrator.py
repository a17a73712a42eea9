"""Runs kernels one by one and keeps a record of each run."""

from __future__ import annotations

import contextlib
import contextvars
import inspect
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self
from uuid import UUID, uuid4

import numpy as np

from pydotcompute import _optional
from pydotcompute.core.accelerator import Accelerator, get_accelerator
from pydotcompute.core.memory_pool import MemoryPool, get_memory_pool
from pydotcompute.exceptions import InvalidConfigurationError

__all__ = ["ComputeOrchestrator", "KernelExecution", "KernelLaunchConfig"]

# The stream of the stream_context() that the running task is in.
_current_stream: contextvars.ContextVar[Any] = contextvars.ContextVar(
    "pydotcompute_stream", default=None
)


def _size(name: str, size: Any) -> tuple[int, ...]:
    """Make the dimensions of a grid or a block."""
    reason = "must be one to three sizes, each 1 or more"
    dims = (size,) if isinstance(size, (int, np.integer)) else size
    if not isinstance(dims, (tuple, list)) or len(dims) > 3:
        raise InvalidConfigurationError(name, size, reason)
    for dim in dims:
        if isinstance(dim, bool) or not isinstance(dim, (int, np.integer)) or dim < 1:
            raise InvalidConfigurationError(name, size, reason)
    return tuple(int(dim) for dim in dims)


def _within(stream: Any) -> contextlib.AbstractContextManager[Any]:
    """The time in which a stream is the current one."""
    if stream is None:
        return contextlib.nullcontext()
    if hasattr(stream, "__exit__"):
        found: contextlib.AbstractContextManager[Any] = stream
        return found
    from pydotcompute._cuda import using

    return using(stream)


@dataclass
class KernelLaunchConfig:
    """How a kernel is launched.

    Attributes
    ----------
    grid_size
        Blocks in each dimension; an int is one dimension.
    block_size
        Threads of a block in each dimension; an int is one dimension.
    shared_memory_bytes
        Dynamic shared memory for each block.
    stream
        The CUDA stream to run on; None means that of `stream_context`, or else the default one.
    """

    grid_size: tuple[int, ...] = (1,)
    block_size: tuple[int, ...] = (256,)
    shared_memory_bytes: int = 0
    stream: object | None = None

    def __post_init__(self) -> None:
        """Turn an int into a tuple.

        Raises
        ------
        InvalidConfigurationError
            A size is none: it has more than three dimensions, or less than 1 in one of them.
        """
        self.grid_size = _size("grid_size", self.grid_size)
        self.block_size = _size("block_size", self.block_size)
        shared = self.shared_memory_bytes
        if isinstance(shared, bool) or not isinstance(shared, int) or shared < 0:
            reason = "must be a number of bytes, 0 or more"
            raise InvalidConfigurationError("shared_memory_bytes", shared, reason)


@dataclass
class KernelExecution:
    """The record of one run.

    Attributes
    ----------
    execution_id
        Its own id.
    kernel_name
        The kernel's name.
    config
        How it was launched.
    start_time, end_time
        In seconds, of a clock that only goes forward.
    success
        Whether it ended without an exception.
    error
        The exception, or None.
    result
        What the kernel returned.
    """

    execution_id: UUID = field(default_factory=uuid4)
    kernel_name: str = ""
    config: KernelLaunchConfig = field(default_factory=KernelLaunchConfig)
    start_time: float = 0.0
    end_time: float = 0.0
    success: bool = False
    error: Exception | None = None
    result: Any = None

    @property
    def duration_ms(self) -> float:
        """How long it took, in milliseconds."""
        return (self.end_time - self.start_time) * 1000


class ComputeOrchestrator:
    """Runs kernels and keeps a record of each run. Used as an async context manager.

    Belongs to one event loop. Several may be active at once.

    Parameters
    ----------
    max_history
        How many records are kept; older ones go.
    """

    def __init__(self, *, max_history: int = 1000) -> None:
        if max_history < 0:
            raise ValueError(f"max_history must be 0 or more, not {max_history}")
        self._max_history = max_history
        self._active = False
        self._closed = False
        self._accelerator: Accelerator | None = None
        self._memory_pool: MemoryPool | None = None
        self._registered_kernels: dict[str, Callable[..., Any]] = {}
        self._execution_history: list[KernelExecution] = []
        self._streams: list[Any] = []

    async def __aenter__(self) -> Self:
        """Initialise."""
        await self.initialize()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Shut down."""
        await self.shutdown()

    async def initialize(self) -> None:
        """Take the process's accelerator and memory pool, and enable the pool."""
        if self._active:
            return
        self._accelerator = get_accelerator()
        self._memory_pool = get_memory_pool()
        self._memory_pool.enable()
        self._active = True
        self._closed = False

    async def shutdown(self) -> None:
        """Wait for the device, forget the streams and free what the pool does not use."""
        if not self._active:
            return
        self._active = False
        self._closed = True
        try:
            self.synchronize()
        finally:
            self._streams.clear()
            if self._memory_pool is not None:
                self._memory_pool.free_all_blocks()

    @property
    def is_active(self) -> bool:
        """Whether it was initialised and not shut down."""
        return self._active

    @property
    def accelerator(self) -> Accelerator | None:
        """The accelerator; None before `initialize`."""
        return self._accelerator

    @property
    def memory_pool(self) -> MemoryPool | None:
        """The memory pool; None before `initialize`."""
        return self._memory_pool

    def register_kernel(self, name: str, kernel_func: Callable[..., Any]) -> None:
        """Give a kernel a name; a kernel of the same name is replaced."""
        self._registered_kernels[name] = kernel_func

    def get_kernel(self, name: str) -> Callable[..., Any] | None:
        """Get a kernel by its name."""
        return self._registered_kernels.get(name)

    async def launch_kernel(
        self,
        kernel: Callable[..., Any] | str,
        config: KernelLaunchConfig,
        *args: Any,
        **kwargs: Any,
    ) -> KernelExecution:
        """Run a kernel: a CUDA kernel over grid and block, anything else by one call.

        Parameters
        ----------
        kernel
            The kernel, or the name that it was registered under. What it returns is awaited if it
            is awaitable.
        config
            How to launch it.
        *args, **kwargs
            Its arguments.

        Returns
        -------
        KernelExecution
            The record, with what the kernel returned as `result`. CUDA kernels may still run.

        Raises
        ------
        ValueError
            No kernel has this name.
        RuntimeError
            The orchestrator was shut down.
        Exception
            Whatever the kernel raises, after it was recorded.
        """
        if self._closed:
            raise RuntimeError("The orchestrator was shut down; call initialize() first")
        if isinstance(kernel, str):
            name = kernel
            func = self._registered_kernels.get(kernel)
            if func is None:
                raise ValueError(f"Kernel '{kernel}' is not registered")
        else:
            name = getattr(kernel, "__name__", "unknown")
            func = kernel
        record = KernelExecution(kernel_name=name, config=config, start_time=time.perf_counter())
        try:
            result = self._call(func, config, args, kwargs)
            if inspect.isawaitable(result):
                result = await result
            record.result = result
            record.success = True
        except Exception as error:
            record.error = error
            raise
        finally:
            record.end_time = time.perf_counter()
            self._remember(record)
        return record

    @staticmethod
    def _call(
        func: Any, config: KernelLaunchConfig, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        stream: Any = config.stream if config.stream is not None else _current_stream.get()
        if not (hasattr(func, "__cuda_kernel__") or hasattr(func, "forall")):
            # A stream is current for a thread, so only while this call has the thread.
            with _within(stream):
                return func(*args, **kwargs)
        launch: tuple[Any, ...] = (config.grid_size, config.block_size)
        if stream is not None or config.shared_memory_bytes:
            # numba takes a CUDA stream of another library by its handle.
            handle = getattr(stream, "ptr", stream)
            launch += (0 if handle is None else handle, config.shared_memory_bytes)
        return func[launch](*args, **kwargs)

    def _remember(self, record: KernelExecution) -> None:
        self._execution_history.append(record)
        del self._execution_history[: max(0, len(self._execution_history) - self._max_history)]

    def create_stream(self) -> object | None:
        """Make a CUDA stream that `synchronize` and `shutdown` wait for; None without CUDA."""
        arrays = _optional.device_arrays()
        if arrays is None:
            return None
        stream: object = arrays.new_stream()
        self._streams.append(stream)
        return stream

    def synchronize(self) -> None:
        """Wait until the device and all streams are done."""
        for stream in self._streams:
            stream.synchronize()
        if self._accelerator is not None:
            self._accelerator.synchronize()

    @contextlib.asynccontextmanager
    async def stream_context(self) -> AsyncIterator[object | None]:
        """Run the kernels that this task launches in the block on a stream of their own.

        Yields the stream, None without CUDA, and waits for it at the end.
        """
        stream: Any = self.create_stream()
        if stream is None:
            yield None
            return
        outer = _current_stream.get()
        _current_stream.set(stream)
        try:
            yield stream
        finally:
            _current_stream.set(outer)
            stream.synchronize()
            with contextlib.suppress(ValueError):
                self._streams.remove(stream)

    def get_execution_history(
        self, limit: int | None = None, kernel_name: str | None = None
    ) -> list[KernelExecution]:
        """Get the records, oldest first.

        Parameters
        ----------
        limit
            Only the last so many of those that fit.
        kernel_name
            Only those of this kernel.
        """
        records = [r for r in self._execution_history if kernel_name in (None, r.kernel_name)]
        return records if limit is None else records[max(0, len(records) - limit) :]

    def clear_execution_history(self) -> None:
        """Forget the records."""
        self._execution_history.clear()

    def __repr__(self) -> str:
        return (
            f"ComputeOrchestrator(active={self._active}, kernels={len(self._registered_kernels)}, "
            f"executions={len(self._execution_history)})"
        )
