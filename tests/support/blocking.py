"""How long an event loop was held in one turn, and by what."""

import asyncio
import gc
import os
import selectors
import signal
import time
import traceback
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import Any

_WAITS = "/proc/thread-self/schedstat"


class _Watched(selectors.DefaultSelector):
    """A selector that knows how long the loop was busy between two looks at it.

    Attributes:
        longest: Seconds that it was.
        stacks: Where it was when the limit had passed, once for each time that it had.
    """

    def __init__(self, limit: float) -> None:
        super().__init__()
        self.longest = 0.0
        self.stacks: list[str] = []
        self._limit = limit
        self._began: float | None = None
        self._waits = os.open(_WAITS, os.O_RDONLY) if os.path.exists(_WAITS) else None

    def _now(self) -> float:
        """Return the time, without that in which other processes had the processor."""
        now = time.perf_counter()
        if self._waits is None:
            return now
        return now - int(os.pread(self._waits, 64, 0).split()[1]) / 1e9

    def select(self, timeout: float | None = None) -> Any:
        if self._began is not None:
            signal.setitimer(signal.ITIMER_REAL, 0)
            self.longest = max(self.longest, self._now() - self._began)
        try:
            return super().select(timeout)
        finally:
            signal.setitimer(signal.ITIMER_REAL, self._limit)
            self._began = self._now()

    def look(self, number: int, frame: FrameType | None) -> None:
        self.stacks.append("".join(traceback.format_stack(frame, limit=6)))

    def close(self) -> None:
        super().close()
        signal.setitimer(signal.ITIMER_REAL, 0)
        if self._waits is not None:
            os.close(self._waits)
            self._waits = None


@contextmanager
def _no_collector() -> Iterator[None]:
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()


def run_watched(main: Callable[[], Coroutine[Any, Any, Any]], limit: float) -> tuple[float, str]:
    """Run a coroutine on an asyncio loop of its own, without the collector.

    Args:
        main: Makes it.
        limit: Seconds that the loop may be held in one turn.

    Returns:
        Seconds that it was held at most, and where it was when the limit had passed.
    """
    watched = _Watched(limit)
    before = signal.signal(signal.SIGALRM, watched.look)
    try:
        loop = partial(asyncio.SelectorEventLoop, watched)
        with _no_collector(), asyncio.Runner(loop_factory=loop) as runner:
            runner.run(main())
    finally:
        signal.signal(signal.SIGALRM, before)
    return watched.longest, "\n".join(watched.stacks)
