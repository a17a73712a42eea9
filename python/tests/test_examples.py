"""The examples run, each in a process of its own, and their own assertions hold."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parents[2] / "examples" / "python").glob("[0-9]*.py"))


def test_there_are_examples():
    assert len(EXAMPLES) >= 7


@pytest.mark.parametrize("without_uvloop", ["", "1"], ids=["uvloop", "asyncio"])
@pytest.mark.parametrize("script", EXAMPLES, ids=lambda script: script.stem)
def test_example(script, without_uvloop):
    done = subprocess.run(
        # Without numba a compiled handler says so, as it should, and goes on.
        [
            *(sys.executable, "-W", "error::RuntimeWarning"),
            *("-W", "ignore:ring kernel:RuntimeWarning", str(script)),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYDOTCOMPUTE_NO_UVLOOP": without_uvloop},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout
    assert "Traceback" not in done.stderr
