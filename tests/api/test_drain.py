"""How a `Runtime` ends, and that what its runs had comes back however they end."""

import asyncio
import threading

import pytest

from quantum_async import (
    ExecutionError,
    Overloaded,
    PlanError,
    QuantumPartitioner,
    Runtime,
    UnitState,
)
from quantum_async.testing import assert_run

COMPLETED, CANCELED = UnitState.COMPLETED, UnitState.CANCELED


def after(seconds, value=None):
    async def waits(ctx):
        await asyncio.sleep(seconds)
        return value

    return waits


def chain(*seconds):
    flow = QuantumPartitioner(failure_policy="collect")
    for number, takes in enumerate(seconds):
        flow.add_unit(after(takes), [f"u{number - 1}"] if number else [], name=f"u{number}")
    return flow


# -- drain -------------------------------------------------------------------------------------


async def test_drain_lets_running_units_end_and_starts_no_more(virtual_clock):
    async with Runtime() as runtime:
        run = asyncio.create_task(chain(3, 1, 1).run())
        await asyncio.sleep(1)
        await runtime.drain(grace=10)
        assert virtual_clock.time() == pytest.approx(3, abs=0.01)
        result = await run
    assert list(result.states.values()) == [COMPLETED, CANCELED, CANCELED]
    assert result.units["u1"].cause == "the runtime was drained"
    assert "drained" in result.explain()
    assert not result.ok


async def test_after_the_grace_what_is_left_is_cancelled(virtual_clock):
    async with Runtime() as runtime:
        run = asyncio.create_task(chain(99, 1).run())
        await asyncio.sleep(1)
        await runtime.drain(grace=5)
        assert virtual_clock.time() == pytest.approx(6, abs=0.01)
    result = await run
    assert set(result.states.values()) == {CANCELED}
    assert result.units["u0"].cause == "the runtime was drained, and its grace was over"
    assert result.units["u1"].cause.startswith("the runtime was drained")


async def test_a_drained_run_says_so_in_its_error_too(virtual_clock):
    flow = chain(3, 1)
    async with Runtime() as runtime:
        run = asyncio.create_task(flow.run(failure_policy="continue"))
        await asyncio.sleep(1)
        await runtime.drain()
        with pytest.raises(ExecutionError, match="the runtime was drained") as failure:
            await run
    assert failure.value.result.states == {"u0": COMPLETED, "u1": CANCELED}
    assert failure.value.errors == {}


async def test_a_run_that_had_nothing_left_to_start_is_ok(virtual_clock):
    async with Runtime() as runtime:
        run = asyncio.create_task(chain(3).run())
        await asyncio.sleep(1)
        await runtime.drain()
        assert (await run).ok


async def test_drain_refuses_new_runs_and_those_that_wait(virtual_clock):
    async with Runtime(max_runs=1, queue=5) as runtime:
        running = asyncio.create_task(chain(2).run())
        waits = asyncio.create_task(chain(1).run())
        await asyncio.sleep(1)
        draining = asyncio.create_task(runtime.drain())
        await asyncio.sleep(0)
        with pytest.raises(Overloaded, match="drained: it takes no runs any more"):
            await chain(1).run()
        with pytest.raises(Overloaded, match="before this run had its turn"):
            await waits
        await draining
        assert (await running).ok
        with pytest.raises(Overloaded):
            await chain(1).run()


async def test_units_that_back_off_or_wait_for_limits_are_cancelled_at_once(virtual_clock):
    flow = QuantumPartitioner(failure_policy="collect", max_workers=2)

    @flow.unit(retries=5)
    async def flaky():
        raise ValueError

    flow.add_unit(after(5), name="holds", uses="gpu", priority=1)
    flow.add_unit(after(5), name="waits", uses="gpu")
    flow.map(lambda item: after(1)(None), range(50), name="many")
    async with Runtime(limits={"gpu": 1}) as runtime:
        run = asyncio.create_task(flow.run())
        await asyncio.sleep(0.05)
        await runtime.drain()
    result = await run
    assert_run(result).canceled("flaky", "waits", "many").completed("holds")
    assert virtual_clock.time() == pytest.approx(5, abs=0.01)


async def test_leaving_the_block_waits_for_runs_of_other_tasks(virtual_clock):
    async with Runtime():
        run = asyncio.create_task(chain(3, 3).run())
        await asyncio.sleep(1)
    assert virtual_clock.time() == pytest.approx(6, abs=0.01)
    assert (await run).ok


