"""The declaring half of a partitioner: units by name, and the plan that they make."""

import functools
import importlib
import inspect
import weakref
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from typing import Any, Generic, Protocol, TypeVar, overload

from quantum_async.core.binding import CONTEXT, Binding, ExactBinding, Handle, WiredBinding
from quantum_async.core.compile import compile_plan
from quantum_async.core.errors import (
    DuplicateUnitError,
    PlanError,
    UnknownDependencyError,
    did_you_mean,
)
from quantum_async.core.limits import Limit
from quantum_async.core.options import NO_FALLBACK, make_options
from quantum_async.core.plan import ExecutionPlan
from quantum_async.core.resource import Resource
from quantum_async.core.retry import RetryPolicy
from quantum_async.core.shapes import STREAM, Shape
from quantum_async.core.states import ExecutionMode, Strategy
from quantum_async.core.unit import QuantumUnit, R, T, is_generator_function, takes_nothing
from quantum_async.engine.placement import PROCESS, place_of, place_units
from quantum_async.result import RunResult

X = TypeVar("X")

After = Sequence["str | QuantumUnit[Any, Any] | Resource[Any]"]


class Decorator(Protocol):
    """What ``@flow.unit(…)`` gives: it makes the decorated function a unit."""

    @overload
    def __call__(self, fn: Callable[..., AsyncIterator[X]], /) -> QuantumUnit[Any, list[X]]: ...
    @overload
    def __call__(self, fn: Callable[..., Coroutine[Any, Any, X]], /) -> QuantumUnit[Any, X]: ...
    @overload
    def __call__(self, fn: Callable[..., X], /) -> QuantumUnit[Any, X]: ...


