"""What people write without an engine: the other side of most ratios."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from typing import Any

import anyio
from anyio import to_thread

from benchmarks.shapes import Graph

Bare = Callable[[], Coroutine[Any, Any, Any]]


async def gather(unit: Bare, count: int) -> None:
    """Gather bare coroutines."""
    await asyncio.gather(*[unit() for _ in range(count)])


async def task_group(unit: Bare, count: int) -> None:
    """Start bare coroutines in a task group."""
    async with asyncio.TaskGroup() as group:
        for _ in range(count):
            group.create_task(unit())


async def eager_task_group(unit: Bare, count: int) -> None:
    """Start bare coroutines eagerly in a task group: the fastest that people write today."""
    await _eagerly(task_group(unit, count))


async def eager_layers(unit: Bare, graph: Graph) -> None:
    """Run a graph as eager tasks that await the tasks they depend on."""

    async def node(above: list[asyncio.Task[Any]]) -> Any:
        for one in above:
            await one
        return await unit()

    async def run() -> None:
        tasks: list[asyncio.Task[Any]] = []
        async with asyncio.TaskGroup() as group:
            for above in graph.dependencies:
                tasks.append(group.create_task(node([tasks[one] for one in above])))

    await _eagerly(run())


async def _eagerly(work: Coroutine[Any, Any, None]) -> None:
    loop = asyncio.get_running_loop()
    before = loop.get_task_factory()
    loop.set_task_factory(asyncio.eager_task_factory)  # type: ignore[attr-defined, unused-ignore]
    try:
        await work
    finally:
        loop.set_task_factory(before)


async def timed_out_by_asyncio(unit: Bare, count: int, seconds: float) -> None:
    """Gather bare coroutines, each under `asyncio.timeout`."""

    async def limited() -> None:
        async with asyncio.timeout(seconds):
            await unit()

    await gather(limited, count)


async def timed_out_by_anyio(unit: Bare, count: int, seconds: float) -> None:
    """Gather bare coroutines, each under `anyio.fail_after`."""

    async def limited() -> None:
        with anyio.fail_after(seconds):
            await unit()

    await gather(limited, count)


async def in_asyncio_threads(function: Callable[[], Any], count: int) -> None:
    """Gather calls of `asyncio.to_thread`."""
    await asyncio.gather(*[asyncio.to_thread(function) for _ in range(count)])


async def in_anyio_threads(function: Callable[[], Any], count: int, slots: int) -> None:
    """Start calls of `anyio.to_thread.run_sync` in a task group."""
    limiter = anyio.CapacityLimiter(slots)

    async def call() -> None:
        await to_thread.run_sync(function, limiter=limiter)

    async with anyio.create_task_group() as group:
        for _ in range(count):
            group.start_soon(call)


async def level_by_level(graph: Graph) -> None:
    """Sleep a graph's durations, one `gather` a level: what many graph engines do."""
    for level in graph.levels:
        await asyncio.gather(*(asyncio.sleep(graph.durations[node]) for node in level))


async def each_lane(graph: Graph) -> None:
    """Sleep the durations of lanes, one coroutine a lane: nobody can do it faster."""

    async def lane(node: int) -> None:
        while True:
            await asyncio.sleep(graph.durations[node])
            if not graph.dependents[node]:
                return
            node = graph.dependents[node][0]

    await asyncio.gather(*(lane(node) for node in graph.levels[0]))


# -- a ready queue over ProcessPoolExecutor -----------------------------------------------------

Call = Callable[..., Any]
#: What is called for a node, and its arguments before the results that it depends on.
Calls = Sequence[tuple[Call, tuple[Any, ...]]]


async def queue_from_asyncio(graph: Graph, calls: Calls, pool: ProcessPoolExecutor) -> list[Any]:
    """Run a graph in a pool, driven from asyncio; all that is ready is submitted at once."""
    loop = asyncio.get_running_loop()
    results: list[Any] = [None] * len(graph)
    waiting = [len(above) for above in graph.dependencies]
    running: dict[asyncio.Future[Any], int] = {}

    def start(node: int) -> None:
        function, given = calls[node]
        inputs = [*given, *(results[one] for one in graph.dependencies[node])]
        running[loop.run_in_executor(pool, function, *inputs)] = node

    for node in graph.levels[0]:
        start(node)
    while running:
        done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
        for future in done:
            node = running.pop(future)
            results[node] = future.result()
            for dependent in graph.dependents[node]:
                waiting[dependent] -= 1
                if not waiting[dependent]:
                    start(dependent)
    return results


def queue_from_futures(graph: Graph, calls: Calls, pool: ProcessPoolExecutor) -> list[Any]:
    """Do the same with `concurrent.futures.wait`, without a loop."""
    results: list[Any] = [None] * len(graph)
    waiting = [len(above) for above in graph.dependencies]
    running: dict[Future[Any], int] = {}

    def start(node: int) -> None:
        function, given = calls[node]
        inputs = [*given, *(results[one] for one in graph.dependencies[node])]
        running[pool.submit(function, *inputs)] = node

    for node in graph.levels[0]:
        start(node)
    while running:
        done, _ = wait(running, return_when=FIRST_COMPLETED)
        for future in done:
            node = running.pop(future)
            results[node] = future.result()
            for dependent in graph.dependents[node]:
                waiting[dependent] -= 1
                if not waiting[dependent]:
                    start(dependent)
    return results
