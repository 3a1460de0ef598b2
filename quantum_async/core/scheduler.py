"""The decision core: which units may start now.

Two rules:

1. A unit is ready the moment its last dependency has completed; nothing else is waited for.
2. Work conserving: while a ready unit has a free slot in its lane and in the whole run,
   `next_start` hands one out, best rank first. A full lane holds back only its own units.

The scheduler knows no loop, clock, thread or function: a driver asks `next_start` and tells what
happened. `engine.Engine` is one driver, `core.simulate` another.

Constant: `edges_down` (dependents), `lanes` (lane of each unit), `ranking`, `slots` (of each lane).
Changing: `phase` of each unit, `waiting` (dependencies each unit still waits for), a ready queue
a lane, slots in use (`used` in all, `lane_used`), `unfinished` (units without an end).

A lane is a kind of slot: the loop, threads, worker processes. The ready queue of a lane is a
sorted list (what was ready at the start) beside a heap (what became ready since), both of ranks;
so starting a million roots costs no logarithm each. Ranks of units that ended while they were
queued stay behind, and are passed over when they come up.
"""

from collections import deque
from collections.abc import Collection, Iterable, Sequence
from heapq import heappop, heappush
from typing import Final, Protocol

from quantum_async.core.errors import InternalError
from quantum_async.core.graph import Edges
from quantum_async.core.ranking import Ranking
from quantum_async.core.states import UnitState

WAITING, READY, RUNNING, BACKOFF, COMPLETED, FAILED, TIMEOUT, SKIPPED, CANCELED, OUTSIDE = range(10)

PHASES: Final = (
    "waiting", "ready", "running", "backing off", "completed",
    "failed", "timed out", "skipped", "canceled", "outside the run",
)  # fmt: skip

# Phases that are reached from each; what is missing is an end. The state diagram in
# docs/design.md is drawn from this table, and a test holds every step against it.
TRANSITIONS: Final = {
    WAITING: {READY, SKIPPED, CANCELED},
    READY: {RUNNING, TIMEOUT, CANCELED},
    RUNNING: {COMPLETED, FAILED, TIMEOUT, CANCELED, BACKOFF},
    BACKOFF: {READY, TIMEOUT, CANCELED},
}

STATE_OF: Final = (
    UnitState.PENDING, UnitState.PENDING, UnitState.RUNNING, UnitState.PENDING,
    UnitState.COMPLETED, UnitState.FAILED, UnitState.TIMEOUT, UnitState.SKIPPED,
    UnitState.CANCELED, UnitState.PENDING,
)  # fmt: skip

