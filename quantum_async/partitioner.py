"""`QuantumPartitioner`: declare units, plan them, run them. The one place where the rooms meet."""

import asyncio
import math
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from contextvars import ContextVar
from dataclasses import replace
from typing import Any

from quantum_async.core.checks import check_number
from quantum_async.core.context import Around
from quantum_async.core.errors import PlanError
from quantum_async.core.limits import Budget, Limit, checked_limits
from quantum_async.core.plan import Unit
from quantum_async.core.states import ExecutionMode, FailurePolicy, Strategy, parse
from quantum_async.core.unit import QuantumUnit, R, T
from quantum_async.engine.bus import Observer
from quantum_async.engine.executors.cluster import RemoteExecutor
from quantum_async.engine.executors.limits import WorkerLimits
from quantum_async.engine.setup import Outer
from quantum_async.listening import Listening
from quantum_async.observe.hooks import hooks
from quantum_async.observe.log import LogObserver
from quantum_async.request import (
    Intervention,
    Names,
    RunRequest,
    check_limits,
    checked_executor,
    checked_flag,
    checked_interventions,
    checked_observers,
    or_else,
)
from quantum_async.result import RunResult
from quantum_async.runtime import Runtime, current_runtime
from quantum_async.verdict import failed, first_error, out_of_time


