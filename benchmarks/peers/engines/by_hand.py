"""What people write with asyncio alone."""

import asyncio
from collections.abc import Iterable, Sequence
from graphlib import TopologicalSorter

from benchmarks.peers.engines import Engine
from benchmarks.peers.work import Work, coroutine
from benchmarks.shapes import Graph


class Gather(Engine):
    """The floor: bare coroutines that depend on nothing."""

    async def run(self, work: Work) -> Iterable[int]:
        """Gather them all."""
        return await asyncio.gather(*[coroutine(node, seconds) for node, seconds, _ in work.nodes])


class Levels(Engine):
    """One `gather` a level."""

    async def build(self, work: Work) -> tuple[Work, Sequence[Sequence[int]]]:
        """Find the levels."""
        return work, Graph(work.graph.dependencies).levels  # found anew each time

    async def run(self, built: tuple[Work, Sequence[Sequence[int]]]) -> Iterable[int]:
        """Run level by level."""
        work, levels = built
        results: dict[int, int] = {}
        nodes = work.nodes
        for level in levels:
            units = []
            for one in level:
                node, seconds, above = nodes[one]
                units.append(coroutine(node, seconds, *[results[which] for which in above]))
            results.update(zip(level, await asyncio.gather(*units), strict=True))
        return [results[node] for node in work.sinks]


class TaskGroup(Engine):
    """A task for each unit, which awaits the tasks that it depends on."""

    async def run(self, work: Work) -> Iterable[int]:
        """Start all tasks; asyncio orders them."""

        async def unit(node: int, seconds: float, above: list[asyncio.Task[int]]) -> int:
            return await coroutine(node, seconds, *[await one for one in above])

        tasks: list[asyncio.Task[int]] = []
        async with asyncio.TaskGroup() as group:
            for node, seconds, above in work.nodes:
                tasks.append(group.create_task(unit(node, seconds, [tasks[one] for one in above])))
        return [tasks[node].result() for node in work.sinks]


class EagerTaskGroup(TaskGroup):
    """The same with tasks that start at once (Python 3.12 and later)."""

    async def run(self, work: Work) -> Iterable[int]:
        """Start all tasks eagerly."""
        loop = asyncio.get_running_loop()
        loop.set_task_factory(asyncio.eager_task_factory)
        try:
            return await super().run(work)
        finally:
            loop.set_task_factory(None)


class Graphlib(Engine):
    """The recipe of `graphlib`'s documentation, with tasks and a queue."""

    async def build(self, work: Work) -> tuple[Work, TopologicalSorter[int]]:
        """Make the sorter."""
        sorter = TopologicalSorter(dict(enumerate(work.graph.dependencies)))
        sorter.prepare()
        return work, sorter

    async def run(self, built: tuple[Work, TopologicalSorter[int]]) -> Iterable[int]:
        """Start what is ready, wait for something to finish, and again."""
        work, sorter = built
        nodes, results = work.nodes, dict[int, int]()
        finished: asyncio.Queue[int] = asyncio.Queue()

        async def unit(node: int) -> None:
            _, seconds, above = nodes[node]
            results[node] = await coroutine(node, seconds, *[results[one] for one in above])
            finished.put_nowait(node)

        async with asyncio.TaskGroup() as group:
            while sorter.is_active():
                for node in sorter.get_ready():
                    group.create_task(unit(node))
                sorter.done(await finished.get())
        return [results[node] for node in work.sinks]
