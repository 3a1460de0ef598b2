"""The decision core: by example, by property, and as a state machine against a plain oracle."""

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from quantum_async.core import graph
from quantum_async.core.errors import InternalError
from quantum_async.core.ranking import ranking_of
from quantum_async.core.scheduler import (
    BACKOFF,
    CANCELED,
    COMPLETED,
    FAILED,
    NOBODY,
    OUTSIDE,
    READY,
    RUNNING,
    SKIPPED,
    TIMEOUT,
    TRANSITIONS,
    WAITING,
    Scheduler,
)
from quantum_async.core.states import UnitState
from tests.support.schedulers import Plan, dags, drain, flat

#   0
#  / \
# 1   2
#  \ /
#   3
DIAMOND = [[], [0], [0], [1, 2]]


def test_a_unit_is_ready_the_moment_its_last_dependency_has_completed():
    scheduler = Plan(DIAMOND).in_order()
    assert drain(scheduler) == [0]
    scheduler.complete(0)
    assert drain(scheduler) == [1, 2]
    scheduler.complete(2)
    assert drain(scheduler) == []
    scheduler.complete(1)
    assert drain(scheduler) == [3]
    scheduler.complete(3)
    assert scheduler.finished


def test_no_level_is_waited_for():
    # 0 → 1 → 2 beside the slow root 3
    scheduler = Plan([[], [0], [1], []]).in_order()
    assert drain(scheduler) == [0, 3]
    for unit in (0, 1, 2):
        scheduler.complete(unit)
        assert drain(scheduler) == ([unit + 1] if unit < 2 else [])
    assert scheduler.phase[3] == RUNNING


def test_first_in_first_out_starts_in_order_of_readiness():
    #  0 → 2, 1 → 3: 1 ends first, so 3 comes before 2
    scheduler = Scheduler(Plan([[], [], [0], [1]]), None, max_running=2)
    assert drain(scheduler) == [0, 1]
    scheduler.complete(1)
    scheduler.complete(0)
    assert drain(scheduler) == [3, 2]


def test_a_full_lane_holds_back_only_its_own_units():
    plan = Plan([[], [], [], []])
    ranking = ranking_of(range(4), plan.edges_up)
    scheduler = Scheduler(plan, ranking, lanes=bytes([0, 0, 1, 1]), slots=[1, None])
    assert drain(scheduler) == [0, 2, 3]
    scheduler.complete(0)
    assert drain(scheduler) == [1]


def test_the_best_rank_starts_first_across_lanes():
    plan = Plan([[], [], []])
    scheduler = Scheduler(
        plan, ranking_of([2, 0, 1], plan.edges_up), lanes=bytes([0, 1, 0]), slots=[None, None]
    )
    assert drain(scheduler) == [2, 0, 1]


def test_a_failure_skips_all_that_depends_on_it_and_names_the_root():
    scheduler = Plan([[], [0], [1], []]).in_order()
    drain(scheduler)
    scheduler.fail(0)
    assert [scheduler.next_skip(), scheduler.next_skip(), scheduler.next_skip()] == [
        (1, 0),
        (2, 0),
        None,
    ]
    assert not scheduler.finished
    scheduler.complete(3)
    assert scheduler.finished


def test_a_backing_off_unit_holds_no_slot():
    scheduler = Plan([[], []]).in_order()
    scheduler.resize(1)
    assert drain(scheduler) == [0]
    scheduler.retry(0)
    assert drain(scheduler) == [1]
    scheduler.wake(0)
    scheduler.complete(1)
    assert drain(scheduler) == [0]


def test_a_thread_that_outlives_its_unit_keeps_its_slot_until_it_returns():
    scheduler = Plan([[], []]).in_order()
    scheduler.resize(1)
    drain(scheduler)
    scheduler.fail(0, TIMEOUT, keeps_slot=True)
    assert drain(scheduler) == []
    assert not scheduler.stuck()
    scheduler.free_slot(0)
    assert drain(scheduler) == [1]


def test_given_units_count_as_completed_and_outside_ones_do_not_count():
    scheduler = Scheduler(
        plan := Plan(DIAMOND), ranking_of(range(4), plan.edges_up), given=[1], outside=[0, 2]
    )
    # 3 still waits for 2, which is outside: nobody asks for a unit whose dependency is not there.
    assert scheduler.state(1) is UnitState.COMPLETED
    assert scheduler.unfinished == 1


def test_units_that_ended_while_queued_are_passed_over():
    scheduler = Plan([[], [], []]).in_order()
    scheduler.resize(1)
    drain(scheduler)
    scheduler.give_up(1)
    scheduler.complete(0)
    assert drain(scheduler) == [2]


def test_cancelling_leaves_what_runs_and_ends_the_rest():
    scheduler = Plan([[], [], [1]]).in_order()
    scheduler.resize(1)
    drain(scheduler)
    assert scheduler.cancel_waiting() == [1]
    assert [scheduler.state(unit) for unit in range(3)] == [
        UnitState.RUNNING,
        UnitState.CANCELED,
        UnitState.CANCELED,
    ]
    scheduler.fail(0, CANCELED)
    assert scheduler.finished


