"""The Metal backend, on MLX's CPU device where there is no Metal device.

What only a Mac can show is marked so.
"""

import gc
import sys
import weakref

import numpy as np
import pytest

from pydotcompute import _optional, exceptions
from pydotcompute.backends.base import BackendType
from pydotcompute.backends.metal import (
    MetalBackend,
    MetalBufferInfo,
    MetalBufferState,
    _check_metal_available,
    get_elementwise_kernel,
    get_matrix_multiply_kernel,
    get_vector_add_kernel,
)
from pydotcompute.core.accelerator import Accelerator, DeviceType

ADD_SOURCE = "uint i = thread_position_in_grid.x; out[i] = a[i] + b[i];"

needs_a_mac = pytest.mark.skipif(
    sys.platform != "darwin" or not _optional.mlx(),
    reason="Metal source is compiled by the driver of a Mac",
)


@pytest.fixture
def backend(metal):
    return MetalBackend()


def test_a_machine_without_metal_says_why(no_gpu):
    backend = MetalBackend()
    assert backend.backend_type is BackendType.METAL
    assert (backend.is_available, backend.device_count, backend.device_id) == (False, 0, 0)
    assert backend.unavailable_reason == "MLX is not installed"
    assert repr(backend) == "MetalBackend(available=False)"
    uses = [
        lambda: backend.allocate((1,), np.float32),
        lambda: backend.allocate_zeros((1,), np.float32),
        lambda: backend.copy_to_device(np.ones(1)),
        lambda: backend.copy_to_host(None),
        lambda: backend.compile_kernel(print),
        lambda: backend.compile_kernel(ADD_SOURCE),
    ]
    for use in uses:
        with pytest.raises(exceptions.MetalError, match="Metal not available"):
            use()
    backend.free(None)
    backend.synchronize()
    backend.clear_cache()
    backend._cleanup()
    assert not any(backend.get_memory_info().values())
    result = backend.execute_kernel(print, (1,), (1,))
    assert isinstance(result.error, exceptions.MetalError)
    assert get_vector_add_kernel() is None
    assert get_matrix_multiply_kernel() is None
    assert get_elementwise_kernel("add") is None
    assert _check_metal_available() is False


def test_mlx_without_a_metal_device_is_a_reason(monkeypatch):
    mx = pytest.importorskip("mlx.core", reason="MLX is not installed")
    monkeypatch.setattr(mx.metal, "is_available", lambda: False)
    _optional.forget()
    try:
        assert MetalBackend().unavailable_reason == "MLX has no Metal device here"
    finally:
        _optional.forget()


def test_buffer_info():
    info = MetalBufferInfo(1, 4, (1,), np.dtype("f4"), MetalBufferState.ALLOCATED)
    assert info.created_at > 0
    assert info.last_accessed > 0
    assert [state.name for state in MetalBufferState] == ["ALLOCATED", "FREED", "IN_USE"]


def test_an_available_backend(backend):
    assert (backend.is_available, backend.device_count, backend.device_id) == (True, 1, 0)
    assert repr(backend).startswith("MetalBackend(device=0, available=True, buffers=0, cache=")
    assert repr(backend).endswith("KB)")
    backend.synchronize()
    assert _check_metal_available() is True
    assert not MetalBackend(1).is_available


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, np.int32, np.uint8, bool])
def test_memory(backend, metal, dtype):
    array = backend.allocate((2, 3), dtype)
    assert isinstance(array, metal.array)
    assert not backend.copy_to_host(array).any()
    host = np.arange(6).reshape(2, 3).astype(dtype)
    device = backend.copy_to_device(host)
    assert (backend.copy_to_host(device) == host).all()
    assert not backend.copy_to_host(backend.allocate_zeros((2,), dtype)).any()


