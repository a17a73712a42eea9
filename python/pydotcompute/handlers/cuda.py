"""Handlers on a GPU: in CUDA C++, or in Python.

A kernel that is launched with ``executor="cuda"`` stays on the GPU: its handler runs inside a grid
that is resident there, and its state lies in the device's memory. What runs there is a compiled
handler: a Python function with ``state=``, which numba-cuda compiles (`compile_for_cuda`), or CUDA
C++ source (`cuda_handler`). Messages and replies have at most 376 bytes; those of up to 40 are the
fastest.

Handlers are linked together as they come, and their kernels share grids. There `runtime.connect`
lets the replies of one kernel go straight into the inbox of the next on the device, and so goes
what a handler sends to its ``targets``; to kernels elsewhere both go by the host, as arrays do.
For one record a handler emits and sends 7 at most, and with the reply and what it logs those take
16 slots at most: one for 40 bytes, and another for each 48 more. What it sends for an array goes
out record by record. Only functions in CUDA C++ that have the same name, and are not the same, have
grids of their own.

A handler runs on one thread, unless a `cuda_handler` has another ``scope``: then the 32 threads of
a warp, the `block_size` of a block, or those of each of the `grid_size` blocks of a team call it
together for each message. Of another size than the defaults of 256 and 1, `block_size` is for
blocks and teams alone, and `grid_size` for teams. What the device cannot hold at once is refused at
the launch, with the numbers. Kernels of different scopes have grids of their own, and send to each
other by the host.

A message can name an array that lies on the GPU: a field annotated as `DevicePointer` takes what
`RingKernelRuntime.lend` returns for a `UnifiedBuffer` or an array of CuPy, PyTorch or numba. In
CUDA C++ it is an ``unsigned long long``, to be cast to a pointer once ``rk_acquire(ctx)`` was
called. `RingKernelRuntime.send_on_stream` sends a message when the work that writes the array is
done.

Kernels run on whatever multiprocessors the GPU gives them, among other work, unless
`ring_free_sms` sets some aside for them: then they keep off the others, and work in the stream that
it returns keeps off theirs. `ring_placements` says where they run, and why it is elsewhere.

With ``isolation="process"`` the context that all of this lives in is one of a child process
(Linux): a hardware exception, a handler that never comes back, or a SIGKILL costs that process, and
kernels with a restart policy are brought back in another one. Contexts of several processes take
turns on a device.

This has run on a stand-in for NVIDIA's libraries, and not on a GPU yet.
"""

from __future__ import annotations

import hashlib
import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydotcompute import _native
from pydotcompute.exceptions import InvalidConfigurationError
from pydotcompute.handlers.record import record_type
from pydotcompute.handlers.spec import Handler, PythonHandler, Signature, _checked_max_emit

__all__ = [
    "CudaHandler",
    "FreeMultiprocessors",
    "cuda_handler",
    "ring_free_sms",
    "ring_placements",
]


@dataclass(frozen=True)
class CudaHandler:
    """A handler in CUDA C++; `RingKernelRuntime.launch` takes it as the kernel's function.

    Attributes
    ----------
    name, source
        The function, and the translation unit that it is defined in.
    signature
        The records that it takes, keeps and makes.
    scope, shared_bytes
        How many threads call it, and the shared memory that those of a block have.
    """

    name: str
    source: str
    signature: Signature
    scope: Literal["lane", "warp", "block", "team"] = "lane"
    shared_bytes: int = 0

    def compile(self, kernel_id: str, state: Any) -> _native.CompiledHandler:
        """Refuse: it is code for a GPU.

        Raises
        ------
        InvalidConfigurationError
            Always: says how it is launched.
        """
        raise InvalidConfigurationError(
            "executor", None, f"'{self.name}' is CUDA C++, which runs on a GPU: executor='cuda'"
        )


