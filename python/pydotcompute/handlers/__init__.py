"""Compiled handlers: one plain function per message, compiled by numba and run without the GIL.

`@ring_kernel(kernel_id=..., state=...)` on a plain function makes a compiled handler of it:

>>> from pydotcompute import message, ring_kernel
>>> from pydotcompute.handlers import record
>>> @message(layout="record")
... class Amount:
...     value: int
>>> @record
... class Total:
...     sum: int
>>> @ring_kernel(kernel_id="total", state=Total)
... def total(msg: Amount, state: Total, out: Amount) -> int:
...     state.sum += msg.value
...     out.value = state.sum
...     return 1

It is called once per record, with the record, the state and a zeroed record for its reply, and
returns 1 (there is a reply), 0 (there is none) or a negative fault code. It may change `state` and
`out` and nothing else, must not wait, and keeps none of its arguments. An exception that leaves it
fails the kernel, as in any other. With a fourth parameter it gets a `HandlerContext`, by which it
can emit more replies, send to other kernels, log, fail with a text and look at the clock.

Sent one by one, records are messages as any others, and so are their replies. An array of records
(see `record_dtype`) is a batch: one message, whose replies come as one array too. Whoever asks with
a batch always gets one, also an empty one. Of a batch in which one record fails no reply goes out.

Compiled, a handler follows numba's rules for numbers: int64 and float64 wrap and round as in C.
What numba cannot compile is an error at launch, with the line and the reason. Plain functions of
its own module that a handler calls are compiled with it (for a GPU they are written out). Where
numba is not installed the same handler is interpreted, with a warning: `interpreted` says what may
differ then.

`compile_for_cuda` compiles the same handler for a GPU, without one. A message that fails there
loses its exception's arguments; a multiplication followed by an addition may be rounded once.
"""

from pydotcompute.handlers._cuda import CudaCode, compile_for_cuda
from pydotcompute.handlers.context import HandlerContext
from pydotcompute.handlers.cuda import (
    CudaHandler,
    FreeMultiprocessors,
    cuda_handler,
    ring_free_sms,
    ring_placements,
)
from pydotcompute.handlers.native import NativeHandler, native_handler
from pydotcompute.handlers.record import (
    DevicePointer,
    RecordBatch,
    c_struct,
    record,
    record_dtype,
    record_type,
)
from pydotcompute.handlers.spec import Handler

__all__ = [
    "CudaCode",
    "CudaHandler",
    "DevicePointer",
    "FreeMultiprocessors",
    "Handler",
    "HandlerContext",
    "NativeHandler",
    "RecordBatch",
    "c_struct",
    "compile_for_cuda",
    "cuda_handler",
    "native_handler",
    "record",
    "record_dtype",
    "record_type",
    "ring_free_sms",
    "ring_placements",
]
