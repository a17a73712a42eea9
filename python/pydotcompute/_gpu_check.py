"""What the package does on a CUDA device, checked there: `python -m pydotcompute._gpu_check`.

Each check prints one line of JSON: its name, whether it passed or why it was left out, and what it
measured. Every result is compared with NumPy's. It needs the driver; NVRTC, CuPy, PyTorch and numba
are used where they are. It ends with 0 if nothing failed.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import importlib
import json
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from pydotcompute import (
    RingKernelRuntime,
    UnifiedBuffer,
    _cuda,
    _optional,
    exceptions,
    message,
    ring_kernel,
)
from pydotcompute.backends.cuda import (
    CUDABackend,
    get_matrix_multiply_kernel,
    get_vector_add_kernel,
)
from pydotcompute.compilation.compiler import KernelCompiler
from pydotcompute.compilation.launch import SourceKernel
from pydotcompute.core import device_array
from pydotcompute.core.memory_pool import MemoryPool
from pydotcompute.core.unified_buffer import BufferState
from pydotcompute.decorators.kernel import cuda_source, kernel
from pydotcompute.handlers import cuda_handler
from pydotcompute.ring_kernels.lifecycle import KernelContext
from pydotcompute.ring_kernels.telemetry import GPUMonitor

# For any device, compiled by the driver: x[i] *= factor for i < n; and a kernel that writes to
# address 0.
PTX = """
.version 7.0
.target sm_70
.address_size 64

.visible .entry scale(.param .u64 x, .param .f32 factor, .param .u32 n)
{
    .reg .pred %p<2>;
    .reg .f32 %f<4>;
    .reg .b32 %r<6>;
    .reg .b64 %rd<5>;
    ld.param.u64 %rd1, [x];
    ld.param.f32 %f1, [factor];
    ld.param.u32 %r1, [n];
    mov.u32 %r2, %ctaid.x;
    mov.u32 %r3, %ntid.x;
    mov.u32 %r4, %tid.x;
    mad.lo.s32 %r5, %r2, %r3, %r4;
    setp.ge.s32 %p1, %r5, %r1;
    @%p1 bra done;
    cvta.to.global.u64 %rd2, %rd1;
    mul.wide.s32 %rd3, %r5, 4;
    add.s64 %rd4, %rd2, %rd3;
    ld.global.f32 %f2, [%rd4];
    mul.f32 %f3, %f2, %f1;
    st.global.f32 [%rd4], %f3;
done:
    ret;
}

