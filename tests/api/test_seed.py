"""The seed's document from top to bottom, each thing that it names, against this library.

`seed/quantum_partitioner.md` is what the product grew from. The differences on purpose (section 8
of the design) have tests at the end. Its TaskMap library is tested in `test_taskmap.py`.
"""

import asyncio
import os
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import FrozenInstanceError
from types import SimpleNamespace
from typing import Any

import pytest

from examples import agent_workflow, document_pipeline, provider_fanout
from quantum_async import (
    CircularDependencyError,
    ExecutionContext,
    ExecutionError,
    ExecutionMode,
    ExecutionPlan,
    FailurePolicy,
    PlanError,
    QuantumPartitioner,
    QuantumUnit,
    UndeclaredDependencyError,
    UnitState,
    UnitTimeoutError,
    select_execution_strategy,
    select_optimal_workers,
)
from quantum_async.core.events import UnitEmitted

Partitioner = QuantumPartitioner[Any, Any]

# Sub-interpreters have tests of their own: once there are some, uvloop cannot start processes.
_ELSEWHERE = ("custom", "interpreter", "remote")
WITHOUT_CUSTOM = [mode for mode in ExecutionMode if mode.value not in _ELSEWHERE]


def one(ctx: Any) -> int:
    return 1


def double(ctx: Any) -> int:
    return 2 * int(ctx["one"])


def negate(ctx: Any) -> int:
    return -int(ctx["one"])


def add(ctx: Any) -> int:
    return int(ctx["double"]) + int(ctx["negate"]) + int(ctx["offset"])


def fail(ctx: Any) -> None:
    raise ValueError("no luck")


def place(ctx: Any) -> tuple[int, int]:
    return os.getpid(), threading.get_ident()


async def async_place(ctx: Any) -> tuple[int, int]:
    await asyncio.sleep(0)
    return place(ctx)


def nap(ctx: Any) -> None:
    time.sleep(0.01)


def diamond(**options: Any) -> Partitioner:
    partitioner: Partitioner = QuantumPartitioner(**options)
    partitioner.add_unit(one, name="one")
    partitioner.add_unit(double, ["one"], "double")
    partitioner.add_unit(negate, ["one"], "negate")
    partitioner.add_unit(add, ["double", "negate"], "add")
    return partitioner


def half_broken() -> Partitioner:
    partitioner: Partitioner = QuantumPartitioner()
    partitioner.add_unit(one, name="one")
    partitioner.add_unit(fail, ["one"], "fail")
    partitioner.add_unit(lambda ctx: ctx["fail"], ["fail"], "after")
    return partitioner


# -- Core Implementation Structure -----------------------------------------------------------------


def test_unit_states() -> None:
    assert {state.name: state.value for state in UnitState} == {
        "PENDING": "pending",
        "RUNNING": "running",
        "COMPLETED": "completed",
        "FAILED": "failed",
        "SKIPPED": "skipped",
        "CANCELED": "canceled",
        "TIMEOUT": "timeout",
    }


def test_execution_modes() -> None:
    assert {mode.name: mode.value for mode in ExecutionMode} == {
        "SEQUENTIAL": "sequential",
        "PROCESS": "process",
        "THREAD": "thread",
        "ASYNC": "async",
        "CUSTOM": "custom",
        "AUTO": "auto",  # the default here; not in the seed
        "INTERPRETER": "interpreter",  # nor is this
        "REMOTE": "remote",  # nor this
    }


def test_a_unit_has_the_seeds_fields_and_defaults() -> None:
    unit: QuantumUnit[Any, int] = QuantumUnit(id="a", function=one)
    assert (unit.id, unit.function) == ("a", one)
    assert unit.dependencies == []
    assert unit.timeout is None
    assert unit.retries == 0
    assert unit.priority == 0
    assert unit.metadata == {}
    assert unit.state is UnitState.PENDING
    assert unit.result is None
    assert unit.error is None
    assert unit.execution_time is None
    assert unit.start_time is None
    assert unit.end_time is None
    assert unit.attempt == 0


def test_a_unit_takes_its_fields_in_the_seeds_order() -> None:
    unit: QuantumUnit[dict[str, Any], int] = QuantumUnit(
        "b", one, ["a"], 2.5, 3, 7, {"resource_type": "cpu"}
    )
    assert unit.dependencies == ["a"]
    assert (unit.timeout, unit.retries, unit.priority) == (2.5, 3, 7)
    assert unit.metadata == {"resource_type": "cpu"}


def test_units_do_not_share_their_metadata() -> None:
    first: QuantumUnit[Any, int] = QuantumUnit("a", one)
    second: QuantumUnit[Any, int] = QuantumUnit("b", one)
    first.metadata["x"] = 1
    assert second.metadata == {}


def test_a_partitioner_starts_empty() -> None:
    partitioner: QuantumPartitioner[dict[str, Any], int] = QuantumPartitioner[dict[str, Any], int](
        max_workers=4, default_execution_mode=ExecutionMode.THREAD
    )
    assert partitioner.max_workers == 4
    assert partitioner.default_execution_mode is ExecutionMode.THREAD
    assert partitioner.units == {}
    assert partitioner.completed_units == set()
    assert partitioner.failed_units == set()
    assert partitioner.get_partial_results() == {}
    assert partitioner.get_failed_units() == []
    assert QuantumPartitioner(3, ExecutionMode.ASYNC).max_workers == 3
    assert QuantumPartitioner().max_workers is None


# -- TaskMap Integration Details: add_unit ---------------------------------------------------------


