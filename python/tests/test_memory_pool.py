"""The memory pool: CuPy's with CUDA, our own for main memory."""

import gc
import threading

import numpy as np
import pytest

from pydotcompute import exceptions
from pydotcompute.core.memory_pool import (
    MemoryPool,
    PoolStatistics,
    configure_memory_pool,
    get_memory_pool,
)
from pydotcompute.core.unified_buffer import UnifiedBuffer

MB = 2**20


@pytest.fixture(autouse=True)
def _fresh(monkeypatch):
    monkeypatch.setattr(MemoryPool, "_instance", None)


@pytest.fixture
def pool(no_gpu):
    return MemoryPool()


def test_statistics():
    stats = PoolStatistics(used_bytes=MB, total_bytes=4 * MB, n_free_blocks=3)
    assert stats.free_bytes == 3 * MB
    assert stats.utilization == 0.25
    assert stats.used_mb == 1.0
    assert stats.total_mb == 4.0
    assert PoolStatistics(0, 0, 0).utilization == 0.0


def test_one_object_with_the_defaults(pool):
    assert get_memory_pool() is pool is MemoryPool()
    assert pool._initialized is True
    assert pool._enabled is False
    assert pool.enabled is False
    assert pool._initial_size_mb == 0
    assert pool._max_size_mb is None
    assert pool._cuda_available is False


def test_a_pool_that_gave_nothing_counts_zeros(pool):
    zeros = PoolStatistics(0, 0, 0)
    assert pool.get_stats() == zeros
    assert pool.get_pinned_stats() == zeros
    pool.enable()
    assert pool.enabled is True
    pool.enable()
    pool.free_all_blocks()
    pool.free_all_free()
    pool.set_limit(100)
    pool.set_limit(None)
    assert pool.get_stats() == zeros
    pool.disable()
    assert pool.enabled is False
    assert repr(pool) == "MemoryPool(enabled=False, used=0.00MB, total=0.00MB, cuda=False)"


def test_e1_the_constructors_parameters_are_used(no_gpu):
    pool = MemoryPool(initial_size_mb=2, max_size_mb=8)
    assert (pool._initial_size_mb, pool._max_size_mb) == (2, 8)
    books = pool.get_host_stats()
    assert (books["reserved_bytes"], books["limit_bytes"]) == (2 * MB, 8 * MB)
    assert MemoryPool(max_size_mb=4) is pool
    assert pool.get_host_stats()["limit_bytes"] == 4 * MB


def test_e1_blocks_are_cut_from_the_reservation(no_gpu):
    pool = MemoryPool(initial_size_mb=1)
    arrays = [pool.empty(1000, np.uint8) for _ in range(4)]
    spread = max(a.ctypes.data for a in arrays) - min(a.ctypes.data for a in arrays)
    assert spread < MB
    assert pool.get_host_stats()["total_bytes"] == MB
    del arrays
    assert pool.trim() == MB
    assert pool.get_host_stats()["total_bytes"] == 0


@pytest.mark.parametrize("size", [-1, "1", True, float("nan"), float("inf")])
def test_e1_sizes_that_are_none_are_refused(no_gpu, size):
    with pytest.raises(exceptions.InvalidConfigurationError, match="max_size_mb"):
        MemoryPool(max_size_mb=size)
    with pytest.raises(exceptions.InvalidConfigurationError, match="initial_size_mb"):
        configure_memory_pool(size)


def test_e2_blocks_are_used_again_and_zeroed(pool):
    first = pool.empty((1000,), np.float32)
    first.fill(7)
    address = first.ctypes.data
    assert pool.get_stats().used_bytes >= 4000
    del first
    assert pool.get_stats() == PoolStatistics(0, pool.get_stats().total_bytes, 1)
    again = pool.empty((1000,), np.float32)
    assert again.ctypes.data == address
    del again
    again = pool.zeros((1000,), np.float32)
    assert again.ctypes.data == address
    assert not again.any()
    books = pool.get_host_stats()
    assert (books["allocations"], books["reuses"]) == (3, 2)
    assert books["requested_bytes"] == 4000
    assert pool.get_stats().n_free_blocks == 0


@pytest.mark.parametrize("nbytes", [0, 1, 255, 256, 257, 1000, 4097, 10**6, 10**6 + 1])
def test_e2_size_classes_waste_little_and_memory_is_aligned(pool, nbytes):
    memory = pool.allocate(nbytes)
    assert memory.nbytes == len(memory) == nbytes
    assert memory.address % 128 == 0
    used = pool.get_host_stats()["used_bytes"]
    assert nbytes <= used <= max(256, nbytes * 1.125 + 128)


def test_e2_a_block_returns_when_the_last_view_is_gone(pool):
    memory = pool.allocate(4096)
    views = [np.frombuffer(memory, np.uint8), memoryview(memory), np.asarray(memory)]
    del memory
    while views:
        assert pool.get_host_stats()["used_blocks"] == 1
        views.pop()
    gc.collect()
    assert pool.get_host_stats()["used_blocks"] == 0


def test_e2_the_limit_holds_and_names_the_numbers(pool):
    pool.set_limit(1)
    held = pool.empty(700_000, np.uint8)
    with pytest.raises(exceptions.MemoryLimitError) as caught:
        pool.empty(700_000, np.uint8)
    assert isinstance(caught.value, MemoryError)
    assert caught.value.limit_bytes == MB
    assert caught.value.requested_bytes == 700_000
    assert pool.get_host_stats()["refusals"] == 1
    del held
    # What is cached makes room for a block of another class.
    other = pool.empty(1000, np.float64)
    larger = pool.empty(900_000, np.uint8)
    assert pool.get_stats().total_bytes <= MB
    del other, larger
    pool.set_limit(None)
    assert len(pool.empty(4 * MB, np.uint8)) == 4 * MB


