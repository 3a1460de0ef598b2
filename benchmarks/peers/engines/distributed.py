"""dask.distributed: its asynchronous client, and workers in local processes."""

import itertools
from collections.abc import Iterable
from typing import Any

from distributed import Client, LocalCluster

from benchmarks.peers.engines import Engine
from benchmarks.peers.engines.dask import dictionary
from benchmarks.peers.work import SLOTS, Work, coroutine

_WORKERS = 2


class Processes(Engine):
    """A cluster on this machine."""

    def __init__(self) -> None:
        self._runs = itertools.count()
        self._threads = 0
        self._cluster: Any = None
        self._client: Any = None

    async def __aexit__(self, *_: object) -> None:
        """Close client and cluster."""
        if self._client is not None:
            await self._client.close()
            await self._cluster.close()

    async def prepare(self, work: Work) -> Work:
        """Start a cluster with one thread a worker, or enough of them for what sleeps."""
        threads = SLOTS // _WORKERS if work.sleeps else 1
        if threads != self._threads:
            await self.__aexit__()
            self._cluster = await LocalCluster(
                n_workers=_WORKERS,
                threads_per_worker=threads,
                processes=True,
                dashboard_address=None,
                asynchronous=True,
            )
            self._client = await Client(self._cluster, asynchronous=True)
            self._threads = threads
        return work

    async def build(self, work: Work) -> Any:
        """Write the dictionary, under names that no graph had before: results are kept by name."""
        return dictionary(work, f"run-{next(self._runs)}", coroutine)

    async def run(self, built: Any) -> Iterable[int]:
        """Send the whole graph to the scheduler and gather the sinks."""
        return await self._client.gather(self._client.get(*built, sync=False))
