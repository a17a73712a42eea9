"""Compiled code for CUDA devices, and its launches.

A launch names grid and block as with numba: `kernel[grid, block](...)`, or with a stream and shared
bytes `kernel[grid, block, stream, shared_bytes](...)`. Without a stream it is on CuPy's current one
or else on the legacy stream, as numba's and CuPy's own.
"""

from __future__ import annotations

import functools
import re
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from pydotcompute import _optional
from pydotcompute._native import CudaDevice, CudaFunction, CudaStream
from pydotcompute.core import device_array
from pydotcompute.core.device_array import LEGACY_STREAM, DeviceArray
from pydotcompute.core.unified_buffer import UnifiedBuffer
from pydotcompute.exceptions import BackendNotAvailableError

__all__ = ["CudaKernel", "NumbaKernel", "PrebuiltKernel", "SourceKernel"]

_BLOCK_THREADS = 256


def three(name: str, size: Any) -> tuple[int, int, int]:
    """Make three dimensions of a grid's or a block's size.

    Raises
    ------
    TypeError, ValueError
        It is none.
    """
    dims = (size,) if isinstance(size, (int, np.integer)) else tuple(size)
    if not 1 <= len(dims) <= 3:
        raise ValueError(f"a {name} has one to three dimensions: {size!r}")
    whole = tuple(int(dim) for dim in dims)
    if any(dim < 1 for dim in whole):
        raise ValueError(f"a {name} has 1 or more in each dimension: {size!r}")
    x, y, z = (*whole, 1, 1)[:3]
    return x, y, z


class _Arguments:
    """The arguments of one launch, as the device gets them, and what is due afterwards."""

    def __init__(self, device: CudaDevice, stream: CudaStream, args: Sequence[Any]) -> None:
        self._device = device
        self._stream = stream
        self._after: list[Callable[[], None]] = []
        self._wait = False
        self.values = [self._convert(arg) for arg in args]

    def _convert(self, arg: Any) -> Any:
        if isinstance(arg, UnifiedBuffer):
            found = self._array(arg.device)
            self._after.append(functools.partial(arg.mark_device_dirty, self._stream))
            return found
        if isinstance(arg, np.ndarray):
            # As numba does: to the device, and back.
            copy = device_array.from_host(self._device, arg)
            self._wait = True
            if arg.flags.writeable:
                self._after.append(lambda: np.copyto(arg, copy.get()))
            return copy
        if isinstance(arg, DeviceArray) or hasattr(arg, "__cuda_array_interface__"):
            return self._array(arg)
        return arg

    def _array(self, array: Any) -> DeviceArray:
        found = device_array.asarray(self._device, array)
        if found._stream is not None:
            self._stream.follow(found._stream)
        found.record_stream(self._stream)
        if self._stream.handle != LEGACY_STREAM:
            found._stream = self._stream
        return found

    def done(self) -> None:
        """Do what is due once the kernel was launched."""
        if self._wait:
            self._stream.synchronize()
        for due in self._after:
            due()


