"""Python handlers for a GPU: the same function, compiled by numba-cuda to what the linker inlines.

A handler on a GPU has no exceptions, may be told to stop in a loop, and must not write beside its
records. So its source is rewritten first, statement by statement, with its lines kept:

- `raise` and `assert` become faults with the exception's name and text;
- a loop asks at each turn whether to go on, unless it has few turns known beforehand;
- an index is checked against the length of its field, and a divisor against zero: the message fails
  then, and what the handler goes on with is thrown away with the rest of it;
- the calls of the context become those of the device (see `calls.cuh`).

What cannot be rewritten is refused, with its line. Nothing here needs a GPU or a driver.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import textwrap
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

from pydotcompute.exceptions import BackendNotAvailableError, KernelCompilationError
from pydotcompute.handlers.record import Field, RecordType
from pydotcompute.handlers.spec import PythonHandler, Signature, check_source, handler_of

__all__ = ["CudaCode", "compile_for_cuda"]

FAULT_PANIC = -65_536
FAULT_BOUNDS = -65_539

#: A loop over no more numbers than this does not ask whether to go on.
FEW_TURNS = 64

#: How much of a text arrives: see `rk_log` in `dotcompute.cuh`.
TEXT_BYTES = 36


@dataclass(frozen=True)
class CudaCode:
    """A handler's device code, to be linked with the resident grid.

    Attributes
    ----------
    symbol
        Its name: ``int32_t symbol(const In *, State *, Out *, rk_ctx *)``.
    output, data
        The form of the code, and the code.
    compute_capability
        The devices that it is for.
    signature
        The records that it takes, keeps and makes, whose layouts the code has.
    """

    symbol: str
    output: Literal["ltoir", "ptx"]
    data: bytes
    compute_capability: tuple[int, int]
    signature: Signature


def compile_for_cuda(
    handler: Any,
    *,
    symbol: str | None = None,
    compute_capability: tuple[int, int] = (9, 0),
    output: Literal["ltoir", "ptx"] = "ltoir",
) -> CudaCode:
    """Compile a handler for GPUs of a compute capability.

    Parameters
    ----------
    handler
        What `ring_kernel` made of a plain function with `state=`.
    symbol
        The name of the function in the code; that of the Python function without one.
    compute_capability
        Of the devices.
    output
        "ltoir", which is inlined where it is linked, or "ptx".

    Raises
    ------
    BackendNotAvailableError
        numba-cuda, or the compiler below it, is not installed: says what is missing.
    KernelCompilationError
        The handler cannot be compiled: says where and why.
    TypeError
        It is no Python handler.
    """
    found = handler_of(handler)
    if not isinstance(found, PythonHandler):
        raise TypeError(f"{handler!r} is no Python handler: see ring_kernel(state=...)")
    name = symbol if symbol is not None else found.function.__name__
    if not re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII):
        raise ValueError(f"'{name}' cannot be the name of a function of C")
    check_source(name, found)
    tree, file = _parsed(name, found)
    rewritten = _Rewrite(name, found, file)
    function = rewritten.function(tree)
    with _lock, _without_device(compute_capability) as numba_cuda:
        return _compiled(name, found, function, rewritten, numba_cuda, compute_capability, output)


# --- the source ----------------------------------------------------------------------------------


def _parsed(name: str, handler: PythonHandler) -> tuple[ast.FunctionDef, str]:
    function = handler.function
    file = inspect.getsourcefile(function) or function.__code__.co_filename
    try:
        lines, first = inspect.getsourcelines(function)
        tree = ast.parse(textwrap.dedent("".join(lines)))
    except (OSError, TypeError, SyntaxError) as error:
        reason = TypeError(f"{file}: its source is needed, and there is none: {error}")
        raise KernelCompilationError(name, reason) from error
    ast.increment_lineno(tree, first - 1)
    definition = tree.body[0]
    if not isinstance(definition, ast.FunctionDef):
        reason = TypeError(f"{file}:{first}: a handler is a function that 'def' defines")
        raise KernelCompilationError(name, reason)
    return definition, file


#: What has no form on a device, and why.
_REFUSED: dict[type[ast.AST], str] = {
    ast.Try: "a device has no exceptions to catch",
    ast.With: "a device has no context managers",
    ast.Yield: "a handler is no generator",
    ast.YieldFrom: "a handler is no generator",
    ast.Await: "a handler never waits",
    ast.Import: "import it outside of the handler",
    ast.ImportFrom: "import it outside of the handler",
    ast.Lambda: "write it out, so that it can be checked",
    ast.FunctionDef: "write it out, so that it can be checked",
    ast.AsyncFunctionDef: "a handler never waits",
    ast.ClassDef: "a device makes no classes",
    ast.ListComp: "a device makes no lists: write a loop",
    ast.SetComp: "a device makes no sets: write a loop",
    ast.DictComp: "a device makes no dicts: write a loop",
    ast.GeneratorExp: "a device makes no generators: write a loop",
    ast.List: "a device makes no lists",
    ast.Dict: "a device makes no dicts",
    ast.Set: "a device makes no sets",
    ast.JoinedStr: "a device makes no texts: give a literal",
    ast.Global: "a handler keeps what it has to keep in its state",
    ast.Nonlocal: "a handler keeps what it has to keep in its state",
    ast.Slice: "a slice cannot be checked: write a loop",
}

#: What an expression is, where that is known: a record, or an array in one with its lengths.
_Shape = RecordType | tuple[Field, tuple[int, ...]] | None


class _Rewrite(ast.NodeTransformer):
    """Rewrites a handler; what is rewritten has the line of what was there."""

    def __init__(self, name: str, handler: PythonHandler, file: str) -> None:
        self.name = name
        self.handler = handler
        self.file = file
        self.targets = {
            kernel: index for index, (kernel, _) in enumerate(handler.signature.targets)
        }
        #: What the rewritten function calls: names, and what makes the device's function.
        self.calls: dict[str, tuple[Any, ...]] = {}
        self.shapes: dict[str, _Shape] = {}
        self.context = ""

    def refuse(self, node: ast.AST, reason: str) -> NoReturn:
        line = getattr(node, "lineno", self.handler.function.__code__.co_firstlineno)
        error = TypeError(f"{self.file}:{line}: {reason}")
        raise KernelCompilationError(self.name, error)

    def function(self, definition: ast.FunctionDef) -> Callable[..., Any]:
        """The rewritten function; what it calls by `__rk_*` is still to be put into its globals."""
        said = self.handler.signature
        names = [one.arg for one in (*definition.args.posonlyargs, *definition.args.args)]
        for name, record in zip(names, (said.input, said.state, said.output), strict=False):
            self.shapes[name] = record
        stored = [
            node.id
            for node in ast.walk(definition)
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
        ]
        self.context = names[3] if len(names) > 3 else "__rk_context"
        # A name that stands for a part of a record, and for nothing else, is followed.
        for node in ast.walk(definition):
            if (
                isinstance(node, ast.Assign)
                and len(node.targets) == 1
                and isinstance(target := node.targets[0], ast.Name)
                and stored.count(target.id) == 1
                and target.id not in names
            ):
                self.shapes[target.id] = self.shape(node.value)
        for name in names:
            if name in stored:
                self.refuse(definition, f"'{name}' is the handler's argument: take another name")
        body = [self.visit(statement) for statement in definition.body]
        arguments = [ast.arg(name) for name in (*names[:3], self.context)]
        made = ast.FunctionDef(
            name=self.name,
            args=ast.arguments(
                posonlyargs=[], args=arguments, kwonlyargs=[], kw_defaults=[], defaults=[]
            ),
            body=[one for some in body for one in (some if isinstance(some, list) else [some])],
            decorator_list=[],
        )
        ast.copy_location(made, definition)
        module = ast.fix_missing_locations(ast.Module(body=[made], type_ignores=[]))
        function = self.handler.function
        scope = {**function.__globals__, **inspect.getclosurevars(function).nonlocals}
        exec(compile(module, self.file, "exec"), scope)
        result: Callable[..., Any] = scope[self.name]
        return result

    # What an expression is.

    def shape(self, node: ast.expr) -> _Shape:
        if isinstance(node, ast.Name):
            return self.shapes.get(node.id)
        if isinstance(node, ast.Attribute):
            record = self.shape(node.value)
            if isinstance(record, RecordType):
                for field in record.fields:
                    if field.name == node.attr:
                        return (field, field.shape) if field.shape else field.inner
        if isinstance(node, ast.Subscript):
            array = self.shape(node.value)
            if isinstance(array, tuple):
                field, lengths = array
                left = lengths[len(node.slice.elts) if isinstance(node.slice, ast.Tuple) else 1 :]
                return (field, left) if left else field.inner
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and isinstance(node.func.value, ast.Name)
            and (node.func.value.id, node.func.attr) == (self.context, "record")
            and len(node.args) == 1
        ):
            return self.handler.signature.targets[self.target(node.args[0])][1]
        return None

    # What the rewritten function calls.

    def call(self, at: ast.AST, kind: str, *args: ast.expr, of: tuple[Any, ...] = ()) -> ast.Call:
        wanted = (kind, *of)
        same = [name for name, known in self.calls.items() if known == wanted]
        name = same[0] if same else f"__rk_{kind}_{len(self.calls)}"
        self.calls[name] = wanted
        context = ast.Name(self.context, ast.Load())
        made = ast.Call(ast.Name(name, ast.Load()), [context, *args], [])
        return ast.copy_location(made, at)

    def fault(self, at: ast.AST, code: int, text: str) -> ast.Return:
        made = ast.Return(self.call(at, "fault", ast.Constant(code), of=(text,)))
        return ast.copy_location(made, at)

    def text(self, node: ast.expr, what: str) -> str:
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            return node.value
        self.refuse(node, f"{what} is a literal text, since it is compiled")

    def target(self, node: ast.expr) -> int:
        name = self.text(node, "the name of a kernel")
        if name not in self.targets:
            names = ", ".join(map(repr, self.targets)) or "none"
            self.refuse(node, f"kernel {name!r} is not among the targets of the handler: {names}")
        return self.targets[name]

    # Statements.

    def generic_visit(self, node: ast.AST) -> ast.AST:
        reason = _REFUSED.get(type(node))
        if reason is not None:
            self.refuse(node, reason)
        return super().generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        # An annotation is for people.
        if node.value is None:
            return ast.copy_location(ast.Pass(), node)
        made = ast.Assign([node.target], node.value)
        return self.visit(ast.copy_location(made, node))  # type: ignore[no-any-return]

    def visit_Raise(self, node: ast.Raise) -> ast.AST:
        raised = node.exc
        if raised is None:
            self.refuse(node, "there is no exception to raise again")
        called = raised.func if isinstance(raised, ast.Call) else raised
        name = ast.unparse(called)
        texts = [
            argument.value
            for argument in (raised.args if isinstance(raised, ast.Call) else [])
            if isinstance(argument, ast.Constant) and isinstance(argument.value, str)
        ]
        return self.fault(node, FAULT_PANIC, ": ".join([name, *texts]))

    def visit_Assert(self, node: ast.Assert) -> ast.AST:
        message = node.msg.value if isinstance(node.msg, ast.Constant) else None
        texts = ["AssertionError", *([message] if isinstance(message, str) else [])]
        stop = self.fault(node, FAULT_PANIC, ": ".join(texts))
        test = ast.UnaryOp(ast.Not(), self.visit(node.test))
        return ast.copy_location(ast.If(test, [stop], []), node)

    def visit_Return(self, node: ast.Return) -> ast.AST:
        if node.value is None:
            self.refuse(node, "a handler returns 1, 0 or a negative fault code on every path")
        return self.generic_visit(node)

    def visit_While(self, node: ast.While) -> ast.AST:
        self.generic_visit(node)
        node.body.insert(0, self.tick(node))
        return node

    def visit_For(self, node: ast.For) -> ast.AST:
        few = _turns(node.iter) <= FEW_TURNS or self.shape(node.iter) is not None
        self.generic_visit(node)
        if not few:
            node.body.insert(0, self.tick(node))
        return node

    def tick(self, node: ast.AST) -> ast.stmt:
        told = ast.Compare(self.call(node, "tick"), [ast.NotEq()], [ast.Constant(0)])
        # The code of the fault is the context's.
        stop = ast.Return(ast.UnaryOp(ast.USub(), ast.Constant(1)))
        return ast.copy_location(ast.If(told, [stop], []), node)

    # Expressions.

    def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
        self.generic_visit(node)
        node.right = self.divisor(node.op, node.right)
        return node

    def visit_AugAssign(self, node: ast.AugAssign) -> ast.AST:
        self.generic_visit(node)
        node.value = self.divisor(node.op, node.value)
        return node

    def divisor(self, operation: ast.operator, right: ast.expr) -> ast.expr:
        if not isinstance(operation, ast.Div | ast.FloorDiv | ast.Mod):
            return right
        if isinstance(right, ast.Constant) and right.value:
            return right
        return self.call(right, "divisor", right)

    def visit_Subscript(self, node: ast.Subscript) -> ast.AST:
        array = self.shape(node.value)
        if not isinstance(array, tuple):
            what = ast.unparse(node.value)
            self.refuse(node, f"how long '{what}' is cannot be told: index a field of a record")
        indices = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        lengths = array[1]
        if len(indices) > len(lengths):
            self.refuse(node, f"'{ast.unparse(node.value)}' has {len(lengths)} dimensions")
        node.value = self.visit(node.value)
        checked = [
            self.index(index, length) for index, length in zip(indices, lengths, strict=False)
        ]
        node.slice = ast.Tuple(checked, ast.Load()) if len(checked) > 1 else checked[0]
        return node

    def index(self, node: ast.expr, length: int) -> ast.expr:
        try:
            known = ast.literal_eval(node)
        except ValueError:
            return self.call(node, "index", self.visit(node), ast.Constant(length))
        if not isinstance(known, int) or not -length <= known < length:
            self.refuse(node, f"{known!r} is no index of an array of {length}")
        return ast.copy_location(ast.Constant(known % length), node)

    def visit_Name(self, node: ast.Name) -> ast.AST:
        if node.id == self.context:
            self.refuse(node, f"'{node.id}' is for calls of its methods only")
        return node

    def visit_Call(self, node: ast.Call) -> ast.AST:
        function = node.func
        if (
            isinstance(function, ast.Attribute)
            and isinstance(function.value, ast.Name)
            and function.value.id == self.context
        ):
            return self.context_call(node, function.attr)
        if isinstance(function, ast.Name):
            self.check_callee(node, function.id)
        return self.generic_visit(node)

    def context_call(self, node: ast.Call, method: str) -> ast.AST:
        counts = {
            "emit": (1, 1),
            "send": (2, 2),
            "record": (1, 1),
            "log": (1, 2),
            "fault": (1, 2),
            "tick": (0, 0),
            "clock": (0, 0),
        }
        least, most = counts.get(method, (1, 0))
        if node.keywords or not least <= len(node.args) <= most:
            known = ", ".join(counts)
            self.refuse(node, f"ctx.{method} is called otherwise: see HandlerContext ({known})")
        args = node.args
        if method == "emit":
            return self.call(node, "emit", self.visit(args[0]))
        if method == "send":
            return self.call(node, "send", self.visit(args[1]), of=(self.target(args[0]),))
        if method == "record":
            return self.call(node, "record", of=(self.target(args[0]),))
        if method == "log":
            level = self.visit(args[1]) if len(args) > 1 else ast.Constant(20)
            return self.call(node, "log", level, of=(self.text(args[0], "what is logged"),))
        if method == "fault":
            text = self.text(args[1], "the text of a fault") if len(args) > 1 else ""
            return self.call(node, "fault", self.visit(args[0]), of=(text,))
        return self.call(node, method)

    def check_callee(self, node: ast.Call, name: str) -> None:
        """Refuse to call what would have to be rewritten too."""
        function = self.handler.function
        scope = {**function.__globals__, **inspect.getclosurevars(function).nonlocals}
        found = scope.get(name)
        inner = getattr(found, "py_func", None)
        if inspect.isfunction(found) and found.__module__ == function.__module__:
            self.refuse(
                node,
                f"'{name}' is a plain function, which is compiled for the processor only: write it "
                "in the handler",
            )
        if name == "print":
            self.refuse(node, "a device prints nothing while it runs: use ctx.log")
        if inner is None:
            return
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(inner)))
        except (OSError, TypeError, SyntaxError):
            self.refuse(node, f"the source of '{name}' is needed, and there is none")
        unchecked = ast.While | ast.For | ast.Subscript | ast.Raise | ast.Assert
        definition = tree.body[0]
        for inside in ast.walk(definition):
            if isinstance(inside, unchecked):
                self.refuse(
                    node,
                    f"'{name}' has loops, indices or exceptions, which are checked only in the "
                    "handler itself: write them there",
                )


def _turns(node: ast.expr) -> float:
    """How many turns a loop over this has, where that is written there."""
    if (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "range"
        and not node.keywords
    ):
        try:
            return len(range(*map(ast.literal_eval, node.args)))
        except (ValueError, TypeError):
            pass
    return float("inf")


# --- compiling -----------------------------------------------------------------------------------

_lock = threading.Lock()


@contextmanager
def _without_device(compute_capability: tuple[int, int]) -> Iterator[Any]:
    """numba.cuda, which asks no driver which device is there."""
    try:
        module: Any = importlib.import_module("numba.cuda")
        if not hasattr(module, "compile"):
            raise ImportError("numba.cuda is a simulator here, or older than numba-cuda")
        importlib.import_module("numba_cuda")
        dispatcher: Any = importlib.import_module("numba.cuda.dispatcher")
    except Exception as error:
        reason = f"numba-cuda is needed to compile handlers: {type(error).__name__}: {error}"
        raise BackendNotAvailableError("CUDA", reason) from error
    present = dispatcher.get_current_device
    device = type("Device", (), {"compute_capability": compute_capability})
    dispatcher.get_current_device = lambda: device
    try:
        yield module
    finally:
        dispatcher.get_current_device = present


def _numba_record(record: RecordType) -> Any:
    """The numba type of a record; asserts that it lies as the record does."""
    support: Any = importlib.import_module("numba.cuda.np.numpy_support")
    made = support.from_dtype(record.dtype)
    offsets = [made.offset(field.name) for field in record.fields]
    if made.size != record.layout.nbytes or offsets != record.layout.offsets:
        raise TypeError(f"numba lays the record '{record.cls.__name__}' out otherwise")
    return made


def _compiled(
    name: str,
    handler: PythonHandler,
    function: Callable[..., Any],
    rewritten: _Rewrite,
    numba_cuda: Any,
    compute_capability: tuple[int, int],
    output: Literal["ltoir", "ptx"],
) -> CudaCode:
    types: Any = importlib.import_module("numba.cuda.types")
    said = handler.signature
    records = [
        types.voidptr if record is None else _numba_record(record)
        for record in (said.input, said.state, said.output)
    ]
    targets = [_numba_record(record) for _, record in said.targets]
    for call, made in rewritten.calls.items():
        function.__globals__[call] = _device_function(made, targets)
    try:
        data, _ = numba_cuda.compile(
            function,
            types.int32(*records, types.voidptr),
            device=True,
            abi="c",
            abi_info={"abi_name": name},
            cc=compute_capability,
            output=output,
        )
    except Exception as error:
        # numba's own errors, and what its insides raise where they did not expect a program.
        raise KernelCompilationError(name, _reason(rewritten, handler, error)) from error
    code = data.encode() if isinstance(data, str) else bytes(data)
    return CudaCode(name, output, code, compute_capability, said)


def _reason(rewritten: _Rewrite, handler: PythonHandler, error: Exception) -> Exception:
    """What numba says, with the line first."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip()
    found = re.findall(r'File "([^"]+)", line (\d+)', text)
    inside = [line for file, line in found if rewritten.file.endswith(file.lstrip("./"))]
    line = inside[-1] if inside else handler.function.__code__.co_firstlineno
    return TypeError(f"{rewritten.file}:{line}: {text or type(error).__name__}")


