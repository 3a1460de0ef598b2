"""How values cross between the pool and its workers; used by both sides.

A value is pickled once. A small one travels inside the call. From `SPILL` bytes on it goes through
a `Segment` of shared memory, and only a header travels in the call. Each side copies big content
once: the pickler hands over big `bytes` and out-of-band buffers (PEP 574) as they are, and they are
written to the segment; the unpickler reads them from there right into the memory where they stay.

Nobody maps a segment. Mapped memory changes when the other side writes again, is fatal to touch
when that side truncates it, and a page fault costs more than the copy of a page. Without mappings
a segment may be written again once it was read: its memory is there already, and to find and clear
new memory is most of what a transfer costs.
"""

import io
import mmap
import os
import pickle
import struct
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Self

SPILL = 64 * 1024  # bytes: what a pipe holds; from here on shared memory is quicker
OUT_OF_BAND = 16 * 1024  # bytes; a smaller buffer is quicker inside the pickle
_HUGE_PAGES = 4 * 1024 * 1024  # bytes; from here on NumPy asks for them too

_HEADER = struct.Struct("=?QQ")  # is it in a segment, bytes of pickle, number of buffers
_NAME = "quantum_async-segment"


class PayloadTooLargeError(ValueError):
    """Raised when a value is bigger than it may be.

    Args:
        size: How much of it there was when that was noticed, in bytes.
        limit: How much it may be, in bytes.
    """

    def __init__(self, size: int, limit: int) -> None:
        super().__init__(size, limit)  # so that it can be pickled
        self.size = size
        self.limit = limit

    def __str__(self) -> str:
        return f"it takes at least {self.size:,} bytes, and the limit is {self.limit:,}"


