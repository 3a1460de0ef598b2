"""The worker's side of captured output; `outlet` is the pool's side.

There are two ways out of a worker:

* `sys.stdout`, `sys.stderr` and log records become frames, in order, in one pipe that the pool
  reads and all its workers write. A write of at most `PIPE_BUF` bytes is never torn, so that many
  can share it, and what was written survives the writer, however that dies.
* Descriptors 1 and 2, where C code and subprocesses write, are pipes of the worker's own, which
  the pool reads too. No thread of the worker does: C code that holds the interpreter lock while it
  writes would wait for that thread for ever.

A page of shared memory says which call the worker runs, so that a silent call costs no frame.
"""

import io
import json
import logging
import mmap
import os
import pkgutil
import select
import struct
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from types import NoneType
from typing import Any, NamedTuple

from quantum_async.engine.executors.allowance import Allowance

MAGIC = b"\xa9Q"
HEADER = struct.Struct("=2sBBIQH")  # magic, kind, part, process id, call, bytes that follow
MOST = 4096 - HEADER.size
NUMBER = struct.Struct("=Q")
# On the page: the last call that began, whether the pool reads descriptors 1 and 2, and how many
# bytes of the call were dropped without its being told.
CALL, READ, OWED, PAGE_SIZE = 0, 8, 16, 24
STDOUT, STDERR, LOG, DROPPED, LOOK, HELLO = range(1, 7)
FIRST, LAST = 1, 2  # parts of a message

_PATIENCE_MS = 50  # for a pool that does not read
_LONGEST_TEXT, _LONGEST_FIELD, _MOST_FIELDS = 256 * 1024, 16 * 1024, 100  # of a log record
_HIGH = 512  # descriptors up here are not hit by accident


class WorkerRecord(NamedTuple):
    """One line of output, or one log record, of a call in a worker process.

    Attributes:
        kind: "stdout", "stderr", "logging", "structlog" or "dropped".
        level: A level of `logging`.
        logger: The logger's name; "" where a structlog logger has none.
        message: The line, message or event.
        fields: Extra attributes or key-values; for "dropped" how many `bytes` were.
        exception: A traceback as text.
        created: When, in seconds since the epoch; 0 if it is not known.
        place: File, line and function that logged it.
        pid: The process that wrote it.
    """

    kind: str
    level: int
    logger: str
    message: str
    fields: dict[str, Any] = {}  # noqa: RUF012 - a default that nobody writes to
    exception: str = ""
    created: float = 0.0
    place: tuple[str, int, str] = ("", 0, "")
    pid: int = 0


