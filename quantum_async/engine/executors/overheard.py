"""What a call prints and logs in a process that is not ours alone: a worker of a cluster.

There, descriptors cannot be taken over as in our own workers. `sys.stdout` and `sys.stderr` are
replaced by streams that look whose call they are in, and the root logger gets a handler that does.
What a call wrote travels with its answer. What threads of its own and C code write stays there.
"""

import io
import json
import logging
import os
import reprlib
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from typing import Any

from quantum_async.engine.executors.capture import WorkerRecord

_MOST_RECORDS, _MOST_TEXT = 1_000, 256 * 1024  # of one call
_PLAIN = (str, int, float, bool, type(None))
_OF_LOGGING = frozenset((*vars(logging.makeLogRecord({})), "message", "asctime", "taskName"))
_LEVELS = {"stdout": logging.INFO, "stderr": logging.WARNING}


class Records:
    """What one call has written, up to a limit.

    Args:
        wanted: Whether output is wanted, by stream.

    Attributes:
        kept: The records, in order.
    """

    def __init__(self, wanted: Mapping[str, Any]) -> None:
        self.kept: list[WorkerRecord] = []
        self.wanted = wanted
        self._open = {"stdout": "", "stderr": ""}  # lines that have not ended
        self._size = self._dropped = 0

    def write(self, stream: str, text: str) -> None:
        """Keep each line of output that is complete."""
        *lines, self._open[stream] = (self._open[stream] + text).split("\n")
        for line in lines:
            self._line(stream, line)

    def _line(self, stream: str, line: str) -> None:
        # A terminal would show only what follows the last return: progress bars.
        shown = line.rstrip("\r").rpartition("\r")[2]
        if shown:
            name = f"quantum_async.worker.{stream}"
            self.add(WorkerRecord(stream, _LEVELS[stream], name, shown, {}, "", time.time()))

    def add(self, record: WorkerRecord) -> None:
        """Keep a record, if there is room."""
        size = len(record.message) + len(record.exception)
        if len(self.kept) >= _MOST_RECORDS or self._size + size > _MOST_TEXT:
            self._dropped += size
            return
        self._size += size
        self.kept.append(record._replace(pid=os.getpid()))

    def close(self) -> None:
        """Keep lines that have no end, and say how much there was no room for."""
        for stream, line in self._open.items():
            self._line(stream, line)
        if self._dropped:
            told = f"{self._dropped} bytes of output were dropped"
            name = "quantum_async.worker"
            fields = {"bytes": self._dropped}
            self.kept.append(WorkerRecord("dropped", logging.WARNING, name, told, fields))


_records: ContextVar[Records | None] = ContextVar("quantum_async_overheard", default=None)


class _Stream(io.TextIOBase):
    """Takes what calls print; all else goes where it always went."""

    def __init__(self, below: Any, name: str) -> None:
        self._below = below
        self._name = name

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return str(getattr(self._below, "encoding", "utf-8"))

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        records = _records.get()
        if records is None or not records.wanted[self._name]:
            self._below.write(text)  # what it returns is not always a number
        else:
            records.write(self._name, text)
        return len(text)

    def flush(self) -> None:
        self._below.flush()

    def fileno(self) -> int:
        return int(self._below.fileno())

    def isatty(self) -> bool:
        return False


class _Handler(logging.Handler):
    """Takes what calls log."""

    _formatter = logging.Formatter()

    def emit(self, record: logging.LogRecord) -> None:
        records = _records.get()
        if records is None:
            return
        try:
            trace = record.exc_text or ""
            if record.exc_info and not trace:
                trace = self._formatter.formatException(record.exc_info)
            extra = {k: v for k, v in vars(record).items() if k not in _OF_LOGGING}
            fields = {k: v if type(v) in _PLAIN else reprlib.repr(v) for k, v in extra.items()}
            place = record.pathname, record.lineno, record.funcName or ""
            message, level = record.getMessage(), record.levelno
            records.add(
                WorkerRecord(
                    "logging", level, record.name, message, fields, trace, record.created, place
                )
            )
        except Exception:
            self.handleError(record)


@contextmanager
def overheard(settings: str) -> Iterator[Records]:
    """Keep what is printed and logged in the block, in this context.

    Args:
        settings: What is wanted, as `capture.begin` takes it.
    """
    wanted = _settled(settings)
    for name in _LEVELS:
        if type(getattr(sys, name)) is not _Stream:
            setattr(sys, name, _Stream(getattr(sys, name), name))
    records = Records(wanted)
    token = _records.set(records)
    try:
        yield records
    finally:
        _records.reset(token)
        records.close()


@lru_cache(maxsize=16)
def _settled(settings: str) -> Mapping[str, Any]:
    """Let loggers say what is wanted: in this process, from now on."""
    wanted: dict[str, Any] = json.loads(settings)
    root = logging.getLogger()
    if not any(isinstance(one, _Handler) for one in root.handlers):
        root.addHandler(_Handler())
    for name, level in wanted.get("levels", {}).items():
        logger = logging.getLogger(name)
        if not logger.level or logger.level > level:
            logger.setLevel(level)
    return {name: bool(wanted.get(name)) for name in _LEVELS}
