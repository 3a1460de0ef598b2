"""Cancellation: everything that runs is stopped and waited for, whoever asks for it, and how."""

import asyncio
import threading

import anyio
import pytest

from quantum_async import QuantumPartitioner, UnitState

CANCELED, COMPLETED, FAILED = UnitState.CANCELED, UnitState.COMPLETED, UnitState.FAILED


class Flow:
    """A graph of units that hang, and what became of them."""

    def __init__(self):
        self.flow = QuantumPartitioner()
        self.cleaned = []
        self.started = asyncio.Event()
        for name, options in {
            "plain": {},
            "limited": {"timeout": 60},
            "slow_to_stop": {},
        }.items():
            self.flow.add_unit(self.hang, name=name, **options)
        self.flow.add_unit(self.hang, ["plain"], name="after")

    async def hang(self, ctx):
        if ctx.unit_id == "slow_to_stop":
            self.started.set()
        try:
            await asyncio.sleep(60)
        finally:
            if ctx.unit_id == "slow_to_stop":
                # Clean-up that awaits: allowed where the cancellation was native.
                await asyncio.sleep(0.02)
            self.cleaned.append(ctx.unit_id)

    def check(self):
        result = self.flow.last_result
        assert set(result.states.values()) == {CANCELED}
        assert sorted(self.cleaned) == ["limited", "plain", "slow_to_stop"]
        assert {r.cause for r in result.units.values()} == {"the caller was cancelled"}
        assert not [t for t in asyncio.all_tasks() if result.run_id in t.get_name()]


async def test_native_cancellation_stops_everything_and_waits_for_clean_up():
    case = Flow()
    task = asyncio.create_task(case.flow.run())
    await case.started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert task.cancelled()
    case.check()


async def test_an_anyio_scope_stops_everything_and_waits_for_clean_up():
    case = Flow()
    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as group:

            @group.start_soon
            async def cancel():
                await case.started.wait()
                scope.cancel()

            await case.flow.run()
    assert scope.cancelled_caught
    case.check()


async def test_asyncio_timeout_stops_everything():
    case = Flow()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await case.flow.run()
    case.check()


async def test_cancelling_again_and_again_changes_nothing():
    case = Flow()
    task = asyncio.create_task(case.flow.run())
    await case.started.wait()
    for _ in range(5):
        task.cancel()
        await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError):
        await task
    case.check()


async def test_a_run_that_is_cancelled_before_it_begins_runs_nothing():
    flow = QuantumPartitioner()
    flow.add_unit(lambda ctx: pytest.fail("ran"), name="never")
    task = asyncio.create_task(flow.run())
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_cancellation_waits_for_threads():
    flow = QuantumPartitioner()
    gate, returned = threading.Event(), []

    def blocks(ctx):
        gate.wait(5)
        returned.append(True)

    flow.add_unit(blocks, name="blocks")
    task = asyncio.create_task(flow.run())
    await asyncio.sleep(0.05)
    task.cancel()
    await asyncio.sleep(0.05)
    assert not task.done()
    gate.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert returned
    assert flow.last_result.states["blocks"] is CANCELED


async def test_a_unit_that_raises_cancelled_error_by_itself_failed():
    flow = QuantumPartitioner(failure_policy="collect")

    async def plain(ctx):
        raise asyncio.CancelledError

    async def awaits_cancelled(ctx):
        future = asyncio.get_running_loop().create_future()
        future.cancel()
        await future

    flow.add_unit(plain, name="plain")
    flow.add_unit(plain, name="limited", timeout=60)
    flow.add_unit(awaits_cancelled, name="awaits")
    flow.add_unit(lambda ctx: asyncio.sleep(0.01, "fine"), name="sibling")
    result = await flow.run()
    assert {n: s for n, s in result.states.items() if n != "sibling"} == dict.fromkeys(
        ("plain", "limited", "awaits"), FAILED
    )
    assert result["sibling"] == "fine"


@pytest.mark.parametrize("timeout", [None, 60])
async def test_a_unit_that_is_cancelled_from_outside_is_canceled(timeout):
    flow = QuantumPartitioner(failure_policy="collect")
    tasks = []

    async def unit(ctx):
        tasks.append(asyncio.current_task())
        await asyncio.sleep(60)

    flow.add_unit(unit, name="unit", timeout=timeout)
    flow.add_unit(unit, ["unit"], name="after")
    asyncio.get_running_loop().call_later(0.02, lambda: tasks[0].cancel())
    result = await flow.run()
    assert result.states == {"unit": CANCELED, "after": UnitState.SKIPPED}
    assert "outside" in result.units["unit"].cause
    assert result.units["after"].cause == "'unit' was canceled"


async def test_a_unit_that_is_cancelled_from_outside_makes_the_run_fail():
    flow = QuantumPartitioner()

    async def unit(ctx):
        asyncio.current_task().cancel()
        await asyncio.sleep(60)

    flow.add_unit(unit, name="unit")
    with pytest.raises(Exception, match="unit") as caught:
        await flow.run()
    assert type(caught.value).__name__ == "ExecutionError"


