"""The tree of errors: who is whose kind, what they carry, what they say, and that they travel."""

from __future__ import annotations

import copy
import inspect
import pickle

import pytest

from quantum_async.core import errors
from quantum_async.core.context import MissingKeyError
from quantum_async.core.errors import (
    Backpressure,
    CircularDependencyError,
    ClusterError,
    DependencyError,
    DuplicateUnitError,
    ExecutionError,
    InternalError,
    MissingInputError,
    Overloaded,
    PlanError,
    QuantumError,
    RemoteError,
    RunTimeoutError,
    StaysRemoteError,
    UndeclaredDependencyError,
    UnitTimeoutError,
    UnknownDependencyError,
    UnpicklableUnitError,
    ViewError,
    WorkerCrashedError,
    did_you_mean,
)

ALL: list[Exception] = [
    QuantumError("what happened"),
    PlanError("what happened"),
    DuplicateUnitError("what happened"),
    UnknownDependencyError("what happened"),
    CircularDependencyError(["a", "b", "a"]),
    UnpicklableUnitError("what happened"),
    MissingInputError("what happened"),
    ExecutionError("what happened", {"a": ValueError("one"), "b": OSError(2, "two")}, {"c": 3}),
    RunTimeoutError("what happened", 1.5, {"c": 3}),
    UnitTimeoutError("what happened", "a", 2, 1.5, "deadline"),
    WorkerCrashedError("what happened", "a", "SIGSEGV"),
    Backpressure("api", 2.5, "what happened"),
    Overloaded("what happened"),
    DependencyError("what happened"),
    RemoteError("pkg.Odd", "bad", "Traceback …"),
    UndeclaredDependencyError("what happened"),
    ViewError("Order", ["'price': 'a lot' is no float"]),
    ClusterError("what happened"),
    StaysRemoteError("what happened"),
    InternalError("what happened"),
]

# What each error carries beside its message.
CARRIED = {
    CircularDependencyError: ("cycle",),
    ExecutionError: ("errors", "result"),
    RunTimeoutError: ("limit", "result"),
    UnitTimeoutError: ("unit", "attempt", "limit", "which"),
    WorkerCrashedError: ("unit", "how"),
    Backpressure: ("resource", "seconds"),
    ViewError: ("schema", "problems"),
    RemoteError: ("type_name", "remote_message", "traceback"),
}

# --- the tree -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "parents"),
    [
        (PlanError, (QuantumError, ValueError)),
        (DuplicateUnitError, (PlanError,)),
        (UnknownDependencyError, (PlanError,)),
        (CircularDependencyError, (PlanError,)),
        (UnpicklableUnitError, (PlanError,)),
        (MissingInputError, (PlanError,)),
        (ExecutionError, (QuantumError,)),
        (RunTimeoutError, (QuantumError, TimeoutError)),
        (UnitTimeoutError, (QuantumError, TimeoutError)),
        (WorkerCrashedError, (QuantumError,)),
        (Backpressure, (QuantumError,)),
        (Overloaded, (QuantumError,)),
        (DependencyError, (QuantumError, KeyError)),
        (RemoteError, (QuantumError,)),
        (ClusterError, (QuantumError,)),
        (StaysRemoteError, (QuantumError,)),
        (UndeclaredDependencyError, (QuantumError, KeyError)),
        (ViewError, (QuantumError, ValueError)),
        (InternalError, (QuantumError,)),
    ],
)
def test_the_tree_is_that_of_the_design(kind: type, parents: tuple[type, ...]) -> None:
    assert kind.__bases__ == parents


def test_every_error_of_the_module_is_tested_here() -> None:
    kinds = {
        kind
        for kind in vars(errors).values()
        if inspect.isclass(kind) and issubclass(kind, BaseException)
    }
    assert {type(error) for error in ALL} == kinds
    assert all(issubclass(kind, QuantumError) for kind in kinds)


@pytest.mark.parametrize("error", ALL, ids=lambda error: type(error).__name__)
def test_every_error_has_a_docstring_and_a_message_in_one_piece(error: Exception) -> None:
    assert type(error).__doc__
    assert len(error.args) == 1
    assert str(error) == error.args[0]


# --- travelling -----------------------------------------------------------------------------------


