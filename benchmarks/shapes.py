"""Task graphs: regular ones to order, the Task Bench patterns, and real ones from files.

Only the standard library is needed here: other engines are given the same graphs.

The patterns are an own implementation of those of Task Bench (Slaughter et al., SC20).
"""

import gzip
import json
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Graph:
    """A graph over whole numbers; each node comes after its dependencies.

    Attributes:
        dependencies: Numbers of each node's dependencies.
        durations: Seconds of each node, where the graph has them.
        labels: What each node is called elsewhere, where it matters.
    """

    dependencies: Sequence[Sequence[int]]
    durations: Sequence[float] = ()
    labels: Sequence[Any] = field(default=())

    def __len__(self) -> int:
        return len(self.dependencies)

    @property
    def edges(self) -> int:
        """How many dependencies there are."""
        return sum(map(len, self.dependencies))

    @cached_property
    def dependents(self) -> Sequence[Sequence[int]]:
        """Numbers of each node's dependents."""
        below: list[list[int]] = [[] for _ in self.dependencies]
        for node, above in enumerate(self.dependencies):
            for one in above:
                below[one].append(node)
        return below

    @cached_property
    def levels(self) -> Sequence[Sequence[int]]:
        """Nodes by longest distance from a root."""
        rows: list[list[int]] = []
        depth: list[int] = []
        for node, above in enumerate(self.dependencies):
            depth.append(max((depth[one] + 1 for one in above), default=0))
            if depth[node] == len(rows):
                rows.append([])
            rows[depth[node]].append(node)
        return rows

    def critical_path(self, durations: Sequence[float] = ()) -> float:
        """Return the seconds of the longest path."""
        durations = durations or self.durations
        ends: list[float] = []
        for node, above in enumerate(self.dependencies):
            ends.append(max((ends[one] for one in above), default=0.0) + durations[node])
        return max(ends, default=0.0)

    def scaled(self, factor: float) -> "Graph":
        """Return the graph with all durations multiplied."""
        return Graph(self.dependencies, [factor * one for one in self.durations], self.labels)


# -- regular shapes -------------------------------------------------------------------------------


def wide(count: int) -> Graph:
    """Nodes side by side."""
    return Graph([()] * count)


def chain(count: int) -> Graph:
    """Nodes one after the other."""
    return Graph([(node - 1,) if node else () for node in range(count)])


