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

    __slots__ = ("abandoned", "ended", "job", "lock", "started")

    def __init__(self, job: Job) -> None:
        self.job = job
        self.lock = threading.Lock()
        self.started = self.ended = self.abandoned = False

    def __call__(self) -> Any:
        with self.lock:
            if self.abandoned:
                return None
            self.started = True
        try:
            return self.job()
        finally:
            with self.lock:
                self.ended = True
                late = self.abandoned
            if late:
                self.job.returned(self.job)

    def abandon(self) -> None:
        """Nobody waits any more: do not start, or say so when it ends."""
        with self.lock:
            self.abandoned = True
            self.job.late = self.started and not self.ended


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
