"""The promise of section D, messages, that no other file shows.

D1 to D14 are shown in test_message.py, test_array_message.py and test_exceptions.py.
"""

from pydotcompute.ring_kernels.telemetry import RingKernelTelemetry


def test_d15_a_minimum_of_zero_is_a_minimum():
    telemetry = RingKernelTelemetry("k")
    telemetry.record_message(0)
    telemetry.record_message(100)
    assert telemetry.min_latency_ns == 0
    telemetry.reset()
    telemetry.record_message(100)
    telemetry.record_message(300)
    assert (telemetry.min_latency_ns, telemetry.max_latency_ns) == (100, 300)
