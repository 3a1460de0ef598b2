"""Which unit runs where, and how many slots each place has."""

from dataclasses import dataclass

from quantum_async.core.plan import ExecutionPlan, Unit
from quantum_async.core.states import ExecutionMode, Strategy

LOOP, THREAD, PROCESS, CUSTOM, INLINE = "loop", "thread", "process", "custom", "inline"
INTERPRETER = "interpreter"

_BY_MODE = {
    ExecutionMode.ASYNC: THREAD,
    ExecutionMode.THREAD: THREAD,
    ExecutionMode.PROCESS: PROCESS,
    ExecutionMode.CUSTOM: CUSTOM,
    ExecutionMode.INTERPRETER: INTERPRETER,
}
_MOST_THREADS = 32


@dataclass(frozen=True, slots=True)
class Placement:
    """Where each unit of a plan runs.

    Attributes:
        places: The places that are used; a lane is an index into it.
        lanes: Lane of each unit; None if there is but one lane.
    """

    places: tuple[str, ...]
    lanes: bytes | None

    def units_in(self, place: str, count: int) -> list[int]:
        """Return the units of a place, out of `count` in all."""
        if place not in self.places:
            return []
        if self.lanes is None:
            return list(range(count))
        lane = self.places.index(place)
        return [unit for unit, its in enumerate(self.lanes) if its == lane]


def place_units(plan: ExecutionPlan, mode: ExecutionMode, strategy: Strategy) -> Placement:
    """Decide for each unit where it runs under a run's mode and strategy."""
    balanced = strategy is Strategy.RESOURCE_BALANCED
    known = plan.placements.get((mode, balanced))
    if known is not None:
        return known  # type: ignore[no-any-return]
    found: dict[str, int] = {}
    lanes = bytearray(plan.unit_count)
    for number, unit in enumerate(plan.handles):
        lanes[number] = found.setdefault(place_of(unit, mode, balanced=balanced), len(found))
    placement = Placement(tuple(found) or (LOOP,), bytes(lanes) if len(found) > 1 else None)
    plan.placements[mode, balanced] = placement
    return placement


def place_of(unit: Unit, mode: ExecutionMode, *, balanced: bool = False) -> str:
    """Return where one unit runs.

    A unit's own mode beats the run's, except under SEQUENTIAL. A coroutine function runs on the
    loop unless its own mode says otherwise; a plain function never does.
    """
    own = unit.options.mode
    if mode is ExecutionMode.SEQUENTIAL:
        return LOOP if unit.is_async else INLINE
    if unit.is_async:
        return PROCESS if own is ExecutionMode.PROCESS else LOOP
    if own in _BY_MODE:
        return _BY_MODE[own]
    if balanced or own is ExecutionMode.AUTO or mode is ExecutionMode.AUTO:
        return PROCESS if unit.metadata.get("resource_type") == "cpu" else THREAD
    return _BY_MODE[mode]


def slots_of(
    placement: Placement,
    *,
    cpus: int,
    max_workers: int | None,
    custom_slots: int | None,
    strategy: Strategy,
) -> list[int | None]:
    """Return how many units may run at once in each lane; None for no limit.

    Args:
        placement: Where the units run.
        cpus: How many CPUs may be used.
        max_workers: The user's limit, for the whole run.
        custom_slots: How many jobs the custom executor runs at once, if it tells.
        strategy: RESOURCE_BALANCED gives worker processes and threads slots of their own.
    """
    slots: dict[str, int | None] = {
        LOOP: None,
        THREAD: max_workers or min(_MOST_THREADS, cpus + 4),
        PROCESS: min(cpus, max_workers or cpus),
        CUSTOM: custom_slots,
        INLINE: 1,
        INTERPRETER: min(cpus, max_workers or cpus),
    }
    both = {PROCESS, THREAD} <= set(placement.places)
    if strategy is Strategy.RESOURCE_BALANCED and both and max_workers and max_workers > 1:
        slots[PROCESS] = min(cpus, max_workers // 2)
        slots[THREAD] = max_workers - min(cpus, max_workers // 2)
    return [slots[place] for place in placement.places]
