"""What a handler can do besides returning one reply."""

from __future__ import annotations

from typing import Any, Protocol

__all__ = ["HandlerContext"]


class HandlerContext(Protocol):
    """The fourth argument of a handler. Names and texts are literals, so that they compile.

    What is emitted and sent goes out when the handler is done with all records of the message, and
    only if none of them fails.
    """

    def emit(self, record: Any, /) -> int:
        """Reply with a copy of `record` (mostly `out`), before the reply that is returned.

        Returns
        -------
        int
            0, or a negative fault code once there are more than ``max_emit`` for one record: the
            message has failed then, whatever the handler returns.
        """
        ...

    def send(self, kernel: str, record: Any, /) -> int:
        """Send a copy of `record` to one of the ``targets``, which is to take such records.

        Returns
        -------
        int
            0.
        """
        ...

    def record(self, kernel: str, /) -> Any:
        """Make a zeroed record of what one of the ``targets`` takes; good until the return.

        Called again, in a loop say, it is the same record, zeroed.
        """
        ...

    def log(self, text: str, level: int = 20, /) -> None:
        """Log a text by the logger ``pydotcompute``, when the message is done.

        `level` is that of `logging`: 10 (debug) to 40 (error).
        """
        ...

    def fault(self, code: int, text: str = "", /) -> int:
        """Fail the message with a negative code and a text; returns the code, to be returned."""
        ...

    def tick(self) -> int:
        """Whether to go on, for long loops: 0, or the negative code to return."""
        ...

    def clock(self) -> int:
        """A monotonic clock, in nanoseconds."""
        ...
