"""One attempt of one unit: a native task that ends by telling the engine how it went.

An attempt never raises: whatever leaves a unit, SystemExit and KeyboardInterrupt included, is
reported, or it would leave through the loop. Two shapes:

* `attempt_plain` for a coroutine function without limits: one frame over the unit's own.
* `attempt_full` for everything else. A time limit is an anyio cancel scope around the work; a
  unit without one has no scope, and is cancelled natively.

Whose cancellation was it? The engine's, if it asked for one. A time limit's, if the scope caught
it. Somebody else's, if `task.cancelling()` grew. Else the unit raised CancelledError by itself,
and failed.
"""

import asyncio
import inspect
import math
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from types import FrameType, TracebackType
from typing import Any, Protocol

from anyio import CancelScope, current_time

from quantum_async.core.binding import Binding
from quantum_async.core.context import ExecutionContext
from quantum_async.engine.executors.base import Job

_OURS = ("quantum_async.", "anyio.", "asyncio.", "concurrent.futures")


@dataclass(frozen=True, slots=True)
class Limit:
    """A moment at which an attempt must be over.

    Attributes:
        which: ``"timeout"`` or ``"deadline"``.
        seconds: How long the limit was, as declared.
        at: When it is reached, by the loop's clock.
    """

    which: str
    seconds: float
    at: float


class Reports(Protocol):
    """What an attempt tells: the engine."""

    def completed(self, unit: int, value: Any) -> None:
        """The unit has a result, and no policy that could turn it down."""
        ...

    def attempt_returned(self, unit: int, value: Any) -> None:
        """The unit has a result."""
        ...

    def attempt_raised(self, unit: int, error: BaseException) -> None:
        """The unit raised."""
        ...

    def attempt_timed_out(
        self, unit: int, limit: Limit, job: Job, error: BaseException | None
    ) -> None:
        """The unit was stopped by a time limit; `error` is what its clean-up raised."""
        ...

    def attempt_canceled(self, unit: int, job: Job | None, error: BaseException | None) -> None:
        """The unit was cancelled; `error` is what its clean-up raised."""
        ...

    def broke(self, bug: BaseException, unit: int) -> None:
        """The report itself failed: nobody else would ever end the run."""
        ...

    def asked_to_stop(self, unit: int) -> bool:
        """Whether the engine cancelled this unit."""
        ...

    def scope_opened(self, unit: int, scope: CancelScope) -> None:
        """The attempt is to be cancelled through this scope."""
        ...


Work = Callable[[Job], Coroutine[Any, Any, Any]]
Change = Callable[[Callable[..., Any]], Callable[..., Any]]


class Compute(Protocol):
    """Does the work of an attempt, for what is wrapped around it."""

    def __call__(self, change: Change | None = None, /) -> Awaitable[Any]:
        """Do it; with `change`, call what that makes of the unit's function."""
        ...


# What may be wrapped around an attempt: a `core.context.Around`, or one that uses `change`.
Layer = Callable[[ExecutionContext[Any], Compute], Awaitable[Any]]


async def attempt_plain(
    engine: Reports,
    unit: int,
    function: Callable[..., Coroutine[Any, Any, Any]],
    ctx: ExecutionContext[Any],
) -> None:
    """Run a coroutine function that has no limits, as ``function(ctx)``."""
    try:
        try:
            value = await function(ctx)
        except BaseException as error:
            sort_out(engine, unit, None, error)
        else:
            engine.completed(unit, value)
    except BaseException as bug:
        engine.broke(bug, unit)


def call_bound(
    function: Callable[..., Coroutine[Any, Any, Any]], binding: Binding, ctx: ExecutionContext[Any]
) -> Coroutine[Any, Any, Any]:
    """Call a coroutine function with arguments of its own: inside the attempt, whose they are."""
    args, kwargs = binding.bind(ctx)
    return function(*args, **kwargs)