def tree(count: int, branches: int = 2) -> Graph:
    """A root that fans out until there are `count` nodes."""
    return Graph([((node - 1) // branches,) if node else () for node in range(count)])


def layered(width: int, depth: int, degree: int = 4) -> Graph:
    """Layers of nodes; each depends on `degree` neighbours in the layer before."""
    dependencies: list[tuple[int, ...]] = [()] * width
    for layer in range(1, depth):
        above = (layer - 1) * width
        dependencies += [
            tuple({above + (column + shift) % width: None for shift in range(degree)})
            for column in range(width)
        ]
    return Graph(dependencies)


def lanes(count: int, length: int, least: float, most: float, seed: int = 1) -> Graph:
    """Chains side by side, whose nodes take random times: no two lanes keep in step."""
    draw = random.Random(seed)
    dependencies = [(node - 1,) if node % length else () for node in range(count * length)]
    return Graph(dependencies, [draw.uniform(least, most) for _ in dependencies])


# -- Task Bench patterns --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Grid:
    """The parameters of a pattern: a grid of `steps` times `width` tasks.

    Attributes:
        width: Columns.
        steps: Time steps.
        radix: How many columns a task wants, in some patterns.
        period: After how many steps a pattern comes again, in some.
        fraction: The chance of a column, in `random_nearest`.
        number: Which of several random graphs.
    """

    width: int
    steps: int
    radix: int = 3
    period: int = 3
    fraction: float = 0.25
    number: int = 0


def _window(grid: Grid, column: int) -> range:
    left = column - grid.radix // 2
    return range(left, left + grid.radix)


def _fft(grid: Grid, step: int, column: int) -> Iterable[int]:
    stages = (grid.width - 1).bit_length()
    if not stages:
        return (column,)
    distance = 1 << ((step - 1) % stages)
    return (column - distance, column, column + distance)


def _spread(grid: Grid, step: int, column: int) -> Iterable[int]:
    width, turned = grid.width, step % grid.period
    return (
        (column + i * width // grid.radix + (turned if i else 0)) % width for i in range(grid.radix)
    )


def _random_nearest(grid: Grid, step: int, column: int) -> Iterable[int]:
    for other in _window(grid, column):
        if other == column or _draw(grid, step % grid.period, other, column) < grid.fraction:
            yield other


def _draw(grid: Grid, phase: int, source: int, target: int) -> float:
    """Return a number from 0 up to 1 that is the same in every run."""
    about = repr((grid.number, grid.radix, phase, source, target)).encode()
    return int.from_bytes(blake2b(about, digest_size=7).digest()) / (1 << 56)


#: For each pattern the columns that a task wants of the step before.
PATTERNS: Mapping[str, Callable[[Grid, int, int], Iterable[int]]] = {
    "trivial": lambda grid, step, column: (),
    "no_comm": lambda grid, step, column: (column,),
    "stencil_1d": lambda grid, step, column: (column - 1, column, column + 1),
    "stencil_1d_periodic": lambda grid, step, column: (
        (column + shift) % grid.width for shift in (-1, 0, 1)
    ),
    "dom": lambda grid, step, column: (column - 1, column),
    "tree": lambda grid, step, column: (column // 2,),
    "fft": _fft,
    "all_to_all": lambda grid, step, column: range(grid.width),
    "nearest": lambda grid, step, column: _window(grid, column),
    "spread": _spread,
    "random_nearest": _random_nearest,
}


def points(pattern: str, grid: Grid, step: int) -> range:
    """Return the columns that exist at a step."""
    if step < 0:
        return range(0)
    if pattern == "tree":
        return range(min(grid.width, 1 << step))
    if pattern == "dom":
        first = max(0, step + grid.width - grid.steps)
        return range(first, first + min(grid.width, step + 1, grid.steps - step))
    return range(grid.width)


def wanted(pattern: str, grid: Grid, step: int, column: int) -> list[int]:
    """Return the columns of the step before that a task depends on, smallest first."""
    there = points(pattern, grid, step - 1)
    return sorted({one for one in PATTERNS[pattern](grid, step, column) if one in there})


def task_bench(pattern: str, grid: Grid) -> Graph:
    """Return a pattern as a graph; a node's label is its (step, column)."""
    numbers: dict[tuple[int, int], int] = {}
    dependencies = []
    for step in range(grid.steps):
        for column in points(pattern, grid, step):
            numbers[step, column] = len(numbers)
            above = wanted(pattern, grid, step, column)
            dependencies.append(tuple(numbers[step - 1, one] for one in above))
    return Graph(dependencies, labels=list(numbers))


# -- real graphs ----------------------------------------------------------------------------------


def load(path: Path) -> Graph:
    """Read a graph file of the shared folder, its nodes put in an order that works."""
    read: Callable[[], bytes] = (
        (lambda: gzip.decompress(path.read_bytes())) if path.suffix == ".gz" else path.read_bytes
    )
    nodes = {node["id"]: node for node in json.loads(read())["nodes"]}
    waiting = {name: len(node["deps"]) for name, node in nodes.items()}
    below: dict[str, list[str]] = {name: [] for name in nodes}
    for name, node in nodes.items():
        for above in node["deps"]:
            below[above].append(name)
    order = [name for name, count in waiting.items() if not count]
    for name in order:  # it grows
        for dependent in below[name]:
            waiting[dependent] -= 1
            if not waiting[dependent]:
                order.append(dependent)
    numbers = {name: number for number, name in enumerate(order)}
    return Graph(
        [tuple(numbers[above] for above in nodes[name]["deps"]) for name in order],
        [nodes[name]["duration"] or 0.0 for name in order],
        order,
    )