def test_e2_lowering_the_limit_trims(pool):
    for size in (1, 2, 3):
        pool.empty(size * MB, np.uint8)
    assert pool.get_stats().total_bytes >= 6 * MB
    pool.set_limit(2)
    assert pool.get_stats().total_bytes <= 2 * MB


def test_e2_trim_keeps_what_it_is_told_to(pool):
    arrays = [pool.empty(MB, np.uint8) for _ in range(4)]
    del arrays
    assert pool.trim(keep_mb=2) == 2 * MB
    assert pool.get_stats().n_free_blocks == 2
    assert pool.trim() == 2 * MB
    assert pool.get_stats() == PoolStatistics(0, 0, 0)


def test_e2_shapes_and_dtypes(pool):
    assert pool.empty(np.int64(3)).shape == (3,)
    assert pool.zeros((2, 0, 3), "int8").shape == (2, 0, 3)
    assert pool.zeros((), np.complex128)[()] == 0
    with pytest.raises(TypeError, match="Python objects"):
        pool.empty(3, object)
    with pytest.raises((ValueError, OverflowError)):
        pool.empty(-1)


def test_e2_peaks(pool):
    array = pool.empty(MB, np.uint8)
    del array
    books = pool.get_host_stats()
    assert (books["used_bytes"], books["peak_used_bytes"]) == (0, MB)
    pool.reset_peak()
    assert pool.get_host_stats()["peak_used_bytes"] == 0


def test_e2_more_than_the_address_space_is_a_memory_error(pool):
    for size in (2**63 - 1, 2**64):
        with pytest.raises(MemoryError):
            pool.allocate(size)
    assert pool.get_host_stats()["used_bytes"] == 0


def test_e2_the_pool_is_thread_safe(pool):
    failed = []

    def work(seed):
        try:
            for i in range(300):
                array = pool.zeros(1 + (seed * 7919 + i * 104729) % 9000, np.uint8)
                assert not array.any()
                array.fill(seed)
                assert (array == seed).all()
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failed == []
    books = pool.get_host_stats()
    assert (books["used_bytes"], books["allocations"]) == (0, 1200)
    assert pool.trim() == books["total_bytes"]


def test_buffers_take_memory_from_an_enabled_pool(pool):
    UnifiedBuffer(1000).allocate()
    assert pool.get_stats().total_bytes == 0
    pool.enable()
    buffer = UnifiedBuffer(1000).allocate()
    assert pool.get_stats().used_bytes >= 4000
    view = buffer.host
    buffer.free()
    assert pool.get_stats().used_bytes >= 4000
    del view
    assert pool.get_stats().used_bytes == 0
    assert pool.get_stats().n_free_blocks == 1


def test_e3_configure(no_gpu):
    pool = configure_memory_pool(max_size_mb=64)
    assert pool is get_memory_pool()
    assert pool.enabled is True
    assert pool._max_size_mb == 64
    assert configure_memory_pool(enable=False).enabled is True
    assert configure_memory_pool(initial_size_mb=1).get_host_stats()["reserved_bytes"] == MB
    assert configure_memory_pool(_initial_size_mb=2).get_host_stats()["reserved_bytes"] == 2 * MB


def test_with_cuda_cupys_pools_do_the_work(cupy):
    pool = MemoryPool(max_size_mb=16)
    assert pool._cuda_available is True
    assert cupy.get_default_memory_pool().limit == 16 * MB
    pool.enable()
    assert [a.__self__ for a in cupy.allocators] == [
        cupy.get_default_memory_pool(),
        cupy.get_default_pinned_memory_pool(),
    ]
    assert pool.get_stats() == PoolStatistics(100, 400, 3)
    assert pool.get_pinned_stats() == PoolStatistics(0, 0, 3)
    pool.set_limit(None)
    assert cupy.get_default_memory_pool().limit == 0
    pool.free_all_blocks()
    assert cupy.get_default_memory_pool().freed
    pool.disable()
    assert cupy.allocators[-2:] == [None, None]


def test_e4_a_driver_that_fails_leaves_the_host_pool(broken_cupy):
    pool = MemoryPool()
    assert pool._cuda_available is False
    pool.enable()
    assert len(pool.empty(3)) == 3


def test_e1_a_reservation_beyond_the_limit_is_refused(no_gpu):
    with pytest.raises(exceptions.MemoryLimitError):
        MemoryPool(initial_size_mb=4, max_size_mb=2)
    assert get_memory_pool().get_host_stats()["reserved_bytes"] == 0


def test_e2_a_limit_below_what_is_in_use_keeps_it_and_caches_nothing(pool):
    held = pool.empty(2 * MB, np.uint8)
    cached = pool.empty(MB, np.uint8)
    del cached
    pool.set_limit(1)
    books = pool.get_host_stats()
    assert (books["used_bytes"], books["cached_bytes"], books["refusals"]) == (2 * MB, 0, 0)
    del held
    assert pool.get_stats() == PoolStatistics(0, 0, 0)


def test_e2_negative_sizes_are_refused(pool):
    with pytest.raises(ValueError, match="0 or more"):
        pool.allocate(-1)
    with pytest.raises(ValueError, match="negative dimensions"):
        pool.empty((2, -1))
