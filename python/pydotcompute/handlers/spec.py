"""What is said of a handler where it is decorated, and the making of its code at launch."""

from __future__ import annotations

import ast
import inspect
import logging
import textwrap
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, get_type_hints

from pydotcompute import _native, _optional
from pydotcompute.exceptions import InvalidConfigurationError, KernelCompilationError
from pydotcompute.handlers.record import RecordType, record_type, record_type_or_none

__all__ = ["Handler", "Signature", "handler_of"]

_logger = logging.getLogger("pydotcompute")

#: The numba whose calling convention is known: the one that the tests run with.
NUMBA = "0.68"

#: The most replies that a handler can emit for one record.
EMIT_MAX = 65535


@dataclass(frozen=True)
class Signature:
    """What a handler takes, keeps and makes.

    Attributes
    ----------
    input, output, state
        Its records; no output: it makes no replies.
    max_emit
        How many replies it emits at most for one record.
    targets
        The kernels that it can send to, and what they take.
    """

    input: RecordType
    output: RecordType | None
    state: RecordType | None
    max_emit: int
    targets: tuple[tuple[str, RecordType], ...]

    def make(self, code: tuple[Any, ...], initial: Any) -> _native.CompiledHandler:
        """Put code, layouts and the initial state together."""
        if self.state is None:
            if initial is not None:
                raise InvalidConfigurationError("state", initial, "the handler keeps no state")
            layout, data = None, b""
        else:
            layout = self.state.layout
            data = self.state.as_bytes(self.state.cls() if initial is None else initial)
        return _native.CompiledHandler(
            code,
            self.input,
            self.output,
            layout,
            data,
            self.max_emit,
            [(name, target.layout) for name, target in self.targets],
        )


class Handler(Protocol):
    """What a kernel can be launched from besides a function that takes a `KernelContext`."""

    signature: Signature

    def compile(self, kernel_id: str, state: Any) -> _native.CompiledHandler:
        """Make its code, with this initial state (None: the state's defaults)."""
        ...


@dataclass(frozen=True)
class PythonHandler:
    """A handler that is a Python function."""

    function: Callable[..., Any]
    signature: Signature
    takes_context: bool

    def compile(self, kernel_id: str, state: Any) -> _native.CompiledHandler:
        """Compile it with numba; where there is none, interpret it and say so.

        Raises
        ------
        KernelCompilationError
            numba cannot compile it: says where and why.
        """
        check_source(kernel_id, self)
        numba = _optional.numba()
        if numba and not numba.module.__version__.startswith(f"{NUMBA}."):
            version = numba.module.__version__
            numba = _optional.Found(None, f"numba is {version}, and handlers need {NUMBA}")
        if not numba:
            warnings.warn(
                f"ring kernel '{kernel_id}': its handler is interpreted, hundreds of times slower, "
                f"since {numba.reason}: pip install pydotcompute[numba]",
                RuntimeWarning,
                stacklevel=2,
            )
            from pydotcompute.handlers import interpreted

            return self.signature.make(interpreted.code(self), state)
        from pydotcompute.handlers import _compiled

        return self.signature.make(_compiled.code(kernel_id, self), state)


def log(kernel_id: str, level: int, text: str) -> None:
    """Log what a handler logged."""
    _logger.log(level, "kernel %r: %s", kernel_id, text)


def python_handler(
    function: Callable[..., Any],
    *,
    state: type | None,
    input_type: type | None,
    output_type: type | None,
    max_emit: int,
    targets: Mapping[str, type] | None,
) -> PythonHandler:
    """Describe a decorated function; what is not said is taken from its annotations.

    Raises
    ------
    InvalidConfigurationError, TypeError
        It cannot be a handler: says why.
    """
    name = getattr(function, "__name__", repr(function))
    if inspect.iscoroutinefunction(function) or inspect.isgeneratorfunction(function):
        raise InvalidConfigurationError(
            "state", state, f"a handler is a plain function, and '{name}' is async or a generator"
        )
    parameters = list(inspect.signature(function).parameters.values())
    if len(parameters) not in (3, 4) or any(
        one.kind not in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD) for one in parameters
    ):
        raise InvalidConfigurationError(
            "state", state, f"a handler takes (msg, state, out) or (msg, state, out, ctx): '{name}'"
        )
    hints = _annotations(function)
    inferred = [record_type_or_none(hints.get(one.name)) for one in parameters]
    taken = record_type(input_type) if input_type is not None else inferred[0]
    if taken is None:
        raise InvalidConfigurationError(
            "input_type", None, f"'{name}' has to say which records it takes: input_type=..."
        )
    return PythonHandler(
        function,
        Signature(
            input=taken,
            output=record_type(output_type) if output_type is not None else inferred[2],
            state=record_type(state) if state is not None else None,
            max_emit=_checked_max_emit(max_emit),
            targets=tuple((kernel, record_type(cls)) for kernel, cls in (targets or {}).items()),
        ),
        len(parameters) == 4,
    )


def _checked_max_emit(max_emit: int) -> int:
    if not isinstance(max_emit, int) or not 0 <= max_emit <= EMIT_MAX:
        raise InvalidConfigurationError("max_emit", max_emit, f"must be 0 to {EMIT_MAX}")
    return max_emit


def _annotations(function: Callable[..., Any]) -> dict[str, Any]:
    try:
        return get_type_hints(function)
    except NameError:
        # Of names that are not there, or only where the function was made: not used then.
        return {
            name: hint
            for name, hint in inspect.get_annotations(function).items()
            if isinstance(hint, type)
        }


def handler_of(function: Any) -> Handler | None:
    """The handler that `function` is, or that `ring_kernel` made of it; None of any other."""
    if isinstance(getattr(function, "signature", None), Signature):
        handler: Handler = function
        return handler
    found: Handler | None = getattr(function, "_handler", None)
    return found


def check_source(kernel_id: str, handler: PythonHandler) -> None:
    """Refuse what breaks the contract: writing to the message, fields that there are not."""
    function = handler.function
    try:
        lines, first = inspect.getsourcelines(function)
        tree = ast.parse(textwrap.dedent("".join(lines)))
    except (OSError, TypeError, SyntaxError):
        # Without source, at a prompt say.
        return
    said = handler.signature
    message, *others = inspect.signature(function).parameters
    records = dict(zip([message, *others], (said.input, said.state, said.output), strict=False))
    rebound = {
        node.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            record = records.get(node.value.id)
            if record is None or node.value.id in rebound or node.attr in record.names:
                continue
            where = f"{inspect.getsourcefile(function)}:{first + node.lineno - 1}"
            reason = f"{where}: '{record.cls.__name__}' has no field '{node.attr}'"
            raise KernelCompilationError(kernel_id, AttributeError(reason))
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute | ast.Subscript) and isinstance(
            node.ctx, ast.Store | ast.Del
        ):
            base: ast.expr = node
            while isinstance(base, ast.Attribute | ast.Subscript):
                base = base.value
            if isinstance(base, ast.Name) and base.id == message:
                where = f"{inspect.getsourcefile(function)}:{first + node.lineno - 1}"
                reason = (
                    f"{where}: '{message}' is not the handler's: write to the state or the reply"
                )
                raise KernelCompilationError(kernel_id, TypeError(reason))
