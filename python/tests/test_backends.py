"""The backends: their base, the CPU, and CUDA by a stand-in."""

import threading

import fake_cupy
import numpy as np
import pytest
from conftest import NO_DRIVER

from pydotcompute import _optional, backends, exceptions
from pydotcompute.backends.base import Backend, BackendArray, BackendType, KernelExecutionResult
from pydotcompute.backends.cpu import CPUBackend, matrix_multiply_cpu, vector_add_cpu
from pydotcompute.backends.cuda import (
    CUDABackend,
    get_matrix_multiply_kernel,
    get_vector_add_kernel,
)
from pydotcompute.core.memory_pool import MemoryPool


@pytest.fixture(autouse=True)
def _no_pool(monkeypatch):
    monkeypatch.setattr(MemoryPool, "_instance", None)


@pytest.fixture
def cpu():
    return CPUBackend()


# --- base ---


def test_backend_types():
    assert [kind.name for kind in BackendType] == ["CPU", "CUDA", "METAL"]


def test_results():
    result = KernelExecutionResult(success=True, execution_time_ms=1.5)
    assert (result.error, result.result) == (None, None)


def test_a_backend_is_abstract():
    with pytest.raises(TypeError, match="abstract"):
        Backend()


def test_backend_array(cpu, monkeypatch):
    freed = []
    monkeypatch.setattr(CPUBackend, "free", lambda self, array: freed.append(array))
    data = np.ones((2, 3), np.float32)
    array = BackendArray(data, cpu)
    assert (array.data, array.backend) == (pytest.approx(data), cpu)
    assert (array.shape, array.dtype, array.nbytes) == ((2, 3), np.float32, 24)
    assert (array.to_host() == data).all()
    array.synchronize()
    assert repr(array) == "BackendArray(shape=(2, 3), dtype=float32, backend=CPU)"
    assert BackendArray[np.float32] is not None
    del array
    assert freed == [pytest.approx(data)]
    BackendArray(data, cpu, owns_data=False)
    assert len(freed) == 1


def test_backend_array_frees_without_a_sound(cpu, monkeypatch):
    def fail(self, array):
        raise RuntimeError("no")

    monkeypatch.setattr(CPUBackend, "free", fail)
    BackendArray(np.ones(1), cpu)


# --- the CPU ---


def test_cpu(cpu):
    assert cpu.backend_type is BackendType.CPU
    assert cpu.is_available is True
    assert cpu.unavailable_reason == ""
    assert cpu.device_count == 1
    assert repr(cpu) == "CPUBackend(available=True)"
    cpu.synchronize()


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32, np.int64, np.uint8])
@pytest.mark.parametrize("shape", [(5,), (2, 3), (2, 3, 4), (2, 1, 2, 1)])
def test_cpu_memory(cpu, dtype, shape):
    for array in (cpu.allocate(shape, dtype), cpu.allocate_zeros(shape, dtype)):
        assert (array.shape, array.dtype) == (shape, dtype)
    assert not array.any()
    cpu.free(array)
    for copy in (cpu.copy_to_device(array), cpu.copy_to_host(array)):
        assert copy is not array
        assert not np.shares_memory(copy, array)
        assert (copy == array).all()


def test_cpu_arrays_come_from_an_enabled_pool(cpu, no_gpu):
    pool = MemoryPool()
    pool.enable()
    array = cpu.allocate((1000,), np.float32)
    assert pool.get_stats().used_bytes >= 4000
    del array
    assert pool.get_stats().used_bytes == 0


def test_f16_execute_kernel_keeps_the_result(cpu):
    result = cpu.execute_kernel(lambda a, *, b: a + b, (4,), (8,), 1, b=2)
    assert (result.success, result.error, result.result) == (True, None, 3)
    assert result.execution_time_ms >= 0
    assert cpu.execute_kernel(lambda: 1, grid_size=(1,), block_size=(1,)).success


