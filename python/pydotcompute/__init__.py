"""Ring kernels: actors for compute, on a Rust core."""

__version__ = "0.2.0"