.visible .entry stray()
{
    .reg .b32 %r<2>;
    .reg .b64 %rd<2>;
    mov.u64 %rd1, 0;
    mov.u32 %r1, 1;
    st.global.u32 [%rd1], %r1;
    ret;
}
"""

MB = 2**20

# How many messages the checks of ring kernels send; fewer where it is quick.
ASKS = 20_000

# A handler of a kernel that stays: as `_echo`.
ECHO = """
#include "dotcompute.cuh"
struct number { long long value; };
extern "C" __device__ int32_t
echo(const number *message, void *, number *reply, rk_ctx *) {
    reply->value = message->value + 1;
    return DC_HANDLER_REPLY;
}
"""


@message(layout="record")
class _Number:
    value: int


@ring_kernel(kernel_id="gpu_check_echo", input_type=_Number, output_type=_Number)
async def _echo(ctx: KernelContext[_Number, _Number]) -> None:
    while not ctx.should_terminate:
        number = await ctx.receive()
        await ctx.send(_Number(value=number.value + 1))


class LeftOutError(Exception):
    """What the check needs is not here."""


def _need(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise LeftOutError(f"{name} is not installed") from error


def _need_gpu() -> None:
    if _device().name.startswith("stand-in"):
        raise LeftOutError("a stand-in runs nothing that a compiler makes")


def _need_toolkit() -> None:
    _need_gpu()
    try:
        _cuda.toolkit()
    except exceptions.CUDAError as error:
        raise LeftOutError(str(error)) from error


def _equal(found: Any, expected: Any) -> None:
    if not np.array_equal(np.asarray(found), np.asarray(expected)):
        raise AssertionError(f"found {found!r}, not {expected!r}")


def _holds(what: str, truth: object) -> None:
    if not truth:
        raise AssertionError(f"not so: {what}")


def _device() -> Any:
    return _optional.cuda().module.device()


def _best_us(work: Callable[[], object], times: int = 20) -> float:
    """The shortest of several runs, in microseconds."""
    best = float("inf")
    for _ in range(times):
        started = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - started)
    return round(best * 1e6, 2)


def _buffer(
    shape: tuple[int, ...] | int, dtype: DTypeLike = np.float32, *, pinned: bool = False
) -> UnifiedBuffer[Any]:
    return UnifiedBuffer(shape, dtype, pinned=pinned)


def _scale() -> SourceKernel:
    return SourceKernel("scale", lambda _: PTX.encode())


# --- the checks ------------------------------------------------------------------------------


def check_device() -> dict[str, Any]:
    """The device describes itself, and its memory adds up."""
    device, limits = _device(), _device().limits()
    free, total = device.memory_info()
    _holds("free is at most total", 0 < free <= total)
    _holds("a warp has 32 threads", limits["warp_threads"] == 32)
    _holds("the backend is available", CUDABackend().is_available)
    return {"capability": device.compute_capability, "memory_bytes": total, **limits}


def check_states() -> dict[str, Any]:
    """A UnifiedBuffer through all of its states, with a kernel between them."""
    scale = _scale()
    for pinned in (False, True):
        buffer = _buffer(1000, pinned=pinned)
        _holds("no memory at first", buffer.state is BufferState.UNINITIALIZED)
        buffer.allocate()
        _holds("both copies", buffer.state is BufferState.SYNCHRONIZED)
        buffer.host[:] = np.arange(1000)
        buffer.mark_host_dirty()
        scale[4, 256](buffer, 2.0, 1000)
        _holds("the kernel wrote", buffer.state is BufferState.DEVICE_DIRTY)
        _equal(buffer.host, 2 * np.arange(1000, dtype=np.float32))
        _holds("brought back", buffer.state is BufferState.SYNCHRONIZED)
        buffer[0] = 7
        _holds("the host wrote", buffer.state is BufferState.HOST_DIRTY)
        buffer.synchronize()
        _equal(buffer.device.get()[0], 7)
        only = _buffer(10).allocate(host=False)
        _holds("the device's alone", only.state is BufferState.DEVICE_ONLY)
        _equal(only.host, np.zeros(10))
        buffer.free()
    return {}


def check_types() -> dict[str, Any]:
    """Every type and odd shape there and back, bit for bit."""
    draw = np.random.default_rng(5)
    for dtype in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "c8", "c16", "?", "i4,f8"):
        for shape in ((), (0,), (1,), (3, 5), (2, 3, 4)):
            buffer = _buffer(shape, dtype).allocate()
            data = np.frombuffer(draw.bytes(buffer.nbytes), dtype).reshape(shape)
            buffer.host[...] = data
            buffer.mark_host_dirty()
            _holds(f"{dtype} {shape}", buffer.device.get().tobytes() == data.tobytes())
    return {}


def check_copies() -> dict[str, Any]:
    """Large copies are right; what they cost, pinned and not."""
    measured: dict[str, Any] = {}
    for pinned in (False, True):
        buffer = _buffer(64 * MB, np.uint8, pinned=pinned).allocate()
        buffer.host[:] = np.arange(64 * MB, dtype=np.uint32).astype(np.uint8)
        expected = buffer.host.copy()

        def up(buffer: Any = buffer) -> None:
            buffer.mark_host_dirty()
            _ = buffer.device

        def down(buffer: Any = buffer) -> None:
            buffer.mark_device_dirty()
            _ = buffer.host

        name = "pinned" if pinned else "pageable"
        measured[f"{name}_up_gb_s"] = round(64 * MB / _best_us(up, 5) / 1000, 2)
        buffer.host[:] = 0
        measured[f"{name}_down_gb_s"] = round(64 * MB / _best_us(down, 5) / 1000, 2)
        _equal(buffer.host, expected)
    small = _buffer(1, np.float32, pinned=True).allocate()

    def round_trip() -> None:
        small.mark_host_dirty()
        _ = small.device
        small.mark_device_dirty()
        _ = small.host

    measured["four_bytes_there_and_back_us"] = _best_us(round_trip, 200)
    return measured


def check_pool() -> dict[str, Any]:
    """The pool counts, keeps its limit and gives back; what an allocation costs."""
    device, pool = _device(), MemoryPool()
    gc.collect()
    device.stream.synchronize()
    before = pool.get_stats().used_bytes

    def allocate() -> None:
        device.allocate(MB)

    measured = {"allocate_and_free_us": _best_us(allocate, 200)}
    for _ in range(1000):
        allocate()
    _equal(pool.get_stats().used_bytes, before)
    held = device.allocate(8 * MB)
    _equal(pool.get_stats().used_bytes, before + 8 * MB)
    device.set_pool_limit(before + 9 * MB)
    try:
        device.allocate(2 * MB)
    except exceptions.CUDAMemoryError as error:
        _holds("it says what to do", "limit" in str(error))
    else:
        raise AssertionError("the limit was not kept")
    finally:
        device.set_pool_limit(None)
    del held
    measured["trimmed_bytes"] = pool.trim()
    _holds("something was trimmed", measured["trimmed_bytes"] > 0)
    return measured


def check_out_of_memory() -> dict[str, Any]:
    """More memory than there is: an error with the figures, and all goes on."""
    device = _device()
    try:
        device.allocate(4 * device.memory_bytes)
    except exceptions.CUDAMemoryError as error:
        text = str(error)
    else:
        raise AssertionError("nothing was raised")
    _equal(device_array.zeros(device, 3).get(), np.zeros(3))
    return {"error": text}


def check_streams() -> dict[str, Any]:
    """Kernels in the order of their streams, and across streams by events; what a launch costs."""
    device, scale = _device(), _scale()
    first, second = device.new_stream(), device.new_stream()
    x = device_array.from_host(device, np.ones(MB, np.float32))
    for _ in range(10):
        scale[MB // 256, 256, first](x, 2.0, MB)
        second.follow(first)
        scale[MB // 256, 256, second](x, 0.5, MB)
        first.follow(second)
    _equal(x.get(), np.ones(MB, np.float32))
    early = first.record()
    scale[MB // 256, 256, first](x, 2.0, MB)
    late = first.record()
    late.synchronize()
    _holds("time goes forward", late.since_ms(early) >= 0)
    small = device_array.zeros(device, 1)
    launch = scale[1, 1, first]

    def wait() -> None:
        launch(small, 1.0, 1)
        first.synchronize()

    return {"launch_and_wait_us": _best_us(wait, 500), "kernel_ms": late.since_ms(early)}


def check_launch_errors() -> dict[str, Any]:
    """What a kernel does not take is refused before it runs."""
    device, scale = _device(), _scale()
    x = device_array.zeros(device, 4)
    told = {}
    for name, error, launch, arguments in (
        ("too few", TypeError, (1, 1), (x, 1.0)),
        ("too wide", exceptions.CUDAError, (1, 1), (x, np.float64(1), 4)),
        ("too many threads", exceptions.CUDAError, (1, 4096), (x, 1.0, 4)),
    ):
        try:
            scale[launch](*arguments)
        except error as caught:
            told[name] = str(caught)
        else:
            raise AssertionError(f"{name}: nothing was raised")
    try:
        device.load(b"\x7fELF\x02" + bytes(1000))
    except exceptions.CUDAError as caught:
        told["no image"] = str(caught)
    _equal(x.get(), np.zeros(4))
    return told


def check_cupy() -> dict[str, Any]:
    """CuPy uses our memory, and we use CuPy's, without a copy."""
    cupy = _need("cupy")
    device = _device()
    ours = device_array.from_host(device, np.arange(1000, dtype=np.float32))
    theirs = cupy.asarray(ours)
    _equal(theirs.data.ptr, ours.ptr)
    _equal(cupy.from_dlpack(ours).data.ptr, ours.ptr)
    theirs *= 3
    _equal(ours.get(), 3 * np.arange(1000, dtype=np.float32))
    made = cupy.arange(1000, dtype=cupy.float32)
    _equal(device_array.asarray(device, made).ptr, made.data.ptr)
    buffer = _buffer(1000).fill(2)
    _holds("the buffer's array is CuPy's", isinstance(buffer.device, cupy.ndarray))
    buffer.device[:] = cupy.sqrt(buffer.device)
    buffer.mark_device_dirty()
    _holds("the root of two", np.allclose(buffer.host, np.sqrt(np.float32(2))))
    pool = MemoryPool()
    pool.enable()
    try:
        used = pool.get_stats().used_bytes
        big = cupy.ones(MB, dtype=cupy.uint8)
        _holds("CuPy takes from our pool", pool.get_stats().used_bytes >= used + MB)
        _equal(int(big.sum()), MB)
    finally:
        pool.disable()
    return {"version": cupy.__version__}


