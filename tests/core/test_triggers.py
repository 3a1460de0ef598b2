"""When a unit starts, given how its dependencies ended: the table, races, and who is to blame."""

import pytest

from quantum_async.core.phases import CANCELED, COMPLETED, OPENING, READY, SKIPPED, WAITING
from quantum_async.core.scheduler import NOBODY, Scheduler
from quantum_async.core.triggers import TRIGGERS, Trigger, Triggers
from tests.support.schedulers import Plan, drain, skips

SUCCESS, FAILURE, CHOICE = "success", "failure", "choice"


def joined(trigger: Trigger, *, count: int = 2, **options) -> Scheduler:
    """Units that wait for nothing and may say no, one that joins them, and one below that."""
    plan = Plan([*[[]] * count, list(range(count)), [count]])
    codes = [Trigger.ALL_SUCCESS] * (count + 2)
    codes[count] = trigger
    return plan.in_order(triggers=Triggers(codes), special=[1] * count + [0, 0], **options)


def end(scheduler: Scheduler, unit: int, how: str) -> list[tuple[int, int]]:
    """End a unit that is opening, and return who is skipped or starts for it."""
    scheduler.openings.remove(unit)
    if how == CHOICE:
        scheduler.pass_over(unit, unit)
    else:
        scheduler.queue(unit)
        assert unit in drain(scheduler)
        if how == SUCCESS:
            scheduler.complete(unit)
        else:
            scheduler.fail(unit)
    return skips(scheduler)


def verdict(scheduler: Scheduler, unit: int = 2) -> str:
    words = {READY: "starts", WAITING: "waits", SKIPPED: "is skipped"}
    return words[scheduler.phase[unit]]


# How two dependencies end, one after the other, and what becomes of the unit after each.
TABLE = {
    Trigger.ALL_SUCCESS: {
        (SUCCESS, SUCCESS): ("waits", "starts"),
        (SUCCESS, FAILURE): ("waits", "is skipped"),
        (SUCCESS, CHOICE): ("waits", "is skipped"),
        (FAILURE, SUCCESS): ("is skipped", "is skipped"),
        (CHOICE, SUCCESS): ("is skipped", "is skipped"),
        (FAILURE, CHOICE): ("is skipped", "is skipped"),
        (CHOICE, FAILURE): ("is skipped", "is skipped"),
        (FAILURE, FAILURE): ("is skipped", "is skipped"),
        (CHOICE, CHOICE): ("is skipped", "is skipped"),
    },
    Trigger.ALL_DONE: {
        (SUCCESS, SUCCESS): ("waits", "starts"),
        (SUCCESS, FAILURE): ("waits", "starts"),
        (SUCCESS, CHOICE): ("waits", "starts"),
        (FAILURE, SUCCESS): ("waits", "starts"),
        (CHOICE, SUCCESS): ("waits", "starts"),
        (FAILURE, CHOICE): ("waits", "starts"),
        (CHOICE, FAILURE): ("waits", "starts"),
        (FAILURE, FAILURE): ("waits", "starts"),
        (CHOICE, CHOICE): ("waits", "starts"),
    },
    Trigger.NONE_FAILED: {
        (SUCCESS, SUCCESS): ("waits", "starts"),
        (SUCCESS, FAILURE): ("waits", "is skipped"),
        (SUCCESS, CHOICE): ("waits", "starts"),
        (FAILURE, SUCCESS): ("is skipped", "is skipped"),
        (CHOICE, SUCCESS): ("waits", "starts"),
        (FAILURE, CHOICE): ("is skipped", "is skipped"),
        (CHOICE, FAILURE): ("waits", "is skipped"),
        (FAILURE, FAILURE): ("is skipped", "is skipped"),
        (CHOICE, CHOICE): ("waits", "starts"),
    },
    Trigger.ONE_SUCCESS: {
        (SUCCESS, SUCCESS): ("starts", "starts"),
        (SUCCESS, FAILURE): ("starts", "starts"),
        (SUCCESS, CHOICE): ("starts", "starts"),
        (FAILURE, SUCCESS): ("waits", "starts"),
        (CHOICE, SUCCESS): ("waits", "starts"),
        (FAILURE, CHOICE): ("waits", "is skipped"),
        (CHOICE, FAILURE): ("waits", "is skipped"),
        (FAILURE, FAILURE): ("waits", "is skipped"),
        (CHOICE, CHOICE): ("waits", "is skipped"),
    },
    Trigger.RACE: {
        (SUCCESS, SUCCESS): ("starts", "starts"),
        (SUCCESS, FAILURE): ("starts", "starts"),
        (SUCCESS, CHOICE): ("starts", "starts"),
        (FAILURE, SUCCESS): ("waits", "starts"),
        (CHOICE, SUCCESS): ("waits", "starts"),
        (FAILURE, CHOICE): ("waits", "starts"),
        (CHOICE, FAILURE): ("waits", "starts"),
        (FAILURE, FAILURE): ("waits", "starts"),
        (CHOICE, CHOICE): ("waits", "starts"),
    },
}


