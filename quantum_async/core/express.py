"""The short way through the scheduler: one ready unit after the other, in one loop.

For the commonest run by far: one lane, slots that are its own, dependents that wait for success
alone. There `next_start` and `complete` come to a few lines each, and stand here once more as a
generator, whose variables stay at hand from unit to unit. A unit that has its result at once hands
its slot to the next one.
"""

from collections.abc import Container, Iterator
from heapq import heappop

from quantum_async.core.phases import COMPLETED, READY, RUNNING, WAITING
from quantum_async.core.scheduler import Scheduler


def is_simple(scheduler: Scheduler) -> bool:
    """Return whether there is nothing in a run that `express` does not know."""
    return scheduler.is_one_queue and scheduler.triggers is None and scheduler.special is None


def express(scheduler: Scheduler, going: Container[int]) -> Iterator[int]:
    """Give the best ready unit that has a slot, again and again, until there is none.

    Args:
        scheduler: A simple one.
        going: Units that the driver is busy with. One that is not among them when the next is asked
            for, and of which nothing else was told, has its result: that is booked here. A driver
            that asks no more has to `complete` the last one itself.
    """
    phase, waiting, edges_down = scheduler.phase, scheduler.waiting, scheduler.edges_down
    units, batch, heap = scheduler.first_queue
    has_slot = False
    while (batch or heap) and (has_slot or scheduler.has_room(0)):
        if not batch or (heap and heap[0] < batch[-1]):
            unit = units[heappop(heap)]
        else:
            unit = units[batch.pop()]
        if phase[unit] != READY:  # it ended while it was queued
            continue
        phase[unit] = RUNNING
        if not has_slot:
            scheduler.take_slot(0)
        yield unit
        has_slot = phase[unit] == RUNNING and unit not in going
        if has_slot:
            phase[unit] = COMPLETED
            scheduler.unfinished -= 1
            for dependent in edges_down[unit]:
                left = waiting[dependent] = waiting[dependent] - 1
                if not left and phase[dependent] == WAITING:
                    scheduler.queue(dependent)
    if has_slot:
        scheduler.free_slot(0)
