"""What the end of an attempt means: a result, another attempt, a fallback, a failure.

Attempts report here. Each report books the outcome in scheduler and ledger at once, tells it to
those who listen, and leaves the starting of successors to the driver.

The order of recourse: a retry if the policy grants one and the deadline leaves room for its
wait; then the fallback; then the failure, which under FAIL_FAST stops the run.
"""

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from quantum_async.core.context import ExecutionContext, MissingKeyError
from quantum_async.core.errors import Backpressure, UndeclaredDependencyError, UnitTimeoutError
from quantum_async.core.events import (
    UnitCanceled,
    UnitCompleted,
    UnitFailed,
    UnitRetrying,
    UnitSkipped,
    UnitTimedOut,
)
from quantum_async.core.limits import Budget, seconds_of
from quantum_async.core.options import NO_FALLBACK
from quantum_async.core.retry import given_up_on, why_again
from quantum_async.core.scheduler import CANCELED, FAILED, OPENING, READY, TIMEOUT, WAITING
from quantum_async.core.states import FailurePolicy
from quantum_async.core.unit import is_coroutine_function
from quantum_async.engine.attempt import Limit, settled, traceback_of, users_part
from quantum_async.engine.executors.base import Job
from quantum_async.engine.ledger import NOTHING
from quantum_async.engine.loops import in_thread
from quantum_async.engine.placement import IN_WORDS
from quantum_async.engine.setup import Setup
from quantum_async.engine.timers import Timers

if TYPE_CHECKING:
    from anyio import CancelScope


class Driver(Protocol):
    """What the outcome of an attempt asks of the engine."""

    @property
    def stopping(self) -> bool:
        """Whether the run is being stopped."""
        ...

    def ended(self, unit: int) -> None:
        """The unit's attempt is over."""
        ...

    def over(self, unit: int) -> None:
        """The unit has ended, for those who wait for it."""
        ...

    def stop(self, cause: str) -> None:
        """Cancel what runs, and let nothing start any more."""
        ...

    def interrupt(self, error: BaseException) -> None:
        """Stop the run, and raise `error` from it."""
        ...

    def broke(self, bug: BaseException, unit: int) -> None:
        """Stop the run, which failed by itself."""
        ...


