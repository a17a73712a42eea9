"""A stand-in for CuPy on a machine without a GPU: arrays in main memory under its names.

It shows which calls our code makes and in which order, not that a real device takes them.
"""

import types

import numpy as np

TOTAL = 3 * 2**29


class Array:
    """A device array: memory of its own, copied by `get` and `set`."""

    def __init__(self, shape, dtype):
        self.data = np.full(shape, 77, dtype)
        self.shape, self.dtype, self.nbytes = self.data.shape, self.data.dtype, self.data.nbytes

    @property
    def __cuda_array_interface__(self):
        return self.data.__array_interface__

    def get(self, out=None):
        if out is None:
            return self.data.copy()
        np.copyto(out, self.data)
        return out

    def set(self, host):
        np.copyto(self.data, host)


def zeros(shape, dtype=np.float32):
    array = Array(shape, dtype)
    array.data.fill(0)
    return array


def array(host):
    copy = Array(np.shape(host), np.asarray(host).dtype)
    copy.set(host)
    return copy


class Stream:
    def __init__(self, non_blocking=False):
        self.ptr = 4711
        self.waits = 0
        self.inside = 0

    def synchronize(self):
        self.waits += 1

    def __enter__(self):
        self.inside += 1
        return self

    def __exit__(self, *_):
        self.inside -= 1


Stream.null = Stream()


class Device:
    mem_info = (600, 1000)

    def __init__(self, device_id=0):
        self.id = device_id

    def use(self):
        pass

    def synchronize(self):
        pass


class Pool:
    def __init__(self):
        self.limit = None

    def malloc(self, nbytes):
        raise NotImplementedError

    def used_bytes(self):
        return 100

    def total_bytes(self):
        return 400

    def n_free_blocks(self):
        return 3

    def free_all_blocks(self):
        self.freed = True

    def set_limit(self, size=None):
        self.limit = size


def module():
    """Make the module."""
    fake = types.ModuleType("cupy")
    fake.empty = Array
    fake.zeros = zeros
    fake.array = array
    fake.asnumpy = lambda device: device.get()
    device, pinned = Pool(), Pool()
    fake.get_default_memory_pool = lambda: device
    fake.get_default_pinned_memory_pool = lambda: pinned
    runtime = types.SimpleNamespace(
        getDeviceCount=lambda: 1,
        memGetInfo=lambda: (600, 1000),
        getDeviceProperties=lambda _: {
            "name": b"Fake",
            "major": 8,
            "minor": 9,
            "totalGlobalMem": TOTAL,
            "multiProcessorCount": 4,
            "maxThreadsPerBlock": 1024,
            "maxThreadsDim": (1024, 1024, 64),
            "maxGridSize": (7, 8, 9),
            "warpSize": 32,
        },
    )
    allocators = []
    fake.allocators = allocators
    fake.cuda = types.SimpleNamespace(
        runtime=runtime,
        Stream=Stream,
        Device=Device,
        alloc_pinned_memory=lambda nbytes: bytearray(nbytes),
        set_allocator=allocators.append,
        set_pinned_memory_allocator=allocators.append,
    )
    return fake
