"""The extension module: dotcompute for Python."""

import os
from collections.abc import Callable, Coroutine, Generator, Iterable, Sequence
from types import GenericAlias
from typing import Any, Generic, Self, TypeVar, final
from uuid import UUID

import numpy.typing as npt
from typing_extensions import Buffer, disjoint_base

__all__ = [
    "CUDA_KERNELS",
    "Actor",
    "ActorContext",
    "Awaitable",
    "CompiledHandler",
    "ContextHandle",
    "CudaDevice",
    "CudaEvent",
    "CudaFunction",
    "CudaKernel",
    "CudaMemory",
    "CudaModule",
    "CudaMonitor",
    "CudaStream",
    "CudaToolkit",
    "DevicePointer",
    "FastMessageQueue",
    "FastSPSCQueue",
    "Flag",
    "HandlerCall",
    "HostBuffer",
    "HostPool",
    "HostView",
    "LayoutHandle",
    "Lease",
    "MessageBase",
    "MessageQueueBase",
    "PageRankGraph",
    "Pool",
    "ProcessHost",
    "RecordCodec",
    "RecordLayout",
    "RecordMemory",
    "RingBuffer",
    "Runtime",
    "SPSCQueue",
    "SyncQueue",
    "ThreadContext",
    "ThreadKernel",
    "ThreadQueue",
    "_after_fork",
    "_after_fork_in_parent",
    "_before_fork",
    "_close_all",
    "_cuda_capability",
    "_join_threads",
    "_launch_cuda",
    "_launch_process",
    "_lend",
    "_own_methods",
    "_ring_free_sms",
    "_ring_placements",
    "_serve_cuda",
    "cuda_devices",
    "decode_any_message",
    "decode_message",
    "encode_message",
    "export_dlpack",
    "import_dlpack",
    "message_header",
    "new_message_id",
    "reseed_message_ids",
    "set_qualified",
]

_T = TypeVar("_T")

# --- buffer.rs -------------------------------------------------------------------------------

@final
class HostBuffer:
    """Bytes of main memory, aligned to 128 and zero-filled; lends them by the buffer protocol."""

    def __new__(cls, nbytes: int) -> HostBuffer: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def address(self) -> int: ...
    @property
    def __array_interface__(self) -> dict[str, Any]: ...
    def __len__(self) -> int: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...

@final
class HostPool:
    """A pool of main memory; thread-safe."""

    def __new__(cls) -> HostPool: ...
    def allocate(self, nbytes: int, *, zeroed: bool = True) -> HostBuffer: ...
    def reserve(self, nbytes: int) -> None: ...
    def trim(self, keep_bytes: int = 0) -> int: ...
    def set_limit(self, limit_bytes: int | None) -> None: ...
    def reset_peak(self) -> None: ...
    def stats(self) -> dict[str, int | None]: ...

class HostView:
    """Base class that lends the buffer of the subclass's `host` array."""

    def __new__(cls, *_args: Any, **_kwargs: Any) -> HostView: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...

# --- cuda/ -----------------------------------------------------------------------------------

CUDA_KERNELS: str

def cuda_devices() -> int:
    """Count the CUDA devices that this process may use.

    Raises
    ------
    CUDAError
        There is no driver that can be used: why, and what to do.
    """

@final
class CudaDevice:
    """One CUDA device, with a stream of its own for copies; thread-safe."""

    def __new__(cls, ordinal: int) -> CudaDevice: ...
    @property
    def ordinal(self) -> int: ...
    @property
    def name(self) -> str: ...
    @property
    def compute_capability(self) -> tuple[int, int]: ...
    @property
    def multiprocessors(self) -> int: ...
    @property
    def memory_bytes(self) -> int: ...
    @property
    def stream(self) -> CudaStream: ...
    def limits(self) -> dict[str, Any]: ...
    def memory_info(self) -> tuple[int, int]: ...
    def new_stream(self) -> CudaStream: ...
    def stream_at(self, handle: int) -> CudaStream: ...
    def allocate(self, nbytes: int, stream: CudaStream | None = None) -> CudaMemory: ...
    def pool_stats(self) -> dict[str, int | None]: ...
    def set_pool_limit(self, limit_bytes: int | None) -> None: ...
    def trim_pool(self, keep_bytes: int = 0) -> int: ...
    def pinned_pool(self) -> HostPool: ...
    def load(self, image: bytes) -> CudaModule: ...

