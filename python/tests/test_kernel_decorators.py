"""The decorators kernel and gpu_kernel, and the registry."""

import pickle
import threading
import warnings

import numpy as np
import pytest

from pydotcompute import _optional, exceptions
from pydotcompute._jit import FAST_MATH
from pydotcompute.compilation import compiler as compiler_module
from pydotcompute.decorators.kernel import (
    KernelRegistry,
    cuda_source,
    get_kernel_registry,
    gpu_kernel,
    kernel,
)


@pytest.fixture(autouse=True)
def _fresh(monkeypatch):
    monkeypatch.setattr(KernelRegistry, "_instance", None)
    monkeypatch.setattr(compiler_module, "_global_compiler", None)


def test_with_and_without_parentheses():
    @kernel
    def add(a, b):
        """Add."""
        return a + b

    assert add.__name__ == "add"
    assert add.__doc__ == "Add."
    assert add._kernel_meta == {
        "name": "add",
        "device": "auto",
        "fastmath": True,
        "cache": True,
        "compiled": None,
    }
    assert add._original_func(1, 2) == 3
    assert add(1, 2) == 3
    assert add._kernel_meta["compiled"] is not None

    @kernel(name="other", device="cpu", fastmath=False, cache=False)
    def double(data):
        return [x + 1 for x in data]

    assert double.__name__ == "double"
    assert double._kernel_meta["name"] == "other"
    assert double([1, 2, 3]) == [2, 3, 4]


def test_a_kernel_may_be_a_method():
    class Thing:
        base = 10

        @kernel
        def plus(self, x):
            return self.base + x

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # numba knows no `Thing`.
        assert Thing().plus(1) == 11


def test_without_numba_the_function_runs(no_numba):
    @kernel
    def add(a, b):
        return a + b

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert add("a", "b") == "ab"
    assert add._kernel_meta["compiled"] is add._original_func


def test_f9_nan_checks_hold_under_fast_math():
    assert not FAST_MATH & {"nnan", "ninf", "fast"}

    @kernel(device="cpu")
    def count(values):
        nans = 0
        for value in values:
            if np.isnan(value) or value == np.inf:
                nans += 1
        return nans

    assert count(np.array([1.0, np.nan, np.inf, 2.0])) == 2
    total = kernel(device="cpu")(lambda a: a.sum())
    assert np.isnan(total(np.array([1.0, np.nan])))


def test_f11_a_function_that_numba_refuses_runs_with_a_warning():
    pytest.importorskip("numba", reason="numba is not installed")

    class Thing:
        value = 3

    calls = []

    @kernel(device="cpu")
    def value(thing):
        calls.append(thing)
        return thing.value

    with pytest.warns(RuntimeWarning, match="numba cannot compile value"):
        assert value(Thing()) == 3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert value(Thing()) == 3
    assert len(calls) == 2


def test_f11_other_arguments_are_compiled_still():
    pytest.importorskip("numba", reason="numba is not installed")

    @kernel(device="cpu")
    def first(x):
        return x + x

    class Text:
        def __add__(self, other):
            return "text"

    with pytest.warns(RuntimeWarning, match="numba cannot compile"):
        assert first(Text()) == "text"
    assert first(2) == 4
    assert len(first._kernel_meta["compiled"].dispatcher.signatures) == 1


@pytest.mark.parametrize("device", ["gpu", "CPU", "", None, 0])
def test_f11_unknown_devices_are_refused(device):
    with pytest.raises(exceptions.InvalidConfigurationError, match="device"):
        kernel(device=device)


def test_f11_cuda_that_is_not_there_is_told(monkeypatch):
    monkeypatch.setattr(_optional, "numba_cuda", lambda: _optional.Found(None, "no device"))

    @kernel(device="cuda")
    def add(a, b):
        return a + b

    with pytest.warns(RuntimeWarning, match="runs on the CPU: no device"):
        assert add(1, 2) == 3
    assert add[1, 32](1, 2) == 3