def check_torch() -> dict[str, Any]:
    """PyTorch uses our memory, and we use PyTorch's, without a copy."""
    torch = _need("torch")
    if not torch.cuda.is_available():
        raise LeftOutError("PyTorch sees no CUDA device")
    device = _device()
    ours = device_array.from_host(device, np.arange(1000, dtype=np.float32))
    for tensor in (torch.as_tensor(ours, device="cuda"), torch.from_dlpack(ours)):
        _equal(tensor.data_ptr(), ours.ptr)
        tensor.mul_(2)
    _equal(ours.get(), 4 * np.arange(1000, dtype=np.float32))
    made = torch.arange(1000, device="cuda", dtype=torch.float32)
    _equal(device_array.asarray(device, made).ptr, made.data_ptr())
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        made.mul_(5)
        taken = device_array.asarray(device, made).get()
    _equal(taken, 5 * np.arange(1000, dtype=np.float32))
    buffer = _buffer(1000)
    buffer.copy_from(made)
    _equal(buffer.host, 5 * np.arange(1000, dtype=np.float32))
    return {"version": torch.__version__}


def check_numba() -> dict[str, Any]:
    """numba's own launches use our memory without a copy."""
    _need_gpu()
    numba = _need("numba")
    cuda = _need("numba.cuda")
    if not _optional.numba_cuda():
        raise LeftOutError(_optional.numba_cuda().reason)
    ours = device_array.from_host(_device(), np.arange(1000, dtype=np.float32))
    theirs = cuda.as_cuda_array(ours)
    _equal(theirs.device_ctypes_pointer.value, ours.ptr)

    def double(x: Any) -> None:
        i = cuda.grid(1)
        if i < x.size:
            x[i] *= 2

    cuda.jit(double)[4, 256](ours)
    _equal(ours.get(), 2 * np.arange(1000, dtype=np.float32))
    return {"version": numba.__version__}


