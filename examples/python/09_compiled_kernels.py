"""Compiled functions: on all cores, and found again only when they are really the same.

Runs with and without numba (`pip install pydotcompute[numba]`).

Run: python examples/python/09_compiled_kernels.py
"""

import asyncio

import numpy as np

from pydotcompute.backends import get_backend
from pydotcompute.compilation import KernelCompiler
from pydotcompute.core import ComputeOrchestrator
from pydotcompute.core.orchestrator import KernelLaunchConfig
from pydotcompute.decorators import kernel


@kernel
def mean_without_nan(values):  # type: ignore[no-untyped-def]
    """Compiled at the first call; NaN stays NaN, although fast math is on."""
    total, count = 0.0, 0
    for value in values:
        if not np.isnan(value):
            total += value
            count += 1
    return total / count


def scaler(factor: float):  # type: ignore[no-untyped-def]
    """Make functions that differ only in what they capture."""

    def scale(x):  # type: ignore[no-untyped-def]
        return x * factor

    return scale


async def main() -> None:
    assert mean_without_nan(np.array([1.0, np.nan, 3.0])) == 2.0

    compiler = KernelCompiler()
    double, triple = compiler.compile(scaler(2.0)), compiler.compile(scaler(3.0))
    assert (double.kernel(10.0), triple.kernel(10.0)) == (20.0, 30.0)
    assert compiler.compile(scaler(2.0)) is double

    cpu = get_backend("cpu")
    result = cpu.execute_kernel(double.kernel, (1,), (1,), np.arange(4.0))
    assert result.success
    print(f"{result.result} in {result.execution_time_ms:.2f} ms on the {double.device}")

    async with ComputeOrchestrator() as orchestrator:
        orchestrator.register_kernel("mean", mean_without_nan)
        record = await orchestrator.launch_kernel("mean", KernelLaunchConfig(), np.ones(1000))
        print(f"{record.kernel_name}: {record.result} in {record.duration_ms:.2f} ms")
        assert record.result == 1.0


if __name__ == "__main__":
    asyncio.run(main())
