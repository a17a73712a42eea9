"""The handler that is run everywhere: interpreted, compiled, in a process, for a GPU."""

from typing import Annotated

import numpy as np
from numpy.typing import NDArray

from pydotcompute import message, ring_kernel
from pydotcompute.handlers import HandlerContext, record


@message(layout="record")
class Trade:
    account: np.uint16
    side: np.int8
    flags: np.uint8
    quantity: np.uint32
    price: np.float32
    value: float
    sequence: np.uint64


@record
class Side:
    volume: int
    mean: float
    last: np.float32


@record
class Book:
    sides: Annotated[list[Side], 2]
    count: np.uint64
    seen: Annotated[NDArray[np.uint32], 8]
    weights: Annotated[NDArray[np.float32], (2, 4)]
    spread: np.float32
    carry: np.int16


@message(layout="record")
class Quote:
    account: np.uint16
    net: int
    delta: np.int32
    fee: np.float32
    mean: float
    scaled: float
    step: np.int8
    code: np.uint8
    order: np.uint64


@ring_kernel(kernel_id="book", state=Book, max_emit=2, auto_register=False)
def book(msg: Trade, state: Book, out: Quote, ctx: HandlerContext) -> int:
    state.count += np.uint64(1)
    if msg.flags & 1:
        return 0
    index = 1 if msg.side < 0 else 0
    side = state.sides[index]
    side.volume += msg.quantity * msg.side
    side.mean = side.mean + (msg.value - side.mean) / (1.0 + msg.account % 7)
    side.last = msg.price * side.last + msg.price
    bucket = msg.account % 8
    state.seen[bucket] += np.uint32(1)
    state.weights[index, bucket % 4] = state.weights[index, bucket % 4] * msg.price + 0.5
    state.spread = state.sides[0].last - state.sides[1].last
    # Wraps, as a field of 16 bits does.
    state.carry += msg.quantity
    out.account = msg.account
    out.net = state.sides[0].volume + state.sides[1].volume
    out.delta = msg.quantity - state.seen[bucket]
    out.fee = msg.price / 3 + state.weights[index, 1]
    out.mean = state.sides[0].mean * 0.25 - state.sides[1].mean
    out.scaled = msg.price * msg.price * 2.0 + float(state.carry // 3) + state.carry % 5
    out.step = msg.quantity
    out.code = (msg.flags >> 1) ^ (msg.account & 255)
    out.order = msg.sequence
    if msg.flags & 2:
        ctx.emit(out)
        out.net = -out.net
    if msg.flags & 4 and ctx.emit(out) < 0:
        return -1
    return 1
