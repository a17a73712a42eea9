"""The decorator that makes a ring kernel of an async function, and a builder for the same."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, Self, TypeVar, overload

from pydotcompute.decorators.validators import (
    _is_int,
    validate_backpressure_strategy,
    validate_block_size,
    validate_grid_size,
    validate_queue_size,
)
from pydotcompute.exceptions import InvalidConfigurationError

__all__ = ["RingKernelBuilder", "get_ring_kernel_meta", "is_ring_kernel", "ring_kernel"]

#: The default of `state`, since None means a handler without one.
_NO_HANDLER: Any = type("_NoHandler", (), {"__repr__": lambda self: "<no handler>"})()

_F = TypeVar("_F", bound=Callable[..., Any])


@overload
def ring_kernel(func: _F) -> _F: ...
@overload
def ring_kernel(
    func: None = None,
    *,
    kernel_id: str | None = None,
    input_type: type | None = None,
    output_type: type | None = None,
    queue_size: int = 4096,
    input_queue_size: int | None = None,
    output_queue_size: int | None = None,
    grid_size: int = 1,
    block_size: int = 256,
    backpressure: str = "block",
    auto_register: bool = True,
    state: type | None = ...,
    max_emit: int = 0,
    targets: Mapping[str, type] | None = None,
) -> Callable[[_F], _F]: ...
def ring_kernel(
    func: Any = None,
    *,
    kernel_id: str | None = None,
    input_type: type | None = None,
    output_type: type | None = None,
    queue_size: int = 4096,
    input_queue_size: int | None = None,
    output_queue_size: int | None = None,
    grid_size: int = 1,
    block_size: int = 256,
    backpressure: str = "block",
    auto_register: bool = True,
    state: Any = _NO_HANDLER,
    max_emit: int = 0,
    targets: Mapping[str, type] | None = None,
) -> Any:
    """Make a ring kernel of a function that takes a `KernelContext`, or a compiled handler.

    With `state`, also None, it is a compiled handler: a plain function of a record, the state and
    the reply (and a context), which runs on a thread without the GIL. See `pydotcompute.handlers`.

    Parameters
    ----------
    func
        The function.
    kernel_id
        The kernel's id; None: the function's name.
    input_type, output_type
        The classes of its messages; None: any.
    queue_size
        How many messages each queue holds, 1 to 1,000,000.
    input_queue_size, output_queue_size
        The same for one of the two queues.
    grid_size, block_size
        Blocks, and threads of a block, of a kernel on a GPU.
    backpressure
        What happens to a message for a full queue: "block", "reject", "drop_oldest" or
        "drop_newest".
    auto_register
        Whether a runtime can launch the kernel by its id alone.
    state
        The record class of a compiled handler's state; None: it keeps none.
    max_emit
        How many replies a compiled handler emits at most for one record, besides the one that it
        returns.
    targets
        The kernels that a compiled handler can send to, by name, and the records that they take.

    Raises
    ------
    InvalidConfigurationError
        A value is not allowed.
    TypeError
        A class is no record, where a compiled handler needs one.
    """
    config = {
        "input_queue_size": _size("input_queue_size", input_queue_size, queue_size),
        "output_queue_size": _size("output_queue_size", output_queue_size, queue_size),
        "grid_size": grid_size,
        "block_size": block_size,
        "backpressure_strategy": backpressure,
    }
    for name, shape in (("grid_size", grid_size), ("block_size", block_size)):
        if not _is_int(shape):
            raise InvalidConfigurationError(name, shape, "must be an integer")
    validate_grid_size(grid_size)
    validate_block_size(block_size)
    if backpressure != "drop_newest":
        validate_backpressure_strategy(backpressure)

    if state is _NO_HANDLER and (max_emit or targets):
        raise InvalidConfigurationError(
            "max_emit" if max_emit else "targets",
            max_emit or targets,
            "is of compiled handlers, which have state=... (or state=None)",
        )

    def decorate(func: Callable[..., Any]) -> Callable[..., Any]:
        name = kernel_id if kernel_id is not None else func.__name__
        input_class, output_class = input_type, output_type
        if state is not _NO_HANDLER:
            # Most programs have no handlers.
            from pydotcompute.handlers.spec import python_handler

            handler = python_handler(
                func,
                state=state,
                input_type=input_type,
                output_type=output_type,
                max_emit=max_emit,
                targets=targets,
            )
            func._handler = handler  # type: ignore[attr-defined]
            said = handler.signature
            input_class = said.input.cls
            output_class = said.output.cls if said.output is not None else None

        @functools.wraps(func)
        def ring(*args: Any, **kwargs: Any) -> Any:
            return func(*args, **kwargs)

        decorated: Any = ring
        decorated._ring_kernel_meta = {
            "kernel_id": name,
            "input_type": input_class,
            "output_type": output_class,
            "config": config.copy(),
        }
        decorated._original_func = func
        if auto_register:
            from pydotcompute.ring_kernels.runtime import register_ring_kernel

            register_ring_kernel(name, func, input_class, output_class, **config)
        return ring

    return decorate if func is None else decorate(func)


def _size(name: str, size: int | None, default: int) -> int:
    """Check the size of one queue, which may be that of both."""
    if size is None:
        return validate_queue_size(default)
    return validate_queue_size(size, name)


def get_ring_kernel_meta(func: Callable[..., Any]) -> dict[str, Any] | None:
    """Get what `ring_kernel` noted of a function; None for any other."""
    meta = getattr(func, "_ring_kernel_meta", None)
    return meta if isinstance(meta, dict) else None


def is_ring_kernel(func: Callable[..., Any]) -> bool:
    """Tell whether `ring_kernel` made a function."""
    return get_ring_kernel_meta(func) is not None


class RingKernelBuilder:
    """Puts a ring kernel together step by step; each step returns the builder.

    Parameters
    ----------
    kernel_id
        The kernel's id.
    """

    def __init__(self, kernel_id: str) -> None:
        self._kernel_id = kernel_id
        self._input_type: type | None = None
        self._output_type: type | None = None
        self._input_queue_size = 4096
        self._output_queue_size = 4096
        self._grid_size = 1
        self._block_size = 256
        self._backpressure = "block"
        self._handler: Callable[..., Any] | None = None

    def with_input_type(self, input_type: type) -> Self:
        """Choose the class of the messages that it takes."""
        self._input_type = input_type
        return self

    def with_output_type(self, output_type: type) -> Self:
        """Choose the class of the messages that it sends."""
        self._output_type = output_type
        return self

    def with_queue_size(self, size: int) -> Self:
        """Choose how many messages each queue holds."""
        self._input_queue_size = size
        self._output_queue_size = size
        return self

    def with_input_queue_size(self, size: int) -> Self:
        """Choose how many messages the input queue holds."""
        self._input_queue_size = size
        return self

    def with_output_queue_size(self, size: int) -> Self:
        """Choose how many messages the output queue holds."""
        self._output_queue_size = size
        return self

    def with_grid_size(self, size: int) -> Self:
        """Choose the blocks of a kernel on a GPU."""
        self._grid_size = size
        return self

    def with_block_size(self, size: int) -> Self:
        """Choose the threads of a block of a kernel on a GPU."""
        self._block_size = size
        return self

    def with_backpressure(self, strategy: str) -> Self:
        """Choose what happens to a message for a full queue."""
        self._backpressure = strategy
        return self

    def with_handler(self, handler: Callable[..., Any]) -> Self:
        """Choose the function that takes a `KernelContext`."""
        self._handler = handler
        return self

    def build(self) -> Callable[..., Any]:
        """Make and register the kernel; see `ring_kernel`.

        Raises
        ------
        ValueError
            There is no handler.
        InvalidConfigurationError
            A value is not allowed.
        """
        if self._handler is None:
            raise ValueError(f"Ring kernel '{self._kernel_id}' has no handler: use with_handler()")
        decorate = ring_kernel(
            kernel_id=self._kernel_id,
            input_type=self._input_type,
            output_type=self._output_type,
            input_queue_size=self._input_queue_size,
            output_queue_size=self._output_queue_size,
            grid_size=self._grid_size,
            block_size=self._block_size,
            backpressure=self._backpressure,
        )
        return decorate(self._handler)

    def __repr__(self) -> str:
        return (
            f"RingKernelBuilder(id='{self._kernel_id}', input={_type_name(self._input_type)}, "
            f"output={_type_name(self._output_type)})"
        )


def _type_name(message_type: type | None) -> str:
    return "None" if message_type is None else message_type.__name__
