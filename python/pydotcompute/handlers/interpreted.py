"""Handlers without numba: the same function, run by the interpreter.

Records are given to the handler as views of their bytes whose numbers compute as numba's would:
integers are Python's, and wrap when they are stored; a float32 stays one with its like and becomes
a float64 with any other number; of unsigned integers the difference, sum and product wrap at 64
bits, and with a signed one a uint64 becomes a float64.

What may differ from the compiled handler: integers that overflow 64 bits before they are stored;
functions of `math` and whole-array functions of numpy in the last digits; floats beyond a field's
integers, which C leaves open.
"""

from __future__ import annotations

import operator
import struct
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from pydotcompute.handlers.record import _CODES, Field, RecordType
from pydotcompute.handlers.spec import log

if TYPE_CHECKING:
    from pydotcompute import _native
    from pydotcompute.handlers.spec import PythonHandler

__all__ = ["code"]

# --- numbers -------------------------------------------------------------------------------------


class Float32(np.float32):
    """A float32 as numba has it: with any other number it becomes a float64."""

    def __neg__(self) -> Any:
        return Float32(np.float32.__neg__(self))

    def __abs__(self) -> Any:
        return Float32(np.float32.__abs__(self))


class Unsigned(int):
    """An integer of 8 to 32 unsigned bits: with its like it gives 64 unsigned bits."""


class Unsigned64(int):
    """An integer of 64 unsigned bits: with a signed one it becomes a float64."""


def _float32(name: str) -> Callable[[Any, Any], Any]:
    plain = getattr(np.float32, name)
    double = getattr(float, name)

    def compute(self: Any, other: Any) -> Any:
        if isinstance(other, np.float32):
            if name in ("__truediv__", "__floordiv__", "__mod__") and other == 0:
                raise ZeroDivisionError("division by zero")
            with np.errstate(all="ignore"):
                result = plain(self, other)
        elif isinstance(other, int | float | np.floating):
            return double(float(self), float(other))
        else:
            return NotImplemented
        return result if isinstance(result, bool | np.bool_) else Float32(result)

    return compute


def _unsigned(name: str, wide: bool) -> Callable[[Any, Any], Any]:
    whole = getattr(int, name)
    real = getattr(float, name)

    def compute(self: Any, other: Any) -> Any:
        if isinstance(other, Unsigned | Unsigned64):
            return Unsigned64(whole(self, other) & 0xFFFF_FFFF_FFFF_FFFF)
        if wide and isinstance(other, int):
            return real(float(self), float(other))
        return whole(self, other)

    return compute


for _name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow"):
    for _form in (f"__{_name}__", f"__r{_name}__"):
        setattr(Float32, _form, _float32(_form))
        if _name in ("add", "sub", "mul"):
            setattr(Unsigned, _form, _unsigned(_form, wide=False))
            setattr(Unsigned64, _form, _unsigned(_form, wide=True))
_READ: dict[str, Callable[[Any], Any]] = {
    **dict.fromkeys(("u1", "u2", "u4"), Unsigned),
    "u8": Unsigned64,
    "f4": Float32,
}


def _stored(code: str) -> Callable[[Any], Any]:
    """What turns a number into what a field of this type holds."""
    if code[0] == "f":
        return np.float32 if code == "f4" else float
    bits = 8 * int(code[1])
    mask, sign = (1 << bits) - 1, 1 << (bits - 1) if code[0] == "i" else 0

    def store(value: Any) -> int:
        whole = int(value) & mask
        return whole - (mask + 1) if whole & sign else whole

    return store


# --- records -------------------------------------------------------------------------------------


class View:
    """A record that lies in a buffer; a subclass for each record type has its fields."""

    __slots__ = ("_data", "_start")

    def __init__(self, data: Any, start: int) -> None:
        self._data = data
        self._start = start

    @property
    def _bytes(self) -> bytes:
        record: RecordType = self._record  # type: ignore[attr-defined]
        return bytes(self._data[self._start : self._start + record.layout.nbytes])


class ArrayView:
    """An array in a record: its numbers compute as a record's do."""

    __slots__ = ("_array", "_code", "_inner", "_read")

    def __init__(self, array: Any, code: str, inner: type[View] | None) -> None:
        self._array = array
        self._code = code
        self._inner = inner
        self._read = _READ.get(code)

    def __getitem__(self, index: Any) -> Any:
        found = self._array[index]
        if isinstance(found, np.ndarray):
            return ArrayView(found, self._code, self._inner)
        if self._inner is not None:
            raw = self._array.view(np.uint8).reshape(len(self._array), -1)[index]
            return self._inner(memoryview(raw), 0)
        return self._read(found) if self._read is not None else found.item()

    def __setitem__(self, index: Any, value: Any) -> None:
        if isinstance(value, ArrayView):
            value = value._array
        elif not isinstance(value, np.ndarray) and self._code:
            value = _stored(self._code)(value)
        self._array[index] = value

    def __len__(self) -> int:
        return len(self._array)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        return np.array(self._array, dtype=dtype, copy=copy)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._array, name)

    def __iter__(self) -> Any:
        return (self[index] for index in range(len(self)))


