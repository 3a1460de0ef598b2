"""The decision core: which units may start now.

Two rules:

1. A unit is ready the moment the last dependency that it waits for has ended; nothing else is
   waited for.
2. Work conserving: while a ready unit has room in every gauge and limit that it needs,
   `next_start` hands one out, best rank first. A full lane holds back only its own units.

The scheduler knows no loop, clock, thread or function: a driver asks `next_start` and tells what
happened. `engine.Engine` is one driver, `core.simulate` another.

Constant: `edges_down` (dependents), `triggers` (what units wait for), `special` (who is opened by
the driver). Changing: `phase` of each unit, `waiting` (dependencies that each has not heard of),
`unfinished` (units without an end), and the queues and slots of `Lanes`.

A run may grow: `add` makes a row for a child of an open unit, and `vacate` lets it be used again.
"""

from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import zip_longest
from types import MappingProxyType
from typing import Final, Protocol

from quantum_async.core.errors import InternalError
from quantum_async.core.graph import Edges
from quantum_async.core.invariants import broken_invariant
from quantum_async.core.lanes import NO_LIMIT, Lanes
from quantum_async.core.limits import Budget, Gauge, Needs
from quantum_async.core.phases import (
    BACKOFF,
    CANCELED,
    COMPLETED,
    FAILED,
    OPEN,
    OPENING,
    OUTSIDE,
    PHASES,
    QUEUED,
    READY,
    RUNNING,
    SKIPPED,
    STATE_OF,
    TIMEOUT,
    TRANSITIONS,
    WAITING,
)
from quantum_async.core.ranking import Ranking
from quantum_async.core.states import UnitState
from quantum_async.core.triggers import NOBODY, START, WAIT, Triggers

__all__ = [
    "BACKOFF", "CANCELED", "COMPLETED", "FAILED", "NOBODY", "OPEN", "OPENING", "OUTSIDE", "PHASES",
    "READY", "RUNNING", "SKIPPED", "STATE_OF", "TIMEOUT", "TRANSITIONS", "WAITING", "Scheduler",
]  # fmt: skip

_CANCELS_WAITING: Final = bytes(
    CANCELED if phase in (WAITING, *QUEUED) else phase for phase in range(256)
)


class Schedulable(Protocol):
    """What the scheduler needs of a plan."""

    @property
    def edges_up(self) -> Edges:
        """Dependencies of each unit."""
        ...

    @property
    def edges_down(self) -> Edges:
        """Dependents of each unit."""
        ...

    @property
    def in_degrees(self) -> list[int]:
        """How many dependencies each unit has."""
        ...


