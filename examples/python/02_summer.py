"""Request and response: many callers ask one kernel at once, and each gets its own answer.

Run: python examples/python/02_summer.py
"""

import asyncio

from pydotcompute import RingKernelRuntime, message
from pydotcompute.ring_kernels.lifecycle import KernelContext


@message
class Request:
    caller: int
    values: list[float]


@message
class Sum:
    caller: int
    value: float


async def summer(ctx: KernelContext[Request, Sum]) -> None:
    while True:
        request = await ctx.receive()
        await ctx.send(Sum(caller=request.caller, value=sum(request.values)))


async def main() -> None:
    async with RingKernelRuntime() as runtime, runtime.kernel_scope("summer", summer):

        async def ask(caller: int) -> float:
            request = Request(caller=caller, values=[float(caller)] * 3)
            answer: Sum = await runtime.send_and_receive("summer", request, timeout=5)
            assert answer.caller == caller, "an answer goes to whoever asked"
            return answer.value

        sums = await asyncio.gather(*(ask(caller) for caller in range(100)))
        telemetry = runtime.get_telemetry("summer")
    assert sums == [3.0 * caller for caller in range(100)]
    assert telemetry is not None
    assert telemetry.messages_processed == 100
    print(f"{len(sums)} callers at once, the last got {sums[-1]}")


if __name__ == "__main__":
    asyncio.run(main())
