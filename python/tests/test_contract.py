"""The contract with programs written for PyDotCompute 0.2, as tables.

Every module, public name, parameter and default, property, enum member, dictionary key and text
that such a program may rely on, and the private names that its tests touch. What the names *do* is
tested beside each module; here it is that they are there, under these names and defaults.
"""

import abc
import asyncio
import dataclasses
import enum
import importlib
import importlib.util
import inspect
import pkgutil
import typing
import uuid
from pathlib import Path

import numpy as np
import pytest

import pydotcompute
from pydotcompute import exceptions

# --- modules and names ----------------------------------------------------------------------------

#: What each module exports at least.
NAMES = {
    "": "__version__ Accelerator UnifiedBuffer BufferState MemoryPool ComputeOrchestrator "
    "RingKernelRuntime RingKernelMessage kernel gpu_kernel ring_kernel message",
    "core": "Accelerator UnifiedBuffer BufferState MemoryPool ComputeOrchestrator",
    "core.accelerator": "Accelerator DeviceProperties DeviceType cuda_available get_accelerator "
    "metal_available",
    "core.memory_pool": "MemoryPool PoolStatistics configure_memory_pool get_memory_pool",
    "core.unified_buffer": "BufferState UnifiedBuffer",
    "core.orchestrator": "ComputeOrchestrator KernelExecution KernelLaunchConfig",
    "backends": "Backend BackendType CPUBackend CUDABackend MetalBackend",
    "backends.base": "Backend BackendArray BackendType KernelExecutionResult",
    "backends.cpu": "CPUBackend matrix_multiply_cpu vector_add_cpu",
    "backends.cuda": "CUDABackend get_vector_add_kernel get_matrix_multiply_kernel",
    "backends.metal": "MetalBackend MetalBufferInfo MetalBufferState get_vector_add_kernel "
    "get_matrix_multiply_kernel get_elementwise_kernel _check_metal_available",
    "compilation": "KernelCompiler KernelCache",
    "compilation.compiler": "CompilationOptions CompiledKernel KernelCompiler compile_kernel "
    "get_compiler _global_compiler",
    "compilation.cache": "CacheEntry KernelCache get_kernel_cache warmup_kernels _global_cache",
    "decorators": "kernel gpu_kernel ring_kernel validate_message validate_config",
    "decorators.kernel": "KernelRegistry cuda_source get_kernel_registry gpu_kernel kernel",
    "decorators.ring_kernel": "RingKernelBuilder get_ring_kernel_meta is_ring_kernel ring_kernel",
    "decorators.validators": "RuntimeValidator _check_type _validator get_validator "
    "validate_backpressure_strategy validate_block_size validate_config validate_grid_size "
    "validate_message validate_priority validate_queue_size",
    "ring_kernels": "RingKernelRuntime RingKernel KernelState RingKernelMessage message "
    "ArrayMessage array_message MessageQueue FastMessageQueue RingBuffer PriorityBand "
    "BufferRegistry BufferHandle get_buffer_registry register_buffer get_buffer release_buffer "
    "RingKernelTelemetry GPUMonitor install_uvloop install_eager_task_factory "
    "is_uvloop_available is_uvloop_installed is_eager_tasks_installed get_loop_info "
    "create_optimized_loop optimize_current_loop ThreadedRingKernel ThreadedKernelContext "
    "ThreadedKernelConfig ThreadedKernelState ThreadedKernelPool SyncQueue SPSCQueue "
    "CythonRingKernel CythonKernelContext CythonKernelConfig CythonKernelState "
    "is_cython_kernel_available",
    "ring_kernels._loop": "install_uvloop install_eager_task_factory is_uvloop_available "
    "is_uvloop_installed is_eager_tasks_installed get_loop_info create_optimized_loop "
    "optimize_current_loop",
    "ring_kernels.message": "RingKernelMessage deserialize_message get_message_type message",
    "ring_kernels.queue": "BackpressureStrategy MessageQueue PriorityItem",
    "ring_kernels.fast_queue": "FastMessageQueue PriorityBand QueueStats RingBuffer "
    "get_priority_band",
    "ring_kernels.lifecycle": "KernelContext KernelState RingKernel RingKernelConfig "
    "managed_kernel",
    "ring_kernels.runtime": "RingKernelRuntime get_registered_kernel register_ring_kernel "
    "_kernel_registry",
    "ring_kernels.telemetry": "GPUInfo GPUMonitor RingKernelTelemetry TelemetryCollector",
    "ring_kernels.buffer_registry": "BufferHandle BufferRegistry get_buffer get_buffer_registry "
    "register_buffer release_buffer",
    "ring_kernels.array_message": "ArrayMessage array_message",
    "ring_kernels.sync_queue": "SPSCQueue SyncQueue",
    "ring_kernels.threaded_kernel": "ThreadedKernelConfig ThreadedKernelContext "
    "ThreadedKernelPool ThreadedKernelState ThreadedRingKernel",
    "ring_kernels.cython_kernel": "CythonKernelConfig CythonKernelContext CythonKernelState "
    "CythonRingKernel is_cython_kernel_available",
    "ring_kernels._cython": "CYTHON_AVAILABLE FastSPSCQueue is_cython_available",
    "ring_kernels._cython.fast_spsc": "FastSPSCQueue",
    "exceptions": "",
}
PACKAGES = ("", "core", "backends", "compilation", "decorators", "ring_kernels")


def module(name):
    return importlib.import_module(f"pydotcompute.{name}" if name else "pydotcompute")


def find(path):
    """The object at ``module:Name`` or ``module:Class.method``."""
    where, _, names = path.partition(":")
    found = module(where)
    for name in names.split("."):
        found = getattr(found, name)
    return found


@pytest.mark.parametrize("name", NAMES)
def test_module_has_its_names(name):
    missing = [one for one in NAMES[name].split() if not hasattr(module(name), one)]
    assert not missing


@pytest.mark.parametrize("name", PACKAGES)
def test_all_of_a_package(name):
    assert set(NAMES[name].split()) <= set(module(name).__all__)


def test_every_module_of_the_package_imports():
    #: What is imported only where numba is.
    needs_numba = {"pydotcompute.backends._numba_kernels", "pydotcompute.handlers._compiled"}
    for found in pkgutil.walk_packages(pydotcompute.__path__, "pydotcompute."):
        if found.name in needs_numba and importlib.util.find_spec("numba") is None:
            continue
        if not found.name.endswith("__main__"):
            importlib.import_module(found.name)


def test_version_and_typing_marker():
    assert pydotcompute.__version__ == "0.2.0"
    assert (Path(pydotcompute.__file__).parent / "py.typed").exists()


# --- what may be subscripted ----------------------------------------------------------------------

GENERIC = [
    ("core.unified_buffer:UnifiedBuffer", np.float32),
    ("backends.base:BackendArray", np.float32),
    ("ring_kernels.queue:MessageQueue", int),
    ("ring_kernels.queue:PriorityItem", int),
    ("ring_kernels.fast_queue:FastMessageQueue", int),
    ("ring_kernels.fast_queue:RingBuffer", int),
    ("ring_kernels.sync_queue:SyncQueue", int),
    ("ring_kernels.sync_queue:SPSCQueue", int),
    ("ring_kernels.lifecycle:KernelContext", (int, str)),
    ("ring_kernels.lifecycle:RingKernel", (int, str)),
    ("ring_kernels.threaded_kernel:ThreadedKernelContext", (int, str)),
    ("ring_kernels.threaded_kernel:ThreadedRingKernel", (int, str)),
    ("ring_kernels.cython_kernel:CythonKernelContext", (int, str)),
    ("ring_kernels.cython_kernel:CythonRingKernel", (int, str)),
]


@pytest.mark.parametrize(("path", "parameters"), GENERIC)
def test_generic_classes_can_be_subscripted(path, parameters):
    cls = find(path)
    assert typing.get_origin(cls[parameters]) is cls


# --- enums ----------------------------------------------------------------------------------------

