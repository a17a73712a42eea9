"""Every promise of the core's conformance suite, on the executors that Python programs have.

On kernels that event loops run, twice: with all kernels on one loop, and with a loop, and so a
thread, for each of them. And on kernels in processes, which are interpreters: every promise that a
kernel in another process can keep.
"""

import asyncio
import contextlib
import sys
import threading

import pytest

from pydotcompute import _native

suite = getattr(_native, "_conformance", None)
if suite is None:
    pytest.skip("the extension was built without its tests: `make python`", allow_module_level=True)

ALL = suite.promises()
PROMISES = [(module, promise) for module, promise, _ in ALL]
IN_PROCESSES = [(module, promise) for module, promise, why_not in ALL if why_not is None]
#: A kernel that blocks its thread holds up all others of its loop: that is what a loop is.
NEEDS_THREADS = "a_shutdown_ends_all_kernels_within_one_deadline_also_stuck_ones"
#: More than any promise has kernels at a time.
MANY = 64


@contextlib.contextmanager
def running_loop():
    """An event loop that runs on a thread of its own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield loop
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(30)
        assert not thread.is_alive()
        loop.close()


@pytest.fixture(scope="module")
def one_loop():
    with running_loop() as loop:
        yield [loop]


@pytest.fixture(scope="module")
def many_loops():
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(running_loop()) for _ in range(MANY)]


@pytest.mark.parametrize(
    ("module", "promise"), [names for names in PROMISES if names[1] != NEEDS_THREADS]
)
def test_kernels_on_one_loop_keep_the_promise(module, promise, one_loop):
    suite.test(module, promise, one_loop)


@pytest.mark.parametrize(("module", "promise"), PROMISES)
def test_kernels_on_a_loop_each_keep_the_promise(module, promise, many_loops):
    suite.test(module, promise, many_loops)


@pytest.mark.parametrize("promise", suite.handler_promises())
def test_handlers_on_a_loop_keep_the_promise(promise, one_loop):
    suite.test_handler(promise, one_loop)


#: What a child of the tests runs: the suite's own kernels, by name. Of the package it needs the
#: extension alone, which is there in a tenth of the time; many promises start many children.
CHILD = [
    sys.executable,
    "-I",
    "-S",
    "-c",
    "import importlib.util as util\n"
    f"spec = util.spec_from_file_location('_native', {_native.__file__!r})\n"
    "native = util.module_from_spec(spec)\n"
    "spec.loader.exec_module(native)\n"
    "native._conformance.run_child()\n",
]


@pytest.mark.skipif(sys.platform != "linux", reason="processes need Linux")
@pytest.mark.parametrize(("module", "promise"), IN_PROCESSES)
def test_kernels_in_processes_keep_the_promise(module, promise):
    suite.test_in_processes(module, promise, CHILD)


def test_what_kernels_in_processes_cannot_keep_says_why():
    reasons = [why_not for _, _, why_not in ALL if why_not is not None]
    assert 0 < len(reasons) < len(ALL) / 10
    assert all("process" in reason for reason in reasons)


def test_all_promises_are_run():
    assert len(PROMISES) > 100
    assert NEEDS_THREADS in [promise for _, promise in PROMISES]
