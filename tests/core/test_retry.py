"""Retry policies: what they refuse, and what they decide; nothing here waits."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import CancelledError
from datetime import timedelta
from typing import Any

import pytest
import tenacity
import tenacity.asyncio
from hypothesis import given
from hypothesis import strategies as st
from tenacity import (
    retry_if_exception,
    retry_if_exception_type,
    retry_if_not_exception_type,
    retry_if_result,
    stop_after_attempt,
    stop_after_delay,
    stop_before_delay,
    stop_never,
    wait_chain,
    wait_exponential,
    wait_fixed,
    wait_none,
    wait_random,
)

from quantum_async.core.errors import PlanError
from quantum_async.core.retry import RetryPolicy, given_up_on, why_again

OOPS = ValueError("oops")


def always(state: tenacity.RetryCallState) -> bool:
    return True


async def asked(state: Any) -> bool:
    return True


class Asked:
    async def __call__(self, state: Any) -> bool:
        return True


# --- the default ----------------------------------------------------------------------------------


@given(st.integers(1, 5000))
def test_the_default_back_off_doubles_from_a_tenth_of_a_second_up_to_five(attempt: int) -> None:
    wait = RetryPolicy(stop=stop_never).next_wait(attempt, error=OOPS)
    assert wait is not None
    exact = 0.1 * 2.0 ** min(attempt - 1, 50)
    assert min(exact, 4.9) <= wait <= min(exact + 0.1, 5.0)


def test_the_default_back_off_jitters() -> None:
    policy = RetryPolicy(stop=stop_never)
    assert len({policy.next_wait(3, error=OOPS) for _ in range(20)}) > 1


def test_a_policy_makes_three_attempts_unless_told_otherwise() -> None:
    policy = RetryPolicy()
    assert policy.next_wait(2, error=OOPS) is not None
    assert policy.next_wait(3, error=OOPS) is None


@pytest.mark.parametrize("retries", [0, 1, 2, 7])
def test_so_many_retries_are_that_many_attempts_after_the_first(retries: int) -> None:
    policy = RetryPolicy.after(retries)
    waits = [policy.next_wait(attempt, error=OOPS) for attempt in range(1, retries + 2)]
    assert None not in waits[:-1]
    assert waits[-1] is None


def test_every_exception_is_tried_again_unless_told_otherwise() -> None:
    for error in (OOPS, OSError(), TimeoutError(), KeyError("k"), ExceptionGroup("g", [OOPS])):
        assert RetryPolicy().next_wait(1, error=error) is not None


def test_a_returned_value_is_not_tried_again_unless_told_otherwise() -> None:
    assert RetryPolicy().next_wait(1, value=None) is None
    assert not RetryPolicy().wants_again(1, None, 0.0)


# --- reading tenacity's objects -------------------------------------------------------------------


@pytest.mark.parametrize("kind", [tenacity.Retrying, tenacity.AsyncRetrying])
def test_the_strategies_of_a_tenacity_object_are_read(kind: Callable[..., Any]) -> None:
    given_ = kind(
        stop=stop_after_attempt(2), wait=wait_fixed(7), retry=retry_if_exception_type(OSError)
    )
    policy = RetryPolicy.of(given_)
    assert policy.next_wait(1, error=OSError()) == 7
    assert policy.next_wait(1, error=OOPS) is None
    assert policy.next_wait(2, error=OSError()) is None


@pytest.mark.parametrize("kind", [tenacity.Retrying, tenacity.AsyncRetrying])
def test_a_tenacity_object_is_never_run_and_its_callbacks_are_not_called(
    kind: Callable[..., Any],
) -> None:
    calls: list[Any] = []
    policy = RetryPolicy.of(
        kind(
            before=calls.append,
            after=calls.append,
            before_sleep=calls.append,
            retry_error_callback=calls.append,
            sleep=calls.append,
            stop=stop_after_attempt(1),
        )
    )
    assert policy.next_wait(1, error=OOPS) is None
    assert calls == []


def test_a_policy_is_taken_as_it_is() -> None:
    policy = RetryPolicy()
    assert RetryPolicy.of(policy) is policy


@pytest.mark.parametrize("given_", [3, "three", None, stop_after_attempt(3), tenacity.retry])
def test_anything_else_is_refused_with_what_to_give(given_: Any) -> None:
    with pytest.raises(PlanError, match=r"retry must be a RetryPolicy.*use retries="):
        RetryPolicy.of(given_)


# --- what is refused ------------------------------------------------------------------------------

MIXED: list[tuple[str, Callable[[], Any]]] = [
    ("stop", lambda: stop_after_attempt(3) & retry_if_exception_type(OSError)),
    ("stop", lambda: stop_after_attempt(3) | retry_if_exception_type(OSError)),
    ("retry", lambda: stop_after_attempt(3) & retry_if_exception_type(OSError)),
    ("retry", lambda: retry_if_exception_type(OSError) & stop_after_attempt(3)),
    ("retry", lambda: retry_if_exception_type(OSError) | stop_after_attempt(3)),
    ("retry", lambda: retry_if_exception_type(OSError) | wait_fixed(1)),  # type: ignore[operator]
    ("wait", lambda: wait_fixed(1) + stop_after_attempt(3)),  # type: ignore[operator]
    ("wait", lambda: wait_fixed(1) + retry_if_exception_type(OSError)),  # type: ignore[operator]
    ("wait", lambda: wait_chain(wait_fixed(1), stop_after_attempt(2))),  # type: ignore[arg-type]
    ("stop", lambda: stop_never | (stop_after_attempt(3) & (always_stop | wait_fixed(1)))),
    ("stop", lambda: wait_fixed(1)),
    ("stop", lambda: retry_if_exception_type(OSError)),
    ("wait", lambda: stop_after_attempt(3)),
    ("wait", lambda: retry_if_exception_type(OSError)),
    ("retry", lambda: stop_after_attempt(3)),
    ("retry", lambda: wait_fixed(1)),
]
always_stop: Any = stop_after_attempt(1)


@pytest.mark.parametrize(("role", "strategy"), MIXED)
def test_strategies_of_different_kinds_are_not_mixed(
    role: str, strategy: Callable[[], Any]
) -> None:
    with pytest.raises(PlanError, match=f"{role} strategy.*put them side by side"):
        RetryPolicy(**{role: strategy()})


def test_a_mixed_up_tenacity_object_is_refused_too() -> None:
    mixed: Any = stop_after_attempt(3) & retry_if_exception_type(OSError)
    with pytest.raises(PlanError, match="retry_if_exception_type"):
        RetryPolicy.of(tenacity.AsyncRetrying(stop=mixed))


def test_strategies_of_one_kind_may_be_joined() -> None:
    policy = RetryPolicy(
        stop=stop_after_attempt(9) | (stop_after_delay(60) & stop_after_attempt(2)),
        wait=wait_chain(wait_fixed(1), wait_fixed(2) + wait_none()),
        retry=retry_if_exception_type(OSError) | retry_if_result(lambda value: value is None),
    )
    assert policy.next_wait(1, error=OSError()) == 1
    assert policy.next_wait(2, error=OSError()) == 2
    assert policy.next_wait(2, error=OSError(), elapsed=61) is None
    assert policy.wants_again(1, None, 0)


def test_plain_functions_are_strategies_too() -> None:
    policy = RetryPolicy(
        stop=lambda state: state.attempt_number >= 2, wait=lambda state: 4, retry=always
    )
    assert policy.next_wait(1, error=OOPS) == 4
    assert policy.next_wait(2, error=OOPS) is None


@pytest.mark.parametrize("role", ["stop", "wait", "retry"])
@pytest.mark.parametrize("strategy", [asked, Asked()])
def test_an_asynchronous_strategy_is_refused(role: str, strategy: Any) -> None:
    with pytest.raises(PlanError, match=f"{role} strategy .* is asynchronous"):
        RetryPolicy(**{role: strategy})


def test_tenacitys_asynchronous_predicates_are_refused_also_inside_others() -> None:
    lone: Any = tenacity.asyncio.retry_if_exception(asked)
    with pytest.raises(PlanError, match="asynchronous"):
        RetryPolicy(retry=lone)
    with pytest.raises(PlanError, match="asynchronous"):
        RetryPolicy(retry=retry_if_exception_type(OSError) | lone)


@pytest.mark.parametrize("around", [retry_if_exception, retry_if_result])
def test_an_asynchronous_predicate_inside_a_plain_strategy_is_refused(
    around: Callable[[Any], Any],
) -> None:
    # Its coroutine would count as true and never be awaited: everything would be tried again.
    with pytest.raises(PlanError, match="asynchronous"):
        RetryPolicy(retry=around(asked))


@pytest.mark.parametrize("role", ["stop", "wait", "retry"])
@pytest.mark.parametrize("strategy", [3, "three", None])
def test_what_cannot_be_asked_is_refused(role: str, strategy: Any) -> None:
    with pytest.raises(PlanError, match=f"the {role} strategy must be one of tenacity's"):
        RetryPolicy(**{role: strategy})


@pytest.mark.parametrize(
    ("role", "strategy"), [("stop", stop_after_attempt), ("retry", retry_if_exception_type)]
)
def test_a_strategys_class_instead_of_a_strategy_is_refused(role: str, strategy: Any) -> None:
    with pytest.raises(PlanError, match=role):
        RetryPolicy(**{role: strategy})


# --- what is never tried again --------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        asyncio.CancelledError(),
        KeyboardInterrupt(),
        SystemExit(1),
        GeneratorExit(),
        BaseException(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_only_exceptions_are_ever_shown_to_a_predicate(error: BaseException) -> None:
    shown: list[Any] = []

    def predicate(state: tenacity.RetryCallState) -> bool:
        shown.append(state)
        return True

    policy = RetryPolicy(stop=stop_never, wait=wait_none(), retry=predicate)
    assert policy.next_wait(1, error=error) is None
    assert shown == []


def test_a_catch_all_predicate_does_not_bring_back_a_cancelled_unit() -> None:
    policy = RetryPolicy(stop=stop_never, retry=retry_if_not_exception_type(OSError))
    assert policy.next_wait(1, error=asyncio.CancelledError()) is None


def test_a_base_exception_group_is_not_tried_again() -> None:
    group = BaseExceptionGroup("both", [KeyboardInterrupt(), OOPS])
    assert RetryPolicy(stop=stop_never, retry=always).next_wait(1, error=group) is None


def test_the_cancelled_error_of_a_future_is_an_ordinary_exception() -> None:
    # `concurrent.futures.CancelledError` is an `Exception`, unlike asyncio's.
    assert RetryPolicy().next_wait(1, error=CancelledError()) is not None


# --- what strategies are told ---------------------------------------------------------------------


def test_a_predicate_is_told_the_attempt_and_its_outcome() -> None:
    seen: list[Any] = []

    def predicate(state: tenacity.RetryCallState) -> bool:
        outcome = state.outcome
        assert outcome is not None
        seen.append((state.attempt_number, outcome.exception(), state.seconds_since_start))
        return False

    assert RetryPolicy(retry=predicate).next_wait(4, error=OOPS, elapsed=2.5) is None
    assert seen == [(4, OOPS, pytest.approx(2.5))]


def test_a_predicate_may_choose_by_exception() -> None:
    policy = RetryPolicy(retry=retry_if_exception(lambda error: "again" in str(error)))
    assert policy.next_wait(1, error=ValueError("try again")) is not None
    assert policy.next_wait(1, error=ValueError("never mind")) is None


def test_a_value_can_be_turned_down_by_the_predicate() -> None:
    policy = RetryPolicy(
        stop=stop_after_attempt(2), wait=wait_fixed(1), retry=retry_if_result(lambda n: n < 3)
    )
    assert policy.wants_again(1, 2, 0.0)
    assert not policy.wants_again(1, 3, 0.0)
    assert policy.next_wait(1, value=2) == 1
    assert policy.next_wait(1, value=3) is None
    assert policy.next_wait(2, value=2) is None


def test_a_predicate_about_values_does_not_ask_for_another_try_after_an_exception() -> None:
    policy = RetryPolicy(retry=retry_if_result(lambda value: value is None))
    assert policy.next_wait(1, error=OOPS) is None


def test_a_value_turned_down_to_the_end_is_told_by_tenacitys_own_error() -> None:
    error = given_up_on(3, "too little")
    assert isinstance(error, tenacity.RetryError)
    assert error.last_attempt.result() == "too little"
    assert error.last_attempt.attempt_number == 3


def test_stop_after_delay_looks_at_the_time_since_the_first_start() -> None:
    policy = RetryPolicy(stop=stop_after_delay(10), wait=wait_fixed(3))
    assert policy.next_wait(50, error=OOPS, elapsed=9.9) == 3
    assert policy.next_wait(2, error=OOPS, elapsed=10.1) is None


def test_stop_before_delay_also_counts_the_wait_that_would_follow() -> None:
    policy = RetryPolicy(stop=stop_before_delay(10), wait=wait_fixed(3))
    assert policy.next_wait(50, error=OOPS, elapsed=6.9) == 3
    assert policy.next_wait(2, error=OOPS, elapsed=7.1) is None


def test_a_wait_grows_with_the_attempt() -> None:
    policy = RetryPolicy(stop=stop_never, wait=wait_exponential(multiplier=1, max=100))
    assert [policy.next_wait(attempt, error=OOPS) for attempt in (1, 2, 3, 9)] == [1, 2, 4, 100]


def test_waits_may_be_given_as_time_spans() -> None:
    policy = RetryPolicy(wait=wait_fixed(timedelta(minutes=2)))
    assert policy.next_wait(1, error=OOPS) == 120


@given(st.integers(1, 50))
def test_a_random_wait_stays_within_its_bounds(attempt: int) -> None:
    wait = RetryPolicy(stop=stop_never, wait=wait_random(1, 2)).next_wait(attempt, error=OOPS)
    assert wait is not None
    assert 1 <= wait <= 2


def test_a_wait_below_zero_is_no_wait() -> None:
    assert RetryPolicy(wait=lambda state: -3).next_wait(1, error=OOPS) == 0


def test_a_policy_is_frozen() -> None:
    with pytest.raises(AttributeError):
        RetryPolicy().stop = stop_never  # type: ignore[misc]


def test_one_policy_serves_many_units_and_remembers_nothing() -> None:
    policy = RetryPolicy(stop=stop_after_attempt(2), wait=wait_fixed(1))
    first = [policy.next_wait(attempt, error=OOPS) for attempt in (1, 2, 1, 2)]
    assert first == [1, None, 1, None]


# --- why ------------------------------------------------------------------------------------------


def test_why_an_attempt_is_made_good_is_told_whatever_the_users_methods_do():
    class HostileError(Exception):
        def __str__(self) -> str:
            raise SystemExit

        __repr__ = __str__

    assert why_again(OOPS, None) == "ValueError: oops"
    assert why_again(None, "x" * 999).startswith("turned down 'xxx")
    assert why_again(HostileError(), None) == "HostileError"
    assert why_again(None, HostileError()) == "HostileError"