ENUMS = {
    "core.accelerator:DeviceType": {"CPU": 1, "CUDA": 2, "METAL": 3},
    "core.unified_buffer:BufferState": {
        "UNINITIALIZED": 1,
        "HOST_ONLY": 2,
        "DEVICE_ONLY": 3,
        "SYNCHRONIZED": 4,
        "HOST_DIRTY": 5,
        "DEVICE_DIRTY": 6,
    },
    "backends.base:BackendType": "CPU CUDA METAL",
    "backends.metal:MetalBufferState": "ALLOCATED FREED IN_USE",
    "ring_kernels.queue:BackpressureStrategy": "BLOCK REJECT DROP_OLDEST",
    "ring_kernels.fast_queue:PriorityBand": {"SYSTEM": 0, "HIGH": 1, "NORMAL": 2, "LOW": 3},
    "ring_kernels.lifecycle:KernelState": "CREATED LAUNCHED ACTIVE DEACTIVATED TERMINATING "
    "TERMINATED",
    "ring_kernels.threaded_kernel:ThreadedKernelState": "CREATED RUNNING STOPPING STOPPED",
    "ring_kernels.cython_kernel:CythonKernelState": "CREATED RUNNING STOPPING STOPPED",
}


@pytest.mark.parametrize("path", ENUMS)
def test_enum_members(path):
    cls, members = find(path), ENUMS[path]
    assert issubclass(cls, enum.Enum)
    if isinstance(members, str):
        assert [one.name for one in cls] == members.split()
    else:
        assert {one.name: one.value for one in cls} == members


def test_priority_band_is_an_int_enum_with_these_limits():
    from pydotcompute.ring_kernels.fast_queue import PriorityBand, get_priority_band

    assert issubclass(PriorityBand, enum.IntEnum)
    limits = {255: 0, 224: 0, 223: 1, 160: 1, 159: 2, 64: 2, 63: 3, 0: 3}
    assert {priority: get_priority_band(priority) for priority in limits} == limits


# --- parameters and defaults ----------------------------------------------------------------------

