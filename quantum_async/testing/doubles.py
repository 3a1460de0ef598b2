"""Doubles: something else in the place of units, and one unit alone.

Both go the engine's own ways. A function that stands in for a unit's own is called where that one
would be, with the same arguments, time limits and retries; a value is a result that is given.
"""

import inspect
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol, Self, TypeVar, overload

from quantum_async.core.binding import Arguments, ExactBinding, Handle, WiredBinding
from quantum_async.core.context import ExecutionContext
from quantum_async.core.errors import ExecutionError, MissingInputError, PlanError, did_you_mean
from quantum_async.core.plan import ExecutionPlan, Unit
from quantum_async.core.states import Strategy
from quantum_async.core.unit import QuantumUnit, is_coroutine_function
from quantum_async.engine.attempt import Compute, settled
from quantum_async.engine.placement import PROCESS, place_of
from quantum_async.request import RunRequest, interventions
from quantum_async.result import RunResult

X = TypeVar("X")


class Flow(Protocol):
    """What is asked of a partitioner here."""

    @property
    def units(self) -> Mapping[str, QuantumUnit[Any, Any]]:
        """The units by name."""
        ...

    def build_execution_plan(self) -> ExecutionPlan:
        """Return the plan."""
        ...

    def run(self, *args: Any, **options: Any) -> Coroutine[Any, Any, RunResult]:
        """Run the units."""
        ...


def unit_of(flow: Flow, unit: "str | Handle", what: str) -> Unit:
    """Return a unit of a partitioner; `what` says in an error where it was named.

    Raises:
        PlanError: If there is no such unit, with the nearest name.
    """
    name = unit.id if isinstance(unit, Handle) else unit
    found = flow.units.get(name) if isinstance(name, str) else None
    if found is None or (isinstance(unit, Handle) and found is not unit):
        raise PlanError(
            f"{what} names {name!r}, and there is no such unit in this partitioner"
            f"{did_you_mean(name, flow.units)}"
        )
    return found


def place_in(unit: Unit, request: RunRequest) -> str:
    """Return where a unit is going to run."""
    balanced = request.strategy is Strategy.RESOURCE_BALANCED
    return place_of(unit, request.mode, balanced=balanced)


class Block:
    """A ``with`` block that changes the runs which start in it.

    It is held by a context variable: tasks that are started in the block inherit it, and other
    tasks never see it. A block takes only itself away when it ends, so that blocks of generators
    may end in any order, and in another context than they began.
    """

    def __enter__(self) -> Self:
        interventions.set((*interventions.get(), self))  # type: ignore[arg-type]
        return self

    def __exit__(self, *_: object) -> None:
        active: tuple[object, ...] = interventions.get()
        # The innermost one, should it have been entered twice.
        places = [place for place, one in enumerate(active) if one is self]
        left = active[: places[-1]] + active[places[-1] + 1 :] if places else active
        interventions.set(left)  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class Value:
    """A result; see `value`."""

    result: Any


def value(result: Any) -> Value:
    """Have something that can be called be a unit's result, and not be called.

    Args:
        result: The result.

    Example:
        >>> flow = QuantumPartitioner()
        >>> @flow.unit
        ... def scorer():
        ...     return max
        >>> @flow.unit
        ... def best(scorer, scores):
        ...     return scorer(scores)
        >>> with flow.override({"scorer": value(min)}):
        ...     flow.execute({"scores": [3, 1, 2]})["best"]
        1
    """
    return Value(result)