@pytest.mark.parametrize(
    ("trigger", "ends", "verdicts"),
    [(trigger, *row) for trigger, rows in TABLE.items() for row in rows.items()],
)
def test_a_unit_starts_as_the_table_says(trigger, ends, verdicts):
    scheduler = joined(trigger)
    scheduler.resize(1)
    found = []
    for unit, how in enumerate(ends):
        end(scheduler, unit, how)
        found.append(verdict(scheduler))
        scheduler.check_invariants()
        assert scheduler.unfinished == 3 - unit - 2 * (found[-1] == "is skipped")
    assert tuple(found) == verdicts
    if found[-1] == "starts":
        assert drain(scheduler) == [2]
        scheduler.complete(2)
        assert drain(scheduler) == [3]
    else:
        assert scheduler.finished


def test_who_starts_in_spite_of_a_loss_is_told_apart_from_who_is_skipped():
    scheduler = joined(Trigger.ALL_DONE)
    assert end(scheduler, 0, SUCCESS) == []
    assert end(scheduler, 1, FAILURE) == [(2, NOBODY)]
    scheduler = joined(Trigger.NONE_FAILED)
    end(scheduler, 0, SUCCESS)
    assert end(scheduler, 1, FAILURE) == [(2, 1), (3, 1)]


@pytest.mark.parametrize(
    ("ends", "root"),
    [
        ((FAILURE, FAILURE), 0),  # the first of two alike
        ((CHOICE, CHOICE), 0),
        ((FAILURE, CHOICE), 0),  # a failure before a choice
        ((CHOICE, FAILURE), 1),
    ],
)
def test_a_failure_is_to_blame_before_a_choice_and_the_first_before_the_second(ends, root):
    scheduler = joined(Trigger.ONE_SUCCESS)
    assert end(scheduler, 0, ends[0]) == []
    assert end(scheduler, 1, ends[1]) == [(2, root), (3, root)]
    assert scheduler.triggers.roots[2] == root


def test_a_choice_further_up_is_a_choice_all_the_way_down():
    #  0 (its condition is false) → 1 → 2 (none failed) ← 3
    plan = Plan([[], [0], [1, 3], []])
    codes = [Trigger.ALL_SUCCESS, Trigger.ALL_SUCCESS, Trigger.NONE_FAILED, Trigger.ALL_SUCCESS]
    scheduler = plan.in_order(triggers=Triggers(codes), special=[1, 0, 0, 0])
    scheduler.pass_over(0, 0)
    assert skips(scheduler) == [(1, 0)]
    assert drain(scheduler) == [3]
    scheduler.complete(3)
    assert drain(scheduler) == [2]


def test_who_is_skipped_for_a_failure_above_is_no_choice():
    scheduler = joined(Trigger.NONE_FAILED)
    scheduler.pass_over(0, 1)
    assert scheduler.triggers.choices == set()
    assert skips(scheduler) == [(2, 1), (3, 1)]


def test_the_first_success_wins_and_later_ones_change_nothing():
    scheduler = joined(Trigger.RACE, count=3, max_running=3)
    end(scheduler, 1, SUCCESS)
    assert scheduler.triggers.winners == {3: 1}
    assert drain(scheduler) == [3]
    end(scheduler, 0, SUCCESS)
    assert end(scheduler, 2, FAILURE) == []
    assert scheduler.triggers.winners == {3: 1}
    scheduler.complete(3)
    assert drain(scheduler) == [4]
    assert scheduler.waiting[3] == 1  # it does not hear any more of those that lost


def test_a_race_that_nobody_won_starts_all_the_same_and_has_no_winner():
    scheduler = joined(Trigger.RACE)
    end(scheduler, 0, FAILURE)
    assert end(scheduler, 1, CHOICE) == [(2, NOBODY)]
    assert scheduler.triggers.winners == {}
    assert scheduler.triggers.roots == {2: 0}


