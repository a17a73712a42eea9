"""The CUDA devices of this process, and where their arrays come from.

`NativeArrays` takes memory by our own calls of the driver; the arrays are CuPy's where CuPy is
installed, and `DeviceArray`s elsewhere. `CupyArrays` is for a driver that only CuPy can use. Both
offer the same.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import sys
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from pydotcompute import _optional
from pydotcompute._native import CudaDevice, CudaStream, CudaToolkit, HostPool
from pydotcompute.core import device_array
from pydotcompute.core.device_array import LEGACY_STREAM, DeviceArray

__all__ = ["CudaRuntime", "CupyArrays", "NativeArrays", "toolkit", "using"]


class CudaRuntime:
    """The devices that this process may use; one object, made by `_optional.cuda`. Thread-safe.

    Attributes
    ----------
    count
        How many devices there are.
    current
        The device of new arrays.
    arrays
        Where they come from.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self.current = 0
        self.arrays = NativeArrays(self)
        self._devices: dict[int, CudaDevice] = {}
        self._pinned: dict[int, HostPool] = {}
        self._lock = threading.Lock()

    def device(self, ordinal: int | None = None) -> CudaDevice:
        """Get a device; None: the current one.

        Raises
        ------
        CUDAError
            There is no such device, or it cannot be used.
        """
        number = self.current if ordinal is None else ordinal
        with self._lock:
            if number not in self._devices:
                self._devices[number] = CudaDevice(number)
            return self._devices[number]

    def pinned_pool(self) -> HostPool:
        """Get the pool of memory that is pinned for the current device."""
        device = self.device()
        with self._lock:
            if device.ordinal not in self._pinned:
                self._pinned[device.ordinal] = device.pinned_pool()
            return self._pinned[device.ordinal]

    def used_devices(self) -> list[CudaDevice]:
        """Get the devices that were used so far."""
        with self._lock:
            return list(self._devices.values())

    def used_pinned_pools(self) -> list[HostPool]:
        """Get the pools of pinned memory that were used so far."""
        with self._lock:
            return list(self._pinned.values())

    def default_stream(self, device: CudaDevice) -> CudaStream:
        """Get the stream of work that names none: that of `using`, or CuPy's current one, or else
        the legacy stream, which is also the default of numba and PyTorch."""
        chosen = _using.get()
        if chosen is not None:
            return device_array.as_stream(device, chosen)
        cupy = sys.modules.get("cupy")
        current = getattr(getattr(cupy, "cuda", None), "get_current_stream", None)
        handle = 0 if current is None else int(current().ptr)
        return device.stream_at(handle or LEGACY_STREAM)


_using: contextvars.ContextVar[Any] = contextvars.ContextVar("pydotcompute_using", default=None)


@contextlib.contextmanager
def using(stream: Any) -> Iterator[None]:
    """Make a stream the one of launches that name none, for this task and thread."""
    token = _using.set(stream)
    try:
        yield
    finally:
        _using.reset(token)


@functools.cache
def toolkit() -> CudaToolkit:
    """Find NVIDIA's compiler and linker, which need no device.

    Raises
    ------
    CUDAError
        They are not installed: which, and what to do.
    """
    return CudaToolkit([sys.prefix])


