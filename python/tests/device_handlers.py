"""A handler that does all that one can do on a device, and what a device has no form for."""

from typing import Annotated

import numpy as np
from numpy.typing import NDArray

from pydotcompute import message, ring_kernel
from pydotcompute.handlers import HandlerContext, record


@message(layout="record")
class Figure:
    value: int


@message(layout="record")
class Memo:
    value: int
    code: np.int32


@record
class Kept:
    last: Annotated[NDArray[np.int64], 4]
    count: np.uint32


@ring_kernel(
    kernel_id="clerk", state=Kept, max_emit=3, targets={"audit": Memo}, auto_register=False
)
def clerk(msg: Figure, state: Kept, out: Figure, ctx: HandlerContext) -> int:
    """Uses every call of the context, loops, indices, division, exceptions."""
    if msg.value == 0:
        return ctx.fault(-7, "nothing to repeat")
    if msg.value == -2:
        raise ValueError("amounts are not negative", msg.value)
    assert msg.value > -10, "far below zero"
    state.last[msg.value] = state.last[-1] + 100 // msg.value
    state.count += np.uint32(1)
    for index in range(msg.value):
        out.value = index
        if ctx.emit(out) < 0:
            return -1
    left: int = msg.value
    while left > 1:
        left //= 2
        if ctx.tick() < 0:
            return -1
    note = ctx.record("audit")
    note.value = ctx.clock()
    note.code = 5
    ctx.send("audit", note)
    ctx.log("repeated")
    ctx.log("loudly", 30)
    out.value = state.last[0]
    return 1
