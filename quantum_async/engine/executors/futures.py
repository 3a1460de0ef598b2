"""Units in any `concurrent.futures.Executor` that the user brings along."""

import asyncio
import concurrent.futures
import pickle
from contextvars import copy_context
from typing import Any

from quantum_async.core.errors import PlanError
from quantum_async.engine.executors.base import Job
from quantum_async.engine.executors.envelope import Answer, answer, any_pickle, opened
from quantum_async.engine.executors.packing import packed

# Jobs travel to these as they do to our own workers: lambdas too, and with all that comes back.
_PROCESS_POOLS = {
    "concurrent.futures.process.ProcessPoolExecutor",
    "loky.process_executor.ProcessPoolExecutor",
}


class FuturesExecutor:
    """Runs jobs in a user's executor: threads, processes, or what else has `submit`.

    Args:
        pool: The user's executor. It is never shut down by us.

    Raises:
        PlanError: If there is none, it has no `submit`, or it is already shut down.
    """

    def __init__(self, pool: Any) -> None:
        if pool is None:
            raise PlanError(
                "mode 'custom' needs custom_executor=…, for example a ThreadPoolExecutor"
            )
        if not callable(getattr(pool, "submit", None)):
            raise PlanError(
                f"custom_executor must be a concurrent.futures.Executor, and {pool!r} has no submit"
            )
        try:
            pool.submit(int).cancel()
        except RuntimeError as error:
            raise PlanError(f"custom_executor takes no work: {error}") from error
        self._pool = pool
        self._other_process = _runs_elsewhere(pool)

    @property
    def slots(self) -> int | None:
        """How many jobs the pool runs at once, if it tells."""
        workers = getattr(self._pool, "_max_workers", None)
        return workers if isinstance(workers, int) and workers > 0 else None

    async def run(self, job: Job) -> Any:
        """Run a job in the pool; see `Executor.run`."""
        future: concurrent.futures.Future[Any]
        if self._other_process:
            future = self._pool.submit(_call_elsewhere, packed(job))
        else:
            # In context variables of its own: a pool's threads serve one unit after the other.
            future = self._pool.submit(copy_context().run, _call_here, job)
        try:
            value = await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            # What has not started is taken back; what runs cannot be stopped.
            job.late = not future.cancel() and not future.done()
            if job.late:
                future.add_done_callback(lambda _: job.returned(job))
            raise
        return opened(job, value) if self._other_process else value


def _call_here(job: Job) -> Any:
    """Call a job; StopIteration would never get out of the future that carries it."""
    try:
        return job()
    except StopIteration as error:
        raise RuntimeError(f"unit {job.unit!r} raised StopIteration") from error


def _call_elsewhere(blob: bytes) -> Answer:
    """Run a packed call in a process of the user's pool."""
    return answer(lambda: pickle.loads(blob), any_pickle)


def _runs_elsewhere(pool: Any) -> bool:
    """Return whether a pool's jobs run in other processes."""
    kinds = {f"{kind.__module__}.{kind.__name__}" for kind in type(pool).__mro__}
    return not kinds.isdisjoint(_PROCESS_POOLS)
