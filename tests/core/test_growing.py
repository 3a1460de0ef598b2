"""Runs that grow: what is opened, goes on without a slot, streams, and has children."""

import pytest

from quantum_async.core.errors import InternalError
from quantum_async.core.phases import (
    BACKOFF,
    CANCELED,
    COMPLETED,
    FAILED,
    OPEN,
    OPENING,
    OUTSIDE,
    READY,
    RUNNING,
    SKIPPED,
    TIMEOUT,
    WAITING,
)
from quantum_async.core.ranking import ranking_of
from quantum_async.core.scheduler import NOBODY, Scheduler
from quantum_async.core.states import UnitState
from tests.support.schedulers import Plan, drain, flat, skips


def opened(scheduler: Scheduler, unit: int = 0) -> Scheduler:
    """Open what is to be opened."""
    assert scheduler.openings.popleft() == unit
    scheduler.open(unit)
    return scheduler


# -- opening --------------------------------------------------------------------------------------


def test_a_special_unit_is_looked_at_before_it_is_ready():
    scheduler = Plan([[], [], [0]]).in_order(special=[1, 0, 1])
    assert list(scheduler.openings) == [0]
    assert scheduler.phase[0] == OPENING
    assert drain(scheduler) == [1]
    scheduler.queue(scheduler.openings.popleft())
    assert drain(scheduler) == [0]
    scheduler.complete(0)
    assert list(scheduler.openings) == [2]
    assert drain(scheduler) == []


def test_what_is_open_holds_no_slot_and_ends_without_giving_one_back():
    scheduler = opened(Plan([[], [], [0]]).in_order(special=[1, 0, 0], max_running=1))
    assert drain(scheduler) == [1]
    scheduler.complete(0)
    assert scheduler.used == 1
    assert scheduler.phase[2] == READY
    assert drain(scheduler) == []
    scheduler.complete(1)
    assert drain(scheduler) == [2]


@pytest.mark.parametrize("end", [FAILED, TIMEOUT, CANCELED])
def test_what_is_open_may_end_badly_and_gives_no_slot_back(end):
    scheduler = opened(Plan([[], [], [0]]).in_order(special=[1, 0, 0], max_running=1))
    drain(scheduler)
    scheduler.fail(0, end)
    assert (scheduler.phase[0], scheduler.used) == (end, 1)
    assert skips(scheduler) == [(2, 0)]


def test_only_what_is_opening_can_be_opened():
    scheduler = flat(2, 1)
    drain(scheduler)
    for unit, phase in ((0, "running"), (1, "ready")):
        with pytest.raises(InternalError, match=f"{unit} is {phase} and cannot become open"):
            scheduler.open(unit)


def test_whose_condition_is_false_is_skipped_and_so_is_what_depends_on_it():
    scheduler = Plan([[], [0], [1]]).in_order(special=[1, 0, 0])
    scheduler.pass_over(0, 0)
    assert scheduler.phase[0] == SKIPPED
    assert skips(scheduler) == [(1, 0), (2, 0)]
    assert scheduler.finished


def test_what_is_open_may_be_skipped_for_another():
    scheduler = opened(Plan([[], [], [1]]).in_order(special=[0, 1, 0]), 1)
    scheduler.pass_over(1, 0)
    assert skips(scheduler) == [(2, 0)]
    assert scheduler.unfinished == 1


def test_only_what_is_opening_or_open_is_passed_over():
    with pytest.raises(InternalError, match="0 is ready and cannot become skipped"):
        flat(1).pass_over(0, 0)


def test_what_is_opening_may_be_given_up():
    scheduler = Plan([[], [0]]).in_order(special=[1, 0])
    scheduler.give_up(0, FAILED)
    assert skips(scheduler) == [(1, 0)]
    assert scheduler.finished


def test_a_unit_that_waits_is_given_up_only_by_cancelling_it():
    scheduler = Plan([[], [0], [1]]).in_order()
    with pytest.raises(InternalError, match="1 is waiting and cannot become timed out"):
        scheduler.give_up(1)
    scheduler.give_up(1, CANCELED)
    assert scheduler.phase[1] == CANCELED
    assert skips(scheduler) == [(2, 1)]
    assert scheduler.unfinished == 1


@pytest.mark.parametrize("phase", [READY, BACKOFF, OPENING])
def test_what_does_not_run_is_given_up_whatever_it_waits_for(phase):
    for end in (CANCELED, FAILED, TIMEOUT):
        scheduler = Plan([[], [0]]).in_order(special=[phase == OPENING, 0])
        if phase == BACKOFF:
            drain(scheduler)
            scheduler.retry(0)
        assert scheduler.phase[0] == phase
        scheduler.give_up(0, end)
        assert scheduler.phase[0] == end
        assert skips(scheduler) == [(1, 0)]
        assert scheduler.finished


