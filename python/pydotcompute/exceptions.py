"""The exceptions of the package.

Every exception raised on purpose derives from `PyDotComputeError`. A class whose constructor takes
named arguments keeps them as attributes of the same names, and all of them can be copied and
pickled, so that they may cross a process boundary.
"""

from __future__ import annotations

from types import GenericAlias
from typing import Any

__all__ = [
    "BackendError",
    "BackendNotAvailableError",
    "BufferError",
    "BufferNotAllocatedError",
    "BufferSyncError",
    "CUDAError",
    "CUDAMemoryError",
    "CompilationError",
    "InvalidConfigurationError",
    "KernelAlreadyExistsError",
    "KernelCompilationError",
    "KernelError",
    "KernelFailedError",
    "KernelNotFoundError",
    "KernelStateError",
    "KernelStoppedError",
    "MSLCompilationError",
    "MemoryLimitError",
    "MessageDeserializationError",
    "MessageError",
    "MessageSerializationError",
    "MetalError",
    "PipelineError",
    "PyDotComputeError",
    "QueueError",
    "QueueFullError",
    "QueueTimeoutError",
    "SendTimeoutError",
    "TypeValidationError",
    "ValidationError",
]


def _rebuild(
    cls: type[PyDotComputeError], args: tuple[Any, ...], state: dict[str, Any]
) -> PyDotComputeError:
    """Make an exception from its parts, without its constructor (whose arguments `args` is not)."""
    # Of `Exception` itself: a class with a second builtin base finds that base's `__new__` first.
    error = Exception.__new__(cls)
    error.args = args
    error.__dict__.update(state)
    cause = state.get("cause")
    if isinstance(cause, BaseException):
        error.__cause__ = cause
    return error


class PyDotComputeError(Exception):
    """Base of every exception of this package."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the text and the attributes; a `cause` becomes the `__cause__` again."""
        return _rebuild, (type(self), self.args, self.__dict__.copy())


# --- kernels ---------------------------------------------------------------------------------


class KernelError(PyDotComputeError):
    """Base of the errors about ring kernels."""


class KernelNotFoundError(KernelError):
    """No kernel has this id.

    Parameters
    ----------
    kernel_id
        The id that was asked for.
    available
        The ids that there are; None means none.
    """

    def __init__(self, kernel_id: str, available: list[str] | None = None) -> None:
        self.kernel_id = kernel_id
        self.available = available if available is not None else []
        text = f"Kernel '{kernel_id}' not found."
        if self.available:
            text += f" Available kernels: {self.available}"
        text += f"\nHint: Did you forget to call runtime.launch('{kernel_id}')?"
        super().__init__(text)


class KernelStateError(KernelError):
    """The kernel's state does not allow the operation.

    Parameters
    ----------
    kernel_id
        The kernel.
    current_state
        The name of the state that it is in.
    operation
        What was asked of it, as a verb: "activate", "send message".
    """

    def __init__(self, kernel_id: str, current_state: str, operation: str) -> None:
        self.kernel_id = kernel_id
        self.current_state = current_state
        self.operation = operation
        super().__init__(f"Cannot {operation} kernel '{kernel_id}' from state '{current_state}'")


class KernelFailedError(KernelStateError):
    """The kernel's function raised, so nothing more will come from it.

    Parameters
    ----------
    kernel_id
        The kernel.
    cause
        The exception of the kernel's function; it also becomes the `__cause__`.
    operation
        What was asked of the kernel.
    current_state
        The name of the state that it is in.
    """

    def __init__(
        self,
        kernel_id: str,
        cause: BaseException | None = None,
        operation: str = "use",
        current_state: str = "TERMINATED",
    ) -> None:
        super().__init__(kernel_id, current_state, operation)
        self.cause = cause
        text = f"Cannot {operation}: kernel '{kernel_id}' failed"
        if cause is not None:
            text += f" with {type(cause).__name__}{_text_of(cause)}"
        self.args = (text,)
        self.__cause__ = cause


def _text_of(error: BaseException) -> str:
    """Quote an exception of a user's class, whose text may be none, or an error itself."""
    try:
        text = str(error)
    except Exception:
        return ""
    return f": {text}" if text else ""


