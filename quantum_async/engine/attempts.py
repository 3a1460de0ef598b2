"""The attempts that go on in one run: their tasks, and the cancel scopes that stop them."""

import asyncio
import math
import sys
from collections.abc import Coroutine
from contextvars import Context
from functools import partial
from typing import Any, Protocol

from anyio import CancelScope

from quantum_async.core.binding import CONTEXT
from quantum_async.core.context import ExecutionContext
from quantum_async.core.events import UnitReady, UnitStarted
from quantum_async.core.phases import OPEN, RUNNING
from quantum_async.core.shapes import STREAM
from quantum_async.engine.attempt import (
    Work,
    attempt_full,
    attempt_plain,
    bound,
    call_bound,
    nearest,
    on_loop,
)
from quantum_async.engine.executors.base import Job
from quantum_async.engine.hub import freed_in
from quantum_async.engine.outcomes import Outcomes
from quantum_async.engine.setup import Setup
from quantum_async.engine.timers import Timers

EAGER = sys.version_info >= (3, 12)
_GOING = (RUNNING, OPEN)
_CANCELS = 500  # how many units are cancelled in one turn


class Sources(Protocol):
    """What is special in the run, as far as attempts are concerned."""

    def streaming(self, unit: int) -> Work:
        """Return what runs an asynchronous generator as a unit."""
        ...


class Host(Protocol):
    """What attempts ask of the engine."""

    @property
    def growth(self) -> Sources | None:
        """What is special in the run."""
        ...

    def poke(self) -> None:
        """See to it that the pump runs in the loop's next turn."""
        ...


