"""One buffer, seen by everyone without a copy; memory that is used again.

Run: python examples/python/08_unified_memory.py
"""

import numpy as np

from pydotcompute.core import Accelerator, BufferState, MemoryPool, UnifiedBuffer


def main() -> None:
    device = Accelerator().current_device
    print(f"{device.name}: {device.multiprocessor_count} cores, {device.total_memory_gb:.1f} GiB")

    # NumPy, DLPack and the buffer protocol look at the same memory.
    buffer: UnifiedBuffer[np.float32] = UnifiedBuffer((1000,), np.float32)
    buffer.copy_from(np.linspace(0, 1, 1000))
    through_numpy = np.asarray(buffer)
    through_dlpack = np.from_dlpack(buffer)
    through_numpy[0] = 42
    assert buffer[0] == through_dlpack[0] == memoryview(buffer)[0] == 42

    # The state says which copy is newest; without a GPU there is one copy, and the same states.
    buffer.mark_host_dirty()
    buffer.synchronize()
    assert buffer.state is BufferState.SYNCHRONIZED

    # An enabled pool gives the memory of a buffer that is gone to the next one.
    pool = MemoryPool(max_size_mb=64)
    pool.enable()
    for step in range(100):
        UnifiedBuffer(250_000).fill(step)
    books = pool.get_host_stats()
    print(f"{books['allocations']} buffers, {books['reuses']} of them from memory used before")
    assert books["reuses"] == 99
    pool.disable()
    pool.trim()


if __name__ == "__main__":
    main()
