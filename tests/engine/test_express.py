"""The short way of a run: nobody can tell it from the long one, but by the clock."""

import asyncio
import contextvars

import pytest
from tenacity import stop_after_attempt, wait_none

from quantum_async import (
    ExecutionError,
    QuantumPartitioner,
    RetryPolicy,
    UnitState,
    UnitTimeoutError,
)
from quantum_async.core.scheduler import Scheduler
from quantum_async.engine import attempts, engine, express

pytestmark = pytest.mark.skipif(not attempts.EAGER, reason="tasks are never eager there")

COMPLETED, FAILED, SKIPPED = UnitState.COMPLETED, UnitState.FAILED, UnitState.SKIPPED


@pytest.fixture
def slices(monkeypatch):
    """Count the slices that went the short way."""
    seen = []
    run_until = express.Express.run_until

    def counted(self, slice_end):
        seen.append(slice_end)
        return run_until(self, slice_end)

    monkeypatch.setattr(express.Express, "run_until", counted)
    return seen


@pytest.fixture
def flow():
    return QuantumPartitioner()


async def one(ctx):
    return 1


async def above(ctx):
    return 1 + sum(ctx.unit_results.values())


async def test_units_that_end_at_once_and_units_that_go_on_are_mixed(flow, slices):
    async def waits(ctx):
        await asyncio.sleep(0)
        return 10 + sum(ctx.unit_results.values())

    flow.add_unit(one, name="a")
    flow.add_unit(waits, ["a"], "b")
    flow.add_unit(above, ["a", "b"], "c")
    flow.add_unit(waits, name="d")
    flow.add_unit(above, ["c", "d"], "e")
    result = await flow.run()
    assert dict(result) == {"a": 1, "b": 11, "c": 13, "d": 10, "e": 24}
    assert slices
    records = result.units.values()
    assert all(r.attempts == 1 and r.started_at <= r.ended_at for r in records)


async def test_arguments_are_bound_and_errors_of_that_are_the_units(flow, slices):
    async def takes(first, second=0, *, third=0):
        return first + second + third

    flow.add_unit(one, name="a")
    b = flow.add_unit(takes, name="b", args=[flow.units["a"], 2], kwargs={"third": 3})
    flow.add_unit(takes, name="c", kwargs={"first": [b, 4]})
    result = await flow.run(failure_policy="collect")
    assert result.states == {"a": COMPLETED, "b": COMPLETED, "c": FAILED}
    assert result["b"] == 6
    assert isinstance(result.units["c"].error, TypeError)
    assert slices


@pytest.mark.parametrize("policy", ["collect", "fail_fast"])
async def test_a_unit_that_fails_at_once_is_booked_once(flow, slices, policy):
    async def fails(ctx):
        raise ValueError(ctx.unit_id)

    flow.add_unit(fails, name="bad")
    flow.add_unit(one, ["bad"], "below")
    flow.add_unit(one, name="other")
    try:
        result = await flow.run(failure_policy=policy)
    except ExecutionError as error:
        result = error.result
    assert slices
    assert result.states["bad"] == FAILED
    assert result.states["below"] in (SKIPPED, UnitState.CANCELED)
    assert result.units["bad"].error.args == ("bad",)


async def test_units_with_options_go_the_long_way_in_the_same_run(flow, slices):
    tries = []

    async def flaky(ctx):
        tries.append(ctx.attempt)
        if len(tries) < 3:
            raise ValueError
        return "at last"

    async def late(ctx):
        await asyncio.sleep(3600)

    flow.add_unit(one, name="a")
    flow.add_unit(
        flaky, ["a"], "flaky", retry=RetryPolicy(stop=stop_after_attempt(3), wait=wait_none())
    )
    flow.add_unit(late, ["a"], "late", timeout=0.01)
    flow.add_unit(late, ["a"], "spared", timeout=0.01, fallback=5)
    flow.add_unit(one, ["flaky", "spared"], "last")
    result = await flow.run(failure_policy="collect")
    assert tries == [1, 2, 3]
    assert isinstance(result.units["late"].error, UnitTimeoutError)
    assert result["spared"] == 5
    assert result["last"] == 1
    assert slices


async def test_each_unit_has_context_variables_and_a_task_of_its_own(flow, slices):
    var = contextvars.ContextVar("var", default="unset")
    var.set("callers")
    tasks = []

    async def sets(ctx):
        seen = var.get()
        var.set(ctx.unit_id)
        tasks.append(asyncio.current_task())
        return seen, asyncio.current_task().get_name()

    for name in "abc":
        flow.add_unit(sets, name=name)
    result = await flow.run(run_id="r")
    assert dict(result) == {name: ("callers", f"r/{name}#1") for name in "abc"}
    assert len(set(tasks)) == 3
    assert slices


async def test_no_more_slots_are_used_than_there_are(slices):
    flow, running, most = QuantumPartitioner(max_workers=3), set(), []

    async def unit(ctx):
        running.add(ctx.unit_id)
        most.append(len(running))
        await asyncio.sleep(0)
        running.discard(ctx.unit_id)

    for _ in range(20):
        flow.add_unit(unit)
        flow.add_unit(one)
    result = await flow.run()
    assert max(most) == 3
    assert set(result.states.values()) == {COMPLETED}
    assert slices


