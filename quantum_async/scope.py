"""What a run is about: which units it runs, and which results it is given."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from quantum_async.core import graph
from quantum_async.core.binding import Handle
from quantum_async.core.errors import (
    PlanError,
)
from quantum_async.core.limits import unmet
from quantum_async.core.plan import ExecutionPlan
from quantum_async.core.record import NOTHING, Elsewhere, SavedValue
from quantum_async.engine.placement import REMOTE, place_of
from quantum_async.request import Names, RunRequest
from quantum_async.result import RunResult


@dataclass(frozen=True, slots=True)
class Scope:
    """Which units a run is about.

    Attributes:
        given: Results that are known before the run, by unit number.
        outside: Units that are not part of the run.
        keep: Units whose results are kept; None for all.
        wanted: Units that were asked for by name.
    """

    given: Mapping[int, Any]
    outside: Collection[int]
    keep: frozenset[int] | None
    wanted: frozenset[int]


def scope_of(plan: ExecutionPlan, request: RunRequest, problems: list[PlanError]) -> Scope:
    """Return which units a run is about; names that there are not are added to `problems`."""
    given = _known(plan, request.resume_from, "resume_from", problems, request)
    given |= _known(plan, request.overrides, "overrides", problems, request)
    targets: Iterable[int] = ()
    if request.targets is not None:
        targets = _numbers(plan, request.targets, "targets", problems)
    elif given or request.keep == "targets":
        targets = plan.sinks
    outside: Collection[int] = ()
    if given or request.targets is not None:
        # What only leads to results that are known already is not needed again.
        needed = graph.ancestors(plan.edges_up, targets, given) | given.keys()
        outside = [unit for unit in range(plan.unit_count) if unit not in needed]
    keep = None
    if request.keep != "all":
        kept = targets
        if request.keep != "targets":
            kept = _numbers(plan, request.keep, "keep", problems)
        keep = frozenset(kept)
    wanted = frozenset() if request.targets is None else frozenset(targets)
    return Scope(given, outside, keep, wanted | (keep or frozenset()))


def _known(
    plan: ExecutionPlan, results: Any, what: str, problems: list[PlanError], request: RunRequest
) -> dict[int, Any]:
    """Return the results, by unit number, that need not be computed."""
    if results is None:
        return {}
    if isinstance(results, RunResult):
        # Units that are gone from the plan since then are no mistake; a loaded result does not have
        # what JSON could not hold, and those units run again.
        found = {plan.index[name]: results._stored(name) for name in results if name in plan.index}
        known = {unit: _known_here(plan, unit, it, request) for unit, it in found.items()}
        return {unit: it for unit, it in known.items() if it is not NOTHING}
    if not isinstance(results, Mapping):
        kinds = "a RunResult or a mapping" if what == "resume_from" else "a mapping"
        problems.append(
            PlanError(f"{what} must be {kinds} of unit name to result, not {results!r}")
        )
        return {}
    found = {}
    for unit, value in results.items():
        # By a name that is known, as nearly all are, at once: there may be very many.
        number = plan.index.get(unit) if type(unit) is str else None
        if number is not None:
            found[number] = value
            continue
        for number in _numbers(plan, [unit], what, problems):
            found[number] = value
    return found


def _known_here(plan: ExecutionPlan, unit: int, value: Any, request: RunRequest) -> Any:
    """Return a result of another run as this one has it; NOTHING if it has it no more."""
    if isinstance(value, SavedValue):
        return NOTHING
    if not isinstance(value, Elsewhere):
        return value
    if request.executor is not None and value.is_on(request.executor):
        handle = plan.handles[unit]
        if place_of(handle, request.mode, remote=True) == REMOTE:
            return value  # it stays there, for units there
    return value.here() if value.is_here else NOTHING


def _numbers(
    plan: ExecutionPlan, units: "Names | str | Handle", what: str, problems: list[PlanError]
) -> list[int]:
    if isinstance(units, str | Handle):
        units = [units]
    found = []
    try:
        for unit in units:
            try:
                found.append(plan.number(unit, what))
            except PlanError as problem:
                problems.append(problem)
    except TypeError:
        problems.append(PlanError(f"{what} must be names or handles of units, not {units!r}"))
    return found


def beyond_limits(plan: ExecutionPlan, request: RunRequest, scope: Scope) -> Iterator[PlanError]:
    """Yield why units could never start under the limits of this run."""
    limits = {} if request.budget is None else request.budget.limits
    if limits == plan.limits:
        return
    for number, unit in enumerate(plan.handles):
        if unit.options.uses and number not in scope.outside:
            problem = unmet(unit.id, unit.options.needs(limits), limits)
            if problem is not None:
                yield problem
