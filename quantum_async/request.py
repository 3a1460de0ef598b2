"""What a call of `run` asks for."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from quantum_async.core.binding import Handle
from quantum_async.core.context import Around
from quantum_async.core.plan import Unit
from quantum_async.core.states import ExecutionMode, FailurePolicy, Strategy
from quantum_async.core.unit import check_number, check_workers
from quantum_async.engine.bus import Observer

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


def check_limits(max_workers: Any, timeout: Any) -> None:
    """Refuse limits of a run that cannot be meant.

    Raises:
        PlanError: For workers that are no whole number from 1 up, and bad numbers of seconds.
    """
    check_workers(max_workers)
    check_number("", "timeout", timeout)
