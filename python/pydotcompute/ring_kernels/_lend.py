"""Arrays of a GPU for the kernels that stay there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydotcompute import _native, _optional
from pydotcompute.core import device_array
from pydotcompute.core.unified_buffer import UnifiedBuffer
from pydotcompute.exceptions import BackendNotAvailableError

if TYPE_CHECKING:
    from pydotcompute._cuda import CudaRuntime

#: Kernels stay on the first device.
_ORDINAL = 0


def _cuda() -> CudaRuntime:
    found = _optional.cuda()
    if not found:
        raise BackendNotAvailableError("CUDA", found.reason)
    runtime: CudaRuntime = found.module
    return runtime


def lend(array: Any, timeout: float) -> _native.DevicePointer:
    """See `RingKernelRuntime.lend`; waits on the calling thread."""
    if not isinstance(array, UnifiedBuffer) and not any(
        hasattr(array, name) for name in ("__cuda_array_interface__", "__dlpack__")
    ):
        raise TypeError(f"{_no_array(array)}: put the data into a UnifiedBuffer, and lend that")
    runtime = _cuda()
    owner = array.device if isinstance(array, UnifiedBuffer) else array
    try:
        found = device_array.asarray(runtime.device(_ORDINAL), owner)
    except TypeError as error:
        # Of NumPy, which has DLPack too.
        advice = "copy it there (UnifiedBuffer.copy_from, cupy.asarray, Tensor.cuda), and lend that"
        raise TypeError(f"{_no_array(array)}: {advice}") from error
    return _native._lend(found.ptr, found.nbytes, found, timeout)


def _no_array(array: Any) -> str:
    return f"{type(array).__name__} is no array of a CUDA device"


def as_stream(stream: Any) -> _native.CudaStream:
    """The stream behind what a library calls one."""
    return device_array.as_stream(_cuda().device(_ORDINAL), stream)
