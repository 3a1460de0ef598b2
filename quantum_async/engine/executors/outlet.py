"""The pool's side of captured output; `capture` is the worker's side and says what is written.

Everything is read in turns of a few milliseconds, so that a flood does not hold the loop, and
handed to the sink of its call, line by line. What is said here about order:

* Records of one worker come in the order in which it wrote them. What C code and subprocesses
  wrote comes through another pipe: it is read after the frames that were there before it.
* A pipe gives back what was written first, first, also when the writer is dead. So `finish`, called
  when the answer or the death of a worker is known, delivers all that its call wrote.
"""

import asyncio
import codecs
import json
import mmap
import os
import select
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from weakref import ref

from quantum_async.engine.executors import capture
from quantum_async.engine.executors.allowance import Allowance
from quantum_async.engine.executors.capture import WorkerRecord

__all__ = ["Outlet", "Sink", "WorkerRecord"]

_TURN, _PAUSE = 0.002, 0.001  # seconds
_CHUNK = 16 * 1024
_CAPACITY = 64 * 1024  # of the pipes behind descriptors 1 and 2
_PIPE_SIZE = 1024 * 1024
_LONGEST_RECORD = 4 * 1024 * 1024

Sink = Callable[[WorkerRecord], object]
_Pieces = deque[tuple[int, int, bytes]]  # kind, process and what it wrote

_OUTPUT = {
    capture.STDOUT: ("stdout", 20, "quantum_async.worker.stdout"),
    capture.STDERR: ("stderr", 30, "quantum_async.worker.stderr"),
}


