"""Records from Python: one layout in numpy, numba, C and objects."""

import ctypes
import dataclasses
import os
import subprocess
from pathlib import Path
from typing import Annotated, Any
from uuid import uuid4

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from pydotcompute import message
from pydotcompute.exceptions import TypeValidationError
from pydotcompute.handlers import RecordBatch, c_struct, record, record_dtype, record_type
from pydotcompute.ring_kernels.message import deserialize_message

HEADER = Path(__file__).parents[2] / "crates/dotcompute-abi/generated/dotcompute_abi.h"


@record
class Point:
    x: np.float32
    tag: np.uint16
    at: Annotated[NDArray[np.int16], (2, 3)]


@message(layout="record")
class Sample:
    count: int
    ok: bool
    weight: np.float32
    level: np.uint8
    total: float
    name: Annotated[bytes, 5]
    point: Point
    points: Annotated[list[Point], 2]
    register: np.int16 = np.int16(-3)


def sample(**changes: Any) -> Sample:
    values: dict[str, Any] = {
        "count": -5,
        "ok": True,
        "weight": np.float32(0.5),
        "level": np.uint8(200),
        "total": 2.25,
        "name": b"ab",
        "point": Point(np.float32(1), np.uint16(7), np.arange(6, dtype=np.int16).reshape(2, 3)),
        "points": [Point(), Point(tag=np.uint16(3))],
    }
    return Sample(**{**values, **changes})


class TestLayout:
    def test_numpy_lays_a_record_out_as_c_does(self) -> None:
        ours = record_dtype(Sample)
        numpys = np.dtype(
            [
                ("count", "i8"),
                ("ok", "u1"),
                ("weight", "f4"),
                ("level", "u1"),
                ("total", "f8"),
                ("name", "u1", 5),
                ("point", np.dtype([("x", "f4"), ("tag", "u2"), ("at", "i2", (2, 3))], align=True)),
                (
                    "points",
                    np.dtype([("x", "f4"), ("tag", "u2"), ("at", "i2", (2, 3))], align=True),
                    2,
                ),
                ("register", "i2"),
            ],
            align=True,
        )
        assert ours == numpys
        assert ours.itemsize == numpys.itemsize

    def test_the_struct_of_c_has_the_same_bytes(self, tmp_path: Path) -> None:
        source = tmp_path / "sample.c"
        source.write_text(
            f'#include "{HEADER}"\n{c_struct(Sample)}\n'
            "int size(void) { return sizeof(Sample); }\n"
            "void fill(Sample *s) { s->count = -5; s->ok = 1; s->weight = 0.5f; s->level = 200;\n"
            "  s->total = 2.25; s->name[0] = 'a'; s->name[1] = 'b'; s->point.x = 1;\n"
            "  s->point.tag = 7; s->points[1].at[1][2] = 9; s->register_ = -3;\n"
            "  for (int i = 0; i < 6; i++) s->point.at[i / 3][i % 3] = i; }\n"
        )
        library = tmp_path / "sample.so"
        compiler = os.environ.get("CC", "cc")
        subprocess.run(
            [compiler, "-shared", "-fPIC", "-std=c11", str(source), "-o", str(library)], check=True
        )
        loaded = ctypes.CDLL(str(library))
        assert loaded.size() == record_dtype(Sample).itemsize
        filled = np.zeros(1, record_dtype(Sample))
        loaded.fill(ctypes.c_void_p(filled.ctypes.data))
        points = [Point(), Point()]
        points[1].at[1, 2] = 9
        assert record_type(Sample).pack(sample(points=points)) == filled.tobytes()

    def test_numba_lays_a_record_out_as_numpy_does(self) -> None:
        numba = pytest.importorskip("numba")
        made = numba.from_dtype(record_dtype(Sample))
        assert made.size == record_dtype(Sample).itemsize
        for field in record_type(Sample).fields:
            assert made.offset(field.name) == field.offset

    @pytest.mark.parametrize(
        ("annotation", "reason"),
        [
            (str, "str has no fixed size"),
            (list[int], "has no fixed size"),
            (bytes, "bytes need a length"),
            (NDArray[np.float32], "an array needs a shape"),
            (Annotated[bytes, 0], "a length is a positive int"),
            (Annotated[NDArray[np.float32], (2, -1)], "a length is a positive int"),
            (Annotated[NDArray[np.complex64], 2], "complex64 is no number of a fixed size"),
            (np.float16, "float16 has no fixed size"),
            (Annotated[int, 3], "is for bytes, lists of records, and arrays"),
            (Annotated[list[int], 3], "int is no record"),
            (int | None, "has no fixed size"),
        ],
    )
    def test_what_has_no_fixed_size_is_refused_with_field_and_reason(
        self, annotation: Any, reason: str
    ) -> None:
        namespace = {"__annotations__": {"fine": int, "bad": annotation}, "__module__": __name__}
        with pytest.raises(TypeError, match=r"record 'Refused', field 'bad': ") as caught:
            message(layout="record")(type("Refused", (), namespace))
        assert reason in str(caught.value)

    def test_a_name_that_c_cannot_have_is_refused(self) -> None:
        for name in ("_hidden", "größe"):
            namespace = {"__annotations__": {name: int}, "__module__": __name__}
            with pytest.raises(TypeError, match=f"field '{name}': a name"):
                record(type("Refused", (), namespace))

    def test_a_record_without_fields_and_one_that_is_too_large_are_refused(self) -> None:
        with pytest.raises(TypeError, match="no fields"):
            message(layout="record")(type("Empty", (), {"__module__": __name__}))
        namespace = {
            "__annotations__": {"data": Annotated[bytes, 70_000]},
            "__module__": __name__,
        }
        with pytest.raises(TypeError, match="at most 65535"):
            message(layout="record")(type("Large", (), dict(namespace)))
        assert record_dtype(record(type("State", (), dict(namespace)))).itemsize == 70_000

    def test_a_class_that_is_no_record_says_how_to_make_it_one(self) -> None:
        with pytest.raises(TypeError, match="layout='record'"):
            record_dtype(int)

    def test_annotations_that_are_text_count_too(self) -> None:
        made = record(
            type("Text", (), {"__annotations__": {"x": "np.int32"}, "__module__": __name__})
        )
        assert record_dtype(made) == np.dtype([("x", "i4")])


