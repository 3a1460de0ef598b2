"""The run as its units see it: what `ExecutionContext` looks things up in.

It holds results but neither errors nor the engine: a context lives on in the traceback of an
error, and must not close a circle from that error back to itself.
"""

import math
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, Protocol

from quantum_async.core.effects import EffectLog
from quantum_async.core.plan import ExecutionPlan
from quantum_async.core.record import NOTHING, Outcome
from quantum_async.core.runview import ArrivedResults, DependencyResults
from quantum_async.core.states import UnitState
from quantum_async.engine.rows import Rows

_NONE: Mapping[str, Any] = {}
_FEW = 256  # units whose names travel with each context


class Door(Protocol):
    """What contexts ask of the engine while the run goes on."""

    def remaining(self, unit: int) -> float:
        """Return seconds to the nearest deadline."""
        ...

    def emit(self, unit: int, attempt: int, value: Any) -> None:
        """Pass a value on to those who listen."""
        ...

    def outcome(self, unit: int) -> Outcome:
        """Return how a unit ended."""
        ...

    def stream(self, unit: int, source: int) -> AsyncIterator[Any]:
        """Iterate over the items of a unit as they come, for another one."""
        ...

    def nest(
        self,
        unit: int,
        attempt: int,
        flow: Any,
        input: Any,  # noqa: A002
        options: dict[str, Any],
    ) -> Awaitable[Any]:
        """Run another partitioner inside the run."""
        ...


class View:
    """One run's data for its units' contexts.

    Args:
        plan: The plan that runs.
        rows: The units by number.
        values: Result of each unit by number; the run's own list.
        input: The run's input.
        metrics: What units recorded.
        effects: The side effects that units performed.
        environment: Facts about the run.
        run_id: The run's name.

    Attributes:
        opened: The resources that are open, by name.
        runs_here: Says whether a unit runs in this process; None if all do.
    """

    __slots__ = (
        "_door", "_few_names", "_plan", "_rows", "_values", "effects", "environment", "input",
        "metrics", "opened", "run_id", "runs_here",
    )  # fmt: skip

    def __init__(
        self,
        plan: ExecutionPlan,
        rows: Rows,
        values: list[Any],
        *,
        input: Any,  # noqa: A002 - the contract's name
        metrics: dict[str, Any],
        effects: EffectLog,
        environment: Mapping[str, Any],
        run_id: str,
    ) -> None:
        self._plan = plan
        self._rows = rows
        self._values = values
        self.input = input
        self.metrics = metrics
        self.effects = effects
        self.environment = environment
        self.run_id = run_id
        self.opened: dict[str, Any] = {}
        self.runs_here: Callable[[int], bool] | None = None
        # A worker that is not told finds out later: the engine looks at the error it gets back.
        self._few_names = frozenset(plan.names if plan.unit_count <= _FEW else ())
        self._door: Door | None = None

    def open(self, door: Door) -> None:
        """Connect it to the engine while the run goes on."""
        self._door = door

    def close(self) -> None:
        """Let go of the engine: contexts outlive the run."""
        self._door = None

    def unit_id(self, unit: int) -> str:
        """Return a unit's name."""
        return self._rows.names[unit]

    def item(self, unit: int) -> Any:
        """Return the item that a child of a map is for.

        Raises:
            LookupError: If the unit is none.
        """
        if unit < self._rows.count:
            raise LookupError(f"unit {self.unit_id(unit)!r} has no ctx.item: it is no map's child")
        return self._rows.item(unit)

    def _declaration(self, unit: int) -> int:
        """Return the unit of the plan: a child sees what its map depends on."""
        return unit if unit < self._rows.count else self._rows.parent(unit)

    def results(self, unit: int) -> Mapping[str, Any]:
        """Return the results of a unit's dependencies, and the resources that it takes."""
        plan = self._plan
        declared = self._declaration(unit)
        above = plan.edges_up[declared]
        taken = plan.uses_resources.get(declared)
        if not above and not taken:
            return _NONE
        kind = ArrivedResults if self.runs_here and self.runs_here(unit) else DependencyResults
        found = kind(tuple(above), plan.index, plan.names, self._values)
        if not taken:
            return found
        opened = {name: self.opened[name] for name in taken if name in self.opened}
        return {**found, **opened}

    def is_unit(self, name: object) -> bool:
        """Return whether a unit of the plan has this name."""
        return name in self._plan.index

    def other_units(self, unit: int) -> frozenset[str]:
        """Return the plan's names, for a context that travels; nothing if they are very many."""
        return self._few_names

    def outcome(self, unit: int, dependency: str) -> Outcome | None:
        """Return how a declared dependency ended; None if it is none."""
        number = self._plan.index.get(dependency)
        if number is None or number not in self._plan.edges_up[self._declaration(unit)]:
            return None
        if self._door is not None:
            return self._door.outcome(number)
        value = self._values[number]
        return None if value is NOTHING else Outcome(UnitState.COMPLETED, value)

    def losses(self, unit: int) -> dict[str, Outcome]:
        """Return the outcomes of those dependencies that have no result."""
        if self._door is None:
            return {}
        plan = self._plan
        return {
            plan.names[above]: self._door.outcome(above)
            for above in plan.edges_up[self._declaration(unit)]
            if self._values[above] is NOTHING
        }

    def stream(self, unit: int, dependency: str) -> AsyncIterator[Any]:
        """Iterate over the items of a dependency as they come."""
        number = self._plan.index[dependency]
        if self._door is None:
            return _listed(self._values[number])
        return self._door.stream(unit, number)

    async def nest(
        self,
        unit: int,
        attempt: int,
        flow: Any,
        input: Any,  # noqa: A002
        options: dict[str, Any],
    ) -> Any:
        """Run another partitioner inside the run."""
        if self._door is None:
            raise RuntimeError(
                f"unit {self.unit_id(unit)!r} called ctx.run, and its run has ended: await "
                "flow.run() instead"
            )
        return await self._door.nest(unit, attempt, flow, input, options)

    def remaining(self, unit: int) -> float:
        """Return seconds to the nearest deadline."""
        return math.inf if self._door is None else self._door.remaining(unit)

    def emit(self, unit: int, attempt: int, value: Any) -> None:
        """Pass a value on to those who listen, while the run goes on."""
        if self._door is not None:
            self._door.emit(unit, attempt, value)


async def _listed(values: Any) -> AsyncIterator[Any]:
    for value in values:
        yield value
