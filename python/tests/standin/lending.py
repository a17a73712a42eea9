"""Messages that name device memory, and messages behind a stream's work, on stand-ins for NVIDIA's
libraries. Run by test_cuda_executor.py, in a process whose loader finds the stand-ins."""

import asyncio
import ctypes
import gc
import types

import numpy as np
import pytest

from pydotcompute import RingKernelRuntime, UnifiedBuffer, _optional, message, ring_kernel
from pydotcompute.core import device_array
from pydotcompute.exceptions import BufferNotAllocatedError, CUDAError, PyDotComputeError
from pydotcompute.handlers import (
    DevicePointer,
    RecordBatch,
    cuda_handler,
    record,
    record_dtype,
)

PIECES = 0


@message(layout="record")
class Column:
    data: DevicePointer
    count: int


@message(layout="record")
class Total:
    value: int
    seen: DevicePointer


SOURCE = """
#include "dotcompute.cuh"
struct column { unsigned long long data; long long count; };
struct total { long long value; unsigned long long seen; };
extern "C" __device__ int32_t
add(const column *message, void *, total *reply, rk_ctx *ctx) {
    rk_acquire(ctx);
    if (message->count < 0)
        return rk_fault(ctx, -7, "negative", 8);
    const float *data = reinterpret_cast<const float *>(message->data);
    reply->value = 0;
    for (long long i = 0; i < message->count; ++i)
        reply->value += data[i];
    reply->seen = message->data;
    return DC_HANDLER_REPLY;
}
"""

add = cuda_handler("add", SOURCE, input_type=Column, output_type=Total)


class Foreign:
    """Another library's array: it keeps `of`."""

    def __init__(self, of, **changes):
        self.of = of
        told = of.__cuda_array_interface__
        self.__cuda_array_interface__ = {**told, **changes}


@pytest.fixture(scope="session")
def standin():
    library = ctypes.CDLL("libcuda.so.1")
    library.standin_count.restype = ctypes.c_long
    return library


@pytest.fixture
def device():
    return _optional.cuda().module.device()


@pytest.fixture
async def runtime():
    async with RingKernelRuntime() as made:
        await made.launch("add", add, executor="cuda")
        await made.activate("add")
        yield made


async def total(runtime, pointer, count):
    answer = await runtime.send_and_receive("add", Column(data=pointer, count=count), timeout=60)
    assert answer.seen == pointer
    return answer.value


def pieces(standin, device):
    """The pieces of device memory that live, once what was freed is."""
    gc.collect()
    device.stream.synchronize()
    device.stream_at(1).synchronize()
    return standin.standin_count(PIECES)


async def settled(standin, device):
    """Waits until what earlier tests had is freed: the memory of the grid is left."""
    await freed(standin, device, 1)


async def freed(standin, device, before):
    async with asyncio.timeout(60):
        # Told by nobody: a kernel settles its message after its reply is there, and the thread that
        # lent it may still have it.
        while pieces(standin, device) > before:
            await asyncio.sleep(0.001)


async def test_a_message_names_arrays_of_ours_and_of_other_libraries(runtime, device):
    buffer = UnifiedBuffer(10).fill(1)
    assert await total(runtime, await runtime.lend(buffer), 10) == 10
    # What the host has written since is brought there when it is lent anew.
    buffer.host[:] = 2
    buffer.mark_host_dirty()
    assert await total(runtime, await runtime.lend(buffer), 10) == 20
    array = device_array.from_host(device, np.full(5, 3, np.float32))
    assert await total(runtime, await runtime.lend(array), 5) == 15
    assert await total(runtime, await runtime.lend(Foreign(array)), 4) == 12
    dlpack = types.SimpleNamespace(
        __dlpack__=array.__dlpack__, __dlpack_device__=array.__dlpack_device__
    )
    assert await total(runtime, await runtime.lend(dlpack), 3) == 9


async def test_memory_is_kept_until_the_messages_that_name_it_are_processed(
    runtime, device, standin
):
    await settled(standin, device)
    before = pieces(standin, device)
    array = Foreign(device_array.from_host(device, np.full(4, 5, np.float32)))
    pointer = await runtime.lend(array)
    assert (pointer.nbytes, pointer.is_lent, bool(pointer)) == (16, True, True)
    await runtime.deactivate("add")
    for _ in range(3):
        await runtime.send("add", Column(data=pointer.offset(4), count=3))
    other = await runtime.lend(device_array.from_host(device, np.full(4, 6, np.float32)))
    batch = np.zeros(2, record_dtype(Column))
    batch["data"], batch["count"] = other.address, 4
    await runtime.send("add", RecordBatch(batch, held=[other]))
    del array, pointer, other, batch
    # One for the messages, and one for the batch.
    assert pieces(standin, device) == before + 2
    await runtime.reactivate("add")
    answers = [await runtime.receive("add", timeout=60) for _ in range(4)]
    assert [one.value for one in answers[:3]] == [15, 15, 15]
    assert answers[3]["value"].tolist() == [24, 24]
    del answers
    await freed(standin, device, before)


async def test_a_dead_letter_still_has_its_memory(runtime, device, standin):
    await settled(standin, device)
    before = pieces(standin, device)
    array = device_array.from_host(device, np.ones(4, np.float32))
    pointer = await runtime.lend(array)
    with pytest.raises(PyDotComputeError, match="negative"):
        await runtime.send_and_receive("add", Column(data=pointer, count=-1), timeout=60)
    del array, pointer
    assert pieces(standin, device) == before + 1
    (letter,) = runtime.dead_letters("add", take=True)
    assert letter.message.data.is_lent
    assert letter.message.data.nbytes == 16
    del letter
    await freed(standin, device, before)