class Override(Block):
    """Doubles in the place of units; made by ``QuantumPartitioner.override``.

    Args:
        flow: The partitioner.
        doubles: Functions and values by unit.

    Raises:
        PlanError: With all problems: units that there are not, functions that cannot be called
            with the unit's arguments.
    """

    outermost = False
    goes_inside = True

    def __init__(self, flow: Flow, doubles: Mapping[Any, Any]) -> None:
        if not isinstance(doubles, Mapping):
            raise PlanError(f"override takes a mapping of unit to double, not {doubles!r}")
        self._flow = flow
        self._functions: dict[str, Callable[..., Any]] = {}
        self._values: dict[str, Any] = {}
        problems: list[PlanError] = []
        for unit, double in doubles.items():
            try:
                self._add(unit_of(flow, unit, "override"), double)
            except PlanError as problem:
                problems.append(problem)
        if problems:
            raise PlanError.of(problems)

    def _add(self, unit: Unit, double: Any) -> None:
        if isinstance(double, Value):
            self._values[unit.id] = double.result
        elif not callable(double):
            self._values[unit.id] = double
        else:
            function = double.function if isinstance(double, QuantumUnit) else double
            _check_call(unit, function)
            if unit.is_async and not is_coroutine_function(function):
                function = partial(_awaited, function)
            self._functions[unit.id] = function

    def amend(self, flow: object, plan: ExecutionPlan, request: RunRequest) -> RunRequest:
        """Return a run's request with the doubles in it.

        Raises:
            PlanError: If a double of a unit in a worker process cannot be sent there.
        """
        if flow is not self._flow:
            return request
        self._check_travel(plan, request)
        overrides = request.overrides
        if overrides is None or isinstance(overrides, Mapping):  # else it is refused, later
            others = {
                unit: result
                for unit, result in (overrides or {}).items()
                if (unit.id if isinstance(unit, Handle) else unit) not in self._functions
            }
            overrides = others | self._values
        request = replace(request, overrides=overrides)
        if not self._functions:
            return request
        functions, before = self._functions, request.around

        def around(unit: Unit) -> Any:
            double = functions.get(unit.id)
            if double is not None:
                # No cache is asked, and none learns what a double says.
                return partial(_instead, double)
            return None if before is None else before(unit)

        return replace(request, around=around)

    def _check_travel(self, plan: ExecutionPlan, request: RunRequest) -> None:
        doubles = [
            QuantumUnit(name, function, options=unit.options)
            for name, function in self._functions.items()
            if place_in(unit := plan.units[name], request) == PROCESS
        ]
        if doubles:
            from quantum_async.engine.executors.packing import unsendable

            problems = unsendable(doubles)
            if problems:
                raise PlanError.of(problems)

    def __repr__(self) -> str:
        told = [f"{name!r} by {function!r}" for name, function in self._functions.items()]
        told += [f"{name!r} is {result!r}" for name, result in self._values.items()]
        return f"<Override: {', '.join(told) or 'nothing'}>"


async def _instead(double: Callable[..., Any], ctx: ExecutionContext[Any], compute: Compute) -> Any:
    return await compute(lambda _: double)