@pytest.mark.parametrize("step", ["complete", "fail", "retry", "wake", "give_up"])
def test_a_step_that_cannot_be_is_our_bug(step):
    scheduler = Plan([[], [0]]).in_order()
    with pytest.raises(InternalError, match="unit number 1 is waiting and cannot become"):
        getattr(scheduler, step)(1)


@pytest.mark.slow
def test_a_million_units_deep_is_an_ordinary_graph():
    count = 100_000
    scheduler = Plan([[], *([unit] for unit in range(count - 1))]).in_order()
    assert drain(scheduler) == [0]
    scheduler.fail(0)
    skipped = 0
    while scheduler.next_skip():
        skipped += 1
    assert skipped == count - 1
    assert scheduler.finished


@pytest.mark.slow
@given(dags(), st.integers(1, 4), st.booleans())
def test_every_unit_runs_once_and_after_its_dependencies(edges, workers, fifo):
    plan = Plan(edges)
    ranking = None if fifo else ranking_of(range(len(edges)), edges)
    scheduler = Scheduler(plan, ranking, max_running=workers)
    done: list[int] = []
    running: list[int] = []
    while True:
        started = drain(scheduler)
        running += started
        scheduler.check_invariants()
        assert len(running) <= workers
        for unit in started:
            assert set(edges[unit]) <= set(done)
        if not running:
            break
        done.append(running.pop(0))
        scheduler.complete(done[-1])
    assert sorted(done) == list(range(len(edges)))
    assert scheduler.finished


class SchedulerMachine(RuleBasedStateMachine):
    """Drives a scheduler at random, beside a model that asks the graph anew each time."""

    @initialize(
        edges=dags(),
        lanes=st.lists(st.integers(0, 1), min_size=12, max_size=12),
        slots=st.tuples(st.none() | st.integers(1, 3), st.none() | st.integers(1, 3)),
        most=st.none() | st.integers(1, 4),
        fifo=st.booleans(),
    )
    def begin(self, edges, lanes, slots, most, fifo):
        self.edges = edges
        self.plan = Plan(edges)
        self.lanes = lanes[: len(edges)]
        self.slots = slots
        self.most = most
        self.scheduler = Scheduler(
            self.plan,
            None if fifo else ranking_of(range(len(edges)), edges),
            lanes=bytes(self.lanes),
            slots=slots,
            max_running=most,
        )
        self.before = bytes(self.scheduler.phase)
        self.late = [0, 0]
        self.canceled = False

    def in_phase(self, phase):
        return self.scheduler.in_phase(phase)

    def used(self, lane):
        running = [u for u in self.in_phase(RUNNING) if self.lanes[u] == lane]
        return len(running) + self.late[lane]

    def has_slot(self, unit):
        limit, lane = self.slots[self.lanes[unit]], self.lanes[unit]
        in_all = self.used(0) + self.used(1)
        return (limit is None or self.used(lane) < limit) and (
            self.most is None or in_all < self.most
        )

    @rule()
    def start(self):
        able = [unit for unit in self.in_phase(READY) if self.has_slot(unit)]
        unit = self.scheduler.next_start()
        # Work conserving: somebody starts exactly if somebody can.
        assert (unit in able) if able else (unit == NOBODY)

    @precondition(lambda self: self.in_phase(RUNNING))
    @rule(data=st.data(), keeps=st.booleans(), how=st.sampled_from(["complete", "fail", "retry"]))
    def end(self, data, keeps, how):
        unit = data.draw(st.sampled_from(self.in_phase(RUNNING)))
        if how == "fail":
            phase = data.draw(st.sampled_from([FAILED, TIMEOUT, CANCELED]))
            self.scheduler.fail(unit, phase, keeps_slot=keeps)
        elif how == "retry" and not self.canceled:
            self.scheduler.retry(unit, keeps_slot=keeps)
        else:
            self.scheduler.complete(unit, keeps_slot=keeps)
        self.late[self.lanes[unit]] += keeps

    @precondition(lambda self: any(self.late))
    @rule(data=st.data())
    def thread_returns(self, data):
        lane = data.draw(st.sampled_from([lane for lane in (0, 1) if self.late[lane]]))
        self.late[lane] -= 1
        self.scheduler.free_slot(lane)

    @precondition(lambda self: self.in_phase(BACKOFF))
    @rule(data=st.data())
    def wake(self, data):
        self.scheduler.wake(data.draw(st.sampled_from(self.in_phase(BACKOFF))))

    @precondition(lambda self: self.in_phase(BACKOFF) or self.in_phase(READY))
    @rule(data=st.data())
    def give_up(self, data):
        queued = self.in_phase(BACKOFF) + self.in_phase(READY)
        self.scheduler.give_up(data.draw(st.sampled_from(queued)))

    @rule()
    def skip(self):
        skipped = self.scheduler.next_skip()
        if skipped is not None:
            unit, root = skipped
            assert self.scheduler.phase[root] in (FAILED, TIMEOUT, CANCELED)
            assert root in graph.ancestors(self.edges, [unit])

    @precondition(lambda self: not self.canceled)
    @rule()
    def cancel(self):
        waiting = set(self.in_phase(READY) + self.in_phase(BACKOFF))
        assert set(self.scheduler.cancel_waiting()) == waiting
        self.canceled = True

    @invariant()
    def holds(self):
        if not hasattr(self, "scheduler"):
            return
        phase = self.scheduler.phase
        self.scheduler.check_invariants()
        for unit, (before, after) in enumerate(zip(self.before, phase, strict=True)):
            if before != after:
                # A step of the driver may be two of the unit: ready and then running, say.
                steps = TRANSITIONS.get(before, set())
                assert after in steps or any(after in TRANSITIONS.get(s, ()) for s in steps)
            if phase[unit] in (READY, RUNNING, BACKOFF, COMPLETED):
                assert all(phase[above] == COMPLETED for above in self.edges[unit])
            if phase[unit] == WAITING and not self.edges[unit]:
                pytest.fail("a root waits for nothing")
        self.before = bytes(phase)

    def teardown(self):
        """Whatever happened: driven on, it ends, and every unit has one end."""
        if not hasattr(self, "scheduler"):
            return
        scheduler = self.scheduler
        for lane in (0, 1):
            for _ in range(self.late[lane]):
                scheduler.free_slot(lane)
        for unit in self.in_phase(BACKOFF):
            scheduler.wake(unit)
        for unit in self.in_phase(RUNNING):
            scheduler.complete(unit)
        while not scheduler.finished:
            started = drain(scheduler)
            assert started or not scheduler.stuck()
            for unit in started:
                scheduler.complete(unit)
            while scheduler.next_skip():
                pass
        ends = {COMPLETED, FAILED, TIMEOUT, SKIPPED, CANCELED, OUTSIDE}
        assert set(scheduler.phase) <= ends
        assert not scheduler.used


