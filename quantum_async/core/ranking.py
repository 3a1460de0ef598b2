"""In which order ready units start: a pure function of the plan.

A ranking gives every unit a whole number, smaller is sooner. The scheduler compares numbers and
knows no strategy. First in, first out is no ranking: it depends on what happens.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from quantum_async.core.graph import Edges, remaining_paths
from quantum_async.core.states import Strategy


class Rankable(Protocol):
    """What a ranking looks at; an `ExecutionPlan` has it."""

    @property
    def edges_up(self) -> Edges:
        """Dependencies of each unit."""
        ...

    @property
    def edges_down(self) -> Edges:
        """Dependents of each unit."""
        ...

    @property
    def order(self) -> Sequence[int]:
        """The units, each after its dependencies."""
        ...

    @property
    def priorities(self) -> Sequence[float] | None:
        """Priority of each unit; None if all are alike."""
        ...

    @property
    def streams(self) -> Mapping[int, Sequence[int]]:
        """For each unit that gives items while it runs, the dependents that start with it."""
        ...


@dataclass(frozen=True, slots=True)
class Ranking:
    """An order of all units.

    Attributes:
        units: The units, best first: the unit at each rank.
        ranks: The rank of each unit.
        roots: Ranks of the units without dependencies, worst first.
    """

    units: Sequence[int]
    ranks: Sequence[int]
    roots: Sequence[int]


def ranked(plan: Rankable, strategy: Strategy, costs: Sequence[float]) -> Ranking | None:
    """Return the units' ranking; None for first in, first out, which depends on what happens.

    Args:
        plan: Edges and priorities.
        strategy: What makes a unit better than another.
        costs: Expected cost of each unit; only their proportions matter.
    """
    if strategy is Strategy.FIFO:
        return None
    units = list(range(len(plan.edges_down)))
    # Sorts are stable: the last key that is sorted by decides first, declaration last.
    if strategy is not Strategy.PRIORITY:
        paths = remaining_paths(plan.edges_down, plan.order, costs)
        units.sort(key=paths.__getitem__, reverse=True)
    if plan.priorities is not None:
        units.sort(key=plan.priorities.__getitem__, reverse=True)
    if plan.streams:
        units = _depth_first(units, plan.streams)
    return ranking_of(units, plan.edges_up)


def _depth_first(units: list[int], streams: Mapping[int, Sequence[int]]) -> list[int]:
    """Put who takes items before who gives them: an item goes all the way before the next one."""
    ranked: dict[int, None] = {}
    for unit in units:
        below, trail = [unit], []
        while below:
            trail.append(below.pop())
            below += streams.get(trail[-1], ())
        ranked.update(dict.fromkeys(taker for taker in reversed(trail) if taker not in ranked))
    return list(ranked)


def ranking_of(units: Sequence[int], edges_up: Edges) -> Ranking:
    """Return `units`, best first, as a ranking."""
    ranks = [0] * len(units)
    for rank, unit in enumerate(units):
        ranks[unit] = rank
    roots = [rank for rank, unit in enumerate(units) if not edges_up[unit]]
    roots.reverse()
    return Ranking(units, ranks, roots)
