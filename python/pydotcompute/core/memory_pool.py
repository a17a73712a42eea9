"""The process's memory pool: main memory everywhere, and with CUDA the device's and pinned memory.

The host pool keeps blocks that nobody uses any more by size class and gives them out again, which
saves the system call and the page faults of a new one. A block returns to the pool when the last
array that views it is gone. The device's pool is the driver's: memory is taken and freed in the
order of a stream.
"""

from __future__ import annotations

import math
import sys
import threading
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from pydotcompute import _optional
from pydotcompute._native import HostBuffer, HostPool
from pydotcompute.exceptions import InvalidConfigurationError

__all__ = ["MemoryPool", "PoolStatistics", "configure_memory_pool", "get_memory_pool"]

_MB = 2**20


@dataclass
class PoolStatistics:
    """How much memory a pool holds.

    Attributes
    ----------
    used_bytes
        What is in use.
    total_bytes
        What the pool holds, in use or not.
    n_free_blocks
        How many blocks wait for reuse.
    """

    used_bytes: int
    total_bytes: int
    n_free_blocks: int

    @property
    def free_bytes(self) -> int:
        """What the pool holds and nobody uses, in bytes."""
        return self.total_bytes - self.used_bytes

    @property
    def utilization(self) -> float:
        """The part that is in use, 0.0 to 1.0; 0.0 for an empty pool."""
        return self.used_bytes / self.total_bytes if self.total_bytes else 0.0

    @property
    def used_mb(self) -> float:
        """What is in use, in MiB."""
        return self.used_bytes / _MB

    @property
    def total_mb(self) -> float:
        """What the pool holds, in MiB."""
        return self.total_bytes / _MB


def _size_bytes(name: str, size_mb: int | None) -> int | None:
    """Turn MiB into bytes; None stays None."""
    if size_mb is None:
        return None
    is_number = isinstance(size_mb, (int, float)) and not isinstance(size_mb, bool)
    if not (is_number and math.isfinite(size_mb) and size_mb >= 0):
        raise InvalidConfigurationError(name, size_mb, "must be a size in MiB, 0 or more, or None")
    return int(size_mb * _MB)


