"""A unit of work as it was declared, and the handle that users hold of it."""

import functools
import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from sys import float_info
from typing import TYPE_CHECKING, Any, Final, Generic, Protocol

from quantum_async.core.binding import CONTEXT, Binding, ExactBinding, Handle, WiredBinding
from quantum_async.core.errors import PlanError
from quantum_async.core.record import UnitRecord
from quantum_async.core.retry import RetryPolicy
from quantum_async.core.states import ExecutionMode, UnitState, parse

if TYPE_CHECKING:
    # With defaults, so that a plain `QuantumPartitioner()` needs no annotation.
    from typing_extensions import TypeVar

    T = TypeVar("T", default=Any)
    R = TypeVar("R", default=Any)
else:
    from typing import TypeVar

    T = TypeVar("T")
    R = TypeVar("R")


class _NoFallback:
    """The absence of a fallback: None is a value that a user may want."""

    def __repr__(self) -> str:
        return "…"


NO_FALLBACK: Final = _NoFallback()


@dataclass(frozen=True, slots=True)
class UnitOptions:
    """What was asked for a unit beside its function and dependencies. Times are in seconds."""

    timeout: float | None = None
    deadline: float | None = None
    retries: int = 0
    retry: RetryPolicy | None = None
    fallback: Any = NO_FALLBACK
    priority: float = 0
    mode: ExecutionMode | None = None
    cost: float | None = None
    grace: float = 0.0
    max_result_bytes: int | None = None
    batch: bool = True
    binding: Binding = CONTEXT
    # No limit, fallback or retry and `fn(ctx)`: the driver has a shorter way for such units.
    plain: bool = field(init=False)

    def __post_init__(self) -> None:
        plain = (
            self.timeout is None
            and self.deadline is None
            and self.retry is None
            and self.fallback is NO_FALLBACK
            and self.binding is CONTEXT
        )
        object.__setattr__(self, "plain", plain)


DEFAULT_OPTIONS: Final = UnitOptions()


class LastRun(Protocol):
    """Where a handle reads the last run that ended: its partitioner."""

    @property
    def last_result(self) -> Any:
        """The `RunResult` of the last run that ended, or None."""
        ...


def _nobody() -> None:
    """Of no partitioner: a unit that was made by hand."""


