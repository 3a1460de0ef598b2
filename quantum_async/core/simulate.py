"""A second driver of the scheduler: modelled time, no loop.

Every unit succeeds and every condition holds. A map has as many children as it is said to have, or
as there are items in the plan; one over another map has a child for each of that one's.
"""

import math
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence, Sized
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import Any, Protocol

from quantum_async.core.checks import check_number, check_workers
from quantum_async.core.errors import PlanError, did_you_mean
from quantum_async.core.graph import Edges
from quantum_async.core.limits import Budget, Gauge, Limit, Needs
from quantum_async.core.phases import CANCELED, OPEN, RUNNING
from quantum_async.core.ranking import Ranking, ranked
from quantum_async.core.scheduler import NOBODY, Scheduler
from quantum_async.core.shapes import Mapped, Raced
from quantum_async.core.states import Strategy
from quantum_async.core.triggers import Triggers
from quantum_async.core.unit import QuantumUnit


@dataclass(frozen=True, slots=True)
class Simulation:
    """What a run would have been.

    Attributes:
        makespan: Seconds from the start to the last end.
        starts: Seconds from the run's start to each unit's, by unit name; a map's children are
            called ``map[0]`` and so on, and a unit that would not have started is missing.
        ends: The same for each unit's end.
    """

    makespan: float
    starts: Mapping[str, float]
    ends: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Replay:
    """What a run had that its plan does not tell.

    Attributes:
        ranking: Which ready unit was best; None for first in, first out.
        places: Where each unit ran; an empty string for one that took no slot.
        slots: How many units may run at once in each place; those that are missing have no limit.
        needs: What each unit used of `limits`.
        limits: The limits by name.
        children: Seconds of each child of a map, by name.
        given: Units whose results were there from the start.
    """

    ranking: Ranking | None
    places: Sequence[str]
    slots: Mapping[str, int]
    needs: Sequence[Needs]
    limits: Mapping[str, Limit]
    children: Mapping[str, float]
    given: Collection[int]


class Simulatable(Protocol):
    """What a simulation needs of a plan."""

    @property
    def names(self) -> Sequence[str]: ...  # noqa: D102
    @property
    def costs(self) -> Sequence[float]: ...  # noqa: D102
    @property
    def edges_up(self) -> Edges: ...  # noqa: D102
    @property
    def edges_down(self) -> Edges: ...  # noqa: D102
    @property
    def in_degrees(self) -> list[int]: ...  # noqa: D102
    @property
    def order(self) -> Sequence[int]: ...  # noqa: D102
    @property
    def priorities(self) -> Sequence[float] | None: ...  # noqa: D102
    @property
    def streams(self) -> Mapping[int, Sequence[int]]: ...  # noqa: D102
    @property
    def handles(self) -> Sequence[QuantumUnit[Any, Any]]: ...  # noqa: D102
    @property
    def index(self) -> Mapping[str, int]: ...  # noqa: D102
    @property
    def limits(self) -> Mapping[str, Limit]: ...  # noqa: D102
    @property
    def needs(self) -> Sequence[Needs]: ...  # noqa: D102
    @property
    def trigger_codes(self) -> bytes | None: ...  # noqa: D102
    def ranking(self, strategy: Strategy) -> Ranking | None: ...  # noqa: D102


def simulate(
    plan: Simulatable,
    durations: Mapping[str, float] | Callable[[str], float] | None,
    max_workers: int | None,
    strategy: Strategy,
    items: Mapping[str, int] | None = None,
    replay: Replay | None = None,
) -> Simulation:
    """Run the scheduler of `plan` on modelled time; see `ExecutionPlan.simulate`."""
    check_workers(max_workers)
    seconds, counts = _durations(plan, durations), _counts(plan, items)
    if replay is None:
        # Units are ranked by the time they will take here, not by what was declared.
        mine = seconds is plan.costs
        ranking = plan.ranking(strategy) if mine else ranked(plan, strategy, seconds)
        anywhere = ["any"] * len(plan.names)
        replay = Replay(ranking, anywhere, {}, plan.needs, plan.limits, {}, ())
    return _Model(plan, seconds, max_workers, counts, replay).run()