class MemoryPool:
    """The process's memory pool. Thread-safe.

    `allocate`, `empty` and `zeros` always take main memory from the pool. While the pool is
    enabled, so do new `UnifiedBuffer`s and the CPU backend's arrays, and with CUDA also CuPy's
    allocations. Arrays of ours on a device always come from its pool.

    Parameters
    ----------
    initial_size_mb
        Main memory to take from the system at once, in MiB.
    max_size_mb
        The limit in MiB, as for `set_limit`.

    Raises
    ------
    InvalidConfigurationError
        A size is negative or no number.
    """

    _instance: MemoryPool | None = None
    _lock = threading.Lock()
    _initialized: bool
    _enabled: bool
    _initial_size_mb: int
    _max_size_mb: int | None
    _cuda_available: bool
    _host: HostPool
    _device: Any

    def __new__(cls, initial_size_mb: int = 0, max_size_mb: int | None = None) -> MemoryPool:
        reserve = _size_bytes("initial_size_mb", initial_size_mb)
        _size_bytes("max_size_mb", max_size_mb)
        with cls._lock:
            pool = cls._instance
            if pool is None:
                pool = super().__new__(cls)
                pool._enabled = False
                pool._initial_size_mb = 0
                pool._max_size_mb = None
                pool._device = _optional.device_arrays()
                pool._cuda_available = pool._device is not None
                pool._host = HostPool()
                pool._initialized = True
                cls._instance = pool
        if max_size_mb is not None:
            pool.set_limit(max_size_mb)
        if reserve:
            pool._host.reserve(reserve)
            pool._initial_size_mb = initial_size_mb
        return pool

    # --- main memory ---

    def allocate(self, nbytes: int, *, zeroed: bool = True) -> HostBuffer:
        """Take main memory from the pool.

        Parameters
        ----------
        nbytes
            How much, in bytes.
        zeroed
            Whether it is to be zero-filled; otherwise its content is unknown.

        Returns
        -------
        HostBuffer
            Writable bytes, aligned to 128, by the buffer protocol. They return to the pool when
            nobody refers to them any more.

        Raises
        ------
        MemoryLimitError
            It would exceed the limit.
        MemoryError
            The system has no more.
        ValueError
            The size is negative.
        """
        if nbytes < 0:
            raise ValueError(f"a size in bytes must be 0 or more, not {nbytes}")
        if nbytes > sys.maxsize:
            raise MemoryError(f"{nbytes} bytes exceed the address space")
        return self._host.allocate(nbytes, zeroed=zeroed)

    def empty(self, shape: tuple[int, ...] | int, dtype: DTypeLike = np.float32) -> NDArray[Any]:
        """Take an array (C order, writable) of unknown content from the pool; see `allocate`."""
        return self._array(shape, dtype, zeroed=False)

    def zeros(self, shape: tuple[int, ...] | int, dtype: DTypeLike = np.float32) -> NDArray[Any]:
        """Take an array (C order, writable) of zeros from the pool; see `allocate`."""
        return self._array(shape, dtype, zeroed=True)

    def _array(
        self, shape: tuple[int, ...] | int, dtype: DTypeLike, *, zeroed: bool
    ) -> NDArray[Any]:
        dims = (shape,) if isinstance(shape, (int, np.integer)) else tuple(shape)
        if any(dim < 0 for dim in dims):
            raise ValueError(f"negative dimensions are not allowed: {dims}")
        kind = np.dtype(dtype)
        if kind.hasobject:
            raise TypeError(f"the pool's memory cannot hold Python objects: {kind}")
        memory: Any = self.allocate(math.prod(dims) * kind.itemsize, zeroed=zeroed)
        return np.ndarray(dims, kind, memory)

    def trim(self, keep_mb: int = 0) -> int:
        """Give memory that nobody uses back to the system, with CUDA also the device's and pinned.

        Parameters
        ----------
        keep_mb
            How much of each may stay for reuse, in MiB.

        Returns
        -------
        int
            How many bytes went back.
        """
        keep_bytes = _size_bytes("keep_mb", keep_mb) or 0
        freed = self._host.trim(keep_bytes)
        if self._cuda_available:
            freed += self._device.trim_pool(keep_bytes)
        return freed

    def get_host_stats(self) -> dict[str, int | None]:
        """Take the books of the host pool, at one instant.

        Returns
        -------
        dict
            In bytes: `used_bytes`, `requested_bytes` (used, without the rounding up to size
            classes), `cached_bytes`, `reserved_bytes`, `total_bytes` (the three together),
            `peak_used_bytes`, `peak_total_bytes`, `limit_bytes` (None: none). Counts:
            `used_blocks`, `cached_blocks`, `allocations`, `reuses`, `refusals`.
        """
        return self._host.stats()

    def reset_peak(self) -> None:
        """Start the host pool's peaks anew from what is held now."""
        self._host.reset_peak()

    # --- both ---

    def enable(self) -> None:
        """Let buffers, and with CUDA also CuPy, take their memory from the pool."""
        if self._cuda_available:
            self._device.enable_pool()
        self._enabled = True

    def disable(self) -> None:
        """Let new buffers take their memory from the system; `trim` frees what is cached."""
        if self._cuda_available:
            self._device.disable_pool()
        self._enabled = False

    @property
    def enabled(self) -> bool:
        """Whether buffers take their memory from the pool."""
        return self._enabled

    def get_stats(self) -> PoolStatistics:
        """Count the device's memory with CUDA, else main memory.

        The driver does not tell the free blocks of a device's pool: they read 0.
        """
        if self._cuda_available:
            return PoolStatistics(*self._device.pool_stats())
        books = self._host.stats()
        return PoolStatistics(
            books["used_bytes"] or 0, books["total_bytes"] or 0, books["cached_blocks"] or 0
        )

    def get_pinned_stats(self) -> PoolStatistics:
        """Count pinned memory: zeros without CUDA."""
        if self._cuda_available:
            return PoolStatistics(*self._device.pinned_stats())
        return PoolStatistics(0, 0, 0)

    def free_all_blocks(self) -> None:
        """Give all memory that nobody uses back to the system."""
        self.trim()

    def free_all_free(self) -> None:
        """Do the same as `free_all_blocks`."""
        self.trim()

    def set_limit(self, size_mb: int | None) -> None:
        """Bound what the pool holds, in use or not.

        Parameters
        ----------
        size_mb
            The limit in MiB; None or 0 lifts it. With CUDA it also bounds the device's pool.

        Raises
        ------
        InvalidConfigurationError
            It is negative or no number.
        """
        limit = _size_bytes("size_mb", size_mb)
        self._host.set_limit(limit or None)
        if self._cuda_available:
            self._device.set_pool_limit(limit or None)
        self._max_size_mb = size_mb

    def __repr__(self) -> str:
        stats = self.get_stats()
        return (
            f"MemoryPool(enabled={self._enabled}, used={stats.used_mb:.2f}MB, "
            f"total={stats.total_mb:.2f}MB, cuda={self._cuda_available})"
        )


def get_memory_pool() -> MemoryPool:
    """Get the process's `MemoryPool`."""
    return MemoryPool()


def configure_memory_pool(
    _initial_size_mb: int = 0,
    max_size_mb: int | None = None,
    enable: bool = True,
    *,
    initial_size_mb: int | None = None,
) -> MemoryPool:
    """Configure the process's `MemoryPool`.

    Parameters
    ----------
    _initial_size_mb
        Main memory to take from the system at once, in MiB; the old name of `initial_size_mb`.
    max_size_mb
        The limit in MiB; None leaves it as it is.
    enable
        Whether to enable the pool; False leaves it as it is.
    initial_size_mb
        Main memory to take from the system at once, in MiB.

    Raises
    ------
    InvalidConfigurationError
        A size is negative or no number.
    """
    reserve = _initial_size_mb if initial_size_mb is None else initial_size_mb
    pool = MemoryPool(reserve, max_size_mb)
    if enable:
        pool.enable()
    return pool
