"""A ring kernel in a dozen lines: it keeps a running sum of what it is sent.

Run: python examples/python/01_quick_start.py
"""

import asyncio

from pydotcompute import RingKernelRuntime, message, ring_kernel
from pydotcompute.ring_kernels.lifecycle import KernelContext


@message
class Add:
    value: float


@message
class Total:
    value: float
    count: int


@ring_kernel(kernel_id="adder", input_type=Add, output_type=Total)
async def adder(ctx: KernelContext[Add, Total]) -> None:
    total, count = 0.0, 0
    while not ctx.should_terminate:
        add = await ctx.receive()  # Ends the kernel, cleanly, once it is to end.
        total, count = total + add.value, count + 1
        await ctx.send(Total(value=total, count=count))


async def main() -> None:
    async with RingKernelRuntime() as runtime:
        await runtime.launch("adder")
        await runtime.activate("adder")
        for value in (1.0, 2.5, 4.0):
            answer = await runtime.send_and_receive("adder", Add(value=value), timeout=5)
            print(f"after {value}: {answer.value} of {answer.count}")
    assert (answer.value, answer.count) == (7.5, 3)


if __name__ == "__main__":
    asyncio.run(main())
