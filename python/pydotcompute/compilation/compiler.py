"""Compiles Python functions, and CUDA C++, for a CUDA device or for the CPU, and keeps the results.

What is kept is found again by everything that the compiled code depends on: the function's code,
the values that it captures, the globals that it names, its defaults, the signature and the options.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import hashlib
import inspect
import sys
import threading
import time
import types
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pydotcompute import _optional
from pydotcompute._jit import JitFunction, argument_types, jit, plain_function
from pydotcompute.compilation.cache import get_kernel_cache
from pydotcompute.exceptions import KernelCompilationError

if TYPE_CHECKING:
    from pydotcompute._native import CudaDevice
    from pydotcompute.compilation.launch import SourceKernel

__all__ = [
    "CompilationOptions",
    "CompiledKernel",
    "KernelCompiler",
    "compile_kernel",
    "compile_source",
    "get_compiler",
    "source_kernel",
]


@dataclass
class CompilationOptions:
    """How a kernel is compiled.

    Attributes
    ----------
    device
        "cuda" where there is a CUDA device; anything else, and anywhere else, means the CPU.
    fastmath
        Whether floating point may be reordered. On the CPU, NaN and infinity stay what they are.
    debug
        Whether to make debug information, and on the CPU to check bounds.
    lineinfo
        Whether CUDA code knows its source lines.
    opt_level
        0: do not optimise CUDA code.
    cache
        Whether to keep the result and return it again.
    """

    device: str = "cuda"
    fastmath: bool = True
    debug: bool = False
    lineinfo: bool = False
    opt_level: int = 3
    cache: bool = True


@dataclass
class CompiledKernel:
    """A compiled kernel.

    Attributes
    ----------
    kernel
        What to call, or on CUDA to launch with `kernel[grid, block]`.
    name
        Its name.
    source_hash
        16 hexadecimal digits that stand for everything that it depends on.
    signature
        The signature that was given.
    options
        The options that were given.
    compile_time_ms
        How long it took, in milliseconds; compiling at the first call is not in it.
    ptx
        The PTX code of a CUDA kernel of Python that has a signature.
    cubin
        The machine code of a CUDA kernel for the current device: of CUDA C++, or of Python with a
        signature.
    device
        Where it runs, "cuda" or "cpu", whatever the options asked for.
    """

    kernel: Callable[..., Any]
    name: str
    source_hash: str
    signature: str | None
    options: CompilationOptions
    compile_time_ms: float = 0.0
    ptx: str | None = None
    device: str = "cpu"
    cubin: bytes | None = None

    @property
    def is_compiled(self) -> bool:
        """Whether numba compiles it; False: it is the plain function."""
        return self.device == "cuda" or isinstance(self.kernel, JitFunction)


# --- what a function depends on --------------------------------------------------------------

# Their functions and classes are the same wherever they have the same name.
_LASTING_PACKAGES = sys.stdlib_module_names | {"numpy", "numba", "builtins", "mlx", "cupy"}
_SCALARS = (int, float, complex, str, bytes, bool, type(None), type(Ellipsis), range, slice)


class _Fingerprint:
    """Digests a function with all that it refers to.

    Attributes
    ----------
    lasting
        Whether the digest means the same in another process.
    """

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._seen: dict[int, int] = {}
        # Keeps what is digested alive, so that no id is given twice meanwhile.
        self._alive: list[Any] = []
        self.lasting = True

    def hexdigest(self) -> str:
        """Get the digest."""
        return self._hash.hexdigest()

    def add(self, *values: Any) -> None:
        """Digest values, one after the other."""
        for value in values:
            self._add(value)

    def _mark(self, *words: object) -> None:
        for word in words:
            data = word if isinstance(word, bytes) else str(word).encode(errors="surrogatepass")
            self._hash.update(len(data).to_bytes(8, "little"))
            self._hash.update(data)

    def _add(self, value: Any) -> None:
        if isinstance(value, enum.Enum):
            self._mark("enum", value.name)
            self._add(type(value))
        elif type(value) in _SCALARS:
            self._mark(type(value).__name__, repr(value))
        elif isinstance(value, (np.generic, np.ndarray)) and not value.dtype.hasobject:
            self._mark("array", value.dtype.str, value.shape, value.tobytes())
        elif isinstance(value, np.dtype):
            self._mark("dtype", value.str, value.descr if value.fields else "")
        elif isinstance(value, types.ModuleType):
            self._mark("module", value.__name__)
        elif id(value) in self._seen:
            self._mark("seen", self._seen[id(value)])
        else:
            self._seen[id(value)] = len(self._seen)
            self._alive.append(value)
            self._add_object(value)

    def _add_object(self, value: Any) -> None:
        if isinstance(value, (list, tuple)):
            self._mark("sequence", type(value).__name__, len(value))
            self.add(*value)
        elif isinstance(value, (set, frozenset)):
            self._mark("set", len(value))
            self.add(*sorted(value, key=lambda item: (type(item).__name__, repr(item))))
        elif isinstance(value, dict):
            self._mark("dict", len(value))
            for item in value.items():
                self.add(*item)
        elif isinstance(value, types.CodeType):
            self._add_code(value)
        elif isinstance(value, functools.partial):
            self._mark("partial")
            self.add(value.func, value.args, value.keywords)
        elif isinstance(value, types.MethodType):
            self._mark("method")
            self.add(value.__func__, value.__self__)
        elif isinstance(plain := plain_function(value), types.FunctionType):
            self._add_function(plain)
        else:
            self._add_name(value)

    def _add_code(self, code: types.CodeType) -> None:
        self._mark("code", code.co_name, code.co_code, code.co_exceptiontable, code.co_flags)
        self._mark(code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount)
        self._mark(code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)
        self.add(*code.co_consts)

    def _add_function(self, func: types.FunctionType) -> None:
        package = func.__module__.partition(".")[0] if func.__module__ else ""
        home = sys.modules.get(func.__module__ or "")
        # A function made by exec() may only claim to be of a module.
        if package in _LASTING_PACKAGES and home and func.__globals__ is vars(home):
            self._add_name(func)
            return
        self._mark("function", func.__name__)
        self._add(func.__code__)
        self.add(func.__defaults__, func.__kwdefaults__)
        for cell in func.__closure__ or ():
            try:
                self._add(cell.cell_contents)
            except ValueError:
                self._mark("empty cell")
        names = _names(func.__code__)
        for name in sorted(names & func.__globals__.keys()):
            value = func.__globals__[name]
            self._mark("global", name)
            self._add(value)
            if isinstance(value, types.ModuleType):
                # numba takes the constants of a module as they are when it compiles.
                for attribute in sorted(names):
                    constant = vars(value).get(attribute)
                    if isinstance(constant, (*_SCALARS, tuple, np.ndarray, np.generic)):
                        self._mark("attribute", attribute)
                        self._add(constant)

    def _add_name(self, value: Any) -> None:
        """Digest an object of which only its name and its identity are known."""
        owner = value if hasattr(value, "__qualname__") else type(value)
        module = str(getattr(owner, "__module__", ""))
        self._mark("object", module, owner.__qualname__)
        if owner is not value or module.partition(".")[0] not in _LASTING_PACKAGES:
            self._mark(id(value))
            self.lasting = False


def _names(code: types.CodeType) -> set[str]:
    """Find all global and attribute names of code and of the code inside it."""
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= _names(constant)
    return names


# --- the compiler ----------------------------------------------------------------------------


class KernelCompiler:
    """Compiles functions and keeps the results. Thread-safe.

    Parameters
    ----------
    options
        The options where none are given; None: the defaults.
    """

    def __init__(self, options: CompilationOptions | None = None) -> None:
        self._options = options if options is not None else CompilationOptions()
        self._compiled_cache: dict[str, CompiledKernel] = {}
        self._lock = threading.RLock()

    @property
    def cuda_available(self) -> bool:
        """Whether functions can be compiled for, and run on, a CUDA device."""
        return bool(_optional.numba_cuda())

    @property
    def numba_available(self) -> bool:
        """Whether numba is installed."""
        return bool(_optional.numba())

    def _fingerprint(
        self, func: Any, signature: str | None, options: CompilationOptions, name: str | None
    ) -> tuple[str, bool]:
        """Digest all that a kernel depends on, and tell whether the digest lasts."""
        digest = _Fingerprint()
        settings = {**dataclasses.asdict(options), "cache": None}
        source = getattr(func, "__cuda_source__", None)
        digest.add(name or _name_of(func), signature, settings, source, func)
        return digest.hexdigest()[:16], digest.lasting

    def _get_source_hash(
        self,
        func: Callable[..., Any],
        signature: str | None,
        options: CompilationOptions,
        name: str | None = None,
    ) -> str:
        """Digest all that a kernel depends on: 16 hexadecimal digits."""
        return self._fingerprint(func, signature, options, name)[0]

    def compile(
        self,
        func: Callable[..., Any],
        *,
        signature: str | None = None,
        name: str | None = None,
        options: CompilationOptions | None = None,
    ) -> CompiledKernel:
        """Compile a function.

        Parameters
        ----------
        func
            The function. What it captures and names is as it is now.
        signature
            The types to compile for at once, as numba writes them: "float32(float32[:])". None:
            compile at the first call, for its arguments. On the CPU the return type is inferred.
        name
            The kernel's name; None: the function's.
        options
            How to compile; None: the compiler's own options.

        Returns
        -------
        CompiledKernel
            With `options.cache` the same object for the same function, name, signature and options.
            Without a CUDA device it runs on the CPU, and without numba it is the plain function.

        Raises
        ------
        KernelCompilationError
            It cannot be compiled.
        """
        options = self._options if options is None else options
        name = _name_of(func) if name is None else name
        try:
            if not callable(func):
                raise TypeError(f"a kernel must be callable, not {type(func).__name__}")
            if inspect.iscoroutinefunction(func) or inspect.isasyncgenfunction(func):
                raise TypeError("a coroutine function cannot be compiled")
            source_hash, lasting = self._fingerprint(func, signature, options, name)
            with self._lock:
                known = self._compiled_cache.get(source_hash) if options.cache else None
                if known is not None:
                    return known
                compiled = self._compile(func, signature, name, options, source_hash, lasting)
                if options.cache:
                    self._compiled_cache[source_hash] = compiled
                return compiled
        except Exception as error:
            raise KernelCompilationError(name, error) from error

    def _compile(
        self,
        func: Callable[..., Any],
        signature: str | None,
        name: str,
        options: CompilationOptions,
        source_hash: str,
        lasting: bool,
    ) -> CompiledKernel:
        started = time.perf_counter()
        ptx = cubin = None
        runtime = _optional.cuda().module if options.device == "cuda" else None
        source = getattr(func, "__cuda_source__", None)
        device = "cuda"
        kernel: Callable[..., Any]
        if runtime is not None and source is not None:
            kernel, cubin = _compile_cuda_source(source, _name_of(func), options, runtime)
        elif runtime is not None and self.cuda_available and not _simulated():
            build = _NumbaBuild(func, name, options, source_hash, lasting)
            types_ = None if signature is None else argument_types(signature)
            kernel, ptx, cubin = _compile_for_device(build, name, types_, runtime)
        elif options.device == "cuda" and self.cuda_available:
            kernel, ptx = _compile_by_numba(func, signature, name, options, source_hash, lasting)
        else:
            device = "cpu"
            kernel = jit(func, signature=signature, fastmath=options.fastmath, debug=options.debug)
        elapsed_ms = (time.perf_counter() - started) * 1000
        return CompiledKernel(
            kernel, name, source_hash, signature, options, elapsed_ms, ptx, device, cubin
        )

    def get_cached_kernel(self, source_hash: str) -> CompiledKernel | None:
        """Get what was kept under a `source_hash`."""
        return self._compiled_cache.get(source_hash)

    def clear_cache(self) -> int:
        """Forget what was kept; returns how many kernels that were."""
        with self._lock:
            count = len(self._compiled_cache)
            self._compiled_cache.clear()
        return count

    def get_cache_stats(self) -> dict[str, int]:
        """Count what is kept: `cached_kernels`."""
        return {"cached_kernels": len(self._compiled_cache)}

    def __repr__(self) -> str:
        return (
            f"KernelCompiler(cuda={self.cuda_available}, numba={self.numba_available}, "
            f"cached={len(self._compiled_cache)})"
        )


def _name_of(func: Any) -> str:
    return str(getattr(func, "__name__", type(func).__name__))


# --- CUDA ------------------------------------------------------------------------------------


def _simulated() -> bool:
    """Whether numba's CUDA is its simulator, which runs Python."""
    return bool(_optional.numba().module.config.ENABLE_CUDASIM)


