"""Two runs, or two plans, side by side."""

import asyncio
import json

import pytest

from quantum_async import QuantumPartitioner, RunResult
from quantum_async.comparison import compare
from quantum_async.core.limits import Limit
from quantum_async.testing import VirtualClock
from tests.support.recorded import HOSTILE, run_of_everything
from tests.support.runs import alone, broken, chain, done, made_run


async def nothing(ctx):
    pass


def plan_of(**units):
    flow = QuantumPartitioner()
    for name, (after, options) in units.items():
        flow.add_unit(nothing, after, name, **options)
    return flow.build_execution_plan()


# -- plans ----------------------------------------------------------------------------------------


def test_the_same_plan_has_no_differences():
    diff = plan_of(a=([], {})).diff(plan_of(a=([], {})))
    assert not diff
    assert str(diff) == "the plans are the same"


def test_units_edges_and_options_that_differ():
    before = plan_of(a=([], {}), b=(["a"], {"timeout": 1}), gone=(["b"], {}), c=(["a"], {}))
    after = plan_of(
        a=([], {}), b=([], {"timeout": 2.5, "retries": 1}), c=(["a", "b"], {}), new=(["c"], {})
    )
    diff = before.diff(after)
    assert diff
    assert (diff.added, diff.removed) == (("new",), ("gone",))
    assert diff.changed == {"b": {"timeout": (1, 2.5), "retries": (0, 1)}}
    assert diff.edges_added == (("b", "c"), ("c", "new"))
    assert diff.edges_removed == (("a", "b"), ("b", "gone"))
    assert diff.lines() == [
        "+ new",
        "- gone",
        "~ b: timeout 1 → 2.5, retries 0 → 1",
        "+ b → c",
        "- a → b",
    ]
    assert json.loads(json.dumps(diff.as_dict()))["changed"]["b"]["retries"] == [0, 1]


def test_functions_modes_triggers_conditions_and_uses_differ():
    async def other(ctx):
        pass

    flow = QuantumPartitioner(limits={"api": 1})
    flow.add_unit(
        other, name="a", mode="async", uses="api", when=lambda ctx: True, trigger="all_done"
    )
    changed = plan_of(a=([], {})).diff(flow.build_execution_plan()).changed["a"]
    assert list(changed) == ["function", "mode", "trigger", "when", "uses"]
    assert changed["uses"] == (None, "api")


def test_hostile_names_stay_on_their_line():
    [line] = plan_of().diff(plan_of(**{HOSTILE: ([], {})})).lines()
    assert line.isprintable()


# -- runs -----------------------------------------------------------------------------------------


def test_the_unit_that_took_longer_is_named_first():
    flow = chain("a", "b")
    before = made_run(flow, {"a": done((0, 1)), "b": done((1, 2))}, 2)
    after = made_run(flow, {"a": done((0, 1)), "b": done((1, 4))}, 4)
    comparison = before.diff(after)
    assert comparison.seconds == 2
    assert comparison.lines() == [
        "2.00 s slower: 2.00 s → 4.00 s",
        "b: 2.00 s longer running, on the critical path: 1.00 s → 3.00 s",
    ]
    assert str(after.diff(before)).startswith("2.00 s faster: 4.00 s → 2.00 s\nb: 2.00 s less")


def test_what_is_on_the_critical_path_goes_first():
    flow = chain("a", "b")
    flow.add_unit(nothing, name="aside")
    before = made_run(flow, {"a": done((0, 1)), "b": done((1, 9)), "aside": done((0, 1))}, 9)
    after = made_run(flow, {"a": done((0, 2)), "b": done((2, 10)), "aside": done((0, 8))}, 10)
    assert [(it.unit, it.critical) for it in compare(before, after).changes] == [
        ("a", True),
        ("aside", False),
    ]


def test_waits_are_told_apart():
    def flow_with(limit, workers):
        flow = QuantumPartitioner(limits={"api": limit}, max_workers=workers)
        flow.add_unit(lambda ctx: asyncio.sleep(1), name="a", uses="api")
        flow.add_unit(lambda ctx: asyncio.sleep(1), name="b", uses="api")
        return flow

    free, limited, narrow = (
        VirtualClock().run(flow_with(*it).run()) for it in ((2, 2), (1, 2), (2, 1))
    )
    assert limited.units["b"].held_by == "api"
    [change] = free.diff(limited).changes
    assert (change.unit, change.kind, change.seconds) == ("b", "limit", 1)
    [change] = free.diff(narrow).changes
    assert (change.unit, change.kind, change.seconds) == ("b", "slot", 1)
    assert {it.kind: it.seconds for it in limited.diff(narrow).changes} == {"slot": 1, "limit": -1}


def test_a_rate_is_a_limit_that_is_waited_for():
    flow = QuantumPartitioner(limits={"rate": Limit(rate=1, per=5)})
    flow.add_unit(nothing, name="a", uses="rate")
    flow.add_unit(nothing, name="b", uses="rate")
    result = VirtualClock().run(flow.run())
    assert [result.units[name].held_by for name in "ab"] == [None, "rate"]
    assert "waited 5.00 s for the limit 'rate'" in result.explain("b")
    assert "waited longest for a limit: b ('rate', 5.00 s)" in result.explain()


def test_units_that_ended_otherwise_and_other_plans_are_told():
    before = made_run(alone("a", "b"), {"a": done((0, 1)), "b": done((0, 1))}, 1)
    rows = {"a": broken((0, 1), error=OSError("no")), "c": done((0, 1))}
    after = made_run(alone("a", "c"), rows, 1)
    comparison = before.diff(after)
    assert comparison.states == {
        "a": ("completed", "failed"),
        "c": (None, "completed"),
        "b": ("completed", None),
    }
    lines = comparison.lines()
    assert lines[0] == "as fast as before: 1.00 s → 1.00 s"
    assert "b: completed → not there" in lines
    assert lines[-2:] == ["plan: + c", "plan: - b"]


def test_only_the_most_important_changes_are_told():
    names = [f"u{number}" for number in range(30)]
    flow = alone(*names)
    before = made_run(flow, {name: done((0, 1)) for name in names}, 1)
    after = made_run(flow, {name: broken((0, 2), error=OSError()) for name in names}, 2)
    lines = before.diff(after).lines()
    assert "… and 20 more units or waits" in lines
    assert "… and 20 more that ended otherwise" in lines
    assert len(lines) == 23


@pytest.mark.parametrize("other", [run_of_everything, lambda: made_run(alone("a"), {}, 0)])
def test_a_comparison_is_data_and_text_whatever_the_runs_are(other, tmp_path):
    result = run_of_everything()
    result.save(tmp_path / "run.json")
    for before, after in (
        (RunResult.load(tmp_path / "run.json"), other()),
        (other(), result),
    ):
        comparison = compare(before, after)
        json.dumps(comparison.as_dict(), allow_nan=False)
        assert all(line.isprintable() for line in comparison.lines())