class NativeArrays:
    """Arrays in memory of a device's stream-ordered pool. Copies are made on a stream of their own,
    behind all that was given to the streams that other libraries use by default."""

    def __init__(self, runtime: CudaRuntime) -> None:
        self._runtime = runtime

    def _named(self, array: DeviceArray) -> Any:
        """The array as the user knows arrays."""
        cupy = _optional.cupy().module
        return array if cupy is None else cupy.asarray(array)

    def empty(self, shape: Any, dtype: DTypeLike) -> Any:
        """Make an array of unknown content."""
        return self._named(device_array.empty(self._runtime.device(), shape, dtype))

    def zeros(self, shape: Any, dtype: DTypeLike) -> Any:
        """Make an array of zeros."""
        return self._named(device_array.zeros(self._runtime.device(), shape, dtype))

    def from_host(self, host: Any) -> Any:
        """Copy an array to the device."""
        return self._named(device_array.from_host(self._runtime.device(), host))

    def _of(self, array: Any) -> DeviceArray:
        """The array as we know arrays."""
        if isinstance(array, DeviceArray):
            return array
        # CuPy numbers devices by `id`, PyTorch by `index`.
        where = getattr(array, "device", None)
        ordinal = getattr(where, "id", getattr(where, "index", None))
        return device_array.asarray(self._runtime.device(ordinal), array)

    def upload(self, array: Any, host: NDArray[Any]) -> None:
        """Copy an array of main memory into one of the device."""
        self._of(array).set(host)

    def download(self, array: Any, host: NDArray[Any], stream: Any = None) -> None:
        """Copy an array of the device, behind what the stream was given, into main memory."""
        found = self._of(array)
        if stream is not None:
            device = self._runtime.device(found.device)
            device.stream.follow(device_array.as_stream(device, stream))
        found.get(host)

    def to_host(self, array: Any) -> NDArray[Any]:
        """Copy an array of the device, ours or another library's, to main memory."""
        if not isinstance(array, DeviceArray) and hasattr(array, "get"):
            return np.asarray(array.get())
        return self._of(array).get()

    def pinned(self, nbytes: int) -> Any:
        """Take pinned memory, of unknown content."""
        return self._runtime.pinned_pool().allocate(nbytes, zeroed=False)

    def new_stream(self) -> Any:
        """Make a stream that waits for no other: CuPy's where that is installed, else ours."""
        cupy = _optional.cupy().module
        if cupy is not None:
            return cupy.cuda.Stream(non_blocking=True)
        return self._runtime.device().new_stream()

    def synchronize(self, ordinal: int | None = None) -> None:
        """Wait for what the device was given on its default streams, and by us."""
        device = self._runtime.device(ordinal)
        self._runtime.default_stream(device).synchronize()
        device.stream_at(LEGACY_STREAM).synchronize()
        device.stream.synchronize()

    def memory_info(self, ordinal: int | None = None) -> tuple[int, int]:
        """Free and total bytes of a device."""
        return self._runtime.device(ordinal).memory_info()

    def use(self, ordinal: int) -> None:
        """Make a device the current one, for CuPy too."""
        self._runtime.current = ordinal
        if (cupy := _optional.cupy().module) is not None:
            cupy.cuda.Device(ordinal).use()

    # --- the pool ---

    def _malloc(self, nbytes: int) -> Any:
        """Allocate for CuPy, in the order of its current stream."""
        cuda = _optional.cupy().module.cuda
        device = self._runtime.device(int(cuda.Device().id))
        stream = cuda.get_current_stream()
        memory = device.allocate(nbytes, device_array.as_stream(device, stream))
        # The stream last, so that it outlives the memory, which is freed in its order.
        owner = (memory, stream)
        owned = cuda.UnownedMemory(memory.address, nbytes, owner, device.ordinal)
        return cuda.MemoryPointer(owned, 0)

    def enable_pool(self) -> None:
        """Let CuPy, where it is installed, take its memory from the pool."""
        if (cupy := _optional.cupy().module) is not None:
            cupy.cuda.set_allocator(self._malloc)

    def disable_pool(self) -> None:
        """Let CuPy take its memory from CUDA."""
        if (cupy := _optional.cupy().module) is not None:
            cupy.cuda.set_allocator(None)

    def pool_stats(self) -> tuple[int, int, int]:
        """Bytes in use, bytes in all, and free blocks, which the driver does not tell: 0."""
        stats = self._runtime.device().pool_stats()
        return stats["used_bytes"] or 0, stats["total_bytes"] or 0, 0

    def pinned_stats(self) -> tuple[int, int, int]:
        """The same of pinned memory."""
        books = [pool.stats() for pool in self._runtime.used_pinned_pools()]
        names = ("used_bytes", "total_bytes", "cached_blocks")
        used, total, blocks = (sum(book[name] or 0 for book in books) for name in names)
        return used, total, blocks

    def set_pool_limit(self, limit_bytes: int | None) -> None:
        """Bound the pools of the devices."""
        for ordinal in range(self._runtime.count):
            self._runtime.device(ordinal).set_pool_limit(limit_bytes)
        for pool in self._runtime.used_pinned_pools():
            pool.set_limit(limit_bytes)

    def trim_pool(self, keep_bytes: int = 0) -> int:
        """Give back what nobody uses; returns how many bytes went."""
        freed = sum(device.trim_pool(keep_bytes) for device in self._runtime.used_devices())
        return freed + sum(pool.trim(keep_bytes) for pool in self._runtime.used_pinned_pools())


