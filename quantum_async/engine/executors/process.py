"""CPU-bound units in worker processes, through `anyio.to_process`. This is the pool's side.

anyio starts the workers and ends them with the loop. What it does not do is done here, in `crew`,
which has the workers, in `session`, which is one of them, and in `worker`, which is its side:

* One worker runs one call at a time. To stop a call, its worker is killed, with its children; a
  unit that has a grace is asked first.
* Each answer carries its call's number. Anything else kills the worker and is an error.
* A worker that dies is a `WorkerCrashedError` with its exit code or signal. A call that had not
  begun is sent again, silently.
* Short units travel several at a time; `ahead` chooses which.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

from quantum_async.core.errors import WorkerCrashedError
from quantum_async.core.plan import ExecutionPlan
from quantum_async.core.scheduler import Scheduler
from quantum_async.engine.executors import worker
from quantum_async.engine.executors.ahead import Ahead, Parcel
from quantum_async.engine.executors.base import Job
from quantum_async.engine.executors.carry import Carrier
from quantum_async.engine.executors.crew import TRIES, Crew, NoWorkerError, finished
from quantum_async.engine.executors.envelope import RETURNED, Answer, Carried, opened
from quantum_async.engine.executors.limits import WorkerLimits
from quantum_async.engine.executors.outlet import WorkerRecord
from quantum_async.engine.executors.packing import looks_big, packed
from quantum_async.engine.executors.session import Crash, Session
from quantum_async.engine.executors.shares import Shares, quickly_packed
from quantum_async.engine.executors.transport import is_spilled, load
from quantum_async.engine.loops import new_task
from quantum_async.engine.view import View

Key = tuple[str, int]  # a unit's name, and which attempt


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


class _Sent(NamedTuple):
    """A call that was sent, perhaps along with another and before its unit's turn.

    Attributes:
        session: Where it runs.
        number: The call's number.
        waiting: What becomes its answer.
        began: When it was sent, by `time.perf_counter`; 0 if others were before it.
        links: The calls behind it that need its result.
    """

    session: Session
    number: int
    waiting: "asyncio.Future[Answer | Crash]"
    began: float
    links: list[Key]


class ProcessExecutor:
    """Runs the jobs of one run in the worker processes of its event loop.

    Args:
        workers: How many workers to have ready.
        terms: What holds for all jobs.
    """

    def __init__(self, workers: int, terms: Terms) -> None:
        self._workers = workers
        self._terms = terms
        self._ahead: Ahead | None = None
        self._early: dict[Key, _Sent] = {}
        self._entering: asyncio.Task[Crew] | None = None

    def send_ahead(
        self,
        plan: ExecutionPlan,
        scheduler: Scheduler,
        view: View,
        lane: int,
        attempts: Sequence[int],
    ) -> None:
        """Send short units along with others; the arguments are those of `Ahead`."""
        self._ahead = Ahead(plan, scheduler, view, lane, self._terms.shares, attempts)

    # -- the run ----------------------------------------------------------------------------

    def begin(self, run: object) -> None:
        """Start the workers, beside what else the run does first."""
        self._entering = new_task(self._enter())

    async def _enter(self) -> Crew:
        crew = await Crew.of_running_loop()
        crew.enter(self._workers)
        return crew

    async def end(self) -> None:
        """Wait until no worker of this run is half started."""
        if self._entering is None:
            return
        crew = await self._entering
        for sent in self._early.values():
            sent.session.kill()  # it works for a run that has ended
        self._terms.shares.close(session for session in crew.sessions if session.alive)
        await crew.leave(self._workers)

    # -- calls ------------------------------------------------------------------------------

    async def run(self, job: Job) -> Any:
        """Run a job in a worker process; see `Executor.run`."""
        crew = await Crew.of_running_loop()
        sent = self._early.pop((job.unit, job.attempt), None)
        for _ in range(TRIES):
            try:
                session = await self._taken(job, crew) if sent is None else sent.session
            except NoWorkerError:
                break
            try:
                job.restart_clock()
                sent = sent or await self._send(job, session, crew)
                outcome = await self._outcome(job, sent, crew)
                if not isinstance(outcome, Crash):
                    return await self._opened(job, outcome, session, crew)
            finally:
                self._over(session, crew)
            if outcome.begun:
                raise _crashed(job, outcome.how)
            sent = None
        raise WorkerCrashedError(
            f"no worker process lived long enough to start unit {job.unit!r}: workers die at "
            "start-up, probably because this environment cannot start Python processes",
            job.unit,
            "before it started",
        ) from crew.start_error

    async def _taken(self, job: Job, crew: Crew) -> Session:
        """Take a worker for a job, whose time limit does not count how long that takes."""
        job.stop_clock()
        session = await crew.take()
        session.holders += 1
        return session

    def _over(self, session: Session, crew: Crew) -> None:
        """A call is over and was looked at; if it was the last, the worker may have another."""
        session.holders -= 1
        if not session.holders:
            if session.alive and session.is_used_up(self._terms.limits):
                session.retire()
            crew.release(session)

    async def _send(self, job: Job, session: Session, crew: Crew) -> _Sent:
        """Send a call, and with it those that may come behind."""
        carried = self._terms.carrier.collect()
        parcel = await self._packed(job, carried, session, crew)
        batch = [parcel]
        # Context variables are those of an attempt, and what comes behind has not begun yet.
        if self._ahead is not None and not carried:
            busy = len(crew.sessions) if crew.is_short_of_workers else 0
            batch += self._ahead.parcels(parcel, crew.numbers, busy)
        keys = [(one.job.unit, one.job.attempt) for one in batch]
        chained, began = batch[-1].is_link, time.perf_counter()
        for place, one in enumerate(batch):
            flags = worker.BEHIND if place else 0
            if one is not batch[-1]:
                flags |= worker.FOLLOWED | worker.KEPT if chained else worker.FOLLOWED
            waiting = self._ask(one, session, crew, flags)
            self._early[keys[place]] = _Sent(
                session,
                one.number,
                waiting,
                0.0 if place else began,
                keys[place + 1 :] if chained else [],
            )
        session.holders += len(batch) - 1
        return self._early.pop(keys[0])

    async def _packed(self, job: Job, carried: Carried, session: Session, crew: Crew) -> Parcel:
        call, used = self._terms.shares.call_of(job)
        if carried:
            call = (*call, carried)
        blob = quickly_packed(call)
        if blob is None and looks_big(job):
            blob = await crew.in_thread(packed, job, call, session.arguments.open)
        elif blob is None:
            blob = packed(job, call, session.arguments.open)
        return Parcel(job, next(crew.numbers), blob, used)

    def _ask(
        self, parcel: Parcel, session: Session, crew: Crew, flags: int
    ) -> "asyncio.Future[Answer | Crash]":
        job, (listener, limits, _, shares) = parcel.job, self._terms
        shares.send(parcel.shares, session)
        crew.outlet.expect(parcel.number, partial(listener.hear, job))
        return session.ask(
            parcel.number,
            listener.settings,
            parcel.blob,
            grace=job.grace,
            limit=job.max_result_bytes or limits.max_result_bytes or 0,
            flags=flags,
        )

    async def _outcome(self, job: Job, sent: _Sent, crew: Crew) -> Answer | Crash:
        """Wait for the end of a call; when cancelled, stop it."""
        session, number = sent.session, sent.number
        try:
            outcome = await sent.waiting
        except asyncio.CancelledError:
            await finished(crew.own(self._abandon(session, number, job.grace, crew)))
            raise
        if isinstance(outcome, Crash):
            await finished(crew.own(crew.gone(session)))
        elif self._ahead is not None:
            total = time.perf_counter() - sent.began if sent.began else 0.0
            self._ahead.learn(job, outcome.seconds, total)
        if not crew.outlet.is_finished(number, session.pid):
            await finished(crew.own(crew.outlet.finish(number, session.pid)))
        if isinstance(outcome, Crash) or outcome.how != RETURNED:
            self._drop(sent.links, crew)
        return outcome

    def _drop(self, links: list[Key], crew: Crew) -> None:
        """Forget calls that needed the result of one that has none."""
        for key in links:
            if (sent := self._early.pop(key, None)) is not None:
                over = partial(self._over, sent.session, crew)
                sent.waiting.add_done_callback(lambda _, over=over: over())  # type: ignore[misc]

    async def _abandon(self, session: Session, number: int, grace: float, crew: Crew) -> None:
        """Stop a call that runs; return when its worker is gone."""
        if grace:
            await session.clean_up(number, grace)
        session.kill()
        await crew.gone(session)
        await crew.outlet.finish(number, session.pid)

    async def _opened(self, job: Job, answer: Answer, session: Session, crew: Crew) -> Any:
        """Return the result, or raise what was raised; big ones are read in a thread."""
        load_it = partial(load, segment=session.results.path)
        if answer.how == RETURNED and is_spilled(answer.content):
            return await crew.in_thread(opened, job, answer, load_it)
        return opened(job, answer, load_it)


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
