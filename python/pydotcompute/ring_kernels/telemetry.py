"""What kernels have done and how long it took.

The numbers of a runtime's kernels come from the core: counts are exact, latencies (from the
admission of a message until it was handled) are estimated from the first message and every 64th
that follows.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from pydotcompute._native import CudaMonitor
from pydotcompute.exceptions import CUDAError


@dataclass
class RingKernelTelemetry:
    """What one kernel has done; latencies in nanoseconds."""

    kernel_id: str = ""
    messages_processed: int = 0
    messages_dropped: int = 0
    queue_depth: int = 0
    total_latency_ns: int = 0
    max_latency_ns: int = 0
    min_latency_ns: int = 0
    error_count: int = 0
    last_error: str | None = None
    uptime_seconds: float = 0.0

    @property
    def avg_latency_ns(self) -> float:
        """The mean latency in nanoseconds; 0.0 without messages."""
        if self.messages_processed == 0:
            return 0.0
        return self.total_latency_ns / self.messages_processed

    @property
    def avg_latency_ms(self) -> float:
        """The mean latency in milliseconds; 0.0 without messages."""
        return self.avg_latency_ns / 1_000_000

    @property
    def throughput(self) -> float:
        """Messages per second of uptime; 0.0 at uptime 0."""
        if self.uptime_seconds == 0:
            return 0.0
        return self.messages_processed / self.uptime_seconds

    def record_message(self, latency_ns: int) -> None:
        """Count one message that took `latency_ns` nanoseconds."""
        first = self.messages_processed == 0
        self.messages_processed += 1
        self.total_latency_ns += latency_ns
        self.max_latency_ns = max(self.max_latency_ns, latency_ns)
        self.min_latency_ns = latency_ns if first else min(self.min_latency_ns, latency_ns)

    def record_drop(self) -> None:
        """Count one message that was dropped."""
        self.messages_dropped += 1

    def record_error(self, error: str) -> None:
        """Count one error, and keep its text."""
        self.error_count += 1
        self.last_error = error

    def reset(self) -> None:
        """Set everything but the kernel's id to its default."""
        self.__dict__.update(RingKernelTelemetry(self.kernel_id).__dict__)

    def to_dict(self) -> dict[str, Any]:
        """Everything by name, with the mean latency and the throughput."""
        return {
            "kernel_id": self.kernel_id,
            "messages_processed": self.messages_processed,
            "messages_dropped": self.messages_dropped,
            "queue_depth": self.queue_depth,
            "avg_latency_ms": self.avg_latency_ms,
            "max_latency_ns": self.max_latency_ns,
            "min_latency_ns": self.min_latency_ns,
            "throughput": self.throughput,
            "error_count": self.error_count,
            "last_error": self.last_error,
            "uptime_seconds": self.uptime_seconds,
        }


@dataclass
class GPUInfo:
    """One GPU: memory in bytes, utilisation in percent, temperature in degrees Celsius, power in
    watts."""

    index: int
    name: str
    uuid: str
    memory_total: int
    memory_used: int
    memory_free: int
    utilization_gpu: int
    utilization_memory: int
    temperature: int
    power_usage: float
    power_limit: float

    @property
    def memory_utilization(self) -> float:
        """The share of the memory that is used, 0 to 1."""
        if self.memory_total == 0:
            return 0.0
        return self.memory_used / self.memory_total


