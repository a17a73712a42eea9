"""The exceptions: hierarchy, attributes, texts, and that they can be pickled."""

import copy
import pickle

import pytest

from pydotcompute import exceptions as e

BASES = [
    (e.PyDotComputeError, Exception),
    (e.KernelError, e.PyDotComputeError),
    (e.KernelNotFoundError, e.KernelError),
    (e.KernelStateError, e.KernelError),
    (e.KernelFailedError, e.KernelStateError),
    (e.KernelStoppedError, e.KernelStateError),
    (e.PipelineError, e.KernelError),
    (e.KernelAlreadyExistsError, e.KernelError),
    (e.MessageError, e.PyDotComputeError),
    (e.MessageSerializationError, e.MessageError),
    (e.MessageDeserializationError, e.MessageError),
    (e.QueueError, e.PyDotComputeError),
    (e.QueueFullError, e.QueueError),
    (e.QueueTimeoutError, e.QueueError),
    (e.SendTimeoutError, e.QueueFullError),
    (e.SendTimeoutError, e.QueueTimeoutError),
    (e.BufferError, e.PyDotComputeError),
    (e.BufferNotAllocatedError, e.BufferError),
    (e.BufferSyncError, e.BufferError),
    (e.MemoryLimitError, MemoryError),
    (e.BackendError, e.PyDotComputeError),
    (e.BackendNotAvailableError, e.BackendError),
    (e.CUDAError, e.BackendError),
    (e.CUDAMemoryError, e.CUDAError),
    (e.CUDAMemoryError, MemoryError),
    (e.MetalError, e.BackendError),
    (e.MSLCompilationError, e.MetalError),
    (e.CompilationError, e.PyDotComputeError),
    (e.KernelCompilationError, e.CompilationError),
    (e.ValidationError, e.PyDotComputeError),
    (e.InvalidConfigurationError, e.ValidationError),
    (e.InvalidConfigurationError, ValueError),
    (e.TypeValidationError, e.ValidationError),
]

CAUSE = ValueError("why")

# The class, its arguments, and the text that it makes of them.
MADE = [
    (
        e.KernelNotFoundError,
        {"kernel_id": "X", "available": ["a"]},
        "Kernel 'X' not found. Available kernels: ['a']\n"
        "Hint: Did you forget to call runtime.launch('X')?",
    ),
    (
        e.KernelStateError,
        {"kernel_id": "X", "current_state": "S", "operation": "launch"},
        "Cannot launch kernel 'X' from state 'S'",
    ),
    (e.KernelAlreadyExistsError, {"kernel_id": "X"}, "Kernel 'X' is already registered"),
    (
        e.MessageSerializationError,
        {"message_type": int, "cause": CAUSE},
        "Failed to serialize message of type 'int': why",
    ),
    (
        e.MessageDeserializationError,
        {"message_type": int, "cause": CAUSE},
        "Failed to deserialize message to type 'int': why",
    ),
    (
        e.QueueFullError,
        {"kernel_id": "X", "queue_size": 7},
        "Input queue for kernel 'X' is full (size: 7)",
    ),
    (
        e.QueueTimeoutError,
        {"kernel_id": "X", "timeout": 0.5, "operation": "send"},
        "Timeout (0.5s) waiting to send message for kernel 'X'",
    ),
    (
        e.BufferNotAllocatedError,
        {},
        "Buffer has not been allocated. Call allocate() first.",
    ),
    (
        e.BufferSyncError,
        {"direction": "host->device", "cause": CAUSE},
        "Failed to sync buffer host->device: why",
    ),
    (
        e.BackendNotAvailableError,
        {"backend_name": "B", "reason": "r"},
        "Backend 'B' is not available: r",
    ),
    (
        e.SendTimeoutError,
        {"kernel_id": "X", "queue_size": 4, "timeout": 0.5},
        "Input queue for kernel 'X' is full (size: 4). "
        "Timeout (0.5s) waiting to send message for kernel 'X'",
    ),
    (
        e.MemoryLimitError,
        {"requested_bytes": 3, "limit_bytes": 2, "used_bytes": 1},
        "Cannot allocate 3 bytes: 1 of at most 2 bytes are in use. Free buffers, or raise the "
        "limit with set_limit().",
    ),
    (
        e.KernelFailedError,
        {"kernel_id": "X", "cause": CAUSE, "operation": "send message"},
        "Cannot send message: kernel 'X' failed with ValueError: why",
    ),
    (
        e.KernelStoppedError,
        {"kernel_id": "X", "operation": "send message"},
        "Cannot send message: kernel 'X' was stopped",
    ),
    (
        e.PipelineError,
        {"kernel_id": "X", "text": "ring kernel 'X' is connected"},
        "Ring kernel 'X' is connected",
    ),
    (
        e.MSLCompilationError,
        {"shader_name": "S", "error_message": "m"},
        "Failed to compile MSL shader 'S': m",
    ),
    (
        e.KernelCompilationError,
        {"kernel_name": "K", "cause": CAUSE},
        "Failed to compile kernel 'K': why",
    ),
    (
        e.InvalidConfigurationError,
        {"parameter": "p", "value": "v", "reason": "r"},
        "Invalid configuration: p='v' - r",
    ),
    (
        e.TypeValidationError,
        {"expected": int, "actual": str, "context": "c"},
        "Type mismatch in c: expected int, got str",
    ),
]