def test_the_registry(backend):
    array = backend.allocate((2, 3), np.float64)
    info = backend._buffer_registry[id(array)]
    assert (info.size, info.shape, info.dtype) == (48, (2, 3), np.float64)
    assert info.state is MetalBufferState.ALLOCATED
    other = backend.copy_to_device(np.ones(4, np.float32))
    memory = backend.get_memory_info()
    assert set(memory) == {"allocated", "buffer_count", "cache_memory", "peak_memory"}
    assert (memory["allocated"], memory["buffer_count"]) == (64, 2)
    backend.free(array)
    assert info.state is MetalBufferState.FREED
    assert list(backend._buffer_registry) == [id(other)]
    backend.free(array)
    backend._cleanup()
    assert backend._buffer_registry == {}


def test_an_array_that_goes_leaves_the_registry(backend):
    array = backend.allocate((2,), np.float32)
    assert len(backend._buffer_registry) == 1
    del array
    gc.collect()
    assert backend._buffer_registry == {}


def test_f19_a_backend_goes_when_nobody_uses_it(metal):
    backend = MetalBackend()
    array = backend.allocate((2,), np.float32)
    backend.compile_kernel(lambda a: a)
    gone = weakref.ref(backend)
    del backend
    gc.collect()
    assert gone() is None
    del array


def test_failures_become_metal_errors(backend):
    with pytest.raises(exceptions.MetalError, match="allocate"):
        backend.allocate((-1,), np.float32)
    with pytest.raises(exceptions.MetalError, match="device"):
        backend.copy_to_device(np.array(["a"]))
    with pytest.raises(exceptions.MetalError, match="host"):
        backend.copy_to_host(object())


def test_execute_kernel(backend, metal):
    a = backend.copy_to_device(np.arange(3, dtype=np.float32))
    result = backend.execute_kernel(lambda x, *, y: {"sum": [x + y]}, (1,), (1,), a, y=a)
    assert result.success
    assert np.array(result.result["sum"][0]).tolist() == [0, 2, 4]

    def fail():
        raise ValueError("no")

    result = backend.execute_kernel(fail, (1,), (1,))
    assert isinstance(result.error, ValueError)


def test_f19_compiled_functions_are_found_by_the_function(backend, metal):
    def double(x):
        """Double."""
        return x * 2

    kernel = backend.compile_kernel(double)
    assert backend.compile_kernel(double) is kernel
    assert backend.compile_kernel(double, "s") is not kernel
    assert kernel.__name__ == "double"
    result = kernel(np.arange(3, dtype=np.float64))
    assert isinstance(result, metal.array)
    assert np.array(result).tolist() == [0, 2, 4]
    for i in range(50):  # Functions that come and go may have the same id.
        assert backend.compile_kernel(lambda x, i=i: x + i)(1) == 1 + i


def test_an_evaluated_result_may_go_to_another_thread(backend):
    import threading

    kernel = backend.compile_kernel(lambda a: a + 1)
    results = []
    thread = threading.Thread(target=lambda: results.append(kernel(np.zeros(2, np.float32))))
    thread.start()
    thread.join(30)
    assert backend.copy_to_host(results[0]).tolist() == [1, 1]


def test_the_kernels_that_are_there(metal):
    a = np.array([1.0, 4.0], np.float32)
    assert np.array(get_vector_add_kernel()(a, a)).tolist() == [2, 8]
    eye = np.eye(2, dtype=np.float32)
    assert np.array(get_matrix_multiply_kernel()(eye, eye)).tolist() == eye.tolist()
    expected = {
        "add": a + a,
        "sub": a - a,
        "mul": a * a,
        "div": a / a,
        "sqrt": np.sqrt(a),
        "exp": np.exp(a),
        "log": np.log(a),
        "sin": np.sin(a),
        "cos": np.cos(a),
        "abs": np.abs(a),
        "square": a * a,
        "negative": -a,
    }
    for operation, values in expected.items():
        kernel = get_elementwise_kernel(operation)
        arrays = (a, a) if operation in ("add", "sub", "mul", "div") else (a,)
        np.testing.assert_allclose(np.array(kernel(*arrays)), values, rtol=1e-5)
    assert get_elementwise_kernel("cube") is None


