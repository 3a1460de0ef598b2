"""Limits of what is scarce: runs on virtual time, held against the limits by their events."""

import asyncio
import threading
from concurrent.futures import Executor, Future

import pytest
import tenacity

from quantum_async import (
    ExecutionError,
    Limit,
    PlanError,
    QuantumPartitioner,
    RetryPolicy,
    RunTimeoutError,
    UnitState,
)
from quantum_async.core import events
from quantum_async.testing import assert_run
from tests.support.scarce import passed

FAILED, CANCELED = UnitState.FAILED, UnitState.CANCELED
LATER = RetryPolicy(stop=tenacity.stop_after_attempt(2), wait=tenacity.wait_fixed(10))


def after(seconds, value=None):
    async def waits(ctx):
        await asyncio.sleep(seconds)
        return value

    return waits


def flow_with(**limits):
    return QuantumPartitioner(failure_policy="collect", limits=limits)


async def ran(flow, *args, uses=None, **options):
    """Run, and hold the events against the limits."""
    log = []
    result = await flow.run(*args, observers=[log.append], **options)
    declared = {
        name: dict(unit.options.uses)
        for name, unit in flow.units.items()
        if not callable(unit.options.uses)
    }
    assert passed(log, flow.limits, declared | (uses or {})) == []
    return result


def starts(result):
    """Return when units started, in seconds since the run began, rounded to milliseconds."""
    began = result.metrics["start_time"]
    return {
        record.name: round(record.started_at - began, 3)
        for record in result.units.values()
        if record.started_at is not None
    }


# -- concurrency and rates ---------------------------------------------------------------------


@pytest.mark.parametrize("limit", [3, Limit(concurrency=3)])
async def test_no_more_run_at_once_than_the_limit_has(virtual_clock, limit):
    flow = flow_with(gpu=limit)
    for number in range(9):
        flow.add_unit(after(1), name=f"u{number}", uses="gpu")
    result = await ran(flow)
    assert_run(result).ok().max_running(3)
    assert virtual_clock.time() == pytest.approx(3, abs=0.01)


async def test_a_rate_holds_and_a_burst_spaces_evenly(virtual_clock):
    flow = flow_with(api=Limit(rate=6, per=60, burst=2))
    for number in range(5):
        flow.add_unit(after(0), name=f"u{number}", uses="api")
    assert list(starts(await ran(flow)).values()) == pytest.approx([0, 0, 10, 20, 30], abs=0.01)


async def test_a_rate_goes_on_from_run_to_run_and_is_shared_by_runs_at_once(virtual_clock):
    flow = flow_with(api=Limit(rate=2, per=60))
    flow.add_unit(after(0), name="u", uses="api")
    ends = []

    async def timed():
        await flow.run()
        ends.append(round(virtual_clock.time(), 2))

    await asyncio.gather(*(timed() for _ in range(3)))
    await timed()
    await timed()
    assert ends == pytest.approx([0, 0, 60, 60, 120], abs=0.02)


async def test_tokens_may_be_several_and_of_several_limits(virtual_clock):
    flow = flow_with(gpu=2, memory=10)
    flow.add_unit(after(1), name="big", uses={"gpu": 2, "memory": 1}, priority=3)
    flow.add_unit(after(1), name="wide", uses={"gpu": 1, "memory": 9}, priority=2)
    flow.add_unit(after(1), name="small", uses={"memory": 9}, priority=1)
    result = await ran(flow)
    # While `wide` waits for a GPU it holds no memory.
    assert starts(result) == {"big": 0, "wide": 1, "small": 0}


async def test_a_unit_that_waits_for_a_limit_blocks_none_that_does_not(virtual_clock):
    flow = QuantumPartitioner(max_workers=1, limits={"api": Limit(rate=1, per=60)})
    flow.add_unit(after(1), name="first", uses="api", priority=9)
    flow.add_unit(after(1), name="second", uses="api", priority=8)
    flow.add_unit(after(1), name="free")
    flow.add_unit(after(1), ["free"], name="below")
    result = await ran(flow)
    assert starts(result) == {"first": 0, "second": 60, "free": 1, "below": 2}


