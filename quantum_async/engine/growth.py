"""Units that are more than a call: looked at before they are ready, open while others run for them.

The scheduler hands a special unit to `open`. It is asked for its condition, its resources and what
it uses; then it is ready like any other, or goes on open, without a slot: a map (`fans`), an
included partitioner (a nested run), a race (which is decided at once).
"""

from collections.abc import AsyncIterator, Callable, Coroutine
from inspect import isawaitable, iscoroutine
from typing import Any, Protocol

from quantum_async.core.binding import filled
from quantum_async.core.context import ExecutionContext
from quantum_async.core.limits import Needs, needs_of, unmet
from quantum_async.core.phases import COMPLETED, OPENING, WAITING
from quantum_async.core.plan import Unit
from quantum_async.core.shapes import STREAM, Included, Mapped
from quantum_async.core.triggers import NOBODY
from quantum_async.engine.attempt import attempt_plain
from quantum_async.engine.executors.base import Job
from quantum_async.engine.fans import Fan, items_of
from quantum_async.engine.outcomes import Outcomes
from quantum_async.engine.resources import Resources
from quantum_async.engine.setup import Setup
from quantum_async.engine.streams import Inside, Streams

CONDITION = "condition"


class Driver(Protocol):
    """What growth asks of the engine."""

    @property
    def stopping(self) -> bool:
        """Whether the run is being stopped."""
        ...

    def poke(self) -> None:
        """See to it that the pump runs in the loop's next turn."""
        ...

    def began(self, unit: int, where: str) -> None:
        """An open unit has begun."""
        ...

    def drop(self, unit: int, cause: str) -> None:
        """Cancel a unit that nobody needs any more."""
        ...

    def interrupt(self, error: BaseException) -> None:
        """Stop the run, and raise `error` from it."""
        ...

    def lane_with(self, lane: int, needs: Needs) -> int:
        """Return the lane of the same place whose units use `needs`."""
        ...


