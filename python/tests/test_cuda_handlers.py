"""Python handlers for a GPU: what is refused, and where. What compiles: `make cuda-offline`."""

import sys
from typing import Any

import numpy as np
import pytest
from device_handlers import Figure, Kept, Memo, clerk

from pydotcompute import ring_kernel
from pydotcompute.exceptions import BackendNotAvailableError, KernelCompilationError
from pydotcompute.handlers import HandlerContext, compile_for_cuda


def refused(function: Any) -> tuple[str, int]:
    """Why a handler cannot be compiled, and in which of its lines, counted from its `def`."""
    handler = ring_kernel(
        kernel_id="bad", state=Kept, max_emit=1, targets={"audit": Memo}, auto_register=False
    )(function)
    with pytest.raises(KernelCompilationError) as caught:
        compile_for_cuda(handler)
    place, _, reason = str(caught.value.cause).removeprefix(f"{__file__}:").partition(": ")
    return reason, int(place) - function.__code__.co_firstlineno


def test_without_numba_cuda_the_reason_is_told() -> None:
    if "numba_cuda" in sys.modules:
        pytest.skip("numba-cuda is here")
    with pytest.raises(BackendNotAvailableError, match="numba-cuda is needed"):
        compile_for_cuda(clerk)


def test_what_is_no_python_handler_is_refused() -> None:
    with pytest.raises(TypeError, match="no Python handler"):
        compile_for_cuda(len)
    with pytest.raises(ValueError, match="name of a function of C"):
        compile_for_cuda(clerk, symbol="two words")


def test_an_index_that_is_known_to_be_beyond_is_refused() -> None:
    def bad(msg: Figure, state: Kept, out: Figure) -> int:
        out.value = state.last[4]
        return 1

    assert refused(bad) == ("4 is no index of an array of 4", 1)


def test_what_has_no_known_length_is_not_indexed() -> None:
    table = (1, 2, 3)

    def bad(msg: Figure, state: Kept, out: Figure) -> int:
        out.value = table[msg.value]
        return 1

    reason, line = refused(bad)
    assert (line, "how long 'table' is" in reason) == (1, True)


def test_exceptions_are_not_caught() -> None:
    def bad(msg: Figure, state: Kept, out: Figure) -> int:
        try:
            out.value = 1 // msg.value
        except ZeroDivisionError:
            return 0
        return 1

    assert refused(bad) == ("a device has no exceptions to catch", 1)


def test_a_path_without_a_result_is_refused() -> None:
    def bad(msg: Figure, state: Kept, out: Figure) -> Any:
        if msg.value:
            return
        return 1

    assert refused(bad)[1] == 2


def test_the_context_is_for_calls_that_are_known() -> None:
    def sends(msg: Figure, state: Kept, out: Figure, ctx: HandlerContext) -> int:
        return ctx.send("nobody", out)

    def passes(msg: Figure, state: Kept, out: Figure, ctx: HandlerContext) -> int:
        other = ctx
        return other.tick()

    def shouts(msg: Figure, state: Kept, out: Figure, ctx: HandlerContext) -> int:
        ctx.shout("hello")  # type: ignore[attr-defined]
        return 0

    def tells(msg: Figure, state: Kept, out: Figure, ctx: HandlerContext) -> int:
        ctx.log(f"{msg.value}")
        return 0

    assert refused(sends) == (
        "kernel 'nobody' is not among the targets of the handler: 'audit'",
        1,
    )
    assert refused(passes) == ("'ctx' is for calls of its methods only", 1)
    assert "ctx.shout is called otherwise" in refused(shouts)[0]
    assert refused(tells) == ("what is logged is a literal text, since it is compiled", 1)


def test_helpers_do_only_what_needs_no_check() -> None:
    numba = pytest.importorskip("numba")

    @numba.njit
    def total(values: Any) -> int:
        sum = 0
        for value in values:
            sum += value
        return sum

    def bad(msg: Figure, state: Kept, out: Figure) -> int:
        out.value = total(state.last)
        return 1

    reason, line = refused(bad)
    assert (line, "'total' has loops" in reason) == (1, True)


def _twice(value: int) -> int:
    return 2 * value


def test_plain_functions_are_compiled_for_the_processor_only() -> None:
    def bad(msg: Figure, state: Kept, out: Figure) -> int:
        out.value = _twice(msg.value)
        return 1

    reason, line = refused(bad)
    assert (line, "'_twice' is a plain function" in reason) == (1, True)


def test_the_message_is_not_written_and_lists_are_not_made() -> None:
    def writes(msg: Figure, state: Kept, out: Figure) -> int:
        msg.value = 1
        return 0

    def lists(msg: Figure, state: Kept, out: Figure) -> int:
        state.count = np.uint32(len([msg.value]))
        return 0

    assert "is not the handler's" in refused(writes)[0]
    assert refused(lists) == ("a device makes no lists", 1)
