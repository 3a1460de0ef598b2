"""A second driver of the scheduler: modelled time, no loop."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import Protocol

from quantum_async.core.checks import check_number, check_workers
from quantum_async.core.errors import PlanError, did_you_mean
from quantum_async.core.graph import Edges
from quantum_async.core.ranking import Ranking, ranked
from quantum_async.core.scheduler import NOBODY, Scheduler
from quantum_async.core.states import Strategy


@dataclass(frozen=True, slots=True)
class Simulation:
    """What a run would have been.

    Attributes:
        makespan: Seconds from the start to the last end.
        starts: Seconds from the run's start to each unit's, by unit name.
        ends: The same for each unit's end.
    """

    makespan: float
    starts: Mapping[str, float]
    ends: Mapping[str, float]


class Simulatable(Protocol):
    """What a simulation needs of a plan."""

    @property
    def names(self) -> Sequence[str]: ...  # noqa: D102
    @property
    def costs(self) -> Sequence[float]: ...  # noqa: D102
    @property
    def edges_up(self) -> Edges: ...  # noqa: D102
    @property
    def edges_down(self) -> Edges: ...  # noqa: D102
    @property
    def in_degrees(self) -> list[int]: ...  # noqa: D102
    @property
    def order(self) -> Sequence[int]: ...  # noqa: D102
    @property
    def priorities(self) -> Sequence[float] | None: ...  # noqa: D102
    @property
    def streams(self) -> Mapping[int, Sequence[int]]: ...  # noqa: D102
    def ranking(self, strategy: Strategy) -> Ranking | None: ...  # noqa: D102


def simulate(
    plan: Simulatable,
    durations: Mapping[str, float] | Callable[[str], float] | None,
    max_workers: int | None,
    strategy: Strategy,
) -> Simulation:
    """Run the scheduler of `plan` on modelled time; see `ExecutionPlan.simulate`."""
    check_workers(max_workers)
    seconds = _durations(plan, durations)
    # Units are ranked by the time they will take here, not by what was declared.
    ranking = plan.ranking(strategy) if seconds is plan.costs else ranked(plan, strategy, seconds)
    scheduler = Scheduler(plan, ranking, max_running=max_workers)
    starts = [0.0] * len(seconds)
    ends = [0.0] * len(seconds)
    running: list[tuple[float, int]] = []
    now = 0.0
    while True:
        while (unit := scheduler.next_start()) != NOBODY:
            starts[unit], ends[unit] = now, now + seconds[unit]
            heappush(running, (ends[unit], unit))
        if not running:
            break
        # All that ends at one moment ends before anything starts at it.
        now = running[0][0]
        while running and running[0][0] == now:
            scheduler.complete(heappop(running)[1])
    names = plan.names
    return Simulation(
        makespan=max(ends, default=0.0),
        starts=dict(zip(names, starts, strict=True)),
        ends=dict(zip(names, ends, strict=True)),
    )


def _durations(
    plan: Simulatable, durations: Mapping[str, float] | Callable[[str], float] | None
) -> Sequence[float]:
    if durations is None:
        return plan.costs
    if isinstance(durations, Mapping):
        known = set(plan.names)
        for name in durations:
            if name not in known:
                raise PlanError(
                    f"durations name {name!r}, and no unit has that name"
                    f"{did_you_mean(name, plan.names)}"
                )
        modelled = [durations.get(n, cost) for n, cost in zip(plan.names, plan.costs, strict=True)]
    elif not callable(durations):
        raise PlanError(
            f"durations must be a mapping or a function of the unit's name, not {durations!r}"
        )
    else:
        modelled = [durations(name) for name in plan.names]
    for name, value in zip(plan.names, modelled, strict=True):
        if value is None:
            raise PlanError(f"unit {name!r}: its duration must be a number, not None")
        check_number(name, "its duration", value)
    return modelled
