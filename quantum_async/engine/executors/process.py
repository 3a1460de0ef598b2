"""CPU-bound units in worker processes, through `anyio.to_process`. This is the pool's side.

anyio starts the workers, talks to them and ends them with the loop. What it does not do is done
here and in `worker`:

* A call is never cancelled, because that leaks a starting worker or leaves an answer behind: it
  runs in a task of the pool's own. To stop a unit, its call is forbidden on the `Board`; if it has
  begun, the process that the board names is killed, with its children.
* Each answer carries its call's number. Another number kills the worker and is an error.
* A worker that dies is a `WorkerCrashedError` with its exit code or signal. A call that had not
  begun is sent again, silently.
* Workers are started before they are needed and outside any unit's time limit.

One pool serves all runs of an event loop, and ends with it.
"""

import asyncio
import math
import os
import signal
import sys
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Any, ClassVar, NamedTuple, TypeVar
from weakref import WeakKeyDictionary

from anyio import BrokenWorkerProcess, CancelScope, CapacityLimiter, to_process, to_thread
from anyio.abc import Process

from quantum_async.core.errors import InternalError, WorkerCrashedError
from quantum_async.engine.executors import worker
from quantum_async.engine.executors.base import Job
from quantum_async.engine.executors.board import Board
from quantum_async.engine.executors.envelope import RETURNED, Answer, opened
from quantum_async.engine.executors.outlet import Outlet, WorkerRecord
from quantum_async.engine.executors.packing import looks_big, packed
from quantum_async.engine.executors.transport import Segment, is_spilled, load
from quantum_async.engine.loops import new_task

T = TypeVar("T")

_MOST_CALLS = 1024  # slots on the board: calls under way at once
_TRIES = 3  # of a call whose worker died before it began
# How anyio says that a worker is gone: when it answers nothing, and when it was gone already.
_DEAD = (BrokenWorkerProcess, ProcessLookupError, BrokenPipeError)


class Listener(NamedTuple):
    """Takes what units in workers print and log.

    Attributes:
        settings: What is wanted, as `capture.begin` takes it.
        hear: Takes a job and a record of it.
    """

    settings: str
    hear: Callable[[Job, WorkerRecord], object]


@dataclass(frozen=True, slots=True)
class _Crash:
    """A call whose worker died: whether it had begun, and how the worker ended if that is known."""

    begun: bool
    how: str


class _Mailbox:
    """The shared memory of one slot of the board: for big arguments, and for a big result.

    The pool's side makes and owns both pieces, so that nothing is left whoever crashes.
    """

    def __init__(self) -> None:
        self.outgoing: Segment | None = None
        self.incoming = Segment.create()

    def open_outgoing(self) -> int:
        """Return a descriptor of the piece for arguments, which is made when first needed."""
        if self.outgoing is None:
            self.outgoing = Segment.create()
        return self.outgoing.open()

    def paths(self, blob: bytes) -> tuple[str, str]:
        """Return where a worker opens the two pieces; the first is empty if it is not needed."""
        spilled = self.outgoing is not None and is_spilled(blob)
        return self.outgoing.path if self.outgoing and spilled else "", self.incoming.path

    def close(self) -> None:
        """Let go of both."""
        self.incoming.close()
        if self.outgoing is not None:
            self.outgoing.close()


