"""Kernels whose functions run in processes of their own."""

import asyncio
import contextlib
import functools
import logging
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pydotcompute import RingKernelRuntime, message
from pydotcompute.exceptions import (
    InvalidConfigurationError,
    KernelFailedError,
)
from pydotcompute.ring_kernels.lifecycle import Restart

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes need Linux")

#: Seconds; a child takes some tenths of one to start when the machine is quiet.
WAIT = 60


@message
class Add:
    value: int = 0


@message
class Sum:
    total: int = 0
    process: int = 0


@message
class Columns:
    names: list[str]
    values: np.ndarray


async def adder(ctx: Any) -> None:
    total = 0
    while not ctx.should_terminate:
        got = await ctx.receive()
        if got.value == 13:
            raise ValueError("thirteen")
        if got.value == 14:
            os.kill(os.getpid(), signal.SIGKILL)
        total += got.value
        await ctx.send(Sum(total=total, process=os.getpid(), correlation_id=got.message_id))


def echo(ctx: Any) -> None:
    while True:
        ctx.send(ctx.receive())


async def talker(ctx: Any) -> None:
    text = await ctx.receive()
    print(f"printed {text}")
    print(f"complained {text}", file=sys.stderr)
    logging.getLogger("talker").error("logged %s", text)
    await ctx.send(text)


async def ask(runtime: RingKernelRuntime, value: int) -> Sum:
    reply = await runtime.send_and_receive("adder", Add(value=value), timeout=WAIT)
    assert isinstance(reply, Sum)
    return reply


async def start(runtime: RingKernelRuntime, name: str, function: Any, **options: Any) -> None:
    await runtime.launch(name, function, executor="process", **options)
    await runtime.activate(name)


async def test_an_async_function_runs_in_a_process_of_its_own():
    async with RingKernelRuntime() as runtime:
        await start(runtime, "adder", adder)
        first = await ask(runtime, 2)
        assert first.process not in (0, os.getpid())
        second = await ask(runtime, 40)
        assert (second.total, second.process) == (42, first.process)


async def test_a_plain_function_runs_in_a_process_and_any_value_goes_there_and_back():
    values = [
        7,
        -1.5,
        "text",
        b"bytes",
        None,
        True,
        [1, [2, "three"]],
        {"key": {"nested": 1}},
        (1, ("two", 3)),
        Add(value=3),
    ]
    async with RingKernelRuntime() as runtime:
        await start(runtime, "echo", echo)
        for value in values:
            await runtime.send("echo", value)
            got = await runtime.receive("echo", timeout=WAIT)
            assert got == value
            assert type(got) is type(value)


async def test_large_arrays_arrive_as_they_were_sent():
    async with RingKernelRuntime() as runtime:
        await start(runtime, "echo", echo)
        for length in (10, 1 << 17, 1 << 20):
            sent = Columns(names=["a", "b"], values=np.arange(length, dtype=np.float64))
            await runtime.send("echo", sent)
            got = await runtime.receive("echo", timeout=WAIT)
            assert got.names == sent.names
            np.testing.assert_array_equal(got.values, sent.values)


