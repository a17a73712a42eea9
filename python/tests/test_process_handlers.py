"""Compiled handlers in processes of their own."""

import asyncio
import importlib
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pydotcompute import RingKernelRuntime, _optional, message, ring_kernel
from pydotcompute.exceptions import KernelCompilationError, KernelFailedError
from pydotcompute.handlers import record, record_dtype
from pydotcompute.ring_kernels.lifecycle import Restart

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="processes need Linux"),
    pytest.mark.filterwarnings("ignore:ring kernel .* is interpreted:RuntimeWarning"),
]

HEADER = Path(__file__).parents[2] / "crates/dotcompute-abi/generated/dotcompute_abi.h"

#: Seconds; a child that compiles takes some when the machine is busy.
WAIT = 120


@message(layout="record")
class Deposit:
    value: int


@message(layout="record")
class Standing:
    value: int
    count: int


@record
class Account:
    balance: int
    count: int = 3


@ring_kernel(kernel_id="account", state=Account, auto_register=False)
def account(msg: Deposit, state: Account, out: Standing) -> int:
    state.balance += msg.value
    state.count += 1
    if state.balance < 0:
        raise ValueError("overdrawn", state.balance)
    if msg.value == 13:
        return -13
    out.value = state.balance
    out.count = state.count
    return 1


@ring_kernel(kernel_id="broken", state=Account, auto_register=False)
def broken(msg: Deposit, state: Account, out: Standing) -> int:
    out.value = len(msg)
    return 1


async def start(runtime: RingKernelRuntime, **options: Any) -> Any:
    kernel = await runtime.launch("account", account, executor="process", **options)
    await kernel.activate()
    return kernel


async def ask(runtime: RingKernelRuntime, value: int) -> Standing:
    reply = await runtime.send_and_receive("account", Deposit(value=value), timeout=WAIT)
    assert isinstance(reply, Standing)
    return reply


async def test_a_handler_runs_in_a_process_and_its_state_is_read_here():
    async with RingKernelRuntime() as runtime:
        kernel = await start(runtime, state=Account(balance=100))
        assert kernel.read_state() == Account(balance=100)
        reply = await ask(runtime, 1)
        assert (reply.value, reply.count) == (101, 4)
        assert kernel.read_state() == Account(balance=101, count=4)
        await kernel.terminate(drain=True)
        assert kernel._books(False)["processed"] == 1
        assert kernel.read_state() == Account(balance=101, count=4), "its last state"


async def test_threads_ask_and_wait_without_an_event_loop():
    async with RingKernelRuntime() as runtime:
        kernel = await start(runtime, state=Account(balance=100))

        def ask_often(count: int) -> list[int]:
            return [kernel.ask_blocking(Deposit(value=1), WAIT).count for _ in range(count)]

        asked = [asyncio.to_thread(ask_often, 500) for _ in range(3)]
        counts = [count for counts in await asyncio.gather(*asked) for count in counts]
        assert sorted(counts) == list(range(4, 1504)), "each has the reply to its own"
        assert kernel.read_state() == Account(balance=1600, count=1503)
        with pytest.raises(RuntimeError, match="await send_and_receive"):
            kernel.ask_blocking(Deposit(value=1))
        with pytest.raises(KernelFailedError, match="overdrawn"):
            await asyncio.to_thread(kernel.ask_blocking, Deposit(value=-9999), WAIT)
        with pytest.raises(KernelFailedError):
            await asyncio.to_thread(kernel.ask_blocking, Deposit(value=1))


