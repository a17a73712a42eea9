"""Threads for what blocks: kernels that read files, beside an event loop that goes on.

A `ThreadedKernelPool` serves threads; a plain `def` kernel of a runtime serves the event loop.

Run: python examples/python/05_threads.py
"""

import asyncio
import tempfile
import zlib
from pathlib import Path
from typing import Any

from pydotcompute import RingKernelRuntime, message
from pydotcompute.ring_kernels import ThreadedKernelContext, ThreadedKernelPool


@message
class Checksum:
    name: str
    value: int


def checksum(path: Path) -> Checksum:
    return Checksum(name=path.name, value=zlib.crc32(path.read_bytes()))


def pool_worker(ctx: ThreadedKernelContext[Path, Checksum]) -> None:
    while (path := ctx.receive()) is not None:  # None once the kernel is to stop.
        ctx.send(checksum(path))


@message
class Read:
    path: str


def reader(ctx: Any) -> None:
    """Runs on a thread of its own; its waits block that thread only."""
    while True:
        ctx.send(checksum(Path(ctx.receive().path)))


async def ask_reader(paths: list[Path]) -> dict[str, int]:
    found = {}
    async with RingKernelRuntime() as runtime, runtime.kernel_scope("reader", reader):
        for path in paths:
            answer = await runtime.send_and_receive("reader", Read(path=str(path)), timeout=5)
            found[answer.name] = answer.value
    return found


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder, f"{number}.bin") for number in range(40)]
        for number, path in enumerate(paths):
            path.write_bytes(bytes([number]) * 10_000)

        with ThreadedKernelPool("checksum", pool_worker, num_workers=4) as pool:
            for path in paths:
                pool.send(path)
            answers = [pool.receive_any(timeout=5) for _ in paths]
        by_pool = {answer.name: answer.value for answer in answers}
        by_reader = asyncio.run(ask_reader(paths))

    wanted = {f"{number}.bin": zlib.crc32(bytes([number]) * 10_000) for number in range(40)}
    assert by_pool == by_reader == wanted
    print(f"{len(wanted)} files read by a pool of 4 threads, and by a kernel beside an event loop")


if __name__ == "__main__":
    main()
