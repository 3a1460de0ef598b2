"""CPU-bound units in worker processes, through `anyio.to_process`. This is the pool's side.

anyio starts the workers and ends them with the loop. What it does not do is done here, in `session`
and in `worker`:

* One worker runs one call at a time. To stop a call, its worker is killed, with its children; a
  unit that has a grace is asked first.
* Each answer carries its call's number. Anything else kills the worker and is an error.
* A worker that dies is a `WorkerCrashedError` with its exit code or signal. A call that had not
  begun is sent again, silently.
* Workers are started before they are needed, in tasks of the pool's own, outside any unit's time
  limit, and never cancelled while they start.

One pool serves all runs of an event loop, and ends with it. While no run needs them, the workers
are idle ones of anyio's.
"""

import asyncio
from collections import Counter, deque
from collections.abc import AsyncGenerator, Callable, Coroutine
from functools import partial
from itertools import count
from typing import Any, ClassVar, NamedTuple, TypeVar
from weakref import WeakKeyDictionary

from anyio import CancelScope, CapacityLimiter, to_thread

from quantum_async.core.errors import WorkerCrashedError
from quantum_async.engine.executors.base import Job
from quantum_async.engine.executors.carry import Carrier
from quantum_async.engine.executors.envelope import RETURNED, Answer, opened
from quantum_async.engine.executors.limits import WorkerLimits
from quantum_async.engine.executors.outlet import Outlet, WorkerRecord
from quantum_async.engine.executors.packing import looks_big, packed
from quantum_async.engine.executors.session import Crash, Session
from quantum_async.engine.executors.shares import Shares, quickly_packed
from quantum_async.engine.executors.transport import SPILL, inline, is_spilled, load
from quantum_async.engine.loops import new_task

T = TypeVar("T")

_TRIES = 5  # to start a worker, and of a call whose worker died before it began


class Listener(NamedTuple):
    """Takes what units in workers print and log.

    Attributes:
        settings: What is wanted, as `capture.begin` takes it.
        hear: Takes a job and a record of it.
    """

    settings: str
    hear: Callable[[Job, WorkerRecord], object]


class Terms(NamedTuple):
    """What holds for all jobs of a run.

    Attributes:
        listener: Takes what units write.
        limits: What workers may use.
        carrier: Collects the context variables that travel.
        shares: What travels to each worker once.
    """

    listener: Listener
    limits: WorkerLimits
    carrier: Carrier
    shares: Shares


