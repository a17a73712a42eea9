"""The devices of this machine: CUDA devices, one Metal device, or else the CPU."""

from __future__ import annotations

import operator
import os
import sys
import threading
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

from pydotcompute import _optional

__all__ = [
    "Accelerator",
    "DeviceProperties",
    "DeviceType",
    "cuda_available",
    "get_accelerator",
    "metal_available",
]


class DeviceType(Enum):
    """What kind of device it is."""

    CPU = auto()
    CUDA = auto()
    METAL = auto()


@dataclass(frozen=True)
class DeviceProperties:
    """What is known about a device.

    Attributes
    ----------
    device_id
        Its number among the devices of this process.
    device_type
        Its kind.
    name
        What its maker calls it.
    compute_capability
        Major and minor number of a CUDA device, else None.
    total_memory
        Its memory in bytes; 0 when unknown.
    multiprocessor_count
        Multiprocessors of a CUDA device, cores of a GPU of Apple, cores that this process may use
        of a CPU.
    max_threads_per_block, max_block_dims, max_grid_dims, warp_size
        The limits of a launch; all 1 for a CPU.
    is_available
        Whether it can be used.
    """

    device_id: int
    device_type: DeviceType
    name: str
    compute_capability: tuple[int, int] | None
    total_memory: int
    multiprocessor_count: int
    max_threads_per_block: int
    max_block_dims: tuple[int, int, int]
    max_grid_dims: tuple[int, int, int]
    warp_size: int
    is_available: bool

    @property
    def compute_capability_str(self) -> str:
        """The compute capability as "major.minor", or "N/A"."""
        if self.compute_capability is None:
            return "N/A"
        return f"{self.compute_capability[0]}.{self.compute_capability[1]}"

    @property
    def total_memory_gb(self) -> float:
        """The memory in GiB."""
        return self.total_memory / 2**30


# --- what the system knows of the CPU --------------------------------------------------------


def _sysctl(name: str) -> str:
    """Ask macOS for a value; empty when it cannot be had."""
    import subprocess

    try:
        command = ["/usr/sbin/sysctl", "-n", name]
        answer = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return answer.stdout.strip()


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def _cpu_name() -> str:
    """Name the CPU; "CPU" when nobody knows more."""
    if sys.platform == "darwin":
        return _sysctl("machdep.cpu.brand_string") or "CPU"
    for line in _read("/proc/cpuinfo").splitlines():
        key, _, value = line.partition(":")
        if key.strip().lower() in ("model name", "cpu model", "hardware") and value.strip():
            return value.strip()
    import platform

    return platform.processor() or platform.machine() or "CPU"


def _cpu_cores() -> int:
    """Count the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return max(1, len(os.sched_getaffinity(0)))
    return os.cpu_count() or 1


def _cgroup_bytes(name: str) -> int | None:
    """Read a number of the control group that a container gave this process."""
    text = _read(f"/sys/fs/cgroup/{name}").strip()
    return int(text) if text.isdigit() else None


def _cpu_memory() -> tuple[int, int]:
    """Total and free bytes of main memory, within a container's limit; 0 when unknown."""
    total = free = 0
    for line in _read("/proc/meminfo").splitlines():
        key, _, value = line.partition(":")
        if key == "MemTotal":
            total = int(value.split()[0]) * 1024
        elif key == "MemAvailable":
            free = int(value.split()[0]) * 1024
    if total == 0:
        try:
            page = os.sysconf("SC_PAGE_SIZE")
            total = page * os.sysconf("SC_PHYS_PAGES")
            free = page * os.sysconf("SC_AVPHYS_PAGES")
        except (AttributeError, OSError, ValueError):
            return max(total, 0), max(free, 0)
    limit = _cgroup_bytes("memory.max")
    if limit is not None and limit < total:
        total = limit
        free = min(free, max(0, limit - (_cgroup_bytes("memory.current") or 0)))
    return total, free


