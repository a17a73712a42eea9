"""The promises of section C, threads and the native tier, that no other file shows.

C1 to C14 are shown in test_threaded_kernel.py. C4 (tier 3 is said to cross processes) and C5 (ring
kernels are said to be persistent on a GPU) are claims of a README; here the documentation does not
make them, which is all that can be shown of it.
"""

import inspect

import pytest

from pydotcompute.ring_kernels import (
    CythonRingKernel,
    RingKernel,
    ThreadedRingKernel,
    cython_kernel,
)
from pydotcompute.ring_kernels.lifecycle import RingKernelConfig


def test_c4_nothing_says_that_a_kernel_crosses_processes():
    for documented in (cython_kernel, CythonRingKernel, ThreadedRingKernel):
        text = (inspect.getdoc(documented) or "").lower()
        assert text
        assert "ipc" not in text
        assert "process" not in text.replace("processes messages", "")


def test_c5_the_launch_shape_is_said_to_have_no_effect_on_an_actor():
    text = inspect.getdoc(RingKernelConfig)
    assert "without effect on an actor" in text.replace("\n", " ")
    assert "persistent" not in (inspect.getdoc(RingKernel) or "").lower()


def test_c5_a_queue_cannot_be_taken_to_another_process():
    import pickle

    from pydotcompute.ring_kernels import FastMessageQueue, SPSCQueue, SyncQueue

    for queue in (FastMessageQueue(4), SPSCQueue(4), SyncQueue(4)):
        with pytest.raises(TypeError):
            pickle.dumps(queue)
