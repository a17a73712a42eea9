"""CUDA by the package as it ships, on a driver that stands in for NVIDIA's.

Device memory is the host's and kernels are host functions found by name, so nothing here says that
a GPU does the same. Run by test_cuda_standin.py, in a process whose loader finds the stand-in.
"""

import asyncio
import ctypes
import gc
import os
import threading
import types

import numpy as np
import pytest

from pydotcompute import _cuda, _optional, exceptions
from pydotcompute._native import CudaDevice, CudaMonitor, import_dlpack
from pydotcompute.backends import BackendType, CUDABackend, get_backend
from pydotcompute.backends.base import BackendArray
from pydotcompute.backends.cuda import get_matrix_multiply_kernel, get_vector_add_kernel
from pydotcompute.compilation import cache as cache_module
from pydotcompute.compilation import compiler as compiler_module
from pydotcompute.compilation.cache import KernelCache
from pydotcompute.compilation.compiler import CompilationOptions, KernelCompiler, compile_source
from pydotcompute.core import device_array
from pydotcompute.core.accelerator import Accelerator, DeviceType
from pydotcompute.core.device_array import DeviceArray
from pydotcompute.core.memory_pool import MemoryPool
from pydotcompute.core.orchestrator import ComputeOrchestrator, KernelLaunchConfig
from pydotcompute.core.unified_buffer import BufferState, UnifiedBuffer
from pydotcompute.decorators.kernel import cuda_source, gpu_kernel, kernel
from pydotcompute.ring_kernels.telemetry import GPUMonitor

MB = 2**20
PIECES, PINNED, MODULES, STREAMS, COPIES_IN, COPIES_OUT = range(6)


@pytest.fixture(scope="session")
def standin():
    """What the stand-in does for tests."""
    library = ctypes.CDLL("libcuda.so.1")
    library.standin_count.restype = ctypes.c_long
    return library


@pytest.fixture(autouse=True)
def fresh(monkeypatch, tmp_path, standin):
    """Singletons anew, no CuPy, and a cache of its own."""
    monkeypatch.setattr(_optional, "cupy", lambda: _optional.Found(None, "CuPy is not installed"))
    monkeypatch.setattr(MemoryPool, "_instance", None)
    monkeypatch.setattr(Accelerator, "_instance", None)
    monkeypatch.setattr(Accelerator, "_initialized", False)
    monkeypatch.setattr(cache_module, "_global_cache", KernelCache(tmp_path / "cache"))
    monkeypatch.setattr(compiler_module, "_global_compiler", None)
    yield
    standin.standin_go(1)
    gc.collect()


class Toolkit:
    """Stands for NVIDIA's compiler and linker, which the tests need not have."""

    versions = ((13, 0), (13, 0))

    def __init__(self):
        self.compiled = []
        self.linked = []

    def compile(self, source, name, options):
        self.compiled.append((source, name, options))
        if "syntax error" in source:
            raise exceptions.CompilationError(f"{name}(1): error: syntax error")
        return image(), ""

    def link(self, parts, options):
        self.linked.append((parts, options))
        return image()


def image():
    return b"\x7fELF\x02" + bytes(123)


@pytest.fixture
def toolkit(monkeypatch):
    tools = Toolkit()
    monkeypatch.setattr(_cuda, "toolkit", lambda: tools)
    return tools


@pytest.fixture
def device():
    return _optional.cuda().module.device()


def seen(array):
    """The device's memory as it is: the stand-in's is the host's."""
    raw = (ctypes.c_char * array.nbytes).from_address(array.ptr)
    return np.frombuffer(raw, array.dtype).reshape(array.shape)


# --- what there is ---


def test_the_device_is_found_and_described():
    backend = get_backend("cuda")
    assert (backend.is_available, backend.device_count, backend.unavailable_reason) == (True, 1, "")
    assert backend.backend_type is BackendType.CUDA
    found = Accelerator()
    assert (found.cuda_available, found.device_count) == (True, 1)
    here = found.current_device
    assert here.name == "stand-in (host threads)"
    assert (here.device_type, here.compute_capability) == (DeviceType.CUDA, (9, 0))
    assert (here.total_memory, here.multiprocessor_count, here.warp_size) == (1024 * MB, 4, 32)
    assert here.max_block_dims == (1024, 1024, 64)
    assert found.get_memory_info()["total"] == 1024 * MB
    found.set_device(0)
    found.synchronize()
    with pytest.raises(exceptions.CUDAError, match="counted from 0"):
        CudaDevice(7)


