"""Kernels of one kind behind one name, alone and as a stage of a pipeline."""

import asyncio
import operator
from typing import Any

import numpy as np
import pytest

from pydotcompute import RingKernelRuntime, message, ring_kernel
from pydotcompute.exceptions import (
    InvalidConfigurationError,
    KernelAlreadyExistsError,
    KernelFailedError,
    KernelNotFoundError,
    KernelStateError,
    PipelineError,
    QueueFullError,
    QueueTimeoutError,
)
from pydotcompute.handlers import record, record_dtype
from pydotcompute.ring_kernels import KernelPool

pytestmark = pytest.mark.filterwarnings("ignore:ring kernel .* is interpreted:RuntimeWarning")

CUSTOMERS = 12
EACH = 20


@message
class Order:
    customer: int
    place: int


@message
class Worked:
    worker: str
    customer: int
    place: int


@message(layout="record")
class Sale:
    customer: np.int32
    amount: int


@record
class Till:
    sum: int


@ring_kernel(kernel_id="till", state=Till, auto_register=False)
def till(msg: Sale, state: Till, out: Sale) -> int:
    if msg.amount < 0:
        raise ValueError("nothing is taken back")
    state.sum += msg.amount
    out.customer = msg.customer
    out.amount = state.sum
    return 1


@ring_kernel(kernel_id="twice", state=None, auto_register=False)
def twice(msg: Sale, state: None, out: Sale) -> int:
    out.customer = msg.customer
    out.amount = 2 * msg.amount
    return 1


async def work(ctx: Any) -> None:
    while True:
        order = await ctx.receive()
        if order.customer == 13:
            raise ValueError("not this one")
        await ctx.send(
            Worked(
                worker=ctx.kernel_id,
                customer=order.customer,
                place=order.place,
                correlation_id=order.message_id,
            )
        )


def work_on_a_thread(ctx: Any) -> None:
    while True:
        order = ctx.receive()
        ctx.send(
            Worked(
                worker=ctx.kernel_id,
                customer=order.customer,
                place=order.place,
                correlation_id=order.message_id,
            )
        )


async def pass_on(ctx: Any) -> None:
    while True:
        await ctx.send(await ctx.receive())


@pytest.fixture(params=["tasks", "threads"])
def function(request: pytest.FixtureRequest) -> Any:
    return work if request.param == "tasks" else work_on_a_thread


async def started(runtime: RingKernelRuntime, name: str, *args: Any, **kwargs: Any) -> Any:
    kernel = await runtime.launch(name, *args, **kwargs)
    await kernel.activate()
    return kernel


async def pool_of(runtime: RingKernelRuntime, *args: Any, **kwargs: Any) -> Any:
    pool = await runtime.launch_pool("pool", *args, **kwargs)
    await pool.activate()
    return pool


def in_order(replies: list[Any]) -> None:
    """Each customer had one worker, and came in order."""
    workers: dict[int, str] = {}
    places = dict.fromkeys(range(CUSTOMERS), 0)
    for reply in replies:
        assert workers.setdefault(reply.customer, reply.worker) == reply.worker
        assert places[reply.customer] == reply.place
        places[reply.customer] += 1
    assert set(places.values()) == {EACH}
    assert len(set(workers.values())) > 1, "the keys are spread over the workers"


async def test_workers_take_turns_and_reply_in_one_place(function: Any) -> None:
    async with RingKernelRuntime() as runtime:
        pool = await pool_of(runtime, function, workers=3)
        assert isinstance(pool, KernelPool)
        assert [worker.kernel_id for worker in pool.workers] == ["pool/0", "pool/1", "pool/2"]
        seen = []
        for place in range(9):
            await runtime.send("pool", Order(customer=0, place=place))
            seen.append((await runtime.receive("pool", timeout=30)).worker)
        assert seen == ["pool/0", "pool/1", "pool/2"] * 3
        # A message is settled after its reply went out.
        while pool._books(False)["processed"] < 9:
            await asyncio.sleep(0)
        assert (pool._books(False)["accepted"], pool._books(True)["accepted"]) == (9, 9)
        telemetry = runtime.get_telemetry("pool/1")
        assert telemetry is not None
        assert telemetry.messages_processed == 3
        with pytest.raises(QueueTimeoutError):
            await pool.receive(timeout=0.001)


