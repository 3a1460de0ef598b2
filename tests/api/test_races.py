"""`first`: the first success is the result, and what nobody needs any more is cancelled."""

import asyncio
import os
import threading
import time

import pytest
import tenacity

from quantum_async import (
    ExecutionError,
    Limit,
    PlanError,
    QuantumPartitioner,
    RetryPolicy,
    UnitState,
)
from quantum_async.core import events
from quantum_async.testing import assert_run, broken_laws
from tests.support.processes import alive, until

COMPLETED, FAILED, SKIPPED = UnitState.COMPLETED, UnitState.FAILED, UnitState.SKIPPED
CANCELED = UnitState.CANCELED
TWICE = RetryPolicy(stop=tenacity.stop_after_attempt(2), wait=tenacity.wait_fixed(1))


@pytest.fixture
def flow():
    return QuantumPartitioner()


def after(seconds, value=None, error=None):
    """Return a unit that takes so long, and then returns or raises."""

    async def waits(ctx):
        await asyncio.sleep(seconds)
        if error is not None:
            raise error
        return value

    return waits


def racers(flow, **seconds):
    for name, takes in seconds.items():
        flow.add_unit(after(takes, name), name=name)
    return flow.first(*seconds, name="race")


async def ran(flow, *args, **options):
    """Run, and hold the events against the laws."""
    log = []
    try:
        return await flow.run(*args, observers=[log.append], **options)
    finally:
        plan, units = flow.build_execution_plan(), flow.last_result.units
        given = [name for name in plan.names if name not in units or units[name].ran_on == "given"]
        assert broken_laws(plan, log, given=given) == []


# -- winners and losers ------------------------------------------------------------------------


async def test_the_first_success_is_the_result_and_the_losers_are_cancelled(flow, virtual_clock):
    race = racers(flow, slow=9, fast=1, slower=99)
    flow.add_unit(lambda ctx: ctx["race"].upper(), [race], name="below")
    result = await ran(flow)
    assert virtual_clock.time() < 2
    assert result[race] == "fast"
    assert result["below"] == "FAST"
    assert result.ok
    assert result.states == {
        "slow": CANCELED, "fast": COMPLETED, "slower": CANCELED, "race": COMPLETED,
        "below": COMPLETED,
    }  # fmt: skip
    assert result.units["slow"].cause == "lost the race 'race' to 'fast'"
    assert result.units["race"].cause == "'fast' was first"
    assert result.units["race"].ran_on == "race"
    assert "lost the race" in result.explain("slow")
    assert "'fast' was first" in result.explain("race")


async def test_losers_clean_up_before_the_run_ends(flow, virtual_clock):
    told = []

    @flow.unit
    async def slow():
        try:
            await asyncio.sleep(99)
        finally:
            await asyncio.sleep(3)
            told.append("cleaned up")

    racers(flow, fast=1)
    flow.first("slow", "fast", name="both")
    assert (await ran(flow)).ok
    assert told == ["cleaned up"]
    assert virtual_clock.time() == pytest.approx(4, abs=1e-3)


async def test_the_winner_does_not_wait_for_the_losers_clean_up(flow, virtual_clock):
    @flow.unit
    async def stubborn():
        try:
            await asyncio.sleep(99)
        finally:
            await asyncio.sleep(3)

    flow.add_unit(after(1), name="fast")
    race = flow.first("stubborn", "fast")
    flow.add_unit(after(1), [race], name="below")
    assert_run(await ran(flow)).ok().took("below", at_most=1.1)
    assert race.id == "first(stubborn, fast)"
    assert virtual_clock.time() == pytest.approx(4, abs=1e-3)


