"""Whose turn it is among runs of one loop that share slots or limits.

A run that shares nothing pumps by itself. Those that do are pumped here, a few units at a time, in
turns. A run that was refused something waits in the queue of what had no room; when some of that is
given back, the run that has waited longest goes first, so no run waits for all units of another.

Runs with a higher priority go before all others.
"""

import asyncio
from collections import deque
from typing import Protocol
from weakref import WeakKeyDictionary

from quantum_async.core.limits import Gauge

_QUANTUM = 16  # units that a run may start in its turn


class Pumped(Protocol):
    """A run, as it is pumped."""

    @property
    def priority(self) -> float:
        """Larger goes first."""
        ...

    @property
    def refused_by(self) -> set[Gauge]:
        """What had no room, when it was last pumped."""
        ...

    def step(self, most: int) -> bool:
        """Do up to `most` things; return whether there is more to do."""
        ...


class Hub:
    """The runs of one loop that share something.

    Args:
        slice: Seconds of work before the loop turns.
    """

    def __init__(self, slice: float) -> None:  # noqa: A002
        self._slice = slice
        self._turns: dict[float, deque[Pumped]] = {}
        self._queued: set[Pumped] = set()
        # For each thing that had no room, and each priority, who waits for it since which version.
        self._waiting: dict[Gauge, dict[float, deque[tuple[Pumped, int]]]] = {}
        self._waits: dict[Pumped, set[Gauge]] = {}
        self._due = False

    def poke(self, run: Pumped) -> None:
        """See to it that a run is pumped in the loop's next turn."""
        if run not in self._queued:
            self._queued.add(run)
            self._turns.setdefault(run.priority, deque()).append(run)
        self._schedule()

    def freed(self) -> None:
        """Something was given back, or paused no more: somebody may go on."""
        if self._waiting:
            self._schedule()

    def leave(self, run: Pumped) -> None:
        """A run has ended."""
        for gauge in self._waits.pop(run, ()):
            queue = self._waiting[gauge][run.priority]
            kept = deque(entry for entry in queue if entry[0] is not run)
            self._waiting[gauge][run.priority] = kept
            if not kept:
                self._drop_queue(gauge, run.priority)
        if run in self._queued:
            self._queued.discard(run)
            self._turns[run.priority].remove(run)
        self.freed()

    def _schedule(self) -> None:
        if not self._due:
            self._due = True
            asyncio.get_running_loop().call_soon(self._pump)

    def _pump(self) -> None:
        self._due = False
        clock = asyncio.get_running_loop().time
        slice_end = clock() + self._slice
        while True:
            run = self._next_waiting() or self._next_turn()
            if run is None:
                return
            more = run.step(_QUANTUM)
            for gauge in run.refused_by:
                self._wait(run, gauge)
            if more:
                self.poke(run)
            if clock() >= slice_end:
                self._schedule()
                return

    def _next_turn(self) -> Pumped | None:
        for priority in sorted(self._turns, reverse=True):
            turns = self._turns[priority]
            if turns:
                run = turns.popleft()
                self._queued.discard(run)
                return run
            del self._turns[priority]
        return None

    def _wait(self, run: Pumped, gauge: Gauge) -> None:
        waits = self._waits.setdefault(run, set())
        if gauge not in waits:
            waits.add(gauge)
            queues = self._waiting.setdefault(gauge, {})
            queues.setdefault(run.priority, deque()).append((run, gauge.version))

    def _next_waiting(self) -> Pumped | None:
        """Return who has waited longest for something that has room since then."""
        for gauge, queues in self._waiting.items():
            if not gauge.has_room:
                continue
            for priority in sorted(queues, reverse=True):
                # In the order of their versions: if the first has seen this one, all have.
                run, seen = queues[priority][0]
                if seen < gauge.version:
                    queues[priority].popleft()
                    self._waits[run].discard(gauge)
                    if not queues[priority]:
                        self._drop_queue(gauge, priority)
                    return run
        return None

    def _drop_queue(self, gauge: Gauge, priority: float) -> None:
        del self._waiting[gauge][priority]
        if not self._waiting[gauge]:
            del self._waiting[gauge]


_hubs: "WeakKeyDictionary[asyncio.AbstractEventLoop, Hub]" = WeakKeyDictionary()


def freed_in(loop: asyncio.AbstractEventLoop) -> None:
    """Something was given back in a loop after its run had ended."""
    hub = _hubs.get(loop)
    if hub is not None:
        hub.freed()


def hub_of(loop: asyncio.AbstractEventLoop, slice: float) -> Hub:  # noqa: A002
    """Return the hub of a loop."""
    hub = _hubs.get(loop)
    if hub is None:
        hub = _hubs[loop] = Hub(slice)
    return hub
