"""Anomaly detection: the machine's own load as a stream.

Twenty times a second the time that the processors spent at work, waiting and idle becomes events;
one ring kernel keeps what is usual for each of them. After a quiet while this program works hard on
purpose, and the kernel notices.

Run: python examples/python/12_watch_this_machine.py [SECONDS]
"""

import asyncio
import os
import sys
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pydotcompute import RingKernelRuntime
from pydotcompute.workloads import anomaly

INTERVAL_S = 0.05
STAT = Path("/proc/stat")
NAMES = ["this program", "user", "system", "idle", "waiting"]


class Load:
    """How long the processors were busy since the last look, in milliseconds."""

    def __init__(self) -> None:
        self.last = self.counters()

    def counters(self) -> NDArray[np.float64]:
        """Milliseconds so far: of this process, and of all processors where the system tells."""
        ticks = [0.0] * 4
        if STAT.exists():
            user, nice, system, idle, waiting = STAT.read_text().split()[1:6]
            per_second = os.sysconf("SC_CLK_TCK")
            ticks = [
                (int(user) + int(nice)) / per_second,
                int(system) / per_second,
                int(idle) / per_second,
                int(waiting) / per_second,
            ]
        return 1e3 * np.array([time.process_time(), *ticks])

    def look(self) -> NDArray[np.float64]:
        last, self.last = self.last, self.counters()
        return self.last - last


async def main(seconds: float) -> None:
    async with RingKernelRuntime() as runtime:
        # The median of the last 31 looks, which a few wild ones do not move.
        detector = anomaly.robust(keys=len(NAMES), threshold=8.0, warm_up=20, native=True)
        kernel = await runtime.launch("watch", detector)
        await kernel.activate()
        load, alarms = Load(), []
        looks = max(int(seconds / INTERVAL_S), 40)
        for number in range(looks):
            if number >= looks - 5:
                busy_until = time.process_time() + 2 * INTERVAL_S
                while time.process_time() < busy_until:
                    pass
            await asyncio.sleep(INTERVAL_S)
            busy = load.look()
            events = anomaly.events(range(len(NAMES)), busy, [time.monotonic()] * len(NAMES))
            for alarm in await runtime.send_and_receive("watch", events, timeout=60):
                alarms.append(NAMES[alarm["key"]])
                print(
                    f"{NAMES[alarm['key']]}: {alarm['value']:.0f} ms, "
                    f"where {alarm['expected']:.0f} ms are usual"
                )
        counts = kernel.read_state()
        print(f"{counts.taken} readings, {counts.unusual} of them unusual")
        assert (counts.taken, counts.late) == (looks * len(NAMES), 0)
        assert "this program" in alarms, "it did work hard"


if __name__ == "__main__":
    asyncio.run(main(float(sys.argv[1]) if len(sys.argv) > 1 else 3.0))
