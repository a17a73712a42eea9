"""Queues between threads: `SyncQueue` and `SPSCQueue`.

Both lie on the core's mailboxes, keep the identity of what is in them, and take any number of
producers and consumers. A thread that waits has released the GIL, and the main thread answers
Ctrl-C while it waits. Timeouts are seconds; None waits for ever, 0 not at all.
"""

from __future__ import annotations

from pydotcompute._native import SPSCQueue, SyncQueue

__all__ = ["SPSCQueue", "SyncQueue"]