class KernelStoppedError(KernelStateError):
    """The kernel was told to stop: no message will come, or be taken, any more.

    Inside an actor it is raised by a wait that `terminate` ended; an actor that lets it out ends
    cleanly.

    Parameters
    ----------
    kernel_id
        The kernel.
    operation
        What was asked of the kernel.
    current_state
        The name of the state that it is in.
    """

    def __init__(
        self,
        kernel_id: str,
        operation: str = "receive message",
        current_state: str = "TERMINATED",
    ) -> None:
        super().__init__(kernel_id, current_state, operation)
        self.args = (f"Cannot {operation}: kernel '{kernel_id}' was stopped",)


class KernelAlreadyExistsError(KernelError):
    """A kernel with this id exists already.

    Parameters
    ----------
    kernel_id
        The id.
    """

    def __init__(self, kernel_id: str) -> None:
        self.kernel_id = kernel_id
        super().__init__(f"Kernel '{kernel_id}' is already registered")


class PipelineError(KernelError):
    """Kernels cannot be connected so, or a connected kernel cannot be used so.

    Parameters
    ----------
    kernel_id
        The kernel that is or was to be connected to another one.
    text
        What is wrong, and what to do.
    """

    def __init__(self, kernel_id: str, text: str) -> None:
        self.kernel_id = kernel_id
        self.text = text
        super().__init__(text[:1].upper() + text[1:])


# --- messages --------------------------------------------------------------------------------


class MessageError(PyDotComputeError):
    """Base of the errors about messages."""


class MessageSerializationError(MessageError):
    """A message could not be turned into bytes.

    Parameters
    ----------
    message_type
        The class of the message.
    cause
        What went wrong.
    """

    def __init__(self, message_type: type, cause: Exception) -> None:
        self.message_type = message_type
        self.cause = cause
        super().__init__(f"Failed to serialize message of type '{message_type.__name__}': {cause}")


class MessageDeserializationError(MessageError):
    """Bytes could not be turned into a message.

    Parameters
    ----------
    message_type
        The class that was to be made.
    cause
        What went wrong.
    """

    def __init__(self, message_type: type, cause: Exception) -> None:
        self.message_type = message_type
        self.cause = cause
        super().__init__(
            f"Failed to deserialize message to type '{message_type.__name__}': {cause}"
        )


# --- queues ----------------------------------------------------------------------------------


class QueueError(PyDotComputeError):
    """Base of the errors about queues."""


class QueueFullError(QueueError):
    """The queue took no message because it is full.

    Parameters
    ----------
    kernel_id
        The kernel that the queue belongs to, or the queue's own name.
    queue_size
        How many messages it holds.
    queue_name
        Which of the kernel's queues it is.
    """

    def __init__(self, kernel_id: str, queue_size: int, queue_name: str = "Input queue") -> None:
        self.kernel_id = kernel_id
        self.queue_size = queue_size
        self.queue_name = queue_name
        QueueError.__init__(
            self, f"{queue_name} for kernel '{kernel_id}' is full (size: {queue_size})"
        )


class QueueTimeoutError(QueueError):
    """The time for sending or receiving a message ran out.

    Parameters
    ----------
    kernel_id
        The kernel that the queue belongs to, or the queue's own name.
    timeout
        The time that was allowed, in seconds.
    operation
        "send", "receive" or "get".
    """

    def __init__(self, kernel_id: str, timeout: float, operation: str) -> None:
        self.kernel_id = kernel_id
        self.timeout = timeout
        self.operation = operation
        QueueError.__init__(
            self, f"Timeout ({timeout}s) waiting to {operation} message for kernel '{kernel_id}'"
        )


class SendTimeoutError(QueueFullError, QueueTimeoutError):
    """The queue was full until the time for sending ran out.

    Parameters
    ----------
    kernel_id
        The kernel that the queue belongs to, or the queue's own name.
    queue_size
        How many messages it holds.
    timeout
        The time that was allowed, in seconds.
    queue_name
        Which of the kernel's queues it is.
    """

    def __init__(
        self, kernel_id: str, queue_size: int, timeout: float, queue_name: str = "Input queue"
    ) -> None:
        QueueTimeoutError.__init__(self, kernel_id, timeout, "send")
        text = str(self)
        QueueFullError.__init__(self, kernel_id, queue_size, queue_name)
        self.args = (f"{self}. {text}",)


# --- memory ----------------------------------------------------------------------------------


class BufferError(PyDotComputeError):
    """Base of the errors about buffers (not the builtin of the same name)."""


