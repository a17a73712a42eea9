"""Machines that this one is not: with and without a GPU of either kind."""

import signal

import fake_cupy
import pytest

from pydotcompute import _optional

NO_DRIVER = "the NVIDIA driver was not found: install it"


@pytest.fixture(autouse=True, scope="session")
def ctrl_c():
    """Ctrl-C raises, also where the tests were started in the background, which ignores it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def no_gpu(monkeypatch):
    """A machine without a driver, CuPy and MLX."""
    monkeypatch.setattr(_optional, "cuda", lambda: _optional.Found(None, NO_DRIVER))
    monkeypatch.setattr(_optional, "cupy", lambda: _optional.Found(None, "CuPy is not installed"))
    monkeypatch.setattr(_optional, "mlx", lambda: _optional.Found(None, "MLX is not installed"))


@pytest.fixture
def no_numba(monkeypatch):
    """A machine without numba."""
    missing = _optional.Found(None, "numba is not installed")
    monkeypatch.setattr(_optional, "numba", lambda: missing)
    monkeypatch.setattr(_optional, "numba_cuda", lambda: missing)


@pytest.fixture
def cupy(monkeypatch):
    """A machine with CuPy and one CUDA device, as far as `fake_cupy` goes, and a driver too old for
    us."""
    module = fake_cupy.module()
    monkeypatch.setattr(_optional, "cuda", lambda: _optional.Found(None, NO_DRIVER))
    monkeypatch.setattr(_optional, "cupy", lambda: _optional.Found(module))
    monkeypatch.setattr(_optional, "mlx", lambda: _optional.Found(None, "MLX is not installed"))
    return module


@pytest.fixture
def broken_cupy(monkeypatch):
    """A machine with CuPy whose driver fails."""

    def fail():
        raise RuntimeError("cudaErrorInsufficientDriver")

    module = fake_cupy.module()
    module.cuda.runtime.getDeviceCount = fail
    monkeypatch.setitem(__import__("sys").modules, "cupy", module)
    _optional.forget()
    monkeypatch.setattr(_optional, "cuda", lambda: _optional.Found(None, NO_DRIVER))
    yield module
    monkeypatch.undo()
    _optional.forget()


@pytest.fixture
def metal(monkeypatch):
    """A machine with a Metal device: MLX, whose CPU device takes its place off a Mac."""
    mx = pytest.importorskip("mlx.core", reason="MLX is not installed")
    monkeypatch.setattr(_optional, "mlx", lambda: _optional.Found(mx))
    return mx
