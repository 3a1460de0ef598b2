"""Limits, without a loop: rates over any window, bursts, claims, pauses; time is a number here."""

import math
from datetime import timedelta

import hypothesis.strategies as st
import pytest
from hypothesis import given

from quantum_async import Backpressure, Limit, PlanError
from quantum_async.core.limits import Budget, checked_limits, needs_of, seconds_of, unmet
from quantum_async.core.ranking import ranking_of
from quantum_async.core.scheduler import NOBODY, Scheduler


class Now:
    """A clock that is set by hand."""

    def __init__(self):
        self.time = 0.0

    def __call__(self):
        return self.time


def budget_of(**limits):
    now = Now()
    return Budget(checked_limits(limits), now), now


def took(budget, who, **tokens):
    """Take tokens if they are there; return whether they were."""
    needs = needs_of(who, tokens)
    if budget.wait(who, needs) > 0:
        return False
    budget.take(who, needs)
    return True


# -- rates -------------------------------------------------------------------------------------

NUMBERS = st.integers(1, 40).map(lambda n: n / 4)


@st.composite
def rates(draw):
    rate = draw(NUMBERS)
    burst = draw(st.none() | NUMBERS.filter(lambda burst: burst <= rate))
    return Limit(rate=rate, per=draw(NUMBERS), burst=burst)


def earliest(limit, starts, tokens, now):
    """Return when the rate allows so many tokens: by looking back from now over all that started.

    For each earlier start, what was taken from then on, this included, must fit into the window
    (or that start lie outside it), and into the burst and what was earned since.
    """
    per_second = limit.rate / limit.per
    burst = limit.rate if limit.burst is None else limit.burst
    at, taken = now, tokens
    for moment, others in reversed(starts):
        taken += others
        at = max(at, moment + (taken - burst) / per_second)
        if taken > limit.rate * (1 + 1e-9):
            at = max(at, moment + limit.per)
    return at


@given(
    limit=rates(),
    asked=st.lists(
        st.tuples(st.floats(0, 1), st.sampled_from([0, 0, 0, 0.3, 1, 7.7])), max_size=40
    ),
)
def test_a_rate_holds_over_any_window_and_grants_as_early_as_it_may(limit, asked):
    budget, now = budget_of(api=limit)
    starts = []
    for share, pause in asked:
        now.time += pause
        tokens = max(0.01, share * limit.most)
        needs = (("api", tokens),)
        expected = earliest(limit, starts, tokens, now.time)
        while (wait := budget.wait("u", needs)) > 0:
            now.time += wait
        assert now.time == pytest.approx(expected, abs=1e-6)
        budget.take("u", needs)
        starts.append((now.time, tokens))
    for first, (moment, _) in enumerate(starts):
        window = [tokens for at, tokens in starts[first:] if at < moment + limit.per - 1e-9]
        assert sum(window) <= limit.rate * (1 + 1e-6)


def test_without_burst_all_of_a_rate_may_come_at_once_and_then_nothing_for_a_window():
    budget, now = budget_of(api=Limit(rate=3, per=60))
    assert [took(budget, "u", api=1) for _ in range(4)] == [True, True, True, False]
    now.time = 59.9
    assert not took(budget, "u", api=1)
    now.time = 60.0
    assert [took(budget, "u", api=1) for _ in range(4)] == [True, True, True, False]


def test_burst_caps_what_starts_at_once_and_the_rest_is_spaced_evenly():
    budget, now = budget_of(api=Limit(rate=60, per=60, burst=2))
    starts = []
    while len(starts) < 6:
        wait = budget.wait("u", (("api", 1),))
        if wait:
            now.time += wait
        else:
            budget.take("u", (("api", 1),))
            starts.append(now.time)
    assert starts == pytest.approx([0, 0, 1, 2, 3, 4])


def test_a_rate_counts_what_was_given_back_too():
    budget, _ = budget_of(api=Limit(rate=1, per=10, concurrency=5))
    assert took(budget, "a", api=1)
    budget.give_back((("api", 1),))
    assert budget.wait("b", (("api", 1),)) == 10


def test_a_start_counts_from_when_it_was_stamped():
    budget, now = budget_of(api=Limit(rate=1, per=10))
    assert took(budget, "a", api=1)
    now.time = 3.0
    budget.stamp((("api", 1),))
    assert budget.wait("b", (("api", 1),)) == 10


# -- concurrency, several at once --------------------------------------------------------------


def test_tokens_of_several_limits_are_taken_together_or_not_at_all():
    budget, _ = budget_of(gpu=1, memory=8)
    assert took(budget, "a", gpu=1, memory=3)
    assert not took(budget, "b", gpu=1, memory=3)
    assert budget.used("memory") == 3  # nobody holds some while waiting for others
    assert took(budget, "c", memory=5)
    budget.give_back(needs_of("a", {"gpu": 1, "memory": 3}))
    assert took(budget, "b", gpu=1, memory=3)
    assert not budget.idle


