"""CUDA on a driver that stands in for NVIDIA's: see standin/cases.py."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pydotcompute import _optional

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / "crates" / "dotcompute-cuda" / "tests" / "twin"
CASES = Path(__file__).parent / "standin" / "cases.py"

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="the stand-in is for Linux"),
    pytest.mark.skipif(
        shutil.which(os.environ.get("CXX", "c++")) is None or not SOURCES.is_dir(),
        reason="the stand-in is built from the repository, with a C++ compiler",
    ),
]


@pytest.fixture(scope="session")
def driver(tmp_path_factory):
    """A folder with the stand-in under the driver's name."""
    folder = tmp_path_factory.mktemp("driver")
    command = [os.environ.get("CXX", "c++"), "-std=c++20", "-O1", "-g", "-fPIC", "-shared"]
    command += ["-fno-strict-aliasing", "-pthread", "-Wl,-soname,libcuda.so.1"]
    command += ["-I", str(ROOT / "crates" / "dotcompute-abi" / "generated")]
    command += [str(SOURCES / "driver.cpp"), "-o", str(folder / "libcuda.so.1")]
    built = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert built.returncode == 0, built.stderr
    return folder


def run(driver, *command):
    return subprocess.run(
        [sys.executable, *command],
        env={**os.environ, "LD_LIBRARY_PATH": str(driver)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_cuda_by_the_package_as_it_ships(driver):
    done = run(driver, "-m", "pytest", "-p", "no:cacheprovider", str(CASES))
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert int(re.search(r"(\d+) passed", done.stdout).group(1)) > 50


def test_a_process_ends_with_arrays_streams_and_modules_alive(driver):
    program = """
import numpy as np
from pydotcompute import UnifiedBuffer, _optional
from pydotcompute.core import device_array

buffer = UnifiedBuffer(1000, pinned=True).fill(1)
array = buffer.device
device = _optional.cuda().module.device()
stream = device.new_stream()
module = device.load(b"\\x7fELF\\x02" + bytes(123))
capsule = device_array.zeros(device, 5).__dlpack__()
print("done")
"""
    done = run(driver, "-c", program)
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


def test_the_stage_of_gpu_check_is_rehearsed(driver):
    done = run(driver, "-m", "pydotcompute._gpu_check")
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert [one for one in told if one["result"] == "failed"] == [], done.stderr
    assert done.returncode == 0, done.stderr
    assert sum(one["result"] == "passed" for one in told) >= 9
    assert all(one["stand_in"] for one in told)


def test_the_stage_of_gpu_check_fails_without_a_gpu(tmp_path):
    if _optional.cuda():
        pytest.skip("this machine has a GPU")
    done = run(tmp_path, "-m", "pydotcompute._gpu_check", "states")
    told = json.loads(done.stdout)
    assert (done.returncode, told["result"]) == (1, "failed")
    assert "the NVIDIA driver was not found" in told["why"]
