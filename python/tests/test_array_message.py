"""Array messages and the buffer registry: contract 9.8 and 9.9, promises D4, D5, D12 and D13."""

import dataclasses
import gc
import pathlib
import subprocess
import sys
from dataclasses import dataclass, field
from uuid import UUID, uuid4

import msgpack
import numpy as np
import pytest

from pydotcompute.exceptions import MessageDeserializationError, MessageSerializationError
from pydotcompute.ring_kernels.array_message import ArrayMessage, array_message
from pydotcompute.ring_kernels.buffer_registry import (
    BufferHandle,
    BufferRegistry,
    get_buffer,
    get_buffer_registry,
    register_buffer,
    release_buffer,
)
from pydotcompute.ring_kernels.message import RingKernelMessage, get_message_type

FIXTURES = pathlib.Path(__file__).parent / "fixtures"


@pytest.fixture(autouse=True)
def registry():
    registry = get_buffer_registry()
    registry.clear()
    return registry


@array_message
class Samples:
    name: str
    values: np.ndarray


@dataclass
class Derived(ArrayMessage):
    items: list = field(default_factory=list)
    values: object = None


def test_array_messages_are_messages():
    sent = Samples("n", np.arange(3.0))
    assert isinstance(sent, ArrayMessage)
    assert isinstance(sent, RingKernelMessage)
    names = [item.name for item in dataclasses.fields(Samples)]
    assert names == ["name", "values", "message_id", "priority", "correlation_id", "_array_buffer_ids"]
    assert "_array_buffer_ids" not in repr(sent)
    assert get_message_type("Samples") is None
    assert Derived(priority=3).priority == 3


def test_the_bytes_are_those_of_the_contract():
    sent = Samples("n", np.arange(3.0))
    read = msgpack.unpackb(sent.serialize())
    reference = read["values"]
    assert list(read) == [
        "name", "values", "message_id", "priority", "correlation_id", "__array_refs__", "__type__",
        "__array_msg__",
    ]  # fmt: skip
    assert reference["dtype"] == "float64"
    assert reference["shape"] == [3]
    assert reference["device"] == "cpu"
    assert read["__array_refs__"] == {"values": reference["__array_ref__"]}
    assert read["__array_msg__"] is True


@pytest.mark.parametrize("cls", [Samples, lambda name, values: Derived(values=values)])
def test_arrays_travel_by_reference_in_a_process(cls):
    sent = cls("n", np.arange(3.0))
    read = type(sent).deserialize(sent.serialize())
    assert read.values is sent.values
    assert read.message_id == sent.message_id


def test_d4_a_released_array_travels_by_value():
    sent = Samples("n", np.arange(3.0))
    data = sent.serialize()
    assert sent.release_arrays() == 1
    read = Samples.deserialize(data)
    assert read.values is not sent.values
    np.testing.assert_array_equal(read.values, [0.0, 1.0, 2.0])
    read.values[0] = 5.0


def test_d4_an_array_that_is_gone_travels_by_value():
    data = Samples("n", np.arange(3.0)).serialize()
    gc.collect()
    np.testing.assert_array_equal(Samples.deserialize(data).values, [0.0, 1.0, 2.0])


def test_d4_another_process_gets_the_array(tmp_path):
    program = tmp_path / "reader.py"
    program.write_text(
        "import sys, numpy as np\n"
        "from pydotcompute.ring_kernels.array_message import array_message\n"
        "@array_message\n"
        "class Samples:\n"
        "    name: str\n"
        "    values: np.ndarray\n"
        "read = Samples.deserialize(sys.stdin.buffer.read())\n"
        "assert read.values.tolist() == [0.0, 1.0, 2.0], read\n"
    )
    data = Samples("n", np.arange(3.0)).serialize()
    subprocess.run([sys.executable, program], input=data, check=True, timeout=60)


def test_d4_bytes_without_data_are_an_error_not_zeros():
    with pytest.raises(MessageDeserializationError, match="not in this process"):
        Samples.deserialize((FIXTURES / "samples.msgpack").read_bytes())


def test_d4_an_id_of_another_array_is_not_taken():
    sent = Samples("n", np.arange(3.0))
    fields = msgpack.unpackb(sent.serialize())
    other = register_buffer(np.zeros(5, dtype=np.int8))
    fields["values"]["__array_ref__"] = other.buffer_id.hex
    np.testing.assert_array_equal(
        Samples.deserialize(msgpack.packb(fields)).values, [0.0, 1.0, 2.0]
    )


