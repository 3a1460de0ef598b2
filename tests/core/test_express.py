"""The short way through the scheduler gives what the long way gives."""

import hypothesis.strategies as st
import pytest
from hypothesis import given

from quantum_async.core.express import express, is_simple
from quantum_async.core.limits import Budget, checked_limits
from quantum_async.core.phases import READY
from quantum_async.core.scheduler import NOBODY, Scheduler
from quantum_async.core.triggers import Triggers
from tests.support.schedulers import Plan, dags, flat, skips

# What a unit does: has its result at once, goes on for so many starts of others, or fails at once.
_AT_ONCE, _FAILS = 0, -1


def _long_way(scheduler: Scheduler, does: list[int]) -> list[int]:
    """Drive to the end with `next_start` and `complete`; return the starts in order."""
    started, going = [], {}
    while not scheduler.finished:
        while (unit := scheduler.next_start()) != NOBODY:
            started.append(unit)
            if does[unit] == _AT_ONCE:
                scheduler.complete(unit)
            elif does[unit] == _FAILS:
                scheduler.fail(unit)
            else:
                going[unit] = does[unit]
            scheduler.check_invariants()
        _wait(scheduler, going)
    return started


def _short_way(scheduler: Scheduler, does: list[int], leave: list[bool]) -> list[int]:
    """Do the same with `express`, leaving it after some of the units."""
    started, going = [], {}
    while not scheduler.finished:
        for unit in express(scheduler, going):
            scheduler.check_invariants()
            started.append(unit)
            if does[unit] == _FAILS:
                scheduler.fail(unit)
            elif does[unit] != _AT_ONCE:
                going[unit] = does[unit]
            if leave[unit]:
                if does[unit] == _AT_ONCE:
                    scheduler.complete(unit)
                break
        else:
            scheduler.check_invariants()
            _wait(scheduler, going)
    return started


def _wait(scheduler: Scheduler, going: dict[int, int]) -> None:
    """Let the one end that ends first; then tell of skips."""
    if going:
        first = min(going, key=lambda unit: (going[unit], unit))
        del going[first]
        scheduler.complete(first)
    skips(scheduler)


@given(edges=dags(), data=st.data(), in_order=st.booleans(), most=st.sampled_from([None, 1, 2]))
def test_both_ways_start_the_same_units_in_the_same_order(edges, data, in_order, most):
    count = len(edges)
    of_each = st.lists(st.integers(_FAILS, 3), min_size=count, max_size=count)
    does = data.draw(of_each)
    leave = data.draw(st.lists(st.booleans(), min_size=count, max_size=count))
    make = Plan(edges).in_order if in_order else Plan(edges).as_they_come
    one, other = make(slots=(most,)), make(slots=(most,))
    assert _short_way(other, does, leave) == _long_way(one, does)
    assert other.phase == one.phase
    assert other.used == one.used == 0
    assert other.unfinished == 0


def test_a_unit_that_ended_in_the_queue_is_passed_over():
    scheduler = flat(3)
    scheduler.give_up(1)
    assert list(express(scheduler, ())) == [0, 2]


def test_a_slot_that_nobody_else_takes_is_given_back():
    scheduler = flat(2, slots=1)
    units = express(scheduler, ())
    assert [next(units), scheduler.used] == [0, 1]
    assert [next(units), scheduler.used] == [1, 1]
    assert next(units, None) is None
    assert scheduler.used == 0


def test_who_has_no_room_waits_and_the_gauge_is_named():
    scheduler = flat(2, slots=1)
    assert list(express(scheduler, {0, 1})) == [0]
    assert scheduler.phase[1] == READY
    assert scheduler.refused_by == set(scheduler.gauges[0])


@pytest.mark.parametrize(
    ("simple", "options"),
    [
        (True, {}),
        (True, {"max_running": 2}),
        (False, {"lanes": bytes([0, 1]), "slots": (None, None)}),
        (False, {"budget": Budget(checked_limits({"api": 1}), lambda: 0.0)}),
        (False, {"special": bytes([0, 1])}),
        (False, {"triggers": Triggers(bytes([0, 1]))}),
    ],
)
def test_it_is_for_runs_with_one_queue_and_nothing_special(simple, options):
    scheduler = Plan([[], []]).in_order(**options)
    assert is_simple(scheduler) is simple


def test_who_becomes_ready_is_told_to_those_who_want_to_hear_of_it():
    scheduler = Plan([[], [0]]).in_order()
    scheduler.just_ready = []
    units = express(scheduler, ())
    assert next(units) == 0
    assert next(units) == 1
    assert scheduler.just_ready == [1]
