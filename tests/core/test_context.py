"""What a unit sees: the mapping, what it refuses, and what of it travels."""

from __future__ import annotations

import json
import math
import pickle
from collections.abc import AsyncIterator, Mapping
from typing import Any

import cloudpickle
import pytest

from quantum_async.core.context import (
    DependencyResults,
    DetachedRun,
    ExecutionContext,
    MissingKeyError,
)
from quantum_async.core.effects import EffectLog
from quantum_async.core.errors import UndeclaredDependencyError
from quantum_async.core.record import Outcome
from quantum_async.core.states import UnitState
from quantum_async.core.unit import QuantumUnit

load: Any = QuantumUnit("load", len)


def by_hand(**changed: Any) -> ExecutionContext[Any]:
    given: dict[str, Any] = {
        "unit_results": {"load": [1, 2]},
        "input": {"scale": 3},
        "unit_id": "total",
    }
    return ExecutionContext(**(given | changed))


class Run:
    """A run of three units, in which `total` declared `load` and not `secret`."""

    run_id = "run-1"
    effects = EffectLog()
    input: Any
    metrics: dict[str, Any]
    environment: Mapping[str, Any]

    def __init__(self, input: Any = None) -> None:  # noqa: A002
        self.input = input
        self.metrics = {}
        self.environment = {"mode": "auto"}
        self.emitted: list[tuple[int, int, Any]] = []
        self.names = ("load", "secret", "total")

    def unit_id(self, unit: int) -> str:
        return self.names[unit]

    def results(self, unit: int) -> Mapping[str, Any]:
        return {"load": 1} if unit == 2 else {}

    def is_unit(self, name: object) -> bool:
        return name in self.names

    def outcome(self, unit: int, dependency: str) -> Outcome | None:
        return Outcome(UnitState.COMPLETED, 1) if (unit, dependency) == (2, "load") else None

    def losses(self, unit: int) -> dict[str, Outcome]:
        return {}

    def stream(self, unit: int, dependency: str) -> AsyncIterator[Any]:
        raise NotImplementedError

    async def nest(
        self,
        unit: int,
        attempt: int,
        flow: Any,
        input: Any,  # noqa: A002
        options: dict[str, Any],
    ) -> Any:
        raise NotImplementedError

    def other_units(self, unit: int) -> frozenset[str]:
        return frozenset(self.names)

    def remaining(self, unit: int) -> float:
        return 10.0 + unit

    def emit(self, unit: int, attempt: int, value: Any) -> None:
        self.emitted.append((unit, attempt, value))


# --- a mapping ------------------------------------------------------------------------------------


def test_a_key_is_a_dependencys_result_else_a_key_of_the_input() -> None:
    ctx = by_hand()
    assert ctx["load"] == [1, 2]
    assert ctx[load] == [1, 2]
    assert ctx["scale"] == 3


def test_it_is_a_mapping_of_results_and_then_input() -> None:
    ctx = by_hand()
    assert list(ctx) == ["load", "scale"]
    assert len(ctx) == 2
    assert dict(ctx) == {"load": [1, 2], "scale": 3}
    assert list(ctx.items()) == [("load", [1, 2]), ("scale", 3)]
    assert ctx == {"load": [1, 2], "scale": 3}
    assert "load" in ctx
    assert load in ctx
    assert "scale" in ctx
    assert "nothing" not in ctx


def test_it_is_read_only() -> None:
    ctx: Any = by_hand()
    with pytest.raises(TypeError):
        ctx["load"] = 1
    with pytest.raises(TypeError):
        del ctx["load"]
    assert not hasattr(ctx, "update")


def test_it_can_be_unpacked_and_matched() -> None:
    assert "{load} {scale}".format(**by_hand()) == "[1, 2] 3"
    match by_hand():
        case {"scale": scale, **rest}:
            assert (scale, rest) == (3, {"load": [1, 2]})
        case _:
            pytest.fail("a mapping did not match")


def test_a_result_of_none_is_there() -> None:
    ctx = by_hand(unit_results={"load": None})
    assert ctx["load"] is None
    assert "load" in ctx
    assert ctx.get("load", "default") is None


def test_an_empty_one_is_false_and_says_so() -> None:
    ctx: ExecutionContext[None] = ExecutionContext()
    assert not ctx
    assert len(ctx) == 0
    assert repr(ctx) == "<ExecutionContext of '', attempt 1: empty>"


def test_the_repr_tells_unit_attempt_and_keys_but_no_values() -> None:
    text = repr(by_hand(attempt=2, input={"password": "hush"}))
    assert text == "<ExecutionContext of 'total', attempt 2: 'load', 'password'>"


