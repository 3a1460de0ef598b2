"""From a plan and a request to an engine that is ready to run; bad input is refused on the way.

This is where the engine is put together. It is loaded by the first run, not by ``import
quantum_async``: that keeps the import cheap.
"""

import asyncio
import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from quantum_async.core.effects import EffectLog
from quantum_async.core.errors import (
    PlanError,
)
from quantum_async.core.limits import Gauge, Needs
from quantum_async.core.plan import ExecutionPlan
from quantum_async.core.ranking import Ranking, ranking_of
from quantum_async.core.scheduler import Scheduler
from quantum_async.core.states import ExecutionMode, Strategy
from quantum_async.core.triggers import Triggers
from quantum_async.engine.attempt import Work, inline, on_loop, settled
from quantum_async.engine.bus import Bus
from quantum_async.engine.engine import Engine
from quantum_async.engine.executors import Executor, Job
from quantum_async.engine.executors.carry import Carrier
from quantum_async.engine.executors.thread import ThreadExecutor
from quantum_async.engine.ledger import Ledger
from quantum_async.engine.placement import (
    CUSTOM,
    INLINE,
    INTERPRETER,
    LOOP,
    PROCESS,
    REMOTE,
    THREAD,
    Placement,
    Slots,
    place_units,
    slots_of,
)
from quantum_async.engine.rows import Rows
from quantum_async.engine.setup import Companion, Nest, Setup
from quantum_async.engine.view import View
from quantum_async.inputs import input_problems
from quantum_async.observe.log import complain, context_binder
from quantum_async.request import RunRequest
from quantum_async.scope import Scope, beyond_limits, scope_of
from quantum_async.tuning import machine_load, usable_cpus

_MANY = 100_000  # units; to make the columns of more takes milliseconds


async def launch(plan: ExecutionPlan, request: RunRequest, nest: Nest) -> Engine:
    """Check a request against a plan, and return the engine that will run it.

    Nothing is waited for; with very many units the loop turns once on the way.

    Args:
        plan: The plan.
        request: What a call of `run` asks for.
        nest: Runs a partitioner inside the run.

    Raises:
        PlanError: With every problem found; nothing has been started then.
    """
    problems: list[PlanError] = []
    scope = scope_of(plan, request, problems)
    placement = _placed(plan, request)
    problems += input_problems(plan, request.input, scope.given.keys() | set(scope.outside))
    problems += beyond_limits(plan, request, scope)
    if problems:
        raise PlanError.of(problems)
    outer = request.outer
    run_id = outer.run_id if outer else request.run_id or os.urandom(6).hex()
    executors, companions = _executors(plan, request, placement, scope, run_id)
    slots, mine = _slots(request, executors)
    scheduler = _scheduler(plan, request, placement, scope, slots, mine)
    if plan.unit_count > _MANY:
        await asyncio.sleep(0)
    sequential = request.mode is ExecutionMode.SEQUENTIAL
    if request.strategy is Strategy.ADAPTIVE and not sequential:
        from quantum_async.engine.adaptive import Governor

        cpus = usable_cpus()
        companions.append(Governor(scheduler, cpus, request.max_workers, machine_load))
    # A loop on virtual time wants to know what works elsewhere; then durations are virtual too.
    loop = asyncio.get_running_loop()
    outside_work: OutsideWork | None = getattr(loop, "outside_work", None)
    clock = time.perf_counter if outside_work is None else loop.time
    rows, where = Rows(plan), list(placement.places)
    ledger = Ledger(plan, scheduler, run_id, time.time(), clock(), where, rows)
    ledger.environment = _environment(request, run_id)
    ledger.give(scope.given)
    ledger.effects = _effects(request, clock, ledger)
    view = _view(plan, request, ledger)
    if PROCESS in executors and request.workers.batches and request.around is None:
        _send_ahead(executors[PROCESS], plan, scheduler, view, placement, ledger)
    arriving = None
    if REMOTE in executors:
        from quantum_async.clusters import connected

        arriving = connected(executors, plan, request, placement, ledger, view, scope.wanted)
    bus = Bus(request.observers, run_id, clock, complain) if outer is None else outer.bus
    bus.introduce(plan)
    setup = Setup(
        plan=plan,
        scheduler=scheduler,
        ledger=ledger,
        view=view,
        rows=rows,
        bus=bus,
        places=_works(placement, executors, outside_work),
        clock=clock,
        policy=request.failure_policy,
        complain=complain,
        timeout=request.timeout,
        keep=scope.keep,
        around=request.around,
        bind=context_binder(run_id),
        companions=companions,
        slots=slots,
        budget=request.budget,
        shares=request.shares,
        wanted=scope.wanted,
        nest=nest,
        ends_at=math.inf if outer is None else outer.ends_at,
        priority=request.priority,
        executor=request.executor,
        arriving=arriving,
    )
    return Engine(setup)


