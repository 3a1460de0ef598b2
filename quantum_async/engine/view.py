"""The run as its units see it: what `ExecutionContext` looks things up in.

It holds results but neither errors nor the engine: a context lives on in the traceback of an
error, and must not close a circle from that error back to itself.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

from quantum_async.core.context import DependencyResults
from quantum_async.core.plan import ExecutionPlan

_NONE: Mapping[str, Any] = {}
_FEW = 256  # units whose names travel with each context


class View:
    """One run's data for its units' contexts.

    Args:
        plan: The plan that runs.
        values: Result of each unit by number; the run's own list.
        input: The run's input.
        metrics: What units recorded.
        environment: Facts about the run.
        run_id: The run's name.
    """

    __slots__ = (
        "_emit",
        "_few_names",
        "_plan",
        "_remaining",
        "_values",
        "environment",
        "input",
        "metrics",
        "run_id",
    )

    def __init__(
        self,
        plan: ExecutionPlan,
        values: list[Any],
        *,
        input: Any,  # noqa: A002 - the contract's name
        metrics: dict[str, Any],
        environment: Mapping[str, Any],
        run_id: str,
    ) -> None:
        self._plan = plan
        self._values = values
        self.input = input
        self.metrics = metrics
        self.environment = environment
        self.run_id = run_id
        # A worker that is not told finds out later: the engine looks at the error it gets back.
        self._few_names = frozenset(plan.names if plan.unit_count <= _FEW else ())
        self._remaining: Callable[[int], float] | None = None
        self._emit: Callable[[int, int, Any], None] | None = None

    def open(
        self, remaining: Callable[[int], float], emit: Callable[[int, int, Any], None]
    ) -> None:
        """Connect it to the engine while the run goes on."""
        self._remaining, self._emit = remaining, emit

    def close(self) -> None:
        """Let go of the engine: contexts outlive the run."""
        self._remaining = self._emit = None

    def unit_id(self, unit: int) -> str:
        """Return a unit's name."""
        return self._plan.names[unit]

    def results(self, unit: int) -> Mapping[str, Any]:
        """Return the results of a unit's dependencies."""
        above = self._plan.edges_up[unit]
        if not above:
            return _NONE
        plan = self._plan
        return DependencyResults(tuple(above), plan.index, plan.names, self._values)

    def is_unit(self, name: object) -> bool:
        """Return whether a unit of the plan has this name."""
        return name in self._plan.index

    def other_units(self, unit: int) -> frozenset[str]:
        """Return the plan's names, for a context that travels; nothing if they are very many."""
        return self._few_names

    def remaining(self, unit: int) -> float:
        """Return seconds to the nearest deadline."""
        return math.inf if self._remaining is None else self._remaining(unit)

    def emit(self, unit: int, attempt: int, value: Any) -> None:
        """Pass a value on to those who listen, while the run goes on."""
        if self._emit is not None:
            self._emit(unit, attempt, value)
