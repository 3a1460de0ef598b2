"""Plans compiled from handles: what is refused, what a plan knows, and what it simulates."""

from __future__ import annotations

import functools
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import FrozenInstanceError
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantum_async.core.binding import ExactBinding, WiredBinding
from quantum_async.core.compile import compile_plan
from quantum_async.core.errors import (
    CircularDependencyError,
    PlanError,
    UnknownDependencyError,
)
from quantum_async.core.options import make_options
from quantum_async.core.plan import ExecutionPlan
from quantum_async.core.simulate import Simulation
from quantum_async.core.states import Strategy
from quantum_async.core.unit import QuantumUnit

Unit = QuantumUnit[Any, Any]


def work(ctx: Any) -> None:
    """Stand for any unit's function."""


def unit(
    name: str,
    after: Iterable[str | Unit] = (),
    fn: Callable[..., Any] = work,
    **options: Any,
) -> Unit:
    return QuantumUnit(name, fn, after, options=make_options(name, **options))


def compiled(*units: Unit, **more: Any) -> ExecutionPlan:
    return compile_plan({one.id: one for one in units}, **more)


def plan_of(graph: Mapping[str, Iterable[str]], **costs: float) -> ExecutionPlan:
    return compiled(*(unit(name, after, cost=costs.get(name)) for name, after in graph.items()))


def problems_of(*units: Unit, **more: Any) -> tuple[PlanError, ...]:
    with pytest.raises(PlanError) as caught:
        compiled(*units, **more)
    return caught.value.problems


class Owner:
    """What a handle knows of its partitioner."""

    def __init__(self) -> None:
        self.units: dict[str, Unit] = {}
        self.last_result = None

    def method(self, ctx: Any) -> None: ...


def diamond(**costs: float) -> ExecutionPlan:
    """Return a plan of four: load, then process and validate side by side, then store."""
    return plan_of(
        {
            "load": [],
            "process": ["load"],
            "validate": ["load"],
            "store": ["process", "validate"],
        },
        **costs,
    )


# --- what is refused ------------------------------------------------------------------------------


def test_an_unknown_name_is_refused_with_the_nearest_one() -> None:
    [problem] = problems_of(unit("load_data"), unit("save", ["load_dta"]))
    assert isinstance(problem, UnknownDependencyError)
    assert "unit 'save' depends on 'load_dta'" in str(problem)
    assert "did you mean 'load_data'?" in str(problem)


def test_an_unknown_name_far_from_all_others_is_refused_without_a_guess() -> None:
    [problem] = problems_of(unit("load"), unit("save", ["qqqq"]))
    assert "did you mean" not in str(problem)


def test_a_circle_is_refused_with_its_path() -> None:
    [problem] = problems_of(unit("a", ["c"]), unit("b", ["a"]), unit("c", ["b"]))
    assert isinstance(problem, CircularDependencyError)
    assert problem.cycle == ("a", "b", "c", "a")
    assert "a → b → c → a" in str(problem)


def test_a_unit_that_depends_on_itself_is_a_circle() -> None:
    [problem] = problems_of(unit("a", ["a"]))
    assert isinstance(problem, CircularDependencyError)
    assert problem.cycle == ("a", "a")


def test_a_long_circle_is_shortened_in_the_message_and_whole_in_the_error() -> None:
    names = [f"u{number}" for number in range(50)]
    [problem] = problems_of(
        *(unit(name, [before]) for before, name in pairwise([names[-1], *names]))
    )
    assert isinstance(problem, CircularDependencyError)
    assert problem.cycle == (*names, "u0")
    assert re.search(r"u0 → .* → … 40 more … → .* → u49 → u0\.", str(problem))


def test_units_behind_a_circle_are_no_problem_of_their_own() -> None:
    problems = problems_of(unit("a", ["b"]), unit("b", ["a"]), unit("c", ["b"]))
    assert [problem.cycle for problem in problems] == [("a", "b", "a")]  # type: ignore[attr-defined]