async def test_a_result_given_while_cancelled_is_kept():
    flow = QuantumPartitioner()
    started = asyncio.Event()

    async def stubborn(ctx):
        started.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            return "all the same"

    flow.add_unit(stubborn, name="stubborn")
    task = asyncio.create_task(flow.run())
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert flow.get_partial_results() == {"stubborn": "all the same"}


async def test_an_error_in_clean_up_never_goes_over_the_cancellation(caplog):
    flow = QuantumPartitioner()
    started = asyncio.Event()

    async def messy(ctx):
        started.set()
        try:
            await asyncio.sleep(60)
        finally:
            raise RuntimeError("in clean-up")

    for name, timeout in (("plain", None), ("limited", 60)):
        flow.add_unit(messy, name=name, timeout=timeout)
    task = asyncio.create_task(flow.run())
    await started.wait()
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    result = flow.last_result
    assert set(result.states.values()) == {CANCELED}
    assert isinstance(result.units["plain"].error, RuntimeError)
    assert "'limited' raised while it was cancelled" in caplog.text


async def test_keyboard_interrupt_in_a_unit_ends_the_run_and_propagates():
    flow = QuantumPartitioner()
    cleaned = []

    async def hang(ctx):
        try:
            await asyncio.sleep(60)
        finally:
            cleaned.append(True)

    async def interrupt(ctx):
        await asyncio.sleep(0.01)
        raise KeyboardInterrupt

    flow.add_unit(hang, name="hang")
    flow.add_unit(interrupt, name="interrupt", retries=3)
    with pytest.raises(KeyboardInterrupt):
        await flow.run()
    assert cleaned == [True]
    assert flow.last_result.states == {"hang": CANCELED, "interrupt": FAILED}


@pytest.mark.parametrize("error", [SystemExit, GeneratorExit, BaseException])
@pytest.mark.parametrize("suspends", [False, True])
async def test_any_other_base_exception_is_that_units_failure(error, suspends):
    flow = QuantumPartitioner(failure_policy="collect")

    async def bad(ctx):
        if suspends:
            await asyncio.sleep(0)
        raise error("x")

    flow.add_unit(bad, name="bad")
    flow.add_unit(bad, name="limited", timeout=60)
    flow.add_unit(lambda ctx: 1, name="good")
    result = await flow.run()
    assert result.states == {"bad": FAILED, "limited": FAILED, "good": COMPLETED}


async def test_shields_hold_where_a_scope_cancels():
    flow = QuantumPartitioner()
    started, finished = asyncio.Event(), []

    async def shielded(ctx):
        started.set()
        with anyio.CancelScope(shield=True):
            await asyncio.sleep(0.05)
            finished.append(True)
        await asyncio.sleep(60)

    flow.add_unit(shielded, name="shielded", timeout=60)
    task = asyncio.create_task(flow.run())
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert finished


async def test_a_backing_off_unit_is_cancelled_at_once():
    flow = QuantumPartitioner()

    async def bad(ctx):
        raise OSError

    import tenacity

    from quantum_async import RetryPolicy

    flow.add_unit(bad, name="bad", retry=RetryPolicy(wait=tenacity.wait_fixed(60)))
    task = asyncio.create_task(flow.run())
    await asyncio.sleep(0.02)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, 1)
    assert flow.last_result.states["bad"] is CANCELED
    assert isinstance(flow.last_result.units["bad"].error, OSError)


def test_the_loop_can_be_closed_under_a_run():
    flow = QuantumPartitioner()
    cleaned = []

    async def hang(ctx):
        try:
            await asyncio.sleep(60)
        finally:
            cleaned.append(ctx.unit_id)

    flow.add_unit(hang, name="a")
    flow.add_unit(hang, name="b", timeout=60)

    async def main():
        main.task = asyncio.create_task(flow.run())
        await asyncio.sleep(0.01)

    asyncio.run(main())
    assert sorted(cleaned) == ["a", "b"]
    assert set(flow.last_result.states.values()) == {CANCELED}


@pytest.mark.parametrize("turn", range(12))
async def test_a_run_can_be_cancelled_in_every_turn_of_the_loop(turn):
    flow = QuantumPartitioner()

    async def unit(ctx):
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    flow.add_unit(unit, name="a")
    flow.add_unit(unit, ["a"], name="b", timeout=5)
    flow.add_unit(unit, ["b"], name="c")
    task = asyncio.create_task(flow.run(run_id="everywhere"))
    for _ in range(turn):
        await asyncio.sleep(0)
    done_before = task.done()
    task.cancel()
    try:
        await task
    except asyncio.CancelledError:
        assert not done_before
    if flow.last_result is not None:
        assert all(s in (COMPLETED, CANCELED) for s in flow.last_result.states.values())
    assert not [t for t in asyncio.all_tasks() if "everywhere" in t.get_name()]
