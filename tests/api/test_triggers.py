"""Conditions and triggers: each row of the table in docs/triggers.md, and what units see."""

import asyncio
import re
from itertools import product
from pathlib import Path

import pytest

from quantum_async import DependencyError, ExecutionError, PlanError, QuantumPartitioner, UnitState
from quantum_async.testing import VirtualClock, broken_laws

COMPLETED, FAILED, SKIPPED = UnitState.COMPLETED, UnitState.FAILED, UnitState.SKIPPED
PAGE = Path(__file__).parents[2] / "docs" / "triggers.md"


# -- the table ---------------------------------------------------------------------------------


def after(seconds, error=None):
    async def waits(ctx):
        await asyncio.sleep(seconds)
        if error is not None:
            raise error

    return waits


def _result(flow, name, at):
    flow.add_unit(after(at), name=name)
    return name


def _fallback(flow, name, at):
    flow.add_unit(after(at, ValueError()), name=name, fallback=3)
    return name


def _failed(flow, name, at):
    flow.add_unit(after(at, ValueError()), name=name)
    return name


def _timed_out(flow, name, at):
    flow.add_unit(after(99), name=name, timeout=at)
    return name


def _below_a_failure(flow, name, at):
    flow.add_unit(after(at, ValueError()), name=f"{name}2")
    flow.add_unit(after(0), [f"{name}2"], name=f"{name}1")
    flow.add_unit(after(0), [f"{name}1"], name=name)
    return f"{name}2"


def _condition(flow, name, at):
    flow.add_unit(after(at), name=f"{name}1")
    flow.add_unit(after(0), [f"{name}1"], name=name, when=lambda ctx: False)
    return name


def _below_a_condition(flow, name, at):
    flow.add_unit(after(at), name=f"{name}2")
    flow.add_unit(after(0), [f"{name}2"], name=f"{name}1", when=lambda ctx: 0)
    flow.add_unit(after(0), [f"{name}1"], name=name)
    return f"{name}1"


def _race_of_nobody(flow, name, at):
    root = _condition(flow, f"{name}_only", at)
    flow.first(root, name=name)
    return root


WAYS = {
    "result": [_result, _fallback],
    "failure": [_failed, _timed_out, _below_a_failure],
    "choice": [_condition, _below_a_condition, _race_of_nobody],
    "–": [None],
}


def rows():
    table = PAGE.read_text(encoding="utf-8").partition("## The table")[2]
    header, *lines = re.findall(r"^\| (.*) \|$", table, re.MULTILINE)
    triggers = header.split(" | ")[2:]
    for line in lines:
        a, b, *verdicts = line.split(" | ")
        for trigger, verdict in zip(triggers, verdicts, strict=True):
            yield a, b, trigger, verdict


ROWS = list(rows())


def test_the_table_has_every_combination():
    ways = [way for way in WAYS if way != "–"]
    triggers = ["all_success", "all_done", "none_failed", "one_success"]
    expected = {(a, b, trigger) for a, b, trigger in product(ways, WAYS, triggers)}
    assert {row[:3] for row in ROWS} == expected
    assert len(ROWS) == len(expected)


@pytest.mark.parametrize(("a", "b", "trigger", "verdict"), ROWS)
def test_a_row_of_the_table_is_true(a, b, trigger, verdict):
    for end_of_a, end_of_b in product(WAYS[a], WAYS[b]):
        flow, log, roots = QuantumPartitioner(failure_policy="collect"), [], {}
        roots["a"] = end_of_a(flow, "a", 1)
        if end_of_b is not None:
            roots["b"] = end_of_b(flow, "b", 2)
        flow.add_unit(after(0), sorted(roots)[: len(roots)], name="unit", trigger=trigger)
        flow.add_unit(after(0), ["unit"], name="below")
        result = VirtualClock().run(flow.run(observers=[log.append]))
        record = result.units["unit"]
        decided = {"a": 1, "b": 2}[re.search(r"after (\w)", verdict)[1]]
        if verdict.startswith("starts"):
            assert record.state is result.states["below"] is COMPLETED
            assert record.started_at - result._ledger.wall == pytest.approx(decided, abs=1e-3)
        else:
            blamed = roots[verdict[-1]]
            assert record.state is result.states["below"] is SKIPPED
            assert result.roots["unit"] == result.roots["below"] == blamed
            assert repr(blamed) in record.cause
            assert record.ended_at - result._ledger.wall == pytest.approx(decided, abs=1e-3)
        assert result.ok == ("failure" not in (a, b))
        assert broken_laws(flow.build_execution_plan(), log) == []


