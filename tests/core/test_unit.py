"""Units as they are declared: options and their refusals, handles, and which are coroutines."""

from __future__ import annotations

import functools
import math
import pickle
import types
from collections.abc import Callable, Coroutine
from typing import Any
from unittest.mock import AsyncMock, MagicMock

import cloudpickle
import pytest
import tenacity

from quantum_async.core.binding import ExactBinding, WiredBinding
from quantum_async.core.checks import check_number
from quantum_async.core.errors import PlanError
from quantum_async.core.options import DEFAULT_OPTIONS, NO_FALLBACK, make_options
from quantum_async.core.record import UnitRecord
from quantum_async.core.retry import RetryPolicy
from quantum_async.core.states import ExecutionMode, UnitState
from quantum_async.core.unit import QuantumUnit, is_coroutine_function

Unit = QuantumUnit[Any, Any]


def double(n: int) -> int:
    return 2 * n


class Result:
    """As much of a `RunResult` as a handle looks at."""

    def __init__(self, *records: UnitRecord) -> None:
        self.units = {record.name: record for record in records}


class Owner:
    """As much of a partitioner as a handle looks at."""

    def __init__(self, *records: UnitRecord) -> None:
        self.units: dict[str, Unit] = {}
        self.last_result: Result | None = Result(*records) if records else None


# --- options --------------------------------------------------------------------------------------


def test_a_unit_without_options_shares_the_default_ones() -> None:
    assert make_options("u") is DEFAULT_OPTIONS
    assert DEFAULT_OPTIONS.plain


def test_options_are_kept_as_they_were_given() -> None:
    policy = RetryPolicy()
    options = make_options(
        "u", timeout=1.5, deadline=9, retry=policy, fallback=0, priority=-2, mode="process", cost=3
    )
    assert (options.timeout, options.deadline, options.priority, options.cost) == (1.5, 9, -2, 3)
    assert options.retry is policy
    assert options.fallback == 0
    assert options.mode is ExecutionMode.PROCESS
    assert not options.plain


@pytest.mark.parametrize(
    "given",
    [
        {"timeout": 1},
        {"deadline": 1},
        {"retries": 1},
        {"retry": RetryPolicy()},
        {"fallback": None},
        {"metadata": {"fallback_value": None}},
    ],
    ids=lambda given: next(iter(given)),
)
def test_a_unit_with_limits_retries_or_fallback_is_not_plain(
    given: dict[str, Any],
) -> None:
    assert not make_options("u", **given).plain


@pytest.mark.parametrize(
    "given",
    [{"priority": 1}, {"cost": 1}, {"mode": "thread"}, {"binding": ExactBinding((), {})}],
    ids=lambda given: next(iter(given)),
)
def test_what_only_orders_places_or_calls_a_unit_leaves_it_plain(given: dict[str, Any]) -> None:
    assert make_options("u", **given).plain


def test_retries_become_a_policy_of_that_many_more_attempts() -> None:
    options = make_options("u", retries=2)
    assert options.retries == 2
    assert options.retry is not None
    assert options.retry.next_wait(2, error=ValueError()) is not None
    assert options.retry.next_wait(3, error=ValueError()) is None


def test_a_tenacity_object_is_read_as_a_policy() -> None:
    retrying = tenacity.AsyncRetrying(stop=tenacity.stop_after_attempt(2))
    retry = make_options("u", retry=retrying).retry
    assert isinstance(retry, RetryPolicy)
    assert retry.next_wait(2, error=ValueError()) is None


def test_none_is_a_fallback_and_no_fallback_is_none() -> None:
    assert make_options("u", fallback=None).fallback is None
    assert make_options("u", timeout=1).fallback is NO_FALLBACK
    assert repr(NO_FALLBACK) == "…"


def test_the_fallback_may_stand_in_the_metadata_as_in_the_seed() -> None:
    assert make_options("u", metadata={"fallback_value": {"data": []}}).fallback == {"data": []}
    assert make_options("u", metadata={"fallback_value": None}).fallback is None


def test_an_explicit_fallback_beats_the_one_in_the_metadata() -> None:
    assert make_options("u", fallback=1, metadata={"fallback_value": 2}).fallback == 1


