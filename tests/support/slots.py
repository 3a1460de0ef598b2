"""How many units really run at once: counted by themselves, in their threads and processes."""

import contextlib
import os
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tenacity

from quantum_async import QuantumPartitioner, RetryPolicy
from tests.support.processes import alive

_AGAIN = RetryPolicy(stop=tenacity.stop_after_attempt(2), wait=tenacity.wait_none())


class Threads:
    """Units in threads, some of which outlive their time limit.

    Attributes:
        now: How many run now, those that were given up included.
        most: The most that ran at once.
        total: How many have run.
    """

    def __init__(self) -> None:
        self.now = self.most = self.total = 0
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def one_more(self) -> Iterator[None]:
        with self._lock:
            self.now += 1
            self.total += 1
            self.most = max(self.most, self.now)
        try:
            yield
        finally:
            with self._lock:
                self.now -= 1

    def work(self, seconds: float) -> None:
        """Take so long, whatever time limit there is."""
        with self.one_more():
            time.sleep(seconds)


def work(folder: str, seconds: float) -> int:
    """Take so long in a worker process; return how many do so at the same time.

    A process that was killed leaves its file behind, and is no longer alive.
    """
    mine = Path(folder, str(os.getpid()))
    mine.touch()
    found = sum(alive(name) for name in os.listdir(folder))
    time.sleep(seconds)
    found = max(found, sum(alive(name) for name in os.listdir(folder)))
    mine.unlink()
    return found


def slow_flow(
    chance: random.Random, count: int, threads: Threads, folder: str = ""
) -> QuantumPartitioner[Any, Any]:
    """Return a graph of units that take a little real time; some are stopped by their timeout.

    Args:
        chance: The seed's.
        count: How many units.
        threads: Counts those in threads.
        folder: Where those in processes count themselves; if it is empty there are none.
    """
    flow: QuantumPartitioner[Any, Any] = QuantumPartitioner(failure_policy="collect")
    for number in range(count):
        seconds = chance.choice([0.001, 0.005, 0.02])
        limit = chance.choice([None, None, 0.01])
        retry = chance.choice([None, _AGAIN])
        if folder and chance.random() < 0.5:
            flow.add_unit(
                work, name=f"p{number}", args=[folder, seconds], mode="process", timeout=limit,
                retry=retry,
            )  # fmt: skip
        else:
            flow.add_unit(
                threads.work, name=f"t{number}", args=[seconds], timeout=limit, retry=retry
            )
    return flow