def test_nothing_is_given_up_that_runs_or_is_open():
    scheduler = opened(Plan([[], []]).in_order(special=[1, 0]))
    drain(scheduler)
    with pytest.raises(InternalError, match="0 is open and cannot become canceled"):
        scheduler.give_up(0, CANCELED)
    with pytest.raises(InternalError, match="1 is running and cannot become timed out"):
        scheduler.give_up(1)


@pytest.mark.parametrize("phase", [BACKOFF, OPENING, OPEN])
def test_a_run_with_a_unit_that_somebody_looks_after_is_not_stuck(phase):
    scheduler = Plan([[]]).in_order(special=[1])
    assert not scheduler.stuck()
    scheduler.phase[0] = phase
    assert not scheduler.stuck()


def test_a_run_is_stuck_when_nobody_can_ever_go_on():
    scheduler = Plan([[], [0], [1]]).in_order(outside=[0])
    assert scheduler.stuck()
    assert not flat(0).stuck()


def test_a_run_with_skips_to_tell_or_slots_in_use_is_not_stuck():
    scheduler = Plan([[], [0]]).in_order()
    drain(scheduler)
    assert not scheduler.stuck()
    scheduler.fail(0)
    assert not scheduler.stuck()
    skips(scheduler)
    assert not scheduler.stuck()


# -- suspension -----------------------------------------------------------------------------------


def test_a_suspended_unit_gives_its_slot_away_and_gets_one_back_before_others():
    scheduler = flat(3, 1)
    assert drain(scheduler) == [0]
    scheduler.suspend(0)
    assert (scheduler.phase[0], scheduler.used) == (OPEN, 0)
    assert drain(scheduler) == [1]
    scheduler.resume(0)
    assert drain(scheduler) == []
    scheduler.complete(1)
    assert drain(scheduler) == [0]
    assert (scheduler.phase[0], scheduler.used, scheduler.lane_used) == (RUNNING, 1, [1])
    scheduler.complete(0)
    assert drain(scheduler) == [2]


def test_suspended_units_go_on_in_the_order_in_which_they_asked():
    scheduler = flat(4, 3)
    assert drain(scheduler) == [0, 1, 2]
    for unit in (0, 1, 2):
        scheduler.suspend(unit)
    for unit in (2, 0, 1):
        scheduler.resume(unit)
    scheduler.resize(1)
    order = []
    for _ in range(4):
        [unit] = drain(scheduler)
        order.append(unit)
        scheduler.complete(unit)
    assert order == [2, 0, 1, 3]


def test_one_that_cannot_go_on_does_not_hold_back_one_that_can():
    plan = Plan([[], [], [], []])
    scheduler = plan.in_order(lanes=bytes([0, 1, 0, 1]), slots=[1, 1])
    assert drain(scheduler) == [0, 1]
    scheduler.suspend(0)
    assert drain(scheduler) == [2]  # in the slot of the first
    scheduler.suspend(1)
    scheduler.resume(0)
    scheduler.resume(1)
    assert drain(scheduler) == [1]
    scheduler.complete(1)
    assert drain(scheduler) == [3]
    scheduler.complete(2)
    assert drain(scheduler) == [0]


def test_a_unit_that_does_not_want_to_go_on_any_more_gets_no_slot():
    scheduler = flat(2, 1)
    drain(scheduler)
    scheduler.suspend(0)
    scheduler.resume(0)
    scheduler.withdraw(0)
    scheduler.withdraw(0)  # it may have been given its slot already
    assert drain(scheduler) == [1]
    assert scheduler.phase[0] == OPEN


def test_a_unit_that_ended_while_it_wanted_to_go_on_is_passed_over():
    scheduler = flat(3, 2)
    assert drain(scheduler) == [0, 1]
    for unit in (0, 1):
        scheduler.suspend(unit)
        scheduler.resume(unit)
    scheduler.fail(0, CANCELED)
    assert drain(scheduler) == [1, 2]
    assert scheduler.used == 2


def test_only_what_runs_can_be_suspended():
    with pytest.raises(InternalError, match="0 is ready and cannot become open"):
        flat(1).suspend(0)


def test_a_suspended_unit_that_backs_off_gives_no_slot_back_twice():
    scheduler = flat(2, 1)
    drain(scheduler)
    scheduler.suspend(0)
    assert drain(scheduler) == [1]
    scheduler.retry(0)
    assert (scheduler.phase[0], scheduler.used, scheduler.unfinished) == (BACKOFF, 1, 2)


# -- streams --------------------------------------------------------------------------------------


#      0        1 takes the items of 0 as they come,
#     / \       2 its result
#    1   2
def streaming(**options):
    return Plan([[], [0], [0]]).in_order(streams={0: (1,)}, **options)