@pytest.mark.parametrize("option", ["timeout", "deadline"])
def test_an_infinite_limit_is_no_limit(option: str) -> None:
    given: dict[str, Any] = {option: math.inf}
    options = make_options("u", **given)
    assert getattr(options, option) is None
    assert options.plain


def test_a_limit_of_zero_is_a_limit() -> None:
    assert make_options("u", timeout=0).timeout == 0


@pytest.mark.parametrize("mode", [*ExecutionMode, "THREAD", "Process", "async"])
def test_a_mode_is_taken_by_member_and_by_value_in_any_case(mode: Any) -> None:
    assert isinstance(make_options("u", mode=mode).mode, ExecutionMode)


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize("option", ["timeout", "deadline", "cost"])
@pytest.mark.parametrize("value", [-1, -0.001, math.nan, -math.inf, "5", True, [], 1j])
def test_a_number_of_seconds_that_is_none_is_refused_by_name(option: str, value: Any) -> None:
    with pytest.raises(PlanError, match=f"unit 'u': {option} must"):
        make_options("u", **{option: value})


@pytest.mark.parametrize("value", [math.nan, "high", [], True])
def test_a_priority_that_is_no_number_is_refused_by_name(value: Any) -> None:
    with pytest.raises(PlanError, match="unit 'u': priority must"):
        make_options("u", priority=value)


def test_a_priority_of_none_is_refused_or_means_zero() -> None:
    try:
        assert make_options("u", priority=None).priority == 0  # type: ignore[arg-type]
    except PlanError as error:
        assert "unit 'u': priority" in str(error)  # noqa: PT017


@pytest.mark.parametrize("value", [-5, 2.5, -math.inf, math.inf])
def test_any_other_number_is_a_priority(value: float) -> None:
    assert make_options("u", priority=value).priority == value


@pytest.mark.parametrize("value", [-1, 1.5, "3", None, True, math.nan, math.inf])
def test_retries_that_are_no_whole_number_from_zero_up_are_refused(value: Any) -> None:
    with pytest.raises(PlanError, match="unit 'u': retries must be a whole number from 0 up"):
        make_options("u", retries=value)


@pytest.mark.parametrize("value", [False, 0.0])
def test_retries_that_only_equal_zero_are_refused_too(value: Any) -> None:
    with pytest.raises(PlanError, match="retries"):
        make_options("u", retries=value)


def test_retries_and_a_policy_together_are_refused() -> None:
    with pytest.raises(PlanError, match="unit 'u' has both retries= and retry="):
        make_options("u", retries=2, retry=RetryPolicy())


def test_a_bad_policy_is_refused_in_the_units_name() -> None:
    with pytest.raises(PlanError, match="unit 'u': retry must be a RetryPolicy"):
        make_options("u", retry="often")


def test_an_unknown_mode_is_refused_with_the_nearest() -> None:
    with pytest.raises(PlanError, match=r"unit 'u': mode .*did you mean 'process'\?"):
        make_options("u", mode="proces")


@pytest.mark.parametrize("mode", [3, object(), UnitState.FAILED])
def test_a_mode_of_another_type_is_refused(mode: Any) -> None:
    with pytest.raises(PlanError, match="unit 'u': mode must be one of"):
        make_options("u", mode=mode)


def test_a_number_too_large_for_a_float_is_refused() -> None:
    with pytest.raises(PlanError, match="timeout"):
        make_options("u", timeout=10**400)


def test_options_of_no_unit_are_named_alone() -> None:
    with pytest.raises(PlanError, match=r"^timeout must not be negative"):
        check_number("", "timeout", -1)
    check_number("", "timeout", None)


# --- the handle before a run ----------------------------------------------------------------------


def test_a_handle_holds_what_was_declared() -> None:
    metadata = {"resource_type": "cpu"}
    unit: Unit = QuantumUnit("u", double, ["a"], 5.0, 2, 7, metadata)
    assert (unit.id, unit.name, unit.function, unit.dependencies) == ("u", "u", double, ["a"])
    assert (unit.timeout, unit.retries, unit.priority, unit.metadata) == (5.0, 2, 7, metadata)
    assert (unit.deadline, unit.mode, unit.cost) == (None, None, None)