class _Map:
    """A map in the model: how many children it will have, has, and which items have come."""

    def __init__(self, unit: int, count: int | None, most: int | None) -> None:
        self.unit = unit
        self.count = count  # None while its items come from another map
        self.most = most
        self.made = self.ended = 0
        self.waiting: deque[int] = deque() if count is None else deque(range(count))

    @property
    def may_make(self) -> bool:
        return bool(self.waiting) and (self.most is None or self.made - self.ended < self.most)

    @property
    def is_over(self) -> bool:
        return self.count is not None and self.ended == self.count


class _Model:
    """One simulation. All that ends at one moment ends before anything starts at it."""

    def __init__(
        self,
        plan: Simulatable,
        seconds: Sequence[float],
        max_workers: int | None,
        items: Mapping[str, int],
        replay: Replay,
    ) -> None:
        self.plan = plan
        self.seconds, self.child_seconds = seconds, replay.children
        self.now = 0.0
        self.starts, self.ends = dict[str, float](), dict[str, float]()
        self.running: list[tuple[float, int]] = []
        self.children: dict[int, tuple[_Map, int]] = {}
        self.maps: dict[int, _Map] = {}
        for unit, handle in enumerate(plan.handles):
            if isinstance(handle.options.shape, Mapped):
                self.maps[unit] = self._map(unit, handle.options.shape, items)
        lanes: dict[tuple[str, Needs], int] = {}
        kinds = zip(replay.places, replay.needs, strict=True)
        of = [lanes.setdefault(kind, len(lanes)) for kind in kinds]
        in_all = () if max_workers is None else (Gauge(max_workers),)
        places = {place: (*in_all, Gauge(most)) for place, most in replay.slots.items()}
        shapes = [handle.options.shape for handle in plan.handles]
        opened = bytes(isinstance(shape, Mapped | Raced) for shape in shapes)
        codes = plan.trigger_codes
        self.scheduler = Scheduler(
            plan,
            replay.ranking,
            lanes=of,
            slots=[None] * max(1, len(lanes)),
            gauges=[places.get(place, in_all) if place else () for place, _ in lanes],
            needs=[needs for _, needs in lanes] or [()],
            budget=Budget(replay.limits, lambda: self.now) if any(replay.needs) else None,
            given=replay.given,
            special=opened if any(opened) else None,
            triggers=None if codes is None else Triggers(codes),
            streams=plan.streams,
        )

    def _map(self, unit: int, shape: Mapped, items: Mapping[str, int]) -> _Map:
        follows = any(unit in self.plan.streams.get(n, ()) for n in self.maps)
        count = None
        if not follows:
            known = len(shape.over) if isinstance(shape.over, Sized) else 1
            known = 1 if isinstance(shape.over, str) else known
            count = items.get(self.plan.names[unit], known)
        return _Map(unit, count, shape.max_concurrency)

    def run(self) -> Simulation:
        while True:
            self._start_all()
            # What comes next: a unit ends, or a limit has more.
            ends = self.running[0][0] if self.running else math.inf
            self.now = min(ends, self.now + self.scheduler.wakes_in)
            if self.now == math.inf:
                break
            while self.running and self.running[0][0] == self.now:
                self._end(heappop(self.running)[1])
        names = [name for name in self.plan.names if name in self.ends]
        names += [name for name in self.ends if name not in self.plan.index]
        return Simulation(
            makespan=max(self.ends.values(), default=0.0),
            starts={name: self.starts[name] for name in names},
            ends={name: self.ends[name] for name in names},
        )

    def _start_all(self) -> None:
        scheduler = self.scheduler
        scheduler.wakes_in = math.inf
        while True:
            if scheduler.openings:
                self._open(scheduler.openings.popleft())
            elif (unit := scheduler.next_start()) != NOBODY:
                self._start(unit)
            elif scheduler.next_skip() is None:
                return

    def _name(self, unit: int) -> str:
        if unit in self.children:
            parent, index = self.children[unit]
            return f"{self.plan.names[parent.unit]}[{index}]"
        return self.plan.names[unit]

    def _start(self, unit: int) -> None:
        row = self.children[unit][0].unit if unit in self.children else unit
        name = self._name(unit)
        seconds = self.child_seconds.get(name, self.seconds[row])
        self.starts[name], self.ends[name] = self.now, self.now + seconds
        heappush(self.running, (self.ends[name], unit))
        if unit in self.children:
            self._refill(self.children[unit][0])

    def _end(self, unit: int) -> None:
        scheduler = self.scheduler
        if scheduler.phase[unit] != RUNNING:
            return  # it lost a race
        scheduler.complete(unit)
        if unit not in self.children:
            scheduler.begin_stream(unit)  # an asynchronous generator: its items come at its end
            return
        parent, index = self.children[unit]
        parent.ended += 1
        for below in self.plan.streams.get(parent.unit, ()):
            if below in self.maps:
                self.maps[below].waiting.append(index)
                self._refill(self.maps[below])
        self._refill(parent)

    def _open(self, unit: int) -> None:
        self.scheduler.open(unit)
        self.starts[self.plan.names[unit]] = self.now
        if unit in self.maps:
            self.scheduler.begin_stream(unit)
            self._refill(self.maps[unit])
        else:
            self._decide(unit)

    def _refill(self, parent: _Map) -> None:
        scheduler, unit = self.scheduler, parent.unit
        if scheduler.phase[unit] != OPEN:
            return
        while parent.may_make:
            child = scheduler.add(unit, scheduler.lanes[unit])
            self.children[child] = parent, parent.waiting.popleft()
            parent.made += 1
            scheduler.queue(child)
        if parent.is_over:
            self.ends[self.plan.names[unit]] = self.now
            scheduler.complete(unit)
            for below in self.plan.streams.get(unit, ()):
                if below in self.maps:
                    self.maps[below].count = parent.count
                    self._refill(self.maps[below])

    def _decide(self, unit: int) -> None:
        scheduler, triggers = self.scheduler, self.scheduler.triggers
        assert triggers is not None  # a race has one
        self.ends[self.plan.names[unit]] = self.now
        scheduler.complete(unit)
        losers = [it for it in self.plan.edges_up[unit] if it != triggers.winners[unit]]
        for loser in scheduler.unneeded(losers):
            name = self._name(loser)
            triggers.choices.add(loser)
            if scheduler.phase[loser] == RUNNING:
                self.ends[name] = self.now
                scheduler.fail(loser, CANCELED)
            elif loser not in self.maps:
                scheduler.give_up(loser, CANCELED)