class WorkerPool:
    """The worker processes of one event loop."""

    _pools: ClassVar["WeakKeyDictionary[asyncio.AbstractEventLoop, WorkerPool]"] = (
        WeakKeyDictionary()
    )

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._board = Board.create(_MOST_CALLS)
        self._outlet = Outlet.open(loop)
        self._free_slots = list(range(_MOST_CALLS))
        self._mailboxes: dict[int, _Mailbox] = {}
        self._numbers = count(1)
        self._limiter = CapacityLimiter(math.inf)  # the slots are the scheduler's
        self._starting = asyncio.Lock()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._workers: dict[int, Process | None] = {}
        self._start_error: Exception | None = None
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
            self._board.close()
            for mailbox in self._mailboxes.values():
                mailbox.close()

    # -- workers ----------------------------------------------------------------------------

    @property
    def _busy(self) -> int:
        return _MOST_CALLS - len(self._free_slots)

    def warming(self, workers: int) -> "asyncio.Task[None]":
        """Start workers until there are `workers`, in a task that is not to be cancelled."""
        return self._own(self._warm(workers))

    async def _warm(self, workers: int) -> None:
        async with self._starting:
            self._start_error = None
            while self._start_error is None and (missing := workers - len(self._workers)) > 0:
                # anyio gives a call an idle worker if it has one: those must be taken too, and
                # others may become idle meanwhile.
                idle = max(0, len(self._workers) - self._busy)
                await asyncio.wait([new_task(self._hello()) for _ in range(idle + missing)])

    async def _hello(self) -> None:
        try:
            with _main_module_hidden():
                paths = (self._board.path, self._outlet.path)
                pid = await to_process.run_sync(worker.hello, *paths, limiter=self._limiter)
        except Exception as error:
            # Nobody waits for this worker yet. The unit that needs one tries again, and tells
            # why if that fails too.
            self._start_error = error
            return
        self._workers[pid] = _anyio_process(pid)

    def _own(self, coroutine: Coroutine[Any, Any, T]) -> "asyncio.Task[T]":
        """Run a coroutine as the pool's own task, outside all scopes and contexts of units."""
        task = new_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # -- calls ------------------------------------------------------------------------------

    async def call(self, job: Job, listener: Listener) -> Any:
        """Run a job in a worker and return its result; see `Executor.run`."""
        for _ in range(_TRIES):
            if not await self._has_worker():
                continue
            slot = self._free_slots.pop()
            try:
                outcome = await self._one_call(job, slot, listener)
                if not isinstance(outcome, _Crash):
                    return await self._opened(job, outcome, slot)
            finally:
                self._free_slots.append(slot)
            if outcome.begun:
                raise _crashed(job, outcome.how)
        raise WorkerCrashedError(
            f"no worker process lived long enough to start unit {job.unit!r}: workers die at "
            "start-up, probably because this environment cannot start Python processes",
            job.unit,
            "before it started",
        ) from self._start_error

    async def _has_worker(self) -> bool:
        """Wait for a worker that is not busy; return False if none could be started."""
        while len(self._workers) <= self._busy:
            await asyncio.shield(self.warming(self._busy + 1))
            if self._start_error is not None:
                return False
        return True

    async def _one_call(self, job: Job, slot: int, listener: Listener) -> "Answer | _Crash":
        number = next(self._numbers)
        if slot not in self._mailboxes:
            self._mailboxes[slot] = _Mailbox()
        mailbox = self._mailboxes[slot]
        outcome: Answer | _Crash | None = None
        job.restart_clock()
        try:
            if looks_big(job):
                blob = await self._in_thread(packed, job, mailbox.open_outgoing)
            else:
                blob = packed(job, mailbox.open_outgoing)
            self._board.announce(slot, number)
            paths = (self._board.path, self._outlet.path)
            call = worker.Call(*paths, listener.settings, slot, number, blob, *mailbox.paths(blob))
            sending = self._own(self._send(call, partial(listener.hear, job)))
            outcome = await _finished(sending, partial(self._stop, slot, number))
        finally:
            if not isinstance(outcome, Answer):
                # Whoever wrote there may have been killed in the middle of it.
                self._mailboxes.pop(slot).close()
        return outcome

    async def _opened(self, job: Job, answer: Answer, slot: int) -> Any:
        """Return the result, or raise what was raised; big ones are read in a thread."""
        load_it = partial(load, segment=self._mailboxes[slot].incoming.path)
        if answer.how == RETURNED and is_spilled(answer.content):
            return await self._in_thread(opened, job, answer, load_it)
        return opened(job, answer, load_it)

    async def _in_thread(self, function: Callable[..., T], *args: Any) -> T:
        """Call a function in a thread, and never leave while it uses a slot's memory."""
        reading = to_thread.run_sync(function, *args, limiter=self._limiter)
        return await _finished(self._own(reading))

    def trim(self) -> None:
        """Let go of the shared memory that no call uses."""
        for slot in self._free_slots:
            if slot in self._mailboxes:
                self._mailboxes.pop(slot).close()

    async def _send(
        self, call: worker.Call, hear: Callable[[WorkerRecord], object]
    ) -> "Answer | _Crash":
        slot, number, pid = call.slot, call.number, 0
        self._outlet.expect(number, hear)
        try:
            answered, answer = await to_process.run_sync(worker.run, *call, limiter=self._limiter)
            pid = answer.usage.pid
        except _DEAD:
            pid = self._board.process(slot, number)
            process = self._workers.pop(pid, None)
            if not pid:
                self._forget_dead()
            return _Crash(self._board.has_begun(slot, number), _how_it_ended(process))
        finally:
            # In this very step: anyio may give the worker another call in the next.
            await self._outlet.finish(number, pid)
        if answered != number:
            _kill(pid)
            raise InternalError(f"worker {pid} answered call {answered} when asked {number}")
        if pid not in self._workers:
            self._workers[pid] = _anyio_process(pid)
        return answer

    def _forget_dead(self) -> None:
        """A worker died while it was idle; anyio does not say which."""
        for pid, process in list(self._workers.items()):
            if process is None or process.returncode is not None:
                del self._workers[pid]

    def _stop(self, slot: int, number: int) -> None:
        self._board.forbid(slot, number)
        pid = self._board.process(slot, number)
        if pid:
            _kill(pid)


