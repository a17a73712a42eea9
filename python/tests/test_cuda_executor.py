"""Kernels with executor="cuda": what is said where there is no GPU, and all of it on stand-ins for
NVIDIA's libraries, which show nothing of a GPU."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pydotcompute import RingKernelRuntime, UnifiedBuffer, _optional, message
from pydotcompute.exceptions import BackendNotAvailableError, InvalidConfigurationError
from pydotcompute.handlers import cuda_handler, record, ring_free_sms, ring_placements
from pydotcompute.ring_kernels.lifecycle import RingKernelConfig

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / "crates" / "dotcompute-cuda" / "tests" / "twin"
PROGRAM = Path(__file__).parent / "standin" / "kernels.py"
LENDING = Path(__file__).parent / "standin" / "lending.py"
APART = Path(__file__).parent / "standin" / "apart.py"
EXAMPLE = ROOT / "examples" / "python" / "13_device_memory.py"
ERRORS = Path(__file__).parent / "standin" / "errors.py"


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


@pytest.mark.parametrize(
    ("scope", "sizes", "error"),
    [
        ("lane", {"grid_size": 4}, r"grid_size.*one block at most: leave it out.*scope 'team'"),
        ("block", {"grid_size": 2}, r"grid_size.*one block at most: leave it out.*scope 'team'"),
        ("team", {"grid_size": 2, "block_size": 48}, r"block_size.*scope 'team' a multiple of 32"),
        ("lane", {"block_size": 128}, r"block_size.*has one thread: leave it out.*scope 'block'"),
        ("warp", {"block_size": 64}, r"block_size.*has 32 threads: leave it out"),
        ("block", {"block_size": 48}, r"block_size.*a multiple of 32 threads, 1024 at most"),
        ("block", {"block_size": 1056}, r"block_size.*a multiple of 32 threads, 1024 at most"),
    ],
)
async def test_sizes_that_make_no_sense_for_a_handler_say_what_does(scope, sizes, error):
    handler = cuda_handler("deposit", SOURCE, input_type=Amount, output_type=Amount, scope=scope)
    async with RingKernelRuntime() as runtime:
        config = RingKernelConfig("account", **sizes)
        with pytest.raises(InvalidConfigurationError, match=error):
            await runtime.launch("account", handler, config=config, executor="cuda")


def test_a_scope_that_there_is_not_and_shared_memory_of_one_lane_are_refused():
    with pytest.raises(InvalidConfigurationError, match="'lane', 'warp', 'block' or 'team'"):
        cuda_handler("deposit", SOURCE, input_type=Amount, scope="grid")
    with pytest.raises(InvalidConfigurationError, match="scope 'warp', 'block' or 'team'"):
        cuda_handler("deposit", SOURCE, input_type=Amount, shared_bytes=8)
    with pytest.raises(InvalidConfigurationError, match="a number of bytes"):
        cuda_handler("deposit", SOURCE, input_type=Amount, scope="warp", shared_bytes=-1)


@pytest.fixture(scope="session")
def stand_in(tmp_path_factory):
    """The environment in which programs find the stand-ins."""
    compiler = os.environ.get("CXX", "c++")
    if sys.platform != "linux" or shutil.which(compiler) is None or not SOURCES.is_dir():
        pytest.skip("the stand-in is built from the repository, on Linux, with a C++ compiler")
    folder = tmp_path_factory.mktemp("stand-in")
    names = ["libcuda.so.1", "libnvrtc.so.13", "libnvJitLink.so.13"]
    command = [compiler, "-std=c++20", "-O1", "-fPIC", "-shared", "-pthread"]
    command += ["-fno-strict-aliasing", "-w", "-I"]
    command += [str(ROOT / "crates" / "dotcompute-abi" / "generated")]
    command += [str(SOURCES / "driver.cpp"), str(SOURCES / "toolkit.cpp")]
    command += ["-o", str(folder / names[0])]
    built = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert built.returncode == 0, built.stderr
    for name in names[1:]:
        shutil.copy(folder / names[0], folder / name)
    return {
        **os.environ,
        "LD_LIBRARY_PATH": str(folder),
        "DOTCOMPUTE_CUDA_LIBRARIES": str(folder),
        "DOTCOMPUTE_CACHE": str(folder / "cache"),
    }


def run(environment, *command):
    return subprocess.run(
        [sys.executable, *map(str, command)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_a_kernel_on_the_stand_in_has_its_whole_life(stand_in):
    done = run(stand_in, PROGRAM)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.strip() == "all of it"


NOWHERE = "a folder with nothing that can be loaded"


@pytest.mark.parametrize(
    ("what", "change", "error"),
    [
        ("no driver", {"LD_LIBRARY_PATH": NOWHERE}, r"BackendNotAvailableError.*NVIDIA driver"),
        (
            "driver too old",
            {"STANDIN_VERSION": "11040"},
            r"BackendNotAvailableError.*11\.4, older than 12\.0",
        ),
        (
            "no device",
            {"STANDIN_FAIL": "cuInit=100"},
            "BackendNotAvailableError.*CUDA_ERROR_NO_DEVICE",
        ),
        (
            "NVRTC missing",
            {"DOTCOMPUTE_CUDA_LIBRARIES": NOWHERE},
            "BackendNotAvailableError.*NVRTC was not found",
        ),
        (
            "out of memory",
            {"STANDIN_FAIL": "cuMemAlloc_v2=2"},
            "CUDAError.*CUDA_ERROR_OUT_OF_MEMORY",
        ),
        ("bad source", {}, r"KernelCompilationError(.|\n)*work\.cu:\d+(.|\n)*oops"),
        ("loop", {}, "^terminated in time$"),
        ("device lost", {}, r"719: CUDA_ERROR_LAUNCH_FAILED"),
        ("stream lost", {}, r"CUDAError.*700: CUDA_ERROR_ILLEGAL_ADDRESS"),
    ],
)
def test_what_goes_wrong_is_an_error_that_says_what(stand_in, tmp_path, what, change, error):
    (tmp_path / "libcuda.so.1").write_text("no library")
    change = {name: value.replace(NOWHERE, str(tmp_path)) for name, value in change.items()}
    done = run({**stand_in, **change}, ERRORS, what)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(error, done.stdout), done.stdout + done.stderr


def test_messages_name_device_memory_on_the_stand_in(stand_in):
    done = run(stand_in, "-m", "pytest", "-p", "no:cacheprovider", LENDING)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert int(re.search(r"(\d+) passed", done.stdout).group(1)) > 10


@pytest.mark.parametrize(
    ("what", "change", "told"),
    [
        ("in time", {}, r"on [01], that is on 2 multiprocessors that are set aside; 2 are left\n"),
        ("late", {}, r"on [0-3], that is on any multiprocessor: the options ask for none.*\n"),
        (
            "refused",
            {"STANDIN_FAIL": "cuGreenCtxCreate=801"},
            r"on [0-3], that is on any multiprocessor: the driver refuses.*cuGreenCtxCreate.*\n",
        ),
    ],
)
def test_kernels_have_multiprocessors_of_their_own_where_that_is_asked_for(
    stand_in, what, change, told
):
    done = run({**stand_in, **change}, APART, what)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.fullmatch(told, done.stdout), done.stdout


@needs_none
def test_without_a_gpu_no_multiprocessors_are_set_aside_and_the_error_says_what_is_missing():
    with pytest.raises(BackendNotAvailableError, match=r"CUDA.*not available.*driver"):
        ring_free_sms()
    assert ring_placements() == []


@pytest.mark.parametrize("aside", [-1, True, 1.5, None, 1 << 31])
def test_what_is_no_number_of_multiprocessors_is_refused(aside):
    with pytest.raises(InvalidConfigurationError, match="a number of multiprocessors"):
        ring_free_sms(aside)


def test_the_example_of_device_memory_runs_on_the_stand_in(stand_in):
    done = run(stand_in, EXAMPLE)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout == "all of it: 500.0\nthe last hundred: 50.0\n"


@needs_none
async def test_without_a_gpu_nothing_can_be_lent_and_the_error_says_what_is_missing():
    async with RingKernelRuntime() as runtime:
        with pytest.raises(BackendNotAvailableError, match=r"CUDA.*not available.*driver"):
            await runtime.lend(UnifiedBuffer(3).fill(1))

        async def actor(ctx):
            await ctx.receive()

        await runtime.launch("actor", actor)
        with pytest.raises(BackendNotAvailableError, match=r"CUDA.*not available.*driver"):
            await runtime.send_on_stream("actor", 1, None)


def test_the_round_trip_of_gpu_check_is_rehearsed(stand_in):
    done = run(stand_in, "-m", "pydotcompute._gpu_check", "--quick", "round_trip")
    told = json.loads(done.stdout)
    assert (told["result"], told["stand_in"]) == ("passed", True), done.stdout + done.stderr
    measured = told["measured"]["asyncio_p50_us"]
    assert measured["at_most"] == 8.0
    assert measured["value"] > 0
    assert measured["floor"]["value"] > 0