#: Every callable with its parameters as a ``def`` has them. Further ones may follow, with defaults.
SIGNATURES = {
    # 3. accelerator
    "core.accelerator:DeviceProperties": "device_id, device_type, name, compute_capability, "
    "total_memory, multiprocessor_count, max_threads_per_block, max_block_dims, max_grid_dims, "
    "warp_size, is_available",
    "core.accelerator:Accelerator": "",
    "core.accelerator:Accelerator.get_device": "self, device_id",
    "core.accelerator:Accelerator.set_device": "self, device_id",
    "core.accelerator:Accelerator.synchronize": "self",
    "core.accelerator:Accelerator.get_memory_info": "self",
    "core.accelerator:get_accelerator": "",
    "core.accelerator:cuda_available": "",
    "core.accelerator:metal_available": "",
    # 4. memory pool
    "core.memory_pool:PoolStatistics": "used_bytes, total_bytes, n_free_blocks",
    "core.memory_pool:MemoryPool": "initial_size_mb=0, max_size_mb=None",
    "core.memory_pool:MemoryPool.enable": "self",
    "core.memory_pool:MemoryPool.disable": "self",
    "core.memory_pool:MemoryPool.get_stats": "self",
    "core.memory_pool:MemoryPool.get_pinned_stats": "self",
    "core.memory_pool:MemoryPool.free_all_blocks": "self",
    "core.memory_pool:MemoryPool.free_all_free": "self",
    "core.memory_pool:MemoryPool.set_limit": "self, size_mb",
    "core.memory_pool:get_memory_pool": "",
    "core.memory_pool:configure_memory_pool": "_initial_size_mb=0, max_size_mb=None, enable=True",
    # 5. unified buffer
    "core.unified_buffer:UnifiedBuffer": "shape, dtype=np.float32, *, pinned=False",
    "core.unified_buffer:UnifiedBuffer.allocate": "self, *, host=True, device=True",
    "core.unified_buffer:UnifiedBuffer.free": "self",
    "core.unified_buffer:UnifiedBuffer.mark_host_dirty": "self",
    "core.unified_buffer:UnifiedBuffer.mark_device_dirty": "self",
    "core.unified_buffer:UnifiedBuffer.mark_metal_dirty": "self",
    "core.unified_buffer:UnifiedBuffer.synchronize": "self",
    "core.unified_buffer:UnifiedBuffer.ensure_on_device": "self",
    "core.unified_buffer:UnifiedBuffer.ensure_on_host": "self",
    "core.unified_buffer:UnifiedBuffer.copy_from": "self, data",
    "core.unified_buffer:UnifiedBuffer.copy_to": "self, data",
    "core.unified_buffer:UnifiedBuffer.zeros": "self",
    "core.unified_buffer:UnifiedBuffer.fill": "self, value",
    "core.unified_buffer:UnifiedBuffer.__len__": "self",
    "core.unified_buffer:UnifiedBuffer.__getitem__": "self, key",
    "core.unified_buffer:UnifiedBuffer.__setitem__": "self, key, value",
    # 6. orchestrator
    "core.orchestrator:KernelLaunchConfig": "grid_size=(1,), block_size=(256,), "
    "shared_memory_bytes=0, stream=None",
    "core.orchestrator:KernelExecution": "execution_id=ANY, kernel_name='', config=ANY, "
    "start_time=0.0, end_time=0.0, success=False, error=None",
    "core.orchestrator:ComputeOrchestrator": "",
    "core.orchestrator:ComputeOrchestrator.initialize": "self",
    "core.orchestrator:ComputeOrchestrator.shutdown": "self",
    "core.orchestrator:ComputeOrchestrator.register_kernel": "self, name, kernel_func",
    "core.orchestrator:ComputeOrchestrator.get_kernel": "self, name",
    "core.orchestrator:ComputeOrchestrator.launch_kernel": "self, kernel, config, *args, **kwargs",
    "core.orchestrator:ComputeOrchestrator.create_stream": "self",
    "core.orchestrator:ComputeOrchestrator.synchronize": "self",
    "core.orchestrator:ComputeOrchestrator.stream_context": "self",
    "core.orchestrator:ComputeOrchestrator.get_execution_history": "self, limit=None, "
    "kernel_name=None",
    "core.orchestrator:ComputeOrchestrator.clear_execution_history": "self",
    # 7. backends
    "backends.base:KernelExecutionResult": "success, execution_time_ms, error=None",
    "backends.base:BackendArray": "data, backend, *, owns_data=True",
    "backends.base:BackendArray.to_host": "self",
    "backends.base:BackendArray.synchronize": "self",
    "backends.cpu:CPUBackend": "",
    "backends.cpu:CPUBackend.parallel_for": "self, start, end, func",
    "backends.cpu:vector_add_cpu": "a, b",
    "backends.cpu:matrix_multiply_cpu": "a, b",
    "backends.cuda:CUDABackend": "device_id=0",
    "backends.cuda:CUDABackend.set_device": "self, device_id",
    "backends.cuda:CUDABackend.create_stream": "self",
    "backends.cuda:CUDABackend.get_memory_info": "self",
    "backends.cuda:get_vector_add_kernel": "",
    "backends.cuda:get_matrix_multiply_kernel": "",
    "backends.metal:MetalBufferInfo": "array_id, size, shape, dtype, state, created_at=ANY, "
    "last_accessed=ANY",
    "backends.metal:MetalBackend": "device_id=0",
    "backends.metal:MetalBackend.get_memory_info": "self",
    "backends.metal:MetalBackend.clear_cache": "self",
    "backends.metal:MetalBackend._cleanup": "self",
    "backends.metal:get_vector_add_kernel": "",
    "backends.metal:get_matrix_multiply_kernel": "",
    "backends.metal:get_elementwise_kernel": "operation",
    "backends.metal:_check_metal_available": "",
    # 8. compilation
    "compilation.compiler:CompilationOptions": "device='cuda', fastmath=True, debug=False, "
    "lineinfo=False, opt_level=3, cache=True",
    "compilation.compiler:CompiledKernel": "kernel, name, source_hash, signature, options, "
    "compile_time_ms=0.0, ptx=None",
    "compilation.compiler:KernelCompiler": "options=None",
    "compilation.compiler:KernelCompiler.compile": "self, func, *, signature=None, name=None, "
    "options=None",
    "compilation.compiler:KernelCompiler.get_cached_kernel": "self, source_hash",
    "compilation.compiler:KernelCompiler.clear_cache": "self",
    "compilation.compiler:KernelCompiler.get_cache_stats": "self",
    "compilation.compiler:KernelCompiler._get_source_hash": "self, func, signature, options",
    "compilation.compiler:get_compiler": "",
    "compilation.compiler:compile_kernel": "func, *, signature=None, **options",
    "compilation.cache:CacheEntry": "kernel_name, source_hash, signature, ptx_path=None, "
    "metadata=ANY, created_timestamp=0.0, last_accessed=0.0, hit_count=0",
    "compilation.cache:KernelCache": "cache_dir=None, max_entries=128, max_size_mb=256",
    "compilation.cache:KernelCache._get_cache_key": "self, kernel_name, source_hash",
    "compilation.cache:KernelCache._get_ptx_path": "self, key",
    "compilation.cache:KernelCache.store": "self, kernel_name, source_hash, ptx, *, "
    "signature=None, metadata=None",
    "compilation.cache:KernelCache.load": "self, kernel_name, source_hash",
    "compilation.cache:KernelCache.contains": "self, kernel_name, source_hash",
    "compilation.cache:KernelCache.remove": "self, kernel_name, source_hash",
    "compilation.cache:KernelCache.clear": "self",
    "compilation.cache:KernelCache.get_stats": "self",
    "compilation.cache:get_kernel_cache": "",
    "compilation.cache:warmup_kernels": "kernels",
    # 9.1 loop
    "ring_kernels._loop:install_uvloop": "",
    "ring_kernels._loop:install_eager_task_factory": "loop=None",
    "ring_kernels._loop:is_uvloop_available": "",
    "ring_kernels._loop:is_uvloop_installed": "",
    "ring_kernels._loop:is_eager_tasks_installed": "",
    "ring_kernels._loop:get_loop_info": "",
    "ring_kernels._loop:create_optimized_loop": "",
    "ring_kernels._loop:optimize_current_loop": "",
    # 9.2 messages
    "ring_kernels.message:RingKernelMessage.serialize": "self",
    "ring_kernels.message:RingKernelMessage.deserialize": "data",
    "ring_kernels.message:RingKernelMessage.with_correlation": "self, correlation_id",
    "ring_kernels.message:RingKernelMessage.reply": "self, **kwargs",
    "ring_kernels.message:get_message_type": "name",
    "ring_kernels.message:deserialize_message": "data",
    # 9.3 and 9.4 queues
    "ring_kernels.queue:PriorityItem": "priority, sequence, message",
    "ring_kernels.queue:MessageQueue": "maxsize=4096, *, backpressure=BackpressureStrategy.BLOCK, "
    "use_priority=True, kernel_id=''",
    "ring_kernels.queue:MessageQueue.put": "self, message, *, timeout=None",
    "ring_kernels.queue:MessageQueue.get": "self, *, timeout=None",
    "ring_kernels.queue:MessageQueue.put_nowait": "self, message",
    "ring_kernels.queue:MessageQueue.get_nowait": "self",
    "ring_kernels.queue:MessageQueue.clear": "self",
    "ring_kernels.queue:MessageQueue.get_stats": "self",
    "ring_kernels.fast_queue:get_priority_band": "priority",
    "ring_kernels.fast_queue:QueueStats": "total_enqueued=0, total_dequeued=0, total_dropped=0, "
    "current_size=0, peak_size=0, band_counts=None",
    "ring_kernels.fast_queue:FastMessageQueue": "maxsize=4096, *, kernel_id='', serialize=False",
    "ring_kernels.fast_queue:FastMessageQueue.put": "self, message, *, timeout=None",
    "ring_kernels.fast_queue:FastMessageQueue.get": "self, *, timeout=None",
    "ring_kernels.fast_queue:FastMessageQueue.put_nowait": "self, message",
    "ring_kernels.fast_queue:FastMessageQueue.get_nowait": "self",
    "ring_kernels.fast_queue:FastMessageQueue.put_batch": "self, messages",
    "ring_kernels.fast_queue:FastMessageQueue.get_batch": "self, max_count",
    "ring_kernels.fast_queue:FastMessageQueue.clear": "self",
    "ring_kernels.fast_queue:FastMessageQueue.get_stats": "self",
    "ring_kernels.fast_queue:RingBuffer": "capacity=4096",
    "ring_kernels.fast_queue:RingBuffer.put": "self, item, *, timeout=None",
    "ring_kernels.fast_queue:RingBuffer.get": "self, *, timeout=None",
    "ring_kernels.fast_queue:RingBuffer.put_nowait": "self, item",
    "ring_kernels.fast_queue:RingBuffer.get_nowait": "self",
    "ring_kernels.fast_queue:RingBuffer.clear": "self",
    # 9.5 lifecycle
    "ring_kernels.lifecycle:RingKernelConfig": "kernel_id, grid_size=1, block_size=256, "
    "input_queue_size=4096, output_queue_size=4096, backpressure_strategy='block', "
    "use_fast_queue=True",
    "ring_kernels.lifecycle:KernelContext": "kernel_id, input_queue, output_queue, "
    "_shutdown_event, _active_event",
    "ring_kernels.lifecycle:KernelContext.receive": "self, timeout=None",
    "ring_kernels.lifecycle:KernelContext.send": "self, message",
    "ring_kernels.lifecycle:KernelContext.wait_active": "self",
    "ring_kernels.lifecycle:RingKernel": "kernel_id, kernel_func, *, config=None, "
    "input_type=None, output_type=None",
    "ring_kernels.lifecycle:RingKernel.launch": "self",
    "ring_kernels.lifecycle:RingKernel.activate": "self",
    "ring_kernels.lifecycle:RingKernel.deactivate": "self",
    "ring_kernels.lifecycle:RingKernel.reactivate": "self",
    "ring_kernels.lifecycle:RingKernel.terminate": "self, timeout=5.0",
    "ring_kernels.lifecycle:RingKernel.send": "self, message, timeout=None",
    "ring_kernels.lifecycle:RingKernel.receive": "self, timeout=None",
    "ring_kernels.lifecycle:managed_kernel": "kernel_id, kernel_func, **kwargs",
    # 9.6 runtime
    "ring_kernels.runtime:register_ring_kernel": "kernel_id, func, input_type=None, "
    "output_type=None, **config",
    "ring_kernels.runtime:get_registered_kernel": "kernel_id",
    "ring_kernels.runtime:RingKernelRuntime": "*, enable_telemetry=True, use_uvloop=True, "
    "use_eager_tasks=True",
    "ring_kernels.runtime:RingKernelRuntime.start": "self",
    "ring_kernels.runtime:RingKernelRuntime.shutdown": "self, timeout=10.0",
    "ring_kernels.runtime:RingKernelRuntime.launch": "self, kernel_id, kernel_func=None, *, "
    "config=None, input_type=None, output_type=None",
    "ring_kernels.runtime:RingKernelRuntime.activate": "self, kernel_id",
    "ring_kernels.runtime:RingKernelRuntime.deactivate": "self, kernel_id",
    "ring_kernels.runtime:RingKernelRuntime.reactivate": "self, kernel_id",
    "ring_kernels.runtime:RingKernelRuntime.terminate": "self, kernel_id, timeout=5.0",
    "ring_kernels.runtime:RingKernelRuntime.send": "self, kernel_id, message, *, timeout=None",
    "ring_kernels.runtime:RingKernelRuntime.receive": "self, kernel_id, *, timeout=None",
    "ring_kernels.runtime:RingKernelRuntime.send_and_receive": "self, kernel_id, message, *, "
    "timeout=None",
    "ring_kernels.runtime:RingKernelRuntime.get_kernel_state": "self, kernel_id",
    "ring_kernels.runtime:RingKernelRuntime.get_telemetry": "self, kernel_id",
    "ring_kernels.runtime:RingKernelRuntime.get_all_telemetry": "self",
    "ring_kernels.runtime:RingKernelRuntime.get_summary": "self",
    "ring_kernels.runtime:RingKernelRuntime.kernel_scope": "self, kernel_id, kernel_func=None, "
    "**kwargs",
    "ring_kernels.runtime:RingKernelRuntime.get_loop_info": "self",
    # 9.7 telemetry
    "ring_kernels.telemetry:RingKernelTelemetry": "kernel_id='', messages_processed=0, "
    "messages_dropped=0, queue_depth=0, total_latency_ns=0, max_latency_ns=0, min_latency_ns=0, "
    "error_count=0, last_error=None, uptime_seconds=0.0",
    "ring_kernels.telemetry:RingKernelTelemetry.record_message": "self, latency_ns",
    "ring_kernels.telemetry:RingKernelTelemetry.record_drop": "self",
    "ring_kernels.telemetry:RingKernelTelemetry.record_error": "self, error",
    "ring_kernels.telemetry:RingKernelTelemetry.reset": "self",
    "ring_kernels.telemetry:RingKernelTelemetry.to_dict": "self",
    "ring_kernels.telemetry:GPUInfo": "index, name, uuid, memory_total, memory_used, memory_free, "
    "utilization_gpu, utilization_memory, temperature, power_usage, power_limit",
    "ring_kernels.telemetry:GPUMonitor": "",
    "ring_kernels.telemetry:GPUMonitor.get_gpu_info": "self, device_index=0",
    "ring_kernels.telemetry:GPUMonitor.get_all_gpu_info": "self",
    "ring_kernels.telemetry:GPUMonitor.get_utilization": "self, device_index=0",
    "ring_kernels.telemetry:GPUMonitor.get_memory_info": "self, device_index=0",
    "ring_kernels.telemetry:GPUMonitor.shutdown": "self",
    "ring_kernels.telemetry:TelemetryCollector": "_kernel_telemetry=ANY, _gpu_monitor=ANY, "
    "_start_time=ANY",
    "ring_kernels.telemetry:TelemetryCollector.register_kernel": "self, kernel_id",
    "ring_kernels.telemetry:TelemetryCollector.unregister_kernel": "self, kernel_id",
    "ring_kernels.telemetry:TelemetryCollector.get_kernel_telemetry": "self, kernel_id",
    "ring_kernels.telemetry:TelemetryCollector.get_all_telemetry": "self",
    "ring_kernels.telemetry:TelemetryCollector.get_summary": "self",
    "ring_kernels.telemetry:TelemetryCollector.reset_all": "self",
    # 9.8 and 9.9 arrays
    "ring_kernels.buffer_registry:BufferHandle": "buffer_id, shape, dtype, device, size_bytes, "
    "ref_count=1",
    "ring_kernels.buffer_registry:BufferRegistry": "",
    "ring_kernels.buffer_registry:BufferRegistry.register": "self, array",
    "ring_kernels.buffer_registry:BufferRegistry.get": "self, buffer_id",
    "ring_kernels.buffer_registry:BufferRegistry.get_handle": "self, buffer_id",
    "ring_kernels.buffer_registry:BufferRegistry.release": "self, buffer_id",
    "ring_kernels.buffer_registry:BufferRegistry.increment_ref": "self, buffer_id",
    "ring_kernels.buffer_registry:BufferRegistry.decrement_ref": "self, buffer_id",
    "ring_kernels.buffer_registry:BufferRegistry.clear": "self",
    "ring_kernels.buffer_registry:BufferRegistry.get_stats": "self",
    "ring_kernels.buffer_registry:get_buffer_registry": "",
    "ring_kernels.buffer_registry:register_buffer": "array",
    "ring_kernels.buffer_registry:get_buffer": "buffer_id",
    "ring_kernels.buffer_registry:release_buffer": "buffer_id",
    "ring_kernels.array_message:ArrayMessage.release_arrays": "self",
    # 9.10 queues between threads
    "ring_kernels.sync_queue:SyncQueue": "maxsize=4096",
    "ring_kernels.sync_queue:SyncQueue.put": "self, item, timeout=None",
    "ring_kernels.sync_queue:SyncQueue.get": "self, timeout=None",
    "ring_kernels.sync_queue:SyncQueue.put_nowait": "self, item",
    "ring_kernels.sync_queue:SyncQueue.get_nowait": "self",
    "ring_kernels.sync_queue:SyncQueue.clear": "self",
    "ring_kernels.sync_queue:SyncQueue.shutdown": "self",
    "ring_kernels.sync_queue:SyncQueue.get_stats": "self",
    "ring_kernels.sync_queue:SPSCQueue": "capacity=4096",
    "ring_kernels.sync_queue:SPSCQueue.put": "self, item, timeout=None",
    "ring_kernels.sync_queue:SPSCQueue.get": "self, timeout=None",
    "ring_kernels.sync_queue:SPSCQueue.put_nowait": "self, item",
    "ring_kernels.sync_queue:SPSCQueue.get_nowait": "self",
    "ring_kernels.sync_queue:SPSCQueue.clear": "self",
    "ring_kernels.sync_queue:SPSCQueue.shutdown": "self",
    # 9.11 kernels on threads
    "ring_kernels.threaded_kernel:ThreadedKernelConfig": "kernel_id, input_queue_size=4096, "
    "output_queue_size=4096, use_spsc=True, thread_name=None, daemon=True",
    "ring_kernels.threaded_kernel:ThreadedKernelContext": "kernel_id, input_queue, output_queue, "
    "_shutdown_event",
    "ring_kernels.threaded_kernel:ThreadedKernelContext.receive": "self, timeout=None",
    "ring_kernels.threaded_kernel:ThreadedKernelContext.send": "self, message, timeout=None",
    "ring_kernels.threaded_kernel:ThreadedKernelContext.wait_shutdown": "self, timeout=None",
    "ring_kernels.threaded_kernel:ThreadedRingKernel": "kernel_id, kernel_func, *, config=None, "
    "input_type=None, output_type=None",
    "ring_kernels.threaded_kernel:ThreadedRingKernel.start": "self",
    "ring_kernels.threaded_kernel:ThreadedRingKernel.stop": "self, timeout=5.0",
    "ring_kernels.threaded_kernel:ThreadedRingKernel.send": "self, message, timeout=None",
    "ring_kernels.threaded_kernel:ThreadedRingKernel.receive": "self, timeout=None",
    "ring_kernels.threaded_kernel:ThreadedRingKernel.send_nowait": "self, message",
    "ring_kernels.threaded_kernel:ThreadedRingKernel.receive_nowait": "self",
    "ring_kernels.threaded_kernel:ThreadedKernelPool": "kernel_id_prefix, kernel_func, "
    "num_workers=4, **config_kwargs",
    "ring_kernels.threaded_kernel:ThreadedKernelPool.start_all": "self",
    "ring_kernels.threaded_kernel:ThreadedKernelPool.stop_all": "self, timeout=5.0",
    "ring_kernels.threaded_kernel:ThreadedKernelPool.send": "self, message, timeout=None",
    "ring_kernels.threaded_kernel:ThreadedKernelPool.receive_any": "self, timeout=None",
    # 9.12 the native queue and kernel
    "ring_kernels._cython:is_cython_available": "",
    "ring_kernels._cython:FastSPSCQueue": "capacity=4096",
    "ring_kernels._cython:FastSPSCQueue.put": "self, item",
    "ring_kernels._cython:FastSPSCQueue.get": "self",
    "ring_kernels._cython:FastSPSCQueue.put_wait": "self, item, timeout_sec=1.0",
    "ring_kernels._cython:FastSPSCQueue.get_wait": "self, timeout_sec=1.0",
    "ring_kernels._cython:FastSPSCQueue.clear": "self",
    "ring_kernels._cython:FastSPSCQueue.shutdown": "self",
    "ring_kernels.cython_kernel:CythonKernelConfig": "kernel_id, input_queue_size=4096, "
    "output_queue_size=4096, spin_wait_ns=100, thread_name=None, daemon=True",
    "ring_kernels.cython_kernel:CythonKernelContext": "kernel_id, input_queue, output_queue, "
    "_shutdown_event",
    "ring_kernels.cython_kernel:CythonKernelContext.receive": "self, timeout=None",
    "ring_kernels.cython_kernel:CythonKernelContext.receive_nowait": "self",
    "ring_kernels.cython_kernel:CythonKernelContext.send": "self, message, timeout=None",
    "ring_kernels.cython_kernel:CythonKernelContext.send_nowait": "self, message",
    "ring_kernels.cython_kernel:CythonRingKernel": "kernel_id, kernel_func, *, config=None",
    "ring_kernels.cython_kernel:CythonRingKernel.start": "self",
    "ring_kernels.cython_kernel:CythonRingKernel.stop": "self, timeout=5.0",
    "ring_kernels.cython_kernel:CythonRingKernel.send": "self, message, timeout=None",
    "ring_kernels.cython_kernel:CythonRingKernel.send_nowait": "self, message",
    "ring_kernels.cython_kernel:CythonRingKernel.receive": "self, timeout=None",
    "ring_kernels.cython_kernel:CythonRingKernel.receive_nowait": "self",
    "ring_kernels.cython_kernel:is_cython_kernel_available": "",
    # 10. decorators
    "decorators.kernel:kernel": "func=None, *, name=None, device='auto', fastmath=True, cache=True",
    "decorators.kernel:gpu_kernel": "func=None, *, name=None, signature=None, fastmath=True, "
    "debug=False, cache=True",
    "decorators.kernel:cuda_source": "source",
    "decorators.kernel:KernelRegistry": "",
    "decorators.kernel:KernelRegistry.register": "self, name, kernel, *, overwrite=False",
    "decorators.kernel:KernelRegistry.get": "self, name",
    "decorators.kernel:KernelRegistry.list": "self",
    "decorators.kernel:KernelRegistry.clear": "self",
    "decorators.kernel:get_kernel_registry": "",
    "decorators.ring_kernel:ring_kernel": "func=None, *, kernel_id=None, input_type=None, "
    "output_type=None, queue_size=4096, input_queue_size=None, output_queue_size=None, "
    "grid_size=1, block_size=256, backpressure='block', auto_register=True",
    "decorators.ring_kernel:get_ring_kernel_meta": "func",
    "decorators.ring_kernel:is_ring_kernel": "func",
    "decorators.ring_kernel:RingKernelBuilder": "kernel_id",
    "decorators.ring_kernel:RingKernelBuilder.build": "self",
    "decorators.validators:validate_message": "cls",
    "decorators.validators:validate_config": "config_cls",
    "decorators.validators:_check_type": "value, expected",
    "decorators.validators:validate_queue_size": "size, name='queue_size'",
    "decorators.validators:validate_grid_size": "size, name='grid_size'",
    "decorators.validators:validate_block_size": "size, name='block_size', max_threads=1024",
    "decorators.validators:validate_priority": "priority",
    "decorators.validators:validate_backpressure_strategy": "strategy",
    "decorators.validators:RuntimeValidator": "strict=True",
    "decorators.validators:RuntimeValidator.validate_message_type": "self, cls",
    "decorators.validators:RuntimeValidator.validate_kernel_config": "self, config",
    "decorators.validators:RuntimeValidator.clear_warnings": "self",
    "decorators.validators:get_validator": "strict=True",
    # 2. exceptions
    "exceptions:KernelNotFoundError": "kernel_id, available=None",
    "exceptions:KernelStateError": "kernel_id, current_state, operation",
    "exceptions:KernelAlreadyExistsError": "kernel_id",
    "exceptions:MessageSerializationError": "message_type, cause",
    "exceptions:MessageDeserializationError": "message_type, cause",
    "exceptions:QueueFullError": "kernel_id, queue_size",
    "exceptions:QueueTimeoutError": "kernel_id, timeout, operation",
    "exceptions:BufferNotAllocatedError": "",
    "exceptions:BufferSyncError": "direction, cause",
    "exceptions:BackendNotAvailableError": "backend_name, reason",
    "exceptions:MSLCompilationError": "shader_name, error_message",
    "exceptions:KernelCompilationError": "kernel_name, cause",
    "exceptions:InvalidConfigurationError": "parameter, value, reason",
    "exceptions:TypeValidationError": "expected, actual, context",
}

