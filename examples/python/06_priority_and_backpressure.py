"""Priorities, and what happens to a message that finds the queue full.

Run: python examples/python/06_priority_and_backpressure.py
"""

import asyncio

from pydotcompute import RingKernelRuntime, message
from pydotcompute.exceptions import QueueFullError
from pydotcompute.ring_kernels.lifecycle import KernelContext, RingKernelConfig


@message
class Job:
    name: str
    priority: int = 128


async def worker(ctx: KernelContext[Job, Job]) -> None:
    while True:
        await ctx.send(await ctx.receive())


async def in_order(runtime: RingKernelRuntime) -> list[str]:
    """What waits is served by band, and in the order of arrival within one."""
    async with runtime.kernel_scope("ordered", worker):
        await runtime.deactivate("ordered")
        for name, priority in (("low", 10), ("one", 128), ("urgent", 250), ("two", 128)):
            await runtime.send("ordered", Job(name=name, priority=priority))
        await runtime.reactivate("ordered")
        served = [(await runtime.receive("ordered", timeout=5)).name for _ in range(4)]
    return served


async def when_full(runtime: RingKernelRuntime, strategy: str) -> str:
    """Send three jobs to a paused kernel that has room for two."""
    config = RingKernelConfig(strategy, input_queue_size=2, backpressure_strategy=strategy)
    async with runtime.kernel_scope(strategy, worker, config=config):
        await runtime.deactivate(strategy)
        try:
            for name in ("a", "b", "c"):
                await runtime.send(strategy, Job(name=name), timeout=0.05)
        except QueueFullError as error:
            outcome = type(error).__name__
        else:
            outcome = "accepted"
        await runtime.reactivate(strategy)
        left = "".join([(await runtime.receive(strategy, timeout=5)).name for _ in range(2)])
    return f"{outcome}, {left} left"


async def main() -> None:
    async with RingKernelRuntime() as runtime:
        served = await in_order(runtime)
        print("served:", ", ".join(served))
        outcomes = {
            strategy: await when_full(runtime, strategy)
            for strategy in ("block", "reject", "drop_oldest", "drop_newest")
        }
    for strategy, outcome in outcomes.items():
        print(f"{strategy}: {outcome}")
    assert served == ["urgent", "one", "two", "low"]
    assert outcomes == {
        "block": "SendTimeoutError, ab left",
        "reject": "QueueFullError, ab left",
        "drop_oldest": "accepted, bc left",
        "drop_newest": "accepted, ab left",
    }


if __name__ == "__main__":
    asyncio.run(main())
