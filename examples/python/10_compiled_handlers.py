"""Compiled handlers: one plain function per message, run without the GIL.

A handler takes a record, its state and the record of its reply. numba compiles it, and a thread of
the runtime calls it; without numba it is interpreted, slower. One message is one record, or an
array of them.

Run: python examples/python/10_compiled_handlers.py
"""

import asyncio

import numpy as np

from pydotcompute import RingKernelRuntime, message, ring_kernel
from pydotcompute.handlers import HandlerContext, c_struct, record, record_dtype


@message(layout="record")
class Reading:
    sensor: np.uint16
    value: float


@message(layout="record")
class Alert:
    sensor: np.uint16
    value: float
    deviations: float


@record
class Running:
    """Welford's running mean and variance."""

    count: int
    mean: float
    squares: float


@ring_kernel(kernel_id="watch", state=Running)
def watch(msg: Reading, state: Running, out: Alert, ctx: HandlerContext) -> int:
    if msg.value != msg.value:
        raise ValueError("a reading is a number")
    before = state.count
    deviation = 0.0
    if before > 10:
        spread = (state.squares / before) ** 0.5
        deviation = abs(msg.value - state.mean) / max(spread, 1e-9)
    state.count += 1
    step = msg.value - state.mean
    state.mean += step / state.count
    state.squares += step * (msg.value - state.mean)
    if deviation < 5.0:
        return 0
    out.sensor = msg.sensor
    out.value = msg.value
    out.deviations = deviation
    ctx.log("out of line", 10)
    return 1


async def main() -> None:
    print(c_struct(Reading))
    async with RingKernelRuntime() as runtime:
        kernel = await runtime.launch("watch", state={"mean": 20.0})
        await runtime.activate("watch")

        # A batch: one message, nothing copied; the array is read-only until it is processed.
        random = np.random.default_rng(7)
        readings = np.zeros(100_000, record_dtype(Reading))
        readings["sensor"] = random.integers(0, 8, len(readings))
        readings["value"] = random.normal(20.0, 1.0, len(readings))
        readings["value"][[500, 70_000]] = 35.0, -3.0
        alerts = await runtime.send_and_receive("watch", readings, timeout=60)
        for alert in alerts[abs(alerts["deviations"]) > 10]:
            print(f"sensor {alert['sensor']}: {alert['value']:.1f}")

        # A single record is a message as any other.
        reply = await runtime.send_and_receive("watch", Reading(np.uint16(3), 99.0), timeout=60)
        assert isinstance(reply, Alert)
        state = kernel.read_state()
        print(f"{state.count} readings, mean {state.mean:.2f}; {reply.value} is out of line")
        assert state.count == 100_001
        assert abs(alerts["deviations"]).max() > 10


if __name__ == "__main__":
    asyncio.run(main())
