"""Apple's GPUs as a backend, over MLX.

The module imports, and the backend can be made, on any machine; without MLX and a Metal device it
says that it is not available, and why. Arrays are evaluated before they are handed out: a lazy one
belongs to the thread that made it.
"""

from __future__ import annotations

import functools
import itertools
import re
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from pydotcompute import _optional
from pydotcompute.backends.base import Backend, BackendType, KernelExecutionResult
from pydotcompute.exceptions import InvalidConfigurationError, MetalError, MSLCompilationError

__all__ = [
    "MetalBackend",
    "MetalBufferInfo",
    "MetalBufferState",
    "get_elementwise_kernel",
    "get_matrix_multiply_kernel",
    "get_vector_add_kernel",
]

# NumPy's names of what MLX has too; float64 and the rest become float32.
_DTYPES = frozenset(
    ["bool", "complex64", "float16", "float32"]
    + [f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)]
)


def _check_metal_available() -> bool:
    """Tell whether there is MLX with a Metal device."""
    return bool(_optional.mlx())


class MetalBufferState(Enum):
    """What became of an array."""

    ALLOCATED = auto()
    FREED = auto()
    IN_USE = auto()


@dataclass
class MetalBufferInfo:
    """What the registry knows of an array.

    Attributes
    ----------
    array_id
        The `id` of the array.
    size
        Its bytes, by the NumPy dtype.
    shape, dtype
        Its dimensions and the NumPy dtype that was asked for.
    state
        What became of it.
    created_at, last_accessed
        In seconds since the epoch.
    """

    array_id: int
    size: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    state: MetalBufferState
    created_at: float = field(default_factory=time.time)
    last_accessed: float = field(default_factory=time.time)


def _mlx_dtype(mx: Any, dtype: DTypeLike) -> Any:
    """Find MLX's dtype for NumPy's."""
    name = np.dtype(dtype).name
    if name == "bool":
        return mx.bool_
    return getattr(mx, name if name in _DTYPES else "float32")


def _arrays(value: Any, kind: type) -> list[Any]:
    """Find the MLX arrays in what a kernel returned."""
    if isinstance(value, kind):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return [array for item in value for array in _arrays(item, kind)]
    return []


