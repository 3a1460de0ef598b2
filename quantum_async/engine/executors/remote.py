"""Units on a cluster, through a `RemoteExecutor`. This is what all clusters have in common.

* A unit starts, for the engine and in every event, when its last dependency has ended. What goes to
  the cluster ahead of that is chosen by `early`: a unit is submitted as soon as its dependencies
  are, and takes references to their results. When it starts, its attempt takes over what is there.
* Results stay there. The ledger holds a `RemoteValue`, which a unit that runs here fetches before
  its function is called. What nothing depends on is fetched at the end of its own unit.
* Retries and time limits are ours. Who is canceled is taken back; where a function that runs cannot
  be interrupted, its slot stays taken until it ends.
"""

import asyncio
import os
import pickle
from collections.abc import Callable
from types import FunctionType
from typing import Any, NamedTuple

from quantum_async.core.errors import ClusterError, UnpicklableUnitError
from quantum_async.engine.attempt import Work
from quantum_async.engine.executors.base import Job
from quantum_async.engine.executors.carry import Carrier
from quantum_async.engine.executors.cluster import RemoteAnswer, RemoteCall, RemoteExecutor
from quantum_async.engine.executors.early import Early, Run
from quantum_async.engine.executors.envelope import Answer, Carried, opened
from quantum_async.engine.executors.inputs import Inputs
from quantum_async.engine.executors.packing import dumps, looks_big, packed
from quantum_async.engine.executors.performing import function_of
from quantum_async.engine.executors.references import Fetcher, RemoteValue, packing
from quantum_async.engine.executors.shares import is_by_name
from quantum_async.engine.executors.transport import is_plain
from quantum_async.engine.loops import all_ended, in_thread, new_task

_STILL = "its function cannot be interrupted on the {} cluster"
_INLINE = 16_384  # bytes; results up to this come with the answer, if they are wanted here
_INLINE_ANYWAY = 1_024  # and up to this in any case


class Terms(NamedTuple):
    """What holds for all calls of a run.

    Attributes:
        run_id: The run's name.
        carrier: Collects the context variables that travel.
        hear: Takes a job and a record of what it printed or logged.
        settings: What is wanted of that, as `capture.begin` takes it.
    """

    run_id: str
    carrier: Carrier
    hear: Callable[[Job, Any], object]
    settings: str


class _ByValue:
    """Takes the place of a function that is pickled already."""

    def __init__(self, blob: bytes) -> None:
        self._blob = blob

    def __reduce__(self) -> tuple[Any, ...]:
        return function_of, (self._blob,)


async def _settled(*waiting: "asyncio.Future[Any]") -> None:
    """Wait until one of some things has ended, however it ends."""
    await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)


class _Sent:
    """A call that was submitted, or is about to be.

    Attributes:
        job: The attempt that it is of.
        value: Stands for its result.
        waiting: What becomes its answer, or the exception that takes its place.
        began: Whether its function has begun.
        taken: Whether the attempt has begun, for the engine.
        late: Whether the attempt has ended, and its function runs on.
        known: What is done when it begins, if somebody waits for that.
    """

    __slots__ = ("began", "job", "known", "late", "taken", "value", "waiting")

    def __init__(
        self, job: Job, value: RemoteValue, waiting: "asyncio.Future[RemoteAnswer | BaseException]"
    ) -> None:
        self.job = job
        self.value = value
        self.waiting = waiting
        self.began = self.taken = self.late = False
        self.known: asyncio.Future[None] | None = None