def test_nobody_knows_when_tokens_in_use_come_back():
    budget, _ = budget_of(gpu=1)
    assert took(budget, "a", gpu=1)
    assert budget.wait("b", (("gpu", 1),)) == math.inf


@given(
    limits=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    units=st.lists(st.lists(st.integers(0, 4), min_size=3, max_size=3), min_size=1, max_size=12),
    data=st.data(),
)
def test_limits_are_never_passed_and_whoever_waits_gets_its_turn(limits, units, data):
    budget, _ = budget_of(**{f"l{number}": most for number, most in enumerate(limits)})
    wants = {}
    for number, tokens in enumerate(units):
        asked = {f"l{n}": min(t, limits[n]) for n, t in enumerate(tokens[: len(limits)])}
        wants[number] = needs_of(f"u{number}", asked)
    waiting, running = set(wants), []
    while waiting or running:
        order = data.draw(st.permutations(sorted(waiting)))
        for who in order:
            if budget.wait(who, wants[who]) == 0:
                budget.take(who, wants[who])
                waiting.discard(who)
                running.append(who)
        for number, most in enumerate(limits):
            name = f"l{number}"
            assert budget.used(name) <= most
            assert budget.used(name) == sum(dict(wants[who]).get(name, 0) for who in running)
        assert running  # else all wait for each other
        done = data.draw(st.sampled_from(running))
        running.remove(done)
        budget.give_back(wants[done])
    assert budget.idle


@pytest.mark.parametrize("limit", [Limit(concurrency=4), Limit(rate=4, per=1)])
def test_a_big_request_is_not_starved_by_small_ones(limit):
    budget, now = budget_of(gpu=limit)
    small, started = [], 0
    assert took(budget, "small", gpu=1)
    small.append(now.time)
    while not took(budget, "big", gpu=4):
        # Small ones come all the time: whatever is free is theirs at once.
        while took(budget, "small", gpu=1):
            small.append(now.time)
            started += 1
        now.time += 0.25
        budget.give_back((("gpu", 1),))
        assert started < 20
    assert took(budget, "small", gpu=1) is False


def test_who_claims_a_limit_claims_all_that_it_needs_or_none():
    budget, _ = budget_of(a=2, b=2)
    both = {"a": 2, "b": 2}
    assert took(budget, "s", a=1)
    assert took(budget, "s", b=1)
    for _ in range(6):
        # Two big ones are refused until both are owed the limits; they must not share them out.
        assert not took(budget, "x", **both)
        assert not took(budget, "y", **both)
        for name in both:
            if took(budget, "s", **{name: 1}):
                budget.give_back(((name, 1),))
    budget.give_back((("a", 1),))
    budget.give_back((("b", 1),))
    assert took(budget, "x", **both)
    budget.give_back(needs_of("x", both))
    assert took(budget, "y", **both)


def test_who_waits_no_more_claims_nothing():
    budget, _ = budget_of(gpu=2)
    assert took(budget, "stays", gpu=1)
    assert not took(budget, "big", gpu=2)
    while took(budget, "small", gpu=1):
        budget.give_back((("gpu", 1),))
        assert not took(budget, "big", gpu=2)
    budget.forget("big", (("gpu", 2),))
    assert took(budget, "small", gpu=1)


# -- pauses ------------------------------------------------------------------------------------


def test_a_pause_is_for_everybody_and_the_longest_counts():
    budget, now = budget_of(api=Limit(concurrency=5), other=1)
    assert budget.pause("api", 30)
    assert budget.pause("api", 10)  # no way to make it shorter
    assert budget.wait("a", (("api", 1),)) == 30
    assert took(budget, "b", other=1)
    now.time = 29.5
    assert budget.wait("a", (("api", 1),)) == 0.5
    now.time = 30.0
    assert took(budget, "a", api=1)
    assert not budget.pause("none", 1)


@pytest.mark.parametrize(
    ("given_as", "seconds"),
    [
        (3, 3.0),
        (0.5, 0.5),
        ("12", 12.0),
        (timedelta(minutes=1), 60.0),
        (None, 0.0),
        (-1, 0.0),
        (math.nan, 0.0),
        (math.inf, 0.0),
        pytest.param(10**400, 0.0, id="huge"),
        ("Wed, 21 Oct 2026 07:28:00 GMT", 0.0),
        (object(), 0.0),
    ],
)
def test_how_long_an_error_asks_to_be_left_alone(given_as, seconds):
    error = RuntimeError()
    error.retry_after = given_as
    assert seconds_of(error) == seconds


def test_an_error_whose_retry_after_raises_asks_for_nothing():
    class NastyError(Exception):
        @property
        def retry_after(self):
            raise RuntimeError("no")

    assert seconds_of(NastyError()) == 0.0
    assert seconds_of(ValueError()) == 0.0


