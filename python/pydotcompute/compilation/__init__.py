"""The compilation of kernels, and the cache that keeps them on disk."""

from pydotcompute.compilation.cache import KernelCache
from pydotcompute.compilation.compiler import KernelCompiler

__all__ = ["KernelCache", "KernelCompiler"]