def test_add_unit_returns_the_unit_and_keeps_it_by_name() -> None:
    partitioner: Partitioner = QuantumPartitioner()
    first = partitioner.add_unit(one, [], "one", 1.5, 2, {"a": 1})
    assert (first.timeout, first.retries, first.metadata) == (1.5, 2, {"a": 1})
    second = partitioner.add_unit(
        fn=double, dependencies=["one"], name="two", timeout=None, retries=0, metadata=None
    )
    assert partitioner.units == {"one": first, "two": second}
    assert second.dependencies == ["one"]
    assert second.metadata == {}


def test_units_without_a_name_are_numbered() -> None:
    partitioner: Partitioner = QuantumPartitioner()
    assert [partitioner.add_unit(one).id for _ in range(3)] == ["unit_0", "unit_1", "unit_2"]


def test_a_new_unit_makes_a_new_plan() -> None:
    partitioner = diamond()
    plan = partitioner.build_execution_plan()
    assert partitioner.build_execution_plan() is plan
    partitioner.add_unit(one, name="more")
    assert "more" in partitioner.build_execution_plan().units
    assert "more" not in plan.units


# -- build_execution_plan, ExecutionPlan -----------------------------------------------------------


def test_a_plan_has_levels() -> None:
    partitioner = diamond()
    plan = partitioner.build_execution_plan()
    assert isinstance(plan, ExecutionPlan)
    assert plan.units == partitioner.units
    assert plan.levels == plan.execution_order == [["one"], ["double", "negate"], ["add"]]
    assert plan.max_level == 3
    assert plan.unit_count == 4
    assert plan.max_parallel_units == 2


def test_a_plan_has_the_graph_in_both_directions() -> None:
    plan = diamond().build_execution_plan()
    assert plan.dependencies == {
        "one": set(),
        "double": {"one"},
        "negate": {"one"},
        "add": {"double", "negate"},
    }
    assert plan.dependents == {
        "one": {"double", "negate"},
        "double": {"add"},
        "negate": {"add"},
        "add": set(),
    }


def test_a_plan_finds_its_longest_dependency_chain() -> None:
    partitioner = diamond()
    partitioner.add_unit(one, ["negate"], "between")
    partitioner.add_unit(one, ["between", "add"], "last")
    assert partitioner.build_execution_plan().critical_path in (
        ["one", "double", "add", "last"],
        ["one", "negate", "add", "last"],
        ["one", "negate", "between", "last"],
    )


def test_a_plan_draws_itself_in_dot() -> None:
    dot = diamond().build_execution_plan().visualize()
    assert dot.startswith("digraph")
    assert dot.rstrip().endswith("}")
    for source, target in (("one", "double"), ("one", "negate"), ("double", "add")):
        assert f'"{source}" -> "{target}"' in dot


def test_a_plan_is_frozen() -> None:
    plan = diamond().build_execution_plan()
    with pytest.raises(FrozenInstanceError):
        plan.units = {}  # type: ignore[misc]
    with pytest.raises(TypeError):
        plan.units["more"] = QuantumUnit("more", one)  # type: ignore[index]


def test_a_circle_is_told_with_its_path() -> None:
    partitioner: Partitioner = QuantumPartitioner()
    partitioner.add_unit(one, ["c"], "a")
    partitioner.add_unit(one, ["a"], "b")
    partitioner.add_unit(one, ["b"], "c")
    with pytest.raises(CircularDependencyError, match="a → b → c → a"):
        partitioner.build_execution_plan()
    with pytest.raises(CircularDependencyError):
        partitioner.execute({})


def test_an_empty_partitioner_has_an_empty_plan_and_result() -> None:
    plan = QuantumPartitioner().build_execution_plan()
    assert (plan.unit_count, plan.max_level, plan.max_parallel_units) == (0, 0, 0)
    assert (plan.levels, plan.critical_path) == ([], [])
    assert QuantumPartitioner().execute({}) == {}


# -- execute ---------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("mode", WITHOUT_CUSTOM)
def test_execute_gives_the_same_results_in_each_mode(mode: ExecutionMode) -> None:
    results = diamond().execute({"offset": 10}, mode)
    assert results == {"one": 1, "double": 2, "negate": -1, "add": 11}
    assert list(results) == ["one", "double", "negate", "add"]
    assert type(results) is dict


def test_execute_takes_a_custom_executor() -> None:
    with ThreadPoolExecutor(2, thread_name_prefix="mine") as executor:
        partitioner = diamond()
        partitioner.add_unit(lambda ctx: threading.current_thread().name, name="where")
        results = partitioner.execute({"offset": 10}, ExecutionMode.CUSTOM, None, executor)
        assert results["add"] == 11
        assert results["where"].startswith("mine")
        assert executor.submit(one, {}).result() == 1  # it is still the user's


def test_custom_mode_without_an_executor_is_refused() -> None:
    partitioner = diamond()
    with pytest.raises(ValueError, match="custom_executor"):
        partitioner.execute({"offset": 10}, ExecutionMode.CUSTOM)
    assert partitioner.completed_units == set()


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="mode"):
        diamond().execute({"offset": 10}, "sequentially")


@pytest.mark.slow
@pytest.mark.parametrize("mode", WITHOUT_CUSTOM)
def test_each_mode_runs_functions_where_it_says(mode: ExecutionMode) -> None:
    partitioner: Partitioner = QuantumPartitioner()
    partitioner.add_unit(place, name="plain")
    partitioner.add_unit(async_place, name="coroutine")
    results = partitioner.execute({}, execution_mode=mode)
    here = place({})
    assert results["coroutine"] == here, "coroutine functions run on the loop in each mode"
    process, thread = results["plain"]
    assert (process == here[0]) is (mode is not ExecutionMode.PROCESS)
    assert ((process, thread) == here) is (mode is ExecutionMode.SEQUENTIAL)


