"""Every promise of the core's conformance suite, on kernels that event loops run.

Twice: with all kernels on one loop, and with a loop, and so a thread, for each of them.
"""

import asyncio
import contextlib
import threading

import pytest

from pydotcompute import _native

suite = getattr(_native, "_conformance", None)
if suite is None:
    pytest.skip("the extension was built without its tests: `make python`", allow_module_level=True)

PROMISES = suite.promises()
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


def test_all_promises_are_run():
    assert len(PROMISES) > 100
    assert NEEDS_THREADS in [promise for _, promise in PROMISES]
