"""Handlers that were compiled elsewhere: a function of C, of Rust, of any language with a C ABI."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydotcompute import _native
from pydotcompute.handlers.record import record_type
from pydotcompute.handlers.spec import Signature, _checked_max_emit

__all__ = ["NativeHandler", "native_handler"]


@dataclass(frozen=True)
class NativeHandler:
    """A handler at an address; `RingKernelRuntime.launch` takes it as the kernel's function."""

    address: int
    library: Any
    signature: Signature

    def compile(self, kernel_id: str, state: Any) -> _native.CompiledHandler:
        """Put it together with its initial state; it is compiled already."""
        return self.signature.make(("c", self.address, self.library), state)


def native_handler(
    function: Any,
    *,
    input_type: type,
    output_type: type | None = None,
    state: type | None = None,
    max_emit: int = 0,
    targets: Mapping[str, type] | None = None,
) -> NativeHandler:
    """Make a kernel's function of a compiled handler.

    The function has the signature ``int32_t (const In *, State *, Out *, rk_ctx *)`` of
    ``dotcompute_abi.h``, for records of these layouts (`c_struct` prints them). Nothing can check
    that: a function of another signature, or one that writes elsewhere, corrupts the process. It
    must not unwind, call Python, or keep its arguments.

    Parameters
    ----------
    function
        The address of the function; a function of a `ctypes` library; or the path of a library and
        the name of the function in it.
    input_type, output_type, state
        The record classes that it takes, replies with and keeps; no output: it makes no replies.
    max_emit
        How many replies it emits at most for one record.
    targets
        The kernels that it can send to, by the names that they have in its runtime, and what they
        take; numbered from 0 in this order.

    Raises
    ------
    OSError, AttributeError
        There is no such library, or no such function in it.
    TypeError
        A class is no record.
    """
    library: Any = None
    if isinstance(function, tuple):
        path, name = function
        library = ctypes.CDLL(os.fspath(path))
        function = getattr(library, name)
    if isinstance(function, int):
        address = function
    else:
        library = (library, function)
        address = ctypes.cast(function, ctypes.c_void_p).value or 0
    return NativeHandler(
        address,
        library,
        Signature(
            input=record_type(input_type),
            output=record_type(output_type) if output_type is not None else None,
            state=record_type(state) if state is not None else None,
            max_emit=_checked_max_emit(max_emit),
            targets=tuple((kernel, record_type(cls)) for kernel, cls in (targets or {}).items()),
        ),
    )