class WorkerPool:
    """The worker processes of one event loop."""

    _pools: ClassVar["WeakKeyDictionary[asyncio.AbstractEventLoop, WorkerPool]"] = (
        WeakKeyDictionary()
    )

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._outlet = Outlet.open(loop)
        self._numbers = count(1)
        self._threads = CapacityLimiter(1_000)  # each call needs at most one
        self._tasks: set[asyncio.Task[Any]] = set()
        self._sessions: dict[Session, asyncio.Task[None]] = {}
        self._idle: list[Session] = []
        self._waiting: deque[asyncio.Future[Session]] = deque()
        self._wanted: Counter[int] = Counter()  # how many runs want how many workers
        self._failures = 0  # to start a worker, one after the other
        self.start_error: BaseException | None = None
        self._warm: set[asyncio.Future[None]] = set()
        self._closer: AsyncGenerator[None, None] | None = None

    @classmethod
    async def of_running_loop(cls) -> "WorkerPool":
        """Return the pool of the running event loop; make it if there is none."""
        loop = asyncio.get_running_loop()
        pool = cls._pools.get(loop)
        if pool is None:
            pool = cls._pools[loop] = cls(loop)
            # Event loops finalise asynchronous generators when they shut down: the one hook
            # for "when the loop ends" that needs no task.
            pool._closer = pool._until_loop_ends(loop)
            await anext(pool._closer)
        return pool

    async def _until_loop_ends(self, loop: asyncio.AbstractEventLoop) -> AsyncGenerator[None, None]:
        try:
            yield
        finally:
            self._pools.pop(loop, None)
            self._outlet.close()

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
        idle, self._idle = self._idle, []
        for session in idle:
            session.leave()
        # Those that still start leave when they are ready.
        while self._sessions and not self._wanted:
            await asyncio.wait(self._sessions.values(), return_when=asyncio.FIRST_COMPLETED)

    async def warm(self) -> None:
        """Wait until as many workers are ready as are wanted, or none can be started."""
        while len(self._sessions) and not all(one.pid for one in self._sessions):
            ready = asyncio.get_running_loop().create_future()
            self._warm.add(ready)
            await ready

    def _replenish(self) -> None:
        while len(self._sessions) < max(self._wanted, default=0) and self._failures < _TRIES:
            self._open()

    def _open(self) -> None:
        session = Session(asyncio.get_running_loop(), self._outlet.path, self._ready)
        task = self._own(session.serve())
        self._sessions[session] = task
        task.add_done_callback(lambda _: self._ended(session))

    def _ready(self, session: Session) -> None:
        self._failures, self.start_error = 0, None
        self._look_warm()
        self._release(session)

    def _ended(self, session: Session) -> None:
        del self._sessions[session]
        if session in self._idle:
            self._idle.remove(session)
        if not session.pid:
            self._failures += 1
            self.start_error = session.error
        self._look_warm()
        if self._failures >= _TRIES:
            while self._waiting:
                waiting = self._waiting.popleft()
                if not waiting.done():
                    waiting.set_exception(_NoWorkerError())
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
        starting = sum(not one.pid for one in self._sessions)
        for _ in range(len(self._waiting) - starting):
            self._open()

    async def _take(self) -> Session:
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
                    self._release(waiting.result())
                raise
            finally:
                if waiting in self._waiting:
                    self._waiting.remove(waiting)
            if session.alive:
                return session

    def _release(self, session: Session) -> None:
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

    def _own(self, coroutine: Coroutine[Any, Any, T]) -> "asyncio.Task[T]":
        """Run a coroutine as the pool's own task, outside all scopes and contexts of units."""
        task = new_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # -- calls ------------------------------------------------------------------------------

    async def call(self, job: Job, terms: Terms) -> Any:
        """Run a job in a worker and return its result; see `Executor.run`."""
        for _ in range(_TRIES):
            try:
                session = await self._take()
            except _NoWorkerError:
                break
            try:
                outcome = await self._one_call(job, session, terms)
                if not isinstance(outcome, Crash):
                    return await self._opened(job, outcome, session)
            finally:
                if session.alive and session.is_used_up(terms.limits):
                    session.retire()
                self._release(session)
            if outcome.begun:
                raise _crashed(job, outcome.how)
        raise WorkerCrashedError(
            f"no worker process lived long enough to start unit {job.unit!r}: workers die at "
            "start-up, probably because this environment cannot start Python processes",
            job.unit,
            "before it started",
        ) from self.start_error

    async def _one_call(self, job: Job, session: Session, terms: Terms) -> Answer | Crash:
        number = next(self._numbers)
        job.restart_clock()
        blob = await self._packed(job, session, terms)
        listener, limit = terms.listener, job.max_result_bytes or terms.limits.max_result_bytes
        self._outlet.expect(number, partial(listener.hear, job))
        try:
            outcome = await session.ask(
                number, listener.settings, blob, grace=job.grace, limit=limit or 0
            )
        except asyncio.CancelledError:
            await _finished(self._own(self._abandon(session, number, job.grace)))
            raise
        if isinstance(outcome, Crash) or not self._outlet.is_finished(number, session.pid):
            await _finished(self._own(self._outlet.finish(number, session.pid)))
        return outcome

    async def _packed(self, job: Job, session: Session, terms: Terms) -> bytes:
        call, used = terms.shares.call_of(job)
        if carried := terms.carrier.collect():
            call = (*call, carried)
        terms.shares.send(used, session)
        quick = quickly_packed(call)
        if quick is not None and len(quick) < SPILL:
            return inline(quick)
        if looks_big(job):
            return await self._in_thread(packed, job, call, session.arguments.open)
        return packed(job, call, session.arguments.open)

    async def _abandon(self, session: Session, number: int, grace: float) -> None:
        """Stop a call that runs; return when its worker is gone."""
        if grace:
            await session.clean_up(number, grace)
        session.kill()
        await asyncio.wait([self._sessions[session]])
        await self._outlet.finish(number, session.pid)

    async def _opened(self, job: Job, answer: Answer, session: Session) -> Any:
        """Return the result, or raise what was raised; big ones are read in a thread."""
        load_it = partial(load, segment=session.results.path)
        if answer.how == RETURNED and is_spilled(answer.content):
            return await self._in_thread(opened, job, answer, load_it)
        return opened(job, answer, load_it)

    async def _in_thread(self, function: Callable[..., T], *args: Any) -> T:
        """Call a function in a thread, and never leave while it uses a worker's memory."""
        reading = to_thread.run_sync(function, *args, limiter=self._threads)
        return await _finished(self._own(reading))

    def close(self, shares: Shares) -> None:
        """A run needs its shared values no more."""
        shares.close(one for one in self._sessions if one.alive)