class FakeCuda:
    """Stands for `numba.cuda`: tells how a kernel was launched."""

    def __init__(self, refuses_cache=False):
        self.settings = []
        self.refuses_cache = refuses_cache

    def jit(self, *signature, **settings):
        self.settings.append((signature, settings))
        if self.refuses_cache and settings.get("cache"):
            raise RuntimeError("cannot cache function: no locator available")

        class Kernel:
            def __init__(self, func):
                self.func = func

            def __getitem__(self, launch):
                return lambda *args: (launch, args)

        return Kernel


def test_f10_a_kernel_on_cuda_is_launched(monkeypatch):
    monkeypatch.setattr(_optional, "numba_cuda", lambda: _optional.Found(FakeCuda()))

    @kernel
    def add(a, b):
        pass

    a = np.zeros(1000)
    assert add(a, 1)[0] == (4, 256)
    assert add(1, 2) == ((1, 256), (1, 2))
    assert add[2, 64](1, 2) == ((2, 64), (1, 2))
    cpu = kernel(lambda x: x)
    cpu._kernel_meta["device"] = "cpu"
    assert cpu(3) == 3


def test_the_first_call_compiles_once(monkeypatch):
    compiled = []
    original = compiler_module.KernelCompiler.compile

    def counting(self, *args, **kwargs):
        compiled.append(args)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(compiler_module.KernelCompiler, "compile", counting)
    add = kernel(device="cpu")(lambda a: a + 1)
    results = []
    threads = [threading.Thread(target=lambda: results.append(add(1))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert results == [2] * 4
    assert len(compiled) == 1


# --- gpu_kernel ---


def test_gpu_kernel_needs_numba(no_numba):
    with pytest.raises(RuntimeError, match="numba is not installed"):
        gpu_kernel(lambda a: None)


def test_f12_a_gpu_kernel_without_a_gpu_says_so(monkeypatch):
    pytest.importorskip("numba", reason="numba is not installed")
    monkeypatch.setattr(_optional, "cuda", lambda: _optional.Found(None, "no device"))

    @gpu_kernel
    def add(a, b, out):
        """Add."""

    assert add._kernel_meta == {
        "name": "add",
        "signature": None,
        "device": "cuda",
        "fastmath": True,
        "debug": False,
    }
    assert add.__name__ == add._original_func.__name__ == "add"
    for launch in (lambda: add(1), lambda: add[1, 32](1), lambda: add.forall(10)(1)):
        with pytest.raises(exceptions.BackendNotAvailableError, match="no device"):
            launch()


def test_gpu_kernel_with_cuda(monkeypatch):
    pytest.importorskip("numba", reason="numba is not installed")
    cuda = FakeCuda(refuses_cache=True)
    monkeypatch.setattr(_optional, "numba_cuda", lambda: _optional.Found(cuda))

    @gpu_kernel(name="n", signature="void(float32[:])", fastmath=False, debug=True)
    def add(a):
        pass

    assert add._kernel_meta["name"] == "n"
    assert add._original_func is add.func
    # The second time without numba's cache, which has no place for this function.
    assert [how.get("cache") for _, how in cuda.settings] == [True, None]
    assert cuda.settings[1] == (
        ("void(float32[:])",),
        {"fastmath": False, "debug": True, "opt": False},
    )


# --- the rest ---


def test_cuda_source():
    @cuda_source("__global__ void f() {}")
    def f():
        return 1

    assert f.__cuda_source__ == "__global__ void f() {}"
    assert f() == 1


def test_registry():
    registry = KernelRegistry()
    assert get_kernel_registry() is registry
    registry.register("k", len)
    assert registry.get("k") is len
    assert registry.get("x") is None
    with pytest.raises(ValueError, match="already registered"):
        registry.register("k", print)
    registry.register("k", print, overwrite=True)
    assert registry.get("k") is print
    assert registry.list() == ["k"]
    registry.clear()
    assert registry.list() == []


@kernel(device="cpu")
def doubled(x):
    return 2 * x


def test_a_kernel_is_pickled_by_its_name():
    assert pickle.loads(pickle.dumps(doubled)) is doubled


def test_what_is_no_function_is_refused():
    with pytest.raises(TypeError, match="not int"):
        kernel(3)
    with pytest.raises(TypeError, match="a source is text"):
        cuda_source(3)