async def test_what_only_losers_needed_is_cancelled_too(flow, virtual_clock):
    flow.add_unit(after(50), name="shared")
    flow.add_unit(after(60), name="only_slow")
    flow.add_unit(after(0), ["only_slow", "shared"], name="slow")
    flow.add_unit(after(0), ["shared"], name="other")
    flow.add_unit(after(1, "x"), name="fast")
    flow.first("slow", "fast", name="race")
    result = await ran(flow)
    run = assert_run(result)
    run.ok().completed("shared", "other", "fast", "race").canceled("slow", match="lost the race")
    run.canceled("only_slow", match="only needed by who lost the race 'race'").not_started("slow")
    assert virtual_clock.time() == pytest.approx(50, abs=1e-3)


async def test_a_loser_that_another_unit_needs_runs_on(flow, virtual_clock):
    racers(flow, slow=9, fast=1)
    flow.add_unit(lambda ctx: ctx["slow"], ["slow"], name="needs_slow")
    result = await ran(flow)
    assert result["needs_slow"] == "slow"
    assert result["race"] == "fast"


async def test_a_loser_that_was_asked_for_runs_on(flow, virtual_clock):
    racers(flow, slow=9, fast=1)
    assert (await ran(flow, targets=["race", "slow"]))["slow"] == "slow"
    assert (await ran(flow, targets=["race"])).states["slow"] is CANCELED
    assert dict(await ran(flow, keep=["race"])) == {"race": "fast"}
    assert dict(await ran(flow, keep=["race", "slow"])) == {"race": "fast", "slow": "slow"}


async def test_two_that_succeed_in_one_turn_keep_both_their_results(flow, virtual_clock):
    racers(flow, a=1, b=1)
    result = await ran(flow)
    assert result["race"] == "a"
    assert dict(result) == {"a": "a", "b": "b", "race": "a"}
    assert result.ok


async def test_a_loser_may_wait_for_a_slot_a_limit_or_another_attempt(virtual_clock):
    flow = QuantumPartitioner(max_workers=3, limits={"api": Limit(rate=1, per=60)})
    flow.add_unit(after(0, error=ValueError()), name="backs_off", priority=5, retry=TWICE)
    flow.add_unit(after(0, "x"), name="takes_token", priority=4, uses="api")
    flow.add_unit(after(0), name="no_token", uses="api")
    flow.add_unit(after(0.5, "won"), name="fast", priority=3)
    flow.add_unit(after(9), name="running", priority=2)
    flow.add_unit(after(9), name="second_slot", priority=1)
    flow.add_unit(after(9), name="no_slot")
    flow.first("backs_off", "no_token", "fast", "running", "no_slot", name="race")
    flow.add_unit(after(0), ["second_slot"], name="below")
    result = await ran(flow)
    run = assert_run(result)
    run.ok().canceled("backs_off", "no_token", "running", "no_slot", match="lost the race 'race'")
    run.not_started("no_token", "no_slot").attempts("backs_off", 1)
    assert virtual_clock.time() == pytest.approx(9, abs=0.1)


async def test_with_one_slot_the_others_never_start(virtual_clock):
    flow = QuantumPartitioner(max_workers=1)
    racers(flow, a=1, b=1, c=1)
    result = await ran(flow)
    assert result["race"] == "a"
    assert_run(result).not_started("b", "c").canceled("b", "c")
    assert virtual_clock.time() == pytest.approx(1, abs=1e-3)


async def test_a_given_result_wins_before_anybody_starts(flow, virtual_clock):
    racers(flow, slow=9, fast=1)
    result = await ran(flow, overrides={"slow": "given"}, targets=["race"])
    assert result["race"] == "given"
    assert result.states["fast"] is CANCELED
    assert virtual_clock.time() == 0


async def test_losers_that_swallow_the_cancellation_or_raise_change_nothing(flow, caplog):
    started = asyncio.Event()

    @flow.unit
    async def swallows():
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            return "too late"

    @flow.unit
    async def raises():
        try:
            started.set()
            await asyncio.sleep(60)
        finally:
            raise OSError("while it was cancelled")

    @flow.unit
    async def fast():
        await started.wait()
        return "fast"

    flow.first(swallows, raises, fast, name="race")
    result = await ran(flow)
    assert result["race"] == "fast"
    assert result.ok
    assert result.states["raises"] is CANCELED
    assert "while it was cancelled" in caplog.text


