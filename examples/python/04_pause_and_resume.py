"""Pause and resume: a deactivated kernel keeps its state and its messages, and processes none.

Run: python examples/python/04_pause_and_resume.py
"""

import asyncio

from pydotcompute import RingKernelRuntime, message
from pydotcompute.exceptions import QueueTimeoutError
from pydotcompute.ring_kernels import KernelState
from pydotcompute.ring_kernels.lifecycle import KernelContext


@message
class Tick:
    number: int


async def counter(ctx: KernelContext[Tick, Tick]) -> None:
    seen = 0
    while True:
        await ctx.receive()
        seen += 1
        await ctx.send(Tick(number=seen))


async def main() -> None:
    async with RingKernelRuntime() as runtime, runtime.kernel_scope("counter", counter) as kernel:
        first = await runtime.send_and_receive("counter", Tick(number=0), timeout=5)

        await runtime.deactivate("counter")
        assert runtime.get_kernel_state("counter") is KernelState.DEACTIVATED
        for number in range(3):
            await runtime.send("counter", Tick(number=number))
        try:
            await runtime.receive("counter", timeout=0.05)
        except QueueTimeoutError as error:
            print(f"paused: {error}")
        else:
            raise AssertionError("a paused kernel processes nothing")

        await runtime.reactivate("counter")
        rest = [await runtime.receive("counter", timeout=5) for _ in range(3)]
    print(f"resumed: {first.number}, then {[tick.number for tick in rest]}")
    assert [tick.number for tick in rest] == [2, 3, 4], "nothing was lost, the state was kept"
    assert kernel.state is KernelState.TERMINATED


if __name__ == "__main__":
    asyncio.run(main())