class Growth:
    """What is special in one run.

    Args:
        setup: All that the run is made of.
        outcomes: Books how units end.
        driver: The engine.
    """

    def __init__(self, setup: Setup, outcomes: Outcomes, driver: Driver) -> None:
        self._setup = setup
        self._plan = setup.plan
        self._rows = setup.rows
        self._scheduler = setup.scheduler
        self._ledger = setup.ledger
        self._view = setup.view
        self._outcomes = outcomes
        self._driver = driver
        self.door: Inside | None = None  # while the run goes on
        self._fans: dict[int, Fan] = {}
        self._streams = Streams(setup, self._room_again, driver.poke)
        self._drains_rows = setup.keep is not None
        self._resources: Resources | None = None
        if self._plan.uses_resources:
            will_run = [phase in (WAITING, OPENING) for phase in self._scheduler.phase]
            self._resources = Resources(
                self._plan, self._view, will_run.__getitem__, self._resources_told, setup.complain
            )

    @property
    def _inside(self) -> Inside:
        assert self.door is not None  # asked while the run goes on
        return self.door

    # -- before a unit is ready -------------------------------------------------------------

    def open(self, unit: int) -> None:
        """Look at a unit that has nothing to wait for."""
        handle = self._rows.handles[unit]
        options = handle.options
        try:
            ctx = ExecutionContext.of(self._view, unit, 1)
            if options.when is not None and not _answered(options.when(ctx)):
                self._ledger.causes[unit] = CONDITION
                self._pass_over(unit, unit)
                return
        except BaseException as error:
            self._outcomes.could_not_start(unit, error)
            return
        if self._resources is None or self._resources.need(unit):
            self._go_on(unit)

    def _resources_told(self, unit: int, error: BaseException | None) -> None:
        if self._scheduler.phase[unit] != OPENING:
            return
        if error is None:
            self._go_on(unit)
        else:
            self._ledger.causes[unit] = "a resource could not be opened"
            self._outcomes.could_not_start(unit, error)
        self._driver.poke()

    def _go_on(self, unit: int) -> None:
        handle = self._rows.handles[unit]
        shape = handle.options.shape
        try:
            if shape is None or shape is STREAM:
                self._set_uses(unit, handle)
                self._scheduler.queue(unit)
                return
        except BaseException as error:
            self._outcomes.could_not_start(unit, error)
            return
        self._scheduler.open(unit)
        if isinstance(shape, Mapped):
            self._driver.began(unit, "map")
            self._open_map(unit, handle)
        elif isinstance(shape, Included):
            self._driver.began(unit, "run")
            self._open_run(unit, shape)
        else:
            self._driver.began(unit, "race")
            self._decide(unit)

    def _set_uses(self, unit: int, handle: Unit) -> None:
        """Ask a unit that computes what it uses, and put it into the lane of such units."""
        uses = handle.options.uses
        if not callable(uses):
            return
        needs = needs_of(handle.id, uses(ExecutionContext.of(self._view, unit, 1)))
        budget = self._setup.budget
        problem = unmet(handle.id, needs, {} if budget is None else budget.limits)
        if problem is not None:
            raise problem
        lane = self._scheduler.lanes[unit]
        self._scheduler.move(unit, self._driver.lane_with(lane, needs))

    def _pass_over(self, unit: int, root: int) -> None:
        self._scheduler.pass_over(unit, root)
        self._outcomes.skipped(unit, root)

    # -- maps -------------------------------------------------------------------------------

    def _open_map(self, unit: int, handle: Unit) -> None:
        shape = handle.options.shape
        assert isinstance(shape, Mapped)
        keep = self._setup.keep
        live = self._plan.streams.get(unit, ())
        wanted = keep is None or unit in keep
        keeps = wanted or any(below not in live for below in self._plan.edges_down[unit])
        fan = self._fans[unit] = Fan(
            self, unit, handle, keeps=keeps, out=self._streams.of(unit) if live else None
        )
        self._streams.begin(unit)
        try:
            name = items_of(shape.over)
            source = None if name is None else self._plan.index.get(name)
            if source is not None and unit in self._plan.streams.get(source, ()):
                self._follow(fan, source)
            elif source is not None:
                fan.over(self._ledger.results[source])
            elif name is not None:
                fan.over(ExecutionContext.of(self._view, unit, 1)[name])
            else:
                fan.over(shape.over)
        except BaseException as error:
            fan.source_error = error
            fan.stop()

    def _follow(self, fan: Fan, source: int) -> None:
        stream, shape = self._streams.known(source), self._rows.handles[source].options.shape
        if stream is None:  # its result was given
            fan.over(self._ledger.results[source])
            return
        fan.follow(stream, has_errors=isinstance(shape, Mapped) and shape.collect)

    def make_child(self, parent: int, handle: Unit, index: int, item: Any) -> int:
        """Make a child, which is ready, and return its number."""
        scheduler = self._scheduler
        child = scheduler.add(parent, scheduler.lanes[parent])
        self._rows.add(child, parent, index, item, handle)
        self._ledger.grow(child)
        try:
            self._set_uses(child, handle)
        except BaseException as error:
            scheduler.queue(child)
            self._outcomes.could_not_start(child, error)
            return child
        scheduler.queue(child)
        self._driver.poke()
        return child

    def started(self, unit: int) -> None:
        """A unit's first attempt begins; if it is a child, its map may make another."""
        if unit >= self._rows.count:
            self._fans[self._rows.parent(unit)].child_started()

    def map_over(self, fan: Fan) -> None:
        """A map has ended, in one way or another."""
        unit = fan.unit
        del self._fans[unit]
        error = fan.error
        if error is not None:
            self._outcomes.failed_for_good(unit, error)
        elif fan.stopped:
            self._outcomes.attempt_canceled(unit, None, fan.unclean)
        elif fan.lost:
            name = items_of(self._rows.handles[unit].options.shape.over)  # type: ignore[union-attr]
            source = self._plan.index[name or ""]
            root = self._ledger.roots.get(source, source)
            self._pass_over(unit, root)
        else:
            self._outcomes.completed(unit, fan.results)
        self._driver.poke()

    def _room_again(self, unit: int) -> None:
        fan = self._fans.get(unit)
        if fan is not None:
            fan.refill()

    def streaming(self, unit: int) -> Callable[[Job], Coroutine[Any, Any, Any]]:
        """Return what runs an asynchronous generator as a unit."""
        return self._streams.streaming(unit, self._inside)

    def read(self, unit: int, source: int) -> AsyncIterator[Any]:
        """Iterate over the items of a unit as they come, for another one."""
        return self._streams.read(unit, source, self._inside)

    # -- nested runs ------------------------------------------------------------------------

    def _open_run(self, unit: int, shape: Included) -> None:
        async def included(ctx: ExecutionContext[Any]) -> Any:
            given = shape.input
            if given is None:
                given = self._view.input
            elif callable(given):
                given = given(ctx)
            else:
                given = filled(given, ctx)
            return await self._inside.nest(unit, 1, shape.flow, given, {})

        ctx = ExecutionContext.of(self._view, unit, 1)
        name = f"{self._ledger.run_id}/{self._rows.names[unit]}"
        self._outcomes.spawn(unit, attempt_plain(self._outcomes, unit, included, ctx), name)

    # -- races ------------------------------------------------------------------------------

    def _decide(self, unit: int) -> None:
        triggers, scheduler = self._scheduler.triggers, self._scheduler
        assert triggers is not None  # a race has one
        winner = triggers.winners.get(unit, NOBODY)
        if winner == NOBODY:
            self._nobody_won(unit)
            return
        names, edges_up = self._rows.names, self._plan.edges_up
        self._ledger.causes[unit] = f"{names[winner]!r} was first"
        self._outcomes.completed(unit, self._ledger.results[winner])
        losers = [other for other in edges_up[unit] if other != winner]
        cause = f"lost the race {names[unit]!r} to {names[winner]!r}"
        for loser in scheduler.unneeded(losers, self._setup.wanted):
            triggers.choices.add(loser)
            self._driver.drop(loser, cause if loser in losers else f"only needed by who {cause}")

    def _nobody_won(self, unit: int) -> None:
        names, errors = self._rows.names, self._ledger.errors
        found = [errors[other] for other in self._plan.edges_up[unit] if other in errors]
        if found:
            error = BaseExceptionGroup(f"nobody won the race {names[unit]!r}", found)
            self._outcomes.failed_for_good(unit, error)
            return
        triggers = self._scheduler.triggers
        root = NOBODY if triggers is None else triggers.roots.get(unit, NOBODY)
        self._pass_over(unit, unit if root == NOBODY else root)

    # -- ends -------------------------------------------------------------------------------

    def over(self, unit: int) -> None:
        """A unit has ended; it may have been waited for here."""
        started = bool(self._ledger.attempts[unit])
        if unit >= self._rows.count:
            rows, ledger, phase = self._rows, self._ledger, self._scheduler.phase[unit]
            rows.forget_item(unit)
            fan = self._fans.get(rows.parent(unit))
            if fan is not None:
                value = ledger.results[unit] if phase == COMPLETED else ledger.errors.get(unit)
                fan.child_over(unit, rows.index(unit), phase, value, started=started)
            return
        if self._resources is not None:
            self._resources.unit_over(unit)
        self._streams.over(unit)

    def left(self, unit: int) -> None:
        """A child's last task has ended: its row may be used again, if nobody keeps results."""
        if (
            unit >= self._rows.count
            and self._drains_rows
            and self._scheduler.phase[unit] == COMPLETED
        ):
            self._ledger.forget(unit)
            self._scheduler.vacate(unit)

    def stop(self, queued: list[int]) -> None:
        """Stop what is open; `queued` are the units that were just cancelled."""
        for fan in list(self._fans.values()):
            fan.stop()
        for unit in queued:
            self.over(unit)

    def drop(self, unit: int, cause: str) -> None:
        """Stop one map, which nobody needs any more."""
        rows, scheduler, triggers = self._rows, self._scheduler, self._scheduler.triggers
        fan = self._fans.get(unit)
        if fan is None:
            return
        fan.stop()
        for child in range(rows.count, len(scheduler.phase)):
            if rows.parent(child) == unit and not scheduler.has_ended(child):
                if triggers is not None:
                    triggers.choices.add(child)
                self._driver.drop(child, cause)

    async def close(self) -> None:
        """Close what is left when every unit has ended."""
        self.door = None
        if self._resources is not None:
            await self._resources.close()

    def interrupt(self, error: BaseException) -> None:
        """Stop the run, and raise `error` from it."""
        self._driver.interrupt(error)


def _answered(answer: Any) -> bool:
    """Return what a condition said.

    Raises:
        TypeError: If it has to be awaited, which nobody does: it would always be true.
    """
    if not isawaitable(answer):
        return bool(answer)
    if iscoroutine(answer):
        answer.close()
    raise TypeError(
        f"when= returned an awaitable, {answer!r}, which is no answer: ask in a unit of its own, "
        "and have when= look at its result"
    )