def _device_function(made: tuple[Any, ...], targets: list[Any]) -> Any:
    """What the rewritten function calls, by the name of what it does."""
    ir: Any = importlib.import_module("llvmlite.ir")
    types: Any = importlib.import_module("numba.cuda.types")
    errors: Any = importlib.import_module("numba.cuda.core.errors")
    cgutils: Any = importlib.import_module("numba.cuda.cgutils")
    intrinsic: Any = importlib.import_module("numba.cuda.extending").intrinsic
    byte_pointer = ir.IntType(8).as_pointer()
    i32, i64 = ir.IntType(32), ir.IntType(64)

    def extern(builder: Any, name: str, result: Any, args: list[Any]) -> Any:
        kind = ir.FunctionType(result, [arg.type for arg in args])
        return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), args)

    def literal(target: Any, builder: Any, text: str) -> list[Any]:
        data = text.encode()[:TEXT_BYTES]
        if not data:
            return [byte_pointer(None), i64(0)]
        at = target.insert_string_const_addrspace(builder, data.decode(errors="ignore"))
        return [at, i64(len(data))]

    def fail(target: Any, builder: Any, context: Any, code: Any, text: str) -> Any:
        return extern(builder, "rk_fault", i32, [context, code, *literal(target, builder, text)])

    def pointer(builder: Any, record: Any) -> Any:
        return builder.bitcast(record, byte_pointer)

    kind, *of = made

    if kind == "index":

        @intrinsic
        def function(typing: Any, context: Any, index: Any, length: Any) -> Any:
            if not isinstance(index, types.Integer | types.Boolean):
                raise errors.TypingError(f"{index} is no index")
            signed = bool(getattr(index, "signed", False))

            def lower(target: Any, builder: Any, sig: Any, args: Any) -> Any:
                length = args[2]
                at = target.cast(builder, args[1], sig.args[1], types.int64)
                if signed:
                    negative = builder.icmp_signed("<", at, i64(0))
                    at = builder.select(negative, builder.add(at, length), at)
                beyond = builder.icmp_unsigned(">=", at, length)
                with builder.if_then(beyond, likely=False):
                    fail(target, builder, args[0], i32(FAULT_BOUNDS), "index out of bounds")
                return builder.select(beyond, i64(0), at)

            return types.int64(context, types.unliteral(index), types.int64), lower

    elif kind == "divisor":

        @intrinsic
        def function(typing: Any, context: Any, divisor: Any) -> Any:
            divisor = types.unliteral(divisor)
            if not isinstance(divisor, types.Integer | types.Float):
                raise errors.TypingError(f"{divisor} is no divisor")

            def lower(target: Any, builder: Any, sig: Any, args: Any) -> Any:
                value = args[1]
                nothing = value.type(0)
                if isinstance(divisor, types.Float):
                    zero = builder.fcmp_ordered("==", value, nothing)
                else:
                    zero = builder.icmp_unsigned("==", value, nothing)
                with builder.if_then(zero, likely=False):
                    fail(target, builder, args[0], i32(FAULT_PANIC), "ZeroDivisionError")
                return builder.select(zero, value.type(1), value)

            return divisor(context, divisor), lower

    elif kind == "emit":

        @intrinsic
        def function(typing: Any, context: Any, record: Any) -> Any:
            def lower(target: Any, builder: Any, sig: Any, args: Any) -> Any:
                code = extern(builder, "rk_emit", i32, [args[0], pointer(builder, args[1])])
                return builder.sext(code, i64)

            if not isinstance(record, types.Record):
                raise errors.TypingError("ctx.emit takes one record of the replies")
            return types.int64(context, record), lower

    elif kind == "send":
        number = of[0]

        @intrinsic
        def function(typing: Any, context: Any, record: Any) -> Any:
            if record != targets[number]:
                raise errors.TypingError(f"ctx.send: that kernel takes {targets[number]}")

            def lower(target: Any, builder: Any, sig: Any, args: Any) -> Any:
                passed = [args[0], i32(number), pointer(builder, args[1])]
                return builder.sext(extern(builder, "rk_send", i32, passed), i64)

            return types.int64(context, record), lower

    elif kind == "record":
        record = targets[of[0]]

        @intrinsic
        def function(typing: Any, context: Any) -> Any:
            def lower(target: Any, builder: Any, sig: Any, args: Any) -> Any:
                words = ir.ArrayType(i64, (record.size + 7) // 8)
                room = cgutils.alloca_once(builder, words, name="record")
                builder.store(words(None), room)
                return builder.bitcast(room, target.get_value_type(record))

            return record(context), lower

    elif kind == "log":

        @intrinsic
        def function(typing: Any, context: Any, level: Any) -> Any:
            def lower(target: Any, builder: Any, sig: Any, args: Any) -> Any:
                level = builder.trunc(args[1], i32)
                passed = [args[0], level, *literal(target, builder, of[0])]
                extern(builder, "rk_log", ir.VoidType(), passed)
                return target.get_dummy_value()

            return types.void(context, types.int64), lower

    elif kind == "fault":

        @intrinsic
        def function(typing: Any, context: Any, code: Any) -> Any:
            def lower(target: Any, builder: Any, sig: Any, args: Any) -> Any:
                code = builder.trunc(args[1], i32)
                return builder.sext(fail(target, builder, args[0], code, of[0]), i64)

            return types.int64(context, types.int64), lower

    elif kind == "tick":

        @intrinsic
        def function(typing: Any, context: Any) -> Any:
            def lower(target: Any, builder: Any, sig: Any, args: Any) -> Any:
                return builder.sext(extern(builder, "rk_tick", i32, [args[0]]), i64)

            return types.int64(context), lower

    else:

        @intrinsic
        def function(typing: Any, context: Any) -> Any:
            def lower(target: Any, builder: Any, sig: Any, args: Any) -> Any:
                return extern(builder, "rk_clock", i64, [args[0]])

            return types.int64(context), lower

    return function