def _settings(options: CompilationOptions) -> dict[str, Any]:
    """The options as numba's CUDA has them."""
    settings = {
        "debug": options.debug,
        "fastmath": options.fastmath,
        "opt": options.opt_level > 0 and not options.debug,
    }
    if options.lineinfo:
        settings["lineinfo"] = True
    return settings


def _compile_by_numba(
    func: Callable[..., Any],
    signature: str | None,
    name: str,
    options: CompilationOptions,
    source_hash: str,
    lasting: bool,
) -> tuple[Callable[..., Any], str | None]:
    """Leave a function to numba's CUDA: its simulator, or a driver too old for us. With a signature
    also make PTX, which is kept on disk."""
    cuda = _optional.numba_cuda().module
    plain = plain_function(func)
    settings = _settings(options)
    if signature is None:
        return cuda.jit(**settings)(plain), None
    cache = get_kernel_cache() if options.cache and lasting else None
    known = cache.load(name, source_hash) if cache is not None else None
    if known is not None:
        ptx = known.decode()
    else:
        ptx, _ = cuda.compile_ptx(plain, argument_types(signature), **settings)
        if cache is not None:
            cache.store(name, source_hash, ptx, signature=signature)
    return cuda.jit(signature, **settings)(plain), ptx


def compile_source(
    source: str,
    name: str,
    capability: tuple[int, int],
    options: CompilationOptions | None = None,
) -> bytes:
    """Compile CUDA C++ to a cubin, which is kept on disk; needs no device.

    Parameters
    ----------
    source
        The source; its kernels are `extern "C" __global__`.
    name
        How errors name it.
    capability
        The compute capability, major and minor.
    options
        How to compile: `fastmath`, `debug`, `lineinfo` and `cache`; None: precisely.

    Raises
    ------
    CUDAError
        NVIDIA's compiler is not installed.
    CompilationError
        The source is wrong: with the compiler's words and its lines.
    """
    from pydotcompute._cuda import toolkit

    chosen = CompilationOptions(fastmath=False) if options is None else options
    architecture = f"sm_{capability[0]}{capability[1]}"
    flags = [f"--gpu-architecture={architecture}", "--std=c++17"]
    if chosen.fastmath:
        flags.append("--use_fast_math")
    if chosen.debug:
        flags.append("--device-debug")
    elif chosen.lineinfo:
        flags.append("--generate-line-info")
    tools = toolkit()
    digest = _Fingerprint()
    digest.add(source, name, flags, tools.versions)
    key = digest.hexdigest()[:16]
    cache = get_kernel_cache() if chosen.cache else None
    known = cache.load(name, key) if cache is not None else None
    if known is not None:
        return known
    cubin, log = tools.compile(source, f"{name}.cu", flags)
    if log.strip():
        warnings.warn(log.strip(), RuntimeWarning, stacklevel=2)
    if cache is not None:
        cache.store(name, key, cubin, metadata={"kind": "cubin", "architecture": architecture})
    return cubin