def test_what_is_absent_beside_the_driver_says_so():
    monitor = GPUMonitor()
    assert not monitor.is_available
    assert "libnvidia-ml.so.1" in monitor.unavailable_reason
    with pytest.raises(exceptions.CUDAError, match="NVML"):
        CudaMonitor()
    _cuda.toolkit.cache_clear()
    with pytest.raises(exceptions.CUDAError, match="was not found"):
        compile_source("", "nothing", (9, 0))


# --- UnifiedBuffer ---


def test_states_and_lazy_copies(standin):
    buffer = UnifiedBuffer((2, 3)).allocate()
    assert buffer.state is BufferState.SYNCHRONIZED
    assert (seen(buffer.device) == 0).all()
    before = standin.standin_count(COPIES_IN), standin.standin_count(COPIES_OUT)
    buffer.host[:] = 2
    buffer.mark_host_dirty()
    assert buffer.state is BufferState.HOST_DIRTY
    assert (standin.standin_count(COPIES_IN), standin.standin_count(COPIES_OUT)) == before
    on_device = buffer.device
    assert (seen(on_device) == 2).all()
    assert buffer.state is BufferState.SYNCHRONIZED
    assert buffer.device is on_device
    assert buffer.host[0, 0] == 2
    assert standin.standin_count(COPIES_IN) == before[0] + 1
    assert standin.standin_count(COPIES_OUT) == before[1]
    seen(on_device)[:] = 5
    buffer.mark_device_dirty()
    assert (buffer.host == 5).all()
    assert (buffer.host == 5).all()
    assert standin.standin_count(COPIES_OUT) == before[1] + 1
    buffer.fill(1)
    buffer.synchronize()
    assert (seen(on_device) == 1).all()
    buffer.free()
    assert buffer.state is BufferState.UNINITIALIZED


def test_a_buffer_may_be_on_the_device_alone():
    buffer = UnifiedBuffer(4, np.int64).allocate(host=False)
    assert buffer.state is BufferState.DEVICE_ONLY
    seen(buffer.device)[:] = [1, 2, 3, 4]
    assert buffer.host.tolist() == [1, 2, 3, 4]
    assert buffer.state is BufferState.SYNCHRONIZED
    with pytest.raises(ValueError, match="host, device or both"):
        UnifiedBuffer(4).allocate(host=False, device=False)


@pytest.mark.parametrize(
    "dtype", [np.float64, np.int32, np.uint8, np.complex64, np.float16, "i4,f8"]
)
@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (5,), (2, 3, 4)])
def test_every_type_and_shape_goes_there_and_back(dtype, shape):
    buffer = UnifiedBuffer(shape, dtype, pinned=True).allocate()
    data = np.frombuffer(np.random.default_rng(1).bytes(buffer.nbytes), dtype).reshape(shape)
    buffer.host[...] = data
    buffer.mark_host_dirty()
    assert buffer.device.get().tobytes() == data.tobytes()
    buffer.host[...] = np.zeros(shape, dtype)
    buffer.mark_device_dirty()
    assert buffer.host.tobytes() == data.tobytes()


def test_pinned_memory_is_pooled(standin):
    MemoryPool().free_all_blocks()
    before = standin.standin_count(PINNED)
    buffer = UnifiedBuffer(1000, pinned=True).allocate()
    assert not buffer.host.any()
    place = buffer.host.ctypes.data
    assert standin.standin_count(PINNED) == before + 1
    pool = MemoryPool()
    assert pool.get_pinned_stats().used_bytes >= 4000
    buffer.free()
    again = UnifiedBuffer(1000, pinned=True).allocate()
    assert again.host.ctypes.data == place
    assert not again.host.any()
    del again
    assert pool.get_pinned_stats().n_free_blocks == 1
    pool.free_all_blocks()
    assert standin.standin_count(PINNED) == before
    assert pool.get_pinned_stats().total_bytes == 0


def test_views_of_pinned_memory_outlive_the_buffer(standin):
    buffer = UnifiedBuffer(4, pinned=True).fill(3)
    view = memoryview(buffer)
    del buffer
    gc.collect()
    MemoryPool().free_all_blocks()
    assert view.tolist() == [3, 3, 3, 3]


