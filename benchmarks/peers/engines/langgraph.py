"""LangGraph: a compiled state graph, without checkpoints."""

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, TypedDict

from langgraph.func import entrypoint, task
from langgraph.graph import START, StateGraph

from benchmarks.peers.engines import Engine
from benchmarks.peers.work import Work, coroutine

os.environ["LANGSMITH_TRACING"] = "false"

Node = Callable[[Any], Awaitable[dict[str, int]]]


class Compiled(Engine):
    """A key of the state for each node's result; a node is shown only those that it reads."""

    async def build(self, work: Work) -> tuple[Any, Sequence[str], dict[str, Any]]:
        """Add nodes and edges, and compile."""
        names = [f"n{node}" for node in range(len(work.graph))]
        sinks = [names[node] for node in work.sinks]
        state = TypedDict("State", dict.fromkeys(names, int))
        graph = StateGraph(state, input_schema=TypedDict("Input", {}), output_schema=_schema(sinks))
        for node, seconds, above in work.nodes:
            read = [names[one] for one in above]
            graph.add_node(names[node], _node(node, seconds, read), input_schema=_schema(read))
            # A list is waited for as a whole.
            graph.add_edge(read if read else START, names[node])
        limit = {"recursion_limit": len(work.graph.levels) + 10}  # of steps: one a level
        return graph.compile(), sinks, limit

    async def run(self, built: tuple[Any, Sequence[str], dict[str, Any]]) -> Iterable[int]:
        """Invoke it."""
        graph, sinks, limit = built
        state = await graph.ainvoke({}, limit)
        return [state[name] for name in sinks]


def _schema(names: Sequence[str]) -> Any:
    return TypedDict("Part", dict.fromkeys(names, int))


def _node(node: int, seconds: float, read: Sequence[str]) -> Node:
    name = f"n{node}"

    async def run(state: Any) -> dict[str, int]:
        return {name: await coroutine(node, seconds, *[state[one] for one in read])}

    return run


class Functional(Engine):
    """Tasks in an entry point, ordered by hand: a task is called once its inputs are there."""

    async def prepare(self, work: Work) -> Any:
        """Write the entry point."""
        unit = task(coroutine)

        @entrypoint()
        async def flow(_: Any) -> list[int]:
            async def ordered(node: int, seconds: float, above: list[asyncio.Task[int]]) -> int:
                return await unit(node, seconds, *[await one for one in above])

            calls: list[asyncio.Task[int]] = []
            async with asyncio.TaskGroup() as group:
                for node, seconds, above in work.nodes:
                    inputs = [calls[one] for one in above]
                    calls.append(group.create_task(ordered(node, seconds, inputs)))
            return [calls[node].result() for node in work.sinks]

        return flow

    async def run(self, built: Any) -> Iterable[int]:
        """Invoke it."""
        results: list[int] = await built.ainvoke({})
        return results
