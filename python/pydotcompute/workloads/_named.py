"""The detectors over keys that are names: their records, and their handlers for numba.

A name is found in a table in the state, and the rest is as for keys that are numbers. See
`named.rs` of the Rust crate, whose bytes these have.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt

from pydotcompute.ring_kernels.message import message

#: How many bytes of UTF-8 a name can have.
NAME_BYTES = 24

_WORDS = NAME_BYTES // 4
_LIMIT = 1e150
_Z_LIMIT = 1e6
_SLOTS_LIMIT = 1_099_511_627_776.0
_MASK = 0xFFFF_FFFF
_FULL = -(1 << 62)


@message(layout="record")
class NamedEvent:
    """A reading of a key that has a name.

    Attributes
    ----------
    name
        Its bytes, four to a word, and zeros behind them: `named_events` makes it. Zeros alone are
        none, and the event is malformed.
    sequence
        Whatever tells its alarm apart from others.
    time, value
        As of an `Event`.
    """

    name: Annotated[npt.NDArray[np.uint32], _WORDS]
    sequence: np.uint64
    time: float
    value: float


@message(layout="record")
class NamedAlarm:
    """An unusual reading of a key that has a name.

    Attributes
    ----------
    name, sequence, time, value
        Those of the event; `texts` tells names.
    expected, deviation, z
        As of an `Alarm`.
    """

    name: Annotated[npt.NDArray[np.uint32], _WORDS]
    sequence: np.uint64
    time: float
    value: float
    expected: float
    deviation: float
    z: float


# --- the table ------------------------------------------------------------------------------------


def places(keys: int) -> int:
    """How many places a table for so many names has."""
    return keys + keys // 3 + 1


def _is_unsound(msg: Any) -> bool:
    if not -_LIMIT <= msg.value <= _LIMIT:
        return True
    any_bit = 0
    for index in range(_WORDS):
        any_bit |= msg.name[index] & _MASK
    return any_bit == 0


def _find(msg: Any, state: Any) -> int:
    """The place of the event's name, or -1 less a free one that is to be its own, or `_FULL`."""
    # MurmurHash3 of 32 bits. Each number is below 2^32 before it is multiplied, and cut after that.
    digest = 0
    for index in range(_WORDS):
        word = msg.name[index] & _MASK
        word = (word * 0xCC9E_2D51) & _MASK
        word = ((word << 15) | (word >> 17)) & _MASK
        digest ^= (word * 0x1B87_3593) & _MASK
        digest = ((digest << 13) | (digest >> 19)) & _MASK
        digest = (digest * 5 + 0xE654_6B64) & _MASK
    digest ^= NAME_BYTES
    digest ^= digest >> 16
    digest = (digest * 0x85EB_CA6B) & _MASK
    digest ^= digest >> 13
    digest = (digest * 0xC2B2_AE35) & _MASK
    digest ^= digest >> 16
    count = len(state.names)
    place = (digest * count) >> 32
    for _ in range(count):
        is_same = True
        is_free = True
        for index in range(_WORDS):
            kept = state.names[place, index]
            if kept != msg.name[index]:
                is_same = False
            if kept != 0:
                is_free = False
        if is_same:
            return place
        if is_free:
            if state.known >= state.keys:
                return _FULL
            return -1 - place
        place += 1
        if place == count:
            place = 0
    return _FULL


def _keep(msg: Any, state: Any, place: int) -> None:
    """Give the place to the event's name."""
    for index in range(_WORDS):
        state.names[place, index] = msg.name[index]
    state.known += 1


def _alarm(msg: Any, out: Any, expected: float, deviation: float, difference: float) -> None:
    for index in range(_WORDS):
        out.name[index] = msg.name[index]
    out.sequence = msg.sequence
    out.time = msg.time
    out.value = msg.value
    out.expected = expected
    out.deviation = deviation
    if deviation > 0.0:
        out.z = min(max(difference / deviation, -_Z_LIMIT), _Z_LIMIT)
    elif difference > 0.0:
        out.z = _Z_LIMIT
    else:
        out.z = -_Z_LIMIT


# --- the handlers ---------------------------------------------------------------------------------
# As those of `anomaly.py`, whose operations they have in the same order.


