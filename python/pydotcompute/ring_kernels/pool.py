"""Kernels of one kind behind one name.

The pool itself - turns, keys, the output that the workers share - is the core's; this is its Python
face. Each worker is a `RingKernel` of its own.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Generic

from pydotcompute import _native
from pydotcompute.exceptions import InvalidConfigurationError
from pydotcompute.ring_kernels.lifecycle import (
    In,
    Out,
    RingKernel,
    _as_type,
    _is_async,
)

if TYPE_CHECKING:
    from pydotcompute.handlers.record import RecordType

_logger = logging.getLogger("pydotcompute")


class KernelPool(_native.Pool, Generic[In, Out]):
    """Kernels of one kind behind one name, made by `RingKernelRuntime.launch_pool`.

    Each worker has a mailbox of its own, and they share their output. Messages go to the workers in
    turn, and one whose mailbox is full is passed over while another has room; or, with a key, to
    the worker of their key, where messages of a key keep their order. An array of records is one
    message: it goes to one worker, and all its records have to have one key.

    A worker that restarts keeps its messages and its keys. One that has ended or failed is passed
    over; with keys its messages are refused with its exception, and all others go on.

    The methods may be awaited on any event loop, also by the pool's name through the runtime:
    ``send``, ``receive``, ``send_and_receive``, ``connect``, ``terminate``. A worker is also a
    kernel by its own name, ``pool/0`` and so on.
    """

    def __init__(self, pool_id: str, workers: list[RingKernel[In, Out]]) -> None:
        self._workers = workers

    @property
    def workers(self) -> tuple[RingKernel[In, Out], ...]:
        """Its workers, in order."""
        return tuple(self._workers)

    @property
    def errors(self) -> list[BaseException]:
        """What its workers failed with."""
        return [worker.error for worker in self._workers if worker.error is not None]

    async def activate(self) -> None:
        """Start all workers.

        Raises
        ------
        KernelStateError
            The first that a worker has; the others are started.
        """
        for worker in self._workers:
            worker._capture()
        self._activate()

    async def deactivate(self) -> None:
        """Pause all workers.

        Raises
        ------
        KernelStateError
            The first that a worker has; the others are paused.
        """
        self._deactivate()

    async def reactivate(self) -> None:
        """Let all workers go on.

        Raises
        ------
        KernelStateError
            The first that a worker has; the others go on.
        """
        self._reactivate()

    async def terminate(self, timeout: float = 5.0, *, drain: bool = False) -> None:
        """End all workers within `timeout` seconds for all together: see `RingKernel.terminate`."""
        deadline = time.monotonic() + timeout
        outcomes = await self._terminate(timeout, drain)
        for worker, outcome in zip(self._workers, outcomes, strict=False):
            if outcome == "abandoned":
                _logger.warning("kernel %r did not stop within %s s", worker.kernel_id, timeout)
            elif outcome == "cancelled":
                await worker._cancelled(deadline)

    async def _launch_in(
        self, runtime: _native.Runtime, key: str | Callable[[Any], Any] | None
    ) -> None:
        first = self._workers[0]
        handler, config = first._handler, first.config
        compiled = [await worker._compile() for worker in self._workers]
        if handler is not None:
            _check_key(key, handler.signature.input)
        loop = asyncio.get_running_loop()
        for worker, code in zip(self._workers, compiled, strict=True):
            worker._compiled = code
            worker._loop = loop
        self._launch(
            runtime,
            [] if handler is not None else [worker._start for worker in self._workers],
            [code for code in compiled if isinstance(code, _native.CompiledHandler)],
            key,
            threaded=handler is not None or not _is_async(first._kernel_func),
            capacity=config.input_queue_size,
            reply_capacity=config.output_queue_size,
            backpressure=config.backpressure_strategy,
            exact_priority=handler is None and not config.use_fast_queue,
            restart=first._restart,
            watchdog=first._watchdog,
            input_type=_as_type(first._input_type),
            output_type=_as_type(first._output_type),
        )

    def __repr__(self) -> str:
        states = ", ".join(worker._state for worker in self._workers)
        return f"KernelPool(id={self.pool_id!r}, workers=[{states}])"


def _check_key(key: str | Callable[[Any], Any] | None, record: RecordType) -> None:
    """Refuse a key that records do not have."""
    if key is None:
        return
    whole = [field.name for field in record.fields if field.code[:1] in "iu" and not field.shape]
    if not isinstance(key, str) or key not in whole:
        raise InvalidConfigurationError(
            "key",
            key,
            f"records '{record.cls.__name__}' are told apart by the name of an integer field: "
            f"{', '.join(whole) or 'they have none'}",
        )