def _view(plan: ExecutionPlan, request: RunRequest, ledger: Ledger) -> View:
    return View(
        plan,
        ledger.rows,
        ledger.results,
        input=request.input,
        metrics=ledger.metrics,
        effects=ledger.effects,
        environment=ledger.environment,
        run_id=ledger.run_id,
    )


def _placed(plan: ExecutionPlan, request: RunRequest) -> Placement:
    has_cluster = request.executor is not None
    return place_units(plan, request.mode, request.strategy, remote=has_cluster)


def runs_remotely(plan: ExecutionPlan, request: RunRequest) -> bool:
    """Return whether any unit of a plan runs on a cluster, as it is requested."""
    return REMOTE in _placed(plan, request).places


def _effects(request: RunRequest, clock: Callable[[], float], ledger: Ledger) -> EffectLog:
    """Return where effects are taken down; a run inside a dry one is dry."""
    outer = request.outer
    since = ledger.wall - ledger.began

    def wall() -> float:
        return since + clock()

    if outer is None:
        return EffectLog(request.dry_run, wall)
    return EffectLog(request.dry_run or outer.effects.dry, wall, outer.effects, outer.prefix)


def _scheduler(
    plan: ExecutionPlan,
    request: RunRequest,
    placement: Placement,
    scope: Scope,
    slots: Slots,
    mine: tuple[Gauge, ...],
) -> Scheduler:
    triggers = None if plan.trigger_codes is None else Triggers(plan.trigger_codes)
    scheduler = Scheduler(
        plan,
        _ranking(plan, request),
        lanes=placement.lanes,
        slots=[None] * len(placement.places),
        given=scope.given,
        outside=scope.outside,
        gauges=[(*mine, *slots.of(place)) for place in placement.places],
        needs=_limited_needs(placement, request),
        budget=request.budget,
        special=plan.special,
        triggers=triggers,
        streams=plan.streams,
    )
    scheduler.total = mine[0] if mine else slots.total
    return scheduler


def _limited_needs(placement: Placement, request: RunRequest) -> Sequence[Needs]:
    """Return what the units of each lane use of limits; what else they use is the cluster's."""
    if REMOTE not in placement.places:
        return placement.needs
    limits = () if request.budget is None else request.budget.limits
    return [tuple(need for need in needs if need[0] in limits) for needs in placement.needs]


def _slots(
    request: RunRequest, executors: Mapping[str, Executor]
) -> tuple[Slots, tuple[Gauge, ...]]:
    """Return the slots that a run shares, and those that are its own beside them."""
    sequential = request.mode is ExecutionMode.SEQUENTIAL
    most = 1 if sequential else request.max_workers
    shared = request.slots
    if shared is not None:
        return shared, () if most is None else (Gauge(most),)
    custom_slots = getattr(executors.get(CUSTOM), "slots", None)
    balanced = request.strategy is Strategy.RESOURCE_BALANCED
    own = partial(
        slots_of,
        max_workers=request.max_workers,
        custom_slots=custom_slots,
        balanced=balanced and {PROCESS, THREAD} <= executors.keys(),
    )
    return Slots(most, lambda: own(cpus=usable_cpus())), ()


def _send_ahead(
    pool: Any,
    plan: ExecutionPlan,
    scheduler: Scheduler,
    view: View,
    placement: Placement,
    ledger: Ledger,
) -> None:
    """Let short units go to the workers together; not those that wait for limits."""
    lane = placement.places.index(PROCESS)
    if placement.places.count(PROCESS) == 1 and not placement.needs[lane]:
        pool.send_ahead(plan, scheduler, view, lane, ledger.attempts)


def _ranking(plan: ExecutionPlan, request: RunRequest) -> Ranking | None:
    if request.mode is ExecutionMode.SEQUENTIAL:
        return plan.sequence
    if request.order is not None:
        return ranking_of(request.order, plan.edges_up)
    return plan.ranking(request.strategy)


def _environment(request: RunRequest, run_id: str) -> Mapping[str, Any]:
    return {
        "partitioner": request.partitioner,
        "run_id": run_id,
        "mode": request.mode.value,
        "strategy": request.strategy.value,
        "max_workers": request.max_workers,
    }


# -- where units run ------------------------------------------------------------------------------


