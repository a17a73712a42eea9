"""The compiler, and what its cache takes for the same kernel."""

import types

import numpy as np
import pytest

from pydotcompute import _optional, exceptions
from pydotcompute.compilation import cache as cache_module
from pydotcompute.compilation import compiler as compiler_module
from pydotcompute.compilation.cache import KernelCache, warmup_kernels
from pydotcompute.compilation.compiler import (
    CompilationOptions,
    CompiledKernel,
    KernelCompiler,
    compile_kernel,
    get_compiler,
)


@pytest.fixture(autouse=True)
def _fresh(monkeypatch):
    monkeypatch.setattr(compiler_module, "_global_compiler", None)


@pytest.fixture
def compiler():
    return KernelCompiler()


def add(a, b):
    return a + b


def scaler(factor):
    def scale(x):
        return x * factor

    return scale


def test_options():
    options = CompilationOptions()
    assert vars(options) == {
        "device": "cuda",
        "fastmath": True,
        "debug": False,
        "lineinfo": False,
        "opt_level": 3,
        "cache": True,
    }


def test_compiled_kernel():
    kernel = CompiledKernel(add, "k", "h", None, CompilationOptions())
    assert (kernel.compile_time_ms, kernel.ptx) == (0.0, None)


def test_a_new_compiler(compiler):
    assert compiler._options == CompilationOptions()
    assert compiler._compiled_cache == {}
    assert isinstance(compiler.cuda_available, bool)
    assert isinstance(compiler.numba_available, bool)
    assert repr(compiler) == (
        f"KernelCompiler(cuda={compiler.cuda_available}, numba={compiler.numba_available}, "
        "cached=0)"
    )
    own = CompilationOptions(device="cpu")
    assert KernelCompiler(own)._options is own


def test_compile(compiler):
    options = CompilationOptions(device="cpu")
    result = compiler.compile(add, signature="int64(int64, int64)", name="sum", options=options)
    assert result.kernel(1, 2) == 3
    assert (result.name, result.signature) == ("sum", "int64(int64, int64)")
    assert result.options is options
    assert result.compile_time_ms >= 0
    assert compiler.compile(add).name == "add"
    assert len(compiler._compiled_cache) == 2


def test_the_same_kernel_is_the_same_object(compiler):
    first = compiler.compile(add)
    assert compiler.compile(add) is first
    assert compiler.get_cached_kernel(first.source_hash) is first
    assert compiler.get_cached_kernel("0" * 16) is None
    assert compiler.get_cache_stats() == {"cached_kernels": 1}
    assert compiler.clear_cache() == 1
    assert compiler.clear_cache() == 0
    assert compiler.compile(add) is not first
    uncached = CompilationOptions(cache=False)
    assert compiler.compile(add, options=uncached) is not compiler.compile(add, options=uncached)
    assert compiler.get_cache_stats() == {"cached_kernels": 1}


def test_source_hash(compiler):
    options = CompilationOptions()
    digest = compiler._get_source_hash(add, None, options)
    assert len(digest) == 16
    assert int(digest, 16) >= 0
    assert compiler._get_source_hash(add, None, options) == digest
    assert compiler._get_source_hash(add, "s", options) != digest
    assert compiler._get_source_hash(lambda a, b: a - b, None, options) != digest
    assert compiler.compile(add, options=options).source_hash == digest


def test_f1_captured_values_tell_kernels_apart(compiler):
    two, three = compiler.compile(scaler(2)), compiler.compile(scaler(3))
    assert two is not three
    assert (two.kernel(10), three.kernel(10)) == (20, 30)
    assert compiler.compile(scaler(2)) is two


def test_f1_methods_are_told_apart_by_their_objects(compiler, no_numba):
    class Thing:
        def __init__(self, factor):
            self.factor = factor

        def scale(self, x):
            return x * self.factor

    two, three = Thing(2), Thing(3)
    first = compiler.compile(two.scale)
    assert compiler.compile(two.scale) is first
    assert (first.kernel(10), compiler.compile(three.scale).kernel(10)) == (20, 30)


def test_the_hash_does_not_change_when_the_function_runs(compiler):
    options = CompilationOptions()
    before = compiler._get_source_hash(add, None, options)
    for i in range(1000):  # Until the interpreter has specialised its code.
        add(i, i)
    assert compiler._get_source_hash(add, None, options) == before


