"""CUDA kernels in numba's simulator, which runs each thread of a launch in Python.

It shows that our kernels and launches are right, not that a device's compiler takes them.
"""

import os
import subprocess
import sys

import pytest

pytest.importorskip("numba", reason="numba is not installed")

PROGRAM = """
import numpy as np
from numba import cuda

from pydotcompute.backends.cuda import get_matrix_multiply_kernel, get_vector_add_kernel
from pydotcompute.core.orchestrator import ComputeOrchestrator, KernelLaunchConfig
from pydotcompute.compilation import KernelCompiler
from pydotcompute.decorators.kernel import gpu_kernel, kernel

a, out = np.arange(10.0), np.zeros(10)
get_vector_add_kernel()[2, 8](a, a, out)
assert (out == 2 * a).all()

A, B, C = np.arange(6.0).reshape(2, 3), np.arange(12.0).reshape(3, 4), np.zeros((2, 4))
get_matrix_multiply_kernel()[(1, 2), (2, 2)](A, B, C)
assert (C == A @ B).all()


@kernel
def double(x, y):
    i = cuda.grid(1)
    if i < y.size:
        y[i] = 2 * x[i]


x, y = np.ones(300), np.zeros(300)
double(x, y)
assert (y == 2).all()
y[:] = 0
double[1, 32](x, y)
assert y.sum() == 64


@gpu_kernel
def three(y):
    y[0] = 3


three[1, 1](y)
assert y[0] == 3

compiled = KernelCompiler().compile(double._original_func)
assert (compiled.device, compiled.is_compiled) == ("cuda", True)
y[:] = 0
compiled.kernel[1, 32](x, y)
assert y.sum() == 64


async def main():
    async with ComputeOrchestrator() as orchestrator:
        y[:] = 0
        record = await orchestrator.launch_kernel(compiled.kernel, KernelLaunchConfig(1, 32), x, y)
        assert record.success
        assert y.sum() == 64


import asyncio

asyncio.run(main())
print("done")
"""


def test_f10_kernels_and_launches_in_the_simulator():
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={**os.environ, "NUMBA_ENABLE_CUDASIM": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "done\n"
