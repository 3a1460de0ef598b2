"""Assertions about runs: what holds is passed over, what does not is told with the timeline."""

import asyncio
import re

import pytest

from quantum_async import QuantumPartitioner, UnitState
from quantum_async.testing import Faults, assert_run, timeline
from tests.support.runs import (
    OUTSIDE,
    alone,
    broken,
    canceled,
    chain,
    done,
    given,
    late,
    made_run,
    skipped,
)


class Matrix:
    """Compares as arrays do."""

    def __init__(self, *same):
        self.same = same

    def __eq__(self, other):
        return Comparison(self.same)

    __hash__ = None


class Comparison:
    def __init__(self, same):
        self.same = same

    def __bool__(self):
        raise ValueError("the truth value of an array is ambiguous")

    def all(self):
        return all(self.same)


ROWS = {
    "a": done((0, 1), (2, 4), result=[1, 2]),
    "b": done((1, 3), result=None, where="thread", fallback=True, error=OSError("down")),
    "c": broken((4, 6), error=ValueError("no c: 404"), where="thread"),
    "d": skipped("c"),
    "e": late((3, 5), error=TimeoutError("too late")),
    "f": canceled((5, 6), cause="the caller was cancelled"),
    "g": given(7),
    "h": OUTSIDE,
    "i": done((4, 4), result=Matrix(True, False)),
    "j": skipped("d"),
    "k": given(Matrix(True, True)),
}
FLOW = alone(*ROWS)
RUN = made_run(FLOW, ROWS, 8)
A = FLOW.units["a"]


HOLDS = [
    lambda run: run.not_ok(),
    lambda run: run.state("a", "completed").state(A, UnitState.COMPLETED),
    lambda run: run.completed("a", A, "b", "g"),
    lambda run: run.failed("c"),
    lambda run: run.failed("c", ValueError, match=r"no .: \d+"),
    lambda run: run.failed("c", error=(OSError, ValueError)),
    lambda run: run.timed_out("e"),
    lambda run: run.canceled("f", match="^the caller"),
    lambda run: run.skipped("d", "j").skipped("d", because="c").skipped("j", because="d"),
    lambda run: run.only("timeout", "e").only("pending").only("completed", *"abgik"),
    lambda run: run.none("pending", UnitState.RUNNING),
    lambda run: run.not_in_run("h"),
    lambda run: run.result("a", [1, 2]).result("b", None).result("g", 7),
    lambda run: run.result("k", Matrix(True, True)),
    lambda run: run.attempts("a", 2).attempts("d", 0),
    lambda run: run.started("a", "c", "f").not_started("d", "g"),
    lambda run: run.ran_on("a", "loop").ran_on("b", "thread").ran_on("g", "given"),
    lambda run: run.fallback_used("b").fallback_used("b", None).no_fallback("a", "c"),
    lambda run: run.started_after("c", "a", "b").started_after("i", "a"),
    lambda run: run.started_in_order("a", "b", "e", "i", "c"),
    lambda run: run.overlapped("a", "b").overlapped("a", "e").overlapped("e", "i"),
    lambda run: run.never_overlapped("b", "c").never_overlapped("a", "i"),
    lambda run: run.max_running(3).max_running(2, on="loop").max_running(1, on="thread"),
    lambda run: run.took("a", at_least=4, at_most=4).took("e", at_most=2),
    lambda run: run.waited("e", at_least=3, at_most=3),
    lambda run: run.run_took(at_least=8, at_most=8),
]


@pytest.mark.parametrize("check", HOLDS)
def test_what_holds_is_passed_over_and_can_be_chained(check):
    run = assert_run(RUN)
    assert check(run) is run


