"""Compiled handlers: one plain function per message, without the GIL."""

import asyncio
import ctypes
import logging
import os
import shutil
import subprocess
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pydotcompute import RingKernelRuntime, message, ring_kernel
from pydotcompute.exceptions import (
    InvalidConfigurationError,
    KernelAlreadyExistsError,
    KernelCompilationError,
    KernelError,
    KernelFailedError,
    KernelStateError,
    QueueTimeoutError,
    TypeValidationError,
)
from pydotcompute.handlers import (
    HandlerContext,
    RecordBatch,
    c_struct,
    native_handler,
    record,
    record_dtype,
)
from pydotcompute.ring_kernels.lifecycle import KernelState, Restart, RingKernel

ABI = Path(__file__).parents[2] / "crates/dotcompute-abi"
HEADER = ABI / "generated/dotcompute_abi.h"

RUST_HANDLER = """
use dotcompute_abi::{HandlerContext, codes};
use std::ffi::c_void;

#[repr(C)]
pub struct Amount { value: i64 }
#[repr(C)]
pub struct Note { value: i64, code: i32 }
#[repr(C)]
pub struct Total { sum: i64, count: u32, last: [i64; 4] }

/// # Safety
///
/// As `dotcompute_abi::Handler` says, for these records.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn account(
    message: &Amount, state: &mut Total, reply: &mut Amount, ctx: *mut HandlerContext,
) -> i32 {
    let calls = unsafe { &*(*ctx).calls };
    let sum = state.sum + message.value;
    if sum < 0 {
        let text = "overdrawn";
        return unsafe { (calls.fault)(ctx, -9, text.as_ptr(), text.len() as u64) };
    }
    state.sum = sum;
    state.last[state.count as usize % 4] = message.value;
    state.count += 1;
    reply.value = -message.value;
    if message.value == 5 {
        let code = unsafe { (calls.emit)(ctx, (&raw const *reply).cast::<c_void>()) };
        if code != codes::FAULT_NONE {
            return code;
        }
        let note = Note { value: sum, code: 7 };
        unsafe { (calls.send)(ctx, 0, (&raw const note).cast()) };
    }
    reply.value = sum;
    codes::HANDLER_REPLY
}
"""

pytestmark = pytest.mark.filterwarnings("ignore:ring kernel .* is interpreted:RuntimeWarning")


@message(layout="record")
class Amount:
    value: int


@message(layout="record")
class Note:
    value: int
    code: np.int32


@record
class Total:
    sum: int
    count: np.uint32
    last: Annotated[NDArray[np.int64], 4]


@ring_kernel(kernel_id="total", state=Total)
def total(msg: Amount, state: Total, out: Amount) -> int:
    if msg.value < 0:
        raise ValueError("amounts are not negative", msg.value)
    state.sum += msg.value
    state.last[state.count % 4] = msg.value
    state.count += np.uint32(1)
    out.value = state.sum
    return 1 if msg.value % 2 else 0


@ring_kernel(
    kernel_id="clerk", state=None, max_emit=3, targets={"audit": Note}, auto_register=False
)
def clerk(msg: Amount, state: None, out: Amount, ctx: HandlerContext) -> int:
    if msg.value == 0:
        return ctx.fault(-7, "nothing to repeat")
    for index in range(msg.value):
        out.value = index
        if ctx.emit(out) < 0:
            return -1
    note = ctx.record("audit")
    note.value = msg.value
    note.code = 5
    ctx.send("audit", note)
    ctx.log("repeated")
    ctx.log("loudly", 30)
    out.value = -msg.value
    return 1


def _clipped(value: int) -> int:
    if value > 1000:
        raise ValueError("too much", value)
    return _positive(value)


def _positive(value: int) -> int:
    return max(value, 0)


def _remember(state: Total, value: int) -> None:
    state.last[state.count % 4] = value
    state.count += np.uint32(1)


@ring_kernel(kernel_id="helped", state=Total, auto_register=False)
def helped(msg: Amount, state: Total, out: Amount) -> int:
    value = _clipped(msg.value)
    state.sum += value
    _remember(state, value)
    out.value = state.sum
    return 1


def amounts(*values: int) -> Any:
    made = np.zeros(len(values), record_dtype(Amount))
    made["value"] = values
    return made


@pytest.fixture(params=["numba", "interpreted"])
def executor(request: pytest.FixtureRequest) -> str:
    """Each promise holds for the compiled and for the interpreted handler."""
    if request.param == "numba":
        pytest.importorskip("numba")
    else:
        request.getfixturevalue("no_numba")
    return str(request.param)


