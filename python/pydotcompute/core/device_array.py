"""Arrays in a CUDA device's memory, which every library of the process can use.

CuPy, PyTorch, numba and JAX take a `DeviceArray` without a copy, by `__cuda_array_interface__` or
DLPack, and `asarray` takes theirs. Memory comes from the device's stream-ordered pool.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from pydotcompute._native import CudaDevice, CudaStream, export_dlpack, import_dlpack
from pydotcompute.exceptions import CUDAError

__all__ = ["DeviceArray", "asarray", "empty", "from_host", "zeros"]

# DLPack's numbers.
_DL_CUDA = 2
_DL_CUDA_MANAGED = 13
_DL_CODES = {"i": 0, "u": 1, "f": 2, "c": 5, "b": 6}
_DL_KINDS = {code: kind for kind, code in _DL_CODES.items()}

# The default stream of CuPy, PyTorch and numba, and a thread's own.
LEGACY_STREAM = 1
PER_THREAD_STREAM = 2


class DeviceArray:
    """A contiguous array (C order) in a CUDA device's memory.

    Made by `empty`, `zeros`, `from_host` and `asarray`. It has no arithmetic: hand it to a kernel,
    or to CuPy (`cupy.asarray`), PyTorch (`torch.as_tensor`) or numba, which use it without a copy.
    Several threads may read it; copies are made whole before a call returns.

    Attributes
    ----------
    shape
        The dimensions.
    dtype
        The element type.
    """

    __slots__ = ("__weakref__", "_device", "_memory", "_ptr", "_stream", "dtype", "shape")

    def __init__(
        self, device: CudaDevice, memory: Any, ptr: int, shape: tuple[int, ...], dtype: DTypeLike
    ) -> None:
        self._device = device
        # What keeps the memory: ours, or another library's array.
        self._memory = memory
        self._ptr = ptr
        # The stream of the last kernel of ours that got it, where others would not wait for that.
        self._stream: CudaStream | None = None
        self.shape = shape
        self.dtype = np.dtype(dtype)

    @property
    def ptr(self) -> int:
        """Where it lies in the device's memory; 0 when it is empty."""
        return self._ptr if self.size else 0

    @property
    def device(self) -> int:
        """The device, counted from 0."""
        return self._device.ordinal

    @property
    def ndim(self) -> int:
        """How many dimensions it has."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """How many elements it has."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """How many bytes it has."""
        return self.size * self.dtype.itemsize

    @property
    def strides(self) -> tuple[int, ...]:
        """The bytes from one element to the next, in each dimension."""
        steps = [self.dtype.itemsize]
        for dim in self.shape[:0:-1]:
            steps.append(steps[-1] * dim)
        return tuple(reversed(steps[: self.ndim]))

    # --- copies ---

    def get(self, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """Copy it to main memory, once all work that was given before is done.

        Parameters
        ----------
        out
            Where to; an array of the same shape and type, contiguous. None: a new one.

        Raises
        ------
        CUDAError
            The copy failed, or a kernel before it.
        TypeError, ValueError
            `out` is of another type or shape.
        """
        if out is None:
            out = np.empty(self.shape, self.dtype)
        data = self._bytes(out)
        stream = self._device.stream
        _await_others(self._device, stream, self._stream)
        stream.read_at(self._ptr, data)
        return out

    def set(self, array: Any) -> None:
        """Copy an array from main memory, behind all work that was given before.

        Raises
        ------
        CUDAError
            The copy failed, or a kernel before it.
        TypeError, ValueError
            The array is of another type or shape.
        """
        data = self._bytes(np.ascontiguousarray(array).reshape(np.shape(array)))
        stream = self._device.stream
        _await_others(self._device, stream, self._stream)
        stream.write_at(self._ptr, data)

    def _bytes(self, array: NDArray[Any]) -> Any:
        if array.dtype != self.dtype:
            raise TypeError(f"the array is of {array.dtype}, and the device's of {self.dtype}")
        if array.shape != self.shape:
            raise ValueError(f"the array has shape {array.shape}, and the device's {self.shape}")
        if not array.flags.c_contiguous:
            raise ValueError("the array is not contiguous")
        return array.reshape(-1).view(np.uint8)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        """Refuse to become an array of NumPy's unasked, as CuPy does: that is a copy."""
        raise TypeError("an array of a device does not become NumPy's by itself: use .get()")

    # --- for other libraries ---

    def _lend(self) -> None:
        """Let the memory be freed behind what the legacy stream is given, which is the default of
        whoever takes it; of other streams `record_stream` has to be told."""
        self.record_stream(None)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """Version 3 of the CUDA array interface."""
        self._lend()
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "descr": self.dtype.descr,
            "data": (self.ptr, False),
            "strides": None,
            "version": 3,
            "stream": None if self._stream is None else self._stream.handle,
        }

    def __dlpack_device__(self) -> tuple[int, int]:
        """Tell DLPack that the memory is a CUDA device's."""
        return _DL_CUDA, self._device.ordinal

    def __dlpack__(
        self,
        *,
        stream: int | None = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        """Export it through DLPack.

        Parameters
        ----------
        stream
            The consumer's stream, which waits for work of ours: its handle, 1 or None for the
            legacy stream, 2 for the thread's own, -1 to let nothing wait.
        max_version
            The newest version that the consumer knows.
        dl_device
            Where the consumer wants it: nowhere but here.
        copy
            Whether it has to be a copy, which is not offered.

        Raises
        ------
        BufferError
            The type has no name in DLPack, or what is asked for is not offered.
        """
        if copy or dl_device not in (None, self.__dlpack_device__()):
            raise BufferError("no copies and no other device: copy it first")
        if stream == 0:
            raise BufferError("stream 0 is ambiguous: 1 is the legacy stream, 2 the thread's own")
        kind = _DL_CODES.get(self.dtype.kind)
        if kind is None or not self.dtype.isnative:
            raise BufferError(f"DLPack has no type for {self.dtype}")
        if stream != -1:
            consumer = self._device.stream_at(LEGACY_STREAM if stream is None else stream)
            if self._stream is not None:
                consumer.follow(self._stream)
        itemsize = self.dtype.itemsize
        self._lend()
        return export_dlpack(
            self,
            self.ptr,
            self.shape,
            [step // itemsize for step in self.strides],
            (kind, 8 * itemsize),
            self.__dlpack_device__(),
            max_version is not None and max_version[0] >= 1,
        )

    def record_stream(self, stream: Any) -> None:
        """Say that a stream of another library uses it: its memory is not used anew before what the
        stream has been given by the time that the array goes is done.

        Parameters
        ----------
        stream
            A stream of ours, of CuPy or of PyTorch, or a handle. It must outlive the array.
        """
        if hasattr(self._memory, "used_on"):
            self._memory.used_on(as_stream(self._device, stream))

    def __len__(self) -> int:
        """Count the elements of the first dimension."""
        if not self.shape:
            raise TypeError("len() of an array without dimensions")
        return self.shape[0]

    def __repr__(self) -> str:
        return f"DeviceArray(shape={self.shape}, dtype={self.dtype}, device={self.device})"


def as_stream(device: CudaDevice, stream: Any) -> CudaStream:
    """Find the stream behind what a library calls one.

    Raises
    ------
    TypeError
        It is none.
    """
    if isinstance(stream, CudaStream):
        return stream
    if stream is None:
        return device.stream_at(LEGACY_STREAM)
    if hasattr(stream, "__cuda_stream__"):
        handle = stream.__cuda_stream__()[1]
    else:
        handle = next(
            (getattr(stream, name) for name in ("ptr", "cuda_stream") if hasattr(stream, name)),
            stream,
        )
    if isinstance(handle, bool) or not isinstance(handle, int):
        raise TypeError(f"a stream is ours, CuPy's, PyTorch's or a handle, not {stream!r}")
    return device.stream_at(handle or LEGACY_STREAM)


def _await_others(device: CudaDevice, stream: CudaStream, ours: CudaStream | None = None) -> None:
    """Let a stream wait for the default streams, CuPy's and PyTorch's current ones, and ours."""
    import sys

    handles = {LEGACY_STREAM, PER_THREAD_STREAM}
    if (cupy := sys.modules.get("cupy")) is not None and hasattr(cupy, "cuda"):
        current = getattr(cupy.cuda, "get_current_stream", None)
        if current is not None:
            handles.add(int(current().ptr) or LEGACY_STREAM)
    torch = sys.modules.get("torch")
    if torch is not None and hasattr(torch, "cuda") and torch.cuda.is_initialized():
        handles.add(int(torch.cuda.current_stream(device.ordinal).cuda_stream) or LEGACY_STREAM)
    for handle in sorted(handles):
        stream.follow(device.stream_at(handle))
    if ours is not None:
        stream.follow(ours)


# --- arrays ----------------------------------------------------------------------------------


def _dimensions(shape: Any) -> tuple[int, ...]:
    dims = (shape,) if isinstance(shape, (int, np.integer)) else tuple(shape)
    dims = tuple(int(dim) for dim in dims)
    if any(dim < 0 for dim in dims):
        raise ValueError(f"negative dimensions are not allowed: {dims}")
    return dims


def empty(device: CudaDevice, shape: Any, dtype: DTypeLike = np.float32) -> DeviceArray:
    """Make an array of unknown content on a device.

    Raises
    ------
    CUDAMemoryError
        The device has not so much memory.
    TypeError, ValueError
        The dtype holds Python objects, or a dimension is negative.
    """
    dims, kind = _dimensions(shape), np.dtype(dtype)
    if kind.hasobject:
        raise TypeError(f"a device's memory cannot hold Python objects: {kind}")
    nbytes = math.prod(dims) * kind.itemsize
    if nbytes >= 2**63:
        raise MemoryError(f"{nbytes} bytes exceed the address space")
    memory = device.allocate(nbytes)
    # Taken in the order of our own stream; from here on it is anybody's.
    device.stream.synchronize()
    return DeviceArray(device, memory, memory.address, dims, kind)


def zeros(device: CudaDevice, shape: Any, dtype: DTypeLike = np.float32) -> DeviceArray:
    """Make an array of zeros on a device; see `empty`."""
    array = empty(device, shape, dtype)
    array._memory.fill(0, device.stream)
    device.stream.synchronize()
    return array


def from_host(device: CudaDevice, array: Any) -> DeviceArray:
    """Copy an array to a device; see `empty`."""
    source = np.asarray(array)
    made = empty(device, source.shape, source.dtype)
    made.set(source)
    return made


def asarray(device: CudaDevice, array: Any) -> DeviceArray:
    """Take another library's array of the device without a copy.

    Parameters
    ----------
    device
        The device that it is on.
    array
        What has `__cuda_array_interface__` (CuPy, PyTorch, numba, JAX) or `__dlpack__`. Work that
        was given for it before is waited for by ours.

    Raises
    ------
    CUDAError
        It is another device's, or not contiguous (C order): copy it first.
    TypeError
        It is no array of a device.
    """
    if isinstance(array, DeviceArray):
        return array
    interface = getattr(array, "__cuda_array_interface__", None)
    if interface is not None:
        if interface.get("mask") is not None:
            raise CUDAError("an array with a mask is not supported")
        kind = np.dtype(interface["typestr"])
        if interface.get("descr") and kind.kind == "V":
            kind = np.dtype(interface["descr"])
        shape = tuple(interface["shape"])
        _check_contiguous(shape, interface.get("strides"), kind.itemsize)
        if interface.get("stream"):
            # As the interface asks of whoever takes an array.
            device.stream_at(interface["stream"]).synchronize()
        return DeviceArray(device, array, int(interface["data"][0]), shape, kind)
    if hasattr(array, "__dlpack__"):
        kind_of, ordinal = array.__dlpack_device__()
        if kind_of not in (_DL_CUDA, _DL_CUDA_MANAGED):
            raise TypeError(f"the array is on a device of DLPack's kind {kind_of}, not CUDA's")
        if ordinal != device.ordinal:
            raise CUDAError(f"the array is on device {ordinal}, not {device.ordinal}")
        capsule = array.__dlpack__(stream=LEGACY_STREAM)
        ptr, shape, steps, (code, bits, lanes), _, keeper = import_dlpack(capsule)
        if lanes != 1 or code not in _DL_KINDS or bits % 8:
            raise CUDAError(f"NumPy has no type for DLPack's ({code}, {bits}, {lanes})")
        dtype = np.dtype("?" if code == 6 else f"{_DL_KINDS[code]}{bits // 8}")
        strides = None if steps is None else tuple(step * dtype.itemsize for step in steps)
        _check_contiguous(shape, strides, dtype.itemsize)
        return DeviceArray(device, keeper, ptr, shape, dtype)
    raise TypeError(f"{type(array).__name__} is no array of a CUDA device")


def _check_contiguous(shape: tuple[int, ...], strides: Any, itemsize: int) -> None:
    if strides is None or 0 in shape:
        return
    expected = itemsize
    for dim, step in zip(reversed(shape), reversed(tuple(strides)), strict=True):
        if dim > 1 and step != expected:
            raise CUDAError(
                f"the array is not contiguous (strides {tuple(strides)}): copy it first"
            )
        expected *= dim