def test_all_problems_are_reported_at_once() -> None:
    problems = problems_of(
        unit("a", ["b"]),
        unit("b", ["a"]),
        unit("c", ["c"]),
        unit("d", ["nothing", "nowhere"]),
        unit("e", ["a", "missing"]),
        more=[PlanError("and one that the caller found")],
    )
    told = [str(problem) for problem in problems]
    assert len(told) == 6
    assert sum(isinstance(problem, CircularDependencyError) for problem in problems) == 2
    for name in ("'nothing'", "'nowhere'", "'missing'"):
        assert sum(name in text for text in told) == 1
    assert "and one that the caller found" in told


def test_the_message_of_several_problems_has_them_all() -> None:
    with pytest.raises(PlanError, match="the plan has 2 problems") as caught:
        compiled(unit("a", ["x"]), unit("b", ["y"]))
    assert type(caught.value) is PlanError
    assert all(str(problem) in str(caught.value) for problem in caught.value.problems)


def test_one_problem_is_raised_as_itself() -> None:
    with pytest.raises(UnknownDependencyError) as caught:
        compiled(unit("a", ["x"]))
    assert caught.value.problems == (caught.value,)


def test_a_problem_of_the_caller_alone_is_raised_as_it_is() -> None:
    mine = PlanError("mine")
    with pytest.raises(PlanError) as caught:
        compiled(unit("a"), more=[mine])
    assert caught.value is mine


def test_a_handle_of_another_partitioner_is_named_as_such() -> None:
    stranger = unit("a")
    [problem] = problems_of(unit("a"), unit("b", [stranger]))
    assert isinstance(problem, UnknownDependencyError)
    assert "the handle 'a', which belongs to another partitioner" in str(problem)


def test_a_handle_of_another_partitioner_is_one_problem_and_not_an_unknown_name_too() -> None:
    stranger = unit("elsewhere")
    binding = ExactBinding((stranger,), {})
    [problem] = problems_of(unit("b", binding=binding))
    assert "belongs to another partitioner" in str(problem)


# --- from handles to a graph ----------------------------------------------------------------------


def test_dependencies_may_be_declared_later_than_they_are_named() -> None:
    plan = plan_of({"last": ["first"], "first": []})
    assert plan.levels == [["first"], ["last"]]
    assert [plan.names[number] for number in plan.order] == ["first", "last"]


def test_handles_stand_for_names() -> None:
    first = unit("first")
    assert compiled(first, unit("last", [first])).dependencies["last"] == {"first"}


def test_a_dependency_named_twice_counts_once() -> None:
    first = unit("first")
    plan = compiled(first, unit("last", ["first", first, "first"]))
    assert plan.edges_up == ((), (0,))
    assert plan.in_degrees == [0, 1]


def test_handles_among_arguments_are_dependencies() -> None:
    first, second = unit("first"), unit("second")
    binding = ExactBinding(([first, 1],), {"other": {"deep": (second,)}})
    plan = compiled(first, second, unit("last", binding=binding))
    assert plan.dependencies["last"] == {"first", "second"}


def test_parameters_named_after_units_are_dependencies_whenever_those_are_declared() -> None:
    def join(left: Any, right: Any, scale: Any) -> None: ...

    owner = Owner()
    options = make_options("join", binding=WiredBinding.of(join, "join"))
    owner.units["join"] = QuantumUnit("join", join, options=options, owner=lambda: owner)
    for name in ("left", "right"):
        owner.units[name] = unit(name)
    plan = compile_plan(owner.units)
    assert plan.dependencies["join"] == {"left", "right"}


# --- what a plan knows ----------------------------------------------------------------------------


def test_levels_are_a_picture_by_longest_distance() -> None:
    plan = diamond()
    assert plan.levels == [["load"], ["process", "validate"], ["store"]]
    assert plan.execution_order == plan.levels
    assert plan.max_level == 3
    assert plan.max_parallel_units == 2
    assert plan.unit_count == 4


