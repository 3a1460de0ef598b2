"""The driver: one run of one plan on the running asyncio loop.

Three rules:

1. Only the pump starts units. The end of an attempt is booked at once, in the attempt's own last
   step; but a successor is never started there, where eager tasks would recurse.
2. The pump yields to the loop every few milliseconds, however much is ready.
3. `run` returns when every attempt has ended. While it waits for them after a cancellation it is
   shielded; further cancellations change nothing.

Constant: the setup. Changing: scheduler and ledger (through `Outcomes`), `_tasks` and `_scopes` of
what runs, `_timers` of what backs off.
"""

import asyncio
import math
import sys
from collections.abc import Coroutine
from contextvars import copy_context
from functools import partial
from typing import Any

from anyio import CancelScope, current_effective_deadline

from quantum_async.core.context import ExecutionContext
from quantum_async.core.errors import InternalError
from quantum_async.core.events import (
    RunFinished,
    RunStarted,
    UnitCanceled,
    UnitEmitted,
    UnitReady,
    UnitStarted,
)
from quantum_async.core.scheduler import BACKOFF, NOBODY, READY, RUNNING, WAITING
from quantum_async.core.states import FailurePolicy
from quantum_async.engine.attempt import (
    Work,
    attempt_full,
    attempt_plain,
    bound,
    nearest,
    on_loop,
    release_frames,
)
from quantum_async.engine.executors.base import Job
from quantum_async.engine.loops import all_ended, running_loop
from quantum_async.engine.outcomes import Outcomes
from quantum_async.engine.setup import Setup

_GRACE = 5.0  # seconds after a cancellation until a unit is named as ignoring it
_EAGER = sys.version_info >= (3, 12)
# Seconds the pump works before it lets the loop turn. Where tasks do not start eagerly, it only
# makes them, and all their first steps fall into the turn that follows.
_SLICE = 0.004 if _EAGER else 0.002