class CudaKernel:
    """Code for CUDA devices, launched with `kernel[grid, block](...)`. Thread-safe.

    NumPy arrays are copied to the device and back; a `UnifiedBuffer` is brought up to date first,
    and its device's copy is the newest afterwards; arrays of the device, of whatever library, are
    used where they are.
    """

    __cuda_kernel__ = True
    __name__: str

    def __init__(self, name: str) -> None:
        self.__name__ = name
        self._lock = threading.RLock()

    def __getitem__(self, launch: Any) -> Callable[..., None]:
        """Choose grid, block, stream and shared bytes."""
        chosen = launch if isinstance(launch, tuple) else (launch,)
        if not 2 <= len(chosen) <= 4:
            raise ValueError("a launch is [grid, block], with stream and shared bytes if need be")
        stream = chosen[2] if len(chosen) > 2 else None
        shared_bytes = chosen[3] if len(chosen) > 3 else 0
        grid, block = three("grid", chosen[0]), three("block", chosen[1])
        return functools.partial(self._run, grid, block, stream or None, shared_bytes)

    def forall(
        self, ntasks: int, tpb: int = 0, stream: Any = None, sharedmem: int = 0
    ) -> Callable[..., None]:
        """Choose a launch by the number of threads, and the threads of a block (0: 256)."""
        threads = tpb or _BLOCK_THREADS
        return self[max(1, -(-ntasks // threads)), threads, stream, sharedmem]

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        """Refuse to guess grid and block."""
        raise TypeError(f"{self.__name__} is launched with kernel[grid, block](...)")

    def _run(
        self,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        stream: Any,
        shared_bytes: int,
        *args: Any,
    ) -> None:
        runtime = _optional.cuda().module
        if runtime is None:
            raise BackendNotAvailableError("CUDA", _optional.cuda().reason)
        device = runtime.device()
        chosen = (
            runtime.default_stream(device)
            if stream is None
            else device_array.as_stream(device, stream)
        )
        arguments = _Arguments(device, chosen, args)
        function, packed = self._bind(device, arguments.values)
        function.launch(grid, block, shared_bytes, chosen, packed)
        arguments.done()

    def _bind(self, device: CudaDevice, values: list[Any]) -> tuple[CudaFunction, list[bytes]]:
        """Find the code for these arguments, and make its parameters of them."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.__name__!r}>"


# --- CUDA C++ --------------------------------------------------------------------------------


def _scalar(value: Any, size: int | None, place: str) -> bytes:
    """Make a parameter of a scalar: NumPy's by its own type, Python's by the parameter's size.

    Raises
    ------
    OverflowError
        It does not fit.
    TypeError
        It is no scalar, or nobody tells the parameter's size.
    """
    if isinstance(value, (np.generic, np.void)):
        return value.tobytes()
    if size is None:
        raise TypeError(f"{place}: this driver tells no sizes: give a scalar of NumPy")
    kinds: dict[tuple[type, int], str] = {
        (bool, 1): "?",
        (float, 4): "f4",
        (float, 8): "f8",
        (complex, 8): "c8",
        (complex, 16): "c16",
    }
    if isinstance(value, int) and not isinstance(value, bool) and size in (1, 2, 4, 8):
        if not -(1 << (8 * size - 1)) <= value < 1 << (8 * size):
            raise OverflowError(f"{place}: {value} does not fit into {size} bytes")
        return value.to_bytes(size, "little", signed=value < 0)
    kind = kinds.get((type(value), size))
    if kind is None:
        raise TypeError(
            f"{place}: the parameter has {size} bytes, which a {type(value).__name__} does not fill"
        )
    return np.array(value, kind).tobytes()


class SourceKernel(CudaKernel):
    """A kernel of CUDA C++.

    The arguments are arrays, for pointers, and scalars: those of NumPy are passed as they are, and
    Python's in the size of their parameter.

    Parameters
    ----------
    name
        The kernel's name in the source, where it is `extern "C"`.
    image
        Makes the code for a device: a cubin, or PTX.
    """

    def __init__(self, name: str, image: Callable[[CudaDevice], bytes]) -> None:
        super().__init__(name)
        self.image = image
        self._functions: dict[int, CudaFunction] = {}

    def function(self, device: CudaDevice) -> CudaFunction:
        """Load the code for a device, unless it was loaded before."""
        with self._lock:
            found = self._functions.get(device.ordinal)
            if found is None:
                found = device.load(self.image(device)).function(self.__name__)
                self._functions[device.ordinal] = found
            return found

    def _bind(self, device: CudaDevice, values: list[Any]) -> tuple[CudaFunction, list[bytes]]:
        function = self.function(device)
        sizes = function.parameters
        if sizes is not None and len(sizes) != len(values):
            raise TypeError(f"{self.__name__}() takes {len(sizes)} arguments, not {len(values)}")
        packed = []
        for at, value in enumerate(values):
            if isinstance(value, DeviceArray):
                packed.append(value.ptr.to_bytes(8, "little"))
            else:
                size = None if sizes is None else sizes[at]
                packed.append(_scalar(value, size, f"argument {at} of {self.__name__}()"))
        return function, packed


class PrebuiltKernel(CudaKernel):
    """A kernel that the package brings along, for each type of element.

    Parameters
    ----------
    name
        Its name, to which that of the type is added.
    image
        Makes the code for a device.
    shapes
        Checks the arrays, and makes the numbers that follow them as parameters.
    """

    def __init__(
        self,
        name: str,
        image: Callable[[CudaDevice], bytes],
        shapes: Callable[[list[DeviceArray]], tuple[int, ...]],
    ) -> None:
        super().__init__(name)
        self._image = image
        self._shapes = shapes
        self._modules: dict[int, Any] = {}
        self._functions: dict[tuple[int, str], CudaFunction] = {}

    def _bind(self, device: CudaDevice, values: list[Any]) -> tuple[CudaFunction, list[bytes]]:
        if len(values) != 3 or not all(isinstance(value, DeviceArray) for value in values):
            raise TypeError(f"{self.__name__}() takes three arrays")
        kinds = {value.dtype.name for value in values}
        if len(kinds) != 1 or not kinds <= {"float32", "float64", "int32", "int64"}:
            raise TypeError(
                f"{self.__name__}() takes arrays of one type, float32, float64, int32 or int64, "
                f"not {', '.join(sorted(kinds))}"
            )
        numbers = self._shapes(values)
        key = (device.ordinal, kinds.pop())
        with self._lock:
            if key not in self._functions:
                if device.ordinal not in self._modules:
                    self._modules[device.ordinal] = device.load(self._image(device))
                module = self._modules[device.ordinal]
                self._functions[key] = module.function(f"{self.__name__}_{key[1]}")
            function = self._functions[key]
        words = [*(value.ptr for value in values), *numbers]
        return function, [word.to_bytes(8, "little") for word in words]


# --- Python, compiled by numba ---------------------------------------------------------------


class NumbaKernel(CudaKernel):
    """A Python function, compiled by numba for the types of the arguments of its first launch.

    Parameters
    ----------
    name
        Its name.
    build
        Makes the code for a device and numba's types: a cubin, or PTX, and the kernel's name in it.
    types
        The types, if they are fixed.
    """

    def __init__(
        self,
        name: str,
        build: Callable[[CudaDevice, tuple[Any, ...]], tuple[bytes, str]],
        types: tuple[Any, ...] | None,
    ) -> None:
        super().__init__(name)
        self._build = build
        self._types = types
        self._functions: dict[Any, CudaFunction] = {}

    def function(self, device: CudaDevice, types: tuple[Any, ...]) -> CudaFunction:
        """Compile for these types and load it, unless that was done before."""
        key = (device.ordinal, types)
        with self._lock:
            found = self._functions.get(key)
            if found is None:
                image, entry = self._build(device, types)
                found = device.load(image).function(entry)
                self._functions[key] = found
            return found

    def _bind(self, device: CudaDevice, values: list[Any]) -> tuple[CudaFunction, list[bytes]]:
        types = tuple(map(_numba_type, values)) if self._types is None else self._types
        if len(types) != len(values):
            raise TypeError(f"{self.__name__}() takes {len(types)} arguments, not {len(values)}")
        packed: list[bytes] = []
        for at, (kind, value) in enumerate(zip(types, values, strict=True)):
            packed += numba_parameters(kind, value, f"argument {at} of {self.__name__}()")
        return self.function(device, types), packed


def _numba_type(value: Any) -> Any:
    numba = _optional.numba().module
    if isinstance(value, DeviceArray):
        return numba.types.Array(numba.from_dtype(value.dtype), value.ndim, "C")
    return numba.typeof(value)


def numba_parameters(kind: Any, value: Any, place: str) -> list[bytes]:
    """Make the parameters that a kernel of numba has for an argument.

    An array is seven or more: its owner and parent (none), the number of elements, the size of one,
    the data, then its shape and its strides.

    Raises
    ------
    OverflowError, TypeError, ValueError
        The argument is not of the type.
    """
    types = _optional.numba().module.types
    numpy_support = _optional.numba().module.np.numpy_support
    if isinstance(kind, types.Array):
        if not isinstance(value, DeviceArray):
            raise TypeError(f"{place} is to be an array, not {type(value).__name__}")
        if value.ndim != kind.ndim or value.dtype != numpy_support.as_dtype(kind.dtype):
            raise TypeError(
                f"{place} is to be an array of {kind.dtype} with {kind.ndim} dimensions, not of "
                f"{value.dtype} with {value.ndim}"
            )
        words = [0, 0, value.size, value.dtype.itemsize, value.ptr, *value.shape, *value.strides]
        return [word.to_bytes(8, "little") for word in words]
    if isinstance(kind, types.UniTuple | types.Tuple):
        return [
            parameter
            for inner, element in zip(kind.types, value, strict=True)
            for parameter in numba_parameters(inner, element, place)
        ]
    if isinstance(kind, types.Complex):
        half = np.dtype(f"f{kind.bitwidth // 16}")
        return [np.array(part, half).tobytes() for part in (value.real, value.imag)]
    if isinstance(kind, types.Boolean | types.Integer | types.Float):
        if isinstance(value, DeviceArray):
            raise TypeError(f"{place} is to be a {kind}, not an array")
        if isinstance(kind, types.Integer) and int(value) != value:
            raise TypeError(f"{place} is to be a {kind}, not {value!r}")
        return [np.array(value).astype(_scalar_dtype(kind), casting="unsafe").tobytes()]
    raise TypeError(f"{place} is a {kind}, which is not supported as a kernel's argument")


def _scalar_dtype(kind: Any) -> np.dtype[Any]:
    found: np.dtype[Any] = _optional.numba().module.np.numpy_support.as_dtype(kind)
    return found


def entry_of(ptx: str) -> str:
    """Find the name of the kernel in PTX.

    Raises
    ------
    ValueError
        There is none.
    """
    found = re.search(r"\.entry\s+([^\s(]+)", ptx)
    if found is None:
        raise ValueError("the code has no kernel")
    return found.group(1)
