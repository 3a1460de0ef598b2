"""A unit of work as it was declared, and the handle that users hold of it."""

import functools
import inspect
from collections.abc import Callable, Iterable, Iterator
from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING, Any, Generic, Protocol

from quantum_async.core.binding import ExactBinding, Handle, WiredBinding, handles_in
from quantum_async.core.options import DEFAULT_OPTIONS, UnitOptions, make_options
from quantum_async.core.record import UnitRecord
from quantum_async.core.shapes import Included, ItemBinding, Mapped, Shape
from quantum_async.core.states import ExecutionMode, UnitState

if TYPE_CHECKING:
    # With defaults, so that a plain `QuantumPartitioner()` needs no annotation.
    from typing_extensions import TypeVar

    T = TypeVar("T", default=Any)
    R = TypeVar("R", default=Any)
else:
    from typing import TypeVar

    T = TypeVar("T")
    R = TypeVar("R")


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
        dependencies: Iterable[str | Handle] = (),
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
        self._after: tuple[str | Handle, ...] = tuple(dependencies)
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
        elif isinstance(binding, WiredBinding | ItemBinding):
            wired = binding.others if isinstance(binding, ItemBinding) else binding
            # A parameter may be named after a unit that is declared later than this one.
            names += [name for name in wired.names if self._is_declared(name)]
        names += (it if isinstance(it, str) else it.id for it in self.options.streams)
        if self.options.shape is not None:
            names += self._of_shape(self.options.shape)
        return list(dict.fromkeys(names)) if len(names) > 1 else names

    def _is_declared(self, name: str) -> bool:
        owner = self._owner()
        return name in getattr(owner, "units", ()) or name in getattr(owner, "resources", ())

    def _of_shape(self, shape: Shape) -> Iterator[str]:
        if isinstance(shape, Mapped):
            over = shape.over
            if isinstance(over, Handle) or (isinstance(over, str) and self._is_declared(over)):
                yield over if isinstance(over, str) else over.id
        elif isinstance(shape, Included):
            yield from (handle.id for handle in handles_in([shape.input]))

    @property
    def declared(self) -> tuple[str | Handle, ...]:
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