def make(body, **names):
    """Make a function with globals of its own, as two modules would have."""
    namespace = {"__name__": "made", **names}
    exec(body, namespace)
    return namespace["f"]


def test_f1_globals_tell_kernels_apart(compiler):
    body = "def f(x): return x * K"
    two, three = compiler.compile(make(body, K=2)), compiler.compile(make(body, K=3))
    assert (two.kernel(10), three.kernel(10)) == (20, 30)
    func = make(body, K=5)
    assert compiler.compile(func).kernel(10) == 50
    func.__globals__["K"] = 6
    assert compiler.compile(func).kernel(10) == 60


def test_f1_globals_of_inner_and_called_functions_count(compiler):
    body = "def g(x): return x + K\ndef f(x): return g(x)"
    hashes = {compiler.compile(make(body, K=k)).source_hash for k in (1, 2, 3)}
    assert len(hashes) == 3
    nested = "def f(x):\n    h = lambda y: y + K\n    return h(x)"
    assert compiler.compile(make(nested, K=1)).kernel(1) == 2
    assert compiler.compile(make(nested, K=2)).kernel(1) == 3


def test_f1_defaults_arrays_and_constants_of_modules_count(compiler):
    def with_default(default):
        def f(x, y=default):
            return x + y

        return f

    assert compiler.compile(with_default(1)).kernel(1) == 2
    assert compiler.compile(with_default(2)).kernel(1) == 3
    table = "def f(i): return TABLE[i]"
    assert compiler.compile(make(table, TABLE=np.array([1, 2]))).kernel(0) == 1
    assert compiler.compile(make(table, TABLE=np.array([3, 2]))).kernel(0) == 3
    settings = types.ModuleType("settings")
    settings.SCALE = 2
    func = make("def f(x): return x * settings.SCALE", settings=settings)
    before = compiler.compile(func)
    settings.SCALE = 3
    assert compiler.compile(func) is not before


def test_f1_what_is_the_same_is_found_again(compiler):
    body = "def f(x): return np.sqrt(x) + len(T) + math.pi * K"
    import math

    names = {"np": np, "math": math, "K": 2.0, "T": (1, 2)}
    first = compiler.compile(make(body, **names))
    assert compiler.compile(make(body, **names)) is first


def test_f2_functions_without_a_source_file_compile_and_do_not_collide(compiler):
    plus, minus = make("def f(x): return x + 1"), make("def f(x): return x - 1")
    assert compiler.compile(plus).kernel(1) == 2
    assert compiler.compile(minus).kernel(1) == 0
    assert compiler.compile(plus, options=CompilationOptions(cache=False)).kernel(1) == 2
    bare: dict = {}
    exec("def f(x): return x + 5", bare)
    first = compiler.compile(bare["f"])
    exec("def f(x): return x + 6", bare)
    assert (first.kernel(1), compiler.compile(bare["f"]).kernel(1)) == (6, 7)


def test_f2_without_numba_they_do_not_collide_either(compiler, no_numba):
    two, three = compiler.compile(scaler(2)), compiler.compile(scaler(3))
    assert (two.kernel(10), three.kernel(10)) == (20, 30)
    assert not two.is_compiled


@pytest.mark.parametrize(
    "change",
    [{"debug": True}, {"lineinfo": True}, {"opt_level": 0}, {"fastmath": False}, {"device": "cpu"}],
)
def test_f2_every_option_and_the_name_are_in_the_key(compiler, change):
    first = compiler.compile(add)
    assert compiler.compile(add, options=CompilationOptions(**change)) is not first
    assert compiler.compile(add, name="other") is not first


def test_f4_compile_refuses_what_is_no_kernel(compiler):
    async def coroutine():
        pass

    for wrong in (3, None, coroutine):
        with pytest.raises(exceptions.KernelCompilationError) as caught:
            compiler.compile(wrong)
        assert isinstance(caught.value.__cause__, TypeError)
        assert caught.value.cause is caught.value.__cause__


