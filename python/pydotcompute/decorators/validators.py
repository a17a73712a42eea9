"""Checks of configuration values, of annotated arguments and of message classes."""

from __future__ import annotations

import collections.abc
import dataclasses
import functools
import inspect
import math
import types
import typing
import warnings
from collections.abc import Callable
from typing import Annotated, Any, Literal, ParamSpec, TypeVar, Union

from pydotcompute._annotations import unaliased
from pydotcompute.exceptions import InvalidConfigurationError, TypeValidationError

__all__ = [
    "RuntimeValidator",
    "get_validator",
    "validate_backpressure_strategy",
    "validate_block_size",
    "validate_config",
    "validate_grid_size",
    "validate_message",
    "validate_priority",
    "validate_queue_size",
]

_C = TypeVar("_C", bound=type)
_P = ParamSpec("_P")
_R = TypeVar("_R")

_QUEUE_SIZE_MAX = 1_000_000
_BACKPRESSURE_STRATEGIES = ("block", "reject", "drop_oldest")


# --- annotations -----------------------------------------------------------------------------


def _check_type(value: Any, expected: Any) -> bool:
    """Tell whether a value is what an annotation says.

    Containers are checked element by element. A bool is no int, an int is no float, and an
    annotation that cannot be checked (a type variable, a protocol) is taken to hold.
    """
    expected = unaliased(expected)
    origin = typing.get_origin(expected)
    if origin is not None:
        return _check_generic(value, origin, typing.get_args(expected))
    if expected is Any or isinstance(expected, (str, TypeVar, typing.ForwardRef)):
        return True
    if expected is None:
        return value is None
    if isinstance(expected, typing.NewType):
        return _check_type(value, expected.__supertype__)
    if expected is int and isinstance(value, bool):
        return False
    try:
        return isinstance(value, expected)
    except TypeError:
        return True


def _check_generic(value: Any, origin: Any, args: tuple[Any, ...]) -> bool:
    """Check a value against `origin[args]`."""
    if origin is Union or origin is types.UnionType:
        return any(_check_type(value, arg) for arg in args)
    if origin is Literal:
        return any(value == arg and type(value) is type(arg) for arg in args)
    if origin is Annotated:
        return _check_type(value, args[0])
    if origin in (typing.ClassVar, typing.Final):
        return _check_type(value, args[0])
    if origin is collections.abc.Callable:
        return callable(value)
    if origin is type:
        return isinstance(value, type) and _check_subclass(value, args[0])
    try:
        if not isinstance(value, origin):
            return False
    except TypeError:
        return True
    if origin is tuple:
        if len(args) == 2 and args[1] is Ellipsis:
            return all(_check_type(item, args[0]) for item in value)
        return len(value) == len(args) and all(map(_check_type, value, args))
    if isinstance(value, collections.abc.Mapping) and len(args) == 2:
        return all(_check_type(k, args[0]) and _check_type(v, args[1]) for k, v in value.items())
    if isinstance(value, (collections.abc.Sequence, collections.abc.Set)) and len(args) == 1:
        return all(_check_type(item, args[0]) for item in value)
    return True


def _check_subclass(value: type, expected: Any) -> bool:
    """Check a class against the argument of `type[...]`."""
    expected = unaliased(expected)
    if typing.get_origin(expected) in (Union, types.UnionType):
        return any(_check_subclass(value, arg) for arg in typing.get_args(expected))
    return issubclass(value, expected) if isinstance(expected, type) else True


def _hints(owner: Any) -> dict[str, Any]:
    """Resolve the annotations of a class; those that cannot be resolved are left out."""
    try:
        return typing.get_type_hints(owner)
    except Exception:
        found = inspect.get_annotations(owner)
        return {name: hint for name, hint in found.items() if not isinstance(hint, str)}


# --- decorators ------------------------------------------------------------------------------


def validate_message(cls: _C) -> _C:
    """Check, as a class decorator, that a class can be used as a message.

    Parameters
    ----------
    cls
        The class. Without a `serialize` method it can be sent inside one process only, which a
        UserWarning says.

    Raises
    ------
    TypeValidationError
        It is not a dataclass.
    """
    if not dataclasses.is_dataclass(cls):
        raise TypeValidationError(
            expected=type("dataclass", (), {}), actual=cls, context=f"message class '{_name(cls)}'"
        )
    if not hasattr(cls, "serialize"):
        warnings.warn(
            f"Message class '{_name(cls)}' has no serialize method. Use the @message decorator.",
            UserWarning,
            stacklevel=2,
        )
    return cls


def _name(cls: Any) -> str:
    return str(getattr(cls, "__name__", cls))


def validate_config(config_cls: type) -> Callable[[Callable[_P, _R]], Callable[_P, _R]]:
    """Make a decorator that checks arguments against the annotations of a class.

    Parameters
    ----------
    config_cls
        A class whose annotations name parameters. Parameters that it does not name pass.

    Raises
    ------
    TypeValidationError
        When the decorated function is called with an argument of another type.
    """

    def decorate(func: Callable[_P, _R]) -> Callable[_P, _R]:
        signature = inspect.signature(func)
        hints: dict[str, Any] | None = None

        @functools.wraps(func)
        def checked(*args: _P.args, **kwargs: _P.kwargs) -> _R:
            nonlocal hints
            if hints is None:  # On the first call, when every name that it uses is defined.
                hints = _hints(config_cls)
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            for name, value in bound.arguments.items():
                if name in hints and not _check_type(value, hints[name]):
                    raise TypeValidationError(
                        expected=hints[name], actual=type(value), context=f"parameter '{name}'"
                    )
            return func(*args, **kwargs)

        return checked

    return decorate


