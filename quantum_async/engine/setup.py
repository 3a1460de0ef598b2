"""All that one run is made of, put together by the partitioner and read by the engine."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from quantum_async.core.plan import ExecutionPlan
from quantum_async.core.scheduler import Scheduler
from quantum_async.core.states import FailurePolicy
from quantum_async.core.unit import QuantumUnit
from quantum_async.engine.attempt import Layer, Work
from quantum_async.engine.bus import Bus, Complain
from quantum_async.engine.ledger import Ledger
from quantum_async.engine.view import View


class Resizable(Protocol):
    """A run whose number of slots can be changed while it goes on."""

    def resize(self, max_running: int) -> None:
        """Change how many units may run at once."""
        ...


class Companion(Protocol):
    """Something that begins and ends with a run: a pool that warms up, a governor of slots."""

    def begin(self, run: "Resizable") -> None:
        """The run starts."""
        ...

    async def end(self) -> None:
        """The run has ended; what it began must end too."""
        ...


@dataclass(frozen=True, slots=True)
class Setup:
    """All that one run is made of.

    Attributes:
        plan: What runs.
        scheduler: Decides what may run.
        ledger: Takes down what happened.
        view: What the units see.
        bus: Takes the events to those who listen.
        places: For each lane what runs a job there.
        clock: Monotonic seconds.
        policy: What one unit's failure means for the others.
        timeout: Seconds the run may take.
        keep: Units whose results are kept to the end; None for all.
        around: Gives for a unit what is wrapped around each of its attempts, or None.
        bind: Called in each attempt's own context variables, with the unit's name and attempt.
        companions: What begins and ends with the run.
        complain: Takes a sentence about what is wrong, and an exception or None.
    """

    plan: ExecutionPlan
    scheduler: Scheduler
    ledger: Ledger
    view: View
    bus: Bus
    places: Sequence[Work]
    clock: Callable[[], float]
    policy: FailurePolicy
    complain: Complain
    timeout: float | None = None
    keep: frozenset[int] | None = None
    around: Callable[[QuantumUnit[Any, Any]], Layer | None] | None = None
    bind: Callable[[str, int], object] | None = None
    companions: Sequence[Companion] = ()
