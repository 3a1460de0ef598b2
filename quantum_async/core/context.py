"""What a unit sees of its run: its input, the results that it declared, and where it stands."""

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from typing import Any, Generic, TypeVar

from quantum_async.core.binding import Handle
from quantum_async.core.effects import DRY, EffectLog, Performance, refused_awaitable
from quantum_async.core.errors import (
    DependencyError,
    UndeclaredDependencyError,
    described,
    did_you_mean,
)
from quantum_async.core.record import Outcome
from quantum_async.core.runview import DependencyResults, DetachedRun, RunView
from quantum_async.core.states import UnitState

T = TypeVar("T")

__all__ = [
    "Around", "DependencyResults", "DetachedRun", "ExecutionContext",
    "MissingKeyError", "RunView",
]  # fmt: skip


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
    def number(self) -> int:
        """The unit's number in the run. For engines."""
        return self._unit

    @property
    def item(self) -> Any:
        """The item that a child of a map is for: what ``uses=(ctx)`` of a map looks at.

        Raises:
            LookupError: In any other unit, and in a worker process, where the function alone has
                it.
        """
        return self._run.item(self._unit)

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
        if (
            name not in results
            and self._run.is_unit(name)
            and self._run.outcome(self._unit, name) is None
        ):
            raise _undeclared(self.unit_id, name)
        return results.get(name)

    def record_metric(self, name: str, value: Any) -> None:
        """Record a value under `name` in the run's metrics; the last one stays."""
        self._run.metrics[name] = value

    def emit(self, value: Any) -> None:
        """Send a value to those who listen to the run, as a `UnitEmitted` event."""
        self._run.emit(self._unit, self.attempt, value)

    @property
    def dry_run(self) -> bool:
        """Whether side effects are taken down and not performed: ``run(dry_run=True)``."""
        return self._run.effects.dry

    async def perform(
        self, kind: str, function: Callable[..., Any], *args: Any, dry: Any = None, **kwargs: Any
    ) -> Any:
        """Call a function for its side effect, and take that down in ``result.effects``.

        Args:
            kind: What the effect is called: ``"email"``, ``"charge"``.
            function: What is called; what it gives is awaited if it can be. A plain function runs
                where the unit does: in a coroutine function it must not block.
            args: Its arguments.
            dry: What is given in its place, uncalled, in a run with ``dry_run=True``.
            kwargs: Its keyword arguments; not one that is called `dry`.

        Returns:
            What the function gives.

        Raises:
            TypeError: If `kind` is no string, or `function` cannot be called.
        """
        with self._performance(kind, function, args, kwargs) as effect:
            if self.dry_run:
                effect.outcome, effect.value = DRY, dry
            else:
                value = function(*args, **kwargs)
                effect.value = await value if inspect.isawaitable(value) else value
        return effect.value

    def perform_sync(
        self, kind: str, function: Callable[..., Any], *args: Any, dry: Any = None, **kwargs: Any
    ) -> Any:
        """As `perform`, in plain functions: in threads and worker processes.

        Raises:
            TypeError: As `perform`, and if the function gives something to await.
        """
        with self._performance(kind, function, args, kwargs) as effect:
            if self.dry_run:
                effect.outcome, effect.value = DRY, dry
            else:
                effect.value = function(*args, **kwargs)
                if inspect.isawaitable(effect.value):
                    raise refused_awaitable(self.unit_id, kind, effect.value)
        return effect.value

    def _performance(
        self,
        kind: str,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Performance:
        log = self._run.effects
        return Performance(log, self.unit_id, self.attempt, kind, function, (args, kwargs))

    def outcome(self, dependency: str | Handle) -> Outcome:
        """Say how a declared dependency ended: for units whose `trigger` lets them see failures.

        Returns:
            Its state, and its result, error and cause as far as there are any. A dependency that
            has not ended (of a unit that starts at the first success) is PENDING or RUNNING.

        Raises:
            UndeclaredDependencyError: If it is no declared dependency.
        """
        name = dependency.id if isinstance(dependency, Handle) else dependency
        found = self._run.outcome(self._unit, name)
        if found is None:
            raise _undeclared(self.unit_id, name)
        return found

    def stream(self, dependency: str | Handle) -> AsyncIterator[Any]:
        """Iterate over the items of a streaming dependency as they come.

        A unit whose own code says ``ctx.stream(…)`` starts together with that dependency; so does
        one with ``streams=[…]``. Of a map the items are its results, in the order in which they
        come. Of any other dependency, and of one that has ended, they are those of its result.

        Args:
            dependency: An asynchronous generator unit or a map, among the unit's dependencies.

        Raises:
            UndeclaredDependencyError: If it is no declared dependency.
            DependencyError: In the iteration, if it ended without a result.
        """
        name = dependency.id if isinstance(dependency, Handle) else dependency
        if self._run.outcome(self._unit, name) is None:
            raise _undeclared(self.unit_id, name)
        return self._run.stream(self._unit, name)

    async def run(self, flow: Any, input: Any = None, **options: Any) -> Any:  # noqa: A002
        """Run another partitioner (or this unit's own) inside this run, and return its result.

        It shares the run's slots, limits, observers and deadline, and is cancelled with this unit.
        Meanwhile this unit holds no slot. Its units are called ``unit/child``.

        Args:
            flow: The partitioner.
            input: Its input.
            options: Other options of `QuantumPartitioner.run`, but for observers and run_id.

        Returns:
            Its `RunResult`.

        Raises:
            ExecutionError: If units of it failed, by its own failure policy.
            RuntimeError: If this unit has ended, or runs in a worker process.
        """
        return await self._run.nest(self._unit, self.attempt, flow, input, options)

    def __getitem__(self, key: str | Handle) -> Any:
        name = key.id if isinstance(key, Handle) else key
        results = self._results
        if results is None:
            results = self.unit_results
        try:
            return results[name]
        except KeyError:
            pass  # not told from in here, or it would stand in the traceback
        return self._other_than_result(name)

    def _other_than_result(self, name: str) -> Any:
        run = self._run
        if run.is_unit(name):
            ended = run.outcome(self._unit, name)
            if ended is None:
                raise _undeclared(self.unit_id, name)
            raise _without_result(self.unit_id, name, ended)
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
            self._run.losses(self._unit),
            self.dry_run,
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
    losses: dict[str, Outcome],
    dry_run: bool,
) -> ExecutionContext[Any]:
    run = DetachedRun(
        unit_id, input, unit_results, metrics, environment, run_id, remaining, others, losses
    )
    run.effects = EffectLog(dry_run)
    return ExecutionContext.of(run, 0, attempt)


def _undeclared(unit: str, name: object) -> UndeclaredDependencyError:
    return UndeclaredDependencyError(
        f"unit {unit!r} read the result of {name!r} without depending on it, so it may not have "
        f"ended yet: add {name!r} to the dependencies of {unit!r}"
    )


def _without_result(unit: str, name: str, ended: Outcome) -> DependencyError:
    if ended.state in (UnitState.PENDING, UnitState.RUNNING):
        what = "has not ended yet"
    else:
        why = ended.cause or ("" if ended.error is None else described(ended.error))
        what = f"ended without a result: {ended.state.value}{f' ({why})' if why else ''}"
    return DependencyError(
        f"unit {unit!r} read the result of {name!r}, which {what}; ask ctx.outcome({name!r}) "
        "first, or give the parameter of that name a default"
    )