def test_losers_of_a_race_are_choices_for_those_who_wait_for_them_too():
    #  0, 1 → 2 (race); 1 → 3 (none failed)
    plan = Plan([[], [], [0, 1], [1]])
    codes = [Trigger.ALL_SUCCESS, Trigger.ALL_SUCCESS, Trigger.RACE, Trigger.NONE_FAILED]
    scheduler = plan.in_order(triggers=Triggers(codes))
    drain(scheduler)
    scheduler.complete(0)
    scheduler.triggers.choices.add(1)
    scheduler.fail(1, CANCELED)
    assert skips(scheduler) == [(3, NOBODY)]
    assert drain(scheduler) == [2, 3]


def test_what_is_given_counts_as_a_success():
    scheduler = joined(Trigger.ONE_SUCCESS, given=[0])
    assert list(scheduler.phase) == [COMPLETED, OPENING, READY, WAITING]
    assert scheduler.triggers.winners == {2: 0}
    scheduler = joined(Trigger.ALL_DONE, given=[0])
    assert verdict(scheduler) == "waits"
    assert end(scheduler, 1, FAILURE) == [(2, NOBODY)]
    scheduler = joined(Trigger.ALL_SUCCESS, given=[0, 1])
    assert verdict(scheduler) == "starts"


def test_what_is_given_wins_no_race_that_is_given_itself():
    scheduler = joined(Trigger.RACE, given=[0, 2])
    assert scheduler.triggers.winners == {}
    assert drain(scheduler) == [3]


def test_who_has_an_end_hears_of_nothing_more():
    scheduler = joined(Trigger.ALL_DONE)
    scheduler.give_up(2, CANCELED)
    assert skips(scheduler) == [(3, 2)]
    end(scheduler, 0, SUCCESS)
    assert end(scheduler, 1, FAILURE) == []
    assert scheduler.phase[2] == CANCELED
    assert scheduler.triggers.roots == {3: 2}


def test_who_may_start_at_the_first_success_is_opened_then_if_that_is_needed():
    plan = Plan([[], [], [0, 1]])
    codes = [Trigger.ALL_SUCCESS, Trigger.ALL_SUCCESS, Trigger.RACE]
    scheduler = plan.in_order(triggers=Triggers(codes), special=[0, 0, 1])
    drain(scheduler)
    scheduler.complete(1)
    assert list(scheduler.openings) == [2]
    scheduler.complete(0)
    assert list(scheduler.openings) == [2]


def test_who_takes_items_may_wait_for_more_than_success():
    #  0 gives 1 its items as they come; 1 starts however 2 ends
    plan = Plan([[], [0, 2], []])
    codes = [Trigger.ALL_SUCCESS, Trigger.ALL_DONE, Trigger.ALL_SUCCESS]
    scheduler = plan.in_order(triggers=Triggers(codes), streams={0: (1,)})
    drain(scheduler)
    scheduler.begin_stream(0)
    scheduler.fail(2)
    assert skips(scheduler) == [(1, NOBODY)]
    assert drain(scheduler) == [1]
    scheduler.fail(0)
    assert skips(scheduler) == []


def test_the_first_item_is_the_success_of_a_race():
    plan = Plan([[], [], [0, 1]])
    codes = [Trigger.ALL_SUCCESS, Trigger.ALL_SUCCESS, Trigger.ONE_SUCCESS]
    scheduler = plan.in_order(triggers=Triggers(codes), streams={1: (2,)})
    drain(scheduler)
    scheduler.begin_stream(1)
    assert scheduler.triggers.winners == {2: 1}
    assert drain(scheduler) == [2]


def test_one_that_still_waits_does_not_hold_up_the_news_for_others():
    plan = Plan([[], [], [0, 1], [0]])
    codes = [Trigger.ALL_SUCCESS, Trigger.ALL_SUCCESS, Trigger.ALL_DONE, Trigger.ALL_SUCCESS]
    scheduler = plan.in_order(triggers=Triggers(codes))
    drain(scheduler)
    scheduler.fail(0)
    assert scheduler.next_skip() == (3, 0)
    assert scheduler.next_skip() is None


def test_triggers_have_a_word_each_and_races_are_made_by_first_alone():
    assert TRIGGERS == {
        "all_success": Trigger.ALL_SUCCESS,
        "all_done": Trigger.ALL_DONE,
        "none_failed": Trigger.NONE_FAILED,
        "one_success": Trigger.ONE_SUCCESS,
    }
    assert Trigger.RACE.word == "race"