class Segment:
    """A piece of shared memory, owned by the pool's side.

    On Linux it is in no file system: it is gone with the last process that holds it, whatever
    crashes. Elsewhere it is a temporary file.

    It may be written again once what was in it was loaded; it keeps its memory until it is closed.
    If the process that was to write it is killed, close it when that one is dead, and make another.

    Args:
        descriptor: The open file, which is the segment's own from now on.
        path: Where both sides can open it.

    Example:
        >>> from functools import partial
        >>> value = [b"x" * 1_000_000]
        >>> with Segment.create() as segment:
        ...     blob = dump(value, partial(pickle.Pickler, protocol=5), segment.open)
        ...     is_spilled(blob), load(blob, segment.path) == value
        (True, True)
    """

    def __init__(self, descriptor: int, path: str) -> None:
        self._descriptor = descriptor
        self.path = path

    @classmethod
    def create(cls) -> Self:
        """Make an empty one."""
        if hasattr(os, "memfd_create"):
            descriptor = os.memfd_create(_NAME)
            return cls(descriptor, f"/proc/{os.getpid()}/fd/{descriptor}")
        import tempfile

        return cls(*tempfile.mkstemp(prefix=_NAME))

    def fileno(self) -> int:
        """Return the segment's own descriptor."""
        return self._descriptor

    def open(self) -> int:
        """Return a new descriptor of it, for `dump`."""
        return open_segment(self.path)

    def close(self) -> None:
        """Let go of the memory. What was loaded from it stays."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)
            if not self.path.startswith("/proc/"):
                os.unlink(self.path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def open_segment(path: str) -> int:
    """Return a new descriptor of the segment at a path, for `dump` in a worker.

    Raises:
        FileNotFoundError: There is none any more.
    """
    descriptor = os.open(path, os.O_RDWR | getattr(os, "O_BINARY", 0))
    if path.startswith("/proc/") and _NAME not in os.readlink(f"/proc/self/fd/{descriptor}"):
        # It was closed, and its number is that of somebody's file now.
        os.close(descriptor)
        raise FileNotFoundError(f"the shared memory at {path} was closed by its owner")
    return descriptor


def dump(
    value: Any,
    make_pickler: Callable[..., pickle.Pickler],
    open_segment: Callable[[], int] | None,
    limit: int | None = None,
) -> bytes:
    """Pickle a value; to a segment if it is big.

    Args:
        value: What is to travel.
        make_pickler: A class of picklers with `protocol=5` bound: it is called with the file and
            `buffer_callback=`.
        open_segment: Returns a descriptor of a segment, which is closed here, and overwritten.
            It is called once if the value is big, and else not at all. None to have everything in
            what is returned, however big.
        limit: How many bytes it may be.

    Returns:
        What `load` needs, beside the segment.

    Raises:
        PayloadTooLargeError: It is bigger than `limit`.
        Exception: What the pickler raises. If something was written, the segment is empty now.
    """
    sink = _Sink(open_segment, limit)
    try:
        make_pickler(sink, buffer_callback=sink.keep).dump(value)
        return sink.finish()
    except BaseException:
        sink.discard()
        raise
    finally:
        sink.close()


_PLAIN = frozenset((int, float, bool, complex, type(None)))


def is_plain(value: Any) -> bool:
    """Return whether a value is small and of plain types only, so that any pickler will do."""
    kind = type(value)
    if kind in _PLAIN:
        return True
    if kind is str or kind is bytes:
        return len(value) < OUT_OF_BAND
    if kind is dict:
        return len(value) <= 64 and all(type(k) is str and is_plain(v) for k, v in value.items())
    return (kind is tuple or kind is list) and len(value) <= 64 and all(map(is_plain, value))


def inline(content: bytes) -> bytes:
    """Return what `load` needs for a small value that was pickled already."""
    return _HEADER.pack(False, len(content), 0) + content


def load(blob: bytes, segment: str | int | None = None) -> Any:
    """Return a copy of the value that was dumped.

    Args:
        blob: What `dump` returned.
        segment: Path or descriptor of the segment, for a value that is in one. The copy does not
            need it any more.

    Raises:
        EOFError: The segment holds less than was dumped.
        Exception: What the unpickler raises.
    """
    spilled, stream, sizes = _layout(blob)
    start = 0 if spilled else _HEADER.size + 8 * len(sizes)
    if not spilled and not sizes:
        return pickle.loads(memoryview(blob)[start:])
    with _opened(segment) if spilled else io.BytesIO(blob) as file:
        if file.seek(0, os.SEEK_END) < start + size_of(blob):
            raise EOFError("there are fewer bytes than were dumped")
        file.seek(start + stream)
        buffers = [_read(file, size) for size in sizes]
        file.seek(start)
        return pickle.load(file, buffers=buffers)


def _opened(segment: str | int | None) -> io.BufferedReader:
    if segment is None:
        raise ValueError("the value is in a segment, and no segment was given")
    return open(open_segment(segment) if isinstance(segment, str) else os.dup(segment), "rb")


def is_spilled(blob: bytes) -> bool:
    """Return whether the value is in a segment."""
    return _layout(blob)[0]


def size_of(blob: bytes) -> int:
    """Return how many bytes the value is, wherever they are."""
    _, stream, sizes = _layout(blob)
    return stream + sum(sizes)


def _layout(blob: bytes) -> tuple[bool, int, tuple[int, ...]]:
    spilled, stream, buffers = _HEADER.unpack_from(blob)
    return spilled, stream, struct.unpack_from(f"={buffers}Q", blob, _HEADER.size)


class _Sink:
    """What a pickler writes to: memory, until there is so much that a segment is worth it."""

    def __init__(self, open_segment: Callable[[], int] | None, limit: int | None) -> None:
        self._open_segment = open_segment
        self._limit = limit
        self._size = 0
        self._stream = io.BytesIO()
        self._buffers: list[memoryview] = []
        self._file: io.FileIO | None = None

    def write(self, data: Any) -> None:
        """Take a frame of the pickle, or what is inside a big object."""
        view = memoryview(data)
        self._make_room(view.nbytes)
        if self._file is None:
            self._stream.write(view)
        else:
            _write(self._file, view)

    def keep(self, buffer: pickle.PickleBuffer) -> bool:
        """Keep a buffer for later; return True if it should be in the pickle after all."""
        view = buffer.raw()
        if view.nbytes < OUT_OF_BAND:
            return True
        self._buffers.append(view)
        self._make_room(view.nbytes)
        return False

    def _make_room(self, size: int) -> None:
        self._size += size
        if self._limit is not None and self._size > self._limit:
            raise PayloadTooLargeError(self._size, self._limit)
        if self._size >= SPILL and self._file is None and self._open_segment is not None:
            self._file = io.FileIO(self._open_segment(), "r+")
            self._file.seek(0)
            _write(self._file, self._stream.getbuffer())

    def finish(self) -> bytes:
        """Put the buffers after the pickle; return what `load` needs."""
        sizes = [view.nbytes for view in self._buffers]
        header = _HEADER.pack(self._file is not None, self._size - sum(sizes), len(sizes))
        header += struct.pack(f"={len(sizes)}Q", *sizes)
        if self._file is None:
            return b"".join((header, self._stream.getbuffer(), *self._buffers))
        for view in self._buffers:
            _write(self._file, view)
        return header

    def discard(self) -> None:
        """Empty the segment if something was written to it."""
        if self._file is not None:
            self._file.truncate(0)

    def close(self) -> None:
        """Let go of the segment, and of the objects whose buffers were kept."""
        for view in self._buffers:
            view.release()
        if self._file is not None:
            self._file.close()


def _write(file: io.FileIO, view: memoryview) -> None:
    while view:  # the system writes at most 2 GiB at once
        view = view[file.write(view) :]


def _read(file: io.BytesIO | io.BufferedReader, size: int) -> bytearray | mmap.mmap:
    """Read a buffer into memory of its own, whose contents its user may change."""
    memory: bytearray | mmap.mmap
    if sys.platform == "linux" and size >= _HUGE_PAGES:
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        with suppress(OSError):  # a kernel that was built without them
            memory.madvise(mmap.MADV_HUGEPAGE)
    else:
        memory = bytearray(size)
    file.readinto(memory)
    return memory