async def test_a_unit_that_backs_off_gives_its_tokens_back(virtual_clock):
    flow = flow_with(gpu=1)

    @flow.unit(uses="gpu", retry=LATER, priority=1)
    async def flaky(ctx):
        if ctx.attempt == 1:
            raise ValueError

    flow.add_unit(after(5), name="other", uses="gpu")
    result = await ran(flow)
    assert_run(result).ok().attempts("flaky", 2)
    assert starts(result)["other"] == 0
    assert virtual_clock.time() == pytest.approx(10, abs=0.01)


async def test_failures_and_timeouts_give_tokens_back(virtual_clock):
    flow = flow_with(gpu=1)

    async def fails(ctx):
        raise ValueError

    flow.add_unit(fails, name="fails", uses="gpu", priority=3)
    flow.add_unit(after(99), name="late", uses="gpu", timeout=2, priority=2)
    flow.add_unit(after(0), name="last", uses="gpu")
    assert starts(await ran(flow)) == {"fails": 0, "late": 0, "last": 2}


async def test_a_big_request_is_not_starved(virtual_clock):
    flow = flow_with(gpu=4)
    flow.add_unit(after(3.5), name="first", uses="gpu", priority=9)
    flow.add_unit(after(1), name="big", uses={"gpu": 4}, priority=8)
    for number in range(40):
        flow.add_unit(after(1 + number % 3), name=f"small{number}", uses="gpu")
    result = await ran(flow)
    assert result.ok
    assert starts(result)["big"] < virtual_clock.time() / 2


async def test_a_thread_that_cannot_be_stopped_keeps_its_tokens():
    flow, release, seen = flow_with(gpu=1), threading.Event(), []
    flow.add_unit(lambda ctx: release.wait(10), name="late", uses="gpu", timeout=0.2, priority=1)

    @flow.unit(uses="gpu")
    async def other():
        seen.append(release.is_set())

    @flow.unit(trigger="all_done", after=["late"])
    async def lets_go():
        release.set()

    await flow.run()
    assert seen == [True]


# -- what a unit uses --------------------------------------------------------------------------


async def test_a_unit_may_compute_what_it_uses(virtual_clock):
    flow = flow_with(tokens=Limit(rate=100, per=60))

    @flow.unit
    async def prompt(text):
        return text * 10

    for name in ("a", "b", "c"):
        flow.add_unit(
            after(0),
            ["prompt"],
            name=name,
            uses=lambda ctx: {"tokens": len(ctx["prompt"]) if ctx.unit_id != "c" else 0},
        )
    used = {name: {"tokens": 60} for name in "ab"}
    assert starts(await ran(flow, {"text": "x" * 6}, uses=used)) == {
        "prompt": 0, "a": 0, "b": 60, "c": 0,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("uses", "words"),
    [
        (lambda ctx: {"tokens": 101}, "unit 'a' needs 101 of 'tokens', and the limit has 100"),
        (lambda ctx: {"token": 1}, "did you mean 'tokens'"),
        (lambda ctx: {"tokens": -1}, "unit 'a'"),
        (lambda ctx: None, "unit 'a': uses must be"),
        (lambda ctx: ctx["nothing"], "'nothing'"),
    ],
)
async def test_what_it_computes_is_checked_and_fails_it_alone(uses, words):
    flow = flow_with(tokens=100)
    flow.add_unit(after(0), name="a", uses=uses)
    flow.add_unit(after(0, 1), name="beside", uses={"tokens": 100})
    result = await ran(flow)
    assert result.states["a"] is FAILED
    assert words in str(result.errors["a"])
    assert result["beside"] == 1


async def test_each_child_of_a_map_uses_what_the_map_says(virtual_clock):
    flow = flow_with(api=2)
    flow.map(lambda item: after(1, item)(None), range(6), name="calls", uses="api")
    result = await ran(flow)
    assert result["calls"] == list(range(6))
    assert virtual_clock.time() == pytest.approx(3, abs=0.01)


