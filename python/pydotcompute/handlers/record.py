"""Records: classes whose instances have a fixed layout, the same in numpy, numba, C and Rust.

`@message(layout="record")` makes a message class a record; `@record` makes one of a class that is
no message: the state of a compiled handler, or a part of another record. The layout is that of a
struct of C with the same fields, and nothing else. A field's annotation says its type:

==================================  ================================================
annotation                          type
==================================  ================================================
`int`, `float`, `bool`              int64, float64, uint8 (0 or 1)
`np.int8` to `np.uint64`,           the same
`np.float32`, `np.float64`
`Annotated[bytes, 16]`              16 bytes; shorter values end in zeros
`Annotated[NDArray[np.float32],     a fixed array; `(2, 3)` for two dimensions
4]`
a record class                      that record
`Annotated[list[Point], 3]`         so many records of that class
`DevicePointer`                     uint64: an address in a GPU's memory, see below
==================================  ================================================

Whatever has no fixed size is refused where the class is made, with the field and the reason. So is
a name that begins with ``_`` (padding), and a message of more than 65535 bytes.

Many records of one class are one message as an array: a structured numpy array of `record_dtype`
(a `RecordBatch` where it was received, or where its priority or correlation matter). Nothing of it
is copied: from the send until its kernel has processed it (its reply is there, at the latest) the
array that was sent is read-only, and whoever holds another view of its memory must not write to it.

Memory of a GPU is named by a `DevicePointer`, which `RingKernelRuntime.lend` makes of an array that
lies there (None: an address of 0). It is kept until the message has been processed, or is a dead
letter that is gone too. In a message that was received it is an address again, and keeps what is
lent there by then.
"""

from __future__ import annotations

import dataclasses
import inspect
import operator
import struct
import typing
from collections.abc import Callable, Iterable
from typing import Any, TypeVar, dataclass_transform, overload
from uuid import UUID, uuid4

import numpy as np
import numpy.typing as npt

from pydotcompute import _native
from pydotcompute._annotations import unaliased
from pydotcompute._native import DevicePointer
from pydotcompute.exceptions import TypeValidationError

__all__ = [
    "DevicePointer",
    "RecordBatch",
    "RecordType",
    "c_struct",
    "record",
    "record_dtype",
    "record_type",
]

T = TypeVar("T")

_HEADER = ("message_id", "priority", "correlation_id")

#: The numbers that a field can have: numpy's code -> that of `struct`.
_CODES = {
    "u1": "B",
    "u2": "H",
    "u4": "I",
    "u8": "Q",
    "i1": "b",
    "i2": "h",
    "i4": "i",
    "i8": "q",
    "f4": "f",
    "f8": "d",
}


@dataclasses.dataclass(frozen=True)
class Field:
    """One field of a record.

    Attributes
    ----------
    name
        Its name.
    code
        numpy's code of its number, such as "i8"; empty where it is a record.
    inner
        The record that it is, or has many of.
    shape
        The lengths of its dimensions; empty where it is a single value.
    python
        What its value is in an object: a class that a number is called with, `bytes`, `list`,
        `numpy.ndarray` or a record class.
    offset
        Where it begins, in bytes.
    """

    name: str
    code: str
    inner: RecordType | None
    shape: tuple[int, ...]
    python: type
    offset: int = 0

    @property
    def dtype(self) -> npt.DTypeLike:
        """The numpy type of the whole field."""
        base: Any = self.inner.dtype if self.inner is not None else f"<{self.code}"
        return (base, self.shape) if self.shape else base


