"""Prefect: an asynchronous flow that awaits its tasks."""

import asyncio
import os
import tempfile
from collections.abc import Iterable
from typing import Any

os.environ.pop("PREFECT_API_URL", None)  # a server that is there already
os.environ |= {
    "DO_NOT_TRACK": "1",
    "PREFECT_HOME": tempfile.gettempdir(),
    "PREFECT_LOGGING_LEVEL": "CRITICAL",
    "PREFECT_LOGGING_SERVER_LEVEL": "CRITICAL",
    "PREFECT_LOGGING_TO_API_ENABLED": "false",
    "PREFECT_RESULTS_PERSIST_BY_DEFAULT": "false",
    "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "true",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
}

from prefect import flow, task
from prefect.cache_policies import NO_CACHE

from benchmarks.peers.engines import Engine
from benchmarks.peers.work import Work, coroutine


class Flow(Engine):
    """Against the server that Prefect starts by itself; it does not run without one.

    Tasks that are awaited and ordered by hand cost a tenth of those that are submitted to a task
    runner with the futures they depend on.
    """

    async def prepare(self, work: Work) -> Any:
        """Write flow and task."""
        unit = task(coroutine, cache_policy=NO_CACHE)

        @flow
        async def awaits() -> list[int]:
            async def ordered(node: int, seconds: float, above: list[asyncio.Task[int]]) -> int:
                return await unit(node, seconds, *[await one for one in above])

            calls: list[asyncio.Task[int]] = []
            async with asyncio.TaskGroup() as group:
                for node, seconds, above in work.nodes:
                    inputs = [calls[one] for one in above]
                    calls.append(group.create_task(ordered(node, seconds, inputs)))
            return [calls[node].result() for node in work.sinks]

        return awaits

    async def run(self, built: Any) -> Iterable[int]:
        """Call the flow."""
        results: Iterable[int] = await built()
        return results