# -- failures ----------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["continue", "fail_fast", "collect"])
async def test_a_contender_that_fails_is_no_failure_of_the_run(flow, virtual_clock, policy):
    flow.add_unit(after(1, error=ValueError()), name="above")
    flow.add_unit(after(0), ["above"], name="broken")
    flow.add_unit(after(2, "well"), name="good")
    flow.first("broken", "good", name="race")
    result = await ran(flow, failure_policy=policy)
    assert result.ok
    assert list(result.states.values()) == [FAILED, SKIPPED, COMPLETED, COMPLETED]


@pytest.mark.parametrize("policy", ["continue", "fail_fast"])
async def test_if_all_fail_the_race_does_with_all_their_errors(flow, virtual_clock, policy):
    first, second = ValueError("one"), OSError("two")
    flow.add_unit(after(1, error=first), name="a")
    flow.add_unit(after(2, error=second), name="b", retry=TWICE)
    flow.add_unit(after(0), name="c", when=lambda ctx: False)
    flow.first("a", "b", "c", name="race")
    flow.add_unit(after(0), ["race"], name="below")
    with pytest.raises(ExecutionError, match="nobody won the race 'race'") as failure:
        await ran(flow, failure_policy=policy)
    result = failure.value.result
    assert result.states["race"] is FAILED
    assert result.errors["race"].exceptions == (first, second)
    assert result.states["below"] in {SKIPPED, CANCELED}
    assert failure.value.__cause__ in {first, result.errors["race"]}


async def test_the_cause_of_a_failed_run_is_a_failure_that_counts(flow, virtual_clock):
    wrong = KeyError("really")
    flow.add_unit(after(1, error=ValueError("excused")), name="a")
    flow.add_unit(after(2), name="b")
    flow.first("a", "b", name="race")
    flow.add_unit(after(3, error=wrong), name="other")
    with pytest.raises(ExecutionError) as failure:
        await ran(flow)
    assert failure.value.__cause__ is wrong


async def test_a_contender_that_others_need_fails_the_run(flow, virtual_clock):
    flow.add_unit(after(1, error=ValueError()), name="a")
    flow.add_unit(after(2), name="b")
    flow.first("a", "b", name="race")
    flow.add_unit(after(0), ["a"], name="needs_a")
    with pytest.raises(ExecutionError) as failure:
        await ran(flow)
    assert failure.value.result["race"] is None
    assert failure.value.result.states["needs_a"] is SKIPPED


async def test_a_race_that_nobody_enters_is_skipped_by_their_conditions(flow):
    for name in "ab":
        flow.add_unit(after(0), name=name, when=lambda ctx: False)
    flow.first("a", "b", name="race")
    flow.add_unit(after(0), ["race"], name="below")
    result = await ran(flow)
    assert set(result.states.values()) == {SKIPPED}
    assert result.ok
    assert result.units["below"].cause == "'a' was skipped (condition)"


async def test_retries_and_fallbacks_come_before_a_contender_has_failed(flow, virtual_clock):
    flow.add_unit(after(0, error=ValueError()), name="a", retry=TWICE, fallback="plan b")
    flow.add_unit(after(9), name="b")
    flow.first("a", "b", name="race")
    result = await ran(flow)
    assert result["race"] == "plan b"
    assert virtual_clock.time() == pytest.approx(1, abs=1e-3)


# -- what can race -----------------------------------------------------------------------------


async def test_a_race_can_be_in_a_race_and_have_a_condition(flow, virtual_clock):
    inner = racers(flow, a=5, b=2)
    flow.add_unit(after(3, "c"), name="c")
    outer = flow.first(inner, "c", name="outer")
    flow.add_unit(after(0, 1), name="d")
    flow.first("d", name="never", when=lambda ctx: False)
    result = await ran(flow)
    assert result[outer] == "b"
    assert result.states["a"] is result.states["c"] is CANCELED
    assert result.units["never"].cause == "condition"