NOBODY: Final = -1
_NO_LIMIT: Final = 1 << 62
_CANCELS_WAITING: Final = bytes(
    CANCELED if phase in (WAITING, READY, BACKOFF) else phase for phase in range(256)
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


class Scheduler:
    """The state of one run, and its decisions.

    Args:
        plan: The graph.
        ranking: Which ready unit is best; None for first in, first out.
        lanes: Lane of each unit; None if all are in lane 0.
        slots: How many units of each lane may run at once; None for no limit.
        max_running: How many units may run at once in all; None for no limit.
        given: Units that count as completed from the start.
        outside: Units that are not part of the run.
    """

    __slots__ = (
        "_doomed", "_fifo", "_followers", "_heaps", "_many_lanes", "_next", "_ranks", "_sorted",
        "_units", "edges_down", "just_ready", "lane_used", "lanes", "max_running", "phase",
        "slots", "unfinished", "used", "waiting",
    )  # fmt: skip

    def __init__(
        self,
        plan: Schedulable,
        ranking: Ranking | None,
        *,
        lanes: bytes | None = None,
        slots: Sequence[int | None] = (None,),
        max_running: int | None = None,
        given: Collection[int] = (),
        outside: Collection[int] = (),
    ) -> None:
        count = len(plan.edges_down)
        self.edges_down = plan.edges_down
        self.lanes = bytes(count) if lanes is None else lanes
        self.slots = [_NO_LIMIT if limit is None else limit for limit in slots]
        self.max_running = _NO_LIMIT if max_running is None else max_running
        self.phase = bytearray(count)
        self.waiting = list(plan.in_degrees)
        self.unfinished = count
        self.used = 0
        self.lane_used = [0] * len(self.slots)
        # First in, first out: a unit's rank is its turn, and `_units` grows by one each time.
        self._fifo = ranking is None
        self._units: Sequence[int] = [] if ranking is None else ranking.units
        self._ranks: Sequence[int] = () if ranking is None else ranking.ranks
        self._many_lanes = len(self.slots) > 1
        self._sorted: list[list[int]] = [[] for _ in self.slots]
        self._heaps: list[list[int]] = [[] for _ in self.slots]
        self._doomed: deque[tuple[int, int]] = deque()
        self._followers: dict[int, int] = {}  # who gets whose slot
        self._next: deque[int] = deque()  # those whose turn has come
        self.just_ready: list[int] | None = None  # a list while somebody wants to hear of it
        self._settle_before_start(given, outside)
        if ranking is None or given or outside:
            self._queue_roots(u for u in range(count) if not self.waiting[u])
        else:
            self._queue_sorted(ranking.roots)

    def _settle_before_start(self, given: Collection[int], outside: Collection[int]) -> None:
        for units, phase in ((given, COMPLETED), (outside, OUTSIDE)):
            for unit in units:
                self.phase[unit] = phase
                self.unfinished -= 1
        for unit in given:
            for dependent in self.edges_down[unit]:
                self.waiting[dependent] -= 1

    def _queue_roots(self, roots: Iterable[int]) -> None:
        for unit in roots:
            if self.phase[unit] == WAITING:
                self._enqueue(unit)

    def _queue_sorted(self, ranks: Sequence[int]) -> None:
        """Queue units by rank, worst first, as `Ranking.roots` has them."""
        if len(self.slots) == 1:
            self._sorted[0] = list(ranks)
        else:
            for rank in ranks:
                self._sorted[self.lanes[self._units[rank]]].append(rank)
        if len(ranks) == len(self.phase):
            self.phase[:] = bytes([READY]) * len(ranks)
        else:
            for rank in ranks:
                self.phase[self._units[rank]] = READY

    # -- what may start ---------------------------------------------------------------------

    def next_start(self) -> int:
        """Return the best ready unit that has a slot, and take the slot; `NOBODY` if none has."""
        phase, units = self.phase, self._units
        if self._next and (unit := self._next_follower()) != NOBODY:
            return unit
        while self.used < self.max_running:
            lane = self._best_lane() if self._many_lanes else 0
            if lane == NOBODY or self.lane_used[lane] >= self.slots[lane]:
                return NOBODY
            batch, heap = self._sorted[lane], self._heaps[lane]
            if batch and not (heap and heap[0] < batch[-1]):
                unit = units[batch.pop()]
            elif heap:
                unit = units[heappop(heap)]
            else:
                return NOBODY
            if phase[unit] == READY:  # else it ended while it was queued
                phase[unit] = RUNNING
                self.used += 1
                self.lane_used[lane] += 1
                return unit
        return NOBODY

    def reserve(self, lane: int) -> int:
        """Take the best ready unit of a lane out of its queue, to `follow` another, or `NOBODY`."""
        batch, heap = self._sorted[lane], self._heaps[lane]
        while batch or heap:
            from_batch = batch and not (heap and heap[0] < batch[-1])
            unit = self._units[batch.pop() if from_batch else heappop(heap)]
            if self.phase[unit] == READY:
                return unit
        return NOBODY

    def follow(self, before: int, unit: int) -> None:
        """Have a unit of the same lane get the slot of a running one, when that gives it back.

        Args:
            before: The unit that runs, or that follows another itself.
            unit: One that was reserved, or that waits for `before` alone.
        """
        self._followers[before] = unit

    def has_follower(self, unit: int) -> bool:
        """Return whether a unit's slot is promised."""
        return unit in self._followers

    def ready_in(self, lane: int) -> int:
        """Return how many units are queued in a lane, at most."""
        return len(self._sorted[lane]) + len(self._heaps[lane])

    def _next_follower(self) -> int:
        while self._next:
            unit = self._next.popleft()
            if self.phase[unit] != READY:
                continue
            lane = self.lanes[unit]
            if self.used < self.max_running and self.lane_used[lane] < self.slots[lane]:
                self.phase[unit] = RUNNING
                self.used += 1
                self.lane_used[lane] += 1
                return unit
            self._enqueue(unit)  # there are fewer slots than there were
        return NOBODY

    def _give_to_follower(self, unit: int) -> None:
        follower = self._followers.pop(unit, NOBODY)
        if follower != NOBODY and self.phase[follower] == READY:
            self._next.append(follower)

    def _best_lane(self) -> int:
        """Return the lane with a free slot whose queue has the best unit; `NOBODY` if none has."""
        best_lane, best = NOBODY, _NO_LIMIT
        for lane, limit in enumerate(self.slots):
            if self.lane_used[lane] < limit:
                batch, heap = self._sorted[lane], self._heaps[lane]
                rank = batch[-1] if batch else _NO_LIMIT
                if heap and heap[0] < rank:
                    rank = heap[0]
                if rank < best:
                    best_lane, best = lane, rank
        return best_lane

    def _enqueue(self, unit: int) -> None:
        self.phase[unit] = READY
        if self._fifo:
            rank = len(self._units)
            self._units.append(unit)  # type: ignore[attr-defined]
        else:
            rank = self._ranks[unit]
        heappush(self._heaps[self.lanes[unit]], rank)
        if self.just_ready is not None:
            self.just_ready.append(unit)

    # -- what happened ----------------------------------------------------------------------

    def complete(self, unit: int, *, keeps_slot: bool = False) -> None:
        """A running unit has a result: its slot is free, its dependents wait for one less."""
        waiting, phase = self.waiting, self.phase
        if phase[unit] != RUNNING:
            self._expect(unit, COMPLETED, RUNNING)
        phase[unit] = COMPLETED
        self.unfinished -= 1
        if not keeps_slot:
            self.used -= 1
            self.lane_used[self.lanes[unit]] -= 1
        for dependent in self.edges_down[unit]:
            left = waiting[dependent] = waiting[dependent] - 1
            if not left and phase[dependent] == WAITING:
                self._enqueue(dependent)
        if self._followers:
            self._give_to_follower(unit)

    def fail(self, unit: int, phase: int = FAILED, *, keeps_slot: bool = False) -> None:
        """A running unit ended without a result: what depends on it will be skipped.

        Args:
            unit: The unit.
            phase: FAILED, TIMEOUT or CANCELED.
            keeps_slot: Its thread is still running; `free_slot` is called when it returns.
        """
        self._leave(unit, phase, keeps_slot)
        self._doom_dependents(unit, unit)

    def give_up(self, unit: int, phase: int = TIMEOUT) -> None:
        """A unit that waits for a slot or backs off has run out of time."""
        self._expect(unit, phase, READY, BACKOFF)
        self.phase[unit] = phase
        self.unfinished -= 1
        self._doom_dependents(unit, unit)

    def retry(self, unit: int, *, keeps_slot: bool = False) -> None:
        """A running unit will be tried again: its slot is free until then."""
        self._leave(unit, BACKOFF, keeps_slot)
        self.unfinished += 1

    def wake(self, unit: int) -> None:
        """A unit's back-off is over: it is ready again."""
        self._expect(unit, READY, BACKOFF)
        self._enqueue(unit)

    def free_slot(self, lane: int) -> None:
        """A thread that outlived its attempt has returned."""
        self.used -= 1
        self.lane_used[lane] -= 1

    def next_skip(self) -> tuple[int, int] | None:
        """Skip one unit that depends on a failed one.

        Returns:
            The unit and the failed unit that is to blame, or None if there is nothing to skip.
        """
        while self._doomed:
            unit, root = self._doomed.popleft()
            if self.phase[unit] == WAITING:
                self.phase[unit] = SKIPPED
                self.unfinished -= 1
                self._doom_dependents(unit, root)
                return unit, root
        return None

    def cancel_waiting(self) -> list[int]:
        """Cancel all units that do not run, and return those that did not wait for dependencies.

        What is running stays: it ends when the driver has stopped it.
        """
        queued = [
            unit for phase in (READY, BACKOFF) if phase in self.phase
            for unit in self.in_phase(phase)
        ]  # fmt: skip
        before = self.phase.count(CANCELED)
        self.phase[:] = self.phase.translate(_CANCELS_WAITING)
        self.unfinished -= self.phase.count(CANCELED) - before
        return queued

    def resize(self, max_running: int) -> None:
        """Change how many units may run at once in all; what runs is not stopped."""
        self.max_running = max_running

    def _leave(self, unit: int, phase: int, keeps_slot: bool = False) -> None:
        self._expect(unit, phase, RUNNING)
        self.phase[unit] = phase
        self.unfinished -= 1
        if not keeps_slot:
            self.free_slot(self.lanes[unit])
        if self._followers:
            self._give_to_follower(unit)

    def _doom_dependents(self, unit: int, root: int) -> None:
        self._doomed.extend((dependent, root) for dependent in self.edges_down[unit])

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

        To be asked when `next_start` and `next_skip` had nothing to give.
        """
        return bool(
            self.unfinished and not self.used and not self._doomed and BACKOFF not in self.phase
        )

    def check_invariants(self) -> None:
        """Compute everything again from the phases and compare. Linear: for tests.

        Raises:
            InternalError: If anything is not as it must be.
        """
        running = self.in_phase(RUNNING)
        late = self.used - len(running)
        doomed = {unit for unit, _ in self._doomed}
        checks = {
            "slots in use, in all, are those of the lanes": self.used == sum(self.lane_used),
            "no more slots in use than the lane has": all(
                used <= limit for used, limit in zip(self.lane_used, self.slots, strict=True)
            ),
            "each running unit has its slot": late >= 0,
            "each lane holds its running units": all(
                sum(self.lanes[unit] == lane for unit in running) <= used
                for lane, used in enumerate(self.lane_used)
            ),
            "unfinished counts the units without an end": self.unfinished
            == sum(map(self.phase.count, (WAITING, READY, RUNNING, BACKOFF))),
            "who waits for nothing is not waiting": all(
                self.waiting[unit] > 0 for unit in self.in_phase(WAITING)
            ),
            "who is ready has nothing to wait for": all(
                not self.waiting[unit] for unit in self.in_phase(READY)
            ),
            "who depends on a failure will be skipped": all(
                self.phase[dependent] in (SKIPPED, CANCELED, OUTSIDE) or dependent in doomed
                for phase in (FAILED, TIMEOUT, SKIPPED)
                for unit in self.in_phase(phase)
                for dependent in self.edges_down[unit]
            ),
        }
        for rule, holds in checks.items():
            if not holds:
                raise InternalError(f"broken invariant: {rule}: {self!r}")

    def __repr__(self) -> str:
        counts = ", ".join(
            f"{self.phase.count(phase)} {PHASES[phase]}"
            for phase in range(len(PHASES))
            if phase in self.phase
        )
        return f"<Scheduler {counts or 'empty'}; {self.used} slots used>"
