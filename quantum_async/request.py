"""What a call of `run` asks for."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from quantum_async.core.binding import Handle
from quantum_async.core.context import Around
from quantum_async.core.errors import PlanError
from quantum_async.core.plan import Unit
from quantum_async.core.states import ExecutionMode, FailurePolicy, Strategy
from quantum_async.core.unit import check_number, check_workers, is_coroutine_function
from quantum_async.engine.bus import Observer
from quantum_async.engine.executors.limits import WorkerLimits

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
    around: Callable[[Unit], Around | None] | None
    workers: WorkerLimits


def check_limits(max_workers: Any, timeout: Any) -> None:
    """Refuse limits of a run that cannot be meant.

    Raises:
        PlanError: For workers that are no whole number from 1 up, and bad numbers of seconds.
    """
    check_workers(max_workers)
    check_number("", "timeout", timeout)


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