class _Line:
    """This process's end of the pipes."""

    def __init__(self, path: str) -> None:
        self._pipe = high(os.open(path, os.O_WRONLY | os.O_NONBLOCK))
        self._room = select.poll()
        self._room.register(self._pipe, select.POLLOUT)
        self._stalled = False
        self._lock = threading.RLock()  # a signal handler may print while its thread prints
        self._pid = os.getpid()
        self._allowance = Allowance()
        self.number = 0
        self.wanted = {STDOUT: True, STDERR: True}

        page = high(os.memfd_create("quantum_async"))
        os.ftruncate(page, PAGE_SIZE)
        self._page = mmap.mmap(page, PAGE_SIZE)
        self._ends: dict[int, tuple[int, int]] = {}  # 1 and 2: the ends of their pipes
        self._watch = select.poll()
        for descriptor in (1, 2):
            reading, writing = map(high, os.pipe())
            os.set_blocking(reading, False)
            self._ends[descriptor] = reading, writing
            self._watch.register(reading, select.POLLIN)
            self._watch.register(descriptor, 0)  # tells if it is closed
        self._open = False
        ends = [self._ends[1][0], self._ends[2][0], page]
        self._send(HELLO, json.dumps(ends).encode())
        os.register_at_fork(after_in_child=self._forked)

    def _forked(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.RLock()

    # -- calls ------------------------------------------------------------------------------

    def begin(self, number: int) -> None:
        """Start to send, for this call."""
        with self._lock:
            if not self._open and self._is_read():
                self._open = True
                self.point()
            elif self._open and self._watch.poll(0):
                self.point()  # perhaps the last call closed one
                for reading, _ in self._ends.values():
                    with suppress(OSError):
                        # What subprocesses of the last call wrote after its end. One read is all
                        # that fits in: one that still writes could be read for ever.
                        os.read(reading, 65536)
            self._allowance = Allowance()
            self._stalled = False
            self.number = number
            NUMBER.pack_into(self._page, CALL, number)
            self._owe()

    def end(self) -> None:
        """Send nothing more."""
        with self._lock:
            self.number = 0

    def point(self) -> None:
        """Point descriptors 1 and 2 where they belong."""
        with suppress(OSError):
            nowhere = os.open(os.devnull, os.O_RDWR)
            for descriptor, (_, writing) in self._ends.items():
                wanted = self._open and self.wanted[STDOUT if descriptor == 1 else STDERR]
                os.dup2(writing if wanted else nowhere, descriptor)
            if nowhere > 2:
                os.close(nowhere)

    def wait_until_read(self, seconds: float) -> None:
        """Wait until the pool reads descriptors 1 and 2."""
        # The pool is another process, and sets a number in shared memory: nothing to block on.
        _poll(self._is_read, seconds)

    def wait_until_taken(self) -> None:
        """Wait until descriptors 1 and 2 were read, or it takes too long."""
        _poll(lambda: not (self._open and self._watch.poll(0)), _PATIENCE_MS / 1000)

    def _is_read(self) -> bool:
        return bool(NUMBER.unpack_from(self._page, READ)[0])

    # -- frames -----------------------------------------------------------------------------

    def write(self, kind: int, data: bytes) -> None:
        """Send output."""
        if not self.number or not self.wanted[kind]:
            return
        with self._lock:
            self._look()
            for start in range(0, len(data), MOST):
                piece = data[start : start + MOST]
                if self._allowance.dropped and self._allowance.take(0, 0):
                    self._settle()
                if self._allowance.take(len(piece), piece.count(b"\n")):
                    self._send(kind, piece)
                else:
                    self._owe()

    def tell(self, payload: bytes) -> None:
        """Send a log record."""
        with self._lock:
            self._look()
            part = FIRST
            for start in range(0, len(payload), MOST):
                piece = payload[start : start + MOST]
                part |= LAST if start + MOST >= len(payload) else 0
                if not self._send(LOG, piece, part):
                    break
                part = 0

    def _look(self) -> None:
        # Before a frame, so that it does not overtake what descriptors 1 and 2 got before.
        if self._open and self._watch.poll(0):
            self._send(LOOK, b"")

    def _settle(self) -> None:
        owed = self._allowance.owed()
        if owed and not self._send(DROPPED, str(owed).encode()):
            self._allowance.dropped += owed
        self._owe()

    def _owe(self) -> None:
        # Where it is found also when this process dies, or the pipe is full.
        NUMBER.pack_into(self._page, OWED, self._allowance.dropped)

    def _send(self, kind: int, payload: bytes, part: int = FIRST | LAST) -> bool:
        frame = HEADER.pack(MAGIC, kind, part, self._pid, self.number, len(payload)) + payload
        for _ in range(2):
            try:
                os.write(self._pipe, frame)
            except BlockingIOError:
                # Once it was waited for in vain it is not waited for again until it reads.
                if self._stalled or not self._room.poll(_PATIENCE_MS):
                    break
            except OSError:
                break
            else:
                self._stalled = False
                return True
        self._stalled = True
        self._allowance.dropped += len(payload) if kind in (STDOUT, STDERR, LOG) else 0
        self._owe()
        return False


class _Raw(io.RawIOBase):
    """What is below `sys.stdout` or `sys.stderr`."""

    def __init__(self, line: _Line, kind: int) -> None:
        self._line = line
        self._kind = kind

    def fileno(self) -> int:
        return 1 if self._kind == STDOUT else 2

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._line.write(self._kind, bytes(data))
        return len(data)


class _Handler(logging.Handler):
    """Sends the records of `logging`."""

    _own = frozenset((*vars(logging.makeLogRecord({})), "message", "asctime", "taskName"))
    _formatter = logging.Formatter()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            trace = record.exc_text or ""
            if record.exc_info and not trace:
                trace = self._formatter.formatException(record.exc_info)
            if record.stack_info:
                trace = f"{trace}\n{record.stack_info}".lstrip()
            send(
                "logging",
                record.levelno,
                record.name,
                record.getMessage(),
                {k: v for k, v in vars(record).items() if k not in self._own},
                trace,
                record.created,
                (record.pathname, record.lineno, record.funcName or ""),
            )
        except Exception:
            self.handleError(record)


_line: _Line | None = None
_streams: dict[str, io.TextIOWrapper] = {}
_settings = ""
_levels: dict[str, int] = {}


def install(path: str, settings: str = "") -> None:
    """Begin to capture what this process writes. To be called once, when it is a worker.

    Args:
        path: The outlet's `path`; nothing is captured if it is empty or cannot be opened.
        settings: What is wanted, as `begin` takes it.
    """
    global _line
    if not path or _line is not None:
        return
    try:
        _line = _Line(path)
    except OSError:
        return
    _put_streams(_line)
    logging.getLogger().addHandler(_Handler())
    _settle_on(_line, settings)
    _line.wait_until_read(0.2)


def settle() -> None:
    """Wait until the pool has read descriptors 1 and 2, where the next call is here already."""
    if _line is not None:
        _line.wait_until_taken()


def begin(number: int, settings: str = "") -> None:
    """Send what is written from now on as that of a call.

    Args:
        number: The call's number, above 0.
        settings: JSON of an object: ``stdout`` and ``stderr`` say whether those are wanted,
            ``levels`` has the level of each logger that has one (the root's name is ""), ``hooks``
            names functions, as ``module:name``, that are called with `send` and the settings.
    """
    if _line is None:
        return
    if settings != _settings:
        _settle_on(_line, settings)
    for name, stream in _streams.items():
        if getattr(sys, name) is not stream or stream.closed:
            _put_streams(_line)
            break
    _line.begin(number)


def end() -> None:
    """Send what is still held back of the call, and then nothing more."""
    if _line is None:
        return
    for stream in _streams.values():
        with suppress(ValueError, OSError):
            stream.flush()
    _line.end()


def send(
    born: str,
    level: int,
    logger: str,
    message: str,
    fields: Mapping[str, object],
    exception: str = "",
    created: float = 0.0,
    place: tuple[str, int, str] = ("", 0, ""),
) -> None:
    """Send a log record; see `WorkerRecord`, whose `kind` is where it was born."""
    if _line is None or not _line.number:
        return
    plain = {str(key): _plain(value) for key, value in list(fields.items())[:_MOST_FIELDS]}
    text = message if isinstance(message, str) else _text(message)
    record = WorkerRecord(
        born,
        level,
        _short(logger, 1024),
        _short(text, _LONGEST_TEXT),
        plain,
        _short(exception, _LONGEST_TEXT),
        created or time.time(),
        place,
        os.getpid(),
    )
    _line.tell(json.dumps(record).encode())


def _settle_on(line: _Line, settings: str) -> None:
    global _settings
    _settings = settings
    wanted: dict[str, Any] = json.loads(settings or "{}")
    levels = {"": logging.WARNING} | wanted.get("levels", {})
    for name in _levels.keys() - levels.keys():
        logging.getLogger(name).setLevel(logging.NOTSET)
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)
    _levels.clear()
    _levels.update(levels)
    now = {STDOUT: wanted.get("stdout", True), STDERR: wanted.get("stderr", True)}
    if now != line.wanted:
        line.wanted = now
        line.point()
    for hook in wanted.get("hooks", ()):
        with suppress(Exception):  # a call does not fail because its output cannot be had
            function: Callable[..., object] = pkgutil.resolve_name(hook)
            function(send, wanted)


