"""`MessageQueue`: a bounded asyncio queue with 256 priorities.

Made and used outside a running loop too, as far as the calls need not wait; a thread that is not
the loop's may put and get without waiting, and wakes who waits.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any, Generic, TypeVar

from pydotcompute._native import MessageQueueBase

__all__ = ["BackpressureStrategy", "MessageQueue", "PriorityItem"]

T = TypeVar("T")


class BackpressureStrategy(Enum):
    """What a full queue does with one more message."""

    BLOCK = auto()
    """The sender waits until there is room."""
    REJECT = auto()
    """The sender gets a `QueueFullError`."""
    DROP_OLDEST = auto()
    """The oldest message of the lowest priority makes room."""


@dataclass(order=True)
class PriorityItem(Generic[T]):
    """A message with its place in a priority queue; the message itself is not compared."""

    priority: int
    sequence: int
    message: T = field(compare=False)


class MessageQueue(MessageQueueBase[T]):
    """A bounded queue of messages for asyncio tasks.

    Messages keep their identity. The highest `priority` (an attribute, 128 if there is none) is
    served first, equal ones in the order in which they came. Messages that keep coming cannot hold
    back an older one for ever: after 256 that came later and overtook, the oldest gets its turn.

    Parameters
    ----------
    maxsize
        The most messages that it holds; 0 means no limit.
    backpressure
        What happens when it is full.
    use_priority
        False: the order is that of arrival alone.
    kernel_id
        The name under which errors speak of it.
    """

    def __new__(
        cls,
        maxsize: int = 4096,
        *,
        backpressure: BackpressureStrategy = BackpressureStrategy.BLOCK,
        use_priority: bool = True,
        kernel_id: str = "",
    ) -> MessageQueue[T]:
        """Make an empty queue."""
        return super().__new__(cls, maxsize, backpressure.name, use_priority, kernel_id)

    def __init__(
        self,
        maxsize: int = 4096,
        *,
        backpressure: BackpressureStrategy = BackpressureStrategy.BLOCK,
        use_priority: bool = True,
        kernel_id: str = "",
    ) -> None:
        """Take the arguments, which `__new__` has used."""
        super().__init__()

    @property
    def _backpressure(self) -> BackpressureStrategy:
        return BackpressureStrategy[self._policy]

    @_backpressure.setter
    def _backpressure(self, strategy: BackpressureStrategy) -> None:
        self._policy = strategy.name

    def __repr__(self) -> str:
        """Tell how full it is, and its settings."""
        return (
            f"{type(self).__name__}(size={self.qsize}/{self.maxsize}, "
            f"priority={self._use_priority}, backpressure={self._policy})"
        )

    def __reduce__(self) -> Any:
        """Refuse: a queue belongs to its process."""
        raise TypeError(f"cannot pickle {type(self).__name__!r} object")