async def started(runtime: RingKernelRuntime, name: str, *args: Any, **kwargs: Any) -> Any:
    kernel = await runtime.launch(name, *args, **kwargs)
    await kernel.activate()
    return kernel


async def test_single_records_are_messages_as_any_others(executor: str) -> None:
    async with RingKernelRuntime() as runtime:
        await started(runtime, "total")
        question = Amount(3, priority=200)
        reply = await runtime.send_and_receive("total", question, timeout=30)
        assert (type(reply), reply.value) == (Amount, 3)
        assert reply.correlation_id == question.message_id
        await runtime.send("total", Amount(4))
        await runtime.send("total", Amount(5))
        assert (await runtime.receive("total", timeout=30)).value == 12
        with pytest.raises(QueueTimeoutError):
            await runtime.receive("total", timeout=0)


async def test_a_handler_calls_plain_functions_of_its_module(executor: str) -> None:
    async with RingKernelRuntime() as runtime:
        kernel = await started(runtime, "helped", helped)
        made = await runtime.send_and_receive("helped", amounts(5, -3, 7), timeout=60)
        assert made["value"].tolist() == [5, 5, 12]
        state = kernel.read_state()
        assert (state.sum, state.count, state.last.tolist()) == (12, 3, [5, 0, 7, 0])
        with pytest.raises(KernelFailedError, match=r"ValueError: \('too much', 1001\)"):
            await runtime.send_and_receive("helped", Amount(1001), timeout=60)


async def test_the_loop_has_its_turns_while_it_waits_for_a_handler(executor: str) -> None:
    async with RingKernelRuntime() as runtime:
        kernel = await started(runtime, "helped", helped)
        await kernel.deactivate()
        asking = asyncio.create_task(runtime.send_and_receive("helped", Amount(5), timeout=60))
        receiving = asyncio.create_task(runtime.receive("helped", timeout=60))
        for _ in range(1000):
            await asyncio.sleep(0)
            assert not asking.done()
            assert not receiving.done()
        await kernel.reactivate()
        assert (await asking).value == 5
        await runtime.send("helped", Amount(4))
        assert (await receiving).value == 9


async def test_no_reply_is_lost_of_handlers_that_one_loop_waits_for(executor: str) -> None:
    async with RingKernelRuntime() as runtime:
        names = ["one", "two", "three"]
        for name in names:
            await started(runtime, name, helped)

        async def ask(name: str, count: int) -> list[int]:
            replies = [
                await runtime.send_and_receive(name, Amount(1), timeout=60) for _ in range(count)
            ]
            return [reply.value for reply in replies]

        asked = await asyncio.gather(*(ask(name, 200) for name in names for _ in range(2)))
        for pair in zip(asked[::2], asked[1::2], strict=True):
            assert sorted(pair[0] + pair[1]) == list(range(1, 401))
            assert all(values == sorted(values) for values in pair)

        async def stream(name: str) -> list[int]:
            values = []
            for number in range(100):
                await runtime.send(name, amounts(*[1] * (number % 7 + 1)))
                if number % 3 == 2:
                    for _ in range(3):
                        reply = await runtime.receive(name, timeout=60)
                        values += reply["value"].tolist()
            values += (await runtime.receive(name, timeout=60))["value"].tolist()
            return values

        for values in await asyncio.gather(*map(stream, names)):
            assert values == list(range(401, 401 + len(values)))


async def test_a_batch_is_one_message_and_its_replies_one_array(executor: str) -> None:
    async with RingKernelRuntime() as runtime:
        kernel = await started(runtime, "total")
        sent = RecordBatch(amounts(*range(10)))
        reply = await runtime.send_and_receive("total", sent, timeout=30)
        assert reply["value"].tolist() == [1, 6, 15, 28, 45]
        assert reply.correlation_id == sent.message_id
        assert reply.dtype == record_dtype(Amount)
        await runtime.send("total", amounts(1, 2))
        assert (await runtime.receive("total", timeout=30))["value"].tolist() == [46]
        # Whoever asks gets an answer, also an empty one.
        assert len(await runtime.send_and_receive("total", amounts(2), timeout=30)) == 0
        assert len(await runtime.send_and_receive("total", amounts(), timeout=30)) == 0
        # Counters count records, books count messages.
        await kernel.terminate(drain=True)
        telemetry = runtime.get_telemetry("total")
        assert telemetry is not None
        assert telemetry.messages_processed == 13
        assert kernel._books(False)["processed"] == 4


