"""The orchestrator: runs kernels and keeps records."""

import asyncio
from uuid import UUID

import pytest

from pydotcompute import exceptions
from pydotcompute.core.accelerator import Accelerator
from pydotcompute.core.memory_pool import MemoryPool
from pydotcompute.core.orchestrator import (
    ComputeOrchestrator,
    KernelExecution,
    KernelLaunchConfig,
)


@pytest.fixture(autouse=True)
def _fresh(monkeypatch):
    monkeypatch.setattr(MemoryPool, "_instance", None)
    monkeypatch.setattr(Accelerator, "_instance", None)
    monkeypatch.setattr(Accelerator, "_initialized", False)


def test_launch_config():
    config = KernelLaunchConfig()
    assert (config.grid_size, config.block_size) == ((1,), (256,))
    assert (config.shared_memory_bytes, config.stream) == (0, None)
    config = KernelLaunchConfig(4, 128)
    assert (config.grid_size, config.block_size) == ((4,), (128,))


def test_execution_record():
    record = KernelExecution()
    assert isinstance(record.execution_id, UUID)
    assert record.execution_id != KernelExecution().execution_id
    assert (record.kernel_name, record.start_time, record.end_time) == ("", 0.0, 0.0)
    assert (record.success, record.error, record.result) == (False, None, None)
    assert record.config == KernelLaunchConfig()
    assert record.config is not KernelExecution().config
    assert KernelExecution(start_time=1.0, end_time=1.5).duration_ms == 500.0


async def test_life(no_gpu):
    orchestrator = ComputeOrchestrator()
    assert orchestrator._active is False
    assert orchestrator._registered_kernels == {}
    assert orchestrator._execution_history == []
    assert orchestrator.accelerator is None
    assert orchestrator.memory_pool is None
    await orchestrator.shutdown()
    async with orchestrator as entered:
        assert entered is orchestrator
        assert orchestrator.is_active
        await orchestrator.initialize()
        assert orchestrator._accelerator is orchestrator.accelerator is not None
        assert orchestrator._memory_pool is orchestrator.memory_pool is not None
        assert orchestrator.memory_pool.enabled
        orchestrator.synchronize()
        assert orchestrator.create_stream() is None
        async with orchestrator.stream_context() as stream:
            assert stream is None
        text = repr(orchestrator)
        assert text == "ComputeOrchestrator(active=True, kernels=0, executions=0)"
        async with ComputeOrchestrator() as other:
            assert other.is_active
            assert orchestrator.is_active
    assert not orchestrator.is_active
    await orchestrator.shutdown()


async def test_kernels_by_name_and_by_object(no_gpu):
    def double(x):
        return 2 * x

    async def triple(x):
        await asyncio.sleep(0)
        return 3 * x

    async with ComputeOrchestrator() as orchestrator:
        orchestrator.register_kernel("d", double)
        assert orchestrator.get_kernel("d") is double
        assert orchestrator.get_kernel("x") is None
        config = KernelLaunchConfig()
        record = await orchestrator.launch_kernel("d", config, 2)
        assert (record.kernel_name, record.success, record.config) == ("d", True, config)
        assert record.end_time >= record.start_time > 0
        record = await orchestrator.launch_kernel(triple, config, x=2)
        assert record.kernel_name == "triple"
        with pytest.raises(ValueError, match="not registered"):
            await orchestrator.launch_kernel("x", config)
        await orchestrator.launch_kernel(double, config, 1)
        assert [r.kernel_name for r in orchestrator.get_execution_history()] == [
            "d",
            "triple",
            "double",
        ]
        assert [r.kernel_name for r in orchestrator.get_execution_history(limit=2)] == [
            "triple",
            "double",
        ]
        assert len(orchestrator.get_execution_history(kernel_name="d")) == 1
        assert len(orchestrator.get_execution_history(limit=5, kernel_name="triple")) == 1
        assert orchestrator.get_execution_history(limit=0) == []
        orchestrator.clear_execution_history()
        assert orchestrator.get_execution_history() == []


async def test_e11_the_result_is_kept(no_gpu):
    async def triple(x):
        return 3 * x

    async with ComputeOrchestrator() as orchestrator:
        record = await orchestrator.launch_kernel(triple, KernelLaunchConfig(), 5)
        assert record.result == 15


