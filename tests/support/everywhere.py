"""One thing done at every point of a run in turn: before each step that its event loop takes.

Between two steps nothing can happen, so these are all the points there are: each await at which a
task of the run, of a unit or of the engine may be held, in each order in which they come.
"""

import asyncio
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Coroutine
from contextvars import Context
from dataclasses import dataclass
from functools import partial
from typing import Any

import anyio

from quantum_async import ExecutionError, QuantumPartitioner, RunTimeoutError, UnitState
from quantum_async.core import events
from quantum_async.testing import Resources, VirtualTimeLoop, broken_laws
from tests.support.replay import differences

ENDS = {
    UnitState.COMPLETED, UnitState.FAILED, UnitState.SKIPPED, UnitState.CANCELED, UnitState.TIMEOUT,
}  # fmt: skip
WAYS = ("native", "twice", "scope", "timeout", "limit")


class Steps:
    """Counts a loop's steps, and does something before one of them: for a class of a loop.

    Attributes:
        steps: How many there were since `begin`.
    """

    steps = 0
    _at = 0
    _do: Callable[[], object] | None = None

    def begin(self, at: int, do: Callable[[], object]) -> None:
        """Count from now on, and do something before step number `at`."""
        self.steps, self._at, self._do = 0, at, do

    def end(self) -> int:
        """Count no more, and return how many steps there were."""
        self._do = None
        return self.steps

    def call_soon(
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        """Call in the next turn; a step."""
        if self._do is not None:
            callback, args = self._step, (callback, *args)
        return super().call_soon(callback, *args, context=context)  # type: ignore[misc, no-any-return]

    def _step(self, callback: Callable[..., object], *args: Any) -> None:
        if self._do is not None:
            self.steps += 1
            if self.steps == self._at:
                self._do()
        callback(*args)


class VirtualSteps(Steps, VirtualTimeLoop):
    """A loop on virtual time whose steps are counted."""


class RealSteps(Steps, asyncio.SelectorEventLoop):
    """A loop on real time whose steps are counted."""


@dataclass
class Cancelled:
    """A run that was cancelled, or not.

    Attributes:
        steps: How many steps the loop took while it lasted.
        hit: Whether it ended by the cancellation.
    """

    steps: int
    hit: bool


async def cancel_at(flow: QuantumPartitioner[Any, Any], step: int, way: str) -> Cancelled:
    """Run a graph, cancel it before one of the loop's steps, and see that all is well.

    Args:
        flow: The graph. The running loop counts its steps.
        step: Which; 0 is never.
        way: How: "native", "twice" (and again two steps later), "scope" (anyio's), "timeout"
            (asyncio's), or "limit" (the run's own time limit).

    Raises:
        AssertionError: If a task is left, a unit has no end, or the events tell anything else.
    """
    loop: Any = asyncio.get_running_loop()
    log: list[events.Event] = []
    before = asyncio.all_tasks()
    flow.last_result = None
    try:
        hit = await asyncio.create_task(_run(flow, step, way, log))
    except ExecutionError:
        hit = False
    steps = loop.end()
    left = {task for task in asyncio.all_tasks() - before if "AnyIO" not in task.get_name()}
    assert not left, f"tasks are left: {left}"
    result = flow.last_result
    if result is not None:
        states = result.states
        assert set(states) == set(flow.units), "units have no state"
        assert set(states.values()) <= ENDS, f"units have no end: {states}"
        problems = broken_laws(result.plan, log) + differences(result, log)
        assert not problems, "; ".join(problems)
    else:
        assert hit, "there is no result"
        assert not log, "the run began, and left no result"
    return Cancelled(steps, hit)


async def _run(
    flow: QuantumPartitioner[Any, Any], step: int, way: str, log: list[events.Event]
) -> bool:
    """Return whether the run was cancelled."""
    loop: Any = asyncio.get_running_loop()

    async def run(**options: Any) -> None:
        try:
            await flow.run(observers=[log.append], **options)
        finally:
            loop.end()

    if way == "limit":
        loop.begin(step, lambda: _have_its_time_pass(loop))
        try:
            await run(timeout=1e6)
        except RunTimeoutError:
            return True
    elif way == "scope":
        with anyio.CancelScope() as scope:
            loop.begin(step, scope.cancel)
            await run()
        return scope.cancelled_caught
    elif way == "timeout":
        try:
            async with asyncio.timeout(None) as limit:
                loop.begin(step, lambda: limit.reschedule(loop.time()))
                await run()
        except TimeoutError:
            return True
    else:
        inner = asyncio.create_task(run())
        loop.begin(step, partial(_cancel, inner, way, loop))
        try:
            await asyncio.shield(inner)
        except asyncio.CancelledError:
            return True
    return False


def _cancel(task: "asyncio.Task[None]", way: str, loop: Any) -> None:
    task.cancel()
    if way == "twice":
        loop.call_soon(loop.call_soon, task.cancel)


def _have_its_time_pass(loop: Any) -> None:
    for timer in list(loop._scheduled):
        if getattr(timer._callback, "__name__", "") == "_time_up" and not timer.cancelled():
            timer._callback(*timer._args)
            timer.cancel()


class Everywhere:
    """Cancels runs of graphs at all their points, and counts.

    Attributes:
        counts: What was done.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def __call__(
        self,
        make: Callable[[], QuantumPartitioner[Any, Any]],
        way: str,
        *,
        every: int = 1,
        first: int = 1,
    ) -> None:
        """Cancel a run at each point in turn, each on a loop of its own, on virtual time.

        Args:
            make: Makes the graph.
            way: How it is cancelled; see `cancel_at`.
            every: Which points: each one, or each third, …
            first: The first one.

        Raises:
            AssertionError: With the point and the way, if something was left behind.
        """
        _clean(make, 0, way)  # what is opened once, as the first thread is, is open then
        misses, step = 0, first
        while misses < 3:
            done = _clean(make, step, way)
            # Near its end a run may go by a point that it has in another order.
            misses = 0 if done.hit else misses + (done.steps < step)
            self.counts["cancels"] += done.hit
            self.counts["points"] += 1
            step += every


def _clean(make: Callable[[], QuantumPartitioner[Any, Any]], step: int, way: str) -> Cancelled:
    before, files = Resources.now(), set(os.listdir(tempfile.gettempdir()))
    try:
        done = run_in(VirtualSteps, cancel_at(make(), step, way))
        left: object = Resources.left_since(before)
        assert not left, f"left behind: {left}"
        left = set(os.listdir(tempfile.gettempdir())) - files
        assert not left, f"files are left: {left}"
    except BaseException as error:
        error.add_note(f"cancelled at point {step} ({way})")
        raise
    return done


def run_in(loop: Callable[[], Any], main: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine in a loop of its own."""
    with asyncio.Runner(loop_factory=loop) as runner:
        return runner.run(main)
