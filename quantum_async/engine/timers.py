"""When units are tried again: back-off, and the deadlines that go on while they wait."""

import asyncio
import math
from collections.abc import Callable

from quantum_async.engine.setup import Setup


class Timers:
    """The timers of units that back off, or wait for a slot until their deadline.

    Args:
        setup: All that the run is made of.
        loop: The loop of the run.
        overdue: Called with a unit whose deadline came while it waited for a slot.
        poke: Called when somebody may start.

    Attributes:
        pauses: For each unit that was tried again when an attempt ended, when the next began, and
            so on.
    """

    __slots__ = (
        "_clock", "_first_starts", "_handles", "_loop", "_overdue", "_poke", "_scheduler",
        "_timers", "pauses",
    )  # fmt: skip

    def __init__(
        self,
        setup: Setup,
        loop: asyncio.AbstractEventLoop,
        overdue: Callable[[int], None],
        poke: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._scheduler = setup.scheduler
        self._handles = setup.rows.handles
        self._clock = setup.clock
        self._overdue = overdue
        self._poke = poke
        self._timers: dict[int, asyncio.TimerHandle] = {}
        self._first_starts: dict[int, float] = {}
        self.pauses: dict[int, list[float]] = {}

    def first_start(self, unit: int, now: float) -> float:
        """Return when a unit with a deadline first started, by the loop's clock: now, perhaps."""
        return self._first_starts.setdefault(unit, now)

    def seconds_left(self, unit: int) -> float:
        """Return seconds to the unit's own deadline; infinite without one."""
        deadline = self._handles[unit].options.deadline
        if deadline is None:
            return math.inf
        return self._first_starts[unit] + deadline - self._loop.time()

    def due_in(self, unit: int) -> float:
        """Return seconds until a unit that backs off is ready again."""
        timer = self._timers.get(unit)
        return 0.0 if timer is None else max(0.0, timer.when() - self._loop.time())

    def pause(self, unit: int, seconds: float) -> None:
        """Make a unit whose attempt has just ended ready again after its back-off."""
        self.pauses.setdefault(unit, []).append(self._clock())
        self._timers[unit] = self._loop.call_later(seconds, self._wake, unit)

    def started_again(self, unit: int, now: float) -> None:
        """The unit's next attempt began."""
        self.pauses[unit].append(now)
        self.drop(unit)

    def _wake(self, unit: int) -> None:
        del self._timers[unit]
        self._scheduler.wake(unit)
        left = self.seconds_left(unit)
        if left < math.inf:
            # It may wait for a slot until its deadline has passed.
            self._timers[unit] = self._loop.call_later(max(left, 0), self._is_overdue, unit)
        self._poke()

    def _is_overdue(self, unit: int) -> None:
        del self._timers[unit]
        self._overdue(unit)
        self._poke()

    def drop(self, unit: int) -> None:
        """Forget a unit's timer, if it has one."""
        timer = self._timers.pop(unit, None)
        if timer is not None:
            timer.cancel()

    def forget(self, unit: int) -> None:
        """Forget all about a unit: its number will be another's."""
        self._first_starts.pop(unit, None)
        self.pauses.pop(unit, None)

    def close(self) -> None:
        """Let go of the engine."""
        del self._overdue, self._poke

    def clear(self) -> None:
        """Cancel all of them."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
