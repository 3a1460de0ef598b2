"""What a run on a cluster is checked for, and how its parts are put together."""

import json
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from quantum_async.core.errors import PlanError, did_you_mean
from quantum_async.core.plan import ExecutionPlan, Unit
from quantum_async.core.shapes import Mapped
from quantum_async.engine.attempt import Work
from quantum_async.engine.executors.cluster import RemoteExecutor, RemoteWarning
from quantum_async.engine.executors.early import Run
from quantum_async.engine.executors.remote import RemotePlace
from quantum_async.engine.ledger import Ledger
from quantum_async.engine.placement import REMOTE, Placement
from quantum_async.engine.view import View
from quantum_async.request import RunRequest

_NAMED = 3  # units in a warning


def no_cluster(plan: ExecutionPlan, units: Collection[int]) -> PlanError:
    """Return why units cannot run: there is no cluster."""
    names = ", ".join(repr(plan.names[unit]) for unit in list(units)[:_NAMED])
    more = f" and {len(units) - _NAMED} more" if len(units) > _NAMED else ""
    return PlanError(
        f"{'unit' if len(units) == 1 else 'units'} {names}{more} in mode 'remote', and the run has "
        "no cluster: give run(executor=DaskExecutor(…)) from quantum_async.executors.dask, or "
        "Runtime(executor=…), or run without a cluster in mode='process'"
    )


def problems_on(
    executor: RemoteExecutor, units: Collection[Unit], limits: Collection[str]
) -> Iterator[PlanError]:
    """Yield why units cannot run on a cluster; warn of what they ask of it that it cannot do."""
    known = executor.resources()
    for unit in units:
        if unit.is_async and not executor.can.runs_coroutines:
            yield PlanError(
                f"unit {unit.id!r} is a coroutine function, and {executor.name} runs none: make it "
                "a plain function, or let it run on the loop"
            )
        uses = unit.options.uses
        for name, _ in () if callable(uses) else uses:
            if name not in limits and known is not None and name not in known:
                has = ", ".join(map(repr, sorted(known))) or "none"
                yield PlanError(
                    f"unit {unit.id!r} uses {name!r}, which is no limit of the run and no resource "
                    f"of the {executor.name} cluster (it has: {has})"
                    f"{did_you_mean(name, [*known, *limits])}; it would wait for ever"
                )
    _warn(executor, units)


def _warn(executor: RemoteExecutor, units: Collection[Unit]) -> None:
    can = executor.can
    timed = [u.id for u in units if u.options.timeout is not None or u.options.grace]
    if timed and not can.interrupts_running:
        warnings.warn(
            f"{executor.name} cannot stop a function that runs: when the timeout of "
            f"{_listed(timed)} passes, its unit ends, and the function runs on and keeps its slot",
            RemoteWarning,
            stacklevel=2,
        )
    most = can.max_payload
    large = [u.id for u in units if most and (u.options.max_result_bytes or 0) > most]
    if large:
        warnings.warn(
            f"{executor.name} takes at most {most} bytes at once, and max_result_bytes of "
            f"{_listed(large)} allows more",
            RemoteWarning,
            stacklevel=2,
        )


def _listed(names: list[str]) -> str:
    listed = ", ".join(map(repr, names[:_NAMED]))
    return f"{listed} and {len(names) - _NAMED} more" if len(names) > _NAMED else listed


def connected(
    executors: Mapping[str, Any],
    plan: ExecutionPlan,
    request: RunRequest,
    placement: Placement,
    ledger: Ledger,
    view: View,
    keep: Collection[int],
) -> Callable[[Work, int], Work]:
    """Tell the cluster's side of the engine of a run; return what brings home what units read.

    Args:
        executors: What runs units, by place.
        plan: The plan.
        request: What is asked for.
        placement: Where its units run.
        ledger: The run's.
        view: The run's; what its units see is fetched first, of those that run here.
        keep: Units that are asked for by name.
    """
    place: RemotePlace = executors[REMOTE]
    scheduler = ledger.scheduler
    units = placement.units_in(REMOTE, plan.unit_count)
    there = frozenset(lane for lane, place in enumerate(placement.places) if place == REMOTE)
    view.runs_here = lambda unit: scheduler.lanes[unit] not in there
    remote = frozenset(units)
    must = frozenset(u for u in units if _is_looked_at(plan, u, request.around))
    read_here = frozenset(
        u for u in units if any(below not in remote for below in plan.edges_down[u])
    )
    limits = () if request.budget is None else request.budget.limits
    wanted = frozenset(plan.sinks) | frozenset(keep)
    return place.connect(
        Run(plan, scheduler, ledger, view, remote, placement.local, must, wanted, read_here, limits)
    )


def _is_looked_at(plan: ExecutionPlan, unit: int, around: Callable[[Unit], Any] | None) -> bool:
    """Return whether the engine, or what is around it, looks at a unit's result by itself."""
    handle = plan.handles[unit]
    options = handle.options
    decides = options.retry is not None and not options.retries  # on the result, perhaps
    if decides or (around is not None and around(handle) is not None):
        return True
    if unit in plan.streams or isinstance(options.shape, Mapped):
        return True
    below = [plan.handles[one] for one in plan.edges_down[unit]]
    return any(
        one.options.special
        or one.options.shape is not None
        or callable(one.options.fallback)
        or (around is not None and around(one) is not None)
        for one in below
    )


def place_on(
    executor: RemoteExecutor,
    request: RunRequest,
    run_id: str,
    complain: Callable[[str, BaseException | None], object],
) -> RemotePlace:
    """Return what runs units on a cluster, for one run."""
    from quantum_async.engine.executors.carry import Carrier
    from quantum_async.engine.executors.remote import Terms
    from quantum_async.observe import otel
    from quantum_async.observe.relay import relay, wanted

    def hear(job: Any, record: Any) -> None:
        relay(record, run=run_id, unit=job.unit, attempt=job.attempt)

    traces = [(otel.ATTACH, otel.headers)]
    carrier = Carrier(request.workers.contextvars, traces, complain)
    return RemotePlace(executor, Terms(run_id, carrier, hear, json.dumps(wanted())))