def test_a_handle_made_by_hand_refuses_what_add_unit_refuses() -> None:
    with pytest.raises(PlanError, match="unit 'u': timeout"):
        QuantumUnit("u", double, timeout=-1)


def test_before_a_run_a_unit_is_pending_and_has_nothing() -> None:
    alone: Unit = QuantumUnit("u", double)
    owned: Unit = QuantumUnit("u", double, owner=lambda: Owner())
    for unit in (alone, owned):
        assert unit.state is UnitState.PENDING
        assert unit.attempt == 0
        for nothing in ("result", "error", "start_time", "end_time", "execution_time"):
            assert getattr(unit, nothing) is None
        assert unit.get_execution_time() is None
        assert unit.record == UnitRecord("u", UnitState.PENDING)


def test_after_a_run_a_handle_reads_the_last_one_that_ended() -> None:
    error = ValueError("no")
    record = UnitRecord(
        "u", UnitState.FAILED, None, error, attempts=3, started_at=10.0, ended_at=12.5, duration=2.5
    )
    owner = Owner(record)
    unit: Unit = QuantumUnit("u", double, owner=lambda: owner)
    assert unit.record is record
    assert (unit.state, unit.result, unit.error) == (UnitState.FAILED, None, error)
    assert (unit.attempt, unit.start_time, unit.end_time) == (3, 10.0, 12.5)
    assert unit.execution_time == unit.get_execution_time() == 2.5
    owner.last_result = Result(UnitRecord("u", UnitState.COMPLETED, 42))
    assert (unit.state, unit.result, unit.error) == (UnitState.COMPLETED, 42, None)


def test_a_unit_that_the_last_run_did_not_know_is_pending() -> None:
    owner = Owner(UnitRecord("other", UnitState.COMPLETED))
    assert QuantumUnit("u", double, owner=lambda: owner).state is UnitState.PENDING


def test_a_unit_can_execute_once_all_its_dependencies_are_completed() -> None:
    unit: Unit = QuantumUnit("u", double, ["a", "b"])
    assert not unit.can_execute(set())
    assert not unit.can_execute({"a"})
    assert unit.can_execute({"a", "b", "c"})
    assert QuantumUnit("root", double).can_execute(frozenset())


def test_a_handle_is_called_as_the_plain_function() -> None:
    assert QuantumUnit("u", double)(4) == 8
    assert QuantumUnit("u", double)(n=5) == 10


def test_a_handle_of_a_coroutine_function_gives_its_coroutine() -> None:
    async def later(n: int) -> int:
        return n

    coroutine = QuantumUnit("u", later)(3)
    assert isinstance(coroutine, Coroutine)
    with pytest.raises(StopIteration) as caught:
        coroutine.send(None)
    assert caught.value.value == 3


def test_handles_are_told_apart_by_identity_and_can_be_keys() -> None:
    one: Unit = QuantumUnit("u", double)
    two: Unit = QuantumUnit("u", double)
    assert one != two
    assert {one: 1, two: 2}[one] == 1


def test_a_handle_takes_no_attributes_of_chance() -> None:
    with pytest.raises(AttributeError):
        QuantumUnit("u", double).timeuot = 5  # type: ignore[attr-defined]
    with pytest.raises(AttributeError):
        QuantumUnit("u", double).timeout = 5  # type: ignore[misc]


def test_units_made_by_hand_share_no_metadata() -> None:
    QuantumUnit("u", double).metadata["x"] = 1
    assert QuantumUnit("u", double).metadata == {}


# --- dependencies ---------------------------------------------------------------------------------


def test_dependencies_are_names_whatever_they_were_given_as() -> None:
    first: Unit = QuantumUnit("first", double)
    unit: Unit = QuantumUnit("u", double, ["zero", first, "zero"])
    assert unit.dependencies == ["zero", "first"]
    assert unit.declared == ("zero", first, "zero")


def test_handles_among_the_arguments_are_dependencies_too() -> None:
    first: Unit = QuantumUnit("first", double)
    options = make_options("u", binding=ExactBinding(([first],), {}))
    assert QuantumUnit("u", double, ["zero"], options=options).dependencies == ["zero", "first"]