async def test_a_slice_that_is_over_lets_the_loop_turn(flow, slices, monkeypatch):
    monkeypatch.setattr(engine, "_SLICE", 0.0)  # over after each unit
    turns = 0

    async def turning():
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    for number in range(5):
        flow.add_unit(above, [f"unit_{number - 1}"] if number else [])
    other = asyncio.create_task(turning())
    result = await flow.run()
    other.cancel()
    assert list(result.values()) == [1, 2, 3, 4, 5]
    assert turns >= 5


async def test_a_run_that_a_unit_left_behind_ends_with_the_unit(flow, slices):
    """Started by an eager task of the unit's, which then ends at once itself."""
    inner, seen = QuantumPartitioner(), []

    async def waits(ctx):
        try:
            await asyncio.sleep(3600)
        finally:
            seen.append("ended")

    inner.add_unit(waits)

    async def leaves(ctx):
        task = asyncio.Task(ctx.run(inner), loop=asyncio.get_running_loop(), eager_start=True)
        seen.append(task)
        return "left"

    flow.add_unit(leaves, name="leaves")
    flow.add_unit(one, ["leaves"], "one")
    async with asyncio.timeout(5):
        assert dict(await flow.run()) == {"leaves": "left", "one": 1}
    await asyncio.wait([seen[0]])
    assert slices


async def test_cancelled_half_way_it_ends_all_that_goes_on(flow, slices):
    ended = []

    async def waits(ctx):
        try:
            await asyncio.sleep(3600)
        finally:
            ended.append(ctx.unit_id)

    flow.add_unit(one, name="a")
    flow.add_unit(waits, ["a"], "b")
    flow.add_unit(waits, ["a"], "c")
    flow.add_unit(one, ["b", "c"], "d")
    run = asyncio.create_task(flow.run())
    while len(slices) < 1:
        await asyncio.sleep(0)
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    assert sorted(ended) == ["b", "c"]
    assert flow.last_result.states["d"] == UnitState.CANCELED


async def test_a_unit_that_cancels_its_own_task_as_it_returns_has_its_result(flow, slices):
    async def returns(ctx):
        asyncio.current_task().cancel()
        return "done"

    flow.add_unit(returns, name="a")
    flow.add_unit(one, ["a"], "b")
    assert dict(await flow.run()) == {"a": "done", "b": 1}


async def test_a_bug_of_ours_ends_the_run_and_is_raised(flow, monkeypatch):
    class BugError(Exception):
        pass

    def buggy(self, *args, **options):
        raise BugError

    async def waits(ctx):
        await asyncio.sleep(0)

    flow.add_unit(waits)
    flow.add_unit(one)
    monkeypatch.setattr(Scheduler, "complete", buggy)
    with pytest.raises(BugError):
        await flow.run()


async def test_what_is_told_of_a_unit_is_what_its_record_says(flow, slices):
    var, log = contextvars.ContextVar("var"), []

    async def waits(ctx):
        var.set(ctx.unit_id)
        await asyncio.sleep(0)
        return 2

    async def fails(ctx):
        var.set(ctx.unit_id)
        raise ValueError

    def observer(event):
        log.append((type(event).__name__, getattr(event, "unit", None), event.time, var.get(None)))

    flow.add_unit(one, name="a")
    flow.add_unit(waits, ["a"], "b")
    flow.add_unit(fails, ["b"], "c")
    result = await flow.run(failure_policy="collect", observers=[observer])
    told = [(kind, unit) for kind, unit, *_ in log]
    assert told == [
        ("RunStarted", None),
        ("UnitReady", "a"), ("UnitStarted", "a"), ("UnitCompleted", "a"),
        ("UnitReady", "b"), ("UnitStarted", "b"), ("UnitCompleted", "b"),
        ("UnitReady", "c"), ("UnitStarted", "c"), ("UnitFailed", "c"),
        ("RunFinished", None),
    ]  # fmt: skip
    inside = {(kind, unit): var for kind, unit, _, var in log}
    assert inside["UnitCompleted", "b"] == "b"
    assert inside["UnitStarted", "c"] is None
    assert inside["UnitFailed", "c"] == "c"
    ends = {unit: time for kind, unit, time, _ in log if kind in ("UnitCompleted", "UnitFailed")}
    first = result.units["a"].started_at - log[2][2]
    for unit, record in result.units.items():
        assert record.ended_at - first == pytest.approx(ends[unit])
    assert slices


@pytest.mark.parametrize(
    "options",
    [
        {"keep": "targets", "targets": ["a"]},
        {"mode": "sequential"},
    ],
    ids=lambda options: next(iter(options)),
)
async def test_what_asks_for_more_goes_the_long_way(flow, slices, options):
    flow.add_unit(lambda ctx: 1) if "mode" in options else None
    flow.add_unit(one, name="a")
    assert (await flow.run(**options))["a"] == 1
    assert not slices


async def test_a_source_of_items_and_its_reader_go_the_long_way(flow, slices):
    @flow.unit
    async def source():
        for number in range(3):
            yield number

    async def reads(ctx):
        return [item async for item in ctx.stream("source")]

    flow.add_unit(reads, ["source"], "reads")
    assert (await flow.run())["reads"] == [0, 1, 2]
    assert not slices
