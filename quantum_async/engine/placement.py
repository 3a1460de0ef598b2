"""Which unit runs where, and how many slots each place has."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from quantum_async.core.limits import Gauge, Needs
from quantum_async.core.plan import ExecutionPlan, Unit
from quantum_async.core.shapes import Mapped
from quantum_async.core.states import ExecutionMode, Strategy

LOOP, THREAD, PROCESS, CUSTOM, INLINE = "loop", "thread", "process", "custom", "inline"
INTERPRETER, REMOTE = "interpreter", "remote"

_BY_MODE = {
    ExecutionMode.ASYNC: THREAD,
    ExecutionMode.THREAD: THREAD,
    ExecutionMode.PROCESS: PROCESS,
    ExecutionMode.CUSTOM: CUSTOM,
    ExecutionMode.INTERPRETER: INTERPRETER,
    ExecutionMode.REMOTE: REMOTE,
}
_ELSEWHERE = (ExecutionMode.PROCESS, ExecutionMode.REMOTE)
_MOST_THREADS = 32
_MOST_IN_BYTES = 256  # lanes


@dataclass(frozen=True, slots=True)
class Placement:
    """Where each unit of a plan runs.

    Attributes:
        places: The place of each lane. Units of one place that use other limits have other lanes.
        lanes: Lane of each unit; None if there is but one lane.
        needs: What the units of each lane use of limits.
        local: Lanes whose units run here and depend on some that run on a cluster.
    """

    places: tuple[str, ...]
    lanes: Sequence[int] | None
    needs: tuple[Needs, ...] = ((),)
    local: frozenset[int] = frozenset()

    def units_in(self, place: str, count: int) -> list[int]:
        """Return the units of a place, out of `count` in all."""
        if place not in self.places:
            return []
        if self.lanes is None:
            return list(range(count))
        return [unit for unit, lane in enumerate(self.lanes) if self.places[lane] == place]


def place_units(
    plan: ExecutionPlan, mode: ExecutionMode, strategy: Strategy, *, remote: bool = False
) -> Placement:
    """Decide for each unit where it runs under a run's mode and strategy.

    Args:
        plan: The plan.
        mode: The run's mode.
        strategy: The run's strategy.
        remote: Whether the run has a cluster.
    """
    balanced = strategy is Strategy.RESOURCE_BALANCED
    known = plan.placements.get((mode, balanced, remote))
    if known is not None:
        return known  # type: ignore[no-any-return]
    placed = [place_of(unit, mode, balanced=balanced, remote=remote) for unit in plan.handles]
    reads = _readers(plan, placed) if REMOTE in placed else ()
    found: dict[tuple[str, Needs, bool], int] = {}
    lanes: list[int] = []
    for number, unit in enumerate(plan.handles):
        uses = unit.options.uses
        kind = placed[number], () if callable(uses) else uses, number in reads
        lanes.append(found.setdefault(kind, len(found)))
    few = len(found) < _MOST_IN_BYTES
    placement = Placement(
        tuple(place for place, _, _ in found) or (LOOP,),
        None if len(found) < 2 else bytes(lanes) if few else tuple(lanes),
        tuple(needs for _, needs, _ in found) or ((),),
        frozenset(lane for lane, (_, _, is_local) in enumerate(found) if is_local),
    )
    plan.placements[mode, balanced, remote] = placement
    return placement


def _readers(plan: ExecutionPlan, placed: Sequence[str]) -> set[int]:
    """Return the units that run here and depend on some that run on a cluster."""
    return {
        below
        for unit, place in enumerate(placed)
        if place == REMOTE
        for below in plan.edges_down[unit]
        if placed[below] != REMOTE
    }


def place_of(
    unit: Unit, mode: ExecutionMode, *, balanced: bool = False, remote: bool = False
) -> str:
    """Return where one unit runs.

    A unit's own mode beats the run's, except under SEQUENTIAL. A coroutine function runs on the
    loop unless its own mode says otherwise; a plain function never does. What would run in a worker
    process runs on the cluster of a run that has one.
    """
    place = _place_of(unit, mode, balanced)
    return REMOTE if remote and place == PROCESS else place


def _place_of(unit: Unit, mode: ExecutionMode, balanced: bool) -> str:
    own, shape = unit.options.mode, unit.options.shape
    if shape is not None and not isinstance(shape, Mapped):
        return LOOP
    if mode is ExecutionMode.SEQUENTIAL:
        return LOOP if unit.is_async else INLINE
    if unit.is_async:
        return _BY_MODE[own] if own in _ELSEWHERE else LOOP
    if own in _BY_MODE:
        return _BY_MODE[own]
    if balanced or own is ExecutionMode.AUTO or mode is ExecutionMode.AUTO:
        return PROCESS if unit.metadata.get("resource_type") == "cpu" else THREAD
    return _BY_MODE[mode]


def slots_of(
    *,
    cpus: int,
    max_workers: int | None,
    custom_slots: int | None = None,
    balanced: bool = False,
) -> dict[str, int | None]:
    """Return how many units may run at once in each place; None for no limit.

    Args:
        cpus: How many CPUs may be used.
        max_workers: The user's limit, for the whole run.
        custom_slots: How many jobs the custom executor runs at once, if it tells.
        balanced: Whether worker processes and threads each get a share of `max_workers`.
    """
    slots: dict[str, int | None] = {
        LOOP: None,
        THREAD: max_workers or min(_MOST_THREADS, cpus + 4),
        PROCESS: min(cpus, max_workers or cpus),
        CUSTOM: custom_slots,
        INLINE: 1,
        INTERPRETER: min(cpus, max_workers or cpus),
    }
    if balanced and max_workers and max_workers > 1:
        slots[PROCESS] = min(cpus, max_workers // 2)
        slots[THREAD] = max_workers - min(cpus, max_workers // 2)
    return slots


class Slots:
    """The slots that runs share: in all, and of each place.

    Args:
        in_all: How many units may run at once; None for no limit.
        places: Says how many in each place, None for no limit. It is asked when the first unit is
            to run elsewhere than on the loop: to count the CPUs takes as long as a small run.
    """

    def __init__(
        self, in_all: int | None, places: Callable[[], Mapping[str, int | None]] = dict
    ) -> None:
        self.total = None if in_all is None else Gauge(in_all)
        self._count = places
        self._places: dict[str, Gauge] | None = None

    def of(self, place: str) -> tuple[Gauge, ...]:
        """Return all that must have room for a unit to start in a place."""
        own = None if place == LOOP else self._gauges().get(place)
        return tuple(gauge for gauge in (self.total, own) if gauge is not None)

    def _gauges(self) -> dict[str, Gauge]:
        if self._places is None:
            counted = self._count().items()
            self._places = {place: Gauge(most) for place, most in counted if most is not None}
        return self._places


# Where a unit ran, in words, for what is said of its errors.
IN_WORDS = {
    "loop": "on the event loop",
    "thread": "in a thread",
    "process": "in a worker process",
    "custom": "in the custom executor",
    "interpreter": "in a sub-interpreter",
    "remote": "on the cluster",
    "inline": "inline",
    "cache": "out of the cache",
    "map": "as a map",
    "run": "as a run",
    "race": "as a race",
}