class GPUMonitor:
    """Reads NVML, NVIDIA's management library, which comes with the driver.

    No method raises because there is no GPU: they return placeholders and zeros. Devices are those
    of the machine, also those that this process may not use. Thread-safe.
    """

    def __init__(self) -> None:
        self._nvml: CudaMonitor | None = None
        self._nvml_available: bool = False
        self._device_count: int = 0
        try:
            self._nvml = CudaMonitor()
            self._device_count = self._nvml.device_count()
            self._nvml_available = True
        except CUDAError as error:
            self._reason = str(error)
        else:
            self._reason = ""

    @property
    def is_available(self) -> bool:
        """Whether there is a library to ask."""
        return self._nvml_available

    @property
    def unavailable_reason(self) -> str:
        """Why there is none, and what to do; empty when there is one."""
        return self._reason

    @property
    def device_count(self) -> int:
        """How many GPUs it knows."""
        return self._device_count

    def get_gpu_info(self, device_index: int = 0) -> GPUInfo:
        """What is known of one GPU; a placeholder named "N/A" if that is nothing. What the GPU does
        not tell reads 0."""
        placeholder = GPUInfo(device_index, "N/A", "N/A", 0, 0, 0, 0, 0, 0, 0.0, 0.0)
        nvml = self._nvml
        if nvml is None or not self._nvml_available:
            return placeholder
        if not 0 <= device_index < self._device_count:
            return placeholder
        try:
            told = nvml.reading(device_index)
        except CUDAError:
            return placeholder
        return GPUInfo(
            index=device_index,
            name=told["name"],
            uuid=told["uuid"],
            memory_total=told["memory_total_bytes"],
            memory_used=told["memory_used_bytes"],
            memory_free=told["memory_free_bytes"],
            utilization_gpu=told["busy_percent"] or 0,
            utilization_memory=told["memory_busy_percent"] or 0,
            temperature=told["temperature_celsius"] or 0,
            power_usage=(told["power_milliwatts"] or 0) / 1000,
            power_limit=(told["power_limit_milliwatts"] or 0) / 1000,
        )

    def get_all_gpu_info(self) -> list[GPUInfo]:
        """What is known of each GPU."""
        return [self.get_gpu_info(index) for index in range(self._device_count)]

    def get_utilization(self, device_index: int = 0) -> float:
        """How busy a GPU is, 0 to 1."""
        return self.get_gpu_info(device_index).utilization_gpu / 100

    def get_memory_info(self, device_index: int = 0) -> dict[str, int]:
        """``used``, ``free`` and ``total`` bytes of a GPU."""
        info = self.get_gpu_info(device_index)
        return {"used": info.memory_used, "free": info.memory_free, "total": info.memory_total}

    def shutdown(self) -> None:
        """Let go of the library."""
        self._nvml_available = False
        self._nvml = None

    def __repr__(self) -> str:
        return f"GPUMonitor(available={self._nvml_available}, devices={self._device_count})"


@dataclass
class TelemetryCollector:
    """The telemetry of several kernels, by their ids."""

    _kernel_telemetry: dict[str, RingKernelTelemetry] = field(default_factory=dict)
    _gpu_monitor: GPUMonitor = field(default_factory=GPUMonitor)
    _start_time: float = field(default_factory=time.monotonic)

    def register_kernel(self, kernel_id: str) -> RingKernelTelemetry:
        """The telemetry of a kernel, made if there is none yet."""
        return self._kernel_telemetry.setdefault(kernel_id, RingKernelTelemetry(kernel_id))

    def unregister_kernel(self, kernel_id: str) -> None:
        """Forget a kernel, if it is known."""
        self._kernel_telemetry.pop(kernel_id, None)

    def get_kernel_telemetry(self, kernel_id: str) -> RingKernelTelemetry | None:
        """The telemetry of a kernel; None if it is not known."""
        return self._kernel_telemetry.get(kernel_id)

    def get_all_telemetry(self) -> dict[str, RingKernelTelemetry]:
        """The telemetry of all kernels, their uptimes brought up to date."""
        uptime = time.monotonic() - self._start_time
        for telemetry in self._kernel_telemetry.values():
            telemetry.uptime_seconds = uptime
        return dict(self._kernel_telemetry)

    def get_summary(self) -> dict[str, Any]:
        """All kernels together.

        Returns
        -------
        dict
            ``kernel_count``, ``total_messages_processed``, ``total_messages_dropped``,
            ``total_errors``, ``uptime_seconds`` and ``gpu_utilization`` (0 to 1, or None where
            nothing is known of a GPU).
        """
        known = list(self._kernel_telemetry.values())
        monitor = self._gpu_monitor
        return {
            "kernel_count": len(known),
            "total_messages_processed": sum(one.messages_processed for one in known),
            "total_messages_dropped": sum(one.messages_dropped for one in known),
            "total_errors": sum(one.error_count for one in known),
            "uptime_seconds": time.monotonic() - self._start_time,
            "gpu_utilization": monitor.get_utilization() if monitor.is_available else None,
        }

    def reset_all(self) -> None:
        """Reset the telemetry of all kernels, and the uptime."""
        for telemetry in self._kernel_telemetry.values():
            telemetry.reset()
        self._start_time = time.monotonic()
