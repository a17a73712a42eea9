"""Messages: what ring kernels exchange, and their bytes.

A message is a dataclass with an id, a priority and the id of the message that it answers.
`@message` turns a class into one; deriving a dataclass from `RingKernelMessage` does too. Inside a
process a message is passed as the object that it is; `serialize` and `deserialize` are for others.

The bytes are one MessagePack map: field name -> value, and `"__type__"`: class name. They are the
bytes of PyDotCompute 0.2, both ways. Values that it could not write have forms of their own:

- A tuple, a member of an enumeration, a numpy scalar, a dataclass or message in a field is written
  plainly, and becomes again what the field's annotation says. A tuple comes back as one also where
  no annotation speaks of it.
- Sets, complex numbers, integers of any size, `Decimal`, `datetime`, `date`, `time`, `timedelta`,
  messages of registered classes, and dicts with any keys come back wherever they are.
- What could not be read back raises `MessageSerializationError`: a member of an enumeration or a
  plain dataclass that no annotation speaks of, arrays of Python objects, masked arrays.

Reading is bounded: 64 MiB of bytes, 256 MiB of memory, 64 levels. It runs nothing but the
`__post_init__` of the class asked for (or the registered one that the bytes name), and the classes
that its annotations name. Messages are not thread-safe: one thread at a time changes a message.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import enum
import importlib
import inspect
import os
import sys
import threading
import types
import typing
from collections.abc import Callable, Iterable
from typing import Any, Literal, TypeVar, cast, dataclass_transform, overload
from uuid import UUID

from pydotcompute import _native
from pydotcompute._annotations import unaliased

__all__ = ["RingKernelMessage", "deserialize_message", "get_message_type", "message"]

T = TypeVar("T")
M = TypeVar("M", bound="RingKernelMessage")

_HEADER = ("message_id", "priority", "correlation_id")

# A child process must not repeat the ids of its parent.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_native.reseed_message_ids)


class _Signature:
    """The signature of a class whose constructor is native, worked out when somebody asks."""

    def __init__(self, init: Callable[..., None] | None) -> None:
        self._init = init

    def __get__(self, instance: object, owner: type) -> inspect.Signature:
        if self._init is None or owner.__init__ is not _native.MessageBase.__init__:  # type: ignore[misc]
            raise AttributeError("__signature__")
        signature = inspect.signature(self._init)
        return signature.replace(parameters=list(signature.parameters.values())[1:])


@dataclasses.dataclass
class RingKernelMessage(_native.MessageBase):
    """Base of all messages.

    Derive a dataclass from it, or use `@message`. All of its own fields are keywords, so a derived
    dataclass may begin with fields that have no default.

    Parameters
    ----------
    message_id
        The name of this message, `uuid.UUID`. A new one by default; the object is made when it is
        first asked for.
    priority
        0 (lowest) to 255.
    correlation_id
        The `message_id` of the message that this one answers.

    Raises
    ------
    ValueError
        The priority is outside 0 to 255.

    Examples
    --------
    >>> from dataclasses import dataclass
    >>> @dataclass
    ... class Reading(RingKernelMessage):
    ...     celsius: float
    >>> Reading.deserialize(Reading(celsius=21.5).serialize()).celsius
    21.5
    """

    __slots__ = ("__dict__", "__weakref__")

    message_id: UUID = dataclasses.field(default_factory=_native.new_message_id, kw_only=True)
    priority: int = dataclasses.field(default=128, kw_only=True)
    correlation_id: UUID | None = dataclasses.field(default=None, kw_only=True)

    def with_correlation(self: M, correlation_id: UUID) -> M:
        """Copy this message, with the same id, as an answer to the message `correlation_id`."""
        return _with_correlation(self, correlation_id)

    def reply(self, *, response_class: type[Any] | None = None, **kwargs: Any) -> Any:
        """Make an answer to this message: a new message whose `correlation_id` is this one's id.

        Parameters
        ----------
        response_class
            The class of the answer; by default that of this message.
        **kwargs
            The fields of the answer.
        """
        return _reply(self, response_class, kwargs)

    def _to_dict(self) -> dict[str, Any]:
        """Return the fields by name, as they are."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    @classmethod
    def _from_dict(cls, data: dict[str, Any]) -> Any:
        """Make a message from its fields; keys that it does not know are dropped."""
        return _from_dict(cls, data)

    @classmethod
    def _get_fields(cls) -> tuple[dataclasses.Field[Any], ...]:
        """Return the fields, in their order."""
        return dataclasses.fields(cls)

    @classmethod
    def _get_field_names(cls) -> frozenset[str]:
        """Return the names of the fields."""
        return frozenset(field.name for field in dataclasses.fields(cls))

    def __getstate__(self) -> dict[str, Any]:
        """Return all that a copy needs."""
        state = dict(_own_dict(self))
        names = [*_HEADER, *(field.name for field in dataclasses.fields(self))]
        for name in names:
            value = getattr(self, name, dataclasses.MISSING)
            if value is not dataclasses.MISSING:
                state[name] = value
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Become what `__getstate__` returned."""
        for name, value in state.items():
            object.__setattr__(self, name, value)


def _own_dict(instance: object) -> dict[str, Any]:
    """Return the attributes of an object that are no fields in slots."""
    return cast("dict[str, Any]", getattr(instance, "__dict__", {}))


def _native_constructor(cls: type, init: Callable[..., None] | None) -> None:
    """Give a class the native constructor, and take away what would hide the native attributes."""
    for name in _HEADER:
        if name in cls.__dict__:
            delattr(cls, name)
    cls.__init__ = _native.MessageBase.__init__  # type: ignore[misc]
    cls.__signature__ = _Signature(init)  # type: ignore[attr-defined]


_native_constructor(RingKernelMessage, RingKernelMessage.__init__)


def _with_correlation(instance: T, correlation_id: UUID) -> T:
    other = copy.copy(instance)
    object.__setattr__(other, "correlation_id", correlation_id)
    return other


def _reply(request: Any, response_class: type[Any] | None, fields: dict[str, Any]) -> Any:
    made = (response_class or type(request))(**fields)
    object.__setattr__(made, "correlation_id", request.message_id)
    return made


def _from_dict(cls: type[T], data: dict[str, Any]) -> T:
    known = {f.name: data[f.name] for f in dataclasses.fields(cast(Any, cls)) if f.name in data}
    for name in ("message_id", "correlation_id"):
        value = known.get(name)
        if isinstance(value, str):
            known[name] = UUID(value)
        elif isinstance(value, bytes):
            known[name] = UUID(bytes=value)
    init = {f.name for f in dataclasses.fields(cast(Any, cls)) if f.init}
    made = cls(**{name: value for name, value in known.items() if name in init})
    for name in known.keys() - init:
        object.__setattr__(made, name, known[name])
    return made


# --- the registry ----------------------------------------------------------------------------

_lock = threading.Lock()
# By bare name, then by "module:qualified name"; the class that was defined last comes last. A class
# that is defined again takes the place of the former, so the registry grows with the program's
# text, not with its running time.
_registry: dict[str, dict[str, type[Any]]] = {}
# Of the names that one class has: that class. Read by the native decoder.
_sole: dict[str, type[Any]] = {}


def _qualified(cls: type) -> str:
    return f"{cls.__module__}:{cls.__qualname__}"


def _register(cls: type[Any]) -> None:
    with _lock:
        same_name = _registry.setdefault(cls.__name__, {})
        same_name.pop(_qualified(cls), None)
        same_name[_qualified(cls)] = cls
        if len(same_name) == 1:
            _sole[cls.__name__] = cls
        else:
            _sole.pop(cls.__name__, None)
        if len({other.__module__ for other in same_name.values()}) > 1:
            # From now on their bytes say which of them they are. (Inside one module the class that
            # was defined last is meant.)
            for other in same_name.values():
                _native.set_qualified(other, True)


def get_message_type(name: str) -> type[Any] | None:
    """Return the `@message` class of this name.

    Parameters
    ----------
    name
        The bare class name; of several classes of one name this is the one that was defined last.
        Or "module:qualified name", which names one class.
    """
    same_name = _registry.get(name)
    if same_name:
        return next(reversed(same_name.values()))
    bare = name.rpartition(":")[2].rpartition(".")[2]
    return _registry.get(bare, {}).get(name)


def _find_class(name: str, qualified: str | None, keys: Iterable[str]) -> type[Any] | None:
    """Return the class that bytes with this type name and these keys are of."""
    same_name = _registry.get(name)
    if not same_name:
        return None
    if qualified is not None:
        # A class that only exists here may have been moved since the bytes were made.
        return same_name.get(qualified) or (
            next(iter(same_name.values())) if len(same_name) == 1 else None
        )
    candidates = list(same_name.values())
    if len(candidates) > 1:
        # Bytes made by PyDotCompute, or before there were several.
        names = {key for key in keys if not key.startswith("__")}
        fitting = [c for c in candidates if {f.name for f in dataclasses.fields(c)} == names]
        candidates = fitting or candidates
    return candidates[-1]


def _is_registered(cls: type) -> bool:
    return _registry.get(cls.__name__, {}).get(_qualified(cls)) is cls


def _is_related(cls: type, name: str, qualified: str | None) -> bool:
    """Whether bytes of a class of this name may be read as a `cls`: it derives from the other, or
    the other from it."""
    for base in cls.__mro__:
        if base.__name__ == name and qualified in (None, _qualified(base)):
            return True
    same_name = _registry.get(name, {})
    others = same_name.values() if qualified is None else [same_name.get(qualified)]
    return any(other is not None and issubclass(other, cls) for other in others)


# --- the decorator ---------------------------------------------------------------------------


@overload
def message(cls: type[T]) -> type[T]: ...
@overload
def message(
    cls: None = None, *, layout: Literal["record"] | None = None
) -> Callable[[type[T]], type[T]]: ...


@dataclass_transform(eq_default=True, field_specifiers=(dataclasses.field, dataclasses.Field))
def message(
    cls: type[T] | None = None, *, layout: Literal["record"] | None = None
) -> type[T] | Callable[[type[T]], type[T]]:
    """Turn a class into a message; used as `@message` or `@message()`.

    A plain class becomes a dataclass, with `message_id`, `priority` and `correlation_id` after its
    own fields. An existing dataclass (`@message` above `@dataclass`) keeps its fields as they are.
    Either way the result derives from `RingKernelMessage`, keeps its fields in slots, and is known
    to `get_message_type` by its name.

    With ``layout="record"`` its own fields (not the header) also have the layout of a struct of C,
    so that compiled handlers take it, and arrays of it are batches: see `handlers.record`,
    which says what a field can be. It stays a message like any other.

    The result is a new class (as of `dataclass(slots=True)`), which takes the place of the
    decorated one also in its own methods. A class that cannot get a native base (because its
    bases have a fixed layout, such as `Exception`) stays the class that it is and gets the methods
    only.

    Examples
    --------
    >>> @message
    ... class Reading:
    ...     celsius: float
    ...     sensor: str = "roof"
    >>> reading = Reading(21.5)
    >>> deserialize_message(reading.serialize()).celsius
    21.5
    """
    if layout not in (None, "record"):
        raise ValueError(f"layout should be None or 'record', got {layout!r}")
    if cls is None:
        return lambda cls: _decorate(cls, layout, sys._getframe(1))
    return _decorate(cls, layout, sys._getframe(1))


def _decorate(cls: type[T], layout: str | None, frame: types.FrameType) -> type[T]:
    made = _make(cls, RingKernelMessage, frame)
    if layout == "record":
        from pydotcompute.handlers.record import make_record

        if not issubclass(made, _native.MessageBase):
            raise TypeError(f"record '{cls.__name__}': its bases have a fixed layout of their own")
        make_record(made)
    _register(made)
    return made


def _make(cls: type[T], base: type[RingKernelMessage], frame: types.FrameType) -> type[T]:
    """Make a message class, derived from `base`, of a plain class or a dataclass that the code of
    `frame` defines."""
    if "<locals>" in cls.__qualname__ and (names := _local_names(cls, frame)):
        cls.__message_names__ = names  # type: ignore[attr-defined]
    appended = False
    own_init = "__init__" in cls.__dict__
    if "__dataclass_fields__" not in cls.__dict__:
        inherited = getattr(cls, "__dataclass_fields__", {})
        appended = not any(name in inherited for name in _HEADER)
        if appended:
            _append_fields(cls, base)
        dataclasses.dataclass(cls)
    elif own_init:
        own_init = cls.__dict__["__init__"].__code__.co_filename != "<string>"
    if appended:
        # A derived class may add fields without defaults after these.
        for name in _HEADER:
            field = cls.__dict__["__dataclass_fields__"][name]
            if field.default_factory is _native.new_message_id or name != "message_id":
                field.kw_only = True
    try:
        return _rebuild(cls, base, own_init)
    except TypeError:
        return _methods_only(cls)


def _local_names(cls: type, frame: types.FrameType | None) -> dict[str, Any]:
    """Find what the annotations of a class mean that is defined in a function: where they are
    strings, nobody but the function knows."""
    wanted: set[str] = set()
    for annotation in _annotations(cls).values():
        if isinstance(annotation, str):
            with contextlib.suppress(SyntaxError):
                wanted.update(compile(annotation, "<annotation>", "eval").co_names)
    found: dict[str, Any] = {}
    module = vars(sys.modules[cls.__module__]) if cls.__module__ in sys.modules else {}
    while wanted and frame is not None and frame.f_globals is module:
        local = frame.f_locals
        if local is module:
            break
        found = {name: local[name] for name in wanted if name in local} | found
        frame = frame.f_back
    return found


def _append_fields(cls: type, base: type[RingKernelMessage]) -> None:
    """Annotate the fields of the base on the class, unless it has annotated them itself."""
    annotations = _annotations(cls)
    wanted: dict[str, tuple[Any, Any]] = {
        "message_id": (UUID, dataclasses.field(default_factory=_native.new_message_id)),
        "priority": (int, 128),
        "correlation_id": (UUID | None, None),
    }
    for name, field in base.__dataclass_fields__.items():
        if name not in wanted and not issubclass(cls, base):
            factory = field.default_factory
            wanted[name] = (dict, dataclasses.field(default_factory=factory, repr=False))
    for name, (annotation, default) in wanted.items():
        if name not in annotations:
            annotations[name] = annotation
            setattr(cls, name, default)
    cls.__annotations__ = annotations


def _rebuild(cls: type[T], base: type[RingKernelMessage], own_init: bool) -> type[T]:
    """Make the class anew, derived from `base`, with slots for its fields."""
    fields: dict[str, dataclasses.Field[Any]] = cls.__dict__["__dataclass_fields__"]
    plain = [
        field
        for field in fields.values()
        if field._field_type is dataclasses._FIELD  # type: ignore[attr-defined]
    ]
    has_init_variables = any(
        field._field_type is dataclasses._FIELD_INITVAR  # type: ignore[attr-defined]
        for field in fields.values()
    )
    namespace = dict(cls.__dict__)
    namespace.pop("__dict__", None)
    namespace.pop("__weakref__", None)
    namespace.pop("__message_layout__", None)
    for name in namespace.pop("__slots__", None) or ():
        if isinstance(namespace.get(name), types.MemberDescriptorType):
            del namespace[name]

    native = not own_init and not has_init_variables and cast(Any, cls).__dataclass_params__.init
    for name in _HEADER:
        if name in fields and not isinstance(namespace.get(name), property):
            namespace.pop(name, None)
    if native:
        slots = [f.name for f in plain if f.name not in _HEADER and not _is_slot(cls, f.name)]
        for name in slots:
            namespace.pop(name, None)
        namespace["__slots__"] = tuple(slots)
        init = cast("Callable[..., None]", namespace["__init__"])
        namespace["__init__"] = _native.MessageBase.__init__
        namespace["__signature__"] = _Signature(init)
    if not cast(Any, cls).__dataclass_params__.eq and "__eq__" not in namespace:
        # Compared by identity, as it would be without the base.
        namespace["__eq__"] = object.__eq__
        namespace.setdefault("__hash__", object.__hash__)
    if issubclass(cls, base):
        bases = cls.__bases__
    else:
        bases = (*(b for b in cls.__bases__ if b not in (object, RingKernelMessage)), base)
    made: type[T] = cast(Any, type(cls))(cls.__name__, bases, namespace)
    made.__qualname__ = cls.__qualname__
    _replace_class_cells(cls, made)
    return made


def _is_slot(cls: type, name: str) -> bool:
    """Whether a base class of a message has a slot of this name already."""
    return any(
        isinstance(base.__dict__.get(name), types.MemberDescriptorType)
        for base in cls.__mro__[1:]
        if issubclass(base, RingKernelMessage)
    )


def _replace_class_cells(old: type, new: type) -> None:
    """Let `super()` and `__class__` in the methods mean the new class."""
    for value in new.__dict__.values():
        candidates = [value]
        if isinstance(value, classmethod | staticmethod):
            candidates = [value.__func__]
        elif isinstance(value, property):
            candidates = [value.fget, value.fset, value.fdel]
        for function in candidates:
            function = inspect.unwrap(function) if callable(function) else function
            for cell in getattr(function, "__closure__", None) or ():
                try:
                    if cell.cell_contents is old:
                        cell.cell_contents = new
                except ValueError:  # An empty cell.
                    continue


def _methods_only(cls: type[T]) -> type[T]:
    """Give a class that cannot derive from `RingKernelMessage` what it would inherit."""
    for name in _HEADER:
        field = cls.__dict__["__dataclass_fields__"].get(name)
        if field is not None:
            field.kw_only = False
    offered: dict[str, Any] = {
        "serialize": lambda self: _native.encode_message(self),
        "deserialize": classmethod(lambda cls, data: _native.decode_message(cls, data)),
        "with_correlation": RingKernelMessage.with_correlation,
        "reply": RingKernelMessage.reply,
        "_to_dict": RingKernelMessage._to_dict,
        "_from_dict": classmethod(_from_dict),
        "_get_fields": RingKernelMessage.__dict__["_get_fields"],
        "_get_field_names": RingKernelMessage.__dict__["_get_field_names"],
    }
    for name, value in offered.items():
        if not hasattr(cls, name):
            setattr(cls, name, value)
    cls.__message__ = True  # type: ignore[attr-defined]
    return cls


def deserialize_message(data: bytes) -> Any:
    """Read a message of whatever class the bytes name.

    Parameters
    ----------
    data
        What `serialize` returned, here or in another process; any object with a buffer will do.

    Returns
    -------
    object
        A message of the class that the bytes name; a `RingKernelMessage` of what is known to it if
        they name none, or one that is not registered here.

    Raises
    ------
    MessageDeserializationError
        The bytes are no message.
    """
    return _native.decode_any_message(data, RingKernelMessage)


# --- annotations -----------------------------------------------------------------------------


def _annotations(cls: type) -> dict[str, Any]:
    """Read the class's own annotations; all as texts, if one names what is not defined yet.

    Since Python 3.14 they are evaluated when they are read.
    """
    try:
        return dict(inspect.get_annotations(cls))
    except NameError:
        annotationlib = importlib.import_module("annotationlib")
        texts = annotationlib.get_annotations(cls, format=annotationlib.Format.STRING)
        return cast(dict[str, Any], texts)


def _names_unknown(annotation: Any) -> bool:
    """Whether an annotation has a name in it that was not defined when it was read."""
    if isinstance(annotation, typing.ForwardRef):
        return True
    return any(map(_names_unknown, typing.get_args(annotation)))


def _field_hints(cls: type) -> dict[str, Any]:
    """Say what the annotations of a dataclass settle about its values, for the native decoder.

    Returns
    -------
    dict
        Field name -> None, or a tuple of a word and what belongs to it (see `hint.rs`).
    """
    hints: dict[str, Any] = {}
    for field in dataclasses.fields(cast(Any, cls)):
        annotation = field.type
        if _names_unknown(annotation):
            # The class was not complete when it was made a dataclass. By now it may be.
            owner = next(base for base in cls.__mro__ if field.name in _annotations(base))
            annotation = _annotations(owner)[field.name]
        if isinstance(annotation, str):
            annotation = _evaluate(cls, field.name, annotation)
        hints[field.name] = _hint(annotation)
    return hints


def _evaluate(cls: type, name: str, annotation: str) -> Any:
    """Evaluate an annotation in the module of the class that made it; None if that fails."""
    for base in cls.__mro__:
        if name in _annotations(base):
            module = sys.modules.get(base.__module__)
            # The class itself, which may be local to a function.
            names = vars(base).get("__message_names__", {})
            local = {**names, **vars(base), base.__name__: base}
            try:
                return eval(annotation, dict(vars(module)) if module else {}, local)
            except Exception:
                return None
    return None


def _hint(annotation: Any, depth: int = 0) -> Any:
    """Say what an annotation settles; None if nothing."""
    if depth > 16:
        return None
    annotation = unaliased(annotation)
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        return _hint(typing.get_args(annotation)[0], depth + 1)
    if origin in (typing.Union, types.UnionType):
        members = [arg for arg in typing.get_args(annotation) if arg is not type(None)]
        # Of several it is not known which: then the value says what it is.
        return _hint(members[0], depth + 1) if len(members) == 1 else None
    args = [_hint(arg, depth + 1) for arg in typing.get_args(annotation)]
    made = origin or annotation
    if not isinstance(made, type):
        return None
    if issubclass(made, tuple):
        fields = getattr(made, "_fields", None)
        if fields is not None:
            try:
                types_of = typing.get_type_hints(made)
            except Exception:  # An annotation that names what is not there.
                types_of = {}
            return ("named_tuple", made, [_hint(types_of.get(f), depth + 1) for f in fields])
        if len(args) == 2 and typing.get_args(annotation)[1] is Ellipsis:
            return ("tuple_of", args[0])
        return ("tuple", args)
    if made in (set, frozenset):
        return ("set", args[0]) if args and args[0] is not None else None
    if made is dict or (origin is not None and issubclass(made, dict)):
        return ("dict", *args) if len(args) == 2 and any(args) else None
    if issubclass(made, list) or (origin is not None and len(args) == 1):
        return ("list", args[0]) if args and args[0] is not None else None
    if issubclass(made, enum.Enum):
        return ("enum", made)
    if dataclasses.is_dataclass(made):
        return ("class", made)
    if made is bytearray or (made.__module__ == "numpy" and _is_number(made)):
        return ("call", made)
    return None


def _is_number(cls: type) -> bool:
    """Whether this is one of numpy's scalar classes that Python's numbers make."""
    import numpy as np

    return issubclass(cls, np.number | np.bool_) and not inspect.isabstract(cls)