def _put_streams(line: _Line) -> None:
    for name, kind in (("stdout", STDOUT), ("stderr", STDERR)):
        stream = _streams.get(name)
        if stream is None or stream.closed:
            stream = _streams[name] = io.TextIOWrapper(
                io.BufferedWriter(_Raw(line, kind)),
                encoding="utf-8",
                errors="backslashreplace",
                line_buffering=True,
            )
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def high(descriptor: int) -> int:
    """Move a descriptor up, out of reach of units that close or reuse the low ones."""
    import fcntl  # not on Windows

    with suppress(OSError):
        moved = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, _HIGH)
        os.close(descriptor)
        return moved
    return descriptor


def _poll(condition: Callable[[], bool], seconds: float) -> None:
    """Wait for another process to change shared memory or to empty a pipe: that wakes nobody."""
    until = time.monotonic() + seconds
    while not condition() and time.monotonic() < until:
        time.sleep(0.0005)


def _plain(value: object) -> object:
    if type(value) in (float, bool, NoneType):
        return value
    if type(value) is int and value.bit_length() <= 64:
        return value
    return _short(value if type(value) is str else _text(value, repr), _LONGEST_FIELD)


def _text(value: object, how: Callable[[object], str] = str) -> str:
    try:
        return how(value)
    except Exception:
        return f"<{type(value).__name__} without a text>"


def _short(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[:longest]}… ({len(text)} characters)"