class RecordType(_native.RecordCodec):
    """The layout of a record class, and how its objects become bytes and back.

    Attributes
    ----------
    cls
        The class.
    layout
        The layout, from which all other forms are made.
    dtype
        The numpy dtype of one record.
    fields, names
        The fields and their names, in their order.
    """

    def __init__(self, cls: type, fields: tuple[Field, ...]) -> None:
        self.cls = cls
        self.layout: _native.RecordLayout = _native.RecordLayout(
            cls.__name__,
            [
                (field.name, field.inner.layout if field.inner else field.code, list(field.shape))
                for field in fields
            ],
            f"{cls.__module__}.{cls.__qualname__}",
        )
        self.fields = tuple(
            dataclasses.replace(field, offset=offset)
            for field, offset in zip(fields, self.layout.offsets, strict=True)
        )
        self.dtype: np.dtype[np.void] = np.dtype(
            {
                "names": [field.name for field in self.fields],
                "formats": [field.dtype for field in self.fields],
                "offsets": [field.offset for field in self.fields],
                "itemsize": self.layout.nbytes,
            },
            align=True,
        )
        if (self.dtype.itemsize, self.dtype.alignment) != (
            self.layout.nbytes,
            self.layout.alignment,
        ):
            raise TypeError(f"record '{cls.__name__}': numpy lays it out otherwise: {self.dtype}")
        self._struct, self._to_bytes, self._to_python = _codec(self.fields, self.layout.nbytes)
        names = [field.name for field in self.fields]
        get = operator.attrgetter(*names)
        self._get: Callable[[Any], tuple[Any, ...]] = get if len(names) > 1 else lambda o: (get(o),)
        self.names = names
        #: The fields that name memory of a device.
        self._pointers = [field.name for field in fields if field.python is DevicePointer]

    def pack(self, instance: Any) -> bytes:
        """Return the bytes of an object of the class.

        Raises
        ------
        ValueError, TypeError
            A field has a value that its type cannot hold; says which.
        """
        packed = self._pack(instance)
        if packed is not None:
            return packed
        values = self._get(instance)
        try:
            if self._to_bytes:
                values = tuple(
                    value if convert is None else convert(value)
                    for convert, value in zip(self._to_bytes, values, strict=True)
                )
            return self._struct.pack(*values)
        except (struct.error, OverflowError, TypeError, ValueError):
            self._blame(instance)
            raise

    def _blame(self, instance: Any) -> None:
        """Raise an error that names the field whose value cannot be packed."""
        for index, field in enumerate(self.fields):
            value = getattr(instance, field.name)
            where = f"record '{self.cls.__name__}', field '{field.name}'"
            try:
                convert = self._to_bytes[index] if self._to_bytes else None
                if convert is not None:
                    convert(value)
                elif field.code and not field.shape:
                    struct.pack("<" + _CODES[field.code], value)
            except (struct.error, OverflowError) as error:
                if isinstance(value, DevicePointer):
                    raise TypeError(
                        f"{where}: annotate it as DevicePointer, so that the memory is kept, not "
                        f"as {np.dtype(field.code).name}"
                    ) from None
                if isinstance(value, int | np.integer):
                    kind = np.dtype(field.code).name
                    raise ValueError(f"{where}: {value} is out of range for {kind}") from None
                raise TypeError(f"{where}: {error}, not {value!r}") from None
            except (TypeError, ValueError) as error:
                raise type(error)(f"{where}: {error}") from None

    def unpack(self, data: Any) -> Any:
        """Make an object of the class from the bytes of a record."""
        values: Any = self._struct.unpack_from(data)
        if self._to_python:
            values = (
                value if convert is None else convert(value)
                for convert, value in zip(self._to_python, values, strict=True)
            )
        return self.cls(**dict(zip(self.names, values, strict=True)))

    def as_bytes(self, value: Any) -> bytes:
        """Return the bytes of one record: an object, a dict, or a structured array or scalar.

        Of a dict, what is missing is as in an object made without arguments.
        """
        if isinstance(value, self.cls):
            return self.pack(value)
        if isinstance(value, dict):
            unknown = sorted(value.keys() - set(self.names))
            if unknown:
                raise TypeError(f"record '{self.cls.__name__}' has no field '{unknown[0]}'")
            made = self.cls(**value)
            return self.pack(made)
        if (
            isinstance(value, np.ndarray | np.void)
            and value.dtype == self.dtype
            and value.size == 1
        ):
            return value.tobytes()
        raise TypeValidationError(self.cls, type(value), f"record '{self.cls.__name__}'")

    # --- what the native half calls --------------------------------------------------------------

    def to_records(self, message: Any) -> bytes | int | tuple[bytes | int, list[DevicePointer]]:
        """The bytes of one record; or how many records an array has. With what keeps the memory
        that they name, if they name any."""
        if isinstance(message, self.cls):
            packed = self.pack(message)
            pointers = [getattr(message, name) for name in self._pointers]
            held = [one for one in pointers if one is not None and one.is_lent]
            return (packed, held) if held else packed
        if isinstance(message, np.ndarray) and message.dtype == self.dtype:
            if message.ndim != 1 or not message.flags.c_contiguous:
                raise ValueError(
                    f"a batch of '{self.cls.__name__}' is a contiguous array of one dimension: use "
                    "numpy.ascontiguousarray"
                )
            held = list(getattr(message, "held", ()))
            return (len(message), held) if held else len(message)
        if isinstance(message, np.void) and message.dtype == self.dtype:
            return message.tobytes()
        raise TypeValidationError(self.cls, type(message), f"record '{self.cls.__name__}'")

    def __repr__(self) -> str:
        return f"RecordType({self.cls.__name__}, {self.layout.nbytes} bytes)"