def test_the_default_mode_is_the_partitioners() -> None:
    partitioner: Partitioner = QuantumPartitioner(default_execution_mode=ExecutionMode.SEQUENTIAL)
    partitioner.add_unit(place, name="place")
    assert partitioner.execute({})["place"] == place({})
    assert partitioner.execute({}, ExecutionMode.THREAD)["place"] != place({})


@pytest.mark.parametrize("given_to", ["constructor", "execute"])
def test_max_workers_is_how_many_units_run_at_once(given_to: str) -> None:
    running, most, lock = 0, 0, threading.Lock()

    def work(ctx: Any) -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.01)
        with lock:
            running -= 1

    partitioner: Partitioner = QuantumPartitioner(max_workers=2 if given_to != "execute" else 9)
    for _ in range(8):
        partitioner.add_unit(work)
    partitioner.execute({}, max_workers=2 if given_to == "execute" else None)
    assert most == 2


def test_execute_updates_states_and_results() -> None:
    partitioner = diamond()
    before = time.time()
    partitioner.execute({"offset": 10})
    assert partitioner.completed_units == {"one", "double", "negate", "add"}
    assert partitioner.failed_units == set()
    unit = partitioner.units["add"]
    assert unit.state is UnitState.COMPLETED
    assert unit.result == 11
    assert unit.error is None
    assert unit.attempt == 1
    assert unit.start_time is not None
    assert unit.end_time is not None
    assert unit.execution_time is not None
    assert before - 1 < unit.start_time <= unit.end_time < time.time() + 1
    assert unit.get_execution_time() == unit.execution_time
    assert unit.execution_time == pytest.approx(unit.end_time - unit.start_time, abs=1e-3)


def test_a_failed_unit_keeps_its_own_error() -> None:
    partitioner = half_broken()
    results = partitioner.execute({}, failure_policy="collect")
    assert results == {"one": 1}
    unit = partitioner.units["fail"]
    assert unit.state is UnitState.FAILED
    assert isinstance(unit.error, ValueError)
    assert unit.result is None
    assert partitioner.failed_units == {"fail"}
    assert partitioner.completed_units == {"one"}
    assert partitioner.units["after"].state is UnitState.SKIPPED


# -- Quantum Unit ----------------------------------------------------------------------------------


def test_a_unit_can_execute_when_its_dependencies_have_completed() -> None:
    unit = diamond().units["add"]
    assert not unit.can_execute(set())
    assert not unit.can_execute({"double"})
    assert unit.can_execute({"double", "negate", "one"})
    assert diamond().units["one"].can_execute(set())


def test_a_unit_that_has_not_run_has_no_execution_time() -> None:
    assert diamond().units["add"].get_execution_time() is None


def test_timeout_is_how_long_a_unit_may_take() -> None:
    partitioner: Partitioner = QuantumPartitioner()
    partitioner.add_unit(lambda ctx: asyncio.sleep(30), name="slow", timeout=0.01)
    with pytest.raises(ExecutionError):
        partitioner.execute({})
    unit = partitioner.units["slow"]
    assert unit.state is UnitState.TIMEOUT
    assert isinstance(unit.error, UnitTimeoutError)
    assert partitioner.failed_units == {"slow"}
    assert partitioner.get_failed_units() == [unit]


@pytest.mark.slow
def test_retries_are_further_attempts() -> None:
    attempts: list[int] = []

    def flaky(ctx: Any) -> str:
        attempts.append(ctx.attempt)
        if len(attempts) < 3:
            raise OSError("try again")
        return "at last"

    partitioner: Partitioner = QuantumPartitioner()
    unit = partitioner.add_unit(flaky, name="flaky", retries=2)
    assert partitioner.execute({}) == {"flaky": "at last"}
    assert attempts == [1, 2, 3]
    assert unit.attempt == 3
    assert unit.error is None


# -- Execution Context -----------------------------------------------------------------------------


def test_a_context_has_the_seeds_fields() -> None:
    context: ExecutionContext[Any] = ExecutionContext()
    assert (context.unit_results, context.metrics, context.environment) == ({}, {}, {})
    given: ExecutionContext[Any] = ExecutionContext(
        unit_results={"a": 1}, metrics={"m": 2}, environment={"e": 3}
    )
    assert (given.unit_results, given.metrics) == ({"a": 1}, {"m": 2})
    assert given.environment == {"e": 3}
    assert ExecutionContext({"a": 1}, {}, {})["a"] == 1


def test_contexts_do_not_share_their_metrics() -> None:
    first: ExecutionContext[Any] = ExecutionContext()
    first.record_metric("rows", 5)
    assert first.metrics == {"rows": 5}
    assert ExecutionContext().metrics == {}


def test_a_dependency_without_a_result_is_none() -> None:
    context: ExecutionContext[Any] = ExecutionContext(unit_results={"a": 1})
    assert context.get_dependency_result("a") == 1
    assert context.get_dependency_result("b") is None


def test_units_get_a_context() -> None:
    seen: dict[str, Any] = {}

    def look(ctx: ExecutionContext[Any]) -> None:
        seen["is one"] = isinstance(ctx, ExecutionContext)
        seen["results"] = dict(ctx.unit_results)
        seen["dependency"] = ctx.get_dependency_result("one")
        seen["input"] = (ctx["offset"], ctx.get("offset"), ctx.get("absent", 7), ctx.input)
        seen["keys"] = sorted(ctx)
        seen["environment"] = ctx.environment["mode"]
        ctx.record_metric("looked", 1)

    partitioner = diamond()
    partitioner.add_unit(look, ["one"], "look")
    partitioner.execute({"offset": 10})
    assert seen == {
        "is one": True,
        "results": {"one": 1},
        "dependency": 1,
        "input": (10, 10, 7, {"offset": 10}),
        "keys": ["offset", "one"],
        "environment": "auto",
    }
    assert partitioner.last_execution_metrics["looked"] == 1


