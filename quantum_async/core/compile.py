"""From units to a plan, with every problem of them found at once."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

from quantum_async.core import graph
from quantum_async.core.binding import CONTEXT, ExactBinding, Handle, handles_in
from quantum_async.core.errors import (
    CircularDependencyError,
    PlanError,
    UnknownDependencyError,
    did_you_mean,
)
from quantum_async.core.limits import Limit, unmet
from quantum_async.core.plan import ExecutionPlan, Unit
from quantum_async.core.reading import reads_as_stream
from quantum_async.core.resource import Resource
from quantum_async.core.shapes import STREAM, Included, Mapped

_NONE: Mapping[str, Any] = MappingProxyType({})


def compile_plan(
    units: Mapping[str, Unit],
    more: Iterable[PlanError] = (),
    measured: Mapping[str, float] = _NONE,
    *,
    resources: Mapping[str, Resource[Any]] = _NONE,
    limits: Mapping[str, Limit] = _NONE,
) -> ExecutionPlan:
    """Return the plan of `units`.

    Args:
        units: The units by name, in order of declaration.
        more: Problems that the caller found by itself, to be reported along.
        measured: Seconds that units without a declared cost are expected to take, by name.
        resources: The resources by name.
        limits: The limits by name that the units may use.

    Raises:
        PlanError: With all problems: unknown names (and the nearest), handles of other
            partitioners, circles with their path, more tokens than a limit has.
    """
    index = {name: number for number, name in enumerate(units)}
    problems: list[PlanError] = []
    needs, circles = _unit_needs(resources, index)
    problems += circles
    edges_up: list[tuple[int, ...]] = []
    uses: dict[int, tuple[str, ...]] = {}
    for number, unit in enumerate(units.values()):
        # Most units of big graphs are declared by names alone: no list is made for them.
        options = unit.options
        alone = not (unit.declared or options.streams or options.shape)
        if alone and options.binding is CONTEXT:
            edges_up.append(())
            continue
        ends, taken = _ends(unit, units, index, resources, problems)
        if taken:
            uses[number] = tuple(taken)
            ends = list(dict.fromkeys([*ends, *(n for name in taken for n in needs[name])]))
        edges_up.append(tuple(ends))
    problems += _beyond(units.values(), limits)
    edges_down = graph.inverted(edges_up)
    order = graph.topological_order(edges_up, edges_down)
    if len(order) < len(units):
        names = list(units)
        for cycle in graph.find_cycles(edges_up, order):
            problems.append(CircularDependencyError([names[n] for n in cycle]))
    problems.extend(more)
    if problems:
        raise PlanError.of(problems)
    frozen = MappingProxyType(dict(units))
    plan = ExecutionPlan(
        frozen,
        tuple(edges_up),
        edges_down,
        order,
        measured,
        resources=MappingProxyType(dict(resources)),
        uses_resources=uses,
        streams=_streams(list(units.values()), edges_up, edges_down),
        limits=limits,
    )
    vars(plan)["index"] = index  # the cached property, which every run needs
    return plan


def _ends(
    unit: Unit,
    units: Mapping[str, Unit],
    index: Mapping[str, int],
    resources: Mapping[str, Resource[Any]],
    problems: list[PlanError],
) -> tuple[list[int], list[str]]:
    """Return the numbers of a unit's dependencies, and the names of its resources."""
    ends, taken = [], []
    strangers = list(_strangers(unit, units, resources))
    problems.extend(UnknownDependencyError(_OTHERS.format(unit.id, it)) for it in strangers)
    for name in unit.dependencies:
        number = index.get(name)
        if name in strangers:
            continue
        if number is not None:
            ends.append(number)
        elif name in resources:
            taken.append(name)
        else:
            problems.append(_unknown(unit, name, units))
    return ends, taken


def _unit_needs(
    resources: Mapping[str, Resource[Any]], index: Mapping[str, int]
) -> tuple[dict[str, list[int]], list[PlanError]]:
    """Return the units that each resource needs, by itself or through others, and circles."""
    found: dict[str, list[int]] = {}
    problems: list[PlanError] = []

    def visit(name: str, path: tuple[str, ...]) -> list[int]:
        if name in path:
            problems.append(CircularDependencyError([*path[path.index(name) :], name]))
            return []
        if name not in found:
            needs: dict[int, None] = {}
            for parameter in resources[name].binding.names:
                if parameter in resources:
                    needs.update(dict.fromkeys(visit(parameter, (*path, name))))
                elif parameter in index:
                    needs[index[parameter]] = None
            found[name] = list(needs)
        return found[name]

    for name in resources:
        visit(name, ())
    return found, problems


