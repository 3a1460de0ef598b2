"""All that one run is made of, put together by the partitioner and read by the engine."""

import math
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from quantum_async.core.effects import EffectLog
from quantum_async.core.limits import Budget
from quantum_async.core.plan import ExecutionPlan
from quantum_async.core.scheduler import Scheduler
from quantum_async.core.states import FailurePolicy
from quantum_async.core.unit import QuantumUnit
from quantum_async.engine.attempt import Layer, Work
from quantum_async.engine.bus import Bus, Complain, NestedBus
from quantum_async.engine.executors.cluster import RemoteExecutor
from quantum_async.engine.ledger import Ledger
from quantum_async.engine.placement import Slots
from quantum_async.engine.rows import Rows
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


class Inside(Protocol):
    """A run inside this one."""

    @property
    def ledger(self) -> Ledger:
        """What happened in it."""
        ...

    def drain(self, cause: str) -> None:
        """Let nothing start any more, and what runs go on."""
        ...


@dataclass(frozen=True, slots=True)
class Outer:
    """The run around a nested one, as that needs it.

    Attributes:
        run_id: Its name and the unit's, which begin the names of tasks.
        slots: The slots that both use.
        budget: The limits that both use.
        bus: Takes the nested run's events.
        ends_at: When the unit around it must have ended, by the loop's clock.
        priority: Larger goes before other runs.
        effects: Takes the nested run's side effects.
        prefix: What comes before the names of its units.
        keep: Takes the nested run's result, however it ends.
        began: Takes the nested run, before it runs.
        executor: The cluster of both.
    """

    run_id: str
    slots: Slots
    budget: Budget | None
    bus: NestedBus
    ends_at: float
    priority: float
    effects: EffectLog
    prefix: str
    keep: Callable[[Any], None]
    began: Callable[[Inside], None]
    executor: RemoteExecutor | None = None


# Runs a partitioner inside a run: from the partitioner, its input and the options of the run.
Nest = Callable[[Any, Any, dict[str, Any], Outer], Coroutine[Any, Any, Any]]


@dataclass(frozen=True, slots=True)
class Setup:
    """All that one run is made of.

    Attributes:
        plan: What runs.
        scheduler: Decides what may run.
        ledger: Takes down what happened.
        view: What the units see.
        rows: The units by number.
        bus: Takes the events to those who listen.
        places: For each lane what runs a job there.
        clock: Monotonic seconds.
        policy: What one unit's failure means for the others.
        timeout: Seconds the run may take.
        keep: Units whose results are kept to the end; None for all.
        around: Gives for a unit what is wrapped around each of its attempts, or None.
        bind: Called in each attempt's own context variables, with the unit's name and attempt.
        companions: What begins and ends with the run.
        slots: The slots of the run, for runs inside it.
        budget: The limits that its units use; None if there are none.
        shares: Whether slots or limits are shared with other runs.
        wanted: Units that were asked for by name.
        nest: Runs a partitioner inside the run.
        ends_at: When the run must have ended, by the loop's clock, because of one around it.
        priority: Larger goes before other runs that it shares something with.
        inside: The runs that go on inside it.
        complain: Takes a sentence about what is wrong, and an exception or None.
        executor: The cluster of the run, for runs inside it.
        arriving: Makes of a unit's work, by lane, one that first fetches what it reads.
    """

    plan: ExecutionPlan
    scheduler: Scheduler
    ledger: Ledger
    view: View
    rows: Rows
    bus: Bus | NestedBus
    places: Sequence[Work]
    clock: Callable[[], float]
    policy: FailurePolicy
    complain: Complain
    timeout: float | None = None
    keep: frozenset[int] | None = None
    around: Callable[[QuantumUnit[Any, Any]], Layer | None] | None = None
    bind: Callable[[str, int], object] | None = None
    companions: Sequence[Companion] = ()
    slots: Slots = field(default_factory=lambda: Slots(None))
    budget: Budget | None = None
    shares: bool = False
    wanted: frozenset[int] = frozenset()
    nest: Nest | None = None
    ends_at: float = math.inf
    priority: float = 0
    inside: set[Inside] = field(default_factory=set)
    executor: RemoteExecutor | None = None
    arriving: Callable[[Work, int], Work] | None = None

    @property
    def is_special(self) -> bool:
        """Whether any unit has to be looked at, opened, or read while it runs."""
        return bool(self.plan.special or self.plan.streams or self.plan.has_generators)
