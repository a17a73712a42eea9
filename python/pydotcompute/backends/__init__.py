"""Backends: memory and kernels of the CPU, of CUDA devices and of Apple's GPUs."""

from pydotcompute.backends.base import Backend, BackendType
from pydotcompute.backends.cpu import CPUBackend
from pydotcompute.backends.cuda import CUDABackend
from pydotcompute.backends.metal import MetalBackend
from pydotcompute.exceptions import BackendNotAvailableError

__all__ = ["Backend", "BackendType", "CPUBackend", "CUDABackend", "MetalBackend", "get_backend"]


def get_backend(name: str | BackendType = "auto") -> Backend:
    """Make a backend that can be used on this machine.

    Parameters
    ----------
    name
        "cpu", "cuda", "metal" or a `BackendType`; "auto" takes CUDA, else Metal, else the CPU.

    Raises
    ------
    BackendNotAvailableError
        It cannot be used here, or there is none of this name; the reason says why.
    """
    wanted = str(name.name if isinstance(name, BackendType) else name).lower()
    if wanted == "auto":
        gpus: tuple[Backend, ...] = (CUDABackend(), MetalBackend())
        return next((gpu for gpu in gpus if gpu.is_available), CPUBackend())
    makers: dict[str, type[Backend]] = {
        "cpu": CPUBackend,
        "cuda": CUDABackend,
        "metal": MetalBackend,
    }
    if wanted not in makers:
        raise BackendNotAvailableError(str(name), f"the backends are {', '.join(makers)}")
    backend = makers[wanted]()
    if not backend.is_available:
        raise BackendNotAvailableError(backend.backend_type.name, backend.unavailable_reason)
    return backend