@pytest.mark.parametrize("key", ["customer", operator.attrgetter("customer")])
async def test_a_key_keeps_its_worker_and_its_order(function: Any, key: Any) -> None:
    async with RingKernelRuntime() as runtime:
        pool = await pool_of(runtime, function, workers=3, key=key)
        for place in range(EACH):
            for customer in range(CUSTOMERS):
                await pool.send(Order(customer=customer, place=place))
        in_order([await pool.receive(timeout=30) for _ in range(EACH * CUSTOMERS)])


async def test_a_pool_is_asked_as_one_kernel(function: Any) -> None:
    async with RingKernelRuntime() as runtime:
        pool = await pool_of(runtime, function, workers=3)
        asks = [pool.send_and_receive(Order(customer=1, place=n), timeout=30) for n in range(30)]
        replies = await asyncio.gather(*asks)
        assert [reply.place for reply in replies] == list(range(30))
        assert {reply.worker for reply in replies} == {"pool/0", "pool/1", "pool/2"}


async def test_a_kernel_is_connected_to_a_pool_and_a_pool_to_a_kernel(function: Any) -> None:
    async with RingKernelRuntime() as runtime:
        await started(runtime, "source", pass_on)
        await pool_of(runtime, function, workers=3, key="customer")
        await started(runtime, "last", pass_on)
        # Replies of before go first.
        await runtime.send("source", Order(customer=0, place=0))
        while runtime._get("source")._books(True)["queued"] < 1:
            await asyncio.sleep(0)
        runtime.connect("source", "pool")
        runtime.connect("pool", "last")
        assert (runtime.connected_to("source"), runtime.connected_to("pool")) == ("pool", "last")
        for place in range(EACH):
            for customer in range(CUSTOMERS):
                if place or customer:
                    await runtime.send("source", Order(customer=customer, place=place))
        in_order([await runtime.receive("last", timeout=30) for _ in range(EACH * CUSTOMERS)])
        reply = await runtime.send_and_receive("source", Order(customer=5, place=7), timeout=30)
        assert (reply.customer, reply.place) == (5, 7)
        with pytest.raises(PipelineError, match="cycle"):
            runtime.connect("last", "pool")
        assert runtime.disconnect("source")
        assert runtime.disconnect("pool")
        assert not runtime.disconnect("pool")


async def test_a_worker_that_fails_is_passed_over() -> None:
    async with RingKernelRuntime() as runtime:
        pool = await pool_of(runtime, work, workers=2)
        with pytest.raises(KernelFailedError, match="not this one"):
            await pool.send_and_receive(Order(customer=13, place=0), timeout=30)
        for place in range(6):
            reply = await pool.send_and_receive(Order(customer=1, place=place), timeout=30)
            assert reply.place == place
        assert [str(error) for error in pool.errors] == ["not this one"]


