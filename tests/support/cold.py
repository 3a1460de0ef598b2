"""Harm and cancellations while a worker process starts, at any moment of it."""

import asyncio
import contextlib
import random
from collections.abc import Callable
from typing import Any

import tenacity

from quantum_async import QuantumPartitioner, RetryPolicy
from quantum_async.testing import Resources
from tests.support import harm

LONGEST = 0.12  # seconds that a start takes where the machine is not busy
_AGAIN = RetryPolicy(stop=tenacity.stop_after_attempt(5), wait=tenacity.wait_none())


def answer(number: int) -> int:
    """Work in the worker."""
    return number + 1


def flow_of_two() -> QuantumPartitioner[Any, Any]:
    """Return a graph with a short unit in a worker process, and one behind it."""
    flow: QuantumPartitioner[Any, Any] = QuantumPartitioner(default_execution_mode="process")
    first = flow.add_unit(answer, name="first", args=[1], retry=_AGAIN)
    flow.add_unit(answer, name="second", args=[first], retry=_AGAIN)
    return flow


def cancelled_after(seconds: float) -> bool:
    """Cancel a run so long after its begin, on a loop of its own; return whether it was running.

    Raises:
        AssertionError: If a process, descriptor or thread is left behind, or the next run on that
            loop is not right.
    """

    async def main() -> bool:
        running = asyncio.create_task(flow_of_two().run())
        await asyncio.sleep(seconds)
        running.cancel()
        hit = False
        try:
            await running
        except asyncio.CancelledError:
            hit = True
        assert set(harm.children()) - before <= set(harm.workers()), "a worker is half started"
        assert dict(await flow_of_two().run()) == {"first": 2, "second": 3}
        return hit

    before = set(harm.children())
    return bool(_clean(main, f"cancelled {seconds:.3f} s after the begin"))


def harmed_after(seconds: float, way: harm.Way, chance: random.Random) -> bool:
    """Do harm to workers so long after the begin of a run; return whether there were any.

    Raises:
        AssertionError: If its values are wrong, or anything is left behind.
    """

    async def main() -> bool:
        running = asyncio.create_task(flow_of_two().run())
        await asyncio.sleep(seconds)
        pids = set(harm.children()) - before
        for pid in pids:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                way(pid, chance)
        assert dict(await running) == {"first": 2, "second": 3}
        return bool(pids)

    before = set(harm.children())
    return bool(_clean(main, f"{way.__name__} {seconds:.3f} s after the begin"))


def _clean(main: Callable[[], Any], what: str) -> object:
    before = Resources.now()
    try:
        done = asyncio.run(main())
        left = Resources.left_since(before)
        assert not left, f"left behind: {left}"
    except BaseException as error:
        error.add_note(what)
        raise
    return done