def test_execute_kernel_never_raises(cpu):
    def fail():
        raise ValueError("no")

    result = cpu.execute_kernel(fail, (1,), (1,))
    assert result.success is False
    assert isinstance(result.error, ValueError)
    assert result.execution_time_ms >= 0


def test_parallel_for_calls_python_in_ascending_order(cpu):
    seen = []
    cpu.parallel_for(0, 5, seen.append)
    assert seen == [0, 1, 2, 3, 4]
    cpu.parallel_for(3, 3, seen.append)
    cpu.parallel_for(3, 1, seen.append)
    assert len(seen) == 5


def test_f16_parallel_for_runs_compiled_functions_on_several_threads(cpu, monkeypatch):
    numba = pytest.importorskip("numba", reason="numba is not installed")
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(4)), raising=False)
    counts = np.zeros(10_001, np.int64)
    threads = set()

    def note(i):
        threads.add(threading.get_ident())
        counts[i] += 1

    @numba.njit(nogil=True)
    def work(i):
        with numba.objmode():
            note(i)

    monkeypatch.setitem(globals(), "note", note)  # objmode sees globals only.
    cpu.parallel_for(0, 10_001, work)
    assert (counts == 1).all()
    assert len(threads) > 1


def test_f16_parallel_for_compiles_a_decorated_kernel(cpu):
    pytest.importorskip("numba", reason="numba is not installed")
    from pydotcompute.decorators import kernel

    @kernel(device="cpu")
    def nothing(i):
        return i

    cpu.parallel_for(0, 1000, nothing)
    compiled = nothing._kernel_meta["compiled"]
    assert len(compiled.dispatcher.signatures) == 1


def test_f16_parallel_for_sends_on_what_a_compiled_function_raises(cpu):
    numba = pytest.importorskip("numba", reason="numba is not installed")

    @numba.njit(nogil=True)
    def fail(i):
        if i == 700:
            raise ValueError("seven hundred")

    with pytest.raises(ValueError, match="seven hundred"):
        cpu.parallel_for(0, 1000, fail)


def test_f17_what_numba_cannot_compile_runs_as_it_is(cpu):
    pytest.importorskip("numba", reason="numba is not installed")

    class Thing:
        value = 3

    compiled = cpu.compile_kernel(lambda thing: thing.value)
    with pytest.warns(RuntimeWarning, match="numba cannot compile"):
        assert compiled(Thing()) == 3
    assert compiled(Thing()) == 3  # Warned once.
    func = cpu.compile_kernel(lambda x: undefined(x), "float64(float64)")  # noqa: F821
    assert func.__name__ == "<lambda>"


def test_compile_kernel_compiles(cpu):
    add = cpu.compile_kernel(lambda a, b: a + b)
    assert add(1, 2) == 3
    assert (add(np.ones(2), np.ones(2)) == 2).all()
    assert cpu.compile_kernel(lambda x: x + 1, "int64(int64)")(1) == 2


def test_compile_kernel_without_numba_is_the_function(cpu, no_numba):
    def func(x):
        return x

    assert cpu.compile_kernel(func) is func
    seen = []
    cpu.parallel_for(0, 3, seen.append)
    assert seen == [0, 1, 2]


def test_kernels_that_are_there():
    a = np.arange(3.0)
    assert vector_add_cpu(a, a).tolist() == [0, 2, 4]
    assert matrix_multiply_cpu(np.eye(2), np.ones((2, 2))).tolist() == [[1, 1], [1, 1]]


# --- CUDA ---