def test_d5_serialize_keeps_nothing(registry):
    sent = Samples("n", np.arange(3.0))
    for _ in range(5):
        sent.serialize()
    assert len(registry) == 1
    sent.values = np.arange(4.0)
    sent.serialize()
    assert len(registry) == 1
    del sent
    gc.collect()
    assert len(registry) == 0


def test_d5_release_arrays_releases_and_counts(registry):
    sent = Samples("n", np.arange(3.0))
    sent.serialize()
    assert sent.release_arrays() == 1
    assert sent.release_arrays() == 0
    assert len(registry) == 0


def test_arrays_in_containers_are_inline():
    sent = Derived(items=[np.arange(2), {"x": np.eye(2)}], values=np.arange(3))
    inline = msgpack.unpackb(sent.serialize())["items"][0]
    assert inline["__array_fallback__"] is True
    assert inline["data"] == np.arange(2).tobytes()
    read = Derived.deserialize(sent.serialize())
    np.testing.assert_array_equal(read.items[0], [0, 1])
    np.testing.assert_array_equal(read.items[1]["x"], np.eye(2))
    assert not read.items[0].flags.writeable


def test_fields_with_underscores_are_not_written():
    @array_message
    class Hidden:
        values: np.ndarray
        _cache: object = None

    assert "_cache" not in msgpack.unpackb(Hidden(np.ones(1), object()).serialize())


def test_errors_are_those_of_messages():
    with pytest.raises(MessageSerializationError):
        Derived(values=object()).serialize()
    with pytest.raises(MessageSerializationError):
        Derived(values=np.array([object()])).serialize()
    for data in (b"", b"garbage", msgpack.packb({"x": 1})):
        with pytest.raises(MessageDeserializationError):
            Derived.deserialize(data)


def test_d12_sharing_is_by_reference_and_ends_with_copy():
    sent = Samples("n", np.zeros(3))
    shared = Samples.deserialize(sent.serialize())
    own = shared.values.copy()
    sent.values[0] = 1.0
    assert shared.values[0] == 1.0
    assert own[0] == 0.0


# --- the registry ----------------------------------------------------------------------------


def test_registry_is_one(registry):
    assert BufferRegistry() is registry


def test_register_get_release(registry):
    array = np.arange(3)
    before = registry.get_stats()
    handle = register_buffer(array)
    assert isinstance(handle.buffer_id, UUID)
    assert handle == BufferHandle(handle.buffer_id, (3,), "int64", "cpu", 24)
    assert repr(handle) == (
        f"BufferHandle(id={str(handle.buffer_id)[:8]}, shape=(3,), dtype=int64, device=cpu)"
    )
    assert get_buffer(handle.buffer_id) is array
    assert handle.buffer_id in registry
    assert len(registry) == 1
    stats = registry.get_stats()
    assert stats["registered"] == before["registered"] + 1
    assert stats["retrieved"] == before["retrieved"] + 1
    assert stats["bytes_registered"] == before["bytes_registered"] + 24
    assert stats["active_buffers"] == 1
    assert release_buffer(handle.buffer_id)
    assert not release_buffer(handle.buffer_id)
    assert get_buffer(handle.buffer_id) is None
    assert registry.get_stats()["released"] == before["released"] + 1


def test_d13_counts_are_honoured_and_handles_are_snapshots(registry):
    handle = register_buffer(np.arange(3))
    assert registry.increment_ref(handle.buffer_id)
    snapshot = registry.get_handle(handle.buffer_id)
    assert snapshot.ref_count == 2
    snapshot.ref_count = 100
    assert registry.decrement_ref(handle.buffer_id) == 1
    assert get_buffer(handle.buffer_id) is not None
    assert registry.decrement_ref(handle.buffer_id) == 0
    assert get_buffer(handle.buffer_id) is None
    assert registry.decrement_ref(handle.buffer_id) == -1
    assert not registry.increment_ref(uuid4())
    assert registry.get_handle(uuid4()) is None


def test_clear(registry):
    for _ in range(3):
        register_buffer(np.zeros(1))
    assert registry.clear() == 3
    assert len(registry) == 0
