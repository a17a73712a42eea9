"""A streaming pipeline of three stages: parse, smooth, find peaks.

Each stage is a kernel, connected to the next: its replies go straight into the queue of that. The
queues are short: where a stage is slow, the ones before it wait, up to the source.

Run: python examples/python/03_pipeline.py
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any

from pydotcompute import RingKernelRuntime, message
from pydotcompute.ring_kernels.lifecycle import KernelContext, RingKernelConfig


@message
class Line:
    text: str


@message
class Reading:
    place: int
    value: float


@message
class Peak:
    place: int
    value: float
    last: bool = False


async def parse(ctx: KernelContext[Line, Reading]) -> None:
    while True:
        place, value = (await ctx.receive()).text.split(",")
        await ctx.send(Reading(place=int(place), value=float(value)))


async def smooth(ctx: KernelContext[Reading, Reading]) -> None:
    window: deque[float] = deque(maxlen=3)
    while True:
        reading = await ctx.receive()
        window.append(reading.value)
        await ctx.send(Reading(place=reading.place, value=sum(window) / len(window)))


async def find_peaks(ctx: KernelContext[Reading, Peak]) -> None:
    while True:
        reading = await ctx.receive()
        last = reading.place == COUNT - 1
        if reading.value > 50 or last:
            await ctx.send(Peak(place=reading.place, value=reading.value, last=last))


COUNT = 1000
STAGES: dict[str, Callable[..., Any]] = {"parse": parse, "smooth": smooth, "find_peaks": find_peaks}


async def main() -> None:
    peaks: list[Peak] = []
    async with asyncio.timeout(60), RingKernelRuntime() as runtime:
        for name, stage in STAGES.items():
            short = RingKernelConfig(name, input_queue_size=16, output_queue_size=16)
            await runtime.launch(name, stage, config=short)
            await runtime.activate(name)
        runtime.connect("parse", "smooth")
        runtime.connect("smooth", "find_peaks")

        async def feed() -> None:
            for place in range(COUNT):
                value = 90 if place % 100 in (40, 41, 42) else place % 7
                await runtime.send("parse", Line(text=f"{place},{value}"))

        async with asyncio.TaskGroup() as group:
            group.create_task(feed())
            while not peaks or not peaks[-1].last:
                peaks.append(await runtime.receive("find_peaks"))
        # An ask of the first stage is answered by the last one.
        answer = await runtime.send_and_receive("parse", Line(text=f"{COUNT},500"), timeout=5)
        assert answer.place == COUNT

    found = sorted({peak.place // 100 for peak in peaks if not peak.last})
    print(f"{COUNT} lines through {len(STAGES)} stages: peaks in hundreds {found}")
    assert found == list(range(10))


if __name__ == "__main__":
    asyncio.run(main())
