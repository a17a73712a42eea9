"""Telemetry and the monitor, by the contract."""

from pydotcompute.ring_kernels.telemetry import (
    GPUInfo,
    GPUMonitor,
    RingKernelTelemetry,
    TelemetryCollector,
)


def test_telemetry_counts_and_reports():
    telemetry = RingKernelTelemetry("k")
    assert (telemetry.avg_latency_ns, telemetry.throughput) == (0.0, 0.0)
    for latency_ns in (2_000_000, 4_000_000):
        telemetry.record_message(latency_ns)
    telemetry.record_drop()
    telemetry.record_error("x")
    telemetry.uptime_seconds = 4.0
    assert telemetry.avg_latency_ms == 3.0
    assert (telemetry.min_latency_ns, telemetry.max_latency_ns) == (2_000_000, 4_000_000)
    assert telemetry.throughput == 0.5
    values = telemetry.to_dict()
    assert list(values) == [
        "kernel_id",
        "messages_processed",
        "messages_dropped",
        "queue_depth",
        "avg_latency_ms",
        "max_latency_ns",
        "min_latency_ns",
        "throughput",
        "error_count",
        "last_error",
        "uptime_seconds",
    ]
    assert (values["messages_dropped"], values["error_count"], values["last_error"]) == (1, 1, "x")
    telemetry.reset()
    assert telemetry == RingKernelTelemetry("k")


def test_the_monitor_without_a_gpu():
    monitor = GPUMonitor()
    assert isinstance(monitor._nvml_available, bool)
    assert monitor.device_count == monitor._device_count == len(monitor.get_all_gpu_info())
    info = monitor.get_gpu_info(99)
    assert (info.index, info.name, info.memory_utilization) == (99, "N/A", 0.0)
    assert 0 <= monitor.get_utilization() <= 1
    assert set(monitor.get_memory_info()) == {"used", "free", "total"}
    assert repr(monitor).startswith("GPUMonitor(available=")
    monitor.shutdown()
    assert monitor._nvml_available is False


def test_gpu_info():
    info = GPUInfo(0, "G", "u", 100, 25, 75, 1, 2, 3, 4.0, 5.0)
    assert info.memory_utilization == 0.25


def test_the_collector():
    collector = TelemetryCollector()
    assert collector._kernel_telemetry == {}
    assert isinstance(collector._gpu_monitor, GPUMonitor)
    telemetry = collector.register_kernel("k")
    assert collector.register_kernel("k") is telemetry
    assert collector.get_kernel_telemetry("x") is None
    telemetry.record_message(5)
    known = collector.get_all_telemetry()
    assert known == {"k": telemetry}
    assert known is not collector._kernel_telemetry
    assert telemetry.uptime_seconds > 0
    summary = collector.get_summary()
    assert set(summary) == {
        "kernel_count",
        "total_messages_processed",
        "total_messages_dropped",
        "total_errors",
        "uptime_seconds",
        "gpu_utilization",
    }
    assert (summary["kernel_count"], summary["total_messages_processed"]) == (1, 1)
    collector.reset_all()
    assert telemetry.messages_processed == 0
    collector.unregister_kernel("k")
    collector.unregister_kernel("x")
    assert collector.get_all_telemetry() == {}