class TestObjects:
    def test_a_record_is_a_message_as_any_other(self) -> None:
        first = sample(priority=7)
        again = deserialize_message(first.serialize())
        assert (again.count, again.priority, again.message_id) == (-5, 7, first.message_id)
        assert again.reply(**{**vars_of(first), "count": 1}).correlation_id == again.message_id

    def test_bytes_become_the_object_that_they_came_from(self) -> None:
        first = sample()
        again = record_type(Sample).unpack(record_type(Sample).pack(first))
        assert (again.count, again.ok, again.total) == (-5, True, 2.25)
        assert again.ok is True
        assert isinstance(again.weight, np.float32)
        assert again.name == b"ab\0\0\0"
        assert again.point.at.tolist() == [[0, 1, 2], [3, 4, 5]]
        assert isinstance(again.point, Point)
        assert [point.tag for point in again.points] == [0, 3]

    @pytest.mark.parametrize(
        ("changes", "error", "text"),
        [
            ({"level": 300}, ValueError, "field 'level': 300 is out of range for uint8"),
            ({"count": 1 << 63}, ValueError, "field 'count': .* out of range for int64"),
            ({"count": "x"}, TypeError, "field 'count': .*not 'x'"),
            ({"name": b"123456"}, ValueError, "field 'name': 6 bytes where there is room for 5"),
            ({"points": [Point()]}, ValueError, "field 'points': 1 records where there are 2"),
            ({"point": 5}, TypeError, "Point"),
        ],
    )
    def test_a_value_that_does_not_fit_is_refused_with_its_field(
        self, changes: dict[str, Any], error: type[Exception], text: str
    ) -> None:
        with pytest.raises((error, TypeValidationError), match=text):
            record_type(Sample).pack(sample(**changes))

    def test_fields_without_a_default_begin_as_zeros_in_a_record(self) -> None:
        point = Point()
        assert (point.x, point.tag) == (0, 0)
        assert point.at.shape == (2, 3)
        assert record_type(Point).as_bytes({"tag": 3}) == record_type(Point).pack(Point(tag=3))
        with pytest.raises(TypeError, match="no field 'z'"):
            record_type(Point).as_bytes({"z": 3})

    @given(
        count=st.integers(-(2**63), 2**63 - 1),
        total=st.floats(allow_nan=False),
        level=st.integers(0, 255),
        name=st.binary(max_size=5),
    )
    def test_numpy_reads_what_was_packed(
        self, count: int, total: float, level: int, name: bytes
    ) -> None:
        packed = record_type(Sample).pack(
            sample(count=count, total=total, level=np.uint8(level), name=name)
        )
        read = np.frombuffer(packed, record_dtype(Sample))[0]
        assert (read["count"], read["total"], read["level"]) == (count, total, level)
        assert bytes(read["name"]) == name.ljust(5, b"\0")


