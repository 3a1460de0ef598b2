"""What holds of a scheduler after every step. Linear in the units: for tests."""

from collections.abc import Collection, Sequence
from typing import Protocol

from quantum_async.core.graph import Edges
from quantum_async.core.limits import Gauge
from quantum_async.core.phases import (
    CANCELED,
    FAILED,
    OUTSIDE,
    READY,
    RUNNING,
    SKIPPED,
    TIMEOUT,
    UNFINISHED,
    WAITING,
)
from quantum_async.core.triggers import Trigger, Triggers


class Checked(Protocol):
    """What is looked at: a `Scheduler`."""

    phase: bytearray
    lanes: Sequence[int]
    gauges: list[tuple[Gauge, ...]]
    used: int
    lane_used: list[int]
    total: Gauge | None
    count: int
    waiting: list[int]
    unfinished: int
    edges_down: Edges
    triggers: Triggers | None

    def in_phase(self, phase: int) -> list[int]:
        """Return the units in a phase."""
        ...


def broken_invariant(it: Checked, doomed: Collection[int]) -> str | None:
    """Compute everything again from the phases; return the first rule that does not hold.

    Args:
        it: The scheduler.
        doomed: The units that have not heard yet of a dependency without a result.
    """
    running = it.in_phase(RUNNING)
    waits_for_success = [
        it.triggers is None or it.triggers.codes[unit] == Trigger.ALL_SUCCESS
        for unit in range(it.count)
    ]
    checks = {
        "slots in use, in all, are those of the lanes": it.used == sum(it.lane_used),
        "no gauge is over its capacity, unless that was made smaller": all(
            gauge is it.total or gauge.used <= gauge.capacity
            for gauges in it.gauges
            for gauge in gauges
        ),
        "no more slots in use than gauges count": all(
            used <= gauge.used
            for used, gauges in zip(it.lane_used, it.gauges, strict=True)
            for gauge in gauges
        ),
        "each running unit has its slot": it.used >= len(running),
        "each lane holds its running units": all(
            sum(it.lanes[unit] == lane for unit in running) <= used
            for lane, used in enumerate(it.lane_used)
        ),
        "unfinished counts the units without an end": it.unfinished
        == sum(map(it.phase.count, UNFINISHED)),
        "who waits for nothing is not waiting": all(
            it.waiting[unit] > 0 for unit in it.in_phase(WAITING)
        ),
        "who is ready has nothing to wait for": all(
            not it.waiting[unit] or not waits_for_success[unit]
            for unit in it.in_phase(READY)
            if unit < it.count
        ),
        "who depends on a failure will be skipped": all(
            it.phase[dependent] in (SKIPPED, CANCELED, OUTSIDE) or dependent in doomed
            for phase in (FAILED, TIMEOUT, SKIPPED)
            for unit in it.in_phase(phase)
            for dependent in it.edges_down[unit]
            if waits_for_success[dependent]
        ),
    }
    return next((rule for rule, holds in checks.items() if not holds), None)