@pytest.mark.parametrize("error", ALL, ids=lambda error: type(error).__name__)
def test_every_error_survives_pickling_with_its_message_and_attributes(error: Exception) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert str(again) == str(error)
    assert again.args == error.args
    for name in CARRIED.get(type(error), ()):
        # A run's result stays where the run was.
        expected = None if name == "result" else getattr(error, name)
        assert repr(getattr(again, name)) == repr(expected)


@pytest.mark.parametrize("error", ALL, ids=lambda error: type(error).__name__)
def test_every_error_can_be_copied(error: Exception) -> None:
    assert str(copy.copy(error)) == str(error)


@pytest.mark.parametrize("error", ALL, ids=lambda error: type(error).__name__)
def test_notes_travel_along(error: Exception) -> None:
    error = copy.copy(error)
    error.add_note("unit 'a', attempt 2, in a thread")
    again = pickle.loads(pickle.dumps(error))
    assert again.__notes__ == ["unit 'a', attempt 2, in a thread"]


def test_a_plan_error_travels_with_all_its_problems() -> None:
    problems = [UnknownDependencyError("who?"), CircularDependencyError(["a", "a"])]
    again = pickle.loads(pickle.dumps(PlanError.of(problems)))
    assert list(map(str, again.problems)) == list(map(str, problems))
    assert list(map(type, again.problems)) == list(map(type, problems))


def test_a_lone_problem_is_its_own_only_problem_after_travelling_too() -> None:
    again = pickle.loads(pickle.dumps(DuplicateUnitError("twice")))
    assert again.problems == (again,)


def test_a_missing_key_of_a_context_travels() -> None:
    again = pickle.loads(pickle.dumps(MissingKeyError("unit 'a' asked for 'b'", "b")))
    assert (str(again), again.name) == ("unit 'a' asked for 'b'", "b")


# --- what they say and carry ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "error", [UndeclaredDependencyError("read 'b'"), MissingKeyError("read 'b'", "b")]
)
def test_key_errors_show_their_message_without_quotes_around_it(error: KeyError) -> None:
    assert str(error) == "read 'b'"


def test_a_circle_is_shown_with_arrows_and_kept_as_names() -> None:
    error = CircularDependencyError(["a", "b", "c", "a"])
    assert error.cycle == ("a", "b", "c", "a")
    assert "a → b → c → a" in str(error)
    assert error.problems == (error,)


def test_a_circle_of_a_thousand_is_shown_in_one_line() -> None:
    error = CircularDependencyError([str(number) for number in [*range(1000), 0]])
    assert len(error.cycle) == 1001
    assert len(str(error)) < 250
    assert "… 990 more …" in str(error)


def test_one_problem_stays_itself_and_several_become_a_numbered_list() -> None:
    one, two = PlanError("first"), DuplicateUnitError("second")
    assert PlanError.of([one]) is one
    both = PlanError.of([one, two])
    assert both.problems == (one, two)
    assert str(both) == "the plan has 2 problems:\n  1. first\n  2. second"


def test_an_execution_error_keeps_a_copy_of_the_errors() -> None:
    given: dict[str, BaseException] = {"a": ValueError()}
    error = ExecutionError("failed", given, None)
    given.clear()
    assert list(error.errors) == ["a"]


def test_a_remote_error_says_type_and_message() -> None:
    assert str(RemoteError("pkg.Odd", "bad", "…")) == "pkg.Odd: bad"


@pytest.mark.parametrize(
    "error",
    [RunTimeoutError("late", 1.0, None), UnitTimeoutError("late", "a", 1, 1.0, "timeout")],
)
def test_timeouts_are_timeout_errors_without_an_errno(error: TimeoutError) -> None:
    assert error.errno is None
    assert str(error) == "late"


# --- did you mean ---------------------------------------------------------------------------------


def test_the_nearest_name_is_offered() -> None:
    assert did_you_mean("laod", ["save", "load"]) == "; did you mean 'load'?"


def test_nothing_is_offered_where_nothing_is_near() -> None:
    assert did_you_mean("laod", ["zzz"]) == did_you_mean("laod", []) == ""


def test_anything_can_be_asked_for() -> None:
    assert did_you_mean(None, ["none", "some"]) == "; did you mean 'none'?"


def test_names_that_are_no_strings_are_no_reason_to_fail() -> None:
    assert did_you_mean("load", [1, ("a",), "load_"]) == "; did you mean 'load_'?"  # type: ignore[list-item]


def test_only_so_many_names_are_compared() -> None:
    names = [f"n{number}" for number in range(2_000)]
    assert did_you_mean("the one", [*names, "the one!"]) == ""
