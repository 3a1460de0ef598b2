"""Whether a run's input has what its units take of it."""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from quantum_async.core.binding import WiredBinding
from quantum_async.core.errors import (
    DuplicateUnitError,
    MissingInputError,
    PlanError,
    did_you_mean,
)
from quantum_async.core.plan import ExecutionPlan, Unit
from quantum_async.core.resource import Resource
from quantum_async.core.shapes import ItemBinding, Mapped
from quantum_async.engine.fans import items_of

_PARAMETER = "has a parameter"


def input_problems(plan: ExecutionPlan, given: Any, idle: Collection[int]) -> Iterator[PlanError]:
    """Yield what units cannot be called with.

    Args:
        plan: What is to run.
        given: The run's input.
        idle: Units of the plan that will not run.
    """
    keys = given if isinstance(given, Mapping) else {}
    for key in keys:
        if key in plan.index or key in plan.resources:
            yield DuplicateUnitError(
                f"{key!r} is both a {'unit' if key in plan.index else 'resource'} and a key of the "
                f"run's input, so ctx[{key!r}] could mean either: rename one of the two"
            )
    known = (plan.index, plan.resources, keys)
    for number in plan.wired:
        if number in idle:
            continue
        unit = plan.handles[number]
        for name, what in _taken(unit):
            if not any(name in names for names in known):
                yield _missing(f"unit {unit.id!r} {what}", name, keys, plan, given)
    for resource in _opened(plan, idle):
        for name in resource.binding.names:
            if name not in resource.binding.optional and not any(name in it for it in known):
                who = f"resource {resource.id!r} {_PARAMETER}"
                yield _missing(who, name, keys, plan, given)


def _opened(plan: ExecutionPlan, idle: Collection[int]) -> Iterator[Resource[Any]]:
    """Yield the resources that the units which run take, by themselves or through others."""
    taken = dict.fromkeys(
        name for unit, names in plan.uses_resources.items() if unit not in idle for name in names
    )
    queue = list(taken)
    while queue:
        resource = plan.resources[queue.pop()]
        yield resource
        below = [it for it in resource.binding.names if it in plan.resources and it not in taken]
        taken.update(dict.fromkeys(below))
        queue += below


def _taken(unit: Unit) -> Iterator[tuple[str, str]]:
    """Yield the names that a unit cannot do without, and what it does with them."""
    binding, shape = unit.options.binding, unit.options.shape
    if isinstance(shape, Mapped) and (over := items_of(shape.over)) is not None:
        yield over, "maps over"
    if isinstance(binding, ItemBinding):
        binding = binding.others
    if isinstance(binding, WiredBinding):
        for name in binding.names:
            if name not in binding.optional:
                yield name, _PARAMETER


def _missing(
    who: str, name: str, keys: Mapping[Any, Any], plan: ExecutionPlan, given: Any
) -> MissingInputError:
    near = did_you_mean(name, [*map(str, keys), *plan.names])
    why = (
        "" if isinstance(given, Mapping | None) else f" (it is no mapping: {type(given).__name__})"
    )
    if name == "context":
        near = "; for the ExecutionContext, name it 'ctx' or annotate it"
    cure = "give it in the input"
    if who.endswith(_PARAMETER):
        cure += ", or give the parameter a default"
    return MissingInputError(
        f"{who} {name!r}, and neither a unit nor a key of the run's "
        f"input{why} has that name{near}; {cure}"
    )