def _cpu_device() -> DeviceProperties:
    return DeviceProperties(
        device_id=0,
        device_type=DeviceType.CPU,
        name=_cpu_name(),
        compute_capability=None,
        total_memory=_cpu_memory()[0],
        multiprocessor_count=_cpu_cores(),
        max_threads_per_block=1,
        max_block_dims=(1, 1, 1),
        max_grid_dims=(1, 1, 1),
        warp_size=1,
        is_available=True,
    )


# --- GPUs ------------------------------------------------------------------------------------

# The most GPU cores that each chip of Apple comes with; the longest name that fits counts.
_APPLE_GPU_CORES = {
    "M1": 8,
    "M1 Pro": 16,
    "M1 Max": 32,
    "M1 Ultra": 64,
    "M2": 10,
    "M2 Pro": 19,
    "M2 Max": 38,
    "M2 Ultra": 76,
    "M3": 10,
    "M3 Pro": 18,
    "M3 Max": 40,
    "M3 Ultra": 80,
    "M4": 10,
    "M4 Pro": 20,
    "M4 Max": 40,
    "M5": 10,
}


def _apple_gpu_cores(brand: str) -> int:
    """Count the GPU cores of a chip by its name, "Apple M2 Pro"; 8 for an unknown one."""
    chip = brand.removeprefix("Apple ").strip()
    known = [name for name in _APPLE_GPU_CORES if chip == name or chip.startswith(name + " ")]
    return _APPLE_GPU_CORES[max(known, key=len)] if known else 8


def _metal_device() -> DeviceProperties:
    return DeviceProperties(
        device_id=0,
        device_type=DeviceType.METAL,
        name="Apple Silicon GPU",
        compute_capability=None,
        total_memory=0,
        multiprocessor_count=_apple_gpu_cores(_sysctl("machdep.cpu.brand_string")),
        max_threads_per_block=1024,
        max_block_dims=(1024, 1024, 64),
        max_grid_dims=(2**30, 2**16, 2**16),
        warp_size=32,
        is_available=True,
    )


def _native_device(device: Any) -> DeviceProperties:
    limits = device.limits()
    return DeviceProperties(
        device_id=device.ordinal,
        device_type=DeviceType.CUDA,
        name=device.name,
        compute_capability=device.compute_capability,
        total_memory=device.memory_bytes,
        multiprocessor_count=device.multiprocessors,
        max_threads_per_block=limits["block_threads"],
        max_block_dims=limits["block"],
        max_grid_dims=limits["grid"],
        warp_size=limits["warp_threads"],
        is_available=True,
    )


def _cupy_device(cupy: Any, device_id: int) -> DeviceProperties:
    found = cupy.cuda.runtime.getDeviceProperties(device_id)
    name = found["name"]
    block, grid = found["maxThreadsDim"], found["maxGridSize"]
    return DeviceProperties(
        device_id=device_id,
        device_type=DeviceType.CUDA,
        name=name.decode(errors="replace") if isinstance(name, bytes) else str(name),
        compute_capability=(int(found["major"]), int(found["minor"])),
        total_memory=int(found["totalGlobalMem"]),
        multiprocessor_count=int(found["multiProcessorCount"]),
        max_threads_per_block=int(found["maxThreadsPerBlock"]),
        max_block_dims=(int(block[0]), int(block[1]), int(block[2])),
        max_grid_dims=(int(grid[0]), int(grid[1]), int(grid[2])),
        warp_size=int(found["warpSize"]),
        is_available=True,
    )


def _cuda_devices() -> list[DeviceProperties]:
    runtime = _optional.cuda().module
    cupy = _optional.cupy().module
    try:
        if runtime is not None:
            return [_native_device(runtime.device(number)) for number in range(runtime.count)]
        if cupy is None:
            return []
        count = int(cupy.cuda.runtime.getDeviceCount())
        return [_cupy_device(cupy, device_id) for device_id in range(count)]
    except Exception:  # A driver that fails half-way is one that is not there.
        return []