@pytest.mark.parametrize(
    "kind",
    [
        lambda stream: stream,
        lambda stream: stream.handle,
        lambda stream: types.SimpleNamespace(ptr=stream.handle),
        lambda stream: types.SimpleNamespace(cuda_stream=stream.handle),
        lambda stream: types.SimpleNamespace(__cuda_stream__=stream.__cuda_stream__),
    ],
    ids=["ours", "handle", "cupy", "torch", "cuda-python"],
)
async def test_a_message_on_a_stream_is_sent_behind_its_work(runtime, device, standin, kind):
    stream = device.new_stream()
    buffer = UnifiedBuffer(3).fill(1)
    pointer = await runtime.lend(buffer)
    module = device.load(b"\x7fELF\x02" + bytes(123))
    standin.standin_go(0)
    try:
        module.function("wait").launch((1, 1, 1), (1, 1, 1), 0, stream, [])
        arguments = [pointer.address.to_bytes(8, "little"), np.float32(4).tobytes()]
        arguments.append(np.int32(3).tobytes())
        module.function("scale").launch((1, 1, 1), (1, 1, 1), 0, stream, arguments)
        message = Column(data=pointer, count=3)
        sending = asyncio.ensure_future(runtime.send_on_stream("add", message, kind(stream)))
        # What is sent otherwise does not wait, and finds what is there by then.
        assert await total(runtime, pointer, 3) == 3
        assert not sending.done()
    finally:
        standin.standin_go(1)
    await asyncio.wait_for(sending, 60)
    assert (await runtime.receive("add", timeout=60)).value == 12


async def test_no_stream_is_the_legacy_stream_and_what_is_no_stream_is_refused(runtime):
    pointer = await runtime.lend(UnifiedBuffer(2).fill(3))
    await runtime.send_on_stream("add", Column(data=pointer, count=2), None)
    assert (await runtime.receive("add", timeout=60)).value == 6
    with pytest.raises(TypeError, match="a stream is ours, CuPy's, PyTorch's or a handle"):
        await runtime.send_on_stream("add", Column(data=pointer, count=2), "stream")
    with pytest.raises(PyDotComputeError, match="nobody"):
        await runtime.send_on_stream("nobody", Column(data=pointer, count=2), None)


async def test_what_cannot_be_lent_is_refused_with_what_to_do(runtime, device, standin):
    with pytest.raises(TypeError, match="ndarray is no array of a CUDA device: copy it there"):
        await runtime.lend(np.zeros(3, np.float32))
    with pytest.raises(TypeError, match="list is no array of a CUDA device: put the data into a U"):
        await runtime.lend([1.0])
    buffer = UnifiedBuffer(3)
    with pytest.raises(BufferNotAllocatedError, match="allocate"):
        await runtime.lend(buffer)
    buffer.fill(1).free()
    with pytest.raises(BufferNotAllocatedError, match="allocate"):
        await runtime.lend(buffer)
    with pytest.raises(ValueError, match="empty array"):
        await runtime.lend(UnifiedBuffer(0).allocate())
    array = device_array.from_host(device, np.zeros((2, 2), np.float32))
    with pytest.raises(CUDAError, match=r"not contiguous.*copy it first"):
        await runtime.lend(Foreign(array, strides=(4, 8)))
    standin.standin_lies_on(1)
    try:
        with pytest.raises(CUDAError, match=r"lies on device 1.*run on device 0: copy it there"):
            await runtime.lend(array)
    finally:
        standin.standin_lies_on(0)
    # What the driver says of an address where there is no memory any more.
    host = np.zeros(4)
    gone = Foreign(array, data=(host.ctypes.data, False))
    with pytest.raises(CUDAError, match=r"no device has memory at 0x.*was it freed\?"):
        await runtime.lend(gone)


async def test_a_field_of_another_type_is_refused_with_what_to_do(runtime, device):
    array = device_array.from_host(device, np.zeros(3, np.float32))
    pointer = await runtime.lend(array)
    with pytest.raises(TypeError, match=r"'Column', field 'data'.*RingKernelRuntime\.lend.*Device"):
        await runtime.send("add", Column(data=array, count=3))
    with pytest.raises(TypeError, match="'Column', field 'count': annotate it as DevicePointer"):
        await runtime.send("add", Column(data=pointer, count=pointer))
    with pytest.raises(IndexError, match="12 bytes from there is beyond the 12"):
        pointer.offset(12)
    # None is an address of 0, and a part of a message names nothing.
    assert await total(runtime, DevicePointer(), 0) == 0
    await runtime.send("add", Column(data=None, count=0))
    assert (await runtime.receive("add", timeout=60)).seen == DevicePointer()
    with pytest.raises(TypeError, match=r"'Outer', field 'part'.*message's own fields"):

        @record
        class Outer:
            part: Column


@record
class Nothing:
    count: int


@ring_kernel(kernel_id="host", state=Nothing, auto_register=False)
def on_the_host(msg: Column, state: Nothing, out: Total) -> int:
    return 0


@pytest.mark.filterwarnings("ignore:ring kernel:RuntimeWarning")
async def test_a_kernel_that_cannot_reach_the_memory_does_not_get_it(runtime):
    pointer = await runtime.lend(UnifiedBuffer(2).fill(3))
    await runtime.launch("host", on_the_host)
    await runtime.launch("child", add, executor="cuda", isolation="process")
    for name, place in (("host", "on the host"), ("child", "in a process of its own")):
        await runtime.activate(name)
        with pytest.raises(CUDAError, match=f"cannot reach.*{place}.*isolation='thread'"):
            await runtime.send(name, Column(data=pointer, count=2))
        # An address alone is a number.
        await runtime.send(name, Column(data=DevicePointer(), count=0))
