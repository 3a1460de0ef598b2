"""Short units are sent to a worker several at a time; each still starts when its turn comes.

A unit that is shorter than the trip to a worker would leave the worker idle between two calls. So
the calls that follow travel together with it, and the worker goes from one to the next by itself:

* A *follower* is the best ready unit of the queue. The scheduler gives it the slot of the unit
  before it, so that it starts, for the engine and in every event, when its work begins.
* A *link* of a chain waits for the unit before it and for nothing else. Its call has a stand-in for
  that result, which the worker has already.

Only when all workers are busy and there is more than enough for each: none is ever idle for it.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from quantum_async.core.binding import ContextBinding, Handle, WiredBinding
from quantum_async.core.context import ExecutionContext
from quantum_async.core.errors import UnpicklableUnitError
from quantum_async.core.plan import ExecutionPlan
from quantum_async.core.scheduler import NOBODY, WAITING, Scheduler
from quantum_async.engine.executors.base import Job
from quantum_async.engine.executors.packing import looks_big, packed
from quantum_async.engine.executors.shares import Previous, Shared, Shares, quickly_packed
from quantum_async.engine.executors.transport import SPILL, inline
from quantum_async.engine.view import View

_MOST = 16  # units that are sent along with one
_LONGEST_TRIP = 0.001  # seconds; what takes longer waits for a busy machine
_SMOOTH = 0.3  # weight of the newest measurement


class Parcel(NamedTuple):
    """A call, ready to be sent.

    Attributes:
        job: The unit.
        number: The call's number.
        blob: The pickled call.
        shares: The shared values that it needs.
        is_link: Whether it needs the result of the one before it.
    """

    job: Job
    number: int
    blob: bytes
    shares: list[Shared]
    is_link: bool = False


class _Instead:
    """A context in which one unit's result is something else."""

    def __init__(self, ctx: ExecutionContext[Any], unit: str, result: Any) -> None:
        self._ctx = ctx
        self._unit = unit
        self._result = result

    def __getitem__(self, key: Any) -> Any:
        name = key.id if isinstance(key, Handle) else key
        return self._result if name == self._unit else self._ctx[key]

    def __contains__(self, key: object) -> bool:
        return key == self._unit or key in self._ctx


class Ahead:
    """Chooses, for one run, what is sent along with a unit.

    Args:
        plan: The plan.
        scheduler: Knows what is ready.
        view: What units see.
        lane: The lane of worker processes.
        shares: What travels to each worker once.
        attempts: How many attempts each unit has had.
    """

    def __init__(
        self,
        plan: ExecutionPlan,
        scheduler: Scheduler,
        view: View,
        lane: int,
        shares: Shares,
        attempts: Sequence[int],
    ) -> None:
        self._plan = plan
        self._scheduler = scheduler
        self._view = view
        self._lane = lane
        self._shares = shares
        self._attempts = attempts
        self._lengths: dict[int, float] = {}  # seconds in the worker, by the id of a function
        self._trip = 0.0  # seconds there and back

    def learn(self, job: Job, length: float, total: float) -> None:
        """Take note of how long a unit took.

        Args:
            job: The unit.
            length: Seconds in the worker.
            total: Seconds from the sending to the answer; 0 if others were before it.
        """
        function = id(job.function)
        known = self._lengths.get(function, length)
        self._lengths[function] = known + _SMOOTH * (length - known)
        if total:
            trip = min(max(0.0, total - length), _LONGEST_TRIP)
            self._trip += (_SMOOTH if self._trip else 1.0) * (trip - self._trip)

    def _is_short(self, job: Job) -> bool:
        return self._lengths.get(id(job.function), math.inf) < self._trip

    def parcels(self, first: "Parcel", numbers: Iterator[int], workers: int) -> "list[Parcel]":
        """Return what to send behind a call: links of a chain, or followers.

        Args:
            first: The call.
            numbers: Gives the numbers of the others.
            workers: How many workers share what is ready; 0 if one of them is idle.
        """
        before = first.job.number
        if (
            not first.job.batch
            or not self._is_short(first.job)
            or self._scheduler.has_follower(before)  # of an earlier batch, whose worker has died
        ):
            return []
        links = self._links(first, numbers)
        if links or not workers:
            return links
        return self._followers(first, numbers, workers)

    def _links(self, first: "Parcel", numbers: Iterator[int]) -> "list[Parcel]":
        found: list[Parcel] = []
        last = first
        while len(found) < _MOST and (link := self._link(last.job, last.number)) is not None:
            parcel = self._packed(link, numbers, is_link=True)
            if parcel is None:
                break
            self._scheduler.follow(last.job.number, link.number)
            found.append(last := parcel)
        return found

    def _followers(self, first: "Parcel", numbers: Iterator[int], workers: int) -> "list[Parcel]":
        found: list[Parcel] = []
        most = min(_MOST, self._scheduler.ready_in(self._lane) // workers - 1)
        before, last, room = first.job.number, first.job, self._trip
        while len(found) < most and room > 0 and self._is_short(last):
            room -= self._lengths.get(id(last.function), 0.0)
            unit = self._scheduler.reserve(self._lane)
            if unit == NOBODY:
                break
            self._scheduler.follow(before, unit)
            job = self._job(unit)
            parcel = None if job is None else self._packed(job, numbers)
            if job is None or parcel is None:
                break  # it starts in its turn, and is sent then
            found.append(parcel)
            before, last = unit, job
        return found

    def _packed(
        self, job: Job, numbers: Iterator[int], *, is_link: bool = False
    ) -> "Parcel | None":
        """Pickle a small call; None if it is not small, or cannot be pickled."""
        call, used = self._shares.call_of(job)
        blob = quickly_packed(call)
        if blob is None and not looks_big(job):
            with suppress(UnpicklableUnitError):  # it is raised again when it starts
                content = packed(job, call)
                blob = inline(content) if len(content) < SPILL else None
        return None if blob is None else Parcel(job, next(numbers), blob, used, is_link)

    def _link(self, job: Job, number: int) -> Job | None:
        """Return the call of the unit that waits for this one alone, if that may be sent behind."""
        scheduler, before = self._scheduler, job.number
        below = scheduler.edges_down[before]
        if len(below) != 1 or not self._is_short(job) or scheduler.ready_in(self._lane):
            return None
        unit = below[0]
        alone = scheduler.phase[unit] == WAITING and scheduler.waiting[unit] == 1
        turns_down = self._plan.handles[before].options.retry is not None  # a result, perhaps
        if not alone or turns_down or scheduler.lanes[unit] != self._lane:
            return None
        return self._job(unit, job.unit, Previous(number))

    def _job(self, unit: int, before: str = "", result: Any = None) -> Job | None:
        """Build a unit's call; None if that is only possible when it starts."""
        if unit >= self._plan.unit_count:
            return None  # a child of a map: its handle is not the plan's
        handle, attempt = self._plan.handles[unit], self._attempts[unit] + 1
        ctx = ExecutionContext.of(self._view, unit, attempt)
        binding = handle.options.binding
        sees: Any = ctx
        if before:
            if isinstance(binding, ContextBinding) or (
                isinstance(binding, WiredBinding) and binding.context is not None
            ):
                return None  # a context has results, not stand-ins
            sees = _Instead(ctx, before, result)
        if not handle.options.batch:
            return None
        try:
            args, kwargs = binding.bind(sees)
        except Exception:
            return None  # it fails when it starts, as its own error
        job = Job.of(handle, ctx)
        job.args, job.kwargs = args, kwargs
        return job
