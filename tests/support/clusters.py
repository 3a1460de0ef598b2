"""A Dask cluster of two worker processes that tests share, and what is ours on it."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import dask
from distributed import Client, LocalCluster


@contextmanager
def local_cluster(**options: Any) -> Iterator[LocalCluster]:
    """Start two workers with one thread each, and end them."""
    quiet = {"distributed.admin.log-format": "%(message)s", "distributed.logging": {}}
    settings = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": ":0"} | options
    with dask.config.set(quiet), LocalCluster(processes=True, silence_logs=50, **settings) as made:
        yield made


def _ours(dask_scheduler: Any = None) -> list[str]:
    topics = dask_scheduler._broker._topics
    return [*dask_scheduler.tasks, *(name for name in topics if name.startswith("quantum"))]


async def left_on(client: Client, expected: int = 0) -> list[str]:
    """Return the keys and topics that are on a cluster, once there are as many as expected."""
    for _ in range(100):
        left = await client.run_on_scheduler(_ours)
        if len(left) == expected:
            break
        await asyncio.sleep(0.02)  # releases travel: there is nothing here to wait for
    return list(left)