# --- values ----------------------------------------------------------------------------------


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def validate_queue_size(size: int, name: str = "queue_size") -> int:
    """Check a queue's capacity: 1 to 1,000,000 messages.

    Raises
    ------
    InvalidConfigurationError
        It is no int, or out of range.
    """
    if not _is_int(size):
        raise InvalidConfigurationError(name, size, "must be an integer")
    if not 1 <= size <= _QUEUE_SIZE_MAX:
        raise InvalidConfigurationError(name, size, f"must be between 1 and {_QUEUE_SIZE_MAX}")
    return size


def _validate_dimensions(size: Any, name: str) -> tuple[int, ...]:
    """Check an int or a tuple of at most three positive ints."""
    if _is_int(size):
        size = (size,)
    if not isinstance(size, tuple):
        raise InvalidConfigurationError(name, size, "must be an integer or a tuple of integers")
    if len(size) > 3:
        raise InvalidConfigurationError(name, size, "must have at most 3 dimensions")
    if not all(_is_int(dim) and dim >= 1 for dim in size):
        raise InvalidConfigurationError(name, size, "all dimensions must be positive integers")
    return size


def validate_grid_size(size: int | tuple[int, ...], name: str = "grid_size") -> tuple[int, ...]:
    """Check a grid: at most three positive dimensions, in blocks; an int is one dimension.

    Raises
    ------
    InvalidConfigurationError
        It is neither.
    """
    return _validate_dimensions(size, name)


def validate_block_size(
    size: int | tuple[int, ...], name: str = "block_size", max_threads: int = 1024
) -> tuple[int, ...]:
    """Check a block: at most three positive dimensions, in threads; an int is one dimension.

    Raises
    ------
    InvalidConfigurationError
        It is neither, or has more than `max_threads` threads in all.
    """
    dims = _validate_dimensions(size, name)
    if math.prod(dims) > max_threads:
        raise InvalidConfigurationError(name, size, f"must have at most {max_threads} threads")
    return dims


def validate_priority(priority: int) -> int:
    """Check a message's priority: 0 (least urgent) to 255.

    Raises
    ------
    InvalidConfigurationError
        It is no int, or out of range.
    """
    if not _is_int(priority):
        raise InvalidConfigurationError("priority", priority, "must be an integer")
    if not 0 <= priority <= 255:
        raise InvalidConfigurationError("priority", priority, "must be between 0 and 255")
    return priority


def validate_backpressure_strategy(strategy: str) -> str:
    """Check a strategy's name: "block", "reject" or "drop_oldest", in lower case.

    Raises
    ------
    InvalidConfigurationError
        It is another.
    """
    if not isinstance(strategy, str) or strategy not in _BACKPRESSURE_STRATEGIES:
        raise InvalidConfigurationError(
            "backpressure_strategy", strategy, f"must be one of {list(_BACKPRESSURE_STRATEGIES)}"
        )
    return strategy


# --- the validator ---------------------------------------------------------------------------


class RuntimeValidator:
    """Checks message classes and kernel configurations. Thread-safe under the GIL.

    Parameters
    ----------
    strict
        Whether a wrong message class is an error; otherwise it is a warning in `warnings`.
    """

    def __init__(self, strict: bool = True) -> None:
        self._strict = strict
        self._warnings: list[str] = []

    @property
    def strict(self) -> bool:
        """Whether a wrong message class is an error."""
        return self._strict

    @property
    def warnings(self) -> list[str]:
        """What was found wrong and not raised: a copy."""
        return self._warnings.copy()

    def validate_message_type(self, cls: type) -> bool:
        """Tell whether a class is a dataclass.

        Raises
        ------
        TypeValidationError
            It is not, and the validator is strict.
        """
        if dataclasses.is_dataclass(cls):
            return True
        if self._strict:
            raise TypeValidationError(
                expected=type("dataclass", (), {}),
                actual=cls if isinstance(cls, type) else type(cls),
                context="message type",
            )
        self._warnings.append(f"Message type '{_name(cls)}' is not a dataclass")
        return False

    def validate_kernel_config(self, config: dict[str, Any]) -> dict[str, Any]:
        """Check the known keys of a kernel's configuration.

        Parameters
        ----------
        config
            May have queue_size, input_queue_size, output_queue_size, grid_size, block_size and
            backpressure_strategy. Other keys are left out of the result, and named in `warnings`.

        Returns
        -------
        dict
            The known keys; grid_size and block_size as tuples.

        Raises
        ------
        InvalidConfigurationError
            A value is not allowed.
        """
        checked: dict[str, Any] = {}
        for key, value in config.items():
            if key in ("queue_size", "input_queue_size", "output_queue_size"):
                checked[key] = validate_queue_size(value, key)
            elif key == "grid_size":
                checked[key] = validate_grid_size(value, key)
            elif key == "block_size":
                checked[key] = validate_block_size(value, key)
            elif key == "backpressure_strategy":
                checked[key] = validate_backpressure_strategy(value)
            else:
                self._warnings.append(f"Unknown kernel configuration key {key!r} is left out")
        return checked

    def clear_warnings(self) -> None:
        """Forget the warnings."""
        self._warnings.clear()


_validator: RuntimeValidator | None = None


def get_validator(strict: bool = True) -> RuntimeValidator:
    """Get the process's validator; it is as strict as the latest call asked."""
    global _validator
    if _validator is None:
        _validator = RuntimeValidator(strict)
    _validator._strict = strict
    return _validator