def test_the_copy_back_waits_for_the_stream_that_writes(standin, device):
    stream = device.new_stream()
    buffer = UnifiedBuffer(3).fill(1)
    array = buffer.device
    standin.standin_go(0)
    device.load(image()).function("wait").launch((1, 1, 1), (1, 1, 1), 0, stream, [])
    scale = device.load(image()).function("scale")
    arguments = [array.ptr.to_bytes(8, "little"), np.float32(4).tobytes(), np.int32(3).tobytes()]
    scale.launch((1, 1, 1), (1, 1, 1), 0, stream, arguments)
    buffer.mark_device_dirty(stream)
    got = []
    reader = threading.Thread(target=lambda: got.append(buffer.host.tolist()))
    reader.start()
    assert (seen(array) == 1).all()
    assert not got
    standin.standin_go(1)
    reader.join(60)
    assert got == [[4, 4, 4]]


def test_copying_from_and_to_the_device(device):
    source = device_array.from_host(device, np.arange(3, dtype=np.float32))
    buffer = UnifiedBuffer(3)
    buffer.copy_from(source)
    assert buffer.host.tolist() == [0, 1, 2]
    assert buffer.state is BufferState.HOST_DIRTY


def test_no_memory_is_an_error_that_says_how_much(standin):
    with pytest.raises(exceptions.CUDAMemoryError, match="bytes of device memory") as caught:
        UnifiedBuffer(2**30, np.float32).allocate(host=False)
    assert isinstance(caught.value, MemoryError)
    buffer = UnifiedBuffer(4).allocate(device=False)
    standin.standin_fail_allocations(2)
    with pytest.raises(exceptions.BufferSyncError, match="host->device"):
        _ = buffer.device
    assert buffer.host.tolist() == [0, 0, 0, 0]
    assert buffer.device.get().tolist() == [0, 0, 0, 0]


# --- the pool ---


def test_the_pool_counts_limits_and_trims():
    pool = MemoryPool(max_size_mb=8)
    start = pool.get_stats()
    held = UnifiedBuffer(4 * MB, np.uint8).allocate(host=False)
    assert pool.get_stats().used_bytes == start.used_bytes + 4 * MB
    with pytest.raises(exceptions.CUDAMemoryError, match="raise the pool's limit"):
        UnifiedBuffer(5 * MB, np.uint8).allocate(host=False)
    held.free()
    gc.collect()
    assert pool.get_stats().used_bytes == start.used_bytes
    assert pool.get_stats().total_bytes >= 4 * MB
    assert pool.trim() >= 4 * MB
    pool.set_limit(None)
    UnifiedBuffer(9 * MB, np.uint8).allocate(host=False)
    assert "cuda=True" in repr(pool)


def test_memory_comes_back_when_arrays_go(standin, device):
    gc.collect()
    device.stream_at(1).synchronize()
    device.stream.synchronize()
    before = standin.standin_count(PIECES)
    for _ in range(50):
        device_array.zeros(device, 1000)
    device.stream.synchronize()
    assert standin.standin_count(PIECES) == before


# --- other libraries ---


def test_the_cuda_array_interface(device):
    array = device_array.from_host(device, np.arange(6, dtype=np.int16).reshape(2, 3))
    interface = array.__cuda_array_interface__
    assert (interface["shape"], interface["typestr"], interface["version"]) == ((2, 3), "<i2", 3)
    assert interface["data"] == (array.ptr, False)
    assert (interface["strides"], interface["stream"]) == (None, None)
    assert array.strides == (6, 2)
    assert device_array.empty(device, (0, 4)).__cuda_array_interface__["data"] == (0, False)
    taken = device_array.asarray(device, Foreign(array))
    assert (taken.ptr, taken.shape, taken.dtype) == (array.ptr, (2, 3), np.int16)
    assert taken.get().tolist() == [[0, 1, 2], [3, 4, 5]]
    with pytest.raises(TypeError, match=r"get\(\)"):
        np.asarray(array)


class Foreign:
    """Another library's array."""

    def __init__(self, array, **changes):
        self._array = array
        self.__cuda_array_interface__ = {**array.__cuda_array_interface__, **changes}