async def test_each_child_may_compute_what_it_uses(virtual_clock):
    flow, seen = flow_with(memory=10), []

    async def call(item):
        seen.append((item, virtual_clock.time()))
        await asyncio.sleep(1)

    flow.map(call, [6, 5, 4], name="calls", uses=lambda ctx: {"memory": ctx.item})
    assert (await flow.run()).ok
    assert seen == [(6, 0), (4, 0), (5, pytest.approx(1, abs=0.01))]


async def test_other_units_have_no_item():
    flow = flow_with(memory=10)
    flow.add_unit(after(0), name="a", uses=lambda ctx: {"memory": ctx.item})
    assert "unit 'a' has no ctx.item" in str((await flow.run()).errors["a"])


async def test_a_unit_that_waits_for_a_nested_run_holds_no_tokens(virtual_clock):
    flow, inner = flow_with(gpu=1), QuantumPartitioner()
    inner.add_unit(after(1, "inner"), name="child", uses="gpu")

    @flow.unit(uses="gpu")
    async def outer(ctx):
        return (await ctx.run(inner))["child"]

    assert (await flow.run())["outer"] == "inner"


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["thread", "process"])
async def test_limits_hold_wherever_units_run(mode):
    flow = flow_with(gpu=1)
    for number in range(4):
        flow.add_unit(lambda ctx: 0, name=f"u{number}", mode=mode, uses="gpu")
    assert_run(await ran(flow)).ok().max_running(1)


# -- ends --------------------------------------------------------------------------------------


async def test_a_run_whose_time_is_up_waits_for_no_limit(virtual_clock):
    flow = QuantumPartitioner(limits={"api": Limit(rate=1, per=60)})
    flow.add_unit(after(0), name="a", uses="api")
    flow.add_unit(after(0), ["a"], name="b", uses="api")
    with pytest.raises(RunTimeoutError) as failure:
        await flow.run(timeout=5)
    assert failure.value.result.states["b"] is CANCELED
    assert virtual_clock.time() == pytest.approx(5, abs=0.01)


async def test_a_cancelled_run_leaves_no_token_behind(virtual_clock):
    flow = QuantumPartitioner(limits={"gpu": 2})
    flow.add_unit(after(9), name="holds", uses="gpu", priority=1)
    flow.add_unit(after(9), name="waits", uses={"gpu": 2})
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(1):
            await flow.run()
    assert flow.last_result.states == {"holds": CANCELED, "waits": CANCELED}
    await flow.run()
    assert virtual_clock.time() == pytest.approx(19, abs=0.01)


async def test_a_run_that_is_stopping_claims_no_limit_any_more(virtual_clock):
    """A big request that was overtaken claims its limit; when it is cancelled, others go on."""
    flow = QuantumPartitioner(limits={"gpu": 2})

    @flow.unit(uses="gpu", priority=9)
    async def holds():
        try:
            await asyncio.sleep(99)
        finally:
            await asyncio.sleep(50)

    flow.add_unit(after(1), name="big", uses={"gpu": 2}, priority=8)
    flow.map(lambda item: after(1)(None), "items", name="small", uses="gpu")
    first = asyncio.create_task(flow.run({"items": range(20)}))
    await asyncio.sleep(10)  # `big` was overtaken long ago, and waits for `holds` alone
    first.cancel()
    await flow.run({"items": range(3)}, targets=["small"])
    assert virtual_clock.time() == pytest.approx(13, abs=0.01)
    with pytest.raises(asyncio.CancelledError):
        await first


async def test_a_loser_that_claimed_a_limit_lets_it_go(virtual_clock):
    flow = flow_with(gpu=2)
    flow.add_unit(after(99), name="holds", uses="gpu", priority=9)
    flow.add_unit(after(0), name="big", uses={"gpu": 2}, priority=8)
    flow.add_unit(after(50, "won"), name="quick")
    flow.first("big", "quick", name="race")
    flow.map(lambda item: after(1)(None), range(20), name="small", uses="gpu")
    result = await ran(flow)
    assert result["race"] == "won"
    assert 20 < result.units["small"].duration < 75