async def test_an_array_is_read_only_until_it_is_processed(executor: str) -> None:
    async with RingKernelRuntime() as runtime:
        kernel = await started(runtime, "total")
        await kernel.deactivate()
        array = amounts(1, 3)
        await runtime.send("total", array)
        with pytest.raises(ValueError, match="read-only"):
            array["value"] = 5
        await kernel.reactivate()
        assert len(await runtime.receive("total", timeout=30)) == 2
        array["value"] = 5
        # One that was read-only before stays so, and one that was not sent is given back.
        array.flags.writeable = False
        await runtime.send_and_receive("total", array, timeout=30)
        assert not array.flags.writeable
        await kernel.terminate()
        other = amounts(1)
        with pytest.raises(KernelStateError):
            await kernel.send(other)
        assert other.flags.writeable


async def test_an_array_in_two_kernels_is_read_only_until_both_have_processed_it(
    executor: str,
) -> None:
    async with RingKernelRuntime() as runtime:
        await started(runtime, "quick", helped)
        slow = await started(runtime, "slow", helped)
        await slow.deactivate()
        array = amounts(1, 3)
        await runtime.send("slow", array)
        assert len(await runtime.send_and_receive("quick", array, timeout=30)) == 2
        await runtime.send("quick", array)
        assert len(await runtime.receive("quick", timeout=30)) == 2
        assert not array.flags.writeable
        await slow.reactivate()
        assert len(await runtime.receive("slow", timeout=30)) == 2
        array["value"] = 5
        # In the other order: the lease that is over first is that which was taken first.
        await slow.deactivate()
        await runtime.send("quick", array)
        await runtime.send("slow", array)
        assert len(await runtime.receive("quick", timeout=30)) == 2
        assert not array.flags.writeable
        await slow.reactivate()
        assert len(await runtime.receive("slow", timeout=30)) == 2
        assert array.flags.writeable


async def test_an_exception_in_a_handler_has_type_arguments_and_line(executor: str) -> None:
    async with RingKernelRuntime() as runtime:
        kernel = await started(runtime, "total")
        with pytest.raises(KernelFailedError) as caught:
            await runtime.send_and_receive("total", Amount(-4), timeout=30)
        cause = caught.value.__cause__
        assert type(cause) is ValueError
        assert cause.args == ("amounts are not negative", -4)
        frame = traceback.extract_tb(cause.__traceback__)[-1]
        first = total._original_func.__code__.co_firstlineno  # type: ignore[attr-defined]
        assert (frame.filename, frame.lineno, frame.name) == (__file__, first + 3, "total")
        assert kernel.error is cause
        letters = runtime.dead_letters("total")
        assert [letter.message.value for letter in letters] == [-4]


async def test_the_record_that_failed_is_named_and_the_batch_is_a_dead_letter(
    executor: str,
) -> None:
    async with RingKernelRuntime() as runtime:
        await started(runtime, "total")
        with pytest.raises(KernelFailedError) as caught:
            await runtime.send_and_receive("total", amounts(1, 3, -1), timeout=30)
        assert "at record 2 of 3" in getattr(caught.value.__cause__, "__notes__", ())
        (letter,) = runtime.dead_letters("total", take=True)
        assert letter.message["value"].tolist() == [1, 3, -1]


@ring_kernel(kernel_id="division", state=None, auto_register=False)
def division(msg: Amount, state: None, out: Amount) -> int:
    out.value = 10 // msg.value
    return 1


@ring_kernel(kernel_id="index", state=Total, auto_register=False)
def index(msg: Amount, state: Total, out: Amount) -> int:
    out.value = state.last[msg.value]
    return 1


@pytest.mark.parametrize(
    ("handler", "value", "error"), [(division, 0, ZeroDivisionError), (index, 4, IndexError)]
)
async def test_an_error_of_the_language_is_a_fault(
    executor: str, handler: Any, value: int, error: type[Exception]
) -> None:
    async with RingKernelRuntime() as runtime:
        await started(runtime, "k", handler)
        with pytest.raises(KernelFailedError) as caught:
            await runtime.send_and_receive("k", Amount(value), timeout=30)
        assert isinstance(caught.value.__cause__, error)


@ring_kernel(kernel_id="codes", state=None, auto_register=False)
def codes(msg: Amount, state: None, out: Amount) -> int:
    return msg.value


@pytest.mark.parametrize(
    ("value", "text"),
    [(-9, "fault code -9"), (2, "the handler returned 2"), (-(1 << 40), "code -2147483648")],
)
async def test_a_negative_or_unknown_result_is_a_fault(
    executor: str, value: int, text: str
) -> None:
    async with RingKernelRuntime() as runtime:
        await started(runtime, "k", codes)
        with pytest.raises(KernelFailedError, match=text):
            await runtime.send_and_receive("k", Amount(value), timeout=30)