# -- conditions --------------------------------------------------------------------------------


@pytest.fixture
def flow():
    return QuantumPartitioner(failure_policy="collect")


async def test_a_condition_sees_the_results_and_the_input(flow):
    @flow.unit
    async def size(text):
        return len(text)

    @flow.unit(when=lambda ctx: ctx["size"] > 3 and ctx["text"].isalpha())
    async def shorten(text, size):
        return text[:3]

    assert (await flow.run({"text": "abcdef"}))["shorten"] == "abc"
    result = await flow.run({"text": "abcd3"})
    assert (result.states["shorten"], result.units["shorten"].cause) == (SKIPPED, "condition")
    assert result.ok


async def test_what_depends_on_a_false_condition_is_skipped_and_says_why(flow):
    asked = []
    flow.add_unit(after(0), name="a", when=lambda ctx: asked.append("a"))
    flow.add_unit(after(0), ["a"], name="b", when=lambda ctx: asked.append("b"))
    flow.add_unit(after(0), ["b"], name="c")
    result = await flow.run()
    assert set(result.states.values()) == {SKIPPED}
    assert asked == ["a"]
    assert [result.units[name].cause for name in "abc"] == [
        "condition",
        "'a' was skipped (condition)",
        "'a' was skipped (condition)",
    ]
    assert "condition" in result.explain("c")
    assert not result.errors


async def test_a_condition_is_asked_once_however_often_the_unit_is_tried(flow, virtual_clock):
    asked = []

    @flow.unit(when=lambda ctx: asked.append(ctx.attempt) or True, retries=2)
    async def flaky(ctx):
        if ctx.attempt < 3:
            raise ValueError

    result = await flow.run()
    assert result.units["flaky"].attempts == 3
    assert asked == [1]


async def test_a_condition_that_raises_fails_its_unit_alone(flow):
    flow.add_unit(after(0), name="a", when=lambda ctx: ctx["nothing"], fallback=3, retries=2)
    flow.add_unit(after(0), ["a"], name="below")
    flow.add_unit(after(0), name="beside")
    result = await flow.run()
    assert list(result.states.values()) == [FAILED, SKIPPED, COMPLETED]
    assert "nothing" in str(result.errors["a"])
    assert result.units["a"].attempts == 0
    assert "before it started" in result.errors["a"].__notes__[0]


async def test_a_condition_that_raises_stops_a_run_that_fails_fast():
    flow = QuantumPartitioner(failure_policy="fail_fast")
    flow.add_unit(after(0), name="a", when=lambda ctx: 1 / 0)
    flow.add_unit(after(60), name="beside")
    with pytest.raises(ExecutionError) as failure:
        await flow.run()
    assert isinstance(failure.value.__cause__, ZeroDivisionError)
    assert failure.value.result.states["beside"] is UnitState.CANCELED


async def test_a_condition_may_ask_how_dependencies_ended(flow):
    flow.add_unit(after(0, ValueError("no")), name="fast")
    flow.add_unit(
        after(0),
        ["fast"],
        name="plan_b",
        trigger="all_done",
        when=lambda ctx: not ctx.outcome("fast").ok,
    )
    assert (await flow.run()).states["plan_b"] is COMPLETED


async def test_conditions_of_given_and_unwanted_units_are_not_asked(flow):
    def never(ctx):
        raise AssertionError

    flow.add_unit(after(0), name="a", when=never)
    flow.add_unit(after(0), ["a"], name="b")
    flow.add_unit(after(0), name="c", when=never)
    assert (await flow.run(targets=["b"], overrides={"a": 1})).ok


async def test_a_condition_holds_for_plain_functions_and_processes_too(flow):
    flow.add_unit(lambda ctx: 1, name="thread", when=lambda ctx: False)
    flow.add_unit(lambda ctx: 1, name="process", mode="process", when=lambda ctx: False)
    flow.add_unit(lambda ctx: 2, ["thread"], name="after", trigger="none_failed")
    result = await flow.run()
    assert dict(result) == {"after": 2}
    assert result.ok


@pytest.mark.parametrize("when", [3, "yes", after(0)])
def test_a_condition_must_be_a_plain_function(flow, when):
    with pytest.raises(PlanError, match="unit 'a': when must be a plain function"):
        flow.add_unit(after(0), name="a", when=when)


async def test_a_condition_that_returns_an_awaitable_is_no_answer(flow):
    flow.add_unit(after(0), name="a", when=lambda ctx: asyncio.sleep(0))
    result = await flow.run()
    assert result.states["a"] is FAILED
    assert "awaitable" in str(result.errors["a"])


# -- triggers ----------------------------------------------------------------------------------