async def attempt_full(
    engine: Reports, unit: int, job: Job, work: Work, limit: Limit | None
) -> None:
    """Run a job where it belongs, within its limit."""
    try:
        if limit is not None:
            await _attempt_limited(engine, unit, job, work, limit)
            return
        try:
            value = await work(job)
        except BaseException as error:
            sort_out(engine, unit, job, error)
        else:
            engine.attempt_returned(unit, value)
    except BaseException as bug:
        engine.broke(bug, unit)


async def _attempt_limited(engine: Reports, unit: int, job: Job, work: Work, limit: Limit) -> None:
    task = _current()
    before = task.cancelling()
    value: Any = None
    caught: BaseException | None = None
    interrupted = False
    scope = CancelScope(deadline=limit.at)
    # anyio will not close a scope while the unit has left one of its own open in it. How the
    # attempt ended is known all the same, and the task ends with it.
    with suppress(RuntimeError), scope:
        engine.scope_opened(unit, scope)
        if limit.which == "timeout":
            job.stop_clock = partial(setattr, scope, "deadline", math.inf)
            job.restart_clock = partial(_restart, scope, limit.seconds)
        try:
            value = await work(job)
        except BaseException as error:
            caught = error
        # Seen before the scope takes its cancellations back: was one delivered?
        interrupted = scope.cancel_called and task.cancelling() > before
    scope.deadline = math.inf  # stops the timer of one that was not closed
    try:
        if interrupted:
            _cut_short(engine, unit, job, limit, value, caught)
        elif caught is None:
            # A result, or an error, that came in the same tick as the limit: the outcome wins.
            engine.attempt_returned(unit, value)
        else:
            sort_out(engine, unit, job, caught)
    finally:
        del caught  # it holds this frame


def _cut_short(
    engine: Reports, unit: int, job: Job, limit: Limit, value: Any, caught: BaseException | None
) -> None:
    """Report an attempt whose scope was cancelled: by its limit, or by the engine."""
    clean_up = None if isinstance(caught, asyncio.CancelledError) else caught
    if isinstance(clean_up, KeyboardInterrupt):
        engine.attempt_raised(unit, clean_up)
    elif not engine.asked_to_stop(unit):
        # The deadline is the engine's: a unit that swallowed it and returned is late all the same.
        engine.attempt_timed_out(unit, limit, job, clean_up)
    elif caught is None:
        engine.attempt_returned(unit, value)
    else:
        engine.attempt_canceled(unit, job, clean_up)


def _restart(scope: CancelScope, seconds: float, spent: float = 0.0) -> None:
    scope.deadline = current_time() + seconds - spent


def sort_out(engine: Reports, unit: int, job: Job | None, error: BaseException) -> None:
    """Report what left a unit's work: an error of its own, or somebody's cancellation."""
    if isinstance(error, asyncio.CancelledError):
        if engine.asked_to_stop(unit) or _current().cancelling():
            engine.attempt_canceled(unit, job, None)
            return
    elif engine.asked_to_stop(unit) and not isinstance(error, KeyboardInterrupt):
        # An error in clean-up never goes over the cancellation.
        engine.attempt_canceled(unit, job, error)
        return
    engine.attempt_raised(unit, error)


def _current() -> asyncio.Task[Any]:
    task = asyncio.current_task()
    assert task is not None  # attempts are only ever run as tasks
    return task


async def on_loop(job: Job) -> Any:
    """Run a coroutine function."""
    return await job()


async def inline(job: Job) -> Any:
    """Run a function right here, for debugging: the loop stands still meanwhile."""
    return await settled(job())


async def settled(value: Any) -> Any:
    """Return what a plain function returned; a coroutine (from a lambda, say) is awaited."""
    return await value if inspect.iscoroutine(value) else value