_views: dict[RecordType, type[View]] = {}


def view_of(record: RecordType) -> type[View]:
    """The class of views of a record type."""
    if record not in _views:
        members: dict[str, Any] = {"__slots__": (), "_record": record}
        for field in record.fields:
            members[field.name] = _member(field)
        _views[record] = type(record.cls.__name__, (View,), members)
    return _views[record]


def _member(field: Field) -> property:
    offset = field.offset
    if field.shape:
        dtype = np.dtype(field.dtype)
        inner = view_of(field.inner) if field.inner is not None else None

        def get_array(self: View) -> ArrayView:
            start = self._start + offset
            data = np.frombuffer(self._data, dtype.base, int(np.prod(field.shape)), start)
            return ArrayView(data.reshape(field.shape), field.code, inner)

        def set_array(self: View, value: Any) -> None:
            get_array(self)[...] = value

        return property(get_array, set_array)
    if field.inner is not None:
        view, size = view_of(field.inner), field.inner.layout.nbytes

        def set_inner(self: View, value: View) -> None:
            start = self._start + offset
            self._data[start : start + size] = value._bytes

        return property(lambda self: view(self._data, self._start + offset), set_inner)
    form = struct.Struct("<" + _CODES[field.code])
    unpack, pack = form.unpack_from, form.pack_into
    read, store = _READ.get(field.code), _stored(field.code)

    def get(self: View) -> Any:
        value = unpack(self._data, self._start + offset)[0]
        return value if read is None else read(value)

    def put(self: View, value: Any) -> None:
        pack(self._data, self._start + offset, store(value))

    return property(get, put)


# --- running -------------------------------------------------------------------------------------


class Context:
    """The context of an interpreted handler."""

    def __init__(self, handler: PythonHandler, call: _native.HandlerCall) -> None:
        self._call = call
        self._targets = {
            name: (index, record) for index, (name, record) in enumerate(handler.signature.targets)
        }

    def _target(self, kernel: str) -> tuple[int, RecordType]:
        if kernel not in self._targets:
            names = ", ".join(map(repr, self._targets)) or "none"
            raise KeyError(f"kernel {kernel!r} is not among the targets of the handler: {names}")
        return self._targets[kernel]

    def emit(self, record: View, /) -> int:
        return self._call.emit(record._bytes)

    def send(self, kernel: str, record: View, /) -> int:
        return self._call.send(self._target(kernel)[0], record._bytes)

    def record(self, kernel: str, /) -> View:
        record = self._target(kernel)[1]
        return view_of(record)(bytearray(record.layout.nbytes), 0)

    def log(self, text: str, level: int = 20, /) -> None:
        self._call.log(level, text)

    def fault(self, code: int, text: str = "", /) -> int:
        return self._call.fault(code, text)

    def tick(self) -> int:
        return self._call.tick()

    def clock(self) -> int:
        return time.monotonic_ns()


def code(handler: PythonHandler) -> tuple[Any, ...]:
    """What the native half calls a handler by."""
    said = handler.signature
    message_view = view_of(said.input)
    state_view = view_of(said.state) if said.state is not None else None
    reply_view = view_of(said.output) if said.output is not None else None
    reply_bytes = said.output.layout.nbytes if said.output is not None else 0
    step = said.input.layout.nbytes
    function = handler.function

    def run(call: _native.HandlerCall) -> int:
        data = call.input()
        kept = bytearray(call.state())
        state = state_view(kept, 0) if state_view is not None else None
        context = (Context(handler, call),) if handler.takes_context else ()
        single = call.is_single()
        result = 0
        for index, start in enumerate(range(0, len(data), step)):
            call.set_record(index)
            room = bytearray(reply_bytes)
            out = reply_view(room, 0) if reply_view is not None else None
            try:
                returned = function(message_view(data, start), state, out, *context)
                result = max(-(1 << 31), min(operator.index(returned), (1 << 31) - 1))
            except BaseException as error:
                if not single:
                    error.add_note(f"at record {index} of {len(data) // step}")
                raise
            if not call.is_fine(result):
                break
            if result == 1 and reply_view is not None:
                call.push_reply(bytes(room))
        call.set_state(bytes(kept))
        return result

    return "python", run, log
