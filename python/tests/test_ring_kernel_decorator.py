"""The decorator ring_kernel and its builder."""

import asyncio
import importlib.util
import sys
import types

import pytest

from pydotcompute.decorators.ring_kernel import (
    RingKernelBuilder,
    get_ring_kernel_meta,
    is_ring_kernel,
    ring_kernel,
)
from pydotcompute.exceptions import InvalidConfigurationError


@pytest.fixture
def registered(monkeypatch):
    """What was registered, by id."""
    kernels = {}

    def register_ring_kernel(kernel_id, func, input_type=None, output_type=None, **config):
        kernels[kernel_id] = (func, input_type, output_type, config)

    name = "pydotcompute.ring_kernels.runtime"
    if importlib.util.find_spec("pydotcompute.ring_kernels") is None:
        monkeypatch.setitem(sys.modules, "pydotcompute.ring_kernels", types.ModuleType("r"))
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    else:
        importlib.import_module(name)
    monkeypatch.setattr(
        sys.modules[name], "register_ring_kernel", register_ring_kernel, raising=False
    )
    return kernels


def test_defaults(registered):
    @ring_kernel
    async def actor(ctx):
        """Act."""
        return ctx

    assert (actor.__name__, actor.__doc__) == ("actor", "Act.")
    assert actor._ring_kernel_meta == {
        "kernel_id": "actor",
        "input_type": None,
        "output_type": None,
        "config": {
            "input_queue_size": 4096,
            "output_queue_size": 4096,
            "grid_size": 1,
            "block_size": 256,
            "backpressure_strategy": "block",
        },
    }
    assert get_ring_kernel_meta(actor) is actor._ring_kernel_meta
    assert is_ring_kernel(actor) is True
    assert asyncio.run(actor(5)) == 5
    func, *types_, config = registered["actor"]
    assert func is actor._original_func
    assert types_ == [None, None]
    assert config == actor._ring_kernel_meta["config"]


def test_everything_given(registered):
    @ring_kernel(
        kernel_id="id",
        input_type=int,
        output_type=str,
        queue_size=2000,
        grid_size=4,
        block_size=512,
        backpressure="reject",
    )
    async def actor(ctx):
        pass

    meta = get_ring_kernel_meta(actor)
    assert (meta["kernel_id"], meta["input_type"], meta["output_type"]) == ("id", int, str)
    assert meta["config"] == {
        "input_queue_size": 2000,
        "output_queue_size": 2000,
        "grid_size": 4,
        "block_size": 512,
        "backpressure_strategy": "reject",
    }
    assert registered["id"][1:] == (int, str, meta["config"])

    @ring_kernel(input_queue_size=5, output_queue_size=6, auto_register=False)
    async def other(ctx):
        pass

    config = get_ring_kernel_meta(other)["config"]
    assert (config["input_queue_size"], config["output_queue_size"]) == (5, 6)
    assert "other" not in registered


@pytest.mark.parametrize(
    "wrong",
    [
        {"queue_size": 0},
        {"input_queue_size": 0},
        {"output_queue_size": 1_000_001},
        {"queue_size": "5"},
        {"grid_size": 0},
        {"grid_size": (2, 2)},
        {"block_size": 2048},
        {"backpressure": "drop everything"},
    ],
)
def test_a20_wrong_configuration_is_refused(registered, wrong):
    with pytest.raises(InvalidConfigurationError, match=next(iter(wrong))):
        ring_kernel(**wrong)
    assert registered == {}


def test_drop_newest_is_ours(registered):
    assert callable(ring_kernel(backpressure="drop_newest"))


def test_other_functions_are_none():
    assert get_ring_kernel_meta(len) is None
    assert is_ring_kernel(len) is False


def test_builder(registered):
    async def handler(ctx):
        return ctx

    builder = RingKernelBuilder("id")
    assert (builder._kernel_id, builder._backpressure) == ("id", "block")
    assert (builder._input_queue_size, builder._output_queue_size) == (4096, 4096)
    assert (builder._grid_size, builder._block_size) == (1, 256)
    assert repr(builder) == "RingKernelBuilder(id='id', input=None, output=None)"
    with pytest.raises(ValueError, match="handler"):
        builder.build()
    steps = (
        builder.with_input_type(int)
        .with_output_type(str)
        .with_queue_size(10)
        .with_output_queue_size(20)
        .with_grid_size(2)
        .with_block_size(64)
        .with_backpressure("drop_oldest")
        .with_handler(handler)
    )
    assert steps is builder
    assert (builder._input_queue_size, builder._output_queue_size) == (10, 20)
    assert builder.with_input_queue_size(11)._input_queue_size == 11
    assert repr(builder) == "RingKernelBuilder(id='id', input=int, output=str)"
    actor = builder.build()
    assert is_ring_kernel(actor)
    assert registered["id"] == (handler, int, str, actor._ring_kernel_meta["config"])
    assert actor._ring_kernel_meta["config"]["backpressure_strategy"] == "drop_oldest"
