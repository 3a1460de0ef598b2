"""Tawazi: a DAG described by a function, its nodes in threads."""

from collections.abc import Iterable
from typing import Any

from tawazi import dag, xn

from benchmarks.peers.engines import Engine
from benchmarks.peers.work import SLOTS, Work, function


class Threads(Engine):
    """A synchronous DAG, with as many threads as units sleep at once."""

    async def build(self, work: Work) -> Any:
        """Describe it: the calls of nodes in there make the graph."""
        node_of = xn(function)

        @dag(max_concurrency=SLOTS, is_async=True)
        def described() -> list[Any]:
            calls: list[Any] = []
            for node, seconds, above in work.nodes:
                calls.append(node_of(node, seconds, *[calls[one] for one in above]))
            return [calls[node] for node in work.sinks]

        return described

    async def run(self, built: Any) -> Iterable[int]:
        """Call it."""
        results: Iterable[int] = await built()
        return results
