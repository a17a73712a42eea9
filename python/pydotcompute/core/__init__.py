"""Devices, memory and the running of kernels."""

from pydotcompute.core.accelerator import Accelerator
from pydotcompute.core.memory_pool import MemoryPool
from pydotcompute.core.orchestrator import ComputeOrchestrator
from pydotcompute.core.unified_buffer import BufferState, UnifiedBuffer

__all__ = ["Accelerator", "BufferState", "ComputeOrchestrator", "MemoryPool", "UnifiedBuffer"]
