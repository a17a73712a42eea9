"""Decorators that compile functions: for the CPU or a CUDA device, at the first call."""

from __future__ import annotations

import functools
import threading
import warnings
from collections.abc import Callable
from typing import Any, TypeVar, overload

import numpy as np

from pydotcompute import _optional
from pydotcompute.exceptions import BackendNotAvailableError, InvalidConfigurationError

__all__ = ["Kernel", "KernelRegistry", "cuda_source", "get_kernel_registry", "gpu_kernel", "kernel"]

_F = TypeVar("_F", bound=Callable[..., Any])

_DEVICES = ("auto", "cpu", "cuda")
_BLOCK_THREADS = 256


def _source_of(func: Any) -> str | None:
    """The CUDA C++ that `cuda_source` keeps with a function, or with what was made of it."""
    source: str | None = getattr(func, "__cuda_source__", None)
    return source


class Kernel:
    """A function that is compiled at its first call; see `kernel`. Thread-safe."""

    __name__: str

    def __init__(
        self, func: Callable[..., Any], name: str | None, device: str, fastmath: bool, cache: bool
    ) -> None:
        functools.update_wrapper(self, func)
        self._original_func = func
        self._kernel_meta: dict[str, Any] = {
            "name": getattr(func, "__name__", type(func).__name__) if name is None else name,
            "device": device,
            "fastmath": fastmath,
            "cache": cache,
            "compiled": None,
        }
        self._device = "cpu"
        self._lock = threading.Lock()

    def compiled(self) -> Callable[..., Any]:
        """Compile, unless it was done before; get what numba made, or the plain function."""
        compiled: Callable[..., Any] | None = self._kernel_meta["compiled"]
        if compiled is not None:
            return compiled
        with self._lock:
            compiled = self._kernel_meta["compiled"]
            if compiled is None:
                compiled = self._compile()
                self._kernel_meta["compiled"] = compiled
        return compiled

    def _compile(self) -> Callable[..., Any]:
        # Here, since a program that only decorates does not need the compiler.
        from pydotcompute.compilation.compiler import CompilationOptions, get_compiler

        meta = self._kernel_meta
        cuda = _optional.Found(None)
        if meta["device"] != "cpu":
            cuda = _optional.cuda() if _source_of(self) is not None else _optional.numba_cuda()
        if meta["device"] == "cuda" and not cuda:
            warnings.warn(
                f"kernel '{meta['name']}' runs on the CPU: {cuda.reason}",
                RuntimeWarning,
                stacklevel=4,
            )
        options = CompilationOptions(
            device="cuda" if cuda else "cpu", fastmath=meta["fastmath"], cache=meta["cache"]
        )
        func = self._original_func
        if (source := _source_of(self)) is not None:
            func.__cuda_source__ = source  # type: ignore[attr-defined]
        compiled = get_compiler().compile(func, name=meta["name"], options=options)
        self._device = compiled.device
        return compiled.kernel

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run it: on a CUDA device with one thread for each element of the largest array."""
        compiled: Any = self.compiled()
        if self._device != "cuda":
            return compiled(*args, **kwargs)
        count = max((np.size(arg) for arg in args if hasattr(arg, "shape")), default=1)
        blocks = max(1, -(-int(count) // _BLOCK_THREADS))
        return compiled[blocks, _BLOCK_THREADS](*args, **kwargs)

    def __getitem__(self, launch: Any) -> Callable[..., Any]:
        """Choose grid and block for a CUDA device; on the CPU they mean nothing."""
        compiled: Any = self.compiled()
        if self._device != "cuda":
            return functools.partial(compiled)
        chosen: Callable[..., Any] = compiled[launch]
        return chosen

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        """Bind like a function, so that it may be a method."""
        return self if instance is None else functools.partial(self, instance)

    def __reduce__(self) -> str:
        """Pickle it as functions are: by its name."""
        return str(getattr(self, "__qualname__", self._kernel_meta["name"]))

    def __repr__(self) -> str:
        return f"<kernel {self._kernel_meta['name']!r} device={self._kernel_meta['device']!r}>"


@overload
def kernel(func: Callable[..., Any]) -> Any: ...
@overload
def kernel(
    func: None = None,
    *,
    name: str | None = None,
    device: str = "auto",
    fastmath: bool = True,
    cache: bool = True,
) -> Callable[[Callable[..., Any]], Any]: ...
def kernel(
    func: Callable[..., Any] | None = None,
    *,
    name: str | None = None,
    device: str = "auto",
    fastmath: bool = True,
    cache: bool = True,
) -> Any:
    """Compile a function with numba at its first call.

    Where numba is not installed the plain function runs; where numba cannot compile the function
    for its arguments, too, and a RuntimeWarning says so.

    Parameters
    ----------
    func
        The function.
    name
        The kernel's name; None: the function's.
    device
        "cpu"; "cuda", which without a CUDA device warns and means "cpu"; "auto" takes what is
        there. On a CUDA device, `kernel[grid, block](...)` chooses the launch, and a plain call
        has one thread for each element of the largest array.
    fastmath
        Whether floating point may be reordered. On the CPU, NaN and infinity stay what they are.
    cache
        Whether functions that are the same in all that matters share the compiled code.

    Raises
    ------
    InvalidConfigurationError
        There is no such device.
    TypeError
        It is no function.
    """
    if func is not None and not callable(func):
        raise TypeError(f"kernel decorates a function, not {type(func).__name__}")
    if device not in _DEVICES:
        raise InvalidConfigurationError("device", device, f"must be one of {list(_DEVICES)}")

    def decorate(func: Callable[..., Any]) -> Kernel:
        return Kernel(func, name, device, fastmath, cache)

    return decorate if func is None else decorate(func)


class _UnavailableKernel:
    """Takes the place of a GPU kernel where there is no GPU: says so when it is launched."""

    __name__: str

    def __init__(self, func: Callable[..., Any], reason: str) -> None:
        functools.update_wrapper(self, func)
        self.py_func = func
        self._reason = reason

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise BackendNotAvailableError("CUDA", self._reason)

    def __getitem__(self, launch: Any) -> Callable[..., Any]:
        return self

    def forall(self, *args: Any, **kwargs: Any) -> Callable[..., Any]:
        """Choose a launch by the number of threads."""
        return self


def _require_numba() -> None:
    if not (numba := _optional.numba()):
        raise RuntimeError(f"gpu_kernel needs numba: {numba.reason}")


@overload
def gpu_kernel(func: Callable[..., Any]) -> Any: ...
@overload
def gpu_kernel(
    func: None = None,
    *,
    name: str | None = None,
    signature: str | None = None,
    fastmath: bool = True,
    debug: bool = False,
    cache: bool = True,
) -> Callable[[Callable[..., Any]], Any]: ...
def gpu_kernel(
    func: Callable[..., Any] | None = None,
    *,
    name: str | None = None,
    signature: str | None = None,
    fastmath: bool = True,
    debug: bool = False,
    cache: bool = True,
) -> Any:
    """Make a CUDA kernel, launched with `kernel[grid, block](...)`.

    It is numba's, or of the CUDA C++ that `cuda_source` gave the function.

    Without a CUDA device the function can be decorated, and a launch raises
    BackendNotAvailableError with the reason.

    Parameters
    ----------
    func
        The function.
    name
        The kernel's name; None: the function's.
    signature
        The types to compile for at once, as numba writes them; None: compile at the first launch.
    fastmath
        Whether floating point may be reordered and rounded.
    debug
        Whether to make debug information, without optimisation.
    cache
        Whether numba keeps the code beside the source file, where there is one.

    Raises
    ------
    RuntimeError
        numba is not installed.
    """
    if func is None or _source_of(func) is None:
        _require_numba()

    def decorate(func: Callable[..., Any]) -> Any:
        compiled: Any
        source = _source_of(func)
        if source is None:
            _require_numba()
        cuda = _optional.numba_cuda() if source is None else _optional.cuda()
        if cuda and source is not None:
            from pydotcompute.compilation.compiler import CompilationOptions, source_kernel

            options = CompilationOptions(fastmath=fastmath, debug=debug, cache=cache)
            compiled = source_kernel(source, func.__name__, options)
        elif cuda:
            settings: dict[str, Any] = {"fastmath": fastmath, "debug": debug, "opt": not debug}
            head = () if signature is None else (signature,)
            try:
                compiled = cuda.module.jit(*head, cache=cache, **settings)(func)
            except RuntimeError:
                if not cache:
                    raise
                # A function without a source file has no place for numba's cache.
                compiled = cuda.module.jit(*head, **settings)(func)
        else:
            # That there is no driver says more than that numba sees no device.
            compiled = _UnavailableKernel(func, _optional.cuda().reason or cuda.reason)
        compiled._kernel_meta = {
            "name": func.__name__ if name is None else name,
            "signature": signature,
            "device": "cuda",
            "fastmath": fastmath,
            "debug": debug,
        }
        compiled._original_func = func
        return compiled

    return decorate if func is None else decorate(func)


def cuda_source(source: str) -> Callable[[_F], _F]:
    """Make a decorator that keeps CUDA C++ with a function, as `__cuda_source__`.

    On a CUDA device, `kernel`, `gpu_kernel` and `KernelCompiler` compile it instead of the
    function; it defines a kernel of the function's name, `extern "C" __global__`. Elsewhere the
    function runs.

    Raises
    ------
    TypeError
        The source is no text.
    """
    if not isinstance(source, str):
        raise TypeError(f"a source is text, not {type(source).__name__}")

    def decorate(func: _F) -> _F:
        func.__cuda_source__ = source  # type: ignore[attr-defined]
        return func

    return decorate


class KernelRegistry:
    """Kernels by their names: one object per process. Thread-safe."""

    _instance: KernelRegistry | None = None
    _lock = threading.Lock()
    _kernels: dict[str, Any]

    def __new__(cls) -> KernelRegistry:
        with cls._lock:
            if cls._instance is None:
                cls._instance = super().__new__(cls)
                cls._instance._kernels = {}
            return cls._instance

    def register(self, name: str, kernel: Any, *, overwrite: bool = False) -> None:
        """Give a kernel a name.

        Raises
        ------
        ValueError
            Another has it, and `overwrite` is False.
        """
        with self._lock:
            if name in self._kernels and not overwrite:
                raise ValueError(f"Kernel '{name}' is already registered")
            self._kernels[name] = kernel

    def get(self, name: str) -> Any:
        """Get a kernel; None when no kernel has this name."""
        return self._kernels.get(name)

    def list(self) -> list[str]:
        """Get all names."""
        return [*self._kernels]

    def clear(self) -> None:
        """Forget all kernels."""
        self._kernels.clear()


def get_kernel_registry() -> KernelRegistry:
    """Get the process's `KernelRegistry`."""
    return KernelRegistry()
