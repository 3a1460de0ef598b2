"""What goes to a cluster ahead of its turn: a chain does not come home between its links.

A unit goes as soon as all that it still waits for has been submitted; in its call, references take
the place of their results. For the scheduler and in every event it starts when it always would:
that it is at the cluster already is an optimisation behind their backs.

What its start depends on must not be decided here first: units with a condition, those that read
the whole context, and those below a unit whose policy may turn a result down go in their turn. So
do units that wait for limits; and where slots are limited, only links of a chain go ahead, which
would run one after the other anyway.
"""

from collections import deque
from collections.abc import Callable, Collection, Iterator
from typing import Any, NamedTuple

from quantum_async.core.binding import ContextBinding, Handle, WiredBinding
from quantum_async.core.context import ExecutionContext
from quantum_async.core.plan import ExecutionPlan
from quantum_async.core.scheduler import WAITING, Scheduler
from quantum_async.core.triggers import Trigger
from quantum_async.engine.executors.base import Job
from quantum_async.engine.ledger import Ledger
from quantum_async.engine.view import View

_WINDOW = 4_096  # units that are ahead of their turn at once


class Run(NamedTuple):
    """What of a run its cluster has to do with.

    Attributes:
        plan: The plan.
        scheduler: Knows who waits for how many.
        ledger: Has the results, and counts attempts.
        view: What units see.
        units: The units of the plan that run on the cluster.
        local: Lanes whose units run here and read results that may be there.
        must: Units whose results are needed here in any case, because the engine looks at them.
        wanted: Units whose results are fetched when they have ended, unless they are large.
        read_here: Units whose results some unit reads that runs here.
        limits: Names of the run's limits: what units use besides is the cluster's.
    """

    plan: ExecutionPlan
    scheduler: Scheduler
    ledger: Ledger
    view: View
    units: Collection[int]
    local: frozenset[int]
    must: frozenset[int]
    wanted: frozenset[int]
    read_here: frozenset[int]
    limits: Collection[str]


class _Instead:
    """A context in which what stands for results takes the place of those that are not there."""

    def __init__(self, ctx: ExecutionContext[Any], values: dict[str, Any]) -> None:
        self._ctx = ctx
        self._values = values

    def __getitem__(self, key: Any) -> Any:
        name = key.id if isinstance(key, Handle) else key
        return self._values[name] if name in self._values else self._ctx[key]

    def __contains__(self, key: object) -> bool:
        return key in self._values or key in self._ctx


class Early:
    """Chooses, for one run, what goes ahead.

    Args:
        run: The run.
        send: Submits a job and gives what stands for its result; None if it cannot go yet.
        drop: Takes a job back that was submitted.
    """

    def __init__(self, run: Run, send: Callable[[Job], Any], drop: Callable[[int], object]) -> None:
        self._run = run
        self._send = send
        self._drop = drop
        self._values: dict[int, Any] = {}  # what stands for results of units that are there
        self._ahead: set[int] = set()
        self._flying: dict[int, int] = {}  # how many dependencies of a unit are there
        self._may: dict[int, bool] = {}
        self._units = frozenset(run.units)
        self._only_chains = run.scheduler.total is not None

    def submitted(self, unit: int, value: Any) -> None:
        """A unit has been submitted in its turn: let those go that wait for nothing else.

        Args:
            unit: The unit.
            value: What stands for its result.
        """
        queue = deque([(unit, value)])
        while queue:
            above, value = queue.popleft()
            self._fly(above, value)
            for below in self._ready_below(above):
                if len(self._ahead) >= _WINDOW:
                    return
                sent = self._sent(below)
                if sent is not None:
                    self._ahead.add(below)
                    queue.append((below, sent))

    def begins(self, unit: int) -> bool:
        """A unit begins in its turn; return whether it is there already."""
        if unit in self._ahead:
            self._ahead.discard(unit)
            return True
        return False

    def over(self, unit: int) -> None:
        """A unit's attempt has ended, with or without a result."""
        if self._values.pop(unit, None) is None:
            return
        for below in self._run.plan.edges_down[unit]:
            self._flying[below] -= 1

    def failed(self, unit: int) -> None:
        """A unit has no result: what went ahead with a reference to it is taken back."""
        queue = deque([unit] if unit < self._run.plan.unit_count else ())
        while queue:
            for below in self._run.plan.edges_down[queue.popleft()]:
                if below in self._ahead:
                    self._ahead.discard(below)
                    self.over(below)
                    self._drop(below)
                    queue.append(below)

    def close(self) -> None:
        """The run has ended: take back what is left."""
        for unit in self._ahead:
            self._drop(unit)
        self._ahead.clear()
        self._values.clear()

    def _fly(self, unit: int, value: Any) -> None:
        self._values[unit] = value
        flying = self._flying
        for below in self._run.plan.edges_down[unit]:
            flying[below] = flying.get(below, 0) + 1

    def _ready_below(self, unit: int) -> Iterator[int]:
        scheduler, edges_down = self._run.scheduler, self._run.plan.edges_down
        below = edges_down[unit]
        if self._only_chains and (len(below) != 1 or scheduler.waiting[below[0]] != 1):
            return
        for one in below:
            waits = scheduler.phase[one] == WAITING and one not in self._ahead
            if waits and self._flying[one] == scheduler.waiting[one] and self._may_go(one):
                yield one

    def _may_go(self, unit: int) -> bool:
        known = self._may.get(unit)
        if known is None:
            known = self._may[unit] = unit in self._units and self._is_plain(unit)
        return known

    def _is_plain(self, unit: int) -> bool:
        run, handles = self._run, self._run.plan.handles
        options = handles[unit].options
        binding = options.binding
        reads_all = isinstance(binding, ContextBinding) or (
            isinstance(binding, WiredBinding) and binding.context is not None
        )
        refused = (
            options.special
            or options.shape is not None
            or options.trigger is not Trigger.ALL_SUCCESS
            or reads_all
            or not options.batch
            or bool(run.scheduler.needs_of(unit))
        )
        return not refused and not any(
            handles[above].options.retry is not None and not handles[above].options.retries
            for above in run.plan.edges_up[unit]
        )

    def _sent(self, unit: int) -> Any:
        """Submit a unit's next attempt; None if it cannot be called yet, and goes in its turn."""
        run = self._run
        handle, names = run.plan.handles[unit], run.plan.names
        ctx = ExecutionContext.of(run.view, unit, run.ledger.attempts[unit] + 1)
        values = {
            names[above]: self._values[above]
            for above in run.plan.edges_up[unit]
            if above in self._values
        }
        job = Job.of(handle, ctx)
        try:
            job.args, job.kwargs = handle.options.binding.bind(_Instead(ctx, values))
        except Exception:
            return None  # it fails in its turn, as its own error
        return self._send(job)
