"""The short way of a run: units that are plain coroutine functions, one after the other.

What `Engine`, `Attempts` and `Outcomes` do for every kind of unit stands here once more in one
loop, for runs that share nothing with others. The rules are the same: each unit is a task of its
own with a context of its own, and what is told of it is told there. A unit that needs more than
that goes the long way.
"""

import asyncio
from collections.abc import Callable, Container
from contextvars import Context, copy_context
from functools import partial
from typing import Any

from quantum_async.core.context import ExecutionContext
from quantum_async.core.events import UnitCompleted, UnitStarted
from quantum_async.core.express import express, is_simple
from quantum_async.core.phases import RUNNING
from quantum_async.engine.attempt import call_bound, sort_out
from quantum_async.engine.attempts import Attempts
from quantum_async.engine.outcomes import Outcomes
from quantum_async.engine.setup import Setup


class Express:
    """Starts units the short way.

    Args:
        setup: All that the run is made of.
        outcomes: Hears how units ended that did not end at once with a result.
        attempts: Has the tasks of those that go on.
        nested: Units inside which runs go on.
        start: Starts a unit the long way.
    """

    __slots__ = (
        "_attempts", "_bind", "_clock", "_handles", "_ledger", "_loop", "_names", "_nested",
        "_outcomes", "_prefix", "_scheduler", "_short", "_start", "_tasks", "_tells_end",
        "_tells_start", "_view",
    )  # fmt: skip

    def __init__(
        self,
        setup: Setup,
        outcomes: Outcomes,
        attempts: Attempts,
        nested: Container[int],
        start: Callable[[int, float], None],
    ) -> None:
        self._outcomes, self._attempts, self._start = outcomes, attempts, start
        self._tasks, self._nested = attempts.tasks, nested
        self._tells_start, self._tells_end = UnitStarted in setup.bus, UnitCompleted in setup.bus
        self._ledger, self._scheduler, self._view = setup.ledger, setup.scheduler, setup.view
        self._handles, self._names = setup.rows.handles, setup.rows.names
        self._bind, self._clock = setup.bind, setup.clock
        self._short = setup.plan.are_plain
        self._loop = asyncio.get_running_loop()
        self._prefix = f"{setup.ledger.run_id}/"

    @staticmethod
    def suits(setup: Setup, attempts: Attempts) -> bool:
        """Return whether there is nothing in a run that is not known here."""
        return (
            attempts.are_short
            and setup.keep is None
            and not setup.shares
            and not setup.is_special
            and is_simple(setup.scheduler)
        )

    def run_until(self, slice_end: float) -> bool:
        """Start what is ready; return whether the slice was over before there was no more.

        To be called in the context variables that each unit is to have a copy of.
        """
        ledger, scheduler, tasks = self._ledger, self._scheduler, self._tasks
        attempts, starts, ends, phase = ledger.attempts, ledger.starts, ledger.ends, scheduler.phase
        handles, names, short, prefix = self._handles, self._names, self._short, self._prefix
        clock, context_of, view, loop = self._clock, ExecutionContext.of, self._view, self._loop
        attempt, prepares = self._attempt, self._tells_start or self._bind is not None
        context: Context | None = None  # or the task makes the copy by itself
        now = clock()
        for unit in express(scheduler, tasks):
            if kind := short[unit]:
                if prepares:
                    context = self._prepared(unit, now)
                attempts[unit] = 1
                starts[unit] = now
                function = handles[unit].function
                if kind == 2:
                    function = partial(call_bound, function, handles[unit].options.binding)
                task = asyncio.Task(
                    attempt(unit, function, context_of(view, unit, 1)),
                    loop=loop,
                    context=context,
                    name=f"{prefix}{names[unit]}#1",
                    eager_start=True,  # type: ignore[call-arg, unused-ignore]
                )
                now = clock()
                if not task.done():
                    tasks[unit] = task
                elif phase[unit] == RUNNING:  # it has its result, and did not report by itself
                    ends[unit] = now
            else:
                self._start(unit, now)
                now = clock()
            if now >= slice_end:
                if phase[unit] == RUNNING and unit not in tasks:
                    scheduler.complete(unit)
                return True
        return False

    def _prepared(self, unit: int, now: float) -> Context:
        """Tell that a unit begins; return the context variables that it shall have."""
        if self._tells_start:
            if self._scheduler.just_ready:
                self._attempts.tell_ready(now)
            context = self._attempts.tell_start(unit, 1, now, self._ledger.where[0])
        else:
            context = copy_context()
        if self._bind is not None:
            context.run(self._bind, self._names[unit], 1)
        return context

    async def _attempt(self, unit: int, function: Callable[..., Any], ctx: Any) -> None:
        """Call ``function(ctx)``; see `attempt_plain`."""
        try:
            try:
                value = await function(ctx)
            except BaseException as error:
                sort_out(self._outcomes, unit, None, error)
            else:
                if self._tells_end or self._nested or unit in self._tasks:
                    self._outcomes.completed(unit, value)
                else:
                    self._ledger.results[unit] = value
        except BaseException as bug:
            self._outcomes.broke(bug, unit)