class Scheduler(Lanes):
    """The state of one run, and its decisions.

    Args:
        plan: The graph.
        ranking: Which ready unit is best; None for first in, first out.
        lanes: Lane of each unit; None if all are in lane 0.
        slots: How many units of each lane may run at once; None for no limit.
        max_running: How many units may run at once in all; None for no limit.
        given: Units that count as completed from the start.
        outside: Units that are not part of the run.
        gauges: For each lane more that must have room, shared with other runs.
        needs: What the units of each lane use of `budget`.
        budget: The limits, shared with other runs.
        special: Whether each unit is to be opened by the driver when it would be ready.
        triggers: What units wait for; None if all wait for success.
        streams: For each unit that gives items while it runs, the dependents that start with it.
    """

    __slots__ = (
        "_doomed", "_streams", "_vacant", "count", "edges_down", "edges_up",
        "openings", "special", "total", "triggers", "unfinished", "waiting",
    )  # fmt: skip

    def __init__(
        self,
        plan: Schedulable,
        ranking: Ranking | None,
        *,
        lanes: Sequence[int] | None = None,
        slots: Sequence[int | None] = (None,),
        max_running: int | None = None,
        given: Collection[int] = (),
        outside: Collection[int] = (),
        gauges: Sequence[tuple[Gauge, ...]] = (),
        needs: Sequence[Needs] | None = None,
        budget: Budget | None = None,
        special: Sequence[int] | None = None,
        triggers: Triggers | None = None,
        streams: Mapping[int, Collection[int]] = MappingProxyType({}),
    ) -> None:
        count = self.count = len(plan.edges_down)
        self.total = None if max_running is None else Gauge(max_running)
        in_all = () if self.total is None else (self.total,)
        own = [in_all + (() if most is None else (Gauge(most),)) for most in slots]
        super().__init__(
            bytearray(count),
            ranking,
            bytes(count) if lanes is None else lanes,
            [mine + shared for mine, shared in zip_longest(own, gauges, fillvalue=())],
            needs,
            budget,
        )
        self.edges_up, self.edges_down = plan.edges_up, plan.edges_down
        self._streams = streams
        if streams:
            # These dependents hear of a start, and not again of the end.
            self.edges_down = [
                tuple(unit for unit in below if unit not in streams.get(source, ()))
                for source, below in enumerate(plan.edges_down)
            ]
        self.waiting = list(plan.in_degrees)
        self.unfinished = count
        self.triggers = triggers
        self.special = special
        self._doomed: deque[tuple[int, int]] = deque()
        self._vacant: list[int] = []  # rows of children that can be used again
        self.openings: deque[int] = deque()  # units that the driver has to look at
        self._settle_before_start(given, outside)
        if ranking is None or given or outside or special is not None:
            for unit in range(count):
                if self.phase[unit] == WAITING and self._may_begin(unit):
                    self._enqueue(unit)
        else:
            self._queue_sorted(ranking.roots)

    def _settle_before_start(self, given: Collection[int], outside: Collection[int]) -> None:
        for units, phase in ((given, COMPLETED), (outside, OUTSIDE)):
            for unit in units:
                self.phase[unit] = phase
                self.unfinished -= 1
        for unit in given:
            for dependent in (*self.edges_down[unit], *self._streams.get(unit, ())):
                self.waiting[dependent] -= 1
                if self.triggers is not None and self.phase[dependent] == WAITING:
                    self.triggers.success(dependent, unit, self.waiting[dependent])

    def _may_begin(self, unit: int) -> bool:
        won = self.triggers is not None and unit in self.triggers.winners
        return won or not self.waiting[unit]

    # -- what is opened, and grows ----------------------------------------------------------

    def _enqueue(self, unit: int) -> None:
        """A unit has nothing to wait for: queue it, or have the driver look at it first."""
        if self.special is not None and self.special[unit]:
            self.phase[unit] = OPENING
            self.openings.append(unit)
        else:
            self.queue(unit)

    def open(self, unit: int) -> None:
        """A unit goes on without a slot: a map, a nested run; the driver ends it."""
        self._expect(unit, OPEN, OPENING)
        self.phase[unit] = OPEN

    def begin_stream(self, unit: int) -> None:
        """A unit that gives items while it runs has begun: who takes them may start."""
        for dependent in self._streams.get(unit, ()):
            self._tell_success_to(dependent, unit)

    def suspend(self, unit: int) -> None:
        """A running unit waits for others to run: its slot is free until it is resumed."""
        self._expect(unit, OPEN, RUNNING)
        self.phase[unit] = OPEN
        self.free_slot(self.lanes[unit])

    def add(self, parent: int, lane: int) -> int:
        """Make a row for a child of an open unit, which is to be queued.

        Returns:
            Its number, perhaps one that was `vacate`d before.
        """
        if self._vacant:
            child = self._vacant.pop()
            self.phase[child] = WAITING
            self.parents[child - self.count] = parent
            self.move(child, lane)
        else:
            child = self._add_row(parent, lane)
            if not isinstance(self.edges_down, list):
                self.edges_down = list(self.edges_down)
            self.waiting.append(0)
            self.edges_down.append(())
        self.unfinished += 1
        return child

    def vacate(self, child: int) -> None:
        """The row of a child that has ended may be used for another."""
        self.phase[child] = OUTSIDE
        self._vacant.append(child)

    # -- what happened ----------------------------------------------------------------------

    def complete(self, unit: int, *, keeps_slot: bool = False) -> None:
        """A running unit has a result: its slot is free, its dependents wait for one less."""
        phase = self.phase
        if phase[unit] != RUNNING:
            self._expect(unit, COMPLETED, OPEN)
            keeps_slot = True
        phase[unit] = COMPLETED
        self.unfinished -= 1
        if not keeps_slot and self._limited:
            self.free_slot(self.lanes[unit])
        elif not keeps_slot:
            self.used -= 1
            self.lane_used[self.lanes[unit]] -= 1
        if self.triggers is None:
            waiting = self.waiting
            for dependent in self.edges_down[unit]:
                left = waiting[dependent] = waiting[dependent] - 1
                if not left and phase[dependent] == WAITING:
                    self._enqueue(dependent)
        else:
            for dependent in self.edges_down[unit]:
                self._tell_success_to(dependent, unit)
        if self._followers:
            self._give_to_follower(unit)

    def _tell_success_to(self, dependent: int, unit: int) -> None:
        left = self.waiting[dependent] = self.waiting[dependent] - 1
        if self.phase[dependent] != WAITING:
            return
        triggers = self.triggers
        if not left if triggers is None else triggers.success(dependent, unit, left) == START:
            self._enqueue(dependent)

    def fail(self, unit: int, phase: int = FAILED, *, keeps_slot: bool = False) -> None:
        """A unit that runs or is open ended without a result: what depends on it hears of it.

        Args:
            unit: The unit.
            phase: FAILED, TIMEOUT or CANCELED.
            keeps_slot: Its thread is still running; `free_slot` is called when it returns.
        """
        self._leave(unit, phase, keeps_slot)
        self._doom_dependents(unit, unit)

    def give_up(self, unit: int, phase: int = TIMEOUT) -> None:
        """A unit that does not run ends without a result: its time is up, or nobody needs it."""
        allowed = (WAITING, *QUEUED) if phase == CANCELED else QUEUED
        self._expect(unit, phase, *allowed)
        self.phase[unit] = phase
        self.unfinished -= 1
        self._doom_dependents(unit, unit)

    def pass_over(self, unit: int, root: int) -> None:
        """A unit is skipped although it might have started: its condition is false, say.

        Args:
            unit: One that is opening or open.
            root: Who is to blame; the unit itself, if that was a choice.
        """
        self._expect(unit, SKIPPED, OPENING, OPEN)
        self.phase[unit] = SKIPPED
        self.unfinished -= 1
        if root == unit and self.triggers is not None:
            self.triggers.choices.add(unit)
        self._doom_dependents(unit, root)

    def retry(self, unit: int, *, keeps_slot: bool = False) -> None:
        """A running unit will be tried again: its slot is free until then."""
        self._leave(unit, BACKOFF, keeps_slot)
        self.unfinished += 1

    def wake(self, unit: int) -> None:
        """A unit's back-off is over: it is ready again."""
        self._expect(unit, READY, BACKOFF)
        self.queue(unit)

    def next_skip(self) -> tuple[int, int] | None:
        """Tell one unit that a dependency of it ended without a result.

        Returns:
            The unit that is skipped for it, and the one that is to blame; `NOBODY` as the latter
            if the unit starts all the same. None if there is nothing to tell.
        """
        while self._doomed:
            unit, root = self._doomed.popleft()
            if self.phase[unit] != WAITING:
                continue
            if self.triggers is not None:
                left = self.waiting[unit] = self.waiting[unit] - 1
                verdict = self.triggers.loss(unit, root, left)
                if verdict == WAIT:
                    continue
                if verdict == START:
                    self._enqueue(unit)
                    return unit, NOBODY
                root = self.triggers.roots[unit]
            self.phase[unit] = SKIPPED
            self.unfinished -= 1
            self._doom_dependents(unit, root)
            return unit, root
        return None

    def unneeded(self, losers: Iterable[int], wanted: Collection[int] = ()) -> list[int]:
        """Return those of `losers`, and of what they wait for, that nobody needs any more.

        Args:
            losers: Units.
            wanted: Units that are needed for their own sake.
        """
        gone: dict[int, None] = {}
        queue = deque(losers)
        while queue:
            unit = queue.popleft()
            needed = unit in wanted or unit in gone or self.has_ended(unit)
            below = (*self.edges_down[unit], *self._streams.get(unit, ()))
            if needed or not all(u in gone or self.has_ended(u) for u in below):
                continue
            gone.setdefault(unit)
            queue.extend(self.edges_up[unit])
        return list(gone)

    def cancel_waiting(self) -> list[int]:
        """Cancel all units that do not run, and return those that did not wait for dependencies.

        What is running stays: it ends when the driver has stopped it.
        """
        queued = [unit for phase in QUEUED for unit in self.in_phase(phase)]
        before = self.phase.count(CANCELED)
        self.phase[:] = self.phase.translate(_CANCELS_WAITING)
        self.unfinished -= self.phase.count(CANCELED) - before
        return queued

    def resize(self, max_running: int) -> None:
        """Change how many units may run at once in all; what runs is not stopped."""
        if self.total is None:
            self.total = Gauge(max_running)
            self.total.used = self.used
            self.gauges = [(self.total, *gauges) for gauges in self.gauges]
            self._limited = True
        else:
            self.total.capacity = max_running

    def _leave(self, unit: int, phase: int, keeps_slot: bool) -> None:
        self._expect(unit, phase, RUNNING, OPEN)
        if self.phase[unit] == RUNNING and not keeps_slot:
            self.free_slot(self.lanes[unit])
        self.phase[unit] = phase
        self.unfinished -= 1
        if self._followers:
            self._give_to_follower(unit)

    def _doom_dependents(self, unit: int, root: int) -> None:
        self._doomed.extend((dependent, root) for dependent in self.edges_down[unit])
        self._doomed.extend((dependent, root) for dependent in self._streams.get(unit, ()))

    def _expect(self, unit: int, phase: int, *allowed: int) -> None:
        found = self.phase[unit]
        if found not in allowed:
            raise InternalError(
                f"unit number {unit} is {PHASES[found]} and cannot become {PHASES[phase]}"
            )

    # -- questions --------------------------------------------------------------------------

    @property
    def finished(self) -> bool:
        """Whether every unit has ended and nothing is left to be skipped."""
        return not self.unfinished

    @property
    def max_running(self) -> int:
        """How many units may run at once in all."""
        return NO_LIMIT if self.total is None else self.total.capacity

    def has_ended(self, unit: int) -> bool:
        """Return whether a unit is in one of the phases that are ends."""
        return self.phase[unit] not in TRANSITIONS

    def state(self, unit: int) -> UnitState:
        """Return a unit's state in the users' words."""
        return STATE_OF[self.phase[unit]]

    def in_phase(self, phase: int) -> list[int]:
        """Return the units in a phase, in order."""
        found, at = [], self.phase.find(phase)
        while at >= 0:
            found.append(at)
            at = self.phase.find(phase, at + 1)
        return found

    def stuck(self) -> bool:
        """Whether nothing will ever happen again although units have not ended: our bug.

        To be asked when `next_start` and `next_skip` had nothing to give, nor another run or a
        limit has what this one waits for.
        """
        return bool(
            self.unfinished
            and not self.used
            and not self._doomed
            and not any(phase in self.phase for phase in (BACKOFF, OPENING, OPEN))
        )

    def check_invariants(self) -> None:
        """Compute everything again from the phases and compare. Linear: for tests.

        Raises:
            InternalError: If anything is not as it must be.
        """
        rule = broken_invariant(self, {unit for unit, _ in self._doomed})
        if rule is not None:
            raise InternalError(f"broken invariant: {rule}: {self!r}")

    def __repr__(self) -> str:
        counts = ", ".join(
            f"{self.phase.count(phase)} {PHASES[phase]}"
            for phase in range(len(PHASES))
            if phase in self.phase
        )
        return f"<Scheduler {counts or 'empty'}; {self.used} slots used>"
