"""What a run is about: which units it runs, what it is given, and whether that is enough."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from quantum_async.core import graph
from quantum_async.core.binding import Handle, WiredBinding
from quantum_async.core.errors import (
    DuplicateUnitError,
    MissingInputError,
    PlanError,
    did_you_mean,
)
from quantum_async.core.limits import unmet
from quantum_async.core.plan import ExecutionPlan, Unit
from quantum_async.core.shapes import ItemBinding
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
    given = _known(plan, request.resume_from, "resume_from", problems)
    given |= _known(plan, request.overrides, "overrides", problems)
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
    plan: ExecutionPlan, results: Any, what: str, problems: list[PlanError]
) -> dict[int, Any]:
    """Return the results, by unit number, that need not be computed."""
    if results is None:
        return {}
    if isinstance(results, RunResult):
        # Units that are gone from the plan since then are no mistake.
        return {plan.index[name]: results[name] for name in results if name in plan.index}
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
        uses = unit.options.uses
        if uses and not callable(uses) and number not in scope.outside:
            problem = unmet(unit.id, uses, limits)
            if problem is not None:
                yield problem


def check_input(
    plan: ExecutionPlan, request: RunRequest, scope: Scope, problems: list[PlanError]
) -> None:
    """Find what units cannot be called with."""
    given = request.input
    keys = given if isinstance(given, Mapping) else {}
    problems += [
        DuplicateUnitError(
            f"{key!r} is both a {'unit' if key in plan.index else 'resource'} and a key of the "
            f"run's input, so ctx[{key!r}] could mean "
            "either: rename one of the two"
        )
        for key in keys
        if key in plan.index or key in plan.resources
    ]
    idle = scope.given.keys() | set(scope.outside)
    for number in plan.wired:
        unit = plan.handles[number]
        binding = unit.options.binding
        if isinstance(binding, ItemBinding):
            binding = binding.others
        if isinstance(binding, WiredBinding) and number not in idle:
            needed = [n for n in binding.names if n not in binding.optional]
            known = (plan.index, plan.resources, keys)
            missing = [n for n in needed if not any(n in names for names in known)]
            problems += [_missing(unit, name, keys, plan, given) for name in missing]


def _missing(
    unit: Unit, name: str, keys: Mapping[Any, Any], plan: ExecutionPlan, given: Any
) -> MissingInputError:
    near = did_you_mean(name, [*map(str, keys), *plan.names])
    why = (
        "" if isinstance(given, Mapping | None) else f" (it is no mapping: {type(given).__name__})"
    )
    if name == "context":
        near = "; for the ExecutionContext, name it 'ctx' or annotate it"
    return MissingInputError(
        f"unit {unit.id!r} has a parameter {name!r}, and neither a unit nor a key of the run's "
        f"input{why} has that name{near}; give it in the input, or give the parameter a default"
    )
