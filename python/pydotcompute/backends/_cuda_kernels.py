"""The kernels of the CUDA backend, compiled from CUDA C++ for the device that is used."""

from __future__ import annotations

from pydotcompute._native import CUDA_KERNELS, CudaDevice
from pydotcompute.compilation.compiler import compile_source
from pydotcompute.compilation.launch import PrebuiltKernel
from pydotcompute.core.device_array import DeviceArray

__all__ = ["matrix_multiply", "vector_add"]


def _image(device: CudaDevice) -> bytes:
    return compile_source(CUDA_KERNELS, "compute", device.compute_capability)


def _vector(arrays: list[DeviceArray]) -> tuple[int, ...]:
    """The number of elements."""
    a, b, out = (array.shape for array in arrays)
    if not (len(a) == 1 and a == b == out):
        raise ValueError(f"vector_add() takes three equally long vectors, not {a}, {b}, {out}")
    return a


def _matrices(arrays: list[DeviceArray]) -> tuple[int, ...]:
    """Rows, inner and columns."""
    a, b, c = (array.shape for array in arrays)
    if not (len(a) == len(b) == 2 and a[1] == b[0] and c == (a[0], b[1])):
        raise ValueError(f"matrix_multiply() cannot multiply {a} by {b} into {c}")
    return a[0], a[1], b[1]


vector_add = PrebuiltKernel("vector_add", _image, _vector)
matrix_multiply = PrebuiltKernel("matrix_multiply", _image, _matrices)
