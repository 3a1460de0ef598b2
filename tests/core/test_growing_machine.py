"""All that a run may do, as a state machine against a plain oracle.

The oracle keeps what happened and nothing else. What must be it asks the graph anew each time: the
fate of a unit from how its dependencies ended, room from who holds slots and tokens.
"""

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from quantum_async.core import graph
from quantum_async.core.limits import Budget, Limit
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
    TRANSITIONS,
    WAITING,
)
from quantum_async.core.scheduler import NOBODY
from quantum_async.core.triggers import Trigger, Triggers
from tests.support.schedulers import Plan, dags, skips

SUCCESS, FAILURE, CHOICE = "success", "failure", "choice"
BAD_ENDS = st.sampled_from([FAILED, TIMEOUT, CANCELED])
PER, RATE = 4, 2
LIMITS = {"db": Limit(2), "api": Limit(rate=RATE, per=PER)}
NEEDS = st.sampled_from([(), (("db", 1),), (("db", 2),), (("api", 1),), (("api", 2), ("db", 1))])
SLOTS = st.none() | st.integers(1, 3)
MOST_UNITS = 8


def in_phase(*phases):
    return precondition(lambda self: any(phase in self.scheduler.phase for phase in phases))


class GrowingMachine(RuleBasedStateMachine):
    """Drives a scheduler at random, beside a model of what has happened."""

    @initialize(
        edges=dags(MOST_UNITS, least=3),
        codes=st.lists(st.sampled_from(Trigger), min_size=MOST_UNITS, max_size=MOST_UNITS),
        plain=st.booleans(),
        special=st.lists(st.booleans(), min_size=MOST_UNITS, max_size=MOST_UNITS),
        lanes=st.lists(st.integers(0, 1), min_size=MOST_UNITS, max_size=MOST_UNITS),
        needs=st.tuples(NEEDS, NEEDS),
        slots=st.tuples(SLOTS, SLOTS),
        most=SLOTS,
        fifo=st.booleans(),
    )
    def begin(self, edges, codes, plain, special, lanes, needs, slots, most, fifo):
        count = len(edges)
        self.edges, self.slots, self.most, self.now = edges, list(slots), most, 0
        self.codes = [Trigger.ALL_SUCCESS] * count if plain else codes[:count]
        self.budget = Budget(LIMITS, lambda: self.now)
        make = Plan(edges).as_they_come if fifo else Plan(edges).in_order
        self.scheduler = make(
            lanes=bytes(lanes[:count]),
            slots=slots,
            max_running=most,
            needs=needs,
            budget=self.budget,
            special=special[:count],
            triggers=None if plain else Triggers(self.codes),
        )
        self.needs = list(needs)
        self.late = []  # lanes of slots that threads hold whose units have ended
        self.taken = []  # when and how much of the rate
        self.blamed = {}  # for who was skipped, the root
        self.choices = set()
        self.canceled = set()  # who was cancelled while it waited
        self.stopped = False
        self.parents = {}
        self.suspended, self.wanting = set(), set()
        self.before = bytes(self.scheduler.phase)

    # -- the oracle ---------------------------------------------------------------------------

    def units(self, *phases):
        return [unit for unit, phase in enumerate(self.scheduler.phase) if phase in phases]

    def ending(self, unit):
        """How a unit ended; None if it has not."""
        phase = self.scheduler.phase[unit]
        if phase == COMPLETED:
            return SUCCESS
        if phase in TRANSITIONS:
            return None
        root = self.blamed.get(unit, unit)
        return CHOICE if root in self.choices else FAILURE

    def fate(self, unit):
        """What must become of a unit, by its dependencies."""
        ends, code = [self.ending(above) for above in self.edges[unit]], self.codes[unit]
        lost = FAILURE in ends or CHOICE in ends
        if code == Trigger.ALL_SUCCESS and lost:
            return "skip"
        if code == Trigger.NONE_FAILED and FAILURE in ends:
            return "skip"
        if code in (Trigger.ONE_SUCCESS, Trigger.RACE) and SUCCESS in ends:
            return "start"
        if None in ends:
            return "wait"
        return "skip" if code == Trigger.ONE_SUCCESS and ends else "start"

    def holders(self):
        """The lanes of all slots that are in use."""
        return [self.scheduler.lanes[unit] for unit in self.units(RUNNING)] + self.late

    def has_room(self, unit):
        lane, held = self.scheduler.lanes[unit], self.holders()
        if self.most is not None and len(held) >= self.most:
            return False
        place = [other for other in held if self.place(other) == self.place(lane)]
        slots = self.slots[self.place(lane)]
        return (slots is None or len(place) < slots) and all(
            self.left_of(name) >= tokens
            for name, tokens in self.needs[lane]
            if name != "api" or unit not in self.wanting  # the rate has counted who goes on
        )

    def place(self, lane):
        return lane if lane < 2 else self.made_from[lane]

    @property
    def made_from(self):
        return {2 + n: lane for n, lane in enumerate(self.more_lanes)}

    more_lanes: tuple[int, ...] = ()

    def left_of(self, name):
        if name == "api":
            return RATE - sum(tokens for at, tokens in self.taken if at + PER > self.now)
        return LIMITS[name].concurrency - self.used(name)

    def used(self, name):
        return sum(dict(self.needs[lane]).get(name, 0) for lane in self.holders())

    def nobody_claims(self, unit):
        """Whether nobody has waited so long for what a unit needs that it is kept for them."""
        if unit in self.wanting:
            return True  # it goes before them
        needs = self.needs[self.scheduler.lanes[unit]]
        return all(self.budget._tokens[name].claimed_by is None for name, _ in needs)

    # -- what happens -------------------------------------------------------------------------

    def hear(self):
        """Have everybody hear of losses, and keep who is to blame."""
        for unit, root in skips(self.scheduler):
            if root == NOBODY:
                assert self.fate(unit) == "start"
                continue
            self.blamed[unit] = root
            ends = {self.ending(above) for above in self.edges[unit]}
            assert root in graph.ancestors(self.edges, [unit])
            if self.codes[unit] == Trigger.NONE_FAILED:
                assert root not in self.choices
            if self.codes[unit] == Trigger.ONE_SUCCESS:
                assert (root in self.choices) == (FAILURE not in ends)

    @precondition(lambda self: READY in self.scheduler.phase or self.wanting)
    @rule()
    def start_one(self):
        self.start()

    @in_phase(READY)
    @rule()
    def start_all(self):
        while self.start() != NOBODY:
            pass

    def start(self):
        may = [unit for unit in self.units(READY) + sorted(self.wanting) if self.has_room(unit)]
        unit = self.scheduler.next_start()
        if unit == NOBODY:
            assert not any(map(self.nobody_claims, may))
            return NOBODY
        assert unit in may
        if any(other in self.wanting and self.nobody_claims(other) for other in may):
            assert unit in self.wanting
        if unit not in self.wanting:
            needs = self.needs[self.scheduler.lanes[unit]]
            self.taken += [(self.now, tokens) for name, tokens in needs if name == "api"]
        self.wanting.discard(unit)
        self.suspended.discard(unit)
        return unit

    @rule(seconds=st.integers(1, 3))
    def time_passes(self, seconds):
        self.now += seconds

    @in_phase(RUNNING)
    @rule(data=st.data(), keeps=st.booleans(), how=st.sampled_from(["complete", "fail", "retry"]))
    def end(self, data, keeps, how):
        unit = data.draw(st.sampled_from(self.units(RUNNING)))
        if keeps:
            self.late.append(self.scheduler.lanes[unit])
        if how == "complete":
            self.scheduler.complete(unit, keeps_slot=keeps)
        elif how == "retry" and not self.stopped:
            self.scheduler.retry(unit, keeps_slot=keeps)
        else:
            self.scheduler.fail(unit, data.draw(BAD_ENDS), keeps_slot=keeps)
        self.hear()

    @precondition(lambda self: self.late)
    @rule(data=st.data())
    def thread_returns(self, data):
        lane = self.late.pop(data.draw(st.integers(0, len(self.late) - 1)))
        self.scheduler.free_slot(lane)

    @in_phase(BACKOFF)
    @rule(data=st.data())
    def wake(self, data):
        self.scheduler.wake(data.draw(st.sampled_from(self.units(BACKOFF))))

    @in_phase(BACKOFF, READY, OPENING)
    @rule(data=st.data(), loses=st.booleans())
    def give_up(self, data, loses):
        unit = data.draw(st.sampled_from(self.units(BACKOFF, READY, OPENING)))
        end = data.draw(BAD_ENDS)
        if loses and self.scheduler.triggers is not None:
            self.choices.add(unit)
            self.scheduler.triggers.choices.add(unit)
        self.scheduler.give_up(unit, end)
        self.hear()

    @in_phase(WAITING)
    @rule(data=st.data())
    def drop(self, data):
        unit = data.draw(st.sampled_from(self.units(WAITING)))
        self.scheduler.give_up(unit, CANCELED)
        self.canceled.add(unit)
        self.hear()

    @precondition(lambda self: self.scheduler.openings)
    @rule(how=st.sampled_from(["open", "open", "queue", "pass over"]))
    def look(self, how):
        unit = self.scheduler.openings.popleft()
        if self.scheduler.phase[unit] != OPENING:
            return
        if how == "open":
            self.scheduler.open(unit)
        elif how == "queue":
            self.scheduler.queue(unit)
        else:
            self.choices.add(unit)
            self.scheduler.pass_over(unit, unit)
            self.blamed[unit] = unit
            self.hear()

    def opened(self):
        return [unit for unit in self.units(OPEN) if unit not in self.suspended]

    @precondition(lambda self: not self.stopped and self.opened())
    @rule(data=st.data(), needs=st.none() | NEEDS)
    def grow(self, data, needs):
        parent = data.draw(st.sampled_from(self.opened()))
        lane = self.scheduler.lanes[parent]
        child = self.scheduler.add(parent, lane)
        assert child not in self.parents
        self.parents[child] = parent
        if needs is not None:
            made = self.scheduler.lane_with(lane, needs)
            if made == len(self.needs):
                self.needs.append(needs)
                self.more_lanes = (*self.more_lanes, self.place(lane))
            assert self.needs[made] == needs
            assert self.place(made) == self.place(lane)
            self.scheduler.move(child, made)
        self.scheduler.queue(child)

    @precondition(lambda self: self.opened())
    @rule(data=st.data(), fails=st.booleans())
    def close(self, data, fails):
        parent = data.draw(st.sampled_from(self.opened()))
        children = [child for child, whose in self.parents.items() if whose == parent]
        if not all(map(self.scheduler.has_ended, children)):
            return
        if fails:
            self.scheduler.fail(parent, data.draw(BAD_ENDS))
        else:
            self.scheduler.complete(parent)
        self.hear()

    @precondition(lambda self: any(self.scheduler.phase[c] == COMPLETED for c in self.parents))
    @rule()
    def vacate(self):
        for child in list(self.parents):
            if self.scheduler.phase[child] == COMPLETED:
                self.scheduler.vacate(child)
                del self.parents[child]

    @in_phase(RUNNING)
    @rule(data=st.data())
    def suspend(self, data):
        unit = data.draw(st.sampled_from(self.units(RUNNING)))
        self.scheduler.suspend(unit)
        self.suspended.add(unit)

    @precondition(lambda self: self.suspended)
    @rule(data=st.data(), how=st.sampled_from(["resume", "withdraw", "fail"]))
    def go_on(self, data, how):
        unit = data.draw(st.sampled_from(sorted(self.suspended)))
        if how == "resume" and unit not in self.wanting:
            self.scheduler.resume(unit)
            self.wanting.add(unit)
        elif how == "withdraw":
            self.scheduler.withdraw(unit)
            self.wanting.discard(unit)
        elif how == "fail":
            self.scheduler.fail(unit, data.draw(BAD_ENDS))
            self.suspended.discard(unit)
            self.wanting.discard(unit)
            self.hear()

    @precondition(lambda self: not self.stopped and self.units(RUNNING, OPEN, BACKOFF))
    @rule(in_earnest=st.sampled_from([False] * 9 + [True]))
    def stop(self, in_earnest):
        if not in_earnest:
            return  # else most runs would be stopped before they have grown
        queued, waiting = self.units(OPENING, READY, BACKOFF), self.units(WAITING)
        assert sorted(self.scheduler.cancel_waiting()) == queued
        self.canceled.update(queued, waiting)
        self.stopped = True

    # -- what holds ---------------------------------------------------------------------------

    @invariant()
    def everybody_is_where_the_graph_says(self):
        phase = self.scheduler.phase
        self.scheduler.check_invariants()
        for unit in range(len(self.edges)):
            if unit in self.canceled:
                assert phase[unit] == CANCELED
            elif self.fate(unit) == "start":
                skipped = self.blamed.get(unit) == unit  # it was its own choice
                assert phase[unit] != WAITING
                assert (phase[unit] == SKIPPED) == skipped
            else:
                assert phase[unit] == (WAITING if self.fate(unit) == "wait" else SKIPPED)

    @invariant()
    def slots_and_tokens_are_those_of_who_holds_them(self):
        held = self.holders()
        assert self.scheduler.used == len(held)
        assert self.scheduler.lane_used == [held.count(lane) for lane in range(len(self.needs))]
        assert self.budget.used("db") == self.used("db") <= LIMITS["db"].concurrency
        for at, _ in self.taken:
            assert sum(tokens for t, tokens in self.taken if at <= t < at + PER) <= RATE

    @invariant()
    def unfinished_counts_who_has_no_end(self):
        ended = sum(phase not in TRANSITIONS for phase in self.scheduler.phase)
        assert self.scheduler.unfinished == len(self.scheduler.phase) - ended

    def teardown(self):
        """Whatever happened: driven on, it ends, and every unit has one end."""
        if not hasattr(self, "scheduler"):
            return
        scheduler = self.scheduler
        for _ in range(10 * len(scheduler.phase) + 10):
            while self.late:
                scheduler.free_slot(self.late.pop())
            while scheduler.openings:
                self.look("queue")
            for unit in self.units(BACKOFF):
                scheduler.wake(unit)
            for unit in self.suspended - self.wanting:
                self.wanting.add(unit)
                scheduler.resume(unit)
            self.start()
            for unit in self.units(RUNNING):
                scheduler.complete(unit)
            for unit in self.opened():
                children = [child for child, whose in self.parents.items() if whose == unit]
                if all(map(scheduler.has_ended, children)):
                    scheduler.complete(unit)
            self.hear()
            self.now += PER
        assert scheduler.finished
        assert not scheduler.stuck()
        assert scheduler.used == 0
        assert self.budget.idle
        assert set(scheduler.phase) <= {
            COMPLETED, FAILED, TIMEOUT, SKIPPED, CANCELED, OUTSIDE
        }  # fmt: skip
        for unit in range(len(self.edges)):
            assert unit in self.canceled or self.fate(unit) != "wait"


GrowingMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=40)
TestGrowingMachine = pytest.mark.slow(GrowingMachine.TestCase)