def _counts(plan: Simulatable, items: Mapping[str, int] | None) -> Mapping[str, int]:
    maps = [unit.id for unit in plan.handles if isinstance(unit.options.shape, Mapped)]
    for name, count in (items or {}).items():
        if name not in maps:
            raise PlanError(
                f"items name {name!r}, and no map has that name{did_you_mean(name, maps)}"
            )
        if isinstance(count, bool) or not isinstance(count, int) or count < 0:
            raise PlanError(f"map {name!r}: its items must be a whole number, not {count!r}")
    return items or {}


def _durations(
    plan: Simulatable, durations: Mapping[str, float] | Callable[[str], float] | None
) -> Sequence[float]:
    if durations is None:
        return plan.costs
    if isinstance(durations, Mapping):
        known = set(plan.names)
        for name in durations:
            if name not in known:
                raise PlanError(
                    f"durations name {name!r}, and no unit has that name"
                    f"{did_you_mean(name, plan.names)}"
                )
        modelled = [durations.get(n, cost) for n, cost in zip(plan.names, plan.costs, strict=True)]
    elif not callable(durations):
        raise PlanError(
            f"durations must be a mapping or a function of the unit's name, not {durations!r}"
        )
    else:
        modelled = [durations(name) for name in plan.names]
    for name, value in zip(plan.names, modelled, strict=True):
        if value is None:
            raise PlanError(f"unit {name!r}: its duration must be a number, not None")
        check_number(name, "its duration", value)
    return modelled
