"""Blocking functions in threads, through `anyio.to_thread`.

A thread cannot be killed. When its attempt is cancelled, anyio lets go of it; the function runs
on, and the job is late: its slot in our scheduler stays taken until the function returns.
"""

import math
import threading
from typing import Any

from anyio import CapacityLimiter, get_cancelled_exc_class, to_thread

from quantum_async.engine.executors.base import Job


class _Call:
    """A job's function, and whether it has begun and ended, as the thread sees it."""

    __slots__ = ("_abandoned", "_job", "_lock", "_started")

    def __init__(self, job: Job) -> None:
        self._job: Job | None = job  # None when it has ended: an idle thread keeps its last call
        self._lock = threading.Lock()
        self._started = self._abandoned = False

    def __call__(self) -> Any:
        with self._lock:
            job = self._job
            if job is None or self._abandoned:
                return None
            self._started = True
        try:
            return job()
        finally:
            with self._lock:
                self._job = None
            if self._abandoned:
                job.returned(job)

    def abandon(self) -> None:
        """Nobody waits any more: do not start, or say so when it ends."""
        with self._lock:
            self._abandoned = True
            if self._job is not None:
                self._job.late = self._started


class ThreadExecutor:
    """Runs jobs in anyio's worker threads. The slots are the scheduler's, so it has no limit."""

    def __init__(self) -> None:
        # The default limiter's 40 tokens are shared with the user's web framework.
        self._limiter = CapacityLimiter(math.inf)

    async def run(self, job: Job) -> Any:
        """Run a job in a thread; see `Executor.run`."""
        call = _Call(job)
        try:
            return await to_thread.run_sync(call, abandon_on_cancel=True, limiter=self._limiter)
        except get_cancelled_exc_class():
            call.abandon()
            raise