def test_parameters_are_dependencies_once_units_of_their_names_are_declared() -> None:
    owner = Owner()
    binding = WiredBinding.of(lambda page, url: None, "u")
    unit: Unit = QuantumUnit(
        "u", double, options=make_options("u", binding=binding), owner=lambda: owner
    )
    assert unit.dependencies == []
    owner.units["page"] = QuantumUnit("page", double)
    assert unit.dependencies == ["page"]


# --- repr and travelling --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("after", "text"),
    [
        ([], "<QuantumUnit 'u': pending>"),
        (["a"], "<QuantumUnit 'u' after a: pending>"),
        (["a", "b", "c", "d"], "<QuantumUnit 'u' after a, b, c, d: pending>"),
        (["a", "b", "c", "d", "e"], "<QuantumUnit 'u' after a, b, c, d, …: pending>"),
    ],
)
def test_the_repr_tells_name_dependencies_and_state_in_one_line(
    after: list[str], text: str
) -> None:
    assert repr(QuantumUnit("u", double, after)) == text


def test_the_repr_tells_the_state_of_the_last_run() -> None:
    owner = Owner(UnitRecord("u", UnitState.TIMEOUT))
    assert repr(QuantumUnit("u", double, owner=lambda: owner)) == "<QuantumUnit 'u': timeout>"


def test_a_handle_travels_as_its_declaration_without_its_partitioner() -> None:
    class Stuck:
        units: dict[str, Any] = {}  # noqa: RUF012
        last_result = None

        def __reduce__(self) -> Any:
            raise AssertionError("the partitioner must not travel")

    first: Unit = QuantumUnit("first", double)
    unit: Unit = QuantumUnit(
        "u", lambda n: n + 1, [first], metadata={"k": "v"}, retries=3, owner=Stuck()
    )
    again = pickle.loads(cloudpickle.dumps(unit))
    assert type(again) is QuantumUnit
    assert (again.id, again.dependencies, again.metadata) == ("u", ["first"], {"k": "v"})
    assert again(41) == 42
    assert again.state is UnitState.PENDING


def test_a_function_that_calls_a_handle_can_travel() -> None:
    helper: Unit = QuantumUnit("helper", lambda n: 2 * n, owner=lambda: Owner())
    again = pickle.loads(cloudpickle.dumps(lambda n: helper(n) + 1))
    assert again(20) == 41


# --- which functions are coroutines ---------------------------------------------------------------


async def coroutine(ctx: Any) -> None: ...


def plain(ctx: Any) -> None: ...


async def generator(ctx: Any) -> Any:
    yield ctx


class Methods:
    async def method(self, ctx: Any) -> None: ...

    @classmethod
    async def of_class(cls, ctx: Any) -> None: ...

    @staticmethod
    async def static(ctx: Any) -> None: ...

    def plain(self, ctx: Any) -> None: ...


class Asynchronous:
    async def __call__(self, ctx: Any) -> None: ...


class Synchronous:
    def __call__(self, ctx: Any) -> None: ...


@functools.wraps(coroutine)
def wrapped(*args: Any) -> Any:
    return coroutine(*args)


@pytest.mark.parametrize(
    "fn",
    [
        coroutine,
        functools.partial(coroutine, 1),
        functools.partial(functools.partial(coroutine), 1),
        Methods().method,
        Methods.of_class,
        Methods.static,
        functools.partial(Methods().method),
        Asynchronous(),
        Asynchronous().__call__,
        AsyncMock(),
    ],
)
def test_what_gives_a_coroutine_is_a_coroutine_function(fn: Callable[..., Any]) -> None:
    assert is_coroutine_function(fn) is True


@pytest.mark.parametrize(
    "fn",
    [
        plain,
        generator,
        functools.partial(plain, 1),
        Methods().plain,
        Synchronous(),
        Synchronous,
        Asynchronous,
        wrapped,
        len,
        [].append,
        print,
        int,
        MagicMock(),
        types.SimpleNamespace,
    ],
)
def test_what_gives_something_else_is_none(fn: Callable[..., Any]) -> None:
    assert is_coroutine_function(fn) is False


def test_a_partial_of_an_asynchronous_callable_object_gives_a_coroutine() -> None:
    assert is_coroutine_function(functools.partial(Asynchronous()))
