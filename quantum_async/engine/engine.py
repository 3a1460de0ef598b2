"""The driver: one run of one plan on the running asyncio loop.

Three rules:

1. Only the pump starts units. The end of an attempt is booked at once, in the attempt's own last
   step; but a successor is never started there, where eager tasks would recurse.
2. The pump yields to the loop every few milliseconds, however much is ready.
3. `run` returns when every attempt has ended. While it waits for them after a cancellation it is
   shielded; further cancellations change nothing.

Constant: the setup. Changing: scheduler and ledger (through `Outcomes`), `_tasks` and `_scopes` of
what runs, `Timers` of what backs off, `Growth` of what is open. A run that shares slots or limits
is pumped by the `Hub` of its loop, in turns with the others.
"""

import asyncio
import math
from contextvars import copy_context

from anyio import CancelScope, current_effective_deadline

from quantum_async.core.errors import InternalError
from quantum_async.core.events import (
    RunFinished,
    RunStarted,
    UnitCanceled,
    UnitReady,
    UnitStarted,
)
from quantum_async.core.limits import Gauge, Needs
from quantum_async.core.phases import OPEN, OPENING, QUEUED, READY, WAITING
from quantum_async.core.scheduler import NOBODY
from quantum_async.engine.attempt import release_all
from quantum_async.engine.attempts import EAGER, Attempts
from quantum_async.engine.door import Door
from quantum_async.engine.express import Express
from quantum_async.engine.growth import Growth
from quantum_async.engine.hub import hub_of
from quantum_async.engine.loops import all_ended
from quantum_async.engine.outcomes import Outcomes
from quantum_async.engine.setup import Setup
from quantum_async.engine.suspension import Suspension
from quantum_async.engine.timers import Timers

_GRACE = 5.0  # seconds after a cancellation until a unit is named as ignoring it
# Seconds the pump works before it lets the loop turn. Where tasks do not start eagerly, it only
# makes them, and all their first steps fall into the turn that follows.
_SLICE = 0.004 if EAGER else 0.002
_ALL = 1 << 62  # things to do


