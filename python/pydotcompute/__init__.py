"""Ring kernels: actors for compute, on a Rust core.

Importing the package installs uvloop's event loop policy where uvloop is there, unless the
environment variable ``PYDOTCOMPUTE_NO_UVLOOP`` is not empty; it has no other side effect.
"""

from typing import TYPE_CHECKING

from pydotcompute import _lazy
from pydotcompute.decorators import gpu_kernel, kernel, ring_kernel
from pydotcompute.ring_kernels import RingKernelMessage, RingKernelRuntime, message

if TYPE_CHECKING:
    from pydotcompute.core import (
        Accelerator,
        BufferState,
        ComputeOrchestrator,
        MemoryPool,
        UnifiedBuffer,
    )
else:
    __getattr__, __dir__ = _lazy.attach(
        __name__,
        {
            "core": [
                "Accelerator",
                "BufferState",
                "ComputeOrchestrator",
                "MemoryPool",
                "UnifiedBuffer",
            ],
            "handlers": [],
        },
    )

__version__ = "0.2.0"

__all__ = [
    "Accelerator",
    "BufferState",
    "ComputeOrchestrator",
    "MemoryPool",
    "RingKernelMessage",
    "RingKernelRuntime",
    "UnifiedBuffer",
    "__version__",
    "gpu_kernel",
    "kernel",
    "message",
    "ring_kernel",
]
