"""UnifiedBuffer: memory, states, and what other libraries see of it."""

import copy
import gc
import pickle
import sys
import timeit
import warnings
import weakref

import numpy as np
import pytest

from pydotcompute import _optional, exceptions
from pydotcompute.core.memory_pool import MemoryPool
from pydotcompute.core.unified_buffer import BufferState, UnifiedBuffer

DTYPES = [np.float32, np.float64, np.int32, np.int64, np.uint8, np.complex64]


@pytest.fixture(autouse=True)
def _no_pool(monkeypatch):
    monkeypatch.setattr(MemoryPool, "_instance", None)


@pytest.fixture
def buffer(no_gpu):
    return UnifiedBuffer((4,)).allocate()


def test_states():
    assert [(state.name, state.value) for state in BufferState] == [
        ("UNINITIALIZED", 1),
        ("HOST_ONLY", 2),
        ("DEVICE_ONLY", 3),
        ("SYNCHRONIZED", 4),
        ("HOST_DIRTY", 5),
        ("DEVICE_DIRTY", 6),
    ]


def test_a_new_buffer(no_gpu):
    new = UnifiedBuffer(100)
    assert new.shape == (100,)
    assert new.dtype == np.float32
    assert isinstance(new.dtype, np.dtype)
    assert (new.size, new.nbytes) == (100, 400)
    assert new.state is BufferState.UNINITIALIZED
    assert new.is_allocated is False
    assert (new._pinned, new._cuda_available) == (False, False)
    assert UnifiedBuffer((2, 3, 4), "int64").nbytes == 192
    assert UnifiedBuffer[np.float32] is not None
    text = repr(UnifiedBuffer((100,)))
    assert text == (
        "UnifiedBuffer(shape=(100,), dtype=float32, state=UNINITIALIZED, cuda=False, metal=False)"
    )


def test_e8_shape_and_dtype_are_validated():
    assert UnifiedBuffer([2, np.int64(3)]).shape == (2, 3)
    assert UnifiedBuffer(np.int32(5)).shape == (5,)
    assert UnifiedBuffer(()).size == 1
    assert UnifiedBuffer((0, 3)).allocate().host.shape == (0, 3)
    for wrong in (-1, (2, -1)):
        with pytest.raises(ValueError, match="negative"):
            UnifiedBuffer(wrong)
    for wrong in (1.5, (2.0,), None, "a"):
        with pytest.raises(TypeError):
            UnifiedBuffer(wrong)
    with pytest.raises(TypeError, match="Python objects"):
        UnifiedBuffer(3, object)


def test_more_than_the_address_space_is_a_memory_error(no_gpu):
    for size in (2**62, 2**100):
        with pytest.raises(MemoryError):
            UnifiedBuffer(size).allocate()


def test_e5_construction_is_under_two_microseconds():
    # The least of many short runs: what it costs when nobody else has the core.
    runs = timeit.repeat(lambda: UnifiedBuffer((100,)), number=200, repeat=200)
    assert min(runs) / 200 < 2e-6


@pytest.mark.parametrize("dtype", DTYPES)
def test_e9_memory_is_zeroed_and_aligned(no_gpu, dtype):
    buffer = UnifiedBuffer((10, 10), dtype)
    assert buffer.allocate() is buffer
    assert buffer.state is BufferState.HOST_ONLY
    assert buffer.is_allocated is True
    assert buffer.host.dtype == dtype
    assert buffer.host.flags.writeable
    assert buffer.host.flags.c_contiguous
    assert buffer.host.ctypes.data % 128 == 0
    assert not buffer.host.any()


def test_e9_a_second_allocate_keeps_the_data(buffer):
    buffer[0] = 5
    before = buffer.host
    assert buffer.allocate() is buffer
    assert buffer.host is before
    assert buffer[0] == 5
    assert buffer.state is BufferState.HOST_DIRTY


@pytest.mark.parametrize(("host", "device"), [(True, False), (False, True), (False, False)])
def test_allocate_without_cuda_is_host_only(no_gpu, host, device):
    buffer = UnifiedBuffer(3, pinned=True).allocate(host=host, device=device)
    assert buffer.state is BufferState.HOST_ONLY
    assert buffer._pinned is True


def test_an_unallocated_buffer_says_so(no_gpu):
    buffer = UnifiedBuffer(3)
    uses = [
        lambda: buffer.host,
        lambda: buffer.device,
        lambda: buffer.metal,
        buffer.mark_host_dirty,
        buffer.mark_device_dirty,
        buffer.mark_metal_dirty,
        lambda: buffer[0],
        lambda: memoryview(buffer),
        lambda: buffer.__array_interface__,
        buffer.__dlpack__,
        lambda: buffer.copy_to(np.zeros(3)),
    ]
    for use in uses:
        with pytest.raises(exceptions.BufferNotAllocatedError):
            use()
    buffer.synchronize()
    assert buffer.state is BufferState.UNINITIALIZED