def test_f20_metal_source_needs_the_names_of_its_arrays(backend):
    kernel = backend.compile_kernel(ADD_SOURCE)
    assert callable(kernel)
    assert backend.compile_kernel(ADD_SOURCE) is kernel
    with pytest.raises(NotImplementedError, match="signature"):
        kernel(np.ones(1))
    for wrong in ("a, b", "a ->", "a b -> out", "-> 1"):
        with pytest.raises(exceptions.InvalidConfigurationError, match="signature"):
            backend.compile_kernel(ADD_SOURCE, wrong)


class FakeKernel:
    """Stands for what `mlx.core.fast.metal_kernel` makes; tells how it was called."""

    def __init__(self, metal, failure=None):
        self.metal, self.failure, self.calls = metal, failure, []

    def __call__(self, **launch):
        self.calls.append(launch)
        if self.failure:
            raise RuntimeError(self.failure)
        return [self.metal.zeros(shape) for shape in launch["output_shapes"]]


def test_f20_metal_source_is_launched_as_mlx_asks(backend, metal, monkeypatch):
    made = []
    fake = FakeKernel(metal)
    monkeypatch.setattr(metal.fast, "metal_kernel", lambda **how: made.append(how) or fake)
    kernel = backend.compile_kernel("out[0] = T(a[0]);", "a, b -> out")
    assert (made[0]["input_names"], made[0]["output_names"]) == (["a", "b"], ["out"])
    a = np.ones((4, 2), np.float64)
    assert kernel(a, a).shape == (4, 2)
    launch = fake.calls[0]
    assert launch["output_dtypes"] == [metal.float32]
    assert (launch["grid"], launch["threadgroup"]) == ((8, 1, 1), (256, 1, 1))
    assert launch["template"] == [("T", metal.float32)]
    kernel(a, a, grid=5, threadgroup=(2, 2), output_shapes=[(3,)], output_dtypes=[np.int32])
    launch = fake.calls[1]
    assert (launch["grid"], launch["threadgroup"]) == ((5, 1, 1), (2, 2, 1))
    assert (launch["output_shapes"], launch["output_dtypes"]) == ([(3,)], [metal.int32])
    result = backend.execute_kernel(kernel, (2, 3), (4, 5), a, a)
    assert result.success
    assert fake.calls[2]["grid"] == (8, 15, 1)
    assert fake.calls[2]["threadgroup"] == (4, 5, 1)


def test_f20_source_that_does_not_compile_says_what_the_compiler_said(backend, metal, monkeypatch):
    text = "[metal::Device] Unable to build metal library from source: error: no"
    fake = FakeKernel(metal, text)
    monkeypatch.setattr(metal.fast, "metal_kernel", lambda **_: fake)
    kernel = backend.compile_kernel("nonsense", "a -> out")
    with pytest.raises(exceptions.MSLCompilationError, match="error: no"):
        kernel(np.ones(1))
    fake.failure = "[metal_kernel] No Metal back-end."
    with pytest.raises(exceptions.MetalError, match="No Metal back-end"):
        kernel(np.ones(1))


@needs_a_mac
def test_f20_metal_source_runs():
    backend = MetalBackend()
    kernel = backend.compile_kernel(ADD_SOURCE, "a, b -> out")
    a = np.arange(8, dtype=np.float32)
    assert np.array(kernel(a, a)).tolist() == (2 * a).tolist()
    with pytest.raises(exceptions.MSLCompilationError):
        backend.compile_kernel("nonsense;", "a -> out")(a)


def test_the_accelerator_lists_the_metal_device(metal, monkeypatch):
    monkeypatch.setattr(Accelerator, "_instance", None)
    monkeypatch.setattr(Accelerator, "_initialized", False)
    monkeypatch.setattr(_optional, "cupy", lambda: _optional.Found(None, "no"))
    found = Accelerator()
    device = found.current_device
    assert found.metal_available
    assert (device.device_type, device.name) == (DeviceType.METAL, "Apple Silicon GPU")
    assert (device.max_threads_per_block, device.warp_size) == (1024, 32)
    assert (device.max_block_dims, device.max_grid_dims) == (
        (1024, 1024, 64),
        (2**30, 2**16, 2**16),
    )
    assert {"free", "total", "used", "cache_memory", "peak_memory"} == set(found.get_memory_info())
    found.synchronize()