def ewma(msg: Any, state: Any, out: Any, ctx: Any) -> int:
    if _is_unsound(msg):
        state.malformed += 1
        return 0
    place = _find(msg, state)
    if place == _FULL:
        return int(ctx.fault(-1, "the table of names is full: make the detector with more keys"))
    is_new = place < 0
    if is_new:
        place = -1 - place
    row = state.rows[place]
    if msg.time < row[1] and row[0] > 0.0:
        state.late += 1
        return 0
    if is_new:
        _keep(msg, state, place)
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
    _alarm(msg, out, mean, math.sqrt(spread), difference)
    return 1


def seasonal(msg: Any, state: Any, out: Any, ctx: Any) -> int:
    if _is_unsound(msg):
        state.malformed += 1
        return 0
    place = _find(msg, state)
    if place == _FULL:
        return int(ctx.fault(-1, "the table of names is full: make the detector with more keys"))
    is_new = place < 0
    if is_new:
        place = -1 - place
    row = state.rows[place]
    if msg.time < row[1] and row[0] > 0.0:
        state.late += 1
        return 0
    since = np.floor(msg.time / state.slot)
    if not -_SLOTS_LIMIT <= since <= _SLOTS_LIMIT:
        state.malformed += 1
        return 0
    if is_new:
        _keep(msg, state, place)
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
    _alarm(msg, out, mean, math.sqrt(spread), difference)
    return 1


def robust(msg: Any, state: Any, out: Any, ctx: Any) -> int:
    if _is_unsound(msg):
        state.malformed += 1
        return 0
    place = _find(msg, state)
    if place == _FULL:
        return int(ctx.fault(-1, "the table of names is full: make the detector with more keys"))
    is_new = place < 0
    if is_new:
        place = -1 - place
    row = state.rows[place]
    if msg.time < row[1] and row[0] > 0.0:
        state.late += 1
        return 0
    if is_new:
        _keep(msg, state, place)
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
    _alarm(msg, out, median, deviation, difference)
    return 1


# --- names ----------------------------------------------------------------------------------------


def name_words(names: Iterable[str] | npt.ArrayLike) -> npt.NDArray[np.uint32]:
    """The words of names, six each.

    Raises
    ------
    ValueError
        One is empty, longer than 24 bytes, or has a zero inside: says which.
    """
    if hasattr(names, "dictionary_encode"):
        encoded: Any = names.dictionary_encode()
        if hasattr(encoded, "combine_chunks"):
            encoded = encoded.unify_dictionaries().combine_chunks()
        known = name_words(encoded.dictionary.to_pylist())
        by_row: npt.NDArray[np.uint32] = known[encoded.indices.to_numpy(zero_copy_only=False)]
        return by_row
    listed: Any = names
    made: npt.NDArray[Any] = np.asarray(listed if hasattr(listed, "__len__") else list(listed))
    if made.dtype.kind == "U":
        made = np.strings.encode(made, "utf-8")
    if made.size == 0:
        return np.zeros((0, _WORDS), np.uint32)
    if made.dtype.kind != "S" or made.ndim != 1:
        raise ValueError("names are an array of texts of one dimension")
    lengths = np.strings.str_len(made)
    wrong = (lengths == 0) | (lengths > NAME_BYTES)
    fixed = np.ascontiguousarray(made.astype(f"S{NAME_BYTES}"))
    letters = fixed.view(np.uint8).reshape(len(fixed), NAME_BYTES)
    wrong |= ((letters[:, :-1] == 0) & (letters[:, 1:] != 0)).any(axis=1)
    if wrong.any():
        at = int(np.argmax(wrong))
        text = made[at].decode("utf-8", "replace")
        raise ValueError(
            f"{text!r}, at {at}, is no name of a key: it has {lengths[at]} bytes, and a name has "
            f"1 to {NAME_BYTES}, none of them zero"
        )
    return fixed.view("<u4").reshape(len(fixed), _WORDS)


def texts(names: npt.ArrayLike) -> npt.NDArray[np.str_]:
    """The texts of names: of ``alarms["name"]``, say.

    >>> texts(name_words(["oven", "door"])).tolist()
    ['oven', 'door']
    """
    words = np.ascontiguousarray(names, "<u4").reshape(-1, _WORDS)
    return np.strings.decode(words.view(f"S{NAME_BYTES}").reshape(-1), "utf-8", "replace")