def check_prebuilt() -> dict[str, Any]:
    """The kernels of the package, compiled here, for all their types."""
    _need_toolkit()
    add, multiply = get_vector_add_kernel(), get_matrix_multiply_kernel()
    draw = np.random.default_rng(6)
    for dtype in ("f4", "f8", "i4", "i8"):
        a, b = (draw.integers(-1000, 1000, 100_003).astype(dtype) for _ in range(2))
        out = np.zeros_like(a)
        add.forall(a.size)(a, b, out)
        _equal(out, a + b)
        A = draw.integers(-9, 9, (67, 129)).astype(dtype)
        B = draw.integers(-9, 9, (129, 31)).astype(dtype)
        C = np.zeros((67, 31), dtype)
        multiply[(5, 2), (16, 16)](A, B, C)
        _equal(C, A @ B)
    return {"toolkit": _cuda.toolkit().versions}


def check_source() -> dict[str, Any]:
    """CUDA C++ from a decorator, compiled by NVRTC; an error with its line."""
    _need_toolkit()

    @cuda_source(
        'extern "C" __global__ void saxpy(float a, const float *x, float *y, int n) {\n'
        "    int i = blockIdx.x * blockDim.x + threadIdx.x;\n"
        "    if (i < n) y[i] = a * x[i] + y[i];\n"
        "}\n"
    )
    def saxpy(a: float, x: Any, y: Any, n: int) -> None:
        y[:n] += a * x[:n]

    compiled = KernelCompiler().compile(saxpy)
    x, y = np.arange(1000, dtype=np.float32), np.ones(1000, np.float32)
    launched: Any = compiled.kernel
    launched[4, 256](2.0, x, y, 1000)
    _equal(y, 2 * x + 1)

    @cuda_source('extern "C" __global__ void wrong(int *x) {\n    *x = nobody;\n}\n')
    def wrong(x: Any) -> None: ...

    try:
        KernelCompiler().compile(wrong)
    except exceptions.KernelCompilationError as error:
        _holds("the line is named", "wrong.cu(2)" in str(error))
    else:
        raise AssertionError("nothing was raised")
    return {"compile_ms": round(compiled.compile_time_ms, 1)}


def check_python() -> dict[str, Any]:
    """A Python function, compiled by numba, linked and launched by us."""
    _need("numba")
    cuda = _need("numba.cuda")
    if not _optional.numba_cuda():
        raise LeftOutError(_optional.numba_cuda().reason)
    _need_toolkit()

    @kernel
    def axpy(a: Any, x: Any, y: Any, rows: Any) -> None:
        i = cuda.grid(1)
        if i < y.shape[0]:
            for j in range(rows):
                y[i, j] = a * x[i, j] + j

    x = np.random.default_rng(7).random((500, 3))
    y = np.zeros((500, 3))
    axpy[2, 256](2.5, x, y, 3)
    _holds("as NumPy", np.allclose(y, 2.5 * x + np.arange(3)))
    return {"device": axpy._device}