async def test_an_error_in_the_block_stops_them(virtual_clock):
    runs = []

    async def serves():
        async with Runtime():
            runs.append(asyncio.create_task(chain(3, 3).run()))
            await asyncio.sleep(1)
            raise ValueError("in the block")

    with pytest.raises(ValueError, match="in the block"):
        await serves()
    assert virtual_clock.time() == pytest.approx(1, abs=0.01)
    assert set((await runs[0]).states.values()) == {CANCELED}


async def test_a_drain_that_is_cancelled_stops_what_runs(virtual_clock):
    async with Runtime() as runtime:
        run = asyncio.create_task(chain(99).run())
        await asyncio.sleep(1)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(2):
                await runtime.drain(grace=50)
        assert (await run).states["u0"] is CANCELED
    assert virtual_clock.time() == pytest.approx(3, abs=0.01)


async def test_draining_twice_or_with_nothing_to_drain(virtual_clock):
    async with Runtime() as runtime:
        await runtime.drain()
        await runtime.drain(grace=0)
    async with Runtime() as runtime:
        run = asyncio.create_task(chain(5).run())
        await asyncio.sleep(1)
        await asyncio.gather(runtime.drain(grace=99), runtime.drain(grace=1))
        assert (await run).states["u0"] is CANCELED
    assert virtual_clock.time() == pytest.approx(2, abs=0.01)


@pytest.mark.parametrize("grace", [-1, float("nan"), "long"])
async def test_a_grace_must_be_seconds(grace):
    async with Runtime() as runtime:
        with pytest.raises(PlanError, match="grace"):
            await runtime.drain(grace=grace)
        assert (await chain(0).run()).ok  # it was not drained


async def test_drain_starts_no_units_of_nested_runs(virtual_clock):
    inner = chain(3, 1, 1)
    flow = QuantumPartitioner(failure_policy="collect")
    flow.include(inner, "whole")

    @flow.unit
    async def calls(ctx):
        return await ctx.run(inner)

    async with Runtime() as runtime:
        run = asyncio.create_task(flow.run())
        await asyncio.sleep(1)
        await runtime.drain()
        assert virtual_clock.time() == pytest.approx(3, abs=0.01)
    result = await run
    for outer in ("whole", "calls"):
        assert result.units[f"{outer}/u0"].state is COMPLETED
        assert result.units[f"{outer}/u1"].cause == "the runtime was drained"
        assert result.units[outer].state is CANCELED
        assert result.units[outer].cause == "the runtime was drained"


async def test_a_nested_run_that_had_all_started_ends_well_while_drained(virtual_clock):
    flow = QuantumPartitioner(failure_policy="collect")
    flow.include(chain(3), "whole")
    flow.add_unit(after(0), ["whole"], name="below")
    async with Runtime() as runtime:
        run = asyncio.create_task(flow.run())
        await asyncio.sleep(1)
        await runtime.drain()
    assert (await run).states == {"whole": COMPLETED, "below": CANCELED}


# -- what runs had comes back ------------------------------------------------------------------


@pytest.mark.parametrize("moment", [0.0, 0.5, 1.0, 1.5, 2.5])
async def test_slots_and_tokens_come_back_from_runs_that_are_cancelled(virtual_clock, moment):
    flow = QuantumPartitioner(failure_policy="collect")

    async def cleans_up(ctx):
        try:
            await asyncio.sleep(1)
        finally:
            await asyncio.sleep(1)

    for number in range(5):
        flow.add_unit(cleans_up, name=f"u{number}", uses="gpu")
    async with Runtime(max_workers=2, limits={"gpu": 2}) as runtime:
        runs = [asyncio.create_task(flow.run()) for _ in range(3)]
        await asyncio.sleep(moment)
        for run in runs:
            run.cancel()
        await asyncio.wait(runs)
        assert runtime.slots.total.used == 0
        assert runtime._budget.idle
        other = QuantumPartitioner()
        for number in range(2):
            other.add_unit(after(1), name=f"v{number}", uses="gpu")
        began = virtual_clock.time()
        assert (await other.run()).ok
        assert virtual_clock.time() == pytest.approx(began + 1, abs=0.01)


async def test_the_slot_of_a_late_thread_comes_back_when_it_returns():
    release, seen = threading.Event(), []
    late, other = QuantumPartitioner(failure_policy="collect"), QuantumPartitioner()
    late.add_unit(lambda ctx: release.wait(10), name="late", timeout=0.01, uses="gpu")

    @other.unit(uses="gpu")
    def works():
        seen.append(release.is_set())

    async with Runtime(threads=1, limits={"gpu": 1}):
        await late.run()
        run = asyncio.create_task(other.run())
        await asyncio.sleep(0)
        release.set()
        await run
    assert seen == [True]
