"""Ray on this machine: tasks that are given references to what they depend on."""

import logging
import os
import tempfile
from collections.abc import Iterable
from typing import Any, Self

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

import ray

from benchmarks.peers.engines import Engine
from benchmarks.peers.work import SLOTS, Work, function

_CPUS = 2


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
        return self

    async def __aexit__(self, *_: object) -> None:
        """End its processes."""
        ray.shutdown()

    async def run(self, work: Work) -> Iterable[int]:
        """Submit all tasks, and get the sinks; that blocks, and is quicker than to await each."""
        # What sleeps needs no CPU of its own: each slot is a process here.
        unit: Any = ray.remote(num_cpus=_CPUS / SLOTS if work.sleeps else 1)(function)
        calls: list[Any] = []
        for node, seconds, above in work.nodes:
            calls.append(unit.remote(node, seconds, *[calls[one] for one in above]))
        results: Iterable[int] = ray.get([calls[node] for node in work.sinks])
        return results