class RecordBatch(np.ndarray[tuple[int], np.dtype[np.void]]):
    """Many records as one message: a structured array with the header of a message.

    Any structured array of the right dtype can be sent; this one says what else belongs to it. A
    part or a copy of a batch is an array without a header.

    Parameters
    ----------
    records
        A structured array of one dimension, of the dtype of a record class; not copied.
    priority
        0 (lowest) to 255, of the whole batch.
    correlation_id
        The `message_id` of the message that it answers.
    message_id
        The name of the batch; by default a new one.
    held
        The memory that its fields of `DevicePointer`s name (by ``pointer.address``), which is kept
        until the batch has been processed.
    """

    # Without a header, whatever it was made from. The native half sets what a batch that it makes
    # has beside that.
    priority: int = 128
    held: tuple[DevicePointer, ...] = ()
    _message_id: int | None = None
    _correlation_id: int | None = None

    def __new__(
        cls,
        records: npt.NDArray[np.void],
        *,
        priority: int = 128,
        correlation_id: UUID | None = None,
        message_id: UUID | None = None,
        held: Iterable[DevicePointer] = (),
    ) -> RecordBatch:
        """View an array as a batch."""
        if not 0 <= priority <= 255:
            raise ValueError(f"Priority must be 0-255, got {priority}")
        batch = np.asarray(records).view(cls)
        batch.priority = priority
        batch._message_id = (message_id if message_id is not None else uuid4()).int
        batch._correlation_id = correlation_id.int if correlation_id is not None else None
        batch.held = tuple(held)
        return batch

    @property
    def message_id(self) -> UUID | None:
        """The name of the batch; None of a part of one."""
        return None if self._message_id is None else UUID(int=self._message_id)

    @property
    def correlation_id(self) -> UUID | None:
        """The `message_id` of the message that it answers."""
        return None if self._correlation_id is None else UUID(int=self._correlation_id)


def _codec(fields: tuple[Field, ...], nbytes: int) -> tuple[struct.Struct, list[Any], list[Any]]:
    """How records are packed: the struct, and for each field what turns its value into what the
    struct takes, and back. An empty list where no value needs that."""
    form, end = "<", 0
    to_bytes: list[Any] = []
    to_python: list[Any] = []
    for field in fields:
        if field.offset > end:
            form += f"{field.offset - end}x"
        size = np.dtype(field.dtype).itemsize
        end = field.offset + size
        if field.inner is not None or field.shape:
            form += f"{size}s"
            to_bytes.append(_packer(field, size))
            to_python.append(_unpacker(field))
        elif field.python is DevicePointer:
            form += _CODES[field.code]
            to_bytes.append(_address)
            to_python.append(DevicePointer)
        else:
            form += "?" if field.python is bool else _CODES[field.code]
            to_bytes.append(None)
            to_python.append(field.python if field.python not in (int, float, bool) else None)
    if nbytes > end:
        form += f"{nbytes - end}x"
    return (
        struct.Struct(form),
        to_bytes if any(to_bytes) else [],
        to_python if any(to_python) else [],
    )


def _address(value: Any) -> int:
    """What a field says that names memory of a device."""
    if value is None:
        return 0
    if isinstance(value, DevicePointer):
        return value.address
    raise TypeError(
        "memory of a device is named by what RingKernelRuntime.lend returns for it, not by "
        f"{type(value).__name__}"
    )


def _packer(field: Field, size: int) -> Callable[[Any], bytes]:
    if field.python is bytes:

        def pack_bytes(value: Any) -> bytes:
            data = bytes(value)
            if len(data) > size:
                raise ValueError(f"{len(data)} bytes where there is room for {size}")
            return data

        return pack_bytes
    inner = field.inner
    if inner is not None and not field.shape:
        return inner.as_bytes
    if inner is not None:
        records = inner

        def pack_list(value: Any) -> bytes:
            items = list(value)
            if len(items) != field.shape[0]:
                raise ValueError(f"{len(items)} records where there are {field.shape[0]}")
            return b"".join(records.as_bytes(item) for item in items)

        return pack_list
    dtype = np.dtype(field.dtype).base

    def pack_array(value: Any) -> bytes:
        array = np.ascontiguousarray(value, dtype)
        if array.shape != field.shape:
            raise ValueError(f"an array of shape {field.shape} is wanted, not {array.shape}")
        return array.tobytes()

    return pack_array


