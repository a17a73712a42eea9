"""A program whose kernels stay on the device, for test_cuda_executor.py."""

import asyncio
import os
import signal
from pathlib import Path

import numpy as np
import pytest

from pydotcompute import RingKernelRuntime, message
from pydotcompute.exceptions import (
    InvalidConfigurationError,
    KernelCompilationError,
    PyDotComputeError,
)
from pydotcompute.handlers import cuda_handler, record, record_dtype
from pydotcompute.ring_kernels.lifecycle import RingKernelConfig


@message(layout="record")
class Amount:
    value: int


@record
class Account:
    balance: int


SOURCE = """
#include "dotcompute.cuh"
struct amount { long long value; };
extern "C" __device__ int32_t
deposit(const amount *message, amount *account, amount *reply, rk_ctx *ctx) {
    if (message->value < 0)
        return rk_fault(ctx, -7, "overdrawn", 9);
    account->value += message->value;
    reply->value = account->value;
    return DC_HANDLER_REPLY;
}
"""


def handler(source=SOURCE):
    return cuda_handler("deposit", source, input_type=Amount, output_type=Amount, state=Account)


SHARE = """
#include "dotcompute.cuh"
struct amount { long long value; };
extern "C" __device__ int32_t
share(const amount *message, void *, amount *reply, rk_ctx *ctx) {
    reply->value = message->value / 2;
    if (int32_t fault = rk_send(ctx, 0, reply))
        return fault;
    if (int32_t fault = rk_send(ctx, 1, message))
        return fault;
    return DC_HANDLER_REPLY;
}
"""


#: Adds up the numbers below a value, by all threads, and replies by the last one.
SUM = """
#include "dotcompute.cuh"
struct amount { long long value; };
extern "C" __device__ int32_t
sum(const amount *message, void *, amount *reply, rk_ctx *ctx) {
    const uint32_t thread = rk_thread(ctx), threads = rk_threads(ctx);
    if (rk_block(ctx) != 0)
        return DC_HANDLER_DONE;
    long long *partial = static_cast<long long *>(rk_shared(ctx));
    partial[thread] = 0;
    for (long long at = thread; at < message->value; at += threads)
        partial[thread] += at;
    if (int32_t fault = rk_barrier(ctx))
        return fault;
    if (thread != threads - 1)
        return DC_HANDLER_DONE;
    reply->value = 1000000 * threads * rk_blocks(ctx);
    for (uint32_t other = 0; other < threads; ++other)
        reply->value += partial[other];
    return DC_HANDLER_REPLY;
}
"""


async def scopes(runtime):
    """Handlers of a warp, of a block and of a team, in this process and in one of its own."""
    for name, scope, blocks, block_size, threads, isolation in [
        ("warp", "warp", 1, 256, 32, "thread"),
        ("block", "block", 1, 64, 64, "thread"),
        ("default", "block", 1, 256, 256, "thread"),
        ("far", "block", 1, 64, 64, "process"),
        ("team", "team", 3, 32, 32, "thread"),
        ("far team", "team", 2, 32, 32, "process"),
    ]:
        sums = cuda_handler(
            "sum", SUM, input_type=Amount, output_type=Amount, scope=scope, shared_bytes=8 * threads
        )
        config = RingKernelConfig(name, grid_size=blocks, block_size=block_size)
        await runtime.launch(name, sums, config=config, executor="cuda", isolation=isolation)
        await runtime.activate(name)
        answer = await runtime.send_and_receive(name, Amount(value=1000), timeout=60)
        assert answer.value == 1_000_000 * threads * blocks + 499_500
        await runtime.terminate(name, timeout=30)


async def targets(runtime):
    """A handler that sends to a kernel beside it on the device, of another handler, and to one in
    Python."""

    async def audit(ctx):
        total = 0
        while True:
            total += (await ctx.receive()).value
            await ctx.send(Amount(value=total))

    await runtime.launch("audit", audit)
    await runtime.activate("audit")
    await runtime.launch("half", handler(), executor="cuda")
    await runtime.activate("half")
    share = cuda_handler(
        "share",
        SHARE,
        input_type=Amount,
        output_type=Amount,
        targets={"half": Amount, "audit": Amount},
    )
    await runtime.launch("share", share, executor="cuda")
    await runtime.activate("share")
    for turn in range(1, 51):
        answer = await runtime.send_and_receive("share", Amount(value=10), timeout=60)
        assert answer.value == 5
        assert (await runtime.receive("half", timeout=60)).value == 5 * turn
        assert (await runtime.receive("audit", timeout=60)).value == 10 * turn
    # A target that there is not fails the kernel.
    lost = {"none": Amount, "no": Amount}
    nowhere = cuda_handler("share", SHARE, input_type=Amount, targets=lost)
    await runtime.launch("nowhere", nowhere, executor="cuda")
    await runtime.activate("nowhere")
    await runtime.send("nowhere", Amount(value=1))
    with pytest.raises(PyDotComputeError, match="no ring kernel named 'none'"):
        await runtime.receive("nowhere", timeout=60)
    wide = cuda_handler("share", SHARE, input_type=Amount, targets={"half": Account})
    with pytest.raises(InvalidConfigurationError, match="sends 'Account' to 'half'"):
        await runtime.launch("wide", wide, executor="cuda")