def measure(ctx: Any) -> float:
    ctx.record_metric("rows", 5)
    ctx.emit("half way")
    return float(ctx.remaining)


@pytest.mark.slow
@pytest.mark.parametrize("mode", WITHOUT_CUSTOM)
def test_what_a_unit_records_arrives_from_each_mode(mode: ExecutionMode) -> None:
    emitted: list[str] = []

    def listen(event: Any) -> None:
        if isinstance(event, UnitEmitted):
            emitted.append(event.value)

    partitioner: Partitioner = QuantumPartitioner(observers=[listen])
    partitioner.add_unit(measure, name="measure", timeout=60)
    results = partitioner.execute({}, mode)
    assert partitioner.last_execution_metrics["rows"] == 5
    assert emitted == ["half way"]
    assert 0 < results["measure"] <= 60


# -- Custom Execution Strategies -------------------------------------------------------------------


def test_the_priority_strategy_starts_the_highest_first() -> None:
    partitioner: Partitioner = QuantumPartitioner(max_workers=1)
    order: list[str] = []
    for name, priority in (("low", -1), ("middle", 0), ("high", 5), ("higher", 9)):
        partitioner.add_unit(lambda ctx: order.append(ctx.unit_id), name=name, priority=priority)
    partitioner.add_unit(lambda ctx: order.append(ctx.unit_id), ["high"], "after high", priority=7)
    results = partitioner.execute_with_strategy({}, "priority")
    assert order == ["higher", "high", "after high", "middle", "low"]
    assert results.keys() == partitioner.units.keys()


@pytest.mark.slow
def test_the_resource_balanced_strategy_parts_cpu_and_io() -> None:
    partitioner: Partitioner = QuantumPartitioner(4, ExecutionMode.THREAD)
    for i in range(3):
        partitioner.add_unit(place, name=f"cpu_{i}", metadata={"resource_type": "cpu"})
        partitioner.add_unit(place, name=f"io_{i}", metadata={"resource_type": "io"})
    partitioner.add_unit(place, name="unmarked")
    results = partitioner.execute_with_strategy({}, "resource_balanced")
    for name, (process, thread) in results.items():
        assert (process == os.getpid()) is not name.startswith("cpu")
        assert (process, thread) != place({})


def test_the_adaptive_strategy_runs_everything() -> None:
    partitioner: Partitioner = QuantumPartitioner(max_workers=4)
    for i in range(20):
        partitioner.add_unit(nap, name=f"nap_{i}")
    partitioner.add_unit(lambda ctx: len(ctx.unit_results), list(partitioner.units), "count")
    assert partitioner.execute_with_strategy({}, "adaptive")["count"] == 20


@pytest.mark.parametrize("strategy", ["critical_path", "fifo"])
def test_the_other_strategies_run_everything(strategy: str) -> None:
    assert diamond().execute_with_strategy({"offset": 0}, strategy)["add"] == 1


def test_an_unknown_strategy_is_refused() -> None:
    with pytest.raises(PlanError, match="did you mean 'priority'"):
        diamond().execute_with_strategy({"offset": 0}, "prioritised")


# -- Execution Monitoring and Telemetry ------------------------------------------------------------


def test_monitoring_measures_units_and_run() -> None:
    partitioner = diamond()
    before = time.time()
    assert partitioner.execute_with_monitoring({"offset": 10})["add"] == 11
    metrics = partitioner.last_execution_metrics
    assert metrics.keys() == {
        "start_time",
        "end_time",
        "total_duration",
        "unit_times",
        "total_units",
        "completed_units",
        "failed_units",
        "execution_trace",
    }
    assert before - 1 < metrics["start_time"] <= metrics["end_time"] < time.time() + 1
    assert metrics["total_duration"] == pytest.approx(
        metrics["end_time"] - metrics["start_time"], abs=1e-6
    )
    counts = metrics["total_units"], metrics["completed_units"], metrics["failed_units"]
    assert counts == (4, 4, 0)
    assert metrics["unit_times"].keys() == partitioner.units.keys()
    for times in metrics["unit_times"].values():
        assert times.keys() == {"start", "end", "duration"}
        assert times["duration"] == pytest.approx(times["end"] - times["start"], abs=1e-3)


def test_monitoring_traces_what_happened_in_order() -> None:
    partitioner = diamond()
    partitioner.execute_with_monitoring({"offset": 10})
    trace = partitioner.last_execution_metrics["execution_trace"]
    assert [entry["time"] for entry in trace] == sorted(entry["time"] for entry in trace)
    told = [(entry["event"], entry["unit"]) for entry in trace]
    assert told[:2] == [("start", "one"), ("complete", "one")]
    assert told[-2:] == [("start", "add"), ("complete", "add")]
    assert sorted(told) == sorted(
        (event, unit) for event in ("start", "complete") for unit in partitioner.units
    )


