"""The default queue of a ring kernel, `FastMessageQueue`, and the plain `RingBuffer`.

Both are asyncio queues on the core's mailboxes: they keep the identity of what is in them, may be
used from any thread as far as the calls need not wait, and lose no wake-up. An await that need not
wait does not touch the event loop.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from pydotcompute._native import FastMessageQueue, RingBuffer

__all__ = ["FastMessageQueue", "PriorityBand", "QueueStats", "RingBuffer", "get_priority_band"]


class PriorityBand(IntEnum):
    """The four bands, the most urgent first."""

    SYSTEM = 0
    """Priority 224 to 255."""
    HIGH = 1
    """Priority 160 to 223."""
    NORMAL = 2
    """Priority 64 to 159."""
    LOW = 3
    """Priority 0 to 63."""


def get_priority_band(priority: int) -> PriorityBand:
    """Tell which band serves messages of `priority` (0 to 255)."""
    if priority >= 224:
        return PriorityBand.SYSTEM
    if priority >= 160:
        return PriorityBand.HIGH
    if priority >= 64:
        return PriorityBand.NORMAL
    return PriorityBand.LOW


@dataclass
class QueueStats:
    """The counters of a queue; `QueueStats(**fields)` of `get_stats()` without `max_size`."""

    total_enqueued: int = 0
    total_dequeued: int = 0
    total_dropped: int = 0
    current_size: int = 0
    peak_size: int = 0
    band_counts: dict[str, int] | None = None
