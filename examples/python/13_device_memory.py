"""Arrays on a GPU, named by messages to a kernel that stays there.

The array is not copied: the message carries its address, and keeps its memory until the kernel is
done with it. Without a GPU, driver or compiler this says what is missing.

Run: python examples/python/13_device_memory.py
"""

import asyncio

import numpy as np

from pydotcompute import RingKernelRuntime, UnifiedBuffer, message
from pydotcompute.exceptions import BackendNotAvailableError
from pydotcompute.handlers import DevicePointer, cuda_handler


@message(layout="record")
class Column:
    data: DevicePointer
    count: int


@message(layout="record")
class Total:
    value: float


SOURCE = """
#include "dotcompute.cuh"
struct column { unsigned long long data; long long count; };
struct total { double value; };

extern "C" __device__ int32_t
add(const column *message, void *, total *reply, rk_ctx *ctx) {
    rk_acquire(ctx);
    const float *data = reinterpret_cast<const float *>(message->data);
    reply->value = 0;
    for (long long i = 0; i < message->count; ++i) {
        reply->value += data[i];
        if (i % 1024 == 0)
            if (int32_t over = rk_tick(ctx))
                return over;
    }
    return DC_HANDLER_REPLY;
}
"""


async def main() -> None:
    add = cuda_handler("add", SOURCE, input_type=Column, output_type=Total)
    async with RingKernelRuntime() as runtime:
        try:
            await runtime.launch("add", add, executor="cuda")
        except BackendNotAvailableError as error:
            print(f"not run: {error}")
            return
        await runtime.activate("add")

        buffer: UnifiedBuffer[np.float32] = UnifiedBuffer(1000).fill(0.5)
        column = await runtime.lend(buffer)  # an array of CuPy, PyTorch or numba as well
        total = await runtime.send_and_receive("add", Column(data=column, count=1000), timeout=30)
        print(f"all of it: {total.value}")
        # A part of it, by its place.
        part = Column(data=column.offset(4 * 900), count=100)
        total = await runtime.send_and_receive("add", part, timeout=30)
        print(f"the last hundred: {total.value}")
        assert total.value == 50

        # Behind what a stream is given: PyTorch's or CuPy's, say, whatever writes the array.
        await runtime.send_on_stream("add", Column(data=column, count=2), None)
        assert (await runtime.receive("add", timeout=30)).value == 1


asyncio.run(main())