def test_monitoring_has_its_figures_when_units_fail_too() -> None:
    partitioner = half_broken()
    with pytest.raises(ExecutionError):
        partitioner.execute_with_monitoring({})
    metrics = partitioner.last_execution_metrics
    counts = metrics["total_units"], metrics["completed_units"], metrics["failed_units"]
    assert counts == (3, 1, 1)
    assert metrics["unit_times"]["fail"]["error"] == "no luck"
    assert "after" not in metrics["unit_times"]
    failed = [entry for entry in metrics["execution_trace"] if entry["event"] == "error"]
    assert [(entry["unit"], entry["error"]) for entry in failed] == [("fail", "no luck")]


def test_without_a_run_there_are_no_metrics() -> None:
    assert not diamond().last_execution_metrics


# -- Fault Tolerance and Recovery ------------------------------------------------------------------


def test_recovery_puts_fallbacks_in_for_failed_units() -> None:
    partitioner: Partitioner = QuantumPartitioner()
    partitioner.add_unit(fail, name="fail", metadata={"fallback_value": [0]})
    partitioner.add_unit(lambda ctx: ctx["fail"] + [1], ["fail"], "after")
    assert partitioner.execute_with_recovery({}) == {"fail": [0], "after": [0, 1]}
    assert partitioner.units["fail"].state is UnitState.COMPLETED
    assert isinstance(partitioner.units["fail"].error, ValueError)


@pytest.mark.slow
def test_recovery_retries_before_it_falls_back() -> None:
    partitioner: Partitioner = QuantumPartitioner()
    unit = partitioner.add_unit(fail, name="fail", retries=1, metadata={"fallback_value": "x"})
    assert partitioner.execute_with_recovery({}) == {"fail": "x"}
    assert unit.attempt == 2


def test_recovery_raises_where_there_is_no_fallback() -> None:
    partitioner = half_broken()
    with pytest.raises(ExecutionError) as caught:
        partitioner.execute_with_recovery({})
    assert isinstance(caught.value.__cause__, ValueError)
    assert partitioner.get_partial_results() == {"one": 1}


def test_recovery_of_one_unit_does_not_hide_the_failure_of_another() -> None:
    partitioner = half_broken()
    partitioner.add_unit(fail, name="helped", metadata={"fallback_value": 0})
    with pytest.raises(ExecutionError) as caught:
        partitioner.execute_with_recovery({})
    assert caught.value.errors.keys() == {"fail"}
    assert partitioner.get_partial_results() == {"one": 1, "helped": 0}


# -- Performance Considerations --------------------------------------------------------------------


def wide(count: int, **metadata: str) -> Partitioner:
    partitioner: Partitioner = QuantumPartitioner()
    for i in range(count):
        partitioner.add_unit(one, name=f"{metadata.get('resource_type')}_{i}", metadata=metadata)
    return partitioner


@pytest.mark.parametrize(
    ("units", "kind", "expected"),
    [(10, "cpu", 4), (3, "cpu", 3), (10, "io", 8), (5, "io", 5), (0, "io", 1)],
)
def test_optimal_workers_follow_the_workload(
    units: int, kind: str, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("quantum_async.tuning.usable_cpus", lambda: 4)
    partitioner = wide(units, resource_type=kind)
    plan = partitioner.build_execution_plan()
    assert select_optimal_workers(partitioner.units, plan) == expected


def test_a_tie_of_cpu_and_io_counts_as_io(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quantum_async.tuning.usable_cpus", lambda: 1)
    partitioner = wide(2, resource_type="cpu")
    partitioner.add_unit(one)
    partitioner.add_unit(one)
    plan = partitioner.build_execution_plan()
    assert select_optimal_workers(partitioner.units, plan) == 2


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        (["async", "async", "io"], ExecutionMode.ASYNC),
        (["async", "io"], ExecutionMode.THREAD),
        (["io", "io", "cpu"], ExecutionMode.THREAD),
        (["io", "cpu"], ExecutionMode.PROCESS),
        (["cpu"], ExecutionMode.PROCESS),
        ([None, None, "io"], ExecutionMode.PROCESS),  # unmarked counts as CPU-bound
        ([], ExecutionMode.PROCESS),
    ],
)
def test_the_strategy_follows_the_workload(
    kinds: list[str | None], expected: ExecutionMode
) -> None:
    partitioner: Partitioner = QuantumPartitioner()
    for kind in kinds:
        partitioner.add_unit(one, metadata={"resource_type": kind} if kind else {})
    assert select_execution_strategy(partitioner.units) is expected


def test_coroutine_functions_count_as_async() -> None:
    partitioner: Partitioner = QuantumPartitioner()
    partitioner.add_unit(async_place)
    assert select_execution_strategy(partitioner.units) is ExecutionMode.ASYNC


# -- Caching and Memoization -----------------------------------------------------------------------


def caching(*args: Any, **kwargs: Any) -> Any:
    module = pytest.importorskip("quantum_async.caching")
    partitioner = module.CachingQuantumPartitioner(*args, **kwargs)
    assert isinstance(partitioner, QuantumPartitioner)
    return partitioner


def counts(partitioner: Any) -> tuple[int, int, int]:
    return partitioner.cache_hits, partitioner.cache_misses, len(partitioner.cache)


def square(ctx: Any) -> int:
    return int(ctx["x"]) ** 2


async def async_square(ctx: Any) -> int:
    return square(ctx)


def test_a_cache_starts_empty_and_takes_the_partitioners_arguments() -> None:
    partitioner = caching(3, default_execution_mode=ExecutionMode.ASYNC)
    assert partitioner.max_workers == 3
    assert partitioner.default_execution_mode is ExecutionMode.ASYNC
    assert partitioner.cache == {}
    assert counts(partitioner) == (0, 0, 0)


