"""The devices of this machine."""

import dataclasses
import os

import fake_cupy
import pytest

from pydotcompute.core import accelerator
from pydotcompute.core.accelerator import (
    Accelerator,
    DeviceProperties,
    DeviceType,
    cuda_available,
    get_accelerator,
    metal_available,
)


@pytest.fixture(autouse=True)
def _fresh(monkeypatch):
    monkeypatch.setattr(Accelerator, "_instance", None)
    monkeypatch.setattr(Accelerator, "_initialized", False)


def properties(**changes):
    values = {
        "device_id": 0,
        "device_type": DeviceType.CUDA,
        "name": "GPU",
        "compute_capability": (8, 9),
        "total_memory": 3 * 2**29,
        "multiprocessor_count": 2,
        "max_threads_per_block": 1024,
        "max_block_dims": (1024, 1024, 64),
        "max_grid_dims": (1, 2, 3),
        "warp_size": 32,
        "is_available": True,
    }
    return DeviceProperties(**{**values, **changes})


def test_device_types():
    assert [(kind.name, kind.value) for kind in DeviceType] == [
        ("CPU", 1),
        ("CUDA", 2),
        ("METAL", 3),
    ]


def test_device_properties():
    device = properties()
    assert device.compute_capability_str == "8.9"
    assert device.total_memory_gb == 1.5
    assert properties(compute_capability=None).compute_capability_str == "N/A"
    with pytest.raises(dataclasses.FrozenInstanceError):
        device.name = "other"
    assert [f.name for f in dataclasses.fields(device)] == [
        "device_id",
        "device_type",
        "name",
        "compute_capability",
        "total_memory",
        "multiprocessor_count",
        "max_threads_per_block",
        "max_block_dims",
        "max_grid_dims",
        "warp_size",
        "is_available",
    ]


def test_one_object_until_it_is_reset():
    first = Accelerator()
    assert Accelerator() is first
    assert get_accelerator() is first
    Accelerator._instance = None
    Accelerator._initialized = False
    assert Accelerator() is not first


def test_devices():
    found = Accelerator()
    assert found.device_count >= 1
    assert len(found.devices) == found.device_count
    assert found.devices is not found.devices
    assert found.current_device.is_available is True
    assert found.get_device(0) == found.devices[0]
    found.set_device(0)
    for wrong in (-1, 1000):
        with pytest.raises(ValueError, match="device"):
            found.get_device(wrong)
        with pytest.raises(ValueError, match="device"):
            found.set_device(wrong)
    found.synchronize()
    assert isinstance(cuda_available(), bool)
    assert isinstance(metal_available(), bool)
    text = repr(found)
    assert text.startswith(f"Accelerator(devices={found.device_count}, cuda_available=")
    assert "metal_available=" in text
    assert f"current_device={found.current_device.name})" in text


def test_e10_the_cpu_has_its_real_name_memory_and_cores(no_gpu):
    found = Accelerator()
    cpu = found.current_device
    assert cpu.device_type is DeviceType.CPU
    assert cpu.name
    assert cpu.total_memory > 2**20
    assert cpu.multiprocessor_count == len(os.sched_getaffinity(0))
    assert (cpu.compute_capability, cpu.max_threads_per_block, cpu.warp_size) == (None, 1, 1)
    assert cpu.max_block_dims == cpu.max_grid_dims == (1, 1, 1)
    memory = found.get_memory_info()
    assert set(memory) == {"free", "total", "used"}
    assert memory["total"] == cpu.total_memory
    assert memory["free"] + memory["used"] == memory["total"]
    assert memory["used"] > 0


def test_e10_a_containers_limit_is_the_memory(monkeypatch, no_gpu):
    monkeypatch.setattr(
        accelerator, "_cgroup_bytes", {"memory.max": 2**20, "memory.current": 2**18}.get
    )
    memory = Accelerator().get_memory_info()
    assert (memory["total"], memory["used"]) == (2**20, 2**18)


def test_e10_each_apple_chip_has_its_own_count():
    count = accelerator._apple_gpu_cores
    assert count("Apple M1") == 8
    assert count("Apple M2 Max") == 38
    assert count("Apple M3 Ultra") == 80
    assert count("Apple M99") == 8
    assert count("Intel(R) Core(TM) i9") == 8


def test_cuda_devices_come_through_cupy(cupy):
    found = Accelerator()
    assert found.cuda_available
    assert found.current_device == properties(
        name="Fake", total_memory=fake_cupy.TOTAL, multiprocessor_count=4, max_grid_dims=(7, 8, 9)
    )
    found.set_device(0)
    found.synchronize()
    assert found.get_memory_info() == {"free": 600, "total": 1000, "used": 400}


def test_e4_a_driver_that_fails_is_no_device(broken_cupy):
    found = Accelerator()
    assert not found.cuda_available
    assert found.current_device.device_type is DeviceType.CPU


@pytest.mark.parametrize("device_id", ["0", None, 0.0])
def test_a_device_id_that_is_none_is_refused(no_gpu, device_id):
    for use in (Accelerator().get_device, Accelerator().set_device):
        with pytest.raises(TypeError, match="a device id is an int"):
            use(device_id)
