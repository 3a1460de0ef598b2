"""Units in sub-interpreters, through `anyio.to_interpreter`: truly parallel, in this process.

The same envelope as for worker processes goes both ways, as plain bytes: anyio's own way of handing
over values breaks integers of more than 64 bits. What a sub-interpreter cannot do: be stopped,
survive a crash, import every extension module.
"""

import asyncio
import math
import pickle
import sys
from functools import partial
from typing import Any

from anyio import CapacityLimiter, to_interpreter

from quantum_async.core.errors import PlanError
from quantum_async.core.plan import Unit
from quantum_async.engine.executors.base import Job
from quantum_async.engine.executors.envelope import answer, any_pickle, opened
from quantum_async.engine.executors.packing import packed
from quantum_async.engine.loops import new_task


class InterpreterExecutor:
    """Runs jobs in sub-interpreters; those of one event loop are used again."""

    def __init__(self) -> None:
        self._limiter = CapacityLimiter(math.inf)  # the slots are the scheduler's

    async def run(self, job: Job) -> Any:
        """Run a job in a sub-interpreter; see `Executor.run`."""
        call = to_interpreter.run_sync(_answered, packed(job), limiter=self._limiter)
        # In a task of its own: a cancelled call would leave the interpreter in the middle of it.
        running = new_task(call)
        try:
            blob = await asyncio.shield(running)
        except asyncio.CancelledError:
            job.late = not running.done()
            running.add_done_callback(partial(_returned, job))
            raise
        return opened(job, pickle.loads(blob), where="sub-interpreter")


def refusal(unit: Unit) -> PlanError | None:
    """Return why a unit cannot run in a sub-interpreter, if it cannot."""
    if sys.version_info < (3, 13):
        version = ".".join(map(str, sys.version_info[:2]))
        return PlanError(
            f"unit {unit.id!r}: mode 'interpreter' needs Python 3.13, and this is {version}; use "
            "mode='process'"
        )
    for option in ("timeout", "deadline"):
        if getattr(unit.options, option) is not None:
            return PlanError(
                f"unit {unit.id!r}: a sub-interpreter cannot be stopped, so {option}= cannot be "
                "kept in mode 'interpreter'; use mode='process', where the worker is killed"
            )
    return None


def _returned(job: Job, running: "asyncio.Task[bytes]") -> None:
    if not running.cancelled():
        running.exception()  # nobody will ask for it
    if job.late:
        job.returned(job)


def _answered(blob: bytes) -> bytes:
    """Run a packed call in a sub-interpreter."""
    return pickle.dumps(answer(lambda: pickle.loads(blob), any_pickle))
