"""What a program does not use is not imported, and there when it is asked for."""

import subprocess
import sys

import pytest

import pydotcompute
from pydotcompute import ring_kernels


def in_a_new_process(code):
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr


def test_what_is_not_used_is_not_imported():
    in_a_new_process(
        "import sys, pydotcompute\n"
        "for name in ('core', 'backends', 'handlers', 'ring_kernels.threaded_kernel', \n"
        "             'ring_kernels.queue'):\n"
        "    assert f'pydotcompute.{name}' not in sys.modules, name\n"
    )


def test_names_and_submodules_are_there_without_an_import_of_their_own():
    in_a_new_process(
        "import pydotcompute\n"
        "assert pydotcompute.core.memory_pool.MemoryPool is pydotcompute.MemoryPool\n"
        "rings = pydotcompute.ring_kernels\n"
        "assert rings.queue.MessageQueue is rings.MessageQueue\n"
        "assert pydotcompute.handlers.record is not None\n"
        "from pydotcompute import *\n"
        "assert UnifiedBuffer is pydotcompute.core.UnifiedBuffer\n"
    )


@pytest.mark.parametrize("package", [pydotcompute, ring_kernels])
def test_dir_shows_all_names_and_an_unknown_one_is_an_attribute_error(package):
    assert set(package.__all__) <= set(dir(package))
    with pytest.raises(AttributeError, match=f"'{package.__name__}' has no attribute 'nothing'"):
        _ = package.nothing
