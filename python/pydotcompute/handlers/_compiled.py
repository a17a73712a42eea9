"""Handlers compiled by numba, into a loop over the records of a message.

The loop is called by the Rust core, without the interpreter, by numba's own calling convention:
its status and exception information carry a Python exception out of the handler (a `cfunc` would
swallow it). That convention is numba's own business, so the package names the versions of numba
that it was tested with.
"""

from __future__ import annotations

import ctypes
import importlib
import inspect
import re
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from llvmlite import ir

from pydotcompute.exceptions import KernelCompilationError
from pydotcompute.handlers.spec import log

if TYPE_CHECKING:
    from pydotcompute.handlers.spec import PythonHandler

__all__ = ["code"]

# Of its compiler numba has types in part only; here it has none.
numba: Any = importlib.import_module("numba")
types: Any = importlib.import_module("numba.core.types")
errors: Any = importlib.import_module("numba.core.errors")
cgutils: Any = importlib.import_module("numba.core.cgutils")
serialize: Any = importlib.import_module("numba.core.serialize")
models: Any = importlib.import_module("numba.core.datamodel.models")
templates: Any = importlib.import_module("numba.core.typing.templates")
extending: Any = importlib.import_module("numba.core.extending")
lower_builtin: Any = importlib.import_module("numba.core.imputils").lower_builtin
intrinsic: Any = extending.intrinsic
signature: Any = templates.signature

#: The functions of a context's table, in their order: see `HandlerCalls` of the ABI.
_CALLS = {"emit": 0, "send": 1, "log": 2, "fault": 3, "tick": 4, "clock": 5, "reply": 6}

_BYTE = ir.IntType(8)
_POINTER = _BYTE.as_pointer()
_I32 = ir.IntType(32)
_I64 = ir.IntType(64)

#: A result that is not -1 to -2^31 is told as this less the result.
_RESULT_BASE = -(1 << 32)


# --- the context ---------------------------------------------------------------------------------


class ContextType(types.Opaque):
    """The type of a handler's context: it knows the records of its replies and targets."""

    def __init__(self, output: Any, targets: tuple[tuple[str, Any], ...]) -> None:
        self.output = output
        self.targets = targets
        super().__init__(f"HandlerContext({output}, {targets})")


extending.register_model(ContextType)(models.OpaqueModel)


def _literal(kind: Any, what: str) -> Any:
    if not isinstance(kind, types.StringLiteral):
        raise errors.TypingError(f"{what} is a literal text, since it is compiled")
    return kind


def _target(context: ContextType, name: Any) -> tuple[int, Any]:
    wanted = _literal(name, "the name of a kernel").literal_value
    for index, (known, record) in enumerate(context.targets):
        if known == wanted:
            return index, record
    names = ", ".join(repr(known) for known, _ in context.targets) or "none"
    raise errors.TypingError(f"kernel {wanted!r} is not among the targets of the handler: {names}")


@templates.infer_getattr
class _ContextMethods(templates.AttributeTemplate):
    key = ContextType

    @templates.bound_function("rk.emit")
    def resolve_emit(self, context: Any, args: Any, kws: Any) -> Any:
        if len(args) != 1 or kws or args[0] != context.output:
            raise errors.TypingError(f"ctx.emit takes one record of the replies, {context.output}")
        return signature(types.int64, args[0], recvr=context)

    @templates.bound_function("rk.send")
    def resolve_send(self, context: Any, args: Any, kws: Any) -> Any:
        if len(args) != 2 or kws:
            raise errors.TypingError("ctx.send takes the name of a kernel and a record")
        _, record = _target(context, args[0])
        if args[1] != record:
            raise errors.TypingError(f"ctx.send: {args[0]} takes {record}, not {args[1]}")
        return signature(types.int64, *args, recvr=context)

    @templates.bound_function("rk.record")
    def resolve_record(self, context: Any, args: Any, kws: Any) -> Any:
        if len(args) != 1 or kws:
            raise errors.TypingError("ctx.record takes the name of a kernel")
        _, record = _target(context, args[0])
        return signature(record, *args, recvr=context)

    @templates.bound_function("rk.log")
    def resolve_log(self, context: Any, args: Any, kws: Any) -> Any:
        if len(args) not in (1, 2) or kws:
            raise errors.TypingError("ctx.log takes a text and a level")
        _literal(args[0], "what is logged")
        return signature(types.none, args[0], *[types.int64] * (len(args) - 1), recvr=context)

    @templates.bound_function("rk.fault")
    def resolve_fault(self, context: Any, args: Any, kws: Any) -> Any:
        if len(args) not in (1, 2) or kws or not isinstance(args[0], types.Integer):
            raise errors.TypingError("ctx.fault takes a negative code and a text")
        texts = [_literal(arg, "the text of a fault") for arg in args[1:]]
        return signature(types.int64, types.int64, *texts, recvr=context)

    @templates.bound_function("rk.tick")
    def resolve_tick(self, context: Any, args: Any, kws: Any) -> Any:
        if args or kws:
            raise errors.TypingError("ctx.tick takes no arguments")
        return signature(types.int64, recvr=context)

    @templates.bound_function("rk.clock")
    def resolve_clock(self, context: Any, args: Any, kws: Any) -> Any:
        if args or kws:
            raise errors.TypingError("ctx.clock takes no arguments")
        return signature(types.int64, recvr=context)


