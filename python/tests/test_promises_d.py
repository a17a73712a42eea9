"""The promise of section D, messages, that no other file shows.

D1 to D14 are shown in test_message.py, test_array_message.py and test_exceptions.py.
"""

import numpy as np
import pytest

from pydotcompute import message
from pydotcompute.exceptions import MessageDeserializationError
from pydotcompute.ring_kernels.telemetry import RingKernelTelemetry


@message
class Texts:
    texts: np.ndarray


def test_d15_a_minimum_of_zero_is_a_minimum():
    telemetry = RingKernelTelemetry("k")
    telemetry.record_message(0)
    telemetry.record_message(100)
    assert telemetry.min_latency_ns == 0
    telemetry.reset()
    telemetry.record_message(100)
    telemetry.record_message(300)
    assert (telemetry.min_latency_ns, telemetry.max_latency_ns) == (100, 300)


@pytest.mark.parametrize("order", ["<", ">"])
def test_d9_text_of_no_characters_is_an_error(order):
    good = Texts(np.array(["a", "é€😀"], dtype=f"{order}U3"))
    data = good.serialize()
    assert Texts.deserialize(data).texts.tolist() == ["a", "é€😀"]
    letter = b"a\0\0\0" if order == "<" else b"\0\0\0a"
    assert data.count(letter) == 1
    with pytest.raises(MessageDeserializationError):
        Texts.deserialize(data.replace(letter, b"a\xd9\xd9a"))