def test_dependencies_and_dependents_are_the_same_edges_from_both_sides() -> None:
    plan = diamond()
    assert plan.dependencies == {
        "load": set(),
        "process": {"load"},
        "validate": {"load"},
        "store": {"process", "validate"},
    }
    assert plan.dependents == {
        "load": {"process", "validate"},
        "process": {"store"},
        "validate": {"store"},
        "store": set(),
    }
    assert plan.sinks == (3,)


def test_an_empty_plan_is_a_plan() -> None:
    plan = compiled()
    assert plan.unit_count == plan.max_level == plan.max_parallel_units == 0
    assert plan.levels == []
    assert plan.critical_path == []
    assert plan.dependencies == plan.dependents == {}
    assert plan.simulate() == Simulation(0.0, {}, {})
    assert plan.priorities is None
    assert len(plan.fingerprint) == 16


def test_the_critical_path_without_costs_is_the_longest_chain() -> None:
    plan = plan_of({"a": [], "b": ["a"], "c": ["b"], "x": [], "y": ["x"]})
    assert plan.critical_path == ["a", "b", "c"]


def test_the_critical_path_follows_the_declared_costs() -> None:
    assert diamond(process=1, validate=5).critical_path == ["load", "validate", "store"]
    assert diamond(process=5, validate=1).critical_path == ["load", "process", "store"]


def test_a_declared_cost_beats_a_measured_one_and_no_cost_is_one() -> None:
    plan = compiled(
        unit("declared", cost=2.0), unit("measured"), unit("neither"),
        measured={"declared": 9.0, "measured": 3.0, "gone since": 4.0},
    )  # fmt: skip
    assert list(plan.costs) == [2.0, 3.0, 1.0]
    assert plan.critical_path == ["measured"]


def test_a_cost_of_zero_is_a_cost() -> None:
    assert list(compiled(unit("a", cost=0), measured={"a": 3.0}).costs) == [0]


def test_units_are_found_by_name_and_by_handle() -> None:
    first = unit("first")
    plan = compiled(first, unit("last"))
    assert plan.number("last", "targets") == 1
    assert plan.number(first, "targets") == 0
    with pytest.raises(PlanError, match=r"keep names 'lst'.*did you mean 'last'\?"):
        plan.number("lst", "keep")
    with pytest.raises(PlanError, match="overrides names 'first'"):
        plan.number(unit("first"), "overrides")
    with pytest.raises(PlanError, match="targets names 3"):
        plan.number(3, "targets")  # type: ignore[arg-type]


def test_a_plan_is_frozen() -> None:
    units = {"a": unit("a")}
    plan = compile_plan(units)
    with pytest.raises(FrozenInstanceError):
        plan.order = [0]  # type: ignore[misc]
    with pytest.raises(TypeError):
        plan.units["b"] = unit("b")  # type: ignore[index]
    with pytest.raises(TypeError):
        plan.dependencies["a"] = frozenset("a")  # type: ignore[index]
    units["b"] = unit("b")
    assert plan.unit_count == 1


def test_the_repr_tells_the_size() -> None:
    assert repr(diamond()) == "<ExecutionPlan 4 units, 4 dependencies, 3 levels>"


@pytest.mark.slow
def test_a_chain_of_a_hundred_thousand_units_is_an_ordinary_plan() -> None:
    names = [f"u{number}" for number in range(100_000)]
    units = {names[0]: unit(names[0])}
    for before, name in pairwise(names):
        units[name] = unit(name, [before])
    plan = compile_plan(units)
    assert plan.max_level == 100_000
    assert plan.simulate().makespan == 100_000


# --- fingerprint ----------------------------------------------------------------------------------


def other(ctx: Any) -> None:
    """Stand for another function."""


BASE = {"a": unit("a"), "b": unit("b", ["a"])}


