"""The worker's side: what runs inside a worker process. See `process` for the other side.

anyio's worker loop calls `call` by name, with plain bytes; nothing of the user's is ever
(un)pickled by that loop, where one function that cannot be imported would poison the worker for
all later calls. Everything of the user's is unpickled, run and pickled inside `call`, which
answers in every case, and with the number of the call that it answers.
"""

import io
import os
import pickle
import signal
import sys
from functools import partial
from types import ModuleType
from typing import Any

from quantum_async.core.record import Usage
from quantum_async.engine.executors.board import Board
from quantum_async.engine.executors.envelope import Answer, answer
from quantum_async.engine.executors.transport import dump, load, open_segment

NOT_STARTED = "not started"

_board: Board | None = None


def call(
    board: str, slot: int, number: int, blob: bytes, arguments: str, results: str
) -> tuple[int, Answer]:
    """Run one job.

    Args:
        board: Where the board of the pool is to be opened.
        slot: The call's place on it.
        number: The call's number; a stale answer has another one.
        blob: The pickled function and arguments.
        arguments: Where the shared memory with big arguments is to be opened; empty if there is
            none.
        results: The same for a big result.

    Returns:
        The call's number, and the answer; one of kind NOT_STARTED if the call was forbidden.
    """
    global _board
    if _board is None:
        _settle_in()
        _board = Board.open(board)
    pid = os.getpid()
    if not _board.claim(slot, number, pid):
        return number, Answer(NOT_STARTED, b"", b"", Usage(pid, 0.0, 0))
    try:
        return number, answer(lambda: load(blob, arguments or None), partial(_dump, results))
    finally:
        _board.release(slot, number)


def _dump(results: str, value: Any) -> bytes:
    """Pickle a result with pickle, which is quick, or else with cloudpickle."""
    opened = partial(open_segment, results)
    try:
        return dump(value, partial(pickle.Pickler, protocol=5), opened)
    except Exception:
        import cloudpickle

        return dump(value, partial(cloudpickle.Pickler, protocol=5), opened)


def hello(board: str) -> int:
    """Settle in before the first call, outside any unit's time; return this process's id."""
    import cloudpickle  # noqa: F401 - what most calls need

    global _board
    if _board is None:
        _settle_in()
        _board = Board.open(board)
    return os.getpid()


def _settle_in() -> None:
    """Make this process one that user code cannot break the protocol of.

    anyio talks to it over descriptors 0 and 1 and gives it a pipe as 2 that nobody reads. The
    talk is moved to other descriptors, and what prints goes nowhere.
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


def _die_with_parent() -> None:
    """Ask Linux to kill this process when its parent dies: no orphans."""
    if sys.platform != "linux":
        return
    import ctypes

    set_parent_death_signal = 1
    ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)
