"""The worker processes of one event loop: started, lent to calls, replaced, let go.

One crew serves all runs of the loop, and ends with it. Workers are started before they are needed,
in tasks of the crew's own: outside any unit's time limit, and never cancelled while they start.
While no run needs them, they are idle workers of anyio's.
"""

import asyncio
import math
from collections import Counter, deque
from collections.abc import AsyncGenerator, Callable, Coroutine
from itertools import count
from typing import Any, ClassVar, TypeVar
from weakref import WeakKeyDictionary

from anyio import CancelScope, CapacityLimiter, to_thread

from quantum_async.core.errors import WorkerCrashedError
from quantum_async.engine.executors.outlet import Outlet
from quantum_async.engine.executors.session import Session
from quantum_async.engine.loops import new_task

T = TypeVar("T")

TRIES = 5  # to start a worker, and of a call whose worker died before it began


class NoWorkerError(Exception):
    """None could be started."""


class Crew:
    """The worker processes of one event loop.

    Attributes:
        outlet: Where what they write comes out.
        numbers: Gives each call a number.
        sessions: The workers that serve, with the task of each.
        start_error: Why the last one could not be started.
    """

    _crews: ClassVar["WeakKeyDictionary[asyncio.AbstractEventLoop, Crew]"] = WeakKeyDictionary()

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.outlet = Outlet.open(loop)
        self.numbers = count(1)
        self._threads = CapacityLimiter(math.inf)
        self._tasks: set[asyncio.Task[Any]] = set()
        self.sessions: dict[Session, asyncio.Task[None]] = {}
        self._idle: list[Session] = []
        self._waiting: deque[asyncio.Future[Session]] = deque()
        self._wanted: Counter[int] = Counter()  # how many runs want how many workers
        self._failures = 0  # to start a worker, one after the other
        self.start_error: BaseException | None = None
        self._warm: set[asyncio.Future[None]] = set()
        self._closer: AsyncGenerator[None, None] | None = None

    @classmethod
    async def of_running_loop(cls) -> "Crew":
        """Return the pool of the running event loop; make it if there is none."""
        loop = asyncio.get_running_loop()
        pool = cls._crews.get(loop)
        if pool is None:
            pool = cls._crews[loop] = cls(loop)
            # Event loops finalise asynchronous generators when they shut down: the one hook
            # for "when the loop ends" that needs no task.
            pool._closer = pool._until_loop_ends(loop)
            await anext(pool._closer)
        return pool

    @classmethod
    def idle_in(cls, loop: asyncio.AbstractEventLoop) -> set[int]:
        """Return the processes that serve a loop and have nothing to do."""
        crew = cls._crews.get(loop)
        return set() if crew is None else {session.pid for session in crew._idle}

    async def _until_loop_ends(self, loop: asyncio.AbstractEventLoop) -> AsyncGenerator[None, None]:
        try:
            yield
        finally:
            self._crews.pop(loop, None)
            self.outlet.close()

    # -- workers ----------------------------------------------------------------------------

    def enter(self, workers: int) -> None:
        """Have so many workers from now on; they start beside what else happens."""
        self._wanted[workers] += 1
        self._failures = 0
        self._replenish()

    async def leave(self, workers: int) -> None:
        """Want them no more. Return when no worker is half started, or half ended."""
        self._wanted -= Counter([workers])
        if self._wanted:
            return
        leaving = [*self._idle, *(one for one in self.sessions if not one.pid)]
        self._idle = []
        for session in leaving:
            session.leave()
        while self.sessions and not self._wanted:
            await asyncio.wait(self.sessions.values(), return_when=asyncio.FIRST_COMPLETED)

    async def warm(self) -> None:
        """Wait until as many workers are ready as are wanted, or none can be started."""
        while len(self.sessions) and not all(one.pid for one in self.sessions):
            ready = asyncio.get_running_loop().create_future()
            self._warm.add(ready)
            await ready

    def _replenish(self) -> None:
        while len(self.sessions) < max(self._wanted, default=0) and self._failures < TRIES:
            self._open()

    def _open(self) -> None:
        session = Session(asyncio.get_running_loop(), self.outlet.path, self._ready)
        task = self.own(session.serve())
        self.sessions[session] = task
        task.add_done_callback(lambda _: self._ended(session))

    def _ready(self, session: Session) -> None:
        self._failures, self.start_error = 0, None
        self._look_warm()
        self.release(session)

    def _ended(self, session: Session) -> None:
        del self.sessions[session]
        if session in self._idle:
            self._idle.remove(session)
        if not session.pid:
            self._failures += 1
            self.start_error = session.error
        self._look_warm()
        if self._failures >= TRIES:
            while self._waiting:
                waiting = self._waiting.popleft()
                if not waiting.done():
                    waiting.set_exception(NoWorkerError())
            self._failures = 0
        elif self._wanted:
            self._replenish()
            self._open_for_waiting()

    def _look_warm(self) -> None:
        warm, self._warm = self._warm, set()
        for future in warm:
            if not future.done():
                future.set_result(None)

    def _open_for_waiting(self) -> None:
        starting = sum(not one.pid for one in self.sessions)
        for _ in range(len(self._waiting) - starting):
            self._open()

    async def take(self) -> Session:
        """Return a worker that is idle; wait for one if there is none."""
        while self._idle:
            session = self._idle.pop()
            if session.alive:
                return session
        while True:
            waiting: asyncio.Future[Session] = asyncio.get_running_loop().create_future()
            self._waiting.append(waiting)
            self._open_for_waiting()
            try:
                session = await waiting
            except asyncio.CancelledError:
                if waiting.done() and not waiting.cancelled() and not waiting.exception():
                    self.release(waiting.result())
                raise
            finally:
                if waiting in self._waiting:
                    self._waiting.remove(waiting)
            if session.alive:
                return session

    def release(self, session: Session) -> None:
        """Take back a worker whose call is over."""
        if not session.alive:
            return
        while self._waiting:
            waiting = self._waiting.popleft()
            if not waiting.done():
                waiting.set_result(session)
                return
        if self._wanted:
            self._idle.append(session)
        else:
            session.leave()

    def own(self, coroutine: Coroutine[Any, Any, T]) -> "asyncio.Task[T]":
        """Run a coroutine as the pool's own task, outside all scopes and contexts of units."""
        task = new_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    @property
    def is_short_of_workers(self) -> bool:
        """Whether all workers are busy, and none that starts is waited for."""
        return not (self._idle or self._waiting)

    async def gone(self, session: Session) -> None:
        """Return when a worker's end has been seen to."""
        if session in self.sessions:
            await asyncio.wait([self.sessions[session]])

    async def in_thread(self, function: Callable[..., T], *args: Any) -> T:
        """Call a function in a thread, and never leave while it uses a worker's memory."""
        reading = to_thread.run_sync(function, *args, limiter=self._threads)
        return await finished(self.own(reading))


async def warm(workers: int) -> None:
    """Start worker processes; they wait for the first run of this event loop that needs them."""
    crew = await Crew.of_running_loop()
    crew.enter(workers)
    try:
        await crew.warm()
    finally:
        await finished(new_task(crew.leave(workers)))
    if crew.start_error is not None:
        raise WorkerCrashedError(
            "no worker process lived long enough to be ready: workers die at start-up, probably "
            "because this environment cannot start Python processes",
            "",
            "before it started",
        ) from crew.start_error


async def finished(task: "asyncio.Task[T]") -> T:
    """Wait for a task of the pool's; when cancelled, wait for its end all the same."""
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        with CancelScope(shield=True):
            await asyncio.wait([task])
        if not task.cancelled():
            task.exception()  # nobody will ask for it any more
        raise
