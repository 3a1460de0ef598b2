"""The worker's side: what runs inside a worker process. See `process` for the pool's side.

anyio's worker loop calls `serve` by name, with plain data; nothing of the user's is ever
(un)pickled by that loop, where one function that cannot be imported would poison the worker for
all later calls. `serve` returns when the pool says so, and then the worker is anyio's again. In
between, frames come and go through a `Channel`. What is the user's is unpickled, run and pickled
inside `_answered`, which answers in every case; an answer has the number of its call.
"""

import gc
import io
import os
import pickle
import signal
import struct
import sys
from contextlib import suppress
from functools import partial
from types import FrameType, ModuleType
from typing import Any

from quantum_async.engine.executors import capture, store
from quantum_async.engine.executors.channel import WorkerEnd
from quantum_async.engine.executors.envelope import Answer, answer
from quantum_async.engine.executors.transport import (
    SPILL,
    PayloadTooLargeError,
    dump,
    inline,
    is_plain,
    load,
    open_segment,
)

# What the pool sends: a kind, a call's number (or that of a shared value), for a call the seconds
# of grace and the most bytes of its result (0: no limit), and the rest of the frame.
HEAD = struct.Struct("=BQdQ")
PROTOCOL = pickle.HIGHEST_PROTOCOL
CALL, SETTINGS, SHARE, FORGET, LEAVE, EXIT = range(6)
# Flags of a call, beside its kind: another came right before it; another comes right behind it, so
# that its result must not lie where the next one's will; that one takes its result.
BEHIND, FOLLOWED, KEPT = 16, 32, 64

# What `signal.getsignal` wraps: the wrapper makes enums, which takes ten times as long.
_getsignal = __import__("_signal").getsignal

# What user code must leave as it was, for the next unit.
_SIGNALS = [
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGALRM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGCHLD")
    if hasattr(signal, name)
]


class _Process:
    """What this process was like when it became a worker."""

    def __init__(self, outlet: str) -> None:
        _settle_in()
        capture.install(outlet)
        self.pid = os.getpid()
        self.folder = os.getcwd()
        self.handlers = [(int(number), _getsignal(number)) for number in _SIGNALS]
        self.recursion = sys.getrecursionlimit()

    def restore(self) -> None:
        """Undo what a unit did to the whole process, and what would hit the next unit."""
        if os.getpid() != self.pid:
            os._exit(0)  # a unit forked, and the child came back out of it
        for number, handler in self.handlers:
            if _getsignal(number) is not handler:
                signal.signal(number, handler)
        signal.setitimer(signal.ITIMER_REAL, 0)
        if sys.getrecursionlimit() != self.recursion:
            sys.setrecursionlimit(self.recursion)
        gc.enable()
        with suppress(OSError):
            if os.getcwd() == self.folder:
                return
        with suppress(OSError):
            os.chdir(self.folder)


_process: _Process | None = None


def serve(outlet: str, arguments: str, results: str, *paths: str) -> None:
    """Run calls until the pool says that it is enough.

    Args:
        outlet: Where what units write is to go (see `capture`).
        arguments: Where the shared memory with big arguments is to be opened.
        results: The same for big results.
        paths: Where the channel is to be opened.
    """
    global _process
    if _process is None:
        import cloudpickle  # noqa: F401 - what most calls need, outside any unit's time

        _process = _Process(outlet)
    reading, writing = paths
    end = WorkerEnd((reading, writing), capture.high)
    end.send(_process.pid.to_bytes(8, sys.byteorder))
    settings = ""
    while True:
        frame = end.receive()
        kind, number, grace, limit = HEAD.unpack_from(frame)
        rest = frame[HEAD.size :]
        if kind & 15 == CALL:
            if kind & BEHIND:
                capture.settle()
            capture.begin(number, settings)
            where = "" if kind & FOLLOWED else results
            dump_it = partial(_dump, where, limit or None, number if kind & KEPT else 0)
            try:
                answered = _answered(partial(load, rest, arguments), dump_it, grace)
                end.send(pickle.dumps((number, *answered[:-1], *answered.usage), PROTOCOL))
            except BaseException:
                # The unit closed or broke what is not its own, and nothing can be answered.
                os._exit(os.EX_SOFTWARE)
        elif kind == SETTINGS:
            settings = rest.decode()
        elif kind == SHARE:
            path, blob = rest.split(b"\0", 1)
            store.put(number, partial(load, blob, path.decode()))
        elif kind == FORGET:
            store.forget(number)
        elif kind == EXIT:
            os._exit(0)
        else:
            store.clear()
            end.close()
            return


def _answered(load_it: Any, dump_it: Any, grace: float) -> Answer:
    assert _process is not None
    if grace:
        signal.signal(signal.SIGTERM, _asked_to_end)
    try:
        return answer(load_it, dump_it)
    finally:
        _process.restore()
        capture.end()


def _asked_to_end(number: int, frame: FrameType | None) -> None:
    """Let a unit that has a grace clean up: `finally` blocks and context managers run."""
    raise SystemExit(128 + number)


def _dump(results: str, limit: int | None, keep: int, value: Any) -> bytes:
    """Pickle a result with pickle, which is quick, or else with cloudpickle."""
    if keep:
        store.keep(-keep, value)
    if is_plain(value):
        content = pickle.dumps(value, PROTOCOL)
        if len(content) < SPILL and (limit is None or len(content) <= limit):
            return inline(content)
    opened = partial(open_segment, results) if results else None
    try:
        return dump(value, partial(pickle.Pickler, protocol=5), opened, limit)
    except PayloadTooLargeError:
        raise
    except Exception:
        import cloudpickle

        return dump(value, partial(cloudpickle.Pickler, protocol=5), opened, limit)


def _settle_in() -> None:
    """Make this process one that user code cannot break the protocol of.

    anyio talks to it over descriptors 0 and 1 and gives it a pipe as 2 that nobody reads. The
    talk is moved to other descriptors, and these lead nowhere until `capture` takes them.
    """
    # Ctrl-C is for the parent. One that reached an idle worker would make it send an answer that
    # nobody asked for, and each later call would get the answer of the one before.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if os.getpgrp() != os.getpid():
        os.setpgid(0, 0)  # so that it can be killed together with its children
    _die_with_parent()
    sys.modules["__main__"] = ModuleType("__main__")  # anyio has taken it out
    for stream, mode in ((sys.__stdin__, "rb"), (sys.__stdout__, "wb")):
        buffer: Any = stream.buffer  # type: ignore[union-attr]
        raw = getattr(buffer, "raw", buffer)  # unbuffered streams have no layer above
        assert isinstance(raw, io.FileIO)
        # The same object over another descriptor: anyio's loop holds on to it.
        io.FileIO.__init__(raw, os.dup(raw.fileno()), mode, closefd=True)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nowhere, descriptor)
    os.close(nowhere)
    vars(sys)["__stdin__"] = sys.stdin  # the one before is the talk itself


def _die_with_parent() -> None:
    """Ask Linux to kill this process when its parent dies: no orphans."""
    if sys.platform != "linux":
        return
    import ctypes

    set_parent_death_signal = 1
    ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)