class _NoWorkerError(Exception):
    """None could be started."""


class ProcessExecutor:
    """Runs the jobs of one run in the worker processes of its event loop.

    Args:
        workers: How many workers to have ready.
        terms: What holds for all jobs.
    """

    def __init__(self, workers: int, terms: Terms) -> None:
        self._workers = workers
        self._terms = terms
        self._entering: asyncio.Task[WorkerPool] | None = None

    def begin(self, run: object) -> None:
        """Start the workers, beside what else the run does first."""
        self._entering = new_task(self._enter())

    async def _enter(self) -> WorkerPool:
        pool = await WorkerPool.of_running_loop()
        pool.enter(self._workers)
        return pool

    async def end(self) -> None:
        """Wait until no worker of this run is half started."""
        if self._entering is not None:
            pool = await self._entering
            pool.close(self._terms.shares)
            await pool.leave(self._workers)

    async def run(self, job: Job) -> Any:
        """Run a job in a worker process; see `Executor.run`."""
        pool = await WorkerPool.of_running_loop()
        return await pool.call(job, self._terms)


async def warm(workers: int) -> None:
    """Start worker processes; they wait for the first run of this event loop that needs them."""
    pool = await WorkerPool.of_running_loop()
    pool.enter(workers)
    try:
        await pool.warm()
    finally:
        await _finished(new_task(pool.leave(workers)))
    if pool.start_error is not None:
        raise WorkerCrashedError(
            "no worker process lived long enough to be ready: workers die at start-up, probably "
            "because this environment cannot start Python processes",
            "",
            "before it started",
        ) from pool.start_error


async def _finished(task: "asyncio.Task[T]") -> T:
    """Wait for a task of the pool's; when cancelled, wait for its end all the same."""
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        with CancelScope(shield=True):
            await asyncio.wait([task])
        if not task.cancelled():
            task.exception()  # nobody will ask for it any more
        raise


def _crashed(job: Job, how: str) -> WorkerCrashedError:
    hint = ""
    if how == "SIGKILL":
        hint = "; nobody here killed it: perhaps the machine ran out of memory"
    elif how.startswith("exit code"):
        hint = "; the unit, or a library that it calls, ended the process"
    return WorkerCrashedError(
        f"the worker process of unit {job.unit!r} died while it ran (attempt {job.attempt}): "
        f"{how or 'it is not known how'}{hint}",
        job.unit,
        how,
    )