SchedulerMachine.TestCase.settings = settings(max_examples=200, stateful_step_count=40)
TestSchedulerMachine = pytest.mark.slow(SchedulerMachine.TestCase)


# -- slots that are promised ----------------------------------------------------------------------


def test_a_follower_gets_the_slot_of_the_one_before_it_and_before_all_others():
    scheduler = flat(5, 1)
    assert scheduler.next_start() == 0
    assert [scheduler.reserve(0), scheduler.reserve(0)] == [1, 2]
    scheduler.follow(0, 2)
    scheduler.follow(2, 1)
    assert scheduler.has_follower(0)
    assert scheduler.ready_in(0) == 2
    scheduler.complete(0)
    started = []
    while (unit := scheduler.next_start()) != NOBODY:
        started.append(unit)
        scheduler.check_invariants()
        scheduler.complete(unit)
    assert started == [2, 1, 3, 4]
    assert scheduler.finished


@pytest.mark.parametrize("end", ["fail", "retry"])
def test_a_follower_gets_the_slot_however_the_one_before_it_ends(end):
    scheduler = flat(3, 1)
    assert scheduler.next_start() == 0
    scheduler.follow(0, scheduler.reserve(0))
    getattr(scheduler, end)(0)
    assert scheduler.next_start() == 1


def test_nothing_is_reserved_twice_or_out_of_an_empty_queue():
    scheduler = flat(2, None)
    assert [scheduler.reserve(0) for _ in range(3)] == [0, 1, NOBODY]


def test_what_ended_while_it_was_queued_is_not_reserved():
    scheduler = flat(3, 1)
    scheduler.give_up(0)
    assert scheduler.reserve(0) == 1


def test_a_follower_that_was_cancelled_meanwhile_does_not_start():
    scheduler = flat(3, 1)
    scheduler.next_start()
    scheduler.follow(0, scheduler.reserve(0))
    scheduler.complete(0)
    scheduler.cancel_waiting()
    assert scheduler.next_start() == NOBODY
    assert scheduler.finished


def test_a_follower_waits_in_the_queue_if_there_are_fewer_slots_than_there_were():
    scheduler = flat(3, 2)
    scheduler.next_start()
    scheduler.next_start()
    scheduler.follow(0, scheduler.reserve(0))
    scheduler.resize(1)
    scheduler.complete(0)
    assert scheduler.next_start() == NOBODY
    scheduler.complete(1)
    assert scheduler.next_start() == 2


def test_a_link_of_a_chain_that_will_not_be_ready_is_not_promised_anything():
    scheduler = Plan([[], [0], []]).in_order()
    scheduler.next_start()
    scheduler.follow(0, 1)
    scheduler.fail(0)
    assert scheduler.next_skip() == (1, 0)
    assert scheduler.next_start() == 2


def test_a_link_that_was_started_is_passed_over_in_the_queue():
    scheduler = Plan([[], [0], []]).in_order()
    scheduler.next_start()
    scheduler.follow(0, 1)
    scheduler.complete(0)
    assert [scheduler.next_start() for _ in range(3)] == [1, 2, NOBODY]