async def test_who_waits_for_something_else_besides_claims_nothing(virtual_clock):
    flow = flow_with(gpu=2, rare=Limit(rate=1, per=1000))
    flow.add_unit(after(0), name="takes_rare", uses="rare", priority=9)
    flow.add_unit(after(0), name="big", uses={"gpu": 2, "rare": 1}, priority=8)
    flow.map(lambda item: after(1)(None), range(60), name="small", uses="gpu")
    result = await ran(flow)
    assert result.units["small"].duration == pytest.approx(30, abs=0.01)
    assert starts(result)["big"] == 1000


# -- plans -------------------------------------------------------------------------------------


def test_plans_refuse_what_could_never_start_all_problems_at_once():
    flow = flow_with(openai=Limit(rate=500, per=60, burst=50))
    flow.add_unit(after(0), name="a", uses="opnai")
    flow.add_unit(after(0), name="b", uses={"openai": 51})
    flow.map(lambda item: item, [1], name="c", uses="none")
    with pytest.raises(PlanError) as refusal:
        flow.build_execution_plan()
    text = str(refusal.value)
    assert len(refusal.value.problems) == 3
    assert "unit 'a' uses 'opnai', and there is no such limit" in text
    assert "did you mean 'openai'" in text
    assert "unit 'b' needs 51 of 'openai', and the limit has 50" in text
    assert "unit 'c' uses 'none'" in text


@pytest.mark.parametrize("limits", [3, {"a": 0}, {"a": -1}, {"a": float("nan")}, {"": 1}])
def test_partitioners_refuse_bad_limits(limits):
    with pytest.raises(PlanError):
        QuantumPartitioner(limits=limits)


@pytest.mark.parametrize("uses", [3, {"gpu": -1}, ["gpu"]])
def test_units_refuse_bad_uses(uses):
    with pytest.raises(PlanError, match="unit 'a'"):
        flow_with(gpu=1).add_unit(after(0), name="a", uses=uses)


async def test_units_refuse_a_coroutine_function_as_uses():
    async def uses(ctx):
        return {"gpu": 1}

    with pytest.raises(PlanError, match="unit 'a': uses must be a plain function"):
        flow_with(gpu=1).add_unit(after(0), name="a", uses=uses)


def test_the_simulator_knows_limits():
    flow = flow_with(gpu=2)
    for number in range(6):
        flow.add_unit(after(1), name=f"u{number}", uses="gpu")
    assert flow.build_execution_plan().simulate().makespan == 3


async def test_events_say_when_units_that_waited_started(virtual_clock):
    flow, log = flow_with(gpu=1), []
    for name in "ab":
        flow.add_unit(after(1), name=name, uses="gpu")
    result = await flow.run(observers=[log.append])
    ready = [event.time for event in log if isinstance(event, events.UnitReady)]
    assert ready == [0, 0]
    assert result.units["b"].waited == pytest.approx(1, abs=0.01)


async def test_errors_while_others_wait_end_a_run_that_fails_fast(virtual_clock):
    flow = QuantumPartitioner(failure_policy="fail_fast", limits={"api": Limit(rate=1, per=60)})

    async def fails(ctx):
        raise ValueError

    flow.add_unit(fails, name="fails", uses="api", priority=1)
    flow.add_unit(after(0), name="waits", uses="api")
    with pytest.raises(ExecutionError) as failure:
        await flow.run()
    assert failure.value.result.states["waits"] is CANCELED
    assert virtual_clock.time() == 0


class AtOnce(Executor):
    """Calls at once; does not tell how many slots it has."""

    def submit(self, fn, /, *args, **kwargs):
        future = Future()
        future.set_result(fn(*args, **kwargs))
        return future


async def test_a_unit_that_computes_what_it_uses_runs_where_it_belongs():
    flow = QuantumPartitioner(limits={"db": 1})

    @flow.unit(uses="db")
    async def first(ctx):
        return 1

    @flow.unit(mode="custom", uses=lambda ctx: "db")
    def second(ctx):
        return 2

    result = await flow.run(custom_executor=AtOnce())
    assert dict(result) == {"first": 1, "second": 2}
    assert [result.units[name].ran_on for name in result] == ["loop", "custom"]