def is_shared(array: np.ndarray) -> bool:
    """Whether an array lies in memory that this process shares with another one."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        if "dotcompute-segment" in line:
            start, end = (int(bound, 16) for bound in line.split()[0].split("-"))
            if start <= array.ctypes.data < end:
                return True
    return False


async def doubler(ctx: Any) -> None:
    while not ctx.should_terminate:
        got = await ctx.receive()
        names = [str(is_shared(got.values)), str(os.getpid())]
        # An array that was received is the receiver's, wherever it lies.
        got.values *= 2
        await ctx.send(Columns(names=names, values=got.values, correlation_id=got.message_id))


async def test_large_arrays_are_used_where_they_lie_and_outlive_their_sender():
    async with RingKernelRuntime() as runtime:
        await start(runtime, "doubler", doubler)
        held = []
        for length, shared in ((100, False), (4096, True), (1 << 17, True)):
            rows = np.arange(length, dtype=np.float64).reshape(-1, 4)
            # In one piece, with gaps, and in the other order.
            for sent in (rows, np.repeat(rows, 2, axis=0)[::2], np.asfortranarray(rows)):
                got = await runtime.send_and_receive(
                    "doubler", Columns(names=[], values=sent), timeout=WAIT
                )
                np.testing.assert_array_equal(got.values, rows * 2)
                assert got.names[0] == str(shared)
                assert is_shared(got.values) == shared
                assert got.values.flags.writeable
                held.append((got, rows * 2))
        os.kill(int(got.names[1]), signal.SIGKILL)
    for got, values in held:
        np.testing.assert_array_equal(got.values, values)


async def test_text_and_dates_of_any_length_arrive_as_they_were_sent():
    async with RingKernelRuntime() as runtime:
        await start(runtime, "echo", echo)
        for sent in (
            np.array(["one", "two", "three"] * 10_000),
            np.arange(10_000).astype("datetime64[s]"),
            np.zeros((10_000, 0)),
        ):
            await runtime.send("echo", Columns(names=[], values=sent))
            got = await runtime.receive("echo", timeout=WAIT)
            np.testing.assert_array_equal(got.values, sent)
            assert got.values.dtype == sent.dtype


async def test_many_messages_keep_their_order_with_a_window():
    async with RingKernelRuntime() as runtime:
        await start(runtime, "echo", echo, window=64)
        sending = asyncio.ensure_future(send_all(runtime, 2000))
        got = [await runtime.receive("echo", timeout=WAIT) for _ in range(2000)]
        await sending
        assert got == list(range(2000))


async def send_all(runtime: RingKernelRuntime, count: int) -> None:
    for number in range(count):
        await runtime.send("echo", number)


async def test_an_exception_and_a_death_are_faults_that_a_restart_mends():
    async with RingKernelRuntime() as runtime:
        restart = Restart(max_restarts=10, backoff=0)
        await start(runtime, "adder", adder, restart=restart)
        processes = {(await ask(runtime, 1)).process}
        for value, what in ((13, "ValueError: thirteen"), (14, "killed by signal 9")):
            with pytest.raises(KernelFailedError, match=what):
                await ask(runtime, value)
            reply = await ask(runtime, 5)
            assert reply.total == 5, "the state is new"
            processes.add(reply.process)
        assert len(processes) == 3


async def test_a_message_that_kills_its_process_is_a_dead_letter_after_three_deliveries():
    async with RingKernelRuntime() as runtime:
        restart = Restart(max_restarts=10, backoff=0, redeliver=True)
        await start(runtime, "adder", adder, restart=restart)
        with pytest.raises(KernelFailedError):
            await ask(runtime, 14)
        assert (await ask(runtime, 1)).total == 1
        (letter,) = runtime.dead_letters()
        assert letter.delivery_count == 3
        assert letter.message == Add(value=14, message_id=letter.message.message_id)


@message
class Chunk:
    number: int
    values: np.ndarray


async def fragile(ctx: Any) -> None:
    """Hands arrays back; is killed with the first delivery of each third one in hand."""
    while True:
        chunk = await ctx.receive()
        name = f"/tmp/{os.environ['DOTCOMPUTE_TEST_MARKS']}.{chunk.number}"
        if chunk.number % 3 == 0 and not os.path.exists(name):
            Path(name).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        # Names its message, so that none whose reply was read comes again.
        await ctx.send(
            Chunk(number=chunk.number, values=chunk.values, correlation_id=chunk.message_id)
        )


async def stopping(ctx: Any) -> None:
    while True:
        got = await ctx.receive()
        signal.raise_signal(signal.SIGSTOP)  # to this thread, which does not run on
        await ctx.send(got)


async def test_arrays_in_hand_when_a_process_dies_come_again_whole_and_in_order(
    monkeypatch, tmp_path
):
    marks = os.path.relpath(tmp_path / "mark", "/tmp")
    monkeypatch.setenv("DOTCOMPUTE_TEST_MARKS", marks)
    restart = Restart(max_restarts=100, backoff=0, redeliver=True)
    async with RingKernelRuntime() as runtime:
        await start(runtime, "fragile", fragile, restart=restart, window=4)
        for number in range(6):
            values = np.full(20_000, number, np.float64)
            await runtime.send("fragile", Chunk(number=number, values=values))
        for number in range(6):
            got = await runtime.receive("fragile", timeout=WAIT)
            assert got.number == number
            np.testing.assert_array_equal(got.values, np.full(20_000, number))
        assert {mark.name for mark in tmp_path.iterdir()} == {"mark.0", "mark.3"}, "it was killed"
        assert not runtime.dead_letters()


async def test_a_process_that_is_stopped_is_reported_as_stalled(caplog):
    async with RingKernelRuntime() as runtime:
        children = set(os.listdir("/proc"))
        await start(runtime, "stopping", stopping, watchdog=0.05)
        await runtime.send("stopping", 1)
        async with asyncio.timeout(WAIT):
            while "kernel 'stopping' stalled" not in caplog.text:
                await asyncio.sleep(0.001)
        # On a busy machine it may stop only after it was reported.
        went_on = False
        async with asyncio.timeout(WAIT):
            while not went_on:
                await asyncio.sleep(0.001)
                for child in set(os.listdir("/proc")) - children:
                    with contextlib.suppress(OSError, ValueError):
                        stat = Path(f"/proc/{child}/stat").read_text().rsplit(")", 1)[1].split()
                        if stat[0] == "T" and int(stat[1]) == os.getpid():
                            os.kill(int(child), signal.SIGCONT)
                            went_on = True
        assert await runtime.receive("stopping", timeout=WAIT) == 1


async def test_what_the_process_writes_and_logs_reaches_logging(caplog):
    caplog.set_level(logging.INFO)
    async with RingKernelRuntime() as runtime:
        await start(runtime, "talker", talker)
        await runtime.send("talker", "words")
        assert await runtime.receive("talker", timeout=WAIT) == "words"

        def found() -> set[tuple[str, int, str]]:
            return {(r.name, r.levelno, r.getMessage()) for r in caplog.records}

        wanted = {
            ("pydotcompute.child", logging.INFO, "talker: printed words"),
            ("pydotcompute.child", logging.WARNING, "talker: complained words"),
            ("talker", logging.ERROR, "logged words"),
        }
        async with asyncio.timeout(WAIT):
            while not wanted <= found():
                await asyncio.sleep(0.001)


async def test_what_no_other_process_can_import_is_refused_with_the_reason():
    async def inner(ctx: Any) -> None: ...

    async with RingKernelRuntime() as runtime:
        for function, reason in (
            (lambda ctx: None, "is a lambda"),
            (inner, "defined inside a function"),
            (functools.partial(echo), "without a name"),
        ):
            with pytest.raises(InvalidConfigurationError, match=reason):
                await runtime.launch("k", function, executor="process")
        with pytest.raises(InvalidConfigurationError, match="executor"):
            await runtime.launch("k", echo, executor="thread")
        with pytest.raises(InvalidConfigurationError, match="window"):
            await runtime.launch("k", echo, executor="process", window=0)


PROGRAM = """
import asyncio
from pydotcompute import RingKernelRuntime, message