class Definition(Generic[T, R]):
    """Units by name, in order of declaration, and the plan that they make.

    Attributes:
        units: The handles by name.
        resources: The resources by name.
        limits: The limits by name.
        default_execution_mode: Where units run that do not say it themselves.
        strategy: How the ready queue is ordered.
        last_result: The `RunResult` of the last run that ended, or None.
    """

    def __init__(self, default_execution_mode: ExecutionMode, strategy: Strategy) -> None:
        self.default_execution_mode = default_execution_mode
        self.strategy = strategy
        self.units: dict[str, QuantumUnit[T, R]] = {}
        self.last_result: RunResult | None = None
        self.resources: dict[str, Resource[Any]] = {}
        self.limits: dict[str, Limit] = {}
        self._plan: ExecutionPlan | None = None
        self._measured: Mapping[str, float] = {}
        self._itself = weakref.ref(self)  # for the handles, which it holds

    # -- declaring --------------------------------------------------------------------------

    def add_unit(
        self,
        fn: Callable[..., Any],
        dependencies: After | None = None,
        name: str | None = None,
        timeout: float | None = None,
        retries: int = 0,
        metadata: dict[str, Any] | None = None,
        *,
        priority: float = 0,
        mode: ExecutionMode | str | None = None,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        retry: RetryPolicy | Any = None,
        fallback: Any = NO_FALLBACK,
        deadline: float | None = None,
        cost: float | None = None,
        grace: float | None = None,
        max_result_bytes: int | None = None,
        batch: bool = True,
        when: Callable[[Any], Any] | None = None,
        trigger: str = "all_success",
        uses: Any = None,
        streams: Sequence["str | QuantumUnit[Any, Any]"] = (),
    ) -> QuantumUnit[T, R]:
        """Declare a unit.

        Args:
            fn: A coroutine function or a plain function. It is called with the
                `ExecutionContext`, or with exactly `args` and `kwargs` if one of them is given.
            dependencies: Names or handles of the units that must end first; they may be declared
                later.
            name: The unit's name; by default ``unit_0``, ``unit_1`` and so on.
            timeout: Seconds that one attempt may take.
            retries: Further attempts after a failed one, with exponential back-off.
            metadata: Anything. ``resource_type`` ("cpu", "io"), ``fallback_value``, ``cacheable``
                and ``cache_keys`` are read by the library.
            priority: Larger is sooner.
            mode: Where it runs, if not where the run's mode puts it.
            args: Positional arguments; a handle among them is a dependency and is replaced by
                its result.
            kwargs: Keyword arguments, likewise.
            retry: A `RetryPolicy`, or a tenacity ``Retrying``/``AsyncRetrying``.
            fallback: The result if all attempts failed, or a callable that makes it from
                ``(ctx, error)``. None is a value.
            deadline: Seconds that all attempts together may take, from the first one's start.
            cost: Seconds it is expected to take; orders the ready queue.
            grace: Seconds it has to clean up in a worker process when it is stopped: the worker
                gets SIGTERM, which raises SystemExit in the unit, and is killed after that. By
                default it is killed at once.
            max_result_bytes: The most bytes that its result may have on its way from a worker
                process; a larger one is the unit's error.
            batch: Whether it may be sent to a worker process together with others, if units are
                shorter than the trip.
            when: A plain function ``(ctx)``, asked when all dependencies have ended: if it says
                False, the unit is skipped, and with it what depends on it.
            trigger: What it waits for: ``"all_success"`` of its dependencies, ``"all_done"``,
                ``"none_failed"`` or ``"one_success"``.
            uses: What it needs of the limits: a name, a mapping of names to tokens, or a function
                ``(ctx)`` that returns such a mapping.
            streams: Dependencies whose items it reads as they come, with ``ctx.stream``: it starts
                with them. Only needed if the unit's own code does not say ``ctx.stream``.

        Returns:
            The handle.

        Raises:
            PlanError: For any value that could not be meant, naming the unit and the value.
        """
        binding: Binding = CONTEXT
        if args is None and kwargs is None and takes_nothing(fn):
            raise PlanError(
                f"add_unit calls fn(ctx), and {fn!r} takes no argument: give it one, or args=[] to "
                "have it called without"
            )
        if args is not None or kwargs is not None:
            binding = _exact(name, args, kwargs)
        return self._declare(
            fn,
            () if dependencies is None else dependencies,
            name,
            binding,
            metadata,
            timeout=timeout,
            retries=retries,
            priority=priority,
            mode=mode,
            retry=retry,
            fallback=fallback,
            deadline=deadline,
            cost=cost,
            grace=grace,
            max_result_bytes=max_result_bytes,
            batch=batch,
            when=when,
            trigger=trigger,
            uses=uses,
            streams=streams,
        )

    @overload
    def unit(self, fn: Callable[..., AsyncIterator[X]], /) -> QuantumUnit[Any, list[X]]: ...
    @overload
    def unit(self, fn: Callable[..., Coroutine[Any, Any, X]], /) -> QuantumUnit[Any, X]: ...
    @overload
    def unit(self, fn: Callable[..., X], /) -> QuantumUnit[Any, X]: ...
    @overload
    def unit(
        self,
        fn: None = None,
        /,
        *,
        name: str | None = ...,
        after: After = ...,
        **options: Any,
    ) -> Decorator: ...
    def unit(
        self,
        fn: Callable[..., Any] | None = None,
        /,
        *,
        name: str | None = None,
        after: After = (),
        **options: Any,
    ) -> Any:
        """Declare the decorated function as a unit whose parameters are wired by name.

        A parameter named after a unit gets its result, ``ctx`` the `ExecutionContext`, any other
        the key of that name of the run's input (or its own default). The decorated name becomes
        the handle, which can still be called as the plain function.

        Args:
            fn: The function.
            name: The unit's name; by default the function's.
            after: Units that must end first although no parameter takes their result.
            options: The options of `add_unit`.

        Raises:
            PlanError: For any value that could not be meant.
        """
        if fn is None:
            return functools.partial(self._decorated, name=name, after=after, **options)
        return self._decorated(fn, name=name, after=after, **options)

    def _decorated(
        self,
        fn: Callable[..., Any],
        *,
        name: str | None,
        after: After,
        **options: Any,
    ) -> QuantumUnit[T, R]:
        if isinstance(fn, QuantumUnit):
            name, fn = name or fn.id, fn.function
        self._refuse_unknown(options)
        if name is None:
            own = getattr(fn, "__name__", "")
            name = own if own.isidentifier() else None
        if isinstance(fn, str):
            raise PlanError(f"unit() takes a function; for another name write unit(name={fn!r})")
        more = options.pop("dependencies", None)
        if more is not None:
            after = [*self._checked_names(name or "", after), *self._checked_names("", more)]
        if options.get("args") is not None or options.get("kwargs") is not None:
            return self.add_unit(fn, after, name, **options)
        metadata = options.pop("metadata", None)
        binding = WiredBinding.of(fn, name or self._next_name())
        return self._declare(fn, after, name, binding, metadata, **options)

    @staticmethod
    def _refuse_unknown(options: Mapping[str, Any]) -> None:
        unknown = sorted(options.keys() - _OPTIONS)
        if unknown:
            raise PlanError(
                f"unit() has no option {unknown[0]!r}{did_you_mean(unknown[0], _OPTIONS)}"
            )

    def _declare(
        self,
        fn: Callable[..., Any],
        after: After,
        name: str | None,
        binding: Binding | None,
        metadata: dict[str, Any] | None,
        shape: Shape | None = None,
        **options: Any,
    ) -> QuantumUnit[Any, Any]:
        if name is None:
            name = self._next_name()
        elif not isinstance(name, str) or not name:
            raise PlanError(f"a unit's name must be a string that is not empty, not {name!r}")
        if isinstance(fn, QuantumUnit):
            fn = fn.function
        if not callable(fn):
            raise PlanError(f"unit {name!r}: {fn!r} cannot be called")
        if is_generator_function(fn):
            shape = _stream(name, fn, shape, options)
        if metadata is not None and not isinstance(metadata, dict):
            raise PlanError(f"unit {name!r}: metadata must be a dictionary, not {metadata!r}")
        if name in self.units or name in self.resources:
            kind = "unit" if name in self.units else "resource"
            raise DuplicateUnitError(
                f"there is a {kind} {name!r} already: names are what dependencies are declared by"
            )
        checked = make_options(
            name,
            metadata=metadata,
            binding=CONTEXT if binding is None else binding,
            shape=shape,
            **options,
        )
        unit: QuantumUnit[T, R] = QuantumUnit(
            name,
            fn,
            () if after == () else self._checked_names(name, after),
            metadata=metadata,
            options=checked,
            owner=self._itself,
        )
        if checked.mode is ExecutionMode.INTERPRETER:
            from quantum_async.engine.executors.interpreter import refusal

            if refused := refusal(unit):
                raise refused
        self.units[name] = unit
        self._plan = None
        return unit

    def _next_name(self) -> str:
        number = len(self.units)
        while f"unit_{number}" in self.units:
            number += 1
        return f"unit_{number}"

    def _checked_names(self, unit: str, after: After) -> After:
        if isinstance(after, str | Handle):
            raise PlanError(f"unit {unit!r}: dependencies must be a list; write [{after!r}]")
        try:
            after = tuple(after)
        except TypeError:
            raise PlanError(
                f"unit {unit!r}: dependencies must be a list of names or handles, not {after!r}"
            ) from None
        for dependency in after:
            if isinstance(dependency, Handle):
                name = dependency.id
                if dependency not in (self.units.get(name), self.resources.get(name)):
                    raise UnknownDependencyError(
                        f"unit {unit!r} depends on the handle {name!r}, which belongs to "
                        "another partitioner: units of one graph must be declared on one"
                    )
            elif not isinstance(dependency, str):
                raise PlanError(
                    f"unit {unit!r}: a dependency must be a name or a handle, not {dependency!r}"
                )
        return after

    def use_measured_costs(self, result: RunResult | None = None) -> None:
        """Take the durations of a run as the `cost` of all units that declare none.

        Plans made from now on are ordered by them. Costs change only when this is called, so that
        the order of a plan never depends on chance.

        Args:
            result: The run; by default the last one that ended.
        """
        if result is None:
            result = self.last_result
        if result is not None:
            self._measured = {r.name: r.duration for r in result.units.values() if r.duration}
            self._plan = None

    # -- planning ---------------------------------------------------------------------------

    def build_execution_plan(self) -> ExecutionPlan:
        """Return the plan of the units declared so far; the same one until units change.

        Raises:
            PlanError: With all problems: unknown names, circles, units for worker processes that
                cannot be pickled.
        """
        return self._planned(self._known_limits())

    def _planned(self, limits: Mapping[str, Limit]) -> ExecutionPlan:
        """Return the plan, made if there is none, of units that may use these limits."""
        if self._plan is None:
            mode = self.default_execution_mode
            for_workers = [u for u in self.units.values() if place_of(u, mode) == PROCESS]
            problems: list[PlanError] = []
            if for_workers:
                from quantum_async.engine.executors.packing import unsendable

                problems = unsendable(for_workers)
            if self.resources:
                problems += stays_here(for_workers, self.resources)
            plan = compile_plan(
                self.units,
                problems,
                self._measured,
                resources=self.resources,
                limits=limits,
            )
            # What each run will ask of it, so that none has to find it out.
            plan.ranking(self.strategy)
            _ = plan.wired, plan.in_degrees, plan.are_plain, plan.special
            plan.sendable.update(plan.index[unit.id] for unit in for_workers)
            place_units(plan, mode, self.strategy)
            for needed in _LOADED_WITH_A_PLAN:
                importlib.import_module(needed)
            self._plan = plan
        return self._plan

    def _known_limits(self) -> Mapping[str, Limit]:
        """Return the limits that units may name; a `Runtime` may add to them."""
        return self.limits