def cuda_handler(
    name: str,
    source: str,
    *,
    input_type: type,
    output_type: type | None = None,
    state: type | None = None,
    max_emit: int = 0,
    targets: Mapping[str, type] | None = None,
    scope: Literal["lane", "warp", "block", "team"] = "lane",
    shared_bytes: int = 0,
) -> CudaHandler:
    """Make a kernel's function of CUDA C++ source.

    Parameters
    ----------
    name
        The function: ``extern "C" __device__ int32_t name(const In *, State *, Out *, rk_ctx *)``.
        It returns 1 (there is a reply), 0 (there is none) or a negative fault code.
    source
        The translation unit that defines it; it includes ``dotcompute.cuh``, which declares what it
        may call (``rk_emit``, ``rk_send``, ``rk_log``, ``rk_fault``, ``rk_tick``, ``rk_clock``; of
        several threads, see `scope`, ``rk_thread``, ``rk_threads``, ``rk_barrier``,
        ``rk_shared``, and of several blocks ``rk_block``, ``rk_blocks``, ``rk_team_barrier``). A
        long loop has to tick: nothing else can stop it. `c_struct` prints the structs of record
        classes.
    input_type, output_type, state
        The record classes that it takes, replies with and keeps; no output: it makes no replies.
    max_emit
        How many replies it emits at most for one record: 7 at most, and 6 where it has targets.
    targets
        The kernels that it can send to (``rk_send``), by the names that they have in its runtime,
        and what they take; numbered from 0 in this order.
    scope
        How many threads call it for each message, together: one ("lane"), those of a warp ("warp"),
        of a block ("block"), as many as the kernel's `block_size` says: a multiple of 32, 1024 at
        most; or of so many blocks as its `grid_size` says ("team"). They share message, state,
        reply and, in a block, shared memory, and agree on who does what by ``rk_thread``,
        ``rk_threads`` and ``rk_barrier``, which are about a block, and ``rk_block``, ``rk_blocks``
        and ``rk_team_barrier``. There is a reply if any of them says so, and a fault if any of them
        fails. The first, of the first block, emits, sends and logs: if another does, or one returns
        that others wait for at a barrier, the message fails.
    shared_bytes
        How many bytes of shared memory a kernel has, of a team's each block (``rk_shared``); none
        with the scope "lane".

    Raises
    ------
    TypeError
        A class is no record.
    InvalidConfigurationError
        The name is not one of a function of C, `max_emit` is too large, there is no such scope, or
        it has no shared memory.
    """
    if scope not in ("lane", "warp", "block", "team"):
        raise InvalidConfigurationError("scope", scope, "must be 'lane', 'warp', 'block' or 'team'")
    if isinstance(shared_bytes, bool) or not isinstance(shared_bytes, int) or shared_bytes < 0:
        reason = "must be a number of bytes, 0 or more"
        raise InvalidConfigurationError("shared_bytes", shared_bytes, reason)
    if scope == "lane" and shared_bytes:
        reason = "a handler of one lane has none: give it the scope 'warp', 'block' or 'team'"
        raise InvalidConfigurationError("shared_bytes", shared_bytes, reason)
    if not re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII):
        raise InvalidConfigurationError("name", name, "must be the name of a function of C")
    signature = Signature(
        input=record_type(input_type),
        output=record_type(output_type) if output_type is not None else None,
        state=record_type(state) if state is not None else None,
        max_emit=_checked_max_emit(max_emit),
        targets=tuple((kernel, record_type(cls)) for kernel, cls in (targets or {}).items()),
    )
    return CudaHandler(name, source, signature, scope, shared_bytes)


@dataclass(frozen=True)
class FreeMultiprocessors:
    """The multiprocessors of a GPU that are not set aside for kernels that stay.

    Attributes
    ----------
    stream
        A stream whose work runs there, and nowhere else. Other libraries take it by its handle
        (``torch.cuda.ExternalStream(stream.handle)``, ``cupy.cuda.ExternalStream(stream.handle)``)
        or by ``__cuda_stream__``.
    multiprocessors
        How many they are.
    """

    stream: _native.CudaStream
    multiprocessors: int


def ring_free_sms(aside: int = 0) -> FreeMultiprocessors:
    """Set multiprocessors of the first GPU aside for kernels, and get a stream on the others.

    Work in that stream, a product of matrices say, does not wait for the multiprocessors that
    kernels hold, nor they for it. Work in other streams may still run on those set aside. The first
    call decides for the process, and comes before the first kernel on the GPU; later ones return
    other streams on the same multiprocessors. Without it none are set aside: that this pays has not
    been seen on a GPU yet. It is about kernels whose context is this process's, and takes a driver
    of CUDA 12.4 or newer.

    Parameters
    ----------
    aside
        How many to set aside at least; the driver rounds up (to 8 on an H100).

    Raises
    ------
    InvalidConfigurationError
        `aside` is no number of multiprocessors.
    CUDAError
        Kernels were there before, or none can be set aside: says why. Kernels run then as without.
    BackendNotAvailableError
        There is no GPU, driver or compiler: says what is missing.
    """
    if isinstance(aside, bool) or not isinstance(aside, int) or not 0 <= aside < 1 << 31:
        reason = "must be a number of multiprocessors, 0 or more"
        raise InvalidConfigurationError("aside", aside, reason)
    handle, multiprocessors = _native._ring_free_sms(aside)
    from pydotcompute.ring_kernels import _lend  # with what few programs use

    return FreeMultiprocessors(_lend.as_stream(handle), multiprocessors)


