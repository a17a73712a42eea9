"""Decorators for kernels, ring kernels and their checks."""

from pydotcompute.decorators.kernel import gpu_kernel, kernel
from pydotcompute.decorators.ring_kernel import ring_kernel
from pydotcompute.decorators.validators import validate_config, validate_message

__all__ = ["gpu_kernel", "kernel", "ring_kernel", "validate_config", "validate_message"]