def test_arrays_that_we_cannot_take_say_why(device):
    array = device_array.zeros(device, (2, 3))
    with pytest.raises(exceptions.CUDAError, match="not contiguous"):
        device_array.asarray(device, Foreign(array, strides=(4, 8)))
    device_array.asarray(device, Foreign(array, strides=(12, 4)))
    with pytest.raises(exceptions.CUDAError, match="mask"):
        device_array.asarray(device, Foreign(array, mask=array))
    with pytest.raises(TypeError, match="no array of a CUDA device"):
        device_array.asarray(device, [1, 2])
    with pytest.raises(TypeError, match="not CUDA's"):
        device_array.asarray(device, np.zeros(3))


@pytest.mark.parametrize("version", [None, (0, 8), (1, 0), (2, 3)])
def test_dlpack_there_and_back(device, version):
    array = device_array.from_host(device, np.arange(6, dtype=np.float64).reshape(2, 3))
    assert array.__dlpack_device__() == (2, 0)
    ptr, shape, strides, dtype, where, keeper = import_dlpack(array.__dlpack__(max_version=version))
    assert (ptr, shape, strides, dtype, where) == (array.ptr, (2, 3), (3, 1), (2, 64, 1), (2, 0))
    del keeper
    capsule = array.__dlpack__(max_version=version)
    import_dlpack(capsule)
    with pytest.raises(BufferError, match="consumed"):
        import_dlpack(capsule)


def test_dlpack_keeps_its_array_as_long_as_it_is_needed(standin, device):
    gc.collect()
    device.stream_at(1).synchronize()
    device.stream.synchronize()
    before = standin.standin_count(PIECES)
    taken = device_array.asarray(device, DlpackOnly(device_array.zeros(device, 8)))
    unused = [device_array.zeros(device, 8).__dlpack__() for _ in range(5)]
    gc.collect()
    assert standin.standin_count(PIECES) == before + 6
    assert taken.get().tolist() == [0] * 8
    del unused
    del taken
    gc.collect()
    device.stream_at(1).synchronize()
    device.stream.synchronize()
    assert standin.standin_count(PIECES) == before


class DlpackOnly:
    def __init__(self, array):
        self.__dlpack__ = array.__dlpack__
        self.__dlpack_device__ = array.__dlpack_device__


def test_lent_memory_is_freed_behind_the_default_stream_of_others(standin, device):
    array = device_array.zeros(device, 8)
    interface = array.__cuda_array_interface__
    legacy = device.stream_at(1)
    legacy.synchronize()
    before = standin.standin_count(PIECES)
    standin.standin_go(0)
    # Another library's kernel, which still runs when the array goes.
    device.load(image()).function("wait").launch((1, 1, 1), (1, 1, 1), 0, legacy, [])
    del array
    gc.collect()
    device.stream.synchronize()
    assert standin.standin_count(PIECES) == before
    standin.standin_go(1)
    legacy.synchronize()
    assert standin.standin_count(PIECES) == before - 1
    assert interface["data"][0] != 0


def test_dlpack_refuses_what_it_cannot_do(device):
    array = device_array.zeros(device, 3)
    for wrong in ({"copy": True}, {"dl_device": (1, 0)}, {"stream": 0}):
        with pytest.raises(BufferError):
            array.__dlpack__(**wrong)
    for stream in (-1, 1, 2, None, device.new_stream().handle):
        array.__dlpack__(stream=stream)
    with pytest.raises(BufferError, match="no type"):
        device_array.zeros(device, 3, "i4,i4").__dlpack__()


def test_arrays_are_cupys_where_cupy_is(monkeypatch, device):
    class Array:
        def __init__(self, source):
            self.source = source
            self.__cuda_array_interface__ = source.__cuda_array_interface__
            self.shape, self.dtype, self.nbytes = source.shape, source.dtype, source.nbytes
            self.ptr = source.ptr
            self.device = types.SimpleNamespace(id=source.device)

        def get(self):
            return self.source.get()

    allocators = []
    cuda = types.SimpleNamespace(
        set_allocator=allocators.append,
        Device=lambda ordinal=0: types.SimpleNamespace(id=ordinal, use=lambda: None),
        get_current_stream=lambda: types.SimpleNamespace(ptr=0),
        UnownedMemory=lambda *parts: parts,
        MemoryPointer=lambda memory, offset: (*memory, offset),
    )
    fake = types.SimpleNamespace(asarray=Array, cuda=cuda)
    monkeypatch.setattr(_optional, "cupy", lambda: _optional.Found(fake))
    buffer = UnifiedBuffer(3).fill(2)
    assert isinstance(buffer.device, Array)
    assert seen(buffer.device).tolist() == [2, 2, 2]
    seen(buffer.device)[:] = 7
    buffer.mark_device_dirty()
    assert buffer.host.tolist() == [7, 7, 7]
    pool = MemoryPool()
    pool.enable()
    address, nbytes, (memory, _), ordinal, offset = allocators[0](100)
    assert (memory.address, nbytes, ordinal, offset) == (address, 100, 0, 0)
    pool.disable()
    assert allocators[1] is None


