"""`Runtime`: what the runs of a service share."""

import asyncio
from collections import deque
from collections.abc import Iterable, Mapping
from contextlib import suppress
from contextvars import ContextVar, Token
from types import TracebackType
from typing import TYPE_CHECKING, Self
from weakref import WeakKeyDictionary

from quantum_async.core.checks import check_count, check_number
from quantum_async.core.errors import Overloaded, PlanError
from quantum_async.core.limits import Budget, Limit, checked_limits
from quantum_async.engine.bus import Observer
from quantum_async.engine.executors.cluster import RemoteExecutor
from quantum_async.engine.placement import LOOP, PROCESS, THREAD, Slots, slots_of
from quantum_async.request import checked_executor, checked_observers
from quantum_async.tuning import usable_cpus

if TYPE_CHECKING:
    from quantum_async.engine.engine import Engine

DRAINED = "the runtime was drained"


class Runtime:
    """What many runs share: slots, limits, observers, and how many of them there may be.

    Inside ``async with Runtime(…)`` every run in this event loop uses it, whichever task it is
    in. Runs take turns: none waits for all units of another.

    Args:
        max_workers: How many units run at once, of all runs together.
        processes: How many in worker processes; by default as many as there are usable CPUs.
        threads: How many in threads; by default ``min(32, cpus + 4)``.
        limits: `Limit`s (or numbers, which are concurrencies) by name; they go before those of
            partitioners.
        observers: Callables that take every event of every run.
        max_runs: How many runs go on at once; None for no limit.
        queue: How many more may wait for their turn; a run beyond that is refused.
        executor: The cluster of runs that have none of their own.

    Raises:
        PlanError: For any value that could not be meant.

    Example:
        >>> import asyncio
        >>> from quantum_async import QuantumPartitioner
        >>> flow = QuantumPartitioner()
        >>> @flow.unit
        ... async def double(x): return 2 * x
        >>> async def serve():
        ...     async with Runtime(max_workers=4, max_runs=100):
        ...         runs = await asyncio.gather(*(flow.run({"x": x}) for x in range(3)))
        ...     return [run["double"] for run in runs]
        >>> asyncio.run(serve())
        [0, 2, 4]
    """

    def __init__(
        self,
        max_workers: int | None = None,
        *,
        processes: int | None = None,
        threads: int | None = None,
        limits: Mapping[str, Limit | float] | None = None,
        observers: Iterable[Observer] = (),
        max_runs: int | None = None,
        queue: int = 0,
        executor: RemoteExecutor | None = None,
    ) -> None:
        for option, count in (
            ("max_workers", max_workers),
            ("processes", processes),
            ("threads", threads),
            ("max_runs", max_runs),
        ):
            check_count(option, count)
        if isinstance(queue, bool) or not isinstance(queue, int) or queue < 0:
            raise PlanError(f"queue must be a whole number from 0 up, not {queue!r}")
        self.limits = checked_limits(limits)
        self.observers = checked_observers(observers)
        self.max_workers = max_workers
        self.max_runs = max_runs
        self.queue = queue
        self.executor = checked_executor(executor)
        known = slots_of(cpus=usable_cpus(), max_workers=max_workers)
        places = {place: known[place] for place in (LOOP, THREAD, PROCESS)}
        if processes is not None:
            places[PROCESS] = processes
        if threads is not None:
            places[THREAD] = threads
        self.slots = Slots(max_workers, places.copy)
        self._budget: Budget | None = None
        self._joined: WeakKeyDictionary[Budget, Budget] = WeakKeyDictionary()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._token: Token[Runtime | None] | None = None
        self._running: set[Engine] = set()
        self._admitted = 0
        self._waiting: dict[float, deque[asyncio.Future[None]]] = {}
        self._draining = False
        self._empty: asyncio.Event = asyncio.Event()

    async def __aenter__(self) -> Self:
        if self._loop is not None:
            raise RuntimeError("a Runtime is entered once")
        self._loop = asyncio.get_running_loop()
        self._budget = Budget(self.limits, self._loop.time)
        self._token = _current.set(self)
        _of_loop.setdefault(self._loop, []).append(self)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._loop is not None  # entered before it is left
        assert self._token is not None
        try:
            # Runs that somebody else awaits end with the runtime that they use.
            await self.drain(grace=0 if error is not None else None)
        finally:
            _of_loop[self._loop].remove(self)
            with suppress(ValueError):  # it may be left in another context than it was entered in
                _current.reset(self._token)

    # -- runs -------------------------------------------------------------------------------

    @property
    def running(self) -> int:
        """How many runs go on."""
        return self._admitted

    @property
    def waiting(self) -> int:
        """How many runs wait for their turn."""
        return sum(map(len, self._waiting.values()))

    def budget_with(self, own: Budget | None) -> Budget | None:
        """Return the limits that a partitioner's runs use: its own, and these before them."""
        if not self.limits or self._budget is None:
            return own
        if own is None:
            return self._budget
        joined = self._joined.get(own)
        if joined is None:
            joined = self._joined[own] = own.with_shared(self._budget)
        return joined

    async def admit(self, priority: float) -> None:
        """Let a run in, or have it wait for its turn; when it has ended, it must `leave`.

        Raises:
            Overloaded: If `max_runs` and the queue are full, or the runtime is drained.
        """
        if self._draining:
            raise Overloaded(f"{DRAINED}: it takes no runs any more")
        if self.max_runs is not None and self._admitted >= self.max_runs:
            await self._wait_for_turn(priority)
        else:
            self._admitted += 1

    async def _wait_for_turn(self, priority: float) -> None:
        if self.waiting >= self.queue:
            waits = f" and {self.waiting} wait" if self.queue else ""
            raise Overloaded(
                f"{self._admitted} runs go on{waits}, which is all that this runtime takes "
                f"(max_runs={self.max_runs}, queue={self.queue}): try again later"
            )
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        queue = self._waiting.setdefault(priority, deque())
        queue.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                self.leave()  # it had just been let in
            elif turn in queue:
                queue.remove(turn)
            raise

    def leave(self) -> None:
        """A run that was let in has ended: let the next one in."""
        for priority in sorted(self._waiting, reverse=True):
            queue = self._waiting[priority]
            while queue:
                turn = queue.popleft()
                if not turn.done():
                    turn.set_result(None)
                    return
            del self._waiting[priority]
        self._admitted -= 1
        if not self._admitted:
            self._empty.set()

    def add(self, engine: "Engine") -> None:
        """A run has begun."""
        self._running.add(engine)

    def remove(self, engine: "Engine") -> None:
        """A run has ended."""
        self._running.discard(engine)

    async def drain(self, grace: float | None = 10.0) -> None:
        """Take no runs any more, start no units, and wait until what runs has ended.

        Runs that wait for their turn are refused with `Overloaded`. In the results of the others,
        what did not run is CANCELED, with the cause that the runtime was drained.

        Args:
            grace: Seconds that running units get to end by themselves; what is left is cancelled
                then. None to wait for whole runs, and stop nothing.

        Raises:
            PlanError: If that is negative or no number.
        """
        check_number("", "grace", grace)
        self._draining = True
        for queue in self._waiting.values():
            while queue:
                turn = queue.popleft()
                if not turn.done():
                    turn.set_exception(Overloaded(f"{DRAINED} before this run had its turn"))
        self._waiting.clear()
        if grace is not None:
            for engine in list(self._running):
                engine.drain(DRAINED)
        if self._admitted:
            self._empty.clear()
            stopping = None
            if grace is not None:
                stopping = asyncio.get_running_loop().call_later(grace, self._stop)
            try:
                await self._empty.wait()
            except asyncio.CancelledError:
                self._stop()
                raise
            finally:
                if stopping is not None:
                    stopping.cancel()

    def _stop(self) -> None:
        for engine in list(self._running):
            engine.stop(f"{DRAINED}, and its grace was over")

    def __repr__(self) -> str:
        return f"<Runtime: {self.running} runs, {self.waiting} waiting>"


_current: ContextVar[Runtime | None] = ContextVar("quantum_async_runtime", default=None)
# A web framework's requests are no children of the task that entered the runtime.
_of_loop: "WeakKeyDictionary[asyncio.AbstractEventLoop, list[Runtime]]" = WeakKeyDictionary()


def current_runtime() -> Runtime | None:
    """Return the runtime that runs use here, if there is one."""
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return None
    open_ones = _of_loop.get(loop, ())
    mine = _current.get()
    if mine is not None and mine in open_ones:
        return mine
    return open_ones[-1] if open_ones else None