@final
class CudaStream:
    """A queue of work on a device; thread-safe. Hashable by its handle."""

    @property
    def handle(self) -> int: ...
    @property
    def ptr(self) -> int: ...
    def __cuda_stream__(self) -> tuple[int, int]: ...
    def synchronize(self) -> None: ...
    def done(self) -> Awaitable[None]: ...
    def is_idle(self) -> bool: ...
    def record(self) -> CudaEvent: ...
    def wait(self, event: CudaEvent) -> None: ...
    def follow(self, other: CudaStream) -> None: ...
    def read_at(self, address: int, array: Buffer) -> None: ...
    def write_at(self, address: int, array: Buffer) -> None: ...
    def __eq__(self, other: object, /) -> bool: ...
    def __hash__(self) -> int: ...

@final
class CudaEvent:
    """A point in a stream; thread-safe."""

    def is_done(self) -> bool: ...
    def synchronize(self) -> None: ...
    def since_ms(self, earlier: CudaEvent) -> float: ...

@final
class CudaMemory:
    """Memory of a device's pool, freed when nobody refers to it any more."""

    @property
    def address(self) -> int: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def stream(self) -> CudaStream: ...
    def used_on(self, stream: CudaStream) -> None: ...
    def write(self, array: Buffer, stream: CudaStream) -> None: ...
    def read(self, array: Buffer, stream: CudaStream) -> None: ...
    def copy_from(self, address: int, nbytes: int, stream: CudaStream) -> None: ...
    def fill(self, value: int, stream: CudaStream) -> None: ...

@final
class CudaToolkit:
    """NVIDIA's compiler, and the linker if there is one; thread-safe."""

    def __new__(cls, environments: Sequence[str | os.PathLike[str]]) -> CudaToolkit: ...
    @property
    def versions(self) -> tuple[tuple[int, int], tuple[int, int] | None]: ...
    def compile(self, source: str, name: str, options: Sequence[str]) -> tuple[bytes, str]: ...
    def link(self, parts: Sequence[tuple[str, str, bytes]], options: Sequence[str]) -> bytes: ...

@final
class CudaModule:
    """Loaded code."""

    def function(self, name: str) -> CudaFunction: ...

@final
class CudaFunction:
    """A kernel; thread-safe."""

    @property
    def name(self) -> str: ...
    @property
    def parameters(self) -> list[int] | None: ...
    def needs(self) -> dict[str, int]: ...
    def best_block_threads(self, shared_bytes: int = 0) -> int: ...
    def launch(
        self,
        grid: Sequence[int],
        block: Sequence[int],
        shared_bytes: int,
        stream: CudaStream,
        arguments: Sequence[bytes],
    ) -> None: ...

@final
class CudaMonitor:
    """NVIDIA's management library."""

    def __new__(cls) -> CudaMonitor: ...
    def device_count(self) -> int: ...
    def reading(self, index: int) -> dict[str, Any]: ...

def export_dlpack(
    owner: object,
    address: int,
    shape: Sequence[int],
    strides: Sequence[int],
    dtype: tuple[int, int],
    device: tuple[int, int],
    versioned: bool,
) -> Any: ...
def import_dlpack(
    capsule: Any,
) -> tuple[
    int,
    tuple[int, ...],
    tuple[int, ...] | None,
    tuple[int, int, int],
    tuple[int, int],
    object,
]: ...

# --- message.rs ------------------------------------------------------------------------------

class MessageBase:
    """What every message has; not for direct use, see `RingKernelMessage`."""

    message_id: UUID
    priority: int
    correlation_id: UUID | None

    def __new__(cls, *_args: Any, **_kwargs: Any) -> Self: ...
    def __init__(self, *args: Any, **kwargs: Any) -> None: ...
    def serialize(self) -> bytes:
        """Return the bytes of this message.

        Raises
        ------
        MessageSerializationError
            A field holds what has no form in a message.
        """

    @classmethod
    def deserialize(cls, data: Buffer) -> Self:
        """Read a message of this class.

        Raises
        ------
        MessageDeserializationError
            The bytes are none.
        """

@final
class LayoutHandle:
    """What is known about the fields of one class of messages; its `__message_layout__`."""

def encode_message(message: Any) -> bytes:
    """Return the bytes of a message of any class, as `MessageBase.serialize`."""