def _unpacker(field: Field) -> Callable[[bytes], Any] | None:
    if field.python is bytes:
        return None
    inner = field.inner
    if inner is not None and not field.shape:
        return inner.unpack
    if inner is not None:
        size, records = inner.layout.nbytes, inner
        starts = [index * size for index in range(field.shape[0])]
        return lambda data: [records.unpack(data[start : start + size]) for start in starts]
    dtype = np.dtype(field.dtype).base
    return lambda data: np.frombuffer(data, dtype).reshape(field.shape).copy()


# --- from annotations ----------------------------------------------------------------------------


def _field(owner: str, name: str, annotation: Any) -> Field:
    """What a field's annotation says, or why it is refused."""

    def refuse(reason: str) -> TypeError:
        return TypeError(f"record '{owner}', field '{name}': {reason}")

    python: Any = unaliased(annotation)
    shape: tuple[int, ...] = ()
    if typing.get_origin(python) is typing.Annotated:
        python, *details = typing.get_args(python)
        python = unaliased(python)
        lengths = details[0] if isinstance(details[0], tuple) else (details[0],)
        if not all(type(length) is int and length > 0 for length in lengths):
            raise refuse(f"a length is a positive int, not {details[0]!r}")
        shape = lengths
        listed = typing.get_args(python) if typing.get_origin(python) is list else ()
        if (python is bytes or listed) and len(shape) != 1:
            raise refuse("bytes and lists have one length")
        if python is bytes:
            return Field(name, "u1", None, shape, bytes)
        if listed:
            if (inner := record_type_or_none(listed[0])) is None:
                raise refuse(f"{_name(listed[0])} is no record: numbers are an NDArray")
            if inner._pointers:
                raise refuse("memory of a device is named in a message's own fields")
            return Field(name, "", inner, shape, list)
        element = _element_of(python)
        if element is None:
            raise refuse("Annotated[...] is for bytes, lists of records, and arrays of numbers")
        code = _code(element)
        if code is None:
            raise refuse(f"{_name(element)} is no number of a fixed size that a record can have")
        return Field(name, code, None, shape, np.ndarray)
    if python is DevicePointer:
        return Field(name, "u8", None, (), DevicePointer)
    inner = record_type_or_none(python)
    if inner is not None:
        if inner._pointers:
            raise refuse(
                f"{_name(python)} names memory of a device, as only a message's own fields do"
            )
        return Field(name, "", inner, (), inner.cls)
    code = _code(python)
    if code is not None:
        return Field(name, code, None, (), python)
    if python is bytes:
        raise refuse("bytes need a length: Annotated[bytes, 16]")
    if _element_of(python) is not None:
        raise refuse("an array needs a shape: Annotated[NDArray[np.float32], 4]")
    raise refuse(
        f"{_name(python)} has no fixed size; a record has int, float, bool, numpy's numbers, "
        "Annotated[bytes, 16], Annotated[NDArray[np.float32], 4], DevicePointer and records"
    )


def _element_of(annotation: Any) -> Any:
    """The element of ``NDArray[element]``; None of anything else."""
    if typing.get_origin(annotation) is not np.ndarray:
        return None
    args = typing.get_args(annotation)
    element = typing.get_args(args[1]) if len(args) == 2 else ()
    return element[0] if element else None


def _code(annotation: Any) -> str | None:
    if annotation is int:
        return "i8"
    if annotation is float:
        return "f8"
    if annotation in (bool, np.bool_):
        return "u1"
    if isinstance(annotation, type) and issubclass(annotation, np.number):
        code = np.dtype(annotation).str[1:]
        return code if code in _CODES else None
    return None


def _name(annotation: Any) -> str:
    return annotation.__name__ if isinstance(annotation, type) else str(annotation)


#: Of each layout the record class; of one that is defined again, the last definition.
_types: dict[_native.RecordLayout, RecordType] = {}