def test_only_the_keys_of_a_mapping_are_seen_and_the_input_itself_is_whatever_it_is() -> None:
    given = object()
    ctx = by_hand(input=given)
    assert ctx.input is given
    assert list(ctx) == ["load"]
    assert "scale" not in ctx


def test_a_result_hides_an_input_key_of_its_name() -> None:
    ctx = by_hand(input={"load": "hidden"})
    assert ctx["load"] == [1, 2]
    assert list(ctx) == ["load"]


# --- what is not there ----------------------------------------------------------------------------


def test_a_missing_key_names_the_unit_the_key_and_the_nearest() -> None:
    with pytest.raises(KeyError) as caught:
        by_hand()["scael"]
    assert str(caught.value) == (
        "unit 'total' asked for 'scael', which is neither a declared dependency nor a key of the "
        "run's input; did you mean 'scale'?"
    )
    assert isinstance(caught.value, MissingKeyError)
    assert caught.value.name == "scael"


def test_get_gives_its_default_for_a_missing_key() -> None:
    ctx = by_hand()
    assert ctx.get("scael") is None
    assert ctx.get("scael", 7) == 7
    assert ctx.get("scale", 7) == 3
    assert ctx.get(load) == [1, 2]


def test_a_missing_key_is_one_also_where_the_inputs_keys_are_no_strings() -> None:
    with pytest.raises(KeyError, match="'x'"):
        by_hand(input={1: "one", ("a", 2): "two"})["x"]


def test_keys_of_the_input_need_not_be_strings() -> None:
    ctx: Any = by_hand(input={1: "one"})
    assert ctx[1] == "one"
    assert 1 in ctx


def test_an_undeclared_units_result_is_refused_with_what_to_add() -> None:
    ctx = ExecutionContext.of(Run(), 2, 1)
    with pytest.raises(UndeclaredDependencyError) as caught:
        ctx["secret"]
    assert "unit 'total' read the result of 'secret' without depending on it" in str(caught.value)
    assert "add 'secret' to the dependencies of 'total'" in str(caught.value)


def test_an_undeclared_unit_is_refused_in_every_way_of_asking() -> None:
    ctx = ExecutionContext.of(Run(), 2, 1)
    secret: Any = QuantumUnit("secret", len)
    for ask in (ctx.__getitem__, ctx.get, ctx.get_dependency_result):
        for key in ("secret", secret):
            with pytest.raises(UndeclaredDependencyError):
                ask(key)
    assert "secret" not in ctx
    assert secret not in ctx
    assert list(ctx) == ["load"]


def test_a_unit_may_not_read_its_own_result() -> None:
    with pytest.raises(UndeclaredDependencyError):
        ExecutionContext.of(Run(), 2, 1)["total"]


def test_an_undeclared_unit_is_refused_even_where_the_input_has_its_name() -> None:
    ctx = ExecutionContext.of(Run({"secret": "input"}), 2, 1)
    with pytest.raises(UndeclaredDependencyError):
        ctx["secret"]
    assert "secret" not in ctx


# --- the rest of what a unit sees -----------------------------------------------------------------


def test_a_dependencys_result_can_be_asked_for_by_name_and_handle() -> None:
    ctx = by_hand()
    assert ctx.get_dependency_result("load") == [1, 2]
    assert ctx.get_dependency_result(load) == [1, 2]
    assert ctx.get_dependency_result("nothing") is None
    assert ctx.get_dependency_result("scale") is None
    assert ctx.unit_results == {"load": [1, 2]}


def test_where_it_stands_is_what_it_was_told() -> None:
    ctx = by_hand(unit_id="a", attempt=3, run_id="r", environment={"mode": "auto"})
    assert (ctx.unit_id, ctx.attempt, ctx.run_id) == ("a", 3, "r")
    assert ctx.environment == {"mode": "auto"}
    assert ctx.remaining == math.inf


def test_where_it_stands_is_what_the_run_says() -> None:
    ctx = ExecutionContext.of(Run({"x": 1}), 2, 4)
    assert (ctx.unit_id, ctx.attempt, ctx.run_id, ctx.remaining) == ("total", 4, "run-1", 12.0)
    assert ctx.input == {"x": 1}
    assert ctx.environment == {"mode": "auto"}