class _Lines:
    """Cuts a stream of bytes into lines."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._rest: list[str] = []

    def feed(self, data: bytes, final: bool = False) -> list[str]:
        """Return the lines that are complete now, without the empty ones."""
        self._rest.append(self._decoder.decode(data, final))
        if not final and b"\n" not in data:
            return []
        lines = "".join(self._rest).split("\n")
        self._rest = [] if final else [lines.pop()]
        # A terminal would show only what follows the last return: progress bars.
        shown = (line.rstrip("\r").rpartition("\r")[2] for line in lines)
        return [line for line in shown if line]


class _Call:
    """A call whose output is taken."""

    def __init__(self, sink: Sink) -> None:
        self.sink: Sink | None = sink
        self.owed = 0  # bytes that a worker has dropped and not told of
        self._lines: dict[tuple[int, int, bool], _Lines] = {}
        self._messages: dict[int, bytearray] = {}
        # For frames and for the rest. The worker has one for its frames; its children may be many.
        self._allowances = Allowance(), Allowance()

    def frame(self, kind: int, part: int, pid: int, payload: bytes) -> Iterable[WorkerRecord]:
        """Return what is complete with a frame."""
        if kind in _OUTPUT:
            return self.output(kind, pid, payload, direct=False)
        if kind == capture.DROPPED:
            return (*self._rest(), _dropped(int(payload)))
        if part & capture.FIRST:
            self._messages[pid] = bytearray()
        message = self._messages.get(pid)
        if kind != capture.LOG or message is None or len(message) > _LONGEST_RECORD:
            return ()
        message += payload
        if not part & capture.LAST:
            return ()
        del self._messages[pid]
        record = WorkerRecord(*json.loads(message))
        path, line, function = record.place  # JSON has made it a list
        return (record._replace(place=(path, line, function)),)

    def output(self, kind: int, pid: int, data: bytes, direct: bool) -> Iterator[WorkerRecord]:
        """Return the lines that are complete with some bytes; `direct`: not from a frame."""
        allowance = self._allowances[direct]
        if allowance.dropped and allowance.take(0, 0):
            yield from (*self._rest(), _dropped(allowance.owed()))
        if allowance.take(len(data), data.count(b"\n")):
            lines = self._lines.setdefault((kind, pid, direct), _Lines())
            yield from (WorkerRecord(*_OUTPUT[kind], one, pid=pid) for one in lines.feed(data))

    def is_cut_off(self) -> bool:
        """Return whether what comes directly is dropped."""
        return self._allowances[True].dropped > 0

    def is_silent(self) -> bool:
        """Return whether nothing is left of what came."""
        return not (self._lines or self.owed or any(one.dropped for one in self._allowances))

    def last(self) -> list[WorkerRecord]:
        """Return what is left when nothing more can come."""
        owed = self.owed + sum(one.owed() for one in self._allowances)
        return self._rest() + ([_dropped(owed)] if owed else [])

    def _rest(self) -> list[WorkerRecord]:
        """Return the lines that have no end."""
        sources, self._lines = self._lines, {}
        return [
            WorkerRecord(*_OUTPUT[kind], line, pid=pid)
            for (kind, pid, _), lines in sources.items()
            for line in lines.feed(b"", final=True)
        ]


def _dropped(size: int) -> WorkerRecord:
    text = f"{size} bytes of output were dropped: it came faster than it is taken"
    return WorkerRecord("dropped", 30, "quantum_async.worker", text, {"bytes": size})


class _Worker:
    """What the pool has of a worker: its descriptors 1 and 2, and its page."""

    def __init__(self, pid: int, frames: int, stdout: int, stderr: int, page: int) -> None:
        self.pid = pid
        self.kinds: dict[int, int] = {}
        self._watch = select.poll()
        self._watch.register(frames, select.POLLIN)
        base = f"/proc/{pid}/fd"
        with open(f"{base}/{page}", "r+b", buffering=0) as memory:
            self._page = mmap.mmap(memory.fileno(), capture.PAGE_SIZE)
        try:
            for number, kind in ((stdout, capture.STDOUT), (stderr, capture.STDERR)):
                reading = os.open(f"{base}/{number}", os.O_RDONLY | os.O_NONBLOCK)
                self.kinds[reading] = kind
                self._watch.register(reading, select.POLLIN)
        except OSError:
            self.close()
            raise
        capture.NUMBER.pack_into(self._page, capture.READ, 1)

    def read(self, place: int) -> int:
        """Return a number on the page: the CALL that it runs or ran last, what it has OWED."""
        number: int = capture.NUMBER.unpack_from(self._page, place)[0]
        return number

    def is_quiet(self) -> bool:
        """Return whether there is nothing to read, here or in the frames."""
        return not self._watch.poll(0)

    def close(self, descriptor: int | None = None) -> None:
        """Let go of one descriptor, or of everything."""
        for one in list(self.kinds) if descriptor is None else [descriptor]:
            del self.kinds[one]
            self._watch.unregister(one)
            os.close(one)
        if not self.kinds:
            self._page.close()


class Outlet:
    """Where the output of the workers of one event loop comes out.

    Attributes:
        path: What `capture.install` takes; "" where output cannot be captured.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, reader: int, writer: int) -> None:
        self.path = f"/proc/{os.getpid()}/fd/{writer}" if writer >= 0 else ""
        self._loop = ref(loop)  # the loop's pool must not keep the loop
        self._reader, self._writer = reader, writer
        self._calls: dict[int, _Call] = {}
        self._workers: dict[int, _Worker] = {}
        self._finishing: set[asyncio.Future[None]] = set()
        self._scheduled = False
        # The frames that were read: the bytes, where the next one begins, how many bytes were used.
        self._buffer, self._at, self._used = b"", 0, 0
        # What is to be done now, and what when so many bytes of frames were used.
        self._pending: deque[Callable[[], object]] = deque()
        self._agenda: deque[tuple[int, Callable[[], object]]] = deque()

    @classmethod
    def open(cls, loop: asyncio.AbstractEventLoop) -> "Outlet":
        """Make an outlet that is read by `loop`; it must be closed before the loop is."""
        if sys.platform != "linux" or not os.path.isdir("/proc/self/fd"):
            return cls(loop, -1, -1)
        import fcntl

        reader, writer = os.pipe()
        os.set_blocking(reader, False)
        with suppress(OSError):
            fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, _PIPE_SIZE)
        outlet = cls(loop, reader, writer)
        loop.add_reader(reader, outlet._wake)
        return outlet

    def expect(self, number: int, sink: Sink) -> None:
        """Hand what call `number` writes to `sink`, from now until it is finished."""
        if self._reader >= 0:
            self._calls[number] = _Call(sink)

    def is_finished(self, number: int, pid: int) -> bool:
        """Return whether all was delivered that a call wrote, and no more is expected of it."""
        call, worker = self._calls.get(number), self._workers.get(pid)
        if call is None or worker is None:
            return call is None
        if worker.read(capture.CALL) == number:  # else it has gone on to the next already
            call.owed = worker.read(capture.OWED)
        idle = not self._pending and not self._agenda and self._at == len(self._buffer)
        if idle and worker.is_quiet() and call.is_silent():
            del self._calls[number]
            return True
        return False

    async def finish(self, number: int, pid: int = 0) -> None:
        """Return when everything was delivered that a call wrote, and expect no more of it.

        To be awaited before the worker is given another call.

        Args:
            number: The call's number.
            pid: The worker's process id, if it is known.
        """
        if self.is_finished(number, pid):
            return
        call, worker = self._calls[number], self._worker_of(number, pid)
        pieces = self._grab(worker) if worker else deque()
        done = asyncio.get_running_loop().create_future()
        self._finishing.add(done)
        self._later(partial(self._finish, call, pieces, done))
        try:
            await done
        finally:
            self._finishing.discard(done)
            self._calls.pop(number, None)

    def close(self) -> None:
        """Let go of all descriptors; what was not read by now is lost."""
        if self._reader < 0:
            return
        for worker in list(self._workers.values()):
            self._forget(worker)
        self._remove_reader(self._reader)
        os.close(self._reader)
        os.close(self._writer)
        self._reader = self._writer = -1
        self._calls.clear()
        self._pending.clear()
        self._agenda.clear()
        for done in self._finishing:
            _resolve(done)

    # -- turns ------------------------------------------------------------------------------

    def _wake(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._turn)

    def _turn(self) -> None:
        self._scheduled = False
        until = time.perf_counter() + _TURN
        while self._reader >= 0:
            if self._pending:
                self._pending.popleft()()
            elif self._agenda and self._agenda[0][0] <= self._used:
                self._agenda.popleft()[1]()
            elif self._use_frame():
                pass
            elif self._agenda:  # the pipe is empty: what it waits for cannot come any more
                self._agenda.popleft()[1]()
            else:
                return
            if time.perf_counter() > until:
                self._wake()
                return

    def _later(self, action: Callable[[], object]) -> None:
        """Do something after the frames that are there now."""
        goal = self._used + len(self._buffer) - self._at + _waiting(self._reader)
        self._agenda.append((goal, action))
        self._wake()

    def _put(self, call: _Call, records: Iterable[WorkerRecord]) -> None:
        self._pending.extend(partial(self._deliver, call, record) for record in records)

    def _deliver(self, call: _Call, record: WorkerRecord) -> None:
        if call.sink is None:
            return
        try:
            call.sink(record)
        except Exception as error:
            call.sink = None
            told = {"message": "a sink of output raised and gets no more", "exception": error}
            asyncio.get_running_loop().call_exception_handler(told)

    # -- frames -----------------------------------------------------------------------------

    def _use_frame(self) -> bool:
        """Use one frame; return False if there is none."""
        while True:
            start, buffer = self._at, self._buffer
            if len(buffer) - start >= capture.HEADER.size:
                magic, kind, part, pid, number, length = capture.HEADER.unpack_from(buffer, start)
                end = start + capture.HEADER.size + length
                if magic != capture.MAGIC or length > capture.MOST:
                    # Somebody wrote rubbish into the pipe.
                    found = buffer.find(capture.MAGIC, start + 1)
                    self._at = found if found > 0 else len(buffer)
                    self._used += self._at - start
                    continue
                if end <= len(buffer):
                    self._at = end
                    self._used += end - start
                    self._frame(kind, part, pid, number, buffer[start + capture.HEADER.size : end])
                    return True
            try:
                self._buffer = buffer[start:] + os.read(self._reader, _CAPACITY)
            except BlockingIOError:
                return False
            self._at = 0

    def _frame(self, kind: int, part: int, pid: int, number: int, payload: bytes) -> None:
        call = self._calls.get(number)
        with suppress(ValueError, TypeError, OSError):
            if kind == capture.HELLO:
                self._meet(_Worker(pid, self._reader, *json.loads(payload)))
            elif kind == capture.LOOK and pid in self._workers:
                worker = self._workers[pid]
                for descriptor in list(worker.kinds):  # a dead one loses them
                    self._read_first(worker, descriptor, _CAPACITY // _CHUNK)
            elif call is not None:
                self._put(call, call.frame(kind, part, pid, payload))

    # -- descriptors 1 and 2 of the workers -------------------------------------------------

    def _meet(self, worker: _Worker) -> None:
        if worker.pid in self._workers:
            self._forget(self._workers[worker.pid])
        self._workers[worker.pid] = worker
        for descriptor in worker.kinds:
            self._watch(worker, descriptor)

    def _worker_of(self, number: int, pid: int) -> _Worker | None:
        known = self._workers.get(pid)
        candidates = self._workers.values() if known is None else (known,)
        return next((one for one in candidates if one.read(capture.CALL) == number), None)

    def _forget(self, worker: _Worker) -> None:
        self._workers.pop(worker.pid, None)
        for descriptor in worker.kinds:
            self._remove_reader(descriptor)
        worker.close()

    def _watch(self, worker: _Worker, descriptor: int) -> None:
        if descriptor in worker.kinds:
            add_reader = asyncio.get_running_loop().add_reader
            add_reader(descriptor, self._readable, worker, descriptor)

    def _readable(self, worker: _Worker, descriptor: int) -> None:
        self._remove_reader(descriptor)
        self._later(partial(self._read_live, worker, descriptor))

    def _remove_reader(self, descriptor: int) -> None:
        loop = self._loop()
        if loop is not None and not loop.is_closed():
            loop.remove_reader(descriptor)

    def _read_live(self, worker: _Worker, descriptor: int) -> None:
        if descriptor not in worker.kinds:
            return
        call = self._calls.get(worker.read(capture.CALL))
        if call is not None and not call.is_cut_off():
            self._read(worker, descriptor, _CHUNK)
            self._watch(worker, descriptor)
        else:  # nobody gets it: much at a time and not at once, so that it does not fill the loop
            self._read(worker, descriptor, _CAPACITY)
            asyncio.get_running_loop().call_later(_PAUSE, self._watch, worker, descriptor)

    def _read_first(self, worker: _Worker, descriptor: int, pieces: int) -> None:
        """Read some pieces, if there are so many, before any more frames."""
        if pieces and self._read(worker, descriptor, _CHUNK):
            again = partial(self._read_first, worker, descriptor, pieces - 1)
            self._agenda.appendleft((0, again))

    def _read(self, worker: _Worker, descriptor: int, size: int) -> bytes:
        data = self._take(worker, descriptor, size)
        call = self._calls.get(worker.read(capture.CALL)) if data else None
        if call is not None:
            self._put(call, call.output(worker.kinds[descriptor], worker.pid, data, direct=True))
        return data

    def _take(self, worker: _Worker, descriptor: int, most: int) -> bytes:
        if descriptor not in worker.kinds:
            return b""
        try:
            data = os.read(descriptor, most)
        except BlockingIOError:
            return b""
        if not data:  # the worker is gone, and so are all that it has started
            self._remove_reader(descriptor)
            if len(worker.kinds) == 1:
                self._workers.pop(worker.pid, None)
                if call := self._calls.get(worker.read(capture.CALL)):
                    call.owed = worker.read(capture.OWED)
            worker.close(descriptor)
        return data

    def _grab(self, worker: _Worker) -> _Pieces:
        pieces: _Pieces = deque()
        for descriptor, kind in list(worker.kinds.items()):
            data = self._take(worker, descriptor, _CAPACITY)
            cuts = range(0, len(data), _CHUNK)
            pieces.extend((kind, worker.pid, data[start : start + _CHUNK]) for start in cuts)
        return pieces

    def _finish(self, call: _Call, pieces: _Pieces, done: "asyncio.Future[None]") -> None:
        if pieces:
            self._put(call, call.output(*pieces.popleft(), direct=True))
            self._agenda.appendleft((0, partial(self._finish, call, pieces, done)))
        else:
            self._put(call, call.last())
            self._pending.append(partial(_resolve, done))


def _resolve(done: "asyncio.Future[None]") -> None:
    if not done.done():
        done.set_result(None)


def _waiting(descriptor: int) -> int:
    """Return how many bytes there are to read."""
    import fcntl
    import termios

    found = fcntl.ioctl(descriptor, termios.FIONREAD, b"\0\0\0\0")
    return int.from_bytes(found, sys.byteorder)