def test_who_takes_items_starts_with_the_one_who_gives_them_and_only_once():
    scheduler = streaming()
    assert drain(scheduler) == [0]
    scheduler.begin_stream(0)
    assert drain(scheduler) == [1]
    scheduler.complete(0)
    assert drain(scheduler) == [2]
    assert scheduler.waiting == [0, 0, 0]


def test_who_takes_items_waits_for_its_other_dependencies():
    scheduler = Plan([[], [], [0, 1]]).in_order(streams={0: (2,)})
    drain(scheduler)
    scheduler.begin_stream(0)
    assert drain(scheduler) == []
    scheduler.complete(1)
    assert drain(scheduler) == [2]


def test_a_unit_without_streams_begins_none():
    scheduler = streaming()
    drain(scheduler)
    scheduler.begin_stream(1)
    assert scheduler.phase[1] == WAITING


def test_the_end_of_a_stream_without_a_result_reaches_who_did_not_start():
    scheduler = streaming()
    drain(scheduler)
    scheduler.fail(0)
    assert skips(scheduler) == [(2, 0), (1, 0)]
    assert scheduler.finished


def test_who_takes_items_and_has_started_does_not_hear_of_the_end():
    scheduler = streaming()
    drain(scheduler)
    scheduler.begin_stream(0)
    drain(scheduler)
    scheduler.fail(0)
    assert skips(scheduler) == [(2, 0)]
    assert scheduler.phase[1] == RUNNING


def test_who_takes_items_and_was_cancelled_does_not_start():
    scheduler = streaming()
    drain(scheduler)
    scheduler.give_up(1, CANCELED)
    scheduler.begin_stream(0)
    assert scheduler.phase[1] == CANCELED
    assert scheduler.waiting[1] == 0


def test_the_items_of_a_given_result_are_there_from_the_start():
    scheduler = streaming(given=[0])
    assert drain(scheduler) == [1, 2]
    assert scheduler.state(0) is UnitState.COMPLETED


# -- children -------------------------------------------------------------------------------------


def test_children_start_at_the_rank_of_their_parent_and_take_turns():
    plan = Plan([[], [], [], []])
    ranking = ranking_of([1, 2, 0, 3], plan.edges_up)
    scheduler = Scheduler(plan, ranking, special=[1, 0, 1, 0], max_running=1)
    ready = [opened(scheduler, unit) and unit for unit in (0, 2)]
    children = [scheduler.add(parent, 0) for parent in (0, 2, 0, 2)]
    for child in children:
        scheduler.queue(child)
    assert children == [4, 5, 6, 7]
    assert scheduler.parents == [0, 2, 0, 2]
    assert ready == [0, 2]
    order = []
    while (unit := scheduler.next_start()) != NOBODY:
        order.append(unit)
        scheduler.complete(unit)
    assert order == [1, 5, 7, 4, 6, 3]


def test_children_are_first_in_first_out_where_all_units_are():
    scheduler = Plan([[], []]).as_they_come(special=[1, 1])
    for unit in (0, 1):
        opened(scheduler, unit)
    order = [scheduler.add(parent, 0) for parent in (1, 0, 1)]
    for child in order:
        scheduler.queue(child)
    assert drain(scheduler) == order


def test_a_child_counts_until_it_has_ended_and_waits_for_nothing():
    scheduler = opened(Plan([[]]).in_order(special=[1]))
    child = scheduler.add(0, 0)
    assert (scheduler.count, scheduler.unfinished, scheduler.phase[child]) == (1, 2, WAITING)
    assert (scheduler.waiting[child], scheduler.edges_down[child]) == (0, ())
    scheduler.queue(child)
    assert drain(scheduler) == [child]
    scheduler.complete(child)
    assert scheduler.unfinished == 1
    scheduler.complete(0)
    assert scheduler.finished
    scheduler.check_invariants()


def test_growing_leaves_the_plan_as_it_was():
    plan = Plan([[], [0]])
    lanes = bytes([0, 0])
    scheduler = opened(plan.in_order(special=[1, 0], lanes=lanes))
    scheduler.queue(scheduler.add(0, 0))
    assert plan.edges_down == ((1,), ())
    assert lanes == bytes([0, 0])
    scheduler.complete(0)
    assert scheduler.phase[1] == READY


def test_children_of_one_parent_may_be_in_several_lanes_and_each_uses_its_own():
    scheduler = opened(Plan([[]]).in_order(special=[1], slots=[None, 1]))
    children = [scheduler.add(0, lane) for lane in (1, 1, 0)]
    for child in children:
        scheduler.queue(child)
    assert sorted(drain(scheduler)) == [children[0], children[2]]
    assert [scheduler.phase[child] for child in children] == [RUNNING, READY, RUNNING]
    assert scheduler.lane_used == [1, 1]
    scheduler.complete(children[0])
    assert drain(scheduler) == [children[1]]
    scheduler.check_invariants()


