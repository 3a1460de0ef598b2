"""Lanes: whose slots and limits hold whom back, and how a run makes lanes of its own."""

from __future__ import annotations

import math

import pytest

from quantum_async.core.lanes import NO_LIMIT
from quantum_async.core.limits import Budget, Gauge, Limit
from quantum_async.core.phases import (
    CANCELED,
    COMPLETED,
    FAILED,
    READY,
    RUNNING,
    SKIPPED,
    TIMEOUT,
    WAITING,
)
from quantum_async.core.ranking import ranking_of
from quantum_async.core.scheduler import NOBODY, Scheduler
from tests.support.schedulers import Plan, drain, flat, skips

DB = (("db", 1),)
TWO_OF_DB = (("db", 2),)
API = (("api", 1),)


class Clock:
    """Seconds, turned by hand."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def limited(*needs, clock=None, slots=None, lanes=None, **limits):
    """Units that wait for nothing, each using what is said of it."""
    budget = Budget(limits, clock or Clock())
    kinds = list(dict.fromkeys(needs))
    return flat(
        len(needs),
        slots,
        lanes=bytes(kinds.index(need) for need in needs) if lanes is None else lanes,
        needs=kinds,
        budget=budget,
        gauges=[()] * len(kinds),
    ), budget


# -- gauges ---------------------------------------------------------------------------------------


def test_gauges_that_runs_share_are_held_by_whoever_comes_first():
    shared = Gauge(1)
    one, other = (Plan([[], []]).in_order(gauges=[(shared,)]) for _ in range(2))
    assert drain(one) == [0]
    assert drain(other) == []
    assert other.refused_by == {shared}
    assert (one.used, other.used, shared.used, shared.version) == (1, 0, 1, 0)
    one.complete(0)
    assert (one.used, shared.used, shared.version) == (0, 0, 1)
    assert drain(other) == [0]
    assert drain(one) == []


def test_a_unit_needs_room_in_all_gauges_of_its_lane_and_takes_a_slot_of_each():
    first, second = Gauge(3), Gauge(2)
    scheduler = Plan([[], [], []]).in_order(gauges=[(first, second)])
    assert drain(scheduler) == [0, 1]
    assert (first.used, second.used) == (2, 2)
    assert scheduler.refused_by == {second}
    scheduler.complete(0)
    scheduler.fail(1)
    assert (first.used, second.used) == (0, 0)
    assert (first.version, second.version) == (2, 2)


def test_a_gauge_that_was_made_smaller_is_over_its_capacity_and_has_no_room():
    scheduler = flat(3, max_running=2)
    assert drain(scheduler) == [0, 1]
    scheduler.resize(1)
    assert scheduler.max_running == 1
    scheduler.complete(0)
    assert drain(scheduler) == []
    scheduler.complete(1)
    assert drain(scheduler) == [2]


def test_a_run_without_a_limit_gets_one_while_it_runs():
    plan = Plan([[] for _ in range(6)])
    scheduler = plan.in_order(lanes=bytes([0, 1] * 3), slots=[None, 2])
    assert scheduler.max_running == NO_LIMIT
    assert [scheduler.next_start() for _ in range(2)] == [0, 1]
    scheduler.resize(3)
    assert scheduler.total.used == 2
    assert drain(scheduler) == [2]
    assert scheduler.max_running == 3
    scheduler.complete(0)
    assert drain(scheduler) == [3]
    scheduler.complete(2)
    assert drain(scheduler) == [4]  # two of the other lane run
    scheduler.check_invariants()


def test_all_that_may_run_in_all_and_in_each_lane_holds_at_once():
    plan = Plan([[] for _ in range(6)])
    scheduler = plan.in_order(lanes=bytes([0, 0, 0, 1, 1, 1]), slots=[1, 2], max_running=2)
    assert drain(scheduler) == [0, 3]
    assert scheduler.lane_used == [1, 1]
    scheduler.complete(0)
    assert drain(scheduler) == [1]
    scheduler.complete(1)
    scheduler.complete(3)
    assert drain(scheduler) == [2, 4]


def test_shared_gauges_come_beside_the_slots_of_the_run_itself():
    shared = Gauge(2)
    plan = Plan([[] for _ in range(4)])
    scheduler = plan.in_order(lanes=bytes([0, 0, 1, 1]), slots=[1, None], gauges=[(), (shared,)])
    assert drain(scheduler) == [0, 2, 3]
    assert shared.used == 2


def test_the_best_unit_comes_first_among_those_ready_at_the_start_and_since():
    #  0 → 3, 1 → 2; ranks: 0, 3, 1, 4, 2
    plan = Plan([[], [], [1], [0], []])
    scheduler = Scheduler(plan, ranking_of([0, 3, 1, 4, 2], plan.edges_up), max_running=1)
    order = []
    while (unit := scheduler.next_start()) != NOBODY:
        order.append(unit)
        scheduler.complete(unit)
    assert order == [0, 3, 1, 4, 2]


@pytest.mark.parametrize("ranking", [[0, 3, 1, 4, 2], [4, 1, 0, 3, 2], [1, 2, 4, 0, 3]])
def test_the_best_unit_comes_first_out_of_several_lanes_too(ranking):
    plan = Plan([[], [], [1], [0], []])
    scheduler = Scheduler(
        plan,
        ranking_of(ranking, plan.edges_up),
        lanes=bytes([0, 1, 0, 1, 1]),
        slots=[None, None],
        max_running=1,
    )
    order = []
    while (unit := scheduler.next_start()) != NOBODY:
        order.append(unit)
        scheduler.complete(unit)
    assert order == ranking


def test_a_lane_is_asked_for_its_best_units_in_order():
    plan = Plan([[], [], [1], [0], []])
    scheduler = Scheduler(plan, ranking_of([0, 3, 1, 4, 2], plan.edges_up), max_running=1)
    assert scheduler.next_start() == 0
    scheduler.complete(0)
    assert scheduler.ready_in(0) == 3
    assert [scheduler.reserve(0) for _ in range(4)] == [3, 1, 4, NOBODY]
    assert scheduler.ready_in(0) == 0


def test_what_became_ready_since_is_reserved_in_its_turn():
    #  0 → 2; ready at the start are 1, 3 and 4, and 2 comes between them
    plan = Plan([[], [], [0], [], []])
    scheduler = plan.in_order(max_running=1)
    assert scheduler.next_start() == 0
    scheduler.complete(0)
    assert [scheduler.reserve(0) for _ in range(5)] == [1, 2, 3, 4, NOBODY]


def test_roots_of_several_lanes_are_ready_from_the_start():
    plan = Plan([[], [], [0]])
    scheduler = plan.in_order(lanes=bytes([0, 1, 0]), slots=[1, 1])
    assert list(scheduler.phase) == [READY, READY, WAITING]
    assert [scheduler.ready_in(lane) for lane in (0, 1)] == [1, 1]


def test_what_is_given_or_outside_is_settled_before_the_start():
    scheduler = Plan([[], [0], [0], [1], []]).in_order(given=[1], outside=[0, 2], special=None)
    assert scheduler.unfinished == 2
    assert drain(scheduler) == [3, 4]
    fifo = Plan([[], [0], [0], [1], []]).as_they_come(given=[1], outside=[0, 2])
    assert drain(fifo) == [3, 4]


def test_what_nobody_needs_any_more_is_what_only_losers_needed():
    #  0 → 2 → 4 ← 3 ← 1 ← 0 ; 5 is wanted, and waits for 3
    plan = Plan([[], [0], [0], [1], [2, 3], [3]])
    scheduler = plan.in_order()
    drain(scheduler)
    assert scheduler.unneeded([4]) == [4, 2]
    assert scheduler.unneeded([4, 5]) == [4, 5, 2, 3, 1, 0]
    assert scheduler.unneeded([4, 5], wanted=[5]) == [4, 2]
    assert scheduler.unneeded([2]) == []
    scheduler.complete(0)
    assert scheduler.unneeded([4, 5, 4]) == [4, 5, 2, 3, 1]


def test_who_gives_items_is_needed_while_somebody_takes_them():
    plan = Plan([[], [0], [0]])
    scheduler = plan.in_order(streams={0: (1,)})
    assert scheduler.unneeded([2]) == [2]
    assert scheduler.unneeded([2, 0]) == [2]
    assert scheduler.unneeded([1, 2]) == [1, 2, 0]


# -- promises -------------------------------------------------------------------------------------


def test_a_follower_of_several_lanes_uses_its_own():
    scheduler = Plan([[] for _ in range(4)]).in_order(lanes=bytes([0, 1, 1, 1]), slots=[1, 1])
    assert drain(scheduler) == [0, 1]
    scheduler.follow(1, scheduler.reserve(1))
    scheduler.complete(1)
    assert scheduler.next_start() == 2
    assert scheduler.lane_used == [1, 1]
    assert drain(scheduler) == []


def test_the_end_of_one_without_a_follower_is_no_turn_of_anybodys():
    scheduler = flat(4, 2)
    assert drain(scheduler) == [0, 1]
    scheduler.follow(0, scheduler.reserve(0))
    scheduler.complete(1)
    assert drain(scheduler) == [3]
    scheduler.complete(0)
    assert drain(scheduler) == [2]


def test_a_follower_that_has_ended_does_not_take_the_turn_of_the_next():
    scheduler = flat(6, 2)
    assert drain(scheduler) == [0, 1]
    for before in (0, 1):
        scheduler.follow(before, scheduler.reserve(0))
    scheduler.follow(1, scheduler.reserve(0))
    for unit in (0, 1):
        scheduler.complete(unit)
    scheduler.give_up(2)
    assert drain(scheduler) == [4, 5]


def test_a_promise_to_one_that_is_not_ready_is_worth_nothing():
    scheduler = Plan([[], [0], []]).in_order(max_running=1)
    assert scheduler.next_start() == 0
    scheduler.follow(0, 1)
    assert not scheduler.has_follower(1)
    scheduler.retry(0)
    assert not scheduler.has_follower(0)
    assert drain(scheduler) == [2]


def test_one_that_was_reserved_and_goes_back_to_the_queue_became_ready_but_once():
    scheduler = flat(3, 2)
    scheduler.just_ready = []
    assert drain(scheduler) == [0, 1]
    scheduler.follow(0, scheduler.reserve(0))
    scheduler.resize(1)
    scheduler.complete(0)
    assert drain(scheduler) == []
    scheduler.complete(1)
    assert drain(scheduler) == [2]
    assert scheduler.just_ready == []


def test_followers_that_find_no_room_do_not_hold_back_other_lanes():
    scheduler = Plan([[] for _ in range(4)]).in_order(
        lanes=bytes([0, 0, 0, 1]), slots=[2, 1], max_running=2
    )
    assert [scheduler.next_start() for _ in range(2)] == [0, 1]
    scheduler.follow(0, scheduler.reserve(0))
    scheduler.gauges[0][1].capacity = 1
    scheduler.complete(0)
    assert drain(scheduler) == [3]
    scheduler.complete(1)
    assert drain(scheduler) == [2]


# -- limits ---------------------------------------------------------------------------------------


def test_units_use_a_limit_while_they_run():
    scheduler, budget = limited(DB, DB, TWO_OF_DB, API, db=Limit(2), api=Limit(1))
    assert drain(scheduler) == [0, 1, 3]
    assert (budget.used("db"), budget.used("api")) == (2, 1)
    assert scheduler.needs_of(2) == TWO_OF_DB
    assert scheduler.needs_at(0) == DB
    scheduler.complete(0)
    assert drain(scheduler) == []
    scheduler.complete(1)
    assert drain(scheduler) == [2]
    scheduler.complete(2)
    scheduler.complete(3)
    assert budget.idle


def test_who_is_held_back_by_a_limit_knows_what_to_listen_to():
    scheduler, budget = limited(DB, DB, db=Limit(1))
    assert drain(scheduler) == [0]
    assert scheduler.wakes_in == math.inf
    assert scheduler.refused_by == set(budget.gauges(DB))
    before = [gauge.version for gauge in budget.gauges(DB)]
    scheduler.complete(0)
    assert [gauge.version for gauge in budget.gauges(DB)] != before


def test_who_is_held_back_by_a_rate_knows_when_to_ask_again():
    clock = Clock()
    scheduler, _ = limited(
        DB, DB, API, API, clock=clock, db=Limit(rate=1, per=10), api=Limit(rate=1, per=4)
    )
    assert drain(scheduler) == [0, 2]
    assert scheduler.wakes_in == 4
    clock.now = 3.5
    scheduler.wakes_in = math.inf
    assert drain(scheduler) == []
    assert scheduler.wakes_in == 0.5
    clock.now = 4.0
    assert drain(scheduler) == [3]
    clock.now = 10.0
    scheduler.wakes_in = math.inf
    assert drain(scheduler) == [1]
    assert scheduler.wakes_in == math.inf


def test_units_that_use_nothing_are_not_held_back_by_limits():
    scheduler, budget = limited((), DB, (), DB, db=Limit(1))
    assert drain(scheduler) == [0, 1, 2]
    assert budget.used("db") == 1


def overtaken():
    """One run that needs all of a limit at once, and another that always had some of it.

    Others have been given twice the limit while the first waited: it claims all of it now. Returns
    the two, and which unit of the second still runs.
    """
    budget = Budget({"db": Limit(2)}, Clock())
    wide = flat(1, needs=[TWO_OF_DB], budget=budget)
    narrow = flat(20, needs=[DB], budget=budget)
    running = narrow.next_start()
    while True:
        assert drain(wide) == []
        if (unit := narrow.next_start()) == NOBODY:
            return wide, narrow, running
        narrow.complete(running)
        running = unit


def test_who_was_overtaken_twice_gets_all_of_it_and_claims_nothing_more():
    wide, narrow, running = overtaken()
    narrow.complete(running)
    assert narrow.next_start() == NOBODY
    assert wide.next_start() == 0
    wide.complete(0)
    assert narrow.next_start() == running + 1


def test_a_run_that_is_over_claims_nothing():
    wide, narrow, running = overtaken()
    wide.forget()
    assert narrow.next_start() == running + 1


def test_one_that_ended_in_the_queue_claims_nothing():
    wide, narrow, running = overtaken()
    narrow.complete(running)
    wide.give_up(0)
    assert drain(wide) == []
    assert narrow.next_start() == running + 1


def test_who_ended_in_the_queue_does_not_ask_for_tokens():
    #  0 → 2; ready at the start are 1, 3 and 4, and 2 comes between them
    scheduler = Plan([[], [], [0], [], []]).in_order(
        needs=[DB], budget=Budget({"db": Limit(1)}, Clock())
    )
    assert scheduler.next_start() == 0
    scheduler.complete(0)
    for unit in (1, 2):
        scheduler.give_up(unit)
    assert scheduler.next_start() == 3
    scheduler.give_up(4)
    assert scheduler.refused_by == set()
    assert drain(scheduler) == []
    assert scheduler.refused_by == set()
    scheduler.retry(3)
    scheduler.wake(3)
    scheduler.give_up(3)
    assert drain(scheduler) == []


def test_children_use_limits_too_also_in_lanes_that_were_made_for_them():
    budget = Budget({"db": Limit(1), "api": Limit(1)}, Clock())
    scheduler = Plan([[]]).in_order(special=[1], needs=[DB], budget=budget)
    scheduler.open(scheduler.openings.popleft())
    children = [scheduler.add(0, 0) for _ in range(4)]
    for child in children[2:]:
        scheduler.move(child, scheduler.lane_with(0, API))
    for child in children:
        scheduler.queue(child)
    assert drain(scheduler) == [children[0], children[2]]
    assert (budget.used("db"), budget.used("api")) == (1, 1)
    for child in (children[0], children[2]):
        scheduler.complete(child)
    assert drain(scheduler) == [children[1], children[3]]


# -- lanes that are made while the run goes on ----------------------------------------------------


def test_a_unit_may_be_moved_to_a_lane_with_other_needs():
    scheduler, budget = limited((), db=Limit(1))
    scheduler = Plan([[], [0], [0]]).in_order(needs=[()], budget=budget)
    lane = scheduler.lane_with(0, DB)
    assert lane == 1
    assert scheduler.lane_with(0, DB) == 1
    assert scheduler.lane_with(1, DB) == 1
    assert scheduler.lane_with(0, ()) == 0
    assert scheduler.lane_with(0, TWO_OF_DB) == 2
    assert [scheduler.ready_in(number) for number in range(3)] == [1, 0, 0]
    scheduler.move(1, lane)
    scheduler.move(2, lane)
    assert drain(scheduler) == [0]
    scheduler.complete(0)
    assert drain(scheduler) == [1]
    assert scheduler.lane_used == [0, 1, 0]
    assert budget.used("db") == 1
    scheduler.complete(1)
    assert drain(scheduler) == [2]


def test_a_lane_with_other_needs_has_the_slots_of_the_one_that_it_is_made_from():
    budget = Budget({"db": Limit(5)}, Clock())
    scheduler = Plan([[], [0], [0]]).in_order(needs=[()], budget=budget, slots=[1])
    lane = scheduler.lane_with(0, DB)
    for unit in (1, 2):
        scheduler.move(unit, lane)
    drain(scheduler)
    scheduler.complete(0)
    assert drain(scheduler) == [1]


def test_lanes_without_slots_of_their_own_are_not_taken_for_one_another():
    scheduler = Plan([[], []]).in_order(
        lanes=bytes([0, 1]), slots=[None, None], needs=[DB, ()], budget=Budget({}, Clock())
    )
    assert scheduler.lane_with(1, DB) == 2
    assert scheduler.lane_with(0, ()) == 3
    assert scheduler.lane_with(2, ()) == 1
    assert scheduler.lane_with(3, DB) == 0


def test_lanes_are_found_again_after_the_run_has_got_a_limit():
    scheduler = flat(2, needs=[()], budget=Budget({}, Clock()))
    lane = scheduler.lane_with(0, DB)
    scheduler.resize(1)
    assert scheduler.lane_with(0, DB) == lane


def test_a_run_that_grows_leaves_the_lanes_that_it_was_given_as_they_were():
    lanes = (0, 0)
    scheduler = Plan([[], []]).in_order(lanes=lanes, special=[1, 0], slots=[None, None])
    scheduler.open(scheduler.openings.popleft())
    scheduler.queue(scheduler.add(0, 1))
    scheduler.move(1, 1)
    assert lanes == (0, 0)
    assert scheduler.lanes == [0, 1, 1]


# -- ends -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["complete", "fail", "retry"])
@pytest.mark.parametrize("keeps", [False, True])
def test_a_slot_is_given_back_at_the_end_unless_a_thread_keeps_it(end, keeps):
    scheduler = flat(2, 1)
    drain(scheduler)
    getattr(scheduler, end)(0, keeps_slot=keeps)
    assert scheduler.used == keeps
    assert drain(scheduler) == ([] if keeps else [1])
    if keeps:
        scheduler.free_slot(0)
        assert drain(scheduler) == [1]


def test_a_unit_is_failed_unless_said_otherwise_and_timed_out_if_it_never_ran():
    scheduler = flat(2, 1)
    drain(scheduler)
    scheduler.fail(0)
    scheduler.give_up(1)
    assert list(scheduler.phase) == [FAILED, TIMEOUT]


def test_who_was_skipped_already_is_not_skipped_again():
    scheduler = Plan([[], [], [0, 1], [2]]).in_order()
    drain(scheduler)
    scheduler.fail(0)
    scheduler.fail(1)
    assert skips(scheduler) == [(2, 0), (3, 0)]
    assert list(scheduler.phase) == [FAILED, FAILED, SKIPPED, SKIPPED]
    assert scheduler.unfinished == 0


def test_cancelling_twice_ends_nothing_twice():
    scheduler = Plan([[], [0]]).in_order()
    drain(scheduler)
    assert scheduler.cancel_waiting() == []
    assert scheduler.cancel_waiting() == []
    assert scheduler.unfinished == 1
    scheduler.fail(0, CANCELED)
    assert scheduler.next_skip() is None
    assert scheduler.finished


def test_who_completes_after_a_cancellation_starts_nobody():
    scheduler = Plan([[], [0]]).in_order()
    drain(scheduler)
    scheduler.cancel_waiting()
    scheduler.complete(0)
    assert list(scheduler.phase) == [COMPLETED, CANCELED]
    assert drain(scheduler) == []


def test_units_in_a_phase_come_in_order():
    scheduler = flat(4, 3)
    drain(scheduler)
    assert scheduler.in_phase(RUNNING) == [0, 1, 2]
    assert scheduler.in_phase(READY) == [3]
    assert scheduler.in_phase(SKIPPED) == []


def test_who_goes_on_pays_its_rate_only_once():
    now = [0.0]
    needs = (("api", 1),)
    budget = Budget({"api": Limit(rate=1, per=60)}, lambda: now[0])
    scheduler = flat(2, needs=[needs], budget=budget)
    assert scheduler.next_start() == 0
    scheduler.suspend(0)
    now[0] = 30.0
    scheduler.resume(0)
    assert scheduler.next_start() == 0
    scheduler.complete(0)
    assert scheduler.next_start() == NOBODY
    now[0] = 60.0
    assert scheduler.next_start() == 1


def test_a_follower_pays_its_rate():
    now = [0.0]
    budget = Budget({"api": Limit(rate=2, per=60)}, lambda: now[0])
    scheduler = flat(3, needs=[API], budget=budget)
    assert scheduler.next_start() == 0
    scheduler.follow(0, scheduler.reserve(0))
    scheduler.complete(0)
    assert scheduler.next_start() == 1
    assert scheduler.next_start() == NOBODY
    now[0] = 60.0
    assert scheduler.next_start() == 2


def test_it_is_known_which_limit_holds_a_lane_and_that_a_slot_does():
    now = [0.0]
    budget = Budget({"api": Limit(rate=1, per=60)}, lambda: now[0])
    plan = Plan([[], [], [], [], []])
    scheduler = plan.in_order(lanes=[0, 0, 0, 1, 1], slots=(1, 1), needs=[API, ()], budget=budget)
    assert [scheduler.next_start() for _ in range(3)] == [0, 3, NOBODY]
    assert scheduler.held_by == {}
    scheduler.complete(0)
    assert scheduler.next_start() == NOBODY
    assert scheduler.held_by == {0: "api"}  # and a slot the other lane
    now[0] = 60.0
    assert scheduler.next_start() == 1
    assert scheduler.next_start() == NOBODY
    assert scheduler.held_by == {}