def test_cuda_that_is_not_there_says_why(no_gpu):
    cuda = CUDABackend()
    assert cuda.backend_type is BackendType.CUDA
    assert (cuda.is_available, cuda.device_count, cuda.device_id) == (False, 0, 0)
    assert cuda.unavailable_reason == NO_DRIVER
    assert repr(cuda) == "CUDABackend(available=False)"
    cuda.set_device(3)
    cuda.synchronize()
    cuda.free(None)
    uses = [
        lambda: cuda.allocate((1,), np.float32),
        lambda: cuda.allocate_zeros((1,), np.float32),
        lambda: cuda.copy_to_device(np.ones(1)),
        lambda: cuda.copy_to_host(None),
        lambda: cuda.compile_kernel(print),
        cuda.create_stream,
    ]
    for use in uses:
        with pytest.raises(exceptions.CUDAError, match="CUDA not available"):
            use()
    result = cuda.execute_kernel(print, (1,), (1,))
    assert (result.success, result.execution_time_ms) == (False, 0)
    assert isinstance(result.error, exceptions.CUDAError)
    assert str(result.error) == "CUDA not available"
    assert cuda.get_memory_info() == {"free": 0, "total": 0, "used": 0}


def test_cuda_kernels_are_none_without_cuda(monkeypatch):
    monkeypatch.setattr(_optional, "numba_cuda", lambda: _optional.Found(None, "no"))
    assert get_vector_add_kernel() is None
    assert get_matrix_multiply_kernel() is None


def test_e4_a_driver_that_fails_is_a_reason(broken_cupy):
    cuda = CUDABackend()
    assert not cuda.is_available
    assert "cudaErrorInsufficientDriver" in cuda.unavailable_reason


def test_cuda_needs_numba(cupy, no_numba):
    with pytest.raises(exceptions.BackendNotAvailableError, match="numba is not installed"):
        CUDABackend()


class Launched:
    """Looks like a CUDA kernel of numba."""

    def forall(self):
        raise NotImplementedError

    def __getitem__(self, launch):
        return lambda *args: (launch, args)


class Raw:
    """Looks like a RawKernel of CuPy."""

    kernel = None

    def __call__(self, grid, block, args):
        return grid, block, args


def test_cuda_by_a_stand_in(cupy, monkeypatch):
    monkeypatch.setattr(_optional, "numba", lambda: _optional.Found(object()))
    cuda = CUDABackend()
    assert (cuda.is_available, cuda.device_count) == (True, 1)
    assert isinstance(cuda.allocate((2, 3), np.float64), fake_cupy.Array)
    assert cuda.copy_to_host(cuda.allocate_zeros((2,), np.int32)).tolist() == [0, 0]
    assert cuda.copy_to_host(cuda.copy_to_device(np.arange(3))).tolist() == [0, 1, 2]
    assert cuda.execute_kernel(Launched(), (2,), (3,), 1).result == (((2,), (3,)), (1,))
    assert cuda.execute_kernel(Raw(), (2,), (3,), 1).result == ((2,), (3,), (1,))
    assert cuda.execute_kernel(lambda x: x, (2,), (3,), 1).result == 1
    assert isinstance(cuda.create_stream(), fake_cupy.Stream)
    assert cuda.get_memory_info() == {"free": 600, "total": 1000, "used": 400}
    assert repr(cuda) == "CUDABackend(device=0, devices=1, memory_free=0MB)"
    with pytest.raises(exceptions.CUDAError, match="device 1"):
        cuda.set_device(1)
    with pytest.raises(exceptions.CUDAError, match="allocate"):
        cuda.allocate((-1,), np.float32)
    assert not CUDABackend(5).is_available


# --- the choice ---


def test_f18_get_backend_raises_with_the_reason(no_gpu):
    assert isinstance(backends.get_backend(), CPUBackend)
    assert isinstance(backends.get_backend("CPU"), CPUBackend)
    assert isinstance(backends.get_backend(BackendType.CPU), CPUBackend)
    for name, reason in (("cuda", "NVIDIA driver"), ("metal", "MLX"), ("npu", "the backends are")):
        with pytest.raises(exceptions.BackendNotAvailableError, match=reason):
            backends.get_backend(name)


def test_exports():
    assert {"Backend", "BackendType", "CPUBackend", "CUDABackend", "MetalBackend"} <= set(
        backends.__all__
    )