async def _awaited(double: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    """Call a plain function in the place of a coroutine function: where that one would run."""
    return await settled(double(*args, **kwargs))


def _check_call(unit: Unit, double: Callable[..., Any]) -> None:
    """Refuse a function that cannot take what the unit's own is called with."""
    try:
        signature = inspect.signature(double)
    except (TypeError, ValueError):
        return  # some of those in C do not tell
    args, kwargs = _example_call(unit)
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        told = ", ".join([*args, *(f"{name}=…" for name in kwargs)])
        raise PlanError(
            f"the double of unit {unit.id!r} is called as the unit is, with ({told}), and does not "
            f"take that: {error}; take **_ for what it does not need, or, if it is meant as the "
            "unit's result, write value(…)"
        ) from None


def _example_call(unit: Unit) -> Arguments:
    binding = unit.options.binding
    if isinstance(binding, WiredBinding):
        named = [name for name in binding.keywords if name not in binding.optional]
        if binding.context is not None and binding.context not in binding.positional:
            named.append(binding.context)
        return binding.positional, dict.fromkeys(named)
    if isinstance(binding, ExactBinding):
        return tuple("…" for _ in binding.args), dict.fromkeys(binding.kwargs)
    return ("ctx",), {}


# -- one unit alone -------------------------------------------------------------------------------


@overload
async def run_unit(
    flow: Flow,
    unit: QuantumUnit[Any, X],
    inputs: Mapping[Any, Any] | None = None,
    *,
    context: Any = None,
    **options: Any,
) -> X: ...
@overload
async def run_unit(
    flow: Flow,
    unit: str,
    inputs: Mapping[Any, Any] | None = None,
    *,
    context: Any = None,
    **options: Any,
) -> Any: ...
async def run_unit(
    flow: Flow,
    unit: "str | QuantumUnit[Any, Any]",
    inputs: Mapping[Any, Any] | None = None,
    *,
    context: Any = None,
    **options: Any,
) -> Any:
    """Run one unit alone, where and as it would run with the others, and return its result.

    Args:
        flow: The partitioner.
        unit: The unit's name or handle.
        inputs: Results of the units that it depends on, and keys of the run's input. Those that
            it only comes after, and whose results it cannot see, need none.
        context: The run's input, if that is no mapping.
        options: Other options of `run`, ``faults=`` or ``mode=`` for example.

    Raises:
        MissingInputError: If the result of a dependency is not given.
        PlanError: If there is no such unit, or the result of another one is given.
        Exception: What the unit raised in its last attempt, itself; `UnitTimeoutError` if it was
            stopped by a time limit.

    Example:
        >>> flow = QuantumPartitioner()
        >>> @flow.unit
        ... def page(url): ...
        >>> @flow.unit
        ... def words(page, least):
        ...     return [word for word in page.split() if len(word) >= least]
        >>> asyncio.run(run_unit(flow, words, {"page": "a long day", "least": 3}))
        ['long', 'day']
    """
    handle = unit_of(flow, unit, "run_unit")
    plan = flow.build_execution_plan()
    given, keys = _sorted_inputs(plan, handle, inputs or {})
    if context is not None and keys:
        raise PlanError(
            f"run_unit({handle.id!r}): {next(iter(keys))!r} is no dependency of the unit, and "
            "beside context= there can be no other input"
        )
    result = await flow.run(
        keys or context,
        targets=[handle.id],
        overrides=given,
        failure_policy="collect",
        **options,
    )
    if handle.id in result:
        return result[handle.id]
    record = result.units[handle.id]
    if record.error is not None:
        raise record.error
    raise ExecutionError(f"unit {handle.id!r} is {record.state.value}: {record.cause}", {}, result)


def _sorted_inputs(
    plan: ExecutionPlan, unit: Unit, inputs: Mapping[Any, Any]
) -> tuple[dict[str, Any], dict[Any, Any]]:
    """Return what is given in two parts: results of dependencies, and keys of the input."""
    needed = [plan.names[number] for number in plan.edges_up[plan.index[unit.id]]]
    results: dict[str, Any] = {}
    keys: dict[Any, Any] = {}
    for key, result in inputs.items():
        name = key.id if isinstance(key, Handle) else key
        if name in needed and (not isinstance(key, Handle) or plan.units[name] is key):
            results[name] = result
        elif isinstance(key, Handle) or name in plan.index:
            known = f"it depends on {', '.join(map(repr, needed))}" if needed else "it has none"
            raise PlanError(
                f"run_unit({unit.id!r}): {name!r} is no dependency of the unit; {known}"
            )
        else:
            keys[name] = result
    seen = _seen_by(unit, needed)
    missing = [name for name in needed if name not in results and name in seen]
    if missing:
        told = ", ".join(map(repr, missing))
        near = ((key, did_you_mean(key, missing)) for key in keys)
        taken = [f"; {key!r} is no unit{meant}" for key, meant in near if meant]
        raise MissingInputError(
            f"run_unit({unit.id!r}): the unit depends on {told}; give what these would return in "
            f"the inputs{''.join(taken)}"
        )
    return dict.fromkeys(needed) | results, keys


def _seen_by(unit: Unit, needed: list[str]) -> set[str]:
    """Return the dependencies whose results a unit can see."""
    binding = unit.options.binding
    if isinstance(binding, WiredBinding) and binding.context is None:
        return set(binding.names)
    if isinstance(binding, ExactBinding):
        return {handle.id for handle in binding.handles()}
    return set(needed)