@message
class Number:
    value: int = 0

async def double(ctx):
    number = await ctx.receive()
    await ctx.send(Number(value=2 * number.value, correlation_id=number.message_id))

async def main():
    async with RingKernelRuntime() as runtime:
        await runtime.launch("double", double, executor="process")
        await runtime.activate("double")
        reply = await runtime.send_and_receive("double", Number(value=21), timeout=60)
        print("answer", reply.value)

"""


def run_program(tmp_path: Any, end: str) -> subprocess.CompletedProcess[str]:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM + textwrap.dedent(end))
    return subprocess.run(
        [sys.executable, str(program)], capture_output=True, text=True, timeout=120, check=False
    )


def test_a_function_of_the_main_program_is_found_by_its_path(tmp_path):
    ended = run_program(
        tmp_path,
        """
        if __name__ == "__main__":
            asyncio.run(main())
        """,
    )
    assert ended.stdout == "answer 42\n", ended.stderr


def test_a_process_that_does_not_come_to_its_function_is_an_error_and_no_wait_for_ever(tmp_path):
    ended = run_program(
        tmp_path,
        """
        if __name__ != "__main__":
            import time

            time.sleep(600)
        else:
            import pydotcompute.ring_kernels.runtime as module

            launch = module.RingKernelRuntime.launch

            def impatient(*args, **options):
                return launch(*args, **options, start_timeout=0.5)

            module.RingKernelRuntime.launch = impatient
            asyncio.run(main())
        """,
    )
    assert ended.returncode != 0
    assert "did not come to its function __main__.double" in ended.stderr
    assert "start_timeout" in ended.stderr


def test_a_main_program_that_is_not_guarded_fails_with_advice(tmp_path):
    ended = run_program(tmp_path, "asyncio.run(main())\n")
    assert ended.returncode != 0
    assert "guard what the program does" in ended.stderr