async def main():
    async with RingKernelRuntime() as runtime:
        kernel = await runtime.launch("a", handler(), executor="cuda", state={"balance": 100})
        assert kernel.read_state().balance == 100
        await runtime.activate("a")
        answer = await runtime.send_and_receive("a", Amount(value=5), timeout=60)
        assert answer.value == 105
        batch = np.zeros(300, record_dtype(Amount))
        batch["value"] = 1
        answers = await runtime.send_and_receive("a", batch, timeout=60)
        assert answers["value"][-1] == 405, answers
        for _ in range(10):
            await runtime.send("a", Amount(value=1))
        values = [(await runtime.receive("a", timeout=60)).value for _ in range(10)]
        assert values == list(range(406, 416)), values
        assert kernel.read_state(timeout=60).balance == 415

        # Another kernel of the same code, with a state of its own; connected.
        await runtime.launch("b", handler(), executor="cuda", restart="on_fault")
        await runtime.activate("b")
        runtime.connect("a", "b")
        answer = await runtime.send_and_receive("a", Amount(value=1), timeout=60)
        assert answer.value == 416
        # What is sent to the first comes out of the second, in order: one by one on the device, and
        # arrays, which go by the host.
        a, b, ones = 416, 416, np.zeros(7, record_dtype(Amount))
        ones["value"] = 1
        for turn in range(60):
            await runtime.send("a", ones if turn % 10 == 9 else Amount(value=1))
        for turn in range(60):
            received = await runtime.receive("b", timeout=60)
            got = received["value"].tolist() if turn % 10 == 9 else [received.value]
            for value in got:
                a += 1
                b += a
                assert value == b, (turn, value, b)
        assert kernel.read_state(timeout=60).balance == a
        runtime.disconnect("a")
        with pytest.raises(PyDotComputeError, match="overdrawn"):
            await runtime.send_and_receive("b", Amount(value=-1), timeout=60)
        # Its state anew.
        answer = await runtime.send_and_receive("b", Amount(value=2), timeout=60)
        assert answer.value == 2
        await runtime.terminate("a", timeout=30, drain=True)
        await targets(runtime)
        await scopes(runtime)
        wrong = handler(SOURCE.replace("->value", "->oops"))
        with pytest.raises(KernelCompilationError, match=r"deposit\.cu:6.*oops"):
            await runtime.launch("c", wrong, executor="cuda")
    await isolated()
    print("all of it")


def children():
    """The processes that this one has started and that live."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = stat.read_text().rsplit(")", 1)[1].split()[:2]
        except OSError:
            continue  # It is gone.
        if int(parent) == os.getpid() and state != "Z":
            found.add(int(stat.parent.name))
    return found


async def isolated():
    """A context in a process of its own: SIGKILL is a fault, and a restart starts another one."""
    before = children()
    async with RingKernelRuntime() as runtime:
        kernel = await runtime.launch(
            "d", handler(), executor="cuda", isolation="process", restart="on_fault"
        )
        await runtime.activate("d")
        (child,) = children() - before
        answer = await runtime.send_and_receive("d", Amount(value=5), timeout=60)
        assert answer.value == 5
        assert kernel.read_state(timeout=60).balance == 5
        os.kill(child, signal.SIGKILL)
        # What was on the device then may be told of it; what comes after it finds another process,
        # and the state anew.
        for _ in range(1000):
            try:
                answer = await runtime.send_and_receive("d", Amount(value=1), timeout=60)
            except PyDotComputeError as error:
                if "killed by signal 9" not in str(error):
                    raise
            else:
                if answer.value == 1:
                    break
        assert kernel.read_state(timeout=60).balance == 1
        assert child not in children()
        with pytest.raises(InvalidConfigurationError, match="is for executor='cuda'"):
            await runtime.launch("e", handler(), isolation="process")


asyncio.run(main())