async def test_a_function_of_a_c_library_runs_in_a_process_and_its_state_survives_that(
    tmp_path, monkeypatch
):
    (tmp_path / "vault.c").write_text(
        f'#include <signal.h>\n#include "{HEADER}"\n'
        "int32_t add(const int64_t *value, int64_t *sum, int64_t *reply, rk_ctx *ctx) {\n"
        "  *sum += *value;\n"
        "  if (*value == 13) raise(SIGKILL);\n"
        '  if (*sum < 0) return rk_fault(ctx, -3, "overdrawn", 9);\n'
        "  *reply = *sum;\n"
        "  return DC_HANDLER_REPLY;\n}\n"
    )
    library = tmp_path / "vault.so"
    compiler = [os.environ.get("CC", "cc"), "-shared", "-fPIC", "-std=gnu11"]
    subprocess.run([*compiler, str(tmp_path / "vault.c"), "-o", str(library)], check=True)
    # The child finds it by the module that it is a variable of.
    (tmp_path / "native_vault.py").write_text(
        textwrap.dedent(f"""
            from pydotcompute import message
            from pydotcompute.handlers import native_handler, record

            @message(layout="record")
            class Amount:
                value: int

            @record
            class Sum:
                sum: int

            vault = native_handler(
                ({str(library)!r}, "add"), input_type=Amount, output_type=Amount, state=Sum
            )
        """)
    )
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("native_vault")
    async with RingKernelRuntime() as runtime:
        kernel = await runtime.launch(
            "vault",
            module.vault,
            executor="process",
            state=module.Sum(sum=40),
            restart=Restart(max_restarts=100, backoff=0),
        )
        await kernel.activate()

        async def ask(value: int) -> int:
            reply = await runtime.send_and_receive("vault", module.Amount(value), timeout=WAIT)
            return reply.value

        assert await ask(2) == 42
        with pytest.raises(KernelFailedError, match="overdrawn"):
            await ask(-100)
        with pytest.raises(KernelFailedError, match="killed by signal 9"):
            await ask(13)
        assert kernel.read_state().sum == 42
        amounts = np.arange(10_000).astype(record_dtype(module.Amount))
        sums = await runtime.send_and_receive("vault", amounts[14:], timeout=WAIT)
        assert sums["value"][-1] == 42 + np.arange(14, 10_000).sum() == kernel.read_state().sum


async def test_an_array_is_one_message_of_records():
    async with RingKernelRuntime() as runtime:
        kernel = await start(runtime)
        for count in (1, 1000, 100_000):
            amounts = np.ones(count, record_dtype(Deposit))
            made = await runtime.send_and_receive("account", amounts, timeout=WAIT)
            assert len(made) == count
            assert made["value"][-1] == kernel.read_state().balance
        assert kernel.read_state().balance == 101_001


async def test_the_state_goes_on_where_an_exception_a_code_or_a_death_left_it():
    async with RingKernelRuntime() as runtime:
        kernel = await start(runtime, restart=Restart(max_restarts=100, backoff=0))
        assert (await ask(runtime, 5)).value == 5
        with pytest.raises(KernelFailedError) as raised:
            await ask(runtime, -6)
        assert "ValueError: ('overdrawn', -1)" in str(raised.value)
        if _optional.numba():
            line = account._handler.function.__code__.co_firstlineno + 5
            assert f"{__file__}:{line}" in str(raised.value), "where it was raised"
        with pytest.raises(KernelFailedError, match="-13"):
            await ask(runtime, 13)
        assert kernel.read_state() == Account(balance=5, count=4)
        reply = await ask(runtime, 2)
        assert (reply.value, reply.count) == (7, 5)


async def test_what_cannot_be_compiled_fails_at_launch_with_its_line():
    if not _optional.numba():
        pytest.skip("it is interpreted")
    async with RingKernelRuntime() as runtime:
        with pytest.raises(KernelCompilationError, match=r"test_process_handlers\.py:\d+"):
            await runtime.launch("broken", broken, executor="process")


async def test_nothing_is_left_in_shared_memory():
    before = set(os.listdir("/dev/shm"))
    async with RingKernelRuntime() as runtime:
        await start(runtime, restart=Restart(max_restarts=100, backoff=0))
        amounts = np.ones(1 << 17, record_dtype(Deposit))
        await runtime.send_and_receive("account", amounts, timeout=WAIT)
        assert set(os.listdir("/dev/shm")) <= before
    assert set(os.listdir("/dev/shm")) <= before


PROGRAM = """
import asyncio, os, signal
from pydotcompute import RingKernelRuntime, message, ring_kernel
from pydotcompute.handlers import record

@message(layout="record")
class Number:
    value: int

@record
class Sum:
    total: int

@ring_kernel(kernel_id="sum", state=Sum, auto_register=False)
def add(msg: Number, state: Sum, out: Number) -> int:
    state.total += msg.value
    out.value = state.total
    return 1

async def main():
    async with RingKernelRuntime() as runtime:
        await runtime.launch("sum", add, executor="process")
        await runtime.activate("sum")
        for value in (20, 22):
            reply = await runtime.send_and_receive("sum", Number(value=value), timeout=60)
        print("answer", reply.value)

if __name__ == "__main__":
    asyncio.run(main())
"""


def test_a_handler_of_the_main_program_is_found_by_its_path(tmp_path: Any):
    program = tmp_path / "program.py"
    program.write_text(textwrap.dedent(PROGRAM))
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", str(program)],
        capture_output=True,
        text=True,
        timeout=WAIT,
        check=False,
    )
    assert ended.stdout == "answer 42\n", ended.stderr