async def test_an_inner_race_that_loses_takes_its_contenders_along(flow, virtual_clock):
    inner = racers(flow, a=5, b=6)
    flow.add_unit(after(3, "c"), name="c")
    flow.first(inner, "c", name="outer")
    assert_run(await ran(flow)).ok().canceled("a", "b", "race").result("outer", "c")
    assert virtual_clock.time() == pytest.approx(3, abs=1e-3)


async def test_maps_and_partitioners_can_lose(flow, virtual_clock):
    inner, log = QuantumPartitioner(), []
    inner.add_unit(after(50), name="child")
    flow.map(lambda item: after(item)(None), [50, 60], name="many")
    flow.include(inner, "whole")
    flow.add_unit(after(1, "fast"), name="fast")
    flow.first("many", "whole", "fast", name="race")
    result = await flow.run(observers=[log.append])
    assert result.ok
    assert virtual_clock.time() == pytest.approx(1, abs=1e-3)
    gone = {event.unit for event in log if isinstance(event, events.UnitCanceled)}
    assert gone == {"many", "many[0]", "many[1]", "whole", "whole/child"}
    for name in gone - {"whole/child"}:
        assert "lost the race 'race' to 'fast'" in result.units[name].cause


async def test_a_streaming_unit_can_lose(flow, virtual_clock):
    closed = []

    @flow.unit
    async def stream():
        try:
            for number in range(100):
                yield number
                await asyncio.sleep(1)
        finally:
            closed.append(number)

    flow.map(lambda item: item, stream, name="mapped")
    flow.add_unit(after(2.5, "fast"), name="fast")
    flow.first("mapped", "fast", name="race")
    result = await flow.run()
    assert result["race"] == "fast"
    assert result.states["stream"] is result.states["mapped"] is CANCELED
    assert closed == [2]


async def test_the_thread_of_a_loser_keeps_its_slot_and_not_the_race(flow):
    release = threading.Event()
    flow.add_unit(lambda ctx: release.wait(10), name="thread")
    flow.add_unit(after(0.01, "fast"), name="fast")
    flow.first("thread", "fast", name="race")

    @flow.unit
    async def below(race):
        release.set()
        return race

    result = await ran(flow)
    assert result["below"] == "fast"
    assert "lost the race" in result.units["thread"].cause
    assert "thread" in result.units["thread"].cause


def _sleeps(path):
    path.write_text(str(os.getpid()))
    time.sleep(60)


@pytest.mark.slow
async def test_the_worker_process_of_a_loser_is_killed(flow, tmp_path):
    path = tmp_path / "pid"
    flow.add_unit(_sleeps, name="process", mode="process", args=[path])

    @flow.unit
    async def fast():
        await until(lambda: path.exists() and path.read_text())
        return "fast"

    flow.first("process", fast, name="race")
    result = await ran(flow)
    assert result.ok
    assert result.states["process"] is CANCELED
    await until(lambda: not alive(int(path.read_text())))


async def test_a_cancelled_run_cancels_racers_and_race(flow, virtual_clock):
    racers(flow, a=5, b=6)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(1):
            await ran(flow)
    assert set(flow.last_result.states.values()) == {CANCELED}
    assert "the caller was cancelled" in flow.last_result.units["a"].cause


# -- bad input ---------------------------------------------------------------------------------


def test_races_that_cannot_be_meant_are_refused(flow):
    with pytest.raises(PlanError, match="at least one unit"):
        flow.first()
    flow.add_unit(after(0), name="a")
    with pytest.raises(PlanError, match="no option 'timeout'"):
        flow.first("a", timeout=3)
    flow.first("a", "bb", name="race")
    with pytest.raises(PlanError, match="'race' depends on 'bb'"):
        flow.build_execution_plan()


async def test_one_can_race_alone_and_twice(flow):
    flow.add_unit(after(0, 1), name="a")
    flow.first("a", "a", name="race")
    assert (await ran(flow))["race"] == 1