def source_kernel(source: str, name: str, options: CompilationOptions) -> SourceKernel:
    """Make a kernel of CUDA C++, which is compiled for a device at its first launch there."""
    from pydotcompute.compilation.launch import SourceKernel

    def image(device: CudaDevice) -> bytes:
        return compile_source(source, name, device.compute_capability, options)

    return SourceKernel(name, image)


def _compile_cuda_source(
    source: str, name: str, options: CompilationOptions, runtime: Any
) -> tuple[Callable[..., Any], bytes]:
    kernel = source_kernel(source, name, options)
    device = runtime.device()
    kernel.function(device)  # A wrong source, or a kernel that it lacks, shows here.
    return kernel, kernel.image(device)


class _NumbaBuild:
    """Compiles a function by numba for a device and for types, and keeps the code on disk.

    Attributes
    ----------
    ptx, cubin
        What it made last.
    """

    def __init__(
        self,
        func: Callable[..., Any],
        name: str,
        options: CompilationOptions,
        source_hash: str,
        lasting: bool,
    ) -> None:
        self._func = plain_function(func)
        self._name = name
        self._options = options
        self._source_hash = source_hash
        self._cache = get_kernel_cache() if options.cache and lasting else None
        self.ptx: str | None = None
        self.cubin: bytes | None = None

    def __call__(self, device: Any, kinds: tuple[Any, ...]) -> tuple[bytes, str]:
        """Make a cubin, and the kernel's name in it."""
        from pydotcompute._cuda import toolkit
        from pydotcompute.compilation.launch import entry_of

        major, minor = device.compute_capability
        tools = toolkit()
        digest = _Fingerprint()
        digest.add(self._source_hash, list(map(str, kinds)), (major, minor), tools.versions)
        digest.add(_optional.numba().module.__version__)
        key = digest.hexdigest()[:16]
        known = self._load(key)
        if known is None:
            cuda = _optional.numba_cuda().module
            ptx, _ = cuda.compile(
                self._func,
                kinds,
                device=False,
                cc=(major, minor),
                abi="numba",
                output="ptx",
                **_settings(self._options),
            )
            # A cubin, since the driver may be older than what numba compiles with.
            parts = [("ptx", f"{self._name}.ptx", ptx.encode())]
            cubin = tools.link(parts, [f"-arch=sm_{major}{minor}"])
            known = ptx, cubin
            self._store(key, ptx, cubin)
        self.ptx, self.cubin = known
        return self.cubin, entry_of(self.ptx)

    def _load(self, key: str) -> tuple[str, bytes] | None:
        if self._cache is None:
            return None
        ptx = self._cache.load(self._name, key)
        cubin = self._cache.load(f"{self._name}.cubin", key)
        return None if ptx is None or cubin is None else (ptx.decode(), cubin)

    def _store(self, key: str, ptx: str, cubin: bytes) -> None:
        if self._cache is not None:
            self._cache.store(self._name, key, ptx, metadata={"kind": "ptx"})
            self._cache.store(f"{self._name}.cubin", key, cubin, metadata={"kind": "cubin"})


def _compile_for_device(
    build: _NumbaBuild, name: str, kinds: tuple[Any, ...] | None, runtime: Any
) -> tuple[Callable[..., Any], str | None, bytes | None]:
    from pydotcompute.compilation.launch import NumbaKernel

    kernel = NumbaKernel(name, build, kinds)
    if kinds is not None:
        kernel.function(runtime.device(), kinds)
    return kernel, build.ptx, build.cubin


_global_compiler: KernelCompiler | None = None


def get_compiler() -> KernelCompiler:
    """Get the process's compiler."""
    global _global_compiler
    if _global_compiler is None:
        _global_compiler = KernelCompiler()
    return _global_compiler


def compile_kernel(
    func: Callable[..., Any], *, signature: str | None = None, **options: Any
) -> CompiledKernel:
    """Compile a function with the process's compiler.

    Parameters
    ----------
    func, signature
        As for `KernelCompiler.compile`.
    **options
        Fields of `CompilationOptions`; none: the compiler's own options.

    Raises
    ------
    KernelCompilationError
        It cannot be compiled.
    """
    chosen = CompilationOptions(**options) if options else None
    return get_compiler().compile(func, signature=signature, options=chosen)
