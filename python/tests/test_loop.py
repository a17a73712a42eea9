"""The event loop helpers, by the contract."""

import asyncio
import platform
import sys

from pydotcompute.ring_kernels import _loop


def test_info_outside_of_a_loop():
    info = _loop.get_loop_info()
    assert list(info) == [
        "loop_class",
        "uvloop_available",
        "uvloop_installed",
        "eager_tasks_available",
        "eager_tasks_installed",
        "platform",
        "python_version",
    ]
    assert info["loop_class"] == "no_running_loop"
    assert info["python_version"] == platform.python_version()
    assert info["platform"] == sys.platform
    assert _loop.install_eager_task_factory() is False


async def test_info_inside_of_a_loop():
    assert _loop.get_loop_info()["loop_class"] == type(asyncio.get_running_loop()).__name__
    eager = sys.version_info >= (3, 12)
    assert _loop.optimize_current_loop() == {"eager_tasks": eager}
    assert _loop.is_eager_tasks_installed() is eager


def test_a_new_loop_is_not_the_current_one():
    loop = _loop.create_optimized_loop()
    try:
        assert loop.run_until_complete(asyncio.sleep(0, 7)) == 7
    finally:
        loop.close()


def test_installing_twice_is_installing_once():
    assert _loop.install_uvloop() is _loop.install_uvloop() is _loop.is_uvloop_installed()
