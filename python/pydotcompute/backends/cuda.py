"""CUDA devices as a backend: CuPy arrays, kernels compiled by numba.

The module imports, and the backend can be made, on any machine; without a usable device it says
that it is not available, and why.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from pydotcompute import _optional
from pydotcompute.backends.base import Backend, BackendType, KernelExecutionResult
from pydotcompute.exceptions import BackendNotAvailableError, CUDAError

__all__ = ["CUDABackend", "get_matrix_multiply_kernel", "get_vector_add_kernel"]


class CUDABackend(Backend):
    """Memory and kernels of a CUDA device. Thread-safe as far as CuPy is.

    Parameters
    ----------
    device_id
        The device, counted from 0.

    Raises
    ------
    BackendNotAvailableError
        CuPy sees a device, but numba is not installed.
    """

    def __init__(self, device_id: int = 0) -> None:
        self._device_id = device_id
        self._device_count = 0
        self._reason = ""
        self._cupy: Any = None
        found = _optional.cupy()
        if not found:
            self._reason = found.reason
            return
        numba = _optional.numba()
        if not numba:
            raise BackendNotAvailableError("CUDA", numba.reason)
        try:
            count = int(found.module.cuda.runtime.getDeviceCount())
            if not 0 <= device_id < count:
                self._reason = f"there is no device {device_id}: CuPy sees {count}"
                return
            found.module.cuda.Device(device_id).use()
        except Exception as error:
            self._reason = f"{type(error).__name__}: {error}"
            return
        self._cupy = found.module
        self._device_count = count

    @property
    def backend_type(self) -> BackendType:
        """What it runs on."""
        return BackendType.CUDA

    @property
    def is_available(self) -> bool:
        """Whether it can be used on this machine."""
        return self._cupy is not None

    @property
    def unavailable_reason(self) -> str:
        """Why it cannot be used; empty when it can."""
        return self._reason

    @property
    def device_count(self) -> int:
        """How many devices there are; 0 when it cannot be used."""
        return self._device_count

    @property
    def device_id(self) -> int:
        """The device that it uses."""
        return self._device_id

    def _require(self) -> Any:
        """CuPy, or an error that says why there is none."""
        if self._cupy is None:
            raise CUDAError(f"CUDA not available: {self._reason}")
        return self._cupy

    def set_device(self, device_id: int) -> None:
        """Use another device; does nothing when there is none.

        Raises
        ------
        CUDAError
            There is no such device.
        """
        if self._cupy is None:
            return
        if not 0 <= device_id < self._device_count:
            raise CUDAError(f"There is no device {device_id}: there are {self._device_count}")
        self._cupy.cuda.Device(device_id).use()
        self._device_id = device_id

    def allocate(self, shape: tuple[int, ...], dtype: DTypeLike) -> Any:
        """Make a CuPy array of unknown content.

        Raises
        ------
        CUDAError
            There is no device, or no memory.
        """
        cupy = self._require()
        try:
            return cupy.empty(shape, dtype=dtype)
        except Exception as error:
            raise CUDAError(f"Failed to allocate {shape} of {np.dtype(dtype)}: {error}") from error

    def allocate_zeros(self, shape: tuple[int, ...], dtype: DTypeLike) -> Any:
        """Make a CuPy array of zeros; see `allocate`."""
        cupy = self._require()
        try:
            return cupy.zeros(shape, dtype=dtype)
        except Exception as error:
            raise CUDAError(f"Failed to allocate {shape} of {np.dtype(dtype)}: {error}") from error

    def free(self, array: Any) -> None:
        """Do nothing: an array goes when nobody refers to it any more."""

    def copy_to_device(self, host_array: NDArray[Any]) -> Any:
        """Copy an array to the device.

        Raises
        ------
        CUDAError
            There is no device, or the copy failed.
        """
        cupy = self._require()
        try:
            return cupy.array(host_array)
        except Exception as error:
            raise CUDAError(f"Failed to copy to the device: {error}") from error

    def copy_to_host(self, device_array: Any) -> NDArray[Any]:
        """Copy an array to main memory; see `copy_to_device`."""
        cupy = self._require()
        try:
            return np.asarray(cupy.asnumpy(device_array))
        except Exception as error:
            raise CUDAError(f"Failed to copy to the host: {error}") from error

    def synchronize(self) -> None:
        """Wait until the device has done what it was given."""
        if self._cupy is not None:
            self._cupy.cuda.Device(self._device_id).synchronize()

    def execute_kernel(
        self,
        kernel: Any,
        grid_size: tuple[int, ...],
        block_size: tuple[int, ...],
        *args: Any,
        **kwargs: Any,
    ) -> KernelExecutionResult:
        """Run a kernel and wait for it.

        Parameters
        ----------
        kernel
            A CUDA kernel of numba, a RawKernel of CuPy (or an object whose `kernel` is one), or
            any other callable, which is called with the arguments.
        grid_size, block_size
            Blocks, and threads of a block, in each dimension.
        *args, **kwargs
            The kernel's arguments.

        Returns
        -------
        KernelExecutionResult
            With what the kernel raised.
        """
        if self._cupy is None:
            return KernelExecutionResult(False, 0.0, CUDAError("CUDA not available"))
        started = time.perf_counter()
        result = None
        failure: Exception | None = None
        try:
            if hasattr(kernel, "__cuda_kernel__") or hasattr(kernel, "forall"):
                result = kernel[grid_size, block_size](*args, **kwargs)
            elif hasattr(kernel, "kernel"):
                result = kernel(grid_size, block_size, args, **kwargs)
            else:
                result = kernel(*args, **kwargs)
            self.synchronize()
        except Exception as error:
            failure = error
        elapsed_ms = (time.perf_counter() - started) * 1000
        return KernelExecutionResult(failure is None, elapsed_ms, failure, result)

    def compile_kernel(
        self, func: Callable[..., Any], signature: str | None = None
    ) -> Callable[..., Any]:
        """Compile a kernel with numba.

        Raises
        ------
        CUDAError
            There is no device, or it does not compile.
        """
        self._require()
        found = _optional.numba_cuda()
        if not found:
            raise CUDAError(f"CUDA not available: {found.reason}")
        try:
            compiled: Callable[..., Any] = (
                found.module.jit(func) if signature is None else found.module.jit(signature)(func)
            )
        except Exception as error:
            raise CUDAError(f"Failed to compile a kernel: {error}") from error
        return compiled

    def create_stream(self) -> Any:
        """Make a stream.

        Raises
        ------
        CUDAError
            There is no device.
        """
        return self._require().cuda.Stream(non_blocking=True)

    def get_memory_info(self) -> dict[str, int]:
        """Measure the device's memory in bytes: free, total, used; zeros when there is none."""
        if self._cupy is None:
            return {"free": 0, "total": 0, "used": 0}
        free, total = self._cupy.cuda.Device(self._device_id).mem_info
        return {"free": int(free), "total": int(total), "used": int(total - free)}

    def __repr__(self) -> str:
        if self._cupy is None:
            return "CUDABackend(available=False)"
        free_mb = self.get_memory_info()["free"] / 2**20
        return (
            f"CUDABackend(device={self._device_id}, devices={self._device_count}, "
            f"memory_free={free_mb:.0f}MB)"
        )


def get_vector_add_kernel() -> Any:
    """Get a numba CUDA kernel `(a, b, out)` that adds one-dimensional arrays, or None."""
    if not _optional.numba_cuda():
        return None
    from pydotcompute.backends._cuda_kernels import vector_add

    return vector_add


def get_matrix_multiply_kernel() -> Any:
    """Get a numba CUDA kernel `(A, B, C)` that multiplies matrices into C, or None."""
    if not _optional.numba_cuda():
        return None
    from pydotcompute.backends._cuda_kernels import matrix_multiply

    return matrix_multiply
