"""Streaming anomaly detection: which readings are far from what their key has done so far?

A detector is a compiled handler: it takes records (`Event`), keeps the state of every key in the
kernel, and replies with the unusual ones (`Alarm`). Three models: `ewma`, `robust`, `seasonal`.

>>> import asyncio
>>> from pydotcompute import RingKernelRuntime
>>> from pydotcompute.workloads import anomaly
>>> async def main():
...     async with RingKernelRuntime() as runtime:
...         kernel = await runtime.launch("detect", anomaly.ewma(keys=100, warm_up=5, native=True))
...         await kernel.activate()
...         events = anomaly.events(keys=[7] * 7, values=[1, 2, 1, 2, 1, 90, 2])
...         alarms = await runtime.send_and_receive("detect", events, timeout=60)
...         print(alarms["sequence"], alarms["value"], kernel.read_state().taken)
>>> asyncio.run(main())
[5] [90.] 7

The state is one record: ``snapshot = kernel.read_state()`` has all keys, and a kernel that is
launched with ``state=vars(snapshot)`` goes on from there, with the same settings.

The handlers below are Python that numba compiles; ``native=True`` takes those of the Rust core,
which need no numba. Both give the same replies and the same states, bit for bit. With
``executor="process"`` a detector runs in a process of its own: its state is kept through the death
of that one, and is copied for each message, so that batches should be large where keys are many.

Keys that have names instead of numbers: ``named=True``, and `named_events`.

>>> async def main():
...     async with RingKernelRuntime() as runtime:
...         detector = anomaly.ewma(keys=100, warm_up=5, named=True, native=True)
...         kernel = await runtime.launch("detect", detector)
...         await kernel.activate()
...         events = anomaly.named_events(["oven"] * 7, [1, 2, 1, 2, 1, 90, 2])
...         alarms = await runtime.send_and_receive("detect", events, timeout=60)
...         print(anomaly.texts(alarms["name"]), alarms["value"])
>>> asyncio.run(main())
['oven'] [90.]
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import numpy.typing as npt

from pydotcompute.decorators.ring_kernel import ring_kernel
from pydotcompute.handlers.record import record, record_dtype, record_type
from pydotcompute.handlers.spec import Signature
from pydotcompute.ring_kernels.message import message
from pydotcompute.workloads import _named
from pydotcompute.workloads._named import NAME_BYTES, NamedAlarm, NamedEvent, name_words, texts

if TYPE_CHECKING:
    from pydotcompute import _native

__all__ = [
    "NAME_BYTES",
    "Alarm",
    "Event",
    "KeyTable",
    "NamedAlarm",
    "NamedEvent",
    "events",
    "ewma",
    "named_events",
    "robust",
    "seasonal",
    "texts",
]

#: The largest size of a value: beyond it, the square of a difference could overflow.
VALUE_LIMIT = 1e150

_LIMIT = VALUE_LIMIT
_Z_LIMIT = 1e6
#: The largest number of slots since time 0 that is told apart for sure.
_SLOTS_LIMIT = 1_099_511_627_776.0


@message(layout="record")
class Event:
    """A reading.

    Attributes
    ----------
    key
        Number of the key, below the number of keys.
    sequence
        Whatever tells its alarm apart from others.
    time
        When it was taken, in any unit. An event whose time is before that of an earlier one of its
        key is late; NaN is no time.
    value
        The measurement.
    """

    key: np.uint32
    sequence: np.uint32
    time: float
    value: float


@message(layout="record")
class Alarm:
    """An unusual reading.

    Attributes
    ----------
    key, sequence, time, value
        Those of the event.
    expected
        The mean or median of the earlier readings.
    deviation
        How far these were from it.
    z
        How far this one is, in deviations; at most a million either way.
    """

    key: np.uint32
    sequence: np.uint32
    time: float
    value: float
    expected: float
    deviation: float
    z: float


# --- the handlers ---------------------------------------------------------------------------------
# A key's row begins with how many readings were taken up, and the time of the last. Every operation
# is one of IEEE 754's basic ones, in the order of `model.rs` of the Rust crate.


def _ewma(msg: Any, state: Any, out: Any) -> int:
    if msg.key >= len(state.rows) or not -_LIMIT <= msg.value <= _LIMIT:
        state.malformed += 1
        return 0
    row = state.rows[msg.key]
    if msg.time < row[1] and row[0] > 0.0:
        state.late += 1
        return 0
    state.taken += 1
    count = float(row[0]) + 1.0
    mean = float(row[2])
    spread = float(row[3])
    difference = msg.value - mean
    squared = difference * difference
    unusual = squared > state.threshold * state.threshold * spread and count > state.warm_up
    weight = max(state.alpha, 1.0 / count)
    row[0] = count
    row[1] = msg.time
    row[2] = mean + weight * difference
    row[3] = (1.0 - weight) * (spread + weight * squared)
    if not unusual:
        return 0
    state.unusual += 1
    deviation = math.sqrt(spread)
    out.key = msg.key
    out.sequence = msg.sequence
    out.time = msg.time
    out.value = msg.value
    out.expected = mean
    out.deviation = deviation
    if deviation > 0.0:
        out.z = min(max(difference / deviation, -_Z_LIMIT), _Z_LIMIT)
    elif difference > 0.0:
        out.z = _Z_LIMIT
    else:
        out.z = -_Z_LIMIT
    return 1


def _seasonal(msg: Any, state: Any, out: Any) -> int:
    if msg.key >= len(state.rows) or not -_LIMIT <= msg.value <= _LIMIT:
        state.malformed += 1
        return 0
    row = state.rows[msg.key]
    if msg.time < row[1] and row[0] > 0.0:
        state.late += 1
        return 0
    since = np.floor(msg.time / state.slot)
    if not -_SLOTS_LIMIT <= since <= _SLOTS_LIMIT:
        state.malformed += 1
        return 0
    slots = float((len(row) - 2) // 3)
    at = 2 + 3 * int(since - np.floor(since / slots) * slots)
    state.taken += 1
    row[0] += 1.0
    row[1] = msg.time
    count = float(row[at]) + 1.0
    mean = float(row[at + 1])
    spread = float(row[at + 2])
    difference = msg.value - mean
    squared = difference * difference
    unusual = squared > state.threshold * state.threshold * spread and count > state.warm_up
    weight = max(state.alpha, 1.0 / count)
    row[at] = count
    row[at + 1] = mean + weight * difference
    row[at + 2] = (1.0 - weight) * (spread + weight * squared)
    if not unusual:
        return 0
    state.unusual += 1
    deviation = math.sqrt(spread)
    out.key = msg.key
    out.sequence = msg.sequence
    out.time = msg.time
    out.value = msg.value
    out.expected = mean
    out.deviation = deviation
    if deviation > 0.0:
        out.z = min(max(difference / deviation, -_Z_LIMIT), _Z_LIMIT)
    elif difference > 0.0:
        out.z = _Z_LIMIT
    else:
        out.z = -_Z_LIMIT
    return 1


def _robust(msg: Any, state: Any, out: Any) -> int:
    if msg.key >= len(state.rows) or not -_LIMIT <= msg.value <= _LIMIT:
        state.malformed += 1
        return 0
    row = state.rows[msg.key]
    if msg.time < row[1] and row[0] > 0.0:
        state.late += 1
        return 0
    state.taken += 1
    value = msg.value
    # Two halves: the window in the order of its readings, and sorted.
    window = (len(row) - 2) // 2
    first = 2 + window
    taken = int(row[0])
    count = min(taken, window)
    middle = count // 2
    unusual = False
    median = 0.0
    deviation = 0.0
    difference = 0.0
    if row[0] >= state.warm_up:
        if count % 2 == 0:
            median = 0.5 * (float(row[first + middle - 1]) + float(row[first + middle]))
        else:
            median = float(row[first + middle])
        # The distances in rising order come from the middle outwards.
        left = middle
        right = middle
        previous = 0.0
        current = 0.0
        for _ in range(middle + 1):
            previous = current
            above = float(row[first + right]) - median if right < count else math.inf
            below = median - float(row[first + left - 1]) if left > 0 else math.inf
            if above <= below:
                current = above
                right += 1
            else:
                current = below
                left -= 1
        deviation = 0.5 * (previous + current) if count % 2 == 0 else current
        if deviation > 0.0:
            deviation = 1.482602218505602 * deviation
        else:
            total = 0.0
            for index in range(count):
                total += abs(float(row[first + index]) - median)
            deviation = 1.2533141373155003 * (total / float(count))
        difference = value - median
        unusual = abs(difference) > state.threshold * deviation
    row[0] += 1.0
    row[1] = msg.time
    oldest = float(row[2 + taken % window])
    row[2 + taken % window] = value
    at = count
    if count == window:
        at = 0
        while float(row[first + at]) != oldest:
            at += 1
    while at > 0 and row[first + at - 1] > value:
        row[first + at] = row[first + at - 1]
        at -= 1
    while count == window and at + 1 < count and row[first + at + 1] < value:
        row[first + at] = row[first + at + 1]
        at += 1
    row[first + at] = value
    if not unusual:
        return 0
    state.unusual += 1
    out.key = msg.key
    out.sequence = msg.sequence
    out.time = msg.time
    out.value = value
    out.expected = median
    out.deviation = deviation
    if deviation > 0.0:
        out.z = min(max(difference / deviation, -_Z_LIMIT), _Z_LIMIT)
    elif difference > 0.0:
        out.z = _Z_LIMIT
    else:
        out.z = -_Z_LIMIT
    return 1


# --- the detectors --------------------------------------------------------------------------------


def ewma(
    *,
    keys: int = 10_000,
    alpha: float = 0.01,
    threshold: float = 4.0,
    warm_up: int = 30,
    named: bool = False,
    native: bool = False,
) -> Any:
    """Compare readings with the exponentially weighted mean and variance of their key.

    A reading is unusual if it is more than `threshold` standard deviations from the mean of the
    earlier ones. The first ``1 / alpha`` readings of a key weigh the same, and give their plain
    mean and variance.

    Parameters
    ----------
    keys
        How many keys there are: 0 to ``keys - 1``; of names, how many there is room for. 32 bytes
        each, and 42 more where they have names.
    alpha
        Weight of the newest reading, between 0 and 1.
    threshold
        Deviations beyond which a reading is unusual.
    warm_up
        Readings of a key before the first that may be called unusual, at least 2.
    named
        Keys are names of at most 24 bytes: the detector takes `NamedEvent` and makes `NamedAlarm`.
        A name for which there is no room is a fault. On a GPU: with ``named=False`` only.
    native
        Take the code of the Rust core instead of compiling the Python source.

    Returns
    -------
    object
        What `RingKernelRuntime.launch` takes as a kernel's function.

    Raises
    ------
    ValueError
        An argument is out of its range; says which.
    """
    made_by = {"keys": keys, "alpha": alpha, "threshold": threshold, "warm_up": warm_up}
    head = _head(alpha, threshold, warm_up)
    handler = _named.ewma if named else _ewma
    return _detector("ewma", handler, 4, 0, head, made_by, keys, named, native)


def robust(
    *,
    keys: int = 10_000,
    window: int = 31,
    threshold: float = 4.0,
    warm_up: int = 30,
    named: bool = False,
    native: bool = False,
) -> Any:
    """Compare readings with the median of the last of their key, which few wild ones do not move.

    The deviation is 1.4826 times the median distance from it (MAD), or, where that is 0, 1.2533
    times the mean distance.

    Parameters
    ----------
    window
        How many readings, 3 to 1024; 16 bytes a key for each.
    keys, threshold, warm_up, named, native
        As for `ewma`.
    """
    if not 3 <= window <= 1024:
        raise ValueError(f"window is {window}: it has to be 3 to 1024 readings")
    head = _head(0.5, threshold, warm_up, alpha_is_used=False)
    made_by = {"keys": keys, "window": window, "threshold": threshold, "warm_up": warm_up}
    handler = _named.robust if named else _robust
    row = 2 + 2 * window
    return _detector("robust", handler, row, window, head, made_by, keys, named, native)


def seasonal(
    *,
    keys: int = 10_000,
    slots: int = 24,
    slot: float = 3600.0,
    alpha: float = 0.05,
    threshold: float = 4.0,
    warm_up: int = 5,
    named: bool = False,
    native: bool = False,
) -> Any:
    """Compare readings with what their key did at the same time of earlier days, or weeks.

    As `ewma`, apart for each slot of a season: the slot of a reading is
    ``floor(time / slot) % slots``. Readings need a time.

    Parameters
    ----------
    slots
        How many slots a season has, 2 to 4096; 24 bytes a key for each.
    slot
        How long one is, in the unit of the times.
    warm_up
        Readings of a key in a slot before the first there that may be called unusual.
    keys, alpha, threshold, named, native
        As for `ewma`.
    """
    if not 2 <= slots <= 4096:
        raise ValueError(f"slots is {slots}: it has to be 2 to 4096")
    if not 0.0 < slot < math.inf:
        raise ValueError(f"slot is {slot}: it has to be a finite number above 0")
    head = _head(alpha, threshold, warm_up, slot)
    made_by = {"keys": keys, "slots": slots, "slot": slot, "alpha": alpha}
    made_by |= {"threshold": threshold, "warm_up": warm_up}
    handler = _named.seasonal if named else _seasonal
    row = 2 + 3 * slots
    return _detector("seasonal", handler, row, slots, head, made_by, keys, named, native)


def _head(
    alpha: float, threshold: float, warm_up: int, slot: float = 0.0, *, alpha_is_used: bool = True
) -> dict[str, float]:
    if not 0.0 < alpha < 1.0:
        raise ValueError(f"alpha is {alpha}: it has to be more than 0 and less than 1")
    if not 0.0 < threshold < math.inf:
        raise ValueError(f"threshold is {threshold}: it has to be a finite number above 0")
    if warm_up < 2:
        raise ValueError(f"warm_up is {warm_up}: it has to be at least 2 readings")
    return {
        "alpha": float(alpha) if alpha_is_used else 0.0,
        "threshold": float(threshold),
        "warm_up": float(warm_up),
        "slot": float(slot),
    }


def _detector(
    model: str,
    handler: Callable[..., int],
    row: int,
    size: int,
    head: dict[str, float],
    arguments: dict[str, Any],
    keys: int,
    named: bool,
    native: bool,
) -> Any:
    if not 1 <= keys < 2**32:
        raise ValueError(f"keys is {keys}: it has to be at least 1 and below 2**32")
    # It may be a number of numpy.
    keys, row = operator.index(keys), operator.index(row)
    state = _state(model, keys, row, head, named)
    taken, made = (NamedEvent, NamedAlarm) if named else (Event, Alarm)
    made_by = (__name__, model, {**arguments, "named": named, "native": native})
    if native:
        signature = Signature(record_type(taken), record_type(made), record_type(state), 0, ())
        code = "named_anomaly" if named else "anomaly"
        return _NativeDetector(code, model, size, signature, made_by)
    decorate = ring_kernel(
        kernel_id=f"anomaly.{model}",
        state=state,
        input_type=taken,
        output_type=made,
        auto_register=False,
    )
    detector: Any = decorate(handler)
    detector._made_by = made_by
    return detector


def _state(model: str, keys: int, row: int, head: dict[str, float], named: bool) -> type:
    """The record of all keys' states, beginning with these settings."""
    rows = _named.places(keys) if named else keys
    counts = ("taken", "late", "malformed", "unusual")
    annotations: dict[str, Any] = {
        **dict.fromkeys(head, float),
        **dict.fromkeys(counts, int),
        "rows": Annotated[npt.NDArray[np.float64], (rows, row)],
    }
    body: dict[str, Any] = {"__annotations__": annotations, **head, **dict.fromkeys(counts, 0)}
    if named:
        annotations.update(known=int, keys=int)
        annotations["names"] = Annotated[npt.NDArray[np.uint32], (rows, NAME_BYTES // 4)]
        body.update(known=0, keys=keys)
    body["__doc__"] = f"The settings of a detector ({model}), its counts, and a row for each key."
    return record(type(("Named" if named else "") + model.capitalize(), (), body))


@dataclass(frozen=True)
class _NativeDetector:
    """A detector of the Rust core; `RingKernelRuntime.launch` takes it as a kernel's function."""

    code: str
    model: str
    size: int
    signature: Signature
    #: What makes it again in another process: a module, a function of it, and its arguments.
    _made_by: tuple[str, str, dict[str, Any]]

    def compile(self, kernel_id: str, state: Any) -> _native.CompiledHandler:
        """Put it together with its initial state; it is compiled already."""
        return self.signature.make((self.code, self.model, self.size), state)


# --- events ---------------------------------------------------------------------------------------


def events(
    keys: npt.ArrayLike,
    values: npt.ArrayLike,
    times: npt.ArrayLike | None = None,
    sequence: npt.ArrayLike | None = None,
) -> npt.NDArray[np.void]:
    """Make an array of events: one message.

    Parameters
    ----------
    keys
        The number of each event's key; see `KeyTable`, or `named_events`, for names.
    values
        The measurements.
    times
        Numbers, or ``datetime64`` (as a column of timestamps is), which become seconds since 1970.
        By default they have none.
    sequence
        By default their places in the array.
    """
    values = np.asarray(values, np.float64)
    made = np.zeros(len(values), record_dtype(Event))
    made["key"] = keys
    made["value"] = values
    made["time"] = math.nan if times is None else _seconds(np.asarray(times))
    made["sequence"] = np.arange(len(values)) if sequence is None else sequence
    return made


def named_events(
    names: Iterable[str] | npt.ArrayLike,
    values: npt.ArrayLike,
    times: npt.ArrayLike | None = None,
    sequence: npt.ArrayLike | None = None,
) -> npt.NDArray[np.void]:
    """Make an array of events of keys that have names: one message.

    Parameters
    ----------
    names
        The name of each event's key: texts of at most 24 bytes of UTF-8, or an array of pyarrow.
    values, times, sequence
        As for `events`.

    Raises
    ------
    ValueError
        A name is empty, longer, or has a zero inside: says which.
    """
    values = np.asarray(values, np.float64)
    made = np.zeros(len(values), record_dtype(NamedEvent))
    made["name"] = name_words(names)
    made["value"] = values
    made["time"] = math.nan if times is None else _seconds(np.asarray(times))
    made["sequence"] = np.arange(len(values)) if sequence is None else sequence
    return made


def _seconds(times: npt.NDArray[Any]) -> npt.NDArray[Any]:
    if times.dtype.kind != "M":
        return times
    # Whatever they are counted in; what is no time is NaN.
    seconds: npt.NDArray[Any] = (times - np.datetime64(0, "s")) / np.timedelta64(1, "s")
    return seconds


class KeyTable:
    """Numbers for the names of keys, in the order in which they appear.

    >>> table = KeyTable()
    >>> table.numbers(["oven", "door", "oven"])
    array([0, 1, 0], dtype=uint32)
    >>> table.names[1]
    'door'
    """

    def __init__(self) -> None:
        self._numbers: dict[Hashable, int] = {}
        #: The name of each number.
        self.names: list[Any] = []

    def __len__(self) -> int:
        return len(self.names)

    def numbers(self, names: Iterable[Hashable]) -> npt.NDArray[np.uint32]:
        """Give each name its number; new ones get the next.

        An array of pyarrow is looked at once for each different name.
        """
        if hasattr(names, "dictionary_encode"):
            encoded: Any = names.dictionary_encode()
            if hasattr(encoded, "combine_chunks"):
                encoded = encoded.unify_dictionaries().combine_chunks()
            of = self.numbers(encoded.dictionary.to_pylist())
            found_at: npt.NDArray[np.uint32] = of[encoded.indices.to_numpy(zero_copy_only=False)]
            return found_at
        known, all_names = self._numbers, self.names
        found = []
        for name in names:
            number = known.setdefault(name, len(all_names))
            if number == len(all_names):
                all_names.append(name)
            found.append(number)
        return np.array(found, np.uint32)