def test_free_and_allocate_again(buffer):
    buffer.fill(3)
    view = buffer.host
    buffer.free()
    assert buffer.state is BufferState.UNINITIALIZED
    assert not buffer.is_allocated
    assert (view == 3).all()  # A view outlives the buffer's memory.
    assert not buffer.allocate().host.any()
    buffer.free()
    buffer.free()


def test_host_is_the_live_storage(buffer):
    buffer.host[1] = 9
    assert buffer.host[1] == 9
    assert buffer.device is buffer.host


def test_e6_every_state_leads_back_to_synchronized_without_a_device(buffer):
    buffer.synchronize()
    assert buffer.state is BufferState.HOST_ONLY
    buffer.mark_host_dirty()
    assert buffer.state is BufferState.HOST_DIRTY
    buffer.synchronize()
    assert buffer.state is BufferState.SYNCHRONIZED
    buffer.mark_device_dirty()
    assert buffer.state is BufferState.DEVICE_DIRTY
    buffer.synchronize()
    assert buffer.state is BufferState.SYNCHRONIZED
    buffer.mark_device_dirty()
    assert buffer.host is buffer.device
    assert buffer.state is BufferState.SYNCHRONIZED
    buffer.mark_host_dirty()
    assert buffer.device is buffer.host
    assert buffer.state is BufferState.SYNCHRONIZED
    buffer.mark_metal_dirty()
    assert buffer.state is BufferState.DEVICE_DIRTY
    buffer.synchronize()
    assert buffer.state is BufferState.SYNCHRONIZED
    buffer.synchronize()
    assert buffer.state is BufferState.SYNCHRONIZED


async def test_e6_ensure_on_either_side(buffer):
    buffer.mark_host_dirty()
    await buffer.ensure_on_device()
    assert buffer.state is BufferState.SYNCHRONIZED
    buffer.mark_device_dirty()
    await buffer.ensure_on_host()
    assert buffer.state is BufferState.SYNCHRONIZED
    with pytest.raises(exceptions.BufferNotAllocatedError):
        await UnifiedBuffer(3).ensure_on_device()


def test_copy_from_and_to(no_gpu):
    buffer = UnifiedBuffer((2, 3))
    buffer.copy_from(np.arange(6.0).reshape(2, 3))
    assert buffer.state is BufferState.HOST_DIRTY
    out = np.empty((2, 3), np.float64)
    buffer.copy_to(out)
    assert out.tolist() == [[0, 1, 2], [3, 4, 5]]
    other = UnifiedBuffer((2, 3))
    buffer.copy_to(other)
    assert (other.host == buffer.host).all()
    again = UnifiedBuffer((2, 3), np.float64)
    again.copy_from(buffer)
    assert (again.host == buffer.host).all()
    buffer.copy_from([[1, 2, 3], [4, 5, 6]])
    buffer.copy_from(7)
    assert (buffer.host == 7).all()


def test_e8_broadcasting_is_not_silent(buffer):
    wide = UnifiedBuffer((2, 4)).allocate()
    with pytest.warns(UserWarning, match="broadcast"):
        wide.copy_from(np.arange(4.0))
    assert wide.host.tolist() == [[0, 1, 2, 3]] * 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        buffer.copy_from(np.ones((1, 4)))
        wide.copy_from(np.ones((1, 2, 4)))
        wide.copy_from(np.float32(2))
    with pytest.raises(ValueError, match="broadcast"):
        buffer.copy_from(np.zeros((2, 4)))
    with pytest.raises(ValueError, match="broadcast"):
        buffer.copy_from(np.zeros(3))
    with pytest.raises(ValueError, match="broadcast"):
        buffer.copy_to(np.zeros(3))


def test_e8_narrowing_that_loses_integers_raises(no_gpu):
    small = UnifiedBuffer(2, np.int32)
    small.copy_from(np.array([1, -5], np.int64))
    assert small.host.tolist() == [1, -5]
    with pytest.raises(OverflowError):
        small.copy_from(np.array([1, 2**40]))
    assert small.host.tolist() == [1, -5]
    with pytest.raises(TypeError):
        small.copy_from(np.array([1.5, 2.5]))


def test_e8_a_copy_that_fails_leaves_the_buffer_as_it_was(no_gpu):
    buffer = UnifiedBuffer(3)
    with pytest.raises(ValueError, match="broadcast"):
        buffer.copy_from(np.zeros(5))
    assert buffer.state is BufferState.UNINITIALIZED


