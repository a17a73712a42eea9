"""Messages and their bytes: contract 9.2, promises D1 to D3 and D6 to D11."""

from __future__ import annotations

import abc
import copy
import dataclasses
import datetime
import decimal
import enum
import gc
import importlib.util
import inspect
import os
import pathlib
import pickle
import subprocess
import sys
import threading
import types
import typing
import weakref
import zoneinfo
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, TypeVar
from uuid import UUID, uuid4

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pydotcompute import _native
from pydotcompute.exceptions import MessageDeserializationError, MessageSerializationError
from pydotcompute.ring_kernels import array_message
from pydotcompute.ring_kernels.message import (
    RingKernelMessage,
    deserialize_message,
    get_message_type,
    message,
)

FIXTURES = pathlib.Path(__file__).parent / "fixtures"
ID = UUID("01234567-89ab-4cde-8f01-23456789abcd")
ASKED = UUID("fedcba98-7654-4321-8fed-cba987654321")


def load_fixtures() -> Any:
    spec = importlib.util.spec_from_file_location("make_messages", FIXTURES / "make_messages.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["make_messages"] = module
    spec.loader.exec_module(module)
    return module


made = load_fixtures()


class Color(enum.Enum):
    RED = "red"
    PAIR = (1, 2)


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Point(NamedTuple):
    x: int
    y: Color


@message
class Box:
    value: Any = None


@message
class Weather:
    celsius: float
    sensor: str = "roof"


@dataclass
class Plain:
    a: int
    b: tuple[int, ...] = ()


@message
class Typed:
    color: Color = Color.RED
    level: Level = Level.LOW
    colors: list[Color] = field(default_factory=list)
    by_color: dict[Color, tuple[int, str]] = field(default_factory=dict)
    point: Point | None = None
    points: tuple[Point, ...] = ()
    plain: Plain | None = None
    reading: Weather | None = None
    readings: list[Weather] = field(default_factory=list)
    single: np.float32 = np.float32(0.0)
    index: np.int16 = np.int16(0)
    raw: bytearray = field(default_factory=bytearray)
    same: set[tuple[int, int]] = field(default_factory=set)


def round_trip(value: Any) -> Any:
    return Box.deserialize(Box(value).serialize()).value


# --- the bytes -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(made.MESSAGES))
def test_the_bytes_are_those_of_pydotcompute(name):
    assert made.MESSAGES[name].serialize() == (FIXTURES / f"{name}.msgpack").read_bytes()


@pytest.mark.parametrize("name", sorted(made.MESSAGES))
def test_the_bytes_of_pydotcompute_are_read(name):
    expected = made.MESSAGES[name]
    read = type(expected).deserialize((FIXTURES / f"{name}.msgpack").read_bytes())
    assert type(read) is type(expected)
    for item in dataclasses.fields(expected):
        want, got = getattr(expected, item.name), getattr(read, item.name)
        if isinstance(want, np.ndarray):
            assert got.dtype == want.dtype
            assert got.flags.writeable
            np.testing.assert_array_equal(got, want)
        else:
            assert got == want, item.name
            assert type(got) is type(want), item.name


def test_ids_are_read_in_every_form():
    for form in ({"__uuid_bin__": ID.bytes}, {"__uuid__": str(ID)}, str(ID), ID.bytes):
        data = msgpack.packb({"celsius": 1.0, "message_id": form, "correlation_id": form})
        read = Weather.deserialize(data)
        assert read.message_id == ID
        assert read.correlation_id == ID


def test_any_buffer_is_read():
    data = Weather(1.0).serialize()
    for buffer in (bytearray(data), memoryview(data)):
        assert Weather.deserialize(buffer).celsius == 1.0
    with pytest.raises(MessageDeserializationError):
        Weather.deserialize(5)


def test_unknown_keys_are_dropped_and_missing_ones_take_defaults():
    read = Weather.deserialize(
        msgpack.packb({"celsius": 1.0, "new": {"x": [1]}, "__type__": "Weather"})
    )
    assert (read.celsius, read.sensor, read.priority, read.correlation_id) == (
        1.0,
        "roof",
        128,
        None,
    )
    assert read.message_id.version == 4


@pytest.mark.parametrize(
    "data", [b"", b"garbage", b"\xc1", b"\x80", b"\x00", b"\x90", os.urandom(64)]
)
def test_arbitrary_bytes_are_an_error(data):
    with pytest.raises(MessageDeserializationError) as caught:
        Weather.deserialize(data)
    assert caught.value.message_type is Weather
    assert caught.value.__cause__ is caught.value.cause


# --- classes ---------------------------------------------------------------------------------


def test_d2_documented_class_definitions_work():
    @dataclass
    class Documented(RingKernelMessage):
        value: float

    sent = Documented(value=42.0)
    assert Documented.deserialize(sent.serialize()) == sent


def test_d3_the_first_positional_argument_is_the_first_field():
    @dataclass
    class Documented(RingKernelMessage):
        value: float = 0.0

    assert Documented(2.5).value == 2.5
    names = [item.name for item in dataclasses.fields(Documented)]
    assert names == ["message_id", "priority", "correlation_id", "value"]


def test_base_fields_come_after_the_users():
    sent = Weather(1.0, "sea", ID, 7, ASKED)
    assert (sent.message_id, sent.priority, sent.correlation_id) == (ID, 7, ASKED)
    names = [item.name for item in dataclasses.fields(Weather)]
    assert names == ["celsius", "sensor", "message_id", "priority", "correlation_id"]
    assert list(inspect.signature(Weather).parameters) == names
    assert repr(sent) == (
        f"Weather(celsius=1.0, sensor='sea', message_id={ID!r}, priority=7, "
        f"correlation_id={ASKED!r})"
    )


def test_d1_a_subclass_keeps_its_fields():
    @dataclass
    class Parent(RingKernelMessage):
        a: int = 1

    Parent().serialize()

    @dataclass
    class Child(Parent):
        b: int = 2

    assert Child.deserialize(Child(a=3, b=4).serialize()).b == 4
    assert Child._get_field_names() == Parent._get_field_names() | {"b"}


def test_d6_message_on_a_subclass_of_a_message():
    @message
    class Parent:
        a: int
        c: int = 3

    @message
    class Child(Parent):
        b: str = "b"

    sent = Child(1, 2, "x", priority=9)
    assert (sent.a, sent.c, sent.b, sent.priority) == (1, 2, "x", 9)
    assert Child.deserialize(sent.serialize()) == sent
    assert isinstance(sent, Parent)


def test_a_subclass_may_add_fields_without_defaults():
    @message
    class Parent:
        a: int

    @message
    class Child(Parent):
        b: int

    assert Child.deserialize(Child(1, 2).serialize()).b == 2
    with pytest.raises(TypeError, match="'b'"):
        Child(1)


def test_d7_message_classes_are_ring_kernel_messages():
    sent = Weather(1.0)
    assert isinstance(sent, RingKernelMessage)
    answer = sent.reply(celsius=2.0)
    assert answer.correlation_id == sent.message_id
    assert answer.message_id != sent.message_id
    assert type(sent.reply(response_class=Box, value=1)) is Box
    other = sent.with_correlation(ASKED)
    assert (other.message_id, other.correlation_id, other.celsius) == (sent.message_id, ASKED, 1.0)
    assert sent.correlation_id is None
    for priority in (-1, 256, 2**70):
        with pytest.raises(ValueError, match="0-255"):
            Weather(1.0, priority=priority)
        with pytest.raises(ValueError, match="0-255"):
            RingKernelMessage(priority=priority)
    with pytest.raises(TypeError):
        Weather(1.0, priority="high")


def test_a_dataclass_keeps_its_fields():
    @message
    @dataclass
    class FieldsAsTheyAre:
        value: float = 1.0

    assert [item.name for item in dataclasses.fields(FieldsAsTheyAre)] == ["value"]
    assert set(msgpack.unpackb(FieldsAsTheyAre().serialize())) == {"value", "__type__"}
    answer = FieldsAsTheyAre().reply(value=2.0)
    assert FieldsAsTheyAre.deserialize(answer.serialize()).correlation_id == answer.correlation_id


def test_user_fields_of_the_base():
    @message
    @dataclass
    class Urgent:
        value: int = 0
        message_id: UUID = field(default_factory=uuid4)
        priority: int = 200
        correlation_id: UUID | None = None

    assert Urgent().priority == 200
    assert Urgent().message_id != Urgent().message_id
    assert Urgent(1, ID, 3, ASKED).message_id is ID
    assert _native.message_header(Urgent(1, ID, 3, ASKED)) == (ID.int, ASKED.int, 3)

    @dataclass
    class Derived(RingKernelMessage):
        priority: int = 201

    assert _native.message_header(Derived())[2] == 201
    assert Derived.deserialize(Derived(priority=202).serialize()).priority == 202


def test_instances_are_mutable_and_unhashable():
    sent = Weather(1.0)
    sent.celsius = 2.0
    sent.extra = "kept here only"
    sent.priority = 3
    sent.message_id = ID
    sent.correlation_id = ASKED
    assert (sent.celsius, sent.extra, sent.priority) == (2.0, "kept here only", 3)
    assert sent.message_id is ID
    assert sent.correlation_id is ASKED
    assert Weather.deserialize(sent.serialize()) == sent
    with pytest.raises(ValueError, match="0-255"):
        sent.priority = 300
    with pytest.raises(TypeError):
        hash(sent)
    assert Weather(1.0, message_id=ID) == Weather(1.0, message_id=ID)
    assert Weather(1.0, message_id=ID) != Weather(2.0, message_id=ID)


def test_the_constructor_reports_what_is_wrong():
    for call in (
        lambda: Weather(),
        lambda: Weather(1.0, celsius=2.0),
        lambda: Weather(1.0, nobody=2.0),
        lambda: Weather(1.0, "x", ID, 1, None, 6),
    ):
        with pytest.raises(TypeError, match=r"Weather.__init__\(\)"):
            call()


def test_post_init_runs():
    ran = []

    @message
    class Checked:
        value: int = 0
        double: int = field(init=False)

        def __post_init__(self):
            ran.append(self.value)
            self.double = 2 * self.value

    sent = Checked(2)
    assert Checked.deserialize(sent.serialize()).double == 4
    assert ran == [2, 2]


def test_methods_properties_and_super():
    class Mixin:
        def describe(self):
            return "mixin"

    T = TypeVar("T")

    @message
    class Rich(Mixin, Generic[T]):
        value: float

        def describe(self):
            return f"{super().describe()} {__class__.__name__} {self.value}"

        @property
        def double(self):
            return 2 * self.value

        @classmethod
        def of(cls, value):
            return cls(value)

        @staticmethod
        def me():
            return __class__

    sent = Rich.of(2.0)
    assert (sent.describe(), sent.double, Rich.me()) == ("mixin Rich 2.0", 4.0, Rich)
    assert Rich[int](1.0).value == 1.0


def test_own_constructors_and_init_variables():
    @message
    class Own:
        value: int = 0

        def __init__(self, value=5):
            self.value = value
            self.priority = 9

    assert Own().value == 5
    assert Own.deserialize(Own(7).serialize()).value == 7

    class Narrow(Weather):
        def __init__(self, celsius):
            super().__init__(celsius, sensor="narrow")

    assert Narrow(3.0).sensor == "narrow"

    @message
    @dataclass
    class Variable:
        value: int
        scale: dataclasses.InitVar[int] = 2

        def __post_init__(self, scale):
            self.value *= scale

    assert Variable(2, 3).value == 6


def test_frozen_slots_and_keyword_dataclasses():
    @message
    @dataclass(frozen=True)
    class Frozen:
        value: int

    assert Frozen.deserialize(Frozen(1).serialize()) == Frozen(1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        Frozen(1).value = 2
    assert hash(Frozen(1)) == hash(Frozen(1))

    @message
    @dataclass(slots=True)
    class Slots:
        value: int = 3

    assert Slots.deserialize(Slots(4).serialize()).value == 4

    @message
    @dataclass(kw_only=True)
    class Keywords:
        value: int

    assert Keywords(value=1).value == 1
    with pytest.raises(TypeError):
        Keywords(1)


def test_identity_and_abstract_classes():
    @message
    @dataclass(eq=False)
    class Same:
        value: int = 0

    one = Same()
    assert one == one
    assert one != Same()
    assert {one: 1}[one] == 1

    @message
    class Abstract(abc.ABC):
        value: int = 0

        @abc.abstractmethod
        def act(self): ...

    @message
    class Concrete(Abstract):
        def act(self):
            return self.value

    with pytest.raises(TypeError, match="abstract"):
        Abstract()
    assert Concrete.deserialize(Concrete(3).serialize()).act() == 3


def test_a_class_that_cannot_derive_gets_the_methods():
    @message
    class Error(Exception):
        code: int = 0

    sent = Error(5)
    assert isinstance(sent, Exception)
    assert Error.deserialize(sent.serialize()).code == 5
    assert _native.message_header(Error(1, ID, 3, ASKED)) == (ID.int, ASKED.int, 3)


def test_copies_and_pickles():
    sent = Weather(1.0, priority=3)
    sent.extra = [1]
    for other in (copy.copy(sent), copy.deepcopy(sent), pickle.loads(pickle.dumps(sent))):
        assert other == sent
        assert other.extra == [1]
        assert type(other) is Weather
    assert dataclasses.replace(sent, celsius=2.0).message_id == sent.message_id
    assert dataclasses.asdict(sent)["celsius"] == 1.0


def test_the_header_of_any_object():
    class Foreign:
        def __init__(self, **attributes):
            vars(self).update(attributes)

    assert _native.message_header(object()) == (None, None, 128)
    assert _native.message_header(Foreign(priority=300, message_id="x")) == (None, None, 255)
    assert _native.message_header(Foreign(priority="x", message_id=ID)) == (ID.int, None, 128)
    assert _native.message_header(Foreign(correlation_id=ASKED)) == (None, ASKED.int, 128)


def test_private_helpers():
    sent = Weather(1.0)
    assert Weather._from_dict(sent._to_dict()) == sent
    assert [item.name for item in Weather._get_fields()][:2] == ["celsius", "sensor"]


# --- ids -------------------------------------------------------------------------------------


def test_d11_ids_are_uuids_made_on_demand():
    ids = {Weather(1.0).message_id for _ in range(1000)}
    assert len(ids) == 1000
    assert all(type(made) is UUID and made.version == 4 for made in ids)
    sent = Weather(1.0)
    assert sent.message_id is sent.message_id
    assert pickle.loads(pickle.dumps(sent.message_id)) == sent.message_id
    assert str(UUID(str(sent.message_id))) == str(sent.message_id)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_makes_other_ids():
    program = """
import os
from pydotcompute.ring_kernels.message import RingKernelMessage
RingKernelMessage()
read, write = os.pipe()
if os.fork() == 0:
    os.write(write, RingKernelMessage().message_id.bytes)
    os._exit(0)
assert os.read(read, 16) != RingKernelMessage().message_id.bytes
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


# --- the registry ----------------------------------------------------------------------------


def test_deserialize_message_finds_the_class():
    assert get_message_type("Weather") is Weather
    assert get_message_type(f"{__name__}:Weather") is Weather
    assert get_message_type("Nobody") is None
    assert deserialize_message(Weather(4.0).serialize()).celsius == 4.0
    for data in ({"message_id": ID.bytes, "__type__": "Nobody"}, {"message_id": ID.bytes, "x": 1}):
        read = deserialize_message(msgpack.packb(data))
        assert type(read) is RingKernelMessage
        assert read.message_id == ID
    for data in (b"", b"\x01", b"garbage"):
        with pytest.raises(MessageDeserializationError):
            deserialize_message(data)


def test_d8_two_classes_of_the_same_name_do_not_collide(monkeypatch):
    def define(module, body):
        made = types.ModuleType(module)
        made.message = message
        monkeypatch.setitem(sys.modules, module, made)
        exec(f"@message\nclass Twin:\n    {body}", vars(made))
        return made.Twin

    first = define("one", "value: int = 1")
    early = first().serialize()
    second = define("two", "value: int = 2; more: int = 3")
    assert get_message_type("Twin") is second
    assert type(deserialize_message(first(5).serialize())) is first
    assert type(deserialize_message(second(5).serialize())) is second
    assert type(deserialize_message(early)) is first
    with pytest.raises(MessageDeserializationError):
        first.deserialize(second(5).serialize())


def test_d9_wrong_bytes_are_an_error():
    with pytest.raises(MessageDeserializationError, match="Box"):
        Weather.deserialize(Box(1).serialize())
    with pytest.raises(MessageDeserializationError, match="none of the fields"):
        Weather.deserialize(msgpack.packb({"other": 1}))
    with pytest.raises(MessageDeserializationError, match="celsius"):
        Weather.deserialize(msgpack.packb({"sensor": "x"}))
    with pytest.raises(MessageDeserializationError, match="0-255"):
        Weather.deserialize(msgpack.packb({"celsius": 1.0, "priority": 300}))


def test_a_base_class_reads_what_it_knows():
    @message
    class Special(Weather):
        more: int = 1

    read = Weather.deserialize(Special(1.5).serialize())
    assert (type(read), read.celsius) == (Weather, 1.5)
    assert RingKernelMessage.deserialize(Special(1.5, message_id=ID).serialize()).message_id == ID


# --- values ----------------------------------------------------------------------------------

ZONE = zoneinfo.ZoneInfo("Europe/Zurich")

VALUES = [
    None, True, 0, -1, 2**63, 2**64, -(2**200), 1.5, float("inf"), "text", "", b"bytes", [], {},
    [1, [2, (3, [4, ()])]], (1, 2), ((1,), [(2,)]), {1: 2}, {(1, 2): 3, None: 4, 1.5: 5, b"x": 6},
    {1, 2}, frozenset({(1, 2)}), 1 + 2j, ASKED, [ASKED], {"id": ASKED},
    decimal.Decimal("1.10"), datetime.date(2024, 2, 29), datetime.time(1, 2, 3, 4),
    datetime.timedelta(days=-1, microseconds=5), datetime.datetime(2024, 1, 2, 3, 4, 5, 6),
    datetime.datetime(2024, 1, 2, tzinfo=datetime.UTC),
    datetime.datetime(2024, 7, 1, 12, tzinfo=ZONE),
    datetime.datetime(2024, 10, 27, 2, 30, tzinfo=ZONE, fold=1),
    {"__uuid__": "not an id"}, {"__ndarray__": 1}, {"__set__": [1], "x": (1,)}, {"__type__": "Box"},
    {"__dict__": {"__dict__": 1}}, {"dtype": "x", "shape": 1, "data": 2},
]  # fmt: skip


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_d10_values_come_back_as_they_were(value):
    read = round_trip(value)
    assert read == value
    assert type(read) is type(value)
    assert repr(read) == repr(value)


def test_d10_annotations_are_honoured():
    sent = Typed(
        color=Color.PAIR,
        level=Level.HIGH,
        colors=[Color.RED, Color.PAIR],
        by_color={Color.PAIR: (1, "x")},
        point=Point(1, Color.RED),
        points=(Point(2, Color.PAIR),),
        plain=Plain(1, (2, 3)),
        reading=Weather(1.0, message_id=ID),
        readings=[Weather(2.0)],
        single=np.float32(0.1),
        index=np.int16(-3),
        raw=bytearray(b"raw"),
        same={(1, 2)},
    )
    data = sent.serialize()
    read = Typed.deserialize(data)
    assert read == sent
    assert repr(read) == repr(sent)
    assert type(read.single) is np.float32
    assert type(read.points[0]) is Point
    assert type(read.raw) is bytearray
    assert b"__tuples__" not in data


def test_annotations_of_classes_inside_a_function_are_honoured():
    """With the annotations as strings (see the top of this file), only the function knows them."""

    class Mode(enum.Enum):
        FAST = 1

    @message
    class Inner:
        mode: Mode = Mode.FAST

    class Outer:
        @message
        class Order:
            mode: typing.Optional[Mode] = None  # noqa: UP045
            inner: list[Inner] = field(default_factory=list)
            unknown: NoSuchName = 5  # noqa: F821

    order = Outer.Order(mode=Mode.FAST, inner=[Inner(Mode.FAST)])
    assert Outer.Order.deserialize(order.serialize()) == order

    @array_message
    class Arrays:
        mode: Mode = Mode.FAST

    assert Arrays.deserialize(Arrays().serialize()).mode is Mode.FAST


def test_d10_what_no_reader_could_find_is_an_error():
    for value in (Color.RED, Plain(1), object(), np.array([object()]), lambda: 1, "\ud800"):
        with pytest.raises(MessageSerializationError) as caught:
            Box(value).serialize()
        assert caught.value.message_type is Box
        assert "in field 'value'" in caught.value.cause.__notes__


def test_nested_messages_find_their_class():
    read = round_trip([Weather(1.0), {"x": Box(Weather(2.0))}])
    assert type(read[0]) is Weather
    assert read[1]["x"].value.celsius == 2.0


def test_numpy_scalars_are_numbers():
    assert (round_trip(np.float32(1.5)), round_trip(np.int64(3))) == (1.5, 3)
    assert round_trip(np.bool_(True)) is True
    moment = round_trip(np.datetime64("2024-01-01T00:00:00.123456789"))
    assert moment == np.datetime64("2024-01-01T00:00:00.123456789")
    assert isinstance(moment, np.datetime64)


@pytest.mark.parametrize(
    "array",
    [
        np.arange(5), np.zeros((0, 3)), np.array(1.5), np.arange(6).reshape(2, 3)[:, ::2],
        np.array(["a", "bc"]), np.array([b"x"]), np.array([1 + 2j]), np.array([True, False]),
        np.array(["2024-01-01"], dtype="datetime64[ns]"), np.arange(3, dtype=">i2"),
        np.arange(3, dtype=np.float16), np.zeros((1,) * 32), np.array(["", ""]),
    ],
    ids=lambda array: f"{array.dtype}{array.shape}",
)  # fmt: skip
def test_arrays_come_back_writable(array):
    read = round_trip({"x": [array]})["x"][0]
    assert read.dtype == array.dtype
    assert read.shape == array.shape
    assert read.flags.writeable
    np.testing.assert_array_equal(read, array)


def test_arrays_that_have_no_bytes_are_an_error():
    structured = np.zeros(2, dtype=[("a", "i4"), ("b", "f8")])
    for array in (structured, np.ma.masked_array([1, 2], mask=[True, False])):
        with pytest.raises(MessageSerializationError):
            Box(array).serialize()


def test_d12_a_message_holds_a_copy_of_its_arrays():
    array = np.zeros(3)
    read = Box.deserialize(Box(array).serialize())
    array[0] = 1.0
    assert read.value[0] == 0.0


def test_what_nests_too_deep_or_in_itself_is_an_error():
    loop: list[Any] = []
    loop.append(loop)
    loop.append(loop)
    bomb: Any = "x"
    for _ in range(40):
        bomb = [bomb] * 10
    with pytest.raises(MessageSerializationError, match="64"):
        Box(loop).serialize()
    deep: Any = 1
    for _ in range(100):
        deep = [deep]
    with pytest.raises(MessageSerializationError, match="64"):
        Box(deep).serialize()


def test_a_message_that_changes_while_it_is_written_is_an_error():
    class Meddler:
        shape = (1,)

        @property
        def dtype(self):
            items.clear()
            return np.dtype("f8")

        def tobytes(self):
            return b"12345678"

    items: list[Any] = [Meddler(), 2]
    with pytest.raises(MessageSerializationError, match="changed"):
        Box(items).serialize()


def test_interrupts_pass_through():
    @message
    class Interrupted:
        value: int = 0

        def __post_init__(self):
            if self.value:
                raise KeyboardInterrupt

    data = Interrupted().serialize().replace(b"\xa5value\x00", b"\xa5value\x01")
    with pytest.raises(KeyboardInterrupt):
        Interrupted.deserialize(data)


# --- hostile bytes ---------------------------------------------------------------------------

HOSTILE = [
    b"\x81\xa5value" + b"\x91" * 10_000,
    b"\x81\xa5value\xdd\xff\xff\xff\xff",
    b"\x81\xa5value\xdf\xff\xff\xff\xff",
    b"\x81\xa5value\xc6\xff\xff\xff\xff",
    b"\x81\xa5value\x81\x80\x01",
    b"\x81\xa5value\xd4\x00\x00",
    msgpack.packb({"value": {"__ndarray__": b"12345678", "dtype": "O", "shape": [1]}}),
    msgpack.packb({"value": {"__ndarray__": b"1", "dtype": "f8", "shape": [2**60]}}),
    msgpack.packb({"value": {"__ndarray__": b"", "dtype": "f8", "shape": [2**62, 2**62]}}),
    msgpack.packb({"value": {"__ndarray__": b"", "dtype": "f8", "shape": [0, 2**63]}}),
    msgpack.packb({"value": {"__ndarray__": b"", "dtype": "V0", "shape": [2**40]}}),
    msgpack.packb({"value": {"__ndarray__": b"x", "dtype": "x" * 1000, "shape": [1]}}),
    msgpack.packb({"value": {"__ndarray__": b"x"}}),
    msgpack.packb({"value": {"__array_ref__": "x", "dtype": "f8", "shape": [1]}}),
    msgpack.packb({"value": {"__array_ref__": ID.hex, "dtype": "f8", "shape": [1]}}),
    msgpack.packb({"value": {"__set__": [[{}]]}}),
    msgpack.packb({"value": {"__datetime__": "x"}}),
    msgpack.packb({"value": {"__datetime__": "2024-01-01", "zone": "../../etc/passwd"}}),
    msgpack.packb({"value": {"__timedelta__": [2**62, 0, 0]}}),
    msgpack.packb({"value": {"__message__": {"__type__": "os.system"}}}),
    msgpack.packb({"value": {"__message__": 1}}),
    msgpack.packb({"value": {"__dict__": [1]}}),
    msgpack.packb({"value": {"__int__": "z"}}),
    msgpack.packb({"value": {"__decimal__": "z"}}),
    msgpack.packb({"value": {"__uuid_bin__": b"short"}}),
    msgpack.packb({"value": 1}) + b"trailing",
    b"\x81\xa5value\xdd\x02\x00\x00\x00" + b"\x80" * 0x2000000,
]


@pytest.mark.parametrize("data", HOSTILE, ids=lambda data: repr(data[:40]))
def test_hostile_bytes_are_an_error(data):
    with pytest.raises(MessageDeserializationError):
        Box.deserialize(data)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_an_error(data):
    for read in (Box.deserialize, deserialize_message, Typed.deserialize):
        for start in (b"", b"\x81\xa5value", b"\x82\xa5color\xa3red\xa6points"):
            try:
                read(start + data)
            except MessageDeserializationError:
                continue


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_damaged_messages_are_a_message_or_an_error(data):
    whole = bytearray(made.everything().serialize())
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    try:
        made.Everything.deserialize(bytes(whole))
    except MessageDeserializationError:
        return


scalars = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
    | st.binary() | st.uuids() | st.decimals(allow_nan=False) | st.timedeltas() | st.dates()
    | st.complex_numbers(allow_nan=False)
)  # fmt: skip
keys = st.recursive(
    scalars, lambda inner: st.tuples(inner, inner) | st.frozensets(inner), max_leaves=3
)
anything = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(
            keys | st.sampled_from(["__set__", "__type__", "dtype"]), inner, max_size=4
        )
        | st.sets(keys, max_size=3)
    ),
    max_leaves=20,
)


@settings(max_examples=300, deadline=None)
@given(anything)
def test_any_value_comes_back(value):
    assert round_trip(value) == value


# --- nothing leaks ---------------------------------------------------------------------------


def test_nothing_leaks():
    class Witness:
        pass

    def use():
        @message
        class Local:
            value: Any = None
            items: list = field(default_factory=list)

        # A registered class stays until it is defined again, as this one is in the next round.
        witness = Witness()
        sent = Local(witness)
        sent.message_id = Witness()
        sent.items.append(sent)
        Local.deserialize(Local(1).serialize())
        return weakref.ref(witness), weakref.ref(sent.message_id), weakref.ref(Local)

    references = [use(), use()]
    gc.collect()
    for reference in (*references[0], *references[1][:2]):
        assert reference() is None


def test_classes_that_name_themselves_go():
    def use():
        @dataclass
        class Node(RingKernelMessage):
            children: list[Node] = field(default_factory=list)
            default: Any = None

        Node.default_type = Node
        sent = Node(children=[Node()])
        assert type(Node.deserialize(sent.serialize()).children[0]) is Node
        return weakref.ref(Node)

    reference = use()
    gc.collect()
    assert reference() is None


def test_two_threads_may_read_an_id():
    sent = [Weather(1.0) for _ in range(2000)]
    seen = []

    def read():
        seen.append([one.message_id for one in sent])

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(seen) == 4
    assert all(ids == seen[0] for ids in seen)


def test_encoding_and_decoding_keep_no_references():
    marker = object()
    sent = Typed(reading=Weather(1.0), points=(Point(1, Color.RED),))
    data = sent.serialize()
    for _ in range(10):
        Typed.deserialize(data)
    gc.collect()
    before = (sys.getrefcount(Color.RED), sys.getrefcount(Typed), sys.getrefcount(marker))
    for _ in range(1000):
        Typed.deserialize(data)
        sent.serialize()
        Typed(reading=marker)
        with pytest.raises(MessageDeserializationError):
            Typed.deserialize(data[:-3])
    gc.collect()
    after = (sys.getrefcount(Color.RED), sys.getrefcount(Typed), sys.getrefcount(marker))
    assert all(abs(a - b) < 5 for a, b in zip(after, before, strict=True))


def test_type_hints_still_resolve():
    assert typing.get_type_hints(Weather)["priority"] is int


#: Names that are defined later, or are the class itself, unquoted.
FORWARD = """
from dataclasses import dataclass
from pydotcompute import message

@message
class Node:
    value: float
    next: Node | None = None
    other: Later | None = None

@message
@dataclass
class Plain:
    value: float = 0.0
    next: Plain | None = None
    others: list[Later] | None = None

@message
class Later:
    x: int = 0

def local():
    @message
    class Local:
        value: int
        next: Local | None = None
    return Local
"""


@pytest.mark.skipif(sys.version_info < (3, 14), reason="before Python 3.14 such names are errors")
def test_annotations_may_name_what_is_defined_later(monkeypatch):
    module = types.ModuleType("later_names")
    monkeypatch.setitem(sys.modules, "later_names", module)
    exec(compile(FORWARD, "later_names", "exec", dont_inherit=True), module.__dict__)
    later = module.Later(x=4)
    node = module.Node(value=2.0, next=module.Node(value=1.0, other=later))
    plain = module.Plain(value=1.0, next=module.Plain(value=3.0), others=[later])
    local = module.local()
    for sent in (node, plain, local(value=1, next=local(value=2))):
        assert type(sent).deserialize(sent.serialize()) == sent
