"""The arrays of this process that messages refer to by id.

An `ArrayMessage` names its arrays by their ids here, so that a reader in the same process gets the
very arrays. What `register` takes is kept until it is released; what a message refers to is kept by
whoever else holds the array, so nothing leaks. All of it is thread-safe.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID

from pydotcompute import _native

__all__ = [
    "BufferHandle",
    "BufferRegistry",
    "get_buffer",
    "get_buffer_registry",
    "register_buffer",
    "release_buffer",
]


@dataclass
class BufferHandle:
    """What is known about a registered array.

    Parameters
    ----------
    buffer_id
        Its id.
    shape
        Its shape, in elements.
    dtype
        The name of its element type: "float32".
    device
        Where its data lie: "cpu", or "cuda:N".
    size_bytes
        The size of its data.
    ref_count
        How many hold it, by the account of `increment_ref` and `decrement_ref`.
    """

    buffer_id: UUID
    shape: tuple[int, ...]
    dtype: str
    device: str
    size_bytes: int
    ref_count: int = 1

    def __repr__(self) -> str:
        """Return the parts that tell arrays apart."""
        return (
            f"BufferHandle(id={str(self.buffer_id)[:8]}, shape={self.shape}, "
            f"dtype={self.dtype}, device={self.device})"
        )


class _Entry:
    """An array, or a way to it, and its handle."""

    __slots__ = ("array", "handle")

    def __init__(self, array: Callable[[], Any], handle: BufferHandle) -> None:
        self.array = array
        self.handle = handle


def _device_of(array: Any) -> str:
    device = getattr(array, "device", None)
    number = getattr(device, "id", None)
    return f"cuda:{number}" if isinstance(number, int) else "cpu"


class BufferRegistry:
    """The registry of this process: one object, however often it is constructed."""

    _instance: BufferRegistry | None = None
    _lock = threading.RLock()

    _entries: dict[UUID, _Entry]
    _counts: dict[str, int]

    def __new__(cls) -> BufferRegistry:
        """Return the one registry."""
        with cls._lock:
            if cls._instance is None:
                made = super().__new__(cls)
                made._entries = {}
                made._counts = dict.fromkeys(
                    ("registered", "retrieved", "released", "bytes_registered"), 0
                )
                cls._instance = made
            return cls._instance

    def register(self, array: Any) -> BufferHandle:
        """Keep an array (of numpy or CuPy; the array itself, no copy) until it is released.

        Returns
        -------
        BufferHandle
            With a new id. A snapshot: changing it changes nothing here.
        """
        return self._add(array, lambda: array)

    def register_weakly(self, array: Any) -> BufferHandle:
        """As `register`, but the array goes when nobody else holds it any more."""
        buffer_id = _native.new_message_id()
        entries = weakref.ref(self)

        def forget(_: object) -> None:
            registry = entries()
            if registry is not None:
                registry.release(buffer_id)

        return self._add(array, weakref.ref(array, forget), buffer_id)

    def _add(
        self, array: Any, way: Callable[[], Any], buffer_id: UUID | None = None
    ) -> BufferHandle:
        handle = BufferHandle(
            buffer_id=_native.new_message_id() if buffer_id is None else buffer_id,
            shape=tuple(array.shape),
            dtype=str(array.dtype),
            device=_device_of(array),
            size_bytes=int(array.nbytes),
        )
        with self._lock:
            self._entries[handle.buffer_id] = _Entry(way, handle)
            self._counts["registered"] += 1
            self._counts["bytes_registered"] += handle.size_bytes
        return replace(handle)

    def get(self, buffer_id: UUID) -> Any:
        """Return the array with this id - the same object that was registered - or None."""
        with self._lock:
            entry = self._entries.get(buffer_id)
            if entry is None:
                return None
            array = entry.array()
            if array is not None:
                self._counts["retrieved"] += 1
            return array

    def get_handle(self, buffer_id: UUID) -> BufferHandle | None:
        """Return what is known about an array - a snapshot - or None."""
        with self._lock:
            entry = self._entries.get(buffer_id)
            return replace(entry.handle) if entry is not None else None

    def release(self, buffer_id: UUID) -> bool:
        """Forget an array at once, whatever its count; say whether it was there.

        Those who count use `decrement_ref`, which releases an array with its last holder.
        """
        with self._lock:
            entry = self._entries.pop(buffer_id, None)
            if entry is not None:
                self._counts["released"] += 1
        # The array goes after the lock is released.
        return entry is not None

    def increment_ref(self, buffer_id: UUID) -> bool:
        """Count one more holder; say whether the array is there."""
        with self._lock:
            entry = self._entries.get(buffer_id)
            if entry is None:
                return False
            entry.handle.ref_count += 1
            return True

    def decrement_ref(self, buffer_id: UUID) -> int:
        """Count one holder less; the last one releases the array.

        Returns
        -------
        int
            How many are left; -1 if the id is not known.
        """
        with self._lock:
            entry = self._entries.get(buffer_id)
            if entry is None:
                return -1
            entry.handle.ref_count -= 1
            left = entry.handle.ref_count
            if left > 0:
                return left
        self.release(buffer_id)
        return 0

    def clear(self) -> int:
        """Forget all arrays; return how many there were."""
        with self._lock:
            entries = list(self._entries.values())
            self._entries.clear()
            self._counts["released"] += len(entries)
        return len(entries)

    def get_stats(self) -> dict[str, int]:
        """Return counts: registered, retrieved, released, bytes_registered, active_buffers."""
        with self._lock:
            return {**self._counts, "active_buffers": len(self._entries)}

    def __len__(self) -> int:
        """Return how many arrays there are."""
        return len(self._entries)

    def __contains__(self, buffer_id: object) -> bool:
        """Say whether there is an array with this id."""
        return buffer_id in self._entries


def get_buffer_registry() -> BufferRegistry:
    """Return the registry of this process."""
    return BufferRegistry()


def register_buffer(array: Any) -> BufferHandle:
    """Register an array with the registry of this process: see `BufferRegistry.register`."""
    return get_buffer_registry().register(array)


def get_buffer(buffer_id: UUID) -> Any:
    """Return an array of the registry of this process, or None."""
    return get_buffer_registry().get(buffer_id)


def release_buffer(buffer_id: UUID) -> bool:
    """Forget an array of the registry of this process; say whether it was there."""
    return get_buffer_registry().release(buffer_id)