def test_zeros_and_fill(no_gpu):
    buffer = UnifiedBuffer(3)
    assert buffer.fill(2.5) is buffer
    assert buffer.state is BufferState.HOST_DIRTY
    assert buffer.host.tolist() == [2.5] * 3
    assert buffer.zeros() is buffer
    assert buffer.host.tolist() == [0] * 3
    assert UnifiedBuffer(3).zeros().state is BufferState.HOST_DIRTY


def test_sequence_protocol(buffer):
    assert len(buffer) == 4
    assert len(UnifiedBuffer((7, 2))) == 7
    with pytest.raises(TypeError, match="len"):
        len(UnifiedBuffer(()))
    buffer[1:3] = 8
    assert buffer.state is BufferState.HOST_DIRTY
    assert buffer[1] == 8
    assert list(buffer) == [0, 8, 8, 0]


# --- other libraries ---


def test_other_libraries_see_the_same_memory(buffer):
    address = buffer.host.ctypes.data
    views = {
        "asarray": np.asarray(buffer),
        "frombuffer": np.frombuffer(buffer, np.float32),
        "dlpack": np.from_dlpack(buffer),
        "memoryview": np.asarray(memoryview(buffer)),
    }
    buffer.host[2] = 6
    for name, view in views.items():
        assert view.ctypes.data == address, name
        assert view[2] == 6, name
    assert buffer.__array_interface__["data"] == (address, False)
    assert buffer.__dlpack_device__() == (1, 0)
    view = memoryview(buffer)
    assert (view.format, view.shape, view.readonly) == ("f", (4,), False)
    view[0] = 1.0
    assert buffer[0] == 1


@pytest.mark.parametrize("dtype", DTYPES)
def test_dlpack_and_buffer_keep_dtype_and_shape(no_gpu, dtype):
    buffer = UnifiedBuffer((2, 3), dtype).fill(1)
    for view in (np.from_dlpack(buffer), np.asarray(buffer)):
        assert (view.dtype, view.shape) == (dtype, (2, 3))
        assert (view == 1).all()


def test_dlpack_refuses_another_device(buffer):
    with pytest.raises((BufferError, ValueError)):
        buffer.__dlpack__(dl_device=(2, 0))
    if np.lib.NumpyVersion(np.__version__) >= "2.1.0":
        copied = np.from_dlpack(buffer, copy=True)
        buffer.host[0] = 3
        assert copied[0] == 0
    else:
        with pytest.raises(BufferError):
            buffer.__dlpack__(copy=True)


def test_reading_through_a_protocol_fetches_the_newest_copy(cupy):
    buffer = UnifiedBuffer(3).allocate()
    buffer.device.data[:] = 4
    buffer.mark_device_dirty()
    assert np.asarray(buffer).tolist() == [4, 4, 4]
    assert buffer.state is BufferState.SYNCHRONIZED


def test_memory_lives_as_long_as_its_views(no_gpu):
    buffer = UnifiedBuffer(4).allocate()
    view = memoryview(buffer)
    gone = weakref.ref(buffer)
    del buffer
    gc.collect()
    assert gone() is None
    assert view[0] == 0
    view.release()


def test_nothing_leaks(no_gpu):
    def use():
        buffer = UnifiedBuffer(10_000).allocate()
        np.from_dlpack(buffer)
        memoryview(buffer).release()
        np.asarray(buffer)

    use()
    before = sys.getallocatedblocks()
    for _ in range(1000):
        use()
    assert sys.getallocatedblocks() - before < 900  # 1000 leaks would be more.


# --- CUDA, by a stand-in ---


def test_cuda_states(cupy):
    assert UnifiedBuffer(3).allocate().state is BufferState.SYNCHRONIZED
    assert UnifiedBuffer(3).allocate(device=False).state is BufferState.HOST_ONLY
    assert UnifiedBuffer(3).allocate(host=False).state is BufferState.DEVICE_ONLY
    with pytest.raises(ValueError, match="host"):
        UnifiedBuffer(3).allocate(host=False, device=False)


def test_cuda_transfers(cupy):
    buffer = UnifiedBuffer(3).allocate(device=False)
    buffer.host[:] = 2
    assert buffer.device.data.tolist() == [2, 2, 2]
    assert buffer.state is BufferState.SYNCHRONIZED
    buffer.fill(3)
    buffer.synchronize()
    assert buffer.state is BufferState.SYNCHRONIZED
    assert buffer.device.data.tolist() == [3, 3, 3]
    buffer.device.data[:] = 4
    buffer.mark_device_dirty()
    buffer.synchronize()
    assert buffer.host.tolist() == [4, 4, 4]
    only = UnifiedBuffer(3).allocate(host=False)
    only.device.data[:] = 5
    assert only.host.tolist() == [5, 5, 5]
    buffer.copy_from(only.device)
    assert buffer.host.tolist() == [5, 5, 5]
    assert UnifiedBuffer(3, pinned=True).allocate().host.tolist() == [0, 0, 0]