def decode_message(class_: type[_T], data: Buffer, any_map: bool = False, /) -> _T:
    """Read a message of any class, as `MessageBase.deserialize`."""

def decode_any_message(data: Buffer, fallback: type[Any]) -> Any:
    """Read a message of the registered class that the bytes name, or a `fallback`."""

def message_header(message: Any) -> tuple[int | None, int | None, int]:
    """Return the bits of `message_id` and `correlation_id`, and the priority, of any object."""

def new_message_id() -> UUID:
    """Return a new id (a UUID of version 4), without a system call."""

def reseed_message_ids() -> None:
    """Start the generator of ids anew, in a child process after a fork."""

def set_qualified(class_: type[Any], is_qualified: bool, /) -> None:
    """Say whether the bytes of this class's messages carry its name in full."""

# --- queues -----------------------------------------------------------------------------------

@final
class Awaitable(Coroutine[Any, Any, _T]):
    """Something in progress that a task awaits, such as the `put` or `get` of an asyncio queue.

    It does nothing until it is driven, and belongs to the loop that drives it. Cancelled, a get has
    taken nothing; a put has put its message or has not, and holds nobody up.
    """

    def __await__(self) -> Generator[Any, Any, _T]: ...
    def __iter__(self) -> Generator[Any, Any, _T]: ...
    def __next__(self) -> Any: ...
    def send(self, value: Any, /) -> Any: ...
    def throw(self, typ: Any, val: Any = None, tb: Any = None, /) -> Any: ...
    def close(self) -> None: ...

@disjoint_base
class FastMessageQueue(Generic[_T]):
    """The default queue of a ring kernel: four priority bands, each in the order of arrival.

    A band in which messages wait is passed over by at most 256 deliveries in a row.

    Parameters
    ----------
    maxsize
        The most messages that it holds, of all bands together; 0 means no limit.
    kernel_id
        The name under which errors speak of it.
    serialize
        Keep the bytes of `message.serialize()` instead of the message; a get makes a new message
        of them, by the class's `deserialize`.
    """

    def __new__(
        cls, maxsize: int = 4096, *, kernel_id: str = "", serialize: bool = False
    ) -> Self: ...
    def __class_getitem__(cls, key: Any) -> GenericAlias: ...
    @property
    def maxsize(self) -> int:
        """The most messages that it holds; 0: no limit."""
    @property
    def qsize(self) -> int:
        """How many messages it holds now."""
    @property
    def empty(self) -> bool:
        """Whether it holds none now."""
    @property
    def full(self) -> bool:
        """Whether it has no room now."""
    def put(self, message: _T, *, timeout: float | None = None) -> Awaitable[bool]:
        """Put a message; wait for room.

        Parameters
        ----------
        message
            Its attribute `priority` (0 to 255, 128 if there is none) picks the band.
        timeout
            Seconds; None waits for ever, 0 not at all.

        Raises
        ------
        SendTimeoutError
            If there is no room in time: a `QueueFullError` and a `QueueTimeoutError`.
        """
    def get(self, *, timeout: float | None = None) -> Awaitable[_T]:
        """Take the next message; wait for one.

        Parameters
        ----------
        timeout
            Seconds; None waits for ever, 0 not at all.

        Raises
        ------
        QueueTimeoutError
            If none comes in time.
        """
    def put_nowait(self, message: _T) -> bool:
        """Put a message if there is room; whether there was. May be called from any thread."""
    def get_nowait(self) -> _T | None:
        """Take the next message if there is one. May be called from any thread."""
    def put_batch(self, messages: Iterable[_T]) -> int:
        """Put as many as there is room for, from the first; tell how many."""
    def get_batch(self, max_count: int) -> list[_T]:
        """Take up to `max_count` messages that are there, in the order of delivery."""
    def clear(self) -> int:
        """Drop all messages; tell how many. They count as dropped."""
    def get_stats(self) -> dict[str, Any]:
        """Count: ``total_enqueued == total_dequeued + total_dropped + current_size``."""
    def __len__(self) -> int: ...

