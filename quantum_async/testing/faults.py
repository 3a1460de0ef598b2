"""Faults that units meet on the engine's real ways.

All of them happen inside an attempt: a delay is cut off by the unit's timeout, a failure is
retried as the unit's own would be, a killed worker has really died. They are outermost: a unit
whose result is in a cache, or whose function has a double, meets them too.
"""

import asyncio
import os
import signal
import weakref
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple, Self

from quantum_async.core.binding import Handle
from quantum_async.core.checks import check_number
from quantum_async.core.context import ExecutionContext
from quantum_async.core.errors import PlanError
from quantum_async.core.plan import ExecutionPlan, Unit
from quantum_async.core.shapes import Mapped
from quantum_async.engine.attempt import Change, Compute, Layer
from quantum_async.engine.placement import PROCESS
from quantum_async.request import RunRequest
from quantum_async.testing.doubles import Block, Flow, place_in, unit_of

# In the order in which an attempt meets them.
_KINDS = CANCEL_RUN_AT, DELAY, HANG, FAIL, KILL_WORKER = (
    "cancel_run_at",
    "delay",
    "hang",
    "fail",
    "kill_worker",
)


class InjectedError(Exception):
    """What a unit raises that was told to fail, if nothing else was said."""


class Fired(NamedTuple):
    """A fault that an attempt met.

    Attributes:
        unit: The unit's name.
        attempt: Which attempt, from 1.
        fault: ``"fail"``, ``"delay"``, ``"hang"``, ``"kill_worker"`` or ``"cancel_run_at"``.
    """

    unit: str
    attempt: int
    fault: str


@dataclass(frozen=True, slots=True, eq=False)
class _Fault:
    kind: str
    unit: str | Handle
    attempts: frozenset[int] | None
    seconds: float = 0.0
    error: Any = None

    @property
    def name(self) -> str:
        return self.unit.id if isinstance(self.unit, Handle) else self.unit

    def __str__(self) -> str:
        which = "" if self.attempts is None else f", attempts={sorted(self.attempts)}"
        return f"{self.kind}({self.name!r}{which})"