def ring_placements() -> list[str]:
    """Get where kernels run on the GPU: a text for each grid of them that is there.

    A grid that wanted multiprocessors of its own and did not get them says why.
    """
    return _native._ring_placements()


#: The threads of a block that one kernel has at most, and what a kernel has that says nothing.
_BLOCK_MAX = 1024
_BLOCK_DEFAULT = 256


def _threads(handler: Handler | None, grid_size: int, block_size: int) -> tuple[int, int]:
    """How many blocks of how many threads call the handler.

    Raises
    ------
    InvalidConfigurationError
        The sizes make no sense with its scope: says what does.
    """
    scope = handler.scope if isinstance(handler, CudaHandler) else "lane"
    if grid_size != 1 and scope != "team":
        reason = (
            f"a handler of scope '{scope}' has one block at most: leave it out, or give a "
            "cuda_handler the scope 'team'"
        )
        raise InvalidConfigurationError("grid_size", grid_size, reason)
    if scope in ("block", "team"):
        if block_size % 32 or not 32 <= block_size <= _BLOCK_MAX:
            reason = (
                f"of a handler of scope '{scope}' a multiple of 32 threads, {_BLOCK_MAX} at most"
            )
            raise InvalidConfigurationError("block_size", block_size, reason)
        return grid_size, block_size
    threads = 32 if scope == "warp" else 1
    if block_size not in (threads, _BLOCK_DEFAULT):
        has = "one thread" if threads == 1 else f"{threads} threads"
        reason = (
            f"a handler of scope '{scope}' has {has}: leave it out, or give a cuda_handler the "
            "scope 'block'"
        )
        raise InvalidConfigurationError("block_size", block_size, reason)
    return 1, threads


def _symbol(handler: PythonHandler) -> str:
    """The name of the function on the device: handlers of the same name are linked together."""
    function = handler.function
    code = function.__code__
    text = f"{function.__module__}.{function.__qualname__} {code.co_filename}:{code.co_firstlineno}"
    # Of one definition there may be several functions.
    text += repr(sorted(inspect.getclosurevars(function).nonlocals.items()))
    return f"{function.__name__}_{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def link(
    kernel_id: str,
    handler: Handler | None,
    state: Any,
    isolation: str = "thread",
    grid_size: int = 1,
    block_size: int = _BLOCK_DEFAULT,
) -> _native.CudaKernel:
    """Compile a handler and link it for the first GPU, with this initial state; for a context in
    this process, or in one of its own. It has as many threads as its scope and the sizes say.

    Raises
    ------
    BackendNotAvailableError
        There is no GPU, or no driver or compiler: says what is missing.
    KernelCompilationError
        The handler does not compile: says where and why.
    InvalidConfigurationError
        It cannot run on a GPU: says why.
    """
    if not isinstance(handler, CudaHandler | PythonHandler):
        reason = "runs compiled handlers: a function with state=, or a cuda_handler"
        raise InvalidConfigurationError("executor", "cuda", reason)
    signature = handler.signature
    scope, shared_bytes = "lane", 0
    blocks, threads = _threads(handler, grid_size, block_size)
    code: tuple[str, str, str | bytes]
    if isinstance(handler, CudaHandler):
        scope, shared_bytes = handler.scope, handler.shared_bytes
        code = ("source", handler.name, handler.source)
    else:
        from pydotcompute.handlers._cuda import compile_for_cuda

        # First of all whether there is a GPU, and which.
        capability = _native._cuda_capability()
        symbol = _symbol(handler)
        compiled = compile_for_cuda(handler, symbol=symbol, compute_capability=capability)
        code = ("ltoir", compiled.symbol, compiled.data)
    kept = signature.state
    if kept is None:
        if state is not None:
            raise InvalidConfigurationError("state", state, "the handler keeps no state")
        layout, initial = None, b""
    else:
        layout, initial = kept.layout, kept.as_bytes(kept.cls() if state is None else state)
    children = None
    if isolation == "process":
        from pydotcompute.ring_kernels import _process

        run = "from pydotcompute import _native; _native._serve_cuda()"
        children = (_process.command(run), _process.sink)
    return _native.CudaKernel(
        kernel_id,
        code,
        signature.input,
        signature.output,
        layout,
        initial,
        signature.max_emit,
        [(name, target.layout) for name, target in signature.targets],
        (scope, blocks, threads, shared_bytes),
        children,
    )