def test_an_unknown_trigger_is_named_with_the_nearest(flow):
    with pytest.raises(PlanError, match="did you mean 'all_done'"):
        flow.add_unit(after(0), name="a", trigger="all_dne")
    with pytest.raises(PlanError, match="unit 'a': trigger must be one of"):
        flow.add_unit(after(0), name="a", trigger=None)


@pytest.mark.parametrize("trigger", ["all_success", "all_done", "none_failed", "one_success"])
async def test_a_unit_without_dependencies_starts_whatever_its_trigger(flow, trigger):
    flow.add_unit(after(0), name="a", trigger=trigger)
    assert (await flow.run()).states["a"] is COMPLETED


@pytest.mark.parametrize("trigger", ["all_success", "all_done", "none_failed", "one_success"])
async def test_given_results_count_as_successes(flow, trigger):
    flow.add_unit(after(0, ValueError()), name="a")
    flow.add_unit(after(0, ValueError()), name="b")
    flow.add_unit(lambda ctx: ctx["a"] + ctx["b"], ["a", "b"], name="c", trigger=trigger)
    result = await flow.run(overrides={"a": 1, "b": 2})
    assert result["c"] == 3
    assert result.ok


async def test_one_success_starts_while_the_others_run_on(virtual_clock, flow):
    @flow.unit
    async def fast():
        await asyncio.sleep(1)
        return "fast"

    @flow.unit
    async def slow():
        await asyncio.sleep(5)
        return "slow"

    @flow.unit(trigger="one_success")
    async def answer(ctx, fast=None, slow=None):
        return fast, slow, ctx.outcome("slow").state

    result = await flow.run()
    assert result["answer"] == ("fast", None, UnitState.RUNNING)
    assert result["slow"] == "slow"  # nobody cancelled it
    assert virtual_clock.time() == pytest.approx(5, abs=1e-3)


async def test_what_comes_after_all_done_hears_of_its_own_end(flow):
    flow.add_unit(after(0, ValueError()), name="a")
    flow.add_unit(after(0), ["a"], name="clean_up", trigger="all_done")
    flow.add_unit(after(0), ["clean_up"], name="after", trigger="none_failed")
    result = await flow.run()
    assert result.states["after"] is COMPLETED
    assert not result.ok


async def test_all_done_does_not_start_in_a_run_that_is_being_stopped():
    flow = QuantumPartitioner(failure_policy="fail_fast")
    flow.add_unit(after(0, ValueError()), name="a")
    flow.add_unit(after(0), ["a"], name="clean_up", trigger="all_done")
    with pytest.raises(ExecutionError) as failure:
        await flow.run()
    assert failure.value.result.states["clean_up"] is UnitState.CANCELED


# -- outcomes ----------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["thread", "process", None])
async def test_outcomes_are_the_same_wherever_a_unit_runs(flow, mode):
    def told(ctx):
        outcomes = [ctx.outcome(name) for name in ("good", "bad", "left_out")]
        return [(o.state.value, o.result, repr(o.error), o.cause, o.ok) for o in outcomes]

    async def told_on_the_loop(ctx):
        return told(ctx)

    flow.add_unit(lambda ctx: 7, name="good")
    flow.add_unit(after(0, ValueError("no")), name="bad")
    flow.add_unit(after(0), name="left_out", when=lambda ctx: False)
    flow.add_unit(
        told if mode else told_on_the_loop,
        ["good", "bad", "left_out"],
        name="told",
        mode=mode,
        trigger="all_done",
    )
    assert (await flow.run())["told"] == [
        ("completed", 7, "None", None, True),
        ("failed", None, "ValueError('no')", None, False),
        ("skipped", None, "None", "condition", False),
    ]


async def test_reading_a_result_that_is_not_there_says_what_happened(flow):
    flow.add_unit(after(0, ValueError("no")), name="bad")
    flow.add_unit(lambda ctx: ctx["bad"], ["bad"], name="reads", trigger="all_done")
    flow.add_unit(lambda ctx: ctx.get("bad", 3), ["bad"], name="gets", trigger="all_done")
    result = await flow.run()
    assert isinstance(result.errors["reads"], DependencyError)
    assert "'bad', which ended without a result: failed (ValueError: no)" in str(
        result.errors["reads"]
    )
    assert result["gets"] == 3


async def test_only_what_was_declared_has_an_outcome(flow):
    flow.add_unit(after(0), name="a")
    flow.add_unit(lambda ctx: ctx.outcome("a"), name="b")
    result = await flow.run()
    assert "add 'a' to the dependencies of 'b'" in str(result.errors["b"])