# --- kernels ---


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32, np.int64])
def test_the_kernels_of_the_package(toolkit, device, dtype):
    add = get_vector_add_kernel()
    a = np.arange(1000, dtype=dtype)
    out = np.zeros_like(a)
    add[4, 256](a, a, out)
    assert (out == 2 * a).all()
    on_device = [device_array.from_host(device, a) for _ in range(3)]
    add.forall(1000)(*on_device)
    assert (on_device[2].get() == 2 * a).all()
    buffers = [UnifiedBuffer(1000, dtype) for _ in range(3)]
    for buffer in buffers:
        buffer.copy_from(a)
    add[4, 256](*buffers)
    assert buffers[2].state is BufferState.DEVICE_DIRTY
    assert (buffers[2].host == 2 * a).all()


def test_the_matrix_product(toolkit):
    multiply = get_matrix_multiply_kernel()
    A, B = np.arange(6.0).reshape(2, 3), np.arange(12.0).reshape(3, 4)
    C = np.zeros((2, 4))
    multiply[(1, 1), (16, 16)](A, B, C)
    assert (C == A @ B).all()
    with pytest.raises(ValueError, match="cannot multiply"):
        multiply[1, 1](A, A, C)
    with pytest.raises(TypeError, match="one type"):
        multiply[1, 1](A, B.astype(np.float32), C)
    with pytest.raises(TypeError, match="three arrays"):
        multiply[1, 1](A, B)
    # Compiled once, for the device.
    multiply[1, 1](A, B, C)
    assert all("sm_90" in options[0] for _, _, options in toolkit.compiled)


SCALE = 'extern "C" __global__ void scale(float *x, float factor, int n) { }'


@cuda_source(SCALE)
def scale(x, factor, n):
    x[:n] *= factor


def test_a_kernel_of_cuda_source(toolkit):
    compiled = KernelCompiler().compile(scale)
    assert (compiled.device, compiled.is_compiled, compiled.cubin) == ("cuda", True, image())
    assert toolkit.compiled[0][0] == SCALE
    assert "--use_fast_math" in toolkit.compiled[0][2]
    x = np.ones(4, np.float32)
    compiled.kernel[1, 32](x, 3.0, 4)
    assert x.tolist() == [3, 3, 3, 3]
    compiled.kernel[1, 32](x, np.float32(2), np.int32(2))
    assert x.tolist() == [6, 6, 3, 3]
    for wrong, error, text in (
        ((x, 3.0), TypeError, "takes 3 arguments, not 2"),
        ((x, 3.0, 2**40), OverflowError, "does not fit into 4 bytes"),
        ((x, "3", 4), TypeError, "which a str does not fill"),
        ((x, np.float64(3), 4), exceptions.CUDAError, "8 bytes, and its parameter 4"),
    ):
        with pytest.raises(error, match=text):
            compiled.kernel[1, 32](*wrong)
    for launch in ((0, 32), (1, (1, 1, 1, 1)), (1, 2048), (1,), (1, 2, 3, 4, 5)):
        with pytest.raises((ValueError, exceptions.CUDAError)):
            compiled.kernel[launch](x, 3.0, 4)
    with pytest.raises(TypeError, match=r"kernel\[grid, block\]"):
        compiled.kernel(x, 3.0, 4)


def test_a_source_that_is_wrong_is_shown_with_its_line(toolkit):
    @cuda_source("syntax error")
    def broken(x):
        pass

    with pytest.raises(exceptions.KernelCompilationError, match=r"broken.cu\(1\): error"):
        KernelCompiler().compile(broken)

    @cuda_source(SCALE)
    def other(x):
        pass

    with pytest.raises(exceptions.KernelCompilationError, match="CUDA_ERROR_NOT_FOUND"):
        KernelCompiler().compile(other)