def _call(builder: Any, context: Any, name: str, result: Any, args: list[Any]) -> Any:
    """Call a function of the context's table."""
    table = builder.load(builder.bitcast(context, _POINTER.as_pointer().as_pointer()))
    function = builder.load(builder.gep(table, [_I32(_CALLS[name])]))
    kind = ir.FunctionType(result, [_POINTER, *(arg.type for arg in args)])
    return builder.call(builder.bitcast(function, kind.as_pointer()), [context, *args])


def _text(target: Any, builder: Any, kind: Any) -> list[Any]:
    """The address and the length of a literal text."""
    data = kind.literal_value.encode()
    if not data:
        return [_POINTER(None), _I64(0)]
    constant = cgutils.global_constant(builder, "rk_text", cgutils.make_bytearray(data))
    return [builder.bitcast(constant, _POINTER), _I64(len(data))]


def _pointer(builder: Any, record: Any) -> Any:
    return builder.bitcast(record, _POINTER)


@lower_builtin("rk.emit", ContextType, types.Record)
def _lower_emit(target: Any, builder: Any, sig: Any, args: Any) -> Any:
    code = _call(builder, args[0], "emit", _I32, [_pointer(builder, args[1])])
    return builder.sext(code, _I64)


@lower_builtin("rk.send", ContextType, types.StringLiteral, types.Record)
def _lower_send(target: Any, builder: Any, sig: Any, args: Any) -> Any:
    index, _ = _target(sig.args[0], sig.args[1])
    code = _call(builder, args[0], "send", _I32, [_I32(index), _pointer(builder, args[2])])
    return builder.sext(code, _I64)


