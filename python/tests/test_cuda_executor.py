"""Kernels with executor="cuda": what is said where there is no GPU, and all of it on stand-ins for
NVIDIA's libraries, which show nothing of a GPU."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pydotcompute import RingKernelRuntime, _optional, message
from pydotcompute.exceptions import BackendNotAvailableError, InvalidConfigurationError
from pydotcompute.handlers import cuda_handler, record

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / "crates" / "dotcompute-cuda" / "tests" / "twin"
PROGRAM = Path(__file__).parent / "standin" / "kernels.py"


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
deposit(const amount *message, amount *account, amount *reply, rk_ctx *) {
    account->value += message->value;
    reply->value = account->value;
    return DC_HANDLER_REPLY;
}
"""

deposit = cuda_handler("deposit", SOURCE, input_type=Amount, output_type=Amount, state=Account)

needs_none = pytest.mark.skipif(bool(_optional.cuda()), reason="there is a GPU")


@needs_none
async def test_without_a_gpu_a_launch_says_what_is_missing_and_falls_back_on_nothing():
    async with RingKernelRuntime() as runtime:
        with pytest.raises(BackendNotAvailableError, match=r"CUDA.*not available.*driver"):
            await runtime.launch("account", deposit, executor="cuda")
        # The name is free again.
        with pytest.raises(BackendNotAvailableError):
            await runtime.launch("account", deposit, executor="cuda")


async def test_code_for_a_gpu_runs_nowhere_else():
    async with RingKernelRuntime() as runtime:
        with pytest.raises(InvalidConfigurationError, match="runs on a GPU: executor='cuda'"):
            await runtime.launch("account", deposit)

        async def actor(ctx):
            await ctx.receive()

        with pytest.raises(InvalidConfigurationError, match="compiled handlers"):
            await runtime.launch("actor", actor, executor="cuda")


def test_what_is_no_function_of_c_is_refused():
    with pytest.raises(InvalidConfigurationError, match="name of a function of C"):
        cuda_handler("a b", SOURCE, input_type=Amount)


@pytest.mark.skipif(
    sys.platform != "linux"
    or shutil.which(os.environ.get("CXX", "c++")) is None
    or not SOURCES.is_dir(),
    reason="the stand-in is built from the repository, on Linux, with a C++ compiler",
)
def test_a_kernel_on_the_stand_in_has_its_whole_life(tmp_path):
    names = ["libcuda.so.1", "libnvrtc.so.13", "libnvJitLink.so.13"]
    command = [os.environ.get("CXX", "c++"), "-std=c++20", "-O1", "-fPIC", "-shared", "-pthread"]
    command += ["-fno-strict-aliasing", "-w", "-I"]
    command += [str(ROOT / "crates" / "dotcompute-abi" / "generated")]
    command += [str(SOURCES / "driver.cpp"), str(SOURCES / "toolkit.cpp")]
    command += ["-o", str(tmp_path / names[0])]
    built = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert built.returncode == 0, built.stderr
    for name in names[1:]:
        shutil.copy(tmp_path / names[0], tmp_path / name)
    done = subprocess.run(
        [sys.executable, str(PROGRAM)],
        env={
            **os.environ,
            "LD_LIBRARY_PATH": str(tmp_path),
            "DOTCOMPUTE_CUDA_LIBRARIES": str(tmp_path),
            "DOTCOMPUTE_CACHE": str(tmp_path / "cache"),
        },
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.strip() == "all of it"