@disjoint_base
class RingBuffer(Generic[_T]):
    """A plain bounded queue for asyncio tasks.

    Parameters
    ----------
    capacity
        The most that it holds, at least 1; rounded up to a power of two.
    """

    def __new__(cls, capacity: int = 4096) -> Self: ...
    def __class_getitem__(cls, key: Any) -> GenericAlias: ...
    @property
    def capacity(self) -> int:
        """The most that it holds."""
    @property
    def size(self) -> int:
        """How many it holds now."""
    @property
    def empty(self) -> bool:
        """Whether it holds none now."""
    @property
    def full(self) -> bool:
        """Whether it has no room now."""
    def put(self, item: _T, *, timeout: float | None = None) -> Awaitable[bool]:
        """Put an object; wait for room. False if there was none within `timeout` seconds."""
    def get(self, *, timeout: float | None = None) -> Awaitable[_T | None]:
        """Take the next object; wait for one. None if none came within `timeout` seconds."""
    def put_nowait(self, item: _T) -> bool:
        """Put an object if there is room; whether there was."""
    def get_nowait(self) -> _T | None:
        """Take the next object if there is one."""
    def clear(self) -> int:
        """Drop all; tell how many."""
    def __len__(self) -> int: ...

@disjoint_base
class MessageQueueBase(Generic[_T]):
    """What `MessageQueue` is made of."""

    def __new__(cls, maxsize: int, policy: str, use_priority: bool, kernel_id: str) -> Self: ...
    def __class_getitem__(cls, key: Any) -> GenericAlias: ...
    _policy: str
    _use_priority: bool
    @property
    def maxsize(self) -> int:
        """The most messages that it holds; 0: no limit."""
    @property
    def qsize(self) -> int:
        """How many messages it holds now."""
    @property
    def empty(self) -> bool:
        """Whether it holds none now."""
    @property
    def full(self) -> bool:
        """Whether it has no room now."""
    def put(self, message: _T, *, timeout: float | None = None) -> Awaitable[bool]:
        """Put a message; what happens if there is no room is the backpressure strategy's to say.

        Parameters
        ----------
        message
            Its attribute `priority` (0 to 255, 128 if there is none) says when its turn is.
        timeout
            Seconds to wait for room; None waits for ever, 0 not at all.

        Raises
        ------
        QueueFullError
            If there is no room and the strategy is to reject.
        SendTimeoutError
            If there is no room in time and the strategy is to block.
        """
    def get(self, *, timeout: float | None = None) -> Awaitable[_T]:
        """Take the next message; wait for one.

        Parameters
        ----------
        timeout
            Seconds; None waits for ever, 0 not at all.

        Raises
        ------
        QueueTimeoutError
            If none comes in time.
        """
    def put_nowait(self, message: _T) -> bool:
        """Put a message without waiting; False if there is no room and none is made."""
    def get_nowait(self) -> _T | None:
        """Take the next message if there is one. May be called from any thread."""
    def clear(self) -> int:
        """Drop all messages; tell how many. They count as dropped."""
    def get_stats(self) -> dict[str, int]:
        """Count: ``total_enqueued == total_dequeued + total_dropped + current_size``."""
    def __len__(self) -> int: ...

@disjoint_base
class ThreadQueue(Generic[_T]):
    """What the queues between threads have in common.

    Any number of producers and consumers may use them, whatever their names say. Thread-safe; a
    thread that waits has released the GIL.
    """

    def __class_getitem__(cls, key: Any) -> GenericAlias: ...
    @property
    def empty(self) -> bool:
        """Whether it holds none now."""
    @property
    def full(self) -> bool:
        """Whether it has no room now."""
    @property
    def closed(self) -> bool:
        """Whether it was shut down: why a put was refused that found room."""
    def _offer(self, item: _T, timeout: float | None) -> bool: ...
    def _take(self, timeout: float | None, default: Any, spin_wait_ns: int = 0) -> _T | Any: ...
    def put_nowait(self, item: _T) -> bool:
        """Put an object without waiting; False if the queue is full or shut down."""
    def get_nowait(self, default: Any = None) -> _T | Any:
        """Take the next object if there is one, else `default`."""
    def clear(self) -> int:
        """Drop all; tell how many."""
    def shutdown(self) -> None:
        """Take nothing more, and wake everybody who waits. What is queued may still be taken."""
    def __len__(self) -> int: ...