def _stream(
    name: str, fn: Callable[..., Any], shape: Shape | None, options: Mapping[str, Any]
) -> Shape:
    """Return the shape of a generator: an asynchronous one streams, others are no units."""
    if not inspect.isasyncgenfunction(fn) or shape is not None:
        kind = "an asynchronous generator" if inspect.isasyncgenfunction(fn) else "a generator"
        whose = "a child of a map gives" if shape is not None else "a unit gives"
        raise PlanError(
            f"unit {name!r} is {kind}, and {whose} one result: collect the items and return the "
            "list, or make it an asynchronous generator, whose items come as it yields"
        )
    mode = options.get("mode")
    if mode is not None and str(getattr(mode, "value", mode)) not in ("auto", "async"):
        raise PlanError(f"unit {name!r} is an asynchronous generator, which runs on the loop only")
    return STREAM


def stays_here(
    units: Sequence[QuantumUnit[Any, Any]], resources: Mapping[str, Any]
) -> list[PlanError]:
    """Return why units for worker processes cannot go there: a resource cannot travel."""
    return [
        PlanError(
            f"unit {unit.id!r} is to run in a worker process, and the resource {name!r} that it "
            "takes cannot go there: run it on the loop or in a thread, or open it in the unit"
        )
        for unit in units
        for name in unit.dependencies
        if name in resources
    ]


def _exact(name: str | None, args: Any, kwargs: Any) -> ExactBinding:
    try:
        binding = ExactBinding(tuple(args or ()), dict(kwargs or {}))
        list(binding.handles())
    except RecursionError:
        raise PlanError(
            f"unit {name!r}: its arguments contain themselves, or are nested too deeply"
        ) from None
    except (TypeError, ValueError):
        raise PlanError(
            f"unit {name!r}: args must be a list and kwargs a dictionary, not {args!r}, {kwargs!r}"
        ) from None
    return binding


# What all runs need: the first one would hold the loop while it loads them.
_LOADED_WITH_A_PLAN = "quantum_async.launch", "anyio._backends._asyncio"
_OPTIONS = inspect.signature(Definition.add_unit).parameters.keys() - {"self", "fn", "name"}