class CupyArrays:
    """CuPy's arrays and pools, where the driver is too old for us."""

    def __init__(self, cupy: Any) -> None:
        self._cupy = cupy

    def empty(self, shape: Any, dtype: DTypeLike) -> Any:
        """Make an array of unknown content."""
        return self._cupy.empty(shape, dtype=dtype)

    def zeros(self, shape: Any, dtype: DTypeLike) -> Any:
        """Make an array of zeros."""
        return self._cupy.zeros(shape, dtype=dtype)

    def from_host(self, host: Any) -> Any:
        """Copy an array to the device."""
        return self._cupy.array(host)

    def upload(self, array: Any, host: NDArray[Any]) -> None:
        """Copy an array of main memory into one of the device."""
        array.set(host)

    def download(self, array: Any, host: NDArray[Any], stream: Any = None) -> None:
        """Copy an array of the device, behind what the stream was given, into main memory."""
        if stream is not None:
            stream.synchronize()
        array.get(out=host)

    def to_host(self, array: Any) -> NDArray[Any]:
        """Copy an array of the device, CuPy's or another library's, to main memory."""
        return np.asarray((array if hasattr(array, "get") else self._cupy.asarray(array)).get())

    def pinned(self, nbytes: int) -> Any:
        """Take pinned memory, of unknown content."""
        return self._cupy.cuda.alloc_pinned_memory(nbytes)

    def new_stream(self) -> Any:
        """Make a stream that waits for no other."""
        return self._cupy.cuda.Stream(non_blocking=True)

    def synchronize(self, ordinal: int | None = None) -> None:
        """Wait for what the device was given on its default stream."""
        self._cupy.cuda.Stream.null.synchronize()

    def memory_info(self, ordinal: int | None = None) -> tuple[int, int]:
        """Free and total bytes of the current device."""
        free, total = self._cupy.cuda.runtime.memGetInfo()
        return int(free), int(total)

    def use(self, ordinal: int) -> None:
        """Make a device the current one."""
        self._cupy.cuda.Device(ordinal).use()

    def _pools(self) -> tuple[Any, Any]:
        return (
            self._cupy.get_default_memory_pool(),
            self._cupy.get_default_pinned_memory_pool(),
        )

    def enable_pool(self) -> None:
        """Let CuPy take its memory from its pools."""
        device, pinned = self._pools()
        self._cupy.cuda.set_allocator(device.malloc)
        self._cupy.cuda.set_pinned_memory_allocator(pinned.malloc)

    def disable_pool(self) -> None:
        """Let CuPy take its memory from CUDA."""
        self._cupy.cuda.set_allocator(None)
        self._cupy.cuda.set_pinned_memory_allocator(None)

    def pool_stats(self) -> tuple[int, int, int]:
        """Bytes in use, bytes in all, and free blocks."""
        pool = self._pools()[0]
        return int(pool.used_bytes()), int(pool.total_bytes()), int(pool.n_free_blocks())

    def pinned_stats(self) -> tuple[int, int, int]:
        """The same of pinned memory, of which CuPy tells only the free blocks."""
        return 0, 0, int(self._pools()[1].n_free_blocks())

    def set_pool_limit(self, limit_bytes: int | None) -> None:
        """Bound the device's pool."""
        self._pools()[0].set_limit(size=limit_bytes or 0)

    def trim_pool(self, keep_bytes: int = 0) -> int:
        """Give back what nobody uses; CuPy does not tell how much that is."""
        for pool in self._pools():
            pool.free_all_blocks()
        return 0