class Engine:
    """One run. Made for it, and of no use afterwards.

    Args:
        setup: All that the run is made of.
    """

    __slots__ = (
        "__weakref__", "_asked", "_bind", "_broken", "_bus", "_clock", "_context", "_done",
        "_ends_at", "_first_starts", "_handles", "_interrupted", "_lanes", "_ledger", "_loop",
        "_names", "_outcomes", "_prefix", "_pump_due", "_pumping", "_scheduler", "_scopes",
        "_setup", "_short", "_tasks", "_tells_start", "_timers", "_view", "_waiter",
        "_waits_for_threads", "ledger", "pauses", "stopping", "timed_out",
    )  # fmt: skip

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._handles = setup.plan.handles
        self._names = setup.plan.names
        self._scheduler = setup.scheduler
        self.ledger = self._ledger = setup.ledger
        self._bus = setup.bus
        self._clock = setup.clock
        self._loop = asyncio.get_running_loop()
        # One snapshot of the caller's context variables; each attempt gets a copy of its own.
        self._context = copy_context()
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._scopes: dict[int, CancelScope] = {}
        self._timers: dict[int, asyncio.TimerHandle] = {}
        self._first_starts: dict[int, float] = {}
        self._asked: set[int] = set()
        self._pumping = self._pump_due = False
        self._waiter: asyncio.Future[None] | None = None
        self._done = False
        # For each unit that was tried again: when an attempt ended, when the next began, and so on.
        self.pauses: dict[int, list[float]] = {}
        self.stopping = self.timed_out = self._broken = self._waits_for_threads = False
        self._interrupted: BaseException | None = None
        self._ends_at = math.inf
        self._outcomes = Outcomes(setup, self)
        # What each start needs, looked up once.
        self._view, self._bind = setup.view, setup.bind
        self._lanes = setup.scheduler.lanes
        self._prefix = f"{setup.ledger.run_id}/"
        self._short = [place is on_loop and setup.around is None for place in setup.places]
        self._tells_start = UnitStarted in self._bus
        if UnitReady in self._bus:
            self._scheduler.just_ready = self._scheduler.in_phase(READY)

    # -- the run ----------------------------------------------------------------------------

    async def run(self) -> None:
        """Run the plan to its end.

        Raises:
            CancelledError: If the caller was cancelled; everything has ended by then.
            KeyboardInterrupt: If a unit raised it; everything has ended by then.
        """
        time_limit = self._begin()
        try:
            await self._until_done()
        except asyncio.CancelledError:
            self.stop("the caller was cancelled")
            await self._until_stopped()
            raise
        finally:
            if time_limit is not None:
                time_limit.cancel()
            await self._end()
        if self._interrupted is not None:
            raise self._interrupted

    def _begin(self) -> asyncio.TimerHandle | None:
        time_limit, seconds = None, self._setup.timeout
        self._ends_at = current_effective_deadline()
        if seconds is not None:
            self._ends_at = min(self._ends_at, self._loop.time() + seconds)
            time_limit = self._loop.call_later(seconds, self._time_up)
        view = self._setup.view
        view.open(self._remaining, self._emit)
        self._bus.tell(RunStarted, self._scheduler.unfinished, view.environment["partitioner"])
        for companion in self._setup.companions:
            companion.begin(self)
        self.poke()
        return time_limit

    async def _end(self) -> None:
        ledger = self._ledger
        ledger.ended = self._clock()
        self._setup.view.close()
        again = await all_ended([companion.end() for companion in self._setup.companions])
        self._bus.tell(RunFinished, self._verdict(), ledger.ended - ledger.began)
        self._outcomes.close()
        for error in ledger.errors.values():
            release_frames(error)
        if again is not None:
            raise again

    async def _until_done(self) -> None:
        while not self._done:
            self._waiter = self._loop.create_future()
            await self._waiter

    async def _until_stopped(self) -> None:
        # anyio delivers a scope's cancellation again on every turn: the shield keeps that out.
        # A second native cancel passes through shields; it changes nothing either.
        straggling = self._loop.call_later(_GRACE, self._name_stragglers)
        with CancelScope(shield=True):
            while not self._done:
                try:
                    await self._until_done()
                except asyncio.CancelledError:
                    continue
        straggling.cancel()

    def _time_up(self) -> None:
        if not self._done:
            self.timed_out = True
            # A thread cannot be stopped, and the time is up: the run does not wait for it.
            cause = f"the run's time limit of {self._setup.timeout:g} s passed"
            self.stop(cause, waits_for_threads=False)

    def stop(self, cause: str, *, waits_for_threads: bool = True) -> None:
        """Cancel what runs, and let nothing start any more.

        Args:
            cause: Why, for the records of what is cancelled.
            waits_for_threads: Whether the run ends only when threads have returned too.
        """
        if self.stopping or self._done:
            return
        self.stopping = True
        self._waits_for_threads = waits_for_threads
        self._ledger.stop_cause = cause
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        told: list[int] = []
        if UnitCanceled in self._bus:
            told = [u for p in (WAITING, READY, BACKOFF) for u in self._scheduler.in_phase(p)]
        now = self._clock()
        for unit in self._scheduler.cancel_waiting():
            self._ledger.ends[unit] = now
        for unit in told:
            self._bus.tell(UnitCanceled, self._names[unit], self._ledger.attempts[unit], cause)
        for unit in list(self._tasks):
            self.cancel(unit)
        self.poke()

    def interrupt(self, error: BaseException) -> None:
        """Stop the run, and raise `error` from it."""
        self._interrupted = error
        self.stop(f"{type(error).__name__} was raised in a unit")

    def resize(self, max_running: int) -> None:
        """Change how many units may run at once."""
        self._scheduler.resize(max_running)
        self.poke()

    def cancel(self, unit: int) -> None:
        """Cancel a running unit: through its scope if it has one, else natively, once."""
        if unit in self._asked:
            return
        self._asked.add(unit)
        scope = self._scopes.get(unit)
        if scope is not None:
            scope.cancel()
        else:
            self._tasks[unit].cancel()

    def _name_stragglers(self) -> None:
        names = ", ".join(repr(self._names[unit]) for unit in sorted(self._tasks))
        self._setup.complain(
            f"cancelled {_GRACE:g} s ago and not ended yet: "
            f"{names or f'{self._outcomes.late} threads'}; a unit must let CancelledError through, "
            "and a thread must return",
            None,
        )

    def _verdict(self) -> str:
        if self.timed_out:
            return "timeout"
        if self.stopping and self._setup.policy is not FailurePolicy.FAIL_FAST:
            return "canceled"
        return "failed" if self._ledger.failed else "completed"

    # -- the pump ---------------------------------------------------------------------------

    def poke(self) -> None:
        """See to it that the pump runs in the loop's next turn."""
        if not self._pumping and not self._pump_due and not self._done:
            self._pump_due = True
            # In the run's own context variables, not in those of the unit that just ended.
            self._loop.call_soon(self._pump, context=self._context)

    def _pump(self) -> None:
        """Start what may start, skip what cannot; come back later if that takes long."""
        self._pump_due = False
        self._pumping = True
        try:
            more = self._pump_slice()
            if self._scheduler.just_ready:
                self._tell_ready()
        except BaseException as error:
            self.broke(error)
            more = False
        finally:
            self._pumping = False
        if more:
            self.poke()
        else:
            self._finish_if_done()

    def _pump_slice(self) -> bool:
        """Work until nothing is left to start (False) or the slice is over (True)."""
        scheduler, clock, start = self._scheduler, self._clock, self._start
        now = clock()
        slice_end = now + _SLICE
        while now < slice_end:
            unit = scheduler.next_start()
            if unit != NOBODY:
                start(unit, now)
            elif (skip := scheduler.next_skip()) is not None:
                self._outcomes.skipped(*skip)
            else:
                return False
            now = clock()
        return True

    def _finish_if_done(self) -> None:
        if self._tasks or (self._outcomes.late and self._waits_for_threads):
            return
        if not self._scheduler.finished and self._scheduler.stuck():
            self.broke(InternalError(f"the run is stuck: {self._scheduler!r}"))
        if not self._scheduler.finished and not self._broken:
            return
        self._done = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def broke(self, bug: BaseException, unit: int = NOBODY) -> None:
        """The engine itself failed, perhaps over a unit: end what runs, and raise it."""
        self._tasks.pop(unit, None)
        if not self._broken:
            self._broken = True
            self._interrupted = bug
            self.stop("the engine failed")
        self.poke()

    def _tell_ready(self) -> None:
        units, self._scheduler.just_ready = self._scheduler.just_ready or [], []
        for unit in units:
            self._bus.tell(UnitReady, self._names[unit], self._ledger.attempts[unit] + 1)

    # -- attempts ---------------------------------------------------------------------------

    def _start(self, unit: int, now: float) -> None:
        ledger = self._ledger
        ledger.attempts[unit] = attempt = ledger.attempts[unit] + 1
        if attempt == 1:
            ledger.starts[unit] = now
        else:
            self.pauses[unit].append(now)
            if unit in self._timers:
                self._timers.pop(unit).cancel()
        handle, lane = self._handles[unit], self._lanes[unit]
        if self._tells_start:
            if self._scheduler.just_ready:
                self._tell_ready()
            self._bus.tell(UnitStarted, self._names[unit], attempt, ledger.where[lane])
        ctx = ExecutionContext.of(self._view, unit, attempt)
        coroutine: Coroutine[Any, Any, None]
        if self._short[lane] and handle.options.plain:
            coroutine = attempt_plain(self._outcomes, unit, handle.function, ctx)
        else:
            coroutine = self._full_attempt(unit, ctx, self._setup.places[lane])
        self.spawn(unit, coroutine, f"{self._prefix}{self._names[unit]}#{attempt}")

    def _full_attempt(
        self, unit: int, ctx: ExecutionContext[Any], place: Work
    ) -> Coroutine[Any, Any, None]:
        handle, ledger, now = self._handles[unit], self._ledger, self._loop.time()
        job, options = Job.of(handle, ctx), handle.options
        job.returned = partial(self._thread_returned, self._lanes[unit])
        job.measured = partial(ledger.usage.__setitem__, unit)
        around = None if self._setup.around is None else self._setup.around(handle)
        work = bound(place, options.binding, ctx, around, ledger.ran_on, unit)
        first = now if options.deadline is None else self._first_starts.setdefault(unit, now)
        limit = nearest(now, options.timeout, options.deadline, first)
        return attempt_full(self._outcomes, unit, job, work, limit)

    def spawn(self, unit: int, coroutine: Coroutine[Any, Any, None], name: str) -> None:
        """Run a coroutine as the unit's task, in context variables of its own."""
        context = self._context.copy()
        if self._bind is not None:
            context.run(self._bind, self._names[unit], self._ledger.attempts[unit])
        if _EAGER:
            task = asyncio.Task(
                coroutine,
                loop=self._loop,
                name=name,
                context=context,
                eager_start=True,  # type: ignore[call-arg, unused-ignore]
            )
            # It may have ended inside the constructor, and has reported by then.
            if self._scheduler.phase[unit] == RUNNING and not task.done():
                self._tasks[unit] = task
        else:
            task = asyncio.Task(coroutine, loop=self._loop, name=name, context=context)
            self._tasks[unit] = task
            # Cancelled before its first step, it could not report.
            task.add_done_callback(partial(self._never_began, unit))

    def _never_began(self, unit: int, task: "asyncio.Task[None]") -> None:
        if task.cancelled() and self._tasks.get(unit) is task:
            self._outcomes.attempt_canceled(unit, None, None)

    # -- what outcomes ask for --------------------------------------------------------------

    def asked_to_stop(self, unit: int) -> bool:
        """Whether the engine cancelled this unit."""
        return unit in self._asked

    def scope_opened(self, unit: int, scope: CancelScope) -> None:
        """The attempt is to be cancelled through this scope."""
        self._scopes[unit] = scope

    def ended(self, unit: int) -> None:
        """The unit's attempt is over: forget its task, and see what may start now."""
        self._tasks.pop(unit, None)
        if self._scopes:
            self._scopes.pop(unit, None)
        if not self._pumping:
            self.poke()

    def wake_later(self, unit: int, seconds: float) -> None:
        """Make the unit ready again after its back-off."""
        self.pauses.setdefault(unit, []).append(self._clock())
        self._timers[unit] = self._loop.call_later(seconds, self._wake, unit)

    def _wake(self, unit: int) -> None:
        del self._timers[unit]
        self._scheduler.wake(unit)
        left = self.seconds_left(unit)
        if left < math.inf:
            # It may wait for a slot until its deadline has passed.
            self._timers[unit] = self._loop.call_later(max(left, 0), self._overdue, unit)
        self.poke()

    def _overdue(self, unit: int) -> None:
        del self._timers[unit]
        if self._scheduler.phase[unit] == READY:
            self._outcomes.deadline_passed(unit)
            self.poke()

    def seconds_left(self, unit: int) -> float:
        """Return seconds to the unit's own deadline; infinite without one."""
        deadline = self._handles[unit].options.deadline
        if deadline is None:
            return math.inf
        return self._first_starts[unit] + deadline - self._loop.time()

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
            self.poke()

    # -- what contexts ask for --------------------------------------------------------------

    def _remaining(self, unit: int) -> float:
        scope = self._scopes.get(unit)
        ends_at = self._ends_at if scope is None else min(self._ends_at, scope.deadline)
        return max(0.0, ends_at - self._loop.time())

    def _emit(self, unit: int, attempt: int, value: Any) -> None:
        told = partial(self._bus.tell, UnitEmitted, self._names[unit], attempt, value)
        if running_loop() is self._loop:
            told()
        else:
            self._loop.call_soon_threadsafe(told)

    def __repr__(self) -> str:
        state = "done" if self._done else "stopping" if self.stopping else "running"
        return f"<Engine {self._ledger.run_id} {state}: {self._scheduler!r}>"
