"""Errors reach whoever waits; a kernel that may restart goes on; what was lost can be read.

Run: python examples/python/07_errors_and_restart.py
"""

import asyncio

from pydotcompute import RingKernelRuntime, message
from pydotcompute.exceptions import KernelFailedError
from pydotcompute.ring_kernels.lifecycle import KernelContext, Restart


@message
class Divide:
    by: float


@message
class Quotient:
    value: float


async def divider(ctx: KernelContext[Divide, Quotient]) -> None:
    while True:
        await ctx.send(Quotient(value=1 / (await ctx.receive()).by))


async def main() -> None:
    async with RingKernelRuntime() as runtime:
        # Without a restart the kernel has failed, and everyone who waits for it is told why.
        async with runtime.kernel_scope("once", divider) as kernel:
            try:
                await runtime.send_and_receive("once", Divide(by=0), timeout=5)
            except KernelFailedError as error:
                print(f"failed: {error}")
                cause = error.__cause__
            assert isinstance(cause, ZeroDivisionError)
            assert kernel.error is cause

        # With one it is started anew. The message that it failed on is a dead letter.
        again = Restart("on_fault", max_restarts=3, backoff=0.001)
        async with runtime.kernel_scope("again", divider, restart=again) as kernel:
            await runtime.send("again", Divide(by=0))
            answer = await runtime.send_and_receive("again", Divide(by=4), timeout=5)
            assert kernel.restarts == 1
        (letter,) = runtime.dead_letters("again")
    print(f"restarted once, then answered {answer.value}; dead letter: {letter.message}")
    assert answer.value == 0.25
    assert letter.message.by == 0


if __name__ == "__main__":
    asyncio.run(main())
