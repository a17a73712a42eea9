"""Functions compiled by numba for the CPU, and the plain function where that is not possible."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

from pydotcompute import _optional

__all__ = ["FAST_MATH", "JitFunction", "jit", "plain_function"]

# The flags of fast math without `nnan` and `ninf`: a test for NaN or infinity must stay a test.
FAST_MATH = frozenset({"nsz", "arcp", "contract", "afn", "reassoc"})


class JitFunction:
    """A function that numba compiles, in nopython mode and without the GIL, at its first call.

    Where numba cannot compile it for the types of the arguments, the plain function runs and a
    RuntimeWarning says why, once for these types. Thread-safe.

    Attributes
    ----------
    py_func
        The plain function.
    dispatcher
        numba's object.
    """

    __name__: str

    def __init__(self, func: Callable[..., Any], dispatcher: Any) -> None:
        functools.update_wrapper(self, func)
        self.py_func = func
        self.dispatcher = dispatcher
        self._errors = _optional.numba().module.core.errors.NumbaError
        # The types of arguments that numba could not compile it for.
        self._refused: set[tuple[type, ...]] = set()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._refused and _types(args, kwargs) in self._refused:
            return self.py_func(*args, **kwargs)
        try:
            return self.dispatcher(*args, **kwargs)
        except self._errors as error:
            # Raised while compiling, before anything of the function ran.
            self._refuse(_types(args, kwargs), error)
        return self.py_func(*args, **kwargs)

    def _refuse(self, types: tuple[type, ...], error: BaseException) -> None:
        self._refused.add(types)
        reason = next(filter(None, map(str.strip, str(error).splitlines())), type(error).__name__)
        names = ", ".join(kind.__name__ for kind in types)
        warnings.warn(
            f"numba cannot compile {self.__name__}({names}), the plain function runs: {reason}",
            RuntimeWarning,
            stacklevel=3,
        )

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        """Bind like a function, so that it may be a method."""
        return self if instance is None else functools.partial(self, instance)


def _types(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[type, ...]:
    return tuple(map(type, (*args, *kwargs.values())))


def plain_function(func: Any) -> Any:
    """Find the Python function inside numba's objects and ours."""
    for _ in range(16):
        inner = getattr(func, "_original_func", None) or getattr(func, "py_func", None)
        if inner is None:
            break
        func = inner
    return func


def argument_types(signature: str) -> tuple[Any, ...]:
    """Read the argument types of a signature such as "float32(float32[:], int64)".

    The return type is left to inference: numba checks the arguments, and "void" is what the
    signatures of GPU kernels say of any function.

    Raises
    ------
    Exception
        Whatever numba raises when it cannot read it.
    """
    args, _ = _optional.numba().module.core.sigutils.normalize_signature(signature)
    return tuple(args)


def jit(
    func: Callable[..., Any],
    *,
    signature: str | None = None,
    fastmath: bool = False,
    debug: bool = False,
) -> Callable[..., Any]:
    """Compile a function with numba; without numba it is returned as it is.

    Parameters
    ----------
    func
        The function, or something that numba or we made of one.
    signature
        The argument types, to compile for at once. None: compile when it is first called.
    fastmath
        Whether floating point may be reordered; NaN and infinity stay what they are.
    debug
        Whether to make debug information and check bounds.

    Raises
    ------
    numba.core.errors.NumbaError
        The function cannot be compiled for the signature.
    """
    numba = _optional.numba().module
    if numba is None:
        return func
    plain = plain_function(func)
    dispatcher = numba.njit(
        nogil=True, fastmath=set(FAST_MATH) if fastmath else False, debug=debug, boundscheck=debug
    )(plain)
    if signature is not None:
        dispatcher.compile(argument_types(signature))
    return JitFunction(plain, dispatcher)
