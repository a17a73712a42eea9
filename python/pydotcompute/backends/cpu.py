"""The CPU as a backend: NumPy arrays, kernels compiled by numba where it is installed."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from pydotcompute import _optional
from pydotcompute._jit import JitFunction, jit
from pydotcompute.backends.base import Backend, BackendType, KernelExecutionResult
from pydotcompute.core.memory_pool import MemoryPool
from pydotcompute.decorators.kernel import Kernel

__all__ = ["CPUBackend", "matrix_multiply_cpu", "vector_add_cpu"]

# Fewer indices than this for a thread do not pay for waking it.
_INDICES_PER_THREAD_MIN = 64


class CPUBackend(Backend):
    """Memory and kernels of the CPU. Thread-safe."""

    @property
    def backend_type(self) -> BackendType:
        """What it runs on."""
        return BackendType.CPU

    @property
    def is_available(self) -> bool:
        """Whether it can be used: always."""
        return True

    @property
    def device_count(self) -> int:
        """How many devices it has: one, with all cores."""
        return 1

    def allocate(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """Make an array (C order) of unknown content; the memory pool's while that is enabled."""
        pool = MemoryPool._instance
        if pool is not None and pool.enabled and not np.dtype(dtype).hasobject:
            return pool.empty(shape, dtype)
        return np.empty(shape, dtype)

    def allocate_zeros(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """Make an array (C order) of zeros."""
        return np.zeros(shape, dtype)

    def free(self, array: Any) -> None:
        """Do nothing: an array goes when nobody refers to it any more."""

    def copy_to_device(self, host_array: NDArray[Any]) -> NDArray[Any]:
        """Copy an array."""
        return np.array(host_array, copy=True)

    def copy_to_host(self, device_array: Any) -> NDArray[Any]:
        """Copy an array."""
        return np.array(device_array, copy=True)

    def synchronize(self) -> None:
        """Do nothing: a call returns when its work is done."""

    def execute_kernel(
        self,
        kernel: Callable[..., Any],
        grid_size: tuple[int, ...],
        block_size: tuple[int, ...],
        *args: Any,
        **kwargs: Any,
    ) -> KernelExecutionResult:
        """Call a kernel once.

        Parameters
        ----------
        kernel
            The kernel. It goes over its data itself: grid and block are those of a GPU, and have no
            meaning here.
        grid_size, block_size
            What a GPU would be launched with.
        *args, **kwargs
            The kernel's arguments.

        Returns
        -------
        KernelExecutionResult
            With what the kernel returned or raised.
        """
        started = time.perf_counter()
        result = None
        failure: Exception | None = None
        try:
            result = kernel(*args, **kwargs)
        except Exception as error:
            failure = error
        elapsed_ms = (time.perf_counter() - started) * 1000
        return KernelExecutionResult(failure is None, elapsed_ms, failure, result)

    def compile_kernel(
        self, func: Callable[..., Any], signature: str | None = None
    ) -> Callable[..., Any]:
        """Compile a kernel with numba; the function itself without numba, or if numba refuses.

        Parameters
        ----------
        func
            The kernel.
        signature
            The argument types, as numba writes them, to compile for at once.
        """
        try:
            return jit(func, signature=signature)
        except Exception:
            return func

    def parallel_for(self, start: int, end: int, func: Callable[[int], Any]) -> None:
        """Call a function with each index from `start` to `end - 1`, once.

        A compiled function (of `compile_kernel`, `@kernel` or numba) runs on all cores, in no
        particular order. Any other runs on this thread in ascending order.

        Raises
        ------
        Exception
            What the function raises; a compiled one may have been called with later indices too.
        """
        loop = _compiled_loop(func, start) if end > start else None
        if loop is None:
            for index in range(start, end):
                func(index)
            return
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        threads = min(cores or 1, max(1, (end - start) // _INDICES_PER_THREAD_MIN))
        if threads == 1:
            loop(start, end)
            return
        # More parts than threads, so that one slow part does not keep the others waiting.
        step = math.ceil((end - start) / (4 * threads))
        parts = [(first, min(first + step, end)) for first in range(start, end, step)]
        with ThreadPoolExecutor(threads, thread_name_prefix="parallel_for") as pool:
            try:
                for done in [pool.submit(loop, *part) for part in parts]:
                    done.result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)  # Parts that have not begun.
                raise

    def __repr__(self) -> str:
        return "CPUBackend(available=True)"


def _compiled_loop(func: Any, index: int) -> Callable[[int, int], None] | None:
    """Compile a loop over a compiled function; None if it is none, or cannot take an int."""
    numba = _optional.numba().module
    if numba is None:
        return None
    if isinstance(func, Kernel):
        func = func.compiled()
    dispatcher = func.dispatcher if isinstance(func, JitFunction) else func
    if not isinstance(dispatcher, numba.core.registry.CPUDispatcher):
        return None
    # Kept on the function itself, since it refers to the function and is to go with it.
    loop: Callable[[int, int], None] | None = getattr(dispatcher, "_pydotcompute_loop", None)
    if loop is not None:
        return loop
    callee = dispatcher

    def over_range(first: int, last: int) -> None:
        for i in range(first, last):
            callee(i)

    loop = numba.njit(nogil=True)(over_range)
    try:
        loop(index, index)  # Compiles, and calls the function with nothing.
    except numba.core.errors.NumbaError:
        return None
    dispatcher._pydotcompute_loop = loop
    return loop


def vector_add_cpu(a: NDArray[Any], b: NDArray[Any]) -> NDArray[Any]:
    """Add two arrays element by element."""
    total: NDArray[Any] = np.add(a, b)
    return total


def matrix_multiply_cpu(a: NDArray[Any], b: NDArray[Any]) -> NDArray[Any]:
    """Multiply two matrices."""
    product: NDArray[Any] = np.matmul(a, b)
    return product