async def test_failures_are_recorded_and_raised_unchanged(no_gpu):
    failure = RuntimeError("no")

    def fail():
        raise failure

    async with ComputeOrchestrator() as orchestrator:
        with pytest.raises(RuntimeError) as caught:
            await orchestrator.launch_kernel(fail, KernelLaunchConfig())
        assert caught.value is failure
        (record,) = orchestrator.get_execution_history()
        assert record.error is failure
        assert record.success is False


async def test_e11_the_history_is_bounded(no_gpu):
    async with ComputeOrchestrator(max_history=3) as orchestrator:
        for i in range(10):
            await orchestrator.launch_kernel(lambda i=i: i, KernelLaunchConfig())
        assert [r.result for r in orchestrator.get_execution_history()] == [7, 8, 9]
    with pytest.raises(ValueError, match="max_history"):
        ComputeOrchestrator(max_history=-1)


async def test_e11_nothing_runs_after_the_shutdown(no_gpu):
    async with ComputeOrchestrator() as orchestrator:
        pass
    with pytest.raises(RuntimeError, match="shut down"):
        await orchestrator.launch_kernel(print, KernelLaunchConfig())
    await orchestrator.initialize()
    assert (await orchestrator.launch_kernel(int, KernelLaunchConfig())).success
    await orchestrator.shutdown()


class CudaKernel:
    """Looks like a CUDA kernel of numba; tells how it was launched."""

    __cuda_kernel__ = True
    __name__ = "cuda_kernel"

    def __getitem__(self, launch):
        return lambda *args: (launch, args)


async def test_e11_stream_and_shared_memory_reach_the_launch(cupy):
    async with ComputeOrchestrator() as orchestrator:
        run = orchestrator.launch_kernel
        record = await run(CudaKernel(), KernelLaunchConfig(2, 64), 1)
        assert record.result == (((2,), (64,)), (1,))
        record = await run(CudaKernel(), KernelLaunchConfig(2, 64, shared_memory_bytes=512))
        assert record.result == (((2,), (64,), 0, 512), ())
        stream = orchestrator.create_stream()
        record = await run(CudaKernel(), KernelLaunchConfig(2, 64, 0, stream))
        assert record.result == (((2,), (64,), stream.ptr, 0), ())
        record = await run(lambda: stream.inside, KernelLaunchConfig(stream=stream))
        assert (record.result, stream.inside) == (1, 0)


async def test_e12_stream_context_uses_its_stream(cupy):
    async with ComputeOrchestrator() as orchestrator:
        entered = asyncio.Event()
        leave = asyncio.Event()

        async def inside():
            async with orchestrator.stream_context() as stream:
                entered.set()
                await leave.wait()
                record = await orchestrator.launch_kernel(CudaKernel(), KernelLaunchConfig())
                assert record.result[0] == ((1,), (256,), stream.ptr, 0)
                record = await orchestrator.launch_kernel(
                    lambda: stream.inside, KernelLaunchConfig()
                )
                assert record.result == 1
            assert stream.waits == 1
            assert stream.inside == 0
            record = await orchestrator.launch_kernel(CudaKernel(), KernelLaunchConfig())
            assert record.result[0] == ((1,), (256,))

        task = asyncio.create_task(inside())
        await entered.wait()
        # Another task is not on that stream.
        record = await orchestrator.launch_kernel(CudaKernel(), KernelLaunchConfig())
        assert record.result[0] == ((1,), (256,))
        leave.set()
        await asyncio.wait_for(task, 10)
        record = await orchestrator.launch_kernel(CudaKernel(), KernelLaunchConfig())
        assert record.result[0] == ((1,), (256,))


@pytest.mark.parametrize("size", [0, -1, "a", 1.5, (1, 2, 3, 4), (1, 0), True, None])
def test_e11_a_launch_that_is_none_is_refused(size):
    with pytest.raises(exceptions.InvalidConfigurationError, match="grid_size"):
        KernelLaunchConfig(grid_size=size)
    with pytest.raises(exceptions.InvalidConfigurationError, match="block_size"):
        KernelLaunchConfig(block_size=size)
    with pytest.raises(exceptions.InvalidConfigurationError, match="shared_memory_bytes"):
        KernelLaunchConfig(shared_memory_bytes=-1)