BACKEND_METHODS = {
    "allocate": "self, shape, dtype",
    "free": "self, array",
    "copy_to_device": "self, host_array",
    "copy_to_host": "self, device_array",
    "synchronize": "self",
    "execute_kernel": "self, kernel, grid_size, block_size, *args, **kwargs",
    "compile_kernel": "self, func, signature=None",
}
for _path in (
    "backends.base:Backend",
    "backends.cpu:CPUBackend",
    "backends.cuda:CUDABackend",
    "backends.metal:MetalBackend",
):
    for _name, _parameters in BACKEND_METHODS.items():
        SIGNATURES[f"{_path}.{_name}"] = _parameters
    if not _path.endswith(":Backend"):
        SIGNATURES[f"{_path}.allocate_zeros"] = "self, shape, dtype"

ANY = object()  # A default that is made afresh.


@pytest.mark.parametrize("path", SIGNATURES)
def test_parameters_and_defaults(path):
    scope = {**vars(module(path.partition(":")[0])), "np": np, "ANY": ANY}
    wanted = dict(inspect.signature(eval(f"lambda {SIGNATURES[path]}: None", scope)).parameters)
    found = dict(inspect.signature(find(path)).parameters)
    if wanted.pop("self", None):
        # Of a native method it is positional-only.
        assert next(iter(found)) == "self"
        del found["self"]
    places = [name for name, one in found.items() if one.kind is one.POSITIONAL_OR_KEYWORD]
    for place, (name, want) in enumerate(wanted.items()):
        if want.kind in (want.VAR_POSITIONAL, want.VAR_KEYWORD):
            assert any(one.kind is want.kind for one in found.values()), name
            continue
        assert name in found
        have = found[name]
        if want.kind is want.POSITIONAL_OR_KEYWORD:
            assert places[place] == name, "by position"
        assert have.kind in (want.POSITIONAL_OR_KEYWORD, want.kind)
        if want.default is ANY:
            assert have.default is not have.empty
        elif want.default is not want.empty:
            assert have.default == want.default
    for name, have in found.items():
        if name not in wanted:
            assert have.default is not have.empty or have.kind in (
                have.VAR_POSITIONAL,
                have.VAR_KEYWORD,
            ), f"{name} must not be required"


