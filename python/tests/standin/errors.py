"""A program that does what goes wrong on a device, for test_cuda_executor.py: prints the error."""

import asyncio
import sys
import time

from pydotcompute import RingKernelRuntime, _optional, message
from pydotcompute.handlers import cuda_handler


@message(layout="record")
class Number:
    value: int


SOURCE = """
#include "dotcompute.cuh"
struct number { long long value; };
extern "C" __device__ int32_t
work(const number *message, void *, number *reply, rk_ctx *ctx) {
    if (message->value == 1)
        __trap();
    for (volatile long long turn = 0; message->value == 2; ++turn) {
    }
    reply->value = message->value;
    return DC_HANDLER_REPLY;
}
"""


async def main(what: str) -> None:
    source = SOURCE.replace("reply->value", "reply->oops") if what == "bad source" else SOURCE
    work = cuda_handler("work", source, input_type=Number, output_type=Number)
    async with RingKernelRuntime() as runtime:
        await runtime.launch("work", work, executor="cuda")
        await runtime.activate("work")
        assert (await runtime.send_and_receive("work", Number(value=7), timeout=60)).value == 7
        if what == "loop":
            await runtime.send("work", Number(value=2))
            started = time.monotonic()
            await runtime.terminate("work", timeout=1)
            assert time.monotonic() - started < 30
            print("terminated in time")
            return
        if what == "stream lost":
            device = _optional.cuda().module.device()
            stray = device.load(b"\x7fELF\x02" + bytes(123)).function("stray")
            stray.launch((1, 1, 1), (1, 1, 1), 0, device.stream, [])
            await runtime.send_on_stream("work", Number(value=3), device.stream)
        await runtime.send_and_receive("work", Number(value=1), timeout=60)


try:
    asyncio.run(main(sys.argv[1]))
except Exception as error:
    print(f"{type(error).__name__}: {error}")