def test_a_child_that_ended_while_it_was_queued_is_passed_over():
    scheduler = opened(Plan([[], []]).in_order(special=[1, 0], max_running=1))
    children = [scheduler.add(0, 0) for _ in range(3)]
    for child in children:
        scheduler.queue(child)
    scheduler.give_up(children[0])
    scheduler.give_up(children[2])
    order = []
    while (unit := scheduler.next_start()) != NOBODY:
        order.append(unit)
        scheduler.complete(unit)
    assert order == [children[1], 1]


def test_a_child_is_reserved_in_its_turn():
    scheduler = opened(Plan([[], []]).in_order(special=[1, 0], max_running=1))
    children = [scheduler.add(0, 0) for _ in range(2)]
    for child in children:
        scheduler.queue(child)
    scheduler.give_up(children[0])
    assert [scheduler.reserve(0) for _ in range(3)] == [children[1], 1, NOBODY]


def test_the_row_of_a_child_that_has_ended_is_used_again():
    scheduler = opened(Plan([[], []]).in_order(special=[1, 1], slots=[None, None]))
    opened(scheduler, 1)
    first = scheduler.add(0, 0)
    scheduler.queue(first)
    drain(scheduler)
    scheduler.complete(first)
    scheduler.vacate(first)
    assert scheduler.phase[first] == OUTSIDE
    assert scheduler.unfinished == 2
    assert scheduler.add(1, 1) == first
    assert scheduler.phase[first] == WAITING
    assert scheduler.parents == [1]
    assert scheduler.lanes[first] == 1
    assert scheduler.unfinished == 3
    assert scheduler.add(1, 0) == first + 1
    for child in (first, first + 1):
        scheduler.queue(child)
    # Both have the rank of their parent; then the first lane goes first.
    assert drain(scheduler) == [first + 1, first]
    scheduler.check_invariants()


def test_children_never_hear_that_they_are_to_be_opened():
    scheduler = opened(Plan([[]]).in_order(special=[1]))
    child = scheduler.add(0, 0)
    scheduler.queue(child)
    drain(scheduler)
    scheduler.retry(child)
    scheduler.wake(child)
    assert not scheduler.openings
    assert drain(scheduler) == [child]


def test_cancelling_ends_children_that_are_queued_and_not_what_is_open():
    scheduler = opened(Plan([[], [0], []]).in_order(special=[1, 0, 1], max_running=1))
    children = [scheduler.add(0, 0) for _ in range(3)]
    for child in children:
        scheduler.queue(child)
    assert scheduler.next_start() == children[0]
    assert scheduler.cancel_waiting() == [2, *children[1:]]
    assert scheduler.phase[1] == CANCELED
    assert scheduler.unfinished == 2
    assert scheduler.phase[0] == OPEN
    scheduler.complete(children[0])
    scheduler.fail(0, CANCELED)
    assert scheduler.finished


def test_who_listens_hears_of_each_unit_that_becomes_ready():
    scheduler = Plan([[], [0], [0]]).in_order(special=[0, 0, 1])
    assert scheduler.just_ready is None
    scheduler.just_ready = []
    drain(scheduler)
    scheduler.complete(0)
    assert scheduler.just_ready == [1]
    scheduler.queue(2)
    assert scheduler.just_ready == [1, 2]


def test_the_state_is_told_in_one_line():
    scheduler = opened(Plan([[], [], [0], [0]]).in_order(special=[1, 0, 0, 0]))
    drain(scheduler)
    assert repr(scheduler) == "<Scheduler 2 waiting, 1 running, 1 open; 1 slots used>"
    assert repr(flat(0)) == "<Scheduler empty; 0 slots used>"


def test_a_broken_invariant_is_our_bug_and_names_the_rule():
    scheduler = flat(2, 1)
    drain(scheduler)
    scheduler.used = 0
    rule = "broken invariant: slots in use, in all, are those of the lanes: <Scheduler 1 ready"
    with pytest.raises(InternalError, match=rule):
        scheduler.check_invariants()


def test_the_states_of_units_are_told_in_the_users_words():
    scheduler = opened(Plan([[], []]).in_order(special=[1, 0]))
    assert [scheduler.state(unit) for unit in (0, 1)] == [UnitState.RUNNING, UnitState.PENDING]
    assert [scheduler.has_ended(unit) for unit in (0, 1)] == [False, False]
    scheduler.phase[:] = bytes([COMPLETED, OUTSIDE])
    assert [scheduler.has_ended(unit) for unit in (0, 1)] == [True, True]
