"""Units that wait for others to run: meanwhile they hold no slot, nor what they use of limits.

A unit may wait for several things at once. It wants its slot back after the last of them, and is
then the first to get one.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from anyio import CancelScope

from quantum_async.core.phases import RUNNING
from quantum_async.core.scheduler import Scheduler

T = TypeVar("T")


@dataclass(slots=True)
class _Pause:
    """One time that a unit is without its slot; it waits for so many things at once."""

    waits: int = 0


class Suspension:
    """The units of one run that are without their slot.

    Args:
        scheduler: Has the slots.
        poke: Sees to it that the pump runs.
        is_stopping: Says whether a unit is being stopped, by the run or by a time limit.

    Attributes:
        resuming: Those that want their slot back.
    """

    def __init__(
        self, scheduler: Scheduler, poke: Callable[[], None], is_stopping: Callable[[int], bool]
    ) -> None:
        self._scheduler = scheduler
        self._poke = poke
        self._is_stopping = is_stopping
        self._pauses: dict[int, _Pause] = {}
        self.resuming: dict[int, asyncio.Future[None]] = {}

    async def without_slot(self, unit: int, waiting: Awaitable[T]) -> T:
        """Wait for something while the unit's slot, and what it uses of limits, is free."""
        scheduler, pauses = self._scheduler, self._pauses
        if scheduler.phase[unit] == RUNNING:
            scheduler.suspend(unit)
            pauses[unit] = _Pause()
            self._poke()
        elif unit not in pauses:
            return await waiting  # an included partitioner has no slot
        elif not pauses[unit].waits:
            self.go_on(unit)  # it wanted its slot back: not yet
            self._scheduler.withdraw(unit)
        pause = pauses[unit]
        pause.waits += 1
        try:
            return await waiting
        finally:
            pause.waits -= 1
            if not pause.waits and pauses.get(unit) is pause:
                await self._slot_again(unit)

    async def _slot_again(self, unit: int) -> None:
        if self._scheduler.has_ended(unit) or self._is_stopping(unit):
            return  # it will not go on
        try:
            await self._wait_for_slot(unit)
        except asyncio.CancelledError:
            if not self._is_stopping(unit):
                # Who catches a cancellation of its own, as asyncio.timeout does, goes on after it.
                with CancelScope(shield=True):
                    await self._wait_for_slot(unit)
            raise

    async def _wait_for_slot(self, unit: int) -> None:
        again = self.resuming[unit] = asyncio.get_running_loop().create_future()
        self._scheduler.resume(unit)
        self._poke()
        try:
            await again
        finally:
            if self.resuming.get(unit) is again:
                del self.resuming[unit]
                self._scheduler.withdraw(unit)

    def go_on(self, unit: int) -> bool:
        """Let a unit go on that wanted its slot back; return whether it did."""
        again = self.resuming.pop(unit, None)
        if again is None:
            return False
        if not again.done():
            again.set_result(None)
        return True

    def attempt_over(self, unit: int) -> None:
        """A unit's attempt has ended: whatever it left behind is not to take slots for it."""
        if self._pauses.pop(unit, None) is not None and self.go_on(unit):
            self._scheduler.withdraw(unit)
