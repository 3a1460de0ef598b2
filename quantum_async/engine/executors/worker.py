"""The worker's side: what runs inside a worker process. See `process` for the other side.

anyio's worker loop calls `run` by name, with plain bytes; nothing of the user's is ever
(un)pickled by that loop, where one function that cannot be imported would poison the worker for
all later calls. Everything of the user's is unpickled, run and pickled inside `run`, which
answers in every case, and with the number of the call that it answers.
"""

import io
import os
import pickle
import signal
import sys
from functools import partial
from types import ModuleType
from typing import Any, NamedTuple

from quantum_async.core.record import Usage
from quantum_async.engine.executors import capture
from quantum_async.engine.executors.board import Board
from quantum_async.engine.executors.envelope import Answer, answer
from quantum_async.engine.executors.transport import dump, load, open_segment

NOT_STARTED = "not started"

_board: Board | None = None


class Call(NamedTuple):
    """One call, as it travels; all of it is plain data.

    Attributes:
        board: Where the board of the pool is to be opened.
        outlet: Where what the unit writes is to go (see `capture`).
        settings: What of it is wanted.
        slot: The call's place on it.
        number: The call's number; a stale answer has another one.
        blob: The pickled function and arguments.
        arguments: Where the shared memory with big arguments is to be opened; empty if there is
            none.
        results: The same for a big result.
    """

    board: str
    outlet: str
    settings: str
    slot: int
    number: int
    blob: bytes
    arguments: str
    results: str


def run(*parts: Any) -> tuple[int, Answer]:
    """Run one job.

    Args:
        parts: The fields of a `Call`.

    Returns:
        The call's number, and the answer; one of kind NOT_STARTED if the call was forbidden.
    """
    call = Call(*parts)
    board = _opened_board(call.board, call.outlet)
    pid = os.getpid()
    if not board.claim(call.slot, call.number, pid):
        return call.number, Answer(NOT_STARTED, b"", b"", Usage(pid, 0.0, 0))
    capture.begin(call.number, call.settings)
    try:
        return call.number, answer(
            lambda: load(call.blob, call.arguments or None), partial(_dump, call.results)
        )
    finally:
        capture.end()
        board.release(call.slot, call.number)


def _dump(results: str, value: Any) -> bytes:
    """Pickle a result with pickle, which is quick, or else with cloudpickle."""
    opened = partial(open_segment, results)
    try:
        return dump(value, partial(pickle.Pickler, protocol=5), opened)
    except Exception:
        import cloudpickle

        return dump(value, partial(cloudpickle.Pickler, protocol=5), opened)


def hello(board: str, outlet: str) -> int:
    """Settle in before the first call, outside any unit's time; return this process's id."""
    import cloudpickle  # noqa: F401 - what most calls need

    _opened_board(board, outlet)
    return os.getpid()


def _opened_board(path: str, outlet: str) -> Board:
    """Return the pool's board; the first time, settle in before."""
    global _board
    if _board is None:
        _settle_in()
        capture.install(outlet)
        _board = Board.open(path)
    return _board


def _settle_in() -> None:
    """Make this process one that user code cannot break the protocol of.

    anyio talks to it over descriptors 0 and 1 and gives it a pipe as 2 that nobody reads. The
    talk is moved to other descriptors, and these lead nowhere until `capture` takes them.
    """
    # Ctrl-C is for the parent. One that reached an idle worker would make it send an answer that
    # nobody asked for, and each later call would get the answer of the one before.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(os, "setpgid") and os.getpgrp() != os.getpid():
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
