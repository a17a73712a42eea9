"""Type aliases, which the annotations of users and of NumPy are made of."""

from __future__ import annotations

import typing
from typing import Any

#: The class of ``type Name = ...``, which Python has since 3.12.
_ALIAS: Any = getattr(typing, "TypeAliasType", ())

#: More aliases of aliases than anybody writes: some lead in a circle.
_MOST = 16


def unaliased(annotation: Any) -> Any:
    """What an annotation stands for, where it is a type alias or ``alias[arguments]``.

    ``NDArray[np.float32]`` is one with NumPy 2.5 and newer.
    """
    for _ in range(_MOST):
        if isinstance(annotation, _ALIAS):
            annotation = annotation.__value__
        elif isinstance(origin := typing.get_origin(annotation), _ALIAS):
            annotation = origin.__value__[typing.get_args(annotation)]
        else:
            break
    return annotation
