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
from quantum_async.engine.suspension import Suspension

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

    @property
    def suspension(self) -> Suspension:
        """The units that wait without their slot."""
        ...


class Door:
    """The engine, as contexts see it.

    Args:
        setup: All that the run is made of.
        host: The engine.
        growth: What is special in the run, if anything is.

    Attributes:
        nested: For each unit inside which runs go on, the tasks that wait for them.
    """

    def __init__(self, setup: Setup, host: Host, growth: Growth | None) -> None:
        self._setup = setup
        self._host = host
        self._growth = growth
        self._loop = asyncio.get_running_loop()
        self._nestings: dict[int, int] = {}  # how many runs each unit has begun
        self.nested: dict[int, set[asyncio.Task[Any]]] = {}
        self._emptied: asyncio.Future[None] | None = None
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
        return await self._host.suspension.without_slot(unit, waiting)

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
        task = asyncio.current_task()
        assert task is not None  # this is a coroutine, in its loop
        tasks = self.nested.setdefault(unit, set())
        tasks.add(task)
        try:
            return await self._nest(unit, name, flow, input, options)
        finally:
            tasks.discard(task)
            if not tasks and self.nested.get(unit) is tasks:
                del self.nested[unit]
            if self._emptied is not None and not self.nested and not self._emptied.done():
                self._emptied.set_result(None)

    async def _nest(
        self,
        unit: int,
        name: str,
        flow: Any,
        input: Any,  # noqa: A002
        options: dict[str, Any],
    ) -> Any:
        setup, ledger = self._setup, self._setup.ledger
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
            effects=ledger.effects,
            prefix=prefix,
            keep=ledger.nested.setdefault(unit, []).append,
            began=began,
            executor=setup.executor,
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

    def attempt_over(self, unit: int) -> None:
        """A unit's attempt has ended: no run goes on inside it, in tasks that it left behind."""
        self._host.suspension.attempt_over(unit)
        for task in self.nested.get(unit, ()):
            task.cancel()

    async def close(self) -> None:
        """Wait for the runs that were cancelled because their units had ended."""
        while self.nested:
            self._emptied = self._loop.create_future()
            await self._emptied


async def _listed(values: Any) -> AsyncIterator[Any]:
    for value in values:
        yield value
