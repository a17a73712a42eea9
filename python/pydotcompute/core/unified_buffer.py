"""One array with a copy in main memory and, where there is a GPU, one on the device.

The main memory comes from the Rust core: aligned to 128 bytes, zero-filled, and from the memory
pool while that is enabled. NumPy, the buffer protocol and DLPack see it without a copy.
"""

from __future__ import annotations

import math
import operator
import sys
import warnings
from collections.abc import Iterable
from enum import Enum, auto
from typing import Any, Generic, NoReturn, Self, TypeVar

import numpy as np
from numpy.typing import DTypeLike, NDArray

from pydotcompute import _optional
from pydotcompute._native import HostBuffer, HostView
from pydotcompute.core.memory_pool import MemoryPool
from pydotcompute.exceptions import (
    BackendNotAvailableError,
    BufferNotAllocatedError,
    BufferSyncError,
    MetalError,
)

__all__ = ["BufferState", "UnifiedBuffer"]

_T = TypeVar("_T")

_DL_CPU = (1, 0)
_NUMPY_HAS_DLPACK_1 = np.lib.NumpyVersion(np.__version__) >= "2.1.0"
# What MLX has under the same name; anything else travels as float32.
_METAL_DTYPES = frozenset(
    ["bool", "complex64", "float16", "float32"]
    + [f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)]
)


class BufferState(Enum):
    """Which copy of a buffer is the newest."""

    UNINITIALIZED = auto()
    HOST_ONLY = auto()
    DEVICE_ONLY = auto()
    SYNCHRONIZED = auto()
    HOST_DIRTY = auto()
    DEVICE_DIRTY = auto()


# Names of this module, which are read quicker than attributes of the enumeration.
_UNINITIALIZED = BufferState.UNINITIALIZED
_HOST_ONLY = BufferState.HOST_ONLY
_DEVICE_ONLY = BufferState.DEVICE_ONLY
_SYNCHRONIZED = BufferState.SYNCHRONIZED
_HOST_DIRTY = BufferState.HOST_DIRTY
_DEVICE_DIRTY = BufferState.DEVICE_DIRTY


def _dimensions(shape: Iterable[Any] | Any) -> tuple[int, ...]:
    """Turn whatever NumPy takes as a shape into a tuple of ints, none of them negative."""
    sizes = shape if isinstance(shape, Iterable) else (shape,)
    dims = tuple(operator.index(size) for size in sizes)
    if any(dim < 0 for dim in dims):
        raise ValueError(f"negative dimensions are not allowed: {dims}")
    return dims


def _copy(target: NDArray[Any], source: NDArray[Any]) -> None:
    """Copy with NumPy's broadcasting and `same_kind` casting, and without hiding what that loses.

    Raises
    ------
    OverflowError
        An integer does not fit into the narrower type.
    TypeError, ValueError
        As `numpy.copyto`.
    """
    extra = source.ndim - target.ndim
    if extra > 0 and math.prod(source.shape[:extra]) == 1:
        source = source.reshape(source.shape[extra:])  # As copyto does.
    if source.dtype != target.dtype and source.dtype.kind in "iu" and target.dtype.kind in "iu":
        limits = np.iinfo(target.dtype)
        if source.size and (source.min() < limits.min or source.max() > limits.max):
            raise OverflowError(f"values of {source.dtype} do not fit into {target.dtype}")
    if source.shape != target.shape and source.size != 1:
        if np.broadcast_shapes(source.shape, target.shape) != target.shape:
            raise ValueError(f"cannot broadcast shape {source.shape} to {target.shape}")
        warnings.warn(
            f"data of shape {source.shape} is broadcast to {target.shape}",
            UserWarning,
            stacklevel=3,
        )
    np.copyto(target, source, casting="same_kind")