def test_ring_kernel_message_takes_keywords():
    message = pydotcompute.RingKernelMessage()
    assert isinstance(message.message_id, uuid.UUID)
    assert message.priority == 128
    assert message.correlation_id is None
    one = uuid.uuid4()
    made = pydotcompute.RingKernelMessage(message_id=one, priority=1, correlation_id=one)
    assert (made.message_id, made.priority, made.correlation_id) == (one, 1, one)
    with pytest.raises(TypeError):
        hash(made)
    for priority in (-1, 256):
        with pytest.raises(ValueError, match="0-255"):
            pydotcompute.RingKernelMessage(priority=priority)


def test_builder_methods_are_chainable():
    from pydotcompute.decorators.ring_kernel import RingKernelBuilder

    builder = RingKernelBuilder("contract_builder")
    for name, value in {
        "input_type": int,
        "output_type": str,
        "queue_size": 7,
        "input_queue_size": 8,
        "output_queue_size": 9,
        "grid_size": 2,
        "block_size": 64,
        "backpressure": "reject",
        "handler": lambda _: None,
    }.items():
        assert getattr(builder, f"with_{name}")(value) is builder
    found = {
        name: getattr(builder, name)
        for name in (
            "_kernel_id",
            "_input_queue_size",
            "_output_queue_size",
            "_grid_size",
            "_block_size",
            "_backpressure",
        )
    }
    assert list(found.values()) == ["contract_builder", 8, 9, 2, 64, "reject"]


# --- dataclasses ----------------------------------------------------------------------------------

