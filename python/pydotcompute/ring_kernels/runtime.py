"""The runtime: launches ring kernels, finds them by name, and ends them.

`RingKernelRuntime.send`, `receive` and `send_and_receive` are awaitables written in Rust: whole
coroutines to asyncio, that do nothing before they are awaited.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

from pydotcompute import _native
from pydotcompute.exceptions import (
    InvalidConfigurationError,
    KernelAlreadyExistsError,
    KernelNotFoundError,
    TypeValidationError,
)
from pydotcompute.ring_kernels import _loop
from pydotcompute.ring_kernels.lifecycle import (
    KernelState,
    Restart,
    RingKernel,
    RingKernelConfig,
    _current_task,
    _runtimes,
)
from pydotcompute.ring_kernels.pool import KernelPool
from pydotcompute.ring_kernels.telemetry import RingKernelTelemetry, TelemetryCollector

if TYPE_CHECKING:
    from pydotcompute._native import DevicePointer
    from pydotcompute.handlers.cuda import CudaHandler

_logger = logging.getLogger("pydotcompute")

_kernel_registry: dict[str, dict[str, Any]] = {}


def register_ring_kernel(
    kernel_id: str,
    func: Callable[..., Any],
    input_type: type | None = None,
    output_type: type | None = None,
    **config: Any,
) -> None:
    """Register a function under a name, by which any runtime of the process can launch it.

    A later registration takes the place of an earlier one; if it is another function's, that is
    logged.
    """
    known = _kernel_registry.get(kernel_id)
    if known is not None:
        old, new = known["func"], func
        names = [
            (getattr(one, "__module__", None), getattr(one, "__qualname__", None))
            for one in (old, new)
        ]
        if names[0] != names[1]:
            _logger.warning(
                "ring kernel %r is registered anew: %r takes the place of %r", kernel_id, new, old
            )
    _kernel_registry[kernel_id] = {
        "func": func,
        "input_type": input_type,
        "output_type": output_type,
        "config": config,
    }


def get_registered_kernel(kernel_id: str) -> dict[str, Any] | None:
    """What is registered under a name: ``func``, ``input_type``, ``output_type``, ``config``."""
    return _kernel_registry.get(kernel_id)


@dataclass(frozen=True)
class DeadLetter:
    """A message that nobody processed.

    ``message`` is the message itself; ``reason`` says why it is here; ``to_kernel`` is False for a
    reply of the kernel; ``at`` is when it came here, in seconds since the epoch.
    """

    kernel_id: str
    message: Any
    reason: str
    delivery_count: int
    to_kernel: bool
    at: float


@_native._own_methods
class RingKernelRuntime(_native.Runtime):
    """Launches ring kernels and keeps them by name; an async context manager.

    Its awaitables may be awaited on any event loop, also at once on several in several threads. A
    kernel runs on the loop that launched it.

    Parameters
    ----------
    enable_telemetry
        Whether `get_telemetry` and the like tell anything.
    use_uvloop
        Install uvloop's event loop policy, where that is possible and wanted (see `_loop`).
    use_eager_tasks
        Let tasks of the loop start at once, on Python 3.12 and newer.
    """

    def __init__(
        self,
        *,
        enable_telemetry: bool = True,
        use_uvloop: bool = True,
        use_eager_tasks: bool = True,
    ) -> None:
        self._use_uvloop = use_uvloop
        self._use_eager_tasks = use_eager_tasks
        self._active = False
        self._ended = False
        #: Names of kernels whose handlers are being compiled.
        self._launching: set[str] = set()
        self._eager_tasks_installed = False
        self._telemetry = TelemetryCollector() if enable_telemetry else None
        if use_uvloop:
            _loop.install_uvloop()
        _runtimes.add(self)

    async def __aenter__(self) -> RingKernelRuntime:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.shutdown()

    async def start(self) -> None:
        """Begin. `launch` does it too where it was forgotten."""
        self._begin()

    def _begin(self) -> None:
        if self._active:
            return
        if self._ended:
            self._renew()
            self._ended = False
        self._active = True
        if self._use_eager_tasks:
            self._eager_tasks_installed = _loop.install_eager_task_factory()

    async def shutdown(self, timeout: float = 10.0) -> None:
        """End all kernels at once, within `timeout` seconds for all of them together.

        A no-op where nothing was started.
        """
        if not self._active:
            return
        deadline = time.monotonic() + timeout
        kernels = list(self._kernels.values())
        current = _current_task()
        own = [one for one in kernels if current is not None and one._task is current]
        if own:
            # Called by a kernel of this runtime, which cannot wait for itself.
            others = [one for one in kernels if one not in own]
            await asyncio.gather(*(one.terminate(timeout) for one in others))
            for one in own:
                one._stop(False)
        else:
            outcomes = await self._shutdown(timeout)
            for one in kernels:
                outcome = outcomes.get(one.kernel_id)
                if outcome == "abandoned":
                    _logger.warning("kernel %r did not stop within %s s", one.kernel_id, timeout)
                elif outcome == "cancelled":
                    await one._cancelled(deadline)
        for one in kernels:
            self._forget(one)
        self._pools.clear()
        self._active = False
        self._ended = True

    @property
    def is_active(self) -> bool:
        """Whether it was started and not shut down."""
        return self._active

    @property
    def kernel_ids(self) -> list[str]:
        """The names of its kernels, also of those that ended and were not terminated."""
        return list(self._kernels)

    def _get(self, kernel_id: str) -> RingKernel[Any, Any]:
        kernel: RingKernel[Any, Any] | None = self._kernels.get(kernel_id)
        if kernel is None:
            raise KernelNotFoundError(kernel_id, self.kernel_ids)
        return kernel

    def _get_any(self, name: str) -> RingKernel[Any, Any] | KernelPool[Any, Any]:
        pool: KernelPool[Any, Any] | None = self._pools.get(name)
        return pool if pool is not None else self._get(name)

    def _forget(self, kernel: RingKernel[Any, Any]) -> None:
        # Its name may belong to another kernel by now.
        if self._kernels.get(kernel.kernel_id) is kernel:
            del self._kernels[kernel.kernel_id]
            if self._telemetry is not None:
                self._telemetry.unregister_kernel(kernel.kernel_id)

    async def launch(
        self,
        kernel_id: str,
        kernel_func: Callable[..., Any] | CudaHandler | None = None,
        *,
        config: RingKernelConfig | None = None,
        input_type: type | None = None,
        output_type: type | None = None,
        restart: Restart | str | None = None,
        watchdog: float | None = None,
        state: Any = None,
        executor: Literal["process", "cuda"] | None = None,
        isolation: Literal["thread", "process"] = "thread",
        window: int = 1,
        start_timeout: float = 60.0,
    ) -> RingKernel[Any, Any]:
        """Make a kernel; it is LAUNCHED then, and waits to be activated.

        The first launch of a compiled handler takes as long as numba does, on a thread of its own:
        the event loop goes on meanwhile.

        Parameters
        ----------
        kernel_id
            Its name, unique in this runtime.
        kernel_func
            An ``async def`` function (a task of the running loop) or a plain one (a thread), called
            with a `KernelContext`; or a compiled handler (a thread), or one for a GPU: see
            `pydotcompute.handlers`. None: the one registered under the name.
        config, input_type, output_type
            As for `RingKernel`; what is not given is taken from the decorator or the registry.
        restart
            Whether and how it is started again after a fault: "on_fault", "always", or a `Restart`.
        watchdog
            Seconds after which it is reported if it still has the same message in hand: see
            `RingKernel`.
        state
            What the state of a compiled handler is at first: see `RingKernel`.
        executor, isolation, window, start_timeout
            "cuda": on a GPU, where it stays, with its context in this process or in one of its own.
            "process": in a process of its own, how many messages that is handed at a time, and how
            many seconds it may take to import the function: see `RingKernel`.

        Raises
        ------
        KernelCompilationError
            The handler cannot be compiled: says where and why.
        BackendNotAvailableError
            For "cuda": there is no GPU, driver or compiler; says what is missing.
        KernelAlreadyExistsError
            If the name is in use.
        KernelNotFoundError
            If there is no function, and none is registered.
        """
        described, settings = self._described(kernel_id, kernel_func)
        if config is None:
            config = RingKernelConfig(kernel_id, **settings.get("config", {}))
        kernel: RingKernel[Any, Any] = RingKernel(
            kernel_id,
            described,
            config=config,
            input_type=input_type if input_type is not None else settings.get("input_type"),
            output_type=output_type if output_type is not None else settings.get("output_type"),
            restart=restart,
            watchdog=watchdog,
            state=state,
            executor=executor,
            isolation=isolation,
            window=window,
            start_timeout=start_timeout,
        )
        self._begin()
        self._launching.add(kernel_id)
        try:
            kernel._launch_in(self, await kernel._compile())
        finally:
            self._launching.discard(kernel_id)
        self._kernels[kernel_id] = kernel
        if self._telemetry is not None:
            self._telemetry.register_kernel(kernel_id)
        return kernel

    def _described(
        self, kernel_id: str, kernel_func: Callable[..., Any] | CudaHandler | None
    ) -> tuple[Any, dict[str, Any]]:
        """The function to launch under a free name, and what its decorator or the registry says."""
        if any(kernel_id in names for names in (self._kernels, self._pools, self._launching)):
            raise KernelAlreadyExistsError(kernel_id)
        if kernel_func is not None:
            return kernel_func, getattr(kernel_func, "_ring_kernel_meta", None) or {}
        known = _kernel_registry.get(kernel_id)
        if known is None:
            raise KernelNotFoundError(kernel_id, sorted(_kernel_registry))
        return known["func"], known

    async def launch_pool(
        self,
        pool_id: str,
        kernel_func: Callable[..., Any] | None = None,
        *,
        workers: int,
        key: str | Callable[[Any], Any] | None = None,
        config: RingKernelConfig | None = None,
        input_type: type | None = None,
        output_type: type | None = None,
        restart: Restart | str | None = None,
        watchdog: float | None = None,
        state: Any = None,
    ) -> KernelPool[Any, Any]:
        """Make kernels of one kind behind one name; they wait to be activated: see `KernelPool`.

        Parameters
        ----------
        pool_id
            Its name, which kernels and pools do not share; the workers are ``pool_id/0`` and so on.
        kernel_func
            What each worker runs: see `launch`. None: the one registered under the name.
        workers
            How many there are.
        key
            By what messages are told apart, so that equal ones go to one worker: the name of an
            attribute, a function of the message, or, for records, the name of an integer field.
            None: the workers take turns.
        config, input_type, output_type, restart, watchdog, state
            Of each worker: see `launch`.

        Raises
        ------
        InvalidConfigurationError
            There are no workers, or records do not have the key.
        KernelCompilationError, KernelAlreadyExistsError, KernelNotFoundError
            As for `launch`.
        """
        kernel_func, settings = self._described(pool_id, kernel_func)
        if isinstance(workers, bool) or not isinstance(workers, int) or not 1 <= workers <= 1024:
            raise InvalidConfigurationError("workers", workers, "must be 1 to 1024")
        names = [f"{pool_id}/{number}" for number in range(workers)]
        for name in names:
            if name in self._kernels or name in self._launching:
                raise KernelAlreadyExistsError(name)
        if config is None:
            config = RingKernelConfig(pool_id, **settings.get("config", {}))
        takes = input_type if input_type is not None else settings.get("input_type")
        makes = output_type if output_type is not None else settings.get("output_type")
        made: list[RingKernel[Any, Any]] = [
            RingKernel(
                name,
                kernel_func,
                config=config,
                input_type=takes,
                output_type=makes,
                restart=restart,
                watchdog=watchdog,
                state=state,
            )
            for name in names
        ]
        pool: KernelPool[Any, Any] = KernelPool(pool_id, made)
        self._begin()
        self._launching.update((pool_id, *names))
        try:
            await pool._launch_in(self, key)
        finally:
            self._launching.difference_update((pool_id, *names))
        self._pools[pool_id] = pool
        for worker in made:
            self._kernels[worker.kernel_id] = worker
            if self._telemetry is not None:
                self._telemetry.register_kernel(worker.kernel_id)
        return pool

    async def activate(self, kernel_id: str) -> None:
        """Start a kernel or a pool: LAUNCHED to ACTIVE."""
        await self._get_any(kernel_id).activate()

    async def deactivate(self, kernel_id: str) -> None:
        """Pause a kernel or a pool: ACTIVE to DEACTIVATED."""
        await self._get_any(kernel_id).deactivate()

    async def reactivate(self, kernel_id: str) -> None:
        """Let a kernel or a pool go on: DEACTIVATED to ACTIVE."""
        await self._get_any(kernel_id).reactivate()

    async def terminate(self, kernel_id: str, timeout: float = 5.0, *, drain: bool = False) -> None:
        """End a kernel or a pool within `timeout` seconds, as `RingKernel.terminate`.

        Its name is free then.
        """
        pool: KernelPool[Any, Any] | None = self._pools.get(kernel_id)
        if pool is not None:
            try:
                await pool.terminate(timeout, drain=drain)
            finally:
                del self._pools[kernel_id]
                for worker in pool.workers:
                    self._forget(worker)
            return
        kernel = self._get(kernel_id)
        try:
            await kernel.terminate(timeout, drain=drain)
        finally:
            if kernel._stopping or kernel.state is KernelState.TERMINATED:
                self._forget(kernel)

    async def lend(self, array: Any, *, timeout: float = 30.0) -> DevicePointer:
        """Let the kernels on the GPU reach an array there, by a message that names it.

        What comes back is the value of a field that is annotated as `DevicePointer` (see
        `pydotcompute.handlers`), of any number of messages. The array's memory is kept until it and
        those messages are gone. A `UnifiedBuffer` is brought up to date on the device first; of one
        that kernels write to, tell it by `mark_device_dirty`.

        The grids of all kernels on the GPU begin a new lease, which is a pause of theirs: lend an
        array once, and use it often. That is waited for on a thread, not on the event loop.

        Parameters
        ----------
        array
            A `UnifiedBuffer`, or what has ``__cuda_array_interface__`` or ``__dlpack__`` (arrays of
            CuPy, PyTorch, numba, JAX, and ours): contiguous, on the first device.
        timeout
            Seconds to wait; a handler that is busy holds it up.

        Raises
        ------
        TypeError
            It is no array of a device's: copy it there first.
        BufferNotAllocatedError
            The buffer has no memory, or none any more.
        BackendNotAvailableError
            There is no GPU, driver or compiler; says what is missing.
        CUDAError
            It is another device's, is not contiguous, or was freed.
        TimeoutError
            A grid did not get to it.
        """
        from pydotcompute.ring_kernels import _lend  # with what few programs use

        return await asyncio.to_thread(_lend.lend, array, timeout)

    async def send_on_stream(
        self, kernel_id: str, message: Any, stream: Any, *, timeout: float | None = None
    ) -> None:
        """Send a message to a kernel when all is done that a stream of a GPU was given before.

        So its handler finds what that work wrote, where it calls ``rk_acquire`` first. Nothing
        waits on the stream, and what is sent otherwise may come before. What counts is what the
        stream was given when this is first awaited; do not change the message until it is sent.

        Parameters
        ----------
        kernel_id
            Its name, or that of a pool; it need not be on the GPU.
        message
            As for `send`; who cancels this before the work is done has not sent it.
        stream
            A stream of ours, of CuPy or of PyTorch, or a handle; None: the legacy stream, on which
            CuPy, PyTorch and numba work by default.
        timeout
            Seconds to wait for room in the mailbox, as for `send`.

        Raises
        ------
        CUDAError
            The work before it failed: the message was not sent.
        BackendNotAvailableError
            There is no GPU or driver; says what is missing.
        TypeError
            The stream is none.
        """
        from pydotcompute.ring_kernels import _lend  # as above

        self._get_any(kernel_id)
        await _lend.as_stream(stream).done()
        await self.send(kernel_id, message, timeout=timeout)

    def connect(self, from_id: str, to_id: str, *, allow_cycle: bool = False) -> None:
        """Connect two kernels: the replies of the one go straight into the mailbox of the other.

        They do so without a hop through the event loop, and with the backpressure of the other
        kernel: where that is to block, the one waits with its reply, and in the end its senders do.
        Either kernel may run on the event loop or on a thread, and need not be active yet. Replies
        that wait to be received go first.

        `send_and_receive` to a connected kernel gets the reply of the last one. To `receive` from a
        connected kernel is an error. If a kernel fails, the asks in it and on the way to it fail,
        and whoever is connected to it waits until it was restarted, or is terminated. When the
        other kernel ends or is terminated the one is disconnected, and keeps its replies, for
        `receive` or for the next kernel that it is connected to. A message that is passed on has
        the id, the correlation and the priority that the reply has.

        Parameters
        ----------
        from_id, to_id
            The names of the kernels, or of pools. A kernel is connected to one kernel or pool at
            most; any number may be connected to one. A reply to a pool goes to the worker of its
            key or its turn; the connection ends with the last worker.
        allow_cycle
            Whether the kernels may form a cycle in which all wait for room, and so could come to
            wait for each other for ever.

        Raises
        ------
        TypeValidationError
            If the other kernel's input type does not take the one's output type. Where types were
            not given, each reply is looked at.
        PipelineError
            If the kernel is connected already, or a cycle is not allowed.
        KernelNotFoundError, KernelStoppedError
            If there is no such kernel, or it has ended.
        """
        kernel, to = (
            one.workers[0] if isinstance(one, KernelPool) else one
            for one in (self._get_any(from_id), self._get_any(to_id))
        )
        output_type, input_type = kernel._output_type, to._input_type
        if (
            isinstance(output_type, type)
            and isinstance(input_type, type)
            and not (issubclass(output_type, input_type) or issubclass(input_type, output_type))
        ):
            where = f"connection of kernel '{from_id}' to kernel '{to_id}'"
            raise TypeValidationError(input_type, output_type, where)
        self._connect(from_id, to_id, allow_cycle)

    def disconnect(self, kernel_id: str) -> bool:
        """Disconnect a kernel from the next one: its replies are its own again, to be received.

        Asks that are not past it fail with `PipelineError`.

        Returns
        -------
        bool
            Whether it was connected.
        """
        return self._disconnect(kernel_id)

    def connected_to(self, kernel_id: str) -> str | None:
        """The name of the kernel that a kernel is connected to."""
        return self._connected_to(kernel_id)

    def get_kernel_state(self, kernel_id: str) -> KernelState:
        """The state of a kernel."""
        return self._get(kernel_id).state

    # --- telemetry -------------------------------------------------------------------------------

    def _refresh(self, kernel_id: str, telemetry: RingKernelTelemetry) -> RingKernelTelemetry:
        kernel = self._kernels.get(kernel_id)
        values = kernel._telemetry() if kernel is not None else None
        for name, value in (values or {}).items():
            setattr(telemetry, name, value)
        return telemetry

    def get_telemetry(self, kernel_id: str) -> RingKernelTelemetry | None:
        """What a kernel has done so far; None where telemetry is off or nothing is known of it."""
        if self._telemetry is None:
            return None
        telemetry = self._telemetry.get_kernel_telemetry(kernel_id)
        return None if telemetry is None else self._refresh(kernel_id, telemetry)

    def get_all_telemetry(self) -> dict[str, RingKernelTelemetry]:
        """What each kernel has done so far; empty where telemetry is off."""
        if self._telemetry is None:
            return {}
        known = self._telemetry.get_all_telemetry()
        return {name: self._refresh(name, telemetry) for name, telemetry in known.items()}

    def get_summary(self) -> dict[str, Any]:
        """All kernels together: see `TelemetryCollector.get_summary`.

        Without telemetry it lacks ``uptime_seconds`` and ``gpu_utilization``, and the totals are 0.
        """
        if self._telemetry is None:
            return {
                "kernel_count": len(self._kernels),
                "total_messages_processed": 0,
                "total_messages_dropped": 0,
                "total_errors": 0,
            }
        self.get_all_telemetry()
        return {**self._telemetry.get_summary(), "kernel_count": len(self._kernels)}

    # --- dead letters ----------------------------------------------------------------------------

    def dead_letters(self, kernel_id: str | None = None, *, take: bool = False) -> list[DeadLetter]:
        """The messages that nobody processed, of one kernel or of all, oldest first.

        They are kept after the kernel is gone: the newest 1024 of the runtime. With `take` they are
        dead letters no more.
        """
        return [DeadLetter(*letter) for letter in self._dead_letters(kernel_id, take)]

    def replay(self, kernel_id: str | None = None) -> int:
        """Send dead letters again, to the kernel of the same name; how many could be sent."""
        return self._replay(kernel_id)

    # --- the rest --------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def kernel_scope(
        self, kernel_id: str, kernel_func: Callable[..., Any] | None = None, **kwargs: Any
    ) -> AsyncIterator[RingKernel[Any, Any]]:
        """Launch and activate a kernel for the time of a block, and terminate it then.

        Parameters
        ----------
        kernel_id, kernel_func, **kwargs
            As for `launch`.
        """
        kernel = await self.launch(kernel_id, kernel_func, **kwargs)
        try:
            await kernel.activate()
            yield kernel
        finally:
            try:
                await kernel.terminate()
            finally:
                self._forget(kernel)

    def get_loop_info(self) -> dict[str, Any]:
        """What is known of the event loop, and whether the running one is as this runtime wants."""
        return {
            **_loop.get_loop_info(),
            "runtime_uvloop_installed": self._runs_uvloop(),
            "runtime_eager_tasks_installed": self._eager_tasks_installed,
        }

    def _runs_uvloop(self) -> bool:
        """Whether the running loop is uvloop's; outside of one, whether the policy is."""
        loop = _loop._running_loop()
        if loop is None:
            return self._use_uvloop and _loop.is_uvloop_installed()
        return any(kind.__module__.split(".")[0] == "uvloop" for kind in type(loop).__mro__)

    def __repr__(self) -> str:
        return (
            f"RingKernelRuntime(active={self._active}, kernels={len(self._kernels)}, "
            f"telemetry={self._telemetry is not None}, uvloop={self._runs_uvloop()}, "
            f"eager_tasks={self._eager_tasks_installed})"
        )