async def test_a_context_emits_sends_and_logs(
    executor: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "pydotcompute")

    async def audit(ctx: Any) -> None:
        while True:
            await ctx.send(await ctx.receive())

    async with RingKernelRuntime() as runtime:
        await started(runtime, "audit", audit)
        await started(runtime, "clerk", clerk)
        reply = await runtime.send_and_receive("clerk", amounts(2, 1), timeout=30)
        assert reply["value"].tolist() == [0, 1, -2, 0, -1]
        notes = await runtime.receive("audit", timeout=30)
        assert notes["value"].tolist() == [2, 1]
        assert notes["code"].tolist() == [5, 5]
        await runtime.send("clerk", Amount(1))
        assert (await runtime.receive("clerk", timeout=30)).value == 0
        assert (await runtime.receive("clerk", timeout=30)).value == -1
        # To a kernel of Python's a single record goes as an object.
        note = await runtime.receive("audit", timeout=30)
        assert (type(note), note.value, note.code) == (Note, 1, 5)
        logged = [(one.levelno, one.getMessage()) for one in caplog.records]
        assert (20, "kernel 'clerk': repeated") in logged
        assert (30, "kernel 'clerk': loudly") in logged


class Outer:
    """The same name in another place."""

    @message(layout="record")
    class Amount:
        value: int


async def test_records_of_two_classes_of_one_name_arrive_as_what_they_are(executor: str) -> None:
    @ring_kernel(kernel_id="outer", state=None, auto_register=False)
    def outer(msg: Outer.Amount, state: None, out: Outer.Amount) -> int:
        out.value = msg.value
        return 1

    @ring_kernel(kernel_id="plain", state=None, auto_register=False)
    def plain(msg: Amount, state: None, out: Amount) -> int:
        out.value = msg.value
        return 1

    seen: asyncio.Queue[Any] = asyncio.Queue()

    async def untyped(ctx: Any) -> None:
        while True:
            await seen.put(await ctx.receive())

    async with RingKernelRuntime() as runtime:
        await started(runtime, "untyped", untyped)
        await started(runtime, "outer", outer)
        await started(runtime, "plain", plain)
        for name, sent in [("outer", Outer.Amount(value=1)), ("plain", Amount(value=2))]:
            runtime.connect(name, "untyped")
            await runtime.send(name, sent)
            got = await asyncio.wait_for(seen.get(), 30)
            assert type(got) is type(sent)
            assert got.value == sent.value


@pytest.mark.parametrize(("value", "text"), [(0, "nothing to repeat"), (4, "max_emit=3")])
async def test_a_fault_that_a_context_reports_has_its_text(
    executor: str, value: int, text: str
) -> None:
    async with RingKernelRuntime() as runtime:
        await started(runtime, "clerk", clerk)
        with pytest.raises(KernelFailedError, match=text):
            await runtime.send_and_receive("clerk", Amount(value), timeout=30)


@ring_kernel(kernel_id="patient", state=None, auto_register=False)
def patient(msg: Amount, state: None, out: Amount, ctx: HandlerContext) -> int:
    begun = ctx.clock()
    while ctx.clock() >= begun:
        code = ctx.tick()
        if code < 0:
            return code
    return 0


async def test_a_handler_that_ticks_ends_with_its_kernel(executor: str) -> None:
    async with RingKernelRuntime() as runtime:
        kernel = await started(runtime, "k", patient)
        await kernel.send(Amount(1))
        while kernel._books(False)["in_hand"] == 0:
            await asyncio.sleep(0)
        await kernel.terminate(timeout=30)
        assert kernel.state is KernelState.TERMINATED
        (letter,) = runtime.dead_letters("k")
        assert "told to stop" in letter.reason


