"""A program whose kernels have multiprocessors of their own, for test_cuda_executor.py. What its
argument names is otherwise: "late", it asks for them when a kernel is there; "refused", the driver
is to refuse them."""

import asyncio
import sys

import pytest

from pydotcompute import RingKernelRuntime, message
from pydotcompute.exceptions import CUDAError
from pydotcompute.handlers import cuda_handler, ring_free_sms, ring_placements


@message(layout="record")
class Number:
    value: int


SOURCE = """
#include "dotcompute.cuh"
struct number { long long value; };
extern "C" __device__ int32_t
where(const number *, void *, number *reply, rk_ctx *) {
    reply->value = standin_multiprocessor();
    return DC_HANDLER_REPLY;
}
"""


async def main(what: str) -> None:
    where = cuda_handler("where", SOURCE, input_type=Number, output_type=Number)
    assert ring_placements() == []
    if what == "in time":
        free = ring_free_sms()
        assert free.multiprocessors == 2
        assert free.stream.__cuda_stream__() == (0, free.stream.handle)
        free.stream.synchronize()
        assert ring_free_sms(1).stream != free.stream
    if what == "refused":
        with pytest.raises(CUDAError, match=r"refuses green contexts.*cuGreenCtxCreate"):
            ring_free_sms()
    async with RingKernelRuntime() as runtime:
        await runtime.launch("where", where, executor="cuda")
        await runtime.activate("where")
        if what == "late":
            with pytest.raises(CUDAError, match="call ring_free_sms before"):
                ring_free_sms()
        place = (await runtime.send_and_receive("where", Number(value=0), timeout=60)).value
        (text,) = ring_placements()
        print(f"on {place}, that is {text}")


asyncio.run(main(sys.argv[1]))
