"""Work that an event loop cannot see: what says so itself, and anyio's threads and processes.

anyio tells nobody who is busy, so this looks into its lists of workers, which are not public. They
are asked for by loop and not through `RunVar.get`: that may want a current task, and a loop that
waits has none. Tests fail should the lists go away.
"""

import asyncio
import sys
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Self

from anyio import lowlevel, to_process
from anyio._backends import _asyncio as backend

_CREW = "quantum_async.engine.executors.crew"  # loaded by the first run that needs processes


class OutsideWork:
    """Work that a virtual clock waits for, from when this is made until it ends.

    Args:
        what: What it is, in words.
        under_way: Where it is noted meanwhile.
        wake: Called when it has ended.
    """

    __slots__ = ("_under_way", "_wake", "what")

    def __init__(
        self, what: str, under_way: "dict[OutsideWork, None]", wake: Callable[[], None]
    ) -> None:
        self.what = what
        self._under_way = under_way
        self._wake = wake
        under_way[self] = None

    def end(self, *_: object) -> None:
        """It has ended, and the loop has heard what it is to hear. From any thread, any often."""
        if self._under_way.pop(self, self) is None:
            self._wake()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()


class Seen:
    """An executor whose last future is seen.

    Args:
        executor: The executor.
    """

    def __init__(self, executor: Any) -> None:
        self._executor = executor
        self.future: Future[Any]

    def submit(self, *call: Any) -> "Future[Any]":
        """Submit a call."""
        self.future = self._executor.submit(*call)
        return self.future


def busy_threads(loop: asyncio.AbstractEventLoop) -> int:
    """Return how many of anyio's threads work for a loop, those nobody waits for included."""
    workers = _kept(loop, backend._threadpool_workers)
    return len(workers) - len(_kept(loop, backend._threadpool_idle_workers))


def idle_processes(loop: asyncio.AbstractEventLoop) -> set[int]:
    """Return the processes that wait for work from a loop: anyio's, and those that serve runs."""
    idle = {process.pid for process, _ in _kept(loop, to_process._process_pool_idle_workers)}
    if _CREW in sys.modules:
        from quantum_async.engine.executors.crew import Crew

        idle |= Crew.idle_in(loop)
    return idle


def _kept(loop: asyncio.AbstractEventLoop, variable: Any) -> Any:
    return lowlevel._run_vars.get(loop, {}).get(variable, ())
