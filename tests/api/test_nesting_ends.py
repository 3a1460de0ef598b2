"""Nested runs that fail, are late, are cancelled, or outlive their unit."""

import asyncio
import math

import pytest

from quantum_async import (
    ExecutionError,
    PlanError,
    QuantumPartitioner,
    RunTimeoutError,
    UnitState,
)

COMPLETED, FAILED, SKIPPED = UnitState.COMPLETED, UnitState.FAILED, UnitState.SKIPPED
CANCELED, TIMEOUT = UnitState.CANCELED, UnitState.TIMEOUT


def made(**options):
    return QuantumPartitioner(**{"failure_policy": "collect", **options})


@pytest.fixture
def flow():
    return made()


@pytest.fixture
def inner():
    """Return a partitioner of two units: ``last`` is ten times the input ``n`` plus one."""
    flow = made(name="inner")

    @flow.unit
    async def first(n):
        return 10 * n

    @flow.unit
    async def last(first):
        return first + 1

    return flow


def hanging(cleaned):
    flow = made()

    @flow.unit
    async def hangs():
        try:
            await asyncio.sleep(3600)
        finally:
            await asyncio.sleep(0)
            cleaned.append("hangs")

    return flow


# -- failures --------------------


def failing(**options):
    flow = made(**options)

    @flow.unit
    async def bad():
        raise ValueError("bad")

    return flow


@pytest.mark.parametrize("policy", ["continue", "fail_fast"])
async def test_a_failure_of_an_included_partitioner_is_that_of_its_unit(flow, policy):
    part = flow.include(failing(failure_policy=policy), "part")

    @flow.unit
    async def after(part): ...

    with pytest.raises(ExecutionError, match="part") as caught:
        await flow.run(failure_policy="continue")
    result = caught.value.result
    assert result.states == {"part": FAILED, "after": SKIPPED}
    assert isinstance(result.errors[part.id], ExecutionError)
    assert isinstance(result.errors["part"].__cause__, ValueError)
    assert result.units["part/bad"].state is FAILED


async def test_a_partitioner_that_collects_failures_has_a_result(flow):
    flow.include(failing(), "part")
    result = await flow.run()
    assert result.ok
    assert not result["part"].ok
    assert isinstance(result["part"].errors["bad"], ValueError)


async def test_a_unit_may_catch_a_nested_failure_or_be_tried_again(flow):
    @flow.unit
    async def careful(ctx):
        try:
            await ctx.run(failing(), failure_policy="continue")
        except ExecutionError as error:
            return list(error.errors)

    @flow.unit(retries=1, fallback="fell back")
    async def again(ctx):
        await ctx.run(failing(), failure_policy="continue")

    async with asyncio.timeout(5):
        result = await flow.run()
    assert result["careful"] == ["bad"]
    assert result["again"] == "fell back"
    assert result.units["again/2/bad"].state is FAILED


# -- deadlines and cancellation --------------------


async def test_nested_units_see_the_nearest_deadline(flow, virtual_clock):
    inner = made()

    @inner.unit
    async def left(ctx):
        return ctx.remaining

    @inner.unit(timeout=2)
    async def less(ctx):
        return ctx.remaining

    @flow.unit(timeout=10)
    async def limited(ctx):
        await asyncio.sleep(1)
        return dict(await ctx.run(inner))

    @flow.unit
    async def unlimited(ctx):
        return dict(await ctx.run(inner))

    flow.include(inner, "part")
    result = await flow.run(timeout=60)
    assert result["limited"] == {"left": pytest.approx(9), "less": pytest.approx(2)}
    assert result["unlimited"]["left"] == pytest.approx(60, abs=2)
    assert result["part/left"] == pytest.approx(60, abs=2)
    assert (await flow.run())["part/left"] == math.inf


async def test_a_timeout_stops_what_runs_inside(flow, virtual_clock):
    cleaned = []

    @flow.unit(timeout=5)
    async def outer(ctx):
        await ctx.run(hanging(cleaned))

    result = await flow.run()
    assert result.states["outer"] is TIMEOUT
    assert result.units["outer/hangs"].state is CANCELED
    assert cleaned == ["hangs"]


