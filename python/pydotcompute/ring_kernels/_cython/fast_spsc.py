"""`FastSPSCQueue`: a bounded queue between threads, as fast as a call from Python gets."""

from __future__ import annotations

from pydotcompute._native import FastSPSCQueue

__all__ = ["FastSPSCQueue"]