class RemotePlace:
    """Runs the jobs of one run on a cluster.

    Args:
        cluster: The cluster.
        terms: What holds for all calls.
    """

    def __init__(self, cluster: RemoteExecutor, terms: Terms) -> None:
        self._cluster = cluster
        self._terms = terms
        self._fetcher = Fetcher(cluster)
        self._token = os.urandom(4).hex()
        self._count = 0
        self._queue: list[tuple[_Sent, bytes, list[RemoteValue]]] = []
        self._sent: dict[str, _Sent] = {}  # by key, until it has ended
        self._early: dict[int, _Sent] = {}  # by unit, what went ahead
        self._functions: dict[int, bytes] = {}
        self._inputs: Inputs | None = None
        self._storing: asyncio.Task[None] | None = None
        self._run: Run | None = None
        self._units = 0
        self._ahead: Early | None = None

    def connect(self, run: Run) -> Callable[[Work, int], Work]:
        """Tell it of the run that it is part of; return `arriving`."""
        self._run, self._units = run, run.plan.unit_count
        self._ahead = Early(run, self._sent_ahead, self._drop)
        return self.arriving

    # -- the run ----------------------------------------------------------------------------

    def begin(self, run: object) -> None:
        """The run starts: what of its input is large goes to the cluster."""
        there = self._run
        assert there is not None  # it was connected before
        self._inputs = Inputs(self._cluster, there.view.input)
        if there.view.input is not None:
            handles = (there.plan.handles[unit] for unit in there.units)
            store = self._inputs.store([handle.options.binding for handle in handles])
            self._storing = new_task(store)

    async def end(self) -> None:
        """The run has ended: nobody waits for anything any more."""
        if self._ahead is not None:
            self._ahead.close()
        tasks = [*self._fetcher.tasks, *([] if self._storing is None else [self._storing])]
        await all_ended([_settled(task) for task in tasks])
        if self._inputs is not None:
            self._inputs.close()
        self._run = self._ahead = None
        await self._cluster.detach()

    # -- jobs -------------------------------------------------------------------------------

    async def run(self, job: Job) -> Any:
        """Run a job on the cluster; see `Executor.run`."""
        ahead = self._ahead
        assert ahead is not None  # while the run goes on
        unit = job.number
        if self._storing is not None:
            await asyncio.shield(self._storing)
        carried = self._terms.carrier.collect()
        sent = self._early.pop(unit, None) if ahead.begins(unit) else None
        if sent is None:
            sent = await self._packed_and_sent(job, carried)
            if not carried and unit < self._units:
                ahead.submitted(unit, sent.value)
        sent.job, sent.taken = job, True
        if self._cluster.can.tells_start and not sent.began:
            job.stop_clock()
        done = False
        try:
            value = await self._outcome(sent)
            done = True
        finally:
            if not done:
                sent.value.release()
                ahead.failed(unit)
            ahead.over(unit)
        return value

    async def _outcome(self, sent: _Sent) -> Any:
        try:
            # Whoever is cancelled must not cancel what others may wait for.
            answer = await asyncio.shield(sent.waiting)
        except asyncio.CancelledError:
            await self._abandon(sent)
            raise
        job = sent.job
        if isinstance(answer, asyncio.CancelledError):
            await self._canceled_there(job)
        if isinstance(answer, BaseException):
            raise answer
        for record in answer.records:
            self._terms.hear(job, record)
        value = sent.value
        value.size, value.content = answer.size, answer.content
        given = Answer(answer.how, answer.content, answer.told, 0.0, answer.usage)
        where = f"{self._cluster.name} worker on {answer.usage.host}"
        opened(job, given, lambda _: None, where)
        return await self._at_home(job.number, value)

    async def _at_home(self, unit: int, value: RemoteValue) -> Any:
        """Return a unit's result itself if it is wanted here, and else what stands for it."""
        run = self._run
        assert run is not None  # while the run goes on
        if unit >= self._units or unit in run.must:
            if not value.is_here:
                value.warn("is looked at by the engine")
            return await self._fetcher.bring(value)
        if unit in run.wanted and (value.is_here or value.size <= self._cluster.keep_remote):
            return await self._fetcher.bring(value)
        return value

    async def _canceled_there(self, job: Job) -> None:
        """Have a unit end as canceled: somebody took its call back on the cluster."""
        run = self._run
        assert run is not None  # while the run goes on
        run.ledger.causes[job.number] = f"it was cancelled on the {self._cluster.name} cluster"
        task = asyncio.current_task()
        assert task is not None  # attempts are tasks
        task.cancel()
        await asyncio.get_running_loop().create_future()

    async def _abandon(self, sent: _Sent) -> None:
        """Stop a call; if its function runs on, its slot stays taken until that has ended."""
        if sent.waiting.done():
            return
        self._take_back(sent)
        can = self._cluster.can
        if can.tells_start and not sent.began:
            # It may just have begun: the cluster says so, or that it never will.
            sent.known = asyncio.get_running_loop().create_future()
            await all_ended([_settled(sent.waiting, sent.known)])
        if sent.waiting.done():
            return
        if can.interrupts_running or self._cluster.wait_for_running:
            await all_ended([_settled(sent.waiting)])
        else:
            sent.late = sent.job.late = True
            sent.job.holds_run = False
            sent.job.still = f"{_STILL.format(self._cluster.name)} and is still running remotely"
            sent.job.back = f"{_STILL.format(self._cluster.name)}, and ended there later"

    def _take_back(self, sent: _Sent) -> None:
        key = sent.value.key
        if key in self._sent:
            self._cluster.cancel([key])
        else:  # it was about to be submitted
            self._queue = [one for one in self._queue if one[0] is not sent]
            if not sent.waiting.done():
                sent.waiting.set_result(asyncio.CancelledError())
        sent.value.release()

    def _sent_ahead(self, job: Job) -> RemoteValue | None:
        """Submit a job ahead of its turn; None if that is to wait."""
        if looks_big(job):
            return None
        try:
            sent = self._send(job, *self._packed(job, ()))
        except (UnpicklableUnitError, ClusterError):
            return None  # it is raised again in its turn
        self._early[job.number] = sent
        return sent.value

    def _drop(self, unit: int) -> None:
        """Take back what went ahead."""
        sent = self._early.pop(unit, None)
        if sent is not None:
            self._take_back(sent)

    # -- what goes --------------------------------------------------------------------------

    async def _packed_and_sent(self, job: Job, carried: Carried) -> _Sent:
        if looks_big(job):
            return self._send(job, *await in_thread(lambda: self._packed(job, carried)))
        return self._send(job, *self._packed(job, carried))

    def _packed(self, job: Job, carried: Carried) -> tuple[bytes, list[RemoteValue]]:
        """Pickle a call; give with it what it reads of the cluster."""
        function: Any = job.function
        quick = type(function) is FunctionType
        if quick and not is_by_name(function) and not function.__closure__:
            function = _ByValue(self._pickled(function))
        elif quick:
            quick = is_by_name(function)
        assert self._inputs is not None  # while the run goes on
        args, kwargs = self._inputs.call_of(job)
        call: tuple[Any, ...] = (function, args, kwargs)
        if carried:
            call = (*call, carried)
        arguments = (*args, *kwargs.values())
        with packing() as used:
            if quick and all(is_plain(it) or type(it) is RemoteValue for it in arguments):
                blob = pickle.dumps(call, pickle.HIGHEST_PROTOCOL)
            else:
                blob = packed(job, call)
        most = self._cluster.can.max_payload
        if most is not None and len(blob) > most:
            raise ClusterError(
                f"what unit {job.unit!r} is called with takes {len(blob)} bytes, and "
                f"{self._cluster.name} takes at most {most}: have a unit there make the data"
            )
        header = self._inline_limit(job.number), self._terms.settings
        return pickle.dumps((*header, blob)), used

    def _pickled(self, function: Callable[..., Any]) -> bytes:
        """Pickle a function that is sent by value, once a run."""
        known = self._functions.get(id(function))
        if known is None:
            known = self._functions[id(function)] = dumps(function)
        return known

    def _inline_limit(self, unit: int) -> int:
        run = self._run
        assert run is not None  # while the run goes on
        if unit >= self._units or unit in run.wanted or unit in run.read_here:
            return _INLINE
        return _INLINE if unit in run.must else _INLINE_ANYWAY

    def _send(self, job: Job, blob: bytes, used: list[RemoteValue]) -> _Sent:
        loop = asyncio.get_running_loop()
        self._count += 1
        key = f"{job.unit}-{self._terms.run_id}-{job.attempt}-{self._token}{self._count}"
        sent = _Sent(job, RemoteValue(job.unit, key, self._cluster), loop.create_future())
        if not self._queue:
            loop.call_soon(self._flush)
        self._queue.append((sent, blob, used))
        return sent

    def _flush(self) -> None:
        """Submit what was sent in this turn, all together."""
        queue, self._queue = self._queue, []
        calls: list[RemoteCall] = []
        submitted: list[_Sent] = []
        keys: set[str] = set()
        for sent, blob, used in queue:
            gone = [it for it in used if it.reference is None and it.key not in keys]
            if gone:
                names = ", ".join(repr(it.unit) for it in gone)
                error = ClusterError(f"unit {sent.job.unit!r} reads what was released: {names}")
                sent.waiting.set_result(error)
                continue
            references = tuple(it.key if it.reference is None else it.reference for it in used)
            keys.add(sent.value.key)
            job = sent.job
            needs = self._needs(job.number)
            calls.append(
                RemoteCall(job.unit, sent.value.key, blob, references, *needs, grace=job.grace)
            )
            submitted.append(sent)
        for sent in submitted:
            self._sent[sent.value.key] = sent
        try:
            references = tuple(self._cluster.submit(calls, self)) if calls else ()
        except Exception as error:
            for sent in submitted:
                self.lost(sent.value.key, error)
        else:
            for sent, reference in zip(submitted, references, strict=True):
                sent.value.reference = reference

    def _needs(self, unit: int) -> tuple[dict[str, float], float]:
        """Return what a unit needs of the cluster's own resources, and its priority."""
        run = self._run
        if run is None:
            return {}, 0
        options = run.ledger.rows.handles[unit].options
        if not options.uses or callable(options.uses):
            return {}, options.priority
        needs = {name: tokens for name, tokens in options.uses if name not in run.limits}
        return needs, options.priority

    # -- what comes back: see `Hearer` ------------------------------------------------------

    def began(self, key: str) -> None:
        """The function begins."""
        sent = self._sent.get(key)
        if sent is not None and not sent.began:
            sent.began = True
            if sent.known is not None and not sent.known.done():
                sent.known.set_result(None)
            if sent.taken and not sent.late:
                sent.job.restart_clock()

    def wrote(self, key: str, record: Any) -> None:
        """The function printed or logged something."""
        sent = self._sent.get(key)
        if sent is not None:
            self._terms.hear(sent.job, record)

    def ended(self, key: str, answer: RemoteAnswer) -> None:
        """The function has ended."""
        self._over(key, answer)

    def lost(self, key: str, error: BaseException) -> None:
        """There will be no answer."""
        self._over(key, error)

    def _over(self, key: str, outcome: RemoteAnswer | BaseException) -> None:
        sent = self._sent.pop(key, None)
        if sent is None:
            return
        if not sent.waiting.done():
            sent.waiting.set_result(outcome)
        if sent.late:
            sent.job.returned(sent.job)

    # -- for units that run here ------------------------------------------------------------

    def arriving(self, work: Work, lane: int) -> Work:
        """Return the work of a unit that runs here; first of all, what it reads is fetched."""
        run, fetcher = self._run, self._fetcher
        if run is None or lane not in run.local:
            return work
        ledger, edges_up = run.ledger, run.plan.edges_up

        async def arrives(job: Job) -> Any:
            unit = job.number
            declared = unit if unit < ledger.rows.count else ledger.rows.parent(unit)
            coming = []
            for above in edges_up[declared]:
                value = ledger.results[above]
                if isinstance(value, RemoteValue) and not value.is_here:
                    value.warn(f"is read by unit {job.unit!r}, which runs here")
                    coming.append(value)
            if coming:
                # The time that it takes is nobody's fault here.
                job.stop_clock()
                for arrival in [fetcher.coming(value) for value in coming]:
                    await asyncio.shield(arrival)
                job.restart_clock()
            return await work(job)

        return arrives