class Engine:
    """One run. Made for it, and of no use afterwards.

    Args:
        setup: All that the run is made of.
    """

    __slots__ = (
        "__weakref__", "_attempts", "_broken", "_bus", "_canceled", "_clock", "_context", "_done",
        "_door", "_ends_at", "_express", "_hub", "_interrupted", "_ledger", "_limit_timer", "_loop",
        "_names", "_outcomes", "_pump_due", "_pumping", "_rare", "_scheduler", "_scopes",
        "_stopped", "_tasks", "_tells_start", "_waiter", "_waits_for_threads", "growth", "ledger",
        "priority", "setup", "stopping", "suspension", "timed_out", "timers",
    )  # fmt: skip

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self._names = setup.rows.names
        self._scheduler = setup.scheduler
        self.ledger = self._ledger = setup.ledger
        self._bus = setup.bus
        self._clock = setup.clock
        self._loop = asyncio.get_running_loop()
        self._context = copy_context()  # the caller's
        self._pumping = self._pump_due = False
        self._waiter: asyncio.Future[None] | None = None
        self._door: Door | None = None
        self._express: Express | None = None
        self._done = False
        self.stopping = self.timed_out = self._broken = self._waits_for_threads = False
        self._stopped = self._canceled = False
        self._interrupted: BaseException | None = None
        self._ends_at = setup.ends_at
        self._outcomes = Outcomes(setup, self)
        self.timers = self._outcomes.timers = Timers(
            setup, self._loop, self._outcomes.deadline_passed, self.poke
        )
        self._attempts = Attempts(setup, self._outcomes, self, self.timers, self._context)
        self._tasks, self._scopes = self._attempts.tasks, self._attempts.scopes
        self.suspension = Suspension(setup.scheduler, self.poke, self._attempts.is_stopping)
        self.growth = Growth(setup, self._outcomes, self) if setup.is_special else None
        self._hub = hub_of(self._loop, _SLICE) if setup.shares else None
        # Whether a start may be more than one of a unit that waited for a slot.
        self._rare = self.growth is not None or self._hub is not None
        self._limit_timer: asyncio.TimerHandle | None = None
        self.priority = setup.priority
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
            self._canceled = not self._done
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
        time_limit, seconds = None, self.setup.timeout
        self._ends_at = min(self._ends_at, current_effective_deadline())
        if seconds is not None:
            self._ends_at = min(self._ends_at, self._loop.time() + seconds)
            time_limit = self._loop.call_later(seconds, self._time_up)
        view = self.setup.view
        self._door = Door(self.setup, self, self.growth)
        view.open(self._door)
        if Express.suits(self.setup, self._attempts):
            helpers = self._outcomes, self._attempts, self._door.nested
            self._express = Express(self.setup, *helpers, self._start)
        begins = RunStarted, self._scheduler.unfinished, view.environment["partitioner"]
        self._context.run(self._bus.tell, *begins)
        for companion in self.setup.companions:
            companion.begin(self)
        self.poke()
        return time_limit

    async def _end(self) -> None:
        ledger = self._ledger
        ends = [companion.end() for companion in self.setup.companions]
        if self.growth is not None:
            ends.append(self.growth.close())
        if ledger.errors:
            ends.append(release_all(ledger.errors.values(), self._clock, _SLICE))
        if self._door is not None and self._door.nested:
            ends.append(self._door.close())
        again = await all_ended(ends)
        ledger.ended = self._clock()
        self.setup.view.close()
        self._scheduler.forget()
        if self._limit_timer is not None:
            self._limit_timer.cancel()
        if self._hub is not None:
            self._hub.leave(self)
        self.timers.close()  # which holds the engine, as these do
        self._attempts.close()
        self.growth = self._door = self._express = None
        del self.suspension
        self._bus.tell(RunFinished, self._verdict(), ledger.ended - ledger.began)
        self._outcomes.close()
        if again is not None:
            raise again

    async def _until_done(self) -> None:
        while not self._done:
            self._waiter = self._loop.create_future()
            await self._waiter

    async def _until_stopped(self) -> None:
        # anyio delivers a scope's cancellation again on every turn: the shield keeps that out.
        # A second native cancel passes through shields; it changes nothing either.
        straggling = self._loop.call_later(_GRACE, self._attempts.name_stragglers, _GRACE)
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
            cause = f"the run's time limit of {self.setup.timeout:g} s passed"
            self.stop(cause, waits_for_threads=False)

    def stop(self, cause: str, *, waits_for_threads: bool = True) -> None:
        """Cancel what runs, and let nothing start any more.

        Args:
            cause: Why, for the records of what is cancelled.
            waits_for_threads: Whether the run ends only when threads have returned too.
        """
        if self._stopped or self._done:
            return
        self._stopped, self._waits_for_threads = True, waits_for_threads
        self.drain(cause)
        self._ledger.stop_cause = cause
        self._attempts.cancel_all()
        self.poke()

    def drain(self, cause: str) -> None:
        """Let nothing start any more, and what runs go on."""
        if self.stopping or self._done:
            return
        self.stopping = True
        self._ledger.stop_cause = cause
        for run in tuple(self.setup.inside):
            run.drain(cause)
        self.timers.clear()
        told: list[int] = []
        if UnitCanceled in self._bus:
            told = [u for phase in (WAITING, *QUEUED) for u in self._scheduler.in_phase(phase)]
        queued = self._scheduler.cancel_waiting()
        for unit in queued:
            self._ledger.ends[unit] = self._clock()
        for unit in told:
            self._bus.tell(UnitCanceled, self._names[unit], self._ledger.attempts[unit], cause)
        if self.growth is not None:
            self.growth.stop(queued)
        self.poke()

    def drop(self, unit: int, cause: str) -> None:
        """Cancel one unit, which nobody needs any more."""
        self._ledger.causes[unit] = cause
        if unit in self._tasks:
            self._attempts.cancel(unit)
        elif self._scheduler.phase[unit] == OPEN and self.growth is not None:
            self.growth.drop(unit, cause)
        elif not self._scheduler.has_ended(unit):
            self.timers.drop(unit)
            self._outcomes.dropped(unit, cause)
        self.poke()

    def interrupt(self, error: BaseException) -> None:
        """Stop the run, and raise `error` from it."""
        self._interrupted = error
        self.stop(f"{type(error).__name__} was raised in a unit")

    def resize(self, max_running: int) -> None:
        """Change how many units may run at once."""
        self._scheduler.resize(max_running)
        self.poke()

    def _verdict(self) -> str:
        if self.timed_out:
            return "timeout"
        if self._canceled or self._interrupted is not None:
            return "canceled"
        if self._ledger.complete:
            return "completed"
        # What was drained failed only if something did.
        return "canceled" if self.stopping and not self._ledger.guilty else "failed"

    # -- the pump ---------------------------------------------------------------------------

    def poke(self) -> None:
        """See to it that the pump runs in the loop's next turn."""
        if self._done:
            return
        if self._hub is not None:
            if not self._pumping:
                self._hub.poke(self)
        elif not self._pumping and not self._pump_due:
            self._pump_due = True
            # In the run's own context variables, not in those of the unit that just ended.
            self._loop.call_soon(self._pump, context=self._context)

    def _pump(self) -> None:
        """Do what can be done; come back later if that takes long."""
        self._pump_due = False
        if self._turn(_ALL):
            self.poke()

    def step(self, most: int) -> bool:
        """Do up to `most` things; return whether there is more to do. For the hub."""
        return not self._done and self._context.run(self._turn, most)

    @property
    def refused_by(self) -> set[Gauge]:
        """What had no room, when the run was last pumped."""
        return self._scheduler.refused_by

    def _turn(self, most: int) -> bool:
        self._pumping = True
        try:
            more = self._pump_slice(most)
            if self._scheduler.just_ready:
                self._attempts.tell_ready(self._clock())
        except BaseException as error:
            self._pumping = False
            self.broke(error)
            more = False
        finally:
            self._pumping = False
        if not more:
            self._finish_if_done()
        return more

    def _pump_slice(self, most: int) -> bool:
        """Work until nothing is left to start (False), or the slice is over (True)."""
        scheduler, clock, start, bus = self._scheduler, self._clock, self._start, self._bus
        gated = bool(bus.gates)
        scheduler.refused_by.clear()
        scheduler.wakes_in = math.inf
        now = clock()
        slice_end = now + _SLICE
        if self._express is not None and not gated and self._express.run_until(slice_end):
            return True
        for _ in range(most):
            if gated and not self.stopping and bus.holds(self.poke):
                return False
            if scheduler.openings:
                self._open(scheduler.openings.popleft())
            elif (unit := scheduler.next_start()) != NOBODY:
                (self._start_special if self._rare else start)(unit, now)
            elif (skip := scheduler.next_skip()) is not None:
                if skip[1] != NOBODY:
                    self._outcomes.skipped(*skip)
            else:
                if scheduler.wakes_in < math.inf:
                    self._wait_for_limits(scheduler.wakes_in)
                return False
            now = clock()
            if now >= slice_end:
                break
        return True

    def _open(self, unit: int) -> None:
        if self._scheduler.phase[unit] == OPENING and self.growth is not None:
            self.growth.open(unit)

    def _wait_for_limits(self, seconds: float) -> None:
        if self._limit_timer is not None:
            self._limit_timer.cancel()
        self._limit_timer = self._loop.call_later(seconds, self.poke)

    def _finish_if_done(self) -> None:
        if self._tasks or (self._outcomes.late and self._waits_for_threads):
            return
        scheduler = self._scheduler
        waits = scheduler.refused_by or scheduler.wakes_in < math.inf or self._bus.holds(self.poke)
        if not scheduler.finished and not waits and scheduler.stuck():
            self.broke(InternalError(f"the run is stuck: {self._scheduler!r}"))
        if not scheduler.finished and not self._broken:
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

    # -- attempts ---------------------------------------------------------------------------

    def _start_special(self, unit: int, now: float) -> None:
        """Start a unit of a run in which a start may be more than that."""
        if self.suspension.resuming and self.suspension.go_on(unit):
            return
        if self.growth is not None and not self._ledger.attempts[unit]:
            self.growth.started(unit)
        self._start(unit, now)
        if self.setup.budget is not None:
            self._ledger.note_limit(unit)
            # A rate counts from now on, when the first step is done, to be on the safe side.
            self.setup.budget.stamp(self._scheduler.needs_of(unit))

    def _start(self, unit: int, now: float) -> None:
        ledger = self._ledger
        if self._tells_start and self._scheduler.just_ready:
            self._attempts.tell_ready(now)
        ledger.attempts[unit] = attempt = ledger.attempts[unit] + 1
        if attempt == 1:
            ledger.starts[unit] = now
        else:
            self.timers.started_again(unit, now)
        lane = self._scheduler.lanes[unit]
        context = None
        if self._tells_start:
            context = self._attempts.tell_start(unit, attempt, now, ledger.where[lane])
        self._attempts.start(unit, attempt, lane, context)

    # -- what outcomes ask for --------------------------------------------------------------

    def ended(self, unit: int) -> None:
        """The unit's attempt is over: forget its task, and see what may start now."""
        self._tasks.pop(unit, None)
        if self._scopes:
            self._scopes.pop(unit, None)
        if self._door is not None and self._door.nested:
            self._door.attempt_over(unit)
        if self.growth is not None:
            self.growth.left(unit)
        if not self._pumping:
            self.poke()
        elif self._hub is not None:
            self._hub.freed()

    def over(self, unit: int) -> None:
        """The unit has ended, for those who wait for it."""
        if self.growth is not None:
            self.growth.over(unit)

    # -- what is open -----------------------------------------------------------------------

    def began(self, unit: int, where: str) -> None:
        """An open unit has begun."""
        ledger = self._ledger
        ledger.attempts[unit], ledger.starts[unit] = 1, (now := self._clock())
        ledger.ran_on[unit] = where
        self._bus.tell_at(UnitReady, now, (self._names[unit], 1))
        if self._tells_start:
            self._attempts.tell_open(unit, now, where)

    def lane_with(self, lane: int, needs: Needs) -> int:
        """Return the lane of the same place whose units use `needs`."""
        number = self._scheduler.lane_with(lane, needs)
        if number == len(self._ledger.where):
            self._attempts.add_lane_like(lane)
            self._ledger.where.append(self._ledger.where[lane])
        return number

    def share(self) -> None:
        """Take turns with other runs from now on: one inside this one uses its slots."""
        if self._hub is None:
            self._hub = hub_of(self._loop, _SLICE)
            self._rare, self._express = True, None

    def ends_at(self, unit: int) -> float:
        """Return when a unit must have ended, by the loop's clock."""
        return min(self._ends_at, self._attempts.ends_at(unit))

    def __repr__(self) -> str:
        state = "done" if self._done else "stopping" if self.stopping else "running"
        return f"<Engine {self._ledger.run_id} {state}: {self._scheduler!r}>"