DATACLASSES = [
    "core.accelerator:DeviceProperties",
    "core.memory_pool:PoolStatistics",
    "core.orchestrator:KernelLaunchConfig",
    "core.orchestrator:KernelExecution",
    "backends.base:KernelExecutionResult",
    "backends.metal:MetalBufferInfo",
    "compilation.compiler:CompilationOptions",
    "compilation.compiler:CompiledKernel",
    "compilation.cache:CacheEntry",
    "ring_kernels.queue:PriorityItem",
    "ring_kernels.fast_queue:QueueStats",
    "ring_kernels.lifecycle:RingKernelConfig",
    "ring_kernels.lifecycle:KernelContext",
    "ring_kernels.telemetry:RingKernelTelemetry",
    "ring_kernels.telemetry:GPUInfo",
    "ring_kernels.telemetry:TelemetryCollector",
    "ring_kernels.buffer_registry:BufferHandle",
    "ring_kernels.threaded_kernel:ThreadedKernelConfig",
    "ring_kernels.threaded_kernel:ThreadedKernelContext",
    "ring_kernels.cython_kernel:CythonKernelConfig",
    "ring_kernels.cython_kernel:CythonKernelContext",
]


@pytest.mark.parametrize("path", DATACLASSES)
def test_dataclass_fields(path):
    cls = find(path)
    assert dataclasses.is_dataclass(cls)
    wanted = [one.split("=")[0].strip() for one in SIGNATURES[path].split(", ")]
    assert [one.name for one in dataclasses.fields(cls)][: len(wanted)] == wanted


@pytest.mark.parametrize("name", ["RingKernelMessage", "ArrayMessage"])
def test_messages_are_dataclasses(name):
    cls = getattr(pydotcompute.ring_kernels, name)
    fields = [one.name for one in dataclasses.fields(cls)]
    assert [one for one in fields if not one.startswith("_")] == [
        "message_id",
        "priority",
        "correlation_id",
    ]
    assert issubclass(cls, pydotcompute.RingKernelMessage)


def test_device_properties_are_frozen():
    device = pydotcompute.Accelerator().current_device
    with pytest.raises(dataclasses.FrozenInstanceError):
        device.name = "other"


# --- properties -----------------------------------------------------------------------------------

PROPERTIES = {
    "core.accelerator:DeviceProperties": "compute_capability_str total_memory_gb",
    "core.accelerator:Accelerator": "cuda_available metal_available device_count current_device "
    "devices",
    "core.memory_pool:PoolStatistics": "free_bytes utilization used_mb total_mb",
    "core.memory_pool:MemoryPool": "enabled",
    "core.unified_buffer:UnifiedBuffer": "shape dtype size nbytes state is_allocated host device "
    "metal",
    "core.orchestrator:KernelExecution": "duration_ms",
    "core.orchestrator:ComputeOrchestrator": "is_active accelerator memory_pool",
    "backends.base:Backend": "backend_type is_available device_count",
    "backends.base:BackendArray": "data backend shape dtype nbytes",
    "backends.cuda:CUDABackend": "backend_type is_available device_count device_id",
    "backends.metal:MetalBackend": "backend_type is_available device_count device_id",
    "compilation.compiler:KernelCompiler": "cuda_available numba_available",
    "ring_kernels.queue:MessageQueue": "maxsize qsize empty full",
    "ring_kernels.fast_queue:FastMessageQueue": "maxsize qsize empty full",
    "ring_kernels.fast_queue:RingBuffer": "capacity size empty full",
    "ring_kernels.lifecycle:KernelContext": "should_terminate is_active",
    "ring_kernels.lifecycle:RingKernel": "state config",
    "ring_kernels.runtime:RingKernelRuntime": "is_active kernel_ids",
    "ring_kernels.telemetry:RingKernelTelemetry": "avg_latency_ns avg_latency_ms throughput",
    "ring_kernels.telemetry:GPUInfo": "memory_utilization",
    "ring_kernels.telemetry:GPUMonitor": "is_available device_count",
    "ring_kernels.sync_queue:SyncQueue": "maxsize qsize empty full",
    "ring_kernels.sync_queue:SPSCQueue": "capacity size empty full",
    "ring_kernels.threaded_kernel:ThreadedKernelContext": "should_terminate",
    "ring_kernels.threaded_kernel:ThreadedRingKernel": "state config is_running error",
    "ring_kernels._cython:FastSPSCQueue": "capacity size empty full",
    "ring_kernels.cython_kernel:CythonKernelContext": "should_terminate",
    "ring_kernels.cython_kernel:CythonRingKernel": "state is_running using_cython error",
    "decorators.validators:RuntimeValidator": "strict warnings",
}


@pytest.mark.parametrize("path", PROPERTIES)
def test_properties(path):
    cls = find(path)
    for name in PROPERTIES[path].split():
        assert hasattr(cls, name), name
        assert not callable(getattr(cls, name)), name


def test_backend_is_abstract():
    from pydotcompute.backends.base import Backend

    assert issubclass(Backend, abc.ABC)
    assert Backend.__abstractmethods__ == {
        *BACKEND_METHODS,
        "backend_type",
        "is_available",
        "device_count",
    }


SIZED = [
    "MessageQueue",
    "FastMessageQueue",
    "RingBuffer",
    "SyncQueue",
    "SPSCQueue",
    "BufferRegistry",
    "ThreadedKernelPool",
]


@pytest.mark.parametrize("name", SIZED)
def test_has_a_length(name):
    assert hasattr(getattr(pydotcompute.ring_kernels, name), "__len__")


# --- exceptions -----------------------------------------------------------------------------------

CAUSE = ValueError("why")

#: class: (base, arguments, text)
EXCEPTIONS = {
    "PyDotComputeError": ("Exception", None, None),
    "KernelError": ("PyDotComputeError", None, None),
    "KernelNotFoundError": (
        "KernelError",
        {"kernel_id": "X", "available": ["a", "b"]},
        "Kernel 'X' not found. Available kernels: ['a', 'b']\n"
        "Hint: Did you forget to call runtime.launch('X')?",
    ),
    "KernelStateError": (
        "KernelError",
        {"kernel_id": "X", "current_state": "S", "operation": "op"},
        "Cannot op kernel 'X' from state 'S'",
    ),
    "KernelAlreadyExistsError": (
        "KernelError",
        {"kernel_id": "X"},
        "Kernel 'X' is already registered",
    ),
    "MessageError": ("PyDotComputeError", None, None),
    "MessageSerializationError": (
        "MessageError",
        {"message_type": int, "cause": CAUSE},
        "Failed to serialize message of type 'int': why",
    ),
    "MessageDeserializationError": (
        "MessageError",
        {"message_type": int, "cause": CAUSE},
        "Failed to deserialize message to type 'int': why",
    ),
    "QueueError": ("PyDotComputeError", None, None),
    "QueueFullError": (
        "QueueError",
        {"kernel_id": "X", "queue_size": 7},
        "Input queue for kernel 'X' is full (size: 7)",
    ),
    "QueueTimeoutError": (
        "QueueError",
        {"kernel_id": "X", "timeout": 0.5, "operation": "send"},
        "Timeout (0.5s) waiting to send message for kernel 'X'",
    ),
    "BufferError": ("PyDotComputeError", None, None),
    "BufferNotAllocatedError": (
        "BufferError",
        {},
        "Buffer has not been allocated. Call allocate() first.",
    ),
    "BufferSyncError": (
        "BufferError",
        {"direction": "host->device", "cause": CAUSE},
        "Failed to sync buffer host->device: why",
    ),
    "BackendError": ("PyDotComputeError", None, None),
    "BackendNotAvailableError": (
        "BackendError",
        {"backend_name": "B", "reason": "none"},
        "Backend 'B' is not available: none",
    ),
    "CUDAError": ("BackendError", None, None),
    "MetalError": ("BackendError", None, None),
    "MSLCompilationError": (
        "MetalError",
        {"shader_name": "S", "error_message": "msg"},
        "Failed to compile MSL shader 'S': msg",
    ),
    "CompilationError": ("PyDotComputeError", None, None),
    "KernelCompilationError": (
        "CompilationError",
        {"kernel_name": "K", "cause": CAUSE},
        "Failed to compile kernel 'K': why",
    ),
    "ValidationError": ("PyDotComputeError", None, None),
    "InvalidConfigurationError": (
        "ValidationError",
        {"parameter": "p", "value": "v", "reason": "r"},
        "Invalid configuration: p='v' - r",
    ),
    "TypeValidationError": (
        "ValidationError",
        {"expected": int, "actual": str, "context": "c"},
        "Type mismatch in c: expected int, got str",
    ),
}