class Outcomes:
    """Books how attempts ended.

    Args:
        setup: All that the run is made of.
        driver: The engine.
    """

    __slots__ = (
        "_clock", "_consumers", "_driver", "_handles", "_is_special", "_late", "_ledger", "_names",
        "_scheduler", "_setup", "_tell_at", "_tells_end", "asked_to_stop", "broke", "scope_opened",
        "spawn", "timers",
    )  # fmt: skip

    def __init__(self, setup: Setup, driver: Driver) -> None:
        self._setup, self._driver = setup, driver
        self._scheduler = setup.scheduler
        self._ledger = setup.ledger
        self._handles, self._names = setup.rows.handles, setup.rows.names
        self._is_special = setup.is_special
        self._clock = setup.clock
        self._late: set[Job] = set()
        self._consumers: list[int] | None = None
        if setup.keep is not None:
            will_run = [phase in (WAITING, READY, OPENING) for phase in setup.scheduler.phase]
            edges_down = setup.plan.edges_down
            self._consumers = [sum(map(will_run.__getitem__, below)) for below in edges_down]
        self._tells_end, self._tell_at = UnitCompleted in setup.bus, setup.bus.tell_at
        self.broke = driver.broke
        # Whoever keeps the tasks and timers puts these in.
        self.timers: Timers
        self.spawn: Callable[[int, Coroutine[Any, Any, None], str], None]
        self.asked_to_stop: Callable[[int], bool]
        self.scope_opened: Callable[[int, CancelScope], None]

    def close(self) -> None:
        """Let go of the engine, which holds this: nothing of a run waits for a collector."""
        del self._driver, self.broke, self.asked_to_stop, self.scope_opened, self.spawn, self.timers

    @property
    def late(self) -> int:
        """How much runs on although its unit has ended, and holds up a run that is stopped."""
        return sum(job.holds_run for job in self._late) if self._late else 0

    # -- reports of attempts ----------------------------------------------------------------

    def completed(self, unit: int, value: Any, job: Job | None = None) -> None:
        """The unit has a result."""
        ledger = self._ledger
        ledger.results[unit] = value
        ledger.ends[unit] = self._clock()
        if ledger.errors and unit not in ledger.fallbacks:
            ledger.errors.pop(unit, None)  # a later attempt has made it good
        if job is None:
            self._scheduler.complete(unit)
        else:
            self._scheduler.complete(unit, keeps_slot=self._keeps_slot(job))
        if self._tells_end:
            self._tell_end(unit, value)
        if self._consumers is not None or self._is_special:
            self._over(unit)
        self._driver.ended(unit)

    def _tell_end(self, unit: int, value: Any) -> None:
        ledger, at = self._ledger, self._ledger.ends[unit]
        where = ledger.ran_on.get(unit) or ledger.where[self._scheduler.lanes[unit]]
        name, attempt, error = self._names[unit], ledger.attempts[unit], ledger.errors.get(unit)
        took, usage = at - ledger.starts[unit] if attempt else 0.0, ledger.usage.get(unit)
        self._tell_at(UnitCompleted, at, (name, attempt, value, where, took, error, usage))

    def attempt_returned(self, unit: int, value: Any) -> None:
        """The unit has a result, unless its policy turns the value down."""
        policy = self._handles[unit].options.retry
        if policy is not None:
            attempt = self._ledger.attempts[unit]
            try:
                again = policy.wants_again(attempt, value, self._elapsed(unit))
            except BaseException as error:
                self.attempt_raised(unit, error)
                return
            if again and not self._retried(unit, None, None, value=value):
                self._failed(unit, given_up_on(attempt, value), FAILED, None)
            if again:
                return
        self.completed(unit, value)

    def attempt_raised(self, unit: int, error: BaseException) -> None:
        """The unit raised; the traceback is cut to the user's own part."""
        error = _cut(error)
        if isinstance(error, MissingKeyError) and self._setup.view.is_unit(error.name):
            # Only a worker process has to guess: it knows what was declared, not what was not.
            error = UndeclaredDependencyError(
                f"unit {self._names[unit]!r} read the result of {error.name!r} without depending "
                f"on it: add {error.name!r} to its dependencies"
            )
        if self._setup.budget is not None:
            self._pause_limits(unit, error, self._setup.budget)
        if isinstance(error, KeyboardInterrupt):
            self._ledger.errors[unit] = error
            self._ended_badly(unit, error, FAILED, None, self._where(unit))
            self._driver.interrupt(error)
        else:
            self._failed(unit, error, FAILED, None)

    def attempt_timed_out(
        self, unit: int, limit: Limit, job: Job, error: BaseException | None
    ) -> None:
        """The unit was stopped by a time limit."""
        timeout = self._timeout_error(unit, limit)
        if error is not None:
            timeout.__context__ = _cut(error)
            self._setup.complain(
                f"{self._names[unit]!r} raised while it was being stopped by its time limit", error
            )
        self._failed(unit, timeout, TIMEOUT, job)

    def attempt_canceled(self, unit: int, job: Job | None, error: BaseException | None) -> None:
        """The unit was cancelled by the run or from outside."""
        if error is not None:
            self._ledger.errors[unit] = _cut(error)
            self._setup.complain(f"{self._names[unit]!r} raised while it was cancelled", error)
        # One that was dropped has a cause of its own.
        cause = self._ledger.causes.get(unit) or self._ledger.stop_cause
        cause = cause or "cancelled from outside the run"
        self._ledger.causes[unit] = f"{cause}; {job.still}" if job and job.late else cause
        self._lost(unit, CANCELED, job)
        self._setup.bus.tell(UnitCanceled, *self._who(unit), cause)
        self._over(unit)

    # -- what the engine itself finds -------------------------------------------------------

    def deadline_passed(self, unit: int) -> None:
        """The unit's deadline came while it was waiting for another attempt."""
        options = self._handles[unit].options
        assert options.deadline is not None  # only such units are watched
        self._ledger.ends[unit] = self._clock()
        self._ledger.errors[unit] = error = self._timeout_error(
            unit, Limit("deadline", options.deadline, 0.0)
        )
        self._scheduler.give_up(unit)
        self._tell_failure(unit, error, TIMEOUT, self._where(unit))
        self._over(unit)

    def could_not_start(self, unit: int, error: BaseException) -> None:
        """The unit failed before it was ready: in its condition, say, or over a resource."""
        self._ledger.ends[unit] = self._clock()
        self._ledger.errors[unit] = error = _cut(error)
        self._scheduler.give_up(unit, FAILED)
        self._tell_failure(unit, error, FAILED, f"in unit {self._names[unit]!r}, before it started")
        self._over(unit)

    def failed_for_good(self, unit: int, error: BaseException) -> None:
        """A unit that is open failed; nothing can make that good."""
        self._ledger.errors[unit] = error
        self._ended_badly(unit, error, FAILED, None, f"in unit {self._names[unit]!r}")

    def dropped(self, unit: int, cause: str) -> None:
        """A unit that did not run is cancelled, because nobody needs it any more."""
        self._ledger.ends[unit] = self._clock()
        self._ledger.causes[unit] = cause
        self._scheduler.give_up(unit, CANCELED)
        self._setup.bus.tell(UnitCanceled, *self._who(unit), cause)
        self._over(unit)

    def skipped(self, unit: int, root: int) -> None:
        """The unit will not run, because of `root`: itself, if its condition was false."""
        self._ledger.roots[unit] = root
        self._ledger.ends[unit] = self._clock()
        self._setup.bus.tell(UnitSkipped, *self._who(unit), self._names[root])
        self._over(unit)

    def thread_returned(self, job: Job, lane: int) -> bool:
        """Work that outlived its attempt has ended; return whether a slot became free."""
        job.late = False
        if job not in self._late:
            return False
        self._late.discard(job)
        unit, causes = job.number, self._ledger.causes
        causes[unit] = causes.get(unit, "").replace(job.still, job.back)
        self._scheduler.free_slot(lane)
        return True

    # -- the means of recourse --------------------------------------------------------------

    def _failed(self, unit: int, error: BaseException, phase: int, job: Job | None) -> None:
        """The attempt has no result: retry, fallback or failure, in this order."""
        self._ledger.errors[unit] = error
        if self._retried(unit, error, job):
            return
        fallback = self._handles[unit].options.fallback
        if fallback is NO_FALLBACK or self._driver.stopping:
            self._ended_badly(unit, error, phase, job, self._where(unit))
        elif not callable(fallback):
            self._fell_back(unit, fallback, job)
        else:
            self._driver.ended(unit)
            name = f"{self._ledger.run_id}/{self._names[unit]}#fallback"
            self.spawn(unit, self._call_fallback(unit, fallback, error, job), name)

    def _ended_badly(
        self, unit: int, error: BaseException, phase: int, job: Job | None, note: str
    ) -> None:
        self._lost(unit, phase, job)
        if job is not None and job.late:
            self._ledger.causes[unit] = job.still
        self._tell_failure(unit, error, phase, note)
        self._over(unit)

    def _tell_failure(self, unit: int, error: BaseException, phase: int, note: str) -> None:
        with suppress(Exception):  # an exception may be frozen
            if note not in getattr(error, "__notes__", ()):
                error.add_note(note)
        if self._setup.rows.is_collected(unit):
            self._ledger.forgiven.add(unit)
        kind = UnitTimedOut if phase == TIMEOUT else UnitFailed
        took, usage = self._elapsed(unit), self._ledger.usage.get(unit)
        self._setup.bus.tell(kind, *self._who(unit), error, took, usage)
        if self._setup.policy is FailurePolicy.FAIL_FAST and not self._is_excused(unit):
            self._driver.stop(f"{self._names[unit]!r} failed and the policy is fail_fast")

    def _is_excused(self, unit: int) -> bool:
        """Return whether a unit's failure is none of the run: in a race, or collected."""
        return unit in self._setup.plan.contenders or unit in self._ledger.forgiven

    def _retried(
        self, unit: int, error: BaseException | None, job: Job | None, value: object = None
    ) -> bool:
        policy = self._handles[unit].options.retry
        if policy is None or self._driver.stopping:
            return False
        attempt = self._ledger.attempts[unit]
        try:
            wait = policy.next_wait(attempt, error=error, value=value, elapsed=self._elapsed(unit))
        except BaseException as broken:
            if isinstance(broken, KeyboardInterrupt):
                self._driver.interrupt(broken)
            else:
                self._setup.complain(f"the retry policy of {self._names[unit]!r} raised", broken)
            return False
        if wait is None or wait >= self.timers.seconds_left(unit):
            return False
        self._driver.ended(unit)
        self._scheduler.retry(unit, keeps_slot=self._keeps_slot(job))
        if error is not None:
            # A repeated attempt's frames hold its data; nobody will read this traceback.
            BaseException.with_traceback(error, None)
        self._ledger.retries.setdefault(unit, []).append((wait, why_again(error, value)))
        self._setup.bus.tell(UnitRetrying, *self._who(unit), error, wait)
        self.timers.pause(unit, wait)
        return True

    async def _call_fallback(
        self, unit: int, fallback: Callable[..., Any], error: BaseException, job: Job | None
    ) -> None:
        ctx = ExecutionContext.of(self._setup.view, unit, self._ledger.attempts[unit])
        try:
            if is_coroutine_function(fallback):
                value = await fallback(ctx, error)
            else:
                value = await settled(await in_thread(partial(fallback, ctx, error)))
        except BaseException as broken:
            if isinstance(broken, asyncio.CancelledError) and self.asked_to_stop(unit):
                self.attempt_canceled(unit, job, None)
                return
            self._ledger.errors[unit] = _cut(broken)
            note = f"raised by the fallback of unit {self._names[unit]!r}"
            self._ended_badly(unit, broken, FAILED, job, note)
            if isinstance(broken, KeyboardInterrupt):
                self._driver.interrupt(broken)
        else:
            self._fell_back(unit, value, job)

    def _fell_back(self, unit: int, value: Any, job: Job | None) -> None:
        self._ledger.fallbacks.add(unit)
        self.completed(unit, value, job)

    # -- the ends ---------------------------------------------------------------------------

    def _lost(self, unit: int, phase: int, job: Job | None) -> None:
        """The unit ends without a result.

        Whoever calls this tells of it, and then of what is over with it: causes before effects.
        """
        self._ledger.ends[unit] = self._clock()
        self._scheduler.fail(unit, phase, keeps_slot=self._keeps_slot(job))
        self._driver.ended(unit)

    def _over(self, unit: int) -> None:
        if self._consumers is not None and unit < len(self._consumers):
            self._released(unit, self._consumers)
        if self._is_special:
            self._driver.over(unit)

    def _keeps_slot(self, job: Job | None) -> bool:
        if job is None or not job.late:
            return False
        self._late.add(job)
        return True

    def _released(self, unit: int, consumers: list[int]) -> None:
        """Let go of results that nobody needs any more."""
        keep = self._setup.keep or frozenset()
        for above in self._setup.plan.edges_up[unit]:
            consumers[above] -= 1
            if not consumers[above] and above not in keep:
                self._ledger.results[above] = NOTHING
        if not consumers[unit] and unit not in keep:
            self._ledger.results[unit] = NOTHING

    # -- what others are to be spared ---------------------------------------------------------

    def _pause_limits(self, unit: int, error: BaseException, budget: Budget) -> None:
        """Give nothing of a limit for as long as an error says that its resource needs."""
        if isinstance(error, Backpressure):
            names, seconds = [error.resource], error.seconds
        else:
            needs = self._scheduler.needs_of(unit)
            names, seconds = [name for name, _ in needs], seconds_of(error)
        for name in names:
            if seconds > 0 and not budget.pause(name, seconds):
                self._setup.complain(
                    f"{self._names[unit]!r} asked for less of {name!r}, and there is no such limit",
                    error,
                )

    # -- words ------------------------------------------------------------------------------

    def _elapsed(self, unit: int) -> float:
        ledger = self._ledger
        return self._clock() - ledger.starts[unit] if ledger.attempts[unit] else 0.0

    def _who(self, unit: int) -> tuple[str, int]:
        return self._names[unit], self._ledger.attempts[unit]

    def _where_ran(self, unit: int) -> str:
        return self._ledger.ran_on.get(unit) or self._ledger.where[self._scheduler.lanes[unit]]

    def _where(self, unit: int) -> str:
        name, attempt = self._who(unit)
        return f"in unit {name!r}, attempt {attempt}, {IN_WORDS[self._where_ran(unit)]}"

    def _timeout_error(self, unit: int, limit: Limit) -> UnitTimeoutError:
        name, attempt = self._who(unit)
        what = (
            f"attempt {attempt} took longer than its timeout"
            if limit.which == "timeout"
            else f"its {attempt} attempts took longer than its deadline"
        )
        return UnitTimeoutError(
            f"unit {name!r} was stopped: {what} of {limit.seconds:g} s; allow more, or make it "
            "do less",
            name,
            attempt,
            limit.seconds,
            limit.which,
        )


def _cut(error: BaseException) -> BaseException:
    """Cut an exception's traceback to the user's own part, frozen exceptions' too."""
    # Not by the exception's own method, which may be the user's.
    return BaseException.with_traceback(error, users_part(traceback_of(error)))