class MetalBackend(Backend):
    """Memory and kernels of Apple's GPU. Its methods may be called from any thread.

    Parameters
    ----------
    device_id
        The device; there is one, 0.
    """

    def __init__(self, device_id: int = 0) -> None:
        self._device_id = device_id
        found = _optional.mlx()
        self._reason = found.reason
        self._mx: Any = found.module
        if self._mx is not None and device_id != 0:
            self._mx, self._reason = None, f"there is no device {device_id}: Metal has one"
        self._buffer_registry: dict[int, MetalBufferInfo] = {}
        # Removes an array from the registry when it goes without `free`.
        self._finalizers: dict[int, weakref.finalize[Any, Any]] = {}
        # By the function itself, or the source: an id alone would be given to another one day.
        self._kernel_cache: dict[tuple[Callable[..., Any] | str, str | None], Any] = {}

    @property
    def backend_type(self) -> BackendType:
        """What it runs on."""
        return BackendType.METAL

    @property
    def is_available(self) -> bool:
        """Whether it can be used on this machine."""
        return self._mx is not None

    @property
    def unavailable_reason(self) -> str:
        """Why it cannot be used; empty when it can."""
        return self._reason

    @property
    def device_count(self) -> int:
        """How many devices there are: one, or 0 when it cannot be used."""
        return 1 if self.is_available else 0

    @property
    def device_id(self) -> int:
        """The device that it uses."""
        return self._device_id

    def _require(self) -> Any:
        """MLX, or an error that says why there is none."""
        if self._mx is None:
            raise MetalError(f"Metal not available: {self._reason}")
        return self._mx

    # --- memory ---

    def _register(self, array: Any, dtype: np.dtype[Any]) -> Any:
        shape = tuple(array.shape)
        key = id(array)
        info = MetalBufferInfo(
            key, int(np.prod(shape)) * dtype.itemsize, shape, dtype, MetalBufferState.ALLOCATED
        )
        # No lock: each step is one operation on a dict, and a finaliser may run between any two.
        self._buffer_registry[key] = info
        finalizer = weakref.finalize(array, _forget, weakref.ref(self), key, info)
        finalizer.atexit = False
        self._finalizers[key] = finalizer
        return array

    def _unregister(self, key: int) -> None:
        info = self._buffer_registry.pop(key, None)
        finalizer = self._finalizers.pop(key, None)
        if info is not None:
            info.state = MetalBufferState.FREED
        if finalizer is not None:
            finalizer.detach()

    def allocate(self, shape: tuple[int, ...], dtype: DTypeLike) -> Any:
        """Make an MLX array of zeros; float64, and what MLX lacks, as float32.

        Raises
        ------
        MetalError
            There is no device, or no memory.
        """
        mx = self._require()
        try:
            array = mx.zeros(shape, dtype=_mlx_dtype(mx, dtype))
            mx.eval(array)
        except Exception as error:
            raise MetalError(f"Failed to allocate {shape} of {np.dtype(dtype)}: {error}") from error
        return self._register(array, np.dtype(dtype))

    def allocate_zeros(self, shape: tuple[int, ...], dtype: DTypeLike) -> Any:
        """Make an MLX array of zeros; see `allocate`."""
        return self.allocate(shape, dtype)

    def free(self, array: Any) -> None:
        """Forget an array; its memory goes when nobody refers to it any more."""
        self._unregister(id(array))

    def copy_to_device(self, host_array: NDArray[Any]) -> Any:
        """Copy an array to the device; float64, and what MLX lacks, as float32.

        Raises
        ------
        MetalError
            There is no device, or the copy failed.
        """
        mx = self._require()
        host = np.asarray(host_array)
        try:
            array = mx.array(host, dtype=_mlx_dtype(mx, host.dtype))
            mx.eval(array)
        except Exception as error:
            raise MetalError(f"Failed to copy to the device: {error}") from error
        return self._register(array, host.dtype)

    def copy_to_host(self, device_array: Any) -> NDArray[Any]:
        """Copy an array to main memory; see `copy_to_device`."""
        mx = self._require()
        try:
            mx.eval(device_array)
            if device_array.dtype == mx.bfloat16:  # Which NumPy lacks.
                device_array = device_array.astype(mx.float32)
            host = np.array(device_array, copy=True)
        except Exception as error:
            raise MetalError(f"Failed to copy to the host: {error}") from error
        info = self._buffer_registry.get(id(device_array))
        if info is not None:
            info.last_accessed = time.time()
        return host

    def synchronize(self) -> None:
        """Wait until the device has done what it was given."""
        if self._mx is not None:
            self._mx.synchronize()

    def get_memory_info(self) -> dict[str, int]:
        """Measure memory in bytes.

        Returns
        -------
        dict
            `allocated` (the arrays of the registry), `buffer_count`, and MLX's `cache_memory` and
            `peak_memory`; zeros when there is no device.
        """
        if self._mx is None:
            return {"allocated": 0, "buffer_count": 0, "cache_memory": 0, "peak_memory": 0}
        sizes = [info.size for info in list(self._buffer_registry.values())]
        return {
            "allocated": sum(sizes),
            "buffer_count": len(sizes),
            "cache_memory": int(self._mx.get_cache_memory()),
            "peak_memory": int(self._mx.get_peak_memory()),
        }

    def clear_cache(self) -> None:
        """Give memory that MLX keeps for reuse back to the system."""
        if self._mx is not None:
            self._mx.clear_cache()

    def _cleanup(self) -> None:
        """Forget all arrays and compiled kernels, and clear MLX's cache."""
        for key in list(self._buffer_registry):
            self._unregister(key)
        self._kernel_cache.clear()
        self.clear_cache()

    # --- kernels ---

    def execute_kernel(
        self,
        kernel: Callable[..., Any],
        grid_size: tuple[int, ...],
        block_size: tuple[int, ...],
        *args: Any,
        **kwargs: Any,
    ) -> KernelExecutionResult:
        """Call a kernel and wait for the arrays that it returns.

        Parameters
        ----------
        kernel
            A function of MLX arrays, or a kernel of `compile_kernel`. One made from source runs
            over the grid and the block.
        grid_size, block_size
            Blocks, and threads of a block, in each dimension.
        *args, **kwargs
            The kernel's arguments.

        Returns
        -------
        KernelExecutionResult
            With what the kernel returned or raised.
        """
        if self._mx is None:
            return KernelExecutionResult(False, 0.0, MetalError("Metal not available"))
        started = time.perf_counter()
        result = None
        failure: Exception | None = None
        try:
            if isinstance(kernel, _SourceKernel):
                blocks, threads = _three(grid_size), _three(block_size)
                kwargs.setdefault(
                    "grid", tuple(b * t for b, t in zip(blocks, threads, strict=True))
                )
                kwargs.setdefault("threadgroup", threads)
            result = kernel(*args, **kwargs)
            self._mx.eval(*_arrays(result, self._mx.array))
        except Exception as error:
            failure = error
        elapsed_ms = (time.perf_counter() - started) * 1000
        return KernelExecutionResult(failure is None, elapsed_ms, failure, result)

    def compile_kernel(
        self, func: Callable[..., Any] | str, signature: str | None = None
    ) -> Callable[..., Any]:
        """Make a kernel from a function of MLX arrays, or from Metal source.

        Parameters
        ----------
        func
            A function: NumPy arrays among the arguments become MLX arrays, and what it returns is
            evaluated. Or the *body* of a Metal kernel, as `mlx.core.fast.metal_kernel` takes it.
        signature
            For source: the names of its arrays, "a, b -> out". Without them the kernel raises
            NotImplementedError when it is called. For functions: only tells kernels apart.

        Returns
        -------
        callable
            The same for the same function and signature. One made from source is called with its
            input arrays and, by keyword, `grid` (threads in all) and `threadgroup`; each output is
            like the first input unless `output_shapes` and `output_dtypes` say otherwise.

        Raises
        ------
        MetalError
            There is no device.
        InvalidConfigurationError
            The signature of the source is none.
        """
        mx = self._require()
        kernel: Callable[..., Any] | None = self._kernel_cache.get((func, signature))
        if kernel is None:
            if isinstance(func, str):
                kernel = _SourceKernel(mx, func, signature)
            else:
                kernel = _wrap(mx, func)
            kernel = self._kernel_cache.setdefault((func, signature), kernel)
        return kernel

    def __repr__(self) -> str:
        if self._mx is None:
            return "MetalBackend(available=False)"
        cache_kb = self._mx.get_cache_memory() / 1024
        return (
            f"MetalBackend(device={self._device_id}, available=True, "
            f"buffers={len(self._buffer_registry)}, cache={cache_kb:.1f}KB)"
        )