class QuantumUnit(Handle, Generic[T, R]):
    """A unit of work: its declaration, and a view of what became of it in the last run.

    `add_unit` and the `unit` decorator make these. A handle stands for its unit wherever a name
    is asked for, and can be called as the plain function that it was made from.

    Attributes:
        is_async: Whether its function gives a coroutine.

    Args:
        id: The unit's name.
        function: What it runs.
        dependencies: Names (or handles) of the units that must end first.
        timeout: Seconds that one attempt may take.
        retries: Further attempts after a failed one.
        priority: Larger is sooner.
        metadata: Anything; `resource_type` ("cpu", "io"), `fallback_value`, `cacheable` and
            `cache_keys` are read by the library.
        options: Everything else, already checked.
        owner: Gives its partitioner, while that lives: the partitioner holds the handle.
    """

    __slots__ = (
        "__weakref__",
        "_after",
        "_owner",
        "function",
        "id",
        "is_async",
        "metadata",
        "options",
    )

    def __init__(
        self,
        id: str,  # noqa: A002 - the seed's name
        function: Callable[..., R],
        dependencies: Iterable["str | QuantumUnit[Any, Any]"] = (),
        timeout: float | None = None,
        retries: int = 0,
        priority: float = 0,
        metadata: dict[str, Any] | None = None,
        *,
        options: UnitOptions | None = None,
        owner: Callable[[], LastRun | None] = _nobody,
    ) -> None:
        self.id = id
        self.function = function
        self.is_async = is_coroutine_function(function)
        self.metadata: dict[str, Any] = {} if metadata is None else metadata
        if options is None:
            options = make_options(
                id, timeout=timeout, retries=retries, priority=priority, metadata=self.metadata
            )
        self.options = options
        self._after: tuple[str | QuantumUnit[Any, Any], ...] = tuple(dependencies)
        self._owner = owner

    # -- what was declared ------------------------------------------------------------------

    @property
    def name(self) -> str:
        """The unit's name; the same as `id`."""
        return self.id

    @property
    def dependencies(self) -> list[str]:
        """Names of the units that must end first, as far as they are declared by now."""
        names = [after if isinstance(after, str) else after.id for after in self._after]
        binding = self.options.binding
        if isinstance(binding, ExactBinding):
            names += [handle.id for handle in binding.handles()]
        elif isinstance(binding, WiredBinding):
            # A parameter may be named after a unit that is declared later than this one.
            units: Mapping[str, Any] = getattr(self._owner(), "units", {})
            names += [name for name in binding.names if name in units]
        return list(dict.fromkeys(names)) if len(names) > 1 else names

    @property
    def declared(self) -> tuple["str | QuantumUnit[Any, Any]", ...]:
        """Dependencies exactly as they were given, arguments not counted."""
        return self._after

    @property
    def timeout(self) -> float | None:
        """Seconds that one attempt may take."""
        return self.options.timeout

    @property
    def deadline(self) -> float | None:
        """Seconds that all attempts together may take, from the start of the first."""
        return self.options.deadline

    @property
    def retries(self) -> int:
        """Further attempts after a failed one."""
        return self.options.retries

    @property
    def priority(self) -> float:
        """Larger is sooner."""
        return self.options.priority

    @property
    def mode(self) -> ExecutionMode | None:
        """Where it runs, if that was said."""
        return self.options.mode

    @property
    def cost(self) -> float | None:
        """Seconds it is expected to take, if that was said."""
        return self.options.cost

    def can_execute(self, completed_units: AbstractSet[str]) -> bool:
        """Return whether every dependency is among `completed_units`."""
        return all(name in completed_units for name in self.dependencies)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the plain function, outside any run."""
        return self.function(*args, **kwargs)

    # -- what the last run that ended made of it --------------------------------------------

    @property
    def record(self) -> UnitRecord:
        """The record of the last run that ended; a PENDING one if there was none."""
        owner = self._owner()
        result = None if owner is None else owner.last_result
        record: UnitRecord | None = None if result is None else result.units.get(self.id)
        return record or UnitRecord(self.id, UnitState.PENDING)

    @property
    def state(self) -> UnitState:
        """Its state in the last run that ended."""
        return self.record.state

    @property
    def result(self) -> R | None:
        """Its result in the last run that ended."""
        return self.record.result  # type: ignore[no-any-return]

    @property
    def error(self) -> BaseException | None:
        """Its error in the last run that ended."""
        return self.record.error

    @property
    def start_time(self) -> float | None:
        """When its first attempt started, in seconds since the epoch."""
        return self.record.started_at

    @property
    def end_time(self) -> float | None:
        """When it ended, in seconds since the epoch."""
        return self.record.ended_at

    @property
    def attempt(self) -> int:
        """How many attempts the last run that ended made."""
        return self.record.attempts

    @property
    def execution_time(self) -> float | None:
        """Seconds from its first start to its end in the last run that ended."""
        return self.record.duration

    def get_execution_time(self) -> float | None:
        """Return `execution_time`."""
        return self.execution_time

    def __reduce__(self) -> tuple[Any, ...]:
        # In a worker process a handle is its declaration: the partitioner does not travel.
        return _restored, (self.id, self.function, self.dependencies, self.metadata)

    def __repr__(self) -> str:
        after = f" after {', '.join(self.dependencies[:4])}" if self.dependencies else ""
        more = ", …" if len(self.dependencies) > 4 else ""
        return f"<QuantumUnit {self.id!r}{after}{more}: {self.state.value}>"


def _restored(
    name: str, function: Callable[..., Any], dependencies: list[str], metadata: dict[str, Any]
) -> QuantumUnit[Any, Any]:
    return QuantumUnit(name, function, dependencies, metadata=metadata, options=DEFAULT_OPTIONS)


def make_options(
    unit: str,
    *,
    timeout: float | None = None,
    deadline: float | None = None,
    retries: int = 0,
    retry: Any = None,
    fallback: Any = NO_FALLBACK,
    priority: float = 0,
    mode: ExecutionMode | str | None = None,
    cost: float | None = None,
    grace: float | None = None,
    max_result_bytes: int | None = None,
    batch: bool = True,
    metadata: Mapping[str, Any] | None = None,
    binding: Binding = CONTEXT,
) -> UnitOptions:
    """Check what was asked for a unit, and put it in one object.

    Raises:
        PlanError: For any value that could not be meant, naming the unit and the option.
    """
    if fallback is NO_FALLBACK and metadata and "fallback_value" in metadata:
        fallback = metadata["fallback_value"]
    if not (
        timeout is None
        and deadline is None
        and retry is None
        and mode is None
        and cost is None
        and grace is None
        and max_result_bytes is None
        and batch is True
        and (type(retries), retries) == (int, 0)
        and (type(priority), priority) == (int, 0)
        and fallback is NO_FALLBACK
        and binding is CONTEXT
    ):
        check_number(unit, "timeout", timeout)
        check_number(unit, "deadline", deadline)
        check_number(unit, "cost", cost)
        check_number(unit, "grace", grace)
        check_count("max_result_bytes", max_result_bytes, unit)
        if not isinstance(batch, bool):
            raise PlanError(f"unit {unit!r}: batch must be True or False, not {batch!r}")
        check_number(unit, "priority", 0 if priority is None else priority, least=-math.inf)
        if isinstance(retries, bool) or not isinstance(retries, int) or retries < 0:
            raise PlanError(
                f"unit {unit!r}: retries must be a whole number from 0 up, not {retries!r}"
            )
        return UnitOptions(
            timeout=None if timeout == math.inf else timeout,
            deadline=None if deadline == math.inf else deadline,
            retries=retries,
            retry=_policy(unit, retry, retries),
            fallback=fallback,
            priority=priority or 0,
            mode=None if mode is None else parse(ExecutionMode, mode, f"unit {unit!r}: mode"),
            cost=cost,
            grace=grace or 0.0,
            max_result_bytes=max_result_bytes,
            batch=batch,
            binding=binding,
        )
    return DEFAULT_OPTIONS


def _policy(unit: str, retry: Any, retries: int) -> RetryPolicy | None:
    if retry is None:
        return RetryPolicy.after(retries) if retries else None
    if retries:
        raise PlanError(
            f"unit {unit!r} has both retries= and retry=; the policy's stop strategy says how "
            "often: give one of the two"
        )
    try:
        return RetryPolicy.of(retry)
    except PlanError as error:
        raise PlanError(f"unit {unit!r}: {error}") from None


def check_number(unit: str, option: str, value: Any, *, least: float = 0.0) -> None:
    """Refuse what is not a number, NaN, and less than `least`.

    Raises:
        PlanError: Naming the unit (or, if `unit` is empty, the option alone).
    """
    if value is None:
        return
    whose = f"unit {unit!r}: " if unit else ""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise PlanError(f"{whose}{option} must be a number, not {value!r}")
    if isinstance(value, int) and abs(value) > float_info.max:
        raise PlanError(f"{whose}{option} is too large a number")
    if math.isnan(value) or value < least:
        raise PlanError(f"{whose}{option} must not be {'NaN' if value != value else 'negative'}")


def check_workers(count: Any) -> None:
    """Refuse what is no number of workers.

    Raises:
        PlanError: If it is neither None nor a whole number from 1 up.
    """
    check_count("max_workers", count)


def check_count(option: str, count: Any, unit: str = "") -> None:
    """Refuse what is neither None nor a whole number from 1 up.

    Raises:
        PlanError: Naming the option, and the unit if it is one's.
    """
    if count is not None and (isinstance(count, bool) or not isinstance(count, int) or count < 1):
        whose = f"unit {unit!r}: " if unit else ""
        raise PlanError(f"{whose}{option} must be a whole number from 1 up, not {count!r}")


def takes_nothing(fn: Callable[..., Any]) -> bool:
    """Return whether a plain Python function can take no positional argument."""
    code = getattr(fn, "__code__", None)
    return code is not None and not code.co_argcount and not code.co_flags & inspect.CO_VARARGS


def is_generator_function(fn: Callable[..., Any]) -> bool:
    """Return whether calling `fn` gives a generator, asynchronous or not."""
    code = getattr(fn, "__code__", None)
    if code is None or code.co_flags & inspect.CO_ITERABLE_COROUTINE:
        return False
    return bool(code.co_flags & _GENERATORS)


_GENERATORS = inspect.CO_GENERATOR | inspect.CO_ASYNC_GENERATOR


def is_coroutine_function(fn: Callable[..., Any]) -> bool:
    """Return whether calling `fn` gives a coroutine: also for partials and callable objects."""
    code = getattr(fn, "__code__", None)
    if code is not None and not hasattr(fn, "_is_coroutine_marker"):
        return bool(code.co_flags & inspect.CO_COROUTINE)
    while isinstance(fn, functools.partial):
        fn = fn.func
    return inspect.iscoroutinefunction(fn) or inspect.iscoroutinefunction(type(fn).__call__)
