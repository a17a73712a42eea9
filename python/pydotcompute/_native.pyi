"""The extension module: dotcompute for Python."""

from typing import Any, Self, TypeVar, final
from uuid import UUID

from typing_extensions import Buffer

_T = TypeVar("_T")

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