def _forget(backend: weakref.ref[MetalBackend], key: int, info: MetalBufferInfo) -> None:
    """Take an array that is gone out of the registry, unless its id already has another one."""
    owner = backend()
    if owner is not None and owner._buffer_registry.get(key) is info:
        owner._unregister(key)


def _wrap(mx: Any, func: Callable[..., Any]) -> Callable[..., Any]:
    """Make a function take NumPy arrays and return evaluated MLX arrays."""

    def to_mlx(value: Any) -> Any:
        if isinstance(value, np.ndarray):
            return mx.array(value, dtype=_mlx_dtype(mx, value.dtype))
        return value

    @functools.wraps(func)
    def kernel(*args: Any, **kwargs: Any) -> Any:
        result = func(*map(to_mlx, args), **{name: to_mlx(v) for name, v in kwargs.items()})
        mx.eval(*_arrays(result, mx.array))
        return result

    return kernel


def _three(size: int | Sequence[int]) -> tuple[int, int, int]:
    """Fill a grid or a block up to three dimensions."""
    dims = (size,) if isinstance(size, int) else tuple(size)
    x, y, z = (*dims, 1, 1, 1)[:3]
    return x, y, z


_source_numbers = itertools.count(1)


class _SourceKernel:
    """A kernel made from the body of a Metal function; see `MetalBackend.compile_kernel`."""

    def __init__(self, mx: Any, source: str, signature: str | None) -> None:
        self._mx = mx
        self._source = source
        self._kernel: Any = None
        self.__name__ = f"pydotcompute_msl_{next(_source_numbers)}"
        if signature is None:
            return
        inputs, arrow, outputs = signature.partition("->")
        input_names = [name.strip() for name in inputs.split(",") if name.strip()]
        self._output_names = [name.strip() for name in outputs.split(",") if name.strip()]
        names = [*input_names, *self._output_names]
        if not (arrow and self._output_names and all(name.isidentifier() for name in names)):
            raise InvalidConfigurationError(
                "signature", signature, 'must name the arrays of the source: "a, b -> out"'
            )
        self._kernel = mx.fast.metal_kernel(
            name=self.__name__,
            input_names=input_names,
            output_names=self._output_names,
            source=source,
        )

    def __call__(
        self,
        *inputs: Any,
        grid: int | Sequence[int] | None = None,
        threadgroup: int | Sequence[int] | None = None,
        output_shapes: Sequence[Sequence[int]] | None = None,
        output_dtypes: Sequence[DTypeLike] | None = None,
        template: Sequence[tuple[str, Any]] | None = None,
    ) -> Any:
        """Run it: one output array, or a list of several."""
        if self._kernel is None:
            raise NotImplementedError(
                "Metal source needs the names of its arrays: "
                'compile_kernel(source, signature="a, b -> out")'
            )
        mx = self._mx
        arrays = [
            value
            if isinstance(value, mx.array)
            else mx.array(value, dtype=_mlx_dtype(mx, np.asarray(value).dtype))
            for value in inputs
        ]
        count = len(self._output_names)
        if output_shapes is None:
            output_shapes = [tuple(arrays[0].shape)] * count
        dtypes = (
            [arrays[0].dtype] * count
            if output_dtypes is None
            else [d if isinstance(d, mx.Dtype) else _mlx_dtype(mx, d) for d in output_dtypes]
        )
        if template is None and re.search(r"\bT\b", self._source):
            template = [("T", dtypes[0])]
        threads = (int(np.prod(output_shapes[0])),) if grid is None else grid
        launch = {"template": list(template)} if template else {}
        try:
            results = self._kernel(
                inputs=arrays,
                output_shapes=[tuple(shape) for shape in output_shapes],
                output_dtypes=dtypes,
                grid=_three(threads),
                threadgroup=_three((256,) if threadgroup is None else threadgroup),
                **launch,
            )
            mx.eval(*results)
        except RuntimeError as error:
            if "library" in str(error):  # "Unable to build metal library from source"
                raise MSLCompilationError(self.__name__, str(error)) from error
            raise MetalError(f"Failed to run MSL kernel '{self.__name__}': {error}") from error
        return results[0] if count == 1 else results


