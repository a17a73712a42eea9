"""Ring kernels: persistent actors that receive messages and send replies.

Importing it installs uvloop's event loop policy where uvloop is there, unless the environment
variable ``PYDOTCOMPUTE_NO_UVLOOP`` is not empty.
"""

from typing import TYPE_CHECKING

from pydotcompute.ring_kernels._loop import (
    create_optimized_loop,
    get_loop_info,
    install_eager_task_factory,
    install_uvloop,
    is_eager_tasks_installed,
    is_uvloop_available,
    is_uvloop_installed,
    optimize_current_loop,
)

install_uvloop()

# The policy comes first, so that whatever is imported below finds it.
from pydotcompute import _lazy  # noqa: E402
from pydotcompute.ring_kernels.array_message import ArrayMessage, array_message  # noqa: E402
from pydotcompute.ring_kernels.lifecycle import KernelState, RingKernel  # noqa: E402
from pydotcompute.ring_kernels.message import RingKernelMessage, message  # noqa: E402
from pydotcompute.ring_kernels.pool import KernelPool  # noqa: E402
from pydotcompute.ring_kernels.runtime import RingKernelRuntime  # noqa: E402

if TYPE_CHECKING:
    from pydotcompute.ring_kernels.buffer_registry import (
        BufferHandle,
        BufferRegistry,
        get_buffer,
        get_buffer_registry,
        register_buffer,
        release_buffer,
    )
    from pydotcompute.ring_kernels.cython_kernel import (
        CythonKernelConfig,
        CythonKernelContext,
        CythonKernelState,
        CythonRingKernel,
        is_cython_kernel_available,
    )
    from pydotcompute.ring_kernels.fast_queue import FastMessageQueue, PriorityBand, RingBuffer
    from pydotcompute.ring_kernels.queue import MessageQueue
    from pydotcompute.ring_kernels.sync_queue import SPSCQueue, SyncQueue
    from pydotcompute.ring_kernels.telemetry import GPUMonitor, RingKernelTelemetry
    from pydotcompute.ring_kernels.threaded_kernel import (
        ThreadedKernelConfig,
        ThreadedKernelContext,
        ThreadedKernelPool,
        ThreadedKernelState,
        ThreadedRingKernel,
    )
else:
    __getattr__, __dir__ = _lazy.attach(
        __name__,
        {
            "buffer_registry": [
                "BufferHandle",
                "BufferRegistry",
                "get_buffer",
                "get_buffer_registry",
                "register_buffer",
                "release_buffer",
            ],
            "cython_kernel": [
                "CythonKernelConfig",
                "CythonKernelContext",
                "CythonKernelState",
                "CythonRingKernel",
                "is_cython_kernel_available",
            ],
            "fast_queue": ["FastMessageQueue", "PriorityBand", "RingBuffer"],
            "queue": ["MessageQueue"],
            "sync_queue": ["SPSCQueue", "SyncQueue"],
            "telemetry": ["GPUMonitor", "RingKernelTelemetry"],
            "threaded_kernel": [
                "ThreadedKernelConfig",
                "ThreadedKernelContext",
                "ThreadedKernelPool",
                "ThreadedKernelState",
                "ThreadedRingKernel",
            ],
        },
    )

__all__ = [
    "ArrayMessage",
    "BufferHandle",
    "BufferRegistry",
    "CythonKernelConfig",
    "CythonKernelContext",
    "CythonKernelState",
    "CythonRingKernel",
    "FastMessageQueue",
    "GPUMonitor",
    "KernelPool",
    "KernelState",
    "MessageQueue",
    "PriorityBand",
    "RingBuffer",
    "RingKernel",
    "RingKernelMessage",
    "RingKernelRuntime",
    "RingKernelTelemetry",
    "SPSCQueue",
    "SyncQueue",
    "ThreadedKernelConfig",
    "ThreadedKernelContext",
    "ThreadedKernelPool",
    "ThreadedKernelState",
    "ThreadedRingKernel",
    "array_message",
    "create_optimized_loop",
    "get_buffer",
    "get_buffer_registry",
    "get_loop_info",
    "install_eager_task_factory",
    "install_uvloop",
    "is_cython_kernel_available",
    "is_eager_tasks_installed",
    "is_uvloop_available",
    "is_uvloop_installed",
    "message",
    "optimize_current_loop",
    "register_buffer",
    "release_buffer",
]