class SyncQueue(ThreadQueue[_T]):
    """A queue between threads that raises when something cannot be.

    Parameters
    ----------
    maxsize
        The most that it holds; 0 means no limit.
    """

    def __new__(cls, maxsize: int = 4096) -> Self: ...
    @property
    def maxsize(self) -> int:
        """The most that it holds; 0: no limit."""
    @property
    def qsize(self) -> int:
        """How many it holds now."""
    def put(self, item: _T, timeout: float | None = None) -> bool:
        """Put an object; wait for room. Returns True.

        Raises
        ------
        SendTimeoutError
            If there is no room within `timeout` seconds.
        RuntimeError
            If the queue is shut down.
        """
    def get(self, timeout: float | None = None) -> _T:
        """Take the next object; wait for one.

        Raises
        ------
        QueueTimeoutError
            If none comes within `timeout` seconds.
        RuntimeError
            If the queue is shut down and empty.
        """
    def get_stats(self) -> dict[str, int]:
        """Tell current_size, max_size, total_enqueued and total_dequeued."""

class SPSCQueue(ThreadQueue[_T]):
    """A queue between threads that returns a value when something cannot be.

    Parameters
    ----------
    capacity
        The most that it holds, at least 1; rounded up to a power of two.
    """

    def __new__(cls, capacity: int = 4096) -> Self: ...
    @property
    def capacity(self) -> int:
        """The most that it holds."""
    @property
    def size(self) -> int:
        """How many it holds now."""
    def put(self, item: _T, timeout: float | None = None) -> bool:
        """Put an object; wait for room.

        False if there was none within `timeout` seconds, or the queue is shut down (`closed`).
        """
    def get(self, timeout: float | None = None, default: Any = None) -> _T | Any:
        """Take the next object; wait for one.

        `default` if none came within `timeout` seconds, or the queue is shut down and empty.
        """

@disjoint_base
class Flag:
    """Whether something has happened: what an event has besides, for the native half to read."""

    def __new__(cls) -> Self: ...
    def is_set(self) -> bool: ...
    def _raise(self, raised: bool) -> None: ...

@disjoint_base
class ThreadContext:
    """The native half of `ThreadedKernelContext`."""

    def __new__(cls, *_args: Any, **_kwargs: Any) -> Self: ...
    @property
    def input_queue(self) -> Any: ...
    @input_queue.setter
    def input_queue(self, value: Any) -> None: ...
    @property
    def output_queue(self) -> Any: ...
    @output_queue.setter
    def output_queue(self, value: Any) -> None: ...
    @property
    def _shutdown_event(self) -> Any: ...
    @_shutdown_event.setter
    def _shutdown_event(self, value: Any) -> None: ...
    @property
    def _output_type(self) -> Any: ...
    @_output_type.setter
    def _output_type(self, value: Any) -> None: ...
    @property
    def should_terminate(self) -> bool:
        """Whether the kernel was told to stop."""
    def receive(self, timeout: float | None = None) -> Any:
        """Wait for the next message.

        Parameters
        ----------
        timeout
            Seconds; None waits until a message comes or the kernel is told to stop.

        Returns
        -------
        The message, or None if none came in time or the kernel is told to stop and none is left.
        """
    def send(self, message: Any, timeout: float | None = None) -> bool:
        """Reply; wait for room.

        Parameters
        ----------
        message
            The reply; any object, also None.
        timeout
            Seconds; None waits until there is room or the kernel is told to stop.

        Returns
        -------
        Whether the reply is on its way: False if there was no room in time, or the kernel was told
        to stop.

        Raises
        ------
        TypeValidationError
            If the reply is not of the kernel's `output_type`.
        """

@disjoint_base
class ThreadKernel:
    """The native half of `ThreadedRingKernel` and `CythonRingKernel`."""

    def __new__(cls, *_args: Any, **_kwargs: Any) -> Self: ...
    def _connect(
        self,
        input_queue: ThreadQueue[Any],
        output_queue: ThreadQueue[Any],
        send_timeout: float | None,
        receive_timeout: float | None,
    ) -> None: ...
    def _allow(self, sends: bool, receives: bool) -> None: ...
    def send(self, message: Any, timeout: float | None = None) -> bool:
        """Send a message to the kernel; wait for room.

        Parameters
        ----------
        message
            Any object, also None.
        timeout
            Seconds; what None means is the class's to say.

        Returns
        -------
        Whether it was sent; False if there was no room in time.

        Raises
        ------
        KernelFailedError
            If the kernel's function raised.
        KernelStateError
            If the kernel is not running, or stops meanwhile.
        TypeValidationError
            If the message is not of the kernel's `input_type`.
        """
    def receive(self, timeout: float | None = None, default: Any = None) -> Any:
        """Wait for the next reply.

        Parameters
        ----------
        timeout
            Seconds; what None means is the class's to say.
        default
            What to return if none comes in time: where None is a legal reply, something else.

        Raises
        ------
        KernelFailedError
            If the kernel's function raised; replies that it made before come first.
        KernelStateError
            If the kernel is not running and no reply is left.
        """