class Accelerator:
    """The devices of this machine, and which of them is current: one object per process.

    Thread-safe under the GIL; the current device belongs to the process, not to a thread.
    """

    _instance: Accelerator | None = None
    _initialized: bool = False
    _lock = threading.Lock()
    _devices: list[DeviceProperties]
    _current: int

    def __new__(cls) -> Accelerator:
        with cls._lock:
            if cls._instance is None:
                cls._instance = super().__new__(cls)
                cls._initialized = False
            if not cls._initialized:
                cls._instance._discover()
                cls._initialized = True
            return cls._instance

    def _discover(self) -> None:
        self._devices = _cuda_devices()
        if _optional.mlx():
            self._devices.append(_metal_device())
        if not self._devices:
            self._devices.append(_cpu_device())
        self._current = 0

    @property
    def cuda_available(self) -> bool:
        """Whether there is a CUDA device."""
        return any(device.device_type is DeviceType.CUDA for device in self._devices)

    @property
    def metal_available(self) -> bool:
        """Whether there is a Metal device."""
        return any(device.device_type is DeviceType.METAL for device in self._devices)

    @property
    def device_count(self) -> int:
        """How many devices there are: at least one."""
        return len(self._devices)

    @property
    def current_device(self) -> DeviceProperties:
        """The device that is in use."""
        return self._devices[self._current]

    @property
    def devices(self) -> list[DeviceProperties]:
        """All devices: a copy."""
        return self._devices.copy()

    def get_device(self, device_id: int) -> DeviceProperties:
        """Get a device.

        Raises
        ------
        TypeError
            It is no number.
        ValueError
            There is no such device.
        """
        try:
            device_id = operator.index(device_id)
        except TypeError:
            kind = type(device_id).__name__
            raise TypeError(f"a device id is an int, not {kind}: {device_id!r}") from None
        if not 0 <= device_id < len(self._devices):
            raise ValueError(f"Invalid device id {device_id}: there are {len(self._devices)}")
        return self._devices[device_id]

    def set_device(self, device_id: int) -> None:
        """Make a device the current one, also for CuPy if it is a CUDA device.

        Raises
        ------
        ValueError
            There is no such device.
        """
        device = self.get_device(device_id)
        if device.device_type is DeviceType.CUDA:
            _optional.device_arrays().use(device.device_id)
        self._current = device_id

    def synchronize(self) -> None:
        """Wait until the current device has done what it was given."""
        kind = self.current_device.device_type
        if kind is DeviceType.CUDA:
            _optional.device_arrays().synchronize(self.current_device.device_id)
        elif kind is DeviceType.METAL:
            _optional.mlx().module.synchronize()

    def get_memory_info(self) -> dict[str, int]:
        """Measure the current device's memory, in bytes.

        Returns
        -------
        dict
            `free`, `total` and `used`. For the CPU: main memory, within a container's limit. For
            Metal: what MLX uses, with `cache_memory` and `peak_memory`.
        """
        kind = self.current_device.device_type
        if kind is DeviceType.CUDA:
            device_id = self.current_device.device_id
            free, total = _optional.device_arrays().memory_info(device_id)
            return {"free": free, "total": total, "used": total - free}
        if kind is DeviceType.METAL:
            mx = _optional.mlx().module
            return {
                "free": 0,
                "total": 0,
                "used": int(mx.get_active_memory()),
                "cache_memory": int(mx.get_cache_memory()),
                "peak_memory": int(mx.get_peak_memory()),
            }
        total, free = _cpu_memory()
        return {"free": free, "total": total, "used": total - free}

    def __repr__(self) -> str:
        return (
            f"Accelerator(devices={self.device_count}, cuda_available={self.cuda_available}, "
            f"metal_available={self.metal_available}, current_device={self.current_device.name})"
        )


def get_accelerator() -> Accelerator:
    """Get the process's `Accelerator`."""
    return Accelerator()


def cuda_available() -> bool:
    """Tell whether there is a CUDA device."""
    return Accelerator().cuda_available


def metal_available() -> bool:
    """Tell whether there is a Metal device."""
    return Accelerator().metal_available