@pytest.mark.parametrize("name", EXCEPTIONS)
def test_exception(name):
    base, arguments, text = EXCEPTIONS[name]
    cls = getattr(exceptions, name)
    assert cls.__base__ is (Exception if base == "Exception" else getattr(exceptions, base))
    if arguments is None:
        assert cls("one", 2).args == ("one", 2)
        return
    for made in (cls(**arguments), cls(*arguments.values())):
        assert str(made) == text
        assert {key: getattr(made, key) for key in arguments} == arguments


def test_kernel_not_found_without_others():
    error = exceptions.KernelNotFoundError("X")
    assert error.available == []
    assert str(error).startswith("Kernel 'X' not found.\nHint: ")


# --- texts and dictionary keys --------------------------------------------------------------------


def _function(*_arguments):
    return None


def _kernel(path, *arguments):
    return find(path)("X", _function, *arguments)


#: What makes an object, and what its repr must contain or, from "=", be.
REPRS = {
    "Accelerator": (
        lambda: pydotcompute.Accelerator(),
        "Accelerator(|devices=|cuda_available=|metal_available=|current_device=",
    ),
    "MemoryPool": (lambda: pydotcompute.MemoryPool(), "MemoryPool(|enabled=|used=|MB|total=|cuda="),
    "UnifiedBuffer": (
        lambda: pydotcompute.UnifiedBuffer(100),
        "UnifiedBuffer(shape=(100,)|dtype=float32|state=UNINITIALIZED|cuda=|metal=",
    ),
    "ComputeOrchestrator": (
        lambda: pydotcompute.ComputeOrchestrator(),
        "=ComputeOrchestrator(active=False, kernels=0, executions=0)",
    ),
    "CPUBackend": (lambda: find("backends:CPUBackend")(), "=CPUBackend(available=True)"),
    "BackendArray": (
        lambda: find("backends.base:BackendArray")(
            np.zeros(3), find("backends:CPUBackend")(), owns_data=False
        ),
        "=BackendArray(shape=(3,), dtype=float64, backend=CPU)",
    ),
    "KernelCompiler": (
        lambda: find("compilation:KernelCompiler")(),
        "KernelCompiler(cuda=|numba=|cached=0",
    ),
    "MessageQueue": (
        lambda: find("ring_kernels:MessageQueue")(8),
        "=MessageQueue(size=0/8, priority=True, backpressure=BLOCK)",
    ),
    "FastMessageQueue": (
        lambda: find("ring_kernels:FastMessageQueue")(8),
        "=FastMessageQueue(size=0/8)",
    ),
    "RingBuffer": (lambda: find("ring_kernels:RingBuffer")(8), "=RingBuffer(size=0/8)"),
    "SyncQueue": (lambda: find("ring_kernels:SyncQueue")(8), "=SyncQueue(size=0/8)"),
    "SPSCQueue": (lambda: find("ring_kernels:SPSCQueue")(8), "SPSCQueue(size=0/"),
    "FastSPSCQueue": (
        lambda: find("ring_kernels._cython:FastSPSCQueue")(8),
        "FastSPSCQueue(size=0/",
    ),
    "RingKernel": (
        lambda: _kernel("ring_kernels:RingKernel"),
        "=RingKernel(id='X', state=CREATED)",
    ),
    "RingKernelRuntime": (
        lambda: pydotcompute.RingKernelRuntime(),
        "RingKernelRuntime(active=False, kernels=0, telemetry=True, uvloop=|eager_tasks=",
    ),
    "GPUMonitor": (
        lambda: find("ring_kernels:GPUMonitor")(),
        "GPUMonitor(available=|devices=",
    ),
    "ThreadedRingKernel": (
        lambda: _kernel("ring_kernels:ThreadedRingKernel"),
        "=ThreadedRingKernel(id='X', state=CREATED, spsc=True)",
    ),
    "CythonRingKernel": (
        lambda: _kernel("ring_kernels:CythonRingKernel"),
        "=CythonRingKernel(id='X', state=CREATED, cython=True)",
    ),
    "RingKernelBuilder": (
        lambda: find("decorators.ring_kernel:RingKernelBuilder")("X"),
        "RingKernelBuilder(id='X', input=|output=",
    ),
}


@pytest.mark.parametrize("name", REPRS)
def test_repr(name):
    make, wanted = REPRS[name]
    text = repr(make())
    if wanted.startswith("="):
        assert text == wanted[1:]
    else:
        assert [part for part in wanted.split("|") if part not in text] == []


def test_repr_of_an_unavailable_device(no_gpu):
    from pydotcompute.backends.cuda import CUDABackend
    from pydotcompute.backends.metal import MetalBackend

    assert repr(CUDABackend()) == "CUDABackend(available=False)"
    assert repr(MetalBackend()) == "MetalBackend(available=False)"


def test_repr_of_a_cache(tmp_path):
    cache = find("compilation:KernelCache")(tmp_path, max_entries=4)
    assert repr(cache).startswith("KernelCache(entries=0/4, size=")
    assert repr(cache).endswith("KB)")


QUEUE_STATS = "current_size max_size total_enqueued total_dequeued"
TELEMETRY_SUMMARY = "kernel_count total_messages_processed total_messages_dropped total_errors"

#: What returns a dictionary, and the keys that it has.
KEYS = {
    "Accelerator.get_memory_info": (
        lambda: pydotcompute.Accelerator().get_memory_info(),
        "free total used",
    ),
    "CUDABackend.get_memory_info": (
        lambda: find("backends:CUDABackend")().get_memory_info(),
        "free total used",
    ),
    "MetalBackend.get_memory_info": (
        lambda: find("backends:MetalBackend")().get_memory_info(),
        "allocated buffer_count cache_memory peak_memory",
    ),
    "KernelCompiler.get_cache_stats": (
        lambda: find("compilation:KernelCompiler")().get_cache_stats(),
        "cached_kernels",
    ),
    "get_loop_info": (
        lambda: find("ring_kernels:get_loop_info")(),
        "loop_class uvloop_available uvloop_installed eager_tasks_available eager_tasks_installed "
        "platform python_version",
    ),
    "RingKernelRuntime.get_loop_info": (
        lambda: pydotcompute.RingKernelRuntime().get_loop_info(),
        "loop_class uvloop_available uvloop_installed eager_tasks_available eager_tasks_installed "
        "platform python_version runtime_uvloop_installed runtime_eager_tasks_installed",
    ),
    "RingKernelRuntime.get_summary": (
        lambda: pydotcompute.RingKernelRuntime().get_summary(),
        f"{TELEMETRY_SUMMARY} uptime_seconds gpu_utilization",
    ),
    "RingKernelRuntime.get_summary, no telemetry": (
        lambda: pydotcompute.RingKernelRuntime(enable_telemetry=False).get_summary(),
        TELEMETRY_SUMMARY,
    ),
    "TelemetryCollector.get_summary": (
        lambda: find("ring_kernels.telemetry:TelemetryCollector")().get_summary(),
        f"{TELEMETRY_SUMMARY} uptime_seconds gpu_utilization",
    ),
    "RingKernelTelemetry.to_dict": (
        lambda: find("ring_kernels:RingKernelTelemetry")().to_dict(),
        "kernel_id messages_processed messages_dropped queue_depth avg_latency_ms max_latency_ns "
        "min_latency_ns throughput error_count last_error uptime_seconds",
    ),
    "GPUMonitor.get_memory_info": (
        lambda: find("ring_kernels:GPUMonitor")().get_memory_info(),
        "used free total",
    ),
    "MessageQueue.get_stats": (
        lambda: find("ring_kernels:MessageQueue")().get_stats(),
        f"{QUEUE_STATS} total_dropped",
    ),
    "FastMessageQueue.get_stats": (
        lambda: find("ring_kernels:FastMessageQueue")().get_stats(),
        f"{QUEUE_STATS} peak_size total_dropped band_counts",
    ),
    "FastMessageQueue.get_stats, bands": (
        lambda: find("ring_kernels:FastMessageQueue")().get_stats()["band_counts"],
        "system high normal low",
    ),
    "SyncQueue.get_stats": (lambda: find("ring_kernels:SyncQueue")().get_stats(), QUEUE_STATS),
    "BufferRegistry.get_stats": (
        lambda: find("ring_kernels:get_buffer_registry")().get_stats(),
        "registered retrieved released bytes_registered active_buffers",
    ),
}


