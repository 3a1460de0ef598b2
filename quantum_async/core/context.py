"""What a unit sees of its run: its input, the results that it declared, and where it stands."""

import math
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from quantum_async.core.binding import Handle
from quantum_async.core.errors import UndeclaredDependencyError, did_you_mean

T = TypeVar("T")

# Up to here a scan of a unit's dependencies is cheaper than making a set of them.
_SHORT = 8


class RunView(Protocol):
    """What a context needs to know of the run around it."""

    run_id: str
    input: Any
    metrics: dict[str, Any]
    environment: Mapping[str, Any]

    def unit_id(self, unit: int) -> str:
        """Return a unit's name."""
        ...

    def results(self, unit: int) -> Mapping[str, Any]:
        """Return the results of a unit's dependencies."""
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


# What may be wrapped around an attempt: it gets the context, and a function that does the work.
Around = Callable[["ExecutionContext[Any]", Callable[[], Awaitable[Any]]], Awaitable[Any]]


class MissingKeyError(KeyError):
    """A context has no such key. In a worker process it may be a unit that was not declared."""

    def __init__(self, message: str, name: object) -> None:
        super().__init__(message, name)
        self.name = name

    def __str__(self) -> str:
        return str(self.args[0])


class ExecutionContext(Mapping[str, Any], Generic[T]):
    """What a unit sees: a read-only mapping of the results it declared and of the run's input.

    ``ctx[name]`` (or ``ctx[handle]``) is a declared dependency's result, else a key of the
    input. Reading a unit that was not declared raises `UndeclaredDependencyError`. The engine
    makes one for each attempt; one made by hand serves to call a unit's function in a test.

    Args:
        unit_results: Results by unit name.
        metrics: Where `record_metric` writes.
        environment: Facts about the run.
        input: The run's input, of any type; only a mapping's keys are seen in the context.
        unit_id: The unit's name.
        attempt: Which attempt this is, from 1.
        run_id: The run's name.

    Example:
        >>> ctx = ExecutionContext(unit_results={"load": [1, 2]}, input={"scale": 3})
        >>> [ctx["scale"] * x for x in ctx["load"]]
        [3, 6]
    """

    __slots__ = ("_results", "_run", "_unit", "attempt")

    def __init__(
        self,
        unit_results: Mapping[str, Any] | None = None,
        metrics: dict[str, Any] | None = None,
        environment: Mapping[str, Any] | None = None,
        *,
        input: T | None = None,  # noqa: A002 - the contract's name
        unit_id: str = "",
        attempt: int = 1,
        run_id: str = "",
    ) -> None:
        self._run: RunView = DetachedRun(
            name=unit_id,
            input=input,
            unit_results=dict(unit_results or {}),
            metrics={} if metrics is None else metrics,
            environment=dict(environment or {}),
            run_id=run_id,
        )
        self._unit = 0
        self._results: Mapping[str, Any] | None = None
        self.attempt = attempt

    @classmethod
    def of(cls, run: RunView, unit: int, attempt: int) -> "ExecutionContext[Any]":
        """Return the context of one attempt of one unit of a run. For engines."""
        ctx = object.__new__(cls)
        ctx._run = run
        ctx._unit = unit
        ctx._results = None
        ctx.attempt = attempt
        return ctx

    @property
    def view(self) -> RunView:
        """The run as this context sees it. For engines."""
        return self._run

    @property
    def input(self) -> T:
        """The run's input object itself."""
        return self._run.input  # type: ignore[no-any-return]

    @property
    def unit_results(self) -> Mapping[str, Any]:
        """Results of the declared dependencies, by unit name."""
        results = self._results
        if results is None:
            results = self._results = self._run.results(self._unit)
        return results

    @property
    def metrics(self) -> dict[str, Any]:
        """The metrics that the run's units recorded so far."""
        return self._run.metrics

    @property
    def environment(self) -> Mapping[str, Any]:
        """Facts about the run: its partitioner, mode, strategy, number of workers."""
        return self._run.environment

    @property
    def unit_id(self) -> str:
        """The unit's name."""
        return self._run.unit_id(self._unit)

    @property
    def run_id(self) -> str:
        """The run's name."""
        return self._run.run_id

    @property
    def remaining(self) -> float:
        """Seconds to the nearest deadline of attempt, unit, run or caller; infinite without one."""
        return self._run.remaining(self._unit)

    def get_dependency_result(self, unit_id: str | Handle) -> Any:
        """Return the result of a declared dependency, None if it has none.

        Raises:
            UndeclaredDependencyError: If the unit exists and is not a declared dependency.
        """
        name = unit_id.id if isinstance(unit_id, Handle) else unit_id
        results = self.unit_results
        if name not in results and self._run.is_unit(name):
            raise _undeclared(self.unit_id, name)
        return results.get(name)

    def record_metric(self, name: str, value: Any) -> None:
        """Record a value under `name` in the run's metrics; the last one stays."""
        self._run.metrics[name] = value

    def emit(self, value: Any) -> None:
        """Send a value to those who listen to the run, as a `UnitEmitted` event."""
        self._run.emit(self._unit, self.attempt, value)

    def __getitem__(self, key: str | Handle) -> Any:
        name = key.id if isinstance(key, Handle) else key
        results = self.unit_results
        if name in results:
            return results[name]
        run = self._run
        if run.is_unit(name):
            raise _undeclared(self.unit_id, name)
        if isinstance(run.input, Mapping) and name in run.input:
            return run.input[name]
        raise MissingKeyError(
            f"unit {self.unit_id!r} asked for {name!r}, which is neither a declared dependency "
            f"nor a key of the run's input{did_you_mean(name, self)}",
            name,
        )

    def get(self, key: str | Handle, default: Any = None) -> Any:
        """Return ``self[key]``, or `default` if there is no such key.

        Raises:
            UndeclaredDependencyError: If the key is a unit that was not declared: it may have a
                result or not, depending on timing.
        """
        try:
            return self[key]
        except UndeclaredDependencyError:
            raise
        except KeyError:
            return default

    def __contains__(self, key: object) -> bool:
        name = key.id if isinstance(key, Handle) else key
        if name in self.unit_results:
            return True
        run = self._run
        return isinstance(run.input, Mapping) and name in run.input and not run.is_unit(name)

    def __iter__(self) -> Iterator[str]:
        results = self.unit_results
        yield from results
        if isinstance(self._run.input, Mapping):
            yield from (key for key in self._run.input if key not in results)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __repr__(self) -> str:
        return (
            f"<ExecutionContext of {self.unit_id!r}, attempt {self.attempt}: "
            f"{', '.join(map(repr, self)) or 'empty'}>"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return self.travelling(self.input)

    def travelling(self, given: Any) -> tuple[Any, ...]:
        """Return what pickle needs of it, with `given` in the input's place. For engines."""
        # What travels is what the unit declared, not the run around it.
        return _restored, (
            dict(self.unit_results),
            dict(self.metrics),
            dict(self.environment),
            given,
            self.unit_id,
            self.attempt,
            self.run_id,
            self.remaining,
            self._run.other_units(self._unit),
        )


def _restored(
    unit_results: dict[str, Any],
    metrics: dict[str, Any],
    environment: dict[str, Any],
    input: Any,  # noqa: A002
    unit_id: str,
    attempt: int,
    run_id: str,
    remaining: float,
    others: frozenset[str],
) -> ExecutionContext[Any]:
    run = DetachedRun(unit_id, input, unit_results, metrics, environment, run_id, remaining, others)
    return ExecutionContext.of(run, 0, attempt)


def _undeclared(unit: str, name: object) -> UndeclaredDependencyError:
    return UndeclaredDependencyError(
        f"unit {unit!r} read the result of {name!r} without depending on it, so it may not have "
        f"ended yet: add {name!r} to the dependencies of {unit!r}"
    )


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
    emitted: list[Any] = field(default_factory=list)
    clock: Callable[[], float] | None = None
    deadline: float = math.inf

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

    def is_unit(self, name: object) -> bool:
        """Return whether a unit of the run is known to have this name."""
        return name in self.others or name in self.unit_results

    def other_units(self, unit: int) -> frozenset[str]:
        """Return the names that `is_unit` knows."""
        return self.others

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
        if unit is None or unit not in self._members:
            raise KeyError(name)
        return self._values[unit]

    def __contains__(self, name: object) -> bool:
        unit = self._index.get(name)  # type: ignore[call-overload]
        return unit is not None and unit in self._members

    def __iter__(self) -> Iterator[str]:
        return (self._names[unit] for unit in self._units)

    def __len__(self) -> int:
        return len(self._units)