@pytest.mark.parametrize(
    "changed",
    [
        {"a": unit("a"), "c": unit("c", ["a"])},
        {"a": unit("a"), "b": unit("b")},
        {"a": unit("a"), "b": unit("b", ["a"]), "c": unit("c")},
        {"a": unit("a", fn=other), "b": unit("b", ["a"])},
        {"a": unit("a", timeout=5), "b": unit("b", ["a"])},
        {"a": unit("a", deadline=5), "b": unit("b", ["a"])},
        {"a": unit("a", priority=5), "b": unit("b", ["a"])},
        {"a": unit("a", mode="process"), "b": unit("b", ["a"])},
        {"a": unit("a", cost=5), "b": unit("b", ["a"])},
    ],
    ids=["name", "edge", "unit", "function", "timeout", "deadline", "priority", "mode", "cost"],
)
def test_the_fingerprint_changes_with_what_was_declared(changed: dict[str, Unit]) -> None:
    assert compile_plan(changed).fingerprint != compile_plan(BASE).fingerprint


def test_the_fingerprint_changes_with_the_number_of_retries() -> None:
    changed = {"a": unit("a", retries=2), "b": unit("b", ["a"])}
    assert compile_plan(changed).fingerprint != compile_plan(BASE).fingerprint


def test_the_fingerprint_is_the_same_for_the_same_declarations() -> None:
    again = {"a": unit("a"), "b": unit("b", ["a"])}
    assert compile_plan(again).fingerprint == compile_plan(BASE).fingerprint


def test_the_order_in_which_dependencies_are_named_does_not_change_the_fingerprint() -> None:
    first = plan_of({"a": [], "b": [], "c": ["a", "b"]})
    second = plan_of({"a": [], "b": [], "c": ["b", "a"]})
    assert first.fingerprint == second.fingerprint


@pytest.mark.parametrize("fn", [functools.partial(work), len, Owner().method, lambda ctx: 1])
def test_every_kind_of_callable_has_a_fingerprint(fn: Callable[..., Any]) -> None:
    assert re.fullmatch("[0-9a-f]{16}", compiled(unit("a", fn=fn)).fingerprint)


def test_a_callable_object_has_its_types_fingerprint_and_not_its_address() -> None:
    class Callable_:  # noqa: N801
        def __call__(self, ctx: Any) -> None: ...

    one, two = (compiled(unit("a", fn=Callable_())).fingerprint for _ in range(2))
    assert one == two


PROGRAM = """
from quantum_async.core.compile import compile_plan
from quantum_async.core.unit import QuantumUnit
units = {name: QuantumUnit(name, len, set("abcdefgh"[:n])) for n, name in enumerate("abcdefgh")}
print(compile_plan(units).fingerprint)
"""


@pytest.mark.slow
def test_the_fingerprint_is_the_same_in_other_processes_and_under_other_hash_seeds() -> None:
    printed = {
        subprocess.run(
            [sys.executable, "-c", PROGRAM],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for seed in ("1", "2")
    }
    here: dict[str, Unit] = {
        name: QuantumUnit(name, len, list("abcdefgh"[:n])) for n, name in enumerate("abcdefgh")
    }
    assert printed == {compile_plan(here).fingerprint}


# --- pictures -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("language", "start"), [("dot", "digraph"), ("mermaid", "flowchart"), ("svg", "<svg")]
)
def test_each_format_draws_every_unit(language: str, start: str) -> None:
    text = diamond().visualize(language)
    assert start in text
    assert all(name in text for name in ("load", "process", "validate", "store"))


def test_a_plan_is_drawn_as_dot_unless_told_otherwise() -> None:
    assert diamond().visualize() == diamond().visualize("dot")


def test_an_unknown_format_is_refused() -> None:
    with pytest.raises(ValueError, match="png"):
        diamond().visualize("png")


@pytest.mark.parametrize("language", ["dot", "mermaid", "svg"])
def test_a_picture_notes_mode_retries_and_timeout(language: str) -> None:
    plan = compiled(unit("a", mode="process", retries=3, timeout=1.5), unit("b"))
    picture = plan.visualize(language)
    assert all(note in picture for note in ("process", "3 retries", "timeout 1.5 s"))