class BufferNotAllocatedError(BufferError):
    """The buffer has no memory yet, or none any more."""

    def __init__(self) -> None:
        super().__init__("Buffer has not been allocated. Call allocate() first.")


class BufferSyncError(BufferError):
    """A copy between host and device failed.

    Parameters
    ----------
    direction
        "host->device", "device->host", "host->metal" or "metal->host".
    cause
        What went wrong.
    """

    def __init__(self, direction: str, cause: Exception) -> None:
        self.direction = direction
        self.cause = cause
        super().__init__(f"Failed to sync buffer {direction}: {cause}")


class MemoryLimitError(BufferError, MemoryError):
    """An allocation would exceed the memory pool's limit; also a MemoryError.

    Parameters
    ----------
    requested_bytes
        What was asked for, rounded up to what it would take.
    limit_bytes
        The pool's limit.
    used_bytes
        What is in use.
    """

    def __init__(self, requested_bytes: int, limit_bytes: int, used_bytes: int) -> None:
        self.requested_bytes = requested_bytes
        self.limit_bytes = limit_bytes
        self.used_bytes = used_bytes
        super().__init__(
            f"Cannot allocate {requested_bytes} bytes: {used_bytes} of at most {limit_bytes} bytes "
            "are in use. Free buffers, or raise the limit with set_limit()."
        )


# --- backends --------------------------------------------------------------------------------


class BackendError(PyDotComputeError):
    """Base of the errors about backends."""


class BackendNotAvailableError(BackendError):
    """A backend cannot be used on this machine.

    Parameters
    ----------
    backend_name
        "CUDA", "Metal".
    reason
        What is missing.
    """

    def __init__(self, backend_name: str, reason: str) -> None:
        self.backend_name = backend_name
        self.reason = reason
        super().__init__(f"Backend '{backend_name}' is not available: {reason}")


class CUDAError(BackendError):
    """An operation of the CUDA backend failed."""


class CUDAMemoryError(CUDAError, MemoryError):
    """A CUDA device has not so much memory, or its pool's limit forbids it; also a MemoryError."""


class MetalError(BackendError):
    """An operation of the Metal backend failed."""


class MSLCompilationError(MetalError):
    """Metal Shading Language source did not compile.

    Parameters
    ----------
    shader_name
        The kernel's name.
    error_message
        What the compiler said.
    """

    def __init__(self, shader_name: str, error_message: str) -> None:
        self.shader_name = shader_name
        self.error_message = error_message
        super().__init__(f"Failed to compile MSL shader '{shader_name}': {error_message}")


# --- compilation and validation --------------------------------------------------------------


class CompilationError(PyDotComputeError):
    """Base of the errors about compilation."""


class KernelCompilationError(CompilationError):
    """A kernel function did not compile.

    Parameters
    ----------
    kernel_name
        The kernel's name.
    cause
        What went wrong.
    """

    def __init__(self, kernel_name: str, cause: Exception) -> None:
        self.kernel_name = kernel_name
        self.cause = cause
        super().__init__(f"Failed to compile kernel '{kernel_name}': {cause}")


class ValidationError(PyDotComputeError):
    """Base of the errors about wrong arguments."""


class InvalidConfigurationError(ValidationError, ValueError):
    """A configuration value is not allowed; also a ValueError.

    Parameters
    ----------
    parameter
        The parameter's name.
    value
        The value that was given.
    reason
        What would have been allowed.
    """

    def __init__(self, parameter: str, value: object, reason: str) -> None:
        self.parameter = parameter
        self.value = value
        self.reason = reason
        super().__init__(f"Invalid configuration: {parameter}={value!r} - {reason}")


class TypeValidationError(ValidationError):
    """A value, or a class, is not of the type that is needed.

    Parameters
    ----------
    expected
        The type that is needed; annotations that are not classes (`int | None`) are shown as
        they are written.
    actual
        The type that was found.
    context
        Where: "parameter 'x'".
    """

    def __init__(self, expected: type, actual: type, context: str) -> None:
        self.expected = expected
        self.actual = actual
        self.context = context
        super().__init__(
            f"Type mismatch in {context}: expected {_type_name(expected)}, got {_type_name(actual)}"
        )


def _type_name(annotation: object) -> str:
    """Name a class, or write out any other annotation."""
    is_class = isinstance(annotation, type) and not isinstance(annotation, GenericAlias)
    return getattr(annotation, "__name__", "") if is_class else str(annotation)