class FastSPSCQueue(ThreadQueue[_T]):
    """A queue between threads whose plain `put` and `get` do not wait.

    Parameters
    ----------
    capacity
        The most that it holds, at least 1.
    """

    def __new__(cls, capacity: int = 4096) -> Self: ...
    @property
    def capacity(self) -> int:
        """The most that it holds."""
    @property
    def size(self) -> int:
        """How many it holds now."""
    def put(self, item: _T) -> bool:
        """Put an object, also None; False if the queue is full or shut down."""
    def get(self) -> _T | None:
        """Take the next object; None if there is none."""
    def put_wait(self, item: _T, timeout_sec: float | None = 1.0) -> bool:
        """Put an object; wait for room at most `timeout_sec` seconds; None: for ever."""
    def get_wait(self, timeout_sec: float | None = 1.0, default: Any = None) -> _T | Any:
        """Take the next object; wait for one at most `timeout_sec` seconds; None: for ever.

        `default` if none came, or the queue is shut down and empty.
        """

# --- asyncio ---------------------------------------------------------------------------------

@final
class ContextHandle:
    """What the context of an actor is made from."""

    @property
    def threaded(self) -> bool: ...

@disjoint_base
class ActorContext:
    """The native half of `KernelContext`."""

    def __new__(cls, handle: ContextHandle) -> ActorContext: ...
    @property
    def kernel_id(self) -> str: ...
    @property
    def should_terminate(self) -> bool: ...
    @property
    def is_active(self) -> bool: ...
    def receive(self, timeout: float | None = None) -> Any: ...
    def send(self, message: Any) -> Any: ...
    def wait_active(self) -> Any: ...
    def _receive_now(self) -> Any: ...
    def _send_now(self, message: Any) -> bool: ...

@disjoint_base
class Actor:
    """The native half of `RingKernel`."""

    def __new__(cls, kernel_id: str, *_args: Any, **_kwargs: Any) -> Actor: ...
    @property
    def kernel_id(self) -> str: ...
    @property
    def error(self) -> BaseException | None: ...
    @property
    def restarts(self) -> int: ...
    @property
    def _state(self) -> str: ...
    @property
    def _stopping(self) -> bool: ...
    def _launch(
        self,
        runtime: Runtime,
        start: Callable[[ContextHandle, Callable[[Any], None]], Any],
        *,
        threaded: bool,
        capacity: int,
        reply_capacity: int,
        backpressure: str,
        exact_priority: bool,
        restart: Any,
        watchdog: float | None,
        input_type: type | None,
        output_type: type | None,
        far_side: bool = False,
    ) -> None: ...
    def _launch_compiled(
        self,
        runtime: Runtime,
        handler: CompiledHandler,
        *,
        capacity: int,
        reply_capacity: int,
        backpressure: str,
        restart: Any,
        watchdog: float | None,
    ) -> None: ...
    def _activate(self) -> None: ...
    def _deactivate(self) -> None: ...
    def _reactivate(self) -> None: ...
    def _stop(self, drain: bool) -> None: ...
    def _offer(self, message: Any) -> bool: ...
    def _receive_now(self) -> Any: ...
    def _terminate(self, timeout: float, drain: bool) -> Awaitable[Any]: ...
    def _ended(self) -> Awaitable[Any]: ...
    def send(self, message: Any, timeout: float | None = None) -> Awaitable[Any]: ...
    def receive(self, timeout: float | None = None) -> Awaitable[Any]: ...
    def send_and_receive(self, message: Any, timeout: float | None = None) -> Awaitable[Any]: ...
    def ask_blocking(self, message: Any, timeout: float | None = None) -> Any: ...
    def _telemetry(self) -> dict[str, Any] | None: ...
    def _books(self, replies: bool) -> dict[str, int]: ...

# --- records/ --------------------------------------------------------------------------------