def _beyond(units: Iterable[Unit], limits: Mapping[str, Limit]) -> Iterator[PlanError]:
    """Yield why units could never start under the limits."""
    for unit in units:
        if unit.options.uses:
            problem = unmet(unit.id, unit.options.needs(limits), limits)
            if problem is not None:
                yield problem


def _streams(
    units: list[Unit], edges_up: graph.Edges, edges_down: graph.Edges
) -> dict[int, tuple[int, ...]]:
    """Return which dependents of units that give items while they run start with them."""
    found: dict[int, tuple[int, ...]] = {}
    for number, unit in enumerate(units):
        shape = unit.options.shape
        if shape is STREAM or isinstance(shape, Mapped):
            below = tuple(n for n in edges_down[number] if _takes_items(units[n], unit))
            if below:
                found[number] = below
    return _without_deadlocks(found, edges_up)


def _without_deadlocks(
    streams: dict[int, tuple[int, ...]], edges_up: graph.Edges
) -> dict[int, tuple[int, ...]]:
    """Let those takers wait for a source's end that also wait for units which need that end.

    A source stops when a taker that has not started has no room, and so do the sources of the
    source. If the taker waits for what is below one of them, nobody would ever go on.
    """
    live = {(source, taker) for source, below in streams.items() for taker in below}
    takers = list(dict.fromkeys(taker for _, taker in live))
    changed = True
    while changed:
        changed = False
        for taker in takers:
            awaited = [above for above in edges_up[taker] if (above, taker) not in live]
            if not awaited:
                continue
            needed = _upwards(awaited, lambda unit: edges_up[unit])
            for source in edges_up[taker]:
                held = _upwards([source], lambda unit: _live_above(unit, live, edges_up))
                if (source, taker) in live and held & needed:
                    live.discard((source, taker))
                    changed = True
    kept = {s: tuple(t for t in below if (s, t) in live) for s, below in streams.items()}
    return {source: below for source, below in kept.items() if below}


def _live_above(unit: int, live: set[tuple[int, int]], edges_up: graph.Edges) -> list[int]:
    return [above for above in edges_up[unit] if (above, unit) in live]


def _upwards(units: Iterable[int], above: Callable[[int], Iterable[int]]) -> set[int]:
    """Return units and all that is above them."""
    found, queue = set(units), list(units)
    while queue:
        more = set(above(queue.pop())) - found
        found |= more
        queue += more
    return found


def _takes_items(unit: Unit, source: Unit) -> bool:
    shape = unit.options.shape
    if isinstance(shape, Mapped):
        over = shape.over
        return over is source or over == source.id
    if source in unit.options.streams or source.id in unit.options.streams:
        return True
    return (unit.is_async or shape is STREAM) and reads_as_stream(unit, source)


_OTHERS = (
    "unit {!r} depends on the handle {!r}, which belongs to another partitioner: units of one "
    "graph must be declared on one partitioner"
)


def _strangers(
    unit: Unit, units: Mapping[str, Unit], resources: Mapping[str, Resource[Any]]
) -> Iterable[str]:
    """Yield names of handles that belong to another partitioner."""
    handles: list[Handle] = [after for after in unit.declared if isinstance(after, Handle)]
    if isinstance(unit.options.binding, ExactBinding):
        handles += unit.options.binding.handles()
    shape = unit.options.shape
    if isinstance(shape, Mapped) and isinstance(shape.over, Handle):
        handles.append(shape.over)
    elif isinstance(shape, Included):
        handles += handles_in([shape.input])
    return (
        handle.id
        for handle in handles
        if units.get(handle.id) is not handle and resources.get(handle.id) is not handle
    )


def _unknown(unit: Unit, name: str, units: Mapping[str, Unit]) -> UnknownDependencyError:
    return UnknownDependencyError(
        f"unit {unit.id!r} depends on {name!r}, and no unit has that name"
        f"{did_you_mean(name, units)}"
    )
