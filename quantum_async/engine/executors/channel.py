"""A pipe each way between the pool and one worker, for frames of bytes; used by both sides.

anyio starts and ends the worker; its own pipe, with a request and an answer a call, costs more than
a small unit does. While a worker serves the pool, calls go through these pipes instead.

The pool's side makes both pipes and names the worker's ends by path. It never blocks: what a full
pipe does not take is kept until there is room. The worker's side blocks.
"""

import asyncio
import os
import struct
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress

_LENGTH = struct.Struct("=Q")
_CHUNK = 256 * 1024  # bytes: read at once, a full pipe and more


def _make_pipe() -> tuple[int, int, str]:
    """Return a descriptor to read, one to write, and a folder that is to be removed or "".

    Where another process cannot open a pipe by its descriptor, it is a named one.
    """
    if sys.platform == "linux":
        return *os.pipe(), ""
    folder = tempfile.mkdtemp(prefix="quantum_async-")
    os.mkfifo(f"{folder}/pipe", 0o600)
    # Open both ways, or opening would wait for the other side.
    both = os.open(f"{folder}/pipe", os.O_RDWR)
    return both, os.dup(both), folder


class Channel:
    """The pool's side.

    Args:
        loop: The event loop that reads.
        take: Called with each frame that the worker sent.

    Attributes:
        paths: Where the worker opens its two ends: what it reads, and what it writes.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, take: Callable[[bytes], object]) -> None:
        self._loop = loop
        self._take = take
        workers_input, self._output, one = _make_pipe()
        self._input, workers_output, other = _make_pipe()
        self._theirs = [workers_input, workers_output]
        self._folders = [folder for folder in (one, other) if folder]
        base = f"/proc/{os.getpid()}/fd"
        self.paths = (
            f"{one}/pipe" if one else f"{base}/{workers_input}",
            f"{other}/pipe" if other else f"{base}/{workers_output}",
        )
        self._read = bytearray()
        self._unsent = bytearray()
        os.set_blocking(self._input, False)
        os.set_blocking(self._output, False)
        loop.add_reader(self._input, self.drain)

    def connected(self) -> None:
        """The worker has opened its ends: let go of them here, so that its death closes them."""
        theirs, self._theirs = self._theirs, []
        for descriptor in theirs:
            os.close(descriptor)
        for folder in self._folders:
            os.unlink(f"{folder}/pipe")
            os.rmdir(folder)
        self._folders = []

    def send(self, frame: bytes) -> None:
        """Send a frame."""
        data = _LENGTH.pack(len(frame)) + frame
        if self._output < 0:
            return
        if self._unsent:
            self._unsent += data
            return
        try:
            sent = os.write(self._output, data)
        except BlockingIOError:
            sent = 0
        except OSError:  # it is dead, and that will be noticed
            return
        if sent < len(data):
            self._unsent += data[sent:]
            self._loop.add_writer(self._output, self._send_rest)

    def _send_rest(self) -> None:
        try:
            sent = os.write(self._output, self._unsent)
        except BlockingIOError:
            return
        except OSError:
            sent = len(self._unsent)
        del self._unsent[:sent]
        if not self._unsent:
            self._loop.remove_writer(self._output)

    def unread(self) -> int:
        """Return how many bytes of what was sent the worker has not read."""
        if self._output < 0:
            return 0
        import fcntl
        import termios

        found = fcntl.ioctl(self._output, termios.FIONREAD, b"\0\0\0\0")
        return len(self._unsent) + int.from_bytes(found, sys.byteorder)

    def drain(self) -> None:
        """Take the frames that have come."""
        while self._input >= 0:
            try:
                data = os.read(self._input, _CHUNK)
            except BlockingIOError:
                return
            if not data:
                self._loop.remove_reader(self._input)
                return
            self._read += data
            for frame in frames_in(self._read):
                self._take(frame)
            if len(data) < _CHUNK:
                return

    def close(self) -> None:
        """Let go of all descriptors."""
        if self._input < 0:
            return
        self.connected()
        if not self._loop.is_closed():
            self._loop.remove_reader(self._input)
            self._loop.remove_writer(self._output)
        os.close(self._input)
        os.close(self._output)
        self._input = self._output = -1


def frames_in(data: bytearray) -> list[bytes]:
    """Cut complete frames off the front of what was read."""
    found: list[bytes] = []
    start, head = 0, _LENGTH.size
    while len(data) - start >= head:
        end = start + head + _LENGTH.unpack_from(data, start)[0]
        if len(data) < end:
            break
        found.append(bytes(data[start + head : end]))
        start = end
    del data[:start]
    return found


class WorkerEnd:
    """The worker's side.

    Args:
        paths: `Channel.paths`.
        keep: Moves a descriptor to where user code does not hit it by accident.
    """

    def __init__(self, paths: tuple[str, str], keep: Callable[[int], int]) -> None:
        self._input = keep(os.open(paths[0], os.O_RDONLY))
        self._output = keep(os.open(paths[1], os.O_WRONLY))
        self._read = bytearray()
        self._frames: list[bytes] = []

    def receive(self) -> bytes:
        """Wait for a frame and return it.

        Raises:
            EOFError: The pool is gone.
        """
        while not self._frames:
            data = os.read(self._input, _CHUNK)
            if not data:
                raise EOFError("the pool is gone")
            self._read += data
            self._frames = frames_in(self._read)
        return self._frames.pop(0)

    def send(self, frame: bytes) -> None:
        """Send a frame."""
        view = memoryview(_LENGTH.pack(len(frame)) + frame)
        while view:
            view = view[os.write(self._output, view) :]

    def close(self) -> None:
        """Let go of both ends."""
        for descriptor in (self._input, self._output):
            with suppress(OSError):  # a unit may have closed it
                os.close(descriptor)