class TestState:
    async def test_it_begins_as_it_is_told(self, executor: str) -> None:
        array = np.zeros(1, record_dtype(Total))
        array["sum"] = 7
        async with RingKernelRuntime() as runtime:
            for number, (initial, sum_) in enumerate(
                [(None, 0), (Total(sum=5), 5), ({"sum": 6}, 6), (array, 7), (array[0], 7)]
            ):
                kernel = await started(runtime, f"k{number}", total, state=initial)
                assert kernel.read_state().sum == sum_
                await runtime.send_and_receive(f"k{number}", Amount(1), timeout=30)
                state = kernel.read_state(timeout=30)
                assert (state.sum, state.count) == (sum_ + 1, 1)
                assert state.last.tolist() == [1, 0, 0, 0]
            for wrong in (5, np.zeros(2, record_dtype(Total)), {"nothing": 1}):
                with pytest.raises((TypeValidationError, TypeError)):
                    await runtime.launch("wrong", total, state=wrong)
            with pytest.raises(InvalidConfigurationError, match="keeps no state"):
                await runtime.launch("wrong", clerk, state=Total())

    async def test_a_restart_makes_it_anew(self, executor: str) -> None:
        async with RingKernelRuntime() as runtime:
            kernel = await started(
                runtime, "total", state={"sum": 10}, restart=Restart("on_fault", backoff=0.0)
            )
            assert (await runtime.send_and_receive("total", Amount(1), timeout=30)).value == 11
            with pytest.raises(KernelFailedError):
                await runtime.send_and_receive("total", Amount(-1), timeout=30)
            assert (await runtime.send_and_receive("total", Amount(3), timeout=30)).value == 13
            assert kernel.restarts == 1

    async def test_it_is_read_between_two_messages(self) -> None:
        pytest.importorskip("numba")
        async with RingKernelRuntime() as runtime:
            kernel = await started(runtime, "total")
            stop = threading.Event()
            wrong: list[Any] = []

            def read() -> None:
                while not stop.is_set():
                    state = kernel.read_state(timeout=30)
                    if state.count % 8 or state.sum != state.count:
                        wrong.append(state)

            reader = threading.Thread(target=read)
            reader.start()
            ones = amounts(*[1] * 8)
            for _ in range(2000):
                await runtime.send_and_receive("total", ones.copy(), timeout=30)
            stop.set()
            reader.join(30)
            assert not wrong
            assert kernel.read_state().count == 16000

    async def test_a_kernel_without_one_says_so(self, executor: str) -> None:
        async with RingKernelRuntime() as runtime:
            kernel = await runtime.launch("clerk", clerk)
            with pytest.raises(KernelStateError, match="read the state"):
                kernel.read_state()


class Slow:
    """A handler whose compiler waits for what only the event loop can bring."""

    def __init__(self) -> None:
        self.signature = total._handler.signature  # type: ignore[attr-defined]
        self.begun = threading.Event()
        self.go_on = threading.Event()

    def compile(self, kernel_id: str, state: Any) -> Any:
        self.begun.set()
        assert self.go_on.wait(30), "the event loop stands still while a handler is compiled"
        return total._handler.compile(kernel_id, state)  # type: ignore[attr-defined]


class TestLaunch:
    async def test_the_event_loop_goes_on_while_a_handler_is_compiled(self, executor: str) -> None:
        slow = Slow()
        async with RingKernelRuntime() as runtime:
            launch = asyncio.create_task(runtime.launch("slow", slow))  # type: ignore[arg-type]
            await asyncio.to_thread(slow.begun.wait, 30)
            with pytest.raises(KernelAlreadyExistsError):
                await runtime.launch("slow", total)
            slow.go_on.set()
            await (await launch).activate()
            assert (await runtime.send_and_receive("slow", Amount(3), timeout=30)).value == 3

    async def test_a_launch_that_is_given_up_leaves_the_name_free(self, executor: str) -> None:
        slow = Slow()
        async with RingKernelRuntime() as runtime:
            launch = asyncio.create_task(runtime.launch("slow", slow))  # type: ignore[arg-type]
            await asyncio.to_thread(slow.begun.wait, 30)
            launch.cancel()
            with pytest.raises(asyncio.CancelledError):
                await launch
            slow.go_on.set()
            await started(runtime, "slow", total)

    async def test_a_runtime_that_ends_meanwhile_launches_nothing(self, executor: str) -> None:
        slow = Slow()
        runtime = RingKernelRuntime()
        await runtime.start()
        launch = asyncio.create_task(runtime.launch("slow", slow))  # type: ignore[arg-type]
        await asyncio.to_thread(slow.begun.wait, 30)
        await runtime.shutdown()
        slow.go_on.set()
        with pytest.raises(KernelError):
            await launch
        assert runtime.kernel_ids == []

    async def test_a_kernel_of_its_own_is_launched_once(self, executor: str) -> None:
        slow = Slow()
        kernel = RingKernel[Any, Any]("slow", slow)  # type: ignore[arg-type]
        launches = [asyncio.create_task(kernel.launch()) for _ in range(2)]
        await asyncio.to_thread(slow.begun.wait, 30)
        slow.go_on.set()
        outcomes = await asyncio.gather(*launches, return_exceptions=True)
        assert sorted(map(type, outcomes), key=str) == [type(None), KernelStateError]
        await kernel.activate()
        await kernel.send(Amount(3))
        assert (await kernel.receive(timeout=30)).value == 3
        await kernel.terminate()