async def test_the_time_limit_of_the_run_is_over_all(flow, virtual_clock):
    cleaned = []
    flow.include(hanging(cleaned), "part")
    with pytest.raises(RunTimeoutError) as caught:
        await flow.run(timeout=5)
    assert caught.value.result.states == {"part": CANCELED}
    assert caught.value.result.units["part/hangs"].state is CANCELED
    assert cleaned == ["hangs"]


async def test_a_nested_run_may_have_a_time_limit_of_its_own(flow, virtual_clock):
    cleaned = []

    @flow.unit
    async def outer(ctx):
        try:
            await ctx.run(hanging(cleaned), timeout=5)
        except RunTimeoutError:
            return "in time"

    assert (await flow.run())["outer"] == "in time"


async def test_fail_fast_stops_nested_runs(flow, virtual_clock):
    cleaned = []
    flow.include(hanging(cleaned), "part")

    @flow.unit
    async def bad():
        await asyncio.sleep(1)
        raise ValueError

    with pytest.raises(ExecutionError):
        await flow.run(failure_policy="fail_fast")
    assert flow.last_result.states == {"part": CANCELED, "bad": FAILED}
    assert cleaned == ["hangs"]


@pytest.mark.parametrize("steps", range(0, 40, 2))
async def test_cancelled_anywhere_nothing_is_left(flow, inner, steps):
    opened, closed = [], []
    wide = made()

    async def work(ctx):
        opened.append(ctx.run_id)
        try:
            for _ in range(3):
                await asyncio.sleep(0)
        finally:
            try:
                await asyncio.sleep(0)
            finally:
                closed.append(ctx.run_id)

    for number in range(4):
        wide.add_unit(work, [f"u{number - 1}"] if number else [], name=f"u{number}")
    flow.include(wide, "part")

    @flow.unit
    async def outer(ctx):
        await asyncio.gather(ctx.run(wide), ctx.run(wide), ctx.run(inner, {"n": 1}))

    task = asyncio.create_task(flow.run(max_workers=2))
    for _ in range(steps):
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert sorted(opened) == sorted(closed)
    if flow.last_result is not None:
        assert set(flow.last_result.states.values()) <= {COMPLETED, CANCELED}


# -- what outlives a unit --------------------


async def test_a_run_that_its_unit_left_behind_is_stopped_and_waited_for(flow, virtual_clock):
    cleaned, left = [], []

    @flow.unit
    async def leaves(ctx):
        left.append(asyncio.create_task(ctx.run(hanging(cleaned))))
        await asyncio.sleep(1)
        return "left"

    result = await flow.run()
    assert result["leaves"] == "left"
    assert cleaned == ["hangs"]
    assert result.units["leaves/hangs"].state is CANCELED
    with pytest.raises(asyncio.CancelledError):
        await left[0]


async def test_the_runs_beside_one_that_failed_are_stopped_with_their_unit(flow, virtual_clock):
    cleaned = []

    @flow.unit
    async def outer(ctx):
        bad = ctx.run(failing(failure_policy="continue"))
        await asyncio.gather(ctx.run(hanging(cleaned)), bad)

    result = await flow.run()
    assert result.states["outer"] is FAILED
    assert cleaned == ["hangs"]
    assert virtual_clock.time() < 1


async def test_a_unit_that_has_ended_cannot_run_anything(flow, inner):
    kept = []

    @flow.unit
    async def gives(ctx):
        kept.append(ctx)

    @flow.unit
    async def later(gives):
        with pytest.raises(
            RuntimeError, match=r"'gives' called ctx.run, and its attempt 1 has end"
        ):
            await kept[0].run(inner, {"n": 1})

    assert (await flow.run()).ok
    with pytest.raises(RuntimeError, match="its run has ended"):
        await kept[0].run(inner, {"n": 1})


async def test_only_partitioners_can_be_run(flow):
    @flow.unit
    async def outer(ctx):
        await ctx.run(print)

    with pytest.raises(PlanError, match=r"ctx.run\(\) takes a partitioner"):
        raise (await flow.run()).errors["outer"]
