"""Type aliases mean what they stand for: in messages, records and checked calls."""

import sys
import types
import typing

import numpy as np
import pytest

from pydotcompute import _annotations, message
from pydotcompute._annotations import unaliased
from pydotcompute.decorators import validate_config
from pydotcompute.exceptions import TypeValidationError
from pydotcompute.handlers import record, record_type

has_aliases = pytest.mark.skipif(sys.version_info < (3, 12), reason="Python 3.12 has type aliases")

SOURCE = """
import typing
import numpy as np
type Numbers = np.ndarray[typing.Any, np.dtype[np.float32]]
type Many[T] = np.ndarray[typing.Any, np.dtype[T]]
type Name = typing.Annotated[bytes, 8]
type Pair = tuple[int, int]
type Kind = int
type Round = Round
"""


@pytest.fixture
def alias():
    names = {}
    exec(SOURCE, names)
    return types.SimpleNamespace(**names)


@has_aliases
def test_records_take_aliases(alias):
    class Reading:
        name: alias.Name
        values: typing.Annotated[alias.Numbers, 4]
        times: typing.Annotated[alias.Many[np.int64], (2, 2)]

    dtype = record_type(record(Reading)).dtype
    assert dtype["name"] == np.dtype(("u1", (8,)))
    assert dtype["values"] == np.dtype(("f4", (4,)))
    assert dtype["times"] == np.dtype(("i8", (2, 2)))


@has_aliases
def test_messages_take_aliases(alias):
    class Step:
        size: alias.Pair = (0, 0)

    made = message(Step)
    assert made.deserialize(made(size=(3, 4)).serialize()).size == (3, 4)


@has_aliases
def test_checked_calls_take_aliases(alias):
    class Config:
        size: alias.Pair
        kind: type[alias.Kind]

    @validate_config(Config)
    def area(size, kind):
        return kind(size[0] * size[1])

    assert area((3, 4), int) == 12
    for wrong in [((3, "4"), int), ((3, 4), float)]:
        with pytest.raises(TypeValidationError):
            area(*wrong)


@has_aliases
def test_an_alias_that_leads_in_a_circle_ends(alias):
    assert unaliased(alias.Round) is alias.Round


def test_aliases_are_followed_one_after_the_other(monkeypatch):
    class Alias:
        def __init__(self, value):
            self.__value__ = value

    monkeypatch.setattr(_annotations, "_ALIAS", Alias)
    assert unaliased(Alias(Alias(int))) is int
    assert unaliased(list[int]) == list[int]