class UnifiedBuffer(HostView, Generic[_T]):
    """One array with a copy in main memory and, where there is a GPU, one on the device.

    The state says which copy is newest. Reading a copy (`host`, `device`, `metal`) first brings it
    up to date; writing into one is told by `mark_host_dirty` and its siblings. Without a GPU the
    states change in the same way, and `device` is the array in main memory.

    Views (arrays, memoryviews, DLPack) stay valid after `free`, and after the buffer is gone. Not
    thread-safe: a buffer has one user at a time.

    Parameters
    ----------
    shape
        The dimensions; an int is one dimension.
    dtype
        The element type, without Python objects.
    pinned
        Whether a copy in main memory should be pinned for transfers; without CUDA no difference.

    Raises
    ------
    TypeError
        The dtype holds Python objects, or the shape is none.
    ValueError
        A dimension is negative.
    """

    # What a buffer without memory has; attributes of the class, which cost a constructor nothing.
    _state: BufferState = BufferState.UNINITIALIZED
    _host_array: NDArray[Any] | None = None
    _device_array: Any = None
    _metal_array: Any = None
    # The stream that wrote to the device's array, if it was told.
    _device_stream: Any = None
    # Whether it is the Metal copy that DEVICE_DIRTY speaks of.
    _metal_dirty: bool = False

    def __init__(
        self,
        shape: tuple[int, ...] | int,
        dtype: DTypeLike = np.float32,
        *,
        pinned: bool = False,
    ) -> None:
        if type(shape) is not tuple:
            shape = (shape,) if type(shape) is int else _dimensions(shape)
        for dim in shape:
            if type(dim) is not int or dim < 0:
                shape = _dimensions(shape)
                break
        self._shape: tuple[int, ...] = shape
        self._dtype = kind = np.dtype(dtype)
        if kind.hasobject:
            raise TypeError(f"a buffer cannot hold Python objects: {kind}")
        self._pinned = pinned
        self._cuda_available = _optional.device_arrays() is not None

    # --- what it is ---

    @property
    def shape(self) -> tuple[int, ...]:
        """The dimensions."""
        return self._shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """The element type."""
        return self._dtype

    @property
    def size(self) -> int:
        """How many elements it has."""
        return math.prod(self._shape)

    @property
    def nbytes(self) -> int:
        """How many bytes one copy takes."""
        return self.size * self._dtype.itemsize

    @property
    def state(self) -> BufferState:
        """Which copy is the newest."""
        return self._state

    @property
    def is_allocated(self) -> bool:
        """Whether it has memory."""
        return self._state is not _UNINITIALIZED

    # --- memory ---

    def allocate(self, *, host: bool = True, device: bool = True) -> Self:
        """Take zero-filled memory; a buffer that has memory keeps it, and its data.

        Parameters
        ----------
        host, device
            Which copies to make. Without CUDA it is always the one in main memory. A copy that is
            not made now is made when it is first used.

        Raises
        ------
        MemoryError
            There is no more; `MemoryLimitError` if only the pool's limit says so.
        ValueError
            Neither copy is wanted, and there is a CUDA device.
        """
        if self._state is not _UNINITIALIZED:
            return self
        if not self._cuda_available:
            self._host_array = self._new_host()
            self._state = _HOST_ONLY
            return self
        if not (host or device):
            raise ValueError("allocate host, device or both")
        if host:
            self._host_array = self._new_host()
        if device:
            self._device_array = _optional.device_arrays().zeros(self._shape, self._dtype)
        self._state = _SYNCHRONIZED if host and device else _HOST_ONLY if host else _DEVICE_ONLY
        return self

    def _new_host(self) -> NDArray[Any]:
        """Make a zero-filled array in main memory."""
        memory: Any = None
        if self.nbytes > sys.maxsize:
            raise MemoryError(f"{self.nbytes} bytes exceed the address space")
        if self._pinned and self._cuda_available:
            try:
                memory = _optional.device_arrays().pinned(self.nbytes)
            except Exception as error:
                warnings.warn(
                    f"no pinned memory, using ordinary memory: {error}",
                    RuntimeWarning,
                    stacklevel=3,
                )
            else:
                array: NDArray[Any] = np.ndarray(self._shape, self._dtype, memory)
                array.fill(0)
                return array
        pool = MemoryPool._instance
        if pool is not None and pool._enabled:
            memory = pool.allocate(self.nbytes)
        else:
            memory = HostBuffer(self.nbytes)
        return np.ndarray(self._shape, self._dtype, memory)

    def free(self) -> None:
        """Let go of all copies; the buffer can be allocated again."""
        self._host_array = None
        self._device_array = None
        self._device_stream = None
        self._metal_array = None
        self._metal_dirty = False
        self._state = _UNINITIALIZED

    def _require_allocated(self) -> None:
        if self._state is _UNINITIALIZED:
            raise BufferNotAllocatedError

    # --- the copies ---

    @property
    def host(self) -> NDArray[Any]:
        """The array in main memory: the live storage, C order, brought up to date first.

        Raises
        ------
        BufferNotAllocatedError
            There is no memory.
        BufferSyncError
            The copy from the device failed.
        """
        state = self._state
        if state is _UNINITIALIZED:
            raise BufferNotAllocatedError
        if state is _DEVICE_DIRTY or state is _DEVICE_ONLY:
            self._download()
        host = self._host_array
        assert host is not None, "only a DEVICE_ONLY buffer should lack its host array"
        return host

    def _download(self) -> None:
        """Bring the copy in main memory up to date with the device's."""
        if self._host_array is None:
            self._host_array = self._new_host()
        if self._metal_dirty:
            try:
                source = np.array(self._metal_array, copy=True)
                np.copyto(self._host_array, source, casting="unsafe")
            except Exception as error:
                raise BufferSyncError("metal->host", error) from error
            self._metal_dirty = False
        elif self._device_array is not None:
            try:
                _optional.device_arrays().download(
                    self._device_array, self._host_array, self._device_stream
                )
            except Exception as error:
                raise BufferSyncError("device->host", error) from error
        self._state = _SYNCHRONIZED

    @property
    def device(self) -> Any:
        """The device's array, brought up to date first; without CUDA the host's.

        It is CuPy's where CuPy is installed, else a `DeviceArray`, which PyTorch and numba take
        without a copy. The copy is whole when this returns, so any stream may use it.

        Raises
        ------
        BufferNotAllocatedError
            There is no memory.
        BufferSyncError
            The copy to the device failed.
        """
        self._require_allocated()
        if not self._cuda_available:
            host = self.host
            if self._state is _HOST_DIRTY:
                self._metal_array = None  # Out of date, which the state no longer tells.
                self._state = _SYNCHRONIZED
            return host
        if self._metal_dirty:
            self._download()
            self._state = _HOST_DIRTY
        if self._state in (_HOST_DIRTY, _HOST_ONLY) or self._device_array is None:
            self._upload()
        return self._device_array

    def _upload(self) -> None:
        """Bring the CUDA device's copy up to date."""
        try:
            arrays = _optional.device_arrays()
            if self._device_array is None:
                self._device_array = arrays.empty(self._shape, self._dtype)
            arrays.upload(self._device_array, self._host_array)
        except Exception as error:
            raise BufferSyncError("host->device", error) from error
        self._state = _SYNCHRONIZED

    @property
    def metal(self) -> Any:
        """The MLX array, brought up to date first; float64 and what MLX lacks as float32.

        Raises
        ------
        BufferNotAllocatedError
            There is no memory.
        MetalError
            There is no MLX with a Metal device.
        BufferSyncError
            The copy to the device failed.
        """
        self._require_allocated()
        mx = self._mlx()
        if self._metal_dirty:
            return self._metal_array
        if self._state is not _SYNCHRONIZED or self._metal_array is None:
            self._upload_metal(mx)
        return self._metal_array

    @metal.setter
    def metal(self, array: Any) -> None:
        """Put a computed MLX array of the buffer's shape in the place of the old one."""
        self._require_allocated()
        mx = self._mlx()
        if tuple(array.shape) != self._shape:
            raise ValueError(f"the array has shape {tuple(array.shape)}, not {self._shape}")
        mx.eval(array)
        self._metal_array = array
        self.mark_metal_dirty()

    def _mlx(self) -> Any:
        if not (found := _optional.mlx()):
            raise MetalError("Metal not available") from BackendNotAvailableError(
                "Metal", found.reason
            )
        return found.module

    def _upload_metal(self, mx: Any) -> None:
        """Bring the Metal copy up to date."""
        host = self.host
        name = self._dtype.name if self._dtype.name in _METAL_DTYPES else "float32"
        try:
            # MLX copies. Evaluated here, since a lazy array belongs to the thread that made it.
            array = mx.array(np.ascontiguousarray(host, dtype=name)).reshape(self._shape)
            mx.eval(array)
        except Exception as error:
            raise BufferSyncError("host->metal", error) from error
        self._metal_array = array
        self._state = _SYNCHRONIZED

    def mark_host_dirty(self) -> None:
        """Say that the array in main memory was written to.

        Raises
        ------
        BufferNotAllocatedError
            There is no memory.
        """
        self._require_allocated()
        self._metal_dirty = False
        self._state = _HOST_DIRTY

    def mark_device_dirty(self, stream: Any = None) -> None:
        """Say that the CUDA device's array was written to.

        Parameters
        ----------
        stream
            The stream that writes: ours, CuPy's, PyTorch's or a handle. The copy back waits for it,
            as it does for the default streams and the current ones of CuPy and PyTorch.

        Raises
        ------
        BufferNotAllocatedError
            There is no memory.
        """
        self._require_allocated()
        self._metal_dirty = False
        self._metal_array = None
        self._device_stream = stream
        self._state = _DEVICE_DIRTY

    def mark_metal_dirty(self) -> None:
        """Say that the Metal array was written to.

        Raises
        ------
        BufferNotAllocatedError
            There is no memory.
        """
        self._require_allocated()
        self._metal_dirty = self._metal_array is not None
        self._state = _DEVICE_DIRTY

    def synchronize(self) -> None:
        """Bring the older copy up to date; does nothing when there is none.

        Raises
        ------
        BufferSyncError
            A copy failed.
        """
        if self._state is _DEVICE_DIRTY:
            self._download()
        elif self._state is _HOST_DIRTY:
            if self._cuda_available:
                self._upload()
            if self._metal_array is not None:
                self._upload_metal(self._mlx())
            self._state = _SYNCHRONIZED

    async def ensure_on_device(self) -> None:
        """Bring the device's copy up to date; see `device`."""
        _ = self.device

    async def ensure_on_host(self) -> None:
        """Bring the copy in main memory up to date; see `host`."""
        _ = self.host

    # --- data ---

    def copy_from(self, data: Any) -> None:
        """Copy data into the buffer, which gets memory if it has none.

        Parameters
        ----------
        data
            An array, anything that NumPy makes one of, or an array of a CUDA device, of whatever
            library. It is cast by `same_kind`; broadcasting anything but a scalar gives a
            UserWarning.

        Raises
        ------
        OverflowError
            An integer does not fit into the buffer's type.
        TypeError, ValueError
            The type is of another kind, or the shape does not fit; the buffer is as it was.
        """
        if isinstance(data, UnifiedBuffer):
            data = data.host
        elif hasattr(data, "__cuda_array_interface__"):
            arrays = _optional.device_arrays()
            if arrays is None:
                raise BackendNotAvailableError("CUDA", _optional.no_cuda_reason())
            data = arrays.to_host(data)
        fresh = not self.is_allocated
        host = self.allocate().host
        try:
            _copy(host, np.asarray(data))
        except BaseException:
            if fresh:
                self.free()
            raise
        self.mark_host_dirty()

    def copy_to(self, data: Any) -> None:
        """Copy the buffer into a writable array; see `copy_from`.

        Raises
        ------
        BufferNotAllocatedError
            There is no memory.
        OverflowError, TypeError, ValueError
            As for `copy_from`.
        """
        if isinstance(data, UnifiedBuffer):
            data.copy_from(self)
            return
        target = data if isinstance(data, np.ndarray) else np.asarray(memoryview(data))
        _copy(target, self.host)

    def zeros(self) -> Self:
        """Set all bytes to zero; gives the buffer memory if it has none."""
        self.allocate().host[...] = np.zeros((), self._dtype)
        self.mark_host_dirty()
        return self

    def fill(self, value: Any) -> Self:
        """Set all elements to a value; gives the buffer memory if it has none."""
        self.allocate().host.fill(value)
        self.mark_host_dirty()
        return self

    def __len__(self) -> int:
        """Count the elements of the first dimension."""
        if not self._shape:
            raise TypeError("len() of a buffer without dimensions")
        return self._shape[0]

    def __getitem__(self, key: Any) -> Any:
        """Read from main memory."""
        return self.host[key]

    def __setitem__(self, key: Any, value: Any) -> None:
        """Write to main memory."""
        self.host[key] = value
        self.mark_host_dirty()

    # --- for other libraries: the array in main memory, without a copy ---

    @property
    def __array_interface__(self) -> dict[str, Any]:
        """The array in main memory, for NumPy and its kin."""
        return self.host.__array_interface__

    def __dlpack_device__(self) -> tuple[int, int]:
        """Tell DLPack that the memory is the CPU's; use `device` for a CUDA device's."""
        return _DL_CPU

    def __dlpack__(
        self,
        *,
        stream: Any = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        """Export the array in main memory through DLPack; see `numpy.ndarray.__dlpack__`."""
        host: Any = self.host
        if _NUMPY_HAS_DLPACK_1:
            return host.__dlpack__(
                stream=stream, max_version=max_version, dl_device=dl_device, copy=copy
            )
        if dl_device not in (None, _DL_CPU) or copy:
            _refuse_dlpack()
        return host.__dlpack__(stream=stream)

    def __getstate__(self) -> dict[str, Any]:
        """Take what a copy of the buffer, in another process too, is made of: main memory."""
        state = self.__dict__.copy()
        if self.is_allocated:
            state["_host_array"] = self.host
            state["_state"] = _HOST_ONLY
        for name in ("_device_array", "_device_stream", "_metal_array", "_metal_dirty"):
            state.pop(name, None)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take over what `__getstate__` took, on this machine."""
        self.__dict__.update(state)
        self._cuda_available = _optional.device_arrays() is not None

    def __repr__(self) -> str:
        return (
            f"UnifiedBuffer(shape={self._shape}, dtype={self._dtype}, state={self._state.name}, "
            f"cuda={self._cuda_available}, metal={bool(_optional.mlx())})"
        )


def _refuse_dlpack() -> NoReturn:
    raise BufferError("NumPy before 2.1 exports neither copies nor to another device")
