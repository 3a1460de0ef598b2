"""The run as a unit's context asks it: in an engine, in a worker process, in a test."""

import math
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from quantum_async.core.effects import EffectLog
from quantum_async.core.record import NOTHING, Elsewhere, Outcome
from quantum_async.core.states import UnitState

# Up to here a scan of a unit's dependencies is cheaper than making a set of them.
_SHORT = 8


class RunView(Protocol):
    """What a context needs to know of the run around it."""

    run_id: str
    input: Any
    metrics: dict[str, Any]
    environment: Mapping[str, Any]

    @property
    def effects(self) -> EffectLog:
        """Where side effects are taken down."""
        ...

    def unit_id(self, unit: int) -> str:
        """Return a unit's name."""
        ...

    def results(self, unit: int) -> Mapping[str, Any]:
        """Return the results of a unit's dependencies."""
        ...

    def item(self, unit: int) -> Any:
        """Return the item that a child of a map is for."""
        ...

    def is_unit(self, name: object) -> bool:
        """Return whether any unit of the plan has this name."""
        ...

    def other_units(self, unit: int) -> frozenset[str]:
        """Return the plan's names, for a context that travels; nothing if they are very many."""
        ...

    def remaining(self, unit: int) -> float:
        """Return seconds to the nearest deadline."""
        ...

    def emit(self, unit: int, attempt: int, value: Any) -> None:
        """Pass a value on to those who listen."""
        ...

    def outcome(self, unit: int, dependency: str) -> Outcome | None:
        """Return how a declared dependency ended; None if it is none."""
        ...

    def losses(self, unit: int) -> dict[str, Outcome]:
        """Return the outcomes of those dependencies that have no result."""
        ...

    def stream(self, unit: int, dependency: str) -> AsyncIterator[Any]:
        """Iterate over the items of a dependency as they come."""
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


@dataclass(slots=True)
class DetachedRun:
    """A run that is not there: what is left of one in a worker process or in a test."""

    name: str
    input: Any
    unit_results: Mapping[str, Any]
    metrics: dict[str, Any]
    environment: Mapping[str, Any]
    run_id: str
    limit: float = math.inf  # seconds to the nearest deadline, counted from `start_clock`
    others: frozenset[str] = frozenset()
    lost: dict[str, Outcome] = field(default_factory=dict)
    emitted: list[Any] = field(default_factory=list)
    clock: Callable[[], float] | None = None
    deadline: float = math.inf
    effects: EffectLog = field(default_factory=EffectLog)

    def start_clock(self, clock: Callable[[], float]) -> None:
        """Count the limit from now on, by `clock`."""
        self.clock = clock
        self.deadline = clock() + self.limit

    def unit_id(self, unit: int) -> str:
        """Return the unit's name."""
        return self.name

    def results(self, unit: int) -> Mapping[str, Any]:
        """Return the results that were given."""
        return self.unit_results

    def item(self, unit: int) -> Any:
        """There is none."""
        raise LookupError(f"{self.name!r} has no ctx.item here: take the item as a parameter")

    def is_unit(self, name: object) -> bool:
        """Return whether a unit of the run is known to have this name."""
        return name in self.others or name in self.unit_results or name in self.lost

    def other_units(self, unit: int) -> frozenset[str]:
        """Return the names that `is_unit` knows."""
        return self.others

    def outcome(self, unit: int, dependency: str) -> Outcome | None:
        """Return how a dependency ended."""
        if dependency in self.unit_results:
            return Outcome(UnitState.COMPLETED, self.unit_results[dependency])
        return self.lost.get(dependency)

    def losses(self, unit: int) -> dict[str, Outcome]:
        """Return the outcomes of the dependencies that have no result."""
        return self.lost

    async def stream(self, unit: int, dependency: str) -> AsyncIterator[Any]:
        """Iterate over a result that was given."""
        for item in self.unit_results[dependency]:
            yield item

    async def nest(
        self,
        unit: int,
        attempt: int,
        flow: Any,
        input: Any,  # noqa: A002
        options: dict[str, Any],
    ) -> Any:
        """Run it by itself, in a test; a worker process is no part of the run around it."""
        if self.clock is not None:
            raise RuntimeError(
                f"unit {self.name!r} called ctx.run in a worker process, outside the event loop of "
                "its run: call it in a unit on the loop"
            )
        return await flow.run(input, **options)

    def remaining(self, unit: int) -> float:
        """Return seconds to the deadline, if one was given with a clock."""
        return self.limit if self.clock is None else max(0.0, self.deadline - self.clock())

    def emit(self, unit: int, attempt: int, value: Any) -> None:
        """Keep the value in `emitted`."""
        self.emitted.append(value)


class DependencyResults(Mapping[str, Any]):
    """The results of one unit's dependencies, looked up where the run keeps them.

    Args:
        units: Numbers of the dependencies.
        index: Number of each unit by name.
        names: Name of each unit by number.
        values: Result of each unit by number.
    """

    __slots__ = ("_index", "_members", "_names", "_units", "_values")

    def __init__(
        self,
        units: "tuple[int, ...]",
        index: Mapping[str, int],
        names: "tuple[str, ...]",
        values: list[Any],
    ) -> None:
        self._units = units
        self._members = units if len(units) <= _SHORT else frozenset(units)
        self._index = index
        self._names = names
        self._values = values

    def __getitem__(self, name: str) -> Any:
        unit = self._index.get(name)
        if unit is None or unit not in self._members or self._values[unit] is NOTHING:
            raise KeyError(name)
        return self._values[unit]

    def __contains__(self, name: object) -> bool:
        unit = self._index.get(name)  # type: ignore[call-overload]
        return unit is not None and unit in self._members and self._values[unit] is not NOTHING

    def __iter__(self) -> Iterator[str]:
        return (self._names[unit] for unit in self._units if self._values[unit] is not NOTHING)

    def __len__(self) -> int:
        return sum(self._values[unit] is not NOTHING for unit in self._units)


class ArrivedResults(DependencyResults):
    """The same, of a unit that runs here in a run with results elsewhere: they have arrived."""

    __slots__ = ()

    def __getitem__(self, name: str) -> Any:
        value = super().__getitem__(name)
        return value.here() if isinstance(value, Elsewhere) else value