async def _round_trips_us(executor: str | None) -> tuple[float, float]:
    """What an awaited answer takes, p50 and p99; of a kernel there, or on the event loop."""
    device = cuda_handler("echo", ECHO, input_type=_Number, output_type=_Number)
    times = []
    async with RingKernelRuntime() as runtime:
        if executor == "cuda":
            await runtime.launch("echo", device, executor="cuda")
        else:
            await runtime.launch("echo", _echo)
        await runtime.activate("echo")
        for value in range(ASKS):
            started = time.perf_counter()
            answer = await runtime.send_and_receive("echo", _Number(value=value), timeout=30)
            times.append(time.perf_counter() - started)
            _equal(answer.value, value + 1)
        await runtime.terminate("echo", timeout=30)
    times.sort()
    return times[len(times) // 2] * 1e6, times[len(times) * 99 // 100] * 1e6


def check_round_trip() -> dict[str, Any]:
    """An awaited answer of a kernel that stays on the device, beside one of the event loop's."""
    loop_p50, loop_p99 = asyncio.run(_round_trips_us(None))
    try:
        p50, p99 = asyncio.run(_round_trips_us("cuda"))
    except exceptions.BackendNotAvailableError as error:
        raise LeftOutError(str(error)) from error
    floor = "a kernel on the event loop"
    return {
        "asyncio_p50_us": {
            "value": p50,
            "at_most": 8.0,
            "floor": {"what": floor, "value": loop_p50},
        },
        "asyncio_p99_us": {"value": p99, "floor": {"what": floor, "value": loop_p99}},
    }


def check_monitor() -> dict[str, Any]:
    """NVML's figures, and the driver's."""
    monitor = GPUMonitor()
    if not monitor.is_available:
        raise LeftOutError(monitor.unavailable_reason)
    info = monitor.get_gpu_info(0)
    _holds("it has a name", info.name not in ("", "N/A"))
    _holds("memory adds up", 0 < info.memory_used <= info.memory_total)
    return {"name": info.name, "temperature": info.temperature, "power_watts": info.power_usage}


def check_lost() -> dict[str, Any]:
    """A kernel that writes to address 0 is told to whoever waits; in a process of its own."""
    program = (
        "from pydotcompute import _gpu_check, _optional, exceptions\n"
        "from pydotcompute.compilation.launch import SourceKernel\n"
        "device = _optional.cuda().module.device()\n"
        "stream = device.new_stream()\n"
        "SourceKernel('stray', lambda _: _gpu_check.PTX.encode())[1, 1, stream]()\n"
        "try:\n"
        "    stream.synchronize()\n"
        "except exceptions.CUDAError as error:\n"
        "    print(error)\n"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    _holds(f"it is told: {done.stdout} {done.stderr}", "CUDA_ERROR_ILLEGAL_ADDRESS" in done.stdout)
    _holds("what to do is told", "start a new process" in done.stdout)
    return {"error": done.stdout.strip()}


CHECKS: dict[str, Callable[[], dict[str, Any]]] = {
    name.removeprefix("check_"): check
    for name, check in list(globals().items())
    if name.startswith("check_")
}


def run(name: str) -> dict[str, Any]:
    """Run one check, and tell what came of it."""
    found = _optional.cuda()
    told: dict[str, Any] = {"stage": "compute", "check": name}
    if not found:
        return {**told, "result": "failed", "why": found.reason}
    try:
        device = found.module.device().name
    except exceptions.CUDAError as error:
        return {**told, "result": "failed", "why": str(error)}
    told |= {"device": device, "stand_in": device.startswith("stand-in")}
    started = time.perf_counter()
    try:
        told |= {"result": "passed", "measured": CHECKS[name]()}
    except LeftOutError as why:
        told |= {"result": "left out", "why": str(why)}
    except Exception as error:
        text = "".join(traceback.format_exception_only(error)).strip()
        told |= {"result": "failed", "why": text, "where": traceback.format_exc()}
    told["seconds"] = round(time.perf_counter() - started, 3)
    return told


def main() -> int:
    """Run the checks that were named, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checks", nargs="*", help=f"of {', '.join(CHECKS)}; none: all")
    parser.add_argument("--quick", action="store_true", help="few messages: a rehearsal")
    arguments = parser.parse_args()
    if arguments.quick:
        global ASKS
        ASKS = 20
    names = arguments.checks or list(CHECKS)
    if unknown := [name for name in names if name not in CHECKS]:
        parser.error(f"unknown: {', '.join(unknown)}; there are {', '.join(CHECKS)}")
    failed = False
    for name in names:
        told = run(name)
        failed |= told["result"] == "failed"
        print(json.dumps(told, default=str), flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