class TestRefused:
    async def test_what_numba_cannot_compile_fails_at_launch_with_line_and_reason(self) -> None:
        pytest.importorskip("numba")

        @ring_kernel(kernel_id="bad", state=None, auto_register=False)
        def bad(msg: Amount, state: None, out: Amount) -> int:
            out.value = int(input())
            return 1

        line = bad._original_func.__code__.co_firstlineno + 2  # type: ignore[attr-defined]
        async with RingKernelRuntime() as runtime:
            with pytest.raises(KernelCompilationError) as caught:
                await runtime.launch("bad", bad)
        assert f"{__file__}:{line}" in str(caught.value)
        assert isinstance(caught.value.cause, TypeError)

    async def test_an_unknown_field_fails_at_launch(self, executor: str) -> None:

        @ring_kernel(kernel_id="bad", state=None, auto_register=False)
        def bad(msg: Amount, state: None, out: Amount) -> int:
            out.valeu = msg.value  # type: ignore[attr-defined]
            return 1

        async with RingKernelRuntime() as runtime:
            with pytest.raises(KernelCompilationError, match="'Amount' has no field 'valeu'"):
                await runtime.launch("bad", bad)

    async def test_a_path_without_a_result_fails_at_launch(self) -> None:
        pytest.importorskip("numba")

        @ring_kernel(kernel_id="bad", state=None, auto_register=False)
        def bad(msg: Amount, state: None, out: Amount) -> Any:
            if msg.value:
                return 1

        async with RingKernelRuntime() as runtime:
            with pytest.raises(KernelCompilationError, match="on every path"):
                await runtime.launch("bad", bad)

    async def test_a_target_that_was_not_declared_fails_at_launch(self) -> None:
        pytest.importorskip("numba")

        @ring_kernel(kernel_id="bad", state=None, auto_register=False, targets={"a": Amount})
        def bad(msg: Amount, state: None, out: Amount, ctx: HandlerContext) -> int:
            return ctx.send("b", msg)

        async with RingKernelRuntime() as runtime:
            with pytest.raises(KernelCompilationError, match="'b' is not among the targets"):
                await runtime.launch("bad", bad)

    async def test_writing_to_the_message_fails_at_launch(self, executor: str) -> None:
        @ring_kernel(kernel_id="bad", state=None, auto_register=False)
        def bad(msg: Amount, state: None, out: Amount) -> int:
            msg.value += 1
            return 1

        async with RingKernelRuntime() as runtime:
            with pytest.raises(KernelCompilationError, match="'msg' is not the handler's"):
                await runtime.launch("bad", bad)

    def test_what_is_no_handler_is_refused_where_it_is_decorated(self) -> None:
        with pytest.raises(InvalidConfigurationError, match="plain function"):

            @ring_kernel(kernel_id="bad", state=Total)
            async def waits(msg: Amount, state: Total, out: Amount) -> int:
                return 0

        with pytest.raises(InvalidConfigurationError, match="msg, state, out"):

            @ring_kernel(kernel_id="bad", state=Total)
            def two(msg: Amount, state: Total) -> int:
                return 0

        with pytest.raises(InvalidConfigurationError, match="which records it takes"):

            @ring_kernel(kernel_id="bad", state=Total)
            def untyped(msg, state, out):  # type: ignore[no-untyped-def]
                return 0

        with pytest.raises(InvalidConfigurationError, match="max_emit"):

            @ring_kernel(kernel_id="bad", max_emit=3)
            async def actor(ctx: Any) -> None:
                pass

        with pytest.raises(TypeError, match="int is no record"):

            @ring_kernel(kernel_id="bad", state=int)
            def kept(msg: Amount, state: int, out: Amount) -> int:
                return 0

    async def test_messages_of_another_class_are_refused_where_they_are_sent(
        self, executor: str
    ) -> None:
        async with RingKernelRuntime() as runtime:
            await started(runtime, "total")
            for wrong in (Note(1, np.int32(2)), 5, np.zeros(3), np.zeros(1, record_dtype(Note))):
                with pytest.raises(TypeValidationError):
                    await runtime.send("total", wrong)
            with pytest.raises(ValueError, match="out of range"):
                await runtime.send("total", Amount(1 << 70))


