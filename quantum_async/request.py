"""What a call of `run` asks for."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from quantum_async.core.binding import Handle
from quantum_async.core.checks import check_number, check_workers
from quantum_async.core.errors import PlanError
from quantum_async.core.limits import Budget
from quantum_async.core.plan import ExecutionPlan, Unit
from quantum_async.core.states import ExecutionMode, FailurePolicy, Strategy
from quantum_async.core.unit import is_coroutine_function
from quantum_async.engine.bus import Observer
from quantum_async.engine.executors.limits import WorkerLimits
from quantum_async.engine.placement import Slots
from quantum_async.observe.stream import Live

if TYPE_CHECKING:
    from quantum_async.engine.attempt import Layer  # at run time only the engine needs it
    from quantum_async.engine.executors.cluster import RemoteExecutor
    from quantum_async.engine.setup import Outer

Names = Iterable["str | Handle"]


@dataclass(frozen=True, slots=True)
class RunRequest:
    """What a call of `run` asks for; see `QuantumPartitioner.run`."""

    input: Any
    mode: ExecutionMode
    max_workers: int | None
    custom_executor: Any
    strategy: Strategy
    failure_policy: FailurePolicy
    timeout: float | None
    targets: "Names | str | Handle | None"
    overrides: Mapping[Any, Any] | None
    resume_from: Any
    keep: "Names | str | Handle"
    observers: Sequence[Observer]
    run_id: str | None
    partitioner: str
    around: "Callable[[Unit], Layer | None] | None"
    workers: WorkerLimits
    priority: float = 0
    budget: Budget | None = None  # the limits that its units may use
    slots: Slots | None = None  # those that it shares with other runs
    shares: bool = False  # whether it shares anything with other runs
    dry_run: bool = False  # whether side effects are taken down and not performed
    outer: "Outer | None" = None  # the run around it
    watch: Callable[[Live], None] | None = None  # takes the run as it begins
    interventions: "tuple[Intervention, ...]" = ()
    executor: "RemoteExecutor | None" = None  # the cluster of remote units
    order: Sequence[int] | None = None  # of the ready queue, best first, instead of `strategy`


class Intervention(Protocol):
    """What changes runs from outside: the doubles and faults of `quantum_async.testing`."""

    @property
    def outermost(self) -> bool:
        """Whether it goes around all others."""
        ...

    @property
    def goes_inside(self) -> bool:
        """Whether it holds for runs inside runs too."""
        ...

    def amend(self, flow: object, plan: ExecutionPlan, request: RunRequest) -> RunRequest:
        """Return the request of a run as it shall be; called in the task that awaits the run.

        Raises:
            PlanError: If it names a unit that there is not.
        """
        ...


# Those whose ``with`` block this is. Runs that start in it, in this task and its children, obey.
interventions: ContextVar[tuple[Intervention, ...]] = ContextVar(
    "quantum_async_interventions", default=()
)


def checked_interventions(faults: Any) -> tuple[Intervention, ...]:
    """Return all that applies to a run that is asked for here: `faults`, and the blocks around.

    Raises:
        PlanError: If `faults` cannot be meant.
    """
    active = interventions.get()
    if faults is not None:
        if not callable(getattr(faults, "amend", None)):
            raise PlanError(f"faults must be quantum_async.testing.Faults, not {faults!r}")
        active += (faults,)
    return tuple(sorted(active, key=lambda one: one.outermost)) if active else ()


def checked_executor(executor: Any) -> "RemoteExecutor | None":
    """Return the cluster of a run, if it has one.

    Raises:
        PlanError: If it is none.
    """
    if executor is None:
        return None
    if isinstance(executor, type) or not callable(getattr(executor, "attach", None)):
        hint = ""
        if callable(getattr(executor, "submit", None)):
            hint = "; for a concurrent.futures.Executor it is custom_executor=…"
        raise PlanError(f"executor must be a cluster, as DaskExecutor(…), not {executor!r}{hint}")
    found: RemoteExecutor = executor
    return found


def check_limits(max_workers: Any, timeout: Any) -> None:
    """Refuse limits of a run that cannot be meant.

    Raises:
        PlanError: For workers that are no whole number from 1 up, and bad numbers of seconds.
    """
    check_workers(max_workers)
    check_number("", "timeout", timeout)


def checked_flag(name: str, value: Any) -> bool:
    """Return an option that is on or off.

    Raises:
        PlanError: If it is neither True nor False.
    """
    if not isinstance(value, bool):
        raise PlanError(f"{name} must be True or False, not {value!r}")
    return value


def checked_observers(observers: Any) -> list[Observer]:
    """Return observers as a list.

    Raises:
        PlanError: If they are no list, or one of them cannot be called.
    """
    try:
        listed = list(observers)
    except TypeError:
        raise PlanError(f"observers must be a list of callables, not {observers!r}") from None
    for observer in listed:
        if not callable(observer):
            raise PlanError(f"observers must be callables that take an event, not {observer!r}")
        if is_coroutine_function(observer):
            raise PlanError(
                f"observers are called and not awaited, and {observer!r} is asynchronous: take the "
                "events from stream()"
            )
    return listed


def or_else(given: Any, default: Any) -> Any:
    """Return what was given, or the default if nothing was."""
    return default if given is None else given