@pytest.mark.parametrize("name", KEYS)
def test_dictionary_keys(name):
    make, wanted = KEYS[name]
    assert sorted(set(wanted.split()) - set(make())) == []


def test_dictionary_keys_of_a_cache(tmp_path):
    stats = find("compilation:KernelCache")(tmp_path).get_stats()
    wanted = "entries max_entries total_size_bytes max_size_bytes total_hits cache_dir"
    assert set(wanted.split()) <= set(stats)


def test_meta_of_ring_kernels():
    from pydotcompute.decorators.ring_kernel import get_ring_kernel_meta, is_ring_kernel

    async def actor(ctx):
        return None

    made = pydotcompute.ring_kernel(
        kernel_id="contract", queue_size=2000, grid_size=4, block_size=512, auto_register=False
    )(actor)
    assert get_ring_kernel_meta(made) == {
        "kernel_id": "contract",
        "input_type": None,
        "output_type": None,
        "config": {
            "input_queue_size": 2000,
            "output_queue_size": 2000,
            "grid_size": 4,
            "block_size": 512,
            "backpressure_strategy": "block",
        },
    }
    assert made._original_func is actor
    assert is_ring_kernel(made) is True
    assert is_ring_kernel(actor) is False
    assert get_ring_kernel_meta(actor) is None


def test_meta_of_kernels():
    @pydotcompute.kernel
    def add(a, b):
        return a + b

    assert add.__name__ == "add"
    assert add._kernel_meta == {
        "name": "add",
        "device": "auto",
        "fastmath": True,
        "cache": True,
        "compiled": None,
    }
    assert add._original_func(1, 2) == 3
    assert find("decorators.kernel:cuda_source")("text")(_function).__cuda_source__ == "text"


def test_registered_kernel_has_these_keys():
    from pydotcompute.ring_kernels import runtime

    runtime.register_ring_kernel("contract_registered", _function, grid_size=2)
    assert runtime.get_registered_kernel("contract_registered") == {
        "func": _function,
        "input_type": None,
        "output_type": None,
        "config": {"grid_size": 2},
    }
    del runtime._kernel_registry["contract_registered"]


# --- private names that tests touch ---------------------------------------------------------------

SINGLETONS = [
    ("core.accelerator:Accelerator", "_instance", "core.accelerator:get_accelerator"),
    ("core.memory_pool:MemoryPool", "_instance", "core.memory_pool:get_memory_pool"),
    ("decorators.kernel:KernelRegistry", "_instance", "decorators.kernel:get_kernel_registry"),
    (
        "ring_kernels.buffer_registry:BufferRegistry",
        "_instance",
        "ring_kernels.buffer_registry:get_buffer_registry",
    ),
    ("compilation.compiler", "_global_compiler", "compilation.compiler:get_compiler"),
    ("compilation.cache", "_global_cache", "compilation.cache:get_kernel_cache"),
    ("decorators.validators", "_validator", "decorators.validators:get_validator"),
]


@pytest.mark.parametrize(("path", "name", "getter"), SINGLETONS)
def test_a_singleton_is_forgotten_by_assignment(path, name, getter, monkeypatch, tmp_path):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    owner = find(path) if ":" in path else module(path)
    first = find(getter)()
    assert find(getter)() is first
    monkeypatch.setattr(owner, name, None)
    if hasattr(owner, "_initialized") and inspect.isclass(owner):
        monkeypatch.setattr(owner, "_initialized", False)
    second = find(getter)()
    assert second is not first
    assert find(getter)() is second
    assert getattr(owner, name) is second


def test_private_attributes(tmp_path, monkeypatch):
    from pydotcompute.core.memory_pool import MemoryPool

    monkeypatch.setattr(MemoryPool, "_instance", None)
    pool = MemoryPool()
    assert pool._initialized is True
    assert pool._enabled is False
    assert pool._initial_size_mb == 0
    assert pool._max_size_mb is None
    assert isinstance(pool._cuda_available, bool)

    buffer = pydotcompute.UnifiedBuffer(4, pinned=True)
    assert buffer._pinned is True
    assert isinstance(buffer._cuda_available, bool)

    orchestrator = pydotcompute.ComputeOrchestrator()
    assert orchestrator._active is False
    assert orchestrator._registered_kernels == {}
    assert orchestrator._execution_history == []
    assert orchestrator._accelerator is None
    assert orchestrator._memory_pool is None

    compiler = find("compilation:KernelCompiler")()
    assert isinstance(compiler._options, find("compilation.compiler:CompilationOptions"))
    assert compiler._compiled_cache == {}
    assert len(compiler._get_source_hash(_function, None, compiler._options)) == 16

    cache = find("compilation:KernelCache")(str(tmp_path), max_entries=3, max_size_mb=2)
    assert cache._cache_dir == tmp_path
    assert cache._max_entries == 3
    assert cache._max_size_bytes == 2 << 20
    assert cache._entries == {}
    assert cache.store("k", "hash", "ptx")
    assert cache._get_cache_key("k", "hash") == "k_hash"
    assert cache._get_ptx_path("k_hash").exists()

    queue = find("ring_kernels:MessageQueue")()
    strategies = find("ring_kernels.queue:BackpressureStrategy")
    assert queue._backpressure is strategies.BLOCK
    queue._backpressure = strategies.REJECT
    assert queue._backpressure is strategies.REJECT
    assert queue._use_priority is True

    monitor = find("ring_kernels:GPUMonitor")()
    assert isinstance(monitor._nvml_available, bool)
    assert isinstance(monitor._device_count, int)
    monitor.shutdown()
    assert monitor._nvml_available is False

    collector = find("ring_kernels.telemetry:TelemetryCollector")()
    assert collector._kernel_telemetry == {}
    assert isinstance(collector._gpu_monitor, find("ring_kernels:GPUMonitor"))
    assert isinstance(collector._start_time, float)

    kernel = _kernel("ring_kernels:RingKernel")
    assert kernel._kernel_func is _function
    assert kernel._context is None
    assert kernel._task is None
    assert kernel._config is kernel.config

    for name in ("_to_dict", "_from_dict", "_get_fields", "_get_field_names"):
        assert hasattr(pydotcompute.RingKernelMessage, name)
    assert find("backends:MetalBackend")()._buffer_registry == {}


async def test_what_can_be_made_without_a_loop_can_be_awaited_in_one():
    """The calls of the contract that are awaited give something to await."""
    runtime = pydotcompute.RingKernelRuntime()
    assert runtime.is_active is False
    assert runtime.kernel_ids == []

    async def echo(ctx):
        while not ctx.should_terminate:
            await ctx.send(await ctx.receive(timeout=1))

    message = pydotcompute.RingKernelMessage()
    async with asyncio.timeout(10), runtime:
        await runtime.launch("echo", echo)
        await runtime.activate("echo")
        await runtime.send("echo", message)
        assert await runtime.receive("echo", timeout=1) is message
        assert (await runtime.send_and_receive("echo", message, timeout=1)).message_id == (
            message.message_id
        )
        assert runtime.get_telemetry("echo").kernel_id == "echo"
        assert runtime.get_summary()["kernel_count"] == 1
    assert runtime.kernel_ids == []