def _executors(
    plan: ExecutionPlan, request: RunRequest, placement: Placement, scope: Scope, run_id: str
) -> tuple[dict[str, Executor], list[Companion]]:
    executors: dict[str, Executor] = {}
    companions: list[Companion] = []
    settled_before = scope.given.keys() | set(scope.outside)

    def units_in(place: str) -> list[int]:
        units = placement.units_in(place, plan.unit_count)
        return [unit for unit in units if unit not in settled_before]

    if THREAD in placement.places:
        executors[THREAD] = ThreadExecutor()
    if units_in(CUSTOM):
        from quantum_async.engine.executors.futures import FuturesExecutor

        executors[CUSTOM] = FuturesExecutor(request.custom_executor)
    if INTERPRETER in placement.places:
        from quantum_async.engine.executors.interpreter import InterpreterExecutor, refusal

        refusals = [refusal(plan.handles[unit]) for unit in units_in(INTERPRETER)]
        if any(refusals):
            raise PlanError.of([one for one in refusals if one is not None])
        executors[INTERPRETER] = InterpreterExecutor()
    if REMOTE in placement.places:
        from quantum_async import clusters
        from quantum_async.engine.executors.packing import unsendable

        there = units_in(REMOTE)
        if request.executor is None:
            raise clusters.no_cluster(plan, there)
        handles = [plan.handles[unit] for unit in there]
        limits = () if request.budget is None else request.budget.limits
        problems = list(clusters.problems_on(request.executor, handles, limits))
        unknown = [unit for unit in there if unit not in plan.sendable]
        problems += unsendable(plan.handles[unit] for unit in unknown)
        if problems:
            raise PlanError.of(problems)
        plan.sendable.update(unknown)
        executors[REMOTE] = place = clusters.place_on(request.executor, request, run_id, complain)
        companions.append(place)
    cpu_bound = units_in(PROCESS)
    if cpu_bound and not hasattr(os, "mkfifo"):
        raise PlanError(
            f"unit {plan.names[cpu_bound[0]]!r} is to run in a worker process, and these need "
            "Linux or macOS; run it with mode='thread', or with mode='custom' and a "
            "ProcessPoolExecutor"
        )
    if cpu_bound:
        # Only now: a run without CPU-bound units does not pay for what runs them.
        from quantum_async.engine.executors.packing import unsendable
        from quantum_async.engine.executors.process import Listener, ProcessExecutor, Terms
        from quantum_async.engine.executors.shares import Shares
        from quantum_async.observe import otel
        from quantum_async.observe.relay import wanted

        unknown = [unit for unit in cpu_bound if unit not in plan.sendable]
        problems = unsendable(plan.handles[unit] for unit in unknown)
        if problems:
            raise PlanError.of(problems)
        plan.sendable.update(unknown)
        most = min(usable_cpus(), request.max_workers or len(cpu_bound))
        listener = Listener(json.dumps(wanted()), partial(_relay, run_id))
        traces = [(otel.ATTACH, otel.headers)]
        carrier = Carrier(request.workers.contextvars, traces, complain)
        terms = Terms(listener, request.workers, carrier, Shares(request.input))
        executors[PROCESS] = pool = ProcessExecutor(min(most, len(cpu_bound)), terms)
        companions.append(pool)
    return executors, companions


def _relay(run_id: str, job: Job, record: Any) -> None:
    """Write in our log what a unit printed or logged in a worker process."""
    from quantum_async.observe.relay import relay

    relay(record, run=run_id, unit=job.unit, attempt=job.attempt)


# Holds a virtual clock back, until `end` of what it returns is called from any thread.
OutsideWork = Callable[[str], Any]


def _work(place: str, executors: Mapping[str, Executor], outside_work: OutsideWork | None) -> Work:
    if place == LOOP:
        return on_loop
    if place == INLINE:
        return inline
    executor = executors.get(place)
    run = None if executor is None else executor.run
    if run is not None and outside_work is not None:
        run = partial(_held, run, outside_work)

    async def elsewhere(job: Job) -> Any:
        assert run is not None  # a place without units in the run is not asked
        return await settled(await run(job))

    return elsewhere


def _works(
    placement: Placement, executors: Mapping[str, Executor], outside_work: OutsideWork | None
) -> list[Work]:
    """Return what runs the units of each lane."""
    works = [_work(place, executors, outside_work) for place in placement.places]
    for lane in placement.local:
        if works[lane] is on_loop:
            works[lane] = partial(on_loop)  # for itself, attempts have a shorter way
    return works


async def _held(run: Work, outside_work: OutsideWork, job: Job) -> Any:
    """Run a job while virtual time stands still, until its work has ended: it may outlive it."""
    work, returned = outside_work(f"unit {job.unit!r}"), job.returned

    def over(job: Job) -> None:
        returned(job)
        work.end()

    job.returned = over
    try:
        return await run(job)
    finally:
        if not job.late:
            work.end()
