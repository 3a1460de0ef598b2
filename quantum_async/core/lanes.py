"""Who is queued where, and who has room: the half of the scheduler that knows slots.

A lane is a kind of slot and what else is needed beside it: the loop, threads, worker processes,
each with the limits that its units use. The ready queue of a lane is a sorted list (what was ready
at the start) beside a heap (what became ready since), both of ranks; so starting a million roots
costs no logarithm each. Ranks of units that ended while they were queued stay behind, and are
passed over when they come up.

Children of an open unit are queued at the rank of their parent, and among themselves take turns.
"""

import math
from collections import deque
from collections.abc import Iterable, Sequence
from heapq import heappop, heappush
from typing import Final

from quantum_async.core.limits import Budget, Gauge, Limit, Needs
from quantum_async.core.phases import OPEN, READY, RUNNING, WAITING
from quantum_async.core.ranking import Ranking
from quantum_async.core.triggers import NOBODY

NO_LIMIT: Final = 1 << 62


class Lanes:
    """The ready queues of one run, and the slots in use.

    Args:
        phase: The phase of each unit; the scheduler's own.
        ranking: Which ready unit is best; None for first in, first out.
        lanes: Lane of each unit; a list is the run's own, and grows with it.
        gauges: For each lane what must have room.
        needs: What the units of each lane use of `budget`.
        budget: The limits, shared with other runs.
    """

    __slots__ = (
        "_budget", "_busy", "_children", "_fifo", "_first_child", "_followers", "_heaps",
        "_lane_of", "_limited", "_made_from", "_many_lanes", "_needs", "_next", "_ranks",
        "_resuming", "_sorted", "_units", "gauges", "held_by", "just_ready", "lane_used", "lanes",
        "parents", "phase", "refused_by", "used", "wakes_in",
    )  # fmt: skip

    def __init__(
        self,
        phase: bytearray,
        ranking: Ranking | None,
        lanes: Sequence[int],
        gauges: Iterable[tuple[Gauge, ...]],
        needs: Sequence[Needs] | None,
        budget: Budget | None,
    ) -> None:
        self.phase = phase
        self.lanes = lanes
        self.gauges = list(gauges)
        self._needs: list[Needs] = [()] * len(self.gauges) if needs is None else list(needs)
        self._made_from = list(range(len(self.gauges)))  # the lane that has the place of each
        self._budget = budget
        self.used = 0
        self.lane_used = [0] * len(self.gauges)
        # First in, first out: a unit's rank is its turn, and `_units` grows by one each time.
        self._fifo = ranking is None
        self._units: Sequence[int] = [] if ranking is None else ranking.units
        self._ranks: Sequence[int] = () if ranking is None else ranking.ranks
        # Shorter ways for runs with one lane, and with nothing that is scarce.
        self._many_lanes = len(self.gauges) != 1
        self._limited = any(self.gauges) or budget is not None
        self._sorted: list[list[int]] = [[] for _ in self.gauges]
        self._heaps: list[list[int]] = [[] for _ in self.gauges]
        # Lanes that have somebody queued, and perhaps some others; not kept while there is but one.
        self._busy: set[int] = set()
        self._lane_of = {(lane, uses): lane for lane, uses in enumerate(self._needs)}
        self._followers: dict[int, int] = {}  # who gets whose slot
        self._next: deque[int] = deque()  # those whose turn has come
        self._resuming: deque[int] = deque()  # those that want their slot back
        # Children: whose each is, and for each lane those of each parent that are ready.
        self._first_child = len(phase)
        self.parents: list[int] = []
        self._children: list[dict[int, deque[int]]] = [{} for _ in self.gauges]
        self.just_ready: list[int] | None = None  # a list while somebody wants to hear of it
        self.refused_by: set[Gauge] = set()  # gauges that had no room when somebody was ready
        self.wakes_in = math.inf  # seconds until a limit has more, as far as asked for
        self.held_by: dict[int, str] = {}  # the limit that refused each lane, if that was one

    # -- in ---------------------------------------------------------------------------------

    def queue(self, unit: int, *, told: bool = False) -> None:
        """A unit is ready: it waits for nothing but room.

        Args:
            unit: The unit.
            told: Whether those who listen know it already: it goes back to the queue.
        """
        self.phase[unit] = READY
        stands_for, lane = unit, self.lanes[unit]
        if unit >= self._first_child:
            stands_for = self.parents[unit - self._first_child]
            siblings = self._children[lane]
            if stands_for not in siblings:
                siblings[stands_for] = deque()
            siblings[stands_for].append(unit)
        if self._fifo:
            rank = len(self._units)
            self._units.append(stands_for)  # type: ignore[attr-defined]
        else:
            rank = self._ranks[stands_for]
        heappush(self._heaps[lane], rank)
        if self._many_lanes:
            self._busy.add(lane)
        if self.just_ready is not None and not told:
            self.just_ready.append(unit)

    def _queue_sorted(self, ranks: Sequence[int]) -> None:
        """Queue units by rank, worst first, as `Ranking.roots` has them."""
        if len(self.gauges) == 1:
            self._sorted[0] = list(ranks)
        else:
            for rank in ranks:
                self._sorted[self.lanes[self._units[rank]]].append(rank)
            self._busy.update(range(len(self.gauges)))
        if len(ranks) == len(self.phase):
            self.phase[:] = bytes([READY]) * len(ranks)
        else:
            for rank in ranks:
                self.phase[self._units[rank]] = READY

    def _add_row(self, parent: int, lane: int) -> int:
        """Make a row for a child; see `Scheduler.add`."""
        child = len(self.phase)
        self.phase.append(WAITING)
        self.parents.append(parent)
        self._lanes_list().append(lane)
        return child

    def _lanes_list(self) -> list[int]:
        if not isinstance(self.lanes, list):
            self.lanes = list(self.lanes)
        return self.lanes

    def lane_with(self, lane: int, needs: Needs) -> int:
        """Return the lane that is as another and whose units use `needs`; made if there is none."""
        first = self._made_from[lane]
        known = self._lane_of.get((first, needs))
        if known is not None:
            return known
        self.gauges.append(self.gauges[lane])
        self._made_from.append(first)
        self._needs.append(needs)
        self._sorted.append([])
        self._heaps.append([])
        self._children.append({})
        self.lane_used.append(0)
        if not self._many_lanes:
            self._many_lanes = True
            self._busy.add(0)
        made = self._lane_of[first, needs] = len(self.gauges) - 1
        return made

    def move(self, unit: int, lane: int) -> None:
        """Put a unit that is not queued into another lane."""
        self._lanes_list()[unit] = lane

    # -- out --------------------------------------------------------------------------------

    def next_start(self) -> int:
        """Return the best ready unit that has a slot, and take the slot; `NOBODY` if none has."""
        phase, units = self.phase, self._units
        if self._next and (unit := self._next_follower()) != NOBODY:
            return unit
        if self._resuming and (unit := self._next_resumed()) != NOBODY:
            return unit
        while True:
            lane = 0
            if self._many_lanes:
                lane = self._best_lane()
                if lane == NOBODY:
                    return NOBODY
            elif self._needs[0]:
                self._shed(0)
            batch, heap = self._sorted[lane], self._heaps[lane]
            if (
                self._limited
                and not self._many_lanes
                and not ((batch or heap) and self.has_room(0))
            ):
                return NOBODY
            if batch and not (heap and heap[0] < batch[-1]):
                unit = units[batch.pop()]
            elif heap:
                unit = units[heappop(heap)]
            else:
                return NOBODY
            if phase[unit] != READY:  # it ended while it was queued, or stands for a child
                unit = self._ready_child(lane, unit)
                if unit == NOBODY:
                    continue
            phase[unit] = RUNNING
            if self._limited:
                self.take_slot(lane)
            else:
                self.used += 1
                self.lane_used[lane] += 1
            return unit

    def _best_lane(self) -> int:
        """Return the lane with room whose queue has the best unit; `NOBODY` if none has."""
        best_lane, best = NOBODY, NO_LIMIT
        idle = []
        for lane in self._busy:
            batch, heap = self._sorted[lane], self._heaps[lane]
            if self._needs[lane]:
                self._shed(lane)
            if not (batch or heap):
                idle.append(lane)
                continue
            rank = batch[-1] if batch else NO_LIMIT
            if heap and heap[0] < rank:
                rank = heap[0]
            if (rank, lane) < (best, best_lane) and self.has_room(lane):
                best_lane, best = lane, rank
        self._busy.difference_update(idle)
        return best_lane

    def _shed(self, lane: int) -> None:
        """Take who ended while it was queued from the front: it is not to ask for anything."""
        batch, heap = self._sorted[lane], self._heaps[lane]
        while batch or heap:
            from_batch = self._best_was_there(lane)
            unit = self._units[batch[-1] if from_batch else heap[0]]
            if self.phase[unit] == READY or self._has_ready_child(lane, unit):
                return
            if from_batch:
                batch.pop()
            else:
                heappop(heap)
        self._claim_nothing(lane)

    def _best_was_there(self, lane: int) -> bool:
        """Whether the best of a queue that is not empty was ready at the start."""
        batch, heap = self._sorted[lane], self._heaps[lane]
        return bool(batch) and not (heap and heap[0] < batch[-1])

    def _has_ready_child(self, lane: int, parent: int) -> bool:
        children = self._children[lane].get(parent)
        while children and self.phase[children[0]] != READY:
            children.popleft()
        return bool(children)

    def _ready_child(self, lane: int, parent: int) -> int:
        if self._has_ready_child(lane, parent):
            return self._children[lane][parent].popleft()
        return NOBODY

    def reserve(self, lane: int) -> int:
        """Take the best ready unit of a lane out of its queue, to `follow` another, or `NOBODY`."""
        batch, heap = self._sorted[lane], self._heaps[lane]
        while batch or heap:
            unit = self._units[batch.pop() if self._best_was_there(lane) else heappop(heap)]
            if self.phase[unit] != READY:
                unit = self._ready_child(lane, unit)
            if unit != NOBODY:
                return unit
        return NOBODY

    def ready_in(self, lane: int) -> int:
        """Return how many units are queued in a lane, at most."""
        return len(self._sorted[lane]) + len(self._heaps[lane])

    # -- slots that are promised ------------------------------------------------------------

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

    def _give_to_follower(self, unit: int) -> None:
        if unit in self._followers:
            self._next.append(self._followers.pop(unit))

    def _next_follower(self) -> int:
        while self._next:
            unit = self._next.popleft()
            if self.phase[unit] != READY:
                continue  # it ended meanwhile, or waits for one that has not completed
            if self._starts(unit):
                return unit
            self.queue(unit, told=True)  # there are fewer slots than there were
        return NOBODY

    def resume(self, unit: int) -> None:
        """A suspended unit wants to go on: `next_start` gives it, before all that did not start."""
        self._resuming.append(unit)

    def withdraw(self, unit: int) -> None:
        """A unit that wanted to go on does not any more."""
        if unit in self._resuming:
            self._resuming.remove(unit)

    def _next_resumed(self) -> int:
        for _ in range(len(self._resuming)):
            unit = self._resuming.popleft()
            if self.phase[unit] != OPEN:
                continue  # it ended meanwhile
            if self._starts(unit, again=True):
                return unit
            self._resuming.append(unit)
        return NOBODY

    def _starts(self, unit: int, *, again: bool = False) -> bool:
        lane = self.lanes[unit]
        if not self.has_room(lane, again=again):
            return False
        self.phase[unit] = RUNNING
        self.take_slot(lane, again=again)
        return True

    # -- room -------------------------------------------------------------------------------

    def has_room(self, lane: int, *, again: bool = False) -> bool:
        """Whether a unit of a lane may start, or go on, as far as gauges and limits go."""
        for gauge in self.gauges[lane]:
            if gauge.used >= gauge.capacity:
                self.refused_by.add(gauge)
                if self.held_by:
                    self.held_by.pop(lane, None)
                return False
        if self._budget is not None and (needs := self._needs[lane]):
            wait = self._budget.wait((id(self), lane), needs, again=again)
            if wait > 0:
                self.wakes_in = min(self.wakes_in, wait)
                self.held_by[lane] = self._budget.scarcest
                self.refused_by.update(self._budget.gauges(needs))
                return False
        return True

    def take_slot(self, lane: int, *, again: bool = False) -> None:
        """Take a slot, and what is used beside it."""
        self.used += 1
        self.lane_used[lane] += 1
        for gauge in self.gauges[lane]:
            gauge.used += 1
        if self._budget is not None and (needs := self._needs[lane]):
            self._budget.take((id(self), lane), needs, again=again)

    def free_slot(self, lane: int) -> None:
        """Give a slot back, and what is used beside it."""
        self.used -= 1
        self.lane_used[lane] -= 1
        for gauge in self.gauges[lane]:
            gauge.used -= 1
            gauge.version += 1
        if self._budget is not None and (needs := self._needs[lane]):
            self._budget.give_back(needs)

    @property
    def is_one_queue(self) -> bool:
        """Whether there is one lane, and no limits: the next unit is at the front of one queue."""
        return not self._many_lanes and self._budget is None

    @property
    def first_queue(self) -> tuple[Sequence[int], list[int], list[int]]:
        """The unit of each rank, and the queue of the first lane: sorted list and heap."""
        return self._units, self._sorted[0], self._heaps[0]

    @property
    def limits(self) -> dict[str, Limit]:
        """The limits that its units may use, by name."""
        return {} if self._budget is None else self._budget.limits

    def needs_of(self, unit: int) -> Needs:
        """Return what a unit uses of limits."""
        return self.needs_at(self.lanes[unit])

    def needs_at(self, lane: int) -> Needs:
        """Return what the units of a lane use of limits."""
        return self._needs[lane]

    def forget(self) -> None:
        """The run is over: it waits for no limit any more."""
        for lane in range(len(self._needs)):
            self._claim_nothing(lane)

    def _claim_nothing(self, lane: int) -> None:
        if self._budget is not None:
            self._budget.forget((id(self), lane), self._needs[lane])