FAILS = [
    (lambda run: run.ok(), "expected the run to be ok; but it is not"),
    (lambda run: run.state("a", "failed"), "expected 'a' to be failed; but it is completed"),
    (lambda run: run.completed(), "expected 'c' to be completed; but it is failed: ValueError: no"),
    (lambda run: run.completed("a", "d"), "but it is skipped ('c' failed)"),
    (lambda run: run.failed("b"), "expected 'b' to be failed; but it is completed"),
    (lambda run: run.failed("c", OSError), "'c' to fail with OSError; but it raised ValueError"),
    (lambda run: run.failed("c", (OSError, EOFError)), "to fail with OSError or EOFError; but"),
    (lambda run: run.failed("c", match="^404"), "the error of 'c' to match '^404'; but it is 'no"),
    (lambda run: run.timed_out("e", "a"), "expected 'a' to be timeout; but it is completed"),
    (lambda run: run.canceled("f", match="limit"), "cause of 'f' to match 'limit'; but it is 'the"),
    (lambda run: run.skipped("a"), "expected 'a' to be skipped; but it is completed"),
    (lambda run: run.skipped("j", because="c"), "because of 'c'; but it was because of 'd'"),
    (
        lambda run: run.only("skipped", "d", "a"),
        "only 'a', 'd' to be skipped; but 'j' too; 'a' not",
    ),
    (lambda run: run.only("failed"), "expected only no unit to be failed; but 'c' too"),
    (
        lambda run: run.none("failed", "timeout"),
        "no unit to be failed or timeout; but 'c' is failed, 'e' is timeout",
    ),
    (lambda run: run.not_in_run("a"), "expected 'a' not to be in the run; but it is"),
    (lambda run: run.completed("h"), "expected 'h' to be in the run; but it is not"),
    (lambda run: run.result("a", [1]), "the result of 'a' to be [1]; but it is [1, 2]"),
    (lambda run: run.result("c", 1), "expected 'c' to have the result 1; but it has none"),
    (lambda run: run.result("i", 3), "the result of 'i' to be 3; but it is"),
    (lambda run: run.attempts("a", 1), "expected attempts of 'a' to be 1; but it is 2"),
    (lambda run: run.started("d"), "expected 'd' to have started; but it is skipped ('c' failed)"),
    (lambda run: run.not_started("d", "a"), "expected 'a' never to start; but it did"),
    (lambda run: run.ran_on("b", "loop"), "place of 'b' to be 'loop'; but it is 'thread'"),
    (lambda run: run.fallback_used("a"), "'a' to use its fallback; but it has a result of its own"),
    (lambda run: run.fallback_used("b", 3), "the result of 'b' to be 3; but it is None"),
    (lambda run: run.no_fallback(), "'b' not to use its fallback; but it did, after OSError: down"),
    (
        lambda run: run.started_after("b", "a"),
        "expected 'b' to start after 'a'; but it started at 1 s, and 'a' ended at 4 s",
    ),
    (lambda run: run.started_after("d", "a"), "expected 'd' to have started"),
    (
        lambda run: run.started_in_order("b", "a"),
        "'b' to start before 'a'; but they did at 1 s and",
    ),
    (
        lambda run: run.overlapped("a", "b", "e"),
        "'a', 'b', 'e' to run at the same time; but 'a' ran from 0 to 1 s, from 2 to 4 s; 'b' ran",
    ),
    (lambda run: run.overlapped("a", "i"), "expected 'a', 'i' to run at the same time"),
    (
        lambda run: run.never_overlapped("a", "f", "e"),
        "expected 'a', 'e' not to run at the same time; but 'a' ran from 0 to 1 s, from 2 to 4 s",
    ),
    (lambda run: run.max_running(1), "at most 1 units to run at once; but 2 did at 2 s: 'b', 'a'"),
    (lambda run: run.max_running(0, on="thread"), "at once (on: thread); but 1 did at 1 s: 'b'"),
    (lambda run: run.took("a", at_most=3), "expected 'a' to take from 0 to 3 s; but it was 4 s"),
    (lambda run: run.waited("e", at_most=1), "expected 'e' to wait from 0 to 1 s; but it was 3 s"),
    (lambda run: run.run_took(at_most=1), "expected the run to take from 0 to 1 s; but it was 8 s"),
]


