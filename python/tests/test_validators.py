"""Checks of configuration values, annotated arguments and message classes."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, Optional, TypeVar

import pytest

from pydotcompute.decorators import validators
from pydotcompute.decorators.validators import (
    RuntimeValidator,
    _check_type,
    get_validator,
    validate_backpressure_strategy,
    validate_block_size,
    validate_config,
    validate_grid_size,
    validate_message,
    validate_priority,
    validate_queue_size,
)
from pydotcompute.exceptions import InvalidConfigurationError, TypeValidationError


@pytest.fixture(autouse=True)
def _fresh_validator(monkeypatch):
    monkeypatch.setattr(validators, "_validator", None)


T = TypeVar("T")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (object(), Any),
        (1, int),
        (True, bool),
        ([1, 2], list[int]),
        ([], list[int]),
        ([[1]], list),
        ([[1], [2]], list[list[int]]),
        ({"a": 1}, dict[str, int]),
        ({}, dict[str, int]),
        (None, int | None),
        (1, int | None),
        (None, type(None)),
        (None, None),
        (None, Optional[list[int]]),  # noqa: UP045
        ([1], Optional[list[int]]),  # noqa: UP045
        ((1, "a"), tuple[int, str]),
        ((1, 2, 3), tuple[int, ...]),
        ((), tuple[()]),
        (len, Callable),
        (len, Callable[[int], int]),
        ("a", Literal["a", 1]),
        ({1}, set[int]),
        ((1, 2), Sequence[int]),
        ({"a": 1}, Mapping[str, int]),
        (1, Annotated[int, "unit"]),
        (int, type[int]),
        (bool, type[int]),
        (1, T),
    ],
)
def test_f14_values_of_the_annotated_type_pass(value, expected):
    assert _check_type(value, expected) is True


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("1", int),
        (True, int),
        ([1, "a"], list[int]),
        ({"a": "b"}, dict[str, int]),
        ({1: 1}, dict[str, int]),
        ("a", int | None),
        (["a"], Optional[list[int]]),  # noqa: UP045
        ((1, 2), tuple[int, str]),
        ((1,), tuple[int, str]),
        ((1, "a"), tuple[int, ...]),
        (1, Callable),
        (1, Callable[[int], int]),
        ("b", Literal["a", 1]),
        (True, Literal["a", 1]),
        ({"a"}, set[int]),
        (str, type[int]),
        (1, None),
    ],
)
def test_f14_values_of_another_type_fail_and_nothing_raises(value, expected):
    assert _check_type(value, expected) is False


def test_f13_validate_config_takes_config_classes_with_postponed_annotations():
    @dataclass
    class Config:
        kernel_id: str
        grid_size: int = 1
        backpressure: str = "block"
        tags: list[str] = field(default_factory=list)

    @validate_config(Config)
    def launch(kernel_id, grid_size=1, *, tags=(), other=None):
        """Launch."""
        return kernel_id, grid_size, tags

    assert launch.__doc__ == "Launch."
    assert launch("k", 2, tags=["a"], other=object()) == ("k", 2, ["a"])
    with pytest.raises(TypeValidationError) as caught:
        launch("k", "2", tags=[])
    assert caught.value.context == "parameter 'grid_size'"
    assert (caught.value.expected, caught.value.actual) == (int, str)
    with pytest.raises(TypeValidationError, match="parameter 'tags'"):
        launch("k", 2)  # Defaults are checked too.


def test_f14_a_failed_union_raises_a_type_validation_error():
    class Config:
        size: int | None
        pair: tuple[int, int]

    @validate_config(Config)
    def use(size=None, pair=(1, 2)):
        return size

    assert use(3) == 3
    with pytest.raises(TypeValidationError, match=r"int \| None"):
        use("3")
    with pytest.raises(TypeValidationError, match="tuple"):
        use(pair=(1, "2"))


def test_validate_config_lets_an_empty_class_check_nothing():
    class Empty:
        pass

    @validate_config(Empty)
    def add(a, b=2):
        return a + b

    assert add(1) == 3


def test_validate_message():
    @dataclass
    class Whole:
        def serialize(self):
            return b""

    @dataclass
    class Bare:
        pass

    class Plain:
        pass

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert validate_message(Whole) is Whole
    with pytest.warns(UserWarning, match="serialize"):
        assert validate_message(Bare) is Bare
    with pytest.raises(TypeValidationError):
        validate_message(Plain)


@pytest.mark.parametrize("size", [1, 4096, 1_000_000])
def test_queue_sizes_in_range_pass(size):
    assert validate_queue_size(size) == size


@pytest.mark.parametrize("size", [0, -1, 1_000_001, 3.14, "5", None, True])
def test_a20_queue_sizes_out_of_range_are_refused(size):
    with pytest.raises(InvalidConfigurationError, match="some_queue"):
        validate_queue_size(size, "some_queue")


def test_grid_sizes():
    assert validate_grid_size(4) == (4,)
    assert validate_grid_size((2, 3, 4)) == (2, 3, 4)
    assert validate_grid_size((65535,) * 3) == (65535,) * 3
    assert validate_grid_size(()) == ()
    for wrong in (0, -1, "invalid", (1, 0), (1, "a"), (1, 1, 1, 1), 1.5, [1], True):
        with pytest.raises(InvalidConfigurationError, match="grid_size"):
            validate_grid_size(wrong)


def test_block_sizes():
    assert validate_block_size(256) == (256,)
    assert validate_block_size((32, 32)) == (32, 32)
    assert validate_block_size(()) == ()
    assert validate_block_size(2048, max_threads=2048) == (2048,)
    for wrong in (0, 1025, (32, 33), (1, 1, 1, 1), "invalid", (0,)):
        with pytest.raises(InvalidConfigurationError, match="block_size"):
            validate_block_size(wrong)


def test_priorities():
    assert [validate_priority(p) for p in (0, 128, 255)] == [0, 128, 255]
    for wrong in (-1, 256, 1.0, "1", True):
        with pytest.raises(InvalidConfigurationError, match="priority"):
            validate_priority(wrong)


def test_backpressure_strategies():
    for strategy in ("block", "reject", "drop_oldest"):
        assert validate_backpressure_strategy(strategy) == strategy
    for wrong in ("BLOCK", "drop_newest", "", None, 1):
        with pytest.raises(InvalidConfigurationError, match="backpressure_strategy"):
            validate_backpressure_strategy(wrong)


def test_runtime_validator():
    @dataclass
    class Message:
        pass

    class Plain:
        pass

    strict = RuntimeValidator()
    assert strict.strict is True
    assert strict.validate_message_type(Message) is True
    with pytest.raises(TypeValidationError):
        strict.validate_message_type(Plain)
    lenient = RuntimeValidator(strict=False)
    assert lenient.validate_message_type(Plain) is False
    assert len(lenient.warnings) == 1
    assert lenient.warnings == lenient.warnings
    assert lenient.warnings is not lenient.warnings
    lenient.clear_warnings()
    assert lenient.warnings == []


def test_f15_unknown_configuration_keys_are_named():
    validator = RuntimeValidator()
    checked = validator.validate_kernel_config(
        {
            "queue_size": 10,
            "input_queue_size": 11,
            "output_queue_size": 12,
            "grid_size": 2,
            "block_size": (8, 8),
            "backpressure_strategy": "reject",
            "grid_sise": 3,
        }
    )
    assert checked == {
        "queue_size": 10,
        "input_queue_size": 11,
        "output_queue_size": 12,
        "grid_size": (2,),
        "block_size": (8, 8),
        "backpressure_strategy": "reject",
    }
    assert "grid_sise" in validator.warnings[0]
    with pytest.raises(InvalidConfigurationError, match="output_queue_size"):
        validator.validate_kernel_config({"output_queue_size": 0})


def test_f15_get_validator_is_as_strict_as_asked():
    first = get_validator()
    assert first.strict is True
    assert get_validator(strict=False) is first
    assert first.strict is False