def test_f4_the_signature_is_used_on_the_cpu(compiler):
    pytest.importorskip("numba", reason="numba is not installed")
    result = compiler.compile(add, signature="float32(float32, float32)")
    assert len(result.kernel.dispatcher.signatures) == 1
    assert result.is_compiled
    void = compiler.compile(lambda x: x + 1, signature="void(float32[:])")
    assert void.kernel(np.ones(2, np.float32)).tolist() == [2, 2]
    for wrong in ("float32(float32)", "nonsense(", "void(no_such_type)"):
        with pytest.raises(exceptions.KernelCompilationError) as caught:
            compiler.compile(add, signature=wrong)
        assert caught.value.kernel_name == "add"
    with pytest.raises(exceptions.KernelCompilationError):
        compiler.compile(lambda x: x.nothing, signature="float64(float64)")
    assert compiler.get_cache_stats() == {"cached_kernels": 2}


def test_f4_the_device_that_it_runs_on_is_told(compiler, monkeypatch):
    monkeypatch.setattr(_optional, "numba_cuda", lambda: _optional.Found(None, "no device"))
    for device in ("cuda", "cpu", "auto"):
        result = compiler.compile(add, options=CompilationOptions(device=device))
        assert result.device == "cpu"
        assert result.options.device == device


def test_f9_fast_math_keeps_nan_and_infinity(compiler):
    def tests(x):
        return np.isnan(x), np.isinf(x), x != x

    kernel = compiler.compile(tests, options=CompilationOptions(fastmath=True)).kernel
    assert kernel(np.nan) == (True, False, True)
    assert kernel(np.inf) == (False, True, False)
    assert kernel(1.0) == (False, False, False)


def test_a_call_that_numba_cannot_compile_falls_back_with_a_warning(compiler):
    pytest.importorskip("numba", reason="numba is not installed")

    class Thing:
        value = 3

    result = compiler.compile(lambda thing: thing.value)
    with pytest.warns(RuntimeWarning, match="numba cannot compile"):
        assert result.kernel(Thing()) == 3


def test_errors_of_the_kernel_itself_are_its_own(compiler):
    with pytest.raises(ZeroDivisionError):
        compiler.compile(lambda x: 1 // x).kernel(0)


def test_global_compiler():
    first = get_compiler()
    assert get_compiler() is first
    result = compile_kernel(add)
    assert first.get_cached_kernel(result.source_hash) is result
    assert result.options is first._options
    result = compile_kernel(add, device="cpu", cache=False)
    assert result.options == CompilationOptions(device="cpu", cache=False)
    with pytest.raises(TypeError):
        compile_kernel(add, no_such_option=1)


def test_warmup():
    warmup_kernels([add, 3, lambda x: x])
    assert get_compiler().get_cache_stats() == {"cached_kernels": 2}


class FakeCuda:
    """Stands for `numba.cuda`: counts what is compiled."""

    def __init__(self):
        self.ptx = []
        self.jitted = []

    def jit(self, *signature, **settings):
        self.jitted.append((signature, settings))
        return lambda func: func

    def compile_ptx(self, func, types, **settings):
        self.ptx.append(func.__name__)
        return f"// ptx of {func.__name__} {types}", None


def test_f3_ptx_is_filled_and_kept_on_disk(compiler, monkeypatch, tmp_path):
    pytest.importorskip("numba", reason="numba is not installed")
    cuda = FakeCuda()
    monkeypatch.setattr(_optional, "numba_cuda", lambda: _optional.Found(cuda))
    monkeypatch.setattr(cache_module, "_global_cache", KernelCache(tmp_path))
    signature = "void(float32, float32)"
    first = compiler.compile(add, signature=signature)
    assert first.device == "cuda"
    assert first.ptx.startswith("// ptx of add")
    # Another process, with the same folder, need not compile it.
    monkeypatch.setattr(cache_module, "_global_cache", KernelCache(tmp_path))
    again = KernelCompiler().compile(add, signature=signature)
    assert again.ptx == first.ptx
    assert cuda.ptx == ["add"]
    # What captures an object that only this process knows is not kept.
    thing = object()
    compiler.compile(lambda x: thing, signature="void(float32)")
    assert cache_module.get_kernel_cache().get_stats()["entries"] == 1
    assert compiler.compile(add).ptx is None
    assert cuda.jitted[-1][1]["opt"] is True