@pytest.mark.parametrize(("cls", "base"), BASES)
def test_hierarchy(cls, base):
    assert issubclass(cls, base)
    assert issubclass(cls, e.PyDotComputeError)


@pytest.mark.parametrize(("cls", "arguments", "text"), MADE)
def test_arguments_become_attributes_and_text(cls, arguments, text):
    for error in (cls(**arguments), cls(*arguments.values())):
        assert str(error) == text
        assert error.args == (text,)
        for name, value in arguments.items():
            assert getattr(error, name) == value


def test_every_class_is_made_in_these_tests():
    builtin = (Exception.__init__, MemoryError.__init__)
    plain = {cls for cls in map(vars(e).get, e.__all__) if cls.__init__ in builtin}
    assert {vars(e)[name] for name in e.__all__} == plain | {cls for cls, _, _ in MADE}


@pytest.mark.parametrize(("cls", "arguments", "text"), MADE)
def test_d14_exceptions_with_several_arguments_can_be_pickled(cls, arguments, text):
    error = cls(**arguments)
    error.add_note("noted")
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
        assert type(again) is cls
        assert str(again) == text
        assert again.__notes__ == ["noted"]
        for name, value in arguments.items():
            if isinstance(value, Exception):
                assert repr(getattr(again, name)) == repr(value)
                assert again.__cause__ is again.cause
            else:
                assert getattr(again, name) == value


def test_the_base_classes_take_any_arguments():
    assert e.QueueError("a", 1).args == ("a", 1)
    assert pickle.loads(pickle.dumps(e.QueueError("a", 1))).args == ("a", 1)


def test_a_failed_kernel_tells_its_cause():
    error = e.KernelFailedError("k", CAUSE, "receive message")
    assert error.__cause__ is CAUSE
    assert str(error) == "Cannot receive message: kernel 'k' failed with ValueError: why"
    assert (error.kernel_id, error.current_state) == ("k", "TERMINATED")
    assert repr(pickle.loads(pickle.dumps(error)).__cause__) == repr(CAUSE)


def test_a_failed_kernel_tells_of_a_cause_without_a_text():
    class Mute(Exception):
        def __str__(self):
            raise RuntimeError("no text")

    for cause in (Mute(), ValueError()):
        error = e.KernelFailedError("k", cause, "receive message")
        assert (
            str(error) == f"Cannot receive message: kernel 'k' failed with {type(cause).__name__}"
        )
        assert error.__cause__ is cause


def test_a_stopped_kernel_tells_what_was_asked_of_it():
    error = e.KernelStoppedError("k")
    assert str(error) == "Cannot receive message: kernel 'k' was stopped"
    assert error.operation == "receive message"


def test_available_kernels_default_to_none():
    error = e.KernelNotFoundError("X")
    assert error.available == []
    assert "Available" not in str(error)


def test_b10_a_full_queue_says_which_one():
    assert str(e.QueueFullError("k", 1, "Output queue")).startswith("Output queue for kernel 'k'")


def test_annotations_are_shown_as_they_are_written():
    assert "int | None" in str(e.TypeValidationError(int | None, str, "c"))
    assert "list[int]" in str(e.TypeValidationError(list[int], str, "c"))
