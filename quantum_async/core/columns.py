"""The plan in numbers: one column a fact, one row a unit, for the scheduler and the engine.

What nobody asks for is never computed; what was asked for is kept.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from quantum_async.core import graph
from quantum_async.core.binding import CONTEXT, Handle, WiredBinding
from quantum_async.core.errors import PlanError, did_you_mean
from quantum_async.core.limits import Limit, Needs
from quantum_async.core.options import DEFAULT_OPTIONS, UnitOptions
from quantum_async.core.ranking import Ranking, ranked, ranking_of
from quantum_async.core.resource import Resource
from quantum_async.core.shapes import RACE, STREAM, ItemBinding, Mapped
from quantum_async.core.states import Strategy
from quantum_async.core.unit import QuantumUnit

Unit = QuantumUnit[Any, Any]


@dataclass(frozen=True, eq=False, repr=False)
class Columns:
    """Units and dependencies in numbers; see `core.plan.ExecutionPlan`, which is one."""

    units: Mapping[str, Unit]
    edges_up: graph.Edges
    edges_down: graph.Edges
    order: Sequence[int]
    measured: Mapping[str, float] = field(default_factory=dict)
    resources: Mapping[str, Resource[Any]] = field(default_factory=dict)
    uses_resources: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    streams: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    limits: Mapping[str, Limit] = field(default_factory=dict)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Each unit's name by number."""
        return tuple(self.units)

    @cached_property
    def handles(self) -> tuple[Unit, ...]:
        """Each unit by number."""
        return tuple(self.units.values())

    @cached_property
    def index(self) -> Mapping[str, int]:
        """Each unit's number by name."""
        return {name: number for number, name in enumerate(self.units)}

    @cached_property
    def in_degrees(self) -> list[int]:
        """How many dependencies each unit has. Not to be changed: runs start from a copy."""
        return [len(ends) for ends in self.edges_up]

    @cached_property
    def rows(self) -> list[list[int]]:
        """The levels in numbers."""
        return graph.levels(self.edges_up, self.order)

    @cached_property
    def costs(self) -> Sequence[float]:
        """Cost of each unit: as declared, else as measured, else 1."""
        costs = [unit.options.cost for unit in self.handles]
        measured = self.measured
        return [
            measured.get(name, 1.0) if cost is None else cost
            for name, cost in zip(self.names, costs, strict=True)
        ]

    @cached_property
    def priorities(self) -> Sequence[float] | None:
        """Priority of each unit; None if all are alike."""
        found = [unit.options.priority for unit in self.handles]
        return found if any(found) else None

    @cached_property
    def wired(self) -> tuple[int, ...]:
        """Units whose parameters are wired by name."""
        by_name = WiredBinding, ItemBinding
        if not any(isinstance(kind.binding, by_name) for kind in self.kinds):
            return ()
        return tuple(
            n for n, u in enumerate(self.handles) if isinstance(u.options.binding, by_name)
        )

    @cached_property
    def kinds(self) -> list[UnitOptions]:
        """The different options of its units: most have the same."""
        options = [unit.options for unit in self.handles]
        return list(dict(zip(map(id, options), options, strict=True)).values())

    @cached_property
    def are_plain(self) -> bytes:
        """For each unit 1 if it is ``function(ctx)`` without more, 2 with arguments, else 0."""
        if self.kinds == [DEFAULT_OPTIONS]:
            return b"\1" * len(self.handles)
        of = {id(kind): kind.plain and 1 + (kind.binding is not CONTEXT) for kind in self.kinds}
        return bytes([of[id(unit.options)] for unit in self.handles])

    @cached_property
    def special(self) -> bytes | None:
        """Whether each unit has to be looked at before it is ready; None if none has."""
        if not self.uses_resources and not any(kind.special for kind in self.kinds):
            return None
        found = bytearray(unit.options.special for unit in self.handles)
        for unit in self.uses_resources:
            found[unit] = True
        return bytes(found) if any(found) else None

    @cached_property
    def needs(self) -> list[Needs]:
        """What each unit uses of limits, as far as it is known before a run."""
        return [unit.options.needs(self.limits) for unit in self.handles]

    @cached_property
    def trigger_codes(self) -> bytes | None:
        """The `Trigger` of each unit; None if all wait for success, and none has a condition."""
        if any(kind.trigger or kind.when is not None for kind in self.kinds):
            return bytes(unit.options.trigger for unit in self.handles)
        return None

    @cached_property
    def has_maps(self) -> bool:
        """Whether any unit is a map."""
        return any(isinstance(kind.shape, Mapped) for kind in self.kinds)

    @cached_property
    def has_generators(self) -> bool:
        """Whether any unit is an asynchronous generator."""
        return any(kind.shape is STREAM for kind in self.kinds)

    @cached_property
    def contenders(self) -> frozenset[int]:
        """Units that only races need: their failure is no failure of the run."""
        found: set[int] = set()
        if any(kind.shape is RACE for kind in self.kinds):
            for unit in reversed(self.order):
                below = self.edges_down[unit]
                if below and all(
                    n in found or self.handles[n].options.shape is RACE for n in below
                ):
                    found.add(unit)
        return frozenset(found)

    @cached_property
    def placements(self) -> dict[Any, Any]:
        """Where its units run under each mode, kept here by who finds that out."""
        return {}

    @cached_property
    def sendable(self) -> set[int]:
        """Units that are known to be able to travel to a worker process, kept likewise."""
        return set()

    @cached_property
    def sinks(self) -> tuple[int, ...]:
        """Units that nothing depends on."""
        return tuple(n for n, ends in enumerate(self.edges_down) if not ends)

    @cached_property
    def _rankings(self) -> dict[Strategy, Ranking | None]:
        return {}

    def ranking(self, strategy: Strategy) -> Ranking | None:
        """Return the units' ranking by `strategy`; None for first in, first out."""
        if strategy not in self._rankings:
            self._rankings[strategy] = ranked(self, strategy, self.costs)
        return self._rankings[strategy]

    @cached_property
    def sequence(self) -> Ranking:
        """Return the ranking that follows the plan order: for one unit at a time."""
        return ranking_of(self.order, self.edges_up)

    def number(self, unit: "str | Handle", what: str) -> int:
        """Return a unit's number.

        Raises:
            PlanError: If there is no such unit; `what` says in the message where it was named.
        """
        name = unit.id if isinstance(unit, Handle) else unit
        found = self.index.get(name) if isinstance(name, str) else None
        if found is None or (isinstance(unit, Handle) and self.handles[found] is not unit):
            raise PlanError(
                f"{what} names {name!r}, and there is no such unit in this partitioner"
                f"{did_you_mean(name, self.names)}"
            )
        return found
