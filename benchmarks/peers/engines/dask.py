"""Dask's threads, on graphs of one's own as its documentation writes them: as dictionaries."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dask import threaded

from benchmarks.peers.engines import Engine
from benchmarks.peers.work import SLOTS, Work, function

Graph = Mapping[str, Any]


class Threads(Engine):
    """The threaded scheduler, with its own number of threads unless units sleep."""

    async def build(self, work: Work) -> tuple[Graph, Sequence[str], int | None]:
        """Write the dictionary."""
        return *dictionary(work), SLOTS if work.sleeps else None

    async def run(self, built: tuple[Graph, Sequence[str], int | None]) -> Iterable[int]:
        """Compute the sinks; it blocks, there is no asynchronous form."""
        graph, sinks, workers = built
        return threaded.get(graph, sinks, num_workers=workers)


def dictionary(
    work: Work, prefix: str = "unit", unit: Any = function
) -> tuple[Graph, Sequence[str]]:
    """Return the graph in Dask's form, and the names of the sinks."""
    names = [f"{prefix}-{node}" for node in range(len(work.graph))]
    graph = {
        names[node]: (unit, node, seconds, *[names[one] for one in above])
        for node, seconds, above in work.nodes
    }
    return graph, [names[node] for node in work.sinks]