@pytest.mark.parametrize(("check", "message"), FAILS)
def test_what_does_not_hold_is_told_with_the_timeline(check, message):
    with pytest.raises(AssertionError, match=re.escape(message)) as caught:
        check(assert_run(RUN))
    assert str(caught.value).endswith(f"\n\n{timeline(RUN)}")


def test_a_run_that_is_ok():
    run = made_run(chain("a"), {"a": done((0, 1))}, 1)
    assert_run(run).ok().completed().none("failed", "skipped").no_fallback()
    with pytest.raises(AssertionError, match="not to be ok; but it is"):
        assert_run(run).not_ok()


@pytest.mark.parametrize(
    "check",
    [
        lambda run: run.completed("aa"),
        lambda run: run.failed("aa"),
        lambda run: run.skipped("d", because="aa"),
        lambda run: run.started_after("a", "aa"),
        lambda run: run.overlapped("a", "aa"),
        lambda run: run.not_in_run("aa"),
        lambda run: run.only("completed", "aa"),
    ],
)
def test_a_wrong_name_is_an_error_with_the_nearest(check):
    with pytest.raises(AssertionError, match="no unit 'aa' in this run; did you mean 'a'"):
        check(assert_run(RUN))


def test_a_handle_of_another_partitioner_is_an_error():
    stranger = alone("a").units["a"]
    with pytest.raises(AssertionError, match="'a' is of another partitioner"):
        assert_run(RUN).completed(stranger)


def test_a_wrong_state_is_an_error():
    with pytest.raises(ValueError, match="did you mean 'completed'"):
        assert_run(RUN).none("complete")


@pytest.mark.parametrize("method", ["timed_out", "canceled", "skipped", "none"])
def test_an_assertion_about_nothing_is_a_mistake(method):
    with pytest.raises(TypeError):
        getattr(assert_run(RUN), method)()


def test_only_results_are_taken():
    with pytest.raises(TypeError, match=r"takes a RunResult, not \{\}; of a run that raised"):
        assert_run({})


def test_the_unit_in_question_is_in_the_picture_of_a_big_run():
    rows = {f"unit_{number}": done((number, number + 1)) for number in range(1000)}
    with pytest.raises(AssertionError, match=r"\nunit_999 .*completed\n… and 960 more"):
        assert_run(made_run(alone(*rows), rows, 1000)).failed("unit_999")


def test_what_ends_makes_room_for_what_starts_at_that_moment():
    rows = {"a": done((0, 1)), "b": done((1, 2)), "c": done((1, 1)), "d": done((1, 1))}
    run = assert_run(made_run(alone(*rows), rows, 2))
    run.max_running(1).never_overlapped("a", "b", "c", "d")


@pytest.mark.parametrize(("check", "message"), FAILS)
def test_pytest_shows_the_line_of_the_test_and_not_ours(check, message):
    with pytest.raises(AssertionError) as caught:
        check(assert_run(RUN))
    assert all(
        entry.locals.get("__tracebackhide__")
        for entry in caught.traceback
        if entry.path.name == "assertions.py"
    )


# -- of real runs ----------------------------------------------------------------------------------


async def test_a_real_run():
    flow = QuantumPartitioner(max_workers=2, failure_policy="collect")
    both = asyncio.Barrier(2)

    @flow.unit
    async def d():
        await both.wait()

    @flow.unit
    async def e():
        await both.wait()

    @flow.unit
    async def a(d, e):
        return 1

    @flow.unit
    def c(a):
        return a + 1

    @flow.unit
    async def b(c): ...

    @flow.unit
    async def f(b): ...

    run = assert_run(await flow.run(faults=Faults().fail(b)))
    run.completed(a, d).failed("b").skipped(f, because=b).started_after("c", "a")
    run.overlapped("d", "e").max_running(2).ran_on(c, "thread").result(c, 2).attempts(f, 0)
    run.started_in_order("d", "e", "a", "c", "b")
