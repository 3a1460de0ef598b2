"""What every engine is given to do, and what has to come out.

Runs in the engines' own environments: only the standard library is needed here.
"""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from benchmarks import shapes
from benchmarks.shapes import Graph

#: At least so many units can sleep at once where an engine has to be told.
SLOTS: Final = 32
_PRIME = 1_000_003


# -- units ----------------------------------------------------------------------------------------


def value(node: int, *inputs: int) -> int:
    """Return the result of a node: another one if an input is wrong."""
    return (31 * sum(inputs) + node + 1) % _PRIME


async def coroutine(node: int, seconds: float, *inputs: int) -> int:
    """Be a unit that runs on the loop."""
    if seconds:
        await asyncio.sleep(seconds)
    return value(node, *inputs)


def function(node: int, seconds: float, *inputs: int) -> int:
    """Be a unit that runs in a thread or a process."""
    if seconds:
        time.sleep(seconds)
    return value(node, *inputs)


# -- graphs ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Work:
    """A graph whose units are to be run.

    Attributes:
        graph: The graph.
        seconds: How long each unit sleeps; all zero where overhead is measured.
    """

    graph: Graph
    seconds: Sequence[float]

    @property
    def sleeps(self) -> bool:
        """Whether its units sleep."""
        return any(self.seconds)

    @cached_property
    def sinks(self) -> Sequence[int]:
        """Nodes that nothing depends on: their results depend on those of all the others."""
        return [node for node, below in enumerate(self.graph.dependents) if not below]

    @cached_property
    def outcome(self) -> int:
        """The sum of the results of `sinks`."""
        values: list[int] = []
        for node, above in enumerate(self.graph.dependencies):
            values.append(value(node, *(values[one] for one in above)))
        return sum(values[node] for node in self.sinks)

    @cached_property
    def nodes(self) -> Sequence[tuple[int, float, Sequence[int]]]:
        """Number, seconds and dependencies of each node, after those it depends on."""
        return [
            (node, seconds, above)
            for node, (seconds, above) in enumerate(
                zip(self.seconds, self.graph.dependencies, strict=True)
            )
        ]


def _idle(graph: Graph) -> Work:
    return Work(graph, [0.0] * len(graph))


def _layered(count: int) -> Graph:
    width = max(4, min(100, count // 10))
    return shapes.layered(width, max(2, count // width), degree=4)


#: Units that do nothing: what a unit costs. By name, for about so many units.
OVERHEAD: Final[Mapping[str, Callable[[int], Graph]]] = {
    "wide": shapes.wide,
    "chain": shapes.chain,
    "layered": _layered,
    "tree": shapes.tree,
}

#: Units that sleep: how good the order is. Lanes, and real workflows by the file's name.
LANES: Final = "lanes"
MAKESPAN: Final = (LANES, "wf-airrflow-dirt02-001", "dax-montage_50")
_LENGTH, _LEAST, _MOST = 20, 0.001, 0.010  # lanes and units in each, seconds of a unit
_PATH = 0.4  # seconds that a workflow's critical path is scaled to


def work(case: str, count: int, graphs: str) -> Work:
    """Return a case.

    Args:
        case: A name in `OVERHEAD` or `MAKESPAN`.
        count: How many units there are where nothing sleeps; else the most units in a lane.
        graphs: The folder of real task graphs.

    Raises:
        FileNotFoundError: There is no such workflow.
    """
    if case in OVERHEAD:
        return _idle(OVERHEAD[case](count))
    if case == LANES:
        length = min(_LENGTH, count)
        graph = shapes.lanes(length, length, _LEAST, _MOST)
        return Work(graph, graph.durations)
    graph = shapes.load(workflow(case, graphs))
    graph = graph.scaled(_PATH / graph.critical_path())
    return Work(graph, graph.durations)


def workflow(case: str, graphs: str) -> Path:
    """Return the file of a real workflow.

    Raises:
        FileNotFoundError: It is not in the folder.
    """
    found = sorted(Path(graphs).glob(f"{case}.json*"))
    if not found:
        raise FileNotFoundError(f"no {case}.json in {graphs}")
    return found[0]


# -- as source ------------------------------------------------------------------------------------

_SOURCE = """
{kind} {name}({parameters}) -> int:
    return {call}({node}, {seconds!r}, {arguments})
"""


def named(work: Work, on_loop: bool) -> Mapping[str, Callable[..., Any]]:
    """Write a function for each node, which names its dependencies as its parameters.

    That is how one declares a graph to some engines.

    Args:
        work: The graph.
        on_loop: Whether to write coroutine functions.
    """
    kind, call = ("async def", "await coroutine") if on_loop else ("def", "function")
    source = "".join(
        _SOURCE.format(
            kind=kind,
            name=f"n{node}",
            parameters=", ".join(f"n{one}: int" for one in above),
            call=call,
            node=node,
            seconds=seconds,
            arguments=", ".join(f"n{one}" for one in above),
        )
        for node, seconds, above in work.nodes
    )
    space: dict[str, Any] = {
        "__name__": "written_down",
        "coroutine": coroutine,
        "function": function,
    }
    exec(source, space)
    return {f"n{node}": space[f"n{node}"] for node in range(len(work.graph))}
