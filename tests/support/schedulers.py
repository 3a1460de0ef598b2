"""Schedulers without a plan or an engine: graphs of numbers, and what may start."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import hypothesis.strategies as st

from quantum_async.core import graph
from quantum_async.core.ranking import ranking_of
from quantum_async.core.scheduler import NOBODY, Scheduler


@dataclass
class Plan:
    """The least that a scheduler needs.

    Args:
        edges_up: Dependencies of each unit.
    """

    edges_up: Sequence[Sequence[int]]
    edges_down: tuple[tuple[int, ...], ...] = field(init=False)
    in_degrees: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self.edges_down = graph.inverted(self.edges_up)
        self.in_degrees = [len(ends) for ends in self.edges_up]

    def in_order(self, **options: Any) -> Scheduler:
        """Return a scheduler that starts ready units by number."""
        return Scheduler(self, ranking_of(range(len(self.edges_up)), self.edges_up), **options)

    def as_they_come(self, **options: Any) -> Scheduler:
        """Return a scheduler that starts units first in, first out."""
        return Scheduler(self, None, **options)


def flat(count: int, slots: int | None = None, **options: Any) -> Scheduler:
    """Return a scheduler of units that wait for nothing, in one lane."""
    return Plan([[] for _ in range(count)]).in_order(slots=(slots,), **options)


@st.composite
def dags(draw: st.DrawFn, most: int = 12, least: int = 0) -> list[list[int]]:
    """Draw the dependencies of each unit of a graph."""
    size = draw(st.integers(least, most))
    return [
        sorted(draw(st.sets(st.integers(0, node - 1), max_size=4))) if node else []
        for node in range(size)
    ]


def drain(scheduler: Scheduler) -> list[int]:
    """Start all that may start."""
    started = []
    while (unit := scheduler.next_start()) != NOBODY:
        started.append(unit)
    return started


def skips(scheduler: Scheduler) -> list[tuple[int, int]]:
    """Tell everybody who has not heard of a dependency without a result."""
    told = []
    while (skip := scheduler.next_skip()) is not None:
        told.append(skip)
    return told