def make_record(cls: type) -> RecordType:
    """Lay out a dataclass; what is refused raises TypeError."""
    owner = cls.__name__
    hints = _hints(cls)
    fields = []
    for field in dataclasses.fields(cls):
        if field.name in _HEADER and issubclass(cls, _native.MessageBase):
            continue
        if not field.init:
            raise TypeError(f"record '{owner}', field '{field.name}': is no parameter (init=False)")
        fields.append(_field(owner, field.name, hints[field.name]))
    made = RecordType(cls, tuple(fields))
    if issubclass(cls, _native.MessageBase):
        limit = _native.RecordLayout.MESSAGE_BYTES_MAX
        if made.layout.nbytes > limit:
            raise TypeError(
                f"record '{owner}' has {made.layout.nbytes} bytes; a message has at most {limit}"
            )
    cls.__record__ = made  # type: ignore[attr-defined]
    _types[made.layout] = made
    return made


def _hints(cls: type) -> dict[str, Any]:
    # What `message` found of the names of a function that defines the class.
    local = {**vars(cls), **vars(cls).get("__message_names__", {}), cls.__name__: cls}
    try:
        return typing.get_type_hints(cls, localns=local, include_extras=True)
    except NameError as error:
        raise TypeError(
            f"record '{cls.__name__}': an annotation names what is not there: {error}"
        ) from None


def record_type_or_none(cls: Any) -> RecordType | None:
    """The `RecordType` of a record class; None of any other object."""
    found = getattr(cls, "__record__", None) if isinstance(cls, type) else None
    return found if isinstance(found, RecordType) else None


def record_type(cls: type) -> RecordType:
    """Return the layout of a record class in all its forms.

    Raises
    ------
    TypeError
        The class is no record.
    """
    found = record_type_or_none(cls)
    if found is None:
        raise TypeError(
            f"{_name(cls)} is no record: decorate it with @message(layout='record') or @record"
        )
    return found


def record_dtype(cls: type) -> np.dtype[np.void]:
    """Return the numpy dtype of a record class.

    Examples
    --------
    >>> @record
    ... class Point:
    ...     x: float
    ...     hits: np.uint32
    >>> record_dtype(Point).itemsize
    16
    """
    return record_type(cls).dtype


def c_struct(cls: type) -> str:
    """Return a record class as a struct of C, C++ and CUDA.

    It asserts its own size and offsets, and is to be compiled after ``dotcompute_abi.h``.
    """
    return record_type(cls).layout.c_struct()


def type_of_layout(layout: _native.RecordLayout) -> RecordType:
    """The class that records of a layout become, where no type was declared for them."""
    return _types[layout]


def pack_as(instance: Any, layout: _native.RecordLayout) -> tuple[bytes, bool]:
    """The bytes of what another kernel sent, as records of `layout`; whether it is a single one."""
    if isinstance(instance, np.ndarray) and instance.dtype == _types[layout].dtype:
        return np.ravel(instance).tobytes(), False
    found = record_type_or_none(type(instance))
    if found is None or not found.layout.agrees_with(layout):
        raise TypeError(f"a record '{layout.name}' is taken here, not a {type(instance).__name__}")
    return found.pack(instance), True


@overload
def record(cls: type[T]) -> type[T]: ...
@overload
def record(cls: None = None) -> Callable[[type[T]], type[T]]: ...
@dataclass_transform(eq_default=True, field_specifiers=(dataclasses.field, dataclasses.Field))
def record(cls: type[T] | None = None) -> type[T] | Callable[[type[T]], type[T]]:
    """Make a record of a class that is no message: the state of a handler, or a part of a record.

    A plain class becomes a dataclass. Fields without a default begin as zeros.

    Raises
    ------
    TypeError
        A field cannot be in a record; says which and why.

    Examples
    --------
    >>> @record
    ... class Balance:
    ...     total: int
    ...     count: np.uint32
    >>> Balance()
    Balance(total=0, count=0)
    """
    if cls is None:
        return typing.cast("Callable[[type[T]], type[T]]", record)
    if "__dataclass_fields__" not in cls.__dict__:
        hints = _hints(cls)
        for name in inspect.get_annotations(cls):
            if name not in cls.__dict__:
                zero = _field(cls.__name__, name, hints[name])
                setattr(cls, name, dataclasses.field(default_factory=_zero_of(zero)))
        dataclasses.dataclass(cls)
    make_record(cls)
    return cls


def _zero_of(field: Field) -> Callable[[], Any]:
    if field.python is bytes:
        return lambda: bytes(field.shape[0])
    if field.python is list:
        inner = typing.cast("RecordType", field.inner)
        return lambda: [inner.cls() for _ in range(field.shape[0])]
    if field.python is np.ndarray:
        dtype = np.dtype(field.dtype).base
        return lambda: np.zeros(field.shape, dtype)
    return field.python
