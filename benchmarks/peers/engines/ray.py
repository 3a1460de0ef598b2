"""Ray on this machine: tasks that are given references to what they depend on."""

import logging
import os
import tempfile
from collections.abc import Iterable
from typing import Any, Self

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

import ray

from benchmarks.peers.engines import Engine
from benchmarks.peers.work import SLOTS, Work, coroutine, function

_CPUS = 2


class Sleepers:
    """An asynchronous actor: many calls of it wait at once in one process."""

    async def unit(self, node: int, seconds: float, *inputs: int) -> int:
        """Be a unit."""
        return await coroutine(node, seconds, *inputs)


class Tasks(Engine):
    """Tasks start when they are submitted: there is nothing to build apart from that."""

    async def __aenter__(self) -> Self:
        ray.init(
            num_cpus=_CPUS,
            include_dashboard=False,
            logging_level=logging.ERROR,
            log_to_driver=False,
            _temp_dir=tempfile.gettempdir(),
        )
        self._unit: Any = ray.remote(function)
        kind: Any = ray.remote(num_cpus=0, max_concurrency=SLOTS)(Sleepers)
        self._sleepers = [kind.remote() for _ in range(_CPUS)]
        return self

    async def __aexit__(self, *_: object) -> None:
        """End its processes."""
        ray.shutdown()

    async def run(self, work: Work) -> Iterable[int]:
        """Submit all units, and get the sinks; that blocks, and is quicker than to await each."""
        calls: list[Any] = []
        for node, seconds, above in work.nodes:
            # A task that sleeps would keep a process busy.
            unit = self._sleepers[node % _CPUS].unit if seconds else self._unit
            calls.append(unit.remote(node, seconds, *[calls[one] for one in above]))
        results: Iterable[int] = ray.get([calls[node] for node in work.sinks])
        return results