def test_decorators_take_the_source(toolkit, device):
    x = device_array.from_host(device, np.ones(4, np.float32))
    on = kernel(scale)
    on[1, 32](x, 2.0, 4)
    assert x.get().tolist() == [2, 2, 2, 2]
    on(x, 2.0, 4)
    assert x.get().tolist() == [4, 4, 4, 4]
    gpu = gpu_kernel(scale)
    assert gpu._kernel_meta["device"] == "cuda"
    gpu[1, 32, device.new_stream()](x, 2.0, 4)
    assert x.get().tolist() == [8, 8, 8, 8]
    assert CUDABackend().compile_kernel(scale).__name__ == "scale"


def test_cubins_are_kept_on_disk(toolkit):
    options = CompilationOptions(fastmath=False)
    first = compile_source(SCALE, "scale", (9, 0), options)
    assert compile_source(SCALE, "scale", (9, 0), options) == first
    assert len(toolkit.compiled) == 1
    compile_source(SCALE, "scale", (8, 0), options)
    compile_source(SCALE, "scale", (9, 0), CompilationOptions(fastmath=True))
    compile_source(SCALE, "scale", (9, 0), CompilationOptions(fastmath=False, cache=False))
    assert len(toolkit.compiled) == 4
    assert cache_module.get_kernel_cache().get_stats()["entries"] == 3


def test_a_kernel_of_numba_is_linked_kept_and_launched(toolkit, monkeypatch):
    numba = pytest.importorskip("numba", reason="numba is not installed")
    compiled = []

    def compile(func, types, **settings):
        compiled.append((types, settings))
        return ".version 9.0\n.visible .entry numba_scale(\n", None

    cuda = types.SimpleNamespace(compile=compile)
    monkeypatch.setattr(_optional, "numba_cuda", lambda: _optional.Found(cuda))

    @kernel
    def numba_scale(x, factor):
        pass

    x = np.ones(4, np.float32)
    numba_scale[1, 4](x, np.float32(3))
    numba_scale(x, np.float32(3))
    assert x.tolist() == [9] * 4
    array = numba.types.Array(numba.float32, 1, "C")
    assert compiled[0][0] == (array, numba.float32)
    assert (compiled[0][1]["cc"], compiled[0][1]["device"]) == ((9, 0), False)
    assert (len(compiled), len(toolkit.linked)) == (1, 1)
    assert toolkit.linked[0][1] == ["-arch=sm_90"]

    # With a signature all is there at once, and another process need not compile.
    signature = "void(float32[::1], float32)"
    first = KernelCompiler().compile(numba_scale._original_func, signature=signature)
    assert first.ptx.startswith(".version")
    assert first.cubin == image()
    again = KernelCompiler().compile(numba_scale._original_func, signature=signature)
    assert (again.ptx, len(compiled)) == (first.ptx, 2)
    with pytest.raises(TypeError, match="float32 with 1 dimensions, not of float64"):
        first.kernel[1, 1](np.ones(4), np.float32(3))
    with pytest.raises(TypeError, match="takes 2 arguments"):
        first.kernel[1, 1](x)


def test_the_parameters_that_numba_gives_an_argument():
    numba = pytest.importorskip("numba", reason="numba is not installed")
    from pydotcompute.compilation.launch import numba_parameters

    def words(kind, value):
        return [part.hex() for part in numba_parameters(kind, value, "it")]

    assert words(numba.int64, 3) == [(3).to_bytes(8, "little").hex()]
    assert words(numba.float64, 3) == [np.float64(3).tobytes().hex()]
    assert words(numba.boolean, True) == ["01"]
    assert words(numba.complex128, 1 + 2j) == [np.float64(n).tobytes().hex() for n in (1, 2)]
    assert words(numba.types.UniTuple(numba.int32, 2), (1, 2)) == ["01000000", "02000000"]
    with pytest.raises(TypeError, match="to be a int64"):
        numba_parameters(numba.int64, 1.5, "it")
    with pytest.raises(TypeError, match="not supported"):
        numba_parameters(numba.types.unicode_type, "x", "it")