@lower_builtin("rk.record", ContextType, types.StringLiteral)
def _lower_record(target: Any, builder: Any, sig: Any, args: Any) -> Any:
    record = sig.return_type
    room = cgutils.alloca_once(builder, ir.ArrayType(_I64, (record.size + 7) // 8), name="record")
    pointer = builder.bitcast(room, _POINTER)
    cgutils.memset(builder, pointer, target.get_constant(types.intp, record.size), 0)
    return builder.bitcast(pointer, target.get_value_type(record))


@lower_builtin("rk.log", ContextType, types.StringLiteral)
@lower_builtin("rk.log", ContextType, types.StringLiteral, types.Integer)
def _lower_log(target: Any, builder: Any, sig: Any, args: Any) -> Any:
    level = builder.trunc(args[2], _I32) if len(args) > 2 else _I32(20)
    _call(builder, args[0], "log", ir.VoidType(), [level, *_text(target, builder, sig.args[1])])
    return target.get_dummy_value()


@lower_builtin("rk.fault", ContextType, types.Integer)
@lower_builtin("rk.fault", ContextType, types.Integer, types.StringLiteral)
def _lower_fault(target: Any, builder: Any, sig: Any, args: Any) -> Any:
    text = _text(target, builder, sig.args[2]) if len(args) > 2 else [_POINTER(None), _I64(0)]
    result = _call(builder, args[0], "fault", _I32, [builder.trunc(args[1], _I32), *text])
    return builder.sext(result, _I64)


@lower_builtin("rk.tick", ContextType)
def _lower_tick(target: Any, builder: Any, sig: Any, args: Any) -> Any:
    return builder.sext(_call(builder, args[0], "tick", _I32, []), _I64)


@lower_builtin("rk.clock", ContextType)
def _lower_clock(target: Any, builder: Any, sig: Any, args: Any) -> Any:
    return _call(builder, args[0], "clock", _I64, [])


# --- what the loop is made of --------------------------------------------------------------------


def _record_at(record: Any) -> Any:
    """An intrinsic: the record of this number in an array of them."""

    @intrinsic
    def record_at(typing: Any, start: Any, index: Any) -> Any:
        def lower(target: Any, builder: Any, sig: Any, args: Any) -> Any:
            offset = builder.mul(args[1], _I64(record.size))
            at = builder.gep(args[0], [offset])
            return builder.bitcast(at, target.get_value_type(record))

        return record(types.voidptr, types.int64), lower

    return record_at


def _nothing_at() -> Any:
    """The same where there is no record."""

    @numba.njit
    def nothing_at(start: Any, index: Any) -> None:
        return None

    return nothing_at


def _clear(record: Any) -> Any:
    """An intrinsic: zeroes a record."""

    @intrinsic
    def clear(typing: Any, value: Any) -> Any:
        def lower(target: Any, builder: Any, sig: Any, args: Any) -> Any:
            size = target.get_constant(types.intp, record.size)
            cgutils.memset(builder, _pointer(builder, args[0]), size, 0)
            return target.get_dummy_value()

        return types.void(record), lower

    return clear


@numba.njit
def _clear_nothing(value: Any) -> None:
    return None


@intrinsic
def _set_record(typing: Any, context: Any, index: Any) -> Any:
    """Say which record is in hand: a field of the context."""

    def lower(target: Any, builder: Any, sig: Any, args: Any) -> Any:
        at = builder.gep(args[0], [_I32(8)])
        builder.store(args[1], builder.bitcast(at, _I64.as_pointer()))
        return target.get_dummy_value()

    return types.void(context, types.int64), lower


@intrinsic
def _faulted(typing: Any, context: Any) -> Any:
    """Whether the handler reported a fault: a field of the context."""

    def lower(target: Any, builder: Any, sig: Any, args: Any) -> Any:
        at = builder.bitcast(builder.gep(args[0], [_I32(16)]), _I32.as_pointer())
        return builder.icmp_signed("!=", builder.load(at), _I32(0))

    return types.boolean(context), lower


@numba.njit
def _never(context: Any) -> bool:
    return False


@intrinsic
def _reply(typing: Any, context: Any, record: Any) -> Any:
    """Take the reply that the handler returned, after those that it emitted."""

    def lower(target: Any, builder: Any, sig: Any, args: Any) -> Any:
        _call(builder, args[0], "reply", _I32, [_pointer(builder, args[1])])
        return target.get_dummy_value()

    return types.void(context, record), lower


@numba.njit
def _no_reply(context: Any, record: Any) -> None:
    return None


def _make_loop(
    handler: Any,
    takes_context: bool,
    message_at: Any,
    state_at: Any,
    reply_at: Any,
    clear: Any,
    reply: Any,
    emits: bool,
) -> Any:
    """The loop around a compiled handler."""
    if takes_context:

        @numba.njit(error_model="python")
        def call(message: Any, state: Any, out: Any, context: Any) -> Any:
            return handler(message, state, out, context)

        faulted = _faulted
    else:

        @numba.njit(error_model="python")
        def call(message: Any, state: Any, out: Any, context: Any) -> Any:
            return handler(message, state, out)

        faulted = _never

    @numba.njit
    def stopped(result: int) -> int:
        if result < 0:
            return max(result, -(1 << 31))
        return _RESULT_BASE - min(result, (1 << 31) - 1)

    def loop(records: Any, count: int, states: Any, replies: Any, context: Any) -> Any:
        state = state_at(states, 0)
        written = 0
        for index in range(count):
            _set_record(context, index)
            out = reply_at(replies, 0 if emits else written)
            clear(out)
            result = numba.int64(call(message_at(records, index), state, out, context))
            if faulted(context):
                return stopped(result)
            if result == 1:
                if emits:
                    reply(context, out)
                else:
                    written += 1
            elif result != 0:
                return stopped(result)
        return written

    return loop


# --- compiling -----------------------------------------------------------------------------------

_lock = threading.Lock()
_compiled: dict[tuple[Any, ...], tuple[int, Any]] = {}


#: How a handler, and what it calls, is compiled.
_OPTIONS = {"boundscheck": True, "error_model": "python"}

_callable: set[Callable[..., Any]] = set()


def _make_callable(function: Callable[..., Any]) -> None:
    """Have numba compile the plain functions of its own module that a function calls, too."""
    for name in function.__code__.co_names:
        called = function.__globals__.get(name)
        if (
            inspect.isfunction(called)
            and called.__module__ == function.__module__
            and called not in _callable
        ):
            _callable.add(called)
            extending.register_jitable(**_OPTIONS)(called)
            _make_callable(called)


def _numba_record(record: Any) -> Any:
    """The numba type of a record; asserts that it lies as the record does."""
    made = numba.from_dtype(record.dtype)
    offsets = [made.offset(field.name) for field in record.fields]
    if made.size != record.layout.nbytes or offsets != record.layout.offsets:
        raise TypeError(f"numba lays the record '{record.cls.__name__}' out otherwise")
    return made


def code(kernel_id: str, handler: PythonHandler) -> tuple[Any, ...]:
    """Compile a handler; what the native half calls it by.

    Raises
    ------
    KernelCompilationError
        numba cannot compile it: says where and why.
    """
    said = handler.signature
    key = (handler.function, handler.takes_context, said)
    with _lock:
        if key not in _compiled:
            _compiled[key] = _compile(kernel_id, handler)
        address, library = _compiled[key]
    return "numba", address, _exception_of(handler.function), log, library


def _compile(kernel_id: str, handler: PythonHandler) -> tuple[int, Any]:
    said = handler.signature
    message = _numba_record(said.input)
    state = _numba_record(said.state) if said.state is not None else types.none
    out = _numba_record(said.output) if said.output is not None else types.none
    targets = tuple((name, _numba_record(record)) for name, record in said.targets)
    context = ContextType(out, targets)
    arguments = [message, state, out, *([context] if handler.takes_context else [])]
    dispatcher = numba.njit(**_OPTIONS)(handler.function)
    try:
        _make_callable(handler.function)
        dispatcher.compile(tuple(arguments))
        result = dispatcher.overloads[tuple(arguments)].signature.return_type
        if not isinstance(result, types.Integer | types.Boolean):
            line = handler.function.__code__.co_firstlineno
            raise errors.TypingError(
                "a handler returns 1, 0 or a negative fault code on every path, and this one "
                f'{result}\n\nFile "{handler.function.__code__.co_filename}", line {line}'
            )
        emits = said.max_emit > 0
        loop = _make_loop(
            dispatcher,
            handler.takes_context,
            _record_at(message),
            _record_at(state) if said.state is not None else _nothing_at(),
            _record_at(out) if said.output is not None else _nothing_at(),
            _clear(out) if said.output is not None else _clear_nothing,
            _reply if emits and said.output is not None else _no_reply,
            emits,
        )
        pointer = types.voidptr
        sig = types.int64(pointer, types.int64, pointer, pointer, context)
        compiled = numba.njit(sig, error_model="python")(loop)
    except Exception as error:
        # numba's own errors, and what its insides raise where they did not expect a program.
        raise KernelCompilationError(kernel_id, _reason(handler.function, error)) from error
    result = compiled.overloads[compiled.signatures[0]]
    address = result.library.get_pointer_to_function(result.fndesc.llvm_func_name)
    return address, (compiled, dispatcher)


def _reason(function: Callable[..., Any], error: Exception) -> Exception:
    """What numba says, with the line first."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
    lines = re.findall(r'File "([^"]+)", line (\d+)', text)
    file = function.__code__.co_filename
    inside = [line for name, line in lines if file.endswith(name.lstrip("./"))]
    line = inside[-1] if inside else function.__code__.co_firstlineno
    return TypeError(f"{file}:{line}: {text.strip()}")


# --- exceptions ----------------------------------------------------------------------------------


class _ExceptionInfo(ctypes.Structure):
    """numba's `excinfo_t`: see `CPUCallConv` in numba/core/callconv.py."""

    _fields_ = (
        ("pickled", ctypes.c_void_p),
        ("pickled_bytes", ctypes.c_int32),
        ("hash_or_values", ctypes.c_void_p),
        ("unwrap", ctypes.c_void_p),
        ("values", ctypes.c_int32),
    )


def _exception_of(
    function: Callable[..., Any],
) -> Callable[[int, int, int, int, bool], BaseException]:
    """What makes the exception that left a handler."""

    def exception(
        address: int, status: int, record: int, count: int, single: bool
    ) -> BaseException:
        made, where = _decode(address, status)
        name, file, line = where or (
            function.__name__,
            function.__code__.co_filename,
            function.__code__.co_firstlineno,
        )
        made.add_note(f"in handler {name}, {file}:{line}")
        if not single:
            made.add_note(f"at record {record} of {count}")
        return _with_traceback(made, name, file, line)

    return exception


def _decode(address: int, status: int) -> tuple[BaseException, tuple[str, str, int] | None]:
    """The exception that numba's status and exception information tell of, and where."""
    if status < 1 or not address:
        if status == -4:
            return StopIteration(), None
        return RuntimeError(f"numba's code failed without an exception (status {status})"), None
    info = _ExceptionInfo.from_address(address)
    data = ctypes.string_at(info.pickled, info.pickled_bytes)
    if info.values > 0:
        unwrap = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p)(info.unwrap)
        values = unwrap(info.hash_or_values)
        cls, args, where = serialize.runtime_build_excinfo_struct(data, values)
    else:
        cls, args, where = serialize.loads(data)
    if cls is None:
        return RuntimeError("an exception was raised again"), where
    return cls(*(args or ())), where


def _with_traceback(error: BaseException, name: str, file: str, line: int) -> BaseException:
    """Give an exception a traceback that leads to the line that raised it."""
    source = "\n" * (line - 1) + "raise error"
    made = compile(source, file, "exec").replace(co_name=name)
    try:
        exec(made, {"error": error})
    except BaseException as raised:
        if raised is error and error.__traceback__ is not None:
            error.__traceback__ = error.__traceback__.tb_next
    return error
