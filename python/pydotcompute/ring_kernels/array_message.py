"""Messages with arrays that stay where they are.

Inside a process the arrays of an `ArrayMessage` travel by reference: a reader of its bytes gets the
very arrays, so both sides share one memory and see each other's writes; `copy()` an array that must
not change. The bytes carry the data as well, so in another process, or once the array is gone, the
reader gets an array of its own with what it held when the message was written - never zeros.

Nothing is kept for a message: an array lives as long as somebody holds it.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from typing import Any, TypeVar, cast, dataclass_transform, overload
from uuid import UUID

from pydotcompute.ring_kernels.buffer_registry import get_buffer_registry
from pydotcompute.ring_kernels.message import (
    RingKernelMessage,
    _make,
    _native_constructor,
)

__all__ = ["ArrayMessage", "array_message"]

T = TypeVar("T")


@dataclasses.dataclass
class ArrayMessage(RingKernelMessage):
    """A message whose array fields travel by reference inside a process.

    Derive a dataclass from it, or use `@array_message`. Fields whose names begin with an underscore
    are not written. Arrays inside containers are written with their data, and read back read-only.

    Raises
    ------
    MessageSerializationError
        `serialize`: a value has no form in a message.
    MessageDeserializationError
        `deserialize`: the bytes are no such message, or refer to an array that is gone without
        carrying its data (bytes of PyDotCompute 0.2).
    """

    __array_message__ = True

    _array_buffer_ids: dict[str, UUID] = dataclasses.field(
        default_factory=dict, repr=False, compare=False, kw_only=True
    )

    def release_arrays(self) -> int:
        """Let no reader find the arrays of this message by reference any more.

        Returns
        -------
        int
            How many there were. Readers get the data that the bytes carry from here on.
        """
        registry = get_buffer_registry()
        ids = list(self._array_buffer_ids.values())
        self._array_buffer_ids.clear()
        return sum(registry.release(buffer_id) for buffer_id in ids)


_native_constructor(ArrayMessage, ArrayMessage.__init__)


def _register(message: Any, field: str, array: Any) -> tuple[str, str]:
    """Return the id under which a reader in this process finds the array, and its device."""
    registry = get_buffer_registry()
    ids: dict[str, UUID] = message._array_buffer_ids
    known = ids.get(field)
    if known is not None:
        handle = registry.get_handle(known)
        if handle is not None and registry.get(known) is array:
            return known.hex, handle.device
        registry.release(known)
    handle = registry.register_weakly(array)
    ids[field] = handle.buffer_id
    return handle.buffer_id.hex, handle.device


def _find_array(hex_id: str, dtype: str, shape: tuple[int, ...]) -> Any:
    """Return the array of this process with this id, if it is the one that is meant; or None."""
    array = get_buffer_registry().get(UUID(hex_id))
    if array is None or str(array.dtype) != dtype or tuple(array.shape) != tuple(shape):
        return None
    return array


@overload
def array_message(cls: type[T]) -> type[T]: ...
@overload
def array_message(cls: None = None) -> Callable[[type[T]], type[T]]: ...


@dataclass_transform(eq_default=True, field_specifiers=(dataclasses.field, dataclasses.Field))
def array_message(cls: type[T] | None = None) -> type[T] | Callable[[type[T]], type[T]]:
    """Turn a class into an `ArrayMessage`; used as `@array_message` or `@array_message()`.

    As `@message`, except that array fields travel by reference, and that the class is not known to
    `get_message_type`.

    Examples
    --------
    >>> import numpy as np
    >>> @array_message
    ... class Samples:
    ...     values: np.ndarray
    >>> samples = Samples(np.arange(3.0))
    >>> Samples.deserialize(samples.serialize()).values is samples.values
    True
    """
    if cls is None:
        return array_message
    return cast("type[T]", _make(cls, ArrayMessage, sys._getframe(1)))