class QuantumPartitioner(Listening[T, R]):
    """Units of work with dependencies, and the runs of them.

    A partitioner is a definition: each run has a state of its own, so one partitioner serves any
    number of runs at once.

    Args:
        max_workers: How many units run at once in a run. Without it: coroutines unlimited,
            threads ``min(32, cpus + 4)``, worker processes as many as there are usable CPUs.
        default_execution_mode: Where units run that do not say it themselves.
        strategy: How the ready queue is ordered.
        failure_policy: What one unit's failure means for the others.
        limits: `Limit`s by name, or numbers, which are concurrencies; units say with ``uses=`` what
            they need of them. They hold for all runs of this partitioner in an event loop.
        observers: Callables that take every event of every run.
        name: What runs are called in logs.
        max_uses: After so many units a worker process makes room for a new one.
        max_memory: It does too when it holds more than so many bytes after a unit.
        max_result_bytes: The most bytes that the result of a unit may have on its way from a
            worker process; `add_unit` may say it for one.
        batch: Whether units that are shorter than the trip to a worker process may be sent
            several at a time.
        contextvars: Context variables (or ``"module:name"``) whose values travel to worker
            processes, where the module that has them can be imported.

    Raises:
        PlanError: For any value that could not be meant.

    Example:
        >>> flow = QuantumPartitioner()
        >>> @flow.unit
        ... async def numbers(ctx):
        ...     return list(range(ctx["count"]))
        >>> @flow.unit
        ... def total(numbers):
        ...     return sum(numbers)
        >>> flow.execute({"count": 5})["total"]
        10
    """

    #: Called with a unit's name when its first attempt starts.
    on_unit_start: Callable[[str], object] | None = None
    #: Called with a unit's name and result when it has completed.
    on_unit_complete: Callable[[str, Any], object] | None = None
    #: Called with a unit's name and exception when it has failed or timed out for good.
    on_unit_error: Callable[[str, BaseException], object] | None = None

    def __init__(
        self,
        max_workers: int | None = None,
        default_execution_mode: ExecutionMode | str = ExecutionMode.AUTO,
        *,
        strategy: Strategy | str = Strategy.CRITICAL_PATH,
        failure_policy: FailurePolicy | str = FailurePolicy.CONTINUE,
        limits: Mapping[str, Limit | float] | None = None,
        observers: Iterable[Observer] = (),
        name: str | None = None,
        max_uses: int | None = None,
        max_memory: int | None = None,
        max_result_bytes: int | None = None,
        batch: bool = True,
        contextvars: Sequence["ContextVar[Any] | str"] = (),
    ) -> None:
        check_limits(max_workers, None)
        super().__init__(
            parse(ExecutionMode, default_execution_mode, "mode"),
            parse(Strategy, strategy, "strategy"),
        )
        self.max_workers = max_workers
        self.limits = checked_limits(limits)
        self._budget: Budget | None = None
        self._budget_loop: asyncio.AbstractEventLoop | None = None
        self.failure_policy = parse(FailurePolicy, failure_policy, "failure_policy")
        self.observers: list[Observer] = checked_observers(observers)
        self.name = name or type(self).__name__
        self._workers = WorkerLimits.checked(
            max_uses, max_memory, max_result_bytes, batch, contextvars
        )

    # -- running ----------------------------------------------------------------------------

    async def run(
        self,
        context: Any = None,
        *,
        mode: ExecutionMode | str | None = None,
        max_workers: int | None = None,
        custom_executor: Any = None,
        executor: RemoteExecutor | None = None,
        strategy: Strategy | str | None = None,
        failure_policy: FailurePolicy | str | None = None,
        timeout: float | None = None,
        targets: "Names | str | QuantumUnit[Any, Any] | None" = None,
        overrides: Mapping[Any, Any] | None = None,
        resume_from: "RunResult | Mapping[Any, Any] | None" = None,
        keep: "Names | str | QuantumUnit[Any, Any]" = "all",
        observers: Iterable[Observer] = (),
        run_id: str | None = None,
        priority: float = 0,
        dry_run: bool = False,
        faults: Intervention | None = None,
    ) -> RunResult:
        """Run the units; each starts the moment its last dependency has ended.

        Args:
            context: The run's input, of any type; the keys of a mapping are seen in the units'
                contexts.
            mode: Where units run that do not say it themselves.
            max_workers: How many units run at once.
            custom_executor: A ``concurrent.futures.Executor``, for units in mode "custom".
            executor: A cluster, as `quantum_async.executors.dask.DaskExecutor`, for units in mode
                "remote" or "process"; by default that of the `Runtime`.
            strategy: How the ready queue is ordered.
            failure_policy: What one unit's failure means for the others.
            timeout: Seconds that the run may take.
            targets: Units that are asked for: only they and what they need will run.
            overrides: Results by unit, taken instead of running it.
            resume_from: An earlier `RunResult` (or results by unit): what completed there does
                not run again.
            keep: Whose results stay to the end: ``"all"``, ``"targets"`` (without targets: the
                units that nothing depends on), or names. Others go when their last dependent has
                ended.
            observers: Callables that take every event of this run.
            run_id: What the run is called; by default a random name.
            priority: Larger goes before other runs with which this one shares slots or limits.
            dry_run: Whether side effects (`ctx.perform`) are taken down and not performed.
            faults: `quantum_async.testing.Faults` that units of this run meet.

        Returns:
            The result.

        Raises:
            PlanError: If anything is refused; nothing has run then.
            ClusterError: If the cluster cannot be reached, or does not fit; nothing has run then.
            ExecutionError: If units failed, unless the policy is COLLECT.
            RunTimeoutError: If the run's time was up.
            Overloaded: If the `Runtime` that it would be in is full.
        """
        request = self._request(
            context,
            mode=mode,
            max_workers=max_workers,
            custom_executor=custom_executor,
            executor=executor,
            strategy=strategy,
            failure_policy=failure_policy,
            timeout=timeout,
            targets=targets,
            overrides=overrides,
            resume_from=resume_from,
            keep=keep,
            observers=observers,
            run_id=run_id,
            priority=priority,
            dry_run=dry_run,
            faults=faults,
        )
        return await self._run(request)

    def _started(self, context: Any, options: dict[str, Any]) -> Coroutine[Any, Any, RunResult]:
        return self.run(context, **options)

    def _requested(self, context: Any, options: dict[str, Any]) -> RunRequest:
        return self._request(context, **options)

    def _request(
        self,
        context: Any,
        *,
        mode: ExecutionMode | str | None = None,
        max_workers: int | None = None,
        custom_executor: Any = None,
        executor: RemoteExecutor | None = None,
        strategy: Strategy | str | None = None,
        failure_policy: FailurePolicy | str | None = None,
        timeout: float | None = None,
        targets: Any = None,
        overrides: Mapping[Any, Any] | None = None,
        resume_from: Any = None,
        keep: Any = "all",
        observers: Iterable[Observer] = (),
        run_id: str | None = None,
        priority: float = 0,
        dry_run: bool = False,
        faults: Intervention | None = None,
    ) -> RunRequest:
        check_limits(max_workers, timeout)
        check_number("", "priority", priority, least=-math.inf)
        listeners: list[Observer] = [*self.observers, *checked_observers(observers)]
        listeners += hooks(self.on_unit_start, self.on_unit_complete, self.on_unit_error)
        log = LogObserver()
        if log.event_types:
            listeners.append(log)
        return RunRequest(
            input=context,
            mode=parse(ExecutionMode, or_else(mode, self.default_execution_mode), "mode"),
            max_workers=max_workers or self.max_workers,
            custom_executor=custom_executor,
            executor=checked_executor(executor),
            strategy=parse(Strategy, or_else(strategy, self.strategy), "strategy"),
            failure_policy=parse(
                FailurePolicy, or_else(failure_policy, self.failure_policy), "failure_policy"
            ),
            timeout=timeout,
            targets=targets,
            overrides=overrides,
            resume_from=resume_from,
            keep=keep,
            observers=listeners,
            run_id=run_id,
            partitioner=self.name,
            around=self._around(),
            workers=self._workers,
            priority=priority,
            dry_run=checked_flag("dry_run", dry_run),
            interventions=checked_interventions(faults),
        )

    def _around(self) -> Callable[[Unit], Around | None] | None:
        """Give what is wrapped around units' attempts; for partitioners built on this one."""
        return None

    async def _run(
        self, request: RunRequest, keep: Callable[[RunResult], None] | None = None
    ) -> RunResult:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            raise RuntimeError(
                "quantum_async runs on asyncio, and no asyncio loop is running here; trio is not "
                "supported"
            ) from None
        runtime = current_runtime()
        own = self._own_budget()
        if request.outer is not None:
            if own is not None:
                # As with a runtime, the limits of the run around this one go before its own.
                around = request.budget
                both = own if around is None else own.with_shared(around)
                request = replace(request, budget=both)
            return await self._launch(request, keep, None)
        if runtime is None:
            if own is not None:
                request = replace(request, budget=own, shares=True)
            return await self._launch(request, keep, None)
        await runtime.admit(request.priority)
        try:
            request = replace(
                request,
                budget=runtime.budget_with(own),
                slots=runtime.slots,
                shares=True,
                observers=[*request.observers, *runtime.observers],
                executor=request.executor or runtime.executor,
            )
            return await self._launch(request, keep, runtime)
        finally:
            runtime.leave()

    async def _launch(
        self,
        request: RunRequest,
        keep: Callable[[RunResult], None] | None,
        runtime: Runtime | None,
    ) -> RunResult:
        from quantum_async.launch import launch, runs_remotely

        plan = self._plan
        if plan is None:
            plan = self._planned({} if request.budget is None else request.budget.limits)
        for intervention in request.interventions:
            request = intervention.amend(self, plan, request)
        executor = request.executor
        is_remote = executor is not None and runs_remotely(plan, request)
        if executor is not None and is_remote:
            await executor.attach()
        try:
            engine = await launch(plan, request, _run_inside)
        except BaseException:
            if executor is not None and is_remote:
                await executor.detach()
            raise
        result = RunResult(engine.ledger, engine.timers.pauses)
        if runtime is not None:
            runtime.add(engine)
        if request.outer is not None:
            request.outer.began(engine)
        if request.watch is not None:
            from quantum_async.live import LiveRun

            request.watch(LiveRun(engine))
        try:
            await engine.run()
        finally:
            if request.outer is None:
                self.last_result = result
            if keep is not None:
                keep(result)
            if runtime is not None:
                runtime.remove(engine)
        if engine.timed_out:
            raise out_of_time(result, request.timeout or 0.0)
        if request.failure_policy is not FailurePolicy.COLLECT and not result.ok:
            raise failed(result) from first_error(result)
        return result

    def _own_budget(self) -> Budget | None:
        """Return the state of the limits, of all runs in this loop; rates go on in later loops."""
        if not self.limits:
            return None
        loop = asyncio.get_running_loop()
        if self._budget_loop is not loop:
            before = self._budget_loop
            if self._budget is None or before is None or not _same_time(before, loop):
                self._budget = Budget(self.limits, loop.time)
            self._budget.clock = loop.time
            self._budget_loop = loop
        return self._budget

    def _known_limits(self) -> Mapping[str, Limit]:
        runtime = current_runtime()
        return self.limits if runtime is None else self.limits | runtime.limits

    async def warm(self, workers: int | None = None) -> None:
        """Start worker processes ahead of the first run that needs them.

        They wait, for runs of any partitioner in this event loop, and end with the loop.

        Args:
            workers: How many; by default as many as a run of this partitioner may use.

        Raises:
            PlanError: If that is no whole number from 1 up.
            WorkerCrashedError: If none can be started.
        """
        from quantum_async.engine.executors.crew import warm
        from quantum_async.tuning import usable_cpus

        check_limits(workers, None)
        cpus = usable_cpus()
        await warm(workers or min(cpus, self.max_workers or cpus))

    def override(self, doubles: Mapping[Any, Any]) -> AbstractContextManager[Any]:
        """Have doubles take the place of units, in the runs that start inside the ``with`` block.

        For tests of code that calls `run` by itself. Only this task and those that it starts see
        the doubles. Blocks can be nested; the inner one decides. A double goes before what
        ``run(overrides=…)`` says of the same unit.

        Args:
            doubles: By unit, a function that is called in place of the unit's own, or else the
                unit's result. For a result that can be called, `quantum_async.testing.value`.

        Raises:
            PlanError: If there is no such unit, or a function cannot take the unit's arguments.
        """
        from quantum_async.testing.doubles import Override

        return Override(self, doubles)

    def __repr__(self) -> str:
        last = "not run yet" if self.last_result is None else repr(self.last_result)
        return f"<{self.name}: {len(self.units)} units; {last}>"


async def _run_inside(flow: Any, input: Any, options: dict[str, Any], outer: Outer) -> RunResult:  # noqa: A002
    """Run a partitioner inside a run, with what is that one's."""
    if not isinstance(flow, QuantumPartitioner):
        raise PlanError(f"ctx.run() takes a partitioner, not {flow!r}")
    refused = {"observers", "run_id", "priority", "faults"} & options.keys()
    if refused:
        raise PlanError(f"ctx.run() has no option {min(refused)!r}: it is the outer run's")
    request = flow._request(input, **options)
    request = replace(
        request,
        max_workers=options.get("max_workers"),
        observers=(),
        outer=outer,
        executor=request.executor or outer.executor,
        slots=outer.slots,
        budget=outer.budget,
        shares=True,
        priority=outer.priority,
        interventions=tuple(one for one in request.interventions if one.goes_inside),
    )
    return await flow._run(request, outer.keep)


def _same_time(before: asyncio.AbstractEventLoop, now: asyncio.AbstractEventLoop) -> bool:
    """Whether a loop has ended, and this one's clock goes on where it was: not a virtual one."""
    virtual = hasattr(before, "outside_work") or hasattr(now, "outside_work")
    return before.is_closed() and not virtual