@message(layout="record")
class Numbers:
    """Of each kind of number one: what is packed and made without Python code."""

    flag: bool
    whole: int
    real: float
    u1: np.uint8
    u2: np.uint16
    u4: np.uint32
    u8: np.uint64
    i1: np.int8
    i2: np.int16
    i4: np.int32
    i8: np.int64
    f4: np.float32
    f8: np.float64


INTEGERS = ["u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8"]


@st.composite
def numbers(draw: st.DrawFn) -> dict[str, Any]:
    values: dict[str, Any] = {
        "flag": draw(st.booleans()),
        "whole": draw(st.integers(-(2**63), 2**63 - 1)),
        "real": draw(st.floats()),
        "f4": draw(st.floats(width=32)),
        "f8": draw(st.floats() | st.integers(-(2**53), 2**53)),
    }
    for name in INTEGERS:
        limits = np.iinfo(name)
        values[name] = draw(st.integers(int(limits.min), int(limits.max)))
    return values


class TestPlainNumbers:
    @given(values=numbers())
    def test_their_bytes_are_those_that_struct_writes(self, values: dict[str, Any]) -> None:
        kind = record_type(Numbers)
        packed = kind._pack(Numbers(**values))
        assert packed is not None
        assert packed == kind._struct.pack(*(values[name] for name in kind.names))
        again = kind._unpack(packed)
        for field in kind.fields:
            value = getattr(again, field.name)
            assert type(value) is field.python
            assert value == values[field.name] or value != value
        assert type(again) is Numbers
        # Packed from what is no number of Python's own, by the Python half.
        assert kind._pack(again) is None
        assert kind.pack(again) == packed

    @pytest.mark.parametrize("name", [*INTEGERS, "whole", "f4", "real", "flag"])
    @pytest.mark.parametrize("value", [-(2**63) - 1, 2**64, 1e300, "x", None])
    def test_what_does_not_fit_is_said_as_ever(self, name: str, value: Any) -> None:
        kind = record_type(Numbers)
        made = Numbers(**{**dict.fromkeys(kind.names, 1), "flag": True, name: value})
        fits = {"real": [-(2**63) - 1, 2**64, 1e300], "f4": [-(2**63) - 1, 2**64]}
        if name == "flag" or value in fits.get(name, []):
            kind.pack(made)
            return
        assert kind._pack(made) is None
        with pytest.raises((ValueError, TypeError), match=f"field '{name}'"):
            kind.pack(made)

    def test_a_constructor_of_its_own_is_called_for_what_arrives(self) -> None:
        @message(layout="record")
        class Counted:
            value: int
            made: int = 0

            def __post_init__(self) -> None:
                self.made += 1

        kind = record_type(Counted)
        assert kind._unpack(kind.pack(Counted(value=3))).made == 2

        class Derived(Counted):  # type: ignore[valid-type, misc]
            pass

        assert kind._pack(Derived(value=1)) is None


def vars_of(instance: Any) -> dict[str, Any]:
    names = [field.name for field in dataclasses.fields(instance)]
    return {name: getattr(instance, name) for name in names if not name.endswith("_id")}


class TestBatches:
    def test_a_batch_has_the_header_of_a_message_and_its_parts_have_none(self) -> None:
        answered = uuid4()
        batch = RecordBatch(np.zeros(4, record_dtype(Point)), priority=200, correlation_id=answered)
        assert (batch.priority, batch.correlation_id) == (200, answered)
        assert batch.message_id is not None
        assert batch[1:].message_id is None
        assert batch["x"].sum() == 0
        with pytest.raises(ValueError, match="0-255"):
            RecordBatch(np.zeros(1, record_dtype(Point)), priority=256)

    def test_what_is_no_batch_is_refused(self) -> None:
        kind = record_type(Point)
        array = np.zeros(8, record_dtype(Point))
        for wrong in (array[::2], array.reshape(2, 4), array[:0:-1]):
            with pytest.raises(ValueError, match="ascontiguousarray"):
                kind.to_records(wrong)
        with pytest.raises(TypeValidationError):
            kind.to_records(np.zeros(3))
        with pytest.raises(TypeValidationError):
            kind.to_records(sample())
