"""The kernels of the CUDA backend for numba's simulator, and for drivers too old for ours.

Imported only where numba has a device.
"""

from __future__ import annotations

import importlib
from typing import Any

cuda: Any = importlib.import_module("numba.cuda")


def _vector_add(a: Any, b: Any, out: Any) -> None:
    """Add `a` and `b`, one element for each thread."""
    i = cuda.grid(1)
    if i < out.size:
        out[i] = a[i] + b[i]


def _matrix_multiply(A: Any, B: Any, C: Any) -> None:
    """Multiply `A` and `B`, one element of `C` for each thread."""
    row, column = cuda.grid(2)
    if row < C.shape[0] and column < C.shape[1]:
        total = A[row, 0] * B[0, column]
        for k in range(1, A.shape[1]):
            total += A[row, k] * B[k, column]
        C[row, column] = total


vector_add: Any = cuda.jit(_vector_add)
matrix_multiply: Any = cuda.jit(_matrix_multiply)