async def test_without_numba_it_is_interpreted_with_a_warning(no_numba: None) -> None:
    async with RingKernelRuntime() as runtime:
        with pytest.warns(RuntimeWarning, match=r"'total'.*interpreted.*numba is not installed"):
            await runtime.launch("total")


async def test_another_numba_is_not_called_by_a_convention_that_may_have_changed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    numba = pytest.importorskip("numba")
    monkeypatch.setattr(numba, "__version__", "0.99.1")
    async with RingKernelRuntime() as runtime:
        with pytest.warns(RuntimeWarning, match=r"numba is 0\.99\.1, and handlers need 0\.68"):
            await started(runtime, "total")
        assert (await runtime.send_and_receive("total", Amount(3), timeout=30)).value == 3


async def test_policies_and_redelivery_are_per_batch(executor: str) -> None:
    async with RingKernelRuntime() as runtime:

        @ring_kernel(
            kernel_id="few",
            state=None,
            queue_size=2,
            backpressure="drop_oldest",
            auto_register=False,
        )
        def few(msg: Amount, state: None, out: Amount) -> int:
            out.value = msg.value
            return 1

        kernel = await started(runtime, "few", few)
        await kernel.deactivate()
        arrays = [amounts(number, number) for number in range(3)]
        for array in arrays:
            await runtime.send("few", array)
        assert [array.flags.writeable for array in arrays] == [True, False, False]
        await runtime.send("few", RecordBatch(amounts(9), priority=250))
        await kernel.reactivate()
        replies = [(await runtime.receive("few", timeout=30))["value"].tolist() for _ in range(2)]
        assert replies == [[9], [2, 2]]

        again = await started(
            runtime, "again", total, restart=Restart("on_fault", backoff=0.0, redeliver=True)
        )
        await again.send(amounts(1, -1))
        await again.send(amounts(5))
        assert (await runtime.receive("again", timeout=30))["value"].tolist() == [5]
        (letter,) = runtime.dead_letters("again")
        assert letter.delivery_count == 3


def test_kernels_are_used_from_threads_too(executor: str) -> None:
    """Each on a loop of its own."""

    async def main() -> None:
        async with RingKernelRuntime() as runtime:
            await started(runtime, "total")

            def worker() -> int:
                async def ask() -> int:
                    for _ in range(50):
                        await runtime.send_and_receive("total", Amount(1), timeout=30)
                    return 50

                return asyncio.run(ask())

            counts = await asyncio.gather(*(asyncio.to_thread(worker) for _ in range(3)))
            assert sum(counts) == 150
            state = runtime._get("total").read_state(timeout=30)
            assert state.sum == 150

    asyncio.run(main())


def test_the_kernel_runs_while_a_thread_keeps_the_interpreter() -> None:
    """A compiled handler needs no GIL: it works off its messages while Python is busy."""
    pytest.importorskip("numba")

    async def main() -> None:
        async with RingKernelRuntime() as runtime:
            kernel = await started(runtime, "total")
            batch = amounts(*[1] * 1000)
            await runtime.send_and_receive("total", batch.copy(), timeout=30)
            for _ in range(100):
                await kernel.send(batch.copy())
            interval = sys.getswitchinterval()
            sys.setswitchinterval(1000)
            try:
                # Python code that never gives the interpreter up.
                end = time.monotonic() + 30
                while kernel._books(False)["queued"] > 0 and time.monotonic() < end:
                    pass
                assert kernel._books(False)["queued"] == 0
            finally:
                sys.setswitchinterval(interval)

    asyncio.run(main())


