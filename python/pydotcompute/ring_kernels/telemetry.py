"""What kernels have done and how long it took.

The numbers of a runtime's kernels come from the core: counts are exact, latencies (from the
admission of a message until it was handled) are estimated from the first message and every 64th
that follows.
"""

from __future__ import annotations

import contextlib
import importlib
import time
from dataclasses import dataclass, field
from typing import Any


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
    """Reads NVIDIA's management library through pynvml, where that is installed.

    No method raises because there is no GPU: they return placeholders and zeros.
    """

    def __init__(self) -> None:
        self._nvml: Any = None
        self._nvml_available: bool = False
        self._device_count: int = 0
        try:
            pynvml = importlib.import_module("pynvml")
            pynvml.nvmlInit()
            self._nvml = pynvml
            self._nvml_available = True
            self._device_count = int(pynvml.nvmlDeviceGetCount())
        except Exception:
            # Not installed, no driver, no device: all the same to whoever asks.
            self._nvml_available = False

    @property
    def is_available(self) -> bool:
        """Whether there is a library to ask."""
        return self._nvml_available

    @property
    def device_count(self) -> int:
        """How many GPUs it knows."""
        return self._device_count

    def get_gpu_info(self, device_index: int = 0) -> GPUInfo:
        """What is known of one GPU; a placeholder named "N/A" if that is nothing."""
        placeholder = GPUInfo(device_index, "N/A", "N/A", 0, 0, 0, 0, 0, 0, 0.0, 0.0)
        if not self._nvml_available or not 0 <= device_index < self._device_count:
            return placeholder
        nvml = self._nvml

        def ask(function: str, *arguments: Any, default: Any = 0) -> Any:
            try:
                return getattr(nvml, function)(*arguments)
            except Exception:
                return default

        def text(value: Any) -> str:
            return value.decode() if isinstance(value, bytes) else str(value)

        handle = ask("nvmlDeviceGetHandleByIndex", device_index, default=None)
        if handle is None:
            return placeholder
        memory = ask("nvmlDeviceGetMemoryInfo", handle, default=None)
        rates = ask("nvmlDeviceGetUtilizationRates", handle, default=None)
        return GPUInfo(
            index=device_index,
            name=text(ask("nvmlDeviceGetName", handle, default="N/A")),
            uuid=text(ask("nvmlDeviceGetUUID", handle, default="N/A")),
            memory_total=int(getattr(memory, "total", 0)),
            memory_used=int(getattr(memory, "used", 0)),
            memory_free=int(getattr(memory, "free", 0)),
            utilization_gpu=int(getattr(rates, "gpu", 0)),
            utilization_memory=int(getattr(rates, "memory", 0)),
            temperature=int(ask("nvmlDeviceGetTemperature", handle, 0)),
            power_usage=ask("nvmlDeviceGetPowerUsage", handle) / 1000,
            power_limit=ask("nvmlDeviceGetEnforcedPowerLimit", handle) / 1000,
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
        if self._nvml_available:
            self._nvml_available = False
            with contextlib.suppress(Exception):
                self._nvml.nvmlShutdown()

    def __del__(self) -> None:
        if getattr(self, "_nvml_available", False):
            self.shutdown()

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