class ProcessExecutor:
    """Runs the jobs of one run in the worker processes of its event loop.

    Args:
        workers: How many workers to have ready.
        listener: Takes what units write there.
    """

    def __init__(self, workers: int, listener: Listener) -> None:
        self._workers = workers
        self._listener = listener
        self._warming: asyncio.Task[None] | None = None

    def begin(self, run: object) -> None:
        """Start the workers, beside what else the run does first."""
        self._warming = new_task(self._warm())

    async def _warm(self) -> None:
        await (await WorkerPool.of_running_loop()).warming(self._workers)

    async def end(self) -> None:
        """Wait until no worker of this run is half started."""
        if self._warming is not None:
            await self._warming
        (await WorkerPool.of_running_loop()).trim()

    async def run(self, job: Job) -> Any:
        """Run a job in a worker process; see `Executor.run`."""
        pool = await WorkerPool.of_running_loop()
        return await pool.call(job, self._listener)


async def _finished(task: "asyncio.Task[T]", stop: Callable[[], object] | None = None) -> T:
    """Wait for a task of the pool's; when cancelled, stop it, and wait for its end all the same."""
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        if stop is not None:
            stop()
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


def _how_it_ended(process: Process | None) -> str:
    code = None if process is None else _exit_status(process)
    if code is None:
        return ""
    if code >= 0:
        return f"exit code {code}"
    with suppress(ValueError):
        return signal.Signals(-code).name
    return f"signal {-code}"


def _exit_status(process: Process) -> int | None:
    """Return how a process ended: negative for a signal, None while that is unknown.

    anyio kills a worker that stopped answering. Where it is dead already, either that call collects
    the exit status, into the `Popen` object, and asyncio's watcher comes too late and says 255; or
    the watcher was first, and `Popen` says 0.
    """
    code = process.returncode
    if code is None or code == _TOO_LATE:
        with suppress(Exception):
            transport = process._process._transport  # type: ignore[attr-defined]
            code = int(transport.get_extra_info("subprocess").returncode)
    return code


_TOO_LATE = 255


def _anyio_process(pid: int) -> Process | None:
    """Return anyio's own object for a worker, which knows its exit status.

    It is not public, so that it may be gone tomorrow: then crashes have no exit code.
    """
    with suppress(Exception):
        for process in to_process._process_pool_workers.get():
            if process.pid == pid:
                return process
    return None


def _kill(pid: int) -> None:
    """Kill a worker, and the children it has started: it leads a process group of its own."""
    with suppress(ProcessLookupError, PermissionError):
        if hasattr(os, "killpg"):
            os.killpg(pid, signal.SIGKILL)
        else:
            os.kill(pid, signal.SIGTERM)


_hiding = 0
_hidden_file: Any = None
_hiding_lock = threading.Lock()


@contextmanager
def _main_module_hidden() -> Iterator[None]:
    """Keep anyio from running the user's script again in the worker.

    It tells each new worker where ``__main__`` is, and the worker runs that file: an unguarded
    script would run twice. What ``__main__`` defines is sent by value instead.
    """
    global _hiding, _hidden_file
    main = sys.modules["__main__"]
    with _hiding_lock:
        _hiding += 1
        if _hiding == 1:
            _hidden_file = main.__dict__.pop("__file__", None)
    try:
        yield
    finally:
        with _hiding_lock:
            _hiding -= 1
            if not _hiding and _hidden_file is not None:
                main.__dict__["__file__"] = _hidden_file