class TestCompiled:
    async def test_records_go_by_an_integer_field(self) -> None:
        async with RingKernelRuntime() as runtime:
            pool = await pool_of(runtime, till, workers=3, key="customer")
            await started(runtime, "twice", twice)
            runtime.connect("twice", "pool")
            # By whatever way, a customer has one worker, and so one sum.
            for amount in (1, 2, 3):
                for customer in range(-4, 4):
                    name = "twice" if amount == 2 else "pool"
                    sale = Sale(customer=customer, amount=amount)
                    reply = await runtime.send_and_receive(name, sale, timeout=30)
                    assert reply.customer == customer
            sums = [worker.read_state().sum for worker in pool.workers]
            assert sum(sums) == 8 * (1 + 4 + 3)
            assert all(total % 8 == 0 for total in sums), "a customer's all, or nothing"
            assert sum(total > 0 for total in sums) > 1

    async def test_an_array_goes_to_the_worker_of_its_one_key(self) -> None:
        sales = np.zeros(4, record_dtype(Sale))
        sales["customer"], sales["amount"] = 7, [1, 2, 3, 4]
        mixed = sales.copy()
        mixed["customer"][2] = 8
        async with RingKernelRuntime() as runtime:
            pool = await pool_of(runtime, till, workers=2, key="customer")
            reply = await pool.send_and_receive(sales, timeout=30)
            assert reply["amount"].tolist() == [1, 3, 6, 10]
            with pytest.raises(ValueError, match="record 2 has another 'customer'"):
                await pool.send(mixed)

    async def test_an_array_of_several_keys_is_not_forwarded_by_its_first(self) -> None:
        sales = np.zeros(3, record_dtype(Sale))
        sales["customer"], sales["amount"] = 7, [1, 2, 3]
        async with RingKernelRuntime() as runtime:
            pool = await pool_of(runtime, till, workers=2, key="customer")
            await started(runtime, "twice", twice)
            runtime.connect("twice", "pool")
            reply = await runtime.send_and_receive("twice", sales, timeout=30)
            assert reply["amount"].tolist() == [2, 6, 12]
            sales["customer"][1] = 8
            with pytest.raises((KernelFailedError, QueueFullError)):
                await runtime.send_and_receive("twice", sales, timeout=30)
            with pytest.raises(KernelFailedError, match="record 1 has another 'customer'"):
                await runtime.send("twice", sales)
            assert sum(worker.read_state().sum for worker in pool.workers) == 12

    async def test_a_key_that_records_do_not_have_is_refused(self) -> None:
        async with RingKernelRuntime() as runtime:
            for key in ("price", len):
                with pytest.raises(InvalidConfigurationError, match="customer, amount"):
                    await runtime.launch_pool("pool", till, workers=2, key=key)
            await pool_of(runtime, till, workers=2, key="amount")


class TestLife:
    async def test_a_pool_ends_as_one_and_frees_its_names(self, function: Any) -> None:
        async with RingKernelRuntime() as runtime:
            pool = await runtime.launch_pool("pool", function, workers=2)
            with pytest.raises(KernelAlreadyExistsError):
                await runtime.launch("pool", function)
            with pytest.raises(KernelAlreadyExistsError):
                await runtime.launch_pool("pool", function, workers=1)
            with pytest.raises(KernelStateError):
                await pool.send(Order(customer=1, place=1))
            await runtime.activate("pool")
            await runtime.deactivate("pool")
            await runtime.send("pool", Order(customer=1, place=1))
            await runtime.reactivate("pool")
            await runtime.terminate("pool", drain=True)
            assert runtime.kernel_ids == []
            with pytest.raises(KernelNotFoundError):
                await runtime.send("pool", Order(customer=1, place=1))
            await pool_of(runtime, function, workers=1)

    async def test_what_cannot_be_a_pool_is_refused(self) -> None:
        async with RingKernelRuntime() as runtime:
            for workers in (0, -1, True, "2"):
                with pytest.raises(InvalidConfigurationError, match="workers"):
                    await runtime.launch_pool("pool", work, workers=workers)  # type: ignore[arg-type]
            with pytest.raises(TypeError, match="key should be"):
                await runtime.launch_pool("pool", work, workers=1, key=7)  # type: ignore[arg-type]
            assert runtime.kernel_ids == []

    async def test_a_message_without_the_key_is_its_senders_error(self) -> None:
        async with RingKernelRuntime() as runtime:
            pool = await pool_of(runtime, work, workers=2, key="account")
            with pytest.raises(AttributeError, match="account"):
                await pool.send(Order(customer=1, place=1))
            # And where a kernel replies with it, that kernel's.
            source = await started(runtime, "source", pass_on)
            runtime.connect("source", "pool")
            await runtime.send("source", Order(customer=1, place=1))
            await source._ended()
            assert "account" in str(source.error)