class TestNative:
    @pytest.fixture
    def library(self, tmp_path: Path) -> Path:
        source, library = tmp_path / "handler.c", tmp_path / "handler.so"
        source.write_text(
            f'#include "{HEADER}"\n{c_struct(Amount)}\n{c_struct(Total)}\n'
            "int32_t add(const Amount *m, Total *s, Amount *r, rk_ctx *ctx) {\n"
            '  if (m->value < 0) return rk_fault(ctx, -3, "negative", 8);\n'
            "  s->sum += m->value; r->value = s->sum;\n"
            "  for (int i = 0; i < m->value && i < 2; i++) {\n"
            "    Amount more = {i}; int32_t code = rk_emit(ctx, &more); if (code) return code; }\n"
            "  return DC_HANDLER_REPLY; }\n"
        )
        compiler = os.environ.get("CC", "cc")
        subprocess.run(
            [compiler, "-shared", "-fPIC", "-std=c11", str(source), "-o", str(library)], check=True
        )
        return library

    async def test_a_function_of_a_c_library_is_a_handler(self, library: Path) -> None:
        by_path = native_handler(
            (library, "add"), input_type=Amount, output_type=Amount, state=Total, max_emit=2
        )
        loaded = ctypes.CDLL(str(library))
        by_function = native_handler(
            loaded.add, input_type=Amount, output_type=Amount, state=Total, max_emit=2
        )
        async with RingKernelRuntime() as runtime:
            for name, handler in (("path", by_path), ("function", by_function)):
                kernel = await started(runtime, name, handler, state={"sum": 40})
                reply = await runtime.send_and_receive(name, amounts(2, 1), timeout=30)
                assert reply["value"].tolist() == [0, 1, 42, 0, 43]
                assert kernel.read_state().sum == 43
                with pytest.raises(KernelFailedError, match="negative"):
                    await runtime.send_and_receive(name, Amount(-1), timeout=30)

    @pytest.fixture
    def rust_library(self, tmp_path: Path) -> Path:
        """A `cdylib` on the crate that the handlers' ABI comes from."""
        if shutil.which("cargo") is None:
            pytest.skip("no cargo")
        crate = tmp_path / "handlers"
        (crate / "src").mkdir(parents=True)
        (crate / "Cargo.toml").write_text(
            '[package]\nname = "handlers"\nversion = "0.1.0"\nedition = "2024"\n'
            '[lib]\ncrate-type = ["cdylib"]\n'
            f'[dependencies]\ndotcompute-abi = {{ path = "{ABI}" }}\n[workspace]\n'
        )
        (crate / "src/lib.rs").write_text(RUST_HANDLER)
        subprocess.run(["cargo", "build", "--quiet", "--offline"], cwd=crate, check=True)
        return next((crate / "target/debug").glob("libhandlers.*[!d]"))

    async def test_a_function_of_a_rust_library_is_a_handler(self, rust_library: Path) -> None:
        handler = native_handler(
            (rust_library, "account"),
            input_type=Amount,
            output_type=Amount,
            state=Total,
            max_emit=1,
            targets={"audit": Note},
        )

        async def audit(ctx: Any) -> None:
            while True:
                (note,) = await ctx.receive()
                await ctx.send(Amount(note["value"] + note["code"]))

        async with RingKernelRuntime() as runtime:
            await started(runtime, "audit", audit)
            kernel = await started(runtime, "account", handler, state={"sum": 40})
            assert (await runtime.send_and_receive("account", Amount(2), timeout=30)).value == 42
            reply = await runtime.send_and_receive("account", amounts(1, 5), timeout=30)
            assert reply["value"].tolist() == [43, -5, 48]
            assert (await runtime.receive("audit", timeout=30)).value == 48 + 7
            state = kernel.read_state()
            assert (state.sum, state.count, state.last.tolist()) == (48, 3, [2, 1, 5, 0])
            with pytest.raises(KernelFailedError, match="overdrawn") as caught:
                await runtime.send_and_receive("account", amounts(1, -100), timeout=30)
            assert "record 1 of 2" in str(caught.value)
            assert "-9" in str(caught.value)

    def test_a_function_that_is_not_there_is_an_error(self, library: Path) -> None:
        with pytest.raises(AttributeError):
            native_handler((library, "nothing"), input_type=Amount)
        with pytest.raises(OSError, match=r"nowhere\.so"):
            native_handler(("./nowhere.so", "add"), input_type=Amount)


class TestPipelines:
    async def test_compiled_handlers_are_connected_with_each_other_and_with_actors(
        self, executor: str
    ) -> None:
        @ring_kernel(kernel_id="double", state=None, auto_register=False)
        def double(msg: Amount, state: None, out: Amount) -> int:
            out.value = 2 * msg.value
            return 1

        async def audited(ctx: Any) -> None:
            while True:
                got = await ctx.receive()
                await ctx.send(got[::-1].copy() if isinstance(got, np.ndarray) else got)

        async with RingKernelRuntime() as runtime:
            for name in ("first", "second", "last"):
                await started(runtime, name, double)
            await started(runtime, "actor", audited)
            runtime.connect("first", "second")
            runtime.connect("second", "actor")
            runtime.connect("actor", "last")
            reply = await runtime.send_and_receive("first", Amount(5), timeout=30)
            assert reply.value == 40
            reply = await runtime.send_and_receive("first", amounts(1, 2), timeout=30)
            assert reply["value"].tolist() == [16, 8]
            await runtime.send("first", amounts(3))
            assert (await runtime.receive("last", timeout=30))["value"].tolist() == [24]