def test_metrics_are_recorded_and_the_last_value_stays() -> None:
    metrics: dict[str, Any] = {"before": 0}
    ctx = by_hand(metrics=metrics)
    ctx.record_metric("rows", 1)
    ctx.record_metric("rows", 2)
    assert ctx.metrics is metrics
    assert metrics == {"before": 0, "rows": 2}


def test_contexts_made_by_hand_share_no_metrics() -> None:
    by_hand().record_metric("rows", 1)
    assert by_hand().metrics == {}


def test_what_is_emitted_goes_to_the_run_with_unit_and_attempt() -> None:
    run = Run()
    ExecutionContext.of(run, 2, 3).emit("half way")
    assert run.emitted == [(2, 3, "half way")]


def test_what_is_emitted_without_a_run_is_kept() -> None:
    ctx = by_hand()
    ctx.emit(1)
    ctx.emit(2)
    run = ctx._run
    assert isinstance(run, DetachedRun)
    assert run.emitted == [1, 2]


def test_a_detached_run_counts_down_once_it_has_a_clock() -> None:
    now = 5.0
    run = DetachedRun("a", None, {}, {}, {}, "r", limit=2.0)
    run.start_clock(lambda: now)
    ctx = ExecutionContext.of(run, 0, 1)
    assert ctx.remaining == 2.0
    now = 6.5
    assert ctx.remaining == 0.5
    now = 9.0
    assert ctx.remaining == 0.0


# --- travelling -----------------------------------------------------------------------------------


@pytest.mark.parametrize("library", [pickle, cloudpickle])
def test_it_travels_with_all_that_the_unit_may_see(library: Any) -> None:
    ctx = by_hand(attempt=2, run_id="r", metrics={"m": 1}, environment={"e": 2})
    again = pickle.loads(library.dumps(ctx))
    assert dict(again) == dict(ctx)
    assert again.input == {"scale": 3}
    assert again.metrics == {"m": 1}
    assert again.environment == {"e": 2}
    assert (again.unit_id, again.attempt, again.run_id) == ("total", 2, "r")


def test_of_a_run_only_what_was_declared_travels() -> None:
    run = Run({"x": 1})
    run.input["unit"] = "of the input"
    again = pickle.loads(pickle.dumps(ExecutionContext.of(run, 2, 1)))
    assert dict(again) == {"load": 1, "x": 1, "unit": "of the input"}


def test_an_undeclared_read_is_refused_far_away_too() -> None:
    again = pickle.loads(pickle.dumps(ExecutionContext.of(Run({"x": 1}), 2, 1)))
    for read in (again.__getitem__, again.get, again.get_dependency_result):
        with pytest.raises(UndeclaredDependencyError, match="add 'secret'"):
            read("secret")


def test_what_is_left_of_its_time_travels_and_is_counted_from_there_on() -> None:
    again = pickle.loads(pickle.dumps(ExecutionContext.of(Run(), 2, 1)))
    now = 100.0
    again._run.start_clock(lambda: now)
    assert again.remaining == 12.0
    now = 105.0
    assert again.remaining == 7.0


def test_its_values_are_the_callers_own_objects() -> None:
    given = {"scale": [1]}
    assert by_hand(input=given)["scale"] is given["scale"]


def test_as_a_dict_it_can_be_written_as_json() -> None:
    assert json.loads(json.dumps(dict(by_hand()))) == {"load": [1, 2], "scale": 3}


# --- the results of a run -------------------------------------------------------------------------

NAMES = tuple(f"u{number}" for number in range(40))
INDEX = {name: number for number, name in enumerate(NAMES)}


@pytest.mark.parametrize("units", [(), (3,), (1, 5, 2), tuple(range(20, 0, -1))])
def test_dependencies_results_are_looked_up_where_the_run_keeps_them(
    units: tuple[int, ...],
) -> None:
    values: list[Any] = [number * 10 for number in range(40)]
    results = DependencyResults(units, INDEX, NAMES, values)
    assert dict(results) == {f"u{number}": number * 10 for number in units}
    assert list(results) == [f"u{number}" for number in units]
    assert len(results) == len(units)
    assert "u30" not in results
    assert "nobody" not in results
    for name in ("u30", "nobody"):
        with pytest.raises(KeyError):
            results[name]
    if units:
        values[units[0]] = "new"
        assert results[f"u{units[0]}"] == "new"


async def test_a_run_inside_a_worker_process_is_refused() -> None:
    run = DetachedRun("a", None, {}, {}, {}, "r")
    run.start_clock(lambda: 0.0)
    with pytest.raises(RuntimeError, match=r"'a' called ctx\.run in a worker process"):
        await ExecutionContext.of(run, 0, 1).run(None)