class Attempts:
    """The attempts that go on.

    Args:
        setup: All that the run is made of.
        outcomes: Hears how each attempt went.
        host: The engine.
        timers: Knows when units with deadlines started.
        context: The caller's context variables; each attempt gets a copy of its own.

    Attributes:
        tasks: The task of each unit that has one; the engine takes it out when that has ended.
        scopes: The cancel scope of each unit that has one, likewise.
    """

    __slots__ = (
        "_asked", "_bind", "_context", "_handles", "_host", "_ledger", "_loop", "_names", "_open",
        "_outcomes", "_places", "_prefix", "_scheduler", "_setup", "_short",
        "_tell_at", "_timers", "_view", "scopes", "tasks",
    )  # fmt: skip

    def __init__(
        self, setup: Setup, outcomes: Outcomes, host: Host, timers: Timers, context: Context
    ) -> None:
        self._setup = setup
        self._outcomes = outcomes
        self._host: Host | None = host
        outcomes.asked_to_stop, outcomes.scope_opened = self.asked_to_stop, self.scope_opened
        outcomes.spawn = self.spawn
        self._timers = timers
        self._context = context
        self._loop = asyncio.get_running_loop()
        self._handles = setup.rows.handles
        self._names = setup.rows.names
        self._ledger = setup.ledger
        self._scheduler = setup.scheduler
        self._view, self._bind = setup.view, setup.bind
        self._places = list(setup.places)
        self._prefix = f"{setup.ledger.run_id}/"
        self._short = [place is on_loop and setup.around is None for place in setup.places]
        self.tasks: dict[int, asyncio.Task[None]] = {}
        self.scopes: dict[int, CancelScope] = {}
        self._asked: set[int] = set()
        self._open: dict[int, Context] = {}  # the context variables of units that are open
        self._tell_at = setup.bus.tell_at

    @property
    def are_short(self) -> bool:
        """Whether tasks start at once, on the loop, with nothing around what they do."""
        return EAGER and all(self._short)

    def close(self) -> None:
        """Let go of the engine."""
        self._host = None
        self._open.clear()

    def add_lane_like(self, lane: int) -> None:
        """There is one more lane, of the same place as another."""
        self._places.append(self._places[lane])
        self._short.append(self._short[lane])

    # -- beginnings -------------------------------------------------------------------------

    def tell_ready(self, now: float) -> None:
        """Tell which units have become ready."""
        units, self._scheduler.just_ready = self._scheduler.just_ready or [], []
        for unit in units:
            self._tell_at(UnitReady, now, (self._names[unit], self._ledger.attempts[unit] + 1))

    def tell_start(self, unit: int, attempt: int, now: float, where: str) -> Context:
        """Tell that an attempt begins, in the context variables that it shall have."""
        outer = self._context
        if self._open and unit >= self._setup.rows.count:
            outer = self._open.get(self._setup.rows.parent(unit), outer)
        context = outer.copy()
        facts = self._names[unit], attempt, where, self._handles[unit]
        context.run(self._tell_at, UnitStarted, now, facts)
        return context

    def tell_open(self, unit: int, now: float, where: str) -> None:
        """Tell that a unit is open, in context variables that what is inside it will have."""
        self._open[unit] = self.tell_start(unit, 1, now, where)

    def start(self, unit: int, attempt: int, lane: int, context: Context | None = None) -> None:
        """Begin an attempt of a unit that has its slot, in context variables of its own."""
        handle = self._handles[unit]
        ctx = ExecutionContext.of(self._view, unit, attempt)
        coroutine: Coroutine[Any, Any, None]
        if not (self._short[lane] and handle.options.plain):
            coroutine = self._full_attempt(unit, ctx, self._places[lane])
        else:
            function, binding = handle.function, handle.options.binding
            if binding is not CONTEXT:
                function = partial(call_bound, function, binding)
            coroutine = attempt_plain(self._outcomes, unit, function, ctx)
        name = f"{self._prefix}{self._names[unit]}#{attempt}"
        self.spawn(unit, coroutine, name, context)

    def _full_attempt(
        self, unit: int, ctx: ExecutionContext[Any], place: Work
    ) -> Coroutine[Any, Any, None]:
        handle, ledger, now = self._handles[unit], self._ledger, self._loop.time()
        job, options = Job.of(handle, ctx), handle.options
        job.returned = partial(self._thread_returned, self._scheduler.lanes[unit])
        ledger.usage.pop(unit, None)  # of an attempt before
        job.measured = partial(ledger.usage.__setitem__, unit)
        around = None if self._setup.around is None else self._setup.around(handle)
        host = self._host
        assert host is not None  # while the run goes on
        if options.shape is STREAM and host.growth is not None:
            place = host.growth.streaming(unit)
        work = bound(place, options.binding, ctx, around, ledger.ran_on, unit)
        if self._setup.arriving is not None:
            work = self._setup.arriving(work, self._scheduler.lanes[unit])
        first = now if options.deadline is None else self._timers.first_start(unit, now)
        limit = nearest(now, options.timeout, options.deadline, first)
        return attempt_full(self._outcomes, unit, job, work, limit)

    def spawn(
        self,
        unit: int,
        coroutine: Coroutine[Any, Any, None],
        name: str,
        context: Context | None = None,
    ) -> None:
        """Run a coroutine as the unit's task, in context variables of its own."""
        if context is None:
            context = self._open.get(unit, self._context).copy()
        if self._bind is not None:
            context.run(self._bind, self._names[unit], self._ledger.attempts[unit])
        if EAGER:
            task = asyncio.Task(
                coroutine,
                loop=self._loop,
                name=name,
                context=context,
                eager_start=True,  # type: ignore[call-arg, unused-ignore]
            )
            # It may have ended inside the constructor, and has reported by then.
            if self._scheduler.phase[unit] in _GOING and not task.done():
                self.tasks[unit] = task
        else:
            task = asyncio.Task(coroutine, loop=self._loop, name=name, context=context)
            self.tasks[unit] = task
            # Cancelled before its first step, it could not report.
            task.add_done_callback(partial(self._never_began, unit))

    def _never_began(self, unit: int, task: "asyncio.Task[None]") -> None:
        if task.cancelled() and self.tasks.get(unit) is task:
            self._outcomes.attempt_canceled(unit, None, None)

    def _thread_returned(self, lane: int, job: Job) -> None:
        """Work that outlived its attempt has ended; called from any thread."""
        try:
            self._loop.call_soon_threadsafe(self._slot_returned, job, lane)
        except RuntimeError:
            # The loop is closed: the run ended long ago, and nobody waits for the slot.
            if not self._loop.is_closed():
                raise

    def _slot_returned(self, job: Job, lane: int) -> None:
        if self._outcomes.thread_returned(job, lane):
            if self._host is None:
                freed_in(self._loop)  # the run has ended, and others may share the slot
            else:
                self._host.poke()

    # -- ends -------------------------------------------------------------------------------

    def cancel(self, unit: int) -> None:
        """Cancel a running unit: through its scope if it has one, else natively, once."""
        if unit in self._asked:
            return
        self._asked.add(unit)
        scope = self.scopes.get(unit)
        if scope is not None:
            scope.cancel()
        else:
            self.tasks[unit].cancel()

    def cancel_all(self) -> None:
        """Cancel all that go on."""
        self._cancel_some(list(self.tasks))

    def _cancel_some(self, units: list[int]) -> None:
        """Cancel units, so many a turn: what is cancelled in one turn ends in the next."""
        for unit in units[:_CANCELS]:
            if unit in self.tasks:
                self.cancel(unit)
        if units := units[_CANCELS:]:
            self._loop.call_soon(self._cancel_some, units)

    def asked_to_stop(self, unit: int) -> bool:
        """Whether the engine cancelled this unit."""
        return unit in self._asked

    def scope_opened(self, unit: int, scope: CancelScope) -> None:
        """The attempt is to be cancelled through this scope."""
        self.scopes[unit] = scope

    def is_stopping(self, unit: int) -> bool:
        """Whether a unit's attempt is being stopped, by the engine or by its time limit."""
        scope = self.scopes.get(unit)
        return unit in self._asked or (scope is not None and scope.cancel_called)

    def ends_at(self, unit: int) -> float:
        """Return when a unit's attempt must have ended, by the loop's clock."""
        scope = self.scopes.get(unit)
        return math.inf if scope is None else scope.deadline

    def name_stragglers(self, grace: float) -> None:
        """Say which units have not ended, so many seconds after they were cancelled."""
        names = ", ".join(repr(self._names[unit]) for unit in sorted(self.tasks))
        self._setup.complain(
            f"cancelled {grace:g} s ago and not ended yet: "
            f"{names or f'{self._outcomes.late} threads'}; a unit must let CancelledError through, "
            "and a thread must return",
            None,
        )
