"""The native queue of tier 3, under the names that it had as a Cython extension.

It is part of the package's own extension, and so always there.
"""

from __future__ import annotations

from pydotcompute._native import FastSPSCQueue

__all__ = ["CYTHON_AVAILABLE", "FastSPSCQueue", "is_cython_available"]

CYTHON_AVAILABLE = True


def is_cython_available() -> bool:
    """Tell whether `FastSPSCQueue` is there: always."""
    return CYTHON_AVAILABLE