@pytest.mark.slow
@pytest.mark.parametrize("mode", WITHOUT_CUSTOM)
def test_cacheable_units_are_computed_once_in_each_mode(mode: ExecutionMode) -> None:
    partitioner = caching()
    partitioner.add_unit(square, name="plain", metadata={"cacheable": True})
    partitioner.add_unit(async_square, name="coroutine", metadata={"cacheable": True})
    for _ in range(3):
        assert partitioner.execute({"x": 4}, mode) == {"plain": 16, "coroutine": 16}
    assert counts(partitioner) == (4, 2, 2)
    assert partitioner.execute({"x": 5}, mode)["plain"] == 25
    assert counts(partitioner) == (4, 4, 4)


@pytest.mark.parametrize("metadata", [{}, {"cacheable": False}, {"cache_keys": ["x"]}])
def test_other_units_are_not_cached(metadata: dict[str, Any]) -> None:
    partitioner = caching()
    partitioner.add_unit(square, name="square", metadata=metadata)
    partitioner.execute({"x": 4})
    partitioner.execute({"x": 4})
    assert counts(partitioner) == (0, 0, 0)


def test_cache_keys_say_what_a_result_depends_on() -> None:
    partitioner = caching()
    partitioner.add_unit(
        square, name="square", metadata={"cacheable": True, "cache_keys": ["x", "absent"]}
    )
    for context in ({"x": 4, "request": 1}, {"x": 4, "request": 2}, {"x": 3, "request": 2}):
        partitioner.execute(context)
    assert counts(partitioner) == (1, 2, 2)


def test_without_cache_keys_the_whole_context_counts() -> None:
    partitioner = caching()
    partitioner.add_unit(square, name="square", metadata={"cacheable": True})
    for context in ({"x": 4, "request": 1}, {"x": 4, "request": 2}, {"request": 1, "x": 4}):
        partitioner.execute(context)
    assert counts(partitioner) == (1, 2, 2)


def test_results_of_dependencies_are_part_of_the_key() -> None:
    partitioner = caching()
    partitioner.add_unit(lambda ctx: ctx["x"] % 10, name="digit")
    partitioner.add_unit(
        lambda ctx: -ctx["digit"],
        ["digit"],
        "negated",
        metadata={"cacheable": True, "cache_keys": ["digit"]},
    )
    assert [partitioner.execute({"x": x})["negated"] for x in (4, 14, 5)] == [-4, -4, -5]
    assert counts(partitioner) == (1, 2, 2)


def test_two_units_do_not_share_a_result() -> None:
    partitioner = caching()
    metadata = {"cacheable": True, "cache_keys": ["x"]}
    partitioner.add_unit(square, name="square", metadata=metadata)
    partitioner.add_unit(lambda ctx: -ctx["x"], name="negated", metadata=metadata)
    assert partitioner.execute({"x": 4}) == {"square": 16, "negated": -4}
    assert counts(partitioner) == (0, 2, 2)


def test_failures_are_not_cached() -> None:
    partitioner = caching()
    partitioner.add_unit(square, name="square", metadata={"cacheable": True})
    for _ in range(2):
        with pytest.raises(ExecutionError):
            partitioner.execute({"x": "four"})
    assert partitioner.cache == {}
    assert partitioner.cache_hits == 0


def test_keys_need_no_hashable_values_and_stay_the_same() -> None:
    partitioner = caching()
    partitioner.add_unit(lambda ctx: sum(ctx["rows"]), name="sum", metadata={"cacheable": True})
    for _ in range(2):
        assert partitioner.execute({"rows": [1, 2], "options": {"a": {3}}})["sum"] == 3
    assert counts(partitioner) == (1, 1, 1)
    assert next(iter(partitioner.cache)).startswith("sum:")


# -- Integration with Atlas: the functions are those of the examples -------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("mode", [None, *WITHOUT_CUSTOM])
def test_provider_fan_out(mode: ExecutionMode | None) -> None:
    providers = [
        provider_fanout.HostedProvider("a", 0.01, 0.5),
        provider_fanout.LocalProvider("b", 0.01, 0.9),
    ]
    partitioner = provider_fanout.create_provider_execution_plan(providers, "why?")
    assert partitioner.max_workers == 3
    assert partitioner.default_execution_mode is ExecutionMode.THREAD
    assert list(partitioner.units) == ["provider_a", "provider_b", "aggregate_responses"]
    unit = partitioner.units["provider_a"]
    assert unit.timeout == 10.0
    assert unit.metadata == {"resource_type": "io", "provider": "a"}
    results = partitioner.execute({"query": "why?"}, mode)
    assert results["aggregate_responses"] == {"best": "b on 'why?'", "answers": 2}


@pytest.mark.slow
@pytest.mark.parametrize("mode", [None, *WITHOUT_CUSTOM])
def test_document_pipeline(mode: ExecutionMode | None) -> None:
    documents = [
        document_pipeline.Document("d0", "<p>One sentence. Two sentences.</p>"),
        document_pipeline.Document("d1", "<p>Three.</p>"),
    ]
    model = document_pipeline.EmbeddingModel(0.001)
    partitioner = document_pipeline.create_document_pipeline(documents, model)
    plan = partitioner.build_execution_plan()
    assert plan.levels == [
        ["extract_0", "extract_1"],
        ["chunk_0", "chunk_1"],
        ["embed_0", "embed_1"],
        ["index_embeddings"],
    ]
    results = partitioner.execute({}, mode)
    assert results["chunk_0"] == ["One sentence", "Two sentences"]
    indexed = [text for text, _ in results["index_embeddings"]]
    assert indexed == ["One sentence", "Two sentences", "Three"]