class Faults(Block):
    """Faults by unit: for one run with ``run(faults=…)``, or for those of a ``with`` block.

    Each method adds a fault and returns this object. A fault is met by every attempt of its unit,
    or by those that `attempts` lists, counted from 1. As a block it is for all runs that start in
    it, in this task and those that it starts, whatever their partitioner; `on` is for one's alone.

    Attributes:
        fired: The faults that were met, in order, in all runs.

    Example:
        >>> flow = QuantumPartitioner()
        >>> @flow.unit(retries=2)
        ... async def fetch(ctx):
        ...     return f"fetched in attempt {ctx.attempt}"
        >>> faults = Faults().fail("fetch", attempts=[1], error=ConnectionError("no line"))
        >>> with faults:
        ...     flow.execute()["fetch"]
        'fetched in attempt 2'
        >>> faults.fired
        [Fired(unit='fetch', attempt=1, fault='fail')]
    """

    outermost = True
    goes_inside = False

    def __init__(self) -> None:
        self._faults: list[_Fault] = []
        self._met: set[_Fault] = set()
        self.fired: list[Fired] = []

    # -- declaring --------------------------------------------------------------------------

    def fail(
        self,
        unit: str | Handle,
        *,
        attempts: Iterable[int] | None = None,
        error: BaseException
        | type[BaseException]
        | Callable[[ExecutionContext[Any]], BaseException] = InjectedError,
    ) -> Self:
        """Have attempts raise in the place of their work.

        Args:
            unit: The unit's name or handle. Of a map it is for all its children; ``"map[3]"`` is
                for one.
            attempts: Which attempts; by default all.
            error: An exception, a class that is called without arguments, or a function that
                gives one for the attempt's context.

        Raises:
            PlanError: If one of these cannot be meant.
        """
        return self._add(FAIL, unit, attempts, error=_checked_error(error))

    def delay(
        self, unit: str | Handle, seconds: float, *, attempts: Iterable[int] | None = None
    ) -> Self:
        """Have attempts wait before their work, under the unit's time limits.

        It is the loop that waits, in every mode: on a virtual clock no time passes.

        Args:
            unit: The unit's name or handle.
            seconds: How long.
            attempts: Which attempts; by default all.

        Raises:
            PlanError: If one of these cannot be meant.
        """
        if seconds is None:
            raise PlanError(f"faults.delay({_name(unit)!r}): how many seconds?")
        check_number(_name(unit), "faults.delay", seconds)
        return self._add(DELAY, unit, attempts, seconds=seconds)

    def hang(self, unit: str | Handle, *, attempts: Iterable[int] | None = None) -> Self:
        """Have attempts never come to their work: only a time limit or a cancellation ends them.

        Args:
            unit: The unit's name or handle.
            attempts: Which attempts; by default all.

        Raises:
            PlanError: If one of these cannot be meant.
        """
        return self._add(HANG, unit, attempts)

    def kill_worker(self, unit: str | Handle, *, attempts: Iterable[int] | None = None) -> Self:
        """Have the unit's worker process killed by SIGKILL, from inside, as the work starts.

        A run in which the unit does not run in a worker process is refused.

        Args:
            unit: The unit's name or handle.
            attempts: Which attempts; by default all.

        Raises:
            PlanError: If one of these cannot be meant.
        """
        return self._add(KILL_WORKER, unit, attempts)

    def cancel_run_at(self, unit: str | Handle, *, attempts: Iterable[int] = (1,)) -> Self:
        """Have the task that awaits the run cancelled as the unit starts.

        The unit goes on to its work, and is cancelled there like all others.

        Args:
            unit: The unit's name or handle.
            attempts: At which of its attempts; by default the first.

        Raises:
            PlanError: If one of these cannot be meant.
        """
        return self._add(CANCEL_RUN_AT, unit, attempts)

    def _add(
        self, kind: str, unit: str | Handle, attempts: Iterable[int] | None, **more: Any
    ) -> Self:
        if not isinstance(unit, str | Handle):
            raise PlanError(f"faults.{kind}: a unit is given by name or handle, not {unit!r}")
        which = None if attempts is None else _checked_attempts(kind, _name(unit), attempts)
        self._faults.append(_Fault(kind, unit, which, **more))
        return self

    def on(self, flow: Flow) -> "FaultsOn":
        """Return a ``with`` block in which only runs of one partitioner meet the faults.

        Args:
            flow: The partitioner.

        Raises:
            PlanError: If it has not all the units.
        """
        return FaultsOn(self, flow)

    # -- in a run ---------------------------------------------------------------------------

    @property
    def unfired(self) -> list[str]:
        """The faults that no attempt has met yet: a test that relies on them shows nothing."""
        return [str(fault) for fault in self._faults if fault not in self._met]

    def check_names(self, flow: Flow) -> None:
        """Look for the units in a partitioner.

        Raises:
            PlanError: With all that there are not.
        """
        problems = []
        for fault in self._faults:
            try:
                unit_of(flow, _declared(fault.unit, flow.units), f"faults.{fault.kind}")
            except PlanError as problem:
                problems.append(problem)
        if problems:
            raise PlanError.of(problems)

    def amend(self, flow: object, plan: ExecutionPlan, request: RunRequest) -> RunRequest:
        """Return a run's request with the faults in it.

        Raises:
            PlanError: With all problems: units that there are not, workers to be killed of units
                that run elsewhere.
        """
        problems: list[PlanError] = []
        by_unit: dict[str, list[_Fault]] = {}
        for fault in self._faults:
            try:
                name = _declared(fault.unit, plan.units)
                unit = plan.handles[plan.number(name, f"faults.{fault.kind}")]
            except PlanError as problem:
                problems.append(problem)
                continue
            if fault.kind == KILL_WORKER and (place := place_in(unit, request)) != PROCESS:
                problems.append(
                    PlanError(
                        f"faults.kill_worker({unit.id!r}): in this run the unit's place is "
                        f"{place!r}, and only a worker process can be killed: give the unit "
                        "mode='process'"
                    )
                )
            by_unit.setdefault(unit.id, []).append(fault)
        if problems:
            raise PlanError.of(problems)
        if not by_unit:
            return request
        for faults in by_unit.values():
            faults.sort(key=lambda fault: _KINDS.index(fault.kind))
        task = asyncio.current_task()
        assert task is not None  # runs are awaited
        return replace(request, around=self._around(by_unit, request.around, weakref.ref(task)))

    def _around(
        self,
        by_unit: dict[str, list[_Fault]],
        before: Callable[[Unit], Layer | None] | None,
        run: "weakref.ref[asyncio.Task[Any]]",
    ) -> Callable[[Unit], Layer | None]:
        def around(unit: Unit) -> Layer | None:
            inner = None if before is None else before(unit)
            faults = by_unit.get(unit.id)
            if faults is None:
                return inner
            return layered(partial(self._meet, unit.id, faults, run), inner)

        return around

    async def _meet(
        self,
        declared: str,
        faults: Sequence[_Fault],
        run: "weakref.ref[asyncio.Task[Any]]",
        ctx: ExecutionContext[Any],
        compute: Compute,
    ) -> Any:
        change: Change | None = None
        for fault in faults:
            if fault.name not in (declared, ctx.unit_id):
                continue  # it is of another child of the same map
            if fault.attempts is not None and ctx.attempt not in fault.attempts:
                continue
            if fault.kind == KILL_WORKER:
                change = partial(self._killed, fault, ctx)
                continue
            self._note(fault, ctx)
            if fault.kind == CANCEL_RUN_AT:
                task = run()
                assert task is not None  # it lives as long as its run
                task.cancel()
            elif fault.kind == DELAY:
                await asyncio.sleep(fault.seconds)
            elif fault.kind == HANG:
                await asyncio.get_running_loop().create_future()
            else:
                raise _error_of(fault, ctx)
        return await compute(change)

    def _killed(
        self, fault: _Fault, ctx: ExecutionContext[Any], function: Callable[..., Any]
    ) -> Callable[..., Any]:
        self._note(fault, ctx)  # only now: a result out of a cache needs no worker
        return kill_this_process

    def _note(self, fault: _Fault, ctx: ExecutionContext[Any]) -> None:
        self._met.add(fault)
        self.fired.append(Fired(ctx.unit_id, ctx.attempt, fault.kind))

    def __repr__(self) -> str:
        told = ", ".join(map(str, self._faults))
        return f"<Faults: {told or 'none'}; {len(self.fired)} fired>"