# -- bad input ---------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [0, -1, math.nan, "3", True])
@pytest.mark.parametrize("option", ["concurrency", "rate", "per", "burst"])
def test_a_limit_refuses_what_limits_nothing_or_everything(option, value):
    options = {"rate": 5, option: value}
    with pytest.raises(PlanError, match=option):
        Limit(**options)


def test_a_limit_must_limit_something():
    with pytest.raises(PlanError, match="give a concurrency, or a rate"):
        Limit()
    with pytest.raises(PlanError, match="give a rate"):
        Limit(concurrency=2, burst=1)
    with pytest.raises(PlanError, match="per"):
        Limit(rate=1, per=math.inf)


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ([1], "must be a mapping"),
        ({"": 1}, "string that is not empty"),
        ({3: 1}, "string that is not empty"),
        ({"gpu": 0}, "'gpu'"),
        ({"gpu": "many"}, "'gpu' must be a number or a Limit"),
        ({"gpu": True}, "'gpu' must be a number or a Limit"),
    ],
)
def test_limits_are_checked_by_name(limits, words):
    with pytest.raises(PlanError, match=words):
        checked_limits(limits)
    assert checked_limits(None) == {}


@pytest.mark.parametrize("uses", [3, ["gpu"], {"gpu": -1}, {"gpu": math.nan}, {"gpu": None}])
def test_what_a_unit_uses_is_checked(uses):
    with pytest.raises(PlanError, match="'render'"):
        needs_of("render", uses)


def test_what_a_unit_uses_is_a_key_and_nothing_is_nothing():
    assert needs_of("u", {"b": 1, "a": 2, "c": 0}) == (("a", 2), ("b", 1))
    assert needs_of("u", "gpu") == (("gpu", 1),)


def test_what_could_never_start_is_said_with_the_nearest_name():
    limits = checked_limits({"openai": Limit(rate=500, burst=50)})
    assert unmet("ask", (("openai", 50),), limits) is None
    assert "did you mean 'openai'" in str(unmet("ask", (("opnai", 1),), limits))
    assert "the limit has 50: it would wait for ever" in str(
        unmet("ask", (("openai", 51),), limits)
    )


def test_limits_of_two_budgets_are_one_state_where_they_are_shared():
    now = Now()
    own = Budget(checked_limits({"gpu": 2, "api": 1}), now)
    shared = Budget(checked_limits({"api": 3}), now)
    both = own.with_shared(shared)
    assert both.limits == checked_limits({"gpu": 2, "api": 3})
    assert took(both, "a", api=2)
    assert shared.used("api") == 2
    assert own.used("api") == 0


@pytest.mark.parametrize("seconds", [-1, math.nan, math.inf, "soon", None])
def test_backpressure_says_for_how_long(seconds):
    with pytest.raises(ValueError, match="'api'"):
        Backpressure("api", seconds)


# -- the scheduler's lanes ---------------------------------------------------------------------


class OneUnit:
    edges_up = edges_down = ((),)
    in_degrees = (0,)


def test_units_that_use_the_same_share_a_lane_and_each_takes_its_own_tokens():
    budget, _ = budget_of(memory=10)
    scheduler = Scheduler(OneUnit(), ranking_of([0], [()]), budget=budget, special=b"\1")
    scheduler.open(scheduler.openings.popleft())
    three, six = (("memory", 3),), (("memory", 6),)
    assert scheduler.lane_with(0, ()) == 0
    lanes = [scheduler.lane_with(0, needs) for needs in (six, three, six)]
    assert lanes == [1, 2, 1]
    children = [scheduler.add(0, lane) for lane in lanes]
    for child in children:
        scheduler.queue(child)
    assert [scheduler.next_start() for _ in children] == [children[0], children[1], NOBODY]
    scheduler.check_invariants()
    assert budget.used("memory") == 9
    scheduler.complete(children[0])
    assert scheduler.next_start() == children[2]
    scheduler.check_invariants()
    for child in children[1:]:
        scheduler.complete(child)
    scheduler.complete(0)
    assert scheduler.finished
    assert budget.idle


def test_who_goes_on_after_a_pause_does_not_pay_its_rate_again():
    now = [0.0]
    budget = Budget({"api": Limit(concurrency=1, rate=1, per=60)}, lambda: now[0])
    needs = (("api", 1),)
    budget.take("a", needs)
    budget.give_back(needs)  # it waits for a nested run
    assert budget.wait("b", needs) == 60
    assert budget.wait("a", needs, again=True) == 0
    budget.take("a", needs, again=True)
    assert budget.used("api") == 1
    assert budget.wait("c", needs, again=True) == math.inf
    budget.give_back(needs)
    now[0] = 60.0
    assert budget.wait("b", needs) == 0
