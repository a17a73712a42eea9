"""Libraries that may be there or not: found when first needed, once, and never with an exception.

A library counts as there when it imports *and* its driver answers; otherwise the reason says what
went wrong. `forget` makes the next call look again.
"""

from __future__ import annotations

import functools
import importlib
from typing import Any

__all__ = [
    "Found",
    "cuda",
    "cupy",
    "device_arrays",
    "forget",
    "mlx",
    "no_cuda_reason",
    "numba",
    "numba_cuda",
]


class Found:
    """What became of looking for a library.

    Attributes
    ----------
    module
        The module, or None.
    reason
        Why there is none; empty when there is one.
    """

    __slots__ = ("module", "reason")

    def __init__(self, module: Any, reason: str = "") -> None:
        self.module = module
        self.reason = reason

    def __bool__(self) -> bool:
        return self.module is not None


def _missing(name: str, error: BaseException) -> Found:
    if isinstance(error, ModuleNotFoundError):
        return Found(None, f"{name} is not installed")
    return Found(None, f"{name} cannot be used: {type(error).__name__}: {error}")


@functools.cache
def cuda() -> Found:
    """Find the NVIDIA driver with at least one device; the module is a `CudaRuntime`."""
    # Here, since a program without arrays on devices does not need them.
    from pydotcompute._native import cuda_devices

    try:
        count = cuda_devices()
    except Exception as error:
        return Found(None, str(error))
    if count == 0:
        return Found(None, "the NVIDIA driver sees no device")
    from pydotcompute._cuda import CudaRuntime

    return Found(CudaRuntime(count))


@functools.cache
def cupy() -> Found:
    """Find CuPy with at least one CUDA device."""
    try:
        module = importlib.import_module("cupy")
        count = module.cuda.runtime.getDeviceCount()
    except Exception as error:
        return _missing("CuPy", error)
    return Found(module) if count > 0 else Found(None, "CuPy sees no CUDA device")


@functools.cache
def mlx() -> Found:
    """Find MLX (`mlx.core`) with a Metal device."""
    try:
        module = importlib.import_module("mlx.core")
        usable = bool(module.metal.is_available())
    except Exception as error:
        return _missing("MLX", error)
    return Found(module) if usable else Found(None, "MLX has no Metal device here")


@functools.cache
def numba() -> Found:
    """Find numba."""
    try:
        return Found(importlib.import_module("numba"))
    except Exception as error:
        return _missing("numba", error)


@functools.cache
def numba_cuda() -> Found:
    """Find `numba.cuda` with at least one CUDA device."""
    if not (found := numba()):
        return found
    try:
        module = importlib.import_module("numba.cuda")
        usable = bool(module.is_available())
    except Exception as error:
        return _missing("numba.cuda", error)
    return Found(module) if usable else Found(None, "numba sees no CUDA device")


@functools.cache
def _cupy_arrays(module: Any) -> Any:
    from pydotcompute._cuda import CupyArrays

    return CupyArrays(module)


def device_arrays() -> Any:
    """Find where arrays of CUDA devices come from (see `_cuda`); None where there is no device."""
    runtime = cuda().module
    if runtime is not None:
        return runtime.arrays
    module = cupy().module
    return None if module is None else _cupy_arrays(module)


def no_cuda_reason() -> str:
    """Tell why there are no arrays of CUDA devices: what `dotcompute info` says of the driver."""
    reason, other = cuda().reason, cupy().reason
    return reason if other.endswith("not installed") else f"{reason} ({other})"


def forget() -> None:
    """Forget what was found."""
    for find in (cuda, cupy, mlx, numba, numba_cuda):
        find.cache_clear()