@final
class RecordLayout:
    """How a struct of C lays out named fields."""

    MESSAGE_BYTES_MAX: int
    def __new__(
        cls, name: str, fields: list[tuple[str, str | RecordLayout, list[int]]], owner: str = ""
    ) -> RecordLayout: ...
    @property
    def name(self) -> str: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def alignment(self) -> int: ...
    @property
    def offsets(self) -> list[int]: ...
    @property
    def c_name(self) -> str: ...
    def c_struct(self) -> str: ...
    def agrees_with(self, other: RecordLayout) -> bool: ...
    def __eq__(self, other: object, /) -> bool: ...
    def __hash__(self) -> int: ...

@disjoint_base
class RecordCodec:
    """The native half of `RecordType`."""

    def __new__(cls, *_args: Any, **_kwargs: Any) -> RecordCodec: ...
    def _pack(self, instance: Any) -> bytes | None: ...
    def _unpack(self, bytes: bytes) -> Any: ...

@final
class RecordMemory:
    """The bytes of a batch, read only, through the buffer protocol."""

    def __len__(self) -> int: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...

@final
class Lease:
    """An array that a batch is in: it cannot be written to while this lives."""

@final
class HandlerCall:
    """One message on its way through an interpreted handler."""

    def input(self) -> bytes: ...
    def state(self) -> bytes: ...
    def set_state(self, bytes: bytes) -> None: ...
    def set_record(self, index: int) -> None: ...
    def is_single(self) -> bool: ...
    def is_fine(self, result: int) -> bool: ...
    def push_reply(self, record: bytes) -> None: ...
    def emit(self, record: bytes) -> int: ...
    def send(self, target: int, record: bytes) -> int: ...
    def log(self, level: int, text: str) -> None: ...
    def fault(self, code: int, text: str) -> int: ...
    def tick(self) -> int: ...

@final
class CompiledHandler:
    """What a kernel of a compiled handler is launched from."""

    def __new__(
        cls,
        code: tuple[Any, ...],
        input: Any,
        output: Any | None,
        state: RecordLayout | None,
        initial: bytes,
        max_emit: int,
        targets: list[tuple[str, RecordLayout]],
    ) -> CompiledHandler: ...
    def state_bytes(self, timeout: float) -> bytes: ...

@disjoint_base
class Pool:
    """The native half of `KernelPool`."""

    def __new__(cls, pool_id: str, workers: list[Any]) -> Pool: ...
    @property
    def pool_id(self) -> str: ...
    def _launch(
        self,
        runtime: Runtime,
        starts: list[Callable[[ContextHandle, Callable[[Any], None]], Any]],
        handlers: list[CompiledHandler],
        key: str | Callable[[Any], Any] | None,
        *,
        threaded: bool,
        capacity: int,
        reply_capacity: int,
        backpressure: str,
        exact_priority: bool,
        restart: Any,
        watchdog: float | None,
        input_type: type | None,
        output_type: type | None,
    ) -> None: ...
    def _activate(self) -> None: ...
    def _deactivate(self) -> None: ...
    def _reactivate(self) -> None: ...
    def _terminate(self, timeout: float, drain: bool) -> Awaitable[Any]: ...
    def send(self, message: Any, timeout: float | None = None) -> Awaitable[Any]: ...
    def receive(self, timeout: float | None = None) -> Awaitable[Any]: ...
    def send_and_receive(self, message: Any, timeout: float | None = None) -> Awaitable[Any]: ...
    def _books(self, replies: bool) -> dict[str, int]: ...

@disjoint_base
class Runtime:
    """The native half of `RingKernelRuntime`."""

    def __new__(cls, *_args: Any, **_kwargs: Any) -> Runtime: ...
    @property
    def _kernels(self) -> dict[str, Any]: ...
    @property
    def _pools(self) -> dict[str, Any]: ...
    def _renew(self) -> None: ...
    def _shutdown(self, timeout: float) -> Awaitable[Any]: ...
    def _shutdown_blocking(self, timeout: float) -> None: ...
    def send(
        self, kernel_id: str, message: Any, *, timeout: float | None = None
    ) -> Awaitable[Any]: ...
    def receive(self, kernel_id: str, *, timeout: float | None = None) -> Awaitable[Any]: ...
    def send_and_receive(
        self, kernel_id: str, message: Any, *, timeout: float | None = None
    ) -> Awaitable[Any]: ...
    def _connect(self, from_id: str, to_id: str, allow_cycle: bool) -> None: ...
    def _disconnect(self, kernel_id: str) -> bool: ...
    def _connected_to(self, kernel_id: str) -> str | None: ...
    def _dead_letters(
        self, kernel_id: str | None, take: bool
    ) -> list[tuple[str, Any, str, int, bool, float]]: ...
    def _replay(self, kernel_id: str | None) -> int: ...