def test_work_of_ours_is_waited_for_by_whoever_takes_the_array(standin, toolkit, device):
    stream = device.new_stream()
    x = device_array.from_host(device, np.ones(3, np.float32))
    standin.standin_go(0)
    device.load(image()).function("wait").launch((1, 1, 1), (1, 1, 1), 0, stream, [])
    gpu_kernel(scale)[1, 1, stream](x, 3.0, 3)
    assert x.__cuda_array_interface__["stream"] == stream.handle
    consumer = device.new_stream()
    x.__dlpack__(stream=consumer.handle)
    assert not consumer.is_idle()
    standin.standin_go(1)
    consumer.synchronize()
    assert seen(x).tolist() == [3, 3, 3]
    assert x.get().tolist() == [3, 3, 3]


# --- the backend and the orchestrator ---


def test_the_backend(standin, toolkit):
    backend = CUDABackend()
    array = backend.copy_to_device(np.arange(3))
    assert isinstance(array, DeviceArray)
    assert backend.copy_to_host(array).tolist() == [0, 1, 2]
    assert backend.copy_to_host(backend.allocate_zeros((2, 2), np.int32)).tolist() == [[0, 0]] * 2
    assert BackendArray(array, backend).to_host().tolist() == [0, 1, 2]
    x = backend.copy_to_device(np.ones(3, np.float32))
    done = backend.execute_kernel(backend.compile_kernel(scale), (1,), (32,), x, 2.0, 3)
    assert (done.success, done.error) == (True, None)
    assert backend.copy_to_host(x).tolist() == [2, 2, 2]
    standin.standin_refuse_launch(701)
    done = backend.execute_kernel(backend.compile_kernel(scale), (1,), (32,), x, 2.0, 3)
    assert not done.success
    assert "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES" in str(done.error)
    with pytest.raises(exceptions.CUDAError):
        backend.allocate((-1,), np.float32)
    with pytest.raises(exceptions.CUDAMemoryError):
        backend.allocate((2**33,), np.float32)
    with pytest.raises(exceptions.CUDAError, match="no device 3"):
        backend.set_device(3)
    info = backend.get_memory_info()
    assert info["free"] + info["used"] == info["total"] == 1024 * MB
    assert repr(backend).startswith("CUDABackend(device=0, devices=1, memory_free=")
    assert not CUDABackend(5).is_available
    backend.synchronize()


def test_the_orchestrator_launches_on_its_streams(toolkit, device):
    async def main():
        async with ComputeOrchestrator() as orchestrator:
            x = device_array.from_host(device, np.ones(3, np.float32))
            on = gpu_kernel(scale)
            await orchestrator.launch_kernel(on, KernelLaunchConfig(1, 32), x, 2.0, 3)
            async with orchestrator.stream_context() as stream:
                await orchestrator.launch_kernel(on, KernelLaunchConfig(1, 32), x, 2.0, 3)
                assert x._stream == stream
                y = device_array.from_host(device, np.ones(3, np.float32))

                def launches():
                    on[1, 1](y, 5.0, 3)

                await orchestrator.launch_kernel(launches, KernelLaunchConfig())
                assert y._stream == stream
            assert x.get().tolist() == [4, 4, 4]
            assert y.get().tolist() == [5, 5, 5]

    asyncio.run(main())


# --- what goes wrong ---


def test_a_kernel_that_strays_is_told_to_whoever_waits_and_to_all_after(standin, device):
    array = device_array.zeros(device, 3)
    stream = device.new_stream()
    device.load(image()).function("stray").launch((1, 1, 1), (1, 1, 1), 0, stream, [])
    with pytest.raises(exceptions.CUDAError, match="start a new process"):
        stream.synchronize()
    with pytest.raises(exceptions.CUDAError, match="700: CUDA_ERROR_ILLEGAL_ADDRESS"):
        array.get()
    buffer = UnifiedBuffer(3)
    with pytest.raises(exceptions.CUDAError, match="compute-sanitizer"):
        buffer.allocate()
    standin.standin_lose(0)


def test_a_forked_child_is_told_that_it_has_no_cuda(device):
    device_array.zeros(device, 3)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            device_array.zeros(device, 3)
            told = "nothing was raised"
        except exceptions.CUDAError as error:
            told = str(error)
        os.write(writer, told.encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as text:
        told = text.read()
    os.waitpid(child, 0)
    assert "after a fork" in told
    assert "spawn" in told