@pytest.mark.slow
@pytest.mark.parametrize("mode", [None, *WITHOUT_CUSTOM])
def test_multi_agent_orchestration(mode: ExecutionMode | None) -> None:
    agents = {
        "retrieval": agent_workflow.RetrievalAgent(),
        "reasoning": agent_workflow.ReasoningAgent(),
        "tool": agent_workflow.ToolAgent(),
        "response": agent_workflow.ResponseAgent(),
    }
    partitioner = agent_workflow.create_agent_workflow("How far to Lyon?", agents)
    plan = partitioner.build_execution_plan()
    tools = {"tool_agent_calculator", "tool_agent_calendar", "tool_agent_maps"}
    assert plan.dependencies["response_agent"] == {"reasoning_agent", *tools}
    assert plan.dependents["reasoning_agent"] == {"response_agent", *tools}
    results = partitioner.execute({"query": "How far to Lyon?"}, mode)
    assert results["retrieval_agent"] == ["a note about How", "a note about Lyon?"]
    assert "over the Alps" in results["response_agent"]


# -- Usage Patterns --------------------------------------------------------------------------------


def loading(**options: Any) -> Partitioner:
    partitioner: Partitioner = QuantumPartitioner(**options)
    partitioner.add_unit(fn=load_data, dependencies=[], name="load_data")
    partitioner.add_unit(fn=process_data, dependencies=["load_data"], name="process_data")
    partitioner.add_unit(fn=validate_data, dependencies=["load_data"], name="validate_data")
    partitioner.add_unit(
        fn=store_results, dependencies=["process_data", "validate_data"], name="store_results"
    )
    return partitioner


def load_data(context: Any) -> list[int]:
    return sorted(context["input_data"])


def process_data(context: Any) -> list[int]:
    return [2 * value for value in context["load_data"]]


def validate_data(context: Any) -> bool:
    return bool(min(context["load_data"]) > 0)


def store_results(context: Any) -> tuple[list[int], bool]:
    return context["process_data"], context["validate_data"]


def test_basic_parallel_execution() -> None:
    partitioner = loading(max_workers=4)
    plan = partitioner.build_execution_plan()
    assert plan.levels == [["load_data"], ["process_data", "validate_data"], ["store_results"]]
    assert plan.critical_path == ["load_data", "process_data", "store_results"]
    results = partitioner.execute({"input_data": [3, 1]})
    assert results["process_data"] == [2, 6]
    assert results["validate_data"] is True
    assert results["store_results"] == ([2, 6], True)


def test_advanced_execution_control() -> None:
    partitioner = loading(max_workers=8, default_execution_mode=ExecutionMode.PROCESS)
    metrics: dict[str, dict[str, float]] = {}

    def start_monitor(unit_id: str) -> None:
        metrics[unit_id] = {"start_time": time.time()}

    def end_monitor(unit_id: str, result: Any) -> None:
        metrics[unit_id]["end_time"] = time.time()
        metrics[unit_id]["duration"] = metrics[unit_id]["end_time"] - metrics[unit_id]["start_time"]

    partitioner.on_unit_start = start_monitor
    partitioner.on_unit_complete = end_monitor
    results = partitioner.execute(
        context={"input_data": [3, 1]}, execution_mode=ExecutionMode.THREAD, max_workers=4
    )
    assert results["store_results"] == ([2, 6], True)
    assert next(iter(metrics)) == "load_data"
    assert metrics.keys() == partitioner.units.keys()
    total_time = sum(m["duration"] for m in metrics.values())
    max_time = max(m["duration"] for m in metrics.values())
    assert total_time / max_time >= 1
    assert {record.ran_on for record in partitioner.last_result.units.values()} == {"thread"}  # type: ignore[union-attr]


def test_the_error_hook_hears_of_failures() -> None:
    partitioner = half_broken()
    heard: list[tuple[str, ...]] = []
    partitioner.on_unit_start = lambda unit_id: heard.append(("start", unit_id))
    partitioner.on_unit_complete = lambda unit_id, result: heard.append(("complete", unit_id))
    partitioner.on_unit_error = lambda unit_id, error: heard.append(("error", unit_id, str(error)))
    partitioner.execute({}, failure_policy="collect")
    assert heard == [
        ("start", "one"),
        ("complete", "one"),
        ("start", "fail"),
        ("error", "fail", "no luck"),
    ]


def test_hooks_may_be_methods_of_a_subclass() -> None:
    heard: list[tuple[str, Any]] = []

    class Monitored(QuantumPartitioner[Any, Any]):
        def on_unit_start(self, unit_id: str) -> None:
            heard.append((unit_id, None))

        def on_unit_complete(self, unit_id: str, result: Any) -> None:
            heard.append((unit_id, result))

    partitioner = Monitored()
    partitioner.add_unit(one, name="one")
    partitioner.execute({})
    assert heard == [("one", None), ("one", 1)]


def test_a_hook_that_raises_does_not_break_the_run() -> None:
    partitioner = diamond()
    partitioner.on_unit_start = lambda unit_id: 1 / 0
    assert partitioner.execute({"offset": 10})["add"] == 11


def recovering(fetch: Callable[[Any], Any], metadata: Mapping[str, Any]) -> Partitioner:
    partitioner: Partitioner = QuantumPartitioner(max_workers=4)
    partitioner.add_unit(
        fn=fetch,
        dependencies=[],
        name="fetch_data",
        retries=1,
        timeout=5.0,
        metadata={"resource_type": "io", **metadata},
    )

    def process_with_error_handling(context: Any) -> dict[str, Any]:
        data = context["fetch_data"]
        if data["status"] == "error":
            return {"processed": False}
        return {"processed": True, "result": sum(data["data"])}

    partitioner.add_unit(
        fn=process_with_error_handling, dependencies=["fetch_data"], name="process_data"
    )
    return partitioner