class FaultsOn(Block):
    """The block of ``faults.on(flow)``."""

    outermost = True
    goes_inside = False

    def __init__(self, faults: Faults, flow: Flow) -> None:
        faults.check_names(flow)
        self.faults = faults
        self._flow = flow

    def amend(self, flow: object, plan: ExecutionPlan, request: RunRequest) -> RunRequest:
        """Return a run's request with the faults in it, if it is of that partitioner."""
        return self.faults.amend(flow, plan, request) if flow is self._flow else request

    def __repr__(self) -> str:
        return f"{self.faults!r} on {self._flow!r}"


def layered(outer: Layer, inner: Layer | None) -> Layer:
    """Return what both do, one around the other. The outer one decides what is called."""
    if inner is None:
        return outer

    async def both(ctx: ExecutionContext[Any], compute: Compute) -> Any:
        def inside(change: Change | None = None, /) -> Awaitable[Any]:
            def innermost(before: Change | None = None, /) -> Awaitable[Any]:
                return compute(_in_turn(before, change))

            return inner(ctx, innermost)

        return await outer(ctx, inside)

    return both


def _in_turn(first: Change | None, then: Change | None) -> Change | None:
    if first is None or then is None:
        return first or then
    return lambda function: then(first(function))


def kill_this_process(*_: object, **__: object) -> None:
    """Die as from ``kill -9``: what a worker process calls in the place of a unit."""
    os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))


def _name(unit: str | Handle) -> str:
    return unit.id if isinstance(unit, Handle) else unit


def _declared(unit: str | Handle, units: Mapping[str, Unit]) -> str | Handle:
    """Return the map of a child such as ``map[3]``, else the unit as it is."""
    name, bracket, index = _name(unit).rpartition("[")
    is_child = bracket and index.endswith("]") and index[:-1].isdecimal() and name in units
    if is_child and _name(unit) not in units and isinstance(units[name].options.shape, Mapped):
        return name
    return unit


def _checked_attempts(kind: str, unit: str, attempts: Any) -> frozenset[int]:
    try:
        listed = frozenset(attempts)
    except TypeError:
        raise PlanError(
            f"faults.{kind}({unit!r}): attempts must be a list of numbers; write "
            f"attempts=[{attempts!r}]"
        ) from None
    for attempt in listed:
        if isinstance(attempt, bool) or not isinstance(attempt, int) or attempt < 1:
            raise PlanError(
                f"faults.{kind}({unit!r}): attempts are counted from 1, and {attempt!r} is none"
            )
    return listed


def _checked_error(error: Any) -> Any:
    if isinstance(error, type) and issubclass(error, BaseException):
        try:
            error()
        except TypeError as refused:
            raise PlanError(
                f"faults.fail: {error.__name__} cannot be made without arguments ({refused}): "
                "give an instance, or a function of the context that makes one"
            ) from None
    elif not isinstance(error, BaseException) and not callable(error):
        raise PlanError(
            f"faults.fail: error must be an exception, or a function that makes one, not {error!r}"
        )
    return error


def _error_of(fault: _Fault, ctx: ExecutionContext[Any]) -> BaseException:
    error = fault.error
    if error is InjectedError:
        return InjectedError(f"unit {ctx.unit_id!r} was told to fail in attempt {ctx.attempt}")
    if isinstance(error, BaseException):
        return error
    made = error() if isinstance(error, type) else error(ctx)
    if not isinstance(made, BaseException):
        return TypeError(f"{fault}: the function must return an exception, not {made!r}")
    return made
