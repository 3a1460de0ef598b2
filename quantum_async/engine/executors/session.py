"""One worker process, as the pool sees it, from when it begins to serve until it leaves or dies.

A session is one call of `worker.serve` through `anyio.to_process`: anyio starts the process, or
takes one that is idle, and ends it with the loop. Units go through the session's own channel.
"""

import asyncio
import math
import os
import pickle
import signal
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from traceback import walk_tb
from typing import Any

from anyio import CapacityLimiter, to_process
from anyio.abc import Process

from quantum_async.core.record import Usage
from quantum_async.engine.executors import worker
from quantum_async.engine.executors.channel import Channel
from quantum_async.engine.executors.envelope import Answer
from quantum_async.engine.executors.limits import WorkerLimits
from quantum_async.engine.executors.transport import Segment

_TOO_LATE = 255
# Seconds until a worker that was stopped (SIGSTOP), or hangs, while it runs no unit is killed.
_LONGEST_START = 60.0
_LONGEST_LEAVE = 5.0


@dataclass(frozen=True, slots=True)
class Crash:
    """A call whose worker died: whether it had begun, and how the worker ended if that is known."""

    begun: bool
    how: str


class Session:
    """A worker that serves the pool.

    Args:
        loop: The event loop.
        outlet: Where the worker is to send what units write.
        on_ready: Called once, when the worker is ready for calls.

    Attributes:
        pid: The process; 0 until it is ready.
        alive: Whether it is ready for calls.
        uses: How many calls it has answered.
        holders: How many calls are under way, or over and not looked at.
        error: Why it ended, if it did not just leave.
        shared: Numbers of the shared values that it has.
        arguments: The shared memory for big arguments.
        results: The same for big results. The pool's side makes and owns both, so that nothing is
            left whoever crashes.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        outlet: str,
        on_ready: Callable[["Session"], object],
    ) -> None:
        self.pid = 0
        self.alive = False
        self.uses = 0
        self.holders = 0
        self.error: BaseException | None = None
        self.shared: set[int] = set()
        self.arguments = Segment.create()
        self.results = Segment.create()
        self._loop = loop
        self._outlet = outlet
        self._on_ready = on_ready
        self._settings = ""
        self._channel = Channel(loop, self._take)
        self._calls: dict[int, asyncio.Future[Answer | Crash]] = {}
        self._hidden = ExitStack()
        self._process: Process | None = None
        self._watch = -1
        self._nonsense = ""
        self._starting: Coroutine[Any, Any, None] | None = None
        self._limit: asyncio.TimerHandle | None = None

    # -- its life ---------------------------------------------------------------------------

    async def serve(self) -> None:
        """Start the worker, and stay until it has ended. It is to run in a task of its own."""
        self._hidden.enter_context(_main_module_hidden())
        self._kill_after(_LONGEST_START)
        self._starting = to_process.run_sync(
            worker.serve,
            self._outlet,
            self.arguments.path,
            self.results.path,
            *self._channel.paths,
            limiter=CapacityLimiter(math.inf),  # the slots are the scheduler's
        )
        try:
            await self._starting
        except BaseException as error:
            # How anyio says that a worker is gone, or that none could be started. What the worker
            # itself caught while it started (a Ctrl-C, say) is raised here too, as it is.
            if not isinstance(error, Exception) and not _is_from_worker(error):
                raise
            self.error = error
            await _put_away(error)
        finally:
            self._ended()

    def _take(self, frame: bytes) -> None:
        if not self.pid:
            self._met(int.from_bytes(frame, sys.byteorder))
            return
        try:
            number, how, content, told, seconds, *usage = pickle.loads(frame)
            answer = Answer(how, content, told, seconds, Usage(*usage))
            waiting = self._calls.pop(number)
        except Exception:
            # A unit found our descriptor and wrote there. No answer of this worker is believed.
            self._nonsense = "an answer that makes no sense"
            self.kill()
            return
        self.uses += 1
        if not waiting.done():
            waiting.set_result(answer)

    def _met(self, pid: int) -> None:
        self.pid, self.alive = pid, True
        self._starting = None
        self._forget_limit()
        self._hidden.close()
        self._channel.connected()
        self._process = _anyio_process(pid)
        if hasattr(os, "pidfd_open"):
            # A child of the worker may hold its pipes open and outlive it.
            with suppress(OSError):
                self._watch = os.pidfd_open(pid)
                self._loop.add_reader(self._watch, self._died)
        self._on_ready(self)

    def _died(self) -> None:
        self._forget_watch()
        self.alive = False
        self.kill()  # its children

    def _forget_watch(self) -> None:
        if self._watch >= 0:
            if not self._loop.is_closed():
                self._loop.remove_reader(self._watch)
            os.close(self._watch)
            self._watch = -1

    def _kill_after(self, seconds: float) -> None:
        self._forget_limit()
        self._limit = self._loop.call_later(seconds, self.kill)

    def _forget_limit(self) -> None:
        if self._limit is not None:
            self._limit.cancel()
            self._limit = None

    def _ended(self) -> None:
        self._starting = None
        self._hidden.close()
        self._forget_limit()
        self._forget_watch()
        self._channel.drain()
        self.alive = False
        unread = self._channel.unread()
        self._channel.close()
        self.arguments.close()
        self.results.close()
        how = self._nonsense or _how_it_ended(self._process)
        # It works in order: only the first of those that it did not answer can have begun.
        for place, waiting in enumerate(self._calls.values()):
            if not waiting.done():
                waiting.set_result(Crash(begun=not (place or unread), how=how))
        self._calls.clear()

    # -- calls ------------------------------------------------------------------------------

    def ask(
        self, number: int, settings: str, blob: bytes, *, grace: float, limit: int, flags: int = 0
    ) -> "asyncio.Future[Answer | Crash]":
        """Send a call.

        Args:
            number: The call's number.
            settings: What is wanted of what it writes (see `capture.begin`).
            blob: The pickled call.
            grace: Seconds it has to clean up when it is stopped.
            limit: The most bytes of its result; 0 for no limit.
            flags: Whether there are others with it (see `worker`).

        Returns:
            What becomes the answer, or a crash.
        """
        if settings != self._settings:
            self._settings = settings
            self._channel.send(worker.HEAD.pack(worker.SETTINGS, 0, 0, 0) + settings.encode())
        waiting = self._loop.create_future()
        self._calls[number] = waiting
        self._channel.send(worker.HEAD.pack(worker.CALL | flags, number, grace, limit) + blob)
        return waiting

    def share(self, number: int, path: str, blob: bytes) -> None:
        """Send a shared value, unless the worker has it."""
        if number not in self.shared:
            self.shared.add(number)
            head = worker.HEAD.pack(worker.SHARE, number, 0, 0)
            self._channel.send(b"".join((head, path.encode(), b"\0", blob)))

    def forget(self, number: int) -> None:
        """Have the worker let go of a shared value."""
        if number in self.shared:
            self.shared.discard(number)
            self._channel.send(worker.HEAD.pack(worker.FORGET, number, 0, 0))

    async def clean_up(self, number: int, grace: float) -> None:
        """Ask the worker to end a call by itself; return when it has, or after a grace in seconds.

        It gets SIGTERM, and so do its children.
        """
        waiting = self._calls[number] = self._loop.create_future()
        if self.alive:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGTERM)
            await asyncio.wait([waiting], timeout=grace)

    def leave(self) -> None:
        """Give the worker back to anyio, where it waits for another session."""
        self.alive = False
        self._kill_after(_LONGEST_LEAVE)
        if self.pid:  # else it leaves when it is ready
            self._channel.send(worker.HEAD.pack(worker.LEAVE, 0, 0, 0))

    def retire(self) -> None:
        """End the worker, which is between calls."""
        self.alive = False
        self._kill_after(_LONGEST_LEAVE)
        self._channel.send(worker.HEAD.pack(worker.EXIT, 0, 0, 0))

    def kill(self) -> None:
        """Kill the worker, and the children it has started: it leads a process group of its own."""
        self.alive = False
        with suppress(ProcessLookupError, PermissionError):
            if not self.pid:
                self._kill_half_started()
            else:
                os.killpg(self.pid, signal.SIGKILL)

    def _kill_half_started(self) -> None:
        # Nobody but anyio's call knows its process yet.
        frame = getattr(self._starting, "cr_frame", None)
        process = None if frame is None else frame.f_locals.get("process")
        if process is not None:
            process.kill()

    def is_used_up(self, limits: WorkerLimits) -> bool:
        """Return whether the worker, which is between calls, should make room for a new one."""
        if limits.max_uses is not None and self.uses >= limits.max_uses:
            return True
        return limits.max_memory is not None and self._resident() > limits.max_memory

    def _resident(self) -> int:
        """Return how much memory the worker holds now, in bytes; 0 where that is unknown."""
        with suppress(OSError, ValueError), open(f"/proc/{self.pid}/statm", "rb") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        return 0


def _is_from_worker(error: BaseException) -> bool:
    """Return whether anyio raised what a worker had sent."""
    frames = [frame for frame, _ in walk_tb(error.__traceback__)]
    return bool(frames) and frames[-1].f_locals.get("retval") is error


async def _put_away(error: BaseException) -> None:
    """Close what anyio leaves open of a worker that died on its own, or before it was ready.

    Then anyio's process object is nowhere but in the frame that raised the error.
    """
    for frame, _ in walk_tb(error.__traceback__):
        process = frame.f_locals.get("process")
        if frame.f_globals.get("__name__") == to_process.__name__ and process is not None:
            with suppress(Exception):
                process.kill()
            with suppress(Exception):
                await process.aclose()
            return


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


def _anyio_process(pid: int) -> Process | None:
    """Return anyio's own object for a worker, which knows its exit status.

    It is not public, so that it may be gone tomorrow: then crashes have no exit code.
    """
    with suppress(Exception):
        for process in to_process._process_pool_workers.get():
            if process.pid == pid:
                return process
    return None


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