@pytest.mark.slow
def test_error_handling_falls_back() -> None:
    fallback = {"status": "error", "data": []}
    partitioner = recovering(fail, {"fallback_value": fallback})
    results = partitioner.execute({"api_url": "https://example.com/api"})
    assert results == {"fetch_data": fallback, "process_data": {"processed": False}}
    assert partitioner.get_failed_units() == []


@pytest.mark.slow
def test_error_handling_keeps_partial_results() -> None:
    partitioner = recovering(fail, {})
    partitioner.add_unit(one, name="one")
    with pytest.raises(ExecutionError, match="fetch_data: ValueError: no luck"):
        partitioner.execute({"api_url": "https://example.com/api"})
    assert partitioner.get_partial_results() == {"one": 1}
    assert [unit.id for unit in partitioner.get_failed_units()] == ["fetch_data"]


def test_error_handling_of_a_good_answer() -> None:
    partitioner = recovering(lambda ctx: {"status": "ok", "data": [1, 2]}, {})
    assert partitioner.execute({})["process_data"] == {"processed": True, "result": 3}


# -- Relationship to Patterns ----------------------------------------------------------------------


def test_plans_can_be_told_apart() -> None:
    plan = diamond().build_execution_plan()
    assert plan.fingerprint == diamond().build_execution_plan().fingerprint
    assert plan.fingerprint != half_broken().build_execution_plan().fingerprint


# -- Differences on purpose ------------------------------------------------------------------------


@pytest.mark.parametrize("policy", [None, *FailurePolicy])
def test_execute_raises_when_a_unit_failed_unless_asked_to_collect(
    policy: FailurePolicy | None,
) -> None:
    partitioner = half_broken()
    if policy is FailurePolicy.COLLECT:
        assert partitioner.execute({}, failure_policy=policy) == {"one": 1}
    else:
        with pytest.raises(ExecutionError) as caught:
            partitioner.execute({}, failure_policy=policy)
        assert caught.value.__cause__ is partitioner.units["fail"].error
    assert partitioner.get_partial_results() == {"one": 1}
    assert partitioner.get_failed_units() == [partitioner.units["fail"]]


def test_the_default_mode_is_auto() -> None:
    assert QuantumPartitioner().default_execution_mode is ExecutionMode.AUTO


def test_units_show_the_last_run_that_ended() -> None:
    partitioner: Partitioner = QuantumPartitioner()
    seen: list[tuple[UnitState, Any]] = []
    unit: QuantumUnit[Any, Any] = partitioner.add_unit(
        lambda ctx: seen.append((unit.state, unit.attempt)), name="unit"
    )
    partitioner.execute({})
    partitioner.execute({})
    assert seen == [(UnitState.PENDING, 0), (UnitState.COMPLETED, 1)]


async def test_runs_at_once_do_not_share_state() -> None:
    partitioner = diamond()
    results = await asyncio.gather(*(partitioner.run({"offset": n}) for n in range(20)))
    assert [result["add"] for result in results] == [1 + n for n in range(20)]


def test_a_context_is_a_mapping_that_cannot_be_written() -> None:
    context: Any = ExecutionContext(unit_results={"a": 1}, input={"b": 2})
    assert isinstance(context, Mapping)
    assert not isinstance(context, dict)
    assert dict(context) == {"a": 1, "b": 2}
    with pytest.raises(TypeError):
        context["c"] = 3


def read(ctx: Any) -> Any:
    return ctx["one"]


def read_with_get(ctx: Any) -> Any:
    return ctx.get("one")


def read_by_name(ctx: Any) -> Any:
    return ctx.get_dependency_result("one")


@pytest.mark.slow
@pytest.mark.parametrize("mode", WITHOUT_CUSTOM)
@pytest.mark.parametrize("way", [read, read_with_get, read_by_name])
def test_a_unit_sees_only_what_it_declared(way: Callable[[Any], Any], mode: ExecutionMode) -> None:
    partitioner: Partitioner = QuantumPartitioner()
    partitioner.add_unit(one, name="one")
    partitioner.add_unit(way, name="reader")
    partitioner.execute({}, mode, failure_policy="collect")
    assert isinstance(partitioner.units["reader"].error, UndeclaredDependencyError)


def test_nothing_waits_for_a_level() -> None:
    partitioner: Partitioner = QuantumPartitioner()
    second_level = threading.Event()
    partitioner.add_unit(lambda ctx: second_level.wait(30), name="slow")
    partitioner.add_unit(one, name="quick")
    partitioner.add_unit(lambda ctx: second_level.set(), ["quick"], "after quick")
    assert partitioner.build_execution_plan().levels == [["slow", "quick"], ["after quick"]]
    assert partitioner.execute({})["slow"] is True


def test_a_fallback_of_none_is_a_value() -> None:
    partitioner: Partitioner = QuantumPartitioner()
    partitioner.add_unit(fail, name="fail", metadata={"fallback_value": None})
    assert partitioner.execute_with_recovery({}) == {"fail": None}


def test_the_input_may_be_any_object() -> None:
    partitioner: QuantumPartitioner[SimpleNamespace, int] = QuantumPartitioner()
    partitioner.add_unit(lambda ctx: ctx.input.x + 1, name="more")
    assert partitioner.execute(SimpleNamespace(x=1)) == {"more": 2}


async def test_execute_does_not_block_a_running_loop() -> None:
    with pytest.raises(RuntimeError, match="await"):
        diamond().execute({"offset": 0})
