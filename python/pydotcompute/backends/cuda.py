"""CUDA devices as a backend: arrays in a device's memory, kernels of CUDA C++ and of Python.

The module imports, and the backend can be made, on any machine; without a usable device it says
that it is not available, and why. Arrays are CuPy's where CuPy is installed, else `DeviceArray`s,
which CuPy, PyTorch and numba take without a copy.
"""

from __future__ import annotations

import importlib
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
    """Memory and kernels of a CUDA device. Thread-safe.

    Parameters
    ----------
    device_id
        The device, counted from 0.

    Raises
    ------
    BackendNotAvailableError
        Only CuPy can use the driver, and numba is not installed.
    """

    def __init__(self, device_id: int = 0) -> None:
        self._device_id = device_id
        self._device_count = 0
        self._reason = ""
        self._arrays: Any = None
        arrays = _optional.device_arrays()
        if arrays is None:
            self._reason = _optional.no_cuda_reason()
            return
        runtime = _optional.cuda().module
        numba = _optional.numba()
        if runtime is None and not numba:
            raise BackendNotAvailableError("CUDA", numba.reason)
        try:
            if runtime is not None:
                count = runtime.count
            else:
                count = int(_optional.cupy().module.cuda.runtime.getDeviceCount())
            if not 0 <= device_id < count:
                self._reason = f"there is no device {device_id}: there are {count}"
                return
            arrays.use(device_id)
        except Exception as error:
            self._reason = f"{type(error).__name__}: {error}"
            return
        self._arrays = arrays
        self._device_count = count

    @property
    def backend_type(self) -> BackendType:
        """What it runs on."""
        return BackendType.CUDA

    @property
    def is_available(self) -> bool:
        """Whether it can be used on this machine."""
        return self._arrays is not None

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
        """Where arrays come from, or an error that says why there are none."""
        if self._arrays is None:
            raise CUDAError(f"CUDA not available: {self._reason}")
        return self._arrays

    def _failed(self, what: str, error: Exception) -> CUDAError:
        """What is raised for an error: one of ours as it is, so that its class stays."""
        return error if isinstance(error, CUDAError) else CUDAError(f"{what}: {error}")

    def set_device(self, device_id: int) -> None:
        """Use another device; does nothing when there is none.

        Raises
        ------
        CUDAError
            There is no such device.
        """
        if self._arrays is None:
            return
        if not 0 <= device_id < self._device_count:
            raise CUDAError(f"There is no device {device_id}: there are {self._device_count}")
        self._arrays.use(device_id)
        self._device_id = device_id

    def allocate(self, shape: tuple[int, ...], dtype: DTypeLike) -> Any:
        """Make an array of unknown content.

        Raises
        ------
        CUDAError
            There is no device, or no memory.
        """
        arrays = self._require()
        try:
            return arrays.empty(shape, dtype)
        except Exception as error:
            what = f"Failed to allocate {shape} of {np.dtype(dtype)}"
            raise self._failed(what, error) from error

    def allocate_zeros(self, shape: tuple[int, ...], dtype: DTypeLike) -> Any:
        """Make an array of zeros; see `allocate`."""
        arrays = self._require()
        try:
            return arrays.zeros(shape, dtype)
        except Exception as error:
            what = f"Failed to allocate {shape} of {np.dtype(dtype)}"
            raise self._failed(what, error) from error

    def free(self, array: Any) -> None:
        """Do nothing: an array goes when nobody refers to it any more."""

    def copy_to_device(self, host_array: NDArray[Any]) -> Any:
        """Copy an array to the device.

        Raises
        ------
        CUDAError
            There is no device, or the copy failed.
        """
        arrays = self._require()
        try:
            return arrays.from_host(host_array)
        except Exception as error:
            raise self._failed("Failed to copy to the device", error) from error

    def copy_to_host(self, device_array: Any) -> NDArray[Any]:
        """Copy an array to main memory; see `copy_to_device`."""
        arrays = self._require()
        try:
            return np.asarray(arrays.to_host(device_array))
        except Exception as error:
            raise self._failed("Failed to copy to the host", error) from error

    def synchronize(self) -> None:
        """Wait until the device has done what it was given."""
        if self._arrays is not None:
            self._arrays.synchronize(self._device_id)

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
            A compiled kernel of ours or of numba, a RawKernel of CuPy (or an object whose `kernel`
            is one), or any other callable, which is called with the arguments.
        grid_size, block_size
            Blocks, and threads of a block, in each dimension.
        *args, **kwargs
            The kernel's arguments.

        Returns
        -------
        KernelExecutionResult
            With what the kernel raised.
        """
        if self._arrays is None:
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
        """Compile a kernel: its CUDA C++ if it has some (see `cuda_source`), else with numba.

        Raises
        ------
        CUDAError
            There is no device, or it does not compile.
        """
        self._require()
        from pydotcompute.compilation.compiler import KernelCompiler

        if not hasattr(func, "__cuda_source__") and not (found := _optional.numba_cuda()):
            raise CUDAError(f"CUDA not available: {found.reason}")
        try:
            return KernelCompiler().compile(func, signature=signature).kernel
        except Exception as error:
            raise CUDAError(f"Failed to compile a kernel: {error}") from error

    def create_stream(self) -> Any:
        """Make a stream.

        Raises
        ------
        CUDAError
            There is no device.
        """
        return self._require().new_stream()

    def get_memory_info(self) -> dict[str, int]:
        """Measure the device's memory in bytes: free, total, used; zeros when there is none."""
        if self._arrays is None:
            return {"free": 0, "total": 0, "used": 0}
        free, total = self._arrays.memory_info(self._device_id)
        return {"free": free, "total": total, "used": total - free}

    def __repr__(self) -> str:
        if self._arrays is None:
            return "CUDABackend(available=False)"
        free_mb = self.get_memory_info()["free"] / 2**20
        return (
            f"CUDABackend(device={self._device_id}, devices={self._device_count}, "
            f"memory_free={free_mb:.0f}MB)"
        )


def _prebuilt(name: str) -> Any:
    if not _optional.cuda() and not _optional.numba_cuda():
        return None
    home = "_cuda_kernels" if _optional.cuda() else "_numba_kernels"
    return getattr(importlib.import_module(f"pydotcompute.backends.{home}"), name)


def get_vector_add_kernel() -> Any:
    """Get a CUDA kernel `(a, b, out)` that adds one-dimensional arrays, or None without CUDA."""
    return _prebuilt("vector_add")


def get_matrix_multiply_kernel() -> Any:
    """Get a CUDA kernel `(A, B, C)` that multiplies matrices into C, or None without CUDA."""
    return _prebuilt("matrix_multiply")