# --- kernels that are there already ----------------------------------------------------------


def get_vector_add_kernel() -> Callable[..., Any] | None:
    """Get a kernel `(a, b)` that adds arrays element by element; None without Metal."""
    mx = _optional.mlx().module
    return None if mx is None else _wrap(mx, lambda a, b: mx.add(a, b))


def get_matrix_multiply_kernel() -> Callable[..., Any] | None:
    """Get a kernel `(a, b)` that multiplies matrices; None without Metal."""
    mx = _optional.mlx().module
    return None if mx is None else _wrap(mx, lambda a, b: mx.matmul(a, b))


_BINARY = {"add": "add", "sub": "subtract", "mul": "multiply", "div": "divide"}
_UNARY = ("sqrt", "exp", "log", "sin", "cos", "abs", "square", "negative")


def get_elementwise_kernel(operation: str) -> Callable[..., Any] | None:
    """Get a kernel that works element by element; None without Metal, or if there is none.

    Parameters
    ----------
    operation
        Of two arrays: add, sub, mul, div. Of one: sqrt, exp, log, sin, cos, abs, square, negative.
    """
    mx = _optional.mlx().module
    if mx is None:
        return None
    if operation in _BINARY:
        binary = getattr(mx, _BINARY[operation])
        return _wrap(mx, lambda a, b: binary(a, b))
    if operation in _UNARY:
        unary = getattr(mx, operation)
        return _wrap(mx, lambda a: unary(a))
    return None
