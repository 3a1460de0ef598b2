"""What units ask of the run while it goes on, through their contexts."""

import asyncio
from collections.abc import AsyncIterator, Awaitable
from functools import partial
from typing import Any, Protocol, TypeVar

from quantum_async.core.events import UnitEmitted
from quantum_async.core.phases import CANCELED, OPEN, RUNNING
from quantum_async.core.record import Outcome
from quantum_async.engine.bus import NestedBus
from quantum_async.engine.growth import Growth
from quantum_async.engine.loops import running_loop
from quantum_async.engine.setup import Inside, Outer, Setup

T = TypeVar("T")


class Host(Protocol):
    """What the door asks of the engine."""

    priority: float

    @property
    def stopping(self) -> bool:
        """Whether the run is being stopped."""
        ...

    def drop(self, unit: int, cause: str) -> None:
        """Cancel a unit that nobody needs any more."""
        ...

    def poke(self) -> None:
        """See to it that the pump runs in the loop's next turn."""
        ...

    def share(self) -> None:
        """Take turns with other runs from now on."""
        ...

    def ends_at(self, unit: int) -> float:
        """Return when a unit must have ended, by the loop's clock."""
        ...

    def wait_for_slot(self, unit: int) -> "asyncio.Future[None]":
        """Return what is done when a suspended unit has its slot back."""
        ...

    def want_no_slot(self, unit: int) -> None:
        """A suspended unit has been cancelled while it waited."""
        ...


class Door:
    """The engine, as contexts see it.

    Args:
        setup: All that the run is made of.
        host: The engine.
        growth: What is special in the run, if anything is.
    """

    def __init__(self, setup: Setup, host: Host, growth: Growth | None) -> None:
        self._setup = setup
        self._host = host
        self._growth = growth
        self._loop = asyncio.get_running_loop()
        self._nestings: dict[int, int] = {}  # how many runs each unit has begun
        if growth is not None:
            growth.door = self

    def remaining(self, unit: int) -> float:
        """Return seconds to the nearest deadline."""
        return max(0.0, self._host.ends_at(unit) - self._loop.time())

    def emit(self, unit: int, attempt: int, value: Any) -> None:
        """Pass a value on to those who listen."""
        setup = self._setup
        told = partial(setup.bus.tell, UnitEmitted, setup.rows.names[unit], attempt, value)
        if running_loop() is self._loop:
            told()
        else:
            self._loop.call_soon_threadsafe(told)

    def outcome(self, unit: int) -> Outcome:
        """Return how a unit ended."""
        return self._setup.ledger.outcome(unit)

    def stream(self, unit: int, source: int) -> AsyncIterator[Any]:
        """Iterate over the items of a unit as they come, for another one."""
        if self._growth is None:
            return _listed(self._setup.ledger.results[source])
        return self._growth.read(unit, source)

    async def without_slot(self, unit: int, waiting: Awaitable[T]) -> T:
        """Wait for something while the unit's slot, and what it uses of limits, is free."""
        scheduler = self._setup.scheduler
        if scheduler.phase[unit] != RUNNING:
            return await waiting  # it has none
        scheduler.suspend(unit)
        self._host.poke()
        try:
            result = await waiting
        except asyncio.CancelledError:
            raise  # it will not go on
        except BaseException:
            await self._with_slot(unit)
            raise
        await self._with_slot(unit)
        return result

    async def _with_slot(self, unit: int) -> None:
        try:
            await self._host.wait_for_slot(unit)
        except asyncio.CancelledError:
            self._host.want_no_slot(unit)
            raise

    async def nest(
        self,
        unit: int,
        attempt: int,
        flow: Any,
        input: Any,  # noqa: A002
        options: dict[str, Any],
    ) -> Any:
        """Run another partitioner inside the run; the unit holds no slot meanwhile."""
        setup = self._setup
        ledger, name = setup.ledger, setup.rows.names[unit]
        if setup.scheduler.phase[unit] not in (RUNNING, OPEN) or ledger.attempts[unit] != attempt:
            raise RuntimeError(
                f"unit {name!r} called ctx.run, and its attempt {attempt} has ended: what outlives "
                "a unit cannot run inside it"
            )
        if running_loop() is not self._loop:
            raise RuntimeError(
                f"unit {name!r} called ctx.run outside the event loop of its run; in a thread use "
                "anyio.from_thread.run"
            )
        assert setup.nest is not None  # whoever puts an engine together gives it
        count = self._nestings[unit] = self._nestings.get(unit, 0) + 1
        prefix = f"{name}/" if count == 1 else f"{name}/{count}/"
        self._host.share()
        begun: list[Inside] = []

        def began(run: Inside) -> None:
            begun.append(run)
            setup.inside.add(run)

        outer = Outer(
            run_id=f"{ledger.run_id}/{prefix[:-1]}",
            slots=setup.slots,
            budget=setup.budget,
            bus=NestedBus(setup.bus, prefix),
            ends_at=self._host.ends_at(unit),
            priority=self._host.priority,
            keep=ledger.nested.setdefault(unit, []).append,
            began=began,
        )
        try:
            return await self.without_slot(unit, setup.nest(flow, input, options, outer))
        finally:
            setup.inside.difference_update(begun)
            cut_short = any(CANCELED in run.ledger.scheduler.phase for run in begun)
            if self._host.stopping and cut_short:
                # Because this run is: the unit is cancelled, and did not fail.
                self._host.drop(unit, ledger.stop_cause or "")
                await asyncio.sleep(0)


async def _listed(values: Any) -> AsyncIterator[Any]:
    for value in values:
        yield value