@final
class CudaKernel:
    """What a kernel on a GPU is launched from."""

    def __new__(
        cls,
        kernel_id: str,
        code: tuple[str, str, str | bytes],
        input: Any,
        output: Any | None,
        state: RecordLayout | None,
        initial: bytes,
        max_emit: int,
        targets: list[tuple[str, RecordLayout]],
        scope: tuple[str, int, int, int],
        children: tuple[list[str], Callable[[str, str, int, str, str], None]] | None = None,
    ) -> CudaKernel: ...
    def state_bytes(self, timeout: float) -> bytes: ...

@final
class DevicePointer:
    """Where memory of a device is: a field of a record. It keeps that memory if it is lent."""

    def __new__(cls, address: int = 0) -> DevicePointer: ...
    @property
    def address(self) -> int: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def is_lent(self) -> bool: ...
    def offset(self, nbytes: int) -> DevicePointer: ...
    def __bool__(self) -> bool: ...
    def __eq__(self, other: object, /) -> bool: ...
    def __hash__(self) -> int: ...

def _lend(address: int, nbytes: int, owner: Any, timeout: float) -> DevicePointer: ...
def _cuda_capability() -> tuple[int, int]: ...
def _ring_free_sms(aside: int) -> tuple[int, int]: ...
def _ring_placements() -> list[str]: ...
def _serve_cuda() -> None: ...
def _launch_cuda(
    actor: Actor,
    runtime: Runtime,
    kernel: CudaKernel,
    *,
    capacity: int,
    reply_capacity: int,
    backpressure: str,
    exact_priority: bool,
    restart: Any,
    watchdog: float | None,
) -> None: ...
def _launch_process(
    actor: Actor,
    runtime: Runtime,
    command: list[str],
    args: bytes,
    sink: Callable[[str, str, int, str, str], object],
    handler: CompiledHandler | None,
    *,
    first_step: str,
    start_timeout: float,
    window: int,
    capacity: int,
    reply_capacity: int,
    backpressure: str,
    exact_priority: bool,
    restart: Any,
    watchdog: float | None,
    input_type: type | None,
    output_type: type | None,
) -> None: ...

@final
class ProcessHost:
    def __new__(cls) -> ProcessHost: ...
    @property
    def kernel_id(self) -> str: ...
    @property
    def args(self) -> bytes: ...
    @property
    def window(self) -> int: ...
    def log(self, level: int, target: str, text: str) -> None: ...
    def wait_for_activation(self) -> None: ...
    def run(self, actor: Actor) -> str | None: ...
    def run_compiled(self, handler: CompiledHandler) -> None: ...
    def end(self, fault: str | None) -> None: ...

def _close_all() -> None: ...
def _join_threads(timeout: float) -> None: ...
def _own_methods(class_: type[_T], /) -> type[_T]: ...
def _before_fork() -> None: ...
def _after_fork_in_parent() -> None: ...
def _after_fork() -> None: ...

# --- workloads.rs ----------------------------------------------------------------------------

@final
class PageRankGraph:
    """A graph that is ready to be ranked; see `pydotcompute.workloads.Graph`."""

    def __new__(cls, nodes: int | None, edges: npt.NDArray[Any], threads: int) -> PageRankGraph: ...
    @property
    def nodes(self) -> int: ...
    @property
    def links(self) -> int: ...
    @property
    def nbytes(self) -> int: ...
    def rank_f32(
        self, scores: npt.NDArray[Any], query: tuple[float, float, int, list[tuple[int, float]]]
    ) -> tuple[int, float, bool]:
        """Rank into `scores`, which is `float32`."""

    def rank_f64(
        self, scores: npt.NDArray[Any], query: tuple[float, float, int, list[tuple[int, float]]]
    ) -> tuple[int, float, bool]:
        """Rank into `scores`, which is `float64`."""
