"""The message around what is no message, on its way to another process."""

from __future__ import annotations

from typing import Any

from pydotcompute.ring_kernels.message import message


class _Missing:
    """Stands for a value that the bytes did not have."""


_MISSING = _Missing()


@message
class Plain:
    """Any value that the wire format has."""

    value: Any = _MISSING

    def inside(self) -> Any:
        """The value; raises LookupError if this is another message, whose class is not known."""
        if self.value is _MISSING:
            raise LookupError(
                "a message came whose class is not known in this process: import its module there"
            )
        return self.value
