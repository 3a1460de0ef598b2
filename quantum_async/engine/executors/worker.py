"""The worker's side: what runs inside a worker process. See `process` for the other side.

anyio's worker loop calls `call` by name, with plain bytes; nothing of the user's is ever
(un)pickled by that loop, where one function that cannot be imported would poison the worker for
all later calls. Everything of the user's is unpickled, run and pickled inside `call`, which
answers in every case, and with the number of the call that it answers.
"""

import asyncio
import inspect
import io
import os
import pickle
import signal
import sys
import time
import traceback
from types import ModuleType
from typing import Any

from quantum_async.core.context import DetachedRun, ExecutionContext
from quantum_async.engine.executors.board import Board

# How a call ended.
RETURNED, RAISED, NOT_STARTED, UNLOADABLE, UNSENDABLE = (
    "returned",
    "raised",
    "not started",
    "unloadable",
    "unsendable",
)

Answer = tuple[int, int, str, bytes, bytes]

_board: Board | None = None


def call(board: str, slot: int, number: int, blob: bytes) -> Answer:
    """Run one job.

    Args:
        board: Where the board of the pool is to be opened.
        slot: The call's place on it.
        number: The call's number; a stale answer has another one.
        blob: The pickled function and arguments.

    Returns:
        The call's number, this process's id, how it ended, and pickled bytes: the result or
        what is known of the exception, and what the unit told on the way (`_told`).
    """
    global _board
    if _board is None:
        _settle_in()
        _board = Board.open(board)
    pid = os.getpid()
    if not _board.claim(slot, number, pid):
        return number, pid, NOT_STARTED, b"", b""
    try:
        return number, pid, *_run(blob)
    finally:
        _board.release(slot, number)


def hello(board: str) -> int:
    """Settle in before the first call, outside any unit's time; return this process's id."""
    import cloudpickle  # noqa: F401 - what most calls need

    global _board
    if _board is None:
        _settle_in()
        _board = Board.open(board)
    return os.getpid()


def _run(blob: bytes) -> tuple[str, bytes, bytes]:
    try:
        function, args, kwargs = pickle.loads(blob)
    except BaseException as error:
        return UNLOADABLE, _packed_error(error), b""
    run = _run_of((*args, *kwargs.values()))
    before = {} if run is None else dict(run.metrics)
    if run is not None:
        run.start_clock(time.monotonic)
    try:
        value = function(*args, **kwargs)
        if inspect.iscoroutine(value):
            value = asyncio.run(value)
    except BaseException as error:
        # SystemExit and KeyboardInterrupt too: in anyio's loop they would end the worker.
        how, content = RAISED, _packed_error(error)
    else:
        try:
            how, content = RETURNED, _dumps(value)
        except BaseException as error:
            how, content = UNSENDABLE, _packed_error(error)
    try:
        return how, content, b"" if run is None else _told(run, before)
    except BaseException as error:
        return UNSENDABLE, _packed_error(error), b""


def _run_of(arguments: tuple[Any, ...]) -> DetachedRun | None:
    """Return what stands for the run, if the unit was given its context."""
    for argument in arguments:
        if isinstance(argument, ExecutionContext) and isinstance(argument.view, DetachedRun):
            return argument.view
    return None


def _told(run: DetachedRun, before: dict[str, Any]) -> bytes:
    """Pickle the metrics and values that the unit gave to its context."""
    missing = object()
    metrics = {k: v for k, v in run.metrics.items() if before.get(k, missing) is not v}
    return _dumps((metrics, run.emitted)) if metrics or run.emitted else b""


def _packed_error(error: BaseException) -> bytes:
    """Pickle an exception's description, and itself if it survives the journey."""
    described = (
        f"{type(error).__module__}.{type(error).__qualname__}".removeprefix("builtins."),
        _text(error),
        "".join(traceback.format_exception(error)),
    )
    try:
        itself = _dumps(error)
        # An exception with an __init__ of its own may come out as another one, or not at all.
        survived = type(pickle.loads(itself)) is type(error)
    except BaseException:
        survived = False
    return pickle.dumps((*described, itself if survived else None))


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:
        return "<its __str__ raised>"


def _dumps(value: Any) -> bytes:
    try:
        return pickle.dumps(value, pickle.HIGHEST_PROTOCOL)
    except Exception:
        import cloudpickle

        return bytes(cloudpickle.dumps(value))


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