def test_a_picture_marks_the_critical_path() -> None:
    # the two differ in nothing else that is drawn
    assert diamond(validate=5).visualize() != diamond(process=5).visualize()


@pytest.mark.parametrize("language", ["dot", "mermaid", "svg"])
def test_an_empty_plan_can_be_drawn(language: str) -> None:
    assert compiled().visualize(language)


# --- simulation -----------------------------------------------------------------------------------


def small(**priorities: float) -> ExecutionPlan:
    """Four units for two workers: a takes 3, b 1, c 1, and d, which waits for b, takes 4."""
    units = [("a", "", 3), ("b", "", 1), ("c", "", 1), ("d", "b", 4)]
    return compiled(
        *(unit(n, [*after], cost=cost, priority=priorities.get(n, 0)) for n, after, cost in units)
    )


def test_the_longest_path_first_gives_the_schedule_worked_out_by_hand() -> None:
    """Two workers: b and d back to back on one, a and c on the other.

    b|ddddd
    aaa|c
    """
    found = small().simulate(max_workers=2)
    assert found.starts == {"a": 0, "b": 0, "c": 3, "d": 1}
    assert found.ends == {"a": 3, "b": 1, "c": 4, "d": 5}
    assert found.makespan == 5


def test_first_in_first_out_gives_the_longer_schedule_worked_out_by_hand() -> None:
    """The same units: c was ready before d, so d waits for it.

    b|c|dddd
    aaa
    """
    found = small().simulate(max_workers=2, strategy="fifo")
    assert found.starts == {"a": 0, "b": 0, "c": 1, "d": 2}
    assert found.makespan == 6


def test_priority_comes_before_the_longest_path() -> None:
    found = small(c=10).simulate(max_workers=2)
    assert found.starts == {"b": 0, "c": 0, "d": 1, "a": 1}


def test_priority_alone_falls_back_on_declaration() -> None:
    found = small(d=1).simulate(max_workers=1, strategy=Strategy.PRIORITY)
    assert sorted(found.starts, key=found.starts.__getitem__) == ["a", "b", "d", "c"]


def test_without_a_limit_the_makespan_is_the_critical_path() -> None:
    assert small().simulate().makespan == 5
    assert diamond(load=1, process=2, validate=3, store=4).simulate().makespan == 8


def test_one_worker_takes_the_sum() -> None:
    assert small().simulate(max_workers=1).makespan == 9


def test_durations_may_be_given_by_name_and_the_rest_is_the_declared_cost() -> None:
    found = small().simulate({"d": 0.5, "b": 2})
    assert found.ends == {"a": 3, "b": 2, "c": 1, "d": 2.5}


def test_durations_may_be_a_function_of_the_name() -> None:
    assert small().simulate(lambda name: {"a": 7}.get(name, 2)).makespan == 7


def test_units_are_ranked_by_the_durations_of_the_simulation() -> None:
    plan = plan_of({"a": [], "b": []}, a=9, b=1)
    assert plan.simulate({"a": 1, "b": 9}, max_workers=1).starts == {"b": 0, "a": 9}


def test_units_that_take_no_time_are_simulated_too() -> None:
    plan = plan_of({"a": [], "b": ["a"], "c": ["b"]}, a=0, b=0, c=0)
    assert plan.simulate(max_workers=1).makespan == 0


def test_a_plan_can_be_simulated_again_and_again() -> None:
    plan = small()
    first = plan.simulate(max_workers=2)
    plan.simulate({"a": 50}, max_workers=1, strategy="fifo")
    assert plan.simulate(max_workers=2) == first


@pytest.mark.parametrize("duration", [-1, math.nan, -math.inf, "1", None])
def test_a_duration_that_is_no_number_of_seconds_is_refused_by_name(duration: Any) -> None:
    with pytest.raises(PlanError, match="'b'"):
        small().simulate({"b": duration})
    with pytest.raises(PlanError, match="'b'"):
        small().simulate(lambda name: duration if name == "b" else 1)