def test_cuda_failures_say_which_way(cupy):
    buffer = UnifiedBuffer(3).allocate()

    def fail(*_, **__):
        raise RuntimeError("lost")

    buffer._device_array.get = fail
    buffer.mark_device_dirty()
    with pytest.raises(exceptions.BufferSyncError) as caught:
        _ = buffer.host
    assert caught.value.direction == "device->host"
    assert isinstance(caught.value.__cause__, RuntimeError)
    buffer._device_array.set = fail
    buffer.mark_host_dirty()
    with pytest.raises(exceptions.BufferSyncError, match="host->device"):
        _ = buffer.device


def test_e4_a_driver_that_fails_leaves_the_cpu(broken_cupy):
    buffer = UnifiedBuffer(3).allocate()
    assert buffer._cuda_available is False
    assert buffer.state is BufferState.HOST_ONLY
    assert not _optional.cupy()
    assert "cudaErrorInsufficientDriver" in _optional.cupy().reason


# --- Metal, on MLX's CPU device ---


def test_metal_is_missing_with_a_reason(buffer):
    with pytest.raises(exceptions.MetalError, match="Metal not available") as caught:
        _ = buffer.metal
    assert "MLX is not installed" in str(caught.value.__cause__)


def test_e7_metal_writes_come_back(metal):
    buffer = UnifiedBuffer(3).fill(1)
    array = buffer.metal
    assert isinstance(array, metal.array)
    assert buffer.state is BufferState.SYNCHRONIZED
    assert buffer.metal is array
    array[1] = 5
    buffer.mark_metal_dirty()
    assert buffer.state is BufferState.DEVICE_DIRTY
    assert buffer.host.tolist() == [1, 5, 1]
    assert buffer.state is BufferState.SYNCHRONIZED
    buffer[0] = 9
    assert np.array(buffer.metal).tolist() == [9, 5, 1]
    buffer.metal = buffer.metal * 2
    buffer.synchronize()
    assert buffer.host.tolist() == [18, 10, 2]
    with pytest.raises(ValueError, match="shape"):
        buffer.metal = metal.zeros((4,))
    buffer.free()
    assert buffer._metal_array is None


@pytest.mark.parametrize(
    ("dtype", "name"),
    [
        (np.float32, "float32"),
        (np.float64, "float32"),
        (np.int64, "int64"),
        (np.uint8, "uint8"),
        (np.bool_, "bool"),
        (np.complex64, "complex64"),
    ],
)
def test_metal_dtypes(metal, dtype, name):
    buffer = UnifiedBuffer((2, 2), dtype).fill(1)
    assert str(buffer.metal.dtype).endswith(name)
    buffer.mark_metal_dirty()
    assert buffer.host.dtype == dtype
    assert (buffer.host == 1).all()


def test_metal_sees_a_host_that_was_marked_dirty_and_synchronized(metal):
    buffer = UnifiedBuffer(2).fill(1)
    _ = buffer.metal
    buffer.fill(2)
    buffer.synchronize()
    assert np.array(buffer.metal).tolist() == [2, 2]
    buffer.fill(3)
    _ = buffer.device
    assert np.array(buffer.metal).tolist() == [3, 3]


@pytest.mark.parametrize("dtype", ["S3", "U2", "V8", "M8[s]", [("a", "i4"), ("b", "f8")]])
def test_e9_zeros_are_zero_bytes_whatever_the_type(no_gpu, dtype):
    buffer = UnifiedBuffer(3, dtype).allocate()
    buffer.host.view(np.uint8)[:] = 7
    assert not buffer.zeros().host.view(np.uint8).any()
    assert buffer.state is BufferState.HOST_DIRTY


def test_a_buffer_can_be_pickled_and_copied(no_gpu):
    buffer = UnifiedBuffer((2, 2), np.int32).fill(3)
    for again in (pickle.loads(pickle.dumps(buffer)), copy.deepcopy(buffer)):
        assert again.host.tolist() == [[3, 3], [3, 3]]
        again[0] = 1
    assert buffer.host.tolist() == [[3, 3], [3, 3]]
    assert pickle.loads(pickle.dumps(UnifiedBuffer(3))).state is BufferState.UNINITIALIZED