def bound(
    place: Work,
    binding: Binding,
    ctx: ExecutionContext[Any],
    around: Layer | None,
    ran_on: dict[int, str],
    unit: int,
) -> Work:
    """Return what an attempt does: bind its arguments, and run the job where it belongs.

    Args:
        place: Runs a job where it belongs.
        binding: How its function gets its arguments.
        ctx: Its context.
        around: What is wrapped around it, or None.
        ran_on: Where "cache" is written if what is around it gave a result without the work. Only
            this column: the frames of the work must not hold the ledger, which holds its errors.
        unit: Its number.
    """

    async def work(job: Job, change: Change | None = None) -> Any:
        # Bound inside the attempt: an error in it is the unit's own.
        job.args, job.kwargs = binding.bind(ctx)
        if change is not None:
            job.function = change(job.function)
        return await place(job)

    async def wrapped(job: Job) -> Any:
        began, restart, worked = current_time(), job.restart_clock, False

        def compute(change: Change | None = None, /) -> Awaitable[Any]:
            nonlocal worked
            worked = True
            ran_on.pop(unit, None)
            # A worker's start does not count against a time limit; what was before it does.
            slowed: Callable[..., None] = restart
            job.restart_clock = partial(slowed, current_time() - began)
            return work(job, change)

        value = await around(ctx, compute)  # type: ignore[misc]
        if not worked:
            ran_on[unit] = "cache"
        return value

    return work if around is None else wrapped


def nearest(
    now: float, timeout: float | None, deadline: float | None, first_start: float
) -> Limit | None:
    """Return the limit of an attempt that starts now: its timeout or the unit's deadline.

    Args:
        now: The loop's time.
        timeout: Seconds an attempt may take.
        deadline: Seconds all attempts may take.
        first_start: When the first attempt started, by the loop's clock.
    """
    ends = now + timeout if timeout is not None else math.inf
    last = first_start + deadline if deadline is not None else math.inf
    if deadline is not None and last <= ends:
        return Limit("deadline", deadline, last)
    return Limit("timeout", timeout, ends) if timeout is not None else None


# What an exception itself says of these may be anything: a class may have attributes of its own.
_cause_of: Callable[[BaseException], BaseException | None]
_context_of: Callable[[BaseException], BaseException | None]
traceback_of: Callable[[BaseException], TracebackType | None]
_cause_of, _context_of, traceback_of = (
    vars(BaseException)[name].__get__ for name in ("__cause__", "__context__", "__traceback__")
)


def users_part(traceback: TracebackType | None) -> TracebackType | None:
    """Return a traceback from the first frame that is not ours or the event library's."""
    frame = traceback
    while frame is not None:
        module = frame.tb_frame.f_globals.get("__name__", "")
        if not module.startswith(_OURS):
            return frame
        frame = frame.tb_next
    return None


def release_frames(error: BaseException) -> None:
    """Empty the finished frames of ours below an error's traceback.

    A frame of the user's that is kept in a traceback keeps the frames that called it, and ours
    hold the run, which holds the error: without this, only the collector could free any of them.
    """
    chain: list[BaseException | None] = [error]
    seen: set[int] = set()
    while chain:
        link = chain.pop()
        if link is None or id(link) in seen:
            continue
        seen.add(id(link))
        chain += [_cause_of(link), _context_of(link)]
        traceback = traceback_of(link)
        frame = None if traceback is None else traceback.tb_frame.f_back
        while frame is not None and frame.f_globals.get("__name__", "").startswith(_OURS[0]):
            if _is_of_engine(frame):
                break
            below = frame.f_back
            try:
                frame.clear()
            except RuntimeError:  # it is still running, and so is all below it
                break
            frame = below


def _is_of_engine(frame: FrameType) -> bool:
    """Whether a frame is of the engine's own coroutine, which has not ended.

    What is stopped may raise under it. Before Python 3.13 to clear it would be to close it.
    """
    is_coroutine = bool(frame.f_code.co_flags & inspect.CO_COROUTINE)
    return is_coroutine and frame.f_globals.get("__name__") == "quantum_async.engine.engine"


async def release_all(
    errors: Iterable[BaseException],
    clock: Callable[[], float],
    slice: float,  # noqa: A002
) -> None:
    """Do `release_frames` for many errors, a slice of so many seconds a turn."""
    slice_end = clock() + slice
    for error in errors:
        release_frames(error)
        if clock() > slice_end:
            await asyncio.sleep(0)
            slice_end = clock() + slice