def test_a_duration_of_an_unknown_unit_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(PlanError, match=r"'prozess'.*did you mean 'process'\?"):
        diamond().simulate({"prozess": 1})


@pytest.mark.parametrize("workers", [0, -1])
def test_fewer_than_one_worker_is_refused(workers: int) -> None:
    with pytest.raises(PlanError, match="max_workers"):
        small().simulate(max_workers=workers)


@pytest.mark.parametrize("workers", [1.5, math.nan, "2", True])
def test_workers_that_are_no_whole_number_are_refused(workers: Any) -> None:
    with pytest.raises(PlanError, match="max_workers"):
        small().simulate(max_workers=workers)


@pytest.mark.parametrize("durations", [[1, 2], 3])
def test_durations_that_are_neither_mapping_nor_function_are_refused(durations: Any) -> None:
    with pytest.raises(PlanError, match="durations"):
        small().simulate(durations)


def test_an_unknown_strategy_is_refused_with_the_nearest() -> None:
    with pytest.raises(PlanError, match=r"strategy.*did you mean 'fifo'\?"):
        small().simulate(strategy="fifoo")


@st.composite
def plans(draw: st.DrawFn) -> ExecutionPlan:
    count = draw(st.integers(1, 12))
    names = [f"u{number}" for number in range(count)]
    after = {
        name: draw(st.sets(st.sampled_from(names[:number]), max_size=3)) if number else set()
        for number, name in enumerate(names)
    }
    declared = draw(st.permutations(names))
    return compiled(
        *(
            unit(
                name,
                sorted(after[name]),
                cost=draw(st.integers(0, 9)),
                priority=draw(st.integers(-1, 1)),
            )
            for name in declared
        )
    )


@pytest.mark.slow
@given(plans(), st.integers(1, 4), st.sampled_from(Strategy))
def test_every_schedule_keeps_the_order_the_workers_and_grahams_bound(
    plan: ExecutionPlan, workers: int, strategy: Strategy
) -> None:
    """Graham 1966: a schedule that wastes no worker is at most (2 - 1/m) times the best."""
    found = plan.simulate(max_workers=workers, strategy=strategy)
    costs = dict(zip(plan.names, plan.costs, strict=True))
    for name, above in plan.dependencies.items():
        assert found.ends[name] == found.starts[name] + costs[name]
        assert found.starts[name] >= max((found.ends[one] for one in above), default=0)
    for moment in found.starts.values():
        running = [n for n in costs if found.starts[n] <= moment < found.ends[n]]
        assert len(running) <= workers
    path = sum(costs[name] for name in plan.critical_path)
    total = sum(costs.values())
    assert found.makespan == max(found.ends.values())
    assert max(path, total / workers) <= found.makespan
    assert found.makespan <= total / workers + (1 - 1 / workers) * path + 1e-9


@pytest.mark.slow
@given(plans(), st.integers(1, 4), st.sampled_from(Strategy))
def test_no_unit_waits_while_a_worker_is_free(
    plan: ExecutionPlan, workers: int, strategy: Strategy
) -> None:
    found = plan.simulate(max_workers=workers, strategy=strategy)
    for name, above in plan.dependencies.items():
        ready = max((found.ends[one] for one in above), default=0)
        for moment in {ready, *found.starts.values(), *found.ends.values()}:
            if ready <= moment < found.starts[name]:
                running = [n for n in plan.names if found.starts[n] <= moment < found.ends[n]]
                assert len(running) == workers


@pytest.mark.slow
@given(plans(), st.integers(1, 4), st.sampled_from(Strategy))
def test_the_same_simulation_gives_the_same_schedule(
    plan: ExecutionPlan, workers: int, strategy: Strategy
) -> None:
    again = compile_plan(plan.units)
    assert plan.simulate(max_workers=workers, strategy=strategy) == again.simulate(
        max_workers=workers, strategy=strategy
    )
